"""Ruling: where each request of a batch goes, and why.

Pure: from verdicts and complaints to places and successors; `settlement` writes them down.
Raises nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, assert_never

from promptspool.collect.judge import MISMATCH
from promptspool.collect.remedy import NO_REASON, Remedy, faults_of, named_lines, remedy
from promptspool.collect.verdict import Verdict
from promptspool.model import RemoteStatus
from promptspool.wire import BatchFault

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from promptspool.model import Batch

MAX_DELAY_S = 3600.0
"""No successor waits much longer: room comes back within a day, and nobody says when."""

ROOM_DELAY_S = 60.0
FILE_DELAY_S = 20.0

# Where a request goes: it has its answer, its error, one of ours, or a place in a successor.
ANSWERED, FAILED, REFUSED, FIRST, SECOND = range(5)

_MISSING = BatchFault(
    code="missing", message="the provider ended the batch without a word on this request"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heir:
    """What a successor takes over besides its requests."""

    attempt: int
    waits: int
    reuploads: int
    halvings: int
    delay_s: float
    input_file: str | None = None


@dataclass(slots=True, kw_only=True)
class Ruling:
    """Where each request of a batch goes."""

    places: bytearray
    """By request, in the order of the request file."""
    heirs: dict[int, Heir] = field(default_factory=dict)
    """By the number in *places*; those that get no request are not made."""
    refusals: Mapping[int, BatchFault] = field(default_factory=dict)
    """Why a refused request is, by its place; `otherwise` for the rest."""
    otherwise: BatchFault = _MISSING


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """When failed requests are not asked again, whatever attempts are left."""

    share: float
    """Of the requests that were asked, failed in one way."""
    requests: int
    """And so many of them."""


def hopeless(
    batch: Batch, verdicts: bytearray, failures: Mapping[int, str], stop: Stop
) -> str | None:
    """Return the one code in which so many requests failed that more of it would come.

    *failures* are the codes of the requests that may be asked again, by place. Once is no proof of
    it: a provider that is down for an hour fails whole batches, at no price. Answers that do not
    fit their schema are paid for, so once is enough of them.
    """
    counts = Counter(failures.values())
    code, count = counts.most_common(1)[0] if counts else ("", 0)
    asked = len(verdicts) - verdicts.count(Verdict.UNRUN)
    is_most = count >= stop.requests and count >= stop.share * asked

    return code if is_most and (batch.attempt > 0 or code == MISMATCH) else None


LOOKS_FOR_AN_ANSWER = 5
"""A completed batch may show its output file late (`batch-apis`, F7), or send it short."""


def doubt(batch: Batch, verdicts: bytearray) -> str | None:
    """Return why the answers deserve a second look, None if they do not or have had it."""
    missing = verdicts.count(Verdict.MISSING)
    counted = min(batch.completed + batch.failed, len(verdicts))
    found = len(verdicts) - missing
    looks_worth = LOOKS_FOR_AN_ANSWER if counted > found else 1

    if batch.looks >= looks_worth or batch.remote_status is RemoteStatus.LOST:
        return None

    if missing and batch.remote_status is RemoteStatus.COMPLETED:
        return f"the batch is completed, but {missing} of {len(verdicts)} requests have no answer"

    if counted > found:
        return f"the provider counts {counted} answers, its files have {found}"

    return None


def refused(batch: Batch, now: float) -> Ruling:
    """Rule on a batch of which nothing ran."""
    faults = faults_of(batch)
    named = named_lines(batch, faults)
    cure = remedy(batch, faults)

    if batch.is_over(now):
        return _given_up(batch, cure, faults)

    match cure:
        case Remedy.WAIT:
            delay_s = _backoff(ROOM_DELAY_S, batch.waits)
            heir = _heir(batch, waits=batch.waits + 1, delay_s=delay_s, input_file=batch.input_file)
            ruling = Ruling(places=_all(batch, FIRST), heirs={FIRST: heir})
        case Remedy.WAIT_IN_HALVES:
            delay_s = _backoff(ROOM_DELAY_S, batch.waits)
            ruling = _halves(batch, _heir(batch, waits=batch.waits + 1, delay_s=delay_s))
        case Remedy.UPLOAD_AGAIN:
            delay_s = _backoff(FILE_DELAY_S, batch.reuploads)
            heir = _heir(batch, reuploads=batch.reuploads + 1, delay_s=delay_s)
            ruling = Ruling(places=_all(batch, FIRST), heirs={FIRST: heir})
        case Remedy.EXCISE:
            places = _all(batch, FIRST)

            for place in named:
                places[place] = REFUSED

            ruling = Ruling(places=places, heirs={FIRST: _heir(batch)}, refusals=_worded(named))
        case Remedy.SHRINK:
            ruling = _halves(batch, _heir(batch))
        case Remedy.HALVE:
            ruling = _halves(batch, _heir(batch, halvings=batch.halvings + 1))
        case Remedy.GIVE_UP:
            fault = _worded_fault(faults[0] if faults else NO_REASON)
            ruling = Ruling(places=_all(batch, REFUSED), otherwise=fault)
        case _:
            assert_never(cure)

    return ruling


def collected(  # noqa: PLR0913 - the batch, what became of it and the rules
    batch: Batch,
    verdicts: bytearray,
    *,
    max_attempts: int,
    request_backoff_s: float,
    now: float,
    doomed: Collection[int] = (),
) -> Ruling:
    """Rule on a batch that ran, wholly or in part; *doomed* places are not asked again."""
    is_over = batch.is_over(now)
    is_cut_short = batch.remote_status in (RemoteStatus.EXPIRED, RemoteStatus.CANCELLED)
    may_retry = not is_over and batch.attempt + 1 < max_attempts
    where = {
        Verdict.OK: ANSWERED,
        Verdict.FINAL: FAILED,
        Verdict.RETRY: FIRST if may_retry else FAILED,
        Verdict.UNRUN: FAILED if is_over else SECOND,
        Verdict.MISSING: FIRST if may_retry else REFUSED,
    }

    if is_cut_short:
        # Providers may leave out what never ran instead of saying so.
        where[Verdict.MISSING] = REFUSED if is_over else SECOND

    if batch.cancelled_at is not None:
        where[Verdict.UNRUN] = REFUSED  # ours says why, the provider's only that it was so

    table = bytes(where[found] for found in Verdict).ljust(256)
    places = verdicts.translate(table)

    for place in doomed:
        places[place] = FAILED

    # After a whole window at the provider there is no use in waiting here, too.
    has_waited = batch.remote_status is RemoteStatus.EXPIRED and _lived(batch) >= MAX_DELAY_S
    pause_s = 0.0 if has_waited else _backoff(request_backoff_s, batch.waits)
    retry_s = _backoff(request_backoff_s, batch.attempt)

    return Ruling(
        places=places,
        heirs={
            FIRST: _heir(batch, attempt=batch.attempt + 1, waits=0, halvings=0, delay_s=retry_s),
            SECOND: _heir(batch, waits=batch.waits + 1, delay_s=pause_s),
        },
        otherwise=_too_old(batch, []) if is_over else _MISSING,
    )


def _lived(batch: Batch) -> float:
    """Return the seconds that a batch was at the provider; a long time if it does not say."""
    if batch.created_at is None or batch.ended_at is None:
        return MAX_DELAY_S

    return batch.ended_at - batch.created_at


def _given_up(batch: Batch, cure: Remedy, faults: Sequence[BatchFault]) -> Ruling:
    """Refuse all of a batch that is too old to be followed by another.

    The provider's own word on a request, or on all of them, says more than that time has run out.
    """
    named = named_lines(batch, faults) if cure is Remedy.EXCISE else {}
    is_final = cure is Remedy.GIVE_UP and faults
    fault = faults[0] if is_final else _too_old(batch, faults)

    return Ruling(
        places=_all(batch, REFUSED), refusals=_worded(named), otherwise=_worded_fault(fault)
    )


def _halves(batch: Batch, heir: Heir) -> Ruling:
    half = (batch.requests + 1) // 2
    places = bytearray([FIRST]) * half + bytearray([SECOND]) * (batch.requests - half)

    return Ruling(places=places, heirs={FIRST: heir, SECOND: heir})


def _all(batch: Batch, place: int) -> bytearray:
    return bytearray([place]) * batch.requests


def _heir(batch: Batch, **changes: Any) -> Heir:
    """Return a successor like its parent, but for *changes*; it needs an upload of its own."""
    heir = Heir(
        attempt=batch.attempt,
        waits=batch.waits,
        reuploads=batch.reuploads,
        halvings=batch.halvings,
        delay_s=0.0,
    )

    return replace(heir, **changes)


def _backoff(first_s: float, count: int) -> float:
    # The exponent is bounded because a lineage may be turned away for days.
    return min(first_s * 2.0 ** min(count, 32), max(MAX_DELAY_S, first_s))


def _too_old(batch: Batch, faults: Sequence[BatchFault]) -> BatchFault:
    if batch.cancelled_at is not None:
        return BatchFault(code="cancelled", message="cancelled before this was answered")

    said = next((fault.message for fault in faults if fault.message), None)
    last = f"; the provider's last word: {said}" if said else ""
    message = f"the job grew older than retry.max_age before this was answered{last}"

    return BatchFault(code="max_age_exceeded", message=message)


def _worded(faults: Mapping[int, BatchFault]) -> dict[int, BatchFault]:
    return {place: _worded_fault(fault) for place, fault in faults.items()}


def _worded_fault(fault: BatchFault) -> BatchFault:
    """Return *fault* with both words, so that no error line is empty."""
    return BatchFault(
        code=fault.code or NO_REASON.code, message=fault.message or fault.code or NO_REASON.message
    )
