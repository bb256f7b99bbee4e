"""Tells systemd how the daemon is (sd_notify).

Everywhere else it does nothing. It never raises: a supervisor that does not listen is no reason
to stop.
"""

from __future__ import annotations

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
