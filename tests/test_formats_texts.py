from __future__ import annotations

import codecs
import json
import tracemalloc
from typing import IO, TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats.texts import document, read_document, read_text
from promptspool.intake.rows import ReadOptions, Row, spread

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.intake.rows import Reader, Split

PLENTY = 1_000_000

# The characters that readers of lines disagree about, and a few that they do not.
texts = st.text(alphabet='ab {}"\u2028\u2029\x85\x0b\x0c\x1c\r\n\ufeffé😀', max_size=80)


class OnDisk:
    """A source on disk."""

    def __init__(self, path: Path) -> None:
        """Take where it is."""
        self.name = path.name
        self.notes: dict[str, str] = {}
        self._path = path

    def open(self) -> IO[bytes]:
        """Open it at its beginning."""
        return self._path.open("rb")

    def path(self) -> Path:
        """Return where it is."""
        return self._path


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a place for one file after another."""
    return tmp_path_factory.mktemp("texts") / "prompts.txt"


def read(path: Path, data: bytes, *, reader: Reader = read_text, **options: Any) -> list[Row]:
    """Return the rows of a text file that holds *data*."""
    path.write_bytes(data)

    return list(spread(reader(OnDisk(path), ReadOptions(**{"max_row_bytes": PLENTY, **options}))))


def prompts(found: list[Row]) -> list[tuple[int, str | None]]:
    """Return line and prompt of each row, None for a fault."""
    return [
        (row.line, None if row.columns is None else json.loads(row.columns["prompt"]))
        for row in found
    ]


def refusal(
    path: Path, data: bytes, encoding: str | None = None, *, code: str = "wrong_encoding"
) -> str:
    """Return the complaint about a file that is not in its encoding."""
    with pytest.raises(BadInput) as caught:
        read(path, data, encoding=encoding)

    assert caught.value.code == code

    return caught.value.reason


@settings(deadline=None)
@given(texts, st.sampled_from([None, "utf-8", "UTF8"]))
def test_lines_end_at_line_feeds_and_nowhere_else(
    path: Path, text: str, encoding: str | None
) -> None:
    """Reading agrees with splitting at line feeds, less blank lines, one CR and the BOM."""
    data = text.encode()
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    expected = [
        (number, line.removesuffix(b"\r").decode())
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]

    assert prompts(read(path, data, encoding=encoding)) == expected


@settings(deadline=None)
@given(
    texts.filter(lambda text: not text.startswith("\ufeff")),
    st.sampled_from(["utf-16", "utf-32", "utf-16-le", "utf-16-be", "gb18030", "cp1252"]),
)
def test_any_encoding_reads_like_utf8(path: Path, text: str, encoding: str) -> None:
    """A byte order mark tells two of them, the profile the others."""
    text = text.encode(encoding, "replace").decode(encoding)
    chosen = None if encoding in ("utf-16", "utf-32") else encoding
    found = read(path, text.encode(encoding) or b"", encoding=chosen)

    assert prompts(found) == prompts(read(path, text.encode()))


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 6), st.sampled_from(["\n", "\r\n"]))
def test_a_long_line_is_skipped_and_the_next_is_found(
    path: Path, lengths: list[int], max_bytes: int, end: str
) -> None:
    """A line over the limit is one faulty row; it moves no other line."""
    data = "".join("x" * length + end for length in lengths).encode()
    expected = [
        (number, "x" * length if length <= max_bytes else None)
        for number, length in enumerate(lengths, start=1)
        if length
    ]
    found = read(path, data, max_row_bytes=max_bytes)

    assert prompts(found) == expected
    assert {row.fault.code for row in found if row.fault} <= {"line_too_long"}


blocks = st.lists(
    st.tuples(
        st.lists(
            st.sampled_from(["a", " indented", "b ", "\u2028", "# c"]), min_size=1, max_size=3
        ),
        st.lists(st.sampled_from(["", "  ", "\t"]), min_size=1, max_size=2),
    ),
    max_size=4,
)


@settings(deadline=None)
@given(blocks, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", " \n\n"]))
def test_paragraphs_end_at_blank_lines(
    path: Path, paragraphs: list[tuple[list[str], list[str]]], end: str, start: str
) -> None:
    """Each is one prompt, with the number of its first line and its inner line feeds."""
    expected, lines = [], start.split("\n")[:-1]

    for block, blanks in paragraphs:
        expected.append((len(lines) + 1, "\n".join(block)))
        lines += block + blanks

    data = end.join([*lines, ""]).encode()

    assert prompts(read(path, data, split="paragraph")) == expected


@settings(deadline=None)
@given(blocks, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", " \n\n"]))
def test_a_file_is_one_prompt(
    path: Path, paragraphs: list[tuple[list[str], list[str]]], end: str, start: str
) -> None:
    """Blank lines inside are kept, those around are not; Markdown is read so of itself."""
    lines = [line for block, blanks in paragraphs for line in block + blanks]
    data = (start + "\n".join([*lines, ""])).replace("\n", end).encode()

    while lines and not lines[-1].strip(" \t"):
        lines.pop()

    expected = [(start.count("\n") + 1, "\n".join(lines))] if lines else []

    assert prompts(read(path, data, split="file")) == expected
    assert prompts(read(path, data, reader=read_document)) == expected
    assert document(data, None) == "\n".join(lines)


@pytest.mark.parametrize("split", ["paragraph", "file"])
def test_a_long_block_is_a_fault(path: Path, split: Split) -> None:
    """Whether one line of it is too long or all of them together; blank lines do not count."""
    for data in (b"x" * 11, b"x" * 6 + b"\n" + b"x" * 6):
        [row] = read(path, b"\n" + data + b"\n", max_row_bytes=10, split=split)

        assert row.fault is not None
        assert (row.line, row.fault.code) == (2, "line_too_long")
        assert row.fault.reason == f"the {split} is longer than 10 bytes; shorten it"

    [row] = read(path, b"x" * 10 + b"\n" * 99, max_row_bytes=10, split=split)

    assert row.fault is None


def test_the_next_paragraph_is_found_behind_a_long_one(path: Path) -> None:
    """A paragraph over the limit is one faulty row; it moves no other."""
    data = b"x\n" * 20 + b"\nnext\n\n" + b"y" * 20

    found = read(path, data, max_row_bytes=10, split="paragraph")

    assert prompts(found) == [(1, None), (22, "next"), (24, None)]


def test_zero_bytes_are_a_fault_of_their_row(path: Path) -> None:
    """No text has one, so what is around it is none."""
    found = read(path, b"one\ntw\0o\nthree")
    reason = "found a zero byte (character 3), which no text has; save it as text"

    assert prompts(found) == [(1, "one"), (2, None), (3, "three")]
    assert [(row.fault.code, row.fault.reason) for row in found if row.fault] == [
        ("no_text", reason)
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            b"caf\xe9\n",
            (
                "the file is not UTF-8 (it looks like cp1252): line 1 has the byte 0xe9 at offset "
                '3; save it as UTF-8, or write encoding = "cp1252" in the profile or in NAME.toml '
                "beside the file"
            ),
        ),
        (
            b"\xef\xbb\xbfone\n\ntwo \xff\n",
            (
                "the file is not UTF-8: line 3 has the byte 0xff at offset 12 of the file; "
                "save it as UTF-8 and drop it again"
            ),
        ),
    ],
)
def test_what_is_not_utf8_is_named(path: Path, data: bytes, reason: str) -> None:
    """A wrong encoding says where it shows and what to do."""
    assert refusal(path, data) == reason


@pytest.mark.parametrize(
    ("data", "encoding", "line"),
    [
        (b"a\nb\n\x81", "cp1252", 3),
        ("a\nb".encode("utf-16") + b"\n\0\0\xdc", None, 3),
        ("a\n".encode("utf-16") + b"b", None, 2),
        ((b"a" * 999 + b"\n") * 1100 + b"\xff", "ascii", 1101),
        (b"a\n\xe9\n", "ascii", 2),
        (b"a", "utf-16-be", 1),
    ],
)
def test_what_is_not_in_its_encoding_is_named(
    path: Path, data: bytes, encoding: str | None, line: int
) -> None:
    """The line is told, in whichever block it is."""
    reason = refusal(path, data, encoding)

    assert reason.startswith(f"the file is not {encoding or 'utf-16'}: line {line} has the byte")


@pytest.mark.parametrize("encoding", ["hex", "no such", "rot13", "x\0y", "zlib"])
def test_an_encoding_that_is_none_is_named(path: Path, encoding: str) -> None:
    """What the profile says is wrong then, not the file."""
    reason = refusal(path, b"616263", encoding, code="bad_profile")

    assert reason.startswith(f"{encoding!r} is no encoding of text")


def test_half_surrogates_never_get_through(path: Path) -> None:
    """Some encodings can write what no text has; JSON cannot."""
    assert "no encoding of text" in refusal(path, b"a\n+2AA-", "utf-7", code="bad_profile")


def test_the_encoding_is_noted(path: Path) -> None:
    """What is not said of itself is said to people."""
    path.write_bytes("hi".encode("utf-16"))
    source = OnDisk(path)
    list(read_text(source, ReadOptions(max_row_bytes=PLENTY)))

    assert source.notes == {"encoding": "utf-16"}


@pytest.mark.parametrize("encoding", [None, "utf-16"])
def test_memory_does_not_grow_with_the_file(path: Path, encoding: str | None) -> None:
    """20 MB of lines are read in less than 8."""
    path.write_text(("words, " * 60 + "\n") * 50_000, encoding=encoding or "utf-8")

    tracemalloc.start()
    count = sum(1 for _ in spread(read_text(OnDisk(path), ReadOptions(max_row_bytes=PLENTY))))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 50_000
    assert peak_bytes < 8_000_000
