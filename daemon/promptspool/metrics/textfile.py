"""The page as a file, for the textfile collector of node_exporter.

The file is always whole: it is written under a name that the collector passes over, and renamed.
It stays when the daemon ends, with its last figures; its time says how old they are. Raises nothing
for what a disk does: it is logged once, and tried again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog

from promptspool.clock import Bell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from promptspool.clock import Clock

EVERY_S = 15.0
"""As often as Prometheus scrapes by most configurations."""

LAST_S = 2.0
"""How long the end of the daemon waits for the last figures."""

MODE = 0o644
"""The collector runs as another user; there is nothing in it that is secret."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def keep_textfile(
    path: Path, page: Callable[[], Awaitable[bytes | None]], *, clock: Clock
) -> None:
    """Write the page to *path* again and again until cancelled, and once more then."""
    trouble: str | None = None

    try:
        while True:
            before, trouble = trouble, await _trouble(path, page)

            if trouble is not None and trouble != before:
                _log.warning("metrics.unwritten", file=str(path), reason=trouble)
            elif trouble is None and before is not None:
                _log.info("metrics.written", file=str(path))

            await clock.wait(Bell(), EVERY_S)
    finally:
        with anyio.move_on_after(LAST_S, shield=True):
            await _trouble(path, page)


async def _trouble(path: Path, page: Callable[[], Awaitable[bytes | None]]) -> str | None:
    """Write once; return what went wrong, None if nothing did."""
    try:
        await write_textfile(path, page)
    except OSError as error:
        return f"{error.filename or path}: {error.strerror or error}"

    return None


async def write_textfile(path: Path, page: Callable[[], Awaitable[bytes | None]]) -> None:
    """Put the page to *path*, whole or not at all; raises `OSError`.

    Where there is no page, the file stays as it is.
    """
    content = await page()

    if content is None:
        return

    await anyio.to_thread.run_sync(_replace, path, content)


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")  # the collector reads *.prom only

    with suppress(FileNotFoundError):  # of a process that was killed
        part.unlink()

    try:
        # Whoever may write in the folder must not send us elsewhere.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)

        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            os.fchmod(file.fileno(), MODE)
            file.write(content)

        part.rename(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)

        raise
