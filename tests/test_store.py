from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import aiosqlite
import anyio
import msgspec
import pytest
from msgspec.structs import replace

import promptspool.store.opening
from promptspool.errors import Bug, SpoolError, StaleWrite, StoreError
from promptspool.model import (
    Batch,
    BatchId,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    Notice,
    NoticeStatus,
    ProviderState,
    ProviderStatus,
    RemoteStatus,
    Work,
)
from promptspool.store import SCHEMA, Change, Store, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from promptspool.model import Row, Status

pytestmark = pytest.mark.anyio

NOW = 1_795_000_000.0

JOB = Job(
    id=JobId("20261120t231853z-4f7k2m"),
    name=b"caf\xe9/may.csv",
    stem=b"caf\xe9/may.csv-2",
    profile="caf\\xe9",
    provider="openai",
    base_url="https://api.example.com/v1",
    status=JobStatus.PLANNED,
    version=3,
    due_at=NOW + 0.25,
    failures=2,
    failed_at=NOW - 7,
    priority=9,
    claimed_at=NOW - 0.125,
    planned_at=NOW,
    delivered_at=NOW + 9,
    size_bytes=5_000_000_000,
    digest="ab" * 32,
    requests=100,
    bad_rows=4,
    estimated_usd=1.25,
    released_at=NOW + 1,
    cancelled_at=NOW + 2,
    retry_of=JobId("20261119t231853z-4f7k2m"),
    results=90,
    errors=10,
    cost_usd=0.5,
    standard_usd=1.0,
    why="HTTP 500: ünwell",
)

BATCH = Batch(
    id=BatchId(f"{JOB.id}.1+2"),
    job=JOB.id,
    parent=BatchId(f"{JOB.id}.1+1"),
    provider="openai",
    base_url="http://127.0.0.1/v1",
    endpoint="/v1/chat/completions",
    model="gpt-5-mini",
    status=BatchStatus.CREATED,
    version=7,
    due_at=NOW,
    failures=1,
    failed_at=NOW - 7,
    priority=-9,
    requests=100,
    size_bytes=190_000_000,
    digest="cd" * 32,
    attempt=2,
    waits=3,
    reuploads=2,
    halvings=1,
    give_up_at=NOW + 259_200,
    cancelled_at=NOW + 2,
    estimated_input=1000,
    estimated_output=200,
    estimated_usd=0.25,
    crowded_at=NOW - 8,
    held_at=NOW - 9,
    input_file="file-1",
    uploaded_at=NOW - 3,
    intended_at=NOW - 2,
    unclear_at=NOW - 1,
    looks=1,
    remote_id="batch_1",
    remote_status=RemoteStatus.IN_PROGRESS,
    created_at=NOW - 1.5,
    ended_at=NOW + 1,
    polls=4,
    progressed_at=NOW - 0.25,
    stalls=3,
    missed=5,
    missed_at=NOW - 0.5,
    total=100,
    completed=90,
    failed=10,
    output_file="file-2",
    error_file="file-3",
    errors='[{"code": "x"}]',
    answered=90,
    unanswered=3,
    input_tokens=900,
    cached_tokens=100,
    output_tokens=190,
    reasoning_tokens=20,
    cost_usd=0.125,
    standard_usd=0.25,
    why="reset",
)

STATE = ProviderState(
    id="openai",
    status=ProviderStatus.READY,
    version=9,
    due_at=NOW,
    failures=1,
    sweeps=2,
    struck="a b c",
    pauses=4,
    paused_until=NOW + 60,
    paused_at=NOW - 60,
    paused_work=Work.CREATIONS,
    why="HTTP 401",
    failed_at=NOW - 7,
    halted_at=NOW - 6,
)

