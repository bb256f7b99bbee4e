"""The handle on the provider process: started, told what to do, and asked what it saw.

Times it tells are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.watched import tree_cpu_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TESTS = Path(__file__).resolve().parents[1]
MEMORY = Path("/dev/shm")  # noqa: S108 - its files are in a folder of their own
ROOM_BYTES = 6 << 30
"""Where less is free in memory, the provider keeps its files on disk."""

LIMIT_S = 900.0
"""Real time, against hangs."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A running provider."""

    pid: int
    address: str

    @property
    def base_url(self) -> str:
        """Return what clients are configured with."""
        return f"{self.address}/v1"

    @property
    def cpu_s(self) -> float:
        """Return the CPU seconds that it has used."""
        return tree_cpu_s(self.pid)

    def tell(self, what: str, **order: object) -> dict[str, Any]:
        """Send an order; raises `OSError` for one that it does not follow.

        `set` (latency_s, is_held: batches finish when told, the default; moving: at each reading of
        the list one of so many batches has gone on), `put` (batches: objects with metadata,
        input_file_id, requests, created_at, perhaps id; answers their ids), `prepare` and `finish`
        (ids, all without), `await` (route, count, timeout_s), `state` (calls), `reset`.
        """
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.address}/_bench/{what}", data=json.dumps(order).encode(), method="POST"
        )

        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310 - as above
            said: dict[str, Any] = json.load(answer)

        return said

    def counts(self) -> dict[str, int]:
        """Return how often each route was answered.

        Routes are upload, create, list, retrieve, files, file, download, delete and unknown.
        """
        counts: dict[str, int] = self.tell("state")["counts"]

        return counts

    def calls(self) -> list[tuple[str, float, float]]:
        """Return every call: its route, and when it began and was answered."""
        return [tuple(one) for one in self.tell("state", calls=True)["calls"]]

    def batches(self) -> list[dict[str, Any]]:
        """Return what became of each batch: see `Batch.told`; oldest first."""
        batches: list[dict[str, Any]] = self.tell("state")["batches"]

        return batches

    def last_at(self, route: str) -> float:
        """Return when a route was last answered."""
        return max(ended_at for name, _, ended_at in self.calls() if name == route)

    def wait_for(self, route: str, count: int, *, timeout_s: float = LIMIT_S) -> None:
        """Return once a route was answered *count* times since the start or the last reset."""
        self.tell("await", route=route, count=count, timeout_s=timeout_s)

    def prepare(self, ids: Sequence[str] = ()) -> None:
        """Make the answers of batches, of all if none is named; they stay in progress."""
        self.tell("prepare", ids=list(ids))

    def finish(self, ids: Sequence[str] = ()) -> None:
        """Let batches be completed, all if none is named."""
        self.tell("finish", ids=list(ids))


@contextmanager
def provided(*, folder: Path | None = None, **settings: object) -> Iterator[Provider]:
    """Run a provider with *settings*, as `Provider.tell` sets them; its files end with it.

    They are in *folder*, or in memory where there is room, or in a temporary folder.
    """
    kept = Path(tempfile.mkdtemp(prefix="provider-", dir=folder or _memory()))

    with subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, "-m", "bench.provider", str(kept)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None

        try:
            provider = Provider(process.pid, f"http://127.0.0.1:{int(process.stdout.readline())}")

            if settings:
                provider.tell("set", **settings)

            yield provider
        finally:
            process.stdin.close()
            process.wait(30)
            shutil.rmtree(kept)


def _memory() -> Path | None:
    is_roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES

    return MEMORY if is_roomy else None
