from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from promptspool import outcomes as words
from promptspool.errors import IllegalTransition
from promptspool.model import (
    REMOTE_RANK,
    TRANSITIONS,
    Batch,
    BatchId,
    BatchStatus,
    Job,
    JobId,
    JobStatus,
    Notice,
    NoticeStatus,
    ProviderState,
    ProviderStatus,
    RemoteBatch,
    RemoteStatus,
    Work,
)
from promptspool.outcomes import (
    AllClosed,
    Booted,
    Cancelled,
    Created,
    Crowded,
    Delayed,
    Delivered,
    Doubtful,
    Downloaded,
    Dropped,
    Failed,
    Gone,
    Halted,
    Held,
    Intended,
    Missed,
    NeverCreated,
    NotListed,
    Planned,
    Polled,
    Recalled,
    Rejected,
    Released,
    Restarted,
    Sent,
    Settled,
    Tidied,
    Trouble,
    Turned,
    Unclear,
    Unusable,
    Uploaded,
    Vanished,
    Withdrawn,
    Woken,
)
from promptspool.policy import Backoff, Rules, _decided, decide, decide_provider
from promptspool.policy.backoff import MAX_CRASHES
from promptspool.policy.batches import (
    LOST_AFTER_S,
    LOST_AFTER_SIGHTINGS,
    RACE_S,
    is_as_known,
)
from promptspool.policy.providers import BLOCKED_CAP_S
from promptspool.stages import STAGES

if TYPE_CHECKING:
    from promptspool.model import Row, Status
    from promptspool.outcomes import Outcome

NOW = 1_795_000_000.0
GRACE_S = 60.0
RULES = Rules(
    polling=Backoff(first_s=10.0, factor=2.0, cap_s=120.0),
    retry=Backoff(first_s=1.0, factor=2.0, cap_s=300.0),
    lookup_grace_s={"openai": GRACE_S},
    stalled_s=3600.0,
)
UNTIMED = Failed(reason="no answer", trouble=Trouble.ROW)

times = st.floats(min_value=NOW - 1e6, max_value=NOW + 1e6)
counts = st.integers(min_value=0, max_value=2000)
texts = st.none() | st.sampled_from(["", "a", "file-1"])


def job_of(**changes: Any) -> Job:
    """Return a job that was just claimed."""
    plain: dict[str, Any] = {
        "id": JobId("20261120t231853z-4f7k2m"),
        "name": b"may.csv",
        "stem": b"may.csv",
        "profile": "default",
        "provider": "openai",
        "base_url": "https://api.example.com/v1",
        "claimed_at": NOW,
        "due_at": NOW,
    }

    return Job(**plain | changes)


def batch_of(**changes: Any) -> Batch:
    """Return a planned batch."""
    plain: dict[str, Any] = {
        "id": BatchId("20261120t231853z-4f7k2m.1"),
        "job": JobId("20261120t231853z-4f7k2m"),
        "provider": "openai",
        "base_url": "http://127.0.0.1/v1",
        "endpoint": "/v1/chat/completions",
        "model": "gpt-5-mini",
        "requests": 10,
        "size_bytes": 1000,
        "digest": "0" * 64,
        "give_up_at": NOW + 259_200,
        "due_at": NOW,
    }

    return Batch(**plain | changes)


def remote_of(status: RemoteStatus, **changes: Any) -> RemoteBatch:
    """Return what a provider says of a batch in *status*."""
    plain: dict[str, Any] = {
        "id": "batch_1",
        "status": status,
        "raw_status": status.value,
        "metadata": {},
        "input_file": "file-1",
    }

    return RemoteBatch(**plain | changes)


def decided(batch: Batch, outcome: Outcome, now: float = NOW) -> Batch:
    """Return what becomes of *batch*."""
    after = decide(batch, outcome, now, RULES)
    assert isinstance(after, Batch)

    return after


def recalled(state: ProviderState, outcome: Outcome, now: float = NOW) -> ProviderState:
    """Return what becomes of a provider that is booted or recalled."""
    after = decide(state, outcome, now, RULES)
    assert isinstance(after, ProviderState)

    return after


def failed(trouble: Trouble, retry_after_s: float | None = None) -> Failed:
    """Return a failure."""
    return Failed(reason="it did not work", trouble=trouble, retry_after_s=retry_after_s)


