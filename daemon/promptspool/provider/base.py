"""What the daemon needs of a provider, whoever it is.

A dialect is one module that speaks one API; what that API can do is data it declares, so the
pipeline asks `Dialect` and never a name. The protocol fits providers that take a file by upload
(OpenAI, Azure, Groq, Mistral, Gemini) and those that take the requests inline (Anthropic): `create`
gets the request file as well as the id of its upload. Answers are fetched by a reference that may
be a file id or an address.

Every call raises `ProviderError` (environment or bad data, see `errors.py`) and nothing else for
what a provider or a network can do. No call is repeated here: repeating is the dispatcher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.model import BatchId, RemoteBatch

SPOOL_KEY = "promptspool_spool"
"""Metadata key of the spool's id: two daemons on one account never touch each other's batches."""

BATCH_KEY = "promptspool_batch"
"""Metadata key of our batch id: what a batch is found by after an unclear answer."""

DIGEST_KEY = "promptspool_digest"
"""Metadata key of the request file's digest: what holds other bytes is not ours to adopt."""

EARLIER_DIGEST_KEY = "promptspool_sha256"
"""The same of earlier versions, whose batches may still run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What an API can do."""

    name: str
    uploads: bool
    """Takes the request file by upload, so that successors can reuse it."""
    metadata: bool
    """Keeps our metadata on a batch and shows it in lists: the ground of at-most-once."""
    cancels: bool
    deletes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """All that a provider is told of a batch."""

    batch: BatchId
    endpoint: str
    model: str
    completion_window: str
    requests_file: Path
    input_file: str | None
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file at the provider."""

    id: str
    name: str
    size_bytes: int | None = None
    created_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of the list of batches."""

    batches: Sequence[RemoteBatch]
    has_more: bool | None
    """None if the provider does not say: then the end is a page without anything new."""
    answered_at: float | None
    """The provider's clock, from `Date`; None if it did not say."""


class Provider(Protocol):
    """One account at one provider."""

    name: str
    dialect: Dialect

    async def upload(self, path: Path, name: str) -> RemoteFile:
        """Send the file at *path* under *name*, streamed; not safe to repeat without a look."""
        ...

    async def create(self, submission: Submission) -> RemoteBatch:
        """Create a batch: costs money, and not safe to repeat without a look.

        Raises `Unsent`, `Throttled`, `Blocked` and `Refused` only where it is certain that nothing
        was created; after any other `Unavailable` a batch may exist.
        """
        ...

    async def retrieve(self, remote_id: str) -> RemoteBatch:
        """Return how a batch is doing."""
        ...

    async def page(self, after: str | None) -> Page:
        """Return up to a hundred batches of the account, those behind *after*."""
        ...

    async def cancel(self, remote_id: str) -> RemoteBatch:
        """Ask for the end of a batch; it goes on to a terminal status by itself."""
        ...

    async def download(self, file: str, path: Path) -> None:
        """Put the content of *file* to *path*, durable and whole or not at all."""
        ...

    async def file(self, file: str) -> RemoteFile:
        """Return what is known of a file; raises `NotFound`."""
        ...

    async def files(self) -> Sequence[RemoteFile]:
        """Return the account's batch input files, the youngest first, as far as one call goes."""
        ...

    async def delete_file(self, file: str) -> None:
        """Delete a file; one that is gone already counts as deleted."""
        ...

    async def close(self) -> None:
        """Give back its connections."""
        ...
