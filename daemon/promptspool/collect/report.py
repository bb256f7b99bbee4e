"""Report: the summary of a job, which is delivered last and says that it is done.

Pure but for reading line numbers from the working folder. Lets `OSError` through (environment).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from promptspool.collect.answers import user_lines
from promptspool.collect.remedy import faults_of
from promptspool.collect.shapes import made
from promptspool.pricing import LIST_PRICES, estimated_tokens, total
from promptspool.wire import TABLES, UNREADABLE, SettledBatch, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.collect.products import Tally
    from promptspool.model import Batch, Job
    from promptspool.pricing import Cost, Prices
    from promptspool.wire import Manifest

MAX_FAULTS = 20
"""Complaints about one batch that the summary repeats."""

_USD_DIGITS = 6
"""Decimals of a dollar: a single request costs thousandths of a cent."""


def summarise(  # noqa: PLR0913 (one keyword for each thing it tells of)
    *,
    job: Job,
    manifest: Manifest,
    batches: Sequence[Batch],
    tally: Tally,
    folder: Path,
    stem: str,
    delivered_at: float,
    prices: Prices = LIST_PRICES,
) -> dict[str, object]:
    """Return what the summary says of a job, ready for JSON.

    *stem* is the name that its products share, for people. Times are ISO 8601 in UTC. Tokens and
    costs are those of all answers of all batches, also of those that were asked for again: they
    were paid for. Those that a retry has *kept* of the job before it are not among them: they were
    paid for then. Costs are estimates in USD, None where a model's price is unknown.
    """
    requests = tally.results + tally.errors
    kept = manifest.kept
    asked = [batch for batch in batches if kept is None or batch.id != kept.id]
    settled = [(batch, _settled(folder, batch)) for batch in asked]
    closed = [(batch, end) for batch, end in settled if end is not None]

    return {
        "job": job.id,
        "file": manifest.source,
        "profile": job.profile,
        "status": "delivered",
        "retry_of": job.retry_of,
        "counts": {"requests": requests, "results": tally.results, "errors": tally.errors},
        "kept": 0 if kept is None else kept.requests,
        "errors_by_code": dict(tally.codes.most_common()),
        "tokens": _tokens(closed),
        "cost": _cost(closed, prices),
        "estimate": _estimate(manifest, job, prices),
        "batches": [_batch(batch, end, folder) for batch, end in settled],
        "ignored_lines": {
            "malformed": tally.noise.malformed,
            "foreign": tally.noise.foreign,
            "duplicate": tally.noise.duplicate,
        },
        "timings": _timings(job, delivered_at),
        "files": {
            "results": f"{stem}.results.jsonl",
            "errors": f"{stem}.errors.jsonl" if tally.errors else None,
            "unreadable": f"{stem}.{UNREADABLE}" if (folder / UNREADABLE).exists() else None,
            **{_key(name): f"{stem}.{name}" for name in made(folder)},
        },
        "left_out": tally.left_out,
    }


def _key(product: str) -> str:
    return "table" if product in TABLES else product


def _timings(job: Job, delivered_at: float) -> dict[str, object]:
    return {
        "claimed_at": _iso(job.claimed_at),
        "planned_at": _iso(job.planned_at),
        "delivered_at": _iso(delivered_at),
        "duration_s": round(delivered_at - job.claimed_at, 3),
    }


def _settled(folder: Path, batch: Batch) -> SettledBatch | None:
    """Return what became of a batch's requests; None for one that was closed without an answer."""
    try:
        settled = (folder / f"{batch.id}.settled.json").read_bytes()
    except FileNotFoundError:
        return None

    return msgspec.json.decode(settled, type=SettledBatch)


def _tokens(closed: Sequence[tuple[Batch, SettledBatch]]) -> dict[str, dict[str, int]]:
    """Return what each model that was paid for took."""
    sums: dict[str, Usage] = {}

    for batch, end in closed:
        if end.tokens != Usage():
            sums[batch.model] = sums.get(batch.model, Usage()) + end.tokens

    return {model: msgspec.structs.asdict(tokens) for model, tokens in sorted(sums.items())}


def _cost(closed: Sequence[tuple[Batch, SettledBatch]], prices: Prices) -> dict[str, object]:
    """Return what all batches cost, and those of each model that answered."""
    models: dict[str, list[Cost | None]] = {}

    for batch, end in closed:
        if end.answered or end.tokens != Usage():
            cost = prices.paid(end, batch.model, base_url=batch.base_url)
            models.setdefault(batch.model, []).append(cost)

    sums = {model: total(costs) for model, costs in sorted(models.items())}
    whole = total(sums.values())

    return {
        **_usd(whole),
        "prices_as_of": None if whole is None else whole.as_of,
        "estimate": True,
        "upper_bound": whole is not None and whole.is_upper_bound,
        "models": {model: None if cost is None else _usd(cost) for model, cost in sums.items()},
    }


def _usd(cost: Cost | None) -> dict[str, float | None]:
    """Return a cost, rounded so that what was paid and saved is the standard price."""
    if cost is None:
        return {"batch_usd": None, "standard_usd": None, "saved_usd": None}

    batch, standard = round(cost.batch_usd, _USD_DIGITS), round(cost.standard_usd, _USD_DIGITS)

    return {
        "batch_usd": batch,
        "standard_usd": standard,
        "saved_usd": round(standard - batch, _USD_DIGITS),
    }


def _estimate(manifest: Manifest, job: Job, prices: Prices) -> dict[str, object] | None:
    """Return what was expected of the job when it was planned; None if an earlier version did."""
    expected = estimated_tokens(manifest.batches)

    if not any(used.input for used in expected.values()):
        return None

    costs = prices.estimates(manifest.batches, base_url=job.base_url)

    return {
        "tokens": {
            model: {"input": used.input, "output": used.output} for model, used in expected.items()
        },
        **_usd(total(costs.values())),
    }


def _batch(batch: Batch, settled: SettledBatch | None, folder: Path) -> dict[str, object]:
    return {
        "id": batch.id,
        "remote_id": batch.remote_id,
        "status": batch.remote_status,
        "model": batch.model,
        "endpoint": batch.endpoint,
        "requests": batch.requests,
        "completed": batch.completed,
        "failed": batch.failed,
        "attempt": batch.attempt,
        "created_at": _iso(batch.created_at),
        "ended_at": _iso(batch.ended_at),
        "faults": complaints(folder=folder, batch=batch),
        "stopped": None if settled is None else settled.stopped,
    }


def complaints(*, folder: Path, batch: Batch) -> list[dict[str, object]]:
    """Return what the provider said against a whole batch, with the lines of the dropped file.

    `line` is the provider's, of the request file; `source_line` is the user's. The first twenty.
    """
    faults = faults_of(batch)[:MAX_FAULTS]
    named = [fault.line for fault in faults if fault.line is not None]
    lines = user_lines(folder=folder, batch=batch.id, lines=named) if named else {}

    return [
        {
            "code": fault.code,
            "message": fault.message,
            "line": fault.line,
            "source_line": None if fault.line is None else lines.get(fault.line),
        }
        for fault in faults
    ]


def _iso(at: float | None) -> str | None:
    if at is None:
        return None

    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
