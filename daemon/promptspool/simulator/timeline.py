"""The life of a batch as a list of moments decided when it is created.

Nothing waits: the status at any time is the last moment at or before it, so a clock that
jumps is as good as one that runs. Only a cancel changes the list. Pure, raises nothing.

    validating ─┬─ failed
                ├─ in_progress ─┬─ finalizing ─┬─ completed
                │               ├─ expired     ├─ expired
                └───────────────┴──────────────┴─ cancelling ── cancelled
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from promptspool.simulator.wire import TERMINAL, Status

Ending = Literal["failed", "expired", "cancelled"]
Moment = tuple[float, Status]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a batch is to go: durations in virtual seconds, and what is forced on it.

    *ending* is None for the natural one, *stuck_in* the status it never leaves, *done* the
    fraction of requests run when its run ends.
    """

    validate_s: float
    run_s: float
    finalize_s: float
    cancel_s: float
    window_s: float
    ending: Ending | None = None
    stuck_in: Status | None = None
    done: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The moments of one batch, oldest first; the first is its creation."""

    moments: tuple[Moment, ...]
    expires_at: float
    course: Course

    def status(self, now: float) -> Status:
        """Return the status at *now*."""
        return next(
            (status for at, status in reversed(self.moments) if at <= now), self.moments[0][1]
        )

    def reached_at(self, status: Status, now: float) -> int | None:
        """Return the whole second at which *status* was reached, None if it was not by *now*."""
        found = self.at(status)
        return None if found is None or found > now else int(found)

    def at(self, status: Status) -> float | None:
        """Return when *status* is or will be reached, None if never."""
        return next((at for at, name in self.moments if name == status), None)

    def ended_at(self) -> float:
        """Return when it ends as things stand, infinity if it does not."""
        at, status = self.moments[-1]
        return at if status in TERMINAL else inf

    def progress(self, now: float) -> float:
        """Return the fraction of requests that have run by *now*."""
        started = self.at("in_progress")

        if started is None or now < started:
            return 0.0

        stopped = min(self.at("cancelling") or inf, self.at("expired") or inf, now)
        run_s = self.course.run_s
        share = 1.0 if run_s <= 0 else min((stopped - started) / run_s, 1.0)
        return share * self.course.done

    def cancel(self, now: float) -> Timeline:
        """Return the timeline with a cancel at *now*; only for a batch that has not ended."""
        kept = tuple(moment for moment in self.moments if moment[0] <= now)
        moments = (*kept, (now, "cancelling"))

        if self.course.stuck_in == "cancelling":
            return replace(self, moments=moments)

        return replace(self, moments=(*moments, (now + self.course.cancel_s, "cancelled")))


def plan(created_at: float, course: Course) -> Timeline:
    """Return the whole timeline of a batch that nobody cancels."""
    expires_at = created_at + course.window_s
    started_at = created_at + course.validate_s

    if course.ending == "expired":
        # The run is stretched over the window so that progress looks slow, not stopped.
        course = replace(course, run_s=max(expires_at - started_at, 0.0))

    moments = _moments(created_at, expires_at, course)

    if course.stuck_in is not None:
        moments = _until(moments, course.stuck_in)

    return Timeline(moments=moments, expires_at=expires_at, course=course)


def _moments(created_at: float, expires_at: float, course: Course) -> tuple[Moment, ...]:
    started_at = created_at + course.validate_s
    ran_at = started_at + course.run_s
    begun: tuple[Moment, ...] = ((created_at, "validating"), (started_at, "in_progress"))

    match course.ending:
        case "failed":
            return ((created_at, "validating"), (started_at, "failed"))
        case "expired":
            return (*begun, (expires_at, "expired"))
        case "cancelled":
            return (*begun, (ran_at, "cancelling"), (ran_at + course.cancel_s, "cancelled"))
        case None:
            ended_at = ran_at + course.finalize_s
            natural: tuple[Moment, ...] = (*begun, (ran_at, "finalizing"), (ended_at, "completed"))

    # A batch that is stuck on purpose stays stuck past its window, as some have in the wild.
    if ended_at <= expires_at or course.stuck_in is not None:
        return natural

    kept = tuple(moment for moment in natural if moment[0] < expires_at)
    return (*kept, (expires_at, "expired"))


def _until(moments: tuple[Moment, ...], status: Status) -> tuple[Moment, ...]:
    names = [name for _, name in moments]
    return moments[: names.index(status) + 1] if status in names else moments
