from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from promptspool.collect import Tally, made, make_products
from promptspool.collect.shapes import file_name
from promptspool.errors import Bug
from promptspool.intake import Caps, Dropped, Limits, plan
from promptspool.model import Batch, JobId
from promptspool.settings import ProfileSettings
from promptspool.wire import wire_id
from test_files import workbook

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.wire import Manifest

JOB = JobId("20261120t231853z-4f7k2m")
SCHEMA = {
    "type": "object",
    "properties": {
        "word": {"type": "string"},
        "score": {"type": "integer"},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}


@dataclass
class Desk:
    """A working folder whose batches have ended."""

    folder: Path
    manifest: Manifest

    def answered(self, *contents: object) -> Tally:
        """Answer the rows with *contents*, one by one, and make the products.

        A dict is a body, a text what the model says, a number the status of a refusal.
        """
        (planned,) = self.manifest.batches
        lines = [_line(row, content) for row, content in enumerate(contents)]
        (self.folder / f"{planned.id}.output.jsonl").write_bytes(b"".join(lines))
        batch = Batch(
            id=planned.id,
            job=JOB,
            provider="openai",
            base_url="https://api.example.com/v1",
            endpoint=planned.endpoint,
            model=planned.model,
            requests=planned.requests,
            size_bytes=planned.size_bytes,
            digest=planned.digest,
            give_up_at=0.0,
        )

        return make_products(folder=self.folder, job=JOB, manifest=self.manifest, batches=[batch])


def _line(row: int, content: object) -> bytes:
    match content:
        case str():
            message = {"message": {"content": content}, "finish_reason": "stop"}
            body: object = {"choices": [message], "usage": {"prompt_tokens": 3}}
        case _:
            body = content

    status = content if isinstance(content, int) else 200
    body = {"error": {"message": "no", "code": "bad"}} if isinstance(content, int) else body
    response = {"status_code": status, "request_id": "r", "body": body}
    line = {"id": "b", "custom_id": wire_id(JOB, row), "response": response, "error": None}

    return json.dumps(line).encode() + b"\n"


def desk(folder: Path, name: str, data: bytes, **profile: Any) -> Desk:
    """Return a desk for a dropped file."""
    (folder / "original").write_bytes(data)
    dropped = Dropped(
        original=folder / "original",
        source=name,
        digest="ab" * 32,
        job=JOB,
        profile=ProfileSettings.model_validate({"model": "m", **profile}),
        limits=Limits(max_requests=50_000, max_bytes=190_000_000, max_inputs=50_000),
        caps=Caps(max_expanded=10**9, max_ratio=200),
        give_up_at=0.0,
    )

    return Desk(folder, plan(dropped, folder))


def table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the delivered table."""
    text = (folder / "results.csv").read_text(encoding="utf-8")

    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_answers_that_are_formulas_stay_text(tmp_path: Path) -> None:
    """No answer runs in a spreadsheet; numbers and all else are as the model wrote them."""
    said = ["=1+1", "+cmd|' /C calc'!A0", "@SUM(1)", "-5", "-1e3", "- a point", "plain", "\t=1"]
    rows = "".join(f"p{n}\n" for n in range(len(said)))
    desk(tmp_path, "may.csv", b"prompt\n" + rows.encode()).answered(*said)

    assert [row["answer"] for row in table(tmp_path)] == [
        "'=1+1", "'+cmd|' /C calc'!A0", "'@SUM(1)", "-5", "-1e3", "'- a point", "plain", "'\t=1",
    ]  # fmt: skip


def test_a_workbook_holds_what_a_cell_can_hold(tmp_path: Path) -> None:
    """In a workbook formulas are text, and an answer beyond a cell's size says that it was cut."""
    desk(tmp_path, "may.xlsx", workbook()).answered("=1+1", "x" * 40_000, "fine")
    sheet = openpyxl.load_workbook(tmp_path / "results.xlsx").active
    assert sheet is not None
    header, *rows = sheet.iter_rows()
    place = [cell.value for cell in header].index("answer")
    answers = [row[place] for row in rows]

    assert [(cell.data_type, cell.value) for cell in answers[::2]] == [("s", "=1+1"), ("s", "fine")]
    assert len(str(answers[1].value)) <= 32_767
    assert "results.jsonl" in str(answers[1].value)[-200:]


def test_a_schema_gives_a_column_for_each_property(tmp_path: Path) -> None:
    """Properties are columns of their own, what is nested is JSON, what is missing is empty."""
    at = desk(tmp_path, "may.csv", b"prompt,score\na,9\nb,8\nc,7\n", response_schema=SCHEMA)
    tally = at.answered('{"word": "=x", "score": 3, "sure": true, "tags": ["a"]}', "{}", "no JSON")
    first, second, third = table(tmp_path)

    assert (tally.results, tally.errors) == (2, 1)
    assert list(first)[2:] == [
        "answer", "word", "score_2", "sure", "tags", "finish_reason", "error",
        "input_tokens", "output_tokens",
    ]  # fmt: skip
    assert first["score"] == "9"
    assert (first["word"], first["score_2"], first["sure"]) == ("'=x", "3", "true")
    assert json.loads(first["tags"]) == ["a"]
    assert (second["word"], second["score_2"], second["answer"]) == ("", "", "{}")
    assert third["error"].startswith("schema_mismatch: ")
    assert third["answer"] == ""


def test_a_changed_original_gives_no_table(tmp_path: Path) -> None:
    """A table that does not go with the answers any more is left out, and they are all there."""
    at = desk(tmp_path, "may.csv", b"prompt\na\nb\n")

    for data in (b"prompt\na\n", b"prompt\na\nb\nc\n", b'prompt\n"a\nb\n', b""):
        (tmp_path / "original").write_bytes(data)
        tally = at.answered("one", "two")

        assert list(tally.left_out) == ["results.csv"]
        assert tally.left_out["results.csv"]
        assert (tally.results, tally.errors) == (2, 0)
        assert made(tmp_path) == []
        assert not [path for path in tmp_path.iterdir() if path.name.endswith((".part", "scratch"))]


@pytest.mark.parametrize("name", ["may.csv", "may.txt"])
def test_a_row_without_an_answer_is_never_delivered_around(tmp_path: Path, name: str) -> None:
    """Whatever is shaped, results that do not hold every row get no name: that is a bug to see."""
    at = desk(tmp_path, name, b"prompt\na\nb\n")

    with pytest.raises(Bug):
        at.answered("one")

    assert not (tmp_path / "results.jsonl").exists()


def test_numbers_that_no_table_holds_keep_nothing_back(tmp_path: Path) -> None:
    """5.0 is an integer, as JSON Schema has it; a number of 400 digits is in the results only."""
    number = {"type": "object", "properties": {"n": {"type": "number"}, "i": {"type": "integer"}}}
    at = desk(tmp_path, "may.csv", b"prompt\na\nb\n", response_schema=number)
    tally = at.answered('{"n": 1%s, "i": 5.0}' % ("0" * 400), '{"n": 1.5, "i": 7}')

    assert (tally.results, tally.errors, tally.left_out) == (2, 0, {})
    assert [(row["n"], row["i"]) for row in table(tmp_path)] == [("", "5"), ("1.5", "7")]


def test_products_are_made_anew(tmp_path: Path) -> None:
    """Making them twice gives the same bytes, and one that is left out now is not there."""
    at = desk(tmp_path, "may.csv", b"id,prompt\na,p\nb,q\n", answers=["table", "text"])
    at.answered("one", "two")
    first = (tmp_path / "results.csv").read_bytes()
    at.answered("one", "two")

    assert (tmp_path / "results.csv").read_bytes() == first
    assert made(tmp_path) == ["results.csv", "answers"]

    (tmp_path / "original").write_bytes(b"")
    at.answered("one", 400)

    assert made(tmp_path) == ["answers"]
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {"a.txt"}


def vector(*numbers: float) -> dict[str, object]:
    """Return the body of an embedding."""
    return {"data": [{"index": 0, "embedding": list(numbers)}], "usage": {"prompt_tokens": 1}}


def test_a_matrix_has_a_row_for_each_row(tmp_path: Path) -> None:
    """Row n of the matrix is row n of the file; those without an answer are NaN, first and last."""
    at = desk(
        tmp_path, "a.txt", b"a\nb\nc\nd\n", endpoint="/v1/embeddings", answers=["npy", "parquet"]
    )
    tally = at.answered(400, vector(1, 2), 400, vector(3, 4.5))
    matrix = np.load(tmp_path / "embeddings.npy")
    lines = parquet.read_table(tmp_path / "embeddings.parquet").to_pylist()

    assert tally.left_out == {}
    assert matrix.dtype == np.dtype("<f4")
    assert matrix[[1, 3]].tolist() == [[1, 2], [3, 4.5]]
    assert np.isnan(matrix[[0, 2]]).all()
    assert [(line["id"], line["embedding"], line["error"]) for line in lines] == [
        ("a-1", None, "bad: no"),
        ("a-2", [1, 2], None),
        ("a-3", None, "bad: no"),
        ("a-4", [3, 4.5], None),
    ]


@pytest.mark.parametrize("contents", [(vector(1, 2), vector(1, 2, 3)), (400, 400)])
def test_vectors_that_make_no_matrix_are_left_out(
    tmp_path: Path, contents: tuple[object, ...]
) -> None:
    """Without one length for all there is no matrix, and it is said why."""
    at = desk(tmp_path, "a.txt", b"a\nb\n", endpoint="/v1/embeddings", answers=["npy"])
    tally = at.answered(*contents)

    assert list(tally.left_out) == ["embeddings.npy"]
    assert made(tmp_path) == []


@given(st.text())
def test_any_id_is_the_name_of_a_file(name: str) -> None:
    """A name has no folder in it, is not hidden and fits with its extension."""
    found = file_name(name)

    assert found
    assert not found.startswith(".")
    assert not set(found) & {"/", "\0", "\n"}
    assert len(f"{found}-1000000.json".encode()) <= 255
