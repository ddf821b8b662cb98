"""Confirms each API key: it must show the account, or something of ours that was shown before."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import VERIFY, a_reply, refund_payload
from tests.unit.engine.shop import (
    ACCOUNT,
    BY_ID,
    GONE,
    PAID,
    POST,
    Shop,
    error,
    in_doubt,
    opened,
    says,
    shown_once,
    totals,
)
from worker.errors import ProviderMismatch, ProviderUnavailable
from worker.model.times import to_ms
from worker.store.flags import key_print


async def settled(shop: Shop, status: str = "succeeded") -> None:
    """A refund that the provider has shown under its own id."""
    await shop.accept()
    shop.provider.will(POST, says(200, refund_payload(status=status)))
    await shop.handle()


async def confirm(shop: Shop, key: str = "sk_test_new") -> list[str]:
    """What is asked of the provider about a key."""
    shop.provider.asked.clear()
    await shop.service.account.confirm(key)
    return shop.provider.asked


async def known(shop: Shop) -> set[str]:
    return set((await shop.meta()).get("key_prints", "").split())


async def test_first_key_is_kept_by_a_print_that_does_not_show_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        shop.provider.will(ACCOUNT, GONE)
        assert await confirm(shop, "sk_test_first") == [ACCOUNT]
        meta = await shop.meta()
        assert await known(shop) == {key_print("sk_test_first", meta["key_salt"])}
        assert "first" not in str(meta)
        assert (len(meta["key_salt"]), meta["account"]) == (32, "")
        # From now on nothing is asked for it.
        assert await confirm(shop, "sk_test_first") == []


@pytest.mark.parametrize("status", ["succeeded", "pending"])
async def test_key_that_was_rotated_within_the_account_is_confirmed_by_a_refund_that_it_shows(
    async_redis: redis.asyncio.Redis, log: list[Any], status: str
) -> None:
    async with opened(async_redis) as shop:
        await settled(shop, status)
        shop.provider.will(ACCOUNT, GONE)
        shop.provider.will(BY_ID, says())
        assert await confirm(shop, "sk_test_old") == [ACCOUNT, BY_ID]
        assert await confirm(shop, "sk_test_new") == [ACCOUNT, BY_ID]
        assert len(await known(shop)) == 2
        assert await confirm(shop, "sk_test_old") == []
    said = [(line["account"], line["first"]) for line in log if line["event"] == "key_confirmed"]
    assert said == [(None, True), (None, False)]


@pytest.mark.parametrize("before", [True, False], ids=["a key is known", "no key is known"])
async def test_key_that_knows_none_of_our_refunds_is_refused(
    async_redis: redis.asyncio.Redis, *, before: bool
) -> None:
    async with opened(async_redis) as shop:
        shop.provider.will(ACCOUNT, GONE)
        if before:
            await confirm(shop, "sk_test_old")
        await settled(shop)
        shop.provider.will(BY_ID, GONE)
        with pytest.raises(
            ProviderMismatch, match=r"none of 1 refunds and payments .*'refunds resume --account'"
        ):
            await confirm(shop)
        assert len(await known(shop)) == int(before)


@pytest.mark.parametrize(
    "answer",
    [error(503), httpx.ReadError("reset"), error(403), says(200, refund_payload(id="re_9"))],
    ids=str,
)
async def test_key_that_the_provider_says_nothing_of_is_not_used_yet(
    async_redis: redis.asyncio.Redis, answer: Any
) -> None:
    async with opened(async_redis) as shop:
        await settled(shop)
        shop.provider.will(ACCOUNT, GONE)
        shop.provider.will(BY_ID, answer)
        with pytest.raises(ProviderUnavailable, match="same account"):
            await confirm(shop)
        assert await known(shop) == set()
        assert "credentials_refused_at" not in await shop.meta()


async def test_key_that_one_of_several_reads_is_refused_is_everyones_alarm(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        with pytest.raises(ProviderUnavailable, match="refuses the key"):
            await shop.service.account._judge([("re_1", a_reply(503)), ("re_2", a_reply(401))])
        assert "credentials_refused_at" in await shop.meta()


async def test_unknown_key_that_the_provider_refuses_is_everyones_alarm(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await settled(shop)
        shop.provider.will(ACCOUNT, error(401))
        shop.provider.will(BY_ID, error(401))
        with pytest.raises(ProviderUnavailable, match="refuses the key"):
            await confirm(shop)
        assert "credentials_refused_at" in await shop.meta()


@pytest.mark.parametrize(("paid", "confirmed"), [(totals(0), True), (GONE, False)])
async def test_new_key_must_show_the_payment_of_a_refund_in_doubt(
    async_redis: redis.asyncio.Redis, paid: httpx.Response, *, confirmed: bool
) -> None:
    async with opened(async_redis) as shop:
        shop.provider.will(ACCOUNT, GONE)
        await confirm(shop, "sk_test_old")
        await in_doubt(shop)
        shop.provider.will(PAID, paid)
        if confirmed:
            assert await confirm(shop) == [ACCOUNT, PAID]
        else:
            with pytest.raises(ProviderMismatch):
                await confirm(shop)
        assert len(await known(shop)) == (2 if confirmed else 1)


async def test_first_key_need_not_show_a_payment_that_was_never_shown(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(ACCOUNT, GONE)
        assert await confirm(shop) == [ACCOUNT]


@pytest.mark.parametrize(("paid", "confirmed"), [(totals(0), True), (GONE, False)])
async def test_first_key_must_show_a_payment_that_was_shown_before(
    async_redis: redis.asyncio.Redis, paid: httpx.Response, *, confirmed: bool
) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        shop.provider.will(ACCOUNT, GONE)
        shop.provider.will(PAID, paid)
        if confirmed:
            assert await confirm(shop) == [ACCOUNT, PAID]
        else:
            with pytest.raises(ProviderMismatch):
                await confirm(shop)


async def test_one_thing_that_is_shown_outweighs_what_is_missing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        shop.provider.will(POST, says(200, refund_payload(metadata={}, payment_intent="pi_2")))
        await shop.accept("b", payment_intent="pi_2")
        await shop.handle("b")
        shop.provider.will(ACCOUNT, GONE)
        shop.provider.will(BY_ID, GONE)
        shop.provider.will(PAID, totals(0))
        assert await confirm(shop) == [ACCOUNT, BY_ID, PAID]
        assert len(await known(shop)) == 1
        # A refund that is shown is enough.
        shop.provider.will(BY_ID, says())
        assert await confirm(shop, "sk_test_another") == [ACCOUNT, BY_ID]


async def test_key_is_refused_only_if_everything_is_missing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await settled(shop)
        shop.provider.will(
            POST, says(200, refund_payload(id="re_2", metadata={}, payment_intent="pi_2"))
        )
        await shop.accept("b", payment_intent="pi_2")
        await shop.handle("b")
        shop.provider.will(ACCOUNT, GONE)
        shop.provider.will(BY_ID, GONE)
        shop.provider.will("GET /v1/refunds/re_2", error(503))
        with pytest.raises(ProviderUnavailable, match="same account"):
            await confirm(shop)
        shop.provider.will("GET /v1/refunds/re_2", GONE)
        with pytest.raises(ProviderMismatch, match="none of 2 refunds"):
            await confirm(shop)


def acct(identity: str, kind: str = "account") -> httpx.Response:
    return says(200, {"id": identity, "object": kind})


async def test_account_that_the_provider_shows_decides_alone(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await settled(shop)
        shop.provider.will(ACCOUNT, acct("acct_1"))
        shop.provider.will(BY_ID, says())
        assert await confirm(shop, "sk_test_old") == [ACCOUNT, BY_ID]
        assert await confirm(shop, "sk_test_new") == [ACCOUNT]
        assert len(await known(shop)) == 2
        shop.provider.will(ACCOUNT, acct("acct_2"))
        with pytest.raises(ProviderMismatch, match="account acct_1, and the key belongs to acct_2"):
            await confirm(shop, "sk_test_third")
        # Shown no more, or as something else: then what the key can see decides.
        for answer in (GONE, acct("acct_2", "customer"), says(200, {"object": "account"})):
            shop.provider.will(ACCOUNT, answer)
            shop.provider.will(BY_ID, GONE)
            with pytest.raises(ProviderMismatch, match="these records know"):
                await confirm(shop, "sk_test_third")
        assert (await shop.meta())["account"] == "acct_1"


async def test_key_that_a_person_vouches_for_is_believed_once(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await settled(shop)
        await async_redis.hset("refunds:meta", "account_vouched", to_ms(shop.now))
        shop.provider.will(ACCOUNT, acct("acct_2"))
        assert await confirm(shop) == [ACCOUNT]
        assert "account_vouched" not in await shop.meta()
        shop.provider.will(ACCOUNT, GONE)
        shop.provider.will(BY_ID, GONE)
        with pytest.raises(ProviderMismatch):
            await confirm(shop, "sk_test_third")


async def test_every_key_is_confirmed_again_after_a_payment_was_missing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        shop.provider.will(ACCOUNT, GONE)
        await confirm(shop, "sk_test_wrong")
        await shown_once(shop)
        shop.provider.will(PAID, GONE)
        shop.pass_time(VERIFY.settle)
        await shop.handle()
        with pytest.raises(ProviderMismatch):
            await confirm(shop, "sk_test_wrong")
        shop.provider.will(PAID, totals(0))
        assert await confirm(shop, "sk_test_right") == [ACCOUNT, PAID]
