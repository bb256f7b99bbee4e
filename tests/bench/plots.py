"""Log-log plots as SVG: how a cost grows with the amount of work.

In such a plot what grows in proportion is parallel to the dashed line, and what does not grow is
level. Pure: text in, text out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 74, 172, 44, 52
COLOURS = ("#1f6fb4", "#c8511b", "#2f8f3a", "#8a4bab", "#8c6d1f", "#555555")

FONT = 'font-family="sans-serif" font-size="13" fill="#222"'

LINE_HEIGHT = 17

PLAIN_FROM = -3
"""From this exponent of ten on numbers below one are written out."""

_UNITS = ((9, "G"), (6, "M"), (3, "k"), (0, ""), (-6, "µ"), (-9, "n"))
"""Exponents, and what stands for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A logarithmic axis over whole decades."""

    least: int
    """The exponents of ten at its ends."""
    most: int
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return where a value is on the picture."""
        share = (math.log10(value) - self.least) / (self.most - self.least)

        return self.start + share * (self.end - self.start)


def plot(title: str, *, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """Return the picture of *series*, of points above zero, in the order of x."""
    points = [point for line in series.values() for point in line]
    across = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 24, title, "start", size=16),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, "middle"),
        f'<g transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">',
        f"{_text(0, 0, y_label, 'middle')}</g>",
        *_grid(across, up),
        *_guide(across, up),
        *_lines(across, up, series),
        "</svg>",
    ]

    return "\n".join(parts) + "\n"


def slope(points: Points) -> float:
    """Return the exponent by which a cost grows, from the last two points: 1 is proportional."""
    (x0, y0), (x1, y1) = points[-2:]

    return math.log(y1 / y0) / math.log(x1 / x0)


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    least = math.floor(math.log10(min(values)) + 1e-9)
    most = math.ceil(math.log10(max(values)) - 1e-9)

    return Axis(least=least, most=max(most, least + 1), start=start, end=end)


def _grid(across: Axis, up: Axis) -> Iterator[str]:
    for exponent in range(across.least, across.most + 1):
        x = across.place(10.0**exponent)
        yield _line(x, up.start, x, up.end, "#ddd")
        yield _text(x, up.start + 18, _shown(exponent), "middle")

    for exponent in range(up.least, up.most + 1):
        y = up.place(10.0**exponent)
        yield _line(across.start, y, across.end, y, "#ddd")
        yield _text(across.start - 8, y + 4, _shown(exponent), "end")


def _guide(across: Axis, up: Axis) -> Iterator[str]:
    """Yield a dashed line from the lower left that shows what proportional growth looks like."""
    decades = min(across.most - across.least, up.most - up.least)
    x, y = across.place(10.0 ** (across.least + decades)), up.place(10.0 ** (up.least + decades))
    dashes = 'stroke-dasharray="5 5"'
    yield _line(across.start, up.start, x, y, "#999", dashes)
    y = HEIGHT - 16
    yield _line(across.end + 10, y, across.end + 40, y, "#999", dashes)
    yield _text(across.end + 46, y + 4, "in proportion", "start", colour="#777")


def _lines(across: Axis, up: Axis, series: Mapping[str, Points]) -> Iterator[str]:
    """Yield the lines and, beside their ends, their names, none over another."""
    ends = {name: up.place(points[-1][1]) for name, points in series.items()}
    lowest = -math.inf
    spread = {}

    for name in sorted(ends, key=ends.__getitem__):
        lowest = spread[name] = max(ends[name], lowest + LINE_HEIGHT)

    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(across.place(x), up.place(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places
        )
        yield _text(across.end + 10, spread[name] + 4, name, "start", colour=colour)


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, more: str = "") -> str:  # noqa: PLR0913, PLR0917 - two points
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" {more}/>'
    )


def _text(  # noqa: PLR0913 - a place, a text and its looks
    x: float, y: float, text: str, anchor: str, *, size: int = 13, colour: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _shown(exponent: int) -> str:
    """Return a power of ten in a few characters: 10k, 1, 0.01."""
    if PLAIN_FROM <= exponent < 0:
        return f"{10.0**exponent:.{-exponent}f}"

    size, prefix = next(pair for pair in _UNITS if exponent >= pair[0])

    return f"{10 ** (exponent - size)}{prefix}"
