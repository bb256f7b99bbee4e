"""`status`: whether what it says is so, on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from filled import NOW, batch, filled, held, job, on_terminal, provider, said
from promptspool.clock import SystemClock
from promptspool.model import (
    Batch,
    BatchStatus,
    Job,
    JobStatus,
    Notice,
    NoticeStatus,
    ProviderStatus,
    RemoteStatus,
    Work,
)
from promptspool.policy.jobs import WITHDRAWN
from promptspool.settings import load
from promptspool.tell import document
from promptspool.tell.looking import looked
from promptspool.tell.screen import Place, lines_of
from world import overheard, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.tell.figures import Report

HOSTILE = b"evil\x1b[2J\xff\n[bold]\xe2\x80\xae.txt"
"""Clears a screen, is no UTF-8, breaks a line, is markup to some, and turns the writing round."""

SHOWN = r"evil\x1b[2J\xff\x0a[bold]\u202e.txt"

DAY_S = 86_400


def status(root: Path, *options: str) -> tuple[int, str, str]:
    """Run `status` on the spool that `filled` made at *root*."""
    return said("status", "--config", root / "promptspool.toml", *options)


def told(root: Path) -> dict[str, Any]:
    """Return what `status --json` says of it, without the detour of a command."""
    settings = load(root / "promptspool.toml")
    report = looked(settings, now=SystemClock().now())
    found: dict[str, Any] = json.loads(json.dumps(document.document(report, settings.spool.path)))

    return found


def seconds(text: str | None) -> float | None:
    """Return a moment of the document in Unix seconds."""
    return None if text is None else datetime.fromisoformat(text).timestamp()


def ended(made: Job, *, age_s: float = 3600.0, why: str | None = None) -> list[Any]:
    """Return the rows of a job that was delivered, or with a reason *why* rejected, so long ago."""
    before = replace(made, status=JobStatus.SETTLED)

    if why is not None:
        rejected = replace(before, status=JobStatus.REJECTED, why=why)

        return [(age_s + 60, before), (before, rejected, age_s)]

    delivered = replace(
        before, version=1, status=JobStatus.DELIVERED, results=9, errors=1, delivered_at=NOW - age_s
    )
    tidied = replace(delivered, status=JobStatus.DONE)

    return [(age_s + 60, before), (before, delivered, age_s), (delivered, tidied, age_s - 1)]


# The figures.


def batches_of(made: Job, number: int, chance: random.Random) -> list[tuple[float, Batch]]:
    """Return some batch of *made* in some state, and how long ago it came to be."""
    requests = chance.randint(1, 500)
    plain = batch(
        made, number, requests=requests, attempt=chance.choice((0, 0, 1)),
        model=chance.choice(("gpt-5", "gpt-5-mini")), estimated_input=chance.randint(1, 9_999),
        intended_at=NOW - chance.uniform(0, 40 * DAY_S), estimated_usd=chance.choice((None, 0.5)),
    )  # fmt: skip

    if chance.random() < 0.5:
        answered = chance.randint(0, requests)
        plain = replace(
            plain, status=BatchStatus.CLOSED, due_at=None, answered=answered,
            unanswered=chance.randint(0, requests - answered),
            input_tokens=chance.randint(0, 10**6), output_tokens=chance.randint(0, 10**5),
            cost_usd=chance.choice((None, chance.random())),
        )  # fmt: skip
        plain = replace(plain, standard_usd=plain.cost_usd and plain.cost_usd * 2)
    else:
        completed = chance.randint(0, requests)
        plain = replace(
            plain, completed=completed, failed=chance.randint(0, requests - completed),
            remote_status=chance.choice((RemoteStatus.IN_PROGRESS, RemoteStatus.FINALIZING)),
            due_at=NOW + chance.uniform(1, 100),
        )  # fmt: skip

    return [(chance.uniform(0, 2 * DAY_S), plain)]


@pytest.mark.parametrize("seed", range(4))
def test_every_number_follows_from_the_rows(tmp_path: Path, seed: int) -> None:
    """Each figure is what adding up the rows by hand comes to."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    jobs = [
        job(number, age_s=chance.uniform(0, 3 * DAY_S), requests=chance.randint(100, 3000),
            bad_rows=chance.randint(0, 9))
        for number in range(8)
    ]  # fmt: skip
    parts = [part for one in jobs for n in range(1, 6) for part in batches_of(one, n, chance)]
    over = [row for n in range(20, 24) for row in ended(job(n), age_s=chance.uniform(9, 2e5))]
    filled(tmp_path, provider(), *((1.0, one) for one in jobs), *parts, *over)
    found = told(tmp_path)
    rows = [part for _, part in parts]

    check_jobs(found, jobs, rows)
    check_ages(found, parts)
    check_money(found["providers"][0], rows)

    lately = [row[1].id for row in over if len(row) == 3 and row[2] < DAY_S - 60]
    assert {one["id"] for one in found["ended"]} == set(lately)
    assert all(one["results"] == 9 and one["errors"] == 1 for one in found["ended"])


