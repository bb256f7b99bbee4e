"""Webhooks that are told of a job: what is sent, how it is signed, and where it never goes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from promptspool import log
from promptspool.notices import Message, NoticeFailed, send, webhook
from promptspool.provider import outgoing
from promptspool.provider.outgoing import MAX_ADDRESSES, is_public
from promptspool.provider.problems import MAX_PAGE_SHOWN
from promptspool.settings import NotifySettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from promptspool.provider.outgoing import Resolve

pytestmark = pytest.mark.anyio

HANG_S = 20
"""Real time, against hangs."""

NOW = 1_795_220_000.75
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OLD = "an-old-secret-of-no-special-form"
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
HOST = "hooks.example.com"
MESSAGE = Message(
    id="20261120t231853z-4f7k2m/job.failed.3/webhook",
    event="job.failed",
    at=1_795_216_733.25,
    job="20261120t231853z-4f7k2m",
    file=r"reviews/m\xffy.csv",
    profile="reviews",
    provider="openai",
    status="rejected",
    reason="no row can be used",
    results=0,
    errors=6,
    cost_usd=None,
    summary=Path("/spool/outbox/reviews/m\udcffy.csv.summary.json"),
    results_path=None,
    errors_path=Path("/spool/outbox/reviews/m\udcffy.csv.errors.jsonl"),
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know no proxies and no certificates but those of a test."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@dataclass
class Hook:
    """A server that reads one request a connection, and answers it with the same bytes."""

    reply: bytes = OK
    drop: bytes = b""
    """What follows again and again, until the client has had enough."""
    port: int = 0
    connections: int = 0
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Heads, with small names, and bodies."""
    lines: list[str] = field(default_factory=list)
    met: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request has come."""
    running: set[asyncio.Task[None]] = field(default_factory=set)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        self.connections += 1

        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went first
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()

            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

            self.running.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        head = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}
        self.lines.append(line)
        self.requests.append((head, await reader.readexactly(int(head["content-length"]))))
        self.met.set()
        writer.write(self.reply)
        await writer.drain()

        while self.drop:
            writer.write(self.drop)
            await writer.drain()
            await asyncio.sleep(0.01)  # a drip, not a wait


@asynccontextmanager
async def listening(
    hook: Hook,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Hook]:
    """Let a hook listen; what still runs ends with the block."""
    server = await asyncio.start_server(hook.answer, host, port, ssl=context)
    hook.port = server.sockets[0].getsockname()[1]

    try:
        yield hook
    finally:
        server.close()

        for task in list(hook.running):
            task.cancel()

        await asyncio.gather(*hook.running, return_exceptions=True)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Return a whole HTTP answer."""
    lines = {"content-length": str(len(body))} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())

    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


def settings(address: str, **extra: object) -> NotifySettings:
    """Return the settings of a hook in our own network, unless told otherwise."""
    values: dict[str, object] = {
        "webhook": address,
        "webhook_secret_env": "HOOK_SECRET",
        "allow_private": True,
        "timeout": HANG_S,
    }

    return NotifySettings.model_validate(values | extra)


async def told(
    notify: NotifySettings,
    *,
    message: Message = MESSAGE,
    environ: Mapping[str, str] | None = None,
    resolve: Resolve = outgoing.addresses,
) -> None:
    """Tell a webhook, with a hang turned into a failure."""
    with anyio.fail_after(HANG_S):
        await webhook.post(
            message,
            notify,
            key="profiles.reviews.notify",
            environ={"HOOK_SECRET": SECRET} if environ is None else environ,
            now=NOW,
            resolve=resolve,
        )


async def refusal(
    notify: NotifySettings,
    *,
    environ: Mapping[str, str] | None = None,
    resolve: Resolve = outgoing.addresses,
) -> NoticeFailed:
    """Return why a webhook did not take a message."""
    with pytest.raises(NoticeFailed) as caught:
        await told(notify, environ=environ, resolve=resolve)

    assert caught.value.reason.startswith("profiles.reviews.notify")

    return caught.value


def signature(key: bytes, head: Mapping[str, str], body: bytes) -> str:
    """Compute what a receiver of Standard Webhooks expects."""
    content = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
    made = hmac.new(key, content, hashlib.sha256).digest()

    return f"v1,{base64.b64encode(made).decode()}"