NOTICE = Notice(
    id=f"{JOB.id}/job.held/webhook",
    job=JOB.id,
    event="job.held",
    target="webhook",
    status=NoticeStatus.DROPPED,
    version=2,
    due_at=NOW + 5,
    failures=3,
    failed_at=NOW - 4,
    made_at=NOW - 5,
    why="gone",
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Yield an empty store."""
    async with opened(tmp_path / "promptspool.db") as store:
        yield store


async def add(store: Store, *rows: Row) -> None:
    """Add rows."""
    await store.write(Change(added=rows, at=NOW))


def batch_of(number: int, status: BatchStatus, due_at: float | None) -> Batch:
    """Return a batch of `JOB`."""
    return replace(BATCH, id=BatchId(f"{JOB.id}.{number}"), status=status, due_at=due_at)


def history(path: Path) -> list[tuple[object, ...]]:
    """Return all of the history, as somebody else sees it."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM history ORDER BY rowid").fetchall()


async def test_rows_come_back_as_they_were(store: Store) -> None:
    """Every field of every kind of row survives the store, with all and with no optional values."""
    bare_job = Job(
        id=JobId("bare"),
        name=b"a",
        stem=b"a",
        profile="p",
        provider=None,
        base_url=None,
        claimed_at=NOW,
    )
    bare = Batch(
        id=BatchId("bare.1"),
        job=bare_job.id,
        provider="openai",
        base_url="http://127.0.0.1/v1",
        endpoint="/v1/embeddings",
        model="m",
        requests=1,
        size_bytes=1,
        digest="0",
        give_up_at=NOW,
    )
    fresh = ProviderState(id="fresh")
    await add(store, STATE, fresh, JOB, bare_job, BATCH, bare)

    assert await store.job(JOB.id) == JOB
    assert await store.job(bare_job.id) == bare_job
    assert await store.batches_of(JOB.id) == [BATCH]
    assert await store.batches_of(bare_job.id) == [bare]
    assert await store.providers() == {"openai": STATE, "fresh": fresh}


async def test_the_samples_say_all_that_a_row_can_say() -> None:
    """No field of the full samples is at its default, so a forgotten column would show."""
    for row in (JOB, BATCH, STATE, NOTICE):
        for field in msgspec.structs.fields(row):
            assert getattr(row, field.name) != field.default


@pytest.mark.parametrize("row", [JOB, BATCH, STATE])
async def test_an_updated_row_is_the_one_written(store: Store, row: Row) -> None:
    """An update replaces the row that was read, and nothing else."""
    await add(store, STATE, JOB, BATCH)
    after = replace(row, version=row.version + 1, failures=99)
    await store.write(Change(updated=[(row, after)], at=NOW))
    found: dict[str, Row] = {
        one.id: one
        for one in (
            await store.job(JOB.id),
            *await store.batches_of(JOB.id),
            *(await store.providers()).values(),
        )
        if one is not None
    }

    assert found == {one.id: after if one is row else one for one in (JOB, BATCH, STATE)}


@pytest.mark.parametrize("row", [JOB, BATCH, STATE])
async def test_each_field_of_a_row_can_change_alone(store: Store, row: Row) -> None:
    """Whatever changes is written, alone and together with all else that can."""
    defaults = {
        field.name: field.default
        for field in msgspec.structs.fields(row)
        if field.default is not msgspec.NODEFAULT and field.name != "version"
    }
    await add(store, STATE, JOB, BATCH)

    for number, changed in enumerate(
        [*({name: defaults[name]} for name in defaults), defaults, {}]
    ):
        before = replace(row, version=row.version + 2 * number)
        after = replace(before, version=before.version + 1, **changed)
        await store.write(Change(updated=[(before, after)], at=NOW))

        assert await same(store, row) == after

        before = replace(row, version=after.version + 1)
        await store.write(Change(updated=[(after, before)], at=NOW))

        assert await same(store, row) == before


async def same(store: Store, row: Row) -> Row | None:
    """Return what the store has for *row* now."""
    match row:
        case Job():
            return await store.job(row.id)
        case Batch():
            return (await store.batches_of(row.job))[0]
        case _:
            return (await store.providers())[row.id]


