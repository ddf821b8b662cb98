"""A server whose memory runs out.

Acceptance stops while there is room for what was accepted, and that is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.factories import a_request, done_as
from tests.support.store_world import ID, World
from tests.unit.store.hinting import due, hint
from worker.batches.record import pause_batch, resume_batch
from worker.broker import rejected
from worker.broker.kept import RejectedMessage
from worker.errors import StoreFull, StoreUnavailable
from worker.model.callers import Scope
from worker.model.refund import Lane, Stage, Status
from worker.store import (
    account_facts,
    audit,
    callback_state,
    callbacks,
    claims,
    creations,
    erasure,
    flags,
    gate,
    meta,
    reads,
    rechecks,
    record_time,
    sessions,
    sweeps,
    tokens,
)
from worker.store.async_store import AsyncStore
from worker.store.connection import is_away, redis_errors
from worker.store.store import Store

BALLAST = 32 * 2**20
"""So much that what a test itself writes is far below one percent of it."""
OVER = 100.5


@pytest.fixture
def fill(sync_redis: redis.Redis) -> Iterator[Callable[[float], None]]:
    """Set the server's limit so that it uses so many percent of it."""
    # Not by SET: the buffer that it comes in would be freed only later.
    sync_redis.setrange("ballast", BALLAST, "x")

    def to(percentage: float) -> None:
        memory: Any = sync_redis.info("memory")
        sync_redis.config_set("maxmemory", int(memory["used_memory"] * 100 / percentage))

    yield to
    sync_redis.config_set("maxmemory", 0)


@pytest.fixture
def full_world(sync_redis: redis.Redis) -> World:
    return World(sync_redis)


@pytest.mark.parametrize(
    ("percentage", "accepted"), [(50, True), (89.5, True), (90.5, False), (99.5, False)]
)
def test_acceptance_stops_at_ninety_percent_of_the_memory(
    full_world: World, fill: Callable[[float], None], percentage: float, *, accepted: bool
) -> None:
    fill(percentage)
    before = full_world.dump()
    if accepted:
        assert full_world.accept().result == "created"
    else:
        # The buffers of a busy server's connections may take half a percent more meanwhile.
        percent = rf"({int(percentage)}|{int(percentage) + 1})"
        said = rf"uses {percent} % of its maxmemory, and from 90 % on .*: raise maxmemory, then run"
        with pytest.raises(StoreFull, match=said):
            full_world.accept()
        assert full_world.dump() == before


def test_without_a_limit_nothing_stops(full_world: World) -> None:
    assert full_world.accept().result == "created"


