"""JSON files: JSON Lines, and the documents in which people put rows when they mean those.

Holds one row, or one block of lines, whatever the file's size. Raises `BadInput` (bad data).
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, NamedTuple

from promptspool.errors import BadInput
from promptspool.intake.formats.json_blocks import block_of
from promptspool.intake.formats.json_scan import Scan
from promptspool.intake.formats.json_values import columns_of
from promptspool.intake.formats.lines import check_utf8, lines_of, pieces, too_long
from promptspool.intake.rows import BLOCK_BYTES, Row
from promptspool.intake.values import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.intake.formats.lines import Piece
    from promptspool.intake.rows import Block, ReadOptions, Source

_HEAD_BYTES = 1 << 16

_MAX_NAMED = 5

# What a row is made of; an object that has one of these is a row, whatever else it has.
_ROW_NAMES = frozenset(
    f'"{name}"'.encode()
    for name in ("body", "input", "messages", "prompt", "question", "text", "url")
)

_ROWS_NAMES = frozenset(
    f'"{name}"'.encode()
    for name in ("data", "inputs", "items", "prompts", "questions", "requests", "rows", "texts")
)

_FEWEST_CUT = 16
"""Where something in it is odd, a piece is looked at in halves down to this part of it."""

_VALUE_STARTS = b'{["-0123456789tfn'


def read_jsonl(source: Source, options: ReadOptions) -> Iterator[Row | Block]:
    """Yield a row for each line that is not blank; a file that is one array is read as `.json`."""
    if _is_array(source):
        source.notes["layout"] = "one array, not an object a line"
        yield from read_json(source, options)
        return

    size = options.block_bytes

    with source.open() as file:
        for piece in pieces(file, max_bytes=options.max_row_bytes, block_bytes=size or BLOCK_BYTES):
            yield from _line_rows(piece, options) if size is None else _found(piece, options, size)


def _found(piece: Piece, options: ReadOptions, size: int) -> Iterator[Row | Block]:
    """Yield a piece as a block, or what is in its halves, or the rows of one that is too small.

    *size* is how large a piece usually is.
    """
    block = block_of(piece, max_bytes=options.max_row_bytes)

    if block is not None:
        yield block
    elif len(piece.data) * _FEWEST_CUT > size and (halves := piece.halves()) is not None:
        for half in halves:
            yield from _found(half, options, size)
    else:
        yield from _line_rows(piece, options)


def _line_rows(piece: Piece, options: ReadOptions) -> Iterator[Row]:
    for number, data in lines_of(piece, max_bytes=options.max_row_bytes):
        if data is None:
            yield Row(number, None, too_long("the line", max_bytes=options.max_row_bytes))
        elif data and not data.isspace():
            try:
                columns = columns_of(data)
            except BadInput as error:
                yield Row(number, None, error)
            else:
                yield Row(number, columns)


def read_json(source: Source, options: ReadOptions) -> Iterator[Row]:
    """Yield a row for each object or string, in one of four layouts; `Row.line` is where it begins.

    1. an array: its elements;
    2. an object with an array of objects or strings in it: the elements of that array. An object
       that has a key of which requests are made (prompt, messages, body...) is a row itself;
    3. another object: one row;
    4. several values one after another: each of them, as in JSON Lines, but with line breaks.

    An element that is none is a fault, and the next is looked for behind its comma. Raises
    `BadInput` if there are several arrays, or where it cannot be told what comes next. The file is
    read twice up to the end of its first object.
    """
    for number, row in enumerate(_rows(source, options), start=1):
        yield Row(row.line, row.columns, row.fault, number=number)


def _rows(source: Source, options: ReadOptions) -> Iterator[Row]:
    layout = _layout(source)

    with source.open() as file:
        scan = Scan(file)
        scan.peek()

        if layout.name == "values":
            yield from _values(scan, options)
            return

        if layout.name == "member":
            _go_to_member(scan, layout.member)
            source.notes["layout"] = f"the array {layout.title} of an object"

        scan.step()
        yield from _elements(scan, options)

        if layout.name == "array" and scan.peek():
            raise scan.unexpected("the end of the file (the array is closed)")


class _Layout(NamedTuple):
    """How the rows of a file are arranged."""

    name: str
    """`array`, `member` (an array in an object) or `values` (one after another)."""
    member: int = 0
    """Which member of the object it is, from 0."""
    title: str = ""


def _is_array(source: Source) -> bool:
    with source.open() as file:
        head = file.read(_HEAD_BYTES)

    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _layout(source: Source) -> _Layout:
    with source.open() as file:
        scan = Scan(file)

        match scan.peek():
            case b"[":
                return _Layout("array")
            case b"{":
                found = _object_layout(scan)
            case _:
                return _Layout("values")

        # What follows it is one more row, so the object is one as well.
        return found if not scan.peek() else _Layout("values")


def _object_layout(scan: Scan) -> _Layout:
    """Go over an object; tell whether it is a row or holds rows.

    An array of strings is taken for rows only if it is called so, or nothing is beside it: it may
    be a list of tags.
    """
    arrays: list[_Layout] = []
    starts: set[bytes] = set()
    count = members = 0
    is_row = is_called_so = False

    for number, name in enumerate(scan.members()):
        members += 1
        is_row = is_row or name.lower() in _ROW_NAMES

        if scan.peek() == b"[":
            scan.step()
            count += 1
            starts.add(scan.peek())
            is_called_so = is_called_so or name.lower() in _ROWS_NAMES
            arrays += [_Layout("member", number, _title(name))] * (count <= _MAX_NAMED)
            scan.pass_to_close()
            scan.step()

    is_of_texts = b'"' in starts and (is_called_so or members == 1 or count > 1)
    holds_rows = b"{" in starts or is_of_texts

    if is_row or not holds_rows or scan.peek():
        return _Layout("values")

    if count > 1:
        more = f" and {count - _MAX_NAMED} more" if count > _MAX_NAMED else ""
        reason = (
            f"the object has {count} arrays that could be the rows: "
            f"{', '.join(array.title for array in arrays)}{more}; leave one, or write it alone"
        )
        raise BadInput(reason, code="ambiguous_rows")

    return arrays[0]


def _go_to_member(scan: Scan, member: int) -> None:
    for number, _ in enumerate(scan.members()):
        if number == member:
            return


def _title(name: bytes) -> str:
    return quoted(name[1:-1].decode(errors="replace"))


def _values(scan: Scan, options: ReadOptions) -> Iterator[Row]:
    while first := scan.peek():
        if first not in _VALUE_STARTS:
            raise scan.unexpected("an object or a string")

        yield _row(scan, scan.value(options.max_row_bytes), options)


def _elements(scan: Scan, options: ReadOptions) -> Iterator[Row]:
    """Yield the elements of an array whose inside begins here, and go over its end."""
    end = scan.peek()

    while end != b"]":
        yield _row(scan, scan.element(options.max_row_bytes), options)

        end = scan.peek()

        if end not in (b",", b"]"):
            raise scan.unexpected("a comma or ]")

        if end == b",":
            scan.step()

    scan.step()


def _row(scan: Scan, raw: bytes | None, options: ReadOptions) -> Row:
    """Return the row that the value is which *scan* took last."""
    line = scan.began.line

    if raw is None:
        fault = too_long("the element", max_bytes=options.max_row_bytes)

        return Row(line, None, fault)

    if not raw:
        reason = "broken JSON: found a comma without a value; take one of the commas out"

        return Row(line, None, BadInput(reason, code="invalid_json"))

    check_utf8(raw, line=line, offset=scan.began_offset)

    try:
        return Row(line, columns_of(raw, place=scan.began))
    except BadInput as error:
        return Row(line, None, error)
