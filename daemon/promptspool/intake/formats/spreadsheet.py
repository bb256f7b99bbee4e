"""Spreadsheet: one sheet of an `.xlsx` workbook as rows, and the same sheet with columns added.

The first row that is not empty names the columns; what is empty before it, or between rows, is
skipped. Text stays text, whole numbers are written without a fraction, moments in ISO 8601, and an
empty cell is null. A cell that shows an error, or has a formula that was never computed, is a fault
of its row: nobody wants to pay for an answer to `#N/A`. Of merged cells the first has the value.
Memory does not grow with the sheet. Raises `BadInput` (bad data), and lets `OSError` through
(environment).
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from promptspool.errors import BadInput
from promptspool.intake.formats.xlsx_book import Book
from promptspool.intake.formats.xlsx_cells import Odd, column_name, json_of
from promptspool.intake.formats.xlsx_target import Target, check_room
from promptspool.intake.rows import Row, free_names, other_rows
from promptspool.intake.values import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from promptspool.intake.formats.xlsx_book import Sheet
    from promptspool.intake.formats.xlsx_cells import Value
    from promptspool.intake.formats.xlsx_sheet import SheetRow
    from promptspool.intake.rows import Added, Cell, ReadOptions, Source

CUT_NOTE = "… [cut: a cell of Excel holds 32,767 characters; the whole is in the results.jsonl]"
"""How an answer ends that is longer than a cell may be."""

_MAX_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A sheet whose header was read."""

    name: str
    is_1904: bool
    header_line: int
    names: Mapping[int, str]
    """By column, in order."""
    rows: Iterator[SheetRow]
    """The ones after the header."""


def read_xlsx(source: Source, options: ReadOptions) -> Iterator[Row]:
    """Yield the rows of the first sheet that is not hidden, or of `options.sheet`.

    `Row.line` is the row's number in the sheet. Raises `BadInput` for a file that is no workbook,
    a sheet that is not there, and a header that does not name each column once.
    """
    with _opened(source, options) as table:
        for row in table.rows:
            yield _row(row, table, options)


def write_xlsx(
    source: Source,
    options: ReadOptions,
    path: Path,
    added: Sequence[Added],
    cells: Iterator[Sequence[Cell]],
) -> None:
    """Write the sheet that `read_xlsx` reads to *path*, *added* columns behind its own.

    Each row stands where it stood. Values are kept, styles are not, and formulas are their values.
    Text is never a formula or a link. Control characters are written as `_x0007_`, as spreadsheets
    do themselves, those that cannot be as U+FFFD; whole numbers of more digits than a spreadsheet
    keeps as text. An answer that is too long for a cell ends with `CUT_NOTE`, a text of the table
    with a note of its own.

    Raises `BadInput` as the reader does, where there is no room for more columns, and
    unless there is one sequence of cells for each row.
    """
    with _opened(source, options) as table:
        check_room(table.names, len(added))
        first = max(table.names) + 1
        header = dict(table.names)
        header.update(enumerate(free_names(list(header.values()), added), start=first))

        with Target(path, sheet=table.name, is_1904=table.is_1904) as target:
            target.add(table.header_line, header)

            for row in table.rows:
                answers = next(cells, None)

                if answers is None or len(answers) != len(added):
                    raise other_rows()

                values = {column: value for column, value in row.cells if column in table.names}
                target.add(row.number, values)
                target.add(row.number, dict(enumerate(answers, start=first)), cut_note=CUT_NOTE)

            if next(cells, None) is not None:
                raise other_rows()


@contextmanager
def _opened(source: Source, options: ReadOptions) -> Iterator[_Table]:
    path = source.path()

    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise BadInput("the file is empty", code="empty_file")

        book = Book(file, folder=_scratch_folder(path), max_characters=options.max_row_bytes)
        sheet = _chosen(book.sheets, options.sheet)
        _note(source, book.sheets, sheet)
        rows = book.rows(sheet)
        header = next(rows, None)

        if header is None:
            reason = f"the sheet {quoted(sheet.name)} is empty; write a header and rows below it"
            raise BadInput(reason, code="empty_file")

        yield _Table(
            name=sheet.name,
            is_1904=book.is_1904,
            header_line=header.number,
            names=_names(header),
            rows=rows,
        )


def _scratch_folder(path: Path) -> Path:
    """Return where texts can be kept: beside the file, which has room for it, or elsewhere."""
    folder = path.parent

    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


