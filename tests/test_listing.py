from __future__ import annotations

from typing import TYPE_CHECKING, cast

import anyio
import pytest

from promptspool.errors import Unavailable
from promptspool.model import RemoteBatch, RemoteStatus
from promptspool.provider.base import Page
from promptspool.provider.listing import SKEW_S, Sweep, sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.provider import Provider

pytestmark = pytest.mark.anyio

NOW = 1_795_000_000.0
SIZE = 10
HOUR = 3600.0


def batches(times: Sequence[float | None]) -> list[RemoteBatch]:
    """Return a batch for each time of creation, in this order."""
    return [
        RemoteBatch(
            id=f"batch_{number}",
            status=RemoteStatus.COMPLETED,
            raw_status="completed",
            metadata={},
            input_file=None,
            created_at=created_at,
        )
        for number, created_at in enumerate(times)
    ]


class Lister:
    """A provider that can do nothing but list, ten batches a page."""

    def __init__(self, listed: list[RemoteBatch], *, offset_s: float | None = 0.0) -> None:
        """List *listed*, by a clock that is *offset_s* ahead of ours; None tells no time."""
        self.listed = listed
        self.offset_s = offset_s
        self.asked: list[str | None] = []

    async def page(self, after: str | None) -> Page:
        """Return what is behind *after*."""
        await anyio.lowlevel.checkpoint()
        self.asked.append(after)
        ids = [batch.id for batch in self.listed]
        start = 0 if after is None else ids.index(after) + 1

        return Page(
            batches=self.listed[start : start + SIZE],
            has_more=start + SIZE < len(ids),
            answered_at=None if self.offset_s is None else NOW + self.offset_s,
        )


async def swept(
    lister: object,
    *,
    back_to: float = 0.0,
    budget: int | None = None,
    wanted: frozenset[str] = frozenset(),
) -> Sweep:
    """Sweep the list of something that lists."""
    provider = cast("Provider", lister)

    return await sweep(provider, back_to=back_to, now=NOW, budget=budget, wanted=wanted)


YOUNG_TO_OLD = [NOW - number * HOUR for number in range(100)]


async def test_a_list_from_young_to_old_is_read_only_as_far_as_asked() -> None:
    """Reading stops at the first page that ends before the time asked for, clocks' skew allowed."""
    lister = Lister(batches(YOUNG_TO_OLD))
    read = await swept(lister, back_to=NOW - 25 * HOUR)

    assert (read.pages, read.complete) == (3, True)
    assert len(read.batches) == 30
    assert lister.asked == [None, "batch_9", "batch_19"]


async def test_what_is_as_old_as_asked_for_is_always_read() -> None:
    """Whatever is not older than asked for is met, at whatever place of a page it stands."""
    for back_to_hours in range(60):
        read = await swept(Lister(batches(YOUNG_TO_OLD)), back_to=NOW - back_to_hours * HOUR)

        assert f"batch_{back_to_hours}" in {batch.id for batch in read.batches}
        assert read.pages <= back_to_hours // SIZE + 2


@pytest.mark.parametrize(
    "times",
    [
        YOUNG_TO_OLD[::-1],
        [*YOUNG_TO_OLD[:7], NOW - 99 * HOUR, *YOUNG_TO_OLD[8:]],
        [*YOUNG_TO_OLD[:5], None, *YOUNG_TO_OLD[6:]],
        [None] * 100,
    ],
    ids=["old to young", "one out of place", "one without a time", "no times"],
)
async def test_a_list_in_any_other_order_is_read_to_its_end(times: list[float | None]) -> None:
    """The order of the list is not documented: where it does not run back, all of it is read."""
    read = await swept(Lister(batches(times)), back_to=NOW - 5 * HOUR)

    assert (read.pages, read.complete) == (10, True)
    assert len(read.batches) == 100


async def test_a_list_of_one_moment_is_read_to_its_end() -> None:
    """Batches of the same second prove no order that would allow to stop before they end."""
    read = await swept(Lister(batches([NOW - HOUR] * 35)), back_to=NOW - HOUR)

    assert len(read.batches) == 35


