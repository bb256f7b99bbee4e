"""Around every route: the key, the ledger's count, the armed faults, the common headers.

Raises nothing of its own: a problem becomes its response.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, get_args

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from promptspool.simulator.faults import Action, Call, Fault, Faults, Route
from promptspool.simulator.problems import ApiProblem, refusal
from promptspool.simulator.spoiling import Tampering, spoil

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from promptspool.clock import Clock
    from promptspool.simulator.ledger import Ledger

Handler = Callable[[Request], Awaitable[Response]]
Describe = Callable[[Request, Route], Awaitable[Call]]

_WORKING: frozenset[Action] = frozenset(get_args(Tampering))
"""What needs an answer to be done to."""

_EARLY: frozenset[Action] = frozenset({"cut", "reset", "sever"})
"""What comes before the request was read."""


class Gate:
    """One route behind the key and the faults; an ASGI application."""

    def __init__(  # noqa: PLR0913 - what stands around a route
        self,
        *,
        route: Route,
        handler: Handler,
        describe: Describe,
        api_keys: frozenset[str],
        faults: Faults,
        ledger: Ledger,
    ) -> None:
        """Guard *handler*; *describe* says what of a request a fault may match on."""
        self._route = route
        self._handler = handler
        self._describe = describe
        self._api_keys = api_keys
        self._faults = faults
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or spoil the answer."""
        request = Request(scope, receive)

        try:
            response = await self._respond(request)
        except ClientDisconnect:
            # A client that died while sending is its own problem.
            return

        await response(scope, receive, send)

    async def _respond(self, request: Request) -> ASGIApp:
        self._ledger.calls[self._route] += 1
        problem = self._key_problem(request)

        if problem is not None:
            await _drain(request)
            return refusal(problem)

        fault = self._faults.take(await self._describe(request, self._route))

        if fault is None:
            return await self._work(request)

        return await self._spoiled(request, fault)

    async def _spoiled(self, request: Request, fault: Fault) -> ASGIApp:
        delay_s = 0.0 if fault.action == "drip" else fault.delay_s
        response = Response()

        if fault.point == "before":
            await anyio.sleep(delay_s)

        if fault.action == "sever":
            await _drain(request, fault.after_bytes)
        elif fault.point == "after" or fault.action in _WORKING:
            response = await self._work(request)
        elif fault.action not in _EARLY:
            # A refusal sent before the request is read can be lost with the connection.
            await _drain(request)

        if fault.point == "after":
            await anyio.sleep(delay_s)

        return spoil(fault, response)

    async def _work(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except ApiProblem as problem:
            return refusal(problem)

    def _key_problem(self, request: Request) -> ApiProblem | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")

        if scheme.lower() != "bearer" or not key:
            message = "You didn't provide an API key. Provide it in an Authorization header."
            return ApiProblem(401, message)

        if key not in self._api_keys:
            message = f"Incorrect API key provided: {key[:3]}***."
            return ApiProblem(401, message, code="invalid_api_key")

        return None


async def _drain(request: Request, most: int | None = None) -> None:
    """Read the body, or as much of it as *most* bytes need."""
    came = 0

    async for chunk in request.stream():
        came += len(chunk)

        if most is not None and came >= most:
            return


class Stamp:
    """Middleware: the headers that every response has, with the simulated time."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        """Stamp the responses of *app*."""
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with `date` and `x-request-id` added."""

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["date"] = formatdate(self._clock.now(), usegmt=True)
                headers.setdefault("x-request-id", f"req_{secrets.token_hex(16)}")

            await send(message)

        await self._app(scope, receive, stamped)
