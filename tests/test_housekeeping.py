"""Housekeeping: nothing grows without bound, and nothing goes that is still wanted."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.app import Daemon
from promptspool.control import ANSWER
from promptspool.simulator import Fault
from world import overheard, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
ROWS: list[dict[str, Any]] = [{"id": "a", "prompt": "why?"}]


def counted(world: World, table: str) -> int:
    """Count the rows of a table."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        ((count,),) = connection.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - ours

    return int(count)


async def test_finished_jobs_are_forgotten_by_age(tmp_path: Path) -> None:
    """What was finished before its retention goes from the database, with its history."""
    overrides = {"retention": {"history": 10 * DAY_S}}

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("old.jsonl", ROWS)
        assert await world.drain()

        world.clock.pass_time(11 * DAY_S)
        world.drop("new.jsonl", ROWS)
        assert await world.drain()
        assert counted(world, "jobs") == 1

        with closing(sqlite3.connect(world.spool.database)) as connection:
            rows = {row for (row,) in connection.execute("SELECT DISTINCT row FROM history")}
            ((job,),) = connection.execute("SELECT id FROM jobs")

        assert rows == {"openai", job, f"{job}.1"}
        assert counted(world, "spent") == 1
        world.assert_conserved("old.jsonl", ["a"])


async def test_originals_stay_unless_a_retention_is_set(tmp_path: Path) -> None:
    """By default nothing of a person's is ever removed, however long it is there."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", ROWS)
        world.drop("bad.jsonl", "")
        assert await world.drain()

        world.clock.pass_time(5000 * DAY_S)
        assert await world.drain()
        assert (world.spool.done / "f.jsonl").exists()
        assert (world.spool.rejected / "bad.jsonl").exists()


async def test_originals_go_when_their_time_is_over(tmp_path: Path) -> None:
    """By the time since they came to done/ and rejected/, not by the age of their content."""
    overrides = {"retention": {"done": 0.001, "rejected": 0.001}}

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("f.jsonl", ROWS)
        world.drop("bad.jsonl", "")
        os.utime(world.spool.inbox / "f.jsonl", (1.0, 1.0))
        assert await world.drain()
        assert (world.spool.done / "f.jsonl").exists()

        os.utime(world.spool.done)  # the clock of the file system moves on
        assert await world.drain()
        assert not list(world.spool.done.iterdir())
        assert not list(world.spool.rejected.iterdir())
        world.assert_conserved("f.jsonl", ["a"])


async def test_answers_that_nobody_took_are_swept(tmp_path: Path) -> None:
    """The folder of commands does not fill up."""
    async with simulated(tmp_path) as world:
        world.spool.make()
        old = world.spool.control / f"x{ANSWER}"
        old.write_text("{}")
        os.utime(old, (1.0, 1.0))
        other = world.spool.control / "notes.txt"
        other.write_text("mine")
        os.utime(other, (1.0, 1.0))

        assert await world.drain()
        assert not old.exists()
        assert other.exists()


async def test_results_that_expire_are_warned_of(tmp_path: Path) -> None:
    """Before the provider throws answers away that cannot be fetched, the log says so, daily."""
    slow = {"max_age": 40 * DAY_S, "first": DAY_S / 4, "cap": DAY_S / 4}
    rare = {"rescan": DAY_S}

    async with simulated(tmp_path, overrides={"retry": slow, "spool": rare}) as world:
        world.simulator.faults.add(Fault(route="files.content", times=None, status=500))
        world.drop("f.jsonl", ROWS)
        daemon = Daemon(settings=world.settings(), clock=world.clock, is_draining=True)

        async def stop(_dispatcher: object) -> None:
            if world.clock.monotonic() >= 29 * DAY_S:
                daemon.stop()

        daemon.on_turn = stop

        with overheard() as lines:
            assert not await world.run(daemon)

        days = [line["days_left"] for line in lines if line["event"] == "batch.expiring"]
        assert days == sorted(days, reverse=True)
        assert 3 <= len(days) <= 5
        assert all(0.0 < left <= 5.0 for left in days)
