from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptspool.errors import SpoolError
from promptspool.model import BatchId, JobId
from promptspool.spool import (
    LONGEST_SUFFIX,
    MAX_NAME_BYTES,
    PROBE,
    Spool,
    finish_folder,
    is_published,
    make_folders,
    publish,
    remove_folder,
    rename_durably,
    unpublish,
    write_durably,
)
from promptspool.wire import PRODUCTS

SUFFIXES = tuple(f".{name}" for name in PRODUCTS)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Return a spool whose folders are made."""
    spool = Spool(tmp_path / "spool")
    spool.make()

    return spool


# Durable steps.


def test_publishing_gives_a_further_name(tmp_path: Path) -> None:
    """A published file has both names, and publishing it again changes nothing."""
    source, target = tmp_path / "mine", tmp_path / "theirs"
    source.write_bytes(b"answers")

    for _ in range(3):
        publish(source, target)

        assert target.read_bytes() == b"answers"
        assert is_published(source, target)
        assert source.stat().st_nlink == 2


@pytest.mark.parametrize("kind", ["file", "symlink to it", "broken link", "folder"])
def test_publishing_never_replaces(tmp_path: Path, kind: str) -> None:
    """Whatever somebody has put under a name stays there."""
    source, target = tmp_path / "mine", tmp_path / "theirs"
    source.write_bytes(b"answers")

    match kind:
        case "file":
            target.write_bytes(b"precious")
        case "symlink to it":
            target.symlink_to(source)
        case "broken link":
            target.symlink_to(tmp_path / "nowhere")
        case "folder":
            target.mkdir()

    before = target.lstat()

    with pytest.raises(FileExistsError):
        publish(source, target)

    assert target.lstat().st_ino == before.st_ino
    assert not is_published(source, target)

    unpublish(source, target)

    assert target.lstat().st_ino == before.st_ino


def test_a_copy_counts_as_published(tmp_path: Path) -> None:
    """The same bytes under the name, of a restored backup for instance, are as good as ours."""
    source, target = tmp_path / "mine", tmp_path / "theirs"
    source.write_bytes(b"answers")
    target.write_bytes(b"answers")
    publish(source, target)

    assert is_published(source, target)
    assert not source.samefile(target)


def test_unpublishing_takes_back_only_our_own(tmp_path: Path) -> None:
    """A name is taken away again only while it is ours, and twice is once."""
    source, target = tmp_path / "mine", tmp_path / "theirs"
    source.write_bytes(b"answers")
    publish(source, target)

    for _ in range(2):
        unpublish(source, target)

        assert not target.exists()
        assert source.read_bytes() == b"answers"


def folder_of(tmp_path: Path, content: bytes) -> Path:
    """Return a finished folder of answers with one file in it."""
    part, folder = tmp_path / "answers.part", tmp_path / "answers"
    part.mkdir()
    (part / "1.txt").write_bytes(content)
    finish_folder(part, folder)

    return folder


def test_a_folder_is_published_by_moving_it(tmp_path: Path) -> None:
    """A folder is at its public name, whole, and publishing it again changes nothing."""
    source, target = folder_of(tmp_path, b"one"), tmp_path / "theirs"

    for _ in range(3):
        publish(source, target)

        assert (target / "1.txt").read_bytes() == b"one"
        assert is_published(source, target)
        assert not source.exists()

    for _ in range(2):
        unpublish(source, target)

        assert not target.exists()
        assert (source / "1.txt").read_bytes() == b"one"

    publish(folder_of(tmp_path, b"two"), target)

    assert (target / "1.txt").read_bytes() == b"two"


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "broken link"])
def test_publishing_a_folder_never_replaces(tmp_path: Path, kind: str) -> None:
    """Whatever somebody has put under a folder's name stays there, an empty folder too."""
    source, target = folder_of(tmp_path, b"one"), tmp_path / "theirs"

    match kind:
        case "empty folder":
            target.mkdir()
        case "folder":
            target.mkdir()
            (target / "1.txt").write_bytes(b"precious")
        case "file":
            target.write_bytes(b"precious")
        case "broken link":
            target.symlink_to(tmp_path / "nowhere")

    before = target.lstat()

    with pytest.raises(FileExistsError):
        publish(source, target)

    unpublish(source, target)

    assert not is_published(source, target)
    assert target.lstat().st_ino == before.st_ino
    assert (source / "1.txt").read_bytes() == b"one"


