from __future__ import annotations

import asyncio
import codecs
import gzip
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptspool import log
from promptspool.errors import (
    Blocked,
    NotFound,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
    Unsent,
)
from promptspool.model import BatchId
from promptspool.provider.base import Submission
from promptspool.provider.http import BLOCK_BYTES, WRITE_BYTES, Http, Limits
from promptspool.provider.openai import OpenAI
from promptspool.provider.problems import (
    MAX_RETRY_AFTER_S,
    MAX_SHOWN,
    _struck,
    decoded,
    http_date,
    problem,
    retry_after,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

LINE = b'{"custom_id": "a"}\n'
KEY = "sk-do-not-show-me"
MAX_ANSWER = 4096
LIMITS = Limits(
    timeout_s=5.0,
    connect_timeout_s=5.0,
    transfer_timeout_s=5.0,
    max_answer_bytes=MAX_ANSWER,
    max_download_bytes=10_000_000,
)
NOT_FOUND = (
    b'{"error": {"message": "No such batch", "code": null, "type": "invalid_request_error"}}'
)
HTML = b"<html><body><h1>Bad Gateway</h1></body></html>"


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Return a whole HTTP answer, with a length unless told otherwise."""
    lines = {"content-length": str(len(body)), "x-request-id": "req_1"} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())

    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


def refusal(code: str | None = None, message: str = "no") -> bytes:
    """Return a provider's own error body."""
    return json.dumps({"error": {"message": message, "code": code}}).encode()


@dataclass
class Server:
    """A server that reads one request a connection and gives a scripted answer."""

    port: int
    reply: bytes = b""
    is_reset: bool = False
    """End the connection with a TCP reset instead of a clean end."""
    requests: list[bytes] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        """Return the address to give to a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a whole request, send the reply and close."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        body = await reader.readexactly(lengths[0]) if lengths else b""

        if b"transfer-encoding: chunked" in lines:
            while (size := int(await reader.readline(), 16)) > 0:
                body += await reader.readexactly(size)
                await reader.readline()

        self.requests.append(head + body)
        writer.write(self.reply)
        await writer.drain()

        if self.is_reset:
            writer.transport.abort()
        else:
            writer.close()


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Server, Http, OpenAI]]:
    """Yield a server, a client of it and a provider on that client."""
    server = Server(port=0)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    http = client(server.base_url)

    async with listening:
        yield server, http, OpenAI("openai", http)
        await http.close()


def client(base_url: str, key: Callable[[], str] = lambda: KEY) -> Http:
    """Return a client with short limits."""
    return Http(base_url=base_url, key=key, limits=LIMITS)


async def raised(reply: bytes, *, is_reset: bool = False) -> ProviderError:
    """Return what a call raises that is answered with *reply*."""
    async with served() as (server, http, _):
        server.reply = reply
        server.is_reset = is_reset

        with pytest.raises(ProviderError) as caught:
            await http.json("GET", "/batches/batch_1")

        assert len(server.requests) == 1  # nothing is repeated and no redirect followed

    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value)

    return caught.value


TABLE: list[tuple[int, bytes, type[ProviderError]]] = [
    (400, refusal("invalid_request"), Refused),
    (400, HTML, Unavailable),
    (400, b"{}", Unavailable),
    (400, refusal("billing_hard_limit_reached"), Blocked),
    (400, b'{"error": "just words"}', Refused),
    (401, refusal("invalid_api_key"), Blocked),
    (401, HTML, Blocked),
    (403, refusal(), Blocked),
    (403, HTML, Blocked),
    (407, HTML, Blocked),
    (407, refusal(), Blocked),
    (404, NOT_FOUND, NotFound),
    (404, HTML, NotFound),
    (404, b"", NotFound),
    (408, refusal(), Unavailable),
    (409, refusal(), Unavailable),
    (413, refusal(), Refused),
    (413, HTML, Refused),
    (422, b'{"detail": [{"msg": "field required"}]}', Refused),
    (425, refusal(), Unavailable),
    (429, refusal("rate_limit_exceeded"), Throttled),
    (429, HTML, Throttled),
    (429, refusal("insufficient_quota"), Blocked),
    (429, refusal("organization_spend_limit_exceeded"), Blocked),
    (500, refusal(), Unavailable),
    (502, HTML, Unavailable),
    (503, HTML, Unavailable),
    (529, b"", Unavailable),
    (302, b"", Unavailable),
    (304, b"", Unavailable),
    (200, HTML, Unavailable),
    (200, b"", Unavailable),
    (200, b"[]", Unavailable),
    (200, b"null", Unavailable),
    (200, b'"text"', Unavailable),
    (200, b'{"id": "batch_1"', Unavailable),
    (200, b'{"id": "\xff\xfe"}', Unavailable),
    (200, b"x" * (MAX_ANSWER + 1), Unavailable),
]


@pytest.mark.parametrize(("status", "body", "kind"), TABLE)
async def test_an_answer_means_one_kind_of_error(
    status: int,
    body: bytes,
    kind: type[ProviderError],
) -> None:
    """Every answer that is no JSON object has one meaning, and keeps the provider's name of it."""
    error = await raised(answer(status, body, location="http://127.0.0.1:1/elsewhere"))

    assert type(error) is kind
    assert error.request_id == "req_1"

    if status != 200:
        assert error.status == status


async def test_a_provider_is_quoted() -> None:
    """A refusal keeps the provider's code and words, cut to what a log can bear."""
    error = await raised(answer(400, refusal("bad_thing", "m" * 3000)))

    assert error.code == "bad_thing"
    assert error.message.startswith("HTTP 400: mmm")
    assert len(error.message) <= MAX_SHOWN + 20


async def test_a_page_is_quoted_in_one_line() -> None:
    """A proxy's page is shown by its beginning, in one line."""
    error = await raised(answer(502, b"<html>\n\n <h1>\tBad   Gateway\r\n</h1>" + b"x" * 9000))

    assert "<html> <h1> Bad Gateway </h1>" in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"id": "batch_1"}',
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"id"',
        b"not HTTP at all\r\n\r\n",
    ],
)
async def test_an_answer_that_is_cut_off_is_no_answer(reply: bytes, *, is_reset: bool) -> None:
    """A connection that ends early, at whatever byte, leaves open what was done."""
    error = await raised(reply, is_reset=is_reset)

    assert type(error) is Unavailable
    assert error.status is None


