"""Refunds about which a person has decided, and how they come to that."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx

from tests.factories import HOUR, refund_payload
from tests.unit.engine.rereads import NAMED, OWN, failed_and_retried, hint
from tests.unit.engine.shop import (
    ID,
    PAID,
    POST,
    Shop,
    error,
    says,
    totals,
)
from worker.model.refund import Refund, Stage
from worker.model.steps import Step
from worker.rules import decisions
from worker.rules.rechecks import WAITS
from worker.store import saves

ODD: dict[str, Any] = {"amount": 7}
SECOND_GENERATION = {"refund_id": ID, "refund_generation": "2"}


async def decided(shop: Shop, step: Step) -> None:
    refund = await shop.stored()
    assert refund.stage is Stage.REVIEW
    assert (await shop.store.run(saves.save(refund, step))).result == "saved"


async def insisted(shop: Shop) -> None:
    await decided(shop, decisions.resolve_resend(await shop.stored(), by="ann", unverified=True))


async def given_up(shop: Shop, *, unverified: bool) -> None:
    refund = await shop.stored()
    step = decisions.resolve_failed(refund, "gone", by="ann", unverified=unverified)
    await decided(shop, step)


async def retried_and_in_review(shop: Shop, prior: httpx.Response) -> None:
    """A retry that came to review because of what its earlier refund showed."""
    await failed_and_retried(shop)
    shop.provider.will(OWN, prior)
    shop.provider.will(PAID, totals(0))
    shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION)))
    await shop.handle()


def has_no_decision(refund: Refund) -> bool:
    return (refund.operator_says, refund.operator_by, refund.operator_unverified) == (
        None,
        None,
        False,
    )


async def due_again(shop: Shop) -> None:
    due = (await shop.stored()).next_check_at
    assert due is not None
    shop.pass_time(max(due - shop.now, timedelta(0)))


async def in_review_for_a_name(shop: Shop) -> None:
    await shop.accept()
    await hint(shop)
    shop.provider.will(NAMED, error(500))
    for wait in WAITS:
        await shop.handle()
        shop.pass_time(wait)
    assert await shop.handle() == "in review (hint_unreadable)"


async def in_conflict_with_an_odd_one(shop: Shop) -> None:
    """A refund in doubt for which a webhook named one with its id and another amount."""
    shop.provider.will(POST, httpx.ReadError("cut"))
    await shop.handle()
    shop.provider.will(NAMED, says(200, refund_payload(id="re_9", **ODD)))
    await hint(shop)
    assert await shop.handle() == "in review (conflict)"
    shop.pass_time(HOUR)


async def pending_and_in_review(shop: Shop) -> None:
    """A refund that the provider has as pending, and in review because of an odd one."""
    await shop.accept()
    shop.provider.will(POST, says(200, refund_payload(status="pending")))
    await shop.handle()
    await hint(shop)
    shop.provider.will(NAMED, says(200, refund_payload(id="re_9", **ODD)))
    shop.wake_nobody()
    assert await shop.handle() == "in review (conflict)"
    shop.provider.will(OWN, says(200, refund_payload(status="pending")))


async def named(shop: Shop, name: str) -> None:
    refund = await shop.stored()
    await decided(shop, decisions.resolve_succeeded(refund, name, refund.updated_at, by="ann"))
