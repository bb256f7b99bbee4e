"""Durable state. Every SQL statement of the daemon is in this file.

One connection, one writer. A write is one transaction: it is either all there after a crash or not
at all, and with `synchronous=FULL` it is on the platter when the call returns. aiosqlite's
connection is shared by all tasks and a cancelled statement still runs, so every transaction holds a
lock and a shield, and awaits nothing but the database. The database is a cache of what the spool
and the provider know: losing it costs uploads and look-ups, never a second paid batch. So one that
is damaged is put to no further use: nothing that it says may be decided on.

Raises `StaleWrite` (bug) when a row changed underneath, `Bug` for a row that breaks its table,
`SpoolError` (environment) for a database that cannot be opened or is damaged, and `StoreError`
(environment: a full disk, say) where SQLite refuses later.
"""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

import aiosqlite
import anyio

from promptspool.errors import Bug, SpoolError, StaleWrite, StoreError
from promptspool.model import (
    Batch,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    ProviderState,
    ProviderStatus,
    RemoteStatus,
    Row,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
    from pathlib import Path

    from promptspool.model import Status

SCHEMA = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

    CREATE TABLE providers (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL CHECK (status IN ('recalling', 'ready')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        sweeps INTEGER NOT NULL,
        struck TEXT NOT NULL,
        pauses INTEGER NOT NULL,
        paused_until REAL,
        paused_at REAL,
        why TEXT
    ) STRICT;

    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        name BLOB NOT NULL,
        stem BLOB NOT NULL,
        profile TEXT NOT NULL,
        provider TEXT,
        base_url TEXT,
        status TEXT NOT NULL CHECK (status IN (
            'claimed', 'planned', 'settled', 'delivered', 'done', 'unusable', 'rejected')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        claimed_at REAL NOT NULL,
        planned_at REAL,
        delivered_at REAL,
        size_bytes INTEGER NOT NULL,
        sha256 TEXT,
        requests INTEGER,
        why TEXT
    ) STRICT;

    CREATE INDEX jobs_due ON jobs (status, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX jobs_deadline ON jobs (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX jobs_live ON jobs (status) WHERE status NOT IN ('done', 'rejected');
    CREATE INDEX jobs_content ON jobs (sha256) WHERE sha256 IS NOT NULL;

    CREATE TABLE batches (
        id TEXT PRIMARY KEY,
        job TEXT NOT NULL REFERENCES jobs (id),
        parent TEXT,
        provider TEXT NOT NULL,
        base_url TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN (
            'planned', 'uploaded', 'creating', 'unclear', 'created', 'ended', 'downloaded',
            'closed')),
        version INTEGER NOT NULL,
        due_at REAL,
        failures INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        waits INTEGER NOT NULL,
        reuploads INTEGER NOT NULL,
        halvings INTEGER NOT NULL,
        give_up_at REAL NOT NULL,
        input_file TEXT,
        uploaded_at REAL,
        intended_at REAL,
        unclear_at REAL,
        looks INTEGER NOT NULL,
        remote_id TEXT,
        remote_status TEXT CHECK (remote_status IN (
            'validating', 'in_progress', 'finalizing', 'cancelling', 'completed', 'failed',
            'expired', 'cancelled', 'unknown', 'refused', 'lost')),
        created_at REAL,
        ended_at REAL,
        polls INTEGER NOT NULL,
        missed INTEGER NOT NULL,
        missed_at REAL,
        total INTEGER NOT NULL,
        completed INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        output_file TEXT,
        error_file TEXT,
        errors TEXT,
        why TEXT
    ) STRICT;

    CREATE INDEX batches_due ON batches (provider, status, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX batches_deadline ON batches (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX batches_job ON batches (job);

    CREATE TABLE history (
        row TEXT NOT NULL,
        at REAL NOT NULL,
        was TEXT,
        became TEXT NOT NULL,
        why TEXT
    ) STRICT;

    CREATE INDEX history_row ON history (row);
    """,
    """
    ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;

    CREATE INDEX jobs_queue ON jobs (status, priority DESC, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX batches_queue ON batches (provider, status, priority DESC, due_at)
        WHERE due_at IS NOT NULL;
    """,
    """
    ALTER TABLE providers ADD COLUMN paused_work TEXT NOT NULL DEFAULT 'all'
        CHECK (paused_work IN ('all', 'uploads', 'creations', 'downloads'));
    ALTER TABLE batches ADD COLUMN progressed_at REAL;
    ALTER TABLE batches ADD COLUMN stalls INTEGER NOT NULL DEFAULT 0;

    CREATE INDEX batches_intended ON batches (provider, intended_at) WHERE intended_at IS NOT NULL;
    CREATE INDEX batches_doubted ON batches (status) WHERE status IN ('creating', 'unclear');
    """,
)
"""Numbered migrations: entry n takes a database from `user_version` n to n + 1."""

BUSY_MS = 5_000
"""How long another program's lock is waited for before a statement gives up."""

CHECKED_BYTES = 64_000_000
"""A larger database is not looked through at a start (measured: 6 to 9 ms a megabyte)."""

_WAY_OUT = "move state/promptspool.db away: it is rebuilt from the spool and the provider"

_TABLES: dict[type[Row], str] = {Job: "jobs", Batch: "batches", ProviderState: "providers"}

_QUEUED: frozenset[Status] = frozenset(
    {JobStatus.CLAIMED, BatchStatus.PLANNED, BatchStatus.UPLOADED, BatchStatus.CREATING}
)
"""What is begun in the order of priority."""

_ENUMS: dict[type[Row], dict[str, type[Enum]]] = {
    Job: {"status": JobStatus},
    Batch: {"status": BatchStatus, "remote_status": RemoteStatus},
    ProviderState: {"status": ProviderStatus, "paused_work": Work},
}

AnyRow = TypeVar("AnyRow", Job, Batch, ProviderState)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one transaction writes: *updated* holds each row as it was and as it is to be."""

    updated: Sequence[tuple[Row, Row]] = ()
    added: Sequence[Row] = ()
    at: float


class Store:
    """The open database."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        """Take a connection that `opened` has prepared."""
        self._connection = connection
        self._lock = anyio.Lock()
        self._damage: str | None = None

    # Reading.

    async def pending(
        self, statuses: Iterable[Status], providers: Iterable[str], *, now: float
    ) -> set[tuple[Status, str | None]]:
        """Return those of *statuses* that have due rows; for batches, by which of *providers*."""
        asked: list[tuple[Status, str | None]] = []

        for status in statuses:
            names = providers if isinstance(status, BatchStatus) else (None,)
            asked.extend((status, name) for name in names)

        questions = ", ".join(_question(status) for status, _ in asked)
        parameters: list[object] = []

        for status, name in asked:
            parameters += [status.value, now] if name is None else [name, status.value, now]

        answers = (await self._fetch(f"SELECT {questions}", parameters))[0]

        return {key for key, is_due in zip(asked, answers, strict=True) if is_due}

    async def due(
        self, status: Status, provider: str | None, *, now: float, limit: int
    ) -> list[Row]:
        """Return rows of *status* whose time has come, the longest due first.

        Of what is not submitted yet, the highest priority comes before that. *provider* narrows
        batches to one; it is None for everything else. Jobs to be tidied are left out while their
        provider is paused.
        """
        is_queued = status in _QUEUED
        order = "priority DESC, due_at" if is_queued else "due_at"
        due = f"status = ? AND due_at <= ? ORDER BY {order} LIMIT ?"
        parameters = (status.value, now, limit)

        match status:
            case JobStatus.DELIVERED:
                paused = "SELECT id FROM providers WHERE paused_until > ? AND paused_work = 'all'"
                clause = f"WHERE coalesce(provider, '') NOT IN ({paused}) AND {due}"

                return [*await self._rows(Job, clause, (now, *parameters))]
            case JobStatus():
                index = "INDEXED BY jobs_queue " if is_queued else ""

                return [*await self._rows(Job, f"{index}WHERE {due}", parameters)]
            case ProviderStatus():
                return [*await self._rows(ProviderState, f"WHERE {due}", parameters)]
            case BatchStatus():
                index = "INDEXED BY batches_queue " if is_queued else ""
                clause = f"{index}WHERE provider = ? AND {due}"

                return [*await self._rows(Batch, clause, (provider, *parameters))]
            case _:
                assert_never(status)

    async def next_due_at(self, now: float) -> float | None:
        """Return the earliest deadline after *now* of any row or pause, None if there is none."""
        deadlines = await self._fetch(
            """
            SELECT (SELECT min(due_at) FROM jobs WHERE due_at > :now),
                   (SELECT min(due_at) FROM batches WHERE due_at > :now),
                   (SELECT min(due_at) FROM providers WHERE due_at > :now),
                   (SELECT min(paused_until) FROM providers WHERE paused_until > :now)
            """,
            {"now": now},
        )

        return min((at for at in deadlines[0] if at is not None), default=None)

    async def running(self, provider: str) -> list[Batch]:
        """Return every batch of *provider* that is to be polled, due or not, youngest first."""
        return await self._rows(
            Batch,
            "WHERE provider = ? AND status = 'created' AND due_at IS NOT NULL "
            "ORDER BY created_at DESC",
            (provider,),
        )

    async def batches_of(self, job: JobId) -> list[Batch]:
        """Return all batches of *job* in the order in which they were added: parents first."""
        return await self._rows(Batch, "WHERE job = ? ORDER BY rowid", (job,))

    async def live_batches(self, job: JobId) -> int:
        """Count the batches of *job* that are not closed."""
        rows = await self._fetch(
            "SELECT count(*) FROM batches WHERE job = ? AND status != 'closed'", (job,)
        )

        return int(rows[0][0])

    async def job(self, job: JobId) -> Job | None:
        """Return one job, None if it is unknown."""
        rows = await self._rows(Job, "WHERE id = ?", (job,))

        return rows[0] if rows else None

    async def live_jobs(self) -> list[Job]:
        """Return the jobs that still have something to do, oldest first."""
        live = "INDEXED BY jobs_live WHERE status NOT IN ('done', 'rejected') ORDER BY id"

        return await self._rows(Job, live, ())

    async def job_with_content(self, sha256: str, *, other_than: JobId) -> Job | None:
        """Return the oldest other usable job with the same original, None if there is none."""
        rows = await self._rows(
            Job,
            "WHERE sha256 = ? AND id != ? AND status != 'rejected' ORDER BY id LIMIT 1",
            (sha256, other_than),
        )

        return rows[0] if rows else None

    async def providers(self) -> dict[str, ProviderState]:
        """Return the state of every provider by name."""
        return {state.id: state for state in await self._rows(ProviderState, "", ())}

    async def nth_last_intent(self, provider: str, place: int, *, until: float) -> float | None:
        """Return when the *place*-th last creation up to *until* was intended, None if of fewer."""
        rows = await self._fetch(
            "SELECT intended_at FROM batches WHERE provider = ? AND intended_at <= ? "
            "ORDER BY intended_at DESC LIMIT 1 OFFSET ?",
            (provider, until, place - 1),
        )

        return float(rows[0][0]) if rows else None

    async def last_at(self) -> float | None:
        """Return when the last transition was written, None if none ever was."""
        rows = await self._fetch("SELECT at FROM history ORDER BY rowid DESC LIMIT 1", ())

        return float(rows[0][0]) if rows else None

    async def due_after(self, at: float) -> list[Row]:
        """Return the jobs and batches whose deadline is later than *at*."""
        return [
            *await self._rows(Job, "WHERE due_at > ?", (at,)),
            *await self._rows(Batch, "WHERE due_at > ?", (at,)),
        ]

    async def interrupted(self) -> list[Batch]:
        """Return the batches whose create may have been sent by a process that is gone."""
        return await self._rows(Batch, "WHERE status IN ('creating', 'unclear')", ())

    async def meta(self, key: str) -> str | None:
        """Return a note of the daemon's own, None if it was never made."""
        rows = await self._fetch("SELECT value FROM meta WHERE key = ?", (key,))

        return str(rows[0][0]) if rows else None

    # Writing.

    async def note(self, key: str, value: str) -> None:
        """Keep *value* under *key*."""
        async with self._transaction() as connection:
            await connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    async def forget(self, job: JobId) -> None:
        """Delete the rows of *job*, if there are any; its history stays."""
        async with self._transaction() as connection:
            await connection.execute("DELETE FROM batches WHERE job = ?", (job,))
            await connection.execute("DELETE FROM jobs WHERE id = ?", (job,))

    async def write(self, change: Change) -> None:
        """Apply *change* in one transaction, or nothing of it.

        Raises `StaleWrite` if an updated row is not as it was read. A row to be added that is
        already there is left as it is: its id is derived from the same work.
        """
        async with self._transaction() as connection:
            for kind, before_after in _by_kind(change.updated).items():
                cursor = await connection.executemany(
                    _update_statement(kind),
                    [
                        (*_values(after), before.id, before.version)
                        for before, after in before_after
                    ],
                )

                if cursor.rowcount != len(before_after):
                    ids = ", ".join(before.id for before, _ in before_after[:10])
                    message = f"a {_TABLES[kind]} row changed while it was worked on: {ids}"
                    raise StaleWrite(message)

            kinds: tuple[type[Row], ...] = (ProviderState, Job, Batch)

            for kind in kinds:
                added = [_values(row) for row in change.added if type(row) is kind]
                await connection.executemany(_insert_statement(kind), added)

            await connection.executemany(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?)", _history(change)
            )

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """Hold the connection for one transaction; nothing but database calls inside.

        The shield is needed because a cancelled statement still runs: it would land in whatever
        transaction comes next.
        """
        with anyio.CancelScope(shield=True), self._sound(), _translated():
            async with self._lock:
                await self._connection.execute("BEGIN IMMEDIATE")

                try:
                    yield self._connection
                    await self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:  # SQLite ends some by itself
                        await self._connection.execute("ROLLBACK")

                    raise

    async def _fetch(
        self, statement: str, parameters: Sequence[object] | dict[str, object]
    ) -> list[sqlite3.Row]:
        rows: list[sqlite3.Row] = []

        with anyio.CancelScope(shield=True), self._sound(), _translated():
            async with self._lock:
                rows.extend(await self._connection.execute_fetchall(statement, parameters))

        return rows

    async def _rows(
        self, kind: type[AnyRow], clause: str, parameters: Sequence[object]
    ) -> list[AnyRow]:
        statement = f"SELECT {_columns(kind)} FROM {_TABLES[kind]} {clause}"  # noqa: S608

        found = await self._fetch(statement, parameters)

        with self._sound(), _translated():
            return [_row(kind, values) for values in found]

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
            raise SpoolError(f"{path}: {_reason(error)}") from error

        yield Store(connection)
    finally:
        with anyio.CancelScope(shield=True):  # its thread would answer to a loop that is gone
            await connection.close()


async def _prepare(connection: aiosqlite.Connection) -> None:
    for pragma in (
        f"busy_timeout={BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        await connection.execute(f"PRAGMA {pragma}")

    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    version = int(rows[0][0])

    if version > len(SCHEMA):
        message = f"the database has version {version}, this promptspool knows {len(SCHEMA)}"
        raise SpoolError(message)

    for number, script in enumerate(SCHEMA[version:], version + 1):
        await connection.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT"
        )


async def _check(connection: aiosqlite.Connection) -> None:
    """Read every row once; raises `SpoolError` if one of them cannot be what was written."""
    rows = list(await connection.execute_fetchall("PRAGMA quick_check(1)"))
    found = str(rows[0][0])

    if found != "ok":
        raise _damaged(" ".join(found.split()))


def _damaged(reason: object) -> SpoolError:
    return SpoolError(f"the database is damaged ({reason}); {_WAY_OUT}")


def _is_damage(error: sqlite3.Error) -> bool:
    """Tell whether SQLite read what nobody can have written; such bytes need not be text."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the primary one

    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "Could not decode" in str(
        error
    )


def _reason(error: Exception) -> str:
    """Return why a database cannot be opened, and the way out where there is one."""
    if not isinstance(error, sqlite3.Error):
        return str(error)

    if _is_damage(error):
        return str(_damaged(error))

    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return f"the database is locked by another program ({error}); end that first"

    return f"the database cannot be used: {error}; if it is damaged, {_WAY_OUT}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError) as error:
        raise Bug(f"the database was asked for what it must not do: {error}") from error
    except sqlite3.Error as error:
        if _is_damage(error):
            raise _damaged(error) from error

        raise StoreError(f"the database refuses: {error}") from error
    except ValueError as error:  # a word that is no status
        raise _damaged(error) from error


def _question(status: Status) -> str:
    match status:
        case BatchStatus():
            clause = "batches WHERE provider = ? AND status = ? AND due_at <= ?"
        case JobStatus():
            clause = "jobs WHERE status = ? AND due_at <= ?"
        case ProviderStatus():
            clause = "providers WHERE status = ? AND due_at <= ?"
        case _:
            assert_never(status)

    return f"EXISTS (SELECT 1 FROM {clause})"  # noqa: S608


def _columns(kind: type[Row]) -> str:
    return ", ".join(field.name for field in fields(kind))


def _insert_statement(kind: type[Row]) -> str:
    marks = ", ".join("?" for _ in fields(kind))

    into = f"INSERT INTO {_TABLES[kind]} ({_columns(kind)}) VALUES ({marks})"  # noqa: S608

    # Not OR IGNORE, which would also pass over a row that fails a CHECK, and lose it.
    return f"{into} ON CONFLICT (id) DO NOTHING"


def _update_statement(kind: type[Row]) -> str:
    sets = ", ".join(f"{field.name} = ?" for field in fields(kind))

    return f"UPDATE {_TABLES[kind]} SET {sets} WHERE id = ? AND version = ?"  # noqa: S608


def _values(row: Row) -> tuple[Any, ...]:
    values = (getattr(row, field.name) for field in fields(row))

    return tuple(value.value if isinstance(value, Enum) else value for value in values)


def _row(kind: type[AnyRow], values: Iterable[Any]) -> AnyRow:
    named = dict(zip((field.name for field in fields(kind)), values, strict=True))

    for name, enum in _ENUMS[kind].items():
        if named[name] is not None:
            named[name] = enum(named[name])

    return kind(**named)


def _by_kind(updated: Sequence[tuple[Row, Row]]) -> dict[type[Row], list[tuple[Row, Row]]]:
    kinds: dict[type[Row], list[tuple[Row, Row]]] = {}

    for before, after in updated:
        kinds.setdefault(type(before), []).append((before, after))

    return kinds


def _history(change: Change) -> list[tuple[object, ...]]:
    """Return a line for every row that came to be or changed its status."""
    moved = [
        (after.id, change.at, before.status.value, after.status.value, after.why)
        for before, after in change.updated
        if before.status is not after.status
    ]
    added = [(row.id, change.at, None, row.status.value, row.why) for row in change.added]

    return [*moved, *added]
