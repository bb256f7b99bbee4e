"""The documented objects of the Files and Batch APIs, as they go over the wire.

Source: `openapi.yaml` of openai/openai-openapi, `OpenAIFile`, `Batch`, `ListBatchesResponse`.
Optional fields are sent as null, which is what the real service does.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
TERMINAL: Final[frozenset[Status]] = frozenset({"failed", "completed", "expired", "cancelled"})

Endpoint = Literal[
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
]
ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
)


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A stored file; times are whole Unix seconds."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """One reason a batch failed validation; *line* counts input lines from 1."""

    code: str | None = None
    line: int | None = None
    message: str | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope of validation errors."""

    object: str = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Progress; *total* is 0 while validating."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Where the prompt tokens came from."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Where the answer tokens went."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all successful requests of a batch."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it looks at one moment; times are whole Unix seconds."""

    id: str
    object: str = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | list[BatchError] | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = None
    metadata: dict[str, str] | None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of files."""

    object: str = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of batches; an object in place of a batch is one that was tampered with."""

    object: str = "list"
    data: list[Batch | dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """The receipt of a deletion."""

    id: str
    object: str = "file"
    deleted: bool = True
