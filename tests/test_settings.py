from __future__ import annotations

import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from promptspool import settings
from promptspool.errors import ConfigError
from promptspool.settings import (
    Duration,
    ProfileSettings,
    ProviderSettings,
    Settings,
    Size,
)
from promptspool.settings.lines import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
PROVIDER = '[providers.openai]\nbase_url = "https://api.example.com/v1"\n'
SECTIONS: dict[str, type[BaseModel]] = {
    "spool": settings.SpoolSettings,
    "providers": settings.ProviderSettings,
    "polling": settings.PollingSettings,
    "retry": settings.RetrySettings,
    "lanes": settings.LaneSettings,
    "intake": settings.IntakeSettings,
    "profiles.default": settings.ProfileSettings,
    "profiles.default.notify": settings.NotifySettings,
    "metrics": settings.MetricsSettings,
    "retention": settings.RetentionSettings,
    "log": settings.LogSettings,
}
WITHOUT_DEFAULT = {
    "api_key_file", "system", "prompt", "id", "sheet", "encoding", "delimiter", "files", "split",
    "state", "max_cost", "max_cost_per_day", "max_cost_per_month", "webhook", "webhook_secret_env",
    "webhook_secret_file", "listen", "textfile", "done", "rejected",
}  # fmt: skip


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Settings]:
    """Load a configuration given as text, with the variables given by name and no others."""

    def load(text: str, **environ: str) -> Settings:
        (tmp_path / "promptspool.toml").write_text(text, encoding="utf-8")
        return settings.load(tmp_path / "promptspool.toml", environ=environ)

    return load


@pytest.fixture
def fault(load: Callable[..., Settings]) -> Callable[..., ConfigError]:
    """Load a configuration that cannot be used and return what is said about it."""

    def fault(text: str, **environ: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load(text, **environ)

        return caught.value

    return fault


def test_example_is_ready_to_run(tmp_path: Path) -> None:
    """The example works as it stands once the key is set."""
    file = tmp_path / "promptspool.toml"
    file.write_text(settings.example_config(), encoding="utf-8")

    loaded = settings.load(file, environ={})

    assert loaded.source == file
    assert loaded.spool.path == tmp_path / "spool"
    assert "default" in loaded.profiles
    openai = loaded.providers["openai"]
    assert settings.api_key(openai, "openai", {"OPENAI_API_KEY": "k"}) == "k"


def test_example_in_config_is_the_packaged_one() -> None:
    """There is one example, whichever way one comes to it."""
    shown = (ROOT / "config" / "promptspool.toml").read_text(encoding="utf-8")

    assert shown == settings.example_config()


@pytest.mark.parametrize("section", SECTIONS)
def test_example_shows_every_key(section: str) -> None:
    """Every key of every section stands in the example, set or commented out."""
    found = re.search(
        rf"^\[{re.escape(section)}[\].].*?(?=^\[|\Z)",
        settings.example_config(),
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None

    shown = re.findall(r"^(?:# )?([a-z_]+) = ", found[0], re.MULTILINE)

    assert sorted(shown) == sorted({*SECTIONS[section].model_fields} - {"notify"})


def test_example_shows_every_key_of_a_price() -> None:
    """What a model costs is shown whole, in one table."""
    found = re.search(
        r'^# "my-model" = (\{.*?\})$', settings.example_config(), re.MULTILINE | re.DOTALL
    )
    assert found is not None

    shown = tomllib.loads(f"price = {found[1].replace(chr(10) + '#', '')}")["price"]

    assert set(shown) == set(settings.PriceSettings.model_fields)
    assert settings.PriceSettings(**shown).input > 0


def test_example_has_every_section() -> None:
    """No section of the model is missing from the example."""
    assert {name.partition(".")[0] for name in SECTIONS} | {"prices"} == {*Settings.model_fields}


def test_example_shows_the_defaults(load: Callable[..., Settings]) -> None:
    """Removing every comment sign changes nothing but the keys that have no default."""
    text = settings.example_config()
    bare = load(text)
    without: Any = {**dict.fromkeys(WITHOUT_DEFAULT, True), "notify": WITHOUT_DEFAULT}
    unset = r"^# (?!extend|response_schema)([a-z_]+ = )"  # these two name what is not there

    full = load(re.sub(unset, r"\1", text, flags=re.MULTILINE))

    for section in Settings.model_fields:
        old, new = getattr(bare, section), getattr(full, section)

        if section == "prices":
            assert old == new == {}
            continue

        old, new = (next(iter(s.values())) if isinstance(s, dict) else s for s in (old, new))
        assert old.model_dump(exclude=without) == new.model_dump(exclude=without)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("200ms", 0.2),
        ("10s", 10),
        ("2m", 120),
        ("24h", 86_400),
        ("7d", 604_800),
        ("1.5s", 1.5),
        ("90", 90),
        (90, 90),
        (0.25, 0.25),
        (0, 0),
    ],
)
def test_duration(written: object, seconds: float) -> None:
    """A duration is a number with a unit, or a bare number of seconds."""
    assert TypeAdapter(Duration).validate_python(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [("190MB", 190_000_000), ("64KB", 64_000), ("1GB", 10**9), ("1.5 kb", 1_500), (7, 7)],
)
def test_size(written: object, size: int) -> None:
    """A size is decimal, in whole bytes."""
    assert TypeAdapter(Size).validate_python(written) == size


