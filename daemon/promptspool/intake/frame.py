"""Frame: what the requests of all plain rows share, and many of them made at once.

A plain row is one whose request has nothing of its own but its prompt. The lines of many are joined
from constant pieces, the numbers of the rows and the prompts as they are, which is ten times as
fast as one by one. Pure; raises nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.intake.request import BYTES_A_TOKEN, Request, escaped, has_line_end
from promptspool.intake.values import text_of
from promptspool.wire import wire_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.intake.rows import Value
    from promptspool.model import JobId


_START = struct.Struct("2s")

# The quote, and what is neither a quote nor a blank nor escaped.
_PLAIN_STARTS = frozenset((b'"%c' % byte,) for byte in range(ord("!"), 0x7F) if byte not in b'"\\')


class Plain(NamedTuple):
    """What many rows, one after another, ask for."""

    frame: Frame
    contents: Sequence[Value]
    """For each row what its request has to itself: a JSON string."""
    sizes: Sequence[int]
    """Of each of these, in bytes."""
    names: Sequence[str] | None
    """The user's own id of each row, None where all are without."""
    odd: frozenset[int]
    """Which of the rows, from 0, are to be looked at one by one instead."""

    def cut(self, start: int, stop: int) -> Plain:
        """Return what the rows from *start* up to *stop* ask for, none of which is odd."""
        names = None if self.names is None else self.names[start:stop]

        return Plain(
            self.frame, self.contents[start:stop], self.sizes[start:stop], names, frozenset()
        )


class Frame(NamedTuple):
    """A request without its prompt."""

    url: str
    model: str
    inputs: int
    before: bytes
    """The members of the line after `custom_id`, up to the prompt."""
    after: bytes
    """The rest of them."""
    text_bytes: int
    """How much of these is text."""
    max_output: int | None

    def request(self, content: bytes, size: int) -> Request:
        """Return the request for *content*, JSON text of which *size* bytes are text."""
        return Request(
            url=self.url,
            model=self.model,
            inputs=self.inputs,
            fields=b"".join((self.before, content, self.after)),
            input_tokens=(size + self.text_bytes) // BYTES_A_TOKEN,
            max_output=self.max_output,
        )

    def lines(self, job: JobId, first: int, contents: Sequence[Value]) -> bytes:
        """Return the lines of the requests for *contents*, which are rows from number *first* on.

        They are those that `Request.line` makes of contents in which nothing is to be escaped.
        """
        start, middle, end = self._pieces(job)
        rows = numbers(range(first, first + len(contents)))

        return interleaved(start, rows, middle, contents, end)

    def line_bytes(self, job: JobId, row: int) -> int:
        """Return how long the line of a row is, without its content."""
        return sum(map(len, self._pieces(job))) + len(str(row))

    def tokens(self, sizes: Sequence[int]) -> list[int]:
        """Return the estimate for each request with a content of so many bytes."""
        return [(size + self.text_bytes) // BYTES_A_TOKEN for size in sizes]

    def _pieces(self, job: JobId) -> tuple[bytes, bytes, bytes]:
        """Return what is before the number of a row, between it and the content, and at the end."""
        start = b'{"custom_id":"%s' % wire_id(job, 0).removesuffix("0").encode()

        return start, b'",' + escaped(self.before), escaped(self.after) + b"}\n"


def odd_prompts(contents: Sequence[Value], *, is_ascii: bool) -> frozenset[int]:
    """Return which of *contents* are not strings with text in them, or have what is escaped.

    *is_ascii* says that they are known to be ASCII: no such string has anything to be escaped.
    """
    try:
        starts = list(map(_START.unpack_from, contents))
    except struct.error:  # a digit is shorter
        starts = [(bytes(content[:2]),) for content in map(bytes, contents)]

    odd: set[int] = set()

    if not _PLAIN_STARTS.issuperset(starts):
        odd.update(
            place
            for place, start in enumerate(starts)
            if start not in _PLAIN_STARTS and _is_blank(bytes(contents[place]))
        )

    if not is_ascii and has_line_end(b"".join(contents)):
        odd.update(place for place, raw in enumerate(contents) if has_line_end(bytes(raw)))

    return frozenset(odd)


def _is_blank(content: bytes) -> bool:
    return not content.startswith(b'"') or not text_of(content).strip()


def numbers(counted: Sequence[int]) -> list[bytes]:
    """Return the digits of at least one number; in a third of the time of one by one."""
    return msgspec.json.encode(list(counted))[1:-1].split(b",")


def interleaved(
    start: bytes, firsts: Sequence[bytes], middle: bytes, seconds: Sequence[Value], end: bytes
) -> bytes:
    """Return, joined, *start*, one of *firsts*, *middle*, one of *seconds* and *end* for each."""
    count = len(firsts)
    texts: list[Value] = [end + start] * (4 * count)
    texts[0] = start
    texts[1::4] = firsts
    texts[2::4] = [middle] * count
    texts[3::4] = seconds
    texts.append(end)

    return b"".join(texts)
