"""Configuration: one TOML file, every key of which the environment can override.

`load` finds the file, lays the environment over it and returns one frozen `Settings`;
nothing is read at import. Once loaded, durations are seconds and sizes are bytes.
Keys of providers are no part of it: `api_key` reads them when they are needed.

Raises `ConfigError`, which is bad data: a person has to change the file or the environment.
"""

from promptspool.settings.keys import api_key
from promptspool.settings.loading import FILE_NAME, example_config, load
from promptspool.settings.profiles import profile_for
from promptspool.settings.sections import (
    IntakeSettings,
    LaneSettings,
    LogSettings,
    MetricsSettings,
    NotifySettings,
    PollingSettings,
    PriceSettings,
    ProfileSettings,
    ProviderSettings,
    RetentionSettings,
    RetrySettings,
    Settings,
    SpoolSettings,
)
from promptspool.settings.values import Duration, Size, is_loopback

__all__ = [
    "FILE_NAME",
    "Duration",
    "IntakeSettings",
    "LaneSettings",
    "LogSettings",
    "MetricsSettings",
    "NotifySettings",
    "PollingSettings",
    "PriceSettings",
    "ProfileSettings",
    "ProviderSettings",
    "RetentionSettings",
    "RetrySettings",
    "Settings",
    "Size",
    "SpoolSettings",
    "api_key",
    "example_config",
    "is_loopback",
    "load",
    "profile_for",
]
