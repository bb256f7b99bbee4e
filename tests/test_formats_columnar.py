from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc, parquet

from promptspool.errors import BadInput
from promptspool.intake.formats import columnar, columnar_files
from promptspool.intake.rows import Added, ReadOptions, Row, spread
from promptspool.worker import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from promptspool.intake.rows import Cell

OPTIONS = ReadOptions(max_row_bytes=1_000_000)

ADDED = [
    Added("answer", "text"),
    Added("tokens", "integer"),
    Added("score", "number"),
    Added("is_good", "boolean"),
]


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


def stored_parquet(table: Any, path: Path, **options: Any) -> Path:
    """Write *table* as parquet."""
    parquet.write_table(table, path, **options)

    return path


def stored_file(table: Any, path: Path, **options: Any) -> Path:
    """Write *table* as a file of Arrow."""
    with ipc.new_file(str(path), table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)

    return path


def stored_stream(table: Any, path: Path, **options: Any) -> Path:
    """Write *table* as a stream of Arrow."""
    with ipc.new_stream(str(path), table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)

    return path


def stored_feather(table: Any, path: Path, **options: Any) -> Path:
    """Write *table* as Feather, version 2."""
    feather.write_feather(table, str(path), **options)

    return path


KINDS: list[tuple[Callable[..., Path], str]] = [
    (stored_parquet, "parquet"),
    (stored_file, "arrow"),
    (stored_stream, "arrow"),
    (stored_feather, "arrow"),
]
every_kind = pytest.mark.parametrize(("store", "kind"), KINDS)


def read(path: Path, kind: str = "parquet", options: ReadOptions = OPTIONS) -> list[Row]:
    """Return the rows of a file."""
    reader = columnar.read_parquet if kind == "parquet" else columnar.read_arrow

    return list(spread(reader(Dropped(path), options)))


def written(
    path: Path, kind: str, cells: Iterator[Sequence[Cell]], added: Sequence[Added] = ADDED
) -> Any:
    """Write a file's table with *cells* added and return it as pyarrow reads it."""
    writer = columnar.write_parquet if kind == "parquet" else columnar.write_arrow
    target = path.with_name("results")
    writer(Dropped(path), OPTIONS, target, added, cells)

    return stored_table(target, kind)


def stored_table(path: Path, kind: str) -> Any:
    """Return what is in a file, as pyarrow reads it."""
    if kind == "parquet":
        return parquet.read_table(path)

    if path.read_bytes().startswith(b"ARROW1"):
        with ipc.open_file(path.read_bytes()) as reader:
            return reader.read_all()

    with ipc.open_stream(path.read_bytes()) as reader:
        return reader.read_all()


def values(rows: list[Row], name: str) -> list[Any]:
    """Return the values of a column, parsed."""
    return [json.loads(row.columns[name]) for row in rows if row.columns is not None]


@every_kind
def test_rows_are_counted_from_one_in_their_order(
    tmp_path: Path, store: Callable[..., Path], kind: str
) -> None:
    """Each row of each row group or record batch comes once, in order, with its number."""
    count = 5_000
    table = pa.table({"id": range(count), "prompt": [f"number {n} é😀" for n in range(count)]})
    rows = read(store(table, tmp_path / "table"), kind)

    assert [row.line for row in rows] == list(range(1, count + 1))
    assert values(rows, "id") == list(range(count))
    assert values(rows, "prompt") == table["prompt"].to_pylist()
    assert {tuple(row.columns or ()) for row in rows} == {("id", "prompt")}


UTC = dt.UTC
MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9, 120_000)  # noqa: DTZ001 (as a table has it)


