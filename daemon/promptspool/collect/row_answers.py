"""Row answers: what is told of each row while the products of a job are written.

For whoever writes more than results and errors, a table for instance: one pass over the answers
serves all. Pure; raises nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from promptspool.collect.usage import usage_of
from promptspool.pricing import Tokens

if TYPE_CHECKING:
    from promptspool.wire import AnswerLine, PlannedRow


class RowError(NamedTuple):
    """Why a row has no answer."""

    code: str
    """As `errors_by_code` in the summary counts it."""
    message: str | None
    """None where the provider gave none."""


class RowAnswer(NamedTuple):
    """What became of one row: an answer if *error* is None."""

    row: PlannedRow
    answer: AnswerLine | None
    """The provider's line, whatever it says; None for a row that became no request."""
    error: RowError | None = None
    parsed: bytes | None = None
    """The answer's value on one line of JSON, where the job has a schema and the answer fits."""

    @property
    def ok(self) -> bool:
        """Whether the row is among the results."""
        return self.error is None

    @property
    def tokens(self) -> Tokens:
        """What this line says it took; earlier tries are not in it."""
        return Tokens() if self.answer is None else usage_of(self.answer)
