"""What the daemon tells its metrics while it works, by the page that it leaves."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from commands import ids, read_until, started
from commands import simulated as served
from promptspool.simulator import Fault
from world import simulated

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Return every sample of a page, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the one sample of that name and labels."""
    return found[name, frozenset(labels.items())]


async def test_a_run_is_counted(tmp_path: Path) -> None:
    """Files, requests, tokens, cost, calls and what is left are those of the run."""
    page = tmp_path / "promptspool.prom"
    overrides: dict[str, Any] = {
        "metrics": {"textfile": page},
        "providers": {"openai": {"max_cost_per_day": 100.0}},
        "profiles": {"default": {"max_attempts": 1}},
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        world.simulator.faults.add(Fault(route="batches.create", status=429, times=2))
        world.drop(
            "f.jsonl", [{"id": "a", "prompt": "why?"}, {"id": "b", "prompt": "[[fail:400]]"}]
        )
        world.drop("bad.jsonl", "")

        assert await world.drain()

        found = samples(page.read_text())
        model = {"provider": "openai", "model": "gpt-5-mini"}
        summary = world.summary("f.jsonl")
        assert value(found, "promptspool_requests_total", outcome="answered", **model) == 1
        assert value(found, "promptspool_requests_total", outcome="failed", **model) == 1
        assert value(found, "promptspool_rejected_files_total") == 1
        assert value(found, "promptspool_delivered_files_total") == 1
        assert value(found, "promptspool_claimed_files_total") == 2
        cost = value(found, "promptspool_cost_usd_total", **model)
        assert cost == pytest.approx(summary["cost"]["batch_usd"], abs=1e-6)
        spent = value(found, "promptspool_spend_usd", provider="openai", period="day")
        assert spent == pytest.approx(cost)
        limit = value(found, "promptspool_spend_limit_usd", provider="openai", period="day")
        assert limit == 100.0
        creates = {
            dict(labels)["status"]: count
            for (name, labels), count in found.items()
            if name == "promptspool_http_request_duration_seconds_count"
            and dict(labels)["route"] == "/batches"
            and dict(labels)["method"] == "POST"
        }
        assert creates == {"200": 1, "429": 2}
        assert value(found, "promptspool_paused_seconds_total", provider="openai") > 0
        live = {
            labels: count for (name, labels), count in found.items() if name == "promptspool_jobs"
        }
        assert set(live.values()) == {0}


def test_a_daemon_answers_over_http(tmp_path: Path) -> None:
    """While it runs it shows its page and says that it is alive and ready; 404 for the rest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    config = tmp_path / "promptspool.toml"

    with served(speed=60) as url:
        config.write_text(
            f'[spool]\nsettle = "50ms"\n[providers.openai]\nbase_url = "{url}"\n'
            f'api_key_env = "KEY"\n[profiles.default]\nmodel = "gpt-5-mini"\n'
            f"[metrics]\nlisten = {port}\n"
        )

        with started("run", "--config", config, KEY="sk-simulated") as process:
            read_until(process, "daemon.ready")
            base = f"http://127.0.0.1:{port}"

            for path in ("/healthz", "/readyz"):
                with urllib.request.urlopen(base + path, timeout=30) as answer:  # noqa: S310 - ours
                    assert answer.status == 200

            (tmp_path / "spool/inbox/f.txt").write_text("why?\n")
            read_until(process, "job.delivered")

            with urllib.request.urlopen(f"{base}/metrics", timeout=30) as answer:  # noqa: S310
                found = samples(answer.read().decode())

            assert value(found, "promptspool_delivered_files_total") == 1
            assert ids(tmp_path / "spool/outbox/f.txt.results.jsonl") == ["f-1"]

            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{base}/", timeout=30)  # noqa: S310
