"""Ids: which rows of a file have an id that an earlier row has.

Eight bytes a row are held while the file is read; the ids themselves are looked at again, in the
row index on disk, only where two of them may be the same. Lets `OSError` through (environment).
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.wire import PlannedRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BUCKETS = 256

_BLOCK_BYTES = 1 << 20

_rows = msgspec.json.Decoder(PlannedRow)


class Repeat(NamedTuple):
    """A row whose id an earlier row has."""

    id: str
    first_line: int
    """Where the first row of that id begins."""
    times: int
    """How many rows up to this one have it: 2 or more."""


class Ids:
    """Remembers that an id was there, not which."""

    def __init__(self) -> None:
        """Begin with none."""
        self._hashes = [array("q") for _ in range(_BUCKETS)]

    def add(self, name: str) -> None:
        """Note the id of the next row."""
        digest = hash(name)  # salted by Python for each process, so nobody can aim at it
        self._hashes[digest % _BUCKETS].append(digest)

    def repeats(self, rows_file: Path) -> dict[int, Repeat]:
        """Return the repeated rows by their number, from 0; *rows_file* is the row index."""
        suspects = {digest for bucket in self._hashes for digest in _repeated(bucket)}

        return dict(_found(rows_file, suspects)) if suspects else {}


def _repeated(bucket: array[int]) -> Iterator[int]:
    if len(set(bucket)) < len(bucket):
        yield from (digest for digest, count in Counter(bucket).items() if count > 1)


def _found(rows_file: Path, suspects: set[int]) -> Iterator[tuple[int, Repeat]]:
    """Yield what is repeated indeed: two ids may share a hash."""
    lines: dict[str, int] = {}
    counts: Counter[str] = Counter()

    with rows_file.open("rb", buffering=_BLOCK_BYTES) as file:
        for number, text in enumerate(file):
            row = _rows.decode(text)

            if hash(row.id) not in suspects:
                continue

            counts[row.id] += 1
            first = lines.setdefault(row.id, row.line)

            if counts[row.id] > 1:
                yield number, Repeat(row.id, first, counts[row.id])
