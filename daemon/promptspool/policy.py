"""What happens next, and when: the pure heart of the daemon.

`decide` turns a row and an outcome into the next row; `decide_provider` does it for the provider
that the outcome came from. No clock, no randomness (jitter is a hash of id and count), no I/O, so
every rule here can be tested by calling it. Raises `IllegalTransition` (bug) for an outcome that a
status cannot have.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, assert_never

from promptspool.errors import IllegalTransition
from promptspool.model import (
    REMOTE_RANK,
    TRANSITIONS,
    Batch,
    BatchStatus,
    Job,
    JobStatus,
    ProviderState,
    ProviderStatus,
    RemoteStatus,
)
from promptspool.outcomes import (
    AllClosed,
    Booted,
    Created,
    Delivered,
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
    Restarted,
    Settled,
    Tidied,
    Trouble,
    Turned,
    Unclear,
    Unusable,
    Uploaded,
    Vanished,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptspool.model import RemoteBatch, Row
    from promptspool.outcomes import Outcome

AnyRow = TypeVar("AnyRow", Job, Batch, ProviderState)

JITTER = 0.1
"""Deadlines are spread by this share either way, so that an outage does not end in a stampede."""

RACE_S = 120.0
"""How long "no such file" after a good upload may be a race (`batch-apis`, F18)."""

LOST_AFTER_S = 900.0
"""A batch is lost after 404s for this long (F15: providers flap for minutes) ..."""

LOST_AFTER_SIGHTINGS = 5
"""... and for this many times in a row."""

OUTAGE_STRIKES = 3
"""So many different items have to meet an outage before the provider is paused for all."""

BLOCKED_FIRST_S = 30.0
BLOCKED_CAP_S = 600.0
"""A provider that refuses the account is probed now and then; a person has to act."""

PROGRESS_FRESH = 0.9
"""From this share of answered requests on, a batch is asked as often as a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """`first_s`, then `factor` times longer each time, up to `cap_s`."""

    first_s: float
    factor: float
    cap_s: float

    def delay(self, count: int, *, key: str) -> float:
        """Return the seconds to wait after *count* (from 0) earlier waits, jittered by *key*."""
        try:
            plain = min(self.first_s * self.factor ** min(count, 64), self.cap_s)
        except OverflowError:  # a factor may be any number from 1 on
            plain = self.cap_s

        return plain * (1.0 - JITTER + 2.0 * JITTER * fraction(f"{key}/{count}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings that decisions depend on."""

    polling: Backoff
    retry: Backoff
    lookup_grace_s: Mapping[str, float]
    """By provider: how long its list may lag behind a create."""

    def grace(self, provider: str) -> float:
        """Return how long to wait before a second look; a minute for one that is not configured."""
        return self.lookup_grace_s.get(provider, 60.0)


def fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on *key* alone."""
    return zlib.crc32(key.encode()) / 2**32


def decide(row: Row, outcome: Outcome, now: float, rules: Rules) -> Row:
    """Return what *row* becomes after *outcome*.

    The version counts on; staying in a status is always allowed, leaving `TRANSITIONS` is a bug.
    """
    match row:
        case Job():
            after: Row = _decide_job(row, outcome, now, rules)
        case Batch():
            after = _decide_batch(row, outcome, now, rules)
        case ProviderState():
            after = _decide_recall(row, outcome, now, rules)
        case _:
            assert_never(row)

    if after.status is not row.status and after.status not in TRANSITIONS[row.status]:
        raise IllegalTransition(f"{row.id}: {row.status.value} cannot become {after.status.value}")

    return replace(after, version=row.version + 1)


def _illegal(row: Row, outcome: Outcome) -> IllegalTransition:
    return IllegalTransition(
        f"{row.id}: {type(outcome).__name__} cannot happen while {row.status.value}"
    )


def _postponed(row: AnyRow, failure: Failed, now: float, rules: Rules) -> AnyRow:
    """Return *row* in the same status, due again later; a broken rule sets it aside."""
    if failure.trouble is Trouble.BUG:
        return replace(row, due_at=None, why=f"set aside: {failure.reason}")

    delay = rules.retry.delay(row.failures, key=row.id)

    if failure.retry_after_s is not None:
        delay = max(delay, failure.retry_after_s)

    return replace(row, due_at=now + delay, failures=row.failures + 1, why=failure.reason)


def _decide_job(job: Job, outcome: Outcome, now: float, rules: Rules) -> Job:
    moved = replace(job, due_at=now, failures=0, why=None)

    match job.status, outcome:
        case _, Failed():
            return _postponed(job, outcome, now, rules)
        case _, Vanished():
            return replace(moved, status=JobStatus.DONE, due_at=None, why="its folder is gone")
        case JobStatus.CLAIMED, Planned(requests=requests, sha256=sha256):
            return replace(
                moved,
                status=JobStatus.PLANNED,
                due_at=None,
                planned_at=now,
                requests=requests,
                sha256=sha256,
            )
        case JobStatus.CLAIMED, Unusable(reason=reason):
            return replace(moved, status=JobStatus.UNUSABLE, why=reason)
        case JobStatus.PLANNED, AllClosed():
            return replace(moved, status=JobStatus.SETTLED)
        case JobStatus.SETTLED, Delivered(stem=stem):
            return replace(moved, status=JobStatus.DELIVERED, delivered_at=now, stem=stem)
        case JobStatus.DELIVERED, Tidied():
            return replace(moved, status=JobStatus.DONE, due_at=None)
        case JobStatus.UNUSABLE, Rejected():
            return replace(moved, status=JobStatus.REJECTED, due_at=None, why=job.why)
        case _:
            raise _illegal(job, outcome)


def _decide_recall(
    state: ProviderState, outcome: Outcome, now: float, rules: Rules
) -> ProviderState:
    match state.status, outcome:
        case _, Failed():
            return _postponed(state, outcome, now, rules)
        case _, Booted(sweeps=sweeps):
            fresh = ProviderState(id=state.id, version=state.version, sweeps=sweeps)

            return replace(
                fresh,
                status=ProviderStatus.RECALLING if sweeps else ProviderStatus.READY,
                due_at=now if sweeps else None,
            )
        case ProviderStatus.RECALLING, Recalled() if state.sweeps > 1:
            due_at = now + rules.grace(state.id)

            return replace(state, sweeps=state.sweeps - 1, failures=0, due_at=due_at)
        case ProviderStatus.RECALLING, Recalled():
            return replace(
                state, status=ProviderStatus.READY, sweeps=0, failures=0, due_at=None, why=None
            )
        case _:
            raise _illegal(state, outcome)


def _decide_batch(batch: Batch, outcome: Outcome, now: float, rules: Rules) -> Batch:
    match outcome:
        case Failed():
            return _failed_batch(batch, outcome, now, rules)
        case Created(remote=remote):
            return _created(batch, remote, now, rules)
        case Turned(faults=faults):
            return _ended_without(batch, RemoteStatus.REFUSED, now, faults=faults)
        case Vanished():
            return replace(batch, status=BatchStatus.CLOSED, due_at=None, why="its folder is gone")
        case Polled(remote=remote) if batch.status is BatchStatus.CREATED:
            return _polled(batch, remote, now, rules)
        case Missed() if batch.status is BatchStatus.CREATED:
            return _missed(batch, now, rules)
        case _:
            pass

    if batch.status in (BatchStatus.ENDED, BatchStatus.DOWNLOADED):
        return _decide_collection(batch, outcome, now, rules)

    return _decide_submission(batch, outcome, now, rules)


def _decide_submission(batch: Batch, outcome: Outcome, now: float, rules: Rules) -> Batch:
    moved = replace(batch, due_at=now, failures=0, why=None)

    match batch.status, outcome:
        case BatchStatus.PLANNED, Uploaded(file=file):
            return replace(moved, status=BatchStatus.UPLOADED, input_file=file, uploaded_at=now)
        case BatchStatus.UPLOADED, Intended():
            return replace(moved, status=BatchStatus.CREATING, intended_at=now)
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
            raise _illegal(batch, outcome)


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
            return replace(moved, status=BatchStatus.CLOSED, due_at=None)
        case _:
            raise _illegal(batch, outcome)


def _failed_batch(batch: Batch, failure: Failed, now: float, rules: Rules) -> Batch:
    """Postpone; but a create that crashed may have been sent, so it is to be looked up."""
    if batch.status is BatchStatus.CREATING and failure.trouble in (Trouble.CRASH, Trouble.BUG):
        return replace(
            batch, status=BatchStatus.UNCLEAR, unclear_at=now, looks=0, due_at=now,
            why=failure.reason,
        )  # fmt: skip

    return _postponed(batch, failure, now, rules)


def _gone(batch: Batch, reason: str, now: float, rules: Rules) -> Batch:
    """Ask again while it can be a race after a good upload; upload anew when it cannot."""
    if batch.uploaded_at is not None and now - batch.uploaded_at < RACE_S:
        failure = Failed(reason=reason, trouble=Trouble.ITEM)

        return _postponed(batch, failure, now, rules)

    return replace(
        batch,
        status=BatchStatus.PLANNED,
        input_file=None,
        uploaded_at=None,
        due_at=now + rules.retry.delay(batch.failures, key=batch.id),
        failures=batch.failures + 1,
        why=reason,
    )


def _not_listed(batch: Batch, now: float, rules: Rules) -> Batch:
    """Offer it once more only when a look after the grace did not find it either."""
    asked_at = batch.unclear_at if batch.unclear_at is not None else now
    believed_at = asked_at + rules.grace(batch.provider)

    if batch.looks > 0 and now >= believed_at:
        return replace(
            batch,
            status=BatchStatus.CREATING,
            looks=0,
            unclear_at=None,
            failures=0,
            due_at=now,
            intended_at=now,
            why=None,
        )

    return replace(
        batch,
        looks=batch.looks + 1,
        unclear_at=asked_at,
        failures=0,
        due_at=max(now, believed_at),
    )


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

    return _scheduled(_seen(created, remote), now, rules)


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
    counted = replace(
        seen,
        polls=0 if changed else batch.polls + 1,
        missed=0,
        missed_at=None,
        failures=0,
        why=None,
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


def _seen(batch: Batch, remote: RemoteBatch) -> Batch:
    """Return *batch* with the provider's facts; a status never goes back."""
    known = batch.remote_status

    if known is not None and REMOTE_RANK[remote.status] < REMOTE_RANK[known]:
        return batch

    return replace(
        batch,
        remote_status=remote.status,
        created_at=remote.created_at or batch.created_at,
        total=remote.total or batch.total,
        completed=max(remote.completed, batch.completed),
        failed=max(remote.failed, batch.failed),
        output_file=remote.output_file or batch.output_file,
        error_file=remote.error_file or batch.error_file,
        errors=remote.errors or batch.errors,
    )


def _scheduled(batch: Batch, now: float, rules: Rules) -> Batch:
    """Set the next poll: backing off, but sooner when it is nearly done."""
    nearly = batch.remote_status in (RemoteStatus.FINALIZING, RemoteStatus.CANCELLING)
    answered = batch.completed + batch.failed

    if batch.total and answered >= PROGRESS_FRESH * batch.total:
        nearly = True

    count = min(batch.polls, 1) if nearly else batch.polls
    delay = rules.polling.delay(count, key=batch.id)

    return replace(batch, due_at=_pooled(batch.provider, now, delay, rules))


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


def decide_provider(
    state: ProviderState, item: str, outcome: Outcome, now: float, rules: Rules
) -> ProviderState:
    """Return what *outcome* of *item* says about the provider; the same object if nothing new.

    A rate limit or a refused account pauses it at once, an outage when several different items met
    it; anything that came of a real answer ends the pause.
    """
    match outcome:
        case Failed(trouble=Trouble.THROTTLED):
            return _paused(state, outcome, now, rules.retry)
        case Failed(trouble=Trouble.BLOCKED):
            backoff = Backoff(first_s=BLOCKED_FIRST_S, factor=2.0, cap_s=BLOCKED_CAP_S)

            return _paused(state, outcome, now, backoff)
        case Failed(trouble=Trouble.OUTAGE):
            return _struck(state, item, outcome, now, rules)
        case (
            Uploaded()
            | Created()
            | Polled()
            | Missed()
            | Gone()
            | Turned()
            | NotListed()
            | Downloaded()
            | Tidied()
            | Recalled()
        ):
            return _resumed(state)
        case _:
            return state


def _paused(state: ProviderState, failure: Failed, now: float, backoff: Backoff) -> ProviderState:
    if state.paused_until is not None and state.paused_until > now:
        count = max(state.pauses - 1, 0)  # told by a call that was under way when the pause began
    else:
        count = state.pauses

    delay = max(backoff.delay(count, key=state.id), failure.retry_after_s or 0.0)

    return replace(
        state,
        version=state.version + 1,
        pauses=count + 1,
        paused_until=max(now + delay, state.paused_until or 0.0),
        paused_at=state.paused_at if state.paused_at is not None else now,
        why=failure.reason,
    )


def _struck(
    state: ProviderState, item: str, failure: Failed, now: float, rules: Rules
) -> ProviderState:
    """Count an outage once an item; one item alone may be at fault itself."""
    if state.pauses == 0 and item == state.last_struck:
        return state

    struck = replace(state, version=state.version + 1, strikes=state.strikes + 1, last_struck=item)

    if struck.pauses == 0 and struck.strikes < OUTAGE_STRIKES:
        return struck

    return replace(_paused(struck, failure, now, rules.retry), version=state.version + 1)


def _resumed(state: ProviderState) -> ProviderState:
    if state.strikes == 0 and state.pauses == 0:
        return state

    return replace(
        state,
        version=state.version + 1,
        strikes=0,
        last_struck=None,
        pauses=0,
        paused_until=None,
        paused_at=None,
        why=None,
    )
