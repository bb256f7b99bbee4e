"""What the simulated provider sends is what the official SDK's types describe.

Real sockets, a clock that only moves when told, no sleeps.
"""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    FileDeleted,
    FileObject,
    ModerationCreateResponse,
)
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel

from promptspool.clock import SystemClock
from promptspool.simulator import BatchFault, Simulator, running
from promptspool.simulator.wire import ENDPOINTS, Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT: Endpoint = "/v1/chat/completions"
BODIES: dict[Endpoint, tuple[type[BaseModel], list[dict[str, Any]]]] = {
    "/v1/chat/completions": (
        ChatCompletion,
        [
            {"messages": [{"role": "user", "content": "hello"}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "n": 2},
            {"messages": [], "response_format": {"type": "json_object"}},
            {
                "messages": [{"role": "user", "content": "hello [[answer:refusal]]"}],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "object"}},
                },
            },
            {"messages": [{"role": "user", "content": "hello [[answer:filter]]"}]},
        ],
    ),
    "/v1/responses": (
        Response,
        [
            {"input": "hello"},
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
            {"input": "hello", "instructions": "be brief", "metadata": {"k": "v"}},
            {
                "input": "hello [[answer:length]]",
                "text": {
                    "format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
                },
            },
            {"input": "hello [[answer:refusal]]"},
        ],
    ),
    "/v1/embeddings": (
        CreateEmbeddingResponse,
        [{"input": "hello"}, {"input": ["a", "b"], "dimensions": 3}, {"input": [1, 2, 3]}],
    ),
    "/v1/completions": (Completion, [{"prompt": "hello"}, {"prompt": ["a", "b"]}]),
    "/v1/moderations": (ModerationCreateResponse, [{"input": "hello"}, {"input": ["a", "b"]}]),
}


