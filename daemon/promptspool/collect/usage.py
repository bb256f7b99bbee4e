"""Usage: the tokens that an answer says it took.

Chat, completions and embeddings call them `prompt_tokens`, responses `input_tokens`; moderations
have none. Pure; raises nothing: what is not said, or said oddly, is nought.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from promptspool.pricing import Tokens

if TYPE_CHECKING:
    from promptspool.wire import AnswerLine


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    body: _Body | str | None = None


_responses = msgspec.json.Decoder(_Response)
_bodies = msgspec.json.Decoder(_Body)

_NO_DETAILS = _Details()


def usage_of(answer: AnswerLine) -> Tokens:
    """Return the tokens of one answer."""
    try:
        body = _responses.decode(answer.response).body

        # Some providers send the body as a string that holds its text.
        if isinstance(body, str):
            body = _bodies.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return Tokens()

    if body is None or body.usage is None:
        return Tokens()

    usage = body.usage
    given = usage.prompt_tokens_details or usage.input_tokens_details or _NO_DETAILS
    made = usage.completion_tokens_details or usage.output_tokens_details or _NO_DETAILS

    return Tokens(
        input=_count(usage.prompt_tokens or usage.input_tokens),
        cached_input=_count(given.cached_tokens),
        output=_count(usage.completion_tokens or usage.output_tokens),
        reasoning=_count(made.reasoning_tokens),
    )


def _count(count: int | None) -> int:
    """Return *count*; one that is negative or absent is nought."""
    return max(count or 0, 0)
