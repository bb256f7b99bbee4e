"""Baseline (b): other programs for the same work, from a file of prompts to answers on disk.

Each runs in a virtual environment of its own, which is made when it is first needed and kept beside
the inputs; one that cannot be installed is left out, and the reason kept. They are told to poll as
often as they can be, and the provider is done with a batch at once, so that waiting is hardly
compared; but some wait by themselves, so CPU seconds are the fair figure. They do not do the same:
openai-batch leaves the provider's files as they came, in their disorder and without a look at them;
autobatcher and bespokelabs-curator parse every answer; none of them writes durably.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.filling import configure
from bench.harness import Case, Measured, Skipped, Trial
from bench.inputs import prompts_file
from bench.remote import provided
from bench.running import environ
from bench.watched import Watched
from promptspool.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.harness import Context
    from bench.remote import Provider

MB = 1_000_000

SCRIPTS = Path(__file__).with_name("peers")

INSTALLING_S = 900.0
LIMIT_S = 240.0
"""Real time; a peer that takes longer is ended and has no figure."""

OURS = "promptspool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another program."""

    name: str
    requirements: tuple[str, ...]
    """As they were tried."""
    script: str
    most: int = 1_000_000
    """So many prompts it was seen to answer within minutes."""


PEERS = (
    Peer(
        name="openai-batch",
        # It imports httpx without asking for it.
        requirements=("openai-batch==0.3.4", "openai==3.54.0", "httpx==0.28.1"),
        script="with_openai_batch.py",
    ),
    Peer(
        name="autobatcher",
        requirements=("autobatcher==0.12.0", "openai==2.54.0"),
        script="with_autobatcher.py",
    ),
    Peer(
        name="bespokelabs-curator",
        requirements=("bespokelabs-curator==0.1.31", "openai==2.30.0", "datasets==3.6.0"),
        script="with_curator.py",
        most=10_000,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Took:
    """What the same work took of one program."""

    cpu_s: float
    seconds: float
    rss_mb: float
    batches: int
    answers: int
    why: str | None = None
    """Why there is no figure; None if there are."""


def compared(prompts: int, context: Context) -> Sequence[Measured]:
    """Let each program answer the same prompts, in turn and each from its start to its end."""
    rows = context.size(prompts, 200)
    source = prompts_file(context.data, "plain", rows)
    took: dict[str, _Took] = {}
    left_out: dict[str, str] = {}

    for name, command in [(OURS, None), *((peer.name, peer) for peer in PEERS)]:
        folder = context.scratch / name
        folder.mkdir()

        try:
            found = (
                _ours(folder, source) if command is None else _peer(command, context, source, rows)
            )
        except Skipped as error:
            left_out[name] = str(error)
            continue

        if found.answers == rows:
            took[name] = found
        else:
            left_out[name] = f"{found.answers:,} of {rows:,} answers; {found.why or 'no word why'}"

        shutil.rmtree(folder)

    if OURS not in took:
        raise RuntimeError(f"promptspool did not get there: {left_out[OURS]}")

    return _compared(took, rows, left_out)


def _compared(took: Mapping[str, _Took], rows: int, left_out: Mapping[str, str]) -> list[Measured]:
    """Return CPU, wall, memory and batches, each with those of the peers as baselines."""
    ours = took[OURS]
    peers = {name: one for name, one in took.items() if name != OURS}
    extra: dict[str, object] = {
        "prompts": rows,
        "cpu_us_a_prompt": {name: 1e6 * one.cpu_s / rows for name, one in took.items()},
        "left_out": dict(left_out),
    }

    return [
        Measured(
            value=ours.cpu_s,
            cpu_s=ours.cpu_s,
            rss_bytes=int(ours.rss_mb * MB),
            baselines={name: one.cpu_s for name, one in peers.items()},
            extra=extra,
        ),
        Measured(value=ours.seconds, baselines={name: one.seconds for name, one in peers.items()}),
        Measured(value=ours.rss_mb, baselines={name: one.rss_mb for name, one in peers.items()}),
        Measured(value=ours.batches, baselines={name: one.batches for name, one in peers.items()}),
    ]


def _ours(folder: Path, source: Path) -> _Took:
    """Drop the file, and let the daemon run until all is delivered."""
    spool = Spool(folder / "spool")
    spool.make()
    shutil.copy(source, spool.inbox / "prompts.jsonl")

    with provided(is_held=False) as provider:
        config = configure(folder, provider.base_url)
        config.write_text(config.read_text() + "\n[polling]\nfirst = 0.05\nfactor = 1.0\n")
        command = [sys.executable, "-m", OURS, "run", "--drain", "--config", str(config)]

        return _run(command, environ(), folder, provider, spool.outbox)


def _peer(peer: Peer, context: Context, source: Path, rows: int) -> _Took:
    """Run the script of *peer*; raises `Skipped` if it cannot be installed, or takes too long."""
    if rows > peer.most:
        raise Skipped(f"{peer.most:,} prompts took it half a minute of CPU")

    python = _installed(peer, context.data / "peers")
    folder = context.scratch / peer.name

    with provided(is_held=False) as provider:
        arguments = [str(SCRIPTS / peer.script), provider.base_url, str(source), str(folder)]

        return _run([str(python), *arguments], _alone(folder, provider), folder, provider, folder)


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    provider: Provider,
    outbox: Path,
) -> _Took:
    before_s = _children_cpu_s()

    with Watched(command, output=folder / "said.txt", environ=environment) as watched:
        why = None

        try:
            code = watched.process.wait(LIMIT_S)
            why = watched.complaint()[-300:] if code else None
        except subprocess.TimeoutExpired:
            why = f"it was ended after {LIMIT_S:g} s"

        usage = watched.lap()

    return _Took(
        cpu_s=_children_cpu_s() - before_s,
        seconds=usage.seconds,
        rss_mb=usage.rss_bytes / MB,
        batches=provider.counts().get("create", 0),
        answers=sum(_lines(path) for path in outbox.glob("*results.jsonl")),
        why=why,
    )


def _children_cpu_s() -> float:
    """Return the CPU seconds of all children that were waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)

    return used.ru_utime + used.ru_stime


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _installed(peer: Peer, folder: Path) -> Path:
    """Return the interpreter of the environment of *peer*, made if it is not there.

    Raises `Skipped` if it cannot be made; what failed once is tried again in the next benchmark.
    """
    home = folder / "-".join(one.replace("==", "-") for one in peer.requirements)
    python = home / "bin" / "python"
    is_whole = home / "whole"

    if not is_whole.exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *peer.requirements]

        try:
            done = subprocess.run(  # noqa: S603 - our own command
                command, capture_output=True, text=True, timeout=INSTALLING_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Skipped(f"not installed within {INSTALLING_S:g} s") from error

        if done.returncode:
            raise Skipped(f"not installed: {done.stderr.strip().rpartition(chr(10))[2][:300]}")

        is_whole.touch()

    return python


def _alone(folder: Path, provider: Provider) -> dict[str, str]:
    """Return an environment that has nothing of ours, and asks peers to call nobody else."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}

    return kept | {
        "HOME": str(folder),
        "OPENAI_API_KEY": "sk-bench",
        "OPENAI_BASE_URL": provider.base_url,
        "TELEMETRY_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
    }


def _trial(prompts: int, runs: int | None) -> Trial:
    work = f"{prompts:,} prompts, file -> answers on disk"
    cases = tuple(
        Case(row=0, name=f"{work}: {what}", unit=unit, goal="", better="less")
        for what, unit in (
            ("CPU", "s"),
            ("wall", "s"),
            ("peak RSS", "MB"),
            ("batches", "batches"),
        )
    )

    return Trial(cases=cases, run=partial(compared, prompts), runs=runs, in_small=False)


TRIALS: tuple[Trial, ...] = (_trial(10_000, None), _trial(100_000, 1))
