"""Callbacks from the records to a receiver at a real socket: what arrives, and when."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import structlog
from aiohttp import web

from tests.factories import BLIND, HOUR, MAYBE, REFUSED, SECOND, done_as
from tests.support.callback_desk import (
    fail_at_provider,
    receiving,
    settle,
    working,
)
from tests.support.store_world import ID
from worker.batches.opening import close_batch, open_batch
from worker.callbacks.delivery import (
    SPARE,
)
from worker.model.times import to_ms
from worker.rules.decisions import retry_failed
from worker.store import callbacks


async def test_settled_refund_arrives_signed_with_the_contracts_fields() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk, metadata={"order": "7"})
        await desk.deliver()
        (body,) = shop.bodies
        refund = desk.world.get()
        assert body["type"] == "refund.succeeded"
        assert body["data"] == refund.as_dict() | {"previous_status": "pending"}
        assert body["timestamp"] == refund.as_dict()["updated_at"]
        raw, headers = shop.raw[0]
        assert headers["content-type"] == "application/json"
        assert "cookie" not in headers
        assert raw.decode() == json.dumps(body, separators=(",", ":"))
        assert headers["webhook-id"].startswith("msg_")
        assert desk.world.keys("callbacks*") == []


@pytest.mark.parametrize("event", ["refund.failed", "refund.in_review", "refund.reversed"])
async def test_event_names_the_state_of_the_refund(event: str) -> None:
    async with receiving() as shop, working(shop.endpoint(metadata=False)) as desk:
        if event == "refund.failed":
            desk.world.accept()
            desk.world.attempt(REFUSED)
        elif event == "refund.in_review":
            desk.world.accept()
            desk.world.attempt(MAYBE, rules=BLIND)
        else:
            settle(desk)
            fail_at_provider(desk)
        await desk.deliver()
        (body,) = shop.bodies
        assert body["type"] == event
        assert "metadata" not in body["data"]
        assert body["data"]["previous_status"] == (
            "succeeded" if event == "refund.reversed" else "pending"
        )


async def test_finished_batch_arrives_with_its_counts() -> None:
    async with (
        receiving() as shop,
        working(shop.endpoint(events=frozenset({"batch.finished"}))) as desk,
    ):
        open_batch(desk.world.store, "b-1", file="season.csv", digest="d1", rows=1)
        desk.world.accept("r1", batch="b-1")
        close_batch(desk.world.store, "b-1", handed_in=1, conflicting=0)
        desk.world.attempt(REFUSED, "r1")
        await desk.deliver()
        (body,) = shop.bodies
        assert body["type"] == "batch.finished"
        assert (body["data"]["batch_id"], body["data"]["version"]) == ("b-1", 1)
        assert body["data"]["statuses"] == {"failed": 1}
        assert desk.world.keys("callbacks*") == []


async def test_event_that_is_not_wanted_is_not_sent_and_is_over() -> None:
    async with (
        receiving() as shop,
        working(shop.endpoint(events=frozenset({"refund.failed"}))) as desk,
    ):
        settle(desk)
        await desk.deliver()
        assert shop.bodies == []
        assert desk.world.keys("callbacks*") == []
        fail_at_provider(desk)
        await desk.deliver()
        assert shop.bodies == []


async def test_refund_that_waits_but_is_not_for_the_endpoint_is_not_sent_and_is_over() -> None:
    async with receiving() as shop, working(shop.endpoint(ids="other-")) as desk:
        settle(desk)
        assert desk.world.store.run(callbacks.replay("shop", [ID])) == 1
        await desk.deliver()
        assert shop.bodies == []
        assert desk.world.keys("callbacks*") == []


async def test_record_that_has_expired_is_not_reported_and_is_over() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.world.redis.delete(f"refunds:refund:{ID}")
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
        assert (shop.bodies, logs) == ([], [])
        assert desk.world.keys("callbacks*") == []


async def test_refund_and_batch_under_way_again_are_reported_only_once_they_end() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        open_batch(desk.world.store, "b-1", file="season.csv", digest="d1", rows=1)
        desk.world.accept(batch="b-1")
        close_batch(desk.world.store, "b-1", handed_in=1, conflicting=0)
        desk.world.attempt(done_as("failed", id="re_1"))
        again = retry_failed(desk.world.get())
        assert again is not None
        desk.world.save(desk.world.get(), again)
        assert sorted((await desk.deliver())["shop"]) == ["batch/b-1", ID]
        assert shop.bodies == []
        assert desk.world.keys("callbacks*") == []
        desk.world.attempt(done_as("succeeded", id="re_2"))
        await desk.deliver()
        assert sorted(body["type"] for body in shop.bodies) == [
            "batch.finished",
            "refund.succeeded",
        ]


async def test_crash_between_the_post_and_its_note_sends_again_with_the_same_id() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.store.lost = 1
        await desk.deliver()
        assert await desk.deliver() == {}
        desk.world.pass_time(5 * SECOND + SPARE)
        await desk.deliver()
        assert len(shop.ids) == 2
        assert shop.ids[0] == shop.ids[1]
        assert shop.raw[0][0] == shop.raw[1][0]
        assert desk.world.keys("callbacks*") == []


async def test_later_version_has_another_id_and_a_higher_version() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        await desk.deliver()
        fail_at_provider(desk)
        await desk.deliver()
        assert shop.ids[0] != shop.ids[1]
        versions = [body["data"]["version"] for body in shop.bodies]
        assert versions == sorted(set(versions))


async def test_same_version_of_a_restored_record_has_another_id() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        await desk.deliver()
        # The server was restored to before the end, and the refund ended in as many moves, later.
        later = to_ms(desk.world.get().updated_at + HOUR)
        desk.world.redis.hset(f"refunds:refund:{ID}", "updated_at", later)
        desk.world.store.run(callbacks.replay("shop", [ID]))
        await desk.deliver()
        first, second = (body["data"] for body in shop.bodies)
        assert first["version"] == second["version"]
        assert first["updated_at"] < second["updated_at"]
        assert shop.ids[0] != shop.ids[1]


async def test_record_that_is_restored_during_a_try_is_sent_as_it_ends_then() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)

        async def restored(_request: web.Request) -> web.StreamResponse:
            # To before the end; and the refund ends in as many moves, later, before the answer.
            later = to_ms(desk.world.get().updated_at + HOUR)
            desk.world.redis.hset(f"refunds:refund:{ID}", "updated_at", later)
            desk.world.redis.delete("refunds:callback-tries:shop")
            desk.world.store.run(callbacks.replay("shop", [ID]))
            return web.Response()

        shop.answers.append(restored)
        await desk.deliver()
        assert await desk.deliver() == {"shop": [ID]}
        assert shop.bodies[0]["data"]["updated_at"] < shop.bodies[1]["data"]["updated_at"]
        assert await desk.deliver() == {}


async def test_try_is_held_until_its_answer_may_no_longer_come() -> None:
    async with receiving() as shop, working(shop.endpoint(timeout_seconds=7)) as desk:
        settle(desk)
        desk.store.lost = 1
        await desk.deliver()
        assert desk.world.score("callbacks:shop", ID) == desk.world.now + 7 * SECOND + SPARE


@pytest.mark.parametrize(("late", "sent"), [(timedelta(0), 1), (timedelta(milliseconds=1), 0)])
async def test_request_begins_in_its_lease_only_if_its_answer_comes_in_it_too(
    monkeypatch: pytest.MonkeyPatch, late: timedelta, sent: int
) -> None:
    moments = iter((0.0, (SPARE + late).total_seconds()))
    clock = SimpleNamespace(monotonic=lambda: next(moments), time=time.time)
    monkeypatch.setattr("worker.callbacks.delivery.time", clock)
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        await desk.deliver()
        assert len(shop.bodies) == sent
        assert (desk.world.score("callbacks:shop", ID) is None) is bool(sent)


async def test_try_of_another_worker_is_left_alone() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.world.store.run(callbacks.outbox([callbacks.Wanted(name="shop", ids="", most=1)]))
        # The only one that is sent to an endpoint that keeps failing.
        desk.world.redis.hset(
            "refunds:callback-endpoint:shop",
            mapping={"failures": callbacks.OPEN_FROM, "probe": ID, "probe_at": 1},
        )
        taken = callbacks.take("shop", ID, token="other", lease=HOUR)
        assert desk.world.store.run(taken).result == "taken"
        before = desk.world.hash("callback-endpoint:shop")
        desk.store.now = desk.world.now
        desk.sender.accept("shop", [ID])
        await desk.sender.idle()
        assert shop.bodies == []
        assert desk.world.hash("callback-endpoint:shop") == before


async def test_endpoint_without_work_hides_no_other_that_is_at_work() -> None:
    async with receiving() as shop:
        idle_one = shop.endpoint("idle", ids="other-")
        async with working(shop.endpoint(), idle_one) as desk:
            settle(desk)
            await desk.deliver()
            assert len(shop.bodies) == 1
            assert desk.world.keys("callbacks:shop") == []


async def test_slow_shop_delays_no_other() -> None:
    freed = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await freed.wait()
        return web.Response()

    async with receiving() as stuck, receiving() as quick:
        stuck.answers = [slow] * 30
        stuck_at, quick_at = stuck.endpoint("stuck", in_flight=2), quick.endpoint("quick")
        async with working(stuck_at, quick_at) as desk:
            for number in range(30):
                settle(desk, f"r{number}")
            await desk.sweep()
            await quick.until(30)
            await stuck.until(2)
            # Two slots, and no more than two requests.
            assert len(stuck.bodies) == 2
            freed.set()
            await desk.sender.idle()
            assert len(stuck.bodies) == 30
