"""The pipeline, top to bottom: one function a stage, one side effect a function.

    inbox ──▶ JOB claimed ─plan─▶ planned … settled ─deliver─▶ delivered ─tidy─▶ done
                        └▶ unusable ─reject─▶ rejected

    BATCH planned ─upload─▶ uploaded ─intend─▶ creating ─create─▶ created ─poll─▶ ended
              ▲                                   ▲   ▼ no clear answer             │ download
              │                                unclear ─look_up─▶ created           ▼
              └─────────────── successors ◀─settle── closed ◀─settle─────────── downloaded

Every stage may be run again after a crash at any line of it: what it leaves behind is either
invisible until a rename, or found and adopted the next time. A stage changes no row; it returns an
outcome, and `policy.decide` says what that means. It raises `ProviderError` and `OSError`
(environment) for what should be tried again later, and `Bug`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import msgspec
import structlog

from promptspool import collect, delivery, intake
from promptspool.errors import (
    BadInput,
    Blocked,
    Bug,
    NotFound,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
    Unsent,
)
from promptspool.model import (
    Batch,
    BatchId,
    BatchStatus,
    Job,
    JobStatus,
    ProviderState,
    ProviderStatus,
)
from promptspool.outcomes import (
    Created,
    Doubtful,
    Downloaded,
    Failed,
    Gone,
    Intended,
    Missed,
    NeverCreated,
    NotListed,
    Planned,
    Polled,
    Recalled,
    Rejected,
    Settled,
    Tidied,
    Trouble,
    Turned,
    Unclear,
    Unusable,
    Uploaded,
)
from promptspool.provider.base import BATCH_KEY, SHA256_KEY, SPOOL_KEY, Submission
from promptspool.provider.listing import sweep
from promptspool.spool import remove_folder, write_durably
from promptspool.wire import BatchFault, Claim, Manifest, PlannedBatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from promptspool.context import Account, Context
    from promptspool.model import RemoteBatch, Status
    from promptspool.outcomes import Outcome
    from promptspool.settings import Settings

FEW = 4
"""So many due batches are asked for one by one; more are read off the list."""

ASKED_A_SWEEP = 50
"""So many batches that a sweep did not show are asked for by id before the next one."""

TRIES_FOR_A_FILE = 12
"""A file that the provider says it does not have is asked for so often before that is believed."""

TRIES_TO_TIDY = 12
"""Remote files that cannot be deleted are left to the provider's own retention after that."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


# Jobs, first half: from a dropped file to request files.


async def plan(context: Context, job: Job) -> Outcome:
    """Make request files of a claimed file; a finished plan is adopted as it is."""
    folder = context.spool.folder(job.id)
    now = context.clock.now()

    try:
        manifest = await anyio.to_thread.run_sync(_finished_plan, folder)

        if manifest is None:
            await _check_content(context, job, folder)
            manifest = await anyio.to_thread.run_sync(partial(_fresh_plan, context, job, folder))
    except BadInput as error:
        await anyio.to_thread.run_sync(_note_rejection, folder, job, error)

        return Unusable(reason=error.reason)

    rows = tuple(_batch_row(job, planned, manifest, None, now) for planned in manifest.batches)

    return Planned(batches=rows, requests=manifest.rows, sha256=manifest.sha256)


def _finished_plan(folder: Path) -> Manifest | None:
    """Return the plan that is there; raises `BadInput` if it came to a rejection."""
    note = folder / "rejection.json"

    if note.exists():
        raise BadInput(msgspec.json.decode(note.read_bytes())["reason"])

    try:
        return delivery.read_manifest(folder)
    except FileNotFoundError:
        return None


def _fresh_plan(context: Context, job: Job, folder: Path) -> Manifest:
    claim = msgspec.json.decode((folder / "claim.json").read_bytes(), type=Claim)

    if claim.refused is not None:
        raise BadInput(claim.refused, code="name_too_long")

    profile = context.settings.profiles.get(job.profile)

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


