"""Archives: the files in a `.zip`, listed and read, never unpacked under the names they bear.

What is held is the list of an archive's files: 0.7 kB each, at most `MAX_MEMBERS` of them, and one
file's block at a time. Sizes are checked before anything is read, and reading stops where a file is
longer than the archive says. Raises `BadInput` for what is broken, hostile or packed in a way that
is not read (bad data) and lets `OSError` through (environment).
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from promptspool.errors import BadInput
from promptspool.intake.formats.compression import BLOCK_BYTES, broken, too_far
from promptspool.intake.formats.recognition import shown_name, suffix_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from _typeshed import WriteableBuffer

    from promptspool.intake.formats.compression import Caps

MAX_MEMBERS = 200_000
"""Files in an archive; their list is held."""

_MAX_LIST_BYTES = 128 << 20
_LISTED = b"PK\x01\x02"

_IS_LOCKED = 0x1 | 0x40  # a password, and the strong encryption that hides more (APPNOTE 4.4.4)
_IS_UTF8 = 0x800

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# All that zipfile raises when it meets bytes that it did not expect.
_BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class Archive:
    """A zip archive, open."""

    def __init__(self, path: Path, *, name: str) -> None:
        """Open the archive at *path* and read the list of its files; *name* is for people.

        Raises `BadInput` if there is no such list, or far too long a one.
        """
        self._name = name
        self._packed_bytes = path.stat().st_size
        self._file = _Guarded(path.open("rb"), name, size=self._packed_bytes)

        try:
            with self._translated():
                self._zip = zipfile.ZipFile(self._file)

            self._file.check_count(len(self._zip.filelist))
        except BaseException:
            self._file.close()
            raise

        self.members = [Member(info) for info in self._zip.filelist]
        """In the order of the list."""

    def __enter__(self) -> Self:
        """Give itself; leaving closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()

    def check_sizes(self, caps: Caps) -> None:
        """Raise `BadInput` if the files in it are together larger than they may be."""
        expanded_bytes = sum(member.size_bytes for member in self.members)

        if expanded_bytes > caps.room(self._packed_bytes):
            raise too_far(
                self._name,
                packed_bytes=self._packed_bytes,
                expanded_bytes=expanded_bytes,
                caps=caps,
            )

    def open(self, member: Member) -> IO[bytes]:
        """Open a file in the archive, to be read once through and closed by the caller.

        Raises `BadInput` for what is no plain file, here or while it is read.
        """
        member.check()

        with self._translated(member):
            file = self._zip.open(member.info)

        return io.BufferedReader(_Checked(file, self, member), BLOCK_BYTES)

    def read(self, member: Member) -> bytes:
        """Return the content of a file in the archive; the caller has looked at its size.

        Raises `BadInput` for what is no plain file.
        """
        member.check()

        with self._translated(member), self._zip.open(member.info) as file:
            return file.read(member.size_bytes)

    @contextmanager
    def _translated(self, member: Member | None = None) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            raise self.broken(error, member) from error

    def broken(self, error: Exception, member: Member | None = None) -> BadInput:
        """Return the complaint about what zipfile stumbled over."""
        text = str(error).partition(" for file ")[0] or type(error).__name__
        what = text[:1].lower() + text[1:]

        if isinstance(error, EOFError):
            what = "it ends too early"
        elif text == "File is not a zip file":
            what = "the list of its files is missing, which stands at its end"

        return broken(self._name, what if member is None else f"{what}, in {member.shown}")


