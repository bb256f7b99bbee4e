"""The main job, from a dropped file to its answers, and what may come in between."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from promptspool.app import Daemon
from promptspool.simulator import BatchFault, Call, Fault, SimulatorSettings
from promptspool.simulator.failures import Failure
from promptspool.simulator.wire import BatchError
from world import overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio


def questions(count: int, *, mark: str = "") -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0`, `q1` …; each prompt ends with *mark*."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}? {mark}"} for n in range(count)]


def ids(count: int) -> list[str]:
    """Return the ids of `questions`."""
    return [f"q{n}" for n in range(count)]


async def answered(world: World, rows: Sequence[object], *, errors: Sequence[str] = ()) -> None:
    """Drop *rows* as `f.jsonl`, run to the end and hold the laws; *errors* are the ids to fail."""
    world.drop("f.jsonl", rows)

    assert await world.drain()

    world.assert_conserved("f.jsonl", ids(len(rows)))
    world.assert_bought_once()
    assert [line["custom_id"] for line in world.errors("f.jsonl")] == list(errors)


async def test_a_dropped_file_is_answered(tmp_path: Path) -> None:
    """Every prompt of a dropped file has its answer in the outbox, in order, for one batch."""
    async with simulated(tmp_path) as world:
        await answered(world, questions(20))

        assert len(world.simulator.ledger.creations) == 1
        assert not list(world.spool.inbox.iterdir())
        assert not list(world.spool.working.iterdir())
        assert (world.spool.done / "f.jsonl").exists()


async def test_nothing_is_left_at_the_provider(tmp_path: Path) -> None:
    """Input, output and error files are deleted once the answers are delivered."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(fail_ordinals=frozenset({1})))
        await answered(world, questions(5))

        ledger = world.simulator.ledger
        assert len(ledger.uploads) == 2
        assert len(ledger.deletions) == 2 + 1 + 2  # inputs, an error file, outputs


async def test_cleanup_can_be_switched_off(tmp_path: Path) -> None:
    """With `cleanup = false` nothing is deleted at the provider."""
    off = {"providers": {"openai": {"cleanup": False}}}

    async with simulated(tmp_path, overrides=off) as world:
        await answered(world, questions(2))

        assert world.simulator.ledger.deletions == []


async def test_files_of_others_stay(tmp_path: Path) -> None:
    """Two spools on one account leave each other's files and batches alone."""
    async with simulated(tmp_path) as world, simulated(tmp_path / "other") as other:
        other.base_url, other.simulator = world.base_url, world.simulator
        other.clock = world.clock
        world.drop("f.jsonl", questions(3))
        other.drop("f.jsonl", questions(4))

        assert await world.drain()
        assert await other.drain()

        world.assert_conserved("f.jsonl", ids(3))
        other.assert_conserved("f.jsonl", ids(4))
        assert len(world.simulator.ledger.creations) == 2


async def test_models_and_endpoints_get_their_own_batches(tmp_path: Path) -> None:
    """Rows for different models or endpoints go to different batches and merge again in order."""
    kinds = [
        (
            "/v1/chat/completions",
            {"model": "gpt-5", "messages": [{"role": "user", "content": "a"}]},
        ),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "b"}),
        (
            "/v1/chat/completions",
            {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]},
        ),
        ("/v1/responses", {"model": "gpt-5", "input": "c"}),
        ("/v1/completions", {"model": "gpt-5", "prompt": "d"}),
        ("/v1/moderations", {"model": "omni-moderation-latest", "input": "e"}),
    ]
    rows = [
        {"custom_id": f"q{n}", "method": "POST", "url": url, "body": body}
        for n, (url, body) in enumerate(kinds * 3)
    ]

    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", rows)

        assert await world.drain()

        world.assert_conserved("f.jsonl", ids(18))
        assert len(world.simulator.ledger.creations) == len(kinds)


async def test_a_ready_request_is_passed_through(tmp_path: Path) -> None:
    """The body of a ready request reaches the provider byte for byte."""
    body = b'{"model": "gpt-5",  "messages": [{"role":"user","content":"\\u2028 \\ud83d\\ude00"}]}'
    line = b'{"custom_id": "q0", "method": "POST", "url": "/v1/chat/completions", "body": %s}\r\n'

    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", b"\xef\xbb\xbf" + line % body)
        uploads = world.root / "remote"

        assert await world.drain()

        world.assert_conserved("f.jsonl", ["q0"])
        assert uploads.exists()
        done = (world.spool.done / "f.jsonl").read_bytes()
        assert done == b"\xef\xbb\xbf" + line % body


