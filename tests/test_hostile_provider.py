"""A provider that means harm, or a network that does: what it may cost is time, and never a key."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import resource
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio
import pytest
import structlog

from promptspool import log
from promptspool.app import Daemon
from promptspool.errors import ConfigError, ProviderError, Unavailable, Unsent
from promptspool.provider.http import MAX_HEADERS, Http, Limits
from promptspool.provider.openai import OpenAI
from promptspool.provider.problems import MAX_PAGE_SHOWN, MAX_SHOWN
from promptspool.simulator import Fault
from world import simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio

KEY = 'sk-Zx9/"+&=<T7>aB3qQ-0451'
"""Looks different in an address, in JSON, in HTML and in base64."""

FORMS = {
    "plain": KEY,
    "bearer": f"Bearer {KEY}",
    "percent": quote(KEY, safe=""),
    "small percent": quote(KEY, safe="").lower(),
    "JSON": json.dumps(KEY)[1:-1],
    "HTML": KEY.replace("&", "&amp;")
    .replace("<", "&lt;")
    .replace(">", "&gt;")
    .replace('"', "&quot;"),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "Basic": base64.b64encode(f"user:{KEY}".encode()).decode(),
    "URL base64": base64.urlsafe_b64encode(f"u:{KEY}".encode()).decode().rstrip("="),
}

LIMITS = Limits(
    timeout_s=5.0,
    connect_timeout_s=5.0,
    transfer_timeout_s=5.0,
    max_answer_bytes=1_000_000,
    max_download_bytes=1_000_000,
)
SHORT = replace(LIMITS, timeout_s=0.3, transfer_timeout_s=0.5)
HANG_S = 20
"""Real time, against hangs."""

SLOW_S = 0.02
"""Between the pieces of an answer that crawls."""

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
LINE = b'{"custom_id": "a"}\n'


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know no proxies and no certificates but those of a test."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@asynccontextmanager
async def serving(serve: Serve, *, certificate: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Answer connections with *serve* and yield the port; what still runs ends with the block."""
    running: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)

        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went first
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()

            with suppress(ConnectionError):
                await writer.wait_closed()

            running.discard(task)

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)  # what is not read waits
    server = await asyncio.start_server(answer, sock=listening, ssl=certificate, limit=2**20)

    try:
        yield listening.getsockname()[1]
    finally:
        server.close()

        for task in list(running):
            task.cancel()

        await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def spoken_to(base_url: str, limits: Limits = LIMITS) -> AsyncIterator[Http]:
    """Yield a client of an address, with a hang turned into a failure."""
    http = Http(base_url=base_url, key=lambda: KEY, limits=limits)

    try:
        with anyio.fail_after(HANG_S):
            yield http
    finally:
        await http.close()


@asynccontextmanager
async def hostile(serve: Serve, limits: Limits = LIMITS) -> AsyncIterator[Http]:
    """Yield a client of a server."""
    async with serving(serve) as port, spoken_to(f"http://127.0.0.1:{port}/v1", limits) as http:
        yield http


def replying(*pieces: bytes) -> Serve:
    """Return a server that answers each request with the same bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return serve


def dripping(head: bytes, drop: bytes) -> Serve:
    """Return a server that sends a head, and then a drop now and then without an end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)

        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(SLOW_S)

    return serve


def left(folder: Path) -> list[str]:
    """Return the names of what is in a folder."""
    return [path.name for path in folder.iterdir()]


def answer(status: int, body: bytes, **headers: str) -> bytes:
    """Return a whole HTTP answer."""
    lines = {"content-length": str(len(body))} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())

    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


# Time.


@pytest.mark.parametrize(
    "serve",
    [
        dripping(b"HTTP/1.1 200 OK\r\nx-name: ", b"a"),
        dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        dripping(OK + b"content-length: 100000\r\n\r\n{", b" "),
        dripping(CHUNKED, b"1\r\n \r\n"),
        dripping(b"HTTP/1.1 503 No\r\ncontent-length: 100000\r\n\r\n", b" "),
    ],
    ids=["head", "interim", "body", "chunks", "problem"],
)
async def test_an_answer_that_drips_is_given_up(serve: Serve) -> None:
    """A short call ends after `timeout`, though every single read was answered in time."""
    async with hostile(serve, SHORT) as http:
        with pytest.raises(Unavailable, match=r"^no whole answer within 0\.3 s$") as caught:
            await http.json("GET", "/batches/b")

    assert type(caught.value) is Unavailable  # it may have been done


