"""The command line: parse, call, print.

Exit codes: 0 done, 1 the work failed, 2 usage or configuration, with one clear line on stderr. Only
a bug ends in a traceback. What a command needs is imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import suppress
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from promptspool import __version__
from promptspool.errors import ConfigError, PromptspoolError, SpoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.settings import Settings

FAILED = 1
MISUSED = 2

app = typer.Typer(
    add_completion=False,
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
    except (PromptspoolError, ExceptionGroup) as error:
        code = _told_of(error)

    sys.exit(code or 0)


def _told(message: str, code: int) -> int:
    typer.echo(f"promptspool: {message}", err=True)

    return code


def _told_of(error: PromptspoolError | ExceptionGroup) -> int:
    """Say what is wrong; a bug goes on to the traceback."""
    cause = _cause(error)

    match cause:
        case ConfigError() | SpoolError():
            return _told(str(cause), MISUSED)
        case PromptspoolError():
            return _told(str(cause), FAILED)
        case _:
            raise error


def _cause(error: Exception) -> Exception:
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


@app.command()
def run(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration; without it $PROMPTSPOOL_CONFIG, ./promptspool.toml, "
            "/etc/promptspool/promptspool.toml.",
        ),
    ] = None,
    spool: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Spool directory, instead of spool.path.")
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Stop when every dropped file is delivered or rejected.")
    ] = False,
) -> int:
    """Run the daemon in the foreground.

    It logs to standard output. SIGTERM or Ctrl-C stops it; whatever stops it, the next start goes
    on where it was.

    \b
    Example: promptspool run --config promptspool.toml
    """  # noqa: D301 - typer's mark for lines to be left alone
    import anyio

    from promptspool import app as daemon
    from promptspool import log
    from promptspool.settings import load

    settings = load(config, spool=spool)
    log.configure(settings.log.level, settings.log.format, secrets=list(_keys(settings)))
    is_done = anyio.run(lambda: daemon.run(settings, is_draining=drain))

    return 0 if is_done or not drain else FAILED


def _keys(settings: Settings) -> Iterator[str]:
    """Yield the keys of the providers that have one by now; the others are asked for later."""
    from promptspool.settings import api_key

    for name, provider in settings.providers.items():
        with suppress(ConfigError):
            yield api_key(provider, name)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files to be dropped.")],
    *,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration; found as `run` finds it."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Its profile; else that of the inbox folder it is in, or default."
        ),
    ] = None,
    output_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens assumed for each answer, for the cost.")
    ] = 200,
) -> int:
    """Say what `run` would do with files, without doing it.

    Each file is read, rendered and checked as if it had been dropped, with its sidecar if there is
    one. Shows format, bad rows, batches, an estimate of the cost, and the first request in full.
    Exit code 1 if anything would be rejected.

    \b
    Example: promptspool check --profile reviews may.csv
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.check import checked, told
    from promptspool.settings import load

    settings = load(config)
    is_clean = True

    for path in files:
        result = checked(settings, path, profile=profile, output_tokens=output_tokens)
        is_clean = is_clean and result.is_clean

        for line in told(result, output_tokens=output_tokens):
            typer.echo(line)

    return 0 if is_clean else FAILED


@app.command()
def simulate(
    *,
    host: Annotated[str, typer.Option(help="127.0.0.1 or localhost.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    speed: Annotated[float, typer.Option(min=0.001, help="Virtual seconds per real second.")] = 1.0,
    api_key: Annotated[str, typer.Option(help="The key that it accepts.")] = "sk-simulated",
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Where files are kept; else a temporary one."),
    ] = None,
) -> None:
    """Serve a local Batch API for trying things out.

    It speaks the OpenAI dialect, answers every request with a line of its own, and calls nobody. A
    batch takes about ten virtual minutes.

    \b
    Example: promptspool simulate --port 8080 --speed 60
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.simulator.command import simulate

    try:
        simulate(host=host, port=port, speed=speed, api_key=api_key, directory=directory)
    except ValueError as error:
        raise ConfigError("--host", str(error)) from error
    except (ExceptionGroup, OSError) as error:
        cause = _cause(error)

        if isinstance(cause, OSError):
            reason = f"cannot serve on {host}:{port}: {cause.strerror}"
            raise ConfigError("--port" if cause.filename is None else "--dir", reason) from error

        raise


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is missing.")],
) -> None:
    """Make a spool and its configuration.

    \b
    Example: promptspool init ~/prompts
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.settings import FILE_NAME, example_config, load
    from promptspool.spool import Spool

    config = folder / FILE_NAME

    try:
        folder.mkdir(parents=True, exist_ok=True)

        with config.open("x", encoding="utf-8") as file:
            file.write(example_config())
    except FileExistsError as error:
        raise ConfigError(str(error.filename), "it exists already; nothing was changed") from error
    except OSError as error:
        raise ConfigError(str(config), f"it cannot be made: {error.strerror}") from error

    spool = Spool(folder / load(config, environ={}).spool.path.name)
    spool.make()
    typer.echo(
        f"Made {config} and the spool in {spool.root}.\n"
        f"\n"
        f"Next:\n"
        f"  export OPENAI_API_KEY=...\n"
        f"  promptspool run --config {shlex.quote(str(config))}\n"
        f"\n"
        f"Then drop a file of prompts, NAME.csv, .xlsx, .jsonl or .txt, into {spool.inbox};\n"
        f"its answers come to {spool.outbox}."
    )


@app.command()
def demo(
    *,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="DIR", help="A new or empty folder to use; else a temporary one."
        ),
    ] = None,
) -> None:
    """Show the whole way of three files, from the inbox to the outbox.

    Needs no key and no network: it runs a simulated provider and the real daemon as two processes,
    and takes about ten seconds. The spool stays for you to look at.

    \b
    Example: promptspool demo
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.demo import show

    show(directory)
