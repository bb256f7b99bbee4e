"""The run that is cut short, and what must come of it whatever happened on the way.

It has four files in five batches, a request that is retried, one that fails for good, a table with
a sidecar that comes back as a table and as a folder of answers, and a file that is rejected. The
batches are short, since no step is made while one waits.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from crash.mortal import Death, Fate, mortal
from promptspool.app import Daemon
from promptspool.provider.base import BATCH_KEY, SPOOL_KEY
from promptspool.simulator import Simulator, SimulatorSettings
from world import FakeClock, World, simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from promptspool.spool import Spool

_Point = TypeVar("_Point")

EVERY = int(os.environ.get("PROMPTSPOOL_CRASH_EVERY", "0"))
"""Every which point is tried, 1 tries them all; 0 tries a few of each kind."""

PARTS = 16 if EVERY else 1
"""In so many tests each sweep is made, for the processes that share them."""

LIMIT_S = 100.0
"""Real time, against hangs."""

SMALL = {"providers": {"openai": {"max_requests": 4}}}
QUICK = SimulatorSettings(run_s=20.0)

JOB_A, JOB_B, JOB_T = "a.jsonl", "b.txt", "t.csv"

_DRAWN = (
    (re.compile(rb"\d{8}t\d{6}z-[2-9a-z]{6}"), b"JOB"),
    (re.compile(rb'"batch_req_[0-9a-f]{32}"'), b'"REQUEST"'),
    (re.compile(rb"chatcmpl-[0-9a-f]{24}"), b"CHAT"),
    (re.compile(rb"world-[0-9a-f]{8}"), b"WORLD"),
    (re.compile(rb'"request_id": ?"[0-9a-f]{32}"'), b'"request_id":"CALL"'),
)
"""What differs by run: the ids of jobs, what the provider makes of them, and the world's name."""


