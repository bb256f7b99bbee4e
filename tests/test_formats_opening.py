from __future__ import annotations

import gzip
import io
import random
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import xlsxwriter  # type: ignore[import-untyped] # it has no types
from hypothesis import example, given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats import FORMATS, SUFFIXES, Caps, is_heavy, opened
from promptspool.intake.formats.recognition import kind_of
from promptspool.intake.rows import ReadOptions, Row, spread

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CAPS = Caps(max_expanded=1 << 28, max_ratio=200)
PLENTY = ReadOptions(max_row_bytes=1_000_000)

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
}

OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
KNOWN = (
    ".jsonl, .ndjson, .json, .csv, .tsv, .tab, .xlsx, .parquet, .arrow, .feather, .txt, .md, "
    ".markdown, .zip, and each of them with .gz or .zst behind it"
)


def zipped(*names: str) -> bytes:
    """Return an archive with short files of these names."""
    file = io.BytesIO()

    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "text")

    return file.getvalue()


def workbook() -> bytes:
    """Return a workbook of one row."""
    file = io.BytesIO()

    with xlsxwriter.Workbook(file) as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, ["prompt", "n"])
        sheet.write_row(1, 0, ["hi", 1])

    return file.getvalue()


def columnar(name: str) -> bytes:
    """Return a table of one row, as parquet, feather or an arrow stream."""
    table = pa.table({"prompt": ["hi"], "n": ["1"]})
    file = io.BytesIO()

    match name:
        case "parquet":
            pyarrow.parquet.write_table(table, file)
        case "feather":
            pyarrow.feather.write_feather(table, file)
        case _:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)

    return file.getvalue()


CONTENTS: dict[str, bytes] = {
    ".jsonl": b'{"prompt": "hi"}\n{"prompt": "ho"}\n',
    ".ndjson": b'"hi"\n',
    ".json": b'{"data": [{"prompt": "hi"}, "ho"]}',
    ".csv": b"prompt,n\nhi,1\n",
    ".tsv": b"prompt\tn\nhi\t1\n",
    ".tab": b"prompt\tn\nhi\t1\n",
    ".txt": b"hi\nho\n",
    ".md": b"# hi\n\nho\n",
    ".markdown": b"# hi\n\nho\n",
    ".zip": zipped("a.txt", "b/c.md"),
    ".xlsx": workbook(),
    ".parquet": columnar("parquet"),
    ".arrow": columnar("stream"),
    ".feather": columnar("feather"),
}


class Dropping:
    """Drops one file after another."""

    def __init__(self, folder: Path) -> None:
        """Drop them in *folder*."""
        self.path = folder / "original"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()

    def rows(self, name: str, data: bytes, *, caps: Caps = CAPS) -> list[Row]:
        """Return the rows of a dropped file, and see that nothing of it is left behind."""
        self.path.write_bytes(data)

        try:
            with opened(self.path, name, caps=caps, scratch=self.scratch) as found:
                return list(spread(found.format.read(found.source, PLENTY)))
        finally:
            assert list(self.scratch.iterdir()) == []

    def refusal(self, name: str, data: bytes) -> tuple[str, str]:
        """Return code and reason of the complaint about a dropped file."""
        with pytest.raises(BadInput) as caught:
            self.rows(name, data)

        return caught.value.code, caught.value.reason


@pytest.fixture
def dropping(tmp_path: Path) -> Dropping:
    """Give a place to drop files."""
    return Dropping(tmp_path)


@pytest.mark.parametrize("packing", [*PACK])
@pytest.mark.parametrize("suffix", [*SUFFIXES])
def test_every_format_is_read_in_every_wrapping(
    dropping: Dropping, suffix: str, packing: str
) -> None:
    """Its name may be in capitals; the first prompt is the same in all of them."""
    for name in (f"may{suffix}{packing}", f"MAY.{suffix}{packing}".upper()):
        rows = dropping.rows(name, PACK[packing](CONTENTS[suffix]))

        assert rows[0].columns is not None
        assert rows[0].columns["prompt"] in (b'"hi"', b'"# hi\\n\\nho"', b'"text"')


def test_every_format_has_its_suffixes() -> None:
    """No two share one, and each is in lower case with its dot."""
    listed = [suffix for one in FORMATS.values() for suffix in one.suffixes]

    assert sorted(listed) == sorted(SUFFIXES) == sorted(CONTENTS)
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in listed)
    assert {name for name, one in FORMATS.items() if one.write} == {
        *("csv", "tsv", "xlsx", "parquet", "arrow")
    }


