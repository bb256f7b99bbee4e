from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from promptspool.claims import Claims, mint
from promptspool.clock import Bell
from promptspool.inbox import (
    CLAIM_RETRY_S,
    CLAIMS_A_LOOK,
    CLAIMS_AT_ONCE,
    LONE_SIDECAR_S,
    WRITER_WARNING_S,
    Inbox,
    is_ignored,
)
from promptspool.model import JobId, JobStatus, shown
from promptspool.names import Writer, writer_of
from promptspool.settings import Settings
from promptspool.spool import Spool
from promptspool.wire import Claim
from world import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from promptspool.model import Job

NOBODY = 65534
SETTLE_S = 2.0


def settings_of(spool: Spool, **profiles: str) -> Settings:
    """Return a configuration with one provider, and profiles that use it."""
    return Settings(
        spool={"path": spool.root, "settle": SETTLE_S},  # type: ignore[arg-type]
        providers={"openai": {"base_url": "https://api.example.com/v1"}},  # type: ignore[dict-item]
        profiles={
            name: {"model": model}  # type: ignore[misc]
            for name, model in {"default": "m", **profiles}.items()
        },
    )


@dataclass
class Bench:
    """An inbox, its spool and its clock."""

    spool: Spool
    inbox: Inbox
    clock: FakeClock

    def drop(self, name: str | bytes, content: bytes = b"hello\n") -> Path:
        """Put a file into the inbox."""
        path = self.spool.inbox / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

        return path

    def look(self, *, after_s: float = 0.0) -> list[Job]:
        """Look at the inbox when some time has passed."""
        self.clock.pass_time(after_s)

        return self.inbox.look()

    def settled(self) -> list[Job]:
        """Look twice, as far apart as it takes for what is there to be whole."""
        return [*self.look(), *self.look(after_s=SETTLE_S)]

    def left(self) -> set[bytes]:
        """Return the names of what is still in the inbox, folders apart."""
        inbox = self.spool.inbox

        return {
            os.fsencode(path.relative_to(inbox)) for path in inbox.rglob("*") if not path.is_dir()
        }


def bench_at(root: Path, clock: FakeClock | None = None) -> Bench:
    """Return an inbox on a new spool."""
    spool = Spool(root / "spool")
    spool.make()
    clock = clock or FakeClock()
    inbox = Inbox(Claims(spool, settings_of(spool, reviews="m"), clock), Bell())

    return Bench(spool, inbox, clock)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return an inbox on a new spool."""
    return bench_at(tmp_path)


@pytest.fixture(autouse=True)
def _deaf_to_leases() -> Iterator[None]:
    """Ignore SIGIO, as the daemon does: a late writer would end the tests."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


# When a file is whole.


def test_a_file_is_claimed_when_it_looked_the_same_twice(bench: Bench) -> None:
    """Two looks at least the settling time apart make a file a job, and no look before."""
    bench.drop("may.txt")

    assert bench.look() == []
    assert bench.look(after_s=SETTLE_S - 0.1) == []
    assert bench.inbox.waiting == 1

    jobs = bench.look(after_s=0.1)

    assert [job.name for job in jobs] == [b"may.txt"]
    assert bench.left() == set()
    assert bench.inbox.waiting == 0
    assert bench.look(after_s=SETTLE_S) == []


def test_a_look_says_when_to_look_again(bench: Bench) -> None:
    """With nothing there the inbox waits for the rescan, with a new file until it may be whole."""
    bench.look()

    assert bench.inbox.next_look_at == bench.clock.monotonic() + 60

    bench.drop("may.txt")
    bench.look(after_s=1.0)

    assert bench.inbox.next_look_at == bench.clock.monotonic() + SETTLE_S


def test_a_growing_file_is_left_alone(bench: Bench) -> None:
    """A file that changes between looks is never whole, however often it is looked at."""
    path = bench.drop("may.txt")

    for number in range(10):
        assert bench.look(after_s=SETTLE_S) == []
        path.write_bytes(b"x" * number)

    assert bench.look(after_s=SETTLE_S) == []
    assert len(bench.look(after_s=SETTLE_S)) == 1


