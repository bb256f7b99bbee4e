"""Looking at the database, whoever has it and however it was left."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from filled import NOW, batch, filled, held, job, provider
from promptspool.errors import SpoolError, StoreError
from promptspool.model import BatchStatus, JobStatus, Notice, NoticeStatus
from promptspool.spool import Spool
from promptspool.store import SCHEMA, Change, opened
from promptspool.store.view import NoDatabase, NoSuchJob, View, viewed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = 65_534


def files_of(spool: Spool) -> dict[str, tuple[int, int, int, int]]:
    """Return what there is beside the database: owners, size and time of change of each file."""
    return {
        path.name: (status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
        for path in spool.state.iterdir()
        for status in [path.stat()]
    }


def killed(spool: Spool, root: Path) -> Spool:
    """Return a copy of an open spool: what a daemon that is killed at this moment leaves."""
    copy = Spool(root)
    shutil.copytree(spool.root, copy.root)
    (copy.state / "promptspool.db-shm").unlink()  # which a reboot does not leave

    return copy


def written(spool: Spool, statement: str) -> None:
    """Change a database behind everybody's back."""
    with closing(sqlite3.connect(spool.database)) as connection:
        connection.execute(statement)
        connection.commit()


def inside(view: View) -> sqlite3.Connection:
    """Return the connection of *view*."""
    return view._connection  # noqa: SLF001 - to be watched


@contextmanager
def not_root() -> Iterator[None]:
    """Be somebody who may not read everything."""
    is_root = os.geteuid() == 0

    if is_root:
        os.seteuid(NOBODY)

    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.anyio
async def test_a_writer_commits_while_a_view_is_open(tmp_path: Path) -> None:
    """A view in the middle of reading keeps no daemon from writing, and sees one moment."""
    spool = Spool(tmp_path / "spool")
    spool.make()

    with held(spool):
        async with opened(spool.database) as store:
            await store.write(Change(added=[job(1)], at=NOW))

            with viewed(spool) as view:
                connection = inside(view)
                connection.execute("BEGIN")
                before = connection.execute("SELECT id FROM jobs").fetchall()
                await store.write(Change(added=[job(2)], at=NOW))
                meanwhile = connection.execute("SELECT id FROM jobs").fetchall()
                connection.rollback()

            with viewed(spool) as view:
                after = view.overview(NOW).jobs

    assert view.is_up
    assert [len(before), len(meanwhile), len(after)] == [1, 1, 2]


@pytest.mark.anyio
async def test_no_transaction_outlives_an_overview(tmp_path: Path) -> None:
    """Whoever keeps a view open keeps no daemon from tidying its log up."""
    spool = Spool(tmp_path / "spool")
    spool.make()

    with held(spool):
        async with opened(spool.database) as store:
            await store.write(Change(added=[job(1)], at=NOW))

            with viewed(spool) as view:
                view.overview(NOW)

                with closing(sqlite3.connect(spool.database)) as other:
                    found = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    assert found == [(0, 0, 0)]


@pytest.mark.anyio
async def test_a_view_leaves_no_file(tmp_path: Path) -> None:
    """Looking makes and changes no file: beside a daemon, after one, after one that was killed."""
    spool = Spool(tmp_path / "spool")
    spool.make()

    with held(spool):
        async with opened(spool.database) as store:
            await store.write(Change(added=[job(1)], at=NOW))
            dead = killed(spool, tmp_path / "dead")
            beside = files_of(spool)

            with viewed(spool) as view:
                assert view.is_up
                assert len(view.overview(NOW).jobs) == 1

            assert files_of(spool) == beside

    for left in (spool, dead):
        before = files_of(left)

        with viewed(left) as view:
            assert not view.is_up
            assert len(view.overview(NOW).jobs) == 1

        assert files_of(left) == before

    assert "promptspool.db-wal" in files_of(dead)
    assert "promptspool.db-wal" not in files_of(spool)


