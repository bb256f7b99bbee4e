"""Taking stock at the start: what the spool, the database and the provider may disagree about.

The folders in `working/` say which jobs there are, the database where they stand, and the provider
what was bought. Here the first two are brought together and the third is doubted; `recall` settles
the doubt. Whatever happens here is safe to repeat. Raises `SpoolError`, `StoreError` and
`OSError` (environment).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio.to_thread
import structlog

from promptspool import control
from promptspool.errors import SpoolError
from promptspool.model import BatchStatus, JobStatus, ProviderState, ProviderStatus
from promptspool.outcomes import Booted, Restarted, Vanished, Woken
from promptspool.policy import decide
from promptspool.stages import CANCELLED
from promptspool.store import Change

if TYPE_CHECKING:
    from promptspool.context import Context
    from promptspool.inbox import Inbox
    from promptspool.model import Job, JobId, Row
    from promptspool.policy import Rules
    from promptspool.spool import Spool
    from promptspool.store import Store

CLEAN_STOP = "clean_stop"
"""The note that says that no create was under way when the last process ended.

It is the mark that this process left in the spool, so an older database does not say it.
"""

SPOOL_ID = "spool_id"
"""The note that says which spool the database goes with."""

LONGEST_WAIT_S = 2 * 86_400.0
"""Twice what a provider may make us wait (`provider.problems`), and more than any backoff."""

SWEEPS_AFTER_A_CRASH = 2
"""A list may lag behind a create that was cut off, so it is read again after the grace."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def boot(context: Context, inbox: Inbox, rules: Rules) -> list[ProviderState]:
    """Bring spool and database together; return the providers, some of which have to recall.

    Raises `SpoolError` if the database belongs to another spool.
    """
    store = context.store
    now = context.clock.now()
    await _check_spool(context)
    mark = await anyio.to_thread.run_sync(context.spool.take_mark)
    is_clean = mark is not None and await store.meta(CLEAN_STOP) == mark
    await store.note(CLEAN_STOP, "")
    live = await _present(context, rules, now)
    live += await _adopted(context, inbox, live, now)
    await _wake(context, live, rules, now)
    interrupted = await store.interrupted()
    await _cancel_again(context, live, now)
    doubted = [(batch, decide(batch, Restarted(), now, rules)) for batch in interrupted]
    await store.write(Change(updated=doubted, at=now))
    inbox.claims.taken.update(job.stem for job in live)
    sweeps = 1 if is_clean else SWEEPS_AFTER_A_CRASH
    busy = {job.provider for job in live if job.provider is not None}
    recalled = busy & context.accounts.keys()
    known = sorted({*context.accounts, *busy})
    _log.info("daemon.booted", jobs=len(live), clean_stop=is_clean)

    return [
        await _boot_provider(
            store, name, Booted(sweeps=sweeps if name in recalled else 0), rules, now
        )
        for name in known
    ]


async def _check_spool(context: Context) -> None:
    """Refuse a database that goes with another spool: to it, every job here would have vanished."""
    known = await context.store.meta(SPOOL_ID)

    if known is None:
        await context.store.note(SPOOL_ID, context.spool_id)
    elif known != context.spool_id:
        message = (
            f"{context.spool.database} belongs to spool {known}, but {context.spool.root} is spool "
            f"{context.spool_id}; is the spool not mounted?"
        )
        raise SpoolError(message)


async def _present(context: Context, rules: Rules, now: float) -> list[Job]:
    """Return the live jobs; close those without a folder: it is removed last, so they were done."""
    live = await context.store.live_jobs()
    there = await anyio.to_thread.run_sync(_folders, context.spool)

    for job in live:
        if job.id not in there:
            await _forget_vanished(context, job, rules, now)

    return [job for job in live if job.id in there]


def _folders(spool: Spool) -> set[str]:
    with os.scandir(spool.working) as entries:
        return {entry.name for entry in entries if entry.is_dir()}


async def _forget_vanished(context: Context, job: Job, rules: Rules, now: float) -> None:
    batches = await context.store.batches_of(job.id)
    live = [batch for batch in batches if batch.status is not BatchStatus.CLOSED]
    rows: list[Row] = [job, *live]
    gone = [(row, decide(row, Vanished(), now, rules)) for row in rows]
    await context.store.write(Change(updated=gone, at=now))
    remote_ids = [batch.remote_id for batch in live if batch.remote_id]
    _log.warning("job.vanished", job=job.id, file=job.shown, remote_ids=remote_ids)


async def _adopted(context: Context, inbox: Inbox, live: list[Job], now: float) -> list[Job]:
    """Give rows to the folders that have none, and return these jobs."""
    known = {job.id for job in live}
    adopted = await anyio.to_thread.run_sync(inbox.claims.adopted, known)
    # One whose folder was away at an earlier start begins anew.
    await context.store.forget([job.id for job in adopted])
    await context.store.write(Change(added=adopted, at=now))

    for job in adopted:
        _log.info("job.adopted", job=job.id, file=job.shown)

    return adopted


async def _cancel_again(context: Context, live: list[Job], now: float) -> None:
    """Cancel what a person has cancelled and the database, lost or put back, does not know of."""
    unknown = [job.id for job in live if job.cancelled_at is None]

    for job in await anyio.to_thread.run_sync(_cancelled, context.spool, unknown):
        command = control.Command(verb="cancel", job=job, left_at=now)

        try:
            await anyio.to_thread.run_sync(control.leave, context.spool, command)
        except control.ControlError as error:
            raise SpoolError(str(error)) from error


def _cancelled(spool: Spool, jobs: list[JobId]) -> list[JobId]:
    """Return those of *jobs* that have the mark; of ten thousand, one stat each."""
    return [job for job in jobs if os.path.exists(f"{spool.working}/{job}/{CANCELLED}")]  # noqa: PTH110 - as quick as can be


async def _wake(context: Context, live: list[Job], rules: Rules, now: float) -> None:
    """Make due what waits for a time that is further away than it was: the clock was set back.

    And what is held, since limits may be others by now, and what was set aside: whoever mended it,
    or us, has started again.
    """
    last_at = await context.store.last_at()
    is_set_back = last_at is not None and last_at > now
    rows = await context.store.due_after(now if is_set_back else now + LONGEST_WAIT_S)
    rows = [row for row in rows if row.status is not JobStatus.HELD]
    rows += await context.store.set_aside()
    rows += [job for job in live if job.status is JobStatus.HELD]
    each = {row.id: row for row in rows}  # what is held may be set aside as well
    woken = [(row, decide(row, Woken(), now, rules)) for row in each.values()]
    await context.store.write(Change(updated=woken, at=now))


async def _boot_provider(
    store: Store, name: str, booted: Booted, rules: Rules, now: float
) -> ProviderState:
    """Start a provider afresh: a restart often follows a mended key or network."""
    state = (await store.providers()).get(name)

    if state is None:
        state = ProviderState(id=name, status=ProviderStatus.READY)
        await store.write(Change(added=[state], at=now))

    after = decide(state, booted, now, rules)
    await store.write(Change(updated=[(state, after)], at=now))

    return (await store.providers())[name]
