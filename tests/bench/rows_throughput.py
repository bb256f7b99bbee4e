"""Rows 1 to 4 and 6: a million prompts through the real daemon, and what that takes.

Row 1 ends with the manifest, which comes after all request files are on the platter. Row 3 ends
when the provider has answered the last create. For row 4 the daemon is stopped there, and the
answers are put where a download puts them: it is then counted from the start of the next daemon
(`daemon.booted`) to the summary in the outbox.
"""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from typing import TYPE_CHECKING

from bench.baselines import copied_s, curled_s, settle_disk, settled_s, tutorial
from bench.dropping import MAX_REQUESTS, compared, measured, parted, planned, planned_alone
from bench.harness import Case, Measured, Summary, Trial
from bench.inputs import PROMPT_BYTES, prompts_file
from bench.remote import provided
from bench.running import daemon
from bench.settling import download

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.harness import Context
    from bench.inputs import Kind
    from bench.remote import Provider
    from bench.running import Running

MB = 1_000_000

BATCH_BYTES = 190 * MB
"""Of the one large batch of row 6, and of the answers to it."""

SLOW_POLLS = {"polling": {"first": 600}}
"""For daemons that are to be quiet once their batches are created."""


def _monotonic(at: float) -> float:
    """Return a moment in Unix seconds on the monotonic clock."""
    return at + time.monotonic() - time.time()


# Rows 1, 3 and 4 in one go: the same million prompts.


def _million(context: Context) -> Sequence[Measured]:
    rows = context.size(1_000_000, 2_000)
    source = prompts_file(context.data, "plain", rows)
    root = context.scratch / "million"

    with provided() as provider:
        with daemon(root, provider, settings=parted(rows) | SLOW_POLLS) as running:
            plan, dropped_at, planned_at = planned(running, source, rows)
            created = _created(running, provider, dropped_at, planned_at)
            requests = running.requests()
            copy_s = copied_s(context, requests)
            slow = tutorial(context, provider, rows)
            curl_s = curled_s(provider, requests)

        job = requests[0].parent
        _answer(provider, running, job)
        alone_s, results_s = _alone(context, running, job)
        answered = _answered(root, provider, rows)

    return [
        compared(plan, {"tutorial": slow["build"], "copy": rows / copy_s}),
        compared(
            created,
            {"row 1 and curl": planned_at - dropped_at + curl_s},
            curl_s=curl_s,
            tutorial=slow,
        ),
        compared(answered, {"tutorial": slow["merge"], "copy": rows / results_s}),
        Measured(value=rows / alone_s, baselines={"tutorial": slow["merge"]}),
    ]


def _created(
    running: Running, provider: Provider, dropped_at: float, planned_at: float
) -> Measured:
    """Wait for the batches; the value counts from the drop on, all else from the plan on."""
    provider.wait_for("create", len(running.requests()))
    usage = running.watched.lap()
    created_at = provider.last_at("create")

    return measured(
        created_at - dropped_at,
        usage,
        block_s=running.longest_block_s(planned_at, created_at),
        provider_cpu_s=provider.cpu_s,
    )


def _answer(provider: Provider, running: Running, job: Path) -> None:
    """Put the answers where the downloads of a daemon that is stopped would have put them."""
    provider.prepare()

    for batch in provider.batches():
        if batch["batch"] is not None:  # the others are the tutorial's
            shutil.copyfile(batch["output"], job / f"{batch['batch']}.output.jsonl")

    download(running.spool, time.time())


def _alone(context: Context, running: Running, job: Path) -> tuple[float, float]:
    """Return the seconds of the stages without a daemon, and those of copying their results."""
    folder = context.scratch / "alone" / job.name
    folder.mkdir(parents=True)

    for path in job.iterdir():
        (folder / path.name).hardlink_to(path)

    settle_disk()
    alone_s = settled_s(running.spool.root, folder)
    results_s = copied_s(context, [folder / "results.jsonl"])
    shutil.rmtree(folder)

    return alone_s, results_s


