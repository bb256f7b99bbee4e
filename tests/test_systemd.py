from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from commands import LIMIT_S, started
from promptspool.settings import example_config
from promptspool.systemd import notify, reloading, watchdog_s

if TYPE_CHECKING:
    from pathlib import Path


def test_notify_over_a_path(tmp_path: Path) -> None:
    """The state arrives as one datagram, as it was given."""
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(environ["NOTIFY_SOCKET"])
        listener.settimeout(5)

        assert notify("READY=1\nSTATUS=idle", environ)
        assert listener.recv(4096) == b"READY=1\nSTATUS=idle"
        assert notify(reloading(1_234_567), environ)
        assert listener.recv(4096) == b"RELOADING=1\nMONOTONIC_USEC=1234567"


def test_notify_over_an_abstract_address() -> None:
    """An address that begins with "@" is in the abstract name space."""
    name = f"promptspool-{uuid.uuid4()}"

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(5)

        assert notify("STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert listener.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "a\0b", "x" * 200])
def test_nobody_listens(address: str) -> None:
    """Nobody to notify is an answer, not an error."""
    assert not notify("READY=1", {"NOTIFY_SOCKET": address})


def test_no_supervisor() -> None:
    """Without systemd nothing happens."""
    assert not notify("READY=1", {})


def test_a_full_queue_does_not_block(tmp_path: Path) -> None:
    """A supervisor that does not read cannot stop the daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}

        assert not all(notify("WATCHDOG=1", environ) for _ in range(10_000))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": ""}, None),
        ({}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "2min"}, None),
        ({"WATCHDOG_USEC": "٢"}, None),
    ],
)
def test_watchdog(environ: dict[str, str], expected: float | None) -> None:
    """The interval is in seconds; without one, or with one for another process, there is none."""
    assert watchdog_s(environ) == expected


def test_a_run_as_systemd_hears_it(tmp_path: Path) -> None:
    """Ready, alive, reloading, ready again, stopping: each is told when it is so, and in order."""
    config = tmp_path / "promptspool.toml"
    config.write_text(example_config())

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(LIMIT_S)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}

        with started("run", "--config", config, **environ) as process:
            heard_until(listener, "READY=1")
            heard_until(listener, "WATCHDOG=1")
            heard_until(listener, "WATCHDOG=1")
            before_us = time.monotonic_ns() // 1000
            process.send_signal(signal.SIGHUP)
            reload = heard_until(listener, "RELOADING=1")
            heard_until(listener, "READY=1")
            process.send_signal(signal.SIGTERM)
            heard_until(listener, "STOPPING=1")

            assert process.wait(LIMIT_S) == 0
            assert int(reload["MONOTONIC_USEC"]) >= before_us


def heard_until(listener: socket.socket, line: str) -> dict[str, str]:
    """Return the first state that says *line*, as names and values."""
    while True:
        lines = listener.recv(4096).decode().split("\n")

        if line in lines:
            return dict(one.split("=", 1) for one in lines)
