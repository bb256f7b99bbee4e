"""Recognition: what a file is by its first bytes, and what to say when its name says otherwise.

Pure. Raises `BadInput` (bad data).
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from promptspool.errors import BadInput
from promptspool.intake.formats.compression import WRAPPINGS, wrapping_suffix
from promptspool.intake.formats.lines import foreign_encoding

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD_BYTES = 1 << 16
"""How much of the beginning is looked at, and of the end of an archive, which lists its files."""

XLSX, PARQUET, ARROW, ZIP = ".xlsx", ".parquet", ".arrow", ".zip"


_UNKNOWN, _WRONG = "unknown_format", "wrong_format"

_ROWS_COUNTED = 3

_MAX_NAME = 255  # what a file system takes; names in archives can be longer


class Kind(NamedTuple):
    """A kind of file that gives itself away."""

    label: str
    """For people, with its article."""
    suffix: str | None
    """The extension under which it is read, None if it is not read at all."""
    advice: str = ""
    """What to do where it is not read."""
    is_text: bool = False


_UNPACK = "unpack it, and drop what is in it or pack that as .zip, .gz or .zst"
_AS_TEXT = "save it as .txt (a prompt a line) or .md (one prompt)"
_AS_XLSX = "save it as .xlsx or .csv"
_AS_TABLE = "put its file name or URL into the column image of a table"

_KINDS = {
    XLSX: Kind("an Excel workbook (.xlsx)", XLSX),
    PARQUET: Kind("a Parquet file (.parquet)", PARQUET),
    ARROW: Kind("an Arrow or Feather file (.arrow)", ARROW),
    ZIP: Kind("a zip archive (.zip)", ZIP),
    ".gz": Kind("compressed with gzip (.gz)", ".gz"),
    ".zst": Kind("compressed with Zstandard (.zst)", ".zst"),
    ".xlsb": Kind("a binary Excel workbook (.xlsb)", None, _AS_XLSX),
    ".xls": Kind("an old Office file, or one with a password (.xls, .doc)", None, _AS_XLSX),
    ".ods": Kind("an OpenDocument table (.ods)", None, _AS_XLSX),
    ".numbers": Kind("a Numbers table (.numbers)", None, "export it as .xlsx or .csv"),
    ".docx": Kind("a Word document (.docx)", None, _AS_TEXT),
    ".odt": Kind("an OpenDocument text (.odt)", None, _AS_TEXT),
    ".epub": Kind("an e-book (.epub)", None, _AS_TEXT),
    ".pptx": Kind("a presentation (.pptx)", None, _AS_TEXT),
    ".pdf": Kind("a PDF document (.pdf)", None, _AS_TEXT),
    ".html": Kind(
        "a web page (.html)",
        None,
        "rename it to .md to send it as one prompt, or save it as text",
        is_text=True,
    ),
    ".yaml": Kind("a YAML file (.yaml)", None, "write it as .json or .jsonl"),
    ".xml": Kind("an XML file (.xml)", None, "write it as .json, .jsonl or .csv"),
    ".bz2": Kind("compressed with bzip2 (.bz2)", None, _UNPACK),
    ".xz": Kind("compressed with xz (.xz)", None, _UNPACK),
    ".7z": Kind("a 7-Zip archive (.7z)", None, _UNPACK),
    ".rar": Kind("a RAR archive (.rar)", None, _UNPACK),
    ".tar": Kind("a tar archive (.tar)", None, _UNPACK),
    ".sqlite": Kind("an SQLite database (.sqlite)", None, "export the table as .csv"),
    ".png": Kind("a PNG image (.png)", None, _AS_TABLE),
    ".jpg": Kind("a JPEG image (.jpg)", None, _AS_TABLE),
    ".gif": Kind("a GIF image (.gif)", None, _AS_TABLE),
    ".webp": Kind("a WebP image (.webp)", None, _AS_TABLE),
}

_TEXTS = {
    ".csv": "a table in text (.csv)",
    ".json": "JSON (.json)",
    ".jsonl": "JSON Lines (.jsonl)",
    ".tsv": "a table in text (.tsv)",
    ".txt": "plain text (.txt)",
}

_ALIASES = {
    ".db": ".sqlite",
    ".doc": ".xls",
    ".htm": ".html",
    ".jpeg": ".jpg",
    ".sqlite3": ".sqlite",
    ".tbz2": ".bz2",
    ".tgz": ".tar",
    ".txz": ".xz",
    ".xhtml": ".html",
    ".yml": ".yaml",
}

# What stands at the very beginning. Those that a text could begin with count only where there are
# bytes behind them that no text has.
_MAGICS = (
    (b"%PDF-", ".pdf"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ".xls"),
    (b"\xfd7zXZ\0", ".xz"),
    (b"7z\xbc\xaf\x27\x1c", ".7z"),
    (b"Rar!\x1a\x07", ".rar"),
    (b"SQLite format 3\0", ".sqlite"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"ARROW1\0\0", ARROW),
    (b"\xff\xff\xff\xff", ARROW),  # the stream format: a message without a file around it
)
_DOUBTFUL_MAGICS = (
    (b"PAR1", PARQUET),
    (b"PARE", PARQUET),
    (b"FEA1", ARROW),
    (b"BZh", ".bz2"),
    (b"GIF8", ".gif"),
    (b"RIFF", ".webp"),
)

_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*+(?:<!--.*?-->\s*+)?<(?:!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)

# The name of a file stands 30 bytes behind its header in a zip archive, 46 in the list at the end
# (APPNOTE.TXT 4.3.7, 4.3.12).
_ZIP_NAME = rb"(?:PK\x03\x04.{26}|PK\x01\x02.{42})"
_ZIP_KINDS = (
    (re.compile(_ZIP_NAME + rb"xl/workbook\.xml", re.DOTALL), XLSX),
    (re.compile(_ZIP_NAME + rb"xl/workbook\.bin", re.DOTALL), ".xlsb"),
    (re.compile(_ZIP_NAME + rb"word/document\.xml", re.DOTALL), ".docx"),
    (re.compile(_ZIP_NAME + rb"ppt/presentation\.xml", re.DOTALL), ".pptx"),
    (re.compile(_ZIP_NAME + rb"Index/Document\.iwa", re.DOTALL), ".numbers"),
    (re.compile(rb"mimetypeapplication/vnd\.oasis\.opendocument\.spreadsheet"), ".ods"),
    (re.compile(rb"mimetypeapplication/vnd\.oasis\.opendocument\.text"), ".odt"),
    (re.compile(rb"mimetypeapplication/epub\+zip"), ".epub"),
)
# As office files begin: an archive that only holds one of them, unpacked, does not.
_OFFICE = re.compile(
    rb"PK\x03\x04.{26}(\[Content_Types\]|_rels/|docProps/|customXml/|xl/|word/|ppt/|Index/|"
    rb"mimetype|META-INF/)",
    re.DOTALL,
)
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")

# ASCII controls that no text has, but for tab, line feed, form feed, carriage return and escape.
_CONTROLS = bytes(n for n in range(32) if n not in b"\t\n\f\r\x1b")


def kind_of(head: bytes, tail: bytes = b"") -> Kind | None:
    """Return what kind a file is that begins with *head*; None if it is text, or unknown.

    *tail* is its end, empty where that cannot be seen.
    """
    if is_zip(head):
        return _KINDS[_zip_suffix(head + tail)]

    wrapping = wrapping_suffix(head)

    if wrapping is not None:
        return _KINDS[wrapping]

    for magic, suffix in _MAGICS:
        if head.startswith(magic):
            return _KINDS[suffix]

    for magic, suffix in _DOUBTFUL_MAGICS:
        if head.startswith(magic) and not is_text(head):
            return _KINDS[suffix]

    if head[257:262] == b"ustar" and b"\0" in head[:257]:  # POSIX pax, header block
        return _KINDS[".tar"]

    return _KINDS[".html"] if _HTML.match(head) else None


def is_zip(head: bytes) -> bool:
    """Tell whether what begins with *head* is a zip archive, whatever it is used for."""
    return head.startswith(_ZIP_MAGICS)


def is_text(head: bytes) -> bool:
    """Tell whether what begins with *head* can be text, in whichever encoding."""
    if foreign_encoding(head) is not None:
        return True

    return len(head) == len(head.translate(None, _CONTROLS))


def check_content(name: str, suffixes: Sequence[str], head: bytes, tail: bytes) -> None:
    """Raise `BadInput` unless the content of a file called *name* can be what its extension says.

    *suffixes* are those of its format.
    """
    kind = kind_of(head, tail)
    expected = next((_KINDS[suffix] for suffix in suffixes if suffix in _KINDS), None)

    # Three are let through: what is as its name says; a page in HTML as one prompt; a workbook
    # whose list of files is too long to be seen here, which `check_container` looks at.
    if (
        kind == expected
        or (kind == _KINDS[".html"] and ".md" in suffixes)
        or (kind == _KINDS[ZIP] and expected == _KINDS[XLSX])
    ):
        if ".csv" in suffixes or ".tsv" in suffixes:
            _check_no_json(name, head)

        return

    raise _mismatch(name, kind, head)


def check_wrapping(name: str, head: bytes) -> None:
    """Raise `BadInput` unless a file is compressed as its name says, or not as it does not."""
    inner, wrapping = unwrapped(name)
    found = wrapping_suffix(head)

    if found == wrapping:
        return

    if found is not None or not wrapping:
        raise _mismatch(name, _KINDS[found] if found else None, head)

    kind = kind_of(head)

    if kind is not None and kind.suffix is None:
        reason = f"the name says {wrapping}, but it is {kind.label}; {kind.advice}"
    else:
        reason = (
            f"the name says {wrapping}, but it is not compressed; rename it to {shown_name(inner)} "
            f"and drop it again"
        )

    raise BadInput(reason, code="wrong_format")


def unknown_format(name: str, known: Sequence[str], head: bytes, tail: bytes) -> BadInput:
    """Return the complaint about a file whose extension is not one of those *known*."""
    suffix = suffix_of(unwrapped(name)[0])
    kind = kind_of(head, tail)
    foreign = _KINDS.get(_ALIASES.get(suffix, suffix))
    is_packed = kind is not None and kind.suffix in WRAPPINGS

    if foreign is not None and (kind is None or is_packed):
        kind = foreign

    if kind is not None and kind.suffix is None:
        return BadInput(f"found {kind.label}, which is not read; {kind.advice}", code=_UNKNOWN)

    found = f"the extension {suffix!r}" if suffix else "no extension"
    reason = (
        f"found {found}, which no reader knows; known are {', '.join(known)}, and each of them "
        f"with {' or '.join(WRAPPINGS)} behind it"
    )
    looks = text_suffix(head) if kind is None else kind.suffix

    if is_packed:
        reason += f"; it is compressed, so write both, as in prompts.csv{looks}"
    elif looks:
        reason += f"; it looks like {looks}, so rename it to {renamed(name, looks)}"

    return BadInput(reason, code=_UNKNOWN)


def text_suffix(head: bytes) -> str | None:
    """Return the extension that a text beginning with *head* should have, None if it is no text."""
    if not is_text(head):
        return None

    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    line = text.partition(b"\n")[0].strip()

    if re.match(rb'\{\s*[}"]', text):
        return ".jsonl" if _is_json(line) else ".json"

    if re.match(rb'\[\s*+[{"]', text):
        return ".json"

    for mark, suffix in ((b"\t", ".tsv"), (b",", ".csv"), (b";", ".csv")):
        counts = {row.count(mark) for row in text.splitlines()[:_ROWS_COUNTED]}

        if len(counts) == 1 and counts != {0}:
            return suffix

    return ".txt"


def suffix_of(name: str) -> str:
    """Return the extension of *name* in lower case, empty if it has none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")

    return f"{dot}{suffix}".lower() if stem and suffix else ""


