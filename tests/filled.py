"""What tests of the reading commands share: spools whose database holds the rows they need."""

from __future__ import annotations

import io
import re
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import anyio
import pexpect  # type: ignore[import-untyped] # it brings no types
import pytest
from msgspec.structs import replace

from commands import COMMAND, LIMIT_S, environ
from promptspool.cli import main
from promptspool.model import (
    Batch,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    ProviderState,
    ProviderStatus,
    batch_id,
)
from promptspool.spool import Spool
from promptspool.store import Change, opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from promptspool.model import Row

Terminal = Any
"""What `pexpect` runs."""

NOW = float(int(time.time()))
"""When these tests run, for the commands' sake: they ask the machine's clock."""

CONFIG = """
[providers.openai]
base_url = "http://127.0.0.1:9/v1"
api_key_env = "NO_SUCH_KEY"

[profiles.default]
model = "gpt-5-mini"
"""


def job(number: int, name: str | bytes = "", *, age_s: float = 60.0, **changes: Any) -> Job:
    """Return the row of a job that was claimed *age_s* ago, planned unless *changes* says more."""
    claimed_at = NOW - age_s
    moment = datetime.fromtimestamp(claimed_at, UTC).strftime("%Y%m%dt%H%M%Sz")
    name = (name.encode() if isinstance(name, str) else name) or b"f%d.jsonl" % number
    plain = Job(
        id=JobId(f"{moment}-{number:06d}"),
        name=name,
        stem=name,
        profile="default",
        provider="openai",
        base_url="http://127.0.0.1:9/v1",
        status=JobStatus.PLANNED,
        claimed_at=claimed_at,
        requests=100,
    )

    return replace(plain, **changes)


def batch(job: Job, part: int = 1, **changes: Any) -> Batch:
    """Return the row of a batch of *job*, created and to be polled unless *changes* says more."""
    plain = Batch(
        id=batch_id(job.id, part),
        job=job.id,
        provider="openai",
        base_url="http://127.0.0.1:9/v1",
        endpoint="/v1/chat/completions",
        model="gpt-5-mini",
        status=BatchStatus.CREATED,
        due_at=NOW + 30,
        requests=100,
        size_bytes=10_000,
        digest="ab" * 32,
        give_up_at=NOW + 200_000,
        intended_at=NOW - 50,
        remote_id=f"batch_{part:04d}",
        total=100,
    )

    return replace(plain, **changes)


def provider(**changes: Any) -> ProviderState:
    """Return the row of the provider, ready unless *changes* says more."""
    return replace(ProviderState(id="openai", status=ProviderStatus.READY), **changes)


def filled(
    root: Path,
    *rows: Row | tuple[float, Row] | tuple[Row, Row, float],
    meta: Mapping[str, str] | None = None,
) -> Spool:
    """Make a spool at *root* with a database of *rows*; the configuration is beside it.

    A row comes to be now, or that many seconds ago; a pair is a change, so many seconds ago.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "promptspool.toml").write_text(CONFIG)
    spool = Spool(root / "spool")
    spool.make()
    anyio.run(_fill, spool, rows, meta or {})

    return spool


async def _fill(spool: Spool, rows: Sequence[Any], meta: Mapping[str, str]) -> None:
    async with opened(spool.database) as store:
        for age_s, together in groupby(map(_at, rows), key=itemgetter(0)):
            changes = [change for _, change in together]
            updated = [change for change in changes if isinstance(change, tuple)]
            added = [change for change in changes if not isinstance(change, tuple)]
            await store.write(Change(updated=updated, added=added, at=NOW - age_s))

        for key, value in meta.items():
            await store.note(key, value)


def _at(row: Any) -> tuple[float, Any]:
    """Return how long ago something was written, and the row, or what it was and became."""
    match row:
        case (float() | int() as age_s, added):
            return age_s, added
        case (before, after, float() | int() as age_s):
            return age_s, (before, replace(after, version=before.version + 1))
        case added:
            return 0.0, added


@contextmanager
def held(spool: Spool) -> Iterator[None]:
    """Hold *spool* as a daemon does while it runs."""
    with spool.opened():
        yield


def said(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process, into a pipe; return its exit code and what it wrote."""
    out, errors = io.StringIO(), io.StringIO()

    with (
        redirect_stdout(out),
        redirect_stderr(errors),
        patched_argv("promptspool", *map(str, arguments)),
        pytest.raises(SystemExit) as exit_,
    ):
        main()

    return int(exit_.value.code or 0), out.getvalue(), errors.getvalue()


@contextmanager
def patched_argv(*words: str) -> Iterator[None]:
    """Let this process have been called with *words*."""
    before, sys.argv = sys.argv, list(words)

    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def on_terminal(
    *arguments: str | Path, width: int = 80, height: int = 24, **extra: str
) -> Iterator[Terminal]:
    """Run a command on a terminal of its own."""
    environment = environ(**{"TERM": "xterm-256color", "LANG": "C.UTF-8"} | extra)
    process: Terminal = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *map(str, arguments)],
        env=environment,
        dimensions=(height, width),
        timeout=LIMIT_S,
        encoding="utf-8",
    )

    try:
        yield process
    finally:
        process.close(force=True)


def screen_of(process: Terminal) -> list[str]:
    """Return the lines that a command leaves on its terminal at its end, without colours."""
    text = process.read()
    process.wait()

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n").splitlines()
