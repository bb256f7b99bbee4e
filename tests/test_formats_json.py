from __future__ import annotations

import codecs
import io
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats.json_files import read_json, read_jsonl
from promptspool.intake.formats.json_scan import MAX_DEPTH
from promptspool.intake.rows import ReadOptions, Row, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLENTY = ReadOptions(max_row_bytes=1_000_000)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(alphabet='ab{}[]",:\\\n\u2028é😀', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
rows_of_values = st.dictionaries(st.text(max_size=6), values, max_size=4) | st.text(max_size=12)


class Held:
    """A source whose content is in memory, read in small pieces if *max_read* says so."""

    def __init__(self, data: bytes, *, max_read: int | None = None) -> None:
        """Hold *data*."""
        self.name = "held.json"
        self.notes: dict[str, str] = {}
        self._data = data
        self._max_read = max_read

    def open(self) -> io.BytesIO:
        """Open it at its beginning."""
        return (
            io.BytesIO(self._data) if self._max_read is None else Slow(self._data, self._max_read)
        )

    def path(self) -> Path:
        """Never be asked for, since it is on no disk."""
        raise NotImplementedError


class Slow(io.BytesIO):
    """A file that gives no more than a few bytes at once, as one whose blocks end everywhere."""

    def __init__(self, data: bytes, max_read: int) -> None:
        """Hold *data*, and give *max_read* bytes of it at once after the byte order mark."""
        super().__init__(data)
        self._max_read = max_read

    def read(self, size: int | None = -1, /) -> bytes:
        """Return fewer bytes than asked for."""
        return super().read(min(self._max_read, size) if size and size > 0 else size)


def rows(
    data: bytes | str, *, options: ReadOptions = PLENTY, max_read: int | None = None
) -> list[Row]:
    """Return the rows of a .json file."""
    raw = data.encode() if isinstance(data, str) else data

    return list(spread(read_json(Held(raw, max_read=max_read), options)))


def line_rows(data: bytes, *, options: ReadOptions = PLENTY) -> list[Row]:
    """Return the rows of a .jsonl file."""
    return list(spread(read_jsonl(Held(data), options)))


def parsed(found: list[Row]) -> list[dict[str, Any]]:
    """Return the columns of rows without a fault, parsed."""
    assert [row.fault for row in found if row.fault] == []

    return [
        {name: json.loads(raw) for name, raw in row.columns.items()}
        for row in found
        if row.columns is not None
    ]


def faults(found: list[Row]) -> list[tuple[int, str, str]]:
    """Return line, code and reason of the faults."""
    return [(row.line, row.fault.code, row.fault.reason) for row in found if row.fault]


def refusal(read: Callable[[], object]) -> tuple[str, int | None, str]:
    """Return code, line and reason of the complaint about a whole file."""
    with pytest.raises(BadInput) as caught:
        read()

    return caught.value.code, caught.value.line, caught.value.reason


def as_row(value: dict[str, Any] | str) -> dict[str, Any]:
    """Return the columns that a value is to become."""
    return {"prompt": value} if isinstance(value, str) else value


# --- documents -------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(rows_of_values, max_size=5),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([",", ", ", " ,\n"]),
    st.integers(4, 40),
    st.sampled_from([b"", codecs.BOM_UTF8]),
)
def test_an_array_is_its_elements(
    elements: list[Any], indent: int | None, comma: str, max_read: int, start: bytes
) -> None:
    """Written in whichever way, cut into whichever blocks, each element is a row."""
    text = "[" + comma.join(json.dumps(one, indent=indent) for one in elements) + "]"

    assert parsed(rows(start + text.encode(), max_read=max_read)) == [
        as_row(one) for one in elements
    ]


