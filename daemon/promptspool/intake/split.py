"""Split: requests become request files, none larger than the provider takes.

Holds a few megabytes of lines whatever the number of files, and never more than one of them open.
After a crash the files are half-written: they count for nothing until a manifest names them.
Raises `BadInput` for a request that fits no file (bad data) and lets `OSError` through
(environment).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from promptspool.digest import Hasher
from promptspool.errors import BadInput
from promptspool.intake.request import WITHOUT_TEXT
from promptspool.model import JobId, batch_id
from promptspool.spool import sync_file
from promptspool.wire import PlannedBatch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from promptspool.intake.request import Request
    from promptspool.model import BatchId

# A file of hundreds of models would otherwise hold as many buffers, all of them nearly full.
PART_BUFFER_BYTES = 1 << 20
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
    input_tokens: int = 0
    max_tokens: float
    """Of input, if that is limited."""
    output_tokens: int = 0
    answer_tokens: int
    """Expected of an answer that is not limited."""
    hasher: Hasher = field(default_factory=Hasher)
    pending: list[bytes] = field(default_factory=list)
    pending_bytes: int = 0

    def has_room(self, request: Request, line: bytes, limits: Limits) -> bool:
        return (
            self.requests < limits.max_requests
            and self.size_bytes + len(line) <= limits.max_bytes
            and self.inputs + request.inputs <= limits.max_inputs
            and self.input_tokens + request.input_tokens <= self.max_tokens
        )

    def add(self, request: Request, line: bytes) -> None:
        self.requests += 1
        self.size_bytes += len(line)
        self.inputs += request.inputs
        self.input_tokens += request.input_tokens
        limit = request.max_output
        self.output_tokens += self.answer_tokens if limit is None else limit
        self.pending.append(line)
        self.pending_bytes += len(line)


class Splitter:
    """Appends requests to the files of *folder*, one row of files for each endpoint and model.

    A batch takes one of each (OpenAI Batch guide). Files are numbered from 1 in the order of their
    first requests; within a file, requests keep theirs.
    """

    def __init__(self, *, folder: Path, job: JobId, limits: Limits, answer_tokens: int = 0) -> None:
        """Begin without files; those that an earlier plan left must be gone.

        *answer_tokens* are expected of each answer that its request does not limit.
        """
        self._folder = folder
        self._job = job
        self._limits = limits
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
        part = self._part_for(request, line)
        part.add(request, line)
        self._pending_bytes += len(line)
        self.size_bytes += len(line)

        if part.pending_bytes >= PART_BUFFER_BYTES:
            self._flush(part)

        if self._pending_bytes >= ALL_BUFFERS_BYTES:
            self._flush_all()

    def finish(self) -> list[PlannedBatch]:
        """Return the batches in order; their files are whole and their content is synced."""
        self._flush_all()

        for part in self._parts:
            sync_file(self._path(part))

        return [
            PlannedBatch(
                id=part.id,
                endpoint=part.endpoint,
                model=part.model,
                requests=part.requests,
                size_bytes=part.size_bytes,
                digest=part.hasher.digest(),
                estimated_input=part.input_tokens,
                estimated_output=part.output_tokens,
            )
            for part in self._parts
        ]

    def _part_for(self, request: Request, line: bytes) -> _Part:
        group = (request.url, request.model)
        part = self._open.get(group)

        if part is not None and part.has_room(request, line, self._limits):
            return part

        if part is not None:
            self._flush(part)

        name = batch_id(self._job, len(self._parts) + 1)
        part = _Part(
            id=name,
            endpoint=request.url,
            model=request.model,
            max_tokens=self._limits.max_tokens.get(request.model, math.inf),
            answer_tokens=0 if request.url in WITHOUT_TEXT else self._answer_tokens,
        )
        self._open[group] = part
        self._parts.append(part)

        return part

    def _flush_all(self) -> None:
        for part in self._open.values():
            self._flush(part)

    def _flush(self, part: _Part) -> None:
        if not part.pending:
            return

        data = b"".join(part.pending)

        with self._path(part).open("ab") as file:
            file.write(data)

        part.hasher.update(data)
        self._pending_bytes -= part.pending_bytes
        part.pending.clear()
        part.pending_bytes = 0

    def _path(self, part: _Part) -> Path:
        return self._folder / f"{part.id}.requests.jsonl"