remotes = st.builds(
    remote_of,
    st.sampled_from([status for status in RemoteStatus if status not in ("refused", "lost")]),
    output_file=texts,
    error_file=texts,
    created_at=st.none() | times,
    ended_at=st.none() | times,
    total=counts,
    completed=counts,
    failed=counts,
)
failures = st.builds(
    Failed,
    reason=st.just("no"),
    trouble=st.sampled_from(Trouble),
    retry_after_s=st.none() | st.floats(min_value=0, max_value=86_400),
)
outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(
        Planned,
        batches=st.just(()),
        requests=st.just(1),
        digest=st.just("0"),
        held=st.none() | st.just("too dear"),
    ),
    st.just(Unusable(reason="empty")),
    st.just(Rejected()),
    st.just(AllClosed()),
    st.just(Delivered(stem=b"a", results=1, errors=0)),
    st.just(Vanished()),
    st.just(Tidied()),
    st.builds(Uploaded, file=texts),
    st.just(Intended()),
    st.just(Crowded(reason="no room")),
    st.builds(Held, reason=st.just("too dear"), until=st.none() | times),
    st.builds(Released, by_hand=st.booleans()),
    st.builds(Delayed, seconds=st.floats(min_value=0, max_value=1e6)),
    st.just(Cancelled()),
    st.just(Withdrawn()),
    st.builds(Halted, is_over=st.booleans()),
    st.just(Sent()),
    st.just(Dropped(reason="gone")),
    st.builds(Created, remote=remotes, found=st.booleans()),
    st.just(Unclear(reason="reset")),
    st.just(Restarted()),
    st.just(Woken()),
    st.just(NotListed()),
    st.just(NeverCreated()),
    st.builds(Polled, remote=remotes),
    st.just(Missed()),
    st.just(Gone(reason="no such file")),
    st.just(Turned(faults="[]")),
    st.builds(Downloaded, remote=st.none() | remotes),
    st.just(Doubtful(reason="missing")),
    st.just(Settled(successors=(), answered=1, failed=0)),
    st.builds(Booted, sweeps=st.integers(min_value=0, max_value=2)),
    st.just(Recalled(found=1)),
    failures,
)


def _due(status: Status) -> st.SearchStrategy[float | None]:
    return times if status in STAGES else st.none()


jobs = st.sampled_from(JobStatus).flatmap(
    lambda status: st.builds(
        job_of,
        status=st.just(status),
        due_at=_due(status),
        failures=counts,
        why=texts,
    ),
)
batches = st.sampled_from(BatchStatus).flatmap(
    lambda status: st.builds(
        batch_of,
        status=st.just(status),
        due_at=_due(status),
        version=counts,
        failures=counts,
        uploaded_at=st.none() | times,
        intended_at=st.none() | times,
        unclear_at=st.none() | times,
        looks=counts,
        remote_id=texts,
        remote_status=st.none() | st.sampled_from(RemoteStatus),
        polls=counts,
        missed=counts,
        missed_at=st.none() | times,
        total=counts,
        completed=counts,
    ),
)
states = st.sampled_from(ProviderStatus).flatmap(
    lambda status: st.builds(
        ProviderState,
        id=st.sampled_from(["openai", "other"]),
        status=st.just(status),
        due_at=_due(status),
        failures=counts,
        sweeps=counts,
        struck=st.sampled_from(["", "a", "a b"]),
        pauses=counts,
        paused_until=st.none() | times,
        paused_at=st.none() | times,
    ),
)
notices = st.builds(
    Notice,
    id=st.just("j/job.held.3/command"),
    job=st.just(JobId("20261120t231853z-4f7k2m")),
    event=st.just("job.held"),
    target=st.just("command"),
    status=st.just(NoticeStatus.PENDING),
    due_at=st.just(NOW),
    failures=st.integers(min_value=0, max_value=20),
    made_at=times,
)
rows: st.SearchStrategy[Row] = st.one_of(jobs, batches, states, notices)


def test_every_kind_of_outcome_is_tried() -> None:
    """The random outcomes below are of every kind that there is."""
    shown = repr(outcomes)

    for kind in words.Outcome.__args__:
        assert kind.__name__ in shown


@settings(max_examples=400)
@given(rows, outcomes, times)
def test_a_decision_stays_within_the_table(row: Row, outcome: Outcome, now: float) -> None:
    """Whatever happens, a row follows `TRANSITIONS` and counts on, or the outcome is a bug."""
    try:
        after = decide(row, outcome, now, RULES)
    except IllegalTransition:
        return

    assert type(after) is type(row)
    assert after.id == row.id
    assert after.version == row.version + 1
    assert after.status is row.status or after.status in TRANSITIONS[row.status]


@settings(max_examples=400)
@given(rows, outcomes, times)
def test_what_has_a_stage_is_due_and_nothing_else(row: Row, outcome: Outcome, now: float) -> None:
    """After an outcome that it can have, a row waits for a time exactly if a stage waits for it."""
    if isinstance(outcome, Failed) and row.status not in STAGES:
        return  # a failure is a stage's

    try:
        after = decide(row, outcome, now, RULES)
    except IllegalTransition:
        return

    trouble = outcome.trouble if isinstance(outcome, Failed) else None
    is_hopeless = trouble is Trouble.CRASH and row.failures >= MAX_CRASHES
    is_aside = (trouble is Trouble.BUG or is_hopeless) and after.status is row.status

    # Only a person, or a new day or month, moves what is held for its cost.
    is_held = isinstance(outcome, Held) or after.status is JobStatus.HELD

    if is_held:
        assert after.why or after.status is not JobStatus.HELD or after.due_at is not None
    elif is_aside:
        assert after.due_at is None
        assert after.why is not None
        assert after.why.startswith("set aside")
    elif row.status in STAGES or after.status is not row.status:
        assert (after.due_at is None) == (after.status not in STAGES)


