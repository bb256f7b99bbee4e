"""Commands that are told of a job: what they get, and what they can do to the daemon."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from promptspool import log
from promptspool.notices import Message, NoticeFailed, send, targets
from promptspool.notices.command import MAX_SHOWN
from promptspool.settings import NotifySettings, example_config, load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

pytestmark = pytest.mark.anyio

HANG_S = 20
"""Real time, against hangs."""

PATH = os.environ["PATH"]
MESSAGE = Message(
    id="20261120t231853z-4f7k2m/job.delivered.3/command",
    event="job.delivered",
    at=1_795_216_733.25,
    job="20261120t231853z-4f7k2m",
    file="reviews/may.csv",
    profile="reviews",
    provider="openai",
    status="delivered",
    reason=None,
    results=6,
    errors=1,
    cost_usd=0.000281,
    summary=Path("/spool/outbox/reviews/may.csv.summary.json"),
    results_path=Path("/spool/outbox/reviews/may.csv.results.jsonl"),
    errors_path=None,
)


async def told(
    *command: str,
    message: Message = MESSAGE,
    timeout: float = HANG_S,  # noqa: ASYNC109 - the setting
    environ: Mapping[str, str] | None = None,
) -> None:
    """Tell a command, with a hang turned into a failure."""
    settings = NotifySettings(command=command, timeout=timeout)

    with anyio.fail_after(HANG_S):
        await send(
            message,
            settings,
            target="command",
            name="reviews",
            environ={"PATH": PATH} if environ is None else environ,
            now=message.at,
        )


async def refusal(*command: str, timeout: float = HANG_S) -> str:  # noqa: ASYNC109 - the setting
    """Return why a command did not take a message."""
    with pytest.raises(NoticeFailed) as caught:
        await told(*command, timeout=timeout)

    assert str(caught.value) == caught.value.reason
    assert not caught.value.is_final

    return caught.value.reason


def noting(path: Path) -> list[str]:
    """Return a command that writes its arguments and its environment to a file, byte for byte."""
    code = (
        "import json, os, sys\n"
        "known = {n.decode(): v.decode('latin-1') for n, v in os.environb.items()}\n"
        "with open(sys.argv[1], 'x') as file:\n"
        "    json.dump({'argv': sys.argv[2:], 'environ': known, 'stdin': sys.stdin.read()}, file)\n"
    )

    return [sys.executable, "-c", code, str(path)]


def left(folder: Path) -> list[str]:
    """Return the names of what is in a folder."""
    return [path.name for path in folder.iterdir()]


def noted(path: Path) -> dict[str, str]:
    """Return the environment that a command wrote down, but for what Python adds to its own."""
    environ: dict[str, str] = json.loads(path.read_text())["environ"]
    environ.pop("LC_CTYPE", None)  # PEP 538

    return environ


def descriptors() -> list[str]:
    """Return what this process has open."""
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the names


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, be it that nobody has asked yet how."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True

    return status.rpartition(")")[2].split()[0] in "ZX"


@contextmanager
def heard(path: Path) -> Iterator[Callable[[], Awaitable[list[int]]]]:
    """Yield how to wait for the processes that a script writes down, in one line, to a FIFO."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def processes() -> list[int]:
        with anyio.fail_after(HANG_S):
            await anyio.wait_readable(descriptor)

        return [int(word) for word in os.read(descriptor, 100).split()]

    try:
        yield processes
    finally:
        os.close(descriptor)


# What it is told.


