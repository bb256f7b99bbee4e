"""What every test gets."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from promptspool import log

IN_MEMORY = "/dev/shm"  # noqa: S108 - a place for tests, not for secrets


def pytest_configure() -> None:
    """Keep temporary spools in memory where there is room: thousands of fsyncs are waited for."""
    if Path(IN_MEMORY).is_dir() and shutil.disk_usage(IN_MEMORY).free > 2_000_000_000:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", IN_MEMORY)


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the daemon does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strike the keys of other tests out of nothing: a process keeps the secrets it has seen."""
    fresh = type(log._secrets)()  # noqa: SLF001 - what keeps them is nobody else's business
    monkeypatch.setattr(log, "_secrets", fresh)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test by the name of a file's content, not by the content.

    Compressed bytes hold the time, and the processes that share the tests must agree on names.
    """
    return argname if isinstance(val, bytes) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what the crash suite has tried, if any of it was run.

    Its tests count their points in a property of theirs, which comes with the last report of each.
    """
    counts: Counter[str] = Counter()
    seconds = 0.0

    for report in chain.from_iterable(terminalreporter.stats.values()):
        points = dict(getattr(report, "user_properties", ())).get("crash_points")

        if points is not None:
            seconds += report.duration
            counts.update(points if report.when == "teardown" else {})

    if counts:
        losses, duplicates = counts.pop("losses", 0), counts.pop("duplicates", 0)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        terminalreporter.write_line(
            f"crash suite: {counts.total()} points ({kinds}), {losses} losses, "
            f"{duplicates} duplicates, {seconds:.0f} s"
        )
