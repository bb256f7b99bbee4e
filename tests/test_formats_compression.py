from __future__ import annotations

import gzip
import sys
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.errors import BadInput
from promptspool.intake.formats.compression import (
    BOMB_FREE_BYTES,
    Caps,
    open_expanding,
    wrapping_suffix,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CAPS = Caps(max_expanded=1 << 30, max_ratio=50)

PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}

SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a place for one file after another."""
    return tmp_path_factory.mktemp("compression") / "dropped"


def unpacked(path: Path, data: bytes, suffix: str, *, caps: Caps = CAPS) -> bytes:
    """Return the content of a compressed file that holds *data*."""
    path.write_bytes(data)

    with open_expanding(path, suffix, name=f"may.csv{suffix}", caps=caps) as file:
        return file.read()


def refusal(path: Path, data: bytes, suffix: str, *, caps: Caps = CAPS) -> tuple[str, str]:
    """Return code and reason of the complaint about a compressed file."""
    with pytest.raises(BadInput) as caught:
        unpacked(path, data, suffix, caps=caps)

    return caught.value.code, caught.value.reason


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.sampled_from([*PACK]))
def test_all_members_are_one_content(path: Path, parts: list[bytes], suffix: str) -> None:
    """Files that were compressed one by one and put together read as if they had been one."""
    data = b"".join(map(PACK[suffix], parts))

    assert wrapping_suffix(data) == suffix
    assert unpacked(path, data, suffix) == b"".join(parts)


@pytest.mark.parametrize("zeros", [1, 511, 200_000])
def test_zeros_behind_a_gzip_member_mean_nothing(path: Path, zeros: int) -> None:
    """Tapes and disks fill their blocks with them, at the end and between."""
    data = gzip.compress(b"one ") + b"\0" * zeros + gzip.compress(b"two") + b"\0" * zeros

    assert unpacked(path, data, ".gz") == b"one two"


def test_frames_to_be_skipped_are_skipped(path: Path) -> None:
    """Zstandard has frames without content, which pzstd begins a file with."""
    data = SKIPPABLE_FRAME + zstd.compress(b"one ") + SKIPPABLE_FRAME + zstd.compress(b"two")

    assert wrapping_suffix(data) == ".zst"
    assert unpacked(path, data, ".zst") == b"one two"


@pytest.mark.parametrize(
    ("suffix", "change", "reason"),
    [
        (".gz", lambda data: data[:-1], "it ends too early, after 5 bytes of content"),
        (".gz", lambda data: data[:12], "it ends too early, after "),
        (".gz", lambda data: data[:5], "it ends too early, after 0 bytes of content"),
        (".gz", lambda data: data + b"garbage", "incorrect header check, after 5 bytes of content"),
        (".gz", lambda data: data[:-8] + bytes(4) + data[-4:], "incorrect data check, after "),
        (".gz", lambda data: data[:-4] + bytes(4), "incorrect length check, after "),
        (".zst", lambda data: data[:-1], "it ends too early, after "),
        (".zst", lambda data: data + b"garbage", "unknown frame descriptor, after 5 bytes of"),
        (".zst", lambda data: data[:-2] + b"xx", None),
    ],
)
def test_what_is_broken_says_how_and_how_far_it_got(
    path: Path, suffix: str, change: Callable[[bytes], bytes], reason: str | None
) -> None:
    """A file that was cut, or changed, or has something behind it, is refused."""
    options: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    packed = (
        gzip.compress(b"hello") if suffix == ".gz" else zstd.compress(b"hello", options=options)
    )
    code, found = refusal(path, change(packed), suffix)

    assert code == "broken_archive"
    assert found.startswith(f"may.csv{suffix} is broken: {reason or ''}")
    assert found.endswith("; make it anew and drop it again")


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=400),
    st.integers(0, 400),
    st.binary(max_size=4),
    st.sampled_from([*PACK]),
)
def test_whatever_bytes_are_unpacked_or_refused(
    path: Path, content: bytes, at: int, inserted: bytes, suffix: str
) -> None:
    """Bytes changed anywhere give some content or `BadInput`, never another exception."""
    packed = PACK[suffix](content)
    data = packed[:at] + inserted + packed[at + 1 :]

    try:
        outcome = "read" if unpacked(path, data, suffix) is not None else "nothing"
    except BadInput as error:
        outcome = error.code

    assert outcome in ("read", "broken_archive")


@pytest.mark.parametrize("suffix", [*PACK])
def test_a_bomb_is_refused_before_it_is_held(path: Path, suffix: str) -> None:
    """The ratio counts once 16 MB came out; the message names sizes, ratio and settings."""
    packed = PACK[suffix](bytes(BOMB_FREE_BYTES * 4))
    free = PACK[suffix](bytes(BOMB_FREE_BYTES))
    path.write_bytes(packed)
    blocks: list[int] = []

    def read_all() -> None:
        with open_expanding(path, suffix, name="may.csv", caps=CAPS) as file:
            blocks.extend(len(block) for block in iter(lambda: file.read(1 << 16), b""))

    tracemalloc.start()

    with pytest.raises(BadInput) as caught:
        read_all()

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert caught.value.code == "expands_too_far"
    assert caught.value.reason.startswith(f"may.csv has {len(packed):,} bytes and expands to ")
    assert "intake.max_expanded (1,073,741,824) or intake.max_ratio (50)" in caught.value.reason
    assert sum(blocks) <= BOMB_FREE_BYTES
    assert peak_bytes < 8_000_000
    assert len(unpacked(path, free, suffix)) == BOMB_FREE_BYTES


@pytest.mark.parametrize("suffix", [*PACK])
def test_no_more_than_the_cap_comes_out(path: Path, suffix: str) -> None:
    """To the byte."""
    packed = PACK[suffix](b"x" * 1000)

    assert len(unpacked(path, packed, suffix, caps=Caps(max_expanded=1000, max_ratio=1))) == 1000
    assert refusal(path, packed, suffix, caps=Caps(max_expanded=999, max_ratio=1)) == (
        "expands_too_far",
        (
            f"may.csv{suffix} has {len(packed)} bytes and expands to 1,000 or more, "
            f"{1000 // len(packed)} times as much; split it, or if it is to be trusted raise "
            f"intake.max_expanded (999) or intake.max_ratio (1)"
        ),
    )


def test_repeated_text_of_a_fair_ratio_is_no_bomb(path: Path) -> None:
    """What counts is the ratio of the whole file, not of its most repetitive part."""
    noise = zlib.compress(bytes(range(256)) * 4000, 0)
    content = bytes(BOMB_FREE_BYTES + 1_000_000) + noise
    packed = gzip.compress(content)
    ratio = len(content) // len(packed) + 1

    caps = Caps(max_expanded=1 << 30, max_ratio=ratio)
    assert unpacked(path, packed, ".gz", caps=caps) == content

    caps = Caps(max_expanded=1 << 30, max_ratio=ratio - 2)
    assert refusal(path, packed, ".gz", caps=caps)[0] == "expands_too_far"


def test_a_window_of_a_gigabyte_is_refused(path: Path) -> None:
    """A Zstandard file says itself how much memory it wants; 128 MB is the most it gets."""

    def packed(window_log: int) -> bytes:
        options: dict[int, int] = {zstd.CompressionParameter.window_log: window_log}
        compressor = zstd.ZstdCompressor(options=options)

        return compressor.compress(b"hello") + compressor.flush()

    assert unpacked(path, packed(27), ".zst") == b"hello"
    assert refusal(path, packed(30), ".zst") == (
        "broken_archive",
        (
            "may.csv.zst is broken: it wants more than 134,217,728 bytes of memory to be unpacked, "
            "after 0 bytes of content; make it anew and drop it again"
        ),
    )


@pytest.mark.parametrize("suffix", [*PACK])
def test_memory_does_not_grow_with_the_file(path: Path, suffix: str) -> None:
    """15 MB in thousands of members are read in less than 4."""
    member = PACK[suffix](b"words, " * 400)
    path.write_bytes(member * 5000)

    tracemalloc.start()

    with open_expanding(path, suffix, name="may.csv", caps=CAPS) as file:
        count = sum(len(block) for block in iter(lambda: file.read(1 << 16), b""))

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 2800 * 5000
    assert peak_bytes < 4_000_000
