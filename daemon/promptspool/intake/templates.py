"""Templates: Jinja2 over the columns of a row.

Sandboxed, since a template may be another person's; strict, since an undefined name would silently
send a prompt with a hole. Pure. Raises `BadInput` (bad data).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jinja2
import jinja2.sandbox
import msgspec

from promptspool.errors import BadInput

if TYPE_CHECKING:
    from promptspool.intake.readers import Columns

_MAX_LISTED = 20

# What a template's own expressions can raise over the values of one row.
_ROW_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
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
        environment = jinja2.sandbox.SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
        )
        self._key = key

        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            reason = f"the profile's {key} is no template: {error.message} (line {error.lineno})"
            raise BadInput(reason, code="bad_profile") from error

    def render(self, columns: Columns) -> str:
        """Return the template's text for one row; raises `BadInput` if it has none."""
        try:
            values = {name: msgspec.json.decode(raw) for name, raw in columns.items()}
            text = self._template.render({"row": values, **values})
            text.encode()  # A template can make half a surrogate pair, which is no text.
        except jinja2.UndefinedError as error:
            reason = (
                f"the {self._key} template fails: {error.message}; the row has {listed(columns)}"
            )
            raise BadInput(reason, code="template_error") from error
        except _ROW_ERRORS as error:
            reason = f"the {self._key} template fails: {error}"
            raise BadInput(reason, code="template_error") from error

        return text


def listed(columns: Columns) -> str:
    """Return the names of *columns* for people."""
    names = [repr(name) for name in columns]
    more = [f"{len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []

    return ", ".join(names[:_MAX_LISTED] + more) or "no keys"