@every_kind
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a", None, "", '"\\\n\0']), ["a", None, "", '"\\\n\0']),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array([1, None, -(2**63)]), [1, None, -(2**63)]),
        (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        (pa.array([True, None, False]), [True, None, False]),
        (pa.array([0.1, 1.0, None, math.nan, math.inf]), [0.1, 1.0, None, None, None]),
        (pa.array([0.1, 3.0, math.nan], pa.float32()), [0.1, 3.0, None]),
        (pa.nulls(2), [None, None]),
        (pa.array([decimal.Decimal("12.50"), None]), ["12.50", None]),
        (pa.array([decimal.Decimal("0.0000001")], pa.decimal128(10, 9)), ["0.000000100"]),
        (pa.array([dt.date(2024, 2, 29), None]), ["2024-02-29", None]),
        (pa.array([dt.time(1, 2, 3), None]), ["01:02:03", None]),
        (pa.array([MOMENT, None]), ["2024-05-06T07:08:09.12", None]),
        (pa.array([MOMENT.replace(tzinfo=UTC)]), ["2024-05-06T07:08:09.12Z"]),
        (pa.array([0], pa.timestamp("ms", "Europe/Berlin")), ["1970-01-01T01:00:00+01:00"]),
        (pa.array([0], pa.timestamp("ms", "Moon/Tycho")), ["1970-01-01T00:00:00Z"]),
        (pa.array([1], pa.timestamp("ns")), ["1970-01-01T00:00:00.000000001"]),
        (pa.array([90_500, -1], pa.duration("ms")), ["PT90.5S", "PT-0.001S"]),
        (pa.array([b"text \xc3\xa9", b"\xff\x00", None]), ["text é", "/wA=", None]),
        (pa.array([b"ab"], pa.binary(2)), ["ab"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([[1, None], None, [], [2]]), [[1, None], None, [], [2]]),
        (pa.array([["x"], None], pa.large_list(pa.string())), [["x"], None]),
        (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)), [[1, 2], None, [3, 4]]),
        (pa.array([{"a": 1, "b": None}, None]), [{"a": 1, "b": None}, None]),
        (pa.array([[MOMENT]]), [["2024-05-06T07:08:09.12"]]),
        (
            pa.array([[("k", 1), ("l", None)], None, []], pa.map_(pa.string(), pa.int64())),
            [{"k": 1, "l": None}, None, {}],
        ),
        (
            pa.array(
                [[("k", n)] * (n % 2) for n in range(2_000)], pa.map_(pa.string(), pa.int64())
            ),
            [{"k": n} if n % 2 else {} for n in range(2_000)],
        ),
        (pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int8())), [[["k", 1], ["k", 2]]]),
        (pa.array([[(1, "a")]], pa.map_(pa.int64(), pa.string())), [[[1, "a"]]]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_values_are_json(
    tmp_path: Path, store: Callable[..., Path], kind: str, array: Any, expected: list[Any]
) -> None:
    """What a column holds is the JSON that is nearest to it, whichever way it is stored."""
    table = pa.table({"n": range(len(array)), "value": array})
    found = read(store(table, tmp_path / "table"), kind)

    assert values(found, "value") == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array([[1], None], pa.list_view(pa.int64())), [[1], None]),
        (pa.array([b"0123456789abcdef"], pa.uuid()), ["30313233-3435-3637-3839-616263646566"]),
        (pa.array(['{"a": [1]}', "oops"], pa.json_()), [{"a": [1]}, "oops"]),
        (pa.compute.run_end_encode(pa.array(["a", "a"])), ["a", "a"]),
        (pa.array([0.5], pa.float16()), [0.5]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_rare_types_are_json_too(tmp_path: Path, array: Any, expected: list[Any]) -> None:
    """Types that only files of Arrow have become JSON as well."""
    rows = read(stored_file(pa.table({"value": array}), tmp_path / "table"), "arrow")

    assert values(rows, "value") == expected


@every_kind
def test_conversations_are_arrays_of_objects(
    tmp_path: Path, store: Callable[..., Path], kind: str
) -> None:
    """A data set's `messages` come out as the array that a chat endpoint takes."""
    messages = [
        [{"role": "user", "content": f"Hello {n}"}, {"role": "assistant", "content": None}]
        for n in range(3_000)
    ]
    rows = read(store(pa.table({"messages": messages}), tmp_path / "table"), kind)

    assert values(rows, "messages") == messages
    assert rows[0].columns == {
        "messages": b'[{"role":"user","content":"Hello 0"},{"role":"assistant","content":null}]'
    }


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.text(max_size=50), st.none() | st.integers(0, 9)), max_size=30))
def test_what_is_written_is_read(tmp_path: Path, cells: list[tuple[str, int | None]]) -> None:
    """Cells come back as they were given, whatever is in them, through every kind of file."""
    added = [Added("answer", "text"), Added("tokens", "integer")]
    table = pa.table({"prompt": pa.array([cell[0][::-1] for cell in cells], pa.string())})

    for store, kind in KINDS:
        path = store(table, tmp_path / "table")
        written(path, kind, iter(cells), added)
        rows = read(tmp_path / "results", kind)

        assert values(rows, "prompt") == table["prompt"].to_pylist()
        assert list(zip(values(rows, "answer"), values(rows, "tokens"), strict=True)) == cells


