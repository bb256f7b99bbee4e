from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.render import MAX_NAMES, Renderer
from promptspool.intake.request import count_inputs
from promptspool.settings import ProfileSettings

CHAT = "/v1/chat/completions"

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def profile(**changes: object) -> ProfileSettings:
    """Return a profile that differs from the plainest in *changes*."""
    return ProfileSettings.model_validate({"model": "gpt-5-mini", **changes})


def columns_of(text: str | bytes) -> dict[str, bytes]:
    """Return the columns that a JSON object is; their values stay as they are written."""
    columns = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    return {name: bytes(raw) for name, raw in columns.items()}


def line_of(text: str | bytes, **changes: object) -> dict[str, Any]:
    """Return what becomes of a JSON object, parsed back; one physical line of JSON."""
    wire = Renderer(profile(**changes)).request(columns_of(text)).line("job-0")
    assert wire.decode().splitlines(keepends=True) == [wire.decode()]

    parsed: dict[str, Any] = json.loads(wire)
    return parsed


def body_of(text: str, **changes: object) -> dict[str, Any]:
    """Return the body of what becomes of a row that the profile has the say of."""
    parsed = line_of(text, **changes)
    assert list(parsed) == ["custom_id", "method", "url", "body"]
    assert (parsed["custom_id"], parsed["method"]) == ("job-0", "POST")
    assert parsed["url"] == changes.get("endpoint", CHAT)

    body: dict[str, Any] = parsed["body"]
    return body


def fault(line: str | bytes, **changes: object) -> tuple[str, str]:
    """Return the code and message that a person gets for a line."""
    with pytest.raises(BadInput) as caught:
        line_of(line, **changes)

    return caught.value.code, caught.value.reason


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (
            CHAT,
            {
                "model": "gpt-5-mini",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "hi"},
                ],
                "seed": 1,
            },
        ),
        (
            "/v1/responses",
            {"model": "gpt-5-mini", "input": "hi", "instructions": "Be brief.", "seed": 1},
        ),
        ("/v1/embeddings", {"model": "gpt-5-mini", "input": "hi", "seed": 1}),
        ("/v1/completions", {"model": "gpt-5-mini", "prompt": "hi", "seed": 1}),
        ("/v1/moderations", {"model": "gpt-5-mini", "input": "hi", "seed": 1}),
    ],
)
def test_a_prompt_becomes_each_endpoints_body(endpoint: str, expected: dict[str, object]) -> None:
    """A prompt goes where its endpoint takes it, after the model and before the params."""
    system = "Be brief." if endpoint in (CHAT, "/v1/responses") else None
    body = body_of('{"prompt": "hi"}', endpoint=endpoint, system=system, params={"seed": 1})

    assert list(body.items()) == list(expected.items())


def test_a_row_brings_its_messages() -> None:
    """Messages are passed on as written, with the row's own model."""
    messages = '[{"role": "user",  "content": [{"type": "text", "text": 1.50}]}]'
    line = f'{{"messages": {messages}, "model": "other", "ignored": 1}}'
    request = Renderer(profile()).request(columns_of(line))

    assert messages.encode() in request.line("job-0")
    assert request.model == "other"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_rows_system_message_wins(role: str) -> None:
    """The profile's system message is put before messages that have none of their own."""
    own = {"role": role, "content": "Mine."}
    user = {"role": "user", "content": "hi"}
    ours = {"role": "system", "content": "Ours."}

    for given_messages, expected in (([user], [ours, user]), ([own, user], [own, user])):
        line = json.dumps({"messages": given_messages})
        assert body_of(line, system="Ours.")["messages"] == expected

    answers = "/v1/responses"
    body = body_of(json.dumps({"messages": [user]}), endpoint=answers, system="Ours.")
    assert body == {"model": "gpt-5-mini", "input": [user], "instructions": "Ours."}
    body = body_of(json.dumps({"input": [own, user]}), endpoint=answers, system="Ours.")
    assert body == {"model": "gpt-5-mini", "input": [own, user]}


