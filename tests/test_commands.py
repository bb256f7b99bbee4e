"""Commands of people, as the daemon carries them out."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.app import Daemon
from promptspool.control import ANSWER, COMMAND, Command, leave, take_answer
from promptspool.model import JobId
from promptspool.simulator import Fault, SimulatorSettings
from world import overheard, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.control import Answer, Verb
    from world import World

pytestmark = pytest.mark.anyio


def questions(count: int) -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0` and so on."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?"} for n in range(count)]


def jobs(world: World) -> list[JobId]:
    """Return the ids of all jobs, the oldest first."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        return [JobId(row[0]) for row in connection.execute("SELECT id FROM jobs ORDER BY id")]


def status(world: World, job: JobId) -> str:
    """Return the status of a job."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        ((found,),) = connection.execute("SELECT status FROM jobs WHERE id = ?", (job,))

    return str(found)


def told(world: World, verb: Verb, job: JobId | None = None, **more: Any) -> str:
    """Leave a command and return its name."""
    world.spool.make()

    return leave(world.spool, Command(verb=verb, job=job, left_at=world.clock.now(), **more))


def said(world: World, name: str) -> Answer:
    """Return the answer to a command, which is there."""
    answer = take_answer(world.spool, name, within_s=0.0)
    assert answer is not None

    return answer


def codes(world: World, name: str) -> set[str]:
    """Return the codes of all errors of a file."""
    return {line["error"]["code"] for line in world.errors(name)}


async def test_a_running_job_is_cancelled_and_keeps_its_answers(tmp_path: Path) -> None:
    """What was answered when a batch was cancelled is delivered, the rest are errors."""
    settings = SimulatorSettings(run_s=600, cancel_s=30)
    names: list[str] = []

    async with simulated(tmp_path, settings=settings) as world:
        world.drop("f.jsonl", questions(40))

        def cancel() -> None:
            if not names:
                world.clock.pass_time(300)
                names.append(told(world, "cancel", jobs(world)[0]))

        with overheard(batch_created=cancel) as lines:
            assert await world.drain()

        assert said(world, names[0]).is_done
        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(40)])
        world.assert_bought_once()
        assert codes(world, "f.jsonl") == {"cancelled"}
        assert 0 < len(world.results("f.jsonl")) < 40
        assert world.simulator.ledger.calls["batches.cancel"] == 1
        assert world.simulator.ledger.calls["batches.create"] == 1
        assert [line["event"] for line in lines if line["event"] == "job.cancelled"]
        assert world.summary("f.jsonl")["batches"][0]["status"] == "cancelled"


async def test_what_was_not_submitted_is_taken_back(tmp_path: Path) -> None:
    """A file that was dropped by mistake costs nothing: it goes to rejected/ with the reason."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))
        pause = told(world, "pause", provider="openai")

        assert not await world.drain()
        assert said(world, pause).is_done
        assert status(world, jobs(world)[0]) == "planned"

        name = told(world, "cancel", jobs(world)[0])

        assert await world.drain()
        assert said(world, name).is_done
        rejection = world.rejection("f.jsonl")
        assert rejection is not None
        assert rejection["code"] == "cancelled"
        assert (world.spool.rejected / "f.jsonl").exists()
        assert world.simulator.ledger.uploads == []
        assert not list(world.spool.outbox.iterdir())
        assert not list(world.spool.working.iterdir())


