"""Lines: the bytes of a dropped file, cut at line feeds and nowhere else.

Holds one block and one line at a time, whatever the file's size, and hashes what it reads. Pure
but for reading the file it is given. Raises `BadInput` for a file that is not UTF-8 (bad data).
"""

from __future__ import annotations

import codecs
import hashlib
import io
from typing import TYPE_CHECKING, NamedTuple

from promptspool.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

BLOCK_BYTES = 1 << 20

# The BOM of UTF-32-LE begins with that of UTF-16-LE, so the longer ones come first.
_FOREIGN_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class Line(NamedTuple):
    """One line that is not blank."""

    number: int
    """From 1; blank lines count."""
    data: bytes | None
    """UTF-8 without line end and byte order mark; None when it was too long to be held."""


class HashedFile(io.RawIOBase):
    """A binary file that hashes what is read from it, block by block.

    The digest is the file's once it was read to its end.
    """

    def __init__(self, file: io.RawIOBase) -> None:
        """Read from *file*, which is at its start and is closed by whoever opened it."""
        self._file = file
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Fill *buffer* and return how much was read."""
        count = self._file.readinto(buffer)
        self._hash.update(memoryview(buffer)[: count or 0])

        return count

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was read so far."""
        return self._hash.hexdigest()


def lines(file: io.BufferedIOBase, *, max_bytes: int) -> Iterator[Line]:
    r"""Yield the lines of *file* that are not blank.

    Lines end with `\n`; one `\r` before it is dropped. U+2028 and its kind are text. A line of more
    than *max_bytes* is skipped without being held, and not looked at. Raises `BadInput` at the
    first line that is not UTF-8: what one editor saved wrongly is wrong everywhere, so the lines
    before it are not to be trusted either.
    """
    number = offset = 0

    # Two more than a line may have: its line end is not counted.
    while raw := file.readline(max_bytes + 2):
        number += 1
        start, offset = offset, offset + len(raw)

        if number == 1:
            _check_start(raw)

        data = raw.removesuffix(b"\n").removesuffix(b"\r")

        if len(data) > max_bytes:
            offset += 0 if raw.endswith(b"\n") else _skip_line(file)
            yield Line(number, None)
        else:
            _check_utf8(raw, number, start)
            data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data

            if data.strip():
                yield Line(number, data)


def _skip_line(file: io.BufferedIOBase) -> int:
    """Read on to the end of the present line; return how many bytes that took."""
    skipped = 0

    while raw := file.readline(BLOCK_BYTES):
        skipped += len(raw)

        if raw.endswith(b"\n"):
            break

    return skipped


def _check_start(raw: bytes) -> None:
    """Name the encodings that give themselves away in their first bytes."""
    for bom, name in _FOREIGN_BOMS:
        if raw.startswith(bom):
            reason = f"the file is {name} (it starts with that byte order mark); save it as UTF-8"
            raise BadInput(reason, code="wrong_encoding", line=1)

    # ASCII in UTF-16 or UTF-32 has a zero in each of its units, and text has none at all.
    if b"\0" in raw[:4]:
        reason = "the file starts with zero bytes, so it is UTF-16 or no text; save it as UTF-8"
        raise BadInput(reason, code="wrong_encoding", line=1)


def _check_utf8(raw: bytes, number: int, start: int) -> None:
    if raw.isascii():
        return

    try:
        raw.decode()
    except UnicodeDecodeError as error:
        reason = (
            f"the file is not UTF-8: line {number} has the byte 0x{raw[error.start]:02x} at offset "
            f"{start + error.start} of the file; save it as UTF-8 and drop it again"
        )
        raise BadInput(reason, code="wrong_encoding", line=number) from error
