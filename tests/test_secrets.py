"""The key after two runs full of errors that repeat it: it is nowhere but where it was given."""

from __future__ import annotations

import base64
import html
import json
import os
import signal
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import xlsxwriter  # type: ignore[import-untyped]  # it has no stubs

from commands import LIMIT_S, events, ids, read_until, started

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = 'sk-Zx9/"+&=<T7>aB3qQ-7706'
"""Looks different in an address, in JSON, in HTML and in base64."""

FORMS = {
    form.encode()
    for form in (
        KEY,
        quote(KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").lower(),
        json.dumps(KEY)[1:-1],
        html.escape(KEY),
        base64.b64encode(KEY.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("="),
    )
}

CONFIG = """
[spool]
settle = "50ms"

[providers.openai]
base_url = "{base_url}"
{key}
lookup_grace = "200ms"

[polling]
first = "50ms"
cap = "100ms"

[retry]
first = "20ms"
cap = "100ms"
request_backoff = "50ms"

[profiles.default]
model = "gpt-5-mini"

[log]
level = "debug"
"""

ROUTES = (
    *("files.create", "files.list", "files.content", "files.delete"),
    *("batches.create", "batches.list", "batches.get"),
)
WORDS = json.dumps({"error": {"message": f"Bearer {KEY} is bad", "code": KEY, "type": KEY}})
PAGE = f"<html><body>Bearer {KEY} {quote(KEY, safe='')} {html.escape(KEY)}</body></html>"
REFUSED = {"status": 401, "body": WORDS}
MISTAKES: list[dict[str, Any]] = [
    {"status": 503, "body": PAGE, "headers": {"x-request-id": KEY, "set-cookie": f"a={KEY}"}},
    {"status": 429, "body": WORDS, "headers": {"retry-after": KEY, "x-request-id": KEY}},
    {"status": 302, "body": PAGE, "headers": {"location": f"https://elsewhere.invalid/{KEY}"}},
    {"action": "garbage", "body": PAGE},
]
DECLINED = [{"route": route, "status": 400, "body": WORDS} for route in ROUTES[:5:4]]
FAILED = {
    "type": "batch",
    "times": 2,  # one may be that of the spoilt job, which delivers nothing
    "ending": "failed",
    "errors": [{"code": KEY, "message": f"Bearer {KEY}", "line": 1}],
}


@contextmanager
def simulated(folder: Path) -> Iterator[str]:
    """Run `promptspool simulate` with our key and its files in *folder*; yield its base URL."""
    arguments = ("--port", "0", "--speed", "2000", "--api-key", KEY, "--dir", folder)

    with started("simulate", *arguments) as process:
        line = read_until(process, "listening")
        yield next(word for word in line.split() if word.startswith("http://"))


def arm(base_url: str, *faults: dict[str, Any]) -> None:
    """Tell the simulator what to do wrong."""
    for fault in faults:
        control = base_url.removesuffix("/v1") + "/_simulator/faults"
        answer = httpx.post(control, json={"type": "exchange"} | fault, trust_env=False)
        answer.raise_for_status()


@dataclass
class Watched:
    """What was seen of the processes while they ran."""

    lines: set[bytes] = field(default_factory=set)
    """Command lines of the daemon and of all that it started."""
    environments: set[bytes] = field(default_factory=set)
    """Of its workers."""


@contextmanager
def watching(daemon: int) -> Iterator[Watched]:
    """Look at a daemon and its processes again and again while the block runs."""
    seen = Watched()
    strangers: set[Path] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.02):
            for folder in Path("/proc").glob("[0-9]*"):
                if folder not in strangers:
                    with suppress(OSError):  # it has ended
                        if not _look_at(folder, daemon, seen):
                            strangers.add(folder)

    thread = threading.Thread(target=look)
    thread.start()

    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def _look_at(folder: Path, daemon: int, seen: Watched) -> bool:
    """Note what can be seen of a process; False if it is not the daemon's."""
    parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])

    if daemon not in (int(folder.name), parent):
        return False

    line = (folder / "cmdline").read_bytes()
    seen.lines.add(line)

    # Just after the fork it still is the daemon.
    if b"promptspool.worker" in line:
        seen.environments.add((folder / "environ").read_bytes())

    return True


def leaks(place: str, content: bytes) -> list[str]:
    """Return the place once for each form of the key that is in it."""
    return [place for form in FORMS if form in content]


def leaks_below(root: Path) -> list[str]:
    """Return the files below a folder, the folders too, that hold the key or are named after it."""
    found: list[str] = []

    for path in root.rglob("*"):
        found += leaks(f"name {path}", os.fsencode(path.name))

        with suppress(FileNotFoundError):  # gone since
            found += leaks(f"content of {path}", path.read_bytes() if path.is_file() else b"")

    return found