async def test_text_files_are_prompts(tmp_path: Path) -> None:
    """A text file is one prompt a line, named after file and line; U+2028 ends no line."""
    async with simulated(tmp_path) as world:
        world.drop("asks.txt", "first\r\n\nthird\u2028 still third\n".encode())

        assert await world.drain()

        world.assert_conserved("asks.txt", ["asks-1", "asks-3"])


async def test_batches_stay_within_the_limits(tmp_path: Path) -> None:
    """A file larger than a batch is split, and its answers are one file again."""
    small = {"providers": {"openai": {"max_requests": 7}}}

    async with simulated(tmp_path, overrides=small) as world:
        await answered(world, questions(30))

        assert sorted(c.requests for c in world.simulator.ledger.creations) == [2, 7, 7, 7, 7]


async def test_only_failures_are_retried(tmp_path: Path) -> None:
    """A request that fails retryably goes into a small successor and succeeds there."""
    rows = questions(10)
    rows[3]["prompt"] += "[[fail:500 once]]"
    rows[7]["prompt"] += "[[missing]]"

    async with simulated(tmp_path) as world:
        await answered(world, rows, errors=["q7"])

        creations = [creation.requests for creation in world.simulator.ledger.creations]
        assert creations == [10, 2, 1]
        error = world.errors("f.jsonl")[0]
        assert error["error"]["code"] == "missing"
        assert error["attempts"] == 3
        assert error["source"] == {"file": "f.jsonl", "line": 8}


async def test_hopeless_requests_are_reported_at_once(tmp_path: Path) -> None:
    """A request that can never succeed is not retried, and its error is the provider's own."""
    rows = questions(4)
    rows[2]["prompt"] += "[[fail:400]]"

    async with simulated(tmp_path) as world:
        await answered(world, rows, errors=["q2"])

        assert len(world.simulator.ledger.creations) == 1
        error = world.errors("f.jsonl")[0]
        assert error["attempts"] == 1
        assert error["response"]["status_code"] == 400
        assert error["response"]["body"]["error"]["code"] == "context_length_exceeded"


async def test_attempts_are_bounded(tmp_path: Path) -> None:
    """A request that always fails retryably is tried `max_attempts` times."""
    rows = questions(3, mark="[[fail:500]]")
    twice = {"profiles": {"default": {"max_attempts": 2}}}

    async with simulated(tmp_path, overrides=twice) as world:
        await answered(world, rows, errors=ids(3))

        assert [creation.requests for creation in world.simulator.ledger.creations] == [3, 3]
        assert world.errors("f.jsonl")[0]["attempts"] == 2
        assert not (world.spool.outbox / "f.jsonl.results.jsonl").read_bytes()


@pytest.mark.parametrize("ending", ["expired", "cancelled"])
async def test_what_finished_is_kept(tmp_path: Path, ending: Any) -> None:
    """An expired or cancelled batch keeps its answers; only the rest is asked again."""
    seldom = {"polling": {"cap": "30m"}}

    async with simulated(tmp_path, overrides=seldom) as world:
        world.simulator.faults.add_batch(BatchFault(ending=ending, done=0.6))
        await answered(world, questions(10))

        assert [creation.requests for creation in world.simulator.ledger.creations] == [10, 4]


async def test_a_batch_may_complete_without_output(tmp_path: Path) -> None:
    """A completed batch whose requests all failed has no output file, and that is no fault."""
    async with simulated(tmp_path) as world:
        await answered(world, questions(3, mark="[[fail:400]]"), errors=ids(3))

        assert world.summary("f.jsonl")["batches"][0]["status"] == "completed"


async def test_named_lines_are_cut_out(tmp_path: Path) -> None:
    """A batch that fails for some lines goes on without them, and they are named in our terms."""
    fault = BatchFault(
        ending="failed",
        errors=[BatchError(code="invalid_request", line=2, message="line 2 is odd")],
    )

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(fault)
        world.drop("f.jsonl", b"\n".join(json.dumps(row).encode() for row in [None, *questions(4)]))

        assert await world.drain()

        assert [line["custom_id"] for line in world.errors("f.jsonl")] == ["f-1", "q1"]
        error = world.errors("f.jsonl")[1]
        assert error["error"] == {"code": "invalid_request", "message": "line 2 is odd"}
        assert error["source"]["line"] == 3
        faults = world.summary("f.jsonl")["batches"][0]["faults"]
        assert faults[0]["source_line"] == 3


