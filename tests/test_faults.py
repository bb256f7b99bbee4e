"""The fault table: each failure mode seen in the wild, F1 to F29, and the reaction to it.

One scripted fault of the simulated provider for each, end to end. Ambiguous creates (F27) and
downloads (F19) have files of their own with every variant.
"""

from __future__ import annotations

import json
import re
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.collect.answers import lines
from promptspool.errors import Unavailable
from promptspool.provider import connect
from promptspool.simulator import BatchFault, Call, Fault, FileFault, SimulatorSettings
from promptspool.simulator.wire import BatchError
from test_end_to_end import answered, ids, questions
from world import START, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.provider import Provider
    from promptspool.simulator.faults import Route
    from world import World

pytestmark = pytest.mark.anyio

DAY_S = 86_400
PATIENT: dict[str, Any] = {"spool": {"rescan": "6h"}, "polling": {"first": "20m", "cap": "2h"}}
"""For tests that last days: whoever looks around seldom gets there sooner."""

NO_ROOM = (
    "Enqueued token limit reached for gpt-5-mini in organization org-x. Limit: 2,000,000 enqueued "
    "tokens. Please try again once some in_progress batches have been completed."
)


def attempts(world: World) -> list[int]:
    """Return how often the requests of each batch had been asked before it, oldest batch first."""
    return [batch["attempt"] for batch in world.summary("f.jsonl")["batches"]]


def bought(world: World) -> list[int]:
    """Return the sizes of the batches that cost money, in their order."""
    return [entry.requests for entry in world.simulator.ledger.creations if entry.requests]


def account(world: World) -> Provider:
    """Return the provider as the daemon would connect to it; to be closed."""
    return connect("openai", world.settings().providers["openai"])


@pytest.mark.parametrize("stage", ["in_progress", "finalizing"])
async def test_f01_stuck_batches_are_waited_for_then_cancelled(tmp_path: Path, stage: Any) -> None:
    """A batch stuck past its window is cancelled at `max_age`, and its answers are kept."""
    done = 1.0 if stage == "finalizing" else 0.5

    async with simulated(tmp_path, overrides=PATIENT | {"retry": {"max_age": "30h"}}) as world:
        world.simulator.faults.add_batch(BatchFault(stuck_in=stage, done=done))
        world.drop("f.jsonl", questions(4))

        assert await world.drain()

        world.assert_conserved("f.jsonl", ids(4))
        assert len(world.results("f.jsonl")) == 4 * done
        assert {line["error"]["code"] for line in world.errors("f.jsonl")} <= {"batch_cancelled"}
        assert bought(world) == [4]
        assert len(world.simulator.ledger.cancels) == 1
        assert world.clock.monotonic() > 1.25 * DAY_S


async def test_f02_want_of_tokens_is_no_error_of_the_data(tmp_path: Path) -> None:
    """A batch that fails minutes later for want of room comes again: no attempt, no new upload."""
    fault = BatchFault(
        ending="failed",
        times=3,
        errors=[BatchError(code="token_limit_exceeded", message=NO_ROOM)],
    )

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(fault)
        await answered(world, questions(5))

        assert bought(world) == [5]
        assert attempts(world) == [0, 0, 0, 0]
        assert len(world.simulator.ledger.uploads) == 1


async def test_f02_a_batch_that_fails_alone_is_halved(tmp_path: Path) -> None:
    """A batch larger than all the room there is, is made smaller until it fits."""
    room = SimulatorSettings(enqueued_tokens={"gpt-5-mini": 20})

    async with simulated(tmp_path, overrides=PATIENT, settings=room) as world:
        await answered(world, questions(4))

        assert sum(bought(world)) == 4
        assert max(bought(world)) < 4
        assert set(attempts(world)) == {0}


async def test_f03_room_that_comes_back_slowly_is_waited_for(tmp_path: Path) -> None:
    """Without a batch running there may be no room for hours: it is asked for ever more seldom."""
    fault = BatchFault(
        ending="failed", times=None, errors=[BatchError(code="token_limit_exceeded")]
    )

    async with simulated(tmp_path, overrides=PATIENT | {"polling": {"first": "5s"}}) as world:
        world.simulator.faults.add_batch(fault, when=lambda _: world.clock.now() < START + 7 * 3600)
        await answered(world, questions(1))

        tried = [entry.created_at for entry in world.simulator.ledger.creations]
        waits = [later - earlier for earlier, later in pairwise(tried)]
        assert len(waits) > 9
        assert waits[0] < 120
        assert all(later > 1.5 * earlier for earlier, later in pairwise(waits[:5]))
        assert 3000 < max(waits) < 3600 + 120
        assert set(attempts(world)) == {0}


