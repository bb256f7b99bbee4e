from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from promptspool import errors
from promptspool.errors import BadInput, Bug, ConfigError, PromptspoolError, Throttled
from promptspool.worker import WorkerDied, run

if TYPE_CHECKING:
    from collections.abc import Callable

MEGABYTE = 1 << 20
SECRETS = {"OPENAI_API_KEY": "sk-1", "AWS_SECRET_ACCESS_KEY": "2", "CREDENTIALS_DIRECTORY": "/c"}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker find the functions of this module."""
    here = Path(__file__).parent
    places = [here.parent, here, here.parent / "daemon"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))


def raising(kind: type[Exception], args: tuple[object, ...], fields: dict[str, object]) -> NoReturn:
    """Raise an exception that is made of *args* and *fields*."""
    raise kind(*args, **fields)


def test_a_result_comes_back() -> None:
    """What a function returns in a worker is what it returns here; only the process differs."""
    assert run(divmod, 17, 5) == (3, 2)
    assert run(sorted, [2, 3, 1], reverse=True) == [3, 2, 1]
    assert run(os.getpid) != os.getpid()


def test_large_values_pass_both_ways() -> None:
    """Neither a call nor an answer is bound to what a pipe holds."""
    assert run(bytes.upper, b"x" * 5 * MEGABYTE) == b"X" * 5 * MEGABYTE


RATE = {"code": "rate_limit", "status": 429, "request_id": "r1", "retry_after_s": 2.5}


@pytest.mark.parametrize(
    ("kind", "args", "fields"),
    [
        (BadInput, ("found a dog",), {"code": "invalid_json", "line": 7, "key": "prompt"}),
        (BadInput, ("found a cat",), {}),
        (ConfigError, ("limits.max_rows", "is not a number"), {}),
        (ConfigError, ("", "nothing is right"), {}),
        (Throttled, ("slow down",), RATE),
        (errors.NotFound, (), {}),
        (Bug, ("ours",), {}),
        (WorkerDied, ("another one",), {"status": -9}),
        (ValueError, ("odd", 3), {}),
        (KeyError, ("x",), {}),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "invalid"), {}),
    ],
)
def test_exceptions_come_back_as_themselves(
    kind: type[Exception], args: tuple[object, ...], fields: dict[str, object]
) -> None:
    """An exception raised in a worker has its class, its message and each of its fields."""
    made = kind(*args, **fields)

    with pytest.raises(kind) as caught:
        run(raising, kind, args, fields)

    state = {name: value for name, value in vars(caught.value).items() if name != "__notes__"}

    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.args, state) == (str(made), made.args, vars(made))


def test_every_exception_of_ours_comes_back() -> None:
    """No class of the tree in `errors` is lost on the way, whatever its constructor takes."""
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, PromptspoolError)
    ]
    assert len(classes) > 10

    for kind in classes:
        args = ("one", "two") if kind is ConfigError else ("one",)

        with pytest.raises(kind) as caught:
            run(raising, kind, args, {})

        assert vars(caught.value) == vars(kind(*args))


def test_an_error_of_the_system_keeps_its_number_and_file(tmp_path: Path) -> None:
    """`OSError` is the environment's, so its caller has to see which one it was, and where."""
    missing = tmp_path / "missing"

    with pytest.raises(FileNotFoundError) as caught:
        run(Path.read_bytes, missing)

    assert (caught.value.errno, caught.value.filename) == (2, str(missing))


def test_a_foreign_exception_says_where_it_was_raised() -> None:
    """The traceback of the worker is a note, as this process has none of it."""
    with pytest.raises(ValueError, match="invalid literal") as caught:
        run(int, "x")

    assert any("worker.py" in note for note in caught.value.__notes__)


class Unsendable(Exception):
    """Cannot be made of its `args`."""

    def __init__(self, *, one: int, two: int) -> None:
        """Take what only keywords can give."""
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("name", ["Unsendable", "ValueError"])
def test_what_cannot_be_sent_is_a_bug(name: str) -> None:
    """An exception that pickle refuses, or cannot make again, is told as a `Bug`."""
    with pytest.raises(Bug, match=f"the worker raised {name}: ") as caught:
        run(raise_unsendable, name)

    assert any("raise_unsendable" in note for note in caught.value.__notes__)


def raise_unsendable(name: str) -> NoReturn:
    """Raise what cannot be pickled."""
    if name == "Unsendable":
        raise Unsendable(one=1, two=2)

    raise ValueError(threading.Lock())


def test_a_call_or_result_that_cannot_be_sent_is_a_bug() -> None:
    """Nested functions and locks are no arguments, and locks no results."""
    with pytest.raises(Bug, match="cannot be sent to a worker"):
        run(lambda: 1)

    with pytest.raises(Bug, match="returned cannot be sent"):
        run(threading.Lock)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_nothing_in_a_worker_ends_the_daemon(kind: type[BaseException]) -> None:
    """What would end this process, or its event loop, comes back as a `Bug`."""
    with pytest.raises(Bug, match=f"the worker raised {kind.__name__}"):
        run(raise_kind, kind)


def raise_kind(kind: type[BaseException]) -> NoReturn:
    """Raise an exception of this *kind*."""
    raise kind


