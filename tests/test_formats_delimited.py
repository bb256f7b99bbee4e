from __future__ import annotations

import csv
import io
import tracemalloc
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats.delimited import read_delimited, write_delimited
from promptspool.intake.rows import Added, ReadOptions, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from promptspool.intake.rows import Cell

PLENTY = 50_000_000

ANSWER = Added("answer", "text")
TOKENS = Added("tokens", "integer")

Read = tuple[int, dict[str, str] | str]


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


def dropped(folder: Path, data: bytes, name: str = "table.csv") -> Dropped:
    """Drop a file that holds *data*."""
    path = folder / name
    path.write_bytes(data)

    return Dropped(name, path)


def options(
    *, max_row_bytes: int = PLENTY, encoding: str | None = None, delimiter: str | None = None
) -> ReadOptions:
    """Return what a profile says."""
    return ReadOptions(max_row_bytes=max_row_bytes, encoding=encoding, delimiter=delimiter)


def read(source: Dropped, how: ReadOptions | None = None) -> list[Read]:
    """Return line and values of each row, or the code of its fault."""
    rows: list[Read] = []

    for row in spread(read_delimited(source, how or options())):
        if row.columns is None:
            assert row.fault is not None
            assert row.fault.line == row.line
            rows.append((row.line, row.fault.code))
        else:
            assert row.fault is None
            values = {name: msgspec.json.decode(raw) for name, raw in row.columns.items()}
            rows.append((row.line, values))

    return rows


def refusal(source: Dropped, how: ReadOptions | None = None) -> BadInput:
    """Return why a whole file cannot be used."""
    with pytest.raises(BadInput) as caught:
        read(source, how)

    return caught.value


def written(
    source: Dropped,
    cells: Iterable[Sequence[Cell]],
    added: Sequence[Added] = (ANSWER,),
    how: ReadOptions | None = None,
) -> bytes:
    """Return the bytes of the table with columns added."""
    path = source.file.with_name("written")
    write_delimited(source, how or options(), path, added, iter(cells))

    return path.read_bytes()


