"""The daemon put together: parts from a configuration, one task group, signals.

The first SIGTERM or SIGINT lets running stages finish for `spool.stop_grace`, the second ends them
where they are; a thread that does not let the process end is ended with it. Whatever happens, the
next start goes on. `Daemon.run` raises `SpoolError` (environment) for a spool or a database that
cannot be used, most often before anything is done, and `StoreError` (environment) for a database
that refuses at the start.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog

from promptspool import __version__, systemd
from promptspool.claims import Claims
from promptspool.clock import Bell, SystemClock, monotonic_us
from promptspool.context import Account, Context
from promptspool.dispatcher import Dispatcher
from promptspool.errors import SpoolError, StoreError
from promptspool.heartbeat import Heartbeat
from promptspool.inbox import Inbox
from promptspool.metrics import Metrics
from promptspool.monitor import Monitor
from promptspool.pricing import Prices
from promptspool.provider import connect
from promptspool.reload import Reloader, apply, close_idle, lanes_of, rules_of
from promptspool.settings import KEPT, proof_of
from promptspool.spool import Spool, write_durably
from promptspool.store import opened

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from promptspool.clock import Clock
    from promptspool.provider import Provider
    from promptspool.reload import Retired
    from promptspool.settings import ProviderSettings, Settings

CUT_OFF_S = 3.0
"""How long after the grace a process that was told to stop is ended where it is."""

LOOK_S = 1.0
"""How often it is looked whether the configuration is another, at most."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Daemon:
    """One run of the daemon on one spool."""

    settings: Settings
    clock: Clock = field(default_factory=SystemClock)
    is_draining: bool = False
    on_ready: Callable[[], None] = lambda: None
    on_beat: Callable[[Dispatcher], Awaitable[None]] | None = None
    """As the dispatcher's, like the next two."""
    on_turn: Callable[[Dispatcher], Awaitable[None]] | None = None
    turn_s: float = math.inf
    dispatcher: Dispatcher | None = None
    """There while `run` runs."""
    reloader: Reloader | None = None
    """None for a configuration that was not read from a file."""
    monitor: Monitor | None = None
    """There if somebody wants figures."""
    _retired: list[Retired] = field(default_factory=list)
    _looked_at: float = -math.inf
    _is_renewing: bool = False
    is_stopping: bool = False

    def __post_init__(self) -> None:
        """Count what happens if somebody wants figures of it."""
        settings = self.settings

        if settings.metrics.listen is not None or settings.metrics.textfile is not None:
            self.monitor = Monitor(
                Metrics(self.clock, providers=settings.providers, models=models_of(settings))
            )

    async def run(self) -> bool:
        """Run until `stop`, or until drained; True if no job was left unfinished.

        Raises `SpoolError` if the spool or its database cannot be used, and `StoreError` if the
        database cannot be written at the start.
        """
        try:
            return await self._run(Spool(self.settings.spool.path, self.settings.spool.state))
        except (SpoolError, OSError, ExceptionGroup) as error:
            told = _told(error, self.settings.spool.path)

            if told is error:
                raise

            raise told from error

    async def _run(self, spool: Spool) -> bool:
        async with AsyncExitStack() as stack:
            spool_id = stack.enter_context(spool.opened())
            store = await stack.enter_async_context(opened(spool.database))
            accounts = {
                name: Account(provider=self._connect(name, provider), settings=provider)
                for name, provider in self.settings.providers.items()
            }

            context = Context(
                settings=self.settings,
                prices=Prices(self.settings.prices),
                spool=spool,
                spool_id=spool_id,
                store=store,
                clock=self.clock,
                accounts=accounts,
                taken=set(),
            )
            stack.push_async_callback(self._close, context)
            await anyio.to_thread.run_sync(leave_glance, self.settings, os.environ)

            return await self._dispatch(context)

    async def _dispatch(self, context: Context) -> bool:
        bell = Bell()
        monitor = self.monitor
        inbox = Inbox(Claims(context.spool, self.settings, self.clock, context.taken), bell)
        self.dispatcher = Dispatcher(
            context=context,
            inbox=inbox,
            rules=rules_of(self.settings),
            lanes=lanes_of(self.settings),
            bell=bell,
            is_draining=self.is_draining,
            on_ready=self.on_ready,
            on_beat=self.on_beat,
            on_turn=self.on_turn,
            on_moved=None if monitor is None else monitor.note,
            on_claimed=None if monitor is None else monitor.metrics.claimed,
            turn_s=self.turn_s,
        )

        if self.is_stopping:
            self.dispatcher.stop()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(inbox.watch)

            try:
                async with anyio.create_task_group() as watchers:
                    if monitor is not None:
                        monitor.dispatcher = self.dispatcher
                        monitor.start(watchers, self.settings.metrics)

                    is_done = await self.dispatcher.run()
                    watchers.cancel_scope.cancel()
            finally:
                inbox.close()

        return is_done

    def _connect(self, name: str, settings: ProviderSettings) -> Provider:
        if self.monitor is None:
            return connect(name, settings)

        return connect(name, settings, observe=partial(self.monitor.metrics.http_call, name))

    async def _close(self, context: Context) -> None:
        await close_idle(self._retired, ())

        for account in context.accounts.values():
            await account.provider.close()

    async def renew(self, dispatcher: Dispatcher) -> None:
        """Read the configuration again where that is wanted, and put it into the running parts.

        Called in a turn of the loop.
        """
        if self._is_renewing:  # the loop also turns where it waits for a disk
            return

        self._is_renewing = True

        try:
            await self._renew(dispatcher)
        finally:
            self._is_renewing = False

    async def _renew(self, dispatcher: Dispatcher) -> None:
        await close_idle(self._retired, dispatcher.in_progress)
        now = dispatcher.context.clock.monotonic()

        if self.reloader is None or (
            not dispatcher.is_reload_wanted and now - self._looked_at < LOOK_S
        ):
            return

        self._looked_at = now
        is_changed = self.reloader.is_changed()
        dispatcher.turn_s = LOOK_S if self.reloader.is_settling else self.turn_s

        if is_changed or dispatcher.is_reload_wanted:
            dispatcher.is_reload_wanted = False
            new = await anyio.to_thread.run_sync(self.reloader.loaded)

            if new is not None:
                await self._apply(new, dispatcher)

    async def _apply(self, new: Settings, dispatcher: Dispatcher) -> None:
        self._retired += await apply(
            new,
            context=dispatcher.context,
            inbox=dispatcher.inbox,
            dispatcher=dispatcher,
            connect=self._connect,
            now=dispatcher.context.clock.now(),
        )
        self.settings = dispatcher.context.settings
        await anyio.to_thread.run_sync(leave_glance, new, os.environ)
        await dispatcher.wake_held()

        if self.monitor is not None:
            self.monitor.metrics.expect(self.settings.providers, models_of(self.settings))

    def stop(self) -> None:
        """End `run` gracefully, also one that is still starting."""
        self.is_stopping = True

        if self.dispatcher is not None:
            self.dispatcher.stop()

    def reload(self) -> None:
        """Have the configuration read again."""
        if self.dispatcher is not None:
            self.dispatcher.is_reload_wanted = True
            self.dispatcher.bell.ring()


