"""Retry: only what failed is asked again, and all of it is delivered again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash.mortal import Death, Fate, mortal
from promptspool.app import Daemon
from promptspool.claims import Claims
from promptspool.control import COMMAND as COMMAND_SUFFIX
from promptspool.control import Command, leave, take_answer
from promptspool.errors import BadInput
from promptspool.intake import Caps, Dropped, Limits, plan
from promptspool.model import BatchStatus, Job, JobId, JobStatus
from promptspool.retrying import NotRetryable, Retryable, begin, retry_id, retryable
from promptspool.settings import ProfileSettings, Settings
from promptspool.spool import Spool
from promptspool.store import opened
from promptspool.wire import KEPT, RETRY, PlannedRow, Retry, row_of
from world import START, FakeClock, overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from promptspool.control import Answer, Verb
    from promptspool.model import Batch
    from promptspool.wire import Manifest
    from world import World

FIRST = JobId("20261120t231853z-4f7k2m")
SECOND = JobId("20261121t010203z-abcdef")
COMMAND = "20261121t010203z-0123456789ab"

ONCE = {"profiles": {"default": {"max_attempts": 1}}}
"""No request is asked a second time within one job."""

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63000100"
    "000500010d0a2db40000000049454e44ae426082"
)

SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "score": {"type": "integer", "minimum": 1}},
    "required": ["summary", "score"],
    "additionalProperties": False,
}


# The whole way, with the real daemon.


async def dropped(world: World, name: str, rows: Sequence[object] | bytes | str) -> None:
    """Drop a file and have it delivered."""
    world.drop(name, rows)

    assert await world.drain()
    assert (world.spool.done / name).exists()


async def retried(world: World, name: str) -> JobId:
    """Leave the command to retry what was delivered as *name*, and run to the end.

    Returns the new job.
    """
    answer = await commanded(world, "retry", JobId(world.summary(name)["job"]))
    assert answer.is_done, answer.message
    assert answer.job is not None

    return answer.job


async def commanded(world: World, verb: Verb, job: JobId, *, is_drained: bool = True) -> Answer:
    """Leave a command about *job*, run until nothing is left to do, and return the answer."""
    command = Command(verb=verb, job=job, left_at=world.clock.now())
    name = leave(world.spool, command)

    assert await world.drain() is is_drained

    answer = take_answer(world.spool, name, within_s=0.0)
    assert answer is not None

    return answer


async def adopted(world: World, name: str) -> JobId:
    """Begin a retry in a process that dies before the row is written, and run to the end."""
    async with opened(world.spool.database) as store:
        job = await store.job(JobId(world.summary(name)["job"]))

    assert job is not None
    claims = Claims(world.spool, world.settings(), world.clock)
    left_at = world.clock.now()
    new = begin(world.spool, claims, world.settings(), job, left_at=left_at, name=COMMAND)

    assert await world.drain()

    return new.id


def left(world: World) -> dict[Path, bytes]:
    """Return all that is in the folders of people."""
    folders = (world.spool.outbox, world.spool.done, world.spool.rejected)
    paths = (path for folder in folders for path in folder.rglob("*"))

    return {path: path.read_bytes() for path in paths if path.is_file()}


def lines(world: World, name: str) -> list[bytes]:
    """Return the lines of the results, byte for byte."""
    return (world.spool.outbox / f"{name}.results.jsonl").read_bytes().splitlines(keepends=True)


def asked(world: World, job: JobId) -> dict[int | None, int]:
    """Return how often the provider took each row of *job*."""
    taken = world.simulator.ledger.requests.items()

    return {row_of(job, name): times for name, times in taken if name.startswith(job)}


async def batches(world: World, job: JobId) -> list[Batch]:
    """Return the batches of *job*."""
    async with opened(world.spool.database) as store:
        return await store.batches_of(job)


@pytest.mark.anyio
async def test_only_what_failed_is_asked_again(tmp_path: Path) -> None:
    """A retry, and a retry of it, ask for what failed, once, and deliver all of it in order.

    What was delivered before stays as it is, and answers are delivered again byte for byte.
    """
    marks = ("", "[[fail:500 once]]", "", "[[fail:400]]", "[[missing]]", "")
    rows = [{"id": f"q{n}", "prompt": f"Number {n}{mark}"} for n, mark in enumerate(marks)]
    ids = [f"q{n}" for n in range(6)]

    async with simulated(tmp_path, overrides=ONCE) as world:
        await dropped(world, "f.jsonl", rows)
        before = left(world)

        second = await retried(world, "f.jsonl")
        world.assert_conserved("f.jsonl-2", ids)
        assert asked(world, second) == {1: 1, 3: 1, 4: 1}
        assert [line["custom_id"] for line in world.errors("f.jsonl-2")] == ["q3", "q4"]
        new = lines(world, "f.jsonl-2")
        assert [new[0], *new[2:]] == lines(world, "f.jsonl")

        third = await retried(world, "f.jsonl-2")
        world.assert_conserved("f.jsonl-3", ids)
        assert asked(world, third) == {3: 1, 4: 1}
        assert lines(world, "f.jsonl-3") == new

        world.assert_bought_once()
        assert before.items() <= left(world).items()
        assert (world.spool.done / "f.jsonl-3").read_bytes() == before[world.spool.done / "f.jsonl"]
        assert not list(world.spool.working.iterdir())


@pytest.mark.anyio
async def test_what_is_kept_is_not_paid_for_again(tmp_path: Path) -> None:
    """The bill of a retry is that of the requests it asks for."""
    rows = ["one", "two [[fail:500 once]]", "three"]

    async with simulated(tmp_path, overrides=ONCE) as world:
        await dropped(world, "f.jsonl", rows)
        second = await retried(world, "f.jsonl")
        usage = world.results("f.jsonl-2")[1]["response"]["body"]["usage"]
        summary = world.summary("f.jsonl-2")
        tokens = summary["tokens"]
        kept, live = await batches(world, second)

        assert summary["retry_of"] == world.summary("f.jsonl")["job"]
        assert world.summary("f.jsonl")["retry_of"] is None

    assert (summary["kept"], [batch["id"] for batch in summary["batches"]]) == (2, [live.id])
    assert list(tokens) == ["gpt-5-mini"]
    assert tokens["gpt-5-mini"]["input"] == usage["prompt_tokens"]
    assert tokens["gpt-5-mini"]["output"] == usage["completion_tokens"]
    assert (kept.status, kept.answered, kept.cost_usd) == (BatchStatus.CLOSED, 2, 0.0)
    assert (kept.intended_at, kept.remote_id) == (None, None)
    assert (kept.input_tokens, kept.output_tokens) == (0, 0)
    assert (live.requests, live.answered) == (1, 1)


def table(rows: Sequence[dict[str, str]]) -> bytes:
    """Return rows as CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)

    return text.getvalue().encode()


