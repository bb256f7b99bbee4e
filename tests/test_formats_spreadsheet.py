from __future__ import annotations

import datetime as dt
import json
import random
import re
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import openpyxl
import pytest
import python_calamine
import xlsxwriter  # type: ignore[import-untyped]  # it has no stubs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats.spreadsheet import CUT_NOTE, read_xlsx, write_xlsx
from promptspool.intake.rows import Added, ReadOptions, Row
from promptspool.worker import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from promptspool.intake.rows import Cell

OPTIONS = ReadOptions(max_row_bytes=1_000_000)
ANSWER = [Added("answer", "text")]
MAX_UNITS = 32_767


ROOT = Path(__file__).parent.parent
PLACES = f"{ROOT}:{ROOT / 'daemon'}"
"""Where a worker finds this module and the daemon's."""


class Dropped:
    """A dropped file as it lies on the disk."""

    def __init__(self, path: Path) -> None:
        """Be the file at *path*."""
        self.name = path.name
        self.notes: dict[str, str] = {}
        self._path = path

    def open(self) -> IO[bytes]:
        """Open it."""
        return self._path.open("rb")

    def path(self) -> Path:
        """Return where it is."""
        return self._path


def by_openpyxl(path: Path, rows: Iterable[Iterable[Any]]) -> Path:
    """Write rows as openpyxl does: with shared texts."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None

    for row in rows:
        sheet.append(row)

    for cells in sheet.iter_rows():
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"

    book.save(path)

    return path


def by_xlsxwriter(path: Path, rows: Iterable[Iterable[Any]]) -> Path:
    """Write rows as XlsxWriter does to save memory: with texts in their cells."""
    options = {
        "constant_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "default_date_format": "yyyy-mm-dd hh:mm:ss",
    }

    with xlsxwriter.Workbook(str(path), options) as book:
        sheet = book.add_worksheet()

        for number, row in enumerate(rows):
            for column, value in enumerate(row):
                sheet.write(number, column, value)

    return path


WRITERS = [by_openpyxl, by_xlsxwriter]
by_both = pytest.mark.parametrize("store", WRITERS)

_TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>"""
_TOP = """<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="r1" Type="http://x/officeDocument" Target="xl/workbook.xml"/></Relationships>"""
_BOOK = """<workbook xmlns="m" xmlns:r="rr"><sheets>
<sheet name="Data" sheetId="1" r:id="s1"/></sheets></workbook>"""
_RELATIONS = """<Relationships>
<Relationship Id="s1" Type="http://x/worksheet" Target="worksheets/sheet1.xml"/>
<Relationship Id="t" Type="http://x/sharedStrings" Target="/xl/sharedStrings.xml"/>
<Relationship Id="y" Type="http://x/styles" Target="styles.xml"/></Relationships>"""
_STYLES = """<styleSheet><numFmts count="1"><numFmt numFmtId="164" formatCode="{code}"/></numFmts>
<cellStyleXfs><xf numFmtId="14"/></cellStyleXfs>
<cellXfs><xf numFmtId="0"/><xf numFmtId="164"/><xf numFmtId="14"/></cellXfs></styleSheet>"""


def by_hand(
    path: Path, rows: str, *, texts: str = "", code: str = "General", **parts: str | bytes
) -> Path:
    """Write a workbook whose sheet has the XML *rows* in it; *parts* replace others."""
    found: dict[str, str | bytes] = {
        "[Content_Types].xml": _TYPES,
        "_rels/.rels": _TOP,
        "xl/workbook.xml": _BOOK,
        "xl/_rels/workbook.xml.rels": _RELATIONS,
        "xl/styles.xml": _STYLES.format(code=code),
        "xl/sharedStrings.xml": f"<sst>{texts}</sst>",
        "xl/worksheets/sheet1.xml": (
            f'<worksheet xmlns="m"><sheetData>{rows}</sheetData></worksheet>'
        ),
    }
    names = {"book": "xl/workbook.xml", "sheet": "xl/worksheets/sheet1.xml", "top": "_rels/.rels"}
    found |= {names[name]: part for name, part in parts.items()}

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in found.items():
            archive.writestr(name, part)

    return path


HEADER = '<row r="1"><c r="A1" t="str"><v>prompt</v></c></row>'


def read(path: Path, *, sheet: str | None = None, max_row_bytes: int = 1_000_000) -> list[Row]:
    """Return the rows of a file."""
    options = ReadOptions(max_row_bytes=max_row_bytes, sheet=sheet)

    return list(read_xlsx(Dropped(path), options))