def test_nothing_was_ever_run(tmp_path: Path) -> None:
    """A spool without a database is told from one whose database cannot be read."""
    spool = Spool(tmp_path / "spool")
    spool.make()

    with pytest.raises(NoDatabase, match="nothing was ever run here"), viewed(spool):
        pass

    spool.database.touch()

    with pytest.raises(NoDatabase), viewed(spool):
        pass


def test_no_spool(tmp_path: Path) -> None:
    """A folder that is not there is no spool in which nothing was run."""
    with (
        pytest.raises(SpoolError, match="there is no spool") as raised,
        viewed(Spool(tmp_path / "x")),
    ):
        pass

    assert not isinstance(raised.value, NoDatabase)


@pytest.mark.parametrize(
    ("step", "advice"),
    [(1, "use that promptspool here, too"), (-1, "start it, or start it again")],
)
def test_another_version(tmp_path: Path, step: int, advice: str) -> None:
    """A database of another version is not read, and what to do depends on which is newer."""
    spool = filled(tmp_path)
    written(spool, f"PRAGMA user_version = {len(SCHEMA) + step}")

    with pytest.raises(SpoolError, match=advice), viewed(spool):
        pass


@pytest.mark.parametrize("kind", ["garbage", "cut", "words"])
def test_damage(tmp_path: Path, kind: str) -> None:
    """A database that nobody can have written is said to be damaged, with the way out."""
    spool = filled(tmp_path, *(job(number) for number in range(100)))

    match kind:
        case "garbage":
            spool.database.write_bytes(b"no database at all" * 1000)
        case "cut":
            os.truncate(spool.database, spool.database.stat().st_size // 2)
        case _:
            written(spool, "PRAGMA ignore_check_constraints = 1")

            with closing(sqlite3.connect(spool.database)) as connection:
                connection.execute("PRAGMA ignore_check_constraints = 1")
                connection.execute("UPDATE jobs SET status = 'elsewhere'")
                connection.commit()

    with (
        pytest.raises(SpoolError, match=r"damaged.*move promptspool\.db away"),
        viewed(spool) as view,
    ):
        view.overview(NOW)


def test_forbidden(tmp_path: Path) -> None:
    """Whoever may not read the spool is told as whom to come."""
    spool = filled(tmp_path)
    spool.state.chmod(0)

    try:
        with (
            not_root(),
            pytest.raises(SpoolError, match="run this as the daemon's user"),
            viewed(spool),
        ):
            pass
    finally:
        spool.state.chmod(0o700)


def test_a_daemon_that_comes_in(tmp_path: Path) -> None:
    """What goes wrong since a daemon was started meanwhile is not the database's fault."""
    spool = filled(tmp_path, *(job(number) for number in range(100)))

    with viewed(spool) as view, held(spool):
        os.truncate(spool.database, spool.database.stat().st_size // 2)

        with pytest.raises(StoreError, match="started at this moment; try again"):
            view.overview(NOW)


def statements_of(view: View) -> list[str]:
    """Return every statement that the questions of *view* come to, with their values in place."""
    asked: list[str] = []
    inside(view).set_trace_callback(asked.append)
    view.overview(NOW)
    found = view.jobs_called("f1.jsonl")[0]
    asked = [one for one in asked if "FROM jobs WHERE name" not in one]  # by name: once a command
    inside(view).set_trace_callback(asked.append)
    view.batches_of(found.id)
    view.notices_of(found.id)
    view.history_of(found.id)
    inside(view).set_trace_callback(None)

    return [one for one in asked if one.lstrip().startswith("SELECT")]


def test_what_grows_is_reached_by_an_index(tmp_path: Path) -> None:
    """No question reads all jobs, batches, notices or history that there ever were."""
    spool = filled(tmp_path, provider(), job(1), batch(job(1)))
    scans: list[str] = []

    with viewed(spool) as view:
        asked = statements_of(view)

        for statement in asked:
            if "LIMIT 1" in statement:  # the last line of history: found at its end
                continue

            plan = inside(view).execute(f"EXPLAIN QUERY PLAN {statement}")
            scans += [line[3] for line in plan if line[3].startswith("SCAN")]

    assert len(asked) > 8
    assert {scan for scan in scans if not scan.startswith(("SCAN meta", "SCAN providers"))} <= {
        "SCAN j USING INDEX jobs_live",
        "SCAN CONSTANT ROW",
        "SCAN live",
    }


def test_history_costs_nothing(tmp_path: Path) -> None:
    """An overview takes as many steps with ten times as many finished jobs behind it."""
    steps: list[int] = []

    for count in (10, 100):
        rows: list[Any] = [provider(), job(1), batch(job(1))]

        for number in range(2, count):
            old = job(number, age_s=90 * 86_400, status=JobStatus.DONE)
            rows += [(90 * 86_400, old)]
            rows += [(90 * 86_400, batch(old, status=BatchStatus.CLOSED, due_at=None,
                                         intended_at=NOW - 90 * 86_400))]  # fmt: skip

        spool = filled(tmp_path / str(count), *rows)
        steps.append(0)

        def count_one() -> int:
            steps[-1] += 1

            return 0

        with viewed(spool) as view:
            inside(view).set_progress_handler(count_one, 10)
            view.overview(NOW)

    assert steps[1] <= steps[0] * 1.2


def test_jobs_are_found(tmp_path: Path) -> None:
    """A job is found by its id, the beginning or the end of it, and the name of its file."""
    may = job(123456, "reviews/may.csv", age_s=10)
    june = job(654321, b"june\xff.csv", age_s=864_000)
    spool = filled(tmp_path, may, june)

    with viewed(spool) as view:
        for text in (may.id, may.id[:14], "123456", "reviews/may.csv", "may.csv"):
            assert view.job(text) == may

        assert view.job(os.fsdecode(b"june\xff.csv")) == june
        assert view.job("654321") == june

        for text in ("y.csv", "*", "%", "reviews", may.id + "x"):
            with pytest.raises(NoSuchJob, match="no job is called"):
                view.job(text)


def test_several_jobs_are_named(tmp_path: Path) -> None:
    """A word that may mean several jobs is refused, and they are named, the youngest first."""
    jobs = [job(number, "may.csv", age_s=100.0 * (9 - number)) for number in range(8)]
    spool = filled(tmp_path, *jobs)

    with viewed(spool) as view, pytest.raises(NoSuchJob) as raised:
        view.job("may.csv")

    message = str(raised.value)
    assert "may be 8 jobs" in message
    assert [one.id in message for one in jobs] == [False] * 3 + [True] * 5
    assert "and 3 more; name one by its id" in message


def test_the_story_of_one_job(tmp_path: Path) -> None:
    """Of a job its batches, notices and lines of history are found, and nobody else's."""
    mine, other = job(1), job(2)
    child = batch(mine, 2, parent=batch(mine).id, status=BatchStatus.PLANNED)
    notice = Notice(id=f"{mine.id}/job.held/command", job=mine.id, event="job.held",
                    target="command", made_at=NOW, due_at=NOW)  # fmt: skip
    spool = filled(
        tmp_path, (50, mine), (40, other), (30, batch(mine)), (20, batch(other)), (10, child),
        notice,
        (child, replace(child, status=BatchStatus.UPLOADED, why="at last"), 5),
    )  # fmt: skip

    with viewed(spool) as view:
        assert [one.id for one in view.batches_of(mine.id)] == [batch(mine).id, child.id]
        assert [one.status for one in view.notices_of(mine.id)] == [NoticeStatus.PENDING]
        steps = view.history_of(mine.id)

    assert [(step.row, step.was, step.became, step.at, step.why) for step in steps] == [
        (mine.id, None, "planned", NOW - 50, None),
        (batch(mine).id, None, "created", NOW - 30, None),
        (child.id, None, "planned", NOW - 10, None),
        (notice.id, None, "pending", NOW, None),
        (child.id, "planned", "uploaded", NOW - 5, "at last"),
    ]
