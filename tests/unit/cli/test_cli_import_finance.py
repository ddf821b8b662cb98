"""Files as finance hands them in.

Sums in the unit of the file, orders that are found again, corrected rows sent again.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_runner import Cli, Records
from worker import batches
from worker.batches import read_batch
from worker.importer import ImportOptions, accepted, open_source, validate
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.store import creations

EUROS = ("--amount-unit", "major", "--decimal", "comma", "--currency", "eur")
BY_ORDER = ("--id-from", "order_no")
EXPORT = "Order No;Payment ID;Amount EUR\n1001;pi_1;1.234,50\n1002;pi_2;10,00\n"
COLUMNS = ("--column", "payment_intent=Payment ID", "--column", "amount=Amount EUR")


def a_file(folder: Path, content: str, name: str = "season.csv") -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


def standing(records: Records) -> int:
    return sum(records.store.counts().values())


def made(file: str, *, attempt: int = 1) -> list[RefundRequest]:
    """The refunds of a file with a column order_no."""
    with open_source(file, ImportOptions(id_from=("order_no",), attempt=attempt)) as source:
        return [each.request for each in accepted(source, validate(source))]


def handed_in_before(records: Records, request: RefundRequest) -> None:
    """A refund as a version handed it in that did not send the columns of an id along."""
    plain = RefundRequest(
        refund_id=request.refund_id,
        payment_intent=request.payment_intent,
        amount=request.amount,
        currency=request.currency,
    )
    records.store.run(creations.create(plain, Lane.BULK))


def test_sums_are_shown_as_the_file_states_its_amounts(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, EXPORT)
    options = (*EUROS, *COLUMNS, *BY_ORDER, "--batch", "b-1")
    ran = cli("import", file, *options, "--dry-run")
    assert ran.code == 0
    for line in (
        "1,244.50 EUR in 2 refunds",
        "EUR with 2 decimals",
        "in major units with a decimal comma",
    ):
        assert line in ran.out
    found = cli("import", file, *options, "--dry-run", "--json").object
    assert (found["totals"]["eur"]["amount"], found["decimals"]) == (124450, {"eur": 2})
    ran = cli("import", file, *options, "--expect-total", "eur=124451")
    assert (
        "the file adds up to 1,244.50 EUR (eur=124450), but 1,244.51 EUR (eur=124451) were"
        " expected: nothing was imported\n" in ran.err
    )
    ran = cli("import", file, *options, "--max-total", "eur=124449")
    assert (
        "the file adds up to 1,244.50 EUR (eur=124450), more than --max-total 124,449 allows"
        in ran.err
    )
    assert cli("import", file, *options, "--expect-total", "eur=124450").code == 0
    assert "1,244.50 EUR" in cli("batch", "show", "b-1").out
    assert "minor" not in cli("batch", "show", "b-1").out
    assert standing(records) == 2


def test_no_word_of_the_inside_is_read_by_finance(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "order_no,pi,amount\n1,pi_1,500\n")
    help_text = cli("import", "--help").out
    outputs = [
        cli("import", file, *BY_ORDER, *more) for more in (("--dry-run",), ("--batch", "b-1"), ())
    ]
    handed_in_before(records, RefundRequest(refund_id="x", payment_intent="pi_9", amount=5))
    changed = a_file(tmp_path, "id,pi,amount\nx,pi_9,6\n", "changed.csv")
    outputs += [cli("import", changed), cli("batch", "show", "b-1"), cli("batch", "list")]
    text = help_text + "".join(ran.out + ran.err for ran in outputs)
    for word in ("digest", "unstated", "conflicting", "enqueue", "1 rows", "1 refunds"):
        assert word not in text
    assert "total, no currency  500 minor units in 1 refund\n" in outputs[0].out


def test_the_order_of_a_made_id_is_found_with_its_refund(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, EXPORT)
    assert cli("import", file, *EUROS, *COLUMNS, *BY_ORDER, "--batch", "b-1").code == 0
    found = [records.get(refund_id) for refund_id in records.store.ids_in_batch("b-1")]
    assert [dict(refund.metadata) for refund in found] == [
        {"order_no": "1001"},
        {"order_no": "1002"},
    ]


def test_a_file_imported_by_an_earlier_version_finds_its_refunds(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    text = "order_no,payment_intent,amount,currency\n" + "".join(
        f"{n},pi_{n},500,usd\n" for n in range(1_200)
    )
    file = a_file(tmp_path, text)
    for request in made(file)[:1_199]:
        handed_in_before(records, request)
    first = made(file)[0]
    records.succeeded(first.refund_id, payment_intent="pi_0", currency="usd")
    ran = cli("import", file, *BY_ORDER, "--dry-run", "--json")
    assert (ran.code, ran.object["known"], ran.object["new"], ran.object["conflicting"]) == (
        0,
        1_199,
        1,
        0,
    )
    ran = cli("import", file, *BY_ORDER, "--batch", "b-1", "--json")
    assert (ran.code, ran.object["created"], ran.object["known"]) == (0, 1, 1_199)
    batch = read_batch(records.store, "b-1")
    assert (batch.known, batch.conflicting, standing(records)) == (1_199, 0, 1_200)


def test_a_result_handed_in_again_without_its_options_is_known(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    result = tmp_path / "result.csv"
    file = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n2,pi_2,700\n")
    assert cli("import", file, *BY_ORDER, "--result", str(result)).code == 0
    for options in (("--ignore-extra",), BY_ORDER):
        ran = cli("import", str(result), *options, "--json")
        assert (ran.code, ran.object["known"], ran.object["conflicting"], standing(records)) == (
            9,
            2,
            0,
            2,
        )
    result.write_text(result.read_text().replace("pi_2,700", "pi_2,800"))
    assert cli("import", str(result), "--ignore-extra", "--json").object["conflicting"] == 1


def test_a_corrected_row_of_a_failed_refund_is_sent_again_by_a_further_attempt(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_wrong,500\n2,pi_2,700\n")
    assert cli("import", file, *BY_ORDER, "--batch", "b-1").code == 0
    failed, other = made(file)
    records.failed(
        failed.refund_id, payment_intent="pi_wrong", batch_id="b-1", metadata={"order_no": "1"}
    )
    ran = cli("import", file, *BY_ORDER, "--again")
    assert (
        ran.code,
        "1 of them failed before: 'refunds batch retry ID' sends again unchanged what is retriable"
        in ran.err,
    ) == (
        9,
        True,
    )
    corrected = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n", "corrected.csv")
    for more in ((), ("--dry-run",)):
        ran = cli("import", corrected, *BY_ORDER, *more)
        assert ran.code == 6
        stands = f"refund {failed.refund_id} exists with other contents and failed (card_gone)"
        assert ran.err.splitlines()[:4] == [
            f"line 2: {stands}: payment_intent pi_wrong, here pi_1",
            (
                "error: 1 row of corrected.csv has the id of a refund with other contents: nothing"
                " was imported"
            ),
            "  if these are corrected rows of failed refunds, import only them, with --attempt 2",
            (
                "  if each row is a refund of its own, make the ids from more columns: --id-from"
                " order_no,payment_intent"
            ),
        ]
    ran = cli("import", corrected, *BY_ORDER, "--attempt", "2", "--json")
    assert (ran.code, ran.object["created"], standing(records)) == (0, 1, 3)
    again = records.get(f"{failed.refund_id}-a2")
    assert (again.payment_intent, again.metadata) == ("pi_1", {"order_no": "1"})
    # The whole file in a further attempt would pay the second row back twice.
    whole = a_file(
        tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n2,pi_2,750\n", "whole.csv"
    )
    records.store.redis.hset(f"refunds:refund:{other.refund_id}", "set_aside_ids", "re_8 re_9")
    for attempt in ("2", "3"):
        ran = cli("import", whole, *BY_ORDER, "--attempt", attempt, "--allow-repeat")
        assert (ran.code, standing(records)) == (6, 3)
        said = f"line 3: another attempt at it, refund {other.refund_id}, is in progress on"
        assert f"{said} payment pi_2\n" in ran.err
    end = (
        "are another attempt at a refund that is in progress, or that has or may have moved the"
        " money: nothing was imported; keep only rows whose refund failed or was canceled without"
        " moving it\n"
    )
    assert f"2 rows of whole.csv {end}" in ran.err
    records.failed_again(other.refund_id)
    ran = cli("import", whole, *BY_ORDER, "--attempt", "3", "--allow-repeat")
    said = "but the provider showed re_8 and re_9 for it, on payment pi_2"
    assert (ran.code, said in ran.err) == (6, True)


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--allow-repeat",)])
@pytest.mark.parametrize("payment", ["pi_1", "pi_wrong"])
def test_a_first_attempt_is_refused_beside_a_further_one(
    cli: Cli, records: Records, tmp_path: Path, payment: str, more: tuple[str, ...]
) -> None:
    """The file with the wrong payment is imported after the one that corrects it."""
    corrected = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n", "corrected.csv")
    assert cli("import", corrected, *BY_ORDER, "--attempt", "2").code == 0
    (further,) = made(corrected, attempt=2)
    first = a_file(tmp_path, f"order_no,payment_intent,amount\n1,{payment},500\n2,pi_2,9\n")
    ran = cli("import", first, *BY_ORDER, *more)
    assert (ran.code, standing(records)) == (6, 1)
    lines = ran.err.splitlines()
    said = f"line 2: another attempt at it, refund {further.refund_id}, is in progress on"
    assert f"{said} payment pi_1" in lines
    assert not any("same payment and amount" in line for line in lines)


def test_a_conflict_after_a_second_attempt_names_the_third(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n")
    for attempt in (1, 2):
        (request,) = made(file, attempt=attempt)
        records.failed(request.refund_id, payment_intent="pi_1", metadata={"order_no": "1"})
    corrected = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,400\n", "corrected.csv")
    assert "--attempt 3" in cli("import", corrected, *BY_ORDER, "--attempt", "2").err
    assert cli("import", corrected, *BY_ORDER, "--attempt", "3").code == 0


def test_a_canceled_row_is_handed_in_again_by_a_further_attempt(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n")
    cli("import", file, *BY_ORDER, "--batch", "b-1")
    cli("batch", "cancel", "b-1")
    result = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n\n", "again.csv")
    ran = cli("import", result, *BY_ORDER)
    assert (
        ran.code,
        "1 of them was canceled: a row that is still wanted needs --attempt 2\n" in ran.err,
    ) == (9, True)
    ran = cli("import", file, *BY_ORDER, "--attempt", "2", "--again", "--json")
    assert (ran.code, ran.object["created"], standing(records)) == (0, 1, 2)


def test_a_failed_row_that_was_handed_in_again_is_not_retried(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n2,pi_2,500\n")
    assert cli("import", file, *BY_ORDER, "--batch", "b-1").code == 0
    first, other = made(file)
    for each in (first, other):
        records.failed(
            each.refund_id,
            payment_intent=each.payment_intent,
            batch_id="b-1",
            metadata=dict(each.metadata),
        )
    corrected = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,400\n", "corrected.csv")
    assert cli("import", corrected, *BY_ORDER, "--attempt", "2").code == 0
    again = f"{first.refund_id}-a2"
    ran = cli("batch", "retry", "b-1", "--unknown")
    named = (
        f"refund {first.refund_id} was not sent again, because {again}, another attempt at its row"
    )
    assert (ran.code, named in ran.err, "not sent, submitted again" in ran.out) == (0, True, True)
    assert [records.get(each.refund_id).status for each in (first, other)] == ["failed", "pending"]
    ran = cli("batch", "retry", "b-1", "--unknown", "--json")
    assert (
        ran.code,
        ran.object["retried"],
        ran.object["handed_in_again"],
        ran.object["moved"],
    ) == (9, 0, 1, 0)
    ran = cli("retry", first.refund_id, "--unknown")
    assert (ran.code, f"was submitted again as {again}" in ran.err) == (6, True)
    assert records.get(first.refund_id).status == "failed"
    # Once that attempt has failed too, either may go, and then the other may not.
    records.failed(again, payment_intent="pi_1", amount=400, metadata={"order_no": "1"})
    assert cli("batch", "retry", "b-1", "--unknown").code == 0
    ran = cli("retry", again, "--unknown")
    assert (ran.code, f"was submitted again as {first.refund_id}," in ran.err) == (6, True)


def test_a_failed_row_that_another_file_replaced_under_a_new_id_is_not_retried(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    head = "refund_id,payment_intent,amount\n"
    assert cli("import", a_file(tmp_path, f"{head}a,pi_1,500\n"), "--batch", "b-1").code == 0
    records.failed_again("a")
    corrected = a_file(tmp_path, f"{head}b,pi_1,500\n", "corrected.csv")
    assert cli("import", corrected).code == 0
    ran = cli("batch", "retry", "b-1", "--unknown")
    assert (ran.code, "refund a was not sent again, because b" in ran.err) == (9, True)
    ran = cli("retry", "a", "--unknown")
    assert (ran.code, "refund b of the same payment and amount" in ran.err) == (6, True)
    assert (records.get("a").status, records.get("b").status) == ("failed", "pending")
    records.failed_again("b")
    records.store.redis.hset("refunds:refund:b", "contradicted_by", "re_9")
    for asked in (("retry", "a"), ("batch", "retry", "b-1")):
        ran = cli(*asked, "--unknown")
        assert " refund b " in ran.err or " b, another attempt" in ran.err
        assert "or has or may have moved the money" in ran.err


def test_a_row_whose_earlier_attempt_is_retried_meanwhile_is_left_out(
    cli: Cli, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,500\n")
    (first,) = made(file)
    records.failed(first.refund_id, payment_intent="pi_1", metadata={"order_no": "1"})
    open_batch = batches.open_batch

    def late(*given: Any, **named: Any) -> Any:
        # After the file was compared with the records, and before its first row is handed in.
        assert cli("retry", first.refund_id, "--unknown").code == 0
        return open_batch(*given, **named)

    monkeypatch.setattr("worker.batches.open_batch", late)
    corrected = a_file(tmp_path, "order_no,payment_intent,amount\n1,pi_1,400\n", "corrected.csv")
    ran = cli("import", corrected, *BY_ORDER, "--attempt", "2")
    assert (
        ran.code,
        "1 row was skipped, because other refunds took its id during the import" in ran.err,
    ) == (6, True)
    assert standing(records) == 1
    assert records.get(first.refund_id).status == "pending"


@pytest.mark.parametrize(
    ("allowed", "code", "accepted_rows"), [((), 6, 1), (("--allow-repeat",), 0, 2)]
)
def test_two_files_imported_at_once_do_not_refund_one_payment_twice_unasked(
    cli: Cli,
    records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allowed: tuple[str, ...],
    code: int,
    accepted_rows: int,
) -> None:
    first = a_file(tmp_path, "id,pi,amount\na,pi_1,500\n")
    other = a_file(tmp_path, "id,pi,amount\nb,pi_1,500\n", "other.csv")
    open_batch = batches.open_batch

    def late(*given: Any, **named: Any) -> Any:
        # After the file was compared with the records, and before its first row is handed in.
        monkeypatch.setattr("worker.batches.open_batch", open_batch)
        assert cli("import", other).code == 0
        return open_batch(*given, **named)

    monkeypatch.setattr("worker.batches.open_batch", late)
    ran = cli("import", first, "--batch", "b-1", *allowed)
    assert (ran.code, standing(records)) == (code, accepted_rows)
    is_said = "other refunds of the same payment and amount were accepted during" in ran.err
    assert is_said == (code == 6)
    assert read_batch(records.store, "b-1").conflicting == 2 - accepted_rows


def test_an_attempt_without_made_ids_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    file = a_file(tmp_path, "id,pi,amount\na,pi_1,500\n")
    ran = cli("import", file, "--attempt", "2")
    assert (ran.code, "--attempt 2 needs --id-from" in ran.err) == (2, True)
    assert cli("import", file, "--id-from", "pi", "--attempt", "0").code == 2


def test_a_result_says_what_has_gone_back_and_under_which_id_of_the_provider(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "id;pi;amount\na;pi_a;5,00\nb;pi_b;\n")
    assert cli("import", file, *EUROS, "--all-remaining", "--batch", "b-1").code == 0
    for refund_id, amount in (("a", 500), ("b", None)):
        fields = {
            "payment_intent": f"pi_{refund_id}",
            "amount": amount,
            "currency": "eur",
            "batch_id": "b-1",
        }
        records.succeeded(refund_id, f"re_{refund_id}", shown="eur", **fields)
    ran = cli("batch", "result", "b-1", "--input", file)
    rows = list(csv.DictReader(ran.out.splitlines(), delimiter=";"))
    assert [
        (row["provider_refund_id"], row["amount_refunded"], row["currency_refunded"])
        for row in rows
    ] == [
        ("re_a", "5,00", "eur"),
        ("re_b", "5,00", "eur"),
    ]
    assert "succeeded eur" in cli("batch", "show", "b-1").out
    assert "10.00 EUR" in cli("batch", "show", "b-1").out


@pytest.mark.parametrize("text", ["id;pi;amount\na;pi_1;1.234,50\nb;pi_2;1 234,50\n"])
def test_amounts_written_in_two_ways_are_refused_whole_even_where_bad_rows_are_left_out(
    cli: Cli, records: Records, tmp_path: Path, text: str
) -> None:
    ran = cli("import", a_file(tmp_path, text), *EUROS, "--on-error", "skip")
    assert (ran.code, standing(records), "does not guess" in ran.err) == (3, 0, True)
