"""The daemon as a process that is killed: the command itself, real prompts, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from commands import ids, ran, read_until, simulated, started

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTIONS = Path(__file__).with_name("data") / "gsm8k-120.jsonl"
"""The first 120 questions of grade-school-math (MIT, Copyright (c) 2021 OpenAI)."""

MOMENTS = [
    "job.claimed",
    "job.planned",
    "batch.uploaded",
    "provider.recalled",
    "remote_id",  # created, or found: the run before may have died just after it
    *["daemon.booted"] * 10,
    "batch.ended",
    "batch.downloaded",
    "batch.closed",
    "job.settled",
    "job.delivered",
]
"""After which lines of its log the daemon is killed, one run each."""

CONFIG = """
[spool]
settle = "50ms"

[providers.openai]
base_url = "{base_url}"
api_key_env = "OPENAI_API_KEY"
max_requests = 30
lookup_grace = "200ms"

[polling]
first = "100ms"
cap = "500ms"

[retry]
first = "50ms"
request_backoff = "100ms"

[profiles.default]
model = "gpt-5-mini"
"""


@pytest.fixture
def base_url() -> Iterator[str]:
    """Serve a simulated provider in a process of its own."""
    with simulated(speed=300) as url:
        yield url


def spool(root: Path, base_url: str) -> Path:
    """Make a spool with the questions in its inbox and return its configuration."""
    config = root / "promptspool.toml"
    config.write_text(CONFIG.format(base_url=base_url))
    (root / "spool" / "inbox").mkdir(parents=True)
    shutil.copy(QUESTIONS, root / "spool" / "inbox" / "questions.jsonl")

    return config


def ledger(base_url: str) -> dict[str, Any]:
    """Return what the provider accepted."""
    answer = httpx.get(base_url.removesuffix("/v1") + "/_simulator/ledger", trust_env=False)
    found: dict[str, Any] = answer.json()

    return found


def answers(path: Path) -> list[tuple[str, str]]:
    """Return id and text of every result, which are the same in every run."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    return [
        (line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"])
        for line in lines
    ]


def check(root: Path, base_url: str) -> list[tuple[str, str]]:
    """Hold the laws over what was delivered, and return it."""
    outbox = root / "spool" / "outbox"
    expected = [json.loads(line)["id"] for line in QUESTIONS.read_text("utf-8").splitlines()]
    created = [creation["metadata"] for creation in ledger(base_url)["creations"]]
    bought = [metadata["promptspool_batch"] for metadata in created]
    mine = (root / "spool" / ".promptspool").read_text().strip()

    assert ids(outbox / "questions.jsonl.results.jsonl") == expected
    assert ids(outbox / "questions.jsonl.errors.jsonl") == []
    assert len(bought) == len(set(bought))
    assert sum(metadata["promptspool_spool"] == mine for metadata in created) == 4
    assert json.loads((outbox / "questions.jsonl.summary.json").read_text())["counts"] == {
        "requests": 120,
        "results": 120,
        "errors": 0,
    }

    return answers(outbox / "questions.jsonl.results.jsonl")


def test_twenty_kills_change_nothing(tmp_path: Path, base_url: str) -> None:
    """Twenty SIGKILLs on the way change nothing in the results and buy no second batch."""
    calm, troubled = tmp_path / "calm", tmp_path / "troubled"
    calm.mkdir()
    troubled.mkdir()
    run = ("run", "--drain", "--config")
    assert ran(*run, spool(calm, base_url), OPENAI_API_KEY="sk-simulated").returncode == 0

    with simulated(speed=60) as slow_url:
        config = spool(troubled, slow_url)

        for moment in MOMENTS:
            with started(*run, config, OPENAI_API_KEY="sk-simulated") as daemon:
                read_until(daemon, moment)
                daemon.kill()
                daemon.wait()

        assert ran(*run, config, OPENAI_API_KEY="sk-simulated").returncode == 0
        assert check(troubled, slow_url) == check(calm, base_url)


def test_sigterm_is_graceful(tmp_path: Path, base_url: str) -> None:
    """A daemon told to stop says so, exits with 0, and the next one goes on where it was."""
    config = spool(tmp_path, base_url)

    with started("run", "--config", config, OPENAI_API_KEY="sk-simulated") as daemon:
        read_until(daemon, "batch.created")
        daemon.send_signal(signal.SIGTERM)
        rest = daemon.communicate(timeout=30)[0]

        assert "daemon.stopped" in rest
        assert daemon.returncode == 0

    assert ran("run", "--config", config, "--drain", OPENAI_API_KEY="sk-simulated").returncode == 0
    check(tmp_path, base_url)


def test_one_daemon_a_spool(tmp_path: Path, base_url: str) -> None:
    """A second daemon on the same spool is refused with one line and exit code 1: it may end."""
    config = spool(tmp_path, base_url)

    with started("run", "--config", config, OPENAI_API_KEY="sk-simulated") as daemon:
        read_until(daemon, "daemon.ready")
        second = ran("run", "--config", config, OPENAI_API_KEY="sk-simulated")

        assert second.returncode == 1
        assert "another promptspool" in second.stderr
        assert len(second.stderr.strip().splitlines()) == 1
        assert daemon.poll() is None


def test_a_second_signal_ends_it_at_once(tmp_path: Path, base_url: str) -> None:
    """A second SIGTERM ends what runs without a word on stderr, and costs nothing but time."""
    config = spool(tmp_path, base_url)
    stall = {"type": "exchange", "route": "files.create", "action": "stall", "delay_s": 15}
    control = base_url.removesuffix("/v1") + "/_simulator/faults"
    httpx.post(control, json=stall, trust_env=False).raise_for_status()

    with started("run", "--config", config, OPENAI_API_KEY="sk-simulated") as daemon:
        read_until(daemon, "batch.uploaded")
        daemon.send_signal(signal.SIGTERM)
        read_until(daemon, "daemon.stopping")
        daemon.send_signal(signal.SIGTERM)
        rest, complaints = daemon.communicate(timeout=20)

        assert "daemon.stopped" in rest
        assert complaints == ""

    assert ran("run", "--config", config, "--drain", OPENAI_API_KEY="sk-simulated").returncode == 0
    check(tmp_path, base_url)


def test_a_name_that_is_no_text_ends_nothing(tmp_path: Path, base_url: str) -> None:
    """A file whose name is no UTF-8, dropped while running, is answered like any other."""
    config = spool(tmp_path, base_url)
    inbox = tmp_path / "spool" / "inbox"

    with started("run", "--config", config, OPENAI_API_KEY="sk-simulated") as daemon:
        read_until(daemon, "daemon.ready")
        (inbox / os.fsdecode(b".\xfe.hidden")).write_text("not for us")
        (inbox / os.fsdecode(b"caf\xe9.txt")).write_text("one\n")
        assert daemon.stdout is not None

        for line in daemon.stdout:
            if "job.delivered" in line and "caf" in line:
                break

        daemon.send_signal(signal.SIGTERM)
        complaints = daemon.communicate(timeout=30)[1]

        assert (daemon.returncode, complaints) == (0, "")

    results = tmp_path / "spool" / "outbox" / os.fsdecode(b"caf\xe9.txt.results.jsonl")
    assert len(ids(results)) == 1
