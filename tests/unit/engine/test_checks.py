"""What must be known of a payment before anything is sent, and what becomes of a refund while it is
not.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, MINUTE, NOW, PAYMENT, SECOND, TRUST, VERIFY, refund_payload
from tests.unit.engine.rereads import NAMED, hint
from tests.unit.engine.shop import (
    BY_ID,
    ID,
    LIST,
    PAID,
    POST,
    PROBE,
    TOTALS,
    Shop,
    error,
    events,
    listing,
    opened,
    says,
    totals,
)
from worker.model.refund import Stage, Status
from worker.rules import decisions
from worker.rules.attempts import Rules
from worker.store import saves

CHARGE = "GET /v1/charges/ch_1"
UNCONFIRMED = {
    "forbidden": error(403),
    "missing": error(404, "resource_missing"),
    "refused": error(400),
    "conflict": error(409, "lock_timeout"),
    "no object": httpx.Response(200, text="<html>"),
    "no currency": totals(0, currency=None),
    "another payment": totals(0, id="pi_other"),
    "no id": totals(0, id=None),
    "contradicted by its charge": says(
        200,
        {
            "id": PAYMENT,
            "currency": "usd",
            "latest_charge": {"currency": "jpy", "amount_refunded": 0},
        },
    ),
    "contradicted by its charge, which shows no total": says(
        200, {"id": PAYMENT, "currency": "usd", "latest_charge": {"currency": "jpy"}}
    ),
    "contradicted by one of several charges": says(
        200,
        {
            "id": PAYMENT,
            "currency": "usd",
            "charges": {"data": [{"currency": "usd"}, {"currency": "jpy"}]},
        },
    ),
    "contradicted by the charge it names": says(
        200, {"id": PAYMENT, "currency": "usd", "latest_charge": "ch_1"}
    ),
}


async def handle_for(shop: Shop, span: timedelta, step: timedelta = MINUTE) -> None:
    """Nudge for the refund every so often, for so long."""
    for _ in range(span // step):
        await shop.handle()
        shop.pass_time(step)


async def decide(shop: Shop) -> None:
    """A person wants it to be sent."""
    await shop.store.run(
        saves.save(await shop.stored(), decisions.resolve_resend(await shop.stored()))
    )


def asked(shop: Shop, what: str) -> int:
    return shop.provider.asked.count(what)


@pytest.mark.parametrize("rules", [VERIFY, TOTALS, TRUST], ids=["list", "totals", "trust"])
@pytest.mark.parametrize("shown", UNCONFIRMED)
async def test_currency_that_the_payment_does_not_confirm_is_not_sent_and_goes_to_a_person(
    async_redis: redis.asyncio.Redis, log: list[Any], shown: str, rules: Rules
) -> None:
    async with opened(async_redis, rules) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, UNCONFIRMED[shown])
        shop.provider.will(
            CHARGE, says(200, {"id": "ch_1", "payment_intent": PAYMENT, "currency": "jpy"})
        )
        shop.provider.will(PROBE, error(404))
        shop.provider.will(POST, says())
        await handle_for(shop, HOUR)
        waiting = await shop.stored()
        assert (waiting.stage, waiting.error_code, waiting.attempts) == (
            Stage.QUEUED,
            "currency_unconfirmed",
            0,
        )
        assert waiting.error_message is not None
        assert "usd" in waiting.error_message
        await handle_for(shop, 15 * MINUTE)
        refund = await shop.stored()
        assert (refund.stage, refund.status, refund.error_code) == (
            Stage.REVIEW,
            Status.PENDING,
            "currency_unconfirmed",
        )
        last = (await shop.history())[-1]
        assert (last["from"], last["to"], last["label"]) == (
            "queued",
            "review",
            "currency_unconfirmed",
        )
        assert last["alarm"] == refund.error_message
        assert asked(shop, POST) == 0
    assert events(log, refund_id=ID).count("refund_needs_attention") == 1


async def test_person_who_wants_an_unconfirmed_refund_sent_cannot_have_it_sent_unchecked(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, error(404, "resource_missing"))
        shop.provider.will(POST, says())
        await handle_for(shop, 2 * HOUR)
        await decide(shop)
        await shop.handle()
        assert ((await shop.stored()).stage, asked(shop, POST)) == (Stage.REVIEW, 0)
        assert [entry["to"] for entry in await shop.history()] == [
            "queued",
            "review",
            "waiting",
            "review",
        ]
        shop.provider.will(PAID, totals(0))
        await decide(shop)
        await shop.handle()
        assert ((await shop.stored()).status, asked(shop, POST)) == (Status.SUCCEEDED, 1)


@pytest.mark.parametrize(
    "answer", [error(503, kind="api_error"), error(429), httpx.ConnectError("refused")], ids=str
)
async def test_payment_that_nobody_answers_for_leaves_a_stated_currency_waiting_however_long(
    async_redis: redis.asyncio.Redis, answer: Any
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, answer)
        shop.provider.will("GET /v1/refunds/re_credentials_probe", error(404))
        for _ in range(6):
            await shop.handle()
            shop.service.breaker.answered()
            shop.pass_time(HOUR)
        refund = await shop.stored()
        assert (refund.stage, refund.unconfirmed_since, asked(shop, POST)) == (
            Stage.QUEUED,
            None,
            0,
        )
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says())
        await shop.handle()
        assert (await shop.stored()).status is Status.SUCCEEDED


async def test_payment_that_is_forbidden_to_a_refused_key_stops_everyone_and_is_nobodys_doubt(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, error(403))
        shop.provider.will(PROBE, error(403))
        await shop.handle()
        assert "credentials_refused_at" in await shop.meta()
        assert (await shop.stored()).unconfirmed_since is None


async def test_confirmed_currency_is_asked_for_once_for_all_attempts(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(429), says())
        await shop.handle()
        shop.pass_time(HOUR)
        await shop.handle()
        assert shop.provider.asked == [PAID, POST, POST]


async def recovered(shop: Shop) -> None:
    """A refund that states a currency, on a server that was restored from a snapshot of an hour
    ago.
    """
    await shop.accept(currency="usd")
    step = decisions.recovered(await shop.stored(), NOW - HOUR, NOW)
    assert step is not None
    await shop.store.run(saves.save(await shop.stored(), step))
    await shop.set(server_errors="0")


@pytest.mark.parametrize("rules", [VERIFY, TRUST], ids=["resend", "replay"])
@pytest.mark.parametrize(
    ("shown", "stage", "sent"),
    [
        (totals(0), "settled", 1),
        (totals(0, currency=None), "in_doubt", 0),
        (totals(0, currency="jpy"), "review", 0),
        (error(503), "in_doubt", 0),
    ],
    ids=["confirmed", "unconfirmed", "another", "unreadable"],
)
async def test_refund_that_may_have_been_sent_is_not_sent_again_in_an_unconfirmed_currency(
    async_redis: redis.asyncio.Redis, rules: Rules, shown: httpx.Response, stage: str, sent: int
) -> None:
    async with opened(async_redis, rules) as shop:
        await recovered(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, shown)
        shop.provider.will(POST, says())
        shop.provider.will(BY_ID, says())
        shop.pass_time(HOUR)
        await shop.handle()
        shop.pass_time(10 * MINUTE)
        await shop.handle()
        assert ((await shop.stored()).stage.value, asked(shop, POST)) == (stage, sent)


async def test_unconfirmed_currency_of_a_doubt_goes_to_a_person_after_an_hour(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await recovered(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0, currency=None))
        await handle_for(shop, 2 * HOUR)
        refund = await shop.stored()
        assert (refund.stage, refund.error_code, refund.doubted) == (
            Stage.REVIEW,
            "currency_unconfirmed",
            True,
        )


async def test_doubt_that_is_found_needs_no_currency_to_be_confirmed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await recovered(shop)
        shop.provider.will(LIST, listing(refund_payload()))
        await shop.handle()
        assert (shop.provider.asked, (await shop.stored()).status) == ([LIST], Status.SUCCEEDED)


@pytest.mark.parametrize(
    ("answer", "ending", "reason", "code"),
    [
        (totals(0, currency=None), "queued (currency not confirmed)", "currency_unconfirmed", None),
        (error(404, "gone"), "queued (currency not confirmed)", "currency_unconfirmed", "gone"),
        (error(503, "broken"), "queued (payment unreadable)", "broken", "broken"),
        (error(401), "queued (key refused)", "credentials_refused", "credentials_refused"),
        (totals(0, currency="eur"), "failed (currency_mismatch)", None, None),
    ],
)
async def test_refund_that_is_kept_back_says_why(
    async_redis: redis.asyncio.Redis,
    log: list[Any],
    answer: httpx.Response,
    ending: str,
    reason: str | None,
    code: str | None,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, answer)
        assert await shop.handle() == ending
    said = [(line["reason"], line["code"]) for line in log if line["event"] == "refund_postponed"]
    assert said == ([] if reason is None else [(reason, code)])


async def test_refund_that_was_canceled_while_its_payment_was_read_says_that_it_changed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")

        async def canceled(_: httpx.Request) -> httpx.Response:
            await shop.store.run(
                saves.save(await shop.stored(), decisions.cancel(await shop.stored()))
            )
            return totals(0, currency=None)

        shop.provider.will(PAID, canceled)
        assert await shop.handle() == "changed meanwhile"


async def test_payment_that_is_not_confirmed_is_asked_for_ever_rarer(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, totals(0, currency=None))
        await shop.handle()
        assert (await shop.stored()).next_check_at == NOW + 5.625 * SECOND
        shop.pass_time(30 * MINUTE)
        await shop.handle()
        assert (await shop.stored()).next_check_at == NOW + 30 * MINUTE + 675 * SECOND


async def test_refund_that_a_webhook_names_while_its_payment_is_read_is_not_refused_as_unsent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async def named_meanwhile(_: httpx.Request) -> httpx.Response:
        await hint(shop)
        return totals(0, currency="jpy")

    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, named_meanwhile)
        assert await shop.handle() == "changed meanwhile"
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_9")
        assert refund.contradicted_by is None
