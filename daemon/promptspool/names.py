"""Names that others may change under us: walked without following a link, moved replacing nothing.

Who may write into the inbox may put a link, or another file, in place of anything there at any
moment. So its names are walked one folder at a time, and what is taken is compared with what was
seen, before it is moved and after. Raises `OSError` (environment).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import contextmanager, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING

from promptspool.spool import rename_new

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHORT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What an open fails with for the machine's sake, whatever file it is about."""

CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""What it fails with if nothing has the name any more, or what is no file."""

# Not to wait for the writer of a FIFO, and not to be given a terminal.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Writer(Enum):
    """What is known of others that have a file open."""

    NONE = auto()
    """Nobody on this machine writes to it, or there is no way to know."""
    SOMEBODY = auto()
    """It is open for writing."""
    UNREADABLE = auto()
    """We may not even read it."""
    GONE = auto()
    """No file has the name any more: nothing, or a link, a pipe."""


def writer_of(path: Path | str, *, place: int | None = None) -> Writer:
    """Ask the kernel, by a read lease, whether *path* is open for writing anywhere on this machine.

    *path* is seen from the open folder *place*, if one is given. EAGAIN means a writer. EACCES
    (another owner, no CAP_LEASE) and EINVAL (a file system without leases) mean no answer
    (fcntl(2), "Leases"). SIGIO must be ignored by the process. Raises `OSError` where the machine
    is to blame (`SHORT_OF`).
    """
    try:
        descriptor = os.open(path, _FILE_FLAGS, dir_fd=place)
    except OSError as error:
        if error.errno in SHORT_OF:
            raise

        return Writer.GONE if error.errno in CHANGED else Writer.UNREADABLE

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return Writer.SOMEBODY if error.errno == errno.EAGAIN else Writer.NONE
    finally:
        os.close(descriptor)

    return Writer.NONE


@contextmanager
def opened_folder(root: Path, name: str) -> Iterator[int]:
    """Yield a descriptor of the folder *name* below *root*, reached without following a link.

    *root* itself may be one: whoever set up the spool chose where it leads. Whatever becomes of the
    names meanwhile, what is reached from the descriptor is in that folder.
    """
    folder = os.open(root, _FOLDER_FLAGS)

    try:
        for part in filter(None, name.split("/")):
            below = os.open(part, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below

        yield folder
    finally:
        os.close(folder)


@contextmanager
def made_folder(root: Path, name: str) -> Iterator[int]:
    """Yield what `opened_folder` does, with the folders that are missing made again; durable."""
    parts = name.split("/") if name else []

    for number, part in enumerate(parts):
        with opened_folder(root, "/".join(parts[:number])) as above, suppress(FileExistsError):
            os.mkdir(part, dir_fd=above)
            os.fsync(above)

    with opened_folder(root, name) as place:
        yield place


def is_there(name: str, place: int) -> bool:
    """Tell whether the folder *place* has anything of that name, a broken link too."""
    try:
        os.stat(name, dir_fd=place, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise

        return False

    return True


def is_one(name: str, place: int, mine: Path) -> bool:
    """Tell whether a name in the folder *place* and *mine* are one and the same file."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=place, follow_symlinks=False), mine.lstat())
    except OSError:
        return False


def sync_found(name: str, place: int, found: os.stat_result) -> bool:
    """Put a file's content on the platter; False if it is not the file any more that was found.

    Its writer need not have done so, and after a power cut an empty file would be ours, whose
    claim says otherwise.
    """
    descriptor = os.open(name, _FILE_FLAGS, dir_fd=place)

    try:
        is_same = _looks(os.fstat(descriptor)) == _looks(found)

        if is_same:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

    return is_same


def move(name: str, place: int, mine: Path, found: os.stat_result) -> bool:
    """Move a file to *mine*; False if it turns out to be another, or somebody writes to it.

    From here on nobody can open it by its name: whoever is to write to it has it open by now.
    """
    os.rename(name, mine, src_dir_fd=place)

    # A rename changes the time of the last change, which is the last of all that is compared.
    return _looks(mine.lstat())[:-1] == _looks(found)[:-1] and writer_of(mine) is Writer.NONE


def put_back(mine: Path, name: str, place: int) -> None:
    """Move *mine*, whatever it is, into the inbox again, replacing nothing.

    Not by a link, which we may not make of a file of somebody else's (fs.protected_hardlinks).
    Raises `FileExistsError`.
    """
    rename_new(mine, name, place=place)
    os.fsync(place)


def _looks(status: os.stat_result) -> tuple[int, ...]:
    kind = stat.S_IFMT(status.st_mode)

    return (kind, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
