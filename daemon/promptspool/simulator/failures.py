"""How one request of a batch fails or is answered badly: by a script, or by a mark in its prompt.

`[[fail:400]]` fails always, `[[fail:500 once]]` the first time its body is accepted and never
again, `[[fail:timeout]]` with an error that is no HTTP response, and `[[missing]]` leaves no
line at all. `[[answer:refusal]]` is answered, but with a refusal; `length` cuts the answer off,
`filter` filters it, and `misfit` ignores the schema it was to fit; all of them with ` once`, too.
Pure, raises nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, cast

import msgspec

from promptspool.simulator.problems import error_body

Manner = Literal["refusal", "length", "filter", "misfit"]
"""How an answer that comes is no good."""

_MARK: Final = re.compile(
    r"\[\[(?:(?:fail:(\d{3}|timeout)|answer:(refusal|length|filter|misfit))( once)?|(missing))\]\]"
)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a request that gets no answer.

    *status* None means that there was no HTTP response: the line has `response: null` and the
    code in its top-level `error`.
    """

    status: int | None = 500
    code: str | None = "server_error"
    message: str = "The server had an error while processing your request. You can retry it."
    kind: str = "server_error"
    param: str | None = None

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the response body, the documented error object."""
        return error_body(self.message, kind=self.kind, param=self.param, code=self.code)


SERVER_ERROR: Final = Failure()
CONTEXT_LENGTH: Final = Failure(
    status=400,
    code="context_length_exceeded",
    message="This model's maximum context length is 128000 tokens. Please reduce your messages.",
    kind="invalid_request_error",
    param="messages",
)
RATE_LIMITED: Final = Failure(
    status=429,
    code="rate_limit_exceeded",
    message="Rate limit reached for requests.",
    kind="requests",
)
TIMED_OUT: Final = Failure(
    status=None, code="request_timeout", message="This request took too long to execute."
)
EXPIRED: Final = Failure(
    status=None,
    code="batch_expired",
    message="This request could not be executed before the completion window expired.",
)
CANCELLED: Final = Failure(
    status=None,
    code="batch_cancelled",
    message="This request could not be executed before the batch was cancelled.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A mark found in a prompt; the request goes missing if both others are None."""

    failure: Failure | None
    is_once: bool
    manner: Manner | None = None


def mark(text: str) -> Mark | None:
    """Return the first mark in *text*, None when there is none."""
    found = _MARK.search(text)

    if found is None:
        return None

    name, manner, once, _ = found.groups()
    failure = None if name is None else _named(name)
    return Mark(failure=failure, is_once=once is not None, manner=cast("Manner | None", manner))


def _named(name: str) -> Failure:
    match name:
        case "timeout":
            return TIMED_OUT
        case "400":
            return CONTEXT_LENGTH
        case "429":
            return RATE_LIMITED
        case "500":
            return SERVER_ERROR
        case _:
            kind = "server_error" if name >= "500" else "invalid_request_error"
            return Failure(
                status=int(name), code=None, message=f"Simulated failure {name}.", kind=kind
            )
