"""What may go wrong around commands, limits, notices and reloads, and must not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.app import Daemon
from promptspool.control import Command, leave, take_answer
from promptspool.model import JobId
from promptspool.simulator import BatchFault, Fault, SimulatorSettings
from world import overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from promptspool.control import Verb
    from promptspool.dispatcher import Dispatcher
    from world import World

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
DOLLAR = {"input": 100_000.0, "output": 0.0, "batch_input": 50_000.0}


def questions(count: int) -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0` and so on."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?"} for n in range(count)]


def names(count: int) -> list[str]:
    """Return the ids of so many questions."""
    return [f"q{n}" for n in range(count)]


def column(world: World, query: str) -> list[Any]:
    """Return one column of the database."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        return [row[0] for row in connection.execute(query)]


def told(world: World, verb: Verb, **more: Any) -> str:
    """Leave a command about the only job, if there is one, and return the command's name."""
    world.spool.make()
    jobs = column(world, "SELECT id FROM jobs") if world.spool.database.exists() else []
    job = JobId(jobs[0]) if jobs else None

    return leave(world.spool, Command(verb=verb, job=job, left_at=world.clock.now(), **more))


def drainer(world: World) -> Daemon:
    """Return a daemon that ends when all is done."""
    return Daemon(settings=world.settings(), clock=world.clock, is_draining=True)


def commanding(
    daemon: Daemon, world: World, verb: Verb, *, when: Callable[[], bool], **more: Any
) -> list[str]:
    """Leave a command in the turn of the loop that finds *when* true, which also obeys it."""
    left: list[str] = []

    async def turn(_dispatcher: Dispatcher) -> None:
        if not left and when():
            left.append(told(world, verb, **more))

    daemon.on_turn = turn

    return left


# Limits of cost.


async def test_what_a_month_held_is_asked_in_the_next(tmp_path: Path) -> None:
    """Waiting for a new month, which may be four weeks away, makes nothing too old to be sent."""
    overrides = {
        "providers": {"openai": {"max_cost_per_month": 10.0}},
        "prices": {"gpt-5-mini": DOLLAR},
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        for number in range(2):
            world.drop(f"f{number}.jsonl", questions(15))

        assert await world.drain()

        for number in range(2):
            world.assert_conserved(f"f{number}.jsonl", names(15))
            assert world.errors(f"f{number}.jsonl") == []

        assert world.clock.monotonic() > 3 * DAY_S


async def test_what_is_released_late_is_asked(tmp_path: Path) -> None:
    """A job that was held over a long weekend goes on when a person lets it go."""
    overrides = {
        "providers": {"openai": {"max_cost": 0.1}},
        "prices": {"gpt-5-mini": DOLLAR},
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("f.jsonl", questions(9))
        assert not await world.drain()
        world.clock.pass_time(4 * DAY_S)
        told(world, "release")

        assert await world.drain()

        world.assert_conserved("f.jsonl", names(9))
        assert world.errors("f.jsonl") == []


async def test_a_price_that_was_missing_lets_go_what_it_held(tmp_path: Path) -> None:
    """Whoever follows the advice, and writes the price into [prices], is rid of the hold."""
    limited: dict[str, Any] = {
        "providers": {"openai": {"max_cost": 1000.0}},
        "profiles": {"default": {"model": "nobody-knows-1"}},
    }

    async with simulated(tmp_path, overrides=limited) as world:
        world.drop("f.jsonl", questions(2))
        assert not await world.drain()
        assert column(world, "SELECT status FROM jobs") == ["held"]

        world.overrides = limited | {"prices": {"nobody-knows-1": {"input": 1.0, "output": 1.0}}}

        assert await world.drain()
        world.assert_conserved("f.jsonl", names(2))


# Commands.


async def test_a_cancelled_look_up_keeps_its_grace(tmp_path: Path) -> None:
    """A batch that a list shows late is found and ended, whenever its job is cancelled."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=3000)) as world:
        world.simulator.faults.add(Fault(route="batches.create", status=503, point="after"))
        world.simulator.faults.add_batch(BatchFault(list_lag_s=40.0))
        world.drop("f.jsonl", questions(5))
        daemon = drainer(world)

        def act() -> bool:
            return column(world, "SELECT looks FROM batches WHERE status = 'unclear'") == [1]

        commanding(daemon, world, "cancel", when=act)

        assert await world.run(daemon)

        world.assert_conserved("f.jsonl", names(5))
        assert len(world.simulator.ledger.creations) == 1
        assert world.simulator.ledger.calls["batches.cancel"] == 1


async def test_cancelling_loses_no_answers_that_cannot_be_fetched_now(tmp_path: Path) -> None:
    """What is answered and paid for is delivered, though downloads fail when it is cancelled."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=60)) as world:
        world.simulator.faults.add(Fault(route="files.content", times=20, status=503))
        world.drop("f.jsonl", questions(5))
        daemon = drainer(world)

        def act() -> bool:
            return column(world, "SELECT status FROM batches WHERE failures > 2") == ["ended"]

        commanding(daemon, world, "cancel", when=act)

        assert await world.run(daemon)

        world.assert_conserved("f.jsonl", names(5))
        assert len(world.results("f.jsonl")) == 5


async def test_what_was_cancelled_is_not_bought_by_a_new_database(tmp_path: Path) -> None:
    """A job that a person has cancelled stays so when the database is lost."""
    overrides = {"providers": {"openai": {"max_requests": 4}}}

    async with simulated(
        tmp_path, settings=SimulatorSettings(run_s=600, cancel_s=300), overrides=overrides
    ) as world:
        world.drop("f.jsonl", questions(4))
        left: list[str] = []

        def cancel() -> None:
            if not left:
                left.append(told(world, "cancel"))

        daemon = drainer(world)

        with overheard(batch_created=cancel, job_cancelled=daemon.stop):
            await world.run(daemon)

        assert take_answer(world.spool, left[0], within_s=0.0)

        for path in world.spool.database.parent.glob("promptspool.db*"):
            path.unlink()

        assert await world.drain()
        world.assert_conserved("f.jsonl", names(4))
        assert world.simulator.ledger.calls["batches.create"] == 1
