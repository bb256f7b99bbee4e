"""A prepared file dropped into a daemon's inbox, and what its plan took."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.baselines import copied_s, settle_disk
from bench.harness import Measured
from bench.inputs import prompts_file
from bench.remote import provided
from bench.running import daemon

if TYPE_CHECKING:
    from pathlib import Path

    from bench.harness import Context
    from bench.inputs import Kind
    from bench.running import Running
    from bench.watched import Usage

PARTS = 20
"""Request files that a million rows make, and the few of a small benchmark."""

MAX_REQUESTS = 50_000
"""Of a batch (OpenAI Batch guide)."""


def parted(rows: int) -> dict[str, Any]:
    """Return settings by which so many rows make `PARTS` batches, or more that are full."""
    return {"providers": {"openai": {"max_requests": min(MAX_REQUESTS, -(-rows // PARTS))}}}


def measured(
    value: float,
    usage: Usage,
    *,
    block_s: float | None,
    provider_cpu_s: float = 0.0,
    baselines: dict[str, float] | None = None,
    **extra: object,
) -> Measured:
    """Return a value with what the daemon and the provider took for it."""
    together = usage.cpu_s + provider_cpu_s
    share = {"provider_share": provider_cpu_s / together} if provider_cpu_s and together else {}
    block = {} if block_s is None else {"longest_block_s": block_s}

    return Measured(
        value=value,
        rss_bytes=usage.rss_bytes,
        pss_bytes=usage.pss_bytes,
        cpu_s=usage.cpu_s,
        baselines=baselines or {},
        extra={**block, **share, **extra},
    )


def compared(measured: Measured, baselines: dict[str, float], **extra: object) -> Measured:
    """Return what was measured, beside its baselines."""
    return replace(measured, baselines=baselines, extra={**measured.extra, **extra})


def planned(running: Running, source: Path, rows: int) -> tuple[Measured, float, float]:
    """Drop a file; return what its plan took, and when it was dropped and planned."""
    settle_disk()
    running.watched.lap()
    dropped_at = running.drop(source)
    planned_at = running.wait_until(running.is_planned)
    usage = running.watched.lap()
    block_s = running.longest_block_s(dropped_at, planned_at)
    plan = measured(rows / (planned_at - dropped_at), usage, block_s=block_s)

    return plan, dropped_at, planned_at


def planned_alone(context: Context, kind: Kind, rows: int) -> Measured:
    """Return what the plan of a file of *rows* took, in rows a second, beside a copy of the same.

    The daemon is killed after it, which saves the upload.
    """
    source = prompts_file(context.data, kind, rows)
    root = context.scratch / kind

    with provided() as provider, daemon(root, provider, settings=parted(rows)) as running:
        plan, *_ = planned(running, source, rows)
        running.watched.process.kill()
        running.watched.process.wait()
        copy_s = copied_s(context, running.requests())

    return compared(plan, {"copy": rows / copy_s})
