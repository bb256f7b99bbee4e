"""What may go wrong around commands, limits, notices and reloads, and must not."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from crash.mortal import Fate, mortal
from promptspool.app import Daemon
from promptspool.control import ANSWER, Command, leave, take_answer, waiting
from promptspool.errands import HOUSE
from promptspool.model import JobId
from promptspool.reload import Reloader
from promptspool.settings import Settings, load
from promptspool.simulator import BatchFault, Fault, SimulatorSettings
from promptspool.spool import Spool
from promptspool.store import opening
from world import START, overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from promptspool.control import Verb
    from promptspool.dispatcher import Dispatcher
    from world import World

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
DOLLAR = {"input": 100_000.0, "output": 0.0, "batch_input": 50_000.0}


def questions(count: int) -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0` and so on."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?"} for n in range(count)]


def names(count: int) -> list[str]:
    """Return the ids of so many questions."""
    return [f"q{n}" for n in range(count)]


def column(world: World, query: str) -> list[Any]:
    """Return one column of the database."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        return [row[0] for row in connection.execute(query)]


def told(world: World, verb: Verb, **more: Any) -> str:
    """Leave a command about the only job, if there is one, and return the command's name."""
    world.spool.make()
    jobs = column(world, "SELECT id FROM jobs") if world.spool.database.exists() else []
    job = JobId(jobs[0]) if jobs else None

    return leave(world.spool, Command(verb=verb, job=job, left_at=world.clock.now(), **more))


def drainer(world: World) -> Daemon:
    """Return a daemon that ends when all is done."""
    return Daemon(settings=world.settings(), clock=world.clock, is_draining=True)


def commanding(
    daemon: Daemon, world: World, verb: Verb, *, when: Callable[[], bool], **more: Any
) -> list[str]:
    """Leave a command in the turn of the loop that finds *when* true, which also obeys it."""
    left: list[str] = []

    async def turn(_dispatcher: Dispatcher) -> None:
        if not left and when():
            left.append(told(world, verb, **more))

    daemon.on_turn = turn

    return left


# Limits of cost.


