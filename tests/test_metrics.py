from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import LIMIT_S, environ
from promptspool.errors import SpoolError, StoreError
from promptspool.metrics import Disks, Enqueued, Metrics, Page, families
from promptspool.metrics.tally import MAX_MODELS, route
from promptspool.pricing import Tokens
from scrapes import EVERYTHING, MODEL, NOTHING, PROVIDER, samples, text_of, told, value
from scrapes import families as read
from world import FakeClock, overheard

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.metrics import Figures

pytestmark = pytest.mark.anyio

OPTIONAL = {
    families.HTTP_CALLS,
    families.COST,
    families.STANDARD_COST,
    families.STAGE_FAILURES,
    families.PROGRESSED,
    families.DATABASE_SIZE,
    families.SPEND_LIMIT,
    families.ENQUEUED,
    families.ENQUEUED_LIMIT,
    families.SPEND,
    families.LANE_RUNS,
    families.LANE_WIDTH,
    families.DISK_FREE,
    families.DISK_SIZE,
}
"""What has no samples before there is something to tell."""

BUCKETS = ("0.05", "0.1", "5.0", "10.0", "300.0", "+Inf")

FAMILIES = [one for one in vars(families).values() if isinstance(one, families.Family)]


async def test_the_page_is_what_the_conventions_ask_for() -> None:
    """The official client reads every family, each with its help, its type, its unit at the end."""
    clock = FakeClock()
    text = await text_of(told(clock), EVERYTHING, clock)
    found = read(text)

    for name, family in found.items():
        parts = name.split("_")
        units = {"seconds", "bytes", "usd"} & set(parts)

        assert family.documentation.endswith((".", "none where no answer came.", "(UTC)."))
        assert family.type in {"counter", "gauge", "histogram"}
        assert re.fullmatch(r"promptspool(_[a-z]+)+", name)
        assert not {"ms", "minutes", "hours", "days", "kb", "mb", "percent", "cents"} & set(parts)
        assert not units or units == {parts[-1]}
        assert all(sample.timestamp is None for sample in family.samples)

    exported = {re.sub("_total$", "", family.name) for family in FAMILIES}
    counters = {name for name, family in found.items() if family.type == "counter"}

    assert set(found) == exported
    assert counters == {re.sub("_total$", "", family.name) for family in families.COUNTERS}
    assert text.endswith("\n")


async def test_labels_are_those_of_the_table() -> None:
    """Each sample has the labels that its family names, and no name is there twice."""
    clock = FakeClock()
    text = await text_of(told(clock), EVERYTHING, clock)
    labels = {family.name: set(family.labels) for family in FAMILIES}
    seen = list(samples(text))

    for name, have, _ in seen:
        base = re.sub("_(bucket|sum|count)$", "", name)
        assert set(have) - {"le"} == labels[base if base in labels else name]

    assert len({(name, *sorted(have.items())) for name, have, _ in seen}) == len(seen)


async def test_nought_is_told_before_anything_happens() -> None:
    """A counter or a state is there from the start, or its first event would go unseen."""
    clock = FakeClock()
    metrics = Metrics(clock, providers=[PROVIDER], models=[(PROVIDER, MODEL)])
    text = await text_of(metrics, NOTHING, clock)
    found = {name for name, _, _ in samples(text)}

    assert {family.name for family in FAMILIES} - found == {family.name for family in OPTIONAL}
    assert value(text, "promptspool_jobs", state="held") == 0
    assert value(text, "promptspool_batches", provider=PROVIDER, state="created") == 0
    assert value(text, "promptspool_rejected_files_total") == 0
    assert (
        value(
            text,
            "promptspool_requests_total",
            provider=PROVIDER,
            model=MODEL,
            outcome="failed",
        )
        == 0
    )


