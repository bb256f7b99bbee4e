"""The shapes of everything in bulk: request lines, answer lines and the files in `working/<job>/`.

`working/<job id>/` holds, in the order in which they appear:

| file | what |
|---|---|
| `claim.json` | `Claim`; before the original is moved in |
| `sidecar.toml` | what was dropped beside it to change its profile, if anything was |
| `original` | the dropped file, untouched |
| `cancelled` | empty; there if a person has cancelled the job |
| `kept.jsonl`, `retry.json` | only of a retry: the results before it, and `Retry` |
| `rows.jsonl` | one `PlannedRow` per row of the file, in input order; row n is line n, from 0 |
| `BATCH.requests.jsonl` | what is uploaded: one request a line |
| `manifest.json` | `Manifest`; last and by rename, so a plan that has one is finished |
| `BATCH.output.jsonl`, `BATCH.error.jsonl` | the provider's files, byte for byte |
| `BATCH.refused.jsonl` | answer lines of our own, for requests that got none from the provider |
| `BATCH.index` | where its answers are; only of large ones, and never needed |
| `BATCH.settled.json` | `SettledBatch`; by rename, after the successors' request files |
| `results.jsonl`, `errors.jsonl` and the rest of `PRODUCTS` | what is delivered; the summary last |
| `rejection.json` | why no request could be made of the file |

Pure. On the wire a request is named `JOB-ROW`: its row's number in the file, counted from 0. So an
answer finds its place by arithmetic, and one that is not ours is recognised. Raises nothing but
what msgspec raises on malformed JSON.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from promptspool.model import BatchId, Job, JobId, JobStatus

NULL = msgspec.Raw(b"null")

TABLES = tuple(
    f"results.{suffix}" for suffix in ("csv", "tsv", "xlsx", "parquet", "arrow", "feather")
)
"""The dropped table with answers beside its rows; a job has one of them at most."""

ANSWERS = "answers"
"""The folder with a file for each answer."""

NPY, PARQUET = "embeddings.npy", "embeddings.parquet"

KEPT, RETRY = "kept.jsonl", "retry.json"

UNREADABLE = "unreadable.txt"
"""The lines of the provider's files that are no JSON, as they came; only if there are any."""

PRODUCTS = (
    "results.jsonl",
    "errors.jsonl",
    *TABLES,
    NPY,
    PARQUET,
    ANSWERS,
    UNREADABLE,
    "summary.json",
)
"""All that a job may leave in `outbox/`, after its stem and a dot, in the order of publishing."""

_ROW = re.compile(r"0|[1-9][0-9]{0,17}")  # as `wire_id` writes it: one row, one name


def wire_id(job: JobId, row: int) -> str:
    """Name a request on the wire: at most 64 of `[a-zA-Z0-9_-]`.

    The strictest rule of any provider (Anthropic Message Batches, `custom_id`).
    """
    return f"{job}-{row}"


def row_of(job: JobId, custom_id: str) -> int | None:
    """Return the row that *custom_id* names, None if it is not one of *job*'s."""
    prefix, _, digits = custom_id.rpartition("-")

    return int(digits) if prefix == job and _ROW.fullmatch(digits) else None


class Claim(msgspec.Struct, kw_only=True, frozen=True):
    """What was known when a file was claimed; enough to rebuild its row."""

    job: JobId
    name: bytes
    stem: bytes
    profile: str
    provider: str | None
    base_url: str | None
    claimed_at: float
    size_bytes: int
    priority: int = 0
    refused: str | None = None
    """Why it is to be rejected unread; None for almost every file."""
    retry_of: JobId | None = None
    """The job whose failed requests it asks again; None for a dropped file."""

    def row(self, status: JobStatus = JobStatus.CLAIMED) -> Job:
        """Return the row of the job."""
        return Job(
            id=self.job,
            name=self.name,
            stem=self.stem,
            profile=self.profile,
            provider=self.provider,
            base_url=self.base_url,
            status=status,
            due_at=self.claimed_at,
            claimed_at=self.claimed_at,
            size_bytes=self.size_bytes,
            priority=self.priority,
            retry_of=self.retry_of,
        )


class Retry(msgspec.Struct, kw_only=True, frozen=True):
    """What a job that asks failed requests again has of the job before it."""

    job: JobId
    kept: int
    """Requests that were answered then, and are not asked again."""
    failed: int


