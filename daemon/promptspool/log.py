"""The log: one JSON object a line, or readable text on a terminal.

Modules log through `structlog.get_logger()`, with constant events named `noun.past_participle`.
Secrets are struck out of every value, tracebacks come without local variables, and what libraries
warn of arrives as `library.warned`. Which secrets there are is known to the process, not to one
configuration: `keep_secret` adds one at any time and from any thread. A log nobody can read is no
reason to stop: a closed or broken stream is ignored, so nothing here raises.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import math
import os
import re
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO
from urllib.parse import quote

import structlog
from structlog.tracebacks import ExceptionDictTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from structlog.typing import EventDict, Processor, WrappedLogger

FIRST_KEYS = ("timestamp", "level", "event")

STARS = "***"
"""What stands in the place of a secret."""

MIN_SECRET = 8
"""A shorter key is a word that a server on this machine takes, "none" or "EMPTY"; no provider gives
out such, and struck out it would leave little of a log."""

_OUR_NAME = "promptspool"
"""Our own name is another such word, and batches at the provider are known by it."""

MAX_SECRETS = 16
"""So many are kept, the youngest: where keys are replaced every hour, the log must not get slow."""

# They tell at info what the daemon tells better, and httpx tells it with addresses.
_LOUD_LIBRARIES = ("asyncio", "httpcore", "httpx", "uvicorn", "uvicorn.access", "uvicorn.error")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
# What a terminal would obey; file names may hold it. Line feeds and tabs may stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def configure(
    level: str,
    format: str,  # noqa: A002 (the name of the key in the configuration)
    stream: TextIO | None = None,
    *,
    secrets: Collection[str] = (),
    now: Callable[[], float] = time.time,
) -> None:
    """Send the logs of this process from *level* up to *stream* (standard output when None).

    *format* is "json", "console" or "auto": console on a terminal, else JSON.
    *secrets* are kept as by `keep_secret`. Calling it again replaces the earlier configuration, but
    what was a secret stays one.
    """
    for secret in secrets:
        keep_secret(secret)

    stream = sys.stdout if stream is None else stream
    is_terminal = _is_terminal(stream)
    is_console = format == "console" or (format == "auto" and is_terminal)
    text = structlog.dev.ConsoleRenderer(
        colors=is_terminal, exception_formatter=structlog.dev.plain_traceback
    )

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _Timestamper(now),
            structlog.processors.format_exc_info if is_console else _exception_as_dict(),
            _plain_values,
            *([_without_controls, text] if is_console else [_as_json]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=_Lines(stream),
        cache_logger_on_first_use=False,  # so that a later call reaches every logger
    )
    _route_libraries()


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _exception_as_dict() -> Processor:
    # structlog's own dict_tracebacks writes local variables, and with them prompts and keys.
    return structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))


class _Timestamper:
    """Adds the time, ISO 8601 in UTC with milliseconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        time_of_day = datetime.fromtimestamp(self._now(), UTC)
        event["timestamp"] = time_of_day.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return event


def keep_secret(text: str) -> None:
    """Strike *text* out of whatever is logged from now on, also as an address or JSON holds it.

    For every key, before it is first used. A word shorter than `MIN_SECRET` is no secret.
    """
    if len(text) >= MIN_SECRET and text.casefold() != _OUR_NAME:
        _secrets.keep(text)


def struck(text: str) -> str:
    """Return *text* with stars in the place of every secret that is kept."""
    return _secrets.struck(text)


def is_clean(text: str) -> bool:
    """Tell whether *text* holds no secret for certain; False does not mean that it holds one."""
    return _secrets.is_clean(text)


def unquoted(reason: str) -> str:
    """Return a reason without what it quotes of a file: that is for its owner only."""
    return _QUOTED.sub('"..."', reason)