@pytest.mark.parametrize("kind", [TypeAdapter(Duration), TypeAdapter(Size)], ids=["time", "size"])
@pytest.mark.parametrize(
    "written",
    ["", "s", "2 parsecs", "-1s", -1, True, None, [], float("nan"), float("inf"), 10**18],
)
def test_no_quantity(kind: TypeAdapter[float], written: object) -> None:
    """What is not a quantity is refused, never guessed at."""
    with pytest.raises(ValidationError):
        kind.validate_python(written)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.booleans()))
def test_any_quantity_is_finite_or_refused(written: object) -> None:
    """No input makes a duration or a size that is negative, endless or an unexpected exception."""
    for kind in (Duration, Size):
        try:
            value = TypeAdapter(kind).validate_python(written)
        except ValidationError:
            continue

        assert 0 <= value < float("inf")


def test_environment_wins(load: Callable[..., Settings]) -> None:
    """A variable replaces one key and leaves its neighbours alone, also in named sections."""
    loaded = load(
        PROVIDER + 'max_requests = 7\n[profiles.My-Reviews]\nmodel = "m"\nparams = { n = 1 }',
        PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL="http://127.0.0.1:8080/v1/",
        PROMPTSPOOL_POLLING__FIRST="200ms",
        PROMPTSPOOL_PROFILES__MY_REVIEWS__SYSTEM="Be brief.",
        PROMPTSPOOL_PROFILES__MY_REVIEWS__PARAMS__TEMPERATURE="0.5",
        PROMPTSPOOL_CONFIG="elsewhere",
        PROMPTSPOOL_SERVICE_HOST="10.0.0.1",
    )

    assert loaded.providers["openai"].base_url == "http://127.0.0.1:8080/v1"
    assert loaded.providers["openai"].max_requests == 7
    assert loaded.polling.first == pytest.approx(0.2)
    assert list(loaded.profiles) == ["My-Reviews"]
    assert loaded.profiles["My-Reviews"].system == "Be brief."
    assert loaded.profiles["My-Reviews"].params == {"n": 1, "temperature": 0.5}


def test_params_in_the_environment(load: Callable[..., Settings]) -> None:
    """Params are JSON: as one variable, or a variable each, where what is not JSON is a string."""
    loaded = load(
        PROVIDER,
        PROMPTSPOOL_PROFILES__X='{"model": "m"}',
        PROMPTSPOOL_PROFILES__X__PARAMS='{"user": "7", "n": 7}',
        PROMPTSPOOL_PROFILES__Y__MODEL="m",
        PROMPTSPOOL_PROFILES__Y__PARAMS__USER="me",
        PROMPTSPOOL_PROFILES__Y__PARAMS__REASONING__EFFORT='"7"',
        PROMPTSPOOL_PROFILES__Y__PARAMS__N="7",
    )

    assert loaded.profiles["x"].params == {"user": "7", "n": 7}
    assert loaded.profiles["y"].params == {"user": "me", "reasoning": {"effort": "7"}, "n": 7}


def test_every_key_can_be_set_by_the_environment(load: Callable[..., Settings]) -> None:
    """The environment alone can say all that the file can."""
    values = tomllib.loads(
        re.sub(
            r"^# (?!extend|response_schema)([a-z_]+ = )",
            r"\1",
            settings.example_config(),
            flags=re.MULTILINE,
        )
    )
    environ = {
        f"PROMPTSPOOL_{section}__{path}".upper(): value
        if isinstance(value, str)
        else json.dumps(value)
        for section, table in values.items()
        for path, value in _leaves(table)
    }
    environ["PROMPTSPOOL_PROVIDERS__OPENAI__CLEANUP"] = "false"

    assert len(environ) > 40
    assert load("", **environ).providers["openai"].cleanup is False


def _leaves(table: dict[str, object]) -> list[tuple[str, object]]:
    found = []

    for key, value in table.items():
        if isinstance(value, dict) and value:
            found += [(f"{key}__{path}", leaf) for path, leaf in _leaves(value)]
        else:
            found.append((key, value))

    return found


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("[spool\n", "promptspool.toml", "line 1"),
        ('[spool]\nsetle = "2s"', "spool.setle", "did you mean 'settle'"),
        ('[spool]\nsettle = "soon"', "spool.settle", "'soon'; write a duration"),
        ("[spol]", "spol", "did you mean 'spool'"),
        ("spool = 3", "spool", "write a table of keys"),
        ('_env_file = "x"', "_env_file", "unknown key"),
        ("[lanes]\npoll = 0", "lanes.poll", "found 0"),
        ("[polling]\nfactor = 0.5", "polling.factor", "found 0.5"),
        ("[providers.openai]", "providers.openai.base_url", "missing"),
        (PROVIDER + "[profiles.x]", "profiles.x.model", "missing"),
        (PROVIDER + '[profiles.".x"]\nmodel = "m"', "profiles..x", "found '.x'"),
        (PROVIDER + '[profiles.x]\nmodel = "m"\nendpoint = "/v1/videos"', "x.endpoint", "/videos"),
    ],
)
def test_fault(fault: Callable[..., ConfigError], text: str, key: str, says: str) -> None:
    """A fault names the file, the key, what was found and what to write."""
    error = fault(text)

    assert error.key.endswith(key)
    assert says in error.reason
    assert "promptspool.toml" in str(error)


