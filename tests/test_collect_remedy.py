from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptspool.collect.remedy import Remedy, faults_of, named_lines, remedy
from promptspool.model import Batch, BatchId, JobId
from promptspool.wire import BatchFault


def refused(
    errors: str | None,
    *,
    requests: int = 10,
    waits: int = 0,
    reuploads: int = 0,
    halvings: int = 0,
) -> Batch:
    """Return a batch that was refused with *errors*."""
    return Batch(
        id=BatchId("job.1"),
        job=JobId("job"),
        provider="p",
        base_url="http://127.0.0.1/v1",
        endpoint="/v1/responses",
        model="m",
        requests=requests,
        size_bytes=100,
        digest="0" * 64,
        waits=waits,
        reuploads=reuploads,
        halvings=halvings,
        give_up_at=1e9,
        errors=errors,
    )


def remedy_for(*faults: dict[str, object], requests: int = 10, **lineage: int) -> Remedy:
    """Return what is done about a batch of which *faults* are complained."""
    batch = refused(json.dumps(faults), requests=requests, **lineage)

    return remedy(batch, faults_of(batch))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"code": "token_limit_exceeded", "message": "x"}, Remedy.WAIT),
        (
            {
                "message": "Enqueued token limit reached for gpt-5-mini in organization org. "
                "Limit: 2,000,000 enqueued tokens."
            },
            Remedy.WAIT,
        ),
        (
            {"message": "Enqueued request limit reached. Limit: 1,000,000 enqueued requests."},
            Remedy.WAIT,
        ),
        ({"code": "token_limit_exceeded", "line": 3}, Remedy.WAIT),
        ({"code": "too_large", "message": "413"}, Remedy.SHRINK),
        ({"code": "invalid_json_line", "line": 1}, Remedy.EXCISE),
        ({"code": "invalid_json_line", "line": 10}, Remedy.EXCISE),
        ({"code": "invalid_json_line", "line": 11}, Remedy.HALVE),
        ({"code": "invalid_json_line", "line": 0}, Remedy.HALVE),
        ({"message": "No such File object: file-1"}, Remedy.UPLOAD_AGAIN),
        ({"message": "The input file could not be found."}, Remedy.UPLOAD_AGAIN),
        ({"message": "File file-1 has not been processed yet"}, Remedy.UPLOAD_AGAIN),
        ({"code": "file_not_found"}, Remedy.UPLOAD_AGAIN),
        ({"code": "model_not_found", "message": "The model `x` does not exist"}, Remedy.GIVE_UP),
        ({"code": "max_age_exceeded", "message": "too old"}, Remedy.GIVE_UP),
        ({"code": "never_heard_of", "message": "?"}, Remedy.HALVE),
        ({}, Remedy.HALVE),
    ],
)
def test_a_refusal_has_a_remedy(fault: dict[str, object], expected: Remedy) -> None:
    """What the provider complains of decides, by code or by message."""
    assert remedy_for(fault) is expected


def test_remedies_are_bounded() -> None:
    """No refusal is answered in the same way for ever, but for want of room."""
    odd: dict[str, object] = {"code": "odd"}
    large: dict[str, object] = {"code": "too_large"}
    no_file: dict[str, object] = {"code": "file_not_found"}

    assert remedy_for(odd, halvings=2) is Remedy.HALVE
    assert remedy_for(odd, halvings=3) is remedy_for(odd, requests=1) is Remedy.GIVE_UP
    assert remedy_for(large, halvings=9) is Remedy.SHRINK
    assert remedy_for(large, requests=1) is Remedy.GIVE_UP
    assert remedy_for(no_file, waits=3) is Remedy.UPLOAD_AGAIN
    assert remedy_for(no_file, reuploads=4) is Remedy.HALVE
    assert remedy_for({"code": "token_limit_exceeded"}, requests=1, waits=99) is Remedy.WAIT
    assert remedy_for() is Remedy.HALVE


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (None, []),
        ("", []),
        ("{", []),
        ("{}", []),
        ("5", []),
        ('[5, {"line": "x"}, {"code": "a", "line": 2, "new": 1}]', [BatchFault(code="a", line=2)]),
    ],
)
def test_garbage_is_no_complaint(errors: str | None, expected: list[BatchFault]) -> None:
    """What cannot be read is left out; the rest is kept."""
    assert faults_of(refused(errors)) == expected


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            BatchFault,
            code=st.none() | st.text(max_size=5),
            message=st.none() | st.text(max_size=5),
            line=st.none() | st.integers(-2, 15),
        ),
        max_size=6,
    ),
    st.integers(1, 12),
)
def test_every_complaint_has_a_remedy(faults: list[BatchFault], requests: int) -> None:
    """Named lines are always lines of the file, and never ignored."""
    batch = refused(None, requests=requests)
    named = named_lines(batch, faults)

    assert all(0 <= place < requests for place in named)
    assert (remedy(batch, faults) is Remedy.EXCISE) == bool(named)
