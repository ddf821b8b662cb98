"""`refunds reconcile`: each refund in its class, the classes add up, and the exit codes say it."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Cli, Ran, Records
from tests.support.files import workbook
from tests.unit.importer.test_import_workbooks import changed
from worker.model.times import from_ms, rfc3339, to_ms

HEADER = ("id", "payment_intent", "amount", "currency", "status", "created", "metadata.refund_id")
ALL = ("--from", "2020-01-01", "--to", "2099-12-31")
DAY_MS = 86_400_000
TWO_DAYS = 2


class Season:
    """Our refunds, and the provider's file about them."""

    def __init__(self, records: Records, redis_: redis.Redis, folder: Path) -> None:
        self.records, self.redis, self.folder = records, redis_, folder
        self.rows: dict[str, dict[str, Any]] = {}

    def both(self, name: str, **changes: Any) -> None:
        """A refund on both sides; the file's row may differ."""
        self.ours(name)
        self.theirs(name, **changes)

    def ours(self, name: str, payment: str | None = None) -> None:
        """A refund of ours that succeeded two days ago, far from any edge."""
        self.records.succeeded(name, f"re_{name}", payment_intent=payment or f"pi_{name}")
        self.settled(name, days_ago=TWO_DAYS)

    def settled(self, name: str, days_ago: float) -> None:
        at = to_ms(self.records.store.time()) - int(days_ago * DAY_MS)
        self.redis.zadd("refunds:index:succeeded", {name: at})

    def without_id(self, name: str, payment: str | None = None) -> None:
        """A refund of ours that only the payment's totals proved."""
        self.ours(name, payment)
        payment = payment or f"pi_{name}"
        self.redis.hdel(f"refunds:refund:{name}", "provider_refund_id")
        self.redis.hset(f"refunds:refund:{name}", "evidence", "totals")
        self.redis.delete(f"refunds:owner:re_{name}")
        self.redis.hdel(f"refunds:payment:{payment}", f"owner:re_{name}")

    def theirs(self, name: str, key: str | None = None, **changes: Any) -> None:
        """A row of the file."""
        usual = {
            "id": f"re_{name}",
            "payment_intent": f"pi_{name}",
            "amount": "500",
            "currency": "usd",
            "status": "succeeded",
            "created": self.ago(TWO_DAYS),
            "metadata.refund_id": name,
        }
        self.rows[key or name] = usual | changes

    def ago(self, days: float) -> str:
        return rfc3339(from_ms(to_ms(self.records.store.time()) - int(days * DAY_MS)))

    def file(self) -> str:
        path = self.folder / "export.csv"
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, HEADER)
            writer.writeheader()
            writer.writerows(self.rows.values())
        return str(path)


@pytest.fixture
def season(records: Records, sync_redis: redis.Redis, tmp_path: Path) -> Season:
    return Season(records, sync_redis, tmp_path)


def classes(ran: Ran) -> dict[str, int]:
    assert all(balance["holds"] for balance in ran.object["balance"])
    found: dict[str, int] = ran.object["classes"]
    return found


def test_two_books_that_agree_exit_0(cli: Cli, season: Season) -> None:
    season.both("a")
    season.both("b", **{"metadata.refund_id": ""})  # Found by the provider's id.
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran), ran.object["differs"]) == (0, {"matched": 2}, False)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("status_differs", {"status": "failed"}),
        ("amount_differs", {"amount": "499"}),
        ("currency_differs", {"currency": "eur"}),
    ],
)
def test_what_differs_is_named_with_both_values(
    cli: Cli, season: Season, kind: str, changes: dict[str, str], tmp_path: Path
) -> None:
    season.both("a", **changes)
    season.both("b")
    target = tmp_path / "differences.csv"
    ran = cli("reconcile", season.file(), *ALL, "--json", "--output", str(target))
    assert (ran.code, classes(ran)) == (4, {"matched": 1, kind: 1})
    (row,) = csv.DictReader(io.StringIO(target.read_text()))
    assert (row["class"], row["refund_id"], row["provider_refund_id"]) == (kind, "a", "re_a")
    ((field, value),) = changes.items()
    assert row[f"their_{field}"] == value != row[f"our_{field}"]


def test_refund_of_one_side_only_is_missing_on_the_other(cli: Cli, season: Season) -> None:
    season.ours("ours")
    season.theirs("dashboard", **{"metadata.refund_id": ""})
    season.theirs("foreign", **{"metadata.refund_id": "of-another-shop"})
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran)) == (4, {"missing_here": 2, "missing_there": 1})
    (balance,) = ran.object["balance"]
    assert balance["theirs"] == 1000
    assert balance["ours"] == 500
    assert balance["explained"] == {"missing_here": 1000, "missing_there": -500}


