"""Answers: what the simulated model says, a function of the request's body and nothing else.

The same body gets the same bytes today, tomorrow and in another process, so tests compare
answers for equality. Pure, raises nothing: a body of a strange shape gets a strange answer.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from promptspool.simulator.structured import fitting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from promptspool.simulator.failures import Manner
    from promptspool.simulator.wire import Endpoint

Json = dict[str, object]

ANSWERED_AT: Final = 1_767_225_600
"""The `created` of every answer, 2026-01-01: a real time would make answers differ by run."""

_REFUSAL: Final = "I'm sorry, I cannot assist with that."
_FINISH_REASONS: Final[dict[Manner | None, str]] = {"length": "length", "filter": "content_filter"}
_INCOMPLETE: Final[dict[Manner | None, str]] = {
    "length": "max_output_tokens",
    "filter": "content_filter",
}

_SHOWN: Final = 60
_CATEGORIES: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A successful response body and its tokens."""

    body: Json
    input_tokens: int
    output_tokens: int


def answer(
    endpoint: Endpoint, body: Json, *, raw: bytes, dimensions: int, manner: Manner | None = None
) -> Answer:
    """Return the answer to one request.

    *raw* is the body as it was sent, *dimensions* the length of an embedding unless the body
    asks for another, *manner* how a chat or a response is no good.
    """
    digest = hashlib.sha256(raw).hexdigest()[:24]

    match endpoint:
        case "/v1/chat/completions":
            return _chat(body, digest, manner)
        case "/v1/responses":
            return _response(body, digest, manner)
        case "/v1/completions":
            return _completion(body, digest)
        case "/v1/embeddings":
            return _embeddings(body, dimensions)
        case "/v1/moderations":
            return _moderation(body, digest)
        case _:
            assert_never(endpoint)


def prompt_text(body: Mapping[str, object]) -> str:
    """Return all the text a body asks about, joined by newlines, the last part last."""
    fields = (body.get(name) for name in ("messages", "input", "prompt"))
    return "\n".join(text for field in fields for text in _texts(field))


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for part in value:
                yield from _texts(part)
        case {"content": content}:
            yield from _texts(content)
        case {"text": text}:
            yield from _texts(text)


def _asked(value: object) -> str:
    """Return what the last message, part or string of *value* says."""
    last = value[-1] if isinstance(value, list) and value else value
    return " ".join(_texts(last))


def _said(prompt: str, answer_format: object) -> str:
    line = prompt.strip()
    shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
    text = f"Simulated answer to: {shown}"

    # Whoever asks for JSON parses the text; a sentence would break an honest client.
    match answer_format:
        case {"schema": schema} | {"json_schema": {"schema": schema}}:
            return msgspec.json.encode(fitting(schema, text)).decode()
        case {"type": "json_object" | "json_schema"}:
            return msgspec.json.encode({"answer": text}).decode()
        case _:
            return text


def _spoilt(text: str, manner: Manner | None) -> str:
    """Return what is left of a text."""
    match manner:
        case "length":
            return text[: len(text) // 2]
        case "filter" | "refusal":
            return ""
        case "misfit":
            return msgspec.json.encode([text]).decode()  # a schema's root is an object
        case None:
            return text
        case _:
            assert_never(manner)


def _tokens(text: str) -> int:
    return max(1, len(text) // 4)


def _model(body: Mapping[str, object], default: str = "simulated") -> str:
    return str(body.get("model") or default)


def _copies(body: Mapping[str, object]) -> int:
    wanted = body.get("n")
    return wanted if isinstance(wanted, int) and wanted > 0 else 1


def _chat(body: Json, digest: str, manner: Manner | None) -> Answer:
    text = _spoilt(_said(_asked(body.get("messages")), body.get("response_format")), manner)
    message, finish_reason = _message(text, manner), _FINISH_REASONS.get(manner, "stop")
    copies = _copies(body)
    asked, told = _tokens(prompt_text(body)), _tokens(text) * copies
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}
        for index in range(copies)
    ]
    full: Json = {
        "id": f"chatcmpl-{digest}",
        "object": "chat.completion",
        "created": ANSWERED_AT,
        "model": _model(body),
        "choices": choices,
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": told,
            "total_tokens": asked + told,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": None,
    }
    return Answer(body=full, input_tokens=asked, output_tokens=told)


