"""The one connection: its thread, its lock, and damage that was met on it.

aiosqlite's connection is shared by all tasks, and a cancelled statement still runs: it would land
in whatever transaction comes next. So whatever is done holds a lock and a shield, and awaits
nothing but the database. What belongs together goes to the connection's thread in one piece, since
each piece costs two switches; and rows are made and taken apart there, where ten thousand of them
do not hold the event loop.

Raises `SpoolError` (environment) for a database that is damaged, again at every later use;
`StoreError` (environment) where SQLite refuses; and `Bug` for what it must not be asked.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio

from promptspool.errors import SpoolError
from promptspool.store.faults import translated

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

    import aiosqlite

_Result = TypeVar("_Result")


class Connection:
    """Lets one at a time read or write."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        """Take a connection that `opened` has prepared."""
        self._connection = connection
        self._lock = anyio.Lock(fast_acquire=True)  # who has it waits for the database anyway
        self._damage: str | None = None

    async def read(self, work: Callable[[sqlite3.Connection], list[_Result]]) -> list[_Result]:
        """Return what *work* reads; it is given the connection, on the connection's own thread."""
        found: list[_Result] = []

        with anyio.CancelScope(shield=True), self._sound(), translated():
            async with self._lock:
                found = await self._done(work)

        return found

    async def transact(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do *work*, called as by `read`, in one transaction; nothing of it if it raises."""
        with anyio.CancelScope(shield=True), self._sound(), translated():
            async with self._lock:
                await self._done(lambda there: _transacted(there, work))

    async def _done(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        connection = self._connection
        # aiosqlite runs every single statement of its own in this way, and offers no other.
        result: _Result = await connection._execute(work, connection._conn)  # type: ignore[no-untyped-call]  # noqa: SLF001

        return result

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Remember damage that is met inside, and raise it again at every later use."""
        if self._damage is not None:
            raise SpoolError(self._damage)

        try:
            yield
        except SpoolError as error:
            self._damage = str(error)

            raise


def begin(there: sqlite3.Connection) -> None:
    """Begin a transaction; whoever else is about to write has to end first."""
    there.execute("BEGIN IMMEDIATE")


def commit(there: sqlite3.Connection) -> None:
    """End a transaction; what it wrote is on the platter when this returns."""
    there.execute("COMMIT")


def _transacted(there: sqlite3.Connection, work: Callable[[sqlite3.Connection], object]) -> None:
    begin(there)

    try:
        work(there)
        commit(there)
    except BaseException:
        if there.in_transaction:  # SQLite ends some by itself
            there.execute("ROLLBACK")

        raise
