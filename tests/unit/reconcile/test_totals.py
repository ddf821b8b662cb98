"""What a month adds up to: by settle time, and never otherwise once it is closed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.factories import a_request, done_as, found
from tests.support.settling import settle, turn
from tests.support.store_world import World
from worker.errors import StoreUnavailable
from worker.model.answers import ProviderRefund
from worker.model.times import to_ms
from worker.reconcile import settled, totals
from worker.reconcile.window import Window, zone_of
from worker.rules import decisions
from worker.rules.rechecks import identified
from worker.store.store import Store

DAY = timedelta(days=1)
TICK = timedelta(milliseconds=1)
TRIES = 3
BERLIN = zone_of("Europe/Berlin")


def month(number: int) -> Window:
    return Window(
        start=datetime(2026, number, 1, tzinfo=UTC), end=datetime(2026, number + 1, 1, tzinfo=UTC)
    )


def sums(world: World, number: int, *groups: str) -> list[tuple[Any, ...]]:
    rows = totals.totals(world.store, month(number), groups, UTC)
    return [(*row.group, row.kind, row.currency, row.refunds, row.signed) for row in rows]


def test_refunds_count_by_currency_in_the_month_in_which_they_settled(world: World) -> None:
    settle(world, "a")
    settle(world, "b", 250)
    settle(world, "c", 900, currency="eur")
    world.pass_time(DAY)  # From the 31st of January into February.
    settle(world, "d", 75)
    assert sums(world, 1) == [("succeeded", "eur", 1, 900), ("succeeded", "usd", 2, 750)]
    assert sums(world, 2) == [("succeeded", "usd", 1, 75)]
    assert sums(world, 3) == []


def test_what_has_not_succeeded_counts_nowhere(world: World) -> None:
    world.accept()
    settle(world, "a")
    world.accept(a_request("failed", payment_intent="pi_failed"))
    world.attempt(done_as("failed", id="re_f"), "failed")
    assert sums(world, 1) == [("succeeded", "usd", 1, 500)]


def test_reversal_is_a_line_of_its_own_month_and_a_closed_month_does_not_change(
    world: World,
) -> None:
    settle(world, "a")
    january = sums(world, 1)
    world.pass_time(20 * DAY)
    turn(world, "a", "failed")
    assert sums(world, 1) == january == [("succeeded", "usd", 1, 500)]
    february = sums(world, 2)
    assert february == [("reversed", "usd", 1, -500)]
    world.pass_time(20 * DAY)
    turn(world, "a", "succeeded")
    assert (sums(world, 1), sums(world, 2)) == (january, february)
    assert sums(world, 3) == [("succeeded", "usd", 1, 500)]


def test_retry_of_a_reversed_refund_counts_again_when_it_succeeds(world: World) -> None:
    settle(world, "a")
    world.pass_time(20 * DAY)
    turn(world, "a", "failed")
    world.pass_time(20 * DAY)
    refund = world.get("a")
    world.save(refund, decisions.retry_one(refund, unknown=True))
    assert sums(world, 3) == []
    world.attempt(done_as(id="re_a2", payment_intent="pi_a", refund_id="a", generation="2"), "a")
    assert sums(world, 1) == [("succeeded", "usd", 1, 500)]
    assert sums(world, 2) == [("reversed", "usd", 1, -500)]
    assert sums(world, 3) == [("succeeded", "usd", 1, 500)]


def test_refund_that_learns_its_id_later_stays_in_its_month(world: World) -> None:
    settle(world, "a")
    world.redis.hdel("refunds:refund:a", "provider_refund_id")
    world.redis.hset("refunds:refund:a", "evidence", "totals")
    world.pass_time(20 * DAY)
    refund = world.get("a")
    shown: ProviderRefund = found(id="re_9", payment_intent="pi_a", refund_id="a")
    step = identified(refund, shown)
    assert step is not None
    world.save(refund, step)
    assert world.get("a").provider_refund_id == "re_9"
    assert sums(world, 1) == [("succeeded", "usd", 1, 500)]
    assert sums(world, 2) == []


def test_reversal_that_an_older_version_recorded_counts_by_its_history(world: World) -> None:
    settle(world, "a")
    world.pass_time(DAY)
    turn(world, "a", "failed")
    world.redis.delete("refunds:settled-again")
    assert sums(world, 1) == [("succeeded", "usd", 1, 500)]
    assert sums(world, 2) == [("reversed", "usd", 1, -500)]


def test_totals_are_grouped_as_asked(world: World) -> None:
    settle(world, "a", reason="duplicate")
    settle(world, "b", batch="b1")
    assert sums(world, 1, "batch") == [
        ("", "succeeded", "usd", 1, 500),
        ("b1", "succeeded", "usd", 1, 500),
    ]
    assert sums(world, 1, "reason", "day") == [
        ("", "2026-01-31", "succeeded", "usd", 1, 500),
        ("duplicate", "2026-01-31", "succeeded", "usd", 1, 500),
    ]


def test_days_are_those_of_the_zone(world: World) -> None:
    world.pass_time(timedelta(hours=14, minutes=30))  # 23:30 in UTC is the next day in Berlin.
    settle(world, "a")
    (row,) = totals.totals(world.store, month(1), ["day"], BERLIN)
    assert row.group == ("2026-02-01",)


def test_refund_without_a_known_amount_is_counted_apart(world: World) -> None:
    settle(world, "a")
    world.redis.hdel("refunds:refund:a", "amount")
    (row,) = totals.totals(world.store, month(1), [], UTC)
    assert (row.refunds, row.amount, row.unknown) == (1, 0, 1)


def test_more_than_a_page_at_one_time_is_walked_once_each(world: World) -> None:
    start = int(month(1).start.timestamp() * 1000)
    scores = {f"n{i}": start + i for i in range(700)} | {f"m{i}": start + 300 for i in range(1100)}
    world.redis.zadd("refunds:index:succeeded", scores)
    fields: dict[Any, Any] = {"stage": "settled", "status": "succeeded", "amount": "1"}
    with world.redis.pipeline() as pipeline:
        for name in scores:
            pipeline.hset(f"refunds:refund:{name}", mapping=fields | {"refund_id": name})
        pipeline.execute()
    names = [each.fields["refund_id"] for each in settled.settled_in(world.store, month(1))]
    assert len(names) == len(scores) == len(set(names))


def test_what_comes_after_the_moment_of_reading_is_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(world, "a")
    settle(world, "turned")
    turn(world, "turned", "failed")
    began = world.now
    world.pass_time(TICK)
    settle(world, "later")
    turn(world, "turned", "succeeded")
    monkeypatch.setattr(world.store, "time", lambda: began)
    seen = settled.settled_in(world.store, month(1))
    assert sorted((each.fields["refund_id"], each.kind, each.at) for each in seen) == [
        ("a", "succeeded", began),
        ("turned", "reversed", began),
        ("turned", "succeeded", began),
    ]
    standing = settled.all_succeeded(world.store)
    assert [(fields["refund_id"], at) for at, fields in standing] == [("a", to_ms(began))]


def test_record_that_changed_or_expired_since_the_index_was_read_is_left_out(world: World) -> None:
    for name in ("a", "changed", "expired"):
        settle(world, name)
    world.redis.hset("refunds:refund:changed", "status", "failed")
    world.redis.delete("refunds:refund:expired")
    seen = settled.settled_in(world.store, month(1))
    assert [each.fields["refund_id"] for each in seen] == ["a"]
    assert [fields["refund_id"] for _, fields in settled.all_succeeded(world.store)] == ["a"]
    assert [*settled.read(world.store, ["changed", "expired"])] == ["changed"]


def test_last_success_is_read_from_the_history(world: World) -> None:
    for name in ("once", "again", "reversed"):
        settle(world, name)
    first = world.now
    world.pass_time(DAY)
    for name in ("again", "reversed"):
        turn(world, name, "failed")
    for _ in range(2):
        world.pass_time(DAY)
        turn(world, "again", "succeeded")
        last = world.now
        world.pass_time(DAY)
        turn(world, "again", "failed")
    world.accept("open")
    assert settled.succeeded_at(world.store, ["once", "again", "reversed", "open", "gone"]) == {
        "once": first,
        "again": last,
        "reversed": first,
        "open": None,
        "gone": None,
    }


def test_success_comes_before_its_reversal_and_is_confirmed_to_be_on_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(world, "a")
    turn(world, "a", "failed")
    confirmed: list[bool] = []
    monkeypatch.setattr(world.store, "confirm", lambda: confirmed.append(True))
    assert sums(world, 1) == [("succeeded", "usd", 1, 500), ("reversed", "usd", 1, -500)]
    assert confirmed == [True]


def test_sum_is_not_given_while_settled_refunds_keep_changing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(world, "a")
    turn(world, "a", "failed")
    tries: list[Window] = []

    def read(store: Store, window: Window) -> Iterator[settled.Settled]:
        tries.append(window)
        return settled.settled_in(store, window)

    monkeypatch.setattr(totals, "settled_in", read)
    monkeypatch.setattr(world.store, "time", lambda: world.now - DAY)
    with pytest.raises(StoreUnavailable, match="run the command again"):
        sums(world, 1)
    assert len(tries) == TRIES


def test_counters_agree_with_the_records(world: World) -> None:
    settle(world, "a")
    settle(world, "b", 250, currency="eur")
    settle(world, "c")
    turn(world, "c", "failed")
    compared = totals.check(world.store)
    assert [(each.name, each.counter, each.walked) for each in compared] == [
        ("amount:succeeded:eur", 250, 250),
        ("amount:succeeded:usd", 500, 500),
        ("settled:succeeded", 2, 2),
    ]
    assert all(each.agrees for each in compared)


def test_counters_that_lost_or_found_a_refund_do_not_agree(world: World) -> None:
    settle(world, "a")
    for change in (1, -2):
        world.redis.hincrby("refunds:counters", "settled:succeeded", change)
        (wrong,) = [each for each in totals.check(world.store) if not each.agrees]
        assert wrong.name == "settled:succeeded"


def test_counter_or_records_that_the_other_side_does_not_have_do_not_agree(world: World) -> None:
    settle(world, "a")
    world.redis.hdel("refunds:counters", "amount:succeeded:usd")
    world.redis.hset("refunds:counters", "amount:succeeded:eur", 7)
    compared = totals.check(world.store)
    assert [(each.name, each.counter, each.walked, each.agrees) for each in compared] == [
        ("amount:succeeded:eur", 7, 0, False),
        ("amount:succeeded:usd", 0, 500, False),
        ("settled:succeeded", 1, 1, True),
    ]


def test_currencies_that_are_not_known_are_counted_together(world: World) -> None:
    settle(world, "a", currency="zzz")
    settle(world, "b", 250, currency="zzy")
    settle(world, "c", 75)
    world.redis.hdel("refunds:refund:c", "currency")
    compared = totals.check(world.store)
    assert [(each.name, each.counter, each.walked) for each in compared] == [
        ("amount:succeeded:other", 750, 750),
        ("amount:succeeded:unknown", 0, 75),
        ("amount:succeeded:usd", 75, 0),
        ("settled:succeeded", 3, 3),
    ]


def test_counters_are_not_compared_while_refunds_keep_settling(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[str] = []

    def walk(_: Store) -> Iterator[tuple[int, settled.Fields]]:
        walked.append(name := f"n{len(walked)}")
        settle(world, name)
        yield from settled.all_succeeded(world.store)

    monkeypatch.setattr(totals, "all_succeeded", walk)
    with pytest.raises(StoreUnavailable, match="refunds settled while they were counted"):
        totals.check(world.store)
    assert len(walked) == TRIES


@pytest.mark.parametrize(("left", "agrees"), [(TICK, False), (0 * TICK, True)])
def test_records_may_have_expired_once_the_oldest_is_as_old_as_they_are_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, *, left: timedelta, agrees: bool
) -> None:
    settle(world, "oldest")
    expires = world.now + timedelta(milliseconds=world.store.retention_ms)
    world.pass_time(DAY)
    settle(world, "newer")
    world.redis.hincrby("refunds:counters", "settled:succeeded", 1)
    monkeypatch.setattr(world.store, "time", lambda: expires - left)
    assert all(each.agrees for each in totals.check(world.store)) is agrees


def test_counter_may_be_higher_once_records_have_expired(world: World) -> None:
    settle(world, "a")
    world.redis.hincrby("refunds:counters", "settled:succeeded", 1)
    world.store.retention_ms = 1000
    assert all(each.agrees for each in totals.check(world.store))