class _Secrets:
    """The texts that nobody is to read, and one pattern that finds them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Both are replaced, never changed, so that they can be read without the lock.
        self._kept: tuple[str, ...] = ()
        self._pattern: re.Pattern[str] | None = None
        self._small: tuple[str, ...] | None = ()
        """All forms in small letters; None if one is not ASCII, where letters have other cases."""

    def keep(self, secret: str) -> None:
        if secret in self._kept:  # at every request
            return

        with self._lock:
            others = [kept for kept in self._kept if kept != secret]
            kept = (*others, secret)[-MAX_SECRETS:]
            # The longest first: one secret may begin with another.
            forms = sorted({form for one in kept for form in _forms(one)}, key=len, reverse=True)
            self._small = (
                tuple({form.lower() for form in forms}) if all(map(str.isascii, forms)) else None
            )
            self._pattern = re.compile("|".join(map(re.escape, forms)), re.IGNORECASE)
            self._kept = kept

    def struck(self, text: str) -> str:
        if self._pattern is None or self.is_clean(text):
            return text

        return self._pattern.sub(STARS, text)

    def is_clean(self, text: str) -> bool:
        """Tell whether a text holds no secret for certain: 30 times as fast as the pattern."""
        if self._small is None or not text.isascii():
            return False

        small = text.lower()

        return not any(form in small for form in self._small)


_secrets = _Secrets()  # of the process, as structlog's own configuration is


def _forms(secret: str) -> Iterator[str]:
    """Return how a secret may be written: plain, or as an address, JSON, HTML or base64 holds it.

    In capitals or small letters: `%2B` is `%2b`, and names of headers have no case.
    """
    yield secret
    yield quote(secret, errors="replace")
    yield quote(secret, safe="", errors="replace")
    yield json.dumps(secret)[1:-1]
    yield html.escape(secret)
    raw = secret.encode("utf-8", "replace")

    # Base64 has three places for a byte; the letters that a neighbour shares are left out.
    for before in range(3):
        letters = base64.b64encode(bytes(before) + raw).decode()
        inner = letters[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _plain_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make every value one that JSON has, valid UTF-8 and without secrets."""
    return {key: _plain(value) for key, value in event.items()}


def _plain(value: object) -> object:
    match value:
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case dict():
            return {_plain_text(str(key)): _plain(inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(inner) for inner in value]
        case _:
            return _plain_text(os.fsdecode(value) if isinstance(value, bytes) else str(value))


def _plain_text(text: str) -> str:
    # Names of files need not be UTF-8; the bytes that are not become \udcXX, spelt out.
    return struck(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered = {key: event[key] for key in FIRST_KEYS if key in event} | dict(event)
    return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))


def _without_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {
        key: _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }


class _Lines:
    """Writes lines to a stream for as long as somebody reads it; its own factory of loggers."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, *_args: object) -> _Lines:
        return self

    def msg(self, line: str) -> None:
        """Write one line, whatever it holds."""
        if self._stream is None:
            return

        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = line.encode(encoding, "backslashreplace").decode(encoding)

        with self._lock:
            try:
                self._stream.write(f"{line}\n")
                self._stream.flush()
            except BrokenPipeError:
                self._abandon(self._stream)
            except (OSError, ValueError):  # a full disk; a closed stream
                pass

    debug = info = warning = error = critical = msg

    def _abandon(self, stream: TextIO) -> None:
        """Point the stream nowhere, or Python fails to flush it at exit and returns 120."""
        self._stream = None

        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class _Libraries(logging.Handler):
    """Passes on what libraries say through `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # their format string does not fit
            message = str(record.msg)

        structlog.get_logger().log(
            record.levelno,
            "library.warned",
            logger=record.name,
            message=message,
            exc_info=record.exc_info,
        )


def _route_libraries() -> None:
    root = logging.getLogger()

    for handler in root.handlers[:]:
        if isinstance(handler, _Libraries):
            root.removeHandler(handler)

    root.addHandler(_Libraries())
    root.setLevel(logging.WARNING)

    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
