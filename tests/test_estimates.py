from __future__ import annotations

import base64
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.check import checked
from promptspool.collect import Stop, settle
from promptspool.intake import Limits
from promptspool.intake.request import BYTES_A_TOKEN
from promptspool.model import Batch, JobId, RemoteStatus
from promptspool.pricing import Tokens, estimated_tokens
from promptspool.settings import PriceSettings, Settings
from promptspool.wire import SettledBatch
from test_intake_plan import OPENAI, planned

if TYPE_CHECKING:
    from promptspool.wire import Manifest

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
IMAGE = "data:image/png;base64," + base64.b64encode(bytes(3000)).decode()


def lines(*rows: object) -> bytes:
    """Return rows as JSONL."""
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def estimate(folder: Path, *rows: object, **changes: Any) -> Tokens:
    """Plan *rows* of one model in a folder of their own; return what they are expected to take."""
    with TemporaryDirectory(dir=folder) as place:
        (found,) = estimated_tokens(planned(Path(place), lines(*rows), **changes).batches).values()

    return found


def content(url: str, prompt: str, *, image: str | None = None) -> Any:
    """Return what a body has for a prompt."""
    if image is None:
        return [{"role": "user", "content": prompt}] if url == CHAT else prompt

    kind = "text" if url == CHAT else "input_text"
    picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": image}}

    if url == RESPONSES:
        picture = {"type": "input_image", "detail": "auto", "image_url": image}

    return [{"role": "user", "content": [{"type": kind, "text": prompt}, picture]}]


@pytest.mark.parametrize("url", [CHAT, RESPONSES])
@pytest.mark.parametrize("image", [None, IMAGE, "https://example.com/a.png"])
@pytest.mark.parametrize("system", [None, "Be as brief as you can."])
def test_however_it_is_dropped_it_is_the_same_estimate(
    tmp_path: Path, url: str, image: str | None, system: str | None
) -> None:
    """A prompt, messages and a ready request that ask the same are expected to take the same."""
    field = "messages" if url == CHAT else "input"
    asked = content(url, "Why?", image=image)
    row = {"prompt": "Why?"} if image is None else {"prompt": "Why?", "image_url": image}
    body = {"model": "gpt-5-mini", field: asked}

    if system is not None and url == CHAT:
        body = {"model": "gpt-5-mini", field: [{"role": "system", "content": system}, *asked]}
    elif system is not None:
        body["instructions"] = system

    ready = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    found = {
        estimate(tmp_path, row, endpoint=url, system=system),
        estimate(tmp_path, {field: asked}, endpoint=url, system=system),
        estimate(tmp_path, ready, endpoint=url),
    }

    assert len(found) == 1


def test_the_text_counts_and_images_do_not(tmp_path: Path) -> None:
    """Every third byte of text is a token; what is in a data URL is none, unless a text has it."""
    plain = estimate(tmp_path, {"prompt": "Why?", "image": "https://example.com/a.png"})
    pictured = estimate(tmp_path, {"prompt": "Why?", "image": IMAGE})
    quoted = estimate(tmp_path, {"prompt": f'Why is it "{IMAGE}"?', "image": IMAGE})
    longer = estimate(tmp_path, {"prompt": "Why?" + "a" * 300, "image": IMAGE})

    assert abs(pictured.input - plain.input) < 20
    assert longer.input - pictured.input == 300 // BYTES_A_TOKEN
    assert quoted.input - pictured.input > len(IMAGE) // BYTES_A_TOKEN


def test_a_text_about_data_urls_is_text_in_messages_too(tmp_path: Path) -> None:
    """A quote after a backslash begins no data URL."""
    text = f'Is "{IMAGE}" an image?'
    found = estimate(tmp_path, {"messages": content(CHAT, text)})

    assert found == estimate(tmp_path, {"prompt": text})
    assert found.input > len(IMAGE) // BYTES_A_TOKEN


@pytest.mark.parametrize("url", [CHAT, RESPONSES])
def test_what_the_profile_adds_counts(tmp_path: Path, url: str) -> None:
    """Instructions and the schema of the answers are read by the model with every request."""
    schema = {"type": "object", "properties": {"a" * 300: {"type": "string"}}}
    plain = estimate(tmp_path, {"prompt": "Why?"}, endpoint=url)
    told = estimate(tmp_path, {"prompt": "Why?"}, endpoint=url, system="a" * 300)
    shaped = estimate(tmp_path, {"prompt": "Why?"}, endpoint=url, response_schema=schema)

    assert told.input - plain.input >= 100
    assert shaped.input - plain.input >= 100
    assert estimate(tmp_path, {"prompt": "Why?"}, endpoint=url, params={"seed": 7}) == plain


