"""What needs a person, and the commands that help. Pure; raises nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec

from promptspool.model import JobId, JobStatus, NoticeStatus, Work
from promptspool.tell.phases import SET_ASIDE, is_set_aside
from promptspool.tell.words import file_name, many, moment, safe, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.model import Job, ProviderState
    from promptspool.store.overview import LiveBatch, Overview

LONG_PAUSE_S = 900.0
"""A provider that was not to be had for a quarter of an hour may need a person."""

# What `provider.problems` and the settings say where waiting does not help.
_FOR_A_PERSON = re.compile(
    r"HTTP (?:401|403|407)\b|\bquota\b|\bbilling\b|spend.limit|\bno key\b|\bkey\b.*cannot be read"
    r"|check base_url|no longer in the configuration",
    re.IGNORECASE,
)

_RETIRED = 6
"""The random characters at the end of a job's id, by which it can be called."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that does not go on by itself."""

    kind: str
    """daemon_down, database, held, set_aside, stalled, blocked, rejected or notice."""
    text: str
    """What it is, harmless to show."""
    commands: Sequence[str] = ()
    """What may help."""
    job: JobId | None = None
    batch: str | None = None
    provider: str | None = None
    since: float | None = None
    """None if it is not known."""


def short_id(job: JobId) -> str:
    """Return the end of a job's id, which is enough to name it."""
    return job[-_RETIRED:]


def needs_of(overview: Overview, *, now: float, is_up: bool) -> list[Need]:
    """Return what needs a person, the most urgent first.

    One of each kind comes before a second of any: a hundred jobs that are held hide nothing else.
    """
    jobs = {job.id: job for job in overview.jobs}
    needs = [
        *_down(overview.jobs, overview.last_at, is_up=is_up),
        *(need for state in overview.providers for need in _provider(state, now)),
        *(need for job in overview.jobs for need in _job(job)),
        *(need for batch in overview.batches for need in _batch(batch, jobs[batch.job], now)),
        *_rejected(overview),
        *_notices(overview),
    ]
    seen: Counter[str] = Counter()
    turns: list[int] = []

    for need in needs:
        turns.append(seen[need.kind])
        seen[need.kind] += 1

    return [need for _, need in sorted(zip(turns, needs, strict=True), key=itemgetter(0))]


def _down(jobs: Sequence[Job], last_at: float | None, *, is_up: bool) -> Iterator[Need]:
    waiting = [job for job in jobs if job.status is not JobStatus.DELIVERED]

    if waiting and not is_up:
        yield Need(
            kind="daemon_down",
            text=f"promptspool does not run, and {many(len(waiting), 'job')} "
            f"{'waits' if len(waiting) == 1 else 'wait'} for it",
            commands=("promptspool run", "systemctl start promptspool"),
            since=last_at,
        )


def _provider(state: ProviderState, now: float) -> Iterator[Need]:
    if state.due_at is None and (state.why or "").startswith(SET_ASIDE):
        yield Need(kind="set_aside", text=f"{state.id}: {safe(state.why or '')}", provider=state.id)
        return

    is_refused = _FOR_A_PERSON.search(state.why or "") is not None
    is_long = state.paused_at is not None and now - state.paused_at >= LONG_PAUSE_S

    if state.pauses and (is_refused or is_long):
        work = "everything" if state.paused_work is Work.ALL else state.paused_work.value
        yield Need(
            kind="blocked",
            text=f"{state.id}: {work} paused: {safe(state.why or 'it does not answer')}",
            commands=("promptspool doctor",),
            provider=state.id,
            since=state.paused_at,
        )


def _job(job: Job) -> Iterator[Need]:
    name = short_id(job.id)

    if job.status is JobStatus.HELD:
        until = "" if job.due_at is None else f"; it goes on by itself {moment(job.due_at)}"
        reason = safe(job.why or "it waits for a person")
        yield Need(
            kind="held",
            text=f"{file_name(job.name)} is held: {reason}{until}",
            commands=(f"promptspool release {name}", f"promptspool cancel {name}"),
            job=job.id,
        )
    elif is_set_aside(job):
        is_live = job.status in (JobStatus.CLAIMED, JobStatus.PLANNED)
        yield Need(
            kind="set_aside",
            text=f"{file_name(job.name)}: {_reason(job.why)}",
            commands=(
                f"promptspool show {name}",
                *((f"promptspool cancel {name}",) if is_live else ()),
            ),
            job=job.id,
        )


def _batch(batch: LiveBatch, job: Job, now: float) -> Iterator[Need]:
    name = short_id(job.id)
    commands = (f"promptspool show {name}", f"promptspool cancel {name}")

    if is_set_aside(batch, is_held=job.status is JobStatus.HELD):
        yield Need(
            kind="set_aside",
            text=f"{file_name(job.name)}: batch {batch.id}: {_reason(batch.why)}",
            commands=commands,
            job=job.id,
            batch=batch.id,
        )
    elif batch.stalls:
        since = batch.progressed_at
        span_of_it = "long" if since is None else span(now - since)
        yield Need(
            kind="stalled",
            text=f"{file_name(job.name)}: batch {batch.remote_id or batch.id} has made no progress "
            f"for {span_of_it} ({batch.completed + batch.failed:,} of {batch.requests:,})",
            commands=commands,
            job=job.id,
            batch=batch.id,
            since=since,
        )


def _reason(why: str | None) -> str:
    """Return why something was set aside; where nobody wrote it down, that much."""
    if why and why.startswith(SET_ASIDE):
        return safe(why)

    return f"{SET_ASIDE}: {safe(why)}" if why else f"{SET_ASIDE}, and nobody says why"


def _rejected(overview: Overview) -> Iterator[Need]:
    rejected = [ended for ended in overview.ended if ended.status is JobStatus.REJECTED]

    if not rejected:
        return

    from promptspool.policy.jobs import WITHDRAWN  # noqa: PLC0415 - with all that may be decided

    for ended in rejected:
        if ended.why != WITHDRAWN:
            name = short_id(ended.id)
            yield Need(
                kind="rejected",
                text=f"{file_name(ended.name)} was rejected: {safe(ended.why or 'no reason')}",
                commands=(f"promptspool show {name}", f"promptspool forget {name}"),
                job=ended.id,
                since=ended.ended_at,
            )


def _notices(overview: Overview) -> Iterator[Need]:
    for notice in overview.notices:
        if notice.status is NoticeStatus.DROPPED:
            yield Need(
                kind="notice",
                text=f"nobody took the notice {notice.event} for the {notice.target}: "
                f"{safe(notice.why or 'no reason given')}",
                commands=(f"promptspool show {short_id(notice.job)}",),
                job=notice.job,
                since=notice.failed_at,
            )