def test_a_file_that_was_replaced_settles_anew(bench: Bench) -> None:
    """Another file of the same size and name is another file."""
    path = bench.drop("may.txt", b"one")
    bench.look()
    other = bench.drop(".other", b"two")
    other.replace(path)

    assert bench.look(after_s=SETTLE_S) == []

    jobs = bench.look(after_s=SETTLE_S)

    assert (bench.spool.folder(jobs[0].id) / "original").read_bytes() == b"two"


def test_one_look_is_not_enough_even_without_settling(tmp_path: Path) -> None:
    """With a settling time of zero a file is still looked at twice."""
    bench = bench_at(tmp_path)
    settings = bench.inbox.settings
    still = settings.spool.model_copy(update={"settle": 0.0})
    bench.inbox.settings = settings.model_copy(update={"spool": still})
    bench.drop("may.txt")

    assert bench.look() == []
    assert len(bench.look(after_s=0.001)) == 1


def test_a_file_that_we_hold_open_for_writing_is_waited_for(bench: Bench) -> None:
    """A copy that stalls is not claimed: nobody may have a file open for writing."""
    path = bench.drop("may.txt")
    descriptor = os.open(path, os.O_WRONLY)

    try:
        assert writer_of(path) is Writer.SOMEBODY

        for _ in range(5):
            assert bench.look(after_s=WRITER_WARNING_S) == []
            assert bench.inbox.next_look_at <= bench.clock.monotonic() + 2 * SETTLE_S

        assert bench.inbox.waiting == 1
    finally:
        os.close(descriptor)

    assert writer_of(path) is Writer.NONE
    assert len(bench.look(after_s=SETTLE_S)) == 1


