from __future__ import annotations

import json
import tracemalloc
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from desk import FIRST, GIVE_UP_AT, JOB, Desk, bad, ok, told, unrun
from promptspool.collect import compile_answers, summarise, user_lines
from promptspool.collect.row_answers import RowAnswer, RowError
from promptspool.errors import Bug
from promptspool.model import Job, RemoteStatus
from promptspool.outcomes import Doubtful
from promptspool.wire import Manifest, wire_id

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDED = (RemoteStatus.COMPLETED, RemoteStatus.EXPIRED, RemoteStatus.CANCELLED, RemoteStatus.LOST)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Return an empty folder."""
    return Desk(tmp_path)


def test_an_answered_batch_leaves_nothing(desk: Desk) -> None:
    """A batch whose requests are all answered has no successor, in whatever order they came."""
    batch = desk.plan(3)
    desk.answer(batch, ok(2), ok(0), ok(1))
    result = desk.settled(batch, looks=0)

    assert (result.answered, result.failed, result.left) == (3, 0, 0)
    results, errors = desk.products()
    assert [line["id"] for line in results] == ["b0", "b1", "b2"]
    assert errors == []


def test_what_failed_for_the_providers_reasons_is_asked_again(desk: Desk) -> None:
    """Requests that may do better go on with one attempt more; those that cannot are final."""
    batch = desk.plan(5)
    desk.answer(batch, ok(0), bad(3, 500))
    desk.answer(batch, bad(1), bad(2, 429), ok(4), kind="error")
    (successor,) = desk.settled(batch, attempt=1, waits=7, halvings=2).successors

    assert successor.id == f"{FIRST}+1"
    assert desk.rows(successor.id) == [2, 3]
    assert (successor.attempt, successor.waits, successor.halvings) == (2, 0, 0)
    assert (successor.delay_s, successor.input_file) == (60.0, None)


def test_the_last_attempt_is_the_last(desk: Desk) -> None:
    """With its attempts used up, a request keeps the provider's error, or gets one of ours."""
    batch = desk.plan(3)
    desk.answer(batch, bad(0, 500), ok(1))
    result = desk.settled(batch, attempt=2)

    assert (result.answered, result.failed, result.left) == (1, 2, 0)
    _, errors = desk.products()
    assert [(line["custom_id"], line["attempts"], line["source"]) for line in errors] == [
        ("user-0", 3, {"file": "may.jsonl", "line": 1}),
        ("user-2", 3, {"file": "may.jsonl", "line": 5}),
    ]
    assert errors[0]["response"]["status_code"] == 500
    assert errors[1]["error"] == {
        "code": "missing",
        "message": "the provider ended the batch without a word on this request",
    }


def test_one_error_that_hits_most_again_ends_the_asking(desk: Desk) -> None:
    """What failed in one way for most of a batch, twice, is final; what failed otherwise is not."""
    desk.stop_requests = 8
    batch = desk.plan(10)
    lines = [*(bad(row, 500, "down") for row in range(9)), bad(9, 503, "busy")]
    desk.answer(batch, *lines, kind="error")
    result = desk.settled(batch, attempt=1)

    assert (result.stopped, result.failed) == ("down", 9)
    assert [desk.rows(successor.id) for successor in result.successors] == [[9]]


@pytest.mark.parametrize(
    ("down", "attempt", "stop_requests"),
    [(10, 0, 8), (8, 1, 8), (10, 1, 11)],
    ids=["once is no proof", "too small a share", "too few to matter"],
)
def test_what_may_yet_succeed_is_asked_again(
    desk: Desk, down: int, attempt: int, stop_requests: int
) -> None:
    """Failures that are new, not of one kind or few are asked again while attempts are left."""
    desk.stop_requests = stop_requests
    batch = desk.plan(10)
    lines = [bad(row, 500, "down" if row < down else "busy") for row in range(10)]
    desk.answer(batch, *lines, kind="error")
    result = desk.settled(batch, attempt=attempt)

    assert (result.stopped, result.failed, result.left) == (None, 0, 10)


