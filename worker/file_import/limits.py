"""The limits of an import: how they are written, and whether a file's rows and totals keep them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Final

from worker.importer import Summary
from worker.model.currencies import AmountUnit
from worker.model.words import counted, money, verb

UNSTATED: Final = "unstated"
"""The name of the currency of rows that state none."""
_MONEY: Final = re.compile(rf"(?:([A-Za-z]{{3}}|{UNSTATED})=)?([0-9]{{1,18}})")
_PART: Final = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST: Final = timedelta(days=30)
_TOO_LONG: Final = 10**9
_WHOLE: Final = Decimal(100)


@dataclass(frozen=True, kw_only=True)
class MostErrors:
    """How many rows of a file may be invalid: a number of rows, or a percentage."""

    text: str
    rows: int | None = None
    percent: Decimal | None = None

    def allows(self, refused: int, rows: int) -> bool:
        """Return whether `refused` of `rows` rows are few enough."""
        if self.rows is not None:
            return refused <= self.rows
        return refused * _WHOLE <= (self.percent or 0) * rows


class Unusable(ValueError):
    """An option's text that cannot be used; `rule` says what it must be."""

    def __init__(self, shown: str, rule: str) -> None:
        super().__init__(f"{shown} {rule}")
        self.rule = rule


def most_errors(text: str) -> MostErrors:
    """Return `N` or `P%` as it was written. Raises `Unusable`."""
    if re.fullmatch(r"[0-9]{1,12}", text):
        return MostErrors(text=text, rows=int(text))
    if (
        re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{1,6})?%", text)
        and (percent := Decimal(text[:-1])) <= _WHOLE
    ):
        return MostErrors(text=text, percent=percent)
    raise Unusable(
        repr(text), "must be a number of rows such as 10, or a percentage such as 0.5%, up to 100%"
    )


def length_of_time(text: str) -> timedelta:
    """Return `90s`, `70m`, `2h`, `1d`, or several of them as in `1h30m`. Raises `Unusable`."""
    parts = _PART.findall(text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text:
        raise Unusable(repr(text), "must be a time in s, m, h or d, such as 70m or 1h30m")
    span = timedelta(
        seconds=min(sum(int(number) * _SECONDS[unit] for number, unit in parts), _TOO_LONG)
    )
    if not timedelta(0) < span <= _LONGEST:
        raise Unusable(repr(text), f"must be more than 0 and at most {_LONGEST.days} days")
    return span


def each_sum(texts: Iterable[str]) -> dict[str | None, int]:
    """Return `CUR=MINOR`, once for each currency, as a mapping. Raises `Unusable`."""
    found = sums_or_one(texts)
    if None in found:
        raise Unusable(f"'{found[None]}'", f"needs its currency, as in usd={found[None]}")
    return found


def sums_or_one(texts: Iterable[str]) -> dict[str | None, int]:
    """Return `CUR=MINOR`, or `MINOR` for each currency that is not named, as a mapping.

    Raises `Unusable`.
    """
    found: dict[str | None, int] = {}
    for text in texts:
        match = _MONEY.fullmatch(text)
        if match is None:
            raise Unusable(repr(text), "must be a total in minor units, such as usd=123456")
        currency = None if match[1] is None else match[1].lower()
        if currency in found:
            whose = currency or "every currency"
            raise Unusable(f"{text!r}:", f"the total of {whose} is given twice, give it once")
        found[currency] = int(match[2])
    return found


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a whole file; `most_totals[None]` applies to each currency not named."""

    rows: int | None = None
    totals: Mapping[str | None, int] = field(default_factory=dict)
    most_totals: Mapping[str | None, int] = field(default_factory=dict)
    most_amount: int | None = None
    unit: AmountUnit = "minor"
    """The unit of the file's amounts, in which messages show them too.

    The limits are always in minor units.
    """

    def broken(self, summary: Summary) -> list[str]:
        """Return a sentence for each limit that the file breaks.

        Totals are of the rows that would be imported.
        """
        return [*self._expectations(summary), *self._ceilings(summary)]

    def _expectations(self, summary: Summary) -> Iterator[str]:
        if self.rows is not None and summary.rows != self.rows:
            wanted = f"{self.rows:,} {verb(self.rows, 'was', 'were')} expected"
            yield f"the file has {counted(summary.rows, 'row')}, but {wanted}"
        if not self.totals:
            return
        if open_rows := summary.all_remaining:
            # The amounts of these rows are not known, so neither is the total.
            yield f"{_ask_for_all(open_rows)}, so --expect-total cannot be checked"
            return
        found = sums(summary)
        if UNSTATED in found and UNSTATED not in self.totals:
            # Because of these rows the totals of the other currencies would be reported as wrong
            # too.
            unstated = found[UNSTATED]
            yield (
                f"rows without a currency add up to {unstated:,}, so --expect-total cannot be"
                " checked: state their currency in a column named currency, or add --expect-total"
                f" {UNSTATED}={unstated}"
            )
            return
        for currency in sorted({*self.totals, *found}, key=str):
            expected = self.totals.get(currency, 0)
            total = found.get(str(currency), 0)
            if total != expected or currency not in self.totals:
                wanted = f"{expected:,}" if self.unit == "minor" else self._said(expected, currency)
                wanted += f" {verb(expected, 'was', 'were')} expected"
                yield f"the file adds up to {self._said(total, currency)}, but {wanted}"

    def _said(self, amount: int, currency: str | None) -> str:
        """Return a total in the file's form of amounts, then in the form of the command line."""
        if self.unit == "minor":
            return f"{amount:,} {currency}"
        return f"{money(amount, currency, self.unit)} ({currency}={amount})"

    def _ceilings(self, summary: Summary) -> Iterator[str]:
        open_rows = summary.all_remaining
        if self.most_totals:
            for currency, total in sums(summary).items():
                most = self.most_totals.get(currency, self.most_totals.get(None, 0))
                if total > most:
                    yield (
                        f"the file adds up to {self._said(total, currency)}, more than --max-total"
                        f" {most:,} allows"
                    )
            if open_rows:
                yield f"{_ask_for_all(open_rows)}, so --max-total cannot be checked"
        if self.most_amount is not None:
            if summary.largest_amount is not None and summary.largest_amount > self.most_amount:
                yield (
                    f"line {summary.largest_line} requests {summary.largest_amount:,} minor units,"
                    f" more than REFUNDS_MAX_AMOUNT={self.most_amount} allows"
                )
            if open_rows:
                yield f"{_ask_for_all(open_rows)}, so REFUNDS_MAX_AMOUNT cannot be checked"


def _ask_for_all(rows: int) -> str:
    return (
        f"{counted(rows, 'row')} {verb(rows, 'requests', 'request')} all that is left of a payment"
    )


def sums(summary: Summary) -> dict[str, int]:
    """Return the total of each currency in minor units."""
    return {currency or UNSTATED: total.amount for currency, total in summary.totals.items()}
