"""Blocks of delimited rows: a faster way to the same rows."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats.delimited import read_delimited
from promptspool.intake.rows import Block, ReadOptions, Row, spread

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import IO

PLENTY = 50_000_000

ODDS = [
    *'",;|\t\n\r\0\\ ab',
    '""',
    '","',
    '"\n',
    '\n"',
    '"""',
    "\r\n",
    "\n\n",
    "1,2\n",
    '"3","4"\n',
    "x,y\r\n",
    "\x01",
    "\x1f",
    "\x7f",
    "\x0b",
    "\x85",
    "\u2028",
    "ü",
    "京",
    "😀",
]
"""What tables are made of, and what they break at."""

SOME = st.lists(st.sampled_from(ODDS), min_size=1, max_size=4, unique=True)
"""A few of them: a text that has all of them is odd all over."""

TEXTS = SOME.flatmap(
    lambda some: st.lists(st.sampled_from([*some, "1,2\n", 'x,"y ""z"""\n']), max_size=20).map(
        "".join
    )
)
ROWS = SOME.flatmap(
    lambda some: st.lists(
        st.tuples(
            *[st.lists(st.sampled_from([*some, "a"]), max_size=4).map("".join) for _ in "ab"]
        ),
        min_size=1,
        max_size=12,
    )
)

ENDLESS = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


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


class Told(NamedTuple):
    """All that a reader tells: its rows, what is wrong with the file, and its notes."""

    rows: list[tuple[object, ...]]
    refusal: tuple[object, ...] | None
    notes: dict[str, str]


def dropped(folder: Path, data: bytes) -> Dropped:
    """Drop a file that holds *data*."""
    path = folder / "table.csv"
    path.write_bytes(data)

    return Dropped(path.name, path)


def options(
    *, max_row_bytes: int = PLENTY, encoding: str | None = None, delimiter: str | None = None
) -> ReadOptions:
    """Return what a profile says."""
    return ReadOptions(max_row_bytes=max_row_bytes, encoding=encoding, delimiter=delimiter)


def told(source: Dropped, how: ReadOptions, block_bytes: int | None) -> Told:
    """Read all of *source* in blocks of about so many bytes; None for no blocks."""
    rows: list[tuple[object, ...]] = []
    refusal = None
    source.notes.clear()

    try:
        for row in spread(read_delimited(source, replace(how, block_bytes=block_bytes))):
            columns = None if row.columns is None else list(row.columns.items())
            rows.append((row.line, columns, plain(row.fault), row.name, row.number))
    except BadInput as error:
        refusal = plain(error)

    return Told(rows, refusal, dict(source.notes))


def plain(fault: BadInput | None) -> tuple[object, ...] | None:
    """Return what can be compared of a fault."""
    return None if fault is None else (fault.code, fault.line, fault.key, str(fault))


def found(source: Dropped, how: ReadOptions | None = None) -> list[Row | Block]:
    """Return the blocks of a file, and the rows between them."""
    return list(read_delimited(source, how or options()))


def table(rows: Iterable[Iterable[str]], quoting: Literal[0, 1], end: str) -> str:
    """Return a table as the csv module writes it."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, lineterminator=end).writerows(rows)

    return text.getvalue()


@ENDLESS
@given(
    header=st.sampled_from(["a,b\n", "a\n", "a,b,\r\n", '"a","b","c"\n', "sep=;\na;b\n", "a\tb\r"]),
    text=TEXTS,
    block_bytes=st.integers(1, 60),
    max_row_bytes=st.sampled_from([3, 10, 30, PLENTY, PLENTY]),
    delimiter=st.sampled_from([None, None, ",", ";", "\\", "ü"]),
)
def test_any_text_is_the_same_in_blocks(  # noqa: PLR0913 (what texts differ in)
    tmp_path: Path,
    *,
    header: str,
    text: str,
    block_bytes: int,
    max_row_bytes: int,
    delimiter: str | None,
) -> None:
    """What is odd is odd in the same way, with the same line, wherever blocks end."""
    source = dropped(tmp_path, (header + text).encode())
    how = options(max_row_bytes=max_row_bytes, delimiter=delimiter)

    assert told(source, how, block_bytes) == told(source, how, None)


@ENDLESS
@given(
    rows=ROWS,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    block_bytes=st.integers(1, 200),
    odd=st.sampled_from(["", "", "x\n", "1,2,3\n", "\n\n", 'a "b", c\n', '"a"b,c\n']),
    place=st.floats(0, 1),
)
def test_written_tables_are_the_same_in_blocks(  # noqa: PLR0913 (what tables differ in)
    tmp_path: Path,
    *,
    rows: list[tuple[str, str]],
    quoting: Literal[0, 1],
    end: str,
    block_bytes: int,
    odd: str,
    place: float,
) -> None:
    """A table as the csv module writes it, with something odd in it, has the same rows."""
    at = int(place * len(rows))
    before, after = table([("id", "prompt"), *rows[:at]], quoting, end), rows[at:]
    source = dropped(tmp_path, (before + odd + table(after, quoting, end)).encode())

    assert told(source, options(), block_bytes) == told(source, options(), None)


@pytest.mark.parametrize(
    "odd",
    [
        'x"y",z',
        '"x"y,z',
        '"x"\r,z',
        "x\ry,z",
        '"x\ry",z',
        '"x\r\n\ny",z',
        "x,y,z",
        "x\n1,2,3,4",
        "x",
        "",
        "x\0,y",
        'x,"y',
        '"x"""y,z',
        '""x,y',
        '"","x"""""',
        '"""",""""""',
    ],
)
@pytest.mark.parametrize("header", ["a,b", "a,b,", "a"])
def test_an_odd_line_among_plain_ones_is_the_same(tmp_path: Path, odd: str, header: str) -> None:
    """What the csv module reads in a way of its own is read by it, and so is all around it."""
    plain = '1,2\n"3, ""4""",5\n' if "," in header else '1\n"3, ""4"""\n'
    source = dropped(tmp_path, f"{header}\n{plain}{odd}\n{plain}".encode())

    for block_bytes in (1, 12, 1_000):
        assert told(source, options(delimiter=","), block_bytes) == told(
            source, options(delimiter=","), None
        )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "shift_jis"])