@given(rows, outcomes, times)
def test_a_decision_is_pure(row: Row, outcome: Outcome, now: float) -> None:
    """The same row, outcome and time always give the same next row."""
    try:
        first = decide(row, outcome, now, RULES)
    except IllegalTransition:
        with pytest.raises(IllegalTransition):
            decide(row, outcome, now, RULES)
    else:
        assert decide(row, outcome, now, RULES) == first


@given(states, st.sampled_from(["a", "b"]), outcomes, times)
def test_a_provider_is_changed_only_for_news(
    state: ProviderState,
    item: str,
    outcome: Outcome,
    now: float,
) -> None:
    """An outcome says something of pauses or nothing at all, and never of recall."""
    after = decide_provider(state, item, outcome, now, RULES)

    assert after is state or after != state
    assert after.version == state.version
    assert (after.status, after.due_at, after.sweeps) == (state.status, state.due_at, state.sweeps)


@given(
    st.floats(min_value=0.001, max_value=1e3),
    st.floats(min_value=1.0, max_value=1e12),
    st.floats(min_value=0.001, max_value=1e5),
    st.text(max_size=30),
)
def test_backoff_grows_up_to_its_cap(first_s: float, factor: float, cap_s: float, key: str) -> None:
    """A delay grows with the count up to the cap, and jitter moves it by a tenth at most."""
    backoff = Backoff(first_s=first_s, factor=factor, cap_s=cap_s)
    plain = min(first_s, cap_s)

    for count in range(64):
        delay = backoff.delay(count, key=key)

        assert plain * 0.9 * (1 - 1e-9) <= delay <= plain * 1.1 * (1 + 1e-9)
        assert delay == backoff.delay(count, key=key)
        plain = min(plain * factor, cap_s)

    assert backoff.delay(10**9, key=key) <= cap_s * 1.1 * (1 + 1e-9)


def test_jitter_spreads_rows() -> None:
    """A hundred rows that failed at the same moment are not due at the same moment."""
    delays = {RULES.retry.delay(3, key=f"row-{number}") for number in range(100)}

    assert len(delays) > 90
    assert max(delays) - min(delays) > 1.0


@given(st.floats(min_value=0, max_value=1e5))
def test_a_failure_waits_as_long_as_it_was_asked_to(retry_after_s: float) -> None:
    """`Retry-After` lengthens a delay and never shortens it, and the failure is counted."""
    batch = batch_of(failures=4)
    plain = decided(batch, UNTIMED)
    asked = decided(batch, failed(Trouble.THROTTLED, retry_after_s))

    assert plain.due_at is not None
    assert asked.due_at == max(plain.due_at, NOW + retry_after_s)
    assert (asked.status, asked.failures) == (batch.status, 5)


def test_an_unclear_create_is_offered_again_after_two_looks_a_grace_apart() -> None:
    """Only a look after the grace that finds nothing lets an unclear create be sent once more."""
    creating = batch_of(status=BatchStatus.CREATING, intended_at=NOW)
    unclear = decided(creating, Unclear(reason="reset"))

    assert (unclear.status, unclear.due_at) == (BatchStatus.UNCLEAR, NOW)

    once = decided(unclear, NotListed(), NOW + 1)

    assert (once.status, once.due_at) == (BatchStatus.UNCLEAR, NOW + 1 + GRACE_S)

    later = NOW + 1 + GRACE_S
    twice = decided(once, NotListed(), later)

    assert (twice.status, twice.due_at) == (BatchStatus.CREATING, later)
    assert (twice.looks, twice.unclear_at, twice.intended_at) == (0, None, later)


def test_one_late_look_is_not_enough() -> None:
    """A first look long after the create is followed by a second one, the grace after it."""
    unclear = batch_of(status=BatchStatus.UNCLEAR, unclear_at=NOW)
    once = decided(unclear, NotListed(), NOW + 10 * GRACE_S)

    assert (once.status, once.looks) == (BatchStatus.UNCLEAR, 1)
    assert once.due_at == NOW + 11 * GRACE_S


def test_a_look_that_fails_counts_for_nothing() -> None:
    """A list that cannot be read brings an unclear create no closer to being sent again."""
    unclear = batch_of(status=BatchStatus.UNCLEAR, unclear_at=NOW)

    for number in range(20):
        unclear = decided(unclear, failed(Trouble.OUTAGE), NOW + number * GRACE_S)

    assert (unclear.status, unclear.looks) == (BatchStatus.UNCLEAR, 0)


@pytest.mark.parametrize("trouble", [Trouble.CRASH, Trouble.BUG])
def test_a_create_that_crashed_is_looked_up(trouble: Trouble) -> None:
    """Whatever broke while a create may have been sent, it is looked up and not sent again."""
    after = decided(batch_of(status=BatchStatus.CREATING), failed(trouble))

    assert (after.status, after.unclear_at, after.due_at) == (BatchStatus.UNCLEAR, NOW, NOW)


