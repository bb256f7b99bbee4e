"""Death at every durable step of a run, and a graceful stop there.

A second run finishes, and the laws are held: every prompt in exactly one place, the same bytes as
without an accident, and nothing bought twice.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from crash.mortal import Fate
from crash.scene import Calm, assert_finished, drainer, live, sample, staged

if TYPE_CHECKING:
    from pathlib import Path

    from crash.tally import Tally

pytestmark = pytest.mark.anyio

DEATHS = 10
STOPS = 8

EXCHANGES = [
    "POST /v1/files",
    "POST /v1/batches",
    "GET /v1/batches/",
    "GET /v1/files/",
    "DELETE /v1/files/",
]
"""What a run asks of the provider."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_death_at_any_step_costs_only_time(
    tmp_path: Path, calm: Calm, tally: Tally, part: int, *, after: bool
) -> None:
    """A process that dies at any durable step is finished by the next one, and nothing shows."""
    for at in sample(range(1, len(calm.steps) + 1), DEATHS + after, part):
        async with staged(tmp_path / f"{at}") as world:
            fate = Fate(at=at, after=after)
            await live(world, fate)

            with tally.point("deaths", fate.told()):
                await assert_finished(world, calm)


@pytest.mark.parametrize("call", EXCHANGES)
async def test_death_with_an_answer_in_hand_costs_only_time(
    tmp_path: Path, calm: Calm, tally: Tally, call: str
) -> None:
    """What the provider did and said to a process that then died is found by the next one."""
    async with staged(tmp_path) as world:
        fate = Fate(at=2, only=call, after=True)
        await live(world, fate)
        assert fate.is_dead

        with tally.point("deaths", fate.told()):
            await assert_finished(world, calm)


async def test_a_probe_that_is_cut_off_leaves_nothing(tmp_path: Path, calm: Calm) -> None:
    """A start that dies while it tries the folders leaves no file of its own in any of them."""
    async with staged(tmp_path) as world:
        await live(world, Fate(at=2, only="rename", after=True))
        assert [path for path in world.spool.outbox.iterdir() if path.name.startswith(".")]
        await assert_finished(world, calm)


async def test_a_stop_at_any_step_costs_only_time(
    tmp_path: Path, calm: Calm, tally: Tally, part: int
) -> None:
    """A graceful stop that begins at any durable step is finished by the next run."""
    for at in sample(range(1, len(calm.steps) + 1), STOPS, part):
        async with staged(tmp_path / f"{at}") as world:
            daemon = drainer(world)
            stop = partial(asyncio.get_running_loop().call_soon_threadsafe, daemon.stop)
            fate = Fate(at=at, strike=stop)
            await live(world, fate, daemon=daemon)
            assert daemon.is_stopping or len(fate.steps) < at

            with tally.point(
                "stops", f"before step {at}, {fate.steps[min(at, len(fate.steps)) - 1]}"
            ):
                await assert_finished(world, calm)