async def test_a_change_of_a_stale_row_writes_nothing(store: Store, tmp_path: Path) -> None:
    """If one row is not as it was read, neither the others nor new rows nor history are written."""
    await add(store, STATE, JOB, BATCH)
    before = history(tmp_path / "promptspool.db")
    stale = replace(BATCH, version=BATCH.version - 1)
    change = Change(
        updated=[
            (STATE, replace(STATE, version=10, pauses=0)),
            (JOB, replace(JOB, version=4, status=JobStatus.SETTLED)),
            (stale, replace(stale, version=8, status=BatchStatus.ENDED)),
        ],
        added=[batch_of(5, BatchStatus.PLANNED, NOW)],
        at=NOW,
    )

    with pytest.raises(StaleWrite):
        await store.write(change)

    assert await store.job(JOB.id) == JOB
    assert await store.batches_of(JOB.id) == [BATCH]
    assert await store.providers() == {"openai": STATE}
    assert history(tmp_path / "promptspool.db") == before


async def test_the_same_work_gets_one_row(store: Store) -> None:
    """A row whose derived id is there already is left as far along as it is."""
    await add(store, JOB, BATCH)
    again = replace(BATCH, status=BatchStatus.PLANNED, version=0, remote_id=None)
    other = batch_of(5, BatchStatus.PLANNED, NOW)
    await add(store, replace(JOB, status=JobStatus.CLAIMED, version=0), again, other)

    assert await store.job(JOB.id) == JOB
    assert await store.batches_of(JOB.id) == [BATCH, other]


async def test_a_row_that_cannot_be_kept_is_not_dropped_silently(store: Store) -> None:
    """Only an id that is there already is passed over; any other fault of a new row is told."""
    await add(store, JOB)
    impossible = replace(BATCH, give_up_at=float("nan"))  # which SQLite takes for NULL

    with pytest.raises(Bug):
        await add(store, impossible)

    assert await store.batches_of(JOB.id) == []


async def test_a_batch_needs_its_job(store: Store) -> None:
    """A batch of a job that nobody knows is refused."""
    with pytest.raises(Bug):
        await add(store, BATCH)

    assert await store.batches_of(JOB.id) == []


async def test_a_cancelled_write_is_whole_or_not_at_all(store: Store) -> None:
    """Cancelling tasks in the middle of writes leaves no half change and a usable connection."""
    await add(store, JOB)
    size = 40

    async def write(first: int) -> None:
        rows = [batch_of(first + n, BatchStatus.PLANNED, NOW) for n in range(size)]
        await add(store, *rows)

    for turn in range(25):
        async with anyio.create_task_group() as tasks:
            for writer in range(4):
                tasks.start_soon(write, (turn * 4 + writer) * size)

            for _ in range(turn):
                await anyio.lowlevel.checkpoint()

            tasks.cancel_scope.cancel()

    numbers = {int(batch.id.rpartition(".")[2]) for batch in await store.batches_of(JOB.id)}
    whole = {n for n in numbers if n % size == 0}

    assert numbers == {first + n for first in whole for n in range(size)}
    assert whole

    await store.note("still", "usable")

    assert await store.meta("still") == "usable"


async def test_concurrent_writes_do_not_mix(store: Store) -> None:
    """A change that is refused takes nothing of another task's change with it."""
    await add(store, JOB)

    async def write_well(number: int) -> None:
        await add(store, batch_of(number, BatchStatus.PLANNED, NOW))

    async def write_badly(number: int) -> None:
        new = batch_of(1000 + number, BatchStatus.PLANNED, NOW)

        with pytest.raises(StaleWrite):
            await store.write(
                Change(updated=[(replace(JOB, version=77), JOB)], added=[new], at=NOW),
            )

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(write_well, number)
            tasks.start_soon(write_badly, number)

    assert {batch.id for batch in await store.batches_of(JOB.id)} == {
        BatchId(f"{JOB.id}.{number}") for number in range(20)
    }


async def test_what_is_due_is_the_longest_due_first(store: Store) -> None:
    """The due rows of one status and provider come in order of their time, up to the limit."""
    await add(
        store,
        JOB,
        batch_of(1, BatchStatus.PLANNED, NOW - 1),
        batch_of(2, BatchStatus.PLANNED, NOW - 3),
        batch_of(3, BatchStatus.PLANNED, NOW + 1),
        batch_of(4, BatchStatus.PLANNED, None),
        batch_of(5, BatchStatus.CREATED, NOW - 9),
        batch_of(6, BatchStatus.PLANNED, NOW),
        replace(batch_of(7, BatchStatus.PLANNED, NOW - 9), provider="other"),
    )

    async def due(limit: int) -> list[str]:
        rows = await store.due(BatchStatus.PLANNED, "openai", now=NOW, limit=limit)

        return [row.id.rpartition(".")[2] for row in rows]

    assert await due(10) == ["2", "1", "6"]
    assert await due(2) == ["2", "1"]


