r"""Lines: bytes cut at line feeds and nowhere else, and what to say where they are not UTF-8.

Holds one line at a time, whatever the file's size. Pure but for reading the file it is given.
Raises `BadInput` for a file that is not UTF-8 (bad data).
"""

from __future__ import annotations

import codecs
from typing import IO, TYPE_CHECKING

from promptspool.errors import BadInput

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


def lines(file: IO[bytes], *, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    r"""Yield the number, from 1, and the bytes of each line, blank ones as well.

    Lines end with `\n`; it and one `\r` before it are dropped, and the byte order mark. U+2028 and
    its kind are text. A line of more than *max_bytes* is skipped without being held, and not looked
    at: None stands for it. Raises `BadInput` at the first line that is not UTF-8: what one editor
    saved wrongly is wrong everywhere, so the lines before it are not to be trusted either.
    """
    number = offset = 0

    # Two more than a line may have: its line end is not counted.
    while raw := file.readline(max_bytes + 2):
        number += 1
        start, offset = offset, offset + len(raw)

        if number == 1:
            check_start(raw)

        data = raw.removesuffix(b"\n").removesuffix(b"\r")

        if len(data) > max_bytes:
            offset += 0 if raw.endswith(b"\n") else _skip_line(file)
            yield number, None
            continue

        if not raw.isascii():
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
