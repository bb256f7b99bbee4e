"""Power cuts: what was never synced is gone, and the next run finishes all the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crash.mortal import Fate, mortal
from crash.power import Platter
from crash.scene import Calm, assert_finished, live, names, put_back, sample, staged
from promptspool import spool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crash.tally import Tally

pytestmark = pytest.mark.anyio

CUTS = 5

OLDER = 12
"""A database with `synchronous=NORMAL` may lose every commit since the last checkpoint; up to so
many are taken away here."""


@pytest.mark.parametrize("kept", ["synced", "names", "older"])
async def test_a_power_cut_at_any_step_costs_only_time(
    tmp_path: Path, calm: Calm, tally: Tally, part: int, kept: str
) -> None:
    """After a power cut the next run delivers the same bytes, and buys nothing again.

    Of the files, only what was synced survives, or all names with what was synced of each; of the
    database, every commit, or all but the last ones.
    """
    for at in sample(range(1, len(calm.steps) + 1), CUTS, part):
        async with staged(tmp_path / f"{at}") as world:
            platter = Platter(world.spool.root)
            fate = Fate(at=at, database=world.spool.database, watch=platter.watch)
            await live(world, fate)
            commits = len(fate.copies) - (1 + at % OLDER if kept == "older" else 0)
            put_back(world.spool, fate.copies[commits - 1] if commits > 0 else None)

            if kept == "names":
                platter.cut_contents()
            else:
                platter.cut()

            with tally.point("power cuts", f"{kept}, {commits} commits, {fate.told()}"):
                await assert_finished(world, calm)


async def test_what_is_claimed_is_durable(tmp_path: Path, calm: Calm, tally: Tally) -> None:
    """Once its job is on the way, a dropped file is kept, even if who dropped it synced nothing."""
    async with staged(tmp_path) as world:
        platter = Platter(world.spool.root, unsynced=sorted(world.spool.inbox.iterdir()))
        fate = Fate(at=1, only="POST", database=world.spool.database, watch=platter.watch)
        await live(world, fate)
        put_back(world.spool, fate.copies[-1])
        platter.cut()

        with tally.point("power cuts", "after the claims"):
            await assert_finished(world, calm)


async def test_a_spool_that_was_just_made_is_durable(
    tmp_path: Path, calm: Calm, tally: Tally
) -> None:
    """The folders of a spool are durable before the first file is moved into one of them."""
    async with staged(tmp_path) as world:
        for folder in (world.spool.working, world.spool.outbox, world.spool.done):
            folder.rmdir()

        platter = Platter(world.spool.root)
        fate = Fate(at=1, only="POST", database=world.spool.database, watch=platter.watch)
        await live(world, fate)
        put_back(world.spool, fate.copies[-1])
        platter.cut()

        with tally.point("power cuts", "on the first day"):
            await assert_finished(world, calm)


# The shadow itself: a daemon that forgets to sync must not get away with it.


def syncs_no_folder(path: Path, flags: int) -> None:
    """Sync files, and the names in the root alone; instead of `spool._sync`."""
    if not flags & os.O_DIRECTORY or path.name == "spool":
        _REALLY(path, flags)


def syncs_no_file(path: Path, flags: int) -> None:
    """Sync names only; instead of `spool._sync`."""
    if flags & os.O_DIRECTORY:
        _REALLY(path, flags)


_REALLY: Callable[[Path, int], None] = spool._sync  # noqa: SLF001 - every daemon goes by it


@pytest.mark.parametrize(
    ("wrong", "only"), [(syncs_no_folder, "POST /v1/batches"), (syncs_no_file, "POST /v1/files")]
)
async def test_a_daemon_that_does_not_sync_is_noticed(
    tmp_path: Path,
    calm: Calm,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[Path, int], None],
    only: str,
) -> None:
    """Where names, or contents, are left to the cache, a power cut breaks the laws, and it shows.

    It comes when batches are bought that the jobs then forget, and when there are request files.
    """
    async with staged(tmp_path) as world:
        platter = Platter(world.spool.root)
        fate = Fate(at=4, only=only, after=True, database=world.spool.database, watch=platter.watch)

        with monkeypatch.context() as patch:
            patch.setattr(spool, "_sync", wrong)
            await live(world, fate)

        assert [call for call in platter.hasty if "probe" not in call]
        put_back(world.spool, fate.copies[-1])
        platter.cut()

        with pytest.raises(AssertionError):
            await assert_finished(world, calm)


def test_the_shadow_of_files_and_names(tmp_path: Path) -> None:
    """What was synced survives a cut, under the names that were, and the rest is gone."""
    root = tmp_path / "spool"
    (root / "state").mkdir(parents=True)
    (root / "old").write_text("old")
    platter = Platter(root)
    inode = (root / "old").stat().st_ino

    with mortal(Fate(watch=platter.watch), root):
        for name in ("written", "synced"):
            (root / name).write_text(name)

        spool.sync_file(root / "synced")
        (root / "synced").rename(root / "renamed")
        (root / "folder").mkdir()
        spool.sync_folder(root)
        (root / "renamed").write_text("more")
        (root / "folder" / "late").write_text("late")
        spool.sync_file(root / "folder" / "late")
        (root / "old").rename(root / "folder" / "old")
        (root / "renamed").unlink()

    platter.cut()

    assert names(root) == ["folder", "old", "renamed", "state", "written"]
    assert names(root / "folder") == []
    assert [(root / name).read_text() for name in ("old", "renamed", "written")] == [
        "old",
        "synced",
        "",
    ]
    assert (root / "old").stat().st_ino == inode


def test_the_shadow_of_contents(tmp_path: Path) -> None:
    """A cut that spares the names leaves of each file what was synced of it."""
    root = tmp_path / "spool"
    root.mkdir()
    platter = Platter(root)

    with mortal(Fate(watch=platter.watch), root):
        (root / "first").write_text("first")
        spool.sync_file(root / "first")
        (root / "first").rename(root / "second")
        (root / "second").write_text("changed")
        (root / "third").write_text("third")

    platter.cut_contents()

    assert {path.name: path.read_text() for path in root.iterdir()} == {
        "second": "first",
        "third": "",
    }
