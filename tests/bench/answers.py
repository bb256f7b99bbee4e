"""Output files: an answer of about 1 KB to each request of a file, in shuffled order."""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from bench.words import sentences

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = 64
"""So many different answers there are."""

ANSWER_BYTES = 330
"""Of the answer's own text; with what stands around it a line has about 1 KB."""

_ID = re.compile(rb'"custom_id": ?("(?:[^"\\]|\\.)*")')


def make_output(source: Path, target: Path, *, answer_bytes: int = ANSWER_BYTES) -> int:
    """Write answers of *answer_bytes* to the requests in *source* to *target*; return how many."""
    with source.open("rb", buffering=1 << 20) as file:
        ids = list(_ids(file))

    shuffle = random.Random(len(ids))  # noqa: S311 - the same disorder each time
    shuffle.shuffle(ids)
    ends = _ends(answer_bytes)

    with target.open("wb", buffering=1 << 20) as out:
        out.writelines(
            b'{"id":"batch_req_%032d","custom_id":%b,%b' % (number, one, ends[number % KINDS])
            for number, one in enumerate(ids)
        )

    return len(ids)


def _ids(lines: Iterator[bytes]) -> Iterator[bytes]:
    for line in lines:
        found = _ID.search(line)

        if found is not None:
            yield found[1]


@lru_cache
def _ends(length: int) -> list[bytes]:
    texts = islice(sentences(seed=KINDS, length=length), KINDS)

    return [_end(number, text) for number, text in enumerate(texts)]


def _end(number: int, text: str) -> bytes:
    """Return the rest of a line, behind its custom_id."""
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": 75,
        "completion_tokens": 120 + number,
        "total_tokens": 195 + number,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
    body = {
        "id": f"chatcmpl-{number:024d}",
        "object": "chat.completion",
        "created": 1_795_000_000,
        "model": "gpt-5-mini-2025-08-07",
        "choices": [choice],
        "usage": usage,
        "service_tier": "default",
        "system_fingerprint": None,
    }
    response = {"status_code": 200, "request_id": f"{number:032d}", "body": body}

    return json.dumps({"response": response, "error": None})[1:].encode() + b"\n"
