"""What goes wrong in an inbox: writers, links, odd names, disks that refuse, death in a claim."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import secrets
import signal
import socket
import sys
import zipfile
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from crash.mortal import Death, Fate, mortal
from promptspool import log, spool
from promptspool.claims import ORIGINAL, Claims
from promptspool.clock import Bell
from promptspool.inbox import CLAIM_RETRY_S, CLAIM_TRIES, CLAIMS_A_LOOK, Inbox
from promptspool.model import JobId
from promptspool.spool import finish_folder, publish, rename_new
from test_inbox import SETTLE_S, Bench, bench_at, settings_of
from world import simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from promptspool.model import Job
    from world import World

_replace = os.replace  # a dropper's own, which no test of the daemon's steps counts

SECRET = b'{"prompt": "the secret of somebody else"}\n'


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    """Ignore SIGIO, as the daemon does, and leave the process's logging as it was."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    signal.signal(signal.SIGIO, before)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return an inbox on a new spool."""
    return bench_at(tmp_path)


def nothing() -> None:
    """Do it."""


@contextmanager
def meddling(
    call: str,
    name: str,
    *,
    before: Callable[[], object] = nothing,
    after: Callable[[], object] = nothing,
) -> Iterator[list[str]]:
    """Do something right before or after the first `os.CALL` of *name*, seen from its folder.

    Yields what was done; the call itself is made as ever, unless *before* raises.
    """
    real = getattr(os, call)
    done: list[str] = []

    def meddled(*arguments: Any, **named: Any) -> Any:
        if done or not arguments or arguments[0] != name:
            return real(*arguments, **named)

        done.append(call)
        before()
        result = real(*arguments, **named)
        after()

        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, meddled)

        yield done


@contextmanager
def refusing(call: str, name: str, number: int) -> Iterator[list[str]]:
    """Let every `os.CALL` of *name*, seen from its folder, fail with this error; yield them."""
    real = getattr(os, call)
    tried: list[str] = []

    def refused(*arguments: Any, **named: Any) -> Any:
        if arguments and arguments[0] == name:
            tried.append(call)

            raise OSError(number, os.strerror(number), name)

        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, refused)

        yield tried


def original(bench: Bench, job: Job) -> bytes:
    """Return what a job was made of."""
    return (bench.spool.folder(job.id) / ORIGINAL).read_bytes()


def settled_at_last(bench: Bench) -> list[Job]:
    """Return the jobs of so many looks that nothing that can be claimed is left."""
    return [job for _ in range(4) for job in bench.look(after_s=60.0)]


def replaced(bench: Bench, name: str, content: bytes) -> None:
    """Put another file in place of one, as a program does that saves by renaming."""
    path = bench.spool.inbox / name
    new = path.with_name(".new")
    new.write_bytes(content)
    _replace(new, path)


def ids(name: str, count: int) -> list[str]:
    """Return the ids of `rows`."""
    return [f"{name}{number}" for number in range(count)]


def rows(name: str, count: int) -> list[dict[str, str]]:
    """Return rows with ids of their own."""
    return [{"id": identity, "prompt": f"Say {identity}"} for identity in ids(name, count)]


# Writers.

STALLING = """
import sys
file = open(sys.argv[1], "ab")
file.write(sys.argv[2].encode()); file.flush()
print(flush=True)
sys.stdin.read()
file.write(sys.argv[3].encode())
"""


@pytest.mark.anyio
async def test_a_writer_that_stalls_for_a_minute_is_waited_for(tmp_path: Path) -> None:
    """A file that another process keeps open for a minute is claimed once, when it is whole."""
    lines = [json.dumps(row) + "\n" for row in rows("q", 6)]
    halves = "".join(lines[:3]) + lines[3][:5], lines[3][5:] + "".join(lines[4:])

    async with simulated(tmp_path) as world:
        world.spool.make()
        path = world.spool.inbox / "slow.jsonl"
        command = [sys.executable, "-c", STALLING, str(path), *halves]
        writer = await anyio.open_process(command, stderr=None)

        async def finish() -> None:
            await world.clock.wait(Bell(), 60.0)
            assert path.exists()
            assert writer.stdin is not None
            await writer.stdin.aclose()
            await writer.wait()

        async with writer, anyio.create_task_group() as tasks:
            assert writer.stdout is not None
            await writer.stdout.receive()
            tasks.start_soon(finish)

            assert await world.drain()

        world.assert_conserved("slow.jsonl", ids("q", 6))
        world.assert_bought_once()


def test_a_writer_that_closes_and_opens_again_is_waited_for(bench: Bench) -> None:
    """Whoever writes again before the file has settled has all the time there is."""
    path = bench.drop("may.txt", b"0\n")

    for number in range(1, 30):
        assert bench.look(after_s=SETTLE_S - 0.1) == []

        with path.open("ab") as file:
            file.write(b"%d\n" % number)
            assert bench.look(after_s=SETTLE_S - 0.1) == []

    (job,) = bench.settled()

    assert original(bench, job).count(b"\n") == 30


