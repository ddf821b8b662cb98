from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.sandbox.asking import PAYMENT, Asking, Seen, asking, basic, post_headers, until
from worker.sandbox.running import SandboxCallError
from worker.sandbox.schema import validate_response

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def provider() -> Iterator[Asking]:
    with asking(settle_ms=None) as running:
        yield running


def test_a_refund_moves_money_once_and_is_shown_in_the_contract_s_shape(provider: Asking) -> None:
    metadata = {"refund_id": "order-1", "order": "1"}
    seen = provider.refund(
        amount="500", reason="requested_by_customer", metadata=metadata, key="k-1"
    )
    shape = seen.json
    assert (seen.status, shape["amount"], shape["status"], shape["metadata"]) == (
        200,
        500,
        "succeeded",
        metadata,
    )
    assert validate_response(shape) == []
    assert provider.get(f"/v1/refunds/{shape['id']}").json == shape
    (entry,) = provider.sandbox.ledger()
    wanted = {
        "seq": 1,
        "event": "effect",
        "refund": shape["id"],
        "payment_intent": PAYMENT,
        "amount": 500,
        "currency": "usd",
        "status": "succeeded",
        "refund_id": "order-1",
        "idempotency_key": "k-1",
    }
    assert {name: entry[name] for name in wanted} == wanted


def test_a_refund_without_an_amount_takes_all_that_is_left(provider: Asking) -> None:
    provider.refund(amount="99000")
    assert provider.refund().json["amount"] == 1000
    assert provider.refund().code == "charge_already_refunded"
    assert len(provider.sandbox.effects()) == 2


def test_more_than_is_left_is_refused_and_moves_nothing(provider: Asking) -> None:
    seen = provider.refund(amount="100001")
    assert (seen.status, seen.code, seen.json["error"]["param"]) == (
        400,
        "amount_too_large",
        "amount",
    )
    assert provider.sandbox.ledger() == []


@pytest.mark.parametrize(
    ("payment", "status", "code"),
    [
        ("pi_missing_1", 404, "resource_missing"),
        ("pi_declined_1", 402, "card_declined"),
        ("card", 404, None),
    ],
)
def test_payments_that_cannot_be_refunded_say_so_and_move_nothing(
    provider: Asking, payment: str, status: int, code: str | None
) -> None:
    seen = provider.refund(payment)
    assert (seen.status, seen.code) == (status, code or "resource_missing")
    assert provider.sandbox.ledger() == []


@pytest.mark.parametrize(
    ("payment", "first", "later"),
    [
        ("pi_pending_1", "pending", "pending"),
        ("pi_pending_succeeded_1", "pending", "succeeded"),
        ("pi_pending_failed_1", "pending", "failed"),
        ("pi_pending_canceled_1", "pending", "canceled"),
        ("pi_failed_1", "failed", "failed"),
        ("pi_canceled_1", "canceled", "canceled"),
    ],
)
def test_a_payment_s_name_decides_what_becomes_of_its_refund(
    provider: Asking, payment: str, first: str, later: str
) -> None:
    made = provider.refund(payment).json
    assert made["status"] == first
    assert provider.sandbox.advance() == (first != later)
    seen = provider.get(f"/v1/refunds/{made['id']}").json
    assert (seen["status"], seen.get("failure_reason")) == (
        later,
        "unknown" if later == "failed" else None,
    )


def test_refunds_that_never_held_money_are_no_effects(provider: Asking) -> None:
    provider.refund("pi_failed_1")
    provider.refund("pi_canceled_1")
    assert provider.sandbox.ledger() == []


def test_a_failed_refund_gives_its_amount_back_to_the_payment(provider: Asking) -> None:
    provider.refund("pi_pending_failed_2")
    assert provider.refund("pi_pending_failed_2").code == "charge_already_refunded"
    provider.sandbox.advance()
    assert provider.refund("pi_pending_failed_2").status == 200
    assert [entry["event"] for entry in provider.sandbox.ledger()] == ["effect", "status", "effect"]


