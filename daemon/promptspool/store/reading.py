"""The database as command lines see it: the queries, none of which takes long.

Whatever grows for ever is reached by an index. Days and months are UTC's. Raises what it was given
for what SQLite refuses, and `NoSuchJob` (a person named something else).
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from promptspool.errors import PromptspoolError
from promptspool.model import (
    Batch,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    Notice,
    ProviderState,
    RemoteStatus,
)
from promptspool.store.overview import (
    DAY_S,
    LATELY_S,
    Closed,
    Ended,
    LiveBatch,
    Overview,
    Spending,
    Step,
)
from promptspool.store.rows import TABLES, AnyRow, maker

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum

MAX_NAMED = 5
"""So many jobs are named where a word means several."""

_ID = re.compile(r"[0-9a-z-]+")


class NoSuchJob(PromptspoolError):
    """No job is called so, or several are."""


_Row = TypeVar("_Row", LiveBatch, Closed, Ended, Step)
_Any = TypeVar("_Any")
_Parameters = Sequence[object] | dict[str, object]

_WORDS: dict[type, dict[str, type[Enum]]] = {
    LiveBatch: {"status": BatchStatus, "remote_status": RemoteStatus},
    Ended: {"status": JobStatus},
}

_LIVE = "INDEXED BY jobs_live WHERE j.status NOT IN ('done', 'rejected')"

_BATCHES = ", ".join(
    "(SELECT min(at) FROM history WHERE row = b.id)" if name == "added_at" else f"b.{name}"
    for name in LiveBatch.__struct_fields__
)

_LIVE_BATCHES = f"""
    SELECT {_BATCHES} FROM (SELECT id FROM jobs AS j {_LIVE}) AS live
    CROSS JOIN batches AS b INDEXED BY batches_job ON b.job = live.id
    WHERE b.status != 'closed' ORDER BY b.rowid
    """  # noqa: S608 - of our own names

_CLOSED = f"""
    SELECT b.job, count(*), sum(b.answered), sum(b.unanswered), sum(b.cost_usd)
    FROM (SELECT id FROM jobs AS j {_LIVE}) AS live
    CROSS JOIN batches AS b INDEXED BY batches_job ON b.job = live.id
    WHERE b.status = 'closed' GROUP BY b.job
    """  # noqa: S608 - as above

# The words are those of the index, or SQLite does not use it.
_LATELY = "h.became IN ('delivered', 'rejected', 'dropped') AND h.at >= ?"

_ENDED = f"""
    SELECT j.id, j.name, j.stem, j.status, j.results, j.errors, j.cost_usd, j.standard_usd, j.why,
           max(h.at)
    FROM history AS h CROSS JOIN jobs AS j ON j.id = h.row WHERE {_LATELY}
    GROUP BY j.id ORDER BY max(h.at)
    """  # noqa: S608 - as above

_NOTICES = f"""
    WHERE id IN (
        SELECT id FROM notices WHERE status = 'pending' AND due_at IS NOT NULL AND failures > 0
        UNION SELECT row FROM history AS h WHERE {_LATELY}
    ) ORDER BY id
    """  # noqa: S608 - as above

# Of the month nothing but the cost, which an index has; of the day whatever there is to say.
_MONTH = """
    SELECT (SELECT total(coalesce(cost_usd, estimated_usd)) FROM batches
            WHERE provider = :provider AND intended_at >= :month)
         + (SELECT total(usd) FROM spent WHERE provider = :provider AND day >= :month / :a_day)
    """

_DAY = """
    SELECT total(coalesce(cost_usd, estimated_usd)), total(standard_usd - cost_usd),
           total(input_tokens), total(output_tokens)
    FROM batches WHERE provider = :provider AND intended_at >= :day
    UNION ALL
    SELECT total(usd), total(max(standard_usd - usd, 0.0)), total(input_tokens),
           total(output_tokens)
    FROM spent WHERE provider = :provider AND day >= :day / :a_day
    """


class View:
    """An open database."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        is_up: bool,
        refusal: Callable[[Exception], PromptspoolError],
    ) -> None:
        """Take an open connection; *refusal* is what is raised for an error of SQLite's.

        *is_up* says whether a daemon runs.
        """
        self._connection = connection
        self._refusal = refusal
        self.is_up = is_up

    @property
    def version(self) -> int:
        """Return how many migrations the database has been through."""
        return int(self._fetch("PRAGMA user_version")[0][0])

    # All at once.

    def overview(self, now: float) -> Overview:
        """Return what there is to see, as of one moment: nothing of it changes meanwhile."""
        self._fetch("BEGIN")

        try:
            return self._overview(now)
        finally:
            self._connection.rollback()

    def _overview(self, now: float) -> Overview:
        since = now - LATELY_S
        providers = self._rows(ProviderState, "ORDER BY id")

        return Overview(
            meta=dict(self._fetch("SELECT key, value FROM meta")),
            last_at=self._last_at(),
            jobs=self._rows(Job, f"AS j {_LIVE} ORDER BY id"),
            batches=self._made(LiveBatch, _LIVE_BATCHES),
            closed={closed.job: closed for closed in self._made(Closed, _CLOSED)},
            providers=providers,
            notices=self._rows(Notice, _NOTICES, (since,)),
            ended=self._made(Ended, _ENDED, (since,)),
            spending=[self._spending(state.id, now) for state in providers],
        )

    def _last_at(self) -> float | None:
        rows = self._fetch("SELECT at FROM history ORDER BY rowid DESC LIMIT 1")

        return float(rows[0][0]) if rows else None

    def _spending(self, provider: str, now: float) -> Spending:
        today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        days = {
            "provider": provider,
            "day": int(today.timestamp()),
            "month": int(today.replace(day=1).timestamp()),
            "a_day": DAY_S,
        }
        sums = zip(*self._fetch(_DAY, days), strict=True)
        day_usd, saved_usd, read, written = map(sum, sums)

        return Spending(
            provider=provider,
            day_usd=day_usd,
            day_saved_usd=saved_usd,
            day_input_tokens=int(read),
            day_output_tokens=int(written),
            month_usd=self._fetch(_MONTH, days)[0][0],
        )

    # One job.

    def job(self, text: str) -> Job:
        """Return the job that *text* names: `jobs_called`, if it is one.

        Raises `NoSuchJob` if it is none or several, and then says which.
        """
        jobs = self.jobs_called(text)

        if len(jobs) == 1:
            return jobs[0]

        if not jobs:
            raise NoSuchJob(
                f"no job is called {text!r}; `promptspool status` shows those there are"
            )

        named = ", ".join(
            f"{job.id} ({job.shown!r}, {job.status.value})" for job in jobs[:MAX_NAMED]
        )
        more = f" and {len(jobs) - MAX_NAMED} more" if len(jobs) > MAX_NAMED else ""
        message = f"{text!r} may be {len(jobs)} jobs: {named}{more}; name one by its id"

        raise NoSuchJob(message)

    def jobs_called(self, text: str) -> list[Job]:
        """Return the jobs that *text* may mean, the youngest first.

        It is a whole id, and then there is one; or the beginning or the end of one; or the name of
        a dropped file, with or without its folder, or the name that its results have.
        """
        is_like_an_id = _ID.fullmatch(text) is not None

        if is_like_an_id and (exact := self._rows(Job, "WHERE id = ?", (text,))):
            return exact

        name = os.fsencode(text)
        end = b"/" + name
        named = {"name": name, "end": end, "size": len(end)}
        clause = "WHERE name = :name OR stem = :name OR substr(name, -:size) = :end"
        found = self._rows(Job, clause, named)

        if is_like_an_id:
            found += self._rows(Job, "WHERE id GLOB ? OR id GLOB ?", (f"{text}*", f"*{text}"))

        return sorted({job.id: job for job in found}.values(), key=lambda job: job.id, reverse=True)

    def batches_of(self, job: JobId) -> list[Batch]:
        """Return all batches of *job* in the order in which they were added: parents first."""
        return self._rows(Batch, "WHERE job = ? ORDER BY rowid", (job,))

    def notices_of(self, job: JobId) -> list[Notice]:
        """Return all notices of *job*, in the order in which they were made."""
        return self._rows(Notice, "WHERE job = ? ORDER BY made_at, id", (job,))

    def history_of(self, job: JobId) -> list[Step]:
        """Return what became of *job*, its batches and its notices, in this order of time."""
        statement = """
            SELECT row, at, was, became, why FROM history WHERE row IN (
                SELECT :job UNION ALL SELECT id FROM batches WHERE job = :job
                UNION ALL SELECT id FROM notices WHERE job = :job
            ) ORDER BY rowid
            """

        return self._made(Step, statement, {"job": job})

    def _rows(self, kind: type[AnyRow], clause: str, parameters: _Parameters = ()) -> list[AnyRow]:
        table = TABLES[kind]
        statement = f"SELECT {table.columns} FROM {table.name} {clause}"  # noqa: S608

        return self._read(table.made, statement, parameters)

    def _made(self, kind: type[_Row], statement: str, parameters: _Parameters = ()) -> list[_Row]:
        return self._read(maker(kind, _WORDS.get(kind, {})), statement, parameters)

    def _read(
        self, made: Callable[[tuple[Any, ...]], _Any], statement: str, parameters: _Parameters
    ) -> list[_Any]:
        found = self._fetch(statement, parameters)

        try:
            return [*map(made, found)]
        except ValueError as error:  # a word that is no status
            raise self._refusal(error) from error

    def _fetch(self, statement: str, parameters: _Parameters = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._refusal(error) from error