@settings(deadline=None)
@given(
    st.lists(rows_of_values, min_size=1, max_size=4),
    st.sampled_from(["\n", " ", "\n\n", "\r\n"]),
    st.sampled_from([{}, {"indent": 2}, {"ensure_ascii": False}]),
    st.integers(4, 40),
)
def test_values_one_after_another_are_rows(
    elements: list[Any], gap: str, style: dict[str, Any], max_read: int
) -> None:
    """JSON Lines in a .json, line breaks inside of its objects or not, is read as such."""
    elements.append({"prompt": "the last"})
    text = gap.join(json.dumps(one, **style) for one in elements)

    assert parsed(rows(text, max_read=max_read)) == [as_row(one) for one in elements]


@settings(deadline=None)
@given(
    st.lists(rows_of_values, min_size=1, max_size=4),
    st.dictionaries(
        st.text(max_size=3), st.integers() | st.dictionaries(st.text(max_size=2), values)
    ),
    st.integers(0, 4),
    st.integers(4, 40),
)
def test_the_one_array_in_an_object_is_its_elements(
    elements: list[Any], others: dict[str, Any], position: int, max_read: int
) -> None:
    """Wherever it stands among other members that are no arrays."""
    members = [(name, value) for name, value in others.items() if name != "data"]
    members.insert(position, ("data", elements))
    data = json.dumps(dict(members), indent=1).encode()
    source = Held(data, max_read=max_read)

    assert parsed(list(spread(read_json(source, PLENTY)))) == [as_row(one) for one in elements]
    assert source.notes == {"layout": "the array 'data' of an object"}


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"input": ["a", "b"]},
        {"prompt": ["a", "b"], "n": 1},
        {"url": "/v1/embeddings", "body": {"input": ["a"]}, "tags": ["x"]},
        {"Question": "why?", "tags": ["x", "y"]},
        {"review": "good", "stars": 5},
        {"vector": [1, 2, 3]},
        {"data": []},
        {},
    ],
)
def test_an_object_that_is_a_row_is_one(value: dict[str, Any]) -> None:
    """What requests are made of is a row, with an array in it or not; so is one without rows."""
    assert parsed(rows(json.dumps(value, indent=2))) == [value]


def test_a_row_with_an_array_is_a_row_among_rows() -> None:
    """An object is never taken for a container when another value follows it."""
    value = {"review": "good", "tags": ["x", "y"]}

    assert parsed(rows(json.dumps(value) + "\n" + json.dumps(value))) == [value, value]


def test_several_arrays_are_named() -> None:
    """Which of them is meant cannot be known."""
    data = b'{"train": [{"a": 1}], "n": [1], "te\xc3\xafst": ["x"]}'

    assert refusal(lambda: rows(data)) == (
        "ambiguous_rows",
        None,
        (
            "the object has 3 arrays that could be the rows: 'train', 'n', 'teïst'; leave one, or "
            "write it alone"
        ),
    )


@pytest.mark.parametrize(
    "value",
    [
        {"columns": ["name", "prompt"], "data": [["a", "What?"]]},
        {"tags": ["red"], "rows": []},
        {"a": [{"prompt": "a"}], "b": [1]},
    ],
)
def test_no_array_is_passed_over(value: dict[str, Any]) -> None:
    """Where a second array may be the rows, the first is not asked and paid for."""
    code, _, _ = refusal(lambda: rows(json.dumps(value)))

    assert code == "ambiguous_rows"


@pytest.mark.parametrize(
    "value",
    [{"name": "set", "keywords": ["k1", "k2"]}, {"instruction": "Sum up", "context": ["a", "b"]}],
)
def test_a_list_of_texts_is_not_rows_by_itself(value: dict[str, Any]) -> None:
    """An object with a list of words in it is one row."""
    assert parsed(rows(json.dumps(value))) == [value]


def test_each_row_is_found_on_its_line() -> None:
    """`Row.line` is the line where the element begins."""
    found = rows('\n[{"a":\n 1},\n\n  "b", {"c": 2},\n3]')

    assert [row.line for row in found] == [2, 5, 5, 6]
    assert faults(found) == [
        (6, "not_an_object", 'found the number 3; write an object, as in {"prompt": "..."}')
    ]


