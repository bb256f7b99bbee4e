"""Reading the list of batches: as far back as asked, and no further.

The order of `GET /batches` is not documented, so it is looked at, page by page: as long as the list
runs from young to old it is read back to a time; a list in any other order is read to its end.
Raises what `Provider.page` raises; nothing read so far is used then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.model import RemoteBatch
    from promptspool.provider.base import Provider

SMALLEST_PAGE = 20
"""What lists give at once that do not take our word for it (OpenAI's default): less is all."""

SKEW_S = 600.0
"""How far the provider's clock may be off from what its `Date` says, and lists from their order."""


@dataclass(slots=True, kw_only=True)
class Sweep:
    """What was read."""

    batches: list[RemoteBatch] = field(default_factory=list)
    pages: int = 0
    complete: bool = False
    """Everything younger than the time asked for was read."""


async def sweep(  # noqa: PLR0913 - how far, by which clock, and when to end early
    provider: Provider,
    *,
    now: float,
    back_to: float = math.inf,
    floor: float = math.inf,
    budget: int | None = None,
    wanted: frozenset[str] = frozenset(),
) -> Sweep:
    """Read the list back to *back_to*, in this machine's time, of which *now* is the present.

    And back to *floor*, in the provider's time: this machine's clock may have been set since. It
    ends early after *budget* pages, or when every batch id in *wanted*, if any, was met.
    """
    result = Sweep()
    missing = set(wanted)
    after: str | None = None
    passed: set[str | None] = set()
    offset: float | None = None
    is_sorted = True

    while budget is None or result.pages < budget:
        page = await provider.page(after)
        result.pages += 1
        result.batches.extend(page.batches)
        missing.difference_update(batch.id for batch in page.batches)

        if offset is None:
            offset = 0.0 if page.answered_at is None else page.answered_at - now

        is_sorted = is_sorted and _runs_back(result.batches[-len(page.batches) - 1 :])
        last = page.batches[-1].id if page.batches else None

        is_round = last is None or last in passed  # some start again, or show nothing to go on from
        is_over = page.has_more is False
        is_far = is_sorted and _is_older(page.batches, min(back_to + offset, floor) - SKEW_S)
        is_small = page.has_more is None and 0 < len(page.batches) < SMALLEST_PAGE
        result.complete = is_over or is_far or (is_round and is_small)

        if result.complete or is_round or (wanted and not missing):
            break

        passed.add(last)
        after = last

    return result


def _runs_back(batches: Sequence[RemoteBatch]) -> bool:
    """Tell whether the times run from young to old; a batch without a time proves nothing."""
    times = [batch.created_at for batch in batches]

    return all(
        young is not None and old is not None and young >= old for young, old in pairwise(times)
    )


def _is_older(batches: Sequence[RemoteBatch], limit: float) -> bool:
    last = batches[-1].created_at if batches else None

    return last is not None and last < limit