@every_kind
def test_a_table_keeps_its_columns_types_and_metadata(
    tmp_path: Path, store: Callable[..., Path], kind: str
) -> None:
    """Columns are added behind those there are, which stay as they were, and so does metadata."""
    pandas = json.dumps({"index_columns": [], "columns": [], "pandas_version": "2.2.0"})
    table = pa.table(
        {
            "when": pa.array([MOMENT, None], pa.timestamp("us")),
            "word": pa.array(["a", "b"]).dictionary_encode(),
            "messages": [[{"role": "user", "content": "hi"}], None],
        }
    ).replace_schema_metadata({"pandas": pandas, "mine": "kept"})
    cells: list[Sequence[Cell]] = [("yes", 3, 0.5, True), (None, None, None, None)]
    found = written(store(table, tmp_path / "table"), kind, iter(cells))

    assert found.column_names == ["when", "word", "messages", *(one.name for one in ADDED)]
    assert found.select(table.column_names).equals(table)
    assert found.schema.metadata[b"pandas"] == pandas.encode()
    assert found.schema.metadata[b"mine"] == b"kept"
    assert [str(found.schema.field(one.name).type) for one in ADDED] == [
        "string",
        "int64",
        "double",
        "bool",
    ]
    assert found.select([one.name for one in ADDED]).to_pylist() == [
        {"answer": "yes", "tokens": 3, "score": 0.5, "is_good": True},
        {"answer": None, "tokens": None, "score": None, "is_good": None},
    ]


@every_kind
def test_an_empty_table_stays_one(tmp_path: Path, store: Callable[..., Path], kind: str) -> None:
    """No rows in, no rows out; the columns are there."""
    path = store(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "table")

    assert read(path, kind) == []
    assert written(path, kind, iter(())).column_names == ["prompt", *(one.name for one in ADDED)]


def test_added_names_do_not_meet_those_there_are(tmp_path: Path) -> None:
    """A column that is called as an added one keeps its name and its values."""
    path = stored_parquet(pa.table({"Answer": ["mine"]}), tmp_path / "table")
    found = written(path, "parquet", iter([("theirs",)]), [Added("answer", "text")])

    assert found.to_pylist() == [{"Answer": "mine", "answer_2": "theirs"}]


def test_what_a_column_cannot_hold_is_null(tmp_path: Path) -> None:
    """A cell of another kind, or beyond 64 bits, costs its own value and no other."""
    cells: list[Sequence[Cell]] = [
        (7, 2**63, 10**400, 1),
        (True, 2.0, math.nan, None),
        (0.5, 2.5, "x", "true"),
        ("=1+1", -(2**63), 2, False),
    ]
    path = stored_parquet(pa.table({"n": range(4)}), tmp_path / "table")
    found = written(path, "parquet", iter(cells))

    assert found["answer"].to_pylist() == ["7", "True", "0.5", "=1+1"]
    assert found["tokens"].to_pylist() == [None, 2, None, -(2**63)]
    assert found["score"].to_pylist() == [None, None, None, 2.0]
    assert found["is_good"].to_pylist() == [None, None, None, False]


@every_kind
@pytest.mark.parametrize("count", [0, 2, 4])
def test_cells_that_do_not_match_the_rows_are_a_bug(
    tmp_path: Path, store: Callable[..., Path], kind: str, count: int
) -> None:
    """Answers are never set beside other rows than their own, and no half table is left."""
    path = store(pa.table({"n": range(3)}), tmp_path / "table")

    with pytest.raises(BadInput, match="other rows"):
        written(path, kind, iter([("a",)] * count), [Added("answer", "text")])

    assert not path.with_name("results").exists()


