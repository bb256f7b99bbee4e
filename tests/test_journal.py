from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from promptspool.journal import Interruption, names, tell
from promptspool.model import (
    Batch,
    BatchId,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    ProviderState,
    ProviderStatus,
    RemoteBatch,
    RemoteStatus,
)
from promptspool.outcomes import (
    Created,
    Delivered,
    Doubtful,
    Downloaded,
    Failed,
    Planned,
    Polled,
    Rejected,
    Settled,
    Tidied,
    Trouble,
    Unclear,
    Uploaded,
)

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from promptspool.model import Row
    from promptspool.outcomes import Outcome

NOW = 1_795_000_000.0
JOB = Job(
    id=JobId("20261120t231853z-4f7k2m"),
    name=b"caf\xe9.txt",
    stem=b"caf\xe9.txt",
    profile="default",
    provider="openai",
    base_url=None,
    claimed_at=NOW,
    due_at=NOW,
    why="not one usable row",
)
BATCH = Batch(
    id=BatchId(f"{JOB.id}.1"),
    job=JOB.id,
    provider="openai",
    base_url="http://127.0.0.1/v1",
    endpoint="/v1/chat/completions",
    model="m",
    requests=10,
    size_bytes=100,
    digest="0",
    give_up_at=NOW,
    due_at=NOW,
    remote_id="batch_1",
)
STATE = ProviderState(id="openai", status=ProviderStatus.READY)
REMOTE = RemoteBatch(
    id="batch_1",
    status=RemoteStatus.COMPLETED,
    raw_status="completed",
    metadata={},
    input_file="file-1",
)
FAILED = Failed(reason="HTTP 500: sorry", trouble=Trouble.OUTAGE)


def told(
    *moved: tuple[Row, Row, Outcome],
    followed: tuple[tuple[Row, Row], ...] = (),
) -> list[MutableMapping[str, Any]]:
    """Return what the journal says of rows that moved."""
    with capture_logs() as lines:
        tell("stage", moved, followed, now=NOW)

    for line in lines:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", line["event"])

    return lines


def moved_batch(before: BatchStatus, after: BatchStatus, outcome: Outcome) -> list[str]:
    """Return the events of a batch that goes from one status to another."""
    row = replace(BATCH, status=before)

    events = [line["event"] for line in told((row, replace(row, status=after), outcome))]

    return [event for event in events if event != "poll.swept"]


@pytest.mark.parametrize(
    ("before", "after", "outcome", "event"),
    [
        ("planned", "uploaded", Uploaded(file="file-1"), "batch.uploaded"),
        ("creating", "unclear", Unclear(reason="reset"), "batch.unclear"),
        ("creating", "created", Created(remote=REMOTE, found=False), "batch.created"),
        ("unclear", "created", Created(remote=REMOTE, found=True), "batch.recalled"),
        ("created", "ended", Polled(remote=REMOTE), "batch.ended"),
        ("ended", "downloaded", Downloaded(remote=None), "batch.downloaded"),
        ("downloaded", "closed", Settled(successors=(), answered=9, failed=1), "batch.closed"),
    ],
)
def test_a_transition_of_a_batch_is_one_line(
    before: str,
    after: str,
    outcome: Outcome,
    event: str,
) -> None:
    """Each transition that people care for has its one event."""
    assert moved_batch(BatchStatus(before), BatchStatus(after), outcome) == [event]


def test_doubt_is_no_end() -> None:
    """A batch whose answers are looked at again is told as doubted, not as ended once more."""
    before = replace(BATCH, status=BatchStatus.DOWNLOADED)
    after = replace(BATCH, status=BatchStatus.ENDED, looks=1, why="2 missing")
    (line,) = told((before, after, Doubtful(reason="2 missing")))

    assert (line["event"], line["reason"]) == ("batch.doubted", "2 missing")


@pytest.mark.parametrize(
    ("before", "after", "outcome", "event"),
    [
        ("claimed", "planned", Planned(batches=(), requests=1, digest="0"), "job.planned"),
        ("settled", "delivered", Delivered(stem=b"a", results=1, errors=0), "job.delivered"),
        ("delivered", "done", Tidied(), "job.tidied"),
        ("unusable", "rejected", Rejected(), "job.rejected"),
    ],
)
def test_a_transition_of_a_job_is_one_line(
    before: str,
    after: str,
    outcome: Outcome,
    event: str,
) -> None:
    """A line about a job names it, and its file in letters that any log can hold."""
    row = replace(JOB, status=JobStatus(before))
    (line,) = told((row, replace(row, status=JobStatus(after)), outcome))

    assert (line["event"], line["job"]) == (event, JOB.id)
    assert line.get("file", "caf\\xe9.txt") == "caf\\xe9.txt"


