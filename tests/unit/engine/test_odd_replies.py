"""An odd refund that only the reply to a send showed is read before money moves.

Every POST is counted.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio
from structlog.testing import capture_logs

from tests.factories import BLIND, TRUST, VERIFY, refund_payload
from tests.unit.engine.decided import ODD, insisted
from tests.unit.engine.rereads import OWN, posts
from tests.unit.engine.shop import (
    LIST,
    PAID,
    POST,
    Shop,
    listing,
    opened,
    says,
    totals,
)
from worker.model.refund import Stage
from worker.rules.attempts import Rules, after_lapse
from worker.store import saves


async def lapse(shop: Shop) -> None:
    """Let the lease end, and its doubt be saved, before the reply is there."""
    shop.pass_time(BLIND.lease)
    claimed = await shop.stored()
    step = after_lapse(claimed, BLIND, shop.now, 0)
    assert (await shop.store.run(saves.save(claimed, step))).result == "saved"


@pytest.mark.parametrize("failing", [[], ["hint"]])
async def test_nothing_is_sent_on_a_word_beside_an_odd_one_that_only_a_late_reply_showed(
    async_redis: redis.asyncio.Redis, failing: list[str]
) -> None:
    """Also if Redis is away for a moment when the reply is noted."""
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()

        async def late(_: httpx.Request) -> httpx.Response:
            await lapse(shop)
            shop.store.failing += failing
            return says(200, refund_payload(status="settling"))

        shop.provider.will(POST, late, says(200, refund_payload(id="re_2")))
        shop.provider.will(OWN, says(200, refund_payload(status="settling")))
        await shop.handle()
        assert await shop.handle() == "in review (conflict)"
        await insisted(shop)
        shop.provider.will(OWN, says())
        await shop.handle()
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_1", 1)


async def test_nothing_is_sent_on_a_word_beside_one_without_our_id_that_only_a_late_reply_showed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()

        async def late(_: httpx.Request) -> httpx.Response:
            await lapse(shop)
            return says(200, refund_payload(status="settling", metadata=None))

        shop.provider.will(POST, late, says(200, refund_payload(id="re_2")))
        shop.provider.will(OWN, says(200, refund_payload(metadata=None)))
        await shop.handle()
        await shop.handle()
        await insisted(shop)
        await shop.handle()
        stored = await shop.stored()
        assert (stored.stage, stored.error_code, posts(shop)) == (Stage.REVIEW, "conflict", 1)


@pytest.mark.parametrize("away", [False, True])
async def test_nothing_is_sent_on_a_word_beside_an_odd_one_that_only_the_reply_showed(
    async_redis: redis.asyncio.Redis, *, away: bool
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        if away:
            shop.store.failing.append("hint")
        shop.provider.will(POST, says(200, refund_payload(**ODD)))
        shop.provider.will(OWN, says(200, refund_payload(**ODD)))
        await shop.handle()
        assert await shop.handle() == "in review (conflict)"
        await insisted(shop)
        shop.provider.will(POST, says(200, refund_payload(id="re_2")))
        await shop.handle()
        stored = await shop.stored()
        assert (stored.stage, stored.error_code, posts(shop)) == (Stage.REVIEW, "conflict", 1)


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("rules", [VERIFY, TRUST])
async def test_nothing_is_sent_again_beside_an_odd_one_without_our_id_that_only_the_reply_showed(
    async_redis: redis.asyncio.Redis, rules: Rules, *, is_late: bool
) -> None:
    async with opened(async_redis, rules) as shop:
        await shop.accept()
        odd = refund_payload(metadata=None, **ODD)

        async def reply(_: httpx.Request) -> httpx.Response:
            if is_late:
                shop.pass_time(rules.lease)
                claimed = await shop.stored()
                step = after_lapse(claimed, VERIFY, shop.now, 0)
                assert (await shop.store.run(saves.save(claimed, step))).result == "saved"
            return says(200, odd)

        shop.provider.will(POST, reply, says(200, refund_payload(id="re_2")))
        shop.provider.will(OWN, says(200, odd))
        shop.provider.will(LIST, listing(odd))
        shop.provider.will(PAID, totals(odd["amount"]))
        for _ in range(4):
            await shop.handle()
            shop.pass_time(rules.settle)
        stored = await shop.stored()
        assert (stored.stage, stored.error_code) == (Stage.REVIEW, "prior_contradicts")
        assert posts(shop) == 1


@pytest.mark.parametrize("shown", [{"status": "settling"}, ODD])
async def test_odd_one_in_the_reply_to_a_send_whose_record_is_lost_rings_an_alarm(
    async_redis: redis.asyncio.Redis, shown: dict[str, Any]
) -> None:
    """A restored server has lost the record, and only the log names the refund."""
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()

        async def lost(_: httpx.Request) -> httpx.Response:
            await async_redis.flushdb()
            return says(200, refund_payload(**shown))

        shop.provider.will(POST, lost)
        with capture_logs() as logs:
            await shop.handle()
        told = [each for each in logs if each["event"] == "proof_without_record"]
        assert [(each["provider_refund_id"], each["alarm"]) for each in told] == [("re_1", True)]


async def test_a_doubt_is_saved_although_the_odd_one_that_the_reply_showed_cannot_be_noted(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        await async_redis.set("refunds:hint-times", "of another type")
        shop.provider.will(POST, says(200, refund_payload(**ODD)))
        with capture_logs() as logs:
            assert await shop.handle() == "in review (contradictory_reply)"
        told = [each for each in logs if each["event"] == "save_refused"]
        assert [(each["provider_refund_id"], each["alarm"]) for each in told] == [("re_1", True)]
