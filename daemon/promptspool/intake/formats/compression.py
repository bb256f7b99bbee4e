"""Compression: `.gz` and `.zst` taken off while reading, never further than a file may expand.

Streamed: about two blocks are held, and what the format itself looks back on: 32 kB for gzip, for
Zstandard what the file asks for, up to 128 MB (`zstd --long=27`); a file that asks for more is
refused before it gets it. Raises `BadInput` for a broken or an expanding file (bad data) and lets
`OSError` through (environment).
"""

from __future__ import annotations

import io
import sys
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol

from promptspool.errors import BadInput

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _typeshed import WriteableBuffer

BLOCK_BYTES = 1 << 20

BOMB_FREE_BYTES = 16 << 20
"""What any file may expand to, however small it is: short prompts repeat themselves."""

# The most that `zstd` itself takes without being told (zstd(1), --long); a window of 2 GB is legal.
_MAX_WINDOW_LOG = 27

# Small, since what is behind the end of a member is copied for each member in it.
_PACKED_BLOCK_BYTES = 1 << 16

_GZIP_BITS = 16 + zlib.MAX_WBITS  # zlib manual, inflateInit2: only gzip, header and checksum read


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How far a dropped file may expand."""

    max_expanded: int
    """Bytes in all."""
    max_ratio: int
    """Times its own size, once `BOMB_FREE_BYTES` came out."""

    def room(self, packed_bytes: int) -> int:
        """Return how many bytes may come out of a file of *packed_bytes*."""
        return min(self.max_expanded, max(BOMB_FREE_BYTES, self.max_ratio * packed_bytes))


def too_far(name: str, *, packed_bytes: int, expanded_bytes: int, caps: Caps) -> BadInput:
    """Return the complaint about a file that expands to *expanded_bytes* or more."""
    ratio = expanded_bytes // max(packed_bytes, 1)
    reason = (
        f"{name} has {packed_bytes:,} bytes and expands to {expanded_bytes:,} or more, {ratio:,} "
        f"times as much; split it, or if it is to be trusted raise intake.max_expanded "
        f"({caps.max_expanded:,}) or intake.max_ratio ({caps.max_ratio:,})"
    )

    return BadInput(reason, code="expands_too_far")


def broken(name: str, what: str) -> BadInput:
    """Return the complaint about a compressed file or an archive that cannot be unpacked."""
    return BadInput(f"{name} is broken: {what}; make it anew and drop it again", code=BROKEN)


BROKEN = "broken_archive"


class _Decoder(Protocol):
    """What `zstd.ZstdDecompressor` and `_Gunzip` have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """One member of a gzip file."""

    def __init__(self) -> None:
        self._inflating = zlib.decompressobj(_GZIP_BITS)

    @property
    def eof(self) -> bool:
        return self._inflating.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflating.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflating.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflating.decompress(data or self._inflating.unconsumed_tail, max_length)


def _unzstd() -> _Decoder:
    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapping:
    """One way to compress a file."""

    name: str
    magics: tuple[bytes, ...]
    decoder: Callable[[], _Decoder]
    padding: bytes
    """What may follow the last member and means nothing."""


# RFC 8878, 3.1: the frame's magic number, and the sixteen of frames to be skipped (pzstd writes one
# first). Zeros after a gzip file are what tapes and disks fill blocks with (gzip(1)).
WRAPPINGS = {
    ".gz": Wrapping(name="gzip", magics=(b"\x1f\x8b",), decoder=_Gunzip, padding=b"\0"),
    ".zst": Wrapping(
        name="Zstandard",
        magics=(b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))),
        decoder=_unzstd,
        padding=b"",
    ),
}
"""By extension, lower case."""


def wrapping_suffix(head: bytes) -> str | None:
    """Return the extension for a file that begins with *head*, None if it is not compressed."""
    for suffix, wrapping in WRAPPINGS.items():
        if head.startswith(wrapping.magics):
            return suffix

    return None


def open_expanding(path: Path, suffix: str, *, name: str, caps: Caps) -> IO[bytes]:
    """Open the content of a compressed file, to be read once through and closed by the caller.

    *suffix* is a key of `WRAPPINGS`, *name* is for people. Reading raises `BadInput`.
    """
    file = path.open("rb", buffering=0)

    return io.BufferedReader(_Expanding(file, WRAPPINGS[suffix], name=name, caps=caps), BLOCK_BYTES)


class _Expanding(io.RawIOBase):
    """The content of a compressed file, of all its members one after another."""

    def __init__(self, file: io.FileIO, wrapping: Wrapping, *, name: str, caps: Caps) -> None:
        self._file = file
        self._wrapping = wrapping
        self._name = name
        self._caps = caps
        self._packed_bytes = file.seek(0, io.SEEK_END)
        self._room = caps.room(self._packed_bytes)
        self._expanded_bytes = 0
        self._decoder: _Decoder | None = wrapping.decoder()
        self._pending = b""

        file.seek(0)

    def close(self) -> None:
        """Close the compressed file, too."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill some of *buffer*; return how much, 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._next(min(len(view), BLOCK_BYTES)) if len(view) else b""
        self._expanded_bytes += len(data)

        if self._expanded_bytes > self._room:
            raise too_far(
                self._name,
                packed_bytes=self._packed_bytes,
                expanded_bytes=self._expanded_bytes,
                caps=self._caps,
            )

        view[: len(data)] = data

        return len(data)

    def _next(self, max_bytes: int) -> bytes:
        """Return some content, empty only at the end."""
        while self._decoder is not None:
            try:
                data, is_fed = self._step(self._decoder, max_bytes)
            except (zlib.error, zstd.ZstdError, EOFError, ValueError, MemoryError) as error:
                raise self._broken(_words(error)) from error

            if self._decoder.eof:
                self._begin_next(self._decoder)
            elif not data and not is_fed:
                raise self._broken("it ends too early")

            if data:
                return data

        return b""

    def _step(self, decoder: _Decoder, max_bytes: int) -> tuple[bytes, bool]:
        """Let *decoder* run once; return what came out, and whether anything went in."""
        if not decoder.needs_input:
            return decoder.decompress(b"", max_bytes), False

        data = self._pending or self._file.read(_PACKED_BLOCK_BYTES) or b""
        self._pending = b""

        return decoder.decompress(data, max_bytes), bool(data)

    def _begin_next(self, decoder: _Decoder) -> None:
        """Go on to the next member, if there is one."""
        padding = self._wrapping.padding
        rest = decoder.unused_data.lstrip(padding) if padding else decoder.unused_data

        while not rest and (block := self._file.read(_PACKED_BLOCK_BYTES)):
            rest = block.lstrip(padding) if padding else block

        self._pending = rest
        self._decoder = self._wrapping.decoder() if rest else None

    def _broken(self, what: str) -> BadInput:
        return broken(self._name, f"{what}, after {self._expanded_bytes:,} bytes of content")


def _words(error: Exception) -> str:
    """Return what a library found wrong, without its preamble."""
    text = str(error).rsplit(": ", 1)[-1] or type(error).__name__

    if "memory" in text.lower():
        return f"it wants more than {1 << _MAX_WINDOW_LOG:,} bytes of memory to be unpacked"

    return text[:1].lower() + text[1:]
