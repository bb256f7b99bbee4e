"""`logs`: the JSON log for people, from a file, from standard input, from the journal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from commands import COMMAND, LIMIT_S, environ
from filled import filled, job, on_terminal, said
from promptspool.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

JOB, OTHER = "20261120t231853z-4f7k2m", "20261120t231900z-9qqqqq"


def at(seconds_ago: float) -> str:
    """Return a timestamp as the log writes it."""
    moment = datetime.fromtimestamp(SystemClock().now() - seconds_ago, UTC)

    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def line(event: str, *, level: str = "info", seconds_ago: float = 9, **fields: Any) -> str:
    """Return a line of the log."""
    return json.dumps({"timestamp": at(seconds_ago), "level": level, "event": event, **fields})


STORY = [
    line("daemon.started", version="1", seconds_ago=9000),
    line("job.claimed", job=JOB, file="reviews/may.csv"),
    line("job.claimed", job=OTHER, file="june.csv", level="warning"),
    line("batch.created", job=JOB, batch=f"{JOB}.1", remote_id="batch_1"),
    line("batch.closed", job=OTHER, batch=f"{OTHER}.1", successors=[f"{OTHER}.1+1"]),
    line("provider.recalled", provider="openai", batches=[f"{JOB}.2"], level="debug"),
    line("job.delivered", job=JOB, results=9, level="error"),
]
EVENTS = [json.loads(one)["event"] for one in STORY]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a file with the story."""
    path = tmp_path / "log"
    path.write_text("".join(f"{one}\n" for one in STORY))

    return path


def events(out: str) -> list[str]:
    """Return the events of printed lines."""
    return [printed.split()[3] for printed in out.splitlines()]


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ([], range(7)),
        (["--job", JOB], [1, 3, 5, 6]),
        (["--job", "4f7k2m"], [1, 3, 5, 6]),
        (["--job", "20261120t231853z"], [1, 3, 5, 6]),
        (["--job", "may.csv"], [1, 3, 5, 6]),
        (["--job", "reviews/may.csv"], [1, 3, 5, 6]),
        (["--job", "june.csv"], [2, 4]),
        (["--job", "nobody"], []),
        (["--event", "job.claimed"], [1, 2]),
        (["--event", "batch", "--event", "job.delivered"], [3, 4, 6]),
        (["--event", "job.claim"], []),
        (["--level", "warning"], [2, 6]),
        (["--level", "debug"], range(7)),
        (["--since", "2h"], range(1, 7)),
        (["--since", "2001-01-01 08:00"], range(7)),
        (["--job", "may.csv", "--level", "error"], [6]),
    ],
)
def test_what_is_wanted(log: Path, options: list[str], places: Sequence[int]) -> None:
    """Lines are chosen by job, also those that name its batches, by event, level and time."""
    code, out, errors = said("logs", log, *options)

    assert (code, errors) == (0, "")
    assert events(out) == [EVENTS[place] for place in places]


def test_one_readable_line(tmp_path: Path) -> None:
    """A line has its time, level, event, the end of the job's id with the batch, and its fields."""
    path = tmp_path / "log"
    raised = {"exc_type": "ValueError", "exc_value": "no way",
              "frames": [{"filename": "/x/stages.py", "lineno": 12, "name": "plan"}]}  # fmt: skip
    path.write_text(
        line("batch.closed", job=JOB, batch=f"{JOB}.1+1", reason="HTTP 503: busy", answered=9,
             successors=[], empty="") + "\n" + line("stage.crashed", exception=[raised])
    )  # fmt: skip
    first, second = said("logs", path)[1].splitlines()

    assert first.split("  ", 1)[1].split() == [
        "info", "batch.closed", "4f7k2m.1+1", 'reason="HTTP', "503:", 'busy"', "answered=9",
        "successors=[]", 'empty=""',
    ]  # fmt: skip
    assert first == first.rstrip()
    assert second.endswith('exception="ValueError: no way (stages.py:12)"')


