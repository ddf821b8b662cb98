"""`refunds totals`: its forms of output and its exit codes."""

from __future__ import annotations

import csv
import io

import pytest
import redis

from tests.support.cli_runner import Cli, Records

ALL = ("--from", "2020-01-01", "--to", "2099-12-31")


@pytest.fixture
def two(records: Records) -> None:
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    records.succeeded("order-2", "re_2", payment_intent="pi_2", reason="duplicate")


@pytest.mark.usefixtures("two")
def test_totals_are_printed_in_both_units(cli: Cli) -> None:
    ran = cli("totals", *ALL)
    assert ran.code == 0
    (line,) = ran.out.splitlines()[1:]
    assert line.split() == ["succeeded", "USD", "2", "1,000", "10.00"]
    assert "from 2020-01-01T00:00:00.000Z up to 2100-01-01T00:00:00.000Z" in ran.err


@pytest.mark.usefixtures("two")
def test_totals_as_json_and_csv_carry_the_same_figures(cli: Cli) -> None:
    facts = cli("totals", *ALL, "--by", "reason", "--json").object
    assert [(row["reason"], row["refunds"], row["amount"]) for row in facts["totals"]] == [
        ("", 1, 500),
        ("duplicate", 1, 500),
    ]
    assert facts["tz"] == "UTC"
    rows = list(csv.DictReader(io.StringIO(cli("totals", *ALL, "--by", "reason", "--csv").out)))
    assert [(row["reason"], row["amount"], row["amount_major"]) for row in rows] == [
        ("", "500", "5.00"),
        ("duplicate", "500", "5.00"),
    ]


@pytest.mark.usefixtures("two")
def test_check_exits_1_if_the_counters_disagree(cli: Cli, sync_redis: redis.Redis) -> None:
    assert cli("totals", *ALL, "--check", "--json").code == 0
    sync_redis.hincrby("refunds:counters", "amount:succeeded:usd", 1)
    ran = cli("totals", *ALL, "--check", "--json")
    assert ran.code == 1
    assert "1,001 by the counter, 1,000 in the records" in ran.err
    assert [each["agrees"] for each in ran.object["check"]] == [False, True]


def test_nothing_settled_then_exits_9(cli: Cli) -> None:
    ran = cli("totals", *ALL)
    assert (ran.code, ran.out) == (9, "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--from", "2026-01-01"), "Missing option '--to'"),
        (("--from", "2026-02-01", "--to", "2026-01-01"), "'--to': must be after --from"),
        (("--from", "1.2.2026", "--to", "2026-01-01"), "'--from': '1.2.2026' must be a date"),
        ((*ALL, "--tz", "Mars"), "'Mars' must be a time zone such as"),
        ((*ALL, "--by", "shop"), "'shop' is not one of day, batch, reason"),
        ((*ALL, "--by", "day,day"), "names a group twice"),
        ((*ALL, "--csv", "--json"), "exclude each other"),
    ],
)
def test_wrong_usage_exits_2_and_names_what_is_wrong(
    cli: Cli, arguments: tuple[str, ...], says: str
) -> None:
    ran = cli("totals", *arguments)
    assert ran.code == 2
    assert says in " ".join(ran.err.split())


def test_unavailable_records_exit_5(away: Cli) -> None:
    assert away("totals", *ALL).code == 5
