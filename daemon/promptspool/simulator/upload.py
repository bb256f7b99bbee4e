"""Streams a multipart upload to disk, whatever its size, in one pass.

Raises `ApiProblem` (*bad data*) and OSError (*environment*); either way no file is left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from promptspool.simulator.problems import ApiProblem, missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_WRITE_BYTES: Final = 1 << 20
"""How much is gathered for one write: each write is a trip to a worker thread."""

_FIELD_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An upload that is complete on disk; *fields* are the other parts, by name."""

    fields: dict[str, str]
    filename: str
    bytes: int
    sha256: str


@dataclass(slots=True, kw_only=True)
class _Form:
    """Collects the parser's callbacks; file bytes wait in *pending* until they are written."""

    fields: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    pending: bytearray = field(default_factory=bytearray)
    part: str = ""
    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)

    def on_part_begin(self) -> None:
        self.part = ""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.header_value += data[start:end]

    def on_header_end(self) -> None:
        if self.header_name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self.header_value))
            self.part = options.get(b"name", b"").decode("utf-8", "replace")

            if self.part == "file":
                self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

        self.header_name.clear()
        self.header_value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.part == "file":
            self.pending += data[start:end]
            return

        kept = self.fields.setdefault(self.part, bytearray())
        kept += data[start:end][:_FIELD_BYTES]


async def receive(
    chunks: AsyncIterator[bytes], *, content_type: str, path: Path, max_bytes: int
) -> Received:
    """Write the part named `file` to *path*.

    Raises `ApiProblem` 400 for a bad form and 413 for more than *max_bytes*, after reading the
    whole request: a refusal sent too early is lost with the connection.
    """
    form = _Form()
    parser = _parser(content_type, form)

    try:
        size, sha256 = await _write(chunks, parser, form, path=path, max_bytes=max_bytes)
        _check(form, size, max_bytes)
    except BaseException as error:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - quick, and must survive a cancel

        if isinstance(error, FormParserError):
            message = "Invalid multipart data."
            raise ApiProblem(400, message) from error

        raise

    fields = {name: value.decode("utf-8", "replace") for name, value in form.fields.items()}
    return Received(fields=fields, filename=form.filename or "", bytes=size, sha256=sha256)


async def _write(
    chunks: AsyncIterator[bytes],
    parser: MultipartParser,
    form: _Form,
    *,
    path: Path,
    max_bytes: int,
) -> tuple[int, str]:
    """Return the size and the SHA-256 of the file; beyond *max_bytes* it only counts."""
    digest = hashlib.sha256()
    size = 0

    async with await anyio.open_file(path, "wb") as file:
        async for chunk in chunks:
            parser.write(chunk)

            # Starlette ends a stream with an empty chunk; that is when the rest is written.
            if chunk and len(form.pending) < _WRITE_BYTES:
                continue

            size += len(form.pending)
            digest.update(form.pending)

            if size <= max_bytes:
                await file.write(bytes(form.pending))

            form.pending.clear()

    parser.finalize()
    return size, digest.hexdigest()


def _parser(content_type: str, form: _Form) -> MultipartParser:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")

    if kind != b"multipart/form-data" or boundary is None:
        raise ApiProblem(400, "The request must be multipart/form-data with a boundary.")

    return MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_part_data": form.on_part_data,
        },
    )


def _check(form: _Form, size: int, max_bytes: int) -> None:
    if form.filename is None:
        raise missing("file")

    if "purpose" not in form.fields:
        raise missing("purpose")

    if not form.filename.endswith(".jsonl"):
        raise ApiProblem(400, "Invalid file format for Batch API. Must be .jsonl", param="file")

    if size > max_bytes:
        message = f"File is too large. Maximum file size is {max_bytes} bytes."
        raise ApiProblem(413, message, param="file")
