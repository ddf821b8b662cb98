"""The words of the import on the page: its options, and why a file is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from worker.errors import FieldError
from worker.file_import import UNSTATED, Refusal
from worker.http.page.pagewords import batch_facts
from worker.http.uploads import Judged, sentence_of
from worker.importer import IGNORED, looks_like_amount
from worker.model.currencies import in_major
from worker.model.words import counted, money, verb
from worker.wording.files import rows_of_report

LABELS: Final = {
    "name": "Name of the batch",
    "on_error": "Leave out the invalid rows",
    "max_errors": "Most invalid rows allowed",
    "all_remaining": "Rows without an amount refund all that is left",
    "allow_repeat": "Allow rows with the payment and amount of another refund",
    "again": "Import the new rows of a file that was imported before",
    "delay": "Wait before sending",
    "amounts": "Amounts are written",
    "currency": "Currency of rows without one",
    "id_from": "Make the ids from these columns",
    "attempt": "Attempt",
    "column": "Columns with other names",
    "ignore_extra": "Ignore unknown columns",
    "delimiter": "Delimiter",
    "sheet": "Sheet of a workbook",
}
"""The labels of the options, by the names that they have in the API; `amounts` is two of these."""
AMOUNTS: Final[Mapping[str, Mapping[str, str]]] = {
    "point": {"amount_unit": "major", "decimal": "point"},
    "comma": {"amount_unit": "major", "decimal": "comma"},
    "minor": {"amount_unit": "minor", "decimal": "point"},
}
"""How amounts can be written, as the two options of the API."""
_POINT: Final = f"choose “12.50” under “{LABELS['amounts']}”"
_COMMA: Final = f"choose “12,50” under “{LABELS['amounts']}”"
_ABOUT_AMOUNTS: Final = (
    ("use --amount-unit major --decimal comma", _COMMA),
    ("use --decimal comma", _COMMA),
    ("if amounts are in major units, use --amount-unit major", f"or {_POINT}"),
    ("use --amount-unit major", _POINT),
    ("the option is --amount-unit major", f"“{LABELS['amounts']}” says “12.50”"),
    (" (--amount-unit major)", ""),
    ("whole minor units", "whole cents (minor units)"),
    ("add --expect-total unstated=", "expect a sum without a currency of "),
    (" --max-total", " the largest sum"),
    ("--expect-total", "the sum"),
)
_PARAMETER: Final = re.compile(r"add ([a-z_]+)=true if")
_OPTION: Final = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_BLANK: Final = "''"
"""How an error shows an empty cell."""
_PROPOSED: Final = re.compile(rf"“{LABELS['column']}” ([a-z_]+)=\"([^\"\n]+)\"")
_MOST: Final = re.compile(r"REFUNDS_MAX_AMOUNT=(\S+) allows")
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
    for said, words in _ABOUT_AMOUNTS:
        sentence = sentence.replace(said, words)
    sentence = _MOST.sub(r"the \1 minor units that this server allows for one refund", sentence)
    sentence = sentence.replace("REFUNDS_MAX_AMOUNT", "the largest amount that is allowed here")
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


def rows_of(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the summary of a file as labels and values, its sums in major units."""
    columns = {name: report[name] for name in ("columns", "amount_unit", "decimal")}
    rest = {name: value for name, value in report.items() if name != "columns"}
    rows = [*rows_of_report(rest | {"amount_unit": "major"}), *rows_of_report(columns)]
    # Every error is listed below the summary, unless there are too many.
    is_listed = len(errors_of(report)) >= sum(report.get("errors_by_code", {}).values())
    return batch_facts(
        (name.replace("_", " "), value)
        for name, value in rows
        if not (is_listed and name.startswith("invalid, "))
    )


def errors_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first errors of a file, their rules with the labels of the form."""
    return [{**each, "rule": _rule_of(each)} for each in report.get("error_rows", [])]


def _rule_of(error: Mapping[str, Any]) -> str:
    rule = in_labels(error["rule"])
    return f"is missing: it {rule}" if error["value"] == _BLANK and rule[:4] == "must" else rule


def proposed_columns(error: str) -> str:
    """Return what an error proposes for the columns of a file, a line each."""
    return "\n".join(f"{field}={name}" for field, name in _PROPOSED.findall(error))


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
    """Return the sums of the rows to be imported, one for each currency with an amount.

    They are in major units, also if the file is in minor ones: who took these for the others sees
    a sum that is wrong by a factor of 100.
    """
    return [
        Sum(
            name=f"sum_{currency}",
            label=_label_of_sum(currency),
            text=money(total["amount"], currency, "major"),
            value=Decimal(in_major(total["amount"], currency) or total["amount"]),
        )
        for currency, total in report["totals"].items()
        if total["rows"] > total["all_remaining"]
    ]


def _label_of_sum(currency: str) -> str:
    if currency == UNSTATED:
        return "without a currency, in minor units"
    unit = "" if in_major(0, currency) else ", in minor units"
    return f"in {currency.upper()}{unit}"


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