@pytest.mark.parametrize("trouble", [Trouble.ROW, Trouble.THROTTLED, Trouble.BLOCKED])
def test_a_create_that_was_not_sent_stays(trouble: Trouble) -> None:
    """A create that certainly did not happen is tried again after a while, without a look."""
    after = decided(batch_of(status=BatchStatus.CREATING), failed(trouble))

    assert after.status is BatchStatus.CREATING
    assert after.due_at is not None
    assert after.due_at > NOW


def test_after_a_restart_recall_has_the_word() -> None:
    """A create of a process that is gone is offered again only once recall has not found it."""
    for status in (BatchStatus.CREATING, BatchStatus.UNCLEAR):
        doubted = decided(batch_of(status=status, unclear_at=NOW - 5, looks=1), Restarted())

        assert (doubted.status, doubted.unclear_at, doubted.looks) == (BatchStatus.UNCLEAR, None, 0)
        assert decided(doubted, NeverCreated()).status is BatchStatus.CREATING

    found = Created(remote=remote_of(RemoteStatus.IN_PROGRESS), found=True)

    assert decided(doubted, found).status is BatchStatus.CREATED


@pytest.mark.parametrize("status", [s for s in BatchStatus if s is not BatchStatus.UNCLEAR])
def test_only_an_unclear_create_can_be_declared_never_created(status: BatchStatus) -> None:
    """`NeverCreated` and `NotListed` mean nothing anywhere else, and are bugs there."""
    for outcome in (NeverCreated(), NotListed()):
        with pytest.raises(IllegalTransition):
            decided(batch_of(status=status), outcome)


@given(st.lists(remotes, max_size=8), st.none() | st.sampled_from(RemoteStatus))
def test_a_remote_status_never_goes_back(
    answers: list[RemoteBatch],
    known: RemoteStatus | None,
) -> None:
    """However answers are mixed up, what a provider said once is not unsaid by an older answer."""
    batch = batch_of(status=BatchStatus.CREATED, remote_status=known)
    ranks = [-1 if known is None else REMOTE_RANK[known]]

    for remote in answers:
        if batch.status is BatchStatus.CREATED:
            batch = decided(batch, Polled(remote=remote))
            ranks.append(-1 if batch.remote_status is None else REMOTE_RANK[batch.remote_status])

    assert ranks == sorted(ranks)


def test_an_unknown_word_is_polled_on() -> None:
    """A status that nobody knows ends nothing and hides nothing that was known."""
    fresh = decided(
        batch_of(status=BatchStatus.CREATED),
        Polled(remote=remote_of(RemoteStatus.UNKNOWN)),
    )

    assert (fresh.status, fresh.remote_status) == (BatchStatus.CREATED, RemoteStatus.UNKNOWN)
    assert fresh.due_at is not None

    running = decided(fresh, Polled(remote=remote_of(RemoteStatus.IN_PROGRESS)))
    after = decided(running, Polled(remote=remote_of(RemoteStatus.UNKNOWN)))

    assert after.remote_status is RemoteStatus.IN_PROGRESS


@pytest.mark.parametrize("status", [status for status in RemoteStatus if REMOTE_RANK[status] == 9])
def test_a_terminal_status_ends_a_batch_with_or_without_files(status: RemoteStatus) -> None:
    """Ended is a status and never "has a file": a terminal batch without files is collected."""
    after = decided(batch_of(status=BatchStatus.CREATED), Polled(remote=remote_of(status)))

    assert status.is_terminal
    assert (after.status, after.due_at) == (BatchStatus.ENDED, NOW)
    assert (after.output_file, after.error_file) == (None, None)


def test_a_batch_without_progress_is_counted_by_the_hours() -> None:
    """Each stretch without a new status or count is counted; any progress starts anew."""
    created = batch_of(status=BatchStatus.CREATED)
    batch = decided(created, Polled(remote=remote_of(RemoteStatus.IN_PROGRESS, completed=1)))

    for hours, completed, stalls in ((0.9, 1, 0), (2.5, 1, 2), (3.0, 2, 0), (3.9, 2, 0), (4, 2, 1)):
        remote = remote_of(RemoteStatus.IN_PROGRESS, completed=completed)
        batch = decided(batch, Polled(remote=remote), NOW + hours * 3600)

        assert batch.stalls == stalls

    ended = decided(batch, Polled(remote=remote_of(RemoteStatus.FINALIZING)), NOW + 9 * 3600)

    assert ended.stalls == 0


