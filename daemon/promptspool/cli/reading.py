"""Commands that look and change nothing: the spool, one job, the log, and waiting for an end."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from promptspool.cli.program import FAILED, Config, JobName, SpoolDir, registry, remark
from promptspool.errors import ConfigError, PromptspoolError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from rich.console import Console

    from promptspool.settings import Glance, Settings
    from promptspool.tell.lines import Filter

WATCH_S = 1.0
"""How long a drawing of `status --watch` stays."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@registry.command()
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Draw it anew every second, until Ctrl-C.")
    ] = False,
    is_all: Annotated[
        bool, typer.Option("--all", help="List every job, however many lines that takes.")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Show on one screen how the daemon and its jobs are doing.

    Whether it runs; what is paused, and why; what today cost; the jobs in flight with their phase,
    age and next step; what needs a person, with the commands that help; and how old the batches in
    each phase are, so that what is stuck stands out on the right. Works when the daemon is down,
    and never disturbs it.

    Exit code 1 if anything needs a person: a job that is held or set aside, a batch without
    progress, a provider that refuses, a file that was rejected in the last 24 hours, a notice that
    nobody took, a daemon that is down while jobs wait, or a database that cannot be read.

    The keys of --json are described in promptspool/tell/document.py; none changes its meaning
    under the same "version".

    \b
    Example: promptspool status --watch
    """  # noqa: D301 - typer's mark for lines to be left alone
    import json

    from promptspool.clock import SystemClock
    from promptspool.settings import glance
    from promptspool.tell.document import document
    from promptspool.tell.looking import console_of, is_plain, looked, place_of, put, spool_of
    from promptspool.tell.screen import lines_of
    from promptspool.tell.words import safe

    settings = glance(config, spool=spool)
    folder = spool_of(settings).root

    if as_json and not watch:
        report = looked(settings, now=SystemClock().now())
        typer.echo(json.dumps(document(report, folder), indent=2))

        return FAILED if report.needs else 0

    if watch:
        return _watched(settings, console_of(), as_json=as_json)

    console = None if is_plain() else console_of()
    report = looked(settings, now=SystemClock().now())
    put(console, lines_of(report, safe(str(folder)), place_of(console, shows_all=is_all)))

    return FAILED if report.needs else 0


def _watched(settings: Glance | Settings, console: Console, *, as_json: bool) -> int:
    from rich.console import Group
    from rich.live import Live

    from promptspool.clock import SystemClock, pause
    from promptspool.tell.looking import looked, place_of, spool_of
    from promptspool.tell.screen import lines_of
    from promptspool.tell.words import safe

    if as_json or not console.is_terminal:
        raise ConfigError("--watch", "it draws on a terminal; leave it out, or --json")

    folder = safe(str(spool_of(settings).root))

    with (
        suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            report = looked(settings, now=SystemClock().now())
            lines = lines_of(report, folder, place_of(console, shows_all=False))
            live.update(Group(*lines), refresh=True)
            pause(WATCH_S)

    return 0


@registry.command()
def show(
    job: JobName, *, as_json: AsJson = False, config: Config = None, spool: SpoolDir = None
) -> int:
    """Tell the whole story of one job.

    What was dropped and what became of it; its batches, each under the one whose leftovers it has,
    with the provider's ids and complaints; why requests failed, by cause, with the provider's own
    words and its names for the calls; every change of status; notices; where the files are; and
    what to do next. Never a prompt or an answer.

    The keys of --json are described in promptspool/tell/record.py.

    \b
    Example: promptspool show may.csv
    """  # noqa: D301 - typer's mark for lines to be left alone
    import json

    from promptspool.clock import SystemClock
    from promptspool.settings import load
    from promptspool.tell.looking import console_of, put, spool_of
    from promptspool.tell.page import page_of
    from promptspool.tell.record import record
    from promptspool.tell.story import story_of

    settings = load(config, spool=spool)
    _keep_keys(settings)
    place = spool_of(settings)
    now = SystemClock().now()
    story = story_of(place, job, now=now)

    if as_json:
        typer.echo(json.dumps(record(story), indent=2))
    else:
        put(console_of(), page_of(story, place, now=now))

    return 0


def _keep_keys(settings: Settings) -> None:
    """Strike the keys out of whatever is shown, as far as this user can know them."""
    from promptspool import log
    from promptspool.settings import api_key

    for name, provider in settings.providers.items():
        with suppress(ConfigError):
            log.keep_secret(api_key(provider, name))


@registry.command()
def wait(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB...",
            help="Ids, the beginnings or ends of ids, or names of files, in the inbox too.",
        ),
    ],
    *,
    timeout: Annotated[
        str | None, typer.Option(metavar="SPAN", help='Give up after so long, as in "10m".')
    ] = None,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Wait until jobs have come to their end.

    Shows their progress: bars on a terminal, a line for each change in a pipe. Exit code 0 if all
    of them were delivered and every request was answered; 1 if one was rejected, has errors, or did
    not end within --timeout. A file that is still in the inbox will do: its job is waited for.

    \b
    Example: promptspool wait may.csv --timeout 24h && mail -s done me < /dev/null
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.settings import load

    timeout_s = None if timeout is None else _span("--timeout", timeout)

    return waited(load(config, spool=spool), *jobs, timeout_s=timeout_s)


def waited(
    settings: Settings, *names: str, since: float | None = None, timeout_s: float | None = None
) -> int:
    """Wait as `wait_for` does, until Ctrl-C at the latest, and return the exit code."""
    from promptspool.tell.waiting import wait_for

    try:
        is_good = wait_for(settings, *names, since=since, timeout_s=timeout_s)
    except KeyboardInterrupt:
        remark("no longer waited for; the work goes on")

        return FAILED

    return 0 if is_good else FAILED


@registry.command()
def logs(  # noqa: PLR0913 - each of them narrows the log in its own way
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A JSON log; - is standard input. Else the journal."),
    ] = None,
    *,
    job: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="An id, its beginning or end, or the name of a file."),
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Such events alone; `batch` is all of batch.*."),
    ] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="This level, and what is more urgent."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written later.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help='A span, as in "2h", or a moment: "2026-11-20 08:00".'),
    ] = None,
) -> None:
    """Print the log for people, of one job or of all.

    One line each, with time, level, event and fields.

    Reads the journal of the service, or a file. What is no JSON is printed as it is, unless only
    certain lines are wanted; on a terminal, what that would obey is spelt out.

    \b
    Example: promptspool logs --job may.csv --since 2h
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.tell.lines import Filter
    from promptspool.tell.looking import console_of

    after = None if since is None else _moment("--since", since)
    ids = _known_ids(job) if file is None and job is not None else set()
    wanted = Filter(job=job, events=tuple(event or ()), level=level, since=after, ids=ids)

    with suppress(KeyboardInterrupt), closing(_source(file, after, follows=follow)) as source:
        is_empty = not _print_log(console_of(), source, wanted)

        if is_empty and file is None:
            remark("the journal has no such lines; a log of its own is read by naming its FILE")


def _known_ids(job: str) -> set[str]:
    """Return the ids of the jobs that *job* stands for on this machine, as far as that is known.

    The line of the journal that says so may be older than what is asked for.
    """
    from promptspool.settings import load
    from promptspool.store.view import viewed
    from promptspool.tell.looking import spool_of

    with suppress(PromptspoolError), viewed(spool_of(load(None))) as view:
        return {one.id for one in view.jobs_called(job)}

    return set()


def _source(file: Path | None, since: float | None, *, follows: bool) -> Generator[bytes]:
    from promptspool.tell import tail

    if file is None:
        return tail.journal_lines(follows=follows, since=since)

    return tail.standard_input() if str(file) == "-" else tail.file_lines(file, follows=follows)


def _print_log(console: Console, source: Iterable[bytes], wanted: Filter) -> bool:
    """Print the lines that are wanted; False if there were none."""
    from rich.text import Text

    from promptspool.tell.lines import parsed, pretty
    from promptspool.tell.looking import put
    from promptspool.tell.words import safe

    is_any = False

    for raw in source:
        text = raw.decode("utf-8", "backslashreplace").removesuffix("\n")
        line = parsed(text)

        if not wanted.wants(line):
            continue

        is_any = True
        plain = Text(safe(text) if console.is_terminal else text)

        if not put(console, [plain if line is None else pretty(line)]):
            break

    return is_any


def _span(option: str, text: str) -> float:
    """Return the seconds of a length of time; raises `ConfigError`."""
    from pydantic import TypeAdapter, ValidationError

    from promptspool.settings import Duration

    try:
        return float(TypeAdapter(Duration).validate_python(text))
    except ValidationError as error:
        reason = 'write a span such as "90s", "10m", "2h" or "7d"'
        raise ConfigError(option, reason) from error


def _moment(option: str, text: str) -> float:
    """Return a moment, in Unix seconds: so long ago, or as it is written; raises `ConfigError`."""
    from datetime import datetime

    from promptspool.clock import SystemClock

    try:
        return datetime.fromisoformat(text).timestamp()  # of this machine's zone, if it names none
    except ValueError:
        with suppress(ConfigError):
            return SystemClock().now() - _span(option, text)

    reason = 'write a span such as "2h", or a moment such as "2026-11-20 08:00"'
    raise ConfigError(option, reason)
