"""What values of a configuration mean for each other, once each is good by itself.

Pure; raises nothing.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from promptspool.settings.faults import Fault
from promptspool.settings.values import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.settings.sections import NotifySettings, Settings

_FOLDERS = ("inbox", "working", "outbox", "done", "rejected")
"""Of a spool: where nothing of ours may be but what `spool` puts there."""


def disagreements(settings: Settings) -> list[Fault]:
    """Return what has to be changed; paths have to be whole by now."""
    return [*_of_places(settings), *_of_retention(settings), *_of_notices(settings)]


def remarks(settings: Settings) -> list[str]:
    """Return what is allowed, but may not be what was meant; a line each, beginning with a key."""
    return [*_of_limits(settings), *_of_listening(settings)]


def _of_places(settings: Settings) -> Iterator[Fault]:
    spool, state, textfile = settings.spool.path, settings.spool.state, settings.metrics.textfile

    if state == spool:
        reason = f"{state} is the spool itself; write a folder of its own, as {spool / 'state'}"
        yield Fault(where=("spool", "state"), reason=reason)

    for where, path in ((("spool", "state"), state), (("metrics", "textfile"), textfile)):
        folder = None if path is None else _folder_around(path, spool)

        if folder is not None:
            reason = f"{path} is in {folder}/ of the spool; write a place outside of it"
            yield Fault(where=where, reason=reason)


def _folder_around(path: Path, spool: Path) -> str | None:
    """Return which of a spool's folders a path is, or is in; None if none."""
    inside = path.relative_to(spool).parts[:1] if path.is_relative_to(spool) else ()

    return inside[0] if inside and inside[0] in _FOLDERS else None


def _of_retention(settings: Settings) -> Iterator[Fault]:
    kept_s, max_age_s = settings.retention.history, settings.retry.max_age

    if kept_s is not None and kept_s < max_age_s:
        reason = (
            f"{kept_s:,.0f} s is shorter than retry.max_age, {max_age_s:,.0f} s: jobs would be "
            f"forgotten before others of their day have ended; write a longer time"
        )
        yield Fault(where=("retention", "history"), reason=reason)


def _of_notices(settings: Settings) -> Iterator[Fault]:
    for name, profile in settings.profiles.items():
        for key, reason in _of_notify(profile.notify):
            yield Fault(where=("profiles", name, "notify", key), reason=reason)


def _of_notify(notify: NotifySettings) -> Iterator[tuple[str, str]]:
    """Yield the key that is to be changed, and why; no value, for it may hold a secret."""
    if notify.command and not PurePath(notify.command[0]).is_absolute():
        yield "command", "write the whole path of the program: a name alone is looked up by nobody"

    if any("\0" in word for word in notify.command):
        yield "command", "no argument of a program holds a NUL character"

    if notify.webhook is None:
        return

    if notify.webhook_secret_env is None and notify.webhook_secret_file is None:
        reason = (
            "no secret to sign with, and nothing is sent unsigned; write webhook_secret_env or "
            "webhook_secret_file"
        )
        yield "webhook", reason

    if urlsplit(notify.webhook).scheme != "https" and not notify.allow_private:
        reason = (
            "write https://, or allow_private = true if the network between is yours: http:// "
            "shows everyone on the way what is sent"
        )
        yield "webhook", reason


def _of_limits(settings: Settings) -> Iterator[str]:
    for name, provider in settings.providers.items():
        job, day, month = provider.max_cost, provider.max_cost_per_day, provider.max_cost_per_month
        limits = [("max_cost", job), ("max_cost_per_day", day), ("max_cost_per_month", month)]
        known = [(key, limit) for key, limit in limits if limit is not None]

        for (key, limit), (longer, other) in pairwise(known):
            if limit > other:
                yield (
                    f"providers.{name}.{key}: {limit:g} USD is more than {longer} allows, "
                    f"{other:g} USD, which is met first"
                )


def _of_listening(settings: Settings) -> Iterator[str]:
    listen = settings.metrics.listen

    if listen is not None and not is_loopback(listen.rpartition(":")[0].strip("[]")):
        yield (
            f"metrics.listen: whoever reaches {listen} may read the figures; 127.0.0.1 is read "
            f"from this machine alone"
        )
