"""Delimited text: how it is written, and where each of its records begins and ends.

The grammar is that of the `csv` module, strict. Where quotes do not match, the module goes on with
the next line, which may be in the middle of a value: so the whole file is refused there. Memory
does not grow with the file, only with its longest record. Raises `BadInput` (bad data).
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptspool.errors import BadInput
from promptspool.intake.formats.encodings import decoding_fault, text_encoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from promptspool.intake.formats.delimited_lines import Text
    from promptspool.intake.rows import ReadOptions, Source

Record = tuple[int, list[str], str]
"""The line where a record begins, its fields, and its text as it was written, with its line end.

A plain tuple: one with names takes a tenth of the time that reading a row takes.
"""

_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {"\t": "tab"}
_SAMPLE_CHARS = 1 << 16
_SAMPLE_RECORDS = 50
_MOST_CHAR_BYTES = 4
_END_BYTES = 2

# The csv module's own limit is for the whole process; ours holds for each record.
_LONGEST_FIELD = 2**31 - 1

# Spreadsheets write it, and take it as a word to themselves.
_SEP_LINE = re.compile(r'"?sep=([^\w"\r\n\0 ])"?(?:\r\n|\r|\n|$)', re.IGNORECASE)


class _TooLong(Exception):
    """A record is longer than a row may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a table is written."""

    encoding: str
    delimiter: str
    is_spaced: bool
    """Blanks after a delimiter are layout, not text: a quote may follow them."""
    is_quoted: bool
    """Every field is in quotes."""
    sep_line: str
    """The first line if it is there for spreadsheets only, else empty."""

    @property
    def delimiter_name(self) -> str:
        """Name the delimiter for people."""
        return _NAMES.get(self.delimiter, repr(self.delimiter))


def layout_of(source: Source, options: ReadOptions) -> Layout:
    """Find out how *source* is written, from its first records."""
    encoding = text_encoding(source, options)
    sample = _sample(source, encoding)
    is_whole = len(sample) < _SAMPLE_CHARS
    sep = _SEP_LINE.match(sample)
    sep_line = sep.group() if sep else ""
    sample = sample[len(sep_line) :]
    usual = "\t" if source.name.lower().endswith(".tsv") else ","

    if options.delimiter is not None:
        delimiter = _checked_delimiter(options.delimiter)
    elif sep is not None:
        delimiter = sep[1]
    else:
        delimiter = _found_delimiter(sample, usual, is_whole=is_whole)

    if delimiter != usual:
        source.notes["delimiter"] = _NAMES.get(delimiter, delimiter)

    records = _sampled(sample, delimiter, is_whole=is_whole)

    return Layout(
        encoding=encoding,
        delimiter=delimiter,
        is_spaced=any(_is_misquoted(fields, text, delimiter) for _, fields, text in records),
        is_quoted=all(
            body(text) == delimiter.join(map(quoted, fields)) for _, fields, text in records
        ),
        sep_line=sep_line,
    )


def _sample(source: Source, encoding: str) -> str:
    with source.open() as raw, io.TextIOWrapper(raw, encoding, newline="") as file:
        try:
            return file.read(_SAMPLE_CHARS)
        except UnicodeDecodeError as error:
            raise decoding_fault(source, encoding) from error


def _checked_delimiter(delimiter: str) -> str:
    if len(delimiter) != 1 or delimiter in ' "\r\n\0':
        reason = f'{delimiter!r} is no delimiter; write one character, as in delimiter = ";"'
        raise BadInput(reason, code="bad_profile", key="delimiter")

    return delimiter


def _found_delimiter(sample: str, usual: str, *, is_whole: bool) -> str:
    """Return the delimiter that cuts the header, and the records after it the most alike."""
    best, most = usual, (0.0, 1)

    for delimiter in sorted(_DELIMITERS, key=lambda one: one != usual):
        records = _sampled(sample, delimiter, is_whole=is_whole, is_spaced=True)
        width = len(records[0][1]) if records else 0
        alike = sum(len(fields) == width for _, fields, _ in records)
        score = (alike / len(records), width) if records else (0.0, 0)

        if width > 1 and score > most:
            best, most = delimiter, score

    return best


def _sampled(
    sample: str, delimiter: str, *, is_whole: bool, is_spaced: bool = False
) -> list[Record]:
    """Return the first records of *sample*, leniently; the last one may be cut off unless whole."""
    held: list[str] = []
    lines = _held(io.StringIO(sample, newline=""), held, _LONGEST_FIELD)
    found: list[Record] = []

    for fields in csv.reader(lines, delimiter=delimiter, skipinitialspace=is_spaced):
        found.append((0, fields, "".join(held)))
        held.clear()

        if len(found) == _SAMPLE_RECORDS:
            break

    if not is_whole and len(found) > 1:
        found.pop()

    return [record for record in found if not _is_blank(*record[1:])]


def records_of(text: Text, layout: Layout, max_bytes: int) -> Iterator[Record]:
    """Yield the records of *text* but for blank ones, the header first.

    Whenever one was yielded, *text* is where the next begins. Raises `BadInput` where they cannot
    be told apart any more.
    """
    held: list[str] = []
    reader = csv.reader(
        _held(text.lines(), held, max_bytes),
        delimiter=layout.delimiter,
        skipinitialspace=layout.is_spaced,
        strict=True,
    )

    try:
        for fields in reader:
            record = held[0] if len(held) == 1 else "".join(held)
            line = text.line
            text.line += len(held)
            held.clear()

            # Quotes come in pairs, but for those that are text in a value without.
            if record.count('"') % 2 and not layout.is_spaced:
                _check_quotes(line, fields, record, layout)

            if fields and not _is_blank(fields, record) and (line > 1 or not layout.sep_line):
                yield line, fields, record
    except (csv.Error, _TooLong) as error:
        raise _quote_fault(error, text.line, held, max_bytes) from error


def _held(lines: Iterable[str], held: list[str], max_bytes: int) -> Iterator[str]:
    """Yield *lines*, which have their ends, keeping them in *held* for its owner to empty.

    Raises `_TooLong` when what is held is more than *max_bytes* of UTF-8, its end not counted.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    size, unmeasured = 0, max_bytes // _MOST_CHAR_BYTES

    for line in lines:
        # Most records are one line, and far too short to be measured.
        if held or len(line) > unmeasured:
            size = (size if len(held) > 1 else sum(map(_byte_count, held))) + _byte_count(line)

            if size > max_bytes + _END_BYTES:
                raise _TooLong

        held.append(line)

        yield line


