"""Writes the output and the error file of a batch, one line at a time, in shuffled order.

Blocking: run it in a worker thread. Memory does not grow with the file. Raises OSError
(*environment*).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

import msgspec

from promptspool.simulator.answers import answer
from promptspool.simulator.inputs import Line

if TYPE_CHECKING:
    from array import array
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from promptspool.simulator.failures import Failure, Manner
    from promptspool.simulator.faults import BatchFault
    from promptspool.simulator.wire import Endpoint

_LONGEST_BYTES: Final = 1 << 20
"""How far back the beginning of a last line is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides what is in the two files.

    *order* holds the ordinals of all requests in the order they ran, of which the first *ran*
    did; the others end in *unrun*, or have no line when that is None.
    """

    batch_id: str
    endpoint: Endpoint
    source: Path
    offsets: array[int]
    order: array[int]
    ran: int
    unrun: Failure | None
    failures: Mapping[int, Failure]
    manners: Mapping[int, Manner]
    missing: Collection[int]
    dimensions: int
    defects: BatchFault


@dataclass(slots=True, kw_only=True)
class Written:
    """How many lines each file has, and the tokens of the answers."""

    output_lines: int = 0
    error_lines: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Response(msgspec.Struct, frozen=True, kw_only=True):
    status_code: int
    request_id: str
    body: dict[str, object]


class _RequestError(msgspec.Struct, frozen=True, kw_only=True):
    code: str | None
    message: str


class _ResultLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of either file (openai-openapi, `BatchRequestOutput`)."""

    id: str
    custom_id: str
    response: _Response | None
    error: _RequestError | None


def write(recipe: Recipe, output: Path, errors: Path) -> Written:
    """Write both files, replacing what is there; either may come out empty."""
    with recipe.source.open("rb") as source, output.open("wb") as good, errors.open("wb") as bad:
        writer = _Writer(recipe, good, good if recipe.defects.errors_in_output else bad)
        writer.begin()

        for ordinal, has_run in _fates(recipe):
            source.seek(recipe.offsets[ordinal])
            writer.settle(source.readline(), ordinal, has_run=has_run)

        writer.finish()

    if recipe.defects.cut_last_line:
        _cut_last_line(output)

    return writer.written


def _cut_last_line(path: Path) -> None:
    """Leave half of the last line of a file, without its end."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LONGEST_BYTES, 0))
        end = file.read()
        length = len(end) - (end.rstrip(b"\n").rfind(b"\n") + 1)
        file.truncate(size - length // 2)


def _fates(recipe: Recipe) -> Iterator[tuple[int, bool]]:
    """Iterate over the requests that get a line, with whether each has run."""
    for position, ordinal in enumerate(recipe.order):
        has_run = position < recipe.ran

        if ordinal not in recipe.missing and (has_run or recipe.unrun is not None):
            yield ordinal, has_run


class _Writer:
    """Turns requests into lines."""

    def __init__(self, recipe: Recipe, output: IO[bytes], errors: IO[bytes]) -> None:
        self.written = Written()
        self._recipe = recipe
        self._output = output
        self._errors = errors
        self._lines = msgspec.json.Decoder(Line)
        self._encoder = msgspec.json.Encoder()
        self._sample: _ResultLine | None = None

    def begin(self) -> None:
        """Put what a sound provider would not write at the head of its file."""
        for line in self._recipe.defects.lines:
            self._put_line(line)

    def settle(self, raw: bytes, ordinal: int, *, has_run: bool) -> None:
        line = self._lines.decode(raw)
        failure = self._recipe.failures.get(ordinal) if has_run else self._recipe.unrun

        if failure is None:
            self._put_answer(line, ordinal)
        else:
            self._put_failure(line, ordinal, failure)

    def finish(self) -> None:
        """Add the lines that a sound provider would not write."""
        defects, sample = self._recipe.defects, self._sample

        if sample is None:
            return

        for _ in range(defects.duplicate):
            self._put_line(self._encoder.encode(sample))

        for number in range(defects.foreign):
            stray = msgspec.structs.replace(sample, custom_id=f"foreign-{number}")
            self._put_line(self._encoder.encode(stray))

    def _put_answer(self, line: Line, ordinal: int) -> None:
        raw = bytes(line.body)
        told = answer(
            self._recipe.endpoint,
            msgspec.json.decode(raw),
            raw=raw,
            dimensions=self._recipe.dimensions,
            manner=self._recipe.manners.get(ordinal),
        )
        self.written.input_tokens += told.input_tokens
        self.written.output_tokens += told.output_tokens
        response = self._response(ordinal, 200, told.body)
        self._sample = self._result(line.custom_id, ordinal, response, None)
        encoded = self._encoder.encode(self._sample)
        strange = len(self._recipe.defects.lines)
        is_torn = self.written.output_lines - strange < self._recipe.defects.torn_lines
        self._put_line(encoded[: len(encoded) // 2] if is_torn else encoded)

    def _put_line(self, line: bytes) -> None:
        self._output.write(line + b"\n")
        self.written.output_lines += 1

    def _put_failure(self, line: Line, ordinal: int, failure: Failure) -> None:
        response, error = None, None

        if failure.status is None:
            error = _RequestError(code=failure.code, message=failure.message)
        else:
            response = self._response(ordinal, failure.status, {**failure.body()})

        result = self._result(line.custom_id, ordinal, response, error)
        self._errors.write(self._encoder.encode(result) + b"\n")

        if self._errors is self._output:
            self.written.output_lines += 1
        else:
            self.written.error_lines += 1

    def _result(
        self,
        custom_id: str,
        ordinal: int,
        response: _Response | None,
        error: _RequestError | None,
    ) -> _ResultLine:
        name = self._digest("line", ordinal)
        return _ResultLine(
            id=f"batch_req_{name}", custom_id=custom_id, response=response, error=error
        )

    def _response(self, ordinal: int, status: int, body: dict[str, object]) -> _Response:
        return _Response(status_code=status, request_id=self._digest("run", ordinal), body=body)

    def _digest(self, kind: str, ordinal: int) -> str:
        name = f"{self._recipe.batch_id}/{kind}/{ordinal}"
        return hashlib.sha256(name.encode()).hexdigest()[:32]
