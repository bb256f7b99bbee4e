"""Index: the standing of a settled batch on disk, so that its answers are not all read again.

`BATCH.index` is written before `BATCH.settled.json` and holds 14 bytes for each request, or 22. It
is no more than a help: it counts only while it is whole, by its digest, and the provider's files
are those that it was made of, by their size and time; or else they are read again. Lets `OSError`
through (environment).
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

import msgspec

from promptspool.collect.answers import ERROR, OUTPUT, path_of
from promptspool.collect.standing import Standing
from promptspool.digest import Hasher

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    from promptspool.collect.answers import Noise
    from promptspool.collect.judge import Judge
    from promptspool.model import Batch

READ: Final = (OUTPUT, ERROR)
"""The files that an index is about: what is read before a batch is settled."""

LEAST_BYTES: Final = 1 << 20
"""What is shorter is read again as fast as an index of it."""

_VERSION: Final = 1


class _Head(msgspec.Struct, kw_only=True, frozen=True):
    """The second line of an index; the first is a digest of all that follows.

    What comes after it are the arrays of a standing, one after another.
    """

    version: int
    byteorder: str
    requests: int
    first: int | None
    """The first row where all rows up to the last are there; None where they are listed."""
    foreign: int
    duplicate: int
    files: list[tuple[int, int] | None]


def keep_index(folder: Path, standing: Standing, *, least_bytes: int = LEAST_BYTES) -> None:
    """Write the index of a batch whose `READ` files, and no others, are in *standing*.

    None is written if they come to less than *least_bytes*, or have lines that are to be shown to
    people: those have to be read again.
    """
    path = _path(folder, standing.batch)
    path.unlink(missing_ok=True)
    files = _files(folder, standing.batch)

    if sum(file[0] for file in files if file) < least_bytes or standing.noise.malformed:
        return

    rows = standing.rows
    first = rows.start if isinstance(rows, range) else None
    parts = [
        bytes(standing.verdicts),
        bytes(standing.kinds),
        standing.lengths.tobytes(),
        standing.offsets.tobytes(),
        array("q", rows).tobytes() if first is None else b"",
    ]
    head = _Head(
        version=_VERSION,
        byteorder=sys.byteorder,
        requests=len(rows),
        first=first,
        foreign=standing.noise.foreign,
        duplicate=standing.noise.duplicate,
        files=files,
    )
    parts.insert(0, msgspec.json.encode(head) + b"\n")

    with path.open("xb") as file:
        file.write(_digest(parts))
        file.writelines(parts)


def indexed(folder: Path, batch: Batch, *, noise: Noise, judge: Judge) -> Standing | None:
    """Return the standing of a batch as its index has it, None where there is none that counts.

    What was left out is added to *noise*; failures and tokens are not in it.
    """
    try:
        with _path(folder, batch).open("rb") as file:
            digest, line = file.readline(), file.readline()
            head = msgspec.json.decode(line, type=_Head)

            if not _is_about(head, folder, batch):
                return None

            parts = [_read(file, kind, batch.requests) for kind in "BBIQ"]
            parts += [_read(file, "q", batch.requests)] if head.first is None else []
    except (FileNotFoundError, EOFError, msgspec.DecodeError):
        return None

    if _digest([line, *(part.tobytes() for part in parts)]) != digest:
        return None

    rows = parts[-1] if head.first is None else range(head.first, head.first + batch.requests)
    standing = Standing(folder, batch, rows, noise=noise, judge=judge)
    standing.verdicts, standing.kinds = bytearray(parts[0]), bytearray(parts[1])
    standing.lengths, standing.offsets = parts[2], parts[3]
    noise.foreign += head.foreign
    noise.duplicate += head.duplicate

    return standing


def _is_about(head: _Head, folder: Path, batch: Batch) -> bool:
    """Tell whether an index was made by this version, of these files."""
    made = (head.version, head.byteorder, head.requests, head.files)

    return made == (_VERSION, sys.byteorder, batch.requests, _files(folder, batch))


def _read(file: BinaryIO, kind: str, count: int) -> array[int]:
    numbers = array(kind)
    data = file.read(count * numbers.itemsize)

    if len(data) < count * numbers.itemsize:
        raise EOFError

    numbers.frombytes(data)

    return numbers


def _digest(parts: Sequence[bytes]) -> bytes:
    hasher = Hasher()

    for part in parts:
        hasher.update(part)

    return hasher.digest().encode() + b"\n"


def _files(folder: Path, batch: Batch) -> list[tuple[int, int] | None]:
    """Return size and time of the files that are read before a batch is settled."""
    return [_mark(path_of(folder, batch.id, kind)) for kind in READ]


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None

    return found.st_size, found.st_mtime_ns


def _path(folder: Path, batch: Batch) -> Path:
    return folder / f"{batch.id}.index"
