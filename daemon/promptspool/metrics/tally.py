"""Counts what happens while it happens: dictionaries and nothing else.

Being told something costs some microseconds. All counters begin
at nought with the process, as Prometheus expects: the database forgets finished work in time, and
a counter that shrank would be taken for one that began anew. What was spent in a day or month is
durable, and in `Figures`. Labels are bounded, whatever users and providers call their things.
Raises nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from promptspool.metrics import families

if TYPE_CHECKING:
    from collections.abc import Iterable

    from promptspool.clock import Clock
    from promptspool.metrics.families import Family
    from promptspool.pricing import Cost, Tokens

MAX_MODELS = 100
"""So many are told apart: a dropped file may name a model in each row."""

_STATUSES = frozenset({*map(int, HTTPStatus), *range(520, 531)})
"""The registered ones and Cloudflare's, behind which providers are: a stranger can send any."""


@dataclass(slots=True)
class Times:
    """How long calls of one kind took."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(families.BUCKETS_S) + 1))
    """By the first of `BUCKETS_S` that they fit in, those that fit in none last."""
    sum_s: float = 0.0


@dataclass(slots=True)
class _Pause:
    began_at: float
    work: str
    reason: str


class Metrics:
    """Everything that is counted."""

    def __init__(
        self, clock: Clock, *, providers: Iterable[str] = (), models: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Begin at nought, for *providers* and *models* (by provider) that are known already.

        A counter that is not there before its first event hides it from `increase()`.
        """
        self._clock = clock
        self.started_at = clock.now()
        self.providers: set[str] = set()
        self._models: set[str] = set()
        self._pauses: dict[str, _Pause] = {}
        self._times: dict[tuple[str, ...], Times] = {}
        self._counts: dict[Family, defaultdict[tuple[str, ...], float]] = {
            family: defaultdict(float) for family in families.COUNTERS
        }
        self.expect(providers, models)

    def expect(self, providers: Iterable[str], models: Iterable[tuple[str, str]]) -> None:
        """Let the counters be there that are sure to be asked for, as at the start.

        To be called again when a configuration was reloaded; what was known stays.
        """
        self.providers.update(providers)

        for family in families.COUNTERS:
            if not family.labels:
                self._add(family, (), 0)

        for provider in self.providers:
            self._add(families.PAUSED_SECONDS, (provider,), 0)

            for outcome in families.POLL_OUTCOMES:
                self._add(families.POLLS, (provider, outcome), 0)

        for provider, model in models:
            label = self.label(model)

            for outcome in families.REQUEST_OUTCOMES:
                self._add(families.REQUESTS, (provider, label, outcome), 0)

            for kind in families.TOKEN_KINDS:
                self._add(families.TOKENS, (provider, label, kind), 0)

    # What happens.

    def claimed(self, files: int) -> None:
        """Count files that were taken from the inbox."""
        self._add(families.CLAIMED_FILES, (), files)

    def delivered(self) -> None:
        """Count a file whose answers are in the outbox."""
        self._add(families.DELIVERED_FILES, (), 1)

    def rejected(self) -> None:
        """Count a file of which no request could be made."""
        self._add(families.REJECTED_FILES, (), 1)

    def settled(  # noqa: PLR0913 - all that is known of a batch at its end
        self,
        provider: str,
        model: str,
        *,
        answered: int,
        failed: int,
        tokens: Tokens,
        cost: Cost | None,
    ) -> None:
        """Count what came of one batch; *cost* is None where the price is not known."""
        model = self.label(model)
        self._add(families.REQUESTS, (provider, model, "answered"), answered)
        self._add(families.REQUESTS, (provider, model, "failed"), failed)
        cached = min(tokens.cached_input, tokens.input)
        reasoning = min(tokens.reasoning, tokens.output)
        counts = (tokens.input - cached, cached, tokens.output - reasoning, reasoning)

        for kind, count in zip(families.TOKEN_KINDS, counts, strict=True):
            self._add(families.TOKENS, (provider, model, kind), count)

        if cost is not None:
            self._add(families.COST, (provider, model), cost.batch_usd)
            self._add(families.STANDARD_COST, (provider, model), cost.standard_usd)

    def polled(
        self, provider: str, *, changed: int = 0, unchanged: int = 0, failed: int = 0
    ) -> None:
        """Count batches that were looked at, by what came of it."""
        for outcome, count in zip(
            families.POLL_OUTCOMES, (changed, unchanged, failed), strict=True
        ):
            self._add(families.POLLS, (provider, outcome), count)

    def stage_failed(self, stage: str, trouble: str) -> None:
        """Count a run of *stage* that failed, by a word of `outcomes.Trouble`."""
        self._add(families.STAGE_FAILURES, (stage, trouble), 1)

    def http_call(
        self, provider: str, method: str, *, path: str, status: int | None, seconds: float
    ) -> None:
        """Count an exchange; *path* is as it was sent, and *status* None if no answer came."""
        code = "none" if status is None else str(status) if status in _STATUSES else families.OTHER
        times = self._times.setdefault((provider, method, route(path), code), Times())
        times.counts[bisect_left(families.BUCKETS_S, seconds)] += 1
        times.sum_s += max(seconds, 0.0)

    def paused(self, provider: str, work: str, *, reason: str | None = None) -> None:
        """Note that *work* (of `model.Work`) of a provider is paused, or is so still.

        *reason* is a word of `outcomes.Trouble`; one that pauses nothing, like None, leaves the
        reason as it was.
        """
        pause = self._pauses.setdefault(provider, _Pause(self._clock.now(), work, "unknown"))
        pause.work = work

        if reason in families.PAUSE_REASONS:
            pause.reason = reason

    def resumed(self, provider: str) -> None:
        """Note that nothing of a provider is paused any more, if anything was."""
        pause = self._pauses.pop(provider, None)

        if pause is not None:
            self._add(families.PAUSED_SECONDS, (provider,), self._passed(pause))

    # What came of it.

    @property
    def pauses(self) -> dict[str, tuple[str, str]]:
        """Return work and reason of the pauses that last, by provider."""
        return {name: (pause.work, pause.reason) for name, pause in self._pauses.items()}

    def count(self, family: Family) -> dict[tuple[str, ...], float]:
        """Return a counter's values by its labels, up to now."""
        counts = dict(self._counts[family])

        if family is families.PAUSED_SECONDS:
            for provider, pause in self._pauses.items():
                counts[provider,] = counts.get((provider,), 0.0) + self._passed(pause)

        return counts

    def times(self) -> dict[tuple[str, ...], Times]:
        """Return how long the calls took, by the labels of `families.HTTP_CALLS`, up to now."""
        return {
            labels: Times([*times.counts], times.sum_s) for labels, times in self._times.items()
        }

    def label(self, model: str) -> str:
        """Return a model's own name for the first so many of them, then `OTHER`."""
        if model not in self._models and len(self._models) < MAX_MODELS:
            self._models.add(model)

        return model if model in self._models else families.OTHER

    def _passed(self, pause: _Pause) -> float:
        return self._clock.now() - pause.began_at

    def _add(self, family: Family, labels: tuple[str, ...], amount: float) -> None:
        # Whatever a provider reports, a counter never goes down.
        self._counts[family][labels] += max(amount, 0)


def route(path: str) -> str:
    """Return the template of a call's path, without ids: one of `families.ROUTES`, or `OTHER`."""
    parts = path.split("/")

    if len(parts) > 2:  # noqa: PLR2004 - "", the kind of thing, and its id
        parts[2] = "{id}"

    template = "/".join(parts)

    return template if template in families.ROUTES else families.OTHER
