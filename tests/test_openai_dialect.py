from __future__ import annotations

import json
import math
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptspool.errors import NotFound, Unavailable
from promptspool.model import BatchId, RemoteBatch, RemoteStatus
from promptspool.provider.base import Submission
from promptspool.provider.http import Http, Limits
from promptspool.provider.openai import PAGE_SIZE, STATUSES, OpenAI, faults, remote_batch
from promptspool.simulator import Fault
from world import KEY, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from promptspool.simulator.faults import Action

DOCUMENTED = {
    "id": "batch_abc",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": "gpt-5-2025-08-07",
    "errors": None,
    "input_file_id": "file-in",
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": "file-out",
    "error_file_id": "file-err",
    "created_at": 1795000000,
    "in_progress_at": 1795000100,
    "expires_at": 1795086400,
    "finalizing_at": 1795000200,
    "completed_at": 1795000300,
    "failed_at": None,
    "request_counts": {"total": 100, "completed": 95, "failed": 5},
    "metadata": {"promptspool_batch": "j.1"},
}


def read(**changes: object) -> RemoteBatch:
    """Return the documented Batch object with *changes*, in our words."""
    return remote_batch(DOCUMENTED | changes)


def test_the_documented_object_is_understood() -> None:
    """A Batch object as documented says all that we ask of it."""
    assert read() == RemoteBatch(
        id="batch_abc",
        status=RemoteStatus.COMPLETED,
        raw_status="completed",
        metadata={"promptspool_batch": "j.1"},
        input_file="file-in",
        output_file="file-out",
        error_file="file-err",
        created_at=1795000000.0,
        ended_at=1795000300.0,
        total=100,
        completed=95,
        failed=5,
        errors=None,
    )


def test_an_id_is_all_that_a_batch_needs() -> None:
    """Whatever else is left out, a batch with an id is a batch that runs."""
    assert remote_batch({"id": "b"}) == RemoteBatch(
        id="b",
        status=RemoteStatus.UNKNOWN,
        raw_status="unknown",
        metadata={},
        input_file=None,
    )


@pytest.mark.parametrize(
    "data",
    [None, [], "text", 7, {}, {"id": ""}, {"id": None}, {"id": 7}, {"status": "completed"}],
)
def test_what_has_no_id_is_no_batch(data: object) -> None:
    """An answer without an id says nothing of what was done."""
    with pytest.raises(Unavailable):
        remote_batch(data)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        *((word.value, word) for word in RemoteStatus if word not in ("refused", "lost")),
        ("Validating", RemoteStatus.VALIDATING),
        ("pre_schedule", RemoteStatus.VALIDATING),
        ("VALIDATING", RemoteStatus.VALIDATING),
        ("IN_PROGRESS", RemoteStatus.IN_PROGRESS),
        ("complete", RemoteStatus.COMPLETED),
        ("COMPLETED", RemoteStatus.COMPLETED),
        ("CANCELING", RemoteStatus.CANCELLING),
        ("CANCELED", RemoteStatus.CANCELLED),
        ("error", RemoteStatus.FAILED),
        ("refused", RemoteStatus.UNKNOWN),
        ("lost", RemoteStatus.UNKNOWN),
        ("fancy_new_word", RemoteStatus.UNKNOWN),
        ("", RemoteStatus.UNKNOWN),
        (None, RemoteStatus.UNKNOWN),
        (7, RemoteStatus.UNKNOWN),
    ],
)
def test_a_status_is_known_by_many_words(raw: object, status: RemoteStatus) -> None:
    """Statuses are an open set in any case of letters (F29); our own words come only from us."""
    assert read(status=raw).status is status


def test_status_words_are_lower_case() -> None:
    """The table of words is looked up in lower case, so it has to be."""
    assert all(word == word.lower() for word in STATUSES)


@pytest.mark.parametrize("nothing", ["", None])
def test_no_file_is_no_file(nothing: str | None) -> None:
    """A file id of `""` is none (F8), as is null."""
    remote = read(output_file_id=nothing, error_file_id=nothing, input_file_id=nothing)

    assert (remote.output_file, remote.error_file, remote.input_file) == (None, None, None)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"object": "list", "data": []}, None),
        ({"object": "list", "data": None}, None),
        ("words", None),
        (
            {"object": "list", "data": [{"code": "x", "message": "m", "line": 3, "param": "p"}]},
            [{"code": "x", "message": "m", "line": 3, "param": "p"}],
        ),
        ([{"code": "x", "line": "4", "message": None}], [{"code": "x", "line": 4}]),
        (["just words", 7], [{"message": "just words"}, {"message": "7"}]),
        ([{}, None], [{}, {"message": "None"}]),
    ],
)
def test_complaints_come_in_many_shapes(errors: object, expected: object) -> None:
    """`errors` may be the documented list, a bare list (F28), texts or nothing."""
    said = faults(errors)

    assert (None if said is None else json.loads(said)) == expected
    assert read(errors=errors).errors == said


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (7, 7),
        ("7", 7),
        (7.0, 7),
        ("7.0", 7),
        (10**30, 2**53),
        (None, 0),
        ("many", 0),
        ("inf", 0),
        ("nan", 0),
        (-1, 0),
        (True, 0),
        ([], 0),
    ],
)
def test_a_count_may_be_a_text(raw: object, count: int) -> None:
    """Numbers may come as text or with a point, and what is none counts nothing."""
    remote = read(request_counts={"total": raw, "completed": raw, "failed": raw})

    assert (remote.total, remote.completed, remote.failed) == (count, count, count)


@pytest.mark.parametrize("counts", [None, [], 7, {"total": None}])
def test_counts_may_be_missing(counts: object) -> None:
    """Counts that are null, or nothing at all, are zero."""
    remote = read(request_counts=counts)

    assert (remote.total, remote.completed, remote.failed) == (0, 0, 0)


