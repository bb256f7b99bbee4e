"""Images: the folder of files that a profile lets its rows name.

Nothing outside of the folder is ever opened: names are walked one folder at a time, links are not
followed, and only regular files are read. Holds one file. Raises `BadInput` (bad data, or a
profile that names no folder) and lets other `OSError` through (environment).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from promptspool.errors import BadInput
from promptspool.intake.values import quoted

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# Not to wait for the writer of a FIFO, and not to be given a terminal.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# What the name can be blamed for; of all else (a full table of files, a broken disk) the
# environment is the cause, and the same name may do later.
_NAMES = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a part of its path is no folder, or is a link",
    errno.EINVAL: "there is no such file",
    errno.EILSEQ: "there is no such file",
    errno.ENAMETOOLONG: "there is no such file, the name is too long",
    errno.ELOOP: "it is a link",
    errno.EACCES: "it may not be read",
    errno.EPERM: "it may not be read",
    errno.ENXIO: "it is no regular file",
    errno.ENODEV: "it is no regular file",
    errno.EISDIR: "it is no regular file",
}


class FolderFiles:
    """The files below one folder, by their paths from there.

    The folder itself may be a link: whoever configured it chose where it leads.
    """

    def __init__(self, folder: Path) -> None:
        """Take files from *folder*; raises `BadInput` if there is none that can be opened."""
        self._folder = folder
        os.close(self._opened_folder())

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the content of the file *name*, which is `/`-separated and seen from the folder.

        Raises `BadInput` for any other name, for a link, for what is no regular file, and for more
        than *max_bytes*.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]

        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            raise _fault(name, "only names of files below the profile's folder are read")

        try:
            file = self._opened(parts)
        except OSError as error:
            if error.errno not in _NAMES:
                raise

            raise _fault(name, _NAMES[error.errno]) from error
        except UnicodeEncodeError as error:
            raise _fault(name, "there is no such file") from error

        try:
            return _content(file, name, max_bytes)
        finally:
            os.close(file)

    def _opened_folder(self) -> int:
        try:
            return os.open(self._folder, _FOLDER_FLAGS)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            reason = (
                f"the profile's files = {str(self._folder)!r} cannot be opened: {error.strerror}; "
                f"name a folder that the daemon may read"
            )
            raise BadInput(reason, code="bad_profile") from error

    def _opened(self, parts: list[str]) -> int:
        """Open a file one folder at a time, so that no link on the way leads elsewhere."""
        folder = self._opened_folder()

        for part in parts[:-1]:
            try:
                below = os.open(part, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            finally:
                os.close(folder)

            folder = below

        try:
            return os.open(parts[-1], _FILE_FLAGS, dir_fd=folder)
        finally:
            os.close(folder)


def _content(file: int, name: str, max_bytes: int) -> bytes:
    status = os.fstat(file)

    if not stat.S_ISREG(status.st_mode):
        raise _fault(name, "it is no regular file")

    # A file that grows meanwhile is read up to the cap and no further.
    with os.fdopen(file, "rb", closefd=False) as stream:
        content = stream.read(max_bytes + 1) if status.st_size <= max_bytes else b""

    if status.st_size > max_bytes or len(content) > max_bytes:
        size = max(status.st_size, len(content))
        raise _fault(name, f"it has {size:,} bytes, and only {max_bytes:,} may be inlined")

    return content


def _fault(name: str, why: str) -> BadInput:
    reason = f"the file {quoted(name)} cannot be taken: {why}"

    return BadInput(reason, code="unreadable_file")