def values(rows: list[Row], name: str = "prompt") -> list[Any]:
    """Return the values of a column, parsed; the fault of a row that has one."""
    return [
        str(row.fault) if row.columns is None else json.loads(row.columns[name]) for row in rows
    ]


def written(path: Path, cells: Iterable[Sequence[Cell]], added: Sequence[Added] = ANSWER) -> Path:
    """Write a sheet with *cells* added and return where."""
    target = path.with_name("results.xlsx")
    write_xlsx(Dropped(path), OPTIONS, target, added, iter(cells))

    return target


def one_cell(tmp_path: Path, cell: str, **options: str) -> Any:
    """Return what is read of a sheet whose second row is one cell."""
    return values(read(by_hand(tmp_path / "t.xlsx", f'{HEADER}<row r="2">{cell}</row>', **options)))


@by_both
def test_a_table_is_rows(tmp_path: Path, store: Any) -> None:
    """The first row names the columns, each later one is a row with the sheet's own number."""
    path = store(
        tmp_path / "t.xlsx", [["id", "prompt"], ["a", "é😀"], [2, "line\nbreak"], [None, "x"]]
    )
    source = Dropped(path)
    rows = list(read_xlsx(source, OPTIONS))

    assert [row.line for row in rows] == [2, 3, 4]
    assert [row.columns for row in rows] == [
        {"id": b'"a"', "prompt": '"é😀"'.encode()},
        {"id": b"2", "prompt": b'"line\\nbreak"'},
        {"id": b"null", "prompt": b'"x"'},
    ]
    assert source.notes == {"sheet": rows and ("Sheet" if store is by_openpyxl else "Sheet1")}


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff"), max_size=60
) | st.text("_x0041<>r/&;\n\t =-+@é😀", max_size=30)
numbers = st.integers(-(10**15) + 1, 10**15 - 1) | (
    st.floats(-1e300, 1e300)
    .map(lambda number: float(f"{number:.14g}"))  # more digits may be rounded twice
    .filter(lambda number: not 1e15 <= abs(number) < 1e16)  # written as digits, read as they are
)
cells = st.none() | st.booleans() | numbers | texts


