"""The inbox: watch it, wait until a file is whole, claim it by rename.

Listing the directory is the truth; file events only ring the bell, and a rescan backs them up. A
file is whole when it looked the same twice, at least `settle_s` apart, and nobody on this machine
has it open for writing. A claim is one rename into `working/<job id>/`, next to the `claim.json`
that was put there first; after a crash anywhere in between, `adopted` finds a folder with an
original, which becomes a job, or one without, which is swept away.

No name is ever followed: symlinks, devices, sockets and pipes stay where they are. Raises `OSError`
(environment) where the spool itself cannot be read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING

import anyio
import msgspec
import structlog
from watchfiles import awatch

from promptspool.clock import Bell
from promptspool.model import Job, JobId, JobStatus, shown
from promptspool.spool import remove_folder, sweep_removed, sync_folder, write_durably
from promptspool.wire import Claim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.clock import Clock
    from promptspool.settings import Settings
    from promptspool.spool import Spool

DEFAULT_PROFILE = "default"

CLAIMS_A_LOOK = 256
"""So many files are claimed before the rest of the daemon gets a turn."""

CLAIM_RETRY_S = 5.0
"""When a claim that the disk refused, or a file that changed meanwhile, is tried again."""

WATCH_AGAIN_S = 2.0
"""How long a watch that broke is left alone; the listing finds what it missed."""

WRITER_WARNING_S = 600.0
"""A file that somebody has kept open for so long is worth a line in the log."""

IGNORED_SUFFIXES = (".part", ".partial", ".filepart", ".tmp", ".crdownload", "~")
"""Names of files under way, of rsync, browsers, WinSCP and editors."""

IGNORED_FOLDERS = frozenset({"@eaDir"})
"""Synology's index folders."""

_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


def mint(now: float) -> JobId:
    """Return a new job id: the time of *now* and six random characters."""
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%Sz")
    tail = "".join(secrets.choice(_ALPHABET) for _ in range(6))

    return JobId(f"{moment}-{tail}")


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


