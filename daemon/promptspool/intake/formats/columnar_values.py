"""Columnar values: a column of Arrow becomes JSON texts, one for each of its rows.

Column by column and not row by row, which is what makes it fast. Pure; never loads pyarrow, but is
only ever given its arrays. Raises what pyarrow raises on an array that is broken.
"""

from __future__ import annotations

import base64
import re
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

_FRACTION_END = re.compile(r"(\.[0-9]*?)0+(?=$|[Z+-])")
_ZONE_END = re.compile(r"([+-][0-9]{2})([0-9]{2})$")

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAME = re.compile("[a-z0-9_]+")


class Odd(Exception):
    """A value has no JSON; the message goes on where the name of its column ends."""


class _Unfit:
    """Stands for a value that has none; of a plain class, as msgspec knows how to write others."""

    def __init__(self, what: str) -> None:
        self.what = what


def _refuse(value: object) -> object:
    raise Odd(value.what if isinstance(value, _Unfit) else f"is a {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_refuse)
_json = msgspec.json.Decoder(msgspec.Raw)


def json_of_column(array: Any) -> list[bytes]:
    """Return the values of *array*, a column, as JSON; raises `Odd` if one has none.

    Lists are arrays, structs and maps objects, moments ISO 8601, decimals strings with all their
    digits. Binary is the text that it is in UTF-8, else base64. What is no number (NaN, infinity)
    is null, as pandas writes NaN for what is missing.
    """
    encode, values = _encoder.encode, _plain(array)

    try:
        return [encode(value) for value in values]
    except (TypeError, ValueError) as error:
        raise Odd(str(error)) from error
    except RecursionError:
        raise Odd("is nested too deeply") from None


def is_plain(array: Any) -> bool:
    """Tell whether `json_of_column` would return a text for each value of *array*, without it.

    False is no statement: most kinds have to be looked at value by value.
    """
    kind = str(array.type)

    if kind not in _BINARY_OF:
        return kind in _SIMPLE

    try:
        array.validate(full=True)
    except ValueError:
        return False

    return True


def most_json_bytes(array: Any) -> int:
    """Return what the JSON of a plain *array* can come to at most: all of it escapes, say."""
    return int(_LONGEST_ESCAPE * array.nbytes + _LONGEST_NUMBER * len(array))


def _plain(array: Any) -> Sequence[Any]:
    """Return the values of *array* as what JSON is made of, or `_Unfit`."""
    # A type begins with its name, what it is made of comes after: `list<element: string>`.
    name = _NAME.match(str(array.type))
    maker = _MAKERS.get(name[0] if name else "")

    return list(array.to_pylist()) if maker is None else maker(array)


def _texts(array: Any) -> Sequence[Any]:
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [None if value is None else _text(value) for value in _bytes_of(array)]


def _bytes_of(array: Any) -> Sequence[bytes | None]:
    """Return the bytes of texts, which need not be UTF-8."""
    return list(array.cast(_BINARY_OF[str(array.type)]).to_pylist())


def _text(data: bytes) -> object:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return _Unfit(f"is not UTF-8: it has the byte 0x{data[error.start]:02x} at {error.start}")


def _binaries(array: Any) -> Sequence[Any]:
    return [None if value is None else _text_or_base64(value) for value in array.to_pylist()]


def _text_or_base64(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


def _short_floats(array: Any) -> Sequence[Any]:
    """Return floats with no more digits than they have: 0.1, not 0.10000000149011612."""
    return list(array.cast("string").cast("double").to_pylist())


def _decimals(array: Any) -> Sequence[Any]:
    return [
        f"{Decimal(text):f}" if text is not None and "E" in text else text
        for text in array.cast("string").to_pylist()
    ]


def _dates(array: Any) -> Sequence[Any]:
    return [
        _Unfit("is a date beyond all calendars") if text is not None and text[:1] == "<" else text
        for text in array.cast("string").to_pylist()
    ]


def _times(array: Any) -> Sequence[Any]:
    return [None if text is None else _without_zeros(text) for text in _dates(array)]


def _moments(array: Any) -> Sequence[Any]:
    try:
        texts = array.cast("string")
    except ValueError:
        # In a time zone that this machine does not know: what is stored is UTC.
        texts = array.cast(f"timestamp[{array.type.unit}]").cast("string")
        zone = "Z"
    else:
        zone = ""

    return [None if text is None else _moment(text, zone) for text in texts.to_pylist()]


def _moment(text: str, zone: str) -> object:
    if text.startswith("<"):
        return _Unfit("is a moment beyond all calendars")

    text = _FRACTION_END.sub(_shortened, text.replace(" ", "T", 1))

    return _ZONE_END.sub(r"\1:\2", text) + zone if "T" in text else text


def _without_zeros(text: object) -> object:
    return _FRACTION_END.sub(_shortened, text) if isinstance(text, str) else text


def _shortened(match: re.Match[str]) -> str:
    return match[1].removesuffix(".")


def _durations(array: Any) -> Sequence[Any]:
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[array.type.unit]

    return [
        None if count is None else f"PT{_without_zeros(f'{Decimal(count).scaleb(-digits):f}')}S"
        for count in array.cast("int64").to_pylist()
    ]


def _dictionaries(array: Any) -> Sequence[Any]:
    # Of these rows, which may be a few of a column with a million words.
    return _plain(array.dictionary_decode())


def _lists(array: Any) -> Sequence[Any]:
    return _cut(array, _plain(array.flatten()))


def _maps(array: Any) -> Sequence[Any]:
    places = array.offsets.to_pylist()
    first, last = places[0], places[-1]
    keys, values = (_plain(part.slice(first, last - first)) for part in (array.keys, array.items))
    pairs = list(zip(keys, values, strict=True))

    return [
        _object(pairs[start - first : end - first]) if is_valid else None
        for (start, end), is_valid in zip(
            pairwise(places), array.is_valid().to_pylist(), strict=True
        )
    ]


def _object(pairs: Sequence[tuple[Any, Any]]) -> object:
    """Return an object, or the pairs as they are where one has no such keys."""
    made = {key: value for key, value in pairs if isinstance(key, str)}

    return made if len(made) == len(pairs) else pairs


def _cut(array: Any, values: Sequence[Any]) -> list[Sequence[Any] | None]:
    """Return the *values* of all lists of *array* list by list."""
    found: list[Sequence[Any] | None] = []
    end = 0

    for length in array.value_lengths().to_pylist():
        start, end = end, end + (length or 0)
        found.append(None if length is None else values[start:end])

    return found


def _fixed_lists(array: Any) -> Sequence[Any]:
    values, size = _plain(array.flatten()), array.type.list_size
    found: list[Sequence[Any] | None] = []
    start = 0

    for is_valid in array.is_valid().to_pylist():
        found.append(values[start : start + size] if is_valid else None)
        start += size if is_valid else 0

    return found


def _structs(array: Any) -> Sequence[Any]:
    names = [field.name for field in array.type]
    fields = [_plain(field) for field in array.flatten()]
    rows = zip(*fields, strict=True) if fields else iter([()] * len(array))

    if len(set(names)) < len(names):
        return [_Unfit("has two fields of one name") for _ in rows]

    return [
        dict(zip(names, row, strict=True)) if is_valid else None
        for row, is_valid in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _extensions(array: Any) -> Sequence[Any]:
    match array.type.extension_name:
        case "arrow.uuid":
            return [None if value is None else str(value) for value in array.to_pylist()]
        case "arrow.json":
            return [None if text is None else _parsed(text) for text in _plain(array.storage)]
        case "arrow.bool8":
            return list(array.to_pylist())

    return _plain(array.storage)


def _parsed(text: object) -> object:
    try:
        return _json.decode(text) if isinstance(text, str) else text
    except (msgspec.DecodeError, RecursionError):
        return text


_SIMPLE = frozenset(
    {
        *("bool", "double", "float", "halffloat", "null"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    }
)
"""Types of which each value has JSON."""

_LONGEST_ESCAPE = 6
_LONGEST_NUMBER = 32

_BINARY_OF = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}

# What is not named here is what pyarrow makes of it: whole numbers, floats, booleans, nulls.
_MAKERS: dict[str, Callable[[Any], Sequence[Any]]] = {
    **dict.fromkeys(_BINARY_OF, _texts),
    **dict.fromkeys(("binary", "large_binary", "binary_view", "fixed_size_binary"), _binaries),
    **dict.fromkeys(("halffloat", "float"), _short_floats),
    **dict.fromkeys(("decimal32", "decimal64", "decimal128", "decimal256"), _decimals),
    **dict.fromkeys(("date32", "date64"), _dates),
    **dict.fromkeys(("time32", "time64"), _times),
    **dict.fromkeys(("list", "large_list", "list_view", "large_list_view"), _lists),
    "timestamp": _moments,
    "duration": _durations,
    "dictionary": _dictionaries,
    "fixed_size_list": _fixed_lists,
    "map": _maps,
    "struct": _structs,
    "extension": _extensions,
}