TABLE = [
    {"id": "a", "prompt": "What is 1 + 1?"},
    {"id": "b", "prompt": "What is 2 + 2? [[fail:500 once]]"},
    {"id": "c", "prompt": "[[fail:400]]"},
    {"id": "d", "prompt": ""},
]
PICTURES = [{**row, "image": "p.png"} for row in TABLE]


def archive() -> bytes:
    """Return `PICTURES` in an archive with the picture."""
    data = io.BytesIO()

    with zipfile.ZipFile(data, "w") as file:
        file.writestr("may.csv", table(PICTURES))
        file.writestr("p.png", PNG)

    return data.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "data"), [("may.csv", table(TABLE)), ("may.zip", archive())])
async def test_any_file_comes_back_whole(tmp_path: Path, name: str, data: bytes) -> None:
    """A table with its sidecar, or an archive, has old and new answers beside its rows."""
    async with simulated(tmp_path) as world:
        world.drop(f"{name}.toml", 'max_attempts = 1\nanswers = ["table", "text"]\n')
        await dropped(world, name, data)
        second = await retried(world, name)

        world.assert_conserved(f"{name}-2", ["a", "b", "c", "d"])
        world.assert_bought_once()
        text = (world.spool.outbox / f"{name}-2.results.csv").read_text()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        folder = world.spool.outbox / f"{name}-2.answers"

        assert asked(world, second) == {1: 1, 2: 1}
        assert [bool(row["answer"]) for row in rows] == [True, True, False, False]
        assert [bool(row["error"]) for row in rows] == [False, False, True, True]
        assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt"]
        assert (world.spool.done / f"{name}-2.toml").exists()


