"""Several of a record's earlier provider refunds moved money after all: each is told once."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio

from tests.factories import refund_payload
from tests.unit.engine.rereads import OWN, RETRIED, retried_and_refused, retry
from tests.unit.engine.shop import ID, POST, Shop, error, events, opened, says
from worker.model.refund import Refund, Status
from worker.rules import decisions
from worker.store import saves


async def failed_twice_then(shop: Shop, own: str | None) -> Refund:
    """A refund whose second retry failed or succeeded, after two provider refunds that failed."""
    await retried_and_refused(shop, "failed")
    await shop.store.redis.delete("refunds:rechecks")
    await retry(shop)
    metadata = {"refund_id": ID, "refund_generation": "3"}
    made = says(200, refund_payload(id="re_3", metadata=metadata))
    shop.provider.will(POST, error(402) if own is None else made)
    shop.provider.will("GET /v1/refunds/re_3", made)
    await shop.handle()
    for path, name in ((OWN, "re_1"), (RETRIED, "re_2")):
        shop.provider.will(path, says(200, refund_payload(id=name)))
    refund = await shop.stored()
    assert (refund.status, refund.prior_refund_ids) == (own or "failed", "re_1 re_2")
    return refund


async def reread(shop: Shop, log: list[Any]) -> int:
    """Let the refund be read again; how often somebody was told."""
    log.clear()
    await shop.store.redis.zadd("refunds:rechecks", {ID: 1})
    await shop.handle()
    return events(log, alarm=True).count("refund_needs_attention")


@pytest.mark.parametrize("own", [None, "succeeded"])
async def test_each_of_two_earlier_refunds_that_moved_money_is_told_once(
    async_redis: redis.asyncio.Redis, log: list[Any], own: str | None
) -> None:
    async with opened(async_redis) as shop:
        await failed_twice_then(shop, own)
        assert await reread(shop, log) == 2
        told = await shop.stored()
        assert (told.contradicted_by, told.ids_set_aside) == ("re_1", ("re_2",))
        assert [await reread(shop, log) for _ in range(3)] == [0, 0, 0]
        assert await shop.stored() == told


@pytest.mark.parametrize(("named", "other"), [("re_1", "re_2"), ("re_2", "re_1")])
async def test_person_may_name_either_of_them_and_the_other_is_kept(
    async_redis: redis.asyncio.Redis, log: list[Any], named: str, other: str
) -> None:
    async with opened(async_redis) as shop:
        await failed_twice_then(shop, None)
        await reread(shop, log)
        refund = await shop.stored()
        step = decisions.resolve_succeeded(refund, named, shop.now, by="ann")
        assert (await shop.store.run(saves.save(refund, step))).result == "saved"
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, named)
        assert (refund.contradicted_by, refund.ids_set_aside) == (None, (other,))
        assert await reread(shop, log) == 0
