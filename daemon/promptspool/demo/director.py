"""The demo from beginning to end: start, drop, watch, show, stop.

Raises `ConfigError` (environment) before anything is made, `DemoError` afterwards.
"""

from __future__ import annotations

import json
import shlex
import signal
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from promptspool.clock import SystemClock
from promptspool.demo.children import Child, environment
from promptspool.demo.display import (
    progress_table,
    say,
    show_delivered,
    show_summaries,
    show_tree,
)
from promptspool.demo.progress import Progress
from promptspool.demo.props import KEY, config, props
from promptspool.errors import ConfigError, PromptspoolError
from promptspool.settings import FILE_NAME
from promptspool.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SPEED = 300
"""Virtual seconds a second: a batch, about ten virtual minutes, takes two seconds."""

LIMIT_S = 60.0
"""Several times what it takes on a slow machine; after that something is wrong."""

LAST_LINES = 12
"""So much of each child's log is shown when it went wrong."""


class DemoError(PromptspoolError):
    """The demo did not come to its end."""


def show(directory: Path | None) -> None:
    """Run the demo in *directory*, which is made or empty, or in a temporary folder.

    Raises ConfigError for a folder with something in it, DemoError when it went wrong.
    """
    root = _folder(directory)
    performance = _Performance(root)

    try:
        with _interrupted_by_sigterm():
            performance.run()
    except (DemoError, OSError) as error:
        performance.tell_logs()
        raise DemoError(f"the demo failed: {error}; its files are in {root}") from error
    except KeyboardInterrupt:
        say(Console(stderr=True), f"stopped; the demo's files are in {root}")
        raise


def _folder(directory: Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="promptspool-demo-"))

    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_empty = not any(directory.iterdir())
    except OSError as error:
        raise ConfigError("--dir", f"{directory} cannot be used: {error.strerror}") from error

    if not is_empty:
        raise ConfigError("--dir", f"{directory} is not empty; name a new folder")

    return directory.absolute()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no child outlives it."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)

    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Performance:
    """One run of the demo in one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._spool = Spool(root / "spool")
        self._props = props()
        self._progress = Progress.of(prop.name for prop in self._props)
        self._console = Console(highlight=False)
        self._clock = SystemClock()
        self._started = self._clock.monotonic()
        self._logs = [root / "simulator.log", root / "daemon.log"]

    def run(self) -> None:
        """Start both processes, drop the files, watch, and show what came of it."""
        say(
            self._console,
            "The real daemon and a simulated provider on this machine; nothing is paid.",
        )
        say(self._console)
        simulator_log, daemon_log = self._logs
        environ = environment(KEY)
        serving = ["simulate", "--port", "0", "--speed", str(SPEED), "--api-key", KEY]

        with Child(*serving, log=simulator_log, environ=environ) as simulator:
            config_file = self._write_config(simulator)

            with (
                Child(
                    "run", "--config", str(config_file), log=daemon_log, environ=environ
                ) as daemon,
                _killed_after(daemon, LIMIT_S),
            ):
                self._watch(daemon)
                code = daemon.stop()

        if code != 0:
            message = f"the daemon stopped with code {code}"
            raise DemoError(message)

        self._tell("daemon stopped")
        self._show_end()

    def _write_config(self, simulator: Child) -> Path:
        """Wait until the simulator says where it listens, and configure the daemon for that."""
        line = next(simulator.lines(), b"").decode()
        base_url = next((word for word in line.split() if word.startswith("http://")), None)

        if base_url is None:
            message = "the simulator did not start"
            raise DemoError(message)

        self._tell(f"simulated provider started; an hour of its time takes {3600 / SPEED:g} s")
        config_file = self._root / FILE_NAME
        config_file.write_text(config(base_url), encoding="utf-8")

        return config_file

    def _watch(self, daemon: Child) -> None:
        """Follow the daemon's log until every file is delivered."""
        if not self._console.is_terminal:
            self._follow(daemon, None)
            return

        with Live(console=self._console, refresh_per_second=8, transient=True) as live:
            self._follow(daemon, live)

    def _follow(self, daemon: Child, live: Live | None) -> None:
        journeys = self._progress.journeys

        for line in daemon.lines():
            self._obey(line)

            if live is not None:
                live.update(progress_table(list(journeys.values())))

            if self._progress.is_over:
                return

            for journey in journeys.values():
                if journey.rejected is not None:
                    message = f"{journey.file} was rejected: {journey.rejected}"
                    raise DemoError(message)

        message = "the daemon ended too soon, or took too long"
        raise DemoError(message)

    def _obey(self, line: bytes) -> None:
        """Take in one line of the log; drop the files once the daemon is ready."""
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None

        if not isinstance(fields, dict):  # not a line of the log
            return

        if fields.get("event") == "daemon.ready":
            self._tell(f"daemon started; it watches {self._spool.inbox}")
            self._drop()

        said = self._progress.told(fields)

        if said is not None:
            self._tell(said)

    def _drop(self) -> None:
        for prop in self._props:
            path = self._spool.inbox / prop.name
            path.parent.mkdir(exist_ok=True)
            path.write_text(prop.content, encoding="utf-8")
            self._progress.journeys[prop.name].phase = "in the inbox"
            self._tell(f"{prop.name}: dropped ({prop.remark})")

    def _tell(self, text: str) -> None:
        elapsed = self._clock.monotonic() - self._started
        say(self._console, f"{elapsed:5.1f} s  {text}")

    def _show_end(self) -> None:
        console = self._console
        files = [prop.name for prop in self._props]
        say(console)
        show_tree(console, self._spool.root)
        say(console)

        for file in files:
            show_delivered(console, self._spool.outbox, file)

        show_summaries(console, self._spool.outbox, files)
        say(console, f"Look around in {self._spool.root}; the daemon's log is {self._logs[1]}.")
        say(console, f"Remove it all with: rm -r {shlex.quote(str(self._root))}")

    def tell_logs(self) -> None:
        """Print to stderr how the children's logs end."""
        console = Console(stderr=True)

        for log in self._logs:
            if log.exists():
                lines = log.read_text("utf-8", "backslashreplace").splitlines()[-LAST_LINES:]
                say(console, "\n".join([f"{log}:", *lines]))


@contextmanager
def _killed_after(child: Child, limit_s: float) -> Iterator[None]:
    """Kill *child* if the block takes too long, so that reading its output ends."""
    timer = threading.Timer(limit_s, child.kill)
    timer.start()

    try:
        yield
    finally:
        timer.cancel()