def test_polls_back_off_and_start_again_when_something_changed() -> None:
    """Polls of an unchanged batch slow down to the cap; a change or a near end speeds them up."""
    batch = batch_of(status=BatchStatus.CREATED, remote_status=RemoteStatus.VALIDATING)
    delays = []

    for _ in range(8):
        batch = decided(batch, Polled(remote=remote_of(RemoteStatus.VALIDATING)))
        assert batch.due_at is not None
        delays.append(batch.due_at - NOW)

    assert delays[0] < delays[1] < delays[2]
    assert 108 <= delays[-1] <= 132

    changed = decided(batch, Polled(remote=remote_of(RemoteStatus.IN_PROGRESS, total=10)))

    assert changed.due_at is not None
    assert changed.due_at - NOW <= 11

    slow = replace(changed, polls=20)
    nearly = decided(
        slow,
        Polled(remote=remote_of(RemoteStatus.IN_PROGRESS, total=10, completed=8, failed=1)),
    )

    assert nearly.due_at is not None
    assert nearly.due_at - NOW <= 22


@given(st.lists(st.floats(min_value=1, max_value=600), min_size=1, max_size=30))
def test_a_batch_is_lost_only_after_many_misses_over_a_long_time(gaps: list[float]) -> None:
    """A batch that a provider does not know is given up after 5 misses in a row over 900 s."""
    batch = batch_of(status=BatchStatus.CREATED, remote_status=RemoteStatus.IN_PROGRESS)
    now = NOW

    for sightings, gap in enumerate([0.0, *gaps], start=1):
        now += gap
        batch = decided(batch, Missed(), now)
        is_lost = sightings >= LOST_AFTER_SIGHTINGS and now - NOW >= LOST_AFTER_S

        if is_lost:
            assert batch.remote_status is RemoteStatus.LOST
            assert batch.status is BatchStatus.DOWNLOADED
            break

        assert batch.status is BatchStatus.CREATED
        assert batch.due_at is not None


def test_one_sighting_starts_the_misses_anew() -> None:
    """A provider that knows a batch again has not lost it, however often it missed it before."""
    batch = batch_of(status=BatchStatus.CREATED, missed=100, missed_at=NOW - 10_000)
    batch = decided(batch, Polled(remote=remote_of(RemoteStatus.IN_PROGRESS)))
    batch = decided(batch, Missed(), NOW + 1)

    assert (batch.status, batch.missed, batch.missed_at) == (BatchStatus.CREATED, 1, NOW + 1)


def test_a_missing_upload_is_waited_for_and_then_sent_again() -> None:
    """An upload that is not there is a race for two minutes; then the file is sent anew."""
    batch = batch_of(status=BatchStatus.CREATING, input_file="file-1", uploaded_at=NOW)
    gone = Gone(reason="No such File object: file-1")
    racing = decided(batch, gone, NOW + RACE_S - 1)

    assert (racing.status, racing.input_file, racing.failures) == (batch.status, "file-1", 1)

    anew = decided(batch, gone, NOW + RACE_S)

    assert (anew.status, anew.input_file, anew.uploaded_at) == (BatchStatus.PLANNED, None, None)
    assert anew.due_at is not None
    assert anew.due_at > NOW + RACE_S


def test_doubt_asks_for_the_files_again_later() -> None:
    """Answers that do not add up are fetched a second time, after a pause, and counted."""
    batch = batch_of(status=BatchStatus.DOWNLOADED, remote_status=RemoteStatus.COMPLETED)
    doubted = decided(batch, Doubtful(reason="2 missing"))

    assert (doubted.status, doubted.looks, doubted.why) == (BatchStatus.ENDED, 1, "2 missing")
    assert doubted.due_at is not None
    assert doubted.due_at > NOW

    late = remote_of(RemoteStatus.COMPLETED, output_file="file-late")
    again = decided(doubted, Downloaded(remote=late))

    assert (again.status, again.looks, again.output_file) == (
        BatchStatus.DOWNLOADED,
        1,
        "file-late",
    )


def test_a_refused_batch_goes_to_be_settled_with_its_reason() -> None:
    """What was declined is not downloaded; the provider's words are kept for settling."""
    for status in (BatchStatus.PLANNED, BatchStatus.CREATING):
        after = decided(batch_of(status=status), Turned(faults='[{"code": "x"}]'))

        assert (after.status, after.remote_status) == (BatchStatus.DOWNLOADED, RemoteStatus.REFUSED)
        assert after.errors == '[{"code": "x"}]'


# Providers.


@pytest.mark.parametrize("status", ProviderStatus)
def test_a_provider_without_live_jobs_is_ready_at_boot(status: ProviderStatus) -> None:
    """Where nothing can have been left behind nothing is recalled, and new work may start."""
    after = recalled(ProviderState(id="openai", status=status, due_at=NOW), Booted(sweeps=0))

    assert (after.status, after.due_at) == (ProviderStatus.READY, None)


