"""Plan: one dropped file becomes its request files, its row index and its manifest.

The manifest comes last and by rename, so a folder that has one is planned, and what it holds is
what is submitted, whatever the configuration says today. After a crash before that, planning
starts over. Raises `BadInput` for a file that cannot be used (bad data), after writing
`rejection.json`, and lets `OSError` through (environment).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats import opened
from promptspool.intake.ids import repeats
from promptspool.intake.index import BLOCK_BYTES, duplicates, rows_of, write_rejection
from promptspool.intake.kept import check_kept, kept_answers
from promptspool.intake.planner import Planner
from promptspool.intake.rows import ReadOptions
from promptspool.intake.writing import Writing
from promptspool.spool import sync_folder, write_durably
from promptspool.wire import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from promptspool.intake.ids import Repeat
    from promptspool.intake.planner import Dropped
    from promptspool.settings import ProfileSettings

_SCRATCH = "scratch"
"""The folder for what has to be unpacked to be read; it goes when the plan is made."""


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
        write_rejection(folder, dropped.source, error)
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
    manifest, suspects = _run(dropped, folder, repeat(None))

    if not suspects:
        return manifest

    way_out = ', or write on_duplicate_id = "number" or "errors" in the profile'
    error = duplicates(folder, suspects, way_out if policy == "reject" else "")

    if error is None:
        return manifest

    if policy == "reject":
        raise error

    earlier = folder / "rows.jsonl.part"
    (folder / "rows.jsonl").rename(earlier)
    _remove_requests(folder)
    manifest, suspects = _run(dropped, folder, repeats(rows_of(earlier), suspects))
    earlier.unlink()

    # A number that was appended may make an id that a row has already.
    if policy == "number" and suspects:
        error = duplicates(folder, suspects)

        if error is not None:
            raise error

    return manifest


def _run(
    dropped: Dropped, folder: Path, repeats: Iterator[Repeat | None]
) -> tuple[Manifest, frozenset[int]]:
    """Return the plan of one run over a file, and hashes of ids that more than one row may have."""
    options = replace(
        read_options(dropped.profile, max_row_bytes=dropped.limits.max_bytes),
        block_bytes=dropped.block_bytes,
    )
    scratch = folder / _SCRATCH
    scratch.mkdir(exist_ok=True)

    with (
        opened(dropped.original, dropped.source, caps=dropped.caps, scratch=scratch) as found,
        kept_answers(folder, dropped.job) as kept,
        Writing() as writing,
    ):
        planner = Planner(dropped, folder, found, kept, writing)

        with (folder / "rows.jsonl").open("wb", buffering=BLOCK_BYTES) as index:
            planner.add_all(found.format.read(found.source, options), repeats, index)

        writing.sync(folder / "rows.jsonl")
        suspects = planner.suspects()
        planner.check()

        return planner.finish(), suspects


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
