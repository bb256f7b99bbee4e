"""Ids: which rows of a file have an id that an earlier row has.

Eight bytes a row are held while the file is read; the ids themselves are looked at again, in the
row index, only where two of them may be the same. Pure.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from promptspool.wire import PlannedRow

_BUCKETS = 256


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

    def suspects(self) -> frozenset[int]:
        """Return the hashes that more than one row has; empty if all ids differ."""
        return frozenset(digest for bucket in self._hashes for digest in _repeated(bucket))


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
