"""The baselines, run as processes of their own beside what they are compared with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench.harness import Skipped
from bench.inputs import prompts_file
from bench.running import environ
from bench.watched import Watched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.harness import Context
    from bench.remote import Provider

TUTORIAL_SHARE = 10
"""The tutorial's way gets so small a share of the rows: of a million it would take 8 GB."""


def settle_disk() -> None:
    """Have everything written that somebody wrote before, so that nobody pays for it now."""
    os.sync()


def copied_s(context: Context, files: Sequence[Path]) -> float:
    """Return the seconds that copying *files* with fsync takes."""
    folder = context.scratch / "copy"
    folder.mkdir()
    settle_disk()
    said = _said("bench.baseline_copy", str(folder), *map(str, files))
    shutil.rmtree(folder)

    return float(said)


def curled_s(provider: Provider, files: Sequence[Path]) -> float:
    """Return the seconds that uploading *files* takes by curl, over one connection."""
    curl = shutil.which("curl")

    if curl is None:
        raise Skipped("there is no curl on this machine")

    command = [curl]

    for number, path in enumerate(files):
        command += ["--next"] if number else []
        command += ["-sS", "-o", os.devnull, "-F", "purpose=batch", "-F", f"file=@{path}"]
        command.append(f"{provider.base_url}/files")

    began_at = time.monotonic()
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments

    return time.monotonic() - began_at


def tutorial(context: Context, provider: Provider, rows: int) -> dict[str, float]:
    """Return rows a second of the tutorial's phases, its peak RSS in bytes, and its rows.

    The phases are build, create, poll, download and merge; together they are the whole way.
    """
    rows = max(1, rows // TUTORIAL_SHARE)
    source = prompts_file(context.data, "plain", rows)
    folder = context.scratch / "tutorial"
    folder.mkdir()
    provider.tell("set", is_held=False)
    command = [sys.executable, "-m", "bench.baseline_tutorial", provider.base_url, str(source)]

    with Watched([*command, str(folder), "all"], output=folder / "out", environ=environ()) as it:
        code = it.process.wait()
        usage = it.lap()

        if code:
            raise RuntimeError(it.complaint())

    times: dict[str, float] = json.loads((folder / "out").read_text())
    provider.tell("set", is_held=True)
    shutil.rmtree(folder)

    return {phase: rows / seconds for phase, seconds in times.items()} | {
        "rss_bytes": float(usage.rss_bytes),
        "rows": float(rows),
    }


def settled_s(spool: Path, folder: Path) -> float:
    """Return the seconds that the collect stages take without a daemon, see `bench.settling`."""
    return float(_said("bench.settling", str(spool), str(folder)))


def _said(module: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", module, *arguments],
        env=environ(),
        check=True,
        capture_output=True,
        text=True,
    )

    return done.stdout