def shown(value: Cell) -> Any:
    """Return *value* as a sheet has it: 15 digits, and nothing instead of an empty text."""
    if isinstance(value, float):
        rounded = Decimal(f"{value:.15g}")
        is_whole = rounded == rounded.to_integral_value() and abs(rounded.adjusted()) <= 20

        return int(rounded) if is_whole else float(rounded)

    return None if value == "" else value


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(cells, cells), max_size=8))
@example([("<r>not XML</r>", "<r></r>"), ("<r>_x0041_</r>", "<r>\n_</r>")])
@example([("_x0041_x0042_", "_x0041_ \x07"), ("_x0041_", "__x0041_x0042_x0043_")])
@example([("=1+1", "http://example.org"), ("007", "1e5"), (" a ", "\n")])
@example([(0.1 + 0.2, 1e300), (1e-7, -0.0)])
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[Cell, Cell]]) -> None:
    """Cells come back as they were given: text as text, numbers as numbers, none as none."""
    origin = by_openpyxl(tmp_path / "t.xlsx", [["n"], *([n] for n in range(len(rows)))])
    added = [Added("one", "text"), Added("two", "number")]
    found = read(written(origin, rows, added))
    again = read(
        written(tmp_path / "results.xlsx", [()] * len(rows), []).rename(tmp_path / "r.xlsx")
    )

    assert [(*values([row], "one"), *values([row], "two")) for row in found] == [
        (shown(one), shown(two)) for one, two in rows
    ]
    assert values(found, "n") == list(range(len(rows)))
    assert again == found


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.none()
            | st.booleans()
            | st.integers(-(10**9), 10**9)
            | st.text("ab <&>é😀").map("x".__add__),  # calamine drops blanks that are alone
            st.text("cd", min_size=1),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_two_other_readers_agree(tmp_path: Path, rows: list[tuple[Any, str]]) -> None:
    """What is read is what calamine and openpyxl read, whichever library wrote it."""
    for store in WRITERS:
        path = store(tmp_path / "t.xlsx", [("one", "two"), *rows])
        found = [(*values([row], "one"), *values([row], "two")) for row in read(path)]
        sheet = python_calamine.CalamineWorkbook.from_path(path).get_sheet_by_index(0)
        seen = [tuple(None if cell == "" else cell for cell in row) for row in sheet.to_python()]
        book = openpyxl.load_workbook(path, read_only=True)
        other = list(book.worksheets[0].iter_rows(values_only=True))
        book.close()

        assert found == seen[1:] == other[1:] == rows


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('<c r="A2"><v>1.0</v></c>', 1),
        ('<c r="A2"><v>-3</v></c>', -3),
        ('<c r="A2"><v>1.1000000000000001</v></c>', 1.1),
        ('<c r="A2"><v>123456789012345678</v></c>', 123456789012345678),
        ('<c r="A2"><v>1.7976931348623157E+308</v></c>', 1.7976931348623157e308),
        ('<c r="A2"><v>1.0E-9</v></c>', 1e-9),
        ('<c r="A2" t="b"><v>1</v></c>', True),
        ('<c r="A2" t="b"><v>0</v></c>', False),
        ('<c r="A2" t="n"><v>5</v></c>', 5),
        ('<c r="A2" t="d"><v>2024-01-02T03:04:05</v></c>', "2024-01-02T03:04:05"),
        ('<c r="A2" t="str"><f>A1&amp;"x"</f><v>promptx</v></c>', "promptx"),
        ('<c r="A2"><f>1+1</f><v>2</v></c>', 2),
        ('<c r="A2" t="inlineStr"><is><t> a </t></is></c>', " a "),
        ('<c r="A2" t="inlineStr"><is><r><t>a_x000D_</t></r><r><t>b</t></r></is></c>', "a\rb"),
        ('<c r="A2" t="inlineStr"><is><t>_xD83D__xDE00_ _xD83D_</t></is></c>', "😀 \ufffd"),
        ('<c t="str"><v>without a name</v></c>', "without a name"),
        ('<c r="A2" t="s"><v>1</v></c>', "漢字 rich"),
        ('<c r="A2" t="str"><v><![CDATA[<b>]]>&#233;</v></c>', "<b>é"),
    ],
)
def test_a_cell_is_what_it_shows(tmp_path: Path, cell: str, expected: Any) -> None:
    """Each way of writing a value is read, without reading aids and as spreadsheets unescape."""
    shared = (
        "<si><t>zero</t></si><si><r><t>漢字</t></r><rPh><t>kanji</t></rPh><r><t> rich</t></r></si>"
    )
    found = one_cell(tmp_path, cell, texts=shared)

    assert found == [expected]
    assert type(found[0]) is type(expected)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            '<c r="A2" t="e"><f>VLOOKUP(1,B:B,2)</f><v>#N/A</v></c>',
            "cell A2 holds the error #N/A; mend its formula, or clear the cell",
        ),
        (
            '<c r="A2"><f>B2&amp;C2</f><v></v></c>',
            (
                "cell A2 has a formula that was never computed; open the file in a spreadsheet and "
                "save it, or write the value itself"
            ),
        ),
        ('<c r="A2"><v>1e999</v></c>', "cell A2 is '1e999', which is no number; write it anew"),
        ('<c r="A2"><v>nan</v></c>', "cell A2 is 'nan', which is no number; write it anew"),
        (
            '<c r="A2" t="s"><v>9</v></c>',
            "cell A2 refers to text 9, which the file does not have; write it anew",
        ),
        (
            '<c r="A2" t="zzz"><v>9</v></c>',
            "cell A2 is of the type 'zzz', which no cell is; write it anew",
        ),
        (
            '<c r="A2" t="str"><v>a</v></c><c r="C2"><v>9</v></c>',
            (
                "cell C2 has a value, but row 1, the header, has no name for its column; write "
                "one, or clear the cell"
            ),
        ),
    ],
)
def test_a_cell_without_a_value_is_a_fault(tmp_path: Path, cell: str, message: str) -> None:
    """What nobody would want to ask about is told with its cell, and only its row is at fault."""
    rest = '<row r="3"><c r="A3" t="str"><v>fine</v></c></row>'
    path = by_hand(tmp_path / "t.xlsx", f'{HEADER}<row r="2">{cell}</row>{rest}')
    rows = read(path)

    assert values(rows) == [message, "fine"]
    assert rows[0].fault is not None
    assert rows[0].fault.line == 2
    assert values(read(written(path, [("one",), ("two",)])), "answer")[1] == "two"


