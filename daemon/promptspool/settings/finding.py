"""Where a configuration is, and whose words in the environment are ours.

Raises `ConfigError`, which is bad data.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from promptspool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = "promptspool.toml"
SYSTEM_FILE = Path("/etc/promptspool/promptspool.toml")

ENV_PREFIX = "PROMPTSPOOL_"
ENV_DELIMITER = "__"

SPOOL = Path("spool")
"""The spool's place where none is written."""


def config_file(config: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that is to be read, as `load` looks for it; raises `ConfigError`."""
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


def variables_of(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the variables that begin with our name, each with the parts of the key it names."""
    return {
        name: name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)
        for name in environ
        if name.upper().startswith(ENV_PREFIX)
    }


def anchored(path: Path, folder: Path) -> Path:
    """Return a path of the configuration as an absolute one, seen from its *folder*."""
    try:
        return (folder / path.expanduser()).resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise ConfigError(str(path), "it is a link that leads nowhere; mend it") from error