def test_two_of_theirs_for_one_of_ours_are_twice_and_come_first(
    cli: Cli, season: Season, tmp_path: Path
) -> None:
    season.theirs("dashboard", **{"metadata.refund_id": ""})
    season.both("a")
    season.theirs("a", "again", id="re_again")
    target = tmp_path / "differences.csv"
    ran = cli("reconcile", season.file(), *ALL, "--json", "--output", str(target))
    assert (ran.code, classes(ran)) == (4, {"twice": 2, "missing_here": 1})
    assert "alarm: money may have moved twice, by 2 refunds of the provider" in ran.err
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["class"] for row in rows] == ["twice", "twice", "missing_here"]
    assert "re_a and re_again" in rows[0]["reason"]
    # The same command replaces its own file, and no other.
    command = ("reconcile", season.file(), *ALL, "--output", str(target))
    assert cli(*command).code == 4
    target.write_text("next month's refunds")
    ran = cli(*command)
    assert (ran.code, target.read_text()) == (3, "next month's refunds")
    assert "is not a file of differences, so it is not replaced" in ran.err


def test_another_refund_with_our_id_is_twice_even_if_ours_is_not_in_the_file(
    cli: Cli, season: Season
) -> None:
    season.ours("a")
    season.theirs("a", id="re_again")
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran)) == (4, {"twice": 1})


def test_failed_attempt_before_the_one_that_moved_money_is_not_a_difference(
    cli: Cli, season: Season
) -> None:
    season.both("a")
    season.theirs("a", "first", id="re_first", status="failed")
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran)) == (0, {"matched": 2})


def test_id_on_another_payment_is_not_ours(cli: Cli, season: Season) -> None:
    season.both("a")
    season.theirs("a", "copied", id="re_copied", payment_intent="pi_other")
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert classes(ran) == {"matched": 1, "missing_here": 1}


def test_ours_without_an_id_is_identified_if_theirs_alone_fits(cli: Cli, season: Season) -> None:
    season.without_id("a")
    season.theirs("a", **{"metadata.refund_id": ""})
    season.without_id("b")
    season.theirs("b")
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran)) == (4, {"identified": 2})


def test_several_that_fit_are_ambiguous_and_none_is_chosen(cli: Cli, season: Season) -> None:
    season.without_id("a")
    season.theirs("a", **{"metadata.refund_id": ""})
    season.theirs("a", "other", id="re_other", **{"metadata.refund_id": ""})
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran)) == (4, {"ambiguous": 3})


def test_refund_near_the_edge_may_be_in_the_neighbouring_file(cli: Cli, season: Season) -> None:
    season.both("a")
    season.ours("near")
    season.settled("near", days_ago=4.5)
    season.ours("far")
    season.settled("far", days_ago=2.5)
    window = ("--from", season.ago(5), "--to", season.ago(1))
    ran = cli("reconcile", season.file(), *window, "--json")
    assert classes(ran) == {"matched": 1, "missing_there": 1, "other_window": 1}
    assert ran.code == 4


def test_pair_across_the_edge_belongs_to_another_window(cli: Cli, season: Season) -> None:
    season.both("in")
    season.both("late", created=season.ago(5.5))
    season.settled("late", days_ago=4.9)
    season.both("old", created=season.ago(7))
    season.settled("old", days_ago=7)
    window = ("--from", season.ago(5), "--to", season.ago(1))
    ran = cli("reconcile", season.file(), *window, "--json")
    assert (ran.code, classes(ran)) == (0, {"matched": 1, "other_window": 1})
    assert "made outside this window: 2 rows of the file" in ran.err


# Not two days sharp: the two ends are read off the clock one after the other.
@pytest.mark.parametrize(("days", "warns"), [(1.99, True), (2.99, False)])
def test_window_too_short_for_a_missing_refund_is_said(
    cli: Cli, season: Season, *, days: float, warns: bool
) -> None:
    season.ours("a")
    season.settled("a", days_ago=0.5)
    ran = cli("reconcile", season.file(), "--from", season.ago(days), "--to", season.ago(0))
    assert (ran.code, "other_window" in ran.out) == (0, True)
    assert ("no refund of ours can be missing there" in ran.err) is warns


