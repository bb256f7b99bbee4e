"""The collect stages alone, without a daemon around them: from answers on disk to results.

`python -m bench.settling SPOOL FOLDER` takes FOLDER for the working folder of the only job of
SPOOL, settles its batches one after the other, makes the products, and prints the seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from promptspool import collect
from promptspool.model import BatchStatus, RemoteStatus
from promptspool.outcomes import Doubtful
from promptspool.planning import read_manifest
from promptspool.settings.sections import RetrySettings
from promptspool.spool import Spool
from promptspool.store import Change, opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.model import Batch, Job


def main() -> None:
    """Settle, and tell."""
    spool, folder = Spool(Path(sys.argv[1])), Path(sys.argv[2])
    job, batches = anyio.run(_rows, spool)
    began_at = time.monotonic()
    settle(folder, job, batches)
    sys.stdout.write(f"{time.monotonic() - began_at:.6f}\n")


def settle(folder: Path, job: Job, batches: Sequence[Batch]) -> None:
    """Do what the daemon's stages do, with its default settings."""
    manifest = read_manifest(folder)
    retry = RetrySettings()

    for batch in batches:
        settled = collect.settle(
            folder=folder,
            batch=batch,
            max_attempts=manifest.max_attempts,
            request_backoff_s=retry.request_backoff,
            stop=collect.Stop(share=retry.stop_share, requests=retry.stop_requests),
            now=time.time(),
        )

        if isinstance(settled, Doubtful):
            raise RuntimeError(settled.reason)  # noqa: TRY004 - the answers are ours, and whole

    collect.make_products(folder=folder, job=job.id, manifest=manifest, batches=batches)


async def _rows(spool: Spool) -> tuple[Job, list[Batch]]:
    async with opened(spool.database) as store:
        (job,) = await store.live_jobs()

        return job, await store.batches_of(job.id)


def download(spool: Spool, now: float) -> None:
    """Let a stopped daemon have downloaded the answers to all batches it had created."""
    anyio.run(_download, spool, now)


async def _download(spool: Spool, now: float) -> None:
    async with opened(spool.database) as store:
        created = await store.live_batches_in(BatchStatus.CREATED)
        updated = [
            (
                batch,
                replace(
                    batch,
                    status=BatchStatus.DOWNLOADED,
                    version=batch.version + 1,
                    due_at=now,
                    remote_status=RemoteStatus.COMPLETED,
                    ended_at=now,
                    total=batch.requests,
                    completed=batch.requests,
                    output_file=f"file-of-{batch.remote_id}",
                ),
            )
            for batch in created
        ]
        await store.write(Change(updated=updated, at=now))


if __name__ == "__main__":
    main()
