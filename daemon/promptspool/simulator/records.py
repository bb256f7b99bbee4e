"""One batch as the simulator knows it, and as a client sees it at a given moment.

Pure but for `Record`'s own fields. Raises nothing.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from promptspool.simulator.failures import CANCELLED, EXPIRED, Failure
from promptspool.simulator.output import Recipe
from promptspool.simulator.wire import (
    TERMINAL,
    Batch,
    BatchError,
    BatchErrors,
    BatchUsage,
    RequestCounts,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from promptspool.simulator.failures import Manner
    from promptspool.simulator.faults import BatchFault
    from promptspool.simulator.orders import BatchOrder
    from promptspool.simulator.settings import SimulatorSettings
    from promptspool.simulator.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Fates:
    """What becomes of requests that do not simply get their answer, by their ordinals."""

    failures: dict[int, Failure] = field(default_factory=dict)
    manners: dict[int, Manner] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of a batch and how each will end, decided when it was accepted.

    *order* is the order they run in, *failed_at* the sorted positions in it that fail.
    """

    offsets: array[int]
    order: array[int]
    failures: Mapping[int, Failure]
    manners: Mapping[int, Manner]
    missing: Collection[int]
    failed_at: list[int]

    def count(self, ran: int) -> RequestCounts:
        """Return the counts when the first *ran* requests have run."""
        failed = bisect_left(self.failed_at, ran)
        return RequestCounts(total=len(self.order), completed=ran - failed, failed=failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What an ended batch left; a file id is None where there is no file."""

    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: BatchUsage | None = None


@dataclass(slots=True, kw_only=True)
class Record:
    """A batch. Changed by a cancel, by the making of its results and by being looked at.

    *tokens* is its share of the enqueued limit; *errors* is not empty when it will fail
    validation; *lock* makes sure that the results are made once.
    """

    id: str
    created_at: float
    order: BatchOrder
    timeline: Timeline
    fate: BatchFault
    errors: list[BatchError]
    model: str | None
    tokens: int
    source: Path
    work: Workload
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    results: Results | None = None
    looks: int = 0

    def ran(self, now: float) -> int:
        """Return how many requests have run by *now*."""
        # The tiny part keeps 0.3 * 10 from being two.
        return int(len(self.work.order) * self.timeline.progress(now) + 1e-9)

    def is_sound(self) -> bool:
        """Tell whether it passes validation, and so costs money."""
        return self.timeline.at("failed") is None

    def is_due(self, now: float) -> bool:
        """Tell whether its result files must exist and do not."""
        status = self.timeline.status(now)
        return self.results is None and status in TERMINAL and status != "failed"


def workload(remote_id: str, offsets: array[int], fates: Fates, drop: float) -> Workload:
    """Shuffle the requests of a batch, the same way for the same id, and lose some."""
    order = array("I", range(len(offsets)))
    random.Random(remote_id).shuffle(order)  # noqa: S311 - must be reproducible, is no secret
    lost = fates.missing | set(order[: int(len(order) * drop + 1e-9)])
    failed_at = [position for position, ordinal in enumerate(order) if ordinal in fates.failures]
    return Workload(
        offsets=offsets,
        order=order,
        failures=fates.failures,
        manners=fates.manners,
        missing=lost,
        failed_at=failed_at,
    )


def recipe(record: Record, now: float, settings: SimulatorSettings) -> Recipe:
    """Return what to write for a batch that has ended."""
    unrun: Failure | None = None

    match record.timeline.status(now):
        case "expired":
            unrun = EXPIRED
        case "cancelled" if settings.cancelled_lines:
            unrun = CANCELLED
        case _:
            pass

    return Recipe(
        batch_id=record.id,
        endpoint=record.order.endpoint,
        source=record.source,
        offsets=record.work.offsets,
        order=record.work.order,
        ran=record.ran(now),
        unrun=unrun,
        failures=record.work.failures,
        manners=record.work.manners,
        missing=record.work.missing,
        dimensions=settings.embedding_dimensions,
        defects=record.fate,
    )


def view(record: Record, now: float) -> Batch:
    """Return the batch object that a client sees at *now*."""
    timeline, fate = record.timeline, record.fate
    status = timeline.status(now)
    results = _shown_results(record, status)
    has_started = timeline.reached_at("in_progress", now) is not None
    nothing = "" if fate.blank_file_ids else None
    return Batch(
        id=record.id,
        endpoint=record.order.endpoint,
        model=record.model if has_started else None,
        errors=_errors(record) if status == "failed" else None,
        input_file_id=record.order.input_file_id,
        status=fate.renamed.get(status, status),
        output_file_id=results.output_file_id or nothing,
        error_file_id=results.error_file_id or nothing,
        created_at=int(record.created_at),
        in_progress_at=timeline.reached_at("in_progress", now),
        expires_at=int(timeline.expires_at),
        finalizing_at=timeline.reached_at("finalizing", now),
        completed_at=timeline.reached_at("completed", now),
        failed_at=timeline.reached_at("failed", now),
        expired_at=timeline.reached_at("expired", now),
        cancelling_at=timeline.reached_at("cancelling", now),
        cancelled_at=timeline.reached_at("cancelled", now),
        request_counts=record.work.count(record.ran(now)) if has_started else RequestCounts(),
        usage=results.usage,
        metadata=record.order.metadata,
    )


def shown(record: Record, now: float) -> Batch | dict[str, Any]:
    """Return what is sent of a batch at *now*: its object, unless that is to be tampered with."""
    found, fate = view(record, now), record.fate
    is_meant = not fate.raw_in or record.timeline.status(now) in fate.raw_in

    if not is_meant or not (fate.raw or fate.without):
        return found

    fields: dict[str, Any] = msgspec.to_builtins(found) | fate.raw
    return {name: value for name, value in fields.items() if name not in fate.without}


def _shown_results(record: Record, status: Status) -> Results:
    if record.results is None or status not in TERMINAL:
        return Results()

    is_late = 0 < record.fate.late_file_ids >= record.looks
    return Results(usage=record.results.usage) if is_late else record.results


def _errors(record: Record) -> BatchErrors | list[BatchError]:
    return record.errors if record.fate.bare_errors else BatchErrors(data=record.errors)