def test_short_window_in_which_nothing_is_left_over_needs_no_warning(
    cli: Cli, season: Season
) -> None:
    season.both("a")
    ran = cli("reconcile", season.file())
    assert (ran.code, "missing there" in ran.err) == (0, False)


def test_rows_behind_a_filter_are_read_with_a_warning(
    cli: Cli, season: Season, tmp_path: Path
) -> None:
    season.both("a")
    sheet = [HEADER, [season.rows["a"][name] for name in HEADER]]
    file = tmp_path / "export.xlsx"
    file.write_bytes(changed(workbook(sheet), b'<row r="2">', b'<row r="2" hidden="1">'))
    ran = cli("reconcile", str(file), *ALL)
    assert ran.code == 0
    assert "warning: 1 row of the sheet is hidden" in ran.err


def test_file_with_no_rows_needs_a_window(cli: Cli, season: Season) -> None:
    ran = cli("reconcile", season.file())
    assert ran.code == 2
    assert "export.csv has no rows: give --from and --to" in ran.err


def test_window_is_taken_from_the_file_if_none_is_given(cli: Cli, season: Season) -> None:
    season.both("a")
    ran = cli("reconcile", season.file(), "--json")
    assert ran.code == 0
    assert season.ago(TWO_DAYS)[:10] in ran.err


@pytest.mark.parametrize(
    ("created", "zone"), [("9999-12-31T12:00:00Z", "UTC"), ("0001-01-01T00:00:00Z", "-05:00")]
)
def test_file_whose_days_no_calendar_has_needs_a_window(
    cli: Cli, season: Season, created: str, zone: str
) -> None:
    season.both("a", created=created)
    ran = cli("reconcile", season.file(), "--tz", zone)
    assert ran.code == 2
    assert "beyond the years 1 to 9999: give --from and --to" in ran.err
    assert cli("reconcile", season.file(), *ALL, "--tz", zone).code == 0


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [
        ("9999-12-31T12:00:00Z", "9999-12-31T13:00:00Z", 9),
        ("0001-01-01", "0001-01-01T05:00:00Z", 9),
        ("0001-01-01", "9999-12-30", 0),
    ],
)
def test_window_may_begin_and_end_with_the_calendar(
    cli: Cli, season: Season, start: str, end: str, code: int
) -> None:
    season.both("a")
    assert cli("reconcile", season.file(), "--from", start, "--to", end).code == code


def test_unsettled_refund_that_the_provider_has_done_differs_in_status(
    cli: Cli, season: Season
) -> None:
    season.records.in_review("a", payment_intent="pi_a")
    season.theirs("a")
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert classes(ran) == {"status_differs": 1}


def test_reversal_that_both_sides_know_agrees(cli: Cli, season: Season) -> None:
    season.records.failed("a", payment_intent="pi_a")
    season.theirs("a", status="failed")
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran)) == (0, {"matched": 1})


def test_look_has_what_differs_read_again_and_changes_nothing_itself(
    cli: Cli, season: Season, sync_redis: redis.Redis
) -> None:
    season.both("status", status="failed")
    season.both("same")
    season.ours("gone")
    season.without_id("learn")
    season.theirs("learn")
    before = {name: season.records.get(name).status for name in ("status", "gone", "learn")}
    for option in ("--look", "--recheck"):
        ran = cli("reconcile", season.file(), *ALL, "--json", option)
        assert (ran.code, ran.object["looked_at"]) == (4, 3)
    assert set(sync_redis.zrange("refunds:rechecks", 0, -1)) == {"status", "gone", "learn"}
    assert season.records.get("learn").candidates == ("re_learn",)
    assert {name: season.records.get(name).status for name in before} == before


def test_look_makes_the_doubts_of_a_foreign_refunds_payment_due(
    cli: Cli, season: Season, sync_redis: redis.Redis
) -> None:
    season.records.in_review("a", payment_intent="pi_a")
    season.theirs("a", id="re_new", **{"metadata.refund_id": ""})
    assert cli("reconcile", season.file(), *ALL, "--look").code == 4
    assert sync_redis.zscore("refunds:rechecks", "a") is not None
    assert season.records.get("a").candidates == ("re_new",)


def test_look_that_can_read_nothing_says_what_is_missing_for_it(cli: Cli, season: Season) -> None:
    for name in "ab":
        season.theirs(name, payment_intent="", **{"metadata.refund_id": ""})
    ran = cli("reconcile", season.file(), *ALL, "--look")
    assert ran.code == 4
    assert "missing here, without a payment to be read by: 2 refunds" in ran.err
    assert "nothing is read again" in ran.err
    assert "run the same command afterwards" not in ran.err


