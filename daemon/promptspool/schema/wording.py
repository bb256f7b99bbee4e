"""Wording: how places in schemas and answers are shown to people, and long texts.

Pure; raises nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN: Final = 240

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def json_path(path: Sequence[str | int]) -> str:
    """Return a place in a value, as in `$.tags[1]`."""
    return "$" + "".join(
        f".{key}"
        if isinstance(key, str) and _PLAIN_KEY.fullmatch(key)
        else f"[{msgspec.json.encode(key).decode()}]"
        for key in path
    )


def json_pointer(path: Sequence[str | int]) -> str:
    """Return a place in a schema, as in `#/properties/tags`."""
    return "#" + "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in path)


def shortened(text: str) -> str:
    """Return *text* on one line; of a long one the beginning and the end, which says most."""
    line = " ".join(text.split())

    return line if len(line) <= _SHOWN else f"{line[: _SHOWN // 2]} ... {line[-_SHOWN // 2 :]}"
