"""Every name that is exported, with its labels and what it means.

Names are those of Prometheus' conventions: base units, `_total` for what only goes up. Whatever is
summed over its labels makes sense. Pure data; raises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from promptspool.model import BatchStatus, JobStatus, Work

SET_ASIDE = "set_aside"
"""The state of a job or batch that nothing will happen to before a person has looked."""

JOB_STATES = (
    *(
        status.value
        for status in JobStatus
        if status not in (JobStatus.DONE, JobStatus.REJECTED)  # by the million, and of no interest
    ),
    SET_ASIDE,
)

BATCH_STATES = (
    *(status.value for status in BatchStatus if status is not BatchStatus.CLOSED),
    SET_ASIDE,
)

WORKS = tuple(work.value for work in Work)

PAUSE_REASONS = ("throttled", "blocked", "outage", "unknown")
"""The words of `outcomes.Trouble`; unknown for a pause that began in an earlier process."""

POLL_OUTCOMES = ("changed", "unchanged", "failed")

REQUEST_OUTCOMES = ("answered", "failed")

TOKEN_KINDS = ("fresh_input", "cached_input", "visible_output", "reasoning_output")
"""None is a part of another, so that sums are right."""

ROUTES = frozenset(
    {
        "/batches",
        "/batches/{id}",
        "/batches/{id}/cancel",
        "/files",
        "/files/{id}",
        "/files/{id}/content",
    }
)
"""The calls that a dialect makes; any other is `OTHER`, whatever a provider's ids look like."""

OTHER = "other"

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper ends: a poll takes tenths of a second, an upload of 200 MB minutes."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One exported name; each is itself and equal to no other, so that looking it up is quick."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


# Counted by this process since it started.

CLAIMED_FILES = Family("promptspool_claimed_files_total", "Files taken from the inbox.")
DELIVERED_FILES = Family(
    "promptspool_delivered_files_total", "Files whose answers were put into the outbox."
)
REJECTED_FILES = Family(
    "promptspool_rejected_files_total", "Files of which no request could be made."
)
REQUESTS = Family(
    "promptspool_requests_total",
    "Requests that got their final answer, or finally failed.",
    ("provider", "model", "outcome"),
)
TOKENS = Family(
    "promptspool_tokens_total",
    "Tokens that the provider counted, of answers that are asked for again too.",
    ("provider", "model", "kind"),
)
COST = Family(
    "promptspool_cost_usd_total",
    "Estimated cost in US dollars at batch prices; a model without a known price is left out.",
    ("provider", "model"),
)
STANDARD_COST = Family(
    "promptspool_standard_cost_usd_total",
    "What the same tokens cost in US dollars without batches, estimated.",
    ("provider", "model"),
)
POLLS = Family(
    "promptspool_polls_total",
    "How often a batch was looked at, by whether it had moved on.",
    ("provider", "outcome"),
)
STAGE_FAILURES = Family(
    "promptspool_stage_failures_total",
    "Runs of a stage that failed and are tried again, by whose trouble it was.",
    ("stage", "trouble"),
)
PAUSED_SECONDS = Family(
    "promptspool_paused_seconds_total",
    "How long work for a provider was paused, whatever the work.",
    ("provider",),
)
HTTP_CALLS = Family(
    "promptspool_http_request_duration_seconds",
    "HTTP exchanges with providers, from the first byte sent to the last one read; the status is "
    "none where no answer came.",
    ("provider", "method", "route", "status"),
)

COUNTERS = (
    CLAIMED_FILES,
    DELIVERED_FILES,
    REJECTED_FILES,
    REQUESTS,
    TOKENS,
    COST,
    STANDARD_COST,
    POLLS,
    STAGE_FAILURES,
    PAUSED_SECONDS,
)
"""All of them but `HTTP_CALLS`, which is a histogram."""

# How things stand.

BUILD = Family("promptspool_build_info", "The version that runs.", ("version",))
STARTED = Family("promptspool_start_time_seconds", "When the daemon started, in Unix seconds.")
READABLE = Family(
    "promptspool_figures_readable",
    "1 if the database could be read for this page; else what comes from it is missing.",
)
PAUSED = Family(
    "promptspool_provider_paused",
    "1 while a provider is paused, for which work and why.",
    ("provider", "work", "reason"),
)
READY = Family("promptspool_ready", "1 while the daemon works: started, and not stopping.")
LOOP_AGE = Family(
    "promptspool_loop_age_seconds", "How long ago the dispatcher's loop last went round."
)
PROGRESSED = Family(
    "promptspool_last_progress_timestamp_seconds",
    "When a job or batch last moved on, in Unix seconds; missing if none ever did.",
)
JOBS = Family("promptspool_jobs", "Jobs that are not finished.", ("state",))
OLDEST_JOB = Family(
    "promptspool_oldest_job_age_seconds",
    "How long ago the oldest job of a state was claimed; 0 if there is none.",
    ("state",),
)
BATCHES = Family("promptspool_batches", "Batches that are not closed.", ("provider", "state"))
OLDEST_BATCH = Family(
    "promptspool_oldest_batch_age_seconds",
    "How long ago the oldest batch of a state was created, or its file claimed if it is not "
    "created yet; 0 if there is none.",
    ("provider", "state"),
)
LIVE_REQUESTS = Family(
    "promptspool_live_requests", "Requests in batches that are not closed.", ("provider", "state")
)
WAITING_FILES = Family("promptspool_waiting_files", "Files in the inbox that are not claimed yet.")
PENDING_NOTICES = Family(
    "promptspool_pending_notices", "Notices that no command or webhook has taken yet."
)
LANE_RUNS = Family(
    "promptspool_lane_runs",
    "Runs of stages under way; the lane of the disk has no provider.",
    ("lane", "provider"),
)
LANE_WIDTH = Family(
    "promptspool_lane_width", "How many runs a lane takes at once.", ("lane", "provider")
)
HALTED = Family(
    "promptspool_provider_halted", "1 while a person has paused a provider.", ("provider",)
)
SPEND = Family(
    "promptspool_spend_usd",
    "Estimated cost in US dollars of what was created in this day or month (UTC).",
    ("provider", "period"),
)
SPEND_LIMIT = Family(
    "promptspool_spend_limit_usd",
    "What may be spent in a day or month, in US dollars; missing without a limit.",
    ("provider", "period"),
)
ENQUEUED = Family(
    "promptspool_enqueued_tokens",
    "Input tokens in batches that have not ended, estimated.",
    ("provider", "model"),
)
ENQUEUED_LIMIT = Family(
    "promptspool_enqueued_tokens_limit",
    "How many input tokens may be enqueued; missing without a limit.",
    ("provider", "model"),
)
DISK_FREE = Family(
    "promptspool_disk_free_bytes", "Room on the file system of a folder.", ("folder",)
)
DISK_SIZE = Family(
    "promptspool_disk_size_bytes", "Size of the file system of a folder.", ("folder",)
)
DATABASE_SIZE = Family("promptspool_database_size_bytes", "Size of the database.")
