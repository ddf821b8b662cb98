"""Indexes, counters, batches and how long things are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    NOT_DONE,
    NOW,
    PAYMENT,
    REFUSED,
    SECOND,
    VERIFY,
    a_request,
    done_as,
    found,
)
from tests.support.store_world import ID, P, World, at_stage
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Lane, Stage
from worker.model.times import to_ms
from worker.rules import attempts, decisions, readback
from worker.rules.rechecks import changed_by_provider
from worker.store import creations
from worker.store.records import Moves, decode
from worker.store.store import BUCKETS, PAGE, Place, Store

RETRIABLE = replace(REFUSED, code="balance_insufficient")


def batch(world: World, batch_id: str = "b1") -> dict[str, int]:
    """A batch's counters that are not zero."""
    stored = world.hash(f"batch:{batch_id}")
    return {
        name: int(value)
        for name, value in stored.items()
        if name.split(":")[0] in COUNTED and value != "0"
    }


COUNTED = {"stage", "status", "amount"}


@pytest.mark.parametrize("stage", Stage)
def test_refund_stands_in_exactly_one_index_and_in_due_until_it_settles(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    expected = ["index:succeeded"] if stage is Stage.SETTLED else ["due", f"index:{stage}"]
    assert world.indexes_of(ID) == expected
    assert world.store.counts() == dict.fromkeys(BUCKETS, 0) | {
        expected[-1].removeprefix("index:"): 1
    }
    world.check()


def test_lists_come_due_first_and_settled_ones_newest_first(world: World) -> None:
    for number in (2, 1, 3):
        at_stage(world, Stage.SETTLED, f"s{number}", payment_intent=f"pi_s{number}")
        at_stage(world, Stage.SENDING, f"o{number}", payment_intent=f"pi_o{number}")
        world.pass_time(SECOND)
    assert list(world.store.ids_in(["sending"])) == ["o2", "o1", "o3"]
    assert list(world.store.ids_in(["succeeded", "sending", "failed"])) == [
        "o2",
        "o1",
        "o3",
        "s3",
        "s1",
        "s2",
    ]


@pytest.mark.parametrize(("bucket", "settled"), [("review", False), ("failed", True)])
def test_a_list_leaves_out_none_while_others_leave_its_index(
    world: World, monkeypatch: pytest.MonkeyPatch, bucket: str, *, settled: bool
) -> None:
    monkeypatch.setattr("worker.store.store.PAGE", 3)
    index = world.store.key(f"index:{bucket}")
    # Four of them have one time.
    times = {f"r{number}": (1, 2, 3, 3, 3, 3, 4, 5)[number] for number in range(8)}
    world.store.redis.zadd(index, times)
    expected = [*times]
    if settled:
        expected.reverse()
    assert list(world.store.ids_in([bucket])) == expected
    found = world.store.ids_in([bucket])
    first = [next(found) for _ in range(3)]
    world.store.redis.zrem(index, *first)
    assert [*first, *found] == expected


def test_lists_of_several_indexes_are_merged_by_time(world: World) -> None:
    succeeded, failed = (world.store.key(f"index:{name}") for name in ("succeeded", "failed"))
    world.store.redis.zadd(succeeded, {f"s{number:04}": 2 * number for number in range(PAGE + 2)})
    world.store.redis.zadd(failed, {f"f{number:04}": 2 * number + 1 for number in range(PAGE + 2)})
    ids = list(world.store.ids_in(["succeeded", "failed"]))
    assert ids[:4] == [f"f{PAGE + 1:04}", f"s{PAGE + 1:04}", f"f{PAGE:04}", f"s{PAGE:04}"]
    assert ids[-2:] == ["f0000", "s0000"]
    assert len(ids) == 2 * (PAGE + 2)
    waiting, sending = (world.store.key(f"index:{name}") for name in ("waiting", "sending"))
    world.store.redis.zadd(waiting, {"w1": 1, "w3": 3})
    world.store.redis.zadd(sending, {"n2": 2})
    assert list(world.store.ids_in(["sending", "waiting"])) == ["w1", "n2", "w3"]


def _all_places(store: Store, after: Place | None) -> Iterator[Place]:
    return store.places_in(["sending", "waiting", "succeeded", "failed"], after)


@pytest.mark.parametrize("places", [_all_places, Store.places_reversed], ids=["all", "reversed"])
def test_list_goes_on_after_each_of_its_places(
    world: World, places: Callable[[Store, Place | None], Iterator[Place]]
) -> None:
    in_progress = [Place(False, 1, "o1"), Place(False, 2, "o2"), Place(False, 2, "o3")]
    latest_first = [Place(True, 2, "s3"), Place(True, 2, "s2"), Place(True, 1, "s1")]
    for index in ("index:sending", "index:failed", "reversed"):
        of_index = in_progress if index == "index:sending" else latest_first
        world.redis.zadd(f"{P}{index}", {place.refund_id: place.score for place in of_index})
    whole = in_progress + latest_first if places is _all_places else latest_first
    assert list(places(world.store, None)) == whole
    for number, place in enumerate(whole, 1):
        assert list(places(world.store, place)) == whole[number:]


def test_long_lists_are_read_page_by_page_to_the_last_id(world: World) -> None:
    ids = [f"row-{number:04}" for number in range(PAGE + 3)]
    requests = [a_request(refund_id, payment_intent=f"pi_{refund_id}") for refund_id in ids]
    created = world.store.run_many(
        [creations.create(request, Lane.BULK, "b1") for request in requests]
    )
    assert {one.result for one in created} == {"created"}
    assert sorted(world.store.ids_in(["queued.bulk"])) == ids
    assert list(world.store.ids_in_batch("b1")) == ids
    records = world.store.get_many([*ids, "nobody"])
    assert [record and record.refund_id for record in records] == [*ids, None]


def test_batch_counts_every_move_by_stage_and_status(world: World) -> None:
    for number in range(4):
        world.accept(
            f"r{number}", batch="b1", lane=Lane.BULK, payment_intent=f"pi_{number}", currency="usd"
        )
    assert batch(world) == {"stage:queued": 4, "status:pending": 4}
    claim = world.claim("r0")
    world.attempt(REFUSED, "r1")
    world.attempt(MAYBE, "r2")
    assert batch(world) == {
        "stage:sending": 1,
        "stage:settled": 1,
        "stage:in_doubt": 1,
        "stage:queued": 1,
        "status:pending": 3,
        "status:failed": 1,
        "amount:failed:usd": 500,
    }
    world.end(claim, done_as("succeeded", currency="usd"))
    world.save(world.get("r3"), decisions.cancel(world.get("r3")))
    assert batch(world) == {
        "stage:settled": 3,
        "stage:in_doubt": 1,
        "status:pending": 1,
        "status:succeeded": 1,
        "status:failed": 1,
        "status:canceled": 1,
        "amount:succeeded:usd": 500,
        "amount:failed:usd": 500,
        "amount:canceled:usd": 500,
    }
    world.check()


def test_reversal_moves_count_and_amount_from_succeeded_to_failed(world: World) -> None:
    at_stage(world, Stage.SETTLED, batch="b1", amount=None)
    assert batch(world) == {"stage:settled": 1, "status:succeeded": 1, "amount:succeeded:usd": 500}
    step = changed_by_provider(world.get(), found(id=f"re_{ID}", status="failed"), "list", NOW)
    assert step is not None
    world.save(world.get(), step)
    assert batch(world) == {"stage:settled": 1, "status:failed": 1, "amount:failed:usd": 500}
    world.check()


@pytest.mark.parametrize("amount", [500, None])
def test_retry_takes_count_and_amount_of_the_failure_back(world: World, amount: int | None) -> None:
    world.accept(batch="b1", amount=amount)
    world.attempt(done_as("failed", failure_reason="insufficient_funds"))
    assert batch(world) == {"stage:settled": 1, "status:failed": 1, "amount:failed:usd": 500}
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.save(world.get(), step)
    assert batch(world) == {"stage:queued": 1, "status:pending": 1}
    world.check()
    world.attempt(done_as("succeeded", id="re_2", amount=400))
    assert batch(world) == {"stage:settled": 1, "status:succeeded": 1, "amount:succeeded:usd": 400}
    world.check()


def test_amounts_without_a_currency_are_counted_apart(world: World) -> None:
    world.accept(batch="b1")
    world.attempt(REFUSED)
    assert batch(world)["amount:failed:unknown"] == 500


def test_fifty_codes_and_currencies_that_nobody_knows_are_one_name_each(world: World) -> None:
    letters = "abcdefghijklmnopqrstuvwxy"
    for number in range(50):
        currency = f"z{letters[number % 25]}{letters[number // 25]}"
        world.accept(f"r{number}", currency=currency, batch="b1", payment_intent=f"pi_{number}")
        world.attempt(replace(REFUSED, code=f"code_{number}"), f"r{number}", currency_checked=True)
    counters = world.hash("counters")
    assert {name: count for name, count in counters.items() if name.startswith("failed:")} == {
        "failed:other": "50"
    }
    assert {name for name in counters if name.startswith("amount:")} == {"amount:failed:other"}
    assert {name: count for name, count in counters.items() if name.startswith("open:queued:")} == {
        "open:queued:other": "0"
    }
    assert batch(world) == {
        "stage:settled": 50,
        "status:failed": 50,
        "amount:failed:other": 50 * 500,
    }
    world.check()


def test_amounts_add_up_exactly_at_their_limit(world: World) -> None:
    for number in range(3):
        world.accept(f"r{number}", amount=10**12, batch="b1", payment_intent=f"pi_{number}")
        world.attempt(done_as("succeeded", id=f"re_{number}", amount=10**12), f"r{number}")
    assert batch(world)["amount:succeeded:usd"] == 3 * 10**12
    assert world.hash("counters")["amount:succeeded:usd"] == str(3 * 10**12)


def test_every_move_is_counted_for_metrics(world: World) -> None:
    world.accept()
    world.attempt(NOT_DONE)
    world.pass_time(HOUR)
    world.attempt(REFUSED)
    counters = {
        name: int(value)
        for name, value in world.hash("counters").items()
        if name.startswith("move:")
    }
    assert counters == {
        "move:new:queued": 1,
        "move:queued:sending": 1,
        "move:sending:waiting": 1,
        "move:waiting:sending": 1,
        "move:sending:settled": 1,
    }


def test_history_of_a_settled_refund_is_kept_without_what_its_place_tells(world: World) -> None:
    world.accept()
    world.pass_time(timedelta(milliseconds=64))
    refund = world.claim().refund
    assert refund is not None
    world.pass_time(SECOND)
    step = attempts.after_attempt(refund, done_as("succeeded"), VERIFY, world.now, 0)
    world.save(refund, step, {"attempt": 1, "seen": "done", "ms": 52, "http_status": 200})
    assert world.redis.lrange(f"refunds:history:{ID}", 0, -1) == [
        f'{{"at":{to_ms(NOW)},"to":"queued"}}',
        '{"after":64,"to":"sending"}',
        '{"after":1000,"status":"succeeded","seen":"done","ms":52,"http_status":200}',
    ]
    told = {"status": "pending", "attempt": 1}
    first, *more = world.store.history(ID)
    assert first == {
        "version": 1,
        "at": to_ms(NOW),
        "from": None,
        "to": "queued",
        "status": "pending",
        "label": "accepted",
    }
    assert more == [
        {
            **told,
            "version": 2,
            "at": to_ms(NOW) + 64,
            "from": "queued",
            "to": "sending",
            "label": "send",
        },
        {
            **told,
            "version": 3,
            "at": to_ms(NOW) + 1064,
            "from": "sending",
            "to": "settled",
            "label": "succeeded",
            "status": "succeeded",
            "seen": "done",
            "ms": 52,
            "http_status": 200,
            "source": "reply",
        },
    ]


def test_history_reads_the_same_in_pieces_as_in_one(world: World) -> None:
    world.accept()
    world.attempt(MAYBE)
    world.pass_time(VERIFY.settle)
    world.save(
        world.get(),
        readback.after_readback(
            world.get(), Readback(verdict=ReadbackVerdict.ABSENT, reason="so"), VERIFY, world.now, 0
        ),
    )
    entries: Any = world.redis.lrange(f"refunds:history:{ID}", 0, -1)
    moves = Moves()
    assert [move for entry in entries for move in moves.read([entry])] == world.store.history(ID)


def test_history_replays_to_the_record(world: World) -> None:
    world.accept()
    world.attempt(MAYBE)
    for _ in range(2):
        world.pass_time(VERIFY.settle)
        look = Readback(verdict=ReadbackVerdict.ABSENT, reason="so")
        world.save(world.get(), readback.after_readback(world.get(), look, VERIFY, world.now, 0))
    world.attempt(done_as("failed", id="re_0"), kind="resend", version=world.get().version)
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.save(world.get(), step)
    world.attempt(done_as("succeeded"))
    history = world.store.history(ID)
    assert [(entry["from"], entry["to"]) for entry in history] == [
        (None, "queued"),
        ("queued", "sending"),
        ("sending", "in_doubt"),
        ("in_doubt", "in_doubt"),
        ("in_doubt", "in_doubt"),
        ("in_doubt", "sending"),
        ("sending", "settled"),
        ("settled", "queued"),
        ("queued", "sending"),
        ("sending", "settled"),
    ]
    assert all(one["to"] == other["from"] for one, other in pairwise(history))
    refund = world.get()
    assert (history[-1]["version"], history[-1]["to"], history[-1]["status"]) == (
        refund.version,
        refund.stage,
        refund.status,
    )
    world.check()


def test_event_stream_has_one_entry_for_each_move_in_their_order(world: World) -> None:
    for refund_id in ("a", "b"):
        world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    world.attempt(NOT_DONE, "a")
    world.attempt(REFUSED, "b")
    events = [event for _, event in world.dump()["events"][1]]
    told = [(event["refund_id"], int(event["version"]), event["to"]) for event in events]
    for refund_id in ("a", "b"):
        entries = world.store.history(refund_id)
        assert [(refund_id, entry["version"], entry["to"]) for entry in entries] == [
            event for event in told if event[0] == refund_id
        ]
    assert Counter(event[0] for event in told) == {"a": 3, "b": 3}


# Retention


def test_settled_records_expire_and_unsettled_ones_do_not(world: World) -> None:
    for stage in Stage:
        at_stage(world, stage, stage.value, payment_intent=f"pi_{stage}")
        settled = stage is Stage.SETTLED
        assert world.expires(f"refund:{stage}") is settled
        assert world.expires(f"history:{stage}") is settled
        assert world.expires(f"payment:pi_{stage}") is settled


def test_record_is_kept_for_the_retention_and_no_less(world: World) -> None:
    world.store.retention_ms = 86_400_000
    at_stage(world, Stage.SETTLED)
    left: int = world.redis.pttl(f"{P}refund:{ID}")
    assert 86_400_000 - 60_000 < left <= 86_400_000


def test_payment_is_kept_while_any_refund_on_it_is_open(world: World) -> None:
    world.accept("a")
    world.accept("b")
    world.attempt(REFUSED, "a")
    assert not world.expires(f"payment:{PAYMENT}")
    world.attempt(REFUSED, "b")
    assert world.expires(f"payment:{PAYMENT}")
    world.accept("c")
    assert not world.expires(f"payment:{PAYMENT}")
    world.check()


def test_batch_is_kept_while_any_of_its_rows_is_open(world: World) -> None:
    for number in range(2):
        world.accept(f"r{number}", batch="b1", payment_intent=f"pi_{number}")
    kept = ("batch:b1", "batch-refunds:b1")
    world.attempt(REFUSED, "r0")
    assert [world.expires(name) for name in kept] == [False, False]
    world.attempt(REFUSED, "r1")
    assert [world.expires(name) for name in kept] == [True, True]
    world.accept("r2", batch="b1", payment_intent="pi_2")
    assert [world.expires(name) for name in kept] == [False, False]


def test_list_of_rows_expires_if_their_batch_is_of_another_type(world: World) -> None:
    world.accept(batch="b1")
    claim = world.claim()
    world.redis.delete(f"{P}batch:b1")
    world.redis.set(f"{P}batch:b1", "text")
    assert world.end(claim, REFUSED).result == "saved"
    assert world.expires("batch-refunds:b1")


def test_retried_refund_no_longer_expires(world: World) -> None:
    world.accept(batch="b1")
    world.attempt(RETRIABLE)
    for name in (f"refund:{ID}", f"history:{ID}", f"payment:{PAYMENT}"):
        assert world.expires(name)
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.save(world.get(), step)
    for name in (
        f"refund:{ID}",
        f"history:{ID}",
        f"payment:{PAYMENT}",
        "batch:b1",
        "batch-refunds:b1",
    ):
        assert not world.expires(name)
    world.check()


def test_owner_of_a_provider_refund_is_kept_as_long_as_a_record_that_settles_again(
    world: World,
) -> None:
    at_stage(world, Stage.SETTLED)
    owner = f"{P}owner:re_{ID}"
    world.redis.pexpire(owner, 60_000)
    step = changed_by_provider(world.get(), found(id=f"re_{ID}", status="failed"), "list", NOW)
    assert step is not None
    assert world.save(world.get(), step).result == "saved"
    left: int = world.redis.pttl(owner)
    assert left > world.store.retention_ms - 60_000


def test_no_owner_outlives_a_record_that_is_not_kept(world: World) -> None:
    world.accept()
    claim = world.claim()
    world.store.retention_ms = 0
    assert world.end(claim, done_as("succeeded")).result == "saved"
    assert world.keys("refund:*") == world.keys("owner:*") == []


def test_expired_id_may_be_used_anew(world: World) -> None:
    at_stage(world, Stage.SETTLED)
    for name in (f"refund:{ID}", f"history:{ID}", f"payment:{PAYMENT}"):
        world.redis.delete(P + name)
    assert world.accept(amount=7).result == "created"
    assert world.get().version == 1


def test_index_of_settled_refunds_never_outgrows_the_records(world: World) -> None:
    world.store.retention_ms = 1000
    at_stage(world, Stage.SETTLED, "old", payment_intent="pi_old")
    world.redis.delete(f"{P}refund:old")
    world.pass_time(timedelta(seconds=2))
    at_stage(world, Stage.SETTLED, "new", payment_intent="pi_new")
    assert list(world.store.ids_in(["succeeded"])) == ["new"]


@pytest.mark.parametrize("name", ["status", "stage", "lane", "retriable"])
def test_stored_word_that_no_version_wrote_is_refused(world: World, name: str) -> None:
    world.accept()
    with pytest.raises(ValueError, match="is not a valid"):
        decode({**world.hash(f"refund:{ID}"), name: "odd"})


def test_stored_hash_reads_back_as_the_claimed_record(world: World) -> None:
    world.accept()
    claim = world.claim()
    assert decode(world.hash(f"refund:{ID}")) == claim.refund == world.get()
