"""Xlsx cells: what is written in a cell becomes a value, and a value becomes JSON.

Pure. Raises nothing.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec

MAX_COLUMNS = 16_384
"""ECMA-376 and Excel: the last column is XFD."""

MAX_ROWS = 1_048_576

EXACT_DIGITS = 15
"""Of a number, as spreadsheets keep and show it (Excel specifications and limits)."""

Kind = Literal["date", "time", "datetime", "duration"]


class Moment(NamedTuple):
    """A number that its cell shows as a date or time."""

    serial: float
    kind: Kind
    text: str
    """ISO 8601."""


class Odd(NamedTuple):
    """What stands in a cell where no value is."""

    text: str
    """As the cell shows it, for people."""
    what: str
    """For messages, after the name of the cell."""


Value = str | int | float | bool | Moment | Odd

# ECMA-376 18.8.30: formats that files name by number only; 27-36 and 50-58 are East Asian dates.
_KNOWN_KINDS: dict[Kind, frozenset[int]] = {
    "date": frozenset((14, 15, 16, 17, *range(27, 32), 36, *range(50, 59))),
    "time": frozenset((18, 19, 20, 21, 32, 33, 34, 35, 45, 47)),
    "datetime": frozenset((22,)),
    "duration": frozenset((46,)),
}

_ELAPSED = re.compile(r"\[(?:h+|m+|s+)\]", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"|\\.|[_*].|\[[^\]]*\]|general|am/pm|a/p', re.IGNORECASE | re.DOTALL)

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_ESCAPE = re.compile("_x([0-9a-fA-F]{4})_")

# Digits beyond these are zeros, and a hundred of them are no easier to read than an exponent.
_MAX_ZEROS = 20

_MAX_NUMBER = 1e308

_DAY_MS = 86_400_000
_MAX_DAYS = 2_958_465  # 9999-12-31

_encoder = msgspec.json.Encoder()


def column_name(column: int) -> str:
    """Return the letters of a column, which counts from 0."""
    name = ""
    column += 1

    while column:
        column, letter = divmod(column - 1, 26)
        name = chr(ord("A") + letter) + name

    return name


def column_of(letters: str) -> int | None:
    """Return the column, from 0, that *letters* name; None if they name none."""
    column = 0

    if not letters or len(letters) > len("XFD"):
        return None

    for letter in letters:
        if not "A" <= letter <= "Z":
            return None

        column = column * 26 + ord(letter) - ord("A") + 1

    return column - 1 if column <= MAX_COLUMNS else None


def number(text: str) -> int | float | None:
    """Return the number that *text* is, exactly where it is a whole one; None if it is none."""
    if _WHOLE.fullmatch(text):
        return int(text)

    if not _NUMBER.fullmatch(text):
        return None

    found = float(text)

    return None if abs(found) == float("inf") else found


def unescaped(text: str) -> str:
    """Return *text* with the characters that XML cannot have, written as `_x000D_`."""
    if "_x" not in text:
        return text

    plain = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)

    # Emoji may be escaped as the two halves of a pair; a half that is alone is no character.
    return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def kind_of(number_format: int, code: str | None) -> Kind | None:
    """Return what a number format makes of numbers; None if they stay numbers.

    *code* is the format as it is written, None for those that files only name by number.
    """
    if code is None:
        return next((kind for kind, known in _KNOWN_KINDS.items() if number_format in known), None)

    positive = code.partition(";")[0]

    if _ELAPSED.search(positive):
        return "duration"

    letters = set(_QUOTED.sub("", positive).lower())
    has_time = bool(letters & set("hs"))

    # Months and minutes are both m.
    if letters & set("dy") or ("m" in letters and not has_time):
        return "datetime" if has_time else "date"

    return "time" if has_time else None


def moment(serial: float, kind: Kind, *, is_1904: bool) -> Moment | None:
    """Return the moment *serial*, in days since the beginning of 1900 or 1904.

    None if spreadsheets show none for it: before that day, after the year 9999.
    """
    if kind == "duration":
        return Moment(serial, kind, _duration(serial)) if abs(serial) <= _MAX_DAYS else None

    if not 0 <= serial <= _MAX_DAYS:
        return None

    days, rest_ms = divmod(round(serial * _DAY_MS), _DAY_MS)

    if days == 0 and not is_1904:
        if kind == "date":
            return None

        return Moment(serial, "time", _clock(rest_ms))

    if kind == "time" and days == 0:
        return Moment(serial, kind, _clock(rest_ms))

    # Excel takes 1900 for a leap year, so that days are counted from one earlier after February.
    epoch = datetime(1904, 1, 1) if is_1904 else datetime(1899, 12, 30 if days >= 60 else 31)  # noqa: DTZ001, PLR2004 (a sheet knows no time zone; 1 March 1900 is day 61)

    try:
        day = (epoch + timedelta(days=days)).date().isoformat()
    except OverflowError:
        return None

    if kind == "date" and rest_ms == 0:
        return Moment(serial, kind, day)

    return Moment(serial, "datetime", f"{day}T{_clock(rest_ms)}")


def _clock(ms: int) -> str:
    seconds, ms = divmod(ms, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)

    return f"{hours:02}:{minutes:02}:{seconds:02}" + (f".{ms:03}" if ms else "")


def _duration(serial: float) -> str:
    """Return a duration in ISO 8601: 30 hours are `PT30H`."""
    seconds, ms = divmod(round(abs(serial) * _DAY_MS), 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}H" if hours else "", f"{minutes}M" if minutes else ""]

    if ms:
        parts.append(f"{seconds}.{ms:03}".rstrip("0") + "S")
    elif seconds or not any(parts):
        parts.append(f"{seconds}S")

    return ("-PT" if serial < 0 else "PT") + "".join(parts)


def json_of(value: str | float | Moment) -> bytes:
    """Return a value as JSON text: a moment as a string, a number as the sheet shows it at most.

    Numbers have 15 digits (0.1 + 0.2 is 0.3), and an exponent only beyond 20 zeros.
    """
    if isinstance(value, Moment):
        return _encoder.encode(value.text)

    if not isinstance(value, float):
        return _encoder.encode(value)

    # Rounded up, the largest numbers would be none.
    text = f"{value:.{EXACT_DIGITS}g}" if abs(value) < _MAX_NUMBER else repr(value)

    if "e" not in text:
        return b"0" if text == "-0" else text.encode()

    exact = Decimal(text)

    return f"{exact:f}".encode() if abs(exact.adjusted()) <= _MAX_ZEROS else text.encode()
