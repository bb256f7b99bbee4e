from __future__ import annotations

import base64
import html
import io
import json
import logging
import os
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import structlog
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from promptspool import log

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_795_176_000.25


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the process's logging as it was, and its secrets."""
    monkeypatch.setattr(log, "_secrets", log._Secrets())  # noqa: SLF001 - nothing forgets one
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield

    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)

    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def configured(level: str = "info", **options: object) -> io.StringIO:
    """Configure JSON logging to a stream at noon, and return the stream."""
    stream = io.StringIO()
    log.configure(level, "auto", stream, now=lambda: NOON, **options)  # type: ignore[arg-type]  # as given
    return stream


def only_line(stream: io.StringIO) -> dict[str, object]:
    """Return the only line of the log."""
    line, rest = stream.getvalue().split("\n")
    assert rest == ""
    found: dict[str, object] = json.loads(line)
    return found


def test_line() -> None:
    """A line is one JSON object that begins with time, level and event."""
    stream = configured()

    structlog.get_logger().info("job.claimed", job="j1", rows=3, share=0.5, none=None)

    assert stream.getvalue() == (
        '{"timestamp":"2026-11-20T12:00:00.250Z","level":"info","event":"job.claimed",'
        '"job":"j1","rows":3,"share":0.5,"none":null}\n'
    )


def test_level() -> None:
    """What is below the level is not written."""
    stream = configured("warning")

    structlog.get_logger().info("poll.swept")
    structlog.get_logger().warning("stage.retried")

    assert only_line(stream)["event"] == "stage.retried"


def test_context() -> None:
    """What is bound to the context is part of every line."""
    stream = configured()

    with structlog.contextvars.bound_contextvars(job="j1"):
        structlog.get_logger().info("batch.created", batch="b1")

    assert only_line(stream) | {"job": "j1", "batch": "b1"} == only_line(stream)


def test_values_that_json_lacks() -> None:
    """Paths, bytes and names that are not UTF-8 become strings, and a line stays a line."""
    stream = configured()

    structlog.get_logger().info(
        "job.claimed",
        path=Path("/a"),
        raw=b"caf\xc3\xa9",
        name=os.fsdecode(b"caf\xe9.csv"),
        many={"a": [Path("b"), (1, 2)], 3: float("nan")},
        text="a\nb",
        other=deque([1]),
        huge=10**30,
    )

    found = only_line(stream)
    assert found["path"] == "/a"
    assert found["raw"] == "café"
    assert found["name"] == "caf\\udce9.csv"
    assert found["many"] == {"a": ["b", [1, 2]], "3": "nan"}
    assert found["text"] == "a\nb"
    assert found["other"] == "deque([1])"
    assert found["huge"] == 10**30


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.binary(), st.floats(), st.integers())))
def test_any_value_is_one_line(value: dict[str, object]) -> None:
    """Whatever is logged, the log stays one valid JSON object a line."""
    stream = configured()

    structlog.get_logger().info("job.claimed", value=value)

    assert isinstance(only_line(stream)["value"], dict)


def test_exception_without_locals() -> None:
    """A traceback tells where, and never with which values."""
    stream = configured()
    _log_a_failure("sk-" + "secret")

    found = only_line(stream)["exception"]

    assert "_log_a_failure" in str(found)
    assert "ValueError" in str(found)
    assert "sk-secret" not in stream.getvalue()
    assert "locals" not in str(found)


def _log_a_failure(prompt: str) -> None:
    try:
        int("three" * len(prompt))
    except ValueError:
        structlog.get_logger().exception("stage.failed")


@pytest.mark.parametrize("format_", ["json", "console"])
def test_secrets_are_struck_out(format_: str) -> None:
    """A secret is in no value, however deep, not even in an exception's message."""
    stream = io.StringIO()
    log.configure("info", format_, stream, secrets=["", "sk-12345", "sk-1234567"])

    structlog.get_logger().info(
        "a.b", one="Bearer sk-1234567.", deep={"sk-12345": [b"xsk-1234567", ("sk-12345",)]}
    )
    structlog.get_logger().error("a.c", why="sk-12345", exc_info=ValueError("sk-1234567"))

    assert "sk-" not in stream.getvalue()
    assert "Bearer ***." in stream.getvalue()


def test_a_secret_may_be_added_while_running() -> None:
    """A key that is read later is struck out from then on, and a new configuration forgets none."""
    stream = configured()
    structlog.get_logger().info("a.b", why="sk-later-0001")
    log.keep_secret("sk-later-0001")
    structlog.get_logger().info("a.b", why="SK-LATER-0001")
    again = configured()
    structlog.get_logger().info("a.b", why="sk-later-0001")

    assert [json.loads(line)["why"] for line in stream.getvalue().splitlines()] == [
        "sk-later-0001",
        "***",
    ]
    assert only_line(again)["why"] == "***"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40))
@settings(deadline=None, max_examples=50)  # a pattern is made for each
def test_a_secret_is_found_in_other_writings(secret: str) -> None:
    """A secret is struck out as an address, JSON, HTML or base64 writes it, wherever it begins."""
    assume(secret.casefold() != "promptspool")
    log.keep_secret(secret)
    plain = [secret, quote(secret), quote(secret, safe=""), json.dumps(secret), html.escape(secret)]
    packed = [
        pack(b"u" * place + secret.encode()).decode()
        for place in range(3)
        for pack in (base64.b64encode, base64.urlsafe_b64encode)
    ]

    for written in (*plain, *packed):
        assert written not in log.struck(f"a {written} b")

    assert secret not in log.struck(f"Bearer {secret}")


