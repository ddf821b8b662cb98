"""Conversions between datetimes, epoch milliseconds (in records) and RFC 3339 (for people)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final


def rfc3339(moment: datetime) -> str:
    """Return a time as RFC 3339 UTC with milliseconds, such as `2026-01-31T09:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_ms(milliseconds: int) -> datetime:
    """Return epoch milliseconds as a UTC time; raises `ValueError` if it is after the year 9999."""
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError as error:
        raise ValueError(f"{milliseconds} ms is not a time") from error


def to_ms(moment: datetime) -> int:
    """Return a time as epoch milliseconds, exactly."""
    return (moment - _EPOCH) // _MS


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
