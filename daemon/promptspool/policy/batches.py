"""What becomes of a batch after each outcome."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from msgspec.structs import replace

from promptspool.model import REMOTE_RANK, Batch, BatchStatus, RemoteStatus
from promptspool.outcomes import (
    Cancelled,
    Created,
    Crowded,
    Delayed,
    Doubtful,
    Downloaded,
    Failed,
    Gone,
    Held,
    Intended,
    Missed,
    NeverCreated,
    NotListed,
    Polled,
    Released,
    Restarted,
    Settled,
    Trouble,
    Turned,
    Unclear,
    Uploaded,
    Vanished,
    Withdrawn,
    Woken,
)
from promptspool.policy.backoff import fraction, illegal, postponed

if TYPE_CHECKING:
    from promptspool.model import RemoteBatch
    from promptspool.outcomes import Outcome
    from promptspool.policy.backoff import Rules

RACE_S = 120.0
"""How long "no such file" after a good upload may be a race (`batch-apis`, F18)."""

MAX_REUPLOADS = 5
"""A file that is still not found after so many uploads is not the reason."""

LOST_AFTER_S = 900.0
"""A batch is lost after 404s for this long (F15: providers flap for minutes) ..."""

LOST_AFTER_SIGHTINGS = 12
"""... and for this many times in a row."""

QUICK_POLLS = 30
"""So often a batch that is nearly done is asked at a quick pace."""

_UNSENT = (BatchStatus.PLANNED, BatchStatus.UPLOADED, BatchStatus.CREATING)

_UNDER_WAY = frozenset(
    {
        RemoteStatus.VALIDATING,
        RemoteStatus.IN_PROGRESS,
        RemoteStatus.FINALIZING,
        RemoteStatus.CANCELLING,
    }
)

PROGRESS_FRESH = 0.9
"""From this share of answered requests on, a batch is asked as often as a new one."""


def decide_batch(batch: Batch, outcome: Outcome, now: float, rules: Rules) -> Batch:
    """Return what *batch* becomes; its version is the caller's."""
    match outcome:
        case Failed():
            return _failed_batch(batch, outcome, now, rules)
        case Created(remote=remote):
            return _created(batch, remote, now, rules)
        case Turned(faults=faults):
            return _ended_without(batch, RemoteStatus.REFUSED, now, faults=faults)
        case Woken():
            return replace(batch, due_at=now)
        case Released() | Delayed() | Cancelled():
            return _decide_by_hand(batch, outcome, now)
        case Vanished() | Withdrawn():
            why = "its folder is gone" if isinstance(outcome, Vanished) else "cancelled"

            return replace(batch, status=BatchStatus.CLOSED, due_at=None, why=why)
        case _:
            pass

    if batch.status is BatchStatus.CREATED:
        return _decide_running(batch, outcome, now, rules)

    if batch.status in (BatchStatus.ENDED, BatchStatus.DOWNLOADED):
        return _decide_collection(batch, outcome, now, rules)

    return _decide_submission(batch, outcome, now, rules)


def _decide_by_hand(batch: Batch, outcome: Released | Delayed | Cancelled, now: float) -> Batch:
    """Return what becomes of a batch that was held, halted or taken back."""
    match outcome:
        case Released():
            held_s = 0.0 if batch.held_at is None else max(now - batch.held_at, 0.0)

            return replace(
                batch, due_at=now, held_at=None, give_up_at=batch.give_up_at + held_s, why=None
            )
        case Delayed(seconds=seconds):
            return replace(batch, give_up_at=batch.give_up_at + max(seconds, 0.0))
        case Cancelled():
            # What runs is asked at once; a look-up keeps its grace, and a download its patience.
            is_asked = batch.status in (*_UNSENT, BatchStatus.CREATED)

            return replace(
                batch, cancelled_at=now, held_at=None, due_at=now if is_asked else batch.due_at
            )