def _unknown_profile(job: Job, settings: Settings) -> str:
    known = ", ".join(sorted(settings.profiles)) or "none"

    return (
        f"there is no profile {job.profile!r}; known profiles: {known}; drop the file into the "
        f"inbox folder of one of them, or add [profiles.{job.profile}] to the configuration"
    )


async def _check_content(context: Context, job: Job, folder: Path) -> None:
    """Say when the same content was dropped before, or refuse it where the profile says so."""
    sha256 = await anyio.to_thread.run_sync(_sha256, folder / "original")
    earlier = await context.store.job_with_content(sha256, other_than=job.id)

    if earlier is None:
        return

    profile = context.settings.profiles.get(job.profile)
    _log.warning("job.repeated", earlier_job=earlier.id, earlier_file=earlier.shown)

    if profile is not None and profile.on_same_content == "skip":
        message = f"the same content was dropped before, as {earlier.shown} (job {earlier.id})"
        raise BadInput(message, code="same_content")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note_rejection(folder: Path, job: Job, error: BadInput) -> None:
    """Keep the reason beside the original, unless intake has written a fuller one."""
    note = folder / "rejection.json"

    if not note.exists():
        reason = {"file": job.shown, "code": error.code, "reason": error.reason}
        write_durably(note, json.dumps(reason, indent=2).encode() + b"\n")


def _batch_row(
    job: Job, planned: PlannedBatch, manifest: Manifest, parent: BatchId | None, now: float
) -> Batch:
    assert job.provider is not None  # noqa: S101 - a job without one is rejected by its plan

    return Batch(
        id=planned.id,
        job=job.id,
        parent=parent,
        provider=job.provider,
        endpoint=planned.endpoint,
        model=planned.model,
        due_at=now + planned.delay_s,
        requests=planned.requests,
        size_bytes=planned.size_bytes,
        sha256=planned.sha256,
        attempt=planned.attempt,
        waits=planned.waits,
        halvings=planned.halvings,
        give_up_at=manifest.give_up_at,
        input_file=planned.input_file,
    )


async def reject(context: Context, job: Job) -> Outcome:
    """Move an unusable original to `rejected/`, with the reason beside it."""
    taken = await _taken(context, job)
    await anyio.to_thread.run_sync(partial(delivery.reject, context.spool, job, taken=taken))

    return Rejected()


# Providers: what earlier processes left there.


async def recall(context: Context, state: ProviderState) -> Outcome:
    """Read the list of batches, and of uploads, back to the oldest job that is still alive."""
    account = context.account(state.id)
    jobs = [job for job in await context.store.live_jobs() if job.provider == state.id]

    if not jobs:
        return Recalled(found=0)

    read = await sweep(
        account.provider, back_to=min(job.claimed_at for job in jobs), now=context.clock.now()
    )
    account.batches.update(_ours(context, read.batches))

    if account.provider.dialect.uploads:
        await _recall_uploads(context, account)

    return Recalled(found=len(account.batches))


def _ours(context: Context, batches: Sequence[RemoteBatch]) -> dict[str, RemoteBatch]:
    """Return those of *batches* that this spool created, by our batch id."""
    return {
        batch.metadata[BATCH_KEY]: batch
        for batch in batches
        if batch.metadata.get(SPOOL_KEY) == context.spool_id and BATCH_KEY in batch.metadata
    }


async def _recall_uploads(context: Context, account: Account) -> None:
    files = await account.provider.files()
    prefix = _upload_prefix(context)
    account.uploads = {file.name: file for file in files if file.name.startswith(prefix)}


def _upload_prefix(context: Context) -> str:
    return f"promptspool-{context.spool_id}-"


# Batches: from a request file to answers.


