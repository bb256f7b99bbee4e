"""openai-batch on a file of prompts: `with_openai_batch.py BASE_URL PROMPTS FOLDER`.

Its own objects convert, submit, poll and download; what it leaves to its user is to begin another
batch where one is full. It runs in an environment of its own: see `bench.peers`.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from openai_batch import Batch  # type: ignore[import-not-found] # in its own environment
from openai_batch.providers import Provider  # type: ignore[import-not-found] # as above

POLL_S = 0.05
"""It takes any number; its own is 60."""


def main() -> None:
    """Answer all prompts."""
    base_url, prompts, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    provider = Provider(name="bench", base_url=base_url, api_key="sk-bench")
    paths = _converted(prompts, folder, provider)
    batches = [
        Batch(
            submission_input_file=str(path),
            output_file=str(path.with_suffix(".results.jsonl")),
            provider=provider,
        )
        for path in paths
    ]

    for batch in batches:
        batch.submit_wait_download(interval=POLL_S)


def _converted(prompts: Path, folder: Path, provider: Provider) -> list[Path]:
    """Write request files with its own converter, and return where they are."""
    paths: list[Path] = []
    batch = None

    with ExitStack() as files:
        for row in files.enter_context(prompts.open()):
            message = {"role": "user", "content": json.loads(row)["prompt"]}

            if batch is None or batch.n_requests >= provider.batch_input_max_requests:
                paths.append(folder / f"requests-{len(paths)}.jsonl")
                batch = Batch(
                    submission_input_file=files.enter_context(paths[-1].open("w")),
                    provider=provider,
                    custom_id_prefix=f"part-{len(paths)}",
                )

            batch.add_to_batch(model="gpt-5-mini", messages=[message])

    return paths


main()
