"""What is said of values that the configuration must not have.

Pure: it makes `ConfigError`s and raises none.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from promptspool.errors import ConfigError
from promptspool.settings.sections import (
    ENV_DELIMITER,
    ENV_PREFIX,
    IntakeSettings,
    LaneSettings,
    LogSettings,
    MetricsSettings,
    NotifySettings,
    PollingSettings,
    PriceSettings,
    ProfileSettings,
    ProviderSettings,
    RetentionSettings,
    RetrySettings,
    Settings,
    SpoolSettings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


def config_error(
    error: ValidationError,
    path: Path | str,
    environ: Mapping[str, str],
    *,
    below: Sequence[str] = (),
) -> ConfigError:
    """Return what a person is told: every fault, each with its key and what to write there.

    *below* is the section that was validated alone; its keys are shown without it.
    """
    faults = [_fault(details, environ, below) for details in error.errors()]

    if len(faults) == 1 and faults[0][0]:
        key, reason = faults[0]
        return ConfigError(key, f"{reason} ({path})")

    lines = "\n".join(f"{key}: {reason}" if key else reason for key, reason in faults).splitlines()
    return ConfigError(str(path), "\n  ".join([f"{len(lines)} problems:", *lines]))


def _fault(
    details: ErrorDetails, environ: Mapping[str, str], below: Sequence[str]
) -> tuple[str, str]:
    """Return the dotted key, empty when the message names it, and what to write there."""
    where = [str(part) for part in details["loc"] if part != "[key]"]
    key = ".".join(where)
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    env = ENV_PREFIX + ENV_DELIMITER.join(where).upper()
    origin = f" (from ${env})" if env in environ else ""

    match details["type"]:
        case "extra_forbidden":
            reason = f"unknown key; {known(_section_of([*below, *where[:-1]]), where[-1])}"
        case "missing":
            reason = f"missing; write {where[-1]} = ..."
        case _ if not where:
            reason = message
        case _ if where[-1].startswith(("api_key", "base_url")):
            # A key pasted into the wrong place must not reach a log.
            reason = message
        case _:
            reason = f"found {details['input']!r:.80}; {message}"

    return key, reason + origin


def _section_of(where: list[str]) -> type[BaseModel]:
    sections: dict[str, type[BaseModel]] = {
        "spool": SpoolSettings,
        "providers": ProviderSettings,
        "polling": PollingSettings,
        "retry": RetrySettings,
        "lanes": LaneSettings,
        "intake": IntakeSettings,
        "profiles": ProfileSettings,
        "prices": PriceSettings,
        "metrics": MetricsSettings,
        "retention": RetentionSettings,
        "log": LogSettings,
    }

    if where[:1] == ["profiles"] and where[-1] == "notify":
        return NotifySettings

    return sections.get(where[0], Settings) if where else Settings


def known(section: type[BaseModel], key: str) -> str:
    """Return the nearest key that *section* knows, or all of them."""
    names = list(section.model_fields)
    near = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
