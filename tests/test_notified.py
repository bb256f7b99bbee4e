"""Notices from the daemon: made with what they tell of, sent at least once, given up in the end."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from promptspool.control import ANSWER, COMMAND, Command, leave
from promptspool.model import JobId
from world import overheard, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

KEPT = """
import json, os, sys
told = {name: value for name, value in os.environ.items() if name.startswith("PROMPTSPOOL_")}
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(told) + "\\n")
if os.path.exists(sys.argv[1] + ".refuse"):
    sys.exit("not today")
"""


def questions(count: int) -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0` and so on."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?"} for n in range(count)]


def telling(tmp_path: Path, **notify: Any) -> dict[str, Any]:
    """Return a configuration whose profile runs a command that writes down what it is told."""
    script = tmp_path / "told.py"
    script.write_text(KEPT)
    command = [sys.executable, str(script), str(tmp_path / "told.jsonl")]

    return {"profiles": {"default": {"notify": {"command": command, **notify}}}}


def heard(tmp_path: Path) -> list[dict[str, str]]:
    """Return what the command was told, in order."""
    path = tmp_path / "told.jsonl"

    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def statuses(world: World) -> list[str]:
    """Return how the notices stand."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        return [row[0] for row in connection.execute("SELECT status FROM notices ORDER BY id")]


async def test_a_delivery_is_told_once(tmp_path: Path) -> None:
    """The command hears of the job, its counts and where its products are; another run is quiet."""
    async with simulated(tmp_path, overrides=telling(tmp_path)) as world:
        world.drop("f.jsonl", questions(3))

        assert await world.drain()
        assert await world.drain()

        (told,) = heard(tmp_path)
        assert told["PROMPTSPOOL_EVENT"] == "job.delivered"
        assert told["PROMPTSPOOL_FILE"] == "f.jsonl"
        assert (told["PROMPTSPOOL_RESULTS"], told["PROMPTSPOOL_ERRORS"]) == ("3", "0")
        assert told["PROMPTSPOOL_SUMMARY_PATH"] == str(world.spool.outbox / "f.jsonl.summary.json")
        assert float(told["PROMPTSPOOL_COST_USD"]) > 0
        assert statuses(world) == ["sent"]


async def test_a_failure_is_told_as_such(tmp_path: Path) -> None:
    """A rejected file, and a job without one answer, have failed."""
    async with simulated(tmp_path, overrides=telling(tmp_path)) as world:
        world.drop("bad.jsonl", "")
        world.drop("wrong.jsonl", [{"id": "x", "prompt": "[[fail:400]]"}])

        assert await world.drain()

        events = {told["PROMPTSPOOL_FILE"]: told["PROMPTSPOOL_EVENT"] for told in heard(tmp_path)}
        assert events == {"bad.jsonl": "job.failed", "wrong.jsonl": "job.failed"}


async def test_a_held_job_is_told(tmp_path: Path) -> None:
    """Whoever may release it hears why it waits."""
    overrides = telling(tmp_path, on=["held"])
    overrides["profiles"]["default"]["max_cost"] = 0.0

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("f.jsonl", questions(3))

        assert not await world.drain()

        (told,) = heard(tmp_path)
        assert told["PROMPTSPOOL_EVENT"] == "job.held"
        assert "max_cost" in told["PROMPTSPOOL_REASON"]


async def test_a_notice_that_is_refused_is_sent_again_and_holds_up_nothing(tmp_path: Path) -> None:
    """A command that fails is run again, later and later, and no delivery waits for it."""
    refuse = tmp_path / "told.jsonl.refuse"

    async with simulated(tmp_path, overrides=telling(tmp_path)) as world:
        refuse.touch()
        world.drop("a.jsonl", questions(3))

        with overheard() as lines:
            assert await world.drain()

        assert statuses(world) == ["pending"]
        assert any(
            line["event"] == "stage.retried" and "not today" in line["reason"] for line in lines
        )

        refuse.unlink()
        world.drop("b.jsonl", questions(3))
        world.clock.pass_time(60)

        assert await world.drain()

        assert statuses(world) == ["sent", "sent"]
        assert [told["PROMPTSPOOL_FILE"] for told in heard(tmp_path)].count("a.jsonl") > 1
        world.assert_conserved("b.jsonl", ["q0", "q1", "q2"])


async def test_a_notice_is_given_up_after_a_day(tmp_path: Path) -> None:
    """What nobody takes for a day is dropped, loudly, and never tried again."""
    async with simulated(tmp_path, overrides=telling(tmp_path)) as world:
        (tmp_path / "told.jsonl.refuse").touch()
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        world.clock.pass_time(90_000)
        world.drop("g.jsonl", questions(3))

        with overheard() as lines:
            assert await world.drain()

        assert sorted(statuses(world)) == ["dropped", "pending"]
        (dropped,) = [line for line in lines if line["event"] == "notice.dropped"]
        assert (dropped["level"], "not today" in dropped["reason"]) == ("error", True)


async def test_a_profile_that_is_gone_tells_nobody(tmp_path: Path) -> None:
    """A notice whose command is no longer configured is dropped."""
    async with simulated(tmp_path, overrides=telling(tmp_path)) as world:
        (tmp_path / "told.jsonl.refuse").touch()
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        world.overrides = {}
        world.clock.pass_time(60)

        assert await world.drain()

        assert statuses(world) == ["dropped"]


async def test_a_notice_outlives_what_is_cleaned(tmp_path: Path) -> None:
    """A finished job that somebody is still to be told of is not forgotten."""
    refuse = tmp_path / "told.jsonl.refuse"

    async with simulated(tmp_path, overrides=telling(tmp_path)) as world:
        refuse.touch()
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        world.clock.pass_time(10)
        leave(world.spool, Command(verb="clean", older_than_s=1.0, left_at=world.clock.now()))

        assert await world.drain()

        refuse.unlink()
        world.clock.pass_time(600)

        assert await world.drain()
        assert statuses(world) == ["sent"]


async def test_a_job_may_be_forgotten_while_it_is_told_of(tmp_path: Path) -> None:
    """The command waits for the notice that is on its way, which is no bug."""
    script, go = tmp_path / "slow.py", tmp_path / "go"
    script.write_text(
        "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
    )
    command = [sys.executable, str(script), str(go)]
    overrides = {"profiles": {"default": {"notify": {"command": command}}}}
    left = anyio.Event()
    names: list[str] = []

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("f.jsonl", questions(1))

        def forget() -> None:
            with closing(sqlite3.connect(world.spool.database)) as connection:
                ((job,),) = connection.execute("SELECT id FROM jobs")

            now = world.clock.now()
            leave(world.spool, Command(verb="forget", job=JobId(job), left_at=now))
            names.append(leave(world.spool, Command(verb="ping", left_at=now + 1.0)))
            left.set()

        async def end() -> None:
            await left.wait()

            # The ping is answered in the turn in which the command was to be carried out.
            while not (world.spool.control / f"{names[0]}{ANSWER}").exists():  # noqa: ASYNC110 - a file
                await anyio.sleep(0.001)

            go.touch()

        with overheard(job_tidied=forget) as lines:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end)
                assert await world.drain()

        assert not [line for line in lines if line["event"] == "store.refused"]
        assert [line for line in lines if line["event"] == "notice.sent"]
        assert await world.drain()
        assert not list(world.spool.control.glob(f"*{COMMAND}"))
        assert statuses(world) == []
