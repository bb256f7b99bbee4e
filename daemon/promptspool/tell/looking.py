"""Looking at a spool, and showing lines on a terminal or in a pipe.

Raises `SpoolError` (environment) where there is no spool, or nobody may look; what is wrong with
the database alone is told as something that needs a person.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from promptspool.errors import SpoolError, StoreError
from promptspool.spool import Spool
from promptspool.store.view import NoDatabase, is_held, viewed
from promptspool.tell.figures import bare_report, report
from promptspool.tell.screen import Place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.text import Text

    from promptspool.settings import Glance, Settings
    from promptspool.tell.figures import Report

_ASKED_FOR = frozenset({"FORCE_COLOR", "TTY_COMPATIBLE"})
"""With these a person has rich take a pipe for a terminal."""

PIPE_WIDTH = 1_000_000
"""Of a console that is no terminal, where no line is broken."""


def spool_of(settings: Glance | Settings) -> Spool:
    """Return the spool of a configuration."""
    return Spool(settings.spool.path, settings.spool.state)


def looked(settings: Glance | Settings, *, now: float) -> Report:
    """Return what there is to tell of the spool at this moment, *now* by the clock."""
    try:
        return _looked(settings, now)
    except StoreError:  # a daemon came in meanwhile; by now it is up
        return _looked(settings, now)


def _looked(settings: Glance | Settings, now: float) -> Report:
    spool = spool_of(settings)
    is_up = is_held(spool)

    if not spool.root.is_dir():
        raise SpoolError(f"{spool.root}: there is no spool; look at spool.path, or at --spool")

    try:
        with viewed(spool) as view:
            is_up = view.is_up
            overview = view.overview(now)
    except NoDatabase:
        return bare_report(now=now, is_up=is_up, unreadable=None)
    except SpoolError as error:
        return bare_report(now=now, is_up=is_up, unreadable=str(error))

    return report(overview, settings, now=now, is_up=is_up)


def is_plain() -> bool:
    """Tell whether standard output is no terminal, as `console_of` would find, but sooner."""
    return not sys.stdout.isatty() and not _ASKED_FOR & os.environ.keys()


def console_of() -> Console:
    """Return standard output: no colours in a pipe, and no line of it broken there."""
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second

    console = Console(highlight=False)

    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def place_of(console: Console | None, *, shows_all: bool) -> Place:
    """Return how much room there is; one line is left for the prompt that follows.

    *console* is None where `is_plain`.
    """
    if console is None or not console.is_terminal:
        return Place(width=None, height=None, shows_all=shows_all)

    is_ascii = not console.encoding.startswith("utf")

    return Place(
        width=console.width, height=console.height - 1, is_ascii=is_ascii, shows_all=shows_all
    )


def put(console: Console | None, lines: Iterable[Text]) -> bool:
    """Write *lines* as they are; False if nobody reads them any more, which is no failure.

    *console* is None where `is_plain`.
    """
    try:
        for line in lines:
            if console is not None and console.is_terminal:
                console.print(line, soft_wrap=True)
            else:
                sys.stdout.write(f"{line.plain.rstrip()}\n")

        sys.stdout.flush()
    except BrokenPipeError:
        _write_nowhere()

        return False

    return True


def _write_nowhere() -> None:
    """Send what is still to be written nowhere, or Python complains at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
