"""Params: what a profile puts into the body of every request beside the prompt.

Pure. Raises `BadInput` (bad data) for what no request may hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.brought import FORBIDDEN
from promptspool.intake.request import PROMPT_FIELDS, RESPONSES
from promptspool.schema import request_member

if TYPE_CHECKING:
    from promptspool.settings import ProfileSettings

_SCHEMA_NAME = "answer"


def encoded_params(profile: ProfileSettings) -> dict[str, bytes]:
    """Return the profile's params and its schema as members of a body: JSON texts by their keys."""
    structured = _structured(profile)
    taken = {"model", PROMPT_FIELDS[profile.endpoint], *(name for name, _ in structured)}

    if profile.endpoint == RESPONSES and profile.system:
        taken.add("instructions")

    for name, value in profile.params.items():
        if name in FORBIDDEN and value is not False and value is not None:
            reason = f"the profile's params hold {name!r}, which no batch can do; leave it out"
            raise BadInput(reason, code="bad_profile", key=f"params.{name}")

        if name in taken:
            decider = "response_schema decides" if name in dict(structured) else "the rows decide"
            reason = f"the profile's params hold {name!r}, which {decider}; leave it out"
            raise BadInput(reason, code="bad_profile", key=f"params.{name}")

    members = {name: _encoded(name, value) for name, value in profile.params.items()}

    return {**members, **dict(structured)}


def _encoded(name: str, value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        reason = f"the profile's params.{name} cannot be written as JSON: {error}"
        raise BadInput(reason, code="bad_profile", key=f"params.{name}") from error


def _structured(profile: ProfileSettings) -> list[tuple[str, bytes]]:
    """Return the member of a body that asks for answers of the profile's schema, if it has one."""
    if profile.response_schema is None:
        return []

    try:
        return [request_member(profile.endpoint, _SCHEMA_NAME, profile.response_schema)]
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        reason = f"the profile's response_schema cannot be used: {error}"
        raise BadInput(reason, code="bad_profile", key="response_schema") from error
