"""Rows and their tables: what a row is in SQL, and back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import compress
from operator import attrgetter, is_not
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from promptspool.model import (
    Batch,
    BatchStatus,
    Job,
    JobStatus,
    Notice,
    NoticeStatus,
    ProviderState,
    ProviderStatus,
    RemoteStatus,
    Row,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import Enum


AnyRow = TypeVar("AnyRow", Job, Batch, ProviderState, Notice)
_Made = TypeVar("_Made", bound=msgspec.Struct)


class Table(msgspec.Struct, frozen=True):
    """Where the rows of a kind are kept; what is said of columns is in their order."""

    name: str
    columns: str
    """Their names, as a list in SQL."""
    insert: str
    """The statement that adds a row unless it is there."""
    values: Callable[[Row], tuple[Any, ...]]
    made: Callable[[Sequence[Any]], Any]
    """Returns a row from its values."""
    words: Sequence[int]
    """The places of columns that hold one of an enumeration."""


def _table(kind: type[Row], name: str, words: Mapping[str, type[Enum]]) -> Table:
    names = kind.__struct_fields__
    columns = ", ".join(names)
    marks = ", ".join("?" for _ in names)

    return Table(
        name=name,
        columns=columns,
        # Not OR IGNORE, which would also pass over a row that fails a CHECK, and lose it.
        insert=f"INSERT INTO {name} ({columns}) VALUES ({marks}) "  # noqa: S608 - our own names
        "ON CONFLICT (id) DO NOTHING",
        values=attrgetter(*names),
        made=maker(kind, words),
        words=[names.index(one) for one in words],
    )


def maker(kind: type[_Made], words: Mapping[str, type[Enum]]) -> Callable[[Sequence[Any]], _Made]:
    """Return what makes a struct *kind* of the values of its fields, in order.

    *words* are the fields that are enumerations. It raises `ValueError` for a word that is none.
    """
    names = kind.__struct_fields__

    def made(values: Sequence[Any]) -> _Made:
        named = dict(zip(names, values, strict=True))

        for name, enum in words.items():
            if named[name] is not None:
                named[name] = enum(named[name])

        return kind(**named)

    return made


TABLES: dict[type[Row], Table] = {
    ProviderState: _table(
        ProviderState, "providers", {"status": ProviderStatus, "paused_work": Work}
    ),
    Job: _table(Job, "jobs", {"status": JobStatus}),
    Batch: _table(Batch, "batches", {"status": BatchStatus, "remote_status": RemoteStatus}),
    Notice: _table(Notice, "notices", {"status": NoticeStatus}),
}
"""In an order in which rows can be added: a batch refers to its job."""


def values_of(row: Row) -> tuple[Any, ...]:
    """Return the values of a row, in the order of its table's columns."""
    table = TABLES[type(row)]
    values = list(table.values(row))

    for place in table.words:
        if values[place] is not None:
            values[place] = values[place].value

    return tuple(values)


def update_of(before: Row, after: Row) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that changes a row if it is as it was, and its values.

    It names only what changes: SQLite keeps up the index of every column that is named. Most polls
    change three columns of sixty.
    """
    table = TABLES[type(after)]
    values = table.values(after)
    others = map(is_not, table.values(before), values)  # a copy has what is not changed itself
    places = tuple(compress(range(len(values)), others))
    changed = [
        values[place].value if place in table.words and values[place] is not None else values[place]
        for place in places
    ]

    return _statement(type(after), places), (*changed, before.id, before.version)


@cache
def _statement(kind: type[Row], places: Sequence[int]) -> str:
    """Return what changes the columns at *places*; where there are none it changes nothing."""
    names = kind.__struct_fields__
    sets = ", ".join(f"{names[place]} = ?" for place in places) or "version = version"

    return f"UPDATE {TABLES[kind].name} SET {sets} WHERE id = ? AND version = ?"  # noqa: S608 - ours


def history(
    updated: Sequence[tuple[Row, Row]], added: Sequence[Row], at: float
) -> list[tuple[object, ...]]:
    """Return a line for every row that came to be or changed its status."""
    moved = [
        (after.id, at, before.status.value, after.status.value, after.why)
        for before, after in updated
        if before.status is not after.status
    ]
    made = [(row.id, at, None, row.status.value, row.why) for row in added]

    return [*moved, *made]
