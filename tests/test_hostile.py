"""Whatever is dropped ends in a delivery, or in a rejection with a reason."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from test_files import FORMS, PNG, TABLE, archive, delimited, workbook
from world import simulated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LINE = b'{"id": "x", "prompt": "p"}\n'


def bomb(size: int) -> bytes:
    """Return *size* zeros, compressed."""
    return gzip.compress(bytes(size), 9)


def nested_archive() -> bytes:
    """Return an archive whose only member is an archive."""
    return archive({"inner.zip": archive({"a.txt": b"p"})})


def lying_archive() -> bytes:
    """Return an archive whose directory says that a large member is small."""
    data = bytearray(archive({"a.txt": b"a" * 100_000}))
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 10)

    return bytes(data)


CORPUS: dict[str, bytes] = {
    "empty.csv": b"",
    "empty.jsonl": b"",
    "empty.zip": b"",
    "empty.parquet": b"",
    "blank.txt": b"\n \n\t\n",
    "header.csv": b"id,prompt\n",
    "truncated.jsonl.gz": gzip.compress(LINE * 1000)[:-9],
    "not.jsonl.gz": b"plain text\n",
    "trailing.jsonl.gz": gzip.compress(LINE) + b"trailing garbage",
    "bomb.txt.gz": bomb(100_000_000),
    "bomb.zip": archive({"a.txt": bytes(100_000_000)}),
    "bombs.csv.gz": gzip.compress(bomb(1_000_000)),
    "not.jsonl.zst": b"plain text\n",
    "truncated.jsonl.zst": b"\x28\xb5\x2f\xfd\x04\x58",
    "long.txt": b"a" * 1_000_000 + b"\nshort\n",
    "long.jsonl": b'"' + b"a" * 1_000_000 + b'"\n"short"\n',
    "long.csv": b"prompt\n" + b"a" * 1_000_000 + b"\nshort\n",
    "long.json": b'["' + b"a" * 1_000_000 + b'", "short"]',
    "unterminated.csv": b'id,prompt\n1,"never closed\n' + b"2,text\n" * 50_000,
    "nul.txt": b"a\x00b\n",
    "nul.csv": b"prompt\na\x00b\nfine\n",
    "nul.jsonl": b'{"prompt": "a\\u0000b"}\n\x00\n',
    "latin1.txt": "caf\u00e9\n".encode("latin-1"),
    "latin1.csv": "id,prompt\n1,caf\u00e9 cr\u00e8me\n".encode("latin-1"),
    "utf16.csv": "id,prompt\n1,caf\u00e9\n".encode("utf-16"),
    "utf16.jsonl": '{"prompt": "p"}\n'.encode("utf-16"),
    "utf16le.csv": "id,prompt\n1,hello there\n".encode("utf-16-le"),
    "utf32.txt": "hello\n".encode("utf-32"),
    "surrogate.jsonl": b'{"prompt": "\\ud800"}\n{"id": "\\udfff", "prompt": "p"}\n',
    "surrogate.json": b'["\\ud800", "p"]',
    "deep.jsonl": b"[" * 200_000 + b"\n" + b'{"prompt": ' * 100_000 + b"\n",
    "deep.json": b"[" * 1_000_000,
    "deep_objects.json": b'{"a":' * 500_000,
    "deep_value.json": b'[{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
    "unclosed.json": b'[{"prompt": "p"}, {"prompt": "q"',
    "nan.jsonl": b'{"prompt": NaN}\n{"prompt": "p", "id": Infinity}\n',
    "commas.json": b'["a",,"b"]',
    "many.json": b'{"a": ["p"], "b": ["q"]}',
    "scalar.json": b"42",
    "formulas.csv": b"id,prompt\n=1+1,=cmd|'/C calc'!A0\n@x,+1\n",
    "headers.csv": b"a,a\n1,2\n",
    "no_headers.csv": b",\n1,2\n",
    "ragged.csv": b"id,prompt\n1\n2,b,c\n3,d\n",
    "excel.csv": workbook(),
    "word.xlsx": archive({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}),
    "broken.xlsx": workbook()[:-200],
    "text.xlsx": b"id,prompt\n1,p\n",
    "old.xls": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504),
    "text.parquet": b"PAR1 no parquet at all PAR1",
    "broken.parquet": FORMS["may.parquet"][0][:-30],
    "broken.feather": FORMS["may.feather"][0][:-30],
    "image.txt": PNG,
    "image.zip": archive({"a.png": PNG}),
    "nested.zip": nested_archive(),
    "lying.zip": lying_archive(),
    "broken.zip": archive({"a.txt": b"p" * 1000})[:-10],
    "climbing.zip": archive({"../../etc/passwd": b"p", "/abs.txt": b"q", "a\nb.txt": b"r"}),
    "binary.zip": archive({"a.bin": bytes(range(256)), "b.txt": b"p"}),
    "folders.zip": archive({"a/": b"", "b/c/": b""}),
    "program.exe": b"MZ" + bytes(100),
    "no_extension": LINE,
    "dots...jsonl": LINE,
    ".hidden.jsonl": LINE,
    "new\nline.jsonl": LINE,
    "tab\tand\x7f.jsonl": LINE,
    "emoji \U0001f600.jsonl": LINE,
    "-rf.jsonl": LINE,
    "'; DROP TABLE jobs; --.jsonl": LINE,
    "%s%n{0}{{x}}.jsonl": LINE,
    "x" * 249 + ".jsonl": LINE,
    "x" * 200 + ".jsonl": LINE,
    "unknown/a.jsonl": LINE,
    "deep/er/and/deeper/a.jsonl": LINE,
    "long_id.jsonl": json.dumps({"id": "x" * 100_000, "prompt": "p"}).encode() + b"\n",
    "odd_ids.jsonl": b"".join(
        b'{"id": %s, "prompt": "p"}\n' % raw for raw in (b"{}", b"true", b"1.5", b'""', b'"a\\nb"')
    ),
    "line_ends.csv": b"id,prompt\r1,p\r2,q\r",
    "wide.csv": b",".join(b"c%d" % n for n in range(20_000)) + b"\n" + b"," * 19_999 + b"\n",
    "a.toml": b"a lone sidecar",
    "deep_sidecar.txt": b"p\n",
    "deep_sidecar.txt.toml": b"params.a" + b".a" * 600 + b" = 1\n",
    "growing_sidecar.txt": b"p\n",
    "growing_sidecar.txt.toml": b'prompt = "{{ prompt.ljust(2000000000) }}"\n',
    "wild_sidecar.txt": b"p\n",
    "wild_sidecar.txt.toml": b'params = { temperature = nan }\nfiles = "/etc"\n',
    "keys.jsonl": b"{" + b",".join(b'"k%d":1' % n for n in range(300_000)) + b"}\n",
    "broken_sidecar.txt": b"p\n",
    "broken_sidecar.txt.toml": b"\x00\xff",
}

LEFT_ALONE = {".hidden.jsonl", *(name for name in CORPUS if name.endswith(".toml"))}
"""Names that are no prompt files: hidden ones stay, and sidecars stay or go with their files."""

OVERRIDES = {"providers": {"openai": {"max_bytes": 500_000}}, "profiles": {"deep": {"model": "m"}}}


def ended(root: Path, files: Mapping[str, bytes], logs: Sequence[Mapping[str, object]]) -> None:
    """Hold that every dropped file was delivered whole, or rejected with a reason."""
    spool = root / "spool"

    for name, data in files.items():
        if name in LEFT_ALONE:
            continue

        stem = name[: 255 - len(".embeddings.parquet") - len("-999999")]  # as long ones are cut
        note = spool / "rejected" / f"{stem}.rejected.json"
        summary = spool / "outbox" / f"{stem}.summary.json"

        assert note.exists() != summary.exists(), name

        if note.exists():
            reason = json.loads(note.read_bytes())
            assert reason["reason"], name
            assert "Traceback" not in reason["reason"], name
            assert len(reason["faults"]) == reason["fault_count"], name
        else:
            counts = json.loads(summary.read_bytes())["counts"]
            assert counts["requests"] == counts["results"] + counts["errors"] > 0, name
            assert (spool / "done" / name).read_bytes() == data, name

    assert not list((spool / "working").iterdir())
    broken = [line for line in logs if line["event"] in ("stage.crashed", "stage.broken")]
    assert broken == []


@pytest.mark.anyio
async def test_every_hostile_file_ends_well(tmp_path: Path) -> None:
    """A corpus of broken, lying and hostile files, all dropped at once."""
    with capture_logs() as logs:
        async with simulated(tmp_path, overrides=OVERRIDES) as world:
            for name, data in CORPUS.items():
                world.drop(name, data)

            assert await world.drain(limit_s=120)

    ended(tmp_path, CORPUS, logs)
    assert {path.name for path in (tmp_path / "spool" / "inbox").rglob("*") if path.is_file()} == {
        ".hidden.jsonl",
        "a.toml",
    }


# Hypothesis: valid files, damaged.

SEEDS: dict[str, bytes] = {
    **{name: data for name, (data, _) in FORMS.items()},
    "may.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in TABLE),
    "may.json": json.dumps({"rows": TABLE}).encode(),
    "may.txt": b"one\ntwo\n\nthree\n",
    "may.md": b"# one\n",
    "may.zip": archive({"a.txt": b"p", "b/c.md": b"q"}),
    "may.csv.gz": gzip.compress(delimited(";")),
    "images.zip": archive({"t.csv": b"prompt,image\np,a.png\nq,b.png\n", "a.png": PNG}),
}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a name and bytes that were a file of some kind once."""
    name = draw(st.sampled_from(sorted(SEEDS)))
    data = bytearray(SEEDS[draw(st.sampled_from([name, name, *sorted(SEEDS)]))])

    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        piece = draw(
            st.sampled_from(
                [b"", b'"', b"\n", b"\x00", b"\xff", b",", b"[", b"}", b"\\", b"=", b"\r"]
            )
            | st.binary(max_size=8)
        )
        data[place : place + draw(st.sampled_from([0, 0, 1, 8, 100]))] = piece

    return name, bytes(data)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(damaged(), min_size=8, max_size=8))
def test_every_damaged_file_ends_well(files: list[tuple[str, bytes]]) -> None:
    """A file of any format with bytes changed, cut or put in."""
    dropped = {f"{number}.{name}": data for number, (name, data) in enumerate(files)}

    async def run(root: Path) -> None:
        async with simulated(root, overrides=OVERRIDES) as world:
            for name, data in dropped.items():
                world.drop(name, data)

            assert await world.drain(limit_s=60)

    with TemporaryDirectory() as folder, capture_logs() as logs:
        anyio.run(run, Path(folder))
        ended(Path(folder), dropped, logs)