def test_a_row_brings_its_input() -> None:
    """An input is passed on as written where the endpoint takes one."""
    body = body_of('{"input": ["a", "b"], "model": 5}', endpoint="/v1/embeddings")
    assert body == {"model": "gpt-5-mini", "input": ["a", "b"]}

    body = body_of('{"input": "a"}', endpoint="/v1/responses", system="Ours.")
    assert body == {"model": "gpt-5-mini", "input": "a", "instructions": "Ours."}

    # For a chat, `input` is a column like any other.
    body = body_of('{"input": "a"}', prompt="<{{ input }}>")
    assert body["messages"] == [{"role": "user", "content": "<a>"}]


def test_a_template_sees_the_columns() -> None:
    """A prompt template renders the row's values, unescaped, also those with impossible names."""
    line = r'{"a": "<&\"\u2028>", "n": [1, 2], "odd name": "x"}'
    body = body_of(line, prompt="{{ a }} {{ n | sum }} {{ row['odd name'] }}\n")

    assert body["messages"][0]["content"] == '<&"\u2028> 3 x\n'


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), values, max_size=3),
    st.dictionaries(st.text(max_size=5), values, max_size=3),
)
def test_a_ready_request_is_passed_on_as_it_is(
    extra_body: dict[str, object], extra: dict[str, object]
) -> None:
    """All of a ready request but its custom_id arrives as it was written."""
    body = {**extra_body, "model": "m"}
    body.update(input="hi")
    body.pop("stream", None)
    line = {**extra, "custom_id": "mine", "url": "/v1/embeddings", "body": body}
    expected = {"method": "POST", **line, "custom_id": "job-0"}

    if extra.get("method", "POST") == "POST":
        assert line_of(json.dumps(line, ensure_ascii=False)) == expected


def test_ready_bytes_are_kept() -> None:
    """Numbers, spaces and escapes of a ready body are its author's business."""
    raw = rb'{"x": 1.500,  "input":"\u00e9", "model" : "m", "z": 123456789012345678901234567890}'
    line = b'{"custom_id": "a", "url": "/v1/responses", "body": %s}' % raw
    request = Renderer(profile()).request(columns_of(line))

    assert request.line("job-0") == (
        b'{"custom_id":"job-0","method":"POST","url":"/v1/responses","body":%s}\n' % raw
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a"', 1),
        ("[1, 2, 3]", 1),
        ('["a", "b"]', 2),
        ("[[1, 2], [3]]", 2),
    ],
)
def test_inputs_are_counted(text: str, expected: int) -> None:
    """A text or a list of tokens is one input; a list of those is as many."""
    assert count_inputs(text.encode()) == expected

    request = {"url": "/v1/embeddings", "body": {"model": "m", "input": json.loads(text)}}
    ready = Renderer(profile()).request(columns_of(json.dumps(request)))
    brought = Renderer(profile(endpoint="/v1/embeddings")).request({"input": text.encode()})
    assert ready.inputs == brought.inputs == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ reveiw }}",
            "the prompt template fails: 'reveiw' is undefined; the row has 'review', 'n'",
        ),
        (
            "{{ review.x }}",
            (
                "the prompt template fails: 'str object' has no attribute 'x'; "
                "the row has 'review', 'n'"
            ),
        ),
        ("{{ 1 // n }}", "the prompt template fails: integer division or modulo by zero"),
        (
            "{{ review.__class__.__mro__ }}",
            "the prompt template fails: access to attribute '__class__' of 'str' object is unsafe.",
        ),
    ],
)
def test_a_failing_template_is_the_rows_fault(template: str, message: str) -> None:
    """What a template cannot do with a row is said in the template's terms."""
    line = '{"review": "good", "n": 0}'

    assert fault(line, prompt=template) == ("template_error", message)


