"""How cost grows: with rows, files, batches in flight, and finished batches.

Each value is the exponent between the two largest sizes, of the series that grows most: 1 for what
grows in proportion, 0 for what does not grow. `series` has the points, which `--plots` draws.
"""

from __future__ import annotations

import json
import os
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from bench.harness import Case, Measured, Trial
from bench.inputs import prompts_file
from bench.plots import plot, slope
from bench.remote import provided
from bench.rows_scale import sweep_growth
from bench.rows_start import history_growth
from bench.running import daemon
from bench.words import sentences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bench.harness import Context, Summary
    from bench.plots import Points

ROWS = (1_000, 10_000, 100_000, 1_000_000)
FILES = (1, 10, 100, 1_000)
PROMPTS_A_FILE = 10
MB = 1_000_000


def _grown(series: Mapping[str, Points], **about: str) -> Measured:
    """Return the steepest growth; of a single size, as in a small benchmark, none is known."""
    slopes = [slope(points) for points in series.values() if len(points) > 1]

    return Measured(value=max(slopes, default=0.0), extra={"series": dict(series), **about})


# Rows of one file.


def _rows(context: Context) -> Sequence[Measured]:
    names = ("drop → created", "created → results", "CPU", "CPU of the provider")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    memory: list[tuple[float, float]] = []

    for rows in (context.size(rows, rows) for rows in ROWS):
        *found, rss_bytes = _whole(context, rows)
        memory.append((rows, rss_bytes / MB))

        for name, value in zip(names, found, strict=True):
            seconds[name].append((rows, value))

    return [
        _grown(seconds, x="prompts in the file", y="seconds"),
        _grown({"peak RSS": memory}, x="prompts in the file", y="MB"),
    ]


def _whole(context: Context, rows: int) -> tuple[float, float, float, float, float]:
    """Return seconds to created, from there to results, CPU of daemon and provider, and peak RSS.

    The polls are one every 0.2 s, which is in the second figure.
    """
    source = prompts_file(context.data, "plain", rows)

    with (
        provided(is_held=True) as provider,
        daemon(context.scratch / str(rows), provider, is_probed=False) as running,
    ):
        running.watched.lap()
        before_s = provider.cpu_s
        dropped_at = running.drop(source)
        running.wait_until(running.is_planned)
        provider.wait_for("create", len(running.requests()))
        created_s = provider.last_at("create") - dropped_at
        sent_s = provider.cpu_s - before_s
        provider.prepare()
        before_s = provider.cpu_s
        provider.finish()
        finished_at = time.monotonic()
        collect_s = running.wait_until(running.is_delivered) - finished_at
        usage = running.watched.lap()

        provider_s = max(0.01, sent_s + provider.cpu_s - before_s)

        return created_s, collect_s, usage.cpu_s, provider_s, float(usage.rss_bytes)


# Files.


def _files(context: Context) -> Sequence[Measured]:
    names = ("all created", "all delivered", "CPU")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    memory: list[tuple[float, float]] = []

    for files in FILES[:1] if context.is_small else FILES:
        *found, rss_bytes = _dropped(context, files)
        memory.append((files, rss_bytes / MB))

        for name, value in zip(names, found, strict=True):
            seconds[name].append((files, value))

    return [
        _grown(seconds, x="files of 10 prompts, dropped at once", y="seconds"),
        _grown({"peak RSS": memory}, x="files of 10 prompts", y="MB"),
    ]


def _dropped(context: Context, files: int) -> tuple[float, float, float, float]:
    """Return seconds to the last create, to the last summary, CPU of the daemon, and peak RSS."""
    root = context.scratch / f"files-{files}"
    root.mkdir()
    prompts = sentences(seed=files, length=300)
    paths = []

    for number in range(files):
        path = root / f"{number}.jsonl"
        rows = [{"prompt": f"{number}: {text}"} for text in islice(prompts, PROMPTS_A_FILE)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)

    def is_done() -> bool:
        names = os.listdir(running.spool.outbox)  # noqa: PTH208 - many times a second

        return sum(name.endswith(".summary.json") for name in names) == files

    with (
        provided(is_held=False) as provider,
        daemon(root, provider, is_probed=False) as running,
    ):
        running.watched.lap()
        began_at = min([running.drop(path) for path in paths])
        ended_at = running.wait_until(is_done)
        usage = running.watched.lap()
        created_s = provider.last_at("create") - began_at

        return created_s, ended_at - began_at, usage.cpu_s, float(usage.rss_bytes)


# Batches in flight, and history.


def _batches(context: Context) -> Sequence[Measured]:
    points = [(float(batches), cpu_s) for batches, cpu_s in sweep_growth(context)]

    return [_grown({"CPU of a sweep": points}, x="batches in flight", y="seconds")]


def _history(context: Context) -> Sequence[Measured]:
    grown = history_growth(context)
    names = dict.fromkeys(name for _, calls in grown for name in calls)
    series = {
        name: [(float(batches), calls[name]) for batches, calls in grown if name in calls]
        for name in names
    }

    return [_grown(series, x="finished batches in the database", y="µs")]


def pictures(results: Sequence[Summary]) -> Iterator[tuple[str, str]]:
    """Yield the name and the SVG of every plot that there are points for."""
    for found in results:
        about: dict[str, Any] = found.extra

        if found.case.row == 0 and "series" in about:
            name = found.case.name.removeprefix("growth: ")
            yield (
                f"growth-{name.replace(', ', '-').replace(' ', '-')}.svg",
                plot(
                    name.capitalize(),
                    x_label=about["x"],
                    y_label=about["y"],
                    series=about["series"],
                ),
            )


def draw(folder: Path, results: Sequence[Summary]) -> None:
    """Write the plots into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)

    for name, picture in pictures(results):
        (folder / name).write_text(picture)


def _case(name: str) -> Case:
    return Case(row=0, name=f"growth: {name}", unit="exponent", goal="", better="less")


TRIALS = (
    Trial(run=_files, runs=1, cases=(_case("seconds by files"), _case("memory by files"))),
    *(
        Trial(run=run, runs=1, in_small=False, cases=tuple(map(_case, names)))
        for run, *names in (
            (_rows, "seconds by rows", "memory by rows"),
            (_batches, "sweeps by batches"),
            (_history, "queries by history"),
        )
    ),
)
