"""Configuration: one TOML file, every key of which the environment can override.

`load` finds the file, lays the environment over it and returns one frozen `Settings`;
nothing is read at import. Once loaded, durations are seconds and sizes are bytes. `traced` also
tells where each value comes from, and `effective` lists them so that people may see them.
Keys of providers are no part of it: `api_key` reads them when they are needed. `glance` is for
commands that only look, and imports little.

Raises `ConfigError`, which is bad data: a person has to change the file or the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptspool.deferred import deferred

if TYPE_CHECKING:
    from promptspool.settings.agreement import remarks
    from promptspool.settings.finding import FILE_NAME
    from promptspool.settings.inventory import Effective, changed, effective
    from promptspool.settings.keys import api_key, found_key
    from promptspool.settings.loading import example_config, load, traced
    from promptspool.settings.profiles import profile_for
    from promptspool.settings.proof import KEPT, Glance, glance, proof_of
    from promptspool.settings.reading import Look, look
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
    from promptspool.settings.sources import Origin
    from promptspool.settings.values import Duration, Size, is_loopback
    from promptspool.settings.writing import toml_key
else:
    __getattr__ = deferred(
        __name__,
        {
            "agreement": ("remarks",),
            "finding": ("FILE_NAME",),
            "inventory": ("Effective", "changed", "effective"),
            "keys": ("api_key", "found_key"),
            "loading": ("example_config", "load", "traced"),
            "profiles": ("profile_for",),
            "proof": ("KEPT", "Glance", "glance", "proof_of"),
            "reading": ("Look", "look"),
            "sections": (
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
                "SpoolSettings",
            ),
            "sources": ("Origin",),
            "values": ("Duration", "Size", "is_loopback"),
            "writing": ("toml_key",),
        },
    )

__all__ = [
    "FILE_NAME",
    "KEPT",
    "Duration",
    "Effective",
    "Glance",
    "IntakeSettings",
    "LaneSettings",
    "LogSettings",
    "Look",
    "MetricsSettings",
    "NotifySettings",
    "Origin",
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
    "changed",
    "effective",
    "example_config",
    "found_key",
    "glance",
    "is_loopback",
    "load",
    "look",
    "profile_for",
    "proof_of",
    "remarks",
    "toml_key",
    "traced",
]