async def test_want_of_room_costs_no_attempt(tmp_path: Path) -> None:
    """A batch turned away for its tokens waits, reuses its upload, and costs nobody an attempt."""
    fault = BatchFault(
        ending="failed", times=4, errors=[BatchError(code="token_limit_exceeded", message="full")]
    )

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(fault)
        await answered(world, questions(5))

        ledger = world.simulator.ledger
        assert len(ledger.creations) == 5
        assert len(ledger.uploads) == 1
        assert world.summary("f.jsonl")["batches"][-1]["attempt"] == 0


async def test_a_batch_too_big_for_its_account_is_made_smaller(tmp_path: Path) -> None:
    """A batch that alone exceeds the room of its account is halved until it fits."""
    room = SimulatorSettings(enqueued_tokens={"gpt-5-mini": 60})

    async with simulated(tmp_path, settings=room) as world:
        await answered(world, questions(16))


async def test_unknown_words_are_polled_on(tmp_path: Path) -> None:
    """A status that nobody knows is not the end of a batch."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(renamed={"in_progress": "pondering"}))
        await answered(world, questions(3))


async def test_a_batch_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """After `max_age` a stuck batch is cancelled and what it answered is delivered."""
    young = {"retry": {"max_age": "6h"}}

    async with simulated(tmp_path, overrides=young) as world:
        world.simulator.faults.add_batch(BatchFault(stuck_in="in_progress", done=0.5))
        world.drop("f.jsonl", questions(4))

        assert await world.drain()

        world.assert_conserved("f.jsonl", ids(4))
        assert world.simulator.ledger.cancels
        assert len(world.simulator.ledger.creations) == 1


LOST_ANSWERS = [
    Fault(route="batches.create", point="after", action="cut"),
    Fault(route="batches.create", point="after", action="reset"),
    Fault(route="batches.create", point="after", action="truncate"),
    Fault(route="batches.create", point="after", action="empty"),
    Fault(route="batches.create", point="after", action="garbage"),
    Fault(route="batches.create", point="after", action="status", status=503, body="<html>"),
    Fault(route="batches.create", point="after", action="status", status=500),
]


@pytest.mark.parametrize("fault", LOST_ANSWERS, ids=lambda fault: f"{fault.action}-{fault.status}")
async def test_a_lost_answer_buys_nothing_twice(tmp_path: Path, fault: Fault) -> None:
    """However the answer to a create is lost, there is one batch in the end."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(fault)
        await answered(world, questions(3))

        assert len(world.simulator.ledger.creations) == 1


async def test_a_lost_answer_and_a_list_that_lags(tmp_path: Path) -> None:
    """A list that shows a batch only after half a minute leads to no second one."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="batches.create", point="after", action="cut"))
        world.simulator.faults.add_batch(BatchFault(list_lag_s=30))
        await answered(world, questions(3))

        assert len(world.simulator.ledger.creations) == 1


async def test_a_create_that_never_arrived_is_offered_again(tmp_path: Path) -> None:
    """A create that did nothing is looked up twice and then made once."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="batches.create", point="before", action="cut"))
        await answered(world, questions(3))

        assert len(world.simulator.ledger.creations) == 1


EVERY_ROUTE = ["files.create", "batches.create", "batches.get", "files.content", "files.delete"]
SPOILED: list[dict[str, Any]] = [
    {"action": "status", "status": 503, "body": "<html>bad gateway</html>"},
    {"action": "status", "status": 429, "headers": {"Retry-After": "17"}},
    {"action": "status", "status": 401},
    {"action": "garbage"},
    {"action": "cut"},
    {"action": "truncate"},
]


