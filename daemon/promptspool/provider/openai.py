"""The OpenAI dialect of the Batch API: Files and Batches, as OpenAI and many others speak it.

Decoding is tolerant, since compatible servers leave fields out, send numbers as text, `""` for no
file and `errors` as a bare list (`batch-apis`, sections 2 and 3); only a missing id makes an answer
unusable.
"""

from __future__ import annotations

import codecs
import json
import math
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from promptspool.errors import NotFound, Unavailable
from promptspool.model import RemoteBatch, RemoteStatus
from promptspool.provider.base import BATCH_KEY, Dialect, Page, RemoteFile
from promptspool.provider.problems import MAX_SHOWN, http_date
from promptspool.spool import rename_durably, sync_file
from promptspool.wire import BatchFault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from promptspool.provider.base import Submission
    from promptspool.provider.http import Http

PAGE_SIZE = 100
"""The most that `GET /batches` gives at once (OpenAI API reference, `limit`)."""

YEAR_10000 = 253_402_300_800.0
"""In Unix seconds; no calendar of ours goes further."""

MAX_COUNT = 2**53
"""A greater number is nonsense, and more than SQLite could keep."""

STATUSES: dict[str, RemoteStatus] = {
    **{status.value: status for status in RemoteStatus if status.value not in ("refused", "lost")},
    **dict.fromkeys(
        ("queued", "pending", "pre_schedule", "submitted", "scheduled"), RemoteStatus.VALIDATING
    ),
    **dict.fromkeys(("running", "progress", "processing", "inprogress"), RemoteStatus.IN_PROGRESS),
    **dict.fromkeys(("complete", "success", "succeeded", "done", "ended"), RemoteStatus.COMPLETED),
    **dict.fromkeys(("error",), RemoteStatus.FAILED),
    **dict.fromkeys(("timeout_exceeded",), RemoteStatus.EXPIRED),
    **dict.fromkeys(("canceling", "cancellation_requested", "stopping"), RemoteStatus.CANCELLING),
    **dict.fromkeys(("canceled", "stopped"), RemoteStatus.CANCELLED),
}
"""Status words of the dialect's speakers, in lower case (`batch-apis`, 3.2)."""


class OpenAI:
    """One account behind an OpenAI-shaped API."""

    dialect = Dialect(name="openai", uploads=True, metadata=True, cancels=True, deletes=True)

    def __init__(self, name: str, http: Http) -> None:
        """Take the provider's *name* in the configuration and a pool to its address."""
        self.name = name
        self._http = http

    async def close(self) -> None:
        """Give back its connections."""
        await self._http.close()

    async def upload(self, path: Path, name: str) -> RemoteFile:
        """Send the file at *path* under *name*; it is read as it is sent."""
        with await anyio.to_thread.run_sync(path.open, "rb") as file:
            data, _ = await self._http.json(
                "POST",
                "/files",
                transfer=True,
                data={"purpose": "batch"},
                files={"file": (name, file, "application/jsonl")},
            )

        return _file(data)

    async def create(self, submission: Submission) -> RemoteBatch:
        """Create a batch; see `Provider.create`."""
        data, _ = await self._http.json(
            "POST",
            "/batches",
            json={
                "input_file_id": submission.input_file,
                "endpoint": submission.endpoint,
                "completion_window": submission.completion_window,
                "metadata": submission.metadata,
            },
        )

        return remote_batch(data)

    async def retrieve(self, remote_id: str) -> RemoteBatch:
        """Return how a batch is doing."""
        data, headers = await self._http.json("GET", f"/batches/{remote_id}")

        if "id" not in data and _says_unknown(data.get("error")):
            raise NotFound(f"the provider says with HTTP 200: {json.dumps(data)[:MAX_SHOWN]}")

        return replace(remote_batch(data), answered_at=http_date(headers.get("date")))

    async def page(self, after: str | None) -> Page:
        """Return up to a hundred batches, those behind *after*."""
        parameters = {"limit": str(PAGE_SIZE)} | ({"after": after} if after else {})
        data, headers = await self._http.json("GET", "/batches", params=parameters)
        items = data.get("data", ())
        items = [] if items is None else items

        if not isinstance(items, list):
            raise Unavailable("the list of batches has no data")

        return Page(
            batches=[remote_batch(item) for item in items if _may_be_ours(item)],
            has_more=_has_more(data, items),
            answered_at=http_date(headers.get("date")),
        )

    async def cancel(self, remote_id: str) -> RemoteBatch:
        """Ask for the end of a batch."""
        data, _ = await self._http.json("POST", f"/batches/{remote_id}/cancel")

        return remote_batch(data)

    async def download(self, file: str, path: Path) -> None:
        """Put the content of *file* to *path*, durable and whole or not at all.

        Raises `Unavailable` if fewer bytes came than were announced (F19), or something else than
        JSON lines, a proxy's page for instance; `ProviderError` for more than `max_download`. What
        the file says is the user's, and is kept as it came.
        """
        part = path.with_name(path.name + ".part")

        try:
            with await anyio.to_thread.run_sync(part.open, "wb") as target:
                await self._http.download(f"/files/{file}/content", partial(_put, target))

            await anyio.to_thread.run_sync(_keep, part, path)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_discard, part)

            raise

    async def file(self, file: str) -> RemoteFile:
        """Return what is known of a file; raises `NotFound`."""
        data, _ = await self._http.json("GET", f"/files/{file}")

        return _file(data)

    async def files(self) -> Sequence[RemoteFile]:
        """Return up to 10,000 batch input files, the youngest first."""
        data, _ = await self._http.json(
            "GET", "/files", params={"purpose": "batch", "order": "desc", "limit": "10000"}
        )
        items = data.get("data")

        return [_file(item) for item in items] if isinstance(items, list) else []

    async def delete_file(self, file: str) -> None:
        """Delete a file; one that is gone already counts as deleted."""
        try:
            await self._http.json("DELETE", f"/files/{file}")
        except NotFound:
            return


