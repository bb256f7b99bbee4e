"""Watching: what changes below some folders is told at once, by inotify on the event loop.

Nothing runs while nothing happens: no thread, no timer. Events are a doorbell and no more: the
kernel drops some when too many come, and what was in a new folder before it was watched is told
with the folder. So whoever is told lists what there is. Where the system has no inotify, the
watchfiles library watches instead. Raises `OSError` (environment) where folders cannot be watched.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

HAS_INOTIFY = sys.platform == "linux"

_BLOCK_BYTES = 65_536
_EVENT = struct.Struct("iIII")  # struct inotify_event, without the name: wd, mask, cookie, len

# linux/inotify.h
_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x004, 0x008, 0x040, 0x080
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED, _IS_FOLDER = 0x2000, 0x4000, 0x8000, 0x4000_0000
_ONLY_FOLDERS, _NO_LINKS = 0x0100_0000, 0x0200_0000

# Without IN_MODIFY, which tells of every write of a long copy: a file that is still written to is
# looked at again by itself, and its end is told by IN_CLOSE_WRITE.
_WANTED = (
    _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
)
_LOST = _DELETE_SELF | _MOVE_SELF | _UNMOUNT

# What says no more than that one folder below is gone again, or none that we may look into.
_PASSED_OVER = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
)

# What the machine has too few of (inotify_init1(2), inotify_add_watch(2)).
_TOO_FEW = {
    errno.EMFILE: "too many watchers of this user; raise fs.inotify.max_user_instances",
    errno.ENOSPC: "too many watched folders; raise fs.inotify.max_user_watches",
}


async def watch(
    roots: Sequence[Path],
    tell: Callable[[set[Path]], object],
    *,
    stop: anyio.Event,
    has_inotify: bool = HAS_INOTIFY,
) -> None:
    """Tell which of *roots* something has changed in, or below, until *stop* is set.

    By inotify it begins by telling of all of them: what came before was seen by nobody. It ends,
    too, when one of them is moved or removed, or when too much happens at once: then call it anew.
    Raises `OSError`.
    """
    if not has_inotify:
        await _watch_elsewhere(roots, tell, stop)

        return

    with _opened() as watches:
        for root in roots:
            await anyio.to_thread.run_sync(watches.add_root, root)

        tell(set(roots))  # what was put there before, while nobody watched

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_at, stop, tasks.cancel_scope)

            while not watches.is_lost:
                await anyio.wait_readable(watches.descriptor)
                changed = watches.read()

                # First, so that what is put there from now on is told, and the rest is listed.
                if watches.new:
                    await anyio.to_thread.run_sync(watches.add_new)

                tell(changed)

            tasks.cancel_scope.cancel()


async def _cancel_at(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


@contextmanager
def _opened() -> Iterator[_Watches]:
    watches = _Watches()

    try:
        yield watches
    finally:
        os.close(watches.descriptor)


class _Watches:
    """The watched folders behind one inotify descriptor."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self.descriptor = _checked(self._c.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self.new: list[tuple[bytes, Path]] = []
        """Folders to be watched, each with the root that it is below."""
        self.is_lost = False
        """One of the roots is not where it was, or nobody knows what is below them."""
        self._folders: dict[int, tuple[bytes, Path]] = {}
        self._roots: set[int] = set()

    def add_root(self, root: Path) -> None:
        """Watch *root*, wherever it leads, and all folders below; blocks."""
        self._roots.add(self._add(os.fsencode(root), root, _WANTED | _ONLY_FOLDERS))
        self.new += [(folder, root) for folder in _folders_in(os.fsencode(root))]
        self.add_new()

    def add_new(self) -> None:
        """Watch the folders that were found, and all below; blocks."""
        while self.new:
            folder, root = self.new.pop()

            try:
                self._add(folder, root, _WANTED | _ONLY_FOLDERS | _NO_LINKS)
            except OSError as error:
                if error.errno not in _PASSED_OVER:
                    raise
            else:  # listed after it is watched: nothing is missed in between
                self.new += [(below, root) for below in _folders_in(folder)]

    def _add(self, folder: bytes, root: Path, mask: int) -> int:
        number = _checked(
            self._c.inotify_add_watch(self.descriptor, folder, ctypes.c_uint32(mask)), folder
        )
        self._folders[number] = (folder, root)

        return number

    def read(self) -> set[Path]:
        """Return the roots that events have come from, and keep new folders in `new`."""
        changed: set[Path] = set()

        try:
            block = os.read(self.descriptor, _BLOCK_BYTES)
        except BlockingIOError:
            return changed

        for number, mask, name in _events(block):
            if mask & _OVERFLOW:
                # Of folders, new ones or the roots themselves, nothing is known any more.
                changed |= {root for _, root in self._folders.values()}
                self.is_lost = True
            elif number in self._folders:
                changed.add(self._take(number, mask, name))

        return changed

    def _take(self, number: int, mask: int, name: bytes) -> Path:
        """Keep the watches in step with one event, and return the root that it came from."""
        folder, root = self._folders[number]
        path = folder + b"/" + name

        if mask & _IGNORED:
            del self._folders[number]
        elif mask & _LOST and number in self._roots:
            self.is_lost = True
        elif mask & _IS_FOLDER and mask & (_CREATE | _MOVED_TO):
            self.new.append((path, root))
        elif mask & _IS_FOLDER and mask & _MOVED_FROM:
            self._drop(path)

        return root

    def _drop(self, path: bytes) -> None:
        """Watch a folder no longer that was moved away, wherever it is by now."""
        for number, (folder, _) in list(self._folders.items()):
            if folder == path or folder.startswith(path + b"/"):
                self._c.inotify_rm_watch(self.descriptor, number)
                del self._folders[number]


def _checked(number: int, path: bytes | None = None) -> int:
    if number < 0:
        code = ctypes.get_errno()

        raise OSError(
            code, _TOO_FEW.get(code, os.strerror(code)), None if path is None else os.fsdecode(path)
        )

    return number


def _events(block: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield each event in a block: the number of the watch, what happened, and the name."""
    at = 0

    while at < len(block):
        number, mask, _, length = _EVENT.unpack_from(block, at)
        at += _EVENT.size
        yield number, mask, block[at : at + length].rstrip(b"\0")
        at += length


def _folders_in(folder: bytes) -> list[bytes]:
    """Return the folders in a folder; none of one that cannot be read, or is gone again."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno not in _PASSED_OVER:
            raise

        return []


async def _watch_elsewhere(
    roots: Sequence[Path], tell: Callable[[set[Path]], object], stop: anyio.Event
) -> None:
    """Watch by the library; raises `OSError`, also for names that it cannot tell, no UTF-8."""
    from watchfiles import awatch  # noqa: PLC0415 - 20 ms and a thread, for systems that need it

    try:
        async for changes in awatch(
            *roots,
            watch_filter=None,
            debounce=50,
            step=10,
            stop_event=stop,
            ignore_permission_denied=True,
        ):
            tell(
                {
                    root
                    for root in roots
                    if any(path.startswith(f"{root}{os.sep}") for _, path in changes)
                }
            )
    except RuntimeError as error:
        raise OSError(str(error)) from error
