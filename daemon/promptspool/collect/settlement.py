"""Settlement: each request of an ended batch has a final answer or goes into a successor.

`BATCH.settled.json` comes last and by rename, after the successors' request files and our own
answer lines are on the platter; a batch that has one is settled, whatever the time is now. Before
that everything is written anew. Raises `Bug` when requests do not add up and lets `OSError`
through (environment).
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from promptspool.collect.answers import Noise, rows_of
from promptspool.collect.index import READ, keep_index
from promptspool.collect.judge import Judge
from promptspool.collect.ruling import (
    ANSWERED,
    FAILED,
    REFUSED,
    collected,
    doubt,
    hopeless,
    refused,
)
from promptspool.collect.standing import Standing
from promptspool.digest import Hasher, digest_of
from promptspool.errors import Bug
from promptspool.model import BatchId, successor_id
from promptspool.outcomes import Doubtful
from promptspool.spool import sync_file, sync_folder, write_durably
from promptspool.wire import BatchFault, PlannedBatch, SettledBatch, wire_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from promptspool.collect.ruling import Heir, Ruling, Stop
    from promptspool.model import Batch
    from promptspool.schema import Schema


def settle(  # noqa: PLR0913 (the batch, its plan's rules and the time)
    *,
    folder: Path,
    batch: Batch,
    max_attempts: int,
    request_backoff_s: float,
    stop: Stop,
    now: float,
    response_schema: Schema | None = None,
) -> SettledBatch | Doubtful:
    """Find each request's verdict, and write what follows from it into *folder*.

    With a *response_schema* only what fits it is an answer. A settlement found there is returned as
    it is. `Doubtful` asks for a second look: at what the provider may only be late with.
    """
    settled = folder / f"{batch.id}.settled.json"

    if settled.exists():
        return msgspec.json.decode(settled.read_bytes(), type=SettledBatch)

    rows = rows_of(folder, batch)
    standing = Standing(folder, batch, rows, noise=Noise(), judge=Judge(response_schema))

    for kind in READ:
        standing.read(kind)

    verdicts, failures = standing.verdicts, standing.failures
    has_run = batch.remote_status is None or batch.remote_status.has_run
    stopped: str | None = None

    if not has_run and not any(verdicts):
        ruling = refused(batch, now)
    elif (reason := doubt(batch, verdicts)) is not None:
        return Doubtful(reason=reason)
    else:
        stopped = hopeless(batch, verdicts, failures, stop)
        ruling = collected(
            batch,
            verdicts,
            max_attempts=max_attempts,
            request_backoff_s=request_backoff_s,
            now=now,
            doomed=[place for place, code in failures.items() if code == stopped],
        )

    written = _written(folder, batch, rows, ruling)
    keep_index(folder, standing)
    result = msgspec.structs.replace(written, stopped=stopped, tokens=standing.tokens)
    sync_folder(folder)
    write_durably(settled, msgspec.json.encode(result))

    return result


class _RequestFile:
    """The request file of a successor in the making."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        # It may be there already and be a second name of the parent's file: never write into it.
        path.unlink(missing_ok=True)
        self._file: BinaryIO = stack.enter_context(path.open("xb"))
        self._path = path
        self._hasher = Hasher()
        self.requests = 0
        self.size_bytes = 0

    def add(self, line: bytes) -> None:
        self._file.write(line)
        self._hasher.update(line)
        self.requests += 1
        self.size_bytes += len(line)

    def finish(self) -> str:
        self._file.close()
        sync_file(self._path)

        return self._hasher.digest()


