"""What `status` tells, computed from what the database holds at one moment.

Pure: the moment, the database's rows and the settings come in, figures go out. Raises nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from promptspool.model import BatchStatus, Job, JobStatus, ProviderState, Work
from promptspool.store.overview import Closed, Ended, Spending
from promptspool.tell.needs import Need, needs_of
from promptspool.tell.phases import Phase, phase_of, phases_of, stopped_work, told
from promptspool.tell.words import safe

if TYPE_CHECKING:
    from promptspool.model import Batch, JobId
    from promptspool.settings import Glance, Settings
    from promptspool.store.overview import LiveBatch, Overview

AGES_S = tuple(300.0 * 2**power for power in range(9))
"""The upper ends of the columns of `Report.shape`: 5 minutes and doubling to 1,280; one more column
has what is older."""

_BEFORE_THE_END = frozenset({BatchStatus.CREATING, BatchStatus.UNCLEAR, BatchStatus.CREATED})
"""What counts as enqueued at the provider."""


class DaemonLine(msgspec.Struct, frozen=True, kw_only=True):
    """Whether it runs."""

    is_up: bool
    started_at: float | None
    """When it was started, or was last; None if nobody knows."""
    ready_at: float | None
    """When it was ready for the first time since then; None if it is not, or does not run."""
    halted_at: float | None
    """Since when a person lets it take and submit nothing; None if nobody does."""
    last_at: float | None
    """When anything last changed its status."""

    @property
    def state(self) -> str:
        """Return up, starting or down."""
        if not self.is_up:
            return "down"

        return "up" if self.ready_at is not None else "starting"


class JobLine(msgspec.Struct, frozen=True, kw_only=True):
    """One job in flight."""

    job: Job
    phases: Counter[Phase]
    """Its live batches by phase; its own phase alone where it does not wait for them."""
    text: str
    """The phases in words."""
    done: int
    """Requests that have an answer or an error for now, bad rows too."""
    total: int | None
    """Requests of the file; None before it is planned."""
    retried: int
    """Requests that are in live batches after an attempt that failed."""
    batches: int
    live_batches: int
    next_at: float | None
    """When the provider is next asked about it, or else when anything is next done for it."""
    cost_usd: float | None
    """Of its closed batches; None if no price is known."""


class ProviderLine(msgspec.Struct, frozen=True, kw_only=True):
    """One provider: what is paused, what it cost, and the limits."""

    state: ProviderState
    stopped: frozenset[Work]
    """What nothing is done of: paused, or by hand."""
    spending: Spending
    max_day_usd: float | None
    max_month_usd: float | None
    enqueued: Mapping[str, int]
    """Input tokens, as estimated, of batches that have not ended, by model."""
    max_enqueued: Mapping[str, int]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    now: float
    database: str
    """read, none or unreadable."""
    daemon: DaemonLine
    jobs: Sequence[JobLine]
    """In flight, oldest first."""
    shape: Mapping[Phase, Sequence[int]]
    """Live batches by phase and age: the columns are `AGES_S`, and one for what is older."""
    providers: Sequence[ProviderLine]
    needs: Sequence[Need]
    """What needs a person."""
    ended: Sequence[Ended]
    """Jobs that were delivered or rejected in the last 24 hours, oldest first."""


def report(overview: Overview, settings: Glance | Settings, *, now: float, is_up: bool) -> Report:
    """Return what there is to tell at *now*; *is_up* says whether a daemon runs."""
    states = {state.id: state for state in overview.providers}
    daemon = _daemon(overview.meta, overview.last_at, is_up=is_up)
    held = {job.id for job in overview.jobs if job.status is JobStatus.HELD}
    phases: dict[JobId, list[tuple[LiveBatch, Phase]]] = defaultdict(list)
    stopped = {
        name: stopped_work(state, now=now, is_up=is_up) | _halted(daemon)
        for name, state in states.items()
    }

    for batch in overview.batches:
        work = stopped.get(batch.provider, frozenset())
        phase = phase_of(batch, now=now, is_held=batch.job in held, stopped=work)
        phases[batch.job].append((batch, phase))

    jobs = [_job(job, phases[job.id], overview.closed.get(job.id)) for job in overview.jobs]

    return Report(
        now=now,
        database="read",
        daemon=daemon,
        jobs=jobs,
        shape=_shape([pair for pairs in phases.values() for pair in pairs], now),
        providers=_providers(overview, settings, stopped),
        needs=needs_of(overview, now=now, is_up=is_up),
        ended=overview.ended,
    )


def bare_report(*, now: float, is_up: bool, unreadable: str | None) -> Report:
    """Return what there is to tell without a database: *unreadable* says why, None if it is new."""
    needs = [Need(kind="database", text=safe(unreadable))] if unreadable is not None else []

    return Report(
        now=now,
        database="none" if unreadable is None else "unreadable",
        daemon=_daemon({}, None, is_up=is_up),
        jobs=(),
        shape={},
        providers=(),
        needs=needs,
        ended=(),
    )


def _daemon(meta: Mapping[str, str], last_at: float | None, *, is_up: bool) -> DaemonLine:
    started_at, ready_at, halted_at = (
        _moment(meta.get(key)) for key in ("started_at", "ready_at", "halted_at")
    )
    is_ready = is_up and ready_at is not None and ready_at >= (started_at or 0.0)

    return DaemonLine(
        is_up=is_up,
        started_at=started_at,
        ready_at=ready_at if is_ready else None,
        halted_at=halted_at,
        last_at=last_at,
    )


def _moment(text: str | None) -> float | None:
    """Return a note of a moment; None for one that was taken back, or is none."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _halted(daemon: DaemonLine) -> frozenset[Work]:
    return frozenset() if daemon.halted_at is None else frozenset({Work.UPLOADS, Work.CREATIONS})


