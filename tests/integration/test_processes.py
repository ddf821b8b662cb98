"""What processes do to each other.

Killed workers, restarted servers, poisoned queues, signals, other languages.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support.installation import Installation, until
from worker import RefundRequest, Refunds
from worker.model.refund import Lane, Refund
from worker.sandbox.config import SandboxConfig
from worker.sandbox.redis_server import running_server
from worker.sandbox.running import running_sandbox
from worker.settings import Settings

IN_FLIGHT = 200


def requests(count: int = IN_FLIGHT) -> list[RefundRequest]:
    return [
        RefundRequest(
            refund_id=f"order-{number}-1", payment_intent=f"pi_{number}", amount=100 + number
        )
        for number in range(count)
    ]


def assert_each_moved_once(installation: Installation, records: list[Refund]) -> None:
    effects = Counter(effect["refund_id"] for effect in installation.sandbox.effects())
    assert effects == dict.fromkeys((record.refund_id for record in records), 1)
    assert {record.status for record in records} == {"succeeded"}


@pytest.mark.parametrize("moment", [0, 60, 150])
def test_refunds_of_a_killed_worker_all_settle_with_one_effect_each(
    installation: Installation, moment: int
) -> None:
    installation.sandbox.set_modes(latency_ms=60)
    first = installation.start()
    with installation.refunds() as refunds:
        refunds.submit_many(requests())
        until(lambda: len(installation.sandbox.effects()) >= moment, f"{moment} refunds are done")
        first.kill()
        installation.start()
        records = installation.settled(refunds, [request.refund_id for request in requests()])
    assert len(records) == IN_FLIGHT
    assert_each_moved_once(installation, records)


def test_a_server_behind_a_unix_socket_serves_producer_and_worker(
    tmp_path: Path, sandbox_config: SandboxConfig
) -> None:
    socket = tmp_path / "s.sock"
    with running_server(unixsocket=str(socket)), running_sandbox(sandbox_config) as sandbox:
        installation = Installation(f"unix://{socket}?db=1", sandbox, tmp_path)
        worker = installation.start("worker", "worker")
        try:
            with installation.refunds() as refunds:
                refunds.submit_many(requests(3), lane=Lane.SINGLE)
                records = installation.settled(
                    refunds, [request.refund_id for request in requests(3)]
                )
        finally:
            assert worker.stop() == 0
        assert_each_moved_once(installation, records)


@pytest.mark.parametrize("lane", Lane)
def test_a_restarted_server_loses_nothing_and_the_worker_lives_on(
    tmp_path: Path, sandbox_config: SandboxConfig, lane: Lane
) -> None:
    with running_server() as server, running_sandbox(sandbox_config) as sandbox:
        installation = Installation(server.url, sandbox, tmp_path)
        sandbox.set_modes(latency_ms=60)
        worker = installation.start("worker", "worker")
        try:
            with installation.refunds() as refunds:
                refunds.submit_many(requests(), lane=lane)
                until(lambda: len(sandbox.effects()) >= 50, "fifty refunds are done")
                server.kill()
                server.restart()
                records = installation.settled(
                    refunds, [request.refund_id for request in requests()]
                )
        finally:
            assert worker.stop() == 0
        assert_each_moved_once(installation, records)


def test_sigterm_finishes_what_is_in_flight_and_exits_with_zero(installation: Installation) -> None:
    # On a busy machine a call may take longer than the short limit of the other tests.
    installation.settings |= {
        "REFUNDS_REQUEST_TIMEOUT_SECONDS": "20",
        "REFUNDS_LEASE_SECONDS": "30",
    }
    installation.sandbox.set_modes(latency_ms=400)
    worker = installation.start("worker", "worker")
    with installation.refunds() as refunds:
        refunds.submit_many(requests())
        until(lambda: refunds.store.counts()["sending"] > 0, "some are being sent")
        assert worker.stop() == 0
        counts = refunds.store.counts()
        assert (counts["sending"], counts["in_doubt"]) == (0, 0)
        assert counts["succeeded"] == len(installation.sandbox.effects()) > 0
        assert counts["queued.bulk"] > 0
        installation.start()
        records = installation.settled(refunds, [request.refund_id for request in requests()])
    assert_each_moved_once(installation, records)


def message(task: str, args: list[object], kwargs: dict[str, object], **headers: str) -> bytes:
    """The bytes a producer in any language pushes: Celery's protocol 2, written out."""
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = base64.b64encode(json.dumps([args, kwargs, embed]).encode()).decode()
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "php",
                "task": task,
                "id": "5f0c0f3e",
                "root_id": "5f0c0f3e",
                **headers,
            },
            "properties": {
                "correlation_id": "5f0c0f3e",
                "delivery_mode": 2,
                "delivery_tag": os.urandom(8).hex(),
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": "refunds"},
            },
        }
    ).encode()


