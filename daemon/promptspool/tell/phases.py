"""Where a batch, or a job, stands, in words for people. Pure; raises nothing."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

from promptspool.model import BatchStatus, JobStatus, RemoteStatus, Work
from promptspool.tell.words import safe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from promptspool.model import Batch, Job, ProviderState
    from promptspool.store.overview import LiveBatch

SET_ASIDE = "set aside"
"""How `why` begins where a rule of ours was broken."""


class Phase(StrEnum):
    """What happens to a batch or a job next, in the order in which it happens."""

    PLANNING = "planning"
    HELD = "held"
    TO_UPLOAD = "to_upload"
    UPLOADING = "uploading"
    TO_CREATE = "to_create"
    CROWDED = "crowded"
    CREATING = "creating"
    LOOKING_UP = "looking_up"
    QUEUED = "queued"
    RUNNING = "running"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COLLECTING = "collecting"
    STALLED = "stalled"
    SET_ASIDE = "set_aside"
    DELIVERING = "delivering"
    REJECTING = "rejecting"
    TIDYING = "tidying"


_ORDER = tuple(Phase)

WORDS: Mapping[Phase, tuple[str, str]] = {
    Phase.PLANNING: ("planning", "planning"),
    Phase.HELD: ("held", "held"),
    Phase.TO_UPLOAD: ("waiting to be uploaded", "to be uploaded"),
    Phase.UPLOADING: ("uploading", "uploading"),
    Phase.TO_CREATE: ("waiting to be submitted", "to be submitted"),
    Phase.CROWDED: ("waiting for room", "wait for room"),
    Phase.CREATING: ("being submitted", "being submitted"),
    Phase.LOOKING_UP: ("looking whether it was created", "looked up"),
    Phase.QUEUED: ("queued at the provider", "queued"),
    Phase.RUNNING: ("running", "running"),
    Phase.FINALIZING: ("finalizing", "finalizing"),
    Phase.CANCELLING: ("cancelling", "cancelling"),
    Phase.COLLECTING: ("collecting answers", "collecting"),
    Phase.STALLED: ("stuck: no progress", "stuck"),
    Phase.SET_ASIDE: ("set aside", "set aside"),
    Phase.DELIVERING: ("delivering", "delivering"),
    Phase.REJECTING: ("to be rejected", "to be rejected"),
    Phase.TIDYING: ("delivered, tidying up", "tidying up"),
}
"""How a phase is called alone, and beside others."""

_OF_JOBS = {
    JobStatus.CLAIMED: Phase.PLANNING,
    JobStatus.SETTLED: Phase.DELIVERING,
    JobStatus.UNUSABLE: Phase.REJECTING,
    JobStatus.DELIVERED: Phase.TIDYING,
}

_OF_REMOTE = {
    RemoteStatus.IN_PROGRESS: Phase.RUNNING,
    RemoteStatus.FINALIZING: Phase.FINALIZING,
    RemoteStatus.CANCELLING: Phase.CANCELLING,
}


def is_set_aside(row: Job | Batch | LiveBatch, *, is_held: bool = False) -> bool:
    """Tell whether nothing will move a row on: it has no deadline where it should have one.

    *is_held* says that its job is held, as batches that are not submitted are, then.
    """
    if row.due_at is not None:
        return False

    if (row.why or "").startswith(SET_ASIDE):
        return True

    match row.status:
        case JobStatus():
            return row.status in _OF_JOBS
        case BatchStatus.PLANNED | BatchStatus.UPLOADED:
            return not is_held
        case _:
            return row.status is not BatchStatus.CLOSED


def phase_of(
    batch: Batch | LiveBatch, *, now: float, is_held: bool, stopped: Collection[Work]
) -> Phase:
    """Return the phase of a batch that is not closed.

    *is_held* is as for `is_set_aside`; *stopped* is the work that nothing is done of at its
    provider, since it is paused, halted, or no daemon runs.
    """
    if is_set_aside(batch, is_held=is_held):
        return Phase.SET_ASIDE

    is_due = batch.due_at is not None and batch.due_at <= now and batch.failures == 0

    match batch.status:
        case BatchStatus.PLANNED | BatchStatus.UPLOADED if batch.due_at is None:
            return Phase.HELD
        case BatchStatus.PLANNED:
            is_moving = is_due and Work.UPLOADS not in stopped

            return Phase.UPLOADING if is_moving else Phase.TO_UPLOAD
        case BatchStatus.UPLOADED if batch.crowded_at is not None:
            return Phase.CROWDED
        case BatchStatus.UPLOADED | BatchStatus.CREATING:
            is_moving = is_due and Work.CREATIONS not in stopped

            return Phase.CREATING if is_moving else Phase.TO_CREATE
        case BatchStatus.UNCLEAR:
            return Phase.LOOKING_UP
        case BatchStatus.CREATED:
            return _running(batch)
        case _:
            return Phase.COLLECTING


def _running(batch: Batch | LiveBatch) -> Phase:
    if batch.stalls:
        return Phase.STALLED

    if batch.cancelled_at is not None:
        return Phase.CANCELLING

    return _OF_REMOTE.get(batch.remote_status or RemoteStatus.VALIDATING, Phase.QUEUED)


def stopped_work(state: ProviderState | None, *, now: float, is_up: bool) -> frozenset[Work]:
    """Return what nothing is done of at a provider: `Work.ALL` stands for every kind."""
    everything = frozenset(Work)

    if not is_up:
        return everything

    if state is None:
        return frozenset()

    paused = state.paused_until is not None and state.paused_until > now
    stopped = {Work.UPLOADS, Work.CREATIONS} if state.halted_at is not None else set()

    if paused:
        stopped |= everything if state.paused_work is Work.ALL else {state.paused_work}

    return frozenset(stopped)


def phases_of(job: Job, batches: Sequence[Phase]) -> Counter[Phase]:
    """Return how many of a job's *batches* are in each phase, in the order of phases.

    A job that does not wait for its batches has one phase alone, and counts as one.
    """
    if is_set_aside(job):
        return Counter([Phase.SET_ASIDE])

    if job.status in _OF_JOBS:
        return Counter([_OF_JOBS[job.status]])

    if job.status is JobStatus.HELD and not batches:
        return Counter([Phase.HELD])

    return Counter(sorted(batches, key=_ORDER.index))


def told(job: Job, phases: Counter[Phase], retried: int) -> str:
    """Return the phase of a job in words; *retried* requests of it are asked again."""
    again = f"retrying {retried:,} failed" if retried else ""
    match list(phases.items()):
        case []:
            words = "done" if job.status in (JobStatus.DONE, JobStatus.REJECTED) else "settling"
        case [(phase, _)]:
            words = WORDS[phase][0]
        case several:
            words = ", ".join(f"{count:,} {WORDS[phase][1]}" for phase, count in several)

    if job.status is JobStatus.HELD or (Phase.SET_ASIDE in phases and is_set_aside(job)):
        reason = (job.why or "").removeprefix(f"{SET_ASIDE}: ")
        held = WORDS[Phase.HELD if job.status is JobStatus.HELD else Phase.SET_ASIDE][0]
        words = f"{held}: {safe(reason)}" if reason else words

    if job.cancelled_at is not None and Phase.CANCELLING not in phases:
        words = f"cancelled; {words}"

    return f"{again}: {words}" if again else words
