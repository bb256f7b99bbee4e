"""Kept: the rows of a retry that an earlier job has answered, which are not asked again.

What that job delivered is in the order of the dropped file, as the rows are: they are merged as
they come, and one line is held at a time. They make a batch of their own that never leaves this
machine: its request file has nothing but names, its output file the answers under the names of the
new job. After a crash both are written anew. Raises `BadInput` (bad data) where answers and rows do
not go together, and lets `OSError` through (environment).
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from promptspool.digest import Hasher
from promptspool.errors import BadInput
from promptspool.model import batch_id
from promptspool.spool import read_own, sync_file
from promptspool.wire import KEPT, RETRY, AnswerLine, PlannedBatch, RequestName, Retry, wire_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.model import BatchId, JobId
    from promptspool.settings import ProfileSettings
    from promptspool.wire import Manifest

_BLOCK_BYTES = 1 << 20

_WAY_OUT = "set back what was changed in its profile or sidecar since, or drop the file again"

_lines = msgspec.json.Decoder(AnswerLine)


def kept_id(job: JobId) -> BatchId:
    """Name the batch of what is kept; the others are counted from 1."""
    return batch_id(job, 0)


class Kept:
    """The answers that are not taken yet, and the batch that takes them."""

    def __init__(self, job: JobId, answers: BinaryIO, requests: BinaryIO, output: BinaryIO) -> None:
        """Begin with the first of *answers*; *requests* and *output* are to be empty."""
        self.count = 0
        """How many were taken."""
        self._job = job
        self._answers = answers
        self._requests = requests
        self._output = output
        self._hasher = Hasher()
        self._size_bytes = 0
        self._next = self._read()

    def is_taken(self, name: str, row: int) -> bool:
        """Take the answer for the row called *name*, number *row*; False if it is to be asked."""
        answer = self._next

        if answer is None or answer.custom_id != name:
            return False

        wire = wire_id(self._job, row).encode()
        request = b'{"custom_id":"%s"}\n' % wire
        line = b'{"id":%s,"custom_id":"%s","response":%s,"error":null}\n'
        self._requests.write(request)
        self._hasher.update(request)
        self._size_bytes += len(request)
        self._output.write(line % (bytes(answer.id), wire, bytes(answer.response)))
        self.count += 1
        self._next = self._read()

        return True

    def batch(self, profile: ProfileSettings) -> PlannedBatch | None:
        """Return the batch, None if nothing was taken."""
        if not self.count:
            return None

        return PlannedBatch(
            id=kept_id(self._job),
            endpoint=profile.endpoint,
            model=profile.model,
            requests=self.count,
            size_bytes=self._size_bytes,
            digest=self._hasher.digest(),
        )

    def _read(self) -> AnswerLine | None:
        line = self._answers.readline()

        try:
            return _lines.decode(line) if line else None
        except msgspec.DecodeError as error:
            reason = f"the results of the job before are damaged: {error}; drop the file again"
            raise BadInput(reason, code="damaged_results") from error


@contextmanager
def kept_answers(folder: Path, job: JobId) -> Iterator[Kept | None]:
    """Yield what is to be merged with the rows, None for a file that was dropped.

    What was taken is on the platter at the end.
    """
    if not (folder / KEPT).exists():
        yield None
        return

    paths = [folder / f"{kept_id(job)}.{kind}.jsonl" for kind in ("requests", "output")]

    with (
        (folder / KEPT).open("rb", buffering=_BLOCK_BYTES) as answers,
        paths[0].open("wb", buffering=_BLOCK_BYTES) as requests,
        paths[1].open("wb", buffering=_BLOCK_BYTES) as output,
    ):
        yield Kept(job, answers, requests, output)

    for path in paths:
        sync_file(path)


def check_kept(folder: Path, manifest: Manifest) -> None:
    """Hold that a plan asks for what has failed before, and for nothing else.

    Raises `BadInput` where an answer found no row, or the file reads as another number of rows.
    """
    if not (folder / RETRY).exists():
        return

    retry = read_own(folder / RETRY, Retry)
    count = 0 if manifest.kept is None else manifest.kept.requests

    if count != retry.kept:
        found = _name_of(folder / KEPT, count)
        reason = f"row {found} was answered before, and is not found again; {_WAY_OUT}"
        raise BadInput(reason, code="other_rows")

    if manifest.rows != retry.kept + retry.failed:
        before = retry.kept + retry.failed
        reason = f"the file had {before:,} rows before, and has {manifest.rows:,} now; {_WAY_OUT}"
        raise BadInput(reason, code="other_rows")


def _name_of(path: Path, place: int) -> str:
    """Return the name of an answer, quoted, by its place from 0."""
    with path.open("rb", buffering=_BLOCK_BYTES) as file:
        for line in islice(file, place, place + 1):
            return repr(msgspec.json.decode(line, type=RequestName).custom_id)

    return f"{place + 1:,}"
