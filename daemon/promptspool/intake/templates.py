"""Templates: Jinja2 over the columns of a row.

Sandboxed, since a template may be another person's; strict, since an undefined name would silently
send a prompt with a hole. Pure. Raises `BadInput` (bad data).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
import msgspec

from promptspool.errors import BadInput
from promptspool.intake.values import listed
from promptspool.sandbox import Sandbox

if TYPE_CHECKING:
    from promptspool.intake.rows import Columns

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
            names = jinja2.meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            reason = f"the profile's {key} is no template: {error.message} (line {error.lineno})"
            raise BadInput(reason, code="bad_profile") from error
        except (*_ROW_ERRORS, SyntaxError) as error:
            reason = f"the profile's {key} is no template that can be used: {error}"
            raise BadInput(reason, code="bad_profile") from error

        # Decoding the columns that no one looks at would take longer than all the rest.
        self._names = None if "row" in names else frozenset(names)

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

    def _values(self, columns: Columns) -> dict[str, Any]:
        if self._names is not None:
            used = self._names
            return {name: msgspec.json.decode(raw) for name, raw in columns.items() if name in used}

        values = {name: msgspec.json.decode(raw) for name, raw in columns.items()}

        return {"row": values, **values}
