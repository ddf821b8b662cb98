"""A server whose memory runs out under a real worker.

Nothing new is accepted, and what was accepted is finished.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.installation import Installation, calls, until
from tests.support.sending import Sent
from worker import Refunds
from worker.broker.names import SUBMIT_TASK
from worker.errors import StoreFull
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.sandbox.config import SandboxConfig
from worker.sandbox.redis_server import ThrowawayServer, running_server

BALLAST = 32 * 2**20
NEARLY = 95
OVER = 101


@pytest.fixture
def redis_server() -> Iterator[ThrowawayServer]:
    """A server of this test alone, with ballast beside which a test's own writes weigh nothing."""
    with running_server() as server, redis.Redis.from_url(server.url) as client:
        client.setrange("ballast", BALLAST, "x")
        yield server


@pytest.fixture
def redis_url(redis_server: ThrowawayServer) -> str:
    return redis_server.url


@contextmanager
def filled(installation: Installation, percentage: float) -> Iterator[None]:
    """Let the server use so much of its limit, until the end of the block."""
    with redis.Redis.from_url(installation.redis_url, decode_responses=True) as client:
        memory: Any = client.info("memory")
        client.config_set("maxmemory", int(memory["used_memory"] * 100 / percentage))
        yield
        client.config_set("maxmemory", 0)


def requests(count: int, start: int = 0) -> list[RefundRequest]:
    return [
        RefundRequest(refund_id=f"order-{number}-1", payment_intent=f"pi_{number}", amount=500)
        for number in range(start, start + count)
    ]


def moved_once(installation: Installation, refunds: Refunds, ids: list[str]) -> None:
    records = installation.settled(refunds, ids)
    assert [record.status for record in records] == ["succeeded"] * len(ids)
    assert sorted(effect["refund_id"] for effect in installation.sandbox.effects()) == sorted(ids)


def test_acceptance_stops_by_itself_and_all_that_was_accepted_settles(
    installation: Installation,
) -> None:
    with redis.Redis.from_url(installation.redis_url, decode_responses=True) as client:
        memory: Any = client.info("memory")
        client.config_set("maxmemory", int((memory["used_memory"] + 2**20) / 0.9))
    with installation.refunds() as refunds:
        with pytest.raises(StoreFull):
            refunds.submit_many(requests(10_000))
        accepted = [*refunds.store.ids_in(["queued.bulk"])]
        assert 100 < len(accepted) < 5_000
        installation.start()
        moved_once(installation, refunds, accepted)


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(idempotency="ignore", latency_ms=4000)])
def test_what_is_in_flight_when_the_memory_ends_is_recorded(installation: Installation) -> None:
    installation.settings |= {
        "REFUNDS_REQUEST_TIMEOUT_SECONDS": "20",
        "REFUNDS_LEASE_SECONDS": "45",
    }
    installation.start()
    ids = [request.refund_id for request in requests(10)]
    with installation.refunds() as refunds:
        refunds.submit_many(requests(10), lane=Lane.SINGLE)
        until(lambda: refunds.store.counts()["sending"] == len(ids), "all are in flight")
        with filled(installation, OVER):
            moved_once(installation, refunds, ids)


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(idempotency="ignore", latency_ms=4000)])
def test_every_outcome_is_recorded_while_others_take_all_of_the_memory(
    installation: Installation,
) -> None:
    installation.settings |= {
        "REFUNDS_REQUEST_TIMEOUT_SECONDS": "20",
        "REFUNDS_LEASE_SECONDS": "45",
        "REFUNDS_CONCURRENCY": "16",
    }
    asked = requests(60)
    with (
        installation.refunds() as refunds,
        redis.Redis.from_url(installation.redis_url, decode_responses=True) as client,
    ):
        # Started first: on a slow machine all were sent before the start was noticed.
        installation.start()
        refunds.submit_many(asked, lane=Lane.BULK)
        until(lambda: refunds.store.counts()["sending"] >= 8, "some are in flight")
        memory: Any = client.info("memory")
        client.config_set("maxmemory", memory["used_memory"] + 2**19)
        filled_to_the_last_byte(client)
        assert refunds.store.counts()["sending"] > 0
        until(lambda: none_in_flight_on_a_full_server(refunds, client), "none is in flight")
        sent = {effect["refund_id"] for effect in installation.sandbox.effects()}
        assert len(sent) >= 8
        # Whatever was sent has its outcome, and the rest waits. Some may still have been begun:
        # the server gives back a little memory of its own now and then.
        expected = ["succeeded" if each.refund_id in sent else "pending" for each in asked]
        records = refunds.get_many([each.refund_id for each in asked])
        assert [record.status for record in records if record] == expected
        client.config_set("maxmemory", 0)
        moved_once(installation, refunds, [each.refund_id for each in asked])


