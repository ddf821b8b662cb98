"""What a claim makes of a person's word about a refund, and of a total that was read before."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import HOUR
from tests.support.store_world import ID, LEASE, P, World, at_stage
from worker.errors import NotStorable
from worker.model.refund import Baseline, Stage
from worker.model.times import to_ms
from worker.store import claims
from worker.store.claims import ClaimKind

TOTAL = '{"refunded":1,"currency":"usd","remaining":2}'
WORD = {"operator_says": "absent", "operator_by": "ann", "operator_code": "gone"}
UNREAD = {**WORD, "operator_unverified": "1"}
"""A person decided without a read-back."""


def claimed(world: World, kind: ClaimKind, fields: dict[Any, Any], **options: Any) -> Any:
    """Claim a refund with such fields, and return its record as it is stored."""
    at_stage(world, Stage.WAITING if kind == "send" else Stage.IN_DOUBT)
    world.pass_time(HOUR)
    known: dict[Any, Any] = {} if kind == "send" else {"proven_absent_at": to_ms(world.now)}
    world.redis.hset(f"{P}refund:{ID}", mapping={**known, **fields})
    claim = world.claim(kind=kind, **options)
    assert claim.claimed
    assert claim.refund == world.get()
    return world.hash(f"refund:{ID}")


@pytest.mark.parametrize(
    ("kind", "resends", "kept"),
    [("send", "0", None), ("send", "1", TOTAL), ("send", "2", TOTAL), ("resend", "0", TOTAL)],
)
def test_total_of_before_an_attempt_that_did_nothing_is_dropped_unless_it_proved_an_absence(
    world: World, kind: ClaimKind, resends: str, kept: str | None
) -> None:
    stored = claimed(world, kind, {"baseline": TOTAL, "resends": resends})
    assert stored.get("baseline") == kept


def test_total_that_was_read_again_takes_the_place_of_the_one_before(world: World) -> None:
    newer = Baseline(refunded=5, currency="usd", remaining=3)
    claimed(world, "send", {"baseline": TOTAL}, baseline=newer)
    assert world.get().baseline == newer


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        # What may have happened before was never read, so this send is not the first.
        ("send", UNREAD, {"doubted": "1", "absent_by_word": "1", "resends": "1"}),
        (
            "send",
            {**UNREAD, "doubted": "1", "evidence": "operator", "resends": "1"},
            {"doubted": "1", "absent_by_word": "1", "resends": "2"},
        ),
        (
            "send",
            {**UNREAD, "absent_by_word": "1", "resends": "1"},
            {"doubted": "1", "absent_by_word": "1", "resends": "1"},
        ),
        ("send", {**UNREAD, "doubted": "1", "evidence": "list"}, {"doubted": "1"}),
        ("send", WORD, {}),
        ("resend", {**UNREAD, "looks": "2"}, {"doubted": "1", "resends": "1"}),
        ("resend", WORD, {"doubted": "1", "resends": "1"}),
        # It counts for an earlier refund, and ends once it is known what became of the send.
        (
            "send",
            {**UNREAD, "prior_refund_ids": "re_1"},
            {**UNREAD, "doubted": "1", "absent_by_word": "1", "resends": "1"},
        ),
        ("send", {**WORD, "prior_refund_ids": "re_1"}, {}),
    ],
)
def test_persons_word_ends_with_the_send_and_leaves_a_doubt_if_nothing_was_read(
    world: World, kind: ClaimKind, fields: dict[str, str], expected: dict[str, str]
) -> None:
    stored = claimed(world, kind, fields)
    told = {*UNREAD, "doubted", "absent_by_word", "resends"}
    assert {name: value for name, value in stored.items() if name in told} == expected
    assert not {"doubt_since", "quiet_at", "absent_at", "proven_absent_at", "looks"} & {*stored}


def test_refund_that_a_person_has_given_up_is_not_sent(world: World) -> None:
    world.accept()
    world.redis.hset(f"{P}refund:{ID}", "operator_says", "failed")
    before = world.dump()
    assert world.claim().result == "unchecked"
    assert world.dump() == before


def test_token_without_a_letter_or_digit_claims_nothing(world: World) -> None:
    world.accept()
    before = world.dump()
    with pytest.raises(NotStorable, match="the token has no letter or digit"):
        world.store.run(claims.claim(ID, "send", token="-.-", lease=LEASE))
    assert world.dump() == before
