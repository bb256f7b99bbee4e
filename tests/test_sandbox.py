from __future__ import annotations

import jinja2
import pytest

from promptspool.sandbox import Sandbox

MONSTERS = (
    "{{ 10 ** 99999999 }}",
    "{{ 'a' * 2000000000 }}",
    "{{ [1] * 2000000000 }}",
    "{{ '%1500000000d' % 1 }}",
    "{{ '%.1500000000f' % 1 }}",
    "{{ '{:>1500000000}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=1500000000) }}",
    "{{ 'a'.ljust(1500000000) }}",
    "{{ 'a'.zfill(1500000000) }}",
    "{{ 'a' | center(1500000000) }}",
    "{{ '%1500000000d' | format(1) }}",
    "{{ [1] | batch(1500000000, 1) | list }}",
    "{{ 'a' | indent(1500000000, true) }}",
    "{{ range(1500000000) | list }}",
)


@pytest.mark.parametrize("source", MONSTERS)
def test_nothing_grows_out_of_proportion(source: str) -> None:
    """A few characters neither fill the memory nor take minutes, compiled or rendered."""
    template = Sandbox().from_string(source)

    with pytest.raises((jinja2.TemplateError, OverflowError)):
        template.render()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 2 * 3 }} {{ 2 ** 10 }} {{ 7 % 4 }}", "6 1024 3"),
        ("{{ 'ab' * 2 }}{{ '%05.1f|%s' % (1.25, x) }}", "abab001.2|12345678 {"),
        ("{{ '{:>4}'.format(7) }}{{ 'a'.ljust(3) }}|", "   7a  |"),
        (
            "{{ '%s' | format(x) }} {{ x | upper }} {{ 'a' | center(3) }}",
            "12345678 { 12345678 {  a ",
        ),
        (
            "{{ 123456789 | round }} {{ '{:,}'.format(123456789) }} {{ 98765432 | abs }}",
            "123456789 123,456,789 98765432",
        ),
        ("{% for n in range(3) %}{{ n }}{% endfor %}{{ none }}", "012None"),
    ],
)
def test_what_templates_are_for_works(source: str, text: str) -> None:
    """Operators, formats, filters and loops do what Jinja2's do."""
    assert Sandbox().from_string(source).render(x="12345678 {") == text


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ x.__init__.__globals__ }}"])
def test_nothing_of_python_can_be_reached(source: str) -> None:
    """Attributes that lead out of the sandbox are undefined or refused."""
    with pytest.raises(jinja2.TemplateError):
        Sandbox(undefined=jinja2.StrictUndefined).from_string(source).render(x="a")
