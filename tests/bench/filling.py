"""Spools whose database holds very many rows, without as many jobs having been run.

Rows go in through the store itself, each as a job leaves it. Behind its back, by SQL, go copies of
these rows, for databases of a million, and the lines of history between the first and the last.
Raises what the store and the spool raise.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
import zlib
from contextlib import closing
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
import msgspec
from msgspec.structs import replace

from bench.running import KEY_ENV
from promptspool.model import (
    Batch,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    ProviderState,
    ProviderStatus,
    RemoteStatus,
    batch_id,
)
from promptspool.spool import Spool
from promptspool.store import SCHEMA, Change, opened
from promptspool.wire import Claim

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from promptspool.model import Row

PROVIDER = "openai"

SPREAD_S = 80 * 86_400.0
"""Over how long what is finished is spread: less than it is kept by default."""

KEPT_S = 12 * 3600.0
"""How long a spool that was filled may be used: much of what is shown depends on its age."""

AT_ONCE = 5_000
"""So many rows are written in one transaction."""

REQUESTS = 10
"""Of a batch."""

_COPIED = {
    "jobs": {
        "id": "id || 'c' || n",
        "name": "CAST(name || '-' || n AS BLOB)",
        "stem": "CAST(stem || '-' || n AS BLOB)",
        "digest": "digest || n",
    },
    "batches": {
        "id": "job || 'c' || n || substr(id, length(job) + 1)",
        "job": "job || 'c' || n",
        "digest": "digest || n",
        "remote_id": "remote_id || n",
        "input_file": "input_file || n",
        "output_file": "output_file || n",
    },
    "history": {"row": "row || 'c' || n"},
}
"""By table: what is another in each copy of a row."""

_LIVE_STEPS = """
    WITH steps (place, was, became) AS (VALUES
        (1, NULL, 'planned'), (2, 'planned', 'uploaded'), (3, 'uploaded', 'creating'))
    INSERT INTO history (row, at, was, became)
    SELECT b.id, b.created_at - 4 + place, was, became FROM batches AS b CROSS JOIN steps
    WHERE b.status = 'created' ORDER BY b.rowid, place
    """

_CLOSED_STEPS = """
    WITH steps (place, was, became) AS (VALUES
        (1, NULL, 'planned'), (2, 'planned', 'uploaded'), (3, 'uploaded', 'creating'),
        (4, 'creating', 'created'), (5, 'created', 'ended'), (6, 'ended', 'downloaded'))
    INSERT INTO history (row, at, was, became)
    SELECT b.id, b.ended_at - 7 + place, was, became FROM batches AS b CROSS JOIN steps
    WHERE b.status = 'closed' ORDER BY b.rowid, place
    """

_DONE_STEPS = """
    WITH steps (place, was, became) AS (VALUES
        (1, NULL, 'claimed'), (2, 'claimed', 'planned'), (3, 'planned', 'settled'),
        (4, 'settled', 'delivered'))
    INSERT INTO history (row, at, was, became)
    SELECT j.id, j.delivered_at - 4 + place, was, became FROM jobs AS j CROSS JOIN steps
    WHERE j.status = 'done' ORDER BY j.rowid, place
    """

_LAST_STEPS = """
    UPDATE history SET was = CASE became
        WHEN 'closed' THEN 'downloaded' WHEN 'done' THEN 'delivered'
        WHEN 'created' THEN 'creating' ELSE was END
    WHERE was IS NULL AND became IN ('closed', 'done', 'created')
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """How much is to be in a spool."""

    live: int
    """Batches that run at the provider."""
    finished: int
    """Batches of jobs that are done."""
    a_job: int = 1
    """Batches of each job."""
    copies: int = 1
    """So many times over there is what is finished."""

    @property
    def name(self) -> str:
        """Return what a folder of it may be called."""
        schema = zlib.crc32("".join(SCHEMA).encode())

        return f"filled-{schema:08x}-{'-'.join(map(str, astuple(self)))}"


