"""The machine in trouble: its disk, its limits, its database, its clock, its signals.

Whatever it refuses, the daemon says so once and goes on where it was when the trouble is over; what
it cannot go on with it refuses at the start, in one line. The laws are held after each.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import sqlite3
import subprocess
import time
import zipfile
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from structlog.testing import capture_logs

import commands
from commands import COMMAND, LIMIT_S, environ, events, read_until, started
from crash.mortal import COMMIT, DISK, Fate, mortal
from promptspool import delivery
from promptspool.app import Daemon
from promptspool.clock import Bell
from promptspool.errors import SpoolError, StoreError
from promptspool.model import Job, JobId
from promptspool.simulator import Fault, SimulatorSettings
from promptspool.spool import Spool
from promptspool.store import connection, opening
from world import KEY, FakeClock, simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from structlog.typing import EventDict

    from world import World

EVERY = int(os.environ.get("PROMPTSPOOL_CRASH_EVERY", "0")) or 60
"""Every which step is tried for each errno; 1 tries them all (minutes)."""

BUGS = {"stage.crashed", "stage.broken", "stage.abandoned", "store.refused"}
"""What nothing that a machine does may lead to."""


def rows(count: int) -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0`, `q1` …."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?"} for n in range(count)]


def ids(count: int) -> list[str]:
    """Return the ids of `rows`."""
    return [f"q{n}" for n in range(count)]


# A disk that refuses.

REFUSALS = {
    errno.ENOSPC: "database or disk is full",
    errno.EACCES: "unable to open database file",
    errno.EROFS: "attempt to write a readonly database",
    errno.EMFILE: "unable to open database file",
    errno.EIO: "disk I/O error",
}
"""What a disk may say, and what SQLite then says of a commit."""


@dataclass(slots=True)
class Refusal(Fate):
    """A disk that refuses *count* durable steps, from the *first* on, and works again."""

    world: World | None = None
    error: int = 0
    first: int = 0
    count: int = 3
    seen: dict[Path, bytes] = field(default_factory=dict)
    """What was in the outbox while it refused."""

    @contextmanager
    def step(self, name: str, paths: Sequence[Path] = ()) -> Iterator[None]:
        """Count a step, and refuse it if its time has come."""
        del paths

        if name in (*DISK, COMMIT):
            self.steps.append(name)

            if self.first <= len(self.steps) < self.first + self.count:
                self._refuse(name)

        yield

    def _refuse(self, name: str) -> None:
        assert self.world is not None
        visible = self.world.spool.outbox.rglob("[!.]*")
        self.seen |= {path: path.read_bytes() for path in visible if path.is_file()}

        if name == COMMIT:
            raise sqlite3.OperationalError(REFUSALS[self.error])

        raise OSError(self.error, os.strerror(self.error))


def drop(world: World) -> None:
    """Drop a file that comes back in two batches, one that does as a table, and a useless one."""
    world.drop("a.jsonl", rows(3))
    world.drop("c.jsonl", b"nothing\n")
    world.drop("t.csv", b"id,prompt\nt1,one\n")


def check(world: World) -> None:
    """Hold the laws over what was dropped."""
    world.assert_conserved("a.jsonl", ids(3))
    world.assert_conserved("t.csv", ["t1"])
    world.assert_bought_once()
    assert (world.spool.rejected / "c.jsonl").exists()
    assert (world.spool.rejected / "c.jsonl.rejected.json").exists()
    assert sorted(path.name for path in world.spool.done.iterdir()) == ["a.jsonl", "t.csv"]
    assert not list(world.spool.working.iterdir())
    assert set(world.simulator.ledger.requests.values()) == {1}


async def drained(world: World, log: Sequence[EventDict]) -> bool | str:
    """Run until nothing is left to do; return what is said where the start is refused.

    While the database refuses time passes too, though somebody still has a row in hand.
    """

    def is_refused() -> bool:
        told = [line["event"] for line in log if line["event"].startswith("store.")]

        return told[-1:] == ["store.unwritable"]

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.clock.run, is_refused)
            is_done = await world.drain(limit_s=LIMIT_S)
            tasks.cancel_scope.cancel()
    except ExceptionGroup as group:
        known, other = group.split((SpoolError, StoreError))

        if known is None or other is not None:
            raise

        return str(_leaf(known))

    return is_done


def _leaf(error: Exception) -> Exception:
    """Return the one exception in groups of groups."""
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions

    return error


async def refused(root: Path, *, error: int = errno.EIO, first: int = 0, count: int = 0) -> int:
    """Live through *count* refusals from the *first* step on; return how many steps were made."""
    async with simulated(root, overrides={"providers": {"openai": {"max_requests": 2}}}) as world:
        drop(world)
        refusal = Refusal(world=world, error=error, first=first, count=count)

        with capture_logs() as log, mortal(refusal, world.spool.root):
            while isinstance(told := await drained(world, log), str):  # a start that was refused
                past = [line["event"] for line in log]
                # The note of a clean stop has a test of its own.
                assert "job.claimed" not in past or past[-1] == "daemon.stopping", told

        if list(world.spool.working.iterdir()):  # of a claim or a removal that was cut off
            assert await world.drain()

        check(world)
        assert [line for line in log if line["event"] in BUGS or "exception" in line] == []
        assert {path: path.read_bytes() for path in refusal.seen} == refusal.seen

    return len(refusal.steps)


@pytest.mark.anyio
@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: errno.errorcode[error])
async def test_a_disk_that_refuses_costs_only_time(tmp_path: Path, error: int) -> None:
    """ENOSPC and its like, at any durable step: the same process goes on when they are over."""
    steps = await refused(tmp_path / "calm")
    offset = list(REFUSALS).index(error) * EVERY // len(REFUSALS)

    for first in range(1 + offset, steps + 1, EVERY):
        try:
            await refused(tmp_path / f"{first}", error=error, first=first, count=3)
        except BaseException as failed:
            failed.add_note(f"{errno.errorcode[error]} from step {first} of {steps} on")
            raise


# The same in earnest: a process of its own, and limits that the kernel sets.

CONFIG = """
[spool]
settle = "50ms"
stop_grace = "200ms"

