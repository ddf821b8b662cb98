"""The settings: read once, checked, and frozen."""

from worker.settings.settings import (
    ENV_PREFIX,
    LEAST_SETTLE_SECONDS,
    LIVE_HOST,
    WATCH_RATE,
    Settings,
    is_loopback,
    unknown_variables,
)

__all__ = [
    "ENV_PREFIX",
    "LEAST_SETTLE_SECONDS",
    "LIVE_HOST",
    "WATCH_RATE",
    "Settings",
    "is_loopback",
    "unknown_variables",
]
