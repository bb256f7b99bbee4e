from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.collect.usage import usage_of
from promptspool.collect.verdict import Verdict, code_of, parsed, verdict
from promptspool.pricing import Tokens

if TYPE_CHECKING:
    from promptspool.wire import AnswerLine


def line(**fields: object) -> bytes:
    """Return an answer line with *fields*."""
    return json.dumps({"custom_id": "job-0", **fields}).encode()


def read(data: bytes) -> AnswerLine:
    """Return the answer that *data* is."""
    answer = parsed(data)
    assert answer is not None

    return answer


def failed(status: object, **body: object) -> dict[str, object]:
    """Return a response with an error in its body, as OpenAI sends it."""
    return {"status_code": status, "request_id": "r", "body": {"error": {"code": "x", **body}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response": {"status_code": 200, "body": {"a": 1}}, "error": None}, Verdict.OK),
        ({"response": {"status_code": 201, "body": {}}}, Verdict.OK),
        ({"response": {"status_code": "200", "body": '{"a": 1}'}}, Verdict.OK),
        ({"response": {"body": {"choices": []}}}, Verdict.OK),
        ({"response": {"status_code": 200}}, Verdict.RETRY),
        ({"response": {"status_code": 200, "body": None}}, Verdict.RETRY),
        ({"response": {"body": {"error": {"message": "no"}}}}, Verdict.RETRY),
        ({"response": failed(400), "error": None}, Verdict.FINAL),
        ({"response": failed(404)}, Verdict.FINAL),
        ({"response": failed(422.0)}, Verdict.FINAL),
        ({"response": {"status_code": 400}}, Verdict.FINAL),
        ({"response": failed(408)}, Verdict.RETRY),
        ({"response": failed(409)}, Verdict.RETRY),
        ({"response": failed(425)}, Verdict.RETRY),
        ({"response": failed(429)}, Verdict.RETRY),
        ({"response": failed(500)}, Verdict.RETRY),
        ({"response": failed(599)}, Verdict.RETRY),
        ({"response": failed(0)}, Verdict.RETRY),
        ({"response": failed(302)}, Verdict.RETRY),
        ({"response": None, "error": {"code": "batch_expired"}}, Verdict.UNRUN),
        ({"response": None, "error": {"code": "batch_cancelled"}}, Verdict.UNRUN),
        ({"error": {"code": "batch_expired", "message": "late"}}, Verdict.UNRUN),
        ({"response": None, "error": {"code": "request_timeout"}}, Verdict.RETRY),
        ({"error": {"code": "never_heard_of", "message": "?"}}, Verdict.RETRY),
        ({"error": {"code": "400", "message": "bad"}}, Verdict.FINAL),
        ({"error": {"code": 503}}, Verdict.RETRY),
        ({"error": "boom"}, Verdict.RETRY),
        ({"error": {"message": "boom"}}, Verdict.RETRY),
        ({"response": None, "error": None}, Verdict.MISSING),
        ({"response": 5}, Verdict.MISSING),
        ({"response": {}, "error": {}}, Verdict.MISSING),
        ({}, Verdict.MISSING),
    ],
)
def test_a_line_is_judged_by_its_content(fields: dict[str, object], expected: Verdict) -> None:
    """What a line says decides, whatever fields its provider leaves out."""
    assert verdict(read(line(**fields))) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"error": {"code": "batch_expired"}}, "batch_expired"),
        ({"response": failed(400, code="context_length_exceeded")}, "context_length_exceeded"),
        (
            {"response": failed(400, code=None, type="invalid_request_error")},
            "invalid_request_error",
        ),
        ({"response": {"status_code": 502, "body": "<html>"}}, "http_502"),
        ({"error": {"code": 404}}, "404"),
        ({"error": "boom"}, "unknown"),
    ],
)
def test_an_error_has_a_word(fields: dict[str, object], expected: str) -> None:
    """Errors are counted under the provider's word, or else the best there is."""
    assert code_of(read(line(**fields))) == expected


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"{}", b'{"custom_id": 5}', b'{"custom_id": "a", "id": "\xff"}'],
)
def test_what_names_no_request_is_no_answer(data: bytes) -> None:
    """Garbage is left out; it never stops the file."""
    assert parsed(data) is None


def test_what_was_paid_for_is_read() -> None:
    """Half a surrogate pair or a NaN does not cost an answer, and what is delivered is JSON."""
    data = (
        rb'{"custom_id":"a","id":1,"response":{"status_code":200,"body":{"t":"x\ud83dy","n":NaN}}}'
    )
    answer = read(data)

    assert verdict(answer) is Verdict.OK
    assert json.loads(bytes(answer.response))["body"] == {"t": "x\ufffdy", "n": None}


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read(data: bytes) -> None:
    """No byte string stops the reading."""
    answer = parsed(data)

    assert answer is None or verdict(answer) in Verdict


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["status_code", "body", "error", "code", "type", "usage", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["id", "response", "error", "extra"]), values),
    st.booleans(),
)
def test_any_json_has_a_verdict(fields: dict[str, object], ascii_only: bool) -> None:  # noqa: FBT001 (drawn)
    """Whatever shapes a provider thinks of, a named line has a verdict, a word and tokens."""
    data = json.dumps({**fields, "custom_id": "a"}, ensure_ascii=ascii_only)
    answer = parsed(data.encode("utf-8", "surrogatepass"))

    if answer is not None:
        assert verdict(answer) in Verdict
        assert code_of(answer)
        assert usage_of(answer).input >= 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 5,
                    "total_tokens": 14,
                    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 3},
                }
            },
            Tokens(input=9, cached_input=4, output=5, reasoning=3),
        ),
        (
            {
                "usage": {
                    "input_tokens": 9,
                    "output_tokens": 5,
                    "input_tokens_details": {"cached_tokens": 4},
                    "output_tokens_details": {"reasoning_tokens": 3},
                }
            },
            Tokens(input=9, cached_input=4, output=5, reasoning=3),
        ),
        ({"usage": {"prompt_tokens": 9, "total_tokens": 9}}, Tokens(input=9)),
        ('{"usage": {"prompt_tokens": 9}}', Tokens(input=9)),
        ({"usage": {"prompt_tokens": "many"}}, Tokens()),
        ({"usage": {"prompt_tokens": -9}}, Tokens()),
        ({"usage": None}, Tokens()),
        ({}, Tokens()),
    ],
)
def test_tokens_are_read_in_every_dialect(body: object, expected: Tokens) -> None:
    """Usage counts under either name; what is said oddly is nought."""
    answer = read(line(response={"status_code": 200, "body": body}))

    assert usage_of(answer) == expected