[providers.openai]
base_url = "{base_url}"
api_key_env = "OPENAI_API_KEY"

[polling]
first = "100ms"
cap = "200ms"

[retry]
first = "50ms"
cap = "100ms"

[profiles.default]
model = "gpt-5-mini"

[profiles.loops]
model = "gpt-5-mini"
prompt = "{loop}"
"""

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"


@pytest.fixture
def base_url() -> Iterator[str]:
    """Serve a simulated provider in a process of its own."""
    with commands.simulated(speed=300) as url:
        yield url


def configured(root: Path, base_url: str) -> Path:
    """Make an empty spool in *root* and return its configuration."""
    config = root / "promptspool.toml"
    config.write_text(CONFIG.format(base_url=base_url, loop=LOOP))
    (root / "spool" / "inbox" / "loops").mkdir(parents=True)

    return config


def finished(daemon: subprocess.Popen[str], said: str) -> list[str]:
    """Stop a daemon that has delivered; return what it told from *said* on."""
    daemon.send_signal(signal.SIGTERM)
    rest, complaints = daemon.communicate(timeout=LIMIT_S)

    assert (daemon.returncode, complaints) == (0, "")
    assert "exception" not in said + rest

    return [line["event"] for line in events(said + rest)]


def bought(base_url: str) -> int:
    """Return how many batches the provider has made."""
    answer = httpx.get(base_url.removesuffix("/v1") + "/_simulator/ledger", trust_env=False)

    return len(answer.json()["creations"])


def test_a_disk_that_takes_no_more_is_waited_for(tmp_path: Path, base_url: str) -> None:
    """Writes that fail in the kernel are told, and done when there is room; nothing is lost.

    First the database has no room, then a request file.
    """
    config = configured(tmp_path, base_url)
    inbox, outbox = tmp_path / "spool" / "inbox", tmp_path / "spool" / "outbox"

    with started("run", "--config", config, OPENAI_API_KEY=KEY) as daemon:
        read_until(daemon, "daemon.ready")
        usual, most = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4_096, most))
        (inbox / "f.txt").write_text("x" * 1_500_000 + "\ntwo\n")

        assert "store.unwritable" in read_until(daemon, "store.")

        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (1_000_000, most))

        assert "store.writable" in read_until(daemon, "store.")
        assert "File too large" in read_until(daemon, "stage.retried")
        assert not list(outbox.iterdir())

        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (usual, most))
        finished(daemon, read_until(daemon, "job.delivered"))

    assert commands.ids(outbox / "f.txt.results.jsonl") == ["f-1", "f-2"]
    assert bought(base_url) == 1


def test_too_many_open_files_are_waited_for(tmp_path: Path, base_url: str) -> None:
    """A daemon that can open nothing any more says so, loses nothing, and goes on when it can."""
    config = configured(tmp_path, base_url)
    inbox, outbox = tmp_path / "spool" / "inbox", tmp_path / "spool" / "outbox"

    with started("run", "--config", config, OPENAI_API_KEY=KEY) as daemon:
        read_until(daemon, "daemon.ready")
        usual, most = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (1, most))
        (inbox / "f.txt").write_text("one\n")

        assert "Too many open files" in read_until(daemon, "inbox.unreadable")

        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (usual, most))
        (inbox / ".wake").write_text("")  # the inbox is looked at when something happens in it
        read_until(daemon, "batch.created")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (1, most))

        assert "Too many open files" in read_until(daemon, "stage.retried")

        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (usual, most))
        finished(daemon, read_until(daemon, "job.delivered"))

    assert commands.ids(outbox / "f.txt.results.jsonl") == ["f-1"]
    assert bought(base_url) == 1


# File systems, in a user namespace of our own.


def is_unshared() -> bool:
    """Tell whether this machine lets us mount something in a namespace of our own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]

    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    except FileNotFoundError:
        return False