def _byte_count(text: str) -> int:
    return len(text if text.isascii() else text.encode())


def _is_blank(fields: list[str], text: str) -> bool:
    return not fields or (len(fields) == 1 and not text.strip(" \t\r\n"))


def _is_misquoted(fields: list[str], text: str, delimiter: str) -> bool:
    """Tell whether a value is in quotes after a blank, where blanks are text and so are quotes."""
    for place, field in enumerate(fields):
        if field[:1] == " " and field.lstrip(" ")[:1] == '"':
            # In quotes of its own, ` "` is text that reads the same either way.
            lines = io.StringIO(text, newline="")
            spaced = next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))

            return spaced[place] != field

    return False


def _check_quotes(line: int, fields: list[str], text: str, layout: Layout) -> None:
    """Raise `BadInput` at a quote that would hold line ends, but that a blank comes before it."""
    if _is_misquoted(fields, text, layout.delimiter):
        reason = (
            "a blank comes before the quote that opens a value, which is not so in the first rows, "
            "so what follows cannot be read; remove the blank"
        )
        raise BadInput(reason, code="broken_quotes", line=line)


def _quote_fault(error: Exception, line: int, held: list[str], max_bytes: int) -> BadInput:
    """Return what to raise where the record that begins at *line* has no end."""
    last = line + len(held) - 1
    advice = 'close each quote, and write a quote within quotes twice, as ""'

    if any('\\"' in text for text in held[-1:]):
        advice += r", not \""

    if isinstance(error, _TooLong):
        what = f"the row that begins in line {line} is longer than {max_bytes:,} bytes"
        advice = f"if a quote is not closed there, {advice}; or shorten it"
        return BadInput(f"{what}; {advice}", code="row_too_long", line=line)

    if "unexpected end" in str(error):
        what = f"the row that begins in line {line} opens a quote that is never closed"
        return BadInput(f"{what}; {advice}", code="broken_quotes", line=line)

    what = (
        f"the row that begins in line {line} has text after a closing quote in line {last}, so "
        f"what follows cannot be read"
    )

    return BadInput(f"{what}; {advice}", code="broken_quotes", line=line)


def body(text: str) -> str:
    """Return the text of a record without its line end."""
    return text.removesuffix(line_end(text))


def line_end(text: str) -> str:
    """Return what ends *text*; empty at the end of a file without."""
    for end in ("\r\n", "\n", "\r"):
        if text.endswith(end):
            return end

    return ""


def quoted(text: str) -> str:
    """Return *text* as a field in quotes."""
    return '"' + text.replace('"', '""') + '"'