def test_look_where_all_agrees_reads_nothing(cli: Cli, season: Season) -> None:
    season.both("a")
    ran = cli("reconcile", season.file(), *ALL, "--look")
    assert (ran.code, "nothing is read again" in ran.err, "missing" in ran.err) == (0, True, False)


def test_look_refuses_what_a_wrong_file_would_set_off(
    cli: Cli, season: Season, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.reconcile.MOST_LOOKED_AT", 1)
    for name in "abc":
        season.both(name, amount="5")
    ran = cli("reconcile", season.file(), *ALL, "--look")
    assert ran.code == 6
    assert "check the file, the window and the unit first" in ran.err
    assert sync_redis.zcard("refunds:rechecks") == 0


def test_table_shows_classes_balance_and_differences(cli: Cli, season: Season) -> None:
    season.both("a", amount="450")
    ran = cli("reconcile", season.file(), *ALL)
    assert ran.code == 4
    assert "USD: theirs 450 = ours 500 - amount_differs 50" in ran.out
    assert "ours is 500, theirs 450" in " ".join(ran.out.split())
    assert "run it again with --look" in ran.err


def test_sum_that_is_not_explained_exits_1(
    cli: Cli, season: Season, monkeypatch: pytest.MonkeyPatch
) -> None:
    season.both("a")
    monkeypatch.setattr("worker.reconcile.books.Books.sums", lambda *_: {"usd": 1, "eur": 2})
    ran = cli("reconcile", season.file(), *ALL)
    assert ran.code == 0
    monkeypatch.setattr(
        "worker.reconcile.books.Books.sums", lambda _, table: {"usd": 1} if table == "ours" else {}
    )
    ran = cli("reconcile", season.file(), *ALL)
    assert ran.code == 1
    assert "USD: theirs 0 is not ours 1: this is a bug" in ran.err


def test_gzip_workbook_and_standard_input_are_read_like_a_csv(
    cli: Cli, season: Season, tmp_path: Path
) -> None:
    season.both("a")
    plain = Path(season.file())
    packed = tmp_path / "export.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    rows = [HEADER, tuple(season.rows["a"].values())]
    sheet = tmp_path / "export.xlsx"
    sheet.write_bytes(workbook(rows))
    for file in (packed, sheet):
        ran = cli("reconcile", str(file), *ALL, "--json")
        assert (ran.code, classes(ran)) == (0, {"matched": 1}), ran.err
    assert cli("reconcile", "-", *ALL, stdin=plain.read_text()).code == 0


def test_header_without_rows_is_an_empty_month(cli: Cli, season: Season) -> None:
    season.ours("a")
    ran = cli("reconcile", season.file(), *ALL, "--json")
    assert (ran.code, classes(ran)) == (4, {"missing_there": 1})
    assert cli("reconcile", season.file()).code == 2


def test_nothing_on_either_side_exits_9(cli: Cli, season: Season) -> None:
    ran = cli("reconcile", season.file(), *ALL)
    assert (ran.code, ran.out) == (9, "")


def test_no_file_of_ours_stays_behind(
    cli: Cli, season: Season, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    season.both("a")
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert cli("reconcile", season.file(), *ALL).code == 0
    assert list(folder.iterdir()) == []


def test_options_are_kept_in_the_mapping_and_used_from_it(
    cli: Cli, season: Season, tmp_path: Path
) -> None:
    season.ours("a")
    file = tmp_path / "odd.csv"
    file.write_text(
        f'Erstattung;Zahlung;Betrag;Stand;Datum\nre_a;pi_a;"-5,00";bezahlt;{season.ago(2)}\n'
    )
    kept = tmp_path / "provider.toml"
    how = (
        *("--map", "id=Erstattung", "--map", "payment_intent=Zahlung", "--map", "amount=Betrag"),
        *("--map", "status=Stand", "--map", "created=Datum", "--map-status", "bezahlt=succeeded"),
        *("--currency", "usd", "--amount-unit", "major", "--decimal", "comma"),
        *("--sign", "negative", "--tz", "Europe/Berlin"),
    )
    first = cli("reconcile", str(file), *ALL, *how, "--mapping", str(kept), "--json")
    assert (first.code, classes(first)) == (0, {"matched": 1}), first.err
    again = cli("reconcile", str(file), *ALL, "--mapping", str(kept), "--json")
    assert (again.code, classes(again)) == (0, {"matched": 1}), again.err


def test_options_that_do_not_fit_the_file_are_not_kept(
    cli: Cli, season: Season, tmp_path: Path
) -> None:
    season.both("a")
    kept = tmp_path / "provider.toml"
    ran = cli("reconcile", season.file(), *ALL, "--map", "id=Refund", "--mapping", str(kept))
    assert ran.code == 3
    assert not kept.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("id,amount\n", "has no column currency and status"),
        ("id,id,amount,currency,status\n", "has several columns for id"),
        ("Refund,amount,currency,status\nre_1,5,usd,succeeded\n", "its columns are 'Refund'"),
        ("id,amount,currency,status\nre_1,5.50,usd,succeeded\n", "use --amount-unit major"),
        ("id,amount,currency,status\nre_1,-5,usd,succeeded\n", "use --sign negative"),
        ("id,amount,currency,status\nre_1,0x0,usd,succeeded\n", "whole minor units"),
        ("id,amount,currency,status\nre_1,5,dollars,succeeded\n", "three-letter ISO code"),
        ("id,amount,currency,status\nre_1,5,usd,paid\n", '--map-status "paid"='),
        ("id,amount,currency,status\n,5,usd,failed\n", "line 2, id '': must not be blank"),
        (
            "id,amount,currency,status\nre_1,5,usd,failed\nre_1,5,usd,failed\n",
            "line 3, id 're_1': is on line 2 too",
        ),
        (
            "id,amount,currency,status,created\nre_1,5,usd,failed,31/01/2026\n",
            "must be a time such as",
        ),
        ("id,amount,currency,status\nre_1,5,usd\nre_2,5,usd,failed\n", "too few cells"),
        ("%PDF-1.7", "is a PDF"),
    ],
)
def test_file_that_cannot_be_read_exits_3_and_says_where(
    cli: Cli, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "export.csv"
    file.write_text(text)
    ran = cli("reconcile", str(file), *ALL)
    assert (ran.code, ran.out) == (3, "")
    assert says in " ".join(ran.err.split()), ran.err


def test_only_the_first_errors_are_shown(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "export.csv"
    rows = "".join(f"re_{number},x,usd,failed\n" for number in range(25))
    file.write_text(f"id,amount,currency,status\n{rows}")
    ran = cli("reconcile", str(file), *ALL)
    assert ran.code == 3
    assert "25 cells cannot be read" in ran.err
    assert "and 5 more" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--from", "2026-01-01"), "--from and --to belong together"),
        ((*ALL, "--map", "refund=X"), "'refund' is not one of id, payment_intent"),
        ((*ALL, "--map", "id"), "must be written as NAME=VALUE"),
        ((*ALL, "--map", "id=A", "--map", "id=B"), "id is given twice"),
        ((*ALL, "--map-status", "paid=done"), "'done' is not one of succeeded"),
        ((*ALL, "--decimal", "comma"), "add --amount-unit major"),
        ((*ALL, "--tz", "Mars"), "must be a time zone such as"),
        ((*ALL, "--sheet", "S"), "--sheet applies only to a workbook"),
        ((*ALL, "--output", "-"), "'-' must be a file"),
    ],
)
def test_wrong_usage_exits_2(
    cli: Cli, season: Season, arguments: tuple[str, ...], says: str
) -> None:
    season.theirs("a")
    ran = cli("reconcile", season.file(), *arguments)
    assert ran.code == 2
    assert says in " ".join(ran.err.split()), ran.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("columns = 1", "[columns] must be a table"),
        ("[columns]\nid = 1", "[columns] id must be a text"),
        ("[columns]\nrefund = 'x'", "[columns]: 'refund' is not one of id"),
        ("[status]\nPaid = 'done'", "[status]: 'done' is not one of succeeded"),
        ("[file]\nsign = 'minus'", "[file] sign: 'minus' is not one of positive, negative"),
        ("[files]\n", "'files' is not one of its tables"),
        ("[columns", "is not valid TOML"),
        (f"columns = {'9' * 5000}", "is not valid TOML"),
        (f"columns = {'[' * 5000}", "is not valid TOML"),
    ],
)
def test_wrong_mapping_exits_3_and_names_what_is_wrong(
    cli: Cli, season: Season, tmp_path: Path, text: str, says: str
) -> None:
    kept = tmp_path / "provider.toml"
    kept.write_text(text)
    ran = cli("reconcile", season.file(), *ALL, "--mapping", str(kept))
    assert ran.code == 3
    assert says in ran.err, ran.err


def test_unavailable_records_exit_5(away: Cli, season: Season) -> None:
    season.theirs("a")
    assert away("reconcile", season.file(), *ALL).code == 5