def naming(*found: str) -> tuple[Resolve, list[str]]:
    """Return a resolver that gives these addresses once, and another later, and its questions."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(f"{host}:{port}")

        return list(found) if len(asked) == 1 else ["127.0.0.3"]

    return resolve, asked


def certificate(folder: Path, *, host: str) -> tuple[Path, ssl.SSLContext]:
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


# What is sent.


async def test_a_webhook_is_told_of_the_job() -> None:
    """The body is what happened, when and to which job, in JSON, and nothing of its content."""
    async with listening(Hook()) as hook:
        with anyio.fail_after(HANG_S):
            await send(
                MESSAGE,
                settings(f"http://127.0.0.1:{hook.port}/a/b"),
                target="webhook",
                name="reviews",
                environ={"HOOK_SECRET": SECRET},
                now=NOW,
            )

    ((head, body),) = hook.requests
    assert hook.lines == ["POST /a/b HTTP/1.1"]
    assert head["host"] == f"127.0.0.1:{hook.port}"
    assert head["content-type"] == "application/json"
    assert json.loads(body) == {
        "type": "job.failed",
        "timestamp": "2026-11-20T23:18:53.250Z",
        "data": {
            "job": "20261120t231853z-4f7k2m",
            "file": r"reviews/m\xffy.csv",
            "profile": "reviews",
            "provider": "openai",
            "status": "rejected",
            "reason": "no row can be used",
            "results": 0,
            "errors": 6,
            "cost_usd": None,
            "summary_path": r"/spool/outbox/reviews/m\xffy.csv.summary.json",
            "results_path": None,
            "errors_path": r"/spool/outbox/reviews/m\xffy.csv.errors.jsonl",
        },
    }


async def test_a_webhook_is_signed() -> None:
    """The signature is that of Standard Webhooks, over the id, the attempt's time and the body."""
    async with listening(Hook()) as hook:
        await told(settings(f"http://127.0.0.1:{hook.port}"))

    ((head, body),) = hook.requests
    assert head["webhook-id"] == "20261120t231853z-4f7k2m/job-failed-3/webhook"
    assert head["webhook-timestamp"] == "1795220000"
    assert head["webhook-signature"] == signature(KEY, head, body)


