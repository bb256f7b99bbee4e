"""JSON scan: where the values of a JSON file begin and end, without taking them apart.

Holds one block of the file and the value that is being taken, whatever the size of the file; what
is longer than the caller takes is passed over without being held. Linear in the file, and no
recursion: brackets are counted, not kept. Measured: 30 MB/s for rows of 350 bytes, decoded.
Pure but for reading the file it is given. Raises `BadInput` where the structure is so broken that
nothing behind it can be trusted (bad data).
"""

from __future__ import annotations

import codecs
import re
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from promptspool.errors import BadInput
from promptspool.intake.formats.lines import check_start
from promptspool.intake.values import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_DEPTH = 10_000
"""Deeper than any decoder goes; stops at once what does nothing but open brackets."""

TOO_DEEP = "the JSON is nested too deeply"

_BLOCK_BYTES = 1 << 20

_MAX_NAME_BYTES = 1000


def _matching(pattern: bytes) -> Callable[[bytes, int], re.Match[bytes]]:
    """Return the matching of a pattern that matches anything, if only nothing of it."""
    return cast("Callable[[bytes, int], re.Match[bytes]]", re.compile(pattern).match)


_blanks = _matching(rb"[ \t\r\n]*+")
_word_rest = _matching(rb'[^ \t\r\n,\[\]{}"]*+')

# Up to the next bracket, or to a quote whose string does not end in this block (or at all). No
# string has a line feed in it, so a quote that was left out does not turn the file inside out.
_STRING = rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'
_to_bracket = _matching(rb'[^"{}\[\]]*+(?:' + _STRING + rb'[^"{}\[\]]*+)*+')
_to_mark = _matching(rb'[^",{}\[\]]*+(?:' + _STRING + rb'[^",{}\[\]]*+)*+')
_string_rest = _matching(rb'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+')

_QUOTE = ord('"')
_OPENING = b"{["


class Place(NamedTuple):
    """Where a value begins in its file, both from 1; columns are bytes."""

    line: int
    column: int