async def test_a_connection_that_was_given_up_is_closed() -> None:
    """A call that was given up leaves no connection behind."""
    closed = anyio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        await reader.read()
        closed.set()

    async with hostile(serve, SHORT) as http:
        with pytest.raises(Unavailable):
            await http.json("GET", "/batches/b")

        await closed.wait()


async def test_a_download_that_crawls_is_given_up(tmp_path: Path) -> None:
    """A file that comes at less than 64 KiB in each `transfer_timeout` is given up, and removed."""
    async with hostile(dripping(CHUNKED, b"400\r\n" + b" " * 1024 + b"\r\n"), SHORT) as http:
        with pytest.raises(Unavailable, match=r"^fewer than 64 KiB within 0\.5 s$"):
            await OpenAI("p", http).download("file-1", tmp_path / "out")

    assert left(tmp_path) == []


async def test_a_download_that_moves_may_take_long(tmp_path: Path) -> None:
    """A file that keeps coming is fetched, however long the whole of it takes."""
    block = LINE * 900

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + f"content-length: {len(block) * 25}\r\n\r\n".encode())

        for _ in range(25):
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(0.1)

    async with hostile(serve, replace(LIMITS, transfer_timeout_s=2.0)) as http:
        await OpenAI("p", http).download("file-1", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == block * 25


def requests_file(folder: Path, size: int) -> Path:
    """Make a file to upload."""
    path = folder / "requests.jsonl"
    path.write_bytes(LINE * (size // len(LINE)))

    return path


async def test_an_upload_that_crawls_is_given_up(tmp_path: Path) -> None:
    """A file that is taken at less than 64 KiB in each `transfer_timeout` is given up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a transport of a socket
        del reader
        await asyncio.sleep(HANG_S)

    async with hostile(serve, SHORT) as http:
        with pytest.raises(Unavailable, match=r"^fewer than 64 KiB within 0\.5 s$"):
            await OpenAI("p", http).upload(requests_file(tmp_path, 30_000_000), "x.jsonl")


async def test_an_upload_that_moves_may_take_long(tmp_path: Path) -> None:
    """A file that keeps being taken is sent, however long the whole of it takes."""
    size = 16 * 2**20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken = 0

        while taken < size:
            taken += len(await reader.readexactly(min(size // 25, size - taken)))
            await asyncio.sleep(0.1)

        writer.write(answer(200, b'{"id": "file-1", "filename": "x.jsonl"}'))
        await writer.drain()
        await reader.read()

    async with hostile(serve, replace(LIMITS, transfer_timeout_s=2.0)) as http:
        file = await OpenAI("p", http).upload(requests_file(tmp_path, size), "x.jsonl")

    assert file.id == "file-1"


async def test_the_answer_to_an_upload_has_a_time(tmp_path: Path) -> None:
    """Once a file is sent, its answer has to come within `transfer_timeout` as a whole."""
    async with hostile(dripping(OK + b"content-length: 99999\r\n\r\n{", b" "), SHORT) as http:
        with pytest.raises(Unavailable, match=r"^no whole answer within 0\.5 s$"):
            await OpenAI("p", http).upload(requests_file(tmp_path, 1_000), "x.jsonl")


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[Http, anyio.Event]]:
    """Yield a client of a server that says nothing, and an event of its first request."""
    asked = anyio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    async with hostile(serve) as http:
        yield http, asked


async def test_a_stop_of_ours_passes() -> None:
    """A call that somebody else cancels is cancelled, and is no fault of the provider."""
    async with silent() as (http, asked):
        ended: list[str] = []

        async def call() -> None:
            try:
                await http.json("GET", "/batches/b")
            except ProviderError:
                ended.append("told as a fault")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await asked.wait()
            tasks.cancel_scope.cancel()

        assert ended == []

    async with silent() as (http, asked):
        task = asyncio.create_task(http.json("GET", "/batches/b"))
        await asked.wait()
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task


# Sizes.


@pytest.mark.parametrize(
    "serve",
    [
        replying(OK + b"content-length: 1000000000000\r\n\r\n", LINE),
        replying(CHUNKED, *[b"ffff\r\n" + b" " * 65535 + b"\r\n"] * 40),
        replying(answer(200, gzip.compress(b" " * 50_000_000), content_encoding="gzip")),
    ],
    ids=["announced", "endless", "packed"],
)
async def test_a_file_that_is_too_large_is_not_kept(tmp_path: Path, serve: Serve) -> None:
    """A file larger than `max_download` leaves nothing, and the error says what to raise."""
    async with hostile(serve) as http:
        with pytest.raises(ProviderError, match=r"max_download allows 1,000,000") as caught:
            await OpenAI("p", http).download("file-1", tmp_path / "out")

    assert type(caught.value) is ProviderError  # which only makes its batch wait
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, LINE * 10, content_length="1000"),
        answer(500, b"<html>"),
        answer(200, b"<html>"),
        answer(206, LINE),
        answer(204, b""),
        b"",
    ],
)
async def test_a_failed_download_leaves_nothing(tmp_path: Path, reply: bytes) -> None:
    """Whatever came of a file that did not come whole is removed, so that the disk has its room."""
    async with hostile(replying(reply)) as http:
        with pytest.raises(Unavailable):
            await OpenAI("p", http).download("file-1", tmp_path / "out")

    assert left(tmp_path) == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond *size* inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_download_without_room_gives_its_room_back(tmp_path: Path) -> None:
    """A disk that takes no more is our own trouble, and what was written is removed."""
    async with hostile(replying(answer(200, LINE * 40_000))) as http:
        with largest_file(100_000), pytest.raises(OSError, match="File too large"):
            await OpenAI("p", http).download("file-1", tmp_path / "out")

    assert left(tmp_path) == []


async def test_answers_too_large_wait_for_a_larger_limit(tmp_path: Path) -> None:
    """Answers beyond `max_download` are waited for visibly; with it raised, all are delivered."""
    small = {"providers": {"openai": {"max_download": 100}}}
    rows = [{"id": f"q{number}", "prompt": "What?"} for number in range(5)]
    tries: list[int] = []

    async with simulated(tmp_path, overrides=small) as world:
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        def is_last(_call: object) -> bool:
            tries.append(1)

            if len(tries) == 5:
                daemon.stop()

            return False

        world.simulator.faults.add(Fault(route="files.content", times=None), when=is_last)
        world.drop("f.jsonl", rows)

        with structlog.testing.capture_logs() as said, anyio.fail_after(HANG_S):
            await world.run(daemon)

        reasons = [line["reason"] for line in said if line["event"] == "stage.retried"]
        assert reasons
        assert all("max_download allows 100" in reason for reason in reasons)
        assert "provider.paused" not in {line["event"] for line in said}
        assert world.results("f.jsonl") == []
        assert not list(world.spool.working.rglob("*.part"))

        world.overrides = {}

        assert await world.drain()

        world.assert_conserved("f.jsonl", [row["id"] for row in rows])
        world.assert_bought_once()
        assert len(world.simulator.ledger.creations) == 1
        assert world.errors("f.jsonl") == []


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"".join(b"x-%d: 1\r\n" % number for number in range(MAX_HEADERS + 1)) + b"\r\n{}",
        OK + b"x-name: " + b"a" * 200_000 + b"\r\n\r\n{}",
        OK + b"".join(b"x-%d: %s\r\n" % (number, b"a" * 2_000) for number in range(90)) + b"\r\n{}",
        b"HTTP/1.1 " + b"2" * 200_000,
    ],
    ids=["many", "one", "all", "status"],
)
async def test_a_head_has_a_size(reply: bytes) -> None:
    """Headers without measure, in number or in bytes, are no answer."""
    async with hostile(replying(reply)) as http:
        with pytest.raises(Unavailable) as caught:
            await http.json("GET", "/batches/b")

    assert len(caught.value.message) <= MAX_SHOWN + 50


async def test_a_body_is_unpacked_once_at_most() -> None:
    """Packed twice, a few bytes could be gigabytes at once: such an answer is none."""
    packed = gzip.compress(gzip.compress(b"{}"))

    async with hostile(replying(answer(200, packed, content_encoding="gzip, gzip"))) as http:
        with pytest.raises(Unavailable, match="packed more than once"):
            await http.json("GET", "/batches/b")


@pytest.mark.parametrize("status", [200, 400])
async def test_json_has_a_depth(status: int) -> None:
    """JSON that is nested without measure is none, and nobody's crash."""
    deep = b'{"error":' * 100_000 + b"1" + b"}" * 100_000

    async with hostile(replying(answer(status, deep))) as http:
        with pytest.raises(Unavailable):
            await http.json("GET", "/batches/b")


async def test_cookies_are_not_kept() -> None:
    """A cookie is neither kept nor sent back, so none can pile up."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(200, b"{}", set_cookie="a=1; Path=/"))

    async with hostile(serve) as http:
        await http.json("GET", "/batches/b")
        await http.json("GET", "/batches/b")

    assert len(heads) == 2
    assert not any(b"cookie" in head.lower() for head in heads)


# Where the key goes.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_key_follows_no_redirect(status: int, method: str) -> None:
    """A redirect is an error that names the other host and what to set; no request goes there."""
    seen: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1))
        writer.write(answer(200, b"{}"))

    async with serving(listen) as port:
        there = f"localhost:{port}"
        reply = answer(status, b"", location=f"http://u:p@{there}/v1/x?secret=1")

        async with hostile(replying(reply)) as http:
            with pytest.raises(Unavailable, match="set base_url") as caught:
                await http.json(method, "/batches")

    assert seen == []
    assert f"leads on to {there}," in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("location", ["/elsewhere", "http://[", "//", ""])
async def test_a_redirect_to_nowhere_is_told(location: str) -> None:
    """A redirect without a host is an error like any other."""
    async with hostile(replying(answer(302, b"", location=location))) as http:
        with pytest.raises(Unavailable, match="another path of its own"):
            await http.json("GET", "/batches")


def certificate(folder: Path, *, host: str = "IP:127.0.0.1") -> tuple[Path, ssl.SSLContext]:
    """Make a certificate that is its own authority; return its file and a server's context."""
    public, private = folder / "certificate.pem", folder / "private.pem"
    subprocess.run(  # noqa: S603 - our own arguments
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=promptspool test"),
            *("-addext", f"subjectAltName={host}"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
            *("-out", str(public), "-keyout", str(private)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)

    return public, context


async def test_a_certificate_nobody_knows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate of an unknown authority is refused, with the way to trust a private one."""
    public, context = certificate(tmp_path)
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(200, b'{"id": "b"}'))

    async with serving(serve, certificate=context) as port:
        base_url = f"https://127.0.0.1:{port}/v1"

        async with spoken_to(base_url) as http:
            with pytest.raises(Unsent, match=r"self-signed certificate.*\$SSL_CERT_FILE"):
                await http.json("POST", "/batches", json={})

        assert heads == []
        monkeypatch.setenv("SSL_CERT_FILE", str(public))

        async with spoken_to(base_url) as http:
            data, _ = await http.json("POST", "/batches", json={})

        async with spoken_to(base_url.replace("127.0.0.1", "localhost")) as http:
            with pytest.raises(Unsent, match=r"[Hh]ostname mismatch.*check the address"):
                await http.json("POST", "/batches", json={})

    assert data == {"id": "b"}
    assert len(heads) == 1


async def test_broken_tls_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks the encryption in the middle of an answer is the network's fault."""
    public, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))

    def wrapped() -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

        return context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls, incoming, outgoing = wrapped()
        request = b""

        while not request.endswith(b"\r\n\r\n"):
            incoming.write(await reader.read(65_536))

            try:
                tls.do_handshake()
                request += tls.read(65_536)
            except ssl.SSLWantReadError:
                pass

            writer.write(outgoing.read())

        tls.write(OK + b"content-length: 100\r\n\r\n{")
        writer.write(
            outgoing.read() + b"\x17\x03\x03\x00\x20" + b"not encrypted by anybody at all!"
        )
        await writer.drain()
        await reader.read()

    async with (
        serving(serve) as port,
        spoken_to(f"https://127.0.0.1:{port}/v1") as http,
    ):
        with pytest.raises(Unavailable) as caught:
            await http.json("GET", "/batches/b")

    assert type(caught.value) is Unavailable


@asynccontextmanager
async def proxy(port: int = 0) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve as a proxy that knows one host, at *port* here; yield its address and what it read."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            heads.append(data)
            writer.write(data)

        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))

        if not heads[-1].startswith(b"CONNECT "):
            writer.write(answer(200, b'{"id": "by proxy"}'))
            return

        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Go\r\n\r\n")

        try:
            await asyncio.gather(pump(reader, outer), pump(inner, writer))
        finally:
            outer.transport.abort()

    async with serving(serve) as own:
        yield f"http://127.0.0.1:{own}", heads


async def test_a_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HTTP_PROXY` leads to a host that only the proxy knows, and `NO_PROXY` past it."""
    here = "0.0.0.0"  # noqa: S104 - this machine, under a name that is not loopback's

    async with proxy() as (address, heads), serving(replying(answer(200, b"{}"))) as port:
        monkeypatch.setenv("HTTP_PROXY", address)

        async with spoken_to("http://provider.invalid/v1") as http:
            data, _ = await http.json("GET", "/batches/b")

        assert data == {"id": "by proxy"}
        assert heads[0].startswith(b"GET http://provider.invalid/v1/batches/b ")

        async with spoken_to(f"http://{here}:{port}/v1") as http:
            assert (await http.json("GET", "/batches/b"))[0] == {"id": "by proxy"}

        monkeypatch.setenv("NO_PROXY", here)

        async with spoken_to(f"http://{here}:{port}/v1") as http:
            assert (await http.json("GET", "/batches/b"))[0] == {}

    assert len(heads) == 2


async def test_no_proxy_leads_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is never asked of a proxy, which could not know which machine is meant."""
    async with proxy() as (address, heads):
        monkeypatch.setenv("ALL_PROXY", address)

        async with hostile(replying(answer(200, b"{}"))) as http:
            assert (await http.json("GET", "/batches/b"))[0] == {}

    assert heads == []


async def test_a_proxy_sees_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `HTTPS_PROXY` goes what only the provider can read."""
    public, context = certificate(tmp_path, host="DNS:provider.invalid")
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(200, b'{"id": "b"}'))

    async with serving(serve, certificate=context) as port, proxy(port) as (address, passed):
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
        monkeypatch.setenv("HTTPS_PROXY", address)

        async with spoken_to("https://provider.invalid/v1") as http:
            data, _ = await http.json("GET", "/batches/b")

    assert data == {"id": "b"}
    assert KEY.encode() in heads[0]
    assert passed[0].startswith(b"CONNECT provider.invalid:443 ")
    assert KEY.encode() not in b"".join(passed)


async def test_a_proxy_that_refuses_has_passed_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that makes no connection has sent no request, so that nothing is unclear."""
    async with serving(replying(answer(403, b"no"))) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")

        async with spoken_to("https://provider.invalid/v1") as http:
            with pytest.raises(Unsent, match="403"):
                await http.json("POST", "/batches", json={})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSL_CERT_FILE", "/nonexistent/ca.pem"),
        ("SSL_CERT_FILE", __file__),
        ("HTTPS_PROXY", "socks5://user:sesame@proxy:1080"),
        ("HTTPS_PROXY", "gopher://user:sesame@proxy"),
        ("HTTPS_PROXY", "http://user:sesame@proxy:port"),
    ],
)
async def test_an_environment_that_cannot_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Certificates or a proxy that cannot be used are told by name, and never a password."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError) as caught:
        Http(base_url="https://provider.invalid", key=lambda: KEY, limits=LIMITS)

    assert f"${name}" in str(caught.value)
    assert "sesame" not in str(caught.value)


# What is said of the key.


def readable(text: str) -> list[str]:
    """Return the forms of the key that can be read in *text*."""
    return [name for name, form in FORMS.items() if form.lower() in text.lower()]


def everything(error: BaseException) -> str:
    """Return all that an error of ours says, and what the log makes of it as JSON and as text."""
    stream = io.StringIO()
    before = structlog.get_config()

    try:
        for kind in ("json", "console"):
            log.configure("info", kind, stream)
            structlog.get_logger().error("stage.crashed", reason=str(error), exc_info=error)
    finally:
        structlog.configure(**before)

    return f"{error} {error!r} {vars(error)} {stream.getvalue()}"


def words(form: str) -> bytes:
    """Return a provider's own error body."""
    return json.dumps({"error": {"message": f"bad: {form}", "code": form, "type": form}}).encode()


def escaped(form: str) -> bytes:
    """Return an error body in which every letter is a number."""
    text = "".join(f"\\u{ord(letter):04x}" for letter in form)

    return f'{{"error": {{"message": "{text}", "code": {{"{text}": ["{text}"]}}}}}}'.encode()


ECHOES: dict[str, Callable[[str], bytes]] = {
    "400": lambda form: answer(400, words(form)),
    "401": lambda form: answer(401, words(form)),
    "escaped": lambda form: answer(422, escaped(form)),
    "page": lambda form: answer(503, f"<html>{form}</html>".encode()),
    "no JSON": lambda form: answer(200, f"<html>{form}</html>".encode()),
    "no object": lambda form: answer(200, json.dumps([form]).encode()),
    "id": lambda form: answer(500, b"", x_request_id=form),
    "pause": lambda form: answer(429, b"", retry_after=form),
    "redirect": lambda form: answer(302, b"", location=f"http://{form}.example/{form}"),
    "bad header": lambda form: OK + f"x y: {form}\r\n\r\n".encode(),
    "bad status": lambda form: f"HTTP/1.1 {form}\r\n\r\n".encode(),
    "bad length": lambda form: OK + f"content-length: {form}\r\n\r\n".encode(),
}


def in_turn(replies: Iterable[bytes]) -> Serve:
    """Return a server that gives each request the next of some answers, and closes."""
    coming = iter(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await replying(next(coming))(reader, writer)

    return serve


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
async def test_no_error_shows_the_key(echo: Callable[[str], bytes]) -> None:
    """Wherever a provider repeats the key, in whatever form, no error and no traceback shows it."""
    async with hostile(in_turn(map(echo, FORMS.values()))) as http:
        for form in FORMS:
            with pytest.raises(ProviderError) as caught:
                await http.json("GET", "/batches/b")

            assert readable(everything(caught.value)) == [], form


async def test_a_cut_leaves_no_piece_of_the_key() -> None:
    """Words are cut to a length after the key was struck out, not in the middle of it."""
    words = range(MAX_SHOWN - len(KEY) - 20, MAX_SHOWN, 3)
    pages = range(MAX_PAGE_SHOWN - len(KEY) - 20, MAX_PAGE_SHOWN, 3)
    replies = [
        *(
            answer(400, json.dumps({"error": {"message": "m" * length + KEY}}).encode())
            for length in words
        ),
        *(answer(503, b"m" * length + KEY.encode()) for length in pages),
    ]

    async with hostile(in_turn(replies)) as http:
        for length in (*words, *pages):
            with pytest.raises(ProviderError) as caught:
                await http.json("GET", "/batches/b")

            assert KEY[:3] not in everything(caught.value), length


async def test_no_answer_shows_the_key() -> None:
    """No value, no name and no header of an answer holds the key."""

    def echo(form: str) -> bytes:
        body: dict[str, Any] = {
            "id": f"batch_{form}",
            "status": form,
            "metadata": {"promptspool_batch": "j.1", form: form},
            "errors": {"data": [{"code": form, "message": {form: [form]}, "param": form}, form]},
        }

        return answer(200, json.dumps(body).encode(), x_request_id=form, x_other=form)

    async with hostile(in_turn(echo(form) for form in FORMS.values() for _ in range(2))) as http:
        for form in FORMS:
            data, headers = await http.json("GET", "/batches/b")
            batch = await OpenAI("p", http).retrieve("b")

            assert readable(f"{data} {headers} {batch}") == [], form
            assert batch.metadata["promptspool_batch"] == "j.1"


async def test_a_replaced_key_stays_a_secret() -> None:
    """An answer that repeats an older key does not show it either."""
    keys = ["sk-of-today-2345", "sk-of-yesterday-1234"]
    older = keys[-1]
    reply = answer(400, json.dumps({"error": {"message": f"not {older}"}}).encode())

    async with serving(replying(reply)) as port:
        http = Http(base_url=f"http://127.0.0.1:{port}", key=keys.pop, limits=LIMITS)

        for _ in range(2):
            with pytest.raises(ProviderError, match=r"HTTP 400: not \*\*\*$"):
                await http.json("GET", "/batches/b")

        await http.close()


async def test_files_are_kept_as_they_came(tmp_path: Path) -> None:
    """What an output file says is the user's own: not a byte of it is changed."""
    content = json.dumps({"custom_id": "a", "said": list(FORMS.values())}).encode()

    async with hostile(replying(answer(200, content))) as http:
        await OpenAI("p", http).download("file-1", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == content
