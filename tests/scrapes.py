"""What tests of the figures share: a page with everything on it, and reading it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from promptspool.metrics import (
    Disk,
    Enqueued,
    Figures,
    LaneUse,
    Metrics,
    Page,
    Spend,
    Standing,
)
from promptspool.pricing import Cost, Tokens
from world import START

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from promptspool.clock import Clock

PROVIDER = "openai"
MODEL = "gpt-5-mini"

NOTHING = Figures(
    jobs={}, batches={}, progressed_at=None, waiting_files=0, loop_age_s=0.0, is_ready=False
)
"""A daemon that has just started."""

EVERYTHING = Figures(
    jobs={
        "planned": Standing(count=3, oldest_at=START - 600.0),
        "held": Standing(count=1, oldest_at=START - 60.0),
    },
    batches={(PROVIDER, "created"): Standing(count=5, requests=700, oldest_at=START - 500.0)},
    progressed_at=START - 30.0,
    waiting_files=2,
    loop_age_s=0.5,
    is_ready=True,
    pending_notices=1,
    lanes={("disk", ""): LaneUse(runs=1, width=2), ("poll", PROVIDER): LaneUse(runs=0, width=1)},
    halted=frozenset({PROVIDER}),
    spend={
        (PROVIDER, "day"): Spend(usd=8.0, limit_usd=10.0),
        (PROVIDER, "month"): Spend(usd=80.0),
    },
    enqueued={(PROVIDER, MODEL): Enqueued(tokens=900, limit=1000)},
    disks={"spool": Disk(free_bytes=5, size_bytes=100)},
    database_bytes=4096,
)
"""A daemon in the middle of its work, with a figure for each family."""


async def now(figures: Figures) -> Figures:
    """Return *figures*, as a snapshot does."""
    return figures


def told(clock: Clock) -> Metrics:
    """Return counters of which each was told something."""
    metrics = Metrics(clock, providers=[PROVIDER], models=[(PROVIDER, MODEL)])
    metrics.claimed(4)
    metrics.delivered()
    metrics.rejected()
    metrics.settled(
        PROVIDER,
        MODEL,
        answered=90,
        failed=10,
        tokens=Tokens(input=1000, cached_input=400, output=300, reasoning=100),
        cost=Cost(batch_usd=0.5, standard_usd=1.0),
    )
    metrics.polled(PROVIDER, changed=1, unchanged=2, failed=3)
    metrics.stage_failed("upload", "outage")
    metrics.http_call(PROVIDER, "GET", path="/batches/batch_1", status=200, seconds=0.2)
    metrics.paused(PROVIDER, "creations", reason="throttled")

    return metrics


async def text_of(metrics: Metrics, figures: Figures, clock: Clock) -> str:
    """Return the page of both."""
    page = await Page(metrics, lambda: now(figures), clock).text()
    assert page is not None

    return page.decode()


def families(text: str) -> dict[str, Metric]:
    """Return what the official client reads off a page, by name."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of every sample on a page."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(text: str, name: str, **labels: str) -> float | None:
    """Return the value of one sample, None if it is not on the page."""
    found = [val for known, have, val in samples(text) if known == name and have == labels]
    assert len(found) < 2, f"{name}{labels} is there twice"

    return found[0] if found else None
