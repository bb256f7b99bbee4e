"""Planning many rows at once comes to what planning them one by one comes to."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from promptspool import worker
from promptspool.errors import BadInput
from promptspool.intake import Caps, Dropped, Limits, plan
from promptspool.intake.formats.json_files import read_jsonl
from promptspool.intake.formats.texts import read_text
from promptspool.intake.frame import numbers, odd_prompts
from promptspool.intake.rows import BLOCK_BYTES, Block, ReadOptions, spread
from promptspool.intake.writing import MAX_BYTES
from promptspool.model import JobId
from promptspool.settings import ProfileSettings
from promptspool.wire import Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptspool.intake.rows import Reader

JOB = JobId("20261120t231853z-4f7k2m")
PLENTY = Limits(max_requests=50_000, max_bytes=190_000_000, max_inputs=50_000)

PLAIN = b'{"prompt": "a"}\n'

CHAT = {"endpoint": "/v1/chat/completions"}

STYLES = [(", ", ": "), (",", ":"), (" , ", " : ")]

texts = st.one_of(
    st.text(alphabet='ab 7"\\\n\t\u2028\x85é😀 \u3000{}:,', max_size=8),
    st.sampled_from(["", " ", "\n", "may-1", "may-2", "x", "\x7f", "a" * 513]),
)
values = st.one_of(
    texts, texts, st.integers(-3, 10**20), st.none(), st.just([]), st.just([{"role": "user"}])
)
names = st.one_of(
    st.sampled_from(["prompt", "id", "custom_id", "text", "x", "messages", "input", "Prompt "]),
    st.sampled_from(["prompt", "prompt", "id", "value_1"]),
    st.text(alphabet='"\\\x00\x7f\x85é\u2028.', max_size=3),
)


@st.composite
def many_lines(draw: st.DrawFn) -> str:
    """Return some lines of one shape, as a program writes them, each with its own values."""
    keys = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    comma, colon = draw(st.sampled_from(STYLES))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    is_ascii = draw(st.booleans())
    of_key = [draw(st.sampled_from([texts, texts, values, st.integers(0, 9)])) for _ in keys]
    lines = draw(st.lists(st.tuples(*of_key), min_size=1, max_size=12))

    return "".join(
        json.dumps(
            dict(zip(keys, line, strict=True)), separators=(comma, colon), ensure_ascii=is_ascii
        )
        + end
        for line in lines
    )


odd_lines = st.sampled_from(
    [
        "\n",
        "  \r\n",
        "nonsense\n",
        '"a text"\n',
        '{"prompt": "a", "prompt": "b"}\n',
        '{"prompt":"a"}{"prompt":"b"}\n',
        '{"prompt":\n"a"}\n',
        '{"prompt": [1,\n2]}\n',
        '{"prompt": "\\ud800"}\n',
        '{"pro\\u006dpt": "a"}\n',
        '{"prompt": "a"} \n',
        '{"prompt": "a"',
        "{}\n",
        '{"url": "/v1/responses", "body": {"model": "m", "input": "x"}}\n',
        '{"": 1}\n',
        '{"prompt": "\udcff"}\n',
    ]
)
similar_lines = st.lists(
    st.one_of(st.sampled_from(['{"prompt": "a"}\n', '{"prompt": "b"}\n']), odd_lines),
    min_size=2,
    max_size=6,
).map("".join)
files = st.builds(
    lambda mark, parts, is_whole: (mark + "".join(parts)).removesuffix("" if is_whole else "\n"),
    st.sampled_from(["", "", "\ufeff"]),
    st.one_of(
        st.lists(similar_lines, min_size=1, max_size=1),
        st.lists(st.one_of(many_lines(), many_lines(), similar_lines), min_size=1, max_size=3),
    ),
    st.booleans(),
).map(lambda text: text.encode(errors="surrogateescape"))

sizes = st.sampled_from([1, 24, 60, 200, 1_000, 1 << 18])

profiles = st.fixed_dictionaries(
    {"endpoint": st.sampled_from(["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])},
    optional={
        "on_bad_row": st.just("reject"),
        "on_duplicate_id": st.sampled_from(["number", "errors"]),
        "prompt": st.sampled_from(["<{{ prompt }}>", "{{ text }} {{ x }}", "{{ row }}"]),
        "id": st.just("{{ x }}"),
        "params": st.just({"max_output_tokens": 7}),
    },
)
limits_drawn = st.one_of(
    st.just(PLENTY),
    st.builds(
        Limits,
        max_requests=st.integers(1, 9),
        max_bytes=st.integers(150, 1_200),
        max_inputs=st.integers(1, 9),
        max_tokens=st.just({}) | st.fixed_dictionaries({"gpt-5-mini": st.integers(20, 200)}),
    ),
)


def dropped(
    original: Path,
    *,
    profile: dict[str, Any] | None = None,
    limits: Limits = PLENTY,
    max_expanded: int = 10**9,
    block_bytes: int | None = BLOCK_BYTES,
) -> Dropped:
    """Return what is to be planned."""
    return Dropped(
        original=original,
        source="may.jsonl",
        digest="b3-" + "ab" * 32,
        job=JOB,
        profile=ProfileSettings.model_validate({"model": "gpt-5-mini", **(profile or {})}),
        limits=limits,
        caps=Caps(max_expanded=max_expanded, max_ratio=200),
        give_up_at=99.5,
        block_bytes=block_bytes,
    )


def outcome(data: bytes, **changes: Any) -> tuple[object, dict[str, bytes]]:
    """Plan a file; return what was said of it, and what is in the folder then."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        original = folder / "original"
        original.write_bytes(data)

        try:
            said: object = plan(dropped(original, **changes), folder)
        except BadInput as error:
            said = (error.code, error.reason, error.line)

        return said, {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=60, deadline=None)
