"""What metrics and the doctor say of callbacks."""

from __future__ import annotations

import base64
import time
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from tests.support.cli_runner import Cli, Records
from tests.unit.monitoring.examining import examined
from tests.unit.monitoring.test_metrics import of, parsed
from worker.monitoring import metrics
from worker.store import callback_state, callbacks
from worker.store.callbacks import Wanted

SHOP = Wanted(name="shop", ids="", most=100)
HOUR_MS = 3_600_000


@pytest.fixture
def with_file(doctor: Cli, tmp_path: Path) -> Cli:
    """The doctor of an installation with one endpoint."""
    (tmp_path / "callback_shop").write_text("whsec_" + base64.b64encode(b"k" * 32).decode() + "\n")
    (tmp_path / "callbacks.toml").write_text(
        '[[endpoints]]\nname = "shop"\nurl = "https://shop.example.com"\n'
    )
    return Cli(
        environment=doctor.environment
        | {
            "REFUNDS_CALLBACKS_FILE": str(tmp_path / "callbacks.toml"),
            "REFUNDS_SECRETS_DIR": str(tmp_path),
        }
    )


def serve(records: Records) -> None:
    """Do what a worker does each second."""
    records.store.run(callbacks.outbox([SHOP]))


def end(records: Records, result: callbacks.Result, member: str = "order-1") -> None:
    lease = timedelta(seconds=30)
    taken = records.store.run(callbacks.take("shop", member, token="t", lease=lease))
    assert taken.result == "taken"
    version = str(records.get(member).version)
    records.store.run(callbacks.ended("shop", member, token="t", result=result, version=version))


def test_metrics_show_what_waits_what_is_old_and_what_is_dead(
    records: Records, sync_redis: redis.Redis
) -> None:
    figures = parsed(metrics.render(records.store))
    assert of(figures, "refunds_callbacks_on") == 0
    callback_state.turn_on(records.store, "ann")
    for number in range(3):
        records.succeeded(f"order-{number}", f"re_{number}", payment_intent=f"pi_{number}")
    sync_redis.zadd("refunds:callbacks", {"order-2": int(time.time() * 1000) - HOUR_MS})
    figures = parsed(metrics.render(records.store))
    assert (of(figures, "refunds_callbacks_unshared_oldest_seconds") or 0) >= 3600
    serve(records)
    end(records, "failed", "order-1")
    end(records, "delivered", "order-2")
    sync_redis.zadd("refunds:callback-since:shop", {"order-0": int(time.time() * 1000) - HOUR_MS})
    figures = parsed(metrics.render(records.store))
    assert of(figures, "refunds_callbacks_on") == 1
    assert of(figures, "refunds_callbacks_waiting", endpoint="shop") == 1
    assert (of(figures, "refunds_callbacks_oldest_seconds", endpoint="shop") or 0) >= 3600
    assert of(figures, "refunds_callbacks_dead", endpoint="shop") == 1
    counts = {
        result: of(figures, "refunds_callbacks_total", endpoint="shop", result=result)
        for result in ("delivered", "failed", "refused", "dead")
    }
    assert counts == {"delivered": 1, "failed": 1, "refused": 0, "dead": 1}


def test_doctor_says_that_callbacks_are_off_and_warns_if_an_endpoint_is_set(
    doctor: Cli, with_file: Cli
) -> None:
    assert examined(doctor).of("callbacks")[0] == "ok"
    said = examined(with_file).of("callbacks")
    assert (said[0], "callbacks are off" in said[1]) == ("warn", True)


def test_doctor_warns_if_no_worker_serves_an_endpoint(with_file: Cli, records: Records) -> None:
    callback_state.turn_on(records.store, "ann")
    assert examined(with_file).of("callbacks")[0] == "warn"
    serve(records)
    assert examined(with_file).of("callbacks") == ("ok", "on, for shop", "")


def test_doctor_fails_for_a_wrong_file(with_file: Cli, tmp_path: Path) -> None:
    (tmp_path / "callback_shop").write_text("whsec_short\n")
    said = examined(with_file)
    assert (said.of("callbacks")[0], said.code) == ("fail", 2)


@pytest.mark.parametrize("trouble", ["paused", "failing", "late", "dead"])
def test_doctor_warns_of_an_endpoint_in_trouble(
    with_file: Cli, records: Records, sync_redis: redis.Redis, trouble: str
) -> None:
    callback_state.turn_on(records.store, "ann")
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    serve(records)
    if trouble == "paused":
        callback_state.pause(records.store, "shop", "ann")
    elif trouble == "failing":
        sync_redis.hset("refunds:callback-endpoint:shop", "failures", "5")
    elif trouble == "late":
        past = int(time.time() * 1000) - HOUR_MS - 1000
        sync_redis.zadd("refunds:callback-since:shop", {"order-1": past})
    else:
        end(records, "failed")
    words = {"paused": "paused by ann", "failing": "the last 5 tries failed"}
    words |= {"late": "has been waiting for 1 h", "dead": "not sent any more"}
    said = examined(with_file).of("callbacks shop")
    assert (said[0], words[trouble] in said[1]) == ("warn", True)


def test_doctor_without_the_file_names_it_before_a_command_that_needs_it(
    with_file: Cli, doctor: Cli, records: Records
) -> None:
    callback_state.turn_on(records.store, "ann")
    serve(records)
    callback_state.pause(records.store, "shop", "ann")
    command = "refunds callbacks resume shop"
    assert examined(with_file).of("callbacks shop")[2] == command
    fix = examined(doctor).of("callbacks shop")[2]
    assert fix == f"export REFUNDS_CALLBACKS_FILE=… as the workers have it; then {command}"


def test_doctor_names_the_way_to_forget_an_endpoint_that_was_removed(
    with_file: Cli, doctor: Cli, records: Records, sync_redis: redis.Redis
) -> None:
    callback_state.turn_on(records.store, "ann")
    records.succeeded("order-1", "re_1", payment_intent="pi_1")
    serve(records)
    end(records, "failed")
    assert examined(doctor).of("callbacks shop")[2] == "refunds callbacks dead shop"
    past = int(time.time() * 1000) - HOUR_MS
    sync_redis.zadd("refunds:callback-endpoints", {"shop": past})
    said = examined(doctor).of("callbacks shop")
    assert (said[0], said[2]) == ("warn", "refunds callbacks forget shop")
    assert "no worker has served it for an hour: 0 wait, 1 are not sent any more" in said[1]
    assert examined(with_file).of("callbacks shop")[2] == "refunds callbacks dead shop"