async def test_jobs_and_providers_fall_due_too(store: Store) -> None:
    """Jobs and recalls are found by their status alone."""
    await add(store, replace(JOB, status=JobStatus.SETTLED), replace(STATE, due_at=None))
    later = await store.due(JobStatus.SETTLED, None, now=NOW + 1, limit=9)

    assert [row.id for row in later] == [JOB.id]
    assert await store.due(JobStatus.SETTLED, None, now=NOW, limit=9) == []
    assert await store.due(ProviderStatus.READY, None, now=NOW + 1, limit=9) == []


async def test_the_next_deadline_is_the_earliest_of_all(store: Store) -> None:
    """Jobs, batches, recalls and pauses all wake the daemon, but only for what is to come."""
    assert await store.next_due_at(0.0) is None

    await add(
        store,
        replace(STATE, due_at=NOW + 4, paused_until=NOW + 3),
        replace(JOB, status=JobStatus.SETTLED, due_at=NOW + 2),
        batch_of(1, BatchStatus.PLANNED, NOW + 1),
        batch_of(2, BatchStatus.CREATED, NOW - 1),
    )

    for passed in range(4):
        assert await store.next_due_at(NOW + passed) == NOW + passed + 1

    assert await store.next_due_at(NOW + 4) is None
    assert await store.next_due_at(0.0) == NOW - 1


async def test_what_a_dead_process_may_have_sent_is_found(store: Store) -> None:
    """Exactly the batches whose create may be under way count as interrupted."""
    await add(
        store,
        JOB,
        *(batch_of(number, status, NOW) for number, status in enumerate(BatchStatus)),
    )

    assert {batch.status for batch in await store.interrupted()} == {
        BatchStatus.CREATING,
        BatchStatus.UNCLEAR,
    }


async def test_what_was_created_is_told_from_what_may_have_been(store: Store) -> None:
    """Of the batches asked for, those that got past their create, with what they are called."""
    batches = [
        replace(batch_of(number, status, NOW), remote_id=f"batch_{status}")
        for number, status in enumerate(BatchStatus)
    ]
    nameless = replace(batch_of(20, BatchStatus.CLOSED, None), remote_id=None)
    await add(store, JOB, *batches, nameless)
    past = [
        BatchStatus.CREATED,
        BatchStatus.ENDED,
        BatchStatus.DOWNLOADED,
        BatchStatus.CLOSED,
    ]

    assert await store.created([*(one.id for one in batches), nameless.id, "of nobody"]) == {
        one.id: one.remote_id for one in batches if one.status in past
    }
    assert await store.created([]) == {}


async def test_live_rows_are_counted(store: Store) -> None:
    """A job lives until done or rejected, a batch until closed; the running come youngest first."""
    jobs = [replace(JOB, id=JobId(f"job-{n}"), status=status) for n, status in enumerate(JobStatus)]
    await add(
        store,
        JOB,
        *jobs,
        *(batch_of(number, status, NOW) for number, status in enumerate(BatchStatus)),
        replace(batch_of(20, BatchStatus.CREATED, NOW + 99), created_at=NOW),
        batch_of(21, BatchStatus.CREATED, None),
    )
    live = {job.status for job in await store.live_jobs()}

    assert live == set(JobStatus) - {JobStatus.DONE, JobStatus.REJECTED}
    assert await store.live_batches(JOB.id) == 2  # and more: whether there are others is asked
    assert [batch.id.rpartition(".")[2] for batch in await store.running("openai")] == ["20", "4"]


