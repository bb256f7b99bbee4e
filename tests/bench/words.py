"""Text that looks like text: sentences of common words, the same for the same seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMMON = """
the a of to and in is it that for was on are with as his they at be this from have or by one
had not but what all were when we there can an your which their said if do will each about how
up out them then she many some so these would other into has more her two like him see time
could no make than first been its who now people my made over did down only way find use may
water long little very after words called just where most know apples boxes price dollars
minutes hours train station garden teacher students books pages weeks total half twice more
customer order delivery refund invoice account question answer number each café naïve über
report summary reason week month payment signed returned broken screen battery warranty
"""

WORDS = _COMMON.split()


def sentences(*, seed: int, length: int) -> Iterator[str]:
    """Yield texts of about *length* characters, without end; few hold a quote or a line feed."""
    draw = random.Random(seed)  # noqa: S311 - the same text each time
    pieces = [_piece(draw, length // 4) for _ in range(997)]

    while True:
        text = " ".join(draw.choices(pieces, k=4))

        if draw.random() < 0.1:
            text = f'"{text[:40]}",\n{text[40:]}'

        yield text


def _piece(draw: random.Random, length: int) -> str:
    text = " ".join(draw.choices(WORDS, k=length // 4))

    return f"{text[: length - 2].capitalize()}{draw.choice('.?.,.')}"