async def upload(context: Context, batch: Batch) -> Outcome:
    """Send the request file, unless it, or the whole batch, is at the provider already."""
    account = await _account_of(context, batch)
    known = account.batches.get(batch.id)

    if known is not None:
        return _found(batch, known)

    if context.clock.now() >= batch.give_up_at:
        return _too_old()

    if batch.input_file is not None or not account.provider.dialect.uploads:
        return Uploaded(file=batch.input_file)

    name = f"{_upload_prefix(context)}{batch.id}-{batch.sha256[:12]}.jsonl"

    if batch.failures > 0:
        await _recall_uploads(context, account)  # the answer to the last try may have been lost

    there = account.uploads.get(name)

    if there is not None and there.size_bytes in (batch.size_bytes, None):
        return Uploaded(file=there.id)

    return await _sent(context, account, batch, name)


async def _sent(context: Context, account: Account, batch: Batch, name: str) -> Outcome:
    path = context.spool.requests_file(batch.job, batch.id)

    try:
        return Uploaded(file=(await account.provider.upload(path, name)).id)
    except NotFound as error:
        message = f"{account.settings.base_url} takes no files: {error}; check base_url"
        raise Blocked(message, status=error.status) from error
    except Refused as error:
        code = "too_large" if error.status == 413 else error.code  # noqa: PLR2004 - HTTP
        return _turned(code, error.message)


async def intend(context: Context, batch: Batch) -> Outcome:
    """Do nothing: the intent to create is recorded by the transition itself."""
    del context, batch

    return Intended()


async def create(context: Context, batch: Batch) -> Outcome:
    """Ask for the batch, once. It costs money, so an unclear answer is never asked again here."""
    account = await _account_of(context, batch)
    known = account.batches.get(batch.id)

    if known is not None:
        return _found(batch, known)

    if context.clock.now() >= batch.give_up_at:
        return _too_old()

    submission = Submission(
        batch=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        completion_window=account.settings.completion_window,
        requests_file=context.spool.requests_file(batch.job, batch.id),
        input_file=batch.input_file,
        metadata={SPOOL_KEY: context.spool_id, BATCH_KEY: batch.id, SHA256_KEY: batch.sha256},
    )

    try:
        return Created(remote=await account.provider.create(submission), found=False)
    except (Unsent, Throttled, Blocked):
        raise
    except (Unavailable, OSError) as error:
        return Unclear(reason=str(error))
    except Refused as error:
        return _declined(account, error)


def _declined(account: Account, error: Refused) -> Outcome:
    """Tell a missing input file and a wrong address from a batch that is not wanted."""
    if is_about_a_file(error):
        return Gone(reason=error.message)

    if isinstance(error, NotFound):
        message = f"{account.settings.base_url} knows no batches: {error}; check base_url"
        raise Blocked(message, status=error.status) from error

    return _turned(error.code, error.message)


def is_about_a_file(error: Refused) -> bool:
    """Tell whether a create was declined because its input file is not there (yet) (F18)."""
    words = f"{error.code} {error.message}".lower()

    return "file" in words and any(
        phrase in words for phrase in ("not found", "not_found", "no such", "does not exist")
    )


async def look_up(context: Context, batches: Sequence[Batch]) -> list[Outcome | None]:
    """Look for batches whose create went unanswered; all of one provider at once."""
    account = await _account_of(context, batches[0])
    asked = [batch.intended_at for batch in batches if batch.unclear_at is not None]
    known = dict(account.batches)

    if asked:
        back_to = min(at or 0.0 for at in asked)
        read = await sweep(account.provider, back_to=back_to, now=context.clock.now())
        known |= _ours(context, read.batches)

    return [_looked_up(batch, known.get(batch.id)) for batch in batches]


def _looked_up(batch: Batch, remote: RemoteBatch | None) -> Outcome:
    if remote is not None:
        return _found(batch, remote)

    return NeverCreated() if batch.unclear_at is None else NotListed()