def test_a_boot_forgets_pauses_and_starts_recall() -> None:
    """A restart often follows a mended key, so it probes at once; recall comes before creates."""
    paused = ProviderState(
        id="openai",
        status=ProviderStatus.READY,
        version=7,
        struck="a b c",
        pauses=4,
        paused_until=NOW + 600,
    )
    after = recalled(paused, Booted(sweeps=2))

    assert after == ProviderState(
        id="openai",
        status=ProviderStatus.RECALLING,
        version=8,
        due_at=NOW,
        sweeps=2,
    )

    once = recalled(after, Recalled(found=1))

    assert (once.status, once.due_at, once.sweeps) == (
        ProviderStatus.RECALLING,
        NOW + GRACE_S,
        1,
    )

    twice = recalled(once, Recalled(found=1), NOW + GRACE_S)

    assert (twice.status, twice.due_at, twice.sweeps) == (ProviderStatus.READY, None, 0)


def test_a_recall_that_fails_is_no_recall() -> None:
    """A provider is not ready before its list was read, however often that failed."""
    state = ProviderState(id="openai", sweeps=1, due_at=NOW)

    for _ in range(50):
        state = recalled(state, failed(Trouble.OUTAGE))

    assert (state.status, state.sweeps, state.failures) == (ProviderStatus.RECALLING, 1, 50)


@pytest.mark.parametrize("trouble", [Trouble.THROTTLED, Trouble.BLOCKED])
def test_a_rate_limit_or_a_refused_account_pauses_a_provider_at_once(trouble: Trouble) -> None:
    """One such answer is enough, whoever met it, and `Retry-After` is obeyed."""
    fresh = ProviderState(id="openai", status=ProviderStatus.READY)
    paused = decide_provider(fresh, "a", failed(trouble), NOW, RULES)

    assert paused.paused_until is not None
    assert paused.paused_until > NOW
    assert (paused.pauses, paused.paused_at, paused.why) == (1, NOW, "it did not work")

    asked = decide_provider(fresh, "a", failed(trouble, 5000.0), NOW, RULES)

    assert asked.paused_until == NOW + 5000


def test_a_blocked_provider_is_probed_ever_more_rarely() -> None:
    """Each probe that is refused lengthens the pause, up to ten minutes."""
    state = ProviderState(id="openai", status=ProviderStatus.READY)
    now = NOW
    pauses = []

    for _ in range(10):
        state = decide_provider(state, "a", failed(Trouble.BLOCKED), now, RULES)
        assert state.paused_until is not None
        pauses.append(state.paused_until - now)
        now = state.paused_until

    assert pauses[0] < pauses[1] < pauses[2]
    assert pauses[-1] <= BLOCKED_CAP_S * 1.1
    assert state.pauses == 10


def test_calls_under_way_when_a_pause_began_do_not_lengthen_the_backoff() -> None:
    """Eight calls that meet one rate limit are one pause."""
    state = ProviderState(id="openai", status=ProviderStatus.READY)

    for number in range(8):
        state = decide_provider(state, f"b{number}", failed(Trouble.THROTTLED), NOW, RULES)

    assert state.pauses == 1


def test_a_pause_of_submissions_stops_no_collecting() -> None:
    """A rate limit met by a create pauses creations; only a create that is answered ends that."""
    fresh = ProviderState(id="openai", status=ProviderStatus.READY)
    paused = decide_provider(
        fresh, "a", failed(Trouble.THROTTLED, 3600.0), NOW, RULES, Work.CREATIONS
    )

    assert (paused.paused_work, paused.paused_until) == (Work.CREATIONS, NOW + 3600)

    polled = Polled(remote=remote_of(RemoteStatus.IN_PROGRESS))
    created = Created(remote=remote_of(RemoteStatus.VALIDATING), found=False)
    later = NOW + 3600

    assert decide_provider(paused, "b", polled, later, RULES) is paused
    assert decide_provider(paused, "c", created, NOW, RULES, Work.CREATIONS) is paused
    assert decide_provider(paused, "c", created, later, RULES, Work.CREATIONS) == fresh


def test_what_hits_more_than_submissions_pauses_everything() -> None:
    """A key that polls are refused with too pauses all, for as long as that answer says."""
    fresh = ProviderState(id="openai", status=ProviderStatus.READY)
    creations = decide_provider(
        fresh, "a", failed(Trouble.THROTTLED, 3600.0), NOW, RULES, Work.CREATIONS
    )
    everything = decide_provider(creations, "b", failed(Trouble.BLOCKED), NOW, RULES)

    assert everything.paused_work is Work.ALL
    assert everything.paused_until is not None
    assert everything.paused_until < NOW + 600

    under_way = decide_provider(
        everything, "c", failed(Trouble.THROTTLED, 3600.0), NOW, RULES, Work.CREATIONS
    )

    assert under_way is everything


def test_an_outage_during_a_pause_of_creations_is_noticed() -> None:
    """While creations wait, three polls that fail pause everything, and one that works forgets."""
    fresh = ProviderState(id="openai", status=ProviderStatus.READY)
    state = decide_provider(fresh, "a", failed(Trouble.BLOCKED), NOW, RULES, Work.CREATIONS)

    for row in ("b", "c"):
        state = decide_provider(state, row, failed(Trouble.OUTAGE), NOW, RULES)

    polled = Polled(remote=remote_of(RemoteStatus.IN_PROGRESS))

    assert state.paused_work is Work.CREATIONS
    assert decide_provider(state, "d", polled, NOW, RULES).struck == ""
    assert decide_provider(state, "d", failed(Trouble.OUTAGE), NOW, RULES).paused_work is Work.ALL


