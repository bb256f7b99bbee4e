"""Opening: a dropped file is taken out of its wrapping, and is what its name says, or is refused.

What has to be on disk to be read is unpacked into a folder of the caller's and removed at the end;
after a crash it is still there, under names that begin with `content-`. Raises `BadInput` for what
cannot be read as its name says (bad data) and lets `OSError` through (environment).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from promptspool.errors import BadInput
from promptspool.intake.formats.archive import Archive, check_container
from promptspool.intake.formats.compression import BLOCK_BYTES, Caps, open_expanding
from promptspool.intake.formats.documents import ArchiveFiles, contents_of
from promptspool.intake.formats.recognition import (
    HEAD_BYTES,
    check_content,
    check_wrapping,
    is_zip,
    shown_name,
    suffix_of,
    unknown_format,
    unwrapped,
)
from promptspool.intake.formats.registry import FORMATS, SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from promptspool.intake.rows import Files, Format, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A dropped file, ready for its reader: `opened.format.read(opened.source, options)`."""

    format: Format
    source: Source
    files: Files | None = None
    """The images of an archive, where the file is one with a table in it; else None."""


@contextmanager
def opened(path: Path, name: str, *, caps: Caps, scratch: Path) -> Iterator[Opened]:
    """Open the dropped file at *path*, which people call *name*, until the end of the block.

    Its format is told by the name and confirmed by the content. *scratch* is a folder that exists.
    Raises `BadInput` if it is empty, broken, larger inside than *caps* allow, or of no format; of
    code `unknown_format` if its extension is none that is read, `wrong_format` if it is another.
    """
    with ExitStack() as stack:
        yield _Opening(caps=caps, scratch=scratch, stack=stack).run(path, name)


def is_heavy(path: Path, name: str) -> bool:
    """Tell whether a file is to be opened and read in a process of its own.

    It is by its name; a zip archive is under any name, since the list of its files is held.
    """
    found = SUFFIXES.get(suffix_of(unwrapped(name)[0]))

    if found is not None and found.is_heavy:
        return True

    with path.open("rb") as file:
        return is_zip(file.read(4))


class _Content:
    """A file's content, wherever it comes from; implements `Source`."""

    def __init__(
        self, name: str, opener: Callable[[], IO[bytes]], *, path: Path | None, scratch: Path
    ) -> None:
        """Take how to open it, and where it is on disk, None if it is not there as it is read."""
        self.name = name
        self.notes: dict[str, str] = {}
        self._opener = opener
        self._path = path
        self._scratch = scratch
        self._unpacked: Path | None = None

    def open(self) -> IO[bytes]:
        """Open it at its beginning."""
        return self._opener()

    def path(self) -> Path:
        """Return where it is on disk; it is unpacked the first time if it has to be."""
        if self._path is None:
            self._path = self._unpack()

        return self._path

    def ends(self) -> tuple[bytes, bytes]:
        """Return its first bytes, and its last ones if they can be had without reading it all."""
        with self.open() as file:
            head = file.read(HEAD_BYTES)

        if self._path is None or len(head) < HEAD_BYTES:
            return head, b""

        with self._path.open("rb") as file:
            file.seek(-HEAD_BYTES, os.SEEK_END)

            return head, file.read()

    def remove(self) -> None:
        """Remove what was unpacked."""
        if self._unpacked is not None:
            self._unpacked.unlink(missing_ok=True)

    def _unpack(self) -> Path:
        number, name = tempfile.mkstemp(
            prefix="content-", suffix=suffix_of(self.name), dir=self._scratch
        )
        self._unpacked = Path(name)

        with os.fdopen(number, "wb") as target, self.open() as file:
            shutil.copyfileobj(file, target, BLOCK_BYTES)

        return self._unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """One file being opened; what is put on the stack is undone at the end."""

    caps: Caps
    scratch: Path
    stack: ExitStack

    def run(self, path: Path, name: str) -> Opened:
        inner, wrapping = unwrapped(name)

        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)

        _check_not_empty(name, head)

        if wrapping is not None or suffix_of(name) in SUFFIXES:
            check_wrapping(name, head)

        content = (
            self._content(inner, lambda: path.open("rb"), path=path)
            if wrapping is None
            else self._content(inner, self._expanding(path, name, wrapping))
        )
        found = self._confirmed(content, name)

        if found is FORMATS["zip"]:
            return self._unzipped(content, name)

        return Opened(format=found, source=content)

    def _expanding(self, path: Path, name: str, wrapping: str) -> Callable[[], IO[bytes]]:
        return partial(open_expanding, path, wrapping, name=shown_name(name), caps=self.caps)

    def _content(
        self, name: str, opener: Callable[[], IO[bytes]], *, path: Path | None = None
    ) -> _Content:
        content = _Content(name, opener, path=path, scratch=self.scratch)
        self.stack.callback(content.remove)

        return content

    def _confirmed(self, content: _Content, name: str) -> Format:
        """Return the format that the content has by its name, and that it can be."""
        head, tail = content.ends()
        _check_not_empty(name, head)
        found = SUFFIXES.get(suffix_of(content.name))

        if found is None:
            raise unknown_format(name, tuple(SUFFIXES), head, tail)

        check_content(name, found.suffixes, head, tail)

        if found is FORMATS["xlsx"]:
            check_container(content.path(), self.caps, name=shown_name(name))

        return found

    def _unzipped(self, content: _Content, name: str) -> Opened:
        """Return what an archive stands for: its table, or its documents."""
        shown = shown_name(name)

        with ExitStack() as stack:
            archive = stack.enter_context(Archive(content.path(), name=shown))
            archive.check_sizes(self.caps)
            contents = contents_of(archive, name=shown)
            table = contents.table

            if table is None:
                return Opened(format=FORMATS["zip"], source=content)

            # The archive stays open as long as its table is read.
            self.stack.push(stack.pop_all())

        inner = self._content(table.name, partial(archive.open, table))
        inner.notes["archive"] = contents.note

        return Opened(
            format=self._confirmed(inner, table.name),
            source=inner,
            files=ArchiveFiles(archive, contents),
        )


def _check_not_empty(name: str, head: bytes) -> None:
    if not head:
        reason = f"{shown_name(name)} is empty; write your prompts into it and drop it again"
        raise BadInput(reason, code="empty_file")
