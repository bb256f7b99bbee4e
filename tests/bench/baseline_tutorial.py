"""The tutorial's way, with the standard library: what most people write the first time.

All lines are built in memory with `json.dumps`, uploaded at once, and become one batch; it is
polled with doubling sleeps, its whole output is read, and answers are found in a dict by id.
`python -m bench.baseline_tutorial BASE_URL INPUT FOLDER PHASES` prints the seconds of each phase as
JSON. PHASES is `build` for the first one alone, or `all`.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

BOUNDARY = "tutorial"
HEADERS = {"Authorization": "Bearer sk-bench"}


def build(source: Path, folder: Path) -> tuple[bytes, list[str]]:
    """Return the request lines and the ids; they are in `requests.jsonl` too."""
    rows = [json.loads(line) for line in source.read_text().split("\n") if line]
    ids = [f"request-{number}" for number in range(len(rows))]
    lines = [
        json.dumps(
            {
                "custom_id": custom_id,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "gpt-5-mini",
                    "messages": [{"role": "user", "content": row["prompt"]}],
                },
            }
        )
        for custom_id, row in zip(ids, rows, strict=True)
    ]
    content = "\n".join(lines).encode() + b"\n"
    (folder / "requests.jsonl").write_bytes(content)

    return content, ids


def create(base_url: str, content: bytes) -> dict[str, Any]:
    """Upload the lines and create the batch."""
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="requests.jsonl"'
        f"\r\n\r\n"
    ).encode()
    body += content + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    file = json.loads(_answer(base_url, "/files", body, kind))
    order = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch: dict[str, Any] = json.loads(
        _answer(base_url, "/batches", json.dumps(order).encode(), {})
    )

    return batch


def poll(base_url: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Ask again and again, twice as long after each time."""
    pause_s = 0.05

    while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(pause_s)
        pause_s *= 2
        batch = json.loads(_answer(base_url, f"/batches/{batch['id']}", None, {}))

    return batch


def merge(content: bytes, ids: list[str], folder: Path) -> None:
    """Write the answers in the order of the input."""
    answers = {line["custom_id"]: line for line in map(json.loads, content.decode().splitlines())}

    with (folder / "results.jsonl").open("w") as out:
        for custom_id in ids:
            out.write(json.dumps(answers[custom_id]) + "\n")


def _answer(base_url: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(  # noqa: S310 - our own address
        base_url + path, data=body, headers=HEADERS | headers
    )

    with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
        content: bytes = answer.read()

    return content


def main() -> None:
    """Do the phases and tell how long each took."""
    base_url, source, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    times = {}
    at = time.monotonic()

    def took(phase: str) -> None:
        nonlocal at
        times[phase] = time.monotonic() - at
        at = time.monotonic()

    content, ids = build(source, folder)
    took("build")

    if sys.argv[4] == "all":
        batch = create(base_url, content)
        took("create")
        batch = poll(base_url, batch)
        took("poll")
        output = _answer(base_url, f"/files/{batch['output_file_id']}/content", None, {})
        took("download")
        merge(output, ids, folder)
        took("merge")

    sys.stdout.write(json.dumps(times) + "\n")


if __name__ == "__main__":
    main()