def _message(text: str, manner: Manner | None) -> Json:
    is_refusal = manner == "refusal"
    return {
        "role": "assistant",
        "content": None if is_refusal else text,
        "refusal": _REFUSAL if is_refusal else None,
        "annotations": [],
    }


def _response(body: Json, digest: str, manner: Manner | None) -> Answer:
    wanted = body.get("text")
    answer_format = wanted.get("format") if isinstance(wanted, dict) else None
    text = _spoilt(_said(_asked(body.get("input")), answer_format), manner)
    asked, told = _tokens(prompt_text(body)), _tokens(text)
    reason = _INCOMPLETE.get(manner)
    status = "completed" if reason is None else "incomplete"
    full: Json = {
        "id": f"resp_{digest}",
        "object": "response",
        "created_at": ANSWERED_AT,
        "status": status,
        "error": None,
        "incomplete_details": None if reason is None else {"reason": reason},
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": _model(body),
        "output": [_output(digest, text, status, manner)],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "service_tier": "default",
        "temperature": body.get("temperature", 1.0),
        "text": {"format": answer_format or {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": _response_usage(asked, told),
        "metadata": body.get("metadata") or {},
    }
    return Answer(body=full, input_tokens=asked, output_tokens=told)


def _output(digest: str, text: str, status: str, manner: Manner | None) -> Json:
    part: Json = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    if manner == "refusal":
        part = {"type": "refusal", "refusal": _REFUSAL}

    return {
        "id": f"msg_{digest}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [part],
    }


def _response_usage(asked: int, told: int) -> Json:
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": told,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + told,
    }


def _completion(body: Json, digest: str) -> Answer:
    prompts = body.get("prompt")
    asked_for = prompts if isinstance(prompts, list) else [prompts]
    texts = [_said(_asked(prompt), None) for prompt in asked_for]
    asked, told = _tokens(prompt_text(body)), sum(_tokens(text) for text in texts)
    choices = [
        {"text": text, "index": index, "logprobs": None, "finish_reason": "stop"}
        for index, text in enumerate(texts)
    ]
    full: Json = {
        "id": f"cmpl-{digest}",
        "object": "text_completion",
        "created": ANSWERED_AT,
        "model": _model(body),
        "choices": choices,
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": told,
            "total_tokens": asked + told,
        },
    }
    return Answer(body=full, input_tokens=asked, output_tokens=told)


def _embeddings(body: Json, dimensions: int) -> Answer:
    wanted = body.get("dimensions")
    length = wanted if isinstance(wanted, int) and wanted > 0 else dimensions
    is_base64 = body.get("encoding_format") == "base64"
    data = []

    for index, entry in enumerate(inputs(body.get("input"))):
        vector = _vector(msgspec.json.encode(entry), length)
        packed: object = _packed(vector) if is_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": packed})

    asked = _tokens(prompt_text(body))
    full: Json = {
        "object": "list",
        "data": data,
        "model": _model(body),
        "usage": {"prompt_tokens": asked, "total_tokens": asked},
    }
    return Answer(body=full, input_tokens=asked, output_tokens=0)


def inputs(value: object) -> list[object]:
    """Return the inputs of an embedding or moderation; a list of numbers is one input."""
    match value:
        case [int(), *_]:
            return [value]
        case list():
            return value
        case _:
            return [value]


def _vector(seed: bytes, length: int) -> list[float]:
    """Return a vector of length 1 made from *seed*."""
    words = struct.unpack(f"<{length}i", hashlib.shake_256(seed).digest(4 * length))
    norm = sqrt(sum(word * word for word in words)) or 1.0
    return [round(word / norm, 8) for word in words]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _moderation(body: Json, digest: str) -> Answer:
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    full: Json = {
        "id": f"modr-{digest}",
        "model": _model(body, "omni-moderation-latest"),
        "results": [result for _ in inputs(body.get("input"))],
    }
    return Answer(body=full, input_tokens=_tokens(prompt_text(body)), output_tokens=0)
