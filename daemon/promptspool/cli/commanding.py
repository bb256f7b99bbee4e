"""Commands that tell the daemon what to do.

What it is told is left in its control folder, where it waits if no daemon runs.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptspool.cli.program import (
    FAILED,
    Config,
    JobName,
    SpoolDir,
    is_terminal,
    placed,
    registry,
    remark,
    say,
    spelt,
)
from promptspool.errors import ConfigError, PromptspoolError

if TYPE_CHECKING:
    from collections.abc import Collection

    from promptspool.control import Command
    from promptspool.model import Batch, Job, JobStatus
    from promptspool.spool import Spool

ANSWER_S = 10.0
"""How long an answer of the daemon is waited for."""

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


@registry.command()
def cancel(job: JobName, *, yes: Yes = False, config: Config = None, spool: SpoolDir = None) -> int:
    """Take back a job.

    Nothing more of it is submitted. Its batches are cancelled at the provider; what they have
    answered by then is paid for and delivered, and the rest become errors with the code
    `cancelled`. A file of which nothing was submitted goes to rejected/. Asks first, on a terminal.

    \b
    Example: promptspool cancel may.csv
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.model import JobStatus
    from promptspool.store.view import viewed

    _, place = placed(config, spool)
    found = _job_called(place, job)
    _check_status(found, (JobStatus.CLAIMED, JobStatus.PLANNED, JobStatus.HELD), "be cancelled")

    with viewed(place) as view:
        running = _running(view.batches_of(found.id))

    if not yes and not _is_confirmed(f"cancel {_named(found)}, {running}?"):
        return FAILED

    return _commanded(place, "cancel", found)


@registry.command()
def retry(job: JobName, *, config: Config = None, spool: SpoolDir = None) -> int:
    """Ask again what failed of a delivered job.

    Only its failed requests are submitted, as a new job; the answers that it has are kept and not
    paid for again. All of it is delivered once more, under a new name; nothing of the first
    delivery is changed. Needs the original in done/ and the results and errors in outbox/ as they
    were, and says so if they are not.

    \b
    Example: promptspool retry may.csv
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.retrying import retryable
    from promptspool.tell.words import file_name

    settings, place = placed(config, spool)
    found = _job_called(place, job)
    comes_to = retryable(place, settings, found)
    failed = sum(comes_to.failed.values())
    codes = ", ".join(f"{count:,} {code}" for code, count in comes_to.failed.items())
    say(f"{_named(found)}: {_counted(failed, 'failed request')} to ask again: {codes}")
    name = file_name(comes_to.stem)
    say(f"{_counted(comes_to.kept, 'answer')} kept; all is delivered again as {name}")

    return _commanded(place, "retry", found)


@registry.command()
def release(job: JobName, *, config: Config = None, spool: SpoolDir = None) -> int:
    """Let a held job go on, whatever it may cost.

    A job is held where it would cost more than max_cost, or than what is left of the day's or the
    month's; `promptspool show JOB` says why. The limits hold for it no longer.

    \b
    Example: promptspool release may.csv
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.model import JobStatus

    _, place = placed(config, spool)
    found = _job_called(place, job)
    _check_status(found, (JobStatus.HELD,), "be released")

    return _commanded(place, "release", found)