def _answered(root: Path, provider: Provider, rows: int) -> Measured:
    settle_disk()
    before_s = provider.cpu_s

    with daemon(root, provider, settings=parted(rows) | SLOW_POLLS) as running:
        delivered_at = running.wait_until(running.is_delivered)
        usage = running.watched.lap()
        (booted,) = running.events("daemon.booted")
        booted_at = _monotonic(datetime.fromisoformat(booted["timestamp"]).timestamp())
        seconds = delivered_at - booted_at
        block_s = running.longest_block_s(booted_at, delivered_at)

    return measured(
        rows / seconds, usage, block_s=block_s, provider_cpu_s=provider.cpu_s - before_s
    )


# Rows 1 and 2: other kinds of files, planned alone.


def _plan(kind: Kind) -> Callable[[Context], Sequence[Measured]]:
    def run(context: Context) -> Sequence[Measured]:
        rows = context.size(1_000_000, 2_000)

        return [planned_alone(context, kind, rows)]

    return run


# Row 6: one batch as large as it may be.


def _large(context: Context) -> Sequence[Measured]:
    rows = context.size(MAX_REQUESTS, 500)
    length = BATCH_BYTES // MAX_REQUESTS - PROMPT_BYTES
    source = prompts_file(context.data, "plain", rows, length=length)

    with (
        provided(answer_bytes=length) as provider,
        daemon(context.scratch / "large", provider, settings={"polling": {"cap": 0.2}}) as running,
    ):
        settle_disk()
        running.watched.lap()
        running.drop(source)
        planned_at = running.wait_until(running.is_planned)
        sent = sum(path.stat().st_size for path in running.requests())
        provider.wait_for("create", 1)
        up_s = provider.last_at("upload") - planned_at
        provider.prepare()
        provider.finish()
        running.wait_until(running.is_delivered)
        usage = running.watched.lap()
        (batch,) = provider.batches()
        came = running.spool.outbox.joinpath(f"{source.name}.results.jsonl").stat().st_size

        return [
            measured(
                usage.rss_bytes / MB,
                usage,
                block_s=running.longest_block_s(),
                provider_cpu_s=provider.cpu_s,
                sent_mb=sent / MB,
                results_mb=came / MB,
                upload_mb_s=sent / MB / up_s,
                download_mb_s=came / MB / (batch["fetched_at"] - batch["shown_at"]),
            )
        ]


def _is_row_1_met(found: Summary) -> bool:
    is_fast = found.median >= 400_000 and found.ratios.get("tutorial", 4) >= 4

    return is_fast and found.ratios["copy"] >= 1 / 4


_ONE = "1,000,000 prompts, drop → 20 batch files on disk, durable"
_ONE_GOAL = "≥ 400,000/s, ≥ 4 times tutorial, ≥ ¼ of copy"

TRIALS = (
    Trial(
        run=_million,
        cases=(
            Case(row=1, name=_ONE, unit="prompts/s", goal=_ONE_GOAL, is_met=_is_row_1_met),
            Case(
                row=3,
                name="the same, drop → all 20 batches created",
                unit="s",
                goal="≤ 1.5 times row 1 and curl",
                is_met=lambda found: found.ratios["row 1 and curl"] >= 1 / 1.5,
                better="less",
            ),
            Case(
                row=4,
                name="1,000,000 answers on disk → results in the outbox, durable",
                unit="answers/s",
                goal="≥ 300,000/s",
                is_met=lambda found: found.median >= 300_000,
            ),
            Case(row=4, name="the stages alone, in one process", unit="answers/s", goal=""),
        ),
    ),
    Trial(
        run=_plan("ids"),
        in_small=False,
        cases=(
            Case(
                row=1,
                name="the same with ids",
                unit="prompts/s",
                goal="≥ 400,000/s, ≥ ¼ of copy",
                is_met=_is_row_1_met,
            ),
        ),
    ),
    *(
        Trial(
            run=_plan(kind),
            in_small=kind == "csv",
            cases=(
                Case(
                    row=2,
                    name=f"the same as {kind}",
                    unit="rows/s",
                    goal="≥ 250,000/s",
                    is_met=lambda found: found.median >= 250_000,
                ),
            ),
        )
        for kind in ("csv", "parquet")
    ),
    Trial(
        run=_large,
        cases=(
            Case(
                row=6,
                name="one batch of 190 MB, up and down",
                unit="MB",
                goal="≤ 90 MB",
                is_met=lambda found: found.most <= 90,
                better="less",
            ),
        ),
    ),
)