async def test_what_was_uploaded_but_never_created_is_delivered_as_cancelled(
    tmp_path: Path,
) -> None:
    """Batches that the provider never got are not asked about; what was uploaded is deleted."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="batches.create", times=100, status=429))
        world.drop("f.jsonl", questions(3))
        names: list[str] = []

        def cancel() -> None:
            if not names:
                names.append(told(world, "cancel", jobs(world)[0]))

        with overheard(provider_paused=cancel):
            assert await world.drain()

        assert said(world, names[0]).is_done
        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(3)])
        assert codes(world, "f.jsonl") == {"cancelled"}
        assert world.simulator.ledger.creations == []
        assert len(world.simulator.ledger.deletions) == 1


async def test_an_unclear_create_is_looked_up_before_it_is_cancelled(tmp_path: Path) -> None:
    """A batch that may exist is found, then ended there: it does not run on unwatched."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=3000)) as world:
        world.simulator.faults.add(Fault(route="batches.create", status=503, point="after"))
        world.drop("f.jsonl", questions(5))
        names: list[str] = []

        def cancel() -> None:
            names.append(told(world, "cancel", jobs(world)[0]))

        with overheard(batch_unclear=cancel):
            assert await world.drain()

        assert said(world, names[0]).is_done
        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(5)])
        world.assert_bought_once()
        assert len(world.simulator.ledger.creations) == 1
        assert world.simulator.ledger.calls["batches.cancel"] == 1


async def test_a_cancelled_job_gets_no_successors(tmp_path: Path) -> None:
    """Failed requests of a cancelled job are not asked again."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=600)) as world:
        world.drop("f.jsonl", [*questions(5), {"id": "x", "prompt": "[[fail:500]]"}])
        names: list[str] = []

        def cancel() -> None:
            if not names:
                names.append(told(world, "cancel", jobs(world)[0]))

        with overheard(batch_ended=cancel):
            assert await world.drain()

        world.assert_conserved("f.jsonl", [*(f"q{n}" for n in range(5)), "x"])
        assert world.simulator.ledger.calls["batches.create"] == 1
        assert len(world.results("f.jsonl")) >= 5


async def test_a_finished_job_cannot_be_cancelled_but_forgotten(tmp_path: Path) -> None:
    """A command that comes too late says so; a finished job can be forgotten, its files stay."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        (job,) = jobs(world)
        late, unknown = told(world, "cancel", job), told(world, "cancel", JobId("nobody"))
        forget = told(world, "forget", job)

        assert await world.drain()

        assert not said(world, late).is_done
        assert not said(world, unknown).is_done
        assert said(world, forget).is_done
        assert jobs(world) == []
        world.assert_conserved("f.jsonl", ["q0", "q1", "q2"])

        with closing(sqlite3.connect(world.spool.database)) as connection:
            ((usd,),) = connection.execute("SELECT usd FROM spent")
            assert connection.execute("SELECT count(*) FROM history").fetchone() == (
                connection.execute(
                    "SELECT count(*) FROM history WHERE row IN (SELECT id FROM providers)"
                ).fetchone()
            )

        assert usd > 0


