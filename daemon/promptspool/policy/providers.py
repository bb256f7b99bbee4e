"""What outcomes say about the provider they came from, and what becomes of its recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from promptspool.model import ProviderState, ProviderStatus, Work
from promptspool.outcomes import (
    Booted,
    Created,
    Downloaded,
    Failed,
    Gone,
    Halted,
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
            paused = _refused_or_throttled(state, outcome, now, rules, Work.ALL)

            return replace(paused, failures=state.failures + 1, due_at=paused.paused_until)
        case _, Failed():
            return postponed(state, outcome, now, rules)
        case _, Booted(sweeps=sweeps):
            fresh = ProviderState(
                id=state.id, version=state.version, sweeps=sweeps, halted_at=state.halted_at
            )

            return replace(
                fresh,
                status=ProviderStatus.RECALLING if sweeps else ProviderStatus.READY,
                due_at=now if sweeps else None,
            )
        case _, Halted(is_over=is_over):
            return replace(state, halted_at=None if is_over else now)
        case ProviderStatus.RECALLING, Recalled() if state.sweeps > 1:
            due_at = now + rules.grace(state.id)

            return replace(_resumed(state), sweeps=state.sweeps - 1, failures=0, due_at=due_at)
        case ProviderStatus.RECALLING, Recalled():
            ready = replace(_resumed(state), status=ProviderStatus.READY, sweeps=0)

            return replace(ready, failures=0, due_at=None, why=None)
        case _:
            raise illegal(state, outcome)


def decide_provider(  # noqa: PLR0913, PLR0917 - `decide`, and what the row was worked on for
    state: ProviderState,
    row: str,
    outcome: Outcome,
    now: float,
    rules: Rules,
    work: Work = Work.ALL,
) -> ProviderState:
    """Return what *outcome* of *row* says about the provider; the same object if nothing new.

    A rate limit or a refused account pauses at once the *work* that met it, an outage when several
    different rows met it; where they were at different work, it pauses everything. A real answer to
    that work ends a pause, but for one that still lasts: then it came to an older call.
    """
    match outcome:
        case Failed(trouble=Trouble.THROTTLED | Trouble.BLOCKED):
            return _refused_or_throttled(state, outcome, now, rules, work)
        case Failed(trouble=Trouble.OUTAGE):
            return _struck(state, row, outcome, now, rules, work)
        case (
            Uploaded()
            | Created()
            | Polled()
            | Missed()
            | Gone()
            | Turned()
            | NotListed()
            | Downloaded()
            | Tidied(was_asked=True)
        ):
            return _answered(state, now, work)
        case _:
            return state


def _answered(state: ProviderState, now: float, work: Work) -> ProviderState:
    """Forget the strikes of *work*, and end a pause that is about it and is over."""
    if state.pauses > 0 and state.paused_work in (Work.ALL, work):
        return state if _is_paused(state, now) else _resumed(state)

    strikes = state.struck.split()
    others = [strike for strike in strikes if not strike.startswith(f"{work.value}/")]

    return state if others == strikes else replace(state, struck=" ".join(others))


def _is_paused(state: ProviderState, now: float) -> bool:
    return state.paused_until is not None and state.paused_until > now


def _refused_or_throttled(
    state: ProviderState, failure: Failed, now: float, rules: Rules, work: Work
) -> ProviderState:
    if state.pauses == 0:
        state = replace(state, paused_work=work)
    elif state.paused_work is not work:
        if state.paused_work is Work.ALL and _is_paused(state, now):
            return state  # told by a call that was under way when everything was paused

        # Another answer than the pause is about: its own length counts, not what is left of that.
        both = work if state.paused_work is Work.ALL else Work.ALL
        state = replace(state, paused_work=both, paused_until=None)

        if both is not work:  # two limits at once: all is paused for a moment, and then asked anew
            failure = replace(failure, retry_after_s=None)

    if failure.trouble is Trouble.THROTTLED:
        return _paused(state, failure, now, rules.retry)

    backoff = Backoff(first_s=BLOCKED_FIRST_S, factor=2.0, cap_s=BLOCKED_CAP_S)
    is_news = state.why != failure.reason

    return _paused(replace(state, pauses=0) if is_news else state, failure, now, backoff)


def _paused(state: ProviderState, failure: Failed, now: float, backoff: Backoff) -> ProviderState:
    # A pause that lasts was met by a call that was under way when it began.
    count = max(state.pauses - 1, 0) if _is_paused(state, now) else state.pauses
    delay = max(backoff.delay(count, key=state.id), failure.retry_after_s or 0.0)

    return replace(
        state,
        pauses=count + 1,
        paused_until=max(now + delay, state.paused_until or 0.0),
        paused_at=state.paused_at if state.paused_at is not None else now,
        why=failure.reason,
    )


def _struck(  # noqa: PLR0913, PLR0917 - as `decide_provider`
    state: ProviderState, row: str, failure: Failed, now: float, rules: Rules, work: Work
) -> ProviderState:
    """Count an outage once a row; one row alone may be at fault itself.

    Where all of them were at the same work, that work is paused, else everything.
    """
    strikes = state.struck.split()
    strike = f"{work.value}/{row}"
    is_counted = state.pauses == 0 or state.paused_work not in (Work.ALL, work)

    if is_counted and strike in strikes:
        return state

    strikes = [*strikes, strike][-OUTAGE_STRIKES:]
    after = replace(state, struck=" ".join(strikes))

    if is_counted and len(strikes) < OUTAGE_STRIKES:
        return after

    if is_counted:
        is_one = state.pauses == 0 and all(one.startswith(f"{work.value}/") for one in strikes)
        # Beside another pause the outage's own length counts.
        after = replace(after, paused_work=work if is_one else Work.ALL, paused_until=None)

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
        paused_work=Work.ALL,
        why=None,
    )
