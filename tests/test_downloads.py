"""Answers that come torn, strange or late, and polls that say nothing.

A partial file is never taken for a whole one, a strange line spoils no other, and the state of a
batch changes only by what a Batch object says.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.simulator import BatchFault, Call, Fault
from promptspool.simulator.wire import BatchError
from test_end_to_end import answered, ids, questions
from world import START, simulated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

HASTY: dict[str, Any] = {"providers": {"openai": {"timeout": 0.5, "transfer_timeout": 0.5}}}
"""What stalls is given up soon; real seconds."""


def bought(world: World) -> list[int]:
    """Return the sizes of the batches that cost money, in their order."""
    return [entry.requests for entry in world.simulator.ledger.creations if entry.requests]


def watched_downloads(world: World) -> list[list[str]]:
    """Return a list that will hold, for each try of a download, the whole files there were."""
    found: list[list[str]] = []

    def look(_call: Call) -> bool:
        paths = [
            *world.spool.working.glob("*/*.output.*"),
            *world.spool.working.glob("*/*.error.*"),
        ]
        found.append([path.name for path in paths if path.suffix != ".part"])
        return False

    world.simulator.faults.add(Fault(route="files.content"), when=look)

    return found


# Downloads that fail, and are made again.

TORN: dict[str, list[dict[str, Any]]] = {
    "truncated": [{"action": "truncate"}],
    "reset": [{"action": "reset"}, {"action": "cut"}],
    "stalled": [{"action": "drip", "delay_s": 30}, {"action": "stall", "delay_s": 30}],
    "shorter-than-announced": [{"action": "short"}],
    "a-page": [{"action": "garbage"}, {"action": "status", "status": 502, "body": "<html>"}],
    "not-found": [{"action": "status", "status": 404}],
}


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
async def test_a_torn_download_is_never_a_file(tmp_path: Path, torn: list[dict[str, Any]]) -> None:
    """However a download fails, nothing has the name of a whole file until it is one."""
    async with simulated(tmp_path, overrides=HASTY) as world:
        found = watched_downloads(world)
        tries = [Fault(route="files.content", **fault) for fault in torn for _ in range(2)]
        world.simulator.faults.add(*tries)
        await answered(world, questions(8))

        assert found == [[]] * (len(tries) + 1)
        assert bought(world) == [8]


async def test_a_download_longer_than_announced_is_looked_at_again(tmp_path: Path) -> None:
    """A body cut off by its own length is found short of answers, and fetched once more."""
    async with simulated(tmp_path, overrides=HASTY) as world:
        world.simulator.faults.add(Fault(route="files.content", action="long"))
        await answered(world, questions(8))

        assert bought(world) == [8]
        assert world.simulator.ledger.calls["files.content"] == 2


@pytest.mark.parametrize("action", ["long", "empty"])
async def test_answers_that_are_counted_are_asked_for_again(tmp_path: Path, action: Any) -> None:
    """As long as the provider counts answers that did not come, they are not bought again."""
    async with simulated(tmp_path, overrides=HASTY) as world:
        world.simulator.faults.add(Fault(route="files.content", action=action, times=3))
        await answered(world, questions(8))

        assert bought(world) == [8]


async def test_an_empty_download_is_looked_at_again(tmp_path: Path) -> None:
    """A file of zero bytes where answers are counted is fetched once more."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="files.content", action="empty"))
        await answered(world, questions(8))

        assert bought(world) == [8]
        assert world.simulator.ledger.calls["files.content"] == 2


# Files that are whole, and strange.


async def test_a_last_line_that_is_cut_costs_one_retry(tmp_path: Path) -> None:
    """An output file that ends inside a line keeps its other answers; that one is asked again."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(cut_last_line=True))
        await answered(world, questions(8))

        assert bought(world) == [8, 1]


async def test_a_separator_inside_a_line_ends_no_line(tmp_path: Path) -> None:
    """U+2028 in an answer is part of it, and in a line of its own it is one bad line."""
    rows = [{"id": "q0", "prompt": "one\u2028two"}, {"id": "q1", "prompt": "three\u0085four"}]

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(lines=["\u2028{}\u2029".encode()]))
        await answered(world, rows)

        assert bought(world) == [2]
        assert "one\u2028two" in json.dumps(world.results("f.jsonl")[0], ensure_ascii=False)


GARBAGE = [b"<html>", b"", b"\x00\xff", b"[1]", b'{"custom_id":7}', b'{"custom_id":"', b"{" * 5000]


async def test_garbage_lines_spoil_no_other(tmp_path: Path) -> None:
    """Lines that are no answers, even the first one, cost nothing."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(lines=GARBAGE))
        await answered(world, questions(4))

        assert bought(world) == [4]
        assert world.simulator.ledger.calls["files.content"] == 1


