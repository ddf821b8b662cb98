"""The state of the watch is read from its cursors, and a backfill reads each old refund once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.factories import REFUSED, SECOND, done_as
from tests.support.store_world import World
from worker.model.refund import Status
from worker.rules import decisions
from worker.store import rechecks, watch_state
from worker.store.watch_state import WatchState, backfill, read_watch, rung_name

DAY = timedelta(days=1)
RUNGS = (DAY, 7 * DAY, 30 * DAY, 60 * DAY)
NONE = timedelta(0)


def settled(world: World, refund_id: str, **shown: Any) -> None:
    world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    world.attempt(done_as("succeeded", **({"id": f"re_{refund_id}"} | shown)), refund_id)


def walk(world: World, most: int = 1000) -> int:
    """Let a worker's sweep add what the watch is due to read."""
    world.pass_time(SECOND)
    return world.store.run(rechecks.watch(RUNGS, rate=1000, most=most))


def watched(world: World) -> list[str]:
    """Walk until nothing more is due; return what was added each time, and empty the index."""
    found: list[str] = []
    while walk(world):
        ids: Any = world.redis.zrange("refunds:rechecks", 0, -1)
        found += ids
        world.redis.delete("refunds:rechecks")
    return sorted(found)


def of(state: WatchState, after: timedelta, status: Status = Status.SUCCEEDED) -> Any:
    return next(rung for rung in state.rungs if (rung.after, rung.status) == (after, status))


def test_watch_that_has_not_begun_has_no_cursors_and_no_lag(world: World) -> None:
    settled(world, "r0")
    world.pass_time(100 * DAY)
    state = read_watch(world.store, RUNGS, world.now)
    assert (state.started_at, state.lag, state.waiting, state.blind) == (None, NONE, 0, 0)
    assert [(rung.after, rung.status) for rung in state.rungs] == [
        *((after, Status.SUCCEEDED) for after in RUNGS),
        *((after, Status.FAILED) for after in RUNGS[:2]),
        *((after, Status.CANCELED) for after in RUNGS[:2]),
    ]
    assert all(rung.cursor is None for rung in state.rungs)


def test_lag_is_how_long_the_next_refund_has_been_due(world: World) -> None:
    walk(world)
    settled(world, "r0")
    world.pass_time(DAY - SECOND)
    assert read_watch(world.store, RUNGS, world.now).lag == NONE
    world.pass_time(3 * SECOND)
    state = read_watch(world.store, RUNGS, world.now)
    assert (of(state, DAY).lag, of(state, 7 * DAY).lag) == (2 * SECOND, NONE)
    assert watched(world) == ["r0"]
    after = read_watch(world.store, RUNGS, world.now)
    assert after.lag == NONE
    assert of(after, DAY).cursor == world.now - DAY


def test_calls_a_day_are_those_that_become_due_within_a_day(world: World) -> None:
    settled(world, "r0")
    world.accept("r1", payment_intent="pi_r1")
    world.attempt(REFUSED, "r1")
    state = read_watch(world.store, RUNGS, world.now)
    assert [rung.a_day for rung in state.rungs] == [1, 0, 0, 0, 1, 0, 0, 0]
    world.pass_time(6 * DAY + SECOND)
    assert [rung.a_day for rung in read_watch(world.store, RUNGS, world.now).rungs] == [
        0,
        1,
        0,
        0,
        0,
        1,
        0,
        0,
    ]


def test_reads_left_out_and_waiting_ones_are_counted(world: World) -> None:
    walk(world)
    settled(world, "r0", id=None)
    settled(world, "r1")
    world.pass_time(DAY + SECOND)
    walk(world)
    state = read_watch(world.store, RUNGS, world.now)
    assert (state.blind, state.waiting) == (1, 1)


def test_backfill_lets_each_old_refund_be_read_once(world: World) -> None:
    for number, wait in enumerate((40, 25, 20, 4, 2)):
        settled(world, f"r{number}")
        world.pass_time(wait * DAY)
    # They settled 91, 51, 26, 6 and 2 days ago, before the watch began.
    assert watched(world) == []
    moved = backfill(world.store, RUNGS, world.now - 60 * DAY, world.now)
    assert sum(each.refunds for each in moved) == 4
    assert watched(world) == ["r1", "r2", "r3", "r4"]
    moved = backfill(world.store, RUNGS, world.now - 365 * DAY, world.now)
    assert sum(each.refunds for each in moved) == 5
    assert watched(world) == ["r0", "r1", "r2", "r3", "r4"]


def test_backfill_reads_failed_refunds_too(world: World) -> None:
    world.accept("r0")
    world.attempt(done_as("failed", id="re_0"), "r0")
    world.pass_time(20 * DAY)
    assert watched(world) == []
    backfill(world.store, RUNGS, world.now - 30 * DAY, world.now)
    assert watched(world) == ["r0"]


def canceled(world: World, refund_id: str, prior: str | None = None) -> None:
    """Cancel a refund: with `prior` one whose earlier generation had failed at the provider."""
    world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    if prior is not None:
        failed = world.attempt(done_as("failed", id=prior), refund_id)
        again = decisions.retry_failed(failed)
        assert again is not None
        assert world.save(failed, again).result == "saved"
    refund = world.get(refund_id)
    assert world.save(refund, decisions.cancel(refund)).result == "saved"


def test_backfill_reads_canceled_refunds_that_had_failed_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of others nothing was ever sent, so there is nothing to read."""
    monkeypatch.setattr(watch_state, "_PAGE", 2)
    for number in range(5):
        canceled(world, f"r{number}", prior=None if number % 2 else f"re_{number}")
        world.pass_time(SECOND)
    world.pass_time(20 * DAY)
    assert watched(world) == []
    moved = backfill(world.store, RUNGS, world.now - 30 * DAY, world.now)
    assert sum(each.refunds for each in moved) == 3
    assert watched(world) == ["r0", "r2", "r4"]


def test_lag_is_also_that_of_canceled_refunds(world: World) -> None:
    walk(world)
    canceled(world, "r0", prior="re_0")
    world.pass_time(DAY + SECOND)
    assert of(read_watch(world.store, RUNGS, world.now), DAY, Status.CANCELED).lag == SECOND
    assert watched(world) == ["r0"]
    assert read_watch(world.store, RUNGS, world.now).lag == NONE


def test_backfill_includes_what_settled_in_its_first_millisecond(world: World) -> None:
    settled(world, "r0")
    since = world.now
    world.pass_time(2 * DAY)
    assert watched(world) == []
    backfill(world.store, RUNGS, since, world.now)
    assert watched(world) == ["r0"]


def test_backfill_of_what_was_never_passed_changes_nothing(world: World) -> None:
    settled(world, "r0")
    walk(world)
    before = world.hash("watch")
    assert backfill(world.store, RUNGS, world.now - timedelta(hours=1), world.now) == []
    assert world.hash("watch") == before


def test_backfill_never_moves_a_cursor_forward(world: World) -> None:
    walk(world)
    settled(world, "r0")
    # No worker ran for a while: the refund is still to be read on the first rung.
    world.pass_time(100 * DAY)
    backfill(world.store, RUNGS, world.now - 10 * DAY, world.now)
    assert watched(world) == ["r0"]


@pytest.mark.parametrize(
    ("hours", "name"), [(1, "1h"), (24, "1d"), (36, "36h"), (168, "7d"), (1440, "60d")]
)
def test_rung_is_named_as_the_setting_names_it(hours: int, name: str) -> None:
    assert rung_name(timedelta(hours=hours)) == name
