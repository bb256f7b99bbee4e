"""What tokens cost, as an estimate: the configuration's own prices, else the library's list prices.

The library is genai-prices. It knows the batch price of many models, takes the standard price
without a word where it does not, and is told apart by that: such a cost is an upper bound. It does
not tell how old its data is either; the latest day on which somebody says to have checked a price
is taken for that, and prices are those of that day, so that the same tokens cost the same
whenever they are asked for. A request beyond a model's threshold for long prompts (272,000 tokens
at OpenAI) costs more than is said here, and so does what a provider charges for writing its cache.

Pure; raises nothing. The library is imported by the first question for a list price: it takes a
third of a second and brings an HTTP client, which never calls anybody, since its updates are off.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec

from promptspool.wire import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from promptspool.settings import PriceSettings
    from promptspool.wire import PlannedBatch, SettledBatch

Tokens = Usage
"""What is paid for."""

WORTH_USD: Final = 0.01
"""A batch that saves less is not worth waiting a day for."""

_CENT: Final = 0.01

_BATCH: Final = {"processing": "batch"}
_CHECKED = re.compile(r"\b(?:checked|verified)\b[^.]*?\b(\d{4}-\d{2}-\d{2})\b")


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate in USD: what the batch cost, and what the same calls cost one by one."""

    batch_usd: float
    standard_usd: float
    is_upper_bound: bool = False
    """Whether some of it is at the standard price because the batch price is not known."""
    as_of: str | None = None
    """The day that the prices are of, YYYY-MM-DD; None if that is not known."""

    @property
    def saved_usd(self) -> float:
        """Return what batching saved; of an upper bound, at least."""
        return self.standard_usd - self.batch_usd


class _Rate(msgspec.Struct, frozen=True):
    """USD for one token of one kind."""

    standard: float
    batch: float
    is_upper_bound: bool = False


class _Price(msgspec.Struct, frozen=True, kw_only=True):
    """What the tokens of one model cost."""

    input: _Rate
    cached: _Rate
    output: _Rate
    as_of: str | None

    def of(self, tokens: Tokens) -> Cost:
        # Whatever a provider reports, a cost is never negative.
        cached = min(tokens.cached_input, tokens.input)
        counts = (tokens.input - cached, cached, tokens.output)
        parts = list(zip(counts, (self.input, self.cached, self.output), strict=True))

        return Cost(
            batch_usd=sum(count * rate.batch for count, rate in parts),
            standard_usd=sum(count * rate.standard for count, rate in parts),
            is_upper_bound=any(count and rate.is_upper_bound for count, rate in parts),
            as_of=self.as_of,
        )


class Prices:
    """What every model costs, as far as that is known."""

    def __init__(self, overrides: Mapping[str, PriceSettings]) -> None:
        """Take the prices of the configuration, by model; all others have their list price."""
        self._overrides = overrides
        self._known: dict[tuple[str, str | None], _Price | None] = {}

    def cost(self, model: str, tokens: Tokens, *, base_url: str | None = None) -> Cost | None:
        """Estimate what *tokens* of *model* cost; None if its price is not known.

        *base_url* says whose API it is. One that the library does not know, like a gateway's, sells
        at the prices of whoever made the model.
        """
        key = (model, base_url)

        if key not in self._known:
            own = self._overrides.get(model)
            self._known[key] = _list_price(*key) if own is None else _own_price(own)

        price = self._known[key]

        return None if price is None else price.of(tokens)

    def paid(self, settled: SettledBatch, model: str, *, base_url: str | None) -> Cost | None:
        """Estimate what the answers of a batch cost; None also if they do not say what they took.

        A batch without an answer cost nothing.
        """
        if settled.answered and settled.tokens == Tokens():
            return None

        return self.cost(model, settled.tokens, base_url=base_url)

    def estimates(
        self, batches: Iterable[PlannedBatch], *, base_url: str | None = None
    ) -> dict[str, Cost | None]:
        """Return by model what planned batches may cost, None for a model of unknown price."""
        return {
            model: self.cost(model, tokens, base_url=base_url)
            for model, tokens in estimated_tokens(batches).items()
        }


LIST_PRICES: Final = Prices({})
"""What the library knows, without a word of the configuration."""