MOMENTS = [
    ("yyyy-mm-dd", "45293", "2024-01-02"),
    ("d. mmmm yyyy;@", "45293.5", "2024-01-02T12:00:00"),
    ("m/d/yy h:mm", "45293", "2024-01-02T00:00:00"),
    ("[$-409]m/d/yy h:mm AM/PM", "45293.127835648149", "2024-01-02T03:04:05"),
    ("yyyy-mm-dd hh:mm:ss.000", "45293.12784349537", "2024-01-02T03:04:05.678"),
    ("hh:mm:ss", "0.25", "06:00:00"),
    ("mm:ss", "0.25", "06:00:00"),
    ("hh:mm", "45293.25", "2024-01-02T06:00:00"),
    ("[h]:mm:ss", "1.25", "PT30H"),
    ("[mm]:ss", "-0.0625", "-PT1H30M"),
    ("mmm", "45293", "2024-01-02"),
    ("yyyy-mm-dd", "1", "1900-01-01"),
    ("yyyy-mm-dd", "59", "1900-02-28"),
    ("yyyy-mm-dd", "61", "1900-03-01"),
    ("yyyy-mm-dd", "2958465", "9999-12-31"),
    ("yyyy-mm-dd", "2958466", 2958466),
    ("yyyy-mm-dd", "-1", -1),
    ("yyyy-mm-dd", "0", 0),
    ("General", "45293", 45293),
    ("0.00E+00", "45293", 45293),
    ("#,##0.00 &quot;days&quot;", "45293", 45293),
    ("0\\d", "45293", 45293),
    ("[Red]0;[Blue]-0", "45293", 45293),
    ("_(* #,##0_);_(@_)", "45293", 45293),
    ("@", "45293", 45293),
]


@pytest.mark.parametrize(("code", "serial", "expected"), MOMENTS)
def test_moments_are_iso_8601(tmp_path: Path, code: str, serial: str, expected: Any) -> None:
    """A number is a moment where its format shows one, and a number everywhere else."""
    cell = f'<c r="A2" s="1"><v>{serial}</v></c>'

    assert one_cell(tmp_path, cell, code=code) == [expected]


@by_both
def test_moments_keep_their_kind(tmp_path: Path, store: Any) -> None:
    """Moments that two libraries write are read, written as moments and read again the same."""
    moments = [
        [dt.datetime(2024, 1, 2, 3, 4, 5)],  # noqa: DTZ001 (a sheet knows no time zone)
        [dt.datetime(1999, 12, 31)],  # noqa: DTZ001 (as above)
    ]
    path = store(tmp_path / "t.xlsx", [["prompt"], *moments])
    target = written(path, [("a",)] * 2)

    assert values(read(path)) == ["2024-01-02T03:04:05", "1999-12-31T00:00:00"]
    assert values(read(target)) == values(read(path))
    assert [row[0].value for row in openpyxl.load_workbook(target).worksheets[0]["A2:A3"]] == [
        row[0] for row in moments
    ]


def test_dates_count_from_1904_where_the_workbook_does(tmp_path: Path) -> None:
    """Workbooks from old Macs have their dates right, also after writing."""
    book = _BOOK.replace("<sheets>", '<workbookPr date1904="1"/><sheets>')
    rows = f'{HEADER}<row r="2"><c r="A2" s="2"><v>43831</v></c></row>'
    path = by_hand(tmp_path / "t.xlsx", rows, book=book)

    assert values(read(path)) == ["2024-01-02"]
    assert values(read(written(path, [("a",)]))) == ["2024-01-02"]


def test_empty_rows_and_columns_are_skipped(tmp_path: Path) -> None:
    """A table may begin anywhere and have gaps; its rows keep their numbers, also when written."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet["C4"], sheet["D4"] = "id", "prompt"
    sheet["C6"], sheet["D6"] = 1, "first"
    sheet["D9"] = "second"
    sheet["F200"].font = openpyxl.styles.Font(bold=True)
    book.save(tmp_path / "t.xlsx")
    rows = read(tmp_path / "t.xlsx")
    target = openpyxl.load_workbook(written(tmp_path / "t.xlsx", [("a",), ("b",)])).worksheets[0]

    assert [(row.line, row.columns) for row in rows] == [
        (6, {"id": b"1", "prompt": b'"first"'}),
        (9, {"id": b"null", "prompt": b'"second"'}),
    ]
    assert (target["E4"].value, target["E6"].value, target["E9"].value) == ("answer", "a", "b")
    assert (target["D4"].value, target["D9"].value) == ("prompt", "second")


@pytest.mark.parametrize(
    ("header", "message", "key"),
    [
        (["a", "b", "a"], "columns A and C are both named 'a'; rename one of them", "a"),
        (
            ["a", None, None, "b"],
            "no name for columns B, C in row 1, the header; name each column, or delete it",
            None,
        ),
        (
            ["a", " ", "b"],
            "no name for column B in row 1, the header; name each column, or delete it",
            None,
        ),
        ([" "], "row 1 should name the columns, but is blank; write a name in each column", None),
    ],
)
def test_columns_need_a_name_each(
    tmp_path: Path, header: list[Any], message: str, key: str | None
) -> None:
    """A value is found by its column's name, so there is one for each, and only one."""
    path = by_openpyxl(tmp_path / "t.xlsx", [header, ["x"] * len(header)])

    with pytest.raises(BadInput) as caught:
        read(path)

    error = caught.value
    assert (str(error), error.code, error.line, error.key) == (message, "bad_header", 1, key)