def test_pending_settles_by_itself_after_its_delay() -> None:
    with asking(settle_ms=1) as provider:
        made = provider.refund("pi_pending_succeeded_1").json
        until(lambda: provider.get(f"/v1/refunds/{made['id']}").json["status"] == "succeeded")
        assert [entry["status"] for entry in provider.sandbox.ledger()] == ["pending", "succeeded"]


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_reversed_refund_gives_its_money_back_and_can_succeed_again(
    provider: Asking, status: str
) -> None:
    made = provider.refund(amount="500").json
    provider.sandbox.move_refund(made["id"], status)
    assert provider.get(f"/v1/refunds/{made['id']}").json["status"] == status
    assert provider.sandbox.summary()["totals"] == {}
    provider.sandbox.move_refund(made["id"], "succeeded")
    seen = provider.get(f"/v1/refunds/{made['id']}").json
    assert (seen["status"], "failure_reason" in seen) == ("succeeded", False)
    assert provider.sandbox.summary()["totals"] == {"usd": 500}
    assert [(entry["event"], entry.get("was")) for entry in provider.sandbox.ledger()] == [
        ("effect", None),
        ("status", "succeeded"),
        ("status", status),
    ]
    charge = provider.get(f"/v1/payment_intents/{PAYMENT}").json["charges"]["data"][0]
    assert charge["amount_refunded"] == 500


def test_a_reversal_states_why_the_refund_failed(provider: Asking) -> None:
    made = provider.refund(amount="500").json
    provider.sandbox.move_refund(made["id"], "failed", "lost_or_stolen_card")
    seen = provider.get(f"/v1/refunds/{made['id']}").json
    assert (seen["status"], seen["failure_reason"]) == ("failed", "lost_or_stolen_card")
    with pytest.raises(SandboxCallError, match="a failed refund cannot become canceled"):
        provider.sandbox.move_refund(made["id"], "canceled")


def test_a_refund_that_was_made_failed_moves_its_money_when_it_succeeds(provider: Asking) -> None:
    made = provider.refund("pi_failed_1", amount="500", metadata={"refund_id": "order-1"}).json
    assert provider.sandbox.ledger() == []
    provider.sandbox.move_refund(made["id"], "succeeded")
    (entry,) = provider.sandbox.effects("order-1")
    assert (entry["status"], entry["was"]) == ("succeeded", "failed")
    assert provider.sandbox.summary()["totals"] == {"usd": 500}


def test_a_refund_cannot_take_money_that_is_no_longer_left(provider: Asking) -> None:
    made = provider.refund(amount="60000").json
    provider.sandbox.move_refund(made["id"], "failed")
    provider.refund(amount="50000")
    with pytest.raises(SandboxCallError, match="its amount is 60000, and only 50000") as refused:
        provider.sandbox.move_refund(made["id"], "succeeded")
    assert refused.value.status == 409
    assert provider.sandbox.summary()["totals"] == {"usd": 50_000}


def test_a_refund_that_was_failed_by_hand_does_not_settle_by_itself(provider: Asking) -> None:
    made = provider.refund("pi_pending_succeeded_1", amount="500").json
    provider.sandbox.move_refund(made["id"], "failed")
    assert provider.sandbox.advance() == 0
    assert provider.get(f"/v1/refunds/{made['id']}").json["status"] == "failed"


@pytest.mark.parametrize(("counted", "total"), [(True, 700), (False, 0)])
def test_whether_totals_count_pending_refunds_is_a_switch(*, counted: bool, total: int) -> None:
    with asking(pending_in_totals=counted) as provider:
        provider.refund("pi_pending_1", amount="700")
        charge = provider.get("/v1/payment_intents/pi_pending_1").json["charges"]["data"][0]
        assert charge["amount_refunded"] == total
        assert provider.refund("pi_pending_1", amount="99301").code == "amount_too_large"


def test_a_payment_shows_its_amounts_and_its_latest_charge(provider: Asking) -> None:
    provider.refund(amount="500")
    shape = provider.get(f"/v1/payment_intents/{PAYMENT}").json
    charge = provider.get(f"/v1/charges/{shape['latest_charge']}").json
    assert (shape["amount_received"], shape["currency"], shape["status"]) == (
        100_000,
        "usd",
        "succeeded",
    )
    assert shape["charges"]["data"] == [charge]
    assert (charge["amount_refunded"], charge["payment_intent"]) == (500, PAYMENT)


