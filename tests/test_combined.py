"""Faults that come together: what no single one shows."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from crash.mortal import Fate, mortal
from crash.scene import put_back
from promptspool.app import Daemon
from promptspool.simulator import BatchFault, Fault, FileFault, SimulatorSettings
from world import START, overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.clock import Clock
    from promptspool.simulator.faults import Call
    from world import World

pytestmark = pytest.mark.anyio

HOUR_S, DAY_S = 3600.0, 86_400.0
QUIET: dict[str, Any] = {"spool": {"rescan": "1d"}}
"""Virtual days pass faster when the inbox is not looked at every minute."""

NOTHING_RUN = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "no room"}]}
OTHER: dict[str, Any] = {
    "id": "batch_other",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-other",
    "completion_window": "24h",
    "status": "failed",
    "created_at": int(START),
    "errors": NOTHING_RUN,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
}
"""A batch of somebody else's, without metadata, that never ran."""


def questions(count: int, *, mark: str = "") -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0`, `q1` …."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}? {mark}"} for n in range(count)]


def refusal(code: str, message: str = "no") -> str:
    """Return the body of a refusal."""
    return json.dumps({"error": {"code": code, "message": message, "type": "requests"}})


def passed(world: World) -> float:
    """Return the virtual seconds since the start."""
    return world.clock.now() - START


def told(lines: Sequence[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    """Return the lines of one event."""
    return [line for line in lines if line["event"] == event]


def assert_paid_once(world: World) -> None:
    """Hold that no request was accepted for processing twice, and no batch made twice."""
    assert world.simulator.ledger.repeated_requests() == {}
    world.assert_bought_once()


async def run_until(world: World, event: str, *, clock: Clock | None = None) -> None:
    """Run the daemon, and stop it at *event*."""
    daemon = Daemon(settings=world.settings(), clock=clock or world.clock)

    with overheard(**{event: daemon.stop}):
        await world.run(daemon)


async def die_after(world: World, call: str) -> None:
    """Run until *call* was answered, and not one step longer."""
    fate = Fate(at=1, after=True, only=call)

    with mortal(fate, world.spool.root), pytest.raises(BaseExceptionGroup):
        await world.drain()


def copy_of(world: World) -> bytes:
    """Return the database as it is now."""
    with closing(sqlite3.connect(world.spool.database)) as source:
        return bytes(source.serialize())


# A batch that was refused at once left a settlement on disk, but nothing at the provider.


@pytest.mark.parametrize("database", ["lost", "put back"])
async def test_a_refused_batch_is_not_made_after_its_successor(
    tmp_path: Path, database: str
) -> None:
    """What was refused and handed on is not asked for again when the database forgets it."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))
        copy = None

        if database == "put back":
            await run_until(world, "batch_uploaded")
            copy = copy_of(world)

        body = refusal("token_limit_exceeded", "Enqueued token limit reached")
        world.simulator.faults.add(Fault(route="batches.create", status=400, body=body))
        await run_until(world, "batch_created")
        assert len(world.simulator.ledger.creations) == 1
        put_back(world.spool, copy)

        assert await world.drain()

        assert_paid_once(world)


# Creates go unanswered while the list is stale: a copy a minute, for as long as that lasts.


async def test_answers_that_are_lost_for_an_hour_are_no_batch_a_minute(tmp_path: Path) -> None:
    """With every answer lost and a stale list, what is paid for twice is not paid 60 times."""
    async with simulated(tmp_path, overrides=QUIET) as world:
        world.simulator.faults.add_batch(BatchFault(list_lag_s=HOUR_S, times=None))
        world.simulator.faults.add(
            Fault(route="batches.create", point="after", times=None, status=503)
        )
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        assert len(world.simulator.ledger.creations) <= 8  # 60, 120, 240 ... s apart


async def test_a_create_that_always_fails_is_backed_off(tmp_path: Path) -> None:
    """A provider that answers creates with 503 is not asked once a minute for each batch."""
    async with simulated(tmp_path, overrides=QUIET | {"retry": {"max_age": "6h"}}) as world:
        world.simulator.faults.add(Fault(route="batches.create", times=None, status=503))
        world.drop("f.jsonl", questions(3))

        with overheard() as lines:
            assert await world.drain()

        assert world.simulator.ledger.calls["batches.create"] < 100
        assert len(told(lines, "batch.unclear")) < 100


# A second look at the answers throws away what the first one brought.


async def test_a_second_look_that_brings_less_takes_nothing_away(tmp_path: Path) -> None:
    """Answers that are on disk are not asked, and paid, for again since they came but once."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(drop=0.1))
        world.simulator.faults.add(Fault(route="files.content", nth=2, times=5, action="empty"))
        world.drop("f.jsonl", questions(10))

        assert await world.drain()

        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(10)])
        assert [made.requests for made in world.simulator.ledger.creations] == [10, 1]


# An answer about another object is taken for ours.


async def test_a_poll_answered_with_a_strangers_batch_changes_nothing(tmp_path: Path) -> None:
    """The failed batch of somebody else is not ours, though it has no metadata to tell so."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(
            Fault(route="batches.get", nth=2, status=200, body=json.dumps(OTHER))
        )
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        assert_paid_once(world)


async def test_a_second_look_at_a_strangers_batch_changes_nothing(tmp_path: Path) -> None:
    """The look at a batch whose file is late is about that batch."""
    other = OTHER | {"metadata": {"promptspool_batch": "x", "promptspool_spool": "y"}}

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(late_file_ids=2))
        is_doubted = False

        def doubt() -> None:
            nonlocal is_doubted
            is_doubted = True

        world.simulator.faults.add(
            Fault(route="batches.get", status=200, body=json.dumps(other)),
            when=lambda _: is_doubted,
        )
        world.drop("f.jsonl", questions(3))

        with overheard(batch_doubted=doubt):
            assert await world.drain()

        assert_paid_once(world)


async def test_a_create_answered_with_another_batch_is_unclear(tmp_path: Path) -> None:
    """What was made is looked up, and its answers are delivered."""
    other = OTHER | {"status": "in_progress", "metadata": {"promptspool_batch": "x"}}

    async with simulated(tmp_path, overrides=QUIET) as world:
        world.simulator.faults.add(
            Fault(route="batches.create", point="after", status=200, body=json.dumps(other))
        )
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        assert_paid_once(world)
        assert world.errors("f.jsonl") == []


async def test_a_cancel_answered_with_a_strangers_batch_changes_nothing(tmp_path: Path) -> None:
    """What ours has answered by the time it is cancelled is delivered, whoever was named."""
    short = {"retry": {"max_age": "2h"}}

    async with simulated(tmp_path, overrides=QUIET | short) as world:
        world.simulator.faults.add_batch(BatchFault(stuck_in="in_progress", done=0.5))
        world.simulator.faults.add(
            Fault(route="batches.cancel", point="after", status=200, body=json.dumps(OTHER))
        )
        world.drop("f.jsonl", questions(4))

        assert await world.drain()

        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(4)])
        assert len(world.results("f.jsonl")) == 2
        assert_paid_once(world)


async def test_an_upload_answered_with_another_file_is_not_it(tmp_path: Path) -> None:
    """A batch is made of its own file, not of whatever file the answer to an upload names."""
    async with simulated(tmp_path) as world:
        world.drop("a.jsonl", questions(3))
        await run_until(world, "batch_created")
        file = {
            "id": world.simulator.ledger.uploads[0].file_id,
            "object": "file",
            "bytes": 531,
            "created_at": int(START),
            "filename": "another.jsonl",
            "purpose": "batch",
        }
        world.simulator.faults.add(
            Fault(route="files.create", point="after", status=200, body=json.dumps(file))
        )
        world.drop("b.jsonl", questions(2, mark="b"))

        assert await world.drain()

        assert_paid_once(world)


# "Lost" after five sightings of which four lie within minutes.


@pytest.mark.parametrize("between", ["outage", "stop"])
async def test_time_without_a_look_does_not_make_a_batch_lost(tmp_path: Path, between: str) -> None:
    """A batch that is denied once, and for some minutes an hour later, is not lost."""
    settings = SimulatorSettings(run_s=2 * HOUR_S)

    async with simulated(tmp_path, overrides=QUIET, settings=settings) as world:
        world.drop("f.jsonl", questions(2))
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        polls = 0

        def is_denied(_: Call) -> bool:
            nonlocal polls
            polls += 1

            if polls == 1 and between == "stop":
                daemon.stop()

            return polls == 1 or HOUR_S <= passed(world) < HOUR_S + 850

        world.simulator.faults.add_batch(BatchFault(list_lag_s=3 * HOUR_S))
        world.simulator.faults.add(
            Fault(route="batches.get", status=404, times=None), when=is_denied
        )
        world.simulator.faults.add(
            Fault(route="batches.get", status=503, times=None),
            when=lambda _: passed(world) < HOUR_S,
        )

        if between == "stop":
            with anyio.fail_after(60):
                await world.run(daemon)

            world.clock.pass_time(HOUR_S - passed(world))

        assert await world.drain()

        assert_paid_once(world)


# A start that does not know what was made is taken for one after a clean stop.


async def test_a_stop_before_recall_is_done_is_not_clean(tmp_path: Path) -> None:
    """The database is lost, and the start after it is stopped at once: nobody has looked yet."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(list_lag_s=30))
        world.drop("f.jsonl", questions(3))
        await die_after(world, "POST /v1/batches")
        put_back(world.spool, None)
        await run_until(world, "daemon_booted")

        assert await world.drain()

        assert_paid_once(world)


async def test_a_database_put_back_from_a_clean_stop_is_not_clean(tmp_path: Path) -> None:
    """A database that was copied while nothing ran does not know of what came afterwards."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(list_lag_s=30))
        world.drop("f.jsonl", questions(3))
        await run_until(world, "batch_uploaded")
        copy = copy_of(world)
        await die_after(world, "POST /v1/batches")
        put_back(world.spool, copy)

        assert await world.drain()

        assert_paid_once(world)


# A list that was not read to its end is taken for the whole.


@pytest.mark.parametrize(("count", "more"), [(100, {"has_more": True}), (20, {})])
async def test_a_list_that_leads_nowhere_proves_nothing(
    tmp_path: Path, count: int, more: dict[str, bool]
) -> None:
    """The same page again whatever `after` says, or small pages without a word on the rest."""
    strangers = [OTHER | {"id": f"batch_{n}", "created_at": int(START) + 9} for n in range(count)]
    page = json.dumps({"object": "list", "data": strangers, **more})

    async with simulated(tmp_path, overrides=QUIET | {"retry": {"max_age": "6h"}}) as world:
        world.simulator.faults.add(Fault(route="batches.create", point="after", status=503))
        world.simulator.faults.add(
            Fault(route="batches.list", times=None, status=200, body=page),
            when=lambda _: passed(world) < HOUR_S,
        )
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        assert_paid_once(world)


# A provider that takes metadata and does not show it.


async def test_a_batch_without_metadata_that_is_made_of_our_file_is_not_nothing(
    tmp_path: Path,
) -> None:
    """The list shows a batch made of the file that is ours alone: it is not made once more."""
    async with simulated(tmp_path, overrides=QUIET) as world:
        world.simulator.faults.add_batch(BatchFault(raw={"metadata": None}, times=None))
        world.simulator.faults.add(Fault(route="batches.create", point="after", status=503))
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        assert_paid_once(world)


# A working folder that was away during one start is never worked on again.


async def test_a_working_folder_that_comes_back_is_worked_on(tmp_path: Path) -> None:
    """A job whose folder was moved away, or not mounted, goes on when it is back."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(2))
        await run_until(world, "batch_created")
        (folder,) = world.spool.working.iterdir()
        folder.rename(tmp_path / "away")
        await run_until(world, "daemon_ready")
        (tmp_path / "away").rename(folder)

        assert await world.drain()

        world.assert_conserved("f.jsonl", ["q0", "q1"])
        assert_paid_once(world)


# An outage of one part of the provider stops all the others.


async def test_uploads_that_are_down_stop_no_answers(tmp_path: Path) -> None:
    """While nothing can be uploaded, what runs is polled, fetched and delivered."""
    async with simulated(tmp_path, overrides=QUIET) as world:
        is_down = False

        def go_down() -> None:
            nonlocal is_down

            if not is_down:
                is_down = True

                for number in range(60):
                    world.drop(f"g{number}.jsonl", questions(1, mark=f"{number}"))

        world.simulator.faults.add(
            Fault(route="files.create", times=None, status=503),
            when=lambda _: is_down and passed(world) < 12 * HOUR_S,
        )
        world.drop("f.jsonl", questions(2))

        with overheard(batch_created=go_down):
            assert await world.drain()

        assert world.summary("f.jsonl")["timings"]["duration_s"] < HOUR_S


async def test_downloads_that_are_down_stop_no_new_work(tmp_path: Path) -> None:
    """While no answers can be fetched, new files are uploaded and created."""
    async with simulated(tmp_path, overrides=QUIET) as world:
        world.simulator.faults.add(
            Fault(route="files.content", times=None, status=503),
            when=lambda _: passed(world) < 12 * HOUR_S,
        )

        for number in range(12):
            world.drop(f"f{number}.jsonl", questions(1, mark=f"{number}"))

        def drop_late() -> None:
            names = {path.name for path in world.spool.inbox.iterdir()}

            is_late = passed(world) > HOUR_S and len(list(world.spool.working.iterdir())) < 13

            if is_late and "g.jsonl" not in names:
                world.drop("g.jsonl", questions(1))

        with overheard(stage_retried=drop_late):
            assert await world.drain()

        last = world.simulator.ledger.creations[-1]
        assert last.created_at - START < 3 * HOUR_S


# Two batches that the provider has forgotten keep it from being asked about any other.


async def test_two_batches_that_are_gone_stop_no_others(tmp_path: Path) -> None:
    """Batches that were deleted with their files are no reason not to ask for an older one."""
    nothing = '{"object":"list","data":[],"has_more":false}'

    async with simulated(tmp_path, overrides=QUIET) as world:
        ledger = world.simulator.ledger
        gone: set[str] = set()

        def go() -> None:
            if len(ledger.creations) == 1:
                world.drop("g.jsonl", questions(1, mark="g"))
                world.drop("h.jsonl", questions(1, mark="h"))
            elif len(ledger.creations) == 3:
                gone.update(made.remote_id for made in ledger.creations[1:])
                gone.update(upload.file_id for upload in ledger.uploads[1:])

        world.simulator.faults.add(
            Fault(route="batches.get", times=None, status=404),
            when=lambda call: call.remote_id in gone,
        )
        world.simulator.faults.add(
            Fault(route="files.get", times=None, status=404),
            when=lambda call: call.remote_id in gone,
        )
        world.simulator.faults.add(
            Fault(route="batches.list", times=None, status=200, body=nothing),
            when=lambda _: bool(gone),
        )
        world.drop("f.jsonl", questions(1))

        with overheard(batch_created=go):
            assert await world.drain()

        assert world.summary("f.jsonl")["timings"]["duration_s"] < HOUR_S


# Loops without a backoff.


async def test_batches_that_expire_at_once_are_backed_off(tmp_path: Path) -> None:
    """A provider that lets every batch expire at once gets no new one every ten seconds."""
    short = {"retry": {"max_age": "10m"}}
    settings = SimulatorSettings(window_s=6.0)

    async with simulated(tmp_path, overrides=QUIET | short, settings=settings) as world:
        world.simulator.faults.add_batch(BatchFault(ending="expired", done=0.0, times=None))
        world.drop("f.jsonl", questions(2))

        assert await world.drain()

        assert len(world.simulator.ledger.creations) < 15


async def test_what_fails_again_has_not_recovered(tmp_path: Path) -> None:
    """No line says that a stage recovered while its file is not found, time and again."""
    async with simulated(tmp_path, overrides=QUIET) as world:
        world.simulator.faults.add_file(FileFault(ready_lag_s=100))
        world.drop("f.jsonl", questions(2))

        with overheard() as lines:
            assert await world.drain()

        assert len(told(lines, "stage.recovered")) == 1


async def test_a_cancel_that_is_refused_is_said_once(tmp_path: Path) -> None:
    """A batch that is too old and cannot be cancelled is not a line every two minutes."""
    short = {"retry": {"max_age": "1h"}}

    async with simulated(tmp_path, overrides=QUIET | short) as world:
        world.simulator.faults.add_batch(BatchFault(stuck_in="in_progress"))
        world.simulator.faults.add(
            Fault(route="batches.cancel", times=None, status=400, body=refusal("no"))
        )
        world.drop("f.jsonl", questions(2))
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        def look() -> None:
            if passed(world) > DAY_S:
                daemon.stop()

        with overheard(batch_uncancelled=look, batch_stalled=look) as lines:
            await world.run(daemon)

        assert len(told(lines, "batch.uncancelled")) < 20


# A provider without `GET /files/{id}` (F18 names two), and one whose empty list is null.


async def test_an_unclear_create_where_files_cannot_be_asked_for(tmp_path: Path) -> None:
    """The list of files shows what the provider has no call for: the job does not end unasked."""
    async with simulated(tmp_path, overrides=QUIET) as world:
        body = refusal("not_found", "unknown url")
        world.simulator.faults.add(Fault(route="files.get", times=None, status=404, body=body))
        world.simulator.faults.add(Fault(route="batches.create", status=503))
        world.drop("f.jsonl", questions(1))

        assert await world.drain()

        assert world.errors("f.jsonl") == []


async def test_a_list_without_batches_may_be_null(tmp_path: Path) -> None:
    """An empty list in Go is `null`; recall does not wait for ever for another one."""
    async with simulated(tmp_path, overrides=QUIET) as world:
        world.drop("f.jsonl", questions(2))
        await run_until(world, "job_planned")
        null = '{"object":"list","data":null,"has_more":false}'
        world.simulator.faults.add(Fault(route="batches.list", times=None, status=200, body=null))
        daemon = Daemon(settings=world.settings(), clock=world.clock, is_draining=True)

        def look() -> None:
            if passed(world) > 6 * HOUR_S:
                daemon.stop()

        with overheard(stage_retried=look):
            await world.run(daemon)

        world.assert_conserved("f.jsonl", ["q0", "q1"])


# An upload that SIGTERM cut off, at a list that lags.


async def test_an_upload_that_a_stop_cut_off_is_deleted_later(tmp_path: Path) -> None:
    """What arrived while the daemon was being stopped is not left at the provider."""
    async with simulated(tmp_path, overrides={"spool": {"stop_grace": 0}}) as world:
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        def stop(_: Call) -> bool:
            daemon.stop()

            return True

        world.simulator.faults.add(
            Fault(route="files.create", point="after", action="stall", delay_s=0.5)
        )
        world.simulator.faults.add_file(FileFault(list_lag_s=50), when=stop)
        world.drop("f.jsonl", questions(2))
        await world.run(daemon)

        assert await world.drain()

        ledger = world.simulator.ledger
        assert len(ledger.uploads) == 2
        assert {upload.file_id for upload in ledger.uploads} <= set(ledger.deletions)
