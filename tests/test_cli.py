from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from commands import COMMAND, LIMIT_S, environ, events, ids, ran, read_until, simulated, started
from filled import said
from promptspool import __version__, settings
from promptspool.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-simulated"
QUICK = {
    "OPENAI_API_KEY": KEY,
    "PROMPTSPOOL_SPOOL__SETTLE": "100ms",
    "PROMPTSPOOL_POLLING__FIRST": "100ms",
    "PROMPTSPOOL_POLLING__CAP": "200ms",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the configuration of a spool that `init` has just made."""
    assert ran("init", tmp_path / "prompts").returncode == 0
    return tmp_path / "prompts" / "promptspool.toml"


def spool_of(config: Path) -> Spool:
    """Return the spool beside a configuration."""
    return Spool(config.parent / "spool")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on stderr of a command that was used wrongly."""
    (line,) = done.stderr.splitlines()

    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith("promptspool: ")
    return line


def test_help() -> None:
    """The command alone shows what it can do."""
    assert ran().stdout == ran("--help").stdout
    assert ran().returncode == 0
    assert "\n  demo " in ran().stdout


def test_help_is_quick() -> None:
    """Nothing heavy is imported before a command needs it."""
    heavy = {
        "anyio", "httpx", "jinja2", "msgspec", "pyarrow", "pydantic", "rich", "sqlite3",
        "starlette", "structlog", "uvicorn", "watchfiles",
    }  # fmt: skip
    code = "import sys, promptspool.cli; print(*sys.modules)"
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code], env=environ(), capture_output=True, text=True, check=True
    )

    assert heavy & set(done.stdout.split()) == set()


def test_version() -> None:
    """The version is that of the package."""
    assert ran("--version").stdout == f"promptspool {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prnit"], "prnit"),
        (["run", "--confg", "x"], "--confg"),
        (["run", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["simulate", "--port", "99999"], "--port"),
        (["simulate", "--speed", "0"], "--speed"),
        (["simulate", "--host", "0.0.0.0"], "0.0.0.0"),  # noqa: S104 - it is refused
        (["init"], "DIR"),
        (["init", "/dev/null"], "/dev/null"),
        (["demo", "--dir", "/proc"], "/proc"),
    ],
)
def test_misuse(arguments: list[str], expected: str) -> None:
    """Wrong usage is one line that names what is wrong, and exit code 2."""
    assert expected in complaint(ran(*arguments))


def test_a_faulty_configuration(config: Path) -> None:
    """A fault in the configuration is one line that names file, line and key."""
    text = config.read_text("utf-8")
    config.write_text(text + "\n[polling.more]\n", encoding="utf-8")
    line = len(text.splitlines()) + 2
    told = f"{config}, line {line}: polling.more: unknown key; known: first, factor, cap, stalled"

    assert told in complaint(ran("run", "--config", config))


def test_check_of_a_configuration(config: Path) -> None:
    """Without a file the configuration is checked; keys are found, and never shown."""
    text = config.read_text("utf-8")
    config.write_text(f'{text}\n[profiles.more]\nextend = "default"\n', encoding="utf-8")
    done = ran("check", "--config", config, OPENAI_API_KEY=KEY)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{config}: it can be used\n")
    assert "  profile more: openai, /v1/chat/completions, gpt-5-mini\n" in done.stdout
    assert "key found in $OPENAI_API_KEY\n" in done.stdout
    assert KEY not in done.stdout

    config.write_text(
        f'{text}\n[profiles.more]\nmodel = "m"\nprompt = "{{{{ a"\n', encoding="utf-8"
    )
    fault = complaint(ran("check", "--config", config))

    assert "profiles.more.prompt" in fault
    assert str(config) in fault


def test_what_the_machine_does_is_no_traceback(config: Path) -> None:
    """What a disk refuses is one line with the place, and exit code 1."""
    lock = spool_of(config).state / "lock"
    lock.mkdir()
    code, out, errors = said("health", "--config", config)

    assert (code, out, errors) == (1, "", f"promptspool: {lock}: Is a directory\n")