async def test_nobody_there_means_nothing_was_sent() -> None:
    """A refused connection is told apart: the provider cannot have seen the request."""
    async with served() as (server, _, _):
        closed = server.port

    http = client(f"http://127.0.0.1:{closed}/v1")

    with pytest.raises(Unsent) as caught:
        await http.json("POST", "/batches", json={})

    assert KEY not in str(caught.value)
    await http.close()


async def test_a_silent_server_is_given_up() -> None:
    """A server that never answers is `Unavailable` after the timeout, since it has the request."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        http = Http(
            base_url=f"http://127.0.0.1:{port}",
            key=lambda: KEY,
            limits=replace(LIMITS, timeout_s=0.05),
        )

        with pytest.raises(Unavailable) as caught:
            await http.json("POST", "/batches", json={})

        assert type(caught.value) is Unavailable
        await http.close()


@pytest.mark.parametrize("key", ["sk-secret\r\nX-Injected: 1", "sk-secret\x00", "sk-secret\u2013"])
async def test_an_impossible_key_is_never_shown(key: str) -> None:
    """A key that fits into no header is an error that does not quote it, and nothing is sent."""
    async with served() as (server, _, _):
        http = client(server.base_url, lambda: key)  # settings refuse such a key before

        with pytest.raises(ProviderError) as caught:
            await http.json("GET", "/batches")

        assert "secret" not in str(caught.value)
        assert server.requests == []
        await http.close()


async def test_a_call_says_who_we_are() -> None:
    """The key travels in its header alone, and compressed answers are not asked for."""
    async with served() as (server, http, _):
        server.reply = answer(200, b'{"ok": true}')
        data, headers = await http.json("GET", "/batches", params={"limit": "100"})

    head = server.requests[0].decode()

    assert data == {"ok": True}
    assert headers["x-request-id"] == "req_1"
    assert head.startswith("GET /v1/batches?limit=100 HTTP/1.1\r\n")
    assert f"authorization: bearer {KEY}" in head.lower()
    assert "accept-encoding: identity" in head.lower()
    assert head.count(KEY) == 1


async def test_a_key_that_is_replaced_is_used_at_once() -> None:
    """The key is asked for at every request, and a missing one is told without a connection."""
    keys = ["sk-new", "sk-old"]

    def key() -> str:
        if not keys:
            raise Blocked("no key", code="no_api_key")

        return keys.pop()

    async with served() as (server, _, _):
        server.reply = answer(200, b"{}")
        http = client(server.base_url, key)
        await http.json("GET", "/batches")
        await http.json("GET", "/batches")

        with pytest.raises(Blocked, match="no key"):
            await http.json("GET", "/batches")

        await http.close()

    assert [b"sk-old" in head for head in server.requests] == [True, False]
    assert len(server.requests) == 2


# How long to wait.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "99999999"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": formatdate(2000.0, usegmt=True), "date": formatdate(1940.0)}, 60.0),
        ({"retry-after": formatdate(1000.0, usegmt=True), "date": formatdate(1940.0)}, 0.0),
    ],
)
def test_a_pause_is_read_in_all_its_shapes(headers: dict[str, str], seconds: float | None) -> None:
    """`Retry-After` may be seconds, milliseconds or a date, by the provider's own clock."""
    assert retry_after(headers) == seconds


