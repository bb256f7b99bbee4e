from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.readers import jsonl_columns, reader_of, text_columns
from promptspool.intake.render import Renderer
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


def line_of(text: str | bytes, **changes: object) -> dict[str, Any]:
    """Return what becomes of a JSON line, parsed back; one physical line of JSON."""
    line = text.encode() if isinstance(text, str) else text
    wire = Renderer(profile(**changes)).request(jsonl_columns(line)).line("job-0")
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
    body = body_of('{"prompt": "hi"}', endpoint=endpoint, system="Be brief.", params={"seed": 1})

    assert list(body.items()) == list(expected.items())


def test_a_bare_string_is_a_prompt() -> None:
    """A line that is one JSON string is what a text line is."""
    assert body_of('"hi"')["messages"] == [{"role": "user", "content": "hi"}]
    assert jsonl_columns(b' "hi" ') == text_columns(b"hi")


def test_a_row_brings_its_messages() -> None:
    """Messages are passed on as written, with the row's own model."""
    messages = '[{"role": "user",  "content": [{"type": "text", "text": 1.50}]}]'
    line = f'{{"messages": {messages}, "model": "other", "ignored": 1}}'
    request = Renderer(profile()).request(jsonl_columns(line.encode()))

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
    body.pop("stream", None)
    line = {**extra, "custom_id": "mine", "url": "/v1/embeddings", "body": body}
    expected = {"method": "POST", **line, "custom_id": "job-0"}

    if extra.get("method", "POST") == "POST":
        assert line_of(json.dumps(line, ensure_ascii=False)) == expected


def test_ready_bytes_are_kept() -> None:
    """Numbers, spaces and escapes of a ready body are its author's business."""
    raw = rb'{"x": 1.500,  "y":"\u00e9", "model" : "m", "z": 123456789012345678901234567890}'
    line = b'{"custom_id": "a", "url": "/v1/responses", "body": %s}' % raw
    request = Renderer(profile()).request(jsonl_columns(line))

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
    ready = Renderer(profile()).request(jsonl_columns(json.dumps(request).encode()))
    brought = Renderer(profile(endpoint="/v1/embeddings")).request({"input": text.encode()})
    assert ready.inputs == brought.inputs == expected