def test_what_is_written_after_the_settling_is_a_file_of_its_own(bench: Bench) -> None:
    """A writer who comes back too late to the same name loses nothing: it is a second job."""
    path = bench.drop("may.txt", b"one\n")
    first = bench.settled()

    with path.open("ab") as file:
        file.write(b"two\n")

    second = bench.settled()

    assert [original(bench, job) for job in [*first, *second]] == [b"one\n", b"two\n"]
    assert [job.stem for job in [*first, *second]] == [b"may.txt", b"may.txt-2"]


# Files replaced while they are claimed.


@pytest.mark.parametrize("call", ["open", "rename"])
@pytest.mark.parametrize("how", ["renamed over", "rewritten", "removed"])
def test_a_file_replaced_while_being_claimed_settles_anew(
    bench: Bench, call: str, how: str
) -> None:
    """Between the look and the rename a file may become another, which is claimed when whole."""
    path = bench.drop("may.txt", b"old content\n")
    bench.look()

    def meddle() -> None:
        match how:
            case "renamed over":
                replaced(bench, "may.txt", b"new\n")
            case "rewritten":
                path.write_bytes(b"new\n")
            case "removed":
                path.unlink()

    with meddling(call, "may.txt", before=meddle) as done, capture_logs() as logs:
        assert bench.look(after_s=SETTLE_S) == []

    assert done
    assert logs == []
    assert bench.left() == (set() if how == "removed" else {b"may.txt"})
    assert not list(bench.spool.working.iterdir())

    jobs = settled_at_last(bench)

    assert [original(bench, job) for job in jobs] == ([] if how == "removed" else [b"new\n"])


def test_a_writer_who_opened_just_before_the_claim_may_finish(bench: Bench) -> None:
    """Nothing has changed yet when it is renamed, but somebody is about to: it is put back."""
    path = bench.drop("may.txt", b"old\n")
    bench.look()
    files: list[Any] = []

    with meddling("rename", "may.txt", before=lambda: files.append(path.open("r+b"))):
        assert bench.look(after_s=SETTLE_S) == []

    with files[0] as file:
        file.write(b"new\n")

    assert bench.left() == {b"may.txt"}
    assert [original(bench, job) for job in settled_at_last(bench)] == [b"new\n"]


def test_a_file_dropped_under_the_name_of_one_just_claimed_is_another(bench: Bench) -> None:
    """Between the rename and the row the name is free, and whoever takes it is a job of its own."""
    bench.drop("may.txt", b"one\n")
    bench.look()

    with meddling("rename", "may.txt", after=lambda: bench.drop("may.txt", b"two\n")) as done:
        first = bench.look(after_s=SETTLE_S)

    assert done
    assert [original(bench, job) for job in first] == [b"one\n"]
    assert [original(bench, job) for job in settled_at_last(bench)] == [b"two\n"]


def test_a_file_whose_name_is_taken_again_goes_back_under_another(bench: Bench) -> None:
    """Replaced before the rename, and its name taken after it: both are claimed, each once."""
    bench.drop("reviews/may.csv", b"old content\n")
    bench.drop("reviews/may.csv.toml", b"priority = 7")
    bench.look()

    with meddling(
        "rename",
        "may.csv",
        before=lambda: replaced(bench, "reviews/may.csv", b"new\n"),
        after=lambda: bench.drop("reviews/may.csv", b"newer content\n"),
    ):
        assert bench.look(after_s=SETTLE_S) == []

    assert bench.left() == {
        b"reviews/may.csv",
        b"reviews/may-2.csv",
        b"reviews/may-2.csv.toml",
    }

    jobs = {job.name: job for job in settled_at_last(bench)}

    assert {name: (original(bench, job), job.priority) for name, job in jobs.items()} == {
        b"reviews/may-2.csv": (b"new\n", 7),
        b"reviews/may.csv": (b"newer content\n", 0),
    }


def test_a_sidecar_replaced_while_being_claimed_is_the_one_that_counts(bench: Bench) -> None:
    """A file is asked what its sidecar says that lies beside it when it is claimed, or nothing."""
    bench.drop("may.csv")
    bench.drop("may.csv.toml", b"priority = 7")
    bench.look()

    def meddle() -> None:
        replaced(bench, "may.csv.toml", b"priority = 8")

    with meddling("rename", "may.csv.toml", before=meddle) as done:
        assert bench.look(after_s=SETTLE_S) == []

    assert done
    assert bench.left() == {b"may.csv", b"may.csv.toml"}

    (job,) = settled_at_last(bench)

    assert job.priority == 8


def test_a_sidecar_dropped_at_the_last_moment_is_waited_for(bench: Bench) -> None:
    """A sidecar that the look has not seen is not passed over by the claim."""
    bench.drop("may.csv")
    bench.look()

    with meddling("stat", "may.csv.toml", before=lambda: bench.drop("may.csv.toml", b"priority=7")):
        assert bench.look(after_s=SETTLE_S) == []

    (job,) = settled_at_last(bench)

    assert job.priority == 7