def test_the_literal_bytes_of_a_submit_message_become_a_settled_record(
    installation: Installation,
) -> None:
    installation.start()
    fields = {
        "refund_id": "php-1-1",
        "payment_intent": "pi_1",
        "amount": 500,
        "metadata": {"order": "1"},
    }
    with installation.refunds() as refunds:
        refunds.store.redis.lpush(
            "refunds", message("refunds.submit", [], fields, kwargsrepr="php-1-1")
        )
        until(lambda: refunds.store.get("php-1-1") is not None, "the refund is accepted")
        assert refunds.wait("php-1-1", timeout=20).status == "succeeded"
    assert len(installation.sandbox.effects("php-1-1")) == 1


def test_a_flood_of_submit_messages_is_said_and_nothing_is_refused(
    installation: Installation,
) -> None:
    installation.settings |= {"REFUNDS_CONCURRENCY": "4", "REFUNDS_BACKLOG_WARNING": "20"}
    installation.sandbox.set_modes(latency_ms=50)
    ids = [f"php-{number}" for number in range(80)]
    with installation.refunds() as refunds:
        for refund_id in ids:
            fields: dict[str, object] = {
                "refund_id": refund_id,
                "payment_intent": f"pi_{refund_id}",
                "amount": 500,
            }
            refunds.store.redis.lpush(
                "refunds", message("refunds.submit", [], fields, id=refund_id)
            )
        worker = installation.start()
        until(lambda: all(refunds.get_many(ids)), "all are accepted")
        assert_each_moved_once(installation, installation.settled(refunds, ids))
    told = [json.loads(line) for line in worker.said.splitlines() if '"backlog_deep"' in line]
    assert [(line["lane"], line["queued"] > 20) for line in told] == [("refunds", True)]


POISON = {
    "no JSON": b"{not json",
    "no UTF-8": b"\xff\xfe\x00",
    "no message": b'{"hello": "world"}',
    "a list": b"[1, 2]",
    "nested too deeply": b"[" * 100_000,
    "no base64": message("refunds.process", [["x"]], {}).replace(b'"body": "', b'"body": "!!'),
    "no task": message("", [["x"]], {}).replace(b'"task": ""', b'"task": 7'),
    "an unknown task": message("refunds.explode", [["x"]], {}),
    "no ids": message("refunds.process", [{"x": 1}], {}),
    "ids with spaces": message("refunds.process", [["a b"]], {}),
    "no refund": message("refunds.submit", [], {"refund_id": "bad id", "payment_intent": "pi_1"}),
    "an unknown field": message(
        "refunds.submit", [], {"refund_id": "a", "payment_intent": "pi_1", "colour": "red"}
    ),
    "a fraction": message(
        "refunds.submit", [], {"refund_id": "a", "payment_intent": "pi_1", "amount": 5.5}
    ),
}


