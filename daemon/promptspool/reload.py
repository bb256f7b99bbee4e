"""A new configuration for a daemon that runs: noticed, read, and put into its parts.

What is in flight goes on with what it began with: settings are frozen, a plan is kept on disk, and
a client lives until the last call of it has ended. A configuration that cannot be used is refused
with file, line and reason, and the one before stays. A provider whose address or key is another is
doubted as at a start: nothing is created there before its list was read. Raises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from promptspool import journal, log
from promptspool.boot import SWEEPS_AFTER_A_CRASH
from promptspool.context import Account
from promptspool.errors import ConfigError
from promptspool.model import ProviderState, ProviderStatus
from promptspool.outcomes import Booted
from promptspool.policy import Backoff, Rules, decide
from promptspool.pricing import Prices
from promptspool.settings import changed, look
from promptspool.stages import Lane
from promptspool.store import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from promptspool.context import Context
    from promptspool.dispatcher import Dispatcher
    from promptspool.inbox import Inbox
    from promptspool.provider import Provider
    from promptspool.settings import Look, ProviderSettings, Settings

    Connect = Callable[[str, ProviderSettings], Provider]

ACCOUNT_KEYS = ("dialect", "base_url", "api_key_env", "api_key_file")
"""Of a provider: what decides whose account it is."""

CLIENT_KEYS = (
    "timeout",
    "connect_timeout",
    "transfer_timeout",
    "max_answer_bytes",
    "max_download",
)
"""Of a provider: what its client holds besides."""

RESTART_KEYS = (
    ("spool", "path"),
    ("spool", "state"),
    ("metrics", "listen"),
    ("metrics", "textfile"),
)
"""What is open for as long as the daemon runs."""

_WIDTHS = {Lane.SMALL: 8, Lane.GATE: 1, Lane.NOTICE: 4}
"""Of the lanes that nobody can set."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


def rules_of(settings: Settings) -> Rules:
    """Return the settings that decisions depend on."""
    polling, retry = settings.polling, settings.retry

    return Rules(
        polling=Backoff(first_s=polling.first, factor=polling.factor, cap_s=polling.cap),
        retry=Backoff(first_s=retry.first, factor=retry.factor, cap_s=retry.cap),
        lookup_grace_s={
            name: provider.lookup_grace for name, provider in settings.providers.items()
        },
        stalled_s=polling.stalled,
    )


def lanes_of(settings: Settings) -> dict[Lane, int]:
    """Return how wide each lane is."""
    return {lane: _WIDTHS.get(lane) or getattr(settings.lanes, lane.value) for lane in Lane}


class Reloader:
    """Knows which files the configuration was read from, and reads them again."""

    def __init__(self, load: Callable[[], Settings], current: Settings) -> None:
        """Take what loads the configuration anew, and the one that was loaded last."""
        self._load = load
        self._was_whole = bool(current.providers and current.profiles)
        self._looks = dict(current.looks)
        self._seen = self._looks

    @property
    def is_settling(self) -> bool:
        """Whether `is_changed` has seen a change that may go on: ask again in about a second."""
        return self._seen != self._looks

    def is_changed(self) -> bool:
        """Tell whether a file is another than was read, and looks as it did when last asked.

        A file that is just being written may be good TOML and half of what was meant, so one look
        is not enough. Takes one stat for each file.
        """
        before, self._seen = self._seen, _looks(self._looks)

        return self._seen == before and self._seen != self._looks

    def loaded(self) -> Settings | None:
        """Return the configuration as the files have it now; None if it was refused, and logged.

        Blocks for as long as a few files take to be read.
        """
        try:
            new = self._load()
            self._check_whole(new)
        except ConfigError as error:
            # What was read before is looked at as well: the next attempt may need it again.
            self._seen = self._looks = _looks(self._looks) | error.looks
            _refuse(error)

            return None

        self._seen = self._looks = dict(new.looks)

        return new

    def _check_whole(self, settings: Settings) -> None:
        """Raise `ConfigError` for a configuration by which nobody can be asked any more.

        An editor that found no room on the disk leaves an empty file, which is good TOML.
        """
        if self._was_whole and not (settings.providers and settings.profiles):
            reason = "it has no provider or no profile any more; is the file cut off?"
            raise ConfigError(str(settings.source or ""), reason)


@dataclass(slots=True)
class Retired:
    """A client that is used no more but by what was in progress when it was replaced."""

    provider: Provider
    users: set[str]
    """Ids of rows."""


async def close_idle(retired: list[Retired], in_progress: Collection[str]) -> None:
    """Close and forget the clients whose last users have ended; with none in progress, all."""
    for one in list(retired):
        one.users.intersection_update(in_progress)

        if not one.users:
            retired.remove(one)
            await one.provider.close()


