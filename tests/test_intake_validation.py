from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.render import Renderer
from promptspool.settings import ProfileSettings

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
COMPLETIONS = "/v1/completions"
MODERATIONS = "/v1/moderations"
ENDPOINTS = (CHAT, RESPONSES, EMBEDDINGS, COMPLETIONS, MODERATIONS)

MESSAGE = '{"role": "user", "content": "..."}'
PART = '{"type": "text", "text": "..."}'
INPUT_PART = '{"type": "input_text", "text": "..."}'
ROLES = "system, developer, user, assistant, tool, function"

Fault = tuple[str, str | None, str]


def renderer(**changes: object) -> Renderer:
    """Return what renders a profile that differs from the plainest in *changes*."""
    return Renderer(ProfileSettings.model_validate({"model": "gpt-5-mini", **changes}))


def columns_of(row: dict[str, Any]) -> dict[str, bytes]:
    """Return a row's columns."""
    return {name: msgspec.json.encode(value) for name, value in row.items()}


def fault(row: dict[str, Any], **changes: object) -> Fault:
    """Return the code, the key and the message that a person gets for a row."""
    with pytest.raises(BadInput) as caught:
        renderer(**changes).request(columns_of(row))

    return caught.value.code, caught.value.key, caught.value.reason


def ready(url: str, **body: Any) -> dict[str, Any]:
    """Return a ready request."""
    return {"method": "POST", "url": url, "body": {"model": "m", **body}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"review": "a", "odd name": 1, "id": 5},
            (
                "missing_prompt",
                None,
                (
                    "found no column prompt, text, input or question, but 'review', 'odd name', "
                    "'id'; rename one, or write prompt = \"{{ review }}\" in the profile, or in "
                    "NAME.toml beside the file"
                ),
            ),
        ),
        (
            {},
            (
                "missing_prompt",
                None,
                (
                    "found no column prompt, text, input or question, but no keys; rename one, or "
                    'write prompt = "{{ review }}" in the profile, or in NAME.toml beside the file'
                ),
            ),
        ),
        ({"text": None}, ("invalid_prompt", "text", "text is null; write a string")),
        ({"prompt": True}, ("invalid_prompt", "prompt", "prompt is true; write a string")),
        ({"prompt": {}}, ("invalid_prompt", "prompt", "prompt is an object; write a string")),
        (
            {"prompt": [{"role": "user", "content": "a"}]},
            (
                "invalid_prompt",
                "prompt",
                "prompt is an array; write a string, or name it messages",
            ),
        ),
        (
            {"Question": " \n"},
            ("empty_prompt", "Question", "the prompt is empty; write some text"),
        ),
        (
            {"messages": [{"role": "user", "content": "a"}], "prompt": "b"},
            (
                "ambiguous_row",
                "prompt",
                "the row has both 'messages' and 'prompt'; leave one of them empty",
            ),
        ),
        (
            {**ready(CHAT, messages=[{"role": "user", "content": "a"}]), "prompt": "b"},
            (
                "ambiguous_row",
                "prompt",
                "the row has both a body and 'prompt' beside it; leave one of them out",
            ),
        ),
    ],
)
def test_a_prompt_that_is_none_says_what_to_write(row: dict[str, Any], expected: Fault) -> None:
    """A row of which no prompt can be made names its columns, what was found and the remedy."""
    assert fault(row) == expected