@pytest.mark.anyio
async def test_several_models_are_one_result_again(tmp_path: Path) -> None:
    """Rows for several models and endpoints, with what failed among them, merge in order."""
    marks = ("", "[[fail:500 once]]", "", "[[fail:500 once]]")
    chat, embed = "/v1/chat/completions", "/v1/embeddings"
    bodies: list[tuple[str, dict[str, Any]]] = [
        (embed, {"model": "text-embedding-3-small", "input": f"text {n}{mark}"})
        if n % 2
        else (chat, {"model": "gpt-5", "messages": [{"role": "user", "content": f"{n}{mark}"}]})
        for n, mark in enumerate(marks * 2)
    ]
    rows = [
        {"custom_id": f"q{n}", "method": "POST", "url": url, "body": body}
        for n, (url, body) in enumerate(bodies)
    ]

    async with simulated(tmp_path, overrides=ONCE) as world:
        await dropped(world, "f.jsonl", rows)
        before = lines(world, "f.jsonl")
        second = await adopted(world, "f.jsonl")

        world.assert_conserved("f.jsonl-2", [f"q{n}" for n in range(8)])
        world.assert_bought_once()
        assert asked(world, second) == {1: 1, 3: 1, 5: 1, 7: 1}
        assert lines(world, "f.jsonl-2")[::2] == before
        assert world.errors("f.jsonl-2") == []


@pytest.mark.anyio
async def test_values_are_kept_byte_for_byte(tmp_path: Path) -> None:
    """Answers to a schema are delivered again with their values, and those that do not fit asked.

    Under another schema they would come out otherwise: then nothing is submitted.
    """
    marks = ("", "[[answer:misfit once]]", "[[answer:refusal]]", "")
    rows = [{"id": f"q{n}", "prompt": f"Question {n} {mark}"} for n, mark in enumerate(marks)]
    overrides: dict[str, Any] = {
        "profiles": {"default": {"max_attempts": 1, "response_schema": SCHEMA}}
    }

    async with simulated(tmp_path, overrides=overrides) as world:
        await dropped(world, "f.jsonl", rows)
        second = await retried(world, "f.jsonl")
        new = lines(world, "f.jsonl-2")

        world.assert_conserved("f.jsonl-2", [f"q{n}" for n in range(4)])
        assert asked(world, second) == {1: 1, 2: 1}
        assert [new[0], new[2]] == lines(world, "f.jsonl")
        assert [line["parsed"]["score"] for line in world.results("f.jsonl-2")] == [1, 1, 1]
        assert [line["error"]["code"] for line in world.errors("f.jsonl-2")] == ["refused"]

        for schema in ({**SCHEMA, "required": ["summary", "score", "tags"]}, None):
            overrides["profiles"]["default"]["response_schema"] = schema
            await assert_refused(world, "f.jsonl-2", "other_schema")


async def assert_refused(world: World, name: str, code: str) -> str:
    """Hold that a retry is rejected and nothing submitted or changed; return why."""
    before, created = left(world), len(world.simulator.ledger.creations)
    await retried(world, name)
    after = left(world)
    (note,) = [path for path in after.keys() - before.keys() if path.suffix == ".json"]
    rejection: dict[str, Any] = json.loads(after[note])

    assert rejection["code"] == code
    assert before.items() <= after.items()
    assert len(world.simulator.ledger.creations) == created
    assert not list(world.spool.working.iterdir())

    for path in after.keys() - before.keys():
        path.unlink()

    return str(rejection["reason"])


CHANGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "other ids": ({"id": "{{ id }}-new"}, "other_rows", "'q0' was answered before"),
    "no ids": ({"id": "same"}, "duplicate_id", "too"),
    "another schema": ({"response_schema": SCHEMA}, "other_schema", "response_schema"),
    "broken ids": ({"id": "{{ nothing.at.all }}"}, "no_usable_row", "id template fails"),
    "some broken ids": (
        {"id": "{{ id if '0' in id else nothing.at.all }}"},
        "no_usable_row",
        "not one of 1 rows that failed before is usable",
    ),
}