async def test_a_reload_adds_nought_and_takes_nothing() -> None:
    """What a new configuration names is there at once, and what was counted stays."""
    clock = FakeClock()
    metrics = told(clock)
    before = {family: metrics.count(family) for family in families.COUNTERS}
    metrics.expect(["another", PROVIDER], [("another", "gpt-6"), (PROVIDER, MODEL)])
    text = await text_of(metrics, NOTHING, clock)

    assert value(text, "promptspool_batches", provider="another", state="created") == 0
    assert value(text, "promptspool_polls_total", provider="another", outcome="failed") == 0
    assert all(metrics.count(family).items() >= was.items() for family, was in before.items())


async def test_what_happened_and_how_things_stand_is_on_the_page() -> None:
    """Each thing that is told comes out as told; parts of tokens add up to the whole."""
    clock = FakeClock()
    metrics = told(clock)
    clock.pass_time(5.0)
    text = await text_of(metrics, EVERYTHING, clock)
    ours = {"provider": PROVIDER, "model": MODEL}
    tokens = {
        have["kind"]: number
        for name, have, number in samples(text)
        if name == "promptspool_tokens_total"
    }

    assert value(text, "promptspool_requests_total", outcome="answered", **ours) == 90
    assert value(text, "promptspool_requests_total", outcome="failed", **ours) == 10
    assert tokens == {
        "fresh_input": 600,
        "cached_input": 400,
        "visible_output": 200,
        "reasoning_output": 100,
    }
    assert value(text, "promptspool_cost_usd_total", **ours) == 0.5
    assert value(text, "promptspool_standard_cost_usd_total", **ours) == 1.0
    assert value(text, "promptspool_claimed_files_total") == 4
    assert value(text, "promptspool_polls_total", provider=PROVIDER, outcome="failed") == 3
    assert value(text, "promptspool_paused_seconds_total", provider=PROVIDER) == 5
    assert value(text, "promptspool_jobs", state="planned") == 3
    assert value(text, "promptspool_oldest_job_age_seconds", state="planned") == 605
    assert value(text, "promptspool_oldest_job_age_seconds", state="claimed") == 0
    assert value(text, "promptspool_live_requests", provider=PROVIDER, state="created") == 700
    assert value(text, "promptspool_spend_limit_usd", provider=PROVIDER, period="day") == 10
    assert value(text, "promptspool_spend_limit_usd", provider=PROVIDER, period="month") is None
    assert value(text, "promptspool_lane_width", lane="disk", provider="") == 2


async def test_calls_are_sorted_by_how_long_they_took() -> None:
    """A bucket holds what took at most so long; no answer, an odd one and an id are no labels."""
    clock = FakeClock()
    metrics = Metrics(clock)

    for seconds in (0.05, 0.051, 7.0, 10_000.0):
        metrics.http_call("p", "GET", path="/batches/b_1", status=200, seconds=seconds)

    metrics.http_call("p", "GET", path="/batches/b_2", status=None, seconds=1.0)
    metrics.http_call("p", "GET", path="/batches/b_3", status=999, seconds=1.0)
    text = await text_of(metrics, NOTHING, clock)
    name = "promptspool_http_request_duration_seconds"
    labels = {"provider": "p", "method": "GET", "route": "/batches/{id}"}
    ends = {end: value(text, f"{name}_bucket", status="200", le=end, **labels) for end in BUCKETS}

    assert ends == {"0.05": 1, "0.1": 2, "5.0": 2, "10.0": 3, "300.0": 3, "+Inf": 4}
    assert value(text, f"{name}_sum", status="200", **labels) == pytest.approx(10_007.101)
    assert value(text, f"{name}_count", status="none", **labels) == 1
    assert value(text, f"{name}_count", status="other", **labels) == 1


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/batches", "/batches"),
        ("/batches/batch_1", "/batches/{id}"),
        ("/batches/batch_1/cancel", "/batches/{id}/cancel"),
        ("/files", "/files"),
        ("/files/file-1", "/files/{id}"),
        ("/files/file-1/content", "/files/{id}/content"),
        ("/files/a/b/content", "other"),
        ("/files/../../etc", "other"),
        ("/models", "other"),
        ("", "other"),
    ],
)
def test_a_path_without_its_ids(path: str, template: str) -> None:
    """Calls are told apart by what they do, never by what they do it to."""
    assert route(path) == template