@pytest.mark.parametrize(
    ("messages", "key", "message"),
    [
        (
            "What is up?",
            "messages",
            f"messages is a string; write an array, as in [{MESSAGE}], or name it prompt",
        ),
        (
            {"role": "user"},
            "messages",
            f"messages is an object; write an array, as in [{MESSAGE}], or name it prompt",
        ),
        (
            None,
            "messages",
            f"messages is null; write an array, as in [{MESSAGE}], or name it prompt",
        ),
        (
            '[{"role": "user", "content": "a"',
            "messages",
            (
                "messages is a string that begins like an array, but is broken JSON: Input data "
                "was truncated; mend it"
            ),
        ),
        ([], "messages", f"messages is empty; write at least one message, as in [{MESSAGE}]"),
        (
            [{"role": "user", "content": "a"}, "b"],
            "messages[1]",
            f"messages[1] is a string; write an object, as in {MESSAGE}",
        ),
        (
            [{"content": "a"}],
            "messages[0].role",
            f"messages[0].role is missing; write one of {ROLES}",
        ),
        (
            [{"role": "system", "content": "a"}, {"role": "human", "content": "a"}],
            "messages[1].role",
            f'messages[1].role is "human"; write one of {ROLES}',
        ),
        (
            [{"role": 1, "content": "a"}],
            "messages[0].role",
            f"messages[0].role is the number 1; write one of {ROLES}",
        ),
        (
            [{"role": "user"}],
            "messages[0].content",
            (
                "messages[0].content is missing; write a string, or an array of parts as in "
                f"[{PART}]"
            ),
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": None}],
            "messages[0].content",
            f"messages[0].content is null; write a string, or an array of parts as in [{PART}]",
        ),
        (
            [{"role": "user", "content": []}],
            "messages[0].content",
            f"messages[0].content is empty; write a string, or an array of parts as in [{PART}]",
        ),
        (
            [{"role": "user", "content": {"text": "a"}}],
            "messages[0].content",
            (
                "messages[0].content is an object; write a string, or an array of parts as in "
                f"[{PART}]"
            ),
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}],
            "messages[0].content[1]",
            f"messages[0].content[1] is a string; write an object, as in {PART}",
        ),
        (
            [{"role": "user", "content": [{"text": "a"}]}],
            "messages[0].content[0].type",
            (f"messages[0].content[0].type is missing; write the kind of the part, as in {PART}"),
        ),
    ],
)
def test_bad_messages_say_which_and_what(messages: Any, key: str, message: str) -> None:
    """Messages that no provider takes are named by their place, in a row and in a ready body."""
    assert fault({"messages": messages}) == ("invalid_messages", key, message)

    if not isinstance(messages, str):
        told = message.replace("messages", "body.messages", 1).removesuffix(", or name it prompt")
        row = ready(CHAT, messages=messages)
        assert fault(row) == ("invalid_messages", f"body.{key}", told)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}],
        [{"role": "assistant", "tool_calls": [{"id": "c"}]}, {"role": "tool", "content": "a"}],
        [{"role": "assistant", "content": None, "refusal": "no"}],
        [{"role": "function", "name": "f", "content": None}],
        [{"role": "developer", "content": [{"type": "from the future"}], "extra": {}}],
    ],
)
def test_what_a_provider_might_take_is_passed_on(messages: list[Any]) -> None:
    """Only shapes that no provider takes are faults; of the rest the provider is the judge."""
    wire = renderer().request(columns_of({"messages": messages})).line("job-0")

    assert json.loads(wire)["body"]["messages"] == messages


@pytest.mark.parametrize(
    ("given_input", "key", "message"),
    [
        (5, "input", "input is the number 5; write a string or an array"),
        ({}, "input", "input is an object; write a string or an array"),
        (None, "input", "input is null; write a string or an array"),
        (" ", "input", "input is empty; write some text"),
        ([], "input", f"input is empty; write at least one message, as in [{MESSAGE}]"),
        (["a"], "input[0]", f"input[0] is a string; write an object, as in {MESSAGE}"),
        (
            [{"content": "a"}],
            "input[0].role",
            f"input[0].role is missing; write a message, as in {MESSAGE}",
        ),
        (
            [{"role": "bot", "content": "a"}],
            "input[0].role",
            f'input[0].role is "bot"; write one of {ROLES}',
        ),
        (
            [{"role": "user"}],
            "input[0].content",
            (
                "input[0].content is missing; write a string, or an array of parts as in "
                f"[{INPUT_PART}]"
            ),
        ),
    ],
)
def test_a_bad_response_input_says_where(given_input: Any, key: str, message: str) -> None:
    """An input that no response is made of is named by its place, in a row and in a ready body."""
    assert fault({"input": given_input}, endpoint=RESPONSES) == ("invalid_input", key, message)

    told = message.replace("input", "body.input", 1)
    row = ready(RESPONSES, input=given_input)
    assert fault(row, endpoint=CHAT) == ("invalid_input", f"body.{key}", told)


