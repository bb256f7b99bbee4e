"""The doctor: what it finds of a machine, a spool and a provider, and that it disturbs nobody."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import time
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import pytest

from commands import ran, read_until, simulated, started
from promptspool.doctor import Finding, Level, examination
from promptspool.doctor.daemon import holder
from promptspool.doctor.spool import is_allowed
from promptspool.errors import ConfigError
from promptspool.settings import Settings
from promptspool.spool import Spool
from promptspool.store import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "sk-of-the-doctors-test"
NOBODY = 65_534


class Provider(BaseHTTPRequestHandler):
    """Answers every request in one way, which a test sets."""

    status: ClassVar[int] = 200
    body: ClassVar[dict[str, Any]] = {}
    date: ClassVar[str | None] = None
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer."""
        self.asked.append(f"{self.path} {self.headers['Authorization']}")
        data = json.dumps(self.body).encode()
        self.send_response_only(self.status)
        self.send_header("Content-Length", str(len(data)))

        if self.date is not None:
            self.send_header("Date", self.date)

        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def provider() -> Iterator[tuple[type[Provider], str]]:
    """Serve a provider and yield it with its base URL."""

    class Mine(Provider):
        asked: ClassVar[list[str]] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        try:
            yield Mine, f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def settings_of(root: Path, base_url: str = "http://127.0.0.1:1/v1") -> Settings:
    """Return the configuration of a spool at *root* that has a key."""
    (root / "key").write_text(KEY)
    (root / "key").chmod(0o600)

    return Settings.model_validate(
        {
            "spool": {"path": root / "spool"},
            "providers": {"openai": {"base_url": base_url, "api_key_file": root / "key"}},
            "profiles": {"default": {"model": "gpt-5-mini"}},
        }
    )


def examined(settings: Settings, *, is_offline: bool = True) -> dict[str, list[Finding]]:
    """Return what is found, by what was looked at."""
    found: dict[str, list[Finding]] = {}

    for finding in examination(lambda: settings, is_offline=is_offline):
        found.setdefault(finding.check, []).append(finding)

    return found


def the(found: dict[str, list[Finding]], check: str) -> Finding:
    """Return the only finding of a check."""
    (finding,) = found[check]

    return finding


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Return a spool that was just made."""
    made = Spool(tmp_path / "spool")
    made.make()

    return made


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Return every path below *root* with inode and size."""
    return {str(path): (path.lstat().st_ino, path.lstat().st_size) for path in root.rglob("*")}


def test_a_sound_spool(spool: Spool) -> None:
    """Nothing is the matter with a spool that was just made, and nothing of it is changed."""
    before = tree(spool.root)
    found = examined(settings_of(spool.root.parent))

    for check in ("configuration", "spool", "permissions", "file system", "leases", "daemon"):
        assert the(found, check).level is Level.OK

    assert tree(spool.root) == before
    assert the(found, "key of openai").message == f"found in {spool.root.parent / 'key'}"
    assert all(one.mend is None for ones in found.values() for one in ones if one.level is Level.OK)


def test_a_spool_that_is_not_there(tmp_path: Path) -> None:
    """A spool that is missing may be one that the first start makes: no problem, and not made."""
    found = examined(settings_of(tmp_path))

    assert the(found, "spool").level is Level.WARNING
    assert not (tmp_path / "spool").exists()


def test_folders_that_are_missing(spool: Spool) -> None:
    """Folders that are missing are named; the next start makes them."""
    spool.rejected.rmdir()
    found = the(examined(settings_of(spool.root.parent)), "spool")

    assert (found.level, str(spool.rejected) in found.message) == (Level.WARNING, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_permissions_of_the_daemons_user(spool: Spool) -> None:
    """A folder that the owner of the state may not write is a problem, though root may."""
    found = examined(settings_of(spool.root.parent))
    assert the(found, "permissions").level is Level.OK

    for folder in (spool.state, spool.control, spool.inbox, spool.outbox):
        os.chown(folder, NOBODY, NOBODY)

    spool.root.parent.chmod(0o755)
    spool.working.chmod(0o755)
    found = examined(settings_of(spool.root.parent))
    messages = [one.message for one in found["permissions"] if one.level is Level.PROBLEM]

    assert any(f"may not read and write {spool.working}" in message for message in messages)
    assert not any(str(spool.inbox) in message for message in messages)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "wanted", "expected"),
    [
        (0o700, NOBODY, 0, 7, True),
        (0o077, NOBODY, 0, 7, False),  # what the owner may not, no group gives him
        (0o770, 0, NOBODY, 7, True),
        (0o707, 0, NOBODY, 7, False),
        (0o005, 0, 0, 5, True),
        (0o004, 0, 0, 5, False),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_who_may_what(  # noqa: PLR0913 - a row of the table
    tmp_path: Path, mode: int, uid: int, gid: int, wanted: int, *, expected: bool
) -> None:
    """Owner, then groups, then others decide, as in the kernel."""
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, uid, gid)
    folder.chmod(mode)

    assert is_allowed(folder, NOBODY, wanted) is expected


def test_a_faulty_configuration_ends_in_a_problem() -> None:
    """Without a configuration the machine is looked at all the same."""

    def load() -> Settings:
        raise ConfigError("polling.more", "unknown key")

    first, *others = examination(load, is_offline=False)

    assert (first.check, first.level) == ("configuration", Level.PROBLEM)
    assert "polling.more: unknown key" in first.message
    assert "versions" in {one.check for one in others}