class RowFault(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Why a row became no request."""

    code: str
    message: str
    key: str | None = None
    """The column or key that is at fault; None when there is no single one."""


class RowComplaint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One row at fault, for the person who dropped the file."""

    line: int
    code: str
    message: str
    key: str | None = None
    document: str | None = None


class Rejection(msgspec.Struct, kw_only=True, frozen=True):
    """Why no request was made of a file, for the person who dropped it."""

    file: str
    code: str
    reason: str
    fault_count: int = 0
    faults: list[RowComplaint] = []
    """Every row that is at fault, as far as the file was read."""


class RejectionHead(msgspec.Struct, kw_only=True, frozen=True):
    """A rejection without its faults, for those who need no more of it."""

    code: str
    reason: str


class PlannedRow(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One row of the dropped file."""

    id: str
    """The user's own id of it."""
    line: int
    """Where it begins in the dropped file, from 1."""
    document: str | None = None
    """What an archive calls it; None for a row of a file."""
    fault: RowFault | None = None


class Usage(msgspec.Struct, kw_only=True, frozen=True):
    """Tokens, as the provider counts them."""

    input: int = 0
    cached_input: int = 0
    """A part of `input`."""
    output: int = 0
    reasoning: int = 0
    """A part of `output`."""

    def __add__(self, other: Usage) -> Usage:
        """Return the sum."""
        return Usage(
            input=self.input + other.input,
            cached_input=self.cached_input + other.cached_input,
            output=self.output + other.output,
            reasoning=self.reasoning + other.reasoning,
        )


class _Digested(msgspec.Struct, kw_only=True, frozen=True):
    digest: str = ""
    """Of the request file, or of the dropped file; see `promptspool.digest`."""
    sha256: str | msgspec.UnsetType = msgspec.UNSET
    """What an earlier version noted in its place; never written."""

    def __post_init__(self) -> None:
        if self.sha256 is not msgspec.UNSET:
            msgspec.structs.force_setattr(self, "digest", self.sha256)
            msgspec.structs.force_setattr(self, "sha256", msgspec.UNSET)


class PlannedBatch(_Digested, kw_only=True, frozen=True):
    """One request file."""

    id: BatchId
    endpoint: str
    model: str
    requests: int
    size_bytes: int
    attempt: int = 0
    waits: int = 0
    reuploads: int = 0
    halvings: int = 0
    delay_s: float = 0.0
    """How long it waits before it is submitted."""
    estimated_input: int = 0
    """Tokens that its requests may hold; nought in a plan of an earlier version, as the next."""
    estimated_output: int = 0
    """Tokens that their answers may take."""
    input_file: str | None = None
    """The upload it shares with its parent; None when it needs its own."""


class Manifest(_Digested, kw_only=True, frozen=True):
    """A finished plan."""

    job: JobId
    source: str
    """The dropped file's name, for people."""
    format: str = "jsonl"
    """What it was read as."""
    table: str | None = None
    """The product that is the same table with answers beside its rows; None for what is none."""
    max_row_bytes: int = 190_000_000
    """Rows longer than this were faults."""
    notes: dict[str, str] = {}
    """What was found out about the file, for people."""
    prompt_columns: list[str] = []
    """The columns that were taken for the prompt where the profile has no template."""
    rows: int
    bad_rows: int
    give_up_at: float
    max_attempts: int
    profile: dict[str, Any]
    """The effective profile, as it was."""
    batches: list[PlannedBatch]
    kept: PlannedBatch | None = None
    """What an earlier job has answered: closed from the start, and never sent to anybody."""


class SettledBatch(msgspec.Struct, kw_only=True, frozen=True):
    """What became of a batch's requests; answered + failed + left = its requests."""

    batch: BatchId
    answered: int
    failed: int
    left: int
    successors: list[PlannedBatch]
    stopped: str | None = None
    """The error that hit so many requests that they were not asked again; None if none did."""
    tokens: Usage = Usage()
    """Of all its answers, also of those that failed or are asked for again: they are paid for."""


class BatchFault(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One complaint of the provider about a whole batch (OpenAI: `errors.data[]`)."""

    code: str | None = None
    message: str | None = None
    line: int | None = None
    """Of the request file, from 1."""
    param: str | None = None


class RequestName(msgspec.Struct):
    """A request line's name, for those who need no more of it."""

    custom_id: str


class AnswerLine(msgspec.Struct):
    """One line of an output or error file.

    Providers leave fields out (Azure: `id`; AIBrix: `error`; OGX: `response`), so all but the name
    may be missing. `Raw` keeps the answer byte for byte.
    """

    custom_id: str
    id: msgspec.Raw = NULL
    response: msgspec.Raw = NULL
    error: msgspec.Raw = NULL


class ResultLine(AnswerLine):
    """One line of `results.jsonl`: an answer line, and its value where the job has a schema."""

    parsed: msgspec.Raw = msgspec.Raw()


class ErrorLine(msgspec.Struct, kw_only=True):
    """One line of `errors.jsonl`: an answer line, how often it was tried, and its origin."""

    id: msgspec.Raw
    custom_id: str
    response: msgspec.Raw
    error: msgspec.Raw
    attempts: int
    source: dict[str, Any]
    """`file` and `line`."""