async def test_a_command_is_told_of_the_job_in_its_environment(tmp_path: Path) -> None:
    """Each fact is a variable; one that is not known is there and empty; nothing else is."""
    out = tmp_path / "out"
    await told(*noting(out), environ={"PATH": PATH, "LC_ALL": "C.UTF-8"})

    assert noted(out) == {
        "PATH": PATH,
        "LC_ALL": "C.UTF-8",
        "PROMPTSPOOL_EVENT": "job.delivered",
        "PROMPTSPOOL_NOTICE": "20261120t231853z-4f7k2m/job.delivered.3/command",
        "PROMPTSPOOL_AT": "2026-11-20T23:18:53.250Z",
        "PROMPTSPOOL_JOB": "20261120t231853z-4f7k2m",
        "PROMPTSPOOL_FILE": "reviews/may.csv",
        "PROMPTSPOOL_PROFILE": "reviews",
        "PROMPTSPOOL_PROVIDER": "openai",
        "PROMPTSPOOL_STATUS": "delivered",
        "PROMPTSPOOL_REASON": "",
        "PROMPTSPOOL_RESULTS": "6",
        "PROMPTSPOOL_ERRORS": "1",
        "PROMPTSPOOL_COST_USD": "0.000281",
        "PROMPTSPOOL_SUMMARY_PATH": "/spool/outbox/reviews/may.csv.summary.json",
        "PROMPTSPOOL_RESULTS_PATH": "/spool/outbox/reviews/may.csv.results.jsonl",
        "PROMPTSPOOL_ERRORS_PATH": "",
    }
    assert json.loads(out.read_text())["stdin"] == ""


async def test_a_command_gets_no_secret_of_ours(tmp_path: Path) -> None:
    """Of the daemon's own environment a command gets what every program needs, and no key."""
    kept = {
        "PATH": PATH,
        "HOME": "/home/me",
        "USER": "me",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE.UTF-8",
        "TZ": "UTC",
        "TMPDIR": "/elsewhere",
    }
    ours = {
        "OPENAI_API_KEY": "sk-do-not-show-me",
        "HOOK_SECRET": "whsec_do-not-show-me",
        "CREDENTIALS_DIRECTORY": "/run/credentials/promptspool.service",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "PROMPTSPOOL_PROVIDERS__OPENAI__BASE_URL": "https://example.com/v1",
        "HTTPS_PROXY": "http://me:password@proxy.example.com",
        "PYTHONSTARTUP": "/somewhere",
    }
    out = tmp_path / "out"
    await told(*noting(out), environ=kept | ours)
    environ = noted(out)

    assert kept.items() <= environ.items()
    assert not ours.keys() & environ.keys()
    assert "do-not-show-me" not in out.read_text()


async def test_arguments_arrive_as_they_are_written(tmp_path: Path) -> None:
    """No shell reads a command: spaces, quotes, variables and semicolons stay what they are."""
    arguments = [
        "a b",
        "$(touch pwned)",
        "; touch pwned",
        "`id`",
        "$PROMPTSPOOL_JOB",
        "*",
        "'\"",
        "ä\n",
    ]
    out = tmp_path / "out"
    await told(*noting(out), *arguments)

    assert json.loads(out.read_text())["argv"] == arguments
    assert "pwned" not in left(Path())


async def test_a_name_of_any_bytes_arrives(tmp_path: Path) -> None:
    """Paths are the file system's own bytes, names for people are UTF-8, and a NUL is replaced."""
    name = b"\xff\xfe;\n$(id)\x80.csv"
    message = replace(
        MESSAGE,
        file=name.decode("utf-8", "backslashreplace"),
        results_path=Path("/spool", os.fsdecode(name)),
        reason="half a pair \ud800, a NUL \0, an escaped byte \udcff",
    )
    out = tmp_path / "out"
    await told(*noting(out), message=message)
    environ = {key: value.encode("latin-1") for key, value in noted(out).items()}

    assert environ["PROMPTSPOOL_RESULTS_PATH"] == b"/spool/" + name
    assert environ["PROMPTSPOOL_FILE"] == rb"\xff\xfe;" + b"\n" + rb"$(id)\x80.csv"
    assert environ["PROMPTSPOOL_REASON"].decode() == (
        r"half a pair \ud800, a NUL " + "\ufffd" + r", an escaped byte \udcff"
    )


async def test_a_command_may_call_promptspool(tmp_path: Path) -> None:
    """What a command is told is taken for a setting by no promptspool that it calls."""
    config = tmp_path / "promptspool.toml"
    config.write_text(example_config())
    out = tmp_path / "out"
    await told(*noting(out))

    assert load(config, environ=noted(out)) == load(config, environ={})


