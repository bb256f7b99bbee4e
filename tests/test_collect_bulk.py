from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desk import FIRST, GIVE_UP_AT, JOB, Desk, bad, ok
from promptspool.collect.answers import ERROR, KINDS, OUTPUT, Noise, lines, path_of, rows_of
from promptspool.collect.index import LEAST_BYTES, READ, indexed, keep_index
from promptspool.collect.judge import Judge
from promptspool.collect.part import Part
from promptspool.collect.standing import Standing
from promptspool.collect.verdict import Verdict, parsed, verdict
from promptspool.errors import Bug
from promptspool.wire import SettledBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from promptspool.collect import Tally
    from promptspool.collect.row_answers import RowAnswer
    from promptspool.model import Batch

SCHEMA: dict[str, Any] = {"type": "object", "required": ["score"]}

SAID = '"{\\"score\\": 1}"'
BODY = '{{"choices":[{{"message":{{"content":{text}}}}}],"usage":{usage}}}'
USAGE = '{{"prompt_tokens":{0},"completion_tokens":{1},"prompt_tokens_details":{2}}}'
OTHER_USAGE = '{{"output_tokens":{0},"input_tokens":{1},"output_tokens_details":{2}}}'

COUNTS = ("0", "12", "-1", "3.5", '"9"', "null", "1000000001", "1e400")
DETAILS = ("null", "7", '{"cached_tokens":1,"reasoning_tokens":2}', '{"cached_tokens":-3}')

ODD = {
    "id": ("null", "7", '{"a": [1]}', '"\\u00e9"', '"é"'),
    "name": ("0{}", "+{}", " {}", "{}_0", "-{}", "{}\u0660", "\\u003{}", "x", "", "9{}"),
    "status": ("200.0", '"200"', "201", "429", "400", "null", '"ok"', "{}"),
    "text": ('"é\u2028"', '"\\ud800"', "NaN", "1e999", f'"{"x" * 200_000}"', "[[]]", '"\udcff"'),
    "usage": (
        *(form.format(count, 5, "{}") for form in (USAGE, OTHER_USAGE) for count in COUNTS),
        *(form.format(3, 5, one) for form in (USAGE, OTHER_USAGE) for one in DETAILS),
        "null",
        "[]",
    ),
    "body": (BODY[:-2] + ',"usage":[]}}', "null", "[]", "{{}}", '"text"'),
    "error": ('{"code":"bad"}', '"no"', "{}", '{"code":"batch_expired"}'),
    "members": ("reversed", "error", "id", "response", "custom_id", "custom_id twice", "more"),
    "spaces": ("none", "returns"),
    "harm": ("\r", " ", "\xff", '{"custom_id":"x"}', ",", "\x0b", "\n"),
}
"""What a line may say in place of what is usual, by the part of it."""


def answer_line(row: int, odd: dict[str, str], *, at: int = -1) -> bytes:
    """Return a line as a provider may write it: an answer, but for its *odd* parts.

    What harms it is put in at one place, its end by default.
    """
    comma, colon = {"none": (",", ":"), "returns": (",\r ", " :")}.get(
        odd.get("spaces", ""), (", ", ": ")
    )
    usage = odd.get("usage", USAGE.format(4, 3, "null"))
    body = odd.get("body", BODY).format(text=odd.get("text", SAID), usage=usage)
    body = json.dumps(BODY.format(text='"a"', usage=usage)) if body == '"text"' else body
    response = [("status_code", odd.get("status", "200")), ("body", body)]
    members = [
        ("id", odd.get("id", '"r-1"')),
        ("custom_id", f'"{JOB}-{odd.get("name", "{}").format(row)}"'),
        ("response", _object(response, comma, colon)),
        ("error", odd.get("error", "null")),
    ]

    match odd.get("members", ""):
        case "reversed":
            members.reverse()
        case "custom_id twice":
            members.append(("custom_id", f'"{JOB}-{row + 1}"'))
        case "more":
            members.append(("more", "[1]"))
        case name:
            members = [member for member in members if member[0] != name]

    line = _object(members, comma, colon).encode(errors="surrogateescape")
    at = at if at >= 0 else len(line)

    return line[:at] + odd.get("harm", "").encode("latin-1") + line[at:]