def test_response_items_of_all_kinds_are_passed_on() -> None:
    """Items that are no messages are the provider's to judge."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"id": "msg_1"},
    ]
    wire = renderer(endpoint=RESPONSES).request(columns_of({"input": items})).line("job-0")

    assert json.loads(wire)["body"]["input"] == items


@pytest.mark.parametrize(
    ("given_input", "code", "key", "message"),
    [
        ([], "invalid_input", "input", "input is empty; write some text"),
        ("", "invalid_input", "input", "input is empty; write some text"),
        (
            ["a", ""],
            "invalid_input",
            "input[1]",
            "input[1] is empty; write some text or leave it out",
        ),
        (
            ["a", 1],
            "invalid_input",
            "input[1]",
            "input[1] is the number 1; write a string, as the first one is",
        ),
        (
            [1, "a"],
            "invalid_input",
            "input[1]",
            "input[1] is a string; write strings, or the whole numbers that are tokens",
        ),
        (
            [1, 2.5],
            "invalid_input",
            "input[1]",
            "input[1] is the number 2.5; write strings, or the whole numbers that are tokens",
        ),
        (
            [{"text": "a"}],
            "invalid_input",
            "input[0]",
            "input[0] is an object; write strings, or the whole numbers that are tokens",
        ),
        ([[1], []], "invalid_input", "input[1]", "input[1] is empty; write some text"),
        (
            [[1], "a"],
            "invalid_input",
            "input[1]",
            "input[1] is a string; write an array of tokens, as the first one is",
        ),
        (
            [[1], [True]],
            "invalid_input",
            "input[1][0]",
            "input[1][0] is true; write strings, or the whole numbers that are tokens",
        ),
        (
            ["a"] * 2_049,
            "too_many_inputs",
            "input",
            "input has 2,049 inputs, a request takes 2,048; spread them over several rows",
        ),
    ],
)
def test_a_bad_embedding_input_says_where(
    given_input: Any, code: str, key: str, message: str
) -> None:
    """Each embedding input is looked at and all are counted, in a row and in a ready body."""
    assert fault({"input": given_input}, endpoint=EMBEDDINGS) == (code, key, message)

    told = message.replace("input", "body.input", 1)
    assert fault(ready(EMBEDDINGS, input=given_input)) == (code, f"body.{key}", told)


@pytest.mark.parametrize(
    "given_input", ["a", ["a"] * 2_048, [1] * 5_000, [[1, 2]] * 2_048, [0, 9**18]]
)
def test_embedding_inputs_of_all_kinds_are_passed_on(given_input: Any) -> None:
    """A text, tokens, and as many of either as a request takes, are inputs."""
    request = renderer(endpoint=EMBEDDINGS).request(columns_of({"input": given_input}))

    assert json.loads(request.line("job-0"))["body"]["input"] == given_input


def test_one_vector_a_row() -> None:
    """Where answers become a matrix, a row with several inputs would have several rows in it."""
    changes = {"endpoint": EMBEDDINGS, "answers": ["npy"]}
    told = (
        'holds 2 inputs, and the profile\'s answers = ["npy"] has one vector a row; spread them '
        "over several rows"
    )

    for row, key in (
        ({"input": ["a", "b"]}, "input"),
        (ready(EMBEDDINGS, input=[[1], [2]]), "body.input"),
    ):
        assert fault(row, **changes) == ("too_many_inputs", key, f"{key} {told}")

    assert renderer(**changes).request(columns_of({"input": [1, 2, 3]})).inputs == 1


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        (
            {**ready(CHAT), "method": "GET"},
            "method",
            'method is "GET"; write "method": "POST"',
        ),
        (
            ready("/v1/images/edits"),
            "url",
            f'url is "/v1/images/edits"; write one of {", ".join(ENDPOINTS)}',
        ),
        (
            {"method": "POST", "url": CHAT, "body": "{}"},
            "body",
            "body is a string; write the body of the request as an object",
        ),
        (
            {"url": CHAT, "body": {}},
            "body.model",
            'body.model is missing; write the name of one, as in "model": "gpt-5-mini"',
        ),
        (
            ready(CHAT, model=""),
            "body.model",
            'body.model is ""; write the name of one, as in "model": "gpt-5-mini"',
        ),
        (
            ready(CHAT, stream=True),
            "body.stream",
            "body.stream is true, which no batch can do; leave it out",
        ),
        (
            ready(CHAT, stream="yes"),
            "body.stream",
            'body.stream is "yes", which no batch can do; leave it out',
        ),
        (
            ready(RESPONSES, background=True),
            "body.background",
            "body.background is true, which no batch can do; leave it out",
        ),
        (
            ready(CHAT),
            "body.messages",
            'body.messages is missing; write what to ask, as in "messages": [...]',
        ),
        (
            ready(RESPONSES),
            "body.input",
            'body.input is missing; write what to ask, as in "input": "..."',
        ),
    ],
)
def test_a_bad_ready_request_says_what_to_write(
    row: dict[str, Any], key: str, message: str
) -> None:
    """What would fail a whole batch is found in each ready request."""
    assert fault(row) == ("invalid_request", key, message)


@pytest.mark.parametrize(
    ("url", "body", "message"),
    [
        (
            CHAT,
            {"input": "a"},
            (
                f"url is \"{CHAT}\", which takes 'messages', but body has 'input'; write "
                f'\'messages\' there, or "url": "{RESPONSES}" or "{EMBEDDINGS}" or '
                f'"{MODERATIONS}"'
            ),
        ),
        (
            CHAT,
            {"prompt": "a"},
            (
                f"url is \"{CHAT}\", which takes 'messages', but body has 'prompt'; write "
                f'\'messages\' there, or "url": "{COMPLETIONS}"'
            ),
        ),
        *(
            (
                url,
                {"messages": []},
                (
                    f"url is \"{url}\", which takes '{field}', but body has 'messages'; write "
                    f'\'{field}\' there, or "url": "{CHAT}"'
                ),
            )
            for url, field in (
                (RESPONSES, "input"),
                (EMBEDDINGS, "input"),
                (MODERATIONS, "input"),
                (COMPLETIONS, "prompt"),
            )
        ),
        (
            RESPONSES,
            {"prompt": "a"},
            (
                f"url is \"{RESPONSES}\", which takes 'input', but body has 'prompt'; write "
                f'\'input\' there, or "url": "{COMPLETIONS}"'
            ),
        ),
    ],
)
def test_a_url_that_does_not_fit_its_body_names_the_one_that_does(
    url: str, body: dict[str, Any], message: str
) -> None:
    """The body tells which endpoint was meant, whatever the profile's is."""
    for endpoint in ENDPOINTS:
        assert fault(ready(url, **body), endpoint=endpoint) == ("url_mismatch", "url", message)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}),
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (RESPONSES, {"input": "a", "stream": False, "background": None}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": [[1, 2]]}),
        (MODERATIONS, {"input": [{"type": "image_url", "image_url": {"url": "https://a.b/"}}]}),
        (MODERATIONS, {"input": ["a", "b"]}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "n": 2, "stream_options": None}),
    ],
)
def test_ready_requests_of_all_kinds_are_passed_on(url: str, body: dict[str, Any]) -> None:
    """What an endpoint may take is passed on, whatever the profile's endpoint is."""
    for endpoint in ENDPOINTS:
        wire = renderer(endpoint=endpoint).request(columns_of(ready(url, **body))).line("job-0")
        assert json.loads(wire) == {"custom_id": "job-0", **ready(url, **body)}


