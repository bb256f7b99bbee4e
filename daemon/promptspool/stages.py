"""The pipeline, top to bottom: one function a stage, one side effect a function.

    inbox ──▶ JOB claimed ─plan─▶ planned … settled ─deliver─▶ delivered ─tidy─▶ done
                        │           │ ▲ release
                        │           ▼ │
                        │          held: it would cost too much
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

import json
import math
import os
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio.lowlevel
import anyio.to_thread
import structlog
from msgspec.structs import replace

from promptspool import collect, delivery, enquiry, gate, notices, planning
from promptspool.digest import digest_of, earlier_digest_of
from promptspool.errors import (
    BadInput,
    Blocked,
    Bug,
    NotFound,
    ProviderError,
    Refused,
    SpoolError,
    Throttled,
    Unavailable,
    Unsent,
)
from promptspool.intake.formats import SUFFIXES
from promptspool.model import (
    Batch,
    BatchId,
    BatchStatus,
    Job,
    JobStatus,
    Notice,
    NoticeStatus,
    ProviderState,
    ProviderStatus,
)
from promptspool.outcomes import (
    Created,
    Doubtful,
    Downloaded,
    Dropped,
    Failed,
    Gone,
    Held,
    NeverCreated,
    NotListed,
    Planned,
    Polled,
    Recalled,
    Rejected,
    Released,
    Sent,
    Settled,
    Tidied,
    Trouble,
    Turned,
    Unclear,
    Unusable,
    Uploaded,
)
from promptspool.policy import WITHDRAWN
from promptspool.pricing import is_too_small, total
from promptspool.provider.base import BATCH_KEY, DIGEST_KEY, SPOOL_KEY, Submission
from promptspool.provider.listing import sweep
from promptspool.spool import keep_longer, remove_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from promptspool.context import Account, Context
    from promptspool.model import RemoteBatch, Row, Status
    from promptspool.outcomes import Outcome
    from promptspool.pricing import Cost
    from promptspool.provider.base import RemoteFile
    from promptspool.wire import Manifest

FEW = 4
"""So many due batches are asked for one by one; more are read off the list."""

A_SLICE = 1_000
"""So many batches are matched with what was read at a time, which takes about 5 ms."""

ASKED_A_SWEEP = 50
"""So many batches that a sweep did not show are asked for by id before the next one."""

TRIES_FOR_A_FILE = 12
"""A file that the provider says it does not have is asked for so often before that is believed."""

SMALL_BYTES = 262_144
"""What is not larger is read in about 20 ms."""

CANCELLED = "cancelled"
"""The code of what a person wanted no more of."""

TRIES_TO_TIDY = 12
"""Remote files that cannot be deleted are left to the provider's own retention after that."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


# Jobs, first half: from a dropped file to request files.


