"""One refund from an order system to a settled record, through real processes and sockets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.installation import Installation, until
from worker import RefundRequest
from worker.sandbox.config import SandboxConfig

CUT = "cut_after:n=1"


def request(
    refund_id: str = "order-1-1", payment_intent: str = "pi_1", **fields: object
) -> RefundRequest:
    values: dict[str, object] = {
        "amount": 500,
        "reason": "requested_by_customer",
        "metadata": {"order": "1"},
    }
    return RefundRequest(refund_id=refund_id, payment_intent=payment_intent, **{**values, **fields})  # type: ignore[arg-type]  # a test's free choice of fields


def posts(installation: Installation) -> list[dict[str, Any]]:
    return [seen for seen in installation.sandbox.requests() if seen["method"] == "POST"]


def test_a_refund_is_sent_once_and_recorded_as_succeeded(installation: Installation) -> None:
    installation.start()
    with installation.refunds() as refunds:
        accepted = refunds.submit(request())
        assert (accepted.status, accepted.stage) == ("pending", "queued")
        settled = refunds.wait("order-1-1", timeout=20)
    assert (settled.status, settled.stage, settled.attempts) == ("succeeded", "settled", 1)
    effects = installation.sandbox.effects("order-1-1")
    assert [effect["refund"] for effect in effects] == [settled.provider_refund_id]


def test_the_same_id_again_moves_nothing(installation: Installation) -> None:
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        first = refunds.wait("order-1-1", timeout=20)
        assert refunds.submit(request()) == first
    assert len(installation.sandbox.effects()) == 1


def test_each_answer_of_the_provider_becomes_its_status(installation: Installation) -> None:
    becomes = {
        "pi_declined_1": ("failed", "card_declined"),
        "pi_pending_succeeded_1": ("succeeded", None),
        "pi_pending_failed_1": ("failed", "unknown"),
        "pi_missing_1": ("failed", "resource_missing"),
        "pi_refunded_1": ("failed", "charge_already_refunded"),
    }
    installation.sandbox.set_modes(settle_ms=100)
    installation.start()
    with installation.refunds() as refunds:
        for payment_intent in becomes:
            refunds.submit(request(f"of-{payment_intent}", payment_intent))
        settled = [refunds.wait(f"of-{payment_intent}", timeout=20) for payment_intent in becomes]
    assert {
        refund.payment_intent: (refund.status, refund.error_code) for refund in settled
    } == becomes


@pytest.mark.parametrize(
    ("settings", "evidence"),
    [
        ({"REFUNDS_READBACK": "list"}, "list"),
        ({"REFUNDS_READBACK": "totals", "REFUNDS_TOTALS": "proof"}, "totals"),
        ({"REFUNDS_READBACK": "totals", "REFUNDS_TOTALS": "hint"}, "totals"),
    ],
)
def test_a_reply_cut_after_the_effect_is_found_and_never_sent_again(
    installation: Installation, settings: dict[str, str], evidence: str
) -> None:
    installation.settings |= settings
    installation.sandbox.set_faults(CUT)
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        settled = refunds.wait("order-1-1", timeout=30)
    effects = installation.sandbox.effects("order-1-1")
    assert len(effects) == 1
    assert len(posts(installation)) == 1
    assert (settled.status, settled.evidence) == ("succeeded", evidence)
    assert settled.provider_refund_id == (effects[0]["refund"] if evidence == "list" else None)


@pytest.mark.parametrize(
    "settings",
    [{"REFUNDS_READBACK": "none"}, {"REFUNDS_READBACK": "totals", "REFUNDS_TOTALS": "hint"}],
)
def test_what_cannot_be_told_goes_to_a_person_and_is_never_sent_again(
    installation: Installation, settings: dict[str, str]
) -> None:
    installation.settings |= settings
    # Without an effect a hint proves nothing; without a read-back nothing does.
    installation.sandbox.set_faults("reset_before:n=1")
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        (record,) = installation.settled(refunds, ["order-1-1"])
    assert (record.status, record.stage) == ("pending", "review")
    assert record.doubt_since is not None
    assert len(posts(installation)) == 1
    assert installation.sandbox.effects() == []


@pytest.mark.parametrize(
    "settings",
    [{"REFUNDS_READBACK": "list"}, {"REFUNDS_READBACK": "totals", "REFUNDS_TOTALS": "proof"}],
)
def test_what_is_proven_absent_is_sent_again_with_the_same_bytes_and_key(
    installation: Installation, settings: dict[str, str]
) -> None:
    installation.settings |= settings
    installation.sandbox.set_faults("reset_before:n=1")
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        settled = refunds.wait("order-1-1", timeout=30)
    first, second = posts(installation)
    assert first["body"] == second["body"]
    assert first["headers"]["idempotency-key"] == second["headers"]["idempotency-key"]
    assert (settled.status, settled.attempts) == ("succeeded", 2)
    assert len(installation.sandbox.effects("order-1-1")) == 1


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(idempotency="honour", latency_ms=5)])
def test_trust_sends_the_same_key_again_within_the_attempt(installation: Installation) -> None:
    installation.settings |= {"REFUNDS_IDEMPOTENCY": "trust", "REFUNDS_SETTLE_SECONDS": "3600"}
    installation.sandbox.set_faults(CUT)
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        settled = refunds.wait("order-1-1", timeout=20)
    effects = installation.sandbox.effects("order-1-1")
    assert [effect["refund"] for effect in effects] == [settled.provider_refund_id]
    assert (settled.status, settled.attempts, len(posts(installation))) == ("succeeded", 1, 2)


@pytest.mark.parametrize("readback", ["list", "totals"])
def test_every_request_the_worker_makes_fits_the_endpoints_schema(
    installation: Installation, readback: str
) -> None:
    installation.settings |= {"REFUNDS_READBACK": readback, "REFUNDS_TOTALS": "proof"}
    installation.sandbox.set_faults("cut_after:n=2,reset_before:n=4")
    installation.start()
    with installation.refunds() as refunds:
        for number in range(5):
            refunds.submit(
                request(
                    f"order-{number}-1",
                    f"pi_{number}",
                    amount=None if number == 0 else 100 + number,
                )
            )
        records = installation.settled(refunds, [f"order-{number}-1" for number in range(5)])
    assert {record.status for record in records} == {"succeeded"}
    assert len(posts(installation)) >= 5
    assert [seen["schema_errors"] for seen in posts(installation) if seen["schema_errors"]] == []


def test_a_payment_in_another_currency_than_stated_is_refused_unsent(
    installation: Installation,
) -> None:
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request(payment_intent="pi_eur_1", currency="usd"))
        settled = refunds.wait("order-1-1", timeout=20)
    assert (settled.status, settled.error_code, posts(installation)) == (
        "failed",
        "currency_mismatch",
        [],
    )


def test_refunds_of_one_payment_go_one_after_the_other_and_all_are_done(
    installation: Installation,
) -> None:
    installation.start()
    ids = [f"order-1-{number}" for number in range(12)]
    with installation.refunds() as refunds:
        for refund_id in ids:
            refunds.submit(request(refund_id, amount=100))
        records = installation.settled(refunds, ids, seconds=40)
    assert {record.status for record in records} == {"succeeded"}
    assert installation.sandbox.summary()["moved_twice"] == {}
    assert len(installation.sandbox.effects()) == len(ids)


def test_refused_credentials_hold_all_back_and_fail_nothing(installation: Installation) -> None:
    installation.sandbox.set_faults("http_401:n=1:times=1000:on=any")
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        until(
            lambda: refunds.store.redis.hexists("refunds:meta", "credentials_refused_at"),
            "the breaker is open",
        )
        assert refunds.get("order-1-1").status == "pending"
        installation.sandbox.set_faults("")
        settled = refunds.wait("order-1-1", timeout=60)
    assert settled.status == "succeeded"
    assert len(installation.sandbox.effects()) == 1


def test_a_payment_that_cannot_be_read_before_the_send_puts_the_refund_off_and_sends_nothing(
    installation: Installation,
) -> None:
    installation.settings |= {"REFUNDS_READBACK": "totals"}
    installation.sandbox.set_faults("http_500_before:n=1:on=get_payment_intent")
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        settled = refunds.wait("order-1-1", timeout=40)
    assert (settled.status, settled.attempts, len(posts(installation))) == ("succeeded", 1, 1)
