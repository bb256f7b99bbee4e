"""What is read of the database to be shown: rows cut down to that, and sums. Pure."""

from __future__ import annotations

import msgspec

from promptspool.model import (
    BatchId,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    Notice,
    ProviderState,
    RemoteStatus,
)

DAY_S = 86_400
"""Days are UTC's, as in the bills of providers."""

LATELY_S = 86_400.0
"""How far back `Overview.ended` goes."""


class LiveBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What an overview needs of a batch that is not closed; the fields are `Batch`'s."""

    id: BatchId
    job: JobId
    provider: str
    model: str
    status: BatchStatus
    remote_status: RemoteStatus | None
    requests: int
    attempt: int
    completed: int
    failed: int
    due_at: float | None
    failures: int
    cancelled_at: float | None
    crowded_at: float | None
    progressed_at: float | None
    stalls: int
    estimated_input: int
    remote_id: str | None
    why: str | None
    added_at: float | None
    """When its row came to be."""


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """The sums over the closed batches of a job."""

    job: JobId
    batches: int
    answered: int
    unanswered: int
    cost_usd: float | None
    """None if no price is known."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was delivered or rejected lately."""

    id: JobId
    name: bytes
    stem: bytes
    status: JobStatus
    results: int | None
    errors: int | None
    cost_usd: float | None
    standard_usd: float | None
    why: str | None
    ended_at: float


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """What was bought of one provider, by the day on which it was submitted.

    A batch counts with its cost, or until that is known with its estimate. What was saved is known
    of those alone that have a cost.
    """

    provider: str
    day_usd: float
    day_saved_usd: float
    day_input_tokens: int
    day_output_tokens: int
    month_usd: float


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown of a spool at one moment."""

    meta: dict[str, str]
    last_at: float | None
    """When anything last changed its status."""
    jobs: list[Job]
    """Those that have something left to do, oldest first."""
    batches: list[LiveBatch]
    closed: dict[JobId, Closed]
    """Of live jobs."""
    providers: list[ProviderState]
    notices: list[Notice]
    """Those that fail, and those that were dropped lately."""
    ended: list[Ended]
    """In the last `LATELY_S`, oldest first."""
    spending: list[Spending]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One line of history."""

    row: str
    """A job's, batch's or notice's id."""
    at: float
    was: str | None
    """None when it came to be."""
    became: str
    why: str | None
