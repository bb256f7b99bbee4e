"""The dispatcher by itself: what arrives at once is written at once, and what is small goes by."""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from promptspool.claims import Claims
from promptspool.clock import Bell
from promptspool.context import Context
from promptspool.dispatcher import INBOX, Dispatcher, _Arrival
from promptspool.inbox import Inbox
from promptspool.model import (
    Batch,
    BatchId,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    ProviderState,
    ProviderStatus,
)
from promptspool.outcomes import Settled, Unusable
from promptspool.pricing import Prices, Tokens
from promptspool.reload import lanes_of, rules_of
from promptspool.settings import Settings
from promptspool.spool import Spool
from promptspool.stages import SMALL_BYTES, STAGES, Lane, Stage
from promptspool.store import Change, Store, opened
from world import START, FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from promptspool.model import Row
    from promptspool.outcomes import Outcome

pytestmark = pytest.mark.anyio

URL = "https://api.example.com/v1"


class CountedStore(Store):
    """A store that counts its transactions."""

    writes = 0

    async def write(self, change: Change) -> None:
        """Count, and write."""
        self.writes += bool(change.updated or change.added)
        await super().write(change)


@dataclass
class Bench:
    """A dispatcher whose loop does not run, and its store."""

    dispatcher: Dispatcher
    store: CountedStore

    async def run_at_once(self, stage: Stage, groups: Sequence[Sequence[Row]]) -> int:
        """Run *stage* on each group, all ending while something else is written.

        Return the number of transactions that took.
        """
        before = self.store.writes
        place = (stage.lane, None)

        async with anyio.create_task_group() as tasks, self.dispatcher.applying():
            for rows in groups:
                self.dispatcher.in_progress.update(row.id for row in rows)
                tasks.start_soon(self.dispatcher._work, stage, rows, place)  # noqa: SLF001

            await anyio.wait_all_tasks_blocked()

        return self.store.writes - before

    async def jobs(self) -> dict[str, Job]:
        """Return the live jobs by id."""
        return {job.id: job for job in await self.store.live_jobs()}


@asynccontextmanager
async def bench_at(root: Path, *, lanes: dict[Lane, int] | None = None) -> AsyncIterator[Bench]:
    """Yield a dispatcher on a new spool."""
    spool, clock = Spool(root / "spool"), FakeClock()
    spool.make()
    settings = Settings(
        spool={"path": spool.root},  # type: ignore[arg-type]
        providers={"openai": {"base_url": URL}},  # type: ignore[dict-item]
        profiles={"default": {"model": "m"}},  # type: ignore[dict-item]
    )

    async with opened(spool.database) as store:
        store.__class__ = CountedStore
        assert isinstance(store, CountedStore)
        context = Context(
            settings=settings, prices=Prices({}), spool=spool, spool_id="s", store=store,
            clock=clock, accounts={}, taken=set(),
        )  # fmt: skip
        bell = Bell()
        dispatcher = Dispatcher(
            context=context,
            inbox=Inbox(Claims(spool, settings, clock, context.taken), bell),
            rules=rules_of(settings),
            lanes=lanes_of(settings) | (lanes or {}),
            bell=bell,
        )

        yield Bench(dispatcher, store)


def job_of(number: int, **changes: Any) -> Job:
    """Return a job that was claimed as the *number*-th."""
    plain: dict[str, Any] = {
        "id": JobId(f"job-{number:03}"),
        "name": b"%d.jsonl" % number,
        "stem": b"%d.jsonl" % number,
        "profile": "default",
        "provider": "openai",
        "base_url": URL,
        "claimed_at": START,
        "due_at": START + number / 1000 - 1,
        "size_bytes": 100,
    }

    return Job(**plain | changes)


def batch_of(job: Job, part: int) -> Batch:
    """Return a batch of *job* whose answers are on disk."""
    return Batch(
        id=BatchId(f"{job.id}.{part}"), job=job.id, provider="openai", base_url=URL,
        endpoint="/v1/chat/completions", model="m", status=BatchStatus.DOWNLOADED, requests=1,
        size_bytes=100, digest="b3-0", give_up_at=START + 1e6, due_at=START,
    )  # fmt: skip


def stage_of(outcome: Outcome, lane: Lane = Lane.DISK) -> Stage:
    """Return a stage that ends in *outcome* for every row."""

    async def run(_: Context, rows: Sequence[Row]) -> list[Outcome | None]:
        return [outcome for _ in rows]

    return Stage(run=run, name="test", lane=lane)


UNUSABLE = stage_of(Unusable(reason="blank"))
SETTLED = stage_of(
    Settled(successors=(), answered=1, failed=0, complaints=(), stopped=None, tokens=Tokens())
)


