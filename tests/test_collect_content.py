from __future__ import annotations

import base64
import json
import math
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from promptspool.collect.content import Choice, Content, choices_of, content_of, vectors_of
from promptspool.collect.verdict import parsed
from promptspool.simulator.answers import answer as simulated

if TYPE_CHECKING:
    from promptspool.simulator.wire import Endpoint
    from promptspool.wire import AnswerLine


def line(response: object) -> AnswerLine:
    """Return an answer line with *response*."""
    answer = parsed(json.dumps({"custom_id": "job-0", "response": response}).encode())
    assert answer is not None

    return answer


def answered(body: object) -> AnswerLine:
    """Return the line of a request that was answered with *body*."""
    return line({"status_code": 200, "request_id": "r", "body": body})


def chat(*messages: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    """Return a chat answer with a choice for each message."""
    return {
        "object": "chat.completion",
        "choices": [
            {"index": index, "message": message, "finish_reason": finish_reason}
            for index, message in enumerate(messages)
        ],
        "usage": {"prompt_tokens": 1},
    }


def message(*parts: object) -> dict[str, Any]:
    """Return a message among the output of responses."""
    return {"type": "message", "role": "assistant", "content": list(parts)}


def said(text: str) -> dict[str, Any]:
    """Return a part of such a message."""
    return {"type": "output_text", "text": text, "annotations": []}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION_CALL = {"type": "function_call", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chat({"content": "Blue."}), Content("Blue.", "stop", None)),
        (chat({"content": ""}), Content("", "stop", None)),
        (
            chat({"content": [{"type": "text", "text": "Bl"}, {"type": "text", "text": "ue."}]}),
            Content("Blue.", "stop", None),
        ),
        (
            chat({"content": None, "refusal": "No."}),
            Content(None, "stop", "No."),
        ),
        (
            chat({"content": [{"type": "refusal", "refusal": "No."}]}),
            Content(None, "stop", "No."),
        ),
        (
            chat({"content": None, "tool_calls": [CALL]}, finish_reason="tool_calls"),
            Content(json.dumps([CALL], separators=(",", ":")), "tool_calls", None),
        ),
        (
            chat({"content": "", "function_call": {"name": "f"}}),
            Content('{"name":"f"}', "stop", None),
        ),
        (
            chat({"content": "Blue.", "tool_calls": [CALL]}),
            Content("Blue.", "stop", None),
        ),
        (
            chat({"content": "a"}, {"content": None}, {"content": "\u00e9"}),
            Content('["a",null,"\u00e9"]', "stop", None),
        ),
        (
            {
                "choices": [
                    {"text": "a", "finish_reason": "stop"},
                    {"text": "b", "finish_reason": "length"},
                ]
            },
            Content('["a","b"]', "stop,length", None),
        ),
        (
            {"object": "text_completion", "choices": [{"text": "a", "finish_reason": "length"}]},
            Content("a", "length", None),
        ),
    ],
)
def test_chat_and_completions_say_what_a_person_wants(
    body: dict[str, Any], expected: Content
) -> None:
    """One choice is its text, several are an array; a tool is called in JSON."""
    assert content_of(answered(body)) == expected
    assert content_of(answered(json.dumps(body))) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"status": "completed", "output": [{"type": "reasoning"}, message(said("Blue."))]},
            Content("Blue.", "completed", None),
        ),
        (
            {"status": "completed", "output": [message(said("Bl"), said("u")), message(said("e"))]},
            Content("Blue", "completed", None),
        ),
        (
            {"status": "completed", "output": [message({"type": "refusal", "refusal": "No."})]},
            Content(None, "completed", "No."),
        ),
        (
            {
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "output": [message(said("Bl"))],
            },
            Content("Bl", "max_output_tokens", None),
        ),
        (
            {"status": "completed", "incomplete_details": None, "output": [FUNCTION_CALL]},
            Content(json.dumps([FUNCTION_CALL], separators=(",", ":")), "completed", None),
        ),
        ({"status": "failed", "output": []}, Content(None, "failed", None)),
    ],
)
def test_responses_say_what_a_person_wants(body: dict[str, Any], expected: Content) -> None:
    """All text is put together; why it is incomplete says more than that it is."""
    assert content_of(answered(body)) == expected


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([{"flagged": False, "categories": {"hate": False, "violence": False}}], "[]"),
        (
            [{"flagged": True, "categories": {"hate": True, "sexual": False, "violence": True}}],
            '["hate","violence"]',
        ),
        ([{"flagged": True}], '["flagged"]'),
        ([{"categories": {"hate": True}}, {"categories": {}}], '[["hate"],[]]'),
    ],
)
def test_moderations_name_what_they_flag(results: list[Any], expected: str) -> None:
    """The names of the flagged categories are an array, one for each input."""
    assert content_of(answered({"id": "m", "results": results})).text == expected


def embedding(*vectors: object) -> dict[str, Any]:
    """Return an embedding of each input."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ],
    }


def packed(*numbers: float) -> str:
    """Return a vector as `encoding_format: base64` sends it."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@pytest.mark.parametrize("numbers", [[0.5, -1.0, 2.0], [[0.5, 1.0], [2.0, 4.0]]])
