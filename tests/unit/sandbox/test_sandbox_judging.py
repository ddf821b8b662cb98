from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.sandbox.asking import Asking, asking
from worker.sandbox.judging import (
    as_of,
    false_failed,
    false_succeeded,
    made_beside_another,
    made_by,
    reversals,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = {"refund_id": "order-1"}


@pytest.fixture
def provider() -> Iterator[Asking]:
    with asking(settle_ms=None) as running:
        yield running


def test_a_record_is_compared_with_the_status_that_a_reversal_left(provider: Asking) -> None:
    made = provider.refund(amount="5", metadata=OURS).json
    provider.sandbox.move_refund(made["id"], "failed")
    ledger = provider.sandbox.ledger()
    own = made_by(ledger)["order-1"]
    assert false_succeeded(own, [one for one in own if one.status == "succeeded"]) is not None
    assert false_failed("failed", own) is None
    provider.sandbox.move_refund(made["id"], "succeeded")
    assert false_failed("failed", made_by(provider.sandbox.ledger())["order-1"]) is not None


def test_the_ledger_of_a_moment_ends_before_later_reversals(provider: Asking) -> None:
    made = provider.refund(amount="5", metadata=OURS).json
    (effect,) = provider.sandbox.ledger()
    provider.sandbox.move_refund(made["id"], "failed")
    then = as_of(provider.sandbox.ledger(), effect["time"])
    assert [one.status for one in made_by(then)["order-1"]] == ["succeeded"]


def test_reversals_are_found_in_both_directions_and_settling_is_not_one(provider: Asking) -> None:
    made = provider.refund("pi_pending_succeeded_1", amount="5", metadata=OURS).json
    provider.sandbox.advance()
    provider.sandbox.move_refund(made["id"], "canceled")
    provider.sandbox.move_refund(made["id"], "succeeded")
    found = list(reversals(provider.sandbox.ledger()))
    assert [(one.id, one.refund_id, one.was, one.status) for one in found] == [
        (made["id"], "order-1", "succeeded", "canceled"),
        (made["id"], "order-1", "canceled", "succeeded"),
    ]
    assert found[0].seconds <= found[1].seconds


@pytest.mark.parametrize("payment", ["pi_1", "pi_failed_1"])
def test_a_retry_is_blamed_only_if_the_earlier_refund_had_come_back_before_it(
    provider: Asking, payment: str
) -> None:
    first = provider.refund(payment, amount="5", metadata=OURS).json
    if payment == "pi_1":
        provider.sandbox.move_refund(first["id"], "failed")
    provider.refund("pi_2", amount="5", metadata=OURS)
    provider.sandbox.move_refund(first["id"], "succeeded")
    assert list(made_beside_another(provider.sandbox.ledger())) == []
    provider.refund("pi_2", amount="5", metadata=OURS)
    ((refund_id, fact),) = made_beside_another(provider.sandbox.ledger())
    assert refund_id == "order-1"
    assert first["id"] in fact
