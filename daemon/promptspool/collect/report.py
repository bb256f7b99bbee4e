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
from promptspool.pricing import PRICES_AS_OF, Tokens, cost
from promptspool.wire import TABLES, UNREADABLE, SettledBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from promptspool.collect.products import Tally
    from promptspool.model import Batch, Job
    from promptspool.pricing import Cost
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
) -> dict[str, object]:
    """Return what the summary says of a job, ready for JSON.

    *stem* is the name that its products share, for people. Times are ISO 8601 in UTC; costs are
    estimates in USD, None where a model's price is unknown.
    """
    requests = tally.results + tally.errors

    return {
        "job": job.id,
        "file": manifest.source,
        "profile": job.profile,
        "status": "delivered",
        "counts": {"requests": requests, "results": tally.results, "errors": tally.errors},
        "errors_by_code": dict(tally.codes.most_common()),
        "tokens": {model: _tokens(tokens) for model, tokens in sorted(tally.tokens.items())},
        "cost": _cost(tally.tokens),
        "batches": [_batch(batch, folder) for batch in batches],
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


def _tokens(tokens: Tokens) -> dict[str, int]:
    return {
        "input": tokens.input,
        "cached_input": tokens.cached_input,
        "output": tokens.output,
        "reasoning": tokens.reasoning,
    }


def _cost(tokens: Mapping[str, Tokens]) -> dict[str, object]:
    """Return the sum over the models whose price is known, and each of them."""
    costs = {model: cost(model, used) for model, used in sorted(tokens.items())}
    known = [one for one in costs.values() if one is not None]
    models = {model: None if one is None else _usd([one]) for model, one in costs.items()}
    sums = _usd(known) if known or not costs else dict.fromkeys(_usd([]))

    return {**sums, "prices_as_of": PRICES_AS_OF, "estimate": True, "models": models}


def _usd(costs: Sequence[Cost]) -> dict[str, float]:
    """Return the sums of *costs*, rounded so that what was paid and saved is the standard price."""
    batch = round(sum(one.batch_usd for one in costs), _USD_DIGITS)
    standard = round(sum(one.standard_usd for one in costs), _USD_DIGITS)

    return {
        "batch_usd": batch,
        "standard_usd": standard,
        "saved_usd": round(standard - batch, _USD_DIGITS),
    }


def _batch(batch: Batch, folder: Path) -> dict[str, object]:
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
        "stopped": _stopped(folder, batch),
    }


def _stopped(folder: Path, batch: Batch) -> str | None:
    """Return the error for which a batch's requests were not asked again, None if they were."""
    try:
        settled = (folder / f"{batch.id}.settled.json").read_bytes()
    except FileNotFoundError:
        return None

    return msgspec.json.decode(settled, type=SettledBatch).stopped


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