async def test_strangers_cannot_make_labels() -> None:
    """However many models, ids and statuses there are, a page does not grow with them."""
    clock = FakeClock()
    metrics = Metrics(clock, providers=[PROVIDER], models=[(PROVIDER, MODEL)])
    numbers = count()
    enqueued = {(PROVIDER, f"queued-{number}"): Enqueued(tokens=1) for number in range(1000)}

    for number in range(1000):
        metrics.settled(
            PROVIDER, f"model-{number}", answered=1, failed=0, tokens=Tokens(input=1), cost=None
        )

        for path in (f"/files/{next(numbers)}", f"/a/{next(numbers)}/b/{next(numbers)}"):
            metrics.http_call(PROVIDER, "GET", path=path, status=number, seconds=1.0)

    text = await text_of(metrics, replace(NOTHING, enqueued=enqueued), clock)
    seen = list(samples(text))
    models = {have["model"] for _, have, _ in seen if "model" in have}
    answered = [
        number
        for name, have, number in seen
        if name == "promptspool_requests_total" and have["outcome"] == "answered"
    ]
    queued = [number for name, _, number in seen if name == "promptspool_enqueued_tokens"]

    assert len(models) == MAX_MODELS + 1
    assert {MODEL, "model-0", "other"} <= models
    assert sum(answered) == sum(queued) == 1000
    assert {have["route"] for _, have, _ in seen if "route" in have} == {"/files/{id}", "other"}
    assert len({have["status"] for _, have, _ in seen if "status" in have}) < 100


EVENTS = st.one_of(
    st.tuples(st.just("settled"), st.integers(-5, 5), st.integers(-5, 5)),
    st.tuples(st.just("polled"), st.integers(-5, 5), st.integers(-5, 5)),
    st.tuples(st.just("paused"), st.just(0), st.just(0)),
    st.tuples(st.just("resumed"), st.just(0), st.just(0)),
    st.tuples(st.just("called"), st.integers(-5, 5), st.just(0)),
    st.tuples(st.just("waited"), st.integers(0, 5), st.just(0)),
)


@given(st.lists(EVENTS, max_size=30))
def test_counters_only_go_up(events: list[tuple[str, int, int]]) -> None:
    """Whatever is told in whatever order, be it nonsense, no counter is lowered."""
    clock = FakeClock()
    metrics = Metrics(clock, providers=["p"], models=[("p", "m")])
    before: dict[tuple[str, ...], float] = {}

    for event, first, second in events:
        match event:
            case "settled":
                tokens = Tokens(input=first, cached_input=second, output=second, reasoning=first)
                metrics.settled("p", "m", answered=first, failed=second, tokens=tokens, cost=None)
            case "polled":
                metrics.polled("p", changed=first, failed=second)
            case "paused":
                metrics.paused("p", "all", reason="outage")
            case "resumed":
                metrics.resumed("p")
            case "called":
                metrics.http_call("p", "GET", path="/files", status=200, seconds=first)
            case _:
                clock.pass_time(first)

        after = {
            (family.name, *labels): number
            for family in families.COUNTERS
            for labels, number in metrics.count(family).items()
        } | {("times", *labels): times.sum_s for labels, times in metrics.times().items()}

        assert all(after[key] >= number for key, number in before.items())
        before = after


