"""Asking the provider about our batches and files, and telling what its answers are worth.

An unclear answer is looked up here, never guessed. Raises `ProviderError` (environment) and `Bug`.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio.to_thread
import structlog
from msgspec.structs import replace

from promptspool import collect
from promptspool.digest import earlier_digest_of, is_new
from promptspool.errors import (
    Blocked,
    Bug,
    NotFound,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from promptspool.model import RemoteStatus
from promptspool.outcomes import Created, Failed, Missed, Polled, Trouble
from promptspool.provider.base import (
    BATCH_KEY,
    DIGEST_KEY,
    EARLIER_DIGEST_KEY,
    SPOOL_KEY,
    RemoteFile,
)
from promptspool.provider.listing import sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.context import Account, Context
    from promptspool.model import Batch, BatchId, Job, RemoteBatch
    from promptspool.outcomes import Outcome

PAGES_FOR_A_LOST_BATCH = 20
"""How much of the list is read for a batch that the provider does not know by its id."""

ORPHAN_AGE_S = 86_400.0
"""An upload of a job that is no more is deleted when it is so old."""

OTHER_ACCOUNT = "other_account"
"""The code of an answer that looks as if it came from an account that is not ours."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


def ours(context: Context, batches: Sequence[RemoteBatch]) -> dict[str, RemoteBatch]:
    """Return those of *batches* that this spool created, by our batch id."""
    return {
        batch.metadata[BATCH_KEY]: batch
        for batch in batches
        if batch.metadata.get(SPOOL_KEY) == context.spool_id and BATCH_KEY in batch.metadata
    }


async def recall_uploads(context: Context, account: Account) -> None:
    """Note which of our uploads are at the provider, and which of them belong to no job."""
    now = context.clock.now()
    files = await account.provider.files()
    live = {job.id for job in await context.store.live_jobs()}
    account.uploads = {}
    account.listed_at = now

    for file in files:
        job = _job_of(context, file)

        if job is None:
            continue

        account.uploads.setdefault(file.name, []).append(file)

        if job not in live and (file.created_at or now) < now - ORPHAN_AGE_S:
            account.orphans.add(file.id)


def upload_name(context: Context, batch: Batch) -> str:
    """Return the name under which the request file of *batch* is uploaded."""
    # An upload that went missing may still be listed: the next has another name.
    again = f"-{batch.reuploads}" if batch.reuploads else ""

    return f"promptspool-{context.spool_id}-{batch.id}-{batch.digest[:12]}{again}.jsonl"


def _job_of(context: Context, file: RemoteFile) -> str | None:
    """Return the job that an upload was made for, None for a file that is not of this spool."""
    prefix = f"promptspool-{context.spool_id}-"

    return (
        file.name.removeprefix(prefix).partition(".")[0] if file.name.startswith(prefix) else None
    )


def oldest_upload(context: Context, account: Account, jobs: Sequence[Job]) -> float:
    """Return when the first listed upload of *jobs* was made, by the provider's clock.

    No batch of theirs can be older. Infinite if there is no such upload.
    """
    live = {job.id for job in jobs}
    files = (file for files in account.uploads.values() for file in files)

    return min(
        (file.created_at or 0.0 for file in files if _job_of(context, file) in live),
        default=math.inf,
    )


async def strays(
    context: Context, account: Account, job: Job, batches: Sequence[Batch]
) -> set[str]:
    """Return the uploads that no row knows: of *job*, and of jobs that are long gone.

    An upload whose answer was lost, and that the list did not show yet, was made a second time.
    """
    known = {batch.input_file for batch in batches}
    ends = (batch.uploaded_at or batch.ended_at or job.claimed_at for batch in batches)
    shown_at = max(ends) + account.settings.lookup_grace
    is_doubted = job.id in account.doubted or any(batch.reuploads for batch in batches)

    if not is_doubted:
        return set(account.orphans)

    if account.listed_at < shown_at:
        await recall_uploads(context, account)

    files = (file for files in account.uploads.values() for file in files)

    return account.orphans | {
        file.id for file in files if _job_of(context, file) == job.id and file.id not in known
    }


