"""`status --json`: one object, stable under its `version`.

Times are ISO 8601 in UTC, to the millisecond, or null; money is USD and an estimate; spans end in
`_s` and are seconds. Later promptspools may add keys, and change none without another version.

| key | what |
|---|---|
| `version` | 1 |
| `at` | the moment that all of it is of |
| `spool` | the folder |
| `database` | `read`; `none` before the first start; `unreadable`, and `needs` says why |
| `daemon.state` | `up`, `starting` or `down` |
| `daemon.started_at`, `daemon.ready_at` | its latest start; when it was ready, null if it is not |
| `daemon.halted_at` | since when a person lets it take and submit nothing; null if nobody does |
| `daemon.changed_at` | when anything last changed its status |
| `jobs[]` | jobs in flight, the oldest first |
| `jobs[].id`, `.file`, `.profile`, `.provider` | `provider` is null for an unknown profile |
| `jobs[].status` | claimed, planned, held, settled, delivered or unusable |
| `jobs[].phases` | live batches by phase, or the job's own phase with 1 |
| `jobs[].text` | the phases in words, for people: it may change |
| `jobs[].requests`, `.requests_done`, `.requests_retried` | `requests` is null until planned |
| `jobs[].batches`, `.batches_live` | all so far, and those that are not closed |
| `jobs[].claimed_at`, `.next_at` | `next_at`: the next poll, or else the next step; null if none |
| `jobs[].estimated_usd`, `.cost_usd` | as planned; of the batches that are closed |
| `jobs[].failures`, `.why` | of the present step in a row, and the latest reason; null if none |
| `ages.columns_s` | the upper ends of the columns; one more column has what is older |
| `ages.phases` | live batches by phase, in these columns |
| `providers[]` | every provider that was ever used |
| `providers[].id`, `.status` | `recalling` until it is known what runs there, then `ready` |
| `providers[].paused[]` | of uploads, creations, downloads, all: what nothing is done of now |
| `providers[].paused_until`, `.paused_since`, `.why` | of a pause of the daemon's own, or null |
| `providers[].halted_at` | since when a person lets nothing be submitted to it, or null |
| `providers[].today.usd`, `.saved_usd`, `.input_tokens`, `.output_tokens` | of what was submitted |
| `providers[].month.usd` | today and the month are UTC's |
| `providers[].limits.day_usd`, `.month_usd` | as configured, or null |
| `providers[].enqueued_tokens`, `.limits.enqueued_tokens` | by model |
| `needs[]` | what needs a person; the exit code is 1 if there is anything |
| `needs[].kind` | daemon_down, database, held, set_aside, stalled, blocked, rejected or notice |
| `needs[].text`, `.commands[]`, `.job`, `.batch`, `.provider`, `.since` | null if there is none |
| `ended[]` | jobs that were delivered or rejected in the last 24 hours, the oldest first |
| `ended[].id`, `.file`, `.outcome`, `.at` | `outcome`: delivered or rejected |
| `ended[].results`, `.errors`, `.cost_usd`, `.standard_usd`, `.why` | null where not known |

Pure; raises nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptspool.model import JobStatus
from promptspool.tell.figures import AGES_S
from promptspool.tell.words import file_name, iso, safe

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.store.overview import Ended
    from promptspool.tell.figures import JobLine, ProviderLine, Report
    from promptspool.tell.needs import Need

VERSION = 1


def document(report: Report, spool: Path) -> dict[str, Any]:
    """Return the object, ready for JSON."""
    daemon = report.daemon

    return {
        "version": VERSION,
        "at": iso(report.now),
        "spool": str(spool),
        "database": report.database,
        "daemon": {
            "state": daemon.state,
            "started_at": iso(daemon.started_at),
            "ready_at": iso(daemon.ready_at),
            "halted_at": iso(daemon.halted_at),
            "changed_at": iso(daemon.last_at),
        },
        "jobs": [_job(line) for line in report.jobs],
        "ages": {
            "columns_s": list(AGES_S),
            "phases": {phase.value: list(counts) for phase, counts in report.shape.items()},
        },
        "providers": [_provider(line) for line in report.providers],
        "needs": [_need(need) for need in report.needs],
        "ended": [_ended(ended) for ended in report.ended],
    }


def _job(line: JobLine) -> dict[str, Any]:
    job = line.job

    return {
        "id": job.id,
        "file": file_name(job.name),
        "profile": safe(job.profile),
        "provider": job.provider,
        "status": job.status.value,
        "phases": {phase.value: count for phase, count in line.phases.items()},
        "text": line.text,
        "requests": line.total,
        "requests_done": line.done,
        "requests_retried": line.retried,
        "batches": line.batches,
        "batches_live": line.live_batches,
        "claimed_at": iso(job.claimed_at),
        "next_at": iso(line.next_at),
        "estimated_usd": job.estimated_usd,
        "cost_usd": line.cost_usd,
        "failures": job.failures,
        "why": None if job.why is None else safe(job.why),
    }


def _provider(line: ProviderLine) -> dict[str, Any]:
    state, spending = line.state, line.spending

    return {
        "id": state.id,
        "status": state.status.value,
        "paused": sorted(work.value for work in line.stopped),
        "paused_until": iso(state.paused_until),
        "paused_since": iso(state.paused_at),
        "why": None if state.why is None else safe(state.why),
        "halted_at": iso(state.halted_at),
        "today": {
            "usd": spending.day_usd,
            "saved_usd": spending.day_saved_usd,
            "input_tokens": spending.day_input_tokens,
            "output_tokens": spending.day_output_tokens,
        },
        "month": {"usd": spending.month_usd},
        "enqueued_tokens": dict(line.enqueued),
        "limits": {
            "day_usd": line.max_day_usd,
            "month_usd": line.max_month_usd,
            "enqueued_tokens": dict(line.max_enqueued),
        },
    }


def _need(need: Need) -> dict[str, Any]:
    return {
        "kind": need.kind,
        "text": need.text,
        "commands": list(need.commands),
        "job": need.job,
        "batch": need.batch,
        "provider": need.provider,
        "since": iso(need.since),
    }


def _ended(ended: Ended) -> dict[str, Any]:
    is_rejected = ended.status in (JobStatus.REJECTED, JobStatus.UNUSABLE)

    return {
        "id": ended.id,
        "file": file_name(ended.name),
        "outcome": "rejected" if is_rejected else "delivered",
        "at": iso(ended.ended_at),
        "results": ended.results,
        "errors": ended.errors,
        "cost_usd": ended.cost_usd,
        "standard_usd": ended.standard_usd,
        "why": None if ended.why is None else safe(ended.why),
    }
