"""Xlsx target: a workbook that is written, one sheet of values, row by row.

Rows go to a file beside it as they come, so memory does not grow with the sheet: 27 MB and 120 s
for a million rows of six texts (measured). Lets `OSError` through (environment); raises `BadInput`
only where a sheet has no room (bad data). After a crash a folder `.xlsx-*` may be left beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import tempfile
from typing import TYPE_CHECKING, Any

from promptspool.errors import BadInput
from promptspool.intake.formats.xlsx_cells import EXACT_DIGITS, MAX_COLUMNS, Moment, Odd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from promptspool.intake.formats.xlsx_cells import Value

MAX_CELL_UNITS = 32_767
"""UTF-16 units that a cell can hold (Excel specifications and limits)."""

CUT_NOTE = (
    "… [cut: a cell of Excel holds 32,767 characters; the whole is in the file that was read]"
)

_FORMATS = {
    "date": "yyyy-mm-dd",
    "time": "hh:mm:ss",
    "datetime": "yyyy-mm-dd hh:mm:ss",
    "duration": "[h]:mm:ss",
}

# XML has no sign for them, and spreadsheets agree on no escape.
_NO_CHARACTERS = re.compile("[\ufffe\uffff\ud800-\udfff]")

# XlsxWriter takes such a text for XML of its own, and writes it as it is.
_LOOKS_WRITTEN = re.compile(r"<r>.*</r>", re.DOTALL)

# It escapes what looks like an escape, but not where that shares its end with the next one.
_IS_ENTANGLED = re.compile("_x[0-9a-fA-F]{4}(?=_x[0-9a-fA-F]{4}_|[\x00-\x08\x0b-\x1f])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f]")

_FORBIDDEN_IN_NAMES = re.compile(r"[\[\]:*?/\\]")
_MAX_NAME = 31

_INEXACT = 10**EXACT_DIGITS


def check_room(columns: Iterable[int], more: int) -> None:
    """Raise `BadInput` unless *more* columns fit behind *columns*, of which there is one."""
    if max(columns) + more >= MAX_COLUMNS:
        reason = (
            f"the sheet has no room for {more} more columns: it reaches too near to its last one, "
            f"XFD; delete columns, or save it as .csv"
        )
        raise BadInput(reason, code="too_many_columns")


class Target:
    """A new workbook; complete when its `with` block ends without an error, else not there."""

    def __init__(self, path: Path, *, sheet: str, is_1904: bool) -> None:
        """Begin the workbook at *path*, with one sheet that is called *sheet* if Excel allows."""
        library: Any = importlib.import_module("xlsxwriter")  # the daemon itself is to do without
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix=".xlsx-", dir=path.parent)
        options = {"constant_memory": True, "tmpdir": self._folder.name, "date_1904": is_1904}
        self._book: Any = library.Workbook(str(path), options)
        self._book.use_zip64()
        self._sheet: Any = self._book.add_worksheet(_allowed_name(sheet))
        self._plain: Any = self._book.add_format()
        self._formats: dict[str, Any] = {
            kind: self._book.add_format({"num_format": code}) for kind, code in _FORMATS.items()
        }

    def __enter__(self) -> Self:
        """Return it, to be filled."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the end of it, or remove it."""
        with self._folder:
            if error is None:
                self._close()
                return

            with contextlib.suppress(OSError):
                self._close()

            self._path.unlink(missing_ok=True)

    def add(
        self, line: int, values: Mapping[int, Value | None], *, cut_note: str = CUT_NOTE
    ) -> None:
        """Write *values*, by column, to row *line*, none above the last; None is an empty cell.

        A text that is too long ends with *cut_note*.
        """
        row = line - 1

        for column, value in values.items():
            match value:
                case None | "":
                    pass
                case bool():
                    self._sheet.write_boolean(row, column, value)
                case Moment():
                    self._sheet.write_number(row, column, value.serial, self._formats[value.kind])
                case int() | float() if _is_kept(value):
                    self._sheet.write_number(row, column, value)
                case Odd():
                    self._add_text(row, column, value.text, cut_note)
                case _:
                    self._add_text(row, column, str(value), cut_note)

    def _add_text(self, row: int, column: int, text: str, cut_note: str) -> None:
        text = _fitting(_NO_CHARACTERS.sub("\ufffd", text), cut_note)

        if _LOOKS_WRITTEN.fullmatch(text) or _IS_ENTANGLED.search(text):
            self._add_pieces(row, column, text)
        else:
            self._sheet.write_string(row, column, text)

    def _add_pieces(self, row: int, column: int, text: str) -> None:
        """Write a text that XlsxWriter would spoil: in pieces, of which none looks like XML.

        It would escape what is to be escaped twice, so no piece has anything of the kind.
        """
        plain = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
        pieces = [plain[:1], *re.split("(?=_)", plain[1:])]
        runs = [part for piece in pieces if piece for part in (self._plain, piece)]
        self._sheet.write_rich_string(row, column, *runs)

    def _close(self) -> None:
        try:
            self._book.close()
        except Exception as error:
            # XlsxWriter wraps what the disk says.
            if error.args and isinstance(error.args[0], OSError):
                raise error.args[0] from error

            raise


def _is_kept(value: int | float) -> bool:  # noqa: PYI041 (they are told apart)
    """Tell whether a spreadsheet keeps a number as it is."""
    return math.isfinite(value) if isinstance(value, float) else abs(value) < _INEXACT


def _fitting(text: str, cut_note: str) -> str:
    """Return *text*, or as much of it as fits into a cell and *cut_note*."""
    # Characters beyond the first 65,536, such as emoji, are two units.
    if len(text) * 2 <= MAX_CELL_UNITS:
        return text

    units = text.encode("utf-16-le")

    if len(units) <= MAX_CELL_UNITS * 2:
        return text

    room = MAX_CELL_UNITS - len(cut_note.encode("utf-16-le")) // 2

    return units[: room * 2].decode("utf-16-le", "ignore") + cut_note


def _allowed_name(name: str) -> str:
    """Return *name* as Excel allows it: other programs allow more."""
    allowed = _FORBIDDEN_IN_NAMES.sub("_", _NO_CHARACTERS.sub("_", name)).strip("'")
    short = allowed.encode("utf-16-le")[: _MAX_NAME * 2].decode("utf-16-le", "ignore").strip("'")

    return short or "Sheet1"