def _written(folder: Path, batch: Batch, rows: Sequence[int], ruling: Ruling) -> SettledBatch:
    """Write refusals and successors; return the settlement, which is the sum of them."""
    places = ruling.places
    numbers = [number for number in ruling.heirs if number in places]
    names = {
        number: successor_id(batch.id, part, len(numbers))
        for part, number in enumerate(numbers, start=1)
    }
    _write_refusals(folder, batch, rows, ruling)

    if len(numbers) == 1 and places.count(numbers[0]) == len(places):
        only = numbers[0]
        successors = [_copied(folder, batch, names[only], ruling.heirs[only])]
    else:
        successors = _divided(folder, batch, ruling, names)

    result = SettledBatch(
        batch=batch.id,
        answered=places.count(ANSWERED),
        failed=places.count(FAILED) + places.count(REFUSED),
        left=sum(successor.requests for successor in successors),
        successors=successors,
    )

    if result.answered + result.failed + result.left != batch.requests:
        message = f"{batch.id}: its {batch.requests} requests do not add up: {result}"
        raise Bug(message)

    return result


def _write_refusals(folder: Path, batch: Batch, rows: Sequence[int], ruling: Ruling) -> None:
    path = folder / f"{batch.id}.refused.jsonl"
    path.unlink(missing_ok=True)

    if REFUSED not in ruling.places:
        return

    with path.open("xb") as file:
        for place, row in enumerate(rows):
            if ruling.places[place] == REFUSED:
                fault = ruling.refusals.get(place, ruling.otherwise)
                file.write(_refusal(wire_id(batch.job, row), fault))

    sync_file(path)


def _refusal(name: str, fault: BatchFault) -> bytes:
    error = {"code": fault.code, "message": fault.message}
    line = {"id": None, "custom_id": name, "response": None, "error": error}

    return msgspec.json.encode(line) + b"\n"


def _copied(folder: Path, batch: Batch, name: BatchId, heir: Heir) -> PlannedBatch:
    """Hand a whole batch on: the same bytes under another name."""
    source = folder / f"{batch.id}.requests.jsonl"
    target = folder / f"{name}.requests.jsonl"
    target.unlink(missing_ok=True)

    try:
        os.link(source, target)
    except OSError:
        # Some network file systems know no second names.
        shutil.copyfile(source, target)
        sync_file(target)

    return _successor(batch, name, heir, batch.requests, batch.size_bytes, batch.digest)


def _divided(
    folder: Path, batch: Batch, ruling: Ruling, names: Mapping[int, BatchId]
) -> list[PlannedBatch]:
    """Write each successor's share of the request lines, in their order.

    Raises `Bug` for lines that are not those that were planned: nobody looks at them again before
    they are sent, and a successor has a digest of its own.
    """
    path = folder / f"{batch.id}.requests.jsonl"

    if digest_of(path, like=batch.digest) != batch.digest:
        message = f"{batch.id}: its request file was changed since it was planned"
        raise Bug(message)

    with ExitStack() as stack:
        files = {
            number: _RequestFile(folder / f"{name}.requests.jsonl", stack)
            for number, name in names.items()
        }
        requests = stack.enter_context(path.open("rb"))

        for place, line in zip(ruling.places, requests, strict=True):
            if place in files:
                files[place].add(line)

        return [
            _successor(
                batch,
                names[number],
                ruling.heirs[number],
                file.requests,
                file.size_bytes,
                file.finish(),
            )
            for number, file in files.items()
        ]


def _successor(  # noqa: PLR0913, PLR0917 (the fields of the one thing it makes)
    batch: Batch, name: BatchId, heir: Heir, requests: int, size_bytes: int, digest: str
) -> PlannedBatch:
    return PlannedBatch(
        id=name,
        endpoint=batch.endpoint,
        model=batch.model,
        requests=requests,
        size_bytes=size_bytes,
        digest=digest,
        attempt=heir.attempt,
        waits=heir.waits,
        reuploads=heir.reuploads,
        halvings=heir.halvings,
        estimated_input=batch.estimated_input * requests // batch.requests,
        estimated_output=batch.estimated_output * requests // batch.requests,
        delay_s=heir.delay_s,
        input_file=heir.input_file,
    )