@pytest.mark.parametrize(
    ("url", "body", "expected"),
    [
        (
            COMPLETIONS,
            {"prompt": None},
            (
                "invalid_prompt",
                "body.prompt",
                "body.prompt is null; write a string or an array",
            ),
        ),
        (
            COMPLETIONS,
            {"prompt": []},
            ("invalid_prompt", "body.prompt", "body.prompt is empty; write some text"),
        ),
        (
            MODERATIONS,
            {"input": ["a", 1]},
            (
                "invalid_input",
                "body.input[0]",
                f"body.input[0] is a string; write an object, as in {PART}",
            ),
        ),
        (
            MODERATIONS,
            {"input": [{"text": "a"}]},
            (
                "invalid_input",
                "body.input[0].type",
                f"body.input[0].type is missing; write the kind of the part, as in {PART}",
            ),
        ),
    ],
)
def test_a_bad_completion_or_moderation_says_where(
    url: str, body: dict[str, Any], expected: Fault
) -> None:
    """The other endpoints' prompts are looked at as well."""
    assert fault(ready(url, **body)) == expected


def test_a_ready_request_takes_no_schema() -> None:
    """Answers that were never asked for in a shape would all be said to miss it."""
    row = ready(CHAT, messages=[{"role": "user", "content": "a"}])

    assert fault(row, response_schema={"type": "object"}) == (
        "ready_request",
        None,
        (
            "the row is a ready request, which the profile's response_schema cannot be put into; "
            "bring messages or a prompt, or drop the file into a profile without one"
        ),
    )


@pytest.mark.parametrize("endpoint", [RESPONSES, EMBEDDINGS, MODERATIONS])
def test_two_prompts_are_ambiguous(endpoint: str) -> None:
    """Nothing says which of two prompts was meant, and the other would be dropped silently."""
    message = "the row has both 'input' and 'prompt'; leave one of them empty"

    expected = ("ambiguous_row", "prompt", message)
    assert fault({"prompt": "a", "input": "b"}, endpoint=endpoint) == expected

    request = renderer(endpoint=endpoint).request(columns_of({"prompt": "a", "input": ""}))
    assert b'"input":"a"' in request.line("job-0")


