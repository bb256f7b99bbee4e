"""Housekeeping: what is finished goes when its time is over, so that nothing grows without bound.

Called by the dispatcher at a start and every hour. Originals in `done/` and `rejected/` are removed
by how long they have been there, finished jobs are forgotten in small portions, and answers that a
provider is about to throw away are told of. The outbox is never touched. Safe to repeat; raises
`StoreError` and `OSError` (environment).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog

from promptspool import control
from promptspool.model import BatchStatus

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.context import Context

EVERY_S = 3600.0
DAY_S = 86_400.0

A_PORTION = 100
"""So many jobs are forgotten in one transaction."""

SPENDING_KEPT_S = 400 * DAY_S
"""More than thirteen months, so that a month can be compared with that of the year before."""

RESULTS_KEPT_S = 30 * DAY_S
"""How long OpenAI keeps the files of a batch that has ended (Batch guide, "Batch expiration")."""

RESULTS_WARNING_S = 5 * DAY_S
"""So long before that it is worth a line in the log, every day."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Kept:
    """What housekeeping has removed."""

    files: int
    jobs: int


async def keep_house(context: Context, *, older_than_s: float | None = None) -> Kept:
    """Remove what is older than its retention, or than *older_than_s*, and warn of what expires."""
    now = context.clock.now()
    retention = context.settings.retention
    await anyio.to_thread.run_sync(control.sweep, context.spool, now)
    files = 0

    for tree, kept_s in (
        (context.spool.done, retention.done),
        (context.spool.rejected, retention.rejected),
    ):
        limit_s = older_than_s if older_than_s is not None else kept_s

        if limit_s is not None:
            files += await anyio.to_thread.run_sync(partial(_remove_old, tree, limit_s))

    limit_s = older_than_s if older_than_s is not None else retention.history
    jobs = 0 if limit_s is None else await _forget_old(context, now - limit_s)
    await context.store.forget_older(now - SPENDING_KEPT_S)
    await _tell_expiring(context, now)

    if files or jobs:
        _log.info("spool.cleaned", files=files, jobs=jobs)

    return Kept(files, jobs)


async def _forget_old(context: Context, before: float) -> int:
    """Forget the finished jobs of before, in portions between which others may write."""
    count = 0

    while jobs := await context.store.finished(before, A_PORTION):
        await context.store.forget(jobs)
        count += len(jobs)
        await anyio.lowlevel.checkpoint()

    return count


def _remove_old(tree: Path, older_than_s: float) -> int:
    """Remove what has been in *tree* for longer, and the folders that it leaves; count the files.

    By the time of the last change of name: a delivered original keeps the times that it had. And by
    the file system's own clock, which is the server's on a network.
    """
    os.utime(tree)
    before = tree.stat().st_ctime - older_than_s
    count = 0

    for folder, folders, names in os.walk(tree, topdown=False):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

        try:
            for name in names:
                with suppress(FileNotFoundError, PermissionError):  # somebody else's folder
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)

                    if stat.S_ISREG(status.st_mode) and status.st_ctime <= before:
                        os.unlink(name, dir_fd=descriptor)
                        count += 1

            for name in folders:
                with suppress(OSError):  # not empty, or a link
                    os.rmdir(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)

    return count


async def _tell_expiring(context: Context, now: float) -> None:
    for batch in await context.store.live_batches_in(BatchStatus.ENDED):
        ended_at = batch.ended_at if batch.ended_at is not None else now
        left_s = ended_at + RESULTS_KEPT_S - now
        is_new_day = left_s % DAY_S >= DAY_S - EVERY_S  # the house is kept every hour

        if left_s < RESULTS_WARNING_S and is_new_day:
            _log.warning(
                "batch.expiring",
                job=batch.job,
                batch=batch.id,
                provider=batch.provider,
                remote_id=batch.remote_id,
                days_left=round(left_s / DAY_S, 1),
                reason=batch.why,
            )