READY = '{"url": "/v1/responses", "body": {"model": "m"%s}%s}'


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (
            "{'prompt': 1}",
            "invalid_json",
            (
                "broken JSON: expecting property name enclosed in double quotes at column 2; "
                "write one whole object a line"
            ),
        ),
        (
            "{",
            "invalid_json",
            (
                "broken JSON: expecting property name enclosed in double quotes at column 2; "
                "write one whole object a line"
            ),
        ),
        (
            '{"é": "b" "c"}',
            "invalid_json",
            "broken JSON: expecting ',' delimiter at column 11; write one whole object a line",
        ),
        (
            '{"prompt": NaN}',
            "invalid_json",
            "broken JSON: NaN is no JSON; write null or a string",
        ),
        (
            r'{"prompt": "\ud83d"}',
            "invalid_json",
            r"broken JSON: half a surrogate pair (\uD800 to \uDFFF stand only in pairs)",
        ),
        ('{"prompt": %s}' % ("[" * 9999), "invalid_json", "the JSON is nested too deeply"),
        (
            "[1, 2]",
            "not_an_object",
            'found an array; write one object a line, as in {"prompt": "..."}',
        ),
        (
            "12.5",
            "not_an_object",
            'found the number 12.5; write one object a line, as in {"prompt": "..."}',
        ),
        (
            " true ",
            "not_an_object",
            'found true; write one object a line, as in {"prompt": "..."}',
        ),
        (
            "null",
            "not_an_object",
            'found null; write one object a line, as in {"prompt": "..."}',
        ),
        (
            '{"text": "a", "label": 1}',
            "missing_prompt",
            (
                "found no key 'prompt' but 'text', 'label'; "
                "rename one, or write a prompt template in the profile"
            ),
        ),
        (
            "{}",
            "missing_prompt",
            (
                "found no key 'prompt' but no keys; "
                "rename one, or write a prompt template in the profile"
            ),
        ),
        ('{"prompt": 7}', "invalid_prompt", "prompt is the number 7; write a string"),
        ('{"prompt": null}', "invalid_prompt", "prompt is null; write a string"),
        ('{"prompt": ["a"]}', "invalid_prompt", "prompt is an array; write a string"),
        (r'{"prompt": " \n"}', "empty_prompt", "the prompt is empty; write some text"),
        ('""', "empty_prompt", "the prompt is empty; write some text"),
        (
            '{"messages": "hi"}',
            "invalid_messages",
            'messages is a string; write an array, as in [{"role": "user", "content": "..."}]',
        ),
        (
            '{"messages": []}',
            "invalid_messages",
            "messages is empty; write at least one message",
        ),
        (
            '{"messages": ["hi"]}',
            "invalid_messages",
            (
                "messages holds something that is no object; "
                'write each as {"role": "user", "content": "..."}'
            ),
        ),
        (
            READY % ("", ', "method": "GET"'),
            "invalid_request",
            'method is "GET"; write "method": "POST"',
        ),
        (
            '{"url": "/v1/images/edits", "body": {"model": "m"}}',
            "invalid_request",
            (
                'url is "/v1/images/edits"; write one of /v1/chat/completions, /v1/responses, '
                "/v1/embeddings, /v1/completions, /v1/moderations"
            ),
        ),
        (
            '{"method": "POST", "url": "/v1/responses", "body": "{}"}',
            "invalid_request",
            "body is a string; write the body of the request as an object",
        ),
        (
            '{"url": "/v1/responses", "body": {}}',
            "invalid_request",
            'body.model is missing; write the name of one, as in "model": "gpt-5-mini"',
        ),
        (
            '{"url": "/v1/responses", "body": {"model": ""}}',
            "invalid_request",
            'body.model is ""; write the name of one, as in "model": "gpt-5-mini"',
        ),
        (
            READY % (', "stream": true', ""),
            "invalid_request",
            "body.stream is true, which no batch can do; leave it out",
        ),
    ],
)
def test_a_bad_row_says_what_to_write(line: str, code: str, message: str) -> None:
    """Every fault of a row names what was found and what to write instead."""
    assert fault(line) == (code, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": 5}', "input is the number 5; write a string or an array"),
        ('{"input": {}}', "input is an object; write a string or an array"),
        ('{"input": []}', "input is empty; write some text"),
        ('{"input": " "}', "input is empty; write some text"),
        (
            '{"input": ["a"]}',
            (
                "input holds something that is no object; "
                'write each as {"role": "user", "content": "..."}'
            ),
        ),
    ],
)
def test_a_bad_input_says_what_to_write(line: str, message: str) -> None:
    """An input that no endpoint takes is the row's fault, not the batch's."""
    assert fault(line, endpoint="/v1/responses") == ("invalid_input", message)


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
            {"params": {"stream": False}},
            "the profile's params hold 'stream', which no batch can do; leave it out",
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
        ('{"custom_id": "a", "sku": 7}', "sku-{{ sku }}", "sku-7"),
    ],
)
def test_the_users_id_is_found(line: str, template: str | None, expected: str | None) -> None:
    """A row is called by the profile's template, its custom_id or its id, in this order."""
    assert Renderer(profile(id=template)).user_id(jsonl_columns(line.encode())) == expected


def test_an_unknown_extension_lists_the_known() -> None:
    """A file that no reader takes says which ones there are."""
    with pytest.raises(BadInput, match=r"^found the extension '.docx', which no reader knows; "):
        reader_of("a/b.docx")

    with pytest.raises(BadInput, match=r"found no extension, .* known are .jsonl, .txt$"):
        reader_of("a.b/c")

    assert reader_of("A.JSONL") is jsonl_columns


@settings(deadline=None)
@given(st.text(max_size=40), st.text(min_size=1, max_size=8))
def test_any_text_survives(prompt: str, model: str) -> None:
    """Whatever a text line holds reaches the model, in one line of JSON."""
    line = prompt.replace("\n", "").encode()
    renderer = Renderer(profile(model=model, system=prompt))

    if prompt.strip() and line.strip():
        wire = renderer.request(text_columns(line)).line("job-0")
        contents = [one["content"] for one in json.loads(wire)["body"]["messages"]]
        assert contents == [prompt, line.decode()]
        assert len(wire.decode().splitlines()) == 1
