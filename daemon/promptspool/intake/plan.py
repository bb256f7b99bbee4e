"""Plan: one dropped file becomes its request files, its row index and its manifest.

The manifest comes last and by rename, so a folder that has one is planned, and what it holds is
what is submitted, whatever the configuration says today. After a crash before that, planning
starts over. Memory does not grow with the file, but for eight bytes a row that tell whether its id
was there before. Raises `BadInput` for a file that cannot be used (bad data), after writing
`rejection.json`, and lets `OSError` through (environment).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats import Caps, opened
from promptspool.intake.ids import Ids
from promptspool.intake.images import FolderFiles
from promptspool.intake.render import Renderer
from promptspool.intake.rows import ReadOptions
from promptspool.intake.split import Limits, Splitter
from promptspool.spool import rename_durably, sync_file, sync_folder, write_durably
from promptspool.wire import (
    TABLES,
    Manifest,
    PlannedRow,
    Rejection,
    RowComplaint,
    RowFault,
    wire_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.intake.formats import Opened
    from promptspool.intake.ids import Repeat
    from promptspool.intake.rows import Columns, Files, Row
    from promptspool.model import JobId
    from promptspool.settings import ProfileSettings

_MAX_QUOTED = 3

_BLOCK_BYTES = 1 << 20

_SCRATCH = "scratch"
"""The folder for what has to be unpacked to be read; it goes when the plan is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A dropped file, and what is to be made of it."""

    original: Path
    source: str
    """Its name, for people and for its extension."""
    sha256: str
    job: JobId
    profile: ProfileSettings
    limits: Limits
    caps: Caps
    give_up_at: float


def plan(dropped: Dropped, folder: Path) -> Manifest:
    """Turn a dropped file into request files in *folder* and return what they hold.

    A finished plan found in *folder* is returned as it is; nothing is rendered again.
    Raises `BadInput` if the file is unusable; `rejection.json` in *folder* then says why.
    """
    manifest = folder / "manifest.json"

    if manifest.exists():
        return msgspec.json.decode(manifest.read_bytes(), type=Manifest)

    try:
        finished = _planned(dropped, folder)
    except BadInput as error:
        _write_rejection(folder, dropped.source, error)
        _remove_requests(folder)
        raise
    finally:
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)

    sync_folder(folder)
    write_durably(manifest, msgspec.json.encode(finished))

    return finished


def read_options(profile: ProfileSettings, *, max_row_bytes: int) -> ReadOptions:
    """Return how the files of a profile are read."""
    return ReadOptions(
        max_row_bytes=max_row_bytes,
        encoding=profile.encoding,
        delimiter=profile.delimiter,
        sheet=profile.sheet,
        split=profile.split,
    )


def _planned(dropped: Dropped, folder: Path) -> Manifest:
    """Plan once, and again if rows share an id and the profile says what becomes of those."""
    first = _Planning(dropped, folder, repeats={})
    manifest = first.run()

    if not first.repeats:
        return manifest

    if dropped.profile.on_duplicate_id == "reject":
        raise _duplicates(first, advice=True)

    second = _Planning(dropped, folder, repeats=first.repeats)
    manifest = second.run()

    # A number that was appended may make an id that a row has already.
    if second.repeats and dropped.profile.on_duplicate_id == "number":
        raise _duplicates(second, advice=False)

    return manifest


def _duplicates(planning: _Planning, *, advice: bool) -> BadInput:
    """Say which rows share an id, after noting it in the row index."""
    planning.mark_repeats()
    line, repeat = planning.first_repeat()
    more = len(planning.repeats) - 1
    others = f" (and {more:,} more such rows)" if more else ""
    way_out = (
        'give each row its own, or write on_duplicate_id = "number" or "errors" in the profile'
        if advice
        else "give each row its own"
    )
    reason = (
        f"line {line}: the id {_quoted(repeat.id)} is that of line {repeat.first_line}, too"
        f"{others}; {way_out}"
    )

    return BadInput(reason, code="duplicate_id")


def _repeated(repeat: Repeat) -> RowFault:
    message = f"the id {_quoted(repeat.id)} is that of line {repeat.first_line}, too"

    return RowFault(code="duplicate_id", message=message)


def _quoted(name: str) -> str:
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}..."  # noqa: PLR2004


class _Planning:
    """One run over a dropped file."""

    def __init__(self, dropped: Dropped, folder: Path, *, repeats: Mapping[int, Repeat]) -> None:
        _remove_leftovers(folder)
        self.repeats: dict[int, Repeat] = {}
        """Rows whose id an earlier row has, found by `run`."""
        self._dropped = dropped
        self._folder = folder
        self._known_repeats = repeats
        self._stem = PurePosixPath(dropped.source).name
        self._rows_file = folder / "rows.jsonl"
        self._splitter = Splitter(folder=folder, job=dropped.job, limits=dropped.limits)
        self._encoder = msgspec.json.Encoder()
        self._ids = Ids()
        self._rows = 0
        self._faults = _Faults()

    def run(self) -> Manifest:
        dropped, profile = self._dropped, self._dropped.profile
        scratch = self._folder / _SCRATCH
        scratch.mkdir(exist_ok=True)

        with (
            opened(dropped.original, dropped.source, caps=dropped.caps, scratch=scratch) as found,
            self._rows_file.open("wb", buffering=_BLOCK_BYTES) as file,
        ):
            self._stem = _stem(dropped.source, found)
            renderer = Renderer(profile, files=_files(profile, found))
            options = read_options(profile, max_row_bytes=dropped.limits.max_bytes)

            for row in found.format.read(found.source, options):
                self._add_row(file, self._row(row, renderer))

        sync_file(self._rows_file)
        self.repeats = self._ids.repeats(self._rows_file)
        self._check(found)

        return Manifest(
            job=dropped.job,
            source=dropped.source,
            sha256=dropped.sha256,
            format=found.format.name,
            table=_table(found),
            max_row_bytes=dropped.limits.max_bytes,
            notes=dict(found.source.notes),
            prompt_columns=list(renderer.prompt_columns),
            rows=self._rows,
            bad_rows=self._faults.count,
            give_up_at=dropped.give_up_at,
            max_attempts=profile.max_attempts,
            profile=profile.model_dump(mode="json"),
            batches=self._splitter.finish(),
        )

    def _row(self, row: Row, renderer: Renderer) -> PlannedRow:
        """Submit what *row* asks for; return its entry, with a fault if it asks for nothing."""
        name = row.name or f"{self._stem}-{row.number or row.line}"

        try:
            columns = _columns(row)
            name = renderer.user_id(columns) or name
            name = self._unique(name)
            request = renderer.request(columns)
            wire = request.line(wire_id(self._dropped.job, self._rows))
            self._splitter.check(request, wire)
        except BadInput as error:
            fault = RowFault(code=error.code, message=error.reason, key=error.key)

            return PlannedRow(id=name, line=row.line, document=row.name, fault=fault)

        self._splitter.add(request, wire)

        return PlannedRow(id=name, line=row.line, document=row.name)

    def _unique(self, name: str) -> str:
        """Return the id of the present row as the profile will have it where it is repeated."""
        repeat = self._known_repeats.get(self._rows)

        if repeat is None:
            return name

        if self._dropped.profile.on_duplicate_id == "number":
            return f"{name}-{repeat.times}"

        raise BadInput(_repeated(repeat).message, code="duplicate_id")

    def _add_row(self, file: BinaryIO, row: PlannedRow) -> None:
        file.write(self._encoder.encode(row) + b"\n")
        self._rows += 1
        self._ids.add(row.id)

        if row.fault is not None:
            self._faults.add(row.line, row.fault)

    def mark_repeats(self) -> None:
        """Make each repeated row a faulty one in the row index, for the rejection."""
        marked = self._rows_file.with_name("rows.jsonl.part")

        with marked.open("wb", buffering=_BLOCK_BYTES) as file:
            for number, row in enumerate(_rows_of(self._rows_file)):
                repeat = self.repeats.get(number)

                fault = row.fault or (None if repeat is None else _repeated(repeat))
                marked_row = msgspec.structs.replace(row, fault=fault)
                file.write(self._encoder.encode(marked_row) + b"\n")

        marked.replace(self._rows_file)

    def first_repeat(self) -> tuple[int, Repeat]:
        """Return the line of the first repeated row, and what it repeats."""
        first = min(self.repeats)

        for number, row in enumerate(_rows_of(self._rows_file)):
            if number == first:
                return row.line, self.repeats[first]

        raise AssertionError  # pragma: no cover - the row index has it

    def _check(self, found: Opened) -> None:
        """Raise `BadInput` if nothing of the file is to be submitted."""
        count, unit = self._faults.count, found.format.unit

        if not self._rows:
            is_table = found.format.write is not None
            reason = "the table has no rows under its header; write some, and drop it again"
            reason = reason if is_table else f"the file is blank; write one prompt a {unit}"
            raise BadInput(reason, code="empty_file")

        if count == self._rows:
            reason = f"not one of {self._rows:,} rows is usable: {self._faults.quoted(unit)}"
            raise BadInput(reason, code="no_usable_row")

        if count and self._dropped.profile.on_bad_row == "reject":
            reason = (
                f"{count:,} of {self._rows:,} rows are unusable, and the profile says "
                f'on_bad_row = "reject": {self._faults.quoted(unit)}'
            )
            raise BadInput(reason, code="bad_rows")


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


def _rows_of(path: Path) -> Iterator[PlannedRow]:
    decoder = msgspec.json.Decoder(PlannedRow)

    with path.open("rb", buffering=_BLOCK_BYTES) as file:
        for line in file:
            yield decoder.decode(line)


def _remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted plan wrote: half files would be appended to."""
    _remove_requests(folder)
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)

    for pattern in ("rows.jsonl*", "rejection.json*", "*.part"):
        for path in folder.glob(pattern):
            path.unlink()