@pytest.mark.parametrize(
    ("error", "tries"), [(errno.EIO, CLAIM_TRIES), (errno.EBUSY, CLAIM_TRIES), (errno.EPERM, 1)]
)
def test_what_may_pass_is_waited_for_a_while(bench: Bench, error: int, tries: int) -> None:
    """A disk that refuses for a moment keeps no file from a drain; one that always does may."""
    bench.drop("may.csv")
    bench.look()

    def refuse(_: int) -> None:
        raise OSError(error, os.strerror(error))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", refuse)

        for number in range(1, tries + 1):
            assert bench.look(after_s=CLAIM_RETRY_S) == []
            assert bench.inbox.waiting == (number < tries)

    assert bench.left() == {b"may.csv"}

    (job,) = settled_at_last(bench)

    assert job.name == b"may.csv"


def test_a_sidecar_that_cannot_be_read_now_is_no_reason_to_reject(bench: Bench) -> None:
    """Too many open files while a sidecar is read: the file waits, and is not asked otherwise."""
    bench.drop("may.csv")
    bench.drop("may.csv.toml", b"priority = 7")
    bench.look()
    opened, real = [], os.open

    def full(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith("sidecar.toml"):
            opened.append(path)

            if len(opened) == 2:  # the first is for the lease
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        return real(path, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", full)
        assert bench.look(after_s=SETTLE_S) == []

    assert bench.left() == {b"may.csv", b"may.csv.toml"}
    assert bench.inbox.waiting == 1

    (job,) = settled_at_last(bench)

    assert (job.priority, job.provider) == (7, "openai")


def test_content_is_on_the_platter_before_it_is_ours(bench: Bench) -> None:
    """File and sidecar are synced before they are moved: a claim is not of content that is lost."""
    status = bench.drop("may.csv").stat(), bench.drop("may.csv.toml", b"priority = 7").stat()
    inodes = {status[0].st_ino: "may.csv", status[1].st_ino: "may.csv.toml"}
    bench.look()
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        steps.append(("fsync", inodes.get(os.fstat(descriptor).st_ino, "ours")))

    def renamed(source: Any, *arguments: Any, **named: Any) -> None:
        rename(source, *arguments, **named)
        steps.append(("rename", str(source)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "rename", renamed)
        assert len(bench.look(after_s=SETTLE_S)) == 1

    for name in inodes.values():
        assert steps.index(("fsync", name)) < steps.index(("rename", name))

    assert steps[-2:] == [("fsync", "ours")] * 2


def test_a_file_rewritten_under_its_old_times_settles_anew(bench: Bench) -> None:
    """The time of the last change cannot be set back, as size and time of writing can."""
    path = bench.drop("may.txt", b"old\n")
    status = path.stat()
    bench.look()

    def meddle() -> None:
        path.write_bytes(b"new\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    with meddling("open", "may.txt", before=meddle):
        assert bench.look(after_s=SETTLE_S) == []

    assert [original(bench, job) for job in settled_at_last(bench)] == [b"new\n"]


# Many files.


def test_ten_thousand_files_are_claimed_once_each(bench: Bench) -> None:
    """However many are dropped at once, each look takes some, and after the last none is left."""
    for number in range(10_000):
        (bench.spool.inbox / f"{number}.txt").write_bytes(b"x\n")

    assert bench.look() == []

    bench.clock.pass_time(SETTLE_S)
    claimed: Counter[bytes] = Counter()
    most = -(-10_000 // CLAIMS_A_LOOK)

    for _ in range(most):
        assert bench.inbox.next_look_at <= bench.clock.monotonic()  # and others get their turn

        jobs = bench.look()
        claimed.update(job.name for job in jobs)

        assert len(jobs) <= CLAIMS_A_LOOK

    assert claimed == Counter(f"{number}.txt".encode() for number in range(10_000))
    assert bench.left() == set()
    assert bench.inbox.waiting == 0
    assert len(list(bench.spool.working.iterdir())) == 10_000


def test_two_ids_that_meet_are_told_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands that are claimed in a second, two may get the same id: one gets another."""
    letters = iter("2" * 12 + "3" * 6)
    monkeypatch.setattr(secrets, "choice", lambda _: next(letters))

    for name in ("a.txt", "b.txt"):
        (bench.spool.inbox / name).write_bytes(b"x\n")

    assert bench.look() == []

    bench.clock.pass_time(SETTLE_S)
    jobs = bench.look()

    assert [job.name for job in jobs] == [b"a.txt", b"b.txt"]
    assert len({job.id for job in jobs}) == 2


@pytest.mark.anyio
async def test_many_files_at_once_are_all_answered(tmp_path: Path) -> None:
    """Whatever is dropped in one moment is all delivered, and none of it is bought twice."""
    count = 40

    async with simulated(tmp_path) as world:
        for number in range(count):
            world.drop(f"{number}.jsonl", rows(f"f{number}-", 1))

        assert await world.drain()

        for number in range(count):
            world.assert_conserved(f"{number}.jsonl", ids(f"f{number}-", 1))

        world.assert_bought_once()
        assert len(world.simulator.ledger.creations) == count


# Links, and what else is no file.


def is_told(world: World, text: bytes) -> bool:
    """Tell whether the provider, or the outbox, has got hold of *text*."""
    places = [world.root / "remote", world.spool.outbox, world.spool.done, world.spool.rejected]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]

    return any(text in path.read_bytes() for path in files)


@pytest.mark.anyio
async def test_a_symlink_to_a_secret_is_never_followed(tmp_path: Path) -> None:
    """Links to files and folders, as files, sidecars and folders, tell nobody what they lead to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jsonl").write_bytes(SECRET)
    (outside / "secret.toml").write_bytes(b'prompt = "the secret of somebody else {prompt}"')

    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", rows("q", 2))
        world.drop("held.jsonl", rows("h", 2))
        inbox = world.spool.inbox
        (inbox / "link.jsonl").symlink_to(outside / "secret.jsonl")
        (inbox / "folder").symlink_to(outside)
        (inbox / "dangling.jsonl").symlink_to(outside / "nothing")
        (inbox / "held.jsonl.toml").symlink_to(outside / "secret.toml")

        assert await world.drain()

        world.assert_conserved("f.jsonl", ids("q", 2))
        assert not is_told(world, b"secret")
        assert {path.name for path in inbox.iterdir()} == {
            "link.jsonl", "folder", "dangling.jsonl", "held.jsonl", "held.jsonl.toml",
        }  # fmt: skip

    assert {path.name for path in outside.iterdir()} == {"secret.jsonl", "secret.toml"}
    assert (outside / "secret.jsonl").read_bytes() == SECRET


@pytest.mark.parametrize("call", ["open", "rename"])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo", "relative link"])
def test_what_takes_the_place_of_a_seen_file_is_put_back(
    bench: Bench, tmp_path: Path, call: str, kind: str
) -> None:
    """What is no file any more when it is claimed is left in the inbox, never looked into."""
    path = bench.drop("may.jsonl", b"content of the same size as the secret is\n")
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(SECRET)
    before = secret.stat()
    bench.look()

    def meddle() -> None:
        path.unlink()

        match kind:
            case "link":
                path.symlink_to(secret)
            case "dangling":
                path.symlink_to(tmp_path / "nothing")
            case "folder":
                (path / "inner").mkdir(parents=True)
            case "fifo":
                os.mkfifo(path)
            case "relative link":
                path.symlink_to("../../secret.jsonl")

    with meddling(call, "may.jsonl", before=meddle) as done:
        assert bench.look(after_s=SETTLE_S) == []

    assert done
    assert settled_at_last(bench) == []
    assert not list(bench.spool.working.iterdir())
    assert os.path.lexists(path)
    assert not path.is_file() or path.is_symlink()
    assert (secret.stat().st_nlink, secret.stat().st_atime_ns) == (1, before.st_atime_ns)


@pytest.mark.parametrize("call", ["mkdir", "open", "rename"])
def test_a_sub_folder_swapped_for_a_link_leads_nowhere(
    bench: Bench, tmp_path: Path, call: str
) -> None:
    """What is taken is from the folder that was seen, wherever its name leads to by now."""
    bench.drop("reviews/may.txt", b"mine\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "may.txt").write_bytes(b"mine\n")
    bench.look()
    reviews = bench.spool.inbox / "reviews"

    def meddle() -> None:
        if not reviews.is_symlink():
            reviews.rename(bench.spool.inbox / ".moved")
            reviews.symlink_to(outside)

    real = getattr(os, call)

    def meddled(*arguments: Any, **named: Any) -> Any:
        if str(arguments[0]).startswith((str(bench.spool.working), "may.txt")):
            meddle()

        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, meddled)
        jobs = bench.look(after_s=SETTLE_S)

    assert reviews.is_symlink()
    assert [path.name for path in outside.iterdir()] == ["may.txt"]
    assert (outside / "may.txt").stat().st_nlink == 1
    assert len(jobs) + len(list((bench.spool.inbox / ".moved").iterdir())) == 1
    assert settled_at_last(bench) == []


def test_a_folder_swapped_for_a_link_while_it_is_listed_is_not_looked_into(
    bench: Bench, tmp_path: Path
) -> None:
    """Between its stat and its listing a folder may become a link, whose names are not read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_bytes(SECRET)
    (bench.spool.inbox / "reviews").mkdir()

    def meddle() -> None:
        (bench.spool.inbox / "reviews").rmdir()
        (bench.spool.inbox / "reviews").symlink_to(outside)

    with meddling("open", "reviews", before=meddle) as done:
        bench.look()

    assert done
    assert bench.inbox.waiting == 0
    assert bench.settled() == []


def test_fifos_sockets_devices_and_folders_are_left_alone(bench: Bench) -> None:
    """Nothing is opened that could block, or do something when it is opened; files go on."""
    inbox = bench.spool.inbox
    os.mkfifo(inbox / "fifo.txt")
    (inbox / "folder.txt").mkdir()
    kinds = {b"fifo.txt", b"socket.txt"}
    place = os.open(inbox, os.O_RDONLY)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{place}/socket.txt")  # its own path would be too long

    os.close(place)

    if os.geteuid() == 0:  # others cannot make one, so nobody drops one there
        os.mknod(inbox / "device.txt", 0o20666, os.makedev(1, 5))
        kinds.add(b"device.txt")

    bench.drop("may.txt")

    with capture_logs() as logs:
        assert [job.name for job in bench.settled()] == [b"may.txt"]

    assert bench.left() == kinds
    assert bench.inbox.waiting == 0
    assert sorted(line["file"].encode() for line in logs) == sorted(kinds)


def test_a_hard_link_is_a_file_whose_other_name_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    """A dropped link takes nothing from the file's other name, which keeps content and mode.

    Whose file it is cannot be told from an inode; that nobody links to a file that he may not write
    to is the kernel's part (fs.protected_hardlinks).
    """
    mine = tmp_path / "mine.txt"
    mine.write_bytes(b"one\n")
    before = mine.stat()
    (bench.spool.inbox / "may.txt").hardlink_to(mine)

    (job,) = bench.settled()

    assert original(bench, job) == b"one\n"
    assert mine.read_bytes() == b"one\n"
    assert (mine.stat().st_mode, mine.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_a_link_in_the_working_folder_is_not_adopted(bench: Bench, tmp_path: Path) -> None:
    """A folder elsewhere that looks like a job is none, and nothing in it is removed."""
    bench.drop("may.txt")
    (job,) = bench.settled()
    elsewhere = bench.spool.folder(job.id).rename(tmp_path / "elsewhere")
    bench.spool.folder(job.id).symlink_to(elsewhere)

    with capture_logs() as logs:
        assert bench.inbox.claims.adopted(set()) == []

    assert [line["event"] for line in logs] == ["inbox.unknown_folder"]
    assert {path.name for path in elsewhere.iterdir()} == {"claim.json", "original"}


def test_a_copy_of_a_working_folder_is_no_second_job(bench: Bench) -> None:
    """A folder whose claim is another's is left for a person: it would be bought twice."""
    bench.drop("may.txt")
    (job,) = bench.settled()
    copy = bench.spool.folder(JobId("20261120t231853z-aaaaaa"))
    copy.mkdir()

    for path in bench.spool.folder(job.id).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())

    assert bench.inbox.claims.adopted({job.id}) == []
    assert (copy / ORIGINAL).exists()


@pytest.mark.anyio
@pytest.mark.parametrize("tree", ["outbox", "done"])
async def test_a_link_in_place_of_a_folder_of_results_is_not_followed(
    tmp_path: Path, tree: str
) -> None:
    """Nothing is written outside of the spool through a folder's name; results get another."""
    profiles = {"profiles": {"reviews": {"model": "gpt-5-mini"}}}
    outside = tmp_path / "outside"
    outside.mkdir()

    async with simulated(tmp_path, overrides=profiles) as world:
        world.drop("reviews/f.jsonl", rows("q", 2))
        (getattr(world.spool, tree) / "reviews").symlink_to(outside)

        assert await world.drain()

        assert list(outside.iterdir()) == []
        world.assert_conserved("reviews-2/f.jsonl", ids("q", 2))
        world.assert_bought_once()


@pytest.mark.anyio
async def test_names_inside_an_archive_lead_nowhere(tmp_path: Path) -> None:
    """Members that are called like paths become answers in the outbox, and nothing else."""
    members = ["../../evil.txt", f"{gettempdir()}/evil.txt", "a/../../../evil.txt", "link.txt"]
    packed = io.BytesIO()

    with zipfile.ZipFile(packed, "w") as archive:
        for member in members[:3]:
            archive.writestr(member, "Say it")

        link = zipfile.ZipInfo(members[3])
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "secret"))

    (tmp_path / "secret").write_bytes(SECRET)
    profiles = {"profiles": {"default": {"model": "m", "answers": ["text"]}}}

    async with simulated(tmp_path / "world", overrides=profiles) as world:
        world.drop("f.zip", packed.getvalue())

        assert await world.drain()

        assert [line["custom_id"] for line in world.results("f.zip")] == members[:3]
        assert [line["custom_id"] for line in world.errors("f.zip")] == members[3:]
        assert len(entries(world.spool.outbox / "f.zip.answers")) == 3
        assert not is_told(world, b"somebody else")

    assert entries(tmp_path) == {"secret", "world"}
    assert entries(tmp_path / "world") == {"key", "remote", "spool"}
    assert "evil.txt" not in entries(Path(gettempdir()))


def entries(folder: Path) -> set[str]:
    """Return the names in a folder."""
    return {path.name for path in folder.iterdir()}


# Names.

ODD_NAMES = [
    "new\nline.jsonl",
    "esc\x1b[2J\x07.jsonl",
    os.fsdecode(b"caf\xe9\x9b.jsonl"),
    'quote"{"event":"x"}\r\n.jsonl',
    "n" * 216 + ".jsonl",
]


@pytest.mark.anyio
@pytest.mark.parametrize("format_", ["json", "console"])
async def test_odd_names_are_only_names(tmp_path: Path, format_: str) -> None:
    """Newlines, control characters, bytes: delivered under them, one event a line, ids as ever."""
    stream = io.StringIO()
    log.configure("debug", format_, stream)
    asked = [{"prompt": "one"}, {"prompt": "two"}]

    async with simulated(tmp_path) as world:
        for name in ODD_NAMES:
            world.drop(name, asked)
            world.drop(f"bad{name}", b"nothing\n")

        assert await world.drain()

        for name in ODD_NAMES:
            told = [line["custom_id"] for line in world.results(name)]
            world.assert_conserved(name, told)
            assert len(told) == 2
            assert (world.spool.done / name).exists()
            rejection = world.rejection(f"bad{name}")
            assert rejection is not None
            assert rejection["file"] == os.fsencode(f"bad{name}").decode(
                "utf-8", "backslashreplace"
            )

        world.assert_bought_once()
        requests = world.simulator.ledger.requests
        assert all(identity.replace("-", "").isalnum() for identity in requests)
        assert len(requests) == 2 * len(ODD_NAMES)

    lines = stream.getvalue().split("\n")
    assert sum("job.delivered" in line for line in lines) == len(ODD_NAMES)
    assert not any("\x1b" in line or "\x07" in line for line in lines)
    is_event = json.loads if format_ == "json" else (lambda line: line.startswith("20") or 1 / 0)
    assert all(is_event(line) for line in lines if line)


@pytest.mark.anyio
async def test_names_that_differ_in_case_alone_are_two_jobs(tmp_path: Path) -> None:
    """`A.jsonl` and `a.jsonl` have their own answers, originals and batches."""
    async with simulated(tmp_path) as world:
        world.drop("A.jsonl", rows("upper", 2))
        world.drop("a.jsonl", rows("lower", 3))

        assert await world.drain()

        world.assert_conserved("A.jsonl", ids("upper", 2))
        world.assert_conserved("a.jsonl", ids("lower", 3))
        world.assert_bought_once()
        assert {path.name for path in world.spool.done.iterdir()} == {"A.jsonl", "a.jsonl"}


TAKEN = [
    "done/f.jsonl",
    "done/f.jsonl.toml",
    "rejected/f.jsonl",
    "rejected/f.jsonl.rejected.json",
    "outbox/f.jsonl.results.jsonl",
    "outbox/f.jsonl.summary.json",
    "outbox/f.jsonl.answers/1.txt",
]


@pytest.mark.anyio
@pytest.mark.parametrize("taken", TAKEN)
async def test_a_name_that_is_taken_is_left_to_whoever_has_it(tmp_path: Path, taken: str) -> None:
    """What is in `done/`, `rejected/` or `outbox/` already stays; the new file gets a number."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", rows("q", 2))
        there = world.spool.root / taken
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(b"precious")

        assert await world.drain()

        assert there.read_bytes() == b"precious"
        world.assert_conserved("f.jsonl-2", ids("q", 2))
        world.assert_bought_once()
        assert (world.spool.done / "f.jsonl-2").exists()


@pytest.mark.parametrize("length", [200, 249, 250, 251, 255])
def test_a_name_of_any_length_is_claimed(bench: Bench, length: int) -> None:
    """The longest names, which have no room for a sidecar's, are claimed like others."""
    bench.drop("x" * length)

    assert [len(job.name) for job in bench.settled()] == [length]


# Files that cannot be taken.


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EROFS, errno.EXDEV])
def test_a_file_that_cannot_be_moved_is_told_of_once(bench: Bench, number: int) -> None:
    """It is tried again at the pace of a rescan, keeps nobody waiting, and others are claimed."""
    bench.drop("stuck.csv")
    bench.drop("stuck.csv.toml", b"priority = 7")
    bench.drop("may.txt")
    rescan = bench.inbox.settings.spool.rescan
    bench.look()

    with refusing("rename", "stuck.csv", number) as tried, capture_logs() as logs:
        assert [job.name for job in bench.look(after_s=SETTLE_S)] == [b"may.txt"]

        for _ in range(100):
            assert bench.inbox.waiting == 0
            assert bench.inbox.next_look_at > bench.clock.monotonic()
            assert bench.look(after_s=rescan / 10) == []

    assert [(line["event"], line["file"]) for line in logs] == [("inbox.unclaimed", "stuck.csv")]
    assert logs[0]["reason"] == os.strerror(number)
    assert len(tried) <= 11
    assert bench.left() == {b"stuck.csv", b"stuck.csv.toml"}
    assert len(list(bench.spool.working.iterdir())) == 1

    (job,) = settled_at_last(bench)

    assert (job.name, job.priority) == (b"stuck.csv", 7)


