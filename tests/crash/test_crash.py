"""Death at every durable step of a run, and databases that forget.

The run has three files in four batches, a request that is retried, one that fails for good, a table
with a sidecar that comes back as a table and as a folder of answers, and a file that is rejected.
After each death a second run finishes, and the laws are held: every prompt in exactly one place,
the same answers as without a death, and no batch bought twice. (The bytes differ between runs only
in what holds a job id, which each run draws.)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from crash.mortal import Death, Fate, mortal
from world import simulated

if TYPE_CHECKING:
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

SMALL = {"providers": {"openai": {"max_requests": 4}}}
EVERY = int(os.environ.get("PROMPTSPOOL_CRASH_EVERY", "23"))
"""Every which step is tried; 1 tries them all (minutes)."""


def drop(world: World) -> None:
    """Drop the files of every run here."""
    rows: list[dict[str, Any]] = [{"id": f"a{n}", "prompt": f"Number {n}"} for n in range(6)]
    rows[1]["prompt"] += "[[fail:500 once]]"
    rows[4]["prompt"] += "[[fail:400]]"
    world.drop("a.jsonl", rows)
    world.drop("b.txt", "one\ntwo\nthree\n")
    world.drop("c.jsonl", b"nothing\n")
    world.drop("t.csv.toml", b'answers = ["table", "text"]\n')
    world.drop("t.csv", b"id,prompt\nt1,one\nt2,two\n")


def check(world: World) -> dict[str, list[tuple[Any, ...]]]:
    """Hold the laws and return what was delivered, but for names that a run draws."""
    world.assert_conserved("a.jsonl", [f"a{n}" for n in range(6)])
    world.assert_conserved("b.txt", ["b-1", "b-2", "b-3"])
    world.assert_conserved("t.csv", ["t1", "t2"])
    world.assert_bought_once()
    assert [line["custom_id"] for line in world.errors("a.jsonl")] == ["a4"]
    assert (world.spool.rejected / "c.jsonl").exists()
    assert (world.spool.rejected / "c.jsonl.rejected.json").exists()
    assert sorted(path.name for path in world.spool.done.iterdir()) == [
        "a.jsonl",
        "b.txt",
        "t.csv",
        "t.csv.toml",
    ]
    assert not [path for path in world.spool.inbox.iterdir() if not path.name.startswith(".")]
    assert not list(world.spool.working.iterdir())
    asked = world.simulator.ledger.requests
    assert max(asked.values()) <= 2
    assert sorted(asked.values(), reverse=True)[1:] == [1] * 10
    outbox = world.spool.outbox
    names = [
        "a.jsonl.results.jsonl",
        "a.jsonl.errors.jsonl",
        "b.txt.results.jsonl",
        "t.csv.results.jsonl",
    ]
    shapes = ["t.csv.results.csv", "t.csv.answers"]
    summaries = [f"{name}.summary.json" for name in ("a.jsonl", "b.txt", "t.csv")]
    assert sorted(path.name for path in outbox.iterdir()) == sorted([*names, *shapes, *summaries])
    texts = {path.name: path.read_text() for path in (outbox / "t.csv.answers").iterdir()}
    assert sorted(texts) == ["t1.txt", "t2.txt"]

    return {
        **{name: [_said(line) for line in world.lines(name)] for name in names},
        "t.csv.results.csv": [((outbox / "t.csv.results.csv").read_bytes(),)],
        "t.csv.answers": sorted(texts.items()),
    }


def _said(line: dict[str, Any]) -> tuple[Any, ...]:
    response = line["response"]
    told = line["custom_id"], response["status_code"], response["body"], line["error"]

    return (*told, line.get("attempts"), line.get("source"))


async def live(world: World, fate: Fate) -> None:
    """Run until drained or dead."""
    with mortal(fate):
        try:
            await world.drain()
        except BaseExceptionGroup as group:
            if group.split(Death)[0] is None:
                raise
        except Death:
            pass


async def undisturbed(root: Path) -> tuple[int, dict[str, list[tuple[Any, ...]]]]:
    """Return how many durable steps a run without a death takes, and what it delivers."""
    async with simulated(root, overrides=SMALL) as world:
        drop(world)
        fate = Fate()
        await live(world, fate)

        return len(fate.steps), check(world)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_death_at_any_step_costs_only_time(tmp_path: Path, *, after: bool) -> None:
    """A process that dies at any durable step is finished by the next one, and nothing shows."""
    steps, expected = await undisturbed(tmp_path / "whole")
    first = EVERY // 2 + 1 if after else 1

    for at in range(first, steps + 1, EVERY):
        async with simulated(tmp_path / f"{at}", overrides=SMALL) as world:
            drop(world)
            fate = Fate(at=at, after=after)
            await live(world, fate)
            assert await world.drain()

            try:
                assert check(world) == expected
            except AssertionError as error:
                error.add_note(f"died {'after' if after else 'before'} step {at}: {fate.steps[-1]}")
                raise


@pytest.mark.parametrize("forgotten", ["all", "half", "last"])
async def test_a_database_may_forget(tmp_path: Path, forgotten: str) -> None:
    """A database that was put back to an earlier commit, or lost, buys nothing again."""
    steps, expected = await undisturbed(tmp_path / "whole")

    for at in range(EVERY, steps + 1, EVERY):
        async with simulated(tmp_path / f"{at}", overrides=SMALL) as world:
            drop(world)
            world.spool.make()
            fate = Fate(at=at, database=world.spool.database)
            await live(world, fate)

            for path in world.spool.state.glob("promptspool.db*"):
                path.unlink()

            if forgotten != "all" and fate.copies:
                place = len(fate.copies) // 2 if forgotten == "half" else len(fate.copies) - 1
                world.spool.database.write_bytes(fate.copies[place])

            assert await world.drain()

            try:
                assert check(world) == expected
            except AssertionError as error:
                error.add_note(f"died before step {at}: {fate.steps[-1]}")
                raise
