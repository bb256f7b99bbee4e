"""Opening the database: made, migrated and looked through.

Raises `SpoolError` (environment) for one that cannot be opened or is damaged.
"""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiosqlite
import anyio

from promptspool.errors import SpoolError
from promptspool.store.database import Store
from promptspool.store.faults import damaged, reason_of
from promptspool.store.schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BUSY_MS = 5_000
"""How long another program's lock is waited for before a statement gives up."""

CHECKED_BYTES = 64_000_000
"""A larger database is not looked through at a start (measured: 6 to 9 ms a megabyte)."""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    """Open the database at *path*, made or migrated as needed, and close it at the end.

    Raises `SpoolError` if it is damaged, locked by another program, or made by a newer version.
    """
    try:
        # Tried here first, because SQLite does not say what is wrong.
        async with await anyio.open_file(path, "ab"):
            size_bytes = (await anyio.Path(path).stat()).st_size
    except OSError as error:
        raise SpoolError(f"{path}: the database cannot be opened: {error.strerror}") from error

    connection = await aiosqlite.connect(path, isolation_level=None)

    try:
        try:
            await _prepare(connection)

            if size_bytes <= CHECKED_BYTES:
                await _check(connection)
        except (sqlite3.Error, SpoolError) as error:
            raise SpoolError(f"{path}: {reason_of(error)}") from error

        yield Store(connection)
    finally:
        with anyio.CancelScope(shield=True):  # its thread would answer to a loop that is gone
            await connection.close()


async def _prepare(connection: aiosqlite.Connection) -> None:
    for pragma in (
        f"busy_timeout={BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
    ):
        await connection.execute(f"PRAGMA {pragma}")

    # Not before the migrations: one of them makes a table anew that another refers to.
    await connection.execute("PRAGMA foreign_keys=OFF")
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    version = int(rows[0][0])

    if version > len(SCHEMA):
        message = f"the database has version {version}, this promptspool knows {len(SCHEMA)}"
        raise SpoolError(message)

    for number, script in enumerate(SCHEMA[version:], version + 1):
        await connection.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT"
        )

    await connection.execute("PRAGMA foreign_keys=ON")


async def _check(connection: aiosqlite.Connection) -> None:
    """Read every row once; raises `SpoolError` if one of them cannot be what was written."""
    rows = list(await connection.execute_fetchall("PRAGMA quick_check(1)"))
    found = str(rows[0][0])

    if found != "ok":
        raise damaged(" ".join(found.split()))