def _put(target: BinaryIO, chunk: bytes) -> None:
    """Write a piece of a file, without the mark that some begin UTF-8 with."""
    target.write(chunk if target.tell() else chunk.removeprefix(codecs.BOM_UTF8))


def _discard(part: Path) -> None:
    """Give a full disk its room back; what went wrong first is what is told."""
    with suppress(OSError):
        part.unlink(missing_ok=True)


def _is_lines_of_objects(path: Path) -> bool:
    """Tell whether a file is blank or has an answer near its head, unlike a proxy's page.

    It need not be the first line: one bad line must not spoil the good ones behind it (F24).
    """
    with path.open("rb") as file:
        start = file.read(65_536).lstrip()

    return not start or any(
        line.startswith(b"{") and (number == 0 or b'"custom_id"' in line)
        for number, line in enumerate(start.split(b"\n"))
    )


def _keep(part: Path, path: Path) -> None:
    """Give a whole file its name; raises `Unavailable` for one that is no JSON lines."""
    if not _is_lines_of_objects(part):
        raise Unavailable(f"what came for {path.name} is no JSON lines")

    sync_file(part)
    rename_durably(part, path)


def remote_batch(data: object) -> RemoteBatch:
    """Return a Batch object in our words; raises `Unavailable` for one without an id."""
    if not isinstance(data, dict) or not isinstance(data.get("id"), str) or not data["id"]:
        raise Unavailable("the answer is no batch")

    raw_status = str(data.get("status") or "unknown")
    counts = data.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    metadata = data.get("metadata")

    return RemoteBatch(
        id=data["id"],
        status=STATUSES.get(raw_status.lower(), RemoteStatus.UNKNOWN),
        raw_status=raw_status,
        metadata={str(key): str(value) for key, value in metadata.items()}
        if isinstance(metadata, dict)
        else {},
        input_file=_name(data.get("input_file_id")),
        output_file=_name(data.get("output_file_id")),
        error_file=_name(data.get("error_file_id")),
        created_at=_time(data.get("created_at")),
        ended_at=_ended_at(data),
        total=_count(counts.get("total")),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        errors=faults(data.get("errors")),
    )


def _has_more(data: dict[str, Any], items: list[Any]) -> bool | None:
    said = data.get("has_more")

    return False if not items else said if isinstance(said, bool) else None


def _says_unknown(error: object) -> bool:
    """Tell whether an error that came as a success says that there is no such batch (F16)."""
    said = json.dumps(error).lower()

    return any(words in said for words in ("not found", "not_found", "no such", "does not exist"))


def _may_be_ours(item: object) -> bool:
    """Tell whether an entry of a list deserves a look: one that names nothing is a stranger's."""
    return not isinstance(item, dict) or bool(item.get("id")) or BATCH_KEY in str(item)


def faults(errors: object) -> str | None:
    """Return a batch's `errors` as a JSON array of `wire.BatchFault`, None if there are none.

    It may be the documented list object, a bare list (F28), or a list of texts.
    """
    items = errors.get("data") if isinstance(errors, dict) else errors

    if not isinstance(items, list) or not items:
        return None

    return json.dumps([msgspec.to_builtins(_fault(item)) for item in items])


def _fault(item: object) -> BatchFault:
    if not isinstance(item, dict):
        return BatchFault(message=str(item))

    line = item.get("line")

    return BatchFault(
        code=_name(item.get("code")),
        message=_name(item.get("message")),
        line=_count(line) if line is not None else None,
        param=_name(item.get("param")),
    )


def _file(data: object) -> RemoteFile:
    if not isinstance(data, dict) or not isinstance(data.get("id"), str) or not data["id"]:
        raise Unavailable("the answer is no file")

    size = data.get("bytes")

    return RemoteFile(
        id=data["id"],
        name=str(data.get("filename") or ""),
        size_bytes=None if size is None else _count(size),
        created_at=_time(data.get("created_at")),
    )


def _ended_at(data: dict[str, Any]) -> float | None:
    for end in ("completed_at", "failed_at", "expired_at", "cancelled_at"):
        at = _time(data.get(end))

        if at is not None:
            return at

    return None


def _name(value: object) -> str | None:
    """Return a text; `""` is none (F8)."""
    return str(value) if value not in (None, "") else None


def _count(value: object) -> int:
    """Return a number that may have come as text; 0 for what is none."""
    if type(value) is int and 0 <= value <= MAX_COUNT:  # as most say it, and most of a page
        return value

    try:
        return min(max(int(float(str(value))), 0), MAX_COUNT)
    except (ValueError, OverflowError):
        return 0


def _time(value: object) -> float | None:
    """Return Unix seconds from a number, a number as text, or ISO 8601; None for what is none.

    Nor is a time beyond the year 9999, milliseconds for instance: nobody could show it.
    """
    if value is None or value == "":
        return None

    if type(value) is int and 0 <= value < YEAR_10000:  # as for `_count`
        return float(value)

    try:
        at = float(str(value))
    except ValueError:
        at = _iso_time(str(value))

    return at if 0.0 <= at < YEAR_10000 else None


def _iso_time(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return math.nan