def test_a_template_that_makes_nothing_is_a_fault() -> None:
    """An empty prompt costs money and answers nothing, however it came about."""
    line = '{"a": ""}'

    assert fault(line, prompt=" {{ a }}") == (
        "empty_prompt",
        "the prompt is empty; write some text",
    )
    assert fault(line, prompt=r'{{ "\ud800" }}')[0] == "template_error"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"params": {"stream": True}},
            "the profile's params hold 'stream', which no batch can do; leave it out",
        ),
        (
            {"params": {"background": True}},
            "the profile's params hold 'background', which no batch can do; leave it out",
        ),
        (
            {"params": {"when": {1j: 2}}},
            (
                "the profile's params.when cannot be written as JSON: Only dicts with str-like or "
                "number-like keys are supported"
            ),
        ),
        (
            {"params": {"response_format": {}}, "response_schema": {"type": "object"}},
            (
                "the profile's params hold 'response_format', which response_schema decides; "
                "leave it out"
            ),
        ),
        (
            {
                "endpoint": "/v1/responses",
                "params": {"text": {}},
                "response_schema": {"type": "object"},
            },
            "the profile's params hold 'text', which response_schema decides; leave it out",
        ),
        (
            {"params": {"messages": []}},
            "the profile's params hold 'messages', which the rows decide; leave it out",
        ),
        (
            {"endpoint": "/v1/responses", "system": "x", "params": {"instructions": "y"}},
            "the profile's params hold 'instructions', which the rows decide; leave it out",
        ),
    ],
)
def test_a_profile_that_fits_no_row_says_so(changes: dict[str, Any], message: str) -> None:
    """Params that would fail every request fail the file, before money."""
    with pytest.raises(BadInput) as caught:
        Renderer(profile(**changes))

    assert (caught.value.code, caught.value.reason) == ("bad_profile", message)


@pytest.mark.parametrize(
    ("line", "template", "expected"),
    [
        ('{"custom_id": "a", "id": "b"}', None, "a"),
        ('{"custom_id": 12, "id": "b"}', None, "12"),
        ('{"id": 123456789012345678901234567890}', None, "123456789012345678901234567890"),
        ('{"custom_id": "", "id": null}', None, None),
        ('{"custom_id": " ", "id": "b"}', None, "b"),
        ('{"prompt": "x"}', None, None),
        ('{"custom_id": 7.0}', None, "7"),
        ('{"id": -0.0}', None, "0"),
        ('{"id": 1.2e3}', None, "1200"),
        ('{"Id ": " a "}', None, " a "),
        ('{"Id": "b", "CUSTOM_ID": "a"}', None, "a"),
        ('{"custom_id": "a", "sku": 7}', "sku-{{ sku }}", "sku-7"),
    ],
)
def test_the_users_id_is_found(line: str, template: str | None, expected: str | None) -> None:
    """A row is called by the profile's template, its custom_id or its id, in this order."""
    assert Renderer(profile(id=template)).user_id(columns_of(line)) == expected


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(min_size=1, max_size=8))
def test_any_text_survives(prompt: str, system: str, model: str) -> None:
    """Whatever a prompt holds reaches the model, in one line of JSON."""
    renderer = Renderer(profile(model=model, system=system))

    if prompt.strip():
        wire = renderer.request({"text": msgspec.json.encode(prompt)}).line("job-0")
        contents = [one["content"] for one in json.loads(wire)["body"]["messages"]]
        assert contents == ([system, prompt] if system else [prompt])
        assert len(wire.decode().splitlines()) == 1


def test_a_pretty_printed_value_is_one_line() -> None:
    """Line ends between the tokens of what a row brings do not end the request's line."""
    messages = b'[\r\n  {"role": "user",\n   "content": "a\\nb"}\n]'
    wire = Renderer(profile()).request({"messages": messages}).line("job-0")

    assert wire.count(b"\n") == 1
    assert json.loads(wire)["body"]["messages"] == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ('{"question": "q", "input": "i", "text": "t", "prompt": "p"}', "prompt"),
        ('{"question": "q", "input": "i", "text": "t"}', "text"),
        ('{"question": "q", "input": "i", "label": 1}', "input"),
        ('{"Question": "q", "text": "t"}', "text"),
        ('{"label": 1, " QUESTION ": "q"}', " QUESTION "),
        ('{"ID": 1, "review": "r"}', "review"),
        ('{"custom_id": "a", "id": 1, "image_url": null, "review": "r"}', "review"),
    ],
)
def test_the_prompts_column_is_found(line: str, taken: str) -> None:
    """Without a template the likeliest name is the prompt's column, exact ones first, or the only.

    Which one it was is remembered.
    """
    renderer = Renderer(profile())
    wire = renderer.request(columns_of(line)).line("job-0")

    assert json.loads(wire)["body"]["messages"][0]["content"] == json.loads(line)[taken]
    assert renderer.prompt_columns == [taken]


