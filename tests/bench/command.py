"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.growth import draw
from bench.harness import FAILED, Context, run_trials
from bench.machine import machine
from bench.table import document, lines_of, merged, plain, write_json, write_readme

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.harness import Trial

MODULES = (
    "rows_throughput",
    "rows_memory",
    "rows_scale",
    "rows_latency",
    "rows_start",
    "growth",
    "peers",
)
"""Each has `TRIALS`."""

HERE = Path(__file__).resolve().parent
DATA = Path(tempfile.gettempdir()) / "promptspool-bench"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, print the table, and write what else is asked for.

    Exits with 1 if a trial failed.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    options.data.mkdir(parents=True, exist_ok=True)
    began_at = time.monotonic()

    with tempfile.TemporaryDirectory(prefix="run-", dir=options.data) as scratch:
        context = Context(
            data=options.data,
            scratch=Path(scratch),
            is_small=options.small,
            scale=options.scale,
            say=_say,
        )
        skipped = run_trials(
            wanted(trials(), options.rows, is_large=options.large),
            context,
            runs=1 if options.small else options.runs,
            clear=lambda: _empty(context.scratch),
        )

    seconds = time.monotonic() - began_at
    about = machine(options.data)
    found = document(
        context.results, skipped, machine=about, is_small=options.small, seconds=seconds
    )
    sys.stdout.write(plain(lines_of(found)) + "\n")

    if options.small or options.scale != 1:
        sys.stdout.write("\nThe names are of the full sizes; these figures are of smaller ones.\n")

    if options.json:
        if options.json.exists():
            found = merged(json.loads(options.json.read_bytes()), found)

        write_json(options.json, found)

    if options.plots:
        draw(options.plots, context.results)

    if options.readme:
        write_readme(HERE / "README.md", lines_of(found), about)

    if any(reason.startswith(FAILED) for reason in skipped.values()):
        sys.exit(1)


def trials() -> list[Trial]:
    """Return the trials of every module that is there."""
    names = [f"bench.{name}" for name in MODULES]
    specs = map(importlib.util.find_spec, names)
    there = [spec.name for spec in specs if spec is not None and spec.origin is not None]

    return [trial for name in there for trial in importlib.import_module(name).TRIALS]


def wanted(found: Sequence[Trial], rows: Sequence[int], *, is_large: bool = False) -> list[Trial]:
    """Return the trials of *rows*, all if there are none, with those that they sum up."""
    found = [trial for trial in found if is_large or not trial.is_large]

    if not rows:
        return list(found)

    asked = set(rows)

    for trial in found:
        if asked & {case.row for case in trial.cases}:
            asked |= set(trial.needs)

    return [trial for trial in found if asked & {case.row for case in trial.cases}]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/bench", description=__doc__)
    parser.add_argument(
        "rows", nargs="*", type=int, help="numbers of rows, 0 for growth and peers; all without"
    )
    parser.add_argument("--runs", type=int, default=5, help="of each trial (5)")
    parser.add_argument("--large", action="store_true", help="ten times the rows, too (row 5)")
    parser.add_argument("--small", action="store_true", help="once, with small sizes: seconds")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes (1)")
    parser.add_argument("--data", type=Path, default=DATA, help=f"where inputs are kept ({DATA})")
    parser.add_argument(
        "--json", type=Path, help="write all figures there; those of other rows stay"
    )
    parser.add_argument("--plots", type=Path, help="draw the growth of costs into this folder")
    parser.add_argument("--readme", action="store_true", help="put the table into the README")

    return parser


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
