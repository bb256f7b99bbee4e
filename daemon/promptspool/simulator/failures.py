"""How one request of a batch fails: by a script, or by a mark in its own prompt.

`[[fail:400]]` fails always, `[[fail:500 once]]` the first time its body is accepted and never
again, `[[fail:timeout]]` with an error that is no HTTP response, and `[[missing]]` leaves no
line at all. Pure, raises nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from promptspool.simulator.problems import error_body

_MARK: Final = re.compile(r"\[\[(?:fail:(\d{3}|timeout)( once)?|(missing))\]\]")


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
    """A mark found in a prompt; *failure* None means that the request goes missing."""

    failure: Failure | None
    is_once: bool


def mark(text: str) -> Mark | None:
    """Return the first mark in *text*, None when there is none."""
    found = _MARK.search(text)

    if found is None:
        return None

    name, once, missing = found.groups()
    failure = None if missing else _named(name)
    return Mark(failure=failure, is_once=once is not None)


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
