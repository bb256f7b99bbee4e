"""What a notice says, and how it fails.

Raises nothing. `NoticeFailed` is environment: somebody else's program or server.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from promptspool import log
from promptspool.errors import PromptspoolError

if TYPE_CHECKING:
    from pathlib import Path

Event = Literal["job.delivered", "job.failed", "job.held"]
Target = Literal["command", "webhook"]

Fact = str | int | float | bytes | None

MAX_REASON = 2_000
"""Characters of a reason that are passed on: Linux has 128 KiB for a variable (execve(2))."""


class NoticeFailed(PromptspoolError):
    """A notice was not taken.

    *is_final* says that it will never be, so that another attempt is of no use. *retry_after_s* is
    what the other end asked us to wait, None if it did not say.
    """

    def __init__(
        self, reason: str, *, is_final: bool = False, retry_after_s: float | None = None
    ) -> None:
        """Say what happened and what to do, without secrets."""
        super().__init__(reason)
        self.reason = reason
        self.is_final = is_final
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is told of one job."""

    id: str
    """The same at every attempt, and of no other message; visible ASCII."""
    event: Event
    at: float
    """When it happened, not when it is told."""
    job: str
    file: str
    """Its shown name, below the inbox."""
    profile: str
    provider: str | None
    """None for a job that was never planned."""
    status: str
    reason: str | None
    """Why it failed or is held; nothing of what is in the file. None if it was delivered."""
    results: int
    errors: int
    cost_usd: float | None
    """As estimated; None if it is not known."""
    summary: Path | None
    """In the outbox, as the two below; None if there is none."""
    results_path: Path | None
    errors_path: Path | None


def facts(message: Message) -> dict[str, Fact]:
    """Return what both targets tell, by name, without secrets.

    Texts are valid UTF-8 and hold no NUL. Paths are bytes: names need not be UTF-8.
    """
    return {
        "job": message.job,
        "file": _plain(message.file),
        "profile": _plain(message.profile),
        "provider": message.provider,
        "status": message.status,
        "reason": None if message.reason is None else _plain(log.struck(message.reason)),
        "results": message.results,
        "errors": message.errors,
        "cost_usd": message.cost_usd,
        "summary_path": _path(message.summary),
        "results_path": _path(message.results_path),
        "errors_path": _path(message.errors_path),
    }


def iso(at: float) -> str:
    """Return a time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _path(path: Path | None) -> bytes | None:
    return None if path is None else bytes(path)


def _plain(text: str) -> str:
    # A provider's words may hold NUL, which no variable can, or half a surrogate pair.
    whole = text[:MAX_REASON].replace("\0", "\N{REPLACEMENT CHARACTER}")

    return whole.encode("utf-8", "backslashreplace").decode()
