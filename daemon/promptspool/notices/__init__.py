"""Notices: one attempt to tell a command or a webhook what became of a job.

Each target has a notice of its own, so that a webhook that is down does not run the command again.
What was taken may be told again after a crash: at least once, with the same id. When to try again
is not decided here. Raises `NoticeFailed` (environment).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from promptspool.notices import command, webhook
from promptspool.notices.message import Event, Message, NoticeFailed, Target
from promptspool.notices.queue import notices_of, targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptspool.settings import NotifySettings

__all__ = ["Event", "Message", "NoticeFailed", "Target", "notices_of", "send", "targets"]


async def send(  # noqa: PLR0913 - the target, and what each of them needs
    message: Message,
    settings: NotifySettings,
    *,
    target: Target,
    name: str,
    environ: Mapping[str, str],
    now: float,
) -> None:
    """Tell *target*; returns when it has taken the message.

    *name* is the profile's, for reasons. *environ* is the daemon's own environment, of which a
    command gets next to nothing. *now* is when this attempt is made, by the clock on the wall.
    Takes `settings.timeout` and two seconds at most, also when it is cancelled. Raises
    `NoticeFailed`, finally for a target that is not set any more.
    """
    key = f"profiles.{name}.notify"

    if target not in targets(settings):
        raise NoticeFailed(f"{key}.{target} is not set any more", is_final=True)

    match target:
        case "command":
            await command.run(message, settings, key=key, environ=environ)
        case "webhook":
            await webhook.post(message, settings, key=key, environ=environ, now=now)
        case _:
            assert_never(target)
