"""What becomes of a job after each outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from promptspool.model import Job, JobStatus
from promptspool.outcomes import (
    AllClosed,
    Cancelled,
    Delivered,
    Failed,
    Held,
    Planned,
    Rejected,
    Released,
    Tidied,
    Unusable,
    Vanished,
    Withdrawn,
    Woken,
)
from promptspool.policy.backoff import illegal, postponed

if TYPE_CHECKING:
    from promptspool.outcomes import Outcome
    from promptspool.policy.backoff import Rules

WITHDRAWN = "cancelled before anything of it was submitted"
"""Why a cancelled file is in `rejected/`."""


def decide_job(job: Job, outcome: Outcome, now: float, rules: Rules) -> Job:
    """Return what *job* becomes; its version is the caller's."""
    moved = replace(job, due_at=now, failures=0, why=None)

    match job.status, outcome:
        case _, Failed():
            return _failed_job(job, outcome, now, rules)
        case _, Woken():
            return replace(job, due_at=now)
        case _, Vanished():
            return replace(moved, status=JobStatus.DONE, due_at=None, why="its folder is gone")
        case JobStatus.CLAIMED, Planned():
            return _planned(moved, outcome, now)
        case JobStatus.CLAIMED, Unusable(reason=reason):
            return replace(moved, status=JobStatus.UNUSABLE, why=reason)
        case JobStatus.PLANNED, AllClosed():
            return replace(moved, status=JobStatus.SETTLED)
        case JobStatus.SETTLED, Delivered():
            return _delivered(moved, outcome, now)
        case JobStatus.DELIVERED, Tidied():
            return replace(moved, status=JobStatus.DONE, due_at=None)
        case JobStatus.UNUSABLE, Rejected():
            return replace(moved, status=JobStatus.REJECTED, due_at=None, why=job.why)
        case _:
            return _decide_by_hand(moved, job, outcome, now)


def _decide_by_hand(moved: Job, job: Job, outcome: Outcome, now: float) -> Job:
    """Return what becomes of a job that is held, or that a person takes back."""
    match job.status, outcome:
        case JobStatus.PLANNED | JobStatus.HELD, Held(reason=reason, until=until):
            return replace(moved, status=JobStatus.HELD, due_at=until, why=reason)
        case JobStatus.HELD, Released(by_hand=by_hand):
            released_at = now if by_hand else job.released_at

            return replace(moved, status=JobStatus.PLANNED, due_at=None, released_at=released_at)
        case JobStatus.CLAIMED, Cancelled():
            return replace(moved, cancelled_at=now)
        case JobStatus.PLANNED | JobStatus.HELD, Cancelled():
            return replace(moved, status=JobStatus.PLANNED, due_at=None, cancelled_at=now)
        case JobStatus.PLANNED | JobStatus.HELD, Withdrawn():
            return replace(moved, status=JobStatus.UNUSABLE, cancelled_at=now, why=WITHDRAWN)
        case _:
            raise illegal(job, outcome)


def _planned(moved: Job, planned: Planned, now: float) -> Job:
    return replace(
        moved,
        status=JobStatus.PLANNED if planned.held is None else JobStatus.HELD,
        due_at=None,
        planned_at=now,
        requests=planned.requests,
        bad_rows=planned.bad_rows,
        digest=planned.digest,
        estimated_usd=planned.estimated_usd,
        why=planned.held,
    )


def _delivered(moved: Job, delivered: Delivered, now: float) -> Job:
    cost = delivered.summary.get("cost", {})

    return replace(
        moved,
        status=JobStatus.DELIVERED,
        delivered_at=now,
        stem=delivered.stem,
        results=delivered.results,
        errors=delivered.errors,
        cost_usd=cost.get("batch_usd"),
        standard_usd=cost.get("standard_usd"),
    )


def _failed_job(job: Job, failure: Failed, now: float, rules: Rules) -> Job:
    after = postponed(job, failure, now, rules)
    is_rejected_later = job.status is JobStatus.UNUSABLE and after.due_at is not None

    return replace(after, why=job.why) if is_rejected_later else after  # why it is to be rejected