@pytest.mark.parametrize(
    "spoiled", SPOILED, ids=lambda kind: f"{kind['action']}{kind.get('status', '')}"
)
@pytest.mark.parametrize("route", EVERY_ROUTE)
async def test_one_fault_anywhere_costs_only_time(
    tmp_path: Path, route: Any, spoiled: dict[str, Any]
) -> None:
    """One fault anywhere costs time, never a prompt or a second batch."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route=route, times=2, **spoiled))
        await answered(world, questions(3))

        assert len(world.simulator.ledger.creations) == 1


async def test_a_job_never_moves_to_another_address(tmp_path: Path) -> None:
    """A changed base_url buys nothing again; set back, the job goes on, and new ones never stop."""
    patient = {"retry": {"max_age": "3650d"}}

    async with (
        simulated(tmp_path, overrides=patient) as world,
        simulated(tmp_path / "other", clock=world.clock) as other,
    ):
        world.simulator.faults.add(Fault(route="batches.create", times=None, status=429))
        world.drop("f.jsonl", questions(3))

        with anyio.CancelScope() as scope, overheard(provider_paused=scope.cancel):
            await world.drain()

        world.simulator.faults.clear()
        home, world.base_url = world.base_url, other.base_url
        world.drop("g.jsonl", questions(2))

        with anyio.CancelScope() as scope, overheard(job_delivered=scope.cancel):
            await world.drain()

        assert len(world.results("g.jsonl")) == 2
        assert len(other.simulator.ledger.creations) == 1
        assert world.simulator.ledger.creations == []
        world.base_url = home

        assert await world.drain()

        world.assert_conserved("f.jsonl", ids(3))
        assert len(world.simulator.ledger.creations) == 1


async def test_a_refused_key_pauses_and_loses_nothing(tmp_path: Path) -> None:
    """While the key is refused the provider is paused; afterwards everything goes on."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="files.create", times=20, status=401))
        await answered(world, questions(3))

        assert world.clock.monotonic() > 3600


async def test_too_large_is_halved(tmp_path: Path) -> None:
    """An upload refused with 413 is split until it fits."""
    async with simulated(tmp_path, settings=SimulatorSettings(max_bytes=1_000)) as world:
        await answered(world, questions(12))

        assert len(world.simulator.ledger.creations) > 1


async def test_doubts_are_looked_at_twice(tmp_path: Path) -> None:
    """An output file that appears late, or an id that is blank for none, loses no answer."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(late_file_ids=3, blank_file_ids=True))
        await answered(world, questions(6))

        assert len(world.simulator.ledger.creations) == 1


async def test_noise_in_answers_is_ignored(tmp_path: Path) -> None:
    """Repeated and foreign lines change nothing, and a torn line costs only a retry of its own."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(duplicate=3, foreign=2, torn_lines=1))
        await answered(world, questions(8))

        assert [creation.requests for creation in world.simulator.ledger.creations] == [8, 1]


async def test_what_cannot_be_read_is_kept_for_people(tmp_path: Path) -> None:
    """A line that is no answer was perhaps paid for: it is delivered as it came, once."""
    torn = [b'{"custom_id": "half', b"<html>"]

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(lines=torn))
        await answered(world, questions(6))

        unreadable = world.spool.outbox / "f.jsonl.unreadable.txt"
        assert unreadable.read_bytes() == b"\n".join(torn) + b"\n"
        assert world.summary("f.jsonl")["files"]["unreadable"] == unreadable.name
        assert len(world.simulator.ledger.creations) == 1


async def test_a_batch_that_stands_still_is_told(tmp_path: Path) -> None:
    """A batch that makes no progress for hours is a warning, each time as many hours again."""
    often = {"polling": {"stalled": "30m", "cap": "10m"}, "retry": {"max_age": "125m"}}

    async with simulated(tmp_path, overrides=often) as world:
        world.simulator.faults.add_batch(BatchFault(stuck_in="finalizing"))
        world.drop("f.jsonl", questions(3))

        with overheard() as lines:
            assert await world.drain()

        stalls = [line for line in lines if line["event"] == "batch.stalled"]
        assert [line["remote_status"] for line in stalls] == ["finalizing"] * 3
        world.assert_conserved("f.jsonl", ids(3))


async def test_errors_in_the_output_file_are_errors(tmp_path: Path) -> None:
    """A failure is told by what its line says, not by the file it came in."""
    failure = Failure(status=400, kind="invalid_request_error", code="odd", message="no")

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(
            BatchFault(fail_ordinals=frozenset({1}), failure=failure, errors_in_output=True)
        )
        await answered(world, questions(3), errors=["q1"])


