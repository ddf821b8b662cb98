"""Whose clock says what: the records' time decides, and a worker's own clock may veto a replay,
never allow one.
"""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, MINUTE, SECOND, TRUST, a_refund
from tests.unit.engine.shop import LIST, PAID, POST, Shop, error, listing, opened, totals
from worker.model.refund import Stage
from worker.model.steps import Action
from worker.rules.attempts import next_action
from worker.store import reads


async def in_doubt(shop: Shop) -> None:
    """A refund whose reply was lost past the lease, so that the attempt had no second try."""
    await shop.accept()
    shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")))
    shop.provider.will(LIST, listing())
    shop.provider.will(PAID, totals(0))
    await shop.handle()
    assert (await shop.stored()).stage is Stage.IN_DOUBT


async def test_forgotten_key_is_not_replayed_by_a_promoted_server_whose_clock_is_behind(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await in_doubt(shop)
        shop.pass_time(25 * HOUR)
        # Another worker was at work until then.
        await shop.store.run(reads.load("another"))
        shop.store.now = shop.now - 3 * HOUR
        await shop.handle()
        assert shop.provider.asked == [POST, LIST, PAID]


@pytest.mark.parametrize(
    ("passed", "skew", "asked"),
    [
        (22 * HOUR, timedelta(0), [POST]),
        # Nobody else saw the time pass: the server's clock is three hours behind, and only this
        # worker knows.
        (22 * HOUR, 3 * HOUR, [LIST, PAID]),
        (25 * HOUR, -10 * HOUR, [LIST, PAID]),
        (22 * HOUR, -10 * HOUR, [POST]),
    ],
)
async def test_workers_own_clock_may_veto_a_replay_and_never_allows_one(
    async_redis: redis.asyncio.Redis, passed: timedelta, skew: timedelta, asked: list[str]
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await in_doubt(shop)
        shop.pass_time(passed)
        shop.skew = skew
        await shop.handle()
        assert shop.provider.asked[1:] == asked


@pytest.mark.parametrize(
    ("skew", "tries"),
    [(timedelta(0), 2), (22 * HOUR, 2), (23 * HOUR - 10 * SECOND, 1), (-30 * HOUR, 2)],
)
async def test_workers_own_clock_may_veto_a_further_try(
    async_redis: redis.asyncio.Redis, skew: timedelta, tries: int
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.skew = skew
        shop.provider.will(POST, httpx.ReadError("reset"), error(400, "card_declined"))
        await shop.handle()
        assert shop.provider.asked == [POST] * tries


def test_doubt_is_replayed_within_the_window_and_not_before_the_first_attempt() -> None:
    refund = a_refund(Stage.IN_DOUBT)
    assert refund.first_attempt_at is not None
    now = refund.first_attempt_at
    due = a_refund(Stage.IN_DOUBT, next_check_at=now - HOUR)
    assert next_action(due, TRUST, now) is Action.REPLAY
    assert next_action(due, TRUST, now, now + 22 * HOUR) is Action.REPLAY
    assert next_action(due, TRUST, now, now + 23 * HOUR) is Action.READ_BACK
    assert next_action(due, TRUST, now, now - 23 * HOUR) is Action.REPLAY
    assert next_action(due, TRUST, now - MINUTE) is Action.READ_BACK