def test_unknown_provider(fault: Callable[..., ConfigError]) -> None:
    """A profile refers to a provider that exists."""
    error = fault(PROVIDER + '[profiles.x]\nmodel = "m"\nprovider = "y"')

    assert "profiles.x.provider: found 'y'; write one of: openai" in str(error)


def test_a_profile_extends_another(load: Callable[..., Settings]) -> None:
    """What a profile does not set it takes from the one that it extends, however far back."""
    loaded = load(
        PROVIDER
        + """
        [profiles.base]
        model = "m"
        system = "Be brief."
        params = { temperature = 0, n = 1 }
        [profiles.middle]
        extend = "base"
        priority = 5
        [profiles.top]
        extend = "middle"
        system = "Be kind."
        params = { n = 2 }
        """
    )

    assert loaded.profiles["top"].model == "m"
    assert loaded.profiles["top"].system == "Be kind."
    assert loaded.profiles["top"].priority == 5
    assert loaded.profiles["top"].params == {"temperature": 0, "n": 2}
    assert loaded.profiles["base"].params == {"temperature": 0, "n": 1}


@pytest.mark.parametrize(
    ("profiles", "says"),
    [
        ('[profiles.x]\nextend = "y"\n[profiles.z]\nmodel = "m"', "found 'y'; write one of: z"),
        ('[profiles.x]\nextend = "x"', "x extends x"),
        (
            '[profiles.x]\nextend = "y"\n[profiles.y]\nextend = "z"\n[profiles.z]\nextend = "x"',
            "x extends y extends z extends x",
        ),
    ],
)
def test_nothing_to_extend(fault: Callable[..., ConfigError], profiles: str, says: str) -> None:
    """A profile extends one that exists, and none extends itself."""
    error = fault(PROVIDER + profiles)

    assert error.key == "profiles.x.extend"
    assert says in error.reason


def test_a_schema_is_read_with_the_configuration(
    load: Callable[..., Settings], tmp_path: Path
) -> None:
    """A profile names a file seen from the configuration's folder, or holds the schema itself."""
    (tmp_path / "review.json").write_text('{"type": "object", "properties": {}}')

    loaded = load(
        PROVIDER
        + """
        [profiles.x]
        model = "m"
        response_schema = "review.json"
        [profiles.y]
        model = "m"
        response_schema = { type = "object" }
        """
    )

    assert loaded.profiles["x"].response_schema == {"type": "object", "properties": {}}
    assert loaded.profiles["y"].response_schema == {"type": "object"}


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), ("{", "is no JSON"), ("[]", "no JSON Schema")],
)
def test_no_schema(
    fault: Callable[..., ConfigError], tmp_path: Path, content: str | None, says: str
) -> None:
    """A schema that cannot be used is said at the start, with key and file."""
    if content is not None:
        (tmp_path / "review.json").write_text(content)

    error = fault(PROVIDER + '[profiles.x]\nmodel = "m"\nresponse_schema = "review.json"')

    assert error.key == "profiles.x.response_schema"
    assert says in error.reason
    assert "review.json" in error.reason


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ('response_schema = { type = "object" }\nendpoint = "/v1/embeddings"', "take one"),
        ('answers = ["npy"]', "only /v1/embeddings makes npy"),
        ('answers = ["xml"]', "found 'xml'"),
        ('delimiter = "::"', "found '::'"),
        ('encoding = "base64"', "write an encoding such as"),
        ("priority = 101", "found 101"),
        ("params = { temperature = nan }", "nan and inf are none of them"),
        ("params = { a = [[1.0, inf]] }", "nan and inf are none of them"),
        ("params.x" + ".a" * 300 + " = 1", "no more than 100 tables"),
        ('system = "Be brief."\nendpoint = "/v1/completions"', "system: only"),
    ],
)
def test_what_a_profile_cannot_be(
    fault: Callable[..., ConfigError], values: str, says: str
) -> None:
    """What the endpoint has no place for, or nothing can be done with, is refused at the start."""
    assert says in str(fault(PROVIDER + f'[profiles.x]\nmodel = "m"\n{values}'))


def _changed(load: Callable[..., Settings], folder: Path, sidecar: str) -> ProfileSettings:
    (folder / "may.csv.toml").write_text(sidecar)
    loaded = load(
        PROVIDER + '[profiles.x]\nmodel = "m"\nfiles = "images"\nparams = { n = 1, top_p = 1 }'
    )
    profile = settings.profile_for(loaded, "x", folder / "may.csv.toml", "may.csv.toml")
    assert profile is not None

    return profile


