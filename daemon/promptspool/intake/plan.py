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
from promptspool.intake.ids import Ids, repeats
from promptspool.intake.images import FolderFiles
from promptspool.intake.kept import check_kept, kept_answers
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
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.intake.formats import Opened
    from promptspool.intake.ids import Repeat
    from promptspool.intake.kept import Kept
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
    digest: str
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
        check_kept(folder, finished)
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
    _remove_leftovers(folder)
    policy = dropped.profile.on_duplicate_id
    first = _Planning(dropped, folder)
    manifest = first.run()

    if not first.suspects:
        return manifest

    way_out = ', or write on_duplicate_id = "number" or "errors" in the profile'
    error = _duplicates(folder, first.suspects, way_out if policy == "reject" else "")

    if error is None:
        return manifest

    if policy == "reject":
        raise error

    earlier = folder / "rows.jsonl.part"
    (folder / "rows.jsonl").rename(earlier)
    _remove_requests(folder)
    known = repeats(_rows_of(earlier), first.suspects)
    second = _Planning(dropped, folder, repeats=known)
    manifest = second.run()
    earlier.unlink()

    # A number that was appended may make an id that a row has already.
    if policy == "number" and second.suspects:
        error = _duplicates(folder, second.suspects)

        if error is not None:
            raise error

    return manifest


def _duplicates(folder: Path, suspects: frozenset[int], way_out: str = "") -> BadInput | None:
    """Return what is said of rows that share an id, None if none do; marks them in the row index.

    The marks are for the rejection, or are overwritten.
    """
    rows, marked = folder / "rows.jsonl", folder / "rows.marked.part"
    encoder = msgspec.json.Encoder()
    told, count = "", 0

    with marked.open("wb", buffering=_BLOCK_BYTES) as file:
        found = repeats(_rows_of(rows), suspects)

        for row, repeat in zip(_rows_of(rows), found, strict=True):
            fault = row.fault

            if repeat is not None:
                fault = fault or _repeated(repeat)
                told = told or f"line {row.line}: {_repeated(repeat).message}"
                count += 1

            file.write(encoder.encode(msgspec.structs.replace(row, fault=fault)) + b"\n")

    if not count:
        marked.unlink()

        return None

    others = f" (and {count - 1:,} more such rows)" if count > 1 else ""
    marked.replace(rows)

    return BadInput(f"{told}{others}; give each row its own{way_out}", code="duplicate_id")


def _repeated(repeat: Repeat) -> RowFault:
    message = f"the id {_quoted(repeat.id)} is that of line {repeat.first_line}, too"

    return RowFault(code="duplicate_id", message=message)


def _quoted(name: str) -> str:
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}..."  # noqa: PLR2004


class _Planning:
    """One run over a dropped file."""

    def __init__(
        self, dropped: Dropped, folder: Path, *, repeats: Iterator[Repeat | None] | None = None
    ) -> None:
        self.suspects: frozenset[int] = frozenset()
        """Hashes of ids that more than one row may have, found by `run`."""
        self._dropped = dropped
        self._folder = folder
        self._repeats = repeats
        self._stem = PurePosixPath(dropped.source).name
        self._rows_file = folder / "rows.jsonl"
        self._splitter = Splitter(
            folder=folder,
            job=dropped.job,
            limits=dropped.limits,
            answer_tokens=dropped.profile.answer_tokens,
        )
        self._encoder = msgspec.json.Encoder()
        self._ids = Ids()
        self._rows = 0
        self._faults = _Faults()
        self._kept: Kept | None = None

    def run(self) -> Manifest:
        dropped, profile = self._dropped, self._dropped.profile
        scratch = self._folder / _SCRATCH
        scratch.mkdir(exist_ok=True)

        with (
            opened(dropped.original, dropped.source, caps=dropped.caps, scratch=scratch) as found,
            self._rows_file.open("wb", buffering=_BLOCK_BYTES) as file,
            kept_answers(self._folder, dropped.job) as self._kept,
        ):
            self._stem = _stem(dropped.source, found)
            renderer = Renderer(profile, files=_files(profile, found))
            options = read_options(profile, max_row_bytes=dropped.limits.max_bytes)

            for row in found.format.read(found.source, options):
                self._add_row(file, self._row(row, renderer))
                self._check_size()

        sync_file(self._rows_file)
        self.suspects = self._ids.suspects()
        self._check(found)

        return Manifest(
            job=dropped.job,
            source=dropped.source,
            digest=dropped.digest,
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
            kept=None if self._kept is None else self._kept.batch(profile),
        )

    def _row(self, row: Row, renderer: Renderer) -> PlannedRow:
        """Submit what *row* asks for; return its entry, with a fault if it asks for nothing."""
        name = row.name or f"{self._stem}-{row.number or row.line}"
        repeat = next(self._repeats) if self._repeats is not None else None

        try:
            columns = _columns(row)
            name = renderer.user_id(columns) or name
            name = name if repeat is None else self._renamed(name, repeat)

            if self._kept is not None and self._kept.is_taken(name, self._rows):
                return PlannedRow(id=name, line=row.line, document=row.name)

            request = renderer.request(columns)
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

        raise BadInput(_repeated(repeat).message, code="duplicate_id")

    def _add_row(self, file: BinaryIO, row: PlannedRow) -> None:
        file.write(self._encoder.encode(row) + b"\n")
        self._rows += 1
        self._ids.add(row.id)

        if row.fault is not None:
            self._faults.add(row.line, row.fault)

    def _check_size(self) -> None:
        """Raise `BadInput` for a few bytes that make requests without end, of an image, say."""
        most = self._dropped.caps.max_expanded

        if self._splitter.size_bytes > most:
            reason = (
                f"its requests come to more than {most:,} bytes; drop it in parts, or raise "
                f"intake.max_expanded"
            )
            raise BadInput(reason, code="expands_too_far")

    def _check(self, found: Opened) -> None:
        """Raise `BadInput` if nothing of the file is to be submitted."""
        count, unit = self._faults.count, found.format.unit
        kept = 0 if self._kept is None else self._kept.count

        if not self._rows:
            is_table = found.format.write is not None
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
