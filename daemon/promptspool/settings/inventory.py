"""The settings in effect, one by one: value, and where it was set; without secrets.

Raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel

from promptspool import log
from promptspool.settings.sections import Settings
from promptspool.settings.values import is_duration, is_size
from promptspool.settings.writing import duration, size, toml

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from promptspool.settings.lines import Where
    from promptspool.settings.sources import Origin, Sources

# Of keys, and of options of a command: what follows may be a secret.
_SECRET = re.compile(
    r"api.?key|authori[sz]ation|bearer|credential|passw|secret|signature|token", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """One setting."""

    where: Where
    value: object
    """Durations are seconds, sizes are bytes; what is masked has stars."""
    written: str | None
    """As TOML; None where nothing is set, or TOML cannot say it."""
    origins: tuple[Origin, ...]
    is_masked: bool = False

    @property
    def is_set(self) -> bool:
        """Tell whether anybody set it."""
        return any(origin.kind != "default" for origin in self.origins)


def effective(settings: Settings, sources: Sources) -> list[Effective]:
    """Return every setting, in the order of the example."""
    return [
        _effective(where, value, field, sources) for where, value, field in _leaves(settings, ())
    ]


def changed(before: Settings, after: Settings) -> list[str]:
    """Return the keys whose values differ; of a section that is new or gone, its name alone."""
    return sorted(set(_differences(before, after, ())))


def _differences(before: object, after: object, where: Where) -> Iterator[str]:
    if before == after and not isinstance(before, Settings):
        return

    if isinstance(before, BaseModel) and isinstance(after, BaseModel):
        for name in type(before).model_fields:
            yield from _differences(getattr(before, name), getattr(after, name), (*where, name))
    elif _is_named_sections(before) and _is_named_sections(after):
        for name in before.keys() | after.keys():
            yield from _differences(before.get(name), after.get(name), (*where, name))
    else:
        yield ".".join(where)


def _is_named_sections(value: object) -> TypeGuard[dict[str, BaseModel]]:
    return isinstance(value, dict) and all(isinstance(one, BaseModel) for one in value.values())


def _leaves(section: BaseModel, where: Where) -> Iterator[tuple[Where, Any, FieldInfo]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        here = (*where, name)

        if isinstance(value, BaseModel):
            yield from _leaves(value, here)
        elif value and _is_named_sections(value):
            for key, named in value.items():
                yield from _leaves(named, (*here, key))
        elif not (len(here) == 1 and value == {}):  # a kind of section of which there is none
            yield here, value, field


def _effective(where: Where, value: Any, field: FieldInfo, sources: Sources) -> Effective:
    plain = sources.raw(where) if where[-1] == "response_schema" else value

    if isinstance(plain, str) and where[-1] == "response_schema":  # the file, not what is in it
        plain = (Path(sources.path).parent / Path(plain).expanduser()).resolve()

    found = Effective(
        where=where,
        value=_plain(plain),
        written=None if plain is None else _written(plain, field),
        origins=sources.origins(where),
    )
    shown = _masked(where, found.value)

    if shown == found.value:
        return found

    return replace(found, value=shown, written=toml(shown), is_masked=True)


def _written(value: Any, field: FieldInfo) -> str | None:
    """Write a duration or a size as a person would."""
    inner = [getattr(arm, "__metadata__", ()) for arm in get_args(field.annotation)]
    marks = [*field.metadata, *chain.from_iterable(inner)]

    if isinstance(value, float) and any(map(is_duration, marks)):
        return duration(value)

    if isinstance(value, int) and any(map(is_size, marks)):
        return size(value)

    return toml(value)


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case tuple() | list():
            return [_plain(inner) for inner in value]
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case _:
            return value


def _masked(where: Where, value: Any) -> Any:
    """Return a value with stars for what may be a secret, and for the keys that are known."""
    match where[-1]:
        case "webhook" if isinstance(value, str):
            return _host_of(value)
        case "command":
            return _without_arguments(value)
        case "params" | "response_schema":
            return _without_secrets(value)
        case _:
            return _struck(value)


def _host_of(address: str) -> str:
    """Return a webhook's address without what may be known to two only."""
    parts = urlsplit(address)
    host = f"{parts.scheme}://{parts.netloc}"

    return address if parts.path in ("", "/") and not parts.query else f"{host}/{log.STARS}"


def _without_arguments(words: list[str]) -> list[str]:
    """Mask each argument that names a secret, or follows an option that does."""
    shown = list(map(log.struck, words))

    for place, (before, word) in enumerate(pairwise(words), 1):
        is_option = word.startswith("-") and "=" not in word
        is_named = before.startswith("-") and "=" not in before and _SECRET.search(before)

        if is_named or (_SECRET.search(word) and not is_option):
            shown[place] = log.STARS

    return shown


def _without_secrets(value: Any) -> Any:
    match value:
        case dict():
            return {
                key: log.STARS
                if isinstance(inner, str) and _SECRET.search(key)
                else _without_secrets(inner)
                for key, inner in value.items()
            }
        case list():
            return [_without_secrets(inner) for inner in value]
        case _:
            return _struck(value)


def _struck(value: Any) -> Any:
    match value:
        case str():
            return log.struck(value)
        case list():
            return [_struck(inner) for inner in value]
        case _:
            return value