def test_several_charges_share_the_amount_and_what_was_refunded(provider: Asking) -> None:
    provider.sandbox.create_payment_intent("pi_split", amount=1001, currency="eur", charges=2)
    provider.refund("pi_split", amount="600")
    charges = provider.get("/v1/payment_intents/pi_split").json["charges"]["data"]
    assert [(charge["amount"], charge["amount_refunded"]) for charge in charges] == [
        (500, 99),
        (501, 501),
    ]
    assert [provider.get(f"/v1/charges/{charge['id']}").json for charge in charges] == charges


def test_a_payment_refunded_before_has_nothing_left_and_no_effect_in_the_ledger(
    provider: Asking,
) -> None:
    assert provider.refund("pi_refunded_1").code == "charge_already_refunded"
    provider.sandbox.create_payment_intent("pi_half", amount=1000, refunded=400)
    assert provider.refund("pi_half").json["amount"] == 600
    assert [entry["amount"] for entry in provider.sandbox.ledger()] == [600]


def test_a_list_of_refunds_is_paged_newest_first_to_its_end(provider: Asking) -> None:
    made = [provider.refund(amount=str(amount)).json["id"] for amount in (1, 2, 3)]
    provider.refund("pi_other", amount="9")
    path = f"/v1/refunds?payment_intent={PAYMENT}&limit=2"
    first = provider.get(path).json
    second = provider.get(f"{path}&starting_after={first['data'][-1]['id']}").json
    assert [item["id"] for item in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "starting_after=re_none", "page=2"]
)
def test_a_wrong_page_is_refused_by_name(provider: Asking, query: str) -> None:
    seen = provider.get(f"/v1/refunds?{query}")
    assert (seen.status, seen.json["error"]["param"]) == (400, query.partition("=")[0])


def test_without_the_list_its_url_is_unknown_like_any_other() -> None:
    with asking(list_refunds=False) as provider:
        seen = provider.get(f"/v1/refunds?payment_intent={PAYMENT}")
        assert (seen.status, seen.code) == (404, provider.get("/v1/nothing").code)


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "api_key_missing"),
        (basic("sk_live_planted"), "api_key_invalid"),
        (basic("sk_test_"), "api_key_invalid"),
        (basic("sk_test_planted", "password"), "api_key_invalid"),
        ("Bearer sk_test_planted", "api_key_invalid"),
        ("Basic ###", "api_key_invalid"),
    ],
)
def test_a_request_without_an_accepted_key_is_turned_away(
    provider: Asking, authorization: str | None, code: str
) -> None:
    headers = post_headers() | {"Authorization": authorization or ""}
    if authorization is None:
        del headers["Authorization"]
    seen = provider.ask("POST", "/v1/refunds", headers=headers, body=b'{"payment_intent":"pi_1"}')
    assert (seen.status, seen.code) == (401, code)
    assert provider.sandbox.ledger() == []


def test_a_narrowed_sandbox_accepts_its_one_key_only() -> None:
    with asking(api_key="sk_test_planted") as provider:
        assert provider.refund().status == 200
        other = {"Authorization": basic("sk_test_other")}
        assert provider.ask("GET", "/v1/payment_intents/pi_1", headers=other).status == 401


def test_errors_come_flat_when_the_envelope_is_flat() -> None:
    with asking(envelope="flat") as provider:
        shape = provider.refund(amount="100001").json
        assert (shape["type"], shape["code"]) == ("invalid_request_error", "amount_too_large")


def test_times_come_in_milliseconds_when_set_so() -> None:
    with asking(created_in_ms=True) as provider:
        made = provider.refund().json
        assert made["created"] // 1000 == int(provider.sandbox.ledger()[0]["time"])


def test_charges_stay_out_of_the_payment_when_set_so() -> None:
    with asking(charges_expanded=False) as provider:
        shape = provider.get(f"/v1/payment_intents/{PAYMENT}").json
        assert "charges" not in shape
        assert provider.get(f"/v1/charges/{shape['latest_charge']}").status == 200


def by(provider: Asking, key: str, path: str) -> Seen:
    return provider.ask("GET", path, headers={"Authorization": basic(key)})


