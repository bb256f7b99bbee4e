"""Dropping a file for somebody: a copy of it in the inbox, whole or not at all.

It is copied to a hidden name in the inbox folder, put on the platter and renamed, replacing
nothing; its sidecar goes first, so that nobody sees the file without it. The user's own file is
only ever read, and never linked: it is not ours. Whoever is killed in between leaves a hidden file,
which the next one to drop something there removes after a day, or a sidecar that waits for its
file, which the daemon's log tells of.

Raises `ConfigError` (environment) for what is asked for wrongly, before anything is dropped,
`SpoolError` (environment) where the inbox cannot be used, and `SubmitError` (environment) for a
copy that did not get done.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import secrets
import shutil
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING

from promptspool.claims import DEFAULT_PROFILE
from promptspool.clock import SystemClock
from promptspool.errors import ConfigError, PromptspoolError, SpoolError
from promptspool.inbox import is_ignored
from promptspool.model import shown
from promptspool.settings import profile_for
from promptspool.spool import (
    SIDECAR_SUFFIX,
    TOO_LONG,
    Spool,
    rename_new,
    sidecar_of,
    sync_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.settings import Settings

STDIN = Path("-")
"""Stands for standard input."""

PART_PREFIX = ".promptspool-submit-"
PART_KEPT_S = 86_400.0
"""A half copy that was not written to for so long is nobody's any more."""

_CHUNK = 1 << 20


class SubmitError(PromptspoolError):
    """A file could not be dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A file that is in the inbox."""

    name: str
    """Its path below the inbox, as the file system has it."""
    wanted: str
    """The same if nothing with the name it was to have had been waiting there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is to be dropped, open."""

    path: Path
    file: IO[bytes]
    name: str
    """What it is to be called."""
    sidecar: Path | None
    beginning: bytes = b""
    """What was read of it already."""


@contextmanager
def sources(
    settings: Settings, paths: list[Path], *, profile: str, name: str | None, stdin: IO[bytes]
) -> Iterator[list[Source]]:
    """Open the files at *paths*, and hold that each of them can be dropped.

    *name* is what the only one is to be called, None for its own name. Raises `ConfigError`.
    """
    if profile not in settings.profiles:
        known = ", ".join(settings.profiles) or "(none)"
        raise ConfigError("--profile", f"there is no profile {profile!r}; known: {known}")

    if name is not None and len(paths) > 1:
        raise ConfigError("--name", "it names one file; submit the others by themselves")

    if paths.count(STDIN) > 1:
        raise ConfigError("-", "standard input can be read but once")

    with ExitStack() as stack:
        found = [
            _from_stdin(stdin, name) if path == STDIN else stack.enter_context(_opened(path, name))
            for path in paths
        ]

        for source in found:
            _check_name(source)
            _check_sidecar(settings, profile, source)

        yield found


@contextmanager
def _opened(path: Path, name: str | None) -> Iterator[Source]:
    try:
        # Not to wait for the writer of a FIFO; a link of one's own may be followed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(str(path), f"it cannot be read: {error.strerror}") from error

    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)

    if kind != stat.S_IFREG:
        os.close(descriptor)
        advice = (
            "it is a folder; name the files in it"
            if kind == stat.S_IFDIR
            else "it is no file; to read a pipe, write - and a --name"
        )
        raise ConfigError(str(path), advice)

    sidecar = sidecar_of(path)

    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield Source(
            path=path,
            file=file,
            name=name if name is not None else path.name,
            sidecar=sidecar if os.path.lexists(sidecar) else None,
        )


def _from_stdin(stdin: IO[bytes], name: str | None) -> Source:
    beginning = stdin.read(_CHUNK)

    if not beginning:
        raise ConfigError("-", "nothing came from standard input")

    return Source(
        path=STDIN,
        file=stdin,
        name=name or f"stdin{_suffix(beginning)}",
        sidecar=None,
        beginning=beginning,
    )


def _suffix(beginning: bytes) -> str:
    """Guess what rows are by their first byte: objects, an array of them, or lines of text."""
    return {b"{": ".jsonl", b"[": ".json"}.get(beginning.lstrip()[:1], ".txt")


def _check_name(source: Source) -> None:
    name = source.name

    if not name or "/" in name or "\0" in name:
        reason = f"found {name!r}; write a name without folders, as in may.csv"
        raise ConfigError("--name", reason)

    if is_ignored(name) or name.endswith(SIDECAR_SUFFIX):
        reason = (
            "a file of this name is left alone: it is hidden, unfinished or a sidecar; "
            "give it another by --name"
        )
        raise ConfigError(name, reason)

    if Spool.is_too_long(os.fsencode(name)):
        raise ConfigError(name, f"{TOO_LONG}; give it another by --name")


def _check_sidecar(settings: Settings, profile: str, source: Source) -> None:
    """Hold that the daemon will be able to follow the sidecar, or say now what is wrong."""
    if source.sidecar is None:
        return

    try:
        profile_for(settings, profile, source.sidecar, source.sidecar.name)
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        reason = "it is a link; put the file itself there" if is_link else f"{error.strerror}"
        raise ConfigError(str(source.sidecar), reason) from error


