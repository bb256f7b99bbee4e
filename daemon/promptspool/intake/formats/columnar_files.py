"""Columnar files: parquet and Arrow as record batches of a bounded size, and how they are packed.

What pyarrow makes of a broken or hostile file is translated here and nowhere else. Raises
`BadInput` (bad data), and lets `OSError` through where the disk is at fault (environment).
"""

from __future__ import annotations

import errno
import importlib
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from promptspool.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BUFFER_BYTES = 1 << 16

_SLICE_BYTES = 8 << 20
_SLICE_ROWS = 1_024

_FILE, _FEATHER_1, _PARQUET, _ENCRYPTED = b"ARROW1", b"FEA1", b"PAR1", b"PARE"

# Arrow columnar format, "IPC File Format": the magic word is padded to eight bytes.
_STREAM_START = 8

# Arrow's Message.fbs: places of fields in their tables, and values of enumerations.
_HEADER_TYPE, _HEADER, _COMPRESSION, _CODEC = 1, 2, 3, 0
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_CODECS = ("lz4", "zstd")

_MAX_SHOWN = 300


def library(name: str) -> Any:
    """Return a module of pyarrow, which is loaded here and nowhere else."""
    return importlib.import_module(name)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(8)

    if not head:
        raise BadInput("the file is empty", code="empty_file")

    return head


@contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """Open a file of parquet."""
    head = _head(path)

    if head.startswith(_ENCRYPTED):
        raise BadInput("the parquet file is encrypted; save it without a key", code="locked")

    if not head.startswith(_PARQUET):
        raise BadInput("the file is no parquet; save it anew as .parquet", code="wrong_format")

    # Pages are read as they are needed: with pre_buffer a whole row group would be.
    with understood("parquet"):
        file = library("pyarrow.parquet").ParquetFile(
            path, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )

    with file:
        yield file


@contextmanager
def opened_arrow(path: Path) -> Iterator[Any]:
    """Open a file or a stream of Arrow; it is mapped into memory, not read."""
    if _head(path).startswith(_FEATHER_1):
        reason = "the file is Feather of version 1, which is no longer written; save it as .parquet"
        raise BadInput(reason, code="wrong_format")

    pyarrow, ipc = library("pyarrow"), library("pyarrow.ipc")

    with understood("Arrow"):
        mapped = pyarrow.memory_map(str(path))

    with mapped:
        with understood("Arrow"):
            is_file = is_arrow_file(path)
            reader = (ipc.open_file if is_file else ipc.open_stream)(mapped)

        with reader:
            yield reader


def parquet_slices(file: Any) -> Iterator[Any]:
    """Yield record batches of a bounded size."""
    with understood("parquet"):
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            rows = _slice_rows(group.total_byte_size, group.num_rows)
            yield from file.iter_batches(rows, row_groups=[number], use_threads=False)


def arrow_slices(reader: Any) -> Iterator[Any]:
    """Yield slices of a bounded size of all record batches."""
    with understood("Arrow"):
        for batch in _batches(reader):
            # pyarrow trusts offsets that lead anywhere, and a file can hold any.
            batch.validate(full=True)
            rows = _slice_rows(batch.get_total_buffer_size(), batch.num_rows)

            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))

    return iter(reader)


def _slice_rows(size_bytes: int, rows: int) -> int:
    return max(1, min(_SLICE_ROWS, _SLICE_BYTES * rows // max(size_bytes, 1)))


def is_arrow_file(path: Path) -> bool:
    """Tell a file of Arrow from a stream."""
    return _head(path).startswith(_FILE)


def parquet_codec(file: Any) -> str:
    """Return the name of a codec that pyarrow writes: the first column's if it can."""
    metadata = file.metadata

    if not metadata.num_row_groups or not metadata.num_columns:
        return "zstd"

    found = str(metadata.row_group(0).column(0).compression).lower()
    name = {"uncompressed": "none", "lz4_raw": "lz4"}.get(found, found)
    is_known = name in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")

    return name if is_known and (name == "none" or _can_pack(name)) else "zstd"


def _can_pack(name: str) -> bool:
    return bool(library("pyarrow").Codec.is_available(name))


def arrow_codec(path: Path) -> str | None:
    """Return how the first record batch is compressed, None if it is not.

    pyarrow does not tell, so the head of its message is looked into.
    """
    pyarrow, ipc = library("pyarrow"), library("pyarrow.ipc")

    with understood("Arrow"), pyarrow.memory_map(str(path)) as mapped:
        mapped.seek(_STREAM_START if is_arrow_file(path) else 0)

        for message in ipc.MessageReader.open_stream(mapped):
            if message.type == "record batch":
                return _codec(message.metadata.to_pybytes())

    return "zstd"


def _codec(data: bytes) -> str | None:
    """Return the codec that the flatbuffer of a record batch's message names."""
    with suppress(struct.error, IndexError):
        message = _pointed(data, 0)
        header = _field(data, message, _HEADER)
        compression = header and _field(data, _pointed(data, header), _COMPRESSION)

        if not compression:
            return None

        codec = _field(data, _pointed(data, compression), _CODEC)

        return _CODECS[data[codec]] if codec else _CODECS[0]

    return "zstd"


def _pointed(data: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table is, 0 if it has its default value."""
    layout = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, layout)[0]
    entry = 4 + 2 * number
    offset = struct.unpack_from("<H", data, layout + entry)[0] if entry < size else 0

    return table + int(offset) if offset else 0


@contextmanager
def understood(kind: str) -> Iterator[None]:
    """Translate what pyarrow raises where a file is not the *kind* that it should be."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        RuntimeError,  # pyarrow: not implemented
        TypeError,
        ValueError,  # pyarrow: invalid
        struct.error,
    ) as error:
        raise _broken(kind, error) from error
    except OSError as error:
        # pyarrow has no number for what is wrong with a file, but for what is wrong with a disk.
        if error.errno not in (None, errno.EINVAL):
            raise

        raise _broken(kind, error) from error


def _broken(kind: str, error: Exception) -> BadInput:
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    reason = f"the {kind} cannot be read ({first:.{_MAX_SHOWN}}); save it anew"

    return BadInput(reason, code="broken_file")
