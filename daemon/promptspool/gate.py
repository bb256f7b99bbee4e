"""The gate before creation: which batches may cost money now, and which wait.

It sees what waits for one provider, in its order, as much of it as may be created at once, and
nobody else decides meanwhile: its lane is one wide. A batch passes if it is within the pace of
creations, fits beside what the provider has in work for its model, and stays within the limits of
cost. What fits goes first; what has waited for long gets the next room. Raises
`ProviderError` and `StoreError` (environment).
"""

from __future__ import annotations

import calendar
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio.to_thread

from promptspool import planning
from promptspool.errors import ProviderError
from promptspool.outcomes import Crowded, Failed, Held, Intended, Trouble
from promptspool.pricing import usd as shown_usd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from promptspool.context import Account, Context
    from promptspool.model import Batch, BatchId, Job, JobId
    from promptspool.outcomes import Outcome

HOUR_S = 3600.0
DAY_S = 86_400

STARVED_S = 1800.0
"""What has waited so long for room gets the next that there is, before anything smaller."""

LEARNED_FOR_S = 86_400.0
"""How long a limit is believed that a provider named while refusing: accounts grow."""

RELEASE = "`promptspool release` lets it go"


@dataclass(slots=True, kw_only=True)
class _Room:
    """The tokens of one model at one provider."""

    limit: int | None
    enqueued: int
    starved: Batch | None = None
    """The one that has waited longest, if too long."""

    def lack(self, batch: Batch) -> str | None:
        """Return why there is no room for *batch*, None if there is; one alone always passes."""
        if self.limit is None or self.enqueued == 0:
            return None

        if self.enqueued + batch.estimated_input > self.limit:
            return (
                f"{self.enqueued:,} of {self.limit:,} tokens of {batch.model} are enqueued; it "
                f"needs {batch.estimated_input:,}"
            )

        if self.starved is not None and self.starved.id != batch.id:
            return f"{self.starved.id} has waited longer for room"

        return None