async def apply(  # noqa: PLR0913 - each of the running parts, and the time
    new: Settings,
    *,
    context: Context,
    inbox: Inbox,
    dispatcher: Dispatcher,
    connect: Connect,
    now: float,
) -> list[Retired]:
    """Put *new* into the running parts, and say what has changed.

    Call it from the dispatcher's loop, so that no stage begins meanwhile. Returns the clients to be
    closed by `close_idle`. Where *connect* refuses (certificates that are gone, say), nothing is
    changed.
    """
    old = context.settings
    names = changed(old, new)
    settings = _with_what_stays(old, new)

    try:
        clients = await _clients(context.accounts, settings, connect)
    except ConfigError as error:
        _refuse(error)

        return []

    dispatcher.rules, dispatcher.lanes = rules_of(settings), lanes_of(settings)

    async with dispatcher.applying():
        retired = await _replace_accounts(context, dispatcher, settings, clients, now)

    context.settings, context.prices = settings, Prices(settings.prices)
    inbox.settings = inbox.claims.settings = settings

    if settings.log != old.log:
        log.configure(settings.log.level, settings.log.format)

    needs_restart = [name for name in names if tuple(name.split(".")) in RESTART_KEYS]
    _log.info("config.reloaded", changed=names, needs_restart=needs_restart)
    inbox.wake()

    return retired


def _with_what_stays(old: Settings, new: Settings) -> Settings:
    """Return *new* with the old values of what only a restart can change."""
    update: dict[str, object] = {}

    for section in {section for section, _ in RESTART_KEYS}:
        keys = [key for name, key in RESTART_KEYS if name == section]
        kept = {key: getattr(getattr(old, section), key) for key in keys}
        update[section] = getattr(new, section).model_copy(update=kept)

    return new.model_copy(update=update)


async def _clients(
    accounts: Mapping[str, Account], settings: Settings, connect: Connect
) -> dict[str, Provider]:
    """Return a client for each provider that needs another than it has, or none at all.

    Raises `ConfigError`.
    """
    clients: dict[str, Provider] = {}

    for name, provider in settings.providers.items():
        account = accounts.get(name)

        if account is None or _differs(account, provider, (*ACCOUNT_KEYS, *CLIENT_KEYS)):
            try:
                clients[name] = connect(name, provider)
            except ConfigError:
                for client in clients.values():
                    await client.close()

                raise

    return clients


async def _replace_accounts(
    context: Context,
    dispatcher: Dispatcher,
    settings: Settings,
    clients: Mapping[str, Provider],
    now: float,
) -> list[Retired]:
    """Give every provider the account that *settings* describe; return the clients it had."""
    accounts = context.accounts
    gone = accounts.keys() - settings.providers.keys()
    replaced = [accounts[name].provider for name in accounts if name in clients or name in gone]

    for name in gone:
        del accounts[name]

    for name, provider in settings.providers.items():
        account = accounts.get(name)

        if account is None or _differs(account, provider, ACCOUNT_KEYS):
            # The row first: whoever finds the new account finds that it has to be recalled.
            await _doubt(context, dispatcher, name, now)
            accounts[name] = Account(provider=clients[name], settings=provider)
        else:
            account.settings = provider
            account.provider = clients.get(name, account.provider)

    return [Retired(client, set(dispatcher.in_progress)) for client in replaced]


def _differs(account: Account, provider: ProviderSettings, keys: Collection[str]) -> bool:
    return any(getattr(account.settings, key) != getattr(provider, key) for key in keys)


async def _doubt(context: Context, dispatcher: Dispatcher, name: str, now: float) -> None:
    """Have a provider begin as after a crash: nothing that was known of it is known any more.

    Two sweeps, since a recall of the old account may be under way, and counts as the first.
    """
    store = context.store
    before = dispatcher.providers.get(name) or (await dispatcher.persistently(store.providers)).get(
        name
    )
    is_busy = any(job.provider == name for job in await dispatcher.persistently(store.live_jobs))

    if before is None:
        before = ProviderState(id=name, status=ProviderStatus.READY)
        await dispatcher.write(Change(added=[before], at=now))

    is_recalling = before.status is ProviderStatus.RECALLING
    booted = Booted(sweeps=SWEEPS_AFTER_A_CRASH if is_busy or is_recalling else 0)
    after = decide(before, booted, now, dispatcher.rules)
    assert isinstance(after, ProviderState)  # noqa: S101 - as it was before

    if await dispatcher.write(Change(updated=[(before, after)], at=now)):
        journal.tell("reload", (), [(before, after)], now=now)


def _looks(paths: Collection[Path]) -> dict[Path, Look | None]:
    return {path: look(path) for path in paths}


def _refuse(error: ConfigError) -> None:
    _log.error("config.refused", reason=str(error))
