from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import shlex
import signal
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from commands import COMMAND, LIMIT_S, environ, ids, ran, read_until, started
from promptspool.demo.progress import Progress
from promptspool.demo.props import props


def input_ids(name: str, content: str) -> list[str]:
    """Return the ids of a dropped file's requests."""
    if name.endswith(".txt"):
        return [f"{Path(name).stem}-{number + 1}" for number in range(content.count("\n"))]

    if name.endswith(".csv"):
        return [row["id"] for row in csv.DictReader(content.splitlines())]

    rows = [json.loads(line) for line in content.splitlines()]
    return [row.get("custom_id") or row["id"] for row in rows]


def is_over(folder: Path) -> bool:
    """Tell whether neither the demo's simulator nor its daemon is left."""
    config = tomllib.loads((folder / "promptspool.toml").read_text())
    address = urlsplit(config["providers"]["openai"]["base_url"])

    with suppress(httpx.ConnectError):
        httpx.get(f"http://{address.netloc}/", trust_env=False)
        return False

    with (folder / "spool" / "state" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return True


class Shown(NamedTuple):
    """A demo that came to its end."""

    folder: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Return a demo that is over; a proxy that nobody listens on must not matter."""
    folder = tmp_path_factory.mktemp("demo") / "a b"
    done = ran("demo", "--dir", folder, COLUMNS="100", HTTP_PROXY="http://127.0.0.1:9")
    return Shown(folder, done)


def test_the_whole_way(shown: Shown) -> None:
    """Every request of every dropped file is in exactly one of results and errors, in order."""
    outbox = shown.folder / "spool" / "outbox"

    assert (shown.done.returncode, shown.done.stderr) == (0, "")

    for prop in props():
        results = ids(outbox / f"{prop.name}.results.jsonl")
        errors = ids(outbox / f"{prop.name}.errors.jsonl")
        expected = input_ids(prop.name, prop.content)

        assert sorted(results + errors) == sorted(expected)
        assert [name for name in expected if name in results] == results
        assert (shown.folder / "spool" / "done" / prop.name).read_text() == prop.content
        assert (outbox / f"{prop.name}.summary.json").exists()

    assert ids(outbox / "tickets.jsonl.errors.jsonl") == ["ticket-3"]


def test_what_is_left(shown: Shown) -> None:
    """Nothing is left in the inbox or in flight, and no process runs on."""
    spool = shown.folder / "spool"

    assert [path for path in (spool / "inbox").rglob("*") if path.is_file()] == []
    assert list((spool / "working").iterdir()) == []
    assert is_over(shown.folder)


def test_what_it_says(shown: Shown) -> None:
    """The output alone tells what happened: dropped, batched, retried, delivered, and the price."""
    for words in (
        "tickets.jsonl: dropped",
        "tickets.jsonl: batch of 5 requests created",
        "3 answered, 1 failed for good, 1 failed and is retried",
        "tickets.jsonl: batch of 1 request created",
        "tickets.jsonl: delivered, 4 answers and 1 error",
        "outbox/tickets.jsonl.errors.jsonl: 1 line",
        "batches saved 50%",
        f"rm -r {shlex.quote(str(shown.folder))}",
    ):
        assert words in shown.done.stdout

    for line in shown.done.stdout.splitlines():
        assert len(line) <= 100 or str(shown.folder) in line


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C ends the demo and both its processes, and says where the files are."""
    ours, theirs = pty.openpty()
    terminal = os.ttyname(theirs)
    # A session's leader that opens a terminal gets it as its own, and with it Ctrl-C.
    command = shlex.join([*COMMAND, "demo", "--dir", str(tmp_path)])
    script = f"exec {command} <{terminal} >{terminal} 2>&1"
    said = b""

    with (
        subprocess.Popen(  # noqa: S603 - our own command
            ["/bin/sh", "-c", script], env=environ(TERM="xterm"), start_new_session=True
        ) as demo,
        os.fdopen(ours, "r+b", buffering=0) as screen,
        suppress(OSError),  # on Linux a terminal that nobody has open any more cannot be read
    ):
        said += screen.read(4096)
        os.close(theirs)  # the shell has opened it

        while data := screen.read(4096):
            is_pressed = b"waits for" in said
            said += data

            if b"waits for" in said and not is_pressed:
                screen.write(b"\x03")

    assert demo.returncode == 130
    assert f"stopped; the demo's files are in {tmp_path}" in said.decode().replace("\r\n", "")
    assert b"Traceback" not in said
    assert is_over(tmp_path)


def test_sigterm(tmp_path: Path) -> None:
    """SIGTERM, too, leaves no process behind."""
    with started("demo", "--dir", tmp_path) as demo:
        read_until(demo, "batch of")
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=LIMIT_S)

    assert demo.returncode == 130
    assert is_over(tmp_path)


def test_a_daemon_that_dies(tmp_path: Path) -> None:
    """When something goes wrong it says what the log said last, and fails."""
    with started("demo", "--dir", tmp_path) as demo:
        read_until(demo, "batch of")
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        daemon = next(
            int(child)
            for child in children
            if b"\0run\0" in Path(f"/proc/{child}/cmdline").read_bytes()
        )
        os.kill(daemon, signal.SIGKILL)
        _, complaint = demo.communicate(timeout=LIMIT_S)

    assert demo.returncode == 1
    assert '"event":"batch.created"' in complaint
    assert complaint.splitlines()[-1].startswith("promptspool: the demo failed: ")
    assert is_over(tmp_path)


def test_progress_of_unknown_things() -> None:
    """Lines about other things than the dropped files change nothing."""
    progress = Progress.of(["a.txt"])
    before = repr(progress)

    assert progress.told({}) is None
    assert progress.told({"event": "job.settled", "job": "j1"}) is None
    assert progress.told({"event": "poll.swept", "provider": "openai"}) is None
    assert repr(progress) == before


def test_progress_of_successors() -> None:
    """A successor is one more batch, and counts no request twice."""
    progress = Progress.of(["a.txt"])
    lines: list[dict[str, object]] = [
        {"event": "job.claimed", "job": "j", "file": "a.txt"},
        {"event": "job.planned", "job": "j", "requests": 3, "batches": 1},
        {"event": "batch.uploaded", "job": "j", "batch": "j.1", "requests": 3},
        {"event": "batch.closed", "job": "j", "batch": "j.1", "answered": 2, "failed": 0,
         "successors": ["j.1+1"]},
        {"event": "batch.uploaded", "job": "j", "batch": "j.1+1", "requests": 1},
        {"event": "batch.closed", "job": "j", "batch": "j.1+1", "answered": 0, "failed": 1,
         "successors": []},
        {"event": "job.tidied", "job": "j"},
    ]  # fmt: skip
    said = [progress.told(line) for line in lines]
    journey = progress.journeys["a.txt"]

    assert "1 failed and is retried" in str(said[3])
    assert (journey.batches, journey.batches_ended) == (2, 2)
    assert (journey.requests, journey.finished) == (3, 3)
    assert progress.is_over
