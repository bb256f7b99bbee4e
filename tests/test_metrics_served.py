from __future__ import annotations

import os
import socket
import stat
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from promptspool.metrics import Page, keep_textfile, serve, write_textfile
from promptspool.metrics.serving import MAX_CONNECTIONS, MAX_HEAD_BYTES, RETRY_S
from promptspool.metrics.textfile import EVERY_S
from scrapes import EVERYTHING, now, told, value
from world import FakeClock, overheard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from anyio.abc import SocketStream

    from promptspool.clock import Bell

pytestmark = pytest.mark.anyio

LIMIT_S = 20
"""Real time, against hangs."""

PATIENT_S = 1000.0


class StepClock(FakeClock):
    """A clock that goes on when a test says so, from one wait to the next."""

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        super().__init__()
        self._waited = anyio.Event()

    async def wait(self, bell: Bell, timeout_s: float) -> None:
        """Wait, and let the test know."""
        self._waited.set()
        await super().wait(bell, timeout_s)

    async def until_waited(self) -> None:
        """Return when somebody has begun to wait since the last time."""
        await self._waited.wait()
        self._waited = anyio.Event()


def healthy() -> str | None:
    """Find nothing wrong."""
    return None


async def hello() -> bytes | None:
    """Return a short page."""
    return b"promptspool_ready 1\n"


@asynccontextmanager
async def served(
    page: Callable[[], Awaitable[bytes | None]] = hello,
    *,
    alive: Callable[[], str | None] = healthy,
    patience_s: float = PATIENT_S,
) -> AsyncIterator[int]:
    """Serve *page* and yield the port; the end of the block ends the server, whatever it does."""
    is_served = anyio.Event()

    with anyio.fail_after(LIMIT_S), overheard(metrics_served=is_served.set) as lines:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve(
                    "127.0.0.1:0",
                    page=page,
                    checks={"/healthz": alive, "/readyz": lambda: "not started yet"},
                    clock=FakeClock(),
                    patience_s=patience_s,
                )

            tasks.start_soon(run)
            await is_served.wait()
            yield int(lines[0]["listen"].rpartition(":")[2])
            tasks.cancel_scope.cancel()


async def answer(port: int, request: bytes) -> bytes:
    """Send *request* and return what comes before the connection ends, in order or not."""
    came = b""

    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        try:
            await stream.send(request)

            async for piece in stream:
                came += piece
        except anyio.BrokenResourceError:
            pass

    return came


