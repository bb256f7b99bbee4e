"""The log: one JSON object a line, or readable text on a terminal.

Modules log through `structlog.get_logger()`, with constant events named `noun.past_participle`.
Secrets are struck out of every value, tracebacks come without local variables, and what libraries
warn of arrives as `library.warned`. A log nobody can read is no reason to stop: a closed or broken
stream is ignored, so nothing here raises.
"""

from __future__ import annotations

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

import structlog
from structlog.tracebacks import ExceptionDictTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from structlog.typing import EventDict, Processor, WrappedLogger

FIRST_KEYS = ("timestamp", "level", "event")

# They tell at info what the daemon tells better, and httpx tells it with addresses.
_LOUD_LIBRARIES = ("asyncio", "httpcore", "httpx", "uvicorn", "uvicorn.access", "uvicorn.error")
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
    *secrets* are replaced by "***" wherever they appear in a value. Calling it again replaces
    the earlier configuration.
    """
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
            _Plain(secrets),
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


class _Plain:
    """Makes every value one that JSON has, valid UTF-8 and without secrets."""

    def __init__(self, secrets: Collection[str]) -> None:
        # The longest first: one secret may begin with another.
        known = sorted(filter(None, secrets), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: self._plain(value) for key, value in event.items()}

    def _plain(self, value: object) -> object:
        match value:
            case None | bool() | int():
                return value
            case float() if math.isfinite(value):
                return value
            case dict():
                return {self._text(str(key)): self._plain(inner) for key, inner in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self._plain(inner) for inner in value]
            case _:
                return self._text(os.fsdecode(value) if isinstance(value, bytes) else str(value))

    def _text(self, text: str) -> str:
        # Names of files need not be UTF-8; the bytes that are not become \udcXX, spelt out.
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return self._secrets.sub("***", text) if self._secrets else text


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