def test_a_payment_is_missing_to_the_keys_of_other_accounts() -> None:
    with asking(accounts="hidden") as provider:
        made = provider.refund().json
        charge = provider.get(f"/v1/payment_intents/{PAYMENT}").json["latest_charge"]
        for path in (f"refunds/{made['id']}", f"payment_intents/{PAYMENT}", f"charges/{charge}"):
            assert provider.get(f"/v1/{path}").status == 200
            refused = by(provider, "sk_test_other", f"/v1/{path}")
            assert (refused.status, refused.code) == (404, "resource_missing")
        for path in (f"/v1/refunds?payment_intent={PAYMENT}", "/v1/refunds"):
            assert len(provider.get(path).json["data"]) == 1
            assert by(provider, "sk_test_other", path).json["data"] == []
        body = json.dumps({"payment_intent": PAYMENT}).encode()
        headers = post_headers() | {"Authorization": basic("sk_test_other")}
        refused = provider.ask("POST", "/v1/refunds", headers=headers, body=body)
        assert (refused.status, refused.code) == (404, "resource_missing")
        assert len(provider.sandbox.effects()) == 1


def test_an_account_is_shown_only_if_told_so() -> None:
    with asking(accounts="hidden") as provider:
        assert provider.get("/v1/account").code == "url_unknown"
    with asking(accounts="shown") as provider:
        ours, others = (
            by(provider, key, "/v1/account").json for key in ("sk_test_planted", "sk_test_other")
        )
        assert (ours["object"], ours["id"][:5], ours == others) == ("account", "acct_", False)
        assert provider.ask("GET", "/v1/account", headers={}).status == 401


def test_the_ledger_s_line_is_on_disk_when_the_reply_arrives(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with asking(ledger_file=path) as provider:
        made = provider.refund(metadata={"refund_id": "order-1"}).json
        (line,) = path.read_text(encoding="utf-8").splitlines()
        assert (json.loads(line)["refund"], json.loads(line)["refund_id"]) == (
            made["id"],
            "order-1",
        )


def test_the_summary_names_a_refund_that_was_paid_twice(provider: Asking) -> None:
    for payment, refund_id in [("pi_a", "twice"), ("pi_a", "twice"), ("pi_b", "once")]:
        provider.refund(payment, amount="5", metadata={"refund_id": refund_id})
    provider.refund("pi_pending_failed_3", amount="7", metadata={"refund_id": "retried"})
    provider.sandbox.advance()
    provider.refund("pi_c", amount="7", metadata={"refund_id": "retried"})
    summary = provider.sandbox.summary()
    assert summary["repeated"] == {"twice": 2, "retried": 2}
    assert summary["moved_twice"] == {"twice": 2}
    assert (summary["totals"], summary["by_status"]) == ({"usd": 22}, {"succeeded": 4, "failed": 1})


def test_the_ledger_can_be_read_from_a_place_on_and_for_one_refund(provider: Asking) -> None:
    for number in (1, 2, 3):
        provider.refund(amount="5", metadata={"refund_id": f"r{number}"})
    entries: list[dict[str, Any]] = provider.sandbox.call("GET", "/_sandbox/ledger?after=1")
    assert [entry["refund_id"] for entry in entries] == ["r2", "r3"]
    (entry,) = provider.sandbox.call("GET", "/_sandbox/ledger?refund_id=r2")
    assert entry["seq"] == 2


def test_an_indiscreet_error_repeats_the_key_and_the_body_and_a_good_answer_does_not() -> None:
    asked: Any = {"metadata": {"email": "a@customer.example"}}
    with asking(indiscreet=True, faults="http_503_after:n=2") as provider:
        good, failed = provider.refund(**asked), provider.refund(**asked)
        refused = provider.refund("pi_declined_1", **asked)
        assert basic("sk_test_planted") not in good.body.decode()
        for answer, status in ((failed, 503), (refused, 402)):
            assert answer.status == status
            assert basic("sk_test_planted") in answer.json["error"]["message"]
            assert "a@customer.example" in answer.json["error"]["message"]
        provider.sandbox.set_modes(indiscreet=False)
        assert b"customer" not in provider.refund("pi_declined_1", **asked).body


def test_an_indiscreet_flat_error_repeats_the_key_too() -> None:
    with asking(indiscreet=True, envelope="flat") as provider:
        assert basic("sk_test_planted") in provider.get("/v1/refunds/re_none").json["message"]