@pytest.mark.parametrize("codec", ["NONE", "SNAPPY", "GZIP", "BROTLI", "ZSTD", "LZ4"])
def test_parquet_stays_packed_as_it_was(tmp_path: Path, codec: str) -> None:
    """The table of answers is compressed as the dropped one is."""
    path = stored_parquet(pa.table({"n": range(9)}), tmp_path / "table", compression=codec)
    written(path, "parquet", iter([("a",)] * 9), [Added("answer", "text")])

    with parquet.ParquetFile(tmp_path / "results") as before, parquet.ParquetFile(path) as after:
        codecs = [
            file.metadata.row_group(0).column(place).compression
            for file in (before, after)
            for place in range(file.metadata.num_columns)
        ]

    assert len(set(codecs)) == 1


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("store", [stored_file, stored_stream, stored_feather])
def test_arrow_stays_packed_as_it_was(
    tmp_path: Path, store: Callable[..., Path], codec: str | None
) -> None:
    """A file that others map into memory is not compressed; one that was compressed still is."""
    table = pa.table({"word": pa.array(["a"] * 9_000).dictionary_encode(), "n": range(9_000)})
    name = "uncompressed" if codec is None and store is stored_feather else codec
    path = store(table, tmp_path / "table", compression=name)
    written(path, "arrow", iter([("a",)] * 9_000), [Added("answer", "text")])

    assert columnar_files.arrow_codec(path) == codec
    assert columnar_files.arrow_codec(tmp_path / "results") == codec


def test_row_groups_are_bounded(tmp_path: Path) -> None:
    """However large a row group was, what is held before it is written is not."""
    table = pa.table({"prompt": [f"{n} " * 300 for n in range(70_000)]})
    path = stored_parquet(table, tmp_path / "table", row_group_size=len(table))
    added = [Added("answer", "text")]
    columnar.write_parquet(
        Dropped(path), OPTIONS, tmp_path / "results", added, (("a",) for _ in range(len(table)))
    )

    with parquet.ParquetFile(tmp_path / "results") as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]

    assert (sum(sizes), max(sizes) <= 1 << 16, len(sizes) > 1) == (len(table), True, True)


@every_kind
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "columns 1 and 3 are both named 'a'; rename one of them"),
        (["a", "", "b"], "column 2 has no name; give it one"),
        ([], "the table has no columns"),
    ],
)
def test_columns_need_a_name_each(
    tmp_path: Path, store: Callable[..., Path], kind: str, names: list[str], message: str
) -> None:
    """A value is found by its column's name, so there is one for each, and only one."""
    path = store(pa.table([pa.array([1])] * len(names), names=names), tmp_path / "table")

    with pytest.raises(BadInput) as caught:
        read(path, kind)

    assert (str(caught.value), caught.value.code) == (message, "bad_header")

    with pytest.raises(BadInput):
        written(path, kind, iter(()))


def test_a_row_that_is_too_long_is_a_fault(tmp_path: Path) -> None:
    """Its neighbours are rows."""
    path = stored_parquet(pa.table({"prompt": ["a", "b" * 200, "c"]}), tmp_path / "table")
    rows = read(path, options=ReadOptions(max_row_bytes=100))
    fault = rows[1].fault

    assert [row.columns is None for row in rows] == [False, True, False]
    assert fault is not None
    assert (str(fault), fault.code, fault.line) == (
        "the row is longer than 100 bytes; shorten it",
        "row_too_long",
        2,
    )


def test_text_that_is_not_utf8_is_a_fault_of_its_row(tmp_path: Path) -> None:
    """One broken text is one row at fault, which says where; it stays in the table as it was."""
    texts = pa.array([b"fine", b"caf\xe9", b"fine too"]).view(pa.string())
    path = stored_parquet(pa.table({"n": [1, 2, 3], "prompt": texts}), tmp_path / "table")
    rows = read(path)
    fault = rows[1].fault

    assert values(rows, "prompt") == ["fine", "fine too"]
    assert fault is not None
    assert str(fault) == "'prompt' is not UTF-8: it has the byte 0xe9 at 3; write it as text"
    assert (fault.code, fault.line, fault.key) == ("bad_value", 2, "prompt")

    written(path, "parquet", iter([("a",), ("b",), ("c",)]), [Added("answer", "text")])
    assert values(read(tmp_path / "results"), "answer") == ["a", "c"]