@dataclass(slots=True)
class Inbox:
    """The inbox of one spool. `look` and `adopted` block: call them in a worker thread."""

    spool: Spool
    settings: Settings
    clock: Clock
    bell: Bell
    taken: set[bytes] = field(default_factory=set)
    """Stems that live jobs have reserved."""
    next_look_at: float = 0.0
    """When to look again, on the monotonic clock."""
    has_looked: bool = False
    """It was looked at since the start."""
    _closing: anyio.Event = field(default_factory=anyio.Event)
    _closed: Bell = field(default_factory=Bell)
    _seen: dict[str, _Sighting] = field(default_factory=dict)
    _complained: set[str] = field(default_factory=set)

    @property
    def waiting(self) -> int:
        """Count the files that are seen but not whole yet; unreadable ones do not count."""
        return sum(not sighting.is_unreadable for sighting in self._seen.values())

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
        settle = self.settings.spool.settle
        next_at = self.next_look_at = now + self.settings.spool.rescan
        seen: dict[str, _Sighting] = {}
        jobs: list[Job] = []

        for name, status in self._files():
            sighting = self._sighting(name, status, now)
            seen[name] = sighting

            if now < sighting.since + settle or sighting.since == now:
                next_at = min(next_at, sighting.since + settle)
            elif len(jobs) >= CLAIMS_A_LOOK:
                next_at = now
            elif self._is_whole(name, sighting, now):
                claimed = self._claimed(name, status)
                jobs.extend(claimed)

                if claimed:
                    del seen[name]
                else:
                    next_at = min(next_at, now + CLAIM_RETRY_S)
            elif sighting.is_open:
                next_at = min(next_at, now + max(settle, 1.0))

        self._seen = seen
        self.has_looked = True
        self.next_look_at = min(self.next_look_at, next_at)  # `wake` may have been called meanwhile

        return jobs

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

    def _complain(self, event: str, name: str, *, hint: str) -> None:
        """Warn of a name once."""
        if name not in self._complained:
            self._complained.add(name)
            _log.warning(event, file=shown(os.fsencode(name)), hint=hint)

    def _claimed(self, name: str, status: os.stat_result) -> list[Job]:
        """Claim one file; an empty list if it turned out to have changed, or the disk refused."""
        claim = self._claim_of(name, status.st_size)
        folder = self.spool.folder(claim.job)
        source = self.spool.inbox / name
        original = folder / "original"

        try:
            folder.mkdir()
        except OSError as error:
            _log.warning("inbox.unclaimed", file=shown(os.fsencode(name)), reason=str(error))

            return []  # nothing was made, and what is there is another job's

        try:
            sync_folder(folder.parent)
            write_durably(folder / "claim.json", msgspec.json.encode(claim))
            source.rename(original)
            sync_folder(folder)
            sync_folder(source.parent)
        except OSError as error:
            _log.warning("inbox.unclaimed", file=shown(os.fsencode(name)), reason=str(error))

            if not original.exists():
                _abandon(folder)

                return []

        if not _is_same(original, status) and _put_back(original, source):
            _abandon(folder)

            return []

        self.taken.add(claim.stem)

        return [_job(claim)]

    def _claim_of(self, name: str, size_bytes: int) -> Claim:
        folder, slash, _ = name.partition("/")
        profile = folder if slash else DEFAULT_PROFILE
        known = self.settings.profiles.get(profile)
        provider = None if known is None else known.provider
        raw = os.fsencode(name)
        now = self.clock.now()
        refused = "the name is too long: its results could not be named after it"

        return Claim(
            job=mint(now),
            name=raw,
            stem=self.spool.reserve(raw, self.taken),
            profile=shown(os.fsencode(profile)),
            provider=provider,
            base_url=None if provider is None else self.settings.providers[provider].base_url,
            claimed_at=now,
            size_bytes=size_bytes,
            refused=refused if self.spool.is_too_long(raw) else None,
        )

    def adopted(self, known: set[JobId]) -> list[Job]:
        """Return jobs for the folders in `working/` that have no row, and sweep half-made claims.

        That is how a crash between a claim and its row ends, and how a lost database is rebuilt. A
        folder whose summary is written is settled, whatever the provider still has of it.
        """
        jobs = []
        sweep_removed(self.spool.working)

        for folder in sorted(self.spool.working.iterdir()):
            if folder.name in known or not folder.is_dir():
                continue

            try:
                claim = msgspec.json.decode((folder / "claim.json").read_bytes(), type=Claim)
            except (FileNotFoundError, msgspec.DecodeError):
                claim = None

            if claim is not None and (folder / "summary.json").exists():
                jobs.append(_job(claim, JobStatus.SETTLED))
            elif claim is not None and (folder / "original").exists():
                jobs.append(_job(claim))
            elif (folder / "original").exists():
                self._complain(
                    "inbox.unknown_folder", folder.name, hint="move original back by hand"
                )
            else:
                remove_folder(folder)

        return jobs


def _leaves(error: BaseException) -> list[BaseException]:
    """Return what an exception group holds, however deep, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]

    return [error]


def _is_same(path: Path, before: os.stat_result) -> bool:
    """Tell whether *path* is the very file that was found whole, by all that a rename leaves."""
    after = path.lstat()

    return (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


def _put_back(original: Path, source: Path) -> bool:
    """Return a file that changed on the way to the inbox; False if its name is taken again."""
    try:
        source.hardlink_to(original)
    except OSError:
        return False

    return True


def _abandon(folder: Path) -> None:
    """Take back a claim."""
    try:
        remove_folder(folder)
    except OSError as error:
        _log.warning("inbox.unclaimed", file=folder.name, reason=str(error))


def _job(claim: Claim, status: JobStatus = JobStatus.CLAIMED) -> Job:
    return Job(
        id=claim.job,
        name=claim.name,
        stem=claim.stem,
        profile=claim.profile,
        provider=claim.provider,
        base_url=claim.base_url,
        status=status,
        due_at=claim.claimed_at,
        claimed_at=claim.claimed_at,
        size_bytes=claim.size_bytes,
    )


def is_ignored(name: str) -> bool:
    """Tell whether a file of this name is hidden or still under way."""
    return name.startswith(".") or name.endswith(IGNORED_SUFFIXES)


def _is_folder_to_read(name: str) -> bool:
    return not name.startswith(".") and name not in IGNORED_FOLDERS
