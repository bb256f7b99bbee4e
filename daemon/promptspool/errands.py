"""Errands between the turns of the dispatcher's loop: commands of people, and the house.

Commands are carried out in the loop itself, so that no stage begins on the rows that they change.
The house is kept beside it, every hour. Raises nothing: what cannot be done now is told once and
tried again.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread
import structlog

from promptspool import control, journal
from promptspool.commands import Commands
from promptspool.control import Answer
from promptspool.errors import Bug, StoreError
from promptspool.housekeeping import EVERY_S, keep_house
from promptspool.journal import Interruption
from promptspool.notices import notices_of
from promptspool.store import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from promptspool.commands import Carried
    from promptspool.control import Command, Waiting
    from promptspool.dispatcher import Dispatcher

HOUSE = "/house"
"""Stands for the house among the ids of rows in progress; no id has a slash."""

HALTED_AT = "halted_at"
"""The note that says since when a person lets nothing be claimed or submitted; empty if not."""

STARTED_AT, READY_AT = "started_at", "ready_at"
"""The notes that say when the last process began, and when it was ready; for `status`."""

A_TURN = 50
"""So many commands are carried out in one turn of the loop."""

AGAIN_S = 10.0
"""How long commands wait when the disk refused to have one carried out or answered."""

RETRY = "/retry"
"""Stands for the retry that is being begun."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Errands:
    """What the dispatcher does besides moving rows."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Work for *dispatcher*, in its loop."""
        self._dispatcher = dispatcher
        self._house_at = 0.0
        """When the house is kept next, on the monotonic clock; infinite while it is."""
        self._cleans: dict[str, float] = {}
        """Commands to clean: by name, the age of what goes."""
        self._tried: set[str] = set()
        """Commands that had their turn, while there are others that had not."""
        self._is_going_on = False
        self._left: Sequence[Waiting] | OSError = ()
        """The commands that were there when `look` was called, or why that could not be told."""
        self._answers: dict[str, Answer] = {}
        """Answers that could not be written yet."""
        self._commands_at = -math.inf
        """Before this, on the same clock, no command is looked at: the disk refused."""
        self._lost_control = Interruption("control")
        self._lost_house = Interruption("house")

    @property
    def next_at(self) -> float:
        """When there is something to do, on the monotonic clock."""
        monotonic = self._dispatcher.context.clock.monotonic()

        return min(self._house_at, self._commands_at if self._commands_at > monotonic else math.inf)

    async def begin(self) -> None:
        """Remember what a person has asked earlier processes for."""
        store, clock = self._dispatcher.context.store, self._dispatcher.context.clock
        halted_at = await store.meta(HALTED_AT)
        self._dispatcher.halted_at = float(halted_at) if halted_at else None
        await store.note(STARTED_AT, f"{clock.now():.3f}")
        await store.note(READY_AT, "")

        if halted_at:
            _log.warning("daemon.halted")

    def look(self) -> None:
        """See what commands wait. It blocks, so `run`, which comes after it, does not."""
        try:
            self._left = control.waiting(self._dispatcher.context.spool)
        except OSError as error:
            self._left = error

    async def run(self, tasks: TaskGroup) -> None:
        """Do what there is to do now."""
        dispatcher = self._dispatcher
        monotonic = dispatcher.context.clock.monotonic()

        if self._commands_at <= monotonic:
            await self._obey_all(tasks)

        if HOUSE not in dispatcher.in_progress and (self._cleans or self._house_at <= monotonic):
            self._house_at = math.inf
            dispatcher.in_progress.add(HOUSE)
            tasks.start_soon(self._keep_house)

    # Commands.

    async def _obey_all(self, tasks: TaskGroup) -> None:
        dispatcher = self._dispatcher

        left = self._left

        if isinstance(left, OSError):
            self._put_off(left)

            return

        if not left:
            self._lost_control.note(None, dispatcher.context.clock.monotonic())

        there = {one.id for one in left}
        self._answers = {name: said for name, said in self._answers.items() if name in there}

        for one in self._turn_of(left):
            if one.id in self._answers:
                await self._answer(one.id, self._answers[one.id])
            elif one.command is not None and one.command.verb == "retry":
                self._start_retry(tasks, one)
            elif one.id not in self._cleans:
                await dispatcher.persistently(partial(self._obey, one))

    def _turn_of(self, left: Sequence[Waiting]) -> Sequence[Waiting]:
        """Return the commands of this turn: some, so that stages have theirs, until all had one."""
        if not self._is_going_on:
            self._tried.clear()

        fresh = [one for one in left if one.id not in self._tried]
        self._tried.update(one.id for one in fresh[:A_TURN])
        self._is_going_on = len(fresh) > A_TURN

        if self._is_going_on:
            self._dispatcher.bell.ring()

        return fresh[:A_TURN]

    def _put_off(self, error: OSError) -> None:
        """Leave commands alone for a moment: each attempt wakes the loop, which tries again."""
        monotonic = self._dispatcher.context.clock.monotonic()
        self._lost_control.note(str(error), monotonic)
        self._commands_at = monotonic + AGAIN_S

    def _start_retry(self, tasks: TaskGroup, one: Waiting) -> None:
        """Begin a retry beside the loop, since it copies a file; never two of them at once."""
        if RETRY not in self._dispatcher.in_progress:
            self._dispatcher.in_progress.add(RETRY)
            tasks.start_soon(self._begin_retry, one)

    async def _begin_retry(self, one: Waiting) -> None:
        dispatcher = self._dispatcher

        try:
            is_answered = await dispatcher.persistently(partial(self._obey, one))
        finally:
            dispatcher.in_progress.discard(RETRY)

        if is_answered:
            dispatcher.bell.ring()

    async def _obey(self, one: Waiting) -> bool:
        """Carry out one command as far as it goes now, and answer it at its end; True if it was."""
        try:
            answer = await self._carried(one)
        except OSError as error:
            self._put_off(error)

            return False
        except Bug as error:  # or it would end the daemon, and the next one
            _log.exception("stage.broken", stage="command")
            answer = Answer(is_done=False, message=f"a bug, which the log tells of: {error}")

        return answer is not None and await self._answer(one.id, answer)

    async def _answer(self, name: str, answer: Answer) -> bool:
        """Answer a command that was carried out; what cannot be written now is kept for later."""
        spool, clock = self._dispatcher.context.spool, self._dispatcher.context.clock

        try:
            await anyio.to_thread.run_sync(control.answer, spool, name, answer)
        except OSError as error:
            self._put_off(error)
            self._answers[name] = answer

            return False

        self._answers.pop(name, None)
        self._lost_control.note(None, clock.monotonic())

        return True

    async def _carried(self, one: Waiting) -> Answer | None:
        command = one.command

        if command is None:
            return Answer(is_done=False, message=one.fault or "")

        match command.verb:
            case "ping":
                return Answer(is_done=True, message=self._dispatcher.state)
            case "clean":
                self._cleans[one.id] = command.older_than_s or 0.0

                return None
            case "reload":
                self._dispatcher.is_reload_wanted = True
                self._dispatcher.bell.ring()  # it is read in the next turn

                return Answer(is_done=True, message="the log says what has changed")
            case "pause" | "resume" if command.provider is None:
                return await self._halt(is_over=command.verb == "resume")
            case _:
                pass

        if command.verb == "retry":  # it changes no row, so nothing has to wait for it
            return await self._carried_out(command, one.id)

        async with self._dispatcher.applying():
            return await self._carried_out(command, one.id)

    def _commands(self) -> Commands:
        return Commands(
            context=self._dispatcher.context,
            claims=self._dispatcher.inbox.claims,
            rules=self._dispatcher.rules,
            providers=self._dispatcher.providers,
            is_free=self._dispatcher.is_free,
        )

    async def _carried_out(self, command: Command, name: str) -> Answer | None:
        commands = self._commands()
        carried = await commands.carry_out(command, name)

        return carried.answer if await self._carry(carried, commands.now) else None

    async def _carry(self, carried: Carried, now: float) -> bool:
        """Write what a command comes to, and say so; False if it could not be written."""
        context = self._dispatcher.context
        added = [*carried.added, *notices_of(context.settings.profiles, carried.updated, now)]
        change = Change(updated=carried.updated, added=added, at=now)

        if not await self._dispatcher.write(change):
            return False

        journal.tell("command", (), carried.updated, now=now)

        if carried.forgotten:
            await context.store.forget(carried.forgotten)

        return True

    async def _halt(self, *, is_over: bool) -> Answer:
        """Let nothing be claimed or submitted, or let it again."""
        dispatcher = self._dispatcher

        if (dispatcher.halted_at is None) is not is_over:
            since = dispatcher.halted_at or 0.0
            halted_at = None if is_over else dispatcher.context.clock.now()

            if is_over:  # before it is forgotten since when
                await self._grow_no_older(since)

            said = "" if halted_at is None else f"{halted_at}"
            store = dispatcher.context.store
            await dispatcher.persistently(partial(store.note, HALTED_AT, said))
            dispatcher.halted_at = halted_at

            if is_over:
                _log.info("daemon.unhalted")
                dispatcher.inbox.wake()
            else:
                _log.warning("daemon.halted")

        what = (
            "promptspool goes on"
            if is_over
            else "promptspool is paused: nothing is claimed or submitted until it is resumed"
        )

        return Answer(is_done=True, message=what)

    async def _grow_no_older(self, since: float) -> None:
        """Let what could not be submitted since then be submitted so much longer."""
        async with self._dispatcher.applying():
            commands = self._commands()

            for provider in list(self._dispatcher.providers):
                read = partial(commands.delayed, provider, since)
                delayed = await self._dispatcher.persistently(read)
                await self._dispatcher.write(Change(updated=delayed, at=commands.now))

    # The house.

    async def _keep_house(self) -> None:
        """Remove what is older than it may be, as set or as commands say, and answer these."""
        context = self._dispatcher.context
        cleans = dict(self._cleans)
        answers: dict[str, Answer] = {}

        try:
            await keep_house(context)

            for name, older_than_s in cleans.items():
                kept = await keep_house(context, older_than_s=older_than_s)
                message = f"removed {kept.files} files, forgot {kept.jobs} jobs"
                answers[name] = Answer(is_done=True, message=message)

            reason = None
        except (OSError, StoreError) as error:
            reason = str(error)

        self._lost_house.note(reason, context.clock.monotonic())
        self._house_at = context.clock.monotonic() + EVERY_S

        for name in cleans:
            answer = answers.get(name, Answer(is_done=False, message=reason or ""))

            await self._answer(name, answer)
            del self._cleans[name]

        self._dispatcher.in_progress.discard(HOUSE)
        self._dispatcher.bell.ring()
