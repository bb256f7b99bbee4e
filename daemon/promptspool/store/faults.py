"""What SQLite refuses, translated; and damage, told from anything else."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from promptspool.errors import Bug, SpoolError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

_WAY_OUT = "move promptspool.db away: it is rebuilt from the spool and the provider"


def damaged(reason: object) -> SpoolError:
    """Return the error of a database that nobody can have written."""
    return SpoolError(f"the database is damaged ({reason}); {_WAY_OUT}")


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether SQLite read what nobody can have written; such bytes need not be text."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the primary one

    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "Could not decode" in str(
        error
    )


def reason_of(error: Exception) -> str:
    """Return why a database cannot be opened, and the way out where there is one."""
    if not isinstance(error, sqlite3.Error):
        return str(error)

    if is_damage(error):
        return str(damaged(error))

    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return f"the database is locked by another program ({error}); end that first"

    return f"the database cannot be used: {error}; if it is damaged, {_WAY_OUT}"


@contextmanager
def translated() -> Iterator[None]:
    """Raise ours for what SQLite raises inside."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError) as error:
        raise Bug(f"the database was asked for what it must not do: {error}") from error
    except sqlite3.Error as error:
        if is_damage(error):
            raise damaged(error) from error

        raise StoreError(f"the database refuses: {error}") from error
    except ValueError as error:  # a word that is no status
        raise damaged(error) from error
