"""Checking: whether a schema is one, and whether answers fit it.

jsonschema-rs does it: on a schema of seven properties it checks a million values a second where
jsonschema checks 12,000, gives up patterns that backtrack without end, and is not harmed by a
schema that refers to itself without end, on which the other hangs or raises. With the parsing,
125,000 answers of 400 bytes a second (all measured). Pure. Raises `ValueError` (bad data) for what
is no schema, and nothing for any answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from promptspool.schema.bounds import check_bounds, without_circles
from promptspool.schema.wording import json_path, json_pointer, shortened

if TYPE_CHECKING:
    import jsonschema_rs

Schema = dict[str, Any]

MAX_DEPTH: Final = 128
"""Levels of nesting in an answer. The checker recurses on the stack: 10,000 levels are well,
100,000 end the process (measured with a stack of 8 MB)."""

MAX_TOLD: Final = 100_000
"""Characters of an answer of which it is told where it does not fit: the checker lists all that is
wrong before it says that an alternative is, 1.6 kB for each (measured)."""

_BEGINNING: Final = 60


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a text does not fit."""

    reason: str


class Checker:
    """Whether answers fit one schema."""

    def __init__(self, schema: Schema) -> None:
        """Raise `ValueError` for what is no schema; `check_schema` asks for more than this."""
        import jsonschema_rs  # noqa: PLC0415 - as in `_compiled`

        self._misfits = jsonschema_rs.ValidationError
        self._failures = (ValueError, OverflowError, jsonschema_rs.ReferencingError)
        self._validator = _compiled(schema)
        # Why a value fits none of several alternatives is told from what all of them say, which
        # in a schema that refers to itself doubles with each level: ten took 4 s (measured).
        self._teller = _compiled(without_circles(schema))

    def parsed(self, text: str) -> bytes | Misfit:
        """Return the JSON of *text* on one line, every number and string as it was written.

        Total: whatever the text is, it is parsed or misfits.
        """
        try:
            value = msgspec.json.decode(text)
            data = msgspec.json.format(text.encode(), indent=-1)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return Misfit(_unreadable(text, error))

        if _is_deep(text, value):
            return Misfit(f"the answer is nested deeper than {MAX_DEPTH} levels")

        try:
            return data if self._validator.is_valid(value) else Misfit(self._reason(text, value))
        except self._failures as error:
            return Misfit(f"the answer cannot be checked: {shortened(str(error))}")

    def _reason(self, text: str, value: Any) -> str:
        """Return what does not fit, and where, as far as that is cheaply told."""
        if len(text) > MAX_TOLD:
            return "the answer does not fit the schema; it is too long to say where"

        try:
            self._teller.validate(value)
        except self._misfits as error:
            return f"at {json_path(error.instance_path)}: {shortened(error.message)}"

        return "the answer does not fit where the schema refers to itself"


def check_schema(schema: Schema) -> None:
    """Raise `ValueError`, in one line, if answers cannot be asked to fit *schema*.

    It has to be JSON Schema, an object schema at its root, since providers want one, to refer to
    nothing outside itself, and to be checked in bounded time.
    """
    check_bounds(schema)
    _compiled(schema)
    found = schema.get("type")

    if found != "object":
        was = "nothing" if found is None else msgspec.json.encode(found).decode()
        raise ValueError(
            f'#/type: found {was}; write "object", and put what is wanted into its "properties"'
        )


def _compiled(schema: Schema) -> jsonschema_rs.Validator:
    import jsonschema_rs  # noqa: PLC0415 - 8 MB that most daemons never need

    try:
        return jsonschema_rs.validator_for(schema, offline=True)
    except jsonschema_rs.ValidationError as error:
        place = json_pointer(error.instance_path)
        raise ValueError(f"{place}: {shortened(error.message)}") from error
    except (ValueError, OverflowError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(f"#: {shortened(str(error))}") from error


def _unreadable(text: str, error: Exception) -> str:
    if not text.strip():
        return "the answer is empty"

    beginning = msgspec.json.encode(text[:_BEGINNING].encode(errors="replace").decode()).decode()
    dots = "..." if len(text) > _BEGINNING else ""

    return f"the answer is no JSON ({shortened(str(error))}); it begins {beginning}{dots}"


def _is_deep(text: str, value: object) -> bool:
    """Tell whether a value is nested too deep; without recursion, and seldom with a walk."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False

    level = [value]

    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]

        if not level:
            return False

    return True