def check_jobs(found: dict[str, Any], jobs: list[Job], rows: list[Batch]) -> None:
    """Hold what is said of jobs against the rows."""
    assert [one["id"] for one in found["jobs"]] == sorted(one.id for one in jobs)

    for one in found["jobs"]:
        row = next(row for row in jobs if row.id == one["id"])
        mine = [part for part in rows if part.job == row.id]
        live = [part for part in mine if part.status is not BatchStatus.CLOSED]
        over = [part for part in mine if part.status is BatchStatus.CLOSED]
        done = (
            sum(part.completed + part.failed for part in live)
            + sum(part.answered + part.unanswered for part in over)
            + row.bad_rows
        )
        costs = [part.cost_usd for part in over if part.cost_usd is not None]

        assert one["requests"] == row.requests
        assert one["requests_done"] == min(done, row.requests or 0)
        assert one["requests_retried"] == sum(part.requests for part in live if part.attempt)
        assert (one["batches"], one["batches_live"]) == (len(mine), len(live))
        assert sum(one["phases"].values()) == len(live)
        assert one["cost_usd"] == (pytest.approx(sum(costs)) if costs else None)
        assert seconds(one["claimed_at"]) == pytest.approx(row.claimed_at, abs=0.002)
        assert seconds(one["next_at"]) == (
            pytest.approx(min(part.due_at or 0 for part in live), abs=0.002) if live else None
        )


def check_ages(found: dict[str, Any], parts: list[tuple[float, Batch]]) -> None:
    """Hold the table of ages against the rows; ages near the end of a column may be in either."""
    ends = found["ages"]["columns_s"]
    late = seconds(found["at"]) or 0.0

    assert ends == [300 * 2**power for power in range(9)]

    for column in range(10):
        low = 0 if column == 0 else ends[column - 1]
        high = ends[column] if column < 9 else float("inf")
        ages = [
            late - NOW + age_s for age_s, part in parts if part.status is not BatchStatus.CLOSED
        ]

        assert sum(counts[column] for counts in found["ages"]["phases"].values()) == sum(
            low < age_s <= high for age_s in ages
        )


def check_money(found: dict[str, Any], rows: list[Batch]) -> None:
    """Hold what was spent against the rows."""
    now = datetime.fromtimestamp(NOW, UTC)
    day = now.replace(hour=0, minute=0, second=0).timestamp()
    month = now.replace(day=1, hour=0, minute=0, second=0).timestamp()

    def spent(since: float) -> float:
        known = [part for part in rows if (part.intended_at or 0) >= since]
        costs = [part.estimated_usd if part.cost_usd is None else part.cost_usd for part in known]

        return sum(cost or 0.0 for cost in costs)

    today = [part for part in rows if (part.intended_at or 0) >= day]
    enqueued: dict[str, int] = {}

    for part in rows:
        if part.status is BatchStatus.CREATED:
            enqueued[part.model] = enqueued.get(part.model, 0) + part.estimated_input

    assert found["today"]["usd"] == pytest.approx(spent(day))
    assert found["month"]["usd"] == pytest.approx(spent(month))
    assert found["today"]["input_tokens"] == sum(part.input_tokens for part in today)
    assert found["today"]["output_tokens"] == sum(part.output_tokens for part in today)
    assert found["today"]["saved_usd"] == pytest.approx(
        sum((part.standard_usd or 0.0) - (part.cost_usd or 0.0) for part in today)
    )
    assert found["enqueued_tokens"] == enqueued


def test_json_is_the_document(tmp_path: Path) -> None:
    """--json prints the document, and the exit code is as without it."""
    filled(tmp_path, provider(), job(1), batch(job(1)))
    code, out, errors = status(tmp_path, "--json")

    assert (code, errors) == (1, "")
    assert json.loads(out) | {"at": 0} == told(tmp_path) | {"at": 0}


