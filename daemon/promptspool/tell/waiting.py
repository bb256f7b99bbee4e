"""Waiting for jobs to end, with their progress on a terminal, or a line for each change.

Only looks at the database and the inbox, now and then. Raises `NoSuchJob` for a name that stands
for no job, and `SpoolError` (environment) for a database that cannot be read.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from promptspool.clock import SystemClock, pause
from promptspool.errors import StoreError
from promptspool.model import Job, JobStatus
from promptspool.pricing import usd
from promptspool.store.view import NoDatabase, NoSuchJob, viewed
from promptspool.tell.figures import line_of
from promptspool.tell.layout import aligned, bar
from promptspool.tell.looking import console_of, put, spool_of
from promptspool.tell.words import file_name, many, safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from promptspool.settings import Settings
    from promptspool.spool import Spool
    from promptspool.store.view import View
    from promptspool.tell.figures import JobLine

LOOK_S = 0.5
"""How often the database is looked at."""

CLAIM_S = 10.0
"""A file that left the inbox is a job within so long, if a daemon runs."""

CLOCKS_S = 2.0
"""How much earlier than it was dropped a file may seem to have been claimed."""

STEP = 10
"""Per cent of progress that are worth a line where there is no bar."""

_OVER = frozenset({JobStatus.DELIVERED, JobStatus.DONE, JobStatus.REJECTED})


@dataclass(slots=True, kw_only=True)
class _Waited:
    """One job that is waited for."""

    name: str
    """As it was asked for."""
    since: float | None
    """Jobs that were claimed before are not meant; None if any may be."""
    seen_at: float
    """When it was last seen in the inbox or the database, or first looked for."""
    job: Job | None = None
    line: JobLine | None = None
    told: object = None
    """What was last said of it."""
    is_waiting: bool = False
    """The file is in the inbox."""

    @property
    def is_over(self) -> bool:
        return self.job is not None and self.job.status in _OVER

    @property
    def is_good(self) -> bool:
        """Whether it was delivered, and every request of it was answered."""
        job = self.job

        return job is not None and job.delivered_at is not None and not job.errors

    @property
    def phase(self) -> str:
        if self.line is None:
            return "waiting in the inbox" if self.is_waiting else "looked for"

        return self.line.text


def wait_for(
    settings: Settings, *names: str, since: float | None = None, timeout_s: float | None = None
) -> bool:
    """Return when each job called one of *names* has come to its end, and show how it goes.

    True if all were delivered with every request answered; False if one was rejected, or has
    errors, or did not end within *timeout_s*. A name is as for `View.job`, or that of a file which
    is still in the inbox. Of several jobs with one name the youngest is meant; *since* leaves out
    those claimed before (Unix seconds): pass when a file was dropped, since others may have had its
    name.
    """
    clock = SystemClock()
    spool = spool_of(settings)
    console = console_of()
    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    started_at = clock.now()
    waited = [_sought(spool, name, since, started_at) for name in names]

    with ExitStack() as stack:
        live = None

        if console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, transient=True))

        while True:
            _look(spool, waited, clock.now())
            _tell(console, live, waited)
            is_late = deadline is not None and clock.monotonic() >= deadline

            if is_late or all(one.is_over for one in waited):
                break

            pause(LOOK_S)

    put(console, [_last_words(one, spool) for one in waited])

    return all(one.is_over and one.is_good for one in waited)


def _sought(spool: Spool, name: str, since: float | None, now: float) -> _Waited:
    is_waiting = _is_in_inbox(spool, name)

    # What is in the inbox will be a job, and none of those that were called so before.
    if since is None and is_waiting:
        since = now

    return _Waited(name=name, since=since, seen_at=now, is_waiting=is_waiting)


def _is_in_inbox(spool: Spool, name: str) -> bool:
    path = Path(name)

    return not path.is_absolute() and ".." not in path.parts and os.path.lexists(spool.inbox / path)


def _look(spool: Spool, waited: Sequence[_Waited], now: float) -> None:
    """Bring *waited* up to date; a database that a daemon is just making is looked at later."""
    try:
        with viewed(spool) as view:
            for one in waited:
                if not one.is_over:
                    _seek(view, one)

            is_up = view.is_up
    except (NoDatabase, StoreError):
        is_up = False

    for one in waited:
        one.is_waiting = one.job is None and _is_in_inbox(spool, one.name)

        if one.job is not None or one.is_waiting:
            one.seen_at = now
        elif not is_up or now - one.seen_at > CLAIM_S:
            message = f"no job or waiting file is called {one.name!r}"
            raise NoSuchJob(f"{message}; `promptspool status` shows the jobs there are")


def _seek(view: View, one: _Waited) -> None:
    known = one.job
    job = _found(view, one) if known is None else next(iter(view.jobs_called(known.id)), None)

    if job is None:
        return

    one.job = job
    one.line = line_of(job, view.batches_of(job.id), now=SystemClock().now(), is_up=view.is_up)


def _found(view: View, one: _Waited) -> Job | None:
    jobs = view.jobs_called(one.name)
    name = os.fsencode(one.name)

    if one.since is not None:
        jobs = [job for job in jobs if job.claimed_at >= one.since - CLOCKS_S]

    same = [job for job in jobs if name in (job.name, job.name.rpartition(b"/")[2])]

    if same:
        return same[0]

    if one.since is not None or not jobs:
        return None

    return view.job(one.name)


# What is said meanwhile.


def _tell(console: Console, live: Live | None, waited: Sequence[_Waited]) -> None:
    if live is not None:
        live.update(Group(*_drawn(console, waited)), refresh=True)
        return

    for one in waited:
        percent = _share(one) * 100
        state = (one.phase, percent // STEP)

        if state != one.told and not one.is_over:
            one.told = state
            put(console, [Text(f"{_name(one)}: {one.phase}{_requests(one)}")])


def _drawn(console: Console, waited: Sequence[_Waited]) -> list[Text]:
    rows = [
        [
            Text(_name(one)),
            bar(_share(one), 20, is_ascii=not console.encoding.startswith("utf")),
            Text(f"{int(_share(one) * 100)}%"),
            Text(_requests(one).removeprefix(", ")),
            Text("done" if one.is_over else one.phase),
        ]
        for one in waited[: console.height - 2]
    ]

    return aligned(rows, right={2}, widest={0: console.width // 3}, width=console.width)


def _share(one: _Waited) -> float:
    if one.is_over:
        return 1.0

    line = one.line

    return line.done / line.total if line is not None and line.total else 0.0


def _requests(one: _Waited) -> str:
    line = one.line

    return "" if line is None or line.total is None else f", {line.done:,} of {line.total:,}"


def _name(one: _Waited) -> str:
    return safe(one.name) if one.job is None else file_name(one.job.name)


def _last_words(one: _Waited, spool: Spool) -> Text:
    job = one.job

    if job is None or not one.is_over:
        return Text(f"{_name(one)}: not over yet: {one.phase}{_requests(one)}", style="yellow")

    stem = file_name(job.stem)

    if job.status is JobStatus.REJECTED:
        reason = safe(job.why or "no reason given")
        place = safe(str(spool.rejected))

        return Text(f"{_name(one)}: rejected: {reason}; it is {place}/{stem}", style="red")

    if job.delivered_at is None:
        return Text(f"{_name(one)}: {safe(job.why or 'it ended without results')}", style="red")

    errors = f" and {many(job.errors, 'error')}" if job.errors else ""
    cost = "" if job.cost_usd is None else f", cost {usd(job.cost_usd)} (estimate)"
    place = f"{safe(str(spool.outbox))}/{stem}.results.jsonl"

    return Text(
        f"{_name(one)}: delivered, {many(job.results or 0, 'answer')}{errors}{cost}: {place}",
        style="yellow" if job.errors else "green",
    )
