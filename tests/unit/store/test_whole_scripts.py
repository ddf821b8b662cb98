"""No script fails half way: after an error everything is as it was, whatever the arguments and
whatever Redis holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import exceptions

from tests.factories import HOUR, MAYBE, NOT_DONE, VERIFY, a_request, done_as
from tests.support.store_world import LEASE, P, World, at_stage
from worker.batches import opening, record
from worker.broker import rejected
from worker.broker.kept import RejectedMessage
from worker.errors import NotStorable
from worker.model.hints import Hint
from worker.model.refund import Lane, Stage, Status
from worker.model.request import MAX_AMOUNT
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.rules import attempts, decisions, proofs
from worker.store import (
    account_facts,
    claims,
    creations,
    erasure,
    gate,
    meta,
    rechecks,
    saves,
    scripts,
    sweeps,
)
from worker.store.scripts import Argument, Command

HUGE = "10000000000000000000"
BATCH = "b1"
PAYMENT = a_request().payment_intent
CLOCK = f"{P}clock".encode()


# The records with a bit of everything in them, and one call of each kind


def crowd(world: World) -> None:
    """A batch and single refunds of one payment, at every stage that leads on, with keys of every
    kind.
    """
    opened = Command(
        script=opening.OPEN,
        arguments=[BATCH, "d1", "1", "", "", 0, "file", "f.csv", "rows", 9],
        read=list,
    )
    world.store.run(opened)
    world.accept("settled", batch=BATCH, lane=Lane.BULK)
    world.attempt(done_as("succeeded", id="re_settled"), "settled")
    world.accept("failed", batch=BATCH, lane=Lane.BULK)
    world.attempt(done_as("failed", id="re_failed"), "failed")
    world.accept("doubtful", batch=BATCH, lane=Lane.BULK)
    world.attempt(MAYBE, "doubtful")
    world.accept("waiting", payment_intent="pi_other")
    world.attempt(NOT_DONE, "waiting")
    world.accept("free", payment_intent="pi_free", batch=BATCH, lane=Lane.BULK, currency=None)
    world.accept("held", batch=BATCH, lane=Lane.BULK)
    world.claim("held")
    world.accept("beside")
    beside = world.get("beside")
    world.save(
        beside,
        Step(
            to=Stage.IN_DOUBT,
            status=beside.status,
            label="recovered",
            changes={"doubt_since": world.now},
        ),
    )
    world.store.run(gate.block_gate(timedelta(milliseconds=1)))
    world.store.run(rejected.keep(a_rejected("e1")))
    world.redis.hset(f"{P}meta", "schema", "1")
    world.pass_time(timedelta(minutes=1))


def a_rejected(entry_id: str) -> RejectedMessage:
    return RejectedMessage(
        entry_id=entry_id, reason="why", message="what", refund_ids=("r-1", "r-2")
    )


def request(refund_id: str, lane: Lane = Lane.BULK, batch: str | None = BATCH) -> Command[Any]:
    return creations.create_several(
        [a_request(refund_id), a_request(f"{refund_id}-2"), a_request(refund_id)], lane, batch
    )


def recovering(world: World) -> Command[Any]:
    world.redis.hset(
        f"{P}meta",
        mapping={"suspect_since": to_ms(world.now), "suspect_until": to_ms(world.now + HOUR)},
    )
    return request("new")


def claim_of(refund_id: str, kind: Any = "send", **options: Any) -> Callable[[World], Command[Any]]:
    def build(_: World) -> Command[Any]:
        usual: dict[str, Any] = {
            "token": "t",
            "lease": LEASE,
            "replay_window": HOUR,
            "currency_checked": True,
        }
        return claims.claim(refund_id, kind, **(usual | options))

    return build


def canceled(world: World) -> Command[Any]:
    world.redis.hset(f"{P}batch:{BATCH}", "state", "canceled")
    return claim_of("free")(world)


def reply_of(refund_id: str, outcome: Any) -> Callable[[World], Command[Any]]:
    def build(world: World) -> Command[Any]:
        refund = world.get(refund_id)
        claimed = refund if refund.stage is Stage.SENDING else world.claim(refund_id).refund
        assert claimed is not None
        return saves.save(
            claimed, attempts.after_attempt(claimed, outcome, VERIFY, world.now, 0), {"attempt": 1}
        )

    return build


def found(world: World) -> Command[Any]:
    refund, shown = world.get("doubtful"), done_as("succeeded", id="re_x").found
    assert shown is not None
    return saves.save(refund, proofs.done(refund, shown, "list", world.now))


def quiet(world: World) -> Command[Any]:
    refund = world.get("waiting")
    changes = {"looks": 3, "missing_since": world.now, "baseline": None}
    step = Step(
        to=refund.stage,
        status=refund.status,
        label="later",
        changes=changes,
        delay=HOUR,
        quiet=True,
    )
    return saves.save(refund, step)


def missing(world: World) -> Command[Any]:
    world.store.run(account_facts.payment(PAYMENT, "shown"))
    return account_facts.payment(PAYMENT, "certain")


def hinted(refund_id: str) -> Command[Any]:
    return rechecks.hint(Hint(provider_refund_id="re_9", refund_id=refund_id))


def again(world: World) -> Command[Any]:
    refund = world.get("failed")
    step = decisions.retry_failed(refund)
    assert step is not None
    return saves.save(refund, step)


CALLS: dict[str, Callable[[World], Command[Any]]] = {
    "accept": lambda _: request("new"),
    "accept single": lambda _: creations.create(
        a_request("new", payment_intent="pi_new"), Lane.SINGLE, by="shop"
    ),
    "accept queued": lambda _: creations.create_several(
        [a_request("new"), a_request("new-2")],
        Lane.SINGLE,
        queue=f"{P}refunds",
        messages=["one", "two"],
    ),
    "accept known": lambda _: request("settled"),
    "accept in doubt": recovering,
    "claim": claim_of("free"),
    "claim locked": claim_of("waiting"),
    "claim behind": claim_of("beside", "resend"),
    "claim canceled": canceled,
    "claim lost": claim_of("held", "replay"),
    "save done": reply_of("held", done_as("succeeded", id="re_held")),
    "save failed": reply_of("held", done_as("failed", id="re_held")),
    "save doubt": reply_of("held", MAYBE),
    "save found": found,
    "save later": quiet,
    "save retry": again,
    "save erased": lambda world: erasure.erase(world.get("settled"), world.now),
    "erase": lambda world: erasure.erasable(
        Status.SUCCEEDED, timedelta(0), most=9, done=to_ms(world.now - HOUR)
    ),
    "sweep": lambda _: sweeps.sweep(100, dry=frozenset(Lane)),
    "give back": lambda _: sweeps.give_back(["free", "waiting", "held", "nobody"]),
    "webhook unsent": lambda _: hinted("free"),
    "webhook in doubt": lambda _: hinted("waiting"),
    "webhook sending": lambda _: hinted("held"),
    "webhook settled": lambda _: hinted("settled"),
    "webhook of a payment": lambda _: rechecks.hint(
        Hint(provider_refund_id="re_9", payment_intent=PAYMENT)
    ),
    "recheck ended": lambda _: rechecks.rechecked(
        "doubtful", answered=True, read=["re_9"], possible="re_9"
    ),
    "recheck again": lambda _: rechecks.rechecked("free", answered=False),
    "watch": lambda _: rechecks.watch([HOUR], rate=100, most=10),
    "gate": lambda _: gate.permits(
        {Lane.BULK: 3}, rate=100, ahead=timedelta(milliseconds=100), bulk_share=0.5
    ),
    "block gate": lambda _: gate.block_gate(HOUR),
    "pin": lambda _: meta.pin("host", "test"),
    "flag": lambda _: Command(script=scripts.FLAG, arguments=["paused", "1", "me"], read=int),
    "payment shown": lambda _: account_facts.payment(PAYMENT, "shown"),
    "payment missing": missing,
    "payment gone": lambda _: account_facts.payment(PAYMENT, "gone"),
    "key known": lambda _: account_facts.account("salt", known="p1", account="acct_1"),
    "keep a message": lambda _: rejected.keep(a_rejected("e2")),
    "drop messages": lambda _: Command(script=rejected.SCRIPT, arguments=["drop", ""], read=int),
    "open batch": lambda _: Command(
        script=opening.OPEN, arguments=["b2", "d2", "", "", "o", 5, "rows", 3], read=list
    ),
    "close batch": lambda _: Command(script=opening.CLOSE, arguments=[BATCH, 9, 0], read=int),
    "batch state": lambda _: Command(
        script=record.STATE, arguments=[BATCH, "paused", ",running,", "me"], read=list
    ),
}
kinds = pytest.mark.parametrize("kind", list(CALLS))

ODD: tuple[Argument, ...] = ("", "x", "-1", "1.5", "nan", "inf", HUGE, "a b", '"')


Seen = dict[bytes, tuple[bytes, bool]]
"""By key what it holds, and whether it expires."""


class Whole:
    """The records, and everything in them as the server keeps it, to be compared and brought
    back.
    """

    def __init__(self, world: World) -> None:
        pool = world.redis.connection_pool
        as_bytes = {**pool.connection_kwargs, "decode_responses": False}
        self.world = world
        self._raw = redis.Redis(
            connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **as_bytes)
        )

    def seen(self, keys: Collection[bytes] | None = None) -> Seen:
        """Return everything there is, or what there is under these keys."""
        # The largest time seen is kept by every script, whatever becomes of it.
        keys = sorted({*(self._keys() if keys is None else keys)} - {CLOCK})
        with self._raw.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.dump(key)
                pipeline.pttl(key)
            replies: Any = pipeline.execute()
        return {
            key: (dumped, left > 0)
            for key, dumped, left in zip(keys, replies[::2], replies[1::2], strict=True)
        }

    def _keys(self) -> list[bytes]:
        keys: Any = self._raw.keys(f"{P}*")
        return list(keys)

    def bring_back(self, seen: Seen, keys: Collection[bytes] | None = None) -> None:
        """Make everything as it was seen, or what there is under these keys."""
        with self._raw.pipeline(transaction=False) as pipeline:
            if keys is None:
                pipeline.flushdb()
            else:
                pipeline.delete(CLOCK, *keys)
            for key in seen if keys is None else {*keys} & {*seen}:
                dumped, expires = seen[key]
                pipeline.restore(key, self.world.store.retention_ms if expires else 0, dumped)
            pipeline.execute()

    def run_with_spoilt(self, call: Command[Any], start: Seen, keys: Collection[bytes]) -> None:
        """Run a call while all but these keys is as it was at the start, and make them so again."""
        error = self.run(call, {**start, **self.seen(keys)})
        # After an error nothing else has changed: `run` has just compared it.
        self.bring_back(start, None if error is None else keys)

    def run(self, call: Command[Any], before: Seen | None = None) -> BaseException | None:
        """Run a call; if it ends in an error, everything must be as it was before, and the error is
        returned.
        """
        before = before or self.seen()
        error: BaseException | None = None
        try:
            self.world.store.run(replace(call, read=lambda reply: reply))
        except (exceptions.ResponseError, NotStorable) as ended:
            error = ended
        if error is not None:
            assert self.seen() == before, (
                f"{call.script.name} kept a part of what it wrote before: {error}"
            )
        return error

    def close(self) -> None:
        self._raw.close()


@pytest.fixture
def whole(world: World) -> Iterator[Whole]:
    """The records with a bit of everything in them."""
    crowd(world)
    one = Whole(world)
    yield one
    one.close()


@pytest.fixture
def real(sync_redis: redis.Redis) -> Iterator[Whole]:
    """The same on the real server alone, for what takes thousands of runs."""
    world = World(sync_redis)
    crowd(world)
    one = Whole(world)
    yield one
    one.close()


@kinds
def test_each_call_does_something_and_ends_in_no_error(whole: Whole, kind: str) -> None:
    call = CALLS[kind](whole.world)
    before = whole.seen()
    assert whole.run(call) is None
    if kind not in {"claim lost", "claim behind", "gate"}:
        assert whole.seen() != before


# What Redis holds


@kinds
def test_key_of_another_type_leaves_everything_as_it_was(real: Whole, kind: str) -> None:
    client, call = real.world.redis, CALLS[kind](real.world)
    start = real.seen()
    real.run(call)
    keys = {**start, **real.seen()}
    real.bring_back(start)
    for key in keys:
        for other in ("text", "hash"):
            client.delete(key)
            if other == "text":
                client.set(key, "text")
            else:
                client.hset(key, "field", "value")
            real.run_with_spoilt(call, start, [key])


@kinds
def test_figure_that_can_count_no_further_stops_nothing(whole: Whole, kind: str) -> None:
    client, call = whole.world.redis, CALLS[kind](whole.world)
    start = whole.seen()
    whole.run(call)
    counted = [*whole.world.hash("counters")]
    in_batch = [*(name for name in whole.world.hash(f"batch:{BATCH}") if ":" in name), "streak"]
    for limit in (str(2**63 - 1), str(-(2**63)), "text", HUGE):
        whole.bring_back(start)
        client.hset(f"{P}counters", mapping=dict.fromkeys(counted, limit))
        client.hset(f"{P}batch:{BATCH}", mapping=dict.fromkeys(in_batch, limit))
        assert whole.run(call) is None


@kinds
def test_stored_number_that_is_none_leaves_everything_as_it_was(real: Whole, kind: str) -> None:
    client, call = real.world.redis, CALLS[kind](real.world)
    records = [
        f"refund:{one}"
        for one in ("settled", "failed", "doubtful", "waiting", "free", "held", "beside")
    ]
    numbers = (
        "version",
        "amount",
        "attempts",
        "created_at",
        "updated_at",
        "next_check_at",
        "first_attempt_at",
    )
    spoilt = [(records, name) for name in numbers]
    spoilt += [
        ([f"payment:{PAYMENT}", "payment:pi_free", "payment:pi_other"], name)
        for name in ("seq", "open")
    ]
    spoilt += [
        ([f"batch:{BATCH}"], name)
        for name in ("not_before", "status:pending", "stage:sending", "created_at")
    ]
    spoilt += [
        (["gate"], name)
        for name in ("blocked_until", "pace", "paced_at", "next_at", "single_at", "bulk_at")
    ]
    spoilt += [(["clock"], name) for name in ("at", "ahead")]
    spoilt += [(["meta"], name) for name in ("suspect_since", "suspect_until")]
    start = real.seen()
    real.bring_back(start)
    for names, field in spoilt:
        keys = [f"{P}{name}".encode() for name in names]
        for stored in ("x", HUGE, "-1", "nan"):
            for key in keys:
                client.hset(key, field, stored)
            real.run_with_spoilt(call, start, keys)


# Arguments


@kinds
def test_argument_of_any_kind_leaves_everything_as_it_was(real: Whole, kind: str) -> None:
    call = CALLS[kind](real.world)
    start = real.seen()
    for place in range(len(call.arguments)):
        for odd in ODD:
            changed = [*call.arguments]
            changed[place] = odd
            if real.run(replace(call, arguments=changed), start) is None:
                real.bring_back(start)


@kinds
def test_arguments_that_are_missing_or_too_many_leave_everything_as_it_was(
    real: Whole, kind: str
) -> None:
    call = CALLS[kind](real.world)
    start = real.seen()
    for count in range(len(call.arguments)):
        if real.run(replace(call, arguments=call.arguments[:count]), start) is None:
            real.bring_back(start)
    for more in (1, 2, 20_000):
        if real.run(replace(call, arguments=[*call.arguments, *["x"] * more]), start) is None:
            real.bring_back(start)


@kinds
def test_command_without_arguments_is_refused(world: World, kind: str) -> None:
    crowd(world)
    command = CALLS[kind](world)
    # To give back no refund is no mistake.
    if command.arguments and kind != "give back":
        with pytest.raises(NotStorable, match=r"too few arguments: 3 of \d+$"):
            world.store.run(replace(command, arguments=[]))


@pytest.mark.parametrize(
    "amount", [HUGE, str(MAX_AMOUNT + 1), "-1", "5.5", "nan", "1e3", "0x10", " 5", "five"]
)
def test_amount_that_the_records_cannot_hold_changes_nothing(world: World, amount: str) -> None:
    refund = at_stage(world, Stage.SENDING, amount=None)
    step = attempts.after_attempt(refund, done_as("succeeded"), VERIFY, world.now, 0)
    before = world.dump()
    with pytest.raises(NotStorable, match=r"amount .* is not a whole number up to 10{12}$"):
        world.save(refund, replace(step, changes={**step.changes, "amount": amount}))
    assert world.dump() == before
    world.check()


@pytest.mark.parametrize("place", [2, 3])
@pytest.mark.parametrize("text", ["\x80", "", "{}", "[1]", "text"])
def test_message_that_is_not_an_object_is_not_kept(world: World, place: int, text: str) -> None:
    command = rejected.keep(a_rejected("e1"))
    changed = [*command.arguments]
    changed[place] = text
    before = world.dump()
    with pytest.raises(NotStorable, match=r"is not a JSON object with a field$"):
        world.store.run(replace(command, arguments=changed))
    assert world.dump() == before


values = st.one_of(
    st.sampled_from(ODD), st.text(max_size=12), st.integers(-(10**20), 10**20).map(str)
)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_arguments_drawn_at_random_leave_the_records_whole_or_as_they_were(
    whole: Whole, data: st.DataObject
) -> None:
    begin = whole.seen()
    # What makes a call changes the records too, and what is drawn may end here.
    try:
        call = CALLS[data.draw(st.sampled_from(sorted(CALLS)))](whole.world)
        places = data.draw(
            st.lists(st.integers(0, len(call.arguments) - 1), min_size=1, max_size=3, unique=True)
        )
        changed: list[Argument] = [*call.arguments]
        for place in places:
            changed[place] = data.draw(values)
        whole.run(replace(call, arguments=changed))
        if call.script is not scripts.SAVE:
            # What a save writes is for the rules to say: it takes fields of any name.
            whole.world.check()
    finally:
        whole.bring_back(begin)
