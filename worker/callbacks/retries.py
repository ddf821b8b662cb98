"""When a failed callback is sent again: for three days, at growing distances."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

_s, _min, _h = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)

WAITS: Final = (
    5 * _s,
    30 * _s,
    2 * _min,
    10 * _min,
    30 * _min,
    2 * _h,
    5 * _h,
    10 * _h,
    14 * _h,
    20 * _h,
    24 * _h,
)
"""The waits after the first, second, … failed try; after the last one it is a dead letter."""
SPREAD: Final = 0.2
"""The largest share by which a wait is shortened or lengthened."""
MOST_RETRY_AFTER: Final = _h
_MOST_DIGITS: Final = 6


def wait_after(tries: int, *, chance: float, asked: timedelta | None = None) -> timedelta | None:
    """Return the wait after a failed try with `tries` failed ones before it, None after the last.

    `chance` is from 0 to 1. `asked` is the receiver's Retry-After: the wait is at least that.
    """
    if tries >= len(WAITS):
        return None
    wait = WAITS[tries] * (1 - SPREAD + 2 * SPREAD * chance)
    return wait if asked is None else max(wait, min(asked, MOST_RETRY_AFTER))


def retry_after(header: str | None) -> timedelta | None:
    """Return the seconds that a `Retry-After` header names, None if it names none up to an hour."""
    text = (header or "").strip()
    if not (text.isascii() and text.isdigit()) or len(text) > _MOST_DIGITS:
        return None
    asked = timedelta(seconds=int(text))
    return asked if asked <= MOST_RETRY_AFTER else None