def test_prompt_columns_are_remembered_in_order() -> None:
    """The columns that were taken are listed once each, and no more of them than a log bears."""
    renderer = Renderer(profile())
    names = ["text", "prompt", "text", *(f"column {n}" for n in range(50))]

    for name in names:
        renderer.request({name: b'"hi"'})

    assert renderer.prompt_columns == [
        "text",
        "prompt",
        *(f"column {n}" for n in range(MAX_NAMES - 2)),
    ]


def test_a_row_without_its_messages_may_have_a_prompt() -> None:
    """Where rows bring messages, `prompt` stands in for those that are empty, no other column."""
    assert body_of('{"messages": null, "prompt": "hi"}')["messages"][0]["content"] == "hi"
    assert fault('{"messages": "", "text": "hi"}')[0] == "invalid_messages"
    assert fault('{"messages": null, "label": "good"}')[0] == "invalid_messages"


def test_messages_may_be_json_in_a_text_cell() -> None:
    """A table has no place for an array but a text, so a text that is one is taken for it."""
    messages = [{"role": "user", "content": "é\u2028\n"}]
    cell = json.dumps(messages, indent=1, ensure_ascii=False)

    for endpoint, field in ((CHAT, "messages"), ("/v1/responses", "input")):
        assert body_of(json.dumps({"Messages": cell}), endpoint=endpoint)[field] == messages


def test_a_number_is_a_prompt() -> None:
    """A cell that a spreadsheet took for a number is the text that it shows."""
    assert body_of('{"prompt": 7.50}')["messages"][0]["content"] == "7.50"
    assert body_of('{"input": -3}', endpoint="/v1/completions")["prompt"] == "-3"


def test_a_template_has_the_say_of_texts() -> None:
    """With a template, a text called input or messages is a column like any other."""
    for endpoint, field in (("/v1/responses", "input"), ("/v1/embeddings", "input")):
        body = body_of('{"input": "a"}', endpoint=endpoint, prompt="<{{ input }}>")
        assert body[field] == "<a>"

    line = '{"messages": "a", "prompt": "b", "method": "GET", "url": "/", "body": "c"}'
    body = body_of(line, prompt="{{ messages }}{{ prompt }}{{ body }}")
    assert body["messages"][0]["content"] == "abc"


def test_a_schema_comes_after_the_params() -> None:
    """The profile's schema is in each body, whatever the row brings."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}

    for endpoint, name in ((CHAT, "response_format"), ("/v1/responses", "text")):
        made = {"endpoint": endpoint, "response_schema": schema, "params": {"seed": 1}}

        for line in ('{"prompt": "hi"}', '{"messages": [{"role": "user", "content": "hi"}]}'):
            body = body_of(line, **made)
            assert list(body)[-2:] == ["seed", name]
            assert '"properties": {"a": {' in json.dumps(body[name])


def test_a_template_cannot_grow_without_end() -> None:
    """What a few characters could make fill the memory is a fault."""
    line = '{"a": "b", "n": 10}'

    for template in ("{{ a * 100000000 }}", "{{ n ** 99999999 }}", "{{ [a] * 9999999 * n }}"):
        code, message = fault(line, prompt=template)
        assert code == "template_error"
        assert message.endswith("is too large")

    body = body_of(line, prompt="{{ a * 3 * 2 ** 2 }}")
    assert body["messages"][0]["content"] == "b" * 12
