"""bespokelabs-curator on a file of prompts: `with_curator.py BASE_URL PROMPTS FOLDER`.

It runs in an environment of its own: see `bench.peers`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bespokelabs import curator  # type: ignore[import-not-found] # in its own environment

POLL_S = 1
"""Whole seconds, and more than none; its own is 60."""


def main() -> None:
    """Answer all prompts."""
    base_url, prompts, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

    with prompts.open() as rows:
        asked = [json.loads(row)["prompt"] for row in rows]

    model = curator.LLM(
        model_name="gpt-5-mini",
        backend="openai",
        batch=True,
        backend_params={
            "base_url": base_url,
            "api_key": "sk-bench",
            "batch_check_interval": POLL_S,
        },
    )
    found = model(asked, working_dir=str(folder / "work"))
    found.dataset.to_json(str(folder / "all.results.jsonl"))


main()