def test_any_value_can_be_a_name(tmp_path: Path) -> None:
    """Years, formulas' looks and blanks around names are names; empty columns at the end none."""
    path = by_openpyxl(tmp_path / "t.xlsx", [[2024, "=1+1", " prompt ", True, None], [1, 2, 3, 4]])
    target = written(path, [("a",)])

    assert list(read(path)[0].columns or ()) == ["2024", "=1+1", "prompt", "true"]
    assert list(read(target)[0].columns or ()) == ["2024", "=1+1", "prompt", "true", "answer"]
    assert {cell.data_type for cell in openpyxl.load_workbook(target).worksheets[0][1]} == {"s"}


def three_sheets(path: Path) -> Path:
    """Write a workbook with a chart, a hidden sheet and two others."""
    with xlsxwriter.Workbook(str(path)) as book:
        chart = book.add_chart({"type": "line"})
        front = book.add_chartsheet("Chart")
        hidden, first = book.add_worksheet("Hidden"), book.add_worksheet("Prompts & more")
        last = book.add_worksheet("Last")

        for sheet in (hidden, first, last):
            sheet.write_column(0, 0, ["prompt", sheet.name])

        chart.add_series({"values": "=Last!$A$1:$A$2"})
        front.set_chart(chart)
        first.activate()
        hidden.hide()

    return path


def test_a_sheet_is_chosen(tmp_path: Path) -> None:
    """The first sheet that people see, or the one they name; notes say which, and which not."""
    path = three_sheets(tmp_path / "t.xlsx")
    source = Dropped(path)

    assert values(list(read_xlsx(source, OPTIONS))) == ["Prompts & more"]
    assert source.notes == {"sheet": "Prompts & more", "other_sheets": "'Hidden', 'Last'"}
    assert values(read(path, sheet="last")) == ["Last"]
    assert values(read(path, sheet="Hidden")) == ["Hidden"]
    assert openpyxl.load_workbook(written(path, [("a",)])).sheetnames == ["Prompts & more"]

    with pytest.raises(BadInput, match="there is no sheet 'Lost'; there are 'Hidden', 'Prompts"):
        read(path, sheet="Lost")


def test_sheet_names_that_excel_forbids_are_changed(tmp_path: Path) -> None:
    """Other programs allow more in a name; the table of answers is one that Excel opens."""
    book = _BOOK.replace('"Data"', f"\"'a/b:{'😀' * 20}'\"")
    path = by_hand(tmp_path / "t.xlsx", HEADER, book=book)

    assert openpyxl.load_workbook(written(path, [])).sheetnames == ["a_b_" + "😀" * 13]


@pytest.mark.parametrize("length", [32_766, 32_767, 32_768, 40_000])
@pytest.mark.parametrize("character", ["a", "é", "😀", "a\x07"])
def test_a_text_too_long_for_a_cell_says_so(tmp_path: Path, length: int, character: str) -> None:
    """What Excel cannot hold ends with a note; what it can is whole. Emoji count for two."""
    text = (character * length)[:length]
    target = written(by_openpyxl(tmp_path / "t.xlsx", [["prompt"], ["a"]]), [(text,)])
    found = values(read(target), "answer")[0]
    is_cut = len(text.encode("utf-16-le")) // 2 > MAX_UNITS

    assert len(found.encode("utf-16-le")) // 2 <= MAX_UNITS
    assert found.endswith(CUT_NOTE) is is_cut
    assert text.startswith(found.removesuffix(CUT_NOTE))
    assert is_cut or found == text
    assert not is_cut or len(found.encode("utf-16-le")) // 2 >= MAX_UNITS - 1


def test_a_long_cell_is_read_whole(tmp_path: Path) -> None:
    """Other programs write longer cells; they are read, and cut with a note of their own."""
    path = by_hand(
        tmp_path / "t.xlsx", f'{HEADER}<row r="2"><c r="A2" t="str"><v>{"a" * 40_000}</v></c></row>'
    )

    assert values(read(path)) == ["a" * 40_000]
    assert "the whole is in the file that was read" in values(read(written(path, [("b",)])))[0]


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://example.org")', "\t=1", "{=1}"]


