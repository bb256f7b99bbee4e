"""Commands to the daemon: small files in `control/`, each applied once and answered.

A command is left as `ID.command.json`, by rename; the daemon applies it, at once or at its next
start, puts `ID.answer.json` beside it and removes the command. A crash in between applies it a
second time, so whatever a command does has to be safe to repeat. An answer that nobody takes is
swept after a while. Who may write into the folder may command: its mode decides.

Raises `ControlError` (environment) where the folder cannot be used, and lets `OSError` through in
what the daemon calls.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from promptspool.clock import SystemClock, pause
from promptspool.errors import PromptspoolError
from promptspool.model import JobId
from promptspool.spool import rename_durably, sync_folder, write_durably

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.spool import Spool

COMMAND = ".command.json"
ANSWER = ".answer.json"

ANSWER_KEPT_S = 3600.0
"""An answer that was not taken for so long is swept."""

MAX_COMMAND_BYTES = 65_536

_NAME = re.compile(r"\d{8}t\d{6}z-[0-9a-f]{12}" + re.escape(COMMAND))

LOOK_S = 0.02
"""How often whoever waits for an answer looks for it."""

Verb = Literal["ping", "cancel", "retry", "release", "forget", "clean", "pause", "resume", "reload"]
"""What can be asked for."""


class ControlError(PromptspoolError):
    """The daemon cannot be reached."""


class Command(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One command."""

    verb: Verb
    job: JobId | None = None
    """For cancel, retry, release and forget."""
    provider: str | None = None
    """For pause and resume; None for the whole daemon."""
    older_than_s: float | None = None
    """For clean: the least age of what goes."""
    left_at: float
    """When it was left, in Unix seconds by the clock of whoever did."""


class Answer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What became of a command."""

    is_done: bool
    """False where it was refused; *message* says why."""
    message: str
    job: JobId | None = None
    """The new job, of a retry."""


class Waiting(msgspec.Struct, kw_only=True, frozen=True):
    """A command that was left and is not answered."""

    id: str
    command: Command | None
    """None for a file that is no command."""
    fault: str | None = None
    """Why it is none."""


def leave(spool: Spool, command: Command) -> str:
    """Leave *command* for the daemon and return its id; durable, whole or not at all.

    Raises `ControlError` if the folder is missing or may not be written.
    """
    moment = datetime.fromtimestamp(command.left_at, UTC).strftime("%Y%m%dt%H%M%Sz")
    name = f"{moment}-{secrets.token_hex(6)}"
    path = spool.control / f"{name}{COMMAND}"
    part = path.with_name(path.name + ".part")

    try:
        with part.open("xb") as file:
            # Whoever may enter the folder may read it: the daemon is somebody else, with any umask.
            os.fchmod(file.fileno(), 0o644)
            file.write(msgspec.json.encode(command))
            file.flush()
            os.fsync(file.fileno())

        rename_durably(part, path)
    except OSError as error:
        _discard(part)
        raise ControlError(_unreachable(spool, error)) from error

    return name


def _unreachable(spool: Spool, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            advice = "promptspool was never started on this spool; is it the right one?"
        case errno.EACCES | errno.EPERM:
            advice = f"run this as {_owner(spool)}, or as root"
        case _:
            advice = "nothing was done"

    return f"{spool.control}: no command can be left here: {error.strerror}; {advice}"


def _owner(spool: Spool) -> str:
    try:
        return pwd.getpwuid(spool.state.stat().st_uid).pw_name
    except (OSError, KeyError):
        return "the daemon's user"


def withdraw(spool: Spool, name: str) -> None:
    """Take back the command called *name*, and its answer, as far as they are there."""
    _discard(spool.control / f"{name}{COMMAND}")
    _discard(spool.control / f"{name}{ANSWER}")


def take_answer(spool: Spool, name: str, *, within_s: float) -> Answer | None:
    """Wait for the answer to the command called *name*, and remove it; None if none came in time.

    Blocks, for a command line. Raises `ControlError` for an answer that cannot be read.
    """
    path = spool.control / f"{name}{ANSWER}"
    clock = SystemClock()
    deadline = clock.monotonic() + within_s

    while True:
        try:
            answer = msgspec.json.decode(path.read_bytes(), type=Answer)
        except FileNotFoundError:
            if clock.monotonic() >= deadline:
                return None

            pause(LOOK_S)
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            raise ControlError(f"{path}: the answer cannot be read: {error}") from error
        else:
            _discard(path)

            return answer


def ping(spool: Spool, *, within_s: float) -> Answer | None:
    """Ask the daemon how it is, and leave nothing behind; None if it did not answer in time.

    Raises `ControlError`.
    """
    name = leave(spool, Command(verb="ping", left_at=SystemClock().now()))

    try:
        return take_answer(spool, name, within_s=within_s)
    finally:
        withdraw(spool, name)


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # somebody else's folder: the daemon sweeps it
        return


# For the daemon.


def waiting(spool: Spool) -> list[Waiting]:
    """Return the commands that wait, the oldest first; never more than a few are left at once.

    What is no file, or has another name than `leave` gives, is nobody's command and is left alone.
    """
    with os.scandir(spool.control) as entries:
        found = [entry for entry in entries if entry.is_file(follow_symlinks=False)]

    names = sorted(entry.name for entry in found if _NAME.fullmatch(entry.name))
    left = [_read(spool.control / name) for name in names]

    there = [one for one in left if one is not None]

    return sorted(there, key=lambda one: (one.command.left_at if one.command else 0.0, one.id))


def _read(path: Path) -> Waiting | None:
    """Return what was left there; None if it was taken back."""
    name = path.name.removesuffix(COMMAND)

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_COMMAND_BYTES)

        return Waiting(id=name, command=msgspec.json.decode(data, type=Command))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        return Waiting(id=name, command=None, fault=f"this is no command: {error}")


def answer(spool: Spool, name: str, said: Answer) -> None:
    """Answer the command called *name*, and be done with it."""
    write_durably(spool.control / f"{name}{ANSWER}", msgspec.json.encode(said))
    (spool.control / f"{name}{COMMAND}").unlink(missing_ok=True)
    sync_folder(spool.control)


def sweep(spool: Spool, now: float) -> None:
    """Remove answers, and halves of commands, that nobody has taken for an hour."""
    with os.scandir(spool.control) as entries:
        for entry in entries:
            is_ours = entry.name.endswith((ANSWER, ".part"))

            with suppress(OSError):  # taken meanwhile, or a folder of somebody's
                if is_ours and entry.stat(follow_symlinks=False).st_mtime < now - ANSWER_KEPT_S:
                    (spool.control / entry.name).unlink()
