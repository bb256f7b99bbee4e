"""Death at the durable steps of a run that carries out a command: the next one finishes it.

Whatever a command does, it is done once in effect: nothing is bought twice, nothing is lost, and
what a person has stopped or let go stays so.
"""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest

from crash.mortal import Fate
from crash.scene import QUICK, drainer, live, sample
from promptspool.control import Command, leave, take_answer
from promptspool.model import JobId
from world import simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from crash.tally import Tally
    from promptspool.control import Verb
    from world import World

pytestmark = pytest.mark.anyio

DEATHS = 5
IDS = [f"q{n}" for n in range(6)]
OVERRIDES: dict[Verb, dict[str, Any]] = {
    "cancel": {"providers": {"openai": {"max_requests": 4}}},
    "release": {"providers": {"openai": {"max_requests": 4, "max_cost": 0.0}}},
    "retry": {"profiles": {"default": {"max_attempts": 1}}},
    "forget": {},
}


def columns(world: World, query: str) -> list[Any]:
    """Return the first column of what the database says."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        return [row[0] for row in connection.execute(query)]


@asynccontextmanager
async def commanded(root: Path, verb: Verb) -> AsyncIterator[tuple[World, str]]:
    """Yield a world in which a command waits for the next run, and the command's name."""
    async with simulated(root, overrides=OVERRIDES[verb], settings=QUICK) as world:
        rows = [{"id": name, "prompt": f"Number {name}"} for name in IDS]

        if verb == "retry":
            rows[2]["prompt"] += "[[fail:500 once]]"

        world.drop("f.jsonl", rows)
        daemon = drainer(world)
        stopped = Fate(at=2, only="POST /v1/batches", after=True, strike=daemon.stop)
        await live(world, stopped if verb == "cancel" else Fate(), daemon=daemon)

        (job,) = columns(world, "SELECT id FROM jobs")
        command = Command(verb=verb, job=JobId(job), left_at=world.clock.now())
        yield world, leave(world.spool, command)


def hold(world: World, verb: Verb, name: str) -> None:
    """Hold the laws, whatever happened while the command was carried out."""
    answer = take_answer(world.spool, name, within_s=0.0)
    world.assert_bought_once()
    world.assert_conserved("f.jsonl", IDS)
    assert not list(world.spool.working.iterdir())

    match verb:
        case "cancel":
            assert {line["error"]["code"] for line in world.errors("f.jsonl")} == {"cancelled"}
            assert columns(world, "SELECT status FROM jobs") == ["done"]
            assert len(world.simulator.ledger.creations) <= 2
        case "release":
            assert world.errors("f.jsonl") == []
            assert len(world.simulator.ledger.creations) == 2
        case "retry":
            assert len(world.errors("f.jsonl")) == 1
            world.assert_conserved("f.jsonl-2", IDS)
            assert world.errors("f.jsonl-2") == []
            assert [len(world.results(stem)) for stem in ("f.jsonl", "f.jsonl-2")] == [5, 6]
            assert len(world.simulator.ledger.creations) == 2
            assert not (world.spool.outbox / "f.jsonl-3.summary.json").exists()
        case _:
            assert columns(world, "SELECT count(*) FROM jobs") == [0]

    # A command that was forgotten about its job is refused when it is carried out again.
    assert answer is None or answer.is_done or verb in ("forget", "cancel", "release")


@pytest.mark.parametrize("verb", ["cancel", "release", "retry", "forget"])
async def test_death_while_a_command_is_carried_out(
    tmp_path: Path, tally: Tally, part: int, verb: Verb
) -> None:
    """A process that dies at any durable step is followed by one that finishes what was asked."""
    async with commanded(tmp_path / "calm", verb) as (world, name):
        fate = Fate()
        await live(world, fate)
        assert take_answer(world.spool, name, within_s=0.0) is not None
        hold(world, verb, name)

    for at in sample(range(1, len(fate.steps) + 1), DEATHS, part):
        async with commanded(tmp_path / f"{at}", verb) as (world, name):
            mortal = Fate(at=at)
            await live(world, mortal)

            with tally.point("commands", f"{verb}: {mortal.told()}"):
                assert await world.drain()
                hold(world, verb, name)
