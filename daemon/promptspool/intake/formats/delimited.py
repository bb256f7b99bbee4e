"""Delimited: tables as text, `.csv` and `.tsv`; read in blocks, written with columns added.

The grammar is that of the `csv` module, strict: where quotes do not match, everything after them
may be read wrongly, so the whole file is refused there. Blocks in which all is plain are read at
once, others row by row by the module itself. Memory does not grow with the file, only with its
longest row. Raises `BadInput` (bad data).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats.delimited_blocks import Columns, plain_records
from promptspool.intake.formats.delimited_lines import opened_text
from promptspool.intake.formats.delimited_text import (
    Layout,
    Record,
    body,
    layout_of,
    line_end,
    quoted,
    records_of,
)
from promptspool.intake.formats.encodings import writing_of
from promptspool.intake.rows import Block, Row, free_names, other_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from promptspool.intake.formats.delimited_lines import Text
    from promptspool.intake.rows import Added, Cell, ReadOptions, Source

_SHOWN = 40
_WRITE_BYTES = 1 << 20

# What spreadsheets run: also after blanks, and in the wide forms of East Asian keyboards.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[^\S\t\r]*[\t\r]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class _Header:
    """The first record: the names of the columns."""

    record: Record
    places: dict[str, int]
    """Where each column is, by its name."""

    @property
    def width(self) -> int:
        """How many fields it has, with those at its end that name nothing."""
        return len(self.record[1])


class _Cells(Mapping[str, bytes]):
    """The columns of a row. Most are never asked for, so each is encoded when it is."""

    __slots__ = ("_fields", "_places")

    def __init__(self, places: dict[str, int], fields: list[str]) -> None:
        self._places = places
        self._fields = fields

    def __getitem__(self, name: str) -> bytes:
        return _encoder.encode(self._fields[self._places[name]])

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_delimited(source: Source, options: ReadOptions) -> Iterator[Row | Block]:
    """Yield the rows of a table with a header; every value is text.

    Names are stripped of blanks; blank lines are skipped, also before the header. Columns without a
    name at the end, as spreadsheets leave them, are dropped as long as nothing is in them. A fault
    of one row: another number of fields than the header has, or a zero byte. Delimiter and encoding
    that are not the usual are told in `source.notes`.
    Raises `BadInput` for the whole file: an encoding that is not certain or does not hold, names
    that are missing or there twice, quotes that do not match, a row over `max_row_bytes`.
    """
    layout, most = layout_of(source, options), options.max_row_bytes

    with opened_text(source, layout.encoding, options) as text:
        records = records_of(text, layout, most)
        header = _header(records)

        if header is None:
            return

        while lines := text.take():
            block = _block(lines, text, header, layout, options)

            if block is not None:
                yield block
                continue

            text.read_lines_of(lines)

            for record in records:
                yield _row(record, header, layout)

                if text.is_at_block_end():
                    break


def _block(
    lines: bytes, text: Text, header: _Header, layout: Layout, options: ReadOptions
) -> Block | None:
    """Return the plain rows that *lines* begins with and give the rest of it back to *text*.

    None if something about them is odd; nothing is given back then.
    """
    if options.block_bytes is None or len(lines) > options.max_row_bytes:
        return None

    # With blanks around quotes, it is not the next byte that tells what a quote means.
    if layout.is_spaced or not layout.delimiter.isascii():
        return None

    found = plain_records(lines, header.width, layout.delimiter.encode(), line=text.line)

    if found is None:
        return None

    named, unnamed = found.columns[: len(header.places)], found.columns[len(header.places) :]

    if any(column.strip(b"\n") for column in unnamed):
        return None

    text.give_back(lines[found.size_bytes :])
    text.line = found.next_line

    return Block(found.lines, Columns(header.places, named), is_ascii=lines.isascii())


def _row(record: Record, header: _Header, layout: Layout) -> Row:
    line, fields, text = record

    # Almost always: what is wrong takes longer to find out.
    is_plain = len(fields) == header.width == len(header.places) and "\0" not in text
    fault = None if is_plain else _row_fault(record, header, layout)

    return Row(line, _Cells(header.places, fields) if fault is None else None, fault)


def write_delimited(
    source: Source,
    options: ReadOptions,
    path: Path,
    added: Sequence[Added],
    cells: Iterator[Sequence[Cell]],
) -> None:
    """Write the table of *source* to *path* with columns added at its end.

    Each record stays the text it was, in the file's delimiter, line end and encoding with its mark;
    added cells are quoted where they must be, all of them if all of the original's are. Short
    records are filled up; of long ones the fields that the header names are kept; blank lines are
    left out. Text that a spreadsheet would run gets an apostrophe before it, the original's own
    cells do not. If the encoding cannot hold a character of an answer, all of it becomes UTF-8 with
    a byte order mark, which spreadsheets show as it is meant; nothing is lost or replaced.
    Raises `BadInput` as the reader does, also unless there is one sequence for each row.
    """
    layout, most = layout_of(source, options), options.max_row_bytes

    with opened_text(source, layout.encoding, options) as text:
        records = records_of(text, layout, most)
        header = _header(records)

        with _Output(path, *writing_of(source, layout.encoding)) as output:
            output.write(layout.sep_line)

            if header is None:
                return

            names = free_names(list(header.places), added)
            end = line_end(header.record[2]) or "\n"
            style = _Style(layout, header.width)
            output.write(style.record(header.record, names) + end)

            for record, given in _paired(records, cells, len(added)):
                output.write(style.record(record, given) + end)


def _paired(
    records: Iterator[Record], cells: Iterator[Sequence[Cell]], count: int
) -> Iterator[tuple[Record, Sequence[Cell]]]:
    """Yield each record with its cells, *count* of them; raises `BadInput` unless all have them."""
    for record in records:
        given = next(cells, None)

        if given is None or len(given) != count:
            raise other_rows()

        yield record, given

    if next(cells, None) is not None:
        raise other_rows()


def _header(records: Iterator[Record]) -> _Header | None:
    """Take the header off *records*; None if there is nothing at all."""
    record = next(records, None)

    if record is None:
        return None

    line, fields, _ = record
    names = [name.strip() for name in fields]

    while names and not names[-1]:
        names.pop()

    places: dict[str, int] = {}

    for place, name in enumerate(names):
        if not name or "\0" in name:
            what = "has a zero byte in its name" if name else "has no name"
            reason = f"column {place + 1} of the header {what}; write one name for each column"
            raise BadInput(reason, code="bad_header", line=line)

        if name in places:
            reason = (
                f"columns {places[name] + 1} and {place + 1} are both named {name!r:.{_SHOWN}}; "
                f"rename one of them"
            )
            raise BadInput(reason, code="bad_header", line=line, key=name)

        places[name] = place

    if not places:
        reason = "the header is empty; write the names of the columns in the first line"
        raise BadInput(reason, code="bad_header", line=line)

    return _Header(record, places)


def _row_fault(record: Record, header: _Header, layout: Layout) -> BadInput | None:
    """Return what is wrong with a record of the header's shape or another; None if nothing is."""
    line, fields, text = record
    named = len(header.places)

    if "\0" in text:
        reason = "the row has a zero byte, which is no text; remove it"
        return BadInput(reason, code="zero_byte", line=line)

    if not named <= len(fields) <= header.width:
        reason = (
            f"found {len(fields)} fields where the header has {named}; usually a value has a "
            f"{layout.delimiter_name} or a quote in it: put it in double quotes, and write its own "
            f'quotes twice, as ""'
        )
        return BadInput(reason, code="wrong_field_count", line=line)

    for place, field in enumerate(fields[named:], start=named + 1):
        if field:
            reason = f"column {place} has a value, {field!r:.{_SHOWN}}, but no name in the header"
            return BadInput(reason, code="wrong_field_count", line=line)

    return None


