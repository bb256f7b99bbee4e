from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.collect.judge import Judge
from promptspool.collect.row_answers import RowAnswer, RowError
from promptspool.collect.verdict import Verdict, message_of, parsed, verdict
from promptspool.errors import Bug
from promptspool.pricing import Tokens
from promptspool.wire import PlannedRow

if TYPE_CHECKING:
    from promptspool.wire import AnswerLine

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}
CUT_OFF = (
    "the answer was cut off at the limit of output tokens; raise the limit in the params of the "
    "profile"
)
FILTERED = "the provider's content filter stopped the answer"


def line(response: object, error: object = None) -> AnswerLine:
    """Return an answer line."""
    data = {"custom_id": "job-0", "response": response, "error": error}
    answer = parsed(json.dumps(data).encode())
    assert answer is not None

    return answer


def answered(body: object) -> AnswerLine:
    """Return the line of a request that was answered with *body*."""
    return line({"status_code": 200, "request_id": "r", "body": body})


def chat(*texts: str | None, finish_reason: str = "stop", **message: object) -> AnswerLine:
    """Return a chat answer of one choice for each text."""
    choices = [
        {"index": 0, "message": {"content": text, **message}, "finish_reason": finish_reason}
        for text in texts
    ]

    return answered({"choices": choices})


def responses(part: dict[str, Any], reason: str | None = None) -> AnswerLine:
    """Return an answer of responses with one part, incomplete if there is a reason."""
    return answered(
        {
            "status": "completed" if reason is None else "incomplete",
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": [{"type": "message", "content": [part]}],
        }
    )


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (chat('{"score": 3}'), b'{"score":3}'),
        (chat('{"score": 3}', finish_reason="length"), b'{"score":3}'),
        (chat('{"score": 3}', refusal="No."), b'{"score":3}'),
        (chat("no", '{"score": 1}', '{"score": 2}'), b'{"score":1}'),
        (responses({"type": "output_text", "text": '\n{"score": 4}\n'}), b'{"score":4}'),
    ],
)
def test_what_fits_is_an_answer(answer: AnswerLine, value: bytes) -> None:
    """An answer that fits counts, whatever else is said; of several choices the first that does."""
    assert Judge(SCHEMA).judgement(answer) == (Verdict.OK, None, value)


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (chat(None, refusal="I will not."), "refused", "the model refused: I will not."),
        (chat("{}", refusal="x" * 999), "refused", f"the model refused: {'x' * 300}..."),
        (
            responses({"type": "refusal", "refusal": "I will not."}),
            "refused",
            "the model refused: I will not.",
        ),
        (chat('{"sco', finish_reason="length"), "truncated", CUT_OFF),
        (
            responses({"type": "output_text", "text": '{"sco'}, "max_output_tokens"),
            "truncated",
            CUT_OFF,
        ),
        (chat("", finish_reason="content_filter"), "content_filtered", FILTERED),
        (
            responses({"type": "output_text", "text": ""}, "content_filter"),
            "content_filtered",
            FILTERED,
        ),
    ],
)
def test_what_would_come_out_the_same_is_final(answer: AnswerLine, code: str, message: str) -> None:
    """A refusal, a cut or a filter is not paid for a second time."""
    found, fault, value = Judge(SCHEMA).judgement(answer)

    assert (found, value) == (Verdict.FINAL, None)
    assert fault is not None
    assert (fault.code, fault.message) == (code, message)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (chat('{"score": "3"}'), 'at $.score: "3" is not of type "integer"'),
        (chat("{}", finish_reason="tool_calls"), 'at $: "score" is a required property'),
        (chat(""), "the answer is empty"),
        (chat(None), "the answer is empty"),
        (
            chat(None, tool_calls=[{"function": {"name": "f"}}]),
            "the model called a tool instead of answering",
        ),
        (chat(None, function_call={"score": 3}), "the model called a tool instead of answering"),
        (chat("[]", "{}"), 'at $: [] is not of type "object"'),
        (answered({}), "the answer has no text"),
        (answered({"choices": []}), "the answer has no text"),
        (answered("<html>"), "the answer has no text"),
        (answered({"data": [{"embedding": [1.0]}]}), "the answer has no text"),
    ],
)
def test_what_may_do_better_is_asked_again(answer: AnswerLine, message: str) -> None:
    """Any other answer that does not fit is tried again, and what is wrong is in words."""
    found, fault, value = Judge(SCHEMA).judgement(answer)

    assert (found, value) == (Verdict.RETRY, None)
    assert fault is not None
    assert (fault.code, fault.message) == ("schema_mismatch", message)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["status_code", "body", "error", "code", "choices", "message", "content", "output"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(values, values)
def test_every_line_is_judged(response: object, error: object) -> None:
    """A schema only ever turns an answer into none; all other verdicts stay as they are."""
    answer = line(response, error)
    plain = verdict(answer)
    found, fault, value = Judge(SCHEMA).judgement(answer)

    assert Judge().judgement(answer) == (plain, None, None)
    assert Judge().verdict(answer) is plain
    assert message_of(answer) != ""

    if plain is Verdict.OK:
        assert (fault is None) == (found is Verdict.OK) == (value is not None)
    else:
        assert (found, fault, value) == (plain, None, None)


def test_a_plan_with_a_broken_schema_is_a_bug() -> None:
    """Intake checks the schema; what gets past it must not be guessed about."""
    with pytest.raises(Bug, match="the plan's response_schema cannot be used: #/type"):
        Judge({"type": "nothing"})


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (None, {"code": "batch_expired", "message": "too late"}, "too late"),
        ({"status_code": 400, "body": {"error": {"message": "bad"}}}, None, "bad"),
        ({"status_code": 400, "body": {"error": {"message": ""}}}, None, None),
        ({"status_code": 502, "body": "<html>"}, None, None),
        ({"status_code": 400, "body": {"error": "odd"}}, None, "odd"),
        (None, "boom", "boom"),
        (None, {"message": 5}, None),
        (None, None, None),
    ],
)
def test_an_error_has_the_providers_words(
    response: object, error: object, message: str | None
) -> None:
    """What the provider says is passed on, and silence stays silence."""
    assert message_of(line(response, error)) == message


def test_a_row_says_what_its_line_took() -> None:
    """A sink learns whether a row is a result and what its own line took."""
    row = PlannedRow(id="a", line=1)
    usage = {"prompt_tokens": 9, "completion_tokens": 5}
    good = RowAnswer(row, answered({"usage": usage}), parsed=b"{}")
    bad = RowAnswer(row, None, RowError("invalid_row", "no"))

    assert (good.ok, good.tokens) == (True, Tokens(input=9, output=5))
    assert (bad.ok, bad.tokens) == (False, Tokens())