@dataclass(slots=True, kw_only=True)
class Gate:
    """What may pass to one provider at one moment."""

    context: Context
    account: Account
    name: str
    now: float
    allowance: int = 0
    """Creations that are left in this hour."""
    rooms: dict[str, _Room] = field(default_factory=dict)
    spent: dict[float, float] = field(default_factory=dict)
    """USD, by the beginning of the day and of the month."""
    spent_on: dict[JobId, float] = field(default_factory=dict)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    """Those of the batches, like `spent_on`; none where no limit of cost is set."""
    usd: dict[BatchId, float | None] = field(default_factory=dict)
    """What each batch may cost; None if that is not known."""

    async def read(self, batches: Sequence[Batch]) -> None:
        """Find out how things stand, for what concerns *batches*."""
        store, settings = self.context.store, self.account.settings
        made = await store.intents(self.name, after=self.now - HOUR_S, until=self.now)
        self.allowance = settings.max_creates - made
        enqueued = await store.enqueued(self.name, settings.base_url)
        crowded = await store.crowded(self.name)

        for model in {batch.model for batch in batches}:
            limit = await self._limit(model)
            starved = [
                one
                for one in crowded
                if one.model == model
                and one.base_url == settings.base_url  # another's is never looked at here
                and self.now - (one.crowded_at or self.now) >= STARVED_S
            ]
            longest = min(starved, key=lambda one: one.crowded_at or 0.0, default=None)
            room = _Room(limit=limit, enqueued=enqueued.get(model, 0), starved=longest)
            self.rooms[model] = room

        await self._estimate(batches)

        # A month may have a million batches: they are added up only if there is a limit.
        for period, most in (
            (day_of(self.now), settings.max_cost_per_day),
            (month_of(self.now), settings.max_cost_per_month),
        ):
            if most is not None:
                self.spent[period] = await store.spent(self.name, period)

        if not self._is_limited():
            return

        for name in {batch.job for batch in batches}:
            job = await store.job(name)
            assert job is not None  # noqa: S101 - a foreign key holds it
            self.jobs[name] = job
            self.spent_on[name] = await store.spent_on(name)

    def _is_limited(self) -> bool:
        """Tell whether any limit of cost may concern what is submitted here."""
        settings = self.account.settings
        limits = (settings.max_cost, settings.max_cost_per_day, settings.max_cost_per_month)
        of_profiles = [one.max_cost for one in self.context.settings.profiles.values()]

        return any(limit is not None for limit in (*limits, *of_profiles))

    async def _estimate(self, batches: Sequence[Batch]) -> None:
        """Find out what *batches* may cost; perhaps a price is known by now that was not."""
        unknown = [batch for batch in batches if batch.estimated_usd is None]
        self.usd = {batch.id: batch.estimated_usd for batch in batches}

        if unknown:
            found = await anyio.to_thread.run_sync(planning.estimates, self.context.prices, unknown)
            self.usd |= {
                batch.id: None if cost is None else cost.batch_usd
                for batch, cost in zip(unknown, found, strict=True)
            }

    async def _limit(self, model: str) -> int | None:
        """Return the tokens of *model* that may be enqueued: as set, or as refusals have taught."""
        said = await self.context.store.meta(learned_key(self.name, model))
        limits = [self.account.settings.max_tokens_enqueued.get(model)]

        if said is not None:
            tokens, _, at = said.partition("@")
            limits.append(int(tokens) if self.now - float(at) < LEARNED_FOR_S else None)

        return min((limit for limit in limits if limit is not None), default=None)

    def verdict(self, batch: Batch) -> Outcome:
        """Return what becomes of *batch*, and count it if it passes."""
        room = self.rooms[batch.model]
        held = self.excess(batch)

        if held is not None:
            return held

        if (reason := room.lack(batch)) is not None:
            return Crowded(reason=reason)

        self.allowance -= 1
        room.enqueued += batch.estimated_input
        room.starved = None if room.starved and room.starved.id == batch.id else room.starved
        self._count(batch)

        return Intended(estimated_usd=self.usd[batch.id])

    def _count(self, batch: Batch) -> None:
        usd = self.usd[batch.id] or 0.0
        earlier = batch.intended_at  # offered before, and so counted already

        for period in self.spent:
            if earlier is None or earlier < period:
                self.spent[period] += usd

        if earlier is None and batch.job in self.spent_on:
            self.spent_on[batch.job] += usd

    def excess(self, batch: Batch) -> Held | None:
        """Return which limit of cost *batch* would exceed, None if none."""
        if batch.job not in self.jobs:
            return None

        job, settings = self.jobs[batch.job], self.account.settings
        limits = [settings.max_cost_per_day, settings.max_cost_per_month]
        of_job = job_limit(self.context, job)

        if job.released_at is not None or (of_job is None and limits == [None, None]):
            return None

        usd = self.usd[batch.id]

        if usd is None:
            return Held(reason=unknown_price([batch.model]), until=None)

        is_new = batch.intended_at is None
        on_job = self.spent_on[batch.job] + (usd if is_new else 0.0)

        if of_job is not None and on_job > of_job:
            return Held(reason=too_dear(on_job, of_job), until=None)

        return self._excess_of_period(batch, limits)

    def _excess_of_period(self, batch: Batch, limits: Iterable[float | None]) -> Held | None:
        usd = self.usd[batch.id] or 0.0
        day, month = day_of(self.now), month_of(self.now)

        for limit, period, word, end in zip(
            limits,
            (day, month),
            ("day", "month"),
            (day + DAY_S, next_month_of(self.now)),
            strict=True,
        ):
            is_counted = batch.intended_at is not None and batch.intended_at >= period

            if limit is None or self.spent[period] + (0.0 if is_counted else usd) <= limit:
                continue

            key = f"providers.{self.name}.max_cost_per_{word}"
            reason = (
                f"about {shown_usd(usd)} more would exceed {key} = {limit:g}, of which about "
                f"{shown_usd(self.spent[period])} is spent; {RELEASE}"
            )

            return Held(reason=reason, until=None if usd > limit else end)

        return None


