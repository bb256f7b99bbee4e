"""What every test of the crash suite gets."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
import pytest
import structlog

from crash.scene import PARTS, Calm, undisturbed
from crash.tally import PROPERTY, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """Run once without an accident, for each process that shares the tests."""
    return anyio.run(undisturbed, tmp_path_factory.mktemp("calm"))


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Count the points of a test; the count goes with its report, from whatever process."""
    tally = Tally()
    request.node.user_properties.append((PROPERTY, tally.counts))

    return tally


@pytest.fixture(params=range(PARTS))
def part(request: pytest.FixtureRequest) -> int:
    """Return which part of a sweep a test is to make."""
    number: int = request.param

    return number


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep the log of hundreds of runs to its errors, and those plain: a traceback takes long."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        processors=[structlog.processors.KeyValueRenderer()],
    )
    yield
    structlog.configure(**before)
