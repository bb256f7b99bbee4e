"""Planner: every row of a file becomes a request and an entry of the index, or a fault.

Plain rows of a block are planned together, all else one by one; both come to the same files.
Together a row takes a tenth of the interpreter's time (measured beside other work: 2.3 us against
24), and 0.9 us of a thread that writes. That is why planning is left in a thread of the daemon: no
step of it keeps the event loop waiting for long (10 ms at most, 40 where six processes wanted the
two cores), and it takes 15 MB; a process of its own would take 50 and begin later.

Memory does not grow with the file, but for eight bytes a row that tell whether its id was there
before. Raises `BadInput` for a file of which nothing is to be submitted (bad data) and lets
`OSError` through (environment).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING

from promptspool.errors import BadInput
from promptspool.intake.ids import Ids
from promptspool.intake.images import FolderFiles
from promptspool.intake.index import repeated, write_named, write_row, write_unnamed
from promptspool.intake.render import Renderer
from promptspool.intake.rows import BLOCK_BYTES, Row, rows_at, spread
from promptspool.intake.split import Limits, Splitter
from promptspool.wire import TABLES, Manifest, PlannedRow, RowFault, wire_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.intake.formats import Caps, Opened
    from promptspool.intake.frame import Plain
    from promptspool.intake.ids import Repeat
    from promptspool.intake.kept import Kept
    from promptspool.intake.rows import Block, Columns, Files
    from promptspool.intake.writing import Writing
    from promptspool.model import JobId
    from promptspool.settings import ProfileSettings

_MAX_QUOTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A dropped file, and what is to be made of it."""

    original: Path
    source: str
    """Its name, for people and for its extension."""
    digest: str
    job: JobId
    profile: ProfileSettings
    limits: Limits
    caps: Caps
    give_up_at: float
    block_bytes: int | None = BLOCK_BYTES
    """See `ReadOptions`."""


