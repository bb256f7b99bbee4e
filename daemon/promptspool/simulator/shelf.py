"""The order in which lists show batches, so that a page costs no more than what is on it.

Pure but for its own order. Raises `ApiProblem` for a batch nobody knows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from math import inf
from typing import TYPE_CHECKING

from promptspool.simulator.problems import unknown

if TYPE_CHECKING:
    from promptspool.simulator.orders import Page

_Place = tuple[float, int, str, float]
"""When a batch was created, its number, its id, and from when on it is shown."""


class Shelf:
    """Every batch of one account by the time of its creation, many or few."""

    def __init__(self) -> None:
        """Start empty."""
        self._places: list[_Place] = []
        self._by_id: dict[str, _Place] = {}

    def add(self, remote_id: str, created_at: float, listed_at: float) -> None:
        """Put a batch where its time is; of the same time, the later added is the younger."""
        place = (created_at, len(self._by_id), remote_id, listed_at)
        self._by_id[remote_id] = place
        insort(self._places, place)

    def page(self, wanted: Page, now: float) -> tuple[list[str], bool]:
        """Return the ids of one page, newest first, of what is shown by now, and if there is more.

        Raises `ApiProblem` 404 when there is no batch to begin behind.
        """
        found: list[str] = []
        end = self._end(wanted.after, now)

        for number in reversed(range(end)):
            _, _, remote_id, listed_at = self._places[number]

            if listed_at > now:
                continue

            if len(found) == wanted.limit:
                return found, True

            found.append(remote_id)

        return found, False

    def _end(self, after: str | None, now: float) -> int:
        """Return how many places, from the oldest, are behind *after*."""
        if after is None:
            return bisect_right(self._places, (now, inf))

        if after not in self._by_id:
            raise unknown("Batch", after)

        return bisect_left(self._places, self._by_id[after])
