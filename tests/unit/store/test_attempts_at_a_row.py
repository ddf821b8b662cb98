"""Of several attempts at one row of a file no two are on their way or done, whoever comes first."""

from __future__ import annotations

import pytest
import redis

from tests.factories import HOUR, a_request
from tests.support.store_calls import asked
from tests.support.store_world import World
from worker.importer.ids import MOST_ATTEMPTS, MadeId
from worker.model.refund import Lane, Stage, Status
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.rules import decisions
from worker.rules.proofs import settled_drops
from worker.store import creations, saves
from worker.store.saves import Saved

FIRST = f"f-{'0a' * 16}"


def named(attempt: int, occurrence: int = 1) -> str:
    return MadeId(FIRST, attempt, occurrence).text


def accept(world: World, refund_id: str, payment_intent: str | None = None) -> str:
    return world.accept(refund_id, payment_intent=payment_intent or f"pi_{refund_id}").result


def settle(world: World, refund_id: str, status: str) -> None:
    """End a refund so."""
    refund = world.get(refund_id)
    if status == "canceled":
        step = decisions.cancel(refund)
    else:
        claimed = world.claim(refund_id).refund
        assert claimed is not None
        refund = claimed
        step = Step(to=Stage.SETTLED, status=Status(status), label="ended", changes=settled_drops())
    assert world.store.run(saves.save(refund, step)).result == "saved"


def retry(world: World, refund_id: str) -> Saved:
    refund = world.get(refund_id)
    step = decisions.retry_failed(refund)
    assert step is not None
    return world.store.run(saves.save(refund, step))


@pytest.mark.parametrize("occurrence", [1, 3])
@pytest.mark.parametrize("other", [2, 3, MOST_ATTEMPTS])
@pytest.mark.parametrize("status", [None, "succeeded"])
def test_a_failed_attempt_is_not_retried_beside_another(
    world: World, other: int, occurrence: int, status: str | None
) -> None:
    first, later = named(1, occurrence), named(other, occurrence)
    accept(world, first)
    settle(world, first, "failed")
    accept(world, later)
    if status is not None:
        settle(world, later, status)
    before = world.get(first)
    told = retry(world, first)
    assert (told.result, told.other) == ("attempted", later)
    assert world.get(first) == before


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_failed_attempt_is_retried_if_the_others_came_to_nothing(
    world: World, status: str
) -> None:
    for attempt in (1, 2):
        accept(world, named(attempt))
        settle(world, named(attempt), "failed" if attempt == 1 else status)
    assert retry(world, named(1)).result == "saved"


@pytest.mark.parametrize("shown", ["contradicted_by", "set_aside_ids"])
@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_an_attempt_stands_while_the_provider_shows_that_it_was_done_after_all(
    world: World, status: str, shown: str
) -> None:
    accept(world, named(1))
    settle(world, named(1), "failed")
    accept(world, named(2))
    settle(world, named(2), status)
    world.redis.hset(f"refunds:refund:{named(2)}", shown, "re_late")
    told = retry(world, named(1))
    assert (told.result, told.other, accept(world, named(3))) == ("attempted", named(2), "conflict")
    world.redis.hdel(f"refunds:refund:{named(2)}", shown)
    assert retry(world, named(1)).result == "saved"


def test_a_later_attempt_is_not_retried_beside_an_earlier_one(world: World) -> None:
    for attempt in (1, 2):
        accept(world, named(attempt))
        settle(world, named(attempt), "failed")
    assert retry(world, named(1)).result == "saved"
    told = retry(world, named(2))
    assert (told.result, told.other) == ("attempted", named(1))


@pytest.mark.parametrize("status", [None, "succeeded"])
@pytest.mark.parametrize(("earlier", "later"), [(1, 2), (1, 3), (2, 3), (2, MOST_ATTEMPTS), (3, 2)])
def test_a_further_attempt_is_refused_beside_another(
    world: World, earlier: int, later: int, status: str | None
) -> None:
    accept(world, named(earlier))
    if status is not None:
        settle(world, named(earlier), status)
    before = world.dump()
    assert accept(world, named(later)) == "conflict"
    assert world.dump() == before


@pytest.mark.parametrize("payment", ["pi_1", "pi_wrong"])
@pytest.mark.parametrize("status", [None, "succeeded"])
@pytest.mark.parametrize(("later", "occurrence"), [(2, 1), (2, 3), (MOST_ATTEMPTS, 1)])
def test_a_first_attempt_is_refused_beside_a_further_one(
    world: World, later: int, occurrence: int, status: str | None, payment: str
) -> None:
    """A file may be imported with `--attempt 2` before it is imported without.

    The further attempt may have corrected the payment.
    """
    further = named(later, occurrence)
    assert accept(world, further, "pi_1") == "created"
    if status is not None:
        settle(world, further, status)
    before = world.dump()
    assert accept(world, named(1, occurrence), payment) == "conflict"
    assert world.dump() == before


