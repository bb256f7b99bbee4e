"""Why requests of a job failed: one entry for each cause, with the provider's own words once.

Read from what is delivered, or, before that, from the provider's files in the working folder. Never
a prompt or an answer: of a line no more is kept than its error. Raises nothing: what cannot be read
is said.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from promptspool.collect.answers import lines, planned_rows
from promptspool.collect.verdict import Verdict, code_of, message_of, parsed, verdict
from promptspool.log import unquoted
from promptspool.model import JobStatus
from promptspool.tell.words import safe
from promptspool.wire import AnswerLine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from promptspool.model import Batch, Job
    from promptspool.spool import Spool

MOST = 10
"""So many causes are told apart; the others are counted."""

MAX_WORDS = 300
"""How much of a provider's words is shown."""

MAX_READ_BYTES = 500_000_000
"""Of output files more than this is not looked through for errors (measured: half a second)."""

_KEPT_REQUESTS = 3


@dataclass(slots=True, kw_only=True)
class Cause:
    """One reason, and how often it was one."""

    code: str
    count: int = 0
    words: str | None = None
    """The provider's, of the first of them, harmless to show; None if it gave none."""
    request_ids: list[str] = field(default_factory=list)
    """The provider's names for the first calls, for its support."""
    line: int | None = None
    """Where the first of these rows begins in the dropped file; None if it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Causes:
    """All of them."""

    found: Sequence[Cause]
    """The most frequent first, and at most `MOST`."""
    others: int = 0
    """Errors of further causes."""
    is_final: bool
    """They are as delivered; before that some of them are asked again."""
    note: str | None = None
    """What could not be read; None if all was."""


class _Response(msgspec.Struct):
    request_id: str | None = None


class _Error(AnswerLine):
    """A line of what is delivered."""

    attempts: int = 0
    source: dict[str, str | int] = msgspec.field(default_factory=dict)


_Failed = tuple[AnswerLine, bool, int | None]
"""An answer line that is an error, whether its words are ours, and its line in the dropped file."""


def causes_of(spool: Spool, job: Job, batches: Sequence[Batch]) -> Causes:
    """Return why requests of *job* failed, as far as is known by now."""
    is_final = job.status in (JobStatus.DELIVERED, JobStatus.DONE)
    notes: list[str] = []

    try:
        if is_final:
            path = spool.outbox / f"{os.fsdecode(job.stem)}.errors.jsonl"
            found = _grouped(_delivered(path))

            if job.errors and not found:
                notes.append(f"{safe(str(path))} is not there any more")
        else:
            found = _grouped(_so_far(spool.folder(job.id), job, batches, notes))
    except (OSError, msgspec.DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        found, notes = [], [f"the errors of this job cannot be read: {safe(str(reason))}"]

    return Causes(
        found=found[:MOST],
        others=sum(cause.count for cause in found[MOST:]),
        is_final=is_final,
        note="; ".join(notes) or None,
    )


def _grouped(failed: Iterable[_Failed]) -> list[Cause]:
    causes: dict[str, Cause] = {}

    for answer, is_ours, line in failed:
        code = safe(code_of(answer))
        cause = causes.setdefault(code, Cause(code=code))
        cause.count += 1
        cause.line = cause.line if cause.count > 1 else line

        if cause.words is None:
            words = message_of(answer)
            # What a complaint of ours quotes of a row may be a prompt.
            words = unquoted(words) if words and is_ours else words
            cause.words = _cut(words) if words else None

        name = _request_id(answer)

        if name is not None and len(cause.request_ids) < _KEPT_REQUESTS:
            cause.request_ids.append(safe(name))

    return sorted(causes.values(), key=lambda cause: -cause.count)


def _cut(words: str) -> str:
    told = safe(" ".join(words.split()))  # secrets are struck out before the cut

    return told if len(told) <= MAX_WORDS else f"{told[:MAX_WORDS]}..."


def _request_id(answer: AnswerLine) -> str | None:
    try:
        response = msgspec.json.decode(answer.response, type=_Response | None)
    except msgspec.DecodeError:
        return None

    return None if response is None else response.request_id


def _delivered(path: Path) -> Iterator[_Failed]:
    decoder = msgspec.json.Decoder(_Error)

    for _, line in lines(path):
        try:
            error = decoder.decode(line or b"")
        except msgspec.DecodeError:
            continue

        place = error.source.get("line")
        yield error, error.attempts == 0, place if isinstance(place, int) else None


def _so_far(
    folder: Path, job: Job, batches: Sequence[Batch], notes: list[str]
) -> Iterator[_Failed]:
    """Yield the errors in a working folder, those that are asked again too."""
    if job.bad_rows:
        for row in planned_rows(folder):
            if row.fault is not None:
                fault = msgspec.Raw(msgspec.json.encode(row.fault))
                yield AnswerLine(custom_id=row.id, error=fault), True, row.line

    outputs = [folder / f"{batch.id}.output.jsonl" for batch in batches]
    size_bytes = sum(path.stat().st_size for path in outputs if path.exists())

    if size_bytes > MAX_READ_BYTES:
        notes.append("errors among the answers are not counted yet: there are very many answers")
        outputs = []

    for kind in ("error", "refused"):
        for batch in batches:
            for answer in _failures(folder / f"{batch.id}.{kind}.jsonl"):
                yield answer, kind == "refused", None

    for path in outputs:
        for answer in _failures(path):
            yield answer, False, None


def _failures(path: Path) -> Iterator[AnswerLine]:
    for _, line in lines(path):
        answer = None if line is None else parsed(line)

        if answer is not None and verdict(answer) is not Verdict.OK:
            yield answer
