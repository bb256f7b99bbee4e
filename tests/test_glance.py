"""A glance at the configuration: what the daemon left of it, as long as that holds."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from commands import LIMIT_S, environ, ran
from promptspool.app import Daemon, leave_glance
from promptspool.errors import ConfigError
from promptspool.settings import Glance, glance, load
from promptspool.settings.proof import KEPT
from world import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CONFIG = """
[spool]
path = "prompts"

[providers.openai]
base_url = "https://api.example.com/v1"
max_cost_per_day = 5
max_tokens_enqueued = { "gpt-5-mini" = 1000 }

[providers.other]
base_url = "https://other.example.com/v1"

[profiles.default]
model = "gpt-5-mini"
response_schema = "schema.json"
"""

SCHEMA = '{"type": "object", "properties": {}, "additionalProperties": false, "required": []}'


def written(root: Path, text: str = CONFIG) -> Path:
    """Write a configuration and its schema, and make its spool; return the file."""
    (root / "prompts" / "state").mkdir(parents=True, exist_ok=True)
    (root / "elsewhere" / "state").mkdir(parents=True, exist_ok=True)
    (root / "schema.json").write_text(SCHEMA)
    (root / "promptspool.toml").write_text(text)

    return root / "promptspool.toml"


def left(path: Path, variables: Mapping[str, str], spool: Path | None = None) -> None:
    """Leave what a daemon that was started so leaves."""
    leave_glance(load(path, environ=variables, spool=spool), variables)


def meant(asked: Callable[..., Any], *arguments: Any, **options: Any) -> object:
    """Return what a configuration says to those who only look, or what is wrong with it."""
    try:
        found = asked(*arguments, **options)
    except ConfigError as error:
        return str(error)

    return (
        found.spool.path,
        found.spool.state,
        {
            name: (one.max_cost_per_day, one.max_cost_per_month, one.max_tokens_enqueued)
            for name, one in found.providers.items()
        },
    )


CHANGES: list[tuple[str, str]] = [
    ("", ""),
    ("max_cost_per_day = 5", "max_cost_per_day = 6"),
    ("max_cost_per_day = 5", "max_cost_per_day = -5"),
    ('path = "prompts"', 'path = "elsewhere"'),
    ('path = "prompts"', 'state = "elsewhere"'),
    ('path = "prompts"', "path = 3"),
    ("[spool]", "[spool"),
    ("[profiles.default]", "[profiles.default]\nunknown = 1"),
    ("[providers.other]\n", "[providers.another]\n"),
]
"""What may become of the file after the daemon has read it."""

VARIABLES = st.dictionaries(
    st.sampled_from(
        [
            "PROMPTSPOOL_SPOOL__PATH",
            "PROMPTSPOOL_SPOOL__STATE",
            "PROMPTSPOOL_PROVIDERS__OPENAI__MAX_COST_PER_MONTH",
            "PROMPTSPOOL_SPOOL__SETTLE",
            "PROMPTSPOOL_PORT",
            "PROMPTSPOOL_NOSUCH__KEY",
            "promptspool_spool__path",
        ]
    ),
    st.sampled_from(["prompts", "elsewhere", "7", "", "x\0y"]),
    max_size=2,
)


@given(
    before=VARIABLES,
    after=st.none() | VARIABLES,
    change=st.sampled_from(CHANGES),
    spool=st.sampled_from([None, "prompts", "elsewhere"]),
    schema=st.sampled_from([SCHEMA, "[]", SCHEMA + " "]),
    garbage=st.sampled_from([None, b"", b"{}", b"\xff"]),
)
@hypothesis_settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_glance_means_what_a_load_means(  # noqa: PLR0913, PLR0917 - what may be another
    tmp_path: Path,
    before: dict[str, str],
    after: dict[str, str] | None,
    change: tuple[str, str],
    spool: str | None,
    schema: str,
    garbage: bytes | None,
) -> None:
    """Whatever the daemon left, and whatever has changed since, there is one meaning."""
    path = written(tmp_path)

    try:
        left(path, before)
    except ConfigError:
        left(path, {})

    if change[0]:
        path.write_text(CONFIG.replace(*change))

    if schema != SCHEMA:
        (tmp_path / "schema.json").write_text(schema)

    if garbage is not None:
        (tmp_path / "prompts" / "state" / KEPT).write_bytes(garbage)

    place = None if spool is None else tmp_path / spool
    asked = {"spool": place, "environ": before if after is None else after}

    assert meant(glance, path, **asked) == meant(load, path, **asked)


def test_what_was_left_is_relied_on(tmp_path: Path) -> None:
    """As long as nothing is another, what the daemon left is all that is read."""
    path = written(tmp_path)

    assert not isinstance(glance(path, environ={}), Glance)  # nothing was left yet

    left(path, {})

    assert isinstance(glance(path, environ={}), Glance)
    assert isinstance(glance(None, environ={"PROMPTSPOOL_CONFIG": str(path)}), Glance)
    assert isinstance(glance(path, environ={}, spool=tmp_path / "prompts"), Glance)
    assert not isinstance(glance(path, environ={"PROMPTSPOOL_SPOOL__SETTLE": "1s"}), Glance)

    shared = {"PROMPTSPOOL_SPOOL__STATE": "elsewhere"}
    left(path, shared)
    other = glance(path, environ=shared, spool=tmp_path / "other")

    assert isinstance(glance(path, environ=shared), Glance)
    assert other.spool.path == tmp_path / "other"

    (tmp_path / "schema.json").write_text(SCHEMA + "\n")

    assert not isinstance(glance(path, environ={}), Glance)


def test_nothing_secret_is_left(tmp_path: Path) -> None:
    """Neither a variable's value nor anything of a profile gets into the file."""
    path = written(tmp_path, CONFIG + 'system = "our-secret-tone"\n')
    left(path, {"PROMPTSPOOL_PROFILES__DEFAULT__PARAMS": '{"key": "our-secret-key"}'})
    text = (tmp_path / "prompts" / "state" / KEPT).read_text()

    assert json.loads(text)["glance"]["providers"]["openai"]["max_cost_per_day"] == 5
    assert "our-secret" not in text


