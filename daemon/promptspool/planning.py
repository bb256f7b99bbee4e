"""The first step of a job, on disk: from a claimed file to its manifest and its batches' rows.

All of it blocks: call it in a worker thread. Raises `BadInput` (bad data) for a file of which no
request can be made, and `ProviderError` and `OSError` (environment).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from promptspool import intake
from promptspool.errors import BadInput, ConfigError
from promptspool.model import Batch
from promptspool.settings import profile_for
from promptspool.spool import SIDECAR, SIDECAR_SUFFIX, read_own, write_durably
from promptspool.wire import Claim, Manifest, Rejection

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.context import Context
    from promptspool.model import BatchId, Job
    from promptspool.settings import ProfileSettings, Settings
    from promptspool.wire import PlannedBatch


def read_manifest(folder: Path) -> Manifest:
    """Return the plan in a working folder; raises `FileNotFoundError` before it is finished."""
    return read_own(folder / "manifest.json", Manifest)


def finished_plan(folder: Path) -> Manifest | None:
    """Return the plan that is there; raises `BadInput` if it came to a rejection."""
    note = folder / "rejection.json"

    if note.exists():
        rejection = read_own(note, Rejection)

        raise BadInput(rejection.reason, code=rejection.code)

    try:
        return read_manifest(folder)
    except FileNotFoundError:
        return None


def fresh_plan(context: Context, job: Job, folder: Path) -> Manifest:
    """Make request files of the original, and the manifest last."""
    claim = read_own(folder / "claim.json", Claim)

    if claim.refused is not None:
        raise BadInput(claim.refused, code="name_too_long")

    profile = profile_of(context.settings, job, folder)

    if profile is None or job.provider is None:
        raise BadInput(_unknown_profile(job, context.settings), code="unknown_profile")

    limits = context.account(job.provider, job.base_url).settings

    return intake.plan(
        original=folder / "original",
        source=job.shown,
        job=job.id,
        profile=profile,
        limits=intake.Limits(
            max_requests=limits.max_requests,
            max_bytes=limits.max_bytes,
            max_inputs=limits.max_inputs,
        ),
        give_up_at=job.claimed_at + context.settings.retry.max_age,
        folder=folder,
    )


def profile_of(settings: Settings, job: Job, folder: Path) -> ProfileSettings | None:
    """Return the profile of a job as it is configured today, None if it is unknown.

    Its sidecar, if there is one, is laid over it. Raises `BadInput` if that cannot be followed.
    """
    sidecar = folder / SIDECAR

    try:
        return profile_for(
            settings,
            job.profile,
            sidecar if sidecar.exists() else None,
            f"{job.shown}{SIDECAR_SUFFIX}",
        )
    except ConfigError as error:
        raise BadInput(str(error), code="bad_sidecar") from error


def _unknown_profile(job: Job, settings: Settings) -> str:
    known = ", ".join(sorted(settings.profiles)) or "none"

    return (
        f"there is no profile {job.profile!r}; known profiles: {known}; drop the file into the "
        f"inbox folder of one of them, or add [profiles.{job.profile}] to the configuration"
    )


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_rejection(folder: Path, job: Job, error: BadInput) -> None:
    """Keep the reason beside the original, unless intake has written a fuller one."""
    note = folder / "rejection.json"

    if not note.exists():
        rejection = Rejection(file=job.shown, code=error.code, reason=error.reason)
        write_durably(note, msgspec.json.format(msgspec.json.encode(rejection)))


def batch_row(
    job: Job, planned: PlannedBatch, manifest: Manifest, parent: BatchId | None, now: float
) -> Batch:
    """Return the row of a batch whose request file is on disk."""
    assert job.provider is not None  # noqa: S101 - a job without one is rejected by its plan
    assert job.base_url is not None  # noqa: S101 - as above

    return Batch(
        id=planned.id,
        job=job.id,
        parent=parent,
        provider=job.provider,
        base_url=job.base_url,
        endpoint=planned.endpoint,
        model=planned.model,
        due_at=now + planned.delay_s,
        priority=job.priority,
        requests=planned.requests,
        size_bytes=planned.size_bytes,
        sha256=planned.sha256,
        attempt=planned.attempt,
        waits=planned.waits,
        reuploads=planned.reuploads,
        halvings=planned.halvings,
        give_up_at=manifest.give_up_at,
        input_file=planned.input_file,
    )