async def test_the_same_content_is_found_by_its_oldest_job(store: Store) -> None:
    """A repeated file is told from a new one by the first usable job that held it."""
    rejected = replace(JOB, id=JobId("a"), status=JobStatus.REJECTED)
    first, second = (replace(JOB, id=JobId(name), status=JobStatus.DONE) for name in "bc")
    await add(store, rejected, second, first)
    digest = JOB.digest or ""

    assert await store.job_with_content(digest, other_than=second.id) == first
    assert await store.job_with_content(digest, other_than=first.id) == second
    assert await store.job_with_content("other", other_than=first.id) is None


async def test_history_tells_every_transition_once(store: Store, tmp_path: Path) -> None:
    """A row that came to be or changed its status has a line; one that only waits has none."""
    await add(store, JOB, BATCH)
    waiting = replace(BATCH, version=8, due_at=NOW + 9)
    await store.write(Change(updated=[(BATCH, waiting)], at=NOW + 1))
    ended = replace(waiting, version=9, status=BatchStatus.ENDED, why="done")
    await store.write(Change(updated=[(waiting, ended)], at=NOW + 2))

    assert history(tmp_path / "promptspool.db") == [
        (JOB.id, NOW, None, "planned", JOB.why),
        (BATCH.id, NOW, None, "created", BATCH.why),
        (BATCH.id, NOW + 2, "created", "ended", "done"),
    ]


async def test_the_store_outlives_its_process(tmp_path: Path) -> None:
    """What was written is there when the database is opened again, at the same version."""
    for _ in range(2):
        async with opened(tmp_path / "promptspool.db") as store:
            await add(store, JOB)
            await store.note("clean_stop", "1")

    async with opened(tmp_path / "promptspool.db") as store:
        assert await store.job(JOB.id) == JOB
        assert await store.meta("clean_stop") == "1"
        assert await store.meta("other") is None


# The schema.


def schema_of(path: Path) -> dict[str, str]:
    """Return the statements that the tables were made with."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")

        return dict(rows.fetchall())


@pytest.mark.usefixtures("store")
async def test_the_schema_knows_the_words_of_the_model(tmp_path: Path) -> None:
    """The CHECKs of the schema allow exactly the words of the enums."""
    tables = schema_of(tmp_path / "promptspool.db")

    def words(table: str, column: str) -> set[str]:
        check = re.search(rf"\b{column}\b[^,]*CHECK \({column} IN \(([^)]*)\)", tables[table])
        assert check is not None

        return set(re.findall(r"'(\w+)'", check[1]))

    assert words("jobs", "status") == {status.value for status in JobStatus}
    assert words("batches", "status") == {status.value for status in BatchStatus}
    assert words("batches", "remote_status") == {status.value for status in RemoteStatus}
    assert words("providers", "status") == {status.value for status in ProviderStatus}


async def test_creations_are_counted_back_in_time(store: Store) -> None:
    """The n-th last intent of a provider is found, no other's, and none that is yet to come."""
    batches = [
        replace(BATCH, id=BatchId(f"{JOB.id}.{n}"), intended_at=NOW - n, provider=provider)
        for n, provider in enumerate(["openai", "other", "openai", "openai"])
    ]
    await add(store, JOB, *batches)

    assert await store.nth_last_intent("openai", 1, until=NOW) == NOW
    assert await store.nth_last_intent("openai", 2, until=NOW) == NOW - 2
    assert await store.nth_last_intent("openai", 3, until=NOW - 1) is None


@pytest.mark.usefixtures("store")
async def test_the_schema_has_a_column_for_every_field(tmp_path: Path) -> None:
    """Rows mirror their tables, and every table is strict."""
    with closing(sqlite3.connect(tmp_path / "promptspool.db")) as connection:
        for table, kind in (("jobs", Job), ("batches", Batch), ("providers", ProviderState)):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]

            assert sorted(columns) == sorted(name for name in kind.__struct_fields__)

        assert all("STRICT" in sql for sql in schema_of(tmp_path / "promptspool.db").values())
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(SCHEMA),)


WANTED: dict[tuple[Status, str | None], int] = {
    (BatchStatus.CREATED, "openai"): 9,
    (BatchStatus.PLANNED, "openai"): 9,
    (JobStatus.CLAIMED, None): 9,
}

CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "batches": lambda store: store.due(BatchStatus.CREATED, "openai", now=NOW, limit=9),
    "submission": lambda store: store.due(BatchStatus.PLANNED, "openai", now=NOW, limit=9),
    "delivery": lambda store: store.due(JobStatus.SETTLED, None, now=NOW, limit=9),
    "jobs": lambda store: store.due(JobStatus.CLAIMED, None, now=NOW, limit=9),
    "next": lambda store: store.next_due_at(NOW),
    "look": lambda store: store.look(WANTED, now=NOW),
    "closing": lambda store: store.live_batches(JOB.id),
    "finished": lambda store: store.finished(NOW, 9),
    "interrupted": lambda store: store.interrupted(),
    "content": lambda store: store.job_with_content("ab" * 32, other_than=JOB.id),
    "spent": lambda store: store.spent("openai", NOW - 9),
    "batches_of": lambda store: store.batches_of(JOB.id),
    "running": lambda store: store.running("openai"),
    "pace": lambda store: store.nth_last_intent("openai", 2_000, until=NOW),
    "late": lambda store: store.due_after(NOW),
    "update": lambda store: store.write(
        Change(updated=[(BATCH, replace(BATCH, version=8))], at=NOW)
    ),
}
"""What runs often, by name."""


async def plans(path: Path, run: str) -> list[str]:
    """Return how SQLite goes about every statement that *run*, a call of a store, executes."""
    statements: list[str] = []

    async with aiosqlite.connect(path, isolation_level=None) as connection:
        store = Store(connection)
        await connection.set_trace_callback(statements.append)

        await CALLS[run](store)

    with closing(sqlite3.connect(path)) as reader:
        return [
            str(row[3])
            for statement in statements
            if statement.startswith(("SELECT", "UPDATE", "\n"))
            for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with 10,000 closed batches."""
    path = tmp_path_factory.mktemp("large") / "promptspool.db"

    async def fill() -> None:
        async with opened(path) as store:
            await add(store, STATE, JOB, BATCH)
            await add(store, *(batch_of(n, BatchStatus.CLOSED, None) for n in range(10_000)))

    anyio.run(fill)

    return path


@pytest.mark.parametrize(
    ("run", "index"),
    [
        ("batches", "batches_due"),
        ("submission", "batches_queue"),
        ("delivery", "jobs_due"),
        ("jobs", "jobs_queue"),
        ("next", "batches_deadline"),
        ("next", "jobs_deadline"),
        ("look", "batches_due"),
        ("look", "jobs_due"),
        ("look", "batches_deadline"),
        ("closing", "batches_open"),
        ("finished", "jobs_finished"),
        ("interrupted", "batches_live"),
        ("content", "jobs_content"),
        ("spent", "batches_spent"),
        ("batches_of", "batches_job"),
        ("running", "batches_due"),
        ("pace", "batches_spent"),
        ("late", "batches_deadline"),
        ("late", "jobs_deadline"),
        ("update", "sqlite_autoindex_batches_1"),
    ],
)
async def test_hot_statements_use_their_index(large: Path, run: str, index: str) -> None:
    """What runs at every turn reads as many rows as it returns, with 10,000 others around."""
    steps = await plans(large, run)

    assert any("SEARCH" in step and f" {index} " in step for step in steps), steps
    assert not any(step.startswith(("SCAN jobs", "SCAN batches")) for step in steps), steps

    if run not in ("running", "content"):  # both sort what they return alone
        assert not any("TEMP B-TREE" in step for step in steps), steps


HISTORY = ("look", "jobs", "batches", "next", "closing", "finished", "interrupted", "batches_of")


async def test_history_costs_no_turn_anything(tmp_path: Path) -> None:
    """What a turn of the loop asks takes as many steps with ten times the finished rows."""
    steps: list[dict[str, int]] = []

    for count in (100, 1_000):
        path = tmp_path / f"{count}.db"
        jobs = [
            replace(JOB, id=JobId(f"job-{n:05}"), status=JobStatus.DONE, due_at=None,
                    delivered_at=NOW + n + 1, digest=f"b3-{n}")
            for n in range(count)
        ]  # fmt: skip
        closed = [
            replace(batch_of(n, BatchStatus.CLOSED, None), job=job.id) for n, job in enumerate(jobs)
        ]

        async with opened(path) as store:
            await add(store, STATE, JOB, BATCH, *jobs, *closed)

        async with aiosqlite.connect(path, isolation_level=None) as connection:
            store, taken = Store(connection), [0]

            def count_one(taken: list[int] = taken) -> int:
                taken[0] += 1

                return 0

            steps.append({})
            await connection.set_progress_handler(count_one, 1)

            for name in HISTORY:
                taken[0] = 0
                await CALLS[name](store)
                steps[-1][name] = taken[0]

    assert steps[0] == steps[1]
    assert all(steps[0].values())


async def test_the_oldest_go_first(store: Store) -> None:
    """What is finished is forgotten by when it ended, not by when it came."""
    ended = [NOW - 5, NOW - 9, NOW - 7, NOW + 1]
    jobs = [
        replace(JOB, id=JobId(f"job-{n}"), status=JobStatus.DONE, delivered_at=at)
        for n, at in enumerate(ended)
    ]
    await add(store, *jobs, replace(JOB, id=JobId("job-9"), status=JobStatus.REJECTED,
                                    claimed_at=NOW - 6, delivered_at=None))  # fmt: skip

    assert await store.finished(NOW, 9) == ["job-1", "job-2", "job-9", "job-0"]
    assert await store.finished(NOW, 2) == ["job-1", "job-2"]


async def test_one_look_is_what_is_due_and_what_will_be(store: Store) -> None:
    """A look is what is due of each status, up to its limit, and the next moment after now."""
    job = replace(JOB, status=JobStatus.CLAIMED, due_at=NOW)
    batches = [
        batch_of(1, BatchStatus.CREATED, NOW - 1),
        batch_of(2, BatchStatus.PLANNED, NOW + 3),
        replace(batch_of(3, BatchStatus.PLANNED, NOW), provider="other"),
        replace(batch_of(4, BatchStatus.PLANNED, NOW - 1), provider="other"),
    ]
    await add(store, STATE, job, *batches)
    wanted = WANTED | {(BatchStatus.PLANNED, "other"): 1}

    assert await store.look(wanted, now=NOW) == (
        {
            (JobStatus.CLAIMED, None): [job],
            (BatchStatus.CREATED, "openai"): [batches[0]],
            (BatchStatus.PLANNED, "other"): [batches[3]],
        },
        NOW + 3,
    )
    assert await store.look({}, now=NOW + 99) == ({}, None)


async def test_the_highest_priority_is_begun_first(tmp_path: Path) -> None:
    """What waits to be submitted goes by priority, then by age; what is under way by age alone."""
    rows = [
        replace(
            batch_of(number, BatchStatus.PLANNED, NOW - number), priority=number % 2, job=JOB.id
        )
        for number in range(4)
    ]

    async with opened(tmp_path / "promptspool.db") as store:
        await add(store, STATE, JOB, *rows)
        due = await store.due(BatchStatus.PLANNED, "openai", now=NOW, limit=9)

    assert [row.id for row in due] == [rows[number].id for number in (3, 1, 2, 0)]


# Databases that cannot be used.


async def test_a_damaged_database_says_what_to_do(tmp_path: Path) -> None:
    """A file that is no database is refused with a sentence that names it and a way out."""
    path = tmp_path / "promptspool.db"
    path.write_bytes(b"this is no database at all. " * 1000)

    with pytest.raises(SpoolError, match=r"move promptspool\.db away") as caught:
        async with opened(path):
            pass

    assert str(path) in str(caught.value)


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """A database of a newer version is left as it is."""
    path = tmp_path / "promptspool.db"

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(SpoolError, match="version 99"):
        async with opened(path):
            pass

    assert schema_of(path) == {}


async def test_a_database_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A path where no file can be is refused with a sentence that names it."""
    with pytest.raises(SpoolError, match=re.escape(str(tmp_path))):
        async with opened(tmp_path / "missing" / "promptspool.db"):
            pass


async def test_a_locked_database_is_an_environment_error(tmp_path: Path) -> None:
    """What SQLite refuses later is told as `StoreError`, and works again when it is over."""
    path = tmp_path / "promptspool.db"

    async with opened(path):
        pass

    async with aiosqlite.connect(path, isolation_level=None, timeout=0.001) as connection:
        store = Store(connection)

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            with pytest.raises(StoreError, match="locked"):
                await add(store, JOB)

            other.execute("ROLLBACK")

        await add(store, JOB)

        assert await store.job(JOB.id) == JOB


async def test_a_database_that_is_held_at_the_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new database that another program has locked is refused as what it is, not as damaged."""
    monkeypatch.setattr(promptspool.store.opening, "BUSY_MS", 20)
    path = tmp_path / "promptspool.db"

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(SpoolError, match="locked by another program") as caught:
            async with opened(path):
                pass

    assert "move" not in str(caught.value)


@pytest.mark.parametrize("word", ["'plxnned'", "CAST(x'ff' AS TEXT)"], ids=["word", "bytes"])
async def test_what_nobody_can_have_written_is_damage(tmp_path: Path, word: str) -> None:
    """A row that cannot be what was written is told as damage, at the start and while running.

    From then on nothing that the database says is used, though most of it may be well.
    """
    path = tmp_path / "promptspool.db"

    async with opened(path) as store:
        await add(store, JOB)

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA ignore_check_constraints = ON")
            other.execute(f"UPDATE jobs SET status = {word}")  # noqa: S608 - our own

        for _ in range(2):
            with pytest.raises(SpoolError, match=r"is damaged .*move promptspool\.db away"):
                await store.live_jobs()

        with pytest.raises(SpoolError, match="is damaged"):
            await store.note("clean_stop", "1")

    with pytest.raises(SpoolError, match=r"is damaged .*move promptspool\.db away"):
        async with opened(path):
            pass


async def test_a_large_database_is_not_read_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start does not wait for a look at every row of a large database."""
    path = tmp_path / "promptspool.db"

    async with opened(path) as store:
        await add(store, JOB)

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA ignore_check_constraints = ON")
        other.execute("UPDATE jobs SET status = 'plxnned'")

    monkeypatch.setattr(promptspool.store.opening, "CHECKED_BYTES", path.stat().st_size - 1)

    async with opened(path) as store:
        assert await store.meta("clean_stop") is None


def _column(name: str, known: set[str]) -> str:
    """Return what an earlier version, with columns *known*, called a field."""
    return "sha256" if name == "digest" and "sha256" in known else name


@pytest.mark.parametrize("version", range(1, len(SCHEMA)))
async def test_a_database_of_before_keeps_its_rows(tmp_path: Path, version: int) -> None:
    """Whatever version wrote a job and its batches, the newest reads them as they were."""
    path = tmp_path / "promptspool.db"

    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        for script in SCHEMA[:version]:
            old.executescript(script)

        old.execute(f"PRAGMA user_version = {version}")

        for table, row in (("jobs", JOB), ("batches", BATCH), ("providers", STATE)):
            known = {found[1] for found in old.execute(f"PRAGMA table_info({table})")}
            values = {
                name: getattr(value, "value", value)
                for field in row.__struct_fields__
                if (name := _column(field, known)) in known
                and (value := getattr(row, field)) is not None
            }
            names = ", ".join(values)
            marks = ", ".join("?" * len(values))
            old.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*values.values()])  # noqa: S608

    async with opened(path) as store:
        found = await store.job(JOB.id)
        (batch,) = await store.batches_of(JOB.id)
        state = (await store.providers())[STATE.id]

        for before, after in ((JOB, found), (BATCH, batch), (STATE, state)):
            assert after is not None

            for name in ("id", "status", "version", "due_at", "failures", "why"):
                assert getattr(after, name) == getattr(before, name)

        assert found is not None
        assert (found.digest, batch.digest) == (JOB.digest, BATCH.digest)

        with pytest.raises(Bug):  # the batch still belongs to a job that is there
            await store.write(
                Change(added=[replace(BATCH, id=BatchId("x"), job=JobId("y"))], at=NOW)
            )
