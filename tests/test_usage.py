from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from desk import FIRST, Desk, bad, ok, told
from promptspool.collect.usage import usage_of
from promptspool.model import BatchId, RemoteStatus
from promptspool.pricing import LIST_PRICES, Tokens
from promptspool.wire import AnswerLine, Usage
from world import simulated

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}
ONE = Tokens(input=10, output=2)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Return an empty working folder."""
    return Desk(tmp_path)


def times(count: int) -> Tokens:
    """Return what so many answers of the desk take."""
    return Tokens(input=10 * count, output=2 * count)


def test_what_failed_or_is_asked_again_was_paid_for(desk: Desk) -> None:
    """A settlement counts every answer that says what it took, whatever becomes of its request."""
    desk.response_schema = SCHEMA
    batch = desk.plan(5)
    cut = told(2, '{"sco', "length")
    desk.answer(batch, told(0, '{"score": 3}'), told(1, "{}"), cut, bad(3, 500), bad(4))
    found = desk.settled(batch)

    assert (found.answered, found.failed, found.left) == (1, 2, 2)
    assert found.tokens == times(3)


def test_a_failure_with_usage_was_paid_for(desk: Desk) -> None:
    """An error line counts too where it says what it took."""
    batch = desk.plan(2)
    body = {"error": {"code": "server_error"}, "usage": {"prompt_tokens": 7}}
    failed = bad(1, 500) | {"response": {"status_code": 500, "body": body}}
    desk.answer(batch, ok(0))
    desk.answer(batch, failed, kind="error")

    assert desk.settled(batch).tokens == ONE + Tokens(input=7)


def test_an_answer_that_is_said_twice_was_paid_for_once(desk: Desk) -> None:
    """Answers repeated, of others and of no request are none that anybody paid for."""
    batch = desk.plan(1)
    desk.answer(batch, bad(0, 500), ok(0, "first"), ok(0, "second"), ok(7), b'{"usage": 1')
    desk.answer(batch, ok(0, "third"), kind="error")

    assert desk.settled(batch).tokens == ONE


def test_what_was_not_answered_costs_nothing(desk: Desk) -> None:
    """A batch that never ran, and one without a line on anything, took no tokens."""
    batch = desk.plan(3)
    found = desk.settled(batch, remote_status=RemoteStatus.EXPIRED)

    assert found.tokens == Tokens()


def test_a_settlement_of_an_earlier_version_has_none(desk: Desk) -> None:
    """One that is found on disk without its tokens is good, and took nought as far as is known."""
    batch = desk.plan(1)
    desk.answer(batch, ok(0))
    expected = desk.settled(batch)
    path = desk.folder / f"{FIRST}.settled.json"
    old = json.loads(path.read_bytes())
    del old["tokens"]
    path.write_bytes(json.dumps(old).encode())

    assert desk.settled(batch) == msgspec.structs.replace(expected, tokens=Usage())


@pytest.mark.parametrize("count", ["9", 9.5, -9, 10**30, None, [9]])
def test_a_count_that_cannot_be_is_nought(count: object) -> None:
    """Whatever a provider says, what is counted fits the database and makes no negative cost."""
    body = {"usage": {"prompt_tokens": count, "completion_tokens": 5}}
    response = msgspec.Raw(json.dumps({"status_code": 200, "body": body}).encode())
    found = usage_of(AnswerLine(custom_id="a", response=response))

    assert found.input == 0
    assert found.output in (0, 5)


def test_successors_are_paid_for_beside_their_parents(desk: Desk) -> None:
    """What a request took in one batch and in the next is counted in each."""
    desk.response_schema = SCHEMA
    batch = desk.plan(2)
    desk.answer(batch, told(0, '{"score": 3}'), told(1, "{}"))
    first = desk.settled(batch)
    (planned,) = first.successors
    again = desk.follow(batch, planned)
    desk.answer(again, told(1, '{"score": 1}'))

    assert again.id == BatchId(f"{FIRST}+1")
    assert [first.tokens, desk.settled(again).tokens] == [times(2), times(1)]


@pytest.mark.anyio
async def test_the_summary_is_what_was_paid(tmp_path: Path) -> None:
    """Tokens and cost of a summary are those of all batches; what was expected stands beside it."""
    misfit = "[[answer:misfit once]]"
    profile = {
        "model": "gpt-5-mini",
        "answer_tokens": 30,
        "response_schema": {"type": "object", "additionalProperties": True},
    }

    async with simulated(tmp_path, overrides={"profiles": {"default": profile}}) as world:
        world.drop("f.jsonl", [{"id": f"q{n}", "prompt": f"{misfit} why {n}?"} for n in range(3)])
        assert await world.drain()
        world.assert_conserved("f.jsonl", ["q0", "q1", "q2"])
        world.assert_bought_once()
        creations = [creation.requests for creation in world.simulator.ledger.creations]
        summary, results = world.summary("f.jsonl"), world.results("f.jsonl")

    assert creations == [3, 3]
    taken = summary["tokens"]["gpt-5-mini"]
    answers = [line["response"]["body"]["usage"] for line in results]
    # The same prompts were read twice; only the second answers were delivered.
    assert taken["input"] == 2 * sum(answer["prompt_tokens"] for answer in answers)
    assert taken["output"] > sum(answer["completion_tokens"] for answer in answers)
    cost = LIST_PRICES.cost("gpt-5-mini", Tokens(**taken))
    assert cost is not None
    assert summary["cost"] == {
        "batch_usd": pytest.approx(cost.batch_usd, abs=1e-6),
        "standard_usd": pytest.approx(cost.standard_usd, abs=1e-6),
        "saved_usd": pytest.approx(cost.saved_usd, abs=1e-6),
        "prices_as_of": cost.as_of,
        "estimate": True,
        "upper_bound": False,
        "models": {"gpt-5-mini": pytest.approx(_usd(summary["cost"]))},
    }
    assert summary["estimate"]["tokens"]["gpt-5-mini"]["output"] == 3 * 30
    assert 0 < summary["estimate"]["tokens"]["gpt-5-mini"]["input"] < taken["input"] * 10
    assert summary["estimate"]["batch_usd"] > 0


def _usd(cost: dict[str, float]) -> dict[str, float]:
    return {name: cost[name] for name in ("batch_usd", "standard_usd", "saved_usd")}


@pytest.mark.anyio
async def test_a_price_that_is_not_known_stays_unknown(tmp_path: Path) -> None:
    """A model without a price makes the sum unknown, and is null among the models; never 0."""
    rows = [
        {"id": model, "messages": [{"role": "user", "content": "why?"}], "model": model}
        for model in ("gpt-5-mini", "in-house-1")
    ]

    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", rows)
        assert await world.drain()
        world.assert_conserved("f.jsonl", ["gpt-5-mini", "in-house-1"])
        world.assert_bought_once()
        summary = world.summary("f.jsonl")

    assert set(summary["tokens"]) == {"gpt-5-mini", "in-house-1"}
    assert _usd(summary["cost"]) == dict.fromkeys(("batch_usd", "standard_usd", "saved_usd"))
    assert summary["cost"]["models"]["in-house-1"] is None
    assert summary["cost"]["models"]["gpt-5-mini"]["batch_usd"] > 0
    assert summary["estimate"]["batch_usd"] is None
