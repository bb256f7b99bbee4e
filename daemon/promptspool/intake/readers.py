"""Readers: one line of a dropped file becomes the columns of a row, one reader for each format.

A column's value stays the JSON text it was, as bytes, checked but not rewritten. Pure.
Raises `BadInput` for a line that is no row (bad data).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import NoReturn

import msgspec

from promptspool.errors import BadInput

Columns = Mapping[str, bytes]
Reader = Callable[[bytes], Columns]

_SHOWN = 60

_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder(msgspec.Raw)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def reader_of(source: str) -> Reader:
    """Return the reader for the file called *source*, by its extension.

    Raises `BadInput` for an extension that no reader knows.
    """
    suffix = PurePosixPath(source).suffix

    try:
        return READERS[suffix.lower()]
    except KeyError:
        found = f"the extension {suffix!r}" if suffix else "no extension"
        known = ", ".join(READERS)
        reason = f"found {found}, which no reader knows; known are {known}"
        raise BadInput(reason, code="unknown_format") from None


def text_columns(line: bytes) -> Columns:
    """Return the row of a text line: the column `prompt`."""
    return {"prompt": msgspec.json.encode(line.decode())}


def jsonl_columns(line: bytes) -> Columns:
    """Return the row of a JSON line: an object's keys, or the column `prompt` of a string."""
    try:
        columns = _objects.decode(line)
    except (msgspec.DecodeError, RecursionError):
        raw = _whole(line)
    else:
        return {name: bytes(raw) for name, raw in columns.items()}

    if raw.startswith(b'"'):
        return {"prompt": raw}

    reason = f'found {described(raw)}; write one object a line, as in {{"prompt": "..."}}'
    raise BadInput(reason, code="not_an_object")


def described(raw: bytes) -> str:
    """Name the kind of a JSON value for people, with its beginning where that helps."""
    match raw[:1]:
        case b"{":
            return "an object"
        case b"[":
            return "an array"
        case b'"':
            return "a string"
        case b"n":
            return "null"
        case b"t" | b"f":
            return raw.decode()
        case _:
            return f"the number {raw.decode():.{_SHOWN}}"


def _whole(line: bytes) -> bytes:
    """Return the JSON text of *line*; raises `BadInput` if it is none."""
    try:
        return bytes(_anything.decode(line)).strip()
    except RecursionError:
        raise BadInput("the JSON is nested too deeply", code="invalid_json") from None
    except msgspec.DecodeError as error:
        _explain(line, error)


def _explain(line: bytes, error: Exception) -> NoReturn:
    """Say what is wrong with *line*, which msgspec refused.

    The decoder of the standard library says it better, but takes what is no JSON.
    """
    reason = f"broken JSON: {error}"

    try:
        json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as fault:
        what = fault.msg[:1].lower() + fault.msg[1:].removesuffix(" at")
        reason = f"broken JSON: {what} at column {fault.colno}; write one whole object a line"
    except ValueError as fault:
        reason = f"broken JSON: {fault}"
    except RecursionError:
        reason = "the JSON is nested too deeply"
    else:
        if _SURROGATE.search(line):
            reason = r"broken JSON: half a surrogate pair (\uD800 to \uDFFF stand only in pairs)"

    raise BadInput(reason, code="invalid_json") from error


def _refuse_constant(word: str) -> NoReturn:
    message = f"{word} is no JSON; write null or a string"
    raise ValueError(message)


READERS: dict[str, Reader] = {".jsonl": jsonl_columns, ".txt": text_columns}
"""By extension, lower case."""
