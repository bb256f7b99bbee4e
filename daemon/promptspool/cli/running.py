"""Commands that run something: the daemon, the simulator, the demo."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from promptspool.cli.program import FAILED, Config, SpoolDir, cause_of, registry
from promptspool.errors import ConfigError, PromptspoolError, SpoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.settings import Settings


@registry.command()
def run(
    *,
    config: Config = None,
    spool: SpoolDir = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Stop when every dropped file is delivered or rejected.")
    ] = False,
) -> int:
    """Run the daemon in the foreground.

    It logs to standard output: JSON lines, or text on a terminal. SIGTERM or Ctrl-C stops it, once
    what runs has ended or after `spool.stop_grace`, and a second one at once; whatever stops it,
    the next start goes on where it was. SIGHUP lets it read its configuration again. Exit code 2
    for a configuration that cannot be used, 1 for a spool that cannot: that may pass.

    \b
    Example: promptspool run --config promptspool.toml
    """  # noqa: D301 - typer's mark for lines to be left alone
    import anyio

    # 6 MB and 80 ms, for the command lines of structlog and httpx.
    with _not_importing("rich"), _not_importing("click"):
        from promptspool import app as daemon

    from promptspool import log
    from promptspool.settings import load

    settings = load(config, spool=spool)
    log.configure(settings.log.level, settings.log.format, secrets=list(_keys(settings)))

    try:
        is_done = anyio.run(
            lambda: daemon.run(
                settings,
                is_draining=drain,
                load=lambda: load(settings.source, spool=spool),
            )
        )
    except* SpoolError as group:
        # Not exit code 2, after which systemd leaves it: a disk may be full, or mounted later.
        raise PromptspoolError(str(cause_of(group))) from group

    return 0 if is_done or not drain else FAILED


@contextmanager
def _not_importing(package: str) -> Iterator[None]:
    """Have nobody find *package*, unless it is imported already: who can do without it will."""
    is_absent = sys.modules.setdefault(package, None) is None  # type: ignore[arg-type] # as import has it

    try:
        yield
    finally:
        if is_absent:
            del sys.modules[package]


def _keys(settings: Settings) -> Iterator[str]:
    """Yield the keys of the providers that have one by now; the others are asked for later."""
    from promptspool.settings import api_key

    for name, provider in settings.providers.items():
        with suppress(ConfigError):
            yield api_key(provider, name)


@registry.command()
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
        cause = cause_of(error)

        if isinstance(cause, OSError):
            reason = f"cannot serve on {host}:{port}: {cause.strerror}"
            raise ConfigError("--port" if cause.filename is None else "--dir", reason) from error

        raise


@registry.command()
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
