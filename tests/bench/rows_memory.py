"""Rows 5 and 12: memory and the event loop, of the other rows and of ten times their rows."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.dropping import measured, parted, planned, planned_alone
from bench.harness import Case, Measured, Skipped, Trial
from bench.inputs import prompts_file
from bench.remote import provided
from bench.running import daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.harness import Context
    from bench.inputs import Kind

MB = 1_000_000

TEN_TIMES_ROOM_BYTES = 60_000 * MB
"""What ten million prompts and their answers take on disk, at the worst moment."""

# Row 5: memory, of what was measured above and of ten times as much.


def _memory(*rows: int) -> Callable[[Context], Sequence[Measured]]:
    def run(context: Context) -> Sequence[Measured]:
        found = [one.rss_bytes for row in rows for one in context.result(row) if one.rss_bytes]

        if not found:
            raise Skipped("it is a sum of other rows, which did not run")

        return [Measured(value=max(found) / MB, rss_bytes=max(found))]

    return run


def _ten_times(context: Context) -> Sequence[Measured]:
    if shutil.disk_usage(context.scratch).free < TEN_TIMES_ROOM_BYTES:
        raise Skipped(f"it takes {TEN_TIMES_ROOM_BYTES // (1000 * MB)} GB of free disk")

    rows = 10 * context.size(1_000_000, 2_000)
    source = prompts_file(context.data, "plain", rows)
    settings = {"polling": {"first": 5, "factor": 1.0}}

    with (
        provided(folder=context.scratch) as provider,
        daemon(context.scratch / "ten", provider, settings=parted(rows) | settings) as running,
    ):
        _, dropped_at, planned_at = planned(running, source, rows)
        provider.wait_for("create", len(running.requests()))
        created_s = provider.last_at("create") - dropped_at
        provider.prepare()
        provider.finish()
        finished_at = time.monotonic()
        running.wait_until(running.is_delivered)
        # The peak of all of it: the laps of the plan were thrown away.
        usage = running.watched.whole()

        return [
            measured(
                usage.rss_bytes / MB,
                usage,
                block_s=running.longest_block_s(),
                provider_cpu_s=provider.cpu_s,
                rows=rows,
                plan_s=planned_at - dropped_at,
                created_s=created_s,
                collect_s=time.monotonic() - finished_at,
            )
        ]


def _ten_times_table(kind: Kind) -> Callable[[Context], Sequence[Measured]]:
    def run(context: Context) -> Sequence[Measured]:
        plan = planned_alone(context, kind, 10 * context.size(1_000_000, 2_000))

        return [
            replace(
                plan,
                value=(plan.rss_bytes or 0) / MB,
                baselines={},
                extra={**plan.extra, "rows_per_s": plan.value},
            )
        ]

    return run


# Row 12: the loop.

PROBED = (1, 3, 4, 6, 7, 11)


def _longest_block(context: Context) -> Sequence[Measured]:
    blocks = {
        f"row {one.case.row}, {one.case.name}": one.longest_block_s * 1000
        for row in PROBED
        for one in context.result(row)
        if one.longest_block_s is not None
    }

    if not blocks:
        raise Skipped("it is the longest of other rows, which did not run")

    return [Measured(value=max(blocks.values()), extra={"by_row_ms": blocks})]


def _megabytes(name: str, limit: int) -> Case:
    return Case(
        row=5,
        name=name,
        unit="MB",
        goal=f"≤ {limit} MB",
        is_met=lambda found: found.most <= limit,
        better="less",
    )


TRIALS = (
    Trial(
        run=_ten_times,
        runs=1,
        in_small=False,
        is_large=True,
        cases=(_megabytes("ten times the rows of 1, 3 and 4, the whole way", 120),),
    ),
    *(
        Trial(
            run=_ten_times_table(kind),
            runs=1,
            in_small=False,
            is_large=True,
            cases=(_megabytes(f"ten times the rows of 2, {kind}", 200),),
        )
        for kind in ("csv", "parquet")
    ),
    Trial(
        run=_memory(1, 3, 4),
        runs=1,
        needs=(1, 3, 4),
        cases=(_megabytes("peak RSS of the process tree in 1, 3 and 4", 120),),
    ),
    Trial(
        run=_memory(2),
        runs=1,
        needs=(2,),
        cases=(_megabytes("peak RSS of the process tree in 2", 200),),
    ),
    Trial(
        run=_longest_block,
        runs=1,
        needs=PROBED,
        cases=(
            Case(
                row=12,
                name="longest block of the event loop in 1, 3, 4, 6, 7 and 11",
                unit="ms",
                goal="≤ 50 ms",
                is_met=lambda found: found.most <= 50,
                better="less",
            ),
        ),
    ),
)
