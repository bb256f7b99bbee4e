"""Claims: a file of the inbox becomes a job by one rename into `working/<job id>/`.

`claim.json` is put there first, then the file's sidecar, then the file. After a crash anywhere in
between, `adopted` finds a folder with an original, which becomes a job, or one without, which is
swept away once its sidecar is back in the inbox. Raises `OSError` (environment) where the spool
itself cannot be read.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import structlog

from promptspool.errors import ConfigError
from promptspool.model import Job, JobId, JobStatus, shown
from promptspool.settings import profile_for
from promptspool.spool import (
    SIDECAR,
    TOO_LONG,
    remove_folder,
    sidecar_of,
    sweep_removed,
    sync_folder,
    write_durably,
)
from promptspool.wire import Claim

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.clock import Clock
    from promptspool.settings import ProfileSettings, Settings
    from promptspool.spool import Spool

DEFAULT_PROFILE = "default"

_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"


def mint(now: float) -> JobId:
    """Return a new job id: the time of *now* and six random characters."""
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%Sz")
    tail = "".join(secrets.choice(_ALPHABET) for _ in range(6))

    return JobId(f"{moment}-{tail}")


_log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class Claims:
    """Makes jobs of files. All of it blocks: call it in a worker thread."""

    spool: Spool
    settings: Settings
    clock: Clock
    taken: set[bytes] = field(default_factory=set)
    """Stems that live jobs have reserved."""

    def claim(
        self, name: str, status: os.stat_result, sidecar: os.stat_result | None
    ) -> Job | None:
        """Claim one file, and its sidecar if it has one; both are as they were found whole.

        Returns None if one of them turned out to have changed, or the disk refused.
        """
        source = self.spool.inbox / name
        claim = self._claim_of(name, status.st_size, has_sidecar=sidecar is not None)
        folder = self.spool.folder(claim.job)

        try:
            folder.mkdir()
        except OSError as error:
            _log.warning("inbox.unclaimed", file=shown(claim.name), reason=str(error))

            return None  # nothing was made, and what is there is another job's

        try:
            self._move(source, folder, claim, has_sidecar=sidecar is not None)
        except OSError as error:
            _log.warning("inbox.unclaimed", file=shown(claim.name), reason=str(error))

            if not (folder / "original").exists():
                _abandon(folder, source)

                return None

        is_same = _is_same(folder / "original", status) and (
            sidecar is None or _is_same(folder / SIDECAR, sidecar)
        )

        if not is_same and _put_back(folder / "original", source):
            _abandon(folder, source)  # after a crash here, `adopted` sees that both are one file

            return None

        self.taken.add(claim.stem)

        return _job(claim)

    @staticmethod
    def _move(source: Path, folder: Path, claim: Claim, *, has_sidecar: bool) -> None:
        """Move a file into its working folder, last of all; each step is on the platter."""
        sync_folder(folder.parent)
        write_durably(folder / "claim.json", msgspec.json.encode(claim))

        if has_sidecar:
            sidecar_of(source).rename(folder / SIDECAR)

        source.rename(folder / "original")
        sync_folder(folder)
        sync_folder(source.parent)

    def _claim_of(self, name: str, size_bytes: int, *, has_sidecar: bool) -> Claim:
        folder, slash, _ = name.partition("/")
        profile_name = folder if slash else DEFAULT_PROFILE
        path = sidecar_of(self.spool.inbox / name)
        profile = self._profile(profile_name, path if has_sidecar else None)
        provider = None if profile is None else profile.provider
        raw = os.fsencode(name)
        now = self.clock.now()

        return Claim(
            job=mint(now),
            name=raw,
            stem=self.spool.reserve(raw, self.taken),
            profile=shown(os.fsencode(profile_name)),
            provider=provider,
            base_url=None if provider is None else self.settings.providers[provider].base_url,
            claimed_at=now,
            size_bytes=size_bytes,
            priority=0 if profile is None else profile.priority,
            refused=TOO_LONG if self.spool.is_too_long(raw) else None,
        )

    def _profile(self, name: str, sidecar: Path | None) -> ProfileSettings | None:
        """Return the profile of a file; None where its plan will say what is wrong with it."""
        try:
            return profile_for(self.settings, name, sidecar)
        except (ConfigError, OSError):
            return None

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

            if claim is not None and self._is_put_back(claim, folder):
                _abandon(folder, self._source(claim))
            elif claim is not None and (folder / "summary.json").exists():
                jobs.append(_job(claim, JobStatus.SETTLED))
            elif claim is not None and (folder / "original").exists():
                jobs.append(_job(claim))
            elif (folder / "original").exists() or (claim is None and (folder / SIDECAR).exists()):
                hint = "move what is in it back by hand"
                _log.warning("inbox.unknown_folder", file=folder.name, hint=hint)
            else:
                _abandon(folder, None if claim is None else self._source(claim))

        return jobs

    def _is_put_back(self, claim: Claim, folder: Path) -> bool:
        """Tell whether a claim was being taken back: its file has its old name again."""
        source, original = self._source(claim), folder / "original"

        return original.exists() and source.exists() and source.samefile(original)

    def _source(self, claim: Claim) -> Path:
        return self.spool.inbox / os.fsdecode(claim.name)


def _is_same(path: Path, before: os.stat_result) -> bool:
    """Tell whether *path* is the very file that was found whole, by all that a rename leaves."""
    after = path.lstat()

    return (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


def _put_back(mine: Path, source: Path) -> bool:
    """Return a file to the inbox; False if its name is taken again."""
    try:
        source.hardlink_to(mine)
        sync_folder(source.parent)
    except OSError:
        return False

    return True


def _abandon(folder: Path, source: Path | None) -> None:
    """Take back the claim of *source*; a newer sidecar of it in the inbox replaces the old one."""
    sidecar = folder / SIDECAR

    try:
        if source is not None and sidecar.exists():
            source.parent.mkdir(parents=True, exist_ok=True)

            with suppress(FileExistsError):
                sidecar_of(source).hardlink_to(sidecar)
                sync_folder(source.parent)

        remove_folder(folder)
    except OSError as error:  # what is in it stays there
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
        priority=claim.priority,
    )
