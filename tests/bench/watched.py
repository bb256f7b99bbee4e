"""A process that is watched from outside: memory, CPU seconds and wake-ups of its whole tree.

All of it is read from /proc, by a thread of this process, so that the watched one is as it would be
alone. Raises `OSError` (environment).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

EVERY_S = 0.02
"""How often memory is looked at."""

PSS_EVERY_S = 0.25
"""How often, at most, shared pages are shared out: the kernel walks all pages for it."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process tree took between two looks."""

    seconds: float
    cpu_s: float
    """User and system, of the process and of every child that it has waited for or still has."""
    rss_bytes: int
    """The highest sum over the tree."""
    pss_bytes: int | None
    wakeups: int
    """Context switches of all threads that live, voluntary or not."""


class Watched:
    """A started command; a context manager that ends it at the latest."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: Path,
        environ: Mapping[str, str] | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        """Start *command*, with what it prints in *output*, standard error beside it."""
        self.output = output
        self.began_at = time.monotonic()
        self._every_s = every_s

        with output.open("wb") as stdout, output.with_suffix(".stderr").open("wb") as stderr:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                command, stdout=stdout, stderr=stderr, env=environ, start_new_session=True
            )

        self._peak = 0
        self._highest = 0
        self._pss: int | None = None
        self._pss_at = 0.0
        self._lap_at = self.began_at
        self._lap_cpu_s = 0.0
        self._lap_wakeups = 0
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        self.end()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self.process.pid

    def lap(self) -> Usage:
        """Return what was used since the last call, or since the start, and begin anew."""
        self._look(with_pss=False)
        now = time.monotonic()
        cpu_s, wakeups = tree_cpu_s(self.pid), tree_wakeups(self.pid)

        with self._lock:
            usage = Usage(
                seconds=now - self._lap_at,
                cpu_s=cpu_s - self._lap_cpu_s,
                rss_bytes=self._peak,
                pss_bytes=self._pss,
                wakeups=max(0, wakeups - self._lap_wakeups),
            )
            self._lap_at, self._lap_cpu_s, self._lap_wakeups = now, cpu_s, wakeups
            self._highest = max(self._highest, self._peak)
            self._peak, self._pss = 0, None

        return usage

    def whole(self) -> Usage:
        """Return what was used since the start; laps go on as they would."""
        self._look(with_pss=False)

        return Usage(
            seconds=time.monotonic() - self.began_at,
            cpu_s=tree_cpu_s(self.pid),
            rss_bytes=max(self._highest, self._peak),
            pss_bytes=self._pss,
            wakeups=tree_wakeups(self.pid),
        )

    def end(self, *, grace_s: float = 15.0) -> int:
        """Tell it to end, wait, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()

        code = self.process.wait()
        self._is_over.set()
        self._thread.join()

        return code

    def complaint(self) -> str:
        """Return the end of what it said, for an error of ours."""
        said = self.output.with_suffix(".stderr").read_text(errors="replace").strip()

        return said[-1000:] or self.output.read_text(errors="replace").strip()[-1000:]

    def _watch(self) -> None:
        while not self._is_over.wait(self._every_s):
            self._look(with_pss=True)

    def _look(self, *, with_pss: bool) -> None:
        """Take the sum of now; share shared pages out if it is about the highest sum so far."""
        pids = list(tree(self.pid))
        total = sum(map(_rss_bytes, pids))

        with self._lock:
            is_highest = total >= self._peak
            self._peak = max(self._peak, total)

        now = time.monotonic()

        if with_pss and is_highest and len(pids) > 0 and now - self._pss_at >= PSS_EVERY_S:
            self._pss_at = now
            pss = sum(map(_pss_bytes, pids))

            with self._lock:
                self._pss = max(self._pss or 0, pss)


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants, those that live."""
    yield pid

    for task in _listed(Path(f"/proc/{pid}/task")):
        children = _read(Path(f"/proc/{pid}/task/{task}/children"))

        for child in children.split():
            yield from tree(int(child))


def tree_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, its living children and those it has waited for."""
    return sum(_cpu_ticks(one) for one in tree(pid)) / _TICKS


def tree_wakeups(pid: int) -> int:
    """Return the context switches of all threads of a process tree."""
    return sum(
        int(line.split()[1])
        for one in tree(pid)
        for task in _listed(Path(f"/proc/{one}/task"))
        for line in _read(Path(f"/proc/{one}/task/{task}/status")).splitlines()
        if "ctxt_switches" in line
    )


def _cpu_ticks(pid: int) -> int:
    """Return utime, stime, cutime and cstime: proc(5), fields 14 to 17."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()

    return sum(map(int, fields[11:15])) if fields else 0


def _rss_bytes(pid: int) -> int:
    fields = _read(Path(f"/proc/{pid}/statm")).split()

    return int(fields[1]) * _PAGE_BYTES if fields else 0


def _pss_bytes(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024

    return 0


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is wanted, many times a second
    except OSError:  # it ended
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it ended
        return ""