def test_waiting_is_silent() -> None:
    """A row that stays where it is and has not failed is nothing to tell."""
    row = replace(BATCH, status=BatchStatus.CREATED)
    lines = told((row, replace(row, polls=1), Polled(remote=REMOTE)))

    assert [(line["event"], line["log_level"]) for line in lines] == [("poll.swept", "debug")]


def test_a_sweep_is_one_line() -> None:
    """Whatever is polled at once is told in one line, which counts what has changed."""
    running = replace(BATCH, status=BatchStatus.CREATED, completed=2)
    moved = [
        (running, replace(running, completed=5), Polled(remote=REMOTE)),
        (running, replace(running, completed=10, status=BatchStatus.ENDED), Polled(remote=REMOTE)),
        (running, running, Polled(remote=REMOTE)),
    ]
    (line,) = [line for line in told(*moved) if line["event"] == "poll.swept"]

    assert line["log_level"] == "info"
    assert (line["polled"], line["changed"], line["ended"], line["completed"]) == (3, 2, 1, 11)


def test_recovery_says_how_long_it_lasted() -> None:
    """What works again says for how long it did not."""
    row = replace(BATCH, failures=3, failed_at=NOW - 90.0)
    lines = told((row, replace(row, failures=0), Uploaded(file="f")))
    (line,) = [line for line in lines if line["event"] == "stage.recovered"]

    assert (line["failures"], line["lasted_s"]) == (3, 90.0)

    with capture_logs() as lines:
        lost = Interruption("inbox")

        for at, reason in enumerate(["gone", "gone", "denied", None, None]):
            lost.note(reason, at)

    assert [(line["event"], line.get("reason"), line.get("lasted_s")) for line in lines] == [
        ("inbox.unreadable", "gone", None),
        ("inbox.unreadable", "denied", None),
        ("inbox.readable", None, 3),
    ]


def test_failures_are_told_at_every_doubling() -> None:
    """The first failure warns, repeats only at powers of two, and recovery says how many."""
    loud = []

    for count in range(64):
        row = replace(BATCH, failures=count)
        (line,) = told((row, replace(row, failures=count + 1), FAILED))

        assert (line["event"], line["failures"]) == ("stage.retried", count + 1)

        if line["log_level"] == "warning":
            loud.append(count + 1)

    assert loud == [1, 2, 4, 8, 16, 32, 64]

    row = replace(BATCH, failures=64)
    lines = told((row, replace(row, status=BatchStatus.UPLOADED, failures=0), Uploaded(file="f")))

    assert ("stage.recovered", 64) in [(line["event"], line.get("failures")) for line in lines]


def test_what_is_set_aside_is_an_error() -> None:
    """A row that will not be tried again is told at the highest level."""
    bug = Failed(reason="broken", trouble=Trouble.BUG)
    (line,) = told((BATCH, replace(BATCH, due_at=None), bug))

    assert (line["event"], line["log_level"]) == ("stage.abandoned", "error")


def test_one_failure_of_many_rows_is_one_line() -> None:
    """A list that cannot be read fails hundreds of batches and says so once."""
    rows = [replace(BATCH, id=BatchId(f"j.{number}")) for number in range(300)]
    lines = told(*((row, replace(row, failures=1), FAILED) for row in rows))

    assert [(line["event"], line["rows"]) for line in lines] == [("stage.retried", 300)]


def test_a_pause_is_told_when_it_begins_and_ends() -> None:
    """A paused provider is one warning, however often the pause grows, and one line at its end."""
    paused = replace(STATE, pauses=1, paused_until=NOW + 30, paused_at=NOW, why="HTTP 401")
    longer = replace(paused, pauses=2, paused_until=NOW + 90)

    def events(before: ProviderState, after: ProviderState) -> list[tuple[str, str]]:
        lines = told(followed=((before, after),))

        return [(line["event"], line["log_level"]) for line in lines]

    assert events(STATE, paused) == [("provider.paused", "warning")]
    assert events(paused, longer) == []
    assert events(longer, STATE) == [("provider.resumed", "info")]


def test_a_settled_job_is_told_with_its_last_batch() -> None:
    """The job that its last batch settles has a line of its own."""
    after = replace(JOB, status=JobStatus.SETTLED)

    assert [line["event"] for line in told(followed=((JOB, after),))] == ["job.settled"]


def test_every_line_says_what_it_is_about() -> None:
    """Job, batch and provider go with every line, as far as they apply."""
    batch = {"job": JOB.id, "batch": BATCH.id, "provider": "openai"}

    assert names([JOB]) == {"job": JOB.id}
    assert names([BATCH]) == batch
    assert names([BATCH, BATCH]) == {"provider": "openai"}
    assert names([STATE]) == {"provider": "openai"}