def test_answers_that_fit_no_schema_are_not_bought_by_the_thousand(desk: Desk) -> None:
    """A schema that most answers miss is not paid for a second time."""
    desk.stop_requests = 8
    desk.response_schema = {"type": "object"}
    batch = desk.plan(10)
    desk.answer(batch, *(told(row, "no object") for row in range(10)))
    result = desk.settled(batch)

    assert (result.stopped, result.failed, result.left) == ("schema_mismatch", 10, 0)


def test_what_never_ran_is_no_part_of_the_share(desk: Desk) -> None:
    """Of a batch cut short, the share that failed is of what was asked; the rest goes on."""
    desk.stop_requests = 4
    batch = desk.plan(10)
    lines = [*(bad(row, 500, "down") for row in range(5)), *(unrun(row) for row in range(5, 10))]
    desk.answer(batch, *lines, kind="error")
    result = desk.settled(batch, attempt=1, remote_status=RemoteStatus.EXPIRED)

    assert (result.stopped, result.failed, result.left) == ("down", 5, 5)


def test_missing_answers_get_a_second_look(desk: Desk) -> None:
    """What a completed batch leaves out, or counts otherwise, is believed only the second time."""
    batch = desk.plan(3)
    desk.answer(batch, ok(0), ok(1))
    result = desk.settle(batch, remote_status=RemoteStatus.COMPLETED)
    assert result == Doubtful(reason="the batch is completed, but 1 of 3 requests have no answer")

    expired: dict[str, Any] = {"remote_status": RemoteStatus.EXPIRED, "completed": 2, "failed": 1}
    result = desk.settle(batch, **expired)
    assert result == Doubtful(reason="the provider counts 3 answers, its files have 2")
    assert not list(desk.folder.glob("*.settled.json"))

    (successor,) = desk.settled(batch).successors
    assert (desk.rows(successor.id), successor.attempt) == ([2], 1)


def test_a_lost_batch_is_asked_again(desk: Desk) -> None:
    """A batch that is gone for good takes an attempt, without a second look."""
    batch = desk.plan(2)
    lost = {"remote_status": RemoteStatus.LOST, "completed": 2, "looks": 0}
    (successor,) = desk.settled(batch, **lost).successors

    assert (desk.rows(successor.id), successor.attempt) == ([0, 1], 1)


@pytest.mark.parametrize(
    ("status", "delay_s"), [(RemoteStatus.EXPIRED, 0.0), (RemoteStatus.CANCELLED, 120.0)]
)
def test_what_never_ran_takes_no_attempt(desk: Desk, status: RemoteStatus, delay_s: float) -> None:
    """A batch cut short has two successors: what failed, and what it never came to."""
    batch = desk.plan(5)
    desk.answer(batch, ok(0), bad(1, 500))
    desk.answer(batch, unrun(2), unrun(3, "batch_cancelled"), kind="error")
    failed, waiting = desk.settled(batch, remote_status=status, attempt=1, waits=2).successors

    assert (failed.id, desk.rows(failed.id), failed.attempt) == (f"{FIRST}.1", [1], 2)
    assert (waiting.id, desk.rows(waiting.id), waiting.attempt) == (f"{FIRST}.2", [2, 3, 4], 1)
    assert (waiting.waits, waiting.delay_s) == (3, delay_s)


def test_an_old_job_has_no_successors(desk: Desk) -> None:
    """After give_up_at a request keeps what the provider said of it; silence becomes our error."""
    batch = desk.plan(4)
    desk.answer(batch, ok(0), bad(1, 500), unrun(2))
    result = desk.settled(batch, remote_status=RemoteStatus.EXPIRED, now=GIVE_UP_AT)

    assert (result.answered, result.failed, result.successors) == (1, 3, [])
    _, errors = desk.products()
    codes = [(line["error"] or line["response"]["body"]["error"])["code"] for line in errors]
    assert codes == ["bad", "batch_expired", "max_age_exceeded"]
    assert [line["attempts"] for line in errors] == [1, 0, 0]


REFUSAL = {"remote_status": RemoteStatus.FAILED, "looks": 0}


