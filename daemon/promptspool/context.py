"""What stages work with, and what this process knows of each provider."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from promptspool.errors import ProviderError

if TYPE_CHECKING:
    from promptspool.clock import Clock
    from promptspool.model import JobId, RemoteBatch
    from promptspool.pricing import Prices
    from promptspool.provider import Provider
    from promptspool.provider.base import RemoteFile
    from promptspool.settings import ProviderSettings, Settings
    from promptspool.spool import Spool
    from promptspool.store import Store


MAX_CONTENTS = 10_000
"""So many contents are remembered: more than can be under way at one moment."""


@dataclass(slots=True, kw_only=True)
class Account:
    """One provider, and what this process has learned of it by recall."""

    provider: Provider
    settings: ProviderSettings
    batches: dict[str, RemoteBatch] = field(default_factory=dict)
    """Our batches that were met in the list and were not known, by our batch id."""
    uploads: dict[str, list[RemoteFile]] = field(default_factory=dict)
    """Our uploads that were met in the list, by file name; a name may be there twice."""
    listed_at: float = -math.inf
    """When `uploads` was read."""
    doubted: set[JobId] = field(default_factory=set)
    """Jobs of which an upload may be at the provider that no row knows of."""
    orphans: set[str] = field(default_factory=set)
    """Ids of old uploads of ours whose jobs are no more; to be deleted."""


@dataclass(slots=True, kw_only=True)
class Context:
    """What stages work with; a new configuration replaces settings, prices and accounts."""

    settings: Settings
    prices: Prices
    spool: Spool
    spool_id: str
    store: Store
    clock: Clock
    accounts: dict[str, Account]
    taken: set[bytes]
    """Stems that live jobs have reserved."""
    contents: dict[str, JobId] = field(default_factory=dict)
    """By digest, which job of this process came first with that content."""

    def first_with(self, digest: str, job: JobId) -> JobId:
        """Return the job of this process that first asked for a content, *job* if there is none."""
        if len(self.contents) >= MAX_CONTENTS:
            del self.contents[next(iter(self.contents))]

        return self.contents.setdefault(digest, job)

    def account(self, name: str, base_url: str | None = None) -> Account:
        """Return the account called *name*, which must still have the address *base_url*.

        Raises `ProviderError` otherwise: a job never moves to another account by itself, and the
        account that is configured now has nothing to do with it.
        """
        account = self.accounts.get(name)

        if account is None:
            raise ProviderError(f"[providers.{name}] is no longer in the configuration")

        if base_url is not None and account.settings.base_url != base_url:
            message = (
                f"the job was claimed for {base_url}, but providers.{name}.base_url is now "
                f"{account.settings.base_url}; set it back to let the job go on"
            )
            raise ProviderError(message, code="other_address")

        return account
