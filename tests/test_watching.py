from __future__ import annotations

import errno
import os
import resource
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from promptspool.watching import HAS_INOTIFY, watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not HAS_INOTIFY, reason="watches by inotify, which Linux has"),
]

LIMIT_S = 20.0
"""Real time, against hangs: nothing is expected to take so long."""


@dataclass
class Watched:
    """Two folders that are watched, and what was told of them."""

    inbox: Path
    control: Path
    stop: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    told: set[Path] = field(default_factory=set)
    _news: anyio.Event = field(default_factory=anyio.Event)

    def tell(self, changed: set[Path]) -> None:
        """Take note."""
        self.told |= changed
        self._news.set()

    async def told_of(self, act: Callable[[], object]) -> set[Path]:
        """Return what is told first after *act*."""
        self.told.clear()
        self._news = anyio.Event()
        act()

        with anyio.fail_after(LIMIT_S):
            while not self.told:
                await self._news.wait()
                self._news = anyio.Event()

        return set(self.told)

    async def has_told(self, root: Path) -> None:
        """Wait until *root* is among what was told of since the last act."""
        with anyio.fail_after(LIMIT_S):
            while root not in self.told:
                await self._news.wait()
                self._news = anyio.Event()

    async def is_quiet_of(self, act: Callable[[], object]) -> bool:
        """Tell whether *act* is told nothing of: the next thing that is told is another."""
        self.told.clear()
        act()

        return await self.told_of(self._touch_control) == {self.control}

    def _touch_control(self) -> None:
        (self.control / "a").touch()
        (self.control / "a").unlink()


@asynccontextmanager
async def watched(root: Path, *, has_inotify: bool = True) -> AsyncIterator[Watched]:
    """Yield two folders while they are watched."""
    it = Watched(root / "inbox", root / "control")
    it.inbox.mkdir(exist_ok=True)
    it.control.mkdir(exist_ok=True)

    async def run() -> None:
        await watch((it.inbox, it.control), it.tell, stop=it.stop, has_inotify=has_inotify)
        it.ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)

        with anyio.fail_after(LIMIT_S):
            while not it.told:  # until it is up
                it._touch_control()  # noqa: SLF001 - ours
                await anyio.sleep(0.001)

        await anyio.wait_all_tasks_blocked()
        yield it
        it.stop.set()

    assert it.ended.is_set()


async def test_each_folder_is_told_of_by_itself(tmp_path: Path) -> None:
    """Whoever waits for files is not woken by commands, nor the other way round."""
    async with watched(tmp_path) as it:
        assert await it.told_of((it.inbox / "may.csv").touch) == {it.inbox}
        assert await it.told_of((it.control / "x.command").touch) == {it.control}


async def test_a_rename_into_a_folder_is_told(tmp_path: Path) -> None:
    """A file that is moved in whole, as it should be, is told of."""
    (tmp_path / "may.csv").write_bytes(b"prompt\na\n")

    async with watched(tmp_path) as it:
        assert await it.told_of(lambda: (tmp_path / "may.csv").rename(it.inbox / "may.csv")) == {
            it.inbox
        }


async def test_a_new_folder_is_watched_with_all_below(tmp_path: Path) -> None:
    """What comes into a folder that was made or moved in a moment ago is told of, however deep."""
    (tmp_path / "moved/deep/deeper").mkdir(parents=True)

    async with watched(tmp_path) as it:
        await it.told_of(lambda: (it.inbox / "made/at/once").mkdir(parents=True))
        await anyio.wait_all_tasks_blocked()
        assert await it.told_of((it.inbox / "made/at/once/may.csv").touch) == {it.inbox}

        await it.told_of(lambda: (tmp_path / "moved").rename(it.inbox / "moved"))
        await anyio.wait_all_tasks_blocked()
        assert await it.told_of((it.inbox / "moved/deep/deeper/may.csv").touch) == {it.inbox}


async def test_folders_that_were_there_before_are_watched(tmp_path: Path) -> None:
    """A start finds the folders that are there."""
    (tmp_path / "inbox/reviews/may").mkdir(parents=True)

    async with watched(tmp_path) as it:
        assert await it.told_of((it.inbox / "reviews/may/a.csv").touch) == {it.inbox}


