"""The order of what is made durable: content, then its name, then what depends on it.

A whole run of one file is taken down, call by call. A commit between the first and the last of the
calls that belong together would be a commit that comes too early.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import anyio
import pytest

from crash.mortal import COMMIT, Fate
from crash.power import Platter
from crash.scene import QUICK, live
from world import simulated

if TYPE_CHECKING:
    from pathlib import Path

_JOB = re.compile(r"\d{8}t\d{6}z-[2-9a-z]{6}")
_PROBE = ".promptspool-probe"


@pytest.fixture(scope="module")
def platter(tmp_path_factory: pytest.TempPathFactory) -> Platter:
    """Run a table with a sidecar, a retry and an error to its end, and return what was seen."""
    return anyio.run(_recorded, tmp_path_factory.mktemp("order"))


async def _recorded(root: Path) -> Platter:
    async with simulated(root, settings=QUICK) as world:
        world.drop("f.csv.toml", b'answers = ["table", "text"]\n')
        world.drop("f.csv", b"id,prompt\nq1,one\nq2,two [[fail:500 once]]\nq3,three [[fail:400]]\n")
        platter = Platter(world.spool.root)
        await live(world, Fate(watch=platter.watch))
        world.assert_conserved("f.csv", ["q1", "q2", "q3"])

        return platter


def assert_in_order(platter: Platter, *wanted: str) -> None:
    """Hold that *wanted* calls, `J` for the job's id, come one after another and then a commit."""
    calls = [_JOB.sub("J", call) for call in platter.calls]
    place = first = calls.index(wanted[0])

    for call in wanted[1:]:
        assert call in calls[place + 1 :], f"no {call!r} after {calls[first : place + 1]}"
        place = calls.index(call, place + 1)

    assert COMMIT not in calls[first:place]
    assert COMMIT in calls[place:]


def test_the_order_of_claim(platter: Platter) -> None:
    """A file is claimed into a folder that is durable and says what it is, then the row follows."""
    assert_in_order(
        platter,
        "mkdir working/J",
        "fsync working",
        "fsync working/J/claim.json.part",
        "rename working/J/claim.json.part working/J/claim.json",
        "fsync working/J",
        "rename inbox/f.csv working/J/original",
        "fsync working/J",
        "fsync inbox",
    )


def test_the_order_of_plan(platter: Platter) -> None:
    """The manifest comes after all that it speaks of, and the rows of batches after it."""
    assert_in_order(
        platter,
        "fsync working/J/J.1.requests.jsonl",
        "fsync working/J",
        "fsync working/J/manifest.json.part",
        "rename working/J/manifest.json.part working/J/manifest.json",
        "fsync working/J",
    )
    assert_in_order(
        platter,
        "fsync working/J/rows.jsonl",
        "fsync working/J",
        "rename working/J/manifest.json.part working/J/manifest.json",
    )


@pytest.mark.parametrize("kind", ["output", "error"])
def test_the_order_of_download(platter: Platter, kind: str) -> None:
    """A file of the provider's has its name only when it is whole, and counts only with it."""
    name = f"working/J/J.1.{kind}.jsonl"
    assert_in_order(platter, f"fsync {name}.part", f"rename {name}.part {name}", "fsync working/J")


def test_the_order_of_settle(platter: Platter) -> None:
    """A successor's requests are durable before its parent says that it is settled."""
    assert_in_order(
        platter,
        "fsync working/J/J.1+1.requests.jsonl",
        "fsync working/J",
        "fsync working/J/J.1.settled.json.part",
        "rename working/J/J.1.settled.json.part working/J/J.1.settled.json",
        "fsync working/J",
    )


def test_the_order_of_deliver(platter: Platter) -> None:
    """Answers are durable, then the summary, then their public names, then the original goes."""
    assert_in_order(
        platter,
        "fsync working/J/results.jsonl.part",
        "replace working/J/results.jsonl.part working/J/results.jsonl",
        "fsync working/J",
        "fsync working/J/summary.json.part",
        "rename working/J/summary.json.part working/J/summary.json",
        "fsync working/J",
        "link working/J/results.jsonl outbox/f.csv.results.jsonl",
        "fsync outbox",
        "link working/J/summary.json outbox/f.csv.summary.json",
        "fsync outbox",
        "link working/J/original done/f.csv",
        "fsync done",
        "unlink working/J/original",
        "fsync working/J",
    )


def test_the_order_of_a_published_folder(platter: Platter) -> None:
    """A folder of answers is synced, file by file and as a whole, before it is published."""
    assert_in_order(
        platter,
        "fsync working/J/answers.part/q1.txt",
        "fsync working/J/answers.part",
        "rename working/J/answers.part working/J/answers",
        "fsync working/J",
        "rename working/J/answers outbox/f.csv.answers",
        "fsync outbox",
        "fsync working/J",
    )


def test_the_order_of_tidy(platter: Platter) -> None:
    """A working folder loses its name first, durably, and only then what is in it."""
    assert_in_order(
        platter,
        "rename working/J working/.J.removed",
        "fsync working",
        "unlink working/.J.removed/manifest.json",
        "rmdir working/.J.removed",
    )


def test_nothing_comes_too_early(platter: Platter) -> None:
    """No call of a run gives a name to content, and no commit follows a name, that is not synced.

    The probe of a start is no data: it is there to see whether the call is allowed.
    """
    assert [call for call in platter.hasty if _PROBE not in call] == []
