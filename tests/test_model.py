from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptspool.claims import mint
from promptspool.model import REMOTE_RANK, BatchId, Job, JobId, RemoteStatus, batch_id, successor_id
from promptspool.wire import row_of, wire_id

JOB = JobId("20261120t231853z-4f7k2m")
times = st.floats(min_value=0, max_value=250_000_000_000)


@given(st.lists(st.tuples(st.integers(min_value=0), st.integers(1, 4)), max_size=40))
def test_names_of_a_lineage_never_collide(splits: list[tuple[int, int]]) -> None:
    """However batches are handed on, one by one or divided, every name is given once."""
    leaves = [batch_id(JOB, part) for part in (1, 2, 11)]
    names = set(leaves)

    for which, parts in splits:
        parent = leaves.pop(which % len(leaves))
        successors = [successor_id(parent, part, parts) for part in range(1, parts + 1)]

        assert names.isdisjoint(successors)
        assert len(set(successors)) == parts

        names.update(successors)
        leaves.extend(successors)


def test_a_batch_turned_away_for_days_keeps_a_short_name() -> None:
    """A lone successor counts on instead of growing, so its files can always be named."""
    name = batch_id(JOB, 1)

    for _ in range(1000):
        name = successor_id(name, 1, 1)

    assert name == f"{JOB}.1+1000"
    assert successor_id(name, 2, 2) == f"{JOB}.1+1000.2"
    assert successor_id(BatchId(f"{JOB}.1+1.2"), 1, 1) == f"{JOB}.1+1.2+1"


@given(times, st.integers(min_value=0, max_value=10**9))
def test_a_wire_id_suits_every_provider_and_comes_back(now: float, row: int) -> None:
    """A request's name on the wire is short and plain, and says which row it is."""
    job = mint(now)
    name = wire_id(job, row)

    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)
    assert row_of(job, name) == row


@given(
    st.text() | st.text(alphabet=string.digits + "-+ _.\n²٣", max_size=12).map(f"{JOB}-".__add__),
)
def test_only_our_own_wire_ids_name_a_row(custom_id: str) -> None:
    """What we could not have sent names no row, so that no row is answered under two names."""
    row = row_of(JOB, custom_id)

    assert row is None or wire_id(JOB, row) == custom_id


@pytest.mark.parametrize(
    "custom_id",
    [
        "",
        "-",
        "1",
        "request-1",
        f"{JOB}",
        f"{JOB}-",
        f"{JOB}-x",
        f"{JOB}--1",
        f"{JOB}-+1",
        f"{JOB}-007",
        f"{JOB}-²",
        f"{JOB}-1 ",
        f"{JOB}-" + "9" * 5000,
        "20261120t231853z-4f7k2n-1",
    ],
)
def test_foreign_ids_name_no_row(custom_id: str) -> None:
    """A name that is not ours is recognised, whatever a provider made up."""
    assert row_of(JOB, custom_id) is None


@given(st.lists(times, min_size=2, max_size=5))
def test_job_ids_sort_by_age(moments: list[float]) -> None:
    """Ids of jobs claimed in different seconds sort as the jobs' ages do."""
    seconds = sorted({int(moment) for moment in moments})
    ids = [mint(second) for second in seconds]

    assert ids == sorted(ids)
    assert all(re.fullmatch(r"[0-9]{8,9}t[0-9]{6}z-[0-9a-z]{6}", one) for one in ids)


def test_a_name_is_shown_whatever_its_bytes() -> None:
    """A file name that is no UTF-8 can be written to any log."""
    job = Job(
        id=JOB,
        name=b"caf\xe9.txt",
        stem=b"caf\xe9.txt",
        profile="default",
        provider=None,
        base_url=None,
        claimed_at=0.0,
    )

    assert job.shown == "caf\\xe9.txt"
    assert job.shown.encode()


def test_terminal_statuses_share_the_highest_rank() -> None:
    """Every remote status has its rank, and exactly the terminal ones have the last."""
    assert set(REMOTE_RANK) == set(RemoteStatus)
    assert {status for status in RemoteStatus if status.is_terminal} == {
        RemoteStatus.COMPLETED,
        RemoteStatus.FAILED,
        RemoteStatus.EXPIRED,
        RemoteStatus.CANCELLED,
        RemoteStatus.REFUSED,
        RemoteStatus.LOST,
    }
    assert [status for status in RemoteStatus if status.is_terminal and not status.has_run] == [
        RemoteStatus.FAILED,
        RemoteStatus.REFUSED,
    ]
