"""Products: every row's one answer or error, in the order of the dropped file.

An answer is found by arithmetic (its wire id holds its row) and kept as file, offset and length in
arrays, 17 bytes a row; measured against a dict of lines it is as fast and takes a fraction of the
memory. Files appear by rename, the same bytes however often it is repeated. Raises `Bug` for a row
without answer and error, and lets `OSError` through (environment).
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.collect.answers import (
    ERROR,
    OUTPUT,
    REFUSED,
    Answer,
    Noise,
    answers,
    planned_rows,
    rows_of,
)
from promptspool.collect.judge import Judge
from promptspool.collect.row_answers import RowAnswer, RowError
from promptspool.collect.verdict import Verdict, code_of, message_of, parsed
from promptspool.errors import Bug
from promptspool.model import RemoteStatus
from promptspool.spool import sync_file, sync_folder
from promptspool.wire import UNREADABLE, AnswerLine, ErrorLine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.model import Batch, JobId
    from promptspool.schema import Schema
    from promptspool.wire import PlannedRow

_KINDS = (OUTPUT, ERROR, REFUSED)
_ASKED = frozenset({Verdict.RETRY, Verdict.FINAL, Verdict.MISSING})

_MAX_OPEN = 64
_WRITE_BYTES = 1 << 20


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


class _Found(NamedTuple):
    """A row's line, read back."""

    batch: Batch
    kind: str
    answer: AnswerLine


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
    index = _Index(folder, job, batches, judge)
    writing = _Writing(folder, source, index, judge)

    try:
        writing.run(shape or _exhausted)
    finally:
        index.close()

    sync_folder(folder)

    return writing.tally


class _Unreadable:
    """The lines that are no answers, kept for people: an answer in one of them was paid for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        path.unlink(missing_ok=True)

    def add(self, line: bytes) -> None:
        if self._file is None:
            self._file = _part(self._path).open("wb", buffering=_WRITE_BYTES)

        self._file.write(line + b"\n")

    def finish(self) -> None:
        if self._file is not None:
            self._file.close()
            _finish(self._path)


class _Index:
    """Where each row's line is: its first success, or else its last error."""

    def __init__(self, folder: Path, job: JobId, batches: Sequence[Batch], judge: Judge) -> None:
        self.unreadable = _Unreadable(folder / UNREADABLE)
        self.noise = Noise(keep=self.unreadable.add)
        self._judge = judge
        self._folder = folder
        self._batches = batches
        self._open: OrderedDict[int, int] = OrderedDict()
        self.count = count = _count_lines(folder / "rows.jsonl")
        self._file = array("I", bytes(4 * count))
        self._offset = array("Q", bytes(8 * count))
        self._length = array("I", bytes(4 * count))
        self._verdict = bytearray(count)

        for number, batch in enumerate(batches):
            if batch.job != job:
                message = f"{batch.id} is no batch of {job}"
                raise Bug(message)

            self._add(number, batch)

        self.unreadable.finish()

    def found(self, row: int) -> _Found | None:
        """Return a row's line and where it is from; None if it has none."""
        if not self._verdict[row]:
            return None

        file = self._file[row]
        descriptor = self._descriptor(file)
        answer = parsed(os.pread(descriptor, self._length[row], self._offset[row]))

        if answer is None:
            message = f"row {row}: its answer cannot be read again"
            raise Bug(message)

        return _Found(self._batches[file // len(_KINDS)], _KINDS[file % len(_KINDS)], answer)

    def close(self) -> None:
        """Close whatever is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _add(self, number: int, batch: Batch) -> None:
        rows = rows_of(self._folder, batch)
        found = answers(
            self._folder, batch, rows, kinds=_KINDS, noise=self.noise, judge=self._judge
        )

        for answer in found:
            row = rows[answer.place]

            if self._verdict[row] != Verdict.OK:
                self._keep(row, number, answer)

    def _keep(self, row: int, number: int, answer: Answer) -> None:
        self._file[row] = number * len(_KINDS) + _KINDS.index(answer.kind)
        self._offset[row] = answer.offset
        self._length[row] = answer.length
        self._verdict[row] = answer.verdict

    def _descriptor(self, file: int) -> int:
        """Open an answer file, or return it if it is open; the one longest unused makes room."""
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]

        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])

        batch, kind = self._batches[file // len(_KINDS)], _KINDS[file % len(_KINDS)]
        path = self._folder / f"{batch.id}.{kind}.jsonl"
        self._open[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        return self._open[file]


class _Writing:
    """One pass over the rows."""

    def __init__(self, folder: Path, source: str, index: _Index, judge: Judge) -> None:
        self.tally = Tally(noise=index.noise)
        self._judge = judge
        self._folder = folder
        self._source = source
        self._index = index
        self._encoder = msgspec.json.Encoder()

    def run(self, shape: Shape) -> None:
        results = self._folder / "results.jsonl"
        errors = self._folder / "errors.jsonl"

        with (
            _part(results).open("wb", buffering=_WRITE_BYTES) as good,
            _part(errors).open("wb", buffering=_WRITE_BYTES) as bad,
        ):
            self.tally.left_out = shape(self._rows(good, bad))

        if self.tally.results + self.tally.errors != self._index.count:
            message = f"{self._index.count} rows, but {self.tally.results} results and "
            raise Bug(f"{message}{self.tally.errors} errors: not all of them were taken")

        _finish(results)

        if self.tally.errors:
            _finish(errors)
        else:
            _part(errors).unlink()
            errors.unlink(missing_ok=True)

    def _rows(self, good: BinaryIO, bad: BinaryIO) -> Iterator[RowAnswer]:
        """Write each row's line, and then yield what became of it."""
        for number, row in enumerate(planned_rows(self._folder)):
            answered = self._written(number, row, good, bad)

            if answered.error is None:
                self.tally.results += 1
            else:
                self.tally.errors += 1
                self.tally.codes[answered.error.code] += 1

            yield answered

    def _written(self, number: int, row: PlannedRow, good: BinaryIO, bad: BinaryIO) -> RowAnswer:
        found = self._index.found(number)

        if found is not None:
            return self._answered(row, found, good, bad)

        if row.fault is not None:
            error = msgspec.Raw(self._encoder.encode(row.fault))
            bad.write(self._error(row, AnswerLine(custom_id=row.id, error=error), 0))

            return RowAnswer(row, None, RowError(row.fault.code, row.fault.message))

        message = f"row {number} (line {row.line}) has neither an answer nor an error"
        raise Bug(message)

    def _answered(self, row: PlannedRow, found: _Found, good: BinaryIO, bad: BinaryIO) -> RowAnswer:
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


def _attempts(found: _Found, verdict: Verdict) -> int:
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


def _count_lines(path: Path) -> int:
    with path.open("rb", buffering=0) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_WRITE_BYTES), b""))


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _finish(path: Path) -> None:
    """Give a written product its name; a copy already delivered keeps its own bytes."""
    sync_file(_part(path))
    _part(path).replace(path)
