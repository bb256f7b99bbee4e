"""A create whose answer is lost: whatever came instead, there is one batch in the end.

Each way to lose an answer meets each kind of list and clock, at one provider all at once; the
process that asked may die of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from crash.mortal import Death, Fate, mortal
from promptspool.simulator import BatchFault, Fault, SimulatorSettings
from world import START, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.simulator.faults import Action
    from world import World

pytestmark = pytest.mark.anyio

HASTY: dict[str, Any] = {"providers": {"openai": {"timeout": 0.5}}}
"""What times out does so soon; real seconds."""

CREATE = "POST /v1/batches"

JSON = '{"object":"batch","status":"validating"}'
"""JSON, but no batch: it has no id."""

ANSWERS: dict[str, dict[str, Any]] = {
    "timeout": {"action": "stall", "delay_s": 0.8},
    "reset-before-the-body": {"action": "reset"},
    "cut-before-the-body": {"action": "cut"},
    "cut-after-the-body": {"action": "short"},
    "truncated-body": {"action": "truncate"},
    "truncated-json": {"action": "long"},
    "500": {"action": "status", "status": 500},
    "502-html": {"action": "status", "status": 502, "body": "<html>bad gateway</html>"},
    "503": {"action": "status", "status": 503, "body": '{"error":{"message":"overloaded"}}'},
    "empty-200": {"action": "empty"},
    "other-json": {"action": "status", "status": 200, "body": JSON},
    "html-200": {"action": "garbage"},
}
"""What comes in place of a created batch."""

NEVER_ARRIVED = {
    **{name: answer for name, answer in ANSWERS.items() if answer["action"] in {"reset", "cut"}},
    **{name: ANSWERS[name] for name in ("500", "502-html", "503", "empty-200", "other-json")},
    "html-200": ANSWERS["html-200"],
    "timeout": {"action": "status", "status": 503, "delay_s": 0.8},
    "sent-in-part": {"action": "sever", "after_bytes": 10},
    "truncated-json": {"action": "status", "status": 200, "body": '{"id":"batch_1","obj'},
}
"""What comes of a create that did nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the list and the clock of a provider are like."""

    list_lag_s: float = 0.0
    clock_offset_s: float = 0.0
    foreign: int = 0
    """Batches of others that are younger than ours; up to 500 of them are older."""

    def settings(self) -> SimulatorSettings:
        """Return the settings of such a provider."""
        return SimulatorSettings(clock_offset_s=self.clock_offset_s)

    def prepare(self, world: World) -> None:
        """Make the provider of *world* like that."""
        world.simulator.faults.add_batch(BatchFault(list_lag_s=self.list_lag_s, times=None))
        start = START + self.clock_offset_s
        world.simulator.add_foreign_batches(min(self.foreign, 500), created_at=start - 1)
        # These come while ours is being looked for, and fill the pages before it.
        world.simulator.add_foreign_batches(self.foreign, created_at=start + 40)


PLACES = {
    "plain": Place(),
    "lagging-list": Place(list_lag_s=30),
    "clock-ahead": Place(list_lag_s=30, clock_offset_s=600, foreign=150),
    "clock-behind": Place(list_lag_s=30, clock_offset_s=-600, foreign=150),
    "clock-far-behind": Place(list_lag_s=30, clock_offset_s=-3600, foreign=150),
    "crowded": Place(list_lag_s=30, foreign=10_000),
}


def drop(world: World, count: int) -> None:
    """Drop *count* files, each with two questions of its own."""
    for number in range(count):
        rows = [{"id": f"q{n}", "prompt": f"{number} plus {n}?"} for n in range(2)]
        world.drop(f"f{number}.jsonl", rows)


def check(world: World, count: int) -> None:
    """Hold the laws: every file answered, with one batch for each."""
    for number in range(count):
        world.assert_conserved(f"f{number}.jsonl", ["q0", "q1"])
        assert world.errors(f"f{number}.jsonl") == []

    world.assert_bought_once()
    assert len(world.simulator.ledger.creations) == count


def lost(answer: dict[str, Any]) -> Fault:
    """Return the fault of a create that is done, and answered like that."""
    return Fault(route="batches.create", point="after", **answer)


@pytest.mark.parametrize("where", [name for name in PLACES if name != "crowded"])
async def test_a_lost_answer_is_one_batch(tmp_path: Path, where: str) -> None:
    """However the answer to a create is lost, its batch is found and not created again."""
    place = PLACES[where]

    async with simulated(tmp_path, overrides=HASTY, settings=place.settings()) as world:
        place.prepare(world)
        faults = [lost(answer) for answer in ANSWERS.values()]
        world.simulator.faults.add(*faults)
        drop(world, len(faults))

        assert await world.drain()

        check(world, len(faults))
        assert all(fault in world.simulator.faults.fired for fault in faults)
        assert world.simulator.ledger.calls["batches.create"] == len(faults)


async def test_a_lost_answer_in_a_crowd_is_one_batch(tmp_path: Path) -> None:
    """Ours is found behind 10,000 batches of others that come before it in the list."""
    place = PLACES["crowded"]

    async with simulated(tmp_path, overrides=HASTY) as world:
        place.prepare(world)
        world.simulator.faults.add(lost(ANSWERS["503"]))
        drop(world, 1)

        assert await world.drain()

        check(world, 1)
        assert world.simulator.ledger.calls["batches.list"] > 100


async def test_a_look_in_the_same_outage_is_one_batch(tmp_path: Path) -> None:
    """Where the outage that lost an answer goes on, the looks are still the grace apart.

    The list is as old as the outage, and shows the batch some seconds after its end.
    """
    hasty = {"retry": {"cap": "20s"}}

    async with simulated(tmp_path, overrides=hasty) as world:
        world.simulator.faults.add(lost({"action": "cut"}))
        world.simulator.faults.add_batch(BatchFault(list_lag_s=640))
        world.simulator.faults.add(
            Fault(route="batches.list", times=None, status=503),
            when=lambda _: world.clock.monotonic() < 600,
        )
        drop(world, 1)

        assert await world.drain()

        check(world, 1)


async def test_a_create_that_did_nothing_is_one_batch(tmp_path: Path) -> None:
    """A create that did nothing is made again after it was looked for, whatever was answered."""
    async with simulated(tmp_path, overrides=HASTY) as world:
        faults = [Fault(route="batches.create", **answer) for answer in NEVER_ARRIVED.values()]
        world.simulator.faults.add(*faults)
        drop(world, len(faults))

        assert await world.drain()

        check(world, len(faults))
        assert all(fault in world.simulator.faults.fired for fault in faults)
        assert world.simulator.ledger.calls["batches.create"] == 2 * len(faults)
        assert world.clock.monotonic() > 60


async def die_of_the_answer(world: World) -> None:
    """Run until a create was answered, in whatever way, and not one step longer."""
    fate = Fate(at=1, after=True, only=CREATE)

    with mortal(fate, world.spool.root), pytest.raises(BaseExceptionGroup) as died:
        await world.drain()

    assert died.group_contains(Death)
    assert fate.steps[-1] == CREATE


DIAGONAL = [
    ("plain", None),
    ("plain", "timeout"),
    ("plain", "truncated-body"),
    ("lagging-list", "502-html"),
    ("clock-ahead", "reset-before-the-body"),
    ("clock-behind", "empty-200"),
    ("clock-far-behind", "503"),
    ("crowded", "truncated-json"),
]
"""A place, and what is answered; None for a good answer that nobody lives to write down."""


@pytest.mark.parametrize(("where", "name"), DIAGONAL)
async def test_a_death_after_a_lost_answer_is_one_batch(
    tmp_path: Path, where: str, name: str | None
) -> None:
    """A process that dies of an answer, good or lost, leaves one batch for the next to find."""
    place = PLACES[where]

    async with simulated(tmp_path, overrides=HASTY, settings=place.settings()) as world:
        place.prepare(world)

        if name is not None:
            world.simulator.faults.add(lost(ANSWERS[name]))

        drop(world, 1)
        await die_of_the_answer(world)

        assert len(world.simulator.ledger.creations) == 1

        assert await world.drain()

        check(world, 1)
        assert world.simulator.ledger.calls["batches.create"] == 1


@pytest.mark.parametrize("action", ["sever", "cut"])
async def test_a_death_after_a_create_that_did_nothing(tmp_path: Path, action: Action) -> None:
    """A process that dies of a create that did nothing leaves one to be made, once."""
    async with simulated(tmp_path, overrides=HASTY) as world:
        world.simulator.faults.add(Fault(route="batches.create", action=action))
        drop(world, 1)

        await die_of_the_answer(world)

        assert world.simulator.ledger.creations == []

        assert await world.drain()

        check(world, 1)