def _found(batch: Batch, remote: RemoteBatch) -> Outcome:
    """Adopt a batch of ours; one that holds other bytes is a fault to show, never to repeat."""
    if remote.metadata.get(SHA256_KEY) != batch.sha256:
        message = f"{remote.id} at the provider is {batch.id} but holds other requests"
        raise Bug(message)

    return Created(remote=remote, found=True)


async def poll(context: Context, batches: Sequence[Batch]) -> list[Outcome | None]:
    """Ask how batches are doing: few of them one by one, many by reading the list.

    Given all running batches of a provider, due or not: a list answers every younger one for free.
    """
    account = context.account(batches[0].provider)
    now = context.clock.now()
    due = [batch for batch in batches if batch.due_at is not None and batch.due_at <= now]
    seen: dict[str, RemoteBatch] = {}

    if len(due) > FEW:
        seen = await _swept(account, batches, due, now)

    outcomes: dict[BatchId, Outcome] = {
        batch.id: Polled(remote=seen[batch.remote_id])
        for batch in batches
        if batch.remote_id in seen
        and (now < batch.give_up_at or seen[batch.remote_id].status.is_terminal)
    }
    unseen = [batch for batch in due if batch.id not in outcomes]

    for batch in unseen[:ASKED_A_SWEEP]:
        try:
            outcomes[batch.id] = await _asked(context, account, batch)
        except ProviderError as error:
            outcomes[batch.id] = failure(error)

            if not isinstance(error, Refused):
                break

    return [outcomes.get(batch.id) for batch in batches]


async def _swept(
    account: Account, batches: Sequence[Batch], due: Sequence[Batch], now: float
) -> dict[str, RemoteBatch]:
    """Read the list as far as the oldest due batch, within a budget of pages."""
    budget = len(batches) // 50 + 3
    read = await sweep(
        account.provider,
        back_to=min(batch.created_at or 0.0 for batch in due),
        now=now,
        budget=budget,
        wanted=frozenset(batch.remote_id for batch in due if batch.remote_id),
    )
    _log.debug("poll.swept", provider=account.provider.name, due=len(due), pages=read.pages)

    return {batch.id: batch for batch in read.batches}


async def _asked(context: Context, account: Account, batch: Batch) -> Outcome:
    assert batch.remote_id is not None  # noqa: S101 - only created batches are polled

    try:
        remote = await account.provider.retrieve(batch.remote_id)
    except NotFound:
        return await _missed(context, account, batch)

    is_overdue = context.clock.now() >= batch.give_up_at and not remote.status.is_terminal

    if is_overdue and account.provider.dialect.cancels:
        try:
            remote = await account.provider.cancel(batch.remote_id)
        except Refused as error:
            _log.warning("batch.uncancelled", remote_id=batch.remote_id, reason=error.message)

    return Polled(remote=remote)


async def _missed(context: Context, account: Account, batch: Batch) -> Outcome:
    """Tell a batch that is gone from an account that is not ours.

    A wrong key or address answers 404 for everything. The account is believed to be the right one
    only if it lists a batch of this spool, or knows the batch's input file.
    """
    now = context.clock.now()
    back_to = batch.created_at or 0.0
    read = await sweep(account.provider, back_to=back_to, now=now, budget=20)
    listed = next((other for other in read.batches if other.id == batch.remote_id), None)

    if listed is not None:
        return Polled(remote=listed)

    if _ours(context, read.batches):
        return Missed()

    try:
        await account.provider.file(batch.input_file or "")
    except NotFound as error:
        message = (
            f"{account.settings.base_url} knows neither {batch.remote_id} nor its input file; is "
            f"the key of another project, or base_url another server?"
        )
        raise Blocked(message, code="other_account") from error

    return Missed()


