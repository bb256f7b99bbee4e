"""Rows 13, 14 and 15: how long a start, a query and a command take where very much is tracked."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from bench.filling import PROVIDER, Filling, cached, configure
from bench.harness import Case, Measured, Trial
from bench.running import environ
from bench.watched import Watched
from promptspool.app import leave_glance
from promptspool.model import BatchStatus, JobId, JobStatus
from promptspool.settings import load
from promptspool.spool import Spool
from promptspool.stages import STAGES
from promptspool.store import opened
from promptspool.store.view import viewed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bench.harness import Context
    from promptspool.store import Store

RESTART_LIMIT_S = 1.0
DUE_LIMIT_US = 100.0
HELP_LIMIT_MS = 150.0
STATUS_LIMIT_MS = 300.0

TIMEOUT_S = 120.0
"""Real time, against hangs."""

ENOUGH_S = 0.3
"""So long a call is repeated, but for `MOST` times at the most, or a few in a small benchmark."""

MOST = 300
FEW = 10

COMMANDS_A_RUN = 3
"""So often a command is run for one figure, which is the median."""

COMMAND = (sys.executable, "-m", "promptspool")


# Row 13.


def restart(a_job: int, context: Context) -> Sequence[Measured]:
    """Start a daemon on a spool that tracks very much, its batches in jobs of *a_job*.

    The time is from before exec to the first connection that is made to the provider: to recall
    its list. Nobody answers there, and the daemon is killed. `booted_s` is until its log said
    `daemon.booted`, by the clock of the wall; `import_s` is what an interpreter takes that only
    imports what the daemon is made of.
    """
    live = context.size(10_000, 100)
    filling = Filling(
        live=live, finished=context.size(9_000, 90), a_job=a_job, copies=context.size(10, 1)
    )
    root = cached(context.data, filling)
    log = context.scratch / "log.jsonl"

    with socket.create_server(("127.0.0.1", 0)) as provider:
        provider.settimeout(TIMEOUT_S)
        config = configure(root, f"http://127.0.0.1:{provider.getsockname()[1]}/v1")
        command = [*COMMAND, "run", "--config", str(config)]
        exec_at = time.time()

        with Watched(command, output=log, environ=environ()) as watched:
            _await_call(provider, watched)
            seconds = time.monotonic() - watched.began_at
            usage = watched.lap()
            watched.process.kill()

    extra: dict[str, object] = {
        "live_batches": live,
        "live_jobs": live // a_job,
        "import_s": _ran([sys.executable, "-c", "import promptspool.app"]).seconds,
        "interpreter_s": _ran([sys.executable, "-c", "pass"]).seconds,
        "booted_s": _said_at(log, "daemon.booted") - exec_at,
    }

    return [Measured(value=seconds, rss_bytes=usage.rss_bytes, cpu_s=usage.cpu_s, extra=extra)]


def _await_call(provider: socket.socket, watched: Watched) -> None:
    """Return when somebody connects; raises `RuntimeError` if nobody does."""
    try:
        provider.accept()[0].close()
    except TimeoutError as error:
        raise RuntimeError(f"the daemon did not get there: {watched.complaint()}") from error


def _said_at(log: Path, event: str) -> float:
    """Return when an event was first logged, in Unix seconds."""
    lines = (json.loads(line) for line in log.read_bytes().splitlines() if line.startswith(b"{"))
    line = next(line for line in lines if line["event"] == event)

    return datetime.fromisoformat(line["timestamp"]).timestamp()


# Row 14.


def queries(context: Context) -> Sequence[Measured]:
    """Ask a store with very much history what the dispatcher asks it in every turn.

    The value is what one call takes as it is awaited, with the way to the thread of the connection
    and back. `calls_us` has that of the others, `statements_us` what SQLite alone takes for theirs
    in a connection that has just run them, and `plans` what it says of each.
    """
    filling = _history(context, context.size(100, 1))
    spool = Spool(cached(context.data, filling) / "spool")
    most = _most(context)
    calls_us, statements = anyio.run(_asked, spool.database, most)
    statements_us, plans = _alone(spool.database, statements, most)
    size_bytes = spool.database.stat().st_size
    batches = filling.live + filling.finished * filling.copies
    extra: dict[str, object] = {
        "finished_batches": filling.finished * filling.copies,
        "calls_us": calls_us,
        "statements_us": statements_us,
        "plans": plans,
        "overview_ms": _overview_s(spool) * 1e3,
        "bytes_a_batch": size_bytes / batches,
        "database_bytes": size_bytes,
    }

    return [
        Measured(value=calls_us[name], extra=extra if number == 0 else {})
        for number, name in enumerate(("due", "look", "next_due_at"))
    ]


def _most(context: Context) -> int:
    return FEW if context.is_small else MOST


def _history(context: Context, copies: int) -> Filling:
    return Filling(
        live=context.size(10_000, 100), finished=context.size(10_000, 100), a_job=10, copies=copies
    )


def history_growth(context: Context) -> list[tuple[int, dict[str, float]]]:
    """Return what each call takes, in µs, by how many finished batches there are."""
    grown = []

    for copies in (1, 10, 100)[: 1 if context.is_small else 3]:
        filling = _history(context, copies)
        spool = Spool(cached(context.data, filling) / "spool")
        calls_us, _ = anyio.run(_asked, spool.database, _most(context))
        grown.append((filling.finished * copies, calls_us))

    return grown


def _calls(now: float, job: JobId) -> Mapping[str, Callable[[Store], Awaitable[object]]]:
    """Return what is asked: in every turn, of every batch that ends, every hour, at a scrape."""
    wanted = {
        (status, PROVIDER if isinstance(status, BatchStatus) else None): 8 for status in STAGES
    }

    return {
        "due": lambda store: store.due(BatchStatus.CREATED, PROVIDER, now=now, limit=1),
        "due_nothing": lambda store: store.due(BatchStatus.ENDED, PROVIDER, now=now, limit=8),
        "due_queued": lambda store: store.due(BatchStatus.PLANNED, PROVIDER, now=now, limit=8),
        "due_jobs": lambda store: store.due(JobStatus.CLAIMED, None, now=now, limit=8),
        "look": lambda store: store.look(wanted, now=now),
        "next_due_at": lambda store: store.next_due_at(now),
        "running": lambda store: store.running(PROVIDER),
        "live_batches": lambda store: store.live_batches(job),
        "batches_of": lambda store: store.batches_of(job),
        "live_jobs": lambda store: store.live_jobs(),
        "job_with_content": lambda store: store.job_with_content("b3-none", other_than=job),
        "states": lambda store: store.states(),
        "standing": lambda store: store.standing(),
        "spent_today": lambda store: store.spent(PROVIDER, now - 86_400.0),
        "spent_this_month": lambda store: store.spent(PROVIDER, now - 30 * 86_400.0),
        "enqueued": lambda store: store.enqueued(PROVIDER, "http://127.0.0.1:9/v1"),
        "finished": lambda store: store.finished(now - 90 * 86_400.0, 100),
        "interrupted": lambda store: store.interrupted(),
        "last_at": lambda store: store.last_at(),
    }


async def _asked(path: Path, most: int) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Return the median of each call in µs, and the statements that it makes of SQLite."""
    medians: dict[str, float] = {}
    statements: dict[str, list[str]] = {}
    job, now = _some_job(path), time.time()

    with _overheard() as said:
        async with opened(path) as store:
            for name, call in _calls(now, job).items():
                said.clear()
                await call(store)
                statements[name] = [one for one in said if one.lstrip().startswith("SELECT")]
                medians[name] = await _median_us(partial(call, store), most)

    return medians, statements


