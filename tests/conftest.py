"""What every test gets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

IN_MEMORY = "/dev/shm"  # noqa: S108 - a place for tests, not for secrets


def pytest_configure() -> None:
    """Keep temporary spools in memory where there is room: thousands of fsyncs are waited for."""
    if Path(IN_MEMORY).is_dir() and shutil.disk_usage(IN_MEMORY).free > 2_000_000_000:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", IN_MEMORY)


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the daemon does."""
    return "asyncio"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test by the name of a file's content, not by the content.

    Compressed bytes hold the time, and the processes that share the tests must agree on names.
    """
    return argname if isinstance(val, bytes) else None
