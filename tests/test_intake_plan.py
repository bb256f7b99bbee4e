from __future__ import annotations

import json
import tracemalloc
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake import Caps, Dropped, Limits, plan
from promptspool.intake.request import Request
from promptspool.intake.split import Splitter
from promptspool.intake.writing import Writing
from promptspool.model import JobId
from promptspool.settings import ProfileSettings
from promptspool.wire import Manifest, PlannedRow

JOB = JobId("20261120t231853z-4f7k2m")
OPENAI = Limits(max_requests=50_000, max_bytes=190_000_000, max_inputs=50_000)
EMBEDDINGS = "/v1/embeddings"


def planned(
    folder: Path,
    data: bytes | None,
    *,
    source: str = "reviews/may.jsonl",
    limits: Limits = OPENAI,
    **changes: object,
) -> Manifest:
    """Plan a dropped file that holds *data*; None leaves the one that is there."""
    if data is not None:
        (folder / "original").write_bytes(data)

    dropped = Dropped(
        original=folder / "original",
        source=source,
        digest="ab" * 32,
        job=JOB,
        profile=ProfileSettings.model_validate({"model": "gpt-5-mini", **changes}),
        limits=limits,
        caps=Caps(max_expanded=10**9, max_ratio=200),
        give_up_at=99.5,
    )

    return plan(dropped, folder)


