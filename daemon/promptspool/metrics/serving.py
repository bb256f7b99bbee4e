"""A small HTTP server: the page, and answers to health checks.

It is part of the daemon's own event loop, so an answer is proof of life. It knows GET and HEAD and
closes each connection after one answer; the size of a request, the time of an exchange and the
number of connections are bounded. It takes no signals and does not hold up the end of the daemon.
A port that is taken is logged once and tried again. Raises nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import anyio
import structlog
from anyio.abc import SocketAttribute

from promptspool.clock import Bell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from anyio.abc import SocketStream

    from promptspool.clock import Clock

Check = Callable[[], str | None]
"""Returns why not, None when all is well."""

MAX_HEAD_BYTES = 8192
"""Of a request; browsers send less, Prometheus a few hundred."""

MAX_CONNECTIONS = 100
"""More are closed at once: descriptors are needed for work."""

PATIENCE_S = 10.0
"""For a whole exchange; as long as Prometheus waits by default (`scrape_timeout`)."""

RETRY_S = 10.0
"""How long to wait before an address that cannot be listened on is tried again."""

METRICS = "/metrics"

_END = b"\r\n\r\n"
_PAGE_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TEXT_TYPE = "text/plain; charset=utf-8"

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class _Server:
    """What is asked of one address."""

    page: Callable[[], Awaitable[bytes | None]]
    checks: Mapping[str, Check]
    patience_s: float
    connections: int = 0

    async def answer(self, stream: SocketStream) -> None:
        """Answer one request and close; whatever comes, nothing is raised."""
        async with stream:
            if self.connections >= MAX_CONNECTIONS:
                return

            self.connections += 1

            try:
                with anyio.move_on_after(self.patience_s):
                    await stream.send(await self._response(stream))
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # gone before it was answered
            finally:
                self.connections -= 1

    async def _response(self, stream: SocketStream) -> bytes:
        head = b""

        while _END not in head:
            if len(head) >= MAX_HEAD_BYTES:
                reason = f"a request has up to {MAX_HEAD_BYTES} bytes"

                return _told(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)

            head += await stream.receive(MAX_HEAD_BYTES - len(head))

        match head.split(b"\r\n", 1)[0].split(b" "):
            case [method, target, version] if version.startswith(b"HTTP/1."):
                response = await self._found(method, target.partition(b"?")[0].decode("latin-1"))

                return response if method != b"HEAD" else response.partition(_END)[0] + _END
            case _:
                return _told(HTTPStatus.BAD_REQUEST, "this is no HTTP/1 request")

    async def _found(self, method: bytes, path: str) -> bytes:
        """Return the response to a request that makes sense."""
        if method not in (b"GET", b"HEAD"):
            return _told(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD", "Allow: GET, HEAD")

        if path == METRICS:
            page = await self.page()

            if page is None:
                return _told(HTTPStatus.INTERNAL_SERVER_ERROR, "no page; the log says why")

            return _response(HTTPStatus.OK, page, _PAGE_TYPE)

        check = self.checks.get(path)

        if check is None:
            return _told(HTTPStatus.NOT_FOUND, f"there are {', '.join([METRICS, *self.checks])}")

        reason = check()

        if reason is None:
            return _told(HTTPStatus.OK, "ok")

        return _told(HTTPStatus.SERVICE_UNAVAILABLE, reason)


async def serve(
    listen: str,
    *,
    page: Callable[[], Awaitable[bytes | None]],
    checks: Mapping[str, Check],
    clock: Clock,
    patience_s: float = PATIENCE_S,
) -> None:
    """Answer on *listen*, HOST:PORT, until cancelled.

    *page* is what `/metrics` shows, None where it cannot be made. *checks* are the other paths:
    200 when all is well, else 503 with the reason. While the address cannot be listened on, that
    is said once for each reason, and tried again.
    """
    server = _Server(page=page, checks=checks, patience_s=patience_s)
    host, _, port = listen.rpartition(":")
    trouble: str | None = None

    while True:
        try:
            listener = await anyio.create_tcp_listener(
                local_host=host.strip("[]"), local_port=int(port), backlog=MAX_CONNECTIONS
            )

            async with listener:
                bound = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no SQL
                _log.info("metrics.served", listen=f"{host}:{bound}")
                trouble = None
                await listener.serve(server.answer)
        except* (OSError, UnicodeError) as group:  # UnicodeError: no name of a host
            before, trouble = trouble, _reason(group)

            if trouble != before:
                _log.warning("metrics.unserved", listen=listen, reason=trouble)

        await clock.wait(Bell(), RETRY_S)


def _reason(group: BaseExceptionGroup[OSError | UnicodeError]) -> str:
    """Return what the first of several errors says, and what to do where we know."""
    error: BaseException = group

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]

    reason = getattr(error, "strerror", None) or str(error)

    if getattr(error, "errno", None) == errno.EADDRINUSE:
        return f"{reason}: another program listens there; end it, or write another metrics.listen"

    return reason


def _told(status: HTTPStatus, text: str, *headers: str) -> bytes:
    return _response(status, f"{text}\n".encode(), _TEXT_TYPE, *headers)


def _response(status: HTTPStatus, body: bytes, content_type: str, *headers: str) -> bytes:
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        *headers,
        "Connection: close",
    )

    return "\r\n".join(lines).encode("latin-1") + _END + body
