"""Where lines of the log come from: a file, standard input, or the journal.

Raises `PromptspoolError` (environment) where there is no journal, and lets `OSError` through.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from promptspool.clock import pause
from promptspool.errors import PromptspoolError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from typing import BinaryIO

UNIT = "promptspool"
"""The service, as `systemd/` calls it."""

LOOK_S = 0.2
"""How often a file is looked at for more."""


def standard_input() -> Generator[bytes]:
    """Yield the lines of standard input as they come."""
    yield from iter(sys.stdin.buffer.readline, b"")


def file_lines(path: Path, *, follows: bool) -> Generator[bytes]:
    """Yield the lines of a file, and, if it is followed, those that come later.

    A file that is cut, or replaced under its name, is read from its beginning.
    """
    file = path.open("rb")

    try:
        while True:
            yield from _whole_lines(file, is_last=not follows)

            if not follows:
                return

            pause(LOOK_S)

            if _is_another(path, file):
                file.close()
                file = path.open("rb")
    finally:
        file.close()


def _whole_lines(file: BinaryIO, *, is_last: bool) -> Generator[bytes]:
    """Yield lines up to the end; one without its end waits for it, unless it *is_last*."""
    while line := file.readline():
        if not line.endswith(b"\n") and not is_last:
            file.seek(-len(line), os.SEEK_CUR)
            return

        yield line


def _is_another(path: Path, file: BinaryIO) -> bool:
    """Tell whether what has the name is another file now, or has become shorter."""
    with suppress(FileNotFoundError):  # between two of them
        status = path.stat()

        return not os.path.samestat(status, os.fstat(file.fileno())) or status.st_size < file.tell()

    return False


def journal_lines(*, follows: bool, since: float | None) -> Generator[bytes]:
    """Yield what the service wrote, as the journal has it."""
    command = ["journalctl", "--unit", UNIT, "--output", "cat", "--no-pager"]
    command += ["--follow", "--lines", "all"] if follows else []
    command += [] if since is None else [f"--since=@{since:.0f}"]

    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 - of our words
    except FileNotFoundError as error:
        message = (
            "there is no journal here (journalctl is not installed); name a FILE with the log, or "
            "- for standard input, as in: promptspool run | promptspool logs -"
        )
        raise PromptspoolError(message) from error

    with process:
        assert process.stdout is not None  # noqa: S101 - it was asked for

        try:
            yield from process.stdout
        except BaseException:  # whoever reads wants no more of it
            process.terminate()
            raise

    if process.returncode > 0:
        raise PromptspoolError(f"journalctl failed with exit code {process.returncode}")
