"""Xlsx sheet: the XML of one sheet becomes rows, and that of the shared texts becomes texts.

Handlers, told of the XML piece by piece; what they hold is one row, and where each text is in its
file. Raises `BadInput` for XML that is no sheet (bad data).
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING, NamedTuple

from promptspool.intake.formats.xlsx_cells import (
    MAX_COLUMNS,
    MAX_ROWS,
    Odd,
    column_of,
    moment,
    number,
    unescaped,
)
from promptspool.intake.formats.xlsx_parts import broken

if TYPE_CHECKING:
    from typing import IO

    from promptspool.intake.formats.xlsx_cells import Kind, Value
    from promptspool.intake.formats.xlsx_parts import Attributes

_WINDOW_BYTES = 1 << 12
_SHOWN = 40


class SheetRow(NamedTuple):
    """One row with something in it."""

    number: int
    """As the sheet counts it, from 1."""
    cells: list[tuple[int, Value]]
    """What is not empty, each with its column from 0. Empty if the row is too long."""
    is_too_long: bool


class Texts:
    """The texts that cells share, by their numbers; kept in a file."""

    def __init__(self, file: IO[bytes], *, max_characters: int) -> None:
        """Keep them in *file*, each up to a little more than *max_characters*."""
        self._file = file
        self._max_characters = max_characters
        self._ends = array("Q", [0])
        self._pieces: list[str] = []
        self._length = self._run = 0
        self._is_heard = self._is_reading_aid = False
        self._window = b""
        self._window_start = 0

    def begin(self, name: str, _: Attributes, /) -> None:
        """Take the begin of an element."""
        match name.rpartition(":")[2]:
            case "si":
                self._pieces, self._length = [], 0
            case "rPh":
                self._is_reading_aid = True
            case "t":
                self._is_heard = not self._is_reading_aid
                self._run = len(self._pieces)

    def end(self, name: str, /) -> None:
        """Take its end."""
        match name.rpartition(":")[2]:
            case "t":
                self._is_heard = False
                _unescape(self._pieces, self._run)
            case "rPh":
                self._is_reading_aid = False
            case "si":
                data = "".join(self._pieces).encode()
                self._ends.append(self._ends[-1] + len(data))
                self._file.write(data)

    def text(self, text: str, /) -> None:
        """Take a piece of its text."""
        # Of a text that makes every row too long, enough is kept for that.
        if self._is_heard and self._length <= self._max_characters:
            self._pieces.append(text)
            self._length += len(text)

    def size_bytes(self, index: int) -> int | None:
        """Return how long a text is; None if there is none of that number."""
        if not 0 <= index < len(self._ends) - 1:
            return None

        return self._ends[index + 1] - self._ends[index]

    def at(self, index: int) -> str:
        """Return the text of a number that there is."""
        start, end = self._ends[index], self._ends[index + 1]

        if not self._window_start <= start <= end <= self._window_start + len(self._window):
            # Cells mostly take one text after the other, so the next ones are read with it.
            self._window = os.pread(self._file.fileno(), max(end - start, _WINDOW_BYTES), start)
            self._window_start = start

        return self._window[start - self._window_start : end - self._window_start].decode()


class SheetReading:
    """Takes the XML of a sheet and gathers its rows."""

    def __init__(
        self, texts: Texts, *, kinds: list[Kind | None], is_1904: bool, max_characters: int
    ) -> None:
        """Take *texts* where cells share them; *kinds* are what their styles make of numbers."""
        self.found: list[SheetRow] = []
        """Rows that are complete; whoever takes them clears the list."""
        self._texts = texts
        self._kinds = kinds
        self._is_1904 = is_1904
        self._max_characters = max_characters
        self._columns: dict[str, int] = {}
        self._row_number = 0
        self._column = -1
        self._cells: list[tuple[int, Value]] = []
        self._held = self._run = 0
        self._cell: Attributes | None = None
        self._pieces: list[str] = []
        self._is_heard = self._is_reading_aid = self._has_formula = self._may_escape = False

    def begin(self, name: str, attributes: Attributes, /) -> None:
        """Take the begin of an element."""
        # The likeliest first: these three are called seven times a cell.
        if name == "c":
            self._cell = attributes
            self._column = self._place(attributes.get("r"))
            self._pieces = []
            self._has_formula = False
        elif name in ("v", "t"):
            self._is_heard = self._cell is not None and not self._is_reading_aid
            self._run = len(self._pieces)
        elif name == "row":
            self._begin_row(attributes.get("r"))
        elif name == "f":
            self._has_formula = True
        elif name == "rPh":
            self._is_reading_aid = True
        elif ":" in name:
            self.begin(name.rpartition(":")[2], attributes)

    def end(self, name: str, /) -> None:
        """Take its end."""
        if name in ("v", "t"):
            self._is_heard = False

            if self._may_escape:
                _unescape(self._pieces, self._run)
                self._may_escape = False
        elif name == "c":
            self._end_cell()
        elif name == "row":
            self._end_row()
        elif name == "rPh":
            self._is_reading_aid = False
        elif ":" in name:
            self.end(name.rpartition(":")[2])

    def text(self, text: str, /) -> None:
        """Take a piece of its text."""
        if self._is_heard and self._held <= self._max_characters:
            self._held += len(text)
            self._pieces.append(text)
            self._may_escape = self._may_escape or "_" in text

    def _begin_row(self, named: str | None) -> None:
        self._cells = []
        self._column = -1
        self._held = 0
        found = self._row_number + 1 if named is None else whole(named)

        if not self._row_number < found <= MAX_ROWS:
            what = f"row {named or found:.{_SHOWN}} comes after row {self._row_number}"
            raise broken(what)

        self._row_number = found

    def _end_row(self) -> None:
        is_too_long = self._held > self._max_characters

        if self._cells or is_too_long:
            cells = [] if is_too_long else self._cells
            self.found.append(SheetRow(self._row_number, cells, is_too_long))

        self._cells = []

    def _place(self, named: str | None) -> int:
        """Return the column of a cell that is called *named*, as in `B5`."""
        letters = named.rstrip("0123456789") if named else ""
        column = self._columns.get(letters) if named else self._column + 1

        if column is None:
            column = column_of(letters)

            if column is not None:
                self._columns[letters] = column

        if column is None or column >= MAX_COLUMNS:
            raise broken(f"a cell of row {self._row_number} is called {named!r:.{_SHOWN}}")

        return column

    def _end_cell(self) -> None:
        attributes, self._cell = self._cell, None

        if attributes is None or self._held > self._max_characters:
            return

        text = self._pieces[0] if len(self._pieces) == 1 else "".join(self._pieces)
        value = self._value(text, attributes) if text else None

        if not text and self._has_formula and attributes.get("t") != "str":
            what = "has a formula that was never computed; open the file in a spreadsheet and save "
            value = Odd("", what + "it, or write the value itself")

        # An empty text is as empty as a formula can make a cell.
        if value is not None and value != "":
            self._cells.append((self._column, value))

    def _value(self, text: str, attributes: Attributes) -> Value:
        match attributes.get("t", "n"):
            case "s":
                return self._shared(text)
            case "n":
                return self._number(text, attributes.get("s"))
            case "inlineStr" | "str" | "d":
                return text
            case "b":
                return text in ("1", "true")
            case "e":
                what = f"holds the error {text:.{_SHOWN}}; mend its formula, or clear the cell"
                return Odd(text, what)
            case kind:
                return Odd(
                    text, f"is of the type {kind!r:.{_SHOWN}}, which no cell is; write it anew"
                )

    def _shared(self, text: str) -> Value:
        index = whole(text)
        size_bytes = self._texts.size_bytes(index)

        if size_bytes is None:
            return Odd(
                "", f"refers to text {text:.{_SHOWN}}, which the file does not have; write it anew"
            )

        # One text may be shared by so many cells that a row of them is not to be held.
        self._held += size_bytes

        return self._texts.at(index) if self._held <= self._max_characters else ""

    def _number(self, text: str, style: str | None) -> Value:
        found = number(text)

        if found is None:
            return Odd(text, f"is {text!r:.{_SHOWN}}, which is no number; write it anew")

        index = whole(style) if style else 0
        kind = self._kinds[index] if 0 <= index < len(self._kinds) else None

        if kind is None:
            return found

        return moment(found, kind, is_1904=self._is_1904) or found


def _unescape(pieces: list[str], start: int) -> None:
    """Undo the escapes in the text that *pieces* make from *start* on."""
    pieces[start:] = [unescaped("".join(pieces[start:]))]


def whole(text: str | None) -> int:
    """Return the number that *text* is, -1 if it is no whole one."""
    found = number(text) if text else None

    return found if isinstance(found, int) else -1
