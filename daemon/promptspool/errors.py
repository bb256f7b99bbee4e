"""Every exception of the daemon.

    PromptspoolError
    ├── ConfigError            environment: a setting is wrong
    ├── SpoolError             environment: the directories cannot be used
    │   └── NoDatabase         nothing was ever run there (`store.view`)
    ├── StoreError             environment: the database refuses, a full disk for instance
    ├── NoSuchJob              a person named something else (`store.reading`)
    ├── WorkerDied             environment: a process of ours ended without an answer (`worker`)
    ├── BadInput               bad data: a dropped file, or one row of it
    ├── ProviderError          what the provider answered, or did not
    │   ├── Unavailable        nobody's fault; the same call may work later
    │   │   ├── Unsent         the request never left this machine
    │   │   └── Throttled      the provider asks for a pause
    │   ├── Blocked            key, permission, quota or billing; a person has to act
    │   └── Refused            understood and declined; the same call will be declined again
    │       └── NotFound       no such file or batch
    └── Bug                    ours
        ├── IllegalTransition
        └── StaleWrite

A message defaults to the class's docstring, so the wording lives in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class PromptspoolError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        """Take *message*, or the first line of the class's docstring."""
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class ConfigError(PromptspoolError):
    """The configuration cannot be used.

    *place* is the file, with the line if it is known, or the variable that is to be changed; empty
    where *key* says enough. *looks* is how each file that was read looked then, by its path; None
    for one that was missing.
    """

    def __init__(self, key: str, reason: str, *, place: str = "") -> None:
        """Name the dotted *key* (or the file) and what to change."""
        super().__init__(": ".join(part for part in (place, key, reason) if part))
        self.key = key
        self.reason = reason
        self.place = place
        self.looks: dict[Path, tuple[int, ...] | None] = {}


class SpoolError(PromptspoolError):
    """The spool directory cannot be used."""


class StoreError(PromptspoolError):
    """The database cannot be read or written at the moment."""


class BadInput(PromptspoolError):
    """A dropped file, or one row of it, cannot be used.

    *line* counts from 1 and is None when the whole file is meant. *key* is the column or key that
    is at fault, None when there is no single one. *code* is a word for machines.
    """

    def __init__(
        self,
        reason: str,
        *,
        code: str = "invalid_row",
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        """Say what was found and what to write instead."""
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.line = line
        self.key = key


class ProviderError(PromptspoolError):
    """The provider did not do what was asked.

    *status* is the HTTP status, None when there was no answer. *request_id* is the provider's own
    name for the call, for its support. *retry_after_s* is what it asked us to wait, None if it did
    not say.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Keep the provider's own words."""
        super().__init__(message)
        self.message = str(self)
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class Unavailable(ProviderError):
    """The provider could not be reached, or answered something that is no answer."""


class Unsent(Unavailable):
    """The connection was never made, so the provider cannot have seen the request."""


class Throttled(Unavailable):
    """The provider's rate limit was met."""


class Blocked(ProviderError):
    """The provider refuses this account: key, permission, quota or billing."""


class Refused(ProviderError):
    """The provider understood the request and declined it."""


class NotFound(Refused):
    """The provider knows no such thing."""


class Bug(PromptspoolError):
    """The daemon broke one of its own rules."""


class IllegalTransition(Bug):
    """A row was to leave the transition table."""


class StaleWrite(Bug):
    """A row changed between reading and writing it."""
