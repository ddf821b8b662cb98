"""Reading back: one refund, a payment's totals, the list of its refunds, and whether the key is
accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.factories import PAYMENT, a_refund, a_reply, refund_payload
from tests.unit.provider.byte_provider import (
    LEASE,
    Peer,
    Script,
    answering,
    by_path,
    byte_provider,
    error,
    gateway_to,
    reply,
)
from worker.model.answers import NoReply, NotSent, PaymentView, ProviderRefund, Reply
from worker.provider import gateway as gateway_module
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import running_sandbox

CHARGE = {
    "id": "ch_1",
    "payment_intent": PAYMENT,
    "currency": "usd",
    "amount": 1000,
    "amount_refunded": 200,
}
INTENT = {"id": PAYMENT, "currency": "usd", "latest_charge": "ch_1"}


async def payment_seen(script: Script) -> tuple[Any, list[str]]:
    async with byte_provider(script) as provider, gateway_to(provider.url) as gateway:
        seen = await gateway.get_payment(PAYMENT, about=None)
        return seen, [request.line.split(" ")[1] for request in provider.requests]


async def test_a_refund_is_read_by_the_providers_id() -> None:
    found = reply(200, refund_payload(), Request_Id="req_1")
    async with byte_provider(answering(found)) as provider, gateway_to(provider.url) as gateway:
        answer = await gateway.get_refund("re_1", about=None)
        assert answer == a_reply(200, refund_payload(), request_id="req_1")
        assert provider.requests[0].line == "GET /v1/refunds/re_1 HTTP/1.1"
        assert "content-type" not in provider.requests[0].headers


@pytest.mark.parametrize("identity", ["", "..", "a/b", "re_1?x", "re 1", "ré"])
async def test_an_id_that_would_alter_the_url_is_not_asked_for(identity: str) -> None:
    async with (
        byte_provider(answering(reply(200, {}))) as provider,
        gateway_to(provider.url) as gateway,
    ):
        assert isinstance(await gateway.get_refund(identity, about=None), NotSent)
        assert provider.connections == 0


async def test_a_payments_totals_are_read_from_its_one_charge() -> None:
    seen, paths = await payment_seen(
        by_path(**{PAYMENT: reply(200, INTENT), "_": reply(200, CHARGE)})
    )
    assert seen == PaymentView(refunded=200, captured=1000, currency="usd", shown_by="ch_1")
    assert paths == [f"/v1/payment_intents/{PAYMENT}", "/v1/charges/ch_1"]


async def test_a_payment_that_carries_its_totals_is_read_once() -> None:
    seen, paths = await payment_seen(
        answering(reply(200, {**INTENT, "amount": 1000, "amount_refunded": 300}))
    )
    assert seen == PaymentView(refunded=300, captured=1000, currency="usd", shown_by=PAYMENT)
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("intent", "charge", "problem"),
    [
        ({**INTENT, "id": "pi_other"}, CHARGE, "the provider showed another payment"),
        ({**INTENT, "id": None}, CHARGE, "the provider showed another payment"),
        ({"currency": "usd", "amount_refunded": 0}, CHARGE, "the provider showed another payment"),
        (INTENT, {**CHARGE, "id": "ch_2"}, "the provider showed another charge"),
        (INTENT, {**CHARGE, "id": None}, "the provider showed another charge"),
        (INTENT, {**CHARGE, "payment_intent": "pi_other"}, "the provider showed another charge"),
        (
            INTENT,
            {**CHARGE, "payment_intent": {"id": "pi_other"}},
            "the provider showed another charge",
        ),
        (INTENT, {**CHARGE, "id": []}, "the provider showed another charge"),
        (INTENT, {**CHARGE, "currency": "eur"}, "payment and charge differ in currency"),
        (INTENT, {"id": "ch_1", "latest_charge": "ch_1"}, "the charge shows no refunded total"),
        (INTENT, {"id": "ch_1"}, "the payment shows no refunded total"),
        ({"id": PAYMENT, "charges": {"data": [{}, {}]}}, CHARGE, "the payment has several charges"),
    ],
)
async def test_totals_that_are_not_clearly_this_payments_are_a_problem(
    intent: dict[str, Any], charge: dict[str, Any], problem: str
) -> None:
    seen, _ = await payment_seen(by_path(**{PAYMENT: reply(200, intent), "_": reply(200, charge)}))
    assert (seen.refunded, seen.problem) == (None, problem)


async def test_a_charge_without_a_currency_has_its_payments() -> None:
    charge = {"id": "ch_1", "amount": 1000, "amount_refunded": 0}
    seen, _ = await payment_seen(by_path(**{PAYMENT: reply(200, INTENT), "_": reply(200, charge)}))
    assert seen == PaymentView(refunded=0, captured=1000, currency="usd", shown_by="ch_1")


@pytest.mark.parametrize(
    ("charge", "problem"),
    [
        ({**CHARGE, "currency": "dollars"}, "the currency cannot be read"),
        ({**CHARGE, "currency": 0}, "the currency cannot be read"),
        ({**CHARGE, "currency": "eur"}, "payment and charge differ in currency"),
        (
            {"id": "ch_1", "currency": "eur", "latest_charge": "ch_1"},
            "payment and charge differ in currency",
        ),
        (
            {"id": "ch_1", "latest_charge": {**CHARGE, "currency": "?"}},
            "payment and charge differ in currency",
        ),
    ],
)
async def test_a_charge_that_does_not_show_its_payments_currency_leaves_none_confirmed(
    charge: dict[str, Any], problem: str
) -> None:
    seen, _ = await payment_seen(by_path(**{PAYMENT: reply(200, INTENT), "_": reply(200, charge)}))
    assert seen == PaymentView(currency="", problem=problem)


@pytest.mark.parametrize(
    ("payment", "charge", "currency"),
    [("usd", None, "usd"), ("usd", "usd", "usd"), (None, "eur", "eur"), (None, None, None)],
)
async def test_a_charge_without_totals_still_tells_its_currency(
    payment: str | None, charge: str | None, currency: str | None
) -> None:
    intent, shown = (
        {**INTENT, "currency": payment},
        {"id": "ch_1", "latest_charge": "ch_1", "currency": charge},
    )
    seen, _ = await payment_seen(by_path(**{PAYMENT: reply(200, intent), "_": reply(200, shown)}))
    assert seen == PaymentView(currency=currency, problem="the charge shows no refunded total")


async def test_a_charge_id_that_would_alter_the_url_is_not_asked_for() -> None:
    seen, paths = await payment_seen(
        answering(reply(200, {**INTENT, "latest_charge": "../refunds"}))
    )
    assert seen == PaymentView(currency="usd", problem="the payment's charges cannot be read")
    assert len(paths) == 1


@pytest.mark.parametrize("status", [201, 404, 500])
async def test_a_payment_that_cannot_be_read_gives_the_answer(status: int) -> None:
    seen, _ = await payment_seen(answering(reply(status, INTENT)))
    assert isinstance(seen, Reply)
    assert seen.http_status == status


async def test_a_charge_that_cannot_be_read_gives_the_answer() -> None:
    seen, _ = await payment_seen(
        by_path(**{PAYMENT: reply(200, INTENT), "_": reply(429, {}, Retry_After="5")})
    )
    assert isinstance(seen, Reply)
    assert seen.http_status == 429


@pytest.mark.parametrize(
    ("intent", "charge", "shown"),
    [
        ({**INTENT, "amount": 1000, "amount_refunded": 300}, CHARGE, True),
        (INTENT, CHARGE, True),
        (INTENT, {**CHARGE, "id": "ch_2"}, True),
        (INTENT, {**CHARGE, "currency": "eur"}, True),
        (INTENT, {"id": "ch_1", "latest_charge": "ch_1"}, True),
        ({**INTENT, "currency": "?"}, CHARGE, True),
        ({**INTENT, "id": "pi_other"}, CHARGE, False),
        ({**INTENT, "id": None}, CHARGE, False),
    ],
)
async def test_a_payment_is_shown_by_its_own_id_whatever_it_says_of_money(
    intent: dict[str, Any], charge: dict[str, Any], *, shown: bool
) -> None:
    seen, _ = await payment_seen(by_path(**{PAYMENT: reply(200, intent), "_": reply(200, charge)}))
    assert seen.shown is shown


@pytest.mark.parametrize(
    ("answer", "shown", "missing"),
    [
        (reply(200, INTENT), True, False),
        (reply(200, {**INTENT, "id": "pi_other"}), False, False),
        (reply(200, {}), False, False),
        (reply(201, INTENT), False, False),
        (reply(404, {"error": {"code": "resource_missing"}}), False, True),
        (reply(404, {}), False, False),
        (reply(403, {"error": {"code": "forbidden"}}), False, False),
    ],
)
async def test_a_payment_is_shown_or_missing_or_neither(
    answer: bytes, *, shown: bool, missing: bool
) -> None:
    async with byte_provider(answering(answer)) as provider, gateway_to(provider.url) as gateway:
        seen = await gateway.get_payment_intent(PAYMENT, about=None)
        assert (gateway_module.shows(seen, PAYMENT), gateway_module.is_missing(seen)) == (
            shown,
            missing,
        )
        assert [request.line for request in provider.requests] == [
            f"GET /v1/payment_intents/{PAYMENT} HTTP/1.1"
        ]


def test_no_reply_shows_nothing_and_says_of_nothing_that_it_is_missing() -> None:
    for answer in (NoReply(reason="reset"), NotSent(reason="refused")):
        assert not gateway_module.shows(answer, PAYMENT)
        assert not gateway_module.is_missing(answer)


@pytest.mark.parametrize(
    ("answer", "account"),
    [
        (reply(200, {"id": "acct_1", "object": "account"}), "acct_1"),
        (reply(200, {"id": "acct_1", "object": "customer"}), None),
        (reply(200, {"id": "acct_1"}), None),
        (reply(200, {"id": "", "object": "account"}), None),
        (reply(200, {"object": "account"}), None),
        (reply(404, {"error": {"code": "url_unknown"}}), None),
        (reply(403, {"id": "acct_1", "object": "account"}), None),
    ],
)
async def test_the_account_of_the_key_is_told_if_the_provider_shows_it(
    answer: bytes, account: str | None
) -> None:
    async with byte_provider(answering(answer)) as provider, gateway_to(provider.url) as gateway:
        assert await gateway.account() == account
        assert [request.line for request in provider.requests] == ["GET /v1/account HTTP/1.1"]


def page(*ids: object, has_more: object = False, **fields: Any) -> bytes:
    entries = [
        {"id": identity, "payment_intent": PAYMENT} if isinstance(identity, str) else identity
        for identity in ids
    ]
    return reply(200, {"object": "list", "data": entries, "has_more": has_more, **fields})


async def listed(script: Script) -> tuple[Any, list[dict[str, list[str]]]]:
    async with byte_provider(script) as provider, gateway_to(provider.url) as gateway:
        seen = await gateway.list_refunds(PAYMENT, about=None)
        return seen, [
            parse_qs(urlsplit(request.line.split(" ")[1]).query) for request in provider.requests
        ]


def ids_of(seen: tuple[Sequence[ProviderRefund], bool]) -> tuple[list[str], bool]:
    entries, complete = seen
    return [entry.id for entry in entries], complete


async def test_a_list_is_read_page_by_page_to_its_end() -> None:
    pages = (page("re_3", "re_2", has_more=True), page("re_1"))
    seen, queries = await listed(answering(*pages))
    assert ids_of(seen) == (["re_3", "re_2", "re_1"], True)
    first = {"payment_intent": [PAYMENT], "limit": [str(gateway_module.PAGE_SIZE)]}
    assert queries == [first, first | {"starting_after": ["re_2"]}]


async def test_an_empty_list_is_complete() -> None:
    assert (await listed(answering(page())))[0] == ([], True)


@pytest.mark.parametrize(
    ("pages", "ids"),
    [
        ([page("re_1", has_more=None)], ["re_1"]),
        ([page("re_1", has_more="false")], ["re_1"]),
        ([page(has_more=True)], []),
        ([page("re_1", has_more=True), page("re_1", has_more=True)], ["re_1"]),
        ([page("re_1", {"no": "id"})], ["re_1"]),
        ([page("re_1", "re_2", None)], ["re_1", "re_2"]),
        ([page("re_2", {"id": 7}, has_more=True), page("re_1")], ["re_2"]),
    ],
    ids=[
        "end unstated",
        "end misstated",
        "more of nothing",
        "page not turned",
        "no id",
        "no entry",
        "no cursor",
    ],
)
async def test_a_list_with_a_gap_is_not_complete(pages: list[bytes], ids: list[str]) -> None:
    seen, _ = await listed(answering(*pages))
    assert ids_of(seen) == (ids, False)


async def test_a_list_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "MAX_PAGES", 3)
    seen, queries = await listed(answering(*(page(f"re_{n}", has_more=True) for n in range(9))))
    assert ids_of(seen) == (["re_0", "re_1", "re_2"], False)
    assert len(queries) == 3


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, {"object": "refund"}),
        reply(200, [1]),
        reply(404, error("unknown_url")),
        reply(500, {}),
    ],
)
async def test_what_is_no_list_is_given_back_as_the_answer(answer: bytes) -> None:
    seen, _ = await listed(answering(answer))
    assert isinstance(seen, Reply)


async def test_a_later_page_that_cannot_be_read_gives_its_answer() -> None:
    seen, _ = await listed(answering(page("re_1", has_more=True), reply(503, {}, Retry_After="9")))
    assert isinstance(seen, Reply)
    assert seen.http_status == 503


async def test_a_list_that_breaks_off_gives_the_answer() -> None:
    async def break_off(peer: Peer) -> None:
        await peer.read()
        await peer.send(page("re_1")[:-5])

    assert isinstance((await listed(break_off))[0], NoReply)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (reply(404, error("resource_missing")), True),
        (reply(200, refund_payload()), True),
        (reply(401, error("key")), False),
        (reply(403, body=b"<html>"), False),
        (reply(404, body=b"<html>"), None),
        (reply(407, {}), None),
        (reply(429, {}), None),
        (reply(302, {}), None),
        (reply(500, {}), None),
    ],
)
async def test_the_key_is_judged_only_by_what_speaks_of_it(
    answer: bytes,
    accepted: bool | None,  # noqa: FBT001 - the expectation
) -> None:
    async with byte_provider(answering(answer)) as provider, gateway_to(provider.url) as gateway:
        assert await gateway.key_is_accepted() is accepted
        assert provider.requests[0].line == "GET /v1/refunds/re_credentials_probe HTTP/1.1"


async def test_a_key_is_not_judged_without_a_reply() -> None:
    async def break_off(peer: Peer) -> None:
        await peer.read()
        peer.reset()

    async with byte_provider(break_off) as provider, gateway_to(provider.url) as gateway:
        assert await gateway.key_is_accepted() is None


async def test_against_the_sandbox_a_refund_made_is_found_by_id_in_the_list_and_in_the_totals() -> (
    None
):
    refund = a_refund()
    metadata = b'{"refund_id":"order-1001-1","refund_generation":"1"}'
    body = b'{"payment_intent":"%s","amount":"500","metadata":' + metadata + b"}"
    with running_sandbox(SandboxConfig()) as sandbox:
        async with gateway_to(sandbox.url) as gateway:
            before = await gateway.get_payment(PAYMENT, about=None)
            outcome = await gateway.send(refund, body % PAYMENT.encode(), lease_left=LEASE)
            assert outcome.found is not None
            answer = await gateway.get_refund(outcome.found.id, about=None)
            after = await gateway.get_payment(PAYMENT, about=None)
            seen = await gateway.list_refunds(PAYMENT, about=None)
            accepted = await gateway.key_is_accepted()
        effects = await asyncio.to_thread(sandbox.effects)
    assert isinstance(answer, Reply)
    assert answer.payload is not None
    found = answer.payload.refund
    assert found is not None
    assert (found.id, found.refund_id) == (outcome.found.id, refund.refund_id)
    assert isinstance(before, PaymentView)
    assert isinstance(after, PaymentView)
    assert (before.refunded, after.refunded) == (0, 500)
    assert isinstance(seen, tuple)
    assert ids_of(seen) == ([found.id], True)
    assert (accepted, len(effects)) == (True, 1)
