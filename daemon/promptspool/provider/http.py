"""Every HTTP exchange of the daemon: one request, one answer or one `ProviderError`.

What goes wrong is translated by `problems`, here and nowhere else. Nobody at the other end is
trusted: an answer has a time and a size, redirects are not followed (the key would travel along),
and no text that is returned or raised holds the key. Nothing is retried. The content of a download
is the user's, and is handed on as it came.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread
import httpx

from promptspool import log
from promptspool.errors import Blocked, ConfigError, ProviderError, Unavailable
from promptspool.provider.problems import (
    MAX_PROBLEM_BYTES,
    decoded,
    problem,
    request_id,
    shown,
    translated,
)
from promptspool.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MAX_HEADERS = 100
"""As many as Python's own `http.client` takes; their size is bounded by h11, to 100 KiB in all."""

BLOCK_BYTES = 262_144
"""How much of a file is read at once: faster than in smaller pieces, and no slower than in larger
ones, which take more memory."""

WRITE_BYTES = 2 * BLOCK_BYTES
"""How much of a download is gathered before it is written: each write is a visit to a thread."""

IDLE_S = 30.0
"""A connection that was not used for so long is closed, but for one."""

MIN_PROGRESS = 65_536
"""Bytes that an upload or download moves within `transfer_timeout`, or it has stalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much time and room the other end gets."""

    timeout_s: float
    """For a short call, from its start to the last byte of its answer."""
    connect_timeout_s: float
    transfer_timeout_s: float
    """For every `MIN_PROGRESS` bytes of a file, and for the answer to an upload."""
    max_answer_bytes: int
    """Of the answer to a short call; what it unpacks to, as below."""
    max_download_bytes: int


class Observe(Protocol):
    """Is told of every exchange when it is over; *status* is None where no answer came."""

    def __call__(self, method: str, *, path: str, status: int | None, seconds: float) -> object:
        """Take note; *path* has no query."""
        ...


def unobserved(method: str, *, path: str, status: int | None, seconds: float) -> None:
    """Take no note."""
    del method, path, status, seconds


class Http:
    """A connection pool to one provider."""

    def __init__(
        self,
        *,
        base_url: str,
        key: Callable[[], str],
        limits: Limits,
        observe: Observe = unobserved,
    ) -> None:
        """Prepare; connects to nobody.

        *key* is asked for at every request, so that a key can be replaced while running. Raises
        `ConfigError` if the environment names a proxy or certificates that cannot be used.
        """
        self._key = key
        self._limits = limits
        self._observe = observe
        self._clients = _Clients(base_url, limits)

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._clients.is_closed

    async def json(
        self, method: str, path: str, *, transfer: bool = False, **arguments: Any
    ) -> tuple[dict[str, Any], httpx.Headers]:
        """Send one request and return the JSON object it was answered with, and the head.

        The body of a *transfer* may take as long as it goes on. Raises `ProviderError`; a 2xx that
        is no JSON object is `Unavailable`, since whatever was asked for may have been done.
        """
        limit = self._limits.max_answer_bytes
        patience = _Patience(
            self._limits.transfer_timeout_s if transfer else self._limits.timeout_s
        )

        if transfer:
            patience.expect_blocks()

        async with self._answered(method, path, patience, arguments) as (response, head):
            body = await _beginning(response, limit)

        unusable = partial(Unavailable, status=response.status_code, request_id=request_id(head))

        if len(body) > limit:
            raise unusable(f"the answer is longer than max_answer_bytes, {limit:,}")

        data = decoded(body)

        if not isinstance(data, dict):
            raise unusable(f"the answer is no JSON object: {shown(body)}")

        return data, head

    async def download(self, path: str, write: Callable[[bytes], object]) -> None:
        """Hand the body of *path* to *write*, block by block, unpacked but otherwise as it came.

        *write* is called in a worker thread, at least once. Raises `Unavailable` if fewer bytes
        came than were announced (F19), and a plain `ProviderError` for a body longer than
        `max_download`: worth another try once that was raised, whoever has to wait for it.
        """
        patience = _Patience(self._limits.transfer_timeout_s)
        limit = self._limits.max_download_bytes
        came = 0

        async with self._answered("GET", path, patience, {}) as (response, head):
            announced = _length(head)

            if response.status_code != httpx.codes.OK:
                raise Unavailable(f"HTTP {response.status_code}: not the whole of {path}")

            if announced is not None and announced > limit:
                raise _too_long(path, f"{announced:,}", limit)

            patience.expect_blocks()
            block: list[bytes] = []
            held = 0

            async for chunk in response.aiter_bytes():  # some compress unasked
                came += len(chunk)
                patience.note(len(chunk))

                if came > limit:
                    raise _too_long(path, f"more than {limit:,}", limit)

                block.append(chunk)
                held += len(chunk)

                if held >= WRITE_BYTES:
                    await anyio.to_thread.run_sync(write, b"".join(block))
                    block, held = [], 0

            await anyio.to_thread.run_sync(write, b"".join(block))

        if announced is not None and announced != response.num_bytes_downloaded:
            raise Unavailable(
                f"{response.num_bytes_downloaded} of {announced} bytes of {path} came"
            )

    @asynccontextmanager
    async def _answered(
        self, method: str, path: str, patience: _Patience, arguments: dict[str, Any]
    ) -> AsyncIterator[tuple[httpx.Response, httpx.Headers]]:
        """Send one request; yield its answer unread, if it is a 2xx, and the head without keys."""
        key = self._key()
        log.keep_secret(key)
        headers = {b"Authorization": _bearer(key)}
        began_at = anyio.current_time()
        status: int | None = None

        try:
            with translated(), self._clients.lent() as client, patience.kept():
                request = client.build_request(method, path, headers=headers, **arguments)
                request.stream = _Noted(request.stream, patience)
                response = await client.send(request, stream=True)
                status = response.status_code

                try:
                    head = _head(response)

                    if not response.is_success:
                        body = await _beginning(response, MAX_PROBLEM_BYTES)
                        raise problem(response.status_code, head, body[:MAX_PROBLEM_BYTES])

                    yield response, head
                finally:
                    await response.aclose()
        finally:
            seconds = anyio.current_time() - began_at
            self._observe(method, path=path, status=status, seconds=seconds)

        await self._clients.trim()


