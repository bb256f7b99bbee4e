"""What a stage found or did; `policy.decide` turns a row and its outcome into the next row.

Pure values, made by stages and read by policy and journal. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from promptspool.model import Batch, RemoteBatch
from promptspool.pricing import Cost, Tokens


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """The job's request files and manifest are on disk."""

    batches: tuple[Batch, ...]
    requests: int
    digest: str
    format: str = "jsonl"
    """What the file was read as."""
    bad_rows: int = 0
    prompt_columns: tuple[str, ...] = ()
    """The columns that were taken for the prompt where the profile has no template."""
    estimated_usd: float | None = None
    """What the batches may cost; None if a price is not known."""
    held: str | None = None
    """Why none of it may be submitted before a person has looked; None if it may."""
    is_small: bool = False
    """Batching it saves next to nothing."""


class Unusable(msgspec.Struct, frozen=True, kw_only=True):
    """Not one request can be made of the file; `rejection.json` in its folder says why."""

    reason: str


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """The original and its reason are in `rejected/`."""


class AllClosed(msgspec.Struct, frozen=True, kw_only=True):
    """The last batch of the job was closed."""


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """The answers are in `outbox/` and the original is in `done/`, under *stem*."""

    stem: bytes
    results: int
    errors: int
    left_out: tuple[str, ...] = ()
    """Products that could not be made; the summary says why."""
    summary: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """What the summary says."""


class Vanished(msgspec.Struct, frozen=True, kw_only=True):
    """The job's working folder is gone, so there is nothing left to do for it."""


class Tidied(msgspec.Struct, frozen=True, kw_only=True):
    """Remote files and the working folder are gone."""

    was_asked: bool = False
    """The provider had files to delete, and did."""


class Uploaded(msgspec.Struct, frozen=True, kw_only=True):
    """The request file is at the provider, under *file*; None where a dialect takes no upload."""

    file: str | None


class Intended(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing was done: the transition is the point."""

    estimated_usd: float | None = None
    """What it may cost, where that was not known when it was planned."""


class Crowded(msgspec.Struct, frozen=True, kw_only=True):
    """There is no room for it among what the provider has in work; it waits for its turn."""

    reason: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """It would cost more than is allowed."""

    reason: str
    until: float | None
    """When a new day or month may change that; None if only a person can."""


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """What was held may be tried again."""

    by_hand: bool
    """A person said so: limits of cost hold for it no longer."""


class Delayed(msgspec.Struct, frozen=True, kw_only=True):
    """A person let nothing be submitted for so long, by which it grows no older."""

    seconds: float


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A person wants nothing more of it."""


class Withdrawn(msgspec.Struct, frozen=True, kw_only=True):
    """It was cancelled before anything of it had left this machine."""


class Halted(msgspec.Struct, frozen=True, kw_only=True):
    """A person lets nothing be submitted, or (*is_over*) lets it again."""

    is_over: bool = False


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A notice was taken."""


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A notice is not to be sent any more."""

    reason: str


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """The batch exists. *found* says that it was met in the list, not answered to a create."""

    remote: RemoteBatch
    found: bool


class Unclear(msgspec.Struct, frozen=True, kw_only=True):
    """A create was sent and no usable answer came back."""

    reason: str


class Restarted(msgspec.Struct, frozen=True, kw_only=True):
    """The process that may have sent the create is gone."""


class Woken(msgspec.Struct, frozen=True, kw_only=True):
    """Its deadline is later than any wait of ours: this machine's clock was set back."""


class NotListed(msgspec.Struct, frozen=True, kw_only=True):
    """The list was read far enough and does not show the batch, yet."""


class NeverCreated(msgspec.Struct, frozen=True, kw_only=True):
    """Recall has read the list as often as it takes, and the batch is not in it."""


class Polled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The provider said how the batch is doing."""

    remote: RemoteBatch


class Missed(msgspec.Struct, frozen=True, kw_only=True):
    """The provider answered 404 for a batch that it once created, and does not list it."""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """A create named an input file that the provider does not know, yet."""

    reason: str


class Turned(msgspec.Struct, frozen=True, kw_only=True):
    """Upload or create was declined; *faults* is as `Batch.errors`."""

    faults: str


class Downloaded(msgspec.Struct, frozen=True, kw_only=True):
    """Every file that the provider named is on disk, whole."""

    remote: RemoteBatch | None
    """What it said of the batch at a second look; None at the first."""


class Doubtful(msgspec.Struct, frozen=True, kw_only=True):
    """The answers do not add up; worth a second look before it is believed."""

    reason: str


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """Each request has a final answer or is in one of *successors*, whose files are on disk."""

    successors: tuple[Batch, ...]
    answered: int
    failed: int
    complaints: tuple[dict[str, object], ...] = ()
    """What the provider said against the batch as a whole, with the lines of the dropped file."""
    stopped: str | None = None
    """The error that hit so many requests that they were not asked again; None if none did."""
    tokens: Tokens = msgspec.field(default_factory=Tokens)
    """What the provider counted of all its answers."""
    cost: Cost | None = None
    """What they cost; None if the price is not known."""


class Booted(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon has started; *sweeps* of the list are needed before anything is created."""

    sweeps: int


class Recalled(msgspec.Struct, frozen=True, kw_only=True):
    """The list of batches was read back to the oldest live job."""

    found: int


class Trouble(StrEnum):
    """Whose trouble a failure is."""

    ROW = "row"
    """This piece of work alone, as far as we know."""
    OUTAGE = "outage"
    """5xx, network, garbage: the provider's, once several items met it."""
    THROTTLED = "throttled"
    """A rate limit: the whole provider's."""
    BLOCKED = "blocked"
    """Key, quota, billing: the whole provider's, until a person acts."""
    CRASH = "crash"
    """An exception nobody foresaw: the stage may have done anything."""
    BUG = "bug"
    """One of our own rules, or files, is broken: the row is set aside."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The stage did not get done; it will be run again, or its row is set aside."""

    reason: str
    trouble: Trouble
    retry_after_s: float | None = None
    request_id: str | None = None
    """The provider's own name for the call, for its support."""
    is_missing: bool = False
    """The provider says that there is no such thing."""


Outcome = (
    Planned
    | Unusable
    | Rejected
    | AllClosed
    | Delivered
    | Vanished
    | Tidied
    | Uploaded
    | Intended
    | Crowded
    | Held
    | Released
    | Delayed
    | Cancelled
    | Withdrawn
    | Halted
    | Sent
    | Dropped
    | Created
    | Unclear
    | Restarted
    | Woken
    | NotListed
    | NeverCreated
    | Polled
    | Missed
    | Gone
    | Turned
    | Downloaded
    | Doubtful
    | Settled
    | Booted
    | Recalled
    | Failed
)
