"""What becomes of a job after each outcome."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from promptspool.model import Job, JobStatus
from promptspool.outcomes import (
    AllClosed,
    Delivered,
    Failed,
    Planned,
    Rejected,
    Tidied,
    Unusable,
    Vanished,
    Woken,
)
from promptspool.policy.backoff import illegal, postponed

if TYPE_CHECKING:
    from promptspool.outcomes import Outcome
    from promptspool.policy.backoff import Rules


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
            raise illegal(job, outcome)


def _failed_job(job: Job, failure: Failed, now: float, rules: Rules) -> Job:
    after = postponed(job, failure, now, rules)
    is_rejected_later = job.status is JobStatus.UNUSABLE and after.due_at is not None

    return replace(after, why=job.why) if is_rejected_later else after  # why it is to be rejected
