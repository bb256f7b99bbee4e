"""The words of the daemon as data: ids, statuses, rows and the allowed transitions.

Pure: no clock, no randomness, no I/O. Rows mirror their tables column for column
(`store/schema.py`). Timestamps end in `_at` (Unix seconds by this machine's clock unless said
otherwise), durations in `_s`. Raises nothing.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import NewType

import msgspec

JobId = NewType("JobId", str)
"""Claim time and six random characters, `20261120t231853z-4f7k2m`: sorts by age, safe in names."""

BatchId = NewType("BatchId", str)
"""`JOB.PART` for a planned batch; what follows it is named by `successor_id`."""


class JobStatus(Enum):
    """Where one dropped file stands.

    No `StrEnum`: a planned job is not a planned batch, and both are keys of the same tables.
    """

    CLAIMED = "claimed"
    """In `working/`; to be planned."""
    PLANNED = "planned"
    """Its batches are under way; they move it on."""
    HELD = "held"
    """Some of its batches would cost more than is allowed, and wait for a person or a new day."""
    SETTLED = "settled"
    """Every request has its final answer; to be delivered."""
    DELIVERED = "delivered"
    """Answers are in `outbox/`, the original in `done/`; remote files are still to be deleted."""
    DONE = "done"
    """Nothing is left to do."""
    UNUSABLE = "unusable"
    """Not one request could be made of it; to be moved to `rejected/`."""
    REJECTED = "rejected"
    """In `rejected/`, with the reason beside it."""


class BatchStatus(Enum):
    """Where one batch stands."""

    PLANNED = "planned"
    """Its request file is on disk; to be uploaded."""
    UPLOADED = "uploaded"
    """Its input file is at the provider; the intent to create it is to be recorded."""
    CREATING = "creating"
    """The intent is on disk; the provider has not been asked since."""
    UNCLEAR = "unclear"
    """The provider may have been asked; it is to be looked up, never asked again blindly."""
    CREATED = "created"
    """Runs at the provider; to be polled."""
    ENDED = "ended"
    """Has a terminal status there; its files are to be downloaded."""
    DOWNLOADED = "downloaded"
    """Whatever there is of answers is on disk, or it was refused; to be settled."""
    CLOSED = "closed"
    """Each of its requests has a final answer or is in a successor."""


class NoticeStatus(Enum):
    """Where one notice stands."""

    PENDING = "pending"
    """To be sent."""
    SENT = "sent"
    DROPPED = "dropped"
    """Nobody took it for so long that it is not sent any more."""


class ProviderStatus(Enum):
    """Whether this process knows what it left at the provider."""

    RECALLING = "recalling"
    """The list of batches is still to be read; nothing is created until then."""
    READY = "ready"
    """Whatever earlier processes created is known."""


class Work(StrEnum):
    """What of a provider's work a pause is for."""

    ALL = "all"
    UPLOADS = "uploads"
    CREATIONS = "creations"
    DOWNLOADS = "downloads"


