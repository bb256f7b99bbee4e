"""Collect: what the provider answered becomes verdicts, successors and what is delivered.

`settle` closes one batch, `make_products` and `summarise` make what is delivered of a job. The pure
parts are `verdict` (what one line means) and `remedy` (what to do about a refused batch). Raises
`Bug` when a request is lost or counted twice, and lets `OSError` through (environment).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptspool.deferred import deferred

if TYPE_CHECKING:
    from promptspool.collect.answers import user_lines
    from promptspool.collect.products import Tally, compile_answers
    from promptspool.collect.remedy import enqueued_limit, is_about_a_file
    from promptspool.collect.report import complaints, summarise
    from promptspool.collect.ruling import Stop
    from promptspool.collect.settlement import settle
    from promptspool.collect.shapes import is_heavy, made, make_products, wanted
else:  # whoever looks at answers does without what writes tables
    __getattr__ = deferred(
        __name__,
        {
            "answers": ("user_lines",),
            "products": ("Tally", "compile_answers"),
            "remedy": ("enqueued_limit", "is_about_a_file"),
            "report": ("complaints", "summarise"),
            "ruling": ("Stop",),
            "settlement": ("settle",),
            "shapes": ("is_heavy", "made", "make_products", "wanted"),
        },
    )

__all__ = [
    "Stop",
    "Tally",
    "compile_answers",
    "complaints",
    "enqueued_limit",
    "is_about_a_file",
    "is_heavy",
    "made",
    "make_products",
    "settle",
    "summarise",
    "user_lines",
    "wanted",
]