class Duplicate(AssertionError):
    """Something was bought twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calm:
    """A run that nothing disturbed."""

    steps: list[str]
    delivered: dict[str, bytes]

    def commits(self) -> int:
        """Count them."""
        return self.steps.count("commit")


def sample(points: Sequence[_Point], few: int, part: int) -> Sequence[_Point]:
    """Return the points of one part of a sweep, or *few* of all, evenly spread."""
    if EVERY:
        return points[::EVERY][part::PARTS]

    return [points[(2 * number + 1) * len(points) // (2 * few)] for number in range(few)]


@asynccontextmanager
async def staged(root: Path) -> AsyncIterator[World]:
    """Yield a world with the files dropped and nothing done."""
    async with simulated(root, overrides=SMALL, settings=QUICK) as world:
        drop(world)
        yield world


def elsewhere(root: Path, base_url: str) -> World:
    """Return a world whose provider, and whose daemon, are other processes."""
    clock = FakeClock()
    nobody = Simulator(clock=clock, directory=root / "remote")

    return World(root=root, clock=clock, simulator=nobody, base_url=base_url, overrides=SMALL)


def drop(world: World) -> None:
    """Drop the files of every run.

    A provider that serves many worlds fails a prompt once, and not once in each of them; so one
    prompt names its world.
    """
    rows: list[dict[str, Any]] = [{"id": f"a{n}", "prompt": f"Number {n}"} for n in range(6)]
    rows[1]["prompt"] += f" world-{zlib.crc32(os.fsencode(world.root)):08x}[[fail:500 once]]"
    rows[4]["prompt"] += "[[fail:400]]"
    world.drop(JOB_A, rows)
    world.drop(JOB_B, "one\ntwo\nthree\n")
    world.drop("c.jsonl", b"nothing\n")
    world.drop(f"{JOB_T}.toml", b'answers = ["table", "text"]\n')
    world.drop(JOB_T, b"id,prompt\nt1,one\nt2,two\n")


async def live(world: World, fate: Fate, *, daemon: Daemon | None = None) -> None:
    """Run until drained, stopped or dead."""
    daemon = daemon or drainer(world)

    with mortal(fate, world.spool.root), anyio.fail_after(LIMIT_S):
        try:
            await world.run(daemon)
        except BaseExceptionGroup as group:
            if group.split(Death)[0] is None:
                raise
        except Death:
            pass


def put_back(spool: Spool, copy: bytes | None) -> None:
    """Replace the database by an earlier one, or remove it."""
    for path in spool.state.glob("promptspool.db*"):
        path.unlink()

    if copy is not None:
        spool.database.write_bytes(copy)


def drainer(world: World) -> Daemon:
    """Return a daemon that ends when nothing is left to do."""
    return Daemon(settings=world.settings(), clock=world.clock, is_draining=True)


async def undisturbed(root: Path) -> Calm:
    """Run without an accident, and say what it took and what it delivered."""
    async with staged(root) as world:
        fate = Fate()
        await live(world, fate)
        assert_paid(world)
        assert_kept(world)

        return Calm(steps=fate.steps, delivered=delivered(world.spool))


async def assert_finished(world: World, calm: Calm) -> None:
    """Let the next run finish, and hold every law."""
    assert await world.drain()
    assert_same(world, calm)


def assert_same(world: World, calm: Calm) -> None:
    """Hold every law, and that what was delivered is what came of the calm run, byte for byte."""
    assert_paid(world)
    assert_kept(world)
    assert delivered(world.spool) == calm.delivered


def assert_paid(world: World) -> None:
    """Hold `assert_bought` by the ledger of a provider in this process."""
    ledger = world.simulator.ledger
    metadata = [creation.metadata for creation in ledger.creations]
    assert_bought(metadata, ledger.requests, spool_id=world.spool.identity())


def assert_bought(
    metadata: Sequence[Mapping[str, str]], requests: Mapping[str, int], *, spool_id: str
) -> None:
    """Hold that no batch was created twice and each request accepted as often as it had to be.

    *metadata* is that of every created batch, *requests* how often each was accepted, by its name
    on the wire. Those of other spools are passed over. Raises `Duplicate`.
    """
    bought = [one[BATCH_KEY] for one in metadata if one[SPOOL_KEY] == spool_id]
    jobs = {batch.partition(".")[0] for batch in bought}
    asked = [times for name, times in requests.items() if name.rpartition("-")[0] in jobs]

    if sorted(set(bought)) != sorted(bought):
        raise Duplicate(f"a batch was bought twice: {sorted(bought)}")

    if max(asked) > 2 or sum(asked) > 12:
        raise Duplicate(f"a request was accepted too often: {requests}")

    assert sorted(asked) == [*[1] * 10, 2]


def assert_kept(world: World) -> None:
    """Hold that every prompt has one place, every dropped file is kept, and nothing is left."""
    world.assert_conserved(JOB_A, [f"a{n}" for n in range(6)])
    world.assert_conserved(JOB_B, ["b-1", "b-2", "b-3"])
    world.assert_conserved(JOB_T, ["t1", "t2"])
    assert [line["custom_id"] for line in world.errors(JOB_A)] == ["a4"]
    assert not [path for path in world.spool.inbox.iterdir() if not path.name.startswith(".")]
    assert not list(world.spool.working.iterdir())
    assert names(world.spool.done) == [JOB_A, JOB_B, JOB_T, f"{JOB_T}.toml"]
    assert names(world.spool.rejected) == ["c.jsonl", "c.jsonl.rejected.json"]


def names(folder: Path) -> list[str]:
    """Return the names in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())


def delivered(spool: Spool) -> dict[str, bytes]:
    """Return the content of all that has left the spool, but for what each run draws."""
    found = {}

    for tree in (spool.outbox, spool.done, spool.rejected):
        for path in sorted(tree.rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                is_summary = path.name.endswith(".summary.json")
                found[str(path.relative_to(spool.root))] = _plain(
                    _timeless(data) if is_summary else data
                )

    return found


def _plain(data: bytes) -> bytes:
    for drawn, instead in _DRAWN:
        data = drawn.sub(instead, data)

    return data


def _timeless(data: bytes) -> bytes:
    """Return a summary without times and without the provider's names for batches."""
    summary = json.loads(data)
    del summary["timings"]

    for batch in summary["batches"]:
        for key in ("remote_id", "created_at", "ended_at"):
            del batch[key]

    return json.dumps(summary).encode()
