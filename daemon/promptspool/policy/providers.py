"""What outcomes say about the provider they came from, and what becomes of its recall."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from promptspool.model import ProviderState, ProviderStatus
from promptspool.outcomes import (
    Booted,
    Created,
    Downloaded,
    Failed,
    Gone,
    Missed,
    NotListed,
    Polled,
    Recalled,
    Tidied,
    Trouble,
    Turned,
    Uploaded,
)
from promptspool.policy.backoff import Backoff, illegal, postponed

if TYPE_CHECKING:
    from promptspool.outcomes import Outcome
    from promptspool.policy.backoff import Rules

OUTAGE_STRIKES = 3
"""So many different items have to meet an outage before the provider is paused for all."""

BLOCKED_FIRST_S = 30.0
BLOCKED_CAP_S = 600.0
"""A provider that refuses the account is probed now and then; a person has to act."""


def decide_recall(
    state: ProviderState, outcome: Outcome, now: float, rules: Rules
) -> ProviderState:
    """Return what *state* becomes after a recall, or at a start."""
    match state.status, outcome:
        case _, Failed():
            return postponed(state, outcome, now, rules)
        case _, Booted(sweeps=sweeps):
            fresh = ProviderState(id=state.id, version=state.version, sweeps=sweeps)

            return replace(
                fresh,
                status=ProviderStatus.RECALLING if sweeps else ProviderStatus.READY,
                due_at=now if sweeps else None,
            )
        case ProviderStatus.RECALLING, Recalled() if state.sweeps > 1:
            due_at = now + rules.grace(state.id)

            return replace(state, sweeps=state.sweeps - 1, failures=0, due_at=due_at)
        case ProviderStatus.RECALLING, Recalled():
            return replace(
                state, status=ProviderStatus.READY, sweeps=0, failures=0, due_at=None, why=None
            )
        case _:
            raise illegal(state, outcome)


def decide_provider(
    state: ProviderState, item: str, outcome: Outcome, now: float, rules: Rules
) -> ProviderState:
    """Return what *outcome* of *item* says about the provider; the same object if nothing new.

    A rate limit or a refused account pauses it at once, an outage when several different items met
    it; anything that came of a real answer ends the pause.
    """
    match outcome:
        case Failed(trouble=Trouble.THROTTLED):
            return _paused(state, outcome, now, rules.retry)
        case Failed(trouble=Trouble.BLOCKED):
            backoff = Backoff(first_s=BLOCKED_FIRST_S, factor=2.0, cap_s=BLOCKED_CAP_S)

            return _paused(state, outcome, now, backoff)
        case Failed(trouble=Trouble.OUTAGE):
            return _struck(state, item, outcome, now, rules)
        case (
            Uploaded()
            | Created()
            | Polled()
            | Missed()
            | Gone()
            | Turned()
            | NotListed()
            | Downloaded()
            | Tidied()
            | Recalled()
        ):
            return _resumed(state)
        case _:
            return state


def _paused(state: ProviderState, failure: Failed, now: float, backoff: Backoff) -> ProviderState:
    if state.paused_until is not None and state.paused_until > now:
        count = max(state.pauses - 1, 0)  # told by a call that was under way when the pause began
    else:
        count = state.pauses

    delay = max(backoff.delay(count, key=state.id), failure.retry_after_s or 0.0)

    return replace(
        state,
        version=state.version + 1,
        pauses=count + 1,
        paused_until=max(now + delay, state.paused_until or 0.0),
        paused_at=state.paused_at if state.paused_at is not None else now,
        why=failure.reason,
    )


def _struck(
    state: ProviderState, item: str, failure: Failed, now: float, rules: Rules
) -> ProviderState:
    """Count an outage once an item; one item alone may be at fault itself."""
    items = state.struck.split()

    if state.pauses == 0 and item in items:
        return state

    struck = [*items, item][:OUTAGE_STRIKES]
    after = replace(state, version=state.version + 1, struck=" ".join(struck))

    if state.pauses == 0 and len(struck) < OUTAGE_STRIKES:
        return after

    return replace(_paused(after, failure, now, rules.retry), version=state.version + 1)


def _resumed(state: ProviderState) -> ProviderState:
    if not state.struck and state.pauses == 0:
        return state

    return replace(
        state,
        version=state.version + 1,
        struck="",
        pauses=0,
        paused_until=None,
        paused_at=None,
        why=None,
    )
