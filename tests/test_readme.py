from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from promptspool.cli.program import STORY

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "daemon" / "promptspool"
README = (ROOT / "README.md").read_text("utf-8")
TESTS = (ROOT / "tests" / "README.md").read_text("utf-8")
# Neither of them logs: one is the provider, the other reads what the daemon logs.
OTHERS = {"simulator", "demo"}
EVENT = re.compile(r"[a-z]+\.[a-z]+(_[a-z]+)*")
LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "log", "_complain"}


def logged_events() -> Iterator[str]:
    """Yield every name of an event in the code."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in OTHERS:
            tree = ast.parse(path.read_text("utf-8"))
            # The journal chooses between names before it logs; elsewhere they stand in the call.
            yield from _names([tree] if path.name == "journal.py" else _logged(tree))


def _logged(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the positional arguments of every call that logs."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LOGGING
        ):
            yield from node.args


def _names(trees: list[ast.AST] | Iterator[ast.AST]) -> Iterator[str]:
    for tree in trees:
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and EVENT.fullmatch(node.value)
            ):
                yield node.value


def table(heading: str) -> list[list[str]]:
    """Return the cells of the table below *heading*, without its head."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_events() -> None:
    """The table of log events names every event that the code logs, once, and no other."""
    named = [name for first, *_ in table("Log") for name in re.findall(r"`([a-z_.]+)`", first)]

    assert sorted(named) == sorted(set(logged_events()))


def defined_tests() -> set[str]:
    """Return the name of every function of the tests."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_guarantees() -> None:
    """Every guarantee is proved by tests that exist."""
    defined = defined_tests()

    for _, proof in table("Guarantees"):
        tests = re.findall(r"`(test_\w+)`", proof)

        assert tests
        assert set(tests) <= defined


def test_faults() -> None:
    """Every known fault, and every point of what to do about them, has tests or a reason."""
    rows = [line.split("|")[1:3] for line in TESTS.splitlines() if line.startswith("| ")]
    named = {first.split()[0]: proof for first, proof in rows}
    faults = [named[f"F{number}"] for number in range(1, 30)]
    points = [named[f"{number}"] for number in range(1, 41)]

    assert all(re.search(r"`test_f\d\d_\w+`", proof) for proof in faults)
    assert all(proof.strip() for proof in points)
    assert set(re.findall(r"`(test_\w+)`", TESTS)) <= defined_tests()
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", TESTS)) <= files


def test_length() -> None:
    """It is read to the end: operations under 100 lines, and the rest under 150."""
    sections = {part.split("\n", 1)[0]: part for part in README.split("\n## ")}
    operations = sum(len(sections[name].splitlines()) + 1 for name in ("Operations", "Log"))

    assert operations < 100
    assert len(README.splitlines()) - operations < 150


def test_commands() -> None:
    """Every command that there is stands in the README, and no other in its table."""
    shown = {word for first, *_ in table("Operations") for word in re.findall(r"`([a-z]+)", first)}
    listed = {name for chapter in STORY.values() for name in chapter}

    assert shown <= listed
    assert {"demo", "init"} == listed - shown
    assert "promptspool demo" in README
    assert "promptspool init" in README
