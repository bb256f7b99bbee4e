"""`show`: the story of one job, from the database and from its files."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from filled import NOW, batch, filled, job, provider, said
from promptspool import log
from promptspool.app import Daemon
from promptspool.clock import SystemClock
from promptspool.model import BatchId, BatchStatus, JobStatus, Notice, NoticeStatus, RemoteStatus
from promptspool.simulator import BatchFault
from promptspool.tell.page import page_of
from promptspool.tell.record import record
from promptspool.tell.story import story_of
from world import KEY, overheard, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.spool import Spool
    from promptspool.tell.story import Story

PROMPT = "the prompt that nobody is to read"


def shown(spool: Spool, text: str) -> tuple[Story, str]:
    """Return the story of a job, and its page."""
    now = SystemClock().now()
    story = story_of(spool, text, now=now)

    return story, "\n".join(line.plain for line in page_of(story, spool, now=now))


def errors_file(spool: Spool, name: str, lines: list[dict[str, Any]]) -> None:
    """Deliver errors for *name*, as the daemon does."""
    path = spool.outbox / f"{name}.errors.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def error(
    code: str, message: str, *, attempts: int = 1, line: int = 1, **more: Any
) -> dict[str, Any]:
    """Return a line of errors, with what the provider answered."""
    body = {"error": {"code": code, "message": message}}
    response = {"status_code": 400, "request_id": f"req-{line}", "body": body}

    return {
        "id": "x", "custom_id": f"q{line}", "response": response, "error": None,
        "attempts": attempts, "source": {"file": "may.csv", "line": line},
    } | more  # fmt: skip


def delivered(name: str, **changes: Any) -> Any:
    """Return the row of a job that was delivered with errors."""
    return job(1, name, status=JobStatus.DONE, delivered_at=NOW - 5, requests=100, results=88,
               errors=12, **changes)  # fmt: skip


@pytest.mark.anyio
async def test_a_real_delivery(tmp_path: Path) -> None:
    """What a run came to is told: batches with their ids, errors by code, files, and what to do."""
    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(fail_ordinals=frozenset({1, 3})))
        world.drop("f.jsonl", [{"id": f"q{n}", "prompt": PROMPT} for n in range(5)])

        assert await world.drain()

        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(5)])
        world.assert_bought_once()
        story, page = shown(world.spool, "f.jsonl")
        summary = world.summary("f.jsonl")
        created = world.simulator.ledger.batches_by_metadata("promptspool_batch")

    assert not world.spool.folder(story.job.id).exists()
    assert {cause.code: cause.count for cause in story.causes.found} == summary["errors_by_code"]
    assert {one.id: [one.remote_id] for one in story.batches} == created
    assert all(one.remote_id in page for one in story.batches if one.remote_id)
    assert PROMPT not in page
    assert "outbox/f.jsonl.results.jsonl" in page
    assert [step.became for step in story.steps if step.row == story.job.id] == [
        "claimed", "planned", "settled", "delivered", "done",
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_job_in_the_middle(tmp_path: Path) -> None:
    """Before it is delivered, errors are read from the provider's files, and said to be so far."""
    seen: list[tuple[Story, str]] = []

    async with simulated(tmp_path) as world:
        world.simulator.faults.add_batch(BatchFault(fail_ordinals=frozenset({1})))
        world.drop("f.jsonl", [{"id": f"q{n}", "prompt": PROMPT} for n in range(4)] + [{"id": "b"}])
        daemon = Daemon(settings=world.settings(), clock=world.clock, is_draining=True)

        with overheard(batch_closed=lambda: seen.append(shown(world.spool, "f.jsonl"))):
            await world.run(daemon)

    story, page = seen[0]
    assert not story.causes.is_final
    assert sum(cause.count for cause in story.causes.found) == 2  # one of them is a bad row
    assert "errors so far" in page
    assert PROMPT not in page


