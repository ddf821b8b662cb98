"""Rows without an amount: refused unless it is said that they refund all that is left, and in no
expected sum.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_runner import Cli, Records
from tests.support.files import workbook
from tests.unit.importer.test_import_workbooks import changed
from worker.batches import read_batch

HEADER = "refund_id,payment_intent,amount,currency\n"
OPEN = HEADER + "a,pi_a,500,usd\nb,pi_b,,usd\nc,pi_c, ,usd\n".replace(" ,", ",")
NO_AMOUNTS = "refund_id,payment_intent,Amount EUR\na,pi_a,5.00\nb,pi_b,7.00\n"


def a_file(folder: Path, content: str | bytes, name: str = "season.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def accepted(records: Records) -> int:
    return sum(records.store.counts().values())


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_file_without_a_column_for_the_amount_is_refused_with_the_one_it_may_be(
    cli: Cli, records: Records, tmp_path: Path, more: tuple[str, ...]
) -> None:
    file = a_file(tmp_path, NO_AMOUNTS)
    ran = cli("import", file, "--ignore-extra", *more)
    assert (ran.code, accepted(records)) == (6, 0)
    sentence = (
        "season.csv has no amount column, so each of 2 rows would refund all that is left of its"
        " payment"
    )
    assert ran.err.splitlines()[:3] == [
        f"error: {sentence}: nothing was imported",
        "  if the amounts are in 'Amount EUR', use --column amount=\"Amount EUR\"",
        "  if all that is left should be refunded, use --all-remaining",
    ]
    assert (
        "Amount EUR" in cli("import", file, *more).err
    )  # without --ignore-extra it is no known column
    columns = ("--column", "amount=Amount EUR", "--amount-unit", "major", "--currency", "eur")
    assert (
        cli("import", file, *columns, "--dry-run", "--json").object["totals"]["eur"]["amount"]
        == 1200
    )


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--on-error", "skip")])
def test_a_row_without_an_amount_is_refused_with_its_line(
    cli: Cli, records: Records, tmp_path: Path, more: tuple[str, ...]
) -> None:
    ran = cli("import", a_file(tmp_path, OPEN), *more)
    assert (ran.code, accepted(records)) == (6, 0)
    assert (
        "error: 2 rows of season.csv have no amount (lines 3 and 4), so each would refund all that"
        " is left of its payment: nothing was imported\n" in ran.err
    )
    ran = cli("import", a_file(tmp_path, OPEN), *more, "--json")
    assert (ran.code, len(ran.object["broken_limits"])) == (6, 1)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"id": "a", "pi": "pi_a"}\n', "f.jsonl"),
        ('{"id": "a", "pi": "pi_a", "amount": null}\n', "f.jsonl"),
        ('{"id": "a", "pi": "pi_a", "amount": ""}\n', "f.jsonl"),
        (workbook([["id", "pi", "amount"], ["a", "pi_a", None]]), "f.xlsx"),
        (workbook([["id", "pi"], ["a", "pi_a"]]), "f.xlsx"),
        ("id,pi\na,pi_a\n", "f.csv"),
    ],
)
def test_all_that_is_left_has_to_be_said_in_every_format(
    cli: Cli, records: Records, tmp_path: Path, content: str | bytes, name: str
) -> None:
    file = a_file(tmp_path, content, name)
    assert (cli("import", file).code, accepted(records)) == (6, 0)
    assert cli("import", file, "--all-remaining", "--batch", "b-1").code == 0
    assert (records.get("a").amount, records.get("a").all_remaining) == (None, True)
    assert read_batch(records.store, "b-1").all_remaining == 1
    assert "1 refund of all that is left" in cli("batch", "show", "b-1").out


def test_at_a_desk_without_redis_a_row_without_an_amount_is_refused_too(
    away: Cli, tmp_path: Path
) -> None:
    ran = away("import", a_file(tmp_path, OPEN), "--dry-run")
    assert (ran.code, "2 rows of season.csv have no amount" in ran.err) == (6, True)


def test_a_result_of_all_that_is_left_is_handed_in_again_as_what_is_known(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    result = tmp_path / "result.csv"
    assert cli("import", a_file(tmp_path, OPEN), "--all-remaining").code == 0
    for refund_id, amount in (("a", 500), ("b", None), ("c", None)):
        fields: dict[str, Any] = {
            "payment_intent": f"pi_{refund_id}",
            "amount": amount,
            "currency": "usd",
        }
        records.succeeded(refund_id, f"re_{refund_id}", **fields)
    assert (
        cli(
            "import", a_file(tmp_path, OPEN), "--all-remaining", "--again", "--result", str(result)
        ).code
        == 9
    )
    with result.open(newline="") as written:
        rows = list(csv.DictReader(written))
    assert [(row["amount"], row["status"], row["amount_refunded"]) for row in rows] == [
        ("500", "succeeded", "500"),
        ("", "succeeded", "500"),
        ("", "succeeded", "500"),
    ]
    ran = cli("import", str(result), "--json")
    assert (ran.code, ran.object["known"], accepted(records)) == (9, 3, 3)
    grown = a_file(tmp_path, result.read_text() + "d,pi_d,,usd\n")
    ran = cli("import", grown)
    assert (ran.code, "1 row of season.csv has no amount (line 5)" in ran.err) == (6, True)


@pytest.mark.parametrize(
    ("rows", "total"),
    [
        (["a,pi_a,500,usd", "b,pi_b,,usd"], "usd=500"),
        (["a,pi_a,500,usd", "b,pi_b,,"], "usd=500"),
        (["a,pi_a,500,", "b,pi_b,,"], "unstated=500"),
        (["b,pi_b,,usd"], "usd=0"),
        (["b,pi_b,,"], "unstated=0"),
        (["b,pi_b,,"], "usd=0"),
    ],
)
@pytest.mark.parametrize("option", ["--expect-total", "--max-total"])
def test_a_sum_that_nobody_knows_is_no_expected_sum(
    cli: Cli, records: Records, tmp_path: Path, rows: list[str], total: str, option: str
) -> None:
    names = HEADER.strip().split(",")
    cells = [row.split(",") for row in rows]
    lines = [dict(zip(names, (value or None for value in row), strict=True)) for row in cells]
    whole = [[int(value) if value.isdigit() else value for value in row] for row in cells]
    contents: dict[str, str | bytes] = {
        "f.csv": HEADER + "".join(f"{row}\n" for row in rows),
        "f.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "f.xlsx": workbook([names, *whole]),
    }
    for name, content in contents.items():
        file = a_file(tmp_path, content, name)
        for more in ((), ("--dry-run",), ("--all-remaining",), ("--all-remaining", "--dry-run")):
            ran = cli("import", file, option, total, *more)
            assert ran.code == 6
            assert (
                f"1 row requests all that is left of a payment, so {option} cannot be checked"
                in ran.err
            )
    assert accepted(records) == 0


def test_a_column_that_looks_like_an_amount_is_never_ignored_in_silence(
    cli: Cli, tmp_path: Path
) -> None:
    text = "refund_id,payment_intent,amount,Total EUR\na,pi_a,500,5.00\n"
    ran = cli("import", a_file(tmp_path, text), "--ignore-extra", "--dry-run")
    assert ran.code == 0
    warning = "warning: the column 'Total EUR' looks like an amount but is ignored"
    assert f"{warning}: amounts are read from 'amount'\n" in ran.err
    ran = cli("import", a_file(tmp_path, NO_AMOUNTS), "--ignore-extra", "--all-remaining")
    assert ran.code == 0
    assert (
        "'Amount EUR' looks like an amount but is ignored: no column is read as the amount\n"
        in ran.err
    )


def test_the_summary_says_what_each_column_is_used_as(cli: Cli, tmp_path: Path) -> None:
    text = "Order,Payment ID,amount,Comment,status\n1,pi_1,500,hm,failed\n"
    options = (
        "--column",
        "payment_intent=Payment ID",
        "--id-from",
        "order",
        "--ignore-extra",
        "--dry-run",
    )
    file = a_file(tmp_path, text)
    assert cli("import", file, *options, "--json").object["columns"] == [
        {"column": "Order", "use": "id, metadata.order"},
        {"column": "Payment ID", "use": "payment_intent"},
        {"column": "amount", "use": "amount"},
        {"column": "Comment", "use": "ignored"},
        {"column": "status", "use": "ignored"},
    ]
    out = cli("import", file, *options).out
    for line in (
        "'Order' used for the id, sent along as metadata.order",
        "'Payment ID' used as payment_intent",
        "'amount' used as amount, in minor units",
        "'Comment' ignored",
        "'status' ignored",
    ):
        assert line in out


@pytest.mark.parametrize(
    "option",
    ["amount", "=Amount", "amuont=Amount", "status=Status", "metadata.=Order"],
)
def test_a_column_option_that_cannot_be_read_is_wrong_usage(
    cli: Cli, tmp_path: Path, option: str
) -> None:
    ran = cli("import", a_file(tmp_path, NO_AMOUNTS), "--column", option)
    assert (ran.code, ran.out, 'must be FIELD="Header"' in ran.err) == (2, "", True)


def test_a_misspelt_field_is_asked_about(cli: Cli, tmp_path: Path) -> None:
    ran = cli("import", a_file(tmp_path, NO_AMOUNTS), "--column", "amuont=Amount EUR")
    assert (ran.code, "did you mean amount?" in ran.err) == (2, True)
    ran = cli(
        "import",
        a_file(tmp_path, NO_AMOUNTS),
        "--column",
        "pi=payment_intent",
        "--column",
        "payment=x",
    )
    assert (ran.code, "payment_intent is given twice" in ran.err) == (2, True)


def test_a_decimal_comma_of_minor_units_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    ran = cli("import", a_file(tmp_path, OPEN), "--decimal", "comma")
    assert (ran.code, "add --amount-unit major" in ran.err) == (2, True)


def test_rows_behind_a_filter_are_told_of(cli: Cli, tmp_path: Path) -> None:
    book = changed(
        workbook([["id", "pi", "amount"], ["a", "pi_a", 5]]),
        b'<row r="2">',
        b'<row r="2" hidden="1">',
    )
    ran = cli("import", a_file(tmp_path, book, "f.xlsx"), "--dry-run")
    assert (
        ran.code,
        "1 row of the sheet is hidden, for example by a filter, but read like all others"
        in ran.err,
    ) == (
        0,
        True,
    )
