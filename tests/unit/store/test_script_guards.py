"""Scripts refuse what they cannot finish, before they change anything."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, done_as
from tests.support.store_world import ID, LEASE, P, World, at_stage
from tests.unit.store.calling_back import due, end, settle, take
from tests.unit.store.test_script_moves import recover
from worker.batches import opening, record
from worker.broker import rejected
from worker.broker.kept import RejectedMessage
from worker.errors import NotStorable
from worker.model.refund import Stage, Status
from worker.model.steps import Step
from worker.store import (
    callbacks,
    claims,
    erasure,
    meta,
    rechecks,
    saves,
    scripts,
    sessions,
    sweeps,
)
from worker.store.callbacks import Wanted
from worker.store.scripts import Command

SHOP, BOOKS = Wanted(name="shop", ids="", most=100), Wanted(name="books", ids="", most=100)
OF_ANOTHER_TYPE = "a key of the records holds a value of another type"


def raw(script: scripts.Script, *arguments: scripts.Argument) -> Command[Any]:
    return Command(script=script, arguments=arguments, read=lambda reply: reply)


def kept(*refund_ids: str, entry_id: str = "m1") -> Command[int]:
    return rejected.keep(
        RejectedMessage(entry_id=entry_id, reason="odd", message="{}", refund_ids=refund_ids)
    )


# Arguments


def a_claim(_: World) -> Command[Any]:
    return claims.claim(ID, "send", token="t", lease=LEASE)


def a_save(world: World) -> Command[Any]:
    step = Step(to=Stage.QUEUED, status=Status.PENDING, label="x", delay=HOUR, quiet=True)
    return saves.save(world.get(), step)


def a_note(_: World) -> Command[Any]:
    return meta.once("meta", {"paused": "1", "paused_by": "ann"})


def a_callback(_: World) -> Command[Any]:
    wait = timedelta(seconds=5)
    return callbacks.ended(
        "shop", ID, token="t", result="failed", version="1", wait=wait, log={"ms": "3"}
    )


@pytest.mark.parametrize("call", [a_claim, a_save, a_note, a_callback])
def test_field_without_a_value_is_refused(world: World, call: Any) -> None:
    world.accept()
    command = call(world)
    before = world.dump()
    with pytest.raises(NotStorable, match="are not pairs"):
        world.store.run(replace(command, arguments=[*command.arguments, "x"]))
    assert world.dump() == before


@pytest.mark.parametrize("by", ["", "ann"])
def test_flag_names_who_set_it_if_that_is_known(world: World, by: str) -> None:
    world.store.run(meta.flag("paused", once=True, by=by))
    assert world.hash("meta").get("paused_by") == (by or None)


@pytest.mark.parametrize(
    ("script", "least"),
    [
        (scripts.ACCOUNT, 6),
        (opening.OPEN, 9),
        (opening.CLOSE, 6),
        (scripts.BEAT, 5),
        (scripts.BLOCK_GATE, 4),
        (scripts.CLAIM, 12),
        (scripts.CREATE, 9),
        (scripts.FLAG, 6),
        (scripts.GATE, 8),
        (scripts.ONCE, 6),
        (scripts.PAYMENT, 5),
        (scripts.PIN, 6),
        (scripts.POSITION, 4),
        (scripts.SAVE, 17),
        (scripts.SWEEP, 11),
        (scripts.TOKEN_NAME, 6),
        (callbacks.CALLBACK, 8),
        (callbacks.DELIVERED, 13),
        (callbacks.OUTBOX, 6),
        (callbacks.REPLAY, 5),
        (erasure.ERASE, 7),
        (rechecks.HINT, 10),
        (rechecks.RECHECKED, 9),
        (rechecks.WATCH, 8),
        (record.STATE, 7),
        (rejected.SCRIPT, 5),
        (sessions.SESSION, 6),
    ],
    ids=lambda value: value.name if isinstance(value, scripts.Script) else "",
)
def test_one_argument_too_few_is_refused_with_their_number(
    world: World, script: scripts.Script, least: int
) -> None:
    """Three of the arguments are put before those of each call."""
    world.accept()
    before = world.dump()
    with pytest.raises(NotStorable, match=rf"too few arguments: {least - 1} of {least}$"):
        world.store.run(raw(script, *["1"] * (least - 4)))
    assert world.dump() == before


def test_message_is_kept_only_with_all_that_is_needed_of_it(world: World) -> None:
    with pytest.raises(NotStorable, match=r"too few arguments: 6 of 7$"):
        world.store.run(replace(kept(), arguments=kept().arguments[:3]))
    assert world.dump() == {}


def test_recheck_that_ends_in_an_unknown_way_is_refused(world: World) -> None:
    settle(world)
    command = rechecks.rechecked(ID, answered=True)
    before = world.dump()
    with pytest.raises(NotStorable, match="lost is none of"):
        world.store.run(replace(command, arguments=[ID, "lost", *command.arguments[2:]]))
    assert world.dump() == before


def test_rejected_messages_stay_if_it_is_not_known_what_to_do(world: World) -> None:
    world.store.run(kept(ID))
    before = world.dump()
    arguments = ["hide", *kept(ID).arguments[1:]]
    with pytest.raises(NotStorable, match="hide is none of"):
        world.store.run(replace(kept(ID), arguments=arguments))
    assert world.dump() == before


# Keys of another type


@pytest.mark.parametrize("key", ["rejected", "rejected-ids"])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(kept(ID), id="keep"),
        pytest.param(raw(rejected.SCRIPT, "drop", ""), id="drop"),
    ],
)
def test_rejected_message_changes_nothing_if_a_key_is_of_another_type(
    world: World, key: str, command: Command[Any]
) -> None:
    world.store.run(kept("r1"))
    world.redis.delete(P + key)
    world.redis.set(P + key, "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        world.store.run(command)
    assert world.dump() == before


@pytest.mark.parametrize("kind", ["callbacks", "callback-since", "callback-dead"])
@pytest.mark.parametrize("served", [True, False])
def test_nothing_is_shared_out_if_a_key_of_one_endpoint_is_of_another_type(
    world: World, kind: str, *, served: bool
) -> None:
    """The other endpoint is served by this worker, or only by others."""
    world.store.run(meta.flag("callbacks", once=True))
    due(world, SHOP, BOOKS)
    settle(world)
    world.redis.set(f"{P}{kind}:books", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        due(world, *([SHOP, BOOKS] if served else [SHOP]))
    assert world.dump() == before


@pytest.mark.parametrize("kind", ["callbacks", "callback-since", "callback-dead"])
@pytest.mark.parametrize(
    ("result", "wait"), [("delivered", None), ("failed", None), ("failed", HOUR), ("refused", None)]
)
def test_try_ends_without_a_trace_if_a_key_of_its_endpoint_is_of_another_type(
    world: World, kind: str, result: callbacks.Result, wait: timedelta | None
) -> None:
    world.store.run(meta.flag("callbacks", once=True))
    settle(world)
    due(world, SHOP)
    take(world)
    world.redis.delete(f"{P}{kind}:shop")
    world.redis.set(f"{P}{kind}:shop", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        end(world, result, wait=wait)
    assert world.dump() == before


def test_records_whose_callbacks_are_of_another_type_are_not_taken_for_empty(world: World) -> None:
    world.redis.set(f"{P}callbacks", "x")
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        world.store.run(callbacks.outbox([]))


@pytest.mark.parametrize("key", ["rechecks", "due"])
def test_recheck_in_vain_changes_nothing_if_a_key_is_of_another_type(
    world: World, key: str
) -> None:
    """Sweeps and the watch are tested so beside their own tests."""
    at_stage(world, Stage.QUEUED)
    world.redis.delete(P + key)
    world.redis.set(P + key, "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        world.store.run(rechecks.rechecked(ID, answered=False, read=["re_9"], possible="re_9"))
    assert world.dump() == before


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_nothing_is_listed_for_erasure_if_its_index_is_of_another_type(
    world: World, status: str
) -> None:
    world.redis.set(f"{P}index:{status}", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        world.store.run(erasure.erasable(Status(status), HOUR, most=10, done=1))
    assert world.dump() == before


def test_proof_that_clears_a_contradiction_changes_nothing_if_its_list_is_of_another_type(
    world: World,
) -> None:
    world.accept()
    claim = world.claim()
    world.redis.hset(f"{P}refund:{ID}", "contradicted_by", "re_1")
    world.redis.set(f"{P}contradicted", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        world.end(claim, done_as("succeeded", id="re_1"))
    assert world.dump() == before


@pytest.mark.parametrize("key", ["due", "index:queued"])
def test_nothing_is_given_back_if_its_index_is_of_another_type(world: World, key: str) -> None:
    world.accept()
    world.pass_time(HOUR)
    world.redis.delete(P + key)
    world.redis.set(P + key, "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        world.store.run(sweeps.give_back([ID]))
    assert world.dump() == before


@pytest.mark.parametrize("key", ["due", "index:in_doubt", "history:a", "doubts:pi_a"])
def test_nothing_is_accepted_in_doubt_if_a_key_is_of_another_type(world: World, key: str) -> None:
    recover(world)
    world.redis.set(P + key, "x")
    before = world.dump()
    with pytest.raises(NotStorable, match=OF_ANOTHER_TYPE):
        world.accept("a", payment_intent="pi_a")
    assert world.dump() == before
