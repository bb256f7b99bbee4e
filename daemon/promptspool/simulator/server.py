"""Serves a simulator on a real socket, inside the caller's event loop.

Raises OSError (*environment*) when the address cannot be bound.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from promptspool.simulator.spoiling import TRANSPORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from promptspool.simulator.core import Simulator

_IDLE_S: Final = 300
"""Longer than any client keeps an idle connection, so that the client is who closes it."""


class _Protocol(H11Protocol):
    """HTTP that shows the application its own connection, so that a fault can cut it."""

    def connection_made(  # type: ignore[override] # uvicorn narrows the transport likewise
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, TRANSPORT: transport}


async def serve(
    simulator: Simulator,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[int], None],
) -> None:
    """Serve until cancelled; port 0 takes a free one, and *ready* is told which.

    Installs no signal handlers. Being cancelled ends open connections at once.
    """
    server = uvicorn.Server(_config(simulator))
    server.config.load()
    # What `Server.serve` does first; it is not used because it takes the signals and ticks.
    server.lifespan = server.config.lifespan_class(server.config)

    with _listener(host, port) as listener:
        await server.startup(sockets=[listener])

        try:
            ready(listener.getsockname()[1])
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await _close(server)


@asynccontextmanager
async def running(simulator: Simulator, *, port: int = 0) -> AsyncIterator[str]:
    """Serve on loopback while the block runs; yields `http://127.0.0.1:PORT`, without `/v1`.

    Raises OSError in an exception group when the port is taken.
    """
    ports: list[int] = []
    is_ready = anyio.Event()

    def ready(bound: int) -> None:
        ports.append(bound)
        is_ready.set()

    async def run() -> None:
        await serve(simulator, port=port, ready=ready)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await is_ready.wait()
        yield f"http://127.0.0.1:{ports[0]}"
        group.cancel_scope.cancel()


def _config(simulator: Simulator) -> uvicorn.Config:
    return uvicorn.Config(
        simulator.app,
        http=_Protocol,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_IDLE_S,
    )


def _listener(host: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only for sockets that name their protocol; with it on,
    # every answer waits 40 ms for a delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)

    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise

    listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    return listener


async def _close(server: uvicorn.Server) -> None:
    """End the listener, the connections and the requests in progress, in that order."""
    for listener in server.servers:
        listener.close()

    for connection in list(server.server_state.connections):
        connection.transport.abort()

    tasks = list(server.server_state.tasks)

    for task in tasks:
        task.cancel()

    await asyncio.gather(*tasks, return_exceptions=True)