def test_a_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """A write that fails leaves what was there before, and one that works leaves nothing else."""
    path = tmp_path / "claim.json"
    write_durably(path, b"first")
    write_durably(path, b"second")

    assert path.read_bytes() == b"second"
    assert [one.name for one in tmp_path.iterdir()] == ["claim.json"]

    (tmp_path / "claim.json.part").mkdir()  # so the new content has nowhere to go

    with pytest.raises(IsADirectoryError):
        write_durably(path, b"third")

    assert path.read_bytes() == b"second"


def test_a_torn_write_is_not_taken_for_the_file(tmp_path: Path) -> None:
    """What a crash left half-written is replaced by the next write, never shown."""
    (tmp_path / "claim.json.part").write_bytes(b"half")
    write_durably(tmp_path / "claim.json", b"whole")

    assert (tmp_path / "claim.json").read_bytes() == b"whole"
    assert not (tmp_path / "claim.json.part").exists()


def test_a_rename_moves_between_folders(tmp_path: Path) -> None:
    """A renamed file is at its new place alone."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"x")
    rename_durably(tmp_path / "a" / "x", tmp_path / "b" / "y")

    assert list((tmp_path / "a").iterdir()) == []
    assert (tmp_path / "b" / "y").read_bytes() == b"x"


def test_folders_are_made_once_and_again(tmp_path: Path) -> None:
    """Missing folders are made from the top down, and those that are there are left alone."""
    deep = tmp_path / "a" / "b" / os.fsdecode(b"caf\xe9")

    for _ in range(2):
        make_folders(deep, below=tmp_path)

        assert deep.is_dir()

    make_folders(tmp_path, below=tmp_path)

    (tmp_path / "file").write_bytes(b"in the way")

    with pytest.raises(OSError, match="file"):
        make_folders(tmp_path / "file" / "c", below=tmp_path)


def test_what_goes_away_is_not_made_again(tmp_path: Path) -> None:
    """Of a spool that is not there no part is made: it would be hidden when the spool is back."""
    outbox = tmp_path / "spool" / "outbox"
    outbox.parent.mkdir()  # an empty mount point, say

    with pytest.raises(FileNotFoundError):
        make_folders(outbox / "reviews", below=outbox)

    make_folders(outbox, below=outbox)

    assert list(outbox.parent.iterdir()) == []


def test_what_cannot_be_seen_is_not_taken_for_removed(tmp_path: Path) -> None:
    """A folder is gone only if the one it was in is there."""
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "working" / "job")


def test_removing_a_folder_twice_is_removing_it_once(tmp_path: Path) -> None:
    """A working folder goes with all that is in it, also when it is gone already."""
    folder = tmp_path / "job"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "original").write_bytes(b"x")

    for _ in range(2):
        remove_folder(folder)

        assert not folder.exists()


# The spool.


def test_making_a_spool_is_repeatable(spool: Spool) -> None:
    """A spool is made around what is there, and `state/` is nobody else's business."""
    (spool.outbox / "old.results.jsonl").write_bytes(b"kept")
    spool.make()

    assert {path.name for path in spool.root.iterdir()} == {
        "inbox",
        "working",
        "outbox",
        "done",
        "rejected",
        "state",
    }
    assert (spool.outbox / "old.results.jsonl").read_bytes() == b"kept"
    assert spool.state.stat().st_mode & 0o007 == 0


def test_a_spool_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    """A path where no folders can be made is refused with a sentence that names it."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(SpoolError, match="cannot be made here"):
        Spool(tmp_path / "file" / "spool").make()


def test_a_spool_keeps_its_id(spool: Spool) -> None:
    """The id is made once, differs from other spools' and fits any metadata."""
    with spool.opened() as first:
        pass

    with spool.opened() as second:
        pass

    other = Spool(spool.root.with_name("other"))

    with other.opened() as third:
        pass

    assert first == second != third
    assert first.isascii()
    assert first.isalnum()


