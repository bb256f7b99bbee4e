from __future__ import annotations

import re
import subprocess
import sys
from datetime import date

import pytest
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from commands import environ
from promptspool.model import BatchId
from promptspool.pricing import LIST_PRICES, Cost, Prices, Tokens, is_too_small, total
from promptspool.settings import PriceSettings
from promptspool.wire import SettledBatch

MILLION = Tokens(input=1_000_000, output=1_000_000)
COUNTS = st.integers(min_value=0, max_value=10**12)
OPENAI = "https://api.openai.com/v1"
AZURE = "https://ours.openai.azure.com/openai/v1"
GROQ = "https://api.groq.com/openai/v1"


def known(cost: Cost | None) -> Cost:
    """Return a cost that has to be known."""
    assert cost is not None

    return cost


@pytest.mark.parametrize(
    ("model", "base_url", "batch", "standard"),
    [
        ("gpt-5-mini", OPENAI, 1.125, 2.25),
        ("gpt-5-mini-2025-08-07", OPENAI, 1.125, 2.25),
        ("gpt-6-luna", OPENAI, 0.3, 0.6),
        ("o3", OPENAI, 5, 10),
        ("openai/gpt-oss-120b", GROQ, 0.375, 0.75),
        ("mistral-small-latest", "https://api.mistral.ai/v1", 0.375, 0.75),
    ],
)
def test_list_prices(model: str, base_url: str, batch: float, standard: float) -> None:
    """A million tokens in and a million out cost the sum of the two rates of whose API it is."""
    found = known(LIST_PRICES.cost(model, MILLION, base_url=base_url))

    assert found.batch_usd == pytest.approx(batch)
    assert found.standard_usd == pytest.approx(standard)
    assert found.saved_usd == pytest.approx(standard - batch)
    assert not found.is_upper_bound


def test_cached_input_is_a_part_of_input() -> None:
    """Cached tokens are taken out of the input and charged at their own rate."""
    found = known(LIST_PRICES.cost("gpt-5-mini", Tokens(input=1_000_000, cached_input=400_000)))

    assert found.batch_usd == pytest.approx(0.6 * 0.125 + 0.4 * 0.0125)
    assert found.standard_usd == pytest.approx(0.6 * 0.25 + 0.4 * 0.025)


def test_reasoning_is_a_part_of_output() -> None:
    """Reasoning tokens are output already and are not charged again."""
    with_reasoning = LIST_PRICES.cost("o3", Tokens(output=9, reasoning=7))

    assert known(with_reasoning) == LIST_PRICES.cost("o3", Tokens(output=9))


def test_a_batch_is_no_long_prompt() -> None:
    """The tokens of many requests have the price of each, not that of one prompt so long."""
    small = known(LIST_PRICES.cost("gpt-6-sol", Tokens(input=1_000, output=1_000)))
    large = known(LIST_PRICES.cost("gpt-6-sol", Tokens(input=10**9, output=10**9)))

    assert large.batch_usd == pytest.approx(small.batch_usd * 10**6)
    assert large.standard_usd == pytest.approx(small.standard_usd * 10**6)


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("", None),
        ("gpt-99", OPENAI),
        ("gpt-5-mini-latest", OPENAI),
        ("in-house-1", "http://127.0.0.1:8000/v1"),
        ("claude-opus-4-5", OPENAI),
        ("whisper-1", OPENAI),
        ("omni-moderation-latest", OPENAI),
    ],
)
def test_unknown_is_none(model: str, base_url: str | None) -> None:
    """A model that is not known, not sold there or not paid by the token has no price, not 0."""
    assert LIST_PRICES.cost(model, MILLION, base_url=base_url) is None


def test_a_gateway_sells_at_the_prices_of_the_maker() -> None:
    """Where an address says nothing, the model does."""
    found = LIST_PRICES.cost("gpt-5-mini", MILLION, base_url="https://gateway.example/v1")

    assert known(found) == LIST_PRICES.cost("gpt-5-mini", MILLION, base_url=OPENAI)


@pytest.mark.parametrize(
    ("model", "base_url"), [("gpt-6-sol", AZURE), ("text-embedding-3-small", OPENAI)]
)
def test_a_fallback_is_labelled(model: str, base_url: str) -> None:
    """Where no batch price is known the standard price is taken, and called an upper bound."""
    found = known(LIST_PRICES.cost(model, Tokens(input=1_000), base_url=base_url))

    assert found.batch_usd == found.standard_usd > 0
    assert found.is_upper_bound


def test_only_what_was_counted_makes_an_upper_bound() -> None:
    """A rate for cached input that is not known matters where some input was cached."""
    assert not known(LIST_PRICES.cost("o3", MILLION)).is_upper_bound
    assert known(LIST_PRICES.cost("o3", Tokens(input=9, cached_input=1))).is_upper_bound


@pytest.mark.parametrize("provider", ["openai", "azure", "groq", "mistral", "x-ai"])
def test_no_batch_is_dearer(provider: str) -> None:
    """Of no model is the batch price above the standard price; where it is not below it, it says.

    Whoever wants to know what a batch may cost at most gets it for every model of the library.
    """
    addresses = {
        "openai": OPENAI,
        "azure": AZURE,
        "groq": GROQ,
        "mistral": "https://api.mistral.ai/v1",
        "x-ai": "https://api.x.ai/v1",
    }
    (found,) = (one for one in providers if one.id == provider)
    prices = Prices({})

    for model in found.models:
        for tokens in (Tokens(input=9), Tokens(input=9, cached_input=9), Tokens(output=9)):
            cost = prices.cost(model.id, tokens, base_url=addresses[provider])
            assert cost is None or 0 <= cost.batch_usd <= cost.standard_usd
            assert cost is None or cost.is_upper_bound == (
                cost.batch_usd == cost.standard_usd and cost.standard_usd > 0
            )


