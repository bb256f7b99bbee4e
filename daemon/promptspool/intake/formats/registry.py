"""Registry: every format that can be dropped, by name and by extension.

A format's reader, and its library, is imported when the first file of its kind is read, and in the
process that reads it. Pure.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from promptspool.intake.rows import Format

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from promptspool.intake.rows import Added, Block, Cell, Reader, ReadOptions, Row, Source, Writer


def _reader(module: str, function: str) -> Reader:
    """Return a reader that is imported when it is called."""

    def read(source: Source, options: ReadOptions) -> Iterator[Row | Block]:
        reader = cast("Reader", getattr(import_module(f"{__package__}.{module}"), function))

        return reader(source, options)

    return read


def _writer(module: str, function: str) -> Writer:
    """Return a writer that is imported when it is called."""

    def write(
        source: Source,
        options: ReadOptions,
        path: Path,
        added: Sequence[Added],
        rows: Iterator[Sequence[Cell]],
    ) -> None:
        writer = cast("Writer", getattr(import_module(f"{__package__}.{module}"), function))
        writer(source, options, path, added, rows)

    return write


_FORMATS = (
    Format(
        name="jsonl",
        suffixes=(".jsonl", ".ndjson"),
        unit="line",
        read=_reader("json_files", "read_jsonl"),
    ),
    Format(name="json", suffixes=(".json",), unit="line", read=_reader("json_files", "read_json")),
    Format(
        name="csv",
        suffixes=(".csv",),
        unit="line",
        read=_reader("delimited", "read_delimited"),
        write=_writer("delimited", "write_delimited"),
    ),
    Format(
        name="tsv",
        suffixes=(".tsv", ".tab"),
        unit="line",
        read=_reader("delimited", "read_delimited"),
        write=_writer("delimited", "write_delimited"),
    ),
    Format(
        name="xlsx",
        suffixes=(".xlsx",),
        unit="row",
        read=_reader("spreadsheet", "read_xlsx"),
        write=_writer("spreadsheet", "write_xlsx"),
        is_heavy=True,
    ),
    Format(
        name="parquet",
        suffixes=(".parquet",),
        unit="row",
        read=_reader("columnar", "read_parquet"),
        write=_writer("columnar", "write_parquet"),
        is_heavy=True,
    ),
    Format(
        name="arrow",
        suffixes=(".arrow", ".feather"),
        unit="row",
        read=_reader("columnar", "read_arrow"),
        write=_writer("columnar", "write_arrow"),
        is_heavy=True,
    ),
    Format(name="text", suffixes=(".txt",), unit="line", read=_reader("texts", "read_text")),
    Format(
        name="markdown",
        suffixes=(".md", ".markdown"),
        unit="line",
        read=_reader("texts", "read_document"),
    ),
    Format(
        name="zip",
        suffixes=(".zip",),
        unit="document",
        read=_reader("documents", "read_documents"),
        is_heavy=True,
    ),
)

FORMATS = {one.name: one for one in _FORMATS}
"""By name."""

SUFFIXES = {suffix: one for one in _FORMATS for suffix in one.suffixes}
"""By extension, lower case."""