def test_a_date_without_a_date_is_measured_by_our_clock() -> None:
    """A provider that does not say what time it is is believed to have ours."""
    seconds = retry_after({"retry-after": formatdate(time.time() + 90, usegmt=True)})

    assert seconds is not None
    assert 80 <= seconds <= 91


@given(st.text(max_size=40) | st.sampled_from(["Mon, 01 Jan 0001 00:00:00", "0", "1e400"]))
def test_headers_never_break_anything(text: str) -> None:
    """Whatever a header holds, it is a number of seconds or nothing."""
    headers = {"retry-after": text, "retry-after-ms": text, "date": text}
    seconds = retry_after(headers)

    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S
    assert http_date(None) is None

    http_date(text)


@pytest.mark.parametrize(
    "text",
    [
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Fri, 31 Dec 9999 23:59:59 -0000",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Thu, 01 Jan 99999 00:00:00 GMT",
    ],
)
def test_impossible_dates_are_no_dates(text: str) -> None:
    """A date at the edge of time is a number or nothing, never an exception."""
    http_date(text)


@given(st.integers(min_value=300, max_value=599), st.binary(max_size=200))
def test_any_problem_is_an_error_of_ours(status: int, body: bytes) -> None:
    """Whatever status and bytes come, one error of ours says so."""
    error = problem(status, {}, body)

    assert isinstance(error, ProviderError)
    assert error.status == status
    assert error.message


# Files.


async def test_a_download_is_byte_for_byte_and_whole(tmp_path: Path) -> None:
    """A downloaded file is what was sent, and nothing else is left beside it."""
    content = b'{"a": "\xe2\x80\xa8"}\r\n' * 1000
    path = tmp_path / "b.output.jsonl"
    path.write_bytes(b"of an earlier look")

    async with served() as (server, _, provider):
        server.reply = answer(200, content)
        await provider.download("file-1", path)

    assert server.requests[0].startswith(b"GET /v1/files/file-1/content ")
    assert path.read_bytes() == content
    assert not path.with_name("b.output.jsonl.part").exists()


async def test_an_empty_download_is_an_empty_file(tmp_path: Path) -> None:
    """A file of no bytes is a file (F8)."""
    async with served() as (server, _, provider):
        server.reply = answer(200)
        await provider.download("file-1", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, LINE * 10, content_length="1000"),
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{"a"\r\n',
        answer(500, HTML),
        answer(200, HTML),
        b"",
    ],
)
async def test_a_download_that_stops_early_leaves_no_file(tmp_path: Path, reply: bytes) -> None:
    """Fewer bytes than announced (F19) are no file, and the next try starts afresh."""
    async with served() as (server, _, provider):
        server.reply = reply

        with pytest.raises(Unavailable):
            await provider.download("file-1", tmp_path / "out")

        assert not (tmp_path / "out").exists()

        server.reply = answer(200, b'{"whole": 1}')
        await provider.download("file-1", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b'{"whole": 1}'


async def test_a_compressed_download_is_not_kept_compressed(tmp_path: Path) -> None:
    """A server that compresses unasked gives the same file, or none: never its compressed bytes."""
    packed = gzip.compress(LINE)

    async with served() as (server, _, provider):
        server.reply = answer(200, packed, content_encoding="gzip")
        await provider.download("file-1", tmp_path / "out")

        assert (tmp_path / "out").read_bytes() == LINE

        server.reply = answer(200, packed[:-5], content_encoding="gzip", content_length="999")

        with pytest.raises(Unavailable):
            await provider.download("file-1", tmp_path / "torn")

    assert not (tmp_path / "torn").exists()


async def test_a_compressed_answer_is_read() -> None:
    """A server that compresses unasked is understood, so that no create is unclear for that."""
    async with served() as (server, http, _):
        server.reply = answer(200, gzip.compress(b'{"id": "batch_1"}'), content_encoding="gzip")
        data, _ = await http.json("GET", "/batches/batch_1")

    assert data == {"id": "batch_1"}


async def test_an_upload_sends_the_file_under_its_name(tmp_path: Path) -> None:
    """The bytes of the file are sent as they are, as a batch input of the given name."""
    path = tmp_path / "requests.jsonl"
    content = b'{"custom_id": "a"}\n' * 20_000
    path.write_bytes(content)

    async with served() as (server, _, provider):
        server.reply = answer(200, b'{"id": "file-1", "filename": "x.jsonl", "bytes": 380000}')
        file = await provider.upload(path, "promptspool-x.jsonl")

    sent = server.requests[0]

    assert (file.id, file.name, file.size_bytes) == ("file-1", "x.jsonl", 380_000)
    assert content in sent
    assert b'name="purpose"\r\n\r\nbatch\r\n' in sent
    assert b'filename="promptspool-x.jsonl"' in sent


async def test_a_create_says_all_and_no_more(tmp_path: Path) -> None:
    """A create carries the upload, the endpoint, the window and our metadata, all of it text."""
    submission = Submission(
        batch=BatchId("j.1"),
        endpoint="/v1/chat/completions",
        model="gpt-5-mini",
        completion_window="24h",
        requests_file=tmp_path / "unread",
        input_file="file-1",
        metadata={"promptspool_batch": "j.1"},
    )

    async with served() as (server, _, provider):
        server.reply = answer(200, b'{"id": "batch_1", "status": "validating"}')
        remote = await provider.create(submission)

    body = server.requests[0].partition(b"\r\n\r\n")[2]

    assert remote.id == "batch_1"
    assert json.loads(body) == {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"promptspool_batch": "j.1"},
    }


