"""The stored files: their objects in memory, their bytes in one directory.

Nothing survives the process. Raises `ApiProblem` for ids nobody knows and OSError
(*environment*).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptspool.simulator.faults import FileFault
from promptspool.simulator.problems import unknown
from promptspool.simulator.settings import RETENTION_S
from promptspool.simulator.wire import FileObject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.clock import Clock


class Ids:
    """Hands out ids that look random and are the same in every run with one seed."""

    def __init__(self, seed: str) -> None:
        """Start from the first id of *seed*."""
        self._seed = seed
        self._count = 0

    def next(self, prefix: str) -> str:
        """Return a new id, the prefix and 24 hexadecimal digits."""
        self._count += 1
        name = f"{self._seed}/{prefix}/{self._count}"
        return prefix + hashlib.sha256(name.encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file object and where its bytes are; *sha256* is "" for files made here.

    Before *listed_at* no list shows it, before *ready_at* no batch can be made of it.
    """

    shown: FileObject
    path: Path
    sha256: str
    listed_at: float
    ready_at: float


class FileStore:
    """All files of one account."""

    def __init__(self, *, clock: Clock, directory: Path, ids: Ids) -> None:
        """Keep bytes in *directory*, which must exist."""
        self._clock = clock
        self._directory = directory
        self._ids = ids
        self._files: dict[str, StoredFile] = {}

    def new_path(self) -> Path:
        """Return where to write a file that is to be added; nothing else uses it."""
        # Not from the seed: a directory may hold what a simulator before this one left.
        return self._directory / secrets.token_hex(12)

    def add(  # noqa: PLR0913 - what a file object is made of
        self,
        path: Path,
        *,
        filename: str,
        purpose: str,
        sha256: str = "",
        created_at: float | None = None,
        kept_s: int = RETENTION_S,
        fate: FileFault | None = None,
    ) -> StoredFile:
        """Take over the bytes at *path* and return the new file; *fate* None is a plain one."""
        now = self._clock.now()
        fate = fate or FileFault()
        born_at = int(now if created_at is None else created_at)
        shown = FileObject(
            id=self._ids.next("file-"),
            bytes=path.stat().st_size,
            created_at=born_at,
            expires_at=born_at + kept_s,
            filename=filename,
            purpose=purpose,
        )
        stored = StoredFile(
            shown=shown,
            path=path,
            sha256=sha256,
            listed_at=now + fate.list_lag_s,
            ready_at=now + fate.ready_lag_s,
        )
        self._files[shown.id] = stored
        return stored

    def get(self, file_id: str) -> StoredFile:
        """Return a file; one past its expiry is gone.

        Raises `ApiProblem` 404 when there is none.
        """
        stored = self._files.get(file_id)

        if stored is None or self._is_expired(stored):
            raise unknown("File", file_id)

        return stored

    def ready(self, file_id: str) -> StoredFile:
        """Return a file that a batch is to be made of.

        Raises `ApiProblem` 404 when there is none, or none yet.
        """
        stored = self.get(file_id)

        if self._clock.now() < stored.ready_at:
            raise unknown("File", file_id)

        return stored

    def delete(self, file_id: str) -> None:
        """Forget a file and its bytes; a download in progress goes on.

        Raises `ApiProblem` 404 when there is none.
        """
        stored = self.get(file_id)
        del self._files[file_id]
        stored.path.unlink(missing_ok=True)

    def newest_first(self) -> Iterator[FileObject]:
        """Iterate over all files that lists show by now and that have not expired."""
        now = self._clock.now()
        return (
            stored.shown
            for stored in reversed(self._files.values())
            if stored.listed_at <= now and not self._is_expired(stored)
        )

    def _is_expired(self, stored: StoredFile) -> bool:
        expires_at = stored.shown.expires_at
        return expires_at is not None and expires_at <= self._clock.now()
