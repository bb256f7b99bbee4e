"""The heartbeat: what systemd hears of a loop that turns, and of one that does not."""

from __future__ import annotations

import signal
import socket
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from commands import events, read_until, started
from promptspool.app import Daemon
from promptspool.heartbeat import status_line
from promptspool.spool import Spool
from world import simulated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.dispatcher import Dispatcher

LIMIT_S = 30.0


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield the socket of a supervisor that listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(LIMIT_S)
        yield listener


def heard_until(listener: socket.socket, word: str) -> list[str]:
    """Return what is heard up to the first line that begins with *word*."""
    lines: list[str] = []

    while not any(line.startswith(word) for line in lines):
        lines += listener.recv(65_536).decode().splitlines()

    return lines


def configured(tmp_path: Path) -> Path:
    """Return a configuration of a spool that nobody answers."""
    config = tmp_path / "promptspool.toml"
    config.write_text(
        '[providers.openai]\nbase_url = "http://127.0.0.1:9/v1"\napi_key_env = "KEY"\n'
        '[profiles.default]\nmodel = "gpt-5-mini"\n'
    )

    return config


def test_a_daemon_tells_its_supervisor_how_it_is(tmp_path: Path, supervisor: socket.socket) -> None:
    """READY after the first look, WATCHDOG from the loop, STATUS in words, STOPPING at the end."""
    with started(
        "run", "--config", configured(tmp_path), KEY="sk-test-key",
        NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="600000",
    ) as process:  # fmt: skip
        heard_until(supervisor, "READY=1")
        lines = [line for _ in range(3) for line in heard_until(supervisor, "WATCHDOG=1")]
        process.send_signal(signal.SIGTERM)
        lines += heard_until(supervisor, "STOPPING=1")

        assert process.wait(LIMIT_S) == 0

    assert lines.count("WATCHDOG=1") >= 3


def test_a_daemon_reads_its_configuration_again(tmp_path: Path, supervisor: socket.socket) -> None:
    """On SIGHUP and when the file changes; a broken one is refused with its line, the old stays."""
    config = configured(tmp_path)
    good = config.read_text()

    with started(
        "run", "--config", config, KEY="sk-test-key", NOTIFY_SOCKET=str(tmp_path / "notify"),
        PROMPTSPOOL_SPOOL__RESCAN="200ms",
    ) as process:  # fmt: skip
        heard_until(supervisor, "READY=1")
        process.send_signal(signal.SIGHUP)

        assert heard_until(supervisor, "RELOADING=1")
        assert heard_until(supervisor, "READY=1")
        assert events(read_until(process, "config.reloaded"))[0]["changed"] == []

        config.write_text(good + "max_attempts = 0\n")
        (refused,) = events(read_until(process, "config.refused"))
        assert "line 6" in refused["reason"]
        assert "max_attempts" in refused["reason"]

        config.write_text(good + "max_attempts = 7\n")
        (reloaded,) = events(read_until(process, "config.reloaded"))
        assert reloaded["changed"] == ["profiles.default.max_attempts"]

        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


@pytest.mark.anyio
async def test_a_loop_that_hangs_does_not_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop itself says that it turns: while it waits for a disk that hangs it is silent."""
    entered, let_go = threading.Event(), threading.Event()
    beats: list[float | None] = []

    def hang(_spool: Spool) -> None:
        entered.set()
        let_go.wait(LIMIT_S)

    async def beat(dispatcher: Dispatcher) -> None:
        beats.append(dispatcher.turned_at)

    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", [{"id": "a", "prompt": "why?"}])
        monkeypatch.setattr(Spool, "check", hang)
        daemon = Daemon(
            settings=world.settings(), clock=world.clock, is_draining=True, on_turn=beat
        )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.run, daemon)
            await anyio.to_thread.run_sync(entered.wait, LIMIT_S)
            before = len(beats)

            for _ in range(100):
                assert daemon.dispatcher is not None
                daemon.dispatcher.bell.ring()
                await anyio.lowlevel.checkpoint()

            assert len(beats) == before == 1
            monkeypatch.undo()
            let_go.set()

        assert len(beats) > before
        world.assert_conserved("f.jsonl", ["a"])


@pytest.mark.parametrize(
    ("states", "paused", "halted", "line"),
    [
        ({}, [], [], "idle"),
        (
            {"job.planned": 2, "job.held": 1, "batch.created": 12, "batch.uploaded": 1},
            [],
            [],
            "3 jobs, 13 batches (1 held, 1 to be created, 12 running)",
        ),
        ({}, ["openai"], [], "idle; openai waits for the provider"),
        ({}, [], ["promptspool"], "idle; promptspool paused by hand"),
    ],
)
def test_the_status_is_one_line(
    states: dict[str, int], paused: list[str], halted: list[str], line: str
) -> None:
    """Counts come in words, and what is paused is said."""
    assert status_line(states, paused=paused, halted=halted) == line