def unwrapped(name: str) -> tuple[str, str | None]:
    """Return *name* without the extension of a compressed file, and that extension or None."""
    suffix = suffix_of(name)

    return (name[: -len(suffix)], suffix) if suffix in WRAPPINGS else (name, None)


def renamed(name: str, suffix: str) -> str:
    """Return *name* for people, with the extension that it should have."""
    if suffix in WRAPPINGS:
        return shown_name(unwrapped(name)[0] + suffix)

    inner, wrapping = unwrapped(name)
    stem = inner[: len(inner) - len(suffix_of(inner))]

    return shown_name(stem + suffix + (wrapping or ""))


def shown_name(name: str) -> str:
    """Return the name of a file for people: what cannot be seen as escapes, a long one cut."""
    text = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…"

    return text if text.isprintable() else ascii(text)


def _mismatch(name: str, kind: Kind | None, head: bytes) -> BadInput:
    """Return the complaint about a file that is another kind than its name says."""
    inner, wrapping = unwrapped(name)
    says = f"the name says {suffix_of(inner)}"
    suffix = text_suffix(head) if kind is None else kind.suffix

    if kind is not None and suffix is None:
        return BadInput(f"{says}, but it is {kind.label}; {kind.advice}", code=_WRONG)

    if suffix is None:
        reason = f"{says}, but it does not begin like one; it is broken or something else"
        return BadInput(reason, code=_WRONG)

    if suffix in WRAPPINGS and wrapping == suffix:
        reason = f"{shown_name(name)} is compressed twice; unpack it once and drop it again"
        return BadInput(reason, code=_WRONG)

    label = kind.label if kind is not None else _TEXTS[suffix]
    reason = f"{says}, but it is {label}; rename it to {renamed(name, suffix)} and drop it again"

    return BadInput(reason, code=_WRONG)


def _check_no_json(name: str, head: bytes) -> None:
    """Raise `BadInput` if a table of text is JSON: no header begins as an object does."""
    if text_suffix(head) in (".json", ".jsonl"):
        raise _mismatch(name, None, head)


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False

    return True


def _zip_suffix(data: bytes) -> str:
    """Return the extension of what a zip archive is used for."""
    for pattern, suffix in _ZIP_KINDS if _OFFICE.match(data) else ():
        if pattern.search(data):
            return suffix

    return ZIP
