"""Commands about files: where they go, what would become of them, and dropping them."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from promptspool.cli.program import FAILED, Config, SpoolDir, placed, registry, remark, say, spelt
from promptspool.errors import ConfigError, SpoolError


@registry.command()
def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Files to be dropped; none: the configuration."),
    ] = None,
    *,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Its profile; else that of the inbox folder it is in, or default."
        ),
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", min=0, help="Assumed of each answer, instead of answer_tokens."
        ),
    ] = None,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Say what would become of files; check the configuration.

    Each file is read, rendered and checked as if it had been dropped, with its sidecar if there is
    one; nothing is sent. Shows format, bad rows, batches, an estimate of the cost, and the first
    request in full. Exit code 1 if anything would be rejected.

    Without a file: loads the configuration, compiles its templates and schemas, and says which
    profiles and providers there are and where keys are found. Exit code 2 with file, key and reason
    if it cannot be used.

    \b
    Example: promptspool check --profile reviews may.csv
             promptspool check && systemctl reload promptspool
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.check import checked, told
    from promptspool.settings import load

    settings = load(config, spool=spool)
    is_clean = True

    if not files:
        from promptspool.doctor.configuration import configuration

        for line in configuration(settings):
            say(line)

    for path in files or []:
        result = checked(settings, path, profile=profile, output_tokens=output_tokens)
        is_clean = is_clean and result.is_clean

        for line in told(result):
            say(line)

    return 0 if is_clean else FAILED


@registry.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is missing.")],
) -> None:
    """Make a spool and its configuration.

    DIR gets `promptspool.toml`, in which every setting is shown with its default, and the spool
    with its folders: files are dropped into inbox/, and answers come to outbox/. What is there
    already is not changed.

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


@registry.command()
def submit(  # noqa: PLR0913 - one for each option
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Prompt files; - is standard input.")
    ],
    *,
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="The profile that makes requests of them.")
    ] = "default",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the file is to be called.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all of it is delivered or rejected.")
    ] = False,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Drop files into the inbox.

    Each file is copied, whole or not at all, with its sidecar FILE.toml if there is one; your own
    file is not touched. Prints what each is called in the inbox: with a number if one of that name
    is still waiting there. The kind of what comes from standard input is told by the name, or else
    by its first character: { is JSONL, [ is JSON, anything else is a prompt a line.

    With --wait it shows how it goes until every file is delivered or rejected; exit code 1 if one
    was rejected or has errors. Ctrl-C ends the waiting, not the jobs.

    \b
    Example: promptspool submit --profile reviews may.csv june.csv
             sort -u questions | promptspool submit - --name q.txt --wait
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.clock import SystemClock
    from promptspool.store.view import is_held
    from promptspool.submitting import drop, sources
    from promptspool.tell.words import safe

    settings, place = placed(config, spool)
    names = []

    if Path("-") in files and sys.stdin.isatty():
        remark("reading prompts from this terminal; Ctrl-D ends them")

    with sources(settings, files, profile=profile, name=name, stdin=sys.stdin.buffer) as found:
        began_at = SystemClock().now()

        for source in found:
            dropped = drop(place, source, profile=profile)
            names.append(dropped.name)
            shown = safe(spelt(dropped.name))

            if dropped.name != dropped.wanted:
                waiting = safe(spelt(dropped.wanted))
                remark(f"{waiting} waits in the inbox already; this one is {shown}")

            say(shown)

    with suppress(SpoolError):  # who may drop files need not see more of the daemon
        if not is_held(place):
            remark("promptspool does not run; what was dropped is taken at its next start")

    if not wait:
        return 0

    from promptspool.cli.reading import waited

    return waited(settings, *names, since=began_at)