class Planner:
    """What becomes of the rows of a dropped file, one after another."""

    def __init__(
        self, dropped: Dropped, folder: Path, found: Opened, kept: Kept | None, writing: Writing
    ) -> None:
        """Begin before the first row; raises `BadInput` if the profile cannot be followed."""
        profile = dropped.profile
        self._dropped = dropped
        self._found = found
        self._kept = kept
        self._renderer = Renderer(profile, files=_files(profile, found))
        self._splitter = Splitter(
            folder=folder,
            job=dropped.job,
            limits=dropped.limits,
            writing=writing,
            answer_tokens=profile.answer_tokens,
        )
        self._stem = _stem(dropped.source, found)
        self._ids = Ids(self._stem)
        self._rows = 0
        self._faults = _Faults()

    def suspects(self) -> frozenset[int]:
        """Return hashes of ids that more than one row may have."""
        return self._ids.suspects()

    def add_all(
        self,
        found: Iterable[Row | Block],
        repeats: Iterator[Repeat | None],
        index: BinaryIO,
    ) -> None:
        """Plan what was *found* in the file, and write it into *index*.

        *repeats* says for each row what it repeats.
        """
        for one in found:
            if isinstance(one, Row):
                self._add(index, one, next(repeats))
            else:
                self._add_block(index, one, list(islice(repeats, len(one.lines))))

    def _add_block(self, index: BinaryIO, block: Block, repeats: Sequence[Repeat | None]) -> None:
        """Plan the rows of a block: most of them together, those that are odd one by one."""
        most = self._dropped.caps.max_expanded
        plain = self._renderer.plain(block) if self._kept is None else None

        if plain is None or not self._splitter.takes(plain, self._rows, most=most):
            for row, repeat in zip(spread([block]), repeats, strict=True):
                self._add(index, row, repeat)

            return

        odd = sorted(plain.odd)

        if any(repeats):
            odd = [place for place, one in enumerate(repeats) if one or place in plain.odd]

        start = 0

        for place, row in zip(odd, rows_at(block, odd), strict=True):
            self._add_plain(index, block, plain, start, place)
            self._add(index, row, repeats[place])
            start = place + 1

        self._add_plain(index, block, plain, start, len(block.lines))

    def _add_plain(
        self, index: BinaryIO, block: Block, plain: Plain, start: int, stop: int
    ) -> None:
        if start == stop:
            return

        plain = plain.cut(start, stop)
        lines = block.lines[start:stop]
        counted = None if block.numbers is None else block.numbers[start:stop]
        self._splitter.add_all(plain, self._rows)
        self._rows += stop - start

        if plain.names is None:
            self._ids.add_unnamed(lines if counted is None else counted)
            write_unnamed(index, self._stem, lines, counted)
        else:
            self._ids.add(plain.names)
            write_named(index, plain.names, lines)

    def _add(self, index: BinaryIO, row: Row, repeat: Repeat | None) -> None:
        planned = self._planned(row, repeat)
        number = row.number or row.line
        write_row(index, planned)
        self._rows += 1

        if row.name is None and planned.id == self._ids.name(number):
            self._ids.add_unnamed((number,))
        else:
            self._ids.add((planned.id,))

        if planned.fault is not None:
            self._faults.add(row.line, planned.fault)

        self._check_size()

    def _planned(self, row: Row, repeat: Repeat | None) -> PlannedRow:
        """Submit what *row* asks for; return its entry, with a fault if it asks for nothing."""
        name = row.name or self._ids.name(row.number or row.line)

        try:
            columns = _columns(row)
            name = self._renderer.user_id(columns) or name
            name = name if repeat is None else self._renamed(name, repeat)

            if self._kept is not None and self._kept.is_taken(name, self._rows):
                return PlannedRow(id=name, line=row.line, document=row.name)

            request = self._renderer.request(columns)
            wire = request.line(wire_id(self._dropped.job, self._rows))
            self._splitter.check(request, wire)
        except BadInput as error:
            fault = RowFault(code=error.code, message=error.reason, key=error.key)

            return PlannedRow(id=name, line=row.line, document=row.name, fault=fault)

        self._splitter.add(request, wire)

        return PlannedRow(id=name, line=row.line, document=row.name)

    def _renamed(self, name: str, repeat: Repeat) -> str:
        """Return the id of a repeated row as the profile will have it, if it will have it."""
        if self._dropped.profile.on_duplicate_id == "number":
            return f"{name}-{repeat.times}"

        raise BadInput(repeated(repeat).message, code="duplicate_id")

    def _check_size(self) -> None:
        """Raise `BadInput` for a few bytes that make requests without end, of an image, say."""
        most = self._dropped.caps.max_expanded

        if self._splitter.size_bytes > most:
            reason = (
                f"its requests come to more than {most:,} bytes; drop it in parts, or raise "
                f"intake.max_expanded"
            )
            raise BadInput(reason, code="expands_too_far")

    def check(self) -> None:
        """Raise `BadInput` if nothing of the file is to be submitted."""
        count, unit = self._faults.count, self._found.format.unit
        kept = 0 if self._kept is None else self._kept.count

        if not self._rows:
            is_table = self._found.format.write is not None
            reason = "the table has no rows under its header; write some, and drop it again"
            reason = reason if is_table else f"the file is blank; write one prompt a {unit}"
            raise BadInput(reason, code="empty_file")

        if count and count + kept == self._rows:
            which = "rows that failed before" if kept else "rows"
            reason = f"not one of {count:,} {which} is usable: {self._faults.quoted(unit)}"
            raise BadInput(reason, code="no_usable_row")

        if count and self._dropped.profile.on_bad_row == "reject":
            reason = (
                f"{count:,} of {self._rows:,} rows are unusable, and the profile says "
                f'on_bad_row = "reject": {self._faults.quoted(unit)}'
            )
            raise BadInput(reason, code="bad_rows")

    def finish(self) -> Manifest:
        """Return the plan; its request files are whole, and synced as the index is."""
        dropped, profile, found = self._dropped, self._dropped.profile, self._found

        return Manifest(
            job=dropped.job,
            source=dropped.source,
            digest=dropped.digest,
            format=found.format.name,
            table=_table(found),
            max_row_bytes=dropped.limits.max_bytes,
            notes=dict(found.source.notes),
            prompt_columns=list(self._renderer.prompt_columns),
            rows=self._rows,
            bad_rows=self._faults.count,
            give_up_at=dropped.give_up_at,
            max_attempts=profile.max_attempts,
            profile=profile.model_dump(mode="json"),
            batches=self._splitter.finish(),
            kept=None if self._kept is None else self._kept.batch(profile),
        )


@dataclass(slots=True)
class _Faults:
    """What was wrong with rows: the first few, and how many."""

    first: list[tuple[int, RowFault]] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, fault: RowFault) -> None:
        self.count += 1

        if len(self.first) < _MAX_QUOTED:
            self.first.append((line, fault))

    def quoted(self, unit: str) -> str:
        shown = [f"{unit} {line}: {fault.message}" for line, fault in self.first]
        hidden = self.count - len(shown)

        return " | ".join([*shown, f"and {hidden:,} more"] if hidden else shown)


def _columns(row: Row) -> Columns:
    if row.fault is not None:
        raise row.fault

    assert row.columns is not None  # noqa: S101 - a row has one of the two
    return row.columns


def _stem(source: str, found: Opened) -> str:
    """Return what rows without an id are named after: the file's name without its extensions."""
    name = PurePosixPath(source).name

    for suffix in (".gz", ".zst", *found.format.suffixes):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name

    return name or PurePosixPath(source).name


def _files(profile: ProfileSettings, found: Opened) -> Files | None:
    if found.files is not None:
        return found.files

    return FolderFiles(profile.files) if profile.files is not None else None


def _table(found: Opened) -> str | None:
    """Return the name of the product that is the same table, None if the file is none."""
    name = f"results{PurePath(found.source.name).suffix.lower()}"

    if found.format.write is None:
        return None

    return name if name in TABLES else f"results.{found.format.name}"