@pytest.mark.anyio
async def test_what_cannot_be_matched_is_refused_unasked(tmp_path: Path) -> None:
    """Where answers and rows do not go together any more, nothing is submitted, and it is said."""
    rows = [{"id": "q0", "prompt": "one"}, {"id": "q1", "prompt": "two [[fail:500]]"}]
    default: dict[str, Any] = {"max_attempts": 1}

    async with simulated(tmp_path, overrides={"profiles": {"default": default}}) as world:
        await dropped(world, "f.jsonl", rows)

        for change, code, said in CHANGES.values():
            default.update(change)
            assert said in await assert_refused(world, "f.jsonl", code)

            for key in change:
                del default[key]


@pytest.mark.anyio
async def test_a_file_that_reads_as_other_rows_is_refused(tmp_path: Path) -> None:
    """The same bytes, read in another way, are another file: nothing of it is asked."""
    text = "one\n\ntwo [[fail:500 once]]\nand three\n"
    default: dict[str, Any] = {"max_attempts": 1, "split": "paragraph"}

    async with simulated(tmp_path, overrides={"profiles": {"default": default}}) as world:
        await dropped(world, "f.txt", text)
        default["split"] = "line"

        assert "had 2 rows before, and has 3 now" in await assert_refused(
            world, "f.txt", "other_rows"
        )


@pytest.mark.anyio
async def test_nothing_is_asked_where_all_that_failed_is_unusable(tmp_path: Path) -> None:
    """Rows of which no request could be made are no better the second time: it is refused.

    When something else has failed, they are errors again.
    """
    async with simulated(tmp_path, overrides=ONCE) as world:
        await dropped(world, "f.jsonl", b'{"prompt": "one"}\nnonsense\n')
        await dropped(world, "g.jsonl", b'"one"\nnonsense\n"three [[fail:500 once]]"\n')

        assert "not one of 1 rows that failed before is usable" in await assert_refused(
            world, "f.jsonl", "no_usable_row"
        )

        second = await retried(world, "g.jsonl")
        world.assert_conserved("g.jsonl-2", ["g-1", "g-2", "g-3"])
        assert asked(world, second) == {2: 1}
        assert [line["attempts"] for line in world.errors("g.jsonl-2")] == [0]


@pytest.mark.anyio
async def test_a_job_without_an_answer_is_asked_again_whole(tmp_path: Path) -> None:
    """Where nothing is to be kept, a retry is a job like any other."""
    async with simulated(tmp_path, overrides=ONCE) as world:
        await dropped(world, "f.jsonl", ["one [[fail:500 once]]", "two [[fail:500 once]]"])
        second = await retried(world, "f.jsonl")

        world.assert_conserved("f.jsonl-2", ["f-1", "f-2"])
        assert asked(world, second) == {0: 1, 1: 1}
        assert world.errors("f.jsonl-2") == []
        assert len(await batches(world, second)) == 1


@pytest.mark.anyio
async def test_the_rest_of_a_cancelled_job_is_asked(tmp_path: Path) -> None:
    """A retry of a job that was cancelled half-way asks for what had no answer by then."""
    async with simulated(tmp_path) as world:
        world.drop("f.jsonl", [f"Number {n}" for n in range(8)])
        daemon = Daemon(settings=world.settings(), clock=world.clock)

        with overheard(batch_created=daemon.stop):
            await world.run(daemon)

        world.clock.pass_time(world.simulator.settings.run_s / 2)
        (folder,) = world.spool.working.iterdir()
        assert (await commanded(world, "cancel", JobId(folder.name))).is_done
        codes = [line["error"]["code"] for line in world.errors("f.jsonl")]
        assert 0 < codes.count("cancelled") == len(codes) < 8

        second = await retried(world, "f.jsonl")
        world.assert_conserved("f.jsonl-2", [f"f-{n}" for n in range(1, 9)])
        assert len(asked(world, second)) == len(codes)
        assert world.errors("f.jsonl-2") == []