def test_a_place_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    """A daemon that cannot leave anything runs; who looks then reads all, and says the same."""
    path = written(tmp_path)
    (tmp_path / "prompts" / "state" / f"{KEPT}.part").mkdir()
    left(path, {})

    assert not isinstance(glance(path, environ={}), Glance)


@pytest.mark.anyio
async def test_the_daemon_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon leaves what it was started with."""
    path = written(tmp_path, CONFIG.replace("base_url", 'api_key_env = "K"\nbase_url'))
    monkeypatch.setenv("K", "sk-of-nobody")

    assert await Daemon(settings=load(path), clock=FakeClock(), is_draining=True).run()
    assert isinstance(glance(path), Glance)


IMPORTED = """
import sys
from promptspool.cli import main
sys.argv = ["promptspool", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "others"),
    [(["--help"], {"rich", "msgspec"}), (["health"], {"rich", "sqlite3"}), (["status"], set())],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_commands_import_what_they_need(
    tmp_path: Path, arguments: list[str], others: set[str]
) -> None:
    """Who only looks waits for neither pydantic nor the daemon's own libraries."""
    path = written(tmp_path)
    left(path, {})
    given = [*arguments, *(["--config", str(path)] if arguments != ["--help"] else [])]
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", IMPORTED, *given],
        env=environ(), capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    imported = set(done.stderr.splitlines()[-1].split())
    heavy = {"pydantic", "jinja2", "httpx", "asyncio", "structlog", "aiosqlite", "pyarrow"}

    assert "promptspool" in imported
    assert not imported & (heavy | others)


def test_a_faulty_configuration_is_told_as_ever(tmp_path: Path) -> None:
    """A command that only looks refuses what it always refused, with the same words."""
    path = written(tmp_path)
    left(path, {})
    path.write_text(CONFIG.replace("[profiles.default]", "[profiles.default]\nmodle = 1"))
    done = ran("status", "--config", path)

    assert done.returncode == 2
    assert "did you mean 'model'?" in done.stderr
