"""The page: what was counted and how things stand, in the text format of Prometheus.

Without a database there is still a page, of what this process has counted. No page may end the
daemon: a bug that is met on the way is logged, and there is none. Raises nothing.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, product
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog

from promptspool import __version__
from promptspool.errors import SpoolError, StoreError
from promptspool.metrics import families

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from prometheus_client import Metric

    from promptspool.clock import Clock
    from promptspool.metrics.families import Family
    from promptspool.metrics.figures import Figures, Standing
    from promptspool.metrics.tally import Metrics, Times

Values = dict[tuple[str, ...], float]
"""The samples of one family, by the values of its labels."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Page:
    """The text of everything that is known, made anew whenever it is asked for."""

    def __init__(
        self, metrics: Metrics, snapshot: Callable[[], Awaitable[Figures]], clock: Clock
    ) -> None:
        """Take what was counted, and *snapshot*, which returns how things stand.

        *snapshot* may raise `StoreError`, `SpoolError` and `OSError`: then there are no figures.
        """
        self._metrics = metrics
        self._snapshot = snapshot
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(1)  # of its own: the others may all be busy
        self._lock = anyio.Lock()
        self._is_broken = False

    async def text(self) -> bytes | None:
        """Return the page, None if a bug is in the way; one is made at a time."""
        async with self._lock:
            try:
                return await self._text()
            except Exception:  # noqa: BLE001 - figures are no reason to stop working
                if not self._is_broken:  # each scrape would say it again
                    _log.exception("metrics.broken")

                self._is_broken = True

                return None

    async def _text(self) -> bytes:
        try:
            figures = await self._snapshot()
        except (StoreError, SpoolError, OSError):  # the dispatcher says so
            figures = None

        # Nothing is awaited until all is copied: figures and counts are of one moment.
        values = _values(self._metrics, figures, self._clock.now())
        times = self._metrics.times()

        # A page of thousands of lines takes tens of milliseconds, which the loop is spared.
        return await anyio.to_thread.run_sync(
            partial(_rendered, values, times), abandon_on_cancel=True, limiter=self._limiter
        )


def _rendered(values: Mapping[Family, Values], times: Mapping[tuple[str, ...], Times]) -> bytes:
    from prometheus_client import exposition  # noqa: PLC0415 - 15 ms that few daemons need

    class Collected:
        def collect(self) -> Iterator[Metric]:
            return _collected(values, times)

    return exposition.generate_latest(Collected())


def _collected(
    values: Mapping[Family, Values], times: Mapping[tuple[str, ...], Times]
) -> Iterator[Metric]:
    from prometheus_client import core  # noqa: PLC0415 - as above

    for family, samples in values.items():
        is_counter = family in families.COUNTERS
        kind = core.CounterMetricFamily if is_counter else core.GaugeMetricFamily
        metric = kind(family.name, family.help, labels=family.labels)

        for labels, value in sorted(samples.items()):
            metric.add_metric(labels, value)

        yield metric

    calls = families.HTTP_CALLS
    histogram = core.HistogramMetricFamily(calls.name, calls.help, labels=calls.labels)
    ends = [*map(str, families.BUCKETS_S), "+Inf"]

    for labels, one in sorted(times.items(), key=lambda item: item[0]):
        buckets = list(zip(ends, accumulate(one.counts), strict=True))
        histogram.add_metric(labels, buckets, one.sum_s)

    yield histogram


def _values(metrics: Metrics, figures: Figures | None, now: float) -> dict[Family, Values]:
    """Return everything but the histogram, in the order in which it is shown."""
    values = {family: metrics.count(family) for family in families.COUNTERS}
    values |= _own(metrics, figures)

    if figures is not None:
        values |= _plain(figures)
        values |= _rows(figures, metrics.providers, now)
        values |= _limits(metrics, figures)

    return values


def _own(metrics: Metrics, figures: Figures | None) -> dict[Family, Values]:
    """Return what this process knows without its database."""
    paused: Values = dict.fromkeys(
        product(metrics.providers, families.WORKS, families.PAUSE_REASONS), 0.0
    )
    paused |= {(provider, *why): 1.0 for provider, why in metrics.pauses.items()}

    return {
        families.BUILD: {(__version__,): 1.0},
        families.STARTED: {(): metrics.started_at},
        families.READABLE: {(): float(figures is not None)},
        families.PAUSED: paused,
    }


def _plain(figures: Figures) -> dict[Family, Values]:
    """Return what has no labels; what is not known is left out."""
    known: dict[Family, float | None] = {
        families.READY: float(figures.is_ready),
        families.LOOP_AGE: figures.loop_age_s,
        families.PROGRESSED: figures.progressed_at,
        families.WAITING_FILES: figures.waiting_files,
        families.PENDING_NOTICES: figures.pending_notices,
        families.DATABASE_SIZE: figures.database_bytes,
    }

    return {family: {(): value} for family, value in known.items() if value is not None}


def _rows(figures: Figures, providers: set[str], now: float) -> dict[Family, Values]:
    """Return jobs and batches by state; a state without any is nought, not missing."""
    no_jobs: Values = {(state,): 0.0 for state in families.JOB_STATES}
    no_batches: Values = dict.fromkeys(product(providers, families.BATCH_STATES), 0.0)
    jobs = {(state,): standing for state, standing in figures.jobs.items()}.items()
    batches = figures.batches.items()

    return {
        families.JOBS: no_jobs | {labels: rows.count for labels, rows in jobs},
        families.OLDEST_JOB: no_jobs | {labels: _age(rows, now) for labels, rows in jobs},
        families.BATCHES: no_batches | {labels: rows.count for labels, rows in batches},
        families.OLDEST_BATCH: no_batches | {labels: _age(rows, now) for labels, rows in batches},
        families.LIVE_REQUESTS: no_batches | {labels: rows.requests for labels, rows in batches},
        families.HALTED: {
            (provider,): float(provider in figures.halted)
            for provider in {*providers, *figures.halted}
        },
    }


def _age(rows: Standing, now: float) -> float:
    return 0.0 if rows.oldest_at is None else max(now - rows.oldest_at, 0.0)


def _limits(metrics: Metrics, figures: Figures) -> dict[Family, Values]:
    """Return what is used up, beside how much there is of it."""
    lanes, spends, disks = figures.lanes.items(), figures.spend.items(), figures.disks.items()
    tokens: Values = {}

    for (provider, model), queue in figures.enqueued.items():
        labels = (provider, metrics.label(model))
        tokens[labels] = tokens.get(labels, 0.0) + queue.tokens

    return {
        families.LANE_RUNS: {labels: lane.runs for labels, lane in lanes},
        families.LANE_WIDTH: {labels: lane.width for labels, lane in lanes},
        families.SPEND: {labels: spend.usd for labels, spend in spends},
        families.SPEND_LIMIT: {
            labels: spend.limit_usd for labels, spend in spends if spend.limit_usd is not None
        },
        families.ENQUEUED: tokens,
        families.ENQUEUED_LIMIT: {
            labels: queue.limit
            for labels, queue in figures.enqueued.items()
            if queue.limit is not None and labels in tokens
        },
        families.DISK_FREE: {(name,): disk.free_bytes for name, disk in disks},
        families.DISK_SIZE: {(name,): disk.size_bytes for name, disk in disks},
    }
