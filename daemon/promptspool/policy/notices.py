"""What becomes of a notice after each attempt to send it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from promptspool.model import Notice, NoticeStatus
from promptspool.outcomes import Dropped, Failed, Sent, Woken
from promptspool.policy.backoff import illegal, postponed

if TYPE_CHECKING:
    from promptspool.outcomes import Outcome
    from promptspool.policy.backoff import Rules

NOTICE_AGE_S = 86_400.0
"""A notice that nobody takes for so long is dropped: whoever is to know can ask `status`."""


def decide_notice(notice: Notice, outcome: Outcome, now: float, rules: Rules) -> Notice:
    """Return what *notice* becomes; its version is the caller's."""
    match outcome:
        case Sent():
            return replace(notice, status=NoticeStatus.SENT, due_at=None, failures=0, why=None)
        case Dropped(reason=reason):
            return replace(notice, status=NoticeStatus.DROPPED, due_at=None, why=reason)
        case Woken():
            return replace(notice, due_at=now)
        case Failed(reason=reason):
            after = postponed(notice, outcome, now, rules)

            if after.due_at is not None and now - notice.made_at < NOTICE_AGE_S:
                return after

            return replace(notice, status=NoticeStatus.DROPPED, due_at=None, why=reason)
        case _:
            raise illegal(notice, outcome)
