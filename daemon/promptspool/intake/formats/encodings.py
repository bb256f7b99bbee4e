"""Encodings: what the bytes of a dropped text were written in.

A wrong guess would silently send broken prompts and cost money. So a byte order mark decides, then
what the profile sets, then UTF-8 if the whole file is that; a legacy encoding is taken only where
letters and words leave no doubt, and suggested otherwise. Reads the file once through, up to three
times where it is not UTF-8; memory does not grow with it. Raises `BadInput` (bad data).
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, NamedTuple

from promptspool.errors import BadInput
from promptspool.intake.formats.legacy import Evidence

if TYPE_CHECKING:
    from promptspool.intake.rows import ReadOptions, Source

_BLOCK_BYTES = 1 << 16  # What fits into a processor's cache is checked three times as fast.
_HEAD_BYTES = 1 << 12

# The mark of UTF-32-LE begins with that of UTF-16-LE, so the longer ones come first. The decoders
# named here take the mark off.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be"),
)

# Codecs of Python that no file of text is in; some make text that is none (half surrogate pairs).
_NO_TEXT = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}
)

_LITTLE = re.compile(rb"(?:[^\0]\0){2}")
_BIG = re.compile(rb"(?:\0[^\0]){2}")
_ZERO_SHARE = 0.05
_MORE = 4


class Writing(NamedTuple):
    """How to write what is to look like a source: its codec, and what goes before the text."""

    codec: str
    mark: bytes


class _Misfit(NamedTuple):
    """The first byte that is not in an encoding."""

    line: int
    offset: int
    byte: int


def text_encoding(source: Source, options: ReadOptions) -> str:
    """Return the codec that *source* is to be decoded with, strictly; it takes off a mark.

    `source.notes["encoding"]` tells what was found, but for plain UTF-8. A byte order mark holds
    against what is set: no text begins with those bytes otherwise. UTF-8 was checked to the last
    byte; of what is set or marked a wrong byte comes up in decoding, for `decoding_fault`.
    Raises `BadInput` if the encoding is unknown, or cannot be told with confidence.
    """
    head = _head(source)
    known = _marked(head) or _set_encoding(options.encoding, head) or _wide_encoding(head)

    if known is None:
        misfit = _first_misfit(source, "utf-8")

        if misfit is None:
            return "utf-8"

        known = _legacy_encoding(source, misfit)

    if known not in ("utf-8", "utf-8-sig"):
        source.notes["encoding"] = known

    return known


def decoding_fault(source: Source, encoding: str) -> BadInput:
    """Return what to raise where decoding *source* failed: the line, byte and offset of it."""
    misfit = _first_misfit(source, encoding)

    if misfit is None:
        return BadInput(f"the file is not {encoding}; save it as UTF-8", code="wrong_encoding")

    reason = (
        f"the file is not {encoding}: {_described(misfit)}; "
        f"save it as UTF-8, or write its encoding in the profile or in NAME.toml beside the file"
    )

    return BadInput(reason, code="wrong_encoding", line=misfit.line)


def writing_of(source: Source, encoding: str) -> Writing:
    """Return how to write text in the *encoding* that was found for *source*."""
    head = _head(source)

    for mark, decoder, codec in _MARKS:
        if decoder == encoding and head.startswith(mark):
            return Writing(codec, mark)

    return Writing(encoding, b"")


def _head(source: Source) -> bytes:
    head = b""

    with source.open() as file:
        while block := file.read(_HEAD_BYTES - len(head)):  # Unwrapping may return less than asked.
            head += block

    return head


def _marked(head: bytes) -> str | None:
    """Return what the byte order mark says; None without one."""
    for mark, decoder, _ in _MARKS:
        if head.startswith(mark):
            return decoder

    return None


def _set_encoding(name: str | None, head: bytes) -> str | None:
    """Return the codec that the profile sets, for a file without a mark; None if it sets none."""
    if name is None:
        return None

    try:
        codec = codecs.lookup(name.strip()).name.replace("_", "-")
        is_text = isinstance(b" \0\0\0".decode(codec, "replace"), str)
    except (LookupError, ValueError):  # An unknown name, one with a zero byte, one of no text.
        is_text = False

    if not is_text or codec in _NO_TEXT:
        reason = f'{name!r:.60} is no encoding of text; write for instance encoding = "cp1252"'
        raise BadInput(reason, code="bad_profile", key="encoding")

    # Without a mark, these would take the byte order of this machine.
    if codec in ("utf-16", "utf-32"):
        return _wide_encoding(head) or f"{codec}-le"

    return "utf-8" if codec == "utf-8-sig" else codec


def _wide_encoding(head: bytes) -> str | None:
    """Return UTF-16 of either order if the text begins with ASCII in it, and looks like it after.

    None otherwise: a zero here and there is a fault of what wrote the file.
    """
    even, odd = head[::2].count(0), head[1::2].count(0)
    least = _ZERO_SHARE * len(head) / 2

    # Other characters have a zero in the other place now and then.
    if _LITTLE.match(head) and odd >= max(least, _MORE * even):
        return "utf-16-le"

    if _BIG.match(head) and even >= max(least, _MORE * odd):
        return "utf-16-be"

    return None


def _first_misfit(source: Source, encoding: str) -> _Misfit | None:
    """Return where *source* first is not in *encoding*; None if all of it is."""
    decoder, offset = codecs.getincrementaldecoder(encoding)(), 0

    with source.open() as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            offset += len(block)

            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # What a decoder calls its object ends where the block ends, and may begin earlier.
                start = offset - len(error.object) + error.start
                line = _line_at(source, encoding, start)

                return _Misfit(line, start, error.object[error.start])

            if not block:
                return None


def _line_at(source: Source, encoding: str, offset: int) -> int:
    """Return the line of the byte at *offset*, from 1, where all before it is in *encoding*."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    line, before = 1, ""

    with source.open() as file:
        while offset and (block := file.read(min(offset, _BLOCK_BYTES))):
            text = decoder.decode(block)
            line += _line_ends(before, text)
            offset -= len(block)
            before = text[-1:] or before

    return line


def _line_ends(before: str, text: str) -> int:
    r"""Count the ends of lines in *text*, which *before* comes right before: `\n`, `\r`, `\r\n`."""
    count = text.count("\n")

    if "\r" in text:
        count += text.count("\r") - text.count("\r\n")

    return count - (before == "\r" and text.startswith("\n"))


def _legacy_encoding(source: Source, misfit: _Misfit) -> str:
    """Return what a file that is not UTF-8 must have been written in.

    Raises `BadInput`, with a suggestion where there is one, if that is not certain.
    """
    evidence = Evidence()

    with source.open() as file:
        while block := file.read(_BLOCK_BYTES):
            evidence.add(block)

    guess = evidence.guess()

    if guess is not None and guess.is_certain:
        return guess.codec

    likely = f" (it looks like {guess.codec})" if guess is not None else ""
    example = guess.codec if guess is not None else "cp1252"
    reason = (
        f"the file is not UTF-8{likely}: {_described(misfit)}; save it as UTF-8, "
        f'or write encoding = "{example}" in the profile or in NAME.toml beside the file'
    )
    raise BadInput(reason, code="wrong_encoding", line=misfit.line)


def _described(misfit: _Misfit) -> str:
    return f"line {misfit.line} has the byte 0x{misfit.byte:02x} at offset {misfit.offset}"