async def inputs(account: Account, batches: Sequence[Batch]) -> dict[BatchId, RemoteFile | None]:
    """Return what the provider knows of each batch's input file; None where it knows none."""
    found: dict[BatchId, RemoteFile | None] = {}

    if not account.provider.dialect.uploads:  # its requests were sent with the create
        return {batch.id: RemoteFile(id="", name="") for batch in batches}

    for batch in batches:
        found[batch.id] = None

        if batch.input_file is not None:
            with suppress(NotFound):
                found[batch.id] = await account.provider.file(batch.input_file)

    if None in found.values():  # some providers have a list of files, but cannot be asked for one
        with suppress(Refused):
            listed = {file.id: file for file in await account.provider.files()}
            missing = [batch for batch in batches if found[batch.id] is None]
            found |= {batch.id: listed.get(batch.input_file or "") for batch in missing}

    return found


def check_absence(
    account: Account, batch: Batch, file: RemoteFile | None, *, is_whole: bool
) -> None:
    """Raise `ProviderError` unless a list without *batch* proves that it was never created.

    It has to be of the account that knows the input *file*, and to have been read to its end.
    """
    if file is None:
        raise stranger(account, batch)

    if not is_whole:
        raise ProviderError(f"the list of batches has no end, so {batch.id} may be somewhere in it")


def strangers(account: Account) -> Failed:
    """Return the failure of an account that knows none of several batches of ours."""
    reason = (
        f"{account.settings.base_url} knows neither our batches nor their input files; is the key "
        f"of another project, or base_url another server?"
    )

    return Failed(reason=reason, trouble=Trouble.BLOCKED)


def stranger(account: Account, batch: Batch) -> ProviderError:
    """Return the error of an account that does not know what *batch* is made of."""
    what = batch.remote_id or f"what {batch.id} was to be made of"
    message = (
        f"{account.settings.base_url} knows neither {what} nor its input file; is the key of "
        f"another project, or base_url another server?"
    )

    return ProviderError(message, code=OTHER_ACCOUNT)


async def found(context: Context, batch: Batch, remote: RemoteBatch) -> Outcome:
    """Adopt a batch of ours; one that holds other bytes is a fault to show, never to repeat.

    Raises `Bug` for such a one. What an earlier version has created, and a spool put back from
    before that plans anew, has another digest of the same bytes.
    """
    noted = remote.metadata.get(DIGEST_KEY) or remote.metadata.get(EARLIER_DIGEST_KEY)

    if noted != batch.digest and not await _is_of_earlier_version(context, batch, noted):
        raise Bug(f"{remote.id} at the provider is {batch.id} but holds other requests")

    return Created(remote=remote, found=True)


async def _is_of_earlier_version(context: Context, batch: Batch, noted: str | None) -> bool:
    """Tell whether *noted* is what an earlier version would have noted of the batch's requests."""
    if noted is None or is_new(noted) or not is_new(batch.digest):
        return False

    path = context.spool.requests_file(batch.job, batch.id)

    return await anyio.to_thread.run_sync(earlier_digest_of, path) == noted


async def nameless(
    context: Context, batches: Sequence[Batch], listed: Sequence[RemoteBatch]
) -> dict[str, RemoteBatch]:
    """Return which of *batches* are listed without their name, but made of their file.

    Some providers keep metadata to themselves; an input file is ours alone, and shared by batches
    of one job only, whose remote ids are known.
    """
    made: dict[str, RemoteBatch] = {}

    for batch in batches:
        known = {other.remote_id for other in await context.store.batches_of(batch.job)}

        for remote in listed:
            is_made = remote.input_file is not None and remote.input_file == batch.input_file

            if is_made and BATCH_KEY not in remote.metadata and remote.id not in known:
                metadata = {BATCH_KEY: batch.id, DIGEST_KEY: batch.digest}
                made[batch.id] = replace(remote, metadata=metadata)

    return made


