"""Durable state, as the daemon reads and writes it.

One connection, one writer. A write is one transaction: it is either all there after a crash or not
at all, and with `synchronous=FULL` it is on the platter when the call returns. The database is a
cache of what the spool and the provider know: losing it costs uploads and look-ups, never a second
paid batch. So one that is damaged is put to no further use: nothing that it says may be decided on.

Raises `StaleWrite` (bug) when a row changed underneath, `Bug` for a row that breaks its table,
`SpoolError` (environment) for a database that cannot be opened or is damaged, and `StoreError`
(environment: a full disk, say) where SQLite refuses later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from promptspool.errors import StaleWrite
from promptspool.model import (
    Batch,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    Notice,
    NoticeStatus,
    ProviderState,
    ProviderStatus,
)
from promptspool.store.connection import Connection
from promptspool.store.overview import DAY_S
from promptspool.store.rows import TABLES, AnyRow, history, update_of, values_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    import aiosqlite

    from promptspool.model import Row, Status
    from promptspool.store.rows import Table

_QUEUED: frozenset[Status] = frozenset(
    {JobStatus.CLAIMED, BatchStatus.PLANNED, BatchStatus.UPLOADED, BatchStatus.CREATING}
)
"""What is begun in the order of priority."""


_DEADLINES = (
    "(SELECT min(due_at) FROM jobs WHERE due_at > ?)",
    "(SELECT min(due_at) FROM batches WHERE due_at > ?)",
    "(SELECT min(due_at) FROM providers WHERE due_at > ?)",
    "(SELECT min(due_at) FROM notices WHERE due_at > ?)",
    "(SELECT min(paused_until) FROM providers WHERE paused_until > ?)",
)
"""The questions for the next moment of each kind."""

_FORGET = (
    """
    INSERT INTO spent
    SELECT provider, CAST(intended_at / 86400 AS INTEGER),
           total(coalesce(cost_usd, estimated_usd)), total(standard_usd),
           sum(input_tokens), sum(output_tokens)
    FROM batches WHERE job = :job AND intended_at IS NOT NULL GROUP BY 1, 2
    ON CONFLICT (provider, day) DO UPDATE SET
        usd = usd + excluded.usd,
        standard_usd = standard_usd + excluded.standard_usd,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens
    """,
    "DELETE FROM history WHERE row IN (SELECT id FROM batches WHERE job = :job)",
    "DELETE FROM history WHERE row IN (SELECT id FROM notices WHERE job = :job)",
    "DELETE FROM history WHERE row = :job",
    "DELETE FROM notices WHERE job = :job",
    "DELETE FROM batches WHERE job = :job",
    "DELETE FROM jobs WHERE id = :job",
)


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
        self._connection = Connection(connection)

    # Reading.

    async def look(
        self, wanted: Mapping[tuple[Status, str | None], int], *, now: float
    ) -> tuple[dict[tuple[Status, str | None], list[Row]], float | None]:
        """Return what a turn of the loop asks for, as of one moment.

        That is what `due` returns for each status and provider of *wanted*, which has the limits,
        without those that have none; and the earliest deadline after *now* of any row or pause,
        None if there is none.
        """
        questions = [*(_question(status) for status, _ in wanted), *_DEADLINES]
        parameters: list[object] = []

        for status, name in wanted:
            parameters += [status.value, now] if name is None else [name, status.value, now]

        parameters += [now] * len(_DEADLINES)

        def looked(
            there: sqlite3.Connection,
        ) -> list[tuple[dict[tuple[Status, str | None], list[Row]], float | None]]:
            answers = there.execute(f"SELECT {', '.join(questions)}", parameters).fetchone()
            pending = [key for key, is_due in zip(wanted, answers, strict=False) if is_due]
            rows = {key: _due(there, key, now=now, limit=wanted[key]) for key in pending}

            return [(rows, _earliest(answers[len(wanted) :]))]

        (found,) = await self._connection.read(looked)

        return found

    async def due(
        self, status: Status, provider: str | None, *, now: float, limit: int
    ) -> list[Row]:
        """Return rows of *status* whose time has come, the longest due first.

        Of what is not submitted yet, the highest priority comes before that. *provider* narrows
        batches to one; it is None for everything else. Jobs to be tidied are left out while their
        provider is paused.
        """
        return await self._connection.read(
            lambda there: _due(there, (status, provider), now=now, limit=limit)
        )

    async def next_due_at(self, now: float) -> float | None:
        """Return the second half of `look`."""
        return (await self.look({}, now=now))[1]

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
        """Count the batches of *job* that are not closed, up to two: whether one is the last."""
        rows = await self._fetch(
            "SELECT count(*) FROM (SELECT 1 FROM batches INDEXED BY batches_open "
            "WHERE job = ? AND status != 'closed' LIMIT 2)",
            (job,),
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

    async def job_with_content(self, digest: str, *, other_than: JobId) -> Job | None:
        """Return the oldest other usable job with the same original, None if there is none."""
        rows = await self._rows(
            Job,
            "WHERE digest = ? AND id != ? AND status != 'rejected' ORDER BY id LIMIT 1",
            (digest, other_than),
        )

        return rows[0] if rows else None

    async def is_known_size(self, size_bytes: int, *, other_than: JobId) -> bool:
        """Tell whether an earlier version, with its own digests, noted a job of this size."""
        rows = await self._fetch(
            "SELECT EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_earlier WHERE size_bytes = ? "
            "AND digest NOT LIKE 'b3-%' AND id != ?)",
            (size_bytes, other_than),
        )

        return bool(rows[0][0])

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

    async def intents(self, provider: str, *, after: float, until: float) -> int:
        """Count the creations that were intended after *after*, up to *until*."""
        rows = await self._fetch(
            "SELECT count(*) FROM batches WHERE provider = ? AND intended_at > ? "
            "AND intended_at <= ?",
            (provider, after, until),
        )

        return int(rows[0][0])

    async def crowded(self, provider: str) -> list[Batch]:
        """Return the batches of *provider* that wait for others of their model to end."""
        return await self._rows(
            Batch,
            "INDEXED BY batches_queue WHERE provider = ? AND status = 'uploaded' "
            "AND due_at IS NOT NULL AND crowded_at IS NOT NULL",
            (provider,),
        )

    async def states(self) -> dict[str, int]:
        """Count the live jobs and batches by status, as in `job.planned` and `batch.created`."""
        rows = await self._fetch(
            "SELECT 'job.' || status, count(*) FROM jobs INDEXED BY jobs_live "
            "WHERE status NOT IN ('done', 'rejected') GROUP BY status UNION ALL "
            "SELECT 'batch.' || status, count(*) FROM batches INDEXED BY batches_live "
            "WHERE status != 'closed' GROUP BY status",
            (),
        )

        return {str(state): int(count) for state, count in rows}

    async def standing(
        self,
    ) -> tuple[
        dict[str, tuple[int, float]],
        dict[tuple[str, str], tuple[int, int, float]],
    ]:
        """Return how many live jobs there are by state, and batches by provider and state.

        With the requests of the batches, and since when the oldest is there: claimed, or created.
        What is set aside has a state of its own.
        """
        state = "CASE WHEN {0}.due_at IS NULL AND {0}.why LIKE 'set aside%' "
        state += "THEN 'set_aside' ELSE {0}.status END"
        jobs = await self._fetch(
            f"SELECT {state.format('jobs')}, count(*), min(claimed_at) "  # noqa: S608 - our words
            "FROM jobs INDEXED BY jobs_live WHERE status NOT IN ('done', 'rejected') GROUP BY 1",
            (),
        )
        batches = await self._fetch(
            f"SELECT batches.provider, {state.format('batches')}, count(*), "  # noqa: S608 - as above
            "sum(batches.requests), min(coalesce(batches.created_at, jobs.claimed_at)) "
            "FROM batches INDEXED BY batches_live JOIN jobs ON jobs.id = batches.job "
            "WHERE batches.status != 'closed' GROUP BY 1, 2",
            (),
        )

        return (
            {str(row[0]): (int(row[1]), float(row[2])) for row in jobs},
            {
                (str(row[0]), str(row[1])): (int(row[2]), int(row[3]), float(row[4]))
                for row in batches
            },
        )

    async def notices_of(self, job: JobId) -> list[Notice]:
        """Return the notices about *job*."""
        return await self._rows(Notice, "WHERE job = ?", (job,))

    async def pending_notices(self) -> int:
        """Count the notices that are still to be sent."""
        rows = await self._fetch(
            "SELECT count(*) FROM notices WHERE status = 'pending' AND due_at IS NOT NULL", ()
        )

        return int(rows[0][0])

    async def last_at(self) -> float | None:
        """Return when the last transition was written, None if none ever was."""
        rows = await self._fetch("SELECT at FROM history ORDER BY rowid DESC LIMIT 1", ())

        return float(rows[0][0]) if rows else None

    async def due_after(self, at: float) -> list[Row]:
        """Return the jobs, batches and notices whose deadline is later than *at*."""
        return [
            *await self._rows(Job, "WHERE due_at > ?", (at,)),
            *await self._rows(Batch, "WHERE due_at > ?", (at,)),
            *await self._rows(Notice, "WHERE due_at > ?", (at,)),
        ]

    async def spent(self, provider: str, since: float) -> float:
        """Return the USD that creations from *since* on took, estimated until they are known.

        What was offered again counts once, when it was offered last; without a price it counts
        nothing.
        """
        rows = await self._fetch(
            """
            SELECT (SELECT total(coalesce(cost_usd, estimated_usd)) FROM batches
                    WHERE provider = ? AND intended_at >= ?)
                 + (SELECT total(usd) FROM spent WHERE provider = ? AND day >= ?)
            """,
            (provider, since, provider, int(since // DAY_S)),
        )

        return float(rows[0][0])

    async def spent_on(self, job: JobId) -> float:
        """Return the USD that the creations of *job* took, as `spent`."""
        rows = await self._fetch(
            "SELECT total(coalesce(cost_usd, estimated_usd)) FROM batches "
            "WHERE job = ? AND intended_at IS NOT NULL",
            (job,),
        )

        return float(rows[0][0])

    async def enqueued(self, provider: str, base_url: str) -> dict[str, int]:
        """Return, by model, the estimated input tokens of what may run at *provider*'s address."""
        rows = await self._fetch(
            "SELECT model, sum(estimated_input) FROM batches INDEXED BY batches_enqueued "
            "WHERE provider = ? AND base_url = ? AND status IN ('creating', 'unclear', 'created') "
            "GROUP BY model",
            (provider, base_url),
        )

        return {str(model): int(tokens) for model, tokens in rows}

    async def set_aside(self) -> list[Row]:
        """Return the jobs and batches that nothing happens to any more because of a fault."""
        aside = "due_at IS NULL AND why LIKE 'set aside%'"
        jobs = f"INDEXED BY jobs_live WHERE status NOT IN ('done', 'rejected') AND {aside}"
        batches = f"INDEXED BY batches_live WHERE status != 'closed' AND {aside}"

        return [*await self._rows(Job, jobs, ()), *await self._rows(Batch, batches, ())]

    async def unsent(self, provider: str) -> list[Batch]:
        """Return the batches of *provider* that it was not asked for yet."""
        return await self._rows(
            Batch,
            "INDEXED BY batches_live WHERE provider = ? AND status != 'closed' "
            "AND status IN ('planned', 'uploaded', 'creating')",
            (provider,),
        )

    async def live_batches_in(self, status: BatchStatus) -> list[Batch]:
        """Return all batches of *status*, which is not `CLOSED`."""
        live = "INDEXED BY batches_live WHERE status != 'closed' AND status = ?"

        return await self._rows(Batch, live, (status.value,))

    async def finished(self, before: float, limit: int) -> list[JobId]:
        """Return jobs that were finished up to *before*, the oldest first.

        But for those of which somebody is still to be told.
        """
        rows = await self._fetch(
            "SELECT id FROM jobs INDEXED BY jobs_finished WHERE status IN ('done', 'rejected') "
            "AND coalesce(delivered_at, claimed_at) <= ? AND NOT EXISTS "
            "(SELECT 1 FROM notices WHERE notices.job = jobs.id AND notices.status = 'pending') "
            "ORDER BY coalesce(delivered_at, claimed_at), id LIMIT ?",
            (before, limit),
        )

        return [JobId(str(row[0])) for row in rows]

    async def interrupted(self) -> list[Batch]:
        """Return the batches whose create may have been sent by a process that is gone."""
        doubted = "WHERE status != 'closed' AND status IN ('creating', 'unclear')"

        return await self._rows(Batch, f"INDEXED BY batches_live {doubted}", ())

    async def created(self, batches: Iterable[str]) -> dict[str, str]:
        """Return the remote ids of those of *batches* that are known to have been created."""
        rows = await self._fetch(
            "SELECT id, remote_id FROM batches WHERE id IN (SELECT value FROM json_each(?)) "
            "AND remote_id IS NOT NULL "
            "AND status NOT IN ('planned', 'uploaded', 'creating', 'unclear')",
            (json.dumps([*batches]),),
        )

        return {str(row[0]): str(row[1]) for row in rows}

    async def meta(self, key: str) -> str | None:
        """Return a note of the daemon's own, None if it was never made."""
        rows = await self._fetch("SELECT value FROM meta WHERE key = ?", (key,))

        return str(rows[0][0]) if rows else None

    # Writing.

    async def note(self, key: str, value: str) -> None:
        """Keep *value* under *key*."""
        await self._connection.transact(
            lambda there: there.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        )

    async def forget(self, jobs: Sequence[JobId]) -> None:
        """Delete all that is known of *jobs*, but for what was spent on them."""

        def forgotten(there: sqlite3.Connection) -> None:
            for job in jobs:
                for statement in _FORGET:
                    there.execute(statement, {"job": job})

        if jobs:
            await self._connection.transact(forgotten)

    async def forget_older(self, at: float) -> None:
        """Delete what was spent, and the history of providers, from before *at*."""

        def forgotten(there: sqlite3.Connection) -> None:
            there.execute("DELETE FROM spent WHERE day < ?", (int(at // DAY_S),))
            there.execute(
                "DELETE FROM history WHERE row IN (SELECT id FROM providers) AND at < ?", (at,)
            )

        await self._connection.transact(forgotten)

    async def write(self, change: Change) -> None:
        """Apply *change* in one transaction, or nothing of it.

        Raises `StaleWrite` if an updated row is not as it was read. A row to be added that is
        already there is left as it is: its id is derived from the same work.
        """
        if change.updated or change.added:
            await self._connection.transact(lambda there: _apply(there, change))

    async def _fetch(self, statement: str, parameters: Sequence[object]) -> list[sqlite3.Row]:
        return await self._connection.read(
            lambda there: there.execute(statement, parameters).fetchall()
        )

    async def _rows(
        self, kind: type[AnyRow], clause: str, parameters: Sequence[object]
    ) -> list[AnyRow]:
        return await self._connection.read(lambda there: _read(there, kind, clause, parameters))


def _apply(there: sqlite3.Connection, change: Change) -> None:
    """Write *change*, inside a transaction; raises `StaleWrite`."""
    cursor = there.cursor()

    for before, after in change.updated:
        if cursor.execute(*update_of(before, after)).rowcount != 1:
            message = (
                f"a {TABLES[type(after)].name} row changed while it was worked on: {before.id}"
            )
            raise StaleWrite(message)

    for kind, table in TABLES.items():
        added = [values_of(row) for row in change.added if type(row) is kind]

        if added:
            there.executemany(table.insert, added)

    there.executemany(
        "INSERT INTO history VALUES (?, ?, ?, ?, ?)",
        history(change.updated, change.added, change.at),
    )


def _read(
    there: sqlite3.Connection, kind: type[AnyRow], clause: str, parameters: Sequence[object]
) -> list[AnyRow]:
    table: Table = TABLES[kind]
    said: str = f"SELECT {table.columns} FROM {table.name} {clause}"  # noqa: S608 - our words
    found: list[AnyRow] = [*map(table.made, there.execute(said, parameters))]

    return found


def _due(
    there: sqlite3.Connection, key: tuple[Status, str | None], *, now: float, limit: int
) -> list[Row]:
    status, provider = key
    is_queued = status in _QUEUED
    order = "priority DESC, due_at" if is_queued else "due_at"
    due = f"status = ? AND due_at <= ? ORDER BY {order} LIMIT ?"
    parameters = (status.value, now, limit)

    match status:
        case JobStatus.DELIVERED:
            paused = "SELECT id FROM providers WHERE paused_until > ? AND paused_work = 'all'"
            clause = f"WHERE coalesce(provider, '') NOT IN ({paused}) AND {due}"

            return [*_read(there, Job, clause, (now, *parameters))]
        case JobStatus():
            index = "INDEXED BY jobs_queue " if is_queued else ""

            return [*_read(there, Job, f"{index}WHERE {due}", parameters)]
        case ProviderStatus():
            return [*_read(there, ProviderState, f"WHERE {due}", parameters)]
        case BatchStatus():
            index = "INDEXED BY batches_queue " if is_queued else ""
            clause = f"{index}WHERE provider = ? AND {due}"

            return [*_read(there, Batch, clause, (provider, *parameters))]
        case NoticeStatus():
            return [*_read(there, Notice, f"WHERE {due}", parameters)]
        case _:
            assert_never(status)


def _earliest(moments: Iterable[float | None]) -> float | None:
    return min((at for at in moments if at is not None), default=None)


def _question(status: Status) -> str:
    match status:
        case BatchStatus():
            clause = "batches WHERE provider = ? AND status = ? AND due_at <= ?"
        case JobStatus():
            clause = "jobs WHERE status = ? AND due_at <= ?"
        case ProviderStatus():
            clause = "providers WHERE status = ? AND due_at <= ?"
        case NoticeStatus():
            clause = "notices WHERE status = ? AND due_at <= ?"
        case _:
            assert_never(status)

    return f"EXISTS (SELECT 1 FROM {clause})"  # noqa: S608
