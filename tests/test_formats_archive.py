from __future__ import annotations

import io
import json
import random
import stat
import struct
import tracemalloc
import zipfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats import Caps, check_container, opened
from promptspool.intake.formats.archive import MAX_MEMBERS
from promptspool.intake.rows import ReadOptions, Row, spread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.intake.formats import Opened

CAPS = Caps(max_expanded=1 << 30, max_ratio=200)
PLENTY = ReadOptions(max_row_bytes=1_000_000)

PNG = b"\x89PNG\r\n\x1a\n rest of an image"

Entry = tuple[str | zipfile.ZipInfo, bytes | str]


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opening]:
    """Give what opens archives, and close them in the end."""
    with ExitStack() as stack:
        yield Opening(tmp_path, stack)


class Opening:
    """Opens one archive after another."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Keep them in *folder*."""
        self.path = folder / "original"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self._stack = stack

    def __call__(self, data: bytes, *, name: str = "may.zip", caps: Caps = CAPS) -> Opened:
        """Return the archive that *data* is, open until the test ends."""
        self.path.write_bytes(data)

        return self._stack.enter_context(opened(self.path, name, caps=caps, scratch=self.scratch))

    def rows(self, data: bytes, **options: Any) -> list[Row]:
        """Return the rows of an archive."""
        self.path.write_bytes(data)

        with opened(self.path, "may.zip", caps=CAPS, scratch=self.scratch) as found:
            wanted = ReadOptions(**{"max_row_bytes": 1_000_000, **options})

            return list(spread(found.format.read(found.source, wanted)))

    def refusal(self, data: bytes, *, caps: Caps = CAPS) -> tuple[str, str]:
        """Return code and reason of the complaint about a whole archive."""
        with pytest.raises(BadInput) as caught:
            self(data, caps=caps)

        return caught.value.code, caught.value.reason


