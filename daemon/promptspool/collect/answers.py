"""Answers: which lines of a provider's files are about which requests of a batch.

Reads line by line and keeps a few bytes for each request, never a line. What a provider sends is
not trusted: broken lines, foreign names and second answers are counted and left out. Raises `Bug`
for a request file that is not ours and lets `OSError` through (environment).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.collect.verdict import Verdict, parsed
from promptspool.errors import Bug
from promptspool.wire import AnswerLine, PlannedRow, RequestName, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from promptspool.collect.judge import Judge
    from promptspool.model import Batch, BatchId, JobId

OUTPUT = "output"
ERROR = "error"
REFUSED = "refused"

MAX_LINE_BYTES = 1 << 28
"""A longer answer is not believed: 2,048 embeddings of 3,072 numbers are a third of it."""

_BLOCK_BYTES = 1 << 20

_names = msgspec.json.Decoder(RequestName)
_rows = msgspec.json.Decoder(PlannedRow)


@dataclass(slots=True)
class Noise:
    """Lines that are no answers to any request, by what is wrong with them."""

    malformed: int = 0
    foreign: int = 0
    duplicate: int = 0
    keep: Callable[[bytes], None] | None = None
    """Told each malformed line that is not too long to hold."""


class Answer(NamedTuple):
    """One line that counts, and where it is."""

    place: int
    """Of its request in the request file, from 0."""
    verdict: Verdict
    kind: str
    """OUTPUT, ERROR or REFUSED: the file it is in."""
    offset: int
    length: int
    line: AnswerLine


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    r"""Yield offset and content of each line that is not blank; None for one too long to hold.

    Lines end at `\n` alone, which is cut off. A file that does not exist has no lines.
    """
    try:
        file = path.open("rb", buffering=_BLOCK_BYTES)
    except FileNotFoundError:
        return

    with file:
        offset = 0

        while raw := file.readline(MAX_LINE_BYTES + 1):
            start, offset = offset, offset + len(raw)
            is_whole = len(raw) <= MAX_LINE_BYTES

            while not is_whole and not raw.endswith(b"\n"):
                raw = file.readline(_BLOCK_BYTES)
                offset += len(raw)

                if not raw:
                    break

            if not is_whole:
                yield start, None
            elif raw.strip():
                yield start, raw.removesuffix(b"\n")


def rows_of(folder: Path, batch: Batch) -> array[int]:
    """Return the rows of a batch's requests, in the order of its request file, which is theirs.

    Raises `Bug` if the file is not what was planned.
    """
    rows = array("q")

    for row in _row_numbers(folder, batch.id):
        if rows and row <= rows[-1]:
            message = f"{batch.id}: row {row} is out of order in its request file"
            raise Bug(message)

        rows.append(row)

    if len(rows) != batch.requests:
        message = f"{batch.id}: {len(rows)} requests in its file, {batch.requests} expected"
        raise Bug(message)

    return rows


def answers(  # noqa: PLR0913 (what is read, and how)
    folder: Path,
    batch: Batch,
    rows: Sequence[int],
    *,
    kinds: Sequence[str],
    noise: Noise,
    judge: Judge,
) -> Iterator[Answer]:
    """Yield the lines of a batch's files that count, file by file in the order of *kinds*.

    A request's first success is its last line; of its errors, each is yielded, and the last one
    counts. What a success is, *judge* says. All else goes into *noise*.
    """
    seen = bytearray(len(rows))

    for kind in kinds:
        for offset, line in lines(_path(folder, batch.id, kind)):
            answer = None if line is None else parsed(line)
            found = Verdict.MISSING if answer is None else judge.verdict(answer)

            if line is None or answer is None or found is Verdict.MISSING:
                noise.malformed += 1

                if line is not None and noise.keep is not None:
                    noise.keep(line)

                continue

            place = _place(rows, batch.job, answer.custom_id)

            if place is None:
                noise.foreign += 1
                continue

            noise.duplicate += seen[place] > 0

            if seen[place] != Verdict.OK:
                seen[place] = found
                yield Answer(place, found, kind, offset, len(line), answer)


def user_lines(*, folder: Path, batch: BatchId, lines: Sequence[int]) -> dict[int, int]:
    """Map lines of a request file, from 1, to lines of the dropped file.

    Lines that the request file does not have are left out.
    """
    wanted = set(lines)
    rows = {
        row: line for line, row in enumerate(_row_numbers(folder, batch), start=1) if line in wanted
    }

    if not rows:
        return {}

    last = max(rows)
    found: dict[int, int] = {}

    for number, planned in enumerate(planned_rows(folder)):
        if number in rows:
            found[rows[number]] = planned.line

        if number == last:
            break

    return found


def planned_rows(folder: Path) -> Iterator[PlannedRow]:
    """Yield every row of the dropped file, in its order."""
    with (folder / "rows.jsonl").open("rb", buffering=_BLOCK_BYTES) as file:
        for line in file:
            yield _rows.decode(line)


def _row_numbers(folder: Path, batch: BatchId) -> Iterator[int]:
    """Yield the row of each request in a request file."""
    with _path(folder, batch, "requests").open("rb", buffering=_BLOCK_BYTES) as file:
        for line in file:
            yield int(_names.decode(line).custom_id.rpartition("-")[2])


def _place(rows: Sequence[int], job: JobId, custom_id: str) -> int | None:
    """Return which of *rows* a name stands for; None for a name that is none of them."""
    row = row_of(job, custom_id)

    if row is None:
        return None

    place = bisect_left(rows, row)

    return place if place < len(rows) and rows[place] == row else None


def _path(folder: Path, batch: BatchId, kind: str) -> Path:
    return folder / f"{batch}.{kind}.jsonl"
