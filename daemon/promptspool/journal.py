"""What the daemon says of its transitions: one line each, after its commit.

Events are `noun.past_participle` and never interpolated. The first failure of a stage warns,
repeats are told at every doubling, the rest at debug. Never a prompt, an answer or a key. Raises
nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from promptspool.log import unquoted
from promptspool.model import (
    Batch,
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
    Delivered,
    Failed,
    Planned,
    Polled,
    Recalled,
    Released,
    Settled,
    Trouble,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.model import Row
    from promptspool.outcomes import Outcome

_USUAL_NAMES = frozenset({"prompt", "text", "input", "question", "messages"})

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


_INTERRUPTIONS = {
    "control": ("control.unreadable", "control.readable", "warning"),
    "house": ("house.unkept", "house.kept", "warning"),
    "inbox": ("inbox.unreadable", "inbox.readable", "warning"),
    "spool": ("spool.missing", "spool.found", "error"),
}


class Interruption:
    """Something that cannot be used for a while: told once for each reason, and at its end."""

    def __init__(self, what: str) -> None:
        """Watch over "control", "house", "inbox" or "spool"."""
        self._begun, self._ended, self._level = _INTERRUPTIONS[what]
        self._reason: str | None = None
        self._since = 0.0

    def note(self, reason: str | None, at: float) -> None:
        """Take note of why it cannot be used *at* that moment, monotonic; None if it can."""
        before, self._reason = self._reason, reason

        if before is None:
            self._since = at

        if reason is None and before is not None:
            _log.info(self._ended, lasted_s=round(at - self._since, 3))
        elif reason is not None and reason != before:
            getattr(_log, self._level)(self._begun, reason=reason)


def names(rows: Sequence[Row]) -> dict[str, str]:
    """Return what every line about *rows* carries: provider, job and batch, where there is one."""
    first = rows[0]

    match first:
        case Job():
            return {"job": first.id}
        case Batch() if len(rows) == 1:
            return {"job": first.job, "batch": first.id, "provider": first.provider}
        case Batch():
            return {"provider": first.provider}
        case ProviderState():
            return {"provider": first.id}
        case Notice():
            return {"job": first.job, "notice": first.event, "target": first.target}


def tell(
    stage: str,
    moved: Sequence[tuple[Row, Row, Outcome]],
    followed: Sequence[tuple[Row, Row]],
    *,
    now: float,
) -> None:
    """Log what became of rows that a stage worked on, and of those that followed them."""
    _tell_failures(stage, moved)
    _tell_polls(moved)

    for before, after, outcome in moved:
        if not _is_nothing_new(before, after):  # of thousands that were polled, nearly all
            _tell_moved(stage, before, after, outcome, now)

    for before, after in followed:
        if isinstance(before, Job) and isinstance(after, Job):
            _tell_followed_job(before, after)
        elif isinstance(before, ProviderState) and isinstance(after, ProviderState):
            _tell_provider(before, after, now)


def _tell_moved(stage: str, before: Row, after: Row, outcome: Outcome, now: float) -> None:
    """Log what became of one row that a stage worked on."""
    keys = names([before])

    if before.failures and not after.failures:
        _log.info("stage.recovered", stage=stage, failures=before.failures,
                  lasted_s=_lasted(before.failed_at, now), **keys)  # fmt: skip

    if after.status is not before.status:
        _tell_transition(after, outcome, keys)
    elif isinstance(before, Batch) and isinstance(after, Batch) and after.stalls > before.stalls:
        _tell_stall(after, keys)
    elif isinstance(outcome, Polled) and after.why is not None and after.why != before.why:
        _log.warning("batch.status_unknown", reason=after.why, **keys)

    if isinstance(before, ProviderState) and isinstance(after, ProviderState):
        _tell_provider(before, after, now)


def _is_nothing_new(before: Row, after: Row) -> bool:
    """Tell whether a batch is where it was, and how it was."""
    return (
        isinstance(before, Batch)
        and isinstance(after, Batch)
        and after.status is before.status
        and not before.failures
        and after.stalls <= before.stalls
        and after.why == before.why
    )


def _tell_polls(moved: Sequence[tuple[Row, Row, Outcome]]) -> None:
    """Log one line for all that was polled at once: at debug where nothing has changed."""
    polled = changed = ended = completed = 0
    provider = None

    for before, after, outcome in moved:
        if not (isinstance(outcome, Polled) and isinstance(before, Batch)):
            continue

        assert isinstance(after, Batch)  # noqa: S101 - as it was before
        provider = before.provider
        polled += 1
        changed += _progress(before) != _progress(after)
        ended += after.status is BatchStatus.ENDED
        completed += after.completed - before.completed

    if polled:
        getattr(_log, "info" if changed else "debug")(
            "poll.swept", provider=provider, polled=polled, changed=changed, ended=ended,
            completed=completed,
        )  # fmt: skip


def _progress(batch: Batch) -> tuple[object, ...]:
    return batch.remote_status, batch.completed, batch.failed


def _lasted(since: float | None, now: float) -> float | None:
    return None if since is None else round(now - since, 3)


def _tell_followed_job(before: Job, after: Job) -> None:
    """Log what became of a job by its batches, or by a person."""
    if after.cancelled_at is not None and before.cancelled_at is None:
        _log.info("job.cancelled", job=after.id, file=after.shown)

    match before.status, after.status:
        case _, JobStatus.SETTLED if before.status is not after.status:
            _log.info("job.settled", job=after.id)
        case _, JobStatus.HELD if before.status is not after.status:
            _tell_held(after)
        case JobStatus.HELD, JobStatus.PLANNED if after.cancelled_at is None:
            _tell_released(after)
        case _:
            pass


def _tell_held(job: Job) -> None:
    _log.warning("job.held", job=job.id, file=job.shown, reason=job.why,
                 until=None if job.due_at is None else _iso(job.due_at))  # fmt: skip


def _tell_released(job: Job) -> None:
    _log.info("job.released", job=job.id, file=job.shown, by_hand=job.released_at is not None)


def _iso(at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")

    return text.replace("+00:00", "Z")


def _tell_stall(batch: Batch, keys: dict[str, str]) -> None:
    _log.warning("batch.stalled", remote_status=batch.remote_status, completed=batch.completed,
                 total=batch.total, unchanged_since=_iso(batch.progressed_at or 0.0),
                 remote_id=batch.remote_id, **keys)  # fmt: skip


def _tell_failures(stage: str, moved: Sequence[tuple[Row, Row, Outcome]]) -> None:
    """Log what failed, one line a reason: a list that cannot be read fails hundreds at once."""
    failed: dict[tuple[str, bool], list[tuple[Row, Failed]]] = {}

    for before, after, outcome in moved:
        if isinstance(outcome, Failed):
            key = (outcome.reason, after.due_at is None)
            failed.setdefault(key, []).append((before, outcome))

    for (reason, is_abandoned), rows in failed.items():
        before, outcome = rows[0]
        count = before.failures + 1
        is_told = outcome.trouble in (Trouble.THROTTLED, Trouble.BLOCKED)  # by provider.paused
        is_loud = outcome.trouble is Trouble.BUG or (count & (count - 1) == 0 and not is_told)
        level = "error" if is_abandoned else "warning" if is_loud else "debug"
        event = "stage.abandoned" if is_abandoned else "stage.retried"
        keys = names([row for row, _ in rows])

        if outcome.request_id is not None:
            keys["request_id"] = outcome.request_id

        getattr(_log, level)(
            event, stage=stage, reason=reason, failures=count, rows=len(rows), **keys
        )


def _tell_transition(after: Row, outcome: Outcome, keys: dict[str, str]) -> None:
    match after:
        case Job():
            _tell_job(after, outcome, keys)
        case Batch():
            _tell_batch(after, outcome, keys)
        case Notice(status=NoticeStatus.SENT):
            _log.info("notice.sent", **keys)
        case Notice():
            _log.error("notice.dropped", reason=after.why, **keys)
        case ProviderState(status=ProviderStatus.READY):
            found = outcome.found if isinstance(outcome, Recalled) else 0
            _log.info("provider.recalled", batches=found, **keys)
        case _:
            pass


def _tell_job(job: Job, outcome: Outcome, keys: dict[str, str]) -> None:
    match job.status, outcome:
        case JobStatus.PLANNED | JobStatus.HELD, Planned() as planned:
            _tell_planned(job, planned, keys)
        case JobStatus.PLANNED, Released():
            _tell_released(job)
        case JobStatus.DELIVERED, Delivered() as delivered:
            _tell_delivered(job, delivered, keys)
        case JobStatus.REJECTED, _:
            _log.warning("job.rejected", file=job.shown, reason=unquoted(job.why or ""), **keys)
        case JobStatus.DONE, _:
            _log.info("job.tidied", **keys)
        case _:
            pass


def _tell_planned(job: Job, planned: Planned, keys: dict[str, str]) -> None:
    _log.info("job.planned", requests=planned.requests, batches=len(planned.batches),
              bad_rows=planned.bad_rows, format=planned.format,
              prompt_columns=_told(planned.prompt_columns),
              estimated_usd=planned.estimated_usd, **keys)  # fmt: skip

    if planned.is_small:
        _log.warning("job.small", file=job.shown, estimated_usd=planned.estimated_usd, **keys)

    if planned.held is not None:
        _tell_held(job)


def _tell_delivered(job: Job, delivered: Delivered, keys: dict[str, str]) -> None:
    """Log the one line that has everything about a job: whoever keeps but this knows how it was."""
    summary = delivered.summary
    cost = summary.get("cost", {})
    batches = summary.get("batches", ())
    _log.info("job.delivered", file=job.shown, profile=job.profile, provider=job.provider,
              size_bytes=job.size_bytes, requests=job.requests, results=delivered.results,
              errors=delivered.errors, errors_by_code=summary.get("errors_by_code"),
              bad_rows=job.bad_rows, batches=len(batches),
              remote_ids=[one.get("remote_id") for one in batches if one.get("remote_id")],
              models=sorted({one.get("model") for one in batches}),
              tokens=summary.get("tokens"), cost_usd=cost.get("batch_usd"),
              standard_usd=cost.get("standard_usd"), saved_usd=cost.get("saved_usd"),
              duration_s=summary.get("timings", {}).get("duration_s"),
              is_cancelled=job.cancelled_at is not None, retry_of=job.retry_of,
              left_out=delivered.left_out, **keys)  # fmt: skip


def _told(columns: Sequence[str]) -> list[str]:
    """Return names of columns for the log: a first line taken for a header may be a prompt."""
    return [name if name.strip().casefold() in _USUAL_NAMES else "(another)" for name in columns]


def _tell_batch(batch: Batch, outcome: Outcome, keys: dict[str, str]) -> None:
    remote = {"remote_id": batch.remote_id} if batch.remote_id else {}

    match batch.status:
        case BatchStatus.UPLOADED:
            _log.info("batch.uploaded", requests=batch.requests, size_bytes=batch.size_bytes,
                      input_file=batch.input_file, **keys)  # fmt: skip
        case BatchStatus.UNCLEAR:
            _log.warning("batch.unclear", reason=batch.why, **keys)
        case BatchStatus.CREATED:
            is_found = isinstance(outcome, Created) and outcome.found
            _log.info("batch.recalled" if is_found else "batch.created", **remote, **keys)
        case BatchStatus.ENDED if batch.looks:
            _log.info("batch.doubted", reason=batch.why, **remote, **keys)
        case BatchStatus.ENDED:
            _log.info("batch.ended", remote_status=batch.remote_status, completed=batch.completed,
                      failed=batch.failed, total=batch.total, **remote, **keys)  # fmt: skip
        case BatchStatus.DOWNLOADED if batch.remote_id and not batch.errors:
            _log.info("batch.downloaded", **remote, **keys)
        case BatchStatus.CLOSED:
            _tell_closed(batch, outcome, remote | keys)
        case _:
            pass


def _tell_closed(batch: Batch, outcome: Outcome, keys: dict[str, str]) -> None:
    if not isinstance(outcome, Settled):
        return

    if outcome.complaints:
        _log.warning("batch.failed", remote_status=batch.remote_status,
                     errors=list(outcome.complaints), **keys)  # fmt: skip

    if outcome.stopped is not None:
        _log.warning("batch.stopped", code=outcome.stopped, failed=outcome.failed, **keys)

    _log.info("batch.closed", answered=outcome.answered, failed=outcome.failed,
              successors=[successor.id for successor in outcome.successors], **keys)  # fmt: skip


def _tell_provider(before: ProviderState, after: ProviderState, now: float) -> None:
    if before.halted_at is None and after.halted_at is not None:
        _log.warning("provider.halted", provider=after.id)
    elif before.halted_at is not None and after.halted_at is None:
        _log.info("provider.unhalted", provider=after.id,
                  lasted_s=_lasted(before.halted_at, now))  # fmt: skip

    is_paused = after.paused_until is not None and after.paused_until != before.paused_until

    if is_paused and (not before.pauses or after.why != before.why):
        _log.warning(
            "provider.paused",
            provider=after.id,
            work=after.paused_work,
            reason=after.why,
            paused_until=_iso(after.paused_until or 0.0),
        )
    elif before.pauses and not after.pauses:
        _log.info(
            "provider.resumed",
            provider=after.id,
            work=before.paused_work,
            pauses=before.pauses,
            lasted_s=_lasted(before.paused_at, now),
        )