async def test_bad_rows_are_errors_with_their_line(tmp_path: Path) -> None:
    """A row that is no request is an error with file and line; the others are answered."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", b'{"id":"q0","prompt":"a"}\n{"id":"q1"\n{"id":"q2","prompt":"c"}\n')

        assert await world.drain()

        world.assert_conserved("f.jsonl", ["q0", "f-2", "q2"])
        error = world.errors("f.jsonl")[0]
        assert error["source"] == {"file": "f.jsonl", "line": 2}
        assert error["attempts"] == 0


REJECTED = [
    ("f.jsonl", b"", "empty"),
    ("f.jsonl", "caf\u00e9".encode("latin-1"), "UTF-8"),
    ("f.jsonl", b"nonsense\n", "not one"),
    ("f.odd", b"hello", ".jsonl"),
    ("nobody/f.jsonl", b'{"prompt":"a"}\n', "known profiles: default"),
]


@pytest.mark.parametrize(("name", "content", "said"), REJECTED, ids=lambda value: str(value)[:20])
async def test_unusable_files_are_rejected_with_a_reason(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    """A file that holds no request goes to `rejected/`, with a reason that says what to do."""
    async with simulated(tmp_path) as world:
        world.drop(name, content)

        assert await world.drain()

        assert (world.spool.rejected / name).read_bytes() == content
        note = json.loads((world.spool.rejected / f"{name}.rejected.json").read_text())
        assert said.lower() in note["reason"].lower()
        assert world.simulator.ledger.uploads == []
        assert not list(world.spool.working.iterdir())


async def test_the_same_name_again_replaces_nothing(tmp_path: Path) -> None:
    """A second file of the same name gets names of its own, and so does a third."""
    async with simulated(tmp_path) as world:
        for count in (1, 2, 3):
            world.drop("f.jsonl", questions(count))

            assert await world.drain()

        world.assert_conserved("f.jsonl", ids(1))
        world.assert_conserved("f.jsonl-2", ids(2))
        world.assert_conserved("f.jsonl-3", ids(3))
        assert (world.spool.done / "f.jsonl-3").exists()


async def test_a_name_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """A file that somebody put under a reserved name stays, and the answers go elsewhere."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(2))
        theirs = world.spool.outbox / "f.jsonl.results.jsonl"
        world.simulator.faults.add(
            Fault(route="files.content"), when=lambda _: not theirs.write_text("mine")
        )
        world.simulator.faults.add(Fault(route="files.get"), when=lambda _: False)

        assert await world.drain()

        assert theirs.read_text() == "mine"
        world.assert_conserved("f.jsonl-2", ids(2))


async def test_profiles_are_folders(tmp_path: Path) -> None:
    """A file in `inbox/<profile>/` is rendered by that profile and delivered under its folder."""
    profiles = {
        "profiles": {
            "cities": {
                "model": "gpt-5",
                "prompt": "Where is {{ city }}?",
                "id": "c-{{ city }}",
                "system": "Answer in one word.",
                "params": {"temperature": 0},
            }
        }
    }

    async with simulated(tmp_path, overrides=profiles) as world:
        world.drop("cities/deep/f.jsonl", [{"city": "Bonn"}, {"city": "Ulm"}])

        assert await world.drain()

        world.assert_conserved("cities/deep/f.jsonl", ["c-Bonn", "c-Ulm"])
        assert "Where is Bonn?" in json.dumps(world.results("cities/deep/f.jsonl")[0])


async def test_the_same_content_can_be_skipped(tmp_path: Path) -> None:
    """With `on_same_content = "skip"` a file that was dropped before is rejected, and says so."""
    skip = {"profiles": {"default": {"on_same_content": "skip"}}}

    async with simulated(tmp_path, overrides=skip) as world:
        world.drop("f.jsonl", questions(2))
        assert await world.drain()
        world.drop("g.jsonl", questions(2))
        assert await world.drain()

        note = json.loads((world.spool.rejected / "g.jsonl.rejected.json").read_text())
        assert "f.jsonl" in note["reason"]
        assert len(world.simulator.ledger.creations) == 1