def _decide_running(batch: Batch, outcome: Outcome, now: float, rules: Rules) -> Batch:
    match outcome:
        case Polled(remote=remote):
            return _polled(batch, remote, now, rules)
        case Missed():
            return _missed(batch, now, rules)
        case _:
            raise illegal(batch, outcome)


def _decide_submission(batch: Batch, outcome: Outcome, now: float, rules: Rules) -> Batch:
    moved = replace(batch, due_at=now, failures=0, why=None)

    match batch.status, outcome:
        case BatchStatus.PLANNED, Uploaded(file=file):
            return replace(moved, status=BatchStatus.UPLOADED, input_file=file, uploaded_at=now)
        case BatchStatus.UPLOADED, Intended(estimated_usd=usd):
            return replace(
                moved,
                status=BatchStatus.CREATING,
                intended_at=now,
                crowded_at=None,
                estimated_usd=batch.estimated_usd if usd is None else usd,
            )
        case BatchStatus.UPLOADED, Crowded(reason=reason):
            return _crowded(batch, reason, now, rules)
        case BatchStatus.UPLOADED, Held(reason=reason):
            return replace(moved, due_at=None, crowded_at=None, held_at=now, why=reason)
        case BatchStatus.CREATING, Gone(reason=reason):
            return _gone(batch, reason, now, rules)
        case BatchStatus.CREATING, Unclear(reason=reason):
            return replace(moved, status=BatchStatus.UNCLEAR, unclear_at=now, looks=0, why=reason)
        case BatchStatus.CREATING | BatchStatus.UNCLEAR, Restarted():
            return replace(
                moved, status=BatchStatus.UNCLEAR, unclear_at=None, looks=0, why="restarted"
            )
        case BatchStatus.UNCLEAR, NotListed():
            return _not_listed(batch, now, rules)
        case BatchStatus.UNCLEAR, NeverCreated():
            return replace(moved, status=BatchStatus.CREATING, looks=0, unclear_at=None)
        case _:
            raise illegal(batch, outcome)


def _decide_collection(batch: Batch, outcome: Outcome, now: float, rules: Rules) -> Batch:
    moved = replace(batch, due_at=now, failures=0, why=None)

    match batch.status, outcome:
        case BatchStatus.ENDED, Downloaded(remote=remote):
            seen = moved if remote is None else _seen(moved, remote)

            return replace(seen, status=BatchStatus.DOWNLOADED)
        case BatchStatus.DOWNLOADED, Doubtful(reason=reason):
            delay = rules.polling.delay(batch.looks, key=batch.id)

            return replace(
                moved,
                status=BatchStatus.ENDED,
                looks=batch.looks + 1,
                due_at=now + delay,
                why=reason,
            )
        case BatchStatus.DOWNLOADED, Settled():
            return _closed(moved, outcome)
        case _:
            raise illegal(batch, outcome)


def _crowded(batch: Batch, reason: str, now: float, rules: Rules) -> Batch:
    """Look again as often as at a batch that runs: one that ends makes room."""
    since = batch.crowded_at if batch.crowded_at is not None else now
    delay = min(max(now - since, rules.polling.first_s), rules.polling.cap_s)

    return replace(batch, due_at=now + delay, failures=0, crowded_at=since, why=reason)


def _closed(moved: Batch, settled: Settled) -> Batch:
    tokens, cost = settled.tokens, settled.cost

    return replace(
        moved,
        status=BatchStatus.CLOSED,
        due_at=None,
        answered=settled.answered,
        unanswered=settled.failed,
        input_tokens=tokens.input,
        cached_tokens=tokens.cached_input,
        output_tokens=tokens.output,
        reasoning_tokens=tokens.reasoning,
        cost_usd=None if cost is None else cost.batch_usd,
        standard_usd=None if cost is None else cost.standard_usd,
    )


def _failed_batch(batch: Batch, failure: Failed, now: float, rules: Rules) -> Batch:
    """Postpone; but a create that crashed may have been sent, so it is to be looked up."""
    if batch.status is BatchStatus.CREATING and failure.trouble in (Trouble.CRASH, Trouble.BUG):
        return replace(
            batch, status=BatchStatus.UNCLEAR, unclear_at=now, looks=0, due_at=now,
            why=failure.reason,
        )  # fmt: skip

    if batch.status is BatchStatus.ENDED:
        batch = replace(batch, missed=batch.missed + 1 if failure.is_missing else 0)

    return postponed(batch, failure, now, rules)


