"""Rows: what every reader makes of a dropped file, and what every table writer is given.

A reader is a generator of `Row`s and, where many of them are plain and alike, of `Block`s, which
mean the rows that `spread` makes of them: what handles blocks is a faster way to the same end. It
holds a few rows or one block at a time, whatever the size of the file. What is wrong with one row
is a `Row` with a fault; what is wrong with the whole file is raised as `BadInput`. The same
original gives the same rows in the same order, always: a table of answers is written beside the
rows read a second time. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol

import msgspec

from promptspool.errors import BadInput

Columns = Mapping[str, bytes]
"""A row: each column's value is JSON text in UTF-8, as it was written where it was JSON already."""

Value = bytes | msgspec.Raw
"""A column's value in a block: its bytes are those that a row has."""

BLOCK_BYTES = 1 << 18
"""Of a file at a time: more is no faster, and takes memory (measured)."""

Split = Literal["line", "paragraph", "file"]
Cell = str | int | float | bool | None


class Row(NamedTuple):
    """One row of a dropped file: *columns* or *fault*, never both."""

    line: int
    """Where it begins, from 1, as people count: a line of text, a row of a sheet, a document."""
    columns: Columns | None
    fault: BadInput | None = None
    name: str | None = None
    """What the file itself calls it (a document in an archive); None where it has no names."""
    number: int | None = None
    """Which row it is, from 1, where several may begin in one line; None where the line tells."""


class Block(NamedTuple):
    """Rows without faults and without names of their own that all have the same columns.

    At least one row, and no more than some megabytes. Which rows a block takes together means
    nothing; they are as many rows one after another.
    """

    lines: Sequence[int]
    """`Row.line` of each row; a range where each row is one line."""
    columns: Mapping[str, Sequence[Value]]
    """By name, in the order of `Row.columns`: a value for each row. A column may be made when it is
    asked for, which is once at most unless the block is spread."""
    numbers: Sequence[int] | None = None
    """`Row.number` of each row, None where the line tells."""
    is_ascii: bool = False
    """Whether all values are known to be ASCII, which spares looking for what is not."""


def spread(found: Iterable[Row | Block]) -> Iterator[Row]:
    """Yield the rows that *found* stands for, one by one."""
    for one in found:
        if isinstance(one, Row):
            yield one
        else:
            yield from rows_at(one, range(len(one.lines)))


def rows_at(block: Block, places: Iterable[int]) -> Iterator[Row]:
    """Yield the rows of a block that are at *places*, from 0."""
    columns: dict[str, Sequence[Value]] | None = None

    for place in places:
        columns = dict(block.columns) if columns is None else columns
        values = {name: bytes(column[place]) for name, column in columns.items()}
        number = None if block.numbers is None else block.numbers[place]
        yield Row(block.lines[place], values, number=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a profile says of how its files are read; None lets the reader find out."""

    max_row_bytes: int
    """A longer row is a fault, and is not held."""
    encoding: str | None = None
    delimiter: str | None = None
    sheet: str | None = None
    split: Split | None = None
    block_bytes: int | None = BLOCK_BYTES
    """About how much is looked at together; None for rows only, which mean the same."""


class Source(Protocol):
    """The content of a dropped file, out of its wrapping."""

    name: str
    """For people and for its extension, without `.gz` or `.zst`."""
    notes: dict[str, str]
    """What readers found out, for people: `encoding`, `delimiter`, `sheet` and the like."""

    def open(self) -> IO[bytes]:
        """Open it at its beginning, to be read once through; to be closed by the caller.

        Reading raises `BadInput` where the wrapping is broken or grows past its caps.
        """
        ...

    def path(self) -> Path:
        """Return where it is on disk as it is read, unwrapped there first if need be."""
        ...


class Files(Protocol):
    """The files that rows may name; nothing else is ever opened for a row."""

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return a file's content; raises `BadInput` if there is none of that name, or too much."""
        ...


class Added(NamedTuple):
    """A column that answers add to a table."""

    name: str
    kind: Literal["text", "integer", "number", "boolean"]


Reader = Callable[[Source, ReadOptions], Iterator[Row | Block]]

Writer = Callable[[Source, ReadOptions, Path, Sequence[Added], Iterator[Sequence[Cell]]], None]
"""Writes the table of a source, with columns added, to a path (made anew, not synced). The cells
come row by row, one sequence for each row that the reader of the same format yields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of file that can be dropped."""

    name: str
    """As in `csv`; what manifest, log and `check` call it."""
    suffixes: tuple[str, ...]
    """Lower case, with the dot."""
    unit: str
    """What `Row.line` counts: line, row or document."""
    read: Reader
    write: Writer | None = None
    """None for what is no table."""
    is_heavy: bool = False
    """Read and written in a process of its own, which its library's memory goes with."""


def free_names(taken: Sequence[str], added: Sequence[Added]) -> list[str]:
    """Return a name for each added column that no column of the table has: `answer_2` if it must.

    Names are compared without case, as spreadsheets and databases do.
    """
    used = {name.casefold() for name in taken}
    names = []

    for column in added:
        name, number = column.name, 1

        while name.casefold() in used:
            number += 1
            name = f"{column.name}_{number}"

        used.add(name.casefold())
        names.append(name)

    return names


def other_rows() -> BadInput:
    """Return what a writer raises unless it is given one sequence of cells for each row."""
    return BadInput("the original has other rows than when it was planned", code="other_rows")
