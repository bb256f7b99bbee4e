"""Structured outputs from the dropped file to the delivered one, against the simulated provider."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from world import simulated

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

SCHEMA: dict[str, Any] = {
    "title": "Review",
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "score": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["new", "old"]}},
    },
    "required": ["summary", "score", "tags"],
    "additionalProperties": False,
}
ENDPOINTS = ("/v1/chat/completions", "/v1/responses")


def profile(endpoint: str = ENDPOINTS[0], **changes: object) -> dict[str, Any]:
    """Return a configuration whose default profile asks for answers of the schema."""
    default = {"endpoint": endpoint, "response_schema": SCHEMA, **changes}

    return {"profiles": {"default": default}}


def rows(*marks: str) -> list[dict[str, str]]:
    """Return a row for each mark."""
    return [{"id": f"q{n}", "prompt": f"Question {n} {mark}"} for n, mark in enumerate(marks)]


def ids(count: int) -> list[str]:
    """Return the ids of so many rows."""
    return [f"q{n}" for n in range(count)]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_answers_come_back_as_values(tmp_path: Path, endpoint: str) -> None:
    """Every request asks for the schema, and every result has the value beside the response."""
    async with simulated(tmp_path, overrides=profile(endpoint)) as world:
        world.drop("f.jsonl", rows("", "", ""))
        assert await world.drain()
        world.assert_conserved("f.jsonl", ids(3))
        world.assert_bought_once()
        results = world.results("f.jsonl")

    assert [line["parsed"] for line in results] == [
        {"summary": f"Simulated answer to: Question {n}", "score": 1, "tags": ["new"]}
        for n in range(3)
    ]
    assert list(results[0])[-2:] == ["error", "parsed"]
    bodies = [json.dumps(line["response"]["body"]) for line in results]
    assert all("Simulated answer" in body for body in bodies)


async def test_misfits_are_asked_again_and_bad_luck_is_not(tmp_path: Path) -> None:
    """One that breaks the schema gets another chance; refused, cut and filtered ones cost once."""
    marks = (
        "",
        "[[answer:misfit once]]",
        "[[answer:misfit]]",
        "[[answer:refusal]]",
        "[[answer:length]]",
        "[[answer:filter]]",
    )

    async with simulated(tmp_path, overrides=profile(max_attempts=2)) as world:
        world.drop("f.jsonl", rows(*marks))
        assert await world.drain()
        world.assert_conserved("f.jsonl", ids(6))
        world.assert_bought_once()
        creations = world.simulator.ledger.creations
        errors, summary = world.errors("f.jsonl"), world.summary("f.jsonl")

        assert [creation.requests for creation in creations] == [6, 2]
        assert [line["custom_id"] for line in world.results("f.jsonl")] == ["q0", "q1"]

    assert [(line["custom_id"], line["error"]["code"], line["attempts"]) for line in errors] == [
        ("q2", "schema_mismatch", 2),
        ("q3", "refused", 1),
        ("q4", "truncated", 1),
        ("q5", "content_filtered", 1),
    ]
    assert errors[0]["error"]["message"].endswith('is not of type "object"')
    assert all(line["response"]["status_code"] == 200 for line in errors)
    assert summary["errors_by_code"] == {
        "schema_mismatch": 1,
        "refused": 1,
        "truncated": 1,
        "content_filtered": 1,
    }


async def test_what_did_not_fit_is_in_the_bill(tmp_path: Path) -> None:
    """The summary counts the tokens of every answer, also of the one that was asked again."""
    usages = []

    for name, mark in (("once", "[[answer:misfit once]]"), ("never", "[[answer:nobody once]]")):
        async with simulated(tmp_path / name, overrides=profile()) as world:
            world.drop("f.jsonl", rows(mark))
            assert await world.drain()
            usages.append(world.summary("f.jsonl")["tokens"]["gpt-5-mini"]["input"])

    assert usages[0] == 2 * usages[1]
