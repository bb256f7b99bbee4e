"""Death at a chosen moment, without a hook in the daemon.

Every durable step of a run (rename, link, unlink, mkdir, fsync, commit, HTTP send and receive) is
counted; at the chosen one the run dies, and whatever it still tries in dying does not happen.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiosqlite
import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DISK = ("fsync", "rename", "link", "unlink", "mkdir", "rmdir")


class Death(BaseException):
    """The process is gone."""


@dataclass(slots=True)
class Fate:
    """When a run dies: before or after its *at*-th step, counted from 1; None never."""

    at: int | None = None
    after: bool = False
    steps: list[str] = field(default_factory=list)
    is_dead: bool = False
    database: Path | None = None
    """Copied at every commit when given."""
    copies: list[bytes] = field(default_factory=list)

    def before(self, name: str) -> None:
        """Count a step and die before it, if its time has come."""
        self._check()
        self.steps.append(name)

        if len(self.steps) == self.at and not self.after:
            self._die()

    def done(self) -> None:
        """Die after the step that was just made, if its time has come."""
        if len(self.steps) == self.at and self.after:
            self._die()

        self._check()

    def copy(self) -> None:
        """Keep the database as it is now."""
        if self.database is not None:
            source = sqlite3.connect(self.database)
            self.copies.append(source.serialize())
            source.close()

    def _die(self) -> None:
        self.is_dead = True
        self._check()

    def _check(self) -> None:
        if self.is_dead:
            raise Death


@contextmanager
def mortal(fate: Fate) -> Iterator[Fate]:
    """Count, and perhaps end, what runs inside."""
    with pytest.MonkeyPatch.context() as patch:
        for name in DISK:
            _patch_disk(patch, name, fate)

        _patch_commit(patch, fate)
        _patch_http(patch, fate)

        yield fate


def _patch_disk(patch: pytest.MonkeyPatch, name: str, fate: Fate) -> None:
    real = getattr(os, name)

    def step(*arguments: Any, **named: Any) -> Any:
        if any("remote" in str(argument) for argument in arguments):  # the provider lives on
            return real(*arguments, **named)

        fate.before(name)
        result = real(*arguments, **named)
        fate.done()

        return result

    patch.setattr(os, name, step)


def _patch_commit(patch: pytest.MonkeyPatch, fate: Fate) -> None:
    real = aiosqlite.Connection.execute

    def execute(self: aiosqlite.Connection, sql: str, *arguments: Any) -> Any:
        if sql != "COMMIT":
            return real(self, sql, *arguments)

        return _commit(self, sql)

    async def _commit(self: aiosqlite.Connection, sql: str) -> Any:
        fate.before("commit")
        cursor = await real(self, sql)
        fate.copy()
        fate.done()

        return cursor

    patch.setattr(aiosqlite.Connection, "execute", execute)


def _patch_http(patch: pytest.MonkeyPatch, fate: Fate) -> None:
    real = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        fate.before(f"{request.method} {request.url.path}")
        response = await real(self, request)
        fate.done()

        return response

    patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
