"""The provider's file: units, signs and times as stated, in every format."""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from tests.support.files import workbook
from worker.importer import ImportOptions, RowError, open_source
from worker.reconcile.export import Export, Reading, Theirs, moment_of
from worker.reconcile.mapping import ExportMapping
from worker.reconcile.window import zone_of

AT = 1_769_850_000_000  # 2026-01-31T09:00:00Z


def rows_of(path: Path, content: str | bytes, **how: Any) -> tuple[list[Theirs], Export]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with open_source(path, ImportOptions()) as source:
        values: dict[str, Any] = {"mapping": ExportMapping(), "zone": UTC} | how
        reading = Reading(**values)
        export = Export(source=source, reading=reading)
        return list(export.rows()), export


def test_json_lines_may_have_the_metadata_as_an_object(tmp_path: Path) -> None:
    lines = [
        {
            "id": "re_1",
            "amount": 5,
            "currency": "USD",
            "status": "cancelled",
            "fee": 1,
            "created": AT // 1000,
            "metadata": {"refund_id": "order-1"},
        },
        {"id": "re_2", "amount": 7, "currency": "usd", "status": "Succeeded", "created": AT},
    ]
    text = "\n".join(map(json.dumps, lines))
    rows, export = rows_of(tmp_path / "a.jsonl", text)
    assert [(row.currency, row.status, row.created, row.named) for row in rows] == [
        ("usd", "canceled", AT, "order-1"),
        ("usd", "succeeded", AT, None),
    ]
    assert export.unused == ("fee",)


def test_workbook_has_numbers_and_is_read_without_its_decimal_option(tmp_path: Path) -> None:
    sheet = workbook([("id", "amount", "currency", "status"), ("re_1", 10.5, "usd", "failed")])
    rows, _ = rows_of(tmp_path / "a.xlsx", sheet, unit="major", decimal="comma")
    assert rows[0].amount == 1050


def test_minor_units_with_a_fraction_in_a_workbook_are_refused(tmp_path: Path) -> None:
    sheet = workbook([("id", "amount", "currency", "status"), ("re_1", 10.5, "usd", "failed")])
    rows, export = rows_of(tmp_path / "a.xlsx", sheet)
    assert (rows, export.broken) == ([], 1)


def test_mapped_column_is_used_before_one_of_the_fields_own_name(tmp_path: Path) -> None:
    mapping = ExportMapping(columns={"amount": "Net"}, statuses={"Paid": "succeeded"})
    text = "id,amount,Net,currency,status\nre_1,9,5,usd,Paid\n"
    rows, export = rows_of(tmp_path / "a.csv", text, mapping=mapping)
    assert (rows[0].amount, rows[0].status, export.unused) == (5, "succeeded", ("amount",))


@pytest.mark.parametrize("minus", ["-", "\u2212"])
def test_negative_amounts_are_read_if_that_is_stated(tmp_path: Path, minus: str) -> None:
    text = f"id,amount,currency,status\nre_1,{minus}5,usd,failed\nre_2,5,usd,failed\n"
    rows, export = rows_of(tmp_path / "a.csv", text, negative=True)
    assert [row.amount for row in rows] == [5]
    (error,) = export.errors
    assert (error.line, error.code) == (3, "amount_sign")


def test_columns_of_the_metadata_have_the_names_that_dashboards_give_them(tmp_path: Path) -> None:
    for name in ("metadata.refund_id", "refund_id (metadata)", "metadata[refund_id]"):
        text = f"id,amount,currency,status,{name}\nre_1,5,usd,failed,order-1\n"
        rows, _ = rows_of(tmp_path / "a.csv", text)
        assert rows[0].named == "order-1"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-31T09:00:00Z", AT),
        ("2026-01-31 10:00:00", AT),
        ("2026-01-31T10:00:00+01:00", AT),
        ("1769850000", AT),
        ("1769850000000", AT),
        ("2026-01-31", AT - 10 * 3_600_000),
        ("31.01.2026", None),
        ("01/31/2026", None),
        ("20260131", None),
        ("17698500000", None),
        ("2026-W05-6T09:00", None),
        ("soon", None),
    ],
)
def test_time_is_read_only_if_it_has_one_meaning(text: str, at: int | None) -> None:
    assert moment_of(text, zone_of("Europe/Berlin")) == at


@pytest.mark.parametrize("column", ["id", "payment_intent", "metadata"])
def test_text_with_half_a_character_is_refused_with_its_line(tmp_path: Path, column: str) -> None:
    line: dict[str, Any] = {"id": "re_1", "amount": 5, "currency": "usd", "status": "failed"}
    line[column] = {"refund_id": "a\ud800"} if column == "metadata" else "a\ud800"
    rows, export = rows_of(tmp_path / "a.jsonl", json.dumps(line))
    name = "metadata.refund_id" if column == "metadata" else column
    rule = "must not hold broken Unicode"
    assert (rows, export.broken) == ([], 1)
    assert export.errors == [RowError(1, name, "broken_text", r"'a\ud800'", rule)]