def test_a_sidecar_changes_a_profile(load: Callable[..., Settings], tmp_path: Path) -> None:
    """A sidecar's keys lie over the profile's, table by table; the rest stays as it was."""
    profile = _changed(load, tmp_path, 'system = "Be brief."\nparams = { n = 2 }')

    assert profile.system == "Be brief."
    assert profile.params == {"n": 2, "top_p": 1}
    assert profile.files == tmp_path / "images"


def test_a_schema_is_replaced_as_a_whole(load: Callable[..., Settings], tmp_path: Path) -> None:
    """A schema is never mixed with another; keys that differ by case alone are two."""
    loaded = load(
        PROVIDER + '[profiles.x]\nmodel = "m"\nparams = { a-b = 1 }\n'
        'response_schema = { type = "object", required = ["a"] }'
    )
    sidecar = tmp_path / "may.csv.toml"
    sidecar.write_text('params = { A_B = 2 }\nresponse_schema = { type = "object" }')
    profile = settings.profile_for(loaded, "x", sidecar)

    assert profile is not None
    assert profile.response_schema == {"type": "object"}
    assert profile.params == {"a-b": 1, "A_B": 2}


@pytest.mark.parametrize(
    ("sidecar", "says"),
    [
        ("model = ", "not TOML"),
        ("#" * 1_000_001, "larger than 1,000,000 bytes"),
        ("a" + ".a" * 10_001 + " = 1", "more than 10,000 dots"),
        ("modle = 'm'", "modle: unknown key; did you mean 'model'?"),
        ("max_attempts = 0", "max_attempts: found 0"),
        ("provider = 'elsewhere'", "write one of: openai"),
        ("files = '/etc'", "files: a sidecar cannot set it"),
        ("prompt = '{% for i in range(9) %}{% endfor %}'", "has no {% for %}"),
        ("id = '{% set a = 1 %}'", "has no {% set %}"),
        ("prompt = '{% macro m() %}{% endmacro %}'", "has no {% macro %}"),
        ("prompt = '{{'", "line 1 of the template"),
        ("extend = 'y'", "extend: a sidecar cannot set it"),
        ("response_schema = '/etc/passwd'", "a sidecar cannot name a file"),
    ],
)
def test_a_sidecar_that_cannot_be_followed(
    load: Callable[..., Settings], tmp_path: Path, sidecar: str, says: str
) -> None:
    """A fault in a sidecar names it and the key; a sidecar never names a file to read."""
    with pytest.raises(ConfigError) as caught:
        _changed(load, tmp_path, sidecar)

    assert says in str(caught.value)
    assert "may.csv.toml" in str(caught.value)


def test_template_line(fault: Callable[..., ConfigError]) -> None:
    """A template that does not compile is refused with the line inside the template."""
    error = fault(PROVIDER + '[profiles.x]\nmodel = "m"\nprompt = "a\\nb\\n{{ c"')

    assert error.key == "profiles.x.prompt"
    assert "line 3 of the template" in error.reason


@pytest.mark.parametrize(
    "template", ["{{ 10 ** 99999999 }}", "{{ " + "(" * 300 + ")" * 300 + " }}"]
)
def test_a_template_computes_nothing_when_it_is_read(
    load: Callable[..., Settings], template: str
) -> None:
    """A template is only looked at: one that would compute for ever, or is deep, does no harm."""
    with suppress(ConfigError):
        load(PROVIDER + f'[profiles.x]\nmodel = "m"\nprompt = "{template}"')


def test_all_faults_are_listed(fault: Callable[..., ConfigError]) -> None:
    """One run shows every fault, so that one edit can mend them all."""
    error = fault('[spool]\nsettle = "x"\nfoo = 1\n[lanes]\npoll = 65\n')

    assert "3 problems" in error.reason
    assert all(key in error.reason for key in ("spool.settle", "spool.foo", "lanes.poll"))


def test_every_fault_has_its_line(fault: Callable[..., ConfigError]) -> None:
    """Each fault is told with the line of its key, the variable, or without either if unsure."""
    error = fault(
        """# a comment
[polling]
first = "soon"  # wrong
spool.settle = 1
[providers.openai]
base_url = "https://api.example.com/v1"
max_creates = 0
[profiles.x]
system = '''
model = "not here"
'''
lanes = 3
answers = [
  "jsonl",
  "xml",
]
""",
        PROMPTSPOOL_POLLING__CAP="later",
        PROMPTSPOOL_PROFILES__Y__PRIORITY="1",
    )

    assert [line.split("; ")[0] for line in error.reason.splitlines()] == [
        "8 problems:",
        "  line 7: providers.openai.max_creates: found 0",
        "  line 3: polling.first: found 'soon'",
        "  $PROMPTSPOOL_POLLING__CAP: polling.cap: found 'later'",
        "  line 4: polling.spool: unknown key",
        "  line 8: profiles.x.model: missing",
        "  line 13: profiles.x.answers: found 'xml'",
        "  line 12: profiles.x.lanes: unknown key",
        "  profiles.y.model: missing",
    ]


