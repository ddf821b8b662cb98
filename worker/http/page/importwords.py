"""The words of the import on the page: its options, and why a file is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from worker.errors import FieldError
from worker.file_import import Refusal
from worker.http.uploads import Judged, sentence_of
from worker.importer import IGNORED, AmountUnit, looks_like_amount
from worker.model.currencies import in_major
from worker.words import counted, money, verb

LABELS: Final = {
    "name": "Name of the batch",
    "on_error": "Leave out the invalid rows",
    "max_errors": "Most invalid rows allowed",
    "all_remaining": "Rows without an amount refund all that is left",
    "allow_repeat": "Allow rows with the payment and amount of another refund",
    "again": "Import the new rows of a file that was imported before",
    "delay": "Wait before sending",
    "amount_unit": "Amounts are in",
    "decimal": "Decimal mark",
    "currency": "Currency of rows without one",
    "id_from": "Make the ids from these columns",
    "attempt": "Attempt",
    "column": "Columns with other names",
    "ignore_extra": "Ignore unknown columns",
    "delimiter": "Delimiter",
    "sheet": "Sheet of a workbook",
}
"""The labels of the options, by the names that they have in the API."""
_PARAMETER: Final = re.compile(r"add ([a-z_]+)=true if")
_OPTION: Final = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_COMMAND: Final = re.compile(r"see it with '[^']+', or ")
_SEPARATORS: Final = re.compile(r"[,'_\s]")
_NUMBER: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,4})?")


class Sum(NamedTuple):
    """The sum of one currency, and how it is shown."""

    name: str
    label: str
    text: str
    value: Decimal


def in_labels(sentence: str) -> str:
    """Return a sentence of the importer with the labels of the form instead of options."""
    sentence = _COMMAND.sub("", sentence)
    sentence = _PARAMETER.sub(lambda found: f"tick {_label(found[1])} if", sentence)
    return _OPTION.sub(lambda found: _label(found[1].replace("-", "_")), sentence)


def of_field(error: FieldError) -> str:
    """Return the sentence of an option that is wrong."""
    return in_labels(f"{_label(error.field)} {error.rule}")


def _label(name: str) -> str:
    name = {"batch": "name", "default_currency": "currency"}.get(name, name)
    return f"“{LABELS[name]}”" if name in LABELS else f"“{name.replace('_', ' ')}”"


def reasons_of(judged: Judged) -> tuple[str, ...]:
    """Return why a file must not be imported, a sentence each."""
    return tuple(_reason(refusal, judged) for refusal in judged.refusals)


def _reason(refusal: Refusal, judged: Judged) -> str:
    if refusal.reason == "invalid_rows":
        report = judged.report
        rows = f"{report['invalid']:,} of {counted(report['rows'], 'row')}"
        sentence = f"{rows} {verb(report['invalid'], 'is', 'are')} invalid"
    elif refusal.reason == "batch":
        sentence = judged.no_batch
    else:
        sentence = sentence_of(refusal, judged.report)
    sentence = in_labels(sentence)
    return f"{sentence[0].upper()}{sentence[1:]}."


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """Return what a person should look at before the import."""
    columns = [each["column"] for each in report["columns"] if each["use"] == IGNORED]
    found = [
        f"The column {column!r} looks like an amount, but is ignored."
        for column in columns
        if looks_like_amount(column)
    ]
    if repeated := report["duplicates"]:
        found.append(
            f"{counted(repeated, 'row')} {verb(repeated, 'repeats', 'repeat')} an earlier row: each"
            " refund is made only once."
        )
    if known := report.get("known", 0):
        found.append(
            f"{counted(known, 'row')} {verb(known, 'was', 'were')} accepted before, and"
            f" {verb(known, 'moves', 'move')} nothing again."
        )
    return found


def sums_of(report: Mapping[str, Any]) -> list[Sum]:
    """Return the sums of the rows to be imported, one for each currency with an amount."""
    unit: AmountUnit = report["amount_unit"]
    return [
        Sum(
            name=f"sum_{currency}",
            label=currency.upper(),
            text=money(total["amount"], currency, unit),
            value=Decimal(_in_unit(total["amount"], currency, unit)),
        )
        for currency, total in report["totals"].items()
        if total["rows"] > total["all_remaining"]
    ]


def _in_unit(amount: int, currency: str, unit: AmountUnit) -> str:
    return (in_major(amount, currency) if unit == "major" else None) or str(amount)


def without_amount(report: Mapping[str, Any]) -> int:
    """Return how many rows refund all that is left."""
    return sum(total["all_remaining"] for total in report["totals"].values())


def wrong_in(report: Mapping[str, Any], typed: Mapping[str, str]) -> dict[str, str]:
    """Return the numbers that a person did not type as the report has them: names and labels."""
    expected = {"count": ("the number of refunds", Decimal(report["valid"]))}
    if open_rows := without_amount(report):
        expected["open"] = ("the refunds of all that is left", Decimal(open_rows))
    expected |= {each.name: (f"the sum {each.label}", each.value) for each in sums_of(report)}
    return {
        name: label
        for name, (label, value) in expected.items()
        if _number(typed.get(name, "")) != value
    }


def _number(text: str) -> Decimal | None:
    plain = _SEPARATORS.sub("", text)
    return Decimal(plain) if _NUMBER.fullmatch(plain) else None
