from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from commands import LIMIT_S, ROOT
from promptspool.cli.program import STORY
from scrapes import EVERYTHING, samples, text_of, told
from world import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

RULES = ROOT / "config" / "alerts.yml"
RULE_TESTS = ROOT / "tests" / "data" / "alerts.test.yml"
DASHBOARD = ROOT / "config" / "grafana.json"

OTHERS = {"up": set[str](), "node_textfile_mtime_seconds": {"file"}}
"""What Prometheus itself and node_exporter export."""

EVERYWHERE = {"instance", "job"}
"""The labels that a scrape adds."""

WORDS = {"and", "or", "unless", "bool", "offset"}
GROUPING = "by|without|on|ignoring|group_left|group_right"


def rules() -> list[dict[str, Any]]:
    """Return the alerting rules."""
    (group,) = tree(RULES.read_text("utf-8"))["groups"]

    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    read: dict[str, Any] = json.loads(DASHBOARD.read_bytes())

    return read


def asked_by_dashboard() -> Iterator[tuple[str, str]]:
    """Yield every expression of the dashboard, with the name that its series are shown under."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], target["legendFormat"]


async def exported() -> dict[str, set[str]]:
    """Return the labels of every sample that a page can have, by its name."""
    clock = FakeClock()
    page = await text_of(told(clock), EVERYTHING, clock)

    return {name: set(labels) for name, labels, _ in samples(page)} | OTHERS


# A reader of as much YAML as the rules use, so that nothing else gets into them unseen.


def tree(text: str) -> Any:
    """Return what a file of mappings, lists of them and texts says; anything else is an error."""
    lines = deque(
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    )
    found = _block(lines, 0)
    assert not lines, lines[0]

    return found


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _block(lines: deque[str], depth: int) -> Any:
    if not lines[0].startswith(" " * depth + "- "):
        return _mapping(lines, depth)

    items = []

    while lines and lines[0].startswith(" " * depth + "- "):
        lines[0] = " " * (depth + 2) + lines[0][depth + 2 :]
        items.append(_mapping(lines, depth + 2))

    return items


def _mapping(lines: deque[str], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    while lines and _depth(lines[0]) == depth and lines[0][depth] != "-":
        line = lines.popleft()
        parts = re.fullmatch(r" *([a-z]+):(?: (.+))?", line)
        assert parts, line
        key, text = parts.groups()
        assert key not in found, line
        found[key] = _value(lines, depth, text)

    return found


def _value(lines: deque[str], depth: int, text: str | None) -> Any:
    match text:
        case None:
            return _block(lines, _depth(lines[0]))
        case ">-":
            folded = []

            while lines and _depth(lines[0]) > depth:
                folded.append(lines.popleft().strip())

            return " ".join(folded)
        case quoted if quoted.startswith('"'):
            return json.loads(quoted)
        case plain:
            assert not re.search(r": | #|:$", plain), plain
            assert plain[0] not in "{[&*!|>'%@`-?,", plain

            return plain


# What an expression asks for.


def asked(expression: str) -> tuple[list[tuple[str, set[str]]], set[str]]:
    """Return the names that an expression asks for with the labels in their braces, and grouped."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    selected = [
        (name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)))
        for name, inside in re.findall(r"([a-z_]\w*)\s*\{([^}]*)\}", bare)
    ]
    bare = re.sub(r"([a-z_]\w*)?\s*\{[^}]*\}|\[[^]]*\]", " ", bare)
    grouped = re.findall(rf"\b(?:{GROUPING})\s*\(([^)]*)\)", bare)
    bare = re.sub(rf"\b(?:{GROUPING})\s*\([^)]*\)", " ", bare)
    plain = set(re.findall(r"\b[a-z_]\w*\b(?!\s*\()", bare)) - WORDS

    return (
        [*selected, *((name, set[str]()) for name in plain)],
        {label.strip() for labels in grouped for label in labels.split(",")},
    )


def test_expressions_are_read() -> None:
    """The reader of expressions finds names, labels in braces and labels of groups."""
    names, grouped = asked(
        'sum by (le, x) (rate(a_total{b="c,d=e{", f!~"g"}[5m])) / 2 and on (h) time() - i > 1e3'
    )

    assert sorted((name, sorted(labels)) for name, labels in names) == [
        ("a_total", ["b", "f"]),
        ("i", []),
    ]
    assert grouped == {"le", "x", "h"}


@pytest.mark.parametrize(
    "text",
    ["a: b: c\n", "a:\n  - b\n", "a: {b: c}\n", "a: b\na: c\n", "a: b # c\n", "a: 'b'\n", "A b\n"],
)
def test_other_yaml_is_refused(text: str) -> None:
    """What the reader does not know it does not guess."""
    with pytest.raises((AssertionError, IndexError)):
        tree(text)


async def test_what_is_asked_for_is_exported() -> None:
    """Rules and dashboard name only what the code exports, by the labels that it has there."""
    known = await exported()
    expressions = [rule["expr"] for rule in rules()]
    expressions += [expression for expression, _ in asked_by_dashboard()]

    for expression in expressions:
        names, grouped = asked(expression)
        labels = set(EVERYWHERE)

        for name, selected in names:
            assert name in known, f"{name} is not exported: {expression}"
            assert selected <= known[name] | EVERYWHERE, expression
            labels |= known[name]

        assert names
        assert grouped <= labels, expression