def _remove_requests(folder: Path) -> None:
    for path in folder.glob("*.requests.jsonl"):
        path.unlink()


def complaints(folder: Path) -> Iterator[RowComplaint]:
    """Yield every faulty row of a plan, finished or not, in the order of the file."""
    path = folder / "rows.jsonl"

    for row in _rows_of(path) if path.exists() else ():
        if row.fault is not None:
            yield RowComplaint(
                line=row.line,
                code=row.fault.code,
                message=row.fault.message,
                key=row.fault.key,
                document=row.document,
            )


def _write_rejection(folder: Path, source: str, error: BadInput) -> None:
    """Say why the file is refused, and list all that is wrong with its rows, a line each."""
    path = folder / "rejection.json"
    part = path.with_name("rejection.json.part")
    of_file = RowComplaint(
        line=error.line or 0, code=error.code, message=error.reason, key=error.key
    )
    count = sum(1 for _ in complaints(folder)) + (error.line is not None)
    head = Rejection(file=source, code=error.code, reason=error.reason, fault_count=count)
    text = msgspec.json.format(msgspec.json.encode(head)).decode()

    with part.open("wb", buffering=_BLOCK_BYTES) as file:
        file.write(text.removesuffix("[]\n}").encode() + b"[")
        separator = b"\n    "

        for complaint in chain([of_file] if error.line is not None else [], complaints(folder)):
            file.write(separator + msgspec.json.encode(complaint))
            separator = b",\n    "

        file.write(b"\n  ]\n}" if count else b"]\n}")

    sync_file(part)
    rename_durably(part, path)
