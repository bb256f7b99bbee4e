"""How things stand at one moment: what a page needs beyond what was counted.

Whoever fills `Figures` reads the database first and the memory of this process last, and awaits
nothing after that: so what is on one page belongs together. `Disks` reads file systems, which may
hang: it gives them a second. Raises nothing.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATIENCE_S = 1.0
"""A file system that takes longer to tell its room is left out of the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The jobs or batches of one state."""

    count: int
    requests: int = 0
    """In these batches; nought for jobs."""
    oldest_at: float | None = None
    """When the oldest of these jobs was claimed, or of these batches created, else claimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneUse:
    """One lane."""

    runs: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What one provider has cost in one period."""

    usd: float
    limit_usd: float | None = None
    """None for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """The input tokens of one model at one provider."""

    tokens: int
    limit: int | None = None
    """None for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system of one folder."""

    free_bytes: int
    """For this user, without what is kept for root."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All that is not counted as it happens; what is left out of a mapping is nought."""

    jobs: Mapping[str, Standing]
    """By state: a word of `JobStatus`, or `families.SET_ASIDE`."""
    batches: Mapping[tuple[str, str], Standing]
    """By provider and state: a word of `BatchStatus`, or `families.SET_ASIDE`."""
    progressed_at: float | None
    """When a row last changed its status, or a batch its counts; None if none ever did."""
    waiting_files: int
    loop_age_s: float
    """Since the dispatcher's loop last went round."""
    is_ready: bool
    pending_notices: int = 0
    lanes: Mapping[tuple[str, str], LaneUse] = field(default_factory=dict)
    """By lane and provider; `""` for the lane that has none."""
    halted: frozenset[str] = frozenset()
    """Providers that a person has paused."""
    spend: Mapping[tuple[str, str], Spend] = field(default_factory=dict)
    """By provider and period: `day` or `month`."""
    enqueued: Mapping[tuple[str, str], Enqueued] = field(default_factory=dict)
    """By provider and model."""
    disks: Mapping[str, Disk] = field(default_factory=dict)
    """By the folder's name in the configuration, `spool` or `state`; those that answered."""
    database_bytes: int | None = None
    """None if it could not be read."""


class Disks:
    """The file systems of some folders."""

    def __init__(self, folders: Mapping[str, Path], *, patience_s: float = PATIENCE_S) -> None:
        """Take folders by the names that they are shown under."""
        self._folders = folders
        self._patience_s = patience_s
        self._asked: set[str] = set()
        """Those that a thread of ours waits for: a thread that hangs cannot be ended."""

    async def read(self) -> dict[str, Disk]:
        """Return those that answer in time; one that hangs is asked once, not at every page."""
        disks: dict[str, Disk] = {}

        for name in self._folders.keys() - self._asked:
            self._asked.add(name)
            read = partial(self._disk, name)

            with anyio.move_on_after(self._patience_s):
                disk = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)

                if disk is not None:
                    disks[name] = disk

        return disks

    def _disk(self, name: str) -> Disk | None:
        try:
            usage = shutil.disk_usage(self._folders[name])
        except OSError:
            return None
        else:
            return Disk(free_bytes=usage.free, size_bytes=usage.total)
        finally:
            self._asked.discard(name)