def test_one_fault_is_one_line(fault: Callable[..., ConfigError], tmp_path: Path) -> None:
    """A lone fault begins with file and line, so that an editor can jump there."""
    error = fault("\n\n[polling]\nfirst = 0")

    assert str(error).startswith(f"{tmp_path}/promptspool.toml, line 4: polling.first: found 0; ")


def test_an_inherited_fault_has_the_line_where_it_was_written(
    fault: Callable[..., ConfigError],
) -> None:
    """What a profile has from another is to be mended there."""
    error = fault(
        PROVIDER + '[profiles.a]\nmodel = "m"\nsystem = "s"\n'
        '[profiles.b]\nextend = "a"\nendpoint = "/v1/completions"'
    )

    assert ", line 5: profiles.b.system: only" in str(error)


TOML = """\ufeff# one
title = "x" # [no.table]
a.b."c.d" = 1

[profiles.x.notify]
on = []
[profiles.x]
text = \"\"\"
[not.a.table]
key = 1
\"\"\"
list = [ # [nor.this]
  "]",
  { deep = 1 },
]
'quo ted' = { in = { line = 1 }, e = [] }
[[tools]]
name = 1
[[tools]]
name = 2
[ spaced . "out" ]
last = 1"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines(end: str) -> None:
    """Every key and table has the line in which it is written, whatever surrounds it."""
    text = TOML.removeprefix("\ufeff").replace("\n", end)
    tomllib.loads(text)

    assert lines_of(text) == {
        ("title",): 2,
        ("a",): 3,
        ("a", "b"): 3,
        ("a", "b", "c.d"): 3,
        ("profiles",): 5,
        ("profiles", "x"): 7,
        ("profiles", "x", "notify"): 5,
        ("profiles", "x", "notify", "on"): 6,
        ("profiles", "x", "text"): 8,
        ("profiles", "x", "list"): 12,
        ("profiles", "x", "quo ted"): 16,
        ("profiles", "x", "quo ted", "in"): 16,
        ("profiles", "x", "quo ted", "in", "line"): 16,
        ("profiles", "x", "quo ted", "e"): 16,
        ("tools",): 17,
        ("tools", "name"): 18,
        ("spaced",): 21,
        ("spaced", "out"): 21,
        ("spaced", "out", "last"): 22,
    }


@pytest.mark.parametrize(
    "text",
    [
        "x.a" + ".a" * 1_000 + " = 1",
        "[x.a" + ".a" * 1_000 + "]\na = 1",
        "x = [\n" + "[1],\n" * 1_000 + "]",
        "x = {a={" * 100 + "}}" * 100,
    ],
    ids=["key", "header", "array", "tables"],
)
def test_lines_of_something_hostile(text: str) -> None:
    """Whoever writes a sidecar cannot keep the daemon busy with where its faults are."""
    tomllib.loads(text)
    found = lines_of(text)

    assert len(found) < 40
    assert found.get(("x",), 1) == 1


def test_lines_of_the_example() -> None:
    """Every key that the example sets is in the line that it is said to be in."""
    text = settings.example_config()
    found = lines_of(text)

    assert ("profiles", "default", "model") in found

    for where, number in found.items():
        assert where[-1] in text.splitlines()[number - 1]


def test_a_file_may_begin_with_a_mark(load: Callable[..., Settings]) -> None:
    """What some editors put at the start of UTF-8 is no fault."""
    assert load("\ufeff" + PROVIDER).providers


_NAMES = st.sampled_from([
    "spool", "path", "state", "settle", "providers", "openai", "base_url", "api_key_file", "first",
    "polling", "profiles", "default", "model", "extend", "response_schema", "params", "notify",
    "webhook", "command", "prices", "input", "metrics", "listen", "textfile", "history", "x", "",
])  # fmt: skip
_VALUES = st.one_of(
    st.sampled_from(['"default"', '"~nobody/x"', '"a\\u0000b"', '"m"', '"/"', '"."', "1979-05-27"]),
    st.sampled_from(['"https://example.com/x"', '"openai"', "{}", "[]", "nan", "1e400", "true"]),
    st.integers().map(str),
    st.text(st.characters(codec="utf-8"), max_size=8).map(json.dumps),
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    st.lists(st.tuples(st.lists(_NAMES, min_size=1, max_size=4), _VALUES), min_size=1, max_size=6)
)
def test_any_file_is_loaded_or_refused(tmp_path: Path, lines: list[tuple[list[str], str]]) -> None:
    """Whatever a file says, it is loaded, or refused in words; nothing else comes of it."""
    text = "".join(
        f"{'.'.join(json.dumps(key) for key in keys)} = {value}\n" for keys, value in lines
    )
    file = tmp_path / "promptspool.toml"
    file.write_text(text + PROVIDER * ("openai" not in text), encoding="utf-8")

    with suppress(ConfigError):
        loaded, sources = settings.traced(file, environ={})
        assert settings.effective(loaded, sources)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[spool]\nstate = "spool/inbox/state"', "line 4: spool.state: "),
        ('[spool]\nstate = "spool/outbox"', "is in outbox/ of the spool"),
        ('[spool]\nstate = "spool"', "is the spool itself"),
        ('[metrics]\ntextfile = "spool/done/x.prom"', "line 4: metrics.textfile: "),
        ('[metrics]\nlisten = "9464x"', "write HOST:PORT"),
        ('[retention]\nhistory = "71h"', "line 4: retention.history: 255,600 s is shorter"),
        ('[retention]\ndone = "0s"', "line 4: retention.done: found '0s'"),
        ("[prices.m]\ninput = -1", "line 4: prices.m.input: found -1"),
        ("[prices.m]\noutput = 1", "line 3: prices.m.input: missing"),
        ('[prices.m]\ninput = 1\nas_of = "2026-02-30"', 'write a day such as "2026-11-20"'),
        ("[profiles.x]\nmodel = 'm'\nmax_cost = -1", "line 5: profiles.x.max_cost: found -1"),
        ("max_cost = inf", "providers.openai.max_cost: found inf"),
        ("max_tokens_enqueued = { m = 0 }", "providers.openai.max_tokens_enqueued.m: found 0"),
    ],
)
def test_what_a_configuration_cannot_be(
    fault: Callable[..., ConfigError], text: str, says: str
) -> None:
    """What makes no sense, by itself or with the rest, is refused before anything is done."""
    assert says in str(fault(PROVIDER + text))


@pytest.mark.parametrize(
    ("notify", "says"),
    [
        ('command = ["next"]', "command: write the whole path of the program"),
        ('command = ["./next"]', "command: write the whole path of the program"),
        ('command = ["/next", "\\u0000"]', "command: no argument of a program"),
        ('command = [""]', "command: "),
        ('webhook = "https://example.com/x"', "webhook: no secret to sign with"),
        ('webhook = "http://example.com/x"\nwebhook_secret_env = "A"', "webhook: write https://"),
        ('webhook = "https://a:b@example.com/"', "webhook: write the plain address"),
        ('webhook = "example.com"', "webhook: write an address such as"),
        ('on = ["started"]', "on: found 'started'"),
    ],
)
def test_who_cannot_be_told(fault: Callable[..., ConfigError], notify: str, says: str) -> None:
    """A notice that would never arrive is refused at the start, with the line of its key."""
    error = fault(PROVIDER + f'[profiles.x]\nmodel = "m"\n[profiles.x.notify]\n{notify}')

    assert f", line 6: profiles.x.notify.{says}" in str(error)


def test_a_webhook_is_kept_as_it_was_written(load: Callable[..., Settings]) -> None:
    """An address with a query, or a slash at its end, is not another address."""
    address = "https://hooks.example.com/a/?sig=b"
    notify = f'webhook = "{address}"\nwebhook_secret_file = "hook"'
    loaded = load(PROVIDER + f'[profiles.x]\nmodel = "m"\n[profiles.x.notify]\n{notify}')

    assert loaded.profiles["x"].notify.webhook == address


def test_a_private_webhook_may_be_plain(load: Callable[..., Settings]) -> None:
    """`allow_private` is for what is in one's own network, where certificates are rare."""
    notify = 'webhook = "http://10.0.0.7/"\nwebhook_secret_env = "A"\nallow_private = true'
    loaded = load(PROVIDER + f'[profiles.x]\nmodel = "m"\n[profiles.x.notify]\n{notify}')

    assert loaded.profiles["x"].notify.allow_private