def test_a_key_that_is_missing_or_open(spool: Spool) -> None:
    """No key is a problem, one that everybody may read a warning, and neither is ever shown."""
    settings = settings_of(spool.root.parent)
    path = spool.root.parent / "key"
    path.chmod(0o644)
    found = examined(settings)["key of openai"]

    assert [one.level for one in found] == [Level.OK, Level.WARNING]
    assert f"chmod 640 {path}" == found[1].mend
    assert KEY not in str(found)

    path.write_text("")

    assert the(examined(settings), "key of openai").level is Level.PROBLEM


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [
        (200, Level.OK, "takes the key"),
        (401, Level.PROBLEM, "Incorrect"),
        (404, Level.PROBLEM, "Incorrect"),
        (429, Level.WARNING, "Incorrect"),
        (500, Level.PROBLEM, "Incorrect"),
    ],
)
def test_what_a_provider_says(
    spool: Spool, provider: tuple[type[Provider], str], status: int, level: Level, words: str
) -> None:
    """One list is asked for, once; what it says of the key is told in its own words."""
    server, url = provider
    server.status = status
    server.body = (
        {"object": "list", "data": [], "has_more": False}
        if status == 200
        else {"error": {"message": f"Incorrect API key: {KEY}", "code": "invalid_api_key"}}
    )
    found = examined(settings_of(spool.root.parent, url), is_offline=False)

    assert the(found, "provider openai").level is level
    assert words in the(found, "provider openai").message
    assert KEY not in str(found)
    assert [line.split()[0] for line in server.asked] == ["/v1/batches?limit=100"]


def test_a_provider_that_is_not_reached(spool: Spool) -> None:
    """Nobody at the address is a problem with the address, not with the key."""
    found = examined(settings_of(spool.root.parent), is_offline=False)

    assert the(found, "provider openai").level is Level.PROBLEM
    assert "base_url, DNS, firewall" in (the(found, "provider openai").mend or "")


@pytest.mark.parametrize(
    ("wrong_s", "level"),
    [(0, Level.OK), (-20, Level.OK), (45, Level.WARNING), (-45, Level.WARNING),
     (90, Level.PROBLEM), (-86_400, Level.PROBLEM)],
)  # fmt: skip
def test_a_clock_that_is_wrong(
    spool: Spool, provider: tuple[type[Provider], str], wrong_s: int, level: Level
) -> None:
    """The provider's `Date` tells how wrong our clock is; beyond `lookup_grace` it is a problem."""
    server, url = provider
    server.body = {"data": []}
    server.date = formatdate(time() - wrong_s, usegmt=True)
    found = the(examined(settings_of(spool.root.parent, url), is_offline=False), "clock of openai")

    assert found.level is level
    assert wrong_s == 0 or ("ahead of" if wrong_s > 0 else "behind") in found.message


async def made(spool: Spool) -> None:
    """Make a database."""
    async with opened(spool.database) as store:
        await store.note("spool_id", spool.identity())


def test_a_database(spool: Spool) -> None:
    """A sound database is read through; one of another spool, or a damaged one, is a problem."""
    settings = settings_of(spool.root.parent)
    assert "nothing was ever run here" in the(examined(settings), "database").message

    anyio.run(made, spool)
    before = tree(spool.root)

    assert "whole" in the(examined(settings), "database").message
    assert tree(spool.root) == before

    identity = (spool.root / ".promptspool").read_text()
    (spool.root / ".promptspool").write_text("another\n")
    assert "goes with spool" in the(examined(settings), "database").message

    (spool.root / ".promptspool").write_text(identity)

    with closing(sqlite3.connect(spool.database)) as connection:
        page = int(connection.execute("PRAGMA page_size").fetchone()[0])

    data = bytearray(spool.database.read_bytes())
    data[2 * page : 6 * page] = b"\xff" * (4 * page)
    spool.database.write_bytes(data)

    assert the(examined(settings), "database").level is Level.PROBLEM


def test_who_holds_the_lock(spool: Spool) -> None:
    """The process that runs on a spool is named; it is asked how it is, and nothing is left."""
    assert holder(spool) is None

    with spool.opened():
        assert holder(spool) == os.getpid()

    assert holder(spool) is None


def test_a_provider_is_asked_by_the_command(tmp_path: Path) -> None:
    """All is well with a daemon that runs, and its files are as before; findings come as JSON."""
    assert ran("init", tmp_path).returncode == 0
    config = tmp_path / "promptspool.toml"
    spool = Spool(tmp_path / "spool")

    with simulated(speed=1) as base_url:
        extra = {
            "PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL": base_url,
            "OPENAI_API_KEY": "sk-simulated",
        }

        with started("run", "--config", config, **extra) as daemon:
            read_until(daemon, "daemon.ready")
            done = ran("doctor", "--json", "--config", config, **extra)

            assert list(spool.control.iterdir()) == []
            assert [path for path in spool.working.iterdir() if path.name != "lock"] == []

        shutil.rmtree(spool.outbox)
        spool.outbox.write_text("in the way")
        broken = ran("doctor", "--offline", "--config", config, **extra)

    told = json.loads(done.stdout)
    found = {one["check"]: one for one in told["findings"]}

    assert (done.returncode, done.stderr, told["version"]) == (0, "", 1)
    assert f"it runs as process {daemon.pid} and answers: ready" == found["daemon"]["message"]
    assert found["provider openai"]["level"] == found["clock of openai"]["level"] == "ok"
    assert "sk-simulated" not in done.stdout
    assert (broken.returncode, broken.stderr) == (1, "")
    assert f"problem  spool: in the way: {spool.outbox}\n         -> " in broken.stdout
    assert "provider openai" not in broken.stdout