async def test_repeated_and_foreign_ids_are_left_out(tmp_path: Path) -> None:
    """Of two answers to one request the first counts; answers to nobody's request do not."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(duplicate=3, foreign=3))
        await answered(world, questions(5))

        assert bought(world) == [5]


async def test_missing_ids_are_asked_again(tmp_path: Path) -> None:
    """Requests in neither file are looked for twice, and then only they are asked again."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(drop=0.5))
        await answered(world, questions(6))

        assert bought(world) == [6, 3]
        assert world.simulator.ledger.calls["files.content"] >= 3


@pytest.mark.parametrize("is_blank", [False, True], ids=["null", "blank"])
async def test_an_output_id_may_appear_later(tmp_path: Path, is_blank: bool) -> None:  # noqa: FBT001
    """A completed batch without a file id, null or `""`, is asked again before it is believed."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(late_file_ids=3, blank_file_ids=is_blank))
        await answered(world, questions(5))

        assert bought(world) == [5]
        assert world.simulator.ledger.calls["files.content"] == 1


async def test_a_blank_id_is_never_asked_for(tmp_path: Path) -> None:
    """An id of `""` is no file: its content is not asked for, and nothing is deleted under it."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(blank_file_ids=True, times=None))
        await answered(world, questions(3, mark="[[fail:400]]"), errors=ids(3))

        ledger = world.simulator.ledger
        assert ledger.calls["files.content"] == 1
        assert ledger.calls["files.delete"] == len(ledger.deletions) == 2


async def test_a_file_of_zero_bytes_has_no_answers(tmp_path: Path) -> None:
    """An id of an empty file beside the other is no fault."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(empty_error_file=True))
        await answered(world, questions(3))

        assert bought(world) == [3]
        assert world.simulator.ledger.calls["files.content"] == 2


# Polls.


def watched_polls(world: World) -> list[tuple[str, str]]:
    """Return a list that will hold the state of the only batch at each poll."""
    found: list[tuple[str, str]] = []

    def look(_call: Call) -> bool:
        database = sqlite3.connect(world.spool.database)
        found.extend(database.execute("SELECT status, remote_status FROM batches"))
        database.close()
        return False

    world.simulator.faults.add(Fault(route="batches.get"), when=look)

    return found


SAYING_NOTHING: list[dict[str, Any]] = [
    {"action": "garbage"},
    {"action": "empty"},
    {"action": "truncate"},
    {"action": "reset"},
    {"action": "stall", "delay_s": 0.8},
    {"action": "status", "status": 502, "body": "<html>bad gateway</html>"},
    {"action": "status", "status": 503},
    {"action": "status", "status": 500, "body": '{"error":{"message":"failed","code":"failed"}}'},
    {"action": "status", "status": 400, "body": '{"error":{"message":"expired"}}'},
    {"action": "status", "status": 404, "body": "<html>not found</html>"},
    {"action": "status", "status": 404},
    {"action": "status", "status": 409},
    {"action": "status", "status": 200, "body": '{"object":"batch","status":"failed"}'},
    {"action": "status", "status": 200, "body": '{"id":"","status":"completed"}'},
    {"action": "status", "status": 200, "body": '{"id":"batch_x","status":"failed"'},
    {"action": "status", "status": 200, "body": '{"error":{"message":"Batch not found"}}'},
    {"action": "status", "status": 200, "body": "null"},
    {"action": "status", "status": 200, "body": '[{"id":"batch_x","status":"failed"}]'},
]


async def test_a_failed_poll_changes_nothing(tmp_path: Path) -> None:
    """Pages, garbage, errors and objects that are no batch leave a batch as it was."""
    async with simulated(tmp_path, overrides=HASTY) as world:
        states = watched_polls(world)
        spoiled = [Fault(route="batches.get", **fault) for fault in SAYING_NOTHING]
        world.simulator.faults.add(*spoiled)
        world.simulator.faults.add_batch(BatchFault(list_lag_s=1e9))  # a 404 asks the list, too
        await answered(world, questions(3))

        assert all(fault in world.simulator.faults.fired for fault in spoiled)
        assert len(states) > len(spoiled)
        assert set(states[: len(spoiled) + 1]) == {("created", "validating")}
        assert bought(world) == [3]
        assert world.simulator.ledger.cancels == []


async def test_a_failed_list_changes_nothing(tmp_path: Path) -> None:
    """Lists that are none leave all batches as they were, however many are due."""
    single = {"providers": {"openai": HASTY["providers"]["openai"] | {"max_requests": 1}}}
    pages: list[dict[str, Any]] = [
        {"action": "garbage"},
        {"action": "truncate"},
        {"action": "status", "status": 503},
        {"action": "status", "status": 200, "body": '{"object":"list","data":null}'},
        {"action": "status", "status": 200, "body": '{"object":"list","data":{"id":"x"}}'},
        {"action": "status", "status": 200, "body": '{"object":"list","data":[]}'},
    ]

    async with simulated(tmp_path, overrides=single) as world:
        spoiled = [Fault(route="batches.list", **page) for page in pages]
        world.simulator.faults.add(*spoiled)
        await answered(world, questions(8))

        assert all(fault in world.simulator.faults.fired for fault in spoiled)
        assert bought(world) == [1] * 8


TAMPERED: dict[str, BatchFault] = {
    "missing": BatchFault(
        without=frozenset(
            {"request_counts", "metadata", "created_at", "errors", "endpoint", "usage", "object"}
        )
    ),
    "null": BatchFault(
        raw=dict.fromkeys(("request_counts", "metadata", "created_at", "errors", "expires_at"))
    ),
    "text": BatchFault(
        raw={
            "created_at": "1795000000",
            "expires_at": "tomorrow",
            "in_progress_at": "2026-11-18T11:06:40Z",
            "request_counts": {"total": "3", "completed": "3.0", "failed": ""},
            "metadata": "none",
            "errors": "odd",
        }
    ),
    "milliseconds": BatchFault(
        raw={"created_at": 1_795_000_000_000, "completed_at": 1_795_000_900_000}
    ),
    "errors-as-a-list": BatchFault(raw={"errors": [{"code": "odd", "line": "1"}, "words", None]}),
    "unknown-statuses": BatchFault(
        renamed={"validating": "warming", "in_progress": "PAUSED?", "finalizing": ""},
        raw={"errors": {"object": "list", "data": None}},
    ),
    "no-status": BatchFault(without=frozenset({"status"}), raw_in=frozenset({"in_progress"})),
    "a-status-of-another-type": BatchFault(
        raw={"status": {"name": "failed"}}, raw_in=frozenset({"validating", "in_progress"})
    ),
}


@pytest.mark.parametrize("fault", TAMPERED.values(), ids=TAMPERED)
async def test_a_strange_batch_object_is_read(tmp_path: Path, fault: BatchFault) -> None:
    """Fields that are missing, null or of another type cost neither an answer nor a batch."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(fault)
        await answered(world, questions(3))

        assert bought(world) == [3]