def test_remarks(load: Callable[..., Settings]) -> None:
    """What is allowed but may not be meant is remarked, with its key; the usual is not."""
    odd = load(
        PROVIDER + "max_cost = 30.0\nmax_cost_per_day = 20.0\nmax_cost_per_month = 10.0\n"
        '[metrics]\nlisten = "0.0.0.0:9464"'
    )
    usual = load(PROVIDER + "max_cost = 1.0\nmax_cost_per_month = 10.0\n[metrics]\nlisten = 9464")

    assert [remark.partition(":")[0] for remark in settings.remarks(odd)] == [
        "providers.openai.max_cost",
        "providers.openai.max_cost_per_day",
        "metrics.listen",
    ]
    assert settings.remarks(usual) == []


def test_origins(load: Callable[..., Settings], tmp_path: Path) -> None:
    """Every setting says who set it: nobody, a line of the file, a variable, the option."""
    load(
        PROVIDER + '[profiles.My-Base]\nmodel = "m"\nparams = { n = 1 }\n'
        '[profiles.top]\nextend = "My-Base"\nsystem = "s"'
    )
    environ = {
        "PROMPTSPOOL_PROFILES__MY_BASE__PARAMS__TOP_P": "1",
        "PROMPTSPOOL_PROFILES__TOP__SYSTEM": "t",
        "PROMPTSPOOL_PRICES__M": '{"input": 1, "batch_input": 0.5}',
        "PROMPTSPOOL_LOG__LEVEL": "debug",
    }
    loaded, sources = settings.traced(
        tmp_path / "promptspool.toml", spool=tmp_path / "here", environ=environ
    )
    found = {
        one.where: [str(origin).removeprefix(f"{tmp_path}/") for origin in one.origins]
        for one in settings.effective(loaded, sources)
    }

    assert found["spool", "path"] == ["--spool"]
    assert found["spool", "settle"] == ["default"]
    assert found["providers", "openai", "base_url"] == ["promptspool.toml, line 2"]
    assert found["profiles", "top", "model"] == ["promptspool.toml, line 4"]
    assert found["profiles", "top", "extend"] == ["promptspool.toml, line 7"]
    assert found["profiles", "top", "system"] == ["$PROMPTSPOOL_PROFILES__TOP__SYSTEM"]
    assert found["profiles", "My-Base", "params"] == [
        "promptspool.toml, line 5",
        "$PROMPTSPOOL_PROFILES__MY_BASE__PARAMS__TOP_P",
    ]
    assert found["prices", "m", "batch_input"] == ["$PROMPTSPOOL_PRICES__M"]
    assert found["prices", "m", "output"] == ["default"]
    assert found["log", "level"] == ["$PROMPTSPOOL_LOG__LEVEL"]