def _some_job(path: Path) -> JobId:
    with closing(sqlite3.connect(path)) as connection:
        return JobId(str(connection.execute("SELECT job FROM batches LIMIT 1").fetchone()[0]))


async def _median_us(call: Callable[[], Awaitable[object]], most: int) -> float:
    times: list[float] = []
    ends_at = time.perf_counter() + ENOUGH_S

    while len(times) < 3 or (len(times) < most and time.perf_counter() < ends_at):
        began_at = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began_at)

    return statistics.median(times) * 1e6


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Yield the statements of the connections that are made inside, with their values."""
    said: list[str] = []
    ordinary = sqlite3.connect

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = ordinary(*arguments, **named)
        connection.set_trace_callback(said.append)

        return connection

    sqlite3.connect = connect  # type: ignore[assignment] # put back below

    try:
        yield said
    finally:
        sqlite3.connect = ordinary


def _alone(
    path: Path, statements: Mapping[str, Sequence[str]], most: int
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Return what the statements of each call take in µs, all rows read, and SQLite's plans."""
    times: dict[str, float] = {}
    plans: dict[str, list[str]] = {}

    with closing(sqlite3.connect(path)) as connection:
        for name, mine in statements.items():
            times[name] = sum(_statement_us(connection, one, most) for one in mine)
            explained = [connection.execute(f"EXPLAIN QUERY PLAN {one}").fetchall() for one in mine]
            plans[name] = [str(row[3]) for rows in explained for row in rows]

    return times, plans


