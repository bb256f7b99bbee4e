"""Index: which rows a dropped file has, in `rows.jsonl`, and what is wrong with them.

A `PlannedRow` a line; row n is line n, from 0. After a crash it is half-written, and counts for
nothing until a manifest does. Lets `OSError` through (environment).
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.frame import interleaved, numbers
from promptspool.intake.ids import repeats
from promptspool.spool import rename_durably, sync_file
from promptspool.wire import PlannedRow, Rejection, RowComplaint, RowFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.intake.ids import Repeat

BLOCK_BYTES = 1 << 17

_encoder = msgspec.json.Encoder()


def write_row(file: BinaryIO, row: PlannedRow) -> None:
    """Append a row to the index."""
    file.write(_encoder.encode(row) + b"\n")


def write_named(file: BinaryIO, names: Sequence[str], lines: Sequence[int]) -> None:
    """Append rows without faults: what they are called, and where they begin."""
    texts = _encoder.encode_lines(names).split(b"\n")[:-1]
    file.write(interleaved(b'{"id":', texts, b',"line":', numbers(lines), b"}\n"))


def write_unnamed(
    file: BinaryIO, stem: str, lines: Sequence[int], counted: Sequence[int] | None
) -> None:
    """Append rows without faults that are called after *stem* and a number.

    *counted* are their numbers, None for those of their lines.
    """
    texts = numbers(lines)
    start = b'{"id":%s-' % _encoder.encode(stem)[:-1]
    ids = texts if counted is None else numbers(counted)
    file.write(interleaved(start, ids, b'","line":', texts, b"}\n"))


def rows_of(path: Path) -> Iterator[PlannedRow]:
    """Yield the rows of an index."""
    decoder = msgspec.json.Decoder(PlannedRow)

    with path.open("rb", buffering=BLOCK_BYTES) as file:
        for line in file:
            yield decoder.decode(line)


def complaints(folder: Path) -> Iterator[RowComplaint]:
    """Yield every faulty row of a plan, finished or not, in the order of the file."""
    path = folder / "rows.jsonl"

    for row in rows_of(path) if path.exists() else ():
        if row.fault is not None:
            yield RowComplaint(
                line=row.line,
                code=row.fault.code,
                message=row.fault.message,
                key=row.fault.key,
                document=row.document,
            )


def duplicates(folder: Path, suspects: frozenset[int], way_out: str = "") -> BadInput | None:
    """Return what is said of rows that share an id, None if none do; marks them in the row index.

    The marks are for the rejection, or are overwritten.
    """
    rows, marked = folder / "rows.jsonl", folder / "rows.marked.part"
    told, count = "", 0

    with marked.open("wb", buffering=BLOCK_BYTES) as file:
        found = repeats(rows_of(rows), suspects)

        for row, repeat in zip(rows_of(rows), found, strict=True):
            fault = row.fault

            if repeat is not None:
                fault = fault or repeated(repeat)
                told = told or f"line {row.line}: {repeated(repeat).message}"
                count += 1

            write_row(file, msgspec.structs.replace(row, fault=fault))

    if not count:
        marked.unlink()

        return None

    others = f" (and {count - 1:,} more such rows)" if count > 1 else ""
    marked.replace(rows)

    return BadInput(f"{told}{others}; give each row its own{way_out}", code="duplicate_id")


def repeated(repeat: Repeat) -> RowFault:
    """Return what is wrong with a row whose id an earlier row has."""
    message = f"the id {_quoted(repeat.id)} is that of line {repeat.first_line}, too"

    return RowFault(code="duplicate_id", message=message)


def _quoted(name: str) -> str:
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}..."  # noqa: PLR2004


def write_rejection(folder: Path, source: str, error: BadInput) -> None:
    """Say why the file is refused, and list all that is wrong with its rows, a line each."""
    path = folder / "rejection.json"
    part = path.with_name("rejection.json.part")
    of_file = RowComplaint(
        line=error.line or 0, code=error.code, message=error.reason, key=error.key
    )
    count = sum(1 for _ in complaints(folder)) + (error.line is not None)
    head = Rejection(file=source, code=error.code, reason=error.reason, fault_count=count)
    text = msgspec.json.format(msgspec.json.encode(head)).decode()

    with part.open("wb", buffering=BLOCK_BYTES) as file:
        file.write(text.removesuffix("[]\n}").encode() + b"[")
        separator = b"\n    "

        for complaint in chain([of_file] if error.line is not None else [], complaints(folder)):
            file.write(separator + msgspec.json.encode(complaint))
            separator = b",\n    "

        file.write(b"\n  ]\n}" if count else b"]\n}")

    sync_file(part)
    rename_durably(part, path)
