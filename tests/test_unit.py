from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from commands import ROOT
from promptspool import settings

if TYPE_CHECKING:
    from pathlib import Path

UNIT = ROOT / "systemd" / "promptspool.service"
SYSUSERS = ROOT / "systemd" / "promptspool.sysusers"
TMPFILES = ROOT / "systemd" / "promptspool.tmpfiles"
README = ROOT / "systemd" / "README.md"

MAX_EXPOSURE = 1.5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="folders are given to another user")


def ran(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of systemd's tools."""
    return subprocess.run(  # noqa: S603 - systemd's own
        command, capture_output=True, text=True, check=False
    )


def verified(unit: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return what systemd says of a unit, whose program is taken for installed."""
    program = folder / "promptspool"
    program.touch(mode=0o755)
    path = folder / UNIT.name
    path.write_text(unit.replace("/opt/promptspool/bin/promptspool", str(program)))

    return ran("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", path)


def exposure(unit: str, folder: Path) -> float:
    """Return what systemd thinks of a unit's sandbox: 0 is no exposure, 10 all there is."""
    path = folder / UNIT.name
    path.write_text(unit)
    done = ran("systemd-analyze", "security", "--offline=true", path)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)

    assert found, done.stderr

    return float(found[1])


@needs_systemd
def test_systemd_knows_every_key(tmp_path: Path) -> None:
    """Nothing in the unit is unknown or wrong to systemd, which ignores what is, with a warning."""
    done = verified(UNIT.read_text("utf-8"), tmp_path)

    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("line", ["Retsart=always", "WatchdogSec=often", "ProtectHome=maybe"])
def test_a_faulty_line_is_seen(line: str, tmp_path: Path) -> None:
    """What the test above relies on: a key or a value that systemd does not know is told of."""
    unit = UNIT.read_text("utf-8").replace("[Install]", f"{line}\n[Install]")

    assert ", ignoring" in verified(unit, tmp_path).stderr


@needs_systemd
def test_the_sandbox_is_tight(tmp_path: Path) -> None:
    """The exposure that systemd computes is at most 1.5 of 10, and the sandbox is why."""
    unit = UNIT.read_text("utf-8")
    open_wide = re.sub(
        r"^(Protect|Private|Restrict|Capability|SystemCall).*\n", "", unit, flags=re.MULTILINE
    )

    assert exposure(unit, tmp_path) <= MAX_EXPOSURE
    assert exposure(open_wide, tmp_path) > MAX_EXPOSURE


@needs_systemd
@needs_root
def test_the_group_drops_and_reads(tmp_path: Path) -> None:
    """The folders belong to the user that is made; its group writes into the inbox alone."""
    (tmp_path / "etc").mkdir()
    users = ran("systemd-sysusers", f"--root={tmp_path}", SYSUSERS)
    folders = ran("systemd-tmpfiles", "--create", f"--root={tmp_path}", TMPFILES)
    fields = (tmp_path / "etc/passwd").read_text().split(":")
    spool = tmp_path / "srv/prompts"
    made = {path.name: path.stat() for path in (spool, *spool.iterdir())}

    assert (users.returncode, folders.returncode) == (0, 0)
    assert fields[0] == "promptspool"
    assert fields[-1].strip() == "/usr/sbin/nologin"
    assert {(str(status.st_uid), str(status.st_gid)) for status in made.values()} == {
        (fields[2], fields[3])
    }
    assert {name: oct(stat.S_IMODE(status.st_mode)) for name, status in made.items()} == {
        "prompts": "0o2750",
        "inbox": "0o3770",
        "working": "0o700",
        "outbox": "0o2750",
        "done": "0o2750",
        "rejected": "0o2750",
    }


def test_the_files_agree(tmp_path: Path) -> None:
    """The unit, the folders and the configuration of the README are about the same places."""
    unit = UNIT.read_text("utf-8")
    edits = re.findall(r"-e '(s\|.*)'", README.read_text("utf-8"))
    arguments = [word for edit in edits for word in ("-e", edit)]
    config = tmp_path / "promptspool.toml"
    config.write_text(settings.example_config())
    edited = ran("sed", "-i", *arguments, config)
    loaded = settings.load(config, environ={})
    folders = {line.split()[1] for line in TMPFILES.read_text().splitlines() if line[:1] in "da"}

    assert edited.returncode == 0
    assert f"ReadWritePaths=-{loaded.spool.path}\n" in unit
    assert f"RequiresMountsFor={loaded.spool.path}\n" in unit
    assert f"/var/lib/{_value(unit, 'StateDirectory')}" == str(loaded.spool.state)
    assert {path.removeprefix(str(loaded.spool.path)) for path in folders if path} == {
        "", "/inbox", "/working", "/outbox", "/done", "/rejected",
    }  # fmt: skip
    assert _value(unit, "LoadCredential").startswith(f"{loaded.providers['openai'].api_key_env}:")


def _value(unit: str, key: str) -> str:
    found = re.search(rf"^{key}=(.*)$", unit, re.MULTILINE)

    assert found

    return found[1]
