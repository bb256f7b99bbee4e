"""What is to be said of the database."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from promptspool.doctor.finding import ok, problem, warning
from promptspool.errors import SpoolError, StoreError
from promptspool.store.examining import examined
from promptspool.store.view import NoDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.doctor.finding import Finding
    from promptspool.spool import Spool
    from promptspool.store.examining import Examined

WAY_OUT = "stop promptspool and move promptspool.db away: it is rebuilt from spool and provider"


def database_findings(spool: Spool) -> Iterator[Finding]:
    """Yield what is found of the database of *spool*; lets `OSError` through."""
    if not spool.root.is_dir():
        return

    try:
        found = examined(spool)
    except NoDatabase as error:
        yield ok("database", str(error))
    except StoreError as error:
        yield warning("database", str(error), "run this again")
    except SpoolError as error:
        yield problem("database", str(error), "what is in front says what to do")
    else:
        yield from _told(spool, found)


def _told(spool: Spool, found: Examined) -> Iterator[Finding]:
    spool_id = None

    with suppress(FileNotFoundError):
        spool_id = (spool.root / ".promptspool").read_text("ascii").strip()

    if found.fault is not None:
        yield problem("database", f"{spool.database} is damaged: {found.fault}", WAY_OUT)
    elif None not in (spool_id, found.spool_id) and spool_id != found.spool_id:
        message = f"{spool.database} goes with spool {found.spool_id}, and this is {spool_id}"
        yield problem("database", message, "is the spool mounted, and spool.state the right one?")
    else:
        size = f"{found.size_bytes / 1e6:,.1f} MB, {'whole' if found.is_read else 'not read'}"
        yield ok("database", f"version {found.version}, {size}; SQLite {found.library}")
