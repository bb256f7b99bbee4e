from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptspool.pricing import Tokens, cost

MILLION = Tokens(input=1_000_000, output=1_000_000)
COUNTS = st.integers(min_value=0, max_value=10**12)


@pytest.mark.parametrize(
    ("model", "batch", "standard"),
    [
        ("gpt-5-mini", 1.125, 2.25),
        ("gpt-6-luna", 0.3, 0.6),
        ("gpt-4.1-nano", 0.25, 0.5),
        ("o3", 5, 10),
        ("text-embedding-3-large", 0.065, 0.13),
    ],
)
def test_one_million_tokens(model: str, batch: float, standard: float) -> None:
    """A million tokens in and a million out cost the sum of the two rates."""
    found = cost(model, MILLION)

    assert found is not None
    assert found.batch_usd == pytest.approx(batch)
    assert found.standard_usd == pytest.approx(standard)
    assert found.saved_usd == pytest.approx(standard - batch)


def test_cached_input_is_a_part_of_input() -> None:
    """Cached tokens are taken out of the input and charged at their own rate."""
    found = cost("gpt-5-mini", Tokens(input=1_000_000, cached_input=400_000))

    assert found is not None
    assert found.batch_usd == pytest.approx(0.6 * 0.125 + 0.4 * 0.0125)
    assert found.standard_usd == pytest.approx(0.6 * 0.25 + 0.4 * 0.025)


def test_reasoning_is_a_part_of_output() -> None:
    """Reasoning tokens are output already and are not charged again."""
    assert cost("o3", Tokens(output=9, reasoning=7)) == cost("o3", Tokens(output=9))


def test_snapshot_costs_what_its_model_costs() -> None:
    """A dated snapshot is resolved to its model."""
    assert cost("gpt-5-mini-2025-08-07", MILLION) == cost("gpt-5-mini", MILLION)


@pytest.mark.parametrize("model", ["", "gpt-99", "gpt-5-mini-latest", "my/gpt-5", "gpt-5-2025"])
def test_unknown_model(model: str) -> None:
    """A model that the table does not know has no price rather than a guessed one."""
    assert cost(model, MILLION) is None


@given(COUNTS, COUNTS, COUNTS)
def test_batch_never_costs_more(fresh: int, cached: int, output: int) -> None:
    """No count makes a negative cost, or a batch dearer than the calls one by one."""
    found = cost("gpt-5.4", Tokens(input=fresh, cached_input=cached, output=output))

    assert found is not None
    assert 0 <= found.batch_usd <= found.standard_usd
