"""What a power cut leaves of a spool: a shadow of what is durable, kept call by call.

A file's content is what it was at its last fsync, and nothing if there was none; a folder's names
are those at its last fsync. The database, which has its own rules, is not looked at. It knows of
the calls that `mortal` counts, so files must not be renamed or removed in any other way.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crash.mortal import COMMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

STATE = "state"
"""The one folder that is left as it is."""

NAMING = frozenset({"rename", "replace", "link"})
"""Calls that give a name to what is there."""

GIVING_UP = frozenset({"rename", "replace", "unlink", "rmdir"})
"""Calls that take a name away: that of their first path, and of what is at their last."""


@dataclass(slots=True, eq=False)
class Node:
    """A file or a folder, whatever its names."""

    is_folder: bool
    content: bytes = b""
    """Of a file, at its last fsync."""
    names: dict[str, Node] = field(default_factory=dict)
    """Of a folder, at its last fsync."""


class Platter:
    """What of the spool at *root* is durable."""

    def __init__(self, root: Path, *, unsynced: Sequence[Path] = ()) -> None:
        """Take what is there now for durable, but for the content of the files *unsynced*."""
        self._root = root
        self._nodes: dict[int, Node] = {}
        self._watching = threading.RLock()
        self.calls: list[str] = []
        """Each call, with paths below the root: `rename a/b c/d`."""
        self.hasty: list[str] = []
        """Calls that came too early: a name for content, or a commit after names, not synced.

        A commit of another job may come at any time, so it says something of a lone job only."""
        self._new: set[Path] = set()
        """Names that were given, and not synced yet."""
        self._sync_all(root)

        for path in unsynced:
            self._node(path).content = b""

    @contextmanager
    def watch(self, name: str, paths: Sequence[Path]) -> Iterator[None]:
        """Take down the step that is made inside; for `Fate.watch`."""
        if not paths:  # a commit, or an exchange, which others go on beside
            yield

            with self._watching:
                self.calls.append(name)
                self.hasty += [f"{name} before {path}" for path in self._new if name == COMMIT]

            return

        with self._watching:
            inode = paths[0].lstat().st_ino if name in NAMING else None
            victim = self._victim(name, paths)
            yield
            told = " ".join([name, *(self._told(path) for path in paths)])
            self.calls.append(told)
            self._nodes.pop(victim or 0, None)

            if name == "fsync":
                self._sync(paths[0])
            elif inode is not None and not self._is_synced(paths[1], inode):
                self.hasty.append(told)

            self._note_names(name, paths)

    def cut(self) -> None:
        """Leave of the spool what was synced, and nothing else."""
        stash = self._root.with_name(f"{self._root.name}.stash")
        stash.mkdir()
        places = self._taken_apart(self._root, stash)
        self._build(self._nodes[self._root.stat().st_ino], self._root, places)

        for path in stash.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()

        stash.rmdir()

    def cut_contents(self) -> None:
        """Leave of the spool all names, and of each file what was synced of it."""
        for path in self._inside(self._root):
            if path.is_file():
                node = self._nodes.get(path.stat().st_ino)
                _fill(path, b"" if node is None else node.content)

    # Taking down.

    def _told(self, path: Path) -> str:
        return str(path.relative_to(self._root)) if path != self._root else "."

    def _note_names(self, name: str, paths: Sequence[Path]) -> None:
        """Remember names until their folder is synced, or they are gone again."""
        if name in NAMING:
            self._new.add(paths[1])

        if name in GIVING_UP:
            self._new.discard(paths[0])

        if name == "fsync":
            self._new = {path for path in self._new if path.parent != paths[0]}

    def _victim(self, name: str, paths: Sequence[Path]) -> int | None:
        """Return the inode that a call will free: it may be given to another file at once."""
        gone = paths[-1] if name in GIVING_UP else None

        if gone is None or not os.path.lexists(gone):
            return None

        status = gone.lstat()

        return status.st_ino if gone.is_dir() or status.st_nlink == 1 else None

    def _sync(self, path: Path) -> None:
        node = self._node(path)

        if node.is_folder:
            node.names = {entry.name: self._node(entry) for entry in self._entries(path)}
        else:
            node.content = path.read_bytes()

    def _sync_all(self, folder: Path) -> None:
        self._sync(folder)

        for path in self._entries(folder):
            if path.is_dir():
                self._sync_all(path)
            else:
                self._sync(path)

    def _is_synced(self, path: Path, inode: int) -> bool:
        """Tell whether a file holds what it held when it was synced; a folder always does."""
        node = self._nodes.get(inode)

        if path.is_dir() or not path.exists():
            return True

        return node is not None and node.content == path.read_bytes()

    def _node(self, path: Path) -> Node:
        return self._nodes.setdefault(path.lstat().st_ino, Node(is_folder=path.is_dir()))

    def _entries(self, folder: Path) -> list[Path]:
        return [path for path in folder.iterdir() if path != self._root / STATE]

    def _inside(self, folder: Path) -> Iterator[Path]:
        """Yield everything below *folder*, what is in a folder before it."""
        for path in self._entries(folder):
            if path.is_dir():
                yield from self._inside(path)

            yield path

    # The cut.

    def _taken_apart(self, folder: Path, stash: Path) -> dict[Node, Path]:
        """Move all that is in *folder* to *stash*, flat, so that inodes stay what they are."""
        places = {}

        for path in list(self._inside(folder)):
            inode = path.lstat().st_ino
            place = stash / str(inode)

            if place.exists():
                path.unlink()  # one of several names
            else:
                path.rename(place)

            if inode in self._nodes:
                places[self._nodes[inode]] = place

        return places

    def _build(self, node: Node, folder: Path, places: dict[Node, Path]) -> None:
        """Give *folder* the names that were synced, and what was synced of what has them."""
        for name, child in node.names.items():
            path, place = folder / name, places.get(child)

            if place is None:  # removed since, but not durably
                path.mkdir() if child.is_folder else path.touch()
            elif not place.is_relative_to(self._root):
                place.rename(path)
            elif not child.is_folder:
                path.hardlink_to(place)
            else:
                continue  # on its way from one folder to another: no disk shows it in both

            places[child] = path

            if child.is_folder:
                self._build(child, path, places)
            else:
                _fill(path, child.content)


def _fill(path: Path, content: bytes) -> None:
    """Let a file hold *content*, and leave its times alone if it does."""
    if path.read_bytes() != content:
        path.write_bytes(content)
