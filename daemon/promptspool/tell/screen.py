"""`status` for people: lines that fit a screen, however much there is to tell. Pure.

On a small screen what needs a person comes first, then jobs, then the table of ages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.text import Text

from promptspool.model import JobStatus, ProviderStatus, Work
from promptspool.pricing import usd
from promptspool.tell.figures import AGES_S
from promptspool.tell.layout import aligned, bar, cut, wrapped
from promptspool.tell.needs import short_id
from promptspool.tell.phases import WORDS, Phase
from promptspool.tell.words import MINUTE_S, brief, file_name, many, safe, short, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.tell.figures import JobLine, ProviderLine, Report
    from promptspool.tell.needs import Need

FEWEST_JOBS = 3
"""So many lines of jobs there are on the smallest screen."""

MOST_PIPED = 20
"""So many jobs, and needs, are listed where there is no screen to fill."""

WIDE = 110
"""From so many columns on there is room for ids and longer bars."""

_STYLES = {
    Phase.STALLED: "red",
    Phase.SET_ASIDE: "red",
    Phase.HELD: "yellow",
    Phase.CROWDED: "yellow",
    Phase.CANCELLING: "yellow",
    Phase.LOOKING_UP: "yellow",
    Phase.RUNNING: "green",
    Phase.FINALIZING: "green",
    Phase.COLLECTING: "green",
}


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where lines are shown."""

    width: int | None
    """Columns; None in a pipe, where nothing is cut."""
    height: int | None
    """Lines; None where there may be any number."""
    is_ascii: bool = False
    shows_all: bool = False
    """List everything, whatever the height."""

    @property
    def is_wide(self) -> bool:
        """Tell whether there is room for more than the least."""
        return self.width is None or self.width >= WIDE


