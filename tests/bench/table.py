"""What is shown of the figures: a table for people, JSON for programs, and the README's table."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.harness import Summary

HEAD = ("#", "work", "goal", "figure", "least … most", "RSS", "CPU", "times as good as", "met")
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
MB = 1_000_000


def lines_of(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of a document's table, a line for each case, in the order of the rows."""
    ordered = sorted(found["rows"], key=lambda one: one["row"] or math.inf)
    missing = [("", name, "", "skipped", why, *[""] * 4) for name, why in found["skipped"].items()]

    return [*map(_cells, ordered), *missing]


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    ratios = ", ".join(f"{shown(ratio)} {name}" for name, ratio in found["ratios"].items())
    is_spread = len(found["runs"]) > 1
    rss_bytes, cpu_s = found["rss_bytes"], found["cpu_s"]

    return (
        str(found["row"] or ""),
        found["name"],
        found["goal"],
        f"{shown(found['median'])} {found['unit']}",
        f"{shown(found['least'])} … {shown(found['most'])}" if is_spread else "",
        "" if rss_bytes is None else f"{rss_bytes / MB:.0f} MB",
        "" if cpu_s is None else f"{shown(cpu_s)} s",
        ratios,
        {None: "", True: "yes", False: "no"}[found["is_met"]],
    )


def merged(earlier: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return *found* with those rows of an *earlier* document that were not measured again."""
    known = {one["name"] for one in found["rows"]}
    kept = [one for one in earlier["rows"] if one["name"] not in known]
    names = known | set(found["skipped"]) | {one["name"] for one in kept}
    skipped = {name: why for name, why in earlier["skipped"].items() if name not in names}

    return found | {
        "rows": [*kept, *found["rows"]],
        "skipped": skipped | found["skipped"],
        "seconds": round(earlier["seconds"] + found["seconds"], 1),
    }


def shown(value: float) -> str:
    """Return a number with three digits that count, and commas."""
    if not value or not math.isfinite(value):
        return f"{value:g}"

    digits = max(0, 2 - math.floor(math.log10(abs(value))))

    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.{digits}f}"


def plain(lines: Sequence[tuple[str, ...]]) -> str:
    """Return the table for a terminal."""
    rows = [HEAD, *lines]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]

    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """Return the table as Markdown has them."""
    rows = [HEAD, tuple("---" for _ in HEAD), *lines]

    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def document(
    results: Sequence[Summary],
    skipped: Mapping[str, str],
    *,
    machine: Mapping[str, str],
    is_small: bool,
    seconds: float,
) -> dict[str, Any]:
    """Return all figures as JSON has them."""
    return {
        "machine": dict(machine),
        "is_small": is_small,
        "seconds": round(seconds, 1),
        "skipped": dict(skipped),
        "rows": [_as_json(found) for found in results],
    }


def _as_json(found: Summary) -> dict[str, Any]:
    return {
        "row": found.case.row,
        "name": found.case.name,
        "unit": found.case.unit,
        "goal": found.case.goal,
        "is_met": found.case.is_met(found) if found.case.goal else None,
        "median": found.median,
        "least": found.least,
        "most": found.most,
        "rss_bytes": found.rss_bytes,
        "pss_bytes": max((one.pss_bytes or 0 for one in found.measured), default=0) or None,
        "cpu_s": found.cpu_s,
        "baselines": found.baselines,
        "ratios": found.ratios,
        "extra": found.extra,
        "runs": [
            {"value": one.value, "rss_bytes": one.rss_bytes, "cpu_s": one.cpu_s}
            | {"baselines": dict(one.baselines), "extra": dict(one.extra)}
            for one in found.measured
        ],
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write figures to *path*."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_readme(path: Path, lines: Sequence[tuple[str, ...]], machine: Mapping[str, str]) -> None:
    """Put the table, and what it was taken on, between the marks in the text at *path*."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    path.write_text(f"{before}{BEGIN}\n{markdown(lines)}\n\nTaken on: {about}.\n{END}{after}")
