"""The story of one job: what it was, what became of it, and what to do next.

Reads the spool's files as well as the database. Raises `SpoolError` (environment) and `NoSuchJob`
(a person named something else).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptspool.model import JobStatus
from promptspool.policy.jobs import WITHDRAWN
from promptspool.store.view import viewed
from promptspool.tell.causes import Causes, causes_of
from promptspool.tell.figures import line_of
from promptspool.tell.needs import short_id
from promptspool.tell.phases import is_set_aside
from promptspool.tell.words import safe
from promptspool.wire import PRODUCTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.model import Batch, Job, Notice
    from promptspool.spool import Spool
    from promptspool.store.overview import Step
    from promptspool.tell.figures import JobLine

_DELIVERED = (JobStatus.DELIVERED, JobStatus.DONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All that is known of a job."""

    job: Job
    line: JobLine
    """As `status` tells of it."""
    batches: Sequence[Batch]
    """Parents first."""
    steps: Sequence[Step]
    """In the order of time."""
    notices: Sequence[Notice]
    causes: Causes
    files: Sequence[Path]
    """Where its results, or what was rejected, are; only what is there."""
    advice: Sequence[str]
    """What to do, in words and commands; none if all is well."""


def story_of(spool: Spool, text: str, *, now: float) -> Story:
    """Return the story of the job that *text* names, as `View.job` finds it, up to *now*."""
    with viewed(spool) as view:
        job = view.job(text)
        batches = view.batches_of(job.id)
        steps, notices = view.history_of(job.id), view.notices_of(job.id)
        is_up = view.is_up

    return Story(
        job=job,
        line=line_of(job, batches, now=now, is_up=is_up),
        batches=batches,
        steps=steps,
        notices=notices,
        causes=causes_of(spool, job, batches),
        files=_files(spool, job),
        advice=_advice(job, batches, is_up=is_up),
    )


def _files(spool: Spool, job: Job) -> list[Path]:
    stem = os.fsdecode(job.stem)
    rejected = spool.rejected / stem

    if job.status is JobStatus.REJECTED:
        places = [rejected, rejected.with_name(f"{rejected.name}.rejected.json")]
    elif job.status in _DELIVERED:
        places = [spool.outbox / f"{stem}.{name}" for name in PRODUCTS]
        places.append(spool.done / stem)
    else:
        places = [spool.folder(job.id) / "original"]

    return [path for path in places if _is_there(path)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that may not be looked into
        return False


def _advice(job: Job, batches: Sequence[Batch], *, is_up: bool) -> list[str]:
    name = short_id(job.id)
    is_held = job.status is JobStatus.HELD
    advice: list[str] = []

    if job.status is JobStatus.REJECTED and job.why != WITHDRAWN:
        advice.append("mend the file as the reason says, and drop it again")
    elif job.status in _DELIVERED and job.errors:
        advice.append(f"ask its {job.errors:,} errors again: promptspool retry {name}")

    if is_held:
        advice.append(f"let it go beyond the limits: promptspool release {name}")

    if is_held or any(batch.stalls for batch in batches if batch.due_at is not None):
        advice.append(f"take it back, and keep what is answered: promptspool cancel {name}")

    if is_set_aside(job) or any(is_set_aside(batch, is_held=is_held) for batch in batches):
        advice.append(
            "what is set aside goes no further: its files were damaged, or this is a bug to be "
            "reported, with the log of it: promptspool logs --job " + name
        )

    if not is_up and job.status not in (*_DELIVERED, JobStatus.REJECTED):
        advice.append("promptspool does not run: promptspool run, or systemctl start promptspool")

    return advice


def relative(path: Path, spool: Spool) -> str:
    """Return a path of the spool as it may be shown, seen from the spool's folder."""
    return safe(str(path.relative_to(spool.root)) if path.is_relative_to(spool.root) else str(path))
