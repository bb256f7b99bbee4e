"""A working folder with a plan in it, for tests of what becomes of a provider's answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from promptspool.collect import Stop, Tally, compile_answers, settle
from promptspool.model import Batch, BatchId, JobId, RemoteStatus
from promptspool.wire import PlannedBatch, PlannedRow, RowFault, SettledBatch, wire_id

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.collect.products import Shape
    from promptspool.outcomes import Doubtful

JOB = JobId("20261120t231853z-4f7k2m")
FIRST = BatchId(f"{JOB}.1")
GIVE_UP_AT = 1_000_000.0
FAULT = RowFault(code="invalid_json", message="broken JSON")


def ok(row: int, text: str = "yes") -> dict[str, object]:
    """Return the line of an answered request."""
    body = {"text": text, "usage": {"prompt_tokens": 10, "completion_tokens": 2}}
    response = {"status_code": 200, "request_id": "r", "body": body}

    return {"id": f"b{row}", "custom_id": wire_id(JOB, row), "response": response, "error": None}


def bad(row: int, status: int = 400, code: str = "bad") -> dict[str, object]:
    """Return the line of a request that the model's API refused."""
    response = {"status_code": status, "request_id": "r", "body": {"error": {"code": code}}}

    return {"id": f"b{row}", "custom_id": wire_id(JOB, row), "response": response, "error": None}


def told(row: int, text: str, finish_reason: str = "stop") -> dict[str, object]:
    """Return the line of a request that was answered with *text*."""
    choice = {"index": 0, "message": {"content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    body = {"choices": [choice], "usage": usage}
    response = {"status_code": 200, "request_id": "r", "body": body}

    return {"id": f"b{row}", "custom_id": wire_id(JOB, row), "response": response, "error": None}


def unrun(row: int, code: str = "batch_expired") -> dict[str, object]:
    """Return the line of a request whose turn never came."""
    error = {"code": code, "message": "too late"}

    return {"id": f"b{row}", "custom_id": wire_id(JOB, row), "response": None, "error": error}


@dataclass
class Desk:
    """A working folder with a plan in it, and what is done to it."""

    folder: Path
    batches: list[Batch] = field(default_factory=list)
    response_schema: dict[str, Any] | None = None
    stop_requests: int = 1_000

    def plan(self, count: int, faults: tuple[int, ...] = ()) -> Batch:
        """Plan *count* rows in one batch, but for those that are *faults*."""
        rows = [
            PlannedRow(id=f"user-{row}", line=2 * row + 1, fault=FAULT if row in faults else None)
            for row in range(count)
        ]
        data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        (self.folder / "rows.jsonl").write_bytes(data)
        good = [row for row in range(count) if row not in faults]
        lines = [{"custom_id": wire_id(JOB, row), "body": {"prompt": f"{row}"}} for row in good]
        requests = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        (self.folder / f"{FIRST}.requests.jsonl").write_bytes(requests)
        batch = Batch(
            id=FIRST,
            job=JOB,
            provider="p",
            base_url="http://127.0.0.1/v1",
            endpoint="/v1/responses",
            model="gpt-5-mini",
            requests=len(good),
            size_bytes=len(requests),
            digest="b3-" + blake3(requests).hexdigest(),
            give_up_at=GIVE_UP_AT,
            input_file="file-1",
        )
        self.batches.append(batch)

        return batch

    def answer(self, batch: Batch, *lines: dict[str, object] | bytes, kind: str = "output") -> None:
        """Put a provider's file of *batch* into the folder."""
        data = b"".join(
            (line if isinstance(line, bytes) else msgspec.json.encode(line)) + b"\n"
            for line in lines
        )
        (self.folder / f"{batch.id}.{kind}.jsonl").write_bytes(data)

    def settle(
        self,
        batch: Batch,
        *,
        now: float = 0.0,
        max_attempts: int = 3,
        **fields: Any,
    ) -> SettledBatch | Doubtful:
        """Settle *batch* with *fields*, which it keeps."""
        batch = replace(batch, **fields)
        self.batches = [batch if other.id == batch.id else other for other in self.batches]

        return settle(
            folder=self.folder,
            batch=batch,
            max_attempts=max_attempts,
            request_backoff_s=30.0,
            stop=Stop(share=0.9, requests=self.stop_requests),
            now=now,
            response_schema=self.response_schema,
        )

    def settled(self, batch: Batch, **fields: Any) -> SettledBatch:
        """Settle *batch*, which is beyond doubt, twice; all its requests are accounted for."""
        fields = {"looks": 1, "remote_status": RemoteStatus.COMPLETED, **fields}
        result = self.settle(batch, **fields)
        assert isinstance(result, SettledBatch)
        assert result.answered + result.failed + result.left == batch.requests
        assert self.settle(batch, **{**fields, "now": GIVE_UP_AT * 2}) == result
        left = [row for successor in result.successors for row in self.rows(successor.id)]
        assert len(left) == len(set(left)) == result.left
        assert set(left) <= set(self.rows(batch.id))

        for successor in result.successors:
            data = (self.folder / f"{successor.id}.requests.jsonl").read_bytes()
            assert (successor.size_bytes, successor.requests) == (len(data), data.count(b"\n"))
            assert successor.digest == "b3-" + blake3(data).hexdigest()

        return result

    def follow(self, parent: Batch, planned: PlannedBatch) -> Batch:
        """Return the row of a successor, which is among the batches from now on."""
        batch = replace(
            parent,
            id=planned.id,
            parent=parent.id,
            requests=planned.requests,
            size_bytes=planned.size_bytes,
            digest=planned.digest,
            attempt=planned.attempt,
            waits=planned.waits,
            halvings=planned.halvings,
            input_file=planned.input_file,
        )
        self.batches.append(batch)

        return batch

    def rows(self, batch: str, kind: str = "requests") -> list[int]:
        """Return the rows that a file of a batch is about."""
        path = self.folder / f"{batch}.{kind}.jsonl"
        data = path.read_bytes() if path.exists() else b""

        return [int(json.loads(line)["custom_id"].rpartition("-")[2]) for line in data.splitlines()]

    def products(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Compile twice, check the law of conservation, and return results and errors."""
        found = [self._compiled() for _ in range(2)]
        assert found[0] == found[1]
        results, errors = (
            [json.loads(line) for line in data.split(b"\n")[:-1]] for data in found[0]
        )
        data = (self.folder / "rows.jsonl").read_bytes()
        ids = [json.loads(line)["id"] for line in data.splitlines()]
        good = {line["custom_id"] for line in results}
        assert [line["custom_id"] for line in results] == [one for one in ids if one in good]
        assert [line["custom_id"] for line in errors] == [one for one in ids if one not in good]

        return results, errors

    def tally(self, shape: Shape | None = None) -> Tally:
        """Compile once, and return what was counted."""
        return compile_answers(
            folder=self.folder,
            job=JOB,
            source="may.jsonl",
            batches=self.batches,
            response_schema=self.response_schema,
            shape=shape,
        )

    def _compiled(self) -> tuple[bytes, bytes]:
        tally = self.tally()
        errors = self.folder / "errors.jsonl"
        assert errors.exists() == (tally.errors > 0) == (tally.codes.total() > 0)

        return (
            (self.folder / "results.jsonl").read_bytes(),
            errors.read_bytes() if errors.exists() else b"",
        )