def test_a_port_in_use() -> None:
    """An address that is taken is one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])

        assert f"127.0.0.1:{port}: Address already in use" in complaint(
            ran("simulate", "--port", port)
        )


def test_init(tmp_path: Path) -> None:
    """What `init` makes works as it stands once the key is in the environment."""
    folder = tmp_path / "my prompts"
    done = ran("init", folder)
    config = folder / "promptspool.toml"
    loaded = settings.load(config, environ={})

    assert done.returncode == 0
    assert config.read_text("utf-8") == settings.example_config()
    assert loaded.spool.path == folder / "spool"
    assert settings.api_key(loaded.providers["openai"], "openai", {"OPENAI_API_KEY": KEY}) == KEY
    assert {path.name for path in (folder / "spool").iterdir()} == {
        "inbox", "working", "outbox", "done", "rejected", "state",
    }  # fmt: skip

    for line in (
        "  export OPENAI_API_KEY=...",
        f"  promptspool run --config {shlex.quote(str(config))}",
    ):
        assert line in done.stdout.splitlines()


def test_init_overwrites_nothing(config: Path) -> None:
    """A second `init` changes nothing and says so."""
    config.write_text("mine")

    assert f"{config}: it exists already" in complaint(ran("init", config.parent))
    assert config.read_text() == "mine"


def test_drain_an_empty_spool(config: Path) -> None:
    """With nothing to do there is nothing to ask a provider, not even with a key."""
    done = ran("run", "--config", config, "--drain")

    assert (done.returncode, done.stderr) == (0, "")
    assert events(done.stdout)[-1]["event"] == "daemon.stopped"


def test_drain(config: Path) -> None:
    """Every dropped file is delivered or rejected before the command ends, and then it says 0."""
    spool = spool_of(config)
    (spool.inbox / "colours.txt").write_text("red?\nblue?\n")
    (spool.inbox / "photo.png").write_bytes(b"no prompts")

    with simulated(speed=6000) as base_url:
        done = ran("run", "--config", config, "--drain", **QUICK,
                   PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL=base_url)  # fmt: skip

    told = [line["event"] for line in events(done.stdout)]

    assert (done.returncode, done.stderr) == (0, "")
    assert ids(spool.outbox / "colours.txt.results.jsonl") == ["colours-1", "colours-2"]
    assert (spool.done / "colours.txt").read_text() == "red?\nblue?\n"
    assert (spool.rejected / "photo.png").read_bytes() == b"no prompts"
    assert {"job.delivered", "job.rejected"} <= set(told)


def test_nobody_reads_the_log(config: Path) -> None:
    """A log that nobody reads any more does not stop the work."""
    spool = spool_of(config)
    (spool.inbox / "colours.txt").write_text("red?\n")
    reader, writer = os.pipe()
    os.close(reader)

    with simulated(speed=6000) as base_url, os.fdopen(writer, "wb") as broken:
        done = subprocess.run(  # noqa: S603 - our own command
            [*COMMAND, "run", "--config", str(config), "--drain"],
            env=environ(**QUICK, PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL=base_url),
            stdout=broken,
            stderr=subprocess.PIPE,
            timeout=LIMIT_S,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, b"")
    assert ids(spool.outbox / "colours.txt.results.jsonl") == ["colours-1"]


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--drain"], 1)])
def test_sigterm(config: Path, options: list[str], code: int) -> None:
    """SIGTERM stops it gracefully; only a drain that did not get through has failed."""
    (spool_of(config).inbox / "colours.txt").write_text("red?\n")

    with (
        simulated(speed=1) as base_url,
        started("run", "--config", config, *options, **QUICK,
                PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL=base_url) as daemon,
    ):  # fmt: skip
        read_until(daemon, "batch.created")
        daemon.send_signal(signal.SIGTERM)
        output, errors = daemon.communicate(timeout=LIMIT_S)

    assert (daemon.returncode, errors) == (code, "")
    assert events(output)[-1]["event"] == "daemon.stopped"


def test_one_daemon_a_spool(config: Path) -> None:
    """A second daemon on a spool is told so in one line."""
    with started("run", "--config", config) as daemon:
        read_until(daemon, "daemon.ready")
        done = ran("run", "--config", config, PROMPTSPOOL_LOG__LEVEL="error")

    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")  # which a supervisor tries again
    assert "another promptspool runs on this spool" in line


def test_keys_are_struck_out(config: Path) -> None:
    """A key is in no line of the log, wherever it came from."""
    (spool_of(config).inbox / f"{KEY}.png").write_bytes(b"no prompts")
    done = ran("run", "--config", config, "--drain", **QUICK)

    assert "***.png" in done.stdout
    assert KEY not in done.stdout


def test_spool_option(config: Path, tmp_path: Path) -> None:
    """`--spool` replaces the one of the configuration."""
    done = ran("run", "--config", config, "--drain", "--spool", tmp_path / "other")

    assert done.returncode == 0
    assert (tmp_path / "other" / "inbox").is_dir()
