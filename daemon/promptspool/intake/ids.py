"""Ids: which rows of a file have an id that an earlier row has.

Eight bytes a row are held while the file is read; the ids themselves are looked at again, in the
row index, only where two of them may be the same. Pure.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from promptspool.wire import PlannedRow

_BUCKETS = 64
"""Few enough for the processor's cache; the hashes in each fit into memory as a set."""


class Repeat(NamedTuple):
    """A row whose id an earlier row has."""

    id: str
    first_line: int
    """Where the first row of that id begins."""
    times: int
    """How many rows up to this one have it: 2 or more."""


class Ids:
    """Remembers that an id was there, not which.

    Rows without an id of their own are named after their numbers, so only what others are called
    can be the name of two: as long as there are no others, the numbers are all that is kept.
    """

    def __init__(self, stem: str) -> None:
        """Begin with none; *stem* is what the names of rows without an id begin with."""
        self._stem = stem
        self._numbers = array("q")
        self._hashes = [array("q") for _ in range(_BUCKETS)]
        self._has_names = False

    def name(self, number: int) -> str:
        """Return what a row without an id is called."""
        return f"{self._stem}-{number}"

    def add(self, names: Iterable[str]) -> None:
        """Note the ids of the next rows."""
        if not self._has_names:
            self._has_names = True
            self._hash(map(self.name, self._numbers))
            self._numbers = array("q")

        self._hash(names)

    def add_unnamed(self, numbers: Sequence[int]) -> None:
        """Note that the next rows have no ids, but these numbers, which no other rows have."""
        if self._has_names:
            self._hash(map(self.name, numbers))
        else:
            self._numbers.extend(numbers)

    def suspects(self) -> frozenset[int]:
        """Return the hashes that more than one row has; empty if all ids differ."""
        return frozenset(digest for bucket in self._hashes for digest in _repeated(bucket))

    def _hash(self, names: Iterable[str]) -> None:
        appends = [bucket.append for bucket in self._hashes]

        for digest in map(hash, names):  # salted for each process, so nobody can aim at it
            appends[digest % _BUCKETS](digest)


def _repeated(bucket: array[int]) -> Iterator[int]:
    if len(set(bucket)) < len(bucket):
        yield from (digest for digest, count in Counter(bucket).items() if count > 1)


def repeats(rows: Iterable[PlannedRow], suspects: frozenset[int]) -> Iterator[Repeat | None]:
    """Yield for each of *rows* what it repeats, None if it is the first of its id.

    Holds the ids that are there more than once; two ids may share a hash, so they are compared.
    """
    seen: dict[str, list[int]] = {}

    for row in rows:
        if hash(row.id) not in suspects:
            yield None
            continue

        first = seen.setdefault(row.id, [row.line, 0])
        first[1] += 1
        yield Repeat(row.id, first[0], first[1]) if first[1] > 1 else None