def test_an_answer_takes_its_limit_or_what_the_profile_expects(tmp_path: Path) -> None:
    """A limit of the request counts as it is, else the profile's `answer_tokens`; vectors none."""
    body = {"model": "gpt-5-mini", "messages": content(CHAT, "Why?"), "max_completion_tokens": 5}
    ready = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
    odd = {**ready, "body": {**body, "max_completion_tokens": "many"}}
    limited = {"max_completion_tokens": 900}

    assert estimate(tmp_path, {"prompt": "a"}).output == 200
    assert estimate(tmp_path, {"prompt": "a"}, answer_tokens=7).output == 7
    assert estimate(tmp_path, {"prompt": "a"}, {"prompt": "b"}, params=limited).output == 1800
    assert estimate(tmp_path, ready, params=limited).output == 5
    assert estimate(tmp_path, odd, answer_tokens=7).output == 7
    vectors = estimate(tmp_path, {"prompt": "a" * 300}, endpoint=EMBEDDINGS, answers=["jsonl"])
    assert (vectors.input, vectors.output) == (302 // BYTES_A_TOKEN, 0)


def requests_of(folder: Path, manifest: Manifest) -> list[list[bytes]]:
    """Return the request lines of every batch."""
    return [
        (folder / f"{batch.id}.requests.jsonl").read_bytes().splitlines()
        for batch in manifest.batches
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=25), st.integers(1, 300))
def test_splitting_by_tokens_loses_nothing(sizes: list[int], most: int) -> None:
    """Batches keep to the limit of their model, but for one request that is above it alone.

    Together they hold the same requests in the same order, and expect the same, but for what is
    less than a token in each.
    """
    rows = lines(*({"prompt": "a" * (size + 1)} for size in sizes))
    limits = Limits(
        max_requests=50_000, max_bytes=10**8, max_inputs=50_000, max_tokens={"gpt-5-mini": most}
    )

    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        free = planned(Path(first), rows)
        split = planned(Path(second), rows, limits=limits)
        parts = requests_of(Path(second), split)

        assert [[line for part in parts for line in part]] == requests_of(Path(first), free)

    assert [batch.requests for batch in split.batches] == [len(part) for part in parts]
    (whole,), (found,) = (estimated_tokens(one.batches).values() for one in (free, split))
    assert found.output == whole.output
    assert 0 <= whole.input - found.input < len(split.batches)

    for batch, following in zip(split.batches, [*split.batches[1:], None], strict=True):
        assert batch.estimated_input <= most or batch.requests == 1
        # None is closed early, either: the first request of the next one was too much for it.
        assert following is None or batch.estimated_input + following.estimated_input >= most


def test_another_model_has_no_limit(tmp_path: Path) -> None:
    """The limit of one model divides no batch of another."""
    limits = Limits(
        max_requests=50_000, max_bytes=10**8, max_inputs=50_000, max_tokens={"gpt-5": 1}
    )
    rows = [{"messages": content(CHAT, "Why?"), "model": model} for model in ("gpt-5", "o3") * 2]
    found = planned(tmp_path, lines(*rows), limits=limits).batches

    assert sorted((batch.model, batch.requests) for batch in found) == [
        ("gpt-5", 1),
        ("gpt-5", 1),
        ("o3", 2),
    ]


def configuration(folder: Path, **profile: object) -> Settings:
    """Return a configuration with a price of its own."""
    return Settings.model_validate(
        {
            "spool": {"path": folder / "spool"},
            "providers": {"openai": {"base_url": "https://api.openai.com/v1"}},
            "profiles": {"default": {"model": "gpt-5-mini", **profile}},
            "prices": {"o3": PriceSettings(input=1_000, output=2_000).model_dump()},
        }
    )


def test_a_check_says_what_the_plan_will(tmp_path: Path) -> None:
    """The estimates of a check are those of the plan that the daemon would make of the file."""
    rows = [
        {"prompt": "Why is the sky dark at night?"},
        {"messages": content(CHAT, "And by day?", image=IMAGE), "model": "o3"},
    ]
    (tmp_path / "may.jsonl").write_bytes(lines(*rows))
    profile: dict[str, Any] = {"answer_tokens": 77, "system": "Be brief."}
    result = checked(configuration(tmp_path, **profile), tmp_path / "may.jsonl", profile=None)
    plan = planned(tmp_path, lines(*rows), **profile)

    assert result.manifest is not None
    expected = estimated_tokens(plan.batches)
    assert estimated_tokens(result.manifest.batches) == expected
    assert expected["o3"].output == 77
    cost = result.costs["o3"]
    assert cost is not None
    assert cost.batch_usd == pytest.approx((expected["o3"].input * 500 + 77 * 1_000) / 1e6)
    assert list(result.costs) == ["gpt-5-mini", "o3"]
    again = checked(configuration(tmp_path), tmp_path / "may.jsonl", profile=None, output_tokens=3)
    assert again.manifest is not None
    assert {batch.estimated_output for batch in again.manifest.batches} == {3}


def test_successors_share_what_was_expected(tmp_path: Path) -> None:
    """What is handed on takes its share of the estimate, and all of them no more than there was."""
    manifest = planned(tmp_path, lines(*({"prompt": "a" * 50} for _ in range(5))), limits=OPENAI)
    (first,) = manifest.batches
    batch = Batch(
        id=first.id,
        job=JobId(manifest.job),
        provider="openai",
        base_url="https://api.openai.com/v1",
        endpoint=first.endpoint,
        model=first.model,
        requests=first.requests,
        size_bytes=first.size_bytes,
        digest=first.digest,
        estimated_input=first.estimated_input,
        estimated_output=first.estimated_output,
        give_up_at=1e12,
        remote_status=RemoteStatus.REFUSED,
        errors='[{"code": "file_too_large", "message": "413"}]',
    )
    found = settle(
        folder=tmp_path,
        batch=batch,
        max_attempts=3,
        request_backoff_s=30.0,
        stop=Stop(share=0.9, requests=1_000),
        now=0.0,
    )

    assert isinstance(found, SettledBatch)
    assert [one.requests for one in found.successors] == [3, 2]
    inputs = [one.estimated_input for one in found.successors]
    assert inputs == [first.estimated_input * 3 // 5, first.estimated_input * 2 // 5]
    assert [one.estimated_output for one in found.successors] == [600, 400]