def test_values_are_text_and_lines_are_where_rows_begin(tmp_path: Path) -> None:
    """Every value is a JSON string; a row's line is the one it begins in, blank lines counted."""
    data = b'\n \r\nid, prompt \n1,"two\nlines"\n\n007,"say ""hi"""\n,\n'

    assert read(dropped(tmp_path, data)) == [
        (4, {"id": "1", "prompt": "two\nlines"}),
        (7, {"id": "007", "prompt": 'say "hi"'}),
        (8, {"id": "", "prompt": ""}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_as_systems_end_them(tmp_path: Path, end: str, *, last: bool) -> None:
    """All three ends of lines do, the last may be missing, and quoted ends count as lines."""
    text = end.join(["a,b", "1,x", f'2,"y{end}{end}z"', "3,w"]) + (end if last else "")

    assert read(dropped(tmp_path, text.encode())) == [
        (2, {"a": "1", "b": "x"}),
        (3, {"a": "2", "b": f"y{end}{end}z"}),
        (6, {"a": "3", "b": "w"}),
    ]


def test_only_line_ends_end_lines(tmp_path: Path) -> None:
    """Separators of Unicode and old control characters are text."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"

    assert read(dropped(tmp_path, f"id,prompt\n1,{text}\n".encode())) == [
        (2, {"id": "1", "prompt": text})
    ]


@pytest.mark.parametrize("data", [b"", b"\n\r\n  \n", b"id,prompt\n", b"\xef\xbb\xbf", b"sep=;\n"])
def test_a_table_may_have_no_rows(tmp_path: Path, data: bytes) -> None:
    """An empty file has no rows, and neither has one that is only a header."""
    assert read(dropped(tmp_path, data)) == []


@pytest.mark.parametrize(
    ("name", "data", "note"),
    [
        ("t.csv", "id,prompt\n1,a;b|c\td\n", None),
        ("t.csv", "id;prompt\n1;3,14\n", ";"),
        ("t.csv", "id\tprompt\n1\ta,b\n", "tab"),
        ("t.CSV", "id|prompt\n1|a,b\n", "|"),
        ("t.csv", '"id, as given";prompt\n1;a\n2;b\n', ";"),
        ("t.csv", "id;prompt, long\n1;a\n2;b\n", ";"),
        ("t.tsv", "id\tprompt\n1\ta,b\n", None),
        ("t.tsv", "id\tthe,prompt\n1\ta,b\n", None),
        ("t.TSV", "id,prompt\n1,a\n", ","),
        ("t.csv", "prompt\nhello\n", None),
        ("t.csv", "sep=;\r\nid;prompt\r\n1;a,b\r\n", ";"),
        ("t.csv", '"SEP=|"\na;b|prompt\n1|a;b\n', "|"),
    ],
)
def test_the_delimiter_is_found(tmp_path: Path, name: str, data: str, note: str | None) -> None:
    """The delimiter is what cuts the header and the rows alike; the unusual one is told."""
    source = dropped(tmp_path, data.encode(), name)
    rows = read(source)

    assert all(isinstance(row, dict) for _, row in rows)
    assert {len(row) for _, row in rows} == ({1} if "hello" in data else {2})
    assert source.notes.get("delimiter") == note


def test_a_set_delimiter_holds(tmp_path: Path) -> None:
    """What the profile sets is not looked for, and a delimiter that is none is its fault."""
    source = dropped(tmp_path, b"a,b~c\n1,2~3\n")

    assert read(source, options(delimiter="~")) == [(2, {"a,b": "1,2", "c": "3"})]
    assert refusal(source, options(delimiter='"')).code == "bad_profile"
    assert refusal(source, options(delimiter=", ")).code == "bad_profile"


def test_quotes_may_follow_a_blank_where_they_do_from_the_start(tmp_path: Path) -> None:
    """Blanks after delimiters are layout if values in quotes come after them."""
    source = dropped(tmp_path, b'id, prompt\n1, "a, b\nc"\n')

    assert read(source) == [(2, {"id": "1", "prompt": "a, b\nc"})]
    assert written(source, [["yes"]]) == b'id, prompt,answer\n1, "a, b\nc",yes\n'


def test_quoted_text_may_begin_with_a_blank_and_a_quote(tmp_path: Path) -> None:
    """Within quotes, a blank and a quote are text, wherever they come."""
    data = b'id,prompt\n1," ""hi"""\n"2, ""x"," ""hi"""\n3,5" pipe\n'

    assert read(dropped(tmp_path, data)) == [
        (2, {"id": "1", "prompt": ' "hi"'}),
        (3, {"id": '2, "x', "prompt": ' "hi"'}),
        (4, {"id": "3", "prompt": '5" pipe'}),
    ]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("id,prompt,id", "columns 1 and 3 are both named 'id'; rename one of them"),
        ("id, id ,prompt", "columns 1 and 2 are both named 'id'; rename one of them"),
        ("id,,prompt", "column 2 of the header has no name; write one name for each column"),
        ("id,  ,prompt", "column 2 of the header has no name; write one name for each column"),
        (",,", "the header is empty; write the names of the columns in the first line"),
        ('""', "the header is empty; write the names of the columns in the first line"),
        (
            "id,a\0b",
            "column 2 of the header has a zero byte in its name; write one name for each column",
        ),
    ],
)
def test_a_header_names_each_column_once(tmp_path: Path, header: str, reason: str) -> None:
    """A name that is missing or there twice is told by its place, and nothing is read."""
    error = refusal(dropped(tmp_path, f"\n{header}\n1,2,3\n".encode()))

    assert (str(error), error.code, error.line) == (reason, "bad_header", 2)


def test_columns_without_name_at_the_end_hold_nothing(tmp_path: Path) -> None:
    """What spreadsheets leave at the end is dropped, unless a value would go with it."""
    source = dropped(tmp_path, b"id,prompt,,\n1,a,,\n2,b\n3,c,,x\n4,d,,,\n5\n")

    assert read(source) == [
        (2, {"id": "1", "prompt": "a"}),
        (3, {"id": "2", "prompt": "b"}),
        (4, "wrong_field_count"),
        (5, "wrong_field_count"),
        (6, "wrong_field_count"),
    ]
    assert written(source, [["A"]] * 5) == (
        b"id,prompt,,,answer\n1,a,,,A\n2,b,,,A\n3,c,,x,A\n4,d,,,A\n5,,,,A\n"
    )


def test_another_number_of_fields_is_a_fault_of_the_row(tmp_path: Path) -> None:
    """A short or long row is told with both numbers and the usual cause; the others stand."""
    source = dropped(tmp_path, b"id,prompt\n1,a,b\n2\n3,c\n4,d,\n")
    faults = [row.fault for row in spread(read_delimited(source, options()))]

    assert [fault and fault.code for fault in faults] == [
        "wrong_field_count",
        "wrong_field_count",
        None,
        "wrong_field_count",
    ]
    assert str(faults[0]) == (
        "found 3 fields where the header has 2; usually a value has a ',' or a quote in it: "
        'put it in double quotes, and write its own quotes twice, as ""'
    )