class RemoteStatus(StrEnum):
    """A batch's status in the provider's words (OpenAI Batch guide, "Check the status")."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """A word that we do not know: not terminal, polled on."""
    REFUSED = "refused"
    """Ours: upload or create was declined, so it never existed there."""
    LOST = "lost"
    """Ours: it existed and is gone for good."""

    @property
    def is_terminal(self) -> bool:
        """Tell whether it can never change again."""
        return REMOTE_RANK[self] == _TERMINAL

    @property
    def has_run(self) -> bool:
        """Tell whether any of its requests may have been put to the model."""
        return self not in (RemoteStatus.FAILED, RemoteStatus.REFUSED)


_TERMINAL = 9

REMOTE_RANK: dict[RemoteStatus, int] = {
    RemoteStatus.UNKNOWN: 0,
    RemoteStatus.VALIDATING: 1,
    RemoteStatus.IN_PROGRESS: 2,
    RemoteStatus.FINALIZING: 3,
    RemoteStatus.CANCELLING: 4,
    RemoteStatus.COMPLETED: _TERMINAL,
    RemoteStatus.FAILED: _TERMINAL,
    RemoteStatus.EXPIRED: _TERMINAL,
    RemoteStatus.CANCELLED: _TERMINAL,
    RemoteStatus.REFUSED: _TERMINAL,
    RemoteStatus.LOST: _TERMINAL,
}
"""A partial order of statuses: an answer of a lower rank than one already seen is an old one."""


def shown(name: bytes) -> str:
    r"""Return a file name as text for people; bytes that are no UTF-8 become `\xNN`."""
    return name.decode("utf-8", "backslashreplace")


class Job(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One dropped file."""

    id: JobId
    name: bytes
    """Path below `inbox/`, as the file system has it; need not be UTF-8."""
    stem: bytes
    """Reserved path below `outbox/`, `done/` and `rejected/`: `name`, or `name-2` and so on."""
    profile: str
    provider: str | None
    """None when the profile is unknown."""
    base_url: str | None
    """The provider's address at claim; a job never moves to another."""
    status: JobStatus = JobStatus.CLAIMED
    version: int = 0
    due_at: float | None = None
    """When its stage is to run; None when it waits for its batches or is finished."""
    failures: int = 0
    """Consecutive failures of the present stage."""
    failed_at: float | None = None
    """When the first of these was."""
    priority: int = 0
    """Of what waits to be planned or submitted, the highest goes first."""
    claimed_at: float
    planned_at: float | None = None
    delivered_at: float | None = None
    size_bytes: int = 0
    digest: str | None = None
    """Of the original; None before it is planned."""
    requests: int | None = None
    """Rows of the file, bad ones too; None before it is planned."""
    bad_rows: int = 0
    """Those of which no request could be made."""
    estimated_usd: float | None = None
    """What its planned batches may cost; None before it is planned, or without a known price."""
    released_at: float | None = None
    """When a person let it go beyond the limits of cost."""
    cancelled_at: float | None = None
    """When a person cancelled it: nothing of it is submitted after that."""
    retry_of: JobId | None = None
    """The job whose failed requests it asks again; None for a dropped file."""
    results: int | None = None
    """Requests that were answered; None before it is delivered, as for the next three."""
    errors: int | None = None
    cost_usd: float | None = None
    """An estimate from the tokens that were counted; None also without a known price."""
    standard_usd: float | None = None
    """What the same would have cost without batches."""
    why: str | None = None
    """The latest failure, or why it was set aside or is held; None when all is well."""

    @property
    def shown(self) -> str:
        """Return the name as text for people."""
        return shown(self.name)