async def download(context: Context, batch: Batch) -> Outcome:
    """Fetch the output and the error file; asked again for a second look, the batch first."""
    account = await _account_of(context, batch)
    remote = None
    files = (batch.output_file, batch.error_file)

    if batch.looks > 0 and batch.remote_id is not None:
        remote = await account.provider.retrieve(batch.remote_id)
        files = (remote.output_file or files[0], remote.error_file or files[1])

    folder = context.spool.folder(batch.job)

    for file, kind in zip(files, ("output", "error"), strict=True):
        if file is not None:
            await _fetched(context, account, batch, file, folder / f"{batch.id}.{kind}.jsonl")

    return Downloaded(remote=remote)


async def _fetched(context: Context, account: Account, batch: Batch, file: str, path: Path) -> None:
    """Download one file; one that cannot be had for very long is done without.

    Its requests are then found missing and asked again, which may pay for them twice.
    """
    try:
        await account.provider.download(file, path)
    except NotFound as error:
        if batch.failures < TRIES_FOR_A_FILE:
            raise Unavailable(error.message, status=error.status) from error

        _log.warning("batch.file_missing", remote_id=batch.remote_id, file=file)
    except Unavailable as error:
        if context.clock.now() < batch.give_up_at or batch.failures < TRIES_FOR_A_FILE:
            raise

        _log.warning(
            "batch.file_missing", remote_id=batch.remote_id, file=file, reason=error.message
        )


async def settle(context: Context, batch: Batch) -> Outcome:
    """Find out which requests have a final answer, and put the rest into successors."""
    folder = context.spool.folder(batch.job)
    job = await context.store.job(batch.job)
    assert job is not None  # noqa: S101 - a foreign key holds it
    manifest = await anyio.to_thread.run_sync(delivery.read_manifest, folder)
    now = context.clock.now()
    settled = await anyio.to_thread.run_sync(
        partial(
            collect.settle,
            folder=folder,
            batch=batch,
            max_attempts=manifest.max_attempts,
            request_backoff_s=context.settings.retry.request_backoff,
            now=now,
        )
    )

    if isinstance(settled, Doubtful):
        return settled

    complaints = await anyio.to_thread.run_sync(partial(_complaints, folder, batch))

    return Settled(
        successors=tuple(
            _batch_row(job, planned, manifest, batch.id, now) for planned in settled.successors
        ),
        answered=settled.answered,
        failed=settled.failed,
        complaints=tuple(complaints),
    )


def _complaints(folder: Path, batch: Batch) -> list[dict[str, object]]:
    """Return what the provider said against the batch, with the lines of the dropped file."""
    if batch.errors is None:
        return []

    faults = msgspec.json.decode(batch.errors, type=list[BatchFault])[:20]
    lines = [fault.line for fault in faults if fault.line is not None]
    user_lines = collect.user_lines(folder=folder, batch=batch.id, lines=lines)

    return [
        {
            "code": fault.code,
            "message": fault.message,
            "line": None if fault.line is None else user_lines.get(fault.line),
        }
        for fault in faults
    ]


# Jobs, second half: from answers to the outbox.


async def deliver(context: Context, job: Job) -> Outcome:
    """Put results, errors and summary into `outbox/`, and then the original into `done/`."""
    batches = await context.store.batches_of(job.id)
    taken = await _taken(context, job)

    return await anyio.to_thread.run_sync(
        partial(
            delivery.deliver,
            context.spool,
            job,
            batches=batches,
            taken=taken,
            now=context.clock.now(),
        )
    )


async def tidy(context: Context, job: Job) -> Outcome:
    """Delete what this job left at the provider, then its working folder."""
    batches = await context.store.batches_of(job.id)

    if batches and job.provider is not None and job.failures < TRIES_TO_TIDY:
        account = context.account(job.provider, job.base_url)

        if account.settings.cleanup and account.provider.dialect.deletes:
            await _delete_files(account, batches)

    await anyio.to_thread.run_sync(remove_folder, context.spool.folder(job.id))

    return Tidied()


