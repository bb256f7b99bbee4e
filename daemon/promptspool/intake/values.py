"""Values: the JSON texts in the columns of a row, looked at without being rewritten.

Pure. Raises nothing but for texts that are no JSON, which no reader yields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from promptspool.intake.rows import Columns

MAX_SHOWN = 80
"""Characters of a value or a name that a message quotes; the rest is its file's business."""

_MAX_LISTED = 20

_DIGITS_SHOWN = 60


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
            return f"the number {raw.decode():.{_DIGITS_SHOWN}}"


def shown(raw: bytes) -> str:
    """Quote a short string as it was written, name any other value; "missing" if there is none."""
    if not raw:
        return "missing"

    is_short = raw.startswith(b'"') and len(raw) <= MAX_SHOWN

    return raw.decode() if is_short else described(raw)


def quoted(text: str) -> str:
    """Quote *text* for people: a long one by its beginning, what cannot be seen as escapes."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def listed(columns: Columns) -> str:
    """Return the names of *columns* for people."""
    names = [quoted(name) for name, _ in zip(columns, range(_MAX_LISTED), strict=False)]
    more = [f"{len(columns) - _MAX_LISTED} more"] if len(columns) > _MAX_LISTED else []

    return ", ".join(names + more) or "no keys"


def text_of(raw: bytes) -> str:
    """Return the string that the JSON text *raw* is, empty if it is something else."""
    return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else ""


def is_blank(raw: bytes) -> bool:
    """Tell whether a value is none at all: not there, null, or a string of blanks."""
    return not raw or raw == b"null" or (raw.startswith(b'"') and not text_of(raw).strip())


def member(name: str, raw: bytes) -> bytes:
    """Return one member of a JSON object; *raw* is its value as JSON text."""
    return msgspec.json.encode(name) + b":" + raw
