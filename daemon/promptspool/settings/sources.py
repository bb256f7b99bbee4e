"""Where each value of a configuration comes from: a variable, a line of the file, an option.

Pure; raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from promptspool.errors import ConfigError
from promptspool.settings.layers import folded
from promptspool.settings.lines import lines_of

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.settings.lines import Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where one value was set."""

    kind: Literal["default", "file", "environment", "option"]
    name: str = ""
    """The file, the variable without its `$`, or the option; empty for a default."""
    line: int | None = None
    """In a file; None if it is not known for certain."""

    def __str__(self) -> str:
        """Return it for people."""
        match self.kind:
            case "environment":
                return f"${self.name}"
            case "file" if self.line is not None:
                return f"{self.name}, line {self.line}"
            case "default":
                return "default"
            case _:
                return self.name


DEFAULT = Origin(kind="default")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The layers that one configuration was made of."""

    path: Path | str
    text: str = ""
    """The file's; empty where it is no TOML."""
    variables: Mapping[Where, str] = field(default_factory=dict)
    """The names of the variables that were read, by their keys, folded."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """What they say, table by table."""
    option: Where | None = None
    """The key that the option `--spool` sets, None if it was not given."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """All layers laid on each other."""

    @cached_property
    def lines(self) -> dict[Where, int]:
        """Return the lines of the file's keys."""
        return lines_of(self.text)

    @cached_property
    def _environment(self) -> Mapping[str, Any]:
        return _folded(self.environment)

    def origins(self, where: Where) -> tuple[Origin, ...]:
        """Return where the value at *where* was set; several for a table of which parts were."""
        value = _at(self.values, where)

        if isinstance(value, Mapping) and value:
            parts = [origin for key in value for origin in self.origins((*where, key))]

            return tuple(dict.fromkeys(parts))

        return (self._origin(where) or DEFAULT,)

    def raw(self, where: Where) -> object:
        """Return a value as it was written, also by a profile that this one extends."""
        found = _at(self.values, where)
        base = self._base(where)

        return self.raw(base) if found is None and base is not None else found

    def error(self, where: Where, reason: str, *, is_missing: bool = False) -> ConfigError:
        """Return what a person is told of the key at *where*; *is_missing* if it is not there."""
        return ConfigError(".".join(where), reason, place=self.place(where, is_missing=is_missing))

    def place(self, where: Where, *, is_missing: bool = False) -> str:
        """Return what is to be changed: the variable, or the file with its line if it is sure."""
        origin = self._origin(where[:-1] if is_missing else where)

        return str(self.path if origin is None else origin)

    def _origin(self, where: Where) -> Origin | None:
        if where and where == self.option:
            return Origin(kind="option", name="--spool")

        variable = self._variable(where)

        if variable is not None:
            return Origin(kind="environment", name=variable)

        if where in self.lines:
            return Origin(kind="file", name=str(self.path), line=self.lines[where])

        base = self._base(where)

        return None if base is None else self._origin(base)

    def _variable(self, where: Where) -> str | None:
        """Return the variable that sets *where*, or all of a table that it is in."""
        name = tuple(folded(key) for key in where)

        if _at(self._environment, name) is None:
            return None

        for length in range(len(name), 0, -1):
            if name[:length] in self.variables:
                return self.variables[name[:length]]

        return None

    def _base(self, where: Where) -> Where | None:
        """Return where a profile that is extended has the same key, None if none is."""
        if len(where) < 3 or where[0] != "profiles":  # noqa: PLR2004 - profiles, a name, a key
            return None

        base = _at(self.values, (*where[:2], "extend"))

        if not isinstance(base, str) or base == where[1]:
            return None

        return ("profiles", base, *where[2:])


def _folded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        folded(key): _folded(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }


def _at(values: Mapping[str, Any], where: Where) -> Any:
    found: Any = values

    for key in where:
        if not isinstance(found, Mapping) or key not in found:
            return None

        found = found[key]

    return found
