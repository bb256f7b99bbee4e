"""In which line of a TOML file each key is set. Pure; raises nothing for a text that is TOML.

TOML's own parser tells no lines, but each statement of a file (a header, or a key and its value) is
TOML by itself, and the beginning of one is not. So a file is cut into the shortest runs of lines
that the parser takes, and what it makes of a run says which keys are set there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import TypeAlias

Where: TypeAlias = tuple[str, ...]
"""A key and the tables that it is in, from the outside in."""

MAX_TRIED = 500_000
"""So many characters are parsed, those of a long value more than once; then no more is told."""

MAX_DEPTH = 16
"""More than any key of ours has; what is deeper has the line of what it is in."""

_ENDS = ('"""', "'''", "]", "}")
"""What the last line of a statement has, if it is not its only one."""


def lines_of(text: str) -> dict[Where, int]:
    """Return the line, from 1, in which each key and each table is set, or first mentioned.

    *text* is a whole TOML file that the parser takes.
    """
    headers: dict[Where, int] = {}
    mentioned: dict[Where, int] = {}
    table: Where = ()

    for number, source, values in _statements(text.replace("\r\n", "\n")):
        keys = list(_keys(values, MAX_DEPTH))

        if source.lstrip().startswith("["):
            table = max(keys, key=len)
            headers.setdefault(table, number)
        elif len(table) < MAX_DEPTH:
            keys = [table + key for key in keys]
        else:
            continue

        for key in keys:
            for length in range(1, len(key) + 1):
                mentioned.setdefault(key[:length], number)

    return mentioned | headers


def _statements(text: str) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    """Yield each statement: the number of its first line, its text, and what it is parsed to."""
    lines = text.split("\n")
    start, tried = 0, 0

    while start < len(lines):
        for end in range(start + 1, len(lines) + 1):
            if end > start + 1 and not any(mark in lines[end - 1] for mark in _ENDS):
                continue

            source = "\n".join(lines[start:end])
            tried += len(source)

            if tried > MAX_TRIED:
                return

            try:
                values = tomllib.loads(source)
            except (tomllib.TOMLDecodeError, RecursionError):
                continue

            if values:
                yield start + 1, source, values

            start = end
            break
        else:
            return


def _keys(values: Mapping[str, object], depth: int) -> Iterator[Where]:
    """Yield every key of a statement, those in its inline tables too."""
    for key, value in values.items():
        yield (key,)
        inner = value[0] if value == [{}] else value  # as a header in double brackets makes it

        if isinstance(inner, Mapping) and depth > 1:
            yield from ((key, *below) for below in _keys(inner, depth - 1))
