"""What commands of people do to rows; the dispatcher calls this between two turns of its loop.

A command is carried out on rows that nobody works on at the moment; for the others it stays and is
carried on later, so it may be called any number of times. It changes nothing itself: it returns
what is to be written, and an answer once there is nothing left to do. Raises `StoreError` and
`OSError` (environment).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread
from msgspec.structs import replace

from promptspool import retrying
from promptspool.control import Answer
from promptspool.errors import SpoolError
from promptspool.intake.kept import kept_id
from promptspool.model import BatchStatus, JobStatus, ProviderStatus
from promptspool.outcomes import Cancelled, Delayed, Halted, Released, Turned, Withdrawn
from promptspool.policy import decide
from promptspool.spool import write_durably
from promptspool.stages import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from promptspool.claims import Claims
    from promptspool.context import Context
    from promptspool.control import Command
    from promptspool.model import Batch, Job, JobId, ProviderState, Row
    from promptspool.policy import Rules

_FINISHED = (JobStatus.DONE, JobStatus.REJECTED)
_CANCELLABLE = (JobStatus.CLAIMED, JobStatus.PLANNED, JobStatus.HELD)
_UNSENT = (BatchStatus.PLANNED, BatchStatus.UPLOADED, BatchStatus.CREATING)

_FAULTS = json.dumps([{"code": CANCELLED, "message": "cancelled before this was submitted"}])


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a command comes to."""

    updated: Sequence[tuple[Row, Row]] = ()
    added: Sequence[Row] = ()
    forgotten: Sequence[JobId] = ()
    answer: Answer | None = None
    """None if it is to be carried on when what runs now has ended."""


