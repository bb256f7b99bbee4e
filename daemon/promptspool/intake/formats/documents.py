"""Documents: what the files of an archive are to each other, and one prompt a document.

An archive is a table with the images that its rows name, or a heap of documents. Raises `BadInput`
for what is neither (bad data).
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats.archive import Archive
from promptspool.intake.formats.lines import too_long
from promptspool.intake.formats.recognition import kind_of, shown_name
from promptspool.intake.formats.texts import document
from promptspool.intake.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.intake.formats.archive import Member
    from promptspool.intake.rows import ReadOptions, Source

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp")

# JSON is in neither: a lone one is a table, among other files it is a document like them.
_TABLE_SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".jsonl", ".ndjson"),
    *(".xlsx", ".parquet", ".arrow", ".feather"),
)
_JSON_SUFFIX = ".json"

_LOOKED_AT_BYTES = 1 << 16


class Contents(NamedTuple):
    """The files of an archive, in its order."""

    table: Member | None
    """None where each document is a prompt."""
    images: list[Member]
    """Those that go with the table."""
    documents: list[Member]
    """Empty where there is a table."""
    left_out: list[Member]
    """Those that are none of it: what systems leave in archives."""

    @property
    def note(self) -> str:
        """What was found, for people."""
        what = (
            [_counted(self.documents, "document")]
            if self.table is None
            else [f"the table {self.table.shown}", _counted(self.images, "image")]
        )

        if self.left_out:
            what.append(f"{_counted(self.left_out, 'file')} left out (hidden, or made by a system)")

        return ", ".join(what)


def contents_of(archive: Archive, *, name: str) -> Contents:
    """Return what the files of *archive* are; *name* is the archive's, for people.

    Raises `BadInput` for one without files or with images only, and for tables among other files:
    each could be meant, as rows or as one long prompt, and the wrong guess is paid for.
    """
    kept: list[Member] = []
    left_out: list[Member] = []

    for member in archive.members:
        if not member.is_folder:
            (left_out if member.is_junk else kept).append(member)

    images = [member for member in kept if member.suffix in IMAGE_SUFFIXES]
    others = [member for member in kept if member.suffix not in IMAGE_SUFFIXES]
    tables = [member for member in others if member.suffix in _TABLE_SUFFIXES]

    if not kept:
        raise BadInput(f"{name} has no files in it", code="empty_file")

    if not others:
        reason = (
            f"{name} has nothing but images in it; add a table (.csv, .jsonl...) with a prompt and "
            f"the name of its image in each row, in columns called prompt and image"
        )
        raise BadInput(reason, code="no_table")

    if len(others) == 1 and (tables or others[0].suffix == _JSON_SUFFIX):
        return Contents(others[0], images, [], left_out)

    if tables:
        raise _ambiguous(tables, others)

    return Contents(None, [], kept, left_out)


def read_documents(source: Source, options: ReadOptions) -> Iterator[Row]:
    """Yield a row for each file of an archive: the columns `prompt` and `file`.

    `Row.name` is its name with its folders, `Row.line` its number from 1. What cannot be read is a
    fault of its row.
    """
    with Archive(source.path(), name=shown_name(source.name)) as archive:
        contents = contents_of(archive, name=shown_name(source.name))
        source.notes["archive"] = contents.note

        for number, member in enumerate(contents.documents, start=1):
            try:
                columns = {
                    "prompt": msgspec.json.encode(_text(archive, member, options)),
                    "file": msgspec.json.encode(member.name),
                }
                yield Row(number, columns, name=member.name)
            except BadInput as error:
                yield Row(number, None, error, member.name)


class ArchiveFiles:
    """The images of an archive, for rows to name; implements `Files`."""

    def __init__(self, archive: Archive, contents: Contents) -> None:
        """Take the images that go with the table of *archive*, which stays open meanwhile."""
        table = "" if contents.table is None else contents.table.name

        self._archive = archive
        self._folder = posixpath.dirname(table)
        self._members: dict[str, Member | None] = {}

        for member in contents.images:
            is_known = member.name in self._members
            self._members[member.name] = None if is_known else member

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the image *name*, as it is called in the archive or seen from the table's folder.

        Raises `BadInput` if there is none or several of that name, or more than *max_bytes*.
        """
        member = self._member(name)

        if member.size_bytes > max_bytes:
            reason = (
                f"the image {member.shown} has {member.size_bytes:,} bytes, no more than "
                f"{max_bytes:,} are taken; make it smaller"
            )
            raise BadInput(reason, code="file_too_large")

        return self._archive.read(member)

    def _member(self, name: str) -> Member:
        plain = name.replace("\\", "/").removeprefix("./")

        for known in (plain, posixpath.join(self._folder, plain)):
            if known in self._members:
                member = self._members[known]

                if member is None:
                    reason = f"the archive has several files called {shown_name(name)}"
                    raise BadInput(f"{reason}; rename them", code="ambiguous_file")

                return member

        reason = (
            f"the archive has no image called {shown_name(name)}; write the name it has there, "
            f"with its folders or as seen from the table"
        )
        raise BadInput(reason, code="no_such_file")


def _counted(members: list[Member], what: str) -> str:
    return f"{len(members):,} {what}{'' if len(members) == 1 else 's'}"


def _ambiguous(tables: list[Member], others: list[Member]) -> BadInput:
    first = tables[0].shown
    found = (
        f"{len(tables):,} tables ({first}, {tables[1].shown}{'...' if len(tables) > 2 else ''})"  # noqa: PLR2004 - two are named
        if len(tables) > 1
        else f"the table {first} and {_counted(others[1:], 'other file')}"
    )
    reason = (
        f"found {found}; an archive is one table with its images, or documents: drop each table "
        f"by itself, or rename it to .txt to send it as one prompt"
    )

    return BadInput(reason, code="ambiguous_archive")


def _text(archive: Archive, member: Member, options: ReadOptions) -> str:
    """Return the text of a document; raises `BadInput` if it has none."""
    if member.size_bytes > options.max_row_bytes:
        raise too_long(member.shown, max_bytes=options.max_row_bytes)

    data = archive.read(member)
    kind = kind_of(data[:_LOOKED_AT_BYTES], data[-_LOOKED_AT_BYTES:])

    if kind is not None and not kind.is_text:
        reason = f"{member.shown} is {kind.label}; only texts are taken from an archive"
        raise BadInput(reason, code="no_text")

    try:
        text = document(data, options.encoding)
    except BadInput as error:
        reason = f"{member.shown}: {error.reason}"
        raise BadInput(reason, code=error.code) from error

    if not text:
        raise BadInput(f"{member.shown} is empty", code="empty_document")

    return text