def test_no_room_waits_with_the_same_upload(desk: Desk) -> None:
    """A batch turned away for want of room is offered again as it is, later and later."""
    batch = desk.plan(3)
    errors = '[{"code": "token_limit_exceeded", "message": "no"}]'
    (successor,) = desk.settled(batch, **REFUSAL, errors=errors, attempt=1, waits=2).successors

    assert (successor.attempt, successor.waits, successor.delay_s) == (1, 3, 240.0)
    assert (successor.input_file, successor.digest) == ("file-1", batch.digest)

    again = desk.follow(batch, successor)
    (successor,) = desk.settled(again, **REFUSAL, errors=errors, waits=500).successors
    assert (successor.id, successor.delay_s) == (f"{FIRST}+2", 3600.0)


def test_a_file_not_seen_yet_is_uploaded_again(desk: Desk) -> None:
    """An upload that the provider does not find is made anew, a few times."""
    batch = desk.plan(3)
    errors = '[{"message": "No such File object: file-1"}]'
    (successor,) = desk.settled(batch, **REFUSAL, errors=errors, reuploads=1).successors

    assert (successor.requests, successor.reuploads, successor.delay_s) == (3, 2, 40.0)
    assert successor.input_file is None


def test_named_lines_are_taken_out(desk: Desk) -> None:
    """Requests that the provider names are final, in its words; the rest goes on at once."""
    batch = desk.plan(5, faults=(1,))
    errors = (
        '[{"code": "invalid_json_line", "message": "not JSON", "line": 2},'
        ' {"code": "invalid_json_line", "message": "again", "line": 2}, {"line": 4}]'
    )
    (successor,) = desk.settled(batch, **REFUSAL, errors=errors, attempt=1).successors

    assert (desk.rows(successor.id), successor.attempt, successor.delay_s) == ([0, 3], 1, 0.0)
    rest = desk.follow(batch, successor)
    desk.answer(rest, ok(0), ok(3))
    desk.settled(rest)
    _, failures = desk.products()
    assert [(line["custom_id"], line["error"], line["attempts"]) for line in failures] == [
        ("user-1", {"code": "invalid_json", "message": "broken JSON"}, 0),
        ("user-2", {"code": "invalid_json_line", "message": "not JSON"}, 1),
        (
            "user-4",
            {
                "code": "batch_failed",
                "message": "the provider failed the whole batch and gave no reason",
            },
            1,
        ),
    ]


def test_a_batch_of_named_lines_has_no_successor(desk: Desk) -> None:
    """If every request is named, nothing is left."""
    batch = desk.plan(2)
    errors = '[{"code": "a", "line": 1}, {"code": "b", "line": 2}]'

    assert desk.settled(batch, **REFUSAL, errors=errors).successors == []
    assert [line["error"]["code"] for line in desk.products()[1]] == ["a", "b"]


def test_refusals_without_a_name_are_halved(desk: Desk) -> None:
    """A refusal that says nothing of lines is narrowed down three times, and then final."""
    live = [desk.plan(20)]
    sizes = []

    while live:
        batch = live.pop(0)
        sizes.append(batch.requests)
        result = desk.settled(batch, **REFUSAL, errors='[{"code": "odd"}]', attempt=1)
        assert all(successor.attempt == 1 for successor in result.successors)
        live += [desk.follow(batch, successor) for successor in result.successors]

    assert sizes == [20, 10, 10, 5, 5, 5, 5, 3, 2, 3, 2, 3, 2, 3, 2]
    assert {line["error"]["code"] for line in desk.products()[1]} == {"odd"}


def test_a_file_too_large_is_halved_as_often_as_it_takes(desk: Desk) -> None:
    """A 413 shrinks the file down to single requests."""
    live = [desk.plan(33)]
    refusal = {"remote_status": RemoteStatus.REFUSED, "errors": '[{"code": "too_large"}]'}
    alone = 0

    while live:
        batch = live.pop(0)
        result = desk.settled(batch, **refusal)
        alone += result.failed
        live += [desk.follow(batch, successor) for successor in result.successors]

    assert alone == 33


