"""Answers: which files a batch has, what their lines are, and which rows its requests are.

Read line by line, and no line is held for longer than it is looked at. Raises `Bug` for a request
file that is not ours and lets `OSError` through (environment).
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import Bug
from promptspool.wire import PlannedRow, RequestName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from promptspool.model import Batch, BatchId

REQUESTS = "requests"
OUTPUT = "output"
ERROR = "error"
REFUSED = "refused"

KINDS = (OUTPUT, ERROR, REFUSED)
"""The files of a batch that have answer lines, in the order in which they are read."""

MAX_LINE_BYTES = 1 << 28
"""A longer answer is not believed: 2,048 embeddings of 3,072 numbers are a third of it."""

_BLOCK_BYTES = 1 << 20
_LINES_BYTES = 1 << 17
"""More at once is no faster: what was read is out of the processor's cache before it is parsed."""

_ROWS_BYTES = 1 << 14

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


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    r"""Yield offset and content of each line that is not blank; None for one too long to hold.

    Lines end at `\n` alone, which is cut off. A file that does not exist has no lines.
    """
    try:
        file = path.open("rb", buffering=_LINES_BYTES)
    except FileNotFoundError:
        return

    with file:
        offset = 0

        while raw := file.readline(MAX_LINE_BYTES + 1):
            start, offset = offset, offset + len(raw)

            if len(raw) > MAX_LINE_BYTES:
                while not raw.endswith(b"\n") and (raw := file.readline(_BLOCK_BYTES)):
                    offset += len(raw)

                yield start, None
            elif not raw.isspace():
                yield start, raw.removesuffix(b"\n")


def rows_of(folder: Path, batch: Batch) -> Sequence[int]:
    """Return the rows of a batch's requests, in the order of its request file, which is theirs.

    They ascend. A batch that has all rows from its first to its last, as most have, is known by
    these two; only of others is the whole file read. Raises `Bug` if it is not what was planned.
    """
    ends = _ends(folder, batch)

    if ends is not None and len(ends) == batch.requests:
        return ends

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


def _ends(folder: Path, batch: Batch) -> range | None:
    """Return all rows from a request file's first to its last; None if they are not to be seen.

    That is where the file is not as long as it was, or one of the two lines is very long.
    """
    with path_of(folder, batch.id, REQUESTS).open("rb", buffering=0) as file:
        head = file.read(_BLOCK_BYTES)
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - _BLOCK_BYTES))
        tail = file.read(_BLOCK_BYTES)

    first, last = head.find(b"\n") + 1, tail.rfind(b"\n", 0, -1) + 1
    is_seen = first > 0 and (last > 0 or size_bytes == len(tail)) and tail.endswith(b"\n")

    if size_bytes != batch.size_bytes or not is_seen:
        return None

    return range(_row_of(head[:first]), _row_of(tail[last:]) + 1)


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
    return chain.from_iterable(planned_blocks(folder))


def planned_blocks(folder: Path) -> Iterator[list[PlannedRow]]:
    """Yield every row of the dropped file, in its order, some hundreds at a time."""
    rest = b""

    with (folder / "rows.jsonl").open("rb", buffering=0) as file:
        while block := file.read(_ROWS_BYTES):
            cut = block.rfind(b"\n") + 1

            if cut:
                yield _rows.decode_lines(rest + block[:cut])
                rest = block[cut:]
            else:
                rest += block

    if rest:
        yield _rows.decode_lines(rest)


def count_rows(folder: Path) -> int:
    """Return how many rows the dropped file has."""
    with (folder / "rows.jsonl").open("rb", buffering=0) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


def path_of(folder: Path, batch: BatchId, kind: str) -> Path:
    """Return where a file of a batch is."""
    return folder / f"{batch}.{kind}.jsonl"


def _row_numbers(folder: Path, batch: BatchId) -> Iterator[int]:
    """Yield the row of each request in a request file."""
    with path_of(folder, batch, REQUESTS).open("rb", buffering=_BLOCK_BYTES) as file:
        yield from map(_row_of, file)


def _row_of(request: bytes) -> int:
    return int(_names.decode(request).custom_id.rpartition("-")[2])