def test_causes_are_counted(tmp_path: Path) -> None:
    """Errors are grouped by code, the most frequent first, each with words, ids and a line."""
    spool = filled(tmp_path, delivered("may.csv"))
    lines = [error("too_long", "the input is too long", line=n) for n in range(2, 9)]
    lines += [error("rude", "mind your language", line=n) for n in range(20, 23)]
    lines += [error("http_500", "oops", line=30), error("odd", "odd", line=31)]
    errors_file(spool, "may.csv", lines)
    story, page = shown(spool, "may.csv")
    codes = Counter(line["response"]["body"]["error"]["code"] for line in lines)

    assert [(cause.code, cause.count) for cause in story.causes.found] == codes.most_common()
    assert story.causes.found[0].request_ids == ["req-2", "req-3", "req-4"]
    assert "7  too_long" in page
    assert "the input is too long  (first in line 2; request req-2, req-3, req-4)" in page
    assert "ask its 12 errors again: promptspool retry 000001" in page


def test_only_the_most_frequent_causes(tmp_path: Path) -> None:
    """Of very many causes ten are told apart, and the others are counted."""
    spool = filled(tmp_path, delivered("may.csv"))
    errors_file(spool, "may.csv", [error(f"e{n}", "x", line=n) for n in range(13)])
    story, page = shown(spool, "may.csv")

    assert (len(story.causes.found), story.causes.others) == (10, 3)
    assert "and 3 of further kinds" in page


def test_words_are_harmless(tmp_path: Path) -> None:
    """Of errors no key is shown, nothing that a terminal obeys, and no row that we quote."""
    log.keep_secret("sk-very-secret-key")
    spool = filled(tmp_path, delivered("may.csv"))
    fault = {"code": "invalid_row", "message": f"found '{PROMPT}'; write a number"}
    errors_file(
        spool,
        "may.csv",
        [
            error("key", "wrong key sk-very-secret-key \x1b[31m" + "x" * 500),
            error("", "", attempts=0, line=9, response=None, error=fault),
        ],
    )
    _, page = shown(spool, "may.csv")

    assert "wrong key *** \\x1b[31mxxx" in page
    assert 'found "..."; write a number' in page
    assert PROMPT not in page
    assert "sk-very" not in page
    assert page.replace("\n", "").isprintable()
    assert max(map(len, page.splitlines())) < 500


def test_the_key_is_struck_out(tmp_path: Path) -> None:
    """The command knows the keys of its configuration, and shows none."""
    one = job(1, status=JobStatus.HELD, why=f"said {KEY}")
    filled(tmp_path, one)
    path = tmp_path / "promptspool.toml"
    (tmp_path / "key").write_text(KEY)
    path.write_text(path.read_text().replace('api_key_env = "NO_SUCH_KEY"', 'api_key_file = "key"'))
    _, out, _ = said("show", "000001", "--config", path)

    assert "said ***" in out


def test_batches_are_a_tree(tmp_path: Path) -> None:
    """What holds the leftovers of a batch is below it, wherever it was added."""
    one = job(1)
    first = batch(one, 1, status=BatchStatus.CLOSED, due_at=None, answered=90, unanswered=4,
                  remote_status=RemoteStatus.COMPLETED)  # fmt: skip
    second = batch(one, 2)
    heir = replace(
        batch(one, 9), id=BatchId(f"{one.id}.1+1"), parent=first.id, requests=6, attempt=1
    )
    spool = filled(tmp_path, one, first, second, heir)
    _, page = shown(spool, "000001")
    section = page.split("batches\n")[1].split("\n\n")[0].splitlines()

    assert [line.split()[0] for line in section] == [".1", ".1+1", ".2"]
    assert [len(line) - len(line.lstrip()) for line in section] == [2, 4, 2]
    assert "90/100, 4 failed, 6 passed on" in section[0]
    assert "attempt 2" in section[1]


def test_complaints_and_failures(tmp_path: Path) -> None:
    """What a provider says against a whole batch is below it, and what failed last."""
    one = job(1)
    faults = json.dumps([{"code": f"c{n}", "message": "bad\nline", "line": n} for n in range(5)])
    spool = filled(tmp_path, one, batch(one, errors=faults, why="HTTP 503: busy", failures=4))
    _, page = shown(spool, "000001")

    assert "c0: bad line (line 0 of its request file)" in page
    assert "and 2 more complaints" in page
    assert "HTTP 503: busy (failed 4 times)" in page