@pytest.mark.anyio
async def test_a_retry_can_be_taken_back(tmp_path: Path) -> None:
    """Cancelled before anything was submitted, a retry ends in `rejected/` like a dropped file."""
    default: dict[str, Any] = {"max_attempts": 1}

    async with simulated(tmp_path, overrides={"profiles": {"default": default}}) as world:
        await dropped(world, "f.jsonl", ["one", "two [[fail:500 once]]"])
        before = left(world)
        default["max_cost"] = 0.0
        job = JobId(world.summary("f.jsonl")["job"])
        held = await commanded(world, "retry", job, is_drained=False)
        assert held.job is not None

        assert (await commanded(world, "cancel", held.job)).is_done
        assert left(world).keys() - before.keys() == {
            world.spool.rejected / "f.jsonl-2",
            world.spool.rejected / "f.jsonl-2.rejected.json",
        }
        assert before.items() <= left(world).items()
        assert len(world.simulator.ledger.creations) == 1


@pytest.mark.anyio
async def test_a_command_that_comes_again_does_nothing_again(tmp_path: Path) -> None:
    """One whose answer could not be left is answered later, when its job is long done, and free."""
    async with simulated(tmp_path, overrides=ONCE) as world:
        await dropped(world, "f.jsonl", ["one", "two [[fail:500]]"])
        job = JobId(world.summary("f.jsonl")["job"])
        name = leave(world.spool, Command(verb="retry", job=job, left_at=world.clock.now()))
        path = world.spool.control / f"{name}{COMMAND_SUFFIX}"
        command = path.read_bytes()
        answers = []

        for _ in range(2):
            path.write_bytes(command)
            assert await world.drain()
            answers.append(take_answer(world.spool, name, within_s=0.0))

        assert answers[0] == answers[1]
        assert len(world.simulator.ledger.creations) == 2
        assert not list(world.spool.working.iterdir())
        assert not (world.spool.outbox / "f.jsonl-3.summary.json").exists()


@pytest.mark.anyio
async def test_two_commands_at_once_are_one_retry(tmp_path: Path) -> None:
    """Of two commands to retry the same job one is carried out, and the other is told of it."""
    async with simulated(tmp_path, overrides=ONCE) as world:
        await dropped(world, "f.jsonl", ["one", "two [[fail:500]]"])
        job = JobId(world.summary("f.jsonl")["job"])
        command = Command(verb="retry", job=job, left_at=world.clock.now())
        left_ids = [leave(world.spool, command) for _ in range(2)]

        assert await world.drain()
        answers = [take_answer(world.spool, name, within_s=0.0) for name in left_ids]
        done = [answer for answer in answers if answer is not None and answer.is_done]
        told = [answer for answer in answers if answer is not None and not answer.is_done]

        assert (len(done), len(told)) == (1, 1)
        assert f"already, by job {done[0].job}" in told[0].message
        assert len(world.simulator.ledger.creations) == 2


@pytest.mark.anyio
async def test_a_retry_is_no_second_drop(tmp_path: Path) -> None:
    """A profile that skips what was dropped before does not skip a retry of it."""
    skip = {"profiles": {"default": {"max_attempts": 1, "on_same_content": "skip"}}}

    async with simulated(tmp_path, overrides=skip) as world:
        await dropped(world, "f.jsonl", ["one", "two [[fail:500 once]]"])
        await adopted(world, "f.jsonl")

        world.assert_conserved("f.jsonl-2", ["f-1", "f-2"])
        assert world.errors("f.jsonl-2") == []


# The plan.


OPENAI = Limits(max_requests=3, max_bytes=190_000_000, max_inputs=50_000)


def planned(folder: Path, job: JobId, data: bytes, *, policy: str) -> Manifest:
    """Plan a dropped file into *folder*."""
    folder.mkdir(exist_ok=True)
    (folder / "original").write_bytes(data)
    found = Dropped(
        original=folder / "original",
        source="may.jsonl",
        digest="ab" * 32,
        job=job,
        profile=ProfileSettings.model_validate({"model": "m", "on_duplicate_id": policy}),
        limits=OPENAI,
        caps=Caps(max_expanded=10**9, max_ratio=200),
        give_up_at=99.5,
    )

    return plan(found, folder)


