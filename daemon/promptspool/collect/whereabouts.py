"""Whereabouts: which line of which file is the last word on each row of a job.

A row's number is in the name of its request, so its line is found by arithmetic. Kept are 17 bytes
a row and no line; measured against a dict of lines that is as fast and takes a fraction of the
memory. Raises `Bug` for a batch of another job and for a line that is not there any more, and lets
`OSError` through (environment).
"""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from promptspool.collect.answers import KINDS, REFUSED, Noise, count_rows, path_of, rows_of
from promptspool.collect.index import READ, indexed
from promptspool.collect.standing import Standing
from promptspool.collect.verdict import Verdict, parsed
from promptspool.errors import Bug
from promptspool.spool import sync_file
from promptspool.wire import UNREADABLE, wire_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.collect.judge import Judge
    from promptspool.model import Batch, JobId
    from promptspool.wire import AnswerLine

_MAX_OPEN = 64
_WRITE_BYTES = 1 << 20


class Found(NamedTuple):
    """A row's line, read back."""

    batch: Batch
    kind: str
    answer: AnswerLine


class Whereabouts:
    """Where each row's line is: its first success, or else its last error."""

    def __init__(self, folder: Path, job: JobId, batches: Sequence[Batch], judge: Judge) -> None:
        """Look through the files of *batches*, which are all of the job's, parents first.

        Lines that are no answers are put into *folder*, for people.
        """
        unreadable = _Unreadable(folder / UNREADABLE)
        self.noise = Noise(keep=unreadable.add)
        self.count = count = count_rows(folder)
        """Of the rows of the job."""
        self.job = job
        self.verdicts = bytearray(count)
        self._judge = judge
        self._folder = folder
        self._batches = batches
        self._open: OrderedDict[int, int] = OrderedDict()
        self._files = array("I", bytes(4 * count))
        self._offsets = array("Q", bytes(8 * count))
        self._lengths = array("I", bytes(4 * count))

        for number, batch in enumerate(batches):
            if batch.job != job:
                message = f"{batch.id} is no batch of {job}"
                raise Bug(message)

            self._add(number, self._standing(batch))

        unreadable.finish()

    def found(self, row: int) -> Found | None:
        """Return a row's line and where it is from; None if it has none."""
        if not self.verdicts[row]:
            return None

        (line,) = self.lines(row, row + 1)
        answer = parsed(line)

        if answer is None or answer.custom_id != wire_id(self.job, row):
            message = f"row {row}: its answer cannot be read again"
            raise Bug(message)

        batch, kind = divmod(self._files[row], len(KINDS))

        return Found(self._batches[batch], KINDS[kind], answer)

    def lines(self, first: int, end: int) -> Iterator[bytes]:
        """Yield the lines of the rows from *first* to before *end*; empty for a row without one."""
        last, descriptor = -1, -1
        span = slice(first, end)

        for file, offset, length in zip(
            self._files[span], self._offsets[span], self._lengths[span], strict=True
        ):
            if file != last and length:
                last, descriptor = file, self._descriptor(file)

            yield os.pread(descriptor, length, offset) if length else b""

    def close(self) -> None:
        """Close whatever is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _standing(self, batch: Batch) -> Standing:
        """Return the last word on the requests of one batch."""
        folder, noise, judge = self._folder, self.noise, self._judge
        standing = indexed(folder, batch, noise=noise, judge=judge)

        if standing is None:
            standing = Standing(folder, batch, rows_of(folder, batch), noise=noise, judge=judge)

            for kind in READ:
                standing.read(kind)

        standing.read(REFUSED)

        return standing

    def _add(self, number: int, standing: Standing) -> None:
        """Take what a batch says of rows that no earlier one has an answer to."""
        rows = standing.rows
        files = array("I", [number * len(KINDS) + kind for kind in standing.kinds])

        if isinstance(rows, range) and not any(self.verdicts[rows.start : rows.stop]):
            span = slice(rows.start, rows.stop)
            self._files[span] = files
            self._offsets[span] = standing.offsets
            self._lengths[span] = standing.lengths
            self.verdicts[span] = standing.verdicts
            return

        for place, row in enumerate(rows):
            if standing.verdicts[place] and self.verdicts[row] != Verdict.OK:
                self._files[row] = files[place]
                self._offsets[row] = standing.offsets[place]
                self._lengths[row] = standing.lengths[place]
                self.verdicts[row] = standing.verdicts[place]

    def _descriptor(self, file: int) -> int:
        """Open an answer file, or return it if it is open; the one longest unused makes room."""
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]

        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])

        batch, kind = divmod(file, len(KINDS))
        path = path_of(self._folder, self._batches[batch].id, KINDS[kind])
        self._open[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        return self._open[file]


class _Unreadable:
    """The lines that are no answers, kept for people: an answer in one of them was paid for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file: BinaryIO | None = None
        path.unlink(missing_ok=True)

    def add(self, line: bytes) -> None:
        if self._file is None:
            self._file = self._part.open("wb", buffering=_WRITE_BYTES)

        self._file.write(line + b"\n")

    def finish(self) -> None:
        if self._file is not None:
            self._file.close()
            sync_file(self._part)
            self._part.replace(self._path)