def zipped(*entries: Entry, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return an archive of *entries*."""
    file = io.BytesIO()

    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)

    return file.getvalue()


def special(name: str, mode: int) -> zipfile.ZipInfo:
    """Return the entry of a file of a special kind."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16

    return info


def flagged(data: bytes, *, flags: int) -> bytes:
    """Return an archive of one file with *flags* set in both of its headers."""
    changed = bytearray(data)

    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        changed[at] |= flags & 0xFF
        changed[at + 1] |= flags >> 8

    return bytes(changed)


def with_size(data: bytes, size: int) -> bytes:
    """Return an archive of one file that says it unpacks to *size* bytes."""
    changed = bytearray(data)

    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", changed, data.index(signature) + offset, size)

    return bytes(changed)


def texts(found: list[Row]) -> list[tuple[int, str | None, str | None]]:
    """Return number, name and prompt of each row; the prompt is None for a fault."""
    return [
        (row.line, row.name, None if row.columns is None else json.loads(row.columns["prompt"]))
        for row in found
    ]


def fault(found: list[Row]) -> tuple[str, str]:
    """Return code and reason of the only fault."""
    [only] = [row.fault for row in found if row.fault is not None]

    return only.code, only.reason


# --- documents -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_each_document_is_a_row(opening: Opening) -> None:
    """In the archive's order, under its name with folders; the text without blank lines around."""
    data = zipped(
        ("b.txt", "second\r\nline\n"),
        ("folder/", ""),
        ("folder/a.md", "\ufeff# Title\n\ntext"),
        ("b.txt", "the same name"),
        ("utf16.txt", "ü".encode("utf-16")),
        ("no extension", "plain"),
        ("page.html", "<!doctype html><p>"),
        ("data.json", '{"a": 1}'),
    )

    found = opening.rows(data)

    assert texts(found) == [
        (1, "b.txt", "second\nline"),
        (2, "folder/a.md", "# Title\n\ntext"),
        (3, "b.txt", "the same name"),
        (4, "utf16.txt", "ü"),
        (5, "no extension", "plain"),
        (6, "page.html", "<!doctype html><p>"),
        (7, "data.json", '{"a": 1}'),
    ]
    assert found[1].columns == {"prompt": b'"# Title\\n\\ntext"', "file": b'"folder/a.md"'}


def test_what_systems_leave_is_left_out(opening: Opening) -> None:
    """It is counted, so that nothing is missing silently."""
    data = zipped(
        ("__MACOSX/a.txt", "x"),
        ("a.txt", "a"),
        (".DS_Store", "x"),
        ("folder/.hidden/b.txt", "x"),
        ("folder/Thumbs.db", "x"),
        ("~$a.docx", "x"),
        ("../up.txt", "up"),
    )
    found = opening(data)

    rows = spread(found.format.read(found.source, PLENTY))
    assert [row.name for row in rows] == ["a.txt", "../up.txt"]
    assert (found.format.name, found.files) == ("zip", None)
    assert found.source.notes == {
        "archive": "2 documents, 5 files left out (hidden, or made by a system)"
    }


@pytest.mark.parametrize(
    ("entry", "code", "reason"),
    [
        (
            ("a.txt", b"caf\xe9"),
            "wrong_encoding",
            "a.txt: the file is not UTF-8 (it looks like cp1252): line 1 has the byte",
        ),
        (("a.txt", b"text\0"), "no_text", "a.txt: found a zero byte (character 5), which no text"),
        (("a.txt", b" \n"), "empty_document", "a.txt is empty"),
        (("a.txt", b""), "empty_document", "a.txt is empty"),
        (("a.txt", b"x" * 2001), "line_too_long", "a.txt is longer than 2,000 bytes; shorten it"),
        (("a.png", PNG), "no_text", "a.png is a PNG image (.png); only texts are taken from an"),
        (("a.zip", zipped(("b", "c"))), "no_text", "a.zip is a zip archive (.zip); only texts are"),
        (
            ("a.gz", b"\x1f\x8b\x08 "),
            "no_text",
            "a.gz is compressed with gzip (.gz); only texts are",
        ),
        ((special("a", stat.S_IFLNK | 0o777), "/etc/passwd"), "no_file", "a is a link or another"),
        ((special("a", stat.S_IFIFO), ""), "no_file", "a is a link or another special file; pack"),
    ],
)
def test_a_document_that_cannot_be_read_is_a_fault(
    opening: Opening, entry: Entry, code: str, reason: str
) -> None:
    """It is named, and the others are read."""
    data = zipped(("before.txt", "before"), entry, ("after.txt", "after"))
    found = opening.rows(data, max_row_bytes=2000)

    assert [row.fault is None for row in found] == [True, False, True]
    assert fault(found)[0] == code
    assert fault(found)[1].startswith(reason)
    assert found[1].name == (entry[0] if isinstance(entry[0], str) else entry[0].filename)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_a_fault(opening: Opening, method: int) -> None:
    """What unpacks without bound cannot be held within bounds."""
    found = opening.rows(zipped(("a.txt", "a"), method=method))

    assert fault(found) == (
        "unknown_packing",
        (
            f"a.txt is packed by method {method}, which is not read; pack it as an ordinary zip "
            f"(deflate)"
        ),
    )


@pytest.mark.parametrize("flags", [0x1, 0x40, 0x41])
def test_a_locked_document_is_a_fault(opening: Opening, flags: int) -> None:
    """Nobody is there to give the password."""
    found = opening.rows(flagged(zipped(("a.txt", "a")), flags=flags))

    assert fault(found) == ("locked", "a.txt is locked with a password; pack it without one")


def test_a_document_with_a_broken_checksum_is_a_fault(opening: Opening) -> None:
    """A flipped bit is told by the archive's own checksum."""
    data = zipped(("a.txt", "hello hello"), method=zipfile.ZIP_STORED).replace(
        b"hello h", b"hellO h"
    )
    found = opening.rows(data)

    assert fault(found) == (
        "broken_archive",
        "may.zip is broken: bad CRC-32, in a.txt; make it anew and drop it again",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("/etc/passwd", "/etc/passwd"),
        ("C:\\texts\\a.txt", "C:/texts/a.txt"),
        ("line\nfeed.txt", "line\nfeed.txt"),
        ("grüße 😀.txt", "grüße 😀.txt"),
        ("a" * 255, "a" * 255),
    ],
)
def test_names_are_only_names(opening: Opening, name: str, expected: str) -> None:
    """Nothing is ever opened or made under them; they are kept as text."""
    [row] = opening.rows(zipped((name, "x")))

    assert row.name == expected
    assert row.columns is not None
    assert json.loads(row.columns["file"]) == expected
    assert sorted(path.name for path in opening.path.parent.iterdir()) == ["original", "scratch"]


@pytest.mark.parametrize(
    ("raw", "expected"), [("ü.txt".encode(), "ü.txt"), ("ü.txt".encode("cp437"), "ü.txt")]
)
def test_names_of_old_tools_are_readable(opening: Opening, raw: bytes, expected: str) -> None:
    """Without the mark for UTF-8 a name is UTF-8 if it can be, else what the standard says."""
    data = zipped(("#" * len(raw), "x")).replace(b"#" * len(raw), raw)

    assert opening.rows(data)[0].name == expected


# --- a table with its images -----------------------------------------------------------------


