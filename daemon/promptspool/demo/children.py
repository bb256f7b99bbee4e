"""The two processes of the demo, and their end with it.

A child lives inside a `with` block, whatever ends that. What it says is kept in a log file. Lets
`OSError` through (environment).
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

PATIENCE_S = 10.0
"""How long a child may take to stop before it is killed."""


def environment(api_key: str) -> dict[str, str]:
    """Return this process's environment for a child, with a key that only it has.

    Left out is what would lead it elsewhere: our own settings, proxies, a service manager's socket.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("PROMPTSPOOL_")
        and not name.upper().endswith("_PROXY")
        and name not in ("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET")
    }

    return kept | {"OPENAI_API_KEY": api_key}


class Child:
    """One `promptspool` command run by this interpreter; ends with its `with` block."""

    def __init__(self, *arguments: str, log: Path, environ: Mapping[str, str]) -> None:
        """Start it; what it says goes to *log*, its standard output once it is read."""
        self._log = log.open("ab", buffering=0)
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "promptspool", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environ,
        )

    def __enter__(self) -> Self:
        """Return the running child."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it if it still runs."""
        self.stop()
        self._stdout.close()
        self._log.close()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of its standard output, each as it comes, until it ends."""
        for line in self._stdout:
            self._log.write(line)
            yield line

    def stop(self) -> int:
        """Ask it to stop, wait until it has, and return its exit code."""
        self._process.terminate()

        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()  # for one that did not obey, or a second Ctrl-C; else it does nothing

        return self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        return self._process.stdout