def test_a_second_daemon_is_refused(spool: Spool) -> None:
    """While one process holds a spool no other gets it, and afterwards one does."""
    code = (
        "import sys, pathlib; from promptspool.spool import Spool\n"
        "from promptspool.errors import SpoolError\n"
        "try:\n"
        "    with Spool(pathlib.Path(sys.argv[1])).opened(): print('opened')\n"
        "except SpoolError as error: print(error)\n"
    )

    def other() -> str:
        source = Path(__file__).parents[1] / "daemon"
        environment = os.environ | {"PYTHONPATH": str(source)}
        command = [sys.executable, "-c", code, str(spool.root)]

        return subprocess.run(  # noqa: S603 - our own interpreter
            command,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    with spool.opened():
        assert "another promptspool runs" in other()

        with pytest.raises(SpoolError, match="another promptspool runs"), spool.opened():
            pass

    assert other() == "opened\n"


def test_the_lock_goes_with_an_error(spool: Spool) -> None:
    """However a holder ends, the next one gets the spool."""
    with pytest.raises(ZeroDivisionError), spool.opened():
        raise ZeroDivisionError

    with spool.opened():
        pass


def test_a_folder_that_takes_no_files_is_told_at_the_start(spool: Spool) -> None:
    """A spool between whose folders files cannot be moved is refused before any work."""
    elsewhere = spool.root / "file"
    elsewhere.write_bytes(b"")
    spool.done.rmdir()
    spool.done.symlink_to(elsewhere)
    spool.make = lambda: None  # type: ignore[method-assign]  # a folder lost after it was made

    with pytest.raises(SpoolError, match="done: files cannot be moved here"), spool.opened():
        pass

    assert not (spool.working / PROBE).exists()


def test_other_file_systems_are_told_apart(spool: Spool) -> None:
    """A folder on another file system is refused with a sentence that says what to change."""
    device = spool.root.stat().st_dev
    places = [Path("/dev", "shm"), Path("/var", "tmp")]
    usable = [place for place in places if os.access(place, os.W_OK)]
    others = [place for place in usable if place.stat().st_dev != device]

    assert others, "this test needs a second file system, in /dev/shm or /var/tmp"

    other = others[0] / f"promptspool-test-{os.getpid()}"
    other.mkdir()

    try:
        spool.outbox.rmdir()
        spool.outbox.symlink_to(other)

        with pytest.raises(SpoolError, match="not on one file system"), spool.opened():
            pass

        assert not (spool.working / PROBE).exists()
        assert list(other.iterdir()) == []
    finally:
        other.rmdir()


@pytest.mark.parametrize("folder", ["inbox", "outbox", "done", "rejected"])
@pytest.mark.parametrize("call", ["link", "rename"])
def test_every_folder_is_probed(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, folder: str
) -> None:
    """A folder that is another mount (EXDEV), be it for links or for moves, is refused by name."""
    real = getattr(os, call)

    def crossing(source: Path, target: Path, **named: object) -> None:
        if spool.root / folder in Path(target).parents:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))

        real(source, target, **named)

    monkeypatch.setattr(os, call, crossing)

    with pytest.raises(SpoolError, match=f"/{folder} and .*/working are not on one file system"):
        spool.opened().__enter__()

    assert not list(spool.root.rglob(f"{PROBE}*"))