async def test_a_pause_is_counted_once() -> None:
    """A pause that goes on, changes or ends adds the time that passed, and is shown while it is."""
    clock = FakeClock()
    metrics = Metrics(clock, providers=["p"])
    metrics.paused("p", "creations", reason="throttled")
    clock.pass_time(10.0)
    metrics.paused("p", "all", reason="outage")
    metrics.paused("p", "all")
    metrics.paused("p", "all", reason="row")
    clock.pass_time(5.0)
    during = await text_of(metrics, NOTHING, clock)
    clock.pass_time(5.0)
    metrics.resumed("p")
    metrics.resumed("p")
    clock.pass_time(100.0)
    after = await text_of(metrics, NOTHING, clock)
    paused = [
        (have["work"], have["reason"])
        for name, have, number in samples(during)
        if name == "promptspool_provider_paused" and number
    ]

    assert paused == [("all", "outage")]
    assert value(during, "promptspool_paused_seconds_total", provider="p") == 15
    assert value(after, "promptspool_paused_seconds_total", provider="p") == 20
    assert (
        value(after, "promptspool_provider_paused", provider="p", work="all", reason="outage") == 0
    )


@pytest.mark.parametrize("error", [StoreError(), SpoolError("damaged"), OSError(5, "I/O error")])
async def test_without_a_database_there_is_a_page(error: Exception) -> None:
    """A database that cannot be read takes its figures from the page, and says so there."""

    async def snapshot() -> Figures:
        raise error

    clock = FakeClock()
    page = await Page(told(clock), snapshot, clock).text()
    text = (page or b"").decode()

    assert value(text, "promptspool_figures_readable") == 0
    assert value(text, "promptspool_rejected_files_total") == 1
    assert value(text, "promptspool_jobs", state="planned") is None


async def test_a_bug_is_logged_once_and_ends_nothing() -> None:
    """A page that cannot be made is no page, however often it is asked for."""

    async def snapshot() -> Figures:
        message = "nobody foresaw this"
        raise LookupError(message)

    clock = FakeClock()
    page = Page(told(clock), snapshot, clock)

    with overheard() as lines:
        assert [await page.text() for _ in range(3)] == [None] * 3

    assert [line["event"] for line in lines] == ["metrics.broken"]


async def test_one_page_is_made_at_a_time() -> None:
    """Scrapes that come together wait for each other, not the database for all of them."""
    under_way = 0
    most = 0

    async def snapshot() -> Figures:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await anyio.lowlevel.checkpoint()
        under_way -= 1

        return NOTHING

    clock = FakeClock()
    page = Page(told(clock), snapshot, clock)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(page.text)

    assert most == 1


def test_the_library_is_imported_for_pages_only() -> None:
    """A daemon that is asked for no figures does not load what writes them."""
    script = (
        "import sys, promptspool.app, promptspool.metrics as metrics;"
        "from promptspool.clock import SystemClock;"
        "metrics.Metrics(SystemClock(), providers=['p']).delivered();"
        "print('prometheus_client' in sys.modules)"
    )
    ran = subprocess.run(  # noqa: S603 - our own Python
        [sys.executable, "-c", script],
        env=environ(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )

    assert ran.stdout == "False\n"


async def test_disks_that_answer_are_told(tmp_path: Path) -> None:
    """Room is told by the folder's name; a folder that is away is left out."""
    disks = await Disks({"spool": tmp_path, "state": tmp_path / "away"}).read()

    assert set(disks) == {"spool"}
    assert 0 <= disks["spool"].free_bytes <= disks["spool"].size_bytes
    assert disks["spool"].size_bytes > 0


async def test_a_disk_that_hangs_is_asked_once(tmp_path: Path) -> None:
    """A file system that does not answer is left out, and holds one thread, not one a page."""
    may_go_on = threading.Event()
    asked: list[str] = []

    class Hanging(type(tmp_path)):  # type: ignore[misc] # the class of paths of this system
        def __fspath__(self) -> str:
            asked.append("once")
            may_go_on.wait(LIMIT_S)

            return str(self)

    disks = Disks({"state": Hanging(tmp_path), "spool": tmp_path}, patience_s=0.05)

    try:
        for _ in range(3):
            assert set(await disks.read()) == {"spool"}
    finally:
        may_go_on.set()

    assert asked == ["once"]

    with anyio.fail_after(LIMIT_S):
        while set(await disks.read()) != {"spool", "state"}:
            await anyio.lowlevel.checkpoint()