def cached(folder: Path, filling: Filling) -> Path:
    """Return a folder with a filled spool and its configuration, made unless there is a young one.

    It is used where it is, so whoever uses it leaves its rows as they are.
    """
    root = folder / filling.name
    made = root / "made"

    if not made.exists() or time.time() - made.stat().st_mtime > KEPT_S:
        shutil.rmtree(root, ignore_errors=True)
        fill(root, filling, base_url="http://127.0.0.1:9/v1", now=time.time())
        made.touch()

    return root


def fill(root: Path, filling: Filling, *, base_url: str, now: float) -> list[Batch]:
    """Make the spool `spool` in *root* and return the batches that run, oldest first.

    *base_url* is where they run. A configuration is written beside the spool.
    """
    root.mkdir(parents=True)
    spool = Spool(root / "spool")
    spool.make()
    live = list(_live(filling, base_url, now))
    anyio.run(_fill, spool, filling, live, base_url, now)
    _complete(spool, filling)
    configure(root, base_url)

    for job, _ in live:
        _make_folder(spool, job)

    return [batch for _, batches in live for batch in batches]


def configure(root: Path, base_url: str) -> Path:
    """Write the configuration of the spool in *root*, and return where it is."""
    config = root / "promptspool.toml"
    config.write_text(
        f'[spool]\npath = "{root}/spool"\nsettle = 0\n\n'
        f'[providers.{PROVIDER}]\nbase_url = "{base_url}"\napi_key_env = "{KEY_ENV}"\n\n'
        f'[profiles.default]\nmodel = "gpt-5-mini"\n\n[log]\nformat = "json"\n'
    )

    return config


async def _fill(
    spool: Spool,
    filling: Filling,
    live: Sequence[tuple[Job, Sequence[Batch]]],
    base_url: str,
    now: float,
) -> None:
    async with opened(spool.database) as store:
        state = ProviderState(id=PROVIDER, status=ProviderStatus.READY)
        await store.write(Change(added=[state], at=now - SPREAD_S))
        rows: list[Row] = []

        for job, batches in [*_finished(filling, base_url, now), *live]:
            rows += [job, *batches]

            if len(rows) >= AT_ONCE:
                await store.write(Change(added=rows, at=job.delivered_at or job.claimed_at))
                rows = []

        await store.write(Change(added=rows, at=now - 60.0))


def _finished(filling: Filling, base_url: str, now: float) -> Iterator[tuple[Job, Sequence[Batch]]]:
    """Yield jobs that are done and their batches, oldest first."""
    jobs = filling.finished // filling.a_job

    for number in range(jobs):
        ended_at = now - 60.0 - SPREAD_S * (jobs - number) / jobs
        job = replace(
            _job(number, claimed_at=ended_at - 900.0, filling=filling, base_url=base_url),
            status=JobStatus.DONE,
            version=5,
            due_at=None,
            delivered_at=ended_at,
            results=REQUESTS * filling.a_job,
            errors=0,
            cost_usd=0.001,
            standard_usd=0.002,
        )
        yield job, [_closed(batch, ended_at) for batch in _batches(job, filling)]


def _live(filling: Filling, base_url: str, now: float) -> Iterator[tuple[Job, Sequence[Batch]]]:
    """Yield jobs whose batches run, oldest first, all of them of the last hour."""
    jobs = filling.live // filling.a_job

    for number in range(jobs):
        claimed_at = now - 60.0 - 3540.0 * (jobs - number) / jobs
        place = filling.finished // filling.a_job + number
        job = _job(place, claimed_at=claimed_at, filling=filling, base_url=base_url)

        yield job, _batches(job, filling)