@registry.command()
def pause(
    provider: Annotated[
        str | None,
        typer.Argument(metavar="PROVIDER", help="One provider; without it the whole daemon."),
    ] = None,
    *,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Let nothing new be submitted.

    Paused as a whole, the daemon claims no file, uploads nothing and creates no batch; what runs at
    a provider goes on, and is delivered. It stays paused over restarts, until `resume`.

    \b
    Example: promptspool pause openai
    """  # noqa: D301 - typer's mark for lines to be left alone
    return _paused("pause", provider, config, spool)


@registry.command()
def resume(
    provider: Annotated[
        str | None,
        typer.Argument(metavar="PROVIDER", help="One provider; without it the whole daemon."),
    ] = None,
    *,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """End a pause.

    \b
    Example: promptspool resume openai
    """  # noqa: D301 - typer's mark for lines to be left alone
    return _paused("resume", provider, config, spool)


@registry.command()
def reload(*, config: Config = None, spool: SpoolDir = None) -> int:
    """Let the daemon read its configuration again.

    It does so by itself within `spool.rescan` when the file changes, and on SIGHUP. A faulty file
    is refused, here and by the daemon, which goes on with what it has.

    \b
    Example: promptspool reload
    """  # noqa: D301 - typer's mark for lines to be left alone
    _, place = placed(config, spool)

    if not _is_run(place):
        remark("promptspool does not run; it reads its configuration when it starts")

        return FAILED

    return _asked(place, _command("reload"))


@registry.command()
def forget(job: JobName, *, yes: Yes = False, config: Config = None, spool: SpoolDir = None) -> int:
    """Remove a finished job from the database.

    Its files stay where they are; it cannot be shown or retried any more. Asks first, on a
    terminal. The daemon does so by itself when `retention.history` is over.

    \b
    Example: promptspool forget may.csv
    """  # noqa: D301 - typer's mark for lines to be left alone
    from promptspool.model import JobStatus

    _, place = placed(config, spool)
    found = _job_called(place, job)
    _check_status(found, (JobStatus.DONE, JobStatus.REJECTED), "be forgotten")

    if not yes and not _is_confirmed(f"forget {_named(found)}? its files stay;"):
        return FAILED

    return _commanded(place, "forget", found)


@registry.command()
def clean(
    *,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help='Such as "30d" or "12h".', show_default=False)
    ],
    yes: Yes = False,
    config: Config = None,
    spool: SpoolDir = None,
) -> int:
    """Remove what is finished and old.

    Jobs that ended before, from the database, and what has been in done/ and rejected/ for so long.
    The outbox is never touched. Asks first, on a terminal. The section [retention] has the daemon
    do so by itself.

    \b
    Example: promptspool clean --older-than 30d
    """  # noqa: D301 - typer's mark for lines to be left alone
    _, place = placed(config, spool)
    age_s = _seconds(older_than)
    what = f"jobs that ended over {older_than} ago, and their originals in done/ and rejected/"

    if not yes and not _is_confirmed(f"remove {what}?"):
        return FAILED

    return _asked(place, _command("clean", older_than_s=age_s))


# What they share.


def _paused(verb: str, provider: str | None, config: Path | None, spool: Path | None) -> int:
    settings, place = placed(config, spool)

    if provider is not None and provider not in settings.providers:
        known = ", ".join(settings.providers) or "(none)"
        raise ConfigError("PROVIDER", f"there is no provider {provider!r}; known: {known}")

    return _asked(place, _command(verb, provider=provider))


def _job_called(spool: Spool, text: str) -> Job:
    """Return the job that *text* names; says of a file in the inbox that it is none yet."""
    from promptspool.store.view import NoDatabase, NoSuchJob, viewed

    try:
        with viewed(spool) as view:
            return view.job(text)
    except (NoDatabase, NoSuchJob) as error:
        path = spool.inbox / text

        if Path(text).is_absolute() or ".." in path.parts or not os.path.lexists(path):
            raise

        way_out = f"`rm {shlex.quote(str(path))}` takes it back"
        raise NoSuchJob(f"{text} is no job yet, it is still in the inbox: {way_out}") from error


def _check_status(job: Job, allowed: Collection[JobStatus], what: str) -> None:
    if job.status not in allowed:
        raise PromptspoolError(f"{_named(job)} cannot {what}: it is {job.status.value}")


def _running(batches: list[Batch]) -> str:
    from promptspool.model import BatchStatus

    live = (BatchStatus.CREATING, BatchStatus.UNCLEAR, BatchStatus.CREATED)
    count = sum(batch.status in live for batch in batches)

    return f"{_counted(count, 'batch', 'es')} running" if count else "of which nothing runs"


def _is_confirmed(question: str) -> bool:
    """Ask a person, if there is one; a script has said what it wants."""
    if not is_terminal() or typer.confirm(spelt(question)):
        return True

    remark("nothing was done")

    return False


def _commanded(spool: Spool, verb: str, job: Job) -> int:
    return _asked(spool, _command(verb, job=job.id))


def _command(verb: str, **arguments: object) -> Command:
    import msgspec

    from promptspool.clock import SystemClock
    from promptspool.control import Command

    return msgspec.convert({"verb": verb, "left_at": SystemClock().now(), **arguments}, Command)


def _asked(spool: Spool, command: Command) -> int:
    """Leave *command*, and tell what the daemon answers; return the exit code."""
    from promptspool import control

    name = control.leave(spool, command)

    if not _is_run(spool):
        remark("promptspool does not run; it will be done at its next start")

        return 0

    try:
        answer = control.take_answer(spool, name, within_s=ANSWER_S)
    except KeyboardInterrupt:
        remark("the command stays, and will be done")
        raise

    if answer is not None and answer.is_done:
        say(answer.message)

        return 0

    if answer is not None:
        remark(answer.message)
    elif _is_run(spool):
        remark(
            f"promptspool runs, and did not answer within {ANSWER_S:g} s; "
            f"the command stays, and is done as soon as it can be"
        )
    else:
        remark("promptspool has ended meanwhile; it will be done at its next start")

    return FAILED


def _is_run(spool: Spool) -> bool:
    from promptspool.store.view import is_held

    return is_held(spool)


def _seconds(age: str) -> float:
    from pydantic import TypeAdapter, ValidationError

    from promptspool.settings.values import PositiveDuration

    try:
        return TypeAdapter(PositiveDuration).validate_python(age)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError("--older-than", f"found {age!r}; {reason}") from error


def _named(job: Job) -> str:
    from promptspool.tell.words import file_name

    return f"{file_name(job.name)} (job {job.id})"


def _counted(count: int, word: str, plural: str = "s") -> str:
    return f"{count:,} {word}{'' if count == 1 else plural}"