namespaces = pytest.mark.skipif(not is_unshared(), reason="needs unprivileged user namespaces")


@contextmanager
def unshared(mount: str, config: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the daemon after *mount*, which is seen by it alone and finds the spool's path in $1."""
    script = f'{mount} && shift && exec "$@"'
    spool = str(config.with_name("spool"))
    command = ["unshare", "-rm", "sh", "-c", script, "sh", spool, *COMMAND, "run", "--config"]

    with subprocess.Popen(  # noqa: S603 - our own command
        [*command, str(config)],
        env=environ(OPENAI_API_KEY=KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def fill(ballast: Path) -> None:
    """Write a file that leaves no room for another block."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4_096))


@namespaces
def test_a_full_file_system_is_waited_for(tmp_path: Path, base_url: str) -> None:
    """A spool whose file system is full to the last block goes on when somebody makes room."""
    config = configured(tmp_path, base_url)

    with unshared('mount -t tmpfs -o size=2m none "$1" && mkdir "$1/inbox"', config) as daemon:
        read_until(daemon, "daemon.ready")
        spool = Path(f"/proc/{daemon.pid}/root{tmp_path}/spool")
        (spool / "inbox" / ".f.txt").write_text("one\n")
        ballast = spool / "ballast"

        fill(ballast)
        (spool / "inbox" / ".f.txt").rename(spool / "inbox" / "f.txt")

        assert "No space left" in read_until(daemon, '"warning"')

        ballast.unlink()
        (spool / "inbox" / ".wake").write_text("")
        said = read_until(daemon, "job.delivered")

        assert commands.ids(spool / "outbox" / "f.txt.results.jsonl") == ["f-1"]

        finished(daemon, said)

    assert bought(base_url) == 1


@namespaces
def test_a_bind_mount_is_refused(tmp_path: Path) -> None:
    """A part of the spool on a mount of its own is refused at the start, in one line."""
    config = configured(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "spool" / "outbox").mkdir()

    with unshared('mount --bind "$1/outbox" "$1/outbox"', config) as daemon:
        said, complaint = daemon.communicate(timeout=LIMIT_S)

    assert daemon.returncode == 1
    assert [line["event"] for line in events(said)] == ["daemon.started"]
    assert complaint.startswith(f"promptspool: {tmp_path}/spool/outbox and ")
    assert "not on one file system (or one mount)" in complaint
    assert complaint.count("\n") == 1
    assert not list((tmp_path / "spool").rglob(".promptspool*"))


# The database.


@pytest.mark.anyio
async def test_a_locked_database_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program holds the database nothing is done, and that is said once."""
    monkeypatch.setattr(opening, "BUSY_MS", 20)

    real = connection.begin
    other: list[sqlite3.Connection] = []
    tries: list[str] = []

    def begin(there: sqlite3.Connection) -> None:
        if other:
            tries.append("begin")

        if len(tries) == 5:
            other[0].close()

        real(there)

    monkeypatch.setattr(connection, "begin", begin)

    async with simulated(tmp_path) as world:
        world.drop("a.jsonl", rows(3))

        def lock(_call: object) -> bool:
            if not other:
                other.append(
                    sqlite3.connect(
                        world.spool.database, isolation_level=None, check_same_thread=False
                    )
                )
                other[0].execute("BEGIN IMMEDIATE")

            return False

        world.simulator.faults.add(Fault(route="files.create"), when=lock)

        with capture_logs() as log:
            assert await drained(world, log) is True

        world.assert_conserved("a.jsonl", ids(3))
        world.assert_bought_once()

    told = [(line["event"], line.get("failures")) for line in log if "store." in line["event"]]
    assert told == [("store.unwritable", None), ("store.writable", 4)]


@dataclass(slots=True)
class Unnoted(Fate):
    """A disk that is full when a daemon has finished and makes its last note."""

    daemon: Daemon | None = None

    @contextmanager
    def step(self, name: str, paths: Sequence[Path] = ()) -> Iterator[None]:
        """Refuse the last note."""
        del paths
        assert self.daemon is not None
        dispatcher = self.daemon.dispatcher
        is_over = dispatcher is not None and dispatcher.is_stopping and not dispatcher.in_progress

        if name == COMMIT and is_over:
            self.steps.append(name)

            raise sqlite3.OperationalError(REFUSALS[errno.ENOSPC])

        yield


@pytest.mark.anyio
async def test_a_stop_that_cannot_be_noted_is_a_stop(tmp_path: Path) -> None:
    """A database that refuses the note of a clean stop costs the next start a second look only."""
    async with simulated(tmp_path) as world:
        daemon = Daemon(settings=world.settings(), clock=world.clock)
        daemon.on_ready = daemon.stop
        fate = Unnoted(daemon=daemon)

        with mortal(fate, world.spool.root):
            assert await world.run(daemon)

        assert fate.steps == [COMMIT]


async def in_flight(world: World) -> None:
    """Drop three rows and stop, as SIGTERM does, when their batch runs at the provider."""
    world.drop("a.jsonl", rows(3))
    daemon = Daemon(settings=world.settings(), clock=world.clock)

    def stop(_call: object) -> bool:
        daemon.stop()

        return False

    world.simulator.faults.add(Fault(route="batches.get"), when=stop)
    await world.run(daemon)

    assert len(world.simulator.ledger.creations) == 1


def torn(path: Path) -> None:
    """Cut a database in two and keep the first half."""
    os.truncate(path, path.stat().st_size // 8_192 * 4_096)


def garbled(path: Path) -> None:
    """Write noise over the pages in the middle of a database; its head and its schema are well."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 8_192 * 4_096)
        file.write(bytes(range(1, 256)) * (size // 4 // 255))


def scribbled(path: Path) -> None:
    """Put something else in the place of a database."""
    path.write_bytes(os.urandom(path.stat().st_size))


@pytest.mark.anyio
@pytest.mark.parametrize("damage", [torn, garbled, scribbled], ids=lambda damage: damage.__name__)
async def test_a_damaged_database_is_refused_and_rebuilt(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """One line says that it is damaged and is to be moved away; after that nothing is missing."""
    async with simulated(tmp_path) as world:
        await in_flight(world)
        damage(world.spool.database)
        complaint = await drained(world, [])

        assert isinstance(complaint, str)
        assert complaint.startswith(f"{world.spool.database}: the database is damaged (")
        assert "move promptspool.db away" in complaint
        assert "\n" not in complaint

        world.spool.database.rename(tmp_path / "damaged.db")

        assert await world.drain()

        world.assert_conserved("a.jsonl", ids(3))
        world.assert_bought_once()
        assert set(world.simulator.ledger.requests.values()) == {1}


@pytest.mark.anyio
async def test_damage_while_running_ends_it(tmp_path: Path) -> None:
    """A database that is damaged beneath a running daemon is put to no further use."""
    async with simulated(tmp_path) as world:
        world.drop("a.jsonl", rows(3))
        done: list[bool] = []

        def damage(_call: object) -> bool:
            if not done:
                done.append(True)

                with closing(sqlite3.connect(world.spool.database)) as other:
                    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    garbled(world.spool.database)
                    other.execute("PRAGMA user_version = 0")  # what others cached is stale now
                    other.commit()

            return False

        world.simulator.faults.add(Fault(route="batches.get"), when=damage)

        with capture_logs() as log:
            complaint = await drained(world, log)

        assert isinstance(complaint, str)
        assert "the database is damaged (" in complaint
        assert "move promptspool.db away" in complaint
        assert "stage.abandoned" not in [line["event"] for line in log]
        world.spool.database.rename(tmp_path / "damaged.db")

        assert await world.drain()

        world.assert_conserved("a.jsonl", ids(3))
        world.assert_bought_once()
        assert set(world.simulator.ledger.requests.values()) == {1}


# A spool that goes away.

_rename, _mkdir, _rmdir = os.rename, os.mkdir, os.rmdir


@dataclass(slots=True)
class Unplugged(Fate):
    """A spool that is gone for ten minutes, from the *first* step on disk after a start on."""

    world: World | None = None
    log: Sequence[EventDict] = ()
    first: int = 0
    is_mount_point: bool = False
    """An empty folder stays where it was."""
    gone_at: float | None = None

    @contextmanager
    def step(self, name: str, paths: Sequence[Path] = ()) -> Iterator[None]:
        """Count a step, and take the spool away before it if its time has come."""
        del paths

        if name in DISK and any(line["event"] == "daemon.booted" for line in self.log):
            self.steps.append(name)

            if len(self.steps) == self.first and self.world is not None:
                self.gone_at = self.world.clock.now()
                _rename(self.world.spool.root, self.world.root / "away")

                if self.is_mount_point:
                    _mkdir(self.world.spool.root)

        yield

    async def bring_back(self) -> None:
        """Put the spool back in time, if it goes."""
        assert self.world is not None

        while self.gone_at is None or self.world.clock.now() < self.gone_at + 600.0:
            await self.world.clock.wait(Bell(), 30.0)

        self.back()

    def back(self) -> None:
        """Put the spool back, if it is away; whatever was made in its place is in the way."""
        assert self.world is not None
        root, away = self.world.spool.root, self.world.root / "away"

        if away.exists():
            if self.is_mount_point:
                _rmdir(root)

            assert not root.exists()

            _rename(away, root)


async def unplugged(root: Path, *, first: int = 0, is_mount_point: bool = False) -> Unplugged:
    """Live through a spool that goes away, and hold the laws."""
    async with simulated(root, overrides={"providers": {"openai": {"max_requests": 2}}}) as world:
        drop(world)
        world.spool.make()
        fate = Unplugged(world=world, first=first, is_mount_point=is_mount_point)

        with capture_logs() as fate.log:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fate.bring_back)

                with mortal(fate, world.spool.root):
                    assert await drained(world, fate.log) is True

                tasks.cancel_scope.cancel()

        fate.back()

        if list(world.spool.working.iterdir()):  # of a claim or a removal that was cut off
            assert await world.drain()

        check(world)
        told = [line["event"] for line in fate.log]
        assert [line for line in fate.log if "exception" in line] == []
        assert not BUGS & set(told)
        assert told.count("inbox.unreadable") <= 1

    return fate


@pytest.mark.anyio
@pytest.mark.parametrize("is_mount_point", [False, True], ids=["gone", "empty"])
async def test_a_spool_that_disappears_is_waited_for(
    tmp_path: Path, *, is_mount_point: bool
) -> None:
    """A spool that is renamed away, or not mounted for a while, is gone on with when it is back.

    Nothing is made in its place, whenever it goes.
    """
    steps = len((await unplugged(tmp_path / "calm")).steps)

    for first in range(1 + is_mount_point * EVERY // 2, steps + 1, EVERY):
        try:
            await unplugged(tmp_path / f"{first}", first=first, is_mount_point=is_mount_point)
        except BaseException as failed:
            failed.add_note(f"it went before step {first} of {steps}")
            raise


@pytest.mark.anyio
async def test_a_spool_that_disappears_is_told_of_once(tmp_path: Path) -> None:
    """Nothing is begun while the spool is away; one line says so, and one that it is back."""
    steps = len((await unplugged(tmp_path / "calm")).steps)
    fate = await unplugged(tmp_path / "gone", first=steps // 2)
    told = [line["event"] for line in fate.log]

    assert [event for event in told if event.startswith("spool.")] == [
        "spool.missing",
        "spool.found",
    ]
    assert told.count("stage.retried") <= 2  # of what was under way; the disk's lane has two


def test_a_rejection_is_not_done_while_its_spool_is_away(tmp_path: Path) -> None:
    """A file whose folder cannot be seen is not taken for one that is in `rejected/` already."""
    spool = Spool(tmp_path / "spool")
    spool.make()
    clock = FakeClock()
    job = Job(
        id=JobId("20261120t231853z-4f7k2m"),
        name=b"a",
        stem=b"a",
        profile="default",
        provider=None,
        base_url=None,
        claimed_at=clock.now(),
    )
    spool.folder(job.id).mkdir()
    spool.root.rename(tmp_path / "away")

    with pytest.raises(OSError, match="No such file"):
        delivery.reject(spool, job, taken=set())


# The clock.


class Shifted(FakeClock):
    """A clock that is wrong by *shift_s*; otherwise it is another one."""

    def __init__(self, clock: FakeClock, shift_s: float) -> None:
        """Show *clock*, wrongly."""
        self._clock = clock
        self._shift_s = shift_s

    def now(self) -> float:
        """Return virtual Unix seconds, with the error."""
        return self._clock.now() + self._shift_s

    def monotonic(self) -> float:
        """Return virtual seconds since the start."""
        return self._clock.monotonic()

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung, by somebody or because time has come."""
        await self._clock.wait(bell, timeout_s)

    async def run(self, is_idle: Callable[[], bool]) -> None:
        """Jump to the next deadline whenever *is_idle* and somebody waits; until cancelled."""
        await self._clock.run(is_idle)


@pytest.mark.anyio
@pytest.mark.parametrize("days", [-30, -3, -1, 1, 30])
async def test_a_clock_that_was_set_between_runs_costs_only_time(tmp_path: Path, days: int) -> None:
    """Whatever day it is at the next start, what runs at the provider is collected, not repeated.

    A month on the job is too old, but its batch is not by the provider's clock: it may finish.
    """
    clock = FakeClock()

    async with simulated(tmp_path, clock=clock, settings=SimulatorSettings(run_s=7_200)) as world:
        await in_flight(world)
        world.clock = Shifted(clock, days * 86_400.0)

        assert await world.drain()

        world.assert_conserved("a.jsonl", ids(3))
        world.assert_bought_once()
        assert len(world.simulator.ledger.creations) == 1
        assert len(world.results("a.jsonl")) == 3
        assert clock.monotonic() < 2.2 * 86_400.0


# Signals.


def workers(daemon: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the daemon's workers."""
    threads = Path(f"/proc/{daemon.pid}/task").glob("*/children")

    return [int(child) for children in threads for child in children.read_text().split()]


def test_a_stage_that_never_ends_does_not_keep_it_running(tmp_path: Path) -> None:
    """SIGTERM ends the process after the grace, whatever a template does, and its workers too."""
    config = configured(tmp_path, "http://127.0.0.1:9/v1")
    inbox = tmp_path / "spool" / "inbox" / "loops"
    (inbox / "thread.txt").write_text("one\n")

    with zipfile.ZipFile(inbox / "worker.zip", "w") as archive:
        archive.writestr("one.txt", "one\n")

    with started("run", "--config", config, OPENAI_API_KEY=KEY) as daemon:
        deadline = time.monotonic() + LIMIT_S

        while not workers(daemon):  # both are planned at once
            assert time.monotonic() < deadline

            with pytest.raises(subprocess.TimeoutExpired):
                daemon.wait(0.05)

        (worker,) = workers(daemon)
        watched = os.pidfd_open(worker)
        daemon.send_signal(signal.SIGTERM)
        said, complaints = daemon.communicate(timeout=LIMIT_S)

        assert (daemon.returncode, complaints) == (0, "")
        assert [line["event"] for line in events(said)][-2:] == [
            "daemon.stopping",
            "daemon.cut_off",
        ]
        assert events(said)[-1]["in_progress"] == 2
        assert select.select([watched], [], [], LIMIT_S)[0]
        os.close(watched)
