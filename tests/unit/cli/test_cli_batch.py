"""`refunds batch`: see, hold, stop, send again and read back what was handed in as a file."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Cli, Records, messages
from tests.support.files import workbook
from worker.batches import moves, open_batch, read_batch, resume_batch
from worker.cli import progress
from worker.model.refund import Lane, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules import proofs
from worker.store import claims, saves

SEASON = "refund_id;payment_intent;amount;currency\n" + "".join(
    f"row-{n};pi_{n};500;usd\n" for n in range(4)
)


@pytest.fixture
def season(tmp_path: Path) -> str:
    path = tmp_path / "season.csv"
    path.write_text(SEASON)
    return str(path)


@pytest.fixture
def batch(cli: Cli, season: str) -> str:
    assert cli("import", season, "--batch", "b-1").code == 0
    return "b-1"


def settled(records: Records, refund_id: str, kind: Retriable | None = None) -> None:
    """Bring a refund of the batch to its end: failed where `kind` says so."""
    refund = records.sending(
        refund_id, payment_intent=f"pi_{refund_id[4:]}", currency="usd", batch_id="b-1"
    )
    step = Step(
        to=Stage.SETTLED, status=Status.SUCCEEDED, label="done", changes=proofs.settled_drops()
    )
    if kind is not None:
        changes = {"error_code": "card_gone", "retriable": kind}
        step = Step(to=Stage.SETTLED, status=Status.FAILED, label="card_gone", changes=changes)
    assert records.store.run(saves.save(refund, step)).result == "saved"


def test_batches_are_listed_newest_first_with_their_counts(
    cli: Cli, records: Records, batch: str
) -> None:
    settled(records, "row-0")
    settled(records, "row-1", Retriable.NO)
    records.store.redis.zadd("refunds:batches", {batch: 1})
    open_batch(records.store, "b-2", file="half.csv", digest="d2", rows=9)
    ran = cli("batch", "list")
    assert ran.code == 0
    header, *lines = [line.split() for line in ran.out.splitlines()]
    assert header == [
        "batch",
        "state",
        "refunds",
        "succeeded",
        "failed",
        "canceled",
        "review",
        "unfinished",
        "imported",
        "file",
    ]
    assert lines[0][:8] == ["b-2", "incomplete", "0", "0", "0", "0", "0", "0"]
    assert lines[1][:8] == ["b-1", "running", "4", "1", "1", "0", "0", "2"]
    assert cli("batch").out == ran.out
    assert [each["batch_id"] for each in cli("batch", "list", "--json").objects] == ["b-2", "b-1"]
    ran = cli("batch", "list", "--limit", "1", "--json")
    assert ([each["batch_id"] for each in ran.objects], "--limit 0 to list all" in ran.err) == (
        ["b-2"],
        True,
    )


def test_incomplete_import_is_to_be_run_again_unless_its_batch_is_canceled(
    cli: Cli, records: Records
) -> None:
    open_batch(records.store, "b-2", file="half.csv", digest="d2", rows=9)
    assert "incomplete: import the file again" in cli("batch", "show", "b-2").out
    ran, again = [cli("batch", "cancel", "b-2") for _ in range(2)]
    assert "imported only with 'refunds import FILE --again'" in ran.err
    assert (ran.code, again.code) == (0, 9)
    shown = cli("batch", "show", "b-2")
    assert "incomplete: the batch was canceled" in shown.out
    assert "import the file again" not in shown.out
    assert cli("batch", "show", "b-2", "--json").object["finished"] is True


def test_without_a_batch_the_list_says_so(cli: Cli) -> None:
    ran = cli("batch", "list")
    assert (ran.code, ran.out, ran.err) == (0, "", "no file has been imported yet\n")


def test_show_tells_counts_by_status_and_stage_sums_and_pace(
    cli: Cli, records: Records, batch: str
) -> None:
    settled(records, "row-0")
    settled(records, "row-1", Retriable.NO)
    found = cli("batch", "show", batch, "--json").object
    assert (found["file"], found["rows"], found["accepted"], found["moving"]) == (
        "season.csv",
        4,
        4,
        2,
    )
    assert found["statuses"] == {"succeeded": 1, "failed": 1, "pending": 2}
    assert found["stages"] == {"settled": 2, "queued": 2}
    assert (found["totals"], found["amounts"]) == (
        {"usd": 2000},
        {"succeeded:usd": 500, "failed:usd": 500},
    )
    assert (found["known"], found["finished"], found["refunds_a_second"] > 0) == (0, False, True)
    assert found["eta"] > found["created_at"]
    ran = cli("batch", "show", batch)
    for part in ("season.csv", "2,000 minor units", "refunds a second", "about ", "queued"):
        assert part in ran.out
    assert "'refunds list --batch b-1 --status failed'" in ran.err


def test_show_says_what_holds_a_batch_of_which_nothing_settles(
    cli: Cli, records: Records, batch: str
) -> None:
    client = records.store.redis
    settled(records, "row-3")
    # The latest refunds of all are sampled, and another batch may be faster.
    newer = {f"other-{number}": 9e14 for number in range(100)}
    client.zadd("refunds:index:succeeded", newer)
    slow = cli("batch", "show", batch)
    assert "pace           few or no refunds have settled in the last minute" in slow.out
    assert "few or no refunds have settled in the last minute: see what the rest" in slow.err
    held: dict[Any, Any] = {
        "error_code": "currency_unconfirmed",
        "error_message": "not sent, unknown currency",
    }
    for number in range(2):
        client.hset(f"refunds:refund:row-{number}", mapping=held)
    said = cli("batch", "show", batch).err
    why = "currency_unconfirmed: not sent, unknown currency; see what the rest"
    assert f"of 3 refunds looked at, 2 wait with {why}" in said
    client.hset("refunds:meta", "credentials_refused_at", "1")
    said = cli("batch", "show", batch).err
    assert "nothing at all is sent: see why with 'refunds doctor'" in said
    cli("pause")
    assert "all sending is still paused" in cli("batch", "show", batch).err
    cli("batch", "pause", batch)
    assert "last minute" not in cli("batch", "show", batch).err


def test_show_can_wait_for_the_end(cli: Cli, records: Records, batch: str) -> None:
    for number in range(3):
        settled(records, f"row-{number}")
    settled(records, "row-3", Retriable.NO)
    ran = cli("batch", "show", batch, "--wait", "--json")
    assert (ran.code, ran.object["finished"], ran.object["eta"]) == (4, True, None)


def test_waiting_for_a_batch_ends_with_4_if_some_of_its_rows_were_never_imported(
    cli: Cli, records: Records, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        settled(records, f"row-{number}")
    assert cli("batch", "show", batch, "--wait").code == 0
    key = "refunds:batch:b-1"
    imported_at = records.store.redis.hget(key, "imported_at")
    records.store.redis.hdel(key, "imported_at")

    def imported(_: float) -> None:
        records.store.redis.hset(key, "imported_at", str(imported_at))

    with monkeypatch.context() as during:
        during.setattr("worker.cli.progress.time.sleep", imported)
        assert cli("batch", "show", batch, "--wait").code == 0
    records.store.redis.hdel(key, "imported_at")
    monkeypatch.setattr(progress, "STILL_SECONDS", 0)
    ran = cli("batch", "show", batch, "--wait", "--json")
    assert (ran.code, ran.object["finished"]) == (4, False)
    assert "not every row was imported" in ran.err


@pytest.mark.parametrize(
    ("code", "again"),
    [
        ("balance_insufficient", "'refunds batch retry b-1' sends the failed ones again"),
        ("charge_disputed", "'refunds batch retry b-1 --unknown' sends the failed ones again"),
        ("resource_missing", "the failed ones need new refund ids"),
    ],
)
def test_a_batch_that_paused_itself_says_why_and_what_to_do(
    cli: Cli, records: Records, batch: str, code: str, again: str
) -> None:
    records.store.redis.hset(
        "refunds:batch:b-1", mapping={"state": "paused", "paused_reason": code}
    )
    shown = cli("batch", "show", batch).out
    assert f"many refunds in a row failed with {code}" in shown
    assert "'refunds batch resume b-1' sends the rest" in shown
    assert again in shown


def test_waiting_ends_with_4_and_the_reason_if_the_batch_has_paused_itself(
    cli: Cli, records: Records, batch: str, season: str
) -> None:
    settled(records, "row-0", Retriable.UNKNOWN)
    records.store.redis.hset(
        "refunds:batch:b-1", mapping={"state": "paused", "paused_reason": "card_declined"}
    )
    ran = cli("batch", "show", batch, "--wait", "--json")
    assert (ran.code, ran.object["moving"], ran.object["paused_reason"]) == (4, 3, "card_declined")
    records.store.redis.hdel("refunds:batch:b-1", "imported_at")
    ran = cli("import", season, "--batch", batch, "--wait", "--json")
    assert (ran.code, ran.object["paused_reason"]) == (4, "card_declined")
    for part in (
        "failed with card_declined",
        "batch show b-1",
        "batch resume b-1",
        "batch retry b-1 --unknown",
    ):
        assert part in ran.err
    assert "doctor" not in ran.err


def test_waiting_for_a_batch_that_stands_still_names_the_way_to_see_why(
    cli: Cli, records: Records, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STILL_SECONDS", 0)

    def ended(_: float) -> None:
        for number in range(4):
            settled(records, f"row-{number}")

    monkeypatch.setattr("worker.cli.progress.time.sleep", ended)
    ran = cli("batch", "show", batch, "--wait")
    assert ran.code == 0
    assert "see what the rest waits for with 'refunds list --batch b-1 --status pending'" in ran.err


def test_waiting_for_a_batch_that_a_person_paused_names_that_person_and_no_time_left(
    cli: Cli, records: Records, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(records, "row-0")
    cli("batch", "pause", batch, REFUNDS_ACTOR="ann")
    monkeypatch.setattr(progress, "STILL_SECONDS", 0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    monkeypatch.setattr(progress, "STILL_LINE_SECONDS", 0)

    def resumed(_: float) -> None:
        resume_batch(records.store, batch)
        for number in range(1, 4):
            settled(records, f"row-{number}")

    monkeypatch.setattr("worker.cli.progress.time.sleep", resumed)
    ran = cli("batch", "show", batch, "--wait")
    assert ran.code == 0
    assert "by ann: resume it with 'refunds batch resume b-1'" in ran.err
    assert " left" not in ran.err
    assert "doctor" not in ran.err


@pytest.mark.parametrize(
    ("pause", "resume"),
    [
        (("batch", "pause", "b-1"), ("batch", "resume", "b-1")),
        (("pause", "--batch", "b-1"), ("resume", "--batch", "b-1")),
    ],
)
def test_pause_and_resume_say_that_a_batch_is_finished(
    cli: Cli, records: Records, batch: str, pause: tuple[str, ...], resume: tuple[str, ...]
) -> None:
    for number in range(4):
        settled(records, f"row-{number}")
    ran = cli(*pause)
    assert (ran.code, ran.err) == (9, "batch b-1 is finished: nothing was changed\n")
    assert read_batch(records.store, batch).state == "running"
    over = "it is finished, so nothing is left to send"
    ran = cli(*resume)
    assert (ran.code, ran.err) == (9, f"batch b-1 was not paused; {over}\n")
    # It was paused before its last refund settled.
    records.store.redis.hset("refunds:batch:b-1", "state", "paused")
    assert cli(*pause).err == "batch b-1 was already paused\n"
    ran = cli(*resume)
    assert (ran.code, ran.err) == (0, f"batch b-1 is resumed; {over}\n")


def test_a_batch_with_a_refund_in_review_can_be_paused(
    cli: Cli, records: Records, batch: str
) -> None:
    """A person may decide to send that refund again."""
    for number in range(4):
        settled(records, f"row-{number}")
    records.store.redis.hincrby("refunds:batch:b-1", "stage:review", 1)
    records.store.redis.hincrby("refunds:batch:b-1", "status:pending", 1)
    assert read_batch(records.store, batch).finished
    assert (cli("batch", "pause", batch).code, read_batch(records.store, batch).state) == (
        0,
        "paused",
    )


def test_pause_and_resume_hold_a_batch_and_let_it_go(
    cli: Cli, records: Records, batch: str
) -> None:
    assert (cli("batch", "resume", batch).code, cli("batch", "pause", batch).code) == (9, 0)
    again = cli("batch", "pause", batch)
    assert (again.code, again.err) == (9, "batch b-1 was already paused\n")
    found = cli("batch", "show", batch, "--json").object
    assert (found["state"], found["paused_at"] is not None, found["paused_by"] is not None) == (
        "paused",
        True,
        True,
    )
    cli("pause")
    assert "all sending is still paused" in cli("batch", "resume", batch).err
    assert read_batch(records.store, batch).state == "running"


def test_cancel_stops_what_was_not_sent_and_says_what_was(
    cli: Cli, records: Records, batch: str
) -> None:
    settled(records, "row-0")
    records.sending("row-1", payment_intent="pi_1", currency="usd", batch_id="b-1")
    ran = cli("batch", "cancel", batch, "--json")
    assert (ran.code, ran.object["canceled"]) == (0, 2)
    assert ran.object["sent"] == {
        "succeeded": 1,
        "failed": 0,
        "sending": 1,
        "in_doubt": 0,
        "processing": 0,
        "review": 0,
    }
    assert "1 refund may have reached the provider and cannot be canceled" in ran.err
    again = cli("batch", "cancel", batch)
    assert (again.code, "sent, succeeded" in again.out) == (9, True)
    assert [records.get(f"row-{number}").status for number in range(4)] == [
        "succeeded",
        "pending",
        "canceled",
        "canceled",
    ]


def test_cancel_names_what_moved_meanwhile_and_its_numbers_add_up(
    cli: Cli, records: Records, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refund = records.sending("row-1", payment_intent="pi_1", currency="usd", batch_id="b-1")
    settled(records, "row-0")
    apply = moves._apply

    def and_meanwhile(*arguments: Any) -> tuple[list[str], list[tuple[str, str]]]:
        # A worker saves that the provider was busy, after this page was read; and a claim has
        # canceled another row.
        waits = Step(to=Stage.WAITING, status=Status.PENDING, label="rate_limited")
        assert records.store.run(saves.save(refund, waits)).result == "saved"
        claim = records.store.run(
            claims.claim(
                "row-2", "send", token="t", lease=timedelta(seconds=45), currency_checked=True
            )
        )
        assert claim.result == "canceled"
        return apply(*arguments)

    monkeypatch.setattr(moves, "_apply", and_meanwhile)
    ran = cli("batch", "cancel", batch, "--json")
    told = ran.object
    assert (told["canceled"], told["canceled_now"], told["to_be_canceled"]) == (
        2,
        2,
        {"queued": 0, "waiting": 1},
    )
    assert (
        told["canceled"] + sum(told["sent"].values()) + sum(told["to_be_canceled"].values())
        == told["refunds"]
        == 4
    )
    assert "1 refund changed meanwhile and will not be sent" in ran.err
    monkeypatch.undo()
    again = cli("batch", "cancel", batch)
    assert (again.code, [line.split() for line in again.out.splitlines()][1:]) == (
        0,
        [["canceled", "3"], ["sent,", "succeeded", "1"], ["refunds", "in", "total", "4"]],
    )


def test_retry_sends_again_what_is_retriable_in_the_bulk_lane(
    cli: Cli, records: Records, sync_redis: redis.Redis, batch: str
) -> None:
    for number, kind in enumerate((Retriable.YES, Retriable.NO, Retriable.UNKNOWN)):
        settled(records, f"row-{number}", kind)
    before = messages(sync_redis, Lane.BULK)
    ran = cli("batch", "retry", batch, "--json")
    assert (ran.code, ran.object) == (
        0,
        {
            "batch_id": "b-1",
            "retried": 1,
            "left": {"no": 1, "unknown": 1},
            "moved": 0,
            "handed_in_again": 0,
        },
    )
    assert "--unknown sends those too" in ran.err
    assert (messages(sync_redis, Lane.BULK) - before, messages(sync_redis, Lane.SINGLE)) == (1, 0)
    assert cli("batch", "retry", batch).code == 9
    assert cli("batch", "retry", batch, "--unknown", "--json").object["retried"] == 1
    assert [records.get(f"row-{number}").generation for number in range(4)] == [2, 1, 2, 1]


def test_retry_with_wrong_settings_of_the_broker_sends_nothing_again(
    cli: Cli, records: Records, batch: str
) -> None:
    settled(records, "row-0", Retriable.YES)
    cli.environment["REFUNDS_BROKER_URL"] = "sentinel://127.0.0.1:1/0"
    assert cli("batch", "retry", batch).code == 2
    assert records.get("row-0").generation == 1


def test_a_retry_of_a_paused_batch_says_how_to_let_it_go_and_of_a_canceled_one_is_refused(
    cli: Cli, records: Records, batch: str
) -> None:
    settled(records, "row-0", Retriable.YES)
    cli("batch", "pause", batch)
    assert "resume it with 'refunds batch resume b-1'" in cli("batch", "retry", batch).err
    cli("batch", "cancel", batch)
    ran = cli("batch", "retry", batch)
    assert (ran.code, ran.err) == (
        6,
        (
            "error: batch b-1 was canceled: none of its refunds is sent again; import them under"
            " new ids\n"
        ),
    )


def test_the_result_has_the_inputs_columns_and_order_and_what_became_of_each_row(
    cli: Cli, records: Records, batch: str, season: str, tmp_path: Path
) -> None:
    settled(records, "row-0")
    settled(records, "row-2", Retriable.NO)
    ran = cli("batch", "result", batch, "--input", season)
    rows = list(csv.DictReader(io.StringIO(ran.out, newline=""), delimiter=";"))
    assert [(row["refund_id"], row["status"], row["error_code"]) for row in rows] == [
        ("row-0", "succeeded", ""),
        ("row-1", "pending", ""),
        ("row-2", "failed", "card_gone"),
        ("row-3", "pending", ""),
    ]
    assert list(rows[0])[:4] == ["refund_id", "payment_intent", "amount", "currency"]
    target = tmp_path / "result.csv"
    assert cli("batch", "result", batch, "--input", season, "--output", str(target)).code == 0
    assert target.read_text().split() == ran.out.split()
    assert cli("batch", "result", batch, "--input", season, "--output", season).code == 3
    # A pipe gets the very bytes that a file gets.
    assert cli.process("batch", "result", batch, "--input", season).out == target.read_text()


@pytest.mark.parametrize(
    "content",
    [f"{SEASON}row-9;pi_9;500;usd\n".encode(), b"", b"%PDF-1.7", workbook([["id"], ["x"]])],
    ids=["grown", "empty", "pdf", "workbook"],
)
def test_the_result_of_another_file_is_refused(
    cli: Cli, batch: str, tmp_path: Path, content: bytes
) -> None:
    other = tmp_path / "season.csv"
    other.write_bytes(content)
    ran = cli("batch", "result", batch, "--input", str(other))
    assert (ran.code, ran.out) == (3, "")
    assert (
        "season.csv is not the file that was imported as batch b-1: use --input with 'season.csv'"
        in ran.err
    )


def test_the_result_of_a_piped_import_asks_for_what_was_piped_in(cli: Cli, season: str) -> None:
    cli("import", "-", "--json", stdin="refund_id,payment_intent,amount\nrow-1,pi_1,700\n")
    (batch,) = cli("batch", "list", "--json").objects
    ran = cli("batch", "result", batch["batch_id"], "--input", season)
    assert "use --input with what was piped in as it was imported, byte for byte" in ran.err


def test_a_result_is_read_as_the_file_was_when_it_was_imported(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "orders.txt"
    path.write_text("order,pi,amount,note\n1,pi_1,5.00,x\n2,pi_2,7.50,y\n")
    options = (
        "--id-from",
        "order",
        "--amount-unit",
        "major",
        "--currency",
        "usd",
        "--ignore-extra",
    )
    assert cli("import", str(path), *options, "--batch", "b-1").code == 0
    renamed = path.rename(tmp_path / "orders")
    ran = cli("batch", "result", "b-1", "--input", str(renamed))
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [(row["order"], row["note"], row["status"]) for row in rows] == [
        ("1", "x", "pending"),
        ("2", "y", "pending"),
    ]


@pytest.mark.parametrize("stored", ['{"rounding": "up"}', '{"amount_unit": "tenth"}'])
def test_a_batch_of_a_newer_version_is_shown_and_its_file_is_not_read_in_another_way(
    cli: Cli, records: Records, batch: str, season: str, stored: str
) -> None:
    records.store.redis.hset(f"refunds:batch:{batch}", mapping={"options": stored})
    shown = cli("batch", "show", batch)
    assert (shown.code, "season.csv" in shown.out) == (0, True)
    ran = cli("batch", "result", batch, "--input", season)
    assert (ran.code, "a newer version began this batch" in ran.err) == (6, True)


def test_a_list_of_a_batch_may_be_empty_but_not_of_one_that_is_unknown(
    cli: Cli, batch: str
) -> None:
    none = cli("list", "--batch", batch, "--stage", "review")
    assert (none.code, "no refund matches" in none.err) == (0, True)
    unknown = cli("list", "--batch", "b-20990101-000000")
    assert (unknown.code, "refunds batch list" in unknown.err) == (3, True)


@pytest.mark.parametrize("command", ["show", "cancel", "pause", "resume", "retry", "result"])
def test_an_unknown_batch_is_3_and_names_the_list(cli: Cli, command: str, season: str) -> None:
    more = ("--input", season) if command == "result" else ()
    ran = cli("batch", command, "b-9", *more)
    assert (ran.code, ran.out) == (3, "")
    assert "no batch 'b-9' exists here: see 'refunds batch list'" in ran.err


@pytest.mark.parametrize(
    "command", ["list", "show", "cancel", "pause", "resume", "retry", "result"]
)
def test_every_batch_command_explains_itself_and_says_when_redis_is_away(
    away: Cli, command: str, season: str
) -> None:
    assert away("batch", command, "--help").code == 0
    more = {"list": (), "result": ("b-1", "--input", season)}.get(command, ("b-1",))
    ran = away("batch", command, *more)
    assert (
        ran.code,
        ran.out,
        ran.err.startswith("error: Redis at 127.0.0.1:1 cannot be reached"),
    ) == (5, "", True)


def test_an_interrupted_cancel_does_not_say_that_its_refunds_continue(
    cli: Cli, records: Records, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as interrupted:
        interrupted.setattr(moves, "_apply", raises_interrupt)
        ran = cli("batch", "cancel", batch)
    assert (ran.code, "continue" in ran.err) == (130, False)
    assert f"batch {batch} may be canceled already" in ran.err
    assert "run the same command again" in ran.err
    assert read_batch(records.store, batch).state == "canceled"
    assert cli("batch", "cancel", batch).code == 0


def raises_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
