"""The command itself, killed at random moments while the provider does wrong by a random script.

A failure names the seed; its script is the same every time, and the moments are not.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from commands import ids, ran, read_until, simulated, started
from crash.scene import Duplicate

if TYPE_CHECKING:
    from pathlib import Path

    from crash.tally import Tally

SEEDS = int(os.environ.get("PROMPTSPOOL_CRASH_SEEDS", "1"))
"""How many scripts are played."""

KILLS = 5
"""So often it is killed at most; then it may finish."""

SPEED = 600.0
"""Virtual seconds a second at the provider: a batch takes one, which kills do not lengthen."""

MOMENTS_S = (0.0, 0.9)
"""Real seconds from the end of a start to a kill."""

MAX_ATTEMPTS = 3
"""`max_attempts` of the profile: how often a request may be put to the model."""

EXCHANGES = 8
BATCHES = 3

CONFIG = """
[spool]
settle = "50ms"

[providers.openai]
base_url = "{base_url}"
api_key_env = "OPENAI_API_KEY"
max_requests = 6
lookup_grace = "200ms"
timeout = "2s"

[polling]
first = "100ms"
cap = "500ms"

[retry]
first = "50ms"
cap = "200ms"
request_backoff = "100ms"

[profiles.default]
model = "gpt-5-mini"
max_attempts = 3
"""
# The grace is two virtual minutes; by `script` a list may lag behind for half of one.

ROUTES = (
    *("files.create", "files.list", "files.content", "files.delete"),
    *("batches.create", "batches.create", "batches.list", "batches.get"),
)


def script(seed: int) -> list[dict[str, Any]]:
    """Return what goes wrong at the provider: spoiled exchanges and batches, as it takes them.

    The answer to one creation at least is lost. A rate limit is met before the work, whatever else
    after it: 429 is a clear no.
    """
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    spoiled = [
        {
            "type": "exchange",
            "route": chance.choice(ROUTES),
            "nth": chance.randint(1, 6),
            "times": chance.randint(1, 3),
            "point": chance.choice(("before", "after")),
            **_manner(chance),
        }
        for _ in range(EXCHANGES)
    ]
    fates = [
        {
            "type": "batch",
            "nth": chance.randint(1, 3),
            "list_lag_s": float(chance.randint(0, 30)),
            "fail_ordinals": sorted(chance.sample(range(6), chance.randint(0, 3))),
            "torn_lines": chance.randint(0, 1),
            "duplicate": chance.randint(0, 2),
            "late_file_ids": chance.randint(0, 2),
        }
        for _ in range(BATCHES)
    ]

    lost = {
        "type": "exchange",
        "route": "batches.create",
        "nth": chance.randint(1, 3),
        "point": "after",
        "action": chance.choice(("cut", "reset", "empty", "garbage")),
    }

    return [lost, *spoiled, *fates]


def _manner(chance: random.Random) -> dict[str, Any]:
    """Return in which way an exchange is spoiled."""
    limit = {"status": 429, "headers": {"retry-after": "0"}, "point": "before"}

    return chance.choice(
        (
            {"status": chance.choice((500, 502, 503))},
            limit,
            {"action": chance.choice(("cut", "reset", "empty", "garbage"))},
            {"action": "truncate"},
        )
    )


def prepared(root: Path, base_url: str) -> tuple[Path, list[str]]:
    """Make a spool with two files and return its configuration and the ids of the prompts."""
    config = root / "promptspool.toml"
    config.write_text(CONFIG.format(base_url=base_url))
    inbox = root / "spool" / "inbox"
    inbox.mkdir(parents=True)
    rows = [{"id": f"q{number}", "prompt": f"How much is {number}?"} for number in range(16)]
    (inbox / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (inbox / "g.csv").write_text("id,prompt\n" + "".join(f"q{n},Say {n}\n" for n in range(16, 20)))

    return config, [f"q{number}" for number in range(20)]


def killed_until_done(config: Path, chance: random.Random) -> int:
    """Run the command and kill it, until it is done or was killed often enough; count the kills."""
    for kills in range(KILLS):
        with started("run", "--drain", "--config", config, OPENAI_API_KEY="sk-simulated") as daemon:
            read_until(daemon, "daemon.booted")

            try:
                daemon.wait(chance.uniform(*MOMENTS_S))
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            else:
                assert daemon.returncode == 0

                return kills

    return KILLS


def check(root: Path, base_url: str, expected: list[str]) -> None:
    """Hold the laws: each prompt in one place, in order, and nothing bought twice."""
    answer = httpx.get(base_url.removesuffix("/v1") + "/_simulator/ledger", trust_env=False)
    ledger = answer.json()
    bought = Counter(one["metadata"]["promptspool_batch"] for one in ledger["creations"])

    if max(bought.values()) > 1 or max(ledger["requests"].values()) > MAX_ATTEMPTS:
        raise Duplicate(f"{bought} {ledger['requests']}")

    outbox = root / "spool" / "outbox"
    found: list[str] = []

    for name in ("f.jsonl", "g.csv"):
        results = ids(outbox / f"{name}.results.jsonl")
        errors = ids(outbox / f"{name}.errors.jsonl")
        assert results == sorted(results, key=expected.index)
        found += [*results, *errors]

    assert sorted(found) == sorted(expected)
    assert not list((root / "spool" / "working").iterdir())


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_kills_at_random_under_faults(tmp_path: Path, tally: Tally, seed: int) -> None:
    """Killed again and again while the provider fails, it is done in the end, and paid once."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    faults = script(seed)

    with simulated(SPEED) as base_url, tally.point("kills", f"seed {seed}: {faults}"):
        config, expected = prepared(tmp_path, base_url)
        control = base_url.removesuffix("/v1") + "/_simulator/faults"

        for fault in faults:
            httpx.post(control, json=fault, trust_env=False).raise_for_status()

        for _ in range(1, killed_until_done(config, chance)):
            tally.count("kills")

        for _ in range(9):
            last = ran("run", "--drain", "--config", config, OPENAI_API_KEY="sk-simulated")
            assert last.returncode == 0, last.stdout

            # A drain leaves remote files that could not be deleted to the next one.
            if not list((tmp_path / "spool" / "working").iterdir()):
                break

        check(tmp_path, base_url, expected)
