"""Digests: what is hashed is known again, by whichever version it was noted."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from blake3 import blake3
from msgspec.structs import replace

from filled import batch as batch_of
from filled import job as job_of
from promptspool.context import Context
from promptspool.digest import Hasher, digest_of, earlier_digest_of
from promptspool.enquiry import found
from promptspool.errors import Bug
from promptspool.model import RemoteBatch, RemoteStatus
from promptspool.outcomes import Created
from promptspool.pricing import Prices
from promptspool.provider.base import EARLIER_DIGEST_KEY
from promptspool.settings import Settings
from promptspool.spool import Spool
from promptspool.store import opened
from promptspool.wire import PlannedBatch
from world import FakeClock, simulated

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CONTENT = b"line\n" * 300_000  # more than one block

PROMPTS = [{"custom_id": "a", "prompt": "one"}, {"custom_id": "b", "prompt": "two"}]


def test_a_digest_is_that_of_all_bytes(tmp_path: Path) -> None:
    """A file and its pieces have one digest, and another file has another."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    hasher = Hasher()

    for start in range(0, len(CONTENT), 1_000_000):
        hasher.update(CONTENT[start : start + 1_000_000])

    assert digest_of(path) == hasher.digest() == "b3-" + blake3(CONTENT).hexdigest()

    path.write_bytes(CONTENT + b"x")
    assert digest_of(path) != hasher.digest()


def test_what_an_earlier_version_noted_is_compared_by_its_hash(tmp_path: Path) -> None:
    """A digest without a prefix is SHA-256, and is looked for as such."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    noted = hashlib.sha256(CONTENT).hexdigest()

    assert digest_of(path, like=noted) == earlier_digest_of(path) == noted
    assert digest_of(path, like=digest_of(path)) == digest_of(path)


def test_a_plan_of_an_earlier_version_keeps_its_digest() -> None:
    """A plan on disk that says `sha256` is read as one that says `digest`, and written so."""
    old = b'{"id":"j-1","endpoint":"/e","model":"m","requests":1,"size_bytes":2,"sha256":"ab"}'
    planned = msgspec.json.decode(old, type=PlannedBatch)

    assert planned.digest == "ab"
    assert b"sha256" not in (again := msgspec.json.encode(planned))
    assert msgspec.json.decode(again, type=PlannedBatch) == planned


@pytest.mark.parametrize("is_noted", [True, False])
async def test_content_of_an_earlier_version_is_known_again(
    tmp_path: Path, *, is_noted: bool
) -> None:
    """With `on_same_content = "skip"` nothing is bought twice because the hash is another now."""
    skip = {"profiles": {"default": {"on_same_content": "skip"}}}

    async with simulated(tmp_path, overrides=skip) as world:
        world.drop("a.jsonl", PROMPTS)
        assert await world.drain()
        content = (world.spool.done / "a.jsonl").read_bytes()
        other = content[:-3] + b"x" + content[-2:]
        noted = hashlib.sha256(content if is_noted else other).hexdigest()

        with closing(sqlite3.connect(world.spool.database, isolation_level=None)) as database:
            database.execute("UPDATE jobs SET digest = ?", (noted,))

        world.drop("b.jsonl", content)
        assert await world.drain()
        world.assert_bought_once()
        world.assert_conserved("a.jsonl", ["a", "b"])

        if is_noted:
            assert world.rejection("b.jsonl") is not None
        else:
            world.assert_conserved("b.jsonl", ["a", "b"])


@pytest.mark.parametrize("is_same", [True, False])
async def test_a_batch_of_an_earlier_version_is_adopted(tmp_path: Path, *, is_same: bool) -> None:
    """What a version before has created of the same bytes is ours, other bytes are a fault."""
    spool = Spool(tmp_path)
    spool.make()
    settings = Settings.model_validate({"spool": {"path": tmp_path}})
    planned = batch_of(job_of(1))
    path = spool.requests_file(planned.job, planned.id)
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    batch = replace(planned, digest=digest_of(path))
    noted = hashlib.sha256(CONTENT if is_same else CONTENT + b"x").hexdigest()
    remote = RemoteBatch(
        id="batch_1",
        status=RemoteStatus.IN_PROGRESS,
        raw_status="in_progress",
        metadata={EARLIER_DIGEST_KEY: noted},
        input_file="file_1",
    )

    async with opened(spool.database) as store:
        context = Context(
            settings=settings, prices=Prices({}), spool=spool, spool_id="s", store=store,
            clock=FakeClock(), accounts={}, taken=set(),
        )  # fmt: skip

        if is_same:
            assert await found(context, batch, remote) == Created(remote=remote, found=True)
        else:
            with pytest.raises(Bug):
                await found(context, batch, remote)
