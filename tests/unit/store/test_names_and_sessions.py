"""The names of tokens, the texts of sessions and the provider, as the scripts keep them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.store_world import P, World
from worker.errors import NotStorable
from worker.store import meta, scripts, sessions
from worker.store.scripts import Argument, Command

LIFE = timedelta(minutes=30)


def keep(world: World, text: str, life: timedelta = LIFE) -> str:
    return world.store.run(sessions._keep("person:1", text, life))


def test_first_text_of_a_session_is_kept_for_its_time(world: World) -> None:
    assert keep(world, "first") == "first"
    assert keep(world, "second", 2 * LIFE) == "first"
    assert world.redis.get(f"{P}person:1") == "first"
    left: Any = world.redis.pttl(f"{P}person:1")
    assert 0 < left <= LIFE / timedelta(milliseconds=1)
    assert world.keys("session*") == []


def test_session_whose_time_is_not_a_number_is_refused(world: World) -> None:
    command = sessions._keep("session:1", "text", LIFE)
    with pytest.raises(NotStorable, match="the time x is not a whole number"):
        world.store.run(replace(command, arguments=[*command.arguments[:2], "x"]))
    assert world.dump() == {}


def named(world: World, new: str, old: str) -> int:
    arguments: list[Argument] = ["shop", new, old]
    return world.store.run(
        Command(script=scripts.TOKEN_NAME, arguments=arguments, read=int, durable=False)
    )


def test_name_of_a_token_is_given_once_and_again_only_instead_of_the_token_that_has_it(
    world: World,
) -> None:
    for token in ("t1", "t2", "t3"):
        world.redis.hset(f"{P}token:{token}", "name", "shop")
    assert named(world, "t1", "") == 1
    before = world.dump()
    assert [named(world, "t2", ""), named(world, "t2", "t3")] == [0, 0]
    assert world.dump() == before
    assert named(world, "t2", "t1") == 1
    assert world.hash("tokens") == {"shop": "t2"}
    assert world.keys("token:*") == [f"{P}token:t2", f"{P}token:t3"]


def test_provider_is_pinned_once_beside_the_flags(world: World) -> None:
    first = world.store.run(meta.pin("one.example", "test"))
    assert first[:2] == ("one.example", "test")
    assert world.store.run(meta.pin("two.example", "live")) == first
    assert world.hash("meta") == {
        "provider_host": "one.example",
        "mode": "test",
        "schema": first[2],
    }