def _statement_us(connection: sqlite3.Connection, statement: str, most: int) -> float:
    times: list[float] = []
    ends_at = time.perf_counter() + ENOUGH_S

    while len(times) < 3 or (len(times) < most and time.perf_counter() < ends_at):
        began_at = time.perf_counter()
        connection.execute(statement).fetchall()
        times.append(time.perf_counter() - began_at)

    return statistics.median(times) * 1e6


def _overview_s(spool: Spool) -> float:
    """Return how long it takes to read what `status` shows, while a daemon holds the spool."""
    times = []

    with spool.opened():
        for _ in range(3):
            began_at = time.perf_counter()

            with viewed(spool) as view:
                view.overview(time.time())

            times.append(time.perf_counter() - began_at)

    return statistics.median(times)


# Row 15.


def help_command(context: Context) -> Sequence[Measured]:
    """Run `promptspool --help`, in turn with an interpreter that does nothing."""
    return [_measured(context, [*COMMAND, "--help"])]


def import_alone(context: Context) -> Sequence[Measured]:
    """Import the package, and nothing of it."""
    return [_measured(context, [sys.executable, "-c", "import promptspool"])]


def status(context: Context) -> Sequence[Measured]:
    """Run `promptspool status`, into a pipe, on a spool that this process holds like a daemon.

    A daemon ran on it before, and has left there what it leaves for commands that only look.
    """
    filling = Filling(
        live=context.size(1_000, 20), finished=context.size(10_000, 100), copies=context.size(10, 1)
    )
    root = cached(context.data, filling)

    _leave_glance(root)

    with Spool(root / "spool").opened():
        return [_measured(context, [*COMMAND, "status", "--config", f"{root}/promptspool.toml"])]


def _leave_glance(root: Path) -> None:
    """Leave what a daemon leaves at its start; a daemon would also change the rows."""
    variables = environ()
    leave_glance(load(root / "promptspool.toml", environ=variables), variables)


def _measured(context: Context, command: Sequence[str]) -> Measured:
    """Run *command* in turn with an interpreter that does nothing; the values are medians."""
    bare = [sys.executable, "-c", "pass"]
    pairs = [(_ran(command), _ran(bare)) for _ in range(1 if context.is_small else COMMANDS_A_RUN)]
    mine, others = zip(*pairs, strict=True)

    return Measured(
        value=statistics.median(one.seconds for one in mine) * 1e3,
        cpu_s=statistics.median(one.cpu_s for one in mine),
        baselines={"python -c pass": statistics.median(one.seconds for one in others) * 1e3},
    )


@dataclass(frozen=True, slots=True)
class _Ran:
    """What one run of a command took."""

    seconds: float
    cpu_s: float


def _ran(command: Sequence[str]) -> _Ran:
    """Run a command to its end; its exit code may be anything, as `status` has it."""
    began_at = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own commands
        command, env=environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, code, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began_at
    process.returncode = os.waitstatus_to_exitcode(code)

    return _Ran(seconds, used.ru_utime + used.ru_stime)


def _restarting(jobs: str, a_job: int, *, in_small: bool = True) -> Trial:
    case = Case(
        row=13,
        name=f"restart: 100,000 batches, 10,000 of them live, in {jobs} jobs",
        unit="s",
        goal=f"<= {RESTART_LIMIT_S:g} s before recall",
        is_met=lambda found: found.median <= RESTART_LIMIT_S,
        better="less",
    )

    return Trial(cases=(case,), run=partial(restart, a_job), in_small=in_small)


def _asking(name: str) -> Case:
    return Case(
        row=14,
        name=f"Store.{name} with 1,000,000 finished batches",
        unit="µs",
        goal=f"<= {DUE_LIMIT_US:g} µs, an index search",
        is_met=lambda found: found.median <= DUE_LIMIT_US,
        better="less",
    )


def _running(
    name: str, limit_ms: float | None, run: Callable[[Context], Sequence[Measured]]
) -> Trial:
    case = Case(
        row=15,
        name=name,
        unit="ms",
        goal="" if limit_ms is None else f"<= {limit_ms:g} ms",
        is_met=lambda found: limit_ms is None or found.median <= limit_ms,
        better="less",
    )

    return Trial(cases=(case,), run=run)


TRIALS: tuple[Trial, ...] = (
    _restarting("10,000", 1),
    _restarting("1,000", 10, in_small=False),
    Trial(cases=tuple(map(_asking, ("due", "look", "next_due_at"))), run=queries),
    _running("promptspool --help", HELP_LIMIT_MS, help_command),
    _running("import promptspool", None, import_alone),
    _running("promptspool status: 1,000 live, 100,000 finished", STATUS_LIMIT_MS, status),
)
