from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.schema import (
    Checker,
    Misfit,
    check_schema,
    properties,
    request_member,
    strictness,
)

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"

REVIEW: dict[str, Any] = {
    "title": "Review of a product!",
    "type": "object",
    "properties": {
        "sentiment": {"type": "string", "enum": ["good", "bad"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"type": "string"}},
        "author": {
            "type": "object",
            "properties": {"full name": {"type": ["string", "null"]}},
            "required": ["full name"],
            "additionalProperties": False,
        },
    },
    "required": ["sentiment", "score", "tags", "author"],
    "additionalProperties": False,
}
GOOD = {"sentiment": "good", "score": 4, "tags": ["a"], "author": {"full name": None}}


def changed(**members: object) -> str:
    """Return an answer that fits but for *members*."""
    return json.dumps({**GOOD, **members})


def misfit(text: str, schema: dict[str, Any] = REVIEW) -> str:
    """Return why *text* does not fit."""
    found = Checker(schema).parsed(text)
    assert isinstance(found, Misfit)

    return found.reason


def test_what_fits_is_given_back_on_one_line() -> None:
    """Numbers, strings and the order of keys stay as the model wrote them; line breaks go."""
    text = '\n{ "b": 1.50e3,\r\n\t"a": "x  y\\n\\u00e9", "n": 123456789012345678901234567890 } \n'

    assert Checker({"type": "object"}).parsed(text) == (
        b'{"b":1.50e3,"a":"x  y\\n\\u00e9","n":123456789012345678901234567890}'
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (changed(score=9), "at $.score: 9 is greater than the maximum of 5"),
        (changed(tags=["a", 3]), 'at $.tags[1]: 3 is not of type "string"'),
        (
            changed(author={"full name": 7}),
            'at $.author["full name"]: 7 is not of types "null", "string"',
        ),
        (changed(author={}), 'at $.author: "full name" is a required property'),
        (changed(x=1), "at $: Additional properties are not allowed ('x' was unexpected)"),
        ("[]", 'at $: [] is not of type "object"'),
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        (
            'Here it is: {"a": 1}',
            (
                "the answer is no JSON (JSON is malformed: invalid character (byte 0)); it begins "
                '"Here it is: {\\"a\\": 1}"'
            ),
        ),
        ("[" * 400 + "]" * 400, "the answer is nested deeper than 128 levels"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(text: str, reason: str) -> None:
    """A person reads what was found and where, not only that something is wrong."""
    assert misfit(text) == reason


def test_a_long_value_is_not_repeated_in_full() -> None:
    """A complaint about a value of many pages is a line that can be read."""
    reason = misfit(changed(sentiment="x" * 90_000))

    assert reason.startswith('at $.sentiment: "xxx')
    assert reason.endswith('is not one of "good" or "bad"')
    assert len(reason) < 300
    assert len(misfit("x" * 1_000_000)) < 300


def test_nesting_that_is_flat_is_no_depth() -> None:
    """Only levels count, not brackets."""
    text = json.dumps({"a": [[] for _ in range(1_000)]})

    assert Checker({"type": "object"}).parsed(text) == text.replace(" ", "").encode()


RECURSIVE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": []}


@pytest.mark.parametrize(
    "schema",
    [
        RECURSIVE,
        {"type": "object", "$ref": "#"},
        {"type": "object", "anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]},
    ],
)
@pytest.mark.parametrize("depth", [1, 120, 200, 5_000, 200_000])
def test_depth_ends_in_a_word(schema: dict[str, Any], depth: int) -> None:
    """Neither a schema without an end nor an answer without one takes the process down."""
    found = Checker(schema).parsed('{"next":' * depth + "{}" + "}" * depth)

    assert isinstance(found, bytes) == (depth < 128)


def test_a_pattern_that_backtracks_is_given_up() -> None:
    """A hostile pattern ends in a misfit, not in a hang."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}

    assert "does not match" in misfit(json.dumps({"a": "a" * 60 + "b"}), schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.text() | json_values.map(json.dumps))
def test_every_text_is_parsed_or_misfits(text: str) -> None:
    """Nothing that a model writes is an exception; what is parsed is what was written."""
    found = Checker({}).parsed(text)

    if isinstance(found, bytes):
        assert json.loads(found) == json.loads(text)
        assert b"\n" not in found
        assert b"\r" not in found
    else:
        assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({}, '#/type: found nothing; write "object"'),
        ({"type": "array", "items": {}}, '#/type: found "array"; write "object"'),
        ({"type": ["object", "null"]}, '#/type: found ["object","null"]; write "object"'),
        ({"type": "objekt"}, '#/type: "objekt" is not valid under any of'),
        ({"type": "object", "required": "a"}, '#/required: "a" is not of type "array"'),
        (
            {"type": "object", "properties": {"a/b": {"pattern": "("}}},
            '#/properties/a~1b/pattern: "(" is not a "regex"',
        ),
        ({"type": "object", "$ref": "#/$defs/x"}, "#: Pointer '/$defs/x' does not exist"),
        ({"$schema": "https://example.com/mine", "type": "object"}, "#: Unknown meta-schema"),
        ({"type": "object", "minimum": float("inf")}, "#/minimum: null is not of type"),
        ({"type": "object", "const": object()}, "#: Unsupported type"),
        ({"type": "object", "$defs": {5: {}}}, "#: Dict key must be str"),
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any], reason: str) -> None:
    """The place and what was found are in one line."""
    with pytest.raises(ValueError, match="^" + re.escape(reason)) as caught:
        check_schema(schema)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "reference",
    ["https://example.com/x.json", "file:///etc/passwd", "other.json#/a", "/etc/passwd", ""],
)
def test_nothing_outside_is_referred_to(reference: str) -> None:
    """A schema never makes anybody read a file or an address."""
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": reference}]}}}
    found = refusal(schema) or ""

    assert found.startswith(f"#/properties/a/anyOf/0/$ref: found {reference!r}; a schema refers")
    assert found.endswith('put it under "$defs" and write "#/$defs/NAME"')


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"$dynamicRef": "#/$defs/b"}, '#/$defs/a/$dynamicRef: write "$ref" instead'),
        ({"$recursiveRef": "#"}, '#/$defs/a/$recursiveRef: write "$ref" instead'),
        ({"$id": "https://example.com"}, "#/$defs/a/$id: a part of a schema has no id of its own"),
        ({"$ref": "#name", "$anchor": "name"}, "#/$defs/a/$ref: found '#name'"),
    ],
)
def test_parts_are_named_by_their_place(part: dict[str, Any], reason: str) -> None:
    """What follows from what can be told before anything is checked."""
    schema = {"type": "object", "$defs": {"a": part, "b": {}}}

    assert (refusal(schema) or "").startswith(reason)


def chained(length: int) -> dict[str, Any]:
    """Return a schema of so many parts, each of which is the next."""
    parts = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(length)}

    return {"type": "object", "$ref": "#/$defs/a0", "$defs": {**parts, f"a{length}": {}}}


def doubled(levels: int) -> dict[str, Any]:
    """Return a schema that is twice as long for each level, with its references written out."""
    parts = {
        f"a{n}": {"anyOf": [{"properties": {"a": {"$ref": f"#/$defs/a{n + 1}"}}}] * 2}
        for n in range(levels)
    }

    return {"type": "object", "$ref": "#/$defs/a0", "$defs": {**parts, f"a{levels}": {}}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "$ref": "#"}, "#: it refers to itself without end"),
        (
            {"type": "object", "items": {"anyOf": [{"allOf": [{"$ref": "#/items"}]}]}},
            "#/items: it refers to itself without end",
        ),
        (
            chained(200),
            "#: more than 100 parts follow from one another for one value",
        ),
        (
            chained(100_000),
            "#: more than 100 parts follow from one another for one value",
        ),
        (doubled(20), "#: with its references written out it has more than 50,000 parts"),
        (doubled(30), "#: with its references written out it has more than 50,000 parts"),
        (doubled(90), "#: more than 100 parts follow from one another"),
    ],
)
def test_a_schema_without_bounds_is_refused(schema: dict[str, Any], reason: str) -> None:
    """What would keep the checker busy for years, or end the process, never gets to it."""
    assert refusal(schema) == reason


@pytest.mark.parametrize("schema", [chained(90), doubled(8)])
def test_a_schema_within_bounds_is_checked(schema: dict[str, Any]) -> None:
    """What is long but not endless is served."""
    check_schema(schema)

    assert Checker(schema).parsed('{"a":{"a":1}}') == b'{"a":{"a":1}}'


def expression() -> dict[str, Any]:
    """Return a schema of a tree whose parts are one of three kinds."""
    kinds = [
        {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/part"}, kind: {"type": "string"}},
            "required": ["left", kind],
            "additionalProperties": False,
        }
        for kind in ("plus", "minus")
    ]

    return {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/part"}},
        "required": ["root"],
        "$defs": {"part": {"anyOf": [*kinds, {"type": "null"}]}},
    }


def test_a_tree_is_checked_to_its_leaves() -> None:
    """A schema that comes again in itself doubles no work with each level."""
    schema = expression()
    check_schema(schema)
    text = '{"root":' + '{"left":' * 60 + "%s" + ',"minus":"x"}' * 60 + "}"

    assert Checker(schema).parsed(text % "null") == (text % "null").encode()
    assert misfit(text % "3", schema) == "the answer does not fit where the schema refers to itself"
    assert misfit('{"root": 3}', schema).startswith("at $.root: 3 is not valid under any")


def test_a_long_answer_is_only_said_not_to_fit() -> None:
    """All that is wrong with a long answer is not listed to find the first of it."""
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"items": {"type": "string"}}]}}}

    assert misfit(json.dumps({"a": [0] * 100_000}), schema) == (
        "the answer does not fit the schema; it is too long to say where"
    )


def test_a_checker_fetches_nothing_either() -> None:
    """Even unchecked, a schema that refers outside is refused, not followed."""
    with pytest.raises(ValueError, match="Retrieval is disabled"):
        Checker({"$ref": "http://127.0.0.1:1/schema.json"})


@pytest.mark.parametrize(
    "schema",
    [
        REVIEW,
        RECURSIVE,
        {"type": "object", "properties": {"$ref": {"type": "string"}}},
        {"type": "object", "default": {"$ref": "elsewhere"}},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "definitions": {"a": {"type": "string"}},
            "properties": {"b": {"$ref": "#/definitions/a"}},
        },
    ],
)
def test_what_is_a_schema_passes(schema: dict[str, Any]) -> None:
    """A property may be called `$ref`, and data may hold anything."""
    check_schema(schema)


def test_the_named_draft_is_honoured() -> None:
    """Draft 4 has a flag where later drafts have a number."""
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {"a": {"type": "number", "minimum": 3, "exclusiveMinimum": True}},
    }
    check_schema(schema)

    assert misfit('{"a": 3}', schema).startswith("at $.a: 3 is less than or equal to")

    with pytest.raises(ValueError, match="true is not of type"):
        check_schema({key: schema[key] for key in ("type", "properties")})


def refusal(schema: dict[str, Any]) -> str | None:
    """Return why *schema* is refused, None if it is not."""
    try:
        check_schema(schema)
    except ValueError as error:
        return str(error)

    return None


def strict(**members: object) -> dict[str, Any]:
    """Return a schema with one property, which has *members*."""
    return {
        "type": "object",
        "properties": {"a": members},
        "required": ["a"],
        "additionalProperties": False,
    }


def nested(levels: int) -> dict[str, Any]:
    """Return a strict schema of objects in objects."""
    return strict(**nested(levels - 1)) if levels else {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        REVIEW,
        nested(10),
        strict(anyOf=[{"type": "string"}, {"type": "null"}]),
        strict(**{"$ref": "#"}),
        strict(type=["string", "null"], format="date-time", pattern="^2", description="when"),
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            **strict(**{"$ref": "#/$defs/b"}),
            "$defs": {"b": strict(type="number", multipleOf=2, minimum=0)},
        },
    ],
)
def test_strict_schemas_are_asked_for_strictly(schema: dict[str, Any]) -> None:
    """What the documented part of JSON Schema can say is not asked for loosely."""
    check_schema(schema)

    assert strictness(schema) is None


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object"}, "#: additionalProperties is not false"),
        ({**REVIEW, "anyOf": [{}]}, "#/anyOf: not at the root"),
        ({**REVIEW, "required": ["score"]}, "#: author is not in both of properties and required"),
        ({**strict(type="string"), "required": ["a", "b"]}, "#: b is not in both"),
        ({**REVIEW, "patternProperties": {}}, "#: patternProperties is not supported"),
        (strict(type="string", minLength=1), "#/properties/a: minLength is not supported"),
        (strict(type="string", format="uri"), "#/properties/a: the format uri is not supported"),
        (strict(allOf=[{"type": "string"}]), "#/properties/a: allOf is not supported"),
        (strict(), "#/properties/a: no type is given"),
        (strict(type="array"), "#/properties/a: items is missing"),
        (strict(type="array", items=True), "#/properties/a/items: any value is allowed"),
        (strict(type=["object", "null"]), "#/properties/a: additionalProperties is not false"),
        (strict(anyOf=[{"type": "object"}]), "#/properties/a/anyOf/0: additionalProperties"),
        (
            {**strict(**{"$ref": "#/$defs/b", "title": "A"}), "$defs": {"b": {"type": "null"}}},
            "#/properties/a: $ref stands beside other keywords",
        ),
        ({**strict(type="null"), "$defs": {"b/c": {}}}, "#/$defs/b~1c: no type is given"),
        (nested(11), "#" + "/properties/a" * 10 + ": objects are nested deeper than 10 levels"),
        (
            strict(type="string", enum=[f"{n}" for n in range(1_001)]),
            "#: 1,001 enum values, at most 1,000",
        ),
        (
            strict(type="string", enum=[f"{n:060}" for n in range(251)]),
            "#: 15,060 characters in one large enum, at most 15,000",
        ),
        (
            strict(type="string", const="x" * 120_000),
            "#: 120,001 characters in names and values, at most 120,000",
        ),
    ],
)
def test_other_schemas_are_not(schema: dict[str, Any], reason: str) -> None:
    """Strict mode refuses a request for one keyword it does not take, so none is tried."""
    check_schema(schema)

    assert (strictness(schema) or "").startswith(reason)


def test_the_member_asks_for_the_schema() -> None:
    """Chat and responses want the same in different places."""
    key, member = request_member(CHAT, "spare", REVIEW)
    wanted = {"name": "Review_of_a_product", "strict": True, "schema": REVIEW}

    assert key == "response_format"
    assert json.loads(member) == {"type": "json_schema", "json_schema": wanted}

    key, member = request_member(RESPONSES, "spare", REVIEW)
    assert key == "text"
    assert json.loads(member) == {"format": {"type": "json_schema", **wanted}}


@pytest.mark.parametrize(
    ("title", "name", "expected"),
    [
        (None, "spare", "spare"),
        ("\u8bc4\u8bba", "spare", "spare"),
        (5, "may.jsonl", "may_jsonl"),
        ("", "!", "answer"),
        ("x" * 99, "spare", "x" * 64),
    ],
)
def test_the_schema_has_a_name_that_providers_take(title: object, name: str, expected: str) -> None:
    """A title of any script and length leads to a name of 64 plain characters."""
    member = json.loads(request_member(CHAT, name, {"type": "object", "title": title})[1])

    assert member["json_schema"]["name"] == expected
    assert member["json_schema"]["strict"] is False


def test_other_endpoints_have_no_structured_outputs() -> None:
    """Embeddings cannot be asked to fit."""
    with pytest.raises(ValueError, match="/v1/embeddings has no structured outputs"):
        request_member("/v1/embeddings", "x", REVIEW)


def test_properties_are_columns() -> None:
    """Each property of the root is a column of the one type that it may have, or of text."""
    schema = {
        "type": "object",
        "$defs": {
            "count": {"type": "integer"},
            "loop": {"$ref": "#/$defs/loop"},
            "a/b": {"type": "boolean"},
        },
        "properties": {
            "text": {"type": "string"},
            "count": {"$ref": "#/$defs/count"},
            "share": {"type": ["number", "null"]},
            "both": {"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "null"}]},
            "is": {"oneOf": [{"type": "boolean"}]},
            "pointed": {"$ref": "#/$defs/a~1b"},
            "one": {"allOf": [{"$ref": "#/$defs/count"}, {"minimum": 3}]},
            "grade": {"enum": [1, 2, None]},
            "fixed": {"const": True},
            "mixed": {"enum": [1, "a"]},
            "tags": {"type": "array"},
            "author": {"type": "object"},
            "any": {},
            "anything": True,
            "loose": {"anyOf": [{"type": "integer"}, {}]},
            "loop": {"$ref": "#/$defs/loop"},
            "gone": {"$ref": "#/nowhere/0"},
            "null": {"type": "null"},
        },
    }

    assert properties(schema) == [
        ("text", "text"),
        ("count", "integer"),
        ("share", "number"),
        ("both", "number"),
        ("is", "boolean"),
        ("pointed", "boolean"),
        ("one", "integer"),
        ("grade", "integer"),
        ("fixed", "boolean"),
        *((name, "text") for name in ("mixed", "tags", "author", "any", "anything")),
        *((name, "text") for name in ("loose", "loop", "gone", "null")),
    ]
    assert properties({"type": "object"}) == []


KEYWORDS = (
    "$defs",
    "$id",
    "$ref",
    "$schema",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "definitions",
    "enum",
    "format",
    "items",
    "maximum",
    "minItems",
    "not",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
)
keywords = st.sampled_from(KEYWORDS)
words = st.sampled_from(
    [
        "$defs",
        "$id",
        "$ref",
        "$schema",
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "definitions",
        "enum",
        "format",
        "items",
        "maximum",
        "minItems",
        "not",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
    ]
)
words = st.sampled_from(["object", "array", "string", "null", "#", "#/$defs/a", "a", "date", "["])
parts = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(keywords, parts, max_size=4), json_values)
def test_any_object_is_a_schema_or_is_refused(schema: dict[str, Any], value: object) -> None:
    """Whatever is dropped as a schema, it is refused in a line or everything works with it."""
    schema = {**schema, "type": "object"}
    complaint = refusal(schema)

    if complaint is not None:
        assert complaint.startswith("#")
        assert "\n" not in complaint

        return

    assert (strictness(schema) or "#").startswith("#")
    assert all(kind for _, kind in properties(schema))
    assert json.loads(request_member(CHAT, "x", schema)[1])["json_schema"]["schema"] == schema
    assert Checker(schema).parsed(json.dumps(value))
