"""A window of time as a person types it: two dates or times, in a stated time zone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_OFFSET: Final = re.compile(r"([+-])(\d{2}):?(\d{2})")
_DAY: Final = timedelta(days=1)
_HOURS: Final = 15
_MINUTES: Final = 60
_RULE: Final = "must be a date such as 2026-01-31, or a time such as 2026-01-31T09:00:00Z"


class WindowError(ValueError):
    """A date, a time or a zone that cannot be used; its text is the rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """From `start` up to, and without, `end`."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise WindowError("must be after --from")

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


def zone_of(text: str) -> tzinfo:
    """Return the time zone of a name such as `Europe/Berlin` or `+02:00`. Raises `WindowError`."""
    if text in {"UTC", "Z"}:
        return UTC
    if (offset := _OFFSET.fullmatch(text)) is not None:
        sign, hours, minutes = offset[1], int(offset[2]), int(offset[3])
        if hours < _HOURS and minutes < _MINUTES:
            span = timedelta(hours=hours, minutes=minutes)
            return timezone(-span if sign == "-" else span)
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, KeyError):
        rule = "must be a time zone such as UTC, Europe/Berlin or +02:00"
        raise WindowError(f"{text!r} {rule}") from None


def start_of(text: str, zone: tzinfo) -> datetime:
    """Return the first moment of a date, or the time. Raises `WindowError`."""
    return _moment(text, zone)


def end_of(text: str, zone: tzinfo) -> datetime:
    """Return the end of a date, which counts as a whole, or the time. Raises `WindowError`."""
    if _DATE.fullmatch(text) is None:
        return _moment(text, zone)
    try:
        return _moment((_date(text) + _DAY).isoformat(), zone)
    except OverflowError:
        raise WindowError(f"{text!r} {_RULE}") from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise WindowError(f"{text!r} {_RULE}") from None


def _moment(text: str, zone: tzinfo) -> datetime:
    try:
        if _DATE.fullmatch(text) is None and "T" not in text and " " not in text:
            raise ValueError  # noqa: TRY301 - 20260131 and 2026-W05 are refused as the others are
        typed = datetime.fromisoformat(text)
        return (typed if typed.tzinfo else typed.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise WindowError(f"{text!r} {_RULE}") from None
