"""Part: a file in the making, written and synced while its maker goes on.

What is large is written by a thread, in which it reaches the platter bit by bit: at the end there
is little left to wait for, and it costs the maker next to nothing. Lets `OSError` through, also
that of the thread (environment).
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path
    from types import TracebackType

_BLOCK_BYTES = 1 << 18
_MOST_BLOCKS = 8
"""Handed over and not yet written: the maker waits for the oldest."""

_SYNCED_BYTES = 1 << 26


class Part:
    """Makes *path* out of what is written, whole or not at all; there once it is finished."""

    def __init__(self, path: Path) -> None:
        """Begin an empty file beside *path*; what an earlier try left is overwritten."""
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._stack = ExitStack()
        self._file = self._stack.enter_context(self._part.open("wb", buffering=0))
        self._thread: ThreadPoolExecutor | None = None
        self._doing: deque[Future[None]] = deque()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._unsynced_bytes = 0

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file, when its thread has come to an end."""
        self._stack.close()

    def write(self, data: bytes) -> None:
        """Append *data*."""
        self._pending.append(data)
        self._pending_bytes += len(data)

        if self._pending_bytes >= _BLOCK_BYTES:
            self._hand_over()

    def finish(self) -> None:
        """Give the file its name; what had that name before keeps its own bytes."""
        while self._doing:
            self._doing.popleft().result()

        self._write(b"".join(self._pending))
        self._pending.clear()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)

    def drop(self) -> None:
        """Have no such file, nor one of an earlier try."""
        self._part.unlink()
        self._path.unlink(missing_ok=True)

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = self._stack.enter_context(ThreadPoolExecutor(1, "part"))

        if len(self._doing) == _MOST_BLOCKS:
            self._doing.popleft().result()

        self._doing.append(self._thread.submit(self._write, b"".join(self._pending)))
        self._pending.clear()
        self._pending_bytes = 0

    def _write(self, data: bytes) -> None:
        view = memoryview(data)

        while view:
            view = view[self._file.write(view) :]

        self._unsynced_bytes += len(data)

        if self._unsynced_bytes >= _SYNCED_BYTES:
            os.fdatasync(self._file.fileno())
            self._unsynced_bytes = 0