class Scan:
    """A JSON file and how far it was read."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin at the beginning of *file*, which is closed by whoever opened it.

        Raises `BadInput` if it begins as no UTF-8 does.
        """
        head = file.read(_BLOCK_BYTES)
        check_start(head)

        self.began = Place(1, 1)
        """Where the value begins that was taken last, and at which offset."""
        self.began_offset = 0
        self._file = file
        self._data = head.removeprefix(codecs.BOM_UTF8)
        self._at = 0
        self._data_offset = len(head) - len(self._data)
        self._line = 1
        self._line_offset = self._data_offset
        self._counted = 0
        self._taken = _Taken(0)
        self._taken_from: int | None = None

    def place(self) -> Place:
        """Return where the next byte stands."""
        data, counted, at = self._data, self._counted, self._at

        if count := data.count(b"\n", counted, at):
            self._line += count
            self._line_offset = self._data_offset + data.rfind(b"\n", counted, at) + 1

        self._counted = at

        return Place(self._line, self._data_offset + at - self._line_offset + 1)

    def peek(self) -> bytes:
        """Go to the next byte that is no blank and return it, empty at the end of the file."""
        while True:
            self._at = at = _blanks(self._data, self._at).end()

            if at < len(self._data):
                return self._data[at : at + 1]

            if not self._read_on():
                return b""

    def step(self) -> None:
        """Go over the byte that `peek` returned."""
        self._at += 1

    def value(self, max_bytes: int) -> bytes | None:
        """Go over the value that begins here; return its text, None if longer than *max_bytes*.

        It ends where it is complete: an array or an object with its bracket, a string with its
        quote, anything else before the next blank or mark.
        """
        self._begin(max_bytes)
        first = self._data[self._at]

        if first in _OPENING:
            self._at += 1
            self.pass_to_close()
            self._at += 1
        elif first == _QUOTE:
            self._pass_string()
        else:
            self._pass_word()

        return self._end()

    def element(self, max_bytes: int) -> bytes | None:
        """Go to the comma or the bracket behind the value that begins here; return its text.

        What stands there is taken as it is, whether it is a value or not. None if it is longer
        than *max_bytes*.
        """
        if not self.peek():
            raise self.unexpected("a value")

        self._begin(max_bytes)
        self._pass_to_mark(self.began)

        return self._end()

    def pass_to_close(self) -> None:
        """Go to the bracket that closes the array or the object whose inside begins here."""
        self._pass_brackets(self.place())

    def members(self) -> Iterator[bytes]:
        """Yield the names in the object that begins here as they are written; go over its end.

        It stops before each name's value, and goes over what the caller left of that. A very long
        name comes out empty.
        """
        self.peek()
        self.step()
        end = self.peek()

        while end != b"}":
            if self.peek() != b'"':
                raise self.unexpected("a key in double quotes")

            name = self.value(_MAX_NAME_BYTES)

            if self.peek() != b":":
                raise self.unexpected("a colon")

            self.step()
            self.peek()
            yield name or b""

            self.element(0)
            end = self.peek()

            if end not in (b",", b"}"):
                raise self.unexpected("a comma or }")

            if end == b",":
                self.step()

        self.step()

    def unexpected(self, wanted: str) -> BadInput:
        """Return the complaint about the next byte that is no blank."""
        found = self.peek()
        line, column = self.place()
        what = quoted(found.decode()) if found.isascii() else f"the byte 0x{found.hex()}"
        reason = (
            f"broken JSON: found {what if found else 'the end of the file'} at line {line}, "
            f"column {column}, where {wanted} belongs"
        )

        return BadInput(reason, code="invalid_json", line=line)

    def _pass_to_mark(self, opened: Place) -> None:
        """Go to the next comma, or to the bracket that closes what is around."""
        while True:
            self._at = at = _to_mark(self._data, self._at).end()

            if at == len(self._data):
                self._need_more(opened)
            elif (char := self._data[at]) in _OPENING:
                self._at += 1
                self._pass_brackets(opened)
                self._at += 1
            elif char == _QUOTE:
                self._pass_string()
            else:
                return

    def _pass_brackets(self, opened: Place) -> None:
        """Go to the bracket that closes what was just opened."""
        depth = 1

        while True:
            self._at = at = _to_bracket(self._data, self._at).end()

            if at == len(self._data):
                self._need_more(opened)
            elif (char := self._data[at]) == _QUOTE:
                self._pass_string()
            elif char in _OPENING:
                depth += 1
                self._at += 1
                self._check_depth(depth)
            elif depth == 1:
                return
            else:
                depth -= 1
                self._at += 1

    def _check_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            line, column = self.place()
            reason = (
                f"{TOO_DEEP}: {depth:,} brackets are open at line {line}, column {column}; no more "
                f"than {MAX_DEPTH:,} are looked into"
            )
            raise BadInput(reason, code="invalid_json", line=line)

    def _need_more(self, opened: Place) -> None:
        """Read on; raise `BadInput` if the file ends inside of what began at *opened*."""
        if not self._read_on():
            reason = (
                f"broken JSON: the file ends inside of what begins at line {opened.line}, column "
                f"{opened.column}; it was cut short, or a bracket is missing"
            )
            raise BadInput(reason, code="invalid_json", line=opened.line)

    def _pass_string(self) -> None:
        """Go over the string that begins here, in as many blocks as it has."""
        line, column = self.place()
        self._at += 1

        while True:
            self._at = at = _string_rest(self._data, self._at).end()
            rest = self._data[at : at + 2]

            if rest[:1] == b'"':
                self._at += 1
                return

            if rest not in (b"", b"\\") or not self._read_on():
                reason = (
                    f"broken JSON: the string that begins at line {line}, column {column} does not "
                    f'end on its line; write \\n for a line break and \\" for a quote inside of it'
                )
                raise BadInput(reason, code="invalid_json", line=line)

    def _pass_word(self) -> None:
        self._at += 1

        while True:
            self._at = _word_rest(self._data, self._at).end()

            if self._at < len(self._data) or not self._read_on():
                return

    def _begin(self, max_bytes: int) -> None:
        self.began = self.place()
        self.began_offset = self._data_offset + self._at
        self._taken = _Taken(max_bytes)
        self._taken_from = self._at

    def _end(self) -> bytes | None:
        start, self._taken_from = self._taken_from, None

        return self._taken.whole(self._data[start : self._at])

    def _read_on(self) -> bool:
        """Replace what was gone over by the next block; return False at the end of the file."""
        block = self._file.read(_BLOCK_BYTES)

        if not block:
            return False

        if self._taken_from is not None:
            self._taken.add(self._data[self._taken_from : self._at])
            self._taken_from = 0

        self.place()  # counts the lines before they are gone
        self._data_offset += self._at
        self._data = self._data[self._at :] + block
        self._at = self._counted = 0

        return True


class _Taken:
    """A value's text, from as many blocks as it takes."""

    __slots__ = ("_max_bytes", "_parts", "_size")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._size += len(part)

        if self._size > self._max_bytes:
            self._parts.clear()
        else:
            self._parts.append(part)

    def whole(self, part: bytes) -> bytes | None:
        """Return the text that ends with *part*, None if it is too long."""
        if not self._size:
            return part if len(part) <= self._max_bytes else None

        self.add(part)

        return b"".join(self._parts) if self._size <= self._max_bytes else None
