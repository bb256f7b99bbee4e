"""Claims: a file of the inbox becomes a job by one rename into `working/<job id>/`.

`claim.json` is put there first, then the file's sidecar, then the file, whose content is on the
platter by then. After a crash anywhere in between, `adopted` finds a folder with an original, which
becomes a job, or one without, which is swept away once its sidecar is back in the inbox. What
turns out to be something else than was found whole goes back to the inbox, to settle anew.

Of a file only what `names` has moved here is read, and a sidecar too: nobody can put another in
its place any more. Raises `OSError` (environment) where the spool itself cannot be read.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

import msgspec
import structlog

from promptspool.errors import ConfigError
from promptspool.model import Job, JobId, JobStatus, shown
from promptspool.names import (
    CHANGED,
    Writer,
    is_one,
    is_there,
    made_folder,
    move,
    opened_folder,
    put_back,
    sync_found,
    writer_of,
)
from promptspool.settings import profile_for
from promptspool.spool import (
    SIDECAR,
    SIDECAR_SUFFIX,
    TOO_LONG,
    remove_folder,
    sweep_removed,
    sync_folder,
    write_durably,
)
from promptspool.wire import Claim

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.clock import Clock
    from promptspool.settings import Settings
    from promptspool.spool import Spool

DEFAULT_PROFILE = "default"

ORIGINAL = "original"
"""A dropped file's name in the working folder."""

TRIES_TO_MINT = 5
"""So many ids are tried for one file: of 10,000 in a second, two are the same once in 15 times."""

_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"

# Of this file: immutable, in a sticky folder of somebody else's, a mount, on a bad block.
_STUCK = frozenset({errno.EPERM, errno.EACCES, errno.EROFS, errno.EXDEV, errno.EBUSY, errno.EIO})
_PASSING = frozenset({errno.EBUSY, errno.EIO})

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


def mint(now: float) -> JobId:
    """Return a new job id: the time of *now* and six random characters."""
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%Sz")
    tail = "".join(secrets.choice(_ALPHABET) for _ in range(6))

    return JobId(f"{moment}-{tail}")


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A file that became no job, and is in the inbox as before."""

    reason: str | None = None
    """What was refused; None if the file is another by now, or has changed."""
    is_stuck: bool = False
    """The file cannot be moved out of the inbox until somebody lets us."""
    may_pass: bool = False
    """A disk that refuses for a moment says the same."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file of the inbox as it was found whole, and its sidecar if it has one."""

    name: str
    """Below the inbox."""
    base: str
    status: os.stat_result
    aside: str
    """What its sidecar would be called, in the same folder."""
    sidecar: os.stat_result | None


