"""The end of a run at a chosen moment, without a hook in the daemon.

Every durable step of a run (a call that changes names, fsync, commit, HTTP send and receive) is
counted; at the chosen one the run dies, and whatever it still tries in dying does not happen. What
the provider does in the same process is left alone.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from promptspool import spool
from promptspool.store import connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

DISK = ("fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir")
"""The calls of `os` that pathlib, shutil and the daemon itself change a disk with."""

TWO_PATHS = frozenset({"rename", "replace", "link"})

COMMIT = "commit"


class Death(BaseException):
    """The process is gone."""


@dataclass(slots=True)
class Fate:
    """What becomes of a run: it ends before or after its *at*-th step, counted from 1; None never.

    With *only*, steps whose name does not begin so are not counted for *at*.
    """

    at: int | None = None
    after: bool = False
    only: str = ""
    strike: Callable[[], object] | None = None
    """What happens then; None is death."""
    database: Path | None = None
    """Copied at every commit when given."""
    watch: Callable[[str, Sequence[Path]], AbstractContextManager[None]] | None = None
    """Entered around each step on disk, with its name and the paths it is about."""
    steps: list[str] = field(default_factory=list)
    copies: list[bytes] = field(default_factory=list)
    is_dead: bool = False
    _counted: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str, paths: Sequence[Path] = ()) -> Iterator[None]:
        """Count the step made inside, and end the run around it if its time has come."""
        self._check()
        is_it = self._is_it(name)

        if is_it and not self.after:
            self._end()

        try:
            with nullcontext() if self.watch is None else self.watch(name, paths):
                yield
        finally:
            if is_it and self.after:
                self._end()

        self._check()

    def told(self) -> str:
        """Name the moment for people."""
        last = self.steps[-1] if self.steps else "none"

        return f"{'after' if self.after else 'before'} step {len(self.steps)}, {last}"

    def copy(self) -> None:
        """Keep the database as it is now."""
        if self.database is not None:
            source = sqlite3.connect(self.database)
            self.copies.append(source.serialize())
            source.close()

    def _is_it(self, name: str) -> bool:
        """Count a step, of whichever thread, and tell whether it is the one."""
        with self._counting:
            self.steps.append(name)
            is_meant = name.startswith(self.only)
            self._counted += is_meant

            return is_meant and self._counted == self.at

    def _end(self) -> None:
        if self.strike is not None:
            self.strike()
        else:
            self.is_dead = True
            self._check()

    def _check(self) -> None:
        if self.is_dead:
            raise Death


@contextmanager
def mortal(fate: Fate, root: Path) -> Iterator[None]:
    """Count, and perhaps end, what runs inside on the spool at *root*."""
    with pytest.MonkeyPatch.context() as patch:
        for name in DISK:
            _patch_disk(patch, name, fate, str(root))

        _patch_rename_new(patch, fate)
        _patch_commit(patch, fate)
        _patch_http(patch, fate)

        yield


def _patch_disk(patch: pytest.MonkeyPatch, name: str, fate: Fate, root: str) -> None:
    real = getattr(os, name)

    def step(*arguments: Any, **named: Any) -> Any:
        paths = _paths(name, arguments, named)

        if not any(str(path).startswith(root) for path in paths):
            return real(*arguments, **named)

        with fate.step(name, paths):
            return real(*arguments, **named)

    patch.setattr(os, name, step)


def _paths(name: str, arguments: Sequence[Any], named: dict[str, Any]) -> list[Path]:
    """Return what a call is about, with the folders of descriptors put in front."""
    if name == "fsync":
        return [opened_path(arguments[0])]

    folders = (named.get("dir_fd", named.get("src_dir_fd")), named.get("dst_dir_fd"))
    given = arguments[: 2 if name in TWO_PATHS else 1]

    return [
        Path(os.fsdecode(path)) if folder is None else opened_path(folder) / os.fsdecode(path)
        for path, folder in zip(given, folders, strict=False)
    ]


def opened_path(descriptor: int) -> Path:
    """Return the path of an open file or folder (proc(5))."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _patch_rename_new(patch: pytest.MonkeyPatch, fate: Fate) -> None:
    """Count the one call that goes past `os`; a target that is seen from a folder is joined."""
    real = spool._renameat2  # noqa: SLF001 - there is no other place where it can be seen

    def step(source: Path, target: Path | str, place: int) -> None:
        where = Path(target) if place < 0 else opened_path(place) / target

        with fate.step("rename", [source, where]):
            real(source, target, place)

    patch.setattr(spool, "_renameat2", step)


def _patch_commit(patch: pytest.MonkeyPatch, fate: Fate) -> None:
    real = connection.commit

    def commit(there: sqlite3.Connection) -> None:
        with fate.step(COMMIT):
            real(there)
            fate.copy()

    patch.setattr(connection, "commit", commit)


def _patch_http(patch: pytest.MonkeyPatch, fate: Fate) -> None:
    real = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        with fate.step(f"{request.method} {request.url.path}"):
            return await real(self, request)

    patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