def test_another_reason_is_told_again(bench: Bench) -> None:
    """A file that is stuck for another reason than before is worth another line."""
    bench.drop("stuck.txt")
    bench.look()
    rescan = bench.inbox.settings.spool.rescan

    with capture_logs() as logs:
        for number in (errno.EPERM, errno.EPERM, errno.EROFS, errno.EROFS, errno.EPERM):
            with refusing("rename", "stuck.txt", number):
                bench.look(after_s=rescan)

    assert [line["reason"] for line in logs] == [
        os.strerror(number) for number in (errno.EPERM, errno.EROFS, errno.EPERM)
    ]


def test_a_stuck_file_that_is_replaced_is_tried_at_once(bench: Bench) -> None:
    """What was refused was another file."""
    bench.drop("may.txt", b"one\n")
    bench.look()

    with refusing("rename", "may.txt", errno.EPERM):
        bench.look(after_s=SETTLE_S)

    replaced(bench, "may.txt", b"two\n")

    assert [original(bench, job) for job in bench.settled()] == [b"two\n"]


@pytest.mark.anyio
async def test_a_drain_ends_without_a_file_that_cannot_be_moved(tmp_path: Path) -> None:
    """All other work is done, the file stays where it is, and the next drain takes it."""
    async with simulated(tmp_path) as world:
        world.drop("stuck.jsonl", rows("s", 2))
        world.drop("f.jsonl", rows("q", 2))

        with refusing("rename", "stuck.jsonl", errno.EPERM), capture_logs() as logs:
            assert await world.drain()

        world.assert_conserved("f.jsonl", ids("q", 2))
        assert (world.spool.inbox / "stuck.jsonl").exists()
        assert [line["event"] for line in logs].count("inbox.unclaimed") == 1

        assert await world.drain()

        world.assert_conserved("stuck.jsonl", ids("s", 2))
        world.assert_bought_once()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EDQUOT])