def test_what_has_changed(load: Callable[..., Settings]) -> None:
    """Two configurations differ by the names of keys; a section that is new or gone is one name."""
    profile = '[profiles.a]\nmodel = "m"\nparams = { n = 1 }\n'
    before = load(PROVIDER + profile + '[profiles.gone]\nmodel = "m"')
    after = load(
        PROVIDER + "timeout = 7\n" + profile.replace("n = 1", "n = 2") + "[prices.m]\ninput = 1"
    )

    assert settings.changed(before, after) == [
        "prices.m",
        "profiles.a.params",
        "profiles.gone",
        "providers.openai.timeout",
    ]
    assert settings.changed(after, after) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("PROMPTSPOOL_SPOOL__SETTLE", "$PROMPTSPOOL_SPOOL__SETTLE: spool.settle: found"),
        ("PROMPTSPOOL_SPOOL__SETLE", "did you mean 'settle'"),
        ("PROMPTSPOOL_SPOL__SETTLE", "did you mean 'spool'"),
        ("PROMPTSPOOL_SPOOL", "PROMPTSPOOL_SPOOL__KEY"),
        ("PROMPTSPOOL_PROFILES__X", "$PROMPTSPOOL_PROFILES__X: profiles.x: found"),
        ("PROMPTSPOOL_PROFILES__X__PARAMS", "$PROMPTSPOOL_PROFILES__X__PARAMS: profiles.x.params"),
        ("PROMPTSPOOL_PROFILES__X__NOTIFY__ON", "$PROMPTSPOOL_PROFILES__X__NOTIFY__ON: write JSON"),
        (
            "PROMPTSPOOL_PROVIDERS__OPENAI__MAX_TOKENS_ENQUEUED",
            "$PROMPTSPOOL_PROVIDERS__OPENAI__MAX_TOKENS_ENQUEUED: write JSON",
        ),
    ],
)
def test_fault_in_the_environment(fault: Callable[..., ConfigError], name: str, says: str) -> None:
    """A variable that cannot be used is named, and a misspelt one is not ignored."""
    assert says in str(fault(PROVIDER, **{name: "{x"}))


def test_a_link_that_leads_to_itself(load: Callable[..., Settings], tmp_path: Path) -> None:
    """A path that nobody can follow is told (Python 3.13 follows it no more), and ends nothing."""
    (tmp_path / "loop").symlink_to("loop")

    with suppress(ConfigError):
        load(PROVIDER + 'api_key_file = "loop"\n')


@pytest.mark.parametrize(
    "base_url",
    [
        "http://api.example.com/v1",
        "http://127.0.0.1.example.com/v1",
        "http://localhost.example.com/v1",
        "ftp://localhost/v1",
        "api.example.com/v1",
        "https://user:secret@api.example.com/v1",
        "https://api.example.com/v1?key=secret",
        "https://api.example.com:99999/v1",
        "https://[",
        "",
    ],
)
def test_base_url_refused(fault: Callable[..., ConfigError], base_url: str) -> None:
    """A key is never sent in the clear to another machine, and an address holds no secrets."""
    error = fault(f'[providers.x]\nbase_url = "{base_url}"')

    assert error.key == "providers.x.base_url"
    assert "secret" not in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "[::1]:8080", "sim.localhost"])
def test_loopback_may_be_plain(host: str) -> None:
    """A provider on this machine may be spoken to without TLS."""
    assert ProviderSettings(base_url=f"http://{host}/").base_url == f"http://{host}"


def test_plain_http_is_allowed_on_demand(
    load: Callable[..., Settings], fault: Callable[..., ConfigError]
) -> None:
    """`http://` to another machine is refused with both ways out, and taken with `allow_http`."""
    plain = '[providers.x]\nbase_url = "http://10.0.0.7:8000/v1"\n'
    error = fault(plain + "allow_http = false")

    assert error.key == "providers.x.base_url"
    assert "write https://, or allow_http = true" in error.reason
    assert load(plain + "allow_http = true").providers["x"].allow_http
    assert load(plain, PROMPTSPOOL_PROVIDERS__X__ALLOW_HTTP="true").providers["x"].allow_http


