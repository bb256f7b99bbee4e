"""Judge: what an answer is worth where answers are asked to fit a schema.

One that fits is an answer. Of the others, those that would come out the same, and cost the same,
are final: refused, cut off, filtered. The rest is asked again. Without a schema the verdict on the
line is all there is. Pure and total. Raises `Bug` for a schema that its plan should have refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from promptspool.collect.content import choices_of
from promptspool.collect.verdict import Verdict, code_of, verdict
from promptspool.errors import Bug
from promptspool.schema import Checker, Misfit
from promptspool.wire import RowFault

if TYPE_CHECKING:
    from promptspool.collect.content import Choice
    from promptspool.schema import Schema
    from promptspool.wire import AnswerLine

MISMATCH: Final = "schema_mismatch"
REFUSED: Final = "refused"
TRUNCATED: Final = "truncated"
FILTERED: Final = "content_filtered"

_CUT_OFF: Final = frozenset({"length", "max_tokens", "max_output_tokens"})
_FILTERED: Final = frozenset({"content_filter"})

_SHOWN: Final = 300


class Judgement(NamedTuple):
    """What a line says about its request."""

    verdict: Verdict
    fault: RowFault | None = None
    """Why an answer that came does not count; None where the provider says itself what failed."""
    parsed: bytes | None = None
    """The answer's value on one line of JSON; None without a schema."""


class Judge:
    """Judges the lines of one job, everywhere alike."""

    def __init__(self, response_schema: Schema | None = None) -> None:
        """Take the schema that the job's plan holds, None for answers of any shape."""
        self._checker: Checker | None = None

        if response_schema is not None:
            try:
                self._checker = Checker(response_schema)
            except ValueError as error:
                message = f"the plan's response_schema cannot be used: {error}"
                raise Bug(message) from error

    @property
    def is_strict(self) -> bool:
        """Tell whether it takes more than an answer to count as one: one that fits a schema."""
        return self._checker is not None

    def verdict(self, answer: AnswerLine) -> Verdict:
        """Return what *answer* says about its request."""
        return self.judgement(answer).verdict

    def judgement(self, answer: AnswerLine) -> Judgement:
        """Return what *answer* says about its request, and why.

        Of several choices the first that fits is the answer: all of them are paid for.
        """
        found = verdict(answer)

        if self._checker is None or found is not Verdict.OK:
            return Judgement(found)

        choices = choices_of(answer)
        reasons = []

        for choice in choices:
            value = self._checker.parsed(choice.text or "")

            if not isinstance(value, Misfit):
                return Judgement(Verdict.OK, parsed=value)

            reasons.append(value.reason)

        if not choices:
            return Judgement(Verdict.RETRY, _fault(MISMATCH, "the answer has no text"))

        return _unfit(choices[0], reasons[0])

    def code(self, answer: AnswerLine) -> str:
        """Return one word for why *answer* does not count."""
        fault = self.judgement(answer).fault

        return code_of(answer) if fault is None else fault.code


def _unfit(choice: Choice, reason: str) -> Judgement:
    """Return what becomes of a request whose answer does not fit."""
    if choice.refusal:
        said = choice.refusal[:_SHOWN] + ("..." if len(choice.refusal) > _SHOWN else "")

        return Judgement(Verdict.FINAL, _fault(REFUSED, f"the model refused: {said}"))

    if choice.finish_reason in _CUT_OFF:
        message = (
            "the answer was cut off at the limit of output tokens; raise the limit in the params "
            "of the profile"
        )

        return Judgement(Verdict.FINAL, _fault(TRUNCATED, message))

    if choice.finish_reason in _FILTERED:
        message = "the provider's content filter stopped the answer"

        return Judgement(Verdict.FINAL, _fault(FILTERED, message))

    if choice.text is None and choice.calls is not None:
        reason = "the model called a tool instead of answering"

    return Judgement(Verdict.RETRY, _fault(MISMATCH, reason))


def _fault(code: str, message: str) -> RowFault:
    return RowFault(code=code, message=message)
