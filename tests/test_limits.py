"""The provider's limits: other work goes on, nobody loses an attempt, and the log says it once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest

from promptspool.simulator import BatchFault, Fault, SimulatorSettings
from promptspool.simulator.wire import BatchError
from world import START, overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from world import World

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0


def questions(count: int, *, mark: str = "") -> list[dict[str, Any]]:
    """Return *count* rows with ids `q0`, `q1` …; each prompt ends with *mark*."""
    return [{"id": f"q{n}", "prompt": f"What is {n} plus {n}? {mark}"} for n in range(count)]


def hold(world: World, files: Sequence[str], *, count: int = 3) -> None:
    """Hold the laws over *files* of *count* questions that were all answered at the first try."""
    for name in files:
        world.assert_conserved(name, [f"q{n}" for n in range(count)])
        assert world.errors(name) == []
        assert {batch["attempt"] for batch in world.summary(name)["batches"]} == {0}

    world.assert_bought_once()


def told(lines: Sequence[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    """Return the lines of one event."""
    return [line for line in lines if line["event"] == event]


def body_of(code: str, message: str = "no") -> str:
    """Return the body of a refusal."""
    return json.dumps({"error": {"code": code, "message": message, "type": "requests"}})


@pytest.mark.parametrize("way", ["at once", "later"])
async def test_want_of_tokens_costs_no_attempt(tmp_path: Path, way: str) -> None:
    """A batch for which the account has no tokens left waits, be it told at once or later."""
    code = "token_limit_exceeded"

    async with simulated(tmp_path) as world:
        if way == "at once":
            world.simulator.faults.add(
                Fault(route="batches.create", times=4, status=400, body=body_of(code))
            )
        else:
            errors = [BatchError(code=code, message="Enqueued token limit reached")]
            world.simulator.faults.add_batch(BatchFault(ending="failed", times=4, errors=errors))

        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        hold(world, ["f.jsonl"])
        assert len(world.simulator.ledger.uploads) == 1
        assert world.clock.monotonic() > 60 + 120 + 240 + 480


RATE_LIMITS: dict[str, dict[str, str]] = {
    "in seconds": {"Retry-After": "3600"},
    "as a date": {
        "Retry-After": format_datetime(datetime.fromtimestamp(START + HOUR_S, UTC), usegmt=True)
    },
    "in milliseconds": {"Retry-After-Ms": "3600000"},
    "without a time": {},
}


@pytest.mark.parametrize("headers", RATE_LIMITS.values(), ids=RATE_LIMITS)
async def test_a_rate_limit_on_creates_stops_no_other_work(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """While creates are refused for an hour, what runs is polled, fetched and delivered."""
    async with simulated(tmp_path) as world:
        body = body_of("rate_limit_exceeded")
        limit = Fault(
            route="batches.create", nth=2, times=2, status=429, headers=headers, body=body
        )
        world.simulator.faults.add(limit)

        with overheard(batch_created=lambda: _drop_once(world, "g.jsonl")) as lines:
            world.drop("f.jsonl", questions(3))

            assert await world.drain()

        hold(world, ["f.jsonl", "g.jsonl"])
        assert world.summary("f.jsonl")["timings"]["duration_s"] < 1500
        paused, resumed = told(lines, "provider.paused"), told(lines, "provider.resumed")
        assert [line["work"] for line in paused] == ["creations"]
        assert len(resumed) == 1
        assert {line["level"] for line in told(lines, "stage.retried")} == {"debug"}

        if headers:
            assert world.summary("g.jsonl")["timings"]["duration_s"] > HOUR_S


def _drop_once(world: World, name: str) -> None:
    if not world.simulator.ledger.uploads[1:] and not (world.spool.inbox / name).exists():
        world.drop(name, questions(3))


async def test_creations_keep_to_the_hour(tmp_path: Path) -> None:
    """No more batches are asked for in an hour than the provider takes; the rest waits."""
    allowed = {"providers": {"openai": {"max_creates": 5}}, "lanes": {"control": 1}}
    settings = SimulatorSettings(max_creates_per_hour=5, run_s=60)

    async with simulated(tmp_path, settings=settings, overrides=allowed) as world:
        names = [f"f{number}.jsonl" for number in range(12)]

        for name in names:
            world.drop(name, questions(3))

        with overheard() as lines:
            assert await world.drain()

        hold(world, names)
        assert world.simulator.ledger.calls["batches.create"] == 12
        assert 2 * HOUR_S < world.clock.monotonic() < 3 * HOUR_S
        assert [line["work"] for line in told(lines, "provider.paused")] == ["creations"] * 2
        assert len(told(lines, "provider.resumed")) == 2


async def test_a_limit_on_creations_that_nobody_told_us(tmp_path: Path) -> None:
    """An account that takes fewer than we think says when it will take more, and is believed."""
    settings = SimulatorSettings(max_creates_per_hour=5, run_s=60)

    async with simulated(tmp_path, settings=settings) as world:
        names = [f"f{number}.jsonl" for number in range(12)]

        for name in names:
            world.drop(name, questions(3))

        with overheard() as lines:
            assert await world.drain()

        hold(world, names)
        assert len(world.simulator.ledger.creations) == 12
        assert 2 * HOUR_S < world.clock.monotonic() < 3 * HOUR_S
        assert len(told(lines, "provider.paused")) == len(told(lines, "provider.resumed")) == 2


@pytest.mark.parametrize(
    "code", ["insufficient_quota", "billing_hard_limit_reached", "project_spend_limit_exceeded"]
)
async def test_an_empty_account_stops_only_what_costs_money(tmp_path: Path, code: str) -> None:
    """Without quota nothing is created, and what is paid for is delivered; later all goes on."""
    async with simulated(tmp_path) as world:
        refusal = Fault(
            route="batches.create", nth=2, times=12, status=429, body=body_of(code, "pay first")
        )
        world.simulator.faults.add(refusal)

        with overheard(batch_created=lambda: _drop_once(world, "g.jsonl")) as lines:
            world.drop("f.jsonl", questions(3))

            assert await world.drain()

        hold(world, ["f.jsonl", "g.jsonl"])
        assert world.summary("f.jsonl")["timings"]["duration_s"] < 1500
        assert world.summary("g.jsonl")["timings"]["duration_s"] > HOUR_S
        paused = told(lines, "provider.paused")
        assert [(line["work"], "pay first" in line["reason"]) for line in paused] == [
            ("creations", True)
        ]
        assert len(told(lines, "provider.resumed")) == 1


async def test_a_key_revoked_and_replaced_while_running(tmp_path: Path) -> None:
    """A key that ends in the middle of the day pauses the work until another one is in its file."""
    async with simulated(tmp_path) as world:
        key = world.root / "key"

        def revoke() -> None:
            key.write_text("sk-revoked")

        def replace() -> None:
            key.write_text("sk-simulated")

        with overheard(batch_created=revoke, provider_paused=replace) as lines:
            world.drop("f.jsonl", questions(3))

            assert await world.drain()

        hold(world, ["f.jsonl"])
        assert len(world.simulator.ledger.creations) == 1
        assert [line["work"] for line in told(lines, "provider.paused")] == ["all"]
        assert len(told(lines, "provider.resumed")) == 1


async def test_a_refused_key_is_said_once(tmp_path: Path) -> None:
    """However long a key is refused, it is said once, and the work of another provider goes on."""
    async with simulated(tmp_path) as world, simulated(tmp_path / "2", clock=world.clock) as other:
        second = {"base_url": other.base_url, "api_key_file": str(tmp_path / "key")}
        profile = {"model": "gpt-5-mini", "provider": "second"}
        world.overrides = {"providers": {"second": second}, "profiles": {"second": profile}}
        world.simulator.faults.add(
            *(
                Fault(route=route, times=8, status=401, body=body_of("invalid_api_key"))
                for route in ("files.create", "files.list", "batches.create")
            )
        )
        world.drop("f.jsonl", questions(3))
        world.drop("second/g.jsonl", questions(3))

        with overheard() as lines:
            assert await world.drain()

        hold(world, ["f.jsonl", "second/g.jsonl"])
        assert world.summary("second/g.jsonl")["timings"]["duration_s"] < 1500
        assert {line["provider"] for line in told(lines, "provider.paused")} == {"openai"}
        assert len(told(lines, "provider.resumed")) == len(told(lines, "provider.paused"))


async def test_what_is_hopeless_is_not_bought_again(tmp_path: Path) -> None:
    """When one error hits most of a batch again, it stops there, and log and summary say so."""
    soon = {"retry": {"stop_requests": 10}, "profiles": {"default": {"max_attempts": 9}}}

    async with simulated(tmp_path, overrides=soon) as world:
        rows = questions(20, mark="[[fail:500]]")
        rows[7] = questions(8)[7]
        world.drop("f.jsonl", rows)

        with overheard() as lines:
            assert await world.drain()

        world.assert_conserved("f.jsonl", [f"q{n}" for n in range(20)])
        world.assert_bought_once()
        assert [creation.requests for creation in world.simulator.ledger.creations] == [20, 19]
        assert [line["custom_id"] for line in world.results("f.jsonl")] == ["q7"]
        assert {line["attempts"] for line in world.errors("f.jsonl")} == {2}
        assert [line["code"] for line in told(lines, "batch.stopped")] == ["server_error"]
        stopped = [batch["stopped"] for batch in world.summary("f.jsonl")["batches"]]
        assert stopped == [None, "server_error"]


async def test_the_age_of_a_job_is_capped(tmp_path: Path) -> None:
    """A job that is turned away for longer than `max_age` ends in errors that say why."""
    short = {"retry": {"max_age": "3h"}}

    async with simulated(tmp_path, overrides=short) as world:
        errors = [BatchError(code="token_limit_exceeded", message="Enqueued token limit reached")]
        world.simulator.faults.add_batch(BatchFault(ending="failed", times=None, errors=errors))
        world.drop("f.jsonl", questions(3))

        assert await world.drain()

        world.assert_conserved("f.jsonl", ["q0", "q1", "q2"])
        assert {line["error"]["code"] for line in world.errors("f.jsonl")} == {"max_age_exceeded"}
        assert 3 * HOUR_S < world.clock.monotonic() < 6 * HOUR_S