@pytest.mark.parametrize("digits", ["1001", "0a" * 15, "0a" * 17])
def test_a_callers_own_id_with_another_number_of_digits_is_not_an_attempt_at_a_row(
    world: World, digits: str
) -> None:
    for own in (f"f-{digits}", f"f-{digits}-a2", f"f-{digits}-a3"):
        assert accept(world, own) == "created"
    settle(world, f"f-{digits}-a2", "failed")
    assert retry(world, f"f-{digits}-a2").result == "saved"


def test_other_attempts_are_not_looked_for_if_a_row_has_no_mark(sync_redis: redis.Redis) -> None:
    world = World(sync_redis)

    def reads(refund_id: str) -> int:
        sync_redis.config_resetstat()
        assert accept(world, refund_id) == "created"
        return asked(sync_redis)["hmget"] + asked(sync_redis).get("hget", 0)

    of_any = reads("order-1")
    assert reads(named(1)) == of_any
    settle(world, named(1), "failed")
    # The first attempt is read, and no other.
    assert reads(named(2)) == of_any + 1


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_first_attempt_is_accepted_if_the_further_ones_came_to_nothing(
    world: World, status: str
) -> None:
    accept(world, named(2), "pi_1")
    settle(world, named(2), status)
    assert accept(world, named(2, 2), "pi_1") == "created"
    assert accept(world, named(1), "pi_1") == "created"


def test_a_row_is_marked_as_long_as_the_record_of_a_further_attempt_is_kept(world: World) -> None:
    mark = f"attempts:{named(1, 3)}"
    accept(world, named(1, 3))
    settle(world, named(1, 3), "failed")
    assert world.keys("attempts*") == []
    accept(world, named(2, 3))
    assert not world.expires(mark)
    settle(world, named(2, 3), "failed")
    assert world.expires(mark)
    assert retry(world, named(2, 3)).result == "saved"
    assert not world.expires(mark)
    settle(world, named(2, 3), "succeeded")
    assert world.expires(mark)


def test_a_mark_outlives_an_earlier_attempt_that_changes_meanwhile(world: World) -> None:
    mark = f"attempts:{named(1)}"
    for attempt in (2, 3):
        accept(world, named(attempt))
        settle(world, named(attempt), "failed")
    accept(world, named(4))

    def touch(refund_id: str) -> None:
        step = Step(to=Stage.SETTLED, status=Status.FAILED, label="identified")
        assert world.save(world.get(refund_id), step).result == "saved"

    touch(named(2))
    assert not world.expires(mark)
    settle(world, named(4), "failed")
    world.redis.pexpire(f"refunds:{mark}", 5000)
    touch(named(2))
    assert int(world.redis.pttl(f"refunds:{mark}")) > 5000


def test_a_further_attempt_that_is_accepted_after_a_recovery_marks_its_row(world: World) -> None:
    until = to_ms(world.now + HOUR)
    world.redis.hset("refunds:meta", "suspect_since", str(to_ms(world.now)))
    world.redis.hset("refunds:meta", "suspect_until", str(until))
    accept(world, named(2))
    assert world.get(named(2)).stage is Stage.IN_DOUBT
    assert accept(world, named(1)) == "conflict"


@pytest.mark.parametrize("attempts", [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("occurrence", [1, 3])
def test_one_script_accepts_one_attempt_at_a_row(
    world: World, attempts: tuple[int, int], occurrence: int
) -> None:
    requests = [
        a_request(named(attempt, occurrence), payment_intent=f"pi_{attempt}")
        for attempt in attempts
    ]
    made = world.store.run(creations.create_several(requests, Lane.BULK))
    assert [each.result for each in made] == ["created", "conflict"]
    assert world.get(requests[0].refund_id).status == "pending"
    assert world.store.get(requests[1].refund_id) is None


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_further_attempt_is_accepted_if_the_others_came_to_nothing(
    world: World, status: str
) -> None:
    accept(world, named(1))
    settle(world, named(1), status)
    assert accept(world, named(2)) == "created"
    assert [accept(world, named(attempt)) for attempt in (3, 2)] == ["conflict", "exists"]


@pytest.mark.parametrize("number", [1, MOST_ATTEMPTS + 1])
def test_an_id_with_a_number_that_no_attempt_has_is_no_attempt(world: World, number: int) -> None:
    accept(world, FIRST)
    settle(world, FIRST, "failed")
    assert accept(world, f"{FIRST}-a{number}") == "created"
    assert retry(world, FIRST).result == "saved"


def test_an_outcome_is_saved_whatever_became_of_the_other_attempts(world: World) -> None:
    accept(world, named(1))
    settle(world, named(1), "failed")
    accept(world, named(2))
    # The provider has turned it, and a person has settled it so.
    world.redis.hset(f"refunds:refund:{named(1)}", "status", "succeeded")
    settle(world, named(2), "failed")
    assert world.get(named(2)).status == "failed"


def test_equal_rows_and_other_rows_are_no_attempts_at_each_other(world: World) -> None:
    accept(world, named(1, 2))
    accept(world, f"f-{'1b' * 16}")
    accept(world, "order-1")
    for refund_id in (named(1), named(1, 3), "order-1-a2", f"f-{'2c' * 16}-a2"):
        assert accept(world, refund_id) == "created"
        settle(world, refund_id, "failed")
        assert retry(world, refund_id).result == "saved"
