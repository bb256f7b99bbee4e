"""The inbox: watch it, wait until a file is whole, have it claimed.

Listing the directory is the truth; file events only ring the bell, and a rescan backs them up. A
file is whole when it looked the same twice, at least `settle_s` apart, and nobody on this machine
has it open for writing; so must be the sidecar `NAME.toml` beside it, if there is one.

No name is ever followed: symlinks, devices, sockets and pipes stay where they are. What cannot be
taken is told of once, left there and tried again. Raises `OSError` (environment) where the spool
itself cannot be read.
"""

from __future__ import annotations

import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio
import structlog

from promptspool.claims import Unclaimed
from promptspool.clock import Bell
from promptspool.model import Job, shown
from promptspool.names import CHANGED, SHORT_OF, Writer, opened_folder, writer_of
from promptspool.spool import SIDECAR_SUFFIX
from promptspool.watching import watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from promptspool.claims import Claims
    from promptspool.clock import Clock
    from promptspool.settings import Settings
    from promptspool.spool import Spool

CLAIMS_A_LOOK = 256
"""So many files are claimed before the inbox is listed anew."""

CLAIMS_AT_ONCE = 64
"""So many files are claimed before they get their rows, and the first of them are planned."""

CLAIMS_BESIDE = 4
"""So many threads claim side by side."""

CLAIM_RETRY_S = 5.0
"""When a claim that the disk refused is tried again."""

CLAIM_TRIES = 4
"""So often it is, before what may pass is taken for what stays."""

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


