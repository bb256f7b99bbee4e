"""`promptspool config`, as it is run by people and by scripts."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

import pexpect  # type: ignore[import-untyped]  # it has no stubs
import pytest

from commands import COMMAND, LIMIT_S, environ, ran
from promptspool import settings

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-0123456789abcdef"
HOOK = "https://hooks.example.com/T0/B1/secret-part?sig=secret-too"
SCHEMA = """
{"type": "object", "properties": {"a": {"enum": ["x", null]}}, "required": ["a"],
 "additionalProperties": false}
"""
CONFIG = f"""
[spool]
settle = "250ms"
[providers.openai]
base_url = "https://api.example.com/v1"
api_key_env = "OUR_KEY"
max_bytes = "100MB"
[providers."b-2"]
base_url = "http://127.0.0.1:8000"
api_key_file = "key"
[profiles.default]
model = "m"
system = "a \\"quoted\\" line\\nand \\u007f another"
params = {{ n = 1, "odd key" = [1, 2.5, true], tools = [{{ authorization = "secret-3" }}] }}
response_schema = "review.json"
[profiles."my reviews"]
extend = "default"
endpoint = "/v1/responses"
params = {{}}
[profiles.plain]
model = "m"
params = {{ temperature = 0.5, "odd key" = [1, 2.5, true] }}
[profiles.default.notify]
command = ["/usr/bin/curl", "--header", "Authorization: secret-4", "--token", "secret-5", "-v"]
webhook = "{HOOK}"
webhook_secret_env = "HOOK_SECRET"
[prices."gpt-5.1"]
input = 0.25
[retention]
done = "36h"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a configuration that says a bit of everything."""
    (tmp_path / "review.json").write_text(SCHEMA)
    (tmp_path / "key").write_text(f"{KEY}-file\n")
    path = tmp_path / "promptspool.toml"
    path.write_text(CONFIG)

    return path


def line_of(config: Path, text: str) -> int:
    """Return the number of the line that begins with *text*."""
    lines = config.read_text().splitlines()

    return next(number for number, line in enumerate(lines, 1) if line.startswith(text))


def test_what_is_printed_is_a_configuration(config: Path, tmp_path: Path) -> None:
    """In a pipe it is TOML that, kept anywhere, says the same; what is masked is left out."""
    done = ran("config", "--config", config)
    assert (done.returncode, done.stderr) == (0, "")

    kept = tmp_path / "elsewhere" / "kept.toml"
    kept.parent.mkdir()
    kept.write_text(done.stdout)
    before = settings.load(config, environ={})
    after = settings.load(kept, environ={})

    masked = re.findall(r"^# (\S+|.*?\".*?\"\S*) = .*; masked$", done.stdout, re.MULTILINE)
    assert sorted(masked) == sorted(
        f"profiles.{name}.{key}"
        for name in ("default", '"my reviews"')
        for key in ("params", "notify.command", "notify.webhook")
    )
    assert settings.changed(before, after) == [
        f"profiles.{name}.{key}"
        for name in ("default", "my reviews")
        for key in ("notify.command", "notify.webhook", "params")
    ]


def test_every_line_says_where_it_comes_from(config: Path) -> None:
    """The file is named once, and each key with its line, its variable, its option or default."""
    done = ran("config", "--config", config, "--spool", "/here", PROMPTSPOOL_LANES__POLL="3")
    lines = done.stdout.splitlines()

    assert lines[0] == f"# {config}"
    assert 'spool.path = "/here"  # --spool' in lines
    assert 'spool.settle = "250ms"  # line 3' in lines
    assert "lanes.poll = 3  # $PROMPTSPOOL_LANES__POLL" in lines
    assert 'polling.cap = "2m"  # default' in lines
    assert 'providers.openai.max_bytes = "100MB"  # line 7' in lines
    assert 'profiles."my reviews".model = "m"  # line 12' in lines
    assert "profiles.plain.response_schema is not set" in done.stdout
    assert f'profiles.default.response_schema = "{config.parent}/review.json"  # line 15' in lines
    price, done_at = line_of(config, "input"), line_of(config, "done")
    assert f'prices."gpt-5.1".input = 0.25  # line {price}' in lines
    assert f'retention.done = "36h"  # line {done_at}' in lines


def test_only_what_was_set(config: Path) -> None:
    """`--changed` leaves out what nobody has set."""
    shown = tomllib.loads(ran("config", "--config", config, "--changed").stdout)

    assert shown["spool"] == {"settle": "250ms"}
    assert shown["retention"] == {"done": "36h"}
    assert shown.keys() == {"spool", "providers", "profiles", "prices", "retention"}


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_no_secret_is_shown(config: Path, option: list[str]) -> None:
    """A key is told of, never shown, wherever else it was written; neither is what may be one."""
    text = config.read_text().replace('model = "m"\nsystem', f'id = "{KEY}"\nmodel = "m"\nsystem')
    config.write_text(text)
    done = ran("config", "--config", config, *option, OUR_KEY=KEY)

    assert done.returncode == 0
    assert KEY not in done.stdout
    assert "secret-" not in done.stdout
    assert "https://hooks.example.com/***" in done.stdout
    assert "key found in $OUR_KEY" in done.stdout
    assert f"key found in {config.parent / 'key'}" in done.stdout


def test_where_keys_are(config: Path, tmp_path: Path) -> None:
    """A key may be a systemd credential, or missing; then it says how to set one."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "OUR_KEY").write_text(KEY)
    found = ran("config", "--config", config, CREDENTIALS_DIRECTORY=str(tmp_path / "credentials"))
    missing = ran("config", "--config", config)

    assert "# providers.openai: key found in the credential OUR_KEY" in found.stdout
    assert "# providers.openai: no key: set $OUR_KEY, or name a file" in missing.stdout
    assert missing.returncode == 0


