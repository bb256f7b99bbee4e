"""Structured outputs: a value that fits the JSON Schema of a request, made from its prompt.

The first of whatever may be chosen, one of whatever may be many. Patterns and rare keywords are not
looked at. Pure, raises nothing: a strange schema gets a strange value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Json = Mapping[str, object]

_DEEP: Final = 6
"""Levels below which only what is required is filled in, so that recursive schemas end."""
_DEEPEST: Final = 24

_MOST: Final = 1_000
"""No array or string is made longer than this."""

_FORMATS: Final = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "answer@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def fitting(schema: object, text: str) -> object:
    """Return a value that fits *schema*, with *text* where a string may be anything."""
    return _Filler(schema if isinstance(schema, Mapping) else {}, text).value(schema, 0)


class _Filler:
    """Fills in one schema."""

    def __init__(self, root: Json, text: str) -> None:
        self._root = root
        self._text = text

    def value(self, part: object, level: int) -> object:
        """Return a value for one part of the schema."""
        schema = self._whole(part, level)
        values, choices = schema.get("enum"), schema.get("anyOf") or schema.get("oneOf")

        if "const" in schema:
            return schema["const"]

        if isinstance(values, list) and values:
            return values[0]

        if isinstance(choices, list) and choices and level < _DEEPEST:
            chosen = min(choices, key=_weight) if level > _DEEP else choices[0]
            return self.value(chosen, level + 1)

        match _type(schema):
            case "object":
                return self._object(schema, level)
            case "array":
                return self._array(schema, level)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._string(schema)

    def _whole(self, part: object, level: int) -> dict[str, object]:
        """Return a part with what it refers to, and all that it is made of, in one."""
        schema = dict(part) if isinstance(part, Mapping) else {}
        reference = schema.pop("$ref", None)
        parts = schema.pop("allOf", None)

        if level < _DEEPEST and isinstance(reference, str):
            schema = self._whole(self._referred(reference), level + 1) | schema

        if level < _DEEPEST and isinstance(parts, list):
            for one in parts:
                schema = self._whole(one, level + 1) | schema

        return schema

    def _referred(self, reference: str) -> object:
        node: object = self._root

        for step in reference.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            node = node.get(key) if isinstance(node, Mapping) else None

        return node

    def _object(self, schema: Json, level: int) -> dict[str, object]:
        properties, required = schema.get("properties"), schema.get("required")
        found = properties if isinstance(properties, Mapping) else {}
        wanted = required if isinstance(required, list) and level > _DEEP else list(found)

        if level >= _DEEPEST:
            return {}

        return {name: self.value(found.get(name), level + 1) for name in wanted}

    def _array(self, schema: Json, level: int) -> list[object]:
        least, most = _whole_number(schema, "minItems", 0), _whole_number(schema, "maxItems", 1)
        first = schema.get("prefixItems")
        parts = list(first) if isinstance(first, list) else []
        length = least if level > _DEEP else max(least, min(1, most), len(parts))
        parts += [schema.get("items")] * (length - len(parts))

        return [self.value(part, level + 1) for part in parts[:length] if level < _DEEPEST]

    def _string(self, schema: Json) -> str:
        text = _FORMATS.get(str(schema.get("format")), self._text)
        least = _whole_number(schema, "minLength", 0)

        return text.ljust(least, ".")[: _whole_number(schema, "maxLength", max(len(text), least))]


def _type(schema: Json) -> object:
    named = schema.get("type")

    if isinstance(named, list) and named:
        return named[0]

    if named is None and ("properties" in schema or "items" in schema):
        return "object" if "properties" in schema else "array"

    return named


def _weight(part: object) -> int:
    """Return how far an alternative goes on: references and objects the farthest."""
    schema = part if isinstance(part, Mapping) else {}

    return 2 if "$ref" in schema else int(_type(schema) in ("object", "array"))


def _number(schema: Json) -> float:
    """Return the least number that is allowed, or the greatest, else nought."""
    step = _bound(schema, "multipleOf") or 1
    lows = (_bound(schema, "minimum"), _above(_bound(schema, "exclusiveMinimum"), step))
    highs = (_bound(schema, "maximum"), _above(_bound(schema, "exclusiveMaximum"), -step))
    low = max((one for one in lows if one is not None), default=None)
    high = min((one for one in highs if one is not None), default=None)

    if low is not None and low > 0:
        return -(-low // step) * step

    return high // step * step if high is not None and high < 0 else 0


def _above(bound: float | None, step: float) -> float | None:
    return None if bound is None else bound + step


def _bound(schema: Json, key: str) -> float | None:
    found = schema.get(key)

    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _whole_number(schema: Json, key: str, default: int) -> int:
    found = schema.get(key)

    return found if isinstance(found, int) and 0 <= found <= _MOST else default