async def test_f04_want_of_room_for_embeddings_is_waited_for(tmp_path: Path) -> None:
    """Embeddings have a limit of requests, told in words alone; it is a want of room, too."""
    words = (
        "Enqueued request limit reached for text-embedding-3-small in organization org-x. "
        "Limit: 1,000,000 enqueued requests."
    )
    profile = {"endpoint": "/v1/embeddings", "model": "text-embedding-3-small"}

    async with simulated(tmp_path, overrides={"profiles": {"default": profile}}) as world:
        world.simulator.faults.add_batch(
            BatchFault(ending="failed", times=2, errors=[BatchError(message=words)])
        )
        await answered(world, questions(3))

        assert bought(world) == [3]
        assert attempts(world) == [0, 0, 0]
        assert len(world.simulator.ledger.uploads) == 1


@pytest.mark.parametrize("status", [400, 429])
async def test_f05_want_of_tokens_may_be_told_at_once(tmp_path: Path, status: int) -> None:
    """A create declined for want of room is tried again later, at no attempt."""
    body = json.dumps({"error": {"code": "token_limit_exceeded", "message": NO_ROOM}})

    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="batches.create", times=3, status=status, body=body))
        await answered(world, questions(3))

        assert bought(world) == [3]
        assert set(attempts(world)) == {0}
        assert world.simulator.ledger.calls["batches.create"] == 4
        assert len(world.simulator.ledger.uploads) == 1


async def test_f06_a_batch_without_output_has_an_error_file(tmp_path: Path) -> None:
    """A completed batch without an output file is read by its errors: some final, some retried."""
    rows = questions(4, mark="[[fail:500 once]]")
    rows[2]["prompt"] = "[[fail:400]]"

    async with simulated(tmp_path) as world:
        await answered(world, rows, errors=["q2"])

        assert bought(world) == [4, 3]
        assert attempts(world) == [0, 1]


async def test_f07_an_output_id_may_come_later(tmp_path: Path) -> None:
    """A completed batch is asked again for its output file before anything is given up."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(late_file_ids=4))
        await answered(world, questions(6))

        assert bought(world) == [6]


async def test_f08_blank_ids_and_empty_files_are_none(tmp_path: Path) -> None:
    """An id of `""` is no file, and a file of zero bytes is one without answers."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(
            BatchFault(blank_file_ids=True, empty_error_file=True, fail_ordinals=frozenset({1}))
        )
        world.simulator.faults.add_batch(BatchFault(blank_file_ids=True, empty_error_file=True))
        await answered(world, questions(3))

        assert bought(world) == [3, 1]
        assert world.simulator.ledger.calls["files.content"] == 4


async def test_f08_ids_count_at_the_end_only(tmp_path: Path) -> None:
    """A file id that is shown while the batch runs is not used: the last word is."""
    early = BatchFault(
        raw={"output_file_id": "file-early", "error_file_id": "file-early"},
        raw_in=frozenset({"in_progress", "finalizing"}),
    )

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(early)
        await answered(world, questions(3, mark="[[fail:400]]"), errors=ids(3))

        assert bought(world) == [3]
        assert world.simulator.ledger.calls["files.content"] == 1


ENDINGS = [
    BatchFault(ending="expired", done=0.6),
    BatchFault(ending="cancelled", done=0.6),
]


@pytest.mark.parametrize("fault", ENDINGS, ids=lambda fault: fault.ending)
async def test_f09_partial_answers_are_kept(tmp_path: Path, fault: BatchFault) -> None:
    """What a batch answered before it was cut short is kept, and only the rest is asked again."""
    async with simulated(tmp_path, overrides=PATIENT) as world:
        world.simulator.faults.add_batch(fault)
        await answered(world, questions(10))

        assert bought(world) == [10, 4]


