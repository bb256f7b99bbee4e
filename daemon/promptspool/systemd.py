"""Tells systemd how the daemon is (sd_notify), and knows how often it wants to hear of it.

Everywhere else it does nothing. It never raises: a supervisor that does not listen is no reason
to stop.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str]) -> bool:
    r"""Send *state*, such as "READY=1" or "STATUS=idle" (several lines joined by "\n").

    False when there is no `$NOTIFY_SOCKET` or nobody reads it.
    Source: sd_notify(3); an address that begins with "@" is an abstract one.
    """
    address = environ.get("NOTIFY_SOCKET", "")

    if not address:
        return False

    if address.startswith("@"):
        address = "\0" + address[1:]

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # The event loop calls this: a full queue must not block it.
            sender.settimeout(0)
            sender.sendto(state.encode(errors="replace"), address)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False

    return True


def watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return within how many seconds systemd wants the next "WATCHDOG=1", or ends this process.

    None if it does not wait for any, from this process. Send it twice as often, from the first turn
    of the loop on: systemd (252) counts from the first, not from "READY=1", so a start that hangs
    ends, too. Source: sd_watchdog_enabled(3).
    """
    interval = environ.get("WATCHDOG_USEC", "")
    process = environ.get("WATCHDOG_PID", str(os.getpid()))

    if process != str(os.getpid()) or not (interval.isascii() and interval.isdecimal()):
        return None

    return float(interval) / 1e6 or None


def reloading(monotonic_us: int) -> str:
    """Return the state to notify of before the configuration is read again; "READY=1" ends it.

    *monotonic_us* is the time by CLOCK_MONOTONIC, in microseconds, by which `Type=notify-reload`
    knows it from an earlier one. Source: sd_notify(3), "RELOADING=1".
    """
    return f"RELOADING=1\nMONOTONIC_USEC={monotonic_us}"
