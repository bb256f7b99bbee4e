from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from commands import ROOT, ran
from promptspool import __version__, settings


def instructions(kind: str) -> list[str]:
    """Return what the Dockerfile says after *kind*, each time it does, lines joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")

    return re.findall(rf"^{kind}\s+(.*)$", text, re.MULTILINE)


def pairs(kind: str) -> dict[str, str]:
    """Return the names and values of all instructions of a *kind*."""
    found = re.findall(r"(\S+)=(?:\"([^\"]*)\"|(\S+))", " ".join(instructions(kind)))

    return {name: quoted or plain for name, quoted, plain in found}


def test_its_version_is_the_package_s() -> None:
    """The image says that it is what is in it."""
    assert pairs("LABEL")["org.opencontainers.image.version"] == __version__


def test_what_is_copied_is_there() -> None:
    """Whatever is copied exists, and is let into the build."""
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    copies = [words.split()[:-1] for words in instructions("COPY") if "--from" not in words]

    for source in (source for sources in copies for source in sources):
        above = [source, *map(str, Path(source).parents)]

        assert (ROOT / source).exists()
        assert any(fnmatch(path, line) for path in above for line in let_in), source


def test_one_base_of_a_minor_version() -> None:
    """Both stages are of one Python, to which the built environment is bound, and slim."""
    (base,) = {words.split()[0] for words in instructions("FROM")}

    assert re.fullmatch(r"python:3\.1\d-slim", base)


def test_it_is_nobody() -> None:
    """It runs as a number that is not root's, so that a cluster can tell without looking inside."""
    (user,) = instructions("USER")

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@pytest.mark.parametrize("kind", ["ENTRYPOINT", "CMD", "HEALTHCHECK .*CMD"])
def test_no_shell_is_between(kind: str) -> None:
    """Signals reach the daemon itself, and every command that is named is one of promptspool's."""
    (words,) = (json.loads(words) for words in instructions(kind))
    command = words[words[0] == "promptspool" :]

    assert ran(*command, "--help").returncode == 0


def test_its_settings_are_settings(tmp_path: Path) -> None:
    """The volume is the spool, and the environment names settings that exist."""
    environ = pairs("ENV")
    config = tmp_path / "promptspool.toml"
    config.write_text(settings.example_config())
    loaded = settings.load(config, environ=environ)

    assert [str(loaded.spool.path)] == instructions("VOLUME")
    assert environ["PROMPTSPOOL_CONFIG"] in " ".join(instructions("COPY")).split()
