"""What anyone who reaches the broker may ask of a worker.

Inspection, and the rest only where a setting allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.control import Panel

from tests.support.installation import Installation, Worker, until
from tests.support.sending import EMBED, RedisPost, Sent
from worker.broker import remote
from worker.broker.queues import make_celery
from worker.model.refund import Lane
from worker.settings import Settings

REFUSED: dict[str, dict[str, Any]] = {
    "shutdown": {},
    "pool_grow": {"n": 1},
    "pool_shrink": {"n": 100},
    "pool_restart": {},
    "autoscale": {"max": 1, "min": 1},
    "add_consumer": {"queue": "elsewhere"},
    "cancel_consumer": {"queue": "refunds"},
    "rate_limit": {"task_name": "refunds.submit", "rate_limit": "1/h"},
    "time_limit": {"task_name": "refunds.submit", "hard": 0.001, "soft": 0.001},
    "revoke": {"task_id": "the-good-one"},
    "terminate": {"task_id": "the-good-one", "signal": "KILL"},
    "revoke_by_stamped_headers": {"headers": {"a": ["b"]}},
    "disable_events": {},
    "election": {"id": "1", "topic": "x"},
    "hello": {"from_node": "other@host", "revoked": {"the-good-one": 1}},
    "memdump": {},
    "report": {},
}


@pytest.fixture
def app(installation: Installation) -> Iterator[Celery]:
    with make_celery(Settings.load(redis_url=installation.redis_url)) as made:
        yield made


def asked(app: Celery, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """The one worker's answer."""
    replies = app.control.broadcast(
        command, arguments=arguments or {}, reply=True, limit=1, timeout=10
    )
    ((answer,),) = (reply.values() for reply in replies)
    return answer


def answers(app: Celery) -> bool:
    return bool(app.control.ping(timeout=0.5))


def started(installation: Installation, app: Celery, **settings: str) -> Worker:
    installation.settings |= settings
    worker = installation.start("worker", "worker")
    until(lambda: answers(app), "the worker answers", 20)
    return worker


def test_whatever_would_change_a_worker_is_refused(installation: Installation, app: Celery) -> None:
    worker = started(installation, app)
    told = {command: asked(app, command, arguments) for command, arguments in REFUSED.items()}
    assert told == {
        command: {
            "error": (
                f"{command} is refused: set REFUNDS_REMOTE_CONTROL=true on the workers to allow it"
            )
        }
        for command in REFUSED
    }
    post = RedisPost(installation.redis_url)
    with installation.refunds() as refunds:
        for lane in Lane:
            post.send(lane.value, Sent(refund_id=lane.name, headers={"id": "the-good-one"}))
        until(
            lambda: all(refunds.get_many([lane.name for lane in Lane])), "both queues are read", 20
        )
        records = installation.settled(refunds, [lane.name for lane in Lane], 20)
    post.close()
    assert {record.status for record in records} == {"succeeded"}
    assert worker.process.poll() is None
    assert "restarting it in" not in worker.said


def test_inspection_shows_no_password_and_no_customers_data(
    installation: Installation, app: Celery
) -> None:
    installation.sandbox.set_modes(latency_ms=800)
    started(installation, app)
    post = RedisPost(installation.redis_url)
    fields = {
        "refund_id": "r-1",
        "payment_intent": "pi_1",
        "amount": 5,
        "metadata": {"email": "a.customer@example.org"},
    }
    post.send("refunds", Sent(refund_id="r-1", body=[[], fields, EMBED]))
    post.close()
    until(lambda: bool(asked(app, "active")), "the task is being worked on", 20)
    (active,) = asked(app, "active")
    assert active["kwargs"] == "r-1"
    told = [
        asked(app, name)
        for name in ("stats", "conf", "registered", "active_queues", "scheduled", "revoked")
    ]
    assert "customer" not in str([active, *told])
    assert set(told[0]["broker"]) == {
        "hostname",
        "port",
        "virtual_host",
        "transport",
        "connect_timeout",
        "heartbeat",
    }
    assert not [key for key in told[1] if key.startswith("broker")]
    assert {queue["name"] for queue in told[3]} == {lane.value for lane in Lane}
    assert asked(app, "enable_events") == {"ok": "task events already enabled"}


def test_a_worker_that_is_told_to_shut_down_ends_and_stays_away(
    installation: Installation, app: Celery
) -> None:
    worker = started(installation, app, REFUNDS_REMOTE_CONTROL="true")
    assert asked(app, "rate_limit", {"task_name": "refunds.submit", "rate_limit": "100/s"}) == {
        "ok": "new rate limit set successfully"
    }
    app.control.shutdown()
    assert worker.process.wait(20) == 0
    assert "the worker process has ended" in worker.said
    assert "restarting it in" not in worker.said


def test_stats_leave_out_the_sentinels_password_and_other_brokers() -> None:
    broker = {
        "hostname": "h",
        "transport_options": {"sentinel_kwargs": {"password": "s3cret"}},
        "alternates": ["s3cret"],
    }
    state = SimpleNamespace(
        consumer=SimpleNamespace(
            controller=SimpleNamespace(stats=lambda: {"pid": 1, "broker": broker})
        )
    )
    told = remote.commands(control=True)["stats"](state)
    assert "s3cret" not in str(told)
    assert (told["pid"], told["broker"]["hostname"]) == (1, "h")


def test_every_command_of_celery_is_inspection_or_refused() -> None:
    commands = remote.commands(control=False)
    assert set(commands) == set(Panel.data)
    refused = {name for name, command in commands.items() if command.__name__ == "refuse"}
    assert refused >= set(REFUSED)
    assert not refused & {
        "ping",
        "stats",
        "active",
        "dump_active",
        "reserved",
        "dump_tasks",
        "conf",
        "dump_conf",
    }
