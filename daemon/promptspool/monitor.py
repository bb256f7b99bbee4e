"""The monitor: what happens in the daemon, told to its metrics, and how it stands, read for them.

It only looks: nothing waits for it and nothing depends on it. `figures` raises `StoreError` and
`SpoolError` (environment) where the database cannot be read.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from promptspool.gate import day_of, month_of
from promptspool.metrics import (
    Disks,
    Enqueued,
    Figures,
    LaneUse,
    Page,
    Spend,
    Standing,
    keep_textfile,
    serve,
)
from promptspool.model import Batch, Job, JobStatus, ProviderState
from promptspool.outcomes import Failed, Polled, Settled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from promptspool.dispatcher import Dispatcher
    from promptspool.metrics import Metrics
    from promptspool.model import Row
    from promptspool.outcomes import Outcome
    from promptspool.settings import MetricsSettings

ALIVE_S = 120.0
"""A loop that has not turned for so long, beyond its usual pace, hangs."""


class Monitor:
    """Watches one dispatcher."""

    def __init__(self, metrics: Metrics) -> None:
        """Tell *metrics*; `dispatcher` is to be set before anything happens."""
        self.metrics = metrics
        self.dispatcher: Dispatcher | None = None
        self._progressed_at: float | None = None
        self._disks: Disks | None = None

    def note(
        self,
        stage: str,
        moved: Sequence[tuple[Row, Row, Outcome]],
        followed: Sequence[tuple[Row, Row]],
        now: float,
    ) -> None:
        """Count what became of rows, after its commit."""
        for before, after, outcome in moved:
            if isinstance(outcome, Failed):
                self.metrics.stage_failed(stage, outcome.trouble.value)

            self._note_row(before, after, outcome, now)

        for before, after in followed:
            self._note_row(before, after, None, now)

        self._note_polls(stage, moved)

    def _note_row(self, before: Row, after: Row, outcome: Outcome | None, now: float) -> None:
        if after.status is not before.status:
            self._progressed_at = now

        match before, after, outcome:
            case Job(), Job(status=JobStatus.DELIVERED), _ if after.status is not before.status:
                self.metrics.delivered()
            case Job(), Job(status=JobStatus.REJECTED), _:
                self.metrics.rejected()
            case Batch(), Batch(), Settled() as settled:
                self.metrics.settled(
                    before.provider,
                    before.model,
                    answered=settled.answered,
                    failed=settled.failed,
                    tokens=settled.tokens,
                    cost=settled.cost,
                )
            case Batch(), Batch(), Polled() if after.progressed_at == now:
                self._progressed_at = now
            case ProviderState(), ProviderState(), _ if after.pauses:
                self.metrics.paused(after.id, after.paused_work.value)
            case ProviderState(), ProviderState(), _:
                self.metrics.resumed(after.id)
            case _:
                pass

        if isinstance(outcome, Failed) and isinstance(before, Batch) and self.dispatcher:
            state = self.dispatcher.providers.get(before.provider)

            if state is not None and state.pauses:
                work = state.paused_work.value
                self.metrics.paused(before.provider, work, reason=outcome.trouble.value)

    def _note_polls(self, stage: str, moved: Sequence[tuple[Row, Row, Outcome]]) -> None:
        if stage != "poll" or not moved:
            return

        failed = sum(isinstance(outcome, Failed) for _, _, outcome in moved)
        changed = sum(
            isinstance(outcome, Polled) and _progress(before) != _progress(after)
            for before, after, outcome in moved
        )
        first = moved[0][0]

        if isinstance(first, Batch):
            self.metrics.polled(
                first.provider,
                changed=changed,
                unchanged=len(moved) - changed - failed,
                failed=failed,
            )

    # How things stand.

    async def figures(self) -> Figures:
        """Return how things stand now."""
        dispatcher = self.dispatcher
        assert dispatcher is not None  # noqa: S101 - nothing is served before it is there
        context = dispatcher.context
        now = context.clock.now()

        for state in dispatcher.providers.values():  # a pause may be older than this process
            if state.pauses:
                self.metrics.paused(state.id, state.paused_work.value)

        if self._disks is None:
            folders = {"spool": context.spool.root, "state": context.spool.state}
            self._disks = Disks(folders)

        jobs, batches = await context.store.standing()
        disks = await self._disks.read()
        size = await anyio.to_thread.run_sync(_size_of_database, dispatcher)
        spend, enqueued = await self._limits(now)

        return Figures(
            jobs={
                state: Standing(count=count, oldest_at=oldest_at)
                for state, (count, oldest_at) in jobs.items()
            },
            batches={
                key: Standing(count=count, requests=requests, oldest_at=oldest_at)
                for key, (count, requests, oldest_at) in batches.items()
            },
            progressed_at=self._progressed_at or await context.store.last_at(),
            waiting_files=dispatcher.inbox.waiting,
            loop_age_s=self._age_s(),
            is_ready=dispatcher.is_ready and not dispatcher.is_stopping,
            pending_notices=await context.store.pending_notices(),
            lanes=self._lanes(),
            halted=self._halted(),
            spend=spend,
            enqueued=enqueued,
            disks=disks,
            database_bytes=size,
        )

    async def _limits(
        self, now: float
    ) -> tuple[dict[tuple[str, str], Spend], dict[tuple[str, str], Enqueued]]:
        assert self.dispatcher is not None  # noqa: S101 - as above
        context = self.dispatcher.context
        spend: dict[tuple[str, str], Spend] = {}
        enqueued: dict[tuple[str, str], Enqueued] = {}

        for name, settings in context.settings.providers.items():
            for period, since, limit in (
                ("day", day_of(now), settings.max_cost_per_day),
                ("month", month_of(now), settings.max_cost_per_month),
            ):
                usd = await context.store.spent(name, since)
                spend[name, period] = Spend(usd=usd, limit_usd=limit)

            for model, tokens in (await context.store.enqueued(name, settings.base_url)).items():
                limit_tokens = settings.max_tokens_enqueued.get(model)
                enqueued[name, model] = Enqueued(tokens=tokens, limit=limit_tokens)

        return spend, enqueued

    def _lanes(self) -> dict[tuple[str, str], LaneUse]:
        assert self.dispatcher is not None  # noqa: S101 - as above

        return {
            (lane.value, provider or ""): LaneUse(runs=runs, width=self.dispatcher.lanes[lane])
            for (lane, provider), runs in self.dispatcher.running().items()
        }

    def _halted(self) -> frozenset[str]:
        assert self.dispatcher is not None  # noqa: S101 - as above
        is_all = self.dispatcher.halted_at is not None
        states = self.dispatcher.providers.values()

        return frozenset(state.id for state in states if is_all or state.halted_at is not None)

    # Who asks.

    def alive(self) -> str | None:
        """Return why the loop does not turn, None if it does."""
        dispatcher = self.dispatcher

        if dispatcher is None or dispatcher.turned_at is None:
            return None  # it starts, which may take as long as a provider likes

        age_s = self._age_s()
        longest_s = min(dispatcher.turn_s, dispatcher.context.settings.spool.rescan)

        return None if age_s <= longest_s + ALIVE_S else f"the loop has hung for {age_s:.0f} s"

    def _age_s(self) -> float:
        """Return how long ago the loop turned; nought before its first turn."""
        assert self.dispatcher is not None  # noqa: S101 - as above
        now = self.dispatcher.context.clock.monotonic()

        return now - (now if self.dispatcher.turned_at is None else self.dispatcher.turned_at)

    def ready(self) -> str | None:
        """Return why it is not ready, None if it is."""
        state = "starting" if self.dispatcher is None else self.dispatcher.state

        return None if state == "ready" else state

    def start(self, tasks: TaskGroup, settings: MetricsSettings) -> None:
        """Show the figures where *settings* want them, in *tasks*."""
        assert self.dispatcher is not None  # noqa: S101 - as above
        clock = self.dispatcher.context.clock
        page = Page(self.metrics, self.figures, clock)

        if settings.listen is not None:
            checks = {"/healthz": self.alive, "/readyz": self.ready}

            async def served() -> None:
                assert settings.listen is not None  # noqa: S101 - asked just before
                await serve(settings.listen, page=page.text, checks=checks, clock=clock)

            tasks.start_soon(served)

        if settings.textfile is not None:
            path = settings.textfile

            async def kept() -> None:
                await keep_textfile(path, page.text, clock=clock)

            tasks.start_soon(kept)


def _progress(row: Row) -> object:
    return (row.remote_status, row.completed, row.failed) if isinstance(row, Batch) else None


def _size_of_database(dispatcher: Dispatcher) -> int | None:
    with suppress(OSError):
        return dispatcher.context.spool.database.stat().st_size

    return None
