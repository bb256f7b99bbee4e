"""What a stage found or did; `policy.decide` turns a row and its outcome into the next row.

Pure values, made by stages and read by policy and journal. Raises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from promptspool.pricing import Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptspool.model import Batch, RemoteBatch
    from promptspool.pricing import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """Not one request can be made of the file; `rejection.json` in its folder says why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The original and its reason are in `rejected/`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllClosed:
    """The last batch of the job was closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The answers are in `outbox/` and the original is in `done/`, under *stem*."""

    stem: bytes
    results: int
    errors: int
    left_out: tuple[str, ...] = ()
    """Products that could not be made; the summary says why."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What the summary says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """The job's working folder is gone, so there is nothing left to do for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidied:
    """Remote files and the working folder are gone."""

    was_asked: bool = False
    """The provider had files to delete, and did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """The request file is at the provider, under *file*; None where a dialect takes no upload."""

    file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Intended:
    """Nothing was done: the transition is the point."""

    estimated_usd: float | None = None
    """What it may cost, where that was not known when it was planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowded:
    """There is no room for it among what the provider has in work; it waits for its turn."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """It would cost more than is allowed."""

    reason: str
    until: float | None
    """When a new day or month may change that; None if only a person can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What was held may be tried again."""

    by_hand: bool
    """A person said so: limits of cost hold for it no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delayed:
    """A person let nothing be submitted for so long, by which it grows no older."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """A person wants nothing more of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """It was cancelled before anything of it had left this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Halted:
    """A person lets nothing be submitted, or (*is_over*) lets it again."""

    is_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A notice was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A notice is not to be sent any more."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The batch exists. *found* says that it was met in the list, not answered to a create."""

    remote: RemoteBatch
    found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unclear:
    """A create was sent and no usable answer came back."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """The process that may have sent the create is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """Its deadline is later than any wait of ours: this machine's clock was set back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotListed:
    """The list was read far enough and does not show the batch, yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverCreated:
    """Recall has read the list as often as it takes, and the batch is not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """The provider said how the batch is doing."""

    remote: RemoteBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """The provider answered 404 for a batch that it once created, and does not list it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A create named an input file that the provider does not know, yet."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """Upload or create was declined; *faults* is as `Batch.errors`."""

    faults: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """Every file that the provider named is on disk, whole."""

    remote: RemoteBatch | None
    """What it said of the batch at a second look; None at the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubtful:
    """The answers do not add up; worth a second look before it is believed."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Each request has a final answer or is in one of *successors*, whose files are on disk."""

    successors: tuple[Batch, ...]
    answered: int
    failed: int
    complaints: tuple[dict[str, object], ...] = ()
    """What the provider said against the batch as a whole, with the lines of the dropped file."""
    stopped: str | None = None
    """The error that hit so many requests that they were not asked again; None if none did."""
    tokens: Tokens = field(default_factory=Tokens)
    """What the provider counted of all its answers."""
    cost: Cost | None = None
    """What they cost; None if the price is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """The daemon has started; *sweeps* of the list are needed before anything is created."""

    sweeps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
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
