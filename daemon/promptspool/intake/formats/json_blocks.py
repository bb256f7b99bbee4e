"""JSON blocks: lines that are objects of one shape are decoded together.

They are plain if putting their values into the frame of the first line (`{"id": ` `, "prompt": `
`}` and a line end) gives the same bytes again. That leaves no room for blanks elsewhere, blank
lines, keys in another order or twice, or values that go on over lines. All else is for those who
look at each line. Pure; raises nothing.
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.intake.rows import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from promptspool.intake.formats.lines import Piece

_MAX_KEYS = 64
"""Of a block: a class is made for each set of keys, and no table of prompts has so many."""

_MAX_BYTES = 1 << 22
"""A larger piece is one long line; those are not held twice."""

_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])

# Behind a colon and a comma: as Python writes it, and as JavaScript and jq do.
_STYLES = ((b": ", b", "), (b":", b","))


class _Shape(NamedTuple):
    """How lines of one set of keys are decoded."""

    decoder: msgspec.json.Decoder[object]
    getters: list[Callable[[object], msgspec.Raw]]
    """One for each key."""


def block_of(piece: Piece, *, max_bytes: int) -> Block | None:
    """Return the rows of a piece, None unless all of its lines are plain and of one shape.

    *max_bytes* is what a line may have.
    """
    data = piece.data.removeprefix(codecs.BOM_UTF8) if piece.line == 1 else piece.data
    is_open = not data.endswith(b"\n")
    data += b"\n" * is_open

    if len(piece.data) > min(max_bytes, _MAX_BYTES) or not _is_utf8(data):
        return None

    first = data[: data.find(b"\n") + 1]

    try:
        members = _objects.decode(first)
        frame = _frame(first, members)

        if frame is None:
            return None

        shape = _shape(tuple(members))
        found = shape.decoder.decode_lines(data)
    except (msgspec.DecodeError, RecursionError):
        return None

    columns = [list(map(getter, found)) for getter in shape.getters]

    if piece.ends + is_open != len(found) or _framed(frame, columns) != data:
        return None

    lines = range(piece.line, piece.line + len(found))

    return Block(lines, dict(zip(members, columns, strict=True)), is_ascii=piece.data.isascii())


def _is_utf8(data: bytes) -> bool:
    """Tell whether *data* is UTF-8, which the decoder does not look at in what it passes on."""
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _frame(first: bytes, members: dict[str, msgspec.Raw]) -> list[bytes] | None:
    """Return what is before each value of the line *first*, and after the last; None if odd."""
    if not 0 < len(members) <= _MAX_KEYS:
        return None

    end = b"}\r\n" if first.endswith(b"\r\n") else b"}\n"
    columns = [[value] for value in members.values()]

    for colon, comma in _STYLES:
        keys = [msgspec.json.encode(name) + colon for name in members]
        frame = [b"{" + keys[0], *(comma + key for key in keys[1:]), end]

        # What is escaped in a name cannot be the name of a field.
        if b"\\" not in b"".join(keys) and _framed(frame, columns) == first:
            return frame

    return None


def _framed(frame: list[bytes], columns: Sequence[Sequence[msgspec.Raw]]) -> bytes:
    """Return the lines that *frame* makes of the values in *columns*."""
    step, count = 2 * len(columns), len(columns[0])
    texts: list[bytes | msgspec.Raw] = [frame[-1] + frame[0]] * (step * count)
    texts[0] = frame[0]

    for place, column in enumerate(columns):
        texts[2 * place + 1 :: step] = column

        if place:
            texts[2 * place :: step] = [frame[place]] * count

    texts.append(frame[-1])

    return b"".join(texts)


@lru_cache(maxsize=16)
def _shape(names: tuple[str, ...]) -> _Shape:
    fields = [f"value_{place}" for place in range(len(names))]
    kind = msgspec.defstruct(
        "Line",
        [(field, msgspec.Raw) for field in fields],
        rename=dict(zip(fields, names, strict=True)),
        forbid_unknown_fields=True,
        gc=False,
    )

    return _Shape(msgspec.json.Decoder(kind), [attrgetter(field) for field in fields])
