"""Commands to the daemon, from a command line to what comes of them."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from anyio.from_thread import start_blocking_portal

from commands import LIMIT_S, ran, read_until, started
from filled import batch, filled, held, job, on_terminal, said, screen_of
from promptspool import control
from promptspool.cli import commanding
from promptspool.clock import SystemClock
from promptspool.model import BatchStatus, JobStatus
from promptspool.simulator import Simulator, SimulatorSettings, running
from promptspool.spool import Spool

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.control import Command

CONFIG = """
[spool]
settle = "50ms"

[providers.openai]
base_url = "{base_url}"
api_key_file = "key"

[polling]
first = "100ms"
cap = "100ms"

[retry]
first = "100ms"
cap = "100ms"

[profiles.default]
model = "gpt-5-mini"

[profiles.dear]
extend = "default"
max_cost = 0.0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A spool on which a daemon runs."""

    config: Path
    spool: Spool
    daemon: subprocess.Popen[str]

    def drop(self, name: str, data: bytes = b"red?\nblue?\n") -> None:
        """Put a file into the inbox."""
        path = self.spool.inbox / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def heard(self, text: str) -> str:
        """Read the daemon's log up to a line with *text*, and return that."""
        return read_until(self.daemon, text)

    def piped(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end, in pipes; return what it said, results before remarks."""
        done = ran(*arguments, "--config", self.config)

        assert done.returncode == code, done.stderr

        return done.stdout + done.stderr

    def said(self, *arguments: str, code: int = 0) -> str:
        """Do the same within this process."""
        ended, out, errors = said(*arguments, "--config", self.config)

        assert ended == code, errors

        return out + errors


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a daemon, and a provider whose batches take an hour but end at once when cancelled."""
    root = tmp_path_factory.mktemp("served")
    settings = SimulatorSettings(validate_s=0.0, run_s=3600.0, cancel_s=0.0)
    simulator = Simulator(clock=SystemClock(), directory=root / "remote", settings=settings)
    (root / "key").write_text("sk-simulated")
    config = root / "promptspool.toml"

    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        url = stack.enter_context(portal.wrap_async_context_manager(running(simulator)))
        config.write_text(CONFIG.format(base_url=f"{url}/v1"))
        daemon = stack.enter_context(started("run", "--config", config))
        read_until(daemon, "daemon.ready")

        yield Served(config=config, spool=Spool(root / "spool"), daemon=daemon)


def left(spool: Spool) -> list[Command | None]:
    """Return the commands that wait for a daemon."""
    return [one.command for one in control.waiting(spool)]


# With a daemon.


def test_a_job_is_cancelled_and_asked_again(served: Served) -> None:
    """Cancelling asks on a terminal and not in a pipe; what failed by it can be asked again."""
    served.drop("may.txt")
    served.heard("batch.created")

    with on_terminal("cancel", "may.txt", "--config", served.config) as terminal:
        terminal.expect(r"cancel may.txt \(job [0-9a-z-]+\), 1 batch running\? \[y/N\]: ")
        terminal.sendline("n")

        assert screen_of(terminal)[-1] == "promptspool: nothing was done"
        assert terminal.exitstatus == 1

    assert "may.txt is cancelled" in served.piped("cancel", "may.txt")
    served.heard("job.delivered")
    lines = (served.spool.outbox / "may.txt.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["error"]["code"] for line in lines] == ["cancelled", "cancelled"]

    served.heard("job.tidied")
    told = served.piped("retry", "may.txt").splitlines()

    assert told[0].endswith(": 2 failed requests to ask again: 2 cancelled")
    assert told[1] == "0 answers kept; all is delivered again as may.txt-2"
    assert told[2].startswith("may.txt is asked again")
    served.heard("batch.created")

    assert "may be 2 jobs" in served.said("cancel", "may.txt", code=1)
    assert "may.txt is cancelled" in served.said("cancel", "may.txt-2")
    served.heard("job.delivered")


def test_a_held_job_is_released(served: Served) -> None:
    """A job that would cost too much waits until a person lets it go, and then goes on."""
    served.drop("dear/june.txt")
    served.heard("job.held")

    assert "june.txt goes on, whatever it may cost" in served.piped("release", "june.txt")

    served.heard("batch.created")

    assert "cannot be released: it is planned" in served.said("release", "june.txt", code=1)
    assert "is cancelled" in served.said("cancel", "june.txt")
    served.heard("job.delivered")


def test_pausing(served: Served) -> None:
    """Nothing is claimed while the daemon is paused; a provider is paused by itself."""
    assert "nothing is claimed" in served.piped("pause")
    served.heard("daemon.halted")
    served.drop("july.png")  # which would be rejected
    assert "goes on" in served.piped("resume")
    served.heard("daemon.unhalted")
    served.heard("job.rejected")

    assert "openai is paused" in served.said("pause", "openai")
    assert "openai goes on" in served.said("resume", "openai")


def test_two_at_once(served: Served) -> None:
    """Commands that come at one moment are all carried out and answered."""
    options = ("openai", "--config", served.config)

    with started("pause", *options) as first, started("resume", *options) as second:
        outputs = [process.communicate(timeout=LIMIT_S) for process in (first, second)]

    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [bool(out) and not errors for out, errors in outputs] == [True, True]
    assert "openai goes on" in served.said("resume", "openai")


def test_what_is_finished_is_forgotten(served: Served) -> None:
    """A rejected job goes from the database, and its file stays where it is."""
    served.drop("august.png")
    served.heard("job.rejected")

    assert "august.png is forgotten" in served.piped("forget", "august.png")
    assert "no job is called 'august.png'" in served.said("forget", "august.png", code=1)
    assert (served.spool.rejected / "august.png").exists()


def test_cleaning(served: Served) -> None:
    """What is old is removed once a person agrees; what is younger stays."""
    served.drop("september.png")
    served.heard("job.rejected")

    with on_terminal("clean", "--older-than", "30d", "--config", served.config) as terminal:
        terminal.expect(r"remove jobs that ended over 30d ago, .*\? \[y/N\]: ")
        terminal.sendline("y")
        lines = screen_of(terminal)

    assert (terminal.exitstatus, "removed 0 files" in lines[-1]) == (0, True)
    assert (served.spool.rejected / "september.png").exists()


def test_reloading(served: Served) -> None:
    """The daemon reads its configuration again when it is told to; a faulty one is refused here."""
    text = served.config.read_text()
    assert served.piped("reload") != ""

    try:
        served.config.write_text(f"{text}\n[pooling]\n")
        assert "pooling" in served.said("reload", code=2)
    finally:
        served.config.write_text(text)


def test_health(served: Served) -> None:
    """It says whether the daemon answers in time, and leaves nothing behind either way."""
    garbage = served.spool.control / f"20261121t000000z-0123456789ab{control.COMMAND}"
    garbage.write_bytes(b"{")
    (served.spool.control / f"20261121t000000z-0123456789ac{control.COMMAND}").mkdir()

    assert served.piped("health") == "ready\n"
    assert not garbage.exists()

    os.kill(served.daemon.pid, signal.SIGSTOP)

    try:
        assert "does not answer within 0.1 s" in served.said("health", "--timeout", "0.1", code=1)
    finally:
        os.kill(served.daemon.pid, signal.SIGCONT)

    assert left(served.spool) == []


# Without one.


def test_commands_wait_for_a_daemon(tmp_path: Path) -> None:
    """Without a daemon a command is left for its next start; health and reload cannot wait."""
    one = job(1, "may.jsonl")
    spool = filled(tmp_path, one, batch(one))
    config = ("--config", tmp_path / "promptspool.toml")

    for words in (["cancel", "may.jsonl"], ["pause", "openai"], ["clean", "--older-than", "12h"]):
        code, out, errors = said(*words, *config)

        assert (code, out) == (0, "")
        assert (
            errors == "promptspool: promptspool does not run; it will be done at its next start\n"
        )

    commands = [command for command in left(spool) if command is not None]

    assert {(command.verb, command.job, command.provider) for command in commands} == {
        ("cancel", one.id, None),
        ("pause", None, "openai"),
        ("clean", None, None),
    }
    assert [one.older_than_s for one in commands if one.verb == "clean"] == [43_200.0]

    for word in ("health", "reload"):
        code, out, errors = said(word, *config)

        assert (code, out, "does not run" in errors) == (1, "", True)

    assert len(left(spool)) == 3


def test_a_daemon_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs and does not answer in time is told of; the command stays."""
    monkeypatch.setattr(commanding, "ANSWER_S", 0.05)
    spool = filled(tmp_path)

    with held(spool):
        code, out, errors = said("pause", "--config", tmp_path / "promptspool.toml")

    assert (code, out) == (1, "")
    assert "runs, and did not answer within 0.05 s; the command stays" in errors
    assert [command and command.verb for command in left(spool)] == ["pause"]


def test_what_cannot_be_done_is_refused_at_once(tmp_path: Path) -> None:
    """Nothing is left for a daemon that would have to refuse it."""
    done = job(1, "done.jsonl", status=JobStatus.DONE, results=100, errors=0)
    live = job(2, "live.jsonl")
    spool = filled(tmp_path, done, live)
    (spool.inbox / "fresh.jsonl").write_text("{}")

    for words, reason in (
        (["cancel", "done.jsonl"], "cannot be cancelled: it is done"),
        (["release", "live.jsonl"], "cannot be released: it is planned"),
        (["forget", "live.jsonl"], "cannot be forgotten: it is planned"),
        (["retry", "live.jsonl"], "live.jsonl"),
        (["cancel", "nope"], "no job is called 'nope'"),
        (["cancel", "fresh.jsonl"], f"still in the inbox: `rm {spool.inbox}/fresh.jsonl` takes"),
    ):
        code, out, errors = said(*words, "--config", tmp_path / "promptspool.toml")

        assert (code, out, reason in errors) == (1, "", True), errors

    for words, reason in (
        (["pause", "anthropic"], "no provider 'anthropic'; known: openai"),
        (["clean", "--older-than", "soon"], "found 'soon'; write a duration such as"),
        (["clean", "--older-than", "0s"], "greater than 0"),
    ):
        code, out, errors = said(*words, "--config", tmp_path / "promptspool.toml")

        assert (code, out, reason in errors) == (2, "", True), errors

    assert left(spool) == []


def test_a_person_is_asked_about_what_the_job_is(tmp_path: Path) -> None:
    """The question tells what runs, harmlessly whatever a file is called; Ctrl-D is a no."""
    evil = job(1, b"a\x1b]0;x\x07.jsonl")
    rows = [batch(evil, part) for part in (1, 2)]
    planned = batch(evil, 3, status=BatchStatus.PLANNED, remote_id=None)
    spool = filled(tmp_path, evil, *rows, planned)

    with on_terminal("cancel", evil.id, "--config", tmp_path / "promptspool.toml") as terminal:
        terminal.expect(r"cancel a\\x1b\]0;x\\x07.jsonl \(job .*\), 2 batches running\? ")
        terminal.sendeof()

        assert screen_of(terminal)[-1] == "promptspool: nothing was done"

    assert (terminal.exitstatus, left(spool)) == (1, [])

    with on_terminal(
        "cancel", evil.id, "--yes", "--config", tmp_path / "promptspool.toml"
    ) as terminal:
        assert "done at its next start" in screen_of(terminal)[-1]

    assert [command and command.job for command in left(spool)] == [evil.id]
