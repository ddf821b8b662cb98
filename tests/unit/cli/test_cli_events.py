"""`refunds events`: the moves of all refunds in order, from a position or a time on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import redis

from tests.support.cli_runner import Cli, Records
from worker.cli import events
from worker.store import moves


def test_all_moves_are_printed_oldest_first(cli: Cli, records: Records) -> None:
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    found = cli("events", "--json").objects
    assert [(each["refund_id"], each["from"], each["to"]) for each in found] == [
        ("order-1", None, "queued"),
        ("order-1", "queued", "sending"),
        ("order-1", "sending", "settled"),
    ]
    lines = cli("events").out.splitlines()
    assert lines[-1].endswith("order-1  sending -> settled  succeeded")


def test_moves_after_a_position_or_a_time_are_printed(cli: Cli, records: Records) -> None:
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    every = cli("events", "--json").objects
    assert cli("events", "--since", every[0]["id"], "--json").objects == every[1:]
    assert cli("events", "--since", every[0]["at"], "--json").objects == every
    for beginning in ("1970-01-01", "0001-01-01"):
        assert cli("events", "--since", beginning, "--json").objects == every
    for position in (every[-1]["id"], "now"):
        ran = cli("events", "--since", position)
        assert (ran.code, ran.out) == (9, "")


def test_position_that_is_none_is_refused(cli: Cli) -> None:
    for position in ("yesterday", "2999-01-01", "1-2-3", f"{2**64 - 1}-{2**64 - 1}"):
        ran = cli("events", "--since", position)
        assert ran.code == 3
        assert "now" in ran.err
        assert "the id of a move" in ran.err


def test_moves_that_are_not_kept_any_more_are_a_gap(
    cli: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    first, second, third = cli("events", "--json").objects
    sync_redis.xdel("refunds:events", first["id"], second["id"])
    found = cli("events", "--since", first["id"], "--json").objects
    assert found == [{"gap": {"from": first["id"], "to": third["id"]}}, third]
    assert "not kept any more" in cli("events", "--since", first["id"]).err


def test_moves_after_a_restored_snapshot_are_not_printed_as_if_nothing_were_lost(
    cli: Cli, records: Records, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        records.queued(f"order-{number}", payment_intent=f"pi_{number}")
    printed = events._print_move

    def restore(move: moves.Move, *, as_json: bool) -> None:
        printed(move, as_json=as_json)
        if move.refund_id == "order-1":
            sync_redis.xdel("refunds:events", move.move_id)
            records.queued("order-2", payment_intent="pi_2")

    monkeypatch.setattr(events, "_print_move", restore)
    ran = cli("events", "--json")
    assert (ran.code, [each["refund_id"] for each in ran.objects]) == (5, ["order-0", "order-1"])
    assert "restored snapshot" in ran.err


def test_redis_that_is_away_is_exit_5(away: Cli) -> None:
    assert away("events").code == 5


def test_following_prints_each_move_as_it_comes_and_ends_with_ctrl_c(
    cli: Cli, records: Records
) -> None:
    records.queued("order-0", payment_intent="pi_0")
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "events", "--follow", "--since", "2026-01-01", "--json"],
        env=cli.real(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["refund_id"] == "order-0"
        records.queued("order-1", payment_intent="pi_1")
        assert json.loads(process.stdout.readline())["refund_id"] == "order-1"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in said) == (0, False)
