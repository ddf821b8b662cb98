"""What a payment's list of refunds proves: each way to be found, each way to be absent, and every
reason to say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import NOW, a_refund, found
from tests.unit.rules.siblings import IN_DOUBT, LONG_AGO, STARTED, sibling
from worker.model.answers import ProviderRefund, Readback, ReadbackVerdict
from worker.model.refund import Refund, Stage
from worker.rules.evidence import judge_list


def foreign(**fields: Any) -> ProviderRefund:
    return found(
        **({"id": "re_f", "refund_id": None, "generation": None, "created": LONG_AGO} | fields)
    )


def listed(
    *entries: ProviderRefund,
    complete: bool = True,
    siblings: Sequence[Refund] | None = (),
    refund: Refund = IN_DOUBT,
) -> Readback:
    return judge_list(refund, entries, complete=complete, siblings=siblings)


@pytest.mark.parametrize("complete", [True, False])
def test_listed_with_our_id_is_found_at_once_even_in_half_a_list(
    complete: bool,  # noqa: FBT001 - both cases
) -> None:
    look = listed(foreign(created=NOW), found(), complete=complete)
    assert (look.verdict, look.found) == (ReadbackVerdict.FOUND, found())


def test_entry_with_our_id_and_no_generation_is_ours() -> None:
    assert listed(found(generation=None)).verdict is ReadbackVerdict.FOUND


def test_one_refund_shown_on_two_pages_is_one_refund() -> None:
    assert listed(found(), found()).verdict is ReadbackVerdict.FOUND


def test_two_refunds_with_our_id_are_a_conflict() -> None:
    assert listed(found(), found(id="re_2")).verdict is ReadbackVerdict.CONFLICT


@pytest.mark.parametrize(
    "fields",
    [{"amount": 1}, {"currency": "eur"}, {"payment_intent": "pi_other"}, {"status": None}],
    ids=str,
)
def test_entry_with_our_id_and_a_field_that_is_not_ours_is_a_conflict(
    fields: dict[str, Any],
) -> None:
    look = listed(found(**fields))
    assert (look.verdict, look.found) == (ReadbackVerdict.CONFLICT, None)
    assert look.odd == ("re_1",)


def test_entry_with_our_id_in_a_status_that_is_not_known_is_shown_to_a_person_with_its_word() -> (
    None
):
    entry = found(status="on_hold")
    assert listed(entry) == Readback(
        verdict=ReadbackVerdict.CONFLICT,
        reason="the provider shows an unknown status: 'on_hold'",
        found=entry,
    )


def test_empty_whole_list_shows_absence() -> None:
    assert listed().verdict is ReadbackVerdict.ABSENT


@pytest.mark.parametrize(
    ("entry", "siblings"),
    [
        (foreign(amount=499), []),
        (found(id="re_2", refund_id="order-1001-2", created=NOW), [sibling()]),
        (foreign(id="re_2", created=NOW), [sibling()]),
        (
            found(id="re_2", refund_id="order-1001-2", created=NOW),
            [sibling(Stage.IN_DOUBT, provider_refund_id=None)],
        ),
    ],
    ids=[
        "of another amount than ours",
        "a sibling's by id",
        "a sibling's by its provider id",
        "an unsettled sibling's",
    ],
)
def test_list_in_which_every_entry_is_explained_shows_absence(
    entry: ProviderRefund, siblings: Sequence[Refund]
) -> None:
    assert listed(entry, siblings=siblings).verdict is ReadbackVerdict.ABSENT


def test_refund_that_a_person_only_named_for_a_sibling_may_be_this_one() -> None:
    named = sibling(Stage.PROCESSING, provider_refund_id="re_2", operator_says="succeeded")
    entry = foreign(id="re_2", created=NOW)
    assert (
        listed(entry, siblings=[replace(named, operator_says=None)]).verdict
        is ReadbackVerdict.ABSENT
    )
    assert listed(entry, siblings=[named]).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("status", "prior_refund_ids"),
    [("failed", None), ("canceled", None), ("succeeded", "re_0 re_1"), ("pending", "re_1")],
)
def test_an_earlier_generation_of_ours_is_not_this_one(
    status: str, prior_refund_ids: str | None
) -> None:
    # One that is known is read by its id before anything is sent.
    refund = a_refund(Stage.IN_DOUBT, generation=2, prior_refund_ids=prior_refund_ids)
    look = listed(found(generation="1", status=status), refund=refund)
    assert look.verdict is ReadbackVerdict.ABSENT


@pytest.mark.parametrize("status", ["succeeded", "pending", "on_hold", None])
def test_earlier_generation_of_ours_that_stands_and_is_not_known_proves_no_absence(
    status: str | None,
) -> None:
    # The record says that nothing of it moved. Another send would move the money twice.
    refund = a_refund(Stage.IN_DOUBT, generation=2, prior_refund_ids="re_0")
    look = listed(found(generation="1", status=status), refund=refund)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("generation", ["01", "002"])
def test_failed_entry_whose_generation_is_written_in_another_way_is_not_explained(
    generation: str,
) -> None:
    refund = a_refund(Stage.IN_DOUBT, generation=int(generation))
    look = listed(found(generation=generation, status="failed"), refund=refund)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE


def test_entry_with_our_id_and_no_generation_is_not_taken_for_a_later_one() -> None:
    refund = a_refund(Stage.IN_DOUBT, generation=2, first_attempt_at=STARTED)
    # It may be the first, which failed: what became of the second is not known.
    assert (
        listed(found(generation=None, status="failed"), refund=refund).verdict
        is ReadbackVerdict.INCONCLUSIVE
    )


@pytest.mark.parametrize("status", ["failed", "succeeded", "pending"])
def test_ours_beside_a_later_generation_that_is_not_known_here_is_a_conflict(status: str) -> None:
    look = listed(found(status=status), found(id="re_2", generation="2"))
    assert (look.verdict, "lost records had sent it again" in look.reason) == (
        ReadbackVerdict.CONFLICT,
        True,
    )


def test_ours_beside_an_earlier_generation_is_found() -> None:
    refund = a_refund(Stage.IN_DOUBT, generation=2, first_attempt_at=STARTED)
    ours = found(id="re_2", generation="2")
    for earlier in ("1", None, "x", ""):
        look = listed(found(generation=earlier, status="failed"), ours, refund=refund)
        assert (look.verdict, look.found) == (ReadbackVerdict.FOUND, ours)


def test_list_that_shows_a_later_generation_than_the_record_proves_no_absence() -> None:
    # A server that was restored from a snapshot does not know of the retry that was sent since.
    assert listed(found(generation="2", created=NOW)).verdict is not ReadbackVerdict.ABSENT


@pytest.mark.parametrize(
    ("entries", "complete", "siblings", "reason"),
    [
        ([], False, [], "not read to its end"),
        ([foreign(payment_intent="pi_other")], True, [], "do not belong to this payment"),
        ([foreign(payment_intent=None)], True, [], "do not belong to this payment"),
        ([], True, [sibling()], "leaves out 1 refund"),
        ([foreign(created=NOW)], True, [], "could be this one"),
        ([foreign()], True, [], "could be this one"),
        ([foreign(created=None)], True, [], "could be this one"),
        ([foreign(amount=None)], True, [], "could be this one"),
        ([foreign(amount=-1)], True, [], "could be this one"),
        ([foreign(status="failed")], True, [], "could be this one"),
        (
            [found(id="re_3", refund_id="not-in-our-records", created=NOW)],
            True,
            [sibling()],
            "leaves out",
        ),
        (
            [found(id="re_3", refund_id="not-in-our-records", created=NOW)],
            True,
            [],
            "could be this one",
        ),
        ([], True, None, "too many refunds"),
    ],
)
def test_list_with_a_gap_or_a_riddle_is_inconclusive(
    entries: Sequence[ProviderRefund],
    complete: bool,  # noqa: FBT001 - a table's column
    siblings: Sequence[Refund] | None,
    reason: str,
) -> None:
    look = listed(*entries, complete=complete, siblings=siblings)
    assert look.verdict is ReadbackVerdict.INCONCLUSIVE
    assert reason in look.reason


def test_any_unknown_refund_may_be_one_that_asked_for_all_that_is_left() -> None:
    everything = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED, amount=None, all_remaining=True)
    assert listed(foreign(amount=3), refund=everything).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize("days", [-400, -1, 0, 1])
def test_date_of_an_entry_explains_nothing(days: int) -> None:
    # The list drops our metadata, and dates by another clock, or by the day: this entry is our own
    # refund.
    ours_unnamed = found(refund_id=None, generation=None, created=STARTED + timedelta(days=days))
    assert listed(ours_unnamed).verdict is ReadbackVerdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("generation", "verdict"),
    [("1", ReadbackVerdict.ABSENT), ("2", ReadbackVerdict.INCONCLUSIVE)],
)
def test_failed_refund_beside_the_one_that_the_provider_had_reported_says_nothing_of_it(
    generation: str, verdict: ReadbackVerdict
) -> None:
    refund = replace(IN_DOUBT, provider_refund_id="re_1")
    other = found(id="re_2", status="failed", generation=generation)
    assert listed(other, refund=refund).verdict is verdict
