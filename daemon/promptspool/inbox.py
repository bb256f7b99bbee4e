"""The inbox: watch it, wait until a file is whole, have it claimed.

Listing the directory is the truth; file events only ring the bell, and a rescan backs them up. A
file is whole when it looked the same twice, at least `settle_s` apart, and nobody on this machine
has it open for writing; so must be the sidecar `NAME.toml` beside it, if there is one.

No name is ever followed: symlinks, devices, sockets and pipes stay where they are. Raises `OSError`
(environment) where the spool itself cannot be read.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import stat
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

import anyio
import structlog
from watchfiles import awatch

from promptspool.clock import Bell
from promptspool.model import shown
from promptspool.spool import SIDECAR_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from promptspool.claims import Claims
    from promptspool.clock import Clock
    from promptspool.model import Job
    from promptspool.settings import Settings
    from promptspool.spool import Spool

CLAIMS_A_LOOK = 256
"""So many files are claimed before the rest of the daemon gets a turn."""

CLAIM_RETRY_S = 5.0
"""When a claim that the disk refused, or a file that changed meanwhile, is tried again."""

WATCH_AGAIN_S = 2.0
"""How long a watch that broke is left alone; the listing finds what it missed."""

WRITER_WARNING_S = 600.0
"""A file that somebody has kept open for so long is worth a line in the log."""

LONE_SIDECAR_S = 600.0
"""A sidecar that has waited so long for its file is worth a line in the log."""

IGNORED_PREFIXES = (".", "~$")
"""Hidden files, and the locks of office programs."""

IGNORED_SUFFIXES = (".part", ".partial", ".filepart", ".tmp", ".crdownload", "~")
"""Names of files under way, of rsync, browsers, WinSCP and editors."""

IGNORED_FOLDERS = frozenset({"@eaDir"})
"""Synology's index folders."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Writer(Enum):
    """What is known of others that have a file open."""

    NONE = auto()
    """Nobody on this machine writes to it, or there is no way to know."""
    SOMEBODY = auto()
    """It is open for writing."""
    UNREADABLE = auto()
    """We may not even read it."""


