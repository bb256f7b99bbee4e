"""What commands need that only look, without the half second that a whole configuration takes.

The daemon leaves beside its database what it read: where the spool is and what costs are allowed,
and by what that can be relied on: how each file looked, a digest of the variables, and who read it.
While all of that is the same, a configuration means the same and has no fault. In any doubt it is
loaded as ever, so that there is one meaning, and one message for what is wrong with it.

Raises `ConfigError`, which is bad data, as `load` does.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from promptspool import __version__
from promptspool.errors import ConfigError
from promptspool.settings.finding import SPOOL, anchored, config_file, variables_of
from promptspool.settings.reading import Look, look, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptspool.settings.sections import Settings

KEPT = "settings.json"
"""The file beside the database."""

MADE_BY = f"{__version__} {sys.version}"
"""Another promptspool may know other keys, and another Python other encodings."""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the section [spool]."""

    path: Path
    state: Path | None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a provider."""

    max_cost_per_day: float | None
    max_cost_per_month: float | None
    max_tokens_enqueued: dict[str, int]


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """So much of a `Settings`, under the same names."""

    spool: Places
    providers: dict[str, Limits]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    made_by: str
    variables: str
    looks: dict[str, Look | None]
    glance: Glance


def glance(
    config: Path | None, *, spool: Path | None = None, environ: Mapping[str, str] | None = None
) -> Glance | Settings:
    """Return what `load` would, or that part of it which the daemon has left."""
    environ = os.environ if environ is None else environ
    kept = _kept(config, spool, environ)

    if kept is not None:
        return kept.glance

    from promptspool.settings.loading import load  # noqa: PLC0415 - what this is to save

    return load(config, spool=spool, environ=environ)


def proof_of(settings: Settings, environ: Mapping[str, str]) -> bytes:
    """Return what is to be left as `KEPT` beside the database for `glance` to rely on.

    *settings* were loaded with *environ*. Raises `ValueError` for a path that is no UTF-8.
    """
    return msgspec.json.encode(_kept_of(settings, environ), enc_hook=str)


def _kept_of(settings: Settings, environ: Mapping[str, str]) -> _Kept:
    providers = {
        name: Limits(
            max_cost_per_day=provider.max_cost_per_day,
            max_cost_per_month=provider.max_cost_per_month,
            max_tokens_enqueued=provider.max_tokens_enqueued,
        )
        for name, provider in settings.providers.items()
    }

    return _Kept(
        made_by=MADE_BY,
        variables=_digest(environ),
        looks={str(path): looks for path, looks in settings.looks.items()},
        glance=Glance(
            spool=Places(path=settings.spool.path, state=settings.spool.state),
            providers=providers,
        ),
    )


def _kept(config: Path | None, spool: Path | None, environ: Mapping[str, str]) -> _Kept | None:
    """Return what the daemon left, None if that is not what the configuration says now."""
    try:
        file = config_file(config, environ)
        values = tomllib.loads(read(file, {}).decode("utf-8-sig"))
        places = _places(values.get("spool", {}), file.parent, spool, environ)
        state = places.state or places.path / "state"
        kept = msgspec.json.decode(
            (state / KEPT).read_bytes(), type=_Kept, dec_hook=lambda kind, value: kind(value)
        )
    except (ConfigError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    except (RecursionError, RuntimeError, msgspec.MsgspecError):
        return None

    is_same = (
        kept.made_by == MADE_BY
        and kept.variables == _digest(environ)
        and str(file) in kept.looks
        and all(look(Path(path)) == looks for path, looks in kept.looks.items())
        and kept.glance.spool == places
    )

    return kept if is_same else None


def _places(
    section: dict[str, Any], folder: Path, spool: Path | None, environ: Mapping[str, str]
) -> Places:
    """Return where the layers put the spool; raises something for what `load` would refuse."""
    written: dict[str, Any] = {key: section[key] for key in ("path", "state") if key in section}

    for name, (table, *key) in variables_of(environ).items():
        if table == "spool":
            written[".".join(key)] = environ[name]

    if spool is not None:
        written["path"] = str(spool.absolute())

    state = written.get("state")

    return Places(
        path=anchored(Path(written.get("path", SPOOL)), folder),
        state=None if state is None else anchored(Path(state), folder),
    )


def _digest(environ: Mapping[str, str]) -> str:
    """Return what tells one set of our variables from another, and nothing of what they say."""
    ours = sorted(
        (name, environ[name]) for name, key in variables_of(environ).items() if key != ["config"]
    )

    return hashlib.blake2b(repr(ours).encode("utf-8", "surrogateescape")).hexdigest()
