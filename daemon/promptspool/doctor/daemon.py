"""What is to be said of the daemon: whether it runs, answers, and has what it needs."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from promptspool import control
from promptspool.doctor.finding import ok, problem, warning
from promptspool.doctor.spool import daemon_uid, user_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.doctor.finding import Finding
    from promptspool.settings import Settings
    from promptspool.spool import Spool

ANSWER_S = 5.0
"""How long it may take to answer."""

UNIT = "promptspool.service"

_CAP_LEASE = 28  # linux/capability.h
_SYSTEMCTL_S = 10.0


def daemon_findings(spool: Spool, settings: Settings) -> Iterator[Finding]:
    """Yield what is found of the daemon of *spool*; lets `OSError` through."""
    is_held = spool.is_held()
    pid = holder(spool) if is_held else None

    if is_held:
        yield _answer(spool, pid)
    else:
        yield ok("daemon", "none runs on this spool")

    yield _open_files(settings, pid)

    if pid is not None:
        yield from _lease_right(spool, pid)

    yield from _unit()


def holder(spool: Spool) -> int | None:
    """Return which process holds the spool's lock, as far as the kernel shows it (proc(5))."""
    with suppress(OSError, ValueError):
        status = (spool.state / "lock").stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"

        for line in Path("/proc/locks").read_text("ascii").splitlines():
            _, kind, _, _, pid, place, *_ = line.split()

            if (kind, place) == ("FLOCK", device) and int(pid) > 0:
                return int(pid)

    return None


def _answer(spool: Spool, pid: int | None) -> Finding:
    who = "it runs" if pid is None else f"it runs as process {pid}"

    try:
        said = control.ping(spool, within_s=ANSWER_S)
    except control.ControlError as error:
        return warning("daemon", f"{who}; {error}", "then its health can be asked for")

    if said is None:
        mend = "look at its log; if it says nothing any more, restart it: nothing is lost"
        return problem("daemon", f"{who} and does not answer within {ANSWER_S:g} s", mend)

    return ok("daemon", f"{who} and answers: {said.message}")


def _open_files(settings: Settings, pid: int | None) -> Finding:
    """Compare the limit of open files with what all lanes together may have open."""
    lanes = settings.lanes
    wide = lanes.transfer + lanes.control + lanes.poll
    wanted = 128 + 4 * lanes.disk + 2 * wide * max(len(settings.providers), 1)
    limit = _limit_of(pid)
    of_whom = "here" if pid is None else "of the daemon"
    message = f"open files {of_whom}: {limit:,} allowed, up to {wanted:,} used"

    if limit < wanted:
        return warning("limits", message, "set LimitNOFILE= in its unit, or ulimit -n")

    return ok("limits", message)


def _limit_of(pid: int | None) -> int:
    if pid is not None:
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/limits").read_text("ascii").splitlines():
                if line.startswith("Max open files"):
                    return int(line.split()[3])

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _lease_right(spool: Spool, pid: int) -> Iterator[Finding]:
    """Say whether the running daemon sees who writes to files of others in the inbox."""
    is_shared = bool(spool.inbox.stat().st_mode & 0o022)

    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")

            if is_shared and name == "CapEff" and not int(value, 16) >> _CAP_LEASE & 1:
                owner = user_name(daemon_uid(spool))
                message = f"{owner} does not see who still writes to others' files in the inbox"
                mend = "give the unit AmbientCapabilities=CAP_LEASE, as systemd/ does"
                yield warning("leases", message, mend)


def _unit() -> Iterator[Finding]:
    """Say how systemd finds the service, where there is systemd."""
    systemctl = shutil.which("systemctl")

    if systemctl is None or not Path("/run/systemd/system").is_dir():
        return

    names = "LoadState,ActiveState,UnitFileState,NRestarts"

    try:
        done = subprocess.run(  # noqa: S603 - systemd's own program
            [systemctl, "show", UNIT, f"--property={names}"],
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return

    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    if found.get("LoadState") == "loaded":
        yield _told_of(found)


def _told_of(unit: dict[str, str]) -> Finding:
    state = unit.get("ActiveState", "unknown")
    restarts = unit.get("NRestarts", "0")
    message = f"{UNIT} is {state}, {unit.get('UnitFileState') or 'not installed'}"

    if state == "failed":
        mend = f"journalctl -u {UNIT} -n 50 says why; then systemctl restart {UNIT}"
        return problem("systemd", message, mend)

    if restarts != "0":
        mend = f"journalctl -u {UNIT} says why"
        return warning("systemd", f"{message}, restarted {restarts} times by itself", mend)

    return ok("systemd", message)
