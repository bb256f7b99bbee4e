"""Layers: one table of values laid over another. Pure; raises nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_WHOLE = frozenset({"response_schema"})
"""Tables that mean something as a whole only: they are replaced, never mixed."""


def laid(over: Mapping[str, Any], *, on: Mapping[str, Any]) -> dict[str, Any]:
    """Lay *over* on *on*, table by table."""
    return _laid(over, on, str)


def laid_by_environment(over: Mapping[str, Any], *, on: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what the environment says on *on*, table by table.

    Its names have no case and no hyphens, so `MY_PROFILE` means `My-Profile`.
    """
    return _laid(over, on, folded)


def folded(key: str) -> str:
    """Return the name of a key as the environment knows it."""
    return key.casefold().replace("-", "_")


def _laid(
    over: Mapping[str, Any], on: Mapping[str, Any], fold: Callable[[str], str]
) -> dict[str, Any]:
    result = dict(on)
    spelling = {fold(key): key for key in on}

    for key, value in over.items():
        name = spelling.get(fold(key), key)
        below = result.get(name)

        if isinstance(below, Mapping) and isinstance(value, Mapping) and name not in _WHOLE:
            result[name] = _laid(value, below, fold)
        else:
            result[name] = value

    return result
