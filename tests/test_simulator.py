"""The simulated provider keeps the documented contract, and its faults are real faults.

Real sockets, a clock that only moves when told, no sleeps.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
import sys
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Literal

import anyio
import httpx
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from promptspool.clock import SystemClock
from promptspool.schema import Checker
from promptspool.simulator import (
    BatchFault,
    Call,
    Failure,
    Fault,
    FileFault,
    Simulator,
    SimulatorSettings,
    running,
    serve,
)
from promptspool.simulator.command import simulate
from promptspool.simulator.structured import fitting
from promptspool.simulator.timeline import Course, plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio


STARTED_AT = 1_800_000_000.0
KEY = {"authorization": "Bearer sk-simulated"}
CHAT = "/v1/chat/completions"


class StoppedClock(SystemClock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        """Start at a round time."""
        self.time = STARTED_AT

    def now(self) -> float:
        """Return the time that was set."""
        return self.time


class Bench:
    """A served simulator, a client of it and the clock of both."""

    def __init__(
        self, simulator: Simulator, client: httpx.AsyncClient, clock: StoppedClock
    ) -> None:
        """Bundle them."""
        self.simulator = simulator
        self.client = client
        self.clock = clock

    def jump(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.clock.time += seconds

    async def upload(self, content: bytes, name: str = "in.jsonl") -> str:
        """Upload a file and return its id."""
        answer = await self.post_file(content, name)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def post_file(
        self, content: bytes, name: str = "in.jsonl", **fields: str
    ) -> httpx.Response:
        """Upload a file."""
        return await self.client.post(
            "/v1/files", data={"purpose": "batch"} | fields, files={"file": (name, content)}
        )

    async def create(self, file_id: str, endpoint: str = CHAT, **extra: object) -> httpx.Response:
        """Ask for a batch."""
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return await self.client.post("/v1/batches", json=body | extra)

    async def start(self, content: bytes, endpoint: str = CHAT, **extra: object) -> str:
        """Upload a file, create a batch of it and return the batch's id."""
        answer = await self.create(await self.upload(content), endpoint, **extra)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def look(self, batch_id: str) -> dict[str, Any]:
        """Retrieve a batch."""
        answer = await self.client.get(f"/v1/batches/{batch_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """Download a result file and parse its lines; no file has no lines."""
        if not file_id:
            return []

        answer = await self.client.get(f"/v1/files/{file_id}/content")
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.content.split(b"\n") if line]

    async def results(self, batch_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the lines of the output and of the error file."""
        batch = await self.look(batch_id)
        good = await self.lines(batch["output_file_id"])
        return good, await self.lines(batch["error_file_id"])


def chat_line(custom_id: str, prompt: str = "hello", **changes: object) -> bytes:
    """Return one input line, with its newline."""
    body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": prompt}]}
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | changes
    return json.dumps(line).encode() + b"\n"


def chat_lines(count: int, prompts: Sequence[str] = ("hello",)) -> bytes:
    """Return *count* lines with the ids r-0, r-1, ... and the prompts in turn."""
    return b"".join(chat_line(f"r-{n}", prompts[n % len(prompts)]) for n in range(count))


def left_in(directory: Path) -> list[str]:
    """Return the names of what is in a directory."""
    return [path.name for path in directory.iterdir()]


def ids_of(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Return the custom ids of result lines, in their order."""
    return [line["custom_id"] for line in lines]


@asynccontextmanager
async def served(
    directory: Path, settings: SimulatorSettings | None = None
) -> AsyncIterator[Bench]:
    """Serve a new simulator on a free port."""
    clock = StoppedClock()
    simulator = Simulator(clock=clock, directory=directory, settings=settings)

    async with running(simulator) as url, client_of(url) as client:
        yield Bench(simulator, client, clock)


def client_of(url: str) -> httpx.AsyncClient:
    """Return a client with the right key."""
    # No certificates: reading them takes longer than a whole test.
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.AsyncClient(base_url=url, headers=KEY, timeout=20, verify=no_tls, trust_env=False)


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, which is what uvicorn serves on."""
    return "asyncio"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Serve a simulator with the default settings."""
    async with served(tmp_path) as made:
        yield made


# Life of a batch


async def test_batch_walks_through_its_statuses(bench: Bench) -> None:
    """The status is a function of the clock, and each moment passed leaves its timestamp."""
    batch_id = await bench.start(chat_lines(10), metadata={"job": "a"})
    new = await bench.look(batch_id)
    assert new["status"] == "validating"
    assert new["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert new["expires_at"] == new["created_at"] + 86_400
    assert new["metadata"] == {"job": "a"}

    bench.jump(5 + 300)
    running = await bench.look(batch_id)
    assert running["status"] == "in_progress"
    assert running["request_counts"] == {"total": 10, "completed": 5, "failed": 0}
    assert running["model"] == "gpt-5-mini"
    assert running["output_file_id"] is None

    bench.jump(300)
    assert (await bench.look(batch_id))["status"] == "finalizing"
    bench.jump(10)
    done = await bench.look(batch_id)
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 10, "completed": 10, "failed": 0}
    starts = [
        done[f"{name}_at"] - STARTED_AT for name in ("in_progress", "finalizing", "completed")
    ]
    assert starts == [5, 605, 615]
    assert done["error_file_id"] is None
    assert done["usage"]["total_tokens"] > 0
    assert done["failed_at"] is done["expired_at"] is done["cancelled_at"] is None


async def test_every_request_ends_in_one_file_in_another_order(bench: Bench) -> None:
    """The ids of both files together are the ids of the input, shuffled."""
    sent = [f"r-{n}" for n in range(60)]
    batch_id = await bench.start(chat_lines(60, ("hello", "[[fail:400]]", "ok", "[[fail:500]]")))
    bench.jump(700)
    good, bad = await bench.results(batch_id)
    assert sorted(ids_of(good + bad)) == sorted(sent)
    assert ids_of(good) != sorted(ids_of(good), key=sent.index)
    assert {line["response"]["status_code"] for line in good} == {200}
    assert {line["response"]["status_code"] for line in bad} == {400, 500}
    assert all(line["error"] is None for line in good + bad)
    counts = (await bench.look(batch_id))["request_counts"]
    assert counts == {"total": 60, "completed": 30, "failed": 30}


async def test_all_failed_has_no_output_file(bench: Bench) -> None:
    """A batch without a success completes with a null output file."""
    batch_id = await bench.start(chat_line("a", "[[fail:400]]"))
    bench.jump(700)
    batch = await bench.look(batch_id)
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    (line,) = await bench.lines(batch["error_file_id"])
    assert line["response"]["body"]["error"]["code"] == "context_length_exceeded"


async def test_marks_in_prompts(bench: Bench) -> None:
    """`once` fails one acceptance of a body, `timeout` is no HTTP error, `missing` is nowhere."""
    content = chat_line("a", "[[fail:500 once]]") + chat_line("b", "[[fail:timeout]]")
    content += chat_line("c", "[[missing]]")
    first, second = await bench.start(content), await bench.start(content)
    bench.jump(700)
    good, bad = await bench.results(first)
    assert (ids_of(good), sorted(ids_of(bad))) == ([], ["a", "b"])
    timeout = next(line for line in bad if line["custom_id"] == "b")
    assert timeout["response"] is None
    assert timeout["error"]["code"] == "request_timeout"
    good, bad = await bench.results(second)
    assert (ids_of(good), ids_of(bad)) == (["a"], ["b"])


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/responses"])
async def test_marks_spoil_answers(bench: Bench, endpoint: str) -> None:
    """A marked request is answered, but refused, cut off, filtered or off its schema; once."""
    manners = ("refusal", "length", "filter", "misfit")
    bodies = {
        manner: {
            "model": "gpt-5-mini",
            "input": f"hello [[answer:{manner} once]]",
            "messages": [{"role": "user", "content": f"hello [[answer:{manner} once]]"}],
            "response_format": {"json_schema": {"schema": {"type": "object"}}},
            "text": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        }
        for manner in manners
    }
    content = b"".join(
        chat_line(manner, url=endpoint, body=body) for manner, body in bodies.items()
    )
    batch_ids = [await bench.start(content, endpoint) for _ in range(2)]
    bench.jump(700)
    told = []

    for batch_id in batch_ids:
        good, bad = await bench.results(batch_id)
        assert bad == []
        told.append({line["custom_id"]: said(line["response"]["body"]) for line in good})

    is_chat = endpoint == CHAT
    refusal = "I'm sorry, I cannot assist with that."
    shown = '["{}"]'
    assert told[0] == {
        "refusal": (None, refusal, "stop" if is_chat else "completed"),
        "length": ("{", None, "length" if is_chat else "max_output_tokens"),
        "filter": ("", None, "content_filter"),
        "misfit": (shown, None, "stop" if is_chat else "completed"),
    }
    assert set(told[1].values()) == {("{}", None, "stop" if is_chat else "completed")}


def said(body: dict[str, Any]) -> tuple[str | None, str | None, str]:
    """Return text, refusal and reason of an answer."""
    if "choices" in body:
        (choice,) = body["choices"]
        message = choice["message"]

        return message["content"], message["refusal"], choice["finish_reason"]

    ((part,),) = [entry["content"] for entry in body["output"]]
    details = body["incomplete_details"]
    assert (body["status"] == "incomplete") == (details is not None)

    return part.get("text"), part.get("refusal"), details["reason"] if details else body["status"]


SCHEMAS: list[tuple[dict[str, Any], object]] = [
    ({"type": "object"}, {}),
    (
        {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "sentiment": {"type": "string", "enum": ["good", "bad"]},
                "fixed": {"const": 7},
                "score": {"type": "integer", "minimum": 2},
                "above": {"type": "number", "exclusiveMinimum": 2},
                "below": {"type": "number", "maximum": -3},
                "step": {"type": "integer", "minimum": 7, "multipleOf": 5},
                "is": {"type": "boolean"},
                "maybe": {"type": ["null", "string"]},
                "either": {"anyOf": [{"$ref": "#/$defs/part"}, {"type": "null"}]},
                "many": {"type": "array", "items": {"type": "integer"}, "minItems": 3},
                "few": {"type": "array", "items": {"type": "integer"}},
                "none": {"type": "array", "maxItems": 0},
                "day": {"type": "string", "format": "date"},
                "long": {"type": "string", "minLength": 80},
                "short": {"type": "string", "maxLength": 3},
            },
            "$defs": {"part": {"type": "object", "properties": {"a": {"type": "string"}}}},
        },
        {
            "text": "Simulated answer to: sky?",
            "sentiment": "good",
            "fixed": 7,
            "score": 2,
            "above": 3,
            "below": -3,
            "step": 10,
            "is": True,
            "maybe": None,
            "either": {"a": "Simulated answer to: sky?"},
            "many": [0, 0, 0],
            "few": [0],
            "none": [],
            "day": "2026-01-01",
            "long": "Simulated answer to: sky?".ljust(80, "."),
            "short": "Sim",
        },
    ),
]
TREE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "rest": {"type": "array", "items": {"$ref": "#"}},
        "name": {"allOf": [{"type": "string"}, {"maxLength": 9}]},
    },
    "required": ["left", "rest", "name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(("schema", "expected"), SCHEMAS)
def test_structured_answers_are_filled_in(schema: dict[str, Any], expected: object) -> None:
    """The first of what may be chosen, one of what may be many, and the text for any string."""
    found = fitting(schema, "Simulated answer to: sky?")

    assert found == expected
    assert isinstance(Checker(schema).parsed(json.dumps(found)), bytes)


def test_recursive_schemas_end() -> None:
    """A tree gets a few levels, and still fits."""
    text = json.dumps(fitting(TREE, "x" * 20))

    assert Checker(TREE).parsed(text) == text.replace(" ", "").encode()
    assert text.count("left") > 3


@pytest.mark.parametrize(
    "schema", [None, 5, {}, {"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"anyOf": [{"$ref": "#"}]}]
)
def test_strange_schemas_get_an_answer(schema: object) -> None:
    """What no schema should be does not stop the provider."""
    assert fitting(schema, "x") == "x"


async def test_answers_depend_on_the_body_alone(tmp_path: Path) -> None:
    """Two simulators give one body the same answer, byte for byte."""
    bodies = []

    for seed in ("one", "two"):
        async with served(tmp_path / seed, SimulatorSettings(seed=seed)) as bench:
            batch_id = await bench.start(chat_line(seed, "Why is the sky blue?"))
            bench.jump(700)
            good, _ = await bench.results(batch_id)
            bodies.append(good[0]["response"]["body"])

    assert bodies[0] == bodies[1]
    said = bodies[0]["choices"][0]["message"]["content"]
    assert said == "Simulated answer to: Why is the sky blue?"


async def test_line_separators_of_unicode_survive(bench: Bench) -> None:
    """U+2028 in a prompt comes back raw inside one line of the output."""
    batch_id = await bench.start(chat_line("a", "one\u2028two"))
    bench.jump(700)
    batch = await bench.look(batch_id)
    answer = await bench.client.get(f"/v1/files/{batch['output_file_id']}/content")
    assert "one\u2028two" in answer.content.decode()
    assert answer.content.count(b"\n") == 1


async def test_cancel_keeps_what_ran(bench: Bench) -> None:
    """A cancelled batch has answers for what ran, `batch_cancelled` for the rest, after a while."""
    batch_id = await bench.start(chat_lines(10))
    bench.jump(5 + 180)
    cancelling = (await bench.client.post(f"/v1/batches/{batch_id}/cancel")).json()
    assert cancelling["status"] == "cancelling"
    bench.jump(29)
    again = (await bench.client.post(f"/v1/batches/{batch_id}/cancel")).json()
    assert again["status"] == "cancelling"
    bench.jump(1)
    batch = await bench.look(batch_id)
    assert batch["status"] == "cancelled"
    assert batch["request_counts"] == {"total": 10, "completed": 3, "failed": 0}
    good, bad = await bench.results(batch_id)
    assert (len(good), len(bad)) == (3, 7)
    assert {line["error"]["code"] for line in bad} == {"batch_cancelled"}
    late = await bench.client.post(f"/v1/batches/{batch_id}/cancel")
    assert late.status_code == 409


async def test_slow_batch_expires_with_what_ran(tmp_path: Path) -> None:
    """A batch that outlives its window expires; what did not run is `batch_expired`."""
    async with served(tmp_path, SimulatorSettings(run_s=4 * 86_400)) as bench:
        batch_id = await bench.start(chat_lines(8))
        bench.jump(86_399)
        assert (await bench.look(batch_id))["status"] == "in_progress"
        bench.jump(1)
        batch = await bench.look(batch_id)
        assert batch["status"] == "expired"
        assert batch["request_counts"] == {"total": 8, "completed": 1, "failed": 0}
        good, bad = await bench.results(batch_id)
        assert (len(good), len(bad)) == (1, 7)
        assert {line["error"]["code"] for line in bad} == {"batch_expired"}


async def test_finalizing_past_the_window_expires() -> None:
    """A window that ends while finalizing ends the batch as expired, with all of it run."""
    course = Course(validate_s=5, run_s=90, finalize_s=10, cancel_s=30, window_s=100)
    timeline = plan(0, course)
    assert [timeline.status(at) for at in (4, 5, 95, 100)] == [
        "validating",
        "in_progress",
        "finalizing",
        "expired",
    ]
    assert timeline.progress(100) == 1


# Validation


def _errors_cases() -> list[tuple[bytes, str, int | None]]:
    good = chat_line("a")
    other = {"model": "other", "messages": []}
    return [
        (good + b"{not json\n", "invalid_json_line", 2),
        (b"\xef\xbb\xbf" + good, "invalid_json_line", 1),
        (good + b"[1]\n", "invalid_json_line", 2),
        (good + b'{"custom_id":"b","url":"/v1/x","body":{}}\n', "missing_required_parameter", 2),
        (good + chat_line("b", body={"messages": []}), "missing_required_parameter", 2),
        (good + good, "duplicate_custom_id", 2),
        (good + chat_line("b", url="/v1/embeddings"), "url_mismatch", 2),
        (good + chat_line("b", url="/v2/nothing"), "invalid_url", 2),
        (good + chat_line("b", method="GET"), "invalid_request", 2),
        (good + chat_line("b", body={**other, "model": 5}), "invalid_request", 2),
        (chat_line("b", body={**other, "stream": True}), "invalid_request", 1),
        (good + chat_line("b", body=other), "model_mismatch", 2),
        (good + chat_line("b", body={**other, "model": "no-such"}), "model_not_found", 2),
        (b"", "empty_file", None),
        (chat_lines(4), "too_many_tasks", None),
        (chat_line("a", "x" * 900), "token_limit_exceeded", None),
    ]


@pytest.mark.parametrize(("content", "code", "line"), _errors_cases())
async def test_validation_errors(
    tmp_path: Path, content: bytes, code: str, line: int | None
) -> None:
    """An unsound file is accepted, then the batch fails and names the code and the line."""
    settings = SimulatorSettings(
        max_requests=3,
        models=frozenset({"gpt-5-mini", "other"}),
        enqueued_tokens={"gpt-5-mini": 200},
    )

    async with served(tmp_path, settings) as bench:
        batch_id = await bench.start(content)
        assert (await bench.look(batch_id))["status"] == "validating"
        bench.jump(5)
        batch = await bench.look(batch_id)
        assert batch["status"] == "failed"
        assert batch["failed_at"] == STARTED_AT + 5
        assert batch["output_file_id"] is batch["error_file_id"] is None
        errors = batch["errors"]["data"]
        assert [(error["code"], error["line"]) for error in errors] == [(code, line)]
        assert errors[0]["message"]
        assert not bench.simulator.ledger.requests


async def test_embedding_inputs_are_limited(tmp_path: Path) -> None:
    """The inputs of all lines together count against the limit for embeddings."""
    async with served(tmp_path, SimulatorSettings(max_embedding_inputs=3)) as bench:
        body = {"model": "e", "input": ["a", "b"]}
        content = chat_line("a", url="/v1/embeddings", body=body)
        content += chat_line("b", url="/v1/embeddings", body=body)
        batch_id = await bench.start(content, "/v1/embeddings")
        bench.jump(5)
        batch = await bench.look(batch_id)
        assert batch["errors"]["data"][0]["code"] == "too_many_tasks"


async def test_enqueued_tokens_are_given_back(tmp_path: Path) -> None:
    """A batch refused for enqueued tokens is accepted when the one before has ended."""
    async with served(tmp_path, SimulatorSettings(enqueued_tokens={"gpt-5-mini": 100})) as bench:
        content = chat_line("a", "x" * 200)
        first, second = await bench.start(content), await bench.start(content)
        bench.jump(5)
        assert (await bench.look(first))["status"] == "in_progress"
        assert (await bench.look(second))["status"] == "failed"
        bench.jump(700)
        third = await bench.start(content)
        bench.jump(5)
        assert (await bench.look(third))["status"] == "in_progress"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
    ],
)
async def test_bad_batch_parameters(bench: Bench, change: dict[str, object], param: str) -> None:
    """A wrong parameter is a 400 at once, with the documented error object."""
    body = {"input_file_id": await bench.upload(chat_line("a")), "endpoint": CHAT}
    body |= {"completion_window": "24h"}
    answer = await bench.client.post("/v1/batches", json=body | change)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"].startswith(param)


async def test_creations_are_limited_by_the_hour(tmp_path: Path) -> None:
    """The batch over the hourly limit is a 429 that says when to come back."""
    async with served(tmp_path, SimulatorSettings(max_creates_per_hour=1)) as bench:
        file_id = await bench.upload(chat_line("a"))
        assert (await bench.create(file_id)).status_code == 200
        bench.jump(600)
        refused = await bench.create(file_id)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3001")
        bench.jump(3001)
        assert (await bench.create(file_id)).status_code == 200


# Files and lists


async def test_file_routes(bench: Bench) -> None:
    """A file can be listed, read and deleted, and is unknown afterwards."""
    content = chat_lines(3)
    file_id = await bench.upload(content)
    shown = (await bench.client.get(f"/v1/files/{file_id}")).json()
    assert (shown["bytes"], shown["filename"], shown["status"]) == (
        len(content),
        "in.jsonl",
        "processed",
    )
    assert shown["expires_at"] == shown["created_at"] + 30 * 86_400
    listed = (await bench.client.get("/v1/files", params={"purpose": "batch"})).json()
    assert [file["id"] for file in listed["data"]] == [file_id]
    body = await bench.client.get(f"/v1/files/{file_id}/content")
    assert (body.content, body.headers["content-length"]) == (content, str(len(content)))
    deleted = await bench.client.delete(f"/v1/files/{file_id}")
    assert deleted.json() == {"id": file_id, "object": "file", "deleted": True}
    assert bench.simulator.ledger.deletions == [file_id]

    for suffix in ("", "/content"):
        assert (await bench.client.get(f"/v1/files/{file_id}{suffix}")).status_code == 404


async def test_big_upload_is_stored_whole(bench: Bench, tmp_path: Path) -> None:
    """Thirty megabytes arrive as they were sent, with their hash in the ledger."""
    content = chat_lines(30_000, ("x" * 900,))
    file_id = await bench.upload(content)
    assert (await bench.client.get(f"/v1/files/{file_id}/content")).content == content
    (upload,) = bench.simulator.ledger.uploads
    assert upload.sha256 == hashlib.sha256(content).hexdigest()
    assert len(left_in(tmp_path)) == 1


async def test_refused_uploads_leave_nothing(tmp_path: Path) -> None:
    """A wrong name, purpose, size or form is refused, and no bytes stay behind."""
    async with served(tmp_path, SimulatorSettings(max_bytes=1000)) as bench:
        wrong_name = await bench.post_file(b"{}", "in.json")
        assert wrong_name.status_code == 400
        message = "Invalid file format for Batch API. Must be .jsonl"
        assert wrong_name.json()["error"]["message"] == message
        assert (await bench.post_file(b"{}", purpose="vision")).status_code == 400
        assert (await bench.post_file(b"x" * 2_000_000)).status_code == 413
        assert (await bench.client.post("/v1/files", json={})).status_code == 400
        short = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}
        assert (await bench.post_file(b"{}", **short)).status_code == 400
        assert left_in(tmp_path) == []
        assert bench.simulator.ledger.uploads == []


async def test_files_expire(bench: Bench) -> None:
    """A file past its expiry is unknown."""
    ask = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file_id = (await bench.post_file(chat_line("a"), **ask)).json()["id"]
    bench.jump(3599)
    assert (await bench.client.get(f"/v1/files/{file_id}")).status_code == 200
    bench.jump(1)
    assert (await bench.client.get(f"/v1/files/{file_id}")).status_code == 404


async def test_result_files_are_listed_and_expire(bench: Bench) -> None:
    """A result file is listed once its batch has ended, and lives as long as was asked."""
    kept = {"anchor": "created_at", "seconds": 3600}
    batch_id = await bench.start(chat_line("a"), output_expires_after=kept)
    bench.jump(615 + 3599)
    listed = (await bench.client.get("/v1/files", params={"purpose": "batch_output"})).json()
    (file,) = listed["data"]
    assert file["filename"] == f"{batch_id}_output.jsonl"
    assert file["expires_at"] == STARTED_AT + 615 + 3600
    bench.jump(1)
    assert (await bench.client.get(f"/v1/files/{file['id']}/content")).status_code == 404


async def test_input_may_be_deleted_while_running(bench: Bench) -> None:
    """A batch needs its input file no more once it is accepted."""
    file_id = await bench.upload(chat_lines(3))
    batch_id = (await bench.create(file_id)).json()["id"]
    await bench.client.delete(f"/v1/files/{file_id}")
    bench.jump(700)
    good, bad = await bench.results(batch_id)
    assert (len(good), len(bad)) == (3, 0)


async def test_batch_list_pages_newest_first(bench: Bench) -> None:
    """Pages joined by `after` are all batches, newest first, each once."""
    file_id = await bench.upload(chat_line("a"))
    made = [(await bench.create(file_id)).json()["id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, str] = {"limit": "2"}

    while True:
        found = (await bench.client.get("/v1/batches", params=query)).json()
        seen += [batch["id"] for batch in found["data"]]
        assert (found["first_id"], found["last_id"]) == (seen[-len(found["data"])], seen[-1])

        if not found["has_more"]:
            break

        query["after"] = found["last_id"]

    assert seen == made[::-1]


async def test_file_list_order(bench: Bench) -> None:
    """Files are listed newest first, or oldest first when asked."""
    made = [await bench.upload(chat_line("a")) for _ in range(3)]
    found = (await bench.client.get("/v1/files")).json()
    assert [file["id"] for file in found["data"]] == made[::-1]
    query = {"order": "asc", "after": made[0], "limit": "1"}
    found = (await bench.client.get("/v1/files", params=query)).json()
    assert ([file["id"] for file in found["data"]], found["has_more"]) == ([made[1]], True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/files/file-x", 404),
        ("GET", "/v1/files/file-x/content", 404),
        ("DELETE", "/v1/files/file-x", 404),
        ("GET", "/v1/batches/batch_x", 404),
        ("POST", "/v1/batches/batch_x/cancel", 404),
        ("GET", "/v1/batches?after=batch_x", 404),
        ("GET", "/v1/batches?limit=101", 400),
        ("GET", "/v1/batches?limit=0", 400),
        ("GET", "/v1/files?limit=x", 400),
        ("GET", "/v1/files?order=up", 400),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/batches", 405),
        ("POST", "/v1/batches", 400),
    ],
)
async def test_refusals_are_documented_json(
    bench: Bench, method: str, path: str, status: int
) -> None:
    """Every refusal is the error object, with a request id and the simulated date."""
    answer = await bench.client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["date"] == formatdate(STARTED_AT, usegmt=True)


async def test_wrong_keys_are_refused(bench: Bench) -> None:
    """Without the key nothing is done."""
    for headers in ({"authorization": ""}, {"authorization": "Bearer sk-other"}):
        answer = await bench.client.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": ("a.jsonl", b"{}")},
            headers=headers,
        )
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "invalid_request_error"

    assert bench.simulator.ledger.uploads == []


async def test_unknown_input_file(bench: Bench) -> None:
    """A batch of a file nobody has is a 404 and no batch."""
    assert (await bench.create("file-x")).status_code == 404
    assert bench.simulator.ledger.creations == []


# Faults of exchanges


async def test_status_fault(bench: Bench) -> None:
    """A scripted status comes with its headers and body, once, and does no work."""
    fault = Fault(route="batches.create", status=429, headers={"retry-after": "7"})
    page = Fault(route="batches.create", status=503, body="<html>no</html>")
    bench.simulator.faults.add(fault, page)
    file_id = await bench.upload(chat_line("a"))
    first, second = await bench.create(file_id), await bench.create(file_id)
    assert (first.status_code, first.headers["retry-after"]) == (429, "7")
    assert (second.status_code, second.text) == (503, "<html>no</html>")
    assert second.headers["content-type"] == "text/html"
    assert bench.simulator.ledger.creations == []
    assert (await bench.create(file_id)).status_code == 200
    assert bench.simulator.faults.fired == [fault, page]


@pytest.mark.parametrize(
    ("action", "error"), [("cut", httpx.RemoteProtocolError), ("reset", httpx.ReadError)]
)
async def test_lost_answer(
    bench: Bench, action: Literal["cut", "reset"], error: type[Exception]
) -> None:
    """A connection that ends after the work leaves a batch the client never heard of."""
    bench.simulator.faults.add(Fault(route="batches.create", action=action, point="after"))
    file_id = await bench.upload(chat_line("a"))

    with pytest.raises(error):
        await bench.create(file_id, metadata={"job": "j"})

    await bench.create(file_id, metadata={"job": "j"})
    ledger = bench.simulator.ledger
    assert len(ledger.batches_by_metadata("job")["j"]) == 2
    assert ledger.duplicates("job") == ledger.batches_by_metadata("job")
    assert ledger.repeated_requests() == {"a": 2}


async def test_cut_upload_stores_nothing(bench: Bench) -> None:
    """A connection that ends before the work leaves no file."""
    bench.simulator.faults.add(Fault(route="files.create", action="cut"))

    with pytest.raises((httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
        await bench.upload(b"x" * 5_000_000)

    assert bench.simulator.ledger.uploads == []


async def test_truncated_download(bench: Bench) -> None:
    """A truncated body ends half-way, as a broken connection and not as a short file."""
    content = chat_lines(2000)
    file_id = await bench.upload(content)
    bench.simulator.faults.add(Fault(route="files.content", action="truncate"))
    received = 0

    async with bench.client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - a loop is the statement
            async for chunk in answer.aiter_bytes():
                received += len(chunk)

    assert received == len(content) // 2
    assert (await bench.client.get(f"/v1/files/{file_id}/content")).content == content


async def test_severed_upload_stores_nothing(bench: Bench) -> None:
    """A reset comes after the bytes that were asked for, and the file is not kept."""
    bench.simulator.faults.add(Fault(route="files.create", action="sever", after_bytes=100_000))

    with pytest.raises((httpx.ReadError, httpx.WriteError)):
        await bench.upload(b"x" * 50_000_000)

    assert bench.simulator.ledger.uploads == []
    assert (await bench.client.get("/v1/files")).json()["data"] == []


async def test_severed_request_does_no_work(bench: Bench) -> None:
    """A request shorter than what was to be read is read, and still does nothing."""
    bench.simulator.faults.add(Fault(route="batches.create", action="sever"))
    file_id = await bench.upload(chat_line("a"))

    with pytest.raises(httpx.ReadError):
        await bench.create(file_id)

    assert bench.simulator.ledger.creations == []


async def test_answer_shorter_than_announced(bench: Bench) -> None:
    """All bytes come, and the connection ends before the length that was announced."""
    content = chat_lines(50)
    file_id = await bench.upload(content)
    bench.simulator.faults.add(Fault(route="files.content", action="short"))
    received = b""

    async with bench.client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        assert int(answer.headers["content-length"]) > len(content)

        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - a loop is the statement
            async for chunk in answer.aiter_bytes():
                received += chunk

    assert received == content


async def test_answer_longer_than_announced(bench: Bench) -> None:
    """Half is announced, and who counts reads half; the rest is on the connection after it."""
    content = chat_lines(50)
    file_id = await bench.upload(content)
    bench.simulator.faults.add(Fault(route="files.content", action="long"))
    url = bench.client.base_url

    async with await anyio.connect_tcp(url.host, url.port or 0) as connection:
        request = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        await connection.send(f"{request}authorization: Bearer sk-simulated\r\n\r\n".encode())
        raw = b"".join([chunk async for chunk in connection])

    head, _, body = raw.partition(b"\r\n\r\n")
    assert f"content-length: {len(content) // 2}".encode() in head.lower()
    assert body == content

    bench.simulator.faults.add(Fault(route="files.content", action="long"))
    answer = await bench.client.get(f"/v1/files/{file_id}/content")
    assert answer.content == content[: len(content) // 2]


async def test_dripping_answer(bench: Bench) -> None:
    """A dripping body comes whole, a byte at a time, and ends when its client goes away."""
    file_id = await bench.upload(chat_line("a"))
    slow = Fault(route="files.content", action="drip", delay_s=0.5)
    bench.simulator.faults.add(Fault(route="files.get", action="drip"), slow)
    assert (await bench.client.get(f"/v1/files/{file_id}")).json()["id"] == file_id

    async with bench.client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        assert answer.status_code == 200

        async for piece in answer.aiter_raw():
            assert len(piece) == 1
            break


@pytest.mark.parametrize("status", [None, 502])
async def test_endless_answer(bench: Bench, status: int | None) -> None:
    """A bloated body goes on for as long as anybody reads it, and does no work."""
    bench.simulator.faults.add(
        Fault(route="batches.create", action="bloat", body="{ ", status=status)
    )
    file_id = await bench.upload(chat_line("a"))
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    received = 0

    async with bench.client.stream("POST", "/v1/batches", json=body) as answer:
        assert answer.status_code == (status or 200)

        async for chunk in answer.aiter_bytes():
            received += len(chunk)

            if received > 5_000_000:
                break

    assert bench.simulator.ledger.creations == []


async def test_new_files_are_hidden(bench: Bench) -> None:
    """A file may be in no list, and good for no batch, for a while after its upload."""
    bench.simulator.faults.add_file(FileFault(list_lag_s=30, ready_lag_s=10))
    file_id = await bench.upload(chat_line("a"))
    other = await bench.upload(chat_line("a"))

    async def listed() -> list[str]:
        found = (await bench.client.get("/v1/files")).json()
        return [file["id"] for file in found["data"]]

    refused = await bench.create(file_id)
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == f"No such File object: {file_id}"
    assert await listed() == [other]
    bench.jump(10)
    assert (await bench.create(file_id)).status_code == 200
    assert await listed() == [other]
    bench.jump(20)
    assert await listed() == [other, file_id]


async def test_foreign_batches_are_in_the_list(bench: Bench) -> None:
    """Batches of others stand where their time is, and those of the future come in time."""
    bench.simulator.add_foreign_batches(150, created_at=STARTED_AT - 5)
    bench.simulator.add_foreign_batches(
        2, created_at=STARTED_AT + 60, spacing_s=10, metadata={"a": "b"}
    )
    mine = await bench.start(chat_line("a"))
    first = (await bench.client.get("/v1/batches", params={"limit": "100"})).json()
    assert [batch["id"] for batch in first["data"]].index(mine) == 0
    assert first["has_more"]
    rest = (
        await bench.client.get("/v1/batches", params={"limit": "100", "after": first["last_id"]})
    ).json()
    assert (len(rest["data"]), rest["has_more"]) == (51, False)
    bench.jump(55)
    found = (await bench.client.get("/v1/batches", params={"limit": "2"})).json()["data"]
    assert [batch["created_at"] for batch in found] == [STARTED_AT + 50, STARTED_AT]
    assert (await bench.look(found[0]["id"]))["metadata"] == {"a": "b"}
    assert bench.simulator.ledger.creations[0].remote_id == mine
    assert len(bench.simulator.ledger.creations) == 1


async def test_a_clock_of_its_own(tmp_path: Path) -> None:
    """A provider whose clock is off says so in `Date` and in every time it gives."""
    async with served(tmp_path, SimulatorSettings(clock_offset_s=-600)) as bench:
        batch_id = await bench.start(chat_line("a"))
        answer = await bench.client.get(f"/v1/batches/{batch_id}")
        assert answer.headers["date"] == formatdate(STARTED_AT - 600, usegmt=True)
        assert answer.json()["created_at"] == STARTED_AT - 600
        assert answer.json()["expires_at"] == STARTED_AT - 600 + 86_400
        bench.jump(700)
        assert (await bench.look(batch_id))["completed_at"] == STARTED_AT - 600 + 615


async def test_tampered_batch_objects(bench: Bench) -> None:
    """Fields of a Batch object may be of another type, null, or not there at all, for a while."""
    fault = BatchFault(
        raw={"created_at": "1800000000", "metadata": None},
        without=frozenset({"request_counts"}),
        raw_in=frozenset({"validating"}),
    )
    bench.simulator.faults.add_batch(fault)
    created = (await bench.create(await bench.upload(chat_line("a")))).json()
    assert "request_counts" in created
    batch = await bench.look(created["id"])
    listed = (await bench.client.get("/v1/batches")).json()["data"]
    assert listed == [batch]
    assert (batch["created_at"], batch["metadata"]) == ("1800000000", None)
    assert "request_counts" not in batch
    bench.jump(10)
    batch = await bench.look(created["id"])
    assert (batch["created_at"], "request_counts" in batch) == (STARTED_AT, True)


async def test_strange_lines_and_a_cut_end(bench: Bench) -> None:
    """An output file may begin with any bytes and end in the middle of a line."""
    strange = ["caf\u2028e".encode(), b"\xff\x00"]
    bench.simulator.faults.add_batch(BatchFault(lines=strange, cut_last_line=True))
    batch_id = await bench.start(chat_lines(4))
    bench.jump(700)
    file_id = (await bench.look(batch_id))["output_file_id"]
    found = (await bench.client.get(f"/v1/files/{file_id}/content")).content.split(b"\n")
    assert found[:2] == strange
    assert len(found) == 6
    assert [json.loads(line)["response"]["status_code"] for line in found[2:5]] == [200] * 3
    assert found[5].startswith(b'{"id":')

    with pytest.raises(json.JSONDecodeError):
        json.loads(found[5])


async def test_useless_successes(bench: Bench) -> None:
    """`empty` and `garbage` are 200 without the object; `stall` only waits."""
    batch_id = await bench.start(chat_line("a"))
    bench.simulator.faults.add(
        Fault(route="batches.get", action="empty"),
        Fault(route="batches.get", action="garbage"),
        Fault(route="batches.get", action="stall", delay_s=0.01),
    )
    path = f"/v1/batches/{batch_id}"
    empty, garbage, late = [await bench.client.get(path) for _ in range(3)]
    assert (empty.status_code, empty.content) == (200, b"")
    assert (garbage.status_code, garbage.text[:6]) == (200, "<html>")
    assert late.json()["id"] == batch_id


async def test_faults_match_what_they_name(bench: Bench) -> None:
    """A fault strikes only the id, metadata, predicate and call it names."""
    plain, named = [await bench.start(chat_line("a"), metadata={"k": k}) for k in ("1", "2")]
    faults = bench.simulator.faults
    faults.add(Fault(route="batches.get", metadata={"k": "2"}, status=502))
    faults.add(Fault(route="batches.get", remote_id=plain, nth=2, status=503))
    faults.add(
        Fault(route="batches.get", status=504, times=None), when=lambda call: call.remote_id == "x"
    )
    asked = (plain, named, plain, plain, named, "x", "x")
    answers = [await bench.client.get(f"/v1/batches/{remote_id}") for remote_id in asked]
    seen = [answer.status_code for answer in answers]
    assert seen == [200, 502, 503, 200, 200, 504, 504]
    faults.clear()
    assert (await bench.client.get("/v1/batches/x")).status_code == 404


async def test_faults_and_ledger_over_http(bench: Bench) -> None:
    """A script sent over HTTP works like one in the process, and the ledger can be read."""
    script = {"type": "exchange", "route": "files.create", "status": 500, "point": "after"}
    assert (await bench.client.post("/_simulator/faults", json=script)).status_code == 200
    fate = {"type": "batch", "ending": "expired", "done": 0.5}
    assert (await bench.client.post("/_simulator/faults", json=fate)).status_code == 200
    wrong = await bench.client.post("/_simulator/faults", json={**script, "nonsense": 1})
    assert wrong.status_code == 400
    assert (await bench.post_file(chat_line("a"))).status_code == 500
    await bench.start(chat_lines(4))
    ledger = (await bench.client.get("/_simulator/ledger")).json()
    assert [upload["filename"] for upload in ledger["uploads"]] == ["in.jsonl"] * 2
    assert ledger["calls"] == {"files.create": 2, "batches.create": 1}
    assert ledger["requests"] == {f"r-{n}": 1 for n in range(4)}
    assert (await bench.client.delete("/_simulator/faults")).status_code == 200


# Fates of batches


async def test_forced_expiry(bench: Bench) -> None:
    """A batch fated to expire has run the given fraction by the end of its window."""
    bench.simulator.faults.add_batch(BatchFault(ending="expired", done=0.3))
    batch_id = await bench.start(chat_lines(10))
    bench.jump(86_400)
    good, bad = await bench.results(batch_id)
    assert (len(good), len(bad)) == (3, 7)
    assert (await bench.look(batch_id))["status"] == "expired"


async def test_forced_failure_and_cancellation(bench: Bench) -> None:
    """A batch can be fated to fail with given errors, or to be cancelled by the provider."""
    error = {"code": "token_limit_exceeded", "message": "m", "line": None, "param": None}
    script = {"type": "batch", "ending": "failed", "errors": [error], "bare_errors": True}
    await bench.client.post("/_simulator/faults", json=script)
    bench.simulator.faults.add_batch(BatchFault(ending="cancelled", done=0.5))
    failed, cancelled = await bench.start(chat_lines(4)), await bench.start(chat_lines(4))
    bench.jump(700)
    assert (await bench.look(failed))["errors"] == [error]
    assert (await bench.look(cancelled))["status"] == "cancelled"
    good, bad = await bench.results(cancelled)
    assert (len(good), len(bad)) == (2, 2)
    assert [entry.requests for entry in bench.simulator.ledger.creations] == [0, 4]


async def test_stuck_batches(bench: Bench) -> None:
    """A stuck batch never leaves its status, except for a cancel."""
    bench.simulator.faults.add_batch(BatchFault(stuck_in="in_progress", done=0.5))
    bench.simulator.faults.add_batch(BatchFault(stuck_in="cancelling"))
    first, second = await bench.start(chat_lines(4)), await bench.start(chat_lines(4))
    await bench.client.post(f"/v1/batches/{second}/cancel")
    bench.jump(1e6)
    assert (await bench.look(first))["status"] == "in_progress"
    assert (await bench.look(second))["status"] == "cancelling"
    await bench.client.post(f"/v1/batches/{first}/cancel")
    bench.jump(30)
    assert (await bench.look(first))["status"] == "cancelled"


async def test_dishonest_files(bench: Bench) -> None:
    """A fate drops, repeats, adds and tears lines, and fails requests, as told."""
    told = Failure(status=503, code="overloaded", message="m")
    fate = BatchFault(drop=0.2, duplicate=2, foreign=1)
    bench.simulator.faults.add_batch(fate)
    bench.simulator.faults.add_batch(
        BatchFault(fail_ordinals=frozenset({1}), failure=told, errors_in_output=True),
        judge=lambda line: told if line["custom_id"] == "r-3" else None,
    )
    bench.simulator.faults.add_batch(BatchFault(torn_lines=1, empty_error_file=True))
    one, two, three = [await bench.start(chat_lines(10)) for _ in range(3)]
    bench.jump(700)
    good, bad = await bench.results(one)
    assert bad == []
    assert len(good) == 8 + 2 + 1
    assert len({custom_id for custom_id in ids_of(good) if custom_id.startswith("r-")}) == 8
    assert "foreign-0" in ids_of(good)

    good, bad = await bench.results(two)
    assert bad == []
    failed = [line["custom_id"] for line in good if line["response"]["status_code"] == 503]
    assert sorted(failed) == ["r-1", "r-3"]

    batch = await bench.look(three)
    assert await bench.lines(batch["error_file_id"]) == []
    assert batch["error_file_id"]
    content = (await bench.client.get(f"/v1/files/{batch['output_file_id']}/content")).content

    with pytest.raises(json.JSONDecodeError):
        json.loads(content.split(b"\n")[0])


async def test_late_blank_hidden_and_renamed(bench: Bench) -> None:
    """File ids can come late or blank, lists can lag, statuses can have other names."""
    fate = BatchFault(
        late_file_ids=2, blank_file_ids=True, list_lag_s=60, renamed={"completed": "COMPLETE"}
    )
    bench.simulator.faults.add_batch(fate)
    batch_id = await bench.start(chat_line("a"))
    bench.jump(59)
    assert (await bench.client.get("/v1/batches")).json()["data"] == []
    bench.jump(1)
    assert len((await bench.client.get("/v1/batches")).json()["data"]) == 1
    bench.jump(700)
    looks = [await bench.look(batch_id) for _ in range(3)]
    assert [bool(batch["output_file_id"]) for batch in looks] == [False, False, True]
    assert looks[0]["output_file_id"] == looks[2]["error_file_id"] == ""
    assert looks[2]["status"] == "COMPLETE"


async def test_runs_vary_the_same_way(tmp_path: Path) -> None:
    """Jittered runs differ between batches and not between simulators."""
    seen = []

    for name in ("one", "two"):
        async with served(tmp_path / name, SimulatorSettings(run_jitter=0.5)) as bench:
            made = [await bench.start(chat_line("a")) for _ in range(3)]
            bench.jump(2000)
            seen.append([(await bench.look(batch_id))["completed_at"] for batch_id in made])

    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 1


async def test_results_are_made_once(bench: Bench) -> None:
    """Many looks at the moment of the end find one and the same file."""
    batch_id = await bench.start(chat_lines(500))
    bench.jump(700)
    found: list[str] = []

    async def look() -> None:
        found.append((await bench.look(batch_id))["output_file_id"])

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(look)

    assert len(set(found)) == 1
    listed = (await bench.client.get("/v1/files", params={"purpose": "batch_output"})).json()
    assert [file["id"] for file in listed["data"]] == found[:1]


# Serving


async def test_stopping_does_not_wait_for_requests(tmp_path: Path) -> None:
    """Cancelling the server ends a stalled request at once."""
    has_arrived = anyio.Event()
    errors: list[Exception] = []

    def note(call: Call) -> bool:
        has_arrived.set()
        return call.route == "batches.get"

    async def ask(bench: Bench) -> None:
        async with client_of(str(bench.client.base_url)) as client:
            try:
                await client.get("/v1/batches/x")
            except httpx.TransportError as error:
                errors.append(error)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, served(tmp_path) as bench:
            fault = Fault(route="batches.get", action="stall", delay_s=60)
            bench.simulator.faults.add(fault, when=note)
            group.start_soon(ask, bench)
            await has_arrived.wait()

    assert len(errors) == 1


async def test_state_outlives_the_server(tmp_path: Path) -> None:
    """A simulator served again, on the same port, still knows its batches."""
    clock = StoppedClock()
    simulator = Simulator(clock=clock, directory=tmp_path)

    async with running(simulator) as url, client_of(url) as client:
        batch_id = await Bench(simulator, client, clock).start(chat_line("a"))

    async with (
        running(simulator, port=int(url.rpartition(":")[2])) as same,
        client_of(same) as client,
    ):
        assert same == url
        assert (await Bench(simulator, client, clock).look(batch_id))["status"] == "validating"


async def test_port_in_use(bench: Bench) -> None:
    """A port that is taken is an OSError, not an exit."""
    port = bench.client.base_url.port
    assert port is not None

    with pytest.raises(OSError, match="in use"):
        await serve(bench.simulator, port=port, ready=lambda _: None)


async def test_command_runs_and_stops(tmp_path: Path) -> None:
    """The command says where it listens, serves, and leaves nothing behind on SIGTERM."""
    arguments = ["-m", "promptspool.simulator", "--port", "0", "--speed", "3600"]
    env = dict(os.environ, TMPDIR=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))

    async with await anyio.open_process([sys.executable, *arguments], env=env) as process:
        assert process.stdout is not None
        stdout = BufferedByteReceiveStream(process.stdout)
        line = (await stdout.receive_until(b"\n", 200)).decode()
        prefix, _, rest = line.partition("http://127.0.0.1:")
        assert prefix == "simulator listening on "
        assert rest.endswith("/v1 (speed 3600x)")
        port = rest.partition("/")[0]
        assert len(left_in(tmp_path)) == 1

        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/v1/batches")
            assert answer.status_code == 401
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0

        assert process.stderr is not None
        assert [chunk async for chunk in process.stderr] == []

    assert left_in(tmp_path) == []


async def test_command_stays_on_loopback() -> None:
    """The command refuses an address that others could reach."""
    with pytest.raises(ValueError, match="loopback"):
        simulate(host="0.0.0.0", port=0, speed=1, api_key="k", directory=None)  # noqa: S104
