"""Templates over many rows at once: what Jinja2 makes of each."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.templates import RowTemplate

NAMES = ["review", "n", "odd name", "row", "self", "loop", "range", "none"]

PLAIN = [
    "{{ review }}",
    "Classify: {{ review }}\n",
    '{{review}}{{ n }} 100 % "quoted" \\n {{ review -}}  \n x',
    "\r\n é 京 😀 \x01 {% raw %}{{ n }}{% endraw %} {{ row['odd name'] }} {# note #}",
    "no column",
]
ODD = [
    "",
    "{{ review | upper }}",
    "{{ review.x }}",
    "{% if n %}{{ review }}{% endif %}",
    "{{ 'a' }}{{ row }}",
    "{{ self }}",
    "{{ loop }}{{ range }}",
    "{{ row[review] }}",
    "{{ row['review'].x }}",
    "{% set review = 1 %}{{ review }}",
    "{{ none }}{{ true }}",
]

WRITTEN = st.one_of(
    st.text(max_size=5).map(msgspec.json.encode),
    st.sampled_from(
        [
            rb'"\u00e9\/"',
            rb'"\ud83d\ude00"',
            rb'"\ud800"',
            b"null",
            b"true",
            b"0",
            b"-0",
            b"-0.0",
            b"1e2",
            b"1.50",
            b"1e999",
            b"1" * 5_000,
            b"[1, null]",
            b'{"a": "\\n", "b": 0.10}',
        ]
    ),
)


def one_by_one(template: RowTemplate, rows: list[dict[str, bytes]]) -> list[bytes] | None:
    """Return the JSON texts of all rows, None if one of them cannot be rendered."""
    try:
        return [msgspec.json.encode(template.render(row)) for row in rows]
    except (BadInput, msgspec.DecodeError):
        return None


@settings(max_examples=150, deadline=None)
@given(
    source=st.sampled_from([*PLAIN, *ODD]),
    names=st.sets(st.sampled_from(NAMES)),
    data=st.data(),
)
def test_rows_at_once_are_rows_one_by_one(
    source: str, names: set[str], data: st.DataObject
) -> None:
    """Whatever is filled at once, however its values are written, is what Jinja2 makes of it."""
    columns = {
        name: data.draw(st.lists(WRITTEN, min_size=3, max_size=3), label=name) for name in names
    }
    template = RowTemplate(source, key="prompt")
    found = template.column(columns, 3)
    rows = [{name: column[place] for name, column in columns.items()} for place in range(3)]

    assert found is None or found == one_by_one(template, rows)


@pytest.mark.parametrize("source", PLAIN)
def test_plain_templates_are_filled_at_once(source: str) -> None:
    """Text and columns are all that most templates are, also with numbers and what is missing."""
    texts = ["good", 'it said "no"\n', "\u2028\x00😀"]
    columns: dict[str, list[bytes | msgspec.Raw]] = {
        "review": [msgspec.json.encode(text) for text in texts],
        "n": [b"1", b"2.5", b"null"],
        "odd name": [msgspec.Raw(b'"x"')] * 3,
        "of no use": [b"{}"] * 3,
    }
    template = RowTemplate(source, key="prompt")
    rows = [{name: bytes(values[place]) for name, values in columns.items()} for place in range(3)]

    assert template.column(columns, 3) == one_by_one(template, rows)


@pytest.mark.parametrize("source", ODD[1:])
def test_other_templates_are_for_jinja(source: str) -> None:
    """What computes anything is filled row by row."""
    assert RowTemplate(source, key="prompt").column({"review": [b'"a"'], "n": [b"1"]}, 1) is None


@pytest.mark.parametrize("name", ["range", "dict", "namespace", "loop", "cycler"])
def test_a_column_goes_before_what_jinja_means_by_its_name(name: str) -> None:
    """A column called `range` is that column, also where the template is filled row by row."""
    plain = RowTemplate(f"{{{{ {name} }}}}", key="prompt")
    computed = RowTemplate(f"{{{{ {name} | upper }}}}", key="prompt")

    assert plain.render({name: b'"a"'}) == "a"
    assert plain.column({name: [b'"a"']}, 1) == [b'"a"']
    assert computed.render({name: b'"a"', "n": b"1"}) == "A"


def test_what_jinja_complains_of_is_left_to_it() -> None:
    """A column that is not there, and a value that no text can be made of, are faults of rows."""
    template = RowTemplate("{{ review }}", key="prompt")

    assert template.column({"n": [b"1"]}, 1) is None
    assert template.column({"review": [b'"a"', b"1" * 5_000]}, 2) is None
