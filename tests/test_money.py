"""Limits of cost and of enqueued tokens: nothing is submitted beyond them, and nothing is lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.control import Command, leave, take_answer
from promptspool.gate import day_of
from promptspool.model import JobId
from promptspool.simulator import SimulatorSettings
from world import overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
DOLLAR = {"input": 100_000.0, "output": 0.0, "batch_input": 50_000.0}
"""A price at which one token costs five cents as a batch, so that small files are dear."""


def questions(count: int, *, words: int = 1) -> list[dict[str, Any]]:
    """Return *count* rows with prompts of about *words* tokens."""
    return [{"id": f"q{n}", "prompt": "why " * words} for n in range(count)]


def told(lines: Sequence[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    """Return the lines of one event."""
    return [line for line in lines if line["event"] == event]


def column(world: World, query: str) -> list[Any]:
    """Return one column of the database."""
    with closing(sqlite3.connect(world.spool.database)) as connection:
        return [row[0] for row in connection.execute(query)]


def job_id(world: World) -> JobId:
    """Return the id of the only job."""
    (found,) = column(world, "SELECT id FROM jobs")

    return JobId(found)


def limited(**limits: float) -> dict[str, Any]:
    """Return a configuration in which costs are limited, of the provider."""
    return {"providers": {"openai": limits}, "prices": {"gpt-5-mini": DOLLAR}}


async def test_a_job_over_its_limit_is_held_until_it_is_released(tmp_path: Path) -> None:
    """Nothing of a job that may cost too much leaves this machine before a person lets it go."""
    async with simulated(tmp_path, overrides=limited(max_cost=0.5)) as world:
        world.drop("f.jsonl", questions(9))

        with overheard() as lines:
            assert not await world.drain()

        (held,) = told(lines, "job.held")
        assert "max_cost = 0.5" in held["reason"]
        assert "release" in held["reason"]
        assert held["until"] is None
        assert world.simulator.ledger.uploads == []
        assert world.simulator.ledger.calls["batches.create"] == 0
        assert column(world, "SELECT status FROM jobs") == ["held"]

        name = leave(
            world.spool, Command(verb="release", job=job_id(world), left_at=world.clock.now())
        )

        assert await world.drain()

        answer = take_answer(world.spool, name, within_s=0.0)
        assert answer is not None
        assert answer.is_done
        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(9)])
        world.assert_bought_once()


async def test_a_limit_that_is_raised_lets_go_what_it_held(tmp_path: Path) -> None:
    """The next start looks at what is held by the limits of then; what is still over them stays."""
    async with simulated(tmp_path, overrides=limited(max_cost=0.5)) as world:
        world.drop("f.jsonl", questions(9))

        for _ in range(2):
            assert not await world.drain()
            assert world.simulator.ledger.uploads == []
            assert column(world, "SELECT status FROM jobs") == ["held"]

        world.overrides = limited(max_cost=500.0)

        assert await world.drain()
        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(9)])


async def test_the_lower_limit_holds_and_a_cheap_job_goes(tmp_path: Path) -> None:
    """A profile's own limit counts beside the provider's, and what is below both is not held."""
    overrides = limited(max_cost=1000.0) | {
        "profiles": {"default": {"max_cost": 0.5}, "rich": {"model": "gpt-5-mini"}}
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("poor.jsonl", questions(9))
        world.drop("rich/f.jsonl", questions(9))

        assert not await world.drain()

        assert column(world, "SELECT status FROM jobs ORDER BY name") == ["held", "done"]
        world.assert_conserved("rich/f.jsonl", [f"q{n}" for n in range(9)])


async def test_a_day_has_its_limit_and_the_next_day_goes_on(tmp_path: Path) -> None:
    """What would exceed the limit of a day waits for the next, by itself; never more is spent."""
    async with simulated(tmp_path, overrides=limited(max_cost_per_day=10.0)) as world:
        for number in range(4):
            world.drop(f"f{number}.jsonl", questions(9, words=2))

        with overheard() as lines:
            assert await world.drain()

        assert told(lines, "job.held")
        assert all(line["until"] is not None for line in told(lines, "job.held"))
        assert world.clock.monotonic() > DAY_S / 4

        for number in range(4):
            world.assert_conserved(f"f{number}.jsonl", [f"q{n}" for n in range(9)])

        world.assert_bought_once()
        days: dict[float, float] = {}

        with closing(sqlite3.connect(world.spool.database)) as connection:
            for at, usd in connection.execute("SELECT intended_at, estimated_usd FROM batches"):
                days[day_of(at)] = days.get(day_of(at), 0.0) + usd

        assert len(days) > 1, column(world, "SELECT estimated_usd FROM batches")
        assert all(usd <= 10.0 for usd in days.values())


async def test_more_than_a_whole_day_allows_waits_for_a_person(tmp_path: Path) -> None:
    """No new day lets go what is above the limit of a day by itself."""
    async with simulated(tmp_path, overrides=limited(max_cost_per_day=0.5)) as world:
        world.drop("f.jsonl", questions(90))

        with overheard() as lines:
            assert not await world.drain()

        assert [line["until"] for line in told(lines, "job.held")] == [None]
        assert world.simulator.ledger.calls["batches.create"] == 0


async def test_a_limit_without_a_price_holds(tmp_path: Path) -> None:
    """Where costs are limited, what nobody knows the price of is not submitted unasked."""
    overrides: dict[str, Any] = {
        "providers": {"openai": {"max_cost_per_month": 1.0}},
        "profiles": {"default": {"model": "nobody-knows-1"}},
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("f.jsonl", questions(2))

        with overheard() as lines:
            assert not await world.drain()

        (held,) = told(lines, "job.held")
        assert "nobody-knows-1" in held["reason"]
        assert "[prices]" in held["reason"]
        assert world.simulator.ledger.calls["batches.create"] == 0


async def test_actual_costs_replace_estimates(tmp_path: Path) -> None:
    """A closed batch counts what its tokens cost, so what was estimated too high is free again."""
    async with simulated(tmp_path, overrides=limited(max_cost_per_day=100.0)) as world:
        world.drop("f.jsonl", questions(9, words=20))

        assert await world.drain()

        ((cost, estimate, tokens),) = _rows(
            world, "SELECT cost_usd, estimated_usd, input_tokens FROM batches"
        )
        assert tokens > 0
        assert cost == pytest.approx(tokens * 0.05)
        assert estimate > 0
        assert cost != estimate
        assert world.summary("f.jsonl")["cost"]["batch_usd"] == pytest.approx(cost, abs=1e-5)


def _rows(world: World, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(world.spool.database)) as connection:
        return [tuple(row) for row in connection.execute(query)]


async def test_enqueued_tokens_keep_to_their_limit(tmp_path: Path) -> None:
    """The provider is never asked for more than it takes, and all of it is answered."""
    limit = 400
    settings = SimulatorSettings(enqueued_tokens={"gpt-5-mini": limit}, run_s=60)
    overrides: dict[str, Any] = {
        "providers": {"openai": {"max_tokens_enqueued": {"gpt-5-mini": limit}}}
    }

    async with simulated(tmp_path, settings=settings, overrides=overrides) as world:
        for number in range(8):
            world.drop(f"f{number}.jsonl", questions(9, words=12))

        assert await world.drain()

        for number in range(8):
            world.assert_conserved(f"f{number}.jsonl", [f"q{n}" for n in range(9)])

        world.assert_bought_once()
        assert column(world, "SELECT max(waits) FROM batches") == [0]
        assert set(column(world, "SELECT remote_status FROM batches")) == {"completed"}


async def test_a_refusal_teaches_the_limit(tmp_path: Path) -> None:
    """After one refusal that names the limit, nothing more is refused for it."""
    settings = SimulatorSettings(enqueued_tokens={"gpt-5-mini": 400}, run_s=600)

    async with simulated(tmp_path, settings=settings) as world:
        for number in range(10):
            world.drop(f"f{number}.jsonl", questions(9, words=12))

        with overheard() as lines:
            assert await world.drain()

        for number in range(10):
            world.assert_conserved(f"f{number}.jsonl", [f"q{n}" for n in range(9)])

        world.assert_bought_once()
        learned = column(world, "SELECT value FROM meta WHERE key LIKE 'max_tokens_enqueued/%'")
        assert [value.partition("@")[0] for value in learned] == ["400"]
        refused = [line for line in told(lines, "batch.failed") if line["errors"]]
        assert 0 < len(refused) < 10
        first_round = max(line["timestamp"] for line in refused) if "timestamp" in refused[0] else 0
        assert first_round == 0  # all of them were under way at once


async def test_what_fits_goes_first_but_nothing_starves(tmp_path: Path) -> None:
    """Small work passes a large batch that has no room yet, but not for ever."""
    limit = 1000
    settings = SimulatorSettings(enqueued_tokens={"gpt-5-mini": limit}, run_s=1200)
    overrides: dict[str, Any] = {
        "providers": {"openai": {"max_tokens_enqueued": {"gpt-5-mini": limit}}}
    }

    async with simulated(tmp_path, settings=settings, overrides=overrides) as world:
        world.drop("first.jsonl", questions(9, words=20))
        dropped: list[str] = []

        def drop() -> None:
            """Drop the rest once the first has taken its room."""
            if not dropped:
                dropped.extend(["large.jsonl", *(f"small-{n:02}.jsonl" for n in range(30))])
                world.drop(dropped[0], questions(9, words=80))

                for name in dropped[1:]:
                    world.drop(name, questions(9, words=10))

        with overheard(batch_created=drop):
            assert await world.drain()

        order = column(world, "SELECT estimated_input FROM batches ORDER BY intended_at, rowid")
        place = order.index(max(order))  # what is left of its file for a second batch is small
        assert 2 < place < len(order) - 5
        world.assert_bought_once()
