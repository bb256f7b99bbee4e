"""Usage: the tokens that an answer says it took.

Chat, completions and embeddings call them `prompt_tokens`, responses `input_tokens`; moderations
have none. Pure; raises nothing: what is not said, or said oddly, is nought.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from promptspool.wire import Usage

if TYPE_CHECKING:
    from promptspool.wire import AnswerLine


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Said(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Said | None = None


class _Response(msgspec.Struct):
    body: _Body | str | None = None


_responses = msgspec.json.Decoder(_Response)
_bodies = msgspec.json.Decoder(_Body)

_NO_DETAILS = _Details()

NONE = Usage()
"""What an answer took that does not say it."""

MAX_COUNT = 1_000_000_000
"""Of tokens in one answer, a thousand times what any model takes; more is not believed."""


def usage_of(answer: AnswerLine) -> Usage:
    """Return the tokens of one answer."""
    try:
        body = _responses.decode(answer.response).body

        # Some providers send the body as a string that holds its text.
        if isinstance(body, str):
            body = _bodies.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return NONE

    if body is None or body.usage is None:
        return NONE

    usage = body.usage
    given = usage.prompt_tokens_details or usage.input_tokens_details or _NO_DETAILS
    made = usage.completion_tokens_details or usage.output_tokens_details or _NO_DETAILS

    return Usage(
        input=_count(usage.prompt_tokens or usage.input_tokens),
        cached_input=_count(given.cached_tokens),
        output=_count(usage.completion_tokens or usage.output_tokens),
        reasoning=_count(made.reasoning_tokens),
    )


def _count(count: int | None) -> int:
    """Return *count*; one that is absent or cannot be is nought."""
    return count if count is not None and 0 < count <= MAX_COUNT else 0