def rows_of(folder: Path) -> list[PlannedRow]:
    """Return the row index."""
    lines = (folder / "rows.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=PlannedRow) for line in lines]


def requests_of(folder: Path, batch: str) -> list[dict[str, Any]]:
    """Return the requests of one file, parsed."""
    data = (folder / f"{batch}.requests.jsonl").read_bytes()
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def rejection(folder: Path, data: bytes, **changes: Any) -> dict[str, Any]:
    """Plan a file that is to be refused; return what was written about it."""
    with pytest.raises(BadInput) as caught:
        planned(folder, data, **changes)

    written: dict[str, Any] = json.loads((folder / "rejection.json").read_bytes())
    assert written["reason"] == str(caught.value)
    assert not list(folder.glob("*.requests.jsonl"))
    assert not (folder / "manifest.json").exists()

    return written


def test_a_file_becomes_a_plan(tmp_path: Path) -> None:
    """A plan holds every row once, in order, good or bad, and the manifest tells where."""
    data = b'\xef\xbb\xbf{"prompt": "one", "id": "a"}\r\n\nnonsense\n"two"\n'
    manifest = planned(tmp_path, data)

    assert [(row.id, row.line, row.fault and row.fault.code) for row in rows_of(tmp_path)] == [
        ("a", 1, None),
        ("may-3", 3, "invalid_json"),
        ("may-4", 4, None),
    ]
    assert (manifest.rows, manifest.bad_rows, manifest.give_up_at) == (3, 1, 99.5)
    assert (manifest.job, manifest.source, manifest.max_attempts) == (JOB, "reviews/may.jsonl", 3)
    assert (manifest.format, manifest.table, manifest.prompt_columns) == ("jsonl", None, ["prompt"])
    assert manifest.profile["model"] == "gpt-5-mini"

    (batch,) = manifest.batches
    file = tmp_path / f"{JOB}.1.requests.jsonl"
    assert batch.id == f"{JOB}.1"
    assert (batch.endpoint, batch.model) == ("/v1/chat/completions", "gpt-5-mini")
    assert (batch.requests, batch.size_bytes) == (2, file.stat().st_size)
    assert batch.digest == "b3-" + blake3(file.read_bytes()).hexdigest()
    assert [one["custom_id"] for one in requests_of(tmp_path, batch.id)] == [f"{JOB}-0", f"{JOB}-2"]


def test_a_finished_plan_is_kept(tmp_path: Path) -> None:
    """What was planned once is never rendered again, whatever the configuration says today."""
    first = planned(tmp_path, b'"a"\n')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert planned(tmp_path, None, model="other", prompt="changed") == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_plan_starts_over(tmp_path: Path) -> None:
    """Half-written files of an earlier try leave no trace in the next."""
    for name in (f"{JOB}.1.requests.jsonl", f"{JOB}.7.requests.jsonl", "rows.jsonl"):
        (tmp_path / name).write_bytes(b"half a l")

    (tmp_path / "rejection.json").write_bytes(b"{}")
    manifest = planned(tmp_path, b'"a"\n')

    assert len(rows_of(tmp_path)) == len(requests_of(tmp_path, manifest.batches[0].id)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "original",
        "rows.jsonl",
        f"{JOB}.1.requests.jsonl",
        "manifest.json",
    }


def test_text_lines_are_prompts(tmp_path: Path) -> None:
    """A text file has a prompt on each line; what looks like JSON is text."""
    data = '{"prompt": 1}\r\n  \nsep\u2028arated\n'.encode()
    manifest = planned(tmp_path, data, source="notes.v2.txt", prompt="<{{ prompt }}>")

    assert [row.id for row in rows_of(tmp_path)] == ["notes.v2-1", "notes.v2-3"]
    contents = [
        request["body"]["messages"][0]["content"]
        for request in requests_of(tmp_path, manifest.batches[0].id)
    ]
    assert contents == ['<{"prompt": 1}>', "<sep\u2028arated>"]


def test_models_and_urls_get_their_own_batches(tmp_path: Path) -> None:
    """A batch has one model and one url, numbered by their first rows."""
    ready = '{"url": "/v1/responses", "body": {"model": "gpt-5-mini", "input": "x"}}'
    message = '{"messages": [{"role": "user", "content": "x"}], "model": %s}'
    lines = ['"a"', message % '"big"', ready, message % "null", message % '"big"']
    manifest = planned(tmp_path, "\n".join(lines).encode())

    found = [
        (batch.endpoint, batch.model, [one["custom_id"] for one in requests_of(tmp_path, batch.id)])
        for batch in manifest.batches
    ]
    assert found == [
        ("/v1/chat/completions", "gpt-5-mini", [f"{JOB}-0", f"{JOB}-3"]),
        ("/v1/chat/completions", "big", [f"{JOB}-1", f"{JOB}-4"]),
        ("/v1/responses", "gpt-5-mini", [f"{JOB}-2"]),
    ]


def test_a_large_file_is_split_without_being_held(tmp_path: Path) -> None:
    """120,000 prompts are three batches, and memory does not grow with them."""
    prompt = b"tell me something about the number that this line has in the file it is in "
    data = b"".join(prompt + b"%d\n" % number for number in range(120_000))
    (tmp_path / "original").write_bytes(data)
    tracemalloc.start()
    manifest = planned(tmp_path, None, source="big.txt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [batch.requests for batch in manifest.batches] == [50_000, 50_000, 20_000]
    assert peak < len(data) / 2
    assert manifest.rows == len(rows_of(tmp_path)) == 120_000


def test_many_models_share_the_buffers(tmp_path: Path) -> None:
    """Hundreds of models need neither hundreds of open files nor as many full buffers."""
    line = '{"input": "%s", "model": "m%d"}\n'
    data = "".join(line % ("x" * 2000, number % 500) for number in range(10_000)).encode()
    (tmp_path / "original").write_bytes(data)
    tracemalloc.start()
    manifest = planned(tmp_path, None, endpoint=EMBEDDINGS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [batch.requests for batch in manifest.batches] == [20] * 500
    assert peak < len(data)


def test_what_fits_no_batch_is_the_rows_fault(tmp_path: Path) -> None:
    """A row over a limit of the provider is set aside; the rest is submitted."""
    limits = Limits(max_requests=10, max_bytes=200, max_inputs=2)
    lines = [
        '{"input": "%s"}' % ("x" * 300),
        '{"input": "%s"}' % ("x" * 150),
        '{"input": ["a", "b", "c"]}',
        '{"input": "a"}',
    ]
    data = "\n".join(lines).encode()
    manifest = planned(tmp_path, data, limits=limits, endpoint=EMBEDDINGS)

    assert [row.fault and (row.fault.code, row.fault.message) for row in rows_of(tmp_path)] == [
        ("line_too_long", "the line is longer than 200 bytes; shorten it"),
        (
            "request_too_large",
            "the request is 272 bytes long, the provider takes 200 in a batch; shorten it",
        ),
        (
            "too_many_inputs",
            (
                "the request has 3 inputs, the provider takes 2 in a batch; "
                "spread them over several rows"
            ),
        ),
        None,
    ]
    assert (manifest.bad_rows, manifest.batches[0].requests) == (3, 1)


@pytest.mark.parametrize(
    ("source", "data", "reason"),
    [
        ("a.jsonl", b"", "a.jsonl is empty; write your prompts into it and drop it again"),
        ("a.txt", b"\n  \r\n\n", "the file is blank; write one prompt a line"),
        (
            "a.docx",
            b"x",
            (
                "found a Word document (.docx), which is not read; save it as .txt "
                "(a prompt a line) or .md (one prompt)"
            ),
        ),
    ],
)
def test_a_file_without_rows_is_refused(
    tmp_path: Path, source: str, data: bytes, reason: str
) -> None:
    """A file that holds nothing to do says so."""
    found = rejection(tmp_path, data, source=source)

    assert found.pop("code") in ("empty_file", "unknown_format")
    assert found == {"file": source, "reason": reason, "faults": [], "fault_count": 0}


def test_a_wrong_encoding_is_refused(tmp_path: Path) -> None:
    """One line that is not UTF-8 refuses the file, wherever it is, and is named."""
    found = rejection(tmp_path, b'"a"\n"caf\xe9"\n')

    assert found["reason"].startswith("the file is not UTF-8: line 2 has the byte 0xe9 at offset 8")
    assert found["fault_count"] == 1
    assert [(one["line"], one["code"]) for one in found["faults"]] == [(2, "wrong_encoding")]


def test_a_file_of_bad_rows_is_refused(tmp_path: Path) -> None:
    """A file without one usable row quotes a few of its faults, and lists them all."""
    found = rejection(tmp_path, b"7\n" * 1234)
    fault = 'found the number 7; write one object a line, as in {"prompt": "..."}'

    assert found["reason"] == (
        f"not one of 1,234 rows is usable: line 1: {fault} | line 2: {fault} | line 3: {fault} "
        f"| and 1,231 more"
    )
    assert found["fault_count"] == 1234
    assert found["faults"] == [
        {"line": line, "code": "not_an_object", "message": fault} for line in range(1, 1235)
    ]


def test_a_profile_may_refuse_files_with_bad_rows(tmp_path: Path) -> None:
    """With on_bad_row = "reject" one bad row is enough, and nothing is submitted."""
    found = rejection(tmp_path, b'"a"\nnull\n"b"\n', on_bad_row="reject")

    assert found["reason"] == (
        '1 of 3 rows are unusable, and the profile says on_bad_row = "reject": '
        'line 2: found null; write one object a line, as in {"prompt": "..."}'
    )
    assert [one["line"] for one in found["faults"]] == [2]


def test_a_profile_that_cannot_be_followed_refuses_the_file(tmp_path: Path) -> None:
    """Streaming is refused before anything is rendered."""
    found = rejection(tmp_path, b'"a"\n', params={"stream": True})

    assert found["reason"] == (
        "the profile's params hold 'stream', which no batch can do; leave it out"
    )


groups = st.tuples(st.sampled_from([EMBEDDINGS, "/v1/responses"]), st.sampled_from(["m", "n"]))
requests = st.lists(st.tuples(groups, st.integers(0, 30), st.integers(1, 4)), max_size=60)
limits_drawn = st.builds(
    Limits,
    max_requests=st.integers(1, 6),
    max_bytes=st.integers(31, 120),
    max_inputs=st.integers(4, 12),
)


@settings(max_examples=60, deadline=None)
@given(requests, limits_drawn)
def test_no_batch_exceeds_a_limit(
    drawn: list[tuple[tuple[str, str], int, int]], limits: Limits
) -> None:
    """Whatever comes: within every limit, all of it, in order, in as few batches as can be."""
    with ExitStack() as stack:
        name = stack.enter_context(TemporaryDirectory())
        folder = Path(name)
        writing = stack.enter_context(Writing())
        splitter = Splitter(folder=folder, job=JOB, limits=limits, writing=writing)
        expected = defaultdict(list)

        for number, ((url, model), size, inputs) in enumerate(drawn):
            request = Request(url=url, model=model, inputs=inputs, fields=b"")
            line = b"%d".ljust(size) % number + b"\n"
            splitter.check(request, line)
            splitter.add(request, line)
            expected[url, model].append((line, inputs))

        found = defaultdict(list)

        for batch in splitter.finish():
            data = (folder / f"{batch.id}.requests.jsonl").read_bytes()
            assert len(data) == batch.size_bytes
            assert batch.digest == "b3-" + blake3(data).hexdigest()
            assert data.count(b"\n") == batch.requests
            found[batch.endpoint, batch.model].append(data)

    assert {group: b"".join(parts) for group, parts in found.items()} == {
        group: b"".join(line for line, _ in members) for group, members in expected.items()
    }

    for group, members in expected.items():
        assert found[group] == _greedy(members, limits)


def _greedy(members: list[tuple[bytes, int]], limits: Limits) -> list[bytes]:
    """Split the plain way: a new part only where the next request does not fit."""
    parts: list[list[tuple[bytes, int]]] = [[]]

    for one in members:
        longer = [*parts[-1], one]

        if (
            len(longer) > limits.max_requests
            or sum(len(line) for line, _ in longer) > limits.max_bytes
            or sum(inputs for _, inputs in longer) > limits.max_inputs
        ):
            parts.append([one])
        else:
            parts[-1].append(one)

    return [b"".join(line for line, _ in part) for part in parts]


json_lines = st.one_of(
    st.text(max_size=12).map(json.dumps),
    st.dictionaries(
        st.sampled_from(["prompt", "id", "custom_id", "messages", "input", "url", "body", "x"]),
        st.one_of(st.text(max_size=5), st.integers(), st.none(), st.just([]), st.just({})),
        max_size=4,
    ).map(json.dumps),
    st.text(alphabet='{}[]",: ab1\u2028', max_size=12),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(json_lines, min_size=1, max_size=12), st.sampled_from([None, "{{ prompt }}{{ x }}"])
)
def test_every_row_is_accounted_for(drawn: list[str], template: str | None) -> None:
    """Whatever is dropped, each row is in the index once and is either a request or a fault."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = "\n".join(["{}", *drawn, '{"prompt": "good", "x": 1}']).encode()
        manifest = planned(folder, data, prompt=template, on_duplicate_id="errors")
        rows = rows_of(folder)
        names = [
            one["custom_id"] for batch in manifest.batches for one in requests_of(folder, batch.id)
        ]

    numbers = [number for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    good = [f"{JOB}-{place}" for place, row in enumerate(rows) if row.fault is None]

    assert [row.line for row in rows] == numbers
    assert sorted(names) == sorted(good)
    assert (manifest.rows, manifest.bad_rows) == (len(rows), len(rows) - len(good))
