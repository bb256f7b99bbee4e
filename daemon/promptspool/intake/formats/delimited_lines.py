"""Delimited lines: the text of a table as UTF-8, in whole lines: many at once, or one by one.

Held are the lines that were read last, or one line as long as a row may be. Raises `BadInput` for
what is not in its encoding (bad data).
"""

from __future__ import annotations

import codecs
import io
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from promptspool.intake.formats.encodings import decoding_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.intake.rows import ReadOptions, Source

_MOST_AT_ONCE = 1 << 17  # What is made of it is several times as large; more is no faster.

_LONGEST_END = 2
_LONGEST_CHARACTER = 4


class Text:
    """The text of a table."""

    def __init__(self, file: IO[bytes], encoding: str, options: ReadOptions) -> None:
        """Begin where *file* does.

        *encoding* is that of `text_encoding`. A line that is longer than a row may be is taken in
        pieces.
        """
        self.line = 1
        """The number of the next line; counted by those who take lines."""
        self._file = file
        self._most = options.max_row_bytes + _LONGEST_END + _LONGEST_CHARACTER
        self._block_bytes = min(options.block_bytes or _MOST_AT_ONCE, _MOST_AT_ONCE)
        self._decoder: codecs.IncrementalDecoder | None = None
        self._is_checked = encoding == "utf-8" and options.encoding is None
        self._rest = b""
        self._lines: io.BytesIO | io.StringIO = io.BytesIO()
        self._end = 0

        if encoding == "utf-8-sig":
            for _ in codecs.BOM_UTF8:
                file.read(1)  # More at once may return less.
        elif encoding != "utf-8":
            self._decoder = codecs.getincrementaldecoder(encoding)()

    def take(self) -> bytes:
        """Take all lines that end in about a block; empty at the end.

        The last one has no end where the file ends without, or where it is too long.
        Raises `UnicodeDecodeError`.
        """
        if held := self._lines.read():
            self._rest = (held if isinstance(held, bytes) else held.encode()) + self._rest

        parts = [self._rest]
        open_bytes = len(self._rest) - _last_end(self._rest)

        while block := self._read():
            parts.append(block)
            open_bytes = 0 if _last_end(block) else open_bytes + len(block)

            if not open_bytes or open_bytes > self._most:
                break

        text = b"".join(parts)
        last = _last_character(text) if open_bytes > self._most else len(text)
        cut = _last_end(text) or last
        text, self._rest = text[:cut], text[cut:]

        # What was found to be UTF-8 was read to its end for that.
        if not self._is_checked and not text.isascii():
            text.decode()

        return text

    def give_back(self, text: bytes) -> None:
        """Give back the end of what was taken last, to be taken again."""
        self._rest = text + self._rest

    def read_lines_of(self, text: bytes) -> None:
        """Have `lines` take the lines of *text*, which was taken last, once more."""
        # Lines of bytes are made five times as fast, but none ends at a lone carriage return.
        if b"\r" in text.replace(b"\r\n", b""):
            self._lines = io.StringIO(text.decode(), newline="")
        else:
            self._lines = io.BytesIO(text)

        self._end = self._lines.seek(0, io.SEEK_END)
        self._lines.seek(0)

    def is_at_block_end(self) -> bool:
        """Tell whether `lines` has come to the end of lines that were taken together."""
        return self._lines.tell() == self._end

    def lines(self) -> Iterator[str]:
        """Take line by line with its end; in between, lines can be taken in other ways."""
        while True:
            lines = self._lines

            yield from map(bytes.decode, lines) if isinstance(lines, io.BytesIO) else lines

            if lines is not self._lines:
                continue

            text = self.take()

            if not text:
                return

            self.read_lines_of(text)

    def _read(self) -> bytes:
        """Return the next bytes as UTF-8, empty only at the end."""
        while True:
            block = self._file.read(self._block_bytes)

            if self._decoder is None:
                return block

            text = self._decoder.decode(block, final=not block)

            if text or not block:
                return text.encode()


@contextmanager
def opened_text(source: Source, encoding: str, options: ReadOptions) -> Iterator[Text]:
    """Open the text of *source*; raises `BadInput` where that turns out not to be in *encoding*."""
    with source.open() as file:
        try:
            yield Text(file, encoding, options)
        except UnicodeDecodeError as error:
            raise decoding_fault(source, encoding) from error


def _last_end(text: bytes) -> int:
    """Return where the last line of *text* that has an end ends, 0 if none has."""
    if end := text.rfind(b"\n") + 1:
        return end

    # The very last byte may be half an end.
    return text.rfind(b"\r", 0, -1) + 1


def _last_character(text: bytes) -> int:
    """Return where the last character of *text* begins; it may be cut off."""
    start = len(text) - 1

    while start > 0 and text[start] & 0xC0 == 0x80:  # noqa: PLR2004 (UTF-8: 10xxxxxx goes on)
        start -= 1

    return start