def test_a_zero_byte_is_a_fault_of_its_row(tmp_path: Path) -> None:
    """A zero byte is no text, whatever the version of Python makes of it."""
    assert read(dropped(tmp_path, b"id,prompt\n1,a\0b\n2,c\n")) == [
        (2, "zero_byte"),
        (3, {"id": "2", "prompt": "c"}),
    ]


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        ('id,prompt\n1,"a\n2,b\n', 2, "begins in line 2 opens a quote that is never closed"),
        ('id,prompt\n1,a\n\n2,"', 4, "begins in line 4 opens a quote that is never closed"),
        (
            'id,prompt\n1,"a\n2,"b"\n3,c\n',
            2,
            "begins in line 2 has text after a closing quote in line 3, so what follows",
        ),
        (
            'id,prompt\n1,"say "hi" to\nme, please",x\n',
            2,
            "begins in line 2 has text after a closing quote in line 2, so what follows",
        ),
        ('id,prompt\n1,"say \\"hi\\""\n', 2, r'twice, as "", not \"'),
        ('id,"prompt\n1,a\n', 1, "begins in line 1 opens a quote that is never closed"),
    ],
)
def test_quotes_that_do_not_match_refuse_the_file(
    tmp_path: Path, data: str, line: int, reason: str
) -> None:
    """What follows such a quote cannot be read, so the file is refused with the row's line."""
    error = refusal(dropped(tmp_path, data.encode()))

    assert reason in str(error)
    assert (error.code, error.line) == ("broken_quotes", line)


def test_a_late_blank_before_an_open_quote_refuses_the_file(tmp_path: Path) -> None:
    """A quote after a blank is text; if it was to hold a line end, the next rows would be wrong."""
    data = "id,prompt\n" + "1,a\n" * 60 + '2, "b\nc, d"\n'
    error = refusal(dropped(tmp_path, data.encode()))

    assert (error.code, error.line) == ("broken_quotes", 62)
    assert "a blank comes before the quote" in str(error)


def test_a_value_of_megabytes_is_read(tmp_path: Path) -> None:
    """A field is as long as a row may be, in one line or in many."""
    long, lines = "x" * 3_000_000, "line\n" * 600_000
    source = dropped(tmp_path, f'id,prompt\n1,{long}\n2,"{lines}"\n3,y\n'.encode())

    assert read(source) == [
        (2, {"id": "1", "prompt": long}),
        (3, {"id": "2", "prompt": lines}),
        (600_004, {"id": "3", "prompt": "y"}),
    ]


@pytest.mark.parametrize("char", ["x", "é", "😀"])
def test_a_row_has_its_most_bytes(tmp_path: Path, char: str) -> None:
    """A row of exactly the limit is read, one byte more refuses the file."""
    size = len(f"1,{char * 20}".encode())
    source = dropped(tmp_path, f"a,b\n1,{char * 20}\r\n2,z\r\n".encode())

    assert len(read(source, options(max_row_bytes=size))) == 2

    error = refusal(source, options(max_row_bytes=size - 1))
    assert (error.code, error.line) == ("row_too_long", 2)


def test_an_open_quote_does_not_take_the_file_into_memory(tmp_path: Path) -> None:
    """A quote that is never closed is found at the limit of a row, not at the end of the file."""
    source = dropped(tmp_path, b'a,b\n1,"x\n' + b"some text\n" * 2_000_000)
    tracemalloc.start()
    error = refusal(source, options(max_row_bytes=100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert "the row that begins in line 2 is longer than 100,000 bytes; if a quote" in str(error)
    assert (error.code, error.line) == ("row_too_long", 2)
    assert peak < 3_000_000


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """200,000 rows are read and written in the memory of a few."""
    source = dropped(tmp_path, b"id,prompt\n" + b'1,"some text, to be read"\n' * 200_000)
    tracemalloc.start()
    count = sum(row.columns is not None for row in spread(read_delimited(source, options())))
    cells = (["an answer"] for _ in range(count))
    write_delimited(source, options(), tmp_path / "out.csv", [ANSWER], cells)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 200_000
    assert peak < 4_000_000


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "id,prompt\n1,Zürich 😀\n"),
        ("utf-8-sig", "id,prompt\n1,Zürich 😀\n"),
        ("utf-16", "id,prompt\r\n1,Zürich 😀\r\n"),
        ("utf-16-le", "id,prompt\n1,Zürich 😀\n"),
        ("utf-16-be", "id,prompt\n1,Zürich 😀\n"),
        ("utf-32", "id,prompt\n1,Zürich 😀\n"),
        ("cp1252", 'id;prompt\n1;"Für Äpfel, Öl und Grüße aus Köln"\n' * 1),
    ],
)
def test_a_table_keeps_its_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    """What is written is the original's bytes, mark included, and the added columns in its code."""
    data = text.encode(encoding)
    source = dropped(tmp_path, data)
    body = text.splitlines()[1][2:].strip('"')
    delimiter, end = (";" if ";" in text else ","), "\r\n" if "\r" in text else "\n"

    assert [row["prompt"] for _, row in read(source) if isinstance(row, dict)] == [body]

    names, values = text.splitlines()
    expected = f"{names}{delimiter}answer{end}{values}{delimiter}größer{end}"
    assert written(source, [["größer"]]) == expected.encode(encoding)