class StoppedClock(SystemClock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        """Start at a round time."""
        self.time = 1_800_000_000.0

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

    async def get(self, path: str) -> Any:
        """Get a JSON value."""
        return (await self.client.get(path)).json()

    async def upload(self, content: bytes) -> Any:
        """Upload a file and return what was answered."""
        files = {"file": ("in.jsonl", content)}
        answer = await self.client.post("/v1/files", data={"purpose": "batch"}, files=files)
        return answer.json()

    async def start(self, content: bytes, endpoint: Endpoint, **extra: object) -> str:
        """Create a batch of *content* and return its id."""
        file_id = (await self.upload(content))["id"]
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return str((await self.client.post("/v1/batches", json=body | extra)).json()["id"])

    async def answers(self, content: bytes, endpoint: Endpoint) -> dict[str, Any]:
        """Run a batch to its end and return its output lines by custom id."""
        batch_id = await self.start(content, endpoint)
        self.clock.time += 700
        batch = await self.get(f"/v1/batches/{batch_id}")
        assert (batch["status"], batch["error_file_id"]) == ("completed", None)
        output = await self.client.get(f"/v1/files/{batch['output_file_id']}/content")
        lines = [json.loads(line) for line in output.content.splitlines()]
        return {line["custom_id"]: line for line in lines}


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, which is what uvicorn serves on."""
    return "asyncio"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Serve a simulator with the default settings."""
    clock = StoppedClock()
    simulator = Simulator(clock=clock, directory=tmp_path)
    key = {"authorization": "Bearer sk-simulated"}
    # No certificates: reading them takes longer than a whole test.
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async with (
        running(simulator) as url,
        httpx.AsyncClient(base_url=url, headers=key, verify=no_tls, trust_env=False) as client,
    ):
        yield Bench(simulator, client, clock)


def checked(kind: type[BaseModel], value: object) -> BaseModel:
    """Return *value* as an SDK object, after checking types and that no field is unknown."""
    found = kind.model_validate_json(json.dumps(value), strict=True)
    strays = list(unknown_fields(found))
    assert strays == []
    return found


def unknown_fields(value: object) -> list[str]:
    """Return the fields, at any depth, that the SDK's types do not have."""
    match value:
        case BaseModel():
            known = [field for name in type(value).model_fields for field in [getattr(value, name)]]
            inner = [name for field in known for name in unknown_fields(field)]
            return [f"{type(value).__name__}.{name}" for name in value.model_extra or {}] + inner
        case list():
            return [name for entry in value for name in unknown_fields(entry)]
        case _:
            return []


def request_lines(endpoint: Endpoint, bodies: list[dict[str, Any]]) -> bytes:
    """Return an input file with one line for each body."""
    lines = [
        {"custom_id": f"r-{n}", "method": "POST", "url": endpoint, "body": {"model": "m"} | body}
        for n, body in enumerate(bodies)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_answers_are_of_the_documented_types(bench: Bench, endpoint: Endpoint) -> None:
    """Every endpoint's answer is an object of the SDK's type, with nothing added."""
    kind, bodies = BODIES[endpoint]
    good = await bench.answers(request_lines(endpoint, bodies), endpoint)
    assert len(good) == len(bodies)

    for line in good.values():
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert set(line["response"]) == {"status_code", "request_id", "body"}
        assert line["id"].startswith("batch_req_")
        checked(kind, line["response"]["body"])


async def test_embeddings_have_the_length_asked_for(bench: Bench) -> None:
    """A vector is as long as `dimensions` says, in either encoding, and of length one."""
    body = {"input": ["a", "b"], "dimensions": 3}
    packed = body | {"encoding_format": "base64"}
    content = request_lines("/v1/embeddings", [body, packed])
    good = await bench.answers(content, "/v1/embeddings")
    found = {name: line["response"]["body"]["data"] for name, line in good.items()}
    assert [len(entry["embedding"]) for entry in found["r-0"]] == [3, 3]
    assert sum(x * x for x in found["r-0"][0]["embedding"]) == pytest.approx(1)
    assert [len(entry["embedding"]) for entry in found["r-1"]] == [16, 16]


async def test_json_is_answered_to_whoever_asks_for_it(bench: Bench) -> None:
    """A prompt with a JSON response format gets an answer that parses as JSON."""
    asked = {"messages": [{"role": "user", "content": "x"}]}
    body = asked | {"response_format": {"type": "json_object"}}
    good = await bench.answers(request_lines(CHAT, [body]), CHAT)
    content = good["r-0"]["response"]["body"]["choices"][0]["message"]["content"]
    assert json.loads(content) == {"answer": "Simulated answer to: x"}


async def test_batches_are_of_the_documented_type(bench: Bench) -> None:
    """A batch is an SDK batch at every moment of every kind of life, alone and in a list."""
    faults = bench.simulator.faults
    content = request_lines(CHAT, [{"messages": []}] * 4)
    faults.add_batch(BatchFault(ending="expired", done=0.5))
    faults.add_batch(BatchFault(ending="cancelled", done=0.5))

    for _ in range(3):
        await bench.start(content, CHAT, metadata={"k": "v"})

    await bench.start(b"nonsense\n", CHAT)
    seen = set()

    for seconds in (0, 5, 600, 10, 30, 86_400):
        bench.clock.time += seconds
        listed = await bench.get("/v1/batches")
        assert set(listed) == {"object", "data", "first_id", "last_id", "has_more"}
        assert (listed["object"], len(listed["data"])) == ("list", 4)

        for value in listed["data"]:
            checked(Batch, value)
            checked(Batch, await bench.get(f"/v1/batches/{value['id']}"))
            seen.add(value["status"])

    assert seen == {
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    }


async def test_files_are_of_the_documented_types(bench: Bench) -> None:
    """Files are SDK files, whoever made them, and a deletion is an SDK receipt."""
    content = request_lines(CHAT, [{"messages": []}])
    checked(FileObject, await bench.upload(content))
    await bench.start(content, CHAT)
    bench.clock.time += 700
    listed = await bench.get("/v1/files")
    assert set(listed) == {"object", "data", "first_id", "last_id", "has_more"}
    assert [file["purpose"] for file in listed["data"]] == ["batch_output", "batch", "batch"]

    for file in listed["data"]:
        checked(FileObject, file)
        checked(FileDeleted, (await bench.client.delete(f"/v1/files/{file['id']}")).json())