def test_one_new_refund_among_known_ones_is_not_accepted_either(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.accept("a")
    fill(95)
    with pytest.raises(StoreFull):
        full_world.store.run(creations.create_several([a_request("a"), a_request("b")], Lane.BULK))
    assert full_world.store.get("b") is None


@pytest.mark.parametrize("percentage", [95, OVER])
def test_what_was_accepted_before_is_known_and_a_conflict_is_told(
    full_world: World, fill: Callable[[float], None], percentage: float
) -> None:
    full_world.accept()
    fill(percentage)
    again = full_world.accept()
    assert (again.result, again.refund) == ("exists", full_world.get())
    assert full_world.accept(amount=1).result == "conflict"


def test_whatever_was_accepted_is_claimed_on_a_nearly_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.accept()
    fill(95)
    assert full_world.claim().claimed


def test_nothing_more_is_claimed_without_any_memory(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.accept()
    fill(OVER)
    before = full_world.dump()
    with pytest.raises(StoreUnavailable, match="used memory"):
        full_world.claim()
    assert full_world.dump() == before


def test_claims_are_stopped_without_any_memory_if_the_server_forgot_some(
    full_world: World, fill: Callable[[float], None]
) -> None:
    fill(OVER)
    assert full_world.store.run(claims.position("0-lost:7:mark")) == full_world.now


def test_a_doubt_is_ended_by_a_replay_without_any_memory(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.accept()
    full_world.claim()
    full_world.store.now = full_world.lapse().next_check_at
    fill(OVER)
    assert full_world.claim(kind="replay").claimed


@pytest.mark.parametrize("percentage", [95, OVER])
def test_whatever_was_claimed_is_saved_and_swept_on_a_full_server(
    full_world: World, fill: Callable[[float], None], percentage: float
) -> None:
    full_world.accept()
    full_world.accept("later")
    claimed = full_world.claim()
    fill(percentage)
    assert full_world.end(claimed, done_as()).result == "saved"
    assert full_world.get().settled
    full_world.pass_time(sweeps.NUDGE_GRACE)
    assert full_world.swept() == ["later"]
    assert full_world.store.run(sweeps.give_back(["later"])) == 1


def test_what_a_webhook_names_is_noted_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.accept()
    fill(OVER)
    assert hint(full_world) == due(full_world, Stage.QUEUED)
    assert full_world.get().candidates == ("re_9",)


def test_the_same_claim_asked_twice_is_given_twice_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.accept()
    first = full_world.claim(token="t")
    fill(OVER)
    assert full_world.claim(token="t").claimed
    assert full_world.get() == first.refund


def test_the_gate_gives_and_closes_and_the_provider_is_pinned_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    fill(OVER)
    given = full_world.store.run(
        gate.permits({Lane.SINGLE: 1}, rate=10, ahead=sweeps.LOST_NUDGE, bulk_share=0.5)
    )
    assert len(given.moments) == 1
    assert full_world.store.run(gate.block_gate(sweeps.LOST_NUDGE)) == sweeps.LOST_NUDGE
    assert full_world.store.run(meta.pin("h", "test"))[:2] == ("h", "test")


def test_the_stop_button_works_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    fill(OVER)
    changed, state = flags.pause(full_world.store, "ann")
    assert (changed, state.paused_by, state.paused_at) == (True, "ann", full_world.now)
    changed, state = flags.pause(full_world.store, "bob")
    assert (changed, state.paused_by) == (False, "ann")
    assert flags.resume(full_world.store)[1].paused_by == "ann"
    deed = audit.Deed(by="ann", via="api", address="", action="pause")
    assert audit.carry_out(full_world.store, deed, lambda: flags.pause(full_world.store, "ann"))[0]
    assert [each.result for each in audit.entries(full_world.store)] == ["done"]


def test_a_file_is_paused_and_resumed_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.redis.hset("refunds:batch:b", "state", "running")
    fill(OVER)
    assert [pause_batch(full_world.store, "b", "ann") for _ in range(2)] == [True, False]
    assert full_world.store.batch_state("b") == "paused"
    assert resume_batch(full_world.store, "b")
    assert full_world.store.batch_state("b") == "running"


def test_a_token_is_revoked_and_an_endpoint_is_paused_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    store = full_world.store
    tokens.create(
        store, "shop", scopes=frozenset(Scope), ids_prefix="", expires_at=None, by="the test"
    )
    fill(OVER)
    assert [tokens.revoke(store, "shop") for _ in range(2)] == [True, False]
    assert [each.revoked_at is None for each in tokens.listed(store)] == [False]
    assert [callback_state.pause(store, "shop", who) for who in ("ann", "bob")] == [True, False]
    (state,) = callback_state.read_callbacks(store, ["shop"]).endpoints
    assert (state.paused_by, state.paused_at is None) == ("ann", False)


def test_how_a_refund_ended_is_confirmed_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    fill(OVER)
    assert full_world.store.run(record_time.confirm()) == full_world.now - record_time.MOST_BACK


def test_whose_account_it_is_is_noted_and_vouched_for_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    run = full_world.store.run
    fill(OVER)
    assert run(account_facts.payment("pi_1", "shown")) == "shown"
    assert [run(account_facts.payment("pi_1", "certain")) for _ in range(2)] == ["raised", "lost"]
    assert flags.vouch_for_account(full_world.store).account_lost_payment == "pi_1"
    assert run(account_facts.payment("pi_1", "certain")) == "unseen"
    facts = run(account_facts.account("salt", known="p1"))
    assert (facts.salt, facts.prints) == ("salt", frozenset({"p1"}))


@pytest.mark.parametrize("found", ["shown", "gone"])
def test_a_payment_is_noted_on_a_full_server(
    full_world: World, fill: Callable[[float], None], found: Any
) -> None:
    fill(OVER)
    assert full_world.store.run(account_facts.payment("pi_1", found)) == found


def test_callbacks_are_sent_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    run = full_world.store.run
    run(meta.flag("callbacks", once=True))
    full_world.accept()
    full_world.attempt(done_as())
    fill(OVER)
    shop = callbacks.Wanted(name="shop", ids="", most=9)
    tries: list[tuple[callbacks.Result, callbacks.Ended]] = [
        ("failed", "again"),
        ("delivered", "done"),
    ]
    for result, became in tries:
        assert run(callbacks.outbox([shop])).due == {"shop": [ID]}
        taken = run(callbacks.take("shop", ID, token=result, lease=sweeps.LOST_NUDGE))
        assert taken.stored is not None
        assert run(callbacks.replay("shop", [ID])) == 1
        version = taken.stored["version"]
        ended = callbacks.ended(
            "shop", ID, token=result, result=result, version=version, wait=timedelta(0)
        )
        assert run(ended) == became


def test_a_message_that_is_not_understood_is_kept_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    """It is removed from its broker next."""
    fill(OVER)
    odd = RejectedMessage(entry_id="m1", reason="odd", message="{}", refund_ids=(ID,))
    assert full_world.store.run(rejected.keep(odd)) == 1
    assert [each.entry_id for each in rejected.listed(full_world.store)] == ["m1"]


def test_a_read_in_vain_is_noted_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    full_world.accept()
    fill(OVER)
    ended = full_world.store.run(rechecks.rechecked(ID, answered=False, possible="re_1"))
    assert ended.result == "again"
    assert full_world.hash(f"refund:{ID}")["possible_refund_id"] == "re_1"


def test_what_was_erased_is_noted_on_a_full_server(
    full_world: World, fill: Callable[[float], None]
) -> None:
    fill(OVER)
    command = erasure.erasable(Status.SUCCEEDED, timedelta(days=1), most=10, done=7)
    assert full_world.store.run(command).refund_ids == ()
    assert full_world.hash("watch") == {"erased:succeeded": "7"}


async def test_a_person_signs_in_on_a_full_server(
    async_redis: redis.asyncio.Redis, fill: Callable[[float], None]
) -> None:
    """To stop what runs."""
    fill(OVER)
    store, day = AsyncStore(async_redis, durable=False), timedelta(days=1)
    assert [
        await sessions.secret_of_person(store, "1", fresh, longest=day) for fresh in ("a", "b")
    ] == ["a", "a"]


async def test_a_refused_key_is_noted_on_a_full_server(
    async_redis: redis.asyncio.Redis, fill: Callable[[float], None]
) -> None:
    fill(OVER)
    store = AsyncStore(async_redis, durable=False)
    assert await store.flag("credentials_refused_at", once=True)
    assert await store.flagged("credentials_refused_at")
    with pytest.raises(StoreFull):
        await store.run(creations.create(a_request(), Lane.SINGLE))
    assert (await store.run(reads.load(ID))).refund is None


async def test_a_worker_that_runs_is_seen_to_run_on_a_full_server(
    async_redis: redis.asyncio.Redis, fill: Callable[[float], None]
) -> None:
    """Whoever does not see it calls somebody at night, or restarts it again and again."""
    fill(OVER)
    await AsyncStore(async_redis, durable=False).beat("here")
    assert await async_redis.zrange("refunds:workers", 0, -1) == ["here"]


def test_a_user_who_may_not_ask_for_the_memory_is_served_up_to_the_limit(
    sync_redis: redis.Redis, fill: Callable[[float], None]
) -> None:
    sync_redis.execute_command(
        "ACL", "SETUSER", "app", "reset", "on", ">app", "~*", "+@all", "-info"
    )
    pool = sync_redis.connection_pool.connection_kwargs
    with redis.Redis(
        host=pool["host"], port=pool["port"], username="app", password="app", decode_responses=True
    ) as app:
        store = Store(app, durable=False)
        fill(95)
        assert store.run(creations.create(a_request("a"), Lane.SINGLE)).result == "created"
        fill(OVER)
        with pytest.raises(StoreUnavailable, match="refuses commands now"):
            store.run(creations.create(a_request("b"), Lane.SINGLE))
    sync_redis.execute_command("ACL", "DELUSER", "app")


def test_too_little_memory_is_a_server_that_is_away_for_now() -> None:
    error = redis.ResponseError("NEARLYFULL 93")
    assert is_away(error)
    with (
        pytest.raises(StoreFull, match=r"^Redis at here uses 93 % of its maxmemory"),
        redis_errors("here"),
    ):
        raise error
