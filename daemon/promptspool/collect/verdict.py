"""Verdict: what one line of a provider's file says about its request.

By its content, never by the file it came from: providers differ in what they put where. Total and
pure: every byte string has a verdict, nothing is raised.
"""

from __future__ import annotations

import json
from enum import IntEnum
from math import isfinite

import msgspec

from promptspool.wire import AnswerLine

UNRUN_CODES = frozenset({"batch_expired", "batch_cancelled"})

# The statuses that say nothing about the request (batch-api clients agree on these).
_RETRIED = frozenset({0, 408, 409, 425, 429})
_OK = range(200, 300)
_CLIENT_ERROR = range(400, 500)
_SERVER_ERROR = range(500, 600)


class Verdict(IntEnum):
    """What became of a request."""

    MISSING = 0
    """Nothing is known; the model may have been asked."""
    UNRUN = 1
    """The batch ended before its turn came."""
    RETRY = 2
    """It failed for a reason of the provider's."""
    FINAL = 3
    """It failed for a reason of its own."""
    OK = 4
    """It was answered."""


class _Response(msgspec.Struct):
    status_code: int | float | str | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    code: int | float | str | None = None
    type: str | None = None
    message: str | None = None


class _Failure(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"null")


_answer_lines = msgspec.json.Decoder(AnswerLine)
_responses = msgspec.json.Decoder(_Response)
_errors = msgspec.json.Decoder(_Error)
_texts = msgspec.json.Decoder(str)
_failures = msgspec.json.Decoder(_Failure)


def parsed(line: bytes) -> AnswerLine | None:
    """Return an answer line; None if it is none, or names no request.

    What is not quite JSON but can be read (half a surrogate pair, NaN) is read: it was paid for.
    """
    try:
        if not line.isascii():
            line.decode()

        return _answer_lines.decode(line)
    except (UnicodeDecodeError, msgspec.ValidationError):
        return None
    except (msgspec.DecodeError, RecursionError):
        return _salvaged(line)


def verdict(answer: AnswerLine) -> Verdict:
    """Return what *answer* says about its request."""
    status, body = _status_and_body(answer.response)

    if body is not None and (status in _OK or (status is None and _is_bare_answer(answer, body))):
        return Verdict.OK

    error = _error(answer.error) or _error_in(body)

    if error is not None and error.code in UNRUN_CODES:
        return Verdict.UNRUN

    if status is None and error is not None:
        status = _number(error.code)

    return _of_status(status, has_error=error is not None)


def code_of(answer: AnswerLine) -> str:
    """Return one word for what went wrong in *answer*, the provider's own where it has one."""
    status, body = _status_and_body(answer.response)
    error = _error(answer.error) or _error_in(body) or _Error()

    if error.code not in (None, ""):
        return str(error.code)

    return error.type or ("unknown" if status is None else f"http_{status}")


def message_of(answer: AnswerLine) -> str | None:
    """Return what the provider says went wrong in *answer*, None if it gives no words for it."""
    _, body = _status_and_body(answer.response)
    error = _error(answer.error) or _error_in(body)

    return None if error is None else error.message or None


def _of_status(status: int | None, *, has_error: bool) -> Verdict:
    if status in _RETRIED or status in _SERVER_ERROR:
        return Verdict.RETRY

    if status in _CLIENT_ERROR:
        return Verdict.FINAL

    # A word that we do not know, or a success without its content, is worth another try.
    return Verdict.RETRY if has_error or status is not None else Verdict.MISSING


def _is_bare_answer(answer: AnswerLine, body: bytes) -> bool:
    return _error(answer.error) is None and _error_in(body) is None


def _status_and_body(raw: msgspec.Raw) -> tuple[int | None, bytes | None]:
    """Return the HTTP status and the body's JSON text; None for either that is not there."""
    try:
        response = _responses.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None, None

    body = bytes(response.body)

    return _number(response.status_code), None if body == b"null" else body


def _error(raw: msgspec.Raw) -> _Error | None:
    """Return an error object; None if there is none. A bare text is a message."""
    if bytes(raw) in (b"null", b"false", b'""', b"{}"):
        return None

    try:
        return _errors.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return _Error(message=_bare_text(raw))


def _bare_text(raw: msgspec.Raw) -> str | None:
    try:
        return _texts.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def _error_in(body: bytes | None) -> _Error | None:
    try:
        return _error(_failures.decode(body or b"null").error)
    except (msgspec.DecodeError, RecursionError):
        return None


def _number(value: float | str | None) -> int | None:
    """Return a status however it was written; None for what is no number."""
    try:
        return None if value is None else int(value)
    except (ValueError, OverflowError):
        return None


def _salvaged(line: bytes) -> AnswerLine | None:
    try:
        found = lenient(line)

        if not isinstance(found, dict) or not isinstance(name := found.get("custom_id"), str):
            return None

        fields = {key: json_of(found[key]) for key in ("id", "response", "error") if key in found}
    except (ValueError, RecursionError):
        return None

    return AnswerLine(custom_id=name, **fields)


def lenient(text: bytes | str) -> object:
    """Return the value of what is almost JSON; a number that JSON cannot hold is None.

    Raises `ValueError` or `RecursionError` for what cannot be read.
    """
    found: object = json.loads(text, parse_constant=_null, parse_float=_finite)

    return found


def json_of(value: object) -> msgspec.Raw:
    """Return *value* as JSON text in which a half of a surrogate pair is U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)

    return msgspec.Raw(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())


def _null(_word: str) -> None:
    """Stand in for NaN and the infinities, which no JSON text can hold."""


def _finite(digits: str) -> float | None:
    number = float(digits)

    return number if isfinite(number) else None