def writer_of(path: Path) -> Writer:
    """Ask the kernel, by a read lease, whether *path* is open for writing anywhere on this machine.

    EAGAIN means a writer. EACCES (another owner, no CAP_LEASE) and EINVAL (a file system without
    leases) mean no answer (fcntl(2), "Leases"). SIGIO must be ignored by the process.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return Writer.UNREADABLE

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return Writer.SOMEBODY if error.errno == errno.EAGAIN else Writer.NONE
    finally:
        os.close(descriptor)

    return Writer.NONE


@dataclass(slots=True)
class _Sighting:
    """How a file looked when it was last seen to change."""

    looks_like: tuple[int, ...]
    since: float
    warned: bool = False
    is_open: bool = False
    is_unreadable: bool = False
    is_sidecar: bool = False


@dataclass(slots=True)
class Inbox:
    """The inbox of one spool. `look` blocks: call it in a worker thread."""

    claims: Claims
    bell: Bell
    next_look_at: float = 0.0
    """When to look again, on the monotonic clock."""
    has_looked: bool = False
    """It was looked at since the start."""
    spool: Spool = field(init=False)
    settings: Settings = field(init=False)
    clock: Clock = field(init=False)
    _closing: anyio.Event = field(default_factory=anyio.Event)
    _closed: Bell = field(default_factory=Bell)
    _seen: dict[str, _Sighting] = field(default_factory=dict)
    _complained: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Work on the spool, and by the settings and the clock, of the claims."""
        self.spool, self.settings = self.claims.spool, self.claims.settings
        self.clock = self.claims.clock

    @property
    def waiting(self) -> int:
        """Count the files that are seen but not whole yet.

        Unreadable ones do not count, and sidecars wait for files that may never come.
        """
        return sum(
            not (sighting.is_unreadable or sighting.is_sidecar) for sighting in self._seen.values()
        )

    def wake(self) -> None:
        """Look as soon as possible."""
        self.next_look_at = self.clock.monotonic()
        self.bell.ring()

    async def watch(self) -> None:
        """Ring the bell at every change below the inbox, until `close` is called.

        Nothing depends on it but speed: events get lost, and network file systems send none.
        """
        while not self._closing.is_set():
            try:
                async for _ in awatch(
                    self.spool.inbox,
                    watch_filter=None,
                    debounce=100,
                    step=50,
                    stop_event=self._closing,
                    ignore_permission_denied=True,
                ):
                    self.wake()
            except* (OSError, RuntimeError) as group:  # RuntimeError: a name that is no UTF-8
                reasons = sorted({str(error) for error in _leaves(group)})
                _log.warning("inbox.unwatched", reason="; ".join(reasons))

            self.wake()
            await self.clock.wait(self._closed, WATCH_AGAIN_S)

    def close(self) -> None:
        """End `watch`; cancelling it would wait for its thread to notice by itself."""
        self._closing.set()
        self._closed.ring()

    def look(self) -> list[Job]:
        """List the inbox once and return the jobs made of the files that are whole.

        Each returned job is in `working/` already; losing the list costs nothing, since `adopted`
        finds them again.
        """
        now = self.clock.monotonic()
        next_at = self.next_look_at = now + self.settings.spool.rescan
        files = dict(self._files())
        seen = {name: self._sighting(name, status, now) for name, status in files.items()}
        jobs: list[Job] = []

        for name, status in files.items():
            if name.endswith(SIDECAR_SUFFIX):
                self._note_sidecar(name, seen[name], now, files)
                continue

            sidecar = name + SIDECAR_SUFFIX
            parts = [part for part in (name, sidecar) if part in files]
            ripe_at = self._ripe_at([seen[part] for part in parts], now)

            if ripe_at > now:
                next_at = min(next_at, ripe_at)
            elif len(jobs) >= CLAIMS_A_LOOK:
                next_at = now
            elif self._has_odd_sidecar(name, files):
                seen[name].is_unreadable = True
            elif all(self._is_whole(part, seen[part], now) for part in parts):
                job = self.claims.claim(name, status, files.get(sidecar))

                if job is not None:
                    jobs.append(job)
                    del seen[name]
                else:
                    next_at = min(next_at, now + CLAIM_RETRY_S)
            elif any(seen[part].is_open for part in parts):
                next_at = min(next_at, now + max(self.settings.spool.settle, 1.0))
            else:
                seen[name].is_unreadable = True  # it, or its sidecar

        self._seen = seen
        self.has_looked = True
        self.next_look_at = min(self.next_look_at, next_at)  # `wake` may have been called meanwhile

        return jobs

    def _ripe_at(self, sightings: list[_Sighting], now: float) -> float:
        """Return when a file and its sidecar will have settled; one look is never enough."""
        since = max(sighting.since for sighting in sightings)
        settled_at = since + self.settings.spool.settle

        return math.nextafter(now, math.inf) if since == now >= settled_at else settled_at

    def _has_odd_sidecar(self, name: str, files: Mapping[str, os.stat_result]) -> bool:
        """Tell whether a link, a folder or the like has the name of a sidecar; it is not followed.

        Without what it says, its file would be asked something else.
        """
        sidecar = name + SIDECAR_SUFFIX
        is_odd = sidecar not in files and os.path.lexists(self.spool.inbox / sidecar)

        if is_odd:
            self._complain("inbox.unreadable", sidecar, hint="make it a file, or remove it")

        return is_odd

    def _note_sidecar(
        self, name: str, sighting: _Sighting, now: float, files: Mapping[str, os.stat_result]
    ) -> None:
        """Remember that *name* is no prompt file; say so when the file it is for does not come."""
        sighting.is_sidecar = True
        owner = name.removesuffix(SIDECAR_SUFFIX)

        if owner not in files and now - sighting.since > LONE_SIDECAR_S:
            wanted = shown(os.fsencode(owner))
            self._complain(
                "inbox.lone_sidecar", name, hint=f"drop {wanted} beside it, or remove it"
            )

    def _sighting(self, name: str, status: os.stat_result, now: float) -> _Sighting:
        looks_like = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._seen.get(name)

        if known is not None and known.looks_like == looks_like:
            return known

        return _Sighting(looks_like=looks_like, since=now)

    def _is_whole(self, name: str, sighting: _Sighting, now: float) -> bool:
        """Tell whether nobody writes to a file that has settled; say so when somebody does."""
        writer = writer_of(self.spool.inbox / name)
        sighting.is_open = writer is Writer.SOMEBODY
        sighting.is_unreadable = writer is Writer.UNREADABLE

        if sighting.is_unreadable:
            self._complain(
                "inbox.unreadable", name, hint="chmod or chown it so that we may read it"
            )
        elif sighting.is_open and not sighting.warned and now - sighting.since > WRITER_WARNING_S:
            sighting.warned = True
            _log.warning(
                "inbox.writer_waited_for",
                file=shown(os.fsencode(name)),
                open_for_s=now - sighting.since,
            )

        return writer is Writer.NONE

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield every file that may be a job, as its path below the inbox, in order of name."""
        device = self.spool.inbox.stat().st_dev
        folders = [""]

        while folders:
            folder = folders.pop()

            try:
                with os.scandir(self.spool.inbox / folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError:
                if not folder:
                    raise  # nothing can have been claimed yet

                self._complain("inbox.unreadable", folder, hint="chmod or chown the folder")

                continue

            for entry in listed:
                name = f"{folder}/{entry.name}" if folder else entry.name

                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone since it was listed

                if stat.S_ISDIR(status.st_mode) and _is_folder_to_read(entry.name):
                    if status.st_dev == device:
                        folders.append(name)
                    else:
                        self._complain(
                            "inbox.mounted", name, hint="files cannot be moved out of it"
                        )
                elif stat.S_ISREG(status.st_mode) and not is_ignored(entry.name):
                    yield name, status
                elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                    hint = "only files are taken; links are not followed"
                    self._complain("inbox.left_alone", name, hint=hint)

    def _complain(self, event: str, name: str, *, hint: str) -> None:
        """Warn of a name once."""
        if name not in self._complained:
            self._complained.add(name)
            _log.warning(event, file=shown(os.fsencode(name)), hint=hint)


def _leaves(error: BaseException) -> list[BaseException]:
    """Return what an exception group holds, however deep, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]

    return [error]


def is_ignored(name: str) -> bool:
    """Tell whether a file of this name is hidden or still under way."""
    return name.startswith(IGNORED_PREFIXES) or name.endswith(IGNORED_SUFFIXES)


def _is_folder_to_read(name: str) -> bool:
    return not name.startswith(".") and name not in IGNORED_FOLDERS
