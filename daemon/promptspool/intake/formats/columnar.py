"""Columnar: tables of Arrow in files, `.parquet`, `.arrow` and `.feather`; read and written again.

Read in blocks of a thousand rows, so memory does not grow with the file but where a file of Arrow
is one record batch that is compressed: nothing less than a batch can be unpacked. (One that is not
compressed is mapped: its pages count as resident, and are given back when memory is short.) A
million rows of 300 characters in one row group take 115 MB to read, in less than half of the time
of row by row, and 230 MB to write (measured).

pyarrow is loaded by the functions, never with this module: the daemon itself is to do without.
Raises `BadInput` for whatever pyarrow does not read (bad data), and lets `OSError` through
(environment).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from promptspool.errors import BadInput
from promptspool.intake.formats.columnar_files import (
    arrow_codec,
    arrow_slices,
    is_arrow_file,
    library,
    opened_arrow,
    opened_parquet,
    parquet_codec,
    parquet_slices,
    understood,
)
from promptspool.intake.formats.columnar_values import (
    Odd,
    is_plain,
    json_of_column,
    most_json_bytes,
)
from promptspool.intake.rows import Block, Row, free_names, other_rows
from promptspool.intake.values import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.intake.rows import Added, Cell, ReadOptions, Source

# A row group is compressed on its own and is held until it is written.
_GROUP_BYTES = 32 << 20
_GROUP_ROWS = 1 << 16

_KINDS = {"text": "string", "integer": "int64", "number": "double", "boolean": "bool"}
_INT64 = range(-(2**63), 2**63)


def read_parquet(source: Source, options: ReadOptions) -> Iterator[Row | Block]:
    """Yield the rows of a parquet file; `Row.line` counts them from 1.

    Raises `BadInput` for a file that is none, is encrypted, or has two columns of one name.
    """
    with opened_parquet(source.path()) as file:
        yield from _rows(parquet_slices(file), file.schema_arrow, options)


def read_arrow(source: Source, options: ReadOptions) -> Iterator[Row | Block]:
    """Yield the rows of an Arrow file, an Arrow stream or a Feather file; `Row.line` from 1.

    Raises `BadInput` for a file that is none of them, Feather of version 1, and for two columns of
    one name.
    """
    with opened_arrow(source.path()) as reader:
        yield from _rows(arrow_slices(reader), reader.schema, options)


def write_parquet(
    source: Source,
    _: ReadOptions,
    path: Path,
    added: Sequence[Added],
    cells: Iterator[Sequence[Cell]],
) -> None:
    """Write the table of a parquet file to *path*, *added* columns behind its own.

    Types, metadata and the way of compression stay; row groups are of 65,536 rows or 32 MB. A cell
    that its column cannot have, a number beyond 64 bits for instance, is null.
    """
    parquet = library("pyarrow.parquet")

    with opened_parquet(source.path()) as file, _written(path):
        schema = _schema(file.schema_arrow, added)
        slices = _with_cells(parquet_slices(file), schema, added, cells)

        with parquet.ParquetWriter(path, schema, compression=parquet_codec(file)) as writer:
            for group in _groups(slices):
                writer.write_table(library("pyarrow").Table.from_batches(group))


def write_arrow(
    source: Source,
    _: ReadOptions,
    path: Path,
    added: Sequence[Added],
    cells: Iterator[Sequence[Cell]],
) -> None:
    """Write the table of a file of Arrow to *path*, *added* columns behind its own.

    A stream becomes a stream, a file a file, compressed in the same way. Otherwise as
    `write_parquet`.
    """
    ipc = library("pyarrow.ipc")
    origin = source.path()

    with opened_arrow(origin) as reader, _written(path):
        schema = _schema(reader.schema, added)
        options = ipc.IpcWriteOptions(compression=arrow_codec(origin))
        new = ipc.new_file if is_arrow_file(origin) else ipc.new_stream

        with new(str(path), schema, options=options) as writer:
            for batch in _with_cells(arrow_slices(reader), schema, added, cells):
                writer.write_batch(batch)


class _Columns(Mapping[str, list[bytes]]):
    """The columns of a batch by name, JSON texts or arrays, which are encoded when asked for."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> list[bytes]:
        column = self._columns[name]

        if isinstance(column, list):
            return column

        with understood("file"):
            return json_of_column(column)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _rows(slices: Iterator[Any], schema: Any, options: ReadOptions) -> Iterator[Row | Block]:
    names, most = _names(schema), options.max_row_bytes
    line = 1

    for batch in slices:
        with understood("file"):
            columns = None if options.block_bytes is None else _columns(batch, names, most)

        if columns is None:
            yield from _slice_rows(batch, names, line, most)
        elif batch.num_rows:
            yield Block(range(line, line + batch.num_rows), columns)

        line += batch.num_rows


