"""What tests of the service share: a Debian machine of its own, booted by systemd-nspawn.

Every run works on a copy of `debian.made`. Needs root and Debian's packages `systemd-container` and
`debootstrap`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import debian
from commands import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 300
"""Real time, against hangs."""

CLONE = "/root/promptspool"
"""Where the repository is on the machine."""

_PACKAGES = ("systemd-sysv", "dbus", "procps", "ca-certificates", "python3", "python3-venv")
_CLEAN = ("env", "-i", "HOME=/root", "LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/sbin:/usr/bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that has booted."""

    root: Path
    """Its root directory, as seen from here."""
    leader: str
    """The process id of its systemd, as seen from here."""

    def command(self, *words: str, user: str = "root") -> list[str]:
        """Return the command line that runs *words* on the machine."""
        enter = ["nsenter", "--target", self.leader, "--mount", "--uts", "--ipc", "--pid", "--net"]
        become = [] if user == "root" else ["runuser", "-u", user, "--"]

        return [*enter, "--cgroup", "--", *_CLEAN, *become, *words]

    def run(
        self, *words: str, user: str = "root", stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        return subprocess.run(  # noqa: S603 - on a machine of our own
            self.command(*words, user=user),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def say(self, script: str, *, user: str = "root", stdin: str = "") -> str:
        """Return what a shell script says that has to succeed at every command."""
        done = self.run("sh", "-euc", script, user=user, stdin=stdin)

        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"

        return done.stdout.strip()

    def shown(self, name: str) -> str:
        """Return what systemd says of a property of the service."""
        return self.say(f"systemctl show --value --property={name} promptspool")

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """Follow what the service, and systemd about it, log from now on."""
        cursor = self.say("journalctl --quiet --lines=1 --show-cursor | tail -n 1")
        since = cursor.removeprefix("-- cursor: ")
        words = ("journalctl", "--unit=promptspool", "--output=cat", "--follow", "--no-tail",
                 f"--after-cursor={since}")  # fmt: skip

        with subprocess.Popen(  # noqa: S603 - on a machine of our own
            self.command(*words), stdout=subprocess.PIPE, text=True, process_group=0
        ) as process:
            try:
                yield Journal(process)
            finally:
                _end(process)


@dataclass(frozen=True, slots=True)
class Journal:
    """The lines of a journal, each read once."""

    process: subprocess.Popen[str]

    def until(self, text: str) -> str:
        """Read up to a line with *text* and return it."""
        assert self.process.stdout is not None
        deadline = threading.Timer(LIMIT_S / 5, _end, [self.process])
        deadline.start()
        read = []

        try:
            for line in self.process.stdout:
                read.append(line)

                if text in line:
                    return line
        finally:
            deadline.cancel()

        raise AssertionError(f"the journal never said {text!r}, but:\n{''.join(read)}")

    def event(self, name: str, **fields: object) -> dict[str, Any]:
        """Read up to an event of the daemon's with these *fields* and return it."""
        while True:
            line = self.until(f'"event":"{name}"')
            event: dict[str, Any] = json.loads(line)

            if fields.items() <= event.items():
                return event


def _end(process: subprocess.Popen[str]) -> None:
    """End a command on the machine, which is a child of what entered it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def booted() -> Iterator[Machine]:
    """Boot a new machine with this repository in it; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="promptspool-boot-") as folder:
        root = Path(folder, "root")
        base = debian.made(debian.release(), _PACKAGES)
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)  # noqa: S603, S607
        _copy_repository(root / CLONE.lstrip("/"))
        process, leader = _started(root)

        try:
            machine = Machine(root=root, leader=leader)
            yield machine
            machine.run("systemctl", "poweroff")
            process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait()


def _started(root: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Boot the machine at *root*; return its nspawn, and the process id of its systemd."""
    address = f"{root}.notify"

    # Closed once it is up, or both would wait for us to read what they go on to tell.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address)
        told.settimeout(LIMIT_S / 5)
        command = ["systemd-nspawn", "--quiet", f"--directory={root}", "--boot", "--console=pipe",
                   f"--machine=promptspool-{os.getpid()}", "--register=no", "--keep-unit",
                   "--notify-ready=yes", "--resolv-conf=copy-host"]  # fmt: skip
        process = subprocess.Popen(  # noqa: S603 - as written
            command,
            env={**os.environ, "NOTIFY_SOCKET": address},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

        try:
            return process, _leader(told)
        except BaseException:
            process.kill()
            raise


def _leader(told: socket.socket) -> str:
    """Return the process id that nspawn tells of, once it also tells that all is up."""
    leader = ""

    while True:
        state = told.recv(4096).decode()
        found = re.search(r"X_NSPAWN_LEADER_PID=(\d+)", state)
        leader = found[1] if found else leader

        if leader and "READY=1" in state.split("\n"):
            return leader


def _copy_repository(clone: Path) -> None:
    """Copy what git knows of, and what it would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
