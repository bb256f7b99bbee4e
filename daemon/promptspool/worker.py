"""Worker: one call in a process of its own, which a library's memory and its crashes end with.

The caller waits in the thread that started the process, and the kernel ends the process with that
thread (prctl(2), PR_SET_PDEATHSIG): nothing outlives the daemon, however it dies. The process has
no keys in its environment, a limit to its memory, and leaves it to the daemon what signals mean.
Raises whatever the called function raises, `WorkerDied` where there is no answer (environment, or
a file that a library does not survive), and `Bug` for what cannot be sent from one process to the
other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from promptspool.errors import Bug, PromptspoolError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MEMORY_BYTES = 4 << 30
"""What a call may take: a hostile file then meets `MemoryError`, not the machine's last page."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# What Python and its libraries need to be found and to know the language; no keys, no settings.
_KEPT = frozenset(
    {"LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV"}
)

_SET = {
    # Threads that nobody asked for: NumPy, which pyarrow loads where it is, starts one a core.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # What pyarrow has for memory of its own keeps 30 MB more than malloc does (measured).
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}

# Linux, proc(5): from -1,000 to 1,000. Where memory ends, the worker goes before the daemon.
_OOM_SCORE = b"500"

_TAIL_BYTES = 4_096
_MAX_SHOWN = 300


class WorkerDied(PromptspoolError):
    """A worker process ended without an answer.

    *status* is its exit code or, negative, the number of the signal that ended it.
    """

    def __init__(self, message: str | None = None, *, status: int = 0) -> None:
        """Say how it ended, and what it said last."""
        super().__init__(message)
        self.status = status


def run(
    function: Callable[..., T], /, *args: object, memory_bytes: int = MEMORY_BYTES, **kwargs: object
) -> T:
    """Return what *function* returns for these arguments in a process of its own; blocks.

    *function* is of the top level of a module, arguments and result can be pickled. What it prints
    goes nowhere. *memory_bytes* limits what it may take; files mapped into memory do not count.

    Raises what *function* raises, with the traceback from there as a note unless it is one of our
    own exceptions; `WorkerDied`; and `Bug` if one of them cannot be pickled.
    """
    try:
        call = pickle.dumps((function, args, kwargs))
    except Exception as error:
        message = f"the call of {function!r} cannot be sent to a worker: {error}"
        raise Bug(message) from error

    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 (our own module)
            # -P: what lies in the present folder, dropped files perhaps, is not to be imported.
            [sys.executable, "-P", "-m", __name__, str(os.getpid()), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=_environment(),
            process_group=0,  # Ctrl-C at the terminal is for the daemon, which then decides
        )

        try:
            answer, _ = process.communicate(call)
        except BaseException:
            process.kill()
            process.communicate()
            raise

        if process.returncode != 0 or not answer:
            raise _death(process.returncode, said)

    result: T = _received(answer)

    return result


def _environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")
    }

    return kept | _SET


def _death(status: int, said: IO[bytes]) -> WorkerDied:
    """Return what to raise for a worker that ended with *status* and said this before."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = said.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    how = f"exit code {status}"

    if status < 0:
        with contextlib.suppress(ValueError):  # real-time signals have no names
            how = signal.Signals(-status).name

    message = f"the worker process ended by {how}, without an answer"

    if last:
        message += f"; it last said: {last:.{_MAX_SHOWN}}"

    return WorkerDied(message, status=status)


def _received(answer: bytes) -> Any:
    try:
        match pickle.loads(answer):  # noqa: S301 (from our own process)
            case "returned", result:
                return result
            case "raised", BaseException() as error:
                raised = error
            case "ours", kind, args, state:
                # Made without `__init__`, whose arguments are not all in `args`.
                raised = kind.__new__(kind, *args)
                raised.__dict__.update(state)
            case other:
                raised = Bug(f"the worker answered {other!r:.{_MAX_SHOWN}}")
    except Exception as error:
        message = f"the worker's answer cannot be read: {error}"
        raise Bug(message) from error

    if isinstance(raised, MemoryError):
        raise WorkerDied("the worker process ran out of the memory it may take") from raised

    raise raised


def serve() -> None:
    """Answer one call: from standard input, to standard output. Ends this process."""
    parent, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)

    # systemd sends SIGTERM to every process of a service; the daemon finishes what it began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)

    # RLIMIT_AS would count what is only mapped or reserved: pyarrow reserves 1 GB for nothing
    # (measured), and a mapped file may have any size.
    _limit(resource.RLIMIT_DATA, memory_bytes)

    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)

    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints is no answer
        out.write(_answer(sys.stdin.buffer.read()))

    # Libraries tear down badly now and then, and there is nothing left to do.
    os._exit(0)


def _die_with(parent: int) -> None:
    """Have the kernel end this process with the thread that started it."""
    libc = ctypes.CDLL(None, use_errno=True)

    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")

    # It may have died before the kernel was asked.
    if os.getppid() != parent:
        sys.exit("the daemon is gone")


def _limit(what: int, amount: int) -> None:
    _, hard = resource.getrlimit(what)
    lowest = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(what, (lowest, lowest))


def _answer(call: bytes) -> bytes:
    # Whatever is raised is the caller's: a library may even raise what is no `Exception`.
    try:
        function, args, kwargs = pickle.loads(call)  # noqa: S301 (from our own process)
        result = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 (as said)
        return _exception(error)

    try:
        return pickle.dumps(("returned", result))
    except MemoryError as error:
        return _exception(error)
    except Exception as error:  # noqa: BLE001 (it asks the result's class)
        return _exception(Bug(f"what {function!r} returned cannot be sent: {error}"))


def _exception(error: BaseException) -> bytes:
    """Return an exception as it can be sent; `Bug` if it cannot, or would end the daemon."""
    if isinstance(error, PromptspoolError):
        with contextlib.suppress(Exception):
            return pickle.dumps(("ours", type(error), error.args, error.__dict__))

    note = "".join(traceback.format_exception(error)).strip()

    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            error.add_note(f"In the worker process:\n{note}")
            data = pickle.dumps(("raised", error))
            pickle.loads(data)  # noqa: S301 (our own)

            return data

    bug = Bug(f"the worker raised {type(error).__name__}: {error}")
    bug.add_note(f"In the worker process:\n{note}")

    return pickle.dumps(("ours", Bug, bug.args, bug.__dict__))


if __name__ == "__main__":
    serve()