@pytest.mark.parametrize(
    ("errors", "error"),
    [
        (
            '[{"code": "model_not_found", "message": "no such model"}]',
            {"code": "model_not_found", "message": "no such model"},
        ),
        (
            '[{"code": "token_limit_exceeded", "message": "no room"}]',
            {
                "code": "max_age_exceeded",
                "message": "the job grew older than retry.max_age before this was answered; "
                "the provider's last word: no room",
            },
        ),
        (
            None,
            {
                "code": "max_age_exceeded",
                "message": "the job grew older than retry.max_age before this was answered",
            },
        ),
    ],
)
def test_an_old_refusal_is_final(desk: Desk, errors: str | None, error: dict[str, str]) -> None:
    """After give_up_at a refused batch is final, and says the most that is known."""
    batch = desk.plan(2)
    result = desk.settled(batch, **REFUSAL, errors=errors, now=GIVE_UP_AT)

    assert (result.failed, result.successors) == (2, [])
    found = desk.products()[1]
    assert [(line["error"], line["attempts"]) for line in found] == [(error, 0)] * 2


def test_a_failed_batch_with_answers_is_collected(desk: Desk) -> None:
    """Answers count, whatever the batch's status says."""
    batch = desk.plan(2)
    desk.answer(batch, ok(1))
    result = desk.settled(batch, **REFUSAL)

    assert (result.answered, desk.rows(result.successors[0].id)) == (1, [0])


def test_noise_is_counted_and_left_out(desk: Desk) -> None:
    """Broken lines, foreign names and second answers change nothing."""
    batch = desk.plan(4, faults=(3,))
    foreign = {**ok(1), "custom_id": "other-1"}
    desk.answer(batch, b"{", bad(0, 500), ok(0, "first"), ok(0, "second"), foreign, ok(3), ok(9))
    desk.answer(batch, bad(0), b"\xff", ok(1), ok(2), {"custom_id": wire_id(JOB, 1)}, kind="error")
    assert desk.settled(batch).answered == 3
    results, _ = desk.products()
    tally = compile_answers(folder=desk.folder, job=JOB, source="x", batches=desk.batches)

    assert results[0]["response"]["body"]["text"] == "first"
    assert (tally.noise.malformed, tally.noise.foreign, tally.noise.duplicate) == (3, 3, 3)


def test_answers_keep_their_bytes(desk: Desk) -> None:
    """A result is what the provider wrote, under the user's own id, in one line."""
    batch = desk.plan(1)
    body = '{"z": 1.500,  "a":"\\u00e9 \u2028"}'.encode()
    response = b'{"status_code":200 ,"body":%s}' % body
    line = b'{"extra":1,\r"custom_id":"%s","response":%s}\r' % (wire_id(JOB, 0).encode(), response)
    desk.answer(batch, line)
    desk.settled(batch)
    desk.products()

    assert (desk.folder / "results.jsonl").read_bytes() == (
        b'{"id":null,"custom_id":"user-0","response":%s,"error":null}\n' % response
    )


def test_half_written_files_are_written_anew(desk: Desk) -> None:
    """A crash before the settlement leaves files that are neither believed nor written into."""
    batch = desk.plan(4)
    requests = desk.folder / f"{FIRST}.requests.jsonl"
    before = requests.read_bytes()
    desk.answer(batch, ok(0))
    (desk.folder / f"{FIRST}+1.requests.jsonl").hardlink_to(requests)
    (desk.folder / f"{FIRST}.refused.jsonl").write_bytes(b"half a l")
    (desk.folder / f"{FIRST}.settled.json.part").write_bytes(b"{")
    (successor,) = desk.settled(batch).successors

    assert desk.rows(successor.id) == [1, 2, 3]
    assert requests.read_bytes() == before
    assert not (desk.folder / f"{FIRST}.refused.jsonl").exists()


def test_a_changed_request_file_is_a_bug(desk: Desk) -> None:
    """A batch that is not what was planned is never guessed about."""
    batch = desk.plan(3)

    with pytest.raises(Bug, match="3 requests in its file, 2 expected"):
        desk.settle(replace(batch, requests=2))


def test_a_line_changed_in_place_is_never_asked_again(desk: Desk) -> None:
    """What is left of a batch is sent only as it was planned, also where its size is the same."""
    batch = desk.plan(4)
    desk.answer(batch, ok(0))
    requests = desk.folder / f"{FIRST}.requests.jsonl"
    requests.write_bytes(requests.read_bytes().replace(b'"prompt":"2"', b'"prompt":"7"'))

    with pytest.raises(Bug, match="its request file was changed since it was planned"):
        desk.settle(batch)

    assert not (desk.folder / f"{FIRST}.settled.json").exists()


