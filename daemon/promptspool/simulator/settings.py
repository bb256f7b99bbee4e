"""What a simulated provider is like: its durations, limits and models.

Nothing here touches a disk, a socket or a clock, and nothing here raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW_S: Final = 86_400.0
"""The only completion window there is, `24h` (openai-openapi, `CreateBatchRequest`)."""

RETENTION_S: Final = 30 * 86_400
"""How long a batch file is kept unless asked otherwise (openai-openapi, `POST /files`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """Durations are virtual seconds, those of the simulator's clock.

    *run_jitter* spreads the run of each batch over `run_s * (1 ± run_jitter)`, the same way
    for the same batch id. *enqueued_tokens* limits prompt tokens by model name, over all
    batches not ended; a model without an entry has no limit. *models* is None when every
    model exists. *cancelled_lines* is whether a request that a cancel kept from running gets
    a `batch_cancelled` line or no line at all. *clock_offset_s* is how far the provider's clock
    goes ahead of that of its clients, in `Date`, in `created_at` and everywhere. Two simulators
    with one *seed* hand out the same ids in the same order.

    Sources: OpenAI Batch guide for 50,000 requests, 200 MB, 50,000 embedding inputs and
    2,000 batches an hour.
    """

    validate_s: float = 5.0
    run_s: float = 600.0
    run_jitter: float = 0.0
    finalize_s: float = 10.0
    cancel_s: float = 30.0
    window_s: float = WINDOW_S
    max_requests: int = 50_000
    max_bytes: int = 200_000_000
    max_embedding_inputs: int = 50_000
    max_creates_per_hour: int = 2_000
    max_reported_errors: int = 50
    embedding_dimensions: int = 8
    enqueued_tokens: Mapping[str, int] = field(default_factory=dict)
    models: frozenset[str] | None = None
    cancelled_lines: bool = True
    count_requests: bool = True
    clock_offset_s: float = 0.0
    seed: str = "simulator"
