"""A configuration that is replaced while the daemon runs."""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from promptspool import provider, reload, settings
from promptspool.app import Daemon
from promptspool.errors import ConfigError
from promptspool.provider.openai import OpenAI
from promptspool.reload import Reloader, apply, close_idle
from promptspool.settings import ProviderSettings, Settings
from world import World, overheard, simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from promptspool.dispatcher import Dispatcher
    from promptspool.reload import Connect, Retired

pytestmark = pytest.mark.anyio

TEXT = '[providers.openai]\nbase_url = "https://api.example.com/v1"\n'
NOWHERE = "http://127.0.0.1:9/v1"


# What is noticed, and what is refused.


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a configuration file."""
    path = tmp_path / "promptspool.toml"
    path.write_text(TEXT)

    return path


def reloader_of(path: Path) -> Reloader:
    """Return what watches a configuration file that has just been loaded."""

    def load() -> Settings:
        return settings.load(path, environ={})

    return Reloader(load, load())


def looks(reloader: Reloader, count: int = 5) -> list[bool]:
    """Return what so many looks tell."""
    return [reloader.is_changed() for _ in range(count)]


def test_a_change_is_noticed_when_it_has_settled(config: Path) -> None:
    """A file is read again when it looks the same twice, and is another than was read."""
    reloader = reloader_of(config)
    assert looks(reloader) == [False] * 5

    config.write_text(TEXT + "timeout = 7\n")
    assert (reloader.is_changed(), reloader.is_settling) == (False, True)
    config.write_text(TEXT + "timeout = 70\n")
    assert looks(reloader, 2) == [False, True]

    new = reloader.loaded()

    assert new is not None
    assert new.providers["openai"].timeout == 70
    assert (reloader.is_settling, *looks(reloader)) == (False,) * 6


def test_a_file_that_takes_its_place_is_noticed(config: Path) -> None:
    """Editors write another file and rename it, and it may be as long and as old as the first."""
    reloader = reloader_of(config)
    times = config.stat()
    other = config.with_name("other")
    other.write_text(TEXT.replace("api", "ipa"))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(config)

    assert looks(reloader, 2) == [False, True]


def test_a_change_while_it_is_loaded_is_noticed(config: Path) -> None:
    """What changes between the reading and the next look is not taken for what was read."""

    def load() -> Settings:
        loaded = settings.load(config, environ={})
        config.write_text(TEXT + "timeout = 7\n")

        return loaded

    assert looks(Reloader(load, load()), 2) == [False, True]


def test_a_schema_is_part_of_it(config: Path) -> None:
    """The schema files that the configuration names are looked at, too."""
    schema = config.with_name("review.json")
    schema.write_text('{"type": "object"}')
    config.write_text(TEXT + '[profiles.x]\nmodel = "m"\nresponse_schema = "review.json"')
    reloader = reloader_of(config)
    schema.write_text('{"type": "object", "title": "Review"}')

    assert looks(reloader, 2) == [False, True]
    new = reloader.loaded()
    assert new is not None
    assert new.profiles["x"].response_schema == {"type": "object", "title": "Review"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT + "timeout = 'soon'", ", line 3: providers.openai.timeout: found 'soon'; write"),
        (TEXT + "[polling", "not TOML: "),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_used_is_refused_once(config: Path, text: str | None, says: str) -> None:
    """A broken file is told of once, with file, line and reason, and mending it is noticed."""
    reloader = reloader_of(config)

    if text is None:
        config.unlink()
    else:
        config.write_text(text)

    with overheard() as log:
        for _ in range(5):
            assert not reloader.is_changed() or reloader.loaded() is None

    (line,) = log
    assert (line["event"], line["level"]) == ("config.refused", "error")
    assert line["reason"].startswith(f"{config}")
    assert says in line["reason"]

    config.write_text(TEXT + "timeout = 7\n")
    assert looks(reloader, 2) == [False, True]
    assert reloader.loaded() is not None


def test_a_schema_that_was_missing_is_waited_for(config: Path) -> None:
    """Where a schema file is not there yet, its coming is a change."""
    reloader = reloader_of(config)
    config.write_text(TEXT + '[profiles.x]\nmodel = "m"\nresponse_schema = "review.json"')

    with overheard() as log:
        assert reloader.loaded() is None

    assert log[0]["event"] == "config.refused"
    assert looks(reloader) == [False] * 5
    config.with_name("review.json").write_text("{}")
    assert looks(reloader, 2) == [False, True]


# What is put into the running parts.


@dataclass(slots=True, kw_only=True)
class Reloading:
    """A daemon whose configuration is replaced between its turns by what is wanted next."""

    world: World
    daemon: Daemon = field(init=False)
    connect: Connect = provider.connect
    wanted: deque[Settings] = field(default_factory=deque)
    retired: list[Retired] = field(default_factory=list)
    clients: list[OpenAI] = field(default_factory=list)
    """Every client there ever was."""

    def __post_init__(self) -> None:
        """Make the daemon."""
        self.daemon = Daemon(
            settings=self.world.settings(),
            clock=self.world.clock,
            is_draining=True,
            on_turn=self._turn,
        )

    async def _turn(self, dispatcher: Dispatcher) -> None:
        if self.wanted:
            new = self.wanted.popleft()
            self.note(dispatcher)
            self.retired += await apply(
                new,
                context=dispatcher.context,
                inbox=dispatcher.inbox,
                dispatcher=dispatcher,
                connect=self.connect,
                now=dispatcher.context.clock.now(),
            )

        await close_idle(self.retired, dispatcher.in_progress)

    def note(self, dispatcher: Dispatcher) -> None:
        """Remember the clients of this moment."""
        for account in dispatcher.context.accounts.values():
            assert isinstance(account.provider, OpenAI)
            self.clients.append(account.provider)

    @property
    def dispatcher(self) -> Dispatcher:
        """Return the daemon's dispatcher, which is there while it runs."""
        assert self.daemon.dispatcher is not None

        return self.daemon.dispatcher

    def want(self, **overrides: Any) -> None:
        """Have the next turn begin with another configuration: the world's, with *overrides*."""
        below = self.world.overrides
        self.world.overrides = _laid(below, overrides)

        try:
            self.wanted.append(self.world.settings())
        finally:
            self.world.overrides = below

        self.dispatcher.bell.ring()

    async def drain(self) -> None:
        """Run the daemon until nothing is left to do, and close what it used."""
        assert await self.world.run(self.daemon)
        self.note(self.dispatcher)
        await close_idle(self.retired, ())

        for account in self.dispatcher.context.accounts.values():
            await account.provider.close()