@dataclass(slots=True)
class _Sighting:
    """How a file looked when it was last seen to change."""

    looks_like: tuple[int, ...]
    since: float
    again_at: float = 0.0
    """When it is to be tried again, if it was refused."""
    tries: int = 0
    """How often it was refused."""
    warned: bool = False
    is_open: bool = False
    is_stuck: bool = False
    """It cannot be read, or moved; somebody has to do something."""
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
    _rested_at: float = 0.0
    """Before this no look is due to a mere change: looking takes half of the time at most."""
    _closing: anyio.Event = field(default_factory=anyio.Event)
    _closed: Bell = field(default_factory=Bell)
    _seen: dict[str, _Sighting] = field(default_factory=dict)
    _odd: set[str] = field(default_factory=set)
    """Names of what is neither a file nor a folder to look into."""
    _unwatched: str | None = None
    """Why events were last not to be had."""
    _told: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What was last complained of, by name."""

    def __post_init__(self) -> None:
        """Work on the spool, and by the settings and the clock, of the claims."""
        self.spool, self.settings = self.claims.spool, self.claims.settings
        self.clock = self.claims.clock

    @property
    def waiting(self) -> int:
        """Count the files that are seen but not whole yet.

        What cannot be read or moved does not count, and sidecars wait for files that may never
        come.
        """
        sightings = list(self._seen.values())  # at once: another thread may be claiming

        return sum(not (sighting.is_stuck or sighting.is_sidecar) for sighting in sightings)

    def wake(self) -> None:
        """Look as soon as possible; where listing takes long, no sooner than as long after it."""
        self.next_look_at = max(self.clock.monotonic(), self._rested_at)
        self.bell.ring()

    async def watch(self) -> None:
        """Ring the bell at every change below the inbox, and at commands, until `close` is called.

        Nothing depends on it but speed: events get lost, and network file systems send none.
        """
        while not self._closing.is_set():
            try:
                roots = (self.spool.inbox, self.spool.control)
                await watch(roots, self._note_change, stop=self._closing)
            except* OSError as group:
                reason = "; ".join(sorted({str(error) for error in _leaves(group)}))

                if reason != self._unwatched:
                    _log.warning("inbox.unwatched", reason=reason)

                self._unwatched = reason

            self.wake()
            await self.clock.wait(self._closed, WATCH_AGAIN_S)

    def _note_change(self, changed: set[Path]) -> None:
        if self.spool.inbox in changed:
            self.wake()
        else:
            self.bell.ring()  # a command, which is none of the inbox's business

    def close(self) -> None:
        """End `watch`; cancelling it would wait for its thread to notice by itself."""
        self._closing.set()
        self._closed.ring()

    def look(self) -> list[Job]:
        """List the inbox once and return the jobs made of the files that are whole."""
        return [job for jobs in self.looked() for job in jobs]

    def looked(self) -> Iterator[list[Job]]:
        """List the inbox once and yield the jobs made of the files that are whole, some at a time.

        Each job is in `working/` already; losing the list costs nothing, since `adopted` finds them
        again.
        """
        now = self.clock.monotonic()
        next_at = self.next_look_at = now + self.settings.spool.rescan
        self._odd.clear()
        files = dict(self._files())
        listed_at = self.clock.monotonic()
        self._rested_at = listed_at + (listed_at - now)
        self._told = {
            name: told for name, told in self._told.items() if name in files or name in self._odd
        }
        seen = {name: self._sighting(name, status, now) for name, status in files.items()}
        ripe: list[str] = []

        for name in files:
            if name.endswith(SIDECAR_SUFFIX):
                self._note_sidecar(name, seen, now)
            elif (ripe_at := self._ripe_at(name, files, seen, now)) > now:
                next_at = min(next_at, ripe_at)
            else:
                ripe.append(name)

        self._seen = seen
        count = 0

        while ripe and count < CLAIMS_A_LOOK:
            tried, ripe = ripe[:CLAIMS_AT_ONCE], ripe[CLAIMS_AT_ONCE:]
            found = self._tried_at_once(tried, files, seen, now)
            jobs = [one for one in found if isinstance(one, Job)]
            next_at = min([next_at, *(one for one in found if not isinstance(one, Job))])
            count += len(jobs)

            for name, one in zip(tried, found, strict=True):
                if isinstance(one, Job):
                    del seen[name]
                    seen.pop(name + SIDECAR_SUFFIX, None)

            yield jobs

        if ripe:
            next_at = now  # the others of this look, of which nothing is known yet

        self.has_looked = True
        self.next_look_at = min(self.next_look_at, next_at)  # `wake` may have been called meanwhile

    def tell_left(self) -> None:
        """Say what a drain is about to end without: sidecars whose files have not come."""
        for name, sighting in self._seen.items():
            if sighting.is_sidecar and name.removesuffix(SIDECAR_SUFFIX) not in self._seen:
                self._complain_of_lone(name)

    def _tried_at_once(
        self,
        names: Sequence[str],
        files: Mapping[str, os.stat_result],
        seen: Mapping[str, _Sighting],
        now: float,
    ) -> list[Job | float]:
        """Try to claim some files side by side: most of what a claim takes is waiting for the disk.

        What several threads wait for at once the disk does at once.
        """
        tried = partial(self._tried, files=files, seen=seen, now=now)

        if len(names) == 1:
            return [tried(names[0])]

        with ThreadPoolExecutor(CLAIMS_BESIDE) as threads:
            return list(threads.map(tried, names))

    def _tried(
        self,
        name: str,
        files: Mapping[str, os.stat_result],
        seen: Mapping[str, _Sighting],
        now: float,
    ) -> Job | float:
        """Claim a file if it is whole; else return when to try again, infinity after a change."""
        sidecar = name + SIDECAR_SUFFIX
        parts = [part for part in (name, sidecar) if part in files]

        if sidecar in self._odd:  # without what it says, the file would be asked something else
            self._complain("inbox.unreadable", sidecar, hint="make it a file, or remove it")
            seen[name].is_stuck = True

            return math.inf

        try:
            if all(self._is_whole(part, seen[part], now) for part in parts):
                found = self.claims.claim(name, files[name], files.get(sidecar))
            elif any(seen[part].is_open for part in parts):
                return now + max(self.settings.spool.settle, 1.0)
            elif any(seen[part].is_stuck for part in parts):
                seen[name].is_stuck = True  # it, or its sidecar, cannot be read

                return math.inf
            else:
                found = Unclaimed()
        except OSError as error:  # too many open files: nothing is known of this one
            found = Unclaimed(error.strerror)

        return found if isinstance(found, Job) else self._refused(name, seen[name], found, now)

    def _refused(self, name: str, sighting: _Sighting, why: Unclaimed, now: float) -> float:
        """Remember that a file could not be claimed, and return when to try again.

        What was refused is told of once, and again when the reason is another.
        """
        sighting.tries += 1
        sighting.is_stuck = why.is_stuck and not (why.may_pass and sighting.tries < CLAIM_TRIES)
        sighting.again_at = now + CLAIM_RETRY_S

        if sighting.is_stuck:
            sighting.again_at = now + self.settings.spool.rescan
            hint = "we may not move it: check who owns it and its folder, lsattr, and mounts"
            self._complain("inbox.unclaimed", name, reason=why.reason, hint=hint)
        elif why.reason is not None:
            hint = "it is tried again by itself"
            self._complain("inbox.unclaimed", name, reason=why.reason, hint=hint)

        return sighting.again_at

    def _ripe_at(
        self,
        name: str,
        files: Mapping[str, os.stat_result],
        seen: Mapping[str, _Sighting],
        now: float,
    ) -> float:
        """Return when to try a file: it and its sidecar have settled; one look is never enough."""
        parts = [part for part in (name, name + SIDECAR_SUFFIX) if part in files]
        since = max(seen[part].since for part in parts)
        settled_at = since + self.settings.spool.settle
        is_new = since == now >= settled_at

        return max(math.nextafter(now, math.inf) if is_new else settled_at, seen[name].again_at)

    def _note_sidecar(self, name: str, seen: Mapping[str, _Sighting], now: float) -> None:
        """Remember that *name* is no prompt file; say so when the file it is for does not come."""
        seen[name].is_sidecar = True

        if name.removesuffix(SIDECAR_SUFFIX) not in seen and (
            now - seen[name].since > LONE_SIDECAR_S
        ):
            self._complain_of_lone(name)

    def _complain_of_lone(self, name: str) -> None:
        wanted = shown(os.fsencode(name.removesuffix(SIDECAR_SUFFIX)))
        hint = f"drop {wanted} beside it, or remove it"
        self._complain("inbox.lone_sidecar", name, hint=hint)

    def _sighting(self, name: str, status: os.stat_result, now: float) -> _Sighting:
        looks_like = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._seen.get(name)

        if known is not None and known.looks_like == looks_like:
            return known

        return _Sighting(looks_like=looks_like, since=now)

    def _is_whole(self, name: str, sighting: _Sighting, now: float) -> bool:
        """Tell whether nobody writes to a file that has settled; say so when somebody does."""
        above, _, base = name.rpartition("/")

        try:
            with opened_folder(self.spool.inbox, above) as place:
                writer = writer_of(base, place=place)
        except OSError as error:
            if error.errno not in CHANGED:
                raise

            writer = Writer.GONE

        sighting.is_open = writer is Writer.SOMEBODY
        sighting.is_stuck = writer is Writer.UNREADABLE

        if sighting.is_stuck:
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
        """Yield every file that may be a job, as its path below the inbox, in order of name.

        The names of what is something else are kept in `_odd`.
        """
        device = self.spool.inbox.stat().st_dev
        folders = [""]

        while folders:
            folder = folders.pop()

            for entry_name, status in self._listed(folder):
                name = f"{folder}/{entry_name}" if folder else entry_name
                is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)

                if is_file and not is_ignored(entry_name):
                    yield name, status

                if is_file:
                    continue

                self._odd.add(name)

                if not is_folder:
                    hint = "only files are taken; links are not followed"
                    self._complain("inbox.left_alone", name, hint=hint)
                elif _is_folder_to_read(entry_name):
                    if status.st_dev == device:
                        folders.append(name)
                    else:
                        hint = "files cannot be moved out of it"
                        self._complain("inbox.mounted", name, hint=hint)

    def _listed(self, folder: str) -> list[tuple[str, os.stat_result]]:
        """Return what is in a folder of the inbox, in order of name; what is gone is left out."""
        found = []

        try:
            with opened_folder(self.spool.inbox, folder) as place, os.scandir(place) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    with suppress(FileNotFoundError):
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
        except OSError as error:
            if not folder or error.errno in SHORT_OF:
                raise  # nothing can have been claimed yet

            self._complain("inbox.unreadable", folder, hint="chmod or chown the folder")

        return found

    def _complain(self, event: str, name: str, *, hint: str, reason: str | None = None) -> None:
        """Warn of a name once, and again when there is something else to say of it."""
        told = (event, hint, reason or "")

        if self._told.get(name) != told:
            self._told[name] = told
            why = {} if reason is None else {"reason": reason}
            _log.warning(event, file=shown(os.fsencode(name)), **why, hint=hint)


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
