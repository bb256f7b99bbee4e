"""A daemon in a process of its own that ends, by `os._exit`, at a chosen step.

A script: it takes an order on each line of standard input, forks a process for it, which has all
its imports then, and answers with that process's exit code. Its clock is as fast as the provider's
and began with it, so that one process goes on where the last one was.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import anyio
import msgspec
import structlog

from crash.mortal import Fate, mortal
from crash.scene import elsewhere
from promptspool.app import Daemon
from promptspool.clock import SystemClock

if TYPE_CHECKING:
    from promptspool.clock import Bell

DRAINED, UNFINISHED, BROKEN, DIED = 0, 1, 2, 9
"""Exit codes: all is delivered, something is left, an exception came out, its time had come."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One process: on which world it works, and when it ends; as `Fate`."""

    root: str
    base_url: str
    began_at: float
    """When the clock of daemon and provider showed the real time."""
    speed: float
    at: int | None = None
    after: bool = False
    only: str = ""


class FastClock(SystemClock):
    """A clock on which everything, waiting too, is faster than on the machine's."""

    def __init__(self, order: Order) -> None:
        """Go on from where *order* says it began."""
        super().__init__()
        self._began_at = order.began_at
        self._speed = order.speed

    def now(self) -> float:
        """Return virtual Unix seconds."""
        return self._began_at + (super().now() - self._began_at) * self._speed

    def monotonic(self) -> float:
        """Return virtual seconds since an arbitrary start."""
        return super().monotonic() * self._speed

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung or so many virtual seconds have passed."""
        await super().wait(bell, timeout_s / self._speed)


def main() -> None:
    """Serve orders until there are no more."""
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        process = os.fork()

        if process == 0:
            _live(order)

        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


def _live(order: Order) -> NoReturn:
    """Do what is ordered; nothing of the parent's is left to run afterwards."""
    os.dup2(2, 1)  # standard output is for exit codes
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    code = BROKEN

    try:
        code = DRAINED if anyio.run(partial(_drained, order)) else UNFINISHED
    except BaseException:  # noqa: BLE001 - whatever it is, it must not go on in a copy of `main`
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


async def _drained(order: Order) -> bool:
    world = elsewhere(Path(order.root), order.base_url)
    daemon = Daemon(settings=world.settings(), clock=FastClock(order), is_draining=True)
    strike = partial(os._exit, DIED)
    fate = Fate(at=order.at, after=order.after, only=order.only, strike=strike)

    with mortal(fate, world.spool.root):
        return await daemon.run()


if __name__ == "__main__":
    main()