def test_no_library_of_a_format_is_loaded_before_it_is_needed() -> None:
    """The daemon opens and reads the light formats in its own process, and stays small."""
    script = (
        "import sys; import promptspool.intake.formats; "
        "print({'pyarrow', 'python_calamine', 'xlsxwriter', 'openpyxl', 'numpy'} & {*sys.modules})"
    )
    ended = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )

    assert ended.stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.csv", b"a", False),
        ("a.jsonl.gz", b"a", False),
        ("a", b"a", False),
        ("a", b"", False),
        ("a.XLSX", b"a", True),
        ("a.parquet.zst", b"a", True),
        ("a.feather", b"a", True),
        ("a.zip.gz", b"a", True),
        ("a.csv", zipped("a"), True),
        ("a", zipped(), True),
    ],
)
def test_heavy_files_are_told_by_name_or_as_archives(
    dropping: Dropping, name: str, data: bytes, expected: object
) -> None:
    """What is held for them goes with a process of its own."""
    dropping.path.write_bytes(data)

    assert is_heavy(dropping.path, name) is expected


# --- what is not what it says ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "may.csv",
            workbook(),
            "it is an Excel workbook (.xlsx); rename it to may.xlsx and drop it",
        ),
        (
            "may.csv",
            zipped("a.txt"),
            "it is a zip archive (.zip); rename it to may.zip and drop it",
        ),
        (
            "may.csv",
            zipped("word/document.xml"),
            "it is a Word document (.docx); save it as .txt (a",
        ),
        (
            "may.csv",
            CONTENTS[".parquet"],
            "it is a Parquet file (.parquet); rename it to may.parquet",
        ),
        (
            "may.txt",
            CONTENTS[".feather"],
            "it is an Arrow or Feather file (.arrow); rename it to may",
        ),
        (
            "may.csv",
            CONTENTS[".arrow"],
            "it is an Arrow or Feather file (.arrow); rename it to may.a",
        ),
        (
            "may.csv",
            OLD_OFFICE,
            "it is an old Office file, or one with a password (.xls, .doc); save",
        ),
        (
            "may.xlsx",
            OLD_OFFICE,
            "it is an old Office file, or one with a password (.xls, .doc); sav",
        ),
        (
            "may.xlsx",
            b"a,b\n1,2\n",
            "it is a table in text (.csv); rename it to may.csv and drop it",
        ),
        (
            "may.xlsx",
            b"a\tb\n1\t2\n",
            "it is a table in text (.tsv); rename it to may.tsv and drop it",
        ),
        (
            "may.xlsx",
            b"<html><table>",
            "it is a web page (.html); rename it to .md to send it as one",
        ),
        (
            "may.xlsx",
            zipped("xl/workbook.bin"),
            "it is a binary Excel workbook (.xlsb); save it as",
        ),
        (
            "may.parquet",
            b"hello\n",
            "it is plain text (.txt); rename it to may.txt and drop it again",
        ),
        ("may.parquet", b"\0\1\2", "it does not begin like one; it is broken or something else"),
        ("may.zip", b'{"a": 1}\n', "it is JSON Lines (.jsonl); rename it to may.jsonl and drop it"),
        (
            "may.csv",
            b'{"a": 1}\n{"a": 2}\n',
            "it is JSON Lines (.jsonl); rename it to may.jsonl and",
        ),
        ("may.csv", b'[\n{"a": 1}]', "it is JSON (.json); rename it to may.json and drop it again"),
        ("may.tsv", b'{\n"a": 1}', "it is JSON (.json); rename it to may.json and drop it again"),
        (
            "may.txt",
            b" <!DOCTYPE html><p>",
            "it is a web page (.html); rename it to .md to send it",
        ),
        (
            "may.txt",
            b"%PDF-1.7\n",
            "it is a PDF document (.pdf); save it as .txt (a prompt a line)",
        ),
        (
            "may.jsonl",
            b"SQLite format 3\0",
            "it is an SQLite database (.sqlite); export the table as",
        ),
        (
            "may.md",
            PNG,
            "it is a PNG image (.png); put its file name or URL into the column image of",
        ),
        (
            "may.csv",
            b"BZh91AY&SY\0",
            "it is compressed with bzip2 (.bz2); unpack it, and drop what is",
        ),
        (
            "may.csv",
            b"\xfd7zXZ\0",
            "it is compressed with xz (.xz); unpack it, and drop what is in it",
        ),
        (
            "may.csv",
            b"7z\xbc\xaf\x27\x1c",
            "it is a 7-Zip archive (.7z); unpack it, and drop what is",
        ),
        (
            "may.csv",
            b"Rar!\x1a\x07\x01",
            "it is a RAR archive (.rar); unpack it, and drop what is in",
        ),
        (
            "may.csv",
            gzip.compress(b"a"),
            "it is compressed with gzip (.gz); rename it to may.csv.gz",
        ),
        (
            "may.csv",
            zstd.compress(b"a"),
            "it is compressed with Zstandard (.zst); rename it to may.csv",
        ),
        (
            "may.csv.gz",
            gzip.compress(workbook()),
            "it is an Excel workbook (.xlsx); rename it to may.x",
        ),
        (
            "may.csv.gz",
            zstd.compress(b"a"),
            "it is compressed with Zstandard (.zst); rename it to may",
        ),
        (
            "\n.csv",
            workbook(),
            "it is an Excel workbook (.xlsx); rename it to '\\n.xlsx' and drop it",
        ),
    ],
)
def test_a_wrong_name_is_one_clear_line(
    dropping: Dropping, name: str, data: bytes, reason: str
) -> None:
    """It says what the name says, what the file is, and what to do."""
    code, found = dropping.refusal(name, data)
    suffix = name.removesuffix(".gz").rpartition(".")[2]

    assert code == "wrong_format"
    assert found.startswith(f"the name says .{suffix}, but {reason}")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "may.csv.gz",
            b"a,b\n",
            "the name says .gz, but it is not compressed; rename it to may.csv and drop it again",
        ),
        (
            "may.csv.gz",
            b"BZh91AY&SY\0",
            (
                "the name says .gz, but it is compressed with bzip2 (.bz2); unpack it, and drop "
                "what is in it or pack that as .zip, .gz or .zst"
            ),
        ),
        (
            "may.csv.gz",
            gzip.compress(gzip.compress(b"a")),
            "may.csv.gz is compressed twice; unpack it once and drop it again",
        ),
        ("may.xlsx", zipped("a.txt"), "may.xlsx is a zip archive, but no Excel workbook"),
    ],
)
def test_a_wrong_wrapping_is_one_clear_line(
    dropping: Dropping, name: str, data: bytes, reason: str
) -> None:
    """What is compressed says so in its name, and once."""
    assert dropping.refusal(name, data) == ("wrong_format", reason)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "may",
            b"a,b\n1,2\n",
            (
                f"found no extension, which no reader knows; known are {KNOWN}; it looks like "
                f".csv, so rename it to may.csv"
            ),
        ),
        (
            "may.dat.gz",
            gzip.compress(b'{"a": 1}\n{"a": 2}\n'),
            (
                f"found the extension '.dat', which no reader knows; known are {KNOWN}; it looks "
                f"like .jsonl, so rename it to may.jsonl.gz"
            ),
        ),
        (
            "may.dat",
            workbook(),
            (
                f"found the extension '.dat', which no reader knows; known are {KNOWN}; it looks "
                f"like .xlsx, so rename it to may.xlsx"
            ),
        ),
        (
            "may.dat",
            b"\0\1\2",
            f"found the extension '.dat', which no reader knows; known are {KNOWN}",
        ),
        (
            "may.dat",
            gzip.compress(b"a"),
            (
                f"found the extension '.dat', which no reader knows; known are {KNOWN}; it is "
                f"compressed, so write both, as in prompts.csv.gz"
            ),
        ),
        (
            "may.xls",
            OLD_OFFICE,
            (
                "found an old Office file, or one with a password (.xls, .doc), which is not read; "
                "save it as .xlsx or .csv"
            ),
        ),
        (
            "may.ods",
            zipped("content.xml"),
            None,
        ),
        ("may.docx", zipped("word/document.xml"), "found a Word document (.docx), which is not"),
        ("may.pdf", b"%PDF-1.7\n", "found a PDF document (.pdf), which is not read; save it as"),
        ("may.htm", b"<p>", "found a web page (.html), which is not read; rename it to .md to"),
        ("may.yml", b"a: b", "found a YAML file (.yaml), which is not read; write it as .json or"),
        ("may.csv.bz2", b"BZh91AY&SY\0", "found compressed with bzip2 (.bz2), which is not read;"),
        ("may.xz", b"\xfd7zXZ\0", "found compressed with xz (.xz), which is not read; unpack it"),
        ("may.7z", b"7z\xbc\xaf\x27\x1c", "found a 7-Zip archive (.7z), which is not read; unpack"),
        (
            "may.tar.gz",
            gzip.compress(b"a"),
            "found a tar archive (.tar), which is not read; unpack",
        ),
        (
            "may.tgz",
            gzip.compress(b"a"),
            "found a tar archive (.tar), which is not read; unpack it",
        ),
        ("may.png", PNG, "found a PNG image (.png), which is not read; put its file name or URL"),
    ],
)
def test_an_unknown_extension_says_what_to_do(
    dropping: Dropping, name: str, data: bytes, reason: str | None
) -> None:
    """It lists what is known and says what the content looks like, or how to save it anew."""
    code, found = dropping.refusal(name, data)

    assert code == "unknown_format"
    assert found.startswith(reason or "")


