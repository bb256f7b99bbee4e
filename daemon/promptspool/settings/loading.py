"""From a file and the environment to `Settings`, or to a message that says what to write.

Raises `ConfigError`, which is bad data.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from promptspool.errors import ConfigError
from promptspool.settings.sections import (
    ENV_DELIMITER,
    ENV_PREFIX,
    LaneSettings,
    LogSettings,
    PollingSettings,
    ProfileSettings,
    ProviderSettings,
    RetrySettings,
    Settings,
    SpoolSettings,
)

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE_NAME = "promptspool.toml"
SYSTEM_FILE = Path("/etc/promptspool/promptspool.toml")


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
    environ = os.environ if environ is None else environ
    path = _find(config, environ)
    values = _merge(_read(path), _environment(environ))

    if spool is not None:
        values = _merge(values, {"spool": {"path": str(spool.absolute())}})

    for key in values:
        if key.startswith("_"):  # which pydantic-settings would take for options of its own
            raise ConfigError(key, f"unknown key; {_known(Settings, key)} ({path})")

    try:
        settings = _anchored(Settings(**values), path.parent)
    except ValidationError as error:
        raise _config_error(error, path, environ) from error

    settings._source = path  # noqa: SLF001 (its own class's module)
    return settings


def example_config() -> str:
    """Return the annotated example: every key with its default and unit, ready to run."""
    return resources.files("promptspool").joinpath(FILE_NAME).read_text(encoding="utf-8")


def _find(config: Path | None, environ: Mapping[str, str]) -> Path:
    named = environ.get(f"{ENV_PREFIX}CONFIG")

    if config is None and named:
        config = Path(named)

    if config is not None:
        return config.expanduser().absolute()

    places = [Path(FILE_NAME).absolute(), SYSTEM_FILE]

    for place in places:
        if place.is_file():
            return place

    looked = ", ".join(["--config", f"${ENV_PREFIX}CONFIG", *map(str, places)])
    reason = f"no configuration file (looked in {looked}); `promptspool init DIR` makes one"
    raise ConfigError("--config", reason)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; `promptspool init DIR` makes a new one"
        raise ConfigError(str(path), reason) from error
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}; save it as UTF-8"
        raise ConfigError(str(path), reason) from error
    except tomllib.TOMLDecodeError as error:
        reason = f"not TOML: {error}"  # which ends with "(at line 3, column 7)"
        raise ConfigError(str(path), reason) from error


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {
        name: name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)
        for name in environ
        if name.upper().startswith(ENV_PREFIX)
    }

    for name, (section, *key) in ours.items():
        # Names without the delimiter are not ours alone: orchestrators set some for a service.
        if key and section not in Settings.model_fields:
            raise ConfigError(f"${name}", f"unknown section; {_known(Settings, section)}")

        if not key and section in Settings.model_fields:
            raise ConfigError(f"${name}", f"a section; set its keys, as in {name}__KEY")

    params = {name: path for name, path in ours.items() if path[::2][:2] == ["profiles", "params"]}
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): environ[name] for name in ours.keys() - params.keys()}
    values: dict[str, Any] = source()

    for name, path in sorted(params.items()):
        values = _merge(values, _nested(path, _json_or_text(environ[name])))

    return values


def _nested(path: list[str], value: object) -> dict[str, Any]:
    key, *rest = path
    return {key: _nested(rest, value) if rest else value}


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `under`, table by table.

    Names in the environment have no case and no hyphens, so `MY_PROFILE` means `My-Profile`.
    """
    merged = dict(under)
    spelling = {_folded(key): key for key in under}

    for key, value in over.items():
        name = spelling.get(_folded(key), key)
        below = merged.get(name)
        merged[name] = (
            _merge(below, value)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )

    return merged


def _folded(key: str) -> str:
    return key.casefold().replace("-", "_")


def _anchored(settings: Settings, folder: Path) -> Settings:
    """Make every path of the configuration absolute, seen from the file's folder."""

    def anchor(path: Path) -> Path:
        return (folder / path.expanduser()).resolve()

    providers = {
        name: provider.model_copy(update={"api_key_file": anchor(provider.api_key_file)})
        if provider.api_key_file is not None
        else provider
        for name, provider in settings.providers.items()
    }
    spool = settings.spool.model_copy(update={"path": anchor(settings.spool.path)})
    return settings.model_copy(update={"spool": spool, "providers": providers})


def _config_error(error: ValidationError, path: Path, environ: Mapping[str, str]) -> ConfigError:
    faults = [_fault(details, environ) for details in error.errors()]

    if len(faults) == 1 and faults[0][0]:
        key, reason = faults[0]
        return ConfigError(key, f"{reason} ({path})")

    lines = "\n".join(f"{key}: {reason}" if key else reason for key, reason in faults).splitlines()
    return ConfigError(str(path), "\n  ".join([f"{len(lines)} problems:", *lines]))


def _fault(details: ErrorDetails, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the dotted key, empty when the message names it, and what to write there."""
    where = [str(part) for part in details["loc"] if part != "[key]"]
    key = ".".join(where)
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    env = ENV_PREFIX + ENV_DELIMITER.join(where).upper()
    origin = f" (from ${env})" if env in environ else ""

    match details["type"]:
        case "extra_forbidden":
            reason = f"unknown key; {_known(_section_of(where[:-1]), where[-1])}"
        case "missing":
            reason = f"missing; write {where[-1]} = ..."
        case _ if not where:
            reason = message
        case _ if where[-1].startswith(("api_key", "base_url")):
            # A key pasted into the wrong place must not reach a log.
            reason = message
        case _:
            reason = f"found {details['input']!r:.80}; {message}"

    return key, reason + origin


def _section_of(where: list[str]) -> type[BaseModel]:
    sections: dict[str, type[BaseModel]] = {
        "spool": SpoolSettings,
        "providers": ProviderSettings,
        "polling": PollingSettings,
        "retry": RetrySettings,
        "lanes": LaneSettings,
        "profiles": ProfileSettings,
        "log": LogSettings,
    }
    return sections.get(where[0], Settings) if where else Settings


def _known(section: type[BaseModel], key: str) -> str:
    names = list(section.model_fields)
    near = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