def _gone(batch: Batch, reason: str, now: float, rules: Rules) -> Batch:
    """Ask again while it can be a race after a good upload; upload anew when it cannot."""
    if batch.uploaded_at is not None and now - batch.uploaded_at < RACE_S:
        failure = Failed(reason=reason, trouble=Trouble.ROW)

        return postponed(batch, failure, now, rules)

    if batch.reuploads >= MAX_REUPLOADS:
        faults = json.dumps([{"code": "file_not_found", "message": reason}])

        return _ended_without(batch, RemoteStatus.REFUSED, now, faults=faults)

    return replace(
        batch,
        status=BatchStatus.PLANNED,
        input_file=None,
        uploaded_at=None,
        reuploads=batch.reuploads + 1,
        due_at=now + rules.retry.delay(batch.failures, key=batch.id),
        failures=batch.failures + 1,
        why=reason,
    )


def _not_listed(batch: Batch, now: float, rules: Rules) -> Batch:
    """Offer it once more only when a second look, the grace after the first, found nothing.

    Not the grace after the create: the first look may come late, at the end of the same outage.
    """
    if batch.looks > 0:
        return replace(
            batch,
            status=BatchStatus.CREATING,
            looks=0,
            unclear_at=None,
            failures=0,
            waits=batch.waits + 1,
            due_at=now,
            intended_at=now,
            why=None,
        )

    grace_s = min(rules.grace(batch.provider) * 2.0 ** min(batch.waits, 16), 3600.0)

    return replace(batch, looks=1, failures=0, due_at=now + grace_s)


def _created(batch: Batch, remote: RemoteBatch, now: float, rules: Rules) -> Batch:
    created = replace(
        batch,
        status=BatchStatus.CREATED,
        remote_id=remote.id,
        input_file=remote.input_file or batch.input_file,
        looks=0,
        unclear_at=None,
        failures=0,
        polls=0,
        why=None,
    )

    seen = _seen(created, remote)

    return replace(seen, due_at=now) if remote.status.is_terminal else _scheduled(seen, now, rules)


def _ended_without(batch: Batch, status: RemoteStatus, now: float, *, faults: str | None) -> Batch:
    """Skip the download of a batch that has nothing to download."""
    return replace(
        batch,
        status=BatchStatus.DOWNLOADED,
        remote_status=status,
        errors=faults,
        ended_at=now,
        looks=0,
        failures=0,
        due_at=now,
        why=None,
    )