def test_a_claim_that_the_machine_refuses_is_waited_for(bench: Bench, number: int) -> None:
    """A full disk is nothing of the file's: it is told once, and the file is waited for."""
    bench.drop("may.txt")
    bench.look()

    with refusing("rename", "may.txt", number), capture_logs() as logs:
        for _ in range(3):
            assert bench.look(after_s=CLAIM_RETRY_S) == []
            assert bench.inbox.waiting == 1
            assert bench.inbox.next_look_at == bench.clock.monotonic() + CLAIM_RETRY_S

    assert [line["reason"] for line in logs] == [os.strerror(number)]
    assert len(bench.look(after_s=CLAIM_RETRY_S)) == 1


def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_not_unreadable(
    bench: Bench,
) -> None:
    """Too many open files are nothing of the file's, which is waited for, and nobody is blamed."""
    bench.drop("may.txt")
    bench.drop("zoo.txt")
    bench.look()

    with refusing("open", "may.txt", errno.EMFILE), capture_logs() as logs:
        assert [job.name for job in bench.look(after_s=SETTLE_S)] == [b"zoo.txt"]

    assert [line["event"] for line in logs] == ["inbox.unclaimed"]
    assert bench.inbox.waiting == 1
    assert len(bench.look(after_s=CLAIM_RETRY_S)) == 1


