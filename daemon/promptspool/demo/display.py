"""What the demo shows: the files' progress while it runs, and what is in the spool at the end.

Reads the spool, writes to a console. Lets `OSError` through (environment).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich import box
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console, RenderableType

    from promptspool.demo.progress import Journey

HEAD = 2
"""So many lines of each delivered file are shown."""

_COLUMNS = {
    "results": "{:,}",
    "errors": "{:,}",
    "tokens in": "{:,}",
    "out": "{:,}",
    "cost": "${:.6f}",
    "saved": "${:.6f}",
}


def say(console: Console, text: str = "") -> None:
    """Print *text* as it is, however long its lines are."""
    console.print(Text(text), soft_wrap=True)


def say_shortened(console: Console, text: str) -> None:
    """Print one line, cut to the width of the terminal."""
    console.print(Text(text), no_wrap=True, overflow="ellipsis")


def progress_table(journeys: Sequence[Journey]) -> RenderableType:
    """Return where each file stands."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("file")
    table.add_column("batches ended", justify="right")
    table.add_column("requests done", justify="right")
    table.add_column("phase", min_width=24)

    for journey in journeys:
        table.add_row(
            Text(journey.file),
            f"{journey.batches_ended} of {journey.batches}",
            f"{journey.finished} of {journey.requests}",
            journey.phase if journey.is_over else Spinner("line", text=journey.phase),
        )

    return table


def show_tree(console: Console, folder: Path) -> None:
    """Print what is in *folder*; the daemon's own `state/` is only named."""
    tree = Tree(Text(f"{folder}/", no_wrap=True), guide_style="dim")
    _grow(tree, folder)
    console.print(tree, soft_wrap=True)


def _grow(tree: Tree, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue

        if path.name == "state":
            tree.add(Text("state/ (the daemon's own)"))
        elif path.is_dir():
            _grow(tree.add(Text(f"{path.name}/")), path)
        else:
            tree.add(Text(f"{path.name} ({path.stat().st_size:,} bytes)"))


def show_delivered(console: Console, outbox: Path, file: str) -> None:
    """Print how the results and the errors of a dropped file begin."""
    for kind in ("results", "errors"):
        path = outbox / f"{file}.{kind}.jsonl"

        if path.exists():
            lines = path.read_text("utf-8").splitlines()
            say(console, f"outbox/{path.relative_to(outbox)}: {_lines(len(lines))}")

            for line in lines[:HEAD]:
                say_shortened(console, f"  {line}")
                say_shortened(console, f"    {_gist(json.loads(line))}")


def _lines(count: int) -> str:
    return f"{count} line{'s' * (count != 1)}"


def _gist(line: dict[str, Any]) -> str:
    """Return what a line of results or errors comes to: its id, and its answer or its error."""
    match line:
        case {"response": {"body": {"choices": [{"message": {"content": str(content)}}, *_]}}}:
            said = content
        case {"response": {"body": {"error": {"message": str(message)}}}, "attempts": attempts}:
            said = f"(attempt {attempts}, input line {line['source']['line']}) {message}"
        case _:
            said = "(neither an answer nor an error)"

    return f"{line['custom_id']} -> {said}"


def show_summaries(console: Console, outbox: Path, files: Sequence[str]) -> None:
    """Print what the summaries say: counts, tokens, and what the batch price saved."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_footer=True)
    summaries = [json.loads((outbox / f"{file}.summary.json").read_bytes()) for file in files]
    rows = [_figures(summary) for summary in summaries]
    totals = [sum(column) for column in zip(*rows, strict=True)]
    table.add_column("summary", footer="together")

    for (name, shape), total in zip(_COLUMNS.items(), totals, strict=True):
        table.add_column(name, justify="right", footer=shape.format(total))

    for file, row in zip(files, rows, strict=True):
        shown = map(str.format, _COLUMNS.values(), row)
        table.add_row(Text(file), *shown)

    console.print(table)
    batch_usd, saved_usd = totals[-2:]
    share = saved_usd / ((batch_usd + saved_usd) or 1.0)
    as_of = summaries[0]["cost"]["prices_as_of"]
    say(console, f"Cost is an estimate at the list prices of {as_of}; batches saved {share:.0%}.")


def _figures(summary: dict[str, Any]) -> list[float]:
    tokens = summary["tokens"].values()

    return [
        summary["counts"]["results"],
        summary["counts"]["errors"],
        sum(used["input"] for used in tokens),
        sum(used["output"] for used in tokens),
        summary["cost"]["batch_usd"],
        summary["cost"]["saved_usd"],
    ]
