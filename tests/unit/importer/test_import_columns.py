"""Columns with unknown names: named by the caller, suggested in errors, and listed in the
summary.
"""

from __future__ import annotations

import json

import pytest

from tests.support.files import Files, workbook
from worker.errors import InputError
from worker.importer import describe, open_source
from worker.importer.naming import column_option, field_like, looks_like_amount
from worker.importer.options import ImportOptions

EXPORT = "Payment ID;Amount EUR;Order No;Comment\npi_1;500;1001;late\npi_2;700;1002;\n"
COLUMNS = (
    ("payment_intent", "Payment ID"),
    ("amount", "Amount EUR"),
    ("metadata.order", "Order No"),
)


def test_a_field_is_read_from_the_named_column(files: Files) -> None:
    for columns in (
        COLUMNS,
        (("payment_intent", "payment-id"), ("amount", " AMOUNT  EUR"), COLUMNS[2]),
    ):
        taken = files.take(EXPORT, columns=columns, id_from=("order no",), ignore_extra=True)
        found = [(each.payment_intent, each.amount, dict(each.metadata)) for each in taken.requests]
        assert found == [("pi_1", 500, {"order": "1001"}), ("pi_2", 700, {"order": "1002"})]


def test_a_named_column_wins_over_one_with_a_known_name(files: Files) -> None:
    text = "id,amount,Refund Amount,payment\nch_1,9999,500,pi_1\n"
    columns = (
        ("amount", "Refund Amount"),
        ("payment_intent", "payment"),
        ("metadata.charge", "id"),
    )
    with pytest.raises(
        InputError, match=r"'amount' is not used because --column names 'Refund Amount'"
    ):
        files.take(text, columns=columns, id_from=("payment",))
    (request,) = files.take(text, columns=columns, id_from=("payment",), ignore_extra=True).requests
    assert (request.amount, request.metadata) == (500, {"charge": "ch_1"})


def test_an_id_does_not_depend_on_the_name_of_its_column(files: Files) -> None:
    one = files.take("pi,amount\npi_1,5\n", id_from=("payment_intent",))
    other = files.take(
        "Payment ID,amount\npi_1,5\n", id_from=("payment id",), columns=(COLUMNS[0],)
    )
    assert one.ids == other.ids


def test_columns_can_be_named_in_every_format(files: Files) -> None:
    line = json.dumps({"Payment ID": "pi_1", "Amount EUR": 500, "ref": "a"}) + "\n"
    book = workbook([["Payment ID", "Amount EUR", "ref"], ["pi_1", 500, "a"]])
    columns = (*COLUMNS[:2], ("refund_id", "ref"))
    for content, name in ((line, "refunds.jsonl"), (book, "refunds.xlsx")):
        (request,) = files.take(content, name, columns=columns).requests
        assert (request.refund_id, request.payment_intent, request.amount) == ("a", "pi_1", 500)


def test_the_delimiter_is_detected_from_named_columns(files: Files) -> None:
    columns = (("payment_intent", "Zahlung"), ("amount", "Betrag"))
    text = "Zahlung;Betrag;a,b,c,d,e\npi_1;5;x\n"
    with open_source(files.write(text), ImportOptions(columns=columns)) as source:
        assert describe(source) == "CSV, semicolon-separated"


def test_a_result_of_a_file_with_named_columns_is_read_the_same_way(files: Files) -> None:
    text = "Reference,Payment ID,amount\n,pi_1,5\n"
    columns = (("refund_id", "Reference"), COLUMNS[0])
    result = files.result(text, columns=columns, id_from=("payment_intent",))
    before = files.take(text, columns=columns, id_from=("payment_intent",))
    assert result.startswith("Reference,Payment ID,amount,status,")
    assert files.take(result, columns=columns).requests == before.requests


