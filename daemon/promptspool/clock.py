"""Time. The only module that asks what time it is or waits for it to pass.

Everything that needs time is handed a `Clock`, so a test can hand it one that jumps.
Nothing here touches a disk or a socket, and nothing here raises.
"""

from __future__ import annotations

import time
from typing import Protocol

import anyio


class Bell:
    """Wakes whoever waits on a `Clock` early; ringing it twice is ringing it once.

    Ring it from the event loop only.
    """

    def __init__(self) -> None:
        """Make a silent bell."""
        self._event = anyio.Event()

    def ring(self) -> None:
        """End the current or the next wait."""
        self._event.set()

    def clear(self) -> None:
        """Forget rings so far; call it before looking for work, never after."""
        if self._event.is_set():
            self._event = anyio.Event()

    def is_rung(self) -> bool:
        """Tell whether the next wait would return at once."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait for a ring, without a limit."""
        await self._event.wait()


class Clock(Protocol):
    """What the daemon knows of time."""

    def now(self) -> float:
        """Return Unix seconds; may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back, from an arbitrary start."""
        ...

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung or `timeout_s` seconds have passed."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.monotonic()

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung or `timeout_s` seconds have passed."""
        with anyio.move_on_after(timeout_s):
            await bell.wait()


class ScaledClock(SystemClock):
    """A clock that runs `speed` times as fast as the machine's, from the moment it is made."""

    def __init__(self, speed: float) -> None:
        """Start it at the real time; `speed` is virtual seconds per real second."""
        self._speed = speed
        self._started_at = time.time()
        self._started = time.monotonic()

    def now(self) -> float:
        """Return virtual Unix seconds."""
        return self._started_at + (time.monotonic() - self._started) * self._speed
