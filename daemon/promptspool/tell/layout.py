"""Lines of styled text in columns, for a screen of a given width. Pure; raises nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


def cut(line: Text, width: int | None) -> Text:
    """Return *line* in at most *width* cells; None for no limit."""
    shorter = line.copy()

    if width is not None:
        shorter.truncate(max(width, 1), overflow="ellipsis")

    return shorter


def wrapped(line: Text, width: int | None, *, most: int, indent: int = 0) -> list[Text]:
    """Return *line* broken into at most *most* lines, all but the first indented."""
    if width is None or cell_len(line.plain) <= width:
        return [line]

    words = line.plain.split(" ")
    lines = [Text(style=line.style)]

    for number, word in enumerate(words):
        is_full = cell_len(lines[-1].plain) + 1 + cell_len(word) > width and lines[-1].plain.strip()

        if is_full and len(lines) == most:
            lines[-1].append(" " + " ".join(words[number:]))
            break

        if is_full:
            lines.append(Text(" " * indent + word, style=line.style))
        else:
            lines[-1].append(word if number == 0 else f" {word}")

    return [cut(one, width) for one in lines]


def aligned(
    rows: Sequence[Sequence[Text]],
    *,
    right: Collection[int] = (),
    widest: Mapping[int, int] | None = None,
    width: int | None = None,
    gap: int = 2,
) -> list[Text]:
    """Return a line for each of *rows*, its cells in columns with *gap* spaces between them.

    Columns in *right* are flushed right, those in *widest* have at most so many cells; *width* is
    that of a whole line, None for no limit. All rows are equally long.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(cell_len(cell.plain) for cell in column) for column in columns]

    for number, most in (widest or {}).items():
        widths[number] = min(widths[number], most)

    return [cut(_line(row, widths, right, gap), width) for row in rows]


def _line(row: Sequence[Text], widths: Sequence[int], right: Collection[int], gap: int) -> Text:
    line = Text()

    for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
        fitted = cut(cell, width) if width else Text()
        space = " " * (width - cell_len(fitted.plain))
        line.append(" " * gap if number and width else "")
        line.append_text(Text(space) + fitted if number in right else fitted + Text(space))

    line.rstrip()

    return line


def bar(share: float, width: int, *, is_ascii: bool) -> Text:
    """Return a bar of *width* cells of which *share* (0 to 1) is full; only all of it fills it."""
    full = width if share >= 1 else min(int(share * width), width - 1)
    done, left = ("#", ".") if is_ascii else ("━", "━")
    line = Text(done * full, style="green" if share >= 1 else "cyan")
    line.append(left * (width - full), style="bright_black")

    return line
