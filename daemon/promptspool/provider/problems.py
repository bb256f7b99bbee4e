"""What a failed exchange means: foreign exceptions and answers other than 2xx, as `ProviderError`s.

What a stranger says is kept as one line without keys. Pure but for the secrets that the log knows;
`translated` raises `ProviderError`, the rest raises nothing.
"""

from __future__ import annotations

import ssl
import time
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import msgspec

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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_RETRY_AFTER_S = 86_400.0
"""A provider that asks for more than a day is asked again after a day."""

MAX_PROBLEM_BYTES = 65_536
"""How much of an error's body is read."""

MAX_SHOWN = 500
"""How much of a provider's own words is kept."""

MAX_PAGE_SHOWN = 200
"""How much of a body is shown that is not in the provider's words, a proxy's page for instance."""

TRANSIENT = frozenset({408, 409, 425, 429})
"""Client errors that say nothing about the request (OpenAI SDK 3.52, `_should_retry`)."""

FOR_A_PERSON = frozenset({401, 403, 407})
"""Key, permission, and a proxy that wants a password, whatever else the body says."""

TOO_LARGE = "too_large"
"""Our code of a 413, whatever its body says: the way out is to send less at once."""

UNKNOWN = frozenset({404, 410})
"""There is no such thing, or no more."""

BILLING_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}
)
"""What comes as 429 or 400 but does not go away by waiting (`batch-apis`, 1.9)."""

UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})
"""OpenSSL's codes of a certificate whose authority is not among the trusted (x509_vfy.h)."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what httpx raises into ours."""
    try:
        yield
    except httpx.LocalProtocolError as error:
        # Without its words, and without itself: it quotes the header that it refuses.
        raise Unavailable(type(error).__name__) from None
    except (
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.PoolTimeout,
        httpx.ProxyError,
    ) as error:
        raise Unsent(_transport_words(error)) from error
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ssl.SSLError) as error:
        raise Unavailable(_transport_words(error)) from error


def _transport_words(error: Exception) -> str:
    refused = _refused_certificate(error)

    if refused is not None:
        return _certificate_words(refused)

    if isinstance(error, httpx.ConnectTimeout):
        return "no connection within connect_timeout"

    words = _one_line(str(error), MAX_SHOWN)

    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _refused_certificate(error: BaseException) -> ssl.SSLCertVerificationError | None:
    cause: BaseException | None = error

    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__

    return cause


def _certificate_words(error: ssl.SSLCertVerificationError) -> str:
    advice = (
        "if its authority is a private one, name a file with that authority's certificate in "
        "$SSL_CERT_FILE and start again"
        if error.verify_code in UNKNOWN_ISSUER
        else "check the address that is configured, and this machine's clock"
    )

    return f"its certificate is refused, {_one_line(error.verify_message, MAX_SHOWN)}; {advice}"


def problem(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """Return the error that an answer other than 2xx means.

    A body that is no JSON (a proxy's HTML page) says nothing about the request.
    """
    error = _error_object(body)
    code = _text(error, "code") or _text(error, "type")
    words = _text(error, "message") or shown(body) or "no reason given"
    kind = _kind(status, code)

    if httpx.codes.is_redirect(status) and "location" in headers:
        words = _redirection(headers["location"])

    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        code = TOO_LARGE

    is_answer = bool(error) or status in FOR_A_PERSON or code == TOO_LARGE

    if issubclass(kind, Refused) and not is_answer:
        kind = NotFound if status in UNKNOWN else Unavailable

    return kind(
        f"HTTP {status}: {words}",
        code=code,
        status=status,
        request_id=request_id(headers),
        retry_after_s=retry_after(headers),
    )


def _kind(status: int, code: str | None) -> type[ProviderError]:
    if code is not None and (code in BILLING_CODES or code.endswith("_spend_limit_exceeded")):
        return Blocked

    if status in FOR_A_PERSON:
        return Blocked

    if status == httpx.codes.TOO_MANY_REQUESTS:
        return Throttled

    if status in UNKNOWN:
        return NotFound

    if 400 <= status < 500 and status not in TRANSIENT:  # noqa: PLR2004 - the 4xx
        return Refused

    return Unavailable


def _redirection(location: str) -> str:
    """Say where an answer leads to: the host alone, the rest may be anything."""
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        host = ""

    where = _one_line(host, MAX_PAGE_SHOWN) or "another path of its own"

    return (
        f"it leads on to {where}, and redirects are not followed, since the key would go along; "
        f"set base_url to where the API is"
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait; None if it does not say, or not clearly.

    `retry-after-ms`, then `retry-after` in seconds or as a date (OpenAI SDK 3.52, `_base_client`);
    a date is measured against the answer's own `Date`.
    """
    seconds = _number(headers.get("retry-after-ms"))

    if seconds is not None:
        seconds /= 1000.0
    else:
        seconds = _number(headers.get("retry-after"))

    if seconds is None:
        until = http_date(headers.get("retry-after"))
        now = http_date(headers.get("date"))
        seconds = None if until is None else until - (time.time() if now is None else now)

    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def http_date(text: str | None) -> float | None:
    """Return an HTTP date as Unix seconds, None if it is none."""
    if text is None:
        return None

    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None

    return number if number == number and abs(number) != float("inf") else None  # noqa: PLR0124


def _error_object(body: bytes) -> dict[str, Any]:
    """Return the `error` object of a problem's body, empty if there is none."""
    data = decoded(body)
    error = data.get("error", data) if isinstance(data, dict) else None

    if isinstance(error, str):
        return {"message": error}

    return error if isinstance(error, dict) else {}


def decoded(body: bytes) -> Any:
    """Return what JSON says, without keys; None if it is none, or nested beyond reason."""
    try:
        data = msgspec.json.decode(body)

        return data if is_clean(body) else _struck(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_clean(body: bytes) -> bool:
    """Tell whether JSON holds no key for certain: without an escape, its texts are its own."""
    return body.isascii() and b"\\" not in body and log.is_clean(body.decode("ascii"))


def _struck(value: Any) -> Any:
    match value:
        case str():
            return log.struck(value)
        case list():
            return [_struck(inner) for inner in value]
        case dict():
            return {log.struck(name): _struck(inner) for name, inner in value.items()}
        case _:
            return value


def _text(error: dict[str, Any], key: str) -> str | None:
    value = error.get(key)

    return _one_line(str(value), MAX_SHOWN) if value not in (None, "") else None


def shown(body: bytes) -> str:
    """Return the beginning of a body as one line for people."""
    return _one_line(body[:MAX_PROBLEM_BYTES].decode("utf-8", "replace"), MAX_PAGE_SHOWN)


def _one_line(text: str, limit: int) -> str:
    """Return a stranger's words as one line without keys, which are struck out before the cut."""
    return " ".join(log.struck(text).split())[:limit]


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the provider's own name for the call."""
    return _one_line(headers.get("x-request-id", ""), MAX_PAGE_SHOWN) or None