def test_no_text_is_a_formula_or_a_link(tmp_path: Path) -> None:
    """Answers that would run, or go somewhere when clicked, are text, and so are prompts."""
    links = ["http://example.org", "mailto:a@example.org", "internal:Sheet1!A1", "0042", "1e5"]
    answers = FORMULAS + links
    path = by_openpyxl(tmp_path / "t.xlsx", [["prompt"], *([text] for text in answers)])
    target = written(path, [(text,) for text in answers])
    sheet = openpyxl.load_workbook(target).worksheets[0]

    assert [[cell.value for cell in row] for row in sheet.iter_rows(min_row=2)] == [
        [text, text] for text in answers
    ]
    assert {cell.data_type for row in sheet.iter_rows() for cell in row} == {"s"}

    with zipfile.ZipFile(target) as archive:
        xml = archive.read("xl/worksheets/sheet1.xml").decode()
        assert not re.search("<f>|hyperlink", xml)
        assert not any("_rels/sheet" in name for name in archive.namelist())


def test_characters_that_xml_cannot_have_are_visible(tmp_path: Path) -> None:
    """Control characters are escaped as Excel does it, and those that none has are U+FFFD."""
    target = written(
        by_openpyxl(tmp_path / "t.xlsx", [["prompt"], ["a"]]), [("a\x00\x07\r\ufffe\uffff",)]
    )

    assert values(read(target), "answer") == ["a\x00\x07\r\ufffd\ufffd"]
    assert openpyxl.load_workbook(target).worksheets[0]["B2"].value == (
        "a_x0000__x0007__x000D_\ufffd\ufffd"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<r>\x07\r\n\ra</r>", "<r>\ufffd\n\na</r>"),
        ("<r><t>taken</t></r>", "<r><t>taken</t></r>"),
        ("_x0041\x07", "_x0041\ufffd"),
        ("<r>", "<r>"),
        ("</r>", "</r>"),
    ],
)
def test_no_text_is_taken_for_xml(tmp_path: Path, text: str, expected: str) -> None:
    """A text that looks like what the library writes itself is still that text."""
    target = written(by_openpyxl(tmp_path / "t.xlsx", [["prompt"], ["a"]]), [(text,)])

    assert values(read(target), "answer") == [expected]
    assert openpyxl.load_workbook(target).worksheets[0]["B2"].value == expected


def test_numbers_that_a_sheet_would_change_are_text(tmp_path: Path) -> None:
    """A spreadsheet keeps 15 digits, so a whole number with more of them is no number there."""
    added = [Added("n", "integer")]
    found = written(
        by_openpyxl(tmp_path / "t.xlsx", [["prompt"], *[["a"]] * 3]),
        [(10**15 - 1,), (10**15,), (-(10**18) - 1,)],
        added,
    )

    assert values(read(found), "n") == [10**15 - 1, "1000000000000000", "-1000000000000000001"]


def test_added_names_do_not_meet_those_there_are(tmp_path: Path) -> None:
    """A column that is called as an added one keeps its name and its values."""
    path = by_openpyxl(tmp_path / "t.xlsx", [["Answer"], ["mine"]])

    assert read(written(path, [("theirs",)]))[0].columns == {
        "Answer": b'"mine"',
        "answer_2": b'"theirs"',
    }


@pytest.mark.parametrize("cells", [[], [("a",)], [("a",)] * 3, [("a", "b")] * 2])
def test_cells_that_do_not_match_the_rows_are_a_bug(
    tmp_path: Path, cells: list[tuple[str, ...]]
) -> None:
    """Answers are never set beside other rows than their own, and nothing is left behind."""
    path = by_openpyxl(tmp_path / "t.xlsx", [["prompt"], ["a"], ["b"]])

    with pytest.raises(BadInput, match="other rows"):
        written(path, cells)

    assert [entry.name for entry in tmp_path.iterdir()] == ["t.xlsx"]


def test_a_sheet_without_room_is_refused(tmp_path: Path) -> None:
    """Excel ends with column XFD; nothing is written beyond it and lost."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet["XFC1"], sheet["XFC2"] = "prompt", "a"
    book.save(tmp_path / "t.xlsx")

    assert values(read(written(tmp_path / "t.xlsx", [("b",)])), "answer") == ["b"]

    with pytest.raises(BadInput, match="no room for 2 more columns"):
        written(tmp_path / "t.xlsx", [("b", "c")], [*ANSWER, Added("error", "text")])


def test_merged_cells_have_one_value(tmp_path: Path) -> None:
    """The first of merged cells has the value, the others are empty."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None

    for row in [["id", "prompt"], ["both", None], ["c", "d"]]:
        sheet.append(row)

    sheet.merge_cells("A2:B2")
    book.save(tmp_path / "t.xlsx")

    assert [row.columns for row in read(tmp_path / "t.xlsx")] == [
        {"id": b'"both"', "prompt": b"null"},
        {"id": b'"c"', "prompt": b'"d"'},
    ]