def test_a_table_with_images_stands_for_the_archive(opening: Opening) -> None:
    """The table is read as if it had been dropped; its rows may name the images, nothing else."""
    found = opening(
        zipped(
            ("set/prompts.jsonl", '{"prompt": "p", "image": "pics/a.png"}\n'),
            ("set/pics/a.png", PNG),
            ("b.JPG", b"other"),
            ("set/.DS_Store", "x"),
        )
    )

    assert (found.format.name, found.source.name) == ("jsonl", "set/prompts.jsonl")
    assert found.source.notes["archive"] == (
        "the table set/prompts.jsonl, 2 images, 1 file left out (hidden, or made by a system)"
    )
    [row] = spread(found.format.read(found.source, PLENTY))
    assert row.columns == {"prompt": b'"p"', "image": b'"pics/a.png"'}

    assert found.files is not None

    for name in ("pics/a.png", "set/pics/a.png", "./pics/a.png", "pics\\a.png"):
        assert found.files.read(name, max_bytes=100) == PNG

    assert found.files.read("b.JPG", max_bytes=5) == b"other"


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("a.png", "no_such_file", "the archive has no image called a.png; write the name it has"),
        ("../set/pics/a.png", "no_such_file", "the archive has no image called ../set/pics/a.png;"),
        ("/set/pics/a.png", "no_such_file", "the archive has no image called /set/pics/a.png; "),
        ("prompts.jsonl", "no_such_file", "the archive has no image called prompts.jsonl; write"),
        ("/etc/passwd", "no_such_file", "the archive has no image called /etc/passwd; write the"),
        ("", "no_such_file", "the archive has no image called ; write the name it has there"),
        ("\udcff", "no_such_file", "the archive has no image called '\\udcff'; write the name"),
        ("twice.png", "ambiguous_file", "the archive has several files called twice.png; rename"),
        ("pics/a.png", "file_too_large", "the image set/pics/a.png has 25 bytes, no more than 24"),
        ("link.png", "no_file", "link.png is a link or another special file; pack the file itself"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_only_images_of_the_archive_are_given(
    opening: Opening, name: str, code: str, reason: str
) -> None:
    """Whatever a row says, and no more than the caller takes."""
    found = opening(
        zipped(
            ("set/prompts.jsonl", '{"prompt": "p"}'),
            ("set/pics/a.png", PNG),
            ("twice.png", PNG),
            ("twice.png", PNG),
            (special("link.png", stat.S_IFLNK | 0o777), "/etc/passwd"),
        )
    )
    assert found.files is not None

    with pytest.raises(BadInput) as caught:
        found.files.read(name, max_bytes=24)

    assert caught.value.code == code
    assert caught.value.reason.startswith(reason)


def test_a_lone_table_stands_for_the_archive(opening: Opening) -> None:
    """A zip is also just a way to make a file smaller; the table is confirmed by content, too."""
    found = opening(zipped(("rows.json", '[{"a": 1}, "b"]')))

    assert [row.columns for row in spread(found.format.read(found.source, PLENTY))] == [
        {"a": b"1"},
        {"prompt": b'"b"'},
    ]
    assert opening.refusal(zipped(("rows.csv", PNG)))[0] == "wrong_format"
    assert opening.refusal(zipped(("rows.csv", b"")))[0] == "empty_file"


def test_a_table_is_unpacked_for_those_who_need_a_path(opening: Opening) -> None:
    """It is made in the scratch folder, once, and gone in the end."""
    opening.path.write_bytes(zipped(("deep/rows.jsonl", '"a"')))

    with opened(opening.path, "may.zip", caps=CAPS, scratch=opening.scratch) as found:
        path = found.source.path()

        assert path.read_bytes() == b'"a"'
        assert path.suffix == ".jsonl"
        assert found.source.path() == path
        assert list(opening.scratch.iterdir()) == [path]

    assert list(opening.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("entries", "code", "reason"),
    [
        ([("a.png", PNG)], "no_table", "may.zip has nothing but images in it; add a table (.csv, "),
        ([], "empty_file", "may.zip has no files in it"),
        ([("folder/", ""), (".DS_Store", "x")], "empty_file", "may.zip has no files in it"),
        (
            [("a.csv", "a"), ("b.csv", "b"), ("c.csv", "c")],
            "ambiguous_archive",
            "found 3 tables (a.csv, b.csv...); an archive is one table with its images, or",
        ),
        (
            [("a.csv", "a"), ("readme.txt", "b"), ("c.png", PNG)],
            "ambiguous_archive",
            "found the table a.csv and 1 other file; an archive is one table with its images, or",
        ),
    ],
)
def test_what_is_neither_is_refused(
    opening: Opening, entries: list[Entry], code: str, reason: str
) -> None:
    """A table among documents could be meant as rows or as one prompt; money depends on it."""
    found_code, found = opening.refusal(zipped(*entries))

    assert found_code == code
    assert found.startswith(reason)


# --- hostile archives ------------------------------------------------------------------------


def test_a_bomb_is_refused_unread(opening: Opening) -> None:
    """By the sizes that it declares, all files together."""
    code, reason = opening.refusal(zipped(*((f"{n}.txt", bytes(5_000_000)) for n in range(5))))

    assert code == "expands_too_far"
    assert "expands to 25,000,000 or more" in reason
    assert "intake.max_ratio (200)" in reason

    small = Caps(max_expanded=9, max_ratio=200)
    assert opening.refusal(zipped(("a.txt", "x" * 10)), caps=small)[0] == "expands_too_far"


def test_files_that_share_their_bytes_are_refused(opening: Opening) -> None:
    """A list may point to one file a thousand times; that counts a thousand times."""
    data = zipped(("a.txt", bytes(1_000_000)))
    start = data.index(b"PK\x01\x02")
    entry, end = data[start:-22], bytearray(data[-22:])
    struct.pack_into("<HHI", end, 8, 1000, 1000, len(entry) * 1000)

    code, _ = opening.refusal(data[:start] + entry * 1000 + bytes(end))

    assert code == "expands_too_far"


@pytest.mark.parametrize("size", [3, 0, 1_000_000])
def test_a_lie_about_the_size_is_no_way_out(opening: Opening, size: int) -> None:
    """No more is read than was declared, and the checksum tells the rest."""
    data = with_size(zipped(("a.txt", "x" * 5_000)), size)
    found = opening.rows(data)

    if size == 1_000_000:
        assert texts(found) == [(1, "a.txt", "x" * 5_000)]
    else:
        assert fault(found)[0] in ("broken_archive", "empty_document")


def test_too_many_files_are_refused(opening: Opening) -> None:
    """Before their list is taken apart, which would hold ten times as much."""
    entry = zipped(("a.txt", "x"))
    start = entry.index(b"PK\x01\x02")
    count = MAX_MEMBERS + 1
    listed, end = entry[start:-22] * count, bytearray(entry[-22:])
    struct.pack_into("<HHI", end, 8, 0xFFFF, 0xFFFF, len(listed))
    data = entry[:start] + listed + bytes(end)

    tracemalloc.start()
    refusal = opening.refusal(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 3 * len(data)
    assert refusal == (
        "too_many_files",
        (
            "may.zip has 200,001 files in it, no more than 200,000 are taken; pack them as several "
            "archives, or write them as the rows of a table"
        ),
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: data[:-10] + b"\xff" * 10,
        lambda data: data[:-22] + data[-22:].replace(data[-10:-6], b"\xff\xff\xff\x7f"),
        lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x09"),
        lambda data: data[:4] + b"\xff" * 100,
    ],
)
def test_a_broken_list_refuses_the_archive(opening: Opening, change: Any) -> None:
    """Without it nothing in the archive can be found."""
    code, reason = opening.refusal(change(zipped(("a.txt", "x"))))

    assert code == "broken_archive"
    assert reason.startswith("may.zip is broken: ")


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_whatever_bytes_are_rows_or_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: int, changes: int
) -> None:
    """Bytes changed, cut out or put in anywhere end in rows, faults or one complaint."""
    chance = random.Random(seed)  # noqa: S311 - a test, not a secret
    entries: list[Entry] = [("a.txt", "hello " * 50), ("b/c.md", "# x"), ("d.png", PNG)]
    data = bytearray(zipped(*entries[: chance.randint(1, 3)]))

    for _ in range(changes):
        at = chance.randrange(len(data))
        data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))

    folder = tmp_path_factory.mktemp("fuzz")

    with ExitStack() as stack:
        try:
            rows = Opening(folder, stack).rows(bytes(data))
        except BadInput as error:
            assert error.reason  # noqa: PT017 - either is right
        else:
            assert all((row.columns is None) is (row.fault is not None) for row in rows)


# --- workbooks -------------------------------------------------------------------------------


def test_a_workbook_is_checked_before_it_is_read(tmp_path: Path) -> None:
    """By the sizes and names that its archive declares."""
    path = tmp_path / "may.xlsx"
    path.write_bytes(zipped(("xl/workbook.xml", "<x/>"), ("xl/worksheets/sheet1.xml", "<x/>")))
    check_container(path, CAPS, name="may.xlsx")

    with pytest.raises(BadInput, match="expands to 8 or more") as caught:
        check_container(path, Caps(max_expanded=7, max_ratio=9), name="may.xlsx")

    assert caught.value.code == "expands_too_far"
    path.write_bytes(zipped(("other.xml", "<x/>")))

    with pytest.raises(BadInput, match=r"^may\.xlsx is a zip archive, but no Excel workbook$"):
        check_container(path, CAPS, name="may.xlsx")