async def test_deleting_twice_is_deleting_once() -> None:
    """A file that is gone counts as deleted; one that cannot be deleted does not."""
    async with served() as (server, _, provider):
        server.reply = answer(404, NOT_FOUND)
        await provider.delete_file("file-1")
        server.reply = answer(500, HTML)

        with pytest.raises(Unavailable):
            await provider.delete_file("file-1")


async def test_every_exchange_is_observed_once() -> None:
    """Whatever comes of a call, its path, its status and its time are told once; none unanswered.

    What was never sent, for want of a key that fits into a header, is no exchange.
    """
    told: list[tuple[str, str, int | None]] = []
    keys = ["sk-\u2013", *[KEY] * 4]

    def observe(method: str, *, path: str, status: int | None, seconds: float) -> None:
        assert 0.0 <= seconds < LIMITS.timeout_s
        told.append((method, path, status))

    async with served() as (server, _, _):
        http = Http(base_url=server.base_url, key=keys.pop, limits=LIMITS, observe=observe)
        server.reply = answer(200, b'{"id": "batch_1"}')
        await http.json("GET", "/batches", params={"limit": "100"})
        server.reply = answer(200, LINE)
        await http.download("/files/file-1/content", lambda _: None)

        for reply in (answer(503, HTML), b"HTTP/1.1 200 O", answer(200, b"{}")):
            server.reply = reply

            with pytest.raises(ProviderError):
                await http.json("POST", "/batches", json={})

        await http.close()

    assert told == [
        ("GET", "/batches", 200),
        ("GET", "/files/file-1/content", 200),
        ("POST", "/batches", 503),
        ("POST", "/batches", None),
    ]


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 17])
async def test_a_file_of_any_size_goes_up_as_it_is(tmp_path: Path, size: int) -> None:
    """However a file falls into blocks, its bytes and their announced length are its own."""
    content = (LINE * (size // len(LINE) + 1))[:size]
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)

    async with served() as (server, _, provider):
        server.reply = answer(200, b'{"id": "file-1"}')
        await provider.upload(path, "n.jsonl")

    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    boundary = head.partition(b"boundary=")[2].partition(b"\r\n")[0]
    part = body.split(b"--" + boundary)[2]
    assert part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") == content


@pytest.mark.parametrize("size", [WRITE_BYTES - 1, WRITE_BYTES, 3 * WRITE_BYTES + 17])
async def test_a_file_of_any_size_comes_down_as_it_is(tmp_path: Path, size: int) -> None:
    """However a file falls into blocks, what is on disk is what came, but for a mark before it."""
    content = (LINE * (size // len(LINE) + 1))[:size]

    async with served() as (server, _, provider):
        server.reply = answer(200, codecs.BOM_UTF8 + content)
        await provider.download("file-1", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == content


async def test_connections_of_a_busy_hour_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls as there are go side by side; one connection is left for the next call."""
    monkeypatch.setattr("promptspool.provider.http.IDLE_S", -1.0)

    async with served() as (server, http, _):
        server.reply = answer(200, b"{}")

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(http.json, "GET", "/batches")

        await http.json("GET", "/batches")

        assert len(server.requests) == 6
        assert len(http._clients._clients) == 1  # noqa: SLF001 - nothing else shows it

    assert http.is_closed


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.sampled_from([KEY, f"a {KEY.upper()} b"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(KEY), inner),
    ),
    st.booleans(),
)
def test_no_answer_shows_a_key_however_it_is_written(value: object, is_plain: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    """What is passed over as clean is what would be left as it is, whatever is escaped."""
    log.keep_secret(KEY)
    body = json.dumps(value, ensure_ascii=is_plain).encode()

    for text in (body, body.replace(b"k", b"\\u006b")):
        assert decoded(text) == _struck(msgspec.json.decode(text))