def test_numbers_keep_their_digits() -> None:
    """A value is the text it was in the file."""
    [row] = rows('[{"n": 1.50, "big": 12345678901234567890123, "s": "\\u00e9"}]')

    assert row.columns == {"n": b"1.50", "big": b"12345678901234567890123", "s": b'"\\u00e9"'}


# --- broken documents ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[\n{"a": NaN},', 2, "broken JSON: NaN is no JSON; write null or a string"),
        ('[{"a": 1} {"b": 2},', 1, "broken JSON: extra data at line 1, column 11"),
        ('[\n  {"a": 1,},', 2, None),
        ('[{"a":\n "b" "c"},', 1, "broken JSON: expecting ',' delimiter at line 2, column 6"),
        ("[{'a': 'b'},", 1, None),
        ("[,", 1, "broken JSON: found a comma without a value; take one of the commas out"),
        ('[{"a": [1}},', 1, "broken JSON: expecting ',' delimiter at line 1, column 10"),
        ('["\\ud800",', 1, "broken JSON: half a surrogate pair (\\uD800 to \\uDFFF stand only in"),
        ("[" + "[" * 2000 + "]" * 2000 + ",", 1, "the JSON is nested too deeply"),
    ],
)
def test_a_broken_element_is_a_fault_and_the_next_is_found(
    text: str, line: int, reason: str | None
) -> None:
    """What is wrong between two commas harms no other row."""
    found = rows(text + '\n{"next": 1}]')

    assert [(row.line, row.fault is None) for row in found][-1] == (text.count("\n") + 2, True)
    assert len(found) == 2
    assert found[0].line == line
    assert found[0].fault is not None
    assert found[0].fault.code == "invalid_json"
    assert found[0].fault.reason.startswith(reason or "broken JSON: ")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (
            '[{"a": 1}\n',
            1,
            (
                "broken JSON: the file ends inside of what begins at line 1, column 2; it was cut "
                "short, or a bracket is missing"
            ),
        ),
        (
            '[{"a": 1},\n',
            2,
            "broken JSON: found the end of the file at line 2, column 1, where a value",
        ),
        (
            '[{"a": "b},\n{"c": "d"}]',
            1,
            (
                "broken JSON: the string that begins at line 1, column 8 does not end on its line; "
                'write \\n for a line break and \\" for a quote inside of it'
            ),
        ),
        ('["a"]\n x', 2, "broken JSON: found 'x' at line 2, column 2, where the end of the file"),
        ('["a"}', 1, "broken JSON: found '}' at line 1, column 5, where a comma or ] belongs"),
        ('{"a": 1}, {"b": 2}', 1, "broken JSON: found ',' at line 1, column 9, where an object or"),
        (
            '{"a": 1, }',
            1,
            "broken JSON: found '}' at line 1, column 10, where a key in double quotes",
        ),
        (
            "{'a': 1}",
            1,
            'broken JSON: found "\'" at line 1, column 2, where a key in double quotes',
        ),
        ('{"a" 1}', 1, "broken JSON: found '1' at line 1, column 6, where a colon belongs"),
        (
            '{"a": [1}',
            1,
            "broken JSON: found the end of the file at line 1, column 10, where a value",
        ),
        ("prompt,answer\n", 1, "broken JSON: found 'p' at line 1, column 1, where an object or"),
        ("}", 1, "broken JSON: found '}' at line 1, column 1, where an object or a string belongs"),
        ("\u00e9", 1, "broken JSON: found the byte 0xc3 at line 1, column 1, where an object or"),
    ],
)
def test_what_hides_the_next_row_refuses_the_file(text: str, line: int, reason: str) -> None:
    """Nothing is guessed behind a place where the structure is lost; line and column are named."""
    code, found_line, found = refusal(lambda: rows(text))

    assert (code, found_line) == ("invalid_json", line)
    assert found.startswith(reason)