def _polled(batch: Batch, remote: RemoteBatch, now: float, rules: Rules) -> Batch:
    """Take over what the provider says, unless it is older than what is known."""
    seen = _seen(batch, remote)
    changed = seen.remote_status is not batch.remote_status
    is_still = not changed and (seen.completed, seen.failed) == (batch.completed, batch.failed)
    since = batch.progressed_at if is_still and batch.progressed_at is not None else now
    counted = replace(
        seen,
        polls=0 if changed else batch.polls + 1,
        progressed_at=since,
        stalls=int((now - since) // rules.stalled_s),
        missed=0,
        missed_at=None,
        failures=0,
        why=None if remote.status is not RemoteStatus.UNKNOWN else unknown_status(remote),
    )

    if counted.remote_status is None or not counted.remote_status.is_terminal:
        return _scheduled(counted, now, rules)

    return replace(
        counted,
        status=BatchStatus.ENDED,
        ended_at=remote.ended_at if remote.ended_at is not None else now,
        looks=0,
        due_at=now,
    )


def is_as_known(batch: Batch, remote: RemoteBatch) -> bool:
    """Tell whether a poll says of a running *batch* nothing but what is known, and all is well.

    Of ten thousand batches that is so with nearly all, at nearly every poll.
    """
    return (
        batch.status is BatchStatus.CREATED
        and remote.status is batch.remote_status
        and remote.status in _UNDER_WAY
        and remote.completed <= batch.completed
        and remote.failed <= batch.failed
        and (not remote.total or remote.total == batch.total)
        and (not remote.created_at or remote.created_at == batch.created_at)
        and (not remote.errors or remote.errors == batch.errors)
        and batch.failures == 0
        and batch.missed == 0
        and batch.missed_at is None
        and batch.why is None
    )


def polled_again(batch: Batch, now: float, rules: Rules) -> Batch:
    """Return what a batch becomes of which `is_as_known` is true: as `decide` has it, but sooner.

    A row has so many columns that each copy of it counts.
    """
    polls = batch.polls + 1
    since = batch.progressed_at if batch.progressed_at is not None else now

    return replace(
        batch,
        version=batch.version + 1,
        polls=polls,
        progressed_at=since,
        stalls=int((now - since) // rules.stalled_s),
        failed_at=None,
        due_at=_next_poll_at(batch, polls, now, rules),
    )


def unknown_status(remote: RemoteBatch) -> str:
    """Say that a provider used a word that we do not know."""
    return f"the provider says {remote.raw_status!r}, a status that nobody here knows"


def _seen(batch: Batch, remote: RemoteBatch) -> Batch:
    """Return *batch* with the provider's facts; a status never goes back."""
    known = batch.remote_status

    if known is not None and REMOTE_RANK[remote.status] < REMOTE_RANK[known]:
        return batch

    is_over = remote.status.is_terminal  # files that are shown before may be empty, or others (F8)

    return replace(
        batch,
        remote_status=remote.status,
        created_at=remote.created_at or batch.created_at,
        total=remote.total or batch.total,
        completed=max(remote.completed, batch.completed),
        failed=max(remote.failed, batch.failed),
        output_file=(remote.output_file if is_over else None) or batch.output_file,
        error_file=(remote.error_file if is_over else None) or batch.error_file,
        errors=remote.errors or batch.errors,
    )


def _scheduled(batch: Batch, now: float, rules: Rules) -> Batch:
    """Set the next poll."""
    return replace(batch, due_at=_next_poll_at(batch, batch.polls, now, rules))


def _next_poll_at(batch: Batch, polls: int, now: float, rules: Rules) -> float:
    """Return when to poll after *polls*: backing off, but sooner when it is nearly done."""
    nearly = batch.remote_status in (RemoteStatus.FINALIZING, RemoteStatus.CANCELLING)
    answered = batch.completed + batch.failed

    if batch.total and answered >= PROGRESS_FRESH * batch.total:
        nearly = True

    # Soon, but not for days: one that is stuck there is asked as rarely as any.
    count = max(min(polls, 1), polls - QUICK_POLLS) if nearly else polls
    delay = rules.polling.delay(count, key=batch.id)

    return _pooled(batch.provider, now, delay, rules)


def _pooled(provider: str, now: float, delay: float, rules: Rules) -> float:
    """Return about *now* + *delay*, but at a moment when other batches of the provider are due.

    So many batches are asked about by one page of the list instead of one by one.
    """
    slot = rules.polling.first_s
    phase = fraction(provider) * slot
    pooled = round((now + delay - phase) / slot) * slot + phase

    return pooled if pooled > now + slot / 2.0 else pooled + slot


def _missed(batch: Batch, now: float, rules: Rules) -> Batch:
    """Count a 404; only many of them over a long time mean that the batch is lost."""
    since = batch.missed_at if batch.missed_at is not None else now
    missed = batch.missed + 1

    if missed >= LOST_AFTER_SIGHTINGS and now - since >= LOST_AFTER_S:
        return _ended_without(batch, RemoteStatus.LOST, now, faults=None)

    return replace(
        batch,
        missed=missed,
        missed_at=since,
        due_at=now + rules.polling.delay(missed, key=batch.id),
        why="the provider does not know it at the moment",
    )
