"""The program: one Typer application, and what every command of it does about errors."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperGroup

from promptspool import __version__
from promptspool.errors import ConfigError, PromptspoolError, SpoolError

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

    from promptspool.settings import Settings
    from promptspool.spool import Spool

FAILED = 1
MISUSED = 2

STORY = {
    "To begin": ("init", "check", "run", "demo", "simulate"),
    "Files and their answers": ("submit", "wait", "status", "show", "logs"),
    "To step in": ("cancel", "retry", "release", "pause", "resume"),
    "To look after it": ("config", "reload", "health", "doctor", "forget", "clean"),
}
"""The commands in the order in which people meet them."""

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Configuration; without it $PROMPTSPOOL_CONFIG, ./promptspool.toml, "
        "/etc/promptspool/promptspool.toml.",
    ),
]
"""The option `--config` of every command that has one."""

SpoolDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Spool directory, instead of spool.path.")
]
"""The option `--spool` of every command that has one."""

JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="A job's id, the beginning or the end of it, or the name of its file."
    ),
]
"""The argument of every command about one job."""


class _Told(TyperGroup):
    """The commands under headings, in the order of the story."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names in order; what the story does not tell of comes last."""
        told = [name for names in STORY.values() for name in names]

        return sorted(super().list_commands(ctx), key=[*told, *self.commands].index)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write a list of commands for each heading, in columns of one width."""
        names = self.list_commands(ctx)
        longest = max(map(len, names))
        room = formatter.width - 6 - longest

        for heading, chapter in STORY.items():
            rows = [
                (name.ljust(longest), self.commands[name].get_short_help_str(room))
                for name in names
                if name in chapter
            ]

            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


app = typer.Typer(
    cls=_Told,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # they show local variables, and with them keys and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8

    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="promptspool", standalone_mode=False)
    except typer.TyperException as error:
        code = _told(f"{error.format_message()} (--help tells more)", MISUSED)
    except typer.Abort:  # Ctrl-C or Ctrl-D instead of an answer, behind the question
        typer.echo(err=True)
        code = _told("nothing was done", FAILED)
    except (PromptspoolError, ExceptionGroup) as error:
        code = _told_of(error)
    except OSError as error:
        code = _told(
            f"{error.filename}: {error.strerror}" if error.filename else str(error), FAILED
        )

    sys.exit(code or 0)


def say(text: str, *, err: bool = False) -> None:
    """Write a line to standard output, or standard error, spelt out for a terminal."""
    typer.echo(spelt(text), err=err)


def spelt(text: str) -> str:
    r"""Return *text* with `\xNN` for what a terminal would obey, and for bytes that are no UTF-8.

    Names of files may hold both; line feeds and tabs stay.
    """
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    return "".join(one if one.isprintable() or one in "\n\t" else _escaped(one) for one in plain)


def _escaped(character: str) -> str:
    number = ord(character)

    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"  # noqa: PLR2004 - a byte


def remark(text: str) -> None:
    """Tell people something, on standard error, that is no result."""
    say(f"promptspool: {text}", err=True)


def is_terminal() -> bool:
    """Tell whether a person is there to be asked something."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def placed(config: Path | None, spool: Path | None) -> tuple[Settings, Spool]:
    """Return the configuration that a command was pointed at, and its spool; touches neither."""
    from promptspool.settings import load
    from promptspool.spool import Spool

    settings = load(config, spool=spool)

    return settings, Spool(settings.spool.path, settings.spool.state)


def _told(message: str, code: int) -> int:
    remark(message)

    return code


def _told_of(error: PromptspoolError | ExceptionGroup) -> int:
    """Say what is wrong; a bug goes on to the traceback."""
    cause = cause_of(error)

    match cause:
        case ConfigError() | SpoolError():
            return _told(str(cause), MISUSED)
        case PromptspoolError():
            return _told(str(cause), FAILED)
        case _:
            raise error


def cause_of(error: Exception) -> Exception:
    """Return the exception inside nested groups of one; task groups wrap what they let through."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]

    return error


def _show_version(is_wanted: bool) -> None:  # noqa: FBT001 - typer's own signature
    if is_wanted:
        typer.echo(f"promptspool {__version__}")
        raise typer.Exit


@app.callback(help="A print spooler for prompts: drop a file, collect the answers.")
def _promptspool(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass
