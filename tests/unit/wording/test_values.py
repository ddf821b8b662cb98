"""Single values in words for a person."""

from __future__ import annotations

import pytest

from tests.factories import a_refund
from worker.wording.values import amount_of


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (123450, "usd", "1,234.50 USD"),
        (5, "kwd", "0.005 KWD"),
        (500, "jpy", "500 JPY"),
        # ISO and Stripe do not agree on its decimals.
        (500, "isk", "500 minor units, isk"),
        (500, "xx\x1b", "500 minor units, xx\\x1b"),
        (1500, None, "1,500 minor units"),
        (None, "usd", "all that is left"),
    ],
)
def test_amount_is_shown_as_a_person_reads_it(
    amount: int | None, currency: str | None, shown: str
) -> None:
    assert amount_of(a_refund(amount=amount, currency=currency)) == shown