async def got(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Ask for *path*; return status, headers in lower case and body."""
    came = await answer(port, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = came.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)

    return int(first.split()[1]), headers, body


async def test_the_page_is_served() -> None:
    """A scrape gets the whole page in the text format, as long as announced; HEAD its head."""
    clock = FakeClock()
    page = Page(told(clock), lambda: now(EVERYTHING), clock)

    async with served(page.text) as port:
        status, headers, body = await got(port, "/metrics?name=x")
        head = await got(port, "/metrics", "HEAD")

    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["connection"] == "close"
    assert int(headers["content-length"]) == len(body)
    assert value(body.decode(), "promptspool_jobs", state="planned") == 3
    assert head == (200, headers, b"")


async def test_health_is_told_with_a_reason() -> None:
    """A check is 200 or 503, says why, and is asked anew each time."""
    reasons = [None, "the loop stands still"]

    async with served(alive=reasons.pop) as port:
        assert (await got(port, "/healthz"))[::2] == (503, b"the loop stands still\n")
        assert (await got(port, "/healthz"))[::2] == (200, b"ok\n")
        assert (await got(port, "/readyz"))[::2] == (503, b"not started yet\n")


async def test_no_page_is_an_error_of_ours() -> None:
    """Where the page cannot be made, the scrape fails, and the health checks go on."""

    async def broken() -> bytes | None:
        return None

    async with served(broken) as port:
        assert (await got(port, "/metrics"))[0] == 500
        assert (await got(port, "/healthz"))[0] == 200


@pytest.mark.parametrize("method", ["POST", "DELETE", "get", "TRACE"])
async def test_nothing_but_reading_is_allowed(method: str) -> None:
    """A request that could change something is refused, and told what is possible."""
    async with served() as port:
        status, headers, _ = await got(port, "/metrics", method)

    assert status == 405
    assert headers["allow"] == "get, head"


@pytest.mark.parametrize("path", ["/", "/metrics/", "//metrics", "/../etc/passwd", "*", "%00"])
async def test_there_is_nothing_else(path: str) -> None:
    """Every other path is unknown, and the answer names those that are there."""
    async with served() as port:
        status, _, body = await got(port, path)

    assert status == 404
    assert b"/metrics, /healthz, /readyz" in body


GARBAGE: list[tuple[bytes, bytes]] = [
    (b"\r\n\r\n", b"400"),
    (b"GET /metrics\r\n\r\n", b"400"),
    (b"GET  /metrics HTTP/1.1\r\n\r\n", b"400"),
    (b"GET /metrics HTTP/2.0\r\n\r\n", b"400"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    (b"\xff\xfe\x00 \x00\xff HTTP/1.1\r\n\r\n", b"405"),
    (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"404"),
    (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", b"404"),
]


@pytest.mark.parametrize(("request_bytes", "status"), GARBAGE)
async def test_garbage_is_answered_and_harmless(request_bytes: bytes, status: bytes) -> None:
    """Whatever comes is answered with what it is, and the next one is served."""
    async with served() as port:
        assert (await answer(port, request_bytes)).startswith(b"HTTP/1.1 " + status)
        assert (await got(port, "/metrics"))[0] == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X-A: b\r\n" * 2000 + b"\r\n",
        b"a" * 10 * MAX_HEAD_BYTES,
    ],
)
async def test_a_request_has_a_size(request_bytes: bytes) -> None:
    """What is longer than any request is not read on; the connection may end without an answer."""
    async with served() as port:
        came = await answer(port, request_bytes)
        assert came[:12] in (b"", b"HTTP/1.1 431")  # ended with what it had not read
        assert (await got(port, "/metrics"))[0] == 200


async def test_a_client_that_says_nothing_is_left() -> None:
    """A head that does not come to an end, or an answer that nobody reads, ends by itself."""

    async def endless() -> bytes | None:
        return b"x" * 50_000_000

    async with served(endless, patience_s=0.1) as port:
        assert await answer(port, b"GET /metrics HT") == b""

        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"GET /metrics HTTP/1.1\r\n\r\n")
            await until_others_end(stream, port)


async def until_others_end(stream: SocketStream, port: int) -> None:
    """Leave *stream* unread until a later connection was given up, and then read what there is."""
    assert await answer(port, b"G") == b""
    came = 0

    try:
        async for piece in stream:
            came += len(piece)
    except anyio.BrokenResourceError:
        pass

    assert came < 50_000_000


async def test_a_client_that_leaves_is_no_matter() -> None:
    """A connection that ends or is reset at any point costs nobody else anything."""
    async with served() as port:
        for request in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()  # with a reset

        assert (await got(port, "/metrics"))[0] == 200


async def test_connections_are_bounded() -> None:
    """Of 200 connections that say nothing no more than the limit are kept; others come after."""
    async with served() as port:
        streams = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(200)]
        ended = 0
        is_enough = anyio.Event()

        async def wait_for(stream: SocketStream) -> None:
            nonlocal ended

            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()

            ended += 1

            if ended == 200 - MAX_CONNECTIONS:
                is_enough.set()

        async with anyio.create_task_group() as tasks:
            for stream in streams:
                tasks.start_soon(wait_for, stream)

            await is_enough.wait()
            tasks.cancel_scope.cancel()

        for stream in streams:
            await stream.aclose()

        assert ended == 200 - MAX_CONNECTIONS
        assert (await got(port, "/metrics"))[0] == 200


async def test_two_hundred_requests_at_once() -> None:
    """As many at once as there may be are all answered, each with a whole page."""
    clock = FakeClock()
    page = Page(told(clock), lambda: now(EVERYTHING), clock)
    answers: list[tuple[int, dict[str, str], bytes]] = []

    async with served(page.text) as port:

        async def ask() -> None:
            answers.append(await got(port, "/metrics"))

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(MAX_CONNECTIONS):
                    tasks.start_soon(ask)

    assert len(answers) == 200
    assert {status for status, _, _ in answers} == {200}
    assert all(len(body) == int(headers["content-length"]) for _, headers, body in answers)


async def test_a_database_that_is_slow_holds_up_nobody() -> None:
    """While a scrape waits for its figures, the loop goes on: a health check is answered."""
    is_asked, may_go_on = anyio.Event(), anyio.Event()

    async def slow() -> bytes | None:
        is_asked.set()
        await may_go_on.wait()

        return b"late\n"

    async with served(slow) as port:
        bodies: list[bytes] = []

        async def scrape() -> None:
            bodies.append((await got(port, "/metrics"))[2])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scrape)
            await is_asked.wait()
            assert (await got(port, "/healthz"))[0] == 200
            assert bodies == []
            may_go_on.set()

    assert bodies == [b"late\n"]


async def test_the_end_waits_for_no_client() -> None:
    """A server that is told to stop closes what is open at once, a scrape under way too."""
    is_asked = anyio.Event()

    async def never() -> bytes | None:
        is_asked.set()
        await anyio.sleep_forever()

        return None

    async with served(never) as port:
        silent = await anyio.connect_tcp("127.0.0.1", port)
        asking = await anyio.connect_tcp("127.0.0.1", port)
        await asking.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        await is_asked.wait()

    for stream in (silent, asking):
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()

        await stream.aclose()


async def test_a_port_that_is_taken_is_tried_again() -> None:
    """Somebody else's port is said once, with what to do, and taken over when it is free."""
    clock = StepClock()
    is_refused, is_served = anyio.Event(), anyio.Event()
    then = {"metrics_unserved": is_refused.set, "metrics_served": is_served.set}

    with socket.create_server(("127.0.0.1", 0)) as other, overheard(**then) as lines:
        port = other.getsockname()[1]

        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve(f"127.0.0.1:{port}", page=hello, checks={}, clock=clock)

            with anyio.fail_after(LIMIT_S):
                tasks.start_soon(run)
                await is_refused.wait()

                for _ in range(5):
                    await clock.until_waited()
                    clock.pass_time(RETRY_S)

                await clock.until_waited()
                other.close()
                clock.pass_time(RETRY_S)
                await is_served.wait()
                assert (await got(port, "/metrics"))[0] == 200

            tasks.cancel_scope.cancel()

    assert [line["event"] for line in lines] == ["metrics.unserved", "metrics.served"]
    assert lines[0]["level"] == "warning"
    assert "metrics.listen" in lines[0]["reason"]


@pytest.mark.parametrize("listen", ["192.0.2.1:9464", "nowhere.invalid:9464", "ü..invalid:9464"])
async def test_an_address_that_is_not_ours_is_told(listen: str) -> None:
    """An address of another machine, or a name without one, is a reason, not the end."""
    is_refused = anyio.Event()

    with anyio.fail_after(LIMIT_S), overheard(metrics_unserved=is_refused.set) as lines:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve(listen, page=hello, checks={}, clock=FakeClock())

            tasks.start_soon(run)
            await is_refused.wait()
            tasks.cancel_scope.cancel()

    assert lines[0]["listen"] == listen
    assert lines[0]["reason"]


def names(folder: Path) -> list[str]:
    """Return what is in *folder*."""
    return [found.name for found in folder.iterdir()]


async def test_a_textfile_is_whole_at_every_moment(tmp_path: Path) -> None:
    """Whoever reads while it is written reads one page or the other, and sees no other *.prom."""
    path = tmp_path / "promptspool.prom"
    pages = [(b"%d\n" % number) * 20_000 for number in range(10)]
    read: set[bytes] = set()
    seen: set[str] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            seen.update(found.name for found in tmp_path.glob("*.prom"))

            if path.exists():
                read.add(path.read_bytes())

    async def page() -> bytes | None:
        return pages[len(read) % 10]

    reader = threading.Thread(target=look)
    reader.start()

    try:
        with anyio.fail_after(LIMIT_S):
            while len(read) < 10:
                await write_textfile(path, page)
    finally:
        is_over.set()
        reader.join()

    assert read == set(pages)
    assert seen == {"promptspool.prom"}
    assert names(tmp_path) == ["promptspool.prom"]


async def test_a_textfile_can_be_read_by_the_collector(tmp_path: Path) -> None:
    """Everybody may read it, whatever the daemon's umask; what a killed one left is replaced."""
    path = tmp_path / "promptspool.prom"
    (tmp_path / ".promptspool.prom.part").symlink_to(tmp_path / "elsewhere")
    before = os.umask(0o077)

    try:
        await write_textfile(path, hello)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_bytes() == await hello()
    assert names(tmp_path) == ["promptspool.prom"]


async def test_a_textfile_is_kept_up_to_date(tmp_path: Path) -> None:
    """It is written every so often, and at the end; a folder that is away is said once."""
    clock = StepClock()
    path = tmp_path / "away" / "promptspool.prom"
    numbers = iter(range(100))
    is_failed, is_written = anyio.Event(), anyio.Event()
    then = {"metrics_unwritten": is_failed.set, "metrics_written": is_written.set}

    async def page() -> bytes | None:
        return b"%d\n" % next(numbers)

    async def keep() -> None:
        await keep_textfile(path, page, clock=clock)

    with anyio.fail_after(LIMIT_S), overheard(**then) as lines:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep)
            await is_failed.wait()

            for _ in range(2):
                await clock.until_waited()
                clock.pass_time(EVERY_S)

            await clock.until_waited()
            path.parent.mkdir()
            clock.pass_time(EVERY_S)
            await is_written.wait()
            last = int(path.read_bytes())
            tasks.cancel_scope.cancel()

    assert int(path.read_bytes()) == last + 1
    assert [line["event"] for line in lines] == ["metrics.unwritten", "metrics.written"]
    assert str(path.parent) in lines[0]["reason"]
