"""Arguments that cannot be right are refused by the scripts, and nothing is changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, done_as
from tests.support.store_world import ID, LEASE, P, World
from tests.unit.store.hinting import NAMED
from worker.errors import NotStorable
from worker.model.refund import Stage, Status
from worker.model.steps import Step
from worker.store import callbacks, claims, erasure, meta, rechecks, saves, sweeps
from worker.store.scripts import Command


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


def a_hint(_: World) -> Command[Any]:
    return rechecks.hint(NAMED)


@pytest.mark.parametrize("call", [a_claim, a_save, a_note, a_callback, a_hint])
def test_too_few_arguments_are_refused(world: World, call: Any) -> None:
    world.accept()
    command = call(world)
    before = world.dump()
    with pytest.raises(NotStorable, match="too few arguments"):
        world.store.run(replace(command, arguments=command.arguments[:2]))
    assert world.dump() == before


@pytest.mark.parametrize("by", ["", "ann"])
def test_flag_names_who_set_it_if_that_is_known(world: World, by: str) -> None:
    world.store.run(meta.flag("paused", once=True, by=by))
    assert world.hash("meta").get("paused_by") == (by or None)


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_nothing_is_listed_for_erasure_if_its_index_is_of_another_type(
    world: World, status: str
) -> None:
    world.redis.set(f"{P}index:{status}", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
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
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        world.end(claim, done_as("succeeded", id="re_1"))
    assert world.dump() == before


@pytest.mark.parametrize("key", ["due", "index:queued"])
def test_nothing_is_given_back_if_its_index_is_of_another_type(world: World, key: str) -> None:
    world.accept()
    world.pass_time(HOUR)
    world.redis.delete(P + key)
    world.redis.set(P + key, "x")
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        world.store.run(sweeps.give_back([ID]))
    assert world.dump() == before
