"""All batches of the simulator: accepted, advanced when looked at, cancelled.

Everything that can be decided is decided when a batch is accepted: which requests fail, whether
the file is sound, whether the enqueued-token limit is reached. Later looks only compare the
clock with the timeline, and write the result files the first time anybody looks at a batch that
has ended. Raises `ApiProblem` (*bad data*) and OSError (*environment*).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from math import inf
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from promptspool.simulator.faults import BatchFault, Call, Faults
from promptspool.simulator.inputs import Inspection, inspect
from promptspool.simulator.ledger import Creation, Ledger
from promptspool.simulator.output import Written, write
from promptspool.simulator.problems import ApiProblem, unknown
from promptspool.simulator.records import (
    Fates,
    Record,
    Results,
    recipe,
    shown,
    view,
    workload,
)
from promptspool.simulator.shelf import Shelf
from promptspool.simulator.timeline import Course, Ending, plan
from promptspool.simulator.wire import TERMINAL, Batch, BatchError, BatchUsage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from promptspool.clock import Clock
    from promptspool.simulator.files import FileStore, Ids
    from promptspool.simulator.orders import BatchOrder, Page
    from promptspool.simulator.settings import SimulatorSettings

_HOUR_S: Final = 3_600.0


class BatchBook:
    """Every batch of one account, in the order they were created."""

    def __init__(  # noqa: PLR0913 - the parts of one simulator
        self,
        *,
        clock: Clock,
        settings: SimulatorSettings,
        files: FileStore,
        ids: Ids,
        faults: Faults,
        ledger: Ledger,
    ) -> None:
        """Start without batches."""
        self._clock = clock
        self._settings = settings
        self._files = files
        self._ids = ids
        self._faults = faults
        self._ledger = ledger
        self._records: dict[str, Record] = {}
        self._foreign: dict[str, Batch] = {}
        self._shelf = Shelf()
        self._attempts: Counter[str] = Counter()
        self._created_at: deque[float] = deque()

    async def create(self, order: BatchOrder) -> Batch:
        """Accept a batch; whether its file is sound shows only after validation.

        Raises `ApiProblem`: 404 for an unknown input file, 429 for too many batches an hour.
        """
        stored = self._files.ready(order.input_file_id)
        self._check_rate()
        call = Call(route="batches.create", metadata=order.metadata)
        fate, judge = self._faults.take_batch(call)

        # A link keeps the bytes when the client deletes its input before the batch ends.
        source = self._files.new_path()
        source.hardlink_to(stored.path)
        found = await anyio.to_thread.run_sync(
            inspect, source, order.endpoint, self._settings, judge
        )
        record = self._accept(order, fate, found, source)
        self._records[record.id] = record
        self._shelf.add(record.id, record.created_at, record.created_at + fate.list_lag_s)
        self._ledger.accept(
            Creation(
                remote_id=record.id,
                created_at=record.created_at,
                metadata=order.metadata or {},
                input_sha256=stored.sha256,
                requests=len(found.offsets) if record.is_sound() else 0,
            ),
            found.custom_ids if self._settings.count_requests and record.is_sound() else (),
        )
        return view(record, record.created_at)

    async def retrieve(self, remote_id: str) -> Batch | dict[str, Any]:
        """Return a batch as it is now, counting the look.

        Raises `ApiProblem` 404 when there is none.
        """
        record = self._records.get(remote_id)

        if record is not None and record.timeline.status(self._clock.now()) in TERMINAL:
            record.looks += 1

        return await self.seen(remote_id)

    def add_foreign(self, batches: Iterable[Batch]) -> None:
        """Put batches of other clients into the list, each from its creation on."""
        for batch in batches:
            self._foreign[batch.id] = batch
            self._shelf.add(batch.id, batch.created_at, batch.created_at)

    def listed(self, wanted: Page) -> tuple[list[str], bool]:
        """Return one page of ids, newest first, and whether there is more.

        Raises `ApiProblem` 404 when there is no batch to begin behind.
        """
        return self._shelf.page(wanted, self._clock.now())

    async def seen(self, remote_id: str) -> Batch | dict[str, Any]:
        """Return a batch as it is now.

        Raises `ApiProblem` 404 when there is none.
        """
        if remote_id in self._foreign:
            return self._foreign[remote_id]

        record = self._get(remote_id)
        now = self._clock.now()
        await self._finish(record, now)
        return shown(record, now)

    async def cancel(self, remote_id: str) -> Batch | dict[str, Any]:
        """Begin to cancel a batch; cancelling twice is cancelling once.

        Raises `ApiProblem`: 404 when there is none, 409 when it has ended.
        """
        record = self._get(remote_id)
        now = self._clock.now()
        status = record.timeline.status(now)

        if status in TERMINAL:
            message = f"Cannot cancel a batch with status '{status}'."
            raise ApiProblem(409, message)

        if status != "cancelling":
            record.timeline = record.timeline.cancel(now)
            self._ledger.cancels.append(remote_id)

        return await self.seen(remote_id)

    async def finish_due(self) -> None:
        """Write the result files of every batch that has ended."""
        now = self._clock.now()

        for record in list(self._records.values()):
            await self._finish(record, now)

    def metadata(self, remote_id: str) -> dict[str, str] | None:
        """Return the metadata of a batch, None when it has none or does not exist."""
        record = self._records.get(remote_id)
        return None if record is None else record.order.metadata

    def _get(self, remote_id: str) -> Record:
        record = self._records.get(remote_id)

        if record is None:
            raise unknown("Batch", remote_id)

        return record

    def _check_rate(self) -> None:
        now = self._clock.now()

        while self._created_at and self._created_at[0] <= now - _HOUR_S:
            self._created_at.popleft()

        if len(self._created_at) >= self._settings.max_creates_per_hour:
            wait_s = int(self._created_at[0] + _HOUR_S - now) + 1
            message = "Rate limit reached for batch creation. Please try again later."
            raise ApiProblem(
                429,
                message,
                kind="requests",
                code="rate_limit_exceeded",
                headers={"retry-after": str(wait_s)},
            )

        self._created_at.append(now)

    def _accept(
        self, order: BatchOrder, fate: BatchFault, found: Inspection, source: Path
    ) -> Record:
        remote_id = self._ids.next("batch_")
        now = self._clock.now()
        errors = list(fate.errors) if fate.ending == "failed" else found.errors
        errors = errors or self._token_errors(found, now)
        is_doomed = bool(errors) or fate.ending == "failed"
        fates = Fates() if is_doomed else self._verdicts(found, fate)
        course = self._course(remote_id, fate, "failed" if is_doomed else fate.ending)
        return Record(
            id=remote_id,
            created_at=now,
            order=order,
            timeline=plan(now, course),
            fate=fate,
            errors=errors,
            model=found.model,
            tokens=0 if is_doomed else found.tokens,
            source=source,
            work=workload(remote_id, found.offsets, fates, fate.drop),
        )

    def _course(self, remote_id: str, fate: BatchFault, ending: Ending | None) -> Course:
        settings = self._settings
        spread = random.Random(remote_id).uniform(-1, 1)  # noqa: S311 - reproducible, no secret
        run_s = settings.run_s * (1 + settings.run_jitter * spread)
        return Course(
            validate_s=settings.validate_s if fate.validate_s is None else fate.validate_s,
            run_s=run_s if fate.run_s is None else fate.run_s,
            finalize_s=settings.finalize_s,
            cancel_s=settings.cancel_s,
            window_s=settings.window_s,
            ending=ending,
            stuck_in=fate.stuck_in,
            done=fate.done,
        )

    def _token_errors(self, found: Inspection, now: float) -> list[BatchError]:
        """Return the error of a batch that does not fit beside those not ended yet."""
        model = found.model or ""
        limit = self._settings.enqueued_tokens.get(model, inf)
        queued = sum(
            record.tokens
            for record in self._records.values()
            if record.model == model and record.timeline.ended_at() > now
        )

        if queued + found.tokens <= limit:
            return []

        message = (
            f"Enqueued token limit reached for {model} in organization org-simulated. "
            f"Limit: {limit:,} enqueued tokens. Please try again once some in_progress "
            "batches have been completed."
        )
        return [BatchError(code="token_limit_exceeded", message=message)]

    def _verdicts(self, found: Inspection, fate: BatchFault) -> Fates:
        """Return what becomes of the requests that do not simply get their answer."""
        fates = Fates(failures=dict.fromkeys(fate.fail_ordinals, fate.failure) | found.judged)

        for marked in found.marked:
            self._attempts[marked.digest] += 1

            if marked.mark.is_once and self._attempts[marked.digest] > 1:
                continue

            if marked.mark.failure is not None:
                fates.failures[marked.ordinal] = marked.mark.failure
            elif marked.mark.manner is not None:
                fates.manners[marked.ordinal] = marked.mark.manner
            else:
                fates.missing.add(marked.ordinal)

        return fates

    async def _finish(self, record: Record, now: float) -> None:
        """Write the result files if the batch has ended and nobody has."""
        if not record.is_due(now):
            return

        async with record.lock:
            if not record.is_due(now):
                return

            output, errors = self._files.new_path(), self._files.new_path()
            todo = recipe(record, now, self._settings)
            written = await anyio.to_thread.run_sync(write, todo, output, errors)
            ids = list(self._keep(record, written, [output, errors]))
            record.results = Results(
                output_file_id=ids[0], error_file_id=ids[1], usage=_usage(written)
            )
            record.source.unlink(missing_ok=True)

    def _keep(self, record: Record, written: Written, paths: list[Path]) -> Iterator[str | None]:
        """Store each result file that has lines, and yield its id; drop the others."""
        lines = (written.output_lines, written.error_lines or record.fate.empty_error_file)

        for path, name, count in zip(paths, ("output", "error"), lines, strict=True):
            if not count:
                path.unlink()
                yield None
                continue

            yield self._files.add(
                path,
                filename=f"{record.id}_{name}.jsonl",
                purpose="batch_output",
                created_at=record.timeline.ended_at(),
                kept_s=record.order.kept_s,
            ).shown.id


def _usage(written: Written) -> BatchUsage:
    return BatchUsage(
        input_tokens=written.input_tokens,
        output_tokens=written.output_tokens,
        total_tokens=written.input_tokens + written.output_tokens,
    )
