"""Which notices follow from what became of a job. Pure; raises nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptspool.model import Job, JobStatus, Notice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from promptspool.model import Row
    from promptspool.notices.message import Event, Target
    from promptspool.settings import NotifySettings, ProfileSettings


def targets(settings: NotifySettings) -> tuple[Target, ...]:
    """Return who is to be told, whatever of."""
    found: list[Target] = []

    if settings.command:
        found.append("command")

    if settings.webhook is not None:
        found.append("webhook")

    return tuple(found)


def notices_of(
    profiles: Mapping[str, ProfileSettings], updated: Sequence[tuple[Row, Row]], now: float
) -> list[Notice]:
    """Return the notices that *updated* rows call for, to be written with them."""
    found: list[Notice] = []

    for before, after in updated:
        if not isinstance(after, Job) or after.status is before.status:
            continue

        event = _event(after)
        profile = profiles.get(after.profile)

        if event is None or profile is None or event.removeprefix("job.") not in profile.notify.on:
            continue

        found += [
            Notice(
                id=f"{after.id}/{event}.{after.version}/{target}",
                job=after.id,
                event=event,
                target=target,
                due_at=now,
                made_at=now,
            )
            for target in targets(profile.notify)
        ]

    return found


def _event(job: Job) -> Event | None:
    match job.status:
        case JobStatus.HELD:
            return "job.held"
        case JobStatus.REJECTED:
            return "job.failed"
        case JobStatus.DELIVERED:
            return "job.delivered" if job.results else "job.failed"
        case _:
            return None
