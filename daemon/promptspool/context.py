"""What stages work with, and what this process knows of each provider."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from promptspool.errors import ProviderError

if TYPE_CHECKING:
    from promptspool.clock import Clock
    from promptspool.model import RemoteBatch
    from promptspool.provider import Provider
    from promptspool.provider.base import RemoteFile
    from promptspool.settings import ProviderSettings, Settings
    from promptspool.spool import Spool
    from promptspool.store import Store


@dataclass(slots=True, kw_only=True)
class Account:
    """One provider, and what this process has learned of it by recall."""

    provider: Provider
    settings: ProviderSettings
    batches: dict[str, RemoteBatch] = field(default_factory=dict)
    """Our batches that were met in the list, by our batch id."""
    uploads: dict[str, RemoteFile] = field(default_factory=dict)
    """Our uploads that were met in the list, by file name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What stages work with."""

    settings: Settings
    spool: Spool
    spool_id: str
    store: Store
    clock: Clock
    accounts: dict[str, Account]
    taken: set[bytes]
    """Stems that live jobs have reserved."""

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