@given(files, profiles, limits_drawn, sizes, st.sampled_from([10**9, 10**9, 900]))
@example(PLAIN * 12, CHAT, PLENTY, 1_000, 10**9)
@example(PLAIN * 12, CHAT, replace(PLENTY, max_requests=5), 1_000, 10**9)
@example(PLAIN * 12, CHAT, replace(PLENTY, max_bytes=700), 1_000, 10**9)
@example(PLAIN * 12, CHAT, replace(PLENTY, max_tokens={"gpt-5-mini": 50}), 1_000, 10**9)
@example(PLAIN * 12, CHAT, replace(PLENTY, max_tokens={"gpt-5-mini": 1}), 1_000, 10**9)
@example(
    b'{"id": 7, "prompt": "a"}\n' * 3, {**CHAT, "on_duplicate_id": "number"}, PLENTY, 60, 10**9
)
def test_blocks_come_to_what_rows_come_to(
    data: bytes, profile: dict[str, Any], limits: Limits, size: int, max_expanded: int
) -> None:
    """However much is looked at together: what is said and every byte of the files is the same."""
    given_all = {"profile": profile, "limits": limits, "max_expanded": max_expanded}

    assert outcome(data, block_bytes=size, **given_all) == outcome(
        data, block_bytes=None, **given_all
    )


def test_longer_row_numbers_take_more_room() -> None:
    """A limit of bytes counts the digits of each row's number, though many are planned at once."""
    _, alone = outcome(PLAIN)
    size = len(alone[f"{JOB}.1.requests.jsonl"])
    limits = replace(PLENTY, max_bytes=3 * size)
    by_row = outcome(PLAIN * 12, limits=limits, block_bytes=None)

    assert outcome(PLAIN * 12, limits=limits) == by_row
    assert isinstance(by_row[0], Manifest)
    assert [batch.requests for batch in by_row[0].batches] == [3, 3, 3, 2, 1]


@settings(max_examples=200, deadline=None)
@given(files, sizes, st.sampled_from([10**6, 40]))
@example(PLAIN + b'{"prompt": "a", "prompt": "b"}\n', 1_000, 10**6)
@example(PLAIN + b'{"prompt":"a"}{"prompt":"b"}\n', 1_000, 10**6)
@example(PLAIN + b'{"prompt": [1,\n2]}\n', 1_000, 10**6)
@example(PLAIN + b'{"prompt":\n"a"}{"prompt": "b"}\n', 1_000, 10**6)
@example(PLAIN + b'\n{"prompt": "b"}', 1_000, 10**6)
@example(PLAIN + b'{"prompt": "\xff"}\n', 1_000, 10**6)
def test_a_block_stands_for_its_rows(data: bytes, size: int, max_row_bytes: int) -> None:
    """A reader that yields blocks reads the rows, faults and lines that it reads one by one."""
    found = [
        _read(data, ReadOptions(max_row_bytes=max_row_bytes, block_bytes=block_bytes))
        for block_bytes in (size, None)
    ]

    assert found[0] == found[1]


class Held:
    """A source whose content is in memory."""

    def __init__(self, data: bytes) -> None:
        """Hold *data*."""
        self.name = "may.jsonl"
        self.notes: dict[str, str] = {}
        self.data = data

    def open(self) -> io.BytesIO:
        """Open it at its beginning."""
        return io.BytesIO(self.data)

    def path(self) -> Path:
        """Never be asked for, since it is on no disk."""
        raise NotImplementedError


def _read(data: bytes, options: ReadOptions, reader: Reader = read_jsonl) -> Sequence[object]:
    """Return the rows of a file, and why it is refused at its end if it is."""
    found: list[object] = []

    try:
        for row in spread(reader(Held(data), options)):
            fault = row.fault and (row.fault.code, row.fault.reason, row.fault.key)
            columns = None if row.columns is None else list(row.columns.items())
            found.append((row.line, columns, fault, row.name, row.number))
    except BadInput as error:
        found.append((error.code, error.reason, error.line))

    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet='aé\0 \t\r\n\n\n\x0b\x0c\x1c\x85\u2028\ufeff"\\', max_size=12)),
    sizes,
    st.sampled_from([10**6, 7]),
    st.sampled_from(["utf-8", None, "latin-1"]),
)
def test_lines_of_text_are_the_same_in_blocks(
    drawn: list[str], size: int, max_row_bytes: int, encoding: str | None
) -> None:
    """A line of text is the same row, or none, whatever is looked at together with it."""
    data = "\n".join(drawn).encode(encoding or "utf-8", errors="replace")
    found = [
        _read(
            data,
            ReadOptions(max_row_bytes=max_row_bytes, block_bytes=block_bytes, encoding=encoding),
            read_text,
        )
        for block_bytes in (size, None)
    ]

    assert found[0] == found[1]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("style", STYLES[:2])
