"""The limits of the records, each as the documents and the code around it state it."""

from __future__ import annotations

from datetime import timedelta

from worker.rules.rechecks import WAITS
from worker.store import commands, creations, scripts, store


def test_limits_of_the_records_are_those_that_are_documented() -> None:
    assert scripts.JOINED == 50
    assert creations.MOST_FIELDS == 200
    assert commands.RELOADS == 3
    assert store.RECHECK_SECONDS == 60


def test_recheck_in_vain_is_tried_again_after_a_minute_ten_and_an_hour() -> None:
    assert (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1)) == WAITS