def test_a_character_that_does_not_fit_makes_all_of_it_utf8(tmp_path: Path) -> None:
    """What an encoding cannot hold is not lost: rows before and after it become UTF-8 too."""
    rows = "".join(f"{number};Grüße aus Köln für alle\r\n" for number in range(3))
    source = dropped(tmp_path, f"id;prompt\r\n{rows}".encode("cp1252"))
    output = written(source, [["schön"], ["gut 😀"], ["süß"]])

    assert output.startswith(b"\xef\xbb\xbf")
    assert output.decode("utf-8-sig") == (
        "id;prompt;answer\r\n"
        "0;Grüße aus Köln für alle;schön\r\n"
        "1;Grüße aus Köln für alle;gut 😀\r\n"
        "2;Grüße aus Köln für alle;süß\r\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "written"]


def test_a_set_encoding_that_does_not_fit_is_told_by_line(tmp_path: Path) -> None:
    """A byte that a set encoding does not have refuses the file, wherever it is."""
    data = b"id,prompt\n" + b"1,a\n" * 30_000 + b"2,\x81\n"
    error = refusal(dropped(tmp_path, data), options(encoding="cp1252"))

    assert (error.code, error.line) == ("wrong_encoding", 30_002)
    assert f"line 30002 has the byte 0x81 at offset {len(data) - 2}" in str(error)


def test_records_are_written_as_they_were(tmp_path: Path) -> None:
    """Quoting, blanks and ends of the original stay; only blank lines go."""
    data = b'sep=;\r\n\r\nid;"prompt"\r\n\r\n1;"a ""b"""\r\n "2";" c\nd"'
    source = dropped(tmp_path, data)

    assert [line for line, _ in read(source)] == [5, 6]
    assert written(source, [["x;y", 5], [None, None]], [ANSWER, TOKENS]) == (
        b'sep=;\r\nid;"prompt";answer;tokens\r\n1;"a ""b""";"x;y";5\r\n "2";" c\nd";;\r\n'
    )


def test_all_is_quoted_where_all_was(tmp_path: Path) -> None:
    """If every field of the original is in quotes, every added one is."""
    source = dropped(tmp_path, b'"id","prompt"\n"1","a"\n')

    assert written(source, [["x", None]], [ANSWER, TOKENS]) == (
        b'"id","prompt","answer","tokens"\n"1","a","x",""\n'
    )


def test_added_names_are_free(tmp_path: Path) -> None:
    """A column that the table has keeps its name, and the added one gets another."""
    source = dropped(tmp_path, b"Answer,prompt\n1,a\n")

    assert written(source, [["x"]]) == b"Answer,prompt,answer_2\n1,a,x\n"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-5, "-5"),
        (0.25, "0.25"),
        ("-5", "-5"),
        ("+3.2e1", "+3.2e1"),
        ("-.5", "-.5"),
        ("plain = text", "plain = text"),
        ("=1+1", "'=1+1"),
        ("  =1+1", "'  =1+1"),
        ("\n=1+1", "'\n=1+1"),
        ("+49 30 1234", "'+49 30 1234"),
        ("-2+3", "'-2+3"),
        ("-5\n", "'-5\n"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        (" \rx", "' \rx"),
        ("＝1+1", "'＝1+1"),  # noqa: RUF001 (the wide form is what is tested)
        ("\u3000＠x", "'\u3000＠x"),  # noqa: RUF001 (the wide form is what is tested)
    ],
)
def test_no_cell_runs_as_a_formula(tmp_path: Path, cell: Cell, text: str) -> None:
    """What a spreadsheet would run is kept as text by an apostrophe; numbers stay numbers."""
    output = written(dropped(tmp_path, b"prompt\n=1+1\n"), [[cell]])

    assert list(csv.reader(io.StringIO(output.decode(), newline=""))) == [
        ["prompt", "answer"],
        ["=1+1", text],
    ]