def test_keys_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that the kernel gave the worker has nothing but what Python needs."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    environ = run(Path.read_bytes, Path("/proc/self/environ"))
    names = {entry.partition(b"=")[0].decode() for entry in environ.split(b"\0") if entry}

    assert not names & set(SECRETS)
    assert {"PATH", "PYTHONPATH", "LC_TIME"} <= names
    assert names <= {
        *("PATH", "PYTHONPATH", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONHOME", "LD_LIBRARY_PATH"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_DEFAULT_MEMORY_POOL"),
        *(name for name in names if name.startswith("LC_")),
    }


def test_the_present_folder_is_not_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dropped file that is called like a module is not run."""
    (tmp_path / "pickle.py").write_text("raise SystemExit('taken over')")
    (tmp_path / "promptspool.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)

    assert run(divmod, 7, 2) == (3, 1)


def chat(text: str) -> str:
    """Write to standard output by all ways there are; return something else."""
    print(text)  # noqa: T201 (that is what is tested)
    os.write(1, text.encode())
    subprocess.run(["/bin/echo", text[:1_000]], check=True)  # noqa: S603 (a fixed command)

    return "the answer"


def test_what_a_library_prints_is_no_answer() -> None:
    """Standard output may be written to at will; the answer has a way of its own."""
    assert run(chat, "chatter " * 20_000) == "the answer"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_costs_one_call(number: signal.Signals) -> None:
    """A worker that dies is one exception, with the signal's name, and no core file."""
    with pytest.raises(WorkerDied, match=f"ended by {number.name}") as caught:
        run(die, number)

    assert caught.value.status == -number


def die(number: int) -> None:
    """End this process as a crash does."""
    os.write(2, b"first words\nlast words\n\n")
    os.kill(os.getpid(), number)


def test_the_last_words_are_told() -> None:
    """The last line that a dying worker wrote is in the message; the others are not."""
    with pytest.raises(WorkerDied, match=r"it last said: last words$"):
        run(die, signal.SIGKILL)


def test_a_worker_that_leaves_is_dead() -> None:
    """An exit without an answer is a death, whatever its code."""
    with pytest.raises(WorkerDied, match="exit code 3") as caught:
        run(os._exit, 3)

    assert caught.value.status == 3

    with pytest.raises(WorkerDied, match="exit code 0"):
        run(os._exit, 0)


def test_memory_has_a_limit() -> None:
    """What would take more than it may ends its worker; the next call knows nothing of it."""
    with pytest.raises(WorkerDied, match="ran out of the memory"):
        run(bytes, 300 * MEGABYTE, memory_bytes=200 * MEGABYTE)

    assert len(run(bytes, 50 * MEGABYTE, memory_bytes=200 * MEGABYTE)) == 50 * MEGABYTE


def test_a_worker_leaves_no_core() -> None:
    """A crash does not fill the disk with prompts."""
    assert run(resource.getrlimit, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_daemons(number: signal.Signals) -> None:
    """Ctrl-C and the service manager reach every process; a worker finishes what it began."""
    assert run(survives, number) is True


def survives(number: int) -> bool:
    """Send this process a signal and tell that it lives."""
    os.kill(os.getpid(), number)

    return True


def test_a_worker_has_a_process_group_of_its_own() -> None:
    """What the terminal sends to our group does not reach it."""
    assert run(os.getpgrp) != os.getpgrp()


def stay(path: str) -> None:
    """Say which process this is, by a file, and stay."""
    file = Path(path)
    part = file.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(file)
    signal.pause()


def is_running(pid: int) -> bool:
    """Tell whether there is such a process, and it has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False

    return state not in "ZX"


def until(is_true: Callable[[], bool]) -> None:
    """Wait for what other processes do."""
    waiting = threading.Event()

    for _ in range(1_500):
        if is_true():
            return

        waiting.wait(0.02)

    pytest.fail("waited for 30 seconds in vain")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_worker_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """A parent that is killed leaves no worker, and one that is interrupted leaves none either."""
    file = tmp_path / "pid"
    code = "import sys; from tests import test_worker as t; t.run(t.stay, sys.argv[1])"
    parent = subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, "-c", code, str(file)], stderr=subprocess.DEVNULL
    )

    with parent:
        try:
            until(file.exists)
            worker = int(file.read_text())
            assert is_running(worker)
        finally:
            parent.send_signal(number)

    until(lambda: not is_running(worker))


def test_a_worker_whose_parent_died_first_does_nothing() -> None:
    """A parent that is gone before the kernel was told of it is found out."""
    done = subprocess.run(  # noqa: S603 (our own command)
        [sys.executable, "-m", "promptspool.worker", "1", str(1 << 30)],
        input=pickle.dumps((os.getpid, (), {})),
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the daemon is gone" in done.stderr


def test_a_worker_loads_only_what_is_called() -> None:
    """A call pays for no library that it does not use."""
    loaded = run(eval, "set(__import__('sys').modules)")
    heavy = {"anyio", "asyncio", "httpx", "msgspec", "numpy", "pyarrow", "pydantic", "structlog"}

    assert isinstance(loaded, set)
    assert not loaded & heavy


def test_a_worker_takes_memory_from_where_it_is_given_back() -> None:
    """What pyarrow has of its own is larger, and keeps what it had."""
    assert run(eval, "__import__('pyarrow').default_memory_pool().backend_name") == "system"
