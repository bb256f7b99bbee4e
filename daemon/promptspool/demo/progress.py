"""What the daemon's log lines mean for the dropped files, in words for people.

Pure: `Progress.told` takes one line's fields and returns what to say about it. Events and fields
that it does not know change nothing. Raises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(slots=True, kw_only=True)
class Journey:
    """One dropped file on its way."""

    file: str
    phase: str = "to be dropped"
    batches: int = 0
    batches_ended: int = 0
    requests: int = 0
    finished: int = 0
    """Requests that have a final answer."""
    is_over: bool = False
    rejected: str | None = None
    """Why it was rejected; None if it was not."""


@dataclass(slots=True)
class Progress:
    """All dropped files."""

    journeys: dict[str, Journey]
    """By file name."""
    _files: dict[str, str] = field(default_factory=dict)
    """Job ids to file names."""
    _sizes: dict[str, int] = field(default_factory=dict)
    """Batch ids to requests."""

    @classmethod
    def of(cls, files: Iterable[str]) -> Progress:
        """Return the progress of *files* that are about to be dropped."""
        return cls({file: Journey(file=file) for file in files})

    @property
    def is_over(self) -> bool:
        """Tell whether every file has come to its end."""
        return all(journey.is_over for journey in self.journeys.values())

    def told(self, line: Mapping[str, Any]) -> str | None:
        """Take in one line of the log; return what it says in a few words, None if nothing."""
        event = line.get("event")

        if event == "job.claimed":
            self._files[line["job"]] = line["file"]

        journey = self.journeys.get(self._files.get(str(line.get("job")), ""))

        if journey is None:
            return None

        if str(event).startswith("batch."):
            said = self._batch(journey, line)
        else:
            said = _job(journey, line)

        return said and f"{journey.file}: {said}"

    def _batch(self, journey: Journey, line: Mapping[str, Any]) -> str | None:
        match line["event"]:
            case "batch.uploaded":
                journey.phase = "uploaded"
                self._sizes[line["batch"]] = line["requests"]
            case "batch.created":
                journey.phase = "waits for the provider"
                return f"batch of {_requests(self._sizes.get(line['batch'], 0))} created"
            case "batch.ended":
                journey.phase = "collects answers"
            case "batch.closed":
                return self._closed(journey, line)

        return None

    def _closed(self, journey: Journey, line: Mapping[str, Any]) -> str:
        answered, failed, successors = line["answered"], line["failed"], line["successors"]
        left = self._sizes.get(line["batch"], 0) - answered - failed
        journey.batches_ended += 1
        journey.batches += len(successors)
        journey.finished += answered + failed
        said = [f"batch ended, {answered} answered"]

        if failed:
            said.append(f"{failed} failed for good")

        if successors:
            journey.phase = f"retries {_requests(left)}"
            said.append(f"{left} failed and {'is' if left == 1 else 'are'} retried")

        return ", ".join(said)


def _job(journey: Journey, line: Mapping[str, Any]) -> str | None:
    match line["event"]:
        case "job.claimed":
            journey.phase = "claimed"
        case "job.planned":
            journey.phase = "planned"
            journey.requests, journey.batches = line["requests"], line["batches"]
        case "job.settled":
            journey.phase = "is put together"
        case "job.delivered":
            journey.phase = "delivered"
            errors = line["errors"]
            told = f" and {errors} error{'s' * (errors != 1)}" if errors else ""
            return f"delivered, {line['results']} answers{told}"
        case "job.tidied":
            journey.is_over = True
        case "job.rejected":
            journey.phase, journey.rejected = "rejected", line["reason"]

    return None


def _requests(count: int) -> str:
    return f"{count} request{'s' * (count != 1)}"
