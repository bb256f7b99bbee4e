"""What the command line says of itself."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pexpect  # type: ignore[import-untyped] # it brings no types
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import LIMIT_S, environ
from filled import said
from promptspool.cli.program import STORY, app

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
"""Every command, by name."""

WIDTH = 80

ARGUMENTS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
    st.binary(max_size=9).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
    st.sampled_from(["/", ".", "/no/such/file", "3", "-1", "2.5", "true"]),
)
"""What may stand behind an option: any bytes but a NUL, as Python reads them."""


@pytest.fixture
def places(tmp_path: Path) -> str:
    """Return where programs are found, `promptspool` among them."""
    program = tmp_path / "bin" / "promptspool"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m promptspool "$@"\n')
    program.chmod(0o755)

    return f"{program.parent}:/usr/bin:/bin"


def help_of(name: str) -> str:
    """Return what `--help` says of a command."""
    command = COMMANDS[name]
    text: str = command.get_help(command.context_class(command, info_name=name))

    return text


def examples(text: str) -> list[str]:
    """Return the command lines of ours in a help text's examples."""
    return re.findall(
        r"promptspool [^|&>\n]+", text.partition("\n  Example: ")[2].partition("\n\n")[0]
    )


def test_the_story() -> None:
    """Every command is under one heading, once, and the help lists them in that order."""
    told = [name for names in STORY.values() for name in names]
    text = said("--help")[1]
    listed = [
        line.split()[0]
        for heading in STORY
        for line in text.partition(f"\n{heading}:\n")[2].partition("\n\n")[0].splitlines()
    ]

    assert sorted(told) == sorted(COMMANDS)
    assert listed == told


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help(command: str) -> None:
    """Every command's help has an example that begins with the command, and fits a terminal."""
    text = help_of(command)

    assert "\n  Example: " in text
    assert any(line.startswith(f"promptspool {command}") for line in examples(text))
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_examples_can_be_run(command: str) -> None:
    """Every example names arguments and options that the command has."""
    for example in examples(help_of(command)):
        _, name, *arguments = shlex.split(example)

        COMMANDS[name].make_context(name, arguments)  # which raises for what it does not know


@pytest.mark.parametrize("command", sorted(COMMANDS))
@given(value=ARGUMENTS)
@settings(max_examples=8, deadline=None)
def test_plain_values_are_what_typer_makes_of_them(command: str, value: str) -> None:
    """A value that is taken as it is is the one that the long way comes to, or its refusal."""
    one = COMMANDS[command]
    context = one.context_class(one, info_name=command)

    for param in one.get_params(context):
        quick = getattr(param, "get_runtime_param", None)

        if quick is None:
            continue

        whole = type(param).get_runtime_param.__get__(param)

        for given_one in (value, None, param.default):
            if not (param.nargs == -1 or param.multiple):
                assert _made(quick, param, context, given_one) == _made(
                    whole, param, context, given_one
                )


def _made(runtime: Any, param: Any, context: Any, value: object) -> object:
    try:
        return runtime().coerce(value, param=param, ctx=context)
    except typer.BadParameter as error:
        return error.format_message()


def test_completion_in_bash(places: str, tmp_path: Path) -> None:
    """What `--show-completion` prints completes commands, options and files in a real shell."""
    environment = environ(PATH=places, HOME=str(tmp_path), TERM="dumb")
    done = subprocess.run(
        ["bash", "-c", "promptspool --show-completion; exit $?"],  # noqa: S607 - of the test's PATH
        env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True,
    )  # fmt: skip
    (tmp_path / "completion").write_text(done.stdout)
    shell = pexpect.spawn(
        "bash", ["--norc", "--noprofile", "-i"],
        env=environment | {"PS1": "$ "}, timeout=LIMIT_S, encoding="utf-8", cwd=str(tmp_path),
    )  # fmt: skip

    try:
        shell.expect_exact("$ ")
        shell.sendline("source ./completion; bind 'set bell-style none'")
        shell.expect_exact("\n$ ")
        shell.send("promptspool cance\t")
        shell.expect_exact("promptspool cancel ")
        shell.send("--ye\t")
        shell.expect_exact("--yes ")
    finally:
        shell.close(force=True)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("source_zsh", "#compdef promptspool"),
        ("complete_zsh", "cancel"),
        ("source_fish", "complete"),
    ],
)
def test_completion_elsewhere(instruction: str, expected: str) -> None:
    """Scripts for zsh and fish come out, and what they ask is answered."""
    done = subprocess.run(
        [sys.executable, "-m", "promptspool"],
        env=environ(_PROMPTSPOOL_COMPLETE=instruction, _TYPER_COMPLETE_ARGS="promptspool canc"),
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout
