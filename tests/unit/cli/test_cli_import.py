"""`refunds import`: nothing before all is valid, nothing twice, and what became of every row."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.cli_runner import SECONDS, Cli, Records, messages
from worker.batches import BatchDraft, open_batch, read_batch
from worker.cli.progress import LINE_SECONDS, STILL_LINE_SECONDS, progress
from worker.file_import import stored_reading
from worker.importer import ImportOptions, open_source
from worker.model.refund import Lane
from worker.sandbox.redis_server import running_server
from worker.sandbox.running import running_sandbox

HEADER = "refund_id,payment_intent,amount,currency"


def a_file(folder: Path, *rows: str, name: str = "season.csv") -> str:
    path = folder / name
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return str(path)


def season(folder: Path, rows: int = 3) -> str:
    return a_file(folder, *(f"row-{number},pi_{number},500,usd" for number in range(rows)))


def refunds_in(records: Records) -> int:
    return sum(records.store.counts().values())


def test_a_valid_file_becomes_a_batch_in_the_bulk_lane(
    cli: Cli, records: Records, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    ran = cli("import", season(tmp_path), "--json")
    assert (ran.code, ran.object["created"], ran.object["known"], ran.object["rows"]) == (
        0,
        3,
        0,
        3,
    )
    assert ran.object["totals"] == {"usd": {"rows": 3, "amount": 1500, "all_remaining": 0}}
    batch = sync_redis.hgetall(f"refunds:batch:{ran.object['batch_id']}")
    assert isinstance(batch, dict)
    assert (batch["file"], batch["digest"], batch["rows"]) == (
        "season.csv",
        ran.object["digest"],
        "3",
    )
    assert batch["state"] == "running"
    assert [refund.batch_id for refund in map(records.get, ("row-0", "row-1", "row-2"))] == [
        ran.object["batch_id"]
    ] * 3
    assert (messages(sync_redis, Lane.BULK), messages(sync_redis, Lane.SINGLE)) == (1, 0)


def test_a_file_for_a_person_names_the_batch_and_how_to_follow_it(cli: Cli, tmp_path: Path) -> None:
    ran = cli("import", season(tmp_path), "--batch", "season-2026")
    assert ran.code == 0
    for part in (
        "season.csv",
        "CSV, comma-separated",
        "1,500 minor units in 3 refunds",
        "season-2026",
    ):
        assert part in ran.out
    assert ran.err == "accepted: follow it with 'refunds batch show season-2026'\n"


def test_one_bad_row_and_nothing_is_enqueued(
    cli: Cli, records: Records, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "row-1,pi_1,500,usd", "row 2,pi_2,5.0,usd", "row-3,pi/3,0,dollars")
    ran = cli("import", file)
    assert (ran.code, ran.out) == (3, "")
    assert [line.split()[:3] for line in ran.err.splitlines()[1:-1]] == [
        ["3", "amount", "amount_decimal"],
        ["3", "refund_id", "refund_id"],
        ["4", "amount", "amount_zero"],
        ["4", "payment_intent", "payment_intent"],
        ["4", "currency", "currency"],
    ]
    assert ran.err.splitlines()[-1].startswith("error: 2 of 3 rows of season.csv are invalid (")
    assert ran.err.splitlines()[-1].endswith("nothing was imported")
    assert (refunds_in(records), messages(sync_redis, Lane.BULK)) == (0, 0)


def test_many_errors_are_the_first_twenty_and_a_count_by_code(cli: Cli, tmp_path: Path) -> None:
    file = a_file(tmp_path, *(f"row {number},pi_{number},500,usd" for number in range(100)))
    ran = cli("import", file)
    lines = ran.err.splitlines()
    assert (ran.code, len(lines)) == (3, 23)
    assert lines[-2:] == [
        "… and 80 more errors: use --errors FILE to get all of them",
        "error: 100 of 100 rows of season.csv are invalid (100 refund_id): nothing was imported",
    ]
    shown = cli("import", file, "--json").object
    assert (shown["invalid"], shown["errors_by_code"], len(shown["error_rows"])) == (
        100,
        {"refund_id": 100},
        20,
    )
    assert set(shown["error_rows"][0]) == {"line", "column", "code", "value", "rule"}


def test_every_error_of_every_row_is_in_the_result_file(cli: Cli, tmp_path: Path) -> None:
    result = tmp_path / "result.csv"
    file = a_file(tmp_path, *(f"row {number},pi_{number},500,usd" for number in range(30)))
    assert cli("import", file, "--result", str(result)).code == 3
    with result.open(newline="") as written:
        rows = list(csv.DictReader(written))
    assert ([row["status"] for row in rows], rows[29]["error_code"]) == (
        ["invalid"] * 30,
        "refund_id",
    )


def test_a_dry_run_sums_up_and_touches_nothing(
    cli: Cli, records: Records, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    records.queued("row-0", payment_intent="pi_0", amount=500, currency="usd")
    before = sync_redis.dbsize()
    ran = cli("import", season(tmp_path), "--dry-run", "--json")
    assert (ran.code, ran.object["valid"], ran.object["known"], ran.object["conflicting"]) == (
        0,
        3,
        1,
        0,
    )
    assert ran.err == "dry run: nothing was imported\n"
    assert sync_redis.dbsize() == before


def test_a_dry_run_works_at_a_desk_that_does_not_reach_redis(away: Cli, tmp_path: Path) -> None:
    ran = away("import", season(tmp_path), "--dry-run", "--json")
    assert (ran.code, ran.object["valid"], "known" in ran.object) == (0, 3, False)
    assert "the rows were not compared with the records: Redis at" in ran.err


def test_an_id_with_other_contents_stops_the_whole_file(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    records.queued("row-1", payment_intent="pi_1", amount=999, currency="usd")
    for options in ((), ("--dry-run",)):
        ran = cli("import", season(tmp_path), *options, "--json")
        assert (ran.code, ran.object["conflicting"]) == (6, 1)
        assert (
            "line 3: refund row-1 exists with other contents and is in progress: amount 999, here"
            " 500\n" in ran.err
        )
        assert (
            "if a row is a new refund, or the corrected row of a failed one, give it a new id"
            in ran.err
        )
    assert refunds_in(records) == 1
    assert records.get("row-1").amount == 999


def test_a_file_imported_before_is_named_with_its_batch_and_refused(
    cli: Cli, records: Records, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    first = cli("import", season(tmp_path), "--json").object
    renamed = a_file(
        tmp_path, *(f"row-{number},pi_{number},500,usd" for number in range(3)), name="renamed.csv"
    )
    for options in ((), ("--dry-run",), ("--batch", "other")):
        ran = cli("import", renamed, *options)
        assert (ran.code, f"was imported as batch {first['batch_id']} on " in ran.err) == (6, True)
        assert f"'refunds batch show {first['batch_id']}'" in ran.err
    assert (refunds_in(records), messages(sync_redis, Lane.BULK)) == (3, 1)
    assert sync_redis.zrange("refunds:batches", 0, -1) == [first["batch_id"]]


def test_again_enqueues_what_is_new_in_a_file_as_a_batch_of_its_own(
    cli: Cli, records: Records, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    file = season(tmp_path)
    first = cli("import", file, "--batch", "b-1")
    again = cli("import", file, "--again", "--json")
    assert (first.code, again.code, again.object["known"], again.object["batch_id"]) == (
        0,
        9,
        3,
        None,
    )
    sync_redis.delete("refunds:refund:row-1")
    assert cli("import", file, "--again", "--batch", "b-1").code == 6
    ran = cli("import", file, "--again", "--batch", "b-2", "--json")
    assert (ran.code, ran.object["created"], ran.object["known"]) == (0, 1, 2)
    assert records.get("row-1").batch_id == "b-2"


def test_a_name_that_is_another_files_batch_is_refused(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    assert cli("import", season(tmp_path), "--batch", "b-1").code == 0
    other = a_file(tmp_path, "new-1,pi_1,500,usd", name="other.csv")
    ran = cli("import", other, "--batch", "b-1")
    assert (ran.code, ran.out) == (6, "")
    assert ran.err.startswith("error: batch b-1 belongs to another file, 'season.csv'")
    assert records.store.get("new-1") is None


def test_a_file_comes_through_a_pipe_too(cli: Cli, records: Records) -> None:
    ran = cli("import", "-", "--json", stdin=f"{HEADER}\nrow-1,pi_1,700,\n")
    assert (ran.code, ran.object["file"], records.get("row-1").amount) == (0, "stdin", 700)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nowhere.csv",), 3),
        (("-",), 3),
        (("-", "--batch", "a b"), 3),
        (("-", "--batch", ".."), 3),
        (("-", "--currency", "dollars"), 3),
        (("-", "--id-from", "status"), 3),
        (("-", "--format", "docx"), 2),
        ((), 2),
    ],
)
def test_a_file_or_option_that_cannot_be_read_is_one_sentence(
    cli: Cli, arguments: tuple[str, ...], code: int
) -> None:
    ran = cli("import", *arguments, stdin="")
    assert (ran.code, ran.out, "rror: " in ran.err) == (code, "", True)


def test_the_result_may_not_replace_the_file_itself(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = season(tmp_path)
    before = Path(file).read_text()
    ran = cli("import", file, "--result", file)
    assert (ran.code, Path(file).read_text(), refunds_in(records)) == (3, before, 0)
    ran = cli("import", file, "--result", str(tmp_path / "no" / "folder.csv"))
    assert (ran.code, refunds_in(records)) == (3, 0)


def unfinished(records: Records, file: str, batch_id: str = "b-1") -> None:
    """An import that was killed before it could note that every row is in."""
    with open_source(file, ImportOptions()) as source:
        opening = BatchDraft(options=stored_reading(source), totals={"usd": 1500})
        open_batch(
            records.store,
            batch_id,
            file="season.csv",
            digest=source.digest,
            rows=3,
            opening=opening,
        )


def test_waiting_ends_with_4_and_the_result_file_says_which_row_failed(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file, result = season(tmp_path), tmp_path / "result.csv"
    unfinished(records, file)
    records.succeeded("row-0", "re_0", payment_intent="pi_0", currency="usd", batch_id="b-1")
    records.failed("row-1", payment_intent="pi_1", currency="usd", batch_id="b-1")
    records.in_review("row-2", payment_intent="pi_2", currency="usd", batch_id="b-1")
    ran = cli("import", file, "--wait", "--result", str(result), "--json")
    assert ran.code == 4
    assert ran.object["counts"] == {
        "succeeded": 1,
        "failed": 1,
        "canceled": 0,
        "review": 1,
        "moving": 0,
    }
    assert "'refunds review list'" in ran.err
    with result.open(newline="") as written:
        rows = list(csv.DictReader(written))
    assert [(row["refund_id"], row["status"], row["stage"]) for row in rows] == [
        ("row-0", "succeeded", "settled"),
        ("row-1", "failed", "settled"),
        ("row-2", "pending", "review"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.csv", "season.csv"]


def test_rows_of_earlier_refunds_are_counted_and_not_waited_for(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = season(tmp_path)
    unfinished(records, file)
    for number in range(2):
        records.queued(f"row-{number}", payment_intent=f"pi_{number}", currency="usd")
    records.succeeded("row-2", payment_intent="pi_2", currency="usd", batch_id="b-1")
    ran = cli("import", file, "--wait", "--json")
    assert (ran.code, ran.object["known"], ran.object["counts"]["succeeded"]) == (0, 3, 1)
    assert "2 rows were accepted before, outside this batch, and not waited for" in ran.err


def test_a_file_whose_rows_all_stand_elsewhere_makes_no_batch(
    cli: Cli, records: Records, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    for number in range(3):
        records.queued(f"row-{number}", payment_intent=f"pi_{number}", currency="usd")
    ran = cli("import", season(tmp_path), "--json")
    assert (ran.code, ran.object["known_by_status"], sync_redis.exists("refunds:batches")) == (
        9,
        {"pending": 3},
        0,
    )


def test_an_unfinished_import_goes_on_with_the_same_command_and_options_only(
    cli: Cli, records: Records, tmp_path: Path
) -> None:
    file = season(tmp_path)
    unfinished(records, file)
    ran = cli("import", file, "--currency", "eur")
    assert (ran.code, "was started with other options" in ran.err, refunds_in(records)) == (
        6,
        True,
        0,
    )
    assert cli("import", file, "--batch", "b-9").code == 6
    ran = cli("import", file, "--delay", "1h", "--json")
    assert (ran.code, ran.object["batch_id"], ran.object["created"]) == (0, "b-1", 3)
    assert "the batch keeps the delay it was started with" in ran.err
    batch = read_batch(records.store, "b-1")
    assert (batch.known, batch.not_before, batch.imported_at is None) == (0, None, False)


def test_rows_that_are_one_refund_twice_are_enqueued_once(cli: Cli, tmp_path: Path) -> None:
    ran = cli("import", a_file(tmp_path, "a,pi_1,500,usd", "a,pi_1,500,usd"), "--json")
    assert (ran.code, ran.object["created"]) == (0, 1)
    assert (
        "warning: 1 row repeats an earlier row (line 3 repeats line 2): each refund is made only"
        " once" in ran.err
    )


def test_an_interrupted_watch_says_that_nothing_stopped_and_how_to_look_again(
    cli: Cli, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    file = season(tmp_path)
    with sync_redis.monitor() as monitor:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "import", file, "--wait", "--batch", "b-1"],
            env=cli.real(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        looks = (
            seen for seen in monitor.listen() if "HGETALL refunds:batch:b-1" in seen["command"]
        )
        for _ in range(3):
            next(looks)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (130, "")
    assert (
        err == "stopped watching; the refunds continue: watch again with 'refunds batch show b-1"
        " --wait', "
        "or pause them with 'refunds batch pause b-1'\n"
    )


def test_a_redis_lost_half_way_is_5_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file = season(tmp_path, 20_000)
    with running_server() as server:
        cli = Cli(environment={"REFUNDS_REDIS_URL": server.url})
        with (
            redis.Redis.from_url(
                server.url, decode_responses=True, socket_timeout=SECONDS
            ) as client,
            client.monitor() as monitor,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "import", file],
                env=cli.real(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            nudges = (seen for seen in monitor.listen() if "LPUSH refunds.bulk" in seen["command"])
            for _ in range(10):
                next(nudges)
            server.kill()
        out, err = process.communicate(timeout=SECONDS * 2)
        assert (process.returncode, out) == (5, "")
        said = err.splitlines()[-1]
        assert said.startswith(f"error: Redis at 127.0.0.1:{server.port} ")
        assert said.endswith("run the same command again to import the rest")
        server.restart()
        ran = cli("import", file, "--json")
        assert (ran.code, ran.object["created"] + ran.object["known"]) == (0, 20_000)
        assert 0 < ran.object["known"] < 20_000


def test_a_redis_lost_during_the_watch_is_5_and_names_what_to_run_instead(tmp_path: Path) -> None:
    file = season(tmp_path)
    with running_server() as server:
        cli = Cli(environment={"REFUNDS_REDIS_URL": server.url})
        with (
            redis.Redis.from_url(
                server.url, decode_responses=True, socket_timeout=SECONDS
            ) as client,
            client.monitor() as monitor,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "import", file, "--wait", "--batch", "b-1"],
                env=cli.real(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            looks = (
                seen for seen in monitor.listen() if "HGETALL refunds:batch:b-1" in seen["command"]
            )
            for _ in range(3):
                next(looks)
            server.kill()
        out, err = process.communicate(timeout=SECONDS * 2)
    assert (process.returncode, out) == (5, "")
    said = err.splitlines()[-1]
    assert said.startswith(f"error: Redis at 127.0.0.1:{server.port} ")
    # The same command would be refused: the file is imported.
    assert said.endswith(
        "; the file is imported as batch b-1: instead of this command, run 'refunds batch show b-1"
        " --wait'"
    )


def test_a_file_goes_through_a_real_worker_and_ledger_and_records_agree(
    cli: Cli, tmp_path: Path
) -> None:
    rows = [
        *(f"row-{number},pi_{number},500,usd" for number in range(20)),
        "over-1,pi_over,999999999,usd",
    ]
    with running_sandbox() as sandbox:
        settings = {
            "REFUNDS_API_KEY": "sk_test_x",
            "REFUNDS_API_URL": sandbox.url,
            "REFUNDS_READBACK": "list",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "worker"],
            env=cli.real(**settings),
            stderr=subprocess.DEVNULL,
        )
        try:
            ran = cli("import", a_file(tmp_path, *rows), "--wait", "--json")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)
        effects = [effect["refund_id"] for effect in sandbox.effects()]
    assert ran.code == 4
    assert ran.object["counts"] == {
        "succeeded": 20,
        "failed": 1,
        "canceled": 0,
        "review": 0,
        "moving": 0,
    }
    assert sorted(effects) == sorted(f"row-{number}" for number in range(20))


def test_progress_without_a_terminal_is_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 100.0
    with progress("accepted", 1000, clock=lambda: now) as show:
        show(0)
        now += LINE_SECONDS - 0.1
        show(100)
        now += 0.1
        show(500, "3 failed")
        show(501)
        now += LINE_SECONDS
        show(1000)
        # What has not changed is said once a minute.
        now += STILL_LINE_SECONDS - 0.1
        show(1000)
        now += 0.1
        show(1000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "accepted: 500 of 1,000, 100/s, about 5 s left, 3 failed",
        "accepted: 1,000 of 1,000, 100/s",
        "accepted: 1,000 of 1,000, 14/s",
    ]


def test_what_was_done_before_the_progress_began_is_no_part_of_its_pace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 100.0
    with progress("settled", 3000, done=2900, clock=lambda: now) as show:
        show(2900)
        now += LINE_SECONDS
        show(2910)
    assert capsys.readouterr().err == "settled: 2,910 of 3,000, 2/s, about 45 s left\n"


def test_an_error_on_a_row_is_json_that_a_program_reads(cli: Cli, tmp_path: Path) -> None:
    ran = cli("import", a_file(tmp_path, "row-1,pi_1,1e3,usd"), "--json")
    (error,) = json.loads(ran.out)["error_rows"]
    found: dict[str, Any] = error
    assert (found["line"], found["column"], found["value"]) == (2, "amount", "'1e3'")