async def test_what_is_exported_is_asked_for() -> None:
    """Nothing is exported that nobody looks at."""
    expressions = [rule["expr"] for rule in rules()]
    expressions += [expression for expression, _ in asked_by_dashboard()]
    looked_at = {name for expression in expressions for name, _ in asked(expression)[0]}
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in await exported()}

    assert families == {re.sub("_(bucket|sum|count)$", "", name) for name in looked_at}


async def test_what_is_shown_of_a_series_is_there() -> None:
    """Texts of alerts and names of series use labels that their expressions leave."""
    known = await exported()
    shown = [
        (rule["expr"], set(re.findall(r"\$labels\.(\w+)", json.dumps(rule)))) for rule in rules()
    ]
    shown += [
        (expression, set(re.findall(r"\{\{(\w+)\}\}", legend)))
        for expression, legend in asked_by_dashboard()
    ]

    for expression, labels in shown:
        names, grouped = asked(expression)
        left = EVERYWHERE | set[str]().union(*(known[name] for name, _ in names))
        aggregated = re.search(r"\b(sum|min|max)\b", expression)

        assert labels <= (grouped if aggregated else left), expression


def test_every_alert_says_what_to_do() -> None:
    """An alert has a name, a severity, a line of what is wrong and a text with a real command."""
    found = rules()
    names = [rule["alert"] for rule in found]
    there = {name for chapter in STORY.values() for name in chapter}

    assert len(set(names)) == len(names) > 10

    for rule in found:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch("Promptspool([A-Z][a-z]+)+", rule["alert"])
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
        assert set(rule["labels"]) == {"severity"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}
        description = rule["annotations"]["description"]
        named = set(re.findall(r"promptspool ([a-z]+)", description))
        assert named or "systemctl" in description
        assert named <= there, description
        assert len(rule["annotations"]["summary"]) < 100


def test_a_dashboard_belongs_to_no_installation() -> None:
    """It loads anywhere: no ids of a database, and every source is what its reader chooses."""
    read = dashboard()
    sources = [found["uid"] for found in _inside(read, "datasource")]
    variables = {variable["name"] for variable in read["templating"]["list"]}
    used = {name for text, _ in asked_by_dashboard() for name in re.findall(r"\$(\w+)", text)}

    assert read["id"] is None
    assert read["schemaVersion"] >= 39
    assert set(sources) == {"${datasource}"}
    assert len(sources) > len(read["panels"])
    assert used - {"__rate_interval"} <= variables
    assert variables == {"datasource", "instance", "provider"}


def _inside(found: Any, key: str) -> Iterator[Any]:
    """Yield every value under *key*, at whatever depth."""
    match found:
        case dict():
            for name, inner in found.items():
                if name == key:
                    yield inner

                yield from _inside(inner, key)
        case list():
            for inner in found:
                yield from _inside(inner, key)
        case _:
            pass


def test_panels_have_their_place() -> None:
    """Each panel has a name and an id of its own, asks for something, and covers no other."""
    panels = dashboard()["panels"]
    covered: set[tuple[int, int]] = set()

    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + across, place["y"] + down)
            for across in range(place["w"])
            for down in range(place["h"])
        }

        assert panel["title"]
        assert panel["type"] == "row" or all(target["expr"] for target in panel["targets"])
        assert not cells & covered, panel["title"]
        assert max(across for across, _ in cells) < 24
        covered |= cells

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels if panel["type"] != "row"}) > 25


# With promtool, where it is installed.


def promtool(*arguments: str | Path, given: str = "") -> str:
    """Run promtool to its end and return what it says; it has to be content."""
    command = shutil.which("promtool")

    if command is None:
        pytest.skip("promtool is not installed (package prometheus)")

    ran = subprocess.run(  # noqa: S603 - found on the path
        [command, *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said

    return said


def test_prometheus_takes_the_rules() -> None:
    """Prometheus reads as many rules as we do."""
    assert f"{len(rules())} rules found" in promtool("check", "rules", RULES)


def test_alerts_fire_when_they_should() -> None:
    """Each alert fires for what it is about, and none for a daemon that is well."""
    text = RULE_TESTS.read_text("utf-8")

    assert {rule["alert"] for rule in rules()} <= set(re.findall(r"Promptspool\w+", text))
    assert "SUCCESS" in promtool("test", "rules", RULE_TESTS)


def test_prometheus_takes_the_dashboard(tmp_path: Path) -> None:
    """Each expression of the dashboard is one that Prometheus can compute."""
    expressions = [
        re.sub(r"\$__rate_interval", "5m", expression) for expression, _ in asked_by_dashboard()
    ]
    recorded = [
        {"record": f"asked:{number}", "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))

    assert f"{len(expressions)} rules found" in promtool("check", "rules", path)


async def test_prometheus_takes_the_page() -> None:
    """The page has no fault that Prometheus' own checker knows of."""
    clock = FakeClock()
    page = await text_of(told(clock), EVERYTHING, clock)

    assert promtool("check", "metrics", given=page) == ""
