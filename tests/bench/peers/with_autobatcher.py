"""autobatcher on a file of prompts: `with_autobatcher.py BASE_URL PROMPTS FOLDER`.

It stands in for the client of the API: every prompt is a call that is awaited. It runs in an
environment of its own: see `bench.peers`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from autobatcher import BatchOpenAI  # type: ignore[import-not-found] # in its own environment

POLL_S = 0.05
"""It takes any number; its own is 5."""

WINDOW_S = 0.5
"""How long it waits for more; its own is 10."""


async def _answered(base_url: str, prompts: Path) -> list[Any]:
    client = BatchOpenAI(
        base_url=base_url,
        api_key="sk-bench",
        completion_window="24h",
        poll_interval_seconds=POLL_S,
        batch_window_seconds=WINDOW_S,
    )

    with prompts.open() as rows:
        asked = [
            client.chat.completions.create(
                model="gpt-5-mini",
                messages=[{"role": "user", "content": json.loads(row)["prompt"]}],
            )
            for row in rows
        ]

    answers = await asyncio.gather(*asked)
    await client.close()

    return list(answers)


def main() -> None:
    """Answer all prompts."""
    base_url, prompts, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    answers = asyncio.run(_answered(base_url, prompts))

    with (folder / "all.results.jsonl").open("w") as file:
        file.writelines(answer.model_dump_json() + "\n" for answer in answers)


main()