def is_it(batch: Batch, remote: RemoteBatch) -> bool:
    """Tell whether *remote* is *batch*, and not one of another account under the same id."""
    return remote.id == batch.remote_id and is_of(batch, remote)


def is_of(batch: Batch, remote: RemoteBatch) -> bool:
    """Tell whether *remote* may have been made of *batch*, as far as it says."""
    is_named = remote.metadata.get(BATCH_KEY, batch.id) == batch.id

    return is_named and (batch.input_file is None or remote.input_file in (None, batch.input_file))


async def swept(
    account: Account, batches: Sequence[Batch], due: Sequence[Batch], now: float
) -> dict[str, RemoteBatch]:
    """Read the list as far as the oldest due batch, within a budget of pages; by remote id."""
    budget = len(batches) // 50 + 3
    read = await sweep(
        account.provider,
        floor=min(batch.created_at or 0.0 for batch in due),
        now=now,
        budget=budget,
        wanted=frozenset(batch.remote_id for batch in due if batch.remote_id),
    )
    _log.debug("poll.listed", provider=account.provider.name, due=len(due), pages=read.pages)

    return {batch.id: batch for batch in read.batches}


async def asked(context: Context, account: Account, batch: Batch) -> Outcome:
    """Ask for one batch by its id, and for its end if its time is over."""
    assert batch.remote_id is not None  # noqa: S101 - only created batches are polled

    try:
        remote = await account.provider.retrieve(batch.remote_id)
    except NotFound:
        return await _missed(context, account, batch)

    if not is_it(batch, remote):
        return await _missed(context, account, batch)

    is_over = remote.status.is_terminal or remote.status is RemoteStatus.CANCELLING
    is_overdue = batch.cancelled_at is not None or (
        context.clock.now() >= batch.give_up_at and _is_old(batch, remote)
    )

    if is_overdue and not is_over and account.provider.dialect.cancels:
        try:
            cancelled = await account.provider.cancel(batch.remote_id)
            remote = cancelled if is_it(batch, cancelled) else remote
        except Refused as error:
            if batch.polls & (batch.polls - 1) == 0:  # as often as anything that goes on failing
                _log.warning("batch.uncancelled", remote_id=batch.remote_id, reason=error.message)

    return Polled(remote=remote)


def _is_old(batch: Batch, remote: RemoteBatch) -> bool:
    """Tell whether a live batch has had its time by the provider's clock, as far as that is told.

    By ours alone it might be ended because our clock was set since it was created.
    """
    if None in (remote.answered_at, batch.created_at, batch.intended_at):
        return True

    age_s = (remote.answered_at or 0.0) - (batch.created_at or 0.0)

    return age_s >= batch.give_up_at - (batch.intended_at or 0.0)


async def _missed(context: Context, account: Account, batch: Batch) -> Outcome:
    """Tell a batch that is gone from an account that is not ours.

    A wrong key or address answers 404 for everything. The account is believed to be the right one
    only if it knows the batch's input file; other batches of this spool may be in both.
    """
    now = context.clock.now()
    read = await sweep(
        account.provider, floor=batch.created_at or 0.0, now=now, budget=PAGES_FOR_A_LOST_BATCH
    )

    for other in read.batches:
        if other.id == batch.remote_id and is_it(batch, other):
            return Polled(remote=other)

    known = (await inputs(account, [batch]))[batch.id]

    if known is None and now < batch.give_up_at:  # nothing is bought again after that
        raise stranger(account, batch)

    return Missed()


def is_about_a_file(error: Refused) -> bool:
    """Tell whether a create was declined because its input file is not there (yet) (F18)."""
    return collect.is_about_a_file(error.code, error.message)


def is_about_a_model(error: Refused) -> bool:
    """Tell whether a create was declined because of what its requests ask for."""
    words = f"{error.code} {error.message}".lower()

    return "model" in words or "deployment" in words


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
            trouble = Trouble.ROW

    return Failed(
        reason=error.message,
        trouble=trouble,
        retry_after_s=error.retry_after_s,
        request_id=error.request_id,
        is_missing=isinstance(error, NotFound),
    )
