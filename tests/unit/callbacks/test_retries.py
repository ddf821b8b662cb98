"""When a failed callback is sent again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.factories import HOUR, MINUTE, SECOND
from worker.callbacks.retries import WAITS, retry_after, wait_after


def test_waits_grow_for_three_days_and_end_after_the_last() -> None:
    waits = [wait_after(tries, chance=0.5) for tries in range(len(WAITS))]
    seconds = [5 * SECOND, 30 * SECOND]
    minutes = [minutes * MINUTE for minutes in (2, 10, 30)]
    assert waits == [*seconds, *minutes, *(hours * HOUR for hours in (2, 5, 10, 14, 20, 24))]
    assert sum(WAITS, timedelta()) > timedelta(days=3)
    assert wait_after(len(WAITS), chance=0.5) is None
    assert wait_after(len(WAITS), chance=0.5, asked=SECOND) is None


def test_waits_are_spread_by_a_fifth() -> None:
    assert [wait_after(0, chance=chance) for chance in (0, 1)] == [4 * SECOND, 6 * SECOND]


def test_receiver_may_ask_for_a_longer_wait_of_up_to_an_hour_and_for_no_shorter_one() -> None:
    assert wait_after(0, chance=0.5, asked=HOUR) == HOUR
    assert wait_after(0, chance=0.5, asked=SECOND) == WAITS[0]


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("120", 120 * SECOND),
        (" 0 ", timedelta()),
        ("000120", 120 * SECOND),
        ("3600", HOUR),
        ("0003600", None),
        ("3601", None),
        ("9999999", None),
        ("-1", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("\u0661", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_up_to_an_hour(
    header: str | None, asked: timedelta | None
) -> None:
    assert retry_after(header) == asked