async def test_a_reason_of_any_length_arrives(tmp_path: Path) -> None:
    """A reason too long for a variable is cut, and the command runs."""
    out = tmp_path / "out"
    await told(*noting(out), message=replace(MESSAGE, reason="x" * 1_000_000))

    assert set(noted(out)["PROMPTSPOOL_REASON"]) == {"x"}


# How it fails.


async def test_a_command_that_fails_says_why() -> None:
    """A reason has the exit code and the last words on standard error, as one line."""
    reason = await refusal("/bin/sh", "-c", "echo not me; echo once >&2; echo  twice >&2; exit 3")

    assert reason == (
        "profiles.reviews.notify.command: /bin/sh ended with exit code 3; it last said: once twice"
    )


async def test_a_command_that_a_signal_ended_says_which() -> None:
    """A signal is told by its name."""
    assert (await refusal("/bin/sh", "-c", "kill -SEGV $$")).endswith("ended with SIGSEGV")


async def test_a_command_that_cannot_run_says_what_to_do(tmp_path: Path) -> None:
    """A program that is missing, may not be run or is none is told as what it is."""
    plain, script, lost = tmp_path / "plain", tmp_path / "script", tmp_path / "lost"
    plain.write_text("exit 0\n")
    script.write_text("exit 0\n")
    script.chmod(0o755)
    lost.write_text("#!/no/such/interpreter\n")
    lost.chmod(0o755)

    assert "was not found" in await refusal("no-such-program")
    assert "was not found" in await refusal(str(lost))
    assert "may not be run" in await refusal(str(plain))
    assert "may not be run" in await refusal(str(tmp_path))
    assert "#!/bin/sh" in await refusal(str(script))
    assert "no argument can" in await refusal("/bin/true", "a\0b")
    assert "Argument list too long" in await refusal("/bin/true", "x" * 200_000)


async def test_a_program_is_found_by_its_name(tmp_path: Path) -> None:
    """A name without a slash is looked for in our PATH."""
    program = tmp_path / "hook"
    program.write_text('#!/bin/sh\necho "$PROMPTSPOOL_JOB" > "$HOME/out"\n')
    program.chmod(0o755)
    await told("hook", environ={"PATH": f"{tmp_path}:{PATH}", "HOME": str(tmp_path)})

    assert (tmp_path / "out").read_text() == f"{MESSAGE.job}\n"


async def test_what_a_command_says_is_bounded() -> None:
    """A hundred megabytes on both streams neither fill memory nor stop the command."""
    code = (
        "import os\n"
        "for _ in range(1600):\n"
        "    for stream in (1, 2): os.write(stream, b'a ' * 32768)\n"
        "os.write(2, b'the end'); raise SystemExit(1)"
    )
    reason = await refusal(sys.executable, "-c", code)
    words = reason.partition("it last said: ")[2]

    assert words.endswith("a a a the end")
    assert len(words) == MAX_SHOWN


async def test_a_command_says_no_secret() -> None:
    """A secret is struck out of a command's last words, also one that is cut through."""
    secret = "sk-" + "0123456789abcdef" * 16
    log.keep_secret(secret)
    reason = await refusal("/bin/sh", "-c", f"echo key {secret} >&2; exit 1")
    assert reason.endswith("it last said: key ***")

    # What is kept begins in the middle of a secret, and stars leave room to show all of it.
    said = " ".join([secret] * 40)
    reason = await refusal("/bin/sh", "-c", f"printf '%s' '{said}' >&2; exit 1")
    assert set(reason.partition("it last said: ")[2]) == {"*", " "}


# Time.


async def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    """When its time is over a command is gone, and so are its children that do not want to go."""
    out = tmp_path / "out"
    script = f"trap '' TERM; sleep 600 & echo $$ $! > {out}; echo waiting >&2; wait; sleep 600"

    with heard(out) as processes:
        reason = await refusal("/bin/sh", "-c", script, timeout=1.0)
        command, child = await processes()

    assert reason == (
        "profiles.reviews.notify.command: /bin/sh did not end within 1 s, and was ended; "
        "it last said: waiting"
    )
    assert is_gone(command)
    assert is_gone(child)