@dataclass(slots=True)
class Claims:
    """Makes jobs of files. All of it blocks: call it in worker threads, several at once even."""

    spool: Spool
    settings: Settings
    clock: Clock
    taken: set[bytes] = field(default_factory=set)
    """Stems that live jobs have reserved."""
    _reserving: threading.Lock = field(default_factory=threading.Lock)

    def claim(
        self, name: str, status: os.stat_result, sidecar: os.stat_result | None
    ) -> Job | Unclaimed:
        """Claim one file, and its sidecar if it has one; both are as they were found whole."""
        above, _, base = name.rpartition("/")
        aside = base + SIDECAR_SUFFIX

        try:
            with opened_folder(self.spool.inbox, above) as place:
                if sidecar is None:
                    is_same = not is_there(aside, place)
                else:
                    is_same = sync_found(aside, place, sidecar)

                if not is_same or not sync_found(base, place, status):
                    return Unclaimed()

                return self._taken_in(_Found(name, base, status, aside, sidecar), place)
        except OSError as error:
            return _refusal(error)

    def _taken_in(self, found: _Found, place: int) -> Job | Unclaimed:
        """Make a folder for what was found in the open folder *place*, and move it there."""
        try:
            stem = self._reserved(os.fsencode(found.name))
        except OSError as error:
            return Unclaimed(_why(error))

        outcome: Job | Unclaimed = Unclaimed()

        try:
            outcome = self._filed(found, stem, place)
        finally:
            if isinstance(outcome, Unclaimed):
                self.taken.discard(stem)

        return outcome

    def _reserved(self, name: bytes) -> bytes:
        """Take a stem for *name* that is free; nobody else can take it from now on."""
        with self._reserving:
            stem = self.spool.reserve(name, self.taken)
            self.taken.add(stem)

        return stem

    def _filed(self, found: _Found, stem: bytes, place: int) -> Job | Unclaimed:
        try:
            claim, folder = self._new_folder(found, stem)
        except OSError as error:
            return Unclaimed(_why(error))

        try:
            sync_folder(folder.parent)
            _note(claim, folder)
        except OSError as error:
            _remove(folder)

            return Unclaimed(_why(error))

        outcome = Unclaimed()

        try:
            moved = self._moved(found, claim, folder, place)
        except OSError as error:
            is_ours = os.path.lexists(folder / ORIGINAL)  # so it could be moved
            outcome = Unclaimed(_why(error)) if is_ours else _refusal(error)
        else:
            if moved is not None:
                return moved.row()

        _give_back(claim, folder, place)  # as `adopted` does after a crash here

        return outcome

    def _new_folder(self, found: _Found, stem: bytes) -> tuple[Claim, Path]:
        """Return a claim and the folder made for it; of thousands at once, two ids may meet."""
        for _ in range(TRIES_TO_MINT):
            with suppress(FileExistsError):  # another job's
                return self._made_folder(found, stem)

        return self._made_folder(found, stem)

    def _made_folder(self, found: _Found, stem: bytes) -> tuple[Claim, Path]:
        claim = self._claim_of(found.name, found.status.st_size, stem)
        folder = self.spool.folder(claim.job)
        folder.mkdir()

        return claim, folder

    def _moved(self, found: _Found, claim: Claim, folder: Path, place: int) -> Claim | None:
        """Move the file, last of all; None if something else turns out to have been moved."""
        if found.sidecar is not None:
            if not move(found.aside, place, folder / SIDECAR, found.sidecar):
                return None

            claim = self._with_profile(claim, folder / SIDECAR)
            _note(claim, folder)

        if not move(found.base, place, folder / ORIGINAL, found.status):
            return None

        sync_folder(folder)
        os.fsync(place)

        return claim

    def _claim_of(self, name: str, size_bytes: int, stem: bytes) -> Claim:
        """Return what is known of a file before its sidecar is read."""
        raw = os.fsencode(name)
        now = self.clock.now()
        claim = Claim(
            job=mint(now),
            name=raw,
            stem=stem,
            profile=shown(os.fsencode(_profile_name(raw))),
            provider=None,
            base_url=None,
            claimed_at=now,
            size_bytes=size_bytes,
            refused=TOO_LONG if self.spool.is_too_long(raw) else None,
        )

        return self._with_profile(claim, None)

    def _with_profile(self, claim: Claim, sidecar: Path | None) -> Claim:
        """Pin what profile and sidecar say; no provider where the plan will say what is wrong.

        Raises `OSError` if the sidecar cannot be read now.
        """
        settings = self.settings  # one for all of it: another may take its place meanwhile

        try:
            profile = profile_for(settings, _profile_name(claim.name), sidecar)
        except ConfigError:
            profile = None

        provider = None if profile is None else profile.provider

        return msgspec.structs.replace(
            claim,
            provider=provider,
            base_url=None if provider is None else settings.providers[provider].base_url,
            priority=0 if profile is None else profile.priority,
        )

    def adopted(self, known: set[JobId]) -> list[Job]:
        """Return jobs for the folders in `working/` that have no row, and sweep half-made claims.

        That is how a crash between a claim and its row ends, and how a lost database is rebuilt. A
        folder whose summary is written is settled, whatever the provider still has of it.
        """
        sweep_removed(self.spool.working)
        folders = sorted(self.spool.working.iterdir())
        unknown = [folder for folder in folders if folder.name not in known]
        jobs = [self._adopted(folder) for folder in unknown if folder.is_dir()]

        return [job for job in jobs if job is not None]

    def _adopted(self, folder: Path) -> Job | None:
        claim = None if folder.is_symlink() else _claim_in(folder)
        has_original = os.path.lexists(folder / ORIGINAL)

        if claim is None:
            if folder.is_symlink() or has_original or os.path.lexists(folder / SIDECAR):
                hint = "move what is in it back by hand; links are not followed"
                _log.warning("inbox.unknown_folder", file=folder.name, hint=hint)
            else:
                _remove(folder)

            return None

        if (folder / "summary.json").exists():
            return claim.row(JobStatus.SETTLED)

        if has_original and not self._is_put_back(claim, folder) and _is_as_claimed(claim, folder):
            return claim.row()

        try:
            with made_folder(self.spool.inbox, _above(claim)) as place:
                _give_back(claim, folder, place)
        except OSError as error:
            _tell_left(claim, folder, error)

        return None

    def _is_put_back(self, claim: Claim, folder: Path) -> bool:
        """Tell whether a claim was being taken back: its file has its old name again."""
        try:
            with opened_folder(self.spool.inbox, _above(claim)) as place:
                return is_one(_base(claim), place, folder / ORIGINAL)
        except OSError:
            return False


