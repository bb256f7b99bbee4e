"""Retrying: what failed of a delivered job becomes a new job, which delivers all of it again.

The new job's folder is filled under a name that a start sweeps away, and gets its own by one
rename: after a crash it is there whole, or not at all. What the earlier job has delivered stays as
it is; of its answers the new folder has a second name, and a copy of its original.

All of it blocks: call it in a worker thread. Raises `NotRetryable` (bad data) for a job of which
this cannot be done, and lets `OSError` through (environment).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from promptspool.collect.verdict import code_of, parsed
from promptspool.digest import Hasher, digest_read
from promptspool.errors import ConfigError, PromptspoolError
from promptspool.model import JobId, JobStatus, shown
from promptspool.planning import unknown_profile
from promptspool.settings import profile_for
from promptspool.spool import (
    SIDECAR,
    SIDECAR_SUFFIX,
    read_own,
    rename_durably,
    sidecar_of,
    sync_file,
    sync_folder,
    write_durably,
)
from promptspool.wire import KEPT, RETRY, Claim, Retry

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from io import BufferedReader
    from pathlib import Path

    from promptspool.claims import Claims
    from promptspool.model import Job
    from promptspool.settings import ProfileSettings, Settings
    from promptspool.spool import Spool

_BLOCK_BYTES = 1 << 20


class NotRetryable(PromptspoolError):
    """The job cannot be retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retryable:
    """What a retry would come to."""

    failed: dict[str, int]
    """Requests to be asked again, by the code of their error, the most frequent first."""
    kept: int
    """Requests whose answers are delivered again as they are."""
    stem: bytes
    """What its products will be named after, unless another job is quicker."""

    @property
    def shown(self) -> str:
        """Return the new name as text for people."""
        return shown(self.stem)


def retry_id(left_at: float, name: str) -> JobId:
    """Return the id of the job that a command makes, left at *left_at* under *name*: always one.

    Raises `NotRetryable` for a time that is none.
    """
    try:
        moment = datetime.fromtimestamp(left_at, UTC).strftime("%Y%m%dt%H%M%Sz")
    except (OSError, OverflowError, ValueError) as error:
        raise NotRetryable(f"the command was left at {left_at}, which is no time") from error

    tail = base64.b32encode(hashlib.sha256(name.encode()).digest())[:6].decode().lower()

    return JobId(f"{moment}-{tail}")


def retryable(spool: Spool, settings: Settings, job: Job) -> Retryable:
    """Return what a retry of *job* would come to; changes nothing.

    Raises `NotRetryable` if it is not delivered, has no errors, is being retried already, or if
    what it takes is gone: its original, its results and errors as they were delivered, its profile.
    """
    found, _ = _found(spool, settings, job, taken=())

    with _opened(_original(spool, job)) as file:
        _check_content(job, digest_read(file, like=job.digest))

    return found


def begin(  # noqa: PLR0913 (the job, its places, and the command)
    spool: Spool, claims: Claims, settings: Settings, job: Job, *, left_at: float, name: str
) -> Job:
    """Make the folder of a retry of *job*, which a command under *name* asks for; return its row.

    A folder that is there already is the same command's, from before a crash. Raises `NotRetryable`
    as `retryable`.
    """
    folder = spool.folder(retry_id(left_at, name))

    if not folder.exists():
        found, profile = _found(spool, settings, job, taken=claims.taken)
        claim = Claim(
            job=JobId(folder.name),
            name=job.name,
            stem=found.stem,
            profile=job.profile,
            provider=profile.provider,
            base_url=settings.providers[profile.provider].base_url,
            claimed_at=claims.clock.now(),
            size_bytes=job.size_bytes,
            priority=profile.priority,
            retry_of=job.id,
        )
        _make(spool, job, claim, folder)

    claim = read_own(folder / "claim.json", Claim)
    claims.taken.add(claim.stem)

    return claim.row()


