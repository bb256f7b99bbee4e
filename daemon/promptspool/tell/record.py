"""`show --json`: one object, stable under its `version`, as `document` is.

| key | what |
|---|---|
| `version` | 1 |
| `job.id`, `.file`, `.stem`, `.profile`, `.provider`, `.status` | `stem`: the name of its results |
| `job.priority`, `.size_bytes`, `.retry_of` | `retry_of`: the job whose errors it asks again |
| `job.claimed_at`, `.planned_at`, `.delivered_at`, `.cancelled_at`, `.released_at` | null if not |
| `job.requests`, `.bad_rows`, `.results`, `.errors` | null until planned, or delivered |
| `job.estimated_usd`, `.cost_usd`, `.standard_usd` | estimates, or null |
| `job.failures`, `.why` | of the present step, and the latest reason |
| `batches[]` | parents first |
| `batches[].id`, `.parent`, `.remote_id`, `.status`, `.remote_status`, `.model`, `.endpoint` | |
| `batches[].requests`, `.attempt`, `.completed`, `.failed` | the last two in the provider's count |
| `batches[].answered`, `.unanswered` | for good; nought until it is closed |
| `batches[].input_tokens`, `.cached_tokens`, `.output_tokens`, `.reasoning_tokens` | |
| `batches[].cost_usd`, `.standard_usd`, `.created_at`, `.ended_at`, `.next_at` | null if unknown |
| `batches[].complaints[]` | `code`, `message` and `line` of its request file |
| `batches[].why` | the latest failure, or null |
| `errors.is_final` | false while some of these requests are asked again |
| `errors.causes[]` | `code`, `count`, `message`, `request_ids[]`, `line` of the dropped file |
| `errors.others`, `.note` | errors of further causes; what could not be read |
| `history[]` | `row`, `at`, `was`, `became`, `why` |
| `notices[]` | `event`, `target`, `status`, `failures`, `made_at`, `why` |
| `files[]`, `advice[]` | where it is; what to do, in words |

Pure; raises nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptspool.collect.remedy import faults_of
from promptspool.tell.document import VERSION
from promptspool.tell.words import file_name, iso, safe

if TYPE_CHECKING:
    from promptspool.model import Batch, Job
    from promptspool.tell.causes import Causes
    from promptspool.tell.story import Story


def record(story: Story) -> dict[str, Any]:
    """Return the object, ready for JSON."""
    return {
        "version": VERSION,
        "job": _job(story.job),
        "batches": [_batch(batch) for batch in story.batches],
        "errors": _errors(story.causes),
        "history": [
            {
                "row": step.row,
                "at": iso(step.at),
                "was": step.was,
                "became": step.became,
                "why": _text(step.why),
            }
            for step in story.steps
        ],
        "notices": [
            {
                "event": notice.event,
                "target": notice.target,
                "status": notice.status.value,
                "failures": notice.failures,
                "made_at": iso(notice.made_at),
                "why": _text(notice.why),
            }
            for notice in story.notices
        ],
        "files": [safe(str(path)) for path in story.files],
        "advice": list(story.advice),
    }


def _text(text: str | None) -> str | None:
    return None if text is None else safe(text)


def _job(job: Job) -> dict[str, Any]:
    moments = ("claimed_at", "planned_at", "delivered_at", "cancelled_at", "released_at")
    plain = ("requests", "bad_rows", "results", "errors", "estimated_usd", "cost_usd")

    return {
        "id": job.id,
        "file": file_name(job.name),
        "stem": file_name(job.stem),
        "profile": safe(job.profile),
        "provider": job.provider,
        "status": job.status.value,
        "priority": job.priority,
        "size_bytes": job.size_bytes,
        "retry_of": job.retry_of,
        **{name: iso(getattr(job, name)) for name in moments},
        **{name: getattr(job, name) for name in (*plain, "standard_usd", "failures")},
        "why": _text(job.why),
    }


def _batch(batch: Batch) -> dict[str, Any]:
    counts = ("requests", "attempt", "completed", "failed", "answered", "unanswered")
    tokens = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")

    return {
        "id": batch.id,
        "parent": batch.parent,
        "remote_id": _text(batch.remote_id),
        "status": batch.status.value,
        "remote_status": batch.remote_status,
        "model": safe(batch.model),
        "endpoint": batch.endpoint,
        **{name: getattr(batch, name) for name in (*counts, *tokens, "cost_usd", "standard_usd")},
        "created_at": iso(batch.created_at),
        "ended_at": iso(batch.ended_at),
        "next_at": iso(batch.due_at),
        "complaints": [
            {"code": _text(fault.code), "message": _text(fault.message), "line": fault.line}
            for fault in faults_of(batch)
        ],
        "why": _text(batch.why),
    }


def _errors(causes: Causes) -> dict[str, Any]:
    return {
        "is_final": causes.is_final,
        "causes": [
            {
                "code": cause.code,
                "count": cause.count,
                "message": cause.words,
                "request_ids": list(cause.request_ids),
                "line": cause.line,
            }
            for cause in causes.found
        ],
        "others": causes.others,
        "note": causes.note,
    }
