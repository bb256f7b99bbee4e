"""The real daemon on a spool of its own, started as people start it and watched from outside."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bench.remote import LIMIT_S, MEMORY, TESTS
from bench.watched import Watched
from promptspool.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.remote import Provider

POLL_S = 0.002
"""How often a file is looked for."""

LOOK_S = 0.5
"""How often it is looked whether the daemon still does what it should."""

KEY = "sk-bench"
KEY_ENV = "BENCH_KEY"

PLAIN: dict[str, Any] = {
    "spool": {"settle": 0},
    "polling": {"first": 0.2, "factor": 1.0},
    "profiles": {"default": {"model": "gpt-5-mini"}},
    "log": {"format": "json"},
}
"""The settings of every daemon here, under those of its trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A daemon that runs."""

    spool: Spool
    watched: Watched
    notes: Path | None
    """What the probe of its loop wrote; None without a probe."""
    config: Path

    def drop(self, path: Path, name: str | None = None) -> float:
        """Give a prepared file its name in the inbox by rename, and return when.

        It is a second name of *path*, so that dropping costs nothing; the first one is kept.
        """
        target = self.spool.inbox / (name or path.name)
        hidden = self.spool.root / f".{target.name}.part"
        hidden.hardlink_to(path)
        at = time.monotonic()
        hidden.rename(target)

        return at

    def is_planned(self) -> bool:
        """Tell whether the only job has its request files and its manifest."""
        job = self.job()

        return job is not None and (job / "manifest.json").exists()

    def requests(self) -> list[Path]:
        """Return the request files of the only job."""
        return sorted(self.spool.working.glob("*/*.requests.jsonl"))

    def is_delivered(self) -> bool:
        """Tell whether a summary is in the outbox."""
        return any(name.endswith(".summary.json") for name in os.listdir(self.spool.outbox))  # noqa: PTH208 - often

    def wait_until(self, is_there: Callable[[], bool], *, limit_s: float = LIMIT_S) -> float:
        """Look every `POLL_S` whether something is there, and return when it was.

        Raises `RuntimeError` if the daemon ended or a stage of it crashed, or it takes too long.
        """
        began_at = looked_at = time.monotonic()

        while not is_there():
            now = time.monotonic()

            if now - looked_at > LOOK_S:
                looked_at = now
                self._check(is_late=now - began_at > limit_s)

            time.sleep(POLL_S)

        return time.monotonic()

    def _check(self, *, is_late: bool) -> None:
        """Raise `RuntimeError` where waiting is in vain: for a dead daemon, or a crashed stage."""
        errors = [one for one in self.events() if one["level"] == "error"]

        if is_late or errors or self.watched.process.poll() is not None:
            message = f"the daemon did not get there: {self.watched.complaint()}"
            raise RuntimeError(f"{message} {errors[:1]}")

    def wait_ready(self) -> float:
        """Return when the daemon had said that it is ready."""
        return self.wait_until(lambda: b'"daemon.ready"' in self.watched.output.read_bytes())

    def job(self) -> Path | None:
        """Return the working folder of the only job, None while there is none."""
        return next(self.spool.working.iterdir(), None)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the lines of the log so far, of the events named or all.

        `timestamp` has milliseconds, of the clock of the wall.
        """
        lines = self.watched.output.read_bytes().split(b"\n")[:-1]
        found = [json.loads(line) for line in lines if line.startswith(b"{")]

        return [one for one in found if not names or one["event"] in names]

    def longest_block_s(self, since: float = 0.0, until: float = float("inf")) -> float | None:
        """Return how long the loop was held at most between two moments, None without a probe."""
        if self.notes is None:
            return None

        lines = [line.split() for line in self.notes.read_text().splitlines()]
        found = [
            float(late)
            for at, late in lines
            if not at.startswith("p") and since <= float(at) <= until + float(late)
        ]

        return max(found, default=0.0)


@contextmanager
def daemon(
    root: Path,
    provider: Provider,
    *,
    settings: Mapping[str, Any] | None = None,
    is_probed: bool = True,
    arguments: tuple[str, ...] = (),
) -> Iterator[Running]:
    """Run the daemon on the spool `spool` in the folder *root*, and yield it when it is ready.

    *settings* are laid over `PLAIN`, section by section. It is stopped with the block, after which
    the notes of its probe are gone: they are in memory, since a busy disk holds up who writes.
    """
    root.mkdir(parents=True, exist_ok=True)
    spool = Spool(root / "spool")
    spool.make()
    config = root / "promptspool.toml"
    account = {"base_url": provider.base_url, "api_key_env": KEY_ENV, "lookup_grace": 0}
    plain = {**PLAIN, "spool": PLAIN["spool"] | {"path": str(spool.root)}}
    laid = _merged({**plain, "providers": {"openai": account}}, settings or {})
    config.write_text("\n".join(_toml(laid, ())))

    with ExitStack() as stack:
        memory = MEMORY if MEMORY.is_dir() else None
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-", dir=memory)))
        notes = folder / "loop.txt" if is_probed else None
        module = ["promptspool"] if notes is None else ["bench.probed", str(notes)]
        command = [sys.executable, "-m", *module, "run", "--config", str(config), *arguments]
        watched = stack.enter_context(
            Watched(command, output=root / "log.jsonl", environ=environ())
        )
        running = Running(spool=spool, watched=watched, notes=notes, config=config)
        running.wait_ready()

        yield running


def environ() -> dict[str, str]:
    """Return an environment in which the daemon and `bench` are found, and the key."""
    kept = {name: value for name, value in os.environ.items() if "PROMPTSPOOL_" not in name}

    return kept | {"PYTHONPATH": f"{TESTS.parent / 'daemon'}:{TESTS}", KEY_ENV: KEY}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)

    for key, value in above.items():
        mine = merged.get(key)
        are_tables = isinstance(mine, dict) and isinstance(value, dict)
        merged[key] = _merged(mine, value) if mine and are_tables else value

    return merged


def _toml(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a TOML table; texts, numbers and lists are as in JSON."""
    if path:
        yield f"[{'.'.join(map(json.dumps, path))}]"

    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{json.dumps(key)} = {json.dumps(value)}"

    for key, value in table.items():
        if isinstance(value, dict):
            yield from _toml(value, (*path, key))
