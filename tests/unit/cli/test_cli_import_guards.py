"""`refunds import` held back: by what was expected, by ceilings, by repeats, by bad rows beyond
what is allowed.
"""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.cli_runner import Cli, Records
from tests.support.files import workbook
from worker.batches import read_batch
from worker.wording.batches import span

HEADER = "refund_id,payment_intent,amount,currency"
ROWS = ("a,pi_a,500,usd", "b,pi_b,700,usd", "c,pi_c,300,eur")


def a_file(folder: Path, *rows: str, name: str = "season.csv") -> str:
    path = folder / name
    path.write_text("\n".join([HEADER, *(rows or ROWS)]) + "\n")
    return str(path)


def accepted(records: Records) -> int:
    return sum(records.store.counts().values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--expect-rows", "4"), "the file has 3 rows, but 4 were expected"),
        (
            ("--expect-total", "usd=1201", "--expect-total", "eur=300"),
            "the file adds up to 1,200 usd, but 1,201 were expected",
        ),
        (("--expect-total", "usd=1200"), "the file adds up to 300 eur, but 0 were expected"),
        (
            ("--expect-total", "usd=1200", "--expect-total", "eur=300", "--expect-total", "jpy=1"),
            "the file adds up to 0 jpy, but 1 was expected",
        ),
        (
            ("--max-total", "1199"),
            "the file adds up to 1,200 usd, more than --max-total 1,199 allows",
        ),
        (
            ("--max-total", "usd=5000"),
            "the file adds up to 300 eur, more than --max-total 0 allows",
        ),
    ],
)
def test_what_is_not_as_expected_is_refused_in_a_sentence(
    cli: Cli, records: Records, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    file = a_file(tmp_path)
    for more in ((), ("--dry-run",)):
        ran = cli("import", file, *options, *more, "--json")
        assert (ran.code, ran.object["broken_limits"]) == (6, [sentence])
        assert f"error: {sentence}: nothing was imported\n" in ran.err
    assert (accepted(records), records.store.redis.exists("refunds:batches")) == (0, 0)


def test_what_is_as_expected_is_handed_in(cli: Cli, records: Records, tmp_path: Path) -> None:
    totals = (
        "--expect-total",
        "USD=1200",
        "--expect-total",
        "eur=300",
        "--max-total",
        "usd=1200",
        "--max-total",
        "300",
    )
    assert cli("import", a_file(tmp_path), "--expect-rows", "3", *totals).code == 0
    assert accepted(records) == 3


def test_a_sum_of_a_currency_that_no_row_states_is_one_sentence_with_the_way_out(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = tmp_path / "plain.csv"
    file.write_text("refund_id,payment_intent,amount\na-1,pi_1,500\na-2,pi_2,700\n")
    ran = cli("import", str(file), "--expect-total", "usd=1200")
    assert (ran.code, accepted(records)) == (6, 0)
    assert ran.err.count("error:") == 1
    assert "--expect-total unstated=1200" in ran.err
    assert cli("import", str(file), "--expect-total", "unstated=1200").code == 0
    assert accepted(records) == 2


@pytest.mark.parametrize(("most", "code"), [("700", 0), ("699", 6)])
def test_no_single_refund_is_larger_than_the_setting_allows(
    cli: Cli, tmp_path: Path, most: str, code: int
) -> None:
    ran = cli("import", a_file(tmp_path), REFUNDS_MAX_AMOUNT=most)
    assert (
        ran.code,
        "line 3 requests 700 minor units, more than REFUNDS_MAX_AMOUNT=699 allows" in ran.err,
    ) == (
        code,
        code == 6,
    )


@pytest.mark.parametrize(
    ("options", "settings", "limit"),
    [
        (("--max-total", "5000"), {}, "--max-total"),
        ((), {"REFUNDS_MAX_AMOUNT": "5000"}, "REFUNDS_MAX_AMOUNT"),
    ],
)
def test_a_ceiling_that_cannot_be_held_refuses(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], settings: dict[str, str], limit: str
) -> None:
    ran = cli("import", a_file(tmp_path, "a,pi_a,,usd"), *options, **settings)
    assert (
        ran.code,
        f"1 row requests all that is left of a payment, so {limit} cannot be checked" in ran.err,
    ) == (
        6,
        True,
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--max-errors", "1"),
        ("--on-error", "skip", "--max-errors", "few"),
        ("--on-error", "skip", "--max-errors", "101%"),
        ("--expect-total", "5"),
        ("--expect-total", "usd=5.00"),
        ("--max-total", "usd=1", "--max-total", "usd=2"),
        ("--delay", "soon"),
        ("--delay", "0m"),
        ("--delay", "31d"),
        ("--expect-rows", "0"),
    ],
)
def test_an_option_that_cannot_be_read_is_wrong_usage(
    cli: Cli, tmp_path: Path, options: tuple[str, ...]
) -> None:
    ran = cli("import", a_file(tmp_path), *options)
    assert (ran.code, ran.out, "Error: " in ran.err) == (2, "", True)