def test_prefixes_and_encodings_are_free(tmp_path: Path) -> None:
    """XML may name its elements with a prefix and be in UTF-16; some programs do both."""
    sheet = (
        '<?xml version="1.0" encoding="UTF-16"?><x:worksheet xmlns:x="m"><x:sheetData><x:row>'
        '<x:c t="inlineStr"><x:is><x:t>prompt</x:t></x:is></x:c></x:row><x:row><x:c t="s">'
        "<x:v>0</x:v></x:c></x:row></x:sheetData></x:worksheet>"
    ).encode("utf-16")
    path = by_hand(tmp_path / "t.xlsx", "", texts="<q:si><q:t>é</q:t></q:si>", sheet=sheet)

    assert values(read(path)) == ["é"]


def test_a_row_that_is_too_long_is_a_fault(tmp_path: Path) -> None:
    """Its neighbours are rows; it is not held, even where its cells share one long text."""
    shared = f"<si><t>{'a' * 900}</t></si><si><t>{'b' * 5_000}</t></si>"
    cells = "".join('<c t="s"><v>0</v></c>' for _ in range(16_000))
    rows = (
        f'{HEADER}<row r="2"><c t="s"><v>0</v></c></row><row r="3">{cells}</row>'
        f'<row r="4"><c t="s"><v>1</v></c></row>'
        f'<row r="5"><c t="str"><v>{"c" * 5_000}</v></c></row>'
        f'<row r="6"><c t="s"><v>0</v></c></row>'
    )
    path = by_hand(tmp_path / "t.xlsx", rows, texts=shared)
    long = "the row is longer than 1,000 bytes; shorten it"

    assert values(read(path, max_row_bytes=1_000)) == ["a" * 900, long, long, long, "a" * 900]


def ole(path: Path, name: str) -> Path:
    """Write the beginning of an old compound file with an entry called *name*."""
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    path.write_bytes(head + bytes(1_016) + name.encode("utf-16-le") + bytes(512))

    return path


