"""Content: what a person wants of an answer, out of what its provider wrapped it in.

Read by its shape, not by its endpoint: chat, completions, responses, embeddings, moderations. Pure
and total: whatever a provider sends, nothing is raised; what is not there, or is no such thing, is
None. 150,000 chat answers of 1 kB a second, 6,000 embeddings of 1,536 numbers (measured).
"""

from __future__ import annotations

import base64
import sys
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from promptspool.collect.verdict import json_of, lenient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from promptspool.wire import AnswerLine


class Content(NamedTuple):
    """What an answer says."""

    text: str | None = None
    """Of several choices a JSON array of texts; JSON also where the model calls tools and says
    nothing, for embeddings (numbers) and for moderations (names of the flagged categories)."""
    finish_reason: str | None = None
    """In the provider's word; responses have their status, or why they are incomplete. Several
    choices' are joined by commas where they differ."""
    refusal: str | None = None


class Choice(NamedTuple):
    """One of the answers in an answer."""

    text: str | None
    """What the model says; None where it only calls tools."""
    finish_reason: str | None
    refusal: str | None
    calls: str | None = None
    """The calls of tools, as JSON."""


class _Body(msgspec.Struct):
    # Of any type: one odd value is not to hide the others.
    choices: Any = None
    output: Any = None
    status: Any = None
    incomplete_details: Any = None
    results: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Response(msgspec.Struct):
    body: _Body | str | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


_responses = msgspec.json.Decoder(_Response)
_bodies = msgspec.json.Decoder(_Body)
_embeddings = msgspec.json.Decoder(list[_Embedding])

_CALLS = frozenset({"function_call", "custom_tool_call", "mcp_call", "computer_call"})
_IS_LITTLE = sys.byteorder == "little"


def content_of(answer: AnswerLine) -> Content:
    """Return text, finish reason and refusal of one answer."""
    body = _body(answer)

    if body is None:
        return Content()

    found = list(_choices(body))

    if found:
        return _summed(found)

    if isinstance(body.results, list):
        return Content(text=_flagged(body.results))

    vectors = [list(vector) for vector in _vectors(body)]

    return Content(text=_json(vectors[0] if len(vectors) == 1 else vectors) if vectors else None)


def choices_of(answer: AnswerLine) -> list[Choice]:
    """Return each answer in an answer of chat, completions or responses; mostly one."""
    body = _body(answer)

    return [] if body is None else list(_choices(body))


def vectors_of(answer: AnswerLine) -> list[array[float]]:
    """Return the vectors of an embedding, one for each input, in the inputs' order.

    Doubles as the provider wrote them, or floats of four bytes where it sent base64. Empty for
    what is no embedding.
    """
    body = _body(answer)

    return [] if body is None else _vectors(body)


def _body(answer: AnswerLine) -> _Body | None:
    try:
        body = _responses.decode(answer.response).body

        # Some providers send the body as a string that holds its text.
        return _bodies.decode(body) if isinstance(body, str) else body
    except (msgspec.DecodeError, ValueError, RecursionError):
        return _salvaged(bytes(answer.response))


def _salvaged(response: bytes) -> _Body | None:
    """Read what is not quite JSON: half a surrogate pair, NaN, 1e999. It was paid for."""
    try:
        found = lenient(response)
        body = found.get("body") if isinstance(found, dict) else None

        return _bodies.decode(json_of(lenient(body) if isinstance(body, str) else body))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _choices(body: _Body) -> Iterator[Choice]:
    if isinstance(body.choices, list):
        for choice in body.choices:
            if isinstance(choice, dict):
                yield _choice(choice)
    elif isinstance(body.output, list):
        yield _said(body, body.output)


def _choice(choice: Mapping[str, Any]) -> Choice:
    """Return a choice of chat, or of completions, which has its text at once."""
    message = choice.get("message")
    finish_reason = _text(choice.get("finish_reason"))

    if not isinstance(message, dict):
        return Choice(_text(choice.get("text")), finish_reason, None)

    content, refusal = message.get("content"), _text(message.get("refusal"))

    if isinstance(content, list):
        refusal = refusal or _joined(content, "refusal", "refusal")
        content = _joined(content, "text", "text")

    calls = message.get("tool_calls") or message.get("function_call")

    return Choice(_text(content), finish_reason, refusal, _json(calls) if calls else None)


def _said(body: _Body, output: Sequence[Any]) -> Choice:
    """Return the one choice of responses, whose messages are put together."""
    parts = [
        part
        for entry in output
        if isinstance(entry, dict) and entry.get("type", "message") == "message"
        if isinstance(entry.get("content"), list)
        for part in entry["content"]
    ]
    calls = [one for one in output if isinstance(one, dict) and _text(one.get("type")) in _CALLS]
    details = body.incomplete_details
    reason = _text(details.get("reason")) if isinstance(details, dict) else None

    return Choice(
        _joined(parts, "output_text", "text"),
        reason or _text(body.status),
        _joined(parts, "refusal", "refusal"),
        _json(calls) if calls else None,
    )


def _joined(parts: Sequence[Any], kind: str, key: str) -> str | None:
    """Return the texts of all parts of a kind as one; None if there is none."""
    found = [
        part[key]
        for part in parts
        if isinstance(part, dict) and part.get("type") == kind and isinstance(part.get(key), str)
    ]

    return "".join(found) if found else None


def _summed(choices: Sequence[Choice]) -> Content:
    texts = [choice.text or choice.calls or choice.text for choice in choices]
    reasons = dict.fromkeys(choice.finish_reason for choice in choices if choice.finish_reason)
    refusals = (choice.refusal for choice in choices if choice.refusal)

    return Content(
        text=texts[0] if len(texts) == 1 else _json(texts),
        finish_reason=",".join(reasons) or None,
        refusal=next(refusals, None),
    )


def _flagged(results: Sequence[Any]) -> str:
    """Return the names of the categories that were flagged, for each input; JSON."""
    names = [_flags(result) if isinstance(result, dict) else [] for result in results]

    return _json(names[0] if len(names) == 1 else names)


def _flags(result: Mapping[str, Any]) -> list[str]:
    categories = result.get("categories")
    found = categories.items() if isinstance(categories, dict) else ()
    names = [name for name, is_flagged in found if is_flagged is True]

    return names or (["flagged"] if result.get("flagged") is True else [])


def _vectors(body: _Body) -> list[array[float]]:
    try:
        found = _embeddings.decode(body.data)
        numbers = [one.index for one in found if one.index is not None]

        if len(numbers) == len(found):
            found.sort(key=lambda one: one.index or 0)

        return [_vector(one.embedding) for one in found]
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return []


def _vector(embedding: list[float] | str) -> array[float]:
    if isinstance(embedding, list):
        return array("d", embedding)

    # Little-endian floats of four bytes, whatever machine this is (OpenAI, `encoding_format`).
    vector = array("f", base64.b64decode(embedding, validate=True))

    if not _IS_LITTLE:
        vector.byteswap()

    return vector


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