def _job(number: int, *, claimed_at: float, filling: Filling, base_url: str) -> Job:
    moment = datetime.fromtimestamp(claimed_at, UTC).strftime("%Y%m%dt%H%M%Sz")
    name = b"drop-%07d.jsonl" % number

    return Job(
        id=JobId(f"{moment}-{number:06x}"),
        name=name,
        stem=name,
        profile="default",
        provider=PROVIDER,
        base_url=base_url,
        status=JobStatus.PLANNED,
        version=1,
        claimed_at=claimed_at,
        planned_at=claimed_at + 0.1,
        size_bytes=300 * REQUESTS * filling.a_job,
        digest=f"b3-{number:064x}",
        requests=REQUESTS * filling.a_job,
        estimated_usd=0.001,
    )


def _batches(job: Job, filling: Filling) -> list[Batch]:
    """Return the batches of *job*, which run."""
    return [_running(job, part) for part in range(1, filling.a_job + 1)]


def _running(job: Job, part: int) -> Batch:
    created_at = job.claimed_at + 1.0
    identity = batch_id(job.id, part)

    return Batch(
        id=identity,
        job=job.id,
        provider=PROVIDER,
        base_url=job.base_url or "",
        endpoint="/v1/chat/completions",
        model="gpt-5-mini",
        status=BatchStatus.CREATED,
        version=3,
        due_at=created_at + 10.0,
        requests=REQUESTS,
        size_bytes=850 * REQUESTS,
        digest=(job.digest or "")[:-2] + f"{part:02x}",
        give_up_at=job.claimed_at + 259_200.0,
        estimated_input=100 * REQUESTS,
        estimated_output=200 * REQUESTS,
        estimated_usd=0.001,
        input_file=f"file-{identity}",
        uploaded_at=job.claimed_at + 0.5,
        intended_at=job.claimed_at + 0.7,
        remote_id=f"batch-{identity}",
        remote_status=RemoteStatus.IN_PROGRESS,
        created_at=float(int(created_at)),
        progressed_at=created_at,
        total=REQUESTS,
    )


def _closed(batch: Batch, ended_at: float) -> Batch:
    return replace(
        batch,
        status=BatchStatus.CLOSED,
        version=7,
        due_at=None,
        remote_status=RemoteStatus.COMPLETED,
        ended_at=ended_at - 1.0,
        completed=REQUESTS,
        output_file=f"file-{batch.id}-output",
        answered=REQUESTS,
        input_tokens=75 * REQUESTS,
        output_tokens=150 * REQUESTS,
        cost_usd=0.001,
        standard_usd=0.002,
    )


def _complete(spool: Spool, filling: Filling) -> None:
    """Copy what is finished, and put in what became of all rows before they were as they are."""
    with closing(sqlite3.connect(spool.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # a log of it would be as large
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")

        for table, status in (("jobs", "done"), ("batches", "closed")):
            _copy(connection, table, f"status = '{status}'", filling.copies)

        _copy(connection, "history", "became IN ('done', 'closed')", filling.copies)

        for statement in (_LAST_STEPS, _LIVE_STEPS, _CLOSED_STEPS, _DONE_STEPS):
            connection.execute(statement)

        connection.execute("COMMIT")


def _copy(connection: sqlite3.Connection, table: str, which: str, copies: int) -> None:
    names = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]
    made = ", ".join(_COPIED[table].get(name, name) for name in names)

    statement = f"""
        WITH RECURSIVE copy (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < ?)
        INSERT INTO {table} ({", ".join(names)})
        SELECT {made} FROM {table} CROSS JOIN copy WHERE {which}
        """  # noqa: S608 - of our own names

    if copies > 1:
        connection.execute(statement, (copies - 1,))


def _make_folder(spool: Spool, job: Job) -> None:
    """Make the working folder of a live job, with as much in it as a start looks at."""
    folder = spool.folder(job.id)
    folder.mkdir()
    claim = Claim(
        job=job.id,
        name=job.name,
        stem=job.stem,
        profile=job.profile,
        provider=job.provider,
        base_url=job.base_url,
        claimed_at=job.claimed_at,
        size_bytes=job.size_bytes,
    )
    (folder / "claim.json").write_bytes(msgspec.json.encode(claim))
    (folder / "original").touch()
    (folder / "manifest.json").touch()