def test_the_same_payment_and_amount_under_another_id_is_refused_until_it_is_meant(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    records.queued("old", payment_intent="pi_b", amount=700)
    file = a_file(tmp_path, *ROWS, "d,pi_a,500,usd")
    for options in ((), ("--dry-run",)):
        ran = cli("import", file, *options, "--json")
        assert (ran.code, ran.object["repeats"]) == (6, 1)
        assert "line 5: same payment and amount as line 2\n" in ran.err
        assert "line 3: same payment and amount as refund old, accepted before\n" in ran.err
        assert ran.object["repeats_of_records"] == 1
    assert accepted(records) == 1
    ran = cli("import", file, "--allow-repeat", "--json")
    assert (ran.code, ran.object["created"]) == (0, 4)


BAD = ("a,pi_a,500,usd", "b b,pi_b,700,usd", "c,pi_c,1e3,eur", "d,pi_d,300,usd")


def test_bad_rows_are_left_out_where_that_is_asked_for_and_written_down(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file, errors, result = a_file(tmp_path, *BAD), tmp_path / "bad.csv", tmp_path / "result.csv"
    options = (
        "--on-error",
        "skip",
        "--max-errors",
        "50%",
        "--errors",
        str(errors),
        "--result",
        str(result),
    )
    ran = cli("import", file, *options, "--json")
    assert (ran.code, ran.object["created"], ran.object["invalid"]) == (0, 2, 2)
    assert (
        "2 of 4 rows of season.csv are invalid (1 refund_id, 1 amount_exponent): they are skipped"
        in ran.err
    )
    with errors.open(newline="") as written:
        rows = list(csv.DictReader(written))
    assert [(row["line"], row["code"], row["refund_id"]) for row in rows] == [
        ("3", "refund_id", "b b"),
        ("4", "amount_exponent", "c"),
    ]
    with result.open(newline="") as written:
        assert [row["status"] for row in csv.DictReader(written)] == [
            "pending",
            "invalid",
            "invalid",
            "pending",
        ]
    assert read_batch(records.store, ran.object["batch_id"]).invalid == 2


def test_mended_the_file_of_bad_rows_is_imported_as_it_is(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    errors = tmp_path / "bad.csv"
    assert (
        cli("import", a_file(tmp_path, *BAD), "--on-error", "skip", "--errors", str(errors)).code
        == 0
    )
    errors.write_text(errors.read_text().replace("b b", "b").replace("1e3,eur", "1000,eur"))
    ran = cli("import", str(errors), "--json")
    assert (ran.code, ran.object["created"], accepted(records)) == (0, 2, 4)


@pytest.mark.parametrize(("most", "code"), [("1", 3), ("2", 0), ("49.9%", 3), ("50%", 0)])
def test_more_bad_rows_than_allowed_and_nothing_is_enqueued(
    cli: Cli, records: Records, tmp_path: Path, most: str, code: int
) -> None:
    ran = cli("import", a_file(tmp_path, *BAD), "--on-error", "skip", "--max-errors", most)
    assert (ran.code, accepted(records)) == (code, 2 if code == 0 else 0)
    assert (f"more than --max-errors {most} allows: nothing was imported" in ran.err) is (code == 3)


def test_a_file_of_bad_rows_alone_is_rejected(cli: Cli, tmp_path: Path) -> None:
    ran = cli("import", a_file(tmp_path, BAD[1]), "--on-error", "skip")
    assert (ran.code, "no valid row is left: nothing was imported" in ran.err) == (3, True)


def test_a_dry_run_of_a_file_with_bad_rows_tells_the_rest_as_well(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    records.succeeded("a", payment_intent="pi_a", currency="usd")
    ran = cli("import", a_file(tmp_path, *BAD), "--dry-run", "--json")
    assert (ran.code, ran.object["invalid"], ran.object["known_by_status"], ran.object["new"]) == (
        3,
        2,
        {"succeeded": 1},
        1,
    )
    assert "2 of 4 rows of season.csv are invalid" in ran.err


def test_a_dry_run_tells_what_is_known_by_status_and_the_time_at_the_rate_limit(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    records.succeeded("a", payment_intent="pi_a", currency="usd")
    file = a_file(tmp_path)
    ran = cli("import", file, "--dry-run", "--json", REFUNDS_RATE_LIMIT="0.01")
    assert (ran.code, ran.object["new"], ran.object["known_by_status"]) == (0, 2, {"succeeded": 1})
    # The payment's totals are read first: two calls each.
    assert ran.object["seconds_at_rate_limit"] == 400
    shown = cli("import", file, "--dry-run", REFUNDS_RATE_LIMIT="0.01", REFUNDS_READBACK="list").out
    assert "about 7 min at 0.01 calls a second (REFUNDS_RATE_LIMIT)" in shown
    # A first look is two calls more.
    looking = {"REFUNDS_READBACK": "list", "REFUNDS_FIRST_LOOK": "true"}
    ran = cli("import", file, "--dry-run", "--json", REFUNDS_RATE_LIMIT="0.01", **looking)
    assert ran.object["seconds_at_rate_limit"] == 800
    assert "no rate limit is set" in cli("import", file, "--dry-run").out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 1 s"),
        (59, "about 59 s"),
        (90, "about 2 min"),
        (3599, "about 1 h 0 min"),
        (4000, "about 1 h 7 min"),
        (90_000, "about 1 d 1 h"),
    ],
)
def test_a_length_of_time_is_told_as_a_person_would(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_delayed_batch_is_held_by_the_claim_and_can_be_canceled_meanwhile(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    ran = cli("import", a_file(tmp_path), "--delay", "1h10m", "--batch", "b-1")
    batch = read_batch(records.store, "b-1")
    assert batch.created_at is not None
    assert (ran.code, batch.not_before) == (0, batch.created_at + timedelta(minutes=70))
    assert "until then 'refunds batch cancel b-1' can cancel all of it" in ran.err
    assert "held until" in cli("batch", "show", "b-1").out
    assert cli("batch", "cancel", "b-1", "--json").object["canceled"] == 3
    assert "held until" not in cli("batch", "show", "b-1").out


def test_an_import_whose_batch_is_canceled_meanwhile_stops(
    cli: Cli, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.batches.state_of_batch", lambda *_: "canceled")
    rows = [f"row-{number},pi_{number},500,usd" for number in range(2_000)]
    ran = cli("import", a_file(tmp_path, *rows), "--batch", "b-1")
    assert (ran.code, "batch b-1 was canceled after 500 rows were accepted" in ran.err) == (6, True)
    assert accepted(records) == 500
    assert read_batch(records.store, "b-1").imported_at is None


def test_a_workbook_that_would_fill_the_memory_is_refused_and_csv_is_named(
    cli: Cli, tmp_path: Path
) -> None:
    rows: list[list[object]] = [["refund_id", "payment_intent"], ["a", "pi_a"]]
    path = tmp_path / "season.xlsx"
    # A reader holds the whole rectangle up to the last cell: 80,000 rows of 20 columns.
    path.write_bytes(workbook([*rows, *([[]] * 79_997), [*[None] * 19, "x"]]))
    ran = cli("import", str(path), "--dry-run")
    assert (ran.code, ran.out) == (3, "")
    assert "spans 80,000 rows and 20 columns, more than 1,500,000 cells" in ran.err
    assert "save the sheet as CSV, which can have any length" in ran.err


def test_a_file_whose_batch_was_canceled_is_sent_to_new_ids_and_not_to_again(
    cli: Cli, tmp_path: Path
) -> None:
    file = a_file(tmp_path)
    cli("import", file, "--batch", "b-1")
    cli("batch", "cancel", "b-1")
    for more in ((), ("--dry-run",)):
        ran = cli("import", file, *more)
        assert (ran.code, "--again" in ran.err) == (6, False)
        assert "which was canceled: nothing was imported" in ran.err
        assert "import those still wanted under new ids" in ran.err


def test_with_wrong_settings_of_the_broker_no_batch_is_opened(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    cli.environment["REFUNDS_BROKER_URL"] = "sentinel://127.0.0.1:1/0"
    assert cli("import", a_file(tmp_path)).code == 2
    assert (accepted(records), cli("batch", "list", "--json").out) == (0, "")


def test_an_import_whose_batch_is_lost_meanwhile_stops_and_says_what_to_do_first(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as wrong input, of which nothing was changed: rows were accepted."""
    monkeypatch.setattr("worker.batches.state_of_batch", lambda *_: None)
    ran = cli("import", a_file(tmp_path), "--batch", "b-1")
    assert ran.code == 6
    assert ran.err.splitlines()[-1] == (
        "error: the records do not know batch b-1 any more, as after a restored snapshot: rows that"
        " were accepted before that are lost, and may have been paid. Run 'refunds doctor', which"
        " says how to recover, and only then the same command again"
    )
