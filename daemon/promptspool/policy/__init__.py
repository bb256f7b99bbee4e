"""What happens next, and when: the pure heart of the daemon.

`decide` turns a row and an outcome into the next row; `decide_provider` does it for the provider
that the outcome came from. No clock, no randomness (jitter is a hash of id and count), no I/O, so
every rule here can be tested by calling it. Raises `IllegalTransition` (bug) for an outcome that a
status cannot have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from msgspec.structs import replace

from promptspool.errors import IllegalTransition
from promptspool.model import TRANSITIONS, Batch, Job, Notice, ProviderState
from promptspool.outcomes import Polled
from promptspool.policy.backoff import Backoff, Rules
from promptspool.policy.batches import decide_batch, is_as_known, polled_again
from promptspool.policy.jobs import WITHDRAWN, decide_job
from promptspool.policy.notices import decide_notice
from promptspool.policy.providers import decide_provider, decide_recall

if TYPE_CHECKING:
    from promptspool.model import Row
    from promptspool.outcomes import Outcome

__all__ = ["WITHDRAWN", "Backoff", "Rules", "decide", "decide_provider"]


def decide(row: Row, outcome: Outcome, now: float, rules: Rules) -> Row:
    """Return what *row* becomes after *outcome*.

    The version counts on; staying in a status is always allowed, leaving `TRANSITIONS` is a bug.
    """
    if isinstance(row, Batch) and isinstance(outcome, Polled) and is_as_known(row, outcome.remote):
        return polled_again(row, now, rules)

    return _decided(row, outcome, now, rules)


def _decided(row: Row, outcome: Outcome, now: float, rules: Rules) -> Row:
    match row:
        case Job():
            after: Row = decide_job(row, outcome, now, rules)
        case Batch():
            after = decide_batch(row, outcome, now, rules)
        case ProviderState():
            after = decide_recall(row, outcome, now, rules)
        case Notice():
            after = decide_notice(row, outcome, now, rules)
        case _:
            assert_never(row)

    if after.status is not row.status and after.status not in TRANSITIONS[row.status]:
        raise IllegalTransition(f"{row.id}: {row.status.value} cannot become {after.status.value}")

    # Since when it fails is told by whether it did, here and nowhere else.
    failed_at = None if not after.failures else row.failed_at if row.failures else now

    return replace(after, version=row.version + 1, failed_at=failed_at)
