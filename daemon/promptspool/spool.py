"""The spool's directories, and every durable write, link and rename in them.

A step here is on the platter when the call returns: data before name, name before what depends on
it (write, fsync, rename, fsync of the directory). Nothing in it replaces a file that people may
own. Raises `SpoolError` for a spool that cannot be used (environment) and lets `OSError` through
where the disk itself refuses (environment).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import filecmp
import os
import secrets
import shutil
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from promptspool.clock import pause
from promptspool.errors import SpoolError
from promptspool.wire import PRODUCTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.model import BatchId, JobId

_Own = TypeVar("_Own")

_AT_FDCWD = -100  # fcntl.h: seen from the working directory
_RENAME_NOREPLACE = 1  # linux/fs.h

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What link(2) says on a file system that has none."""

MAX_NAME_BYTES = 255
"""Of one path component (ext4, xfs, btrfs: NAME_MAX)."""

LONGEST_SUFFIX = max((f".{name}" for name in PRODUCTS), key=len)
"""The longest that delivery appends to a dropped file's name."""

TOO_LONG = "the name is too long: its results could not be named after it"
"""What is said of a file for which `Spool.is_too_long` is true."""

SIDECAR = "sidecar.toml"
"""A sidecar's name in the working folder."""

SIDECAR_SUFFIX = ".toml"
"""What the name of a sidecar has after that of its file."""

PROBE = ".promptspool-probe"
"""A file that is moved through the spool at a start."""

TRIES_TO_HOLD = 5
HOLD_S = 0.05
"""So often, and so far apart, the lock is tried at a start."""

RETIRED = ("", SIDECAR_SUFFIX, ".rejected.json")
"""What follows a dropped file's name in `done/` and `rejected/`: nothing, a sidecar, the reason."""


def sync_file(path: Path) -> None:
    """Return when the content of *path* is on the platter."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Return when the names in *path* are on the platter."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)

    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Make *path* hold *data*, whole or not at all; what was there before is replaced.

    For our own files only: never use it where a person may have put something.
    """
    part = path.with_name(path.name + ".part")

    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

    rename_durably(part, path)


def read_own(path: Path, kind: type[_Own]) -> _Own:
    """Return what a file of ours says; raises `SpoolError` if somebody has damaged it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        message = f"{path} is damaged ({error}); its original is beside it, to be dropped again"
        raise SpoolError(message) from error


def rename_durably(source: Path, target: Path) -> None:
    """Rename *source*, synced already, to *target* of ours, replacing it; syncs both folders."""
    source.rename(target)
    sync_folder(target.parent)

    if source.parent != target.parent:
        sync_folder(source.parent)


def keep_longer(later: Path, path: Path) -> None:
    """Give *later* the name *path*, unless what has it is longer: less is not more of the truth."""
    if path.exists() and path.stat().st_size > later.stat().st_size:
        later.unlink()
    else:
        rename_durably(later, path)


def sidecar_of(path: Path) -> Path:
    """Return where the sidecar of a file is."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def make_folders(path: Path, *, below: Path) -> None:
    """Make what is missing between *below* and *path*, and *path*; durable, repeatable.

    Never *below* itself: where it is missing the spool has gone away, and what were made in its
    place would be hidden when it comes back. Raises `NotADirectoryError` for a link on the way.
    """
    between = path.relative_to(below)

    for folder in (*reversed(between.parents), between):
        made = below / folder

        if made == below:
            continue

        if made.is_symlink():
            reason = "it is a link, which leads out of the spool; put a folder there"
            raise NotADirectoryError(errno.ENOTDIR, reason, str(made))

        if not made.is_dir():
            made.mkdir(exist_ok=True)
            sync_folder(made.parent)


def publish(source: Path, target: Path) -> None:
    """Give *source* the further name *target*, never replacing one; repeating it changes nothing.

    A folder, which can have but one name, is moved there. Raises `FileExistsError` if *target* is
    something else.
    """
    if _marker(source).exists():
        _publish_folder(source, target)
        return

    try:
        target.hardlink_to(source)
    except FileExistsError:
        if not is_published(source, target):
            raise

    sync_folder(target.parent)


def _publish_folder(source: Path, target: Path) -> None:
    if is_published(source, target):
        return

    rename_new(source, target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def rename_new(source: Path, target: Path | str, *, place: int = _AT_FDCWD) -> None:
    """Rename *source* to what is not there yet, not even as an empty folder or a broken link.

    *target* is seen from the open folder *place*, if one is given. Raises `FileExistsError`. Where
    kernel or file system cannot rename so (NFS, FUSE), a file has both names for a moment, and a
    folder could replace an empty one that is made in that moment.
    """
    folder = None if place == _AT_FDCWD else place

    try:
        _renameat2(source, target, place)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise

        if stat.S_ISDIR(source.lstat().st_mode):
            _refuse_to_replace(target, folder)
            os.rename(source, target, dst_dir_fd=folder)
        else:
            os.link(source, target, dst_dir_fd=folder, follow_symlinks=False)
            source.unlink()


def _refuse_to_replace(target: Path | str, folder: int | None) -> None:
    with suppress(FileNotFoundError):
        os.stat(target, dir_fd=folder, follow_symlinks=False)

        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _renameat2(source: Path, target: Path | str, place: int) -> None:
    """Rename as the kernel does it, which Python has no call for (renameat2(2); musl may not)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)

    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    rename.argtypes = (
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
    )  # fmt: skip

    if rename(_AT_FDCWD, os.fsencode(source), place, os.fsencode(target), _RENAME_NOREPLACE):
        number = ctypes.get_errno()

        raise OSError(number, os.strerror(number), str(source), None, str(target))


def finish_folder(part: Path, folder: Path) -> None:
    """Give a folder of ours, whose files are synced, its name, in place of an older one of it.

    Its inode is kept beside it, by which it is known again under its public name.
    """
    if folder.exists():
        shutil.rmtree(folder)

    sync_folder(part)
    write_durably(_marker(folder), b"%d\n" % part.stat().st_ino)
    rename_durably(part, folder)


def remove_finished(folder: Path) -> None:
    """Remove a folder that `finish_folder` has named, if it is there; repeatable."""
    shutil.rmtree(folder, ignore_errors=True)
    _marker(folder).unlink(missing_ok=True)


def _marker(folder: Path) -> Path:
    return folder.with_name(folder.name + ".inode")


def _is_folder(source: Path, target: Path) -> bool:
    """Tell whether *target* is the folder that was made as *source*."""
    try:
        return int(_marker(source).read_bytes()) == target.lstat().st_ino and target.is_dir()
    except (OSError, ValueError):
        return False


def is_published(source: Path, target: Path) -> bool:
    """Tell whether *target* is *source* under another name, or a copy of it (a restored backup)."""
    if _marker(source).exists():
        return _is_folder(source, target)

    if target.is_symlink() or not target.is_file() or not source.is_file():
        return False

    return target.samefile(source) or filecmp.cmp(source, target, shallow=False)


def unpublish(source: Path, target: Path) -> None:
    """Take the name *target* away again, if it is *source* itself: a copy may be a person's."""
    if _marker(source).exists():
        if _is_folder(source, target):
            rename_durably(target, source)

        return

    is_link = target.is_symlink() or not target.exists()

    if not is_link and source.exists() and target.samefile(source):
        target.unlink()
        sync_folder(target.parent)


def remove_folder(path: Path) -> None:
    """Remove a working folder with all that is in it: at once by name, then file by file.

    Repeatable; what a crash leaves is a hidden folder, for `sweep_removed`. Raises
    `FileNotFoundError` if the folder it is in is not there: then nobody knows whether it is gone.
    """
    gone = path.with_name(f".{path.name}.removed")

    with suppress(FileNotFoundError):
        path.rename(gone)

    sync_folder(path.parent)

    if gone.exists():
        shutil.rmtree(gone)


def sweep_removed(parent: Path) -> None:
    """Finish the removals that a crash cut off."""
    for gone in parent.glob(".*.removed"):
        shutil.rmtree(gone)


class Spool:
    """One spool directory. All but `state/` must share one file system."""

    def __init__(self, root: Path, state: Path | None = None) -> None:
        """Name the parts of the spool at *root*; touches nothing.

        *state* is where the database and the control files are; None for `state/` in it.
        """
        self.root = root
        self.inbox = root / "inbox"
        self.working = root / "working"
        self.outbox = root / "outbox"
        self.done = root / "done"
        self.rejected = root / "rejected"
        self.state = state or root / "state"
        self._id_file = root / ".promptspool"
        self._held: os.stat_result | None = None

    @property
    def control(self) -> Path:
        """Return where commands are left for the daemon."""
        return self.state / "control"

    @property
    def database(self) -> Path:
        """Return where the database is."""
        return self.state / "promptspool.db"

    def leave_mark(self, mark: str) -> None:
        """Keep *mark* for the next start."""
        write_durably(self.state / "clean", mark.encode())

    def take_mark(self) -> str | None:
        """Return what the last process left, and remove it; None if it left nothing."""
        path = self.state / "clean"

        try:
            mark = path.read_text("ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None

        path.unlink()
        sync_folder(self.state)

        return mark

    def folder(self, job: JobId) -> Path:
        """Return the working folder of *job*."""
        return self.working / job

    def requests_file(self, job: JobId, batch: BatchId) -> Path:
        """Return the request file of *batch*."""
        return self.folder(job) / f"{batch}.requests.jsonl"

    def make(self) -> None:
        """Make whatever is missing of the tree; repeatable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)

            for folder in (self.inbox, self.working, self.outbox, self.done, self.rejected):
                folder.mkdir(exist_ok=True)

            self.state.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.control.mkdir(mode=0o750, exist_ok=True)  # who else may command is not ours to say
            sync_folder(self.root)
        except OSError as error:
            where = error.filename or self.root
            message = f"{where}: the spool cannot be made here: {_why(error)}"
            raise SpoolError(message) from error

    def identity(self) -> str:
        """Return the spool's own id, made once and kept in `.promptspool`."""
        try:
            identity = self._id_file.read_text("ascii").strip()
        except FileNotFoundError:
            identity = secrets.token_hex(6)
            write_durably(self._id_file, identity.encode() + b"\n")

        if not identity:
            message = f"{self._id_file} is empty: restore the id that spool_id in the database has"
            raise SpoolError(message)

        return identity

    @contextmanager
    def opened(self) -> Iterator[str]:
        """Hold the spool for this process alone and yield its id.

        The lock goes with the process, however it ends. Raises `SpoolError` if another daemon holds
        it, if files cannot be moved between its folders, or if the disk refuses.
        """
        self.make()

        with ExitStack() as stack:
            try:
                lock = stack.enter_context((self.state / "lock").open("ab"))
                self._hold(lock)
                self._probe()
                identity = self.identity()
                self._held = self.working.stat()
            except OSError as error:
                message = f"{error.filename or self.root}: the spool cannot be used: {_why(error)}"
                raise SpoolError(message) from error

            yield identity

    def is_held(self) -> bool:
        """Tell whether a daemon runs on this spool; raises `OSError` if that cannot be told."""
        try:
            with (self.state / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

        return False

    def _hold(self, lock: IO[bytes]) -> None:
        """Take the lock; whoever asks `is_held` has it for a moment, too."""
        for tries_left in reversed(range(TRIES_TO_HOLD)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if not tries_left:
                    message = f"{self.root}: another promptspool runs on this spool; stop it first"
                    raise SpoolError(message) from error

                pause(HOLD_S)
            else:
                return

    def check(self) -> None:
        """Hold that the spool is still where it was when it was opened.

        Raises `OSError` if nothing is there, or an empty mount point: wait until it is back. Raises
        `SpoolError` if another spool is there, since the lock of the old one is worth nothing then.
        """
        status = self.working.stat()

        if self._held is not None and not os.path.samestat(status, self._held):
            message = f"{self.root} is not the spool that was opened there; start promptspool again"
            raise SpoolError(message)

    def _probe(self) -> None:
        """Link and rename a file through every folder: a bind mount shares st_dev and refuses both.

        What is delivered gets its name by a link, since a link never replaces anything.
        """
        probe = self.working / PROBE
        name = f"{PROBE}-{secrets.token_hex(4)}"  # nobody can have put a folder under it

        for folder in (self.inbox, self.outbox, self.done, self.rejected):
            try:
                _sweep_probes(folder)
                _pass_through(probe, folder / name)
            except OSError as error:
                raise SpoolError(_probe_message(folder, self.working, error)) from error
            finally:
                with suppress(OSError):
                    probe.unlink()

    def reserve(self, name: bytes, taken: set[bytes]) -> bytes:
        """Return a stem for *name* that is free in `outbox/`, `done/` and `rejected/`.

        *taken* are the stems of the jobs in flight. The stem of a name that is too long for what is
        appended to it is cut.
        """
        room = MAX_NAME_BYTES - len(LONGEST_SUFFIX) - len("-999999")
        folder, slash, base = name.rpartition(b"/")
        name = self._passable(folder) + slash + base[:room]
        number = 1

        while True:
            stem = name if number == 1 else name + b"-%d" % number

            if stem not in taken and not any(map(os.path.lexists, self._products(stem))):
                return stem

            number += 1

    def _passable(self, folder: bytes) -> bytes:
        """Return *folder* with another name for each part that is no folder in one of the trees."""
        path = b""

        for part in filter(None, folder.split(b"/")):
            above = path + b"/" if path else b""
            path = above + part
            number = 1

            while any(
                _is_in_the_way(tree / os.fsdecode(path))
                for tree in (self.outbox, self.done, self.rejected)
            ):
                number += 1
                path = above + part + b"-%d" % number

        return path

    @staticmethod
    def is_too_long(name: bytes) -> bool:
        """Tell whether results could not be named after *name*."""
        base = name.rpartition(b"/")[2]

        return len(base) + len(LONGEST_SUFFIX) + len("-999999") > MAX_NAME_BYTES

    def _products(self, stem: bytes) -> list[str]:
        """Return every name outside `working/` that a job with *stem* may leave.

        As texts: it is asked for every file, and paths take most of its time.
        """
        text = os.fsdecode(stem)
        trees = (os.fspath(self.done), os.fspath(self.rejected))

        return [
            *(f"{self.outbox}{os.sep}{text}.{name}" for name in PRODUCTS),
            *(f"{tree}{os.sep}{text}{suffix}" for tree in trees for suffix in RETIRED),
        ]


def _is_in_the_way(path: Path) -> bool:
    """Tell whether a folder cannot be made or used there; a link would lead out of the spool."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def _sweep_probes(folder: Path) -> None:
    """Remove the probes of starts that were cut off: empty files, so they are nobody's work."""
    for left in folder.glob(f"{PROBE}-*"):
        with suppress(OSError):  # in a sticky folder it may be somebody else's
            status = left.lstat()

            if stat.S_ISREG(status.st_mode) and status.st_size == 0:
                left.unlink()


def _pass_through(probe: Path, there: Path) -> None:
    """Give a new file another name *there*, then move it there, and remove it."""
    probe.touch()
    there.hardlink_to(probe)
    there.unlink()  # or the rename would do nothing
    probe.rename(there)
    there.unlink()


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _probe_message(folder: Path, working: Path, error: OSError) -> str:
    if error.errno == errno.EXDEV:
        return (
            f"{folder} and {working} are not on one file system (or one mount), so files cannot be "
            f"moved between them; keep all of the spool but state/ in one place"
        )

    if error.errno in NO_LINKS:
        return (
            f"{folder}: no links can be made here: {_why(error)}; the spool needs a file system "
            f"with hard links, such as ext4, xfs, btrfs or zfs"
        )

    return f"{folder}: files cannot be moved here from {working}: {_why(error)}"
