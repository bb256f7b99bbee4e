"""How long to wait: exponential, capped, jittered by a hash; and what else decisions depend on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from promptspool.errors import IllegalTransition
from promptspool.model import Batch, Job, Notice, ProviderState
from promptspool.outcomes import Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptspool.model import Row
    from promptspool.outcomes import Failed, Outcome

AnyRow = TypeVar("AnyRow", Job, Batch, ProviderState, Notice)

MAX_CRASHES = 10
"""A stage that crashes so often in a row crashes always: its row is set aside."""

JITTER = 0.1
"""Deadlines are spread by this share either way, so that an outage does not end in a stampede."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """`first_s`, then `factor` times longer each time, up to `cap_s`."""

    first_s: float
    factor: float
    cap_s: float

    def delay(self, count: int, *, key: str) -> float:
        """Return the seconds to wait after *count* (from 0) earlier waits, jittered by *key*."""
        try:
            plain = min(self.first_s * self.factor ** min(count, 64), self.cap_s)
        except OverflowError:  # a factor may be any number from 1 on
            plain = self.cap_s

        return plain * (1.0 - JITTER + 2.0 * JITTER * fraction(f"{key}/{count}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings that decisions depend on."""

    polling: Backoff
    retry: Backoff
    lookup_grace_s: Mapping[str, float]
    """By provider: how long its list may lag behind a create."""
    stalled_s: float
    """A batch without progress for so long is worth a line in the log."""

    def grace(self, provider: str) -> float:
        """Return how long to wait before a second look; a minute for one that is not configured."""
        return self.lookup_grace_s.get(provider, 60.0)


def fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on *key* alone."""
    return zlib.crc32(key.encode()) / 2**32


def illegal(row: Row, outcome: Outcome) -> IllegalTransition:
    """Return the bug of an outcome that the row's status cannot have."""
    return IllegalTransition(
        f"{row.id}: {type(outcome).__name__} cannot happen while {row.status.value}"
    )


def postponed(row: AnyRow, failure: Failed, now: float, rules: Rules) -> AnyRow:
    """Return *row* in the same status, due again later; a broken rule sets it aside."""
    is_hopeless = failure.trouble is Trouble.CRASH and row.failures >= MAX_CRASHES

    if failure.trouble is Trouble.BUG or is_hopeless:
        return replace(row, due_at=None, why=f"set aside: {failure.reason}")

    delay = rules.retry.delay(row.failures, key=row.id)

    if failure.retry_after_s is not None:
        delay = max(delay, failure.retry_after_s)

    return replace(row, due_at=now + delay, failures=row.failures + 1, why=failure.reason)