async def test_what_arrives_at_once_is_written_at_once(tmp_path: Path) -> None:
    """Twenty outcomes that come while a transaction is written go into one transaction."""
    async with bench_at(tmp_path) as bench:
        jobs = [job_of(number) for number in range(20)]
        await bench.store.write(Change(added=jobs, at=START))

        assert await bench.run_at_once(UNUSABLE, [[job] for job in jobs]) == 1
        after = await bench.jobs()
        assert {job.status for job in after.values()} == {JobStatus.UNUSABLE}
        assert bench.dispatcher.in_progress == set()


async def test_a_refused_outcome_keeps_back_no_other(tmp_path: Path) -> None:
    """One row that changed underneath is held; the others of its transaction are written."""
    async with bench_at(tmp_path) as bench:
        jobs = [job_of(number) for number in range(5)]
        await bench.store.write(Change(added=jobs, at=START))
        changed = replace(jobs[2], version=jobs[2].version + 1, why="another")
        await bench.store.write(Change(updated=[(jobs[2], changed)], at=START))

        with capture_logs() as logs:
            await bench.run_at_once(UNUSABLE, [[job] for job in jobs])

        after = await bench.jobs()
        assert [line["event"] for line in logs] == ["store.refused"]
        assert after[jobs[2].id] == changed
        assert bench.dispatcher.held == {jobs[2].id}
        assert {after[job.id].status for job in jobs if job is not jobs[2]} == {JobStatus.UNUSABLE}


async def test_what_was_decided_before_a_stop_is_decided_anew(tmp_path: Path) -> None:
    """An outcome that another run had taken along, and was cut off with, is decided on once."""
    async with bench_at(tmp_path) as bench:
        jobs = [job_of(number) for number in range(2)]
        await bench.store.write(Change(added=jobs, at=START))
        arrival = _Arrival(stage=UNUSABLE, pairs=[(job, Unusable(reason="blank")) for job in jobs])
        await bench.dispatcher._decide(arrival, START)  # noqa: SLF001
        await bench.dispatcher._decide(arrival, START)  # noqa: SLF001

        assert [row for row, _, _ in arrival.moved] == jobs
        assert [row for row, _ in arrival.updated] == jobs


async def test_the_last_batches_of_a_job_may_close_at_once(tmp_path: Path) -> None:
    """A job is settled by the last of its batches, also where several end in one moment.

    They are decided on one after another: each has to see that the others are closed. Those of
    different jobs share a transaction.
    """
    async with bench_at(tmp_path) as bench:
        jobs = [job_of(number, status=JobStatus.PLANNED, due_at=None) for number in range(4)]
        batches = [batch_of(job, part) for part in (1, 2, 3) for job in jobs]
        await bench.store.write(Change(added=[*jobs, *batches], at=START))

        assert await bench.run_at_once(SETTLED, [[batch] for batch in batches]) == 3
        after = await bench.jobs()
        assert {job.status for job in after.values()} == {JobStatus.SETTLED}
        assert [after[job.id].version for job in jobs] == [1, 1, 1, 1]


def held_plans(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], anyio.Event]:
    """Have plans wait for an event, and return it, and whose plans were begun."""
    ran: list[str] = []
    ended = anyio.Event()

    async def run(_: Context, rows: Sequence[Row]) -> list[Outcome | None]:
        ran.extend(row.id for row in rows)
        await ended.wait()

        return [None for _ in rows]

    stage = dataclasses.replace(STAGES[JobStatus.CLAIMED], run=run)
    monkeypatch.setitem(STAGES, JobStatus.CLAIMED, stage)

    return ran, ended


async def test_what_is_small_goes_past_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the disk lane is full of large files, a small one behind hundreds is begun."""
    ran, ended = held_plans(monkeypatch)

    async with bench_at(tmp_path, lanes={Lane.DISK: 1, Lane.SMALL: 2}) as bench:
        dispatcher = bench.dispatcher
        dispatcher.in_progress.add(INBOX)
        large = [job_of(number, size_bytes=SMALL_BYTES + 1) for number in range(150)]
        heavy = [job_of(number, name=b"%d.parquet" % number) for number in range(150, 160)]
        small = [job_of(number) for number in range(160, 165)]
        await bench.store.write(Change(added=[*large, *heavy, *small], at=START))

        async with anyio.create_task_group() as tasks:
            await dispatcher._start_due(tasks)  # noqa: SLF001
            await anyio.wait_all_tasks_blocked()
            assert ran == [large[0].id]
            assert dispatcher.bell.is_rung()
            dispatcher.bell.clear()

            for _ in range(2):
                await dispatcher._start_due(tasks)  # noqa: SLF001
                await anyio.wait_all_tasks_blocked()
                assert ran == [large[0].id, small[0].id, small[1].id]
                assert not dispatcher.bell.is_rung()

            ended.set()


async def test_what_is_large_goes_past_what_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the lane of small files is full, a large one behind many of them is begun."""
    ran, ended = held_plans(monkeypatch)

    async with bench_at(tmp_path, lanes={Lane.DISK: 1, Lane.SMALL: 2}) as bench:
        bench.dispatcher.in_progress.add(INBOX)
        small = [job_of(number) for number in range(100)]
        large = job_of(100, size_bytes=SMALL_BYTES + 1)
        await bench.store.write(Change(added=[*small, large], at=START))

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                await bench.dispatcher._start_due(tasks)  # noqa: SLF001
                await anyio.wait_all_tasks_blocked()

            assert ran == [small[0].id, small[1].id, large.id]
            ended.set()


