"""Scripts refuse what they cannot finish, before they change anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.factories import HOUR
from tests.support.store_world import ID, P, World, at_stage
from tests.unit.store.calling_back import due, settle
from worker.broker import rejected
from worker.broker.kept import RejectedMessage
from worker.errors import NotStorable
from worker.model.refund import Stage
from worker.store import account_facts, callbacks, claims, meta, rechecks, scripts, sessions, sweeps
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


@pytest.mark.parametrize(
    ("command", "least"),
    [
        pytest.param(callbacks.outbox([]), 3, id="outbox"),
        pytest.param(account_facts.payment("pi_1", "shown"), 2, id="payment"),
        pytest.param(meta.pin("api.example.com", "test"), 3, id="pin"),
        pytest.param(claims.position(""), 1, id="position"),
        pytest.param(rechecks.rechecked(ID, answered=True), 6, id="rechecked"),
        pytest.param(raw(rejected.SCRIPT, "drop", ""), 2, id="rejected-drop"),
        pytest.param(kept(), 4, id="rejected-keep"),
        pytest.param(raw(sessions.SESSION, "session:1", "text", 1000), 3, id="session"),
        pytest.param(sweeps.sweep(1, dry=frozenset()), 8, id="sweep"),
        pytest.param(raw(scripts.TOKEN_NAME, "shop", "t1", ""), 3, id="token_name"),
        pytest.param(rechecks.watch([HOUR], rate=1, most=1), 5, id="watch"),
    ],
)
def test_one_argument_too_few_is_refused(world: World, command: Command[Any], least: int) -> None:
    world.accept()
    before = world.dump()
    with pytest.raises(NotStorable, match="too few arguments"):
        world.store.run(replace(command, arguments=command.arguments[: least - 1]))
    assert world.dump() == before


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
