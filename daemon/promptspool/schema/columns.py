"""Columns: what a table of answers has a column for. Pure; raises nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from promptspool.schema.bounds import referred

if TYPE_CHECKING:
    from promptspool.schema.checking import Schema

Kind = Literal["text", "integer", "number", "boolean"]


def properties(schema: Schema) -> list[tuple[str, Kind]]:
    """Return the root's properties in their order, each with what a cell of it holds.

    A value of several types, an array or an object is text: JSON. Null is allowed everywhere.
    """
    found = schema.get("properties")

    if not isinstance(found, dict):
        return []

    return [(name, _kind(_types(part, schema, frozenset()))) for name, part in found.items()]


def _types(part: object, root: Schema, seen: frozenset[str]) -> frozenset[str]:
    """Return the names of the types that a value may have; none if nothing is said."""
    if not isinstance(part, dict):
        return frozenset()

    reference = part.get("$ref")

    if isinstance(reference, str) and reference not in seen:
        return _types(referred(reference, root), root, seen | {reference})

    said = part.get("type")

    if said is not None:
        return frozenset([said] if isinstance(said, str) else said)

    for keyword in ("anyOf", "oneOf"):
        if isinstance(part.get(keyword), list):
            return _union([_types(one, root, seen) for one in part[keyword]])

    if isinstance(part.get("allOf"), list):
        known = [types for one in part["allOf"] if (types := _types(one, root, seen))]
        return frozenset.intersection(*known) if known else frozenset()

    values = part["enum"] if isinstance(part.get("enum"), list) else []

    return frozenset(_type(value) for value in ([part["const"]] if "const" in part else values))


def _union(kinds: list[frozenset[str]]) -> frozenset[str]:
    """Return all types of the alternatives; none if one of them may be anything."""
    return frozenset().union(*kinds) if all(kinds) else frozenset()


def _type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case _:
            return "string"


def _kind(types: frozenset[str]) -> Kind:
    match sorted(types - {"null"}):
        case ["boolean"]:
            return "boolean"
        case ["integer"]:
            return "integer"
        case ["number"] | ["integer", "number"]:
            return "number"
        case _:
            return "text"