def configured(root: Path, base_url: str, key: str) -> Path:
    """Write a configuration and return its path."""
    config = root / "promptspool.toml"
    config.write_text(CONFIG.format(base_url=base_url, key=key))
    (root / "spool" / "inbox").mkdir(parents=True, exist_ok=True)

    return config


def drop(root: Path) -> None:
    """Put three more files into the inbox, one of them for `spoil`."""
    for name in ("a", "b", "spoilt"):
        rows = [{"id": f"{name}{number}", "prompt": "What?"} for number in range(4)]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "spool" / "inbox" / f"{name}.jsonl").write_text(content)


def drop_book(root: Path) -> None:
    """Put a table into the inbox that a worker process reads."""
    with xlsxwriter.Workbook(str(root / "book.xlsx")) as book:
        sheet = book.add_worksheet()
        sheet.write_column("A1", ["id", *(f"r{number}" for number in range(5))])
        sheet.write_column("B1", ["prompt", *["What?"] * 5])

    (root / "book.xlsx").rename(root / "spool" / "inbox" / "book.xlsx")


def spoil(root: Path) -> None:
    """Break the plan of one job, which no daemon does: the next to read it tells a traceback."""
    for manifest in (root / "spool" / "working").glob("*/manifest.json"):
        plan = json.loads(manifest.read_text())

        if plan["source"] == "spoilt.jsonl":
            plan["profile"]["response_schema"] = {"type": "nonsense"}
            manifest.write_text(json.dumps(plan))


def first_run(root: Path, base_url: str) -> None:
    """Run with the key in a variable until it is refused, and stop with SIGTERM."""
    config = configured(root, base_url, 'api_key_env = "OUR_KEY"')
    drop_book(root)
    arm(base_url, {"route": "files.create", "times": None, **REFUSED})

    with (
        started("run", "--config", config, OUR_KEY=KEY) as daemon,
        watching(daemon.pid) as seen,
    ):
        paused = read_until(daemon, "provider.paused")
        drop(root)
        planned = [read_until(daemon, "job.planned") for _ in range(3)]

        assert leaks_below(root / "spool") == []  # the database in use, with its log

        daemon.send_signal(signal.SIGTERM)
        rest, complaints = daemon.communicate(timeout=LIMIT_S)

    assert "***" in paused
    assert leaks("log", "".join([paused, *planned, rest, complaints]).encode()) == []
    assert complaints == ""
    assert seen.environments
    assert leaks("processes", b"".join(seen.lines | seen.environments)) == []


def second_run(root: Path, base_url: str) -> list[dict[str, Any]]:
    """Go on with the key in a file, through every mistake at every route; return the log."""
    (root / "key").write_text(f"{KEY}\n")
    config = configured(root, base_url, f"api_key_file = {json.dumps(str(root / 'key'))}")
    arm(base_url, FAILED, *DECLINED)
    arm(base_url, *({"route": route} | mistake for mistake in MISTAKES for route in ROUTES))

    with (
        started("run", "--drain", "--config", config) as daemon,
        watching(daemon.pid) as seen,
    ):
        log, complaints = daemon.communicate(timeout=LIMIT_S)

    assert daemon.returncode == 1  # for the spoilt job
    assert leaks("log", (log + complaints).encode()) == []
    assert complaints == ""
    assert seen.environments
    assert leaks("processes", b"".join(seen.lines | seen.environments)) == []

    return events(log)


def test_the_key_is_nowhere(tmp_path: Path) -> None:
    """After two runs full of errors that repeat the key, nothing that they left holds it."""
    root = tmp_path / "ours"
    root.mkdir()

    with simulated(tmp_path / "theirs") as base_url:
        first_run(root, base_url)
        httpx.delete(base_url.removesuffix("/v1") + "/_simulator/faults", trust_env=False)
        spoil(root)
        log = second_run(root, base_url)
        ledger = httpx.get(base_url.removesuffix("/v1") + "/_simulator/ledger", trust_env=False)

    assert leaks("ledger", ledger.content) == []
    assert leaks_below(root / "spool") == []
    assert leaks_below(tmp_path / "theirs") == []
    outbox = root / "spool" / "outbox"

    for name, rows in (("a.jsonl", 4), ("b.jsonl", 4), ("book.xlsx", 5)):
        results, errors = (outbox / f"{name}.{kind}.jsonl" for kind in ("results", "errors"))
        assert len(ids(results)) + len(ids(errors)) == rows

    # What was repeated did come that far.
    assert any("***" in path.read_text() for path in outbox.glob("*.errors.jsonl"))
    assert any("***" in str(line.get("reason")) for line in log)
    assert any("***" in str(line.get("request_id")) for line in log)
    assert any("exception" in line for line in log)
