"""What a job cost, estimated from a dated table. Pure; raises nothing.

The table holds OpenAI's list prices in USD for one million tokens as of 2026-11-20, taken from
`model_prices_and_context_window.json` of LiteLLM 1.109.1 (MIT licence) and, for gpt-6-sol,
gpt-6-luna and gpt-5-mini, cross-checked with genai-prices 0.2.3. Prices change, and contracts
differ: every figure is an estimate and is to be shown with `PRICES_AS_OF`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

PRICES_AS_OF: Final = "2026-11-20"

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What the provider counted. `cached_input` is a part of `input`, `reasoning` of `output`."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """An estimate in USD: what the batch cost, and what the same calls cost one by one."""

    batch_usd: float
    standard_usd: float

    @property
    def saved_usd(self) -> float:
        """Return what batching saved."""
        return self.standard_usd - self.batch_usd


@dataclass(frozen=True, slots=True)
class _Price:
    """USD for one million tokens."""

    standard_input: float
    standard_output: float
    batch_input: float
    batch_output: float
    batch_cached: float | None = None

    @property
    def standard_cached(self) -> float | None:
        # The table has no standard rate for cached input; batches get it at the input's discount.
        if self.batch_cached is None:
            return None

        return self.batch_cached * self.standard_input / self.batch_input


_PRICES: Final = {
    "gpt-6-astra": _Price(10, 50, 5, 25, 0.5),
    "gpt-6-sol": _Price(2, 10, 1, 5, 0.1),
    "gpt-6-luna": _Price(0.1, 0.5, 0.05, 0.25, 0.005),
    "gpt-6.1-sol": _Price(2, 10, 1, 5, 0.05),
    "gpt-6.1-terra": _Price(1, 5, 0.5, 2.5, 0.025),
    "gpt-5.6-luna": _Price(0.2, 1.2, 0.1, 0.6, 0.01),
    "gpt-5.4": _Price(2.5, 15, 1.25, 7.5, 0.13),
    "gpt-5.4-mini": _Price(0.75, 4.5, 0.375, 2.25, 0.0375),
    "gpt-5": _Price(1.25, 10, 0.625, 5, 0.0625),
    "gpt-5-mini": _Price(0.25, 2, 0.125, 1, 0.0125),
    "gpt-4.1": _Price(2, 8, 1, 4),
    "gpt-4.1-mini": _Price(0.4, 1.6, 0.2, 0.8),
    "gpt-4.1-nano": _Price(0.1, 0.4, 0.05, 0.2),
    "gpt-4o": _Price(2.5, 10, 1.25, 5),
    "gpt-4o-mini": _Price(0.15, 0.6, 0.075, 0.3),
    "o3": _Price(2, 8, 1, 4),
    "o4-mini": _Price(1.1, 4.4, 0.55, 2.2),
    "text-embedding-3-small": _Price(0.02, 0, 0.01, 0),
    "text-embedding-3-large": _Price(0.13, 0, 0.065, 0),
}


def cost(model: str, tokens: Tokens) -> Cost | None:
    """Estimate what *tokens* of *model* cost; None for a model that the table does not know.

    A dated snapshot costs what its model costs. Cached input without a rate of its own counts as
    input, which is an upper bound.
    """
    price = _PRICES.get(model) or _PRICES.get(_SNAPSHOT.sub("", model))

    if price is None:
        return None

    return Cost(
        batch_usd=_usd(tokens, price.batch_input, price.batch_output, price.batch_cached),
        standard_usd=_usd(
            tokens, price.standard_input, price.standard_output, price.standard_cached
        ),
    )


def _usd(tokens: Tokens, input_rate: float, output_rate: float, cached: float | None) -> float:
    # Whatever a provider reports, a cost is never negative.
    cached_tokens = min(tokens.cached_input, tokens.input)
    cached_rate = input_rate if cached is None else cached
    fresh = (tokens.input - cached_tokens) * input_rate
    return (fresh + cached_tokens * cached_rate + tokens.output * output_rate) / 1_000_000
