"""Rows 7 and 8: very many files at once, and very many batches in flight."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from bench.filling import REQUESTS, Filling, configure, fill
from bench.harness import Case, Measured, Trial
from bench.inputs import prompts_file
from bench.remote import provided
from bench.running import daemon, environ
from bench.watched import Watched
from bench.words import sentences
from promptspool.provider.base import BATCH_KEY, DIGEST_KEY, SPOOL_KEY
from promptspool.settings import Settings
from promptspool.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.harness import Context
    from bench.remote import Provider
    from bench.running import Running
    from bench.watched import Usage

LATENCY_S = 0.05
CREATED_LIMIT_S = 6.0

TWO_HOURS_S = 7_200.0
LISTS_LIMIT = 0.7
RSS_LIMIT_MB = 100.0
CPU_LIMIT_PERCENT = 1.0

MOVING = 10
"""At each reading of the list one of so many batches has gone on."""

MB = 1_000_000

SLOW_POLLS = {"polling": {"first": 600}}


# Row 7.


def many_files(context: Context) -> Sequence[Measured]:
    """Drop very many small files at once.

    The time is from the first rename into the inbox until the provider has answered the last
    create, of a small file. `file_p50_s` and the like are those of single files.
    """
    return [_dropped(context, files=context.size(1_000, 20), large=0)]


def many_beside_a_large_one(context: Context) -> Sequence[Measured]:
    """Drop a large file and then the small ones, which are not to wait for it."""
    return [_dropped(context, files=context.size(1_000, 20), large=context.size(50_000, 500))]


def _dropped(context: Context, *, files: int, large: int) -> Measured:
    root = context.scratch
    staged = _staged(root / "staged", files)

    with (
        provided(latency_s=LATENCY_S) as provider,
        daemon(root, provider, settings=SLOW_POLLS) as running,
    ):
        provider_cpu_s = provider.cpu_s
        running.watched.lap()

        if large:
            running.drop(prompts_file(context.data, "plain", large), "a-large-one.jsonl")

        began_at = time.monotonic()

        for path in staged:
            path.rename(running.spool.inbox / path.name)

        dropped_s = time.monotonic() - began_at
        provider.wait_for("create", files + bool(large))
        usage = running.watched.lap()
        created = _created_after(running, provider, began_at)
        small = sorted(seconds for file, seconds in created.items() if file.startswith("few-"))
        extra = {
            "longest_block_s": running.longest_block_s(began_at, time.monotonic()),
            "provider_cpu_s": provider.cpu_s - provider_cpu_s,
            "dropping_s": dropped_s,
            "file_p50_s": statistics.median(small),
            "file_p99_s": small[int(0.99 * (len(small) - 1))],
            "file_first_s": small[0],
            **_lanes(provider.calls(), files),
        }

        if large:
            extra["large_s"] = created["a-large-one.jsonl"]

    return Measured(
        value=small[-1],
        rss_bytes=usage.rss_bytes,
        pss_bytes=usage.pss_bytes,
        cpu_s=usage.cpu_s,
        extra=extra,
    )


def _staged(folder: Path, files: int) -> list[Path]:
    """Write small files, each with prompts of its own, on the file system of the spool."""
    folder.mkdir()
    prompts = sentences(seed=files, length=300)
    paths = []

    for number in range(files):
        path = folder / f"few-{number:05d}.jsonl"
        rows = [{"prompt": f"{number}: {text}"} for text in islice(prompts, REQUESTS)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)

    return paths


def _created_after(running: Running, provider: Provider, began_at: float) -> dict[str, float]:
    """Return how long after *began_at* the create of each file was answered."""
    files = {one["job"]: str(one["file"]) for one in running.events("job.claimed")}

    return {
        files[str(batch["batch"]).partition(".")[0]]: batch["made_at"] + LATENCY_S - began_at
        for batch in provider.batches()
    }


def _lanes(calls: Sequence[tuple[str, float, float]], files: int) -> dict[str, Any]:
    """Return how many calls were in flight from the first upload to the last create.

    `ideal_s` is what all calls take with the lanes as they are set by default, kept full, and
    `lanes_for_the_goal` how wide each must be.
    """
    lanes = Settings().lanes
    widths = {"upload": lanes.transfer, "create": lanes.control}
    began_at = min(began for route, began, _ in calls if route in widths)
    ended_at = max(ended for route, _, ended in calls if route in widths)
    found: dict[str, Any] = {"widths": widths, "calls_span_s": ended_at - began_at}

    for route, width in widths.items():
        mine = [(began, ended) for name, began, ended in calls if name == route]
        busy_s = sum(ended - began for began, ended in mine)
        found[f"{route}s_in_flight_mean"] = busy_s / (ended_at - began_at)
        found[f"{route}s_in_flight_most"] = _most_at_once(mine)
        found[f"{route}s_lane_use"] = busy_s / (max(e for _, e in mine) - mine[0][0]) / width

    found["ideal_s"] = max(files * LATENCY_S / width for width in widths.values()) + LATENCY_S
    found["lanes_for_the_goal"] = -int(-files * LATENCY_S // CREATED_LIMIT_S)

    return found


def _most_at_once(calls: Sequence[tuple[float, float]]) -> int:
    changes = sorted([(began, 1) for began, _ in calls] + [(ended, -1) for _, ended in calls])
    count = most = 0

    for _, change in changes:
        count += change
        most = max(most, count)

    return most


# Row 8.


def in_flight(context: Context) -> Sequence[Measured]:
    """Keep very many batches running for two virtual hours.

    CPU is what the process used from its first idle moment on, its sweeps too, for each of these
    7,200 seconds; time jumps whenever the daemon waits.
    """
    batches = context.size(10_000, 200)
    seconds = 200.0 if context.is_small else TWO_HOURS_S
    found, usage, counts, notes = flown(context.scratch, batches=batches, seconds=seconds)
    sweeps = found["sweeps_cpu_s"]
    late = [float(line.split()[1]) for line in notes.read_text().splitlines() if line[0] != "p"]
    extra = {
        "longest_block_s": max(late, default=0.0),
        "sweeps": len(sweeps),
        "sweep_cpu_s": statistics.median(sweeps) if sweeps else 0.0,
        "real_s": found["real_s"],
        "turns": found["turns"],
        "calls": counts,
    }
    lists = (counts.get("list", 0)) / batches
    rss_mb = usage.rss_bytes / MB
    between = 100.0 * (found["cpu_s"] - sum(sweeps)) / found["virtual_s"]
    percent = 100.0 * found["cpu_s"] / found["virtual_s"]

    return [
        Measured(
            value=lists,
            rss_bytes=usage.rss_bytes,
            pss_bytes=usage.pss_bytes,
            cpu_s=found["cpu_s"],
            extra=extra,
        ),
        Measured(value=rss_mb),
        Measured(value=between),
        Measured(value=percent),
    ]


def flown(
    root: Path, *, batches: int, seconds: float
) -> tuple[dict[str, Any], Usage, dict[str, int], Path]:
    """Return what a process found that had *batches* in flight for *seconds* of its own time.

    With it what it took, how often the provider was called, and the file with its loop's lateness.
    """
    notes = root / "loop.txt"

    with provided(moving=MOVING) as provider:
        _put(provider, root / "flown", batches)
        config = configure(root / "flown", provider.base_url)
        command = [sys.executable, "-m", "bench.virtual", str(config), str(seconds), str(notes)]

        with Watched(command, output=root / "found.json", environ=environ()) as watched:
            code = watched.process.wait()
            usage = watched.lap()

            if code:
                raise RuntimeError(f"the daemon did not get there: {watched.complaint()}")

        return json.loads((root / "found.json").read_text()), usage, provider.counts(), notes


def sweep_growth(context: Context) -> list[tuple[int, float]]:
    """Return the CPU seconds of one sweep by how many batches are in flight."""
    grown = []

    for batches in (100, 1_000, 10_000)[: 1 if context.is_small else 3]:
        root = context.scratch / f"grown-{batches}"
        root.mkdir()
        found, *_ = flown(root, batches=batches, seconds=1_200.0)
        grown.append((batches, found["cpu_s"] / max(1, len(found["sweeps_cpu_s"]))))

    return grown


def _put(provider: Provider, root: Path, batches: int) -> None:
    """Fill the spool in *root* with jobs of ten batches, and the provider with the same."""
    live = fill(
        root,
        Filling(live=batches, finished=0, a_job=10),
        base_url=provider.base_url,
        now=time.time(),
    )
    identity = Spool(root / "spool").identity()
    provider.tell(
        "put",
        batches=[
            {
                "id": batch.remote_id,
                "input_file_id": batch.input_file,
                "requests": batch.requests,
                "created_at": batch.created_at,
                "metadata": {
                    SPOOL_KEY: identity,
                    BATCH_KEY: batch.id,
                    DIGEST_KEY: batch.digest,
                },
            }
            for batch in live
        ],
    )


def _many(
    name: str, run: Callable[[Context], Sequence[Measured]], *, in_small: bool = True
) -> Trial:
    case = Case(
        row=7,
        name=name,
        unit="s",
        goal=f"<= {CREATED_LIMIT_S:g} s",
        is_met=lambda found: found.median <= CREATED_LIMIT_S,
        better="less",
    )

    return Trial(cases=(case,), run=run, in_small=in_small)


def _flight(what: str, unit: str, limit: float = math.inf) -> Case:
    return Case(
        row=8,
        name=f"10,000 batches in flight for 2 virtual hours: {what}",
        unit=unit,
        goal=f"<= {limit:g} {unit}" if math.isfinite(limit) else "",
        is_met=lambda found: found.median <= limit,
        better="less",
    )


TRIALS: tuple[Trial, ...] = (
    _many("1,000 files of 10 at 50 ms a call: drop -> all created", many_files),
    _many("the same behind a file of 50,000", many_beside_a_large_one, in_small=False),
    Trial(
        cases=(
            _flight("list requests a batch", "requests", LISTS_LIMIT),
            _flight("peak RSS", "MB", RSS_LIMIT_MB),
            _flight("CPU between sweeps", "%", CPU_LIMIT_PERCENT),
            _flight("CPU, sweeps included", "%"),
        ),
        run=in_flight,
    ),
)