def planned_rows(folder: Path) -> list[PlannedRow]:
    """Return the row index."""
    text = (folder / "rows.jsonl").read_bytes()

    return [msgspec.json.decode(line, type=PlannedRow) for line in text.splitlines()]


def names(path: Path) -> list[str]:
    """Return the names of the requests or answers in a file, none if it is not there."""
    if not path.exists():
        return []

    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


@given(
    rows=st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans()), max_size=9),
    policy=st.sampled_from(["number", "errors"]),
)
@settings(max_examples=60, deadline=None)
def test_each_row_is_kept_or_asked_or_unusable(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bool, bool]], policy: str
) -> None:
    """Whatever was answered before, and whatever ids rows share, each row has one of three places.

    Of each row: its id, whether it is usable, and whether it was answered.
    """
    data = b"".join(
        msgspec.json.encode({"id": name, "prompt": "text" if is_usable else ""}) + b"\n"
        for name, is_usable, _ in rows
    )

    with TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as root:
        one, two = Path(root, "one"), Path(root, "two")

        try:
            planned(one, FIRST, data, policy=policy)
        except BadInput:
            return  # so nothing was delivered

        before = planned_rows(one)
        usable = [n for n, row in enumerate(before) if row.fault is None]
        kept = [n for n in usable if rows[n][2]]
        failed = [n for n in usable if not rows[n][2]]

        if len(kept) == len(rows):
            return  # so nothing has failed

        two.mkdir()
        keep(two, [before[n].id for n in kept], failed=len(rows) - len(kept))

        if not failed:
            with pytest.raises(BadInput):
                planned(two, SECOND, data, policy=policy)

            assert not list(two.glob("*.requests.jsonl"))
            return

        manifest = planned(two, SECOND, data, policy=policy)
        asked_names = [
            name for batch in manifest.batches for name in names(two / f"{batch.id}.requests.jsonl")
        ]

        assert planned_rows(two) == before
        assert asked_names == [f"{SECOND}-{n}" for n in failed]
        assert names(two / f"{SECOND}.0.requests.jsonl") == [f"{SECOND}-{n}" for n in kept]
        assert names(two / f"{SECOND}.0.output.jsonl") == [f"{SECOND}-{n}" for n in kept]
        assert (manifest.kept.requests if manifest.kept else 0) == len(kept)
        assert SECOND + ".0" not in [batch.id for batch in manifest.batches]


def keep(folder: Path, ids: Sequence[str], *, failed: int, text: str = "") -> None:
    """Put into *folder* what a retry has of the job before it, with answers that hold *text*."""
    body = msgspec.json.encode({"status_code": 200, "body": {"text": text}})
    line = b'{"id":"r","custom_id":%s,"response":%s,"error":null}\n'
    (folder / KEPT).write_bytes(b"".join(line % (msgspec.json.encode(one), body) for one in ids))
    retry = Retry(job=FIRST, kept=len(ids), failed=failed)
    (folder / RETRY).write_bytes(msgspec.json.encode(retry))


def test_memory_does_not_grow_with_what_is_kept(tmp_path: Path) -> None:
    """Answers are merged with their rows one at a time, however much there is of them."""
    keep(tmp_path, [f"may-{n}" for n in range(1, 5_000)], failed=1, text="x" * 4_000)
    size = (tmp_path / KEPT).stat().st_size
    tracemalloc.start()
    manifest = planned(tmp_path, SECOND, b'"x"\n' * 5_000, policy="reject")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert manifest.kept is not None
    assert (manifest.kept.requests, manifest.batches[0].requests) == (4_999, 1)
    assert peak < size / 2


@pytest.mark.parametrize("kept", [b"{broken\n", b"", b'{"custom_id": "may-7"}\n'])
def test_results_that_were_touched_meanwhile_are_not_trusted(tmp_path: Path, kept: bytes) -> None:
    """What somebody has made of the delivered results since the command leaves nothing to ask."""
    keep(tmp_path, ["may-1"], failed=1)
    (tmp_path / KEPT).write_bytes(kept)

    with pytest.raises(BadInput) as caught:
        planned(tmp_path, SECOND, b'"one"\n"two"\n', policy="reject")

    assert caught.value.code in ("damaged_results", "other_rows")
    assert not list(tmp_path.glob("*.requests.jsonl"))