class Member:
    """A file in an archive, as the archive's list has it."""

    __slots__ = ("info", "name")

    def __init__(self, info: zipfile.ZipInfo) -> None:
        """Take an entry of the list."""
        self.info = info
        self.name = _name(info)
        """With its folders and forward slashes. Only a name: nothing is opened by it."""

    @property
    def shown(self) -> str:
        """The name, for people."""
        return shown_name(self.name)

    @property
    def suffix(self) -> str:
        """The extension in lower case, empty if it has none."""
        return suffix_of(self.name)

    @property
    def size_bytes(self) -> int:
        """How large it says it is; no more than that is ever read."""
        return self.info.file_size

    @property
    def is_folder(self) -> bool:
        """Tell whether it is a folder."""
        return self.name.endswith("/") or stat.S_ISDIR(self._mode)

    @property
    def is_junk(self) -> bool:
        """Tell whether it is what systems leave behind in archives, or hidden."""
        parts = [part for part in self.name.split("/") if part not in (".", "..")]

        return (
            any(part.startswith((".", "~$")) for part in parts)
            or "__MACOSX" in parts[:-1]
            or bool(parts and parts[-1].lower() in ("thumbs.db", "desktop.ini"))
        )

    @property
    def _mode(self) -> int:
        return self.info.external_attr >> 16

    def check(self) -> None:
        """Raise `BadInput` for what is no plain file, or is not to be read."""
        if self.info.flag_bits & _IS_LOCKED:
            reason = f"{self.shown} is locked with a password; pack it without one"
            raise BadInput(reason, code="locked")

        if stat.S_IFMT(self._mode) not in (0, stat.S_IFREG):
            reason = f"{self.shown} is a link or another special file; pack the file itself"
            raise BadInput(reason, code="no_file")

        if self.info.compress_type not in _METHODS:
            reason = (
                f"{self.shown} is packed by method {self.info.compress_type}, which is not read; "
                f"pack it as an ordinary zip (deflate)"
            )
            raise BadInput(reason, code="unknown_packing")


def check_container(path: Path, caps: Caps, *, name: str) -> None:
    """Raise `BadInput` unless the file at *path* is a workbook in a zip that can be unpacked.

    What the archive declares is checked, nothing is unpacked.
    """
    with Archive(path, name=name) as archive:
        archive.check_sizes(caps)

        if not any(member.name == "xl/workbook.xml" for member in archive.members):
            reason = f"{shown_name(name)} is a zip archive, but no Excel workbook"
            raise BadInput(reason, code="wrong_format")

        for member in archive.members:
            member.check()


def _name(info: zipfile.ZipInfo) -> str:
    """Return the name of a file as it was meant: many tools write UTF-8 and do not say so."""
    name = info.filename

    if not info.flag_bits & _IS_UTF8 and not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()

    name = name.replace("\\", "/")

    return name if name.isascii() else name.encode(errors="replace").decode()


class _Guarded(io.BufferedIOBase):
    """A file that gives zipfile nothing that would make it hold more than it should.

    The list of files is read in one piece and then taken apart, so that piece is where to look.
    """

    def __init__(self, file: IO[bytes], name: str, *, size: int) -> None:
        self._file = file
        self._name = name
        self._size = size

    def check_count(self, count: int) -> None:
        if count > MAX_MEMBERS:
            reason = (
                f"{self._name} has {count:,} files in it, no more than {MAX_MEMBERS:,} are taken; "
                f"pack them as several archives, or write them as the rows of a table"
            )
            raise BadInput(reason, code="too_many_files")

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_LIST_BYTES:
            what = f"the list of its files has {size:,} bytes"
            raise broken(self._name, what)

        data = self._file.read(-1 if size is None else size)

        if len(data) > BLOCK_BYTES:
            self.check_count(data.count(_LISTED))

        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and not 0 <= offset <= self._size:
            raise broken(self._name, "its list of files points outside of it")

        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class _Checked(io.RawIOBase):
    """A file in an archive; whatever is wrong with it is `BadInput`."""

    def __init__(self, file: IO[bytes], archive: Archive, member: Member) -> None:
        self._file = file
        self._archive = archive
        self._member = member

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")

        try:
            data = self._file.read(min(len(view), BLOCK_BYTES))
        except _BROKEN as error:
            raise self._archive.broken(error, self._member) from error

        view[: len(data)] = data

        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