def _job(
    job: Job, pairs: Sequence[tuple[LiveBatch | Batch, Phase]], closed: Closed | None
) -> JobLine:
    phases = phases_of(job, [phase for _, phase in pairs])
    retried = sum(batch.requests for batch, _ in pairs if batch.attempt > 0)
    answered = sum(min(batch.completed + batch.failed, batch.requests) for batch, _ in pairs)
    settled = 0 if closed is None else closed.answered + closed.unanswered
    done = answered + settled + job.bad_rows
    polled = [batch.due_at for batch, _ in pairs if batch.status is BatchStatus.CREATED]
    moments = polled or [job.due_at, *(batch.due_at for batch, _ in pairs)]

    return JobLine(
        job=job,
        phases=phases,
        text=told(job, phases, retried),
        done=done if job.requests is None else min(done, job.requests),
        total=job.requests,
        retried=retried,
        batches=len(pairs) + (0 if closed is None else closed.batches),
        live_batches=len(pairs),
        next_at=min((at for at in moments if at is not None), default=None),
        cost_usd=None if closed is None else closed.cost_usd,
    )


def line_of(job: Job, batches: Sequence[Batch], *, now: float, is_up: bool) -> JobLine:
    """Return the line of one job from all of its *batches*, at *now*."""
    stopped = stopped_work(None, now=now, is_up=is_up)
    is_held = job.status is JobStatus.HELD
    over = [batch for batch in batches if batch.status is BatchStatus.CLOSED]
    costs = [batch.cost_usd for batch in over if batch.cost_usd is not None]
    closed = Closed(
        job=job.id,
        batches=len(over),
        answered=sum(batch.answered for batch in over),
        unanswered=sum(batch.unanswered for batch in over),
        cost_usd=sum(costs) if costs else None,
    )
    pairs = [
        (batch, phase_of(batch, now=now, is_held=is_held, stopped=stopped))
        for batch in batches
        if batch.status is not BatchStatus.CLOSED
    ]

    return _job(job, pairs, closed)


def _shape(pairs: Sequence[tuple[LiveBatch, Phase]], now: float) -> dict[Phase, list[int]]:
    shape: dict[Phase, list[int]] = {}

    for batch, phase in pairs:
        age_s = now - (now if batch.added_at is None else batch.added_at)
        column = sum(age_s > end for end in AGES_S)
        shape.setdefault(phase, [0] * (len(AGES_S) + 1))[column] += 1

    return {phase: shape[phase] for phase in Phase if phase in shape}


def _providers(
    overview: Overview, settings: Glance | Settings, stopped: Mapping[str, frozenset[Work]]
) -> list[ProviderLine]:
    enqueued: dict[str, Counter[str]] = defaultdict(Counter)
    spending = {spent.provider: spent for spent in overview.spending}

    for batch in overview.batches:
        if batch.status in _BEFORE_THE_END:
            enqueued[batch.provider][batch.model] += batch.estimated_input

    return [
        ProviderLine(
            state=state,
            stopped=stopped[state.id],
            spending=spending[state.id],
            max_day_usd=None if known is None else known.max_cost_per_day,
            max_month_usd=None if known is None else known.max_cost_per_month,
            enqueued=dict(enqueued[state.id]),
            max_enqueued={} if known is None else known.max_tokens_enqueued,
        )
        for state in overview.providers
        for known in [settings.providers.get(state.id)]
    ]
