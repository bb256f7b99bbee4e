"""Around every route: the key, the ledger's count, the armed faults, the common headers.

Raises nothing of its own: a problem becomes its response.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, assert_never

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from promptspool.simulator.faults import Call, Fault, Faults, Route
from promptspool.simulator.problems import ApiProblem, refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from promptspool.clock import Clock
    from promptspool.simulator.ledger import Ledger

Handler = Callable[[Request], Awaitable[Response]]
Describe = Callable[[Request, Route], Awaitable[Call]]

TRANSPORT: Final = "simulator.transport"
"""Where the server puts the connection's transport in the ASGI scope's state."""

_PAGE: Final = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"


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

        await anyio.sleep(fault.delay_s)
        return await self._spoiled(request, fault)

    async def _spoiled(self, request: Request, fault: Fault) -> ASGIApp:
        is_worked = fault.point == "after" or fault.action in {"truncate", "stall"}

        if is_worked:
            response = await self._work(request)
        else:
            response = Response()

            # A refusal sent before the request is read can be lost with the connection; a cut
            # is meant to come early.
            if fault.action not in {"cut", "reset"}:
                await _drain(request)

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


def spoil(fault: Fault, response: Response) -> ASGIApp:
    """Return what is sent in place of *response*."""
    match fault.action:
        case "stall":
            return response
        case "cut":
            return _cut
        case "reset":
            return _reset
        case "truncate":
            return _Truncated(response)
        case "empty":
            return Response(b"", status_code=200)
        case "garbage":
            return Response(fault.body or _PAGE, status_code=200, media_type="text/html")
        case "status":
            return _status(fault)
        case _:
            assert_never(fault.action)


def _status(fault: Fault) -> Response:
    if fault.body is None:
        problem = ApiProblem(fault.status, "Simulated fault.", kind="server_error")
        return Response(
            refusal(problem).body,
            fault.status,
            {"content-type": "application/json"} | fault.headers,
        )

    # A body that is no JSON is a page of some proxy.
    kind = "application/json" if fault.body.startswith("{") else "text/html"
    return Response(fault.body, fault.status, {"content-type": kind} | fault.headers)


async def _drain(request: Request) -> None:
    async for _ in request.stream():
        pass


async def _cut(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI
    _transport(scope).abort()
    await _disconnected(receive)


async def _disconnected(receive: Receive) -> None:
    # The server only learns of the end a turn later; until then it would answer 500 by itself.
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reset(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI
    transport = _transport(scope)
    raw: socket.socket = transport.get_extra_info("socket")
    # Lingering for zero seconds makes the kernel send RST in place of FIN (man 7 socket).
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await _disconnected(receive)


class _Truncated:
    """Sends the head and the first half of a response, then ends the connection."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = int(self._response.headers.get("content-length", "0")) // 2
        transport = _transport(scope)

        async def send_half(message: Message) -> None:
            nonlocal left

            if message["type"] != "http.response.body":
                await send(message)
                return

            body = message.get("body", b"")[:left]
            left -= len(body)

            if not transport.is_closing():
                await send({"type": "http.response.body", "body": body, "more_body": True})

            if left <= 0:
                # Unlike an abort, this sends what is buffered first.
                transport.close()

        await self._response(scope, receive, send_half)
        await _disconnected(receive)


def _transport(scope: Scope) -> asyncio.Transport:
    found = scope["state"][TRANSPORT]
    assert isinstance(found, asyncio.Transport)  # noqa: S101 - put there by our own server
    return found


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
