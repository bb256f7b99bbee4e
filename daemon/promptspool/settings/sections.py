"""The sections of the configuration file, as frozen models that know no other keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from promptspool.schema import check_schema
from promptspool.settings.finding import ENV_DELIMITER, ENV_PREFIX, SPOOL
from promptspool.settings.reading import Look
from promptspool.settings.values import (
    BaseUrl,
    Day,
    Dollars,
    Duration,
    Encoding,
    EnvName,
    Factor,
    FilePath,
    LaneWidth,
    Listen,
    PositiveDuration,
    ProfileName,
    ProviderName,
    Size,
    Template,
    Webhook,
    Window,
    conflict,
    is_readable_on_the_way,
)

_MAX_DEPTH = 100
"""Of params: far more than any API takes, far fewer than what a library stumbles over."""

_STRUCTURED = ("/v1/chat/completions", "/v1/responses")
"""The endpoints of structured outputs."""


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    check_schema(value)

    return value


def _params(value: dict[str, Any]) -> dict[str, Any]:
    tables: list[tuple[Any, int]] = [(value, 1)]

    while tables:
        found, depth = tables.pop()
        parts = found.values() if isinstance(found, dict) else found

        if depth > _MAX_DEPTH:
            raise ValueError(f"write no more than {_MAX_DEPTH} tables or arrays into each other")

        for part in parts:
            if isinstance(part, float) and not math.isfinite(part):
                raise ValueError("write numbers that JSON has: nan and inf are none of them")

            if isinstance(part, dict | list):
                tables.append((part, depth + 1))

    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SpoolSettings(_Section):
    """Where the spool is and how patiently its inbox is read."""

    path: FilePath = SPOOL
    state: FilePath | None = None
    """Where the database and the control files are; None for `state/` in the spool."""
    settle: Duration = 2.0
    rescan: PositiveDuration = 60.0
    stop_grace: Duration = 10.0


class ProviderSettings(_Section):
    """One account at one provider, and what it allows in a batch.

    The limits are those of the OpenAI Batch guide: 50,000 requests, 50,000 embedding inputs and
    200 MB. It does not say which megabyte it means, so 190 of the smaller ones are used.
    """

    dialect: Literal["openai"] = "openai"
    allow_http: bool = False
    base_url: BaseUrl  # after `allow_http`, which it is seen with
    api_key_env: EnvName | None = None
    api_key_file: FilePath | None = None
    completion_window: Window = "24h"
    max_requests: Annotated[int, Field(ge=1)] = 50_000
    max_bytes: Size = 190_000_000
    max_inputs: Annotated[int, Field(ge=1)] = 50_000
    max_creates: Annotated[int, Field(ge=1)] = 2_000
    lookup_grace: Duration = 60.0
    timeout: PositiveDuration = 60.0
    connect_timeout: PositiveDuration = 10.0
    transfer_timeout: PositiveDuration = 120.0
    max_answer_bytes: Size = 64_000_000
    max_download: Size = 20_000_000_000
    cleanup: bool = True
    max_cost: Dollars | None = None
    """Of one job, as estimated; None for no limit."""
    max_cost_per_day: Dollars | None = None
    """Of all that is created in a day (UTC), estimated until it is known."""
    max_cost_per_month: Dollars | None = None
    max_tokens_enqueued: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """By model: how many input tokens may be in batches that have not ended."""

    @field_validator("base_url")
    @classmethod
    def _keeps_the_key(cls, value: str, info: ValidationInfo) -> str:
        """Refuse to show the key to everybody between this machine and another."""
        if not info.data.get("allow_http") and is_readable_on_the_way(value):
            raise ValueError(
                "write https://, or allow_http = true if the network between is yours: "
                "http:// shows the key to everyone on the way"
            )

        return value


class PollingSettings(_Section):
    """How often a live batch is asked for its status: first, then ever slower up to the cap."""

    first: PositiveDuration = 10.0
    factor: Factor = 2.0
    cap: PositiveDuration = 120.0
    stalled: PositiveDuration = 21_600.0


class RetrySettings(_Section):
    """How failed stages and failed requests are tried again, and when to stop."""

    first: PositiveDuration = 1.0
    factor: Factor = 2.0
    cap: PositiveDuration = 300.0
    request_backoff: Duration = 30.0
    max_age: PositiveDuration = 259_200.0
    stop_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    stop_requests: Annotated[int, Field(ge=1)] = 1_000


class LaneSettings(_Section):
    """How many stages of a kind run at once."""

    disk: LaneWidth = 2
    transfer: LaneWidth = 16
    control: LaneWidth = 16
    poll: LaneWidth = 1


class NotifySettings(_Section):
    """Who is told when a job ends or waits for a person: a command, a webhook or both."""

    on: tuple[Literal["delivered", "failed", "held"], ...] = ("delivered", "failed", "held")
    command: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """A program and its arguments; no shell reads it."""
    webhook: Webhook | None = None
    webhook_secret_env: EnvName | None = None
    webhook_secret_file: FilePath | None = None
    allow_private: bool = False
    """Whether the webhook may be in a private network or on this machine, and without TLS."""
    timeout: PositiveDuration = 30.0


class PriceSettings(_Section):
    """What a model costs, in USD for a million tokens."""

    input: Dollars
    output: Dollars = 0.0
    cached_input: Dollars | None = None
    """None for the price of other input."""
    batch_input: Dollars | None = None
    """None, as for the two below, for half of the standard price."""
    batch_output: Dollars | None = None
    batch_cached_input: Dollars | None = None
    as_of: Day | None = None
    """The date of these prices; None if it is not known."""


class ProfileSettings(_Section):
    """How the rows of one inbox folder become requests."""

    extend: str | None = None
    """The profile that this one was laid over."""
    provider: str = "openai"
    endpoint: Literal[
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/completions",
        "/v1/moderations",
    ] = "/v1/chat/completions"
    model: Annotated[str, Field(min_length=1)]
    system: str | None = None
    prompt: Template | None = None
    id: Template | None = None
    params: Annotated[dict[str, Any], AfterValidator(_params)] = Field(default_factory=dict)
    response_schema: Annotated[dict[str, Any], AfterValidator(_schema)] | None = None
    """The schema itself; the configuration names a file, which `load` puts in its place."""
    images: tuple[str, ...] = ("image", "image_url")
    files: FilePath | None = None
    split: Literal["line", "paragraph", "file"] | None = None
    sheet: str | None = None
    encoding: Encoding | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    answers: tuple[Literal["jsonl", "table", "text", "npy", "parquet"], ...] = ("jsonl", "table")
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    on_bad_row: Literal["errors", "reject"] = "errors"
    on_duplicate_id: Literal["reject", "errors", "number"] = "reject"
    on_same_content: Literal["run", "skip"] = "run"
    answer_tokens: Annotated[int, Field(ge=0)] = 200
    """Assumed of each answer that its request does not limit, when costs are estimated."""
    max_cost: Dollars | None = None
    """As the provider's; the lower of the two holds."""
    notify: NotifySettings = NotifySettings()

    @model_validator(mode="after")
    def _fits_the_endpoint(self) -> Self:
        """Refuse what the endpoint has no place for."""
        vectors = [answer for answer in self.answers if answer in ("npy", "parquet")]
        is_structured = self.endpoint in _STRUCTURED
        only = f"only {' and '.join(_STRUCTURED)} take one"
        conflicts = []

        if self.response_schema is not None and not is_structured:
            conflicts.append((("response_schema",), only))

        if self.system and not is_structured:
            conflicts.append((("system",), f"{only}; leave it out"))

        if vectors and self.endpoint != "/v1/embeddings":
            conflicts.append((("answers",), f"only /v1/embeddings makes {' and '.join(vectors)}"))

        if conflicts:
            raise conflict(conflicts)

        return self