class Batch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One batch at the provider, from its request file on disk to its last answer."""

    id: BatchId
    job: JobId
    parent: BatchId | None = None
    """The batch whose leftovers it holds; None for a planned one."""
    provider: str
    base_url: str
    """The provider's address at claim; a batch is never looked for at another."""
    endpoint: str
    model: str
    status: BatchStatus = BatchStatus.PLANNED
    version: int = 0
    due_at: float | None = None
    failures: int = 0
    """Consecutive failures of the present stage."""
    failed_at: float | None = None
    """When the first of these was."""
    priority: int = 0
    """Its job's."""
    requests: int
    size_bytes: int
    digest: str
    """Of its request file, which is fixed before this row exists."""
    attempt: int = 0
    """How often the model had been asked each of its requests before this batch."""
    waits: int = 0
    """How often its lineage was turned away or cut short without being asked; feeds the backoff."""
    reuploads: int = 0
    """How often an upload of its lineage went missing at the provider."""
    halvings: int = 0
    """How often its lineage was halved after a refusal that named no line."""
    give_up_at: float
    """After this nothing of it is submitted again; a live batch is cancelled and collected."""
    cancelled_at: float | None = None
    """When a person cancelled its job: nothing of it is submitted after that."""
    estimated_input: int = 0
    """Tokens that its requests may hold; what counts as enqueued until it ends."""
    estimated_output: int = 0
    estimated_usd: float | None = None
    """None if the price of its model is not known."""
    crowded_at: float | None = None
    """Since when it waits for other batches of its model to end; None if it does not."""
    held_at: float | None = None
    """Since when it is held for its cost, by which it grows no older; None if it is not."""
    input_file: str | None = None
    """The provider's id of the uploaded request file."""
    uploaded_at: float | None = None
    intended_at: float | None = None
    unclear_at: float | None = None
    """When a create went unanswered in this process; None if the process that sent it died."""
    looks: int = 0
    """Look-ups without a find while unclear; afterwards, second looks at the answers."""
    remote_id: str | None = None
    remote_status: RemoteStatus | None = None
    created_at: float | None = None
    """By the provider's clock."""
    ended_at: float | None = None
    polls: int = 0
    """Polls since its remote status last changed; feeds the backoff."""
    progressed_at: float | None = None
    """When its remote status or its counts last changed, by our clock; None before a poll."""
    stalls: int = 0
    """For how many times `polling.stalled` nothing of it has changed since."""
    missed: int = 0
    """Consecutive polls, or later downloads, that the provider answered with 404."""
    missed_at: float | None = None
    """When the first of these was."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    """The provider's own counts; for display and for doubt, never for accounting."""
    output_file: str | None = None
    error_file: str | None = None
    errors: str | None = None
    """The provider's complaints about the whole batch: a JSON array of `wire.BatchFault`."""
    answered: int = 0
    """Requests that got their answer from it; nought before it is closed, as for the rest."""
    unanswered: int = 0
    """Requests that finally failed in it; the others are in its successors."""
    input_tokens: int = 0
    """As the provider counted, of all its answers, also of those that are asked for again."""
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    """From these tokens; None before it is closed, or without a known price."""
    standard_usd: float | None = None
    why: str | None = None
    """The latest failure, or why it was set aside or is held; None when all is well."""

    def is_over(self, now: float) -> bool:
        """Tell whether nothing of it is to be submitted any more: too old, or cancelled."""
        return self.cancelled_at is not None or now >= self.give_up_at


class ProviderState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How one provider is doing; its settings are in the configuration."""

    id: str
    status: ProviderStatus = ProviderStatus.RECALLING
    version: int = 0
    due_at: float | None = None
    failures: int = 0
    """Consecutive failures of recall."""
    failed_at: float | None = None
    """When the first of these was."""
    sweeps: int = 0
    """Sweeps that recall still has to make."""
    struck: str = ""
    """The different rows, one after another, that met an outage: their ids, with spaces between."""
    pauses: int = 0
    """Consecutive pauses; above zero it is probed with one call at a time."""
    paused_until: float | None = None
    paused_at: float | None = None
    """When the first of these pauses began."""
    paused_work: Work = Work.ALL
    """What is paused."""
    halted_at: float | None = None
    """Since when a person lets nothing be submitted to it; None if nobody does."""
    why: str | None = None


class Notice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Something to be told of a job, to one command or webhook."""

    id: str
    """`JOB/EVENT.VERSION/TARGET`, by the version of the job that it is about."""
    job: JobId
    event: str
    """`job.delivered`, `job.failed` or `job.held`."""
    target: str
    """`command` or `webhook`."""
    status: NoticeStatus = NoticeStatus.PENDING
    version: int = 0
    due_at: float | None = None
    failures: int = 0
    """How often it was not taken."""
    failed_at: float | None = None
    """When the first of these was."""
    made_at: float
    why: str | None = None


Row = Job | Batch | ProviderState | Notice
Status = JobStatus | BatchStatus | ProviderStatus | NoticeStatus

WORK: dict[Status, Work] = {
    BatchStatus.PLANNED: Work.UPLOADS,
    BatchStatus.UPLOADED: Work.CREATIONS,
    BatchStatus.CREATING: Work.CREATIONS,
    BatchStatus.ENDED: Work.DOWNLOADS,
}
"""What can be paused by itself; all that is not named here can not.

A rate limit or a quota met by creations is no reason to stop collecting answers, and uploads that
are down are none to stop polling.
"""

