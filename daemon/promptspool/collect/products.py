"""Products: every row's one answer or error, in the order of the dropped file.

Plain answers are put under their users' ids some hundreds at a time, whatever is odd one by one;
so is everything where answers are to fit a schema, or more is made of them than results and errors.
Files appear by rename, the same bytes however often it is repeated. Raises `Bug` for a row without
answer and error, and lets `OSError` through (environment).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from promptspool.collect.answers import REFUSED, Noise, planned_blocks, planned_rows
from promptspool.collect.judge import Judge
from promptspool.collect.part import Part
from promptspool.collect.row_answers import RowAnswer, RowError
from promptspool.collect.verdict import Verdict, code_of, message_of
from promptspool.collect.whereabouts import Whereabouts
from promptspool.errors import Bug
from promptspool.model import RemoteStatus
from promptspool.spool import sync_folder
from promptspool.wire import NULL, AnswerLine, ErrorLine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.collect.whereabouts import Found
    from promptspool.model import Batch, JobId
    from promptspool.schema import Schema
    from promptspool.wire import PlannedRow

_ASKED = frozenset({Verdict.RETRY, Verdict.FINAL, Verdict.MISSING})

_FLUSHED_BYTES = 1 << 18
"""Encoded at once: more is no faster (measured), and stays longer in memory."""


@dataclass(slots=True)
class Tally:
    """What a job's products hold, counted while they were written."""

    results: int = 0
    errors: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """Error lines by code."""
    noise: Noise = field(default_factory=Noise)
    """Lines of the provider's files that were left out."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Products that could not be made, with the reason."""


Shape = Callable[[Iterator[RowAnswer]], dict[str, str]]
"""Makes further products of the rows. It takes them to their end, which is what writes results and
errors, and returns what it could not make."""


class _PlainResult(msgspec.Struct, kw_only=True, gc=False):
    """A line of a success as `results.jsonl` has it, under whatever name."""

    id: msgspec.Raw = NULL
    custom_id: str
    response: msgspec.Raw
    error: None = None


_plain_results = msgspec.json.Decoder(_PlainResult)


def compile_answers(  # noqa: PLR0913 (the job, its rules, and who else wants to know)
    *,
    folder: Path,
    job: JobId,
    source: str,
    batches: Sequence[Batch],
    response_schema: Schema | None = None,
    shape: Shape | None = None,
) -> Tally:
    """Write `results.jsonl` and, if a row failed, `errors.jsonl` into *folder*.

    *batches* are all of the job's, parents before successors. Every row of the dropped file is in
    one of the two, in its order; *source* is that file's name. *shape* makes further products. With
    a *response_schema* only what fits it is an answer, and results have its value as `parsed`.
    """
    judge = Judge(response_schema)
    where = Whereabouts(folder, job, batches, judge)
    writing = _Writing(folder, source, where, judge)

    try:
        writing.run(shape)
    finally:
        where.close()

    sync_folder(folder)

    return writing.tally