def _laid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    return below | {
        key: _laid(below.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in above.items()
    }


def once(then: Callable[[], object]) -> Callable[[], None]:
    """Return what does *then* when it is first called, and nothing any more."""
    left = [then]

    def act() -> None:
        if left:
            left.pop()()

    return act


def rows(count: int) -> list[dict[str, str]]:
    """Return so many rows, a prompt each."""
    return [{"custom_id": f"r{number}", "prompt": "red?"} for number in range(count)]


def ids(count: int) -> list[str]:
    """Return the ids of so many rows."""
    return [row["custom_id"] for row in rows(count)]


EVENTS = (
    "job.claimed", "job.planned", "batch.uploaded", "batch.created", "batch.ended",
    "batch.downloaded", "batch.closed", "job.settled", "job.delivered", "poll.swept",
)  # fmt: skip


async def test_nothing_in_flight_is_dropped(tmp_path: Path) -> None:
    """Replacing everything at every event disturbs no upload, create, poll or download.

    Each time the client is another, so what is in flight depends on the life of the one before.
    """
    overrides = {"providers": {"openai": {"max_requests": 1}}, "lanes": {"transfer": 3}}

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("colours.jsonl", rows(12))
        run = Reloading(world=world)
        numbers = iter(range(1_000))

        def replace() -> None:
            number = next(numbers)
            run.want(
                providers={"openai": {"timeout": 5 + number, "max_bytes": 10_000 + number}},
                polling={"first": 5.0 + number % 3, "cap": 60.0 + number % 3},
                lanes=dict.fromkeys(("disk", "transfer", "control"), 1 + number % 4),
                spool={"settle": 1.0 + number % 2},
                prices={"gpt-5-mini": {"input": number}},
            )

        with overheard(**{event.replace(".", "_"): replace for event in EVENTS}) as log:
            await run.drain()

        world.assert_conserved("colours.jsonl", ids(12))
        world.assert_bought_once()

    told = [line["event"] for line in log]
    assert told.count("config.reloaded") > 20
    assert {"stage.retried", "stage.crashed", "stage.broken", "provider.recalled"}.isdisjoint(told)
    assert len(set(run.clients)) > 20
    assert all(client._http.is_closed for client in run.clients)  # noqa: SLF001 - httpx knows


@pytest.mark.parametrize("event", ["batch.uploaded", "batch.created", "batch.ended"])
async def test_a_job_waits_for_its_address(tmp_path: Path, event: str) -> None:
    """Work of an address that is configured no more waits, and goes on when that is set back."""
    overrides = {"providers": {"openai": {"max_requests": 2}}}

    async with simulated(tmp_path, overrides=overrides) as world:
        world.drop("colours.jsonl", rows(8))
        run = Reloading(world=world)

        def leave() -> None:
            elsewhere = world.base_url.replace("127.0.0.1", "localhost")
            run.want(providers={"openai": {"base_url": elsewhere}})

        with overheard(
            **{event.replace(".", "_"): once(leave)}, stage_retried=once(run.want)
        ) as log:
            await run.drain()

        world.assert_conserved("colours.jsonl", ids(8))
        world.assert_bought_once()
        assert len(world.results("colours.jsonl")) == 8

    assert any("set it back" in line.get("reason", "") for line in log)
    assert [line["changed"] for line in log if line["event"] == "config.reloaded"] == [
        ["providers.openai.base_url"],
        ["providers.openai.base_url"],
    ]


@pytest.mark.parametrize("key", ["base_url", "api_key_file"])
async def test_what_recall_had_found_is_found_again(tmp_path: Path, key: str) -> None:
    """An address that is left and set back, or another key, is recalled before anything is created.

    The batch was created by a process whose database is lost, so recall alone knows of it.
    """
    async with simulated(tmp_path) as world:
        world.drop("colours.jsonl", rows(3))
        first = Reloading(world=world)

        with overheard(batch_created=first.daemon.stop):
            assert not await world.run(first.daemon)

        for path in world.spool.state.glob("*.db*"):
            path.unlink()

        assert not world.spool.database.exists()
        second = Reloading(world=world)
        other = tmp_path / "other"
        other.write_text((tmp_path / "key").read_text())

        def leave() -> None:
            value = NOWHERE if key == "base_url" else other
            second.want(providers={"openai": {key: value}})
            second.want()

        with overheard(provider_recalled=once(leave)) as log:
            await second.drain()

        world.assert_conserved("colours.jsonl", ids(3))
        world.assert_bought_once()
        assert len(world.simulator.ledger.batches_by_metadata("promptspool_batch")) == 1

    assert [line["event"] for line in log].count("provider.recalled") == 2


@pytest.mark.parametrize("is_known", [True, False])
async def test_only_what_is_not_known_is_kept_of_a_list(tmp_path: Path, *, is_known: bool) -> None:
    """A recall keeps the batches whose create the database has not seen answered, and no others."""
    async with simulated(tmp_path) as world:
        world.drop("colours.jsonl", rows(3))
        first = Reloading(world=world)

        with overheard(batch_created=first.daemon.stop):
            assert not await world.run(first.daemon)

        if not is_known:
            for path in world.spool.state.glob("*.db*"):
                path.unlink()

        second = Reloading(world=world)
        kept: list[set[str]] = []

        def look() -> None:
            assert second.daemon.dispatcher is not None
            kept.append({*second.daemon.dispatcher.context.account("openai").batches})

        with overheard(provider_recalled=once(look)):
            await second.drain()

        created = world.simulator.ledger.batches_by_metadata("promptspool_batch")
        world.assert_conserved("colours.jsonl", ids(3))
        world.assert_bought_once()

    assert kept == [set() if is_known else {*created}]


async def test_a_provider_goes_and_comes_back(tmp_path: Path) -> None:
    """Jobs of a provider that is configured no more wait, and go on when it comes back."""
    async with simulated(tmp_path) as world:
        world.drop("colours.jsonl", rows(3))
        run = Reloading(world=world)

        def leave() -> None:
            new = world.settings()
            other = {"other": new.providers["openai"]}
            profiles = {"default": new.profiles["default"].model_copy(update={"provider": "other"})}
            run.wanted.append(new.model_copy(update={"providers": other, "profiles": profiles}))

        with overheard(batch_created=once(leave), stage_retried=once(run.want)) as log:
            await run.drain()

        world.assert_conserved("colours.jsonl", ids(3))
        world.assert_bought_once()

    reloads = [line["changed"] for line in log if line["event"] == "config.reloaded"]
    changes = ["profiles.default.provider", "providers.openai", "providers.other"]
    assert reloads == [changes, changes]
    assert any("is no longer in the configuration" in line.get("reason", "") for line in log)
    assert sorted(run.dispatcher.context.accounts) == ["openai"]


async def test_a_new_provider_is_used(tmp_path: Path) -> None:
    """A provider and a profile that come while the daemon runs are there for the next file."""
    async with simulated(tmp_path) as world:
        world.drop("colours.jsonl", rows(3))
        run = Reloading(world=world)

        def come() -> None:
            here = world.settings().providers["openai"].model_dump(exclude_unset=True)
            run.want(
                providers={"second": here},
                profiles={"reviews": {"model": "gpt-5-mini", "provider": "second"}},
            )

        def drop() -> None:
            world.drop("reviews/may.jsonl", rows(2))

        with overheard(batch_created=once(come), config_reloaded=once(drop)) as log:
            await run.drain()

        world.assert_conserved("colours.jsonl", ids(3))
        world.assert_conserved("reviews/may.jsonl", ids(2))
        world.assert_bought_once()
        assert any(line.get("provider") == "second" for line in log)


async def test_a_job_keeps_the_profile_it_was_planned_with(tmp_path: Path) -> None:
    """A new profile is for what is planned later; a plan that was made is followed to its end."""
    async with simulated(tmp_path) as world:
        world.drop("old.jsonl", rows(2))
        run = Reloading(world=world)

        def change() -> None:
            run.want(profiles={"default": {"model": "gpt-5-nano"}})

        def drop() -> None:
            world.drop("new.jsonl", rows(2))

        with overheard(job_planned=once(change), config_reloaded=once(drop)):
            await run.drain()

        for name, model in (("old", "gpt-5-mini"), ("new", "gpt-5-nano")):
            world.assert_conserved(f"{name}.jsonl", ids(2))
            asked = {line["response"]["body"]["model"] for line in world.results(f"{name}.jsonl")}
            assert asked == {model}

        world.assert_bought_once()


async def test_a_pause_ends_with_a_new_key(tmp_path: Path) -> None:
    """A key that was mended in the configuration is used at once, and not after the pause."""
    async with simulated(tmp_path) as world:
        wrong = tmp_path / "wrong"
        wrong.write_text("sk-wrong")
        world.overrides = {"providers": {"openai": {"api_key_file": wrong}}}
        world.drop("colours.jsonl", rows(3))
        run = Reloading(world=world)

        def mend() -> None:
            run.want(providers={"openai": {"api_key_file": tmp_path / "key"}})

        with overheard(provider_paused=once(mend)) as log:
            await run.drain()

        world.assert_conserved("colours.jsonl", ids(3))

    told = [line["event"] for line in log]
    assert told.count("provider.paused") == told.count("provider.resumed") == 1
    assert told.index("provider.resumed") < told.index("config.reloaded")


async def test_what_needs_a_restart_stays(tmp_path: Path) -> None:
    """What is open as long as the daemon runs keeps its value, and is named; the rest is taken."""
    async with simulated(tmp_path) as world:
        world.drop("colours.jsonl", rows(1))
        run = Reloading(world=world)
        before = run.daemon.settings

        def change() -> None:
            run.want(
                spool={"path": tmp_path / "else", "state": tmp_path / "state", "settle": 1.5},
                metrics={"listen": "127.0.0.1:1", "textfile": tmp_path / "x.prom"},
                retry={"cap": 7.0},
            )

        with overheard(batch_created=once(change)) as log:
            await run.drain()

        world.assert_conserved("colours.jsonl", ids(1))
        after = run.dispatcher.context.settings

    (line,) = [line for line in log if line["event"] == "config.reloaded"]
    stays = ["metrics.listen", "metrics.textfile", "spool.path", "spool.state"]
    assert line["needs_restart"] == stays
    assert line["changed"] == sorted([*stays, "retry.cap", "spool.settle"])
    assert after.metrics == before.metrics
    assert after.spool == before.spool.model_copy(update={"settle": 1.5})
    assert run.dispatcher.inbox.settings is run.dispatcher.inbox.claims.settings is after
    assert run.dispatcher.rules == reload.rules_of(after)
    assert run.dispatcher.rules.retry.cap_s == 7.0


async def test_a_client_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    """Where one provider cannot be connected to at all, the whole configuration is refused."""
    async with simulated(tmp_path) as world:
        world.drop("colours.jsonl", rows(2))
        made: list[provider.Provider] = []

        def connect(name: str, wanted: ProviderSettings) -> provider.Provider:
            if name == "second":
                raise ConfigError("$SSL_CERT_FILE", "the certificates cannot be read")

            made.append(provider.connect(name, wanted))

            return made[-1]

        run = Reloading(world=world, connect=connect)
        before = run.daemon.settings

        def change() -> None:
            here = before.providers["openai"].model_dump(exclude_unset=True)
            run.want(providers={"openai": {"timeout": 9}, "second": here}, retry={"cap": 7.0})

        with overheard(batch_created=once(change)) as log:
            await run.drain()

        world.assert_conserved("colours.jsonl", ids(2))
        assert run.dispatcher.context.settings is before
        assert run.dispatcher.rules.retry.cap_s == 300.0

    told = {line["event"]: line for line in log}
    assert told["config.refused"]["reason"].startswith("$SSL_CERT_FILE: the certificates")
    assert "config.reloaded" not in told
    (client,) = made
    assert isinstance(client, OpenAI)
    assert client._http.is_closed  # noqa: SLF001 - httpx knows


@pytest.fixture
def _own_log() -> Iterator[None]:
    """Put the log back to what it was."""
    before = structlog.get_config()

    yield

    structlog.configure(**before)


@pytest.mark.usefixtures("_own_log")
async def test_the_level_of_the_log_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new level and format of the log hold from then on."""
    async with simulated(tmp_path) as world:
        world.drop("colours.jsonl", rows(1))
        run = Reloading(world=world)

        def change() -> None:
            run.want(log={"level": "debug", "format": "json"})

        with overheard(batch_created=once(change)):
            await run.drain()
            logger = structlog.get_logger()
            assert logger.is_enabled_for(logging.DEBUG)

    assert '"event":"config.reloaded"' in capsys.readouterr().out


def test_every_key_of_a_provider_is_thought_of() -> None:
    """A key decides about the account, is held by the client, or is looked up when it is needed."""
    looked_up = {
        "allow_http", "completion_window", "max_requests", "max_bytes", "max_inputs", "max_creates",
        "lookup_grace", "cleanup", "max_cost", "max_cost_per_day", "max_cost_per_month",
        "max_tokens_enqueued",
    }  # fmt: skip

    thought_of = [*reload.ACCOUNT_KEYS, *reload.CLIENT_KEYS, *looked_up]
    assert sorted(thought_of) == sorted(ProviderSettings.model_fields)
