"""Xlsx book: the sheets of a workbook, and the rows of one of them, one at a time.

Read by expat from the archive as it is unpacked; the texts that cells share are kept in a file
without a name, and eight bytes of memory for each. A million rows of five texts of 60 characters
take 25 MB and 35 s, or 63 MB and 55 s where the texts are shared. calamine takes 8 to 13 s but 700
to 1,040 MB, loses errors and formulas that were never computed, and aborts on a stray cell in the
last corner; openpyxl takes 120 s and up to 1,100 MB (measured). Formulas count as the value that
was last computed. Raises `BadInput` (bad data).
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, NamedTuple

from promptspool.errors import BadInput
from promptspool.intake.formats.xlsx_cells import kind_of
from promptspool.intake.formats.xlsx_parts import Package, broken
from promptspool.intake.formats.xlsx_sheet import SheetReading, Texts, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from promptspool.intake.formats.xlsx_cells import Kind
    from promptspool.intake.formats.xlsx_sheet import SheetRow

# Excel allows 65,490; what comes after a million is no style that anyone made.
_MAX_STYLES = 1_000_000


class Sheet(NamedTuple):
    """One sheet with cells; sheets of charts, dialogs or macros are none."""

    name: str
    part: str
    is_hidden: bool


class Book:
    """One workbook, open."""

    def __init__(self, file: IO[bytes], *, folder: Path, max_characters: int) -> None:
        """Read what sheets there are in *file*, which stays the caller's to close.

        *folder* is where texts are kept as long as a sheet is read. A row with more than
        *max_characters* is not held.
        """
        self._package = Package(file)
        self._folder = folder
        self._max_characters = max_characters
        self._part = self._book_part()
        self._relations = self._package.relations(self._part)
        self.is_1904 = False
        """Whether days are counted from 1904, as on old Macs."""
        self.sheets = self._found_sheets()

    def rows(self, sheet: Sheet) -> Iterator[SheetRow]:
        """Yield the rows of *sheet* that are not empty, in its order."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            texts = self._shared_texts(file)
            reading = SheetReading(
                texts,
                kinds=self._kinds(),
                is_1904=self.is_1904,
                max_characters=self._max_characters,
            )

            for _ in self._package.parsed(sheet.part, reading):
                yield from reading.found
                reading.found.clear()

    def _book_part(self) -> str:
        named = [
            relation.part
            for relation in self._package.relations("").values()
            if relation.kind == "officeDocument"
        ]
        part = named[0] if named else "xl/workbook.xml"

        if part.lower().endswith(".bin"):
            reason = "the workbook is binary (.xlsb); save it as .xlsx"
            raise BadInput(reason, code="wrong_format")

        if not self._package.has(part) or "workbook" not in part.lower():
            reason = "the archive is no workbook of Excel; save the table as .xlsx or .csv"
            raise BadInput(reason, code="wrong_format")

        return part

    def _found_sheets(self) -> list[Sheet]:
        found: list[Sheet] = []

        for element, attributes in self._package.elements(self._part):
            if element == "workbookPr":
                self.is_1904 = attributes.get("date1904") in ("1", "true")
            elif element == "sheet":
                ids = (value for name, value in attributes.items() if name.endswith(":id"))
                relation = self._relations.get(next(ids, ""))

                if relation is not None and relation.kind == "worksheet":
                    is_hidden = attributes.get("state", "visible") != "visible"
                    found.append(Sheet(attributes.get("name", ""), relation.part, is_hidden))

        return found

    def _shared_texts(self, file: IO[bytes]) -> Texts:
        texts = Texts(file, max_characters=self._max_characters)
        part = self._part_of("sharedStrings")

        if part is not None:
            for _ in self._package.parsed(part, texts):
                pass

            file.flush()

        return texts

    def _kinds(self) -> list[Kind | None]:
        """Return what each style of cells makes of numbers."""
        part = self._part_of("styles")
        codes: dict[int, str] = {}
        kinds: list[Kind | None] = []
        container = ""

        for element, attributes in self._package.elements(part) if part else ():
            if element in ("numFmts", "cellStyleXfs", "cellXfs", "cellStyles", "dxfs"):
                container = element
            elif element in ("numFmt", "xf") and len(kinds) + len(codes) > _MAX_STYLES:
                raise broken(f"it has more than {_MAX_STYLES:,} styles")
            elif element == "numFmt" and container == "numFmts":
                codes[whole(attributes.get("numFmtId"))] = attributes.get("formatCode", "")
            elif element == "xf" and container == "cellXfs":
                number_format = whole(attributes.get("numFmtId"))
                kinds.append(kind_of(number_format, codes.get(number_format)))

        return kinds

    def _part_of(self, kind: str) -> str | None:
        parts = (relation.part for relation in self._relations.values() if relation.kind == kind)

        return next((part for part in parts if self._package.has(part)), None)