def test_what_was_forgotten_was_spent(tmp_path: Path) -> None:
    """Jobs that the database has forgotten still count in what today and the month cost."""
    spool = filled(tmp_path, provider(), job(1),
                   batch(job(1), estimated_usd=0.25, intended_at=NOW))  # fmt: skip
    today = int(NOW // DAY_S)

    with closing(sqlite3.connect(spool.database)) as connection:
        rows = [("openai", today, 1.5, 3.0, 70, 7), ("openai", today - 40, 9.0, 18.0, 1, 1)]
        connection.executemany("INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.commit()

    found = told(tmp_path)["providers"][0]

    assert found["today"] == {
        "usd": 1.75, "saved_usd": 1.5, "input_tokens": 70, "output_tokens": 7,
    }  # fmt: skip
    assert found["month"] == {"usd": 1.75}


# Phases.

PLAIN: dict[str, Any] = {"remote_status": None, "intended_at": None, "remote_id": None}


@pytest.mark.parametrize(
    ("changes", "phase"),
    [
        ({**PLAIN, "status": BatchStatus.PLANNED, "due_at": NOW}, "uploading"),
        ({**PLAIN, "status": BatchStatus.PLANNED, "due_at": NOW + 99_999}, "to_upload"),
        ({**PLAIN, "status": BatchStatus.PLANNED, "due_at": NOW, "failures": 1}, "to_upload"),
        ({**PLAIN, "status": BatchStatus.UPLOADED, "due_at": NOW}, "creating"),
        ({**PLAIN, "status": BatchStatus.UPLOADED, "due_at": NOW + 99_999}, "to_create"),
        (
            {**PLAIN, "status": BatchStatus.UPLOADED, "due_at": NOW, "crowded_at": NOW - 9},
            "crowded",
        ),
        ({**PLAIN, "status": BatchStatus.CREATING, "due_at": NOW}, "creating"),
        ({**PLAIN, "status": BatchStatus.UNCLEAR, "due_at": NOW + 60}, "looking_up"),
        ({}, "queued"),
        ({"remote_status": RemoteStatus.VALIDATING}, "queued"),
        ({"remote_status": RemoteStatus.IN_PROGRESS}, "running"),
        ({"remote_status": RemoteStatus.IN_PROGRESS, "completed": 100}, "running"),
        ({"remote_status": RemoteStatus.FINALIZING, "completed": 100}, "finalizing"),
        ({"remote_status": RemoteStatus.CANCELLING}, "cancelling"),
        ({"remote_status": RemoteStatus.IN_PROGRESS, "cancelled_at": NOW}, "cancelling"),
        ({"remote_status": RemoteStatus.IN_PROGRESS, "stalls": 1}, "stalled"),
        ({"status": BatchStatus.ENDED, "due_at": NOW}, "collecting"),
        ({"status": BatchStatus.DOWNLOADED, "due_at": NOW}, "collecting"),
        ({"due_at": None, "why": "set aside: a bug"}, "set_aside"),
        ({"status": BatchStatus.ENDED, "due_at": None}, "set_aside"),
        ({**PLAIN, "status": BatchStatus.PLANNED, "due_at": None}, "set_aside"),
    ],
)
def test_phases_of_batches(tmp_path: Path, changes: dict[str, Any], phase: str) -> None:
    """Each state of a batch has one phase, as long as a daemon runs."""
    spool = filled(tmp_path, provider(), job(1), batch(job(1), **changes))

    with held(spool):
        found = told(tmp_path)

    assert found["jobs"][0]["phases"] == {phase: 1}


@pytest.mark.parametrize(
    ("changes", "phases", "text"),
    [
        ({"status": JobStatus.CLAIMED, "due_at": NOW}, {"planning": 1}, "planning"),
        ({"status": JobStatus.SETTLED, "due_at": NOW}, {"delivering": 1}, "delivering"),
        ({"status": JobStatus.UNUSABLE, "due_at": NOW}, {"rejecting": 1}, "to be rejected"),
        ({"status": JobStatus.DELIVERED, "due_at": NOW}, {"tidying": 1}, "delivered, tidying up"),
        ({"status": JobStatus.HELD, "why": "too dear"}, {"held": 1}, "held: too dear"),
        (
            {"status": JobStatus.CLAIMED, "why": "set aside: it broke"},
            {"set_aside": 1},
            "set aside: it broke",
        ),
    ],
)  # fmt: skip
def test_phases_of_jobs(
    tmp_path: Path, changes: dict[str, Any], phases: dict[str, int], text: str
) -> None:
    """A job that does not wait for its batches has a phase of its own."""
    filled(tmp_path, provider(), job(1, **changes))
    (found,) = told(tmp_path)["jobs"]

    assert (found["phases"], found["text"]) == (phases, text)


def test_a_job_in_several_phases(tmp_path: Path) -> None:
    """Phases are counted in the order in which they are gone through, retries first."""
    one = job(1)
    filled(
        tmp_path, provider(), one,
        batch(one, 1, status=BatchStatus.ENDED, due_at=NOW),
        batch(one, 2, remote_status=RemoteStatus.IN_PROGRESS),
        batch(one, 3, remote_status=RemoteStatus.IN_PROGRESS, requests=14, attempt=1),
        batch(one, 4, **PLAIN, status=BatchStatus.PLANNED, due_at=NOW + 9),
    )  # fmt: skip
    (found,) = told(tmp_path)["jobs"]

    assert found["text"] == "retrying 14 failed: 1 to be uploaded, 2 running, 1 collecting"


def test_paused_work_does_not_move(tmp_path: Path) -> None:
    """What is due does not move while it is paused, by the daemon, by hand or with the daemon."""
    one = job(1)
    waits = batch(one, **PLAIN, status=BatchStatus.PLANNED, due_at=NOW)
    paused = provider(pauses=1, paused_until=NOW + 600, paused_work=Work.UPLOADS, why="HTTP 503")

    for number, (state, meta) in enumerate(
        [(paused, {}), (provider(halted_at=NOW), {}), (provider(), {"halted_at": f"{NOW}"})]
    ):
        root = tmp_path / str(number)

        with held(filled(root, state, one, waits, meta=meta)):
            found = told(root)

        assert found["jobs"][0]["phases"] == {"to_upload": 1}
        assert "uploads" in found["providers"][0]["paused"]


# The daemon.


def test_up_starting_and_down(tmp_path: Path) -> None:
    """The lock says whether it runs, its notes since when, and which of its starts was the last."""
    spool = filled(tmp_path, meta={"started_at": f"{NOW - 60}", "ready_at": f"{NOW - 59}"})

    assert told(tmp_path)["daemon"]["state"] == "down"

    with held(spool):
        daemon = told(tmp_path)["daemon"]
        assert (daemon["state"], seconds(daemon["started_at"])) == ("up", NOW - 60)
        assert status(tmp_path)[1].startswith("promptspool  up for ")

    filled(tmp_path, meta={"started_at": f"{NOW - 5}"})

    with held(spool):
        daemon = told(tmp_path)["daemon"]
        assert (daemon["state"], daemon["ready_at"]) == ("starting", None)

    filled(tmp_path, meta={"halted_at": f"{NOW - 7200}"})
    assert "paused by hand for 2h" in status(tmp_path)[1]


@pytest.mark.anyio
async def test_a_real_run(tmp_path: Path) -> None:
    """In the middle of a run each step is told as it is, and at the end that it is over."""
    reports: list[Report] = []

    async with simulated(tmp_path) as world:

        def look() -> None:
            reports.append(looked(world.settings(), now=world.clock.now()))

        world.drop("f.jsonl", [{"id": f"q{n}", "prompt": "Why?"} for n in range(5)])

        with overheard(job_planned=look, batch_created=look, job_settled=look):
            assert await world.drain()

        look()
        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(5)])
        world.assert_bought_once()

    told_of = [[(line.text, line.done, line.total) for line in report.jobs] for report in reports]

    assert told_of == [
        [("uploading", 0, 5)],
        [("queued at the provider", 0, 5)],
        [("delivering", 5, 5)],
        [],
    ]
    assert [report.daemon.state for report in reports] == ["up", "up", "up", "down"]
    assert [(one.results, one.errors) for one in reports[-1].ended] == [(5, 0)]
    assert reports[-1].needs == []


