"""A claim whose reply was lost, or that is not known to be on disk.

Nothing was sent under it, so it is no doubt.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, SECOND, TRUST, VERIFY
from tests.unit.engine.shop import BY_ID, ID, LIST, PAID, POST, Shop, listing, opened, says, totals
from worker.engine import recorder
from worker.errors import NotDurable, StoreUnavailable, TooFewReplicas
from worker.model.refund import Stage, Status
from worker.store import commands, scripts

PAUSES = recorder._LET_GO_PAUSES
NOT_SENT = "its claim was not known to be on disk"


def lose(shop: Shop, *, finds: int = 0, error: type[Exception] = StoreUnavailable) -> list[str]:
    """Lose the reply to the next claim that is made, and then to so many questions about it.

    What was asked since.
    """
    asked: list[str] = []
    run = shop.store.run
    to_lose = [True]

    async def losing(call: Any) -> Any:
        nonlocal finds
        reply = await run(call)
        if call.script is scripts.CLAIM and call.durable and to_lose and reply.claimed:
            to_lose.clear()
            raise error("the reply was lost")
        if not to_lose:
            asked.append(f"{call.script.name} {'durable' if call.durable else ''}".strip())
            if call.script is scripts.CLAIM and not call.durable and finds:
                finds -= 1
                raise StoreUnavailable("redis is away")
        return reply

    shop.store.run = losing  # type: ignore[method-assign]
    return asked


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.recorder._LET_GO_PAUSES", (0.0, 0.0))


async def labels(shop: Shop) -> list[str]:
    return [move["label"] for move in await shop.history()]


async def sent_in_the_end(shop: Shop) -> None:
    """It is sent, once, when its time has come, and was never in doubt."""
    shop.provider.will(POST, says())
    shop.pass_time(HOUR)
    assert await shop.handle() == "succeeded"
    assert shop.provider.asked == [POST]
    assert await labels(shop) == ["accepted", "send", "not_sent", "send", "succeeded"]


async def test_a_claim_whose_reply_was_lost_is_let_go(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        asked = lose(shop)
        assert await shop.handle() == "not known (Redis away)"
        refund = await shop.stored()
        assert (refund.stage, refund.status, refund.doubt_since) == (
            Stage.WAITING,
            Status.PENDING,
            None,
        )
        assert (refund.error_code, refund.error_message, refund.verdicts) == (
            "not_sent",
            NOT_SENT,
            0,
        )
        assert refund.next_check_at is not None
        assert refund.next_check_at > shop.now
        last = (await shop.history())[-1]
        assert (last["attempt"], last["seen"]) == (1, "not_sent")
        assert asked == ["claim", "save"]
        await sent_in_the_end(shop)
    assert [line["refund_id"] for line in log if line["event"] == "claim_let_go"] == [ID]
    assert [
        (line["attempt"], line["seen"]) for line in log if line["event"] == "refund_waiting"
    ] == [(1, "not_sent")]


async def test_a_claim_that_the_server_cannot_confirm_is_let_go(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        lose(shop, error=NotDurable)
        assert await shop.handle() == "not begun (Redis may forget it)"
        assert (await shop.stored()).stage is Stage.WAITING
        await shop.service.guard.check()
        await sent_in_the_end(shop)


@pytest.mark.usefixtures("waitaof")
async def test_a_claim_that_is_not_on_disk_in_time_is_let_go(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        await shop.store.load_scripts(scripts.EVERY)
        shop.store.wait_for_disk = True
        with monkeypatch.context() as disk:
            check = shop.store.check_disk
            disk.setattr(shop.store, "check_disk", lambda _: check([0, 0]))
            assert await shop.handle() == "not known (Redis away)"
        assert (await shop.stored()).stage is Stage.WAITING
        await sent_in_the_end(shop)


async def test_a_claim_that_too_few_replicas_have_is_let_go_and_none_follows(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "WAIT_MS", 10)
    async with opened(async_redis) as shop:
        await shop.accept()
        await shop.store.load_scripts(scripts.EVERY)
        shop.store.replicas = 1
        assert await shop.handle() == "not begun (Redis may forget it)"
        assert (await shop.stored()).stage is Stage.WAITING
        await shop.service.guard.check()
        assert shop.service.guard.refuses()
        with pytest.raises(TooFewReplicas):
            shop.service.guard.require()
        shop.store.replicas = 0
        await shop.service.guard.check()
        await sent_in_the_end(shop)


async def test_a_claim_that_never_arrived_is_not_made(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        before = await shop.stored()
        shop.store.failing = ["claim"]
        assert await shop.handle() == "not known (Redis away)"
        assert shop.store.asked[-2:] == ["claim", "claim"]
        assert await shop.stored() == before


async def test_that_nothing_was_sent_is_saved_however_often_redis_is_away(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        lose(shop)
        shop.store.failing = ["save"]
        await shop.handle()
        assert (await shop.stored()).stage is Stage.WAITING


async def test_the_pauses_between_its_questions_grow(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.recorder._LET_GO_PAUSES", PAUSES)
    pauses: list[float] = []
    sleep, here = asyncio.sleep, threading.get_ident()

    async def noted(seconds: float) -> None:
        if threading.get_ident() != here:
            # A loop of another thread, such as a sandbox's, sleeps as ever.
            await sleep(seconds)
        else:
            pauses.append(seconds)

    async with opened(async_redis) as shop:
        await shop.accept()
        lose(shop, finds=len(PAUSES) + 1)
        with monkeypatch.context() as patched:
            patched.setattr("worker.engine.recorder.asyncio.sleep", noted)
            await shop.handle()
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6]
        assert (await shop.stored()).stage is Stage.SENDING


@pytest.mark.parametrize(("finds", "stage"), [(2, Stage.WAITING), (3, Stage.SENDING)])
async def test_it_is_asked_about_again_for_a_while(
    async_redis: redis.asyncio.Redis, finds: int, stage: Stage
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        asked = lose(shop, finds=finds)
        await shop.handle()
        assert (await shop.stored()).stage is stage
        assert asked.count("claim") == 3


async def test_a_worker_that_ends_asks_once(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        asked = lose(shop, finds=1)
        run = shop.store.run

        async def ending(call: Any) -> Any:
            try:
                return await run(call)
            except StoreUnavailable:
                shop.service.stop()
                raise

        shop.store.run = ending  # type: ignore[method-assign]
        await shop.handle()
        assert (asked, (await shop.stored()).stage) == (["claim"], Stage.SENDING)


async def test_a_replay_that_did_not_leave_changes_nothing_of_its_doubt(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.handle()
        doubt = await shop.stored()
        tries = len(shop.provider.asked)
        shop.pass_time(HOUR)
        lose(shop)
        await shop.handle()
        after = await shop.stored()
        assert (after.stage, after.doubt_since) == (Stage.IN_DOUBT, doubt.doubt_since)
        assert len(shop.provider.asked) == tries
        shop.provider.will(POST, says())
        # The reply may be that of the first send, two hours ago.
        shop.provider.will(BY_ID, says())
        shop.pass_time(HOUR)
        await shop.handle()
        assert await shop.handle() in {"succeeded", "stage"}
        assert (await shop.stored()).status is Status.SUCCEEDED
        assert shop.provider.asked.count(POST) == tries + 1


async def test_a_resend_that_did_not_leave_is_sent_later_without_a_doubt(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("reset"), says())
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await shop.handle()
        shop.pass_time(HOUR)
        await shop.handle()
        shop.pass_time(HOUR)
        lose(shop)
        await shop.handle()
        after = await shop.stored()
        assert (after.stage, after.doubt_since, after.doubted) == (Stage.WAITING, None, True)
        assert shop.provider.asked.count(POST) == 1
        shop.pass_time(HOUR)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked.count(POST) == 2


async def test_a_claim_that_somebody_else_has_ended_is_left(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        asked = lose(shop, finds=1)
        run = shop.store.run

        async def lapsing(call: Any) -> Any:
            try:
                return await run(call)
            except StoreUnavailable:
                if asked:
                    shop.pass_time(shop.rules.lease + SECOND)
                raise

        shop.store.run = lapsing  # type: ignore[method-assign]
        await shop.handle()
        assert asked == ["claim", "claim"]
        assert (await shop.stored()).stage is Stage.SENDING