async def verdicts(context: Context, batches: Sequence[Batch]) -> list[Outcome]:
    """Return an outcome for each of *batches*, which wait for one provider, in their order."""
    name, now = batches[0].provider, context.clock.now()
    account = context.account(name)
    gate = Gate(context=context, account=account, name=name, now=now)
    await gate.read(batches)
    found: list[Outcome] = []
    paced: Failed | None = None

    for batch in batches:
        if gate.allowance > 0:
            found.append(gate.verdict(batch))
        else:
            paced = paced or await _paced(gate)
            found.append(paced)

    return found


async def held_again(context: Context, batches: Sequence[Batch]) -> Held | None:
    """Return why not one of a held job's *batches* could pass now; None if one could."""
    if not batches:
        return None

    name = batches[0].provider
    account = context.account(name, batches[0].base_url)
    gate = Gate(context=context, account=account, name=name, now=context.clock.now())
    await gate.read(batches)
    found: list[Held] = []

    for batch in batches:
        held = gate.excess(batch)

        if held is None:
            return None

        found.append(held)

    return min(found, key=lambda held: held.until if held.until is not None else math.inf)


async def _paced(gate: Gate) -> Failed:
    """Return the failure of what would exceed the pace, before the provider says so.

    It counts creations by the hour, and an intent is one.
    """
    limit = gate.account.settings.max_creates
    first = await gate.context.store.nth_last_intent(gate.name, limit, until=gate.now)
    wait_s = HOUR_S if first is None else max(first + HOUR_S - gate.now, 1.0)
    reason = (
        f"{limit} batches were created within the hour, as many as "
        f"providers.{gate.name}.max_creates allows"
    )

    return Failed(reason=reason, trouble=Trouble.THROTTLED, retry_after_s=wait_s)


def held_at_plan(
    context: Context, job: Job, models: Iterable[str], estimated_usd: float | None
) -> str | None:
    """Return why nothing of a job that was just planned may be submitted, None if it may."""
    if job.provider is None or job.released_at is not None:
        return None

    try:
        settings = context.account(job.provider).settings
    except ProviderError:
        return None

    limit = job_limit(context, job)
    limits = (limit, settings.max_cost_per_day, settings.max_cost_per_month)

    if limits == (None, None, None):
        return None

    if estimated_usd is None:
        return unknown_price(models)

    return None if limit is None or estimated_usd <= limit else too_dear(estimated_usd, limit)


def job_limit(context: Context, job: Job) -> float | None:
    """Return what *job* may cost in USD, None for no limit: the lower of profile and provider."""
    provider = context.settings.providers.get(job.provider or "")
    profile = context.settings.profiles.get(job.profile)
    limits = (
        None if provider is None else provider.max_cost,
        None if profile is None else profile.max_cost,
    )

    return min((limit for limit in limits if limit is not None), default=None)


def too_dear(usd: float, limit: float) -> str:
    """Return what is said of a job that may cost more than *limit*."""
    return f"it may cost about {shown_usd(usd)}, more than max_cost = {limit:g}; {RELEASE}"


def unknown_price(models: Iterable[str]) -> str:
    """Return what is said of what cannot be held against a limit."""
    names = ", ".join(sorted(set(models)))

    return (
        f"costs are limited, but the price of {names} is not known: write it into [prices], "
        f"or {RELEASE}"
    )


def learned_key(provider: str, model: str) -> str:
    """Return the name of the note that keeps a limit which a refusal has named."""
    return f"max_tokens_enqueued/{provider}/{model}"


def day_of(now: float) -> float:
    """Return when the day of *now* began, UTC."""
    return now - now % DAY_S


def month_of(now: float) -> float:
    """Return when the month of *now* began, UTC."""
    moment = datetime.fromtimestamp(now, UTC)

    return datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()


def next_month_of(now: float) -> float:
    """Return when the month of *now* ends, UTC."""
    moment = datetime.fromtimestamp(now, UTC)

    return month_of(now) + calendar.monthrange(moment.year, moment.month)[1] * DAY_S
