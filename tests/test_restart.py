"""Taking stock at a start, whatever there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiosqlite
import pytest
from msgspec.structs import replace

from filled import CONFIG, NOW, batch, job, provider
from promptspool.boot import boot
from promptspool.claims import Claims
from promptspool.clock import Bell
from promptspool.context import Context
from promptspool.control import waiting
from promptspool.inbox import Inbox
from promptspool.model import BatchStatus, JobId, JobStatus
from promptspool.pricing import Prices
from promptspool.reload import rules_of
from promptspool.settings import load
from promptspool.spool import Spool
from promptspool.store import Change, Store, opened
from world import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.model import Job

pytestmark = pytest.mark.anyio


async def filled_with(root: Path, jobs: list[Job]) -> Spool:
    """Make a spool with *jobs*, their folders and a running batch of each."""
    spool = Spool(root / "spool")
    spool.make()
    (root / "promptspool.toml").write_text(CONFIG)

    for one in jobs:
        spool.folder(one.id).mkdir()

    async with opened(spool.database) as store:
        await store.write(Change(added=[provider(), *jobs, *map(batch, jobs)], at=NOW))

    return spool


async def booted(root: Path, spool: Spool) -> tuple[Context, list[str]]:
    """Take stock, and return the context and every statement that was executed for it."""
    settings = load(root / "promptspool.toml", environ={})
    statements: list[str] = []

    async with aiosqlite.connect(spool.database, isolation_level=None) as connection:
        await connection.set_trace_callback(statements.append)
        context = Context(
            settings=settings,
            prices=Prices({}),
            spool=spool,
            spool_id=spool.identity(),
            store=Store(connection),
            clock=FakeClock(NOW),
            accounts={},
            taken=set(),
        )
        claims = Claims(spool, settings, context.clock, context.taken)
        await boot(context, Inbox(claims, Bell()), rules_of(settings))

    return context, statements


async def test_a_start_asks_no_more_of_more_jobs(tmp_path: Path) -> None:
    """The database is asked as often for a hundred live jobs as for one."""
    counts = []

    for number in (1, 100):
        root = tmp_path / str(number)
        root.mkdir()
        spool = await filled_with(root, [job(n) for n in range(number)])
        context, statements = await booted(root, spool)
        counts.append(len(statements))

        assert len(context.taken) == number

    assert counts[0] == counts[1]


async def test_each_job_is_met_as_it_is(tmp_path: Path) -> None:
    """A folder that is gone ends its job, and a mark of a cancel is a command once more."""
    jobs = [job(n) for n in range(4)]
    known = replace(jobs[3], id=JobId(f"{jobs[3].id}x"), stem=b"x", cancelled_at=NOW)
    spool = await filled_with(tmp_path, [*jobs, known])
    spool.folder(jobs[1].id).rmdir()
    (spool.folder(jobs[2].id) / "cancelled").touch()
    (spool.folder(known.id) / "cancelled").touch()
    context, _ = await booted(tmp_path, spool)

    async with opened(spool.database) as store:
        live = {one.id for one in await store.live_jobs()}
        gone = await store.job(jobs[1].id)
        (closed,) = await store.batches_of(jobs[1].id)

    assert live == {jobs[0].id, jobs[2].id, jobs[3].id, known.id}
    assert gone is not None
    assert (gone.status, closed.status) == (JobStatus.DONE, BatchStatus.CLOSED)
    assert context.taken == {one.stem for one in (jobs[0], jobs[2], jobs[3], known)}
    assert [left.command and left.command.job for left in waiting(spool)] == [jobs[2].id]


async def test_what_is_held_and_set_aside_keeps_no_start_back(tmp_path: Path) -> None:
    """A held job that was set aside is woken once, as one row."""
    held = replace(job(0), status=JobStatus.HELD, due_at=None, why="set aside: a bug")
    spool = await filled_with(tmp_path, [held])
    await booted(tmp_path, spool)

    async with opened(spool.database) as store:
        found = await store.job(held.id)

    assert found is not None
    assert (found.status, found.due_at) == (JobStatus.HELD, NOW)
