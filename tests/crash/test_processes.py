"""Real processes that end at a durable step, and the next one that finishes; a provider beside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from commands import environ, simulated
from crash import child
from crash.scene import Calm, assert_bought, assert_kept, delivered, drop, elsewhere, sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crash.tally import Tally
    from world import World

SPEED = 2000.0
"""Virtual seconds a second: a batch takes a third of one."""

DEATHS = 2


@dataclass(frozen=True, slots=True)
class Provider:
    """A simulator in a process of its own."""

    base_url: str
    began_at: float

    def ledger(self) -> dict[str, Any]:
        """Return what it accepted, from whatever spool."""
        url = self.base_url.removesuffix("/v1") + "/_simulator/ledger"
        found: dict[str, Any] = httpx.get(url, trust_env=False).json()

        return found


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """Serve one provider for all processes; each spool has its own id."""
    began_at = time.time()

    with simulated(SPEED) as url:
        yield Provider(url, began_at)


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[bytes]]:
    """Start the script that forks a daemon for each order."""
    tests = Path(child.__file__).parents[1]
    variables = environ()
    variables["PYTHONPATH"] = os.pathsep.join([str(tests), *sys.path])

    with subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, child.__file__],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process

        if process.stdin is not None:
            process.stdin.close()


def lived(
    nursery: subprocess.Popen[bytes], world: World, provider: Provider, **fate: int | str
) -> int:
    """Run a daemon on *world* in a process of its own and return its exit code."""
    order = {
        "root": str(world.root),
        "base_url": provider.base_url,
        "began_at": provider.began_at,
        "speed": SPEED,
    }
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(msgspec.json.encode(order | fate) + b"\n")
    nursery.stdin.flush()

    return int(nursery.stdout.readline())


def assert_finished(
    nursery: subprocess.Popen[bytes], world: World, provider: Provider, calm: Calm
) -> None:
    """Let the next process finish, and hold every law."""
    assert lived(nursery, world, provider) == child.DRAINED
    ledger = provider.ledger()
    metadata = [creation["metadata"] for creation in ledger["creations"]]
    assert_bought(metadata, ledger["requests"], spool_id=world.spool.identity())
    assert_kept(world)
    assert delivered(world.spool) == calm.delivered


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_process_that_dies_costs_only_time(  # noqa: PLR0913 - one for each fixture
    *,
    tmp_path: Path,
    calm: Calm,
    tally: Tally,
    part: int,
    provider: Provider,
    nursery: subprocess.Popen[bytes],
    after: bool,
) -> None:
    """A process that is gone at any durable step is followed by one that finishes its work."""
    for at in sample(range(1, len(calm.steps) + 1), DEATHS, part):
        world = elsewhere(tmp_path / f"{at}", provider.base_url)
        drop(world)
        code = lived(nursery, world, provider, at=at, after=after)
        assert code in (child.DIED, child.DRAINED)  # steps differ by a few from run to run

        with tally.point("processes", f"{'after' if after else 'before'} step {at}"):
            assert_finished(nursery, world, provider, calm)


def test_a_process_that_dies_with_a_batch_in_hand_costs_only_time(
    tmp_path: Path,
    calm: Calm,
    tally: Tally,
    provider: Provider,
    nursery: subprocess.Popen[bytes],
) -> None:
    """A process that is gone before it could note what it bought is not followed by a purchase."""
    world = elsewhere(tmp_path, provider.base_url)
    drop(world)
    code = lived(nursery, world, provider, at=2, only="POST /v1/batches", after=True)
    assert code == child.DIED

    with tally.point("processes", "after the second creation"):
        assert_finished(nursery, world, provider, calm)
