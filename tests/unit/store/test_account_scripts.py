"""What is kept of the provider's account.

Payments that were shown, prints of its keys, and what those keys can see.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import BLIND, HOUR, MAYBE, NOW, PAYMENT, SECOND, done_as
from tests.support.store_world import ID, P, World, at_stage
from worker.errors import NotStorable
from worker.model.refund import Stage
from worker.model.times import to_ms
from worker.rules import decisions
from worker.store import account_facts, claims, flags
from worker.store.account_facts import AccountFacts, Witnesses
from worker.store.scripts import Command

MISSING, CERTAIN, SHOWN = "missing", "certain", "shown"


def noted(world: World, found: Any, payment_intent: str = PAYMENT) -> str:
    return world.store.run(account_facts.payment(payment_intent, found))


@pytest.mark.parametrize("found", [MISSING, CERTAIN])
def test_payment_that_was_never_shown_may_be_missing(world: World, found: str) -> None:
    world.accept()
    before = world.dump()
    assert noted(world, found) == "unseen"
    assert world.dump() == before


def test_payment_that_was_shown_and_is_missing_is_suspect_and_stops_everything_once_that_is_certain(
    world: World,
) -> None:
    world.accept()
    world.redis.hset(f"{P}meta", "key_prints", "one two")
    assert noted(world, SHOWN) == "shown"
    before = world.dump()
    assert noted(world, MISSING) == "suspect"
    assert world.dump() == before
    assert noted(world, CERTAIN) == "raised"
    meta = world.hash("meta")
    assert meta == {"account_lost_at": str(to_ms(NOW)), "account_lost_payment": PAYMENT}
    world.pass_time(SECOND)
    assert [noted(world, found) for found in (MISSING, CERTAIN)] == ["lost", "lost"]
    # What is missing meanwhile says nothing of its own, shown once or not.
    assert noted(world, MISSING, "pi_never_shown") == "lost"
    assert world.hash("meta") == meta


@pytest.mark.parametrize("found", [MISSING, CERTAIN])
@pytest.mark.parametrize("stopped", [True, False])
def test_payment_that_a_person_calls_gone_is_nobodys_alarm(
    world: World, found: str, *, stopped: bool
) -> None:
    world.accept()
    noted(world, SHOWN)
    world.redis.hset(f"{P}payment:{PAYMENT}", "gone", "1")
    if stopped:
        world.redis.hset(f"{P}meta", "account_lost_at", "1")
    assert noted(world, found) == "unseen"
    assert noted(world, SHOWN) == "shown"
    assert "gone" not in world.hash(f"payment:{PAYMENT}")


@pytest.mark.parametrize("kind", ["send", "replay", "resend"])
def test_nothing_is_claimed_while_the_account_is_in_question(world: World, kind: Any) -> None:
    at_stage(world, Stage.QUEUED if kind == "send" else Stage.IN_DOUBT)
    world.redis.hset(
        f"{P}refund:{ID}", mapping={"proven_absent_at": to_ms(world.now), "next_check_at": "0"}
    )
    world.redis.hset(f"{P}meta", "account_lost_at", "1")
    claim = world.claim(kind=kind)
    assert claim.result == "account"
    assert claim.refund is not None
    assert claim.refund.next_check_at == NOW + 15 * SECOND
    world.redis.hdel(f"{P}meta", "account_lost_at")
    world.pass_time(15 * SECOND)
    assert world.claim(kind=kind).claimed


def test_further_try_is_left_out_while_the_account_is_in_question(world: World) -> None:
    world.accept()
    world.claim(token="mine")
    world.redis.hset(f"{P}meta", "account_lost_at", "1")
    assert world.store.run(claims.stands(ID, "mine")) == "account"


@pytest.mark.parametrize("shown", [True, False])
def test_claim_keeps_that_the_payment_was_shown_with_the_payment(
    world: World, *, shown: bool
) -> None:
    world.accept()
    assert world.claim(payment_shown=shown).claimed
    assert ("seen" in world.hash(f"payment:{PAYMENT}")) is shown
    assert "payment_shown" not in world.hash(f"refund:{ID}")
    world.check()


# Keys


def facts(world: World, salt: str = "salt", **known: str) -> AccountFacts:
    return world.store.run(account_facts.account(salt, **known))


def test_first_salt_is_kept(world: World) -> None:
    assert facts(world, "one") == AccountFacts(
        salt="one", account=None, prints=frozenset(), vouched=False
    )
    assert facts(world, "two").salt == "one"


def test_keys_that_are_known_are_kept_the_latest_eight_with_the_account(world: World) -> None:
    for number in range(10):
        facts(world, known=f"p{number}")
    assert facts(world, known="p5").prints == {f"p{number}" for number in (9, 8, 7, 6, 5, 4, 3, 2)}
    assert world.hash("meta")["key_prints"] == "p5 p9 p8 p7 p6 p4 p3 p2"
    assert facts(world, known="p5", account="acct_1").account == "acct_1"
    assert facts(world, known="p6").account == "acct_1"
    assert facts(world).account == "acct_1"


def test_persons_word_for_a_key_is_used_up_by_the_first_that_is_known_then(world: World) -> None:
    world.redis.hset(f"{P}meta", "account_vouched", to_ms(NOW))
    assert facts(world).vouched
    assert facts(world).vouched
    assert not facts(world, known="p1").vouched
    assert "account_vouched" not in world.hash("meta")


def test_persons_word_for_a_key_is_good_for_an_hour(world: World) -> None:
    world.redis.hset(f"{P}meta", "account_vouched", to_ms(NOW))
    world.pass_time(HOUR)
    assert facts(world).vouched
    world.pass_time(timedelta(milliseconds=1))
    assert not facts(world).vouched


def test_person_who_vouches_for_the_account_lets_everything_go_on(world: World) -> None:
    world.accept()
    noted(world, SHOWN)
    noted(world, CERTAIN)
    facts(world, known="p1", account="acct_1")
    before = flags.vouch_for_account(world.store)
    assert (before.account_lost_at, before.account_lost_payment) == (NOW, PAYMENT)
    assert {"key_salt": "salt", "account_vouched": str(to_ms(NOW))}.items() <= world.hash(
        "meta"
    ).items()
    assert (
        not {"account_lost_at", "account_lost_payment", "account", "key_prints"}
        & world.hash("meta").keys()
    )
    assert world.hash(f"payment:{PAYMENT}")["gone"] == "1"
    assert noted(world, CERTAIN) == "unseen"
    assert world.claim().claimed


def test_person_may_vouch_before_anything_is_missing(world: World) -> None:
    facts(world, known="p1")
    before = flags.vouch_for_account(world.store)
    assert (before.account_lost_at, sorted(before.key_prints)) == (None, ["p1"])
    assert facts(world).vouched
    assert world.keys("payment:*") == []


def test_key_is_known_by_its_print_alone() -> None:
    salted = flags.key_print("sk_test_a", "salt")
    assert len(salted) == 16
    assert salted != flags.key_print("sk_test_a", "pepper")
    assert salted != flags.key_print("sk_test_b", "salt")
    state = flags.Switches(key_salt="salt", key_prints=frozenset({salted, "other"}))
    assert (state.knows("sk_test_a"), state.knows("sk_test_b")) == (True, False)
    assert flags.Switches(key_salt="salt").knows("sk_test_a") is None
    assert flags.Switches(key_prints=frozenset({salted})).knows("sk_test_a") is None


# Witnesses


def witnesses(world: World, most: int = 3) -> Witnesses:
    return world.store.run(account_facts.witnesses(most))


def test_refunds_that_the_provider_has_shown_are_witnesses_the_newest_first(world: World) -> None:
    assert witnesses(world) == Witnesses(refunds=[], seen=[], unseen=[])
    for number in range(4):
        world.accept(str(number), payment_intent=f"pi_{number}")
        world.attempt(
            done_as("succeeded", id=f"re_{number}", payment_intent=f"pi_{number}"), str(number)
        )
        world.pass_time(SECOND)
    world.accept("5", payment_intent="pi_5")
    world.attempt(done_as("pending", id="re_5", payment_intent="pi_5"), "5")
    world.accept("6", payment_intent="pi_6")
    world.attempt(done_as("failed", id="re_6", payment_intent="pi_6"), "6")
    assert witnesses(world).refunds == ["re_5", "re_3", "re_2", "re_1"]
    assert witnesses(world, 1).refunds == ["re_5", "re_3"]
    for number in (7, 8):
        world.accept(str(number), payment_intent=f"pi_{number}")
        world.attempt(
            done_as("pending", id=f"re_{number}", payment_intent=f"pi_{number}"), str(number)
        )
    assert [len(witnesses(world, most).refunds) for most in (1, 2, 3, 4)] == [2, 4, 6, 7]


@pytest.mark.parametrize("fields", [{"operator_says": "succeeded"}, {"evidence": "operator"}])
def test_refund_that_only_a_person_named_is_not_a_witness(
    world: World, fields: dict[Any, Any]
) -> None:
    at_stage(world, Stage.PROCESSING)
    assert witnesses(world).refunds == [f"re_{ID}"]
    world.redis.hset(f"{P}refund:{ID}", mapping=fields)
    assert witnesses(world).refunds == []


def test_refund_that_was_found_in_totals_has_no_id_to_be_a_witness_by(world: World) -> None:
    at_stage(world, Stage.SETTLED)
    world.redis.hdel(f"{P}refund:{ID}", "provider_refund_id")
    assert witnesses(world).refunds == []


def test_payments_of_refunds_in_doubt_are_witnesses_those_that_were_shown_apart(
    world: World,
) -> None:
    for number, stage in enumerate(
        (Stage.QUEUED, Stage.SENDING, Stage.WAITING, Stage.IN_DOUBT, Stage.REVIEW)
    ):
        at_stage(world, stage, f"{number}", payment_intent=f"pi_{number}")
    assert sorted(witnesses(world).unseen) == ["pi_1", "pi_3", "pi_4"]
    for number in (0, 1, 4):
        noted(world, SHOWN, f"pi_{number}")
    assert (sorted(witnesses(world).seen), witnesses(world).unseen) == (["pi_1", "pi_4"], ["pi_3"])
    world.redis.hset(f"{P}payment:pi_4", "gone", "1")
    assert (witnesses(world).seen, sorted(witnesses(world).unseen)) == (["pi_1"], ["pi_3", "pi_4"])


def test_no_more_witnesses_of_a_sort_are_named_than_asked_for(world: World) -> None:
    for number in range(3):
        world.accept(str(number), payment_intent=f"pi_{number}")
        world.attempt(MAYBE, str(number))
    assert [len(witnesses(world, most).unseen) for most in (1, 2, 3, 4)] == [1, 2, 3, 3]
    for number in range(3):
        world.accept(f"r{number}", payment_intent=f"pi_r{number}")
        world.attempt(MAYBE, f"r{number}", rules=BLIND)
    assert len(witnesses(world, 2).unseen) == 2
    assert len(witnesses(world, 9).unseen) == 6


def test_refund_in_review_that_was_never_in_doubt_is_not_a_witness(world: World) -> None:
    at_stage(world, Stage.REVIEW)
    world.redis.hdel(f"{P}refund:{ID}", "doubt_since")
    assert witnesses(world).unseen == []


def test_id_in_an_index_whose_record_is_gone_is_passed_over(world: World) -> None:
    for name in ("succeeded", "in_doubt", "sending"):
        world.redis.zadd(f"{P}index:{name}", {"gone": 1})
    assert witnesses(world) == Witnesses(refunds=[], seen=[], unseen=[])


def test_recovered_refund_that_was_never_sent_is_a_witness_by_its_payment(world: World) -> None:
    world.accept()
    step = decisions.recovered(world.get(), NOW, NOW)
    assert step is not None
    world.save(world.get(), step)
    assert witnesses(world).unseen == [PAYMENT]


@pytest.mark.parametrize(
    "call",
    [account_facts.payment("pi_1", "shown"), account_facts.account("salt")],
    ids=["payment", "account"],
)
def test_script_that_is_given_too_little_changes_nothing(world: World, call: Command[Any]) -> None:
    with pytest.raises(NotStorable, match="too few arguments"):
        world.store.run(replace(call, arguments=call.arguments[:-1]))
    assert world.dump() == {}


def test_no_more_refunds_are_read_for_witnesses_than_are_asked_for(world: World) -> None:
    """The newest is not a witness, and those after it are not read in its place."""
    for name, number in (("old", 1), ("newest", 2)):
        at_stage(world, Stage.REVIEW, name, payment_intent=f"pi_{name}")
        world.redis.zadd(f"{P}index:review", {name: number})
    world.redis.hdel(f"{P}refund:newest", "doubt_since")
    assert witnesses(world, 1).unseen == []
    assert witnesses(world, 2).unseen == ["pi_old"]