# What needs a person.

NEEDS: dict[str, list[Any]] = {
    "nothing": [job(1), batch(job(1))],
    "held": [job(1, status=JobStatus.HELD, why="too dear")],
    "set_aside": [job(1), batch(job(1), due_at=None, why="set aside: a rule was broken")],
    "stalled": [job(1), batch(job(1), stalls=2, progressed_at=NOW - 50_000)],
    "rejected": ended(job(1), why="no prompts"),
    "notice": [
        job(1),
        (
            Notice(id="n", job=job(1).id, event="job.held", target="webhook", made_at=NOW),
            Notice(id="n", job=job(1).id, event="job.held", target="webhook", made_at=NOW,
                   status=NoticeStatus.DROPPED, why="nobody there"),
            60.0,
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", NEEDS)
def test_what_needs_a_person(tmp_path: Path, kind: str) -> None:
    """Whatever does not go on by itself is named with a command that helps, and the code is 1."""
    rows = NEEDS[kind]

    if kind == "notice":
        rows = [rows[0], (90.0, rows[1][0]), rows[1]]

    with held(filled(tmp_path, provider(), *rows)):
        found = told(tmp_path)
        code, out, _ = status(tmp_path)

    if kind == "nothing":
        assert (code, found["needs"]) == (0, [])
        assert "needs a person" not in out
        return

    (need,) = found["needs"]
    assert (code, need["kind"], need["job"]) == (1, kind, job(1).id)
    assert f"needs a person\n! {need['text']}\n    {'  or  '.join(need['commands'])}" in out
    assert all(re.fullmatch(r"promptspool [a-z]+ 000001", one) for one in need["commands"])


@pytest.mark.parametrize(
    ("changes", "is_blocked"),
    [
        ({"paused_at": NOW - 10, "why": "HTTP 401: Incorrect API key provided"}, True),
        ({"paused_at": NOW - 10, "why": "HTTP 429: You exceeded your current quota"}, True),
        ({"paused_at": NOW - 10, "why": "HTTP 429: Rate limit reached"}, False),
        ({"paused_at": NOW - 10, "why": "HTTP 503: overloaded"}, False),
        ({"paused_at": NOW - 5000, "why": "HTTP 503: overloaded"}, True),
    ],
)
def test_blocked_providers(tmp_path: Path, changes: dict[str, Any], is_blocked: bool) -> None:  # noqa: FBT001
    """A refusal needs a person at once, an outage when it lasts; a rate limit is no matter."""
    state = provider(pauses=3, paused_until=NOW + 60, **changes)

    with held(filled(tmp_path, state)):
        found = told(tmp_path)
        code, out, _ = status(tmp_path)

    assert [need["kind"] for need in found["needs"]] == ["blocked"] * is_blocked
    assert code == is_blocked
    assert changes["why"] in out


def test_what_a_person_took_back_needs_none(tmp_path: Path) -> None:
    """A file that went to rejected/ since somebody cancelled it is nobody's trouble."""
    with held(filled(tmp_path, *ended(job(1), why=WITHDRAWN))):
        assert told(tmp_path)["needs"] == []


def test_held_until_another_day(tmp_path: Path) -> None:
    """What goes on by itself when a new day comes says when."""
    one = job(1, status=JobStatus.HELD, why="too dear", due_at=NOW + 9)
    filled(tmp_path, one, batch(one, **PLAIN, status=BatchStatus.UPLOADED, due_at=None))
    found = told(tmp_path)

    assert [need["kind"] for need in found["needs"]] == ["daemon_down", "held"]
    assert "too dear; it goes on by itself 20" in found["needs"][1]["text"]
    assert found["jobs"][0]["phases"] == {"held": 1}


def test_down_while_jobs_wait(tmp_path: Path) -> None:
    """A daemon that is down needs a person while jobs wait for it, and only then."""
    filled(tmp_path / "idle", *ended(job(1)))
    filled(tmp_path / "busy", job(1), batch(job(1)))

    assert status(tmp_path / "idle")[0] == 0
    assert [need["kind"] for need in told(tmp_path / "busy")["needs"]] == ["daemon_down"]


def test_many_of_one_kind_hide_nothing_else(tmp_path: Path) -> None:
    """However many jobs are held, what is stuck is among the first that are named."""
    jobs = [job(number, status=JobStatus.HELD, why="too dear") for number in range(50)]
    stuck = job(99, age_s=9)
    filled(tmp_path, *jobs, stuck, batch(stuck, stalls=1, progressed_at=NOW - 9))
    kinds = [need["kind"] for need in told(tmp_path)["needs"]]

    assert kinds[:3] == ["daemon_down", "held", "stalled"]
    assert len(kinds) == 52


# Databases that are not as they should be.


def test_nothing_was_ever_run(tmp_path: Path) -> None:
    """Before the first start that is what it says, and nobody is needed."""
    spool = filled(tmp_path)
    spool.database.unlink()
    code, out, _ = status(tmp_path)

    assert (code, out.splitlines()[1:]) == (0, ["nothing was ever run here"])
    assert told(tmp_path)["database"] == "none"


def test_a_database_that_cannot_be_read(tmp_path: Path) -> None:
    """A damaged database needs a person; whether the daemon runs is told all the same."""
    spool = filled(tmp_path, *(job(number) for number in range(100)))
    os.truncate(spool.database, 8192)

    with held(spool):
        code, out, _ = status(tmp_path)
        found = told(tmp_path)

    assert code == 1
    assert "the database is damaged" in out
    assert (found["database"], found["daemon"]["state"]) == ("unreadable", "starting")
    assert [need["kind"] for need in found["needs"]] == ["database"]


def test_no_spool(tmp_path: Path) -> None:
    """A spool that is not there is a matter of usage."""
    filled(tmp_path)
    code, out, errors = status(tmp_path, "--spool", str(tmp_path / "elsewhere"))

    assert (code, out) == (2, "")
    assert "there is no spool" in errors


# How it looks.


def crowd(root: Path, count: int) -> None:
    """Make a spool of *count* jobs, each with a batch, and some of them held or stuck."""
    rows: list[Any] = [provider(pauses=1, paused_until=NOW + 90, why="HTTP 429: " + "slow " * 40)]

    for number in range(count):
        held_job = {"status": JobStatus.HELD, "why": "too dear"} if number % 7 == 3 else {}
        one = job(number, "long-" * 9 + f"{number}.csv", age_s=60.0 * number,
                  requests=1000 + number, **held_job)  # fmt: skip
        states = list(RemoteStatus)[number % 3]
        rows += [one, batch(one, remote_status=states, stalls=number % 11 == 10, progressed_at=NOW)]

    filled(root, *rows)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
@pytest.mark.parametrize("count", [0, 1, 4, 12, 150])
def test_one_screen(tmp_path: Path, count: int, width: int, height: int) -> None:
    """However much there is to tell, it is told within the width and the height of the screen."""
    crowd(tmp_path, count)
    lines = drawn(tmp_path, width, height)

    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("promptspool  down")

    if count > 12:
        assert any("more," in line and "--all lists them" in line for line in lines)
        assert "needs a person" in lines


def drawn(root: Path, width: int, height: int) -> list[str]:
    """Return the lines of a screen."""
    report = looked(load(root / "promptspool.toml"), now=NOW)
    place = Place(width=width, height=height - 1)

    return [line.plain for line in lines_of(report, str(root), place)]


def test_the_oldest_and_the_largest_are_shown(tmp_path: Path) -> None:
    """Of many jobs those are shown that have waited longest, and those with most to do."""
    jobs = [
        job(number, f"{number}.csv", age_s=10_000 - number, requests=10) for number in range(99)
    ]
    jobs[70] = replace(jobs[70], requests=50_000)
    filled(tmp_path, *jobs)
    lines = drawn(tmp_path, 80, 24)
    names = [line.split()[0] for line in lines if re.match(r"\d+\.csv", line)]

    assert names[0] == "0.csv"
    assert "70.csv" in names
    assert f"and {99 - len(names)} more, 0 of {980 - 10 * (len(names) - 1):,} requests done" in (
        "\n".join(lines)
    )


def test_all_are_listed_if_asked_for(tmp_path: Path) -> None:
    """With --all no job is left out, and nothing is cut."""
    crowd(tmp_path, 60)

    assert sum(".csv" in line for line in status(tmp_path)[1].splitlines()) < 60
    out = status(tmp_path, "--all")[1]
    assert all(f"{'long-' * 9}{number}.csv" in out for number in range(60))


def test_a_pipe_gets_plain_text(tmp_path: Path) -> None:
    """In a pipe there are no colours, no bars, and no line of it ends in spaces or is cut."""
    crowd(tmp_path, 5)
    out = status(tmp_path)[1]

    assert "\x1b" not in out
    assert "━" not in out
    assert "…" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_hostile_names(tmp_path: Path) -> None:
    """What a file or a provider is called never reaches a terminal as it is, nor a pipe."""
    one = job(1, HOSTILE, status=JobStatus.HELD, why="\x1b]0;owned\x07 [red]dear[/red]")
    filled(tmp_path, provider(why="\x9b31m", pauses=1), one, batch(one, model="m\x1bc"))
    out = status(tmp_path)[1]

    assert SHOWN in out
    assert all(line.isprintable() for line in out.splitlines())
    assert told(tmp_path)["jobs"][0]["file"] == SHOWN


def test_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal there are bars, in its width, and nothing that it obeys but colours."""
    one, evil = job(1, "may.csv", requests=200), job(2, HOSTILE)
    running = batch(one, completed=50, requests=200, remote_status=RemoteStatus.IN_PROGRESS)
    filled(tmp_path, provider(why="\x9b31m", pauses=1), one, evil, running)

    with on_terminal("status", "--config", tmp_path / "promptspool.toml") as process:
        seen = process.read()
        process.wait()

    lines = re.sub(r"\x1b\[[0-9;]*m", "", seen).splitlines()

    assert process.exitstatus == 1  # it is down while a job waits
    assert any(re.match(r"may\.csv +━{6} +25% +50/200 +\S+ +\S+ +running$", line) for line in lines)
    assert any(line.startswith(r"evil\x1b[2J\xff") for line in lines)
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)


def test_watching(tmp_path: Path) -> None:
    """--watch draws what changes on a screen of its own, and Ctrl-C leaves it as it was."""
    spool = filled(tmp_path, job(1, "first.csv"))

    with on_terminal("status", "--watch", "--config", tmp_path / "promptspool.toml") as process:
        process.expect_exact("\x1b[?1049h")  # the other screen
        process.expect_exact("first.csv")
        filled(spool.root.parent, job(2, "second.csv"))
        process.expect_exact("second.csv")
        process.sendintr()
        process.expect_exact("\x1b[?1049l")
        rest = process.read()
        process.wait()

    assert process.exitstatus == 0
    assert "Traceback" not in rest


def test_watching_needs_a_terminal(tmp_path: Path) -> None:
    """In a pipe, or as JSON, there is nothing to be drawn anew."""
    filled(tmp_path)

    for options in (["--watch"], ["--watch", "--json"]):
        code, _, errors = status(tmp_path, *options)
        assert code == 2
        assert "--watch" in errors


# The document.


def keys_of(value: object, path: str = "") -> set[str]:
    """Return the path of every key; those of what is counted by name end at the name's owner."""
    match value:
        case dict() if path.endswith(("phases", "enqueued_tokens")):
            return {path}
        case dict():
            return {
                key for name, inner in value.items() for key in keys_of(inner, f"{path}.{name}")
            }
        case [dict(), *_]:
            return {key for inner in value for key in keys_of(inner, f"{path}[]")}
        case list() if not path.endswith("columns_s"):
            return {f"{path}[]"}
        case _:
            return {path}


def documented(table: str) -> set[str]:
    """Return the paths that the first column of a table of keys names."""
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    rows = [re.findall(r"`([^`]+)`", cell) for cell in cells]

    return {path_of(names[0], name) for names in rows for name in names}


def path_of(first: str, name: str) -> str:
    """Return the whole path of a name that leaves out what it has in common with the *first*."""
    if not name.startswith("."):
        return f".{name}"

    depth = name.count(".")
    above = first.split(".")[:-depth] if depth < first.count(".") + 1 else first.split(".")[:1]

    return f".{'.'.join(above)}{name}"


def test_every_key_is_documented(tmp_path: Path) -> None:
    """The table of keys names each key that there is, and none that there is not."""
    one = job(1, status=JobStatus.HELD, why="too dear")
    filled(tmp_path, provider(pauses=1, why="HTTP 503"), one, batch(one),
           *ended(job(2), why="no prompts"))  # fmt: skip
    found = keys_of(told(tmp_path))
    named = documented(document.__doc__ or "")

    assert found - named == set()
    assert {name for name in named - found if name.count("[]") == name.endswith("[]")} <= {
        ".jobs[]", ".providers[]", ".needs[]", ".ended[]",
    }  # fmt: skip


def test_recalling(tmp_path: Path) -> None:
    """Until it is known what runs at a provider, that is said."""
    with held(filled(tmp_path, provider(status=ProviderStatus.RECALLING, due_at=NOW))):
        assert "looking through what runs there" in status(tmp_path)[1]
