"""The command `config`: the settings in effect, and where each of them comes from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptspool.cli.program import Config, SpoolDir, registry
from promptspool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from promptspool.settings import Effective, Origin, Settings

VERSION = 1
"""Of what `--json` prints; it counts on when something in there changes its meaning."""


@registry.command(name="config")
def show_config(
    *,
    config: Config = None,
    spool: SpoolDir = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    is_changed: Annotated[
        bool, typer.Option("--changed", help="Only what somebody has set.")
    ] = False,
) -> None:
    """Show the settings in effect, each with where it was set.

    What may be a secret is masked, and keys are never shown, only where they were found. On a
    terminal it is a table; in a pipe it is TOML that can be kept as a file, with what is masked or
    not set as comments.

    --json prints {"version": 1, "file": PATH, "settings": {KEY: {"value", "is_masked", "origins":
    [{"kind": "default", "file", "environment" or "option", "name", "line"}]}}, "keys": {PROVIDER:
    {"is_found", "text"}}, "remarks": [TEXT]}; durations are seconds, sizes bytes.

    \b
    Example: promptspool config --changed
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.settings import effective, remarks, traced

    settings, sources = traced(config, spool=spool)
    keys = _keys(settings)  # first: what they find is struck out of the rest
    found = [one for one in effective(settings, sources) if one.is_set or not is_changed]
    notes = remarks(settings)

    if is_json:
        typer.echo(_as_json(settings.source, found, keys, notes))
    elif sys.stdout.isatty():
        _print_table(settings.source, found, keys, notes)
    else:
        for line in _as_toml(settings.source, found, keys, notes):
            typer.echo(line)


def _keys(settings: Settings) -> dict[str, tuple[bool, str]]:
    """Return by provider whether its key was found, and where, or why not."""
    from promptspool import log
    from promptspool.settings import found_key

    keys = {}

    for name, provider in settings.providers.items():
        try:
            key, place = found_key(provider, name)
        except ConfigError as error:
            keys[name] = False, error.reason
        else:
            log.keep_secret(key)
            keys[name] = True, f"key found in {place}"

    return keys


def _as_toml(
    path: Path | None,
    found: Sequence[Effective],
    keys: Mapping[str, tuple[bool, str]],
    notes: Sequence[str],
) -> Iterator[str]:
    """Yield a configuration that says the same wherever it is kept, but for what is masked."""
    from promptspool.settings import toml_key

    yield f"# {_one_line(str(path))}"

    for one in found:
        key = toml_key(one.where)
        origin = _one_line(", ".join(map(_short, one.origins)))

        if one.is_masked:
            yield f"# {key} = {one.written or one.value}  # {origin}; masked"
        elif one.written is not None:
            yield f"{key} = {one.written}  # {origin}"
        elif one.value is None:
            yield f"# {key} is not set"
        else:
            yield f"# {key} = {_one_line(str(one.value))}  # {origin}; TOML cannot say it"

    for name, (_, text) in keys.items():
        yield f"# {toml_key(('providers', name))}: {_one_line(text)}"

    for note in notes:
        yield f"# {_one_line(note)}"


def _print_table(
    path: Path | None,
    found: Sequence[Effective],
    keys: Mapping[str, tuple[bool, str]],
    notes: Sequence[str],
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from promptspool.settings import toml_key

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", style="dim", overflow="fold")

    for one in found:
        value = "" if one.value is None else one.written or _one_line(str(one.value))
        origin = _one_line(", ".join(map(_short, one.origins)))
        style = "bold" if one.is_set else ""
        table.add_row(Text(toml_key(one.where), style), Text(value, style), Text(origin))

    console = Console(highlight=False)
    console.print(Text(_one_line(str(path))))
    console.print(table)

    for name, (is_found, text) in keys.items():
        console.print(Text(f"providers.{name}: {_one_line(text)}", "" if is_found else "yellow"))

    for note in notes:
        console.print(Text(_one_line(note), "yellow"))


def _as_json(
    path: Path | None,
    found: Sequence[Effective],
    keys: Mapping[str, tuple[bool, str]],
    notes: Sequence[str],
) -> str:
    import json

    from promptspool.settings import toml_key

    settings: dict[str, Any] = {
        toml_key(one.where): {
            "value": one.value,
            "is_masked": one.is_masked,
            "origins": [
                {"kind": origin.kind, "name": origin.name, "line": origin.line}
                for origin in one.origins
            ],
        }
        for one in found
    }
    shown = {
        "version": VERSION,
        "file": str(path),
        "settings": settings,
        "keys": {name: {"is_found": is_in, "text": text} for name, (is_in, text) in keys.items()},
        "remarks": list(notes),
    }

    return json.dumps(shown, indent=2)


def _short(origin: Origin) -> str:
    """Return an origin without the folders of the file, which is named once."""
    return f"line {origin.line}" if origin.line is not None else str(origin)


def _one_line(text: str) -> str:
    """Return a text that neither ends a comment nor is obeyed by a terminal."""
    return "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}" for character in text
    )