def test_a_pause_is_kept_for_as_long_as_was_asked() -> None:
    """An answer to a call that was under way when the pause began does not end it."""
    fresh = ProviderState(id="openai", status=ProviderStatus.READY)
    paused = decide_provider(fresh, "a", failed(Trouble.THROTTLED, 60.0), NOW, RULES)

    assert decide_provider(paused, "b", Downloaded(remote=None), NOW + 1, RULES) is paused
    assert decide_provider(paused, "b", Downloaded(remote=None), NOW + 60, RULES) == fresh


def test_a_rejection_that_is_tried_again_keeps_its_reason() -> None:
    """What the disk said against a rejection is not why the file is rejected."""
    job = job_of(status=JobStatus.UNUSABLE, why="no row is a request")
    after = decide(job, failed(Trouble.ROW), NOW, RULES)

    assert (after.why, after.failures, after.due_at is None) == (job.why, 1, False)


def test_a_row_that_waits_too_long_is_woken() -> None:
    """A deadline that only a clock set back explains is now, and nothing else changes."""
    batch = batch_of(status=BatchStatus.CREATED, due_at=NOW + 1e9, remote_id="b")
    job = job_of(status=JobStatus.SETTLED, due_at=NOW + 1e9)

    for row in (batch, job):
        after = decide(row, Woken(), NOW, RULES)

        assert after == replace(row, due_at=NOW, version=row.version + 1)


def test_an_outage_pauses_only_after_several_items_met_it() -> None:
    """One item that keeps failing may be at fault itself; three different ones are not."""
    state = ProviderState(id="openai", status=ProviderStatus.READY)

    for _ in range(20):
        state = decide_provider(state, "a", failed(Trouble.OUTAGE), NOW, RULES)

    assert (len(state.struck.split()), state.pauses) == (1, 0)

    state = decide_provider(state, "b", failed(Trouble.OUTAGE), NOW, RULES)

    assert (len(state.struck.split()), state.pauses) == (2, 0)

    state = decide_provider(state, "c", failed(Trouble.OUTAGE), NOW, RULES)

    assert state.pauses == 1
    assert state.paused_until is not None


def test_any_real_answer_ends_a_pause() -> None:
    """A provider that answers, be it with a refusal, is there."""
    paused = ProviderState(
        id="openai",
        status=ProviderStatus.READY,
        struck="a b c",
        pauses=2,
        paused_until=NOW,
        paused_at=NOW - 9,
        why="down",
    )
    clear = ProviderState(id="openai", status=ProviderStatus.READY)
    answers: list[Outcome] = [
        Uploaded(file="file-1"),
        Created(remote=remote_of(RemoteStatus.VALIDATING), found=False),
        Polled(remote=remote_of(RemoteStatus.VALIDATING)),
        Turned(faults="[]"),
        Gone(reason="no such file"),
        Downloaded(remote=None),
    ]

    for outcome in answers:
        assert decide_provider(paused, "a", outcome, NOW, RULES) == clear
        assert decide_provider(clear, "a", outcome, NOW, RULES) is clear


def test_an_outage_does_not_last_as_long_as_a_limit() -> None:
    """Three failed polls within an hour without creations stop the rest for seconds, not for it."""
    fresh = ProviderState(id="openai", status=ProviderStatus.READY)
    state = decide_provider(
        fresh, "a", failed(Trouble.THROTTLED, 3600.0), NOW, RULES, Work.CREATIONS
    )

    for row in ("b", "c", "d"):
        state = decide_provider(state, row, failed(Trouble.OUTAGE), NOW, RULES)

    assert state.paused_work is Work.ALL
    assert state.paused_until is not None
    assert state.paused_until < NOW + 60


def test_two_limits_at_once_pause_the_rest_for_a_moment_only() -> None:
    """Uploads and creations that are both refused, one of them for an hour, hold up no polls."""
    fresh = ProviderState(id="openai", status=ProviderStatus.READY)
    uploads = decide_provider(fresh, "a", failed(Trouble.THROTTLED, 5.0), NOW, RULES, Work.UPLOADS)
    both = decide_provider(
        uploads, "b", failed(Trouble.THROTTLED, 3600.0), NOW, RULES, Work.CREATIONS
    )

    assert both.paused_work is Work.ALL
    assert both.paused_until is not None
    assert both.paused_until < NOW + 60


def test_a_download_is_given_up_for_what_is_missing_only() -> None:
    """Outages do not count towards the times that a provider says it has no such file."""
    batch = batch_of(status=BatchStatus.ENDED, remote_id="batch_1", output_file="file-1")

    for _ in range(20):
        batch = decided(batch, failed(Trouble.OUTAGE))

    missing = replace(failed(Trouble.ROW), is_missing=True)

    assert decided(batch, missing).missed == 1
    assert decided(decided(batch, missing), failed(Trouble.OUTAGE)).missed == 0


