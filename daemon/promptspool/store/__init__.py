"""The database. Every SQL statement of the daemon is in this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptspool.deferred import deferred

if TYPE_CHECKING:
    from promptspool.store.database import Change, Store
    from promptspool.store.opening import opened
    from promptspool.store.schema import SCHEMA
else:  # commands that look do without what writes
    __getattr__ = deferred(
        __name__,
        {"database": ("Change", "Store"), "opening": ("opened",), "schema": ("SCHEMA",)},
    )

__all__ = ["SCHEMA", "Change", "Store", "opened"]