class _Clients:
    """As many clients of one connection as there are calls at once.

    Not one client with as many connections: it looks at each of them, at the beginning and at the
    end of each call, which took a third of the time of a busy loop.
    """

    def __init__(self, base_url: str, limits: Limits) -> None:
        """Prepare one; raises `ConfigError`."""
        self._address = httpx.URL(base_url)
        self._limits = limits
        self._trust = certificates(self._address.scheme)
        first = self._made()
        self._clients = {first}
        self._idle = [(0.0, first)]
        """Since when each is idle, and the client; the last to be used comes last."""
        self.is_closed = False

    def _made(self) -> httpx.AsyncClient:
        return _client(self._address, self._limits, self._trust)

    @contextmanager
    def lent(self) -> Iterator[httpx.AsyncClient]:
        """Yield a client that nobody else uses, the last used of those that are idle."""
        if self._idle:
            _, client = self._idle.pop()
        else:
            client = self._made()
            self._clients.add(client)

        try:
            yield client
        finally:
            self._idle.append((anyio.current_time(), client))

    async def trim(self) -> None:
        """Close what a busy hour has left: clients that were not used for a while, but one."""
        while len(self._idle) > 1 and anyio.current_time() - self._idle[0][0] > IDLE_S:
            _, client = self._idle.pop(0)

            # The answer that came before this is not to be lost by it.
            with anyio.CancelScope(shield=True), suppress(Exception):
                await client.aclose()

            self._clients.discard(client)

    async def close(self) -> None:
        """Close all of them."""
        self.is_closed = True

        for client in list(self._clients):
            await client.aclose()


