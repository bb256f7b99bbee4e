"""`show` for people: one job from its drop to its end. Pure; raises nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.text import Text

from promptspool.collect.remedy import faults_of
from promptspool.model import BatchStatus, JobStatus, NoticeStatus
from promptspool.pricing import usd
from promptspool.tell.layout import aligned
from promptspool.tell.phases import WORDS, phase_of
from promptspool.tell.story import relative
from promptspool.tell.words import file_name, many, moment, safe, short, span, time_of_day

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from promptspool.model import Batch, BatchId, Job
    from promptspool.spool import Spool
    from promptspool.tell.causes import Cause, Causes
    from promptspool.tell.figures import JobLine
    from promptspool.tell.story import Story

MOST_COMPLAINTS = 3
"""So many complaints about one batch are shown."""


def page_of(story: Story, spool: Spool, *, now: float) -> list[Text]:
    """Return the lines, of any length."""
    sections = [
        _head(story, now),
        _titled("batches", _batches(story, now)),
        _titled(_errors_title(story.causes), _errors(story.causes)),
        _titled("history", _history(story)),
        _titled("notices", _notices(story)),
        _titled("files", [Text(f"  {relative(path, spool)}") for path in story.files]),
        _titled("what to do", [Text(f"  {advice}", style="yellow") for advice in story.advice]),
    ]

    return [
        line
        for number, section in enumerate(section for section in sections if section)
        for line in ([Text(), *section] if number else section)
    ]


def _titled(title: str, lines: Sequence[Text]) -> list[Text]:
    return [Text(title, style="bold"), *lines] if lines else []


# The job.


def _head(story: Story, now: float) -> list[Text]:
    job = story.job
    lines = [
        Text.assemble((file_name(job.name), "bold"), f"  {job.id}"),
        Text(f"  {_state(story)}", style=_style(job)),
        Text(
            f"  dropped {moment(job.claimed_at)} ({span(now - job.claimed_at)} ago), {_origin(job)}"
        ),
    ]
    why = safe(job.why or "")

    if why and why not in lines[1].plain:
        lines.append(Text(f"  {why}", style=_style(job)))

    lines += [Text(f"  {told}") for told in (_requests(story.line), _money(job)) if told]

    return lines


def _state(story: Story) -> str:
    job = story.job

    if job.delivered_at is not None:
        took = span(job.delivered_at - job.claimed_at)

        return f"delivered {moment(job.delivered_at)}, {took} after it was dropped"

    failed = f" (failed {many(job.failures, 'time')})" if job.failures else ""
    told = story.line.text

    if job.status is JobStatus.REJECTED:
        return f"{job.status.value}{failed}"

    # What is held says so itself.
    head = "" if told.startswith(job.status.value) else f"{job.status.value}: "

    return f"{head}{told}{failed}"


def _style(job: Job) -> str:
    match job.status:
        case JobStatus.REJECTED | JobStatus.UNUSABLE:
            return "red"
        case JobStatus.HELD:
            return "yellow"
        case JobStatus.DELIVERED | JobStatus.DONE:
            return "yellow" if job.errors else "green"
        case _:
            return ""


def _origin(job: Job) -> str:
    size = f"{job.size_bytes:,} bytes"
    parts = [size, f"profile {safe(job.profile)}", f"provider {job.provider or 'unknown'}"]

    if job.priority:
        parts.append(f"priority {job.priority}")

    if job.retry_of is not None:
        parts.append(f"asks again what failed of {job.retry_of}")

    return ", ".join(parts)


def _requests(line: JobLine) -> str:
    job = line.job

    if job.requests is None:
        return ""

    bad = f" ({many(job.bad_rows, 'bad row')})" if job.bad_rows else ""
    told = f"{many(job.requests, 'request')}{bad}"

    if job.results is not None:
        return f"{told}: {job.results:,} answered, {job.errors or 0:,} failed"

    return f"{told}, {line.done:,} of them done" if line.live_batches else told


def _money(job: Job) -> str:
    if job.cost_usd is not None:
        without = "" if job.standard_usd is None else f", {usd(job.standard_usd)} without batches"

        return f"cost {usd(job.cost_usd)}{without} (estimate)"

    return "" if job.estimated_usd is None else f"may cost {usd(job.estimated_usd)} (estimate)"


# Its batches, each under the one whose leftovers it holds.


def _batches(story: Story, now: float) -> list[Text]:
    children: Mapping[BatchId | None, list[Batch]] = defaultdict(list)
    known = {batch.id for batch in story.batches}

    for batch in story.batches:
        parent = batch.parent if batch.parent in known else None
        children[parent].append(batch)

    if not story.batches:
        return []

    is_held = story.job.status is JobStatus.HELD
    ordered: list[tuple[int, Batch]] = []
    pending = [(0, batch) for batch in reversed(children[None])]

    while pending:
        depth, batch = pending.pop()
        ordered.append((depth, batch))
        pending.extend((depth + 1, child) for child in reversed(children[batch.id]))

    rows = [_batch(batch, depth, now, is_held=is_held) for depth, batch in ordered]
    lines = aligned(rows, right={5})

    return [
        line
        for (depth, batch), row in zip(ordered, lines, strict=True)
        for line in (row, *_complaints(batch, depth))
    ]


def _batch(batch: Batch, depth: int, now: float, *, is_held: bool) -> list[Text]:
    is_closed = batch.status is BatchStatus.CLOSED
    phase = phase_of(batch, now=now, is_held=is_held, stopped=())
    state = str(batch.remote_status or "closed") if is_closed else WORDS[phase][0]
    name = batch.id.removeprefix(batch.job)
    tokens = f"{short(batch.input_tokens)}+{short(batch.output_tokens)} tokens"

    return [
        Text(f"{'  ' * (depth + 1)}{name}"),
        Text(safe(batch.remote_id or "-")),
        Text(state),
        Text(_counts(batch)),
        Text(safe(batch.model)),
        Text(tokens if batch.input_tokens or batch.output_tokens else ""),
        Text("" if batch.cost_usd is None else usd(batch.cost_usd)),
        Text(_times(batch, now)),
    ]


def _counts(batch: Batch) -> str:
    if batch.status is not BatchStatus.CLOSED:
        return f"{batch.completed + batch.failed:,}/{batch.requests:,}"

    left = batch.requests - batch.answered - batch.unanswered
    parts = [f"{batch.answered:,}/{batch.requests:,}"]
    parts += [f"{batch.unanswered:,} failed"] if batch.unanswered else []
    parts += [f"{left:,} passed on"] if left else []

    return ", ".join(parts)


def _times(batch: Batch, now: float) -> str:
    asked = f"attempt {batch.attempt + 1}" if batch.attempt else ""

    if batch.created_at is None:
        took = ""
    elif batch.ended_at is not None:
        took = f"took {span(batch.ended_at - batch.created_at)}"
    else:
        took = f"for {span(now - batch.created_at)}"

    return ", ".join(filter(None, (asked, took)))


def _complaints(batch: Batch, depth: int) -> list[Text]:
    """Return what the provider says against a batch, and what failed last, below it."""
    indent = "  " * (depth + 3)
    faults = faults_of(batch)
    told = [
        f"{safe(fault.code or 'error')}: {safe(' '.join((fault.message or '').split()))}"
        + ("" if fault.line is None else f" (line {fault.line} of its request file)")
        for fault in faults[:MOST_COMPLAINTS]
    ]

    if len(faults) > MOST_COMPLAINTS:
        told.append(f"and {len(faults) - MOST_COMPLAINTS} more complaints")

    if batch.why and batch.status is not BatchStatus.CLOSED:
        tries = f" (failed {many(batch.failures, 'time')})" if batch.failures else ""
        told.append(f"{safe(batch.why)}{tries}")

    return [Text(f"{indent}{line}", style="yellow") for line in told]


# What failed, and what happened.


def _errors_title(causes: Causes) -> str:
    return "errors" if causes.is_final else "errors so far; some of these requests are asked again"


def _errors(causes: Causes) -> list[Text]:
    rows = [[Text(f"  {cause.count:,}"), Text(cause.code), _words(cause)] for cause in causes.found]
    lines = aligned(rows, right={0}) if rows else []

    if causes.others:
        lines.append(Text(f"  and {causes.others:,} of further kinds", style="dim"))

    return [*lines, Text(f"  {causes.note}", style="yellow")] if causes.note else lines


def _words(cause: Cause) -> Text:
    where = [] if cause.line is None else [f"first in line {cause.line:,}"]
    asked = [f"request {', '.join(cause.request_ids)}"] if cause.request_ids else []
    more = f"  ({'; '.join([*where, *asked])})" if where or asked else ""

    return Text.assemble(cause.words or "(the provider gave no reason)", (more, "dim"))


def _history(story: Story) -> list[Text]:
    day = None
    rows: list[list[Text]] = []

    for step in story.steps:
        name = safe(step.row.removeprefix(story.job.id))
        today = moment(step.at)[:10]
        at = time_of_day(step.at)
        shown = at if today == day else f"{today} {at}"
        day = today
        rows.append(
            [
                Text(f"  {shown}", style="dim"),
                Text(name.removeprefix("/") if name else "the job"),
                Text(step.became),
                Text(safe(step.why or ""), style="dim"),
            ]
        )

    return aligned(rows, right={0}) if rows else []


def _notices(story: Story) -> list[Text]:
    styles = {NoticeStatus.DROPPED: "red", NoticeStatus.SENT: "green"}

    return [
        Text(
            f"  {safe(notice.event)} to the {safe(notice.target)}: {notice.status.value}"
            + (f", failed {many(notice.failures, 'time')}" if notice.failures else "")
            + (f": {safe(notice.why)}" if notice.why else ""),
            style=styles.get(notice.status, ""),
        )
        for notice in story.notices
    ]
