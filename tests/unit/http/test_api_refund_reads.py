"""How the HTTP API reads a record: once without a wait, and what it says of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.factories import HOUR, MINUTE, NOW, SECOND, a_refund
from tests.support.api_door import PAYMENT
from worker.broker import rejected
from worker.broker.kept import kept_of
from worker.errors import NotDurable, StoreUnavailable
from worker.http import refunds
from worker.model.refund import Stage
from worker.store.reads import Loaded

if TYPE_CHECKING:
    from datetime import datetime

    from tests.support.api_door import Door


def count_loads(api: Door, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the ids of the records that are read from now on."""
    ids: list[str] = []
    load = api.store.load

    async def counted(refund_id: str) -> Loaded:
        ids.append(refund_id)
        return await load(refund_id)

    monkeypatch.setattr(api.store, "load", counted)
    return ids


async def test_a_record_is_read_once_unless_there_is_something_to_wait_for(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.records.in_review("in-review")
    api.records.succeeded("succeeded", payment_intent="pi_2")
    loads = count_loads(api, monkeypatch)
    await api.create("queued", payment_intent="pi_3")
    assert loads == []
    for path in ("queued", "queued?wait=0", "in-review?wait=20", "succeeded?wait=20"):
        assert (await api.get(f"/v1/refunds/{path}")).status == 200
    assert loads == ["queued", "queued", "in-review", "succeeded"]
    await api.get("/v1/refunds/queued?wait=0.01")
    assert len(loads) > 5


async def test_a_record_is_read_while_no_thread_is_free(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.records.queued("order-1")
    monkeypatch.setattr(api.part.context.threads, "_most", 0)
    assert (await api.get("/v1/refunds/order-1")).status == 200
    assert (await api.get("/v1/refunds/absent")).status == 503


async def test_a_refund_accepted_during_the_read_is_returned(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    refund = api.records.sending("order-1")

    async def before(_refund_id: str) -> Loaded:
        return Loaded(now=refund.updated_at, seq="", refund=None)

    monkeypatch.setattr(api.store, "load", before)
    got = await api.get("/v1/refunds/order-1")
    assert (got.status, got.json) == (200, refund.as_dict())


@pytest.mark.parametrize("error", [StoreUnavailable("away"), NotDurable("not on disk")])
async def test_an_accepted_refund_is_202_even_if_its_wait_fails(
    api: Door, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def away(_refund_id: str) -> Loaded:
        raise error

    monkeypatch.setattr(api.store, "load", away)
    body = {"refund_id": "order-1", "payment_intent": PAYMENT, "amount": 500}
    got = await api.post("/v1/refunds?wait=20", body)
    assert (got.status, got.json) == (202, api.refunds.get("order-1").as_dict())
    assert (got.headers["ETag"], got.headers["Retry-After"]) == ('"1"', "1")


async def test_the_refusal_of_a_message_with_the_id_is_named(api: Door) -> None:
    kept = kept_of(([], {"refund_id": "order-1"}), "payment_intent: is missing")
    api.refunds.store.run(rejected.keep(kept))
    for path in ("", "/history"):
        got = await api.get(f"/v1/refunds/order-1{path}")
        assert (got.status, got.code) == (404, "message_rejected")
        assert "payment_intent: is missing" in got.json["detail"]


@pytest.mark.parametrize(
    ("stage", "next_check_at", "seconds"),
    [
        (Stage.QUEUED, NOW + HOUR, "1"),
        (Stage.REVIEW, None, "1"),
        (Stage.SENDING, NOW - MINUTE, "1"),
        (Stage.SENDING, NOW, "1"),
        (Stage.PROCESSING, NOW + 2 * SECOND, "2"),
        (Stage.PROCESSING, NOW + timedelta(seconds=2.1), "3"),
        (Stage.PROCESSING, NOW + MINUTE, "60"),
        (Stage.IN_DOUBT, NOW + HOUR, "60"),
        (Stage.SETTLED, None, None),
    ],
)
def test_a_pending_record_says_when_to_ask_again(
    stage: Stage, next_check_at: datetime | None, seconds: str | None
) -> None:
    got = refunds._answer(a_refund(stage, next_check_at=next_check_at), NOW)
    assert got.headers.get("Retry-After") == seconds