@pytest.mark.parametrize("barred", ["recalling", "halted"])
async def test_what_waited_to_begin_is_asked_again(tmp_path: Path, barred: str) -> None:
    """A create whose turn comes after its account was changed, or a halt, is not begun."""
    ran: list[str] = []

    async def run(_: Context, rows: Sequence[Row]) -> list[Outcome | None]:
        ran.extend(row.id for row in rows)

        return [None for _ in rows]

    stage = dataclasses.replace(STAGES[BatchStatus.CREATING], run=run)

    async with bench_at(tmp_path) as bench:
        dispatcher, batch = bench.dispatcher, batch_of(job_of(1), 1)
        batch = replace(batch, status=BatchStatus.CREATING)
        state = ProviderState(id="openai", status=ProviderStatus.READY)
        dispatcher.providers = {"openai": state}

        for is_barred in (True, False):
            dispatcher.in_progress.add(batch.id)

            async with anyio.create_task_group() as tasks, dispatcher._beginning:  # noqa: SLF001
                tasks.start_soon(dispatcher._work, stage, [batch], (Lane.CONTROL, "openai"))  # noqa: SLF001
                await anyio.wait_all_tasks_blocked()

                if is_barred and barred == "recalling":
                    after = replace(state, status=ProviderStatus.RECALLING)
                    dispatcher.providers = {"openai": after}
                elif is_barred:
                    dispatcher.halted_at = START
                else:
                    dispatcher.providers = {"openai": state}
                    dispatcher.halted_at = None

            assert ran == ([] if is_barred else [batch.id])
            assert not dispatcher.in_progress


async def test_runs_begin_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many runs are started at once, whatever else is due goes between two of them."""
    began: list[int] = []
    rounds = 0

    async def run(_: Context, rows: Sequence[Row]) -> list[Outcome | None]:
        began.append(rounds)

        return [None for _ in rows]

    async def go_round() -> None:
        nonlocal rounds

        while True:
            rounds += 1
            await anyio.lowlevel.checkpoint()

    stage = dataclasses.replace(STAGES[JobStatus.CLAIMED], run=run)
    monkeypatch.setitem(STAGES, JobStatus.CLAIMED, stage)

    async with bench_at(tmp_path, lanes={Lane.SMALL: 8}) as bench:
        bench.dispatcher.in_progress.add(INBOX)
        jobs = [job_of(number) for number in range(8)]
        await bench.store.write(Change(added=jobs, at=START))

        async with anyio.create_task_group() as others:
            others.start_soon(go_round)

            async with anyio.create_task_group() as tasks:
                await bench.dispatcher._start_due(tasks)  # noqa: SLF001

            others.cancel_scope.cancel()

    assert len(began) == len(set(began)) == 8


async def test_a_turn_waits_for_runs_and_not_for_rows(tmp_path: Path) -> None:
    """Before a turn the loop goes round once for each run, of however many batches a poll is."""
    rounds = 0

    async def go_round() -> None:
        nonlocal rounds

        while True:
            await anyio.lowlevel.checkpoint()
            rounds += 1

    async with bench_at(tmp_path) as bench, anyio.create_task_group() as others:
        dispatcher = bench.dispatcher
        dispatcher.in_progress.update(f"job.{number}" for number in range(10_000))
        dispatcher._running[Lane.POLL, "openai"] = 1  # noqa: SLF001
        dispatcher._running[Lane.CONTROL, "openai"] = 16  # noqa: SLF001
        others.start_soon(go_round)
        await dispatcher._gather()  # noqa: SLF001
        others.cancel_scope.cancel()

    assert 16 <= rounds <= 18


async def test_a_lane_made_narrower_lets_nothing_more_through(tmp_path: Path) -> None:
    """While more calls run than a new configuration allows, no creation is intended."""
    async with bench_at(tmp_path, lanes={Lane.CONTROL: 4}) as bench:
        bench.dispatcher._running[Lane.CONTROL, "openai"] = 16  # noqa: SLF001

        assert bench.dispatcher._creations("openai") == 0  # noqa: SLF001
