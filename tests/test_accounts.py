"""A key of another project, another address, a clock that was set: nothing is bought again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from promptspool.app import Daemon
from promptspool.simulator import Fault
from world import START, FakeClock, overheard, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.simulator.faults import Route
    from world import World

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
PATIENT = {"retry": {"max_age": "3650d"}}


def questions(count: int) -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0`, `q1` …."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?"} for n in range(count)]


def hold(world: World, *names: str) -> None:
    """Hold the laws over *names*, three questions each: all answered, each batch bought once."""
    for name in names:
        world.assert_conserved(name, ["q0", "q1", "q2"])
        assert world.errors(name) == []

    world.assert_bought_once()
    assert len(world.simulator.ledger.creations) == len(names)


DENIED: tuple[Route, ...] = ("batches.get", "files.get", "files.content")
EMPTY: tuple[Route, ...] = ("batches.list", "files.list")
NOTHING = '{"object":"list","data":[],"has_more":false}'


class Project:
    """Whether the key is that of another project, which knows nothing of ours."""

    def __init__(self, world: World) -> None:
        """Begin with the right key."""
        self.is_another = False
        faults = [
            *(Fault(route=route, times=None, status=404) for route in DENIED),
            *(Fault(route=route, times=None, status=200, body=NOTHING) for route in EMPTY),
        ]
        world.simulator.faults.add(*faults, when=lambda _: self.is_another)

    def become_another(self) -> None:
        """Put in the key of another project."""
        self.is_another = True

    def become_ours(self) -> None:
        """Put the right key back."""
        self.is_another = False


async def stopped_at(world: World, event: str, project: Project) -> None:
    """Run until *event*, when the daemon is stopped and the key is replaced by a wrong one."""
    daemon = Daemon(settings=world.settings(), clock=world.clock)

    def stop() -> None:
        daemon.stop()
        project.become_another()

    with overheard(**{event: stop}):
        await world.run(daemon)


@pytest.mark.parametrize("moment", ["stage_retried", "provider_recalled"])
async def test_an_unclear_create_is_not_repeated_with_a_key_of_another_project(
    tmp_path: Path, moment: str
) -> None:
    """A list that does not show a batch proves nothing if it is not the list of our account.

    Be the right key put back after the other account was asked about the batch, or before.
    """
    async with simulated(tmp_path, overrides=PATIENT) as world:
        project = Project(world)
        world.simulator.faults.add(Fault(route="batches.create", point="after", action="cut"))
        world.drop("f.jsonl", questions(3))
        await stopped_at(world, "batch_unclear", project)

        with overheard(**{moment: project.become_ours}) as lines:
            assert await world.drain()

        hold(world, "f.jsonl")
        assert [line["event"] for line in lines].count("batch.recalled") == 1


async def test_a_wrong_project_is_said_and_waited_out(tmp_path: Path) -> None:
    """Hours with the wrong key declare nothing lost, and the log says what is wrong."""
    async with simulated(tmp_path, overrides=PATIENT) as world:
        project = Project(world)
        world.drop("f.jsonl", questions(3))
        await stopped_at(world, "batch_created", project)
        heard = 0

        def hear() -> None:
            nonlocal heard
            heard += 1

            if world.clock.now() > START + DAY_S / 6:
                project.become_ours()

        with overheard(stage_retried=hear) as lines:
            assert await world.drain()

        hold(world, "f.jsonl")
        assert heard > 4
        assert any("another project" in line.get("reason", "") for line in lines)


async def test_an_unclear_create_in_an_account_that_never_answers_ends_in_errors(
    tmp_path: Path,
) -> None:
    """With a wrong key for longer than `max_age` nothing is bought, and every id is an error."""
    async with simulated(tmp_path, overrides={"retry": {"max_age": "4h"}}) as world:
        project = Project(world)
        world.simulator.faults.add(Fault(route="batches.create", point="before", action="cut"))
        world.drop("f.jsonl", questions(3))
        await stopped_at(world, "batch_unclear", project)

        assert await world.drain()

        world.assert_conserved("f.jsonl", ["q0", "q1", "q2"])
        assert world.simulator.ledger.creations == []
        assert {line["error"]["code"] for line in world.errors("f.jsonl")} == {"max_age_exceeded"}


class SetClock:
    """The time of a machine whose clock is wrong by *offset_s*."""

    def __init__(self, right: FakeClock, offset_s: float) -> None:
        """Go with *right*."""
        self._right = right
        self._offset_s = offset_s
        self.monotonic = right.monotonic
        self.wait = right.wait

    def now(self) -> float:
        """Return the wrong time."""
        return self._right.now() + self._offset_s


async def test_a_slow_clock_reads_the_list_far_enough(tmp_path: Path) -> None:
    """How far back a batch is in the list is told by the provider's clock alone."""
    single = {**PATIENT, "providers": {"openai": {"max_requests": 1}}}

    async with simulated(tmp_path, overrides=single) as world:
        world.drop("f.jsonl", questions(6))
        world.simulator.add_foreign_batches(250, created_at=START + 60)
        daemon = Daemon(settings=world.settings(), clock=SetClock(world.clock, -DAY_S))

        with overheard(job_tidied=daemon.stop):
            await world.run(daemon)

        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(6)])
        world.assert_bought_once()
        assert world.simulator.ledger.calls["batches.get"] < 20  # not each of them at each poll


@pytest.mark.parametrize("wrong_by_s", [DAY_S, 30 * DAY_S, -DAY_S], ids=["day", "month", "behind"])
@pytest.mark.parametrize("moment", ["batch_unclear", "batch_recalled"])
async def test_a_clock_set_between_two_runs(tmp_path: Path, wrong_by_s: float, moment: str) -> None:
    """A machine whose clock was wrong and is set while nothing runs buys nothing again.

    The list has hundreds of younger batches by then, so ours is not on its first page.
    """
    async with simulated(tmp_path, overrides=PATIENT) as world:
        world.simulator.faults.add(Fault(route="batches.create", point="after", action="cut"))
        world.drop("f.jsonl", questions(3))
        daemon = Daemon(settings=world.settings(), clock=SetClock(world.clock, wrong_by_s))

        with overheard(**{moment: daemon.stop}):
            await world.run(daemon)

        world.clock.pass_time(3 * 3600)
        world.simulator.add_foreign_batches(300)

        with overheard() as lines:
            assert await world.drain()

        hold(world, "f.jsonl")
        assert world.clock.monotonic() < DAY_S / 2, lines