def test_a_lone_sidecar_is_told_of_before_a_drain_ends(bench: Bench) -> None:
    """Whoever drains learns at once what is left, and learns it once."""
    bench.drop("may.csv.toml", b"priority = 7")
    bench.drop("june.csv")
    bench.drop("june.csv.toml", b"priority = 7")
    bench.settled()

    with capture_logs() as logs:
        bench.inbox.tell_left()
        bench.inbox.tell_left()

    assert [(line["event"], line["file"]) for line in logs] == [
        ("inbox.lone_sidecar", "may.csv.toml")
    ]


@pytest.mark.anyio
async def test_a_drain_tells_of_a_lone_sidecar(tmp_path: Path) -> None:
    """A sidecar whose file never came is told of by the drain that ends without it."""
    async with simulated(tmp_path) as world:
        world.drop("g.jsonl.toml", b"priority = 7")

        with capture_logs() as logs:
            assert await world.drain()

        assert [line["file"] for line in logs if line["event"] == "inbox.lone_sidecar"] == [
            "g.jsonl.toml"
        ]


# Renames that replace nothing.


@pytest.mark.parametrize("is_known", [True, False], ids=["kernel", "without"])
@pytest.mark.parametrize("there", ["file", "empty folder", "folder", "broken link"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_rename_replaces_nothing(
    tmp_path: Path, kind: str, there: str, *, is_known: bool
) -> None:
    """Whatever has the name keeps it, with the kernel's own call or without it."""
    source, target = tmp_path / "source", tmp_path / "target"
    _make(source, kind)

    with pytest.MonkeyPatch.context() as patch:
        if not is_known:
            patch.setattr(spool, "_renameat2", _unknown)

        _make(target, there)
        before = target.lstat()

        with pytest.raises(FileExistsError):
            rename_new(source, target)

        assert target.lstat().st_ino == before.st_ino
        rename_new(source, tmp_path / "free")

    assert not os.path.lexists(source)
    assert os.path.lexists(tmp_path / "free")


def _make(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_bytes(b"content")
        case "folder":
            (path / "inner").mkdir(parents=True)
        case "empty folder":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")


def _unknown(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_a_folder_is_published_over_no_folder_made_meanwhile(tmp_path: Path) -> None:
    """An empty folder that a person makes at the last moment is not replaced by answers."""
    part, folder, target = tmp_path / "a.part", tmp_path / "a", tmp_path / "public"
    part.mkdir()
    (part / "1.txt").write_bytes(b"answer")
    finish_folder(part, folder)
    real = spool._renameat2  # noqa: SLF001 - the last moment

    def late(*arguments: Any) -> None:
        target.mkdir()
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_renameat2", late)

        with pytest.raises(FileExistsError):
            publish(folder, target)

    assert list(target.iterdir()) == []
    assert (folder / "1.txt").exists()


# Death in a claim.


@dataclass
class Dropper:
    """Somebody who changes a file while it is claimed, and knows what must come out of it."""

    bench: Bench
    how: str
    alive: list[bytes]

    def before(self) -> None:
        """Put another file in place."""
        if self.how != "left alone":
            replaced(self.bench, "reviews/may.csv", b"second\n")
            self.alive = [b"second\n"]

    def after(self) -> None:
        """Take the name again."""
        if self.how == "replaced twice":
            (self.bench.spool.inbox / "reviews" / "may.csv").write_bytes(b"the third\n")
            self.alive.append(b"the third\n")


def claimed_by(bench: Bench, dropper: Dropper, fate: Fate) -> None:
    """Claim one file with a sidecar, or die."""
    bench.look()

    with (
        mortal(fate, bench.spool.root),
        meddling("rename", "may.csv", before=dropper.before, after=dropper.after),
        suppress(Death),
    ):
        bench.look(after_s=SETTLE_S)


def prepared(root: Path, how: str) -> tuple[Bench, Dropper]:
    """Return an inbox with a file and its sidecar."""
    bench = bench_at(root)
    bench.drop("reviews/may.csv", b"the first\n")
    bench.drop("reviews/may.csv.toml", b"priority = 7")

    return bench, Dropper(bench, how, [b"the first\n"])


@pytest.mark.parametrize("how", ["left alone", "replaced", "replaced twice"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_death_at_any_step_of_a_claim_loses_and_doubles_nothing(
    tmp_path: Path, how: str, *, after: bool
) -> None:
    """Whatever step of a claim, or of taking it back, is the last: each file is one job at last."""
    whole = Fate()
    claimed_by(*prepared(tmp_path / "whole", how), whole)

    assert len(whole.steps) > 8

    for at in range(1, len(whole.steps) + 1):
        bench, dropper = prepared(tmp_path / str(at), how)
        fate = Fate(at=at, after=after)
        claimed_by(bench, dropper, fate)
        assert fate.is_dead

        claims = Claims(bench.spool, settings_of(bench.spool, reviews="m"), bench.clock)
        bench.inbox = Inbox(claims, Bell())
        jobs = [*claims.adopted(set()), *settled_at_last(bench)]
        note = f"died {'after' if after else 'before'} step {at}: {fate.steps[-1]}"

        asked = sorted((original(bench, job), job.priority) for job in jobs)

        assert asked == [*zip(dropper.alive, (7, 0), strict=False)], note
        assert bench.left() == set(), note
        assert {path.name for path in bench.spool.working.iterdir()} == {job.id for job in jobs}
        assert claims.adopted({job.id for job in jobs}) == []


def test_a_claim_cut_off_before_its_last_look_is_looked_at_again(bench: Bench) -> None:
    """What was moved but has not the size that was found whole goes back, to settle anew."""
    bench.drop("may.csv", b"all of it\n")
    bench.drop("may.csv.toml", b"priority = 7")
    (job,) = bench.settled()
    (bench.spool.folder(job.id) / ORIGINAL).write_bytes(b"half")

    assert bench.inbox.claims.adopted(set()) == []
    assert bench.left() == {b"may.csv", b"may.csv.toml"}


def test_a_claim_that_is_planned_stays_a_job(bench: Bench) -> None:
    """Batches may be bought of it by then, so it never goes back, whatever the file looks like."""
    bench.drop("may.csv", b"all of it\n")
    (job,) = bench.settled()
    folder = bench.spool.folder(job.id)
    (folder / ORIGINAL).write_bytes(b"half")
    (folder / "manifest.json").write_bytes(b"{}")

    assert bench.inbox.claims.adopted(set()) == [job]
