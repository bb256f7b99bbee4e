"""Split: requests become request files, none larger than the provider takes.

Holds a few megabytes of lines whatever the number of files. A file is synced as soon as it is full,
while the next is written.
After a crash the files are half-written: they count for nothing until a manifest names them.
Raises `BadInput` for a request that fits no file (bad data) and lets `OSError` through
(environment).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from promptspool.digest import Hasher
from promptspool.errors import BadInput
from promptspool.intake.request import BYTES_A_TOKEN, WITHOUT_TEXT
from promptspool.model import JobId, batch_id
from promptspool.wire import PlannedBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from promptspool.intake.frame import Frame, Plain
    from promptspool.intake.request import Request
    from promptspool.intake.writing import Writing
    from promptspool.model import BatchId

# A file of hundreds of models would otherwise hold as many buffers, all of them nearly full.
PART_BUFFER_BYTES = 1 << 19
ALL_BUFFERS_BYTES = 1 << 23


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a provider takes in one batch."""

    max_requests: int
    max_bytes: int
    """Of the request file, line ends included."""
    max_inputs: int
    """Embedding inputs, summed over the requests."""
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    """Estimated input tokens by model, summed over the requests; one alone may have more."""


@dataclass(slots=True, kw_only=True)
class _Part:
    """One request file in the making."""

    id: BatchId
    endpoint: str
    model: str
    requests: int = 0
    size_bytes: int = 0
    inputs: int = 0
    text_bytes: int = 0
    limits: Limits
    max_text_bytes: float
    """If the tokens of input are limited."""
    output_tokens: int = 0
    answer_tokens: int
    """Expected of an answer that is not limited."""
    hasher: Hasher = field(default_factory=Hasher)
    pending: list[bytes] = field(default_factory=list)
    pending_bytes: int = 0

    def has_room(self, request: Request, line: bytes) -> bool:
        return (
            self.requests < self.limits.max_requests
            and self.size_bytes + len(line) <= self.limits.max_bytes
            and self.inputs + request.inputs <= self.limits.max_inputs
            and self.text_bytes + request.text_bytes <= self.max_text_bytes
        )

    def add(self, request: Request | Frame, data: bytes, *, count: int, text_bytes: int) -> None:
        self.requests += count
        self.size_bytes += len(data)
        self.inputs += request.inputs * count
        self.text_bytes += text_bytes
        limit = request.max_output
        self.output_tokens += (self.answer_tokens if limit is None else limit) * count
        self.pending.append(data)
        self.pending_bytes += len(data)

    def room(self, frame: Frame, sizes: Sequence[int], around: int) -> int:
        """Return how many of the next lines have room.

        *sizes* are those of their contents, *around* is what else each has.
        """
        count = min(len(sizes), self.limits.max_requests - self.requests)

        if frame.inputs:
            count = min(count, (self.limits.max_inputs - self.inputs) // frame.inputs)

        count = min(count, _prefix(sizes, self.limits.max_bytes - self.size_bytes, around))

        return min(count, _prefix(sizes, self.max_text_bytes - self.text_bytes, frame.text_bytes))


class Splitter:
    """Appends requests to the files of *folder*, one row of files for each endpoint and model.

    A batch takes one of each (OpenAI Batch guide). Files are numbered from 1 in the order of their
    first requests; within a file, requests keep theirs.
    """

    def __init__(
        self,
        *,
        folder: Path,
        job: JobId,
        limits: Limits,
        writing: Writing,
        answer_tokens: int = 0,
    ) -> None:
        """Begin without files; those that an earlier plan left must be gone.

        *answer_tokens* are expected of each answer that its request does not limit.
        """
        self._folder = folder
        self._job = job
        self._limits = limits
        self._writing = writing
        self._answer_tokens = answer_tokens
        self._open: dict[tuple[str, str], _Part] = {}
        self._parts: list[_Part] = []
        self._pending_bytes = 0
        self.size_bytes = 0
        """Of all that was added."""

    def check(self, request: Request, line: bytes) -> None:
        """Raise `BadInput` if *line* would not even fit a file of its own."""
        limits = self._limits

        if len(line) > limits.max_bytes:
            reason = (
                f"the request is {len(line):,} bytes long, the provider takes {limits.max_bytes:,} "
                f"in a batch; shorten it"
            )
            raise BadInput(reason, code="request_too_large")

        if request.inputs > limits.max_inputs:
            reason = (
                f"the request has {request.inputs:,} inputs, the provider takes "
                f"{limits.max_inputs:,} in a batch; spread them over several rows"
            )
            raise BadInput(reason, code="too_many_inputs")

    def add(self, request: Request, line: bytes) -> None:
        """Append *line*, which is *request* under its wire id and passed `check`."""
        part = self._open.get((request.url, request.model))

        if part is None or not part.has_room(request, line):
            part = self._next_part(request)

        self._add(part, request, line, count=1, text_bytes=request.text_bytes)

    def takes(self, plain: Plain, first: int, *, most: int) -> bool:
        """Tell whether plain rows from number *first* on can be given to `add_all`.

        That is if `check` would pass each, and if all that was added would come to *most* bytes at
        most.
        """
        count = len(plain.sizes)
        around = plain.frame.line_bytes(self._job, first + count)
        is_small = max(plain.sizes) + around <= self._limits.max_bytes

        return is_small and self.size_bytes + sum(plain.sizes) + count * around <= most

    def add_all(self, plain: Plain, first: int) -> None:
        """Append the requests of plain rows, from number *first* on, as `add` does one by one."""
        frame = plain.frame
        start = 0

        while start < len(plain.sizes):
            row = first + start
            around = frame.line_bytes(self._job, row)
            stop = 10 ** len(str(row)) - first  # the numbers up to there have as many digits
            part = self._open.get((frame.url, frame.model)) or self._next_part(frame)
            count = part.room(frame, plain.sizes[start:stop], around)

            if count <= 0 and part.requests:
                self._next_part(frame)
                continue

            stop = start + max(count, 1)  # alone it may have more tokens than that
            count = stop - start
            data = frame.lines(self._job, row, plain.contents[start:stop])
            text_bytes = sum(plain.sizes[start:stop]) + count * frame.text_bytes
            self._add(part, frame, data, count=count, text_bytes=text_bytes)
            start = stop

    def finish(self) -> list[PlannedBatch]:
        """Return the batches in order; their files are whole when the writing is finished."""
        for part in self._open.values():
            self._close(part)

        self._writing.finish()

        return [
            PlannedBatch(
                id=part.id,
                endpoint=part.endpoint,
                model=part.model,
                requests=part.requests,
                size_bytes=part.size_bytes,
                digest=part.hasher.digest(),
                estimated_input=part.text_bytes // BYTES_A_TOKEN,
                estimated_output=part.output_tokens,
            )
            for part in self._parts
        ]

    def _add(
        self, part: _Part, request: Request | Frame, data: bytes, *, count: int, text_bytes: int
    ) -> None:
        part.add(request, data, count=count, text_bytes=text_bytes)
        self._pending_bytes += len(data)
        self.size_bytes += len(data)

        if part.pending_bytes >= PART_BUFFER_BYTES:
            self._flush(part)

        if self._pending_bytes >= ALL_BUFFERS_BYTES:
            for other in self._open.values():
                self._flush(other)

    def _next_part(self, request: Request | Frame) -> _Part:
        """Begin the next file for requests such as this one; what was there before is full."""
        group = (request.url, request.model)

        if group in self._open:
            self._close(self._open[group])

        self._open[group] = part = _Part(
            id=batch_id(self._job, len(self._parts) + 1),
            endpoint=request.url,
            model=request.model,
            limits=self._limits,
            max_text_bytes=_most_text(self._limits.max_tokens.get(request.model)),
            answer_tokens=0 if request.url in WITHOUT_TEXT else self._answer_tokens,
        )
        self._parts.append(part)

        return part

    def _close(self, part: _Part) -> None:
        self._flush(part)
        self._writing.sync(self._path(part))

    def _flush(self, part: _Part) -> None:
        if not part.pending:
            return

        # What was joined already is large.
        data = part.pending[0] if len(part.pending) == 1 else b"".join(part.pending)
        self._writing.append(self._path(part), data, part.hasher)
        self._pending_bytes -= part.pending_bytes
        part.pending.clear()
        part.pending_bytes = 0

    def _path(self, part: _Part) -> Path:
        return self._folder / f"{part.id}.requests.jsonl"


def _most_text(tokens: int | None) -> float:
    """Return how many bytes come to that many tokens at most, all if they are not limited."""
    return math.inf if tokens is None else (tokens + 1) * BYTES_A_TOKEN - 1


def _prefix(amounts: Sequence[int], room: float, more: int = 0) -> int:
    """Return how many of the first *amounts*, and *more* for each, come to *room* at most."""
    if sum(amounts) + more * len(amounts) <= room:
        return len(amounts)

    return bisect_right(list(accumulate(amount + more for amount in amounts)), room)
