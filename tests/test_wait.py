"""`wait`: until jobs have come to their end, and how they did."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from commands import read_until, simulated, started
from filled import NOW, batch, filled, held, job, on_terminal, provider, said
from promptspool.model import Job, JobStatus, RemoteStatus
from promptspool.settings import load
from promptspool.store.view import NoSuchJob
from promptspool.tell import waiting
from promptspool.tell.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.settings import Settings

QUICK = {
    "OPENAI_API_KEY": "sk-simulated",
    "PROMPTSPOOL_SPOOL__SETTLE": "100ms",
    "PROMPTSPOOL_POLLING__FIRST": "100ms",
    "PROMPTSPOOL_POLLING__CAP": "200ms",
}


def settings_of(root: Path) -> Settings:
    """Return the configuration that `filled` made at *root*."""
    return load(root / "promptspool.toml")


def over(number: int, name: str, *, errors: int = 0, **changes: Any) -> Job:
    """Return the row of a job that was delivered."""
    row = job(number, name, status=JobStatus.DONE, delivered_at=NOW, results=9, errors=errors,
              cost_usd=0.5)  # fmt: skip

    return replace(row, **changes)


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        (over(1, "f.csv"), 0, "f.csv: delivered, 9 answers, cost $0.50 (estimate): "),
        (over(1, "f.csv", errors=2), 1, "f.csv: delivered, 9 answers and 2 errors, cost $0.50"),
        (
            job(1, "f.csv", status=JobStatus.REJECTED, why="no rows"),
            1,
            "f.csv: rejected: no rows; it is ",
        ),
        (
            over(1, "f.csv", delivered_at=None, why="its folder is gone"),
            1,
            "f.csv: its folder is gone",
        ),
    ],
)
def test_ends(tmp_path: Path, row: Job, code: int, words: str) -> None:
    """0 is for a delivery in which every request was answered, 1 for any other end."""
    filled(tmp_path, row)
    found, out, errors = said("wait", "f.csv", "--config", tmp_path / "promptspool.toml")

    assert (found, errors) == (code, "")
    assert out.startswith(words)


def test_several(tmp_path: Path) -> None:
    """Of several jobs all have to be delivered without an error."""
    filled(tmp_path, over(1, "a.csv"), over(2, "b.csv"), over(3, "c.csv", errors=1))

    assert wait_for(settings_of(tmp_path), "a.csv", "000002")
    assert not wait_for(settings_of(tmp_path), "a.csv", "c.csv")


def test_a_timeout(tmp_path: Path) -> None:
    """A job that is not over in time is not over, and where it stands is said."""
    one = job(1, "f.csv")
    running = batch(one, completed=60, remote_status=RemoteStatus.IN_PROGRESS)
    filled(tmp_path, provider(), one, running)
    code, out, _ = said(
        "wait", "f.csv", "--timeout", "0s", "--config", tmp_path / "promptspool.toml"
    )

    assert code == 1
    assert out.splitlines() == [
        "f.csv: running, 60 of 100",
        "f.csv: not over yet: running, 60 of 100",
    ]


def test_the_youngest_of_a_name(tmp_path: Path) -> None:
    """Of several files of one name the youngest is meant, and none from before it was dropped."""
    filled(tmp_path, over(1, "f.csv", claimed_at=NOW - 900), over(2, "f.csv", errors=1))

    assert not wait_for(settings_of(tmp_path), "f.csv", timeout_s=0)
    assert not wait_for(settings_of(tmp_path), "f.csv", since=NOW - 100, timeout_s=0)

    with pytest.raises(NoSuchJob):
        wait_for(settings_of(tmp_path), "f.csv", since=NOW + 100, timeout_s=0)


def test_a_file_in_the_inbox(tmp_path: Path) -> None:
    """A file that was just dropped is waited for, not a job that once had its name."""
    spool = filled(tmp_path, over(1, "f.csv", claimed_at=NOW - 900))
    (spool.inbox / "f.csv").touch()
    code, out, _ = said(
        "wait", "f.csv", "--timeout", "0s", "--config", tmp_path / "promptspool.toml"
    )

    assert (code, out.splitlines()[0]) == (1, "f.csv: waiting in the inbox")


@pytest.mark.parametrize("name", ["nobody.csv", "../state/promptspool.db", "/etc/passwd"])
def test_nobody(tmp_path: Path, name: str) -> None:
    """A name that stands for nothing is not waited for; what is outside the inbox is nothing."""
    filled(tmp_path)
    code, _, errors = said("wait", name, "--config", tmp_path / "promptspool.toml")

    assert code == 1
    assert "no job or waiting file is called" in errors


def test_between_inbox_and_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a daemon has just taken is a job in a moment, and is not given up before."""
    spool = filled(tmp_path)
    found: list[bool] = []

    def come_in(_seconds: float) -> None:
        filled(tmp_path, over(1, "f.csv"))

    monkeypatch.setattr(waiting, "pause", come_in)

    with held(spool):
        found.append(wait_for(settings_of(tmp_path), "f.csv", since=NOW - 100))

    assert found == [True]


def test_a_real_job(tmp_path: Path) -> None:
    """From the inbox to the end, through a terminal, beside a daemon that works."""
    assert said("init", tmp_path / "p")[0] == 0
    config = tmp_path / "p" / "promptspool.toml"

    with simulated(speed=600) as base_url:
        extra = QUICK | {"PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL": base_url}

        with started("run", "--config", config, **extra) as daemon:
            read_until(daemon, "daemon.ready")
            assert daemon.stdout is not None
            threading.Thread(target=daemon.stdout.read, daemon=True).start()
            (tmp_path / "p" / "spool" / "inbox" / "f.txt").write_text("Why?\nHow?\n")

            with on_terminal("wait", "f.txt", "--config", config) as process:
                process.expect(r"f\.txt .*\d+%")
                rest = process.read()
                process.wait()

    assert process.exitstatus == 0
    assert "f.txt: delivered, 2 answers" in rest


@pytest.mark.parametrize("command", ["wait", "submit"])
def test_interrupted(tmp_path: Path, command: str) -> None:
    """Ctrl-C ends the waiting and nothing else, in one line, whichever command waits."""
    filled(tmp_path, job(1, "f.csv"))
    source = tmp_path / "g.txt"
    source.write_text("why?\n")
    what = ["wait", "f.csv"] if command == "wait" else ["submit", "--wait", str(source)]

    with on_terminal(*what, "--config", tmp_path / "promptspool.toml") as process:
        process.expect(r"[fg]\.(csv|txt) .*%")
        process.sendintr()
        rest = process.read()
        process.wait()

    assert process.exitstatus == 1
    assert "no longer waited for; the work goes on" in rest
    assert "Traceback" not in rest
