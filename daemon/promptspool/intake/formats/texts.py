r"""Texts: prompts written as plain text, by the line, by the paragraph or by the file.

UTF-8 unless the profile or a byte order mark says otherwise. Line ends become `\n`. Holds one
prompt at a time. Raises `BadInput` for a file that is not in its encoding (bad data).
"""

from __future__ import annotations

import codecs
import io
from typing import IO, TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats.lines import foreign_encoding, lines, too_long
from promptspool.intake.rows import Row
from promptspool.intake.values import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

    from promptspool.intake.rows import ReadOptions, Source, Split

_BLOCK_BYTES = 1 << 20

_BOM_BYTES = 4


def read_text(source: Source, options: ReadOptions) -> Iterator[Row]:
    """Yield the prompts of a text: its lines, unless the options say otherwise.

    A paragraph ends at a blank line. Paragraphs and whole files lose the blank lines around them;
    a file keeps those inside of it. What is blank is no row.
    """
    return _rows(source, options, options.split or "line")


def read_document(source: Source, options: ReadOptions) -> Iterator[Row]:
    """Yield the one prompt that a text is, unless the options say otherwise."""
    return _rows(source, options, options.split or "file")


def document(data: bytes, encoding: str | None) -> str:
    """Return the text of a whole document, without the blank lines around it; empty if it is blank.

    *encoding* is what the profile says. Raises `BadInput` for what is no text in that encoding.
    """
    encoding = _encoding(data, encoding)

    with io.BytesIO(data) as file:
        prompts = _blocks(_recoded(file, encoding), len(data) * 4, split="file")
        text = "".join((prompt or b"").decode() for _, prompt in prompts)

    _check(text)

    return text


def _rows(source: Source, options: ReadOptions, split: Split) -> Iterator[Row]:
    with source.open() as file:
        encoding = _encoding(file.read(_BOM_BYTES), options.encoding)

    if encoding is not None:
        source.notes["encoding"] = encoding

    max_bytes = options.max_row_bytes

    with source.open() as file:
        text = _recoded(file, encoding)
        prompts = (
            lines(text, max_bytes=max_bytes)
            if split == "line"
            else _blocks(text, max_bytes, split=split)
        )

        for number, prompt in prompts:
            if prompt is None:
                yield Row(number, None, too_long(f"the {split}", max_bytes=max_bytes))
            elif prompt and not prompt.isspace():
                yield _row(number, prompt)


def _row(number: int, prompt: bytes) -> Row:
    text = prompt.decode()

    try:
        _check(text)
    except BadInput as error:
        return Row(number, None, error)

    return Row(number, {"prompt": msgspec.json.encode(text)})


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


def _encoding(head: bytes, chosen: str | None) -> str | None:
    """Return the encoding of a file that begins with *head*, None if it is to be UTF-8."""
    if chosen is None:
        foreign = foreign_encoding(head)

        return None if foreign is None else foreign.lower()

    try:
        name = codecs.lookup(chosen).name
        b"a".decode(chosen)
    except UnicodeError:
        pass  # half a character, but the encoding is known
    except (LookupError, ValueError) as error:
        reason = (
            f"the profile says encoding = {quoted(chosen)}, which is no encoding of text; "
            f'write one as "utf-8" or "cp1252", or leave it out'
        )
        raise BadInput(reason, code="wrong_encoding", key="encoding") from error

    return None if name in ("utf-8", "utf-8-sig") else name


def _recoded(file: IO[bytes], encoding: str | None) -> IO[bytes]:
    """Return *file* in UTF-8."""
    if encoding is None:
        return file

    return io.BufferedReader(_Recoded(file, encoding), _BLOCK_BYTES)


class _Recoded(io.RawIOBase):
    """A text file in UTF-8, whatever its own encoding."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        """Read from *file*, which is closed by whoever opened it."""
        self._file = file
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = memoryview(b"")
        self._lines = 0
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
        state = self._decoder.getstate()

        try:
            text = self._decoder.decode(block, final=not block)
            self._lines += text.count("\n")

            return text.encode()
        except UnicodeDecodeError as error:
            # What is in front of the bad byte tells its line.
            self._decoder.setstate(state)
            good = self._decoder.decode(block[: max(error.start - len(state[0]), 0)])
            raise self._wrong(self._lines + good.count("\n") + 1) from error
        except UnicodeError as error:
            raise self._wrong(self._lines + 1) from error

    def _wrong(self, line: int) -> BadInput:
        reason = (
            f"the file is not {self._encoding}: line {line} cannot be read; write encoding = "
            f'"..." in its profile, or save it as UTF-8 and drop it again'
        )

        return BadInput(reason, code="wrong_encoding", line=line)