def test_a_long_element_is_skipped_and_the_next_is_found() -> None:
    """It is not held, in an array, after one another, or in many blocks."""
    options = ReadOptions(max_row_bytes=50)
    expected = [(1, "line_too_long", "the element is longer than 50 bytes; shorten it")]

    for data in ('["' + "x" * 3_000_000 + '", {"a": 1}]', '{"b": "' + "x" * 60 + '"} {"a": 1}'):
        found = rows(data, options=options)
        assert faults(found) == expected
        assert found[1].columns == {"a": b"1"}


@pytest.mark.parametrize("opening", ["[", '["x", [', '{"a": ', '{"a": {"b": ', "[{"])
def test_brackets_without_end_are_refused_at_once(opening: str) -> None:
    """A million of them cost no recursion and no time that grows with their square."""
    code, line, reason = refusal(lambda: rows(opening + "[" * 1_000_000))

    assert (code, line) == ("invalid_json", 1)
    assert f"nested too deeply: {MAX_DEPTH + 1:,} brackets are open" in reason


@pytest.mark.parametrize(
    ("data", "line", "offset"),
    [
        (b'["a",\n {"b":\n "caf\xe9"}]', 3, 18),
        (b'{"a": "\xff"}', 1, 7),
        (b'\xef\xbb\xbf["\xff"]', 1, 5),
    ],
)
def test_what_is_not_utf8_refuses_the_file(data: bytes, line: int, offset: int) -> None:
    """What one editor saved wrongly is wrong everywhere."""
    byte = data[offset]

    assert refusal(lambda: rows(data)) == (
        "wrong_encoding",
        line,
        (
            f"the file is not UTF-8: line {line} has the byte 0x{byte:02x} at offset {offset} of "
            f"the file; save it as UTF-8 and drop it again"
        ),
    )


def test_a_foreign_byte_order_mark_is_named() -> None:
    """UTF-16 is told by its first bytes."""
    assert refusal(lambda: rows('["a"]'.encode("utf-16")))[0] == "wrong_encoding"
    assert refusal(lambda: rows('["a"]'.encode("utf-16-le")))[0] == "wrong_encoding"


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=200)
    | st.text(alphabet='[]{}",:\\a1 \n', max_size=60).map(str.encode)
    | st.lists(rows_of_values, max_size=3).map(lambda value: json.dumps(value).encode()),
    st.integers(0, 200),
    st.binary(max_size=3),
    st.integers(4, 30),
)
@example(b'["\\', 4, b"", 4)
def test_whatever_bytes_are_rows_or_refused(
    data: bytes, at: int, inserted: bytes, max_read: int
) -> None:
    """Bytes put in anywhere end in rows, faults or one complaint, the same in whichever blocks."""
    broken = data[:at] + inserted + data[at + 1 :]
    outcomes = []

    for size in (None, max_read):
        found: list[object] = []

        try:
            for row in spread(read_json(Held(broken, max_read=size), PLENTY)):
                assert (row.columns is None) is (row.fault is not None)
                found.append((row.line, row.columns, row.fault and row.fault.reason))
        except BadInput as error:
            found.append((error.code, error.line, error.reason))

        outcomes.append(found)

    assert outcomes[0] == outcomes[1]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """12 MB of rows are read in less than 4, as the array of an object."""
    path = tmp_path / "big.json"
    row = json.dumps({"prompt": "words, " * 40})

    with path.open("w") as file:
        file.write('{"meta": 1, "data": [' + row)
        file.writelines(f",\n{row}" for _ in range(40_000))
        file.write("]}")

    class OnDisk(Held):
        def open(self) -> Any:
            return path.open("rb")

    tracemalloc.start()
    count = sum(1 for _ in read_json(OnDisk(b""), PLENTY))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 40_001
    assert peak_bytes < 4_000_000