class IntakeSettings(_Section):
    """How much may come out of a compressed file."""

    max_expanded: Size = 20_000_000_000
    max_ratio: Annotated[int, Field(ge=1)] = 200


class MetricsSettings(_Section):
    """Where figures for a monitoring system are to be had; nowhere by default."""

    listen: Listen | None = None
    """HOST:PORT, or a port of this machine; None for none."""
    textfile: FilePath | None = None
    """A file for the textfile collector of node_exporter; None for none."""


class RetentionSettings(_Section):
    """How long what is finished is kept; None for ever."""

    done: PositiveDuration | None = None
    rejected: PositiveDuration | None = None
    history: PositiveDuration | None = 7_776_000.0


class LogSettings(_Section):
    """How much is logged, and in which shape."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(BaseSettings):
    """The whole configuration; made by anyone but `load`, it reads nothing but its arguments."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
    )

    spool: SpoolSettings = SpoolSettings()
    providers: dict[ProviderName, ProviderSettings] = Field(default_factory=dict)
    polling: PollingSettings = PollingSettings()
    retry: RetrySettings = RetrySettings()
    lanes: LaneSettings = LaneSettings()
    intake: IntakeSettings = IntakeSettings()
    profiles: dict[ProfileName, ProfileSettings] = Field(default_factory=dict)
    prices: dict[str, PriceSettings] = Field(default_factory=dict)
    """By model; what is not here has the list price."""
    metrics: MetricsSettings = MetricsSettings()
    retention: RetentionSettings = RetentionSettings()
    log: LogSettings = LogSettings()
    _source: Path | None = PrivateAttr(default=None)
    _looks: dict[Path, Look | None] = PrivateAttr(default_factory=dict)

    @property
    def source(self) -> Path | None:
        """The file it was read from; None when it was made directly."""
        return self._source

    @property
    def looks(self) -> dict[Path, Look | None]:
        """How each file that it was read from looked then: its own, and the schemas'."""
        return self._looks

    @model_validator(mode="after")
    def _providers_exist(self) -> Self:
        known = ", ".join(self.providers) or "(no [providers.NAME] section yet)"
        conflicts = [
            (("profiles", name, "provider"), f"found {profile.provider!r}; write one of: {known}")
            for name, profile in self.profiles.items()
            if profile.provider not in self.providers
        ]

        if conflicts:
            raise conflict(conflicts)

        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but the arguments; `load` lays the layers over each other itself."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)
