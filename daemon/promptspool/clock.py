"""Time. The only module that asks what time it is or waits for it to pass.

But for HTTP itself: `provider/` has real timeouts, and measures dates in answers. Everything else
that needs time is handed a `Clock`, so a test can hand it one that jumps.
Nothing here touches a disk or a socket, and nothing here raises.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable


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
        """Return Unix seconds; they may jump from one run to the next, never within one."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back and stand still while the machine is suspended."""
        ...

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung or `timeout_s` seconds have passed."""
        ...


def since_boot() -> float:
    """Return the seconds since the machine was booted, suspended or not (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def pause(seconds: float) -> None:
    """Block for so long: for command lines, never in the daemon."""
    time.sleep(seconds)


def monotonic_us() -> int:
    """Return microseconds since an arbitrary start, by CLOCK_MONOTONIC, as systemd wants them."""
    return time.monotonic_ns() // 1000


class SystemClock:
    """The machine's own clock, as it was set when this was made.

    Setting the machine's clock afterwards changes nothing here: deadlines neither come at once nor
    move a year away. The next run begins with the time that is right by then.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        passed: Callable[[], float] = since_boot,
    ) -> None:
        """Ask *wall* what time it is, once; from now on *passed* tells how it goes on."""
        self._passed = passed
        self._epoch = wall() - passed()

    def now(self) -> float:
        """Return Unix seconds, those that the machine was suspended for too."""
        return self._epoch + self._passed()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start, but for those of a suspended machine.

        A file that was being copied meanwhile has not been left alone for so long.
        """
        return time.monotonic()

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Return when the bell is rung or `timeout_s` seconds have passed on `monotonic`."""
        with anyio.move_on_after(timeout_s):
            await bell.wait()


class ScaledClock(SystemClock):
    """A clock that runs `speed` times as fast as the machine's, from the moment it is made."""

    def __init__(self, speed: float) -> None:
        """Start it at the real time; `speed` is virtual seconds per real second."""
        super().__init__()
        self._speed = speed
        self._started_at = super().now()

    def now(self) -> float:
        """Return virtual Unix seconds."""
        return self._started_at + (super().now() - self._started_at) * self._speed
