"""The database. Every SQL statement of the daemon is in this package."""

from promptspool.store.database import Change, Store
from promptspool.store.opening import opened
from promptspool.store.schema import SCHEMA

__all__ = ["SCHEMA", "Change", "Store", "opened"]