async def test_an_order_that_breaks_between_pages_is_noticed() -> None:
    """A page in order, but younger than the one before, proves that the list is in none."""
    times = [*YOUNG_TO_OLD[10:20], *YOUNG_TO_OLD[:10], *YOUNG_TO_OLD[20:40]]
    read = await swept(Lister(batches(times)), back_to=NOW - 25 * HOUR)

    assert (read.pages, read.complete) == (4, True)


@pytest.mark.parametrize("offset_s", [-5 * HOUR, 5 * HOUR])
async def test_the_providers_clock_is_read_off_its_answers(offset_s: float) -> None:
    """However wrong either clock is, everything since a time by ours is found by theirs."""
    lister = Lister(batches([at + offset_s for at in YOUNG_TO_OLD]), offset_s=offset_s)
    read = await swept(lister, back_to=NOW - 25 * HOUR)

    assert (read.pages, read.complete) == (3, True)


async def test_a_provider_that_tells_no_time_is_believed_to_have_ours() -> None:
    """Without a `Date` the times are compared as they are, within the skew."""
    lister = Lister(batches([at - SKEW_S + 1 for at in YOUNG_TO_OLD]), offset_s=None)
    read = await swept(lister, back_to=NOW - 25 * HOUR)

    assert "batch_25" in {batch.id for batch in read.batches}


async def test_a_budget_ends_a_sweep() -> None:
    """No more pages are read than allowed, and the sweep says that it is not complete."""
    read = await swept(Lister(batches(YOUNG_TO_OLD)), budget=2)

    assert (read.pages, read.complete, len(read.batches)) == (2, False, 20)


async def test_a_sweep_ends_when_all_that_is_wanted_was_met() -> None:
    """A sweep for certain batches goes no further than the last of them."""
    wanted = frozenset({"batch_3", "batch_14"})
    read = await swept(Lister(batches(YOUNG_TO_OLD)), wanted=wanted)

    assert (read.pages, read.complete) == (2, False)
    assert wanted <= {batch.id for batch in read.batches}


async def test_an_empty_list_is_complete() -> None:
    """A list without batches has been read to its end."""
    read = await swept(Lister([]))

    assert (read.pages, read.complete, read.batches) == (1, True, [])


class Looping(Lister):
    """A provider that promises more for ever, over a few pages again and again."""

    def __init__(self, pages: int) -> None:
        """Go round *pages* pages."""
        super().__init__(batches([NOW] * SIZE * pages))
        self.around = pages

    async def page(self, after: str | None) -> Page:
        """Return the next page, or the first behind the last."""
        await anyio.lowlevel.checkpoint()
        start = len(self.asked) % self.around * SIZE
        self.asked.append(after)

        return Page(batches=self.listed[start : start + SIZE], has_more=True, answered_at=NOW)


@pytest.mark.parametrize("pages", [1, 2, 3])
async def test_a_list_that_goes_round_comes_to_an_end(pages: int) -> None:
    """A provider that does not heed `after`, or goes round, is not read for ever."""
    with anyio.fail_after(5):
        read = await swept(Looping(pages))

    assert read.pages <= pages + 1
    assert {batch.id for batch in read.batches} == {f"batch_{n}" for n in range(SIZE * pages)}


async def test_a_page_that_fails_fails_the_sweep() -> None:
    """A list that was read in part is not used: what is missing of it may be what matters."""

    class Broken(Lister):
        async def page(self, after: str | None) -> Page:
            if after is not None:
                raise Unavailable("HTTP 500")

            return await super().page(after)

    with pytest.raises(Unavailable):
        await swept(Broken(batches(YOUNG_TO_OLD)))


class Blank(Lister):
    """A provider whose page has no batch that could be gone on from, though there are more."""

    async def page(self, after: str | None) -> Page:
        """Return nothing, and promise more."""
        await anyio.lowlevel.checkpoint()
        self.asked.append(after)

        return Page(batches=[], has_more=True, answered_at=NOW)


@pytest.mark.parametrize("lister", [Looping(2), Blank([])], ids=["round", "blank"])
async def test_a_list_without_an_end_proves_nothing(lister: Lister) -> None:
    """What could not be read to its end is not taken for the whole."""
    read = await swept(lister)

    assert not read.complete
    assert read.pages < 4