def _profile_name(name: bytes) -> str:
    folder, slash, _ = name.partition(b"/")

    return os.fsdecode(folder) if slash else DEFAULT_PROFILE


def _above(claim: Claim) -> str:
    return os.fsdecode(claim.name.rpartition(b"/")[0])


def _base(claim: Claim) -> str:
    return os.fsdecode(claim.name.rpartition(b"/")[2])


def _note(claim: Claim, folder: Path) -> None:
    write_durably(folder / "claim.json", msgspec.json.encode(claim))


def _claim_in(folder: Path) -> Claim | None:
    """Return the claim in a folder; None if there is none, or that of another folder."""
    try:
        claim = msgspec.json.decode((folder / "claim.json").read_bytes(), type=Claim)
    except (FileNotFoundError, msgspec.DecodeError):
        return None

    return claim if claim.job == folder.name else None


def _is_as_claimed(claim: Claim, folder: Path) -> bool:
    """Tell whether an original that was never looked at after its rename is what was claimed."""
    status = (folder / ORIGINAL).lstat()
    is_whole = stat.S_ISREG(status.st_mode) and status.st_size == claim.size_bytes
    is_planned = any((folder / name).exists() for name in ("manifest.json", "rejection.json"))

    return is_planned or (is_whole and writer_of(folder / ORIGINAL) is not Writer.SOMEBODY)


def _give_back(claim: Claim, folder: Path, place: int) -> None:
    """Return what a claim has taken to the inbox, open as *place*, and remove its folder.

    A file whose name is taken again, which is by a newer one, gets a number. A newer sidecar of it
    replaces the old one. What cannot be moved stays with us, until the next start tries again.
    """
    try:
        if os.path.lexists(folder / ORIGINAL):
            claim = _returned(claim, folder, place)

        if os.path.lexists(folder / SIDECAR):
            with suppress(FileExistsError):
                put_back(folder / SIDECAR, _base(claim) + SIDECAR_SUFFIX, place)

        remove_folder(folder)
    except OSError as error:
        _tell_left(claim, folder, error)


def _returned(claim: Claim, folder: Path, place: int) -> Claim:
    """Return the original to the inbox, and the claim with the name that it has got."""
    above, slash, base = claim.name.rpartition(b"/")
    stem, dot, suffixes = base.partition(b".")

    for number in count(2):
        if is_one(_base(claim), place, folder / ORIGINAL):
            break  # by a process that died before the folder was gone

        try:
            put_back(folder / ORIGINAL, _base(claim), place)
        except FileExistsError:
            name = above + slash + stem + b"-%d" % number + dot + suffixes
            claim = msgspec.structs.replace(claim, name=name)
            _note(claim, folder)  # first: `adopted` looks for the file under this name
        else:
            break

    return claim


def _tell_left(claim: Claim, folder: Path, error: OSError) -> None:
    hint = f"what is in {folder} goes back to the inbox when promptspool is started again"
    _log.warning("inbox.unclaimed", file=shown(claim.name), reason=_why(error), hint=hint)


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _refusal(error: OSError) -> Unclaimed:
    """Return what an error says of the file that could not be opened or moved."""
    if error.errno in CHANGED:
        return Unclaimed()

    return Unclaimed(_why(error), error.errno in _STUCK, error.errno in _PASSING)


def _remove(folder: Path) -> None:
    with suppress(OSError):  # what is left is swept at the next start
        remove_folder(folder)
