"""Figures in words: spans of time, counts, money, names of strangers. Pure; raises nothing."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from promptspool.model import shown

MINUTE_S = 60
HOUR_S = 3_600
DAY_S = 86_400

_LARGE = 1_000_000
_THOUSAND = 1_000
_DEPTH = 16


def safe(text: str) -> str:
    r"""Return *text* as one line without secrets, in which nothing is left that a terminal obeys.

    What is not to be seen (control characters, marks that turn the direction of writing, halves of
    surrogate pairs) is spelt out: `\x1b`, `\u202e`.
    """
    struck_out = _struck(text)

    if struck_out.isprintable():
        return struck_out

    return "".join(one if one.isprintable() else _spelt(one) for one in struck_out)


def _struck(text: str) -> str:
    # Whoever has kept a secret has imported the log, which takes as long as all else does here.
    log = sys.modules.get("promptspool.log")

    return text if log is None else str(log.struck(text))


def _spelt(character: str) -> str:
    number = ord(character)

    if number < 1 << 8:
        return f"\\x{number:02x}"

    return f"\\u{number:04x}" if number < 1 << _DEPTH else f"\\U{number:08x}"


def file_name(name: bytes) -> str:
    """Return the name of a file as it may be shown."""
    return safe(shown(name))


def span(seconds: float) -> str:
    """Return a length of time in its two largest units: `45s`, `12m`, `2h 10m`, `3d 4h`."""
    whole = max(round(seconds), 0)

    if whole < HOUR_S:
        return brief(whole)

    if whole < DAY_S:
        return _two(whole // HOUR_S, "h", whole % HOUR_S // MINUTE_S, "m")

    return _two(whole // DAY_S, "d", whole % DAY_S // HOUR_S, "h")


def brief(seconds: float) -> str:
    """Return a length of time in its largest unit, cut: `45s`, `119m`, `47h`, `3d`."""
    whole = max(round(seconds), 0)

    for unit_s, letter in ((DAY_S, "d"), (HOUR_S, "h"), (MINUTE_S, "m")):
        if whole >= 2 * unit_s or (whole >= unit_s and letter == "m"):
            return f"{whole // unit_s}{letter}"

    return f"{whole}s"


def _two(large: int, unit: str, small: int, smaller: str) -> str:
    return f"{large}{unit} {small}{smaller}" if small else f"{large}{unit}"


def short(number: int) -> str:
    """Return a count in few characters: `9,950`, `12.3k`, `20k`, `4.1M`."""
    if number < 10 * _THOUSAND:
        return f"{number:,}"

    unit, letter = (_LARGE, "M") if number >= _LARGE else (_THOUSAND, "k")

    # Cut, not rounded: what is nearly done is not said to be.
    return f"{number * 10 // unit / 10:.1f}".removesuffix(".0") + letter


def many(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: `1 batch`, `12 batches`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def iso(at: float | None) -> str | None:
    """Return a moment as ISO 8601 in UTC, to the millisecond; None for none."""
    if at is None:
        return None

    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(at: float) -> str:
    """Return a moment for people: the day and the time of this machine's time zone."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def time_of_day(at: float) -> str:
    """Return the time of day in this machine's time zone."""
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")
