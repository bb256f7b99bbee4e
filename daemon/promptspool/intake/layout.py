"""Layout: which columns of a row are its id, its prompt, its images, and what it brings.

A name counts exactly as it is written or else, as spreadsheets have them, without case and
surrounding blanks. Pure. Raises `BadInput` (bad data) for an id that is none.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.values import described, is_blank, quoted, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from promptspool.intake.rows import Columns, Value

PROMPT_NAMES = ("prompt", "text", "input", "question")
"""What a column of prompts is called, the likeliest first."""

ID_NAMES = ("custom_id", "id")

MAX_ID_CHARACTERS = 512
"""Longer ids are texts in the wrong column; OpenAI allows values of metadata as much."""

_INTEGER = re.compile(rb"-?[0-9]+")

# Answers are looked up by it, line by line, and may become files of that name.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


_MAX_DIGITS = 19

_texts = msgspec.json.Decoder(list[str])

_MAX_WORDS = 4
"""In the name of a column that is taken for the prompt because it is the only one."""


class Layout(NamedTuple):
    """Where rows of one set of columns have what; None or empty where they have no such column."""

    ids: tuple[str, ...]
    prompt: str | None
    """Where a prompt is taken from, if there is no template."""
    named_prompt: str | None
    """The column called `prompt`, whether the prompt is taken from it or not."""
    brought: tuple[str, ...]
    images: tuple[str, ...]


def layout(names: Sequence[str], *, brought: Sequence[str], images: Sequence[str]) -> Layout:
    """Return the layout of rows with columns of these *names*.

    *brought* and *images* are what the profile's endpoint and the profile call such columns.
    """
    names_in = _Names(names)
    ids = names_in.all_of(ID_NAMES)
    shown = names_in.all_of(images)
    named = names_in.one_of(("prompt",))
    given = names_in.all_of(brought)

    # Beside messages that happen to be missing, a column `text` or `label` is no prompt.
    if given:
        return Layout(ids, named, named, given, shown)

    rest = [name for name in names if name not in ids and name not in shown]
    only = rest[0] if len(rest) == 1 and not _is_sentence(rest[0]) else None

    return Layout(ids, names_in.one_of(PROMPT_NAMES) or only, named, given, shown)


def _is_sentence(name: str) -> bool:
    """Tell what reads like a prompt: the first line of a table that has no header."""
    return name.rstrip().endswith((".", "?", "!", ":")) or len(name.split()) > _MAX_WORDS


class _Names:
    """The names of columns, to be found as people write them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = frozenset(names)
        self._folded: dict[str, str] = {}

        for name in names:
            self._folded.setdefault(_folded(name), name)

    def one_of(self, wanted: Sequence[str]) -> str | None:
        """Return the first of *wanted* that is there, one written exactly before all others."""
        for name in wanted:
            if name in self._exact:
                return name

        return next((self._folded[name] for name in wanted if name in self._folded), None)

    def all_of(self, wanted: Sequence[str]) -> tuple[str, ...]:
        found = (
            name if name in self._exact else self._folded.get(_folded(name)) for name in wanted
        )

        return tuple(dict.fromkeys(name for name in found if name is not None))


def _folded(name: str) -> str:
    return name.strip().casefold()


def found_id(columns: Columns, names: Sequence[str]) -> str | None:
    """Return the id in the first of the columns *names* that has one, None if none has.

    A string as it is, a whole number as its digits, also where it is written 7.0, as spreadsheets
    and parquet do. Raises `BadInput` for anything else.
    """
    for name in names:
        raw = columns[name]

        if raw.startswith(b'"'):
            text = text_of(raw)

            if text.strip():
                return checked_id(text, key=name)
        elif _INTEGER.fullmatch(raw):
            return checked_id(raw.decode(), key=name)
        elif not is_blank(raw):
            return _whole_number(raw, key=name)

    return None


def found_ids(
    columns: Mapping[str, Sequence[Value]], names: Sequence[str]
) -> tuple[Sequence[str], frozenset[int]] | None:
    """Return the ids of many rows, as `found_id` does, and which of the rows need that; or None.

    The latter are those that have none in the first of the columns *names*, or a wrong one. None
    stands for columns that are to be looked at row by row.
    """
    values = columns[names[0]]

    try:
        texts = _texts.decode(b"[%b]" % b",".join(values))
    except msgspec.DecodeError:
        digits = list(map(bytes, values))

        return ([raw.decode() for raw in digits], frozenset()) if _are_whole(digits) else None

    joined = "".join(texts)

    # What has no sign for it in print is a control character or a blank, but for the space.
    if joined.isprintable() and " " not in joined:
        is_plain = all(texts)
    else:
        is_plain = all(map(str.strip, texts)) and not _CONTROL.search(joined)

    if is_plain and max(map(len, texts)) <= MAX_ID_CHARACTERS:
        return texts, frozenset()

    return texts, frozenset(place for place, text in enumerate(texts) if _is_odd_id(text))


def _are_whole(values: Sequence[bytes]) -> bool:
    """Tell whether all of *values* are whole numbers as most are, without a sign."""
    return max(map(len, values)) < _MAX_DIGITS and all(map(bytes.isdigit, values))


def _is_odd_id(text: str) -> bool:
    return not text.strip() or len(text) > MAX_ID_CHARACTERS or bool(_CONTROL.search(text))


def checked_id(text: str, *, key: str) -> str:
    """Return *text*, which came from *key*, if it can be an id; raises `BadInput` if not."""
    if len(text) > MAX_ID_CHARACTERS:
        reason = (
            f"{key} is {len(text):,} characters long; write {MAX_ID_CHARACTERS} at most, or leave "
            f"it empty to have the row named after its line"
        )
        raise BadInput(reason, code="invalid_id", key=key)

    if odd := _CONTROL.search(text):
        reason = (
            f"{key} is {quoted(text)}, which holds the control character U+{ord(odd[0]):04X}; "
            f"leave it out"
        )
        raise BadInput(reason, code="invalid_id", key=key)

    return text


def _whole_number(raw: bytes, *, key: str) -> str:
    """Return a number such as 7.0 or 1e3 as its digits."""
    if raw[:1].isdigit() or raw.startswith(b"-"):
        number = Decimal(raw.decode())

        # An exponent of a few characters can stand for millions of digits.
        if number == 0 or -1 < number.adjusted() < MAX_ID_CHARACTERS:
            whole = number.to_integral_value()

            if whole == number:
                return str(int(whole))

    reason = (
        f"{key} is {described(raw)}; write a string or a whole number, or leave it empty to have "
        f"the row named after its line"
    )
    raise BadInput(reason, code="invalid_id", key=key)