def test_a_file_that_is_never_found_is_not_sent_for_days() -> None:
    """After a handful of uploads "no such file" is what the provider has to say of the batch."""
    batch = batch_of(status=BatchStatus.CREATING, uploaded_at=NOW - 3600, reuploads=4)
    again = decided(batch, Gone(reason="no such file"))
    last = decided(replace(batch, reuploads=5), Gone(reason="no such file"))

    assert (again.status, again.reuploads) == (BatchStatus.PLANNED, 5)
    assert (last.status, last.remote_status) == (BatchStatus.DOWNLOADED, RemoteStatus.REFUSED)


@pytest.mark.parametrize(
    "outcome",
    [Intended(), Tidied(), Settled(successors=(), answered=1, failed=0), UNTIMED],
)
def test_work_at_home_says_nothing_of_a_provider(outcome: Outcome) -> None:
    """What never went over the wire neither pauses a provider nor ends its pause."""
    paused = ProviderState(id="openai", pauses=2, paused_until=NOW)

    assert decide_provider(paused, "a", outcome, NOW, RULES) is paused


# The table itself.


def test_the_table_knows_every_status() -> None:
    """Every status has its row in the table, and leads to its own kind only."""
    every = [*JobStatus, *BatchStatus, *ProviderStatus, *NoticeStatus]

    assert set(TRANSITIONS) == set(every)

    for status, following in TRANSITIONS.items():
        assert all(type(after) is type(status) for after in following)


def test_every_live_status_has_a_stage_or_is_moved_by_others() -> None:
    """A status without a stage is an end, or is moved on by what it waits for."""
    waiting = {JobStatus.PLANNED, ProviderStatus.READY}
    ends = {JobStatus.DONE, JobStatus.REJECTED, BatchStatus.CLOSED}
    ends |= {NoticeStatus.SENT, NoticeStatus.DROPPED}

    assert set(STAGES) == set(TRANSITIONS) - waiting - ends
    assert {status for status, after in TRANSITIONS.items() if not after} == ends


def test_rows_need_no_arguments_by_position() -> None:
    """A row is made by names alone, so that columns can be added in any place."""
    for kind in (Job, Batch, ProviderState):
        assert not inspect.getfullargspec(kind).args

    assert re.fullmatch(r"[\w-]+", job_of().id)


@settings(max_examples=15)
@given(st.integers(min_value=0, max_value=200), st.none() | times, times)
@pytest.mark.parametrize(
    ("said", "oddity"),
    [
        ({}, {}),
        ({"completed": 6}, {}),
        ({"failed": 1}, {}),
        ({"completed": 4}, {}),
        ({"total": 11}, {}),
        ({"total": 0, "created_at": None}, {}),
        ({"created_at": NOW - 4.0}, {}),
        ({"errors": "[]"}, {}),
        ({"output_file": "file-2"}, {}),
        ({}, {"failures": 2, "failed_at": NOW}),
        ({}, {"missed": 1}),
        ({}, {"missed_at": NOW}),
        ({}, {"why": "a"}),
        ({}, {"remote_status": RemoteStatus.VALIDATING}),
        ({}, {"remote_status": RemoteStatus.FINALIZING}),
        ({}, {"remote_status": None}),
        ({"completed": 10}, {"completed": 10}),
    ],
)
def test_a_poll_without_news_is_decided_as_any_other(
    said: dict[str, Any],
    oddity: dict[str, Any],
    polls: int,
    progressed_at: float | None,
    now: float,
) -> None:
    """The short way of a poll that says nothing new leads where the long way does."""
    plain: dict[str, Any] = {
        "status": BatchStatus.CREATED,
        "remote_id": "batch_1",
        "remote_status": RemoteStatus.IN_PROGRESS,
        "completed": 5,
        "total": 10,
        "created_at": NOW - 5.0,
    }
    batch = batch_of(
        **plain | {"polls": polls, "progressed_at": progressed_at, "stalls": 3} | oddity
    )
    answer = {"completed": 5, "total": 10, "created_at": NOW - 5.0} | said
    polled = Polled(remote=remote_of(RemoteStatus.IN_PROGRESS, **answer))

    assert decide(batch, polled, now, RULES) == _decided(batch, polled, now, RULES)


def test_a_poll_without_news_is_known_as_such() -> None:
    """The short way is taken where it is meant to be, and not where anything is other than well."""
    batch = batch_of(
        status=BatchStatus.CREATED, remote_status=RemoteStatus.IN_PROGRESS, completed=5, total=10
    )
    same = remote_of(RemoteStatus.IN_PROGRESS, completed=5, total=10)

    assert is_as_known(batch, same)
    assert not is_as_known(batch, replace(same, completed=6))
    assert not is_as_known(batch, replace(same, status=RemoteStatus.COMPLETED))
    assert not is_as_known(replace(batch, failures=1), same)
