"""Xlsx parts: the zip archive that a workbook is, and the XML in it, block by block.

What zipfile, zlib and expat make of a broken or hostile file is translated here and nowhere else.
A part is never held as a whole. Raises `BadInput` (bad data), and lets `OSError` through where the
disk is at fault (environment).
"""

from __future__ import annotations

import errno
import lzma
import mmap
import posixpath
import struct
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol
from xml.parsers import expat

from promptspool.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import IO

Attributes = dict[str, str]

_BLOCK_BYTES = 1 << 16

# No tag of a workbook comes near it, and expat holds one as a whole.
_MAX_TAG_BYTES = 1 << 20

# Of a part that is a list of sheets, styles or relations: a million entries and more.
_MAX_LIST_BYTES = 1 << 27

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    expat.ExpatError,
    EOFError,
    LookupError,  # an encoding that nobody knows
    MemoryError,
    NotImplementedError,  # a way of packing that zipfile does not know
    OverflowError,
    RuntimeError,  # a part that is encrypted
    ValueError,
)


class Relation(NamedTuple):
    """What one part says of another."""

    kind: str
    """The last word of its type: `worksheet`, `sharedStrings` and the like."""
    part: str


class Handler(Protocol):
    """What is told of the XML of a part, in its order; names are as they are written."""

    def begin(self, name: str, attributes: Attributes, /) -> None:
        """Take the begin of an element."""

    def end(self, name: str, /) -> None:
        """Take its end."""

    def text(self, text: str, /) -> None:
        """Take a piece of its text."""


class Package:
    """The parts of a workbook by their names, which count without case."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read the list of parts from *file*, which stays the caller's to close."""
        _check_start(file)

        with _understood("the archive"):
            self._zip = zipfile.ZipFile(file)
            self._parts = {info.filename.lower(): info for info in self._zip.infolist()}

    def has(self, part: str) -> bool:
        """Tell whether there is such a part."""
        return part.lower() in self._parts

    def parsed(self, part: str, handler: Handler) -> Iterator[None]:
        """Tell *handler* of a part; yields after each block, and holds no more than that."""
        info = self._parts.get(part.lower())

        if info is None:
            raise broken(f"{part} is missing")

        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.buffer_size = _BLOCK_BYTES
        parser.StartElementHandler = handler.begin
        parser.EndElementHandler = handler.end
        parser.CharacterDataHandler = handler.text
        parser.StartDoctypeDeclHandler = _refuse_doctype
        fed = 0

        with _understood(part), self._zip.open(info) as file:
            while block := file.read(_BLOCK_BYTES):
                parser.Parse(block, False)  # noqa: FBT003 (expat takes no keyword)
                fed += len(block)

                if fed - parser.CurrentByteIndex > _MAX_TAG_BYTES:
                    raise broken(f"{part} has a tag of more than {_MAX_TAG_BYTES:,} bytes")

                yield

            parser.Parse(b"", True)  # noqa: FBT003 (as above)
            yield

    def elements(self, part: str) -> Iterator[tuple[str, Attributes]]:
        """Yield the elements of a short part as they begin, without their prefixes."""
        handler = _Elements()

        for blocks, _ in enumerate(self.parsed(part, handler), start=1):
            if blocks * _BLOCK_BYTES > _MAX_LIST_BYTES:
                raise broken(f"{part} is longer than {_MAX_LIST_BYTES:,} bytes")

            yield from handler.found
            handler.found.clear()

    def relations(self, part: str) -> Mapping[str, Relation]:
        """Return the parts that *part* names, by the id it has for them; `""` for the archive."""
        folder, name = posixpath.split(part)
        found: dict[str, Relation] = {}
        listing = f"{folder}/_rels/{name}.rels".lstrip("/")

        if not self.has(listing):
            return found

        for element, attributes in self.elements(listing):
            if element == "Relationship" and attributes.get("TargetMode") != "External":
                target = posixpath.join("/", folder, attributes.get("Target", ""))
                found[attributes.get("Id", "")] = Relation(
                    attributes.get("Type", "").rpartition("/")[2],
                    posixpath.normpath(target).lstrip("/"),
                )

        return found


class _Elements:
    """Gathers what begins."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Attributes]] = []

    def begin(self, name: str, attributes: Attributes, /) -> None:
        self.found.append((name.rpartition(":")[2], attributes))

    def end(self, name: str, /) -> None:
        pass

    def text(self, text: str, /) -> None:
        pass


def broken(what: str) -> BadInput:
    """Return the complaint about a workbook that is none inside."""
    reason = f"the workbook is broken: {what}; open it in a spreadsheet and save it anew as .xlsx"

    return BadInput(reason, code="broken_file")


def _refuse_doctype(*_: object) -> None:
    raise broken("it declares a document type, which no workbook does")


@contextmanager
def _understood(part: str) -> Iterator[None]:
    """Translate what is raised where the file is not what it should be."""
    try:
        yield
    except _BROKEN as error:
        raise broken(f"{part} cannot be read ({_message(error)})") from error
    except OSError as error:
        # Seeking to where no file reaches, and bzip2 on broken data: neither is the disk's fault.
        if error.errno not in (None, errno.EINVAL):
            raise

        raise broken(f"{part} cannot be read ({_message(error)})") from error


def _message(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _check_start(file: IO[bytes]) -> None:
    """Say what the file is instead, where its first bytes tell."""
    head = file.read(len(_OLE))
    file.seek(0)

    if head != _OLE:
        return

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        is_encrypted = data.find(_ENCRYPTED) >= 0

    if is_encrypted:
        reason = "the workbook is locked with a password; save it without one"
        raise BadInput(reason, code="locked")

    reason = "the workbook is of the older format .xls; save it as .xlsx"
    raise BadInput(reason, code="wrong_format")
