"""The one loop: what is due → lane → stage → decide → store.

It asks the store what is due, starts a short task for each piece of work within its lane's limit,
and sleeps until the earliest deadline or a ring. A task runs one stage, `policy.decide` turns rows
and outcomes into the next rows, and one transaction writes them. Nothing else in the daemon changes
state, but for `boot`, which goes before. Recovery is no feature of it: a restarted process does
what a running one does.

Work in progress is a set of ids in memory, left out of what is due; there are no leases, since
there is one dispatcher (`flock`). An outcome that cannot be written (a full disk) is kept and
written again, so what was done once is not done twice. A stage that raises what nobody foresaw is
logged with its traceback and run again later; one that broke a rule of ours is set aside, and the
other jobs go on. Raises nothing of its own.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog
from msgspec.structs import replace
from structlog.contextvars import bound_contextvars

from promptspool import commands, journal
from promptspool.boot import CLEAN_STOP, boot
from promptspool.clock import Bell
from promptspool.enquiry import failure
from promptspool.errands import READY_AT, Errands
from promptspool.errors import Bug, ProviderError, SpoolError, StoreError
from promptspool.journal import Interruption
from promptspool.model import (
    WORK,
    Batch,
    BatchStatus,
    Job,
    JobStatus,
    Notice,
    ProviderState,
    ProviderStatus,
    Work,
)
from promptspool.notices import notices_of
from promptspool.outcomes import (
    AllClosed,
    Failed,
    Held,
    Planned,
    Released,
    Settled,
    Tidied,
    Trouble,
    Woken,
)
from promptspool.policy import decide, decide_provider
from promptspool.stages import EVERY, STAGES, Lane, Stage
from promptspool.store import Change

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from promptspool.context import Context
    from promptspool.inbox import Inbox
    from promptspool.model import Row, Status
    from promptspool.outcomes import Outcome
    from promptspool.policy import Rules

INBOX = "/inbox"
"""Stands for the inbox among the ids of rows in progress; no id has a slash."""

LONGEST_SLEEP_S = 3600.0
"""Without any deadline it still looks around once an hour."""

TIDIES_IN_A_DRAIN = 3
"""So often a drain tries to delete the remote files of a delivered job."""

INBOX_RETRY_S = 10.0
"""How long to wait before an inbox that cannot be read is looked at again."""

SPOOL_RETRY_S = 10.0
"""How long to wait before a spool that went away is looked for again."""

STORE_RETRY_S = 5.0
"""How long to wait before what the database refused is tried again."""

BEHIND = 200
"""So many more rows are looked at for one that fits, when those before it fit in no lane for now:
a small one behind large ones, or a large one behind small ones."""

_ONE_DISK = (Lane.DISK, Lane.SMALL)

ROUNDS = 3
"""Before a transaction the event loop goes round so often: nothing where it has nothing to do, and
where it is busy so much more arrives meanwhile."""

A_SLICE = 100
"""So many rows are decided on at a time, which takes a few milliseconds."""

_LEADING = (Settled, Held, Released)
"""The outcomes that other rows may follow."""

_Result = TypeVar("_Result")

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Dispatcher:
    """The owner of every row while the daemon lives."""

    context: Context
    inbox: Inbox
    rules: Rules
    lanes: Mapping[Lane, int]
    bell: Bell
    is_draining: bool = False
    """Stop when the inbox is empty and every job is delivered or rejected."""
    on_ready: Callable[[], None] = lambda: None
    on_beat: Callable[[Dispatcher], Awaitable[None]] | None = None
    """Called in every turn of the loop, and while it waits for the database: that it is alive."""
    on_turn: Callable[[Dispatcher], Awaitable[None]] | None = None
    """Called in every turn of the loop."""
    on_moved: (
        Callable[[str, Sequence[tuple[Row, Row, Outcome]], Sequence[tuple[Row, Row]], float], None]
        | None
    ) = None
    """Told, like the journal, what became of rows: by a stage, and of those that followed them."""
    on_claimed: Callable[[int], None] | None = None
    """Told how many files were taken from the inbox."""
    turn_s: float = math.inf
    """The loop turns at least so often, though nothing is due."""
    in_progress: set[str] = field(default_factory=set)
    """Ids of the rows that a task works on, and `INBOX` while it is being looked at."""
    held: set[str] = field(default_factory=set)
    """Ids of rows whose outcome the database refused for good: left alone until the next start."""
    providers: dict[str, ProviderState] = field(default_factory=dict)
    """As they were last written."""
    is_stopping: bool = False
    is_ready: bool = False
    is_reload_wanted: bool = False
    """A person asked for the configuration to be read again."""
    halted_at: float | None = None
    """Since when a person lets nothing be claimed or submitted; None if nobody does."""
    turned_at: float | None = None
    """When the loop last turned, on the monotonic clock; None before its first turn."""
    _running: Counter[tuple[Lane, str | None]] = field(default_factory=Counter)
    _submitting: Counter[tuple[str | None, Work | None]] = field(default_factory=Counter)
    _untried: set[str] = field(default_factory=set)
    """Providers whose recall has not been tried since the start."""
    _beginning: anyio.Lock = field(default_factory=anyio.Lock)
    _applying: anyio.Lock = field(default_factory=anyio.Lock)
    _applied: Bell = field(default_factory=Bell)
    _arrived: list[_Arrival] = field(default_factory=list)
    """What came of runs and waits to be written."""
    _loop_task: int | None = None
    _next_due_at: float | None = None
    """The earliest deadline after the last search for what is due; None if there was none."""
    _errands: Errands = field(init=False)
    _lost_inbox: Interruption = field(default_factory=lambda: Interruption("inbox"))
    _lost_spool: Interruption = field(default_factory=lambda: Interruption("spool"))

    def __post_init__(self) -> None:
        """Have what people ask for done between the turns."""
        self._errands = Errands(self)

    def stop(self) -> None:
        """Start nothing any more and end `run` when what runs is done, or the grace is over."""
        self.is_stopping = True
        self.bell.ring()

    async def run(self) -> bool:
        """Work until stopped or drained; True if nothing was left undone."""
        self._loop_task = anyio.get_current_task().id
        booted = await boot(self.context, self.inbox, self.rules)
        await self._errands.begin()
        self.providers = {state.id: state for state in booted}
        self._untried = {state.id for state in booted if state.sweeps}

        try:
            async with anyio.create_task_group() as tasks:
                await self._loop(tasks)
                await self._finish(tasks)
        finally:
            with anyio.CancelScope(shield=True):
                await self._note_clean_stop()

        return not await self._unfinished()

    # Starting up.

    async def _tell_ready(self) -> None:
        """Say once that recall was tried, whatever came of it, and the inbox was looked at."""
        if not self.is_ready and not self._untried and self.inbox.has_looked:
            self.is_ready = True
            await self.context.store.note(READY_AT, f"{self.context.clock.now():.3f}")
            _log.info("daemon.ready", spool=str(self.context.spool.root))
            self.on_ready()

    # The loop.

    async def _loop(self, tasks: TaskGroup) -> None:
        while not self.is_stopping:
            await self._gather()
            self.bell.clear()
            now = self.context.clock.now()

            await self._turn()

            if not await self._is_spool_here():
                await self.context.clock.wait(self.bell, SPOOL_RETRY_S)
                continue

            await self._errands.run(tasks)
            await self.persistently(lambda: self._start_due(tasks))
            await self.persistently(self._tell_ready)

            if self.is_draining and await self._is_drained(since=now):
                self.inbox.tell_left()
                break

            await self._sleep()

    async def _gather(self) -> None:
        """Let more end before a turn, where much is under way: a turn for each costs too much."""
        for _ in range(self._running.total()):  # a poll is one, of however many batches
            await anyio.lowlevel.checkpoint()

    async def _beat(self) -> None:
        self.turned_at = self.context.clock.monotonic()

        if self.on_beat is not None:
            await self.on_beat(self)

    async def _turn(self) -> None:
        await self._beat()

        if self.on_turn is not None:
            await self.on_turn(self)

    async def _is_spool_here(self) -> bool:
        """Tell whether the spool is where it was; say once that it is not, and that it is again."""
        try:
            await anyio.to_thread.run_sync(self._look_around)
        except OSError as error:
            self._lost_spool.note(str(error), self.context.clock.monotonic())

            return False

        self._lost_spool.note(None, self.context.clock.monotonic())

        return True

    def _look_around(self) -> None:
        """Raise `OSError` if the spool is away, else see what commands wait there; blocks."""
        self.context.spool.check()
        self._errands.look()

    async def _start_due(self, tasks: TaskGroup) -> None:
        """Start whatever is due and has room in its lane, what is furthest along first."""
        monotonic = self.context.clock.monotonic()

        if INBOX not in self.in_progress and self.inbox.next_look_at <= monotonic:
            if self.halted_at is None:
                self.in_progress.add(INBOX)
                tasks.start_soon(self._look)
            else:  # looked at once it goes on
                self.inbox.has_looked = True
                self.inbox.next_look_at = monotonic + self.context.settings.spool.rescan

        wanted = self._wanted()
        found, self._next_due_at = await self.context.store.look(
            wanted, now=self.context.clock.now()
        )

        for status, provider in wanted:
            rows = [row for row in found.get((status, provider), ()) if self._may_run(row)]

            if rows and STAGES[status].group == EVERY:
                assert provider is not None  # noqa: S101 - only batches are taken all at once
                running = await self.context.store.running(provider)
                rows = [row for row in running if self._may_run(row)]

            self._start(tasks, status, provider, rows)

    def _wanted(self) -> dict[tuple[Status, str | None], int]:
        """Return how many due rows to look for of all that has room in its lanes.

        They are as many as there is room for, and as may be worked on already. Of batches that are
        taken all at once, which come last, one that may run is enough.
        """
        wanted: dict[tuple[Status, str | None], int] = {}

        for status, stage in STAGES.items():
            for name in self.providers if isinstance(status, BatchStatus) else (None,):
                free = self._free(status, name)

                if max(free.values()) <= 0:
                    continue

                if stage.group == EVERY:
                    limit = len(self.in_progress) + 1
                else:  # no more rows of a status are in progress than the runs in its lanes took
                    taken = sum(self._running[_place(lane, name)] for lane in free)
                    limit = (taken + sum(max(room, 0) for room in free.values())) * stage.group

                if min(free.values()) <= 0:  # what fits may be behind what does not
                    limit += BEHIND

                wanted[status, name] = limit + len(self.held)

        return wanted

    def _free(self, status: Status, provider: str | None) -> dict[Lane, int]:
        """Return how many runs may start now in each lane of a status."""
        stage = STAGES[status]

        return {lane: self._room(status, stage, lane, provider) for lane in stage.lanes}

    def _start(
        self, tasks: TaskGroup, status: Status, provider: str | None, rows: Sequence[Row]
    ) -> None:
        """Start as many runs for *rows* as there is room for."""
        stage, free = STAGES[status], self._free(status, provider)
        had_room = free[stage.lane] > 0

        if status is BatchStatus.UPLOADED:
            rows = rows[: self._creations(provider)]

        for start in range(0, len(rows), stage.group):
            group = rows[start : start + stage.group]
            lane = stage.lane_of(group[0])

            if free[lane] > 0:
                free[lane] -= 1
                place = _place(lane, provider)
                self.in_progress.update(row.id for row in group)
                self._running[place] += 1
                self._submitting[place[1], WORK.get(status)] += 1
                tasks.start_soon(self._work, stage, group, place)

        if had_room and free[stage.lane] <= 0 < max(free.values()):
            self.bell.ring()  # small ones may be behind those that do not fit for a long time now

    def _room(self, status: Status, stage: Stage, lane: Lane, provider: str | None) -> int:
        """Return how many runs of *stage* may start now in *lane*."""
        room = self.lanes[lane] - self._running[_place(lane, provider)]

        if lane in _ONE_DISK:
            return room

        if self._is_barred(status, stage, provider):
            return 0

        state = self.providers.get(provider or "")
        work = WORK.get(status)

        if state is None:
            return room

        if state.pauses == 0 or state.paused_work not in (Work.ALL, work):
            return room

        if self._is_paused(state):
            return 0

        if state.paused_work is Work.ALL:
            return min(room, 1) - sum(self._running[lane, provider] for lane in Lane)

        return min(room, 1) - self._submitting[provider, work]

    def _is_barred(self, status: Status, stage: Stage, provider: str | None) -> bool:
        """Tell whether *stage* has to wait for a recall of the provider, or for a person."""
        state = self.providers.get(provider or "")

        if state is None:
            return False

        if stage.needs_recall and state.status is ProviderStatus.RECALLING:
            return True

        is_halted = self.halted_at is not None or state.halted_at is not None

        return is_halted and WORK.get(status) in (Work.UPLOADS, Work.CREATIONS)

    def _creations(self, provider: str | None) -> int:
        """Return how many creations may be intended now: no more than can be asked for at once.

        What was intended and not asked for has to be looked up after a crash.
        """
        state = self.providers.get(provider or "")
        is_probing = state is not None and state.pauses > 0
        # Fewer than none may be free: the lane may have been made narrower while it was full.
        room = max(self.lanes[Lane.CONTROL] - self._running[Lane.CONTROL, provider], 0)

        return min(room, 1) if is_probing else room

    def _is_paused(self, state: ProviderState) -> bool:
        return state.paused_until is not None and state.paused_until > self.context.clock.now()

    def _may_run(self, row: Row) -> bool:
        """Tell whether nobody works on a row, and a recall's own provider is not paused."""
        if row.id in self.in_progress or row.id in self.held:
            return False

        if not isinstance(row, ProviderState):
            return True

        state = self.providers[row.id]

        return state.paused_work is not Work.ALL or not self._is_paused(state)

    async def _sleep(self) -> None:
        """Wait for the earliest deadline that the last search has seen, or a ring.

        What was written since has rung: no deadline of it is slept over.
        """
        clock = self.context.clock
        due_at = self._next_due_at
        timeout = LONGEST_SLEEP_S if due_at is None else due_at - clock.now()

        if INBOX not in self.in_progress:
            timeout = min(timeout, self.inbox.next_look_at - clock.monotonic())

        timeout = min(timeout, self.turn_s, self._errands.next_at - clock.monotonic())
        await clock.wait(self.bell, max(timeout, 0.0))

    async def _finish(self, tasks: TaskGroup) -> None:
        """Let running stages come to their end, for a while; then leave them where they are."""
        clock = self.context.clock
        deadline = clock.monotonic() + self.context.settings.spool.stop_grace
        _log.info("daemon.stopping", in_progress=len(self.in_progress))

        while self.in_progress and clock.monotonic() < deadline:
            self.bell.clear()
            await self._turn()
            await clock.wait(self.bell, min(deadline - clock.monotonic(), self.turn_s))

        tasks.cancel_scope.cancel()

    async def _note_clean_stop(self) -> None:
        """Let the next start know whether a create may have been cut off."""
        with suppress(StoreError, OSError):  # then it is taken for one that was not clean
            is_recalled = all(state.sweeps == 0 for state in self.providers.values())

            if is_recalled and not await self.context.store.interrupted():
                mark = secrets.token_hex(8)
                await anyio.to_thread.run_sync(self.context.spool.leave_mark, mark)
                await self.context.store.note(CLEAN_STOP, mark)

    async def wake_held(self) -> None:
        """Have what is held looked at again: limits may be others by now."""
        await self.persistently(self._wake_held)

    async def _wake_held(self) -> None:
        async with self.applying():
            now = self.context.clock.now()
            held = [
                job
                for job in await self.context.store.live_jobs()
                if job.status is JobStatus.HELD and self.is_free(job.id)
            ]
            woken = [(job, decide(job, Woken(), now, self.rules)) for job in held]
            await self.write(Change(updated=woken, at=now))

    @asynccontextmanager
    async def applying(self) -> AsyncIterator[None]:
        """Keep others from reading rows and writing what they become.

        Whoever has it may wait for the database, for as long as a disk is full. The loop, which is
        alive meanwhile, does not queue for it: it starts nothing that could get in before it.
        """
        while not self._has_locked():
            await self._beat()
            await self.context.clock.wait(self._applied, STORE_RETRY_S)

        if not self._is_loop():
            await self._applying.acquire()

        try:
            yield
        finally:
            self._applying.release()
            self._applied.ring()

    def _has_locked(self) -> bool:
        """Try to take the lock for the loop, True if it has it; for a task there is no need to."""
        if not self._is_loop():
            return True

        self._applied.clear()

        try:
            self._applying.acquire_nowait()
        except anyio.WouldBlock:
            return False

        return True

    def _is_loop(self) -> bool:
        return anyio.get_current_task().id == self._loop_task

    @property
    def state(self) -> str:
        """Return how it is, for people."""
        return "stopping" if self.is_stopping else "ready" if self.is_ready else "starting"

    def running(self) -> dict[tuple[Lane, str | None], int]:
        """Return how many runs of stages are under way, by lane and provider."""
        return dict(self._running)

    def is_free(self, row: str) -> bool:
        """Tell whether nobody works on the row of that id."""
        return row not in self.in_progress

    # Draining.

    async def _is_drained(self, *, since: float) -> bool:
        """Tell whether nothing will happen any more without a new file or a person.

        Nothing runs, what was due at *since* was started or cannot be, and nothing is due later. A
        bell rung meanwhile means that something ended and may have left more to do.
        """
        if self.in_progress or self.inbox.waiting or self.bell.is_rung() or not self.is_ready:
            return False

        if not await self._unfinished():
            return True

        return await self.context.store.next_due_at(since) is None

    async def _unfinished(self) -> list[Job]:
        """Return the jobs that are not delivered or rejected, and tidied as far as it goes."""
        return [
            job
            for job in await self.context.store.live_jobs()
            if job.status is not JobStatus.DELIVERED or job.failures < TIDIES_IN_A_DRAIN
        ]

    # Work.

    async def _look(self) -> None:
        """Look at the inbox and give what was claimed its rows, the first while more is claimed."""
        slices = self.inbox.looked()

        try:
            while (jobs := await anyio.to_thread.run_sync(next, slices, None)) is not None:
                await self._welcome(jobs)

                if self.is_stopping or self.halted_at is not None:
                    self.inbox.next_look_at = self.context.clock.monotonic()
                    break
        except OSError as error:
            self.inbox.next_look_at = self.context.clock.monotonic() + INBOX_RETRY_S
            self._lost_inbox.note(str(error), self.context.clock.monotonic())
        else:
            self._lost_inbox.note(None, self.context.clock.monotonic())

        self.in_progress.discard(INBOX)
        self.bell.ring()

    async def _welcome(self, jobs: Sequence[Job]) -> None:
        """Give claimed jobs their rows, and say so."""
        if not jobs:
            return

        await self.write(Change(added=jobs, at=self.context.clock.now()))

        if self.on_claimed is not None:
            self.on_claimed(len(jobs))

        for job in jobs:
            _log.info("job.claimed", job=job.id, file=job.shown, profile=job.profile,
                      size_bytes=job.size_bytes)  # fmt: skip

        self.bell.ring()

    async def _work(self, stage: Stage, rows: Sequence[Row], lane: tuple[Lane, str | None]) -> None:
        """Run one stage and apply what came of it."""
        try:
            # To begin takes milliseconds where it starts a thread: whatever else is due goes
            # between two beginnings.
            async with self._beginning:
                pass

            # Meanwhile the account may have become another one, which has to be recalled.
            if self._is_barred(rows[0].status, stage, lane[1]):
                return

            with bound_contextvars(**journal.names(rows)):
                outcomes = await self._outcomes(stage, rows)

            pairs = [(row, out) for row, out in zip(rows, outcomes, strict=True) if out is not None]

            if not await self._apply(stage, pairs):
                self.held.update(row.id for row, _ in pairs)
        finally:
            self.in_progress.difference_update(row.id for row in rows)
            self._running[lane] -= 1
            self._submitting[lane[1], WORK.get(rows[0].status)] -= 1
            self.bell.ring()

    async def _outcomes(self, stage: Stage, rows: Sequence[Row]) -> Sequence[Outcome | None]:
        """Run *stage*; whatever it raises becomes the outcome of each of its due rows."""
        try:
            return await stage.run(self.context, rows)
        except ProviderError as error:
            failed = failure(error)
        except (OSError, StoreError) as error:
            failed = Failed(reason=str(error), trouble=Trouble.ROW)
        except SpoolError as error:
            failed = Failed(reason=str(error), trouble=Trouble.BUG)
        except Bug as error:
            _log.exception("stage.broken", stage=stage.name)
            failed = Failed(reason=str(error), trouble=Trouble.BUG)
        except Exception as error:  # noqa: BLE001 - the only one: no job may end the daemon
            _log.exception("stage.crashed", stage=stage.name)
            failed = Failed(reason=f"{type(error).__name__}: {error}", trouble=Trouble.CRASH)

        now = self.context.clock.now()

        return [failed if row.due_at is not None and row.due_at <= now else None for row in rows]

    async def _apply(self, stage: Stage, pairs: Sequence[tuple[Row, Outcome]]) -> bool:
        """Decide, write in a transaction, then say so; False if it could not be written.

        What arrives while another transaction is written goes into the next one together, so many
        small runs cost few of them.
        """
        arrival = _Arrival(stage=stage, pairs=pairs)
        self._arrived.append(arrival)

        async with self.applying():
            if arrival.is_written is None:  # else whoever had the lock before has taken it along
                for _ in range(ROUNDS):
                    await anyio.lowlevel.checkpoint()

                await self._apply_together(self._taken_up(arrival))

        return arrival.is_written is True

    def _taken_up(self, first: _Arrival) -> list[_Arrival]:
        """Take *first* from what has arrived, and what can be written with it.

        That is what concerns no job that is concerned already: it would have to be decided on what
        is about to be written.
        """
        together = [first]
        concerned = first.subjects()

        for arrival in self._arrived:
            subjects = arrival.subjects()

            if arrival is not first and concerned.isdisjoint(subjects):
                concerned |= subjects
                together.append(arrival)

        self._arrived = [arrival for arrival in self._arrived if arrival not in together]

        return together

    async def _apply_together(self, arrivals: Sequence[_Arrival]) -> None:
        """Write what came of some runs in one transaction, or apart where that is refused.

        What the outcomes say of the provider is written apart: it must not spoil what was done.
        """
        now = self.context.clock.now()

        for arrival in arrivals:
            await self._decide(arrival, now)

        whole = Change(
            updated=[pair for arrival in arrivals for pair in arrival.updated],
            added=[row for arrival in arrivals for row in arrival.added],
            at=now,
        )

        if len(arrivals) > 1 and await self._is_written(whole):
            for arrival in arrivals:
                arrival.is_written = True
        else:  # one of them is a bug, and must not keep back the others
            for arrival in arrivals:
                change = Change(updated=arrival.updated, added=arrival.added, at=now)
                arrival.is_written = await self.write(change)

        written = [arrival for arrival in arrivals if arrival.is_written]

        with anyio.CancelScope(shield=True):  # what was written is told, whatever ends meanwhile
            for arrival in written:
                self._tell(arrival.stage.name, arrival.moved, arrival.followed, now)
                await anyio.lowlevel.checkpoint()

        states = self._judged([pair for arrival in written for pair in arrival.pairs], now)

        if await self.write(Change(updated=states, at=now)):
            self._tell(arrivals[0].stage.name, (), states, now)

    async def _decide(self, arrival: _Arrival, now: float) -> None:
        """Find out what becomes of the rows of a run, and of those that follow them.

        Thousands are decided on in slices, or the loop would stand still. It begins anew where
        whoever took this along was cut off.
        """
        arrival.moved, arrival.added = [], []

        for start in range(0, len(arrival.pairs), A_SLICE):
            for given, outcome in arrival.pairs[start : start + A_SLICE]:
                row = self._current(given)
                after = self._decided(arrival.stage, row, outcome, now)
                arrival.moved.append((row, after, outcome))
                arrival.added += _successors(outcome)

            if start:
                await anyio.lowlevel.checkpoint()

        leading = [pair for pair in arrival.pairs if isinstance(pair[1], _LEADING)]

        if leading:
            arrival.followed = await self.persistently(lambda: self._followed(leading, now))

        moved = [(row, after) for row, after, _ in arrival.moved]
        arrival.updated = [*moved, *arrival.followed]
        arrival.added += notices_of(self.context.settings.profiles, arrival.updated, now)

    async def _is_written(self, change: Change) -> bool:
        """Write what several runs come to; False, and not a word of it, if it is refused."""
        try:
            await self.persistently(lambda: self.context.store.write(change))
        except Bug:
            return False

        self._remember(change)

        return True

    def _tell(
        self,
        stage: str,
        moved: Sequence[tuple[Row, Row, Outcome]],
        followed: Sequence[tuple[Row, Row]],
        now: float,
    ) -> None:
        journal.tell(stage, moved, followed, now=now)

        if self.on_moved is not None:
            try:
                self.on_moved(stage, moved, followed, now)
            except Exception:  # noqa: BLE001 - who only counts must end nothing
                _log.exception("metrics.broken")

    def _current(self, row: Row) -> Row:
        """Return a provider's row as it is by now: outcomes of others change it meanwhile."""
        return self.providers[row.id] if isinstance(row, ProviderState) else row

    def _remember(self, change: Change) -> None:
        """Bring what is kept in memory up to what was written."""
        for _, after in change.updated:
            if isinstance(after, ProviderState):
                self.providers[after.id] = after
                self._untried.discard(after.id)
            elif isinstance(after, Job) and after.status in (JobStatus.DONE, JobStatus.REJECTED):
                self.inbox.claims.taken.discard(after.stem)

    def _decided(self, stage: Stage, row: Row, outcome: Outcome, now: float) -> Row:
        try:
            return decide(row, outcome, now, self.rules)
        except Bug as error:
            _log.exception("stage.broken", stage=stage.name, **journal.names([row]))

            return decide(row, Failed(reason=str(error), trouble=Trouble.BUG), now, self.rules)

    async def _followed(
        self, pairs: Sequence[tuple[Row, Outcome]], now: float
    ) -> list[tuple[Row, Row]]:
        """Return what other rows become: jobs of their batches, and batches of their jobs."""
        followed: dict[str, tuple[Row, Row]] = {}

        for row, outcome in pairs:
            match row, outcome:
                case Batch(), Settled(successors=()):
                    follows: Outcome = AllClosed()

                    if await self.context.store.live_batches(row.job) > 1:
                        continue
                case Batch(), Held():
                    follows = outcome
                case Job(), Released():
                    woken = await commands.woken(self.context, row, now, self.rules)
                    followed |= {batch.id: (batch, after) for batch, after in woken}
                    continue
                case _:
                    continue

            job = await self.context.store.job(row.job)

            if job is not None and job.status is JobStatus.PLANNED:
                followed[job.id] = (job, decide(job, follows, now, self.rules))

        return [*followed.values()]

    def _judged(self, pairs: Sequence[tuple[Row, Outcome]], now: float) -> list[tuple[Row, Row]]:
        """Return the providers whose state the outcomes change."""
        judged: dict[str, ProviderState] = {}
        failures: list[Outcome] = []
        heard: set[tuple[str | None, Work, type[Outcome]]] = set()

        for row, outcome in pairs:
            if isinstance(row, ProviderState | Notice) or any(
                outcome is known for known in failures
            ):
                continue  # one call that failed for many rows is one failure

            work = WORK.get(row.status, Work.ALL)
            answer = (row.provider, work, type(outcome))

            if answer in heard:
                continue  # the same answer again says nothing more

            if isinstance(outcome, Failed):
                failures.append(outcome)
                heard.clear()
            elif not isinstance(outcome, Tidied):  # of which some were asked, some not
                heard.add(answer)

            name = row.provider or ""
            state = judged.get(name, self.providers.get(name))

            if state is not None:
                judged[name] = decide_provider(state, row.id, outcome, now, self.rules, work)

        return [
            (self.providers[name], replace(after, version=self.providers[name].version + 1))
            for name, after in judged.items()
            if after is not self.providers[name]
        ]

    async def write(self, change: Change) -> bool:
        """Write *change*, however often it takes: what was done must not be done again.

        Return False for a change that no longer fits, which is a bug, and logged.
        """
        if not change.updated and not change.added:
            return True

        try:
            await self.persistently(lambda: self.context.store.write(change))
        except Bug:
            _log.exception("store.refused")

            return False

        self._remember(change)

        return True

    async def persistently(self, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        """Repeat *attempt* until the database takes it; a full disk is waited for.

        The loop beats at every repetition: one that waits here is alive.
        """
        failures = 0
        since = self.context.clock.monotonic()

        while True:
            try:
                result = await attempt()
            except StoreError as error:
                failures += 1

                if failures == 1:
                    _log.error("store.unwritable", reason=str(error))

                if self._is_loop():
                    await self._beat()

                await self.context.clock.wait(Bell(), STORE_RETRY_S)
            else:
                if failures:
                    lasted_s = round(self.context.clock.monotonic() - since, 3)
                    _log.info("store.writable", failures=failures, lasted_s=lasted_s)

                return result


@dataclass(slots=True, kw_only=True, eq=False)
class _Arrival:
    """What came of one run, on its way into the database."""

    stage: Stage
    pairs: Sequence[tuple[Row, Outcome]]
    moved: list[tuple[Row, Row, Outcome]] = field(default_factory=list)
    followed: Sequence[tuple[Row, Row]] = ()
    updated: Sequence[tuple[Row, Row]] = ()
    added: list[Row] = field(default_factory=list)
    is_written: bool | None = None
    """None before it had its turn, False if it was refused."""

    def subjects(self) -> set[str]:
        """Return what it is about: jobs, and providers."""
        return {row.job if isinstance(row, Batch | Notice) else row.id for row, _ in self.pairs}


def _place(lane: Lane, provider: str | None) -> tuple[Lane, str | None]:
    """Return where the runs of a lane are counted: the disk is one, whoever the provider."""
    return lane, None if lane in _ONE_DISK else provider


def _successors(outcome: Outcome) -> Sequence[Batch]:
    match outcome:
        case Planned(batches=batches):
            return batches
        case Settled(successors=successors):
            return successors
        case _:
            return ()
