"""What is to be said of the machine: kernel settings, clock and libraries."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from promptspool import __version__
from promptspool.doctor.finding import ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.doctor.finding import Finding
    from promptspool.spool import Spool

WATCHES_SHARE = 0.5
"""Of the watches that the kernel allows a user; others need some, too."""

LIBRARIES = (
    "aiosqlite", "anyio", "httpx", "msgspec", "pyarrow", "pydantic", "structlog", "watchfiles",
)  # fmt: skip
"""Those whose version tells most in a report of a bug."""

_KERNEL = Path("/proc/sys/fs")
_IN_CLOEXEC = 0o2000000  # sys/inotify.h
_TIME_ERROR = 5  # sys/timex.h: the clock is not synchronised
_TIMEX_BYTES = 512
"""More than struct timex has on any machine; its first field, of zeros, asks to change nothing."""


def machine_findings(spool: Spool | None) -> Iterator[Finding]:
    """Yield what is found; *spool* is None without a configuration. Lets `OSError` through."""
    yield _events(spool)
    yield from _hard_links()
    yield from _time()
    yield from _versions()


def _events(spool: Spool | None) -> Finding:
    """Say whether changes in the inbox are told of at once (inotify(7))."""
    late = "files are still found, by the rescan (spool.rescan)"
    refused = _inotify_refusal()

    if refused is not None:
        mend = f"sysctl fs.inotify.max_user_instances=512; until then {late}"
        return warning("file events", f"no change can be watched for: {refused}", mend)

    folders = 0 if spool is None else sum(1 for _ in os.walk(spool.inbox))
    watches = _number(_KERNEL / "inotify" / "max_user_watches")

    if watches is not None and folders > watches * WATCHES_SHARE:
        message = f"{folders:,} folders in the inbox, and {watches:,} may be watched by a user"
        mend = f"sysctl fs.inotify.max_user_watches={4 * folders}; until then {late}"
        return warning("file events", message, mend)

    return ok("file events", "changes in the inbox are told of at once")


def _inotify_refusal() -> str | None:
    """Return why no further inotify instance can be made, None if one can."""
    libc = ctypes.CDLL(None, use_errno=True)
    make = getattr(libc, "inotify_init1", None)

    if make is None:
        return os.strerror(errno.ENOSYS)

    descriptor = make(_IN_CLOEXEC)

    if descriptor < 0:
        return os.strerror(ctypes.get_errno())

    os.close(descriptor)

    return None


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text("ascii"))

    return None


def _hard_links() -> Iterator[Finding]:
    if _number(_KERNEL / "protected_hardlinks") == 0:
        message = "whoever may drop files can drop others' by a link"
        yield warning("hard links", message, "sysctl fs.protected_hardlinks=1")


def _time() -> Iterator[Finding]:
    """Say whether the kernel takes its clock for right (adjtimex(2)); nothing where it says not."""
    adjust = getattr(ctypes.CDLL(None), "adjtimex", None)
    found = None if adjust is None else adjust(ctypes.create_string_buffer(_TIMEX_BYTES))

    if found == _TIME_ERROR:
        mend = "turn on systemd-timesyncd or chrony, unless the machine's host sets its clock"
        yield warning("time", "nobody has told the kernel that its clock is right", mend)
    elif found is not None and found >= 0:
        yield ok("time", "the kernel's clock is kept right")


def _versions() -> Iterator[Finding]:
    found = {name: _version(name) for name in LIBRARIES}
    missing = [name for name, version in found.items() if version is None]
    python = f"promptspool {__version__}, Python {platform.python_version()}"

    if missing:
        mend = "install promptspool anew, in an environment of its own"
        yield problem("versions", f"not installed: {', '.join(missing)}", mend)

    told = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield ok("versions", f"{python}, Linux {platform.release()}; {told}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