def _columns(batch: Any, names: Sequence[str], max_bytes: int) -> _Columns | None:
    """Return the columns of *batch*, None unless each row has JSON and is short enough."""
    found: dict[str, Any] = {}
    size = 0

    for name, array in zip(names, batch.columns, strict=True):
        if is_plain(array):
            found[name] = array
            size += most_json_bytes(array)
        else:
            try:
                found[name] = json_of_column(array)
            except Odd:
                return None

            size += sum(map(len, found[name]))

    return _Columns(found) if size <= max_bytes else None


def _slice_rows(batch: Any, names: Sequence[str], line: int, max_bytes: int) -> Iterator[Row]:
    """Yield the rows of *batch*, the first of which is number *line*."""
    try:
        with understood("file"):
            columns = [json_of_column(array) for array in batch.columns]
    except Odd:
        yield from _single_rows(batch, names, line, max_bytes)
        return

    # Almost always all rows together are shorter than one may be.
    is_short = sum(sum(map(len, column)) for column in columns) <= max_bytes

    for number, values in enumerate(zip(*columns, strict=True), start=line):
        if is_short or sum(map(len, values)) <= max_bytes:
            yield Row(number, dict(zip(names, values, strict=True)))
        else:
            reason = f"the row is longer than {max_bytes:,} bytes; shorten it"
            yield Row(number, None, BadInput(reason, code="row_too_long", line=number))


def _single_rows(batch: Any, names: Sequence[str], line: int, max_bytes: int) -> Iterator[Row]:
    """Yield the rows of *batch* one by one, to find those with a value that has no JSON."""
    for place in range(batch.num_rows):
        own, number = batch.slice(place, 1), line + place
        fault = None

        with understood("file"):
            for name, array in zip(names, own.columns, strict=True):
                try:
                    json_of_column(array)
                except Odd as odd:
                    reason = f"{quoted(name)} {odd}; write it as text"
                    fault = BadInput(reason, code="bad_value", line=number, key=name)
                    break

        if fault is None:
            yield from _slice_rows(own, names, number, max_bytes)
        else:
            yield Row(number, None, fault)


def _names(schema: Any) -> list[str]:
    """Return the columns' names; raises `BadInput` unless each has one of its own."""
    with understood("file"):
        names = list(schema.names)

    if not names:
        raise BadInput("the table has no columns", code="bad_header")

    places: dict[str, int] = {}

    for place, name in enumerate(names, start=1):
        if not name.strip():
            reason = f"column {place} has no name; give it one"
            raise BadInput(reason, code="bad_header")

        if name in places:
            reason = (
                f"columns {places[name]} and {place} are both named {quoted(name)}; rename one "
                f"of them"
            )
            raise BadInput(reason, code="bad_header", key=name)

        places[name] = place

    return names


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Leave nothing at *path* unless the block comes to its end."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _schema(schema: Any, added: Sequence[Added]) -> Any:
    """Return *schema* with the *added* columns, and with its metadata."""
    pyarrow = library("pyarrow")

    for name, column in zip(free_names(_names(schema), added), added, strict=True):
        schema = schema.append(pyarrow.field(name, _KINDS[column.kind]))

    return schema


def _with_cells(
    slices: Iterator[Any], schema: Any, added: Sequence[Added], cells: Iterator[Sequence[Cell]]
) -> Iterator[Any]:
    """Yield *slices* with their *cells* behind them; raises `BadInput` unless each has its own."""
    pyarrow = library("pyarrow")

    for batch in slices:
        own = list(islice(cells, batch.num_rows))

        if len(own) < batch.num_rows or any(len(row) != len(added) for row in own):
            raise other_rows()

        arrays = [
            pyarrow.array([_held(row[place], column) for row in own], _KINDS[column.kind])
            for place, column in enumerate(added)
        ]
        yield pyarrow.RecordBatch.from_arrays([*batch.columns, *arrays], schema=schema)

    if next(cells, None) is not None:
        raise other_rows()


def _held(cell: Cell, column: Added) -> Cell:
    """Return *cell* if its column can hold it, else None; anything can be text."""
    match column.kind, cell:
        case _, None:
            return None
        case "text", _:
            return cell if isinstance(cell, str) else str(cell)
        case "boolean", bool():
            return cell
        case _, bool():
            return None
        case "integer", int() if cell in _INT64:
            return cell
        case "number", int() | float():
            return _float(cell)
        case "integer", float() if cell.is_integer() and abs(cell) < _INT64.stop:
            return int(cell)
        case _:
            return None


def _float(number: float) -> float | None:
    try:
        found = float(number)
    except OverflowError:
        return None

    return found if math.isfinite(found) else None


def _groups(batches: Iterator[Any]) -> Iterator[list[Any]]:
    """Yield batches together, as many as make a row group."""
    group: list[Any] = []
    rows = size_bytes = 0

    for batch in batches:
        group.append(batch)
        rows += batch.num_rows
        size_bytes += batch.nbytes

        if rows >= _GROUP_ROWS or size_bytes >= _GROUP_BYTES:
            yield group
            group = []
            rows = size_bytes = 0

    if group:
        yield group
