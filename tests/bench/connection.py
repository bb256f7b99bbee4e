"""HTTP/1.1 as clients of the Batch API speak it, read with as few copies as Python allows.

A connection answers one request after the other. A body has a Content-Length; that of an upload is
a form whose last part is the file, and goes to disk as it comes. Anything else is refused with 400.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK_BYTES = 1 << 18
MAX_HEAD_BYTES = 1 << 16


@dataclass(slots=True)
class Upload:
    """The file part of a form in the coming."""

    path: Path
    boundary: bytes
    left: int
    """Bytes of the body that are still to come."""
    filename: str = ""
    size_bytes: int = 0
    descriptor: int = -1
    head: bytearray = field(default_factory=bytearray)
    tail: bytes = b""

    def feed(self, data: memoryview) -> None:
        """Take a piece of the body."""
        if self.descriptor < 0:
            self.head += data
            self._begin()
        else:
            self._write(data)

    def _begin(self) -> None:
        """Look for the beginning of the file, behind the fields and the head of its part."""
        start = self.head.find(b'filename="')
        end = self.head.find(b"\r\n\r\n", start) if start >= 0 else -1

        if end < 0:
            if len(self.head) > MAX_HEAD_BYTES:
                raise ValueError("the form has no file at its end")

            return

        self.filename = self.head[start + 10 : self.head.index(b'"', start + 10)].decode()
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        rest = memoryview(bytes(self.head[end + 4 :]))
        self.left -= end + 4
        self._write(rest)

    def _write(self, data: memoryview) -> None:
        """Write what is of the file, and keep what is of the line that ends the form."""
        of_file = max(0, min(len(data), self.left - len(self.boundary) - 8))

        if of_file:
            os.write(self.descriptor, data[:of_file])

        self.size_bytes += of_file
        self.left -= len(data)
        self.tail += data[of_file:]

    def finish(self) -> None:
        """Close the file; raises `ValueError` for a form that does not end behind it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)

        if self.tail != b"\r\n--%s--\r\n" % self.boundary:
            raise ValueError("the form does not end with its file")


@dataclass(slots=True, kw_only=True)
class Received:
    """A whole request."""

    method: str
    target: str
    began_at: float
    body: bytes = b""
    upload: Upload | None = None


@dataclass(slots=True, kw_only=True)
class Reply:
    """An answer: JSON, or a file as it is."""

    body: bytes = b""
    file: Path | None = None
    status: int = 200
    on_sent: Callable[[], None] = lambda: None


class Connection(asyncio.BufferedProtocol):
    """One client."""

    def __init__(
        self, handle: Callable[[Received, Callable[[Reply], None]], None], folder: Path
    ) -> None:
        """Hand requests to *handle*, which answers each once; uploads go into *folder*."""
        self._handle = handle
        self._folder = folder
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._head = bytearray()
        self._left = 0
        self._request: Received | None = None
        self._body = bytearray()
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Leave what was half there."""
        upload = None if self._request is None else self._request.upload

        if upload is not None and upload.descriptor >= 0 and self._left:
            os.close(upload.descriptor)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Return the block to read into."""
        return self._block

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        data = self._block[:nbytes]

        try:
            if self._request is None:
                data = self._begun(data)

            if self._request is not None:
                self._take(data)
        except ValueError as error:
            self._send(Reply(body=b'{"error":{"message":"%s"}}' % str(error).encode(), status=400))
            self._transport.close()

    def _begun(self, data: memoryview) -> memoryview:
        """Read a head; return what came behind it, of the body."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")

        if end < 0:
            return data[:0]

        first, *lines = bytes(self._head[:end]).split(b"\r\n")
        method, target, _ = first.decode().split(" ")
        fields = dict(line.decode("latin-1").lower().split(":", 1) for line in lines)
        self._left = int(fields.get("content-length", "0"))
        self._request = Received(method=method, target=target, began_at=time.monotonic())
        kind = next((one for one in lines if one.lower().startswith(b"content-type")), b"")

        if "transfer-encoding" in fields:
            raise ValueError("a body needs a Content-Length here")

        if b"boundary=" in kind:
            path = self._folder / f"upload-{secrets.token_hex(8)}"
            boundary = kind.partition(b"boundary=")[2].strip().strip(b'"')
            self._request.upload = Upload(path, boundary, self._left)

        if "100-continue" in fields.get("expect", ""):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

        rest = memoryview(bytes(self._head[end + 4 :]))
        self._head.clear()

        return rest

    def _take(self, data: memoryview) -> None:
        request = self._request
        assert request is not None
        self._left -= len(data)

        if request.upload is not None:
            request.upload.feed(data)
        else:
            self._body += data

        if self._left <= 0:
            if request.upload is not None:
                request.upload.finish()

            request.body = bytes(self._body)
            self._body.clear()
            self._request = None
            self._handle(request, self._send)

    def _send(self, reply: Reply) -> None:
        if self._transport.is_closing():
            return

        size = len(reply.body) if reply.file is None else reply.file.stat().st_size
        kind = "application/json" if reply.file is None else "application/octet-stream"
        head = (
            f"HTTP/1.1 {reply.status} X\r\nDate: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
        )
        self._transport.write(head.encode() + reply.body)

        if reply.file is None:
            reply.on_sent()
        else:
            self._sending = asyncio.create_task(self._send_file(reply.file, reply.on_sent))

    async def _send_file(self, path: Path, on_sent: Callable[[], None]) -> None:
        with path.open("rb") as file:
            await asyncio.get_running_loop().sendfile(self._transport, file)

        on_sent()
