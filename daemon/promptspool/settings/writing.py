"""Values of the configuration as TOML: on one line, as a person would write them.

Pure; raises nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from promptspool.settings.values import BYTES, SECONDS

_BARE = re.compile(r"[A-Za-z0-9_-]+")
# What JSON leaves as it is, and TOML or a terminal does not take.
_CONTROL = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def toml_key(where: tuple[str, ...]) -> str:
    """Return a dotted key."""
    return ".".join(key if _BARE.fullmatch(key) else _string(key) or key for key in where)


def toml(value: object) -> str | None:
    """Return a value on one line; None for one that TOML has no word for, like null."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case Path():
            return _string(str(value))
        case Mapping():
            pairs = [(toml_key((str(key),)), toml(inner)) for key, inner in value.items()]
            parts = [None if inner is None else f"{key} = {inner}" for key, inner in pairs]

            return _joined("{ ", parts, " }") if parts else "{}"
        case list() | tuple():
            return _joined("[", [toml(inner) for inner in value], "]")
        case _:
            return None


def duration(seconds: float) -> str:
    """Return a duration in its largest unit that needs no fraction, as a TOML string."""
    for unit in ("d", "h", "m", "s", "ms"):
        count = round(seconds / SECONDS[unit])

        if count and float(count) * SECONDS[unit] == seconds:
            return f'"{count}{unit}"'

    return repr(seconds)


def size(count: int) -> str:
    """Return a size in its largest unit that needs no fraction, as TOML."""
    for unit, factor in sorted(BYTES.items(), key=lambda pair: pair[1], reverse=True):
        if factor > 1 and count % factor == 0:
            return f'"{count // factor}{unit}"'

    return repr(count)


def _joined(start: str, parts: list[str | None], end: str) -> str | None:
    known = [part for part in parts if part is not None]

    return None if len(known) < len(parts) else f"{start}{', '.join(known)}{end}"


def _string(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        return None

    quoted = json.dumps(text, ensure_ascii=False)

    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