# --- JSON Lines ------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(rows_of_values, max_size=6),
    st.sampled_from(["\n", "\r\n", "\n \n"]),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_each_line_is_a_row(elements: list[Any], end: str, separators: tuple[str, str]) -> None:
    """With its number, blank lines counted but left out."""
    data = "".join(json.dumps(one, separators=separators) + end for one in elements).encode()
    found = line_rows(data)

    assert parsed(found) == [as_row(one) for one in elements]
    assert [row.line for row in found] == [1 + n * end.count("\n") for n in range(len(elements))]


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (
            b"[1]",
            "not_an_object",
            'found an array; write one object a line, as in {"prompt": "..."}',
        ),
        (
            b"nul",
            "invalid_json",
            "broken JSON: expecting value at column 1; write one whole object a",
        ),
        (b'{"a": NaN}', "invalid_json", "broken JSON: NaN is no JSON; write null or a string"),
        (b'{"a": 1', "invalid_json", "broken JSON: expecting ',' delimiter at column 8; write one"),
        (b'{"a": 1, "b": 2, "a": 3}', "duplicate_key", "the key 'a' is there twice; leave one of"),
        (b'{"a":1,"a":2}', "duplicate_key", "the key 'a' is there twice; leave one of them out"),
        (b'{"x":"1","a":1,"a":2,"b":2,"c":3}', "duplicate_key", "the key 'a' is there twice"),
        (b'{"a":{"b": 1}, "\\u0061" : 2}', "duplicate_key", "the key 'a' is there twice; leave"),
        (
            b'{"prompt": "' + b"x" * 100 + b'"}',
            "line_too_long",
            "the line is longer than 99 bytes;",
        ),
    ],
)
def test_a_line_that_is_no_row_is_a_fault(line: bytes, code: str, reason: str) -> None:
    """The next line is read as if nothing had been."""
    options = ReadOptions(max_row_bytes=99)
    found = line_rows(b'{"a": 1}\n' + line + b'\n{"c": 3}', options=options)

    assert [row.line for row in found] == [1, 2, 3]
    assert found[2].columns == {"c": b"3"}
    assert found[1].fault is not None
    assert found[1].fault.code == code
    assert found[1].fault.reason.startswith(reason)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=3), values), max_size=5),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_a_key_is_never_lost(members: list[tuple[str, Any]], marks: tuple[str, str]) -> None:
    """An object with one key twice is a fault, any other is a row."""
    comma, colon = marks
    text = comma.join(json.dumps(name) + colon + json.dumps(value) for name, value in members)
    [row] = line_rows(f"{{{text}}}".encode())

    assert (row.fault is None) is (len(dict(members)) == len(members))


@pytest.mark.parametrize("start", [b"[", b" \n\n [", codecs.BOM_UTF8 + b"\n["])
def test_an_array_in_a_jsonl_is_accepted(start: bytes) -> None:
    """The most common mistake, simply accepted, and said."""
    source = Held(start + b'\n{"a": 1},\n"b"]')

    assert parsed(list(spread(read_jsonl(source, PLENTY)))) == [{"a": 1}, {"prompt": "b"}]
    assert source.notes == {"layout": "one array, not an object a line"}


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        (
            '{"a": 1,  "b": "%s", "a": 2}',
            "duplicate_key",
            "the key 'a' is there twice; leave one of",
        ),
        ('{"b": "%s", "a": [[],[],[]}', "invalid_json", "broken JSON: JSON is malformed: "),
        ('{"b": "%s",\t"a": 1}', None, ""),
    ],
)
def test_large_rows_are_looked_at_without_being_taken_apart(
    text: str, code: str | None, reason: str
) -> None:
    """What is wrong with them is found all the same."""
    [row] = line_rows(
        (text % ("x" * 2_000_000)).encode(), options=ReadOptions(max_row_bytes=1 << 24)
    )

    assert (row.fault and row.fault.code) == code
    assert row.fault is None or row.fault.reason.startswith(reason)


def test_a_reader_is_lazy() -> None:
    """The rows before a broken place are given before it is reached."""
    reading: Iterator[Row] = spread(read_json(Held(b'["a", "b"'), PLENTY))

    assert next(reading).columns == {"prompt": b'"a"'}

    with pytest.raises(BadInput):
        next(reading)