def test_vectors_are_the_same_in_either_encoding(numbers: list[Any]) -> None:
    """Base64 is a way to write numbers, not another answer."""
    vectors = numbers if isinstance(numbers[0], list) else [numbers]
    plain = answered(embedding(*vectors))
    encoded = answered(embedding(*(packed(*vector) for vector in vectors)))

    for answer in (plain, encoded):
        assert [list(vector) for vector in vectors_of(answer)] == vectors
        assert json.loads(content_of(answer).text or "") == numbers
        assert content_of(answer).finish_reason is None

    assert [vector.typecode for vector in vectors_of(plain) + vectors_of(encoded)] == [
        *("d" for _ in vectors),
        *("f" for _ in vectors),
    ]


def test_vectors_are_in_the_order_of_their_inputs() -> None:
    """The index says which input a vector is of, not its place."""
    body = embedding([1.0], [2.0])
    body["data"].reverse()

    assert [list(vector) for vector in vectors_of(answered(body))] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "vectors",
    [["x"], ["AAAA"], ["\u00e9"], [["a"]], [[True]], [None], [{}], [[1.0], None], [[10**400]]],
)
def test_what_is_no_vector_is_none(vectors: list[Any]) -> None:
    """Half of an embedding is no embedding."""
    answer = answered(embedding(*vectors))

    assert vectors_of(answer) == []
    assert content_of(answer) == Content()


@pytest.mark.parametrize(
    "response",
    [
        None,
        5,
        [],
        {},
        {"status_code": 500, "body": {"error": {"message": "no"}}},
        {"body": None},
        {"body": "<html>"},
        {"body": '"text"'},
        {"body": [1]},
        {"body": {"choices": []}},
        {"body": {"choices": "x", "data": 5, "results": None}},
        {"body": {"choices": [5, None]}},
    ],
)
def test_what_says_nothing_has_no_content(response: object) -> None:
    """An error, or what is no answer at all, has neither text nor reason."""
    answer = line(response)

    assert content_of(answer) == Content()
    assert choices_of(answer) == []
    assert vectors_of(answer) == []


def test_one_odd_value_hides_no_other() -> None:
    """What can be read is read, whatever is beside it."""
    body = chat({"content": "Blue.", "refusal": 5, "tool_calls": "x"})
    body["choices"][0]["finish_reason"] = {"odd": True}
    body |= {"status": 7, "output": {}, "results": "?", "data": {"x": 1}}

    assert choices_of(answered(body)) == [Choice("Blue.", None, None, '"x"')]


def test_what_was_paid_for_is_read() -> None:
    """Half a surrogate pair or a number out of range costs no text."""
    body = chat({"content": "x"})
    body["choices"][0]["logprobs"] = 0
    text = json.dumps(body).replace('"x"', r'"x\ud83dy"').replace('"logprobs": 0', '"l": 1e999')

    assert content_of(answered(text)).text == "x\ufffdy"
    raw = b'{"custom_id":"a","response":{"status_code":200,"body":%s}}' % text.encode()
    answer = parsed(raw)
    assert answer is not None
    assert content_of(answer).text == "x\ufffdy"
    assert json.loads(bytes(answer.response))["body"]["choices"][0]["l"] is None


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
NAMES = (
    "body",
    "choices",
    "output",
    "results",
    "data",
    "message",
    "content",
    "text",
    "type",
    "refusal",
    "embedding",
    "index",
    "categories",
    "flagged",
    "status",
    "incomplete_details",
    "reason",
    "finish_reason",
    "tool_calls",
)
WORDS = ("message", "text", "output_text", "refusal", "function_call", "AAAAAA==")
values = st.recursive(
    scalars | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=15,
)


@settings(deadline=None, max_examples=300)
@given(body=st.dictionaries(st.sampled_from(NAMES), values, max_size=5), is_text=st.booleans())
@example(body={"output": [{"type": []}]}, is_text=False)
def test_any_body_has_a_content(body: dict[str, Any], is_text: bool) -> None:  # noqa: FBT001 (drawn)
    """Whatever a provider sends, nothing is raised, and texts can be written as UTF-8."""
    answer = answered(json.dumps(body) if is_text else body)

    for text in (*content_of(answer), *(text for one in choices_of(answer) for text in one)):
        assert text is None or text.encode() is not None

    for vector in vectors_of(answer):
        assert all(isinstance(number, float) for number in vector)


REQUESTS: dict[Endpoint, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "sky?"}]},
    "/v1/responses": {"input": "sky?"},
    "/v1/completions": {"prompt": "sky?"},
}


@pytest.mark.parametrize("endpoint", REQUESTS)
def test_the_simulated_provider_is_understood(endpoint: Endpoint) -> None:
    """What the simulator answers, in the documented objects, has its text."""
    told = simulated(endpoint, REQUESTS[endpoint], raw=b"", dimensions=4)
    reason = "completed" if endpoint == "/v1/responses" else "stop"

    assert content_of(answered(told.body)) == Content("Simulated answer to: sky?", reason, None)


def test_simulated_vectors_are_understood() -> None:
    """So are its vectors, which are of length 1."""
    for encoding in ("float", "base64"):
        body: dict[str, Any] = {"input": ["a", "b"], "encoding_format": encoding}
        told = simulated("/v1/embeddings", body, raw=b"", dimensions=4)
        vectors = vectors_of(answered(told.body))

        assert [len(vector) for vector in vectors] == [4, 4]
        assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in vectors)