# The command.


def delivered(root: Path) -> tuple[Spool, Job]:
    """Return a spool with what a job of three rows has left, and the job."""
    spool = Spool(root / "spool")
    spool.make()
    data = b'"one"\n"two"\n"three"\n'
    (spool.done / "f.jsonl").write_bytes(data)
    (spool.done / "f.jsonl.toml").write_bytes(b"priority = 7\n")
    results = b'{"id":"r","custom_id":"f-1","response":{},"error":null}\n'
    errors = b'{"custom_id":"f-%d","response":null,"error":{"code":"%s"}}\n'
    (spool.outbox / "f.jsonl.results.jsonl").write_bytes(results)
    (spool.outbox / "f.jsonl.errors.jsonl").write_bytes(
        errors % (2, b"missing") + errors % (3, b"cancelled")
    )
    job = Job(
        id=FIRST, name=b"f.jsonl", stem=b"f.jsonl", profile="default", provider="openai",
        base_url="https://api.example.com/v1", status=JobStatus.DONE, claimed_at=START,
        size_bytes=len(data), digest=hashlib.sha256(data).hexdigest(), results=1, errors=2,
    )  # fmt: skip

    return spool, job


def configured(**profiles: Any) -> Settings:
    """Return a configuration with one provider, and a profile unless others are given."""
    providers: Any = {"openai": {"base_url": "https://api.example.com/v1"}}

    return Settings(providers=providers, profiles=profiles or {"default": {"model": "m"}})


def begun(spool: Spool, job: Job) -> Job:
    """Begin a retry at one and the same command."""
    claims = Claims(spool, configured(), FakeClock())

    return begin(spool, claims, configured(), job, left_at=START, name=COMMAND)


def test_a_retry_says_what_it_would_come_to(tmp_path: Path) -> None:
    """Before anything is done it is known what is asked, what is kept, and the new name."""
    spool, job = delivered(tmp_path)

    found = retryable(spool, configured(), job)

    assert found == Retryable(failed={"missing": 1, "cancelled": 1}, kept=1, stem=b"f.jsonl-2")
    assert found.shown == "f.jsonl-2"
    assert not list(spool.working.iterdir())


def test_a_retry_begins_with_all_that_it_takes(tmp_path: Path) -> None:
    """The new folder has original, sidecar, answers and claim; its row says whose retry it is."""
    spool, job = delivered(tmp_path)
    (spool.done / "f.jsonl").chmod(0o640)

    new = begun(spool, job)

    folder = spool.folder(new.id)
    assert sorted(path.name for path in folder.iterdir()) == [
        "claim.json", "kept.jsonl", "original", "retry.json", "sidecar.toml",
    ]  # fmt: skip
    assert (new.retry_of, new.status, new.stem) == (FIRST, JobStatus.CLAIMED, b"f.jsonl-2")
    assert (new.provider, new.priority, new.due_at) == ("openai", 7, START)
    assert (folder / "original").stat().st_mode & 0o777 == 0o640
    (folder / "original").write_bytes(b"")
    assert (spool.done / "f.jsonl").read_bytes()
    assert new.id == retry_id(START, COMMAND) != retry_id(START, COMMAND + "2")


def test_two_retries_of_one_job_are_one_too_many(tmp_path: Path) -> None:
    """While a job is being retried, it is not retried again; the same command is no other one."""
    spool, job = delivered(tmp_path)
    claims = Claims(spool, configured(), FakeClock())
    new = begun(spool, job)

    with pytest.raises(NotRetryable, match=f"already, by job {new.id}"):
        begin(spool, claims, configured(), job, left_at=START, name="another")

    with pytest.raises(NotRetryable, match=f"already, by job {new.id}"):
        retryable(spool, configured(), job)

    assert begun(spool, job) == new
    assert [path.name for path in spool.working.iterdir()] == [new.id]


def move_and_link(path: Path) -> None:
    """Leave a link in place of a file."""
    path.symlink_to(path.rename(path.with_name("elsewhere")))