def leave_glance(settings: Settings, environ: Mapping[str, str]) -> None:
    """Leave beside the database what commands that only look rely on; blocks.

    Never mind where that cannot be: it is looked for in vain then, as what was not loaded from a
    file is.
    """
    state = settings.spool.state or settings.spool.path / "state"

    with suppress(OSError, ValueError):  # ValueError: a path that is no UTF-8
        write_durably(state / KEPT, proof_of(settings, environ))


def models_of(settings: Settings) -> list[tuple[str, str]]:
    """Return the models that are configured, with their providers."""
    return sorted({(profile.provider, profile.model) for profile in settings.profiles.values()})


def _told(error: Exception, path: Path) -> Exception:
    """Return what is to be said of what the disk or the database did; anything else as it is.

    Several tasks may meet the same at once; what one of them says is enough.
    """
    match error:
        case ExceptionGroup():
            told = [_told(one, path) for one in error.exceptions]

            is_known = all(isinstance(one, SpoolError | StoreError) for one in told)

            return told[0] if is_known else error
        case OSError():
            return SpoolError(f"{error.filename or path}: {error.strerror or error}")
        case _:
            return error


async def run(settings: Settings, *, is_draining: bool, load: Callable[[], Settings]) -> bool:
    """Run the daemon in the foreground until it is told to stop, or drained, as `Daemon.run`.

    *load* reads the configuration again. A process that cannot stop, since a thread of it does not
    end, exits from here: with 0, or with 1 where a drain was not done.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # a late writer breaks our lease with it
    gc.freeze()  # what was imported stays: to look it over takes longer than the loop may be held
    heartbeat = Heartbeat()
    daemon = Daemon(
        settings=settings,
        is_draining=is_draining,
        on_ready=_tell_systemd,
        turn_s=heartbeat.every_s,
        reloader=Reloader(load, settings),
    )

    async def turn(dispatcher: Dispatcher) -> None:
        # READY=1 ends a reload, and must not be said of a daemon that starts.
        is_reloading = dispatcher.is_reload_wanted and dispatcher.state == "ready"

        if is_reloading:
            systemd.notify(systemd.reloading(monotonic_us()), os.environ)

        await daemon.renew(dispatcher)

        if is_reloading:
            _tell_systemd()

    daemon.on_beat, daemon.on_turn = heartbeat.beat, turn
    _log.info("daemon.started", version=__version__, spool=str(settings.spool.path))
    is_done = False

    with ExitStack() as until_the_end:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, daemon, tasks.cancel_scope, until_the_end)
            is_done = await daemon.run()
            tasks.cancel_scope.cancel()

    _log.info("daemon.stopped")

    return is_done


def _tell_systemd() -> None:
    systemd.notify("READY=1", os.environ)


async def _obey(daemon: Daemon, scope: anyio.CancelScope, until_the_end: ExitStack) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        is_stopping = False

        async for number in signals:
            if number is signal.SIGHUP:
                daemon.reload()
                continue

            if is_stopping:
                scope.cancel()

                return

            is_stopping = True
            until_the_end.enter_context(_last_resort(daemon))
            systemd.notify("STOPPING=1", os.environ)
            daemon.stop()


@contextmanager
def _last_resort(daemon: Daemon) -> Iterator[None]:
    """End the process when the grace that is set by now is over, unless this ends before."""
    grace_s = daemon.settings.spool.stop_grace + CUT_OFF_S
    timer = threading.Timer(grace_s, _cut_off, [daemon])
    timer.daemon = True
    timer.start()

    try:
        yield
    finally:
        timer.cancel()


def _cut_off(daemon: Daemon) -> None:
    """End the process where it is, which every stage may be, and its workers with it.

    What blocks in a thread cannot be cancelled: a template that loops, a disk that does not answer.
    """
    dispatcher = daemon.dispatcher
    _log.warning(
        "daemon.cut_off", in_progress=0 if dispatcher is None else len(dispatcher.in_progress)
    )
    os._exit(1 if daemon.is_draining else 0)
