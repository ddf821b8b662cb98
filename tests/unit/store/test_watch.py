"""The watch of settled refunds: each is read again once a rung, and none is left out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, NOW, SECOND, a_request, done_as, found
from tests.support.store_world import ID, World
from worker.errors import NotStorable
from worker.model.refund import Status
from worker.model.times import to_ms
from worker.rules import decisions
from worker.rules.rechecks import changed_by_provider
from worker.store import rechecks

DAY = timedelta(days=1)
MILLISECOND = timedelta(milliseconds=1)
RUNGS = (DAY, 7 * DAY)


def watch(world: World, rate: float = 1000, most: int = 1000) -> int:
    return world.store.run(rechecks.watch(RUNGS, rate=rate, most=most))


def settle(world: World, *names: str, status: str = "succeeded") -> None:
    for name in names:
        world.accept(a_request(name, payment_intent=f"pi_{name}"))
        world.attempt(done_as(status, id=f"re_{name}"), name)


def waiting(world: World) -> set[str]:
    members: list[str] = world.redis.zrange("refunds:rechecks", 0, -1)  # type: ignore[assignment]
    world.redis.delete("refunds:rechecks")
    return set(members)


def test_limits_of_rechecks_are_those_that_are_documented() -> None:
    limits = (rechecks.MOST_CANDIDATES, rechecks.MOST_OF_PAYMENT, rechecks.MOST_QUEUED)
    assert limits == (3, 200, 5000)
    assert (rechecks.REST, rechecks.FAILED_RUNGS) == (30 * SECOND, 2)


def test_settled_refund_is_read_again_once_on_each_rung(world: World) -> None:
    assert watch(world) == 0
    settle(world, "a")
    seen = []
    for hours in range(24 * 9):
        world.pass_time(HOUR)
        watch(world)
        seen += [(hours + 1, name) for name in sorted(waiting(world))]
    assert seen == [(24, "a"), (24 * 7, "a")]


def test_watch_begins_with_what_settles_from_now_on(world: World) -> None:
    settle(world, "old")
    world.pass_time(8 * DAY)
    assert watch(world) == 0
    assert watch(world) == 0
    assert world.hash("watch")["started_at"] == str(to_ms(world.now))
    settle(world, "new")
    world.pass_time(DAY)
    assert watch(world) == 1
    assert waiting(world) == {"new"}


def test_all_refunds_of_one_millisecond_are_added_whatever_the_budget(world: World) -> None:
    watch(world)
    settle(world, *"abcdefgh")
    world.pass_time(SECOND)
    settle(world, "later")
    world.pass_time(DAY)
    assert watch(world, most=3) == 8
    assert waiting(world) == set("abcdefgh")
    world.pass_time(SECOND)
    assert watch(world, most=3) == 1
    assert waiting(world) == {"later"}


def test_all_workers_together_add_no_more_than_the_rate(world: World) -> None:
    watch(world)
    for number in range(100):
        settle(world, f"r{number}")
        world.pass_time(SECOND / 1000)
    world.pass_time(DAY)
    waiting(world)
    added = 0
    for _ in range(20):
        world.pass_time(SECOND)
        added += sum(watch(world, rate=2, most=10) for _ in range(8))
    # A day without a call allows one full call.
    assert added == 10 + 2 * 19


def test_slow_rate_is_saved_up_until_it_allows_one(world: World) -> None:
    watch(world)
    settle(world, "a", "b")
    world.pass_time(DAY)
    world.redis.hset("refunds:watch", "spent_at", str(to_ms(world.now)))
    added = []
    for _ in range(25):
        world.pass_time(SECOND)
        added.append(watch(world, rate=0.1, most=1))
    assert sum(added[:9]) == 0
    assert added[9] == 2  # Both settled in one millisecond.


@pytest.mark.parametrize(("status", "days"), [("failed", [1, 2]), ("succeeded", [1, 2, 3])])
def test_failed_refund_is_read_again_on_the_first_rungs_only(
    world: World, status: str, days: list[int]
) -> None:
    rungs = [number * DAY for number in (1, 2, 3)]
    command = rechecks.watch(rungs, rate=1000, most=1000)
    world.store.run(command)
    settle(world, "a", status=status)
    seen = []
    for day in range(1, 5):
        world.pass_time(DAY)
        world.store.run(command)
        seen += [day for _ in waiting(world)]
    assert seen == days


def test_failed_refunds_with_a_provider_id_are_read_again_and_others_are_passed_over(
    world: World,
) -> None:
    watch(world)
    settle(world, "failed", status="failed")
    settle(world, "good", "blind", "refused")
    world.redis.hdel("refunds:refund:blind", "provider_refund_id")
    world.pass_time(DAY)
    watch(world)
    assert waiting(world) == {"failed", "good", "refused"}
    assert world.hash("watch")["blind"] == "1"


@pytest.mark.parametrize("status", ["failed", "canceled", "succeeded"])
def test_refund_whose_earlier_generation_had_failed_is_read_again_without_an_id_of_its_own(
    world: World, status: str
) -> None:
    watch(world)
    settle(world, "retried", "never", status=status)
    for name in ("retried", "never"):
        world.redis.hdel(f"refunds:refund:{name}", "provider_refund_id")
    world.redis.hset("refunds:refund:retried", "prior_refund_ids", "re_0")
    world.pass_time(DAY)
    assert watch(world) == 1
    assert waiting(world) == {"retried"}


def test_watch_adds_nothing_while_too_many_rechecks_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rechecks, "MOST_QUEUED", 2)
    watch(world)
    settle(world, "a")
    world.pass_time(DAY)
    world.redis.zadd("refunds:rechecks", {"x": 1, "y": 1})
    assert watch(world) == 0
    world.redis.zrem("refunds:rechecks", "x")
    assert watch(world) == 1


def test_watch_notes_nothing_while_what_waits_is_of_another_type(world: World) -> None:
    world.redis.set("refunds:rechecks", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        watch(world)
    assert world.dump() == before


def test_refund_that_is_gone_or_no_longer_settled_is_passed_over(world: World) -> None:
    watch(world)
    settle(world, "gone", "kept")
    world.redis.delete("refunds:refund:gone")
    world.pass_time(DAY)
    assert watch(world) == 1
    assert waiting(world) == {"kept"}


@pytest.mark.parametrize(
    ("field", "value"), [("stage", "queued"), ("status", "failed"), ("stage", "review")]
)
def test_refund_that_its_index_does_not_describe_is_passed_over(
    world: World, field: str, value: str
) -> None:
    watch(world)
    settle(world, "changed", "kept")
    world.redis.hset("refunds:refund:changed", field, value)
    world.pass_time(DAY)
    assert watch(world) == 1
    assert waiting(world) == {"kept"}


def test_canceled_refund_that_had_never_failed_is_passed_over(world: World) -> None:
    watch(world)
    settle(world, "a", status="canceled")
    world.redis.hset("refunds:refund:a", mapping={"status": "canceled"})
    world.redis.zadd("refunds:index:canceled", {"a": to_ms(world.now)})
    world.redis.zrem("refunds:index:failed", "a")
    world.pass_time(DAY)
    assert watch(world) == 0


def test_nothing_is_saved_up_within_a_millisecond(world: World) -> None:
    watch(world)
    settle(world, "a")
    world.pass_time(SECOND)
    settle(world, "b")
    world.pass_time(DAY)
    assert [watch(world, rate=2000, most=1) for _ in range(2)] == [1, 0]


def test_nothing_is_passed_over_if_the_budget_ends_before_it(world: World) -> None:
    """What comes later keeps its cursor, whichever status and rung it is of."""
    command = rechecks.watch([DAY, 2 * DAY], rate=1, most=1)
    world.store.run(command)
    settle(world, "good")
    world.pass_time(MILLISECOND)
    settle(world, "bad", status="failed")
    settle(world, "retried", status="failed")
    world.redis.hset("refunds:refund:retried", mapping={"prior_refund_ids": "re_0"})
    world.redis.hset("refunds:refund:retried", mapping={"status": "canceled"})
    world.redis.zadd("refunds:index:canceled", {"retried": to_ms(world.now)})
    world.redis.zrem("refunds:index:failed", "retried")
    world.pass_time(2 * DAY)
    read: list[str] = []
    for _ in range(6):
        assert world.store.run(command) == 1
        read += waiting(world)
        world.pass_time(SECOND)
    assert sorted(read) == ["bad", "bad", "good", "good", "retried", "retried"]
    assert world.store.run(command) == 0


def test_cursor_never_goes_back(world: World) -> None:
    watch(world)
    ahead = str(to_ms(world.now + HOUR))
    field = f"succeeded:{int(DAY.total_seconds() * 1000)}"
    world.redis.hset("refunds:watch", mapping={field: ahead, "spent_at": "1"})
    watch(world)
    assert world.hash("watch")[field] == ahead


def test_more_than_a_page_of_refunds_is_walked_to_the_end(world: World) -> None:
    watch(world)
    start = to_ms(NOW)
    world.redis.zadd("refunds:index:succeeded", {f"n{i}": start + i for i in range(1200)})
    world.redis.zadd("refunds:index:succeeded", {f"m{i}": start + 600 for i in range(700)})
    for name in [*(f"n{i}" for i in range(1200)), *(f"m{i}" for i in range(700))]:
        fields: dict[Any, Any] = {
            "stage": "settled",
            "status": "succeeded",
            "provider_refund_id": f"re_{name}",
        }
        world.redis.hset(f"refunds:refund:{name}", mapping=fields)
    world.pass_time(DAY + HOUR)
    total = 0
    for _ in range(6):
        total += watch(world, rate=100_000, most=5000)
        world.pass_time(SECOND)
    assert total == 1900


@pytest.mark.parametrize(("later", "listed"), [(MILLISECOND, ["b"]), (-MILLISECOND, ["a", "b"])])
def test_reversals_are_listed_for_as_long_as_records_are_kept(
    world: World, later: timedelta, listed: list[str]
) -> None:
    settle(world, "a")
    reverse(world, "a")
    world.pass_time(timedelta(milliseconds=world.store.retention_ms) + later)
    settle(world, "b")
    reverse(world, "b")
    assert world.redis.zrange("refunds:reversed", 0, -1) == listed


def reverse(world: World, refund_id: str) -> None:
    refund = world.get(refund_id)
    shown = {"refund_id": refund_id, "payment_intent": refund.payment_intent}
    seen = found(status="failed", id=refund.provider_refund_id, **shown)
    step = changed_by_provider(refund, seen, "lookup", world.now)
    assert step is not None
    world.save(refund, step)


def test_reversal_and_its_opposite_are_listed_and_counted(world: World) -> None:
    world.accept(batch="b1")
    world.attempt(done_as("succeeded"))
    step = changed_by_provider(world.get(), found(status="failed"), "lookup", world.now)
    assert step is not None
    world.save(world.get(), step)
    assert (world.get().status, world.get().reversed_at) == (Status.FAILED, world.now)
    assert world.score("reversed", ID) == world.now
    assert world.hash("counters")["reversed:usd"] == "1"
    world.check()
    step = changed_by_provider(world.get(), found(status="succeeded"), "lookup", world.now)
    assert step is not None
    world.save(world.get(), step)
    assert (world.get().status, world.get().reversed_at) == (Status.SUCCEEDED, None)
    assert world.keys("reversed") == []
    assert world.hash("counters")["reversed:usd"] == "1"
    world.check()


def test_reversal_stays_listed_if_the_refund_is_made_again(world: World) -> None:
    settle(world, ID)
    reverse(world, ID)
    noted = world.now
    world.pass_time(DAY)
    world.save(world.get(), decisions.retry_one(world.get(), unknown=True))
    assert world.score("reversed", ID) == noted
    again = world.attempt(done_as("succeeded", id="re_again", generation="2"))
    assert (again.status, again.reversed_at) == (Status.SUCCEEDED, None)
    assert world.score("reversed", ID) == noted
