"""Delimited blocks: many plain records of a table at once, or none where anything is odd.

What takes long in Python is every step that is taken for each value, and in C every one for each
byte; finding one byte and replacing it by another is ten times as fast. So a record's structure is
moved out of the way of its text with bytes that are in no UTF-8: first the quotes become the only
line feeds, which cuts the text into what is in quotes and what is not, then the delimiters and line
ends among the latter do. Whatever the `csv` module would not read in the same way without a second
thought is odd: for the module to read. Pure; raises nothing.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import msgspec

# None of these bytes is in any UTF-8.
_ROW_END = b"\xf9"
_IN_QUOTES = b"\xfc"
_QUOTE = b"\xfd"
_LINE_FEED = b"\xfe"

_QUOTED_FIELD = _IN_QUOTES + b"\n"

_encode = msgspec.json.Encoder().encode
_decode_lines = msgspec.json.Decoder(msgspec.Raw).decode_lines


class Plain(NamedTuple):
    """Records that all have the same number of fields."""

    columns: list[bytes]
    """The values of each column, marked, each with a line feed behind it; see `json_texts`."""
    lines: Sequence[int]
    """Where each begins."""
    next_line: int
    """The line after them."""
    size_bytes: int
    """How much of the text they are; what follows is a record that is not whole."""


class _Pieces(NamedTuple):
    """A text, cut up at its quotes."""

    outer: list[bytes]
    """What is not in quotes: one more than the others."""
    inner: list[bytes]
    size_bytes: int


def plain_records(text: bytes, width: int, delimiter: bytes, *, line: int) -> Plain | None:
    """Return the records that *text*, UTF-8, begins with; None if one is not plain, or none whole.

    Each has *width* fields; *delimiter* is one byte of ASCII, *line* is the first line's number.
    """
    if b"\0" in text or not text.endswith(b"\n"):
        return None

    pieces = _pieces(text)

    if pieces is None or not _are_whole_fields(pieces.outer, delimiter):
        return None

    fields = _fields(_skeleton(pieces.outer), width, delimiter)

    if fields is None:
        return None

    take = iter(pieces.inner).__next__

    if pieces.inner:
        fields = [take() if field == _QUOTED_FIELD else field for field in fields]

    values = [fields[place::width] for place in range(width)]
    columns = list(map(b"".join, values))
    lines = _lines(columns, values, line)

    return None if lines is None else Plain(columns, lines[:-1], lines[-1], pieces.size_bytes)


def _pieces(text: bytes) -> _Pieces | None:
    """Cut *text* up at its quotes, up to where its last whole record ends.

    Two quotes in quotes stand for one: what is around them is one piece.
    """
    pieces = _split(text.replace(b"\n", _LINE_FEED).replace(b'"', b"\n"))
    size = len(text)

    if len(pieces) % 2 == 0:
        size -= _drop_open_record(pieces)

        if not pieces:
            return None

    outer, inner = pieces[::2], pieces[1::2]
    outer[0] = _LINE_FEED + outer[0]

    if pairs := [place for place, piece in enumerate(outer) if piece == b"\n"]:
        for place in pairs:
            inner[place - 1] = inner[place - 1][:-1] + _QUOTE

        outer = [piece for piece in outer if piece != b"\n"]
        inner = _split(b"".join(inner))

    return _Pieces(outer, inner, size)


def _drop_open_record(pieces: list[bytes]) -> int:
    """Drop the record whose last value has no end from *pieces*; return how long it is."""
    size = len(pieces.pop())

    while pieces:
        outer = pieces.pop()
        start = outer.rfind(_LINE_FEED) + 1
        size += len(outer) - start

        if start:
            pieces.append(outer[:start])
            break

        size += len(pieces.pop()) if pieces else 0

    return size


def _are_whole_fields(outer: list[bytes], delimiter: bytes) -> bool:
    """Tell whether quotes only stand where fields begin and end."""
    before, after = {*delimiter, *_LINE_FEED}, {*delimiter, *_LINE_FEED, *b"\r"}

    return before.issuperset(map(itemgetter(-2), outer[:-1])) and after.issuperset(
        map(itemgetter(0), outer[1:])
    )


def _skeleton(outer: list[bytes]) -> bytes:
    """Return the text with a mark for each value in quotes."""
    skeleton = b"".join(outer)[len(_LINE_FEED) :].replace(b"\n", _IN_QUOTES)

    # Any other carriage return is left in a field, where it comes up with the lines.
    return skeleton.replace(b"\r" + _LINE_FEED, _LINE_FEED) if b"\r" in skeleton else skeleton


def _fields(skeleton: bytes, width: int, delimiter: bytes) -> list[bytes] | None:
    """Return all fields, each with a line feed behind it; None unless each row has *width*."""
    fields = _split(skeleton.replace(_LINE_FEED, _ROW_END + b"\n").replace(delimiter, b"\n"))
    count, rest = divmod(len(fields), width)
    *others, last = (b"".join(fields[place::width]) for place in range(width))
    bare = last.replace(_ROW_END, b"")

    # As many rows as line ends, and all of those in the last column.
    if rest or len(last) - len(bare) != count or any(_ROW_END in other for other in others):
        return None

    fields[width - 1 :: width] = _split(bare)

    # A line of blanks is no row.
    if width == 1 and not all(field.strip(b" \t\n") for field in fields):
        return None

    return fields


def _lines(columns: list[bytes], values: list[list[bytes]], line: int) -> Sequence[int] | None:
    """Return where rows begin, and the one after them; None for odd line ends.

    *columns* are their *values*, joined.
    """
    for column in columns:
        if b"\r" in column and column.count(b"\r") != column.count(b"\r" + _LINE_FEED):
            return None

    long: Counter[int] = Counter()
    feed = _LINE_FEED[0]  # A number is looked for in less time than bytes are.

    for column, texts in zip(columns, values, strict=True):
        if _LINE_FEED in column:
            for place in [place for place, text in enumerate(texts) if feed in text]:
                long[place] += texts[place].count(feed)

    count = len(values[0])

    return _starts(long, count, line) if long else range(line, line + count + 1)


def _starts(long: Mapping[int, int], count: int, line: int) -> list[int]:
    """Return where rows begin, some of which, by their place, are so many lines *long*er."""
    starts: list[int] = []
    line -= 1

    for place in sorted(long):
        starts.extend(range(line + len(starts) + 1, line + place + 2))
        line += long[place]

    starts.extend(range(line + len(starts) + 1, line + count + 2))

    return starts


def _split(text: bytes) -> list[bytes]:
    """Return the lines of *text* with their ends: six times as fast as its own method."""
    return io.BytesIO(text).readlines()


class Columns(Mapping[str, Sequence[msgspec.Raw | bytes]]):
    """The columns of plain records by name, encoded when they are asked for."""

    def __init__(self, places: Mapping[str, int], columns: Sequence[bytes]) -> None:
        """Take the *columns* of `Plain`, and which of them has which name."""
        self._places = places
        self._columns = columns

    def __getitem__(self, name: str) -> Sequence[msgspec.Raw | bytes]:
        """Return the JSON texts of a column."""
        return json_texts(self._columns[self._places[name]])

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in order."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return how many columns there are."""
        return len(self._places)


def json_texts(column: bytes) -> Sequence[msgspec.Raw | bytes]:
    """Return the values of a column of `Plain` as JSON strings, written as msgspec does."""
    text = column.replace(b"\\", rb"\\").replace(_QUOTE, rb"\"").replace(_LINE_FEED, rb"\n")
    text = text.replace(b"\t", rb"\t").replace(b"\r", rb"\r").replace(b"\n", b'"\n"')

    try:
        # The last line end would begin one more; a copy less is a twelfth of the time.
        return _decode_lines(memoryview(b'"' + text)[:-2])
    except msgspec.DecodeError:
        # Other control characters are rare, and JSON has a way of its own for each of them.
        return [_encode(_unmarked(value).decode()) for value in _split(column)]


def _unmarked(value: bytes) -> bytes:
    return value[:-1].replace(_QUOTE, b'"').replace(_LINE_FEED, b"\n")
