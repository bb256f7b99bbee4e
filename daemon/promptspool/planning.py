"""The first step of a job, on disk: from a claimed file to its manifest and its batches' rows.

All of it blocks: call it in a worker thread. Raises `BadInput` (bad data) for a file of which no
request can be made, and `ProviderError` and `OSError` (environment).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from promptspool import intake, worker
from promptspool.collect.judge import Judge
from promptspool.collect.verdict import Verdict
from promptspool.errors import BadInput, ConfigError
from promptspool.intake.request import BYTES_A_TOKEN
from promptspool.model import Batch, BatchStatus, RemoteStatus
from promptspool.pricing import Tokens, total
from promptspool.settings import profile_for
from promptspool.spool import SIDECAR, SIDECAR_SUFFIX, read_own, write_durably
from promptspool.wire import KEPT, Claim, Manifest, Rejection, RejectionHead, ResultLine
from promptspool.worker import WorkerDied

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.context import Context
    from promptspool.model import Job, JobId
    from promptspool.pricing import Cost, Prices
    from promptspool.settings import ProfileSettings, ProviderSettings, Settings
    from promptspool.wire import PlannedBatch

OLD_ANSWER_TOKENS = 200
"""Assumed of each answer in a plan that does not say it."""

TRIES_TO_READ = 3
"""A file whose reader dies is tried so often: the machine may have been short of memory."""


def read_manifest(folder: Path) -> Manifest:
    """Return the plan in a working folder; raises `FileNotFoundError` before it is finished."""
    return read_own(folder / "manifest.json", Manifest)


def finished_plan(folder: Path) -> Manifest | None:
    """Return the plan that is there; raises `BadInput` if it came to a rejection."""
    note = folder / "rejection.json"

    if note.exists():
        rejection = read_own(note, RejectionHead)

        raise BadInput(rejection.reason, code=rejection.code)

    try:
        return read_manifest(folder)
    except FileNotFoundError:
        return None


def fresh_plan(context: Context, job: Job, folder: Path, *, digest: str) -> Manifest:
    """Make request files of the original, whose digest is *digest*, and the manifest last."""
    settings = context.settings
    claim = read_own(folder / "claim.json", Claim)

    if claim.refused is not None:
        raise BadInput(claim.refused, code="name_too_long")

    profile = profile_of(settings, job, folder)

    if profile is None or job.provider is None:
        raise BadInput(unknown_profile(job.profile, settings), code="unknown_profile")

    if (folder / KEPT).exists():
        _check_kept(folder / KEPT, profile)

    found = dropped(
        settings,
        context.account(job.provider, job.base_url).settings,
        profile,
        original=folder / "original",
        source=job.shown,
        digest=digest,
        job=job.id,
        give_up_at=job.claimed_at + settings.retry.max_age,
    )

    try:
        return planned(found, folder)
    except WorkerDied as error:
        if job.failures < TRIES_TO_READ:
            raise OSError(str(error)) from error  # tried again like anything of the machine's

        reason = f"reading it fails every time: {error}; save it as .csv or .jsonl, or in parts"
        raise BadInput(reason, code="unreadable") from error


def _check_kept(path: Path, profile: ProfileSettings) -> None:
    """Hold that each answer of an earlier job would be delivered again as it was.

    Raises `BadInput` where *profile* has another schema by now: it would not fit, or get another
    value.
    """
    judge = Judge(profile.response_schema)
    decoder = msgspec.json.Decoder(ResultLine)

    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            try:
                answer = decoder.decode(line)
            except msgspec.DecodeError:
                continue  # which the plan complains of

            found = judge.judgement(answer)

            if found.verdict is not Verdict.OK or (found.parsed or b"") != bytes(answer.parsed):
                reason = (
                    f"the answer to {answer.custom_id!r} would be delivered otherwise than before, "
                    f"since the response_schema was changed; set it back, or drop the file again"
                )
                raise BadInput(reason, code="other_schema")


def dropped(  # noqa: PLR0913 (one keyword for each thing that decides what is submitted)
    settings: Settings,
    provider: ProviderSettings,
    profile: ProfileSettings,
    *,
    original: Path,
    source: str,
    digest: str,
    job: JobId,
    give_up_at: float,
) -> intake.Dropped:
    """Return a dropped file as intake wants it, with the limits of *provider*."""
    return intake.Dropped(
        original=original,
        source=source,
        digest=digest,
        job=job,
        profile=profile,
        limits=intake.Limits(
            max_requests=provider.max_requests,
            max_bytes=provider.max_bytes,
            max_inputs=provider.max_inputs,
            max_tokens=provider.max_tokens_enqueued,
        ),
        caps=intake.Caps(
            max_expanded=settings.intake.max_expanded, max_ratio=settings.intake.max_ratio
        ),
        give_up_at=give_up_at,
    )


def planned(found: intake.Dropped, folder: Path) -> Manifest:
    """Plan in this process, or in one of its own where that takes a large library.

    Raises `WorkerDied` (environment) if that process comes to an end without an answer.
    """
    if intake.is_heavy(found.original, found.source):
        return worker.run(intake.plan, found, folder)

    return intake.plan(found, folder)


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


def unknown_profile(name: str, settings: Settings) -> str:
    """Return what is said of a file whose folder is no profile's."""
    known = ", ".join(sorted(settings.profiles)) or "none"

    return (
        f"there is no profile {name!r}; known profiles: {known}; drop the file into the "
        f"inbox folder of one of them, or add [profiles.{name}] to the configuration"
    )