async def test_complaints_as_a_list_are_read(tmp_path: Path) -> None:
    """A failed batch may complain in a bare list, and its named line is cut out."""
    fault = BatchFault(
        ending="failed",
        bare_errors=True,
        errors=[BatchError(code="invalid_request", line=2, message="odd")],
    )

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(fault)
        await answered(world, questions(3), errors=["q1"])

        assert bought(world) == [2]


def unknown_while(world: World, *, until_s: float) -> Sequence[float]:
    """Let the provider not know its first batch until then; return when it was asked for it."""
    asked: list[float] = []
    first: list[str | None] = []

    def is_gone(call: Call) -> bool:
        first.append(call.remote_id)

        if call.remote_id != first[0]:
            return False

        asked.append(world.clock.now() - START)
        return asked[-1] < until_s

    world.simulator.faults.add(Fault(route="batches.get", times=None, status=404), when=is_gone)
    world.simulator.faults.add_batch(BatchFault(list_lag_s=1e9))

    return asked


async def test_a_batch_unknown_for_some_minutes_is_not_lost(tmp_path: Path) -> None:
    """A batch that is nowhere to be seen for 14 minutes is the same batch afterwards."""
    async with simulated(tmp_path, overrides={"polling": {"cap": "30s"}}) as world:
        asked = unknown_while(world, until_s=14 * 60)
        await answered(world, questions(3))

        assert len(asked) > 20
        assert bought(world) == [3]


@pytest.mark.parametrize("first", ["10s", "20m"])
async def test_a_batch_unknown_for_long_gets_a_successor(tmp_path: Path, first: str) -> None:
    """A batch is gone when it was unknown for 15 minutes and five looks, whichever is longer."""
    polling = {"polling": {"first": first, "cap": "20m"}}

    async with simulated(tmp_path, overrides=polling) as world:
        asked = unknown_while(world, until_s=1e9)
        await answered(world, questions(3))

        gone, successor = world.simulator.ledger.creations
        assert gone.requests == successor.requests == 3
        assert asked[-1] - asked[0] >= 15 * 60
        assert len(asked) >= 5
        assert successor.created_at - START > asked[-1]
        assert len(world.simulator.ledger.uploads) == 2