def drop(spool: Spool, source: Source, *, profile: str) -> Dropped:
    """Put a copy of *source* into the inbox folder of *profile*, and return its name there.

    Durable when it returns. Raises `SpoolError` if the folder cannot be used, and `SubmitError`.
    """
    folder = _folder(spool, profile)
    below = "" if folder == spool.inbox else f"{profile}/"
    _sweep(folder)

    with ExitStack() as stack:
        try:
            copy = stack.enter_context(_copied(source.file, folder, source.beginning))
            aside = None

            if source.sidecar is not None:
                with source.sidecar.open("rb") as file:
                    aside = stack.enter_context(_copied(file, folder))

            name = _named(copy, aside, folder, source.name)
            sync_folder(folder)
        except OSError as error:
            what = "standard input" if source.path == STDIN else shown(os.fsencode(source.path))
            raise SubmitError(f"{what}: it was not dropped: {_why(error, folder)}") from error

    return Dropped(name=below + name, wanted=below + source.name)


def _why(error: OSError, folder: Path) -> str:
    if error.errno not in (errno.EACCES, errno.EPERM):
        return error.strerror or str(error)

    with suppress(OSError, KeyError):
        above = folder.stat()
        group = grp.getgrgid(above.st_gid).gr_name
        owner = pwd.getpwuid(above.st_uid).pw_name
        who = f"the group {group}" if above.st_mode & stat.S_IWGRP else f"the user {owner}"

        return f"{folder}: {error.strerror}; {who} may drop files here"

    return f"{folder}: {error.strerror}"


def _folder(spool: Spool, profile: str) -> Path:
    """Return the folder of the inbox for *profile*, made if it is missing.

    The inbox itself is made by the daemon: where it is not there, the spool is another one.
    """
    try:
        inbox = spool.inbox.stat()
        folder = spool.inbox if profile == DEFAULT_PROFILE else spool.inbox / profile

        if folder != spool.inbox and not os.path.lexists(folder):
            with suppress(FileExistsError):  # made by somebody else just now
                folder.mkdir()
                # As the inbox, so that the daemon may take files out of it; but not sticky, which
                # would keep them to us: it is our folder, and not the daemon's.
                folder.chmod(stat.S_IMODE(inbox.st_mode) & ~stat.S_ISVTX)
                _hand_over(folder, inbox)
                sync_folder(spool.inbox)
    except FileNotFoundError as error:
        message = f"{spool.inbox} is not there; was promptspool ever started on this spool?"
        raise SpoolError(message) from error
    except OSError as error:
        raise SpoolError(f"{error.filename or spool.inbox}: {_why(error, spool.inbox)}") from error

    if folder.is_symlink() or not folder.is_dir():
        raise SpoolError(f"{folder} is no folder; the daemon looks into no link")

    return folder


def _hand_over(path: Path | int, inbox: os.stat_result) -> None:
    """Give *path* to the owner of the inbox, if we are root: what root drops is for the daemon."""
    if os.geteuid() == 0:
        os.chown(path, inbox.st_uid, inbox.st_gid)


@contextmanager
def _copied(source: IO[bytes], folder: Path, beginning: bytes = b"") -> Iterator[Path]:
    """Yield a copy of an open file in *folder*, under a hidden name; if that is left, it goes.

    The daemon is to read it, which is somebody else where the folder's group says so.
    """
    part = folder / f"{PART_PREFIX}{secrets.token_hex(6)}.part"
    above = folder.stat()
    before = os.fstat(source.fileno())
    is_for_group = bool(above.st_mode & stat.S_ISGID) or bool(before.st_mode & stat.S_IRGRP)

    try:
        with part.open("xb") as target:
            os.fchmod(target.fileno(), 0o640 if is_for_group else 0o600)
            _hand_over(target.fileno(), above)
            target.write(beginning)

            if not 0 < len(beginning) < _CHUNK:  # or its end was seen: a terminal says it but once
                shutil.copyfileobj(source, target, _CHUNK)

            target.flush()
            os.fsync(target.fileno())

        after = os.fstat(source.fileno())
        is_changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)

        if stat.S_ISREG(after.st_mode) and is_changed:
            raise OSError(errno.EBUSY, "it was changed while it was copied; submit it again")

        yield part
    finally:
        part.unlink(missing_ok=True)


def _named(copy: Path, aside: Path | None, folder: Path, wanted: str) -> str:
    """Give the copies their names, with a number if something waits under the one wanted."""
    for number in count(1):
        name = numbered(wanted, number)
        target = folder / name

        if os.path.lexists(target) or os.path.lexists(sidecar_of(target)):
            continue

        try:
            if aside is not None:
                rename_new(aside, sidecar_of(target))
        except FileExistsError:
            continue

        try:
            rename_new(copy, target)
        except FileExistsError:
            if aside is not None:  # or it would be the sidecar of somebody else's file
                rename_new(sidecar_of(target), aside)
        else:
            return name

    raise AssertionError  # pragma: no cover - there is no last number


def numbered(name: str, number: int) -> str:
    """Return *name* with a number before its suffixes, `may-2.csv.gz`; without one for the first.

    As the daemon does with what it returns to the inbox.
    """
    stem, dot, suffixes = name.partition(".")

    return name if number == 1 else f"{stem}-{number}{dot}{suffixes}"


def _sweep(folder: Path) -> None:
    """Remove what was half copied by somebody who was killed, as far as we may."""
    now = SystemClock().now()

    with suppress(OSError):
        for part in folder.glob(f"{PART_PREFIX}*.part"):
            with suppress(OSError):
                if part.lstat().st_mtime < now - PART_KEPT_S:
                    part.unlink()