def _cell_text(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case bool():
            return "true" if cell else "false"
        case str() if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
            return "'" + cell
        case _:
            return str(cell)


class _Style:
    """Writes fields as the file does."""

    def __init__(self, layout: Layout, width: int) -> None:
        self._delimiter = layout.delimiter
        self._width = width
        needs = rf'["\r\n{re.escape(layout.delimiter)}]|^\s|\s$'
        self._needs_quotes = re.compile("" if layout.is_quoted else needs)

    def record(self, record: Record, cells: Iterable[Cell]) -> str:
        """Return a record with *cells* added, without line end."""
        _, fields, text = record
        text, missing = body(text), self._width - len(fields)

        if missing < 0:
            text = self._delimiter.join(map(self._field, fields[: self._width]))

        added = (self._field(_cell_text(cell)) for cell in cells)

        return self._delimiter.join([text, *[self._field("")] * missing, *added])

    def _field(self, text: str) -> str:
        return quoted(text) if self._needs_quotes.search(text) else text


class _Output:
    """A file that is written in an encoding as long as that holds what is written."""

    def __init__(self, path: Path, codec: str, mark: bytes) -> None:
        self._path = path
        self._codec = codec
        self._file = path.open("wb", buffering=_WRITE_BYTES)
        self._file.write(mark)
        self._encoder = codecs.getincrementalencoder(codec)()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.write(self._encoder.encode("", final=True))
        self._file.close()

    def write(self, text: str) -> None:
        try:
            data = self._encoder.encode(text)
        except UnicodeEncodeError:
            if not self._codec.startswith("utf"):
                self._widen()

            # Half a surrogate pair is no character in any encoding.
            data = text.encode(self._codec, "backslashreplace")

        self._file.write(data)

    def _widen(self) -> None:
        """Make UTF-8 of what is written, and of what will be."""
        self._file.close()
        narrow = self._path.with_name(self._path.name + ".narrow")
        self._path.replace(narrow)
        self._file = self._path.open("wb", buffering=_WRITE_BYTES)
        self._file.write(codecs.BOM_UTF8)
        self._encoder = codecs.getincrementalencoder("utf-8")()

        with narrow.open(encoding=self._codec, newline="") as file:
            while text := file.read(_WRITE_BYTES):
                self._file.write(text.encode())

        narrow.unlink()
        self._codec = "utf-8"