def lines_of(report: Report, spool: str, place: Place) -> list[Text]:
    """Return the lines of one screen; *spool* is its folder as it may be shown."""
    head = [*_head(report, spool, place), *_providers(report, place)]
    foot = _foot(report)
    shape = _shape(report, place)
    needs = [_need(need, place) for need in report.needs]
    room = None if place.height is None or place.shows_all else place.height

    if room is None:
        most = None if place.shows_all else MOST_PIPED
        needed = _fitted(needs, most)
        jobs = _jobs(report, place, most)
    else:
        room -= len(head) + (len(foot) + 1 if foot else 0)
        least = min(len(report.jobs), FEWEST_JOBS) + 2
        needed = _fitted(needs, max((room - least - 2) // 2, 1), is_lines=True)
        room -= len(needed) + 2 if needed else 0
        shape = shape if room - len(shape) - 1 >= least else []
        room -= len(shape) + 1 if shape else 0
        jobs = _jobs(report, place, max(room - 2, FEWEST_JOBS))

    sections = [head, jobs, _titled("needs a person", needed), shape, foot]
    told = [section for section in sections if section]

    return [
        line
        for number, section in enumerate(told)
        for line in ([Text(), *section] if number else section)
    ]


def _titled(title: str, lines: Sequence[Text]) -> list[Text]:
    return [Text(title, style="bold"), *lines] if lines else []


def _fitted(
    entries: Sequence[Sequence[Text]], most: int | None, *, is_lines: bool = False
) -> list[Text]:
    """Return the lines of as many entries as there is room for, and how many are left out.

    *most* is a number of entries, or of lines.
    """
    shown: list[Text] = []
    left = len(entries)

    for number, entry in enumerate(entries):
        used = len(shown) + len(entry) if is_lines else number + 1

        if most is not None and used > most and shown:
            break

        shown.extend(entry)
        left -= 1

    return [*shown, Text(f"  and {left:,} more", style="dim")] if left else shown


# What is above the jobs.


def _head(report: Report, spool: str, place: Place) -> list[Text]:
    daemon, now = report.daemon, report.now
    line = Text.assemble(("promptspool", "bold"), "  ")

    match daemon.state:
        case "up":
            line.append("up", style="bold green")
            line.append(f" for {span(now - (daemon.started_at or now))}")
        case "starting":
            line.append("starting", style="bold yellow")
        case _:
            line.append("down", style="bold red")
            seen = f", last active {span(now - daemon.last_at)} ago" if daemon.last_at else ""
            line.append(seen)

    line.append(f"  {spool}", style="dim")
    lines = [line]

    if daemon.halted_at is not None:
        lines.append(
            Text(
                f"paused by hand for {span(now - daemon.halted_at)}: nothing is claimed or sent; "
                f"`promptspool resume` ends that",
                style="yellow",
            )
        )

    if report.database == "none":
        lines.append(Text("nothing was ever run here"))

    return [cut(line, place.width) for line in lines]


def _providers(report: Report, place: Place) -> list[Text]:
    lines: list[Text] = []
    indent = max((len(line.state.id) for line in report.providers), default=0) + 2

    for provider in report.providers:
        first, *rest = [_money(provider), *_pauses(provider, report.now), *_enqueued(provider)]
        name = Text(provider.state.id.ljust(indent))
        lines.append(cut(name + first, place.width))
        lines.extend(cut(Text(" " * indent) + line, place.width) for line in rest)

    return lines


def _money(provider: ProviderLine) -> Text:
    spent = provider.spending
    limit = "" if provider.max_day_usd is None else f" of {usd(provider.max_day_usd)}"
    month = "" if provider.max_month_usd is None else f" of {usd(provider.max_month_usd)}"

    return Text(
        f"today {usd(spent.day_usd)}{limit}, saved {usd(spent.day_saved_usd)} (estimate); "
        f"{short(spent.day_input_tokens)} tokens in, {short(spent.day_output_tokens)} out; "
        f"month {usd(spent.month_usd)}{month}"
    )


def _pauses(provider: ProviderLine, now: float) -> list[Text]:
    state = provider.state
    lines: list[Text] = []

    if state.halted_at is not None:
        lines.append(
            Text(
                f"paused by hand for {span(now - state.halted_at)}: nothing is submitted; "
                f"`promptspool resume {state.id}` ends that",
                style="yellow",
            )
        )

    if state.pauses:
        work = "everything" if state.paused_work is Work.ALL else state.paused_work.value
        left = (state.paused_until or now) - now
        when = f"paused for another {span(left)}" if left > 0 else "paused, tried again now"
        lines.append(Text(f"{work} {when}: {safe(state.why or '')}", style="yellow"))

    if state.status is ProviderStatus.RECALLING:
        why = f": {safe(state.why)}" if state.why and not state.pauses else ""
        lines.append(Text(f"looking through what runs there before anything is submitted{why}"))

    return lines


def _enqueued(provider: ProviderLine) -> list[Text]:
    known = [
        f"{safe(model)} {short(provider.enqueued.get(model, 0))} of {short(limit)}"
        for model, limit in provider.max_enqueued.items()
    ]

    return [Text(f"enqueued tokens: {', '.join(known)}")] if known else []


# Jobs.


def _jobs(report: Report, place: Place, most: int | None) -> list[Text]:
    """Return the table of jobs in at most *most* lines and its head; None for all of them."""
    if not report.jobs:
        return [Text("no jobs in flight", style="dim")] if report.database == "read" else []

    shown = list(report.jobs)

    if most is not None and len(shown) > most:
        shown = _telling(shown, most - 1)

    columns = ["job", "", "", "requests", "age", "next", "phase"]
    columns = [*columns[:1], "id", *columns[1:]] if place.is_wide else columns
    rows = [[Text(name, style="bold") for name in columns]]
    rows += [_job(line, report.now, place) for line in shown]
    width = place.width
    widest = {} if width is None else {0: max(width // 4, 12)}
    lines = aligned(
        rows, right={number + place.is_wide for number in (2, 3, 4, 5)}, widest=widest, width=width
    )
    ids = {line.job.id for line in shown}
    left = [line for line in report.jobs if line.job.id not in ids]

    if left:
        done, total = sum(line.done for line in left), sum(line.total or 0 for line in left)
        more = f"and {len(left):,} more, {done:,} of {total:,} requests done; --all lists them"
        lines.append(cut(Text(more, style="dim"), width))

    return lines


def _telling(jobs: Sequence[JobLine], most: int) -> list[JobLine]:
    """Return the oldest and the largest of *jobs*, half of each, in their order."""
    working = [line for line in jobs if line.job.status is not JobStatus.DELIVERED]
    oldest = working[: (most + 1) // 2]
    ids = {line.job.id for line in oldest}
    rest = [line for line in jobs if line.job.id not in ids]
    largest = sorted(rest, key=lambda line: (line.total or 0) - line.done, reverse=True)
    chosen = {line.job.id for line in [*oldest, *largest[: most - len(oldest)]]}

    return [line for line in jobs if line.job.id in chosen]


def _job(line: JobLine, now: float, place: Place) -> list[Text]:
    is_known = line.total is not None
    share = line.done / line.total if line.total else float(is_known)
    size = 6 if place.width is None or not place.is_wide else min(8 + (place.width - WIDE) // 4, 24)
    drawn = Text() if place.width is None else bar(share, size, is_ascii=place.is_ascii)
    phase = next(iter(line.phases), None)
    requests = f"{_count(line.done, place)}/{_count(line.total or 0, place)}"
    next_s = None if line.next_at is None else line.next_at - now
    tries = f" (failed {line.job.failures}x)" if line.job.failures else ""
    cells = [
        Text(file_name(line.job.name)),
        drawn,
        Text(f"{int(share * 100)}%" if is_known else "-"),
        Text(requests if is_known else "-"),
        Text((span if place.is_wide else brief)(now - line.job.claimed_at)),
        Text("-" if next_s is None else "now" if next_s <= 0 else span(next_s)),
        Text(line.text + tries, style=_STYLES.get(phase, "") if phase else ""),
    ]

    return [cells[0], Text(short_id(line.job.id)), *cells[1:]] if place.is_wide else cells


def _count(number: int, place: Place) -> str:
    return f"{number:,}" if place.is_wide else short(number)


# What is below the jobs.


def _need(need: Need, place: Place) -> list[Text]:
    lines = wrapped(Text(f"! {need.text}"), place.width, most=2, indent=2)
    lines[0].stylize("bold red", 0, 1)

    if need.commands:
        lines.append(cut(Text(f"    {'  or  '.join(need.commands)}", style="dim"), place.width))

    return lines


def _shape(report: Report, place: Place) -> list[Text]:
    """Return how many batches are how old in each phase: what is stuck stands out on the right."""
    if not report.shape:
        return []

    ends = [f"{end / MINUTE_S:.0f}" for end in AGES_S]
    rows = [
        [
            Text("batches by age in minutes", style="bold"),
            *(Text(head, style="bold") for head in ("all", *ends, f"{ends[-1]}+")),
        ]
    ]

    for phase, counts in report.shape.items():
        figures = [Text(f"{count:,}", style="" if count else "dim") for count in counts]
        rows.append([Text(f"  {WORDS[phase][0]}"), Text(f"{sum(counts):,}"), *figures])

    columns = range(1, len(AGES_S) + 3)
    gap = 1 if place.width is not None and not place.is_wide else 2

    return aligned(rows, right=columns, width=place.width, gap=gap)


def _foot(report: Report) -> list[Text]:
    rejected = [one for one in report.ended if one.status is JobStatus.REJECTED]
    delivered = [one for one in report.ended if one.status is not JobStatus.REJECTED]

    if not report.ended:
        return []

    results = sum(one.results or 0 for one in delivered)
    errors = sum(one.errors or 0 for one in delivered)

    return [
        Text(
            f"last 24 hours: {many(len(delivered), 'job')} delivered ({many(results, 'answer')}, "
            f"{many(errors, 'error')}), {len(rejected):,} rejected",
            style="dim",
        )
    ]
