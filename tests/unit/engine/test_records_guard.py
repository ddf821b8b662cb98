"""A server that may forget what it acknowledges, found while a worker runs.

Nothing more is begun until it is well.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import NOW, TRUST, refund_payload
from tests.unit.engine.shop import ID, POST, Shop, error, events, opened, says
from worker.errors import NotDurable, SettingsError, StoreUnavailable
from worker.model.refund import Lane, Stage

FAULT = "this Redis has no append-only file: set it"
BACK = "given back (Redis may forget it)"


def check_finds(shop: Shop, monkeypatch: pytest.MonkeyPatch, fault: Exception | None) -> None:
    """Let every check of the server end so from now on."""

    async def require_durable() -> None:
        if fault is not None:
            raise fault

    monkeypatch.setattr(shop.store, "require_durable", require_durable)


@pytest.mark.parametrize(
    "fault", [NotDurable(FAULT), SettingsError(FAULT)], ids=["forgets", "may not be read"]
)
async def test_nothing_is_begun_from_a_check_that_fails_to_one_that_succeeds(
    async_redis: redis.asyncio.Redis,
    monkeypatch: pytest.MonkeyPatch,
    log: list[Any],
    fault: Exception,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        check_finds(shop, monkeypatch, fault)
        for _ in range(3):
            await shop.service.guard.check()
        assert shop.service.guard.fault == FAULT
        ended = await shop.service.process([ID], Lane.SINGLE, seconds=30)
        assert list(map(str, ended)) == [BACK]
        refund = await shop.stored()
        assert (refund.stage, refund.next_check_at, shop.provider.asked) == (Stage.QUEUED, NOW, [])
        assert events(log) == ["durability_lost"]
        assert (log[0]["alarm"], log[0]["error"], "exc_info" in log[0]) == (True, FAULT, False)
        check_finds(shop, monkeypatch, None)
        await shop.service.guard.check()
        await shop.service.guard.check()
        assert events(log) == ["durability_lost", "durability_restored"]
        shop.provider.will(POST, says())
        assert await shop.handle() == "succeeded"


async def test_another_reason_is_another_alarm(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        for text in ("no file", "no file", "evicts"):
            check_finds(shop, monkeypatch, NotDurable(text))
            await shop.service.guard.check()
    assert [line["error"] for line in log] == ["no file", "evicts"]


async def test_a_server_that_does_not_answer_changes_nothing(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        for before in (None, FAULT):
            if before is not None:
                shop.service.guard.refused(NotDurable(before))
            check_finds(shop, monkeypatch, StoreUnavailable("away"))
            with pytest.raises(StoreUnavailable):
                await shop.service.guard.check()
            assert shop.service.guard.fault == before
    assert events(log) == ["durability_lost"]


async def test_what_waits_is_given_back_at_once_and_what_is_in_flight_is_saved(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, slots=1) as shop:
        for number in range(2):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
        begun, go = asyncio.Event(), asyncio.Event()

        async def hang(_: httpx.Request) -> httpx.Response:
            begun.set()
            await go.wait()
            return says(200, refund_payload(payment_intent="pi_0", metadata={"refund_id": "r0"}))

        shop.provider.will(POST, hang)
        handled = asyncio.create_task(shop.service.process(["r0", "r1"], Lane.SINGLE, seconds=30))
        await begun.wait()
        waiting = asyncio.create_task(shop.handle("r1"))
        await asyncio.sleep(0)
        shop.service.guard.refused(NotDurable(FAULT))
        assert await asyncio.wait_for(waiting, 5) == BACK
        go.set()
        assert list(map(str, await handled)) == ["succeeded", BACK]
        assert [(await shop.stored(f"r{number}")).stage for number in range(2)] == [
            Stage.SETTLED,
            Stage.QUEUED,
        ]


async def test_no_permit_is_taken_while_nothing_may_begin(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.service.guard.refused(NotDurable(FAULT))
        monkeypatch.setattr(shop.service.gate, "acquire", None)
        monkeypatch.setattr(shop.service.breaker, "wait", None)
        assert await shop.handle() == BACK


async def test_a_claim_that_is_refused_stops_all_others(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        for number in range(2):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
        run = shop.store.run

        async def refusing(call: Any) -> Any:
            if call.script.name == "claim" and call.durable:
                raise NotDurable(FAULT)
            return await run(call)

        shop.store.run = refusing  # type: ignore[method-assign]
        assert await shop.handle("r0") == "not begun (Redis may forget it)"
        assert await shop.handle("r1") == BACK
        assert shop.provider.asked == []
    assert events(log) == ["durability_lost"]


async def test_no_further_try_is_sent(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()

        def fails(_: httpx.Request) -> httpx.Response:
            shop.service.guard.refused(NotDurable(FAULT))
            return error(500, kind="api_error")

        shop.provider.will(POST, fails)
        await shop.handle()
        assert len(shop.provider.asked) == 1
        assert (await shop.stored()).stage is not Stage.SENDING