def _chosen(sheets: Sequence[Sheet], name: str | None) -> Sheet:
    if not sheets:
        reason = "the workbook has no sheet with cells; write the prompts in one"
        raise BadInput(reason, code="no_sheet")

    if name is None:
        return next((sheet for sheet in sheets if not sheet.is_hidden), sheets[0])

    # As spreadsheets do: no two sheets differ by case alone.
    for sheet in sheets:
        if sheet.name.casefold() == name.casefold():
            return sheet

    known = [quoted(sheet.name) for sheet in sheets[:_MAX_LISTED]]
    more = [f"{len(sheets) - _MAX_LISTED} more"] if len(sheets) > _MAX_LISTED else []
    reason = f"there is no sheet {quoted(name)}; there are {', '.join(known + more)}"
    raise BadInput(reason, code="no_sheet", key="sheet")


def _note(source: Source, sheets: Sequence[Sheet], chosen: Sheet) -> None:
    """Say which sheet is read, and which are not."""
    source.notes["sheet"] = chosen.name
    others = [quoted(sheet.name) for sheet in sheets if sheet is not chosen]

    if others:
        more = [f"{len(others) - _MAX_LISTED} more"] if len(others) > _MAX_LISTED else []
        source.notes["other_sheets"] = ", ".join(others[:_MAX_LISTED] + more)


def _names(header: SheetRow) -> dict[int, str]:
    """Return the columns' names, without blanks around them; raises `BadInput` for unclear ones."""
    line = header.number

    if header.is_too_long:
        reason = "the header is too long; write the names of the columns in the first row"
        raise BadInput(reason, code="bad_header", line=line)

    names: dict[int, str] = {}
    columns: dict[str, int] = {}

    for column, value in sorted(header.cells, key=lambda cell: cell[0]):
        name = _name(column, value, line)

        if not name:
            continue

        if name in columns and columns[name] != column:
            reason = (
                f"columns {column_name(columns[name])} and {column_name(column)} are both named "
                f"{quoted(name)}; rename one of them"
            )
            raise BadInput(reason, code="bad_header", line=line, key=name)

        names[column] = name
        columns[name] = column

    _check_gaps(names, line)

    return names


def _name(column: int, value: Value, line: int) -> str:
    if isinstance(value, Odd):
        reason = f"cell {column_name(column)}{line}, in the header, {value.what}"
        raise BadInput(reason, code="bad_header", line=line)

    if isinstance(value, str):
        return value.strip()

    return json_of(value).decode().strip('"')


def _check_gaps(names: Mapping[int, str], line: int) -> None:
    if not names:
        reason = f"row {line} should name the columns, but is blank; write a name in each column"
        raise BadInput(reason, code="bad_header", line=line)

    gaps = [column for column in range(min(names), max(names)) if column not in names]

    if gaps:
        letters = [column_name(column) for column in gaps[:_MAX_LISTED]]
        more = [f"{len(gaps) - _MAX_LISTED} more"] if len(gaps) > _MAX_LISTED else []
        what = "columns" if len(gaps) > 1 else "column"
        reason = (
            f"no name for {what} {', '.join(letters + more)} in row {line}, the header; name each "
            f"column, or delete it"
        )
        raise BadInput(reason, code="bad_header", line=line)


def _row(row: SheetRow, table: _Table, options: ReadOptions) -> Row:
    line = row.number
    found: dict[int, bytes] = {}
    is_too_long = row.is_too_long

    for column, value in row.cells:
        if isinstance(value, Odd) or column not in table.names:
            return Row(line, None, _fault(column, value, row, table))

        found[column] = json_of(value)

    if is_too_long or sum(map(len, found.values())) > options.max_row_bytes:
        reason = f"the row is longer than {options.max_row_bytes:,} bytes; shorten it"
        return Row(line, None, BadInput(reason, code="row_too_long", line=line))

    return Row(line, {name: found.get(column, b"null") for column, name in table.names.items()})


def _fault(column: int, value: Value, row: SheetRow, table: _Table) -> BadInput:
    cell, name = f"{column_name(column)}{row.number}", table.names.get(column)

    if name is None:
        reason = (
            f"cell {cell} has a value, but row {table.header_line}, the header, has no name for "
            f"its column; write one, or clear the cell"
        )
        return BadInput(reason, code="unnamed_column", line=row.number)

    assert isinstance(value, Odd)  # noqa: S101 (what else is a fault)

    return BadInput(f"cell {cell} {value.what}", code="bad_cell", line=row.number, key=name)
