"""The files that a configuration is made of: read, and remembered by their looks.

How a file looked is taken before it is read, so that whoever compares it later with how it looks by
then misses no change. Raises `OSError` (environment).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 10_000_000
"""No configuration and no schema is larger."""

Look = tuple[int, ...]
"""Device, inode, size and times of a file."""


def read(path: Path, looks: dict[Path, Look | None]) -> bytes:
    """Return what a file holds, and note in *looks* how it looked; None for one that is missing.

    What is no file, such as a pipe that nobody writes to, is an `OSError` and never waited for.
    """
    looks[path] = look(path)  # of one that is there, but cannot be opened
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        looks[path] = _look_of(status)

        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))

        if status.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES:,} bytes", str(path))

        return file.read()


def look(path: Path) -> Look | None:
    """Return how a file looks now, None if there is none or it cannot be seen."""
    try:
        return _look_of(path.stat())
    except OSError:
        return None


def _look_of(status: os.stat_result) -> Look:
    # The change time moves with the permissions, too: what could not be read may be readable now.
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