@pytest.mark.parametrize("word", ["", "x", "EMPTY", "sk-1234", "promptspool", "Promptspool"])
def test_a_word_is_no_secret(word: str) -> None:
    """What a server on this machine takes for a key does not turn the log into stars."""
    log.keep_secret(word)

    assert log.struck(f"{word}_batch") == f"{word}_batch"


def test_the_youngest_secrets_are_kept() -> None:
    """Keys that are replaced every hour do not pile up, and one that is in use is known again."""
    secrets = [f"sk-of-hour-{number:04}" for number in range(log.MAX_SECRETS + 1)]

    for secret in secrets:
        log.keep_secret(secret)

    assert [log.struck(secret) for secret in secrets] == [secrets[0], *["***"] * log.MAX_SECRETS]
    log.keep_secret(secrets[0])
    assert log.struck(secrets[0]) == "***"


def test_secrets_from_many_threads() -> None:
    """Keys that are read by many threads at once are all kept, while others log."""
    secrets = [f"sk-of-thread-{number:04}" for number in range(log.MAX_SECRETS)]

    def keep(secret: str) -> str:
        log.keep_secret(secret)
        return log.struck(secret)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(keep, secrets)) == {"***"}

    assert {log.struck(secret) for secret in secrets} == {"***"}


def test_terminal_gets_text() -> None:
    """On a terminal the log is coloured text, and a file's name cannot steer the terminal."""
    stream = Terminal()
    log.configure("info", "auto", stream, now=lambda: NOON)

    structlog.get_logger().info("job.claimed", name="a\x1b[2Jb")

    assert "\x1b[" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert "\\x1b[2Jb" in stream.getvalue()
    assert "2026-11-20T12:00:00.250Z" in stream.getvalue()


def test_console_on_a_pipe_is_plain() -> None:
    """Asked for text, a pipe gets it without colours."""
    stream = io.StringIO()
    log.configure("info", "console", stream)

    structlog.get_logger().info("job.claimed", job="j1")

    assert "\x1b" not in stream.getvalue()
    assert "job=j1" in stream.getvalue()


def test_libraries() -> None:
    """Warnings of libraries are lines of the log, once; their chatter is not."""
    configured()
    stream = configured(secrets=["sk-123456"])

    logging.getLogger("httpx").info("GET https://api.example.com")
    logging.getLogger("httpx").warning("%s of %s", 1, "sk-123456")

    found = only_line(stream)
    assert found["event"] == "library.warned"
    assert found["level"] == "warning"
    assert found["logger"] == "httpx"
    assert found["message"] == "1 of ***"


def test_library_with_a_bad_format() -> None:
    """A library's mistake in logging does not become ours."""
    stream = configured()
    root = logging.getLogger()
    root.handlers[:] = root.handlers[-1:]  # the test runner's own handlers would raise

    logging.getLogger("some.library").warning("%d", "three")

    assert only_line(stream)["message"] == "%d"


def test_closed_stream() -> None:
    """A closed stream is ignored."""
    stream = configured()
    stream.close()

    structlog.get_logger().info("job.claimed")
    log.configure("info", "auto", stream)
    structlog.get_logger().info("job.claimed")


def test_narrow_encoding() -> None:
    """A stream that cannot say a character gets its number."""
    raw = io.BytesIO()
    log.configure("info", "json", io.TextIOWrapper(raw, encoding="ascii"))

    structlog.get_logger().info("job.claimed", name="café")

    assert json.loads(raw.getvalue().replace(rb"\x", rb"\\x"))["name"] == r"caf\xe9"


@pytest.mark.parametrize("stdout", ["broken", "closed"])
def test_stdout_that_nobody_reads(stdout: str) -> None:
    """A process whose log is cut off ends as if nothing had happened."""
    source = (
        "import structlog\n"
        "from promptspool import log\n"
        "log.configure('info', 'auto')\n"
        "for _ in range(3): structlog.get_logger().info('job.claimed')\n"
    )
    readable, writable = os.pipe()
    os.close(readable)
    shell = 'exec "$0" -c "$1"' + (" >&-" if stdout == "closed" else "")

    ended = subprocess.run(  # noqa: S603 (our own source)
        ["/bin/sh", "-c", shell, sys.executable, source],
        stdout=writable,
        stderr=subprocess.PIPE,
        check=False,
        env={"PYTHONPATH": str(Path(log.__file__).parents[1])},
    )
    os.close(writable)

    assert (ended.returncode, ended.stderr) == (0, b"")


@given(
    st.text(min_size=8, max_size=12) | st.just("sk-Straße-Key"),
    st.text() | st.just("\u017fK-STRASSE-key SK-STRAßE-KEY"),
    st.integers(min_value=0, max_value=20),
)
@example("sk-strasse-key", "\u017fk-strasse-key", 0)
def test_the_short_look_for_secrets_misses_none(secret: str, text: str, place: int) -> None:
    """What is passed over as clean is what the whole search would leave as it is."""
    secrets = log._Secrets()  # noqa: SLF001 - those of the process stay what they are
    secrets.keep(secret)
    assert secrets._pattern is not None  # noqa: SLF001

    for form in (text, text[:place] + secret.upper() + text[place:]):
        if secrets.is_clean(form):
            assert secrets._pattern.sub(log.STARS, form) == form  # noqa: SLF001

        assert secrets.struck(form) == secrets._pattern.sub(log.STARS, form)  # noqa: SLF001