async def test_f09_a_failed_batch_may_have_answers(tmp_path: Path) -> None:
    """A batch that is called failed, but names files, is read like any other."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(
            BatchFault(renamed={"completed": "failed"}, fail_ordinals=frozenset({0}))
        )
        await answered(world, questions(4))

        assert bought(world) == [4, 1]


async def test_f10_missing_requests_are_asked_again(tmp_path: Path) -> None:
    """The request file is the truth: what no line answers is asked again, whatever is counted."""
    counts = {"total": 12, "completed": 12, "failed": 0}

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(drop=0.4, raw={"request_counts": counts}))
        await answered(world, questions(10))

        assert bought(world) == [10, 4]
        assert attempts(world) == [0, 1]


async def test_f11_errors_are_told_by_their_content(tmp_path: Path) -> None:
    """4xx and 5xx lines in the output file are errors, each of its own kind."""
    rows = questions(5)
    rows[1]["prompt"] += "[[fail:400]]"
    rows[3]["prompt"] += "[[fail:500 once]]"

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(errors_in_output=True, times=None))
        await answered(world, rows, errors=["q1"])

        assert bought(world) == [5, 1]


async def test_f12_server_errors_are_retried_within_bounds(tmp_path: Path) -> None:
    """Requests that fail with a 500 come again after a pause, at most `max_attempts` times."""
    rows = questions(6)
    rows[2]["prompt"] += "[[fail:500]]"
    rows[4]["prompt"] += "[[fail:500]]"

    async with simulated(tmp_path) as world:
        await answered(world, rows, errors=["q2", "q4"])

        assert bought(world) == [6, 2, 2]
        assert [line["attempts"] for line in world.errors("f.jsonl")] == [3, 3]
        ended = [batch["ended_at"] for batch in world.summary("f.jsonl")["batches"]]
        began = [entry.created_at for entry in world.simulator.ledger.creations]
        assert len(ended) == 3
        assert began[1] - began[0] > 615 + 27
        assert began[2] - began[1] > 615 + 54


async def test_f13_ids_at_the_provider_are_our_own(tmp_path: Path) -> None:
    """Ids of users never reach the provider: any text will do, in several files at once."""
    names = ["same", "with a blank", "\u00fcml\u00e4ut/\u2192", "x" * 300, "4"]
    rows = [{"id": name, "prompt": f"What is {name}?"} for name in names]

    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", rows)
        world.drop("g.jsonl", rows)

        assert await world.drain()

        world.assert_conserved("f.jsonl", names)
        world.assert_conserved("g.jsonl", names)
        asked = world.simulator.ledger.requests
        assert len(asked) == 10
        assert set(asked.values()) == {1}
        assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in asked)


async def test_f14_answers_are_joined_by_id(tmp_path: Path) -> None:
    """Lines come in another order than they were sent; each prompt gets its own answer."""
    async with simulated(tmp_path) as world:
        await answered(world, questions(40))

        for number, line in enumerate(world.results("f.jsonl")):
            assert line["custom_id"] == f"q{number}"
            assert f"What is {number} plus {number}?" in json.dumps(line["response"])


async def test_f15_a_batch_that_flickers_is_not_lost(tmp_path: Path) -> None:
    """404s that come and go, at polls and at a download, change nothing."""
    looks: list[int] = []

    def every_other(_call: Call) -> bool:
        looks.append(len(looks))
        return len(looks) % 2 == 1

    async with simulated(tmp_path) as world:
        world.simulator.faults.add(
            Fault(route="batches.get", times=None, status=404), when=every_other
        )
        world.simulator.faults.add(Fault(route="files.content", times=2, status=404))
        world.simulator.faults.add_batch(BatchFault(list_lag_s=1e9))
        await answered(world, questions(3))

        assert bought(world) == [3]
        assert len(looks) > 5


async def test_f16_a_batch_that_is_gone_is_replaced(tmp_path: Path) -> None:
    """A batch that nobody knows for a quarter of an hour, look after look, gets a successor."""
    remote: list[str] = []

    def is_first(call: Call) -> bool:
        remote.append(call.remote_id or "")
        return call.remote_id == remote[0]

    body = '{"error":{"message":"Batch not found","type":"invalid_request_error"}}'

    async with simulated(tmp_path) as world:
        world.simulator.faults.add(
            Fault(route="batches.get", times=None, status=404, body=body), when=is_first
        )
        world.simulator.faults.add_batch(BatchFault(list_lag_s=1e9))
        await answered(world, questions(3))

        first, second = world.simulator.ledger.creations
        assert second.created_at - first.created_at > 900
        assert remote.count(remote[0]) >= 5
        assert world.simulator.ledger.calls["batches.list"] > 5
        assert attempts(world) == [0, 1]


async def test_f16_a_batch_that_is_gone_may_be_told_with_200(tmp_path: Path) -> None:
    """An error object in place of a batch, hour after hour, is a batch that is gone."""
    body = '{"error":{"message":"Batch not found","type":"invalid_request_error"}}'

    async with simulated(tmp_path) as world:
        world.simulator.faults.add(
            Fault(route="batches.get", times=None, status=200, body=body),
            when=lambda _: len(world.simulator.ledger.creations) < 2 and is_soon(world),
        )
        world.simulator.faults.add_batch(BatchFault(list_lag_s=1e9))
        await answered(world, questions(3))

        assert bought(world) == [3, 3]


def is_soon(world: World) -> bool:
    """Tell whether it is less than two hours since the start."""
    return world.clock.now() < START + 7200


@pytest.mark.parametrize("status", [502, 503])
async def test_f17_a_failed_poll_is_no_failed_batch(tmp_path: Path, status: int) -> None:
    """A proxy's page in place of a batch, for an hour, says nothing about the batch."""
    page = "<html><body>502 Bad Gateway</body></html>"

    async with simulated(tmp_path) as world:
        world.simulator.faults.add(
            Fault(route="batches.get", times=None, status=status, body=page),
            when=lambda _: world.clock.now() < START + 3600,
        )
        await answered(world, questions(3))

        assert bought(world) == [3]
        assert world.simulator.ledger.cancels == []
        assert world.clock.monotonic() > 3600