async def _delete_files(account: Account, batches: Sequence[Batch]) -> None:
    files = {
        file
        for batch in batches
        for file in (batch.input_file, batch.output_file, batch.error_file)
        if file is not None
    }

    for file in sorted(files):
        try:
            await account.provider.delete_file(file)
        except Refused as error:
            _log.warning("file.undeleted", file=file, reason=error.message)


# What stages have in common.


async def _taken(context: Context, job: Job) -> set[bytes]:
    """Return the stems that other jobs have reserved."""
    return {other.stem for other in await context.store.live_jobs() if other.id != job.id}


async def _account_of(context: Context, batch: Batch) -> Account:
    job = await context.store.job(batch.job)

    return context.account(batch.provider, None if job is None else job.base_url)


def _turned(code: str | None, message: str) -> Turned:
    return Turned(faults=json.dumps([{"code": code, "message": message}]))


def _too_old() -> Turned:
    return _turned(
        "max_age_exceeded", "the job grew older than retry.max_age before this could be submitted"
    )


def failure(error: ProviderError) -> Failed:
    """Say whose trouble an exception of a provider is."""
    match error:
        case Throttled():
            trouble = Trouble.THROTTLED
        case Blocked():
            trouble = Trouble.BLOCKED
        case Unavailable():
            trouble = Trouble.OUTAGE
        case _:
            trouble = Trouble.ITEM

    return Failed(reason=error.message, trouble=trouble, retry_after_s=error.retry_after_s)


# Which status is handled by which stage, in which lane.


class Lane(StrEnum):
    """Work that competes for the same scarce thing, and is bounded by it."""

    DISK = "disk"
    TRANSFER = "transfer"
    CONTROL = "control"
    POLL = "poll"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How the rows of one status are moved on."""

    run: Callable[[Context, Sequence[Any]], Awaitable[list[Outcome | None]]]
    """Returns an outcome for each row, None where it has nothing to say."""
    name: str
    lane: Lane
    group: int = 1
    """How many rows one run may take."""
    needs_recall: bool = False
    """Waits until it is known what earlier processes have created."""


_AnyRow = TypeVar("_AnyRow", Job, Batch, ProviderState)


def _single(
    run: Callable[[Context, _AnyRow], Awaitable[Outcome]], lane: Lane, *, needs_recall: bool = False
) -> Stage:
    async def run_one(context: Context, rows: Sequence[_AnyRow]) -> list[Outcome | None]:
        return [await run(context, rows[0])]

    name = getattr(run, "__name__", "stage")

    return Stage(run=run_one, name=name, lane=lane, needs_recall=needs_recall)


EVERY = 1_000_000
"""The group size of a stage that takes all rows of its status at once."""

STAGES: dict[Status, Stage] = {
    JobStatus.DELIVERED: _single(tidy, Lane.CONTROL),
    JobStatus.SETTLED: _single(deliver, Lane.DISK),
    BatchStatus.DOWNLOADED: _single(settle, Lane.DISK),
    BatchStatus.ENDED: _single(download, Lane.TRANSFER),
    BatchStatus.CREATED: Stage(run=poll, name="poll", lane=Lane.POLL, group=EVERY),
    BatchStatus.UNCLEAR: Stage(
        run=look_up, name="look_up", lane=Lane.CONTROL, group=100, needs_recall=True
    ),
    BatchStatus.CREATING: _single(create, Lane.CONTROL, needs_recall=True),
    BatchStatus.UPLOADED: _single(intend, Lane.CONTROL, needs_recall=True),
    BatchStatus.PLANNED: _single(upload, Lane.TRANSFER, needs_recall=True),
    ProviderStatus.RECALLING: _single(recall, Lane.CONTROL),
    JobStatus.UNUSABLE: _single(reject, Lane.DISK),
    JobStatus.CLAIMED: _single(plan, Lane.DISK),
}
"""The stage of every status that can be due; the furthest along come first in their lane."""
