from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from promptspool import delivery
from promptspool.model import Job, JobId, JobStatus
from promptspool.spool import Spool
from promptspool.wire import Claim

if TYPE_CHECKING:
    from pathlib import Path

ID = JobId("20261120t231853z-4f7k2m")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Return a spool with one job that has a sidecar and all that is to be delivered of it."""
    spool = Spool(tmp_path / "spool")
    spool.make()
    folder = spool.folder(ID)
    folder.mkdir()
    claim = Claim(
        job=ID,
        name=b"may.csv",
        stem=b"may.csv",
        profile="default",
        provider="openai",
        base_url="https://api.example.com/v1",
        claimed_at=1.0,
        size_bytes=3,
    )
    (folder / "claim.json").write_bytes(msgspec.json.encode(claim))
    (folder / "original").write_bytes(b"dropped")
    (folder / "sidecar.toml").write_bytes(b"priority = 1")
    (folder / "rejection.json").write_bytes(b'{"reason": "no"}')
    (folder / "results.jsonl").write_bytes(b"{}\n")
    (folder / "summary.json").write_text(json.dumps({"counts": {"results": 1, "errors": 0}}))

    return spool


def job(status: JobStatus) -> Job:
    """Return its row."""
    return Job(
        id=ID, name=b"may.csv", stem=b"may.csv", profile="default", provider="openai",
        base_url="https://api.example.com/v1", status=status, claimed_at=1.0, size_bytes=3,
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("retired", [[], ["sidecar.toml"], ["sidecar.toml", "original"]])
def test_a_delivery_cut_off_is_finished_under_its_name(spool: Spool, retired: list[str]) -> None:
    """Wherever it was cut off, also between sidecar and original, nothing gets a second name."""
    _retire(spool, spool.done, retired)

    delivered = delivery.deliver(
        spool, job(JobStatus.SETTLED), batches=[], taken={b"may.csv"}, now=2.0
    )

    assert delivered.stem == b"may.csv"
    assert names(spool.done) == ["may.csv", "may.csv.toml"]
    assert names(spool.outbox) == ["may.csv.results.jsonl", "may.csv.summary.json"]


@pytest.mark.parametrize("retired", [[], ["sidecar.toml"]])
def test_a_rejection_cut_off_is_finished_under_its_name(spool: Spool, retired: list[str]) -> None:
    """As a delivery."""
    _retire(spool, spool.rejected, retired)

    delivery.reject(spool, job(JobStatus.UNUSABLE), taken={b"may.csv"})

    assert names(spool.rejected) == ["may.csv", "may.csv.rejected.json", "may.csv.toml"]
    assert names(spool.working) == []


def _retire(spool: Spool, tree: Path, retired: list[str]) -> None:
    """Put what an earlier process had retired where it was put."""
    for name in retired:
        target = "may.csv" if name == "original" else "may.csv.toml"
        (spool.folder(ID) / name).rename(tree / target)


def test_a_sidecar_of_somebody_else_is_not_replaced(spool: Spool) -> None:
    """A file that has the name of our sidecar meanwhile stays, and the job takes another name."""
    (spool.rejected / "may.csv.toml").write_bytes(b"precious")

    delivery.reject(spool, job(JobStatus.UNUSABLE), taken={b"may.csv"})

    assert (spool.rejected / "may.csv.toml").read_bytes() == b"precious"
    assert names(spool.rejected) == [
        "may.csv-2",
        "may.csv-2.rejected.json",
        "may.csv-2.toml",
        "may.csv.toml",
    ]
