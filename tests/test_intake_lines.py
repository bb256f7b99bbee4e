from __future__ import annotations

import codecs
import hashlib
import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.lines import HashedFile, Line, lines

PLENTY = 1_000_000


def read(data: bytes, max_bytes: int = PLENTY) -> list[Line]:
    """Return all the lines of a file that holds *data*."""
    return list(lines(io.BytesIO(data), max_bytes=max_bytes))


# The characters that readers of lines disagree about, and a few that they do not.
texts = st.text(alphabet='ab {}"\u2028\u2029\x85\x0b\x0c\x1c\r\n\ufeffé😀', max_size=80)


@settings(deadline=None)
@given(texts.filter(lambda text: "\0" not in text))
def test_lines_end_at_line_feeds_and_nowhere_else(text: str) -> None:
    """Reading agrees with `bytes.split` at line feeds, less blank lines, one CR and the BOM."""
    data = text.encode()
    expected = [
        Line(number, stripped)
        for number, raw in enumerate(data.split(b"\n"), start=1)
        if (
            stripped := raw.removesuffix(b"\r").removeprefix(
                codecs.BOM_UTF8 if number == 1 else b""
            )
        ).strip()
    ]

    assert read(data) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 6), st.sampled_from(["\n", "\r\n"]))
def test_a_long_line_is_skipped_and_the_next_is_found(
    lengths: list[int], max_bytes: int, end: str
) -> None:
    """A line over the limit is one row without data; it moves no other line."""
    data = "".join("x" * length + end for length in lengths).encode()
    expected = [
        Line(number, b"x" * length if length <= max_bytes else None)
        for number, length in enumerate(lengths, start=1)
        if length
    ]

    assert read(data, max_bytes) == expected


def test_the_last_line_needs_no_line_feed() -> None:
    """A file may end in the middle of its last line's end."""
    assert read(b"a\nb") == read(b"a\nb\n") == read(b"a\r\nb\r") == [Line(1, b"a"), Line(2, b"b")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"caf\xe9\n",
            (
                "the file is not UTF-8: line 1 has the byte 0xe9 at offset 3 of the file; "
                "save it as UTF-8 and drop it again"
            ),
        ),
        (
            b"\xef\xbb\xbfone\n\ntwo \xff\n",
            (
                "the file is not UTF-8: line 3 has the byte 0xff at offset 12 of the file; "
                "save it as UTF-8 and drop it again"
            ),
        ),
        (
            "hi".encode("utf-16"),
            "the file is UTF-16 (it starts with that byte order mark); save it as UTF-8",
        ),
        (
            codecs.BOM_UTF16_BE + "hi".encode("utf-16-be"),
            "the file is UTF-16 (it starts with that byte order mark); save it as UTF-8",
        ),
        (
            "hi".encode("utf-32"),
            "the file is UTF-32 (it starts with that byte order mark); save it as UTF-8",
        ),
        (
            "hi".encode("utf-16-le"),
            "the file starts with zero bytes, so it is UTF-16 or no text; save it as UTF-8",
        ),
    ],
)
def test_what_is_not_utf8_is_named(data: bytes, message: str) -> None:
    """A wrong encoding says where it shows and what to do."""
    with pytest.raises(BadInput) as caught:
        read(data)

    assert (str(caught.value), caught.value.code) == (message, "wrong_encoding")


def test_offsets_count_skipped_bytes() -> None:
    """The offset of a bad byte is the file's, also behind a line too long to be held."""
    with pytest.raises(BadInput, match="line 2 has the byte 0xff at offset 101 of the file"):
        read(b"x" * 100 + b"\n\xff\n", 10)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 64))
def test_the_digest_is_the_files(data: bytes, block_bytes: int) -> None:
    """Whatever is read in which blocks, the digest at the end is that of the whole file."""
    raw = io.FileIO(_pipe(data), "rb")
    hashed = HashedFile(raw)

    with raw:
        assert io.BufferedReader(hashed, block_bytes).read() == data

    assert hashed.hexdigest() == hashlib.sha256(data).hexdigest()


def _pipe(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)

    return reading
