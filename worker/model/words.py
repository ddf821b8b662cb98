"""Numbers with their nouns, lists, and amounts of money, in words for a person."""

from __future__ import annotations

from collections.abc import Sequence

from worker.model.currencies import AmountUnit, in_major


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 row`, `1,200 rows`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def verb(number: int, one: str, many: str) -> str:
    """Return the form of a verb or pronoun for this number."""
    return one if number == 1 else many


def listed(things: Sequence[object]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    *most, last = (str(thing) for thing in things)
    return f"{', '.join(most)} and {last}" if most else last


def money(amount: int, currency: str | None, unit: AmountUnit) -> str:
    """Return `1,234.50 USD` if amounts are in major units, else `123,450 minor units`."""
    major = in_major(amount, currency, group=",") if unit == "major" else None
    return (
        counted(amount, "minor unit")
        if major is None or currency is None
        else f"{major} {currency.upper()}"
    )