async def test_f18_a_file_may_not_be_ready_yet(tmp_path: Path) -> None:
    """A create that does not find its file, just uploaded, is repeated with the same file."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_file(FileFault(ready_lag_s=60, list_lag_s=60))
        await answered(world, questions(3))

        assert bought(world) == [3]
        assert len(world.simulator.ledger.uploads) == 1
        assert world.simulator.ledger.calls["batches.create"] > 2


async def test_f18_a_file_that_never_gets_ready_is_sent_again(tmp_path: Path) -> None:
    """After two minutes the file is uploaded anew, and neither upload is left behind."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_file(FileFault(ready_lag_s=1e9))
        await answered(world, questions(3))

        ledger = world.simulator.ledger
        assert bought(world) == [3]
        assert len(ledger.uploads) == 2
        assert {upload.file_id for upload in ledger.uploads} <= set(ledger.deletions)


async def test_f18_a_batch_may_miss_its_file_later(tmp_path: Path) -> None:
    """A batch that fails for its input file is asked again with a new upload, at no attempt."""
    words = "The input file file-x does not exist or is not ready."

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(
            BatchFault(ending="failed", errors=[BatchError(message=words)])
        )
        await answered(world, questions(3))

        assert bought(world) == [3]
        assert attempts(world) == [0, 0]
        assert len(world.simulator.ledger.uploads) == 2


