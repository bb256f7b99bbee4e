"""JSON values: the text of one becomes the columns of a row, or what to say of it.

A column's value stays the JSON text it was, as bytes, checked but not rewritten. Pure.
Raises `BadInput` for a text that is no row (bad data).
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, NoReturn

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats.json_scan import TOO_DEEP, Scan
from promptspool.intake.values import described, quoted

if TYPE_CHECKING:
    from promptspool.intake.formats.json_scan import Place
    from promptspool.intake.rows import Columns

EXAMPLE = '{"prompt": "..."}'

# A larger text is not taken apart for the sake of a message: it would be held twenty times.
_TAKEN_APART_BYTES = 1 << 20

MAX_KEYS = 50_000
"""In a large object: each takes some 180 bytes of memory (measured), and no table has as many."""

_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder(msgspec.Raw)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")

# The quotes around a name, the colon and the comma behind a value.
_MARKS = 4
_BLANK = ord(" ")


def columns_of(raw: bytes, *, place: Place | None = None) -> Columns:
    """Return the row that a JSON text is: an object's keys, or the column `prompt` of a string.

    *raw* is UTF-8. *place* is None where the text is a line of its own.
    """
    if len(raw) > _TAKEN_APART_BYTES and raw.count(b'":') > MAX_KEYS:
        reason = f"the object has more than {MAX_KEYS:,} keys; leave out what is not needed"
        raise BadInput(reason, code="too_many_keys")

    try:
        members = _objects.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return _string_columns(raw, place)

    columns = {}
    size = _MARKS * len(members) + 1

    for name, value in members.items():
        columns[name] = data = bytes(value)
        size += len(name) + len(data)

    if not _is_accounted_for(raw, len(raw) - size, len(columns)):
        _check_names(raw)

    return columns


def _is_accounted_for(raw: bytes, rest: int, count: int) -> bool:
    """Tell whether the *rest* of bytes that are in no member is nothing or the usual blanks.

    Of two members with one name the decoder keeps the last, and the first would be lost silently:
    it is in the rest. The usual blanks are one behind each colon and each comma.
    """
    return not rest or (rest == 2 * count - 1 and raw[raw.find(b":") + 1] == _BLANK)


def _string_columns(raw: bytes, place: Place | None) -> Columns:
    """Return the row of a JSON string; raises `BadInput` for any other text."""
    value = _whole(raw, place)

    if value.startswith(b'"'):
        return {"prompt": value}

    wanted = "one object a line" if place is None else "an object"
    reason = f"found {described(value)}; write {wanted}, as in {EXAMPLE}"
    raise BadInput(reason, code="not_an_object")


def _check_names(raw: bytes) -> None:
    """Raise `BadInput` if a name is there twice in the object *raw*."""
    seen = set()

    for name in _names(raw):
        if name in seen:
            reason = f"the key {quoted(name)} is there twice; leave one of them out"
            raise BadInput(reason, code="duplicate_key", key=name)

        seen.add(name)


def _names(raw: bytes) -> list[str]:
    """Return the names in an object, in order and as often as they are there."""
    if len(raw) > _TAKEN_APART_BYTES:
        names = Scan(io.BytesIO(raw)).members()

        return [msgspec.json.decode(name, type=str) for name in names if name]

    try:
        pairs: list[tuple[str, object]] = json.loads(raw, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return []  # what no other decoder can read is not worth a complaint of its own

    return [name for name, _ in pairs]


def _whole(raw: bytes, place: Place | None) -> bytes:
    """Return the JSON text that *raw* is; raises `BadInput` if it is none."""
    try:
        return bytes(_anything.decode(raw)).strip()
    except RecursionError:
        raise BadInput(TOO_DEEP, code="invalid_json") from None
    except msgspec.DecodeError as error:
        _explain(raw, error, place)


def _explain(raw: bytes, error: Exception, place: Place | None) -> NoReturn:
    """Say what is wrong with *raw*, which msgspec refused.

    The decoder of the standard library says it better, but takes what is no JSON.
    """
    reason = f"broken JSON: {error}"

    if len(raw) > _TAKEN_APART_BYTES:
        raise BadInput(reason, code="invalid_json") from error

    try:
        json.loads(raw, parse_constant=_refuse_constant)
    except json.JSONDecodeError as fault:
        what = fault.msg[:1].lower() + fault.msg[1:].removesuffix(" at")
        reason = f"broken JSON: {what} at {_where(fault, place)}"
    except ValueError as fault:
        reason = f"broken JSON: {fault}"
    except RecursionError:
        reason = TOO_DEEP
    else:
        if _SURROGATE.search(raw):
            reason = r"broken JSON: half a surrogate pair (\uD800 to \uDFFF stand only in pairs)"

    raise BadInput(reason, code="invalid_json") from error


def _where(fault: json.JSONDecodeError, place: Place | None) -> str:
    if place is None:
        return f"column {fault.colno}; write one whole object a line"

    column = place.column + fault.colno - 1 if fault.lineno == 1 else fault.colno

    return f"line {place.line + fault.lineno - 1}, column {column}"


def _refuse_constant(word: str) -> NoReturn:
    message = f"{word} is no JSON; write null or a string"
    raise ValueError(message)
