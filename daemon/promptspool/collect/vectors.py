"""Vectors: embeddings as a matrix or a table, instead of JSON.

One row at a time; files appear by rename. Lets `OSError` through (environment).
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from typing import TYPE_CHECKING, Any

from promptspool.collect.content import vectors_of
from promptspool.spool import sync_file

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.collect.row_answers import RowAnswer

_WRITE_BYTES = 1 << 20

_NPY_HEADER_BYTES = 128

_GROUP_NUMBERS = 1 << 20
"""Numbers in a row group: 4 MB of them."""


class VectorFile:
    """Writes embeddings as a matrix of float32: row n is that of row n of the file, from 0.

    A row without an answer is all NaN. The format is version 1.0 of NumPy's `.npy`
    (numpy.lib.format), whose header is written last, into room left for it.
    """

    def __init__(self, path: Path, *, rows: int) -> None:
        """Begin the file for *rows* rows."""
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("wb", buffering=_WRITE_BYTES)
        self._file.write(bytes(_NPY_HEADER_BYTES))
        self._rows = rows
        self._missing = 0
        self._length: int | None = None
        self._fault: str | None = None

    def add(self, answer: RowAnswer) -> None:
        """Write one row of the matrix."""
        vectors = vectors_of(answer.answer) if answer.ok and answer.answer is not None else []

        if not vectors:
            self._missing += 1
            return

        if self._length is None:
            self._length = len(vectors[0])

        if len(vectors) != 1 or len(vectors[0]) != self._length:
            self._fault = self._fault or (
                f"line {answer.row.line}: {len(vectors)} vectors of {len(vectors[0])} numbers do "
                f"not go with one of {self._length} a row"
            )
            self._missing += 1
            return

        self._fill()
        self._file.write(_little(array("f", vectors[0])))

    def _fill(self) -> None:
        """Write the rows without an answer that came before."""
        blank = _little(array("f", [math.nan]) * (self._length or 0))

        for _ in range(self._missing):
            self._file.write(blank)

        self._missing = 0

    def finish(self) -> str | None:
        """Write the header and give the file its name."""
        if self._length is None:
            return "no row has an embedding"

        if self._fault is not None:
            return self._fault

        self._fill()
        self._file.seek(0)
        self._file.write(_npy_header(self._rows, self._length))
        self._file.close()
        sync_file(self._part)
        self._part.replace(self._path)

        return None

    def close(self) -> None:
        """Remove what was not finished."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def _npy_header(rows: int, length: int) -> bytes:
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {length}), }}"
    room = _NPY_HEADER_BYTES - 10

    return b"\x93NUMPY\x01\x00" + struct.pack("<H", room) + shape.ljust(room - 1).encode() + b"\n"


def _little(values: array[float]) -> bytes:
    """Return the bytes of float32s, least significant first."""
    if sys.byteorder == "big":
        values.byteswap()

    return values.tobytes()


class VectorTable:
    """Writes embeddings as a parquet table, a line for each: `id`, `index`, `embedding`, `error`.

    `index` counts the inputs of a row from 0. A row without an answer has one line, whose embedding
    is null.
    """

    def __init__(self, path: Path) -> None:
        """Begin the file. pyarrow is large: it is imported by whoever asks for this alone."""
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415

        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._schema = pa.schema(
            [
                ("id", pa.string()),
                ("index", pa.int32()),
                ("embedding", pa.list_(pa.float32())),
                ("error", pa.string()),
            ]
        )
        self._writer = parquet.ParquetWriter(self._part, self._schema, compression="zstd")
        self._lines: list[dict[str, Any]] = []
        self._numbers = 0

    def add(self, answer: RowAnswer) -> None:
        """Write the lines of one row."""
        vectors = vectors_of(answer.answer) if answer.ok and answer.answer is not None else []
        error = None if answer.error is None else ": ".join(filter(None, answer.error))

        for index, vector in enumerate(vectors or [None]):
            self._lines.append(
                {"id": answer.row.id, "index": index, "embedding": vector, "error": error}
            )
            self._numbers += 1 if vector is None else len(vector)

        if self._numbers >= _GROUP_NUMBERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa  # noqa: PLC0415

        if self._lines:
            self._writer.write_table(pa.Table.from_pylist(self._lines, schema=self._schema))

        self._lines.clear()
        self._numbers = 0

    def finish(self) -> str | None:
        """Give the file its name."""
        self._flush()
        self._writer.close()
        sync_file(self._part)
        self._part.replace(self._path)

        return None

    def close(self) -> None:
        """Remove what was not finished."""
        self._writer.close()
        self._part.unlink(missing_ok=True)
