"""Rows 9, 10 and 11: what an idle daemon takes, and how long one file and one batch wait for it."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from bench.harness import Case, Measured, Trial
from bench.remote import provided
from bench.running import daemon
from bench.words import sentences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.harness import Context, Summary
    from bench.remote import Provider
    from bench.running import Running

MB = 1_000_000

IDLE_S = 600.0
CALM_S = 15.0
"""After so long the threads that a start takes are gone."""

DAEMONS = 5
"""So many idle at once, each on a spool of its own: one run of the benchmark each."""

CPU_LIMIT_PERCENT = 0.1
WAKEUPS_LIMIT = 1.0
RSS_LIMIT_MB = 70.0

LOOK_S = 0.0005
"""How often it is looked whether something is there."""

PROMPTS = 100
"""Of a file that is dropped alone."""

GAP_S = 0.1
"""The longest pause between two drops; in a stream they are twice as dense."""

CLAIMED_LIMIT_MS = 50.0
CREATED_LIMIT_MS = 100.0

ANSWERS = 1_000
POLLED_S = 0.5
"""How often batches are asked for where they are waited for."""

DELIVERED_LIMIT_MS = 500.0

STUCK_S = 60.0
"""Real time, against hangs."""

SLOW_POLLS = {"polling": {"first": 600}}


# Row 9.


@dataclass(slots=True)
class Idling:
    """Daemons with empty inboxes, which all idle when the first run is asked for."""

    _found: list[Sequence[Measured]] = field(default_factory=list)

    def run(self, context: Context) -> Sequence[Measured]:
        """Return what one of them took: CPU, wake-ups of all its threads, and memory."""
        if not self._found:
            self._found = _idled(
                context.scratch,
                daemons=1 if context.is_small else DAEMONS,
                calm_s=0.2 if context.is_small else CALM_S,
                idle_s=2.0 if context.is_small else IDLE_S * min(1.0, context.scale),
            )

        return self._found.pop()


def _idled(
    scratch: Path, *, daemons: int, calm_s: float, idle_s: float
) -> list[Sequence[Measured]]:
    with ExitStack() as stack:
        provider = stack.enter_context(provided())
        running = [
            stack.enter_context(daemon(scratch / f"idle-{number}", provider, is_probed=False))
            for number in range(daemons)
        ]
        time.sleep(calm_s)

        for one in running:
            one.watched.lap()

        time.sleep(idle_s)
        laps = [one.watched.lap() for one in running]

    return [
        [
            Measured(value=100.0 * lap.cpu_s / lap.seconds, cpu_s=lap.cpu_s),
            Measured(value=lap.wakeups / lap.seconds),
            Measured(
                value=lap.rss_bytes / MB, rss_bytes=lap.rss_bytes, extra={"idle_s": lap.seconds}
            ),
        ]
        for lap in laps
    ]


# Row 10.


def drops(context: Context) -> Sequence[Measured]:
    """Drop files by rename, one after another, and then in a stream.

    A file counts as claimed when it is gone from the inbox, which is the last step of a claim, and
    as created when the provider takes the create.
    """
    files = context.size(200, 8)

    with provided() as provider, daemon(context.scratch, provider, settings=SLOW_POLLS) as running:
        alone = _staged(context.scratch / "alone", "alone", files)
        stream = _staged(context.scratch / "stream", "stream", files)
        draw = random.Random(context.run)  # noqa: S311 - irregular is all that it is to be
        running.watched.lap()
        dropped, claimed = _dropped_alone(running, provider, alone, draw)
        alone_usage = running.watched.lap()
        provider.wait_for("create", files)
        found = [_waits(running, provider, dropped, claimed, cpu_s=alone_usage.cpu_s)]
        dropped, claimed = _dropped_in_a_stream(running, stream, draw)
        provider.wait_for("create", 2 * files)
        usage = running.watched.lap()
        found.append(_waits(running, provider, dropped, claimed, cpu_s=usage.cpu_s))

    return [one for pair in found for one in pair]


def _staged(folder: Path, name: str, files: int, prompts: int = PROMPTS) -> list[Path]:
    """Write files, each with prompts of its own, on the file system of the spool."""
    folder.mkdir()
    texts = sentences(seed=files, length=300)
    paths = []

    for number in range(files):
        path = folder / f"{name}-{number:04d}.jsonl"
        rows = [{"prompt": f"{name} {number}: {text}"} for text in islice(texts, prompts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)

    return paths


def _dropped_alone(
    running: Running, provider: Provider, paths: Sequence[Path], draw: random.Random
) -> tuple[dict[str, float], dict[str, float]]:
    """Drop each file once the one before was created, after a pause; return when, and claims."""
    dropped: dict[str, float] = {}
    claimed: dict[str, float] = {}

    for number, path in enumerate(paths, 1):
        time.sleep(draw.uniform(0.0, GAP_S))
        target = running.spool.inbox / path.name
        dropped[path.name] = time.monotonic()
        path.rename(target)
        claimed[path.name] = _gone_at(target)
        provider.wait_for("create", number, timeout_s=STUCK_S)

    return dropped, claimed


def _dropped_in_a_stream(
    running: Running, paths: Sequence[Path], draw: random.Random
) -> tuple[dict[str, float], dict[str, float]]:
    """Drop files at irregular times, whatever becomes of those before; as above."""
    dropped: dict[str, float] = {}
    claimed: dict[str, float] = {}
    waiting: set[str] = set()
    left = list(reversed(paths))
    next_at = time.monotonic()

    while left or waiting:
        now = time.monotonic()

        if left and now >= next_at:
            path = left.pop()
            dropped[path.name] = time.monotonic()
            path.rename(running.spool.inbox / path.name)
            waiting.add(path.name)
            next_at = now + draw.expovariate(2.0 / GAP_S)

        for name in list(waiting):
            if not os.path.lexists(running.spool.inbox / name):
                claimed[name] = time.monotonic()
                waiting.discard(name)

        if now - next_at > STUCK_S:
            raise RuntimeError(f"never claimed: {sorted(waiting)}")

        time.sleep(LOOK_S)

    return dropped, claimed


def _gone_at(path: Path) -> float:
    """Return when *path* was seen to be gone."""
    stuck_at = time.monotonic() + STUCK_S

    while os.path.lexists(path):
        if time.monotonic() > stuck_at:
            raise RuntimeError(f"{path} was never claimed")

        time.sleep(LOOK_S)

    return time.monotonic()


def _waits(
    running: Running,
    provider: Provider,
    dropped: Mapping[str, float],
    claimed: Mapping[str, float],
    *,
    cpu_s: float,
) -> list[Measured]:
    """Return how long files waited to be claimed, and to be created."""
    files = {one["job"]: str(one["file"]) for one in running.events("job.claimed")}
    made = {
        files[str(batch["batch"]).partition(".")[0]]: float(batch["made_at"])
        for batch in provider.batches()
    }
    block = {"longest_block_s": running.longest_block_s(min(dropped.values()), max(made.values()))}

    return [
        _spread([at - dropped[name] for name, at in claimed.items()], cpu_s=cpu_s, extra=block),
        _spread([made[name] - at for name, at in dropped.items()], cpu_s=cpu_s),
    ]


def _spread(
    seconds: Sequence[float], *, cpu_s: float, extra: Mapping[str, object] | None = None
) -> Measured:
    """Return the 99th percentile, in ms, with others."""
    ordered = sorted(1e3 * one for one in seconds)
    shares = {"p50_ms": 0.5, "p90_ms": 0.9, "most_ms": 1.0}
    found = {name: _percentile(ordered, share) for name, share in shares.items()}

    return Measured(
        value=_percentile(ordered, 0.99),
        cpu_s=cpu_s,
        extra={
            "count": len(ordered),
            "mean_ms": statistics.fmean(ordered),
            **found,
            **(extra or {}),
        },
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


# Row 11.


def deliveries(context: Context) -> Sequence[Measured]:
    """Let batches finish at irregular moments, one after another.

    The poll's own delay is taken out: a delivery is timed from the answer of the provider that
    shows the batch completed for the first time, as the provider saw it, until the job's summary,
    which comes last, is in the outbox.
    """
    batches = context.size(50, 3)
    answers = context.size(ANSWERS, 100)
    settings = {"polling": {"first": POLLED_S}}

    with provided() as provider, daemon(context.scratch, provider, settings=settings) as running:
        for path in _staged(context.scratch / "staged", "asked", batches, answers):
            path.rename(running.spool.inbox / path.name)

        provider.wait_for("create", batches)
        provider.prepare()
        files = {one["job"]: str(one["file"]) for one in running.events("job.claimed")}
        draw = random.Random(context.run)  # noqa: S311 - irregular is all that it is to be
        running.watched.lap()
        began_at = time.monotonic()
        seen: dict[str, float] = {}

        for batch in provider.batches():
            time.sleep(draw.uniform(0.0, GAP_S))
            provider.finish([batch["id"]])
            name = files[str(batch["batch"]).partition(".")[0]]
            summary = running.spool.outbox / f"{name}.summary.json"
            seen[batch["id"]] = _there_at(summary)

        usage = running.watched.lap()
        shown = {one["id"]: float(one["shown_at"]) for one in provider.batches()}
        block = {"longest_block_s": running.longest_block_s(began_at, time.monotonic())}

    waits = [at - shown[one] for one, at in seen.items()]

    return [_spread(waits, cpu_s=usage.cpu_s, extra={**block, "answers": answers})]


def _there_at(path: Path) -> float:
    """Return when *path* was seen to be there."""
    stuck_at = time.monotonic() + STUCK_S

    while not os.path.lexists(path):
        if time.monotonic() > stuck_at:
            raise RuntimeError(f"{path} never came")

        time.sleep(LOOK_S)

    return time.monotonic()


def _case(row: int, name: str, unit: str, limit: float) -> Case:
    def is_met(found: Summary) -> bool:
        return found.median <= limit

    goal = f"<= {limit:g} {unit}"

    return Case(row=row, name=name, unit=unit, goal=goal, is_met=is_met, better="less")


TRIALS: tuple[Trial, ...] = (
    Trial(
        cases=(
            _case(9, "idle for 10 minutes: CPU", "%", CPU_LIMIT_PERCENT),
            _case(9, "idle: wake-ups", "/s", WAKEUPS_LIMIT),
            _case(9, "idle: RSS", "MB", RSS_LIMIT_MB),
        ),
        run=Idling().run,
    ),
    Trial(
        cases=(
            _case(10, "dropped alone -> claimed, p99", "ms", CLAIMED_LIMIT_MS),
            _case(10, "dropped alone -> created, p99", "ms", CREATED_LIMIT_MS),
            _case(10, "dropped in a stream -> claimed, p99", "ms", CLAIMED_LIMIT_MS),
            _case(10, "dropped in a stream -> created, p99", "ms", CREATED_LIMIT_MS),
        ),
        run=drops,
    ),
    Trial(
        cases=(
            _case(11, "shown as completed -> 1,000 results there, p99", "ms", DELIVERED_LIMIT_MS),
        ),
        run=deliveries,
    ),
)
