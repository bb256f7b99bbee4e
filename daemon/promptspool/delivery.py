"""The last step of a job, on disk: what goes into `outbox/`, `done/` and `rejected/`.

Products are made in the working folder, the summary last, and get their public names by links that
never replace anything. So a delivery that died anywhere is simply done again. Raises `OSError`
(environment).
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec

from promptspool import collect, worker
from promptspool.log import unquoted
from promptspool.model import shown
from promptspool.notices import Message
from promptspool.outcomes import Delivered
from promptspool.planning import read_manifest
from promptspool.pricing import LIST_PRICES
from promptspool.spool import (
    SIDECAR,
    is_published,
    make_folders,
    publish,
    read_own,
    remove_folder,
    rename_durably,
    sidecar_of,
    sync_folder,
    unpublish,
    write_durably,
)
from promptspool.wire import PRODUCTS, Claim
from promptspool.worker import WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from promptspool.collect import Tally
    from promptspool.model import Batch, Job, Notice
    from promptspool.notices import Event
    from promptspool.pricing import Prices
    from promptspool.spool import Spool
    from promptspool.wire import Manifest

TRIES_TO_SHAPE = 3
"""Products whose writer dies are tried so often: the machine may have been short of memory."""


def deliver(  # noqa: PLR0913 (the job, its batches and what is said of them)
    spool: Spool,
    job: Job,
    *,
    batches: Sequence[Batch],
    taken: set[bytes],
    now: float,
    prices: Prices = LIST_PRICES,
) -> Delivered:
    """Publish results, errors and summary, in this order, and retire the original.

    *batches* are in the order of their creation; *taken* are the stems of the other jobs in flight.
    Repeating it gives the same bytes under the same names.
    """
    folder = spool.folder(job.id)
    stem = _free_stem(spool, job, partial(_delivered, spool, folder), taken)
    _make_products(folder, job, shown(stem), batches=batches, now=now, prices=prices)
    make_folders((spool.outbox / os.fsdecode(stem)).parent, below=spool.outbox)

    for mine, theirs in _products(spool, folder, stem):
        if mine.exists():
            publish(mine, theirs)

    done = spool.done / os.fsdecode(stem)
    make_folders(done.parent, below=spool.done)

    for mine, theirs in _retired(folder, done):
        _retire(mine, theirs)
    summary = msgspec.json.decode((folder / "summary.json").read_bytes())
    counts = summary["counts"]

    return Delivered(
        stem=stem,
        results=counts["results"],
        errors=counts["errors"],
        left_out=tuple(summary.get("left_out", ())),
        summary=summary,
    )


def products_of(spool: Spool, job: Job) -> dict[str, Path]:
    """Return what is in `outbox/` of a delivered job, by what it is, as in `summary.json`."""
    stem = os.fsdecode(job.stem)
    paths = {name: spool.outbox / f"{stem}.{name}" for name in PRODUCTS}

    return {name: path for name, path in paths.items() if os.path.lexists(path)}


def _make_products(  # noqa: PLR0913 (as above)
    folder: Path, job: Job, stem: str, *, batches: Sequence[Batch], now: float, prices: Prices
) -> None:
    """Put results and errors together and sum them up; a summary that is there says it is done."""
    summary = folder / "summary.json"

    if summary.exists():
        return

    manifest = read_manifest(folder)
    tally = _compiled(folder, job, manifest, batches)
    content = collect.summarise(
        job=job,
        manifest=manifest,
        batches=batches,
        tally=tally,
        folder=folder,
        stem=stem,
        delivered_at=now,
        prices=prices,
    )
    write_durably(summary, msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def _compiled(folder: Path, job: Job, manifest: Manifest, batches: Sequence[Batch]) -> Tally:
    """Write all products but the summary, in a process of its own where that takes much memory.

    Where that process dies again and again, results and errors are delivered without the rest.
    """
    if not collect.is_heavy(manifest):
        return collect.make_products(folder=folder, job=job.id, manifest=manifest, batches=batches)

    try:
        return worker.run(
            collect.make_products, folder=folder, job=job.id, manifest=manifest, batches=batches
        )
    except WorkerDied as error:
        if job.failures < TRIES_TO_SHAPE:
            raise OSError(str(error)) from error  # tried again like anything of the machine's

        tally = collect.make_products(
            folder=folder, job=job.id, manifest=manifest, batches=batches, is_shaped=False
        )
        tally.left_out = dict.fromkeys(collect.wanted(manifest), str(error))

        return tally


def _free_stem(
    spool: Spool, job: Job, products: Callable[[bytes], list[tuple[Path, Path]]], taken: set[bytes]
) -> bytes:
    """Return the reserved stem, or another if somebody has put a file under one of its names.

    *products* are what is published under a stem: the file in the working folder and its public
    name. What was published under the old stem is taken back, and the summary, which names the
    files, is to be written anew. The new stem is on the platter before anything is published.
    """
    folder = spool.folder(job.id)
    claim = read_own(folder / "claim.json", Claim)
    pairs = products(claim.stem)
    is_retired = not (folder / "original").exists()

    if is_retired or all(is_published(mine, theirs) for mine, theirs in pairs if theirs.exists()):
        return claim.stem

    for mine, theirs in pairs:
        unpublish(mine, theirs)

    stem = spool.reserve(claim.name, taken | {claim.stem})
    (folder / "summary.json").unlink(missing_ok=True)
    renamed = msgspec.structs.replace(claim, stem=stem)
    write_durably(folder / "claim.json", msgspec.json.encode(renamed))

    return stem


def _products(spool: Spool, folder: Path, stem: bytes) -> list[tuple[Path, Path]]:
    return [(folder / name, spool.outbox / f"{os.fsdecode(stem)}.{name}") for name in PRODUCTS]


def _delivered(spool: Spool, folder: Path, stem: bytes) -> list[tuple[Path, Path]]:
    return [*_products(spool, folder, stem), *_retired(folder, spool.done / os.fsdecode(stem))]


def _rejected(spool: Spool, folder: Path, stem: bytes) -> list[tuple[Path, Path]]:
    target = spool.rejected / os.fsdecode(stem)
    note = target.with_name(target.name + ".rejected.json")

    return [(folder / "rejection.json", note), *_retired(folder, target)]


def _retired(folder: Path, target: Path) -> list[tuple[Path, Path]]:
    """Return what is to go to *target*, the original last: it says that all else is there.

    A sidecar that is not here any more is there already.
    """
    sidecar = folder / SIDECAR
    pairs = [(sidecar, sidecar_of(target))] if sidecar.exists() else []

    return [*pairs, (folder / "original", target)]


def reject(spool: Spool, job: Job, *, taken: set[bytes]) -> None:
    """Put the reason and the original into `rejected/`, and remove the folder; repeatable."""
    folder = spool.folder(job.id)

    if folder.exists():
        stem = _free_stem(spool, job, partial(_rejected, spool, folder), taken)
        (note, public_note), *retired = _rejected(spool, folder, stem)
        make_folders(public_note.parent, below=spool.rejected)
        publish(note, public_note)

        for mine, theirs in retired:
            _retire(mine, theirs)

    remove_folder(folder)


def _retire(original: Path, target: Path) -> None:
    """Give an original its last place; a crash in between leaves it under both names."""
    if not original.exists():
        return

    try:
        publish(original, target)
    except PermissionError:
        # A file of somebody else's may be moved but not linked (fs.protected_hardlinks).
        if os.path.lexists(target):
            raise

        rename_durably(original, target)
    else:
        original.unlink()
        sync_folder(original.parent)


def message(spool: Spool, job: Job, notice: Notice) -> Message:
    """Return what a command or webhook is told of *job*: where its answers are, and never more.

    A reason comes without what it quotes of the file, which `rejected/` has in full.
    """
    products = products_of(spool, job)

    return Message(
        id=notice.id,
        event=cast("Event", notice.event),
        at=notice.made_at,
        job=job.id,
        file=job.shown,
        profile=job.profile,
        provider=job.provider,
        status=job.status.value,
        reason=None if job.why is None else unquoted(job.why),
        results=job.results or 0,
        errors=job.errors or 0,
        cost_usd=job.cost_usd,
        summary=products.get("summary.json"),
        results_path=products.get("results.jsonl"),
        errors_path=products.get("errors.jsonl"),
    )
