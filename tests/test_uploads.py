"""Uploads: cut off, refused, not seen yet, answered in vain; nothing of ours is left behind."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from crash.mortal import Death, Fate, mortal
from promptspool.app import Daemon
from promptspool.simulator import BatchFault, Fault, FileFault, SimulatorSettings
from world import overheard, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0


def questions(count: int) -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0`, `q1` …."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?"} for n in range(count)]


def hold(world: World, *names: str) -> None:
    """Hold the laws over *names*, three questions each: all answered, and nothing left behind."""
    for name in names:
        world.assert_conserved(name, ["q0", "q1", "q2"])
        assert world.errors(name) == []

    world.assert_bought_once()
    ledger = world.simulator.ledger
    assert {upload.file_id for upload in ledger.uploads} <= set(ledger.deletions)


@pytest.mark.parametrize("after_bytes", [0, 100, 1_000_000], ids=["head", "middle", "end"])
async def test_an_upload_reset_on_the_way_is_sent_again(tmp_path: Path, after_bytes: int) -> None:
    """A connection reset anywhere in an upload costs only the time to send it again."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(
            Fault(route="files.create", times=3, action="sever", after_bytes=after_bytes)
        )
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        hold(world, "f.jsonl")
        assert len(world.simulator.ledger.uploads) == 1


async def test_an_upload_too_large_is_split_and_goes_on(tmp_path: Path) -> None:
    """What is refused with 413 is made smaller until it fits; one request alone is an error."""
    async with simulated(tmp_path, settings=SimulatorSettings(max_bytes=1_000)) as world:
        rows = questions(12)
        rows[5]["prompt"] *= 100
        world.drop("f.jsonl", rows)

        assert await world.drain()

        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(12)])
        world.assert_bought_once()
        assert [line["custom_id"] for line in world.errors("f.jsonl")] == ["q5"]
        assert world.errors("f.jsonl")[0]["error"]["code"] == "too_large"
        assert len(world.simulator.ledger.creations) > 1


@pytest.mark.parametrize(("ready_lag_s", "uploads"), [(60.0, 1), (400.0, 2)])
async def test_a_good_upload_that_is_not_found_yet(
    tmp_path: Path, ready_lag_s: float, uploads: int
) -> None:
    """No such file, after a good upload, is waited out; only after minutes is it sent again."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_file(FileFault(ready_lag_s=ready_lag_s))
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        hold(world, "f.jsonl")
        assert len(world.simulator.ledger.uploads) == uploads
        assert len(world.simulator.ledger.creations) == 1


async def test_a_file_that_is_never_found_is_not_sent_for_days(tmp_path: Path) -> None:
    """A provider that never finds what it took is believed after some uploads; none is left."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_file(FileFault(ready_lag_s=1e9, times=None))
        world.drop("f.jsonl", questions(1))

        assert await world.drain()

        world.assert_conserved("f.jsonl", ["q0"])
        assert world.errors("f.jsonl")[0]["error"]["code"] == "file_not_found"
        assert len(world.simulator.ledger.uploads) == 6
        assert {upload.file_id for upload in world.simulator.ledger.uploads} <= set(
            world.simulator.ledger.deletions
        )


LOST = [
    Fault(route="files.create", point="after", action="cut"),
    Fault(route="files.create", point="after", action="status", status=503, body="<html>"),
    Fault(route="files.create", point="after", action="garbage"),
    Fault(route="files.create", action="truncate"),
]


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault.action)
async def test_an_upload_whose_answer_is_lost_is_adopted(tmp_path: Path, fault: Fault) -> None:
    """A file that arrived without our hearing of it is found by its name, not sent again."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(fault)
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        hold(world, "f.jsonl")
        assert len(world.simulator.ledger.uploads) == 1


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault.action)
async def test_an_upload_that_was_lost_and_not_listed_is_deleted_later(
    tmp_path: Path, fault: Fault
) -> None:
    """Where the list lags too, the file is sent again, and both are deleted in the end."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(fault)
        world.simulator.faults.add_file(FileFault(list_lag_s=50))
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        hold(world, "f.jsonl")
        assert len(world.simulator.ledger.uploads) == 2


async def test_an_upload_that_died_with_its_process_is_deleted_later(tmp_path: Path) -> None:
    """A process that dies with the answer in its hands leaves no file behind either."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_file(FileFault(list_lag_s=100))
        world.drop("f.jsonl", questions(3))
        fate = Fate(at=1, after=True, only="POST /v1/files")

        with mortal(fate, world.spool.root), pytest.raises(BaseExceptionGroup) as died:
            await world.drain()

        assert died.value.split(Death)[0] is not None
        assert await world.drain()

        hold(world, "f.jsonl")
        assert len(world.simulator.ledger.uploads) == 2


async def test_what_a_vanished_job_had_uploaded_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    """An upload whose job is no more is deleted after a day, with the next job that is tidied."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(stuck_in="in_progress"))
        world.drop("f.jsonl", questions(3))
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        with overheard(batch_created=daemon.stop):
            await world.run(daemon)

        for folder in world.spool.working.iterdir():
            shutil.rmtree(folder)

        world.clock.pass_time(2 * DAY_S)
        world.simulator.faults.clear()
        world.drop("g.jsonl", questions(3))
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        with overheard(batch_created=daemon.stop):
            await world.run(daemon)

        assert await world.drain()

        hold(world, "g.jsonl")


async def test_files_of_another_spool_are_never_deleted(tmp_path: Path) -> None:
    """However old, what another spool on the account has uploaded stays where it is."""
    async with simulated(tmp_path) as world, simulated(tmp_path / "2", clock=world.clock) as other:
        shared = replace(other, base_url=world.base_url, simulator=world.simulator)
        never = {"providers": {"openai": {"cleanup": False}}}
        shared.overrides = never
        shared.drop("f.jsonl", questions(3))

        assert await shared.drain()

        world.clock.pass_time(3 * DAY_S)
        world.simulator.faults.add(LOST[0])
        world.drop("g.jsonl", questions(3))

        assert await world.drain()

        world.assert_conserved("g.jsonl", ["q0", "q1", "q2"])
        theirs, ours = world.simulator.ledger.uploads
        assert ours.file_id in world.simulator.ledger.deletions
        assert theirs.file_id not in world.simulator.ledger.deletions
