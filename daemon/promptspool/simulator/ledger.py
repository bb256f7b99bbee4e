"""What the simulator accepted, kept for assertions: the bill a real provider would send.

Nothing here touches a disk or a socket, and nothing here raises.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was accepted, whether or not the client heard of it.

    *requests* is 0 for a batch that will fail validation: it costs nothing.
    """

    remote_id: str
    created_at: float
    metadata: dict[str, str]
    input_sha256: str
    requests: int


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was stored."""

    file_id: str
    filename: str
    bytes: int
    sha256: str


class Ledger:
    """Everything accepted since the start, in order."""

    def __init__(self) -> None:
        """Start empty."""
        self.creations: list[Creation] = []
        self.uploads: list[Upload] = []
        self.deletions: list[str] = []
        self.cancels: list[str] = []
        self.calls: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()

    def accept(self, creation: Creation, custom_ids: Iterable[str]) -> None:
        """Note a created batch and the requests it will be charged for."""
        self.creations.append(creation)
        # As an iterator: a Counter adds the values of a mapping, and not one for each key.
        self.requests.update(iter(custom_ids))

    def batches_by_metadata(self, key: str) -> dict[str, list[str]]:
        """Return the remote ids by the value of one metadata key, oldest first.

        Batches without the key are left out.
        """
        found: dict[str, list[str]] = defaultdict(list)

        for creation in self.creations:
            if key in creation.metadata:
                found[creation.metadata[key]].append(creation.remote_id)

        return dict(found)

    def duplicates(self, key: str) -> dict[str, list[str]]:
        """Return the values of a metadata key that more than one accepted batch has.

        Batches that fail validation are not counted: nobody pays for them.
        """
        paid = {creation.remote_id for creation in self.creations if creation.requests}
        kept = {
            value: [remote_id for remote_id in remote_ids if remote_id in paid]
            for value, remote_ids in self.batches_by_metadata(key).items()
        }
        return {value: remote_ids for value, remote_ids in kept.items() if len(remote_ids) > 1}

    def repeated_requests(self) -> dict[str, int]:
        """Return how often each custom_id was accepted, for those accepted more than once."""
        return {custom_id: times for custom_id, times in self.requests.items() if times > 1}

    def summary(self) -> dict[str, object]:
        """Return all of it as plain values for JSON."""
        return {
            "creations": self.creations,
            "uploads": self.uploads,
            "deletions": self.deletions,
            "cancels": self.cancels,
            "calls": self.calls,
            "requests": self.requests,
        }