class _Patience:
    """How long an exchange may last: so long in all, or so long for each block while one moves."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._scope = anyio.CancelScope()
        self._is_moving = False
        self._moved = 0
        self._renew()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """End what is done inside when patience does, with `Unavailable`."""
        with self._scope:
            yield

        if self._scope.cancelled_caught:
            what = (
                f"fewer than {MIN_PROGRESS // 1024} KiB" if self._is_moving else "no whole answer"
            )
            raise Unavailable(f"{what} within {self._limit_s:g} s")

    def expect_blocks(self) -> None:
        """Begin to count what moves."""
        self._is_moving = True
        self._renew()

    def expect_answer(self) -> None:
        """Be done with an upload, if it was one."""
        if self._is_moving:
            self._is_moving = False
            self._renew()

    def note(self, count: int) -> None:
        """Take note of bytes that moved."""
        self._moved += count

        if self._is_moving and self._moved >= MIN_PROGRESS:
            self._renew()

    def _renew(self) -> None:
        self._moved = 0
        self._scope.deadline = anyio.current_time() + self._limit_s


class _Noted(httpx.AsyncByteStream):
    """The body of a request, of which each piece is noted when it is on its way."""

    def __init__(self, stream: object, patience: _Patience) -> None:
        assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - an asynchronous client's
        self._stream = stream
        self._patience = patience

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in _blocks(self._stream):
            yield piece
            self._patience.note(len(piece))

        self._patience.expect_answer()


async def _blocks(stream: httpx.AsyncByteStream) -> AsyncIterator[bytes]:
    """Yield a body; that of a form, which has a file in it, in blocks read in a worker thread."""
    if isinstance(stream, httpx.ByteStream) or not isinstance(stream, Iterable):
        async for piece in stream:
            yield piece

        return

    pieces = iter(stream)

    while block := await anyio.to_thread.run_sync(_block, pieces):
        yield block


def _block(pieces: Iterator[bytes]) -> bytes:
    """Return the next pieces, together at least `BLOCK_BYTES` unless they end before."""
    block: list[bytes] = []
    held = 0

    for piece in pieces:
        block.append(piece)
        held += len(piece)

        if held >= BLOCK_BYTES:
            break

    return b"".join(block)


def _client(address: httpx.URL, limits: Limits, trust: ssl.SSLContext) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            base_url=address,
            # `_Patience` bounds the rest; lanes bound the connections.
            timeout=httpx.Timeout(None, connect=limits.connect_timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=1),
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept or sent
            verify=trust,
            trust_env=not is_loopback(address.host),  # no proxy leads to this machine
            headers={"User-Agent": "promptspool", "Accept-Encoding": "identity"},
        )
    except (ValueError, ImportError, httpx.InvalidURL):
        # Not quoted, and so without the cause: an address of a proxy may hold a password.
        reason = (
            "not a proxy that can be used: write http://HOST:PORT or https://HOST:PORT, or the "
            "provider's host into NO_PROXY"
        )
        raise ConfigError("$HTTPS_PROXY, $HTTP_PROXY, $ALL_PROXY or $NO_PROXY", reason) from None


def certificates(scheme: str) -> ssl.SSLContext:
    """Return what a certificate is checked by: `$SSL_CERT_FILE`, or the public ones.

    Takes 70 ms for https. Raises `ConfigError` if they cannot be read.
    """
    if scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody; the others take 70 ms

    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        reason = f"the certificates cannot be read: {error.strerror or error}"
        raise ConfigError("$SSL_CERT_FILE or $SSL_CERT_DIR", reason) from error


def _bearer(key: str) -> bytes:
    try:
        return f"Bearer {key}".encode("ascii")
    except UnicodeEncodeError:
        # Its own words are left out: it holds the key.
        raise Blocked("the key holds characters that no header can", code="no_api_key") from None


async def _beginning(response: httpx.Response, limit: int) -> bytes:
    """Return a body, or a little more than its first *limit* bytes."""
    body = bytearray()

    async for chunk in response.aiter_bytes():  # some compress unasked
        body += chunk

        if len(body) > limit:
            break

    return bytes(body)


def _head(response: httpx.Response) -> httpx.Headers:
    """Return the headers without keys; raises `Unavailable` for a head that is out of proportion.

    Packed twice, a few bytes could unpack to any size at once.
    """
    if len(response.headers.raw) > MAX_HEADERS:
        raise Unavailable(f"the answer has more than {MAX_HEADERS} headers")

    if len(response.headers.get_list("content-encoding", split_commas=True)) > 1:
        raise Unavailable("the answer is packed more than once")

    return httpx.Headers(
        [(log.struck(name), log.struck(value)) for name, value in response.headers.multi_items()]
    )


def _length(head: httpx.Headers) -> int | None:
    """Return how many bytes are announced, None if that is not said."""
    text = head.get("content-length", "")

    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None  # noqa: PLR2004 - 2**63


def _too_long(path: str, size: str, limit: int) -> ProviderError:
    return ProviderError(
        f"{path} has {size} bytes and max_download allows {limit:,}; it is fetched when that is "
        f"raised, and nothing is lost",
        code="max_download",
        retry_after_s=3_600.0,  # each time it may be fetched up to the limit
    )
