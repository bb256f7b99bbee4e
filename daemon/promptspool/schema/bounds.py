"""Bounds: how much work a schema makes of checking one value.

The checker recurses on the stack and follows every alternative, so that a small schema could end
the process or keep it busy for years; who drops a file may bring one. Pure. Raises `ValueError`
(bad data) for a schema beyond the bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from promptspool.schema.wording import json_pointer, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.schema.checking import Schema

MAX_CHAIN: Final = 100
"""Parts of a schema that follow from one another for the same value. With `MAX_DEPTH` levels in the
value 200 are well, 1,000 end the process (measured with a stack of 8 MB)."""

MAX_LEVELS: Final = 100
"""Parts that follow from one another at all, until a part comes again."""

MAX_SIZE: Final = 50_000
"""Parts with every reference written out, but for those to what is around them: all that may have
to be looked at for each value. The checker remembers only what it finds of those others."""

# Keywords whose value is data: a reference in it refers to nothing.
_DATA: Final = frozenset({"const", "default", "enum", "examples"})

_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SINGLES: Final = ("not", "if", "then", "else")
_NAMED: Final = ("properties", "patternProperties")
_INNER: Final = (
    *_NAMED,
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "prefixItems",
    "items",
    "additionalItems",
    "unevaluatedItems",
    "contains",
)


def check_bounds(schema: Schema) -> None:
    """Raise `ValueError`, in one line, for a schema that refers outside itself or takes too long.

    References are pointers into the schema, such as `#/$defs/name`: whatever else there is to name
    a part with is not taken.
    """
    parts = list(_parts(schema))

    for place, part in parts:
        _check_names(place, part)

    chains = _Chains(schema)

    for place, part in parts:
        chains.check(place, part)

    size = _Size(schema).total()

    if size > MAX_SIZE:
        raise ValueError(f"#: with its references written out it has more than {MAX_SIZE:,} parts")


def without_circles(schema: Schema) -> Schema:
    """Return *schema* without the references by which a part comes again inside itself.

    For words only: of a value that does not fit, it mostly tells where, down to where a part comes
    again. Raises `ValueError` beyond the bounds.
    """
    # Parts are told apart by identity, so each is to be in one place only.
    own: Schema = msgspec.json.decode(msgspec.json.encode(schema))
    size = _Size(own)
    size.total()

    cut: Schema = _cut(own, size.circles)

    return cut


def referred(reference: str, root: Schema) -> object:
    """Return what a pointer points to; None for what is not there."""
    node: object = root

    for step in unquote(reference).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")

        if isinstance(node, list) and key.isdecimal() and len(key) < len("1000000"):
            node = node[int(key)] if int(key) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, dict) else None

    return node if reference == "#" or reference.startswith("#/") else None


def _parts(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield every object in the schema and its place, outer ones first."""
    waiting: list[tuple[str, Any]] = [("#", schema)]

    for place, node in waiting:
        if isinstance(node, dict):
            yield place, node

        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list) and key not in _DATA:
                waiting.append((place + json_pointer([key])[1:], value))


def _check_names(place: str, part: Schema) -> None:
    reference = part.get("$ref")

    if isinstance(reference, str) and reference != "#" and not reference.startswith("#/"):
        raise ValueError(
            f"{place}/$ref: found {shortened(reference)!r}; a schema refers only to its own parts: "
            'put it under "$defs" and write "#/$defs/NAME"'
        )

    for key in ("$dynamicRef", "$recursiveRef"):
        if isinstance(part.get(key), str):
            raise ValueError(f'{place}/{key}: write "$ref" instead')  # noqa: TRY004 (a property)

    if place != "#" and isinstance(part.get("$id"), str):
        raise ValueError(f"{place}/$id: a part of a schema has no id of its own; leave it out")


class _Chains:
    """Follows the parts that are held against the same value."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def check(self, place: str, part: Schema) -> None:
        """Raise `ValueError` if too many parts follow from *part*, or it follows from itself."""
        try:
            length = self._length(part, 1)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

        if length > MAX_CHAIN:
            raise ValueError(f"{place}: {_too_long()}")

    def _length(self, part: object, level: int) -> int:
        if not isinstance(part, dict):
            return 1

        if id(part) in self._open:
            raise ValueError("it refers to itself without end")

        if level > MAX_CHAIN:
            raise ValueError(_too_long())

        if id(part) not in self._known:
            self._open.add(id(part))
            inner = [self._length(one, level + 1) for one in _alike(part, self._root)]
            self._open.discard(id(part))
            self._known[id(part)] = 1 + max(inner, default=0)

        return self._known[id(part)]


class _Size:
    """Counts the parts that follow from the root, each as often as it does."""

    def __init__(self, root: Schema) -> None:
        self.circles: set[int] = set()
        """The parts, by identity, that refer to what they are in."""
        self._root = root
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def total(self) -> int:
        """Return the count; raises `ValueError` if parts follow from one another too long."""
        return self._count(self._root, None, 1)

    def _count(self, part: object, outer: Schema | None, level: int) -> int:
        if not isinstance(part, dict):
            return 1

        if id(part) in self._open:
            self.circles.add(id(outer))
            return 1

        if level > MAX_LEVELS:
            raise ValueError(f"#: more than {MAX_LEVELS} parts follow from one another")

        if id(part) not in self._known:
            self._open.add(id(part))
            parts = [*_alike(part, self._root), *_inside(part)]
            count = 1 + sum(self._count(one, part, level + 1) for one in parts)
            self._open.discard(id(part))
            self._known[id(part)] = count

        return self._known[id(part)]


def _alike(part: Schema, root: Schema) -> Iterator[object]:
    """Yield the parts that a value is held against because it is held against *part*."""
    reference = part.get("$ref")

    if isinstance(reference, str):
        yield referred(reference, root)

    for key in _LISTS:
        if isinstance(part.get(key), list):
            yield from part[key]

    yield from (part[key] for key in _SINGLES if key in part)

    for key in ("dependentSchemas", "dependencies"):
        if isinstance(part.get(key), dict):
            yield from part[key].values()


def _inside(part: Schema) -> Iterator[object]:
    """Yield the parts that the values in a value are held against because of *part*."""
    for key in _INNER:
        found = part.get(key)

        if isinstance(found, list):
            yield from found
        elif key in _NAMED and isinstance(found, dict):
            yield from found.values()
        else:
            yield found


def _cut(node: Any, circles: set[int]) -> Any:
    """Return a copy of a part of a schema without the references that are in *circles*."""
    if isinstance(node, list):
        return [_cut(one, circles) for one in node]

    if not isinstance(node, dict):
        return node

    is_circle = id(node) in circles

    return {
        key: _cut(one, circles) for key, one in node.items() if not (is_circle and key == "$ref")
    }


def _too_long() -> str:
    return f"more than {MAX_CHAIN} parts follow from one another for one value"
