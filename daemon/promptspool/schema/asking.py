"""Asking: the part of a request that asks for answers that fit a schema.

Pure. Raises `ValueError` (bad data) for an endpoint that has no structured outputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from promptspool.schema.wording import json_pointer, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.schema.checking import Schema

# What OpenAI's strict mode takes (Structured Outputs guide, "Supported schemas", as of 2026-11). A
# keyword that it does not take fails every request, so any other makes a schema not strict.
_STRICT_KEYWORDS: Final = frozenset(
    {
        "$defs",
        "$ref",
        "$schema",
        "additionalProperties",
        "anyOf",
        "const",
        "definitions",
        "description",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maximum",
        "minItems",
        "minimum",
        "multipleOf",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
    }
)
_STRICT_FORMATS: Final = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"}
)
_MAX_PROPERTIES: Final = 5_000
_MAX_LEVELS: Final = 10
_MAX_CHARS: Final = 120_000
_MAX_VALUES: Final = 1_000
_LARGE_ENUM: Final = 250
_MAX_LARGE_ENUM_CHARS: Final = 15_000

_UNFIT_FOR_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")


def request_member(endpoint: str, name: str, schema: Schema) -> tuple[str, bytes]:
    """Return the member of a request's body that asks for answers that fit: its key, its JSON.

    The schema's title names it, else *name*, in 64 of `[a-zA-Z0-9_-]`. It is asked for strictly
    where the schema allows it. Raises `ValueError` for an endpoint without structured outputs.
    """
    wanted = {
        "name": _name(schema.get("title")) or _name(name) or "answer",
        "strict": strictness(schema) is None,
        "schema": schema,
    }

    match endpoint:
        case "/v1/chat/completions":
            member = {"type": "json_schema", "json_schema": wanted}
            return "response_format", msgspec.json.encode(member)
        case "/v1/responses":
            member = {"format": {"type": "json_schema", **wanted}}
            return "text", msgspec.json.encode(member)
        case _:
            raise ValueError(
                f"{endpoint} has no structured outputs; write /v1/chat/completions or /v1/responses"
            )


def strictness(schema: Schema) -> str | None:
    """Return why *schema*, which passed its check, is not asked for strictly; None if it is.

    Strictly means that a provider lets the model say nothing that does not fit, and takes a part
    of JSON Schema only: the one that OpenAI documents. The reason names the place.
    """
    if "anyOf" in schema:
        return "#/anyOf: not at the root"

    counted = _Counted()
    waiting: list[tuple[str, Any, int]] = [("#", schema, 0)]

    for place, part, level in waiting:
        if not isinstance(part, dict):
            return f"{place}: any value is allowed"

        reason = _looseness(part)

        if reason is not None:
            return f"{place}: {reason}"

        counted.add(part)
        inner = level + ("properties" in part)
        waiting += [(place + json_pointer(path)[1:], one, inner) for path, one in _parts(part)]

        if inner > _MAX_LEVELS:
            return f"{place}: objects are nested deeper than {_MAX_LEVELS} levels"

    return counted.excess()


def _name(value: object) -> str:
    return _UNFIT_FOR_NAMES.sub("_", value).strip("_")[:64] if isinstance(value, str) else ""


@dataclass(slots=True)
class _Counted:
    """What strict mode has limits for, over the whole schema."""

    properties: int = 0
    values: int = 0
    chars: int = 0
    large_enum_chars: int = 0

    def add(self, part: Schema) -> None:
        """Count what one part has of its own."""
        names = [name for _, name, _ in _named(part)]
        enum = part.get("enum", [])
        texts = [value for value in enum if isinstance(value, str)]
        const = part.get("const")
        self.properties += len(part.get("properties", ()))
        self.values += len(enum)
        self.chars += sum(map(len, [*names, *texts, const if isinstance(const, str) else ""]))

        if len(enum) > _LARGE_ENUM:
            self.large_enum_chars = max(self.large_enum_chars, sum(map(len, texts)))

    def excess(self) -> str | None:
        """Return which limit was passed, None if none was."""
        limits = [
            (self.properties, _MAX_PROPERTIES, "properties"),
            (self.values, _MAX_VALUES, "enum values"),
            (self.chars, _MAX_CHARS, "characters in names and values"),
            (self.large_enum_chars, _MAX_LARGE_ENUM_CHARS, "characters in one large enum"),
        ]

        return next(
            (
                f"#: {found:,} {what}, at most {most:,}"
                for found, most, what in limits
                if found > most
            ),
            None,
        )


def _looseness(part: Schema) -> str | None:
    """Return what strict mode does not take in one part, looked at alone; None if it takes it."""
    unknown = sorted(part.keys() - _STRICT_KEYWORDS)

    if unknown:
        return f"{unknown[0]} is not supported"

    if "$ref" in part:
        return None if len(part) == 1 else "$ref stands beside other keywords"

    if "type" not in part and "anyOf" not in part:
        return "no type is given"

    if part.get("format") not in {None, *_STRICT_FORMATS}:
        return f"the format {shortened(str(part['format']))} is not supported"

    types = [part["type"]] if isinstance(part.get("type"), str) else part.get("type", [])

    if "array" in types and "items" not in part:
        return "items is missing"

    if "object" not in types and "properties" not in part:
        return None

    if part.get("additionalProperties") is not False:
        return "additionalProperties is not false"

    odd = sorted(set(part.get("properties", ())) ^ set(part.get("required", ())))

    return f"{shortened(odd[0])} is not in both of properties and required" if odd else None


def _parts(part: Schema) -> Iterator[tuple[list[str | int], Any]]:
    """Yield the schemas that are directly in a part that strict mode takes, and where."""
    for key, name, one in _named(part):
        yield [key, name], one

    for number, one in enumerate(part.get("anyOf", ())):
        yield ["anyOf", number], one

    if "items" in part:
        yield ["items"], part["items"]


def _named(part: Schema) -> Iterator[tuple[str, str, Any]]:
    """Yield the schemas in a part that have names: keyword, name, schema."""
    for key in ("properties", "$defs", "definitions"):
        # A draft knows one of the last two, and does not look at what the other is.
        if isinstance(part.get(key), dict):
            for name, one in part[key].items():
                yield key, name, one