async def test_f19_a_torn_download_is_repeated(tmp_path: Path) -> None:
    """A download that ends before its length is made again, whole."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="files.content", action="truncate", times=3))
        await answered(world, questions(8))

        assert bought(world) == [8]
        assert world.simulator.ledger.calls["files.content"] == 4


async def test_f20_files_are_streamed_both_ways(tmp_path: Path) -> None:
    """Sending and fetching a file takes the same few megabytes of memory, whatever its size."""
    size = 32_000_000
    path = tmp_path / "big.jsonl"
    path.write_bytes(b'{"custom_id":"x","body":"%s"}\n' % (b"y" * 999_970) * (size // 1_000_000))

    async with simulated(tmp_path) as world:
        provider = account(world)
        tracemalloc.start()

        try:
            file = await provider.upload(path, "big.jsonl")
            await provider.download(file.id, tmp_path / "back.jsonl")
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            await provider.close()

    assert (tmp_path / "back.jsonl").read_bytes() == path.read_bytes()
    assert peak_bytes < size / 4


async def test_f21_a_broken_stream_is_an_error_of_ours(tmp_path: Path) -> None:
    """Whatever breaks a download is our own error, and leaves no file under the final name."""
    target = tmp_path / "answers.jsonl"

    async with simulated(tmp_path) as world:
        provider = account(world)
        path = tmp_path / "some.jsonl"
        path.write_bytes(b'{"a":1}\n' * 1000)
        file = await provider.upload(path, "some.jsonl")
        actions: list[Any] = ["truncate", "short", "reset", "cut", "garbage"]
        world.simulator.faults.add(
            *(Fault(route="files.content", action=action) for action in actions)
        )

        for _ in actions:
            with pytest.raises(Unavailable):
                await provider.download(file.id, target)

            assert not target.exists()

        await provider.download(file.id, target)
        await provider.close()

    assert target.read_bytes() == path.read_bytes()
    assert not target.with_name("answers.jsonl.part").exists()


SEPARATORS = "a\u2028b\u2029c\u0085d\x1ce\x0bf\x0cg"


async def test_f22_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    """Separators of Unicode, in prompts and raw in answers, split no record."""
    rows = [{"id": f"q{n}", "prompt": f"{SEPARATORS}\r{n}"} for n in range(3)]

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(lines=[SEPARATORS.encode()]))
        await answered(world, rows)

        assert bought(world) == [3]
        said = world.results("f.jsonl")[0]["response"]["body"]["choices"][0]["message"]["content"]
        assert said == f"Simulated answer to: {SEPARATORS}\r0"


async def test_f22_half_a_pair_is_an_error_here(tmp_path: Path) -> None:
    """Half a surrogate pair, which no UTF-8 can hold, ends its own row and no other."""
    async with simulated(tmp_path) as world:
        rows = [*questions(2), {"id": "q2", "prompt": "\ud83d"}]
        world.drop("f.jsonl", rows)

        assert await world.drain()

        world.assert_conserved("f.jsonl", ["q0", "q1", "f-3"])
        assert world.errors("f.jsonl")[0]["error"]["code"] == "invalid_json"


def test_f22_lines_of_answers_end_at_newlines_alone(tmp_path: Path) -> None:
    """A raw separator inside a line leaves it whole."""
    path = tmp_path / "lines.jsonl"
    line = f'{{"custom_id":"{SEPARATORS}\r"}}'.encode()
    path.write_bytes(line + b"\r\n" + line)

    assert [found for _, found in lines(path)] == [line + b"\r", line]


async def test_f23_what_is_sent_is_plain_json_lines(tmp_path: Path) -> None:
    """A byte order mark goes no further than us, and what JSON cannot hold is an error here."""
    rows = b'\xef\xbb\xbf{"id":"q0","prompt":"a"}\n'
    rows += b'{"custom_id":"q1","method":"POST","url":"/v1/chat/completions","body":{"model":"m",'
    rows += b'"messages":[],"temperature":NaN}}\n{"id":"q2","prompt":"\xc3\xa9"}\r\n'
    sent: list[bytes] = []

    async with simulated(tmp_path) as world:

        def keep(_call: Call) -> bool:
            sent.extend(path.read_bytes() for path in (tmp_path / "remote").iterdir())
            return False

        world.simulator.faults.add(Fault(route="batches.create"), when=keep)
        world.drop("f.jsonl", rows)

        assert await world.drain()

        assert len(world.results("f.jsonl")) == 2
        assert world.errors("f.jsonl")[0]["source"] == {"file": "f.jsonl", "line": 2}
        (content,) = sent
        assert content.endswith(b"}\n")
        assert [line[:1] for line in content.split(b"\n")] == [b"{", b"{", b""]
        assert b"\r" not in content


@pytest.mark.parametrize(
    "fault",
    [
        BatchFault(torn_lines=1),
        BatchFault(lines=[b"<garbage>"]),
        BatchFault(lines=[b"", b"null", b'{"custom_id":', b"\xff\xfe"]),
    ],
    ids=["torn", "garbage", "much-garbage"],
)
async def test_f24_one_bad_line_spoils_no_other(tmp_path: Path, fault: BatchFault) -> None:
    """Lines that are no JSON cost at most a retry of the request they were about."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(fault)
        await answered(world, questions(8))

        assert bought(world) == ([8, 1] if fault.torn_lines else [8])
        assert world.clock.monotonic() < 3600