def test_a_row_without_an_end_is_a_bug(desk: Desk) -> None:
    """Nothing is delivered while a row has neither an answer nor an error."""
    batch = desk.plan(2)
    desk.answer(batch, ok(0))

    with pytest.raises(Bug, match=r"row 1 \(line 3\) has neither an answer nor an error"):
        desk.products()

    assert not (desk.folder / "results.jsonl").exists()


def test_lines_are_those_of_the_dropped_file(desk: Desk) -> None:
    """A line that the provider names is told as the line that the user knows."""
    batch = desk.plan(4, faults=(1,))

    lines = user_lines(folder=desk.folder, batch=batch.id, lines=[1, 2, 3, 4, 0, -1])
    assert lines == {1: 1, 2: 5, 3: 7}
    assert user_lines(folder=desk.folder, batch=batch.id, lines=[]) == {}


def test_a_delivered_copy_keeps_its_bytes(desk: Desk) -> None:
    """Compiling again never writes into a file that has been published under another name."""
    batch = desk.plan(1)
    desk.answer(batch, ok(0))
    desk.settled(batch)
    desk.products()
    (desk.folder / "published").hardlink_to(desk.folder / "results.jsonl")
    desk.answer(batch, ok(0, "changed"))
    desk.products()

    assert b"changed" not in (desk.folder / "published").read_bytes()


def test_the_summary_adds_up(desk: Desk) -> None:
    """The summary says what was delivered, what it took, and where the provider complained."""
    batch = desk.plan(4, faults=(0,))
    errors = '[{"code": "invalid_request", "message": "no", "line": 2}]'
    (successor,) = desk.settled(batch, **REFUSAL, errors=errors).successors
    rest = desk.follow(batch, successor)
    desk.answer(rest, ok(1), ok(3))
    created = {"remote_id": "batch_2", "created_at": 60.0, "errors": None}
    desk.settled(rest, **created)
    tally = compile_answers(folder=desk.folder, job=JOB, source="may.jsonl", batches=desk.batches)
    job = Job(
        id=JOB,
        name=b"may.jsonl",
        stem=b"may.jsonl",
        profile="default",
        provider="p",
        base_url="https://api.example",
        claimed_at=0.0,
        planned_at=1.5,
    )
    manifest = Manifest(
        job=JOB,
        source="may.jsonl",
        digest="0",
        rows=4,
        bad_rows=1,
        give_up_at=GIVE_UP_AT,
        max_attempts=3,
        profile={},
        batches=[],
    )
    told: dict[str, Any] = {
        "job": job,
        "manifest": manifest,
        "batches": desk.batches,
        "tally": tally,
        "folder": desk.folder,
        "stem": "may.jsonl",
        "delivered_at": 3600.0,
    }
    found: dict[str, Any] = summarise(**told)

    assert json.loads(json.dumps(found)) == found
    assert found["counts"] == {"requests": 4, "results": 2, "errors": 2}
    assert found["errors_by_code"] == {"invalid_json": 1, "invalid_request": 1}
    used = {"input": 20, "cached_input": 0, "output": 4, "reasoning": 0}
    assert found["tokens"] == {"gpt-5-mini": used}
    assert found["cost"]["batch_usd"] == pytest.approx((20 * 0.125 + 4 * 1) / 1e6, abs=1e-6)
    assert found["cost"]["estimate"] is True
    assert found["timings"] == {
        "claimed_at": "1970-01-01T00:00:00.000Z",
        "planned_at": "1970-01-01T00:00:01.500Z",
        "delivered_at": "1970-01-01T01:00:00.000Z",
        "duration_s": 3600.0,
    }
    assert found["files"] == {
        "results": "may.jsonl.results.jsonl",
        "errors": "may.jsonl.errors.jsonl",
        "unreadable": None,
    }
    assert [one["faults"] for one in found["batches"]] == [
        [{"code": "invalid_request", "message": "no", "line": 2, "source_line": 5}],
        [],
    ]
    assert [one["status"] for one in found["batches"]] == ["failed", "completed"]