def test_messages_are_for_those_endpoints_that_take_them() -> None:
    """A row of messages in a profile for embeddings says which endpoints take it."""
    row = {"messages": [{"role": "user", "content": "a"}]}

    assert fault(row, endpoint=EMBEDDINGS) == (
        "invalid_prompt",
        "messages",
        (
            f"messages is an array; {EMBEDDINGS} takes none; set the profile's endpoint to "
            f"{CHAT} or {RESPONSES}"
        ),
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"custom_id": True}, "custom_id is true; "),
        ({"id": [1]}, "id is an array; "),
        ({"Id": {}}, "Id is an object; "),
        ({"id": 7.5}, "id is the number 7.5; "),
        ({"id": "a\nb"}, "id is 'a\\nb', which holds the control character U+000A; leave it out"),
        ({"id": "a\u2028"}, "id is 'a\\u2028', which holds the control character U+2028; "),
        ({"id": "x" * 513}, "id is 513 characters long; write 512 at most, or leave it empty to "),
    ],
)
def test_an_id_that_is_none_says_what_to_write(row: dict[str, Any], message: str) -> None:
    """An id that cannot be one is a fault, and not silently replaced by a line number."""
    with pytest.raises(BadInput) as caught:
        renderer().user_id(columns_of(row))

    assert caught.value.code == "invalid_id"
    assert caught.value.key in row
    assert caught.value.reason.startswith(message)


@pytest.mark.parametrize("raw", [b"1e999999999", b"1" * 600, b"1e600", b"0.1e-999999999"])
def test_a_number_of_endless_digits_is_no_id(raw: bytes) -> None:
    """A few characters of a number cannot fill the memory with its digits."""
    with pytest.raises(BadInput) as caught:
        renderer().user_id({"id": raw})

    assert caught.value.code == "invalid_id"


def test_the_id_templates_text_is_held_to_the_same() -> None:
    """A template's id is looked at as a column's is."""
    with pytest.raises(BadInput) as caught:
        renderer(id="{{ a }}-1").user_id({"a": b'"x\\ty"'})

    assert (caught.value.code, caught.value.key) == ("invalid_id", "id")


@pytest.mark.parametrize("depth", [400, 5_000, 200_000])
def test_deep_nesting_is_a_fault(depth: int) -> None:
    """JSON of any depth, in a text cell or beside one, ends in a fault and not in a crash."""
    deep = "[" * depth + "]" * depth
    messages = f'[{{"role": "user", "content": {deep}}}]'

    for raw in (msgspec.json.encode(messages), messages.encode()):
        with pytest.raises(BadInput) as caught:
            renderer().request({"messages": raw})

        assert caught.value.code in ("invalid_messages", "invalid_json")


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", " ", "user", "[", "[1]", '[{"role": "user"}]', CHAT, "\u2028\r", "text"])
    | st.text(max_size=6)
)
likely_keys = st.sampled_from(["role", "content", "type", "model", "messages", "input", "prompt"])
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(likely_keys | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)
column_names = st.sampled_from(
    [
        *("custom_id", "id", "method", "url", "body", "messages", "input", "prompt", "text"),
        *("Messages", " INPUT", "Prompt", "question", "image", "image_url", "model", "other"),
    ]
)


@settings(deadline=None, max_examples=400)
@given(
    st.dictionaries(column_names, json_values, max_size=6),
    st.sampled_from(ENDPOINTS),
    st.sampled_from([None, "<{{ prompt }}>", "{{ row | length }}"]),
    st.sampled_from([None, "Be brief."]),
)
def test_any_row_is_a_request_or_a_fault(
    row: dict[str, Any], endpoint: str, prompt: str | None, system: str | None
) -> None:
    """Whatever JSON is in whichever column, it becomes one line of JSON or a fault."""
    system = system if endpoint in (CHAT, RESPONSES) else None
    renders = renderer(endpoint=endpoint, prompt=prompt, system=system)

    try:
        renders.user_id(columns_of(row))
        wire = renders.request(columns_of(row)).line("job-0")
    except BadInput:
        return

    assert wire.decode().splitlines(keepends=True) == [wire.decode()]
    parsed = json.loads(wire)
    assert parsed["custom_id"] == "job-0"
    assert parsed["url"] in ENDPOINTS
    assert parsed["body"]["model"]


@settings(deadline=None)
@given(st.text(min_size=1), st.sampled_from(ENDPOINTS), st.sampled_from(["prompt", "Text", "x"]))
def test_a_plain_prompt_is_intact_everywhere(prompt: str, endpoint: str, column: str) -> None:
    """A prompt reaches every endpoint's body as it was written, in one line."""
    if not prompt.strip():
        return

    wire = renderer(endpoint=endpoint).request(columns_of({column: prompt})).line("job-0")
    body = json.loads(wire)["body"]
    sent = (
        body["messages"][0]["content"]
        if endpoint == CHAT
        else body.get("input", body.get("prompt"))
    )

    assert sent == prompt
    assert wire.decode().splitlines(keepends=True) == [wire.decode()]
