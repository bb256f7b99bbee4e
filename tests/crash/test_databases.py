"""Databases that forget: put back to an earlier commit, or gone.

The spool says which jobs there are and the provider what was bought, so a database that knows less
than both costs uploads and look-ups, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crash.mortal import Fate
from crash.scene import Calm, assert_finished, live, put_back, sample, staged

if TYPE_CHECKING:
    from pathlib import Path

    from crash.tally import Tally

pytestmark = pytest.mark.anyio

DELETIONS = 6
"""Just before so many every file is delivered, and the last one is being tidied away."""

EARLIER = 6
AT_A_STEP = 6
LOST = 5


async def test_every_earlier_commit_will_do(
    tmp_path: Path, calm: Calm, tally: Tally, part: int
) -> None:
    """A database put back to any commit of a run that is nearly over buys nothing again."""
    for place in sample(range(calm.commits()), EARLIER, part):
        async with staged(tmp_path / f"{place}") as world:
            fate = Fate(at=DELETIONS, only="DELETE ", database=world.spool.database)
            await live(world, fate)
            put_back(world.spool, fate.copies[min(place, len(fate.copies) - 1)])

            with tally.point("databases", f"put back to commit {place} {fate.told()}"):
                await assert_finished(world, calm)


async def test_a_database_may_forget_at_any_step(
    tmp_path: Path, calm: Calm, tally: Tally, part: int
) -> None:
    """A database put back to an earlier commit at the moment of death buys nothing again."""
    for at in sample(range(1, len(calm.steps) + 1), AT_A_STEP, part):
        async with staged(tmp_path / f"{at}") as world:
            fate = Fate(at=at, database=world.spool.database)
            await live(world, fate)
            place = 7 * at % max(len(fate.copies), 1)  # each commit of each stretch, in the end
            put_back(world.spool, fate.copies[place] if fate.copies else None)

            with tally.point("databases", f"put back to commit {place} {fate.told()}"):
                await assert_finished(world, calm)


async def test_a_database_may_be_lost_at_any_step(
    tmp_path: Path, calm: Calm, tally: Tally, part: int
) -> None:
    """A database that is gone at the moment of death is rebuilt, and nothing is bought again."""
    for at in sample(range(1, len(calm.steps) + 1), LOST, part):
        async with staged(tmp_path / f"{at}") as world:
            fate = Fate(at=at)
            await live(world, fate)
            put_back(world.spool, None)

            with tally.point("databases", f"lost {fate.told()}"):
                await assert_finished(world, calm)
