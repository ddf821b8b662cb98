"""Words for single values: a text that is safe to show, an amount, a time."""

from __future__ import annotations

from datetime import datetime

from worker.model.currencies import decimals_of
from worker.model.refund import Refund
from worker.model.words import money


def plain(value: object) -> str:
    """Return a value as text safe for a terminal: control characters are shown as escapes."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def amount_of(refund: Refund) -> str:
    """Return `1,234.50 USD`, or minor units if the currency cannot be read in major ones.

    `all that is left` if the amount is None.
    """
    if refund.amount is None:
        return "all that is left"
    shown = money(refund.amount, refund.currency, "major")
    if refund.currency and decimals_of(refund.currency) is None:
        return f"{shown}, {plain(refund.currency)}"
    return shown


def moment(value: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%SZ")