TRANSITIONS: dict[Status, frozenset[Status]] = {
    JobStatus.CLAIMED: frozenset(
        {JobStatus.PLANNED, JobStatus.HELD, JobStatus.UNUSABLE, JobStatus.DONE}
    ),
    JobStatus.PLANNED: frozenset(
        {JobStatus.HELD, JobStatus.SETTLED, JobStatus.UNUSABLE, JobStatus.DONE}
    ),
    JobStatus.HELD: frozenset({JobStatus.PLANNED, JobStatus.UNUSABLE, JobStatus.DONE}),
    JobStatus.SETTLED: frozenset({JobStatus.DELIVERED, JobStatus.DONE}),
    JobStatus.DELIVERED: frozenset({JobStatus.DONE}),
    JobStatus.DONE: frozenset(),
    JobStatus.UNUSABLE: frozenset({JobStatus.REJECTED, JobStatus.DONE}),
    JobStatus.REJECTED: frozenset(),
    BatchStatus.PLANNED: frozenset(
        {BatchStatus.UPLOADED, BatchStatus.CREATED, BatchStatus.DOWNLOADED, BatchStatus.CLOSED}
    ),
    BatchStatus.UPLOADED: frozenset(
        {BatchStatus.CREATING, BatchStatus.CREATED, BatchStatus.DOWNLOADED, BatchStatus.CLOSED}
    ),
    BatchStatus.CREATING: frozenset(
        {
            BatchStatus.CREATED,
            BatchStatus.UNCLEAR,
            BatchStatus.DOWNLOADED,
            BatchStatus.PLANNED,
            BatchStatus.CLOSED,
        }
    ),
    BatchStatus.UNCLEAR: frozenset({BatchStatus.CREATED, BatchStatus.CREATING, BatchStatus.CLOSED}),
    BatchStatus.CREATED: frozenset({BatchStatus.ENDED, BatchStatus.DOWNLOADED, BatchStatus.CLOSED}),
    BatchStatus.ENDED: frozenset({BatchStatus.DOWNLOADED, BatchStatus.CLOSED}),
    BatchStatus.DOWNLOADED: frozenset({BatchStatus.ENDED, BatchStatus.CLOSED}),
    BatchStatus.CLOSED: frozenset(),
    ProviderStatus.RECALLING: frozenset({ProviderStatus.READY}),
    ProviderStatus.READY: frozenset({ProviderStatus.RECALLING}),
    NoticeStatus.PENDING: frozenset({NoticeStatus.SENT, NoticeStatus.DROPPED}),
    NoticeStatus.SENT: frozenset(),
    NoticeStatus.DROPPED: frozenset(),
}
"""Where each status may lead; staying is always allowed. Anything else is a bug.

A job may be done from anywhere: its folder is removed last of all, so one without a folder is
finished, whatever an older database says. Its batches are closed with it.
"""


def batch_id(job: JobId, part: int) -> BatchId:
    """Name the *part*-th planned batch of *job*, counted from 1."""
    return BatchId(f"{job}.{part}")


def successor_id(parent: BatchId, part: int, parts: int) -> BatchId:
    """Name the *part*-th (from 1) of *parts* successors of *parent*.

    A lone successor counts on (`J.1`, `J.1+1`, `J.1+2`), so the name of a batch that is turned away
    for days stays short; several branch (`J.1.1`, `J.1.2`). The names of one lineage never collide,
    since a parent has either one successor or several.
    """
    if parts > 1:
        return BatchId(f"{parent}.{part}")

    stem, plus, count = parent.rpartition("+")

    if plus and count.isdigit():
        return BatchId(f"{stem}+{int(count) + 1}")

    return BatchId(f"{parent}+1")


class RemoteBatch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a provider says of one batch, in our words."""

    id: str
    status: RemoteStatus
    raw_status: str
    """In its own words."""
    metadata: dict[str, str]
    input_file: str | None
    output_file: str | None = None
    error_file: str | None = None
    created_at: float | None = None
    ended_at: float | None = None
    answered_at: float | None = None
    """When it was said, by the provider's clock; None if that is not known."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: str | None = None
    """As `Batch.errors`."""
