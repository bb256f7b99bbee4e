from __future__ import annotations

import time

import anyio
import pytest

from promptspool.clock import Bell, Clock, ScaledClock, SystemClock
from world import START, FakeClock

pytestmark = pytest.mark.anyio


async def test_a_bell_rung_twice_rings_once() -> None:
    """Rings do not add up, and forgetting them forgets all."""
    bell = Bell()

    assert not bell.is_rung()

    bell.ring()
    bell.ring()

    assert bell.is_rung()

    await bell.wait()
    bell.clear()

    assert not bell.is_rung()

    bell.clear()
    bell.ring()

    assert bell.is_rung()


@pytest.mark.parametrize("clock", [SystemClock(), ScaledClock(1000.0), FakeClock()])
async def test_a_ring_before_the_wait_ends_it(clock: Clock) -> None:
    """What happened between looking for work and waiting for it is not slept over."""
    bell = Bell()
    bell.ring()

    with anyio.fail_after(5):
        await clock.wait(bell, 3600.0)


@pytest.mark.parametrize("clock", [SystemClock(), ScaledClock(1000.0)])
async def test_a_ring_during_the_wait_ends_it(clock: Clock) -> None:
    """Whoever waits is woken by a ring, long before the time is over."""
    bell = Bell()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clock.wait, bell, 3600.0)
            await anyio.wait_all_tasks_blocked()
            bell.ring()


@pytest.mark.parametrize("clock", [SystemClock(), ScaledClock(1000.0), FakeClock()])
@pytest.mark.parametrize("timeout_s", [0.0, -5.0])
async def test_no_time_to_wait_still_lets_others_run(clock: Clock, timeout_s: float) -> None:
    """A wait that is over at once ends without a ring, and gives the others a turn."""
    ran = []

    async def other() -> None:
        ran.append(True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)

        for _ in range(3):
            await clock.wait(Bell(), timeout_s)

    assert ran


async def test_a_wait_ends_by_itself() -> None:
    """Without a ring a wait ends after its time."""
    clock = SystemClock()
    before = clock.monotonic()
    await clock.wait(Bell(), 0.01)

    assert clock.monotonic() - before >= 0.009
    assert abs(clock.now() - time.time()) < 1


@pytest.mark.parametrize("step_s", [-86_400.0, -1.0, 3_600.0, 30 * 86_400.0])
async def test_setting_the_machines_clock_changes_nothing(step_s: float) -> None:
    """Time that is set forwards or backwards while running makes no difference to the daemon."""
    machine = {"wall": 1_800_000_000.0, "boot": 500.0}
    clock = SystemClock(wall=lambda: machine["wall"], passed=lambda: machine["boot"])
    machine["wall"] += step_s

    assert clock.now() == 1_800_000_000.0

    machine["wall"] += 60.0
    machine["boot"] += 60.0

    assert clock.now() == 1_800_000_060.0
    assert SystemClock(wall=lambda: machine["wall"], passed=lambda: 7.0).now() == machine["wall"]


async def test_a_scaled_clock_runs_faster_from_now_on() -> None:
    """Virtual time starts at the real time and passes as many times as fast as asked."""
    clock = ScaledClock(100_000.0)
    before, started = clock.now(), clock.monotonic()
    await SystemClock().wait(Bell(), 0.01)

    assert clock.now() - before >= 900.0
    assert clock.monotonic() - started < 5


async def test_the_fake_clock_moves_only_when_told() -> None:
    """The clock of the tests stands still, and wakes exactly those whose time has come."""
    clock = FakeClock()
    bells = Bell(), Bell()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for bell, timeout_s in zip(bells, (10.0, 20.0), strict=True):
                tasks.start_soon(clock.wait, bell, timeout_s)

            await anyio.wait_all_tasks_blocked()
            clock.pass_time(10.0)

            assert [bell.is_rung() for bell in bells] == [True, False]
            assert clock.now() == START + 10.0

            clock.pass_time(10.0)