def test_a_receiver_computes_what_the_reference_does() -> None:
    """The signatures that these tests expect are those of the specification's own test vector."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    head = {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330"}
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    assert signature(secret, head, b'{"test": 2432232314}') == expected


async def test_a_secret_can_be_replaced_while_running(tmp_path: Path) -> None:
    """Of several secrets each signs, and each attempt reads them anew."""
    file = tmp_path / "hook.key"

    async with listening(Hook()) as hook:
        notify = settings(
            f"http://127.0.0.1:{hook.port}", webhook_secret_env=None, webhook_secret_file=file
        )

        for text in (OLD, f" {SECRET}\n{OLD}\n", SECRET):
            file.write_text(text)
            await told(notify, environ={})

    old, both, new = hook.requests
    assert old[0]["webhook-signature"] == signature(OLD.encode(), *old)
    assert both[0]["webhook-signature"].split(" ") == [
        signature(KEY, *both),
        signature(OLD.encode(), *both),
    ]
    assert new[0]["webhook-signature"] == signature(KEY, *new)


async def test_a_secret_may_be_a_credential(tmp_path: Path) -> None:
    """A secret is looked for in its variable, its file and systemd's credentials, in this order."""
    file, credential = tmp_path / "hook.key", tmp_path / "HOOK_SECRET"
    file.write_text("b" * 32)
    credential.write_text("c" * 32)
    folder = {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    async with listening(Hook()) as hook:
        address = f"http://127.0.0.1:{hook.port}"
        named = settings(address, webhook_secret_file=file)
        await told(named, environ={"HOOK_SECRET": "a" * 32} | folder)
        await told(named, environ=folder)
        await told(settings(address), environ=folder)

    letters = (b"a" * 32, b"b" * 32, b"c" * 32)
    assert [head["webhook-signature"] for head, _ in hook.requests] == [
        signature(key, *request) for key, request in zip(letters, hook.requests, strict=True)
    ]


@pytest.mark.parametrize(
    ("secret", "hint"),
    [
        ("", r"nothing is sent unsigned; write one into \$HOOK_SECRET"),
        (" \n", "nothing is sent unsigned"),
        ("whsec_not/base64!" + "A" * 32, "goes on in base64"),
        ("whsec_" + base64.b64encode(b"k" * 23).decode(), "fewer than 24 bytes"),
        ("whsec_", "fewer than 24 bytes"),
        ("too-short-to-be-safe", "fewer than 24 bytes"),
        (f"{SECRET} too-short-to-be-safe", "fewer than 24 bytes"),
    ],
)
async def test_nothing_is_sent_without_a_good_secret(secret: str, hint: str) -> None:
    """Without a secret that nobody can guess no connection is made; the reason says what to do."""
    async with listening(Hook()) as hook:
        with pytest.raises(NoticeFailed, match=hint) as caught:
            await told(settings(f"http://127.0.0.1:{hook.port}"), environ={"HOOK_SECRET": secret})

    assert hook.connections == 0
    assert not secret.strip() or not set(secret.split()) & set(caught.value.reason.split())


async def test_a_secret_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A file that is not there is named; without any place for a secret the settings are."""
    missing = settings("http://127.0.0.1:9", webhook_secret_file=tmp_path / "hook.key")
    nowhere = settings("http://127.0.0.1:9", webhook_secret_env=None)

    assert "hook.key cannot be read: No such file" in (await refusal(missing, environ={})).reason
    assert "webhook_secret_env names" in (await refusal(nowhere, environ={})).reason


# What is answered.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_has_taken_it(status: int) -> None:
    """A 2xx is enough, whatever comes after its head."""
    async with listening(Hook(reply=f"HTTP/1.1 {status} Fine\r\n\r\n".encode(), drop=b"x")) as hook:
        await told(settings(f"http://127.0.0.1:{hook.port}"))

    assert len(hook.requests) == 1


@pytest.mark.parametrize(
    ("reply", "hint"),
    [
        (answer(400, b"who\nare you?"), "HTTP 400: who are you?"),
        (answer(404), "HTTP 404"),
        (answer(500, b"<html>"), "HTTP 500: <html>"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "RemoteProtocolError"),
        (b"", "Server disconnected"),
    ],
)
async def test_anything_else_has_not(reply: bytes, hint: str) -> None:
    """Any other answer, and none, is a failure that says what came; it is not asked twice."""
    async with listening(Hook(reply=reply)) as hook:
        failed = await refusal(settings(f"http://127.0.0.1:{hook.port}"))

    assert hint in failed.reason
    assert not failed.is_final
    assert hook.connections == 1


async def test_gone_means_never_again() -> None:
    """A 410 is final, and says that a person has to change the configuration."""
    async with listening(Hook(reply=answer(410, b"Gone"))) as hook:
        failed = await refusal(settings(f"http://127.0.0.1:{hook.port}"))

    assert failed.is_final
    assert "take the webhook out of the configuration" in failed.reason


async def test_a_wait_that_is_asked_for_is_passed_on() -> None:
    """Retry-After is told in seconds, with a failure only."""
    async with listening(Hook(reply=answer(429, retry_after="120"))) as hook:
        failed = await refusal(settings(f"http://127.0.0.1:{hook.port}"))

    assert failed.retry_after_s == 120.0
    assert not failed.is_final


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """Where an answer leads to nobody goes, as it could be this machine."""
    async with listening(Hook()) as there:
        reply = answer(status, location=f"http://127.0.0.1:{there.port}/admin?secret=1")

        async with listening(Hook(reply=reply)) as hook:
            failed = await refusal(settings(f"http://127.0.0.1:{hook.port}"))

    assert there.connections == 0
    assert f"HTTP {status}, which leads elsewhere and is not followed" in failed.reason
    assert not failed.is_final


async def test_an_answer_of_any_size_is_bounded() -> None:
    """Of an answer without an end a line is kept, and no more of it is waited for."""
    reply = b"HTTP/1.1 500 No\r\n\r\n"

    async with listening(Hook(reply=reply, drop=b"x" * 65_536)) as hook:
        failed = await refusal(settings(f"http://127.0.0.1:{hook.port}"))

    assert failed.reason.endswith(f"HTTP 500: {'x' * MAX_PAGE_SHOWN}")


@pytest.mark.parametrize(
    ("reply", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nx-name: ", b"a"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"HTTP/1.1 500 No\r\n\r\n", b" "),
    ],
    ids=["head", "interim", "body"],
)
async def test_an_answer_that_drips_is_given_up(reply: bytes, drop: bytes) -> None:
    """The time is for the whole of an exchange, not for each piece of it."""
    async with listening(Hook(reply=reply, drop=drop)) as hook:
        failed = await refusal(settings(f"http://127.0.0.1:{hook.port}", timeout=0.3))

    assert "no whole answer within 0.3 s" in failed.reason


async def test_a_resolver_that_does_not_answer_is_given_up() -> None:
    """The time holds for finding the address, too."""

    async def resolve(host: str, port: int) -> list[str]:
        del host, port
        await anyio.sleep_forever()
        return []

    failed = await refusal(settings(f"http://{HOST}", timeout=0.1), resolve=resolve)

    assert "no whole answer within 0.1 s" in failed.reason


async def test_a_webhook_that_is_down_is_told() -> None:
    """A refused connection, a name that is none and a name without an address say so."""
    async with listening(Hook()) as hook:
        port = hook.port

    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known", host, port)

    nothing, _ = naming()
    unresolved = f"{HOST} cannot be resolved: Name or service not known"

    assert "ConnectError" in (await refusal(settings(f"http://127.0.0.1:{port}"))).reason
    assert unresolved in (await refusal(settings(f"http://{HOST}"), resolve=unknown)).reason
    assert "has no address" in (await refusal(settings(f"http://{HOST}"), resolve=nothing)).reason
    assert "cannot be resolved" in (await refusal(settings(f"http://{'a' * 64}.de"))).reason


async def test_no_secret_is_in_a_reason() -> None:
    """A server that repeats the secrets, which it knows, gets them into no reason and no log."""
    body = f"you said {SECRET} and {OLD}"

    async with listening(Hook(reply=answer(401, body.encode()))) as hook:
        failed = await refusal(
            settings(f"http://127.0.0.1:{hook.port}"), environ={"HOOK_SECRET": f"{SECRET} {OLD}"}
        )

    assert failed.reason.endswith("HTTP 401: you said whsec_*** and ***")
    assert log.struck(body) == "you said whsec_*** and ***"


async def test_no_secret_of_ours_is_sent() -> None:
    """A key that the provider's words hold is struck out of what is told."""
    log.keep_secret("sk-do-not-show-me")
    message = replace(MESSAGE, reason="Incorrect API key: sk-do-not-show-me \ud800")

    async with listening(Hook()) as hook:
        await told(settings(f"http://127.0.0.1:{hook.port}"), message=message)

    assert json.loads(hook.requests[0][1])["data"]["reason"] == r"Incorrect API key: *** \ud800"


# Where it goes.

PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1"),  # noqa: S104
    *("192.0.0.9", "192.88.99.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
    *("fec0::1", "ff0e::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1", "2001::1", "::7f00:1"),
    *(
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "2002:7f00:1::",
        "2002:a00:1::1",
    ),
    *("64:ff9b::7f00:1", "64:ff9b::169.254.169.254", "64:ff9b:1::808:808"),
]
PUBLIC = [
    *("93.184.216.34", "8.8.8.8", "2001:4860:4860::8888", "2606:2800:21f:cb07::1"),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
]


def test_what_is_public() -> None:
    """An address is public if it leads out of this network in whatever form it is written."""
    assert [one for one in PRIVATE if is_public(one)] == []
    assert [one for one in PUBLIC if not is_public(one)] == []


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "0"],
)
async def test_a_webhook_never_leads_to_this_machine(host: str) -> None:
    """However this machine is written, no connection is made unless the configuration allows it."""
    async with listening(Hook()) as hook:
        failed = await refusal(settings(f"https://{host}:{hook.port}", allow_private=False))

    assert hook.connections == 0
    assert "is no public address; write allow_private = true" in failed.reason