@given(COUNTS, COUNTS, COUNTS)
def test_batch_never_costs_more(fresh: int, cached: int, output: int) -> None:
    """No count makes a negative cost, or a batch dearer than the calls one by one."""
    tokens = Tokens(input=fresh, cached_input=cached, output=output)
    found = known(LIST_PRICES.cost("gpt-5.4", tokens))

    assert 0 <= found.batch_usd <= found.standard_usd


def test_an_override_wins() -> None:
    """A price of the configuration stands above the list, for its model alone."""
    own = PriceSettings(
        input=4,
        cached_input=2,
        output=8,
        batch_input=3,
        batch_cached_input=1,
        batch_output=5,
        as_of="2026-01-31",
    )
    prices = Prices({"gpt-5-mini": own})
    tokens = Tokens(input=1_000_000, cached_input=500_000, output=1_000_000)

    found = known(prices.cost("gpt-5-mini", tokens, base_url=AZURE))

    assert found.batch_usd == pytest.approx(1.5 + 0.5 + 5)
    assert found.standard_usd == pytest.approx(2 + 1 + 8)
    assert (found.is_upper_bound, found.as_of) == (False, "2026-01-31")
    assert known(prices.cost("gpt-6-sol", tokens)) == LIST_PRICES.cost("gpt-6-sol", tokens)


def test_an_override_without_batch_prices_is_half() -> None:
    """What an override leaves out is half of its standard price; cached input is input."""
    prices = Prices({"in-house-1": PriceSettings(input=4, output=8)})
    found = known(prices.cost("in-house-1", MILLION))

    assert (found.batch_usd, found.standard_usd) == (6, 12)
    assert (found.is_upper_bound, found.as_of) == (False, None)
    cached = Tokens(input=1_000_000, cached_input=1_000_000)
    assert known(prices.cost("in-house-1", cached)).batch_usd == 2


def test_list_prices_are_dated() -> None:
    """Every list price says of which day it is, and that day has been."""
    as_of = known(LIST_PRICES.cost("gpt-5-mini", MILLION)).as_of

    assert as_of is not None
    assert date(2026, 11, 1) <= date.fromisoformat(as_of) <= date.today()  # noqa: DTZ011


def test_a_sum_is_as_good_as_its_worst_part() -> None:
    """What is not known, an upper bound or an old price is so in the sum, too."""
    good = Cost(batch_usd=1, standard_usd=2, as_of="2026-02-01")
    old = Cost(batch_usd=2, standard_usd=2, is_upper_bound=True, as_of="2026-01-01")
    undated = Cost(batch_usd=4, standard_usd=8)

    assert total([good, old, undated]) == Cost(
        batch_usd=7, standard_usd=12, is_upper_bound=True, as_of="2026-01-01"
    )
    assert total([good, None]) is None
    assert total([]) == Cost(batch_usd=0, standard_usd=0)


def test_too_small_is_what_surely_saves_less_than_a_cent() -> None:
    """Nobody is told to spare a batch of which it is not known what it saves."""
    cheap = Cost(batch_usd=0.004, standard_usd=0.008)

    assert is_too_small([cheap])
    assert is_too_small([cheap, cheap])
    assert not is_too_small([cheap, cheap, cheap])
    assert not is_too_small([cheap, None])
    assert not is_too_small([Cost(batch_usd=0.1, standard_usd=0.1, is_upper_bound=True)])


def test_answers_that_do_not_say_what_they_took_cost_something() -> None:
    """Without usage the cost of answers is not known; a batch without answers cost nothing."""

    def paid(answered: int, tokens: Tokens) -> Cost | None:
        settled = SettledBatch(
            batch=BatchId("J.1"), answered=answered, failed=0, left=0, successors=[], tokens=tokens
        )

        return LIST_PRICES.paid(settled, "gpt-5-mini", base_url=OPENAI)

    assert paid(3, Tokens()) is None
    assert known(paid(0, Tokens())).batch_usd == 0
    assert known(paid(0, Tokens(input=9))).batch_usd > 0


# Whatever a process connects to, resolves or binds is told to this hook, by the interpreter itself.
_WATCHED = """
import sys
calls = []
sys.addaudithook(lambda event, _: calls.append(event) if event.startswith("socket.") else None)
import promptspool.cli, promptspool.app, promptspool.check
print("genai_prices" in sys.modules)
from promptspool.model import BatchId
from promptspool.pricing import LIST_PRICES, Tokens
print(LIST_PRICES.cost("gpt-5-mini", Tokens(input=2_000_000)).standard_usd)
print(sorted(set(calls)))
"""


def test_the_library_is_asked_late_and_asks_nobody() -> None:
    """The library is loaded with the first question for a price, and makes no connection."""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", _WATCHED], env=environ(), capture_output=True, text=True, check=True
    )
    loaded, price, calls = done.stdout.splitlines()

    assert (loaded, float(price)) == ("False", 0.5)
    assert not re.search(r"connect|getaddrinfo|gethost|send|bind", calls)