async def test_a_live_job_is_not_forgotten(tmp_path: Path) -> None:
    """Forgetting is for what is finished."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))
        names: list[str] = []

        def forget() -> None:
            names.append(told(world, "forget", jobs(world)[0]))

        with overheard(batch_created=forget):
            assert await world.drain()

        assert not said(world, names[0]).is_done
        world.assert_conserved("f.jsonl", ["q0", "q1", "q2"])


async def test_a_paused_daemon_submits_nothing_and_delivers_what_runs(tmp_path: Path) -> None:
    """By hand: nothing new is claimed or created, what runs is polled and delivered."""
    async with simulated(tmp_path) as world:
        world.drop("a.jsonl", questions(3))
        names: list[str] = []

        def pause() -> None:
            names.append(told(world, "pause"))
            world.drop("b.jsonl", questions(3))

        with overheard(batch_created=pause) as lines:
            assert await world.drain()

        assert said(world, names[0]).is_done
        assert len(world.simulator.ledger.creations) == 1
        world.assert_conserved("a.jsonl", ["q0", "q1", "q2"])
        assert (world.spool.inbox / "b.jsonl").exists()
        assert [line for line in lines if line["event"] == "daemon.halted"]

        resume = told(world, "resume")

        assert await world.drain()
        assert said(world, resume).is_done
        world.assert_conserved("b.jsonl", ["q0", "q1", "q2"])


async def test_a_paused_provider_stays_paused_over_restarts(tmp_path: Path) -> None:
    """What a person has stopped stays so until a person says otherwise."""
    async with simulated(tmp_path) as world:
        told(world, "pause", provider="openai")
        world.drop("f.jsonl", questions(3))

        for _ in range(2):
            assert not await world.drain()
            assert world.simulator.ledger.uploads == []

        wrong = told(world, "pause", provider="nobody")
        told(world, "resume", provider="openai")

        assert await world.drain()
        assert "openai" in said(world, wrong).message
        world.assert_conserved("f.jsonl", ["q0", "q1", "q2"])


async def test_commands_that_are_none_are_answered(tmp_path: Path) -> None:
    """Whatever lies in control/ is answered or left alone, and harms nobody."""
    async with simulated(tmp_path) as world:
        world.spool.make()
        control = world.spool.control
        faulty = [told(world, "release") for _ in range(4)]
        (control / f"{faulty[0]}{COMMAND}").write_text("{")
        (control / f"{faulty[1]}{COMMAND}").write_text('{"verb": "dance", "left_at": 1}')
        (control / f"{faulty[2]}{COMMAND}").write_bytes(b"\xff" * 100_000)
        (control / "README").write_text("hello")

        assert await world.drain()

        answers = {path.name: json.loads(path.read_bytes()) for path in control.glob(f"*{ANSWER}")}
        assert set(answers) == {f"{name}{ANSWER}" for name in faulty}
        assert not any(answer["is_done"] for answer in answers.values())
        assert {path.name for path in control.iterdir()} == {*answers, "README"}


async def test_a_command_is_safe_to_repeat(tmp_path: Path) -> None:
    """A daemon that died after carrying a command out carries it out again, to the same end."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))
        names: list[str] = []

        def cancel() -> None:
            if not names:
                names.append(told(world, "cancel", jobs(world)[0]))
                names.append(told(world, "cancel", jobs(world)[0]))

        with overheard(batch_created=cancel):
            assert await world.drain()

        assert said(world, names[0]).is_done
        assert said(world, names[1]).is_done
        world.assert_conserved("f.jsonl", ["q0", "q1", "q2"])
        assert world.simulator.ledger.calls["batches.cancel"] == 1


async def test_a_ping_is_answered_by_the_loop(tmp_path: Path) -> None:
    """Whoever asks hears how the daemon is."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))
        names: list[str] = []

        with overheard(batch_created=lambda: names.append(told(world, "ping"))):
            assert await world.run(
                Daemon(settings=world.settings(), clock=world.clock, is_draining=True)
            )

        answer = said(world, names[0])
        assert (answer.is_done, answer.message) == (True, "ready")


async def test_old_files_and_jobs_are_cleaned(tmp_path: Path) -> None:
    """By command or by age: originals and rows go, the outbox is never touched."""
    async with simulated(tmp_path) as world:
        world.drop("reviews/f.jsonl", questions(3))
        world.overrides = {"profiles": {"reviews": {"model": "gpt-5-mini"}}}
        world.drop("bad.jsonl", "")

        assert await world.drain()
        assert (world.spool.done / "reviews/f.jsonl").exists()
        assert (world.spool.rejected / "bad.jsonl").exists()

        early = told(world, "clean", older_than_s=1e6)
        assert await world.drain()
        assert said(world, early).is_done
        assert (world.spool.done / "reviews/f.jsonl").exists()

        clean = told(world, "clean", older_than_s=0.0)
        assert await world.drain()
        assert said(world, clean).is_done
        assert not list(world.spool.done.iterdir())
        assert not list(world.spool.rejected.iterdir())
        assert jobs(world) == []
        world.assert_conserved("reviews/f.jsonl", ["q0", "q1", "q2"])
