"""A spool that is moved, copied or put back: what the README says of it."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.app import Daemon
from promptspool.simulator import SimulatorSettings
from promptspool.spool import Spool
from world import World, overheard, simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

IDS = [f"q{n}" for n in range(6)]
ROWS: list[dict[str, Any]] = [{"id": name, "prompt": f"Why {name}?"} for name in IDS]
SMALL = {"providers": {"openai": {"max_requests": 4}}}


@asynccontextmanager
async def under_way(root: Path) -> AsyncIterator[World]:
    """Yield a world whose daemon was stopped while its batches run at the provider."""
    settings = SimulatorSettings(run_s=600)

    async with simulated(root, overrides=SMALL, settings=settings) as world:
        world.drop("f.jsonl", ROWS)
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        with overheard(batch_created=daemon.stop):
            await world.run(daemon)

        yield world


def elsewhere(world: World, root: Path) -> World:
    """Return the same world with its spool at another place."""
    return World(
        root=root,
        clock=world.clock,
        simulator=world.simulator,
        base_url=world.base_url,
        overrides=world.overrides,
    )


async def test_a_spool_that_is_moved_goes_on(tmp_path: Path) -> None:
    """Stopped, moved and started at its new place, it finishes what it had begun."""
    async with under_way(tmp_path / "here") as world:
        there = elsewhere(world, tmp_path / "there")
        there.root.mkdir()
        world.spool.root.rename(there.spool.root)

        assert await there.drain()
        there.assert_conserved("f.jsonl", IDS)
        there.assert_bought_once()


@pytest.mark.parametrize("database", ["whole", "torn", "none"])
async def test_a_backup_that_is_put_back_buys_nothing_again(tmp_path: Path, database: str) -> None:
    """A copy of a spool, with any database or none, finds at the provider what it had begun."""
    async with under_way(tmp_path / "here") as world:
        backup = tmp_path / "backup"
        shutil.copytree(world.spool.root, backup)

        match database:
            case "torn":
                path = backup / "state/promptspool.db"
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                (backup / "state/promptspool.db-wal").unlink(missing_ok=True)
            case "none":
                shutil.rmtree(backup / "state")
            case _:
                pass

        shutil.rmtree(world.spool.root)
        backup.rename(world.spool.root)

        if database == "torn":  # it says so, and is moved away
            for path in world.spool.state.glob("promptspool.db*"):
                path.unlink()

        assert await world.drain()
        world.assert_conserved("f.jsonl", IDS)
        world.assert_bought_once()
        assert len(world.simulator.ledger.creations) == 2


async def test_a_copy_becomes_a_spool_of_its_own(tmp_path: Path) -> None:
    """Without its id, its jobs and its state, a copy touches nothing of the first one's."""
    async with under_way(tmp_path / "here") as world:
        copy = elsewhere(world, tmp_path / "copy")
        copy.root.mkdir()
        shutil.copytree(world.spool.root, copy.spool.root)
        (copy.spool.root / ".promptspool").unlink()
        shutil.rmtree(copy.spool.state)

        for folder in copy.spool.working.iterdir():
            shutil.rmtree(folder)

        copy.drop("g.jsonl", ROWS)

        assert await copy.drain()
        copy.assert_conserved("g.jsonl", IDS)
        assert Spool(copy.spool.root).identity() != world.spool.identity()
        assert await world.drain()
        world.assert_conserved("f.jsonl", IDS)
        world.assert_bought_once()
        assert len(world.simulator.ledger.creations) == 4
