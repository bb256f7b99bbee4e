"""Refusals of the simulated API, in the documented error JSON.

`ApiProblem` is *bad data*: something the client sent. It never leaves the server, it becomes
the response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping


class ApiProblem(Exception):
    """A request that is answered with an error object."""

    def __init__(  # noqa: PLR0913 - the fields of the documented error object
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the refusal; *kind* is the `type` of the error object."""
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = error_body(message, kind=kind, param=param, code=code)


def error_body(
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> dict[str, dict[str, str | None]]:
    """Return the documented error object, `{"error": {message, type, param, code}}`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return *content* as a JSON response."""
    return Response(
        msgspec.json.encode(content),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def refusal(problem: ApiProblem) -> Response:
    """Return the response that a problem stands for."""
    return reply(problem.body, problem.status, problem.headers)


def unknown(kind: str, remote_id: str) -> ApiProblem:
    """Return the 404 of an id nobody knows; *kind* is `File` or `Batch`."""
    message = f"No such {kind} object: {remote_id}"
    return ApiProblem(404, message, param="id")


def missing(param: str) -> ApiProblem:
    """Return the 400 of a parameter that is required and absent."""
    message = f"Missing required parameter: '{param}'."
    return ApiProblem(400, message, param=param, code="missing_required_parameter")


def bad_value(param: str, message: str, code: str = "invalid_value") -> ApiProblem:
    """Return the 400 of a parameter that is present and wrong."""
    return ApiProblem(400, f"Invalid '{param}': {message}", param=param, code=code)
