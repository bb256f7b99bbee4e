"""The program: one Typer application, and what every command of it does about errors.

A command is made of its function when somebody asks for it: of twenty, one is run.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command_from_info

from promptspool import __version__
from promptspool.errors import ConfigError, PromptspoolError, SpoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

    from typer._click import Command, Context, HelpFormatter, Parameter
    from typer.models import CommandInfo

    from promptspool.settings import Settings
    from promptspool.spool import Spool

FAILED = 1
MISUSED = 2

STORY = {
    "To begin": {
        "init": "files",
        "check": "files",
        "run": "running",
        "demo": "running",
        "simulate": "running",
    },
    "Files and their answers": {
        "submit": "files",
        "wait": "reading",
        "status": "reading",
        "show": "reading",
        "logs": "reading",
    },
    "To step in": {
        "cancel": "commanding",
        "retry": "commanding",
        "release": "commanding",
        "pause": "commanding",
        "resume": "commanding",
    },
    "To look after it": {
        "config": "configuring",
        "reload": "commanding",
        "health": "admin",
        "doctor": "admin",
        "forget": "commanding",
        "clean": "commanding",
    },
}
"""The commands in the order in which people meet them, each with the module that it is in."""

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


class _Coercion:
    """Takes plain values as they are: typer has pydantic look at each, even at None.

    That alone takes as long as a command. All else goes that way, with its messages.
    """

    def __init__(self, whole: Callable[[], Any]) -> None:
        """Take what returns typer's own."""
        self._whole = whole

    def __call__(self) -> _Coercion:
        """Return it in the place of typer's own."""
        return self

    def coerce(self, value: Any, param: TyperOption | TyperArgument, ctx: Context) -> Any:
        """Return a plain *value* as it is, and any other as typer does."""
        kind = param.type_descriptor.annotation
        is_single = param.nargs == 1 and not param.multiple
        is_plain = (
            value is None
            or (kind is str and isinstance(value, str))
            or (kind is type(value) and value == param.default)
        )

        if is_single and is_plain:
            return value

        # What cannot be read has a message of its own.
        if is_single and kind is Path and isinstance(value, str) and os.access(value, os.R_OK):
            return Path(value)

        return self._whole().coerce(value, param=param, ctx=ctx)


class _Quickly:
    """Has the values of a command's options and arguments taken quickly."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return all of them, with the one for help."""
        params: list[Parameter] = super().get_params(ctx)  # type: ignore[misc] # of a command

        for one in params:
            if isinstance(one, TyperOption | TyperArgument):
                whole = one.get_runtime_param

                if not isinstance(whole, _Coercion):
                    one.get_runtime_param = _Coercion(whole)  # type: ignore[method-assign, assignment]

        return params


class _Quick(_Quickly, TyperCommand):
    """A command."""


class Commands(Mapping[str, "Command"]):
    """The commands by name, each made when it is asked for."""

    def __init__(self) -> None:
        """Make none yet."""
        self._made: dict[str, Command] = {}

    @cached_property
    def _modules(self) -> dict[str, str]:
        return {name: module for chapter in STORY.values() for name, module in chapter.items()}

    def __iter__(self) -> Iterator[str]:
        """Return the names, in the order of the story."""
        return iter(self._modules)

    def __len__(self) -> int:
        """Count them."""
        return len(self._modules)

    def __getitem__(self, name: str) -> Command:
        """Return a command with its options and arguments."""
        if name not in self._made:
            info = self._info(name)
            info.cls = _Quick
            self._made[name] = get_command_from_info(
                info, pretty_exceptions_short=True, rich_markup_mode=None
            )

        return self._made[name]

    def short_help(self, name: str, limit: int) -> str:
        """Return the first sentence of what a command says of itself, without making it."""
        text = inspect.getdoc(self._info(name).callback or self)

        return TyperCommand(name, help=text).get_short_help_str(limit)

    def _info(self, name: str) -> CommandInfo:
        import_module(f"promptspool.cli.{self._modules[name]}")

        return next(info for info in registry.registered_commands if _name_of(info) == name)


def _name_of(info: CommandInfo) -> str:
    return info.name or str(getattr(info.callback, "__name__", ""))


class _Told(_Quickly, TyperGroup):
    """The commands under headings, in the order of the story."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.told = Commands()
        self.commands = cast("MutableMapping[str, Command]", self.told)  # nothing changes it

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names in order."""
        del ctx

        return list(self.told)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write a list of commands for each heading, in columns of one width."""
        longest = max(map(len, self.list_commands(ctx)))
        room = formatter.width - 6 - longest

        for heading, chapter in STORY.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(name.ljust(longest), self.told.short_help(name, room)) for name in chapter]
                )


registry = typer.Typer()
"""What the functions of commands are registered with."""

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
        arguments = sys.argv[1:] or ["--help"]
        code = app(arguments, prog_name="promptspool", standalone_mode=False)
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