async def test_a_folder_moved_away_is_watched_no_longer(tmp_path: Path) -> None:
    """What happens in it elsewhere is nobody's business, until it comes back."""
    (tmp_path / "inbox/reviews/may").mkdir(parents=True)

    async with watched(tmp_path) as it:
        away = tmp_path / "away"
        await it.told_of(lambda: (it.inbox / "reviews").rename(away))
        await anyio.wait_all_tasks_blocked()
        assert await it.is_quiet_of((away / "may/a.csv").touch)

        await it.told_of(lambda: away.rename(it.inbox / "again"))
        await anyio.wait_all_tasks_blocked()
        assert await it.told_of((it.inbox / "again/may/b.csv").touch) == {it.inbox}


async def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link in the inbox leads to no folder of ours."""
    (tmp_path / "elsewhere").mkdir()

    async with watched(tmp_path) as it:
        await it.told_of(lambda: (it.inbox / "link").symlink_to(tmp_path / "elsewhere"))
        await anyio.wait_all_tasks_blocked()
        assert await it.is_quiet_of((tmp_path / "elsewhere/a.csv").touch)


async def test_a_name_that_is_no_text_is_told_of(tmp_path: Path) -> None:
    """Names are bytes: one that is no UTF-8 ends nothing."""
    async with watched(tmp_path) as it:
        folder = os.fsencode(it.inbox) + b"/caf\xe9"
        await it.told_of(Path(os.fsdecode(folder)).mkdir)
        await anyio.wait_all_tasks_blocked()
        assert await it.told_of(Path(os.fsdecode(folder + b"/\xff")).mkdir) == {it.inbox}


async def test_too_many_events_at_once_ring_for_everything(tmp_path: Path) -> None:
    """Where the kernel has dropped events, all is told of, and it is begun anew.

    A new folder may have been among what was dropped.
    """
    most = int(await anyio.Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    def flood() -> None:
        for number in range(most // 2):  # of three events each, and nobody reads meanwhile
            path = it.inbox / f"{number % 2}"
            path.touch()
            path.unlink()

    async with watched(tmp_path) as it:
        await it.told_of(flood)
        await it.has_told(it.control)  # of which there was no event at all

        with anyio.fail_after(LIMIT_S):
            await it.ended.wait()


async def test_a_folder_that_is_removed_ends_the_watch(tmp_path: Path) -> None:
    """Who watched it begins anew, and so watches the one that comes in its place."""
    for act in (shutil.rmtree, lambda path: path.rename(tmp_path / "away")):
        async with watched(tmp_path) as it:
            act(it.inbox)

            with anyio.fail_after(LIMIT_S):
                await it.ended.wait()


async def test_what_cannot_be_watched_is_said(tmp_path: Path) -> None:
    """A folder that is not there is an error of the environment, told with its name."""
    with pytest.raises(OSError, match="nowhere") as error:
        await watch([tmp_path / "nowhere"], print, stop=anyio.Event())

    assert isinstance(error.value, FileNotFoundError)


async def test_a_watch_leaves_nothing_open(tmp_path: Path) -> None:
    """Watching anew for ever costs no descriptor."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    for _ in range(3):
        async with watched(tmp_path):
            pass

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_other_systems_watch_too(tmp_path: Path) -> None:
    """Where there is no inotify, the library tells the same, only later."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "control").mkdir()

    async with watched(tmp_path, has_inotify=False) as it:
        assert it.inbox in await it.told_of((it.inbox / "may.csv").touch) | await it.told_of(
            (it.inbox / "june.csv").touch
        )


async def test_too_few_watchers_are_said_with_what_to_do(tmp_path: Path) -> None:
    """Where the machine allows no more watchers, its owner reads which limit to raise."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(tmp_path, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))

    try:
        with pytest.raises(OSError, match=r"raise fs[.]inotify[.]max_user_instances") as error:
            await watch([tmp_path], print, stop=anyio.Event())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert error.value.errno == errno.EMFILE