async def test_a_command_may_clean_up_when_its_time_is_over(tmp_path: Path) -> None:
    """Who goes when asked is not killed: it has the time to leave things as they should be."""
    out = tmp_path / "out"
    script = f"trap 'echo cleaned > {out}; exit 0' TERM; sleep 600 & wait"
    reason = await refusal("/bin/sh", "-c", script, timeout=1.0)

    assert "did not end within 1 s" in reason
    assert out.read_text() == "cleaned\n"


@pytest.mark.parametrize("trap", ["trap '' TERM; ", ""], ids=["stubborn", "obedient"])
async def test_a_daemon_that_stops_takes_its_command_along(tmp_path: Path, trap: str) -> None:
    """Cancelled, an attempt ends, and with it the command and its children, like it or not."""
    out = tmp_path / "out"

    with heard(out) as processes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(told, "/bin/sh", "-c", f"{trap}sleep 600 & echo $$ $! > {out}; wait")
            command, child = await processes()
            tasks.cancel_scope.cancel()

    assert is_gone(command)
    assert is_gone(child)


async def test_what_a_command_leaves_running_is_left(tmp_path: Path) -> None:
    """A command is done when it ends, though a child of it still holds what it speaks into."""
    out = tmp_path / "out"
    await told("/bin/sh", "-c", f"sleep 600 & echo $! > {out}")
    child = int(out.read_text())

    try:
        assert not is_gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


async def test_an_attempt_leaves_nothing_behind(tmp_path: Path) -> None:
    """However an attempt ends, it leaves no descriptor open and no zombie."""
    out = tmp_path / "out"
    ways = ("exit 0", "exit 1", "exec sleep 600")
    await told("/bin/true")  # whatever is made once
    before = descriptors()

    for way in ways:
        with suppress(NoticeFailed):
            await told("/bin/sh", "-c", f"echo $$ >> {out}; {way}", timeout=1.0)

    await refusal("no-such-program")

    assert descriptors() == before
    processes = out.read_text().split()
    assert len(processes) == len(ways)
    assert not set(processes) & set(left(Path("/proc")))


async def test_too_many_open_files_are_told() -> None:
    """However few descriptors are left, an attempt fails with a reason, and leaves none open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    await told("/bin/true")  # whatever is made once
    before = descriptors()
    taken: list[int] = []
    reasons: list[str] = []

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))

        for _ in range(12):
            try:
                await told("/bin/true")
            except NoticeFailed as error:
                reasons.append(error.reason)

            os.close(taken.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        for descriptor in taken:
            os.close(descriptor)

    assert descriptors() == before
    assert 0 < len(reasons) < 12
    assert all("Too many open files" in reason for reason in reasons)


async def test_a_command_gets_no_descriptor_of_ours(tmp_path: Path) -> None:
    """A command has its three streams, and nothing that the daemon has open."""
    (tmp_path / "database").write_text("ours")

    with (tmp_path / "database").open() as ours:
        os.set_inheritable(ours.fileno(), True)  # noqa: FBT003 - it has no keyword
        await told(
            "/bin/sh", "-c", f"test ! -e /proc/$$/fd/{ours.fileno()} && test -e /proc/$$/fd/2"
        )


# Who is told.


def test_each_target_is_told_by_itself() -> None:
    """Targets are what is set; none is by default."""
    assert targets(NotifySettings()) == ()
    assert targets(NotifySettings(command=("a",))) == ("command",)
    assert targets(NotifySettings(webhook="https://example.com/x")) == ("webhook",)
    both = NotifySettings(command=("a",), webhook="https://example.com/x")
    assert targets(both) == ("command", "webhook")


@pytest.mark.parametrize("target", ["command", "webhook"])
async def test_who_is_not_set_any_more_is_not_told(target: str) -> None:
    """A notice whose target was taken out of the configuration is given up."""
    with pytest.raises(NoticeFailed, match=f"notify.{target} is not set any more") as caught:
        await send(
            MESSAGE,
            NotifySettings(),
            target=target,  # type: ignore[arg-type]  # one of the two
            name="reviews",
            environ={},
            now=time.time(),
        )

    assert caught.value.is_final