def note_rejection(folder: Path, job: Job, error: BadInput) -> None:
    """Keep the reason beside the original, unless intake has written a fuller one."""
    note = folder / "rejection.json"

    if not note.exists():
        rejection = Rejection(file=job.shown, code=error.code, reason=error.reason)
        write_durably(note, msgspec.json.format(msgspec.json.encode(rejection)))


def batch_row(
    job: Job, planned: PlannedBatch, manifest: Manifest, parent: Batch | None, now: float
) -> Batch:
    """Return the row of a batch whose request file is on disk."""
    assert job.provider is not None  # noqa: S101 - a job without one is rejected by its plan
    assert job.base_url is not None  # noqa: S101 - as above

    return Batch(
        id=planned.id,
        job=job.id,
        parent=None if parent is None else parent.id,
        provider=job.provider,
        base_url=job.base_url,
        endpoint=planned.endpoint,
        model=planned.model,
        due_at=now + planned.delay_s,
        priority=job.priority,
        requests=planned.requests,
        size_bytes=planned.size_bytes,
        digest=planned.digest,
        attempt=planned.attempt,
        waits=planned.waits,
        reuploads=planned.reuploads,
        halvings=planned.halvings,
        estimated_input=planned.estimated_input,
        estimated_output=planned.estimated_output,
        give_up_at=manifest.give_up_at if parent is None else parent.give_up_at,
        input_file=planned.input_file,
    )


def kept_row(job: Job, manifest: Manifest, now: float) -> Batch | None:
    """Return the row of what an earlier job has answered: closed, and paid for by that.

    None for a job that is no retry, or of which nothing was answered before.
    """
    if manifest.kept is None:
        return None

    return replace(
        batch_row(job, manifest.kept, manifest, None, now),
        status=BatchStatus.CLOSED,
        due_at=None,
        remote_status=RemoteStatus.COMPLETED,
        answered=manifest.kept.requests,
        cost_usd=0.0,
        standard_usd=0.0,
    )


def priced(
    context: Context,
    job: Job,
    batches: Sequence[PlannedBatch],
    manifest: Manifest,
    *,
    parent: Batch | None = None,
) -> tuple[list[Batch], Cost | None]:
    """Return the rows of planned *batches*, and what all of them may cost; None if not known.

    Not for the event loop: the first question for a price takes a third of a second.
    """
    now = context.clock.now()
    rows = [batch_row(job, planned, manifest, parent, now) for planned in batches]
    costs = estimates(context.prices, rows)
    known = [
        replace(row, estimated_usd=None if cost is None else cost.batch_usd)
        for row, cost in zip(rows, costs, strict=True)
    ]

    return known, total(costs)


def estimates(prices: Prices, rows: Sequence[Batch]) -> list[Cost | None]:
    """Return what each of *rows* may cost, None where that is not known. Not for the event loop.

    A batch that was planned by a version without estimates is judged by its size.
    """
    return [
        prices.cost(
            row.model,
            Tokens(
                input=row.estimated_input or row.size_bytes // BYTES_A_TOKEN,
                output=row.estimated_output
                or (0 if row.estimated_input else OLD_ANSWER_TOKENS) * row.requests,
            ),
            base_url=row.base_url,
        )
        for row in rows
    ]
