"""Reads the input file of a batch and says what is wrong with it, line by line.

Codes and wording follow the list that Azure publishes for the same dialect and what has been
seen of OpenAI's. Blocking: run it in a worker thread. Raises OSError (*environment*) when the
file cannot be read; bad lines are reported, never raised.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from promptspool.simulator.answers import Json, inputs, prompt_text
from promptspool.simulator.failures import Failure, Mark, mark
from promptspool.simulator.wire import ENDPOINTS, BatchError, Endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.simulator.settings import SimulatorSettings

Judge = Callable[[Json], Failure | None]
"""Decides, from a whole parsed input line, whether that request fails."""

_FIELDS: Final = ("custom_id", "method", "url", "body")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One request; the body is kept as it was sent."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    stream: bool | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Only the name of a request, for those whose body does not matter."""

    custom_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A request with a mark in its prompt; *digest* is the SHA-256 of its body."""

    ordinal: int
    mark: Mark
    digest: str


@dataclass(slots=True, kw_only=True)
class Inspection:
    """What was found in an input file; *offsets* is where each line starts, in bytes."""

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    errors: list[BatchError] = field(default_factory=list)
    marked: list[Marked] = field(default_factory=list)
    judged: dict[int, Failure] = field(default_factory=dict)
    custom_ids: dict[str, int] = field(default_factory=dict)
    model: str | None = None
    tokens: int = 0
    embedding_inputs: int = 0


def inspect(
    path: Path, endpoint: Endpoint, settings: SimulatorSettings, judge: Judge | None
) -> Inspection:
    """Read the whole file once; stops early when enough errors are found."""
    inspector = _Inspector(endpoint, settings, judge)

    with path.open("rb") as file:
        offset = 0

        for line in file:
            inspector.read(line, offset)
            offset += len(line)

            if inspector.is_full():
                break

    inspector.finish()
    return inspector.found


class _Inspector:
    """Accumulates the findings of one file."""

    def __init__(
        self, endpoint: Endpoint, settings: SimulatorSettings, judge: Judge | None
    ) -> None:
        self.found = Inspection()
        self._endpoint = endpoint
        self._settings = settings
        self._judge = judge
        self._lines = msgspec.json.Decoder(Line)
        self._heads = msgspec.json.Decoder(_Head)

    def is_full(self) -> bool:
        has_too_many = len(self.found.offsets) > self._settings.max_requests
        return has_too_many or len(self.found.errors) >= self._settings.max_reported_errors

    def read(self, raw: bytes, offset: int) -> None:
        number = len(self.found.offsets) + 1
        self.found.offsets.append(offset)

        try:
            line = self._lines.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.found.errors.append(_diagnose(raw, number))
            return

        problem = self._problem(line, number)

        if problem is not None:
            self.found.errors.append(problem)
            return

        self._study(raw, line, number)

    def finish(self) -> None:
        found = self.found
        limit = self._settings.max_requests

        if not found.offsets:
            message = "The input file is empty. Please ensure it contains at least one request."
            found.errors.append(BatchError(code="empty_file", message=message))

        if len(found.offsets) > limit:
            message = f"The input file contains too many requests. The maximum is {limit}."
            found.errors[:] = [BatchError(code="too_many_tasks", message=message)]

        if found.embedding_inputs > self._settings.max_embedding_inputs:
            message = f"The batch exceeds {self._settings.max_embedding_inputs} embedding inputs."
            found.errors.append(BatchError(code="too_many_tasks", message=message))

    def _problem(self, line: Line, number: int) -> BatchError | None:
        """Return what is wrong with a line that has all its fields, None if nothing is."""
        first = self.found.custom_ids.setdefault(line.custom_id, number)

        if first != number:
            message = f"The custom_id '{line.custom_id}' is already used on line {first}."
            return _error("duplicate_custom_id", number, message, "custom_id")

        if line.method != "POST":
            return _error("invalid_request", number, "The method must be POST.", "method")

        if line.url not in ENDPOINTS:
            return _error("invalid_url", number, f"Invalid URL '{line.url}'.", "url")

        if line.url != self._endpoint:
            message = "The URL provided for this request does not match the batch endpoint."
            return _error("url_mismatch", number, message, "url")

        return self._head_problem(line, number)

    def _head_problem(self, line: Line, number: int) -> BatchError | None:
        try:
            head = self._heads.decode(line.body)
        except msgspec.ValidationError as error:
            return _error("invalid_request", number, f"Invalid body: {error}.", "body")

        if head.stream:
            message = "Streaming is not supported in the Batch API."
            return _error("invalid_request", number, message, "body.stream")

        if head.model is None and self._endpoint != "/v1/moderations":
            message = "Missing required parameter: 'body.model'."
            return _error("missing_required_parameter", number, message, "body.model")

        return self._model_problem(head.model, number)

    def _model_problem(self, model: str | None, number: int) -> BatchError | None:
        known = self._settings.models

        if known is not None and model is not None and model not in known:
            message = f"The model '{model}' does not exist or you do not have access to it."
            return _error("model_not_found", number, message, "body.model")

        if number > 1 and self.found.model != model and self.found.model is not None:
            message = f"Expected model '{self.found.model}' but found '{model}'."
            return _error("model_mismatch", number, message, "body.model")

        self.found.model = model
        return None

    def _study(self, raw: bytes, line: Line, number: int) -> None:
        """Note what decides how a sound request will end."""
        body = bytes(line.body)
        self.found.tokens += len(body) // 4

        if self._endpoint == "/v1/embeddings":
            content = msgspec.json.decode(body)
            self.found.embedding_inputs += len(inputs(content.get("input")))

        # Parsing a prompt costs ten times more than reading past it, and few have a mark.
        if b"[[" in body:
            self._look_for_mark(body, number - 1)

        if self._judge is not None:
            failure = self._judge(msgspec.json.decode(raw))

            if failure is not None:
                self.found.judged[number - 1] = failure

    def _look_for_mark(self, body: bytes, ordinal: int) -> None:
        found = mark(prompt_text(msgspec.json.decode(body)))

        if found is not None:
            digest = hashlib.sha256(body).hexdigest()
            self.found.marked.append(Marked(ordinal=ordinal, mark=found, digest=digest))


def _error(code: str, line: int, message: str, param: str | None) -> BatchError:
    return BatchError(code=code, line=line, message=message, param=param)


def _diagnose(raw: bytes, number: int) -> BatchError:
    """Say why a line is no request; slow, so only for lines that are not."""
    unparseable = "This line is not parseable as valid JSON."

    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _error("invalid_json_line", number, unparseable, None)

    if not isinstance(value, dict):
        return _error("invalid_json_line", number, unparseable, None)

    for name in _FIELDS:
        if value.get(name) is None:
            message = f"Missing required parameter: '{name}'."
            return _error("missing_required_parameter", number, message, name)

    return _error("invalid_request", number, "A parameter of this line has a wrong type.", None)