def test_a_rejected_file(tmp_path: Path) -> None:
    """A rejected file has its reason, and where it is."""
    spool = filled(tmp_path, job(1, "may.csv", status=JobStatus.REJECTED, why="no rows"))
    (spool.rejected / "may.csv").touch()
    _, page = shown(spool, "may.csv")

    assert "no rows" in page
    assert "rejected/may.csv" in page
    assert "mend the file as the reason says, and drop it again" in page


def test_a_delivery_that_was_taken_away(tmp_path: Path) -> None:
    """Where the errors are not there any more, that is said, and the rest is told."""
    spool = filled(tmp_path, delivered("may.csv"))
    story, page = shown(spool, "may.csv")

    assert story.files == []
    assert "may.csv.errors.jsonl is not there any more" in page
    assert "88 answered, 12 failed" in page


@pytest.mark.parametrize(
    ("rows", "advice"),
    [
        ([job(1, status=JobStatus.HELD, why="too dear")], "promptspool release 000001"),
        ([job(1), batch(job(1), stalls=1)], "promptspool cancel 000001"),
        ([job(1), batch(job(1), due_at=None)], "promptspool logs --job 000001"),
        ([job(1)], "promptspool run"),
    ],
)
def test_advice(tmp_path: Path, rows: list[Any], advice: str) -> None:
    """Whatever is wrong comes with a command that helps."""
    story, page = shown(filled(tmp_path, *rows), "000001")

    assert any(advice in line for line in story.advice)
    assert page.splitlines()[-len(story.advice) :] == [f"  {line}" for line in story.advice]


def test_notices(tmp_path: Path) -> None:
    """Who was told of it, and who was not, is in the story."""
    one = job(1)
    notice = Notice(id="n", job=one.id, event="job.held", target="webhook", made_at=NOW,
                    status=NoticeStatus.DROPPED, failures=7, why="HTTP 500")  # fmt: skip
    _, page = shown(filled(tmp_path, one, notice), "000001")

    assert "job.held to the webhook: dropped, failed 7 times: HTTP 500" in page


def test_json(tmp_path: Path) -> None:
    """--json has the rows as they are, and the errors as they are counted."""
    one = delivered("may.csv", cost_usd=0.5, standard_usd=1.0)
    part = batch(one, status=BatchStatus.CLOSED, due_at=None, answered=88, unanswered=12,
                 input_tokens=70, output_tokens=7, created_at=NOW - 90)  # fmt: skip
    spool = filled(tmp_path, provider(), one, part)
    errors_file(spool, "may.csv", [error("rude", "mind your language")] * 12)
    code, out, _ = said("show", "may.csv", "--json", "--config", tmp_path / "promptspool.toml")
    found = json.loads(out)

    assert code == 0
    assert found == json.loads(json.dumps(record(shown(spool, "may.csv")[0])))
    assert {name: found["job"][name] for name in ("id", "results", "errors", "cost_usd")} == {
        "id": one.id, "results": 88, "errors": 12, "cost_usd": 0.5,
    }  # fmt: skip
    assert found["batches"][0]["input_tokens"] == 70
    assert found["errors"]["causes"] == [{
        "code": "rude", "count": 12, "message": "mind your language",
        "request_ids": ["req-1"] * 3, "line": 1,
    }]  # fmt: skip


def test_an_unknown_job(tmp_path: Path) -> None:
    """A name that stands for no job is one line on stderr, and code 1."""
    filled(tmp_path)
    code, out, errors = said("show", "nobody.csv", "--config", tmp_path / "promptspool.toml")

    assert (code, out) == (1, "")
    assert errors.startswith("promptspool: no job is called 'nobody.csv'")


def test_hostile_names(tmp_path: Path) -> None:
    """A file may be called what it will."""
    name = b"evil\x1b[2J\xff\n[bold].txt"
    spool = filled(tmp_path, job(1, name, profile="p\x1b[0m"))
    (spool.folder(job(1, name).id)).mkdir()
    (spool.folder(job(1, name).id) / "original").touch()
    _, page = shown(spool, os.fsdecode(name))

    assert page.splitlines()[0].startswith(r"evil\x1b[2J\xff\x0a[bold].txt")
    assert page.replace("\n", "").isprintable()
