"""The daemon in a time of its own: `python -m bench.virtual CONFIG SECONDS NOTES`.

Whenever nothing is in progress, time jumps to the next deadline, so hours pass in as many seconds
as the daemon works for. Calls of the provider and its timeouts are real. After so many virtual
seconds it stops and prints as JSON what it took; NOTES is what `bench.probed` says of its loop.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from bench.probed import Probe
from promptspool import log
from promptspool.app import Daemon
from promptspool.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from promptspool.clock import Bell

WORK_S = 0.004
"""A stretch between two jumps that takes less CPU did not poll: a turn takes a millisecond."""


@dataclass(slots=True, kw_only=True)
class JumpingClock:
    """A clock that stands still while there is work, and otherwise jumps to the next deadline."""

    start: float
    ends_after_s: float
    is_idle: Callable[[], bool] = lambda: False
    end: Callable[[], None] = lambda: None
    """Called once, when the time is over."""
    cpu_s: list[float] = field(default_factory=list)
    """What the process had used whenever it jumped."""
    passed: float = 0.0
    _waiting: list[tuple[float, Bell]] = field(default_factory=list)

    def now(self) -> float:
        """Return virtual Unix seconds."""
        return self.start + self.passed

    def monotonic(self) -> float:
        """Return virtual seconds since the start."""
        return self.passed

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung, by somebody or because time has come."""
        await anyio.lowlevel.checkpoint()  # whatever was just started is in progress by then

        if timeout_s <= 0 or bell.is_rung():
            return

        entry = (self.passed + timeout_s, bell)
        self._waiting.append(entry)

        try:
            if self.is_idle():
                self._jump()

            await bell.wait()
        finally:
            self._waiting.remove(entry)

    def _jump(self) -> None:
        self.cpu_s.append(time.process_time())
        self.passed = max(self.passed, min(at for at, _ in self._waiting))

        if self.passed >= self.ends_after_s:
            self.end()

        for at, bell in self._waiting:
            if at <= self.passed:
                bell.ring()


async def _run(config: Path, seconds: float, notes: Path) -> dict[str, object]:
    import asyncio  # noqa: PLC0415 - its loop is anyio's

    settings = load(config)
    log.configure("info", "json", stream=sys.stderr)
    clock = JumpingClock(start=time.time(), ends_after_s=seconds)
    probe = Probe(notes)
    daemon = Daemon(settings=settings, clock=clock)
    clock.end = daemon.stop
    clock.is_idle = lambda: daemon.dispatcher is not None and not daemon.dispatcher.in_progress
    probe.begin(asyncio.get_running_loop())
    began_at = time.monotonic()
    await daemon.run()
    probe.finish()
    stretches = [
        after - before for before, after in zip(clock.cpu_s, clock.cpu_s[1:], strict=False)
    ]

    return {
        "virtual_s": clock.passed,
        "real_s": time.monotonic() - began_at,
        "cpu_s": sum(stretches),
        "start_cpu_s": clock.cpu_s[0],
        "sweeps_cpu_s": [one for one in stretches if one >= WORK_S],
        "turns": len(stretches),
    }


def main() -> None:
    """Run and tell."""
    config, seconds, notes = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    print(json.dumps(anyio.run(_run, config, seconds, notes)))  # noqa: T201 - a command


if __name__ == "__main__":
    main()