def test_a_file_that_another_process_writes_is_waited_for(bench: Bench) -> None:
    """The kernel's answer counts for every process on this machine."""
    path = bench.drop("may.txt")
    code = "import sys; file = open(sys.argv[1], 'ab'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]

    with subprocess.Popen(  # noqa: S603 - our own interpreter
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()

        assert writer_of(path) is Writer.SOMEBODY
        assert bench.settled() == []

        writer.communicate()

    assert len(bench.look(after_s=SETTLE_S)) == 1


def test_a_reader_disturbs_nobody(bench: Bench) -> None:
    """A file that somebody reads is claimed all the same."""
    path = bench.drop("may.txt")

    with path.open("rb"):
        assert writer_of(path) is Writer.NONE
        assert len(bench.settled()) == 1


def test_what_cannot_be_opened_is_nobodys(tmp_path: Path) -> None:
    """A missing file and a symlink are gone, a pipe gives no answer, and none an exception."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")

    assert writer_of(tmp_path / "missing") is Writer.GONE
    assert writer_of(tmp_path / "link") is Writer.GONE
    assert writer_of(tmp_path / "pipe") is not Writer.SOMEBODY  # and does not wait for one


@contextmanager
def as_nobody(build: Callable[[Path], Bench]) -> Iterator[Bench]:
    """Yield a bench of somebody who may not read everything, which root always may."""
    root = Path(mkdtemp(prefix="promptspool-test-"))
    is_root = os.geteuid() == 0

    try:
        if is_root:
            os.chown(root, NOBODY, NOBODY)
            os.seteuid(NOBODY)

        yield build(root)
    finally:
        if is_root:
            os.seteuid(0)

        shutil.rmtree(root)


def test_an_unreadable_file_stays_and_disturbs_nobody() -> None:
    """A file that we may not read stays where it is, is not waited for, and others are claimed."""
    with as_nobody(bench_at) as bench:
        locked = bench.drop("locked.txt")
        locked.chmod(0)
        bench.drop("may.txt")

        assert [job.name for job in bench.settled()] == [b"may.txt"]
        assert bench.left() == {b"locked.txt"}
        assert bench.inbox.waiting == 0

        locked.chmod(0o600)

        assert [job.name for job in bench.settled()] == [b"locked.txt"]


def test_an_unreadable_folder_disturbs_nobody() -> None:
    """A folder that we may not list keeps its files to itself, and all others are claimed."""
    with as_nobody(bench_at) as bench:
        locked = bench.drop("reviews/locked.txt").parent
        bench.drop("may.txt")
        bench.drop("zoo/june.txt")
        locked.chmod(0)

        try:
            assert {job.name for job in bench.settled()} == {b"may.txt", b"zoo/june.txt"}
        finally:
            locked.chmod(0o700)

        assert [job.name for job in bench.settled()] == [b"reviews/locked.txt"]


def test_a_folder_that_goes_away_takes_no_claims_with_it(tmp_path: Path) -> None:
    """What was claimed before the inbox changed under a look is told, not lost."""
    clock = FakeClock()
    bench = bench_at(tmp_path, clock)
    bench.drop("a/soon-gone.txt")
    bench.drop("b.txt")
    bench.look()
    folder = bench.spool.inbox / "a"

    class Meddler(FakeClock):
        """A clock whose reading, which every claim asks for, takes a folder away."""

        def now(self) -> float:
            shutil.rmtree(folder, ignore_errors=True)

            return clock.now()

        def monotonic(self) -> float:
            return clock.monotonic()

    bench.inbox.clock = bench.inbox.claims.clock = Meddler()

    assert [job.name for job in bench.look(after_s=SETTLE_S)] == [b"b.txt"]


# What is looked at.


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        ".may.txt.swp",
        "may.part",
        "may.csv.partial",
        "may.filepart",
        "may.tmp",
        "may.crdownload",
        "may.txt~",
        ".folder/may.txt",
        "@eaDir/may.txt",
    ],
)
def test_files_under_way_are_ignored(bench: Bench, name: str) -> None:
    """Hidden names and those of unfinished transfers are left where they are."""
    path = bench.drop(name)

    assert bench.settled() == []
    assert bench.inbox.waiting == 0
    assert path.exists()


def test_a_finished_transfer_is_claimed_under_its_own_name(bench: Bench) -> None:
    """A transfer that ends with a rename is a file from then on."""
    part = bench.drop("may.csv.part")
    bench.settled()
    part.rename(part.with_suffix(""))

    assert [job.name for job in bench.settled()] == [b"may.csv"]
    assert not is_ignored("may.csv")


def test_nothing_but_files_is_touched(bench: Bench, tmp_path: Path) -> None:
    """Symlinks, pipes and folders are never followed, opened or moved."""
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"not for you")
    inbox = bench.spool.inbox
    (inbox / "link.txt").symlink_to(secret)
    (inbox / "folder-link").symlink_to(tmp_path)
    (inbox / "broken.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(inbox / "pipe.txt")
    (inbox / "empty.txt").mkdir()

    assert bench.settled() == []
    assert {path.name for path in inbox.iterdir()} == {
        "link.txt",
        "folder-link",
        "broken.txt",
        "pipe.txt",
        "empty.txt",
    }
    assert secret.read_bytes() == b"not for you"


def test_the_first_folder_is_the_profile_and_deeper_ones_are_kept(bench: Bench) -> None:
    """A file takes the profile of its top folder, and its whole path below the inbox as a name."""
    bench.drop("may.txt")
    bench.drop("reviews/may.txt")
    bench.drop("reviews/2026/may/a.txt")
    bench.drop("unknown/may.txt")
    jobs = {job.name: job for job in bench.settled()}

    assert {name: (job.profile, job.provider) for name, job in jobs.items()} == {
        b"may.txt": ("default", "openai"),
        b"reviews/may.txt": ("reviews", "openai"),
        b"reviews/2026/may/a.txt": ("reviews", "openai"),
        b"unknown/may.txt": ("unknown", None),
    }
    assert jobs[b"may.txt"].base_url == "https://api.example.com/v1"
    assert jobs[b"unknown/may.txt"].base_url is None
    assert (bench.spool.inbox / "reviews" / "2026" / "may").is_dir()


def test_names_need_be_no_text(bench: Bench) -> None:
    """A name is bytes: it comes through a claim and back from the disk unchanged."""
    names = {b"caf\xe9.txt", b"new\nline.txt", b"caf\xe9/a.txt", "日本.txt".encode()}

    for name in names:
        bench.drop(name)

    jobs = bench.settled()

    assert {job.name for job in jobs} == names
    assert {job.name for job in bench.inbox.claims.adopted(set())} == names
    assert shown(b"caf\xe9.txt") == "caf\\xe9.txt"

    for job in jobs:
        assert job.profile.encode()


# Claims.


def test_a_claim_leaves_all_that_a_row_needs(bench: Bench) -> None:
    """A claimed folder holds the untouched original and what its row is rebuilt from."""
    bench.drop("reviews/may.txt", b"prompt\n")
    (job,) = bench.settled()
    folder = bench.spool.folder(job.id)

    assert {path.name for path in folder.iterdir()} == {"claim.json", "original"}
    assert (folder / "original").read_bytes() == b"prompt\n"
    assert msgspec.json.decode((folder / "claim.json").read_bytes(), type=Claim) == Claim(
        job=job.id,
        name=b"reviews/may.txt",
        stem=b"reviews/may.txt",
        profile="reviews",
        provider="openai",
        base_url="https://api.example.com/v1",
        claimed_at=bench.clock.now(),
        size_bytes=7,
    )
    assert (job.status, job.due_at, job.size_bytes) == (JobStatus.CLAIMED, bench.clock.now(), 7)


def test_files_of_one_name_get_stems_of_their_own(bench: Bench) -> None:
    """A second file of a name is numbered while the first is under way and when it is done."""
    bench.drop("may.txt")
    (first,) = bench.settled()
    bench.drop("may.txt")
    (second,) = bench.settled()
    (bench.spool.done / "may.txt-3").write_bytes(b"")
    bench.drop("may.txt")
    (third,) = bench.settled()

    assert [job.stem for job in (first, second, third)] == [b"may.txt", b"may.txt-2", b"may.txt-4"]
    assert {job.name for job in (first, second, third)} == {b"may.txt"}
    assert bench.inbox.claims.taken == {b"may.txt", b"may.txt-2", b"may.txt-4"}


def test_a_name_that_leaves_no_room_is_refused_before_it_costs_anything(bench: Bench) -> None:
    """A file whose results could not be named after it is claimed to be rejected."""
    bench.drop("x" * 250)
    bench.drop("y" * 200)
    jobs = {job.name[:1]: job for job in bench.settled()}

    def refused(job: Job) -> str | None:
        path = bench.spool.folder(job.id) / "claim.json"

        return msgspec.json.decode(path.read_bytes(), type=Claim).refused

    assert "too long" in (refused(jobs[b"x"]) or "")
    assert refused(jobs[b"y"]) is None


def test_a_thousand_files_are_claimed_a_few_hundred_a_look(bench: Bench) -> None:
    """However many files are dropped at once, each is claimed once, and others get their turn."""
    for number in range(1000):
        (bench.spool.inbox / f"{number}.txt").write_bytes(b"x\n")

    jobs = bench.look()
    looks = 0

    while bench.left():
        found = bench.look(after_s=SETTLE_S)
        jobs.extend(found)
        looks += 1

        assert 0 < len(found) <= CLAIMS_A_LOOK
        assert looks < 10
        assert bench.inbox.next_look_at == bench.clock.monotonic() or not bench.left()

    assert {job.name for job in jobs} == {f"{number}.txt".encode() for number in range(1000)}
    assert len({job.id for job in jobs}) == 1000
    assert len(list(bench.spool.working.iterdir())) == 1000


def test_a_claim_that_the_disk_refuses_leaves_the_file(bench: Bench) -> None:
    """If `working/` takes no folder, the file stays in the inbox and is claimed later."""
    bench.drop("may.txt")
    working = bench.spool.working
    working.rmdir()
    working.write_bytes(b"")  # in the way

    assert bench.settled() == []
    assert bench.left() == {b"may.txt"}

    working.unlink()
    working.mkdir()

    assert len(bench.look(after_s=CLAIM_RETRY_S)) == 1


def test_ids_are_minted_from_time() -> None:
    """Two ids of one moment differ in their random part alone."""
    first, second = mint(0.0), mint(0.5)

    assert first[:17] == second[:17] == "19700101t000000z-"
    assert first != second


# After a crash.


def claim_of(bench: Bench, name: str) -> tuple[JobId, Path]:
    """Claim a file as a process does that dies before its row is written."""
    bench.drop(name)
    (job,) = bench.settled()

    return job.id, bench.spool.folder(job.id)


def test_a_claimed_folder_without_a_row_becomes_the_same_job(bench: Bench) -> None:
    """Whatever is forgotten, the folder tells the same job again, until its row is known."""
    bench.drop("reviews/may.txt")
    (job,) = bench.settled()

    assert bench.inbox.claims.adopted(set()) == [job]
    assert bench.inbox.claims.adopted(set()) == [job]
    assert bench.inbox.claims.adopted({job.id}) == []


def test_half_made_claims_are_swept_away(bench: Bench) -> None:
    """A folder that the original never reached is nothing, and the file is still in the inbox."""
    empty = bench.spool.working / "20261120t231853z-aaaaaa"
    empty.mkdir()
    _, torn = claim_of(bench, "c.txt")
    (torn / "original").unlink()
    (torn / "claim.json").write_bytes(b"{")
    _, claimed = claim_of(bench, "b.txt")
    (claimed / "original").rename(bench.spool.inbox / "b.txt")
    (bench.spool.working / ".probe").write_bytes(b"")

    assert bench.inbox.claims.adopted(set()) == []
    assert not empty.exists()
    assert not claimed.exists()
    assert not torn.exists()
    assert b"b.txt" in bench.left()


def test_a_delivered_folder_is_finished_and_not_started_again(bench: Bench) -> None:
    """A folder whose summary is written is settled, with its original there or moved on."""
    job, folder = claim_of(bench, "may.txt")
    (folder / "summary.json").write_bytes(b"{}")

    assert [(one.id, one.status) for one in bench.inbox.claims.adopted(set())] == [
        (job, JobStatus.SETTLED),
    ]

    (folder / "original").unlink()

    assert [(one.id, one.status) for one in bench.inbox.claims.adopted(set())] == [
        (job, JobStatus.SETTLED),
    ]


def test_an_original_that_nobody_can_explain_is_kept(bench: Bench) -> None:
    """A folder with an original and no readable claim is left for a person."""
    _, folder = claim_of(bench, "may.txt")
    (folder / "claim.json").write_bytes(b"not json")

    assert bench.inbox.claims.adopted(set()) == []
    assert (folder / "original").read_bytes() == b"hello\n"


# Sidecars.


def test_a_sidecar_goes_with_its_file(bench: Bench) -> None:
    """A file and its sidecar are claimed as one, and what it says is pinned by the claim."""
    bench.drop("reviews/may.csv")
    bench.drop("reviews/may.csv.toml", b"priority = 7")

    (job,) = bench.settled()

    assert job.name == b"reviews/may.csv"
    assert job.priority == 7
    assert (bench.spool.folder(job.id) / "sidecar.toml").read_bytes() == b"priority = 7"
    assert bench.left() == set()


def test_a_file_waits_until_its_sidecar_is_whole(bench: Bench) -> None:
    """A sidecar that still changes keeps its file from being claimed without it."""
    bench.drop("may.csv")
    bench.look()
    sidecar = bench.drop("may.csv.toml", b"priority = 7")

    assert bench.look(after_s=SETTLE_S) == []

    with sidecar.open("ab"):
        assert bench.look(after_s=SETTLE_S) == []

    (job,) = bench.settled()

    assert job.priority == 7


def test_a_sidecar_that_cannot_be_followed_is_claimed_for_its_rejection(bench: Bench) -> None:
    """A broken sidecar is not ignored: the job has no provider, and its plan says why."""
    bench.drop("may.csv")
    bench.drop("may.csv.toml", b"priority = ")

    (job,) = bench.settled()

    assert job.provider is None
    assert (bench.spool.folder(job.id) / "sidecar.toml").exists()


def test_a_lone_sidecar_stays_and_is_reported_once(bench: Bench) -> None:
    """A sidecar without a file is no job, keeps nobody waiting, and is told of after a while."""
    bench.drop("may.csv.toml", b"priority = 7")

    assert bench.settled() == []
    assert bench.inbox.waiting == 0

    with capture_logs() as logs:
        bench.look(after_s=LONE_SIDECAR_S)
        bench.look(after_s=LONE_SIDECAR_S)

    assert [line["event"] for line in logs] == ["inbox.lone_sidecar"]
    assert logs[0]["file"] == "may.csv.toml"
    assert "drop may.csv beside it" in logs[0]["hint"]
    assert bench.left() == {b"may.csv.toml"}


def test_a_claim_cut_off_gives_the_sidecar_back(bench: Bench) -> None:
    """Death between the sidecar's rename and its file's leaves both in the inbox."""
    bench.drop("may.csv")
    bench.drop("may.csv.toml", b"priority = 7")
    (job,) = bench.settled()
    (bench.spool.folder(job.id) / "original").rename(bench.spool.inbox / "may.csv")

    assert bench.inbox.claims.adopted(set()) == []
    assert bench.left() == {b"may.csv", b"may.csv.toml"}

    (again,) = bench.settled()

    assert again.priority == 7


def test_a_newer_sidecar_is_not_replaced_by_one_given_back(bench: Bench) -> None:
    """What a person has put in its place meanwhile stays."""
    bench.drop("may.csv")
    bench.drop("may.csv.toml", b"priority = 7")
    (job,) = bench.settled()
    (bench.spool.folder(job.id) / "original").rename(bench.spool.inbox / "may.csv")
    bench.drop("may.csv.toml", b"priority = 8")

    assert bench.inbox.claims.adopted(set()) == []

    (again,) = bench.settled()

    assert again.priority == 8


def test_a_claim_taken_back_is_not_two(bench: Bench) -> None:
    """Death while a file that changed is being put back leaves one file, and its sidecar."""
    path = bench.drop("may.csv")
    bench.drop("may.csv.toml", b"priority = 7")
    (job,) = bench.settled()
    path.hardlink_to(bench.spool.folder(job.id) / "original")

    assert bench.inbox.claims.adopted(set()) == []
    assert bench.left() == {b"may.csv", b"may.csv.toml"}

    (again,) = bench.settled()

    assert again.priority == 7


def test_a_sidecar_is_given_back_to_a_folder_that_went_away(bench: Bench) -> None:
    """Its folder is made again: a sidecar is never removed with a claim that is taken back."""
    bench.drop("reviews/may.csv")
    bench.drop("reviews/may.csv.toml", b"priority = 7")
    (job,) = bench.settled()
    (bench.spool.folder(job.id) / "original").unlink()
    (bench.spool.inbox / "reviews").rmdir()

    assert bench.inbox.claims.adopted(set()) == []
    assert bench.left() == {b"reviews/may.csv.toml"}


@pytest.mark.parametrize("kind", ["link", "broken link", "folder"])
def test_a_sidecar_that_is_no_file_holds_its_file(bench: Bench, kind: str) -> None:
    """What cannot be followed is not ignored either; the file waits, and keeps no drain waiting."""
    bench.drop("may.csv")
    sidecar = bench.spool.inbox / "may.csv.toml"

    match kind:
        case "link":
            sidecar.symlink_to(bench.spool.inbox / "may.csv")
        case "broken link":
            sidecar.symlink_to("nowhere")
        case "folder":
            sidecar.mkdir()

    assert bench.settled() == []
    assert bench.inbox.waiting == 0

    sidecar.rmdir() if kind == "folder" else sidecar.unlink()

    assert [job.name for job in bench.settled()] == [b"may.csv"]


def test_what_is_no_file_is_told_once(bench: Bench) -> None:
    """Links and pipes stay where they are, and somebody learns of it."""
    (bench.spool.inbox / "link.csv").symlink_to("nowhere")
    os.mkfifo(bench.spool.inbox / "pipe.csv")

    with capture_logs() as logs:
        assert bench.settled() == []

    assert [(line["event"], line["file"]) for line in logs] == [
        ("inbox.left_alone", "link.csv"),
        ("inbox.left_alone", "pipe.csv"),
    ]


# The doorbell.


@pytest.mark.anyio
async def test_a_dropped_file_rings_the_bell(tmp_path: Path) -> None:
    """A change below the inbox wakes the daemon long before the rescan."""
    bench = bench_at(tmp_path)
    bench.inbox.next_look_at = 1e9

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.inbox.watch)

        with anyio.fail_after(10):
            while not bench.inbox.bell.is_rung():
                bench.drop("reviews/may.txt")  # again, until the watcher is up

                with anyio.move_on_after(0.2):
                    await bench.inbox.bell.wait()

        bench.inbox.close()

    assert bench.inbox.next_look_at == bench.clock.monotonic()


# Many at once.


def test_the_first_are_jobs_while_the_rest_is_claimed(bench: Bench) -> None:
    """A look over many files gives its first jobs before it has touched the last files."""
    for number in range(CLAIMS_AT_ONCE + 10):
        bench.drop(f"{number:03}.txt")

    assert bench.look() == []
    bench.clock.pass_time(SETTLE_S)
    slices = bench.inbox.looked()
    first = next(slices)

    assert [job.name for job in first] == [b"%03d.txt" % n for n in range(CLAIMS_AT_ONCE)]
    assert len(bench.left()) == bench.inbox.waiting == 10
    assert [len(jobs) for jobs in slices] == [10]
    assert bench.left() == set()


def test_files_claimed_side_by_side_share_no_name(bench: Bench) -> None:
    """Where the names of results meet, each of many files gets its own, whoever comes first."""
    for number in range(30):
        (bench.spool.done / f"{number}").touch()  # so that the next is called NUMBER-2
        bench.drop(f"{number}")
        bench.drop(f"{number}-2")

    jobs = bench.settled()

    assert len({job.stem for job in jobs}) == len({job.id for job in jobs}) == 60
    assert bench.inbox.claims.taken == {job.stem for job in jobs}


class MeetingSpool(Spool):
    """A spool in which two threads that look for a name at once wait for each other."""

    barrier = threading.Barrier(2)

    def reserve(self, name: bytes, taken: set[bytes]) -> bytes:
        """Find a name, and let the other thread find one, too, if it may."""
        stem = super().reserve(name, taken)

        with suppress(threading.BrokenBarrierError):
            self.barrier.wait(0.2)

        return stem


def test_two_threads_never_take_one_name(tmp_path: Path) -> None:
    """A name that a thread has found is its own before another may look for one."""
    spool = MeetingSpool(tmp_path / "spool")
    spool.make()
    claims = Claims(spool, settings_of(spool), FakeClock())

    with ThreadPoolExecutor(2) as threads:
        stems = list(threads.map(claims._reserved, [b"a.txt", b"a.txt"]))  # noqa: SLF001

    assert sorted(stems) == [b"a.txt", b"a.txt-2"]


def test_a_claim_that_fails_gives_its_name_back(bench: Bench) -> None:
    """Of a file that could not be claimed nothing is left taken, so it keeps its name later."""
    bench.drop("a.txt")
    bench.drop("b.txt")
    bench.look()
    bench.spool.working.rmdir()

    assert bench.look(after_s=SETTLE_S) == []
    assert bench.inbox.claims.taken == set()

    bench.spool.working.mkdir()

    assert {job.stem for job in bench.look(after_s=CLAIM_RETRY_S)} == {b"a.txt", b"b.txt"}


def test_looking_takes_half_of_the_time_at_most(tmp_path: Path) -> None:
    """Changes that never end have a large inbox listed no more often than it can be."""

    class SlowClock(FakeClock):
        """A clock by which a hundred seconds pass between its first two looks."""

        looks = 0

        def monotonic(self) -> float:
            """Return the time, and let some go by."""
            self.looks += 1
            self.pass_time(100.0 if self.looks == 2 else 0.0)

            return super().monotonic()

    bench = bench_at(tmp_path, SlowClock())
    bench.look()
    bench.inbox.wake()

    assert bench.inbox.next_look_at == 200.0