@pytest.mark.parametrize(
    ("raw", "at"),
    [
        (1795000000, 1795000000.0),
        (1795000000.5, 1795000000.5),
        ("1795000000", 1795000000.0),
        ("2026-11-18T13:46:40Z", 1795009600.0),
        ("2026-11-18T14:46:40+01:00", 1795009600.0),
        (None, None),
        ("", None),
        ("yesterday", None),
        ([], None),
        ("nan", None),
        ("inf", None),
        (1795000000000, None),
        (-1, None),
        ("9999-12-31T23:59:59-23:59", None),
        ("0001-01-01T00:00:00", None),
    ],
)
def test_a_time_may_be_a_number_or_a_date(raw: object, at: float | None) -> None:
    """Times come as numbers, texts or ISO 8601, and what is none is not known."""
    found = read(created_at=raw).created_at

    if at is None:
        assert found is None or math.isfinite(found)
    else:
        assert found == at


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


counts = st.dictionaries(st.sampled_from(["total", "completed", "failed"]), json_values)


@given(
    st.fixed_dictionaries(
        {"request_counts": counts},
        optional=dict.fromkeys(DOCUMENTED.keys() - {"request_counts"}, json_values),
    ),
)
def test_no_json_breaks_the_decoder_or_the_store(data: dict[str, Any]) -> None:
    """Any JSON with an id is a batch whose every field the database can hold."""
    remote = remote_batch(data | {"id": "batch_abc"})
    values = [
        remote.status.value, remote.output_file, remote.error_file, remote.created_at,
        remote.ended_at, remote.total, remote.completed, remote.failed, remote.errors,
    ]  # fmt: skip
    connection = sqlite3.connect(":memory:")

    try:
        connection.execute(f"SELECT {', '.join('?' for _ in values)}", values)
    finally:
        connection.close()

    assert all(isinstance(value, str) for value in remote.metadata.values())


# Against a provider on a real socket.


def provider_at(base_url: str) -> OpenAI:
    """Return a provider with short limits."""
    limits = Limits(
        timeout_s=5.0,
        connect_timeout_s=5.0,
        transfer_timeout_s=5.0,
        max_answer_bytes=10_000_000,
        max_download_bytes=10_000_000,
    )

    return OpenAI("openai", Http(base_url=base_url, key=lambda: KEY, limits=limits))


@pytest.mark.anyio
async def test_a_big_file_goes_up_and_comes_down_unchanged(tmp_path: Path) -> None:
    """What is uploaded is streamed, listed under its name, known by its id, and deleted twice."""
    path = tmp_path / "requests.jsonl"
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
    path.write_bytes(line * 50_000)

    async with simulated(tmp_path) as world:
        provider = provider_at(world.base_url)
        file = await provider.upload(path, "promptspool-x-1.jsonl")

        assert file.size_bytes == len(line) * 50_000
        assert await provider.file(file.id) == file
        assert list(await provider.files()) == [file]

        await provider.download(file.id, tmp_path / "back.jsonl")

        assert (tmp_path / "back.jsonl").read_bytes() == path.read_bytes()

        await provider.delete_file(file.id)
        await provider.delete_file(file.id)

        with pytest.raises(NotFound):
            await provider.file(file.id)

        await provider.close()


@pytest.mark.anyio
@pytest.mark.parametrize("action", ["cut", "reset", "truncate", "garbage", "status"])
async def test_a_spoiled_download_leaves_no_file(tmp_path: Path, action: Action) -> None:
    """However a download goes wrong, there is no file until one went right."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'{"custom_id": "a"}\n' * 10_000)

    async with simulated(tmp_path) as world:
        provider = provider_at(world.base_url)
        file = await provider.upload(path, "x.jsonl")
        world.simulator.faults.add(Fault(route="files.content", action=action))

        with pytest.raises(Unavailable):
            await provider.download(file.id, tmp_path / "back.jsonl")

        assert not (tmp_path / "back.jsonl").exists()

        await provider.download(file.id, tmp_path / "back.jsonl")

        assert (tmp_path / "back.jsonl").read_bytes() == path.read_bytes()

        await provider.close()


@pytest.mark.anyio
async def test_the_list_is_read_in_pages(tmp_path: Path) -> None:
    """Pages hold up to a hundred batches, follow each other without gaps, and tell the time."""
    path = tmp_path / "requests.jsonl"
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    url = "/v1/chat/completions"
    line = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    path.write_text(json.dumps(line) + "\n")

    async with simulated(tmp_path) as world:
        provider = provider_at(world.base_url)
        file = await provider.upload(path, "x.jsonl")
        ids = set()

        for _ in range(PAGE_SIZE + 5):
            submission = Submission(
                batch=BatchId("j.1"),
                endpoint=url,
                model="m",
                completion_window="24h",
                requests_file=path,
                input_file=file.id,
                metadata={},
            )
            ids.add((await provider.create(submission)).id)

        first = await provider.page(None)
        second = await provider.page(first.batches[-1].id)

        assert (len(first.batches), first.has_more) == (PAGE_SIZE, True)
        assert (len(second.batches), second.has_more) == (5, False)
        assert {batch.id for batch in [*first.batches, *second.batches]} == ids
        assert first.answered_at is not None

        known = await provider.retrieve(first.batches[0].id)

        assert known.input_file == file.id
        assert (await provider.cancel(known.id)).status in (
            RemoteStatus.CANCELLING,
            RemoteStatus.CANCELLED,
        )

        with pytest.raises(NotFound):
            await provider.retrieve("batch_nobody")

        await provider.close()
