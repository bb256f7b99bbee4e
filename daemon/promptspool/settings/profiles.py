"""Profiles: what they inherit, the schemas they name, and what a sidecar changes for one file.

Raises `ConfigError`, which is bad data: a person has to change the file that is named.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from pydantic import ValidationError

from promptspool.errors import ConfigError
from promptspool.sandbox import growing
from promptspool.settings.faults import config_error
from promptspool.settings.layers import laid
from promptspool.settings.sections import ProfileSettings

if TYPE_CHECKING:
    from promptspool.settings.sections import Settings

MAX_SIDECAR_BYTES = 1_000_000

_NOT_IN_A_SIDECAR = {
    "extend": "drop the file into that profile's folder of the inbox instead",
    "files": "who may drop files must not choose what the daemon reads; write it in the profile",
    "notify": "who may drop files must not choose what the daemon runs; write it in the profile",
    "max_cost": "who may drop files must not choose what they may cost; write it in the profile",
}


def completed(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the configuration's raw values with every profile on its own.

    What a profile extends is laid under it, and the schema file that it names, seen from *folder*,
    is put in its place. Values of a wrong kind are left for the validation to complain about.
    """
    profiles = values.get("profiles")

    if not isinstance(profiles, Mapping):
        return dict(values)

    whole = {name: _inherited(profiles, name, ()) for name in profiles}

    return {**values, "profiles": {name: _with_schema(name, whole[name], folder) for name in whole}}


def _check_template(source: object, key: str, name: str) -> None:
    """Raise `ConfigError` for a template that whoever drops files could stop the daemon with."""
    try:
        found = growing(source) if isinstance(source, str) else None
    except jinja2.TemplateError:
        return  # which the validation says better

    if found is not None:
        reason = f"a template in a sidecar has no {{% {found} %}}; write it in the profile ({name})"
        raise ConfigError(key, reason)


def _inherited(profiles: Mapping[str, Any], name: str, heirs: tuple[str, ...]) -> Any:
    profile = profiles[name]
    base = profile.get("extend") if isinstance(profile, Mapping) else None

    if not isinstance(base, str):
        return profile

    key = f"profiles.{name}.extend"

    if base not in profiles:
        others = ", ".join(other for other in profiles if other != name) or "(no other profile)"
        raise ConfigError(key, f"found {base!r}; write one of: {others}")

    if base in (name, *heirs):
        circle = [*heirs, name, base]
        reason = f"{' extends '.join(circle)}: end the circle"
        raise ConfigError(f"profiles.{circle[0]}.extend", reason)

    inherited = _inherited(profiles, base, (*heirs, name))

    return laid(profile, on=inherited) if isinstance(inherited, Mapping) else profile


def _with_schema(name: str, profile: Any, folder: Path) -> Any:
    named = profile.get("response_schema") if isinstance(profile, Mapping) else None

    if not isinstance(named, str):
        return profile

    key = f"profiles.{name}.response_schema"
    path = (folder / Path(named).expanduser()).resolve()

    try:
        schema = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(key, f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(key, f"{path} is no JSON: {error}") from error

    if not isinstance(schema, dict):
        raise ConfigError(key, f"{path} is no JSON Schema; write an object")

    return {**profile, "response_schema": schema}


def profile_for(
    settings: Settings, name: str, sidecar: Path | None, sidecar_name: str = "sidecar"
) -> ProfileSettings | None:
    """Return the profile called *name*, with what a sidecar says laid over it; None if unknown.

    Raises `ConfigError` for a sidecar that cannot be followed, in which *sidecar_name* is what it
    is called, and lets `OSError` through.
    """
    profile = settings.profiles.get(name)

    if profile is None or sidecar is None:
        return profile

    values = _sidecar_values(_read_sidecar(sidecar, sidecar_name), sidecar_name)

    try:
        changed = ProfileSettings.model_validate(laid(values, on=profile.model_dump()))
    except ValidationError as error:
        raise config_error(error, sidecar_name, {}, below=("profiles", name)) from error

    if changed.provider not in settings.providers:
        known = ", ".join(settings.providers) or "(none)"
        reason = f"found {changed.provider!r}; write one of: {known} ({sidecar_name})"
        raise ConfigError("provider", reason)

    return changed


def _read_sidecar(path: Path, name: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    with os.fdopen(descriptor, "rb") as file:
        text = file.read(MAX_SIDECAR_BYTES + 1)

    if len(text) > MAX_SIDECAR_BYTES:
        reason = f"larger than {MAX_SIDECAR_BYTES:,} bytes; it is to hold keys of a profile"
        raise ConfigError(name, reason)

    return text


def _sidecar_values(sidecar: bytes, name: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(sidecar.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(name, f"not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(name, f"not TOML: {error}") from error

    for key, advice in _NOT_IN_A_SIDECAR.items():
        if key in values:
            raise ConfigError(key, f"a sidecar cannot set it; {advice} ({name})")

    for key in ("prompt", "id"):
        _check_template(values.get(key), key, name)

    if isinstance(values.get("response_schema"), str):
        reason = f"a sidecar cannot name a file; write the schema itself, as a table ({name})"
        raise ConfigError("response_schema", reason)

    return values
