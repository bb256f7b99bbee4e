"""Providers: all HTTP of the daemon is in here."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from promptspool.errors import Blocked, ConfigError
from promptspool.provider.base import Provider
from promptspool.provider.http import Http, Limits, Observe, unobserved
from promptspool.provider.openai import OpenAI
from promptspool.settings import api_key

if TYPE_CHECKING:
    from promptspool.settings import ProviderSettings

__all__ = ["Provider", "connect"]


def connect(name: str, settings: ProviderSettings, *, observe: Observe = unobserved) -> Provider:
    """Return the provider that *settings* describe; nothing is sent yet.

    *observe* is told of every HTTP exchange. Its key is looked up at every call, so a missing one
    is `Blocked` then, not an error now. Raises `ConfigError` if the environment names a proxy or
    certificates that cannot be used.
    """

    def key() -> str:
        try:
            return api_key(settings, name)
        except ConfigError as error:
            raise Blocked(str(error), code="no_api_key") from error

    limits = Limits(
        timeout_s=settings.timeout,
        connect_timeout_s=settings.connect_timeout,
        transfer_timeout_s=settings.transfer_timeout,
        max_answer_bytes=settings.max_answer_bytes,
        max_download_bytes=settings.max_download,
    )
    http = Http(base_url=settings.base_url, key=key, limits=limits, observe=observe)

    match settings.dialect:
        case "openai":
            return OpenAI(name, http)
        case _:
            assert_never(settings.dialect)