@pytest.mark.parametrize("body", [None, "<html>413 Request Entity Too Large</html>"])
async def test_f25_an_upload_that_is_too_large_is_halved(tmp_path: Path, body: str | None) -> None:
    """A 413, from whomever, is answered with two uploads of half the size."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="files.create", status=413, body=body))
        await answered(world, questions(7))

        assert sorted(bought(world)) == [3, 4]
        assert set(attempts(world)) == {0}


async def test_f26_named_lines_are_cut_out(tmp_path: Path) -> None:
    """A batch refused for two of its lines goes on without them."""
    errors = [BatchError(code="invalid_request", line=line, message="odd") for line in (2, 5)]

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(ending="failed", errors=errors))
        await answered(world, questions(6), errors=["q1", "q4"])

        assert bought(world) == [4]


async def test_f26_unnamed_lines_are_looked_for_by_halves(tmp_path: Path) -> None:
    """A batch refused without a line is tried in halves, a bounded number of times."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(
            BatchFault(ending="failed", times=2, errors=[BatchError(message="it is odd")])
        )
        await answered(world, questions(8))

        assert sum(bought(world)) == 8
        assert len(bought(world)) == 3
        world.simulator.faults.add_batch(
            BatchFault(ending="failed", times=None, errors=[BatchError(message="it is odd")])
        )
        world.drop("g.jsonl", questions(16))

        assert await world.drain()

        world.assert_conserved("g.jsonl", ids(16))
        assert len(world.errors("g.jsonl")) == 16
        assert sum(bought(world)) == 8
        assert len(world.simulator.ledger.creations) < 5 + 2 * 16


async def test_f27_an_unanswered_create_is_looked_up(tmp_path: Path) -> None:
    """A batch whose creation went unanswered is adopted from the list, not created again."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="batches.create", point="after", status=503))
        await answered(world, questions(3))

        assert world.simulator.ledger.calls["batches.create"] == 1


async def test_f28_complaints_may_be_a_bare_list(tmp_path: Path) -> None:
    """`errors` as a list of faults is read like the documented object."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(
            BatchFault(
                ending="failed",
                bare_errors=True,
                errors=[BatchError(code="invalid_request", line=1, message="odd")],
            )
        )
        await answered(world, questions(3), errors=["q0"])

        assert world.errors("f.jsonl")[0]["error"]["message"] == "odd"
        assert bought(world) == [2]


@pytest.mark.parametrize(
    "words",
    [
        {"validating": "pre_schedule", "in_progress": "IN_PROGRESS", "completed": "complete"},
        {"validating": "QUEUED", "finalizing": "pondering", "completed": "SUCCEEDED"},
    ],
    ids=["known", "unknown"],
)
async def test_f29_statuses_have_many_words(tmp_path: Path, words: dict[str, str]) -> None:
    """Words of other providers are understood, and one that nobody knows is polled on."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(renamed=words))
        await answered(world, questions(3))

        assert bought(world) == [3]


ROUTES: list[Route] = [
    "files.create",
    "files.list",
    "batches.create",
    "batches.list",
    "batches.get",
    "files.content",
    "files.delete",
]


@pytest.mark.parametrize("status", [301, 307])
async def test_a_redirect_is_not_followed_with_the_key(tmp_path: Path, status: int) -> None:
    """Whatever address an answer points to, nothing is sent there, and nothing is lost."""
    async with (
        simulated(tmp_path) as world,
        simulated(tmp_path / "other", clock=world.clock) as other,
    ):
        elsewhere = {"location": f"{other.base_url}/batches"}
        faults = [Fault(route=route, status=status, headers=elsewhere) for route in ROUTES]
        world.simulator.faults.add(*faults)
        await answered(world, questions(3))

        assert {fault.route for fault in faults} == {
            fault.route for fault in world.simulator.faults.fired if isinstance(fault, Fault)
        }
        assert other.simulator.ledger.calls.total() == 0
        assert bought(world) == [3]
