"""From a file and the environment to `Settings`, or to a message that says what to write.

Raises `ConfigError`, which is bad data.
"""

from __future__ import annotations

import json
import os
import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from promptspool.errors import ConfigError
from promptspool.settings.agreement import disagreements
from promptspool.settings.faults import faults_of, known, told
from promptspool.settings.finding import FILE_NAME, anchored, config_file, variables_of
from promptspool.settings.layers import folded, laid, laid_by_environment
from promptspool.settings.profiles import completed
from promptspool.settings.reading import read
from promptspool.settings.sections import Settings
from promptspool.settings.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from promptspool.settings.lines import Where
    from promptspool.settings.reading import Look

_JSON_KEYS = frozenset({"params", "response_schema", "images", "answers"})
"""Keys of a profile that are JSON in the environment; what is not JSON is a string."""

_AnySection = TypeVar("_AnySection", bound=BaseModel)


def load(
    config: Path | None,
    *,
    spool: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the configuration file, lay the environment over it and check the whole.

    Without `config` the file is looked for in `$PROMPTSPOOL_CONFIG`, `./promptspool.toml` and
    `/etc/promptspool/promptspool.toml`. Paths in it are relative to its folder; `spool` replaces
    `spool.path` and is relative to the working directory.
    Raises ConfigError with every fault found, not only the first.
    """
    return traced(config, spool=spool, environ=environ)[0]


def traced(
    config: Path | None,
    *,
    spool: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[Settings, Sources]:
    """Load as `load` does, and tell where every value comes from."""
    environ = os.environ if environ is None else environ
    path = config_file(config, environ)
    looks: dict[Path, Look | None] = {}

    try:
        sources = _sources(path, spool, environ, looks)
        settings = _checked(sources, path.parent, looks)
    except ConfigError as error:
        error.looks = looks
        raise

    settings._source, settings._looks = path, looks  # noqa: SLF001 (its own class's module)

    return settings, sources


def example_config() -> str:
    """Return the annotated example: every key with its default and unit, ready to run."""
    return resources.files("promptspool").joinpath(FILE_NAME).read_text(encoding="utf-8")


def _sources(
    path: Path, spool: Path | None, environ: Mapping[str, str], looks: dict[Path, Look | None]
) -> Sources:
    """Read the file and the variables, and lay them on each other."""
    text, file = _parsed(path, looks)
    environment, variables = _environment(environ)
    values = laid_by_environment(environment, on=file)

    if spool is not None:
        values = laid({"spool": {"path": str(spool.absolute())}}, on=values)

    return Sources(
        path=path,
        text=text,
        variables=variables,
        environment=environment,
        option=None if spool is None else ("spool", "path"),
        values=values,
    )


def _checked(sources: Sources, folder: Path, looks: dict[Path, Look | None]) -> Settings:
    """Return what the sources say, or raise every fault of it."""
    for key in sources.values:
        if key.startswith("_"):  # which pydantic-settings would take for options of its own
            raise sources.error((key,), f"unknown key; {known(Settings, key)}")

    values = completed(sources, folder, looks)

    try:
        settings = _anchored(Settings(**values), folder)
    except ValidationError as error:
        raise told(faults_of(error), sources) from error

    faults = disagreements(settings)

    if faults:
        raise told(faults, sources)

    return settings


def _parsed(path: Path, looks: dict[Path, Look | None]) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file and what it says."""
    try:
        text = read(path, looks).decode("utf-8-sig")

        return text, tomllib.loads(text)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; `promptspool init DIR` makes a new one"
        raise ConfigError(str(path), reason) from error
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}; save it as UTF-8"
        raise ConfigError(str(path), reason) from error
    except (ValueError, RecursionError) as error:
        reason = f"not TOML: {error}"  # which ends with "(at line 3, column 7)"
        raise ConfigError(str(path), reason) from error


def _environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[Where, str]]:
    """Return what the variables say, table by table, and their names by what they set."""
    ours = variables_of(environ)

    for name, (section, *key) in ours.items():
        # Names without the delimiter are not ours alone: orchestrators set some for a service.
        if key and section not in Settings.model_fields:
            raise ConfigError(f"${name}", f"unknown section; {known(Settings, section)}")

        if not key and section in Settings.model_fields:
            raise ConfigError(f"${name}", f"a section; set its keys, as in {name}__KEY")

    nested = {
        name: path
        for name, path in ours.items()
        if path[0] == "profiles" and _JSON_KEYS.intersection(path[2:3])
    }
    values = _told_by({name: environ[name] for name in ours.keys() - nested.keys()})

    for name, path in sorted(nested.items()):
        values = laid_by_environment(_nested(path, _json_or_text(environ[name])), on=values)

    return values, {tuple(map(folded, path)): name for name, path in ours.items()}


def _told_by(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return what *variables* say, table by table; tables and arrays in them are JSON."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in variables.items()}

    try:
        values: dict[str, Any] = source()
    except SettingsError:
        if len(variables) > 1:  # the library does not say which of them
            for name in sorted(variables):
                _told_by({name: variables[name]})

        name = ", ".join(f"${name}" for name in variables)
        reason = 'write JSON, as in ["a", "b"] or {"a": 1}'
        raise ConfigError(name, reason) from None  # its cause holds the value, perhaps a secret

    return values


def _nested(path: list[str], value: object) -> dict[str, Any]:
    key, *rest = path
    return {key: _nested(rest, value) if rest else value}


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _anchored(settings: Settings, folder: Path) -> Settings:
    """Make every path of the configuration absolute, seen from the file's folder."""

    def placed(section: _AnySection, *keys: str) -> _AnySection:
        paths = {key: getattr(section, key) for key in keys}
        found = {key: anchored(path, folder) for key, path in paths.items() if path is not None}

        return section.model_copy(update=found) if found else section

    providers = {
        name: placed(provider, "api_key_file") for name, provider in settings.providers.items()
    }
    profiles = {
        name: placed(profile, "files").model_copy(
            update={"notify": placed(profile.notify, "webhook_secret_file")}
        )
        for name, profile in settings.profiles.items()
    }

    return settings.model_copy(
        update={
            "spool": placed(settings.spool, "path", "state"),
            "metrics": placed(settings.metrics, "textfile"),
            "providers": providers,
            "profiles": profiles,
        }
    )