def test_answers_are_not_held(desk: Desk) -> None:
    """Delivering holds a few bytes for each row, and no answer."""
    batch = desk.plan(20_000)
    text = "x" * 500
    desk.answer(batch, *(msgspec.json.encode(ok(row, text)) for row in reversed(range(20_000))))
    tracemalloc.start()
    desk.settled(batch)
    tally = compile_answers(folder=desk.folder, job=JOB, source="x", batches=desk.batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert tally.results == 20_000
    assert peak < (desk.folder / "results.jsonl").stat().st_size / 2


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}
FITS = '{\n "score": 3\n}'


def test_what_does_not_fit_is_asked_again(desk: Desk) -> None:
    """A misfit takes an attempt; refused and cut off answers are final, and paid for once."""
    desk.response_schema = SCHEMA
    batch = desk.plan(5)
    cut = told(2, '{"sco', "length")
    desk.answer(batch, told(0, FITS), told(1, "{}"), cut, told(3, "no"), bad(4, 500))
    result = desk.settled(batch)

    assert (result.answered, result.failed, result.left) == (1, 1, 3)
    assert desk.rows(result.successors[0].id) == [1, 3, 4]
    assert result.successors[0].attempt == 1


def test_a_successor_may_fit(desk: Desk) -> None:
    """The answer that fits is delivered with its value; the one before it is only paid for."""
    desk.response_schema = SCHEMA
    batch = desk.plan(2)
    desk.answer(batch, told(0, FITS), told(1, "{}"))
    (successor,) = desk.settled(batch).successors
    again = desk.follow(batch, successor)
    desk.answer(again, told(1, '{"score": 1.0}'))
    desk.settled(again)
    results, errors = desk.products()

    assert errors == []
    assert [line["parsed"] for line in results] == [{"score": 3}, {"score": 1.0}]
    assert [list(line)[-2:] for line in results] == [["error", "parsed"]] * 2
    data = (desk.folder / "results.jsonl").read_bytes()
    assert data.splitlines()[0].endswith(b',"error":null,"parsed":{"score":3}}')


def test_attempts_run_out_on_misfits(desk: Desk) -> None:
    """The last misfit is an error line that says what is wrong and keeps what was paid for."""
    desk.response_schema = SCHEMA
    batch = desk.plan(2, faults=(1,))

    for attempt in range(3):
        desk.answer(batch, told(0, f'{{"score": "{attempt}"}}'))
        result = desk.settled(batch)
        assert len(result.successors) == (attempt < 2)

        if result.successors:
            batch = desk.follow(batch, result.successors[0])

    results, (error, _) = desk.products()
    assert results == []
    assert error["error"] == {
        "code": "schema_mismatch",
        "message": 'at $.score: "2" is not of type "integer"',
    }
    assert error["response"]["body"]["choices"][0]["message"]["content"] == '{"score": "2"}'
    assert (error["attempts"], error["source"]) == (3, {"file": "may.jsonl", "line": 1})
    assert desk.tally().codes == {"schema_mismatch": 1, "invalid_json": 1}


def test_a_final_misfit_is_told_once(desk: Desk) -> None:
    """What is not asked again says why, and after how many attempts."""
    desk.response_schema = SCHEMA
    batch = desk.plan(1)
    desk.answer(batch, told(0, "", "content_filter"))
    assert desk.settled(batch).failed == 1
    _, (error,) = desk.products()

    assert error["error"]["code"] == "content_filtered"
    assert (error["attempts"], error["response"]["status_code"]) == (1, 200)


def test_without_a_schema_any_text_is_an_answer(desk: Desk) -> None:
    """What nobody asked for is not demanded, and results have no value beside them."""
    batch = desk.plan(2)
    desk.answer(batch, told(0, "no"), told(1, "", "content_filter"))
    assert desk.settled(batch).answered == 2
    results, _ = desk.products()

    assert [list(line)[-1] for line in results] == ["error", "error"]


