"""Rows and their tables: what a row is in SQL, and back. Pure."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

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
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from promptspool.model import Row

TABLES: dict[type[Row], str] = {
    Job: "jobs",
    Batch: "batches",
    ProviderState: "providers",
    Notice: "notices",
}

_ENUMS: dict[type[Row], dict[str, type[Enum]]] = {
    Job: {"status": JobStatus},
    Batch: {"status": BatchStatus, "remote_status": RemoteStatus},
    ProviderState: {"status": ProviderStatus, "paused_work": Work},
    Notice: {"status": NoticeStatus},
}

AnyRow = TypeVar("AnyRow", Job, Batch, ProviderState, Notice)


def columns(kind: type[Row]) -> str:
    """Return the names of the columns, as a list in SQL."""
    return ", ".join(field.name for field in fields(kind))


def insert_statement(kind: type[Row]) -> str:
    """Return the statement that adds a row unless it is there."""
    marks = ", ".join("?" for _ in fields(kind))

    into = f"INSERT INTO {TABLES[kind]} ({columns(kind)}) VALUES ({marks})"  # noqa: S608

    # Not OR IGNORE, which would also pass over a row that fails a CHECK, and lose it.
    return f"{into} ON CONFLICT (id) DO NOTHING"


def update_statement(kind: type[Row]) -> str:
    """Return the statement that changes a row if it is as it was."""
    sets = ", ".join(f"{field.name} = ?" for field in fields(kind))

    return f"UPDATE {TABLES[kind]} SET {sets} WHERE id = ? AND version = ?"  # noqa: S608


def values_of(row: Row) -> tuple[Any, ...]:
    """Return the values of a row, in the order of `columns`."""
    found = (getattr(row, field.name) for field in fields(row))

    return tuple(value.value if isinstance(value, Enum) else value for value in found)


def row_of(kind: type[AnyRow], values: Iterable[Any]) -> AnyRow:
    """Return a row from its *values*; raises `ValueError` for a word that is no status."""
    named = dict(zip((field.name for field in fields(kind)), values, strict=True))

    for name, enum in _ENUMS[kind].items():
        if named[name] is not None:
            named[name] = enum(named[name])

    return kind(**named)


def by_kind(updated: Sequence[tuple[Row, Row]]) -> dict[type[Row], list[tuple[Row, Row]]]:
    """Return the changes of each kind of row."""
    kinds: dict[type[Row], list[tuple[Row, Row]]] = {}

    for before, after in updated:
        kinds.setdefault(type(before), []).append((before, after))

    return kinds


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