def test_a_file_system_without_links_is_refused(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no links at all (FAT) nothing could be delivered, so the start says it."""

    def linked(*_: object, **_named: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", linked)

    with pytest.raises(SpoolError, match="a file system with hard links"), spool.opened():
        pass

    assert not list(spool.root.rglob(f"{PROBE}*"))


def test_nobody_can_be_in_the_way_of_a_probe(spool: Spool) -> None:
    """Neither a start that died in its probe nor a folder of its name keeps a spool closed."""
    (spool.working / PROBE).touch()
    (spool.inbox / PROBE).mkdir()

    with spool.opened():
        assert [path.parent for path in spool.root.rglob(f"{PROBE}*")] == [spool.inbox]


@pytest.mark.parametrize("name", ["state/lock", ".promptspool"])
def test_what_the_disk_refuses_at_a_start_is_one_line(spool: Spool, name: str) -> None:
    """A spool that cannot be held, or has no readable id, is refused with the file's name."""
    (spool.root / name).mkdir()

    with pytest.raises(SpoolError, match=f"/{name}: the spool cannot be used: "), spool.opened():
        pass


def test_a_spool_is_known_again(spool: Spool, tmp_path: Path) -> None:
    """A spool that went away is missed, is the same when it comes back, and another is refused."""
    away = tmp_path / "away"

    with spool.opened():
        spool.check()
        spool.root.rename(away)

        with pytest.raises(FileNotFoundError):
            spool.check()

        spool.root.mkdir()

        with pytest.raises(FileNotFoundError):
            spool.check()

        spool.root.rmdir()
        Spool(spool.root).make()

        with pytest.raises(SpoolError, match="is not the spool that was opened there"):
            spool.check()

        spool.root.rename(tmp_path / "other")
        away.rename(spool.root)
        spool.check()


def test_a_probe_leaves_nothing_behind(spool: Spool) -> None:
    """Opening a spool leaves no file where people look."""
    with spool.opened():
        for folder in (spool.inbox, spool.working, spool.outbox, spool.done, spool.rejected):
            assert list(folder.iterdir()) == []


def test_work_is_named_by_its_ids(spool: Spool) -> None:
    """Everything of a job is in its own folder, under its batches' names."""
    job = JobId("20261120t231853z-4f7k2m")

    assert spool.requests_file(job, BatchId(f"{job}.1")) == (
        spool.working / job / f"{job}.1.requests.jsonl"
    )
    assert spool.database.parent == spool.state


# Reserving names.


def test_a_free_name_is_kept(spool: Spool) -> None:
    """The first file of a name has its results under that name."""
    assert spool.reserve(b"may.csv", set()) == b"may.csv"
    assert spool.reserve(b"reviews/may.csv", set()) == b"reviews/may.csv"


def test_names_in_flight_are_not_given_twice(spool: Spool) -> None:
    """Jobs of one name that are under way together are numbered from 2."""
    taken: set[bytes] = set()

    for expected in (b"may.csv", b"may.csv-2", b"may.csv-3"):
        stem = spool.reserve(b"may.csv", taken)
        taken.add(stem)

        assert stem == expected


@pytest.mark.parametrize("folder", ["outbox", "done", "rejected"])
def test_a_name_is_taken_by_any_of_its_products(spool: Spool, folder: str) -> None:
    """Anything that a job of the name would leave, wherever it is, takes the name."""
    names = {
        "outbox": [f"may.csv{suffix}" for suffix in SUFFIXES],
        "done": ["may.csv"],
        "rejected": ["may.csv", "may.csv.rejected.json"],
    }

    for name in names[folder]:
        path: Path = getattr(spool, folder) / name
        path.symlink_to(spool.root / "nowhere")  # a broken link takes a name, too

        assert spool.reserve(b"may.csv", set()) == b"may.csv-2"

        path.unlink()

    assert spool.reserve(b"may.csv", set()) == b"may.csv"


names = st.binary(min_size=1, max_size=MAX_NAME_BYTES).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b".."),
)


@given(names, st.integers(min_value=0, max_value=12))
def test_every_reserved_name_can_be_used(name: bytes, others: int) -> None:
    """Whatever a dropped file is called, each of its products fits into 255 bytes, numbered too."""
    spool = Spool(Path("/nonexistent"))
    taken: set[bytes] = set()

    for _ in range(others + 1):
        stem = spool.reserve(b"reviews/" + name, taken)

        assert stem not in taken

        taken.add(stem)
        folder, base = os.path.split(stem)

        assert folder == b"reviews"
        assert len(base) + len(LONGEST_SUFFIX) <= MAX_NAME_BYTES
        assert base.startswith(name) or Spool.is_too_long(name)


def test_a_name_that_is_no_text_is_reserved_all_the_same(spool: Spool) -> None:
    """Names are bytes: one that is no UTF-8 is found in the outbox under the same bytes."""
    name = b"caf\xe9.txt"

    with Path(os.fsdecode(bytes(spool.outbox) + b"/" + name + b".summary.json")).open("wb"):
        pass

    assert spool.reserve(name, set()) == name + b"-2"


@given(names)
def test_only_names_that_leave_no_room_are_too_long(name: bytes) -> None:
    """A name is refused exactly if its products, numbered, could not be named after it."""
    longest = name + b"-999999" + LONGEST_SUFFIX.encode()

    assert Spool.is_too_long(b"reviews/" + name) == (len(longest) > MAX_NAME_BYTES)


def test_who_looks_keeps_no_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who looks whether a daemon runs has its lock for a moment, which a start waits for."""
    spool = Spool(tmp_path / "spool")
    spool.make()
    looking = (spool.state / "lock").open("ab")
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("promptspool.spool.pause", lambda _: looking.close())

    with spool.opened():
        assert spool.is_held()
