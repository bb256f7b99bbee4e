"""Parts: the images that a row names, beside its prompt.

A URL is the provider's to fetch; anything else is the name of a file, which is looked for in the
`Files` it was given and nowhere else. Pure but for those. Holds the images of one request: 20 MB of
them took 63 MB until the line was made, 48 MB took 214 MB (measured, Python 3.11). Raises
`BadInput` (bad data).
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.brought import array_in_text
from promptspool.intake.values import described, is_blank, quoted, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.intake.rows import Columns, Files

MAX_IMAGE_BYTES = 20_000_000
"""One inlined image (OpenAI images guide, until 2025: 20 MB an image; others still say so)."""

MAX_INLINED_BYTES = 50_000_000
"""All inlined images of a request (OpenAI images guide, 2025: 50 MB).

Today's allows 512 MB, more than any batch file may have.
"""

MAX_IMAGES = 1_500
"""Images of a request (OpenAI images guide, 2026)."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_WEB = re.compile(r"https?://[^\s/?#\x00-\x1f\x7f][^\s\x00-\x1f\x7f]*", re.IGNORECASE)
_DATA = re.compile(
    r"data:image/[a-z0-9.+-]+(?:;[^;,]*)?;base64,[A-Za-z0-9+/]+={0,2}", re.IGNORECASE
)

_TAKEN = "PNG, JPEG, GIF or WebP"

_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)

# For people only: what is no image that providers take, by how it begins.
_OTHERS = (
    (b"%PDF-", "a PDF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"<svg", "an SVG"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
)


def media_type(content: bytes) -> str | None:
    """Return what kind of image *content* is by its first bytes, None if it is none we take."""
    for magic, kind in _KINDS:
        if content.startswith(magic):
            return kind

    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def image_urls(columns: Columns, names: Sequence[str], files: Files | None) -> list[bytes]:
    """Return the URLs of a row's images, in the order of *names*, as JSON strings.

    A file's is a data URL of its content.
    """
    urls: list[bytes] = []
    room = MAX_INLINED_BYTES

    for key, name in _named(columns, names):
        if len(urls) == MAX_IMAGES:
            reason = f"the row has more than {MAX_IMAGES:,} images; spread them over several rows"
            raise BadInput(reason, code="too_many_images", key=key)

        if _is_url(name, key):
            urls.append(msgspec.json.encode(name))
            continue

        content = _content(name, key, files, min(MAX_IMAGE_BYTES, room))
        room -= len(content)
        urls.append(_data_url(content, name, key))

    return urls


def _named(columns: Columns, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return what a row says its images are: where it says so, and a URL or the name of a file."""
    found: list[tuple[str, str]] = []

    for column in names:
        raw = columns.get(column, b"")

        if is_blank(raw):
            continue

        raw = array_in_text(raw, key=column) if raw.startswith(b'"') else raw

        if raw.startswith(b"["):
            entries = msgspec.json.decode(raw, type=list[msgspec.Raw])
            keyed = [(f"{column}[{n}]", bytes(entry)) for n, entry in enumerate(entries)]
        else:
            keyed = [(column, raw)]

        for key, entry in keyed:
            if not entry.startswith(b'"'):
                advice = "write a URL, the name of a file, or an array of those"
                raise _fault(key, described(entry), advice)

            found.append((key, text_of(entry).strip()))

    return found


def _fault(key: str, found: str, advice: str) -> BadInput:
    return BadInput(f"{key} is {found}; {advice}", code="invalid_image", key=key)


def _is_url(name: str, key: str) -> bool:
    """Tell a URL that can be passed on from a file's name; raises `BadInput` for any other URL."""
    scheme = _SCHEME.match(name)

    if scheme is None:
        return False

    match scheme[1].lower():
        case "http" | "https":
            if _WEB.fullmatch(name) is None:
                raise _fault(key, f"the broken URL {quoted(name)}", "write it out in full")
        case "data":
            if _DATA.fullmatch(name) is None:
                advice = "write data:image/png;base64, and the image in base64"
                raise _fault(key, f"the URL {quoted(name)}, which holds no image", advice)
        case other:
            found = f"a URL of the kind {quoted(other + ':')}"
            raise _fault(key, found, "write one of https: or data:, or the name of a file")

    return True


def _content(name: str, key: str, files: Files | None, max_bytes: int) -> bytes:
    if not name:
        raise _fault(key, "empty", "write a URL or the name of a file, or leave it out")

    if files is None:
        reason = (
            f"{key} is the file name {quoted(name)}, and no files came with it; drop prompts and "
            f'images together in a .zip, or write files = "FOLDER" in the profile'
        )
        raise BadInput(reason, code="no_files", key=key)

    try:
        return files.read(name, max_bytes=max_bytes)
    except BadInput as error:
        raise BadInput(f"{key}: {error.reason}", code=error.code, key=key) from error


def _data_url(content: bytes, name: str, key: str) -> bytes:
    kind = media_type(content)

    if kind is None:
        found = f"the file {quoted(name)}, which is {_guessed(content)}"
        raise _fault(key, found, f"name a {_TAKEN}")

    return b'"data:%s;base64,%s"' % (kind.encode(), binascii.b2a_base64(content, newline=False))


def _guessed(content: bytes) -> str:
    """Name for people what is no image that providers take."""
    if not content:
        return "empty"

    start = content[:256].lstrip()

    for magic, kind in _OTHERS:
        if content.startswith(magic) or start[: len(magic)].lower() == magic.lower():
            return kind

    if content[4:8] == b"ftyp":
        return "a HEIC, AVIF or video"

    return "text" if _is_text(content) else f"no image (it begins with 0x{content[:4].hex()})"


def _is_text(content: bytes) -> bool:
    try:
        return content[:64].decode(errors="strict").isprintable()
    except UnicodeDecodeError:
        return False
