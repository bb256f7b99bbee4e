"""What tests of the command share: running it for real, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "promptspool"]
LIMIT_S = 60
"""Real time, against hangs."""


def environ(**extra: str) -> dict[str, str]:
    """Return an environment in which the command is found and no setting of ours is."""
    kept = {name: value for name, value in os.environ.items() if "PROMPTSPOOL_" not in name}
    kept.pop("OPENAI_API_KEY", None)

    return kept | {"PYTHONPATH": str(ROOT / "daemon")} | extra


def ran(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with *extra* variables."""
    return subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, *map(str, arguments)],
        env=environ(**extra),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@contextmanager
def started(*arguments: str | Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command beside the test; it ends with the block at the latest."""
    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, *map(str, arguments)],
        env=environ(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read the command's output up to a line with *text*, and return that line.

    A command that does not say it is ended after `LIMIT_S`.
    """
    assert process.stdout is not None
    deadline = threading.Timer(LIMIT_S, process.kill)
    deadline.start()

    try:
        for line in process.stdout:
            if text in line:
                return line
    finally:
        deadline.cancel()

    message = f"it ended without saying {text!r}: {process.stderr and process.stderr.read()}"
    raise AssertionError(message)


@contextmanager
def simulated(speed: float) -> Iterator[str]:
    """Run `promptspool simulate` and yield its base URL."""
    with started("simulate", "--port", "0", "--speed", str(speed)) as process:
        line = read_until(process, "listening")

        try:
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            process.terminate()  # so that it removes its folder
            process.wait(LIMIT_S)


def events(log: str) -> list[dict[str, Any]]:
    """Return the lines of a JSON log."""
    return [json.loads(line) for line in log.splitlines()]


def ids(path: Path) -> list[str]:
    """Return the ids of a file of results or errors, none if it is not there."""
    if not path.exists():
        return []

    return [json.loads(line)["custom_id"] for line in path.read_text("utf-8").splitlines()]
