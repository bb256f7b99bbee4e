"""Layers: one table of values laid over another. Pure; raises nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def laid(over: Mapping[str, Any], *, on: Mapping[str, Any]) -> dict[str, Any]:
    """Lay *over* on *on*, table by table.

    Names in the environment have no case and no hyphens, so `MY_PROFILE` means `My-Profile`.
    """
    result = dict(on)
    spelling = {_folded(key): key for key in on}

    for key, value in over.items():
        name = spelling.get(_folded(key), key)
        below = result.get(name)
        result[name] = (
            laid(value, on=below)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )

    return result


def _folded(key: str) -> str:
    return key.casefold().replace("-", "_")
