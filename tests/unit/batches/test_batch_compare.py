"""A file against the records: what is new, what stands, what contradicts, what would be paid back
twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Records
from worker.batches import Comparison, compare
from worker.importer import Accepted
from worker.model.request import RefundRequest


def row(refund_id: str, payment_intent: str = "pi_1", **fields: Any) -> RefundRequest:
    return RefundRequest(
        refund_id=refund_id, payment_intent=payment_intent, **{"amount": 500, **fields}
    )


def compared(records: Records, rows: Iterable[RefundRequest]) -> Comparison:
    return compare(records.store, (Accepted(line, request) for line, request in enumerate(rows, 2)))


def test_rows_are_new_known_by_status_or_in_conflict(records: Records) -> None:
    records.queued("a", payment_intent="pi_a", currency="usd")
    records.succeeded("b", "re_b", payment_intent="pi_b")
    records.in_review("c", payment_intent="pi_c")
    records.queued("d", payment_intent="pi_d", amount=499)
    records.succeeded("f", "re_f", payment_intent="pi_f", amount=499)
    requests = [
        row("a", "pi_a", currency="usd"),
        row("b", "pi_b"),
        row("c", "pi_c"),
        row("d", "pi_d"),
        row("e", "pi_e"),
        row("f", "pi_f"),
    ]
    found = compared(records, requests)
    assert (found.fresh, found.same, found.conflicting) == (1, 3, 2)
    assert found.statuses == {"pending": 1, "succeeded": 1, "review": 1}
    assert [each.row.line for each in found.first_conflicts] == [5, 7]


@pytest.mark.parametrize(("amount", "repeats"), [(500, 1), (501, 0), (None, 0)])
def test_the_same_payment_and_amount_under_another_id_is_found(
    records: Records, amount: int | None, repeats: int
) -> None:
    records.succeeded("a", "re_a", payment_intent="pi_1")
    found = compared(records, [row("b", "pi_1", amount=amount), row("c", "pi_2")])
    assert (found.repeats, [(each.row.line, each.refund_id) for each in found.first_repeats]) == (
        repeats,
        [(2, "a")] * repeats,
    )


def test_all_that_is_left_twice_is_a_repeat_whatever_it_came_to(records: Records) -> None:
    records.succeeded("a", "re_a", payment_intent="pi_1", amount=None)
    assert records.get("a").amount == 500
    assert compared(records, [row("b", amount=None)]).repeats == 1
    assert compared(records, [row("b", amount=500)]).repeats == 0


def test_what_failed_moved_nothing_and_may_be_paid_back_under_another_id(records: Records) -> None:
    records.failed("a", payment_intent="pi_1")
    assert compared(records, [row("b")]).repeats == 0


@pytest.mark.parametrize("shown", ["contradicted_by", "set_aside_ids"])
@pytest.mark.parametrize("others", [0, 201])
def test_what_failed_is_repeated_if_the_provider_shows_that_it_was_done_after_all(
    records: Records, others: int, shown: str
) -> None:
    records.failed("a", payment_intent="pi_1")
    records.store.redis.hset("refunds:refund:a", shown, "re_late")
    for number in range(others):
        records.queued(f"old-{number}", payment_intent="pi_1", amount=1000 + number)
    found = compared(records, [row("b")])
    assert [(each.row.line, each.refund_id) for each in found.first_repeats] == [(2, "a")]


def test_a_row_that_stands_is_no_repeat_of_itself(records: Records) -> None:
    records.queued("a", payment_intent="pi_1")
    found = compared(records, [row("a")])
    assert (found.same, found.repeats) == (1, 0)


def test_a_payment_with_very_many_refunds_is_read_once_however_many_rows_name_it(
    records: Records, any_redis: redis.Redis
) -> None:
    for number in range(300):
        records.queued(f"old-{number}", payment_intent="pi_1", amount=1000 + number)
    trips: list[str] = []
    inner = any_redis.hscan_iter
    any_redis.hscan_iter = lambda name, **more: trips.append(name) or inner(name, **more)  # type: ignore[method-assign,func-returns-value]
    found = compared(
        records, [row(f"new-{number}", "pi_1", amount=900 + number) for number in range(600)]
    )
    assert (found.fresh, found.repeats) == (600, 300)
    assert [each.refund_id for each in found.first_repeats[:2]] == ["old-0", "old-1"]
    assert trips == ["refunds:payment:pi_1"]


def test_comparing_writes_nothing(records: Records, any_redis: redis.Redis) -> None:
    records.queued("a", payment_intent="pi_1")
    before = {key: any_redis.dump(key) for key in any_redis.scan_iter()}
    compared(records, [row("a"), row("b")])
    assert {key: any_redis.dump(key) for key in any_redis.scan_iter()} == before