def _make(spool: Spool, job: Job, claim: Claim, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.removed")  # so a start sweeps what was cut off
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()

    try:
        _fill(spool, job, claim, part)
        sync_folder(part)
        rename_durably(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(spool: Spool, job: Job, claim: Claim, part: Path) -> None:
    original, sidecar = _original(spool, job), sidecar_of(_original(spool, job))
    kept = Retry(job=job.id, kept=job.results or 0, failed=job.errors or 0)
    _check_content(job, _copied(original, part / "original", like=job.digest))
    _named_again(_delivered(spool, job, "results.jsonl"), part / KEPT)

    if sidecar.exists():
        _copied(sidecar, part / SIDECAR)

    write_durably(part / RETRY, msgspec.json.encode(kept))
    write_durably(part / "claim.json", msgspec.json.encode(claim))


# What it takes.


def _found(
    spool: Spool, settings: Settings, job: Job, *, taken: Collection[bytes]
) -> tuple[Retryable, ProfileSettings]:
    """Return what a retry would come to, whatever is in the original, and by which profile."""
    if job.status not in (JobStatus.DELIVERED, JobStatus.DONE) or job.results is None:
        is_old = job.status is JobStatus.DONE and not (job.why or "")
        reason = (
            f"{job.shown} is not delivered, or by an earlier version that did not count its "
            f"answers; drop what failed again"
            if is_old
            else f"{job.shown} is not delivered; it is {job.status.value}"
        )
        raise NotRetryable(reason)

    if not job.errors:
        raise NotRetryable(f"{job.shown} has no errors: all of it was answered")

    profile = _profile(spool, settings, job)
    claims = list(_claims(spool))
    again = next((claim.job for claim in claims if claim.retry_of == job.id), None)

    if again is not None:
        raise NotRetryable(f"{job.shown} is being retried already, by job {again}")

    results = _delivered(spool, job, "results.jsonl")
    _check_count(results, _lines_of(results), job.results)

    found = Retryable(
        failed=_codes(_delivered(spool, job, "errors.jsonl"), job.errors),
        kept=job.results,
        stem=spool.reserve(job.name, {*taken, *(claim.stem for claim in claims)}),
    )

    return found, profile


def _profile(spool: Spool, settings: Settings, job: Job) -> ProfileSettings:
    """Return the profile of a job as it is today, with its sidecar laid over it."""
    sidecar = sidecar_of(_original(spool, job))
    name = f"{job.shown}{SIDECAR_SUFFIX}"

    try:
        profile = profile_for(settings, job.profile, sidecar if sidecar.exists() else None, name)
    except ConfigError as error:
        raise NotRetryable(str(error)) from error
    except OSError as error:
        raise _unreadable(sidecar, error) from error

    if profile is None:
        raise NotRetryable(unknown_profile(job.profile, settings))

    return profile


def _original(spool: Spool, job: Job) -> Path:
    return spool.done / os.fsdecode(job.stem)


def _delivered(spool: Spool, job: Job, product: str) -> Path:
    return spool.outbox / f"{os.fsdecode(job.stem)}.{product}"


def _claims(spool: Spool) -> Iterator[Claim]:
    """Yield the claims of the jobs in work, as far as they can be read."""
    for path in spool.working.glob("*/claim.json"):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=Claim)
        except (OSError, msgspec.DecodeError):
            continue


def _opened(path: Path) -> BufferedReader:
    """Open a file that the spool keeps for people; raises `NotRetryable` if it is not there."""
    try:
        return open(path, "rb", opener=_opened_plainly)
    except OSError as error:
        raise _unreadable(path, error) from error


def _opened_plainly(path: str, flags: int) -> int:
    """Follow no link and wait for no writer: others may put what they like there."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _unreadable(path: Path, error: OSError) -> NotRetryable:
    if isinstance(error, FileNotFoundError):
        return NotRetryable(f"{path} is gone; put it back, or drop the file again")

    return NotRetryable(f"{path} cannot be read: {error.strerror}")


def _check_content(job: Job, digest: str) -> None:
    if job.digest != digest:
        reason = f"the original of {job.shown} in done/ is not what was answered; drop it again"
        raise NotRetryable(reason)


def _check_count(path: Path, count: int, expected: int) -> None:
    if count != expected:
        reason = f"{path} has {count:,} lines, {expected:,} were delivered; put it back"
        raise NotRetryable(reason)


def _lines_of(path: Path) -> int:
    with _opened(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


def _codes(path: Path, expected: int) -> dict[str, int]:
    """Count the lines of an error file by their codes."""
    codes: Counter[str] = Counter()

    with _opened(path) as file:
        for line in file:
            error = parsed(line)
            codes["unreadable" if error is None else code_of(error)] += 1

    _check_count(path, codes.total(), expected)

    return dict(codes.most_common())


# What it leaves.


def _copied(source: Path, target: Path, *, like: str | None = None) -> str:
    """Copy a file, durably and for the same readers; return the digest of what was copied.

    A link would have to be trusted not to change, and may not be made of a file of somebody else's.
    """
    hasher = Hasher(like=like)

    with _opened(source) as file, target.open("xb") as copy:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        os.fchmod(copy.fileno(), mode | stat.S_IRUSR)

        for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
            hasher.update(block)
            copy.write(block)

        copy.flush()
        os.fsync(copy.fileno())

    return hasher.digest()


def _named_again(source: Path, target: Path) -> None:
    """Give results a second name, where there can be one: they may be large, and the plan looks."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        _copied(source, target)
    else:
        sync_file(target)