def test_messages_that_cannot_be_understood_are_kept_and_no_refund_is_lost(
    installation: Installation,
) -> None:
    worker = installation.start("worker", "worker")
    with installation.refunds() as refunds:
        for poison in POISON.values():
            refunds.store.redis.lpush("refunds", poison)
            refunds.store.redis.lpush("refunds.bulk", poison)
        for request in requests(5):
            refunds.submit(request)
        records = installation.settled(refunds, [request.refund_id for request in requests(5)])
        until(
            lambda: refunds.store.redis.llen("refunds:rejected") == 2 * len(POISON),
            "all poison is kept",
        )
        kept = [
            json.loads(entry) for entry in refunds.store.redis.lrange("refunds:rejected", 0, -1)
        ]
    assert_each_moved_once(installation, records)
    assert all(entry["reason"] and entry["at"] > 0 for entry in kept)
    assert worker.process.poll() is None


def test_a_conflicting_submit_message_is_kept_and_changes_nothing(
    installation: Installation,
) -> None:
    installation.start()
    with installation.refunds() as refunds:
        accepted = refunds.submit(requests(1)[0])
        other = {"refund_id": accepted.refund_id, "payment_intent": "pi_other", "amount": 9}
        refunds.store.redis.lpush("refunds", message("refunds.submit", [], other))
        until(lambda: refunds.store.redis.llen("refunds:rejected") == 1, "the message is kept")
        assert refunds.wait(accepted.refund_id, timeout=20).payment_intent == "pi_0"
    assert len(installation.sandbox.effects()) == 1


def test_a_refund_whose_message_could_not_be_sent_is_found_by_the_sweep(
    installation: Installation,
) -> None:
    settings = Settings.load(redis_url=installation.redis_url, broker_url="redis://127.0.0.1:1/0")
    with Refunds(settings=settings) as refunds:
        accepted = refunds.submit(requests(1)[0])
        assert accepted.stage == "queued"
    installation.start()
    with installation.refunds() as refunds:
        assert refunds.wait(accepted.refund_id, timeout=45).status == "succeeded"
    assert len(installation.sandbox.effects()) == 1


def test_many_threads_share_one_door_and_each_refund_is_accepted_once(
    installation: Installation,
) -> None:
    installation.start()
    with installation.refunds() as refunds:
        threads = [
            threading.Thread(target=lambda: [refunds.submit(request) for request in requests(20)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        records = installation.settled(refunds, [request.refund_id for request in requests(20)])
    assert_each_moved_once(installation, records)


def test_a_forked_child_submits_through_the_parents_door(installation: Installation) -> None:
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(requests(1)[0])
        child = os.fork()
        if child == 0:
            accepted = refunds.submit(requests(2)[1]).refund_id == "order-1-1"
            os._exit(0 if accepted else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        records = installation.settled(refunds, ["order-0-1", "order-1-1"])
    assert_each_moved_once(installation, records)


def test_a_worker_whose_provider_differs_from_the_records_own_refuses_to_start(
    installation: Installation,
) -> None:
    installation.start().stop()
    installation.settings["REFUNDS_API_URL"] = "http://127.0.0.1:1"
    refused = installation.start()
    assert refused.process.wait(30) == 6
    assert "these records belong to" in refused.said
    assert "Traceback" not in refused.said


def test_a_worker_without_threads_refuses_to_start(installation: Installation) -> None:
    refused = installation.start("celery", "-A", "worker.app", "worker", "-P", "solo")
    assert refused.process.wait(30) == 2
    assert "-P threads" in refused.said


def test_a_supervised_worker_that_is_killed_is_back_at_once(installation: Installation) -> None:
    worker = installation.start("worker", "worker")
    with installation.refunds() as refunds:
        (name,) = refunds.store.redis.zrange("refunds:workers", 0, -1)
        os.kill(int(str(name).rpartition(":")[2]), signal.SIGKILL)
        until(
            lambda: len(refunds.store.redis.zrange("refunds:workers", 0, -1)) > 1,
            "another one has come",
            10,
        )
        refunds.submit(requests(1)[0])
        assert refunds.wait("order-0-1", timeout=20).status == "succeeded"
    assert worker.stop() == 0