def zipped(path: Path, **parts: str) -> Path:
    """Write a zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)

    return path


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (lambda path: path.touch() or path, "the file is empty"),
        (lambda path: ole(path, "EncryptedPackage"), "locked with a password; save it without"),
        (lambda path: ole(path, "Workbook"), r"of the older format \.xls; save it as \.xlsx"),
        (lambda path: zipped(path, mimetype="opendocument"), "no workbook of Excel"),
        (
            lambda path: by_hand(path, "", top=_TOP.replace("workbook.xml", "workbook.bin")),
            r"binary \(\.xlsb\)",
        ),
        (
            lambda path: by_hand(path, "", book="<workbook><sheets/></workbook>"),
            "the workbook has no sheet with cells",
        ),
        (lambda path: by_hand(path, ""), "the sheet 'Data' is empty"),
        (lambda path: by_openpyxl(path, [[None]]), "the sheet 'Sheet' is empty"),
        (
            lambda path: by_hand(path, "", sheet='<!DOCTYPE a [<!ENTITY b "c">]><worksheet/>'),
            "declares a document type",
        ),
        (lambda path: by_hand(path, "<row"), "sheet1.xml cannot be read"),
        (lambda path: by_hand(path, '<row r="2"/><row r="1"/>'), "row 1 comes after row 2"),
        (lambda path: by_hand(path, '<row r="99999999"/>'), "row 99999999 comes after row 0"),
        (lambda path: by_hand(path, '<row r="x"/>'), "row x comes after row 0"),
        (
            lambda path: by_hand(path, '<row><c r="ZZZ1"/></row>'),
            "a cell of row 1 is called 'ZZZ1'",
        ),
        (lambda path: by_hand(path, f'<row a="{"x" * 3_000_000}"/>'), "a tag of more than"),
        (lambda path: by_hand(path, f"<row>{'<c/>' * 16_385}</row>"), "a cell of row 1 is called"),
        (
            lambda path: by_hand(path, "", sheet='<?xml version="1.0" encoding="klingon"?><a/>'),
            "cannot be read",
        ),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, store: Any, message: str) -> None:
    """Each thing that is no sheet with a header is refused with what it is and what to do."""
    with pytest.raises(BadInput, match=message) as caught:
        read(store(tmp_path / "t.xlsx"))

    assert caught.value.code in {
        *("empty_file", "locked", "wrong_format", "no_sheet", "broken_file"),
    }


def test_entities_do_not_expand(tmp_path: Path) -> None:
    """A document that would grow a billion times is refused at its first line."""
    bomb = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><worksheet>&c;</worksheet>'

    with pytest.raises(BadInput, match="declares a document type"):
        read(by_hand(tmp_path / "t.xlsx", "", sheet=bomb))


def outcomes(folder: Path, seed: int) -> dict[str, int]:
    """Damage a workbook in many ways, read each, and count what comes of it."""
    rows: list[list[Any]] = [
        ["id", "prompt", "when"],
        *([n, f"text {n}", dt.date(2024, 1, 1)] for n in range(50)),
    ]
    wholes = [store(folder / "whole.xlsx", rows).read_bytes() for store in WRITERS]
    chance = random.Random(seed)  # noqa: S311 (nothing is kept secret)
    counts = {"read": 0, "refused": 0}

    for number in range(300):
        path = folder / "damaged.xlsx"
        damage(path, bytearray(wholes[number % 2]), chance)

        try:
            read(path)
        except BadInput:
            counts["refused"] += 1
        else:
            counts["read"] += 1

    return counts


def damage(path: Path, data: bytearray, chance: random.Random) -> None:
    """Write a workbook cut off, with bits turned over, or with a part of it so."""
    kind = chance.randrange(3)

    if kind == 0:
        path.write_bytes(data[: chance.randrange(len(data))])
        return

    path.write_bytes(data)

    if kind == 1:
        flip(data, chance)
        path.write_bytes(data)
        return

    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}

    name = chance.choice(sorted(parts))
    part = bytearray(parts[name])
    flip(part, chance)

    with zipfile.ZipFile(path, "w") as archive:
        for one, content in (parts | {name: bytes(part)}).items():
            archive.writestr(one, content)


def flip(data: bytearray, chance: random.Random) -> None:
    """Turn over a few bits."""
    for _ in range(chance.choice((1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    """Whatever is cut off or turned over, nothing but `BadInput` is raised."""
    counts = outcomes(tmp_path, seed)

    assert sum(counts.values()) == 300
    assert counts["refused"] >= 100


def use(path: Path) -> int:
    """Read a sheet, write it with answers, and return the most memory that took, in bytes."""
    count = sum(1 for _ in read_xlsx(Dropped(path), OPTIONS))
    write_xlsx(
        Dropped(path),
        OPTIONS,
        path.with_name("r.xlsx"),
        ANSWER,
        (("an answer",) for _ in range(count)),
    )
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()

    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_memory_does_not_grow_with_the_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the rows are read and written in the same memory, shared texts or not."""
    monkeypatch.setenv("PYTHONPATH", PLACES)
    peaks = []

    for count in (2_000, 20_000):
        shared = "".join(f"<si><t>{n} {'text ' * 100}</t></si>" for n in range(count))
        rows = "".join(
            f'<row><c t="s"><v>{n}</v></c><c t="str"><v>{n} {"prompt " * 100}</v></c></row>'
            for n in range(count)
        )
        header = '<row><c t="str"><v>a</v></c><c t="str"><v>b</v></c></row>'
        path = by_hand(tmp_path / f"{count}.xlsx", header + rows, texts=shared)
        peaks.append(run(use, path))

    assert peaks[1] - peaks[0] < 4 << 20


def test_a_sheet_of_nothing_costs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 MB of blanks in 300 kB, or cells at the far corners, are read in a few megabytes."""
    monkeypatch.setenv("PYTHONPATH", PLACES)
    path = tmp_path / "t.xlsx"
    corner = '<row r="1048576"><c r="A1048576" t="str"><v>last</v></c><c r="XFD1048576"/></row>'
    by_hand(path, HEADER + " " * 300_000_000 + corner)

    assert run(use, path) < 100 << 20
    assert [row.line for row in read(path.with_name("r.xlsx"))] == [1_048_576]


def test_the_daemon_does_not_load_xlsxwriter() -> None:
    """Importing the reader and the writer loads no library of theirs."""
    code = (
        "import sys, promptspool.intake.formats.spreadsheet;"
        "sys.exit(bool({'xlsxwriter', 'openpyxl', 'python_calamine'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603 (our own command)
