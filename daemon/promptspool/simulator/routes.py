"""The routes of the API: from an HTTP request to the store and the batches, and back.

Raises `ApiProblem`, which the gate around each route turns into a response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import msgspec
from starlette.responses import Response, StreamingResponse

from promptspool.simulator.faults import BatchFault, Call, Fault, Faults, FileFault, Route
from promptspool.simulator.ledger import Ledger, Upload
from promptspool.simulator.orders import batch_order, file_retention, metadata_of, page
from promptspool.simulator.problems import ApiProblem, bad_value, reply
from promptspool.simulator.upload import receive
from promptspool.simulator.wire import BatchList, FileDeleted, FileList

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request

    from promptspool.simulator.batches import BatchBook
    from promptspool.simulator.files import FileStore
    from promptspool.simulator.settings import SimulatorSettings

_CHUNK_BYTES: Final = 1 << 18


class FileRoutes:
    """`/v1/files`."""

    def __init__(
        self,
        *,
        files: FileStore,
        batches: BatchBook,
        faults: Faults,
        ledger: Ledger,
        settings: SimulatorSettings,
    ) -> None:
        """Serve *files*; *batches* put more of them there as they end."""
        self._files = files
        self._faults = faults
        self._batches = batches
        self._ledger = ledger
        self._settings = settings

    async def create(self, request: Request) -> Response:
        """Store an upload."""
        path = self._files.new_path()
        received = await receive(
            request.stream(),
            content_type=request.headers.get("content-type", ""),
            path=path,
            max_bytes=self._settings.max_bytes,
        )

        try:
            if received.fields["purpose"] != "batch":
                raise bad_value("purpose", "supported values are: 'batch'.")

            kept_s = file_retention(received.fields)
        except ApiProblem:
            path.unlink()
            raise

        stored = self._files.add(
            path,
            filename=received.filename,
            purpose="batch",
            sha256=received.sha256,
            kept_s=kept_s,
            fate=self._faults.take_file(Call(route="files.create")),
        )
        self._ledger.uploads.append(
            Upload(
                file_id=stored.shown.id,
                filename=received.filename,
                bytes=received.bytes,
                sha256=received.sha256,
            )
        )
        return reply(stored.shown)

    async def list(self, request: Request) -> Response:
        """List files, newest first unless asked otherwise."""
        query = request.query_params
        order, purpose = query.get("order", "desc"), query.get("purpose")
        wanted = page(query, default=10_000, longest=10_000)

        if order not in {"asc", "desc"}:
            raise bad_value("order", "supported values are: 'asc' and 'desc'.")

        await self._batches.finish_due()
        shown = [file for file in self._files.newest_first() if purpose in {None, file.purpose}]
        data, has_more = wanted.cut(reversed(shown) if order == "asc" else shown, "File")
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return reply(FileList(data=data, first_id=ends[0], last_id=ends[1], has_more=has_more))

    async def get(self, request: Request) -> Response:
        """Return one file object."""
        return reply(self._files.get(request.path_params["id"]).shown)

    async def content(self, request: Request) -> Response:
        """Stream the bytes of a file."""
        stored = self._files.get(request.path_params["id"])
        headers = {
            "content-length": str(stored.shown.bytes),
            "content-disposition": f'attachment; filename="{stored.shown.filename}"',
        }
        return StreamingResponse(
            _chunks(stored.path), headers=headers, media_type="application/octet-stream"
        )

    async def delete(self, request: Request) -> Response:
        """Delete a file."""
        file_id = request.path_params["id"]
        self._files.delete(file_id)
        self._ledger.deletions.append(file_id)
        return reply(FileDeleted(id=file_id))


class BatchRoutes:
    """`/v1/batches`."""

    def __init__(self, batches: BatchBook) -> None:
        """Serve *batches*."""
        self._batches = batches

    async def create(self, request: Request) -> Response:
        """Accept a batch."""
        return reply(await self._batches.create(batch_order(await request.body())))

    async def list(self, request: Request) -> Response:
        """List batches, newest first."""
        wanted = page(request.query_params, default=20, longest=100)
        ids, has_more = self._batches.listed(wanted)
        data = [await self._batches.seen(remote_id) for remote_id in ids]
        ends = (ids[0], ids[-1]) if ids else (None, None)
        return reply(BatchList(data=data, first_id=ends[0], last_id=ends[1], has_more=has_more))

    async def get(self, request: Request) -> Response:
        """Return one batch."""
        return reply(await self._batches.retrieve(request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        """Begin to cancel a batch."""
        return reply(await self._batches.cancel(request.path_params["id"]))

    async def describe(self, request: Request, route: Route) -> Call:
        """Return what a fault may match on."""
        remote_id = request.path_params.get("id")

        if route == "batches.create":
            return Call(route=route, metadata=metadata_of(await request.body()))

        metadata = None if remote_id is None else self._batches.metadata(remote_id)
        return Call(route=route, remote_id=remote_id, metadata=metadata)


class ControlRoutes:
    """`/_simulator`: the script and the ledger, for a simulator in a process of its own."""

    def __init__(self, faults: Faults, ledger: Ledger) -> None:
        """Serve both."""
        self._faults = faults
        self._ledger = ledger

    async def arm(self, request: Request) -> Response:
        """Arm one fault; its `type` is `exchange`, `batch` or `file`."""
        try:
            fault = msgspec.json.decode(await request.body(), type=Fault | BatchFault | FileFault)
        except msgspec.DecodeError as error:
            return reply({"error": {"message": str(error)}}, 400)

        match fault:
            case Fault():
                self._faults.add(fault)
            case BatchFault():
                self._faults.add_batch(fault)
            case FileFault():
                self._faults.add_file(fault)

        return reply({"armed": fault})

    async def clear(self, request: Request) -> Response:  # noqa: ARG002 - Starlette's signature
        """Disarm all faults."""
        self._faults.clear()
        return reply({"armed": None})

    async def ledger(self, request: Request) -> Response:  # noqa: ARG002 - Starlette's signature
        """Return the ledger."""
        return reply(self._ledger.summary())


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(_CHUNK_BYTES):
            yield chunk
