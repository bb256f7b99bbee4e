"""Sandbox: the Jinja2 environment of every template, which may be another person's.

Nothing of Python can be reached, nothing is computed while a template is compiled, and what a few
characters can make grow out of all proportion is refused: products, powers, paddings, formats. A
template of nested loops can still take its time, and one that doubles a text in each round its
memory. Pure. Raises what Jinja2 raises.
"""

from __future__ import annotations

import re
from functools import wraps
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.exceptions
import jinja2.runtime
import jinja2.sandbox
from jinja2 import nodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2.runtime import Context

MAX_GROWTH = 10_000_000
"""Characters, entries or bits that one operation of a template may come to."""

_PADDING = frozenset(
    {
        "batch",
        "center",
        "expandtabs",
        "indent",
        "ljust",
        "rjust",
        "slice",
        "tojson",
        "wordwrap",
        "zfill",
    }
)
"""Filters and methods that are told how large something is to be."""

_GROWING: dict[type[nodes.Node], str] = {
    nodes.For: "for",
    nodes.Macro: "macro",
    nodes.CallBlock: "call",
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.Block: "block",
}
"""Statements that can repeat each other, and what they are written as."""

_WIDE = re.compile(r"\d{8}")
"""A width, or a precision, of tens of millions."""

_NESTED = re.compile(r"\{[^{}]*\{")


class Sandbox(jinja2.sandbox.SandboxedEnvironment):
    """The environment; options are those of Jinja2."""

    intercepted_binops = frozenset({"%", "*", "**"})

    def __init__(self, **options: Any) -> None:
        """Take Jinja2's options."""
        # Constants would be computed by the optimizer, and by outputs without a finalizer.
        super().__init__(optimized=False, finalize=_unchanged, **options)
        self.filters = {
            name: _capped(function, name) if name in _PADDING | {"format"} else function
            for name, function in self.filters.items()
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operation, unless its outcome would be out of all proportion."""
        if _growth(operator, left, right) > MAX_GROWTH:
            raise jinja2.exceptions.SecurityError(f"the outcome of {operator!r} is too large")

        return super().call_binop(context, operator, left, right)

    def call(*arguments: Any, **named: Any) -> Any:
        """Call what a template calls, unless a number it is given is out of all proportion."""
        self, context, function, *rest = arguments

        if getattr(function, "__name__", "") in _PADDING:
            _check_numbers([*rest, *named.values()])

        return jinja2.sandbox.SandboxedEnvironment.call(self, context, function, *rest, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return what `format` of a text is in a template, None if *value* is no such method."""
        formatted = super().wrap_str_format(value)

        # A field in a field is a width that the arguments tell.
        if formatted is not None and (
            _has_wide_field(str(value.__self__)) or _NESTED.search(str(value.__self__))
        ):
            raise jinja2.exceptions.SecurityError("a width in a format is too large")

        return formatted


def growing(source: str) -> str | None:
    """Return what in a template can take time or memory without end, None if nothing can.

    Raises `TemplateSyntaxError` for what is no template.
    """
    for node in Sandbox().parse(source).find_all(tuple(_GROWING)):
        return _GROWING[type(node)]

    return None


@jinja2.pass_context
def _unchanged(_context: Context, value: Any) -> Any:
    return value


def _capped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a filter that checks what it is told; what it is applied to may be any number."""

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        values = [one for one in arguments if not isinstance(one, jinja2.runtime.Context)]

        if name == "format" and _has_wide_field(str(values[0])):
            raise jinja2.exceptions.SecurityError("a width in a format is too large")

        if name != "format":
            _check_numbers([*values[1:], *named.values()])

        return function(*arguments, **named)

    return checked


def _check_numbers(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, (int, float)) and abs(value) > MAX_GROWTH:
            raise jinja2.exceptions.SecurityError(f"the number {value:.3g} is too large here")


def _has_wide_field(text: str) -> bool:
    return ("%" in text or "{" in text) and _WIDE.search(text) is not None


def _growth(operator: str, left: Any, right: Any) -> int:
    """Return how large *left* and *right* make their outcome, 0 if that is harmless."""
    if operator == "%":
        return MAX_GROWTH + 1 if isinstance(left, str) and _has_wide_field(left) else 0

    if operator == "**":
        is_whole = isinstance(left, int) and isinstance(right, int)
        return left.bit_length() * max(right, 0) if is_whole else 0

    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()

    for times, repeated in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(repeated, (str, bytes, list, tuple)):
            return times * len(repeated)

    return 0