def test_what_is_no_json_is_printed_as_it_is(tmp_path: Path) -> None:
    """Tracebacks, numbers and half lines are left as they are; filters leave them out."""
    odd = [
        "Traceback (most recent call last):",
        "  File \x1b[31m",
        "17",
        "{",
        '["event"]',
        "{}",
        "",
    ]
    path = tmp_path / "log"
    path.write_bytes("\n".join(odd).encode() + b"\xff\n" + STORY[1].encode())
    out = said("logs", path)[1].splitlines()

    assert out[:-1] == [*odd[:-1], "\\xff"]
    assert events(said("logs", path, "--level", "info")[1]) == ["job.claimed"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A - is standard input."""
    text = "".join(f"{one}\n" for one in STORY).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    assert events(said("logs", "-")[1]) == EVENTS


def test_nobody_reads_any_more(tmp_path: Path) -> None:
    """A reader that has had enough is no failure, and nothing is said of it."""
    path = tmp_path / "log"
    path.write_text("".join(f"{line('poll.swept', due=n)}\n" for n in range(20_000)))

    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, "logs", str(path)],
        env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"due=0" in process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read()

        assert (process.wait(LIMIT_S), complaint) == (0, b"")


def test_following_on_a_terminal(log: Path, tmp_path: Path) -> None:
    """--follow goes on: with a line in halves, with a file in its place; there are colours."""
    log.write_text(STORY[0] + "\n" + line("x.y", level="error", hostile="\x1b]0;owned\x07") + "\n")

    with on_terminal("logs", log, "--follow", width=200) as process:
        process.expect_exact("daemon.started")
        process.expect_exact("\x1b[1;31merror")
        process.expect_exact(r"\x1b]0;owned\x07")

        with log.open("a", buffering=1_000) as file:
            file.write(STORY[2] + "\n" + STORY[1][:40])

        process.expect_exact("file=\x1b[0mjune.csv")

        with log.open("a") as file:
            file.write(STORY[1][40:] + "\n")

        process.expect_exact("job.claimed")
        process.expect_exact("file=\x1b[0mreviews/may.csv")
        (tmp_path / "next").write_text(STORY[6] + "\n")
        (tmp_path / "next").rename(log)
        process.expect_exact("job.delivered")
        process.sendintr()
        rest = process.read()
        process.wait()

    assert process.exitstatus == 0
    assert "Traceback" not in rest


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `journalctl` on the path that prints the story, and notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "story").write_text("".join(f"{one}\n" for one in STORY))
    program = folder / "journalctl"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\nexec /bin/cat {folder}/story\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))

    return folder


def test_the_journal(journal: Path) -> None:
    """Without a file the journal is read, from the moment that is asked for."""
    assert events(said("logs", "--since", "2h")[1]) == EVENTS[1:]
    asked = (journal / "asked").read_text().split()

    assert asked[:4] == ["--unit", "promptspool", "--output", "cat"]
    assert abs(float(asked[-1].removeprefix("--since=@")) - SystemClock().now() + 7200) < 60
    assert "--follow" not in asked

    said("logs", "--follow")
    assert "--follow" in (journal / "asked").read_text().split()


def test_the_journal_of_a_file(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file became is known from the database, where no line of the journal says so."""
    row = job(1, "july.csv")
    filled(tmp_path, row)
    (journal / "story").write_text(line("batch.created", job=row.id, batch=f"{row.id}.1"))
    monkeypatch.setenv("PROMPTSPOOL_CONFIG", str(tmp_path / "promptspool.toml"))

    assert events(said("logs", "--job", "july.csv")[1]) == ["batch.created"]
    assert events(said("logs", "--job", "june.csv")[1]) == []


def test_an_empty_journal(journal: Path) -> None:
    """A journal that has nothing of it is no failure, but is said."""
    (journal / "story").write_text("")
    code, out, errors = said("logs")

    assert (code, out) == (0, "")
    assert "the journal has no such lines" in errors


def test_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no journal, what to do instead is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, errors = said("logs")

    assert (code, out) == (1, "")
    assert "there is no journal here" in errors
    assert "name a FILE" in errors


def test_a_journal_that_fails(journal: Path) -> None:
    """A journal that may not be read is a failure."""
    (journal / "journalctl").write_text("#!/bin/sh\nexit 4\n")
    code, _, errors = said("logs")

    assert code == 1
    assert "journalctl failed with exit code 4" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["/nonexistent"], 1, "/nonexistent"),
        (["-", "--since", "yesterday"], 2, "--since"),
        (["-", "--level", "loud"], 2, "--level"),
    ],
)
def test_misuse(arguments: list[str], code: int, expected: str) -> None:
    """Wrong usage is one line that names what is wrong."""
    found, out, errors = said("logs", *arguments)

    assert (found, out, len(errors.splitlines())) == (code, "", 1)
    assert expected in errors
