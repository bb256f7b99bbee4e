"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path


def machine(folder: Path) -> dict[str, str]:
    """Return what this machine is, of what type the file system of *folder*, and the date."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 1e6:.0f} GB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file system": _file_system(folder),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")

        if key.strip() == name:
            return value.strip()

    return "0 unknown"


def _file_system(folder: Path) -> str:
    """Return the type of the mount that *folder* is on: the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [pair for pair in mounts if folder.resolve().is_relative_to(pair[0])]

    return max(above, key=lambda pair: len(pair[0]))[1] if above else "unknown"
