"""What the doctor says of one thing. Pure; raises nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will not always."""
    PROBLEM = "problem"
    """It does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at, in a word or two."""
    level: Level
    message: str
    """What was found."""
    mend: str | None = None
    """What to do about it; None where there is nothing to do."""


def ok(check: str, message: str) -> Finding:
    """Return that all is well."""
    return Finding(check=check, level=Level.OK, message=message)


def warning(check: str, message: str, mend: str) -> Finding:
    """Return something that works and will not always."""
    return Finding(check=check, level=Level.WARNING, message=message, mend=mend)


def problem(check: str, message: str, mend: str) -> Finding:
    """Return something that does not work."""
    return Finding(check=check, level=Level.PROBLEM, message=message, mend=mend)
