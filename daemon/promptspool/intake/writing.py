"""Writing: what a plan writes goes to the disk while the next of it is made.

One thread writes and hashes, others sync what is whole: all three let go of the interpreter. Two
megabytes are under way at most; who is faster waits. What is small is written at once, without a
thread. Lets `OSError` through (environment), at a later call than that which it belongs to.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from promptspool.spool import sync_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Self

    from promptspool.digest import Hasher

MAX_BYTES = 1 << 21
"""So much is held for the disk."""

_SMALL_BYTES = 1 << 17

_SYNCING = 2
"""Files that are synced at a time: one waits for the disk while the next is told of."""


class Writing:
    """Appends to files, in order, and syncs them."""

    def __init__(self) -> None:
        """Begin without threads."""
        self._writer = ThreadPoolExecutor(1, "writing")
        self._syncer = ThreadPoolExecutor(_SYNCING, "syncing")
        self._steps: deque[tuple[Future[None], int]] = deque()
        self._syncs: list[Future[None]] = []
        self._bytes = 0
        self._is_behind = False

    def __enter__(self) -> Self:
        """Go on."""
        return self

    def __exit__(self, *_: object) -> None:
        """Return when nothing is written any more; what had not begun is left out."""
        self._writer.shutdown(cancel_futures=True)
        self._syncer.shutdown(cancel_futures=True)

    def append(self, path: Path, data: bytes, hasher: Hasher) -> None:
        """Append *data* to a file and to what is hashed of it."""
        if not self._is_behind and len(data) <= _SMALL_BYTES:
            _append(path, data, hasher)
        else:
            self._leave(lambda: _append(path, data, hasher), len(data))

    def sync(self, path: Path) -> None:
        """Have the content of a file on the platter when `finish` returns."""
        if self._is_behind:
            self._leave(lambda: self._syncs.append(self._syncer.submit(sync_file, path)), 0)
        else:
            sync_file(path)

    def finish(self) -> None:
        """Return when all is done."""
        while self._steps:
            self._await_first()

        for synced in self._syncs:
            synced.result()

    def _leave(self, step: Callable[[], None], size: int) -> None:
        self._is_behind = True
        self._steps.append((self._writer.submit(step), size))
        self._bytes += size

        while self._bytes > MAX_BYTES:
            self._await_first()

    def _await_first(self) -> None:
        step, size = self._steps.popleft()
        step.result()
        self._bytes -= size


def _append(path: Path, data: bytes, hasher: Hasher) -> None:
    with path.open("ab", buffering=0) as file:
        rest = memoryview(data)

        while rest:  # a disk that is full takes a part, and refuses the next
            rest = rest[file.write(rest) :]

    hasher.update(data)