def test_json(config: Path) -> None:
    """`--json` has every setting by its key: its value in seconds or bytes, and its origin."""
    config.write_text(CONFIG + '[metrics]\nlisten = "0.0.0.0:1"')
    shown = json.loads(
        ran("config", "--config", config, "--json", OUR_KEY=KEY, PROMPTSPOOL_LANES__POLL="3").stdout
    )

    assert shown["version"] == 1
    assert shown["file"] == str(config)
    assert shown["settings"]["spool.settle"] == {
        "value": 0.25,
        "is_masked": False,
        "origins": [{"kind": "file", "name": str(config), "line": 3}],
    }
    assert shown["settings"]["lanes.poll"]["origins"] == [
        {"kind": "environment", "name": "PROMPTSPOOL_LANES__POLL", "line": None}
    ]
    assert shown["settings"]["providers.openai.max_bytes"]["value"] == 100_000_000
    assert shown["settings"]["profiles.default.params"]["value"]["tools"] == [
        {"authorization": "***"}
    ]
    assert shown["settings"]["profiles.default.notify.command"]["value"] == [
        "/usr/bin/curl", "--header", "***", "--token", "***", "-v",
    ]  # fmt: skip
    assert shown["settings"]["profiles.default.params"]["is_masked"]
    assert shown["keys"]["openai"] == {"is_found": True, "text": "key found in $OUR_KEY"}
    assert [remark.partition(":")[0] for remark in shown["remarks"]] == ["metrics.listen"]


def test_a_broken_configuration(config: Path) -> None:
    """What cannot be used is told whole: every fault, and exit code 2."""
    config.write_text(CONFIG + "[polling]\nfirst = 0\ncap = 'x'")
    done = ran("config", "--config", config)
    first = line_of(config, "first")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"promptspool: {config}: 2 problems:"
    assert f"  line {first}: polling.first: found 0; " in done.stderr
    assert f"  line {first + 1}: polling.cap: found 'x'; " in done.stderr


def test_on_a_terminal(config: Path) -> None:
    """On a terminal it is a table in columns, which no value gets out of."""
    config.write_text(CONFIG.replace("250ms", "251ms").replace('id = "', 'id = "\\u001b[2J'))
    child = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "config", "--config", str(config), "--changed"],
        env=environ(OUR_KEY=KEY, TERM="xterm", NO_COLOR="1"),
        dimensions=(50, 160),
        encoding="utf-8",
        timeout=LIMIT_S,
    )
    child.expect(pexpect.EOF)
    screen = re.sub(r"\x1b\[[0-9;]*m", "", child.before or "")
    child.close()

    assert child.exitstatus == 0
    assert "\x1b[2J" not in (child.before or "")
    assert re.search(r"^key +value +from *\r$", screen, re.MULTILINE)
    assert re.search(r'^spool\.settle +"251ms" +line 3 *\r$', screen, re.MULTILINE)
    assert "providers.openai: key found in $OUR_KEY" in screen
