"""What end-to-end tests share: a simulated provider on a real socket, and a clock that jumps.

The daemon is the real one; only its clock is ours. Whenever nothing runs, time jumps to the next
deadline, so a day passes in about a second and no test sleeps.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from promptspool.app import Daemon
from promptspool.settings import Settings
from promptspool.simulator import Simulator, SimulatorSettings, running
from promptspool.spool import Spool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from structlog.typing import EventDict

    from promptspool.clock import Bell

START = 1_795_000_000.0
"""When every test begins; a day in 2026."""

KEY = "sk-simulated"


class FakeClock:
    """A clock that stands still until `run` moves it."""

    def __init__(self, start: float = START) -> None:
        """Begin at *start*."""
        self._start = start
        self._passed = 0.0
        self._waiting: list[tuple[float, Bell]] = []

    def now(self) -> float:
        """Return virtual Unix seconds."""
        return self._start + self._passed

    def monotonic(self) -> float:
        """Return virtual seconds since the start."""
        return self._passed

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung, by somebody or because time has come."""
        if timeout_s <= 0:
            await anyio.lowlevel.checkpoint()
            return

        entry = (self._passed + timeout_s, bell)
        self._waiting.append(entry)

        try:
            await bell.wait()
        finally:
            self._waiting.remove(entry)

    def pass_time(self, seconds: float) -> None:
        """Let *seconds* go by at once."""
        self._passed += seconds
        self._ring()

    async def run(self, is_idle: Callable[[], bool]) -> None:
        """Jump to the next deadline whenever *is_idle* and somebody waits; until cancelled."""
        while True:
            await anyio.sleep(0.0002)

            if self._waiting and is_idle() and not any(bell.is_rung() for _, bell in self._waiting):
                self._passed = max(self._passed, min(at for at, _ in self._waiting))
                self._ring()

    def _ring(self) -> None:
        for at, bell in self._waiting:
            if at <= self._passed:
                bell.ring()


@dataclass(slots=True, kw_only=True)
class World:
    """One spool, one simulated provider and the time they share."""

    root: Path
    clock: FakeClock
    simulator: Simulator
    base_url: str
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def spool(self) -> Spool:
        """Return the spool's directories."""
        return Spool(self.root / "spool")

    def settings(self) -> Settings:
        """Return the configuration, with this test's own on top."""
        key_file = self.root / "key"
        key_file.write_text(KEY)
        plain: dict[str, Any] = {
            "spool": {"path": self.root / "spool"},
            "providers": {
                "openai": {"base_url": self.base_url, "api_key_file": key_file, "timeout": 5}
            },
            "profiles": {"default": {"model": "gpt-5-mini"}},
        }

        return Settings(**_merged(plain, self.overrides))

    def drop(self, name: str, rows: Sequence[object] | bytes | str) -> None:
        """Put a file into the inbox: bytes as they are, rows as JSONL."""
        self.spool.make()
        path = self.spool.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)

        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif isinstance(rows, str):
            path.write_text(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def drain(self, *, limit_s: float = 100.0) -> bool:
        """Run the daemon until nothing is left to do; *limit_s* is real time, against hangs."""
        daemon = Daemon(settings=self.settings(), clock=self.clock, is_draining=True)

        with anyio.fail_after(limit_s):
            return await self.run(daemon)

    async def run(self, daemon: Daemon) -> bool:
        """Run *daemon* to its end while time jumps."""

        def is_idle() -> bool:
            dispatcher = daemon.dispatcher

            return dispatcher is not None and not dispatcher.in_progress

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.clock.run, is_idle)
            is_done = await daemon.run()
            tasks.cancel_scope.cancel()

        return is_done

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file in the outbox, none if it is not there."""
        path = self.spool.outbox / name

        if not path.exists():
            return []

        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]

    def results(self, name: str) -> list[dict[str, Any]]:
        """Return the results of the dropped file *name*."""
        return self.lines(f"{name}.results.jsonl")

    def errors(self, name: str) -> list[dict[str, Any]]:
        """Return the errors of the dropped file *name*."""
        return self.lines(f"{name}.errors.jsonl")

    def summary(self, name: str) -> dict[str, Any]:
        """Return the summary of the dropped file *name*."""
        summary: dict[str, Any] = json.loads(
            (self.spool.outbox / f"{name}.summary.json").read_text()
        )

        return summary

    def rejection(self, name: str) -> dict[str, Any] | None:
        """Return why the dropped file *name* was rejected, None if it was not."""
        path = self.spool.rejected / f"{name}.rejected.json"

        return json.loads(path.read_bytes()) if path.exists() else None

    def assert_conserved(self, name: str, ids: Sequence[str]) -> None:
        """Hold the conservation law: results and errors are the input, each once and in order."""
        results = [line["custom_id"] for line in self.results(name)]
        errors = [line["custom_id"] for line in self.errors(name)]
        place = {identity: number for number, identity in enumerate(ids)}

        assert sorted([*results, *errors]) == sorted(ids)
        assert results == sorted(results, key=place.__getitem__)
        assert errors == sorted(errors, key=place.__getitem__)
        assert self.summary(name)["counts"] == {
            "requests": len(ids),
            "results": len(results),
            "errors": len(errors),
        }

    def assert_bought_once(self) -> None:
        """Hold that no batch id was ever created twice at the provider."""
        created = self.simulator.ledger.batches_by_metadata("promptspool_batch")

        assert {batch: ids for batch, ids in created.items() if len(ids) > 1} == {}


@contextmanager
def overheard(
    **then: Callable[[], object],
) -> Iterator[list[dict[str, Any]]]:
    """Yield what is logged inside; each event named in *then*, with `_` for `.`, calls something.

    So a test acts at a moment of the run without waiting for it.
    """
    lines: list[dict[str, Any]] = []

    def hear(_logger: object, level: str, line: EventDict) -> EventDict:
        lines.append({**line, "level": level})
        act = then.get(line["event"].replace(".", "_"))

        if act is not None:
            act()

        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, hear])

    try:
        yield lines
    finally:
        structlog.configure(processors=before)


@asynccontextmanager
async def simulated(
    root: Path,
    *,
    settings: SimulatorSettings | None = None,
    overrides: dict[str, Any] | None = None,
    clock: FakeClock | None = None,
) -> AsyncIterator[World]:
    """Serve a simulated provider and yield the world around it, in a time of its own or *clock*."""
    clock = clock or FakeClock()
    simulator = Simulator(clock=clock, directory=root / "remote", settings=settings)

    async with running(simulator) as url:
        yield World(
            root=root,
            clock=clock,
            simulator=simulator,
            base_url=f"{url}/v1",
            overrides=overrides or {},
        )


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay one configuration over another, key by key."""
    merged = dict(below)

    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = (
            _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
        )

    return merged
