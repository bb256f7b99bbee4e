"""Lines of the log for people: which are wanted, and how they look. Pure; raises nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from promptspool.tell.words import safe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

LEVELS = ("debug", "info", "warning", "error", "critical")

_EVENT_CELLS = 16
_NAME_CELLS = 9
_STYLES = {"debug": "dim", "warning": "yellow", "error": "bold red", "critical": "bold red"}
_HEAD = frozenset({"timestamp", "level", "event", "job", "batch"})


@dataclass(slots=True, kw_only=True)
class Filter:
    """Which lines are wanted; what is None or empty leaves out nothing."""

    job: str | None = None
    """An id, the beginning or the end of one, or the name of a dropped file."""
    events: Collection[str] = ()
    """Names of events, or their beginnings: `batch` is all of `batch.*`."""
    level: str | None = None
    since: float | None = None
    ids: set[str] = field(default_factory=set)
    """Of jobs that *job* stands for, as far as is known; lines add to it."""

    def wants(self, line: Mapping[str, Any] | None) -> bool:
        """Tell whether a line is wanted; None is one that is no JSON, of which nothing is known."""
        if line is None:
            return self.job is None and not self.events and self.level is None

        # First, since a line that is left out may be the one that says which job a file became.
        is_of_job = self.job is None or self._is_of_job(line)

        return (
            is_of_job and self._is_recent(line) and self._is_loud(line) and self._is_of_event(line)
        )

    def _is_recent(self, line: Mapping[str, Any]) -> bool:
        at = _moment(line.get("timestamp"))

        return self.since is None or at is None or at >= self.since

    def _is_loud(self, line: Mapping[str, Any]) -> bool:
        level = str(line.get("level", "info"))

        return (
            self.level is None
            or level not in LEVELS
            or LEVELS.index(level) >= LEVELS.index(self.level)
        )

    def _is_of_event(self, line: Mapping[str, Any]) -> bool:
        event = str(line.get("event"))

        return not self.events or any(
            event == wanted or event.startswith(f"{wanted}.") for wanted in self.events
        )

    def _is_of_job(self, line: Mapping[str, Any]) -> bool:
        """Tell whether a line is about the job, or names it or one of its batches anywhere."""
        name = self.job or ""
        own = line.get("job")

        if isinstance(own, str):
            file = line.get("file")
            is_named = isinstance(file, str) and name in (file, file.rpartition("/")[2])

            if is_named or own.startswith(name) or own.endswith(name):
                self.ids.add(own)

        return any(
            text == known or text.startswith(f"{known}.")
            for text in _texts(line)
            for known in (*self.ids, name)
        )


def parsed(raw: str) -> dict[str, Any] | None:
    """Return a line of the log; None if it is none of ours, but text."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None

    return line if isinstance(line, dict) and "event" in line else None


def pretty(line: Mapping[str, Any]) -> Text:
    """Return one readable line: time, level, event, job or batch, and the fields as `key=value`."""
    level = str(line.get("level", "info"))
    style = _STYLES.get(level, "")
    at = _moment(line.get("timestamp"))
    when = "" if at is None else datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")
    text = Text.assemble(
        (when[:19] or "-", "dim"),
        "  ",
        (safe(level).ljust(7), style),
        "  ",
        (safe(str(line.get("event"))).ljust(_EVENT_CELLS), style or "bold"),
        "  ",
        (safe(_name(line)).ljust(_NAME_CELLS), "cyan"),
    )

    for key, value in line.items():
        if key not in _HEAD:
            text.append(f"  {safe(key)}=", style="dim")
            text.append(_told(key, value))

    text.rstrip()

    return text


def _name(line: Mapping[str, Any]) -> str:
    """Return what a line is about: the end of a job's id, by which it can be called, or a batch."""
    job, batch = line.get("job"), line.get("batch")

    if not isinstance(job, str):
        return ""

    part = batch.removeprefix(job) if isinstance(batch, str) else ""

    return f"{job.rpartition('-')[2]}{part}"


def _told(key: str, value: object) -> str:
    match value:
        case str():
            shown = safe(value)

            return json.dumps(shown, ensure_ascii=False) if not shown or " " in shown else shown
        case [dict() as raised, *_] if key == "exception":
            return _exception(raised)
        case _:
            return safe(json.dumps(value, ensure_ascii=False))


def _exception(raised: Mapping[str, Any]) -> str:
    """Return an exception's name and words, and where it was raised; the log has the rest."""
    words = f"{raised.get('exc_type')}: {raised.get('exc_value')}"

    match raised.get("frames"):
        case [*_, {"filename": str(file), "lineno": int(number)}]:
            words += f" ({file.rpartition('/')[2]}:{number})"
        case _:
            pass

    return json.dumps(safe(words), ensure_ascii=False)


def _moment(text: object) -> float | None:
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None

    if at is None:
        return None

    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a line, however deep."""
    match value:
        case str():
            yield value
        case dict():
            for inner in value.values():
                yield from _texts(inner)
        case list():
            for inner in value:
                yield from _texts(inner)
        case _:
            pass
