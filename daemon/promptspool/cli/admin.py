"""Commands that look after the daemon and its machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from promptspool.cli.program import FAILED, Config, SpoolDir, registry, remark, say, spelt

if TYPE_CHECKING:
    from promptspool.doctor import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@registry.command()
def health(
    *,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long it may take to answer.")
    ] = 5.0,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Ask the daemon whether it is alive.

    Exit code 0 if the daemon of this spool answers, starting ones too, and 1 with the reason if it
    does not: for a container, a cron job or a monitoring system.

    \b
    Example: promptspool health --timeout 5
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.control import ping
    from promptspool.settings import glance
    from promptspool.spool import Spool

    found = glance(config, spool=spool)
    place = Spool(found.spool.path, found.spool.state)

    if not place.is_held():
        remark(f"promptspool does not run on {place.root}")

        return FAILED

    answer = ping(place, within_s=timeout)

    if answer is None:
        remark(f"promptspool runs on {place.root}, and does not answer within {timeout:g} s")

        return FAILED

    say(answer.message)

    return 0


@registry.command()
def doctor(
    *,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no provider anything.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Look over machine, spool and providers.

    A line each, with what to mend: configuration, folders and permissions, file systems, free
    space, the daemon, its database, limits, the clock, versions; for each provider whether its key
    is found and accepted, and what time it is there. Of a provider one page of its list of batches
    is asked for. Keys are never shown. Run it as the daemon's user, or as root, to see all.

    Exit code 1 if there is a problem. --json prints {"version": 1, "findings": [{"check", "level",
    "message", "mend"}]} with the levels "ok", "warning" and "problem".

    \b
    Example: sudo promptspool doctor
    """  # noqa: D301 - typer's mark for lines to be left alone
    import json

    from promptspool.doctor import Level, examination
    from promptspool.settings import load

    findings = []

    for finding in examination(lambda: load(config, spool=spool), is_offline=offline):
        findings.append(finding)

        if not as_json:
            _show(finding)

    if as_json:
        told = [
            {"check": one.check, "level": one.level.value, "message": one.message, "mend": one.mend}
            for one in findings
        ]
        typer.echo(json.dumps({"version": 1, "findings": told}, indent=2))

    return FAILED if any(one.level is Level.PROBLEM for one in findings) else 0


def _show(finding: Finding) -> None:
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    level = finding.level.value.ljust(8)
    word = typer.style(level, fg=_COLOURS[finding.level.value]) if is_coloured else level
    typer.echo(f"{word} {spelt(f'{finding.check}: {finding.message}')}")

    if finding.mend is not None:
        typer.echo(f"{'':8} {spelt(f'-> {finding.mend}')}")