async def test_one_private_address_is_enough_to_refuse() -> None:
    """A name that leads to a public and to a private address leads nowhere."""
    async with listening(Hook()) as hook:
        address = f"https://{HOST}:{hook.port}"

        for found in (["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"]):
            resolve, _ = naming(*found)
            failed = await refusal(settings(address, allow_private=False), resolve=resolve)
            assert f"{HOST} leads to 127.0.0.1, which is no public address" in failed.reason

    assert hook.connections == 0


async def test_a_public_webhook_needs_tls() -> None:
    """Without leave nothing is sent that others could read, and no name is even resolved."""
    resolve, asked = naming("8.8.8.8")
    failed = await refusal(settings(f"http://{HOST}", allow_private=False), resolve=resolve)

    assert "write https://" in failed.reason
    assert asked == []


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A name is resolved once, and what it leads to a moment later does not matter."""
    resolve, asked = naming("127.0.0.2")

    async with (
        listening(Hook(), host="127.0.0.2") as checked,
        listening(Hook(), host="127.0.0.3", port=checked.port) as other,
    ):
        await told(settings(f"http://{HOST}:{checked.port}/x"), resolve=resolve)

    assert asked == [f"{HOST}:{checked.port}"]
    assert (checked.connections, other.connections) == (1, 0)
    assert checked.requests[0][0]["host"] == f"{HOST}:{checked.port}"


async def test_each_address_is_tried_until_one_takes_a_connection() -> None:
    """A server that is down at one of its addresses is met at another; there is an end to them."""
    async with listening(Hook(), host="127.0.0.2") as hook:
        notify = settings(f"http://{HOST}:{hook.port}")
        resolve, _ = naming("127.0.0.4", "127.0.0.2")
        await told(notify, resolve=resolve)
        resolve, _ = naming(*["127.0.0.4"] * MAX_ADDRESSES, "127.0.0.2")
        await refusal(notify, resolve=resolve)

    assert hook.connections == 1


async def test_a_request_that_may_have_arrived_goes_to_no_other_address() -> None:
    """Once a connection was made, what goes wrong is a failure, not a reason to send it twice."""
    async with (
        listening(Hook(reply=b""), host="127.0.0.2") as hook,
        listening(Hook(), host="127.0.0.4", port=hook.port) as other,
    ):
        resolve, _ = naming("127.0.0.2", "127.0.0.4")
        await refusal(settings(f"http://{HOST}:{hook.port}"), resolve=resolve)

    assert (hook.connections, other.connections) == (1, 0)


async def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name by itself, so the environment's is not asked."""
    async with listening(Hook()) as proxy, listening(Hook(), host="127.0.0.2") as hook:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")

        resolve, _ = naming("127.0.0.2")
        await told(settings(f"http://{HOST}:{hook.port}"), resolve=resolve)

    assert (proxy.connections, hook.connections) == (0, 1)


