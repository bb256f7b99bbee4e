"""Plan: one dropped file becomes its request files, its row index and its manifest.

The manifest comes last and by rename, so a folder that has one is planned, and what it holds is
what is submitted, whatever the configuration says today. After a crash before that, planning
starts over. Memory does not grow with the file. Raises `BadInput` for a file that cannot be used
(bad data), after writing `rejection.json`, and lets `OSError` through (environment).
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.lines import BLOCK_BYTES, HashedFile, Line, lines
from promptspool.intake.readers import Columns, Reader, reader_of
from promptspool.intake.render import Renderer
from promptspool.intake.split import Limits, Splitter
from promptspool.spool import sync_file, sync_folder, write_durably
from promptspool.wire import Manifest, PlannedRow, Rejection, RowFault, wire_id

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.model import JobId
    from promptspool.settings import ProfileSettings

MAX_KEPT = 20
"""Faults that `rejection.json` spells out; the rest are counted."""

_MAX_QUOTED = 3


def plan(  # noqa: PLR0913 (one keyword for each thing that decides what is submitted)
    *,
    original: Path,
    source: str,
    job: JobId,
    profile: ProfileSettings,
    limits: Limits,
    give_up_at: float,
    folder: Path,
) -> Manifest:
    """Turn *original* into request files in *folder* and return what they hold.

    *source* is the dropped file's name, for people and for its extension. A finished plan found in
    *folder* is returned as it is; nothing is rendered again.
    Raises `BadInput` if the file is unusable; `rejection.json` in *folder* then says why.
    """
    manifest = folder / "manifest.json"

    if manifest.exists():
        return msgspec.json.decode(manifest.read_bytes(), type=Manifest)

    _remove_leftovers(folder)
    planning = _Planning(source=source, job=job, folder=folder, limits=limits)

    try:
        finished = planning.run(original, profile, give_up_at)
    except BadInput as error:
        _remove_leftovers(folder)
        _write_rejection(folder, source, error, planning.faults)
        raise

    sync_folder(folder)
    write_durably(manifest, msgspec.json.encode(finished))

    return finished


@dataclass(slots=True)
class _Faults:
    """What was wrong with rows: the first few, and how many."""

    kept: list[dict[str, int | str]] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, fault: RowFault) -> None:
        self.count += 1

        if len(self.kept) < MAX_KEPT:
            self.kept.append({"line": line, "code": fault.code, "message": fault.message})

    def quoted(self) -> str:
        shown = [f"line {one['line']}: {one['message']}" for one in self.kept[:_MAX_QUOTED]]
        hidden = self.count - len(shown)

        return " | ".join([*shown, f"and {hidden:,} more"] if hidden else shown)


class _Planning:
    """One run over a dropped file."""

    def __init__(self, *, source: str, job: JobId, folder: Path, limits: Limits) -> None:
        self.faults = _Faults()
        self._source = source
        self._stem = PurePosixPath(source).stem
        self._job = job
        self._rows_file = folder / "rows.jsonl"
        self._limits = limits
        self._splitter = Splitter(folder=folder, job=job, limits=limits)
        self._encoder = msgspec.json.Encoder()
        self._rows = 0

    def run(self, original: Path, profile: ProfileSettings, give_up_at: float) -> Manifest:
        reader = reader_of(self._source)
        renderer = Renderer(profile)

        with original.open("rb", buffering=0) as raw, self._rows_file.open("wb") as rows:
            hashed = HashedFile(raw)
            file = io.BufferedReader(hashed, BLOCK_BYTES)

            for line in lines(file, max_bytes=self._limits.max_bytes):
                self._add_row(rows, self._row(line, reader, renderer))

        sync_file(self._rows_file)
        self._check(profile)

        return Manifest(
            job=self._job,
            source=self._source,
            sha256=hashed.hexdigest(),
            rows=self._rows,
            bad_rows=self.faults.count,
            give_up_at=give_up_at,
            max_attempts=profile.max_attempts,
            profile=profile.model_dump(mode="json"),
            batches=self._splitter.finish(),
        )

    def _row(self, line: Line, reader: Reader, renderer: Renderer) -> PlannedRow:
        """Submit what *line* asks for; return its row, with a fault if it asks for nothing."""
        name = f"{self._stem}-{line.number}"

        try:
            columns = self._columns(line, reader)
            name = renderer.user_id(columns) or name
            request = renderer.request(columns)
            wire = request.line(wire_id(self._job, self._rows))
            self._splitter.check(request, wire)
        except BadInput as error:
            fault = RowFault(code=error.code, message=error.reason)

            return PlannedRow(id=name, line=line.number, fault=fault)

        self._splitter.add(request, wire)

        return PlannedRow(id=name, line=line.number)

    def _columns(self, line: Line, reader: Reader) -> Columns:
        if line.data is None:
            reason = f"the line is longer than {self._limits.max_bytes:,} bytes; shorten it"
            raise BadInput(reason, code="line_too_long")

        return reader(line.data)

    def _add_row(self, rows: BinaryIO, row: PlannedRow) -> None:
        rows.write(self._encoder.encode(row) + b"\n")
        self._rows += 1

        if row.fault is not None:
            self.faults.add(row.line, row.fault)

    def _check(self, profile: ProfileSettings) -> None:
        """Raise `BadInput` if nothing of the file is to be submitted."""
        if not self._rows:
            reason = "the file is empty; write one prompt a line"
            raise BadInput(reason, code="empty_file")

        if self.faults.count == self._rows:
            reason = f"not one of {self._rows:,} rows is usable: {self.faults.quoted()}"
            raise BadInput(reason, code="no_usable_row")

        if self.faults.count and profile.on_bad_row == "reject":
            reason = (
                f"{self.faults.count:,} of {self._rows:,} rows are unusable, and the profile says "
                f'on_bad_row = "reject": {self.faults.quoted()}'
            )
            raise BadInput(reason, code="bad_rows")


def _remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted plan wrote: half files would be appended to."""
    for pattern in ("*.requests.jsonl", "rows.jsonl", "rejection.json"):
        for path in folder.glob(pattern):
            path.unlink()


def _write_rejection(folder: Path, source: str, error: BadInput, faults: _Faults) -> None:
    if error.line is not None:
        faults = _Faults()
        faults.add(error.line, RowFault(code=error.code, message=error.reason))

    rejection = Rejection(
        file=source,
        code=error.code,
        reason=error.reason,
        faults=faults.kept,
        fault_count=faults.count,
    )
    write_durably(folder / "rejection.json", msgspec.json.format(msgspec.json.encode(rejection)))
