"""What the daemon says of its transitions: one line each, after its commit.

Events are `noun.past_participle` and never interpolated. The first failure of a stage warns,
repeats are told at every doubling, the rest at debug. Never a prompt, an answer or a key. Raises
nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from promptspool.model import Batch, BatchStatus, Job, JobStatus, ProviderState, ProviderStatus
from promptspool.outcomes import (
    Created,
    Delivered,
    Failed,
    Planned,
    Polled,
    Recalled,
    Settled,
    Trouble,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.model import Row
    from promptspool.outcomes import Outcome

_USUAL_NAMES = frozenset({"prompt", "text", "input", "question", "messages"})

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


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


def tell(
    stage: str, moved: Sequence[tuple[Row, Row, Outcome]], followed: Sequence[tuple[Row, Row]]
) -> None:
    """Log what became of rows that a stage worked on, and of those that followed them."""
    _tell_failures(stage, moved)

    for before, after, outcome in moved:
        keys = names([before])

        if before.failures and not after.failures:
            _log.info("stage.recovered", stage=stage, failures=before.failures, **keys)

        if after.status is not before.status:
            _tell_transition(after, outcome, keys)
        elif (
            isinstance(before, Batch) and isinstance(after, Batch) and after.stalls > before.stalls
        ):
            _tell_stall(after, keys)
        elif isinstance(outcome, Polled) and after.why is not None and after.why != before.why:
            _log.warning("batch.status_unknown", reason=after.why, **keys)

        if isinstance(before, ProviderState) and isinstance(after, ProviderState):
            _tell_provider(before, after)

    for before, after in followed:
        if isinstance(after, Job):
            _log.info("job.settled", job=after.id)
        elif isinstance(before, ProviderState) and isinstance(after, ProviderState):
            _tell_provider(before, after)


def _tell_stall(batch: Batch, keys: dict[str, str]) -> None:
    since = datetime.fromtimestamp(batch.progressed_at or 0.0, UTC).isoformat(timespec="seconds")
    _log.warning("batch.stalled", remote_status=batch.remote_status, completed=batch.completed,
                 total=batch.total, unchanged_since=since.replace("+00:00", "Z"),
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
        case ProviderState(status=ProviderStatus.READY):
            found = outcome.found if isinstance(outcome, Recalled) else 0
            _log.info("provider.recalled", batches=found, **keys)
        case _:
            pass


def _tell_job(job: Job, outcome: Outcome, keys: dict[str, str]) -> None:
    match job.status, outcome:
        case JobStatus.PLANNED, Planned() as planned:
            _log.info("job.planned", requests=planned.requests, batches=len(planned.batches),
                      bad_rows=planned.bad_rows, format=planned.format,
                      prompt_columns=_told(planned.prompt_columns), **keys)  # fmt: skip
        case JobStatus.DELIVERED, Delivered() as delivered:
            left_out = {"left_out": delivered.left_out} if delivered.left_out else {}
            _log.info("job.delivered", file=job.shown, results=delivered.results,
                      errors=delivered.errors, **left_out, **keys)  # fmt: skip
        case JobStatus.REJECTED, _:
            _log.warning("job.rejected", file=job.shown, reason=_unquoted(job.why or ""), **keys)
        case JobStatus.DONE, _:
            _log.info("job.tidied", **keys)
        case _:
            pass


def _told(columns: Sequence[str]) -> list[str]:
    """Return names of columns for the log: a first line taken for a header may be a prompt."""
    return [name if name.strip().casefold() in _USUAL_NAMES else "(another)" for name in columns]


def _unquoted(reason: str) -> str:
    """Return a reason without what it quotes of the file, which `rejected/` has in full."""
    return _QUOTED.sub('"..."', reason)


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


def _tell_provider(before: ProviderState, after: ProviderState) -> None:
    is_paused = after.paused_until is not None and after.paused_until != before.paused_until

    if is_paused and (not before.pauses or after.why != before.why):
        until = datetime.fromtimestamp(after.paused_until or 0.0, UTC)
        _log.warning(
            "provider.paused",
            provider=after.id,
            work=after.paused_work,
            reason=after.why,
            paused_until=until.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )
    elif before.pauses and not after.pauses:
        _log.info(
            "provider.resumed", provider=after.id, work=before.paused_work, pauses=before.pauses
        )
