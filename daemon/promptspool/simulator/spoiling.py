"""What is sent in place of an answer: cut, torn, endless, slow, or of another length than said.

Raises nothing of its own; a client that has gone ends what is being sent to it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final, Literal, assert_never

import anyio
import anyio.lowlevel
from starlette.responses import Response

from promptspool.simulator.problems import ApiProblem, refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from promptspool.simulator.faults import Fault

Tampering = Literal["truncate", "short", "long", "drip", "stall"]
"""What is done to an answer, which there must be first."""

TRANSPORT: Final = "simulator.transport"
"""Where the server puts the connection's transport in the ASGI scope's state."""

_PAGE: Final = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"

_BLOCK_BYTES: Final = 1 << 16
"""How much of an endless body is sent at once, at least."""


def spoil(fault: Fault, response: Response) -> ASGIApp:
    """Return what is sent in place of *response*."""
    match fault.action:
        case "cut":
            return _cut
        case "reset" | "sever":
            return _reset
        case "bloat":
            return _Bloated(fault)
        case "empty":
            return Response(b"", status_code=200)
        case "garbage":
            return Response(fault.body or _PAGE, status_code=200, media_type="text/html")
        case "status":
            return _status(fault)
        case "truncate" | "short" | "long" | "drip" | "stall":
            return _tampered(fault, fault.action, response)
        case _:
            assert_never(fault.action)


def _tampered(fault: Fault, action: Tampering, response: Response) -> ASGIApp:
    """Return a response that is sent, but not as it should be."""
    match action:
        case "truncate":
            return _Truncated(response)
        case "short":
            return _Short(response)
        case "long":
            return _Long(response)
        case "drip":
            return _Dripping(response, fault.delay_s)
        case "stall":
            return response
        case _:
            assert_never(action)


def _status(fault: Fault) -> Response:
    status = fault.status or 500

    if fault.body is None:
        problem = ApiProblem(status, "Simulated fault.", kind="server_error")
        return Response(
            refusal(problem).body, status, {"content-type": "application/json"} | fault.headers
        )

    return Response(fault.body, status, {"content-type": _kind(fault.body)} | fault.headers)


def _kind(body: str) -> str:
    # A body that is no JSON is a page of some proxy.
    return "application/json" if body.startswith("{") else "text/html"


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
        left = _length(self._response) // 2
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


class _Short:
    """Announces more than there is, sends all there is, then ends the connection."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._response.headers["content-length"] = str(2 * _length(self._response) + 1)

        async def send_unended(message: Message) -> None:
            await send({**message, "more_body": True})

        await self._response(scope, receive, send_unended)
        _transport(scope).close()
        await _disconnected(receive)


class _Long:
    """Announces half of a response and sends it all; the connection stays open."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = _length(self._response) // 2
        self._response.headers["content-length"] = str(left)
        transport = _transport(scope)

        async def send_past_the_end(message: Message) -> None:
            nonlocal left

            if message["type"] != "http.response.body":
                await send(message)
                return

            body = message.get("body", b"")
            await send({**message, "body": body[:left], "more_body": True})

            # The server keeps its own account of the length, so the rest goes round it.
            if len(body) > left and not transport.is_closing():
                transport.write(body[left:])

            left = max(left - len(body), 0)

            if not message.get("more_body", False):
                await send({"type": "http.response.body"})

        await self._response(scope, receive, send_past_the_end)


class _Dripping:
    """Sends a response byte by byte, until its client has gone."""

    def __init__(self, response: Response, delay_s: float) -> None:
        self._response = response
        self._delay_s = delay_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        # All of it first: what is sent so slowly may be broken off anywhere, with a file open.
        await self._response(scope, receive, keep)
        await send(messages[0])

        for byte in b"".join(message.get("body", b"") for message in messages):
            with anyio.move_on_after(self._delay_s):
                await _disconnected(receive)

            if _transport(scope).is_closing():
                return

            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})

        await send({"type": "http.response.body"})


class _Bloated:
    """Sends a body that never ends."""

    def __init__(self, fault: Fault) -> None:
        text = fault.body or " "
        self._head = Response(
            status_code=fault.status or 200,
            headers={"content-type": _kind(text)} | fault.headers,
        )
        # Without a length the server sends it in chunks, as many as there may be.
        del self._head.headers["content-length"]
        encoded = text.encode()
        self._block = encoded * (_BLOCK_BYTES // len(encoded) + 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _transport(scope)

        async def send_on(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return

            while not transport.is_closing():
                await send({"type": "http.response.body", "body": self._block, "more_body": True})
                await anyio.lowlevel.checkpoint()

        await self._head(scope, receive, send_on)
        await _disconnected(receive)


def _length(response: Response) -> int:
    return int(response.headers.get("content-length", "0"))


def _transport(scope: Scope) -> asyncio.Transport:
    found = scope["state"][TRANSPORT]
    assert isinstance(found, asyncio.Transport)  # noqa: S101 - put there by our own server
    return found