def none_in_flight_on_a_full_server(refunds: Refunds, client: redis.Redis) -> bool:
    filled_to_the_last_byte(client)
    return refunds.store.counts()["sending"] == 0


def filled_to_the_last_byte(client: redis.Redis) -> None:
    """Write until the server takes not even a small value."""
    for size in (2**14, 2**8, 1):
        with contextlib.suppress(redis.OutOfMemoryError):
            while True:
                client.rpush("others", "x" * size)


def test_a_worker_on_a_server_at_its_limit_logs_plain_lines(installation: Installation) -> None:
    worker = installation.start()
    with installation.refunds() as refunds:
        with filled(installation, OVER):
            until(lambda: "background_deferred" in worker.said, "a pass was put off")
            examined = installation.cli("doctor", "--json")
            said = worker.said
        found = {check["name"]: check for check in examined.object["checks"]}
        assert "accepted refunds may wait" in found["memory"]["text"]
        assert not any(
            words in said for words in ("Traceback", "DeprecationWarning", "Frequent restarts")
        )
        refunds.submit_many(requests(3), lane=Lane.SINGLE)
        moved_once(installation, refunds, [each.refund_id for each in requests(3)])


def test_submit_import_and_doctor_say_so_and_go_on_when_there_is_room(
    installation: Installation, tmp_path: Path
) -> None:
    rows = [f"{each.refund_id},{each.payment_intent},{each.amount}" for each in requests(3)]
    file = tmp_path / "refunds.csv"
    file.write_text("\n".join(["refund_id,payment_intent,amount", *rows]))
    installation.start()
    with installation.refunds() as refunds:
        with filled(installation, NEARLY):
            asked = ["submit", "single-1", "--payment-intent", "pi_single", "--amount", "500"]
            for arguments in (asked, ["import", str(file)]):
                ran = installation.cli(*arguments)
                full = "from 90 % on no new refund is accepted" in ran.err
                assert (ran.code, full) == (5, True)
            examined = installation.cli("doctor", "--json")
            found = {check["name"]: check for check in examined.object["checks"]}
            assert (examined.code, found["memory"]["state"]) == (5, "fail")
            assert refunds.store.get("order-0-1") is None
        assert installation.cli("import", str(file)).code == 0
        moved_once(installation, refunds, [each.refund_id for each in requests(3)])


def test_a_raw_message_that_is_read_as_the_memory_ends_is_not_lost(
    installation: Installation,
) -> None:
    worker = installation.start()
    with installation.refunds() as refunds, redis.Redis.from_url(installation.redis_url) as client:
        # An idle worker: its blocking read takes the message before it is noted.
        until(lambda: calls(client, "brpop") > 1, "the worker waits for a message")
        memory: Any = client.info("memory")
        client.config_set("maxmemory", memory["used_memory"] + 2**20)
        with client.pipeline() as pipe:
            # One step, so that the message comes to a server without memory.
            pipe.lpush("refunds", Sent(refund_id="order-0-1").for_redis())
            pipe.setrange("others", 4 * 2**20, "x")
            pipe.execute()
        until(lambda: "submit_put_back" in worker.said, "the message was handled in vain")
        client.config_set("maxmemory", 0)
        held: Any = client.zrange("unacked_index", 0, -1)
        if held:
            # As the visibility timeout has it.
            client.zadd("unacked_index", dict.fromkeys(held, 1))
        moved_once(installation, refunds, ["order-0-1"])


def test_a_raw_message_waits_in_its_queue_until_there_is_room(installation: Installation) -> None:
    worker = installation.start()
    ids = [request.refund_id for request in requests(3)]
    with installation.refunds() as refunds:
        with filled(installation, NEARLY):
            for each in requests(3):
                fields = {
                    "refund_id": each.refund_id,
                    "payment_intent": each.payment_intent,
                    "amount": 500,
                }
                refunds.celery.send_task(SUBMIT_TASK, kwargs=fields, queue="refunds")
            until(
                lambda: all(worker.said.count(f'"{name}"') > 1 for name in ids),
                "each went back twice",
            )
            assert refunds.get_many(ids) == [None] * 3
            assert "submit_put_back" in worker.said
        moved_once(installation, refunds, ids)
        with redis.Redis.from_url(installation.redis_url) as client:
            assert client.exists("refunds:rejected") == 0
