"""The order of the checks, from what everything rests on to what is outside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from promptspool.doctor.daemon import daemon_findings
from promptspool.doctor.database import database_findings
from promptspool.doctor.finding import ok, problem, warning
from promptspool.doctor.machine import machine_findings
from promptspool.doctor.providers import provider_findings
from promptspool.doctor.spool import spool_findings
from promptspool.errors import ConfigError
from promptspool.settings import remarks
from promptspool.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from promptspool.doctor.finding import Finding
    from promptspool.settings import Settings


def examination(load: Callable[[], Settings], *, is_offline: bool) -> Iterator[Finding]:
    """Yield what is found, one thing after another, as it is found.

    *load* returns the configuration, or raises `ConfigError`: then only the machine is looked at.
    Nothing is sent anywhere if *is_offline*.
    """
    try:
        settings = load()
    except ConfigError as error:
        yield problem("configuration", str(error), "mend that and run this again")
        yield from _kept_going("machine", lambda: machine_findings(None))

        return

    yield _configuration(settings)
    yield from (warning("configuration", text, "look at it again") for text in remarks(settings))
    spool = Spool(settings.spool.path, settings.spool.state)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "spool": lambda: spool_findings(spool),
        "daemon": lambda: daemon_findings(spool, settings),
        "database": lambda: database_findings(spool),
        "machine": lambda: machine_findings(spool),
        "providers": lambda: provider_findings(spool, settings, is_offline=is_offline),
    }

    for name, check in checks.items():
        yield from _kept_going(name, check)


def _configuration(settings: Settings) -> Finding:
    message = (
        f"{settings.source}: profiles {', '.join(settings.profiles) or '(none)'}; "
        f"providers {', '.join(settings.providers) or '(none)'}"
    )

    if not settings.profiles:
        return warning("configuration", message, "add a section [profiles.default]")

    return ok("configuration", message)


def _kept_going(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what *check* finds; what it stumbles over is a finding, too."""
    try:
        yield from check()
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        mend = "run this as the daemon's user, or as root"
        yield warning(name, f"{where}{error.strerror or error}; the rest was not looked at", mend)