async def test_what_a_month_held_is_asked_in_the_next(tmp_path: Path) -> None:
    """Waiting for a new month, which may be four weeks away, makes nothing too old to be sent."""
    overrides = {
        "spool": {"rescan": DAY_S},
        "providers": {"openai": {"max_cost_per_month": 15.0}},
        "prices": {"gpt-5-mini": DOLLAR},
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        for number in range(2):
            world.drop(f"f{number}.jsonl", questions(15))

        assert await world.drain()

        for number in range(2):
            world.assert_conserved(f"f{number}.jsonl", names(15))
            assert world.errors(f"f{number}.jsonl") == []

        assert world.clock.monotonic() > 3 * DAY_S


async def test_what_is_released_late_is_asked(tmp_path: Path) -> None:
    """A job that was held over a long weekend goes on when a person lets it go."""
    overrides = {
        "providers": {"openai": {"max_cost": 0.1}},
        "prices": {"gpt-5-mini": DOLLAR},
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("f.jsonl", questions(9))
        assert not await world.drain()
        world.clock.pass_time(4 * DAY_S)
        told(world, "release")

        assert await world.drain()

        world.assert_conserved("f.jsonl", names(9))
        assert world.errors("f.jsonl") == []


async def test_a_price_that_was_missing_lets_go_what_it_held(tmp_path: Path) -> None:
    """Whoever follows the advice, and writes the price into [prices], is rid of the hold."""
    limited: dict[str, Any] = {
        "providers": {"openai": {"max_cost": 1000.0}},
        "profiles": {"default": {"model": "nobody-knows-1"}},
    }

    async with simulated(tmp_path, overrides=limited) as world:
        world.drop("f.jsonl", questions(2))
        assert not await world.drain()
        assert column(world, "SELECT status FROM jobs") == ["held"]

        world.overrides = limited | {"prices": {"nobody-knows-1": {"input": 1.0, "output": 1.0}}}

        assert await world.drain()
        world.assert_conserved("f.jsonl", names(2))


# Commands.


async def test_a_cancelled_look_up_keeps_its_grace(tmp_path: Path) -> None:
    """A batch that a list shows late is found and ended, whenever its job is cancelled."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=3000)) as world:
        world.simulator.faults.add(Fault(route="batches.create", status=503, point="after"))
        world.simulator.faults.add_batch(BatchFault(list_lag_s=40.0))
        world.drop("f.jsonl", questions(5))
        daemon = drainer(world)

        def act() -> bool:
            return column(world, "SELECT looks FROM batches WHERE status = 'unclear'") == [1]

        commanding(daemon, world, "cancel", when=act)

        assert await world.run(daemon)

        world.assert_conserved("f.jsonl", names(5))
        assert len(world.simulator.ledger.creations) == 1
        assert world.simulator.ledger.calls["batches.cancel"] == 1


async def test_cancelling_loses_no_answers_that_cannot_be_fetched_now(tmp_path: Path) -> None:
    """What is answered and paid for is delivered, though downloads fail when it is cancelled."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=60)) as world:
        world.simulator.faults.add(Fault(route="files.content", times=120, status=503))
        world.drop("f.jsonl", questions(5))
        daemon = drainer(world)

        def act() -> bool:
            return column(world, "SELECT status FROM batches WHERE failures > 2") == ["ended"]

        commanding(daemon, world, "cancel", when=act)

        assert await world.run(daemon)

        world.assert_conserved("f.jsonl", names(5))
        assert len(world.results("f.jsonl")) == 5


async def test_what_was_cancelled_is_not_bought_by_a_new_database(tmp_path: Path) -> None:
    """A job that a person has cancelled stays so when the database is lost."""
    overrides = {"providers": {"openai": {"max_requests": 4}}}

    async with simulated(
        tmp_path, settings=SimulatorSettings(run_s=600, cancel_s=300), overrides=overrides
    ) as world:
        world.drop("f.jsonl", questions(4))
        left: list[str] = []

        def cancel() -> None:
            if not left:
                left.append(told(world, "cancel"))

        daemon = drainer(world)

        with overheard(batch_created=cancel, job_cancelled=daemon.stop):
            await world.run(daemon)

        assert take_answer(world.spool, left[0], within_s=0.0)

        for path in world.spool.database.parent.glob("promptspool.db*"):
            path.unlink()

        assert await world.drain()
        world.assert_conserved("f.jsonl", names(4))
        assert world.simulator.ledger.calls["batches.create"] == 1


def refuse_answers(world: World, *left: str) -> None:
    """Let commands be read but not answered, as on a disk that is full."""
    for name in left:
        (world.spool.control / f"{name}{ANSWER}").mkdir()


@pytest.mark.parametrize("verbs", [("reload",), ("clean",), ("pause", "resume")])
async def test_a_command_that_cannot_be_answered_makes_no_daemon_spin(
    tmp_path: Path, verbs: tuple[Verb, ...]
) -> None:
    """The loop sleeps, and does not carry the same command out again and again."""
    async with simulated(tmp_path) as world:
        settings = world.settings()
        turns = 0
        daemon = Daemon(settings=settings, clock=world.clock)
        daemon.reloader = Reloader(world.settings, settings)

        async def turn(dispatcher: Dispatcher) -> None:
            nonlocal turns
            turns += 1
            await daemon.renew(dispatcher)

            if not dispatcher.is_stopping and (turns > 300 or world.clock.monotonic() > 600):
                daemon.stop()

        daemon.on_turn = turn
        refuse_answers(world, *(told(world, verb) for verb in verbs))

        with overheard() as lines:
            await world.run(daemon)

        assert world.clock.monotonic() > 600, (turns, [line["event"] for line in lines][-6:])


async def test_the_loop_sleeps_while_the_house_is_kept(tmp_path: Path) -> None:
    """Housekeeping goes on beside the loop, which has no reason to turn until it has ended."""
    async with simulated(tmp_path) as world:
        world.spool.make()
        old = world.spool.control / f"old{ANSWER}"
        old.touch()
        os.utime(old, (0, 0))
        turns, has_turned = 0, threading.Event()
        daemon = drainer(world)

        @contextmanager
        def slow(step: str, paths: Sequence[Path]) -> Iterator[None]:
            if step == "unlink" and old in paths:
                has_turned.wait(1.0)

            yield

        async def turn(dispatcher: Dispatcher) -> None:
            nonlocal turns
            turns += HOUSE in dispatcher.in_progress

            if turns > 100:
                has_turned.set()

        daemon.on_turn = turn

        with mortal(Fate(watch=slow), world.spool.root):
            assert await world.run(daemon)

        assert not old.exists()
        assert turns < 10


async def test_forgetting_a_job_whose_notice_is_under_way(tmp_path: Path) -> None:
    """A person may forget a job while somebody is still being told of it; no bug is met."""
    started = tmp_path / "started"
    script = f"touch {started}; sleep 1"
    overrides = {"profiles": {"default": {"notify": {"command": ["/bin/sh", "-c", script]}}}}

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("f.jsonl", questions(3))
        daemon = drainer(world)

        def is_told() -> bool:
            return started.exists() and column(world, "SELECT status FROM jobs") == ["done"]

        commanding(daemon, world, "forget", when=is_told)

        with overheard() as lines:
            assert await world.run(daemon)

        assert column(world, "SELECT id FROM jobs") == []
        assert [line for line in lines if line["event"] == "store.refused"] == []


# A configuration that is no configuration.


def configured(world: World, path: Path) -> None:
    """Write the configuration of a world into a file."""
    path.write_text(
        f'[spool]\npath = "{world.root}/spool"\n[providers.openai]\nbase_url = "{world.base_url}"\n'
        f'api_key_file = "{world.root}/key"\n[profiles.default]\nmodel = "gpt-5-mini"\n'
    )


def load_of(path: Path) -> Callable[[], Settings]:
    """Return what loads the configuration from a file."""
    return lambda: load(path, environ={})


async def test_an_empty_configuration_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """A file that an editor has emptied on a full disk rejects nobody's prompts."""
    async with simulated(tmp_path) as world:
        world.settings()  # writes the key
        config = tmp_path / "promptspool.toml"
        configured(world, config)
        settings = load_of(config)()
        daemon = Daemon(settings=settings, clock=world.clock, is_draining=True, turn_s=30.0)
        daemon.reloader = Reloader(load_of(config), settings)

        async def turn(dispatcher: Dispatcher) -> None:
            await daemon.renew(dispatcher)

            if world.clock.monotonic() > 7200 and not dispatcher.is_stopping:
                daemon.stop()

        daemon.on_turn = turn
        world.drop("f.jsonl", questions(3))

        def empty() -> None:
            if config.read_text():
                config.write_text("")

        def drop() -> None:
            if not config_read:
                world.drop("g.jsonl", questions(3))
                config_read.append(True)

        config_read: list[bool] = []

        with overheard(batch_created=empty, config_reloaded=drop, config_refused=drop):
            await world.run(daemon)

        assert config_read
        assert world.rejection("g.jsonl") is None
        world.assert_conserved("f.jsonl", names(3))
        world.assert_conserved("g.jsonl", names(3))


def test_a_pipe_in_place_of_the_configuration_holds_nobody_up(tmp_path: Path) -> None:
    """What is no file is refused like any that cannot be read; nobody waits for its writer."""
    config = tmp_path / "promptspool.toml"
    config.write_text("")
    reloader = Reloader(load_of(config), load_of(config)())
    config.unlink()
    os.mkfifo(config)
    reader = threading.Thread(target=reloader.loaded, daemon=True)
    reader.start()
    reader.join(2.0)
    is_stuck = reader.is_alive()

    if is_stuck:
        config.open("wb").close()
        reader.join()

    assert not is_stuck


# A database that refuses.


async def test_a_loop_that_waits_for_the_database_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that cannot be noted on a full disk is waited for by a loop that is alive."""
    monkeypatch.setattr(opening, "BUSY_MS", 20)

    async with simulated(tmp_path) as world:
        other: list[sqlite3.Connection] = []
        beats: list[float] = []
        daemon = drainer(world)

        async def turn(dispatcher: Dispatcher) -> None:
            if dispatcher.is_ready and not other:
                other.append(sqlite3.connect(world.spool.database, isolation_level=None))
                other[0].execute("BEGIN IMMEDIATE")
                told(world, "pause")
            elif other:
                beats.append(world.clock.monotonic())

        daemon.on_turn = daemon.on_beat = turn
        daemon.turn_s = 10.0

        with overheard():
            with anyio.move_on_after(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(world.run, daemon)

                    while world.clock.monotonic() < 60:  # noqa: ASYNC110 - the test's own time
                        await anyio.sleep(0.01)

                    other[0].close()
                    daemon.stop()

        assert len([at for at in beats if at < 60]) >= 3


async def test_cancelling_with_a_wrong_key_loses_no_answers(tmp_path: Path) -> None:
    """A key of another project is waited out for a cancelled job as for any other."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=60)) as world:
        is_wrong = False
        nothing = '{"object":"list","data":[],"has_more":false}'
        world.simulator.faults.add(
            Fault(route="batches.get", times=None, status=404),
            Fault(route="files.get", times=None, status=404),
            Fault(route="batches.list", times=None, status=200, body=nothing),
            Fault(route="files.list", times=None, status=200, body=nothing),
            when=lambda _: is_wrong,
        )
        world.drop("f.jsonl", questions(5))
        daemon = drainer(world)
        left: list[str] = []

        async def turn(_dispatcher: Dispatcher) -> None:
            nonlocal is_wrong

            if not left and world.simulator.ledger.creations:
                is_wrong = True
                left.append(told(world, "cancel"))

            if world.clock.monotonic() > 5 * 3600:
                is_wrong = False

        daemon.on_turn = turn
        daemon.turn_s = 600.0

        with anyio.fail_after(30):
            assert await world.run(daemon)

        world.assert_conserved("f.jsonl", names(5))
        assert len(world.results("f.jsonl")) == 5


async def test_a_batch_for_another_address_takes_nobodys_turn(tmp_path: Path) -> None:
    """What cannot be sent since its address is gone does not keep the others from being sent."""
    overrides: dict[str, Any] = {
        "providers": {"openai": {"max_tokens_enqueued": {"gpt-5-mini": 100}}}
    }

    async with (
        simulated(
            tmp_path / "a", settings=SimulatorSettings(run_s=7200), overrides=overrides
        ) as old,
        simulated(tmp_path / "b", clock=old.clock, overrides=overrides) as new,
    ):
        old.drop("a.jsonl", questions(9))
        old.drop("b.jsonl", questions(9))
        daemon = drainer(old)

        async def turn(_dispatcher: Dispatcher) -> None:
            if old.clock.monotonic() > 3600:
                daemon.stop()

        daemon.on_turn, daemon.turn_s = turn, 600.0
        await old.run(daemon)
        assert column(old, "SELECT id FROM batches WHERE crowded_at IS NOT NULL")

        old.base_url = new.base_url
        old.drop("c.jsonl", questions(9))
        daemon = drainer(old)

        async def later(_dispatcher: Dispatcher) -> None:
            if old.clock.monotonic() > 6 * 3600:
                daemon.stop()

        daemon.on_turn, daemon.turn_s = later, 600.0

        with anyio.fail_after(30):
            await old.run(daemon)

        old.assert_conserved("c.jsonl", names(9))


async def test_a_reload_while_a_command_waits_for_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that is saved while the disk is full is read, and ends no daemon."""
    monkeypatch.setattr(opening, "BUSY_MS", 20)

    async with simulated(tmp_path) as world:
        settings = world.settings()
        other: list[sqlite3.Connection] = []
        since = 0.0
        daemon = Daemon(settings=settings, clock=world.clock, is_draining=True)
        daemon.reloader = Reloader(world.settings, settings)
        world.drop("f.jsonl", questions(3))

        async def beat(dispatcher: Dispatcher) -> None:
            nonlocal since

            if not other and world.simulator.ledger.creations and not dispatcher.in_progress:
                told(world, "cancel")
                other.append(sqlite3.connect(world.spool.database, isolation_level=None))
                other[0].execute("BEGIN IMMEDIATE")
                since = world.clock.monotonic()
            elif other and world.clock.monotonic() > since + 30:
                other[0].close()
            elif other and world.clock.monotonic() > since:
                dispatcher.is_reload_wanted = True

        daemon.on_beat, daemon.on_turn = beat, daemon.renew
        daemon.turn_s = 300.0

        with anyio.fail_after(20):
            assert await world.run(daemon)

        world.assert_conserved("f.jsonl", names(3))


async def test_a_paused_daemon_is_ready_after_a_restart(tmp_path: Path) -> None:
    """Whoever waits for a start hears of it, though a person has paused the daemon before."""
    async with simulated(tmp_path) as world:
        told(world, "pause")
        said: list[bool] = []
        daemon = drainer(world)
        daemon.on_ready = lambda: said.append(True)

        async def turn(dispatcher: Dispatcher) -> None:
            if world.clock.monotonic() > 3600 and not dispatcher.is_stopping:
                daemon.stop()

        daemon.on_turn = turn

        with anyio.fail_after(20):
            await world.run(daemon)

        assert said == [True]


async def test_a_flood_of_commands_does_not_stop_the_loop(tmp_path: Path) -> None:
    """The loop shows that it lives while hundreds of commands are carried out."""
    async with simulated(tmp_path) as world:
        world.spool.make()

        for _ in range(500):
            told(world, "ping")

        daemon = drainer(world)
        left: list[int] = []

        async def beat(_dispatcher: Dispatcher) -> None:
            left.append(len(list(world.spool.control.glob("*.command.json"))))

        daemon.on_beat = beat
        assert await world.run(daemon)

        assert not list(world.spool.control.glob("*.command.json"))
        assert len(set(left)) > 5, left[:9]


async def test_a_job_that_stays_held_is_told_of_once(tmp_path: Path) -> None:
    """Starts and reloads look at what is held again, and nobody is told again of what stays so."""
    overrides = {
        "providers": {"openai": {"max_cost_per_day": 10.0}},
        "prices": {"gpt-5-mini": DOLLAR},
        "profiles": {"default": {"notify": {"command": ["/bin/true"], "on": ["held"]}}},
    }

    async with simulated(
        tmp_path, settings=SimulatorSettings(run_s=60), overrides=overrides
    ) as world:
        for number in range(2):
            world.drop(f"f{number}.jsonl", questions(12))

        with overheard() as lines:
            for _ in range(4):
                daemon = drainer(world)

                async def turn(dispatcher: Dispatcher) -> None:
                    is_held = "held" in column(world, "SELECT status FROM jobs")
                    is_quiet = not dispatcher.in_progress and dispatcher.is_ready

                    if is_held and is_quiet and not dispatcher.is_stopping:
                        dispatcher.stop()

                daemon.on_turn = turn

                with anyio.fail_after(20):
                    await world.run(daemon)

        assert world.clock.monotonic() < DAY_S / 2
        assert [line["event"] for line in lines].count("job.held") == 1
        assert column(world, "SELECT count(*) FROM notices") == [1]


def test_commands_of_one_second_keep_their_order(tmp_path: Path) -> None:
    """What was left later is carried out later: a resume after its pause."""
    spool = Spool(tmp_path)
    spool.make()
    left = [
        leave(spool, Command(verb="ping", left_at=START + number / 100)) for number in range(20)
    ]

    assert [one.id for one in waiting(spool)] == left


async def test_commands_that_wait_keep_no_others_from_being_heard(tmp_path: Path) -> None:
    """Scores of commands that can be carried out much later make no loop spin, and hide no ping."""
    async with simulated(tmp_path) as world:
        told(world, "pause", provider="openai")
        world.drop("f.jsonl", questions(3))
        assert not await world.drain()

        world.simulator.faults.add(Fault(route="batches.list", times=None, status=503))
        cancels = [told(world, "cancel") for _ in range(60)]
        world.clock.pass_time(1.0)
        ping = told(world, "ping")
        daemon = Daemon(settings=world.settings(), clock=world.clock)
        turns = 0

        async def turn(dispatcher: Dispatcher) -> None:
            nonlocal turns
            turns += 1

            if not dispatcher.is_stopping and (turns > 300 or world.clock.monotonic() > 600):
                daemon.stop()

        daemon.on_turn = turn

        with anyio.fail_after(30):
            await world.run(daemon)

        assert take_answer(world.spool, cancels[0], within_s=0.0) is None
        assert take_answer(world.spool, ping, within_s=0.0) is not None
        assert turns < 300