@st.composite
def answer_lines(draw: st.DrawFn, rows: int) -> bytes:
    """Return a line that is odd in no part, or in some."""
    parts = draw(st.sets(st.sampled_from(sorted(ODD)), max_size=3))
    odd = {part: draw(st.sampled_from(ODD[part])) for part in sorted(parts)}

    return answer_line(draw(st.integers(0, rows)), odd, at=draw(st.sampled_from([-1, 0, 60])))


def _object(members: list[tuple[str, str]], comma: str, colon: str) -> str:
    return "{" + comma.join(f'"{key}"{colon}{value}' for key, value in members) + "}"


def files(rows: int) -> st.SearchStrategy[bytes]:
    """Return what a provider's file may hold: lines, blank ones among them, and a torn end."""
    line = st.one_of(
        answer_lines(rows),
        answer_lines(rows),
        st.sampled_from([b"", b" \r", b"{", b"null", b'{"custom_id":1}']),
        st.integers(0, rows).map(lambda row: msgspec.json.encode(ok(row))),
        st.integers(0, rows).map(lambda row: msgspec.json.encode(bad(row, 503))),
    )

    return st.builds(
        lambda found, end: b"\n".join(found) + end,
        st.lists(line, max_size=8),
        st.sampled_from([b"\n", b"", b"\n\n", b'\n{"custom_id']),
    )


def standing(desk: Desk, batch: Batch) -> tuple[Standing, list[bytes]]:
    """Return an empty standing of a batch, and where its lines that are no answers go."""
    shown: list[bytes] = []
    judge = Judge(desk.response_schema)
    rows = rows_of(desk.folder, batch)

    return Standing(desk.folder, batch, rows, noise=Noise(keep=shown.append), judge=judge), shown


def content(found: Standing) -> dict[str, Any]:
    """Return all that a standing says, without what stands where nothing is said."""
    said = [
        (found.verdicts[place], found.kinds[place], found.offsets[place], found.lengths[place])
        for place in range(len(found.rows))
        if found.verdicts[place]
    ]
    noise = (found.noise.malformed, found.noise.foreign, found.noise.duplicate)

    return {
        "places": [place for place, one in enumerate(found.verdicts) if one],
        "said": said,
        "rows": list(found.rows),
        "noise": noise,
    }


@pytest.mark.parametrize("schema", [None, SCHEMA])
@pytest.mark.parametrize("faults", [(), (3,)], ids=["all rows", "some rows"])
def test_every_single_oddity_means_the_same(
    tmp_path: Path, schema: dict[str, Any] | None, faults: tuple[int, ...]
) -> None:
    """What is read at once says exactly what it says when it is read piece by piece."""
    desk = Desk(tmp_path, response_schema=schema)
    written = written_lines()
    batch = desk.plan(len(written) + 1, faults)
    desk.answer(batch, *written, *written[::-1])

    assert_same(desk, batch)


@pytest.mark.parametrize("schema", [None, SCHEMA])
@pytest.mark.parametrize("faults", [(), (3,)], ids=["all rows", "some rows"])
def test_every_single_oddity_is_delivered_alike(
    tmp_path: Path, schema: dict[str, Any] | None, faults: tuple[int, ...]
) -> None:
    """In bulk or row by row, with an index or without: the same bytes and the same counts."""
    desk = Desk(tmp_path, response_schema=schema)
    written = [line for line in written_lines() if not _is_noise(line)]
    batch = desk.plan(len(written_lines()) + 1, faults)
    desk.answer(batch, *written, *written[::-1])
    assert isinstance(desk.settle(batch, looks=9, now=GIVE_UP_AT), SettledBatch)

    assert_delivered_alike(desk, batch)
    assert (desk.folder / f"{FIRST}.index").exists()


def _is_noise(line: bytes) -> bool:
    """Tell whether a line says nothing, of which no index is made."""
    answer = parsed(line)

    return b"\n" in line or answer is None or verdict(answer) is Verdict.MISSING


