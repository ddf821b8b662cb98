"""`refunds pause`, `resume`, and what `refunds worker` refuses before it starts anything."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Cli, Ran, Records
from worker.batches import open_batch, pause_batch, read_batch
from worker.errors import GuardRefused
from worker.model.refund import Stage
from worker.sandbox.redis_server import running_server
from worker.store import claims, flags, meta
from worker.store.store import Store

KEY = {"REFUNDS_API_KEY": "sk_test_planted", "REFUNDS_API_URL": "http://127.0.0.1:9"}


def said(ran: Ran) -> tuple[int, str]:
    return ran.code, ran.err


def claim_result(records: Records, refund_id: str) -> str:
    call = claims.claim(refund_id, "send", token="t-1", lease=timedelta(seconds=45))
    return records.store.run(call).result


def test_a_pause_stops_every_claim_until_it_is_resumed(cli: Cli, records: Records) -> None:
    records.queued("order-1")
    paused = cli("pause")
    assert (paused.code, paused.out, "send again with 'refunds resume'" in paused.err) == (
        0,
        "",
        True,
    )
    assert claim_result(records, "order-1") == "paused"
    resumed = cli("resume")
    assert (resumed.code, resumed.err.startswith("resumed; sending had been paused since 20")) == (
        0,
        True,
    )
    assert claim_result(records, "order-1") == "claimed"


def test_a_second_pause_keeps_when_and_who_of_the_first(cli: Cli, sync_redis: redis.Redis) -> None:
    cli("pause")
    sync_redis.hset("refunds:meta", mapping={"paused": "1700000000000", "paused_by": "somebody"})
    again = cli("pause")
    told = (
        "already paused since 2023-11-14 22:13:20Z by somebody: send again with 'refunds resume'\n"
    )
    assert (again.code, again.err) == (9, told)


def test_a_resume_of_what_runs_says_so(cli: Cli) -> None:
    ran = cli("resume")
    assert (ran.code, ran.err) == (9, "nothing was paused\n")


def test_a_person_who_vouches_for_the_account_lets_refunds_be_sent_again(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.queued("order-1", payment_intent="pi_1")
    sync_redis.hset("refunds:payment:pi_1", "seen", "1")
    lost: dict[Any, Any] = {"account_lost_at": "1700000000000", "account_lost_payment": "pi_1"}
    sync_redis.hset("refunds:meta", mapping=lost)
    assert claim_result(records, "order-1") == "account"
    held = cli("resume")
    assert (held.code, "another account: see 'refunds doctor'" in held.err) == (9, True)
    cli("pause")
    ran = cli("resume", "--account")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.splitlines() == [
        "payment pi_1 counts as gone, and refunds are sent again",
        (
            "the API key of the next worker that starts within an hour is accepted for the account"
            " of these records"
        ),
        "all sending is still paused: start it with 'refunds resume'",
    ]
    assert cli("resume").err.startswith("resumed")
    assert claim_result(records, "order-1") == "claimed"
    again = cli("resume", "--account", "--force")
    assert (again.code, len(again.err.splitlines())) == (0, 1)


def test_nothing_is_confirmed_while_no_payment_is_missing_and_the_key_is_known(
    cli: Cli, sync_redis: redis.Redis
) -> None:
    known: dict[Any, Any] = {"key_salt": "s", "key_prints": flags.key_print("sk_test_known", "s")}
    sync_redis.hset("refunds:meta", mapping=known)
    ran = cli("resume", "--account", REFUNDS_API_KEY="sk_test_known")
    assert (ran.code, ran.err) == (
        9,
        "nothing was changed: no payment is missing, and the records know this API key\n",
    )
    without = cli("resume", "--account")
    assert (without.code, "'refunds resume --account --force'" in without.err) == (9, True)
    assert sync_redis.hget("refunds:meta", "account_vouched") is None
    assert cli("resume", "--account", REFUNDS_API_KEY="sk_test_other").code == 0
    assert sync_redis.hget("refunds:meta", "account_vouched") is not None
    assert cli("resume", "--force").code == 2


def test_an_account_is_vouched_for_as_a_whole(cli: Cli) -> None:
    ran = cli("resume", "--account", "--batch", "b-1")
    assert (ran.code, "leave out --batch b-1" in ran.err) == (2, True)


def test_the_stop_button_works_on_a_server_that_could_forget_and_says_that_it_could(
    cli: Cli,
) -> None:
    with (
        running_server(appendonly="no") as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        ran = cli("pause", REFUNDS_REDIS_URL=server.url)
        assert (ran.code, ran.out) == (5, "")
        assert ran.err.startswith(
            "error: everything is paused now, but the pause may not be on disk yet"
        )
        assert flags.read(Store(client)).paused_at is not None


def test_a_pause_of_one_batch_holds_back_that_batch_alone(cli: Cli, records: Records) -> None:
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=1)
    records.queued("row-1", batch_id="b-1", payment_intent="pi_row")
    records.queued("order-1", payment_intent="pi_order")
    assert said(cli("pause", "--batch", "b-1")) == (0, "batch b-1 is paused\n")
    assert said(cli("pause", "--batch", "b-1")) == (9, "batch b-1 was already paused\n")
    assert (claim_result(records, "row-1"), claim_result(records, "order-1")) == (
        "batch",
        "claimed",
    )
    assert said(cli("resume", "--batch", "b-1")) == (0, "batch b-1 is resumed\n")
    assert said(cli("resume", "--batch", "b-1")) == (9, "batch b-1 was not paused\n")
    assert claim_result(records, "row-1") == "claimed"


@pytest.mark.parametrize("actor", ["Ann Example", None])
def test_whoever_presses_the_button_is_named(
    cli: Cli, records: Records, monkeypatch: pytest.MonkeyPatch, actor: str | None
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    named = {} if actor is None else {"REFUNDS_ACTOR": actor}
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=1)
    cli("pause", "--batch", "b-1", **named)
    cli("pause", **named)
    assert (
        read_batch(records.store, "b-1").paused_by
        == flags.read(records.store).paused_by
        == (actor or "root")
    )


@pytest.mark.parametrize("actor", [" ", "a\x1b[2J", "x" * 101])
def test_a_name_that_cannot_be_kept_is_a_wrong_setting(cli: Cli, actor: str) -> None:
    ran = cli("pause", REFUNDS_ACTOR=actor)
    assert (ran.code, "REFUNDS_ACTOR" in ran.err) == (2, True)


def test_a_batch_that_goes_on_under_a_pause_of_everything_says_so(
    cli: Cli, records: Records
) -> None:
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=1)
    pause_batch(records.store, "b-1")
    cli("pause")
    assert "all sending is still paused" in cli("resume", "--batch", "b-1").err


def test_an_unknown_or_canceled_batch_cannot_be_paused(cli: Cli, records: Records) -> None:
    assert (cli("pause", "--batch", "b-1").code, cli("resume", "--batch", "b-1").code) == (3, 3)
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=1)
    records.store.redis.hset("refunds:batch:b-1", "state", "canceled")
    ran = cli("pause", "--batch", "b-1")
    assert said(ran) == (
        6,
        "error: batch b-1 is canceled and cannot be paused: nothing was changed\n",
    )
    ran = cli("resume", "--batch", "b-1")
    assert said(ran) == (
        6,
        "error: batch b-1 is canceled and cannot be resumed: nothing was changed\n",
    )


def test_a_batch_begun_again_with_the_same_file_goes_on_and_with_another_is_refused(
    records: Records,
) -> None:
    assert open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=2).fresh
    records.queued("row-1", batch_id="b-1")
    before = read_batch(records.store, "b-1")
    assert not open_batch(records.store, "b-1", file="renamed.csv", digest="d1", rows=2).fresh
    assert (
        open_batch(records.store, None, file="renamed.csv", digest="d1", rows=2).batch_id == "b-1"
    )
    with pytest.raises(GuardRefused, match=r"belongs to another file, 'season\.csv'"):
        open_batch(records.store, "b-1", file="other.csv", digest="d2", rows=9)
    assert read_batch(records.store, "b-1") == before
    assert (before.file, before.rows, before.state, before.accepted, before.moving) == (
        "season.csv",
        2,
        "running",
        1,
        1,
    )
    assert records.store.redis.zrange("refunds:batches", 0, -1) == ["b-1"]


def test_counts_of_a_batch_follow_its_refunds(records: Records) -> None:
    open_batch(records.store, "b-1", file="season.csv", digest="d1", rows=3)
    records.succeeded("row-1", batch_id="b-1", payment_intent="pi_1")
    records.in_review("row-2", batch_id="b-1", payment_intent="pi_2")
    records.queued("row-3", batch_id="b-1", payment_intent="pi_3")
    batch = read_batch(records.store, "b-1")
    assert batch.statuses == {"succeeded": 1, "pending": 2}
    assert batch.stages == {Stage.SETTLED: 1, Stage.REVIEW: 1, Stage.QUEUED: 1}
    assert (batch.amounts, batch.moving) == ({"succeeded:usd": 500}, 1)


@pytest.mark.parametrize(
    ("settings", "code", "sentence"),
    [
        ({}, 2, "error: REFUNDS_API_KEY is not set"),
        (
            {**KEY, "REFUNDS_LEASE_SECONDS": "soon"},
            2,
            "error: wrong settings: REFUNDS_LEASE_SECONDS",
        ),
        (
            {**KEY, "REFUNDS_API_KEY": "sk_live_planted"},
            6,
            "error: the key or the address is a live one",
        ),
        (
            {**KEY, "REFUNDS_API_URL": "https://api.wooshpay.com"},
            6,
            "error: the key or the address is",
        ),
        (
            {**KEY, "REFUNDS_API_URL": "http://pay.example"},
            6,
            "error: REFUNDS_API_URL is plain http",
        ),
        (
            {**KEY, "REFUNDS_HEARTBEAT_FILE": "/proc/no/beat"},
            2,
            "error: REFUNDS_HEARTBEAT_FILE /proc/no/beat cannot",
        ),
        (
            {**KEY, "REFUNDS_REDIS_URL": "redis://127.0.0.1:1/0"},
            5,
            "error: Redis at 127.0.0.1:1 cannot be reached",
        ),
    ],
)
def test_a_worker_that_may_not_run_says_why_and_ends(
    cli: Cli, settings: dict[str, str], code: int, sentence: str
) -> None:
    ran = cli("worker", **settings)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(sentence)
    assert len(ran.err.splitlines()) == 1
    assert "planted" not in ran.err


def test_a_worker_is_refused_on_records_of_another_provider(cli: Cli, records: Records) -> None:
    records.store.run(meta.pin("elsewhere.example", "live"))
    ran = cli("worker", **KEY)
    assert (
        ran.code,
        ran.err.startswith("error: these records belong to elsewhere.example in live mode"),
    ) == (6, True)


def test_a_worker_is_refused_on_a_server_that_could_forget(cli: Cli) -> None:
    with running_server(appendonly="no") as server:
        ran = cli("worker", **KEY, REFUNDS_REDIS_URL=server.url)
    assert (ran.code, "append-only" in ran.err) == (6, True)


@pytest.mark.parametrize(
    "options", [("--queues", "refunds,other"), ("--concurrency", "0"), ("--concurrency", "many")]
)
def test_queues_and_concurrency_are_checked(cli: Cli, options: tuple[str, ...]) -> None:
    ran = cli("worker", *options, **KEY)
    assert (ran.code, ran.err.startswith("Usage: refunds worker")) == (2, True)


@pytest.mark.parametrize("flag", ["credentials_refused_at", "behind_since"])
def test_a_resume_says_that_something_else_still_stops_all_sending(
    cli: Cli, sync_redis: redis.Redis, flag: str
) -> None:
    sync_redis.hset("refunds:meta", flag, "1700000000000")
    cli("pause")
    ran = cli("resume")
    assert (ran.code, "still nothing is sent: see why with 'refunds doctor'" in ran.err) == (
        0,
        True,
    )
