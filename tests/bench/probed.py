"""`promptspool`, with a probe of its event loop: `python -m bench.probed NOTES run ...`.

A timer of the same loop is due every 5 ms; how late it comes is how long something held the loop.
Lateness of 5 ms and more goes to NOTES as it happens, a line each: when it was noticed, on the
monotonic clock, and how late, in seconds. At the end come `p50` and `p99` of all.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
from array import array
from pathlib import Path
from typing import Any

EVERY_S = 0.005
NOTED_S = 0.005


class Probe:
    """The timer and its notes."""

    def __init__(self, notes: Path) -> None:
        """Write to *notes*."""
        self._file = notes.open("w", buffering=1)
        self._late = array("d")
        self._due_at = 0.0

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the timer in *loop*."""
        self._due_at = loop.time() + EVERY_S
        loop.call_at(self._due_at, self._look, loop)

    def finish(self) -> None:
        """Write the percentiles."""
        ordered = sorted(self._late)

        for name, share in (("p50", 0.5), ("p99", 0.99)):
            if ordered:
                self._file.write(f"{name} {ordered[int(share * (len(ordered) - 1))]:.6f}\n")

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        late_s = now - self._due_at

        if len(self._late) < 1_000_000:
            self._late.append(late_s)

        if late_s >= NOTED_S:
            self._file.write(f"{now:.6f} {late_s:.6f}\n")

        self.begin(loop)


def main() -> None:
    """Run the ordinary command; the first loop that runs gets the probe."""
    probe = Probe(Path(sys.argv.pop(1)))
    atexit.register(probe.finish)
    ordinary = asyncio.BaseEventLoop.run_until_complete

    def run_until_complete(self: asyncio.BaseEventLoop, future: Any) -> Any:
        asyncio.BaseEventLoop.run_until_complete = ordinary  # type: ignore[method-assign] # put back
        probe.begin(self)

        return ordinary(self, future)

    asyncio.BaseEventLoop.run_until_complete = run_until_complete  # type: ignore[method-assign] # ours

    from promptspool.cli import main as command  # noqa: PLC0415 - the loop is patched by now

    command()


if __name__ == "__main__":
    main()
