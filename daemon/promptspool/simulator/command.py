"""Runs the simulator in the foreground, faster than life.

Raises OSError (*environment*) when the address cannot be bound.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from promptspool.clock import ScaledClock
from promptspool.simulator.core import Simulator
from promptspool.simulator.server import serve
from promptspool.simulator.settings import SimulatorSettings

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOPBACK = frozenset({"127.0.0.1", "localhost"})


def simulate(*, host: str, port: int, speed: float, api_key: str, directory: Path | None) -> None:
    """Serve until SIGTERM or SIGINT, printing one line to stdout when ready.

    *speed* is virtual seconds per real second. *directory* None means a temporary one, removed
    at the end. Raises ValueError for a host that is not this machine: the simulator takes any
    fault script from anybody who can reach it.
    """
    if host not in _LOOPBACK:
        message = f"the simulator only listens on loopback, not on {host}"
        raise ValueError(message)

    with ExitStack() as stack:
        kept = directory or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="promptspool-simulator-"))
        )
        simulator = Simulator(
            clock=ScaledClock(speed),
            directory=kept,
            api_keys=frozenset({api_key}),
            # Another seed in each process: an id of a former one must be unknown, not reused.
            settings=SimulatorSettings(seed=os.urandom(8).hex()),
        )

        def announce(bound_port: int) -> None:
            # One write: `print` makes two when unbuffered, and who reads may stop at the first.
            line = f"simulator listening on http://{host}:{bound_port}/v1 (speed {speed:g}x)\n"
            sys.stdout.write(line)
            sys.stdout.flush()

        anyio.run(_run, simulator, host, port, announce)


async def _run(simulator: Simulator, host: str, port: int, announce: Callable[[int], None]) -> None:
    async with anyio.create_task_group() as group:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

            async def run_server() -> None:
                await serve(simulator, host=host, port=port, ready=announce)

            group.start_soon(run_server)

            async for _ in signals:
                break

        group.cancel_scope.cancel()
