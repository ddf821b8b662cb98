"""Claims, and saves, that run together do what they would have done one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import exceptions

from tests.factories import HOUR, MAYBE, NOT_DONE, NOW, REFUSED, VERIFY, done_as
from tests.support.store_calls import asked
from tests.support.store_world import LEASE, P, World
from tests.unit.store.lua_calls import call
from tests.unit.store.moving import held
from worker.errors import NotStorable
from worker.model.refund import Lane, Refund, Stage
from worker.model.steps import Step
from worker.rules import attempts, decisions
from worker.store import claims, reads, saves, scripts, sweeps
from worker.store.async_store import AsyncStore
from worker.store.claims import Claim
from worker.store.commands import joined
from worker.store.saves import Saved
from worker.store.scripts import Command

BATCH = "b1"
START = NOW


def claim_of(refund_id: str, token: str = "", **options: Any) -> Command[Claim]:
    usual: dict[str, Any] = {
        "token": token or f"token-{refund_id}",
        "lease": LEASE,
        "currency_checked": True,
    }
    return claims.claim(refund_id, "send", **(usual | options))


def save_of(refund: Refund, outcome: Any, world: World) -> Command[Saved]:
    step = attempts.after_attempt(refund, outcome, VERIFY, world.now, 0)
    return saves.save(refund, step, {"attempt": refund.attempts})


def claimed(world: World, *refund_ids: str) -> list[str]:
    """Claim refunds in one run, and return the results."""
    return [one.result for one in world.store.run_many([claim_of(each) for each in refund_ids])]


# Members see what those before them did


def test_two_refunds_of_one_payment_are_not_both_claimed_in_a_run(world: World) -> None:
    world.accept("a")
    world.accept("b")
    assert claimed(world, "a", "b") == ["claimed", "locked"]
    assert world.redis.zrange(f"{P}waiters:{world.get('a').payment_intent}", 0, -1) == ["b"]
    world.check()


def test_one_refund_is_claimed_once_in_a_run(world: World) -> None:
    world.accept("a")
    first, other, again = world.store.run_many(
        [claim_of("a", "one"), claim_of("a", "other"), claim_of("a", "one")]
    )
    assert (first.result, other.result, again.result) == ("claimed", "stage", "claimed")
    assert (first.position != "", again.position) == (True, "")
    assert world.get("a").attempts == 1
    world.check()


def test_rows_of_a_run_share_the_room_in_their_batch(world: World) -> None:
    ids = [f"row-{number}" for number in range(10)]
    for refund_id in ids:
        world.accept(refund_id, batch=BATCH, payment_intent=f"pi_{refund_id}")
    assert claimed(world, *ids[:7]) == ["claimed"] * 7
    assert claimed(world, *ids[7:]) == ["claimed", "narrow", "narrow"]
    assert world.hash(f"batch:{BATCH}")["stage:sending"] == "8"
    world.check()


def test_saves_of_a_run_make_room_for_rows_that_wait(world: World) -> None:
    ids = [f"row-{number:02}" for number in range(12)]
    for refund_id in ids:
        world.accept(refund_id, batch=BATCH, payment_intent=f"pi_{refund_id}")
    world.redis.hset(f"{P}batch:{BATCH}", "state", "running")
    claimed(world, *ids)
    first, second = world.store.run_many(
        [save_of(world.get(row), done_as("succeeded", id=f"re_{row}"), world) for row in ids[:2]]
    )
    assert (first.rows, second.rows) == (("row-08", "row-09"), ("row-10", "row-11"))
    world.check()


def test_twentieth_equal_failure_in_a_run_pauses_the_batch(world: World) -> None:
    ids = [f"row-{number}" for number in range(20)]
    for refund_id in ids:
        world.accept(refund_id, batch=BATCH, payment_intent=f"pi_{refund_id}")
    world.redis.hset(f"{P}batch:{BATCH}", mapping={"state": "running", "status:succeeded": "50"})
    claimed(world, *ids)
    world.store.run_many([save_of(world.get(row), REFUSED, world) for row in ids])
    assert world.hash(f"batch:{BATCH}")["state"] == "paused"


def test_saved_refund_wakes_the_one_that_waits_and_its_own_save_follows(world: World) -> None:
    world.accept("a")
    world.accept("b")
    claimed(world, "a", "b")
    waiting = world.get("b")
    settled, canceled = world.store.run_many(
        [
            save_of(world.get("a"), done_as("succeeded", id="re_a"), world),
            saves.save(waiting, decisions.cancel(waiting)),
        ]
    )
    assert (settled.woken, canceled.result) == ("b", "saved")
    # The first made it due, and the second, which came later, settled it.
    assert world.indexes_of("b") == ["index:canceled"]
    assert world.expires(f"payment:{waiting.payment_intent}")
    world.check()


def test_lock_goes_to_a_doubt_that_began_in_the_same_run(world: World) -> None:
    world.accept("a")
    world.accept("b")
    claimed(world, "a")
    beside = world.get("b")
    doubt = Step(
        to=Stage.IN_DOUBT,
        status=beside.status,
        label="recovered",
        changes={"doubt_since": world.now},
    )
    assert [
        saved.result
        for saved in world.store.run_many(
            [
                saves.save(beside, doubt),
                save_of(world.get("a"), done_as("succeeded", id="re_a"), world),
            ]
        )
    ] == ["saved"] * 2
    assert world.hash(f"payment:{beside.payment_intent}")["lock"] == "b"
    world.check()


def test_last_refunds_of_a_batch_let_it_expire(world: World) -> None:
    for refund_id in ("a", "b"):
        world.accept(refund_id, batch=BATCH, payment_intent=f"pi_{refund_id}")
    claimed(world, "a", "b")
    world.store.run_many(
        [save_of(world.get(one), done_as("succeeded", id=f"re_{one}"), world) for one in "ab"]
    )
    assert world.expires(f"batch:{BATCH}")
    assert world.hash(f"batch:{BATCH}")["status:succeeded"] == "2"
    world.check()


def test_what_is_counted_for_a_batch_that_is_gone_expires(world: World) -> None:
    world.accept("a", batch=BATCH)
    claimed(world, "a")
    world.redis.delete(f"{P}batch:{BATCH}")
    world.store.run(save_of(world.get("a"), done_as("succeeded", id="re_a"), world))
    assert world.hash(f"batch:{BATCH}")["status:succeeded"] == "1"
    assert world.expires(f"batch:{BATCH}")


def test_retry_in_the_run_of_the_failure_keeps_its_new_body(world: World) -> None:
    world.accept("a")
    claim = world.claim("a")
    assert claim.refund is not None
    failing = save_of(claim.refund, done_as("failed", id="re_a"), world)
    before = world.dump()
    world.store.run(failing)
    failed = world.get("a")
    world.restore(before)
    step = decisions.retry_failed(failed)
    assert step is not None
    again = saves.save(failed, step)
    assert [saved.result for saved in world.store.run_many([failing, again])] == ["saved"] * 2
    assert world.redis.exists(f"{P}body:a")
    world.check()


def test_positions_of_a_run_follow_one_another(world: World) -> None:
    for refund_id in "abc":
        world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    granted = world.store.run_many([claim_of(one, f"token{one}") for one in "abc"])
    assert [one.position for one in granted] == [
        "0-tokena:1:tokena",
        "0-tokena:2:tokenb",
        "0-tokena:3:tokenc",
    ]
    assert world.hash("meta") == {"run": "0-tokena", "position": "3"}
    assert world.hash("positions") == {"1": "1:tokena", "2": "2:tokenb", "3": "3:tokenc"}


def test_claims_after_one_that_finds_the_server_behind_are_held_back(world: World) -> None:
    for refund_id in "abc":
        world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    results = world.store.run_many(
        [claim_of("a"), claim_of("b", remembered=lambda: "0-lost:7:mark"), claim_of("c")]
    )
    assert [one.result for one in results] == ["claimed", "behind", "behind"]


# An error of one is its own


async def test_error_of_one_is_raised_in_its_own_caller_and_the_others_are_whole(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis
) -> None:
    world = World(sync_redis)
    untouched = two_broken_of_four(world)
    store = AsyncStore(async_redis, durable=False)
    store.now = world.now
    await store.run(claim_of("none"))
    results = await asyncio.gather(
        *(store.run(claim_of(one)) for one in "abcd"), return_exceptions=True
    )
    first, wrong_type, odd, last = results
    assert isinstance(first, Claim)
    assert isinstance(last, Claim)
    assert [one.refund.refund_id for one in (first, last) if one.refund] == ["a", "d"]
    assert (first.result, last.result) == ("claimed", "claimed")
    assert isinstance(wrong_type, NotStorable)
    assert isinstance(odd, NotStorable)
    assert "a value of another type" in str(wrong_type)
    assert "attempts odd is not a whole number" in str(odd)
    two_are_claimed(world, untouched)


def test_error_of_one_is_the_first_that_a_pipeline_raises(world: World) -> None:
    untouched = two_broken_of_four(world)
    with pytest.raises(NotStorable, match="a value of another type"):
        claimed(world, *"abcd")
    two_are_claimed(world, untouched)


def two_broken_of_four(world: World) -> dict[str, Any]:
    """Accept refunds `a` to `d`, of which `b` and `c` cannot be claimed, and return these."""
    for refund_id in "abcd":
        world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    world.redis.delete(f"{P}history:b")
    world.redis.set(f"{P}history:b", "text")
    world.redis.hset(f"{P}refund:c", "attempts", "odd")
    return {one: world.hash(f"refund:{one}") for one in "bc"}


def two_are_claimed(world: World, untouched: dict[str, Any]) -> None:
    assert {one: world.hash(f"refund:{one}") for one in "bc"} == untouched
    # What the members gather was written all the same.
    assert world.hash("counters")["move:queued:sending"] == "2"
    assert world.hash("meta")["position"] == "2"
    assert (world.indexes_of("a"), world.indexes_of("d")) == (
        ["due", "index:sending"],
        ["due", "index:sending"],
    )
    assert world.indexes_of("b") == world.indexes_of("c") == ["due", "index:queued"]


@pytest.mark.parametrize("raised", ["{err = 'ERR odd'}", "'ERR odd'", "'@user_script: 7: ERR odd'"])
def test_error_of_one_is_told_in_its_own_words_however_a_server_raises_it(
    any_redis: redis.Redis, raised: str
) -> None:
    shared, _, _ = scripts.CLAIM.text.partition("-- Claim refunds")
    with pytest.raises(exceptions.ResponseError, match=r"^(ERR )?odd"):
        any_redis.eval(f"{shared}\nreturn reply_of({raised})", 0, P, "1000", "1000")


def test_counter_that_cannot_be_increased_stops_nothing(world: World) -> None:
    for refund_id in "ab":
        world.accept(refund_id, batch=BATCH, payment_intent=f"pi_{refund_id}")
    world.redis.hset(f"{P}counters", "move:queued:sending", "odd")
    world.redis.hset(f"{P}batch:{BATCH}", "stage:sending", "odd")
    assert claimed(world, "a", "b") == ["claimed", "claimed"]
    assert world.hash("counters")["move:queued:sending"] == "odd"
    assert world.hash("counters")["open:sending:unknown"] == "1000"
    assert world.hash(f"batch:{BATCH}")["stage:queued"] == "0"


@pytest.mark.parametrize("rest", [[12, "b"], [12], [2, "b"]])
def test_run_with_a_member_that_is_cut_short_changes_nothing(world: World, rest: list[Any]) -> None:
    world.accept("a")
    world.store.run(claim_of("none"))
    before = world.dump()
    raw = [*world.store.raw_command(claim_of("a")), *rest]
    with pytest.raises(exceptions.ResponseError, match="a member is incomplete"):
        world.redis.execute_command(*raw)
    assert world.dump() == before


def test_sums_that_lua_might_not_hold_are_written_before(sync_redis: redis.Redis) -> None:
    most = 999_999_999_999_999
    adding = "gathered = {counts = {}, scores = {}, settled = {}, bodies = {}} "
    adding += f"for i = 1, 30 do count('x', '{most}') end write_counts(P .. 'counters') return 1"
    call(sync_redis, adding)
    assert held(sync_redis, "counters") == {"x": str(30 * most)}


# What they share is done once


def cost_of_claims(world: World, name: str, count: int, batch: str | None = None) -> dict[str, int]:
    """Claim new refunds in one run; return how often each command was carried out."""
    ids = [f"{name}-{number}" for number in range(count)]
    for refund_id in ids:
        world.accept(refund_id, batch=batch, payment_intent=f"pi_{refund_id}")
    world.redis.config_resetstat()
    assert claimed(world, *ids) == ["claimed"] * count
    return asked(world.redis)


def test_refunds_claimed_in_a_run_enter_a_sorted_set_together(sync_redis: redis.Redis) -> None:
    world = World(sync_redis)
    one, five = cost_of_claims(world, "one", 1), cost_of_claims(world, "five", 5)
    assert five["zadd"] == one["zadd"]


def test_batch_of_several_rows_is_read_once_in_a_run(sync_redis: redis.Redis) -> None:
    world = World(sync_redis)
    singles, rows = cost_of_claims(world, "single", 5), cost_of_claims(world, "row", 5, BATCH)
    assert rows["hmget"] == singles["hmget"] + 1


# Which commands run together


def ids_of(runs: Sequence[Sequence[int]], group: Sequence[Command[Any]]) -> list[list[Any]]:
    return [[group[index].arguments[0] for index in run] for run in runs]


def test_claims_run_together_up_to_fifty(sync_redis: redis.Redis) -> None:
    world = World(sync_redis)
    group = [claim_of(str(number)) for number in range(120)]
    assert [len(run) for run in joined(group)] == [50, 50, 20]
    world.store.run_many(group)
    sync_redis.config_resetstat()
    world.store.run_many(group)
    assert asked(sync_redis)["evalsha"] == 3


def test_saves_of_a_run_clear_an_index_of_settled_refunds_once(sync_redis: redis.Redis) -> None:
    world = World(sync_redis)
    ids = ["first", "a", "b", "c"]
    for refund_id in ids:
        world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    claimed(world, *ids)
    first, *others = [
        save_of(world.get(one), done_as("succeeded", id=f"re_{one}"), world) for one in ids
    ]
    world.store.run_many([first])  # from here on the server knows the script
    sync_redis.config_resetstat()
    assert [saved.result for saved in world.store.run_many(others)] == ["saved"] * 3
    assert asked(sync_redis)["zrangebyscore"] == 1


def test_saves_of_a_run_ask_once_whether_callbacks_are_on_and_give_each_key_one_expiry(
    sync_redis: redis.Redis,
) -> None:
    world = World(sync_redis)
    for refund_id in "ab":
        world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    claimed(world, "a", "b")
    group = [save_of(world.get(one), done_as("succeeded", id=f"re_{one}"), world) for one in "ab"]
    sync_redis.config_resetstat()
    assert [saved.result for saved in world.store.run_many(group)] == ["saved"] * 2
    # Record, history and payment. The owner's key is set with its expiry.
    assert (asked(sync_redis)["hexists"], asked(sync_redis)["pexpire"]) == (1, 2 * 3)
    assert world.expires("owner:re_a")


def test_commands_for_one_refund_keep_their_order(world: World) -> None:
    world.accept("a")
    world.accept("b")
    save = saves.save(world.get("a"), decisions.cancel(world.get("a")))
    group: list[Command[Any]] = [
        claim_of("b"),
        save,
        reads.load("c"),
        claim_of("a"),
        claim_of("c"),
        claim_of("d"),
    ]
    assert ids_of(joined(group), group) == [["b"], ["a"], ["c"], ["a", "c", "d"]]


def test_claim_does_not_overtake_a_command_that_names_its_refund_among_others(
    world: World,
) -> None:
    world.accept("a")
    group: list[Command[Any]] = [claim_of("c"), sweeps.give_back(["b", "a"]), claim_of("a")]
    assert ids_of(joined(group), group) == [["c"], ["b"], ["a"]]


def test_claims_of_one_refund_run_together() -> None:
    group = [claim_of("a", "one"), claim_of("a", "other")]
    assert ids_of(joined(group), group) == [["a", "a"]]


@pytest.mark.parametrize("refund_id", ["1", "2"])
def test_of_a_save_only_the_id_names_a_refund(world: World, refund_id: str) -> None:
    """Its version and its generation may look like the id of another one."""
    world.accept("a")
    save = saves.save(replace(world.get("a"), version=2), decisions.cancel(world.get("a")))
    group: list[Command[Any]] = [claim_of("c"), save, claim_of(refund_id)]
    assert ids_of(joined(group), group) == [["c", refund_id], ["a"]]


def test_other_commands_do_not_part_claims(world: World) -> None:
    world.accept("a")
    group: list[Command[Any]] = [claim_of("a"), reads.load("a"), claim_of("b"), reads.load("b")]
    assert ids_of(joined(group), group) == [["a", "b"], ["a"], ["b"]]
    claim, loaded, *_ = world.store.run_many(group)
    assert (claim.result, loaded.refund.stage) == ("claimed", Stage.SENDING)


# The records to the byte

OUTCOMES = (
    done_as("succeeded"),
    done_as("pending"),
    done_as("failed"),
    MAYBE,
    NOT_DONE,
    REFUSED,
)
PAYMENTS = 4
REFUNDS = 9
rounds = st.lists(
    st.tuples(
        st.sampled_from(["claim", "save", "retry", "cancel", "time"]),
        st.lists(
            st.tuples(st.integers(0, REFUNDS - 1), st.integers(0, len(OUTCOMES) - 1)),
            min_size=1,
            max_size=8,
        ),
    ),
    min_size=1,
    max_size=12,
)


def crowd(world: World) -> None:
    for number in range(REFUNDS):
        world.accept(
            f"r{number}",
            payment_intent=f"pi_{number % PAYMENTS}",
            batch=BATCH if number % 2 else None,
            lane=Lane.BULK if number % 2 else Lane.SINGLE,
        )
    world.redis.hset(f"{P}batch:{BATCH}", mapping={"state": "running", "imported_at": "1"})
    world.redis.hset(f"{P}meta", "callbacks", "1")
    # Little room, and an index with refunds whose records have expired.
    world.redis.hset(f"{P}batch:{BATCH}", "stage:processing", "-6")
    world.redis.zadd(f"{P}index:succeeded", {"old1": 1, "old2": 2, "old3": 3})


def commands_of(world: World, kind: str, members: Sequence[tuple[int, int]]) -> list[Command[Any]]:
    made: list[Command[Any]] = []
    for place, (number, outcome) in enumerate(members):
        refund_id = f"r{number}"
        refund = world.get(refund_id)
        if kind == "claim":
            made.append(claim_of(refund_id, f"token{place}", replay_window=HOUR))
        elif kind == "save":
            one = OUTCOMES[outcome]
            if one.found is not None:
                one = done_as(str(one.found.status), id=f"re_{number}")
            made.append(save_of(refund, one, world))
        elif kind == "cancel" and refund.stage in {Stage.QUEUED, Stage.WAITING}:
            made.append(saves.save(refund, decisions.cancel(refund)))
        elif kind == "retry" and (step := decisions.retry_failed(refund)) is not None:
            made.append(saves.save(refund, step))
    return made


def played(world: World, plan: Sequence[tuple[str, Any]], *, together: bool) -> list[Any]:
    world.redis.flushall()
    world.store.now = START
    crowd(world)
    seen: list[Any] = []
    for kind, members in plan:
        if kind == "time":
            world.pass_time(timedelta(minutes=2))
            continue
        commands = commands_of(world, kind, members)
        if together:
            seen.append(world.store.run_many(commands) if commands else [])
        else:
            seen.append([world.store.run(command) for command in commands])
        dump = world.dump()
        moves: Any = dump.pop("events")[1]
        seen.append((dump, [fields for _, fields in moves]))
    return seen


@example(plan=[("claim", [(n, 0) for n in range(8)]), ("save", [(n, 0) for n in range(8)])])
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=rounds)
def test_records_are_the_same_as_of_commands_one_by_one(
    sync_redis: redis.Redis, plan: list[tuple[str, Any]]
) -> None:
    world = World(sync_redis)
    one_by_one = played(world, plan, together=False)
    assert played(world, plan, together=True) == one_by_one