def test_each_unusable_column_has_its_own_line_with_a_suggestion(files: Files) -> None:
    with pytest.raises(InputError) as refusal:
        files.take(EXPORT)
    first, *lines = str(refusal.value).splitlines()
    assert first == "refunds.csv, line 1: the columns cannot be used as they are:"
    assert [line.split(":")[0] for line in lines] == [
        "  column 'Payment ID' is not a known column",
        "  column 'Amount EUR' is not a known column",
        "  column 'Order No' is not a known column",
        "  column 'Comment' is not a known column",
        "  column 'payment_intent' is missing",
        "  column 'refund_id' is missing",
        (
            "  known columns are refund_id, payment_intent, amount, currency, reason and"
            " metadata.KEY; to skip other columns, use --ignore-extra"
        ),
    ]
    assert 'if it is the payment_intent, use --column payment_intent="Payment ID"' in lines[0]
    assert 'if it is the amount, use --column amount="Amount EUR"' in lines[1]


def test_with_unknown_columns_ignored_a_missing_one_has_a_suggestion(files: Files) -> None:
    with pytest.raises(
        InputError, match=r"'payment_intent' is missing: .*'Payment ID'.*--column payment_intent="
    ):
        files.take(EXPORT, ignore_extra=True, id_from=("order no",))


def test_a_named_column_that_is_missing_is_refused_with_a_similar_one(files: Files) -> None:
    for header, says in (
        ("Amuont EUR", "did you mean 'Amount EUR'"),
        ("Betrag", "the columns are 'Payment ID', "),
    ):
        with pytest.raises(InputError, match=rf"column '{header}' is not in the file.*{says}"):
            files.take(
                EXPORT,
                columns=(COLUMNS[0], ("amount", header)),
                id_from=("order no",),
                ignore_extra=True,
            )
    with pytest.raises(InputError, match="no line has 'Betrag'"):
        files.take('{"id": "a", "pi": "pi_1"}\n', "f.jsonl", columns=(("amount", "Betrag"),))


@pytest.mark.parametrize(
    "columns",
    [
        (("status", "Payment ID"),),
        (("metadata.", "Payment ID"),),
        (("amount", " "),),
        (("amount", "A"), ("amount", "B")),
        (("amount", "A b"), ("reason", "a-B")),
        (("metadata.status", "Status"),),
    ],
)
def test_invalid_column_options_are_refused(columns: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(InputError):
        ImportOptions(columns=columns)


def test_the_summary_shows_the_use_of_every_column(files: Files) -> None:
    text = "order,Payment ID,amount,metadata.x,status,Comment,\n1,pi_1,5,x,failed,hm,\n"
    options = {"columns": (COLUMNS[0],), "id_from": ("order",), "ignore_extra": True}
    assert dict(files.validated(text, **options).summary.columns) == {
        "order": "id, metadata.order",
        "Payment ID": "payment_intent",
        "amount": "amount",
        "metadata.x": "metadata.x",
        "status": "ignored",
        "Comment": "ignored",
        "": "ignored",
    }
    lines = '{"id": "a", "pi": "pi_1"}\n{"id": "b", "pi": "pi_2", "colour": "red"}\n'
    summary = files.take(lines, "f.jsonl", ignore_extra=True).summary
    assert dict(summary.columns) == {"id": "refund_id", "pi": "payment_intent", "colour": "ignored"}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Payment ID", "payment_intent"),
        ("PaymentIntent ID", "payment_intent"),
        ("paymentIntentId", "payment_intent"),
        ("Transaction-Reference", "payment_intent"),
        ("paymentintent", "payment_intent"),
        ("Amount EUR", "amount"),
        ("Amount (EUR)", "amount"),
        ("Ammount", "amount"),
        ("Betrag", "amount"),
        ("refundAmount", "amount"),
        ("EUR", "amount"),
        ("To pay back €", "amount"),
        ("退款金额", "amount"),
        ("Curency", "currency"),
        ("Währung", "currency"),
        ("Refund reference", "refund_id"),
        ("Grund", "reason"),
        ("Payment date", None),
        ("Customer", None),
        ("Order No", None),
        ("", None),
    ],
)
def test_a_name_resembles_one_field_or_none(name: str, field: str | None) -> None:
    assert field_like(name) == field
    assert looks_like_amount(name) is (field == "amount")


def test_a_suggested_option_can_be_pasted_into_a_shell() -> None:
    assert column_option("amount", " Amount EUR ") == '--column amount="Amount EUR"'
    assert column_option("amount", 'The "$" amount') == "--column amount='The \"$\" amount'"