DAMAGES: dict[str, tuple[Callable[[Spool], object], str]] = {
    "original gone": (lambda spool: (spool.done / "f.jsonl").unlink(), "done/f.jsonl is gone"),
    "original changed": (
        lambda spool: (spool.done / "f.jsonl").write_bytes(b'"one"\n"TWO"\n"three"\n'),
        "is not what was answered",
    ),
    "results gone": (
        lambda spool: (spool.outbox / "f.jsonl.results.jsonl").unlink(),
        "f.jsonl.results.jsonl is gone",
    ),
    "results cut": (
        lambda spool: (spool.outbox / "f.jsonl.results.jsonl").write_bytes(b'{"id":"r","cust'),
        "has 0 lines, 1 were delivered",
    ),
    "errors gone": (
        lambda spool: (spool.outbox / "f.jsonl.errors.jsonl").unlink(),
        "f.jsonl.errors.jsonl is gone",
    ),
    "errors grown": (
        lambda spool: (spool.outbox / "f.jsonl.errors.jsonl").write_bytes(b"{}\n" * 3),
        "has 3 lines, 2 were delivered",
    ),
    "a link instead": (lambda spool: move_and_link(spool.done / "f.jsonl"), "cannot be read"),
    "a bad sidecar": (
        lambda spool: (spool.done / "f.jsonl.toml").write_bytes(b"modle = 'x'"),
        "modle",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_job_whose_files_are_not_as_delivered_is_refused(tmp_path: Path, damage: str) -> None:
    """Nothing is begun without original, results and errors as they were; it is said what to do."""
    spool, job = delivered(tmp_path)
    hurt, said = DAMAGES[damage]
    hurt(spool)

    with pytest.raises(NotRetryable, match=said):
        retryable(spool, configured(), job)

    with pytest.raises(NotRetryable, match=said):
        begun(spool, job)

    assert not list(spool.working.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": JobStatus.PLANNED}, "is not delivered; it is planned"),
        ({"results": None}, "is not delivered"),
        ({"errors": 0, "results": 3}, "has no errors"),
        ({"profile": "reviews"}, "there is no profile 'reviews'"),
        ({"digest": None}, "is not what was answered"),
    ],
)
def test_a_job_that_cannot_be_retried_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """Only what was delivered with errors, under a profile that is there, is asked again."""
    spool, job = delivered(tmp_path)
    fields = {name: getattr(job, name) for name in Job.__struct_fields__}

    with pytest.raises(NotRetryable, match=said):
        begun(spool, Job(**(fields | change)))

    assert not list(spool.working.iterdir())


def test_a_command_from_no_time_is_refused(tmp_path: Path) -> None:
    """A command that says it was left at no time there is does nothing."""
    spool, job = delivered(tmp_path)

    with pytest.raises(NotRetryable, match="no time"):
        begin(
            spool, Claims(spool, configured(), FakeClock()), configured(), job,
            left_at=1e300, name=COMMAND,
        )  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_death_at_any_step_leaves_a_whole_retry_or_none(tmp_path: Path, *, after: bool) -> None:
    """A start sweeps away what was cut off, or adopts what is whole; the command gives the same."""
    calm = tmp_path / "calm"
    spool, job = delivered(calm)
    fate = Fate()

    with mortal(fate, spool.root):
        whole = begun(spool, job)

    found = contents(spool.folder(whole.id))
    adoptions = 0

    for at in range(1, len(fate.steps) + 1):
        spool, job = delivered(tmp_path / str(at))
        before = contents(spool.outbox) | contents(spool.done)

        with mortal(Fate(at=at, after=after), spool.root), pytest.raises(Death):
            begun(spool, job)

        adopted = Claims(spool, configured(), FakeClock()).adopted(set())
        assert [one.id for one in adopted] in ([], [whole.id])
        assert [path.name for path in spool.working.iterdir()] == [one.id for one in adopted]
        adoptions += len(adopted)

        assert begun(spool, job) == whole
        assert [path.name for path in spool.working.iterdir()] == [whole.id]
        assert contents(spool.folder(whole.id)) == found
        assert contents(spool.outbox) | contents(spool.done) == before
        assert not list(spool.inbox.iterdir())

    assert 0 < adoptions < len(fate.steps)


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