@dataclass(slots=True, kw_only=True)
class Commands:
    """Carries out commands on one spool."""

    context: Context
    claims: Claims
    rules: Rules
    providers: Mapping[str, ProviderState]
    is_free: Callable[[str], bool]
    """Tells whether nobody works on the row of that id."""
    now: float = field(init=False)

    def __post_init__(self) -> None:
        """Do all of it at one moment."""
        self.now = self.context.clock.now()

    async def carry_out(self, command: Command, name: str) -> Carried:
        """Carry out *command*, whose file is called *name*."""
        match command.verb:
            case "pause" | "resume" if command.provider is not None:
                return await self._halt(command.provider, is_over=command.verb == "resume")
            case "cancel" | "retry" | "release" | "forget":
                job = None if command.job is None else await self.context.store.job(command.job)

                if job is None:
                    return _refused(f"there is no job {command.job}")

                return await self._of_job(command, job, name)
            case _:
                return _refused(f"{command.verb!r} needs something that is missing")

    async def _of_job(self, command: Command, job: Job, name: str) -> Carried:
        match command.verb:
            case "cancel":
                return await self._cancel(job)
            case "release":
                return await self._release(job)
            case "retry":
                return await self._retry(job, command.left_at, name)
            case _:
                return await self._forget(job)

    async def _halt(self, provider: str, *, is_over: bool) -> Carried:
        state = self.providers.get(provider)

        if state is None:
            known = ", ".join(self.providers) or "none"

            return _refused(f"there is no provider {provider!r}; known: {known}")

        word = "goes on" if is_over else "is paused: nothing is submitted until it is resumed"
        answer = Answer(is_done=True, message=f"{provider} {word}")

        if (state.halted_at is None) is is_over:
            return Carried(answer=answer)

        if not self.is_free(provider):
            return Carried()

        after = decide(state, Halted(is_over=is_over), self.now, self.rules)

        updated: list[tuple[Row, Row]] = [(state, after)]

        if state.halted_at is not None:
            updated += await self.delayed(provider, state.halted_at)

        return Carried(updated=updated, answer=answer)

    async def delayed(self, provider: str, since: float) -> list[tuple[Row, Row]]:
        """Return what was not submitted to *provider* since then, by which it is no older."""
        outcome = Delayed(seconds=self.now - since)

        return [
            (batch, decide(batch, outcome, self.now, self.rules))
            for batch in await self.context.store.unsent(provider)
            if self.is_free(batch.id)
        ]

    async def _release(self, job: Job) -> Carried:
        if job.status is not JobStatus.HELD:
            return _refused(f"{job.shown} is not held; it is {job.status.value}")

        if not self.is_free(job.id):
            return Carried()

        after = decide(job, Released(by_hand=True), self.now, self.rules)
        answer = Answer(is_done=True, message=f"{job.shown} goes on, whatever it may cost")

        return Carried(
            updated=[(job, after), *await woken(self.context, job, self.now, self.rules)],
            answer=answer,
        )

    async def _retry(self, job: Job, left_at: float, name: str) -> Carried:
        begin = partial(
            retrying.begin,
            self.context.spool,
            self.claims,
            self.context.settings,
            job,
            left_at=left_at,
            name=name,
        )

        try:
            # Carried out before, if its answer could not be left: its folder may be gone by now.
            known = await self.context.store.job(retrying.retry_id(left_at, name))
            new = known if known is not None else await anyio.to_thread.run_sync(begin)
        except (retrying.NotRetryable, SpoolError, OSError) as error:
            return _refused(str(error))

        message = f"{job.shown} is asked again, where it failed, as job {new.id}"
        added = [] if known is not None else [new]

        return Carried(added=added, answer=Answer(is_done=True, message=message, job=new.id))

    async def _forget(self, job: Job) -> Carried:
        if job.status not in _FINISHED:
            return _refused(f"{job.shown} is not finished; it is {job.status.value}; cancel it")

        notices = await self.context.store.notices_of(job.id)

        if not all(self.is_free(notice.id) for notice in notices):
            return Carried()

        answer = Answer(is_done=True, message=f"{job.shown} is forgotten; its files stay")

        return Carried(forgotten=[job.id], answer=answer)

    # Cancelling.

    async def _cancel(self, job: Job) -> Carried:
        if job.status not in _CANCELLABLE:
            return _refused(f"{job.shown} cannot be cancelled any more; it is {job.status.value}")

        batches = await self.context.store.batches_of(job.id)
        live = [batch for batch in batches if batch.status is not BatchStatus.CLOSED]

        if not self.is_free(job.id):
            return Carried()

        await anyio.to_thread.run_sync(_mark, self.context.spool.folder(job.id) / CANCELLED)

        if job.status is JobStatus.CLAIMED:
            after: Row = decide(job, Cancelled(), self.now, self.rules)
            answer = Answer(is_done=True, message=f"{job.shown} goes to rejected/")

            return Carried(updated=[(job, after)], answer=answer)

        own = [batch for batch in batches if batch.id != kept_id(job.id)]

        if all(self._is_here(batch) and batch.input_file is None for batch in own):
            rows: list[Row] = [job, *live]
            gone = [(row, decide(row, Withdrawn(), self.now, self.rules)) for row in rows]
            message = f"nothing of {job.shown} was submitted; it goes to rejected/"

            return Carried(updated=gone, answer=Answer(is_done=True, message=message))

        return self._ended_early(job, live)

    def _ended_early(self, job: Job, live: Sequence[Batch]) -> Carried:
        """Let nothing more of *job* be submitted, and end what runs.

        What may be at the provider or not is ended when recall has told.
        """
        updated: list[tuple[Row, Row]] = []

        if job.cancelled_at is None:
            updated.append((job, decide(job, Cancelled(), self.now, self.rules)))

        for batch in live:
            if self._is_here(batch):
                updated.append((batch, self._ended(batch)))
            elif batch.cancelled_at is None and self.is_free(batch.id):
                updated.append((batch, decide(batch, Cancelled(), self.now, self.rules)))

        changed = {row.id for row, _ in updated}
        is_done = not any(
            (batch.id not in changed and batch.cancelled_at is None) or self._is_doubted(batch)
            for batch in live
        )
        message = (
            f"{job.shown} is cancelled: what was answered by then is delivered, the rest are "
            f"errors {CANCELLED!r}"
        )

        return Carried(
            updated=updated, answer=Answer(is_done=True, message=message) if is_done else None
        )

    def _ended(self, batch: Batch) -> Row:
        """Return the end of a batch that was never created."""
        marked = decide(batch, Cancelled(), self.now, self.rules)
        ended = decide(marked, Turned(faults=_FAULTS), self.now, self.rules)

        return replace(ended, version=marked.version)

    def _is_doubted(self, batch: Batch) -> bool:
        """Tell whether recall has yet to say if a batch was created."""
        state = self.providers.get(batch.provider)

        return (
            batch.status in _UNSENT
            and state is not None
            and state.status is ProviderStatus.RECALLING
        )

    def _is_here(self, batch: Batch) -> bool:
        """Tell whether a batch was certainly never created: nobody has to be asked about it."""
        account = self.context.accounts.get(batch.provider)
        state = self.providers.get(batch.provider)
        folder = self.context.spool.folder(batch.job)

        return (
            batch.status in _UNSENT
            and self.is_free(batch.id)
            and state is not None
            and state.status is ProviderStatus.READY
            and (account is None or batch.id not in account.batches)
            and not (folder / f"{batch.id}.settled.json").exists()
        )


async def woken(context: Context, job: Job, now: float, rules: Rules) -> list[tuple[Row, Row]]:
    """Return the batches that were held with *job*, which go on with it."""
    return [
        (batch, decide(batch, Released(by_hand=False), now, rules))
        for batch in await context.store.batches_of(job.id)
        if batch.status in (BatchStatus.PLANNED, BatchStatus.UPLOADED)
        and batch.due_at is None
        and not (batch.why or "").startswith("set aside")
    ]


def _mark(path: Path) -> None:
    """Say in a job's folder, once, that it is cancelled: a database may be lost or put back."""
    if not path.exists():
        write_durably(path, b"")


def _refused(reason: str) -> Carried:
    return Carried(answer=Answer(is_done=False, message=reason))
