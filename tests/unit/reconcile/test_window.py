"""A window as it is typed: dates count as a whole, in the zone that was stated."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from worker.reconcile.window import Window, WindowError, end_of, start_of, zone_of


def test_last_day_counts_as_a_whole() -> None:
    assert start_of("2026-01-01", UTC) == datetime(2026, 1, 1, tzinfo=UTC)
    assert end_of("2026-01-31", UTC) == datetime(2026, 2, 1, tzinfo=UTC)


def test_time_is_taken_as_it_is_and_its_own_zone_wins() -> None:
    berlin = zone_of("Europe/Berlin")
    assert end_of("2026-01-31T09:00:00Z", berlin) == datetime(2026, 1, 31, 9, tzinfo=UTC)
    assert end_of("2026-01-31T09:00:00", berlin) == datetime(2026, 1, 31, 8, tzinfo=UTC)


def test_day_of_a_clock_change_has_23_hours() -> None:
    berlin = zone_of("Europe/Berlin")
    span = end_of("2026-03-29", berlin) - start_of("2026-03-29", berlin)
    assert span == timedelta(hours=23)


@pytest.mark.parametrize("text", ["+02:00", "+0200"])
def test_zone_may_be_an_offset(text: str) -> None:
    assert start_of("2026-01-01", zone_of(text)) == datetime(2025, 12, 31, 22, tzinfo=UTC)
    assert start_of("2026-01-01", zone_of("-00:30")) == datetime(2026, 1, 1, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize("text", ["UTC", "Z"])
def test_utc_needs_no_database_of_zones(text: str) -> None:
    assert zone_of(text) is UTC


@pytest.mark.parametrize(
    "text", ["", "Berlin", "../etc/passwd", "+99:00", "+15:00", "+02:75", "+02:60", "\0", "/etc"]
)
def test_unknown_zone_is_refused(text: str) -> None:
    with pytest.raises(WindowError, match="must be a time zone such as"):
        zone_of(text)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "31.01.2026", "2026-02-30", "20260131", "2026-W05", "9999-12-31"]
)
def test_what_is_not_a_date_or_time_is_refused(text: str) -> None:
    with pytest.raises(WindowError, match="must be a date such as"):
        end_of(text, UTC)


def test_window_holds_its_start_and_not_its_end() -> None:
    start, end = start_of("2026-01-01", UTC), end_of("2026-01-31", UTC)
    window, tick = Window(start=start, end=end), timedelta(microseconds=1)
    moments = [start - tick, start, end - tick, end]
    assert [moment in window for moment in moments] == [False, True, True, False]


def test_window_that_ends_before_it_begins_is_refused() -> None:
    day = start_of("2026-01-01", UTC)
    with pytest.raises(WindowError, match="must be after --from"):
        Window(start=day, end=day)