async def test_content_that_was_rejected_was_not_dropped_before(tmp_path: Path) -> None:
    """A file put into the wrong folder is no reason to refuse it in the right one."""
    skip = {"profiles": {"default": {"on_same_content": "skip"}}}

    async with simulated(tmp_path, overrides=skip) as world:
        daemon = Daemon(settings=world.settings(), clock=world.clock)
        world.drop("typo/f.jsonl", questions(2))

        def drop_again() -> None:
            world.drop("f.jsonl", questions(2))

        with overheard(job_rejected=drop_again, job_tidied=daemon.stop):
            await world.run(daemon)

        world.assert_conserved("f.jsonl", ids(2))


async def test_equal_files_dropped_together_are_paid_for_once(tmp_path: Path) -> None:
    """With `on_same_content = "skip"` that holds for files that are planned at one moment, too."""
    skip = {
        "profiles": {"default": {"on_same_content": "skip"}},
        "lanes": {"disk": 8},
    }

    async with simulated(tmp_path, overrides=skip) as world:
        names = [f"f{number}.jsonl" for number in range(8)]

        for name in names:
            world.drop(name, questions(2))

        assert await world.drain()

        delivered = [name for name in names if world.results(name)]
        assert len(delivered) == 1
        assert len(world.simulator.ledger.creations) == 1
        assert len(list(world.spool.rejected.glob("*.rejected.json"))) == 7


async def test_many_files_are_in_flight_at_once(tmp_path: Path) -> None:
    """Files do not wait for each other: thirty of them take no longer than one."""
    async with simulated(tmp_path) as world:
        for number in range(30):
            world.drop(f"f{number}.jsonl", questions(3))

        assert await world.drain()

        for number in range(30):
            world.assert_conserved(f"f{number}.jsonl", ids(3))

        world.assert_bought_once()
        assert world.clock.monotonic() < 1_500


async def test_many_batches_are_read_off_the_list(tmp_path: Path) -> None:
    """A hundred batches are polled by a few pages of the list, not one by one."""
    single = {"providers": {"openai": {"max_requests": 1}}}

    async with simulated(tmp_path, overrides=single) as world:
        await answered(world, questions(100))

        calls = world.simulator.ledger.calls
        assert calls["batches.get"] < 50
        assert calls["batches.list"] < 100


async def test_a_rejected_name_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """A rejection never replaces what somebody has put into `rejected/`."""
    async with simulated(tmp_path) as world:
        for content in (b"", b"[]\n"):
            world.drop("f.jsonl", content)

            assert await world.drain()

        assert (world.spool.rejected / "f.jsonl").read_bytes() == b""
        assert (world.spool.rejected / "f.jsonl-2").read_bytes() == b"[]\n"


async def test_a_live_batch_is_never_looked_for_elsewhere(tmp_path: Path) -> None:
    """A batch that runs at one address is not declared lost because another does not know it."""
    patient = {"retry": {"max_age": "3650d"}}

    async with (
        simulated(tmp_path, overrides=patient, settings=SimulatorSettings(run_s=40_000)) as world,
        simulated(
            tmp_path / "other", clock=world.clock, settings=SimulatorSettings(seed="other")
        ) as other,
    ):
        world.drop("f.jsonl", questions(3))

        with anyio.CancelScope() as scope, overheard(batch_created=scope.cancel):
            await world.drain()

        assert len(world.simulator.ledger.creations) == 1
        home, world.base_url = world.base_url, other.base_url
        world.drop("g.jsonl", questions(2))

        with anyio.CancelScope() as scope, overheard(job_delivered=scope.cancel):
            await world.drain()

        assert len(world.results("g.jsonl")) == 2
        assert len(other.simulator.ledger.creations) == 1
        world.base_url = home

        assert await world.drain()

        world.assert_conserved("f.jsonl", ids(3))
        assert len(world.simulator.ledger.creations) == 1


async def test_a_key_of_another_project_buys_nothing_again(tmp_path: Path) -> None:
    """When the account knows neither batch nor file, nothing is lost and nothing bought again."""
    patient = {"retry": {"max_age": "3650d"}}
    unknown = [Fault(route=route, times=60, status=404) for route in ("batches.get", "files.get")]

    async with simulated(tmp_path, overrides=patient) as world:
        world.simulator.faults.add(*unknown)
        nothing = '{"object":"list","data":[],"has_more":false}'
        world.simulator.faults.add(
            Fault(route="batches.list", times=60, status=200, body=nothing),
            Fault(route="files.list", times=60, status=200, body=nothing),
        )
        await answered(world, questions(3))

        assert len(world.simulator.ledger.creations) == 1
        assert world.clock.monotonic() > 3600


