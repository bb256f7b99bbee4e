"""The files that a configuration is made of: read, and remembered by their looks.

How a file looked is taken before it is read, so that whoever compares it later with how it looks by
then misses no change. Raises `OSError` (environment).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Look = tuple[int, ...]
"""Device, inode, size and times of a file."""


def read(path: Path, looks: dict[Path, Look | None]) -> bytes:
    """Return what a file holds, and note in *looks* how it looked; None for one that is missing."""
    looks[path] = look(path)  # of one that is there, but cannot be opened

    with path.open("rb") as file:
        looks[path] = _look_of(os.fstat(file.fileno()))

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