def estimated_tokens(batches: Iterable[PlannedBatch]) -> dict[str, Tokens]:
    """Return by model, in the order of their batches, the tokens that a plan expects."""
    found: dict[str, Tokens] = {}

    for batch in batches:
        tokens = Tokens(input=batch.estimated_input, output=batch.estimated_output)
        found[batch.model] = found.get(batch.model, Tokens()) + tokens

    return found


def total(costs: Iterable[Cost | None]) -> Cost | None:
    """Return the sum of *costs*, of the oldest of their days; None if one of them is not known."""
    known = list(costs)

    if None in known:
        return None

    found = [cost for cost in known if cost is not None]

    return Cost(
        batch_usd=sum(cost.batch_usd for cost in found),
        standard_usd=sum(cost.standard_usd for cost in found),
        is_upper_bound=any(cost.is_upper_bound for cost in found),
        as_of=min((cost.as_of for cost in found if cost.as_of is not None), default=None),
    )


def is_too_small(costs: Iterable[Cost | None]) -> bool:
    """Tell whether batching saves too little to wait for: less than a cent.

    *costs* are those of all that is planned. What is saved has to be known for that: where a price
    is not, or is an upper bound, nothing is too small.
    """
    found = total(costs)

    return found is not None and not found.is_upper_bound and found.saved_usd < WORTH_USD


def usd(amount: float) -> str:
    """Return dollars: to the cent, and below one with two digits that say something."""
    if amount == 0 or abs(amount) >= _CENT:
        return f"${amount:,.2f}"

    return f"${amount:.2g}" if abs(amount) >= _CENT**2 else f"${amount:.6f}"


def _own_price(own: PriceSettings) -> _Price:
    """Return a price of the configuration, which gives it for a million tokens."""
    cached_input = own.input if own.cached_input is None else own.cached_input

    def rate(standard: float, batch: float | None) -> _Rate:
        return _Rate(standard / 1e6, (standard / 2 if batch is None else batch) / 1e6)

    return _Price(
        input=rate(own.input, own.batch_input),
        cached=rate(cached_input, own.batch_cached_input),
        output=rate(own.output, own.batch_output),
        as_of=own.as_of,
    )


def _list_price(model: str, base_url: str | None) -> _Price | None:
    """Return the library's price of a model, None if it knows none for a token."""
    from genai_prices import Usage as Units  # noqa: PLC0415 - see above
    from genai_prices import calc_price  # noqa: PLC0415 - see above

    as_of = _data_day()
    at = None if as_of is None else datetime.fromisoformat(as_of).replace(tzinfo=UTC)
    known_url = base_url if base_url is not None and _is_known(base_url) else None

    def usd(units: Units, context: Mapping[str, str] | None) -> float:
        found = calc_price(
            units,
            model,
            provider_api_url=known_url,
            genai_request_timestamp=at,
            price_context=context,
        )

        # What has no price by the token is paid for in another way: by the hour, say.
        if getattr(found.model_price, "input_mtok", None) is None:
            raise LookupError(model)

        return float(found.total_price)

    # One token of a kind, since the prices of many are those of one long prompt.
    def rate(units: Units) -> _Rate:
        standard, batch = usd(units, None), usd(units, _BATCH)

        return _Rate(standard, batch, is_upper_bound=batch >= standard > 0)

    try:
        return _Price(
            input=rate(Units(input_tokens=1)),
            cached=rate(Units(input_tokens=1, cache_read_tokens=1)),
            output=rate(Units(input_tokens=0, output_tokens=1)),
            as_of=as_of,
        )
    except (LookupError, ValueError):
        return None


def _is_known(base_url: str) -> bool:
    """Tell whether the library knows whose API an address is."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - see above

    try:
        get_snapshot().find_provider(None, None, base_url)
    except LookupError:
        return False

    return True


@cache
def _data_day() -> str | None:
    """Return the latest day on which a price of the library was checked, None if it names none."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - see above

    providers = get_snapshot().providers
    remarks = [
        *(provider.price_comments for provider in providers),
        *(model.price_comments for provider in providers for model in provider.models),
    ]

    return max((day for remark in remarks for day in _CHECKED.findall(remark or "")), default=None)