async def test_a_batch_that_is_gone_is_asked_again(tmp_path: Path) -> None:
    """A batch really lost, in an account that knows its file, is replaced after a quarter hour."""
    async with simulated(tmp_path) as world:
        remote: list[str] = []

        def is_first(call: Call) -> bool:
            remote.append(call.remote_id or "")
            return call.remote_id == remote[0]

        world.simulator.faults.add(
            Fault(route="batches.get", times=None, status=404), when=is_first
        )
        world.simulator.faults.add_batch(BatchFault(list_lag_s=1e9))
        await answered(world, questions(3))

        assert len(world.simulator.ledger.creations) == 2
        assert world.clock.monotonic() > 900


async def test_a_large_file_becomes_three_batches_and_one_result(tmp_path: Path) -> None:
    """120,000 prompts are three batches at the provider and one result, in input order."""
    count = 120_000

    async with simulated(tmp_path) as world:
        world.drop("f.txt", "".join(f"prompt {n}\n" for n in range(count)))

        assert await world.drain()

        path = world.spool.outbox / "f.txt.results.jsonl"

        with path.open("rb") as lines:
            found = [json.loads(line)["custom_id"] for line in lines]

        assert found == [f"f-{n}" for n in range(1, count + 1)]
        assert [creation.requests for creation in world.simulator.ledger.creations].count(
            50_000
        ) == 2
        assert len(world.simulator.ledger.creations) == 3


async def test_a_key_refused_at_recall_pauses_the_provider(tmp_path: Path) -> None:
    """A key that is refused at a restart pauses the provider, and the job goes on afterwards."""
    async with simulated(tmp_path, settings=SimulatorSettings(run_s=80_000)) as world:
        world.drop("f.jsonl", questions(3))

        with anyio.CancelScope() as scope, overheard(batch_created=scope.cancel):
            await world.drain()

        world.simulator.faults.add(Fault(route="batches.list", times=4, status=401))

        assert await world.drain()

        world.assert_conserved("f.jsonl", ids(3))
        world.assert_bought_once()
        assert world.simulator.ledger.calls["batches.list"] <= 4 + 4


async def test_an_unknown_model_is_told_in_the_providers_words(tmp_path: Path) -> None:
    """A create declined for its model blocks nobody: it is an error of these requests."""
    body = '{"error":{"message":"The model gpt-9 does not exist","code":"model_not_found"}}'

    async with simulated(tmp_path) as world:
        world.simulator.faults.add(Fault(route="batches.create", status=404, body=body))
        await answered(world, questions(2), errors=ids(2))

        assert world.errors("f.jsonl")[0]["error"]["code"] == "model_not_found"
        assert world.clock.monotonic() < 60


async def test_a_request_file_that_was_changed_is_never_submitted(tmp_path: Path) -> None:
    """A request file that somebody damaged is not paid for, and stops nobody else."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))
        damaged: list[Path] = []

        def damage(_call: Call) -> bool:
            for path in [] if damaged else world.spool.working.glob("*/*.requests.jsonl"):
                path.write_bytes(path.read_bytes()[:200])
                damaged.append(path)

            return True

        world.simulator.faults.add(Fault(route="files.create", status=503), when=damage)

        assert not await world.drain()
        assert damaged
        assert world.simulator.ledger.creations == []

        world.drop("g.jsonl", questions(2))

        assert not await world.drain()
        assert len(world.results("g.jsonl")) == 2


async def test_a_damaged_plan_is_set_aside(tmp_path: Path) -> None:
    """A manifest that somebody damaged ends its own job, with a word, and no drain waits for it."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", questions(3))

        def damage(_call: Call) -> bool:
            for path in world.spool.working.glob("*/manifest.json"):
                whole[path] = whole.get(path) or path.read_bytes()
                path.write_bytes(b"{")

            return False

        whole: dict[Path, bytes] = {}
        world.simulator.faults.add(Fault(route="files.content"), when=damage)

        assert not await world.drain()
        assert len(world.simulator.ledger.creations) == 1

        for path, content in whole.items():
            path.write_bytes(content)

        assert await world.drain()  # whoever mended it has started again
        assert len(world.results("f.jsonl")) == 3
        world.assert_bought_once()