@pytest.mark.parametrize(
    "text",
    [
        '[providers.x]\napi_key = "sk-secret"',
        '[providers.x]\napi_key_env = "sk-secret"',
        '[providers.x]\nbase_url = "sk-secret"',
        '[profiles.x]\nparams = "sk-secret"',
        '[profiles.x.notify]\nwebhook = "sk-secret"',
        '[profiles.x.notify]\nwebhook = "http://example.com/sk-secret"\nwebhook_secret_env = "A"',
        '[profiles.x.notify]\ncommand = ["sk-secret"]',
        '[profiles.x.notify]\ncommand = "sk-secret"',
        '[profiles.x.notify]\nwebhook_secret_env = "sk-secret"',
        '[profiles]\nx = { model = 1, params = { authorization = "sk-secret" }, n = 1 }',
    ],
)
def test_misplaced_key_is_not_repeated(fault: Callable[..., ConfigError], text: str) -> None:
    """A key pasted into the wrong place does not reach the message."""
    if "[profiles.x.notify]" in text:
        text = PROVIDER + '[profiles.x]\nmodel = "m"\n' + text

    assert "sk-secret" not in str(fault(text))


def test_settings_are_frozen(load: Callable[..., Settings]) -> None:
    """Nothing changes a setting once it is loaded."""
    loaded = load(PROVIDER)

    with pytest.raises(ValidationError):
        loaded.spool.settle = 3.0

    with pytest.raises(ValidationError):
        loaded.log = settings.LogSettings()


def test_made_directly_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings made in code are what the code says."""
    monkeypatch.setenv("PROMPTSPOOL_LOG__LEVEL", "debug")

    assert Settings().log.level == "info"
    assert Settings().source is None


def test_paths(load: Callable[..., Settings], tmp_path: Path) -> None:
    """Paths in the file are relative to the file; --spool is relative to the working directory."""
    loaded = load(PROVIDER + 'api_key_file = "keys/openai"\n[spool]\npath = "../spool"')
    overridden = settings.load(loaded.source, spool=Path("here"), environ={})

    assert loaded.spool.path == tmp_path.parent / "spool"
    assert loaded.providers["openai"].api_key_file == tmp_path / "keys" / "openai"
    assert overridden.spool.path == Path.cwd() / "here"


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config comes before $PROMPTSPOOL_CONFIG, which comes before ./promptspool.toml."""
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / name for name in ("a.toml", "b.toml", "promptspool.toml")]

    for file in files:
        file.write_text(PROVIDER, encoding="utf-8")

    environ = {"PROMPTSPOOL_CONFIG": "b.toml"}

    assert settings.load(Path("a.toml"), environ=environ).source == files[0]
    assert settings.load(None, environ=environ).source == files[1]
    assert settings.load(None, environ={}).source == files[2]


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file the message says where it was looked for and how to make one."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"looked in .*/promptspool\.toml.*promptspool init DIR"):
        settings.load(None, environ={})

    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        settings.load(Path("nowhere.toml"), environ={})


def test_file_that_is_no_text(tmp_path: Path) -> None:
    """A file in another encoding is named, not guessed at."""
    file = tmp_path / "promptspool.toml"
    file.write_bytes(b'[spool]\npath = "\xff"')

    with pytest.raises(ConfigError, match="not UTF-8 at byte 16"):
        settings.load(file, environ={})


def test_key_order(tmp_path: Path) -> None:
    """The key comes from the variable, else the file, else the systemd credential."""
    (tmp_path / "file").write_text("from-file\n", encoding="utf-8")
    (tmp_path / "openai").write_text("from-credential\n", encoding="utf-8")
    provider = ProviderSettings(
        base_url="https://x", api_key_env="KEY", api_key_file=tmp_path / "file"
    )
    bare = ProviderSettings(base_url="https://x")
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    assert settings.api_key(provider, "openai", {"KEY": " from-env "}) == "from-env"
    assert settings.api_key(provider, "openai", {"KEY": ""}) == "from-file"
    assert settings.api_key(bare, "openai", credentials) == "from-credential"


@pytest.mark.parametrize("key", ["two words", "ünicode", "a\nb", "a\x00b"])
def test_impossible_key(key: str) -> None:
    """A key that no header can carry is refused here, without repeating it."""
    provider = ProviderSettings(base_url="https://x", api_key_env="KEY")

    with pytest.raises(ConfigError) as caught:
        settings.api_key(provider, "openai", {"KEY": key})

    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "write api_key_env"),
        ({"api_key_env": "KEY"}, r"set \$KEY"),
        ({"api_key_file": "/nonexistent/key"}, "No such file"),
    ],
)
def test_no_key(values: dict[str, str], says: str) -> None:
    """A missing key says where to put it."""
    provider = ProviderSettings.model_validate({"base_url": "https://x", **values})

    with pytest.raises(ConfigError, match=says):
        settings.api_key(provider, "openai", {})