async def test_the_certificate_is_checked_against_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS the name is asked for and has to be in the certificate, not the address."""
    public, context = certificate(tmp_path, host=f"DNS:{HOST}")
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    async with listening(Hook(), context=context) as hook:
        resolve, _ = naming("127.0.0.1")
        unknown = await refusal(settings(f"https://{HOST}:{hook.port}"), resolve=resolve)
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
        resolve, _ = naming("127.0.0.1")
        await told(settings(f"https://{HOST}:{hook.port}"), resolve=resolve)
        resolve, _ = naming("127.0.0.1")
        other = await refusal(settings(f"https://other.example.com:{hook.port}"), resolve=resolve)
        bare = await refusal(settings(f"https://127.0.0.1:{hook.port}"))

    assert len(hook.requests) == 1
    assert names == [HOST, HOST, "other.example.com", None]
    assert "self-signed certificate" in unknown.reason
    assert "ostname mismatch" in other.reason
    assert "IP address mismatch" in bare.reason


async def test_certificates_that_cannot_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of authorities that is none is named as what is wrong."""
    broken = tmp_path / "authorities.pem"
    broken.write_text("none")
    monkeypatch.setenv("SSL_CERT_FILE", str(broken))
    resolve, _ = naming("127.0.0.1")
    failed = await refusal(settings(f"https://{HOST}"), resolve=resolve)

    assert "$SSL_CERT_FILE" in failed.reason


async def test_a_daemon_that_stops_leaves_its_webhook() -> None:
    """Cancelled, an attempt ends at once and its connection with it."""
    async with (
        listening(Hook(reply=b"", drop=b"HTTP/1.1 102 Processing\r\n\r\n")) as hook,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(told, settings(f"http://127.0.0.1:{hook.port}"))

        with anyio.fail_after(HANG_S):
            await hook.met.wait()

        tasks.cancel_scope.cancel()

    assert len(hook.requests) == 1
