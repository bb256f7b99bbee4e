"""The providers' keys: read when they are needed, kept out of `Settings`, never quoted.

Raises `ConfigError`, which is environment: a person has to provide the key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from promptspool.errors import ConfigError
from promptspool.settings.reading import read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptspool.settings.sections import ProviderSettings


def api_key(provider: ProviderSettings, name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the key of the provider called `name`.

    Looked for in `$<api_key_env>`, then `api_key_file`, then the systemd credential named after
    `api_key_env`, or after the provider where that is not set.
    Raises ConfigError when there is none or it cannot be sent in a header; it never quotes the key.
    """
    return found_key(provider, name, environ)[0]


def found_key(
    provider: ProviderSettings, name: str, environ: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Return a key as `api_key` does, and where it was found, for people."""
    environ = os.environ if environ is None else environ
    section = f"providers.{name}"
    key = environ.get(provider.api_key_env, "").strip() if provider.api_key_env else ""
    place = f"${provider.api_key_env}"

    if not key and provider.api_key_file is not None:
        key = _secret(provider.api_key_file, f"{section}.api_key_file")
        place = str(provider.api_key_file)

    credential = _credential(provider, name, environ)

    if not key and credential is not None:
        key = _secret(credential, section)
        place = f"the credential {credential.name}"

    if not key:
        raise ConfigError(section, _no_key(provider))

    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(section, "the key holds spaces or other impossible characters")

    return key, place


def _secret(path: Path, key: str) -> str:
    try:
        return read(path, {}).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        reason = f"{path} cannot be read: {why}"
        raise ConfigError(key, reason) from error


def _credential(provider: ProviderSettings, name: str, environ: Mapping[str, str]) -> Path | None:
    folder = environ.get("CREDENTIALS_DIRECTORY")

    if not folder:
        return None

    path = Path(folder, provider.api_key_env or name)
    return path if path.is_file() else None


def _no_key(provider: ProviderSettings) -> str:
    match provider.api_key_env, provider.api_key_file:
        case None, None:
            return 'no key: write api_key_env = "NAME" or api_key_file = "PATH"'
        case str() as env, None:
            return f"no key: set ${env}, or name a file in api_key_file"
        case _, path:
            return f"no key: {path} is empty"
