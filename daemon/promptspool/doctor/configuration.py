"""The configuration in a few lines. Reads keys, to say where they are; raises nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptspool import schema
from promptspool.errors import ConfigError
from promptspool.settings import found_key, remarks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.settings import ProfileSettings, Settings


def configuration(settings: Settings) -> Iterator[str]:
    """Yield what people are told of a configuration that was loaded, line by line."""
    yield f"{settings.source}: it can be used"
    yield f"  spool: {settings.spool.path}"

    if settings.spool.state is not None:
        yield f"  state: {settings.spool.state}"

    for name, profile in settings.profiles.items():
        yield f"  profile {name}: {', '.join(_parts(profile))}"

    for name, provider in settings.providers.items():
        try:
            place = f"key found in {found_key(provider, name)[1]}"
        except ConfigError as error:
            place = f"for this user {error.reason}"

        yield f"  provider {name}: {provider.base_url}, {place}"

    if not settings.profiles:
        yield "  no profile: add a section [profiles.default], or every file will be rejected"

    for remark in remarks(settings):
        yield f"  {remark}"


def _parts(profile: ProfileSettings) -> Iterator[str]:
    yield profile.provider
    yield profile.endpoint
    yield profile.model

    if profile.response_schema is not None:
        reason = schema.strictness(profile.response_schema)
        yield f"structured outputs {'strict' if reason is None else f'not strict ({reason})'}"