@pytest.mark.parametrize("packing", [*PACK])
@pytest.mark.parametrize("suffix", [*SUFFIXES])
def test_an_empty_file_is_told_as_such(dropping: Dropping, suffix: str, packing: str) -> None:
    """Of whatever format, and whatever it is wrapped in."""
    name = f"may{suffix}{packing}"

    assert dropping.refusal(name, PACK[packing](b"")) == (
        "empty_file",
        f"{name} is empty; write your prompts into it and drop it again",
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"PAR1,prompt\n1,hi\n"),
        ("a.txt", b"BZh is how bzip2 begins\nRIFF is how audio begins\n"),
        ("a.txt", b"What does <html> mean?\n"),
        ("a.md", b"<!doctype html>\n<p>one page as one prompt</p>\n"),
        ("a.txt", b'{"a": 1}\n'),
        ("a.csv", "prompt,n\nhi,1\n".encode("utf-16")),
        ("a.csv", b"{prompt},n\nhi,1\n"),
    ],
)
def test_text_is_not_taken_for_something_else(dropping: Dropping, name: str, data: bytes) -> None:
    """Letters that other formats begin with are letters."""
    assert [row for row in dropping.rows(name, data) if row.fault is None]


# --- whatever comes --------------------------------------------------------------------------


def outcome(folder: Path, name: str, data: bytes) -> str:
    """Return what became of a file: rows, or the code of the complaint; raises anything else."""
    try:
        rows = Dropping(folder).rows(name, data, caps=Caps(max_expanded=1 << 24, max_ratio=200))
    except BadInput as error:
        assert "\n" not in error.reason  # noqa: PT017 - one line, whatever the file holds
        return error.code

    assert all((row.columns is None) is (row.fault is not None) for row in rows)

    return "rows"