def assert_delivered_alike(desk: Desk, batch: Batch) -> None:
    """Make the products in all ways, and compare them."""
    (desk.folder / f"{batch.id}.index").unlink(missing_ok=True)
    made = [_made(desk, None), _made(desk, _each)]
    read = kept(desk, batch)
    found = indexed(desk.folder, batch, noise=Noise(), judge=Judge(desk.response_schema))
    assert (found is None) == (read.noise.malformed > 0)
    assert found is None or content(found) == content(read)
    made += [_made(desk, None), _made(desk, _each)]

    assert made == made[:1] * 4


def kept(desk: Desk, batch: Batch) -> Standing:
    """Write the index of a batch, however small it is, and return what it was made of."""
    read, _ = standing(desk, batch)

    for kind in READ:
        read.read(kind)

    keep_index(desk.folder, read, least_bytes=0)

    return read


def written_lines() -> list[bytes]:
    """Return sound lines, and one for each oddity; line n is about row n."""
    odd = [{}, {}, *({part: one} for part, others in ODD.items() for one in others)]

    return [answer_line(row, one) for row, one in enumerate(odd)]


def assert_same(desk: Desk, batch: Batch) -> None:
    """Read a batch's files in both ways, and compare all that they say."""
    (quick, shown), (slow, expected) = standing(desk, batch), standing(desk, batch)

    for kind in READ:
        quick.read(kind)

        for offset, line in lines(path_of(desk.folder, FIRST, kind)):
            slow.weigh(KINDS.index(kind), offset, line)

    assert content(quick) == content(slow)
    assert (quick.tokens, quick.failures, shown) == (slow.tokens, slow.failures, expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 6), is_strict=st.booleans())
def test_oddities_together_mean_the_same(
    data: st.DataObject, count: int, *, is_strict: bool
) -> None:
    """As single oddities, several of them."""
    with TemporaryDirectory() as name:
        desk = _desk(Path(name), data, count, is_strict=is_strict)
        assert_same(desk, desk.batches[0])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(1, 6), is_strict=st.booleans())
def test_oddities_together_are_delivered_alike(
    data: st.DataObject, count: int, *, is_strict: bool
) -> None:
    """As single oddities, several of them."""
    with TemporaryDirectory() as name:
        desk = _desk(Path(name), data, count, is_strict=is_strict)
        batch = desk.batches[0]
        assert isinstance(desk.settle(batch, looks=9, now=GIVE_UP_AT), SettledBatch)
        assert_delivered_alike(desk, batch)


def _desk(folder: Path, data: st.DataObject, count: int, *, is_strict: bool) -> Desk:
    """Return a desk with a batch of some rows, answered somehow."""
    desk = Desk(folder, response_schema=SCHEMA if is_strict else None)
    batch = desk.plan(count, tuple(data.draw(st.sets(st.integers(1, count), max_size=2))))

    for kind in (OUTPUT, ERROR):
        path_of(folder, batch.id, kind).write_bytes(data.draw(files(count), label=kind))

    return desk


def _each(rows: Iterator[RowAnswer]) -> dict[str, str]:
    for _ in rows:
        pass

    return {}


