"""A webhook that is told of a job: one signed POST, as Standard Webhooks 1.0.0 have it.

What is sent holds no prompts, no answers and no keys. Its secrets are read at every attempt, so
that they can be replaced while running. Raises `NoticeFailed` (environment).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from promptspool import log
from promptspool.errors import ConfigError, Unavailable
from promptspool.notices.message import NoticeFailed, facts, iso
from promptspool.provider import outgoing
from promptspool.settings.reading import read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptspool.notices.message import Message
    from promptspool.provider.outgoing import Reply, Resolve
    from promptspool.settings import NotifySettings

MIN_SECRET_BYTES = 24
"""Of a secret (Standard Webhooks 1.0.0, "Signature scheme"): a shorter one can be guessed."""

_PREFIX = "whsec_"


async def post(  # noqa: PLR0913 - as `send`, and who resolves names
    message: Message,
    settings: NotifySettings,
    *,
    key: str,
    environ: Mapping[str, str],
    now: float,
    resolve: Resolve = outgoing.addresses,
) -> None:
    """Post the message; a 2xx has taken it.

    *now* is signed as well, and what is minutes away from the receiver's clock is refused there.
    *key* is where the settings are, for reasons. Raises `NoticeFailed`, finally for a 410.
    """
    assert settings.webhook is not None  # noqa: S101 - `send` has looked
    secrets = _secrets(settings, key, environ)
    name = message.id.replace(".", "-")  # full stops part what is signed
    body = _body(message)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": _signatures(secrets, f"{name}.{int(now)}.".encode() + body),
    }

    try:
        reply = await outgoing.post(
            settings.webhook,
            body=body,
            headers=headers,
            timeout_s=settings.timeout,
            allow_private=settings.allow_private,
            resolve=resolve,
        )
    except (ConfigError, Unavailable) as error:
        raise NoticeFailed(f"{key}.webhook: {error}") from error

    if not 200 <= reply.status < 300:  # noqa: PLR2004 - the 2xx
        raise _refusal(reply, key)


def _body(message: Message) -> bytes:
    data = {
        fact: value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        for fact, value in facts(message).items()
    }

    return msgspec.json.encode({"type": message.event, "timestamp": iso(message.at), "data": data})


def _signatures(secrets: list[bytes], content: bytes) -> str:
    """Return a signature for each secret: a receiver may know the old one or the new one."""
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()
        for secret in secrets
    )


def _refusal(reply: Reply, key: str) -> NoticeFailed:
    words = f"{key}.webhook: HTTP {reply.status}"
    is_gone = reply.status == HTTPStatus.GONE

    if is_gone:
        words += ", which means never again; take the webhook out of the configuration"
    elif 300 <= reply.status < 400:  # noqa: PLR2004 - the 3xx
        words += ", which leads elsewhere and is not followed; write the address where the hook is"
    elif reply.words:
        words += f": {reply.words}"

    return NoticeFailed(words, is_final=is_gone, retry_after_s=reply.retry_after_s)


def _secrets(settings: NotifySettings, key: str, environ: Mapping[str, str]) -> list[bytes]:
    """Return what to sign with: several while a secret is replaced, parted by spaces.

    Looked for in `$<webhook_secret_env>`, then `webhook_secret_file`, then the systemd credential
    named after `webhook_secret_env`.
    """
    variable = settings.webhook_secret_env
    folder = environ.get("CREDENTIALS_DIRECTORY")
    text = environ.get(variable, "") if variable else ""

    if not text.strip() and settings.webhook_secret_file is not None:
        text = _content(settings.webhook_secret_file, key)

    if not text.strip() and variable and folder and Path(folder, variable).is_file():
        text = _content(Path(folder, variable), key)

    if not text.strip():
        where = f"${variable}" if variable else "a variable that webhook_secret_env names"
        reason = (
            f"{key}: no secret, and nothing is sent unsigned; write one into {where}, or into a "
            f"file that webhook_secret_file names"
        )
        raise NoticeFailed(reason)

    return [_secret(word, key) for word in text.split()]


def _content(path: Path, key: str) -> str:
    try:
        return read(path, {}).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise NoticeFailed(f"{key}: the secret in {path} cannot be read: {why}") from error


def _secret(word: str, key: str) -> bytes:
    """Return the bytes that a written secret stands for; from now on no log shows it."""
    encoded = word.removeprefix(_PREFIX)
    log.keep_secret(encoded)

    if encoded == word:
        secret = word.encode("utf-8", "surrogateescape")
    else:
        try:
            secret = base64.b64decode(encoded, validate=True)
        except ValueError:
            # Without its cause, which holds the secret.
            reason = f"{key}: a secret that begins with {_PREFIX} goes on in base64"
            raise NoticeFailed(reason) from None

    if len(secret) < MIN_SECRET_BYTES:
        reason = (
            f"{key}: a secret of fewer than {MIN_SECRET_BYTES} bytes can be guessed; make a new "
            f"one: echo {_PREFIX}$(openssl rand -base64 32)"
        )
        raise NoticeFailed(reason)

    return secret