def test_what_programs_write_is_read_in_blocks(style: tuple[str, str], end: bytes) -> None:
    """Lines as Python and as JavaScript write them need no look at each."""
    rows = [{"custom_id": f"é{n}", "prompt": f"{n}: ü\n\u2028"} for n in range(3_000)]
    lines = [json.dumps(row, separators=style, ensure_ascii=False).encode() + end for row in rows]
    found = list(read_jsonl(Held(b"".join(lines)), ReadOptions(max_row_bytes=10**6)))

    assert {type(one) for one in found} == {Block}
    assert sum(len(one.lines) for one in found if isinstance(one, Block)) == len(rows)


def test_what_is_odd_spoils_little() -> None:
    """One broken line among thousands leaves nearly all of them to be looked at together."""
    lines = [b'{"prompt": "Question %d"}\n' % n for n in range(9_000)]
    lines[4_321] = b'{"prompt": "broken\n'
    found = list(read_jsonl(Held(b"".join(lines)), ReadOptions(max_row_bytes=10**6)))
    blocks = [one for one in found if isinstance(one, Block)]

    assert sum(len(one.lines) for one in blocks) > 8_000
    assert [row.line for row in spread(found)] == list(range(1, 9_001))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([None, None, "x", "y", "may-1", "may-3", "may-03"]), min_size=1),
    st.booleans(),
    sizes,
)
def test_one_id_is_never_two_rows(drawn: list[str | None], is_odd: bool, size: int) -> None:  # noqa: FBT001
    """A file is refused if and only if two rows share an id, own ones and those after lines."""
    style = (" ,", ":") if is_odd else (",", ":")
    rows = [{"prompt": "a"} if name is None else {"prompt": "a", "id": name} for name in drawn]
    data = "".join(json.dumps(row, separators=style) + "\n" for row in rows).encode()
    called = [name or f"may-{line}" for line, name in enumerate(drawn, start=1)]
    said, _ = outcome(data, block_bytes=size)

    assert (isinstance(said, tuple) and said[0] == "duplicate_id") is (
        len(set(called)) < len(called)
    )


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker find the functions of this module."""
    here = Path(__file__).parent
    places = [here.parent, here, here.parent / "daemon"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))


def plan_on_a_small_disk(original: Path, folder: Path, max_bytes: int) -> None:
    """Plan a file in a process that may write no larger one than *max_bytes*."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    plan(dropped(original), folder)


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize("max_bytes", [1_000_000, 2 * MAX_BYTES])
def test_a_full_disk_is_told_of(tmp_path: Path, max_bytes: int) -> None:
    """What cannot be written in the background ends the planning with the system's own error."""
    original = tmp_path / "original"
    original.write_bytes(b'{"prompt": "%s"}\n' % (b"a" * 900) * 20_000)

    with pytest.raises(OSError, match="File too large") as caught:
        worker.run(plan_on_a_small_disk, original, tmp_path, max_bytes)

    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "manifest.json").exists()


def test_a_prompt_is_odd_if_it_is_blank_or_has_a_line_end() -> None:
    """Any character, escaped or not, is taken for text if it is some, and needs no escape."""
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    blank = {place for place, character in enumerate(characters) if not character.strip()}
    ends = {place for place, character in enumerate(characters) if character in "\x85\u2028\u2029"}
    escaped = [b'"\\u%04x"' % ord(character) for character in characters]

    assert odd_prompts(escaped, is_ascii=True) == blank
    assert (
        odd_prompts([text.upper().replace(b"U", b"u", 1) for text in escaped], is_ascii=True)
        == blank
    )
    assert odd_prompts([json.dumps(one).encode() for one in characters], is_ascii=True) == blank

    written = [json.dumps(one, ensure_ascii=False).encode() for one in characters]
    assert odd_prompts(written, is_ascii=False) == blank | ends
    assert odd_prompts([b"7", b"{}", b'""', b'"a"'], is_ascii=True) == {0, 1, 2}


@given(st.lists(st.integers(0, 10**7), min_size=1), st.integers(0, 10**7), st.integers(1, 2_500))
def test_numbers_are_their_digits(counted: list[int], first: int, count: int) -> None:
    """Runs of numbers, runs with gaps and any others are written as one by one."""
    run = range(first, first + count)

    for several in (counted, run, list(run), list(run[::3]), range(first + count, first, -1)):
        assert numbers(several) == [b"%d" % number for number in several]