def _made(desk: Desk, shape: Any) -> tuple[Any, ...]:
    """Return what is delivered, and what was counted."""
    tally: Tally = desk.tally(shape)
    paths = [desk.folder / name for name in ("results.jsonl", "errors.jsonl", "unreadable.txt")]
    noise = (tally.noise.malformed, tally.noise.foreign, tally.noise.duplicate)
    found = [path.read_bytes() if path.exists() else None for path in paths]

    return (*found, tally.results, tally.errors, tally.codes, noise)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Return a settled batch of three answers, with an index of them."""
    desk = Desk(tmp_path)
    batch = desk.plan(4, (1,))
    desk.answer(batch, ok(3), ok(0), ok(2))
    desk.settled(batch)
    kept(desk, desk.batches[0])

    return desk


def _index(desk: Desk) -> Standing | None:
    return indexed(desk.folder, desk.batches[0], noise=Noise(), judge=Judge())


def test_an_index_stands_for_its_files(desk: Desk) -> None:
    """What an index says is what was read."""
    found = _index(desk)

    assert found is not None
    assert list(found.rows) == [0, 2, 3]
    names = []

    with path_of(desk.folder, FIRST, OUTPUT).open("rb") as file:
        for offset, length in zip(found.offsets, found.lengths, strict=True):
            file.seek(offset)
            names.append(json.loads(file.read(length))["custom_id"])

    assert names == [f"{JOB}-{row}" for row in (0, 2, 3)]


def test_a_damaged_index_is_no_index(desk: Desk) -> None:
    """Whatever byte of it is another, or however short it is: the files are read again."""
    path = desk.folder / f"{FIRST}.index"
    data = path.read_bytes()
    expected = desk.products()

    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert _index(desk) is None
        path.write_bytes(data[:at])
        assert _index(desk) is None

    assert desk.products() == expected


@pytest.mark.parametrize("kind", READ)
def test_an_index_of_other_files_is_no_index(desk: Desk, kind: str) -> None:
    """What was written to since, or is there only now, is read again, as after a second look."""
    path = path_of(desk.folder, FIRST, kind)
    data = path.read_bytes() if path.exists() else b""
    path.write_bytes(data.replace(b"yes", b"no!"))
    os.utime(path, ns=(1, 1))

    assert _index(desk) is None
    assert len(desk.products()[0]) == 3


def test_an_answer_never_goes_to_another_row(desk: Desk) -> None:
    """A file that changes while it is delivered is met by its names."""
    path = path_of(desk.folder, FIRST, OUTPUT)
    told = path.stat()
    lines_ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines_[::-1]))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))

    with pytest.raises(Bug, match=r"row \d: its answer cannot be read again"):
        desk.tally()


def test_what_a_successor_says_nothing_of_stays_as_it_was(tmp_path: Path) -> None:
    """A later batch of the same rows takes the place of what it has a line for, and of no more."""
    desk = Desk(tmp_path)
    batch = desk.plan(3)
    desk.answer(batch, ok(0), bad(1, 500), bad(2, 503, "busy"))
    (successor,) = desk.settled(batch).successors
    desk.answer(desk.follow(batch, successor), ok(1))
    results, errors = desk.products()

    assert [line["custom_id"] for line in results] == ["user-0", "user-1"]
    assert [line["response"]["status_code"] for line in errors] == [503]


def test_a_small_settlement_leaves_no_index(tmp_path: Path) -> None:
    """Files that are read in a moment are not worth another; a large one is, and it is used."""
    desk = Desk(tmp_path)
    batch = desk.plan(3)
    desk.answer(batch, ok(0), ok(1), ok(2))
    desk.settled(batch)
    assert _index(desk) is None

    (desk.folder / f"{FIRST}.settled.json").unlink()
    desk.answer(batch, ok(0, "x" * LEAST_BYTES), ok(2), ok(1))
    desk.settled(batch)
    assert _index(desk) is not None
    assert len(desk.products()[0]) == 3


def test_a_large_part_is_what_was_written(tmp_path: Path) -> None:
    """What a thread writes is all there, in order, when the file has its name, and not before."""
    path = tmp_path / "results"
    blocks = [bytes([number % 256]) * 100_000 for number in range(100)]

    with Part(path) as part:
        for block in blocks:
            part.write(block)

        assert not path.exists()
        part.finish()

    assert path.read_bytes() == b"".join(blocks)


@pytest.mark.parametrize("count", [1, 100])
def test_a_full_disk_ends_a_part(tmp_path: Path, count: int) -> None:
    """What cannot be written is told, though a thread has met it, and the file gets no name."""
    (tmp_path / "results.part").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path / "results", count)

    assert not (tmp_path / "results").exists()


def _write(path: Path, count: int) -> None:
    with Part(path) as part:
        for _ in range(count):
            part.write(b"x" * 100_000)

        part.finish()