def test_shapes_are_shown_every_row_in_order(desk: Desk) -> None:
    """Whoever makes another product learns of each row what the results and errors say."""
    desk.response_schema = SCHEMA
    batch = desk.plan(5, faults=(1,))
    desk.answer(batch, told(4, "{}"), told(3, FITS), bad(2), unrun(0))
    desk.settled(batch, now=GIVE_UP_AT, remote_status=RemoteStatus.EXPIRED)
    rows: list[RowAnswer] = []

    def shape(answered: Iterator[RowAnswer]) -> dict[str, str]:
        rows.extend(answered)

        return {"results.csv": "no room"}

    tally = desk.tally(shape)

    assert tally.left_out == {"results.csv": "no room"}
    assert [one.row.id for one in rows] == [f"user-{row}" for row in range(5)]
    assert [one.ok for one in rows] == [False, False, False, True, False]
    assert [one.error for one in rows] == [
        RowError("batch_expired", "too late"),
        RowError("invalid_json", "broken JSON"),
        RowError("bad", None),
        None,
        RowError("schema_mismatch", 'at $: "score" is a required property'),
    ]
    assert [one.parsed for one in rows] == [None, None, None, b'{"score":3}', None]
    assert [one.tokens.input for one in rows] == [0, 0, 0, 10, 10]
    assert [one.answer is None for one in rows] == [False, True, False, False, False]
    assert (tally.results, tally.errors) == (1, 4)


GOOD_KINDS = ("ok", "twice")
MISFITS = ("misfit", "cut")
KINDS = (*GOOD_KINDS, *MISFITS, "final", "retry", "unrun", "missing", "garbage", "foreign")


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 3))
def test_no_request_is_lost_or_paid_for_twice(
    data: st.DataObject, count: int, max_attempts: int
) -> None:
    """Whatever is answered over the generations, each row ends once, asked as often as allowed."""
    with TemporaryDirectory() as name:
        desk = Desk(Path(name))
        desk.response_schema = data.draw(st.sampled_from([None, SCHEMA]))
        good_kinds = GOOD_KINDS if desk.response_schema else (*GOOD_KINDS, *MISFITS)
        faults = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
        live = [desk.plan(count, tuple(faults))]
        answered: set[int] = set()
        asked: defaultdict[int, int] = defaultdict(int)

        for generation in range(30):
            if not live:
                break

            batch = live.pop(data.draw(st.integers(0, len(live) - 1)))
            rows = desk.rows(batch.id)
            drawn = [data.draw(st.sampled_from(KINDS), label="kind") for _ in rows]
            lines = _drawn_lines(rows, drawn)
            good = {row for row, kind in zip(rows, drawn, strict=True) if kind in good_kinds}
            split = data.draw(st.integers(0, len(lines)))
            desk.answer(batch, *lines[:split])
            desk.answer(batch, *lines[split:], kind="error")
            assert not answered & good
            answered |= good
            status = data.draw(st.sampled_from(ENDED))

            for row, kind in zip(rows, drawn, strict=True):
                never_ran = status in (RemoteStatus.EXPIRED, RemoteStatus.CANCELLED)
                is_silent = kind in ("missing", "garbage", "foreign")
                asked[row] += kind != "unrun" and not (is_silent and never_ran)

            now = GIVE_UP_AT if generation >= 15 else 0.0
            result = desk.settled(batch, remote_status=status, now=now, max_attempts=max_attempts)
            live += [desk.follow(batch, successor) for successor in result.successors]

        assert not live
        results, errors = desk.products()

    assert {line["custom_id"] for line in results} == {f"user-{row}" for row in answered}
    assert max(asked.values()) <= max_attempts
    attempts = {line["custom_id"]: line["attempts"] for line in errors}
    assert all(attempts[f"user-{row}"] == 0 for row in faults)


def _drawn_lines(rows: list[int], drawn: list[str]) -> list[dict[str, object] | bytes]:
    """Return a provider's lines for *rows*."""
    lines: dict[str, Any] = {
        "ok": lambda row: [told(row, FITS)],
        "misfit": lambda row: [told(row, "no")],
        "cut": lambda row: [told(row, "", "length")],
        "final": lambda row: [bad(row)],
        "retry": lambda row: [bad(row, 503)],
        "unrun": lambda row: [unrun(row)],
        "missing": lambda _: [],
        "garbage": lambda row: [msgspec.json.encode(ok(row))[:-9]],
        "foreign": lambda row: [{**ok(row), "custom_id": f"other-{row}"}],
        "twice": lambda row: [bad(row), told(row, FITS), bad(row, 500), told(row, "{}")],
    }

    return [line for row, kind in zip(rows, drawn, strict=True) for line in lines[kind](row)]