@settings(deadline=None, max_examples=300)
@example(data=b'{"":"\x80"', suffix=".csv", packing="", is_packed=False)
@given(
    data=st.binary(max_size=200) | st.text(max_size=60).map(str.encode),
    suffix=st.sampled_from([*SUFFIXES, "", ".xls", ".foo"]),
    packing=st.sampled_from([*PACK]),
    is_packed=st.booleans(),
)
def test_arbitrary_bytes_end_in_rows_or_a_complaint(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    suffix: str,
    packing: str,
    *,
    is_packed: bool,
) -> None:
    """Under each name, compressed or only called so."""
    content = PACK[packing](data) if is_packed else data

    assert outcome(tmp_path_factory.mktemp("any"), f"may{suffix}{packing}", content)


@settings(deadline=None, max_examples=400)
@given(
    seed=st.integers(0, 2**32),
    suffix=st.sampled_from([*SUFFIXES]),
    packing=st.sampled_from([*PACK]),
)
def test_damaged_files_end_in_rows_or_a_complaint(
    tmp_path_factory: pytest.TempPathFactory, seed: int, suffix: str, packing: str
) -> None:
    """Flipped, cut or with something put in, inside of the wrapping or around it."""
    chance = random.Random(seed)  # noqa: S311 - a test, not a secret

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)

        for _ in range(chance.randint(0, 3)):
            at = chance.randrange(len(changed) + 1)
            changed[at : at + chance.choice([0, 1, 1, 8, 10_000])] = chance.randbytes(
                chance.choice([0, 1, 1, 4])
            )

        return bytes(changed)

    data = damaged(PACK[packing](damaged(CONTENTS[suffix])))

    assert outcome(tmp_path_factory.mktemp("damaged"), f"may{suffix}{packing}", data)


def test_an_archive_that_holds_a_workbook_unpacked_is_an_archive(tmp_path: Path) -> None:
    """What an archive is is told by its own beginning, not by the bytes of what is in it."""
    inner = io.BytesIO()

    with zipfile.ZipFile(inner, "w") as book:
        book.writestr("[Content_Types].xml", "<x/>")
        book.writestr("xl/workbook.xml", "<x/>")

    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as outer:
        outer.writestr("table.xlsx", inner.getvalue())

    data = (tmp_path / "a.zip").read_bytes()
    found = kind_of(data)

    assert found is not None
    assert found.suffix == ".zip"
