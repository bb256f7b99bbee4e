"""The count of the points that were tried, for the one line at the end."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crash.scene import Duplicate

if TYPE_CHECKING:
    from collections.abc import Iterator

PROPERTY = "crash_points"
"""The name of a test's property that holds its `Tally.counts`."""


@dataclass(slots=True)
class Tally:
    """What one test has tried."""

    counts: dict[str, int] = field(default_factory=dict)
    """Points by kind, and `losses` and `duplicates` among them."""

    @contextmanager
    def point(self, kind: str, where: str) -> Iterator[None]:
        """Count a point of *kind*; one that fails is a loss or a duplicate, and says *where*."""
        self.count(kind)

        try:
            yield
        except Exception as error:
            self.count("duplicates" if isinstance(error, Duplicate) else "losses")
            error.add_note(f"{kind}: {where}")

            raise

    def count(self, name: str) -> None:
        """Count one more of a kind."""
        self.counts[name] = self.counts.get(name, 0) + 1
