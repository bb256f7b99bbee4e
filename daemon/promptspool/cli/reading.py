"""Commands that look and change nothing: the spool, one job, the log, and waiting for an end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from promptspool.cli.program import FAILED, Config, SpoolDir, app
from promptspool.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from promptspool.settings import Settings

WATCH_S = 1.0
"""How long a drawing of `status --watch` stays."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Draw it anew every second, until Ctrl-C.")
    ] = False,
    is_all: Annotated[
        bool, typer.Option("--all", help="List every job, however many lines that takes.")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Show on one screen how the daemon and its jobs are doing.

    Whether it runs; what is paused, and why; what today cost; the jobs in flight with their phase,
    age and next step; what needs a person, with the commands that help; and how old the batches in
    each phase are, so that what is stuck stands out on the right. Works when the daemon is down,
    and never disturbs it.

    Exit code 1 if anything needs a person: a job that is held or set aside, a batch without
    progress, a provider that refuses, a file that was rejected in the last 24 hours, a notice that
    nobody took, a daemon that is down while jobs wait, or a database that cannot be read.

    The keys of --json are described in promptspool/tell/document.py; none changes its meaning
    under the same "version".

    \b
    Example: promptspool status --watch
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.clock import SystemClock
    from promptspool.settings import load
    from promptspool.tell.document import document
    from promptspool.tell.looking import console_of, looked, place_of, put, spool_of
    from promptspool.tell.screen import lines_of
    from promptspool.tell.words import safe

    settings = load(config, spool=spool)
    folder = spool_of(settings).root

    if as_json and not watch:
        report = looked(settings, now=SystemClock().now())
        typer.echo(json.dumps(document(report, folder), indent=2))

        return FAILED if report.needs else 0

    console = console_of()

    if watch:
        return _watched(settings, console, as_json=as_json)

    report = looked(settings, now=SystemClock().now())
    put(console, lines_of(report, safe(str(folder)), place_of(console, shows_all=is_all)))

    return FAILED if report.needs else 0


def _watched(settings: Settings, console: Console, *, as_json: bool) -> int:
    from contextlib import suppress

    from rich.console import Group
    from rich.live import Live

    from promptspool.clock import SystemClock, pause
    from promptspool.tell.looking import looked, place_of, spool_of
    from promptspool.tell.screen import lines_of
    from promptspool.tell.words import safe

    if as_json or not console.is_terminal:
        raise ConfigError("--watch", "it draws on a terminal; leave it out, or --json")

    folder = safe(str(spool_of(settings).root))

    with (
        suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            report = looked(settings, now=SystemClock().now())
            lines = lines_of(report, folder, place_of(console, shows_all=False))
            live.update(Group(*lines), refresh=True)
            pause(WATCH_S)

    return 0