def test_no_name_runs_as_a_formula(tmp_path: Path) -> None:
    """The name of an added column comes from others too."""
    output = written(dropped(tmp_path, b"prompt\na\n"), [["x"]], [Added("=cmd()", "text")])

    assert output == b"prompt,'=cmd()\na,x\n"


@pytest.mark.parametrize("cells", [[], [["x"]], [["x"], ["y"], ["z"]], [["x"], ["y", "z"]]])
def test_cells_that_are_not_the_rows_are_a_bug(tmp_path: Path, cells: list[list[str]]) -> None:
    """Answers are never written beside another row's prompt."""
    with pytest.raises(BadInput, match="other rows"):
        written(dropped(tmp_path, b"id,prompt\n1,a\n2\n"), cells)


def test_half_a_surrogate_pair_is_written_as_its_number(tmp_path: Path) -> None:
    """What is no character in any encoding is spelled out, and the file keeps its encoding."""
    assert written(dropped(tmp_path, b"prompt\na\n"), [["\ud800"]]) == b"prompt,answer\na,\\ud800\n"


names = st.text(alphabet="abcXYZ_é", min_size=1, max_size=6)
values = st.text(
    alphabet=st.one_of(
        st.sampled_from("a,;|\t\"' \r\n=\u2028\x85é€"), st.characters(exclude_categories=["Cs"])
    ),
    max_size=12,
).filter(lambda text: "\0" not in text)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """Return a header and rows as long as it."""
    width = draw(st.integers(1, 4))
    header = draw(st.lists(names, min_size=width, max_size=width, unique=True))
    rows = draw(st.lists(st.lists(values, min_size=width, max_size=width), max_size=6))

    # A lone blank is a blank line; and one column does not tell its delimiter.
    assume(width > 1 or all(row[0].strip(" \t\r\n") or not row[0] for row in rows))

    return [header, *rows]


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    table=tables(),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"]),
    answers=st.lists(values, min_size=6, max_size=6),
)
def test_what_the_csv_module_writes_is_read_and_written(  # noqa: PLR0913 (what there is to vary)
    tmp_path: Path,
    *,
    table: list[list[str]],
    delimiter: str,
    quoting: int,
    end: str,
    encoding: str,
    answers: list[str],
) -> None:
    """A table in any supported dialect reads as it was, and is written with answers beside it."""
    # The module of some versions leaves an end of line that is not its own without quotes.
    strange = {"\n": "\r", "\r": "\n"}.get(end, "") if quoting != csv.QUOTE_ALL else ""
    table = [[value.replace(strange, "") if strange else value for value in row] for row in table]
    text = io.StringIO(newline="")
    dialect = {"delimiter": delimiter, "quoting": quoting, "lineterminator": end}
    csv.writer(text, **dialect).writerows(table)  # type: ignore[arg-type] # a dict of all three
    source = dropped(tmp_path, text.getvalue().encode(encoding))
    how = options(encoding="utf-16-be" if encoding == "utf-16-be" else None, delimiter=delimiter)
    header, *rows = table

    assert [row for _, row in read(source, how)] == [
        dict(zip(header, row, strict=True)) for row in rows
    ]

    output = written(source, [[answer] for answer in answers[: len(rows)]], how=how)
    lines = csv.reader(
        io.StringIO(output.decode(encoding), newline=""), delimiter=delimiter, strict=True
    )
    again = [line for line in lines if line]

    assert [line[:-1] for line in again] == table
    assert [line[-1] for line in again[1:]] == [
        answer if line[-1] == answer else "'" + answer
        for answer, line in zip(answers, again[1:], strict=False)
    ]


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='ab,;|\t" \r\n\0é\ufeff=', max_size=120).map(str.encode),
        st.text(alphabet='ab,;" \r\né', max_size=60).map(lambda text: text.encode("utf-16")),
    ),
    encoding=st.sampled_from([None, "utf-8", "cp1252", "utf-16", "gb18030", "iso2022_jp"]),
    max_row_bytes=st.sampled_from([5, 40, PLENTY]),
)
def test_any_bytes_are_rows_or_a_reason(
    tmp_path: Path, data: bytes, encoding: str | None, max_row_bytes: int
) -> None:
    """Whatever is dropped is read or refused with a reason, and what is read can be written."""
    source = dropped(tmp_path, data)
    how = options(encoding=encoding, max_row_bytes=max_row_bytes)

    try:
        rows = read(source, how)
    except BadInput:
        return

    assert written(source, [["x"]] * len(rows), how=how).count(b"x") >= len(rows)
