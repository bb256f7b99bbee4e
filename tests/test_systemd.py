from __future__ import annotations

import socket
import uuid
from typing import TYPE_CHECKING

import pytest

from promptspool.systemd import notify

if TYPE_CHECKING:
    from pathlib import Path


def test_notify_over_a_path(tmp_path: Path) -> None:
    """The state arrives as one datagram, as it was given."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)

        assert notify("READY=1\nSTATUS=idle", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert listener.recv(4096) == b"READY=1\nSTATUS=idle"


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