class _Writing:
    """One pass over the rows."""

    def __init__(self, folder: Path, source: str, where: Whereabouts, judge: Judge) -> None:
        self.tally = Tally(noise=where.noise)
        self._judge = judge
        self._folder = folder
        self._source = source
        self._where = where
        self._encoder = msgspec.json.Encoder()

    def run(self, shape: Shape | None) -> None:
        with (
            Part(self._folder / "results.jsonl") as good,
            Part(self._folder / "errors.jsonl") as bad,
        ):
            if shape is None and not self._judge.is_strict:
                self._write_plain(good, bad)
            else:
                self.tally.left_out = (shape or _exhausted)(self._rows(good, bad))

            if self.tally.results + self.tally.errors != self._where.count:
                message = f"{self._where.count} rows, but {self.tally.results} results and "
                raise Bug(f"{message}{self.tally.errors} errors: not all of them were taken")

            good.finish()

            if self.tally.errors:
                bad.finish()
            else:
                bad.drop()

    def _write_plain(self, good: Part, bad: Part) -> None:
        """Write all rows' lines, plain answers some hundreds at a time."""
        first = 0

        for rows in planned_blocks(self._folder):
            self._write_block(first, rows, good, bad)
            first += len(rows)

    def _write_block(self, first: int, rows: Sequence[PlannedRow], good: Part, bad: Part) -> None:
        """Write the lines of *rows*, which begin with row number *first*."""
        job, verdicts, decode = self._where.job, self._where.verdicts, _plain_results.decode
        answered = int(Verdict.OK)  # a member costs more to look up
        pending: list[_PlainResult] = []
        size_bytes = 0

        for number, (row, line) in enumerate(
            zip(rows, self._where.lines(first, first + len(rows)), strict=True), first
        ):
            try:
                result = decode(line)
            except (msgspec.DecodeError, RecursionError):
                result = None

            if (
                result is None
                or verdicts[number] != answered
                or result.custom_id != f"{job}-{number}"
            ):
                self._flush(pending, good)
                self._count(self._written(number, row, good, bad))
                continue

            result.custom_id = row.id
            pending.append(result)
            size_bytes += len(line)

            if size_bytes > _FLUSHED_BYTES:
                self._flush(pending, good)
                size_bytes = 0

        self._flush(pending, good)

    def _flush(self, results: list[_PlainResult], good: Part) -> None:
        """Write *results* and forget them."""
        data = self._encoder.encode_lines(results)
        # As `_one_line`: in what is encoded a carriage return can be nothing but a provider's own.
        good.write(data.replace(b"\r", b" ") if b"\r" in data else data)
        self.tally.results += len(results)
        results.clear()

    def _rows(self, good: Part, bad: Part) -> Iterator[RowAnswer]:
        """Write each row's line, and then yield what became of it."""
        for number, row in enumerate(planned_rows(self._folder)):
            answered = self._written(number, row, good, bad)
            self._count(answered)

            yield answered

    def _count(self, answered: RowAnswer) -> None:
        if answered.error is None:
            self.tally.results += 1
        else:
            self.tally.errors += 1
            self.tally.codes[answered.error.code] += 1

    def _written(self, number: int, row: PlannedRow, good: Part, bad: Part) -> RowAnswer:
        found = self._where.found(number)

        if found is not None:
            return self._answered(row, found, good, bad)

        if row.fault is not None:
            error = msgspec.Raw(self._encoder.encode(row.fault))
            bad.write(self._error(row, AnswerLine(custom_id=row.id, error=error), 0))

            return RowAnswer(row, None, RowError(row.fault.code, row.fault.message))

        message = f"row {number} (line {row.line}) has neither an answer nor an error"
        raise Bug(message)

    def _answered(self, row: PlannedRow, found: Found, good: Part, bad: Part) -> RowAnswer:
        """Write the line of a row that has one, whatever it says."""
        answer = found.answer
        verdict, fault, parsed_value = self._judge.judgement(answer)

        if verdict is Verdict.OK:
            good.write(self._result(row, answer, parsed_value))

            return RowAnswer(row, answer, parsed=parsed_value)

        attempts = _attempts(found, verdict)

        if fault is None:
            bad.write(self._error(row, answer, attempts))

            return RowAnswer(row, answer, RowError(code_of(answer), message_of(answer)))

        error = msgspec.Raw(self._encoder.encode(fault))
        bad.write(self._error(row, msgspec.structs.replace(answer, error=error), attempts))

        return RowAnswer(row, answer, RowError(fault.code, fault.message))

    def _result(self, row: PlannedRow, answer: AnswerLine, value: bytes | None) -> bytes:
        return b'{"id":%s,"custom_id":%s,"response":%s,"error":null%s}\n' % (
            bytes(_one_line(answer.id)),
            self._encoder.encode(row.id),
            bytes(_one_line(answer.response)),
            b"" if value is None else b',"parsed":' + value,
        )

    def _error(self, row: PlannedRow, answer: AnswerLine, attempts: int) -> bytes:
        line = ErrorLine(
            id=_one_line(answer.id),
            custom_id=row.id,
            response=_one_line(answer.response),
            error=_one_line(answer.error),
            attempts=attempts,
            source=_origin(self._source, row),
        )

        return self._encoder.encode(line) + b"\n"


def _exhausted(rows: Iterator[RowAnswer]) -> dict[str, str]:
    for _ in rows:
        pass

    return {}


def _attempts(found: Found, verdict: Verdict) -> int:
    """Return how often the model had been asked when a line was written."""
    if found.kind == REFUSED:
        # Our own lines: of a batch that ran to its end, or is lost, the model may have been asked.
        ended = found.batch.remote_status in (RemoteStatus.COMPLETED, RemoteStatus.LOST)
        was_asked = ended or code_of(found.answer) == "missing"
    else:
        was_asked = verdict in _ASKED

    return found.batch.attempt + was_asked


def _origin(source: str, row: PlannedRow) -> dict[str, str | int]:
    document = {} if row.document is None else {"document": row.document}

    return {"file": source, "line": row.line, **document}


def _one_line(raw: msgspec.Raw) -> msgspec.Raw:
    """Return *raw* without the carriage returns that JSON allows between tokens."""
    data = bytes(raw)

    return msgspec.Raw(data.replace(b"\r", b" ")) if b"\r" in data else raw
