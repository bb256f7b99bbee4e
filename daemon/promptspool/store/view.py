"""A view of the database: opened read-only, disturbing no daemon and leaving no file behind.

While a daemon runs, a view is one more reader of its write-ahead log. Without one, the database is
read as it lies there; or, where a daemon that was killed has left a log with it, as a copy, since
SQLite would make files beside it, with the owner of whoever looks.

Raises `SpoolError` (environment) for a database that cannot be read, of these `NoDatabase` where
none was ever made, and `StoreError` (environment) where a daemon was started meanwhile. What a
`View` can be asked is in `reading`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from promptspool.errors import PromptspoolError, SpoolError, StoreError
from promptspool.store.faults import damaged, reason_of
from promptspool.store.overview import Overview
from promptspool.store.reading import NoSuchJob, View
from promptspool.store.schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.spool import Spool

__all__ = ["NoDatabase", "NoSuchJob", "Overview", "View", "is_held", "viewed"]

BUSY_S = 1.0
"""How long a lock is waited for: SQLite's own, of a moment, when a daemon starts or stops."""


class NoDatabase(SpoolError):
    """Nothing was ever run here."""


@contextmanager
def viewed(spool: Spool) -> Iterator[View]:
    """Open the database of *spool* for reading, whether a daemon runs or not.

    Keep it open for as long as it takes to read, and no longer.
    """
    with ExitStack() as stack:
        is_up = is_held(spool)
        _check_there(spool)
        connection = stack.enter_context(closing(_connected(spool, stack, is_up=is_up)))
        refusal = partial(_refusal, spool, is_up=is_up)
        view = View(connection, is_up=is_up, refusal=refusal)
        _check_version(spool, view.version)

        yield view


def is_held(spool: Spool) -> bool:
    """Tell whether a daemon runs on *spool*; raises `SpoolError` if that cannot be told."""
    try:
        return spool.is_held()
    except OSError as error:
        raise _forbidden(spool.state, error) from error


def _check_there(spool: Spool) -> None:
    """Hold that there is a database that may be read: SQLite does not say why it cannot open it."""
    if not spool.root.is_dir():
        message = f"{spool.root}: there is no spool; look at spool.path, or at --spool"
        raise SpoolError(message)

    try:
        with spool.database.open("rb") as file:
            is_empty = not file.read(1)
    except FileNotFoundError:
        is_empty = True
    except OSError as error:
        raise _forbidden(spool.database, error) from error

    if is_empty:
        raise NoDatabase(f"{spool.root}: nothing was ever run here")


def _connected(spool: Spool, stack: ExitStack, *, is_up: bool) -> sqlite3.Connection:
    database = spool.database
    log = database.with_name(f"{database.name}-wal")

    # With a daemon: its log is read with it. Without one: SQLite would make the files of one.
    if is_up:
        return _opened(spool, database, "mode=ro")

    try:
        is_log_empty = not log.exists() or log.stat().st_size == 0

        if is_log_empty:
            return _opened(spool, database, "mode=ro&immutable=1")

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="promptspool-")))

        for file in (database, log):
            shutil.copyfile(file, folder / file.name)
    except OSError as error:
        raise _forbidden(Path(error.filename or database), error) from error

    return _opened(spool, folder / database.name, "mode=rw")


def _opened(spool: Spool, path: Path, how: str) -> sqlite3.Connection:
    address = f"file:{quote(os.fsencode(path.absolute()))}?{how}"

    try:
        return sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)
    except sqlite3.Error as error:
        raise _unreadable(spool, error) from error


def _forbidden(path: Path, error: OSError) -> SpoolError:
    advice = "run this as the daemon's user, as a member of its group, or as root"

    return SpoolError(f"{path}: it cannot be read: {error.strerror}; {advice}")


def _check_version(spool: Spool, version: int) -> None:
    """Raise `SpoolError` for a database of another version than ours."""
    if version == len(SCHEMA):
        return

    advice = (
        "use that promptspool here, too"
        if version > len(SCHEMA)
        else "it is brought up to date when promptspool starts: start it, or start it again"
    )
    message = (
        f"{spool.database}: the database has version {version}, and this promptspool reads "
        f"version {len(SCHEMA)}; {advice}"
    )
    raise SpoolError(message)


def _refusal(spool: Spool, error: Exception, *, is_up: bool) -> PromptspoolError:
    """Return what is to be said of a failure: nothing of the database, if a daemon came in."""
    if not is_up and is_held(spool):
        return StoreError("promptspool was started at this moment; try again")

    return _unreadable(spool, error)


def _unreadable(spool: Spool, error: Exception) -> SpoolError:
    found = damaged(error) if isinstance(error, ValueError) else error

    return SpoolError(f"{spool.database}: {reason_of(found)}")