async def plan(context: Context, job: Job) -> Outcome:
    """Make request files of a claimed file; a finished plan is adopted as it is."""
    folder = context.spool.folder(job.id)

    try:
        found = await anyio.to_thread.run_sync(_begun, context, job, folder)

        if isinstance(found, str):
            if job.retry_of is None:  # a retry has the content of the job before it
                await _check_content(context, job, folder, found)

            found = await anyio.to_thread.run_sync(_made, context, job, folder, found)
    except BadInput as error:
        await anyio.to_thread.run_sync(planning.note_rejection, folder, job, error)

        return Unusable(reason=error.reason)

    return _planned(context, job, found)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A finished plan, its rows, and what all of them may cost; None if that is not known."""

    manifest: Manifest
    rows: list[Batch]
    estimate: Cost | None


def _begun(context: Context, job: Job, folder: Path) -> _Plan | str:
    """Return the plan that is there, or the digest of what is to be planned; blocks.

    Raises `BadInput` if it came to a rejection, or is not wanted any more.
    """
    manifest = planning.finished_plan(folder)

    if manifest is not None:
        return _Plan(manifest, *planning.priced(context, job, manifest.batches, manifest))

    _check_wanted(job)

    return digest_of(folder / "original")


def _made(context: Context, job: Job, folder: Path, digest: str) -> _Plan:
    """Make a plan; blocks. Raises `BadInput`."""
    manifest = planning.fresh_plan(context, job, folder, digest=digest)

    return _Plan(manifest, *planning.priced(context, job, manifest.batches, manifest))


def _planned(context: Context, job: Job, plan: _Plan) -> Planned:
    """Return the batches of a plan; held where they may cost too much."""
    manifest, rows, estimate = plan.manifest, plan.rows, plan.estimate
    held = gate.held_at_plan(
        context,
        job,
        {row.model for row in rows},
        None if estimate is None else estimate.batch_usd,
    )

    if job.cancelled_at is not None:  # planned before, by a database that was lost
        held = None
        rows = [replace(row, cancelled_at=job.cancelled_at) for row in rows]
    elif held is not None:
        now = context.clock.now()
        rows = [replace(row, due_at=None, held_at=now, why=held) for row in rows]

    kept = planning.kept_row(job, manifest, context.clock.now())

    return Planned(
        batches=tuple(rows) if kept is None else (kept, *rows),
        requests=manifest.rows,
        digest=manifest.digest,
        format=manifest.format,
        bad_rows=manifest.bad_rows,
        prompt_columns=tuple(manifest.prompt_columns),
        estimated_usd=None if estimate is None else estimate.batch_usd,
        held=held,
        is_small=is_too_small([estimate]),
    )


def _check_wanted(job: Job) -> None:
    if job.cancelled_at is not None:
        raise BadInput(WITHDRAWN, code=CANCELLED)


async def _check_content(context: Context, job: Job, folder: Path, digest: str) -> None:
    """Say when the same content was dropped before, or refuse it where the profile says so."""
    first = context.first_with(digest, job.id)
    earlier = await _earlier(context, job, folder, digest)

    if earlier is None and first != job.id:
        earlier = await context.store.job(first)  # it is being planned at this moment, unless

        if earlier is None or earlier.status in (JobStatus.UNUSABLE, JobStatus.REJECTED):
            context.contents[digest], earlier = job.id, None

    if earlier is None:
        return

    profile = planning.profile_of(context.settings, job, folder)
    _log.warning("job.repeated", earlier_job=earlier.id, earlier_file=earlier.shown)

    if profile is not None and profile.on_same_content == "skip":
        message = f"the same content was dropped before, as {earlier.shown} (job {earlier.id})"
        raise BadInput(message, code="same_content")


async def _earlier(context: Context, job: Job, folder: Path, digest: str) -> Job | None:
    """Return the first job with the content of *job*, also one that an earlier version noted."""
    store = context.store
    earlier = await store.job_with_content(digest, other_than=job.id)

    if earlier is None and await store.is_known_size(job.size_bytes, other_than=job.id):
        noted = await anyio.to_thread.run_sync(earlier_digest_of, folder / "original")
        earlier = await store.job_with_content(noted, other_than=job.id)

    return earlier


async def reject(context: Context, job: Job) -> Outcome:
    """Move an unusable original to `rejected/`, with the reason beside it."""
    if job.cancelled_at is not None:  # by the command itself, which leaves the folder alone
        error = BadInput(WITHDRAWN, code=CANCELLED)
        folder = context.spool.folder(job.id)
        await anyio.to_thread.run_sync(planning.note_rejection, folder, job, error)

    await anyio.to_thread.run_sync(
        partial(delivery.reject, context.spool, job, taken=context.taken)
    )

    return Rejected()


async def release(context: Context, job: Job) -> Outcome:
    """Let a held job try again: the day that it waited for has come, or other limits have."""
    batches = await context.store.batches_of(job.id)
    models = {batch.model for batch in batches}
    estimate = job.estimated_usd

    if estimate is None:  # perhaps a price is known by now
        found = await anyio.to_thread.run_sync(planning.estimates, context.prices, batches)
        whole = total(found)
        estimate = None if whole is None else whole.batch_usd

    reason = gate.held_at_plan(context, job, models, estimate)

    if reason is not None:
        return Held(reason=reason, until=None)

    held = await gate.held_again(context, [one for one in batches if one.held_at is not None])

    return held or Released(by_hand=False)


# Providers: what earlier processes left there.


async def recall(context: Context, state: ProviderState) -> Outcome:
    """Read the list of batches, and of uploads, back to the oldest job that is still alive."""
    account = context.account(state.id)
    jobs = [job for job in await context.store.live_jobs() if job.provider == state.id]

    if not jobs:
        return Recalled(found=0)

    if account.provider.dialect.uploads:
        await enquiry.recall_uploads(context, account)

    read = await sweep(
        account.provider,
        back_to=min(job.claimed_at for job in jobs),
        floor=enquiry.oldest_upload(context, account, jobs),
        now=context.clock.now(),
    )
    ours = enquiry.ours(context, read.batches)
    created = await context.store.created(ours)
    # Nobody will look for those that are known: ten thousand of them would take 10 MB.
    account.batches.update(
        {name: batch for name, batch in ours.items() if created.get(name) != batch.id}
    )
    account.doubted.update(job.id for job in jobs)  # an upload may have been cut off

    return Recalled(found=len(ours))


# Batches: from a request file to answers.


async def upload(context: Context, batch: Batch) -> Outcome:
    """Send the request file, unless it, or the whole batch, is at the provider already."""
    account = context.account(batch.provider, batch.base_url)
    known = account.batches.get(batch.id)

    if known is not None:
        return await enquiry.found(context, batch, known)

    if _is_settled(context, batch):
        return Turned(faults="[]")

    if batch.is_over(context.clock.now()):
        return _over(batch)

    if batch.input_file is not None or not account.provider.dialect.uploads:
        return Uploaded(file=batch.input_file)

    name = enquiry.upload_name(context, batch)

    if batch.failures > 0:  # the answer to the last try may have been lost
        account.doubted.add(batch.job)
        await enquiry.recall_uploads(context, account)

    for there in account.uploads.get(name, ()):
        if there.size_bytes in (batch.size_bytes, None):
            return Uploaded(file=there.id)

    return await _sent(context, account, batch, name)


def _is_settled(context: Context, batch: Batch) -> bool:
    """Tell whether a database that was lost or put back does not know that it is over."""
    return (context.spool.folder(batch.job) / f"{batch.id}.settled.json").exists()


async def _sent(context: Context, account: Account, batch: Batch, name: str) -> Outcome:
    path = context.spool.requests_file(batch.job, batch.id)

    found = await anyio.to_thread.run_sync(partial(digest_of, path, like=batch.digest))

    if found != batch.digest:
        raise SpoolError(f"{path} was changed since it was planned; nothing of it is submitted")

    try:
        file = await account.provider.upload(path, name)

        if file.size_bytes not in (batch.size_bytes, None):
            raise Unavailable(f"an upload was answered with {file.id}, which is another file")

        return Uploaded(file=file.id)
    except NotFound as error:
        message = f"{account.settings.base_url} takes no files: {error}; check base_url"
        raise Blocked(message, status=error.status) from error
    except Refused as error:
        return _turned(error.code, error.message)


async def intend(context: Context, batches: Sequence[Batch]) -> list[Outcome | None]:
    """Do nothing but count, and let pass what may be created now; the rest waits or is held.

    The intent to create is recorded by the transition itself.
    """
    now = context.clock.now()
    outcomes: dict[BatchId, Outcome] = _misaddressed(context, batches, now)
    outcomes |= {batch.id: _over(batch) for batch in batches if batch.is_over(now)}
    waiting = [batch for batch in batches if batch.id not in outcomes]

    if waiting:
        found = await gate.verdicts(context, waiting)
        outcomes |= {batch.id: one for batch, one in zip(waiting, found, strict=True)}

    return [outcomes.get(batch.id) for batch in batches]


async def create(context: Context, batch: Batch) -> Outcome:
    """Ask for the batch, once. It costs money, so an unclear answer is never asked again here."""
    account = context.account(batch.provider, batch.base_url)
    known = account.batches.get(batch.id)

    if known is not None:
        return await enquiry.found(context, batch, known)

    if _is_settled(context, batch):
        return Turned(faults="[]")

    if batch.is_over(context.clock.now()):
        return _over(batch)

    submission = Submission(
        batch=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        completion_window=account.settings.completion_window,
        requests_file=context.spool.requests_file(batch.job, batch.id),
        input_file=batch.input_file,
        metadata={SPOOL_KEY: context.spool_id, BATCH_KEY: batch.id, DIGEST_KEY: batch.digest},
    )

    try:
        remote = await account.provider.create(submission)

        if not enquiry.is_of(batch, remote):
            return Unclear(reason=f"a create was answered with {remote.id}, which is another batch")

        return Created(remote=remote, found=False)
    except (Unsent, Throttled, Blocked):
        raise
    except (Unavailable, OSError) as error:
        return Unclear(reason=str(error))
    except Refused as error:
        return _declined(account, error)


def _declined(account: Account, error: Refused) -> Outcome:
    """Tell a missing input file and a wrong address from a batch that is not wanted."""
    if enquiry.is_about_a_file(error):
        return Gone(reason=error.message)

    if isinstance(error, NotFound) and not enquiry.is_about_a_model(error):
        message = f"{account.settings.base_url} knows no batches: {error}; check base_url"
        raise Blocked(message, status=error.status) from error

    return _turned(error.code, error.message)


async def look_up(context: Context, batches: Sequence[Batch]) -> list[Outcome | None]:
    """Look for batches whose create went unanswered; all of one provider at once.

    What the list does not show was never created only if it is the list of the right account: of
    the one that knows the batch's input file.
    """
    account = context.account(batches[0].provider)
    known = dict(account.batches)
    missing = [batch for batch in batches if batch.id not in known]
    inputs: dict[BatchId, RemoteFile | None] = {}
    is_whole = True

    if missing:
        inputs = await enquiry.inputs(account, missing)
        read = await sweep(
            account.provider,
            back_to=min(batch.intended_at or 0.0 for batch in missing),
            floor=min(
                (file.created_at or 0.0 for file in inputs.values() if file), default=math.inf
            ),
            now=context.clock.now(),
        )
        is_whole = read.complete
        known |= enquiry.ours(context, read.batches)
        known |= await enquiry.nameless(context, missing, read.batches)

    return [
        await _looked_up(context, batch, known.get(batch.id), inputs, is_whole=is_whole)
        for batch in batches
    ]


async def _looked_up(
    context: Context,
    batch: Batch,
    remote: RemoteBatch | None,
    inputs: Mapping[BatchId, RemoteFile | None],
    *,
    is_whole: bool,
) -> Outcome:
    try:
        account = context.account(batch.provider, batch.base_url)

        if remote is not None:
            return await enquiry.found(context, batch, remote)

        if context.clock.now() < batch.give_up_at:  # nothing is bought after that
            enquiry.check_absence(account, batch, inputs[batch.id], is_whole=is_whole)
    except ProviderError as error:
        return enquiry.failure(error)
    except Bug as error:
        return Failed(reason=str(error), trouble=Trouble.BUG)

    return NeverCreated() if batch.unclear_at is None else NotListed()


async def poll(context: Context, batches: Sequence[Batch]) -> list[Outcome | None]:
    """Ask how batches are doing: few of them one by one, many by reading the list.

    Given all running batches of a provider, due or not: a list answers every younger one for free.
    """
    account = context.account(batches[0].provider)
    here = [batch for batch in batches if batch.base_url == account.settings.base_url]
    now = context.clock.now()
    due = [batch for batch in here if batch.due_at is not None and batch.due_at <= now]
    outcomes: dict[BatchId, Outcome] = {}

    if len(due) > FEW:
        seen = await enquiry.swept(account, here, due, now)

        for start in range(0, len(here), A_SLICE):
            outcomes |= {
                batch.id: Polled(remote=remote)
                for batch in here[start : start + A_SLICE]
                if (remote := seen.get(batch.remote_id or "")) is not None
                and enquiry.is_it(batch, remote)
                and (not batch.is_over(now) or remote.status.is_terminal)
            }
            await anyio.lowlevel.checkpoint()

    unseen = [batch for batch in due if batch.id not in outcomes]
    outcomes |= await _asked(context, account, unseen[:ASKED_A_SWEEP])
    outcomes |= _misaddressed(context, batches, now)

    return [outcomes.get(batch.id) for batch in batches]


async def _asked(
    context: Context, account: Account, batches: Sequence[Batch]
) -> dict[BatchId, Outcome]:
    """Ask for each batch by its id; an outage ends the round.

    One batch that seems to be in another account may be an oddity of its own; several mean that
    the account itself is the wrong one.
    """
    outcomes: dict[BatchId, Outcome] = {}
    strangers: list[BatchId] = []

    # What failed before comes last: it must not keep the others from being asked.
    for batch in sorted(batches, key=lambda batch: batch.failures > 0):
        try:
            outcomes[batch.id] = await enquiry.asked(context, account, batch)
        except ProviderError as error:
            outcomes[batch.id] = enquiry.failure(error)

            if error.code == enquiry.OTHER_ACCOUNT:
                strangers.append(batch.id)

                if len(strangers) > 1 and not any(
                    isinstance(outcome, Polled) for outcome in outcomes.values()
                ):
                    return outcomes | dict.fromkeys(strangers, enquiry.strangers(account))
            elif not isinstance(error, Refused):
                break

    return outcomes


def _misaddressed(context: Context, batches: Sequence[Batch], now: float) -> dict[BatchId, Outcome]:
    """Put off the due batches that are at an address which is not the configured one."""
    misaddressed: dict[BatchId, Outcome] = {}

    for batch in batches:
        if batch.due_at is not None and batch.due_at <= now:
            try:
                context.account(batch.provider, batch.base_url)
            except ProviderError as error:
                misaddressed[batch.id] = enquiry.failure(error)

    return misaddressed


async def download(context: Context, batch: Batch) -> Outcome:
    """Fetch the output and the error file; asked again for a second look, the batch first."""
    account = context.account(batch.provider, batch.base_url)
    remote = None
    files = (batch.output_file, batch.error_file)

    if batch.looks > 0 and batch.remote_id is not None:
        remote = await _seen_again(account, batch)

    if remote is not None:
        files = (remote.output_file or files[0], remote.error_file or files[1])

    folder = context.spool.folder(batch.job)

    for file, kind in zip(files, ("output", "error"), strict=True):
        if file is not None:
            await _fetched(context, account, batch, file, folder / f"{batch.id}.{kind}.jsonl")

    return Downloaded(remote=remote)


async def _seen_again(account: Account, batch: Batch) -> RemoteBatch | None:
    """Return what a batch is by now, None if the provider does not know it: its files may do."""
    try:
        remote = await account.provider.retrieve(batch.remote_id or "")
    except NotFound:
        return None

    if not enquiry.is_it(batch, remote):
        raise Unavailable(f"asked for {batch.remote_id}, the provider answers {remote.id}")

    return remote


async def _fetched(context: Context, account: Account, batch: Batch, file: str, path: Path) -> None:
    """Download one file; one that cannot be had for very long is done without.

    Its requests are then found missing and asked again, which may pay for them twice.
    """
    later = path.with_name(path.name + ".later") if batch.looks else path

    try:
        await account.provider.download(file, later)

        if later != path:
            await anyio.to_thread.run_sync(keep_longer, later, path)
    except NotFound:
        if batch.missed < TRIES_FOR_A_FILE:
            raise

        _log.warning("batch.file_missing", remote_id=batch.remote_id, file=file)
    except Unavailable as error:
        if context.clock.now() < batch.give_up_at or batch.failures < TRIES_FOR_A_FILE:
            raise

        _log.warning(
            "batch.file_missing", remote_id=batch.remote_id, file=file, reason=error.message
        )


async def settle(context: Context, batch: Batch) -> Outcome:
    """Find out which requests have a final answer, and put the rest into successors."""
    job = await context.store.job(batch.job)
    assert job is not None  # noqa: S101 - a foreign key holds it
    settled = await anyio.to_thread.run_sync(_settled, context, job, batch)

    if isinstance(settled, Settled):
        await _learn(context, batch, settled.complaints)

    return settled


def _settled(context: Context, job: Job, batch: Batch) -> Settled | Doubtful:
    """Settle a batch and price what follows from it; blocks."""
    folder = context.spool.folder(batch.job)
    manifest = planning.read_manifest(folder)
    retry = context.settings.retry
    settled = collect.settle(
        folder=folder,
        batch=batch,
        max_attempts=manifest.max_attempts,
        request_backoff_s=retry.request_backoff,
        stop=collect.Stop(share=retry.stop_share, requests=retry.stop_requests),
        now=context.clock.now(),
        response_schema=manifest.profile.get("response_schema"),
    )

    if isinstance(settled, Doubtful):
        return settled

    successors, _ = planning.priced(context, job, settled.successors, manifest, parent=batch)

    return Settled(
        successors=tuple(successors),
        answered=settled.answered,
        failed=settled.failed,
        complaints=tuple(collect.complaints(folder=folder, batch=batch)),
        stopped=settled.stopped,
        tokens=settled.tokens,
        cost=context.prices.paid(settled, batch.model, base_url=batch.base_url),
    )


async def _learn(
    context: Context, batch: Batch, complaints: Sequence[Mapping[str, object]]
) -> None:
    """Keep the limit of enqueued tokens that a refusal names, for the gate."""
    for complaint in complaints:
        limit = collect.enqueued_limit(str(complaint.get("message") or ""))

        if limit is not None:
            key = gate.learned_key(batch.provider, batch.model)
            await context.store.note(key, f"{limit}@{context.clock.now():.0f}")


# Jobs, second half: from answers to the outbox.


async def deliver(context: Context, job: Job) -> Outcome:
    """Put results, errors and summary into `outbox/`, and then the original into `done/`."""
    batches = await context.store.batches_of(job.id)

    return await anyio.to_thread.run_sync(
        partial(
            delivery.deliver,
            context.spool,
            job,
            batches=batches,
            taken=context.taken,
            now=context.clock.now(),
            prices=context.prices,
        )
    )


async def tell(context: Context, notice: Notice) -> Outcome:
    """Tell one command or webhook of a job, once; it may hear of it again after a crash."""
    job = await context.store.job(notice.job)
    profile = None if job is None else context.settings.profiles.get(job.profile)

    if job is None or profile is None:
        return Dropped(reason="the job was forgotten, or its profile is gone")

    try:
        await notices.send(
            delivery.message(context.spool, job, notice),
            profile.notify,
            target=cast("notices.Target", notice.target),
            name=job.profile,
            environ=os.environ,
            now=context.clock.now(),
        )
    except notices.NoticeFailed as error:
        if error.is_final:
            return Dropped(reason=str(error))

        return Failed(reason=str(error), trouble=Trouble.ROW, retry_after_s=error.retry_after_s)

    return Sent()


async def tidy(context: Context, job: Job) -> Outcome:
    """Delete what this job left at the provider, then its working folder."""
    batches = await context.store.batches_of(job.id)
    was_asked = False

    if batches and job.provider is not None and job.failures < TRIES_TO_TIDY:
        account = context.account(job.provider, job.base_url)

        if account.settings.cleanup and account.provider.dialect.deletes:
            strays = await enquiry.strays(context, account, job, batches)
            was_asked = await _delete_files(account, batches, strays)
            account.doubted.discard(job.id)
            account.orphans -= strays

    await anyio.to_thread.run_sync(remove_folder, context.spool.folder(job.id))

    return Tidied(was_asked=was_asked)


async def _delete_files(account: Account, batches: Sequence[Batch], strays: set[str]) -> bool:
    """Delete what the batches left, and *strays*; False if that is nothing. Repeatable."""
    files = strays | {
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

    return bool(files)


# What stages have in common.


def _turned(code: str | None, message: str) -> Turned:
    return Turned(faults=json.dumps([{"code": code, "message": message}]))


def _over(batch: Batch) -> Turned:
    """Return the end of what is not to be submitted any more."""
    if batch.cancelled_at is not None:
        return _turned(CANCELLED, "cancelled before this was submitted")

    return _turned(
        "max_age_exceeded", "the job grew older than retry.max_age before this could be submitted"
    )


# Which status is handled by which stage, in which lane.


class Lane(StrEnum):
    """Work that competes for the same scarce thing, and is bounded by it."""

    DISK = "disk"
    SMALL = "small"
    """Disk work of a moment, of which most is waiting: much of it at once, past what takes long."""
    TRANSFER = "transfer"
    CONTROL = "control"
    GATE = "gate"
    """One wide for each provider, so that what passes is counted before the next is looked at."""
    POLL = "poll"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How the rows of one status are moved on."""

    run: Callable[[Context, Sequence[Any]], Awaitable[list[Outcome | None]]]
    """Returns an outcome for each row, None where it has nothing to say."""
    name: str
    lane: Lane
    is_small: Callable[[Any], bool] | None = None
    """Tells which rows go in the lane `SMALL` instead; None where none do."""
    group: int = 1
    """How many rows one run may take."""
    needs_recall: bool = False
    """Waits until it is known what earlier processes have created."""

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Return the lanes of its rows."""
        return (self.lane,) if self.is_small is None else (self.lane, Lane.SMALL)

    def lane_of(self, row: Row) -> Lane:
        """Return the lane of one row."""
        return Lane.SMALL if self.is_small is not None and self.is_small(row) else self.lane


_AnyRow = TypeVar("_AnyRow", Job, Batch, ProviderState, Notice)


def _single(
    run: Callable[[Context, _AnyRow], Awaitable[Outcome]],
    lane: Lane,
    *,
    needs_recall: bool = False,
    is_small: Callable[[_AnyRow], bool] | None = None,
) -> Stage:
    async def run_one(context: Context, rows: Sequence[_AnyRow]) -> list[Outcome | None]:
        return [await run(context, rows[0])]

    name = getattr(run, "__name__", "stage")

    return Stage(run=run_one, name=name, lane=lane, needs_recall=needs_recall, is_small=is_small)


def _is_small_job(job: Job) -> bool:
    """Tell whether a plan takes a moment: few bytes, as they are, and read by no large library."""
    found = SUFFIXES.get(os.path.splitext(job.shown)[1].lower())  # noqa: PTH122 - a name, no path

    return job.size_bytes <= SMALL_BYTES and found is not None and not found.is_heavy


def _is_small_batch(batch: Batch) -> bool:
    return batch.size_bytes <= SMALL_BYTES


EVERY = 1_000_000
"""The group size of a stage that takes all rows of its status at once."""

STAGES: dict[Status, Stage] = {
    JobStatus.CLAIMED: _single(plan, Lane.DISK, is_small=_is_small_job),
    BatchStatus.DOWNLOADED: _single(settle, Lane.DISK, is_small=_is_small_batch),
    JobStatus.SETTLED: _single(deliver, Lane.DISK),
    JobStatus.UNUSABLE: _single(reject, Lane.DISK),
    BatchStatus.ENDED: _single(download, Lane.TRANSFER),
    BatchStatus.PLANNED: _single(upload, Lane.TRANSFER, needs_recall=True),
    ProviderStatus.RECALLING: _single(recall, Lane.CONTROL),
    BatchStatus.UNCLEAR: Stage(
        run=look_up, name="look_up", lane=Lane.CONTROL, group=100, needs_recall=True
    ),
    BatchStatus.CREATING: _single(create, Lane.CONTROL, needs_recall=True),
    BatchStatus.UPLOADED: Stage(
        run=intend, name="intend", lane=Lane.GATE, group=100, needs_recall=True
    ),
    JobStatus.HELD: _single(release, Lane.CONTROL),
    JobStatus.DELIVERED: _single(tidy, Lane.CONTROL),
    NoticeStatus.PENDING: _single(tell, Lane.NOTICE),
    BatchStatus.CREATED: Stage(run=poll, name="poll", lane=Lane.POLL, group=EVERY),
}
"""The stage of every status that can be due. In each lane what comes first goes first: on disk what
leads to a submission, at the provider what was begun."""
