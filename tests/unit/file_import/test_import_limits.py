"""How limits are written: of invalid rows, of totals, and of time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from worker.file_import import Unusable, each_sum, length_of_time, most_errors, sums_or_one


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(minutes=90)),
        ("30d", timedelta(days=30)),
    ],
)
def test_a_length_of_time_is_the_sum_of_its_parts(text: str, span: timedelta) -> None:
    assert length_of_time(text) == span


@pytest.mark.parametrize(
    "text", ["", "70", "-5s", "1.5h", "1w", "0s", "30d1s", "999999999d", "9" * 5000 + "s"]
)
def test_another_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(Unusable):
        length_of_time(text)


@pytest.mark.parametrize(
    ("text", "most", "rows"),
    [("0", 0, 10), ("7", 7, 10), ("10%", 1, 19), ("0.5%", 5, 1000), ("100%", 10, 10)],
)
def test_invalid_rows_are_allowed_up_to_a_number_or_a_share(
    text: str, most: int, rows: int
) -> None:
    allowed = most_errors(text)
    assert [allowed.allows(refused, rows) for refused in (most, most + 1)] == [True, False]


def test_totals_are_by_currency_and_one_may_be_for_all_others() -> None:
    assert each_sum(["usd=5", "EUR=0", "unstated=7"]) == {"usd": 5, "eur": 0, "unstated": 7}
    assert sums_or_one(["usd=5", "7"]) == {"usd": 5, None: 7}
    for texts in (["5"], ["usd=5", "USD=6"], ["usd=-5"], ["dollars=5"], ["usd=" + "9" * 19]):
        with pytest.raises(Unusable):
            each_sum(texts)
