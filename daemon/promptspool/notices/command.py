"""A command that is told of a job: one run of it, without a shell.

It is told in its environment, and gets nothing of ours that could be a secret. It runs in a session
of its own and ends, with its children, when its time is over or the daemon stops; what has begun a
session of its own in there does not. After a `kill -9` of the daemon it runs on by itself. Raises
`NoticeFailed` (environment).
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import anyio

from promptspool import log
from promptspool.notices.message import NoticeFailed, facts, iso

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterator, Mapping

    from promptspool.notices.message import Fact, Message
    from promptspool.settings import NotifySettings

GRACE_S = 1.0
"""Between SIGTERM and SIGKILL; `app.CUT_OFF_S` is longer than this and `KILL_S` together."""

KILL_S = 0.5
"""For what is killed to be gone; a dead child that nobody asks about takes all of it."""

MAX_SHOWN = 300
"""How much of what it said last is kept."""

_KEPT = frozenset({"HOME", "LANG", "PATH", "TMPDIR", "TZ", "USER"})
_TICK_S = 0.02
_TAIL_BYTES = 4_096
_PIPE_BYTES = 65_536
"""All that a pipe holds (pipe(7))."""


async def run(
    message: Message, settings: NotifySettings, *, key: str, environ: Mapping[str, str]
) -> None:
    """Run the command; it has taken the message if it ends with 0 in time.

    *key* is where the settings are, for reasons. Raises `NoticeFailed` with what it said last on
    standard error, without secrets.
    """
    program = log.struck(settings.command[0])

    with _pipe() as (ears, mouth):
        try:
            process = await asyncio.create_subprocess_exec(
                *settings.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=mouth,
                env=_environment(message, environ),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise NoticeFailed(f"{key}.command: {program} {_hindrance(error)}") from error

        status = await _status(process, ears, settings.timeout)
        ears.read()  # what it left in the pipe; its children may hold the other end for ever

    if status == 0:
        return

    late = f"did not end within {settings.timeout:g} s, and was ended"
    how = late if status is None else f"ended with {_ending(status)}"
    said = f"; it last said: {ears.words}" if ears.words else ""

    raise NoticeFailed(f"{key}.command: {program} {how}{said}")


async def _status(process: Process, ears: _Ears, limit_s: float) -> int | None:
    """Wait for the end of a command and return how it ended; None if it took too long."""
    try:
        with anyio.move_on_after(limit_s) as patience:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ears.listen)
                await process.wait()
                tasks.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            with anyio.CancelScope(shield=True):
                await _end(process)

    return None if patience.cancelled_caught else process.returncode


async def _end(process: Process) -> None:
    """End a command and its children: those that do not go when asked are killed.

    What runs as another user, by sudo for instance, may be out of reach; it is left.
    """
    with suppress(ProcessLookupError, PermissionError):
        for number, limit_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, KILL_S)):
            os.killpg(process.pid, number)

            with anyio.move_on_after(limit_s):
                while True:
                    await anyio.sleep(_TICK_S)
                    os.killpg(process.pid, 0)  # raises when the last of them is gone

    with anyio.move_on_after(KILL_S):
        await process.wait()


def _environment(message: Message, environ: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return what the command sees: of our own variables a few, and a variable for each fact.

    One that is None is empty, so that a script may ask for it in any case.
    """
    kept = {
        os.fsencode(name): os.fsencode(value)
        for name, value in environ.items()
        if name in _KEPT or name.startswith("LC_")
    }
    told = {"event": message.event, "notice": message.id, "at": iso(message.at)} | facts(message)

    return kept | {f"PROMPTSPOOL_{name.upper()}".encode(): _value(told[name]) for name in told}


def _value(fact: Fact) -> bytes:
    match fact:
        case None:
            return b""
        case bytes():
            return fact
        case float():
            return f"{fact:f}".encode()
        case _:
            return str(fact).encode()


def _hindrance(error: OSError | ValueError) -> str:
    """Say why a program did not start."""
    match error:
        case FileNotFoundError():
            return (
                "was not found, or what its first line names was not; write the whole path of a "
                "program that is there"
            )
        case PermissionError():
            return "may not be run by this user; check its permissions (chmod +x)"
        case OSError(errno=errno.ENOEXEC):
            return "is no program; a script begins with a line such as #!/bin/sh"
        case OSError():
            return f"cannot be run: {error.strerror or error}"
        case _:
            return "cannot be run: its arguments hold characters that no argument can"


def _ending(status: int) -> str:
    if status < 0:
        with suppress(ValueError):  # real-time signals have no names
            return signal.Signals(-status).name

    return f"exit code {status}"


class _Ears:
    """The end of a pipe to listen at, and the last that came out of it."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._tail = b""
        self._is_cut = False

    async def listen(self) -> None:
        """Read for as long as somebody may speak."""
        while True:
            await anyio.wait_readable(self._descriptor)
            self.read()

    def read(self) -> None:
        """Read what is there."""
        with suppress(BlockingIOError):
            self._tail += os.read(self._descriptor, _PIPE_BYTES)

        self._is_cut = self._is_cut or len(self._tail) > _TAIL_BYTES
        self._tail = self._tail[-_TAIL_BYTES:]

    @property
    def words(self) -> str:
        """What was said last, as one line without secrets."""
        text = self._tail.decode("utf-8", "replace")

        if self._is_cut:  # perhaps through a secret, the rest of which nobody would know for one
            text = "".join(text.split(maxsplit=1)[1:])

        return " ".join(log.struck(text).split())[-MAX_SHOWN:]


@contextmanager
def _pipe() -> Iterator[tuple[_Ears, int]]:
    """Yield the two ends of a pipe, the second as a descriptor.

    Both are open to the end, so that the pipe has none before. Raises `NoticeFailed` if there is no
    descriptor left for one.
    """
    try:
        heard, mouth = os.pipe()
    except OSError as error:
        raise NoticeFailed(f"no command can be run now: {error.strerror}") from error

    try:
        yield _Ears(heard), mouth
    finally:
        os.close(heard)
        os.close(mouth)
