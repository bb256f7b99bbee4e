"""Shapes: the answers in other forms than lines of JSON.

The dropped table with answers beside its rows, a file for each answer, embeddings as a matrix. All
of them take one pass over the rows, in the order of the dropped file, and hold one row at a time.
Files appear by rename, the same bytes however often it is repeated. A shape that cannot be made is
left out and named: it never keeps the others back. Lets `OSError` through (environment).
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from promptspool import schema
from promptspool.collect.content import content_of
from promptspool.collect.products import compile_answers
from promptspool.collect.vectors import VectorFile, VectorTable
from promptspool.errors import BadInput
from promptspool.intake.formats import FORMATS, Caps, opened
from promptspool.intake.plan import read_options
from promptspool.intake.rows import Added
from promptspool.settings import ProfileSettings
from promptspool.spool import finish_folder, remove_finished, sync_file
from promptspool.wire import ANSWERS, NPY, PARQUET, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.collect.products import Tally
    from promptspool.collect.row_answers import RowAnswer
    from promptspool.intake.rows import Cell
    from promptspool.model import Batch, JobId
    from promptspool.wire import Manifest

_KINDS = {"text": ANSWERS, "npy": NPY, "parquet": PARQUET}
"""What a profile calls them, and the products that they are."""

_SHAPES = (*TABLES, *_KINDS.values())

_SCRATCH = "scratch"

_MAX_NAME_BYTES = 200
"""Of a file in `answers/`, before its extension: NAME_MAX is 255."""

_NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f/\\]")


_UNCAPPED = Caps(max_expanded=1 << 62, max_ratio=1 << 31)
"""The plan has looked at how much comes out of the original."""


class _Sink(Protocol):
    """Takes every row, in order."""

    def add(self, answer: RowAnswer) -> None: ...

    def finish(self) -> str | None:
        """Give what was made its name; return why nothing was made, if so."""
        ...

    def close(self) -> None: ...


def make_products(
    *,
    folder: Path,
    job: JobId,
    manifest: Manifest,
    batches: Sequence[Batch],
    is_shaped: bool = True,
) -> Tally:
    """Write all products of a job but its summary into *folder*.

    *batches* are all of the job's, parents before successors. Without *is_shaped* only results and
    errors are written.
    """
    _remove_shapes(folder)

    return compile_answers(
        folder=folder,
        job=job,
        source=manifest.source,
        batches=batches,
        response_schema=manifest.profile.get("response_schema"),
        shape=partial(_shaped, folder, manifest) if is_shaped and wanted(manifest) else None,
    )


def made(folder: Path) -> list[str]:
    """Return the shapes that are in *folder*, as they are called in `PRODUCTS`."""
    return [name for name in _SHAPES if (folder / name).exists()]


def wanted(manifest: Manifest) -> list[str]:
    """Return the shapes that the profile asks for."""
    profile = ProfileSettings.model_validate(manifest.profile)
    table = [manifest.table] if manifest.table is not None and "table" in profile.answers else []

    return [*table, *(_KINDS[kind] for kind in profile.answers if kind in _KINDS)]


def _remove_shapes(folder: Path) -> None:
    """Remove what an earlier try has made, which this one may leave out."""
    remove_finished(folder / ANSWERS)

    for name in set(_SHAPES) - {ANSWERS}:
        (folder / name).unlink(missing_ok=True)


def _shaped(folder: Path, manifest: Manifest, rows: Iterator[RowAnswer]) -> dict[str, str]:
    """Take *rows* to their end and write the shapes that the profile asks for into *folder*.

    Returns the products that could not be made, each with the reason.
    """
    profile = ProfileSettings.model_validate(manifest.profile)
    left_out: dict[str, str] = {}

    with ExitStack() as stack:
        sinks = _sinks(folder, manifest, profile)

        for sink in sinks.values():
            stack.callback(sink.close)

        fed = _fed(rows, list(sinks.values()))

        if manifest.table in wanted(manifest):
            reason = _write_table(folder, manifest, profile, fed)
            left_out |= {} if reason is None else {str(manifest.table): reason}

        for _ in fed:
            pass  # what no table has taken

        for name, sink in sinks.items():
            reason = sink.finish()
            left_out |= {} if reason is None else {name: reason}

    return left_out


def is_heavy(manifest: Manifest) -> bool:
    """Tell whether the shapes of a job are to be made in a process of their own."""
    shapes = wanted(manifest)
    has_large_reader = FORMATS[manifest.format].is_heavy or "archive" in manifest.notes

    return PARQUET in shapes or (manifest.table in shapes and has_large_reader)


def _sinks(folder: Path, manifest: Manifest, profile: ProfileSettings) -> dict[str, _Sink]:
    """Return who takes the rows besides the table, by what it makes."""
    suffix = ".txt" if profile.response_schema is None else ".json"
    makers: dict[str, Callable[[], _Sink]] = {
        ANSWERS: lambda: TextFiles(folder, suffix=suffix),
        NPY: lambda: VectorFile(folder / NPY, rows=manifest.rows),
        PARQUET: lambda: VectorTable(folder / PARQUET),
    }
    shapes = wanted(manifest)

    return {name: make() for name, make in makers.items() if name in shapes}


def _fed(rows: Iterator[RowAnswer], sinks: Sequence[_Sink]) -> Iterator[RowAnswer]:
    for row in rows:
        for sink in sinks:
            sink.add(row)

        yield row


# The table.


def _write_table(
    folder: Path, manifest: Manifest, profile: ProfileSettings, rows: Iterator[RowAnswer]
) -> str | None:
    """Write the dropped table with answers; return why it could not be, None if it was."""
    assert manifest.table is not None  # noqa: S101 - the caller asked
    part = folder / f"{manifest.table}.part"
    scratch = folder / _SCRATCH
    scratch.mkdir(exist_ok=True)
    columns = _Columns(profile)
    cells = (columns.cells(row) for row in rows)

    try:
        with opened(folder / "original", manifest.source, caps=_UNCAPPED, scratch=scratch) as found:
            if found.format.write is None:
                return "the original is no table any more"

            options = read_options(profile, max_row_bytes=manifest.max_row_bytes)
            found.format.write(found.source, options, part, columns.added, cells)

        sync_file(part)
        part.replace(folder / manifest.table)
    except BadInput as error:
        return error.reason
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)

    return None


class _Columns:
    """The columns that answers add to a table, and what stands in them."""

    def __init__(self, profile: ProfileSettings) -> None:
        properties = schema.properties(profile.response_schema) if profile.response_schema else []
        has_file = {"npy", "parquet"} & set(profile.answers)
        self._properties = [name for name, _ in properties]
        self._kinds = [kind for _, kind in properties]
        # A table is no place for thousands of numbers that are in a file of their own.
        self._answer = [] if has_file else [Added("answer", "text")]
        self.added = [
            *self._answer,
            *(Added(name, kind) for name, kind in properties),
            Added("finish_reason", "text"),
            Added("error", "text"),
            Added("input_tokens", "integer"),
            Added("output_tokens", "integer"),
        ]

    def cells(self, row: RowAnswer) -> list[Cell]:
        """Return what stands beside a row, in the order of `added`."""
        content = content_of(row.answer) if row.answer is not None else None
        values = msgspec.json.decode(row.parsed) if row.parsed is not None else {}
        # A model that refuses says so in another place.
        text = (content.text or content.refusal) if content is not None and row.ok else None
        properties = [
            _cell(values.get(name), kind)
            for name, kind in zip(self._properties, self._kinds, strict=True)
        ]
        error = None if row.error is None else _error_text(*row.error)

        return [
            *([text] if self._answer else []),
            *properties,
            content.finish_reason if content is not None else None,
            error,
            row.tokens.input if row.answer is not None else None,
            row.tokens.output if row.answer is not None else None,
        ]


def _cell(value: object, kind: str) -> Cell:
    """Return one property's value as the column's kind, None where it is not of that kind."""
    match kind, value:
        case "boolean", bool():
            return value
        case (("integer" | "number"), bool()):
            return None
        case "integer", int():
            return value
        case "integer", float() if value.is_integer():  # JSON Schema: 5.0 is an integer
            return int(value)
        case "number", int() | float():
            return _float(value)
        case "text", str():
            return value
        case "text", _ if value is not None:
            return msgspec.json.encode(value).decode()
        case _:
            return None


def _float(value: float) -> float | None:
    """Return a number as a table can hold it, None for one of hundreds of digits."""
    try:
        return float(value)
    except OverflowError:
        return None


def _error_text(code: str, message: str | None) -> str:
    return f"{code}: {message}" if message else code


# A file for each answer.


class TextFiles:
    """Writes each answer into `answers/`, under the id of its row."""

    def __init__(self, folder: Path, *, suffix: str) -> None:
        """Begin an empty folder below *folder*; what an interrupted one left goes."""
        self._folder = folder / ANSWERS
        self._part = folder / f"{ANSWERS}.part"
        self._suffix = suffix
        self._again: Counter[str] = Counter()
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir()

    def add(self, answer: RowAnswer) -> None:
        """Write one answer, if it is one."""
        content = content_of(answer.answer) if answer.ok and answer.answer is not None else None
        text = None if content is None else content.text or content.refusal

        if text is None:
            return

        name = file_name(answer.row.id)

        with self._new(name) as file:
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())

    def _new(self, name: str) -> BinaryIO:
        """Open a file that is not there yet: ids that differ may make the same name."""
        path = self._part / f"{name}{self._suffix}"

        while True:
            try:
                return path.open("xb")
            except FileExistsError:
                self._again[name] += 1
                path = self._part / f"{name}-{self._again[name] + 1}{self._suffix}"

    def finish(self) -> str | None:
        """Give the folder its name."""
        if next(self._part.iterdir(), None) is None:
            return "no row has an answer"

        finish_folder(self._part, self._folder)

        return None

    def close(self) -> None:
        """Remove what was not finished."""
        shutil.rmtree(self._part, ignore_errors=True)


def file_name(name: str) -> str:
    """Return an id as the name of a file: without slashes, control characters and leading dots."""
    safe = _NOT_IN_A_NAME.sub("_", name).lstrip(".") or "_"

    return safe.encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
