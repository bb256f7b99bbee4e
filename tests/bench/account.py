"""What is at the provider: files, batches, and what is known of the calls."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.answers import ANSWER_BYTES, make_output

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

Body = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class File:
    """An uploaded file, or one that a batch put out."""

    id: str
    name: str
    path: Path
    size_bytes: int
    created_at: int

    def shown(self) -> Body:
        """Return the File object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": self.created_at,
            "filename": self.name,
            "purpose": "batch",
            "status": "processed",
        }


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch, and when on the monotonic clock things became of it."""

    id: str
    endpoint: str
    input_file: str
    window: str
    metadata: dict[str, str]
    created_at: int
    status: str = "in_progress"
    output_file: str | None = None
    ready_file: str | None = None
    """What will be its output file once it may finish."""
    total: int = 0
    made_at: float = 0.0
    finished_at: float | None = None
    shown_at: float | None = None
    """When an answer first showed it completed."""
    fetched_at: float | None = None
    """When its output file was sent to the end for the first time."""
    done: int = 0
    """So many requests it says are completed, before it is."""
    cached: bytes | None = None
    ready_path: Path | None = None

    def shown(self) -> bytes:
        """Return the Batch object as JSON; it is kept until the status changes."""
        if self.status == "completed" and self.shown_at is None:
            self.shown_at = time.monotonic()

        if self.cached is None:
            is_over = self.status == "completed"
            self.cached = json.dumps(
                {
                    "id": self.id,
                    "object": "batch",
                    "endpoint": self.endpoint,
                    "errors": None,
                    "input_file_id": self.input_file,
                    "completion_window": self.window,
                    "status": self.status,
                    "output_file_id": self.output_file,
                    "error_file_id": None,
                    "created_at": self.created_at,
                    "in_progress_at": self.created_at,
                    "expires_at": self.created_at + 86_400,
                    "completed_at": int(time.time()) if is_over else None,
                    "request_counts": {
                        "total": self.total,
                        "completed": self.total if is_over else self.done,
                        "failed": 0,
                    },
                    "metadata": self.metadata,
                }
            ).encode()

        return self.cached

    def told(self) -> Body:
        """Return what the benchmark wants to know of it."""
        return {
            "id": self.id,
            "batch": self.metadata.get("promptspool_batch"),
            "made_at": self.made_at,
            "finished_at": self.finished_at,
            "shown_at": self.shown_at,
            "fetched_at": self.fetched_at,
            "output": str(self.ready_path or ""),
        }


@dataclass(slots=True)
class Account:
    """All that is there, and what is known of the calls."""

    folder: Path
    is_held: bool = True
    """Batches finish when they are told to; else as soon as their answers are made."""
    latency_s: float = 0.0
    moving: int = 0
    """Whenever the list is read from its start, one of so many batches moves on; 0 for none."""
    readings: int = 0
    files: dict[str, File] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Ids of batches, oldest first."""
    calls: list[tuple[str, float, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    waiters: list[tuple[str, int, asyncio.Future[None]]] = field(default_factory=list)
    number: int = 0
    answer_bytes: int = ANSWER_BYTES
    """Of the text of an answer that is made from now on."""

    def next_id(self, kind: str) -> str:
        """Return an id that was never given out."""
        self.number += 1

        return f"{kind}_{self.number:012d}"

    def add_batch(self, order: Body) -> Batch:
        """Accept a batch."""
        batch = Batch(
            id=str(order.get("id") or self.next_id("batch")),
            endpoint=str(order.get("endpoint", "/v1/chat/completions")),
            input_file=str(order["input_file_id"]),
            window=str(order.get("completion_window", "24h")),
            metadata=order.get("metadata") or {},
            created_at=int(order.get("created_at") or time.time()),
            total=int(order.get("requests") or 0),
            made_at=time.monotonic(),
        )
        self.batches[batch.id] = batch
        self.places[batch.id] = len(self.order)
        self.order.append(batch.id)

        return batch

    def prepare(self, batch: Batch) -> None:
        """Make the output file of a batch; blocks for about 3 µs a request."""
        source = self.files.get(batch.input_file)

        if batch.ready_file is not None or source is None:
            return

        name = self.next_id("file")
        path = self.folder / name
        batch.total = make_output(source.path, path, answer_bytes=self.answer_bytes)
        self.files[name] = File(
            id=name,
            name=f"{batch.id}_output.jsonl",
            path=path,
            size_bytes=path.stat().st_size,
            created_at=int(time.time()),
        )
        batch.ready_file, batch.ready_path = name, path
        source.path.unlink(missing_ok=True)  # ten million requests would not fit beside the answers

    def finish(self, batch: Batch) -> None:
        """Let a batch be completed, with the output file that was prepared."""
        batch.status, batch.output_file, batch.cached = "completed", batch.ready_file, None
        batch.finished_at = time.monotonic()

    def page(self, after: str | None, limit: int) -> bytes:
        """Return the list of batches, newest first, as JSON."""
        if after is None and self.moving:
            self.move_some()

        end = self.places.get(after, len(self.order)) if after else len(self.order)
        start = max(0, end - limit)
        ids = self.order[start:end][::-1]
        shown = b",".join(self.batches[one].shown() for one in ids)
        ends = json.dumps({"first_id": ids[0], "last_id": ids[-1]}) if ids else '{"first_id":null}'
        more = b"true" if start else b"false"

        return b'{"object":"list","data":[%s],"has_more":%s,%s' % (shown, more, ends[1:].encode())

    def move_some(self) -> None:
        """Let one of `moving` batches have completed one more request, others at each reading."""
        self.readings += 1

        for one in self.order[self.readings % self.moving :: self.moving]:
            batch = self.batches[one]

            if batch.done < batch.total // 2:
                batch.done, batch.cached = batch.done + 1, None

    def note(self, route: str, began_at: float) -> None:
        """Count a call that was answered, and wake whoever waits for the count."""
        self.calls.append((route, began_at, time.monotonic()))
        self.counts[route] = count = self.counts.get(route, 0) + 1

        for waiter in [one for one in self.waiters if one[0] == route and one[1] <= count]:
            self.waiters.remove(waiter)
            waiter[2].set_result(None)
