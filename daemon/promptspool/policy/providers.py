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
"""So many different rows have to meet an outage before the provider is paused for all."""

BLOCKED_FIRST_S = 30.0
BLOCKED_CAP_S = 600.0
"""A provider that refuses the account is probed now and then; a person has to act."""


def decide_recall(
    state: ProviderState, outcome: Outcome, now: float, rules: Rules
) -> ProviderState:
    """Return what *state* becomes after a recall, or at a start."""
    match state.status, outcome:
        case _, Failed(trouble=Trouble.THROTTLED | Trouble.BLOCKED):
            paused = _refused_or_throttled(state, outcome, now, rules)

            return replace(paused, failures=state.failures + 1, due_at=paused.paused_until)
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

            return replace(_resumed(state), sweeps=state.sweeps - 1, failures=0, due_at=due_at)
        case ProviderStatus.RECALLING, Recalled():
            ready = replace(_resumed(state), status=ProviderStatus.READY, sweeps=0)

            return replace(ready, failures=0, due_at=None, why=None)
        case _:
            raise illegal(state, outcome)


def decide_provider(
    state: ProviderState, row: str, outcome: Outcome, now: float, rules: Rules
) -> ProviderState:
    """Return what *outcome* of *row* says about the provider; the same object if nothing new.

    A rate limit or a refused account pauses it at once, an outage when several different rows met
    it; anything that came of a real answer ends the pause.
    """
    match outcome:
        case Failed(trouble=Trouble.THROTTLED | Trouble.BLOCKED):
            return _refused_or_throttled(state, outcome, now, rules)
        case Failed(trouble=Trouble.OUTAGE):
            return _struck(state, row, outcome, now, rules)
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
        ):
            return _resumed(state)
        case _:
            return state


def _refused_or_throttled(
    state: ProviderState, failure: Failed, now: float, rules: Rules
) -> ProviderState:
    if failure.trouble is Trouble.THROTTLED:
        return _paused(state, failure, now, rules.retry)

    backoff = Backoff(first_s=BLOCKED_FIRST_S, factor=2.0, cap_s=BLOCKED_CAP_S)
    is_news = state.why != failure.reason

    return _paused(replace(state, pauses=0) if is_news else state, failure, now, backoff)


def _paused(state: ProviderState, failure: Failed, now: float, backoff: Backoff) -> ProviderState:
    if state.paused_until is not None and state.paused_until > now:
        count = max(state.pauses - 1, 0)  # told by a call that was under way when the pause began
    else:
        count = state.pauses

    delay = max(backoff.delay(count, key=state.id), failure.retry_after_s or 0.0)

    return replace(
        state,
        pauses=count + 1,
        paused_until=max(now + delay, state.paused_until or 0.0),
        paused_at=state.paused_at if state.paused_at is not None else now,
        why=failure.reason,
    )


def _struck(
    state: ProviderState, row: str, failure: Failed, now: float, rules: Rules
) -> ProviderState:
    """Count an outage once a row; one row alone may be at fault itself."""
    rows = state.struck.split()

    if state.pauses == 0 and row in rows:
        return state

    struck = [*rows, row][:OUTAGE_STRIKES]
    after = replace(state, struck=" ".join(struck))

    if state.pauses == 0 and len(struck) < OUTAGE_STRIKES:
        return after

    return _paused(after, failure, now, rules.retry)


def _resumed(state: ProviderState) -> ProviderState:
    if not state.struck and state.pauses == 0:
        return state

    return replace(
        state,
        struck="",
        pauses=0,
        paused_until=None,
        paused_at=None,
        why=None,
    )
