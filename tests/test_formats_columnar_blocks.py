"""Blocks of columnar rows: a faster way to the same rows."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from promptspool.errors import BadInput
from promptspool.intake.formats.columnar import read_arrow, read_parquet
from promptspool.intake.rows import Block, ReadOptions, spread

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from promptspool.intake.rows import Reader

OPTIONS = ReadOptions(max_row_bytes=1_000_000)

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INTEGERS = st.integers(-128, 127)

KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), WORDS),
    (pa.large_string(), WORDS),
    (pa.string_view(), WORDS),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", 'b"'])),
    (pa.binary(), st.binary(max_size=5)),
    (pa.int8(), INTEGERS),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.float64(), st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.decimal128(9, 2), st.decimals(-9, 9, places=2).map(Decimal)),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("us"), st.integers(-(2**62), 2**62)),
    (pa.date32(), st.dates()),
    (pa.time32("s"), st.times().map(lambda time: time.replace(microsecond=0))),
    (pa.duration("ms"), st.integers(-9, 9).map(dt.timedelta)),
    (pa.list_(pa.string()), st.lists(WORDS, max_size=3)),
    (pa.struct({"a": pa.int8()}), st.fixed_dictionaries({"a": INTEGERS})),
]


@dataclass
class Dropped:
    """A file as it was dropped."""

    name: str
    file: Path
    notes: dict[str, str] = field(default_factory=dict)

    def open(self) -> IO[bytes]:
        """Open it at its beginning."""
        return self.file.open("rb")

    def path(self) -> Path:
        """Return where it is."""
        return self.file


@st.composite
def columns(draw: st.DrawFn) -> pa.Table:
    """Return a table of a few columns and rows, with values missing, and some that are no UTF-8."""
    count = draw(st.integers(1, 12))
    found = {}

    for number, (kind, values) in enumerate(
        draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    ):
        cells = draw(st.lists(st.none() | values, min_size=count, max_size=count))
        found[f"c{number}"] = pa.array(cells, kind)

    if draw(st.booleans()):
        found["bytes"] = not_utf8([draw(st.sampled_from([b"a", b"\xff"])) for _ in range(count)])

    return pa.table(found)


def not_utf8(values: list[bytes]) -> pa.Array:
    """Return texts that are bytes of any kind, as a careless writer leaves them."""
    array = pa.array(values, pa.binary())

    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def stored(table: pa.Table, folder: Path, rows: int) -> list[tuple[Reader, Dropped]]:
    """Write a table as parquet and as Arrow, so many rows at a time."""
    parquet.write_table(table, folder / "t.parquet", row_group_size=rows)

    with ipc.new_file(str(folder / "t.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)

    return [
        (read_parquet, Dropped("t.parquet", folder / "t.parquet")),
        (read_arrow, Dropped("t.arrow", folder / "t.arrow")),
    ]


def told(reader: Reader, source: Dropped, options: ReadOptions) -> list[object]:
    """Return all that a reader says of a file."""
    said: list[object] = []

    try:
        for row in spread(reader(source, options)):
            fault = None if row.fault is None else (row.fault.code, row.fault.key, str(row.fault))
            cells = None if row.columns is None else list(row.columns.items())
            said.append((row.line, cells, fault, row.name, row.number))
    except BadInput as error:
        said.append((error.code, str(error)))

    return said


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    table=columns(), rows=st.integers(1, 12), max_row_bytes=st.sampled_from([20, 1_000, 1_000_000])
)
def test_any_table_is_the_same_in_blocks(
    tmp_path: Path, table: pa.Table, rows: int, max_row_bytes: int
) -> None:
    """Whatever is in a table, and wherever it is cut, blocks have the rows of the slow way."""
    options = ReadOptions(max_row_bytes=max_row_bytes)

    for reader, source in stored(table, tmp_path, rows):
        slowly = told(reader, source, replace(options, block_bytes=None))

        assert told(reader, source, options) == slowly
        assert len(slowly) >= 1


def test_plain_columns_are_blocks(tmp_path: Path) -> None:
    """Rows that are short and have JSON come in blocks, counted on from one to the next."""
    table = pa.table({"prompt": ["a", None, "ü"], "n": [1, 2, 3], "day": [dt.date(2026, 1, 2)] * 3})

    for reader, source in stored(table, tmp_path, 2):
        first, second = reader(source, OPTIONS)

        assert isinstance(first, Block)
        assert isinstance(second, Block)
        assert list(first.columns) == ["prompt", "n", "day"]
        assert list(first.columns["prompt"]) == [b'"a"', b"null"]
        assert list(second.columns["day"]) == [b'"2026-01-02"']
        assert [*first.lines, *second.lines] == [1, 2, 3]


def test_a_column_is_there_after_the_file_is_closed(tmp_path: Path) -> None:
    """What is made of a column when it is asked for needs no file any more."""
    table = pa.table({"prompt": ["some text"] * 9})

    for reader, source in stored(table, tmp_path, 9):
        [block] = reader(source, OPTIONS)
        source.file.unlink()

        assert isinstance(block, Block)
        assert list(block.columns["prompt"]) == [b'"some text"'] * 9
