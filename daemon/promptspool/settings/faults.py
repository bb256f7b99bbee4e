"""What is said of values that the configuration must not have.

Pure: it makes `ConfigError`s and raises none.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptspool.errors import ConfigError
from promptspool.settings.sections import (
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
from promptspool.settings.values import CONFLICT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from promptspool.settings.lines import Where
    from promptspool.settings.sources import Sources

MAX_SHOWN = 80
"""So much of a wrong value is repeated."""

_UNSHOWN = ("api_key", "base_url", "command", "params", "webhook")
"""Keys, by how they begin, whose values are not repeated: a secret may stand in the wrong place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that has to be changed."""

    where: Where
    reason: str
    """What was found, and what to write there."""
    is_missing: bool = False
    """Nothing stands there yet."""


def faults_of(error: ValidationError, *, below: Sequence[str] = ()) -> list[Fault]:
    """Return every fault that the validation has found.

    *below* is the section that was validated alone, by whose names unknown keys are judged.
    """
    return [fault for details in error.errors() for fault in _faults(details, below)]


def told(faults: Sequence[Fault], sources: Sources) -> ConfigError:
    """Return what a person is told of *faults*: each with its place, its key and the mend."""
    if len(faults) == 1:
        fault = faults[0]

        return sources.error(fault.where, fault.reason, is_missing=fault.is_missing)

    lines = [f"{len(faults)} problems:"]

    for fault in faults:
        place = sources.place(fault.where, is_missing=fault.is_missing)
        place = place.removeprefix(str(sources.path)).removeprefix(", ")
        lines.append(
            ": ".join(part for part in (place, ".".join(fault.where), fault.reason) if part)
        )

    return ConfigError(str(sources.path), "\n  ".join(lines))


def _faults(details: ErrorDetails, below: Sequence[str]) -> Iterator[Fault]:
    # Without the places in arrays: the value that is shown says which one it is.
    where = tuple(part for part in details["loc"] if isinstance(part, str) and part != "[key]")
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]

    match details["type"]:
        case "extra_forbidden":
            reason = f"unknown key; {known(_section_of([*below, *where[:-1]]), where[-1])}"
            yield Fault(where=where, reason=reason)
        case "missing":
            yield Fault(where=where, reason=f"missing; write {where[-1]} = ...", is_missing=True)
        case "model_type" | "model_attributes_type" | "dict_type":
            yield Fault(where=where, reason="found one value; write a table of keys")
        case _ if details["type"] == CONFLICT:
            for key, reason in details["ctx"]["conflicts"]:
                yield Fault(where=(*where, *key), reason=reason)
        case _ if _is_shown(where, details["input"]):
            shown = f"{details['input']!r:.{MAX_SHOWN}}"
            yield Fault(where=where, reason=f"found {shown}; {message}")
        case _:
            yield Fault(where=where, reason=message)


def _is_shown(where: Where, value: object) -> bool:
    """Tell whether a value that is wrong may be repeated: a key pasted there must not."""
    is_named = any(part.startswith(_UNSHOWN) for part in where)

    return not (is_named or isinstance(value, dict))


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