@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 1000])
def test_encodings_are_the_same_in_blocks(tmp_path: Path, encoding: str, block_bytes: int) -> None:
    """No character is cut where a block ends, and no line is."""
    words = {"cp1252": "Käse für €5", "shift_jis": "東京、大阪"}.get(encoding, "Käse 京 😀")
    rows = [(str(number), f'{words}, "{words}"\n{words}') for number in range(20)]
    text = table([("id", "prompt"), *rows], csv.QUOTE_MINIMAL, "\r\n")
    source = dropped(tmp_path, text.encode(encoding))
    how = options(encoding=encoding)
    seen = told(source, how, block_bytes)

    assert seen == told(source, how, None)
    assert len(seen.rows) == 20
    assert seen.rows[-1][1] == [
        ("id", b'"19"'),
        ("prompt", msgspec.json.encode(rows[-1][1])),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_set_encoding_that_does_not_hold_is_told(tmp_path: Path, encoding: str) -> None:
    """A wrong byte in the middle of a plain block refuses the file, with its line."""
    mark = b"\xef\xbb\xbf" if encoding == "utf-8-sig" else b""
    data = mark + b"id,prompt\n" + b"1,a\n" * 50 + b'2,"\xff"\n' + b"3,b\n" * 50
    refusal = told(dropped(tmp_path, data), options(encoding="utf-8"), 1000).refusal

    assert refusal is not None
    assert refusal[:2] == ("wrong_encoding", 52)


def test_plain_tables_are_blocks(tmp_path: Path) -> None:
    """Quotes, quotes in quotes, line ends in quotes and escapes are all plain."""
    values = [
        "",
        "x",
        "a, b",
        '"',
        '""',
        'say "hi"',
        '"hi" he said',
        "two\nlines",
        "\r\n",
        "\\",
        "\t",
    ]
    rows = [(str(number), value) for number, value in enumerate(values)]
    text = table([("id", "prompt"), *rows], csv.QUOTE_MINIMAL, "\r\n")
    [block] = found(dropped(tmp_path, text.encode()))

    assert isinstance(block, Block)
    assert list(block.lines) == [2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14]
    assert [msgspec.json.decode(value) for value in block.columns["prompt"]] == values
    assert list(block.columns) == ["id", "prompt"]


def test_one_odd_row_costs_one_block(tmp_path: Path) -> None:
    """Around a row that is odd, all that is more than a block away is read in blocks."""
    good = "1,some text\n" * 50_000
    seen = found(dropped(tmp_path, f"id,prompt\n{good}1,2,3\n{good}".encode()))
    rows = [one for one in seen if isinstance(one, Row)]
    [fault] = [row for row in rows if row.fault is not None]

    assert fault.line == 50_002
    assert len(rows) < 50_000
    assert sum(len(one.lines) for one in seen if isinstance(one, Block)) + len(rows) == 100_001


def test_a_record_is_as_long_as_many_blocks(tmp_path: Path) -> None:
    """A value of many blocks is read, and what comes after it is read in blocks again."""
    long = "word, and\n" * 100_000
    rows = [("1", "a"), ("2", long), *((str(number), "b") for number in range(3, 30_000))]
    text = table([("id", "prompt"), *rows], csv.QUOTE_MINIMAL, "\n")
    seen = found(dropped(tmp_path, text.encode()))

    assert [msgspec.json.decode(row.columns["prompt"]) for row in spread(seen) if row.columns] == [
        value for _, value in rows
    ]
    assert isinstance(seen[-1], Block)


def test_a_line_without_end_is_not_held_longer_than_a_row(tmp_path: Path) -> None:
    """The limit of a row holds where there are no line ends to read up to."""
    source = dropped(tmp_path, b"id,prompt\n1," + b"x" * 1_000_000)
    refusal = told(source, options(max_row_bytes=1_000), 100).refusal

    assert refusal is not None
    assert refusal[:2] == ("row_too_long", 2)
