"""Standing: what a provider's files say of each request of a batch, and where they say it.

What a provider sends is not trusted: broken lines, foreign names and second answers are counted and
left out. Held are some bytes for each request, never a line. A plain answer, as nearly all are, is
read at once for all that is asked of it (name, status, usage); every other line is read piece by
piece, as leniently as it takes. The first way takes nothing that the second would judge otherwise.
Lets `OSError` through (environment).
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from promptspool.collect.answers import KINDS, lines, path_of
from promptspool.collect.usage import MAX_COUNT, NONE, usage_of
from promptspool.collect.verdict import Verdict, parsed
from promptspool.wire import Usage, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from promptspool.collect.answers import Noise
    from promptspool.collect.judge import Judge
    from promptspool.model import Batch

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _Said(msgspec.Struct, gc=False):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct, gc=False):
    usage: _Said | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: Literal[200]
    body: _Body


class _PlainAnswer(msgspec.Struct, gc=False):
    """A line that is an answer, whatever else it says, and says oddly nothing that counts."""

    custom_id: str
    response: _Response


_plain_answers = msgspec.json.Decoder(_PlainAnswer)


class Standing:
    """The last word on each request of a batch, by its place in the request file.

    A request's first success is its last word, or else the last of its errors. What a success is,
    the judge says.
    """

    def __init__(
        self, folder: Path, batch: Batch, rows: Sequence[int], *, noise: Noise, judge: Judge
    ) -> None:
        """Begin without a word on any of *rows*; what is no answer goes into *noise*."""
        count = len(rows)
        self.batch = batch
        self.rows = rows
        self.noise = noise
        self.verdicts = bytearray(count)
        self.kinds = bytearray(count)
        """Which of `KINDS` the line is in, and then where; nothing where none is."""
        self.offsets = array("Q", bytes(8 * count))
        self.lengths = array("I", bytes(4 * count))
        self.failures: dict[int, str] = {}
        """The codes of requests that may be asked again."""
        self.tokens = NONE
        """Of all lines that count: of a request's errors too, not of a second success."""
        self._folder = folder
        self._judge = judge

    def read(self, kind: str) -> None:
        """Take in one of the batch's files, if it is there."""
        number, job = KINDS.index(kind), self.batch.job
        decode, place_of = _plain_answers.decode, _finder(self.rows)
        is_strict = self._judge.is_strict
        verdicts, kinds, offsets, lengths = self.verdicts, self.kinds, self.offsets, self.lengths
        begin, answered = len(job) + 1, int(Verdict.OK)  # a member costs more to look up
        tokens = [0, 0, 0, 0]

        for offset, line in lines(path_of(self._folder, self.batch.id, kind)):
            if line is None or is_strict:
                self.weigh(number, offset, line)
                continue

            try:
                if not line.isascii():
                    line.decode()

                answer = decode(line)
                row = int(answer.custom_id[begin:])
                place = place_of(row)
            except (msgspec.DecodeError, ValueError, RecursionError):
                self.weigh(number, offset, line)
                continue

            # The name again as `wire_id` writes it: what is read as a number has many spellings.
            if verdicts[place] or answer.custom_id != f"{job}-{row}":
                self.weigh(number, offset, line)
                continue

            verdicts[place] = answered
            kinds[place] = number
            offsets[place] = offset
            lengths[place] = len(line)
            _add(tokens, answer.response.body.usage)

        self.tokens += Usage(
            input=tokens[0], cached_input=tokens[1], output=tokens[2], reasoning=tokens[3]
        )

    def weigh(self, number: int, offset: int, line: bytes | None) -> None:
        """Take in a line of any sort, of the file `KINDS[number]`; None for one too long to hold.

        It may count or not, and be an answer or an error.
        """
        answer = None if line is None else parsed(line)
        found = Verdict.MISSING if answer is None else self._judge.verdict(answer)

        if line is None or answer is None or found is Verdict.MISSING:
            self.noise.malformed += 1

            if line is not None and self.noise.keep is not None:
                self.noise.keep(line)

            return

        place = self._place(answer.custom_id)

        if place is None:
            self.noise.foreign += 1
            return

        self.noise.duplicate += self.verdicts[place] > 0

        if self.verdicts[place] == Verdict.OK:
            return

        self.verdicts[place] = found
        self.kinds[place] = number
        self.offsets[place] = offset
        self.lengths[place] = len(line)
        self.tokens += usage_of(answer)

        if found is Verdict.RETRY:
            self.failures[place] = sys.intern(self._judge.code(answer))
        else:
            self.failures.pop(place, None)

    def _place(self, custom_id: str) -> int | None:
        """Return which of the rows a name stands for; None for a name that is none of them."""
        row = row_of(self.batch.job, custom_id)

        try:
            return None if row is None else _finder(self.rows)(row)
        except ValueError:
            return None


def _finder(rows: Sequence[int]) -> Callable[[int], int]:
    """Return what tells the place of a row, and raises `ValueError` for one that is not there."""
    return rows.index if isinstance(rows, range) else partial(_searched, rows)


def _searched(rows: Sequence[int], row: int) -> int:
    place = bisect_left(rows, row)

    if place == len(rows) or rows[place] != row:
        raise ValueError(row)

    return place


def _add(tokens: list[int], usage: _Said | None) -> None:
    """Add what an answer took, as `usage_of` has it, to input, cached, output and reasoning."""
    if usage is None:
        return

    given = usage.prompt_tokens_details or usage.input_tokens_details
    made = usage.completion_tokens_details or usage.output_tokens_details
    tokens[0] += usage.prompt_tokens or usage.input_tokens or 0
    tokens[2] += usage.completion_tokens or usage.output_tokens or 0

    if given is not None:
        tokens[1] += given.cached_tokens or 0

    if made is not None:
        tokens[3] += made.reasoning_tokens or 0