@every_kind
@pytest.mark.parametrize("data", [b"", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"a,b\n1,2\n"])
def test_what_is_no_table_is_refused(
    tmp_path: Path, store: Callable[..., Path], kind: str, data: bytes
) -> None:
    """A file that is empty, too short or something else is refused with a reason."""
    path = tmp_path / store.__name__
    path.write_bytes(data)

    with pytest.raises(BadInput, match=r"empty|cannot be read|is no parquet"):
        read(path, kind)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("parquet", b"PARE" + bytes(99) + b"PARE", "the parquet file is encrypted"),
        ("arrow", b"FEA1" + bytes(99) + b"FEA1", "the file is Feather of version 1"),
    ],
)
def test_formats_that_are_not_read_are_named(
    tmp_path: Path, kind: str, data: bytes, message: str
) -> None:
    """What is known, and not read, is told with what to do."""
    path = tmp_path / "table"
    path.write_bytes(data)

    with pytest.raises(BadInput, match=message):
        read(path, kind)


def outcomes(folder: Path, kind: str, seed: int) -> dict[str, int]:
    """Damage a file in many ways, read each, and count what comes of it."""
    table = pa.table(
        {
            "id": range(300),
            "word": pa.array(["a", "b", None] * 100).dictionary_encode(),
            "messages": [[{"role": "user", "content": f"Hello {n}"}] for n in range(300)],
        }
    )
    store = {name: store for store, name in KINDS}[kind]
    whole = store(table, folder / "whole").read_bytes()
    chance = random.Random(seed)  # noqa: S311 (nothing is kept secret)
    counts = {"read": 0, "refused": 0}

    for number in range(150):
        data = bytearray(whole)

        if number % 3 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.choice((1, 1, 2, 8))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)

        path = folder / "damaged"
        path.write_bytes(data)

        try:
            read(path, kind)
        except BadInput:
            counts["refused"] += 1
        else:
            counts["read"] += 1

    return counts


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    """Whatever is cut off or turned over, nothing but `BadInput` is raised, and nothing crashes."""
    monkeypatch.setenv("PYTHONPATH", PLACES)
    counts: dict[str, int] = run(outcomes, tmp_path, kind, seed)

    assert sum(counts.values()) == 150
    assert counts["refused"] >= 50


def peak(function: Callable[..., object], *args: object) -> int:
    """Return the most memory that this process had of its own, in bytes, after a call."""
    function(*args)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()

    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def use(path: Path) -> int:
    """Read a parquet file and write it with answers; return how many rows it has."""
    count = sum(1 for _ in spread(columnar.read_parquet(Dropped(path), OPTIONS)))
    added = [Added("answer", "text")]
    cells = (("an answer " * 20,) for _ in range(count))
    columnar.write_parquet(Dropped(path), OPTIONS, path.with_name("results"), added, cells)

    return count


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million rows in one row group take what 250,000 take, reading and writing: under 400 MB."""
    monkeypatch.setenv("PYTHONPATH", PLACES)
    peaks = []

    for count in (250_000, 1_000_000):
        path = tmp_path / f"{count}"
        texts = pa.array([f"{n} " + "prompt " * 42 for n in range(1_000)])
        chunks = pa.chunked_array([texts] * (count // 1_000))
        stored_parquet(pa.table({"prompt": chunks}), path, row_group_size=count)
        peaks.append(run(peak, use, path))

    assert peaks[1] < min(peaks[0] * 1.3, 400 << 20)


def test_the_daemon_does_not_load_pyarrow() -> None:
    """Importing the readers loads none of their libraries."""
    code = (
        "import sys, promptspool.intake.formats.columnar, promptspool.worker;"
        "sys.exit('pyarrow' in sys.modules or 'numpy' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603 (our own command)


def test_base64_is_what_binary_becomes(tmp_path: Path) -> None:
    """An image in a data set can be had back from its row."""
    image = bytes(range(256))
    path = stored_parquet(pa.table({"image": [{"bytes": image, "path": "a.png"}]}), tmp_path / "t")
    found = values(read(path), "image")[0]

    assert (base64.b64decode(found["bytes"]), found["path"]) == (image, "a.png")
