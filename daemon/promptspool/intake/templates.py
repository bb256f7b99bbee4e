"""Templates: Jinja2 over the columns of a row.

Sandboxed, since a template may be another person's; strict, since an undefined name would silently
send a prompt with a hole. A template of nothing but text and columns, as most are, is filled for
many rows at once: with what Jinja2 makes of each, at ten times the pace. Pure. Raises `BadInput`
(bad data).
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import msgspec
from jinja2 import nodes

from promptspool.errors import BadInput
from promptspool.intake.values import listed
from promptspool.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from promptspool.intake.rows import Columns, Value

_QUOTE, _BACKSLASH = b'"\\'

_NO_COLUMNS = frozenset({"row", "self"})
"""Names that mean something else to a template, whatever the columns are called."""

# What a template's own expressions can raise over the values of one row.
_ROW_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


class RowTemplate:
    """One template of a profile.

    It sees each column under its name, and all of them as `row`, for names that are no
    identifiers.
    """

    def __init__(self, source: str, *, key: str) -> None:
        """Compile *source*; *key* is what the profile calls it.

        Raises `BadInput` for the whole file if it is no template.
        """
        # HTML is nothing to a model: escaping would change prompts.
        environment = Sandbox(
            undefined=jinja2.StrictUndefined,
            autoescape=False,
            keep_trailing_newline=True,
        )
        self._key = key

        try:
            tree = environment.parse(source)
            self._parts = _parts(tree)
            self._names = _names(tree, self._parts)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            reason = f"the profile's {key} is no template: {error.message} (line {error.lineno})"
            raise BadInput(reason, code="bad_profile") from error
        except (*_ROW_ERRORS, SyntaxError) as error:
            reason = f"the profile's {key} is no template that can be used: {error}"
            raise BadInput(reason, code="bad_profile") from error

    def render(self, columns: Columns) -> str:
        """Return the template's text for one row; raises `BadInput` if it has none."""
        try:
            text = self._template.render(self._values(columns))
            text.encode()  # A template can make half a surrogate pair, which is no text.
        except jinja2.UndefinedError as error:
            reason = (
                f"the {self._key} template fails: {error.message}; the row has {listed(columns)}"
            )
            raise BadInput(reason, code="template_error", key=self._key) from error
        except _ROW_ERRORS as error:
            what = str(error) or type(error).__name__
            reason = f"the {self._key} template fails: {what}"
            raise BadInput(reason, code="template_error", key=self._key) from error

        return text

    def column(self, columns: Mapping[str, Sequence[Value]], count: int) -> Sequence[bytes] | None:
        """Return the template's text for each of *count* rows, as JSON strings.

        They are those of `render`. None where rows have to be rendered one by one: the template is
        not plain, or a row would raise.
        """
        if self._parts is None or "row" in columns:
            return None

        if any(name not in columns for name, _ in self._parts if name is not None):
            return None

        try:
            parts = [
                repeat(text, count) if name is None else map(_inner, columns[name])
                for name, text in self._parts
            ]

            return list(map(b"".join, zip(*parts, strict=True)))
        except (*_ROW_ERRORS, msgspec.MsgspecError):
            return None

    def _values(self, columns: Columns) -> dict[str, Any]:
        names = self._names
        values = {
            name: msgspec.json.decode(raw)
            for name, raw in columns.items()
            if names is None or name in names
        }

        return {"row": values, **values}


class _Part(NamedTuple):
    """A part of a plain template: a column's value, or a text."""

    name: str | None
    """Of the column; None for a text."""
    text: bytes
    """What it is within a JSON string; empty for a column."""


def _parts(tree: nodes.Template) -> list[_Part] | None:
    """Return what a plain template consists of, quotes around it included; None if it is not plain.

    A name that is no column's is for Jinja2 to complain of.
    """
    parts = [_Part(None, b'"')]

    for node in _outputs(tree):
        match node:
            case nodes.TemplateData(data=text):
                parts.append(_Part(None, _escaped(text)))
            case nodes.Name(name=name) if name not in _NO_COLUMNS:
                parts.append(_Part(name, b""))
            case nodes.Getitem(node=nodes.Name(name="row"), arg=nodes.Const(value=str(name))):
                parts.append(_Part(name, b""))
            case _:
                return None

    return [*parts, _Part(None, b'"')]


def _names(tree: nodes.Template, parts: list[_Part] | None) -> frozenset[str] | None:
    """Return the columns that a template looks at; None if that may be any.

    Decoding the others would take longer than all the rest. Names that Jinja2 gives a meaning, as
    `range`, are among them: a column of that name goes first.
    """
    names = frozenset(node.name for node in tree.find_all(nodes.Name))

    if parts is not None:
        return names.union(part.name for part in parts if part.name is not None)

    return None if "row" in names else names


def _outputs(tree: nodes.Template) -> Iterator[nodes.Node]:
    """Yield what a template puts out, and whatever else it does."""
    for node in tree.body:
        if isinstance(node, nodes.Output):
            yield from node.nodes
        else:
            yield node


def _inner(value: Value) -> bytes:
    """Return what stands between the quotes of the JSON string that a value is in a text."""
    raw = bytes(value)

    # Another way of writing a character would be kept, where Jinja2 knows one of each.
    if raw[0] == _QUOTE and _BACKSLASH not in raw:
        return raw[1:-1]

    return _escaped(str(msgspec.json.decode(raw)))


def _escaped(text: str) -> bytes:
    return msgspec.json.encode(text)[1:-1]
