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
from promptspool.settings.faults import faults_of, told
from promptspool.settings.layers import laid
from promptspool.settings.reading import read
from promptspool.settings.sections import ProfileSettings
from promptspool.settings.sources import Sources

if TYPE_CHECKING:
    from promptspool.settings.reading import Look
    from promptspool.settings.sections import Settings

MAX_SIDECAR_BYTES = 1_000_000

MAX_SIDECAR_DOTS = 10_000
"""More than any text of a sidecar has. The time that `tomllib` takes for a key grows with the
square of its dots: a megabyte of them takes an hour, and these some seconds."""

_NOT_IN_A_SIDECAR = {
    "extend": "drop the file into that profile's folder of the inbox instead",
    "files": "who may drop files must not choose what the daemon reads; write it in the profile",
    "notify": "who may drop files must not choose what the daemon runs; write it in the profile",
    "max_cost": "who may drop files must not choose what they may cost; write it in the profile",
}


def completed(sources: Sources, folder: Path, looks: dict[Path, Look | None]) -> dict[str, Any]:
    """Return the configuration's raw values with every profile on its own.

    What a profile extends is laid under it, and the schema file that it names, seen from *folder*,
    is put in its place; *looks* notes how that looked. Values of a wrong kind are left for the
    validation to complain about.
    """
    values = dict(sources.values)
    profiles = values.get("profiles")

    if not isinstance(profiles, Mapping):
        return values

    whole = {name: _inherited(sources, profiles, name, ()) for name in profiles}
    values["profiles"] = {
        name: _with_schema(sources, name, whole[name], folder, looks) for name in whole
    }

    return values


def _check_template(sources: Sources, key: str) -> None:
    """Raise `ConfigError` for a template that whoever drops files could stop the daemon with."""
    source = sources.values.get(key)

    try:
        found = growing(source) if isinstance(source, str) else None
    except jinja2.TemplateError:
        return  # which the validation says better

    if found is not None:
        reason = f"a template in a sidecar has no {{% {found} %}}; write it in the profile"
        raise sources.error((key,), reason)


def _inherited(
    sources: Sources, profiles: Mapping[str, Any], name: str, heirs: tuple[str, ...]
) -> Any:
    profile = profiles[name]
    base = profile.get("extend") if isinstance(profile, Mapping) else None

    if not isinstance(base, str):
        return profile

    if base not in profiles:
        others = ", ".join(other for other in profiles if other != name) or "(no other profile)"
        reason = f"found {base!r}; write one of: {others}"
        raise sources.error(("profiles", name, "extend"), reason)

    if base in (name, *heirs):
        circle = [*heirs, name, base]
        reason = f"{' extends '.join(circle)}: end the circle"
        raise sources.error(("profiles", circle[0], "extend"), reason)

    inherited = _inherited(sources, profiles, base, (*heirs, name))

    return laid(profile, on=inherited) if isinstance(inherited, Mapping) else profile


def _with_schema(
    sources: Sources, name: str, profile: Any, folder: Path, looks: dict[Path, Look | None]
) -> Any:
    named = profile.get("response_schema") if isinstance(profile, Mapping) else None

    if not isinstance(named, str):
        return profile

    where = ("profiles", name, "response_schema")

    try:
        path = (folder / Path(named).expanduser()).resolve()
        schema = json.loads(read(path, looks))
    except OSError as error:
        reason = f"{error.filename} cannot be read: {error.strerror}"
        raise sources.error(where, reason) from error
    except (ValueError, RecursionError, RuntimeError) as error:  # the last for a ~ of nobody's
        raise sources.error(where, f"{named!r} is no JSON: {error}") from error

    if not isinstance(schema, dict):
        raise sources.error(where, f"{path} is no JSON Schema; write an object")

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

    sources = _sidecar(_read_sidecar(sidecar, sidecar_name), sidecar_name)

    try:
        changed = ProfileSettings.model_validate(laid(sources.values, on=profile.model_dump()))
    except ValidationError as error:
        raise told(faults_of(error, below=("profiles", name)), sources) from error

    if changed.provider not in settings.providers:
        known = ", ".join(settings.providers) or "(none)"
        reason = f"found {changed.provider!r}; write one of: {known}"
        raise sources.error(("provider",), reason)

    return changed


def _read_sidecar(path: Path, name: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    with os.fdopen(descriptor, "rb") as file:
        text = file.read(MAX_SIDECAR_BYTES + 1)

    if len(text) > MAX_SIDECAR_BYTES:
        reason = f"larger than {MAX_SIDECAR_BYTES:,} bytes; it is to hold keys of a profile"
        raise ConfigError(name, reason)

    return text


def _sidecar(content: bytes, name: str) -> Sources:
    if content.count(b".") > MAX_SIDECAR_DOTS:
        reason = f"more than {MAX_SIDECAR_DOTS:,} dots; it is to hold keys of a profile"
        raise ConfigError(name, reason)

    try:
        text = content.decode("utf-8-sig")
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(name, f"not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(name, f"not TOML: {error}") from error

    sources = Sources(path=name, text=text, values=values)

    for key, advice in _NOT_IN_A_SIDECAR.items():
        if key in values:
            raise sources.error((key,), f"a sidecar cannot set it; {advice}")

    for key in ("prompt", "id"):
        _check_template(sources, key)

    if isinstance(values.get("response_schema"), str):
        reason = "a sidecar cannot name a file; write the schema itself, as a table"
        raise sources.error(("response_schema",), reason)

    return sources
