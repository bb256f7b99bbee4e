"""What is to be said of the providers: key, address, and what time it is there."""

from __future__ import annotations

import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from promptspool import log
from promptspool.clock import SystemClock
from promptspool.doctor.finding import Level, ok, problem, warning
from promptspool.errors import Blocked, ConfigError, NotFound, ProviderError, Throttled, Unavailable
from promptspool.provider import connect
from promptspool.settings import found_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.doctor.finding import Finding
    from promptspool.settings import ProviderSettings, Settings
    from promptspool.spool import Spool

CLOCK_WARNING_S = 30.0
"""A clock that is wrong by more is worth a warning; beyond `lookup_grace` look-ups go wrong."""

PATIENCE_S = 10.0
"""A list that takes longer is as good as none, to somebody who waits for it."""


def provider_findings(spool: Spool, settings: Settings, *, is_offline: bool) -> Iterator[Finding]:
    """Yield what is found of each provider, asking it for a page of its list."""
    if not settings.providers:
        mend = "add a section [providers.NAME]"
        yield warning("providers", "none is configured", mend)

    for name, provider in settings.providers.items():
        key = _key(spool, name, provider)
        yield from key

        if not is_offline and key[0].level is Level.OK:
            yield from anyio.run(_reached, name, provider)


def _key(spool: Spool, name: str, provider: ProviderSettings) -> list[Finding]:
    check = f"key of {name}"

    try:
        key, place = found_key(provider, name)
    except ConfigError as error:
        if _is_run(spool):
            mend = "the daemon that runs may have it from its own environment or systemd's"
            return [warning(check, f"not found by this user: {error.reason}", mend)]

        return [problem(check, error.reason, "see [providers.NAME] in the configuration")]

    log.keep_secret(key)
    found = [ok(check, f"found in {place}")]
    path = provider.api_key_file

    with suppress(OSError):  # then the key is from elsewhere
        if path is not None and path.stat().st_mode & stat.S_IROTH:
            found.append(warning(check, f"{path} may be read by everybody", f"chmod 640 {path}"))

    return found


def _is_run(spool: Spool) -> bool:
    try:
        return spool.is_held()
    except OSError:
        return False


async def _reached(name: str, settings: ProviderSettings) -> list[Finding]:
    """Ask for the first page of the list of batches, once."""
    check = f"provider {name}"
    clock = SystemClock()
    patient = settings.model_copy(
        update={
            "timeout": min(settings.timeout, PATIENCE_S),
            "connect_timeout": min(settings.connect_timeout, PATIENCE_S),
        }
    )

    try:
        provider = connect(name, patient)
    except ConfigError as error:
        return [problem(check, str(error), "mend the environment")]

    try:
        page = await provider.page(None)
        answered_at = clock.now()
    except ProviderError as error:
        return [_refused(check, settings, error)]
    finally:
        await provider.close()

    reached = ok(check, f"{settings.base_url} takes the key")

    return [reached, *_clock(name, settings, page.answered_at, answered_at)]


def _refused(check: str, settings: ProviderSettings, error: ProviderError) -> Finding:
    message = f"{settings.base_url}: {error}"

    match error:
        case Blocked():
            return problem(check, message, "a person has to look: key, permission, quota, billing")
        case Throttled():
            return warning(check, message, "it asks for a pause; the daemon waits by itself")
        case NotFound():
            return problem(
                check, message, f"look at base_url: {settings.base_url}/batches is asked"
            )
        case Unavailable(status=None):
            return problem(check, message, "look at base_url, DNS, firewall and $HTTPS_PROXY")
        case _:
            return problem(check, message, "try again later; the daemon does so by itself")


def _clock(
    name: str, settings: ProviderSettings, theirs: float | None, ours: float
) -> Iterator[Finding]:
    """Compare our clock with what an answer said the time was, to the second."""
    if theirs is None:
        return

    check = f"clock of {name}"
    wrong_s = ours - theirs
    message = (
        f"ours is {abs(wrong_s):.0f} s {'ahead of' if wrong_s > 0 else 'behind'} the provider's"
    )
    mend = "set this machine's clock, and keep it set by NTP"

    if abs(wrong_s) > max(settings.lookup_grace, CLOCK_WARNING_S):
        yield problem(check, message, mend)
    elif abs(wrong_s) > CLOCK_WARNING_S:
        yield warning(check, message, mend)
    else:
        yield ok(check, message)
