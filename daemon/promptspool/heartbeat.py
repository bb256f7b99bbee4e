"""The heartbeat: what the loop does in every turn besides its work.

It tells systemd that the loop turns, and how things stand. It is called by the loop itself, so a
loop that hangs does not beat. Raises nothing.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from promptspool import systemd
from promptspool.errors import StoreError

if TYPE_CHECKING:
    from promptspool.dispatcher import Dispatcher

STATUS_S = 5.0
"""The status is told at most so often."""

_WORDS = {
    "job.claimed": "to be planned",
    "job.held": "held",
    "batch.planned": "to be uploaded",
    "batch.uploaded": "to be created",
    "batch.creating": "being created",
    "batch.unclear": "being looked up",
    "batch.created": "running",
    "batch.ended": "to be downloaded",
    "batch.downloaded": "to be settled",
}
"""How states are called where there is but one line."""


class Heartbeat:
    """Beats for one dispatcher."""

    def __init__(self) -> None:
        """Learn from the environment whether anybody listens."""
        watchdog_s = systemd.watchdog_s(os.environ)
        self.every_s = math.inf if watchdog_s is None else watchdog_s / 3.0
        """The loop has to turn so often, in seconds."""
        self._is_heard = "NOTIFY_SOCKET" in os.environ
        self._beat_at = -math.inf
        self._told_at = -math.inf
        self._told = ""

    async def beat(self, dispatcher: Dispatcher) -> None:
        """Beat once."""
        now = dispatcher.context.clock.monotonic()

        if now - self._beat_at >= self.every_s / 2.0:
            self._beat_at = now
            systemd.notify("WATCHDOG=1", os.environ)

        if self._is_heard and now - self._told_at >= STATUS_S:
            self._told_at = now

            with suppress(StoreError):  # which the loop will meet, and say, itself
                await self._tell(dispatcher)

    async def _tell(self, dispatcher: Dispatcher) -> None:
        text = status_line(
            await dispatcher.context.store.states(),
            paused=[state.id for state in dispatcher.providers.values() if state.pauses],
            halted=["promptspool"] * (dispatcher.halted_at is not None)
            + [state.id for state in dispatcher.providers.values() if state.halted_at is not None],
        )

        if text != self._told:
            self._told = text
            systemd.notify(f"STATUS={text}", os.environ)


def status_line(states: dict[str, int], *, paused: list[str], halted: list[str]) -> str:
    """Return how things stand, in one line: *states* as `Store.states` counts them."""
    jobs = sum(count for state, count in states.items() if state.startswith("job."))
    batches = sum(count for state, count in states.items() if state.startswith("batch."))
    parts = [f"{states[state]} {word}" for state, word in _WORDS.items() if states.get(state)]
    text = f"{jobs} jobs, {batches} batches" if jobs or batches else "idle"

    if parts:
        text += f" ({', '.join(parts)})"

    if paused:
        text += f"; {', '.join(paused)} waits for the provider"

    if halted:
        text += f"; {', '.join(halted)} paused by hand"

    return text
