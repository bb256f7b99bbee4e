"""Every HTTP exchange of the daemon: one request, one answer or one `ProviderError`.

Foreign exceptions and status codes are translated here and nowhere else. Bodies are read up to a
limit, redirects are not followed (the key would travel along), and nothing is retried.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from promptspool.errors import (
    Blocked,
    NotFound,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
    Unsent,
)
from promptspool.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

MAX_RETRY_AFTER_S = 86_400.0
"""A provider that asks for more than a day is asked again after a day."""

MAX_PROBLEM_BYTES = 65_536
"""How much of an error's body is read."""

MAX_SHOWN = 500
"""How much of a provider's own words is kept."""

TRANSIENT = frozenset({408, 409, 425, 429})
"""Client errors that say nothing about the request (OpenAI SDK 3.52, `_should_retry`)."""

TOO_LARGE = "too_large"
"""Our code of a 413, whatever its body says: the way out is to send less at once."""

BILLING_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}
)
"""What comes as 429 or 400 but does not go away by waiting (`batch-apis`, 1.9)."""


class Http:
    """A connection pool to one provider."""

    def __init__(
        self,
        *,
        base_url: str,
        key: Callable[[], str],
        timeout: httpx.Timeout,
        transfer_timeout: httpx.Timeout,
        max_answer_bytes: int,
    ) -> None:
        """Prepare; connects to nobody.

        *key* is asked for at every request, so that a key can be replaced while running.
        """
        self._key = key
        self._transfer_timeout = transfer_timeout
        self._max_answer_bytes = max_answer_bytes
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=timeout,
            follow_redirects=False,
            trust_env=not is_loopback(httpx.URL(base_url).host),  # no proxy leads to this machine
            headers={"User-Agent": "promptspool", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def json(
        self, method: str, path: str, **arguments: Any
    ) -> tuple[dict[str, Any], httpx.Headers]:
        """Send one request and return the JSON object it was answered with.

        Raises `ProviderError`; a 2xx that is no JSON object is `Unavailable`, since whatever was
        asked for may have been done.
        """
        async with self.stream(method, path, **arguments) as response:
            body = await self._body(response, self._max_answer_bytes)

        try:
            data = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            data = None

        if not isinstance(data, dict):
            message = f"the answer is no JSON object: {_shown(body)}"
            raise Unavailable(message, status=response.status_code, request_id=_id(response))

        return data, response.headers

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, transfer: bool = False, **arguments: Any
    ) -> AsyncIterator[httpx.Response]:
        """Send one request and yield its answer unread, if it is a 2xx; raises `ProviderError`."""
        headers = {"Authorization": f"Bearer {self._key()}"}

        if transfer:
            arguments["timeout"] = self._transfer_timeout

        with _translated():
            async with self._client.stream(method, path, headers=headers, **arguments) as response:
                if not response.is_success:
                    body = await self._body(response, MAX_PROBLEM_BYTES, cut=True)
                    raise problem(response.status_code, response.headers, body)

                yield response

    @staticmethod
    async def _body(response: httpx.Response, limit: int, *, cut: bool = False) -> bytes:
        body = bytearray()

        with _translated():
            async for chunk in response.aiter_bytes():  # some compress unasked
                body += chunk

                if len(body) > limit:
                    if cut:
                        break

                    message = f"the answer is longer than {limit} bytes"
                    raise Unavailable(message, request_id=_id(response))

        return bytes(body[:limit])


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what httpx raises into ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise Unsent(_transport_words(error)) from error
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        raise Unavailable(_transport_words(error)) from error


def _transport_words(error: Exception) -> str:
    if isinstance(error, httpx.LocalProtocolError):
        return type(error).__name__  # it quotes the header that it refuses, the key's for instance

    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def problem(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """Return the error that an answer other than 2xx means.

    A body that is no JSON (a proxy's HTML page) says nothing about the request.
    """
    error = _error_object(body)
    code = _text(error, "code") or _text(error, "type")
    words = _text(error, "message") or _shown(body) or "no reason given"
    kind = _kind(status, code)

    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        code = TOO_LARGE

    is_answer = bool(error) or status in (401, 403, 413)

    if issubclass(kind, Refused) and not is_answer:
        kind = NotFound if status == httpx.codes.NOT_FOUND else Unavailable

    return kind(
        f"HTTP {status}: {words[:MAX_SHOWN]}",
        code=code,
        status=status,
        request_id=headers.get("x-request-id"),
        retry_after_s=retry_after(headers),
    )


def _kind(status: int, code: str | None) -> type[ProviderError]:
    if code is not None and (code in BILLING_CODES or code.endswith("_spend_limit_exceeded")):
        return Blocked

    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Blocked

    if status == httpx.codes.TOO_MANY_REQUESTS:
        return Throttled

    if status == httpx.codes.NOT_FOUND:
        return NotFound

    if 400 <= status < 500 and status not in TRANSIENT:  # noqa: PLR2004 - the 4xx
        return Refused

    return Unavailable


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
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}

    error = data.get("error", data) if isinstance(data, dict) else None

    if isinstance(error, str):
        return {"message": error}

    return error if isinstance(error, dict) else {}


def _text(error: dict[str, Any], key: str) -> str | None:
    value = error.get(key)

    return str(value) if value not in (None, "") else None


def _shown(body: bytes) -> str:
    """Return the beginning of a body as one line for people."""
    return " ".join(body[:200].decode("utf-8", "replace").split())


def _id(response: httpx.Response) -> str | None:
    value: str | None = response.headers.get("x-request-id")

    return value
