r"""Texts: prompts written as plain text, by the line, by the paragraph or by the file.

In the encoding that `encodings` finds. Line ends become `\n`. Holds one prompt or one block of
lines at a time. Raises `BadInput` for a file that is not in its encoding (bad data).
"""

from __future__ import annotations

import codecs
import io
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats.encodings import decoding_fault, text_encoding
from promptspool.intake.formats.lines import lines, lines_of, pieces, too_long
from promptspool.intake.rows import Block, ReadOptions, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from _typeshed import WriteableBuffer

    from promptspool.intake.formats.lines import Piece
    from promptspool.intake.rows import Source, Split

_BLOCK_BYTES = 1 << 20

_AS_IT_IS = frozenset({"utf-8", "utf-8-sig"})
"""Encodings that need no other; a mark at the beginning is not in the way."""

_BLANKS = " \t\r\x0b\x0c"
"""Of what a blank line consists; other blanks are text."""

_encoder = msgspec.json.Encoder()


def read_text(source: Source, options: ReadOptions) -> Iterator[Row | Block]:
    """Yield the prompts of a text: its lines, unless the options say otherwise.

    A paragraph ends at a blank line. Paragraphs and whole files lose the blank lines around them;
    a file keeps those inside of it. What is blank is no row.
    """
    return _rows(source, options, options.split or "line")


def read_document(source: Source, options: ReadOptions) -> Iterator[Row | Block]:
    """Yield the one prompt that a text is, unless the options say otherwise."""
    return _rows(source, options, options.split or "file")


def document(data: bytes, encoding: str | None) -> str:
    """Return the text of a whole document, without the blank lines around it; empty if it is blank.

    *encoding* is what the profile says. Raises `BadInput` for what is no text in that encoding.
    """
    held = _Held(data)
    options = ReadOptions(max_row_bytes=len(data) * 4 + 1, encoding=encoding)
    text = "".join((prompt or b"").decode() for _, prompt in _prompts(held, options, "file"))
    _check(text)

    return text


class _Held:
    """A text in memory, as a source."""

    def __init__(self, data: bytes) -> None:
        self.name = ""
        self.notes: dict[str, str] = {}
        self._data = data

    def open(self) -> IO[bytes]:
        return io.BytesIO(self._data)

    def path(self) -> Path:
        raise NotImplementedError


def _rows(source: Source, options: ReadOptions, split: Split) -> Iterator[Row | Block]:
    if split == "line" and options.block_bytes is not None:
        yield from _line_blocks(source, options, options.block_bytes)
        return

    for number, prompt in _prompts(source, options, split):
        if (row := _row(number, prompt, options, split)) is not None:
            yield row


def _line_blocks(source: Source, options: ReadOptions, size: int) -> Iterator[Row | Block]:
    max_bytes = options.max_row_bytes

    with _text(source, options) as file:
        for piece in pieces(file, max_bytes=max_bytes, block_bytes=size):
            if (block := _block(piece, max_bytes)) is not None:
                yield block
                continue

            for number, prompt in lines_of(piece, max_bytes=max_bytes):
                if (row := _row(number, prompt, options, "line")) is not None:
                    yield row


def _block(piece: Piece, max_bytes: int) -> Block | None:
    """Return the lines of a piece that are not blank; None if there are none, or odd ones."""
    data = piece.data.removeprefix(codecs.BOM_UTF8) if piece.line == 1 else piece.data

    if len(piece.data) > max_bytes or b"\0" in data:
        return None

    data += b"" if data.endswith(b"\n") else b"\n"

    try:
        texts = data.replace(b"\r\n", b"\n").decode().split("\n")[:-1]
    except UnicodeDecodeError:
        return None

    lines: Sequence[int] = range(piece.line, piece.line + len(texts))

    if not all(text.strip(_BLANKS) for text in texts):
        lines = [line for line, text in zip(lines, texts, strict=True) if text.strip(_BLANKS)]
        texts = [text for text in texts if text.strip(_BLANKS)]

    if not texts:
        return None

    columns = {"prompt": _encoder.encode_lines(texts).split(b"\n")[:-1]}

    return Block(lines, columns, is_ascii=data.isascii())


@contextmanager
def _text(source: Source, options: ReadOptions) -> Iterator[IO[bytes]]:
    """Open a text, as UTF-8; raises `BadInput` where it is not in its encoding."""
    encoding = text_encoding(source, options)

    with source.open() as file:
        try:
            yield file if encoding in _AS_IT_IS else io.BufferedReader(_Recoded(file, encoding))
        except UnicodeError as error:
            raise decoding_fault(source, encoding) from error


def _prompts(
    source: Source, options: ReadOptions, split: Split
) -> Iterator[tuple[int, bytes | None]]:
    """Yield where each text begins, and the text in UTF-8, None if it is too long; some are blank.

    Raises `BadInput` where the file is not in its encoding.
    """
    max_bytes = options.max_row_bytes

    with _text(source, options) as file:
        yield from (
            lines(file, max_bytes=max_bytes)
            if split == "line"
            else _blocks(file, max_bytes, split=split)
        )


def _row(number: int, prompt: bytes | None, options: ReadOptions, split: Split) -> Row | None:
    """Return a prompt as a row, None if it is blank."""
    if prompt is None:
        return Row(number, None, too_long(f"the {split}", max_bytes=options.max_row_bytes))

    if not prompt or prompt.isspace():
        return None

    text = prompt.decode()

    try:
        _check(text)
    except BadInput as error:
        return Row(number, None, error)

    return Row(number, {"prompt": _encoder.encode(text)})


def _check(text: str) -> None:
    """Raise `BadInput` for what no text has in it: what comes behind it is none either."""
    if (at := text.find("\0")) >= 0:
        reason = f"found a zero byte (character {at + 1}), which no text has; save it as text"
        raise BadInput(reason, code="no_text")


def _blocks(file: IO[bytes], max_bytes: int, *, split: Split) -> Iterator[tuple[int, bytes | None]]:
    """Yield the first line and the text of each paragraph, or of the whole file.

    None stands for a text of more than *max_bytes*, which is not held.
    """
    held = bytearray()
    began, is_whole = 0, True

    for number, data in lines(file, max_bytes=max_bytes):
        is_blank = data is not None and not data.strip()

        if is_blank and (split == "paragraph" or not began):
            if began:
                yield began, _trimmed(held) if is_whole else None

            held.clear()
            began, is_whole = 0, True
            continue

        began = began or number
        # Blank lines at the end are no part of it, so they cannot make it too long.
        is_whole &= is_blank or (data is not None and len(held) + len(data) <= max_bytes)
        is_held = is_whole and len(held) <= max_bytes

        if is_held:
            held += (data or b"") + b"\n"

    if began:
        yield began, _trimmed(held) if is_whole else None


def _trimmed(held: bytearray) -> bytes:
    """Return the text without its last line end and the blank lines behind it."""
    return bytes(held[: held.find(b"\n", len(held.rstrip()))])


class _Recoded(io.RawIOBase):
    """A text file in UTF-8, whatever its own encoding."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        """Read from *file*, which is closed by whoever opened it."""
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = memoryview(b"")
        self._is_at_end = False

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill some of *buffer*; return how much, 0 at the end."""
        while not self._ready and not self._is_at_end:
            self._ready = memoryview(self._next())

        view = memoryview(buffer).cast("B")
        data, self._ready = self._ready[: len(view)], self._ready[len(view) :]
        view[: len(data)] = data

        return len(data)

    def _next(self) -> bytes:
        block = self._file.read(_BLOCK_BYTES)
        self._is_at_end = not block

        return self._decoder.decode(block, final=not block).encode()
