"""Frame: what the requests of all plain rows share, and many of them made at once.

A plain row is one whose request has nothing of its own but its prompt. The lines of many are joined
from constant pieces, the numbers of the rows and the prompts as they are, which is ten times as
fast as one by one. Pure; raises nothing.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from itertools import compress, count
from operator import not_
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.intake.request import Request, escaped, has_line_end
from promptspool.intake.values import text_of
from promptspool.wire import wire_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from promptspool.intake.rows import Value
    from promptspool.model import JobId


_START = struct.Struct("2B")

# The quote, and the first byte of a character that is neither a quote nor a blank nor escaped.
# Blanks of Unicode begin with 0xC2, 0xE1, 0xE2 or 0xE3.
_PLAIN_STARTS = frozenset(
    (ord('"'), byte)
    for byte in (*range(0x21, 0x7F), *range(0xC3, 0xE1), *range(0xE4, 0xF5))
    if byte not in b'"\\'
)

# The same of what is escaped: programs write all but ASCII so.
_is_plain_escape = re.compile(
    rb'"\\(?:["/\\]|u(?:0[1-9a-f]|00[c-f]|[4-9a-f]))', re.IGNORECASE
).match

_MOST_APART = 4
"""Of numbers that are taken out of a run of them: others are made faster than left out."""

_THOUSAND = 1_000
_LAST_DIGITS = [b"%03d" % number for number in range(_THOUSAND)]


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
            text_bytes=size + self.text_bytes,
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

    def _pieces(self, job: JobId) -> tuple[bytes, bytes, bytes]:
        """Return what is before the number of a row, between it and the content, and at the end."""
        start = b'{"custom_id":"%s' % wire_id(job, 0).removesuffix("0").encode()

        return start, b'",' + escaped(self.before), escaped(self.after) + b"}\n"


def odd_prompts(contents: Sequence[Value], *, is_ascii: bool) -> frozenset[int]:
    """Return which of *contents* are not strings with text in them, or have what is escaped.

    *is_ascii* says that they are known to be ASCII: no such string has anything to be escaped.
    """
    try:
        places = _unknown(map(_START.unpack_from, contents))
    except struct.error:  # a digit is shorter
        places = _unknown(tuple(bytes(content)[:2]) for content in contents)

    odd = {
        place
        for place in places
        if not _is_plain_escape(contents[place]) and _is_blank(bytes(contents[place]))
    }

    if not is_ascii and has_line_end(b"".join(contents)):
        odd.update(place for place, raw in enumerate(contents) if has_line_end(bytes(raw)))

    return frozenset(odd)


def _unknown(starts: Iterable[tuple[int, ...]]) -> list[int]:
    """Return the places of the starts after which it is not known that text comes."""
    return list(compress(count(), map(not_, map(_PLAIN_STARTS.__contains__, starts))))


def _is_blank(content: bytes) -> bool:
    return not content.startswith(b'"') or not text_of(content).strip()


def numbers(counted: Sequence[int]) -> list[bytes]:
    """Return the digits of at least one number, none negative; much faster than one by one."""
    if isinstance(counted, range) and counted.step == 1:
        return _run(counted.start, counted.stop)

    first, last = min(counted), max(counted)

    if last - first > _MOST_APART * len(counted):
        return msgspec.json.encode(list(counted))[1:-1].split(b",")

    run = _run(first, last + 1)

    return [run[number - first] for number in counted]


def _run(start: int, stop: int) -> list[bytes]:
    """Return the digits of the numbers from *start* up to *stop*."""
    found: list[bytes] = []

    while start < stop:
        thousands, first = divmod(start, _THOUSAND)
        last = min(first + stop - start, _THOUSAND)
        found += _thousand(thousands)[first:last]
        start += last - first

    return found


@lru_cache(maxsize=4)  # rows are counted twice, and their lines are not far away
def _thousand(thousands: int) -> list[bytes]:
    """Return the digits of the thousand numbers that begin with *thousands*."""
    if not thousands:
        return [b"%d" % number for number in range(_THOUSAND)]

    return list(map((b"%d" % thousands).__add__, _LAST_DIGITS))


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
