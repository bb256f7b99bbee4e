r"""Lines: bytes cut at line feeds and nowhere else, and what to say where they are not UTF-8.

Holds one block at a time, whatever the file's size, or one line that is longer. Pure but for
reading the file it is given. Raises `BadInput` for a file that is not UTF-8 (bad data).
"""

from __future__ import annotations

import codecs
import io
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING

from promptspool.errors import BadInput
from promptspool.intake.rows import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK_BYTES = 1 << 20

# The BOM of UTF-32-LE begins with that of UTF-16-LE, so the longer ones come first.
_FOREIGN_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Whole lines of a file, as many as a block has."""

    line: int
    """The number of the first, from 1."""
    offset: int
    """Where it begins in the file."""
    data: bytes
    """With a byte order mark where the file begins with one; the last line may lack its end."""

    @cached_property
    def ends(self) -> int:
        """How many line feeds it has; to count them takes a while."""
        return self.data.count(b"\n")

    def halves(self) -> tuple[Piece, Piece] | None:
        """Return the same lines in two pieces, None if there is no line end to cut it at."""
        cut = self.data.find(b"\n", len(self.data) // 2) + 1

        if not 0 < cut < len(self.data):
            return None

        first = Piece(line=self.line, offset=self.offset, data=self.data[:cut])

        return first, Piece(
            line=self.line + first.ends, offset=self.offset + cut, data=self.data[cut:]
        )


def lines(file: IO[bytes], *, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    r"""Yield the number, from 1, and the bytes of each line, blank ones as well.

    Lines end with `\n`; it and one `\r` before it are dropped, and the byte order mark. U+2028 and
    its kind are text. A line of more than *max_bytes* is skipped without being held, and not looked
    at: None stands for it. Raises `BadInput` at the first line that is not UTF-8: what one editor
    saved wrongly is wrong everywhere, so the lines before it are not to be trusted either.
    """
    for piece in pieces(file, max_bytes=max_bytes, block_bytes=BLOCK_BYTES):
        yield from lines_of(piece, max_bytes=max_bytes)


def pieces(file: IO[bytes], *, max_bytes: int, block_bytes: int) -> Iterator[Piece]:
    """Yield all lines of a file, *block_bytes* of them at once and what is left of the last.

    Of a line of more than *max_bytes* there is no more than what tells that.

    Raises `BadInput` for a file that begins in another encoding than UTF-8.
    """
    number, offset = 1, 0

    while data := file.read(block_bytes):
        # Two more than a line may have: its line end is not counted.
        rest = b"" if data.endswith(b"\n") else file.readline(max_bytes + 2)
        data += rest

        if not offset:
            check_start(data[: data.find(b"\n") + 1] or data)

        piece = Piece(line=number, offset=offset, data=data)
        yield piece

        number += piece.ends
        offset += len(data)

        if len(rest) == max_bytes + 2 and not rest.endswith(b"\n"):
            offset += _skip_line(file)
            number += 1


def lines_of(piece: Piece, *, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines of a piece as `lines` does."""
    offset = piece.offset

    for number, raw in enumerate(io.BytesIO(piece.data), start=piece.line):
        start, offset = offset, offset + len(raw)
        data = raw.removesuffix(b"\n").removesuffix(b"\r")

        if len(data) > max_bytes:
            yield number, None
            continue

        check_utf8(raw, line=number, offset=start)
        yield number, data.removeprefix(codecs.BOM_UTF8) if number == 1 else data


def check_start(head: bytes) -> None:
    """Name the encodings that give themselves away in the first bytes of a file."""
    encoding = foreign_encoding(head)

    if encoding is not None:
        reason = f"the file is {encoding} (it starts with that byte order mark); save it as UTF-8"
        raise BadInput(reason, code="wrong_encoding", line=1)

    # ASCII in UTF-16 or UTF-32 has a zero in each of its units, and text has none at all.
    if b"\0" in head[:4]:
        reason = "the file starts with zero bytes, so it is UTF-16 or no text; save it as UTF-8"
        raise BadInput(reason, code="wrong_encoding", line=1)


def foreign_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte order mark tells, None if it is UTF-8 or there is none."""
    for bom, name in _FOREIGN_BOMS:
        if head.startswith(bom):
            return name

    return None


def check_utf8(raw: bytes, *, line: int, offset: int) -> None:
    """Raise `BadInput` unless *raw* is UTF-8; it begins in *line*, at *offset* in its file."""
    if raw.isascii():
        return

    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        reason = (
            f"the file is not UTF-8: line {line} has the byte 0x{raw[error.start]:02x} at offset "
            f"{offset + error.start} of the file; save it as UTF-8 and drop it again"
        )
        raise BadInput(reason, code="wrong_encoding", line=line) from error


def too_long(what: str, *, max_bytes: int) -> BadInput:
    """Return the fault of a row that is longer than it may be; *what* as in `the line`."""
    return BadInput(f"{what} is longer than {max_bytes:,} bytes; shorten it", code="line_too_long")


def _skip_line(file: IO[bytes]) -> int:
    """Read on to the end of the present line; return how many bytes that took."""
    skipped = 0

    while raw := file.readline(_BLOCK_BYTES):
        skipped += len(raw)

        if raw.endswith(b"\n"):
            break

    return skipped
