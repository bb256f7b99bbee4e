"""Any file that people drop, and the shapes in which its answers come back."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import openpyxl
import pyarrow as pa
import pytest
from pyarrow import feather, parquet
from structlog.testing import capture_logs

from world import simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63000100"
    "000500010d0a2db40000000049454e44ae426082"
)

TABLE = [
    {"id": "a", "prompt": "What is 1 + 1?", "note": "=1+1"},
    {"id": "b", "prompt": 'Say "hi",\nplease', "note": "caf\u00e9"},
    {"id": "c", "prompt": "Tell me more; or less", "note": ""},
]


def delimited(delimiter: str) -> bytes:
    """Return `TABLE` as text with *delimiter* between the fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(TABLE[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(TABLE)

    return text.getvalue().encode()


def workbook() -> bytes:
    """Return `TABLE` as a workbook."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(list(TABLE[0]))

    for row in TABLE:
        sheet.append(list(row.values()))
        sheet.cell(sheet.max_row, 3).data_type = "s"

    data = io.BytesIO()
    book.save(data)

    return data.getvalue()


def columnar(write: Callable[[pa.Table, io.BytesIO], object]) -> bytes:
    """Return `TABLE` as *write* has it."""
    data = io.BytesIO()
    write(pa.Table.from_pylist(TABLE), data)

    return data.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    """Return an archive of *members*."""
    data = io.BytesIO()

    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)

    return data.getvalue()


def read_delimited(data: bytes, delimiter: str) -> list[dict[str, Any]]:
    """Return the rows of a delimited table; a number is its text."""
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), delimiter=delimiter))


def read_workbook(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a workbook's only sheet."""
    sheet = openpyxl.load_workbook(io.BytesIO(data)).active
    assert sheet is not None
    header, *rows = sheet.iter_rows(values_only=True)

    return [dict(zip(header, row, strict=True)) for row in rows]


FORMS: dict[str, tuple[bytes, Callable[[bytes], list[dict[str, Any]]]]] = {
    "may.csv": (delimited(","), lambda data: read_delimited(data, ",")),
    "may.tsv": (delimited("\t"), lambda data: read_delimited(data, "\t")),
    "may.xlsx": (workbook(), read_workbook),
    "may.parquet": (
        columnar(parquet.write_table),
        lambda data: parquet.read_table(io.BytesIO(data)).to_pylist(),
    ),
    "may.feather": (
        columnar(feather.write_feather),
        lambda data: feather.read_table(io.BytesIO(data)).to_pylist(),
    ),
}


async def delivered(world: World, name: str, data: bytes, ids: Sequence[str]) -> None:
    """Drop a file, run to the end and hold the laws."""
    world.drop(name, data)

    assert await world.drain()
    assert world.rejection(name) is None

    world.assert_conserved(name, ids)
    world.assert_bought_once()


async def rejected(world: World, name: str, data: bytes) -> dict[str, Any]:
    """Drop a file that is refused; return why."""
    world.drop(name, data)

    assert await world.drain()
    assert world.simulator.ledger.creations == []

    reason = world.rejection(name)
    assert reason is not None
    assert (world.spool.rejected / name).read_bytes() == data

    return reason


@pytest.mark.parametrize("name", FORMS)
async def test_a_table_comes_back_with_its_answers(tmp_path: Path, name: str) -> None:
    """A table of any format is answered, and comes back in it with the answers beside its rows."""
    data, read = FORMS[name]

    async with simulated(tmp_path) as world:
        await delivered(world, name, data, ["a", "b", "c"])

        table = name.replace("may.", "may." + name.removeprefix("may.") + ".results.")
        rows = read((world.spool.outbox / table).read_bytes())
        answers = {
            line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
            for line in world.results(name)
        }

    assert [{key: row[key] or "" for key in TABLE[0]} for row in rows] == TABLE
    assert [row["answer"] for row in rows] == [answers[key] for key in "abc"]
    assert [row["finish_reason"] for row in rows] == ["stop"] * 3
    assert all(int(row["input_tokens"]) > 0 and int(row["output_tokens"]) > 0 for row in rows)
    assert all(not row["error"] for row in rows)
    assert list(rows[0]) == [
        *TABLE[0], "answer", "finish_reason", "error", "input_tokens", "output_tokens",
    ]  # fmt: skip


async def test_a_table_shows_its_errors(tmp_path: Path) -> None:
    """A row that failed, or was none, has its error beside it and no answer."""
    data = b"id,prompt,answer\n1,fine,x\n2,,y\n3,broken,z,\n4,fine too,\n"

    async with simulated(tmp_path) as world:
        await delivered(world, "may.csv", data, ["1", "2", "may-4", "4"])
        rows = read_delimited((world.spool.outbox / "may.csv.results.csv").read_bytes(), ",")

    assert [row["answer"] for row in rows] == ["x", "y", "z", ""]
    assert [bool(row["answer_2"]) for row in rows] == [True, False, False, True]
    assert [row["error"].partition(":")[0] for row in rows] == [
        "", "empty_prompt", "wrong_field_count", "",
    ]  # fmt: skip


PEOPLE_HAVE: dict[str, tuple[str, bytes, list[str]]] = {
    "an array": ("a.json", b'[{"id": "x", "prompt": "p"}, "q"]', ["x", "a-2"]),
    "an object with an array": (
        "a.json",
        b'{"rows": [\n{"id": "x", "prompt": "p"},\n"q"\n], "n": 2}',
        ["x", "a-2"],
    ),
    "an array called JSON Lines": ("a.jsonl", b'["p", "q"]', ["a-1", "a-2"]),
    "JSON Lines": ("a.ndjson", b'"p"\n"q"\n', ["a-1", "a-2"]),
    "lines of text": ("a.txt", b"p\nq\n", ["a-1", "a-2"]),
    "a document": ("a.md", b"# p\n\nq\n", ["a-1"]),
    "a compressed table": ("a.csv.gz", gzip.compress(b"review\ngood\nbad\n"), ["a-2", "a-3"]),
    "documents": ("a.zip", archive({"docs/p.txt": b"p", "q.md": b"q"}), ["docs/p.txt", "q.md"]),
}


@pytest.mark.parametrize("kind", PEOPLE_HAVE)
async def test_what_people_have_is_answered(tmp_path: Path, kind: str) -> None:
    """Arrays, objects with an array, documents, archives and compressed files are prompts."""
    name, data, ids = PEOPLE_HAVE[kind]

    async with simulated(tmp_path) as world:
        await delivered(world, name, data, ids)

        assert world.errors(name) == []


async def test_zstd_is_unpacked(tmp_path: Path) -> None:
    """A file compressed by zstd is read as what is in it, a parquet table too."""
    content = pa.compress(columnar(parquet.write_table), "zstd", asbytes=True)

    async with simulated(tmp_path) as world:
        await delivered(world, "may.parquet.zst", content, ["a", "b", "c"])

        assert (world.spool.outbox / "may.parquet.zst.results.parquet").exists()


# Sidecars.


async def test_a_sidecar_is_for_its_file_alone(tmp_path: Path) -> None:
    """A sidecar changes how one file is read and asked, and goes where its file goes."""
    async with simulated(tmp_path) as world:
        world.drop("a.txt", b"one\nfile\n\nof two prompts\n")
        world.drop("a.txt.toml", b'split = "paragraph"\nmodel = "gpt-5"\n')
        world.drop("b.txt", b"one\ntwo\n")

        assert await world.drain()

        world.assert_conserved("a.txt", ["a-1", "a-4"])
        world.assert_conserved("b.txt", ["b-1", "b-2"])
        models = {batch["model"] for batch in world.summary("a.txt")["batches"]}

        assert models == {"gpt-5"}
        assert (world.spool.done / "a.txt.toml").read_bytes().startswith(b"split")
        assert not list(world.spool.inbox.iterdir())


async def test_a_broken_sidecar_refuses_its_file(tmp_path: Path) -> None:
    """A sidecar that cannot be followed is never ignored: both are rejected, with the reason."""
    async with simulated(tmp_path) as world:
        world.drop("a.txt.toml", b'modle = "gpt-5"\n')
        reason = await rejected(world, "a.txt", b"p\n")

        assert reason["code"] == "bad_sidecar"
        assert "a.txt.toml, line 1: modle: unknown key; did you mean 'model'?" in reason["reason"]
        assert (world.spool.rejected / "a.txt.toml").exists()


# Ids.


DUPLICATES = b'{"id": "x", "prompt": "p"}\n{"id": "y", "prompt": "p"}\n{"id": "x", "prompt": "q"}\n'


async def test_duplicate_ids_cost_nothing(tmp_path: Path) -> None:
    """Two rows with one id refuse the file before anything is paid for, and both are named."""
    async with simulated(tmp_path) as world:
        reason = await rejected(world, "a.jsonl", DUPLICATES)

    assert reason["code"] == "duplicate_id"
    assert "line 3: the id 'x' is that of line 1, too" in reason["reason"]
    assert [(one["line"], one["code"]) for one in reason["faults"]] == [(3, "duplicate_id")]


@pytest.mark.parametrize(
    ("policy", "ids", "errors"),
    [("errors", ["x", "y", "x"], ["x"]), ("number", ["x", "y", "x-2"], [])],
)
async def test_duplicate_ids_as_the_profile_says(
    tmp_path: Path, policy: str, ids: list[str], errors: list[str]
) -> None:
    """Repeated rows become errors, or are numbered."""
    overrides = {"profiles": {"default": {"on_duplicate_id": policy}}}

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("a.jsonl", DUPLICATES)

        assert await world.drain()

        found = [line["custom_id"] for line in world.results("a.jsonl")]
        failed = [line["custom_id"] for line in world.errors("a.jsonl")]

    assert sorted([*found, *failed]) == sorted(ids)
    assert failed == errors


async def test_a_number_that_makes_another_rows_id_refuses_the_file(tmp_path: Path) -> None:
    """Numbering never makes two rows the same."""
    data = DUPLICATES + b'{"id": "x-2", "prompt": "r"}\n'
    overrides = {"profiles": {"default": {"on_duplicate_id": "number"}}}

    async with simulated(tmp_path, overrides=overrides) as world:
        reason = await rejected(world, "a.jsonl", data)

    assert "line 4: the id 'x-2' is that of line 3, too" in reason["reason"]


# Rejections.


async def test_every_bad_row_is_in_the_reason(tmp_path: Path) -> None:
    """A rejection counts all faults and lists each with line, key and what to write instead."""
    data = b"".join(b'{"messages": %d}\n' % number for number in range(50))

    async with simulated(tmp_path) as world:
        reason = await rejected(world, "a.jsonl", data)

    assert reason["fault_count"] == len(reason["faults"]) == 50
    assert [one["line"] for one in reason["faults"]] == list(range(1, 51))
    assert {one["key"] for one in reason["faults"]} == {"messages"}


async def test_a_spreadsheet_called_csv_is_one_clear_line(tmp_path: Path) -> None:
    """The name says what a file is, its content has to agree."""
    async with simulated(tmp_path) as world:
        reason = await rejected(world, "may.csv", workbook())

    assert "Excel" in reason["reason"]
    assert "may.xlsx" in reason["reason"]
    assert "\n" not in reason["reason"]


async def test_what_a_file_holds_is_not_logged(tmp_path: Path) -> None:
    """Prompts, ids and names of columns are for `rejected/`: the log goes to other people."""
    files = {
        "one.csv": b"Write about SECRET\nTell me more\n",
        "two.csv": b"What is SECRET?,1\nb,2\n",
        "image.csv": b"prompt,image\nx,SECRET\n",
        "role.jsonl": b'{"messages": [{"role": "SECRET", "content": "x"}]}\n',
        "id.csv": b"id,prompt\nSECRET,a\nSECRET,b\n",
        "json.jsonl": b'{"prompt": "SECRET\n',
    }

    with capture_logs() as logs:
        async with simulated(tmp_path) as world:
            for name, data in files.items():
                world.drop(name, data)

            assert await world.drain()

    assert len([line for line in logs if line["event"] == "job.rejected"]) == 5
    assert "SECRET" not in repr(logs)


async def test_a_table_without_a_header_loses_no_prompt(tmp_path: Path) -> None:
    """A first line that reads like a prompt is not taken for the name of the only column."""
    async with simulated(tmp_path) as world:
        reason = await rejected(world, "a.csv", b"Write a haiku about the sea.\nAnother.\n")

    assert "rename one" in reason["reason"]


# Other shapes.


async def test_a_file_for_each_answer(tmp_path: Path) -> None:
    """With "text" each answer is a file named by its id, whatever the id is."""
    overrides = {"profiles": {"default": {"answers": ["text"]}}}
    rows = [
        {"id": name, "prompt": name} for name in ("a", "../b", "c/d", "..", "c_d", "\u2603" * 99)
    ]

    async with simulated(tmp_path, overrides=overrides) as world:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        await delivered(world, "a.jsonl", data, [str(row["id"]) for row in rows])
        folder = world.spool.outbox / "a.jsonl.answers"
        found = {path.name: path.read_text() for path in folder.iterdir()}
        outside = {path.name for path in world.spool.outbox.iterdir()}

    snowmen = "\u2603" * 66 + ".txt"

    assert set(found) == {"a.txt", "_b.txt", "c_d.txt", "c_d-2.txt", "_.txt", snowmen}
    assert found["a.txt"] == "Simulated answer to: a"
    assert found["c_d-2.txt"] == "Simulated answer to: c_d"
    assert outside == {"a.jsonl.answers", "a.jsonl.results.jsonl", "a.jsonl.summary.json"}


async def test_embeddings_come_as_a_matrix_and_as_a_table(tmp_path: Path) -> None:
    """Vectors are the ones of the results, row by row; a row without one is NaN or null."""
    overrides = {
        "profiles": {"default": {"endpoint": "/v1/embeddings", "answers": ["npy", "parquet"]}}
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        await delivered(
            world, "a.txt.gz", gzip.compress(b"one\n\x00\ntwo\n"), ["a-1", "a-2", "a-3"]
        )
        outbox = world.spool.outbox
        matrix = np.load(outbox / "a.txt.gz.embeddings.npy")
        table = parquet.read_table(outbox / "a.txt.gz.embeddings.parquet").to_pylist()
        expected = {
            line["custom_id"]: line["response"]["body"]["data"][0]["embedding"]
            for line in world.results("a.txt.gz")
        }

    assert matrix.dtype == np.float32
    assert np.isnan(matrix[1]).all()
    assert np.allclose(matrix[[0, 2]], [expected["a-1"], expected["a-3"]])
    assert [row["id"] for row in table] == ["a-1", "a-2", "a-3"]
    assert np.allclose(table[2]["embedding"], expected["a-3"])
    assert table[1]["embedding"] is None
    assert table[1]["error"]


# Images.


KEPT = {"providers": {"openai": {"cleanup": False}}}
"""A configuration that leaves what was uploaded where a test can read it."""


def images_of(world: World) -> list[str]:
    """Return the image URLs of everything that was submitted."""
    uploads = [path.read_bytes() for path in (world.root / "remote").rglob("*") if path.is_file()]
    lines = [line for data in uploads for line in data.splitlines() if b'"method"' in line]
    contents = [
        message["content"] for line in lines for message in json.loads(line)["body"]["messages"]
    ]
    parts = [part for content in contents if isinstance(content, list) for part in content]

    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


async def test_images_come_from_the_archive(tmp_path: Path) -> None:
    """A table in an archive names images beside it, or by URL; they become parts of the message."""
    table = (
        b"id,prompt,image\na,what is it,cat.png\nb,and this,https://example.com/dog.png\nc,none,\n"
    )
    data = archive({"may/prompts.csv": table, "may/cat.png": PNG})

    async with simulated(tmp_path, overrides=KEPT) as world:
        await delivered(world, "may.zip", data, ["a", "b", "c"])
        found = images_of(world)

        assert (world.spool.outbox / "may.zip.results.csv").exists()
        assert world.errors("may.zip") == []

    assert found == [
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "https://example.com/dog.png",
    ]


async def test_images_come_from_the_profiles_folder(tmp_path: Path) -> None:
    """With `files` a row names images in that folder."""
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "images" / "cats" / "1.png").write_bytes(PNG)
    overrides = {**KEPT, "profiles": {"default": {"files": tmp_path / "images"}}}

    async with simulated(tmp_path, overrides=overrides) as world:
        await delivered(world, "a.csv", b"id,prompt,image\na,p,cats/1.png\n", ["a"])

        assert images_of(world) == ["data:image/png;base64," + base64.b64encode(PNG).decode()]


async def test_no_row_reads_anything_else(tmp_path: Path) -> None:
    """Whatever a row names: only what is inside the archive or the folder is ever read."""
    folder = tmp_path / "images"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    (folder / "link.png").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    names = [
        "../secret.png",
        str(secret),
        f"file://{secret}",
        "link.png",
        "out/secret.png",
        "pipe.png",
        ".",
        "",
        "a/../../secret.png",
        "x" * 5000,
        "nul\x00.png",
    ]
    rows = [{"id": str(n), "prompt": "p", "image": name} for n, name in enumerate(names)]
    overrides = {**KEPT, "profiles": {"default": {"files": folder}}}

    async with simulated(tmp_path, overrides=overrides) as world:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        await delivered(world, "a.jsonl", data, [str(row["id"]) for row in rows])

        assert images_of(world) == []
        assert [line["custom_id"] for line in world.results("a.jsonl")] == ["7"]


async def test_a_reader_that_dies_refuses_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose reader's process ends without an answer, again and again, is rejected."""
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async with simulated(tmp_path) as world:
        reason = await rejected(world, "a.parquet", columnar(parquet.write_table))

    assert reason["code"] == "unreadable"
    assert "reading it fails every time" in reason["reason"]


async def test_a_writer_that_dies_keeps_no_answers_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products whose writer's process dies are left out, with the reason; results are delivered."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    overrides = {"profiles": {"default": {"endpoint": "/v1/embeddings", "answers": ["parquet"]}}}

    async with simulated(tmp_path, overrides=overrides) as world:
        await delivered(world, "a.txt", b"one\ntwo\n", ["a-1", "a-2"])
        summary = world.summary("a.txt")

        assert len(world.results("a.txt")) == 2
        assert list(summary["left_out"]) == ["embeddings.parquet"]
        assert not list(world.spool.outbox.glob("*.parquet"))


async def test_the_worker_goes_with_its_file(tmp_path: Path) -> None:
    """A heavy file that cannot be read is rejected like any other, and the daemon lives on."""
    data = columnar(parquet.write_table)

    async with simulated(tmp_path) as world:
        world.drop("good.parquet", data)
        reason = await rejected_beside(world, "bad.parquet", data[:-20] + b"\x00" * 20)

        assert reason["reason"]
        world.assert_conserved("good.parquet", ["a", "b", "c"])


async def rejected_beside(world: World, name: str, data: bytes) -> dict[str, Any]:
    """Drop a file that is refused, beside others; return why."""
    world.drop(name, data)

    assert await world.drain()

    reason = world.rejection(name)
    assert reason is not None

    return reason
