"""Whether the holder of a claim may send once more under it.

Asked before every further try, and it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, MAYBE, MINUTE, NOT_DONE, SECOND, done_as
from tests.support.store_world import ID, LEASE, World
from worker.model.answers import Outcome
from worker.model.times import to_ms
from worker.store import claims

MS = timedelta(milliseconds=1)
MINE = "mine"


def in_the_way(world: World, *, token: str = MINE) -> str:
    before = world.dump()
    told = world.store.run(claims.stands(ID, token))
    assert world.dump() == before
    return told


def test_claim_stands_until_its_lease_is_over(world: World) -> None:
    world.accept()
    assert world.claim(token="mine").token == "mine"
    assert in_the_way(world) == ""
    world.pass_time(LEASE - MS)
    assert in_the_way(world) == ""
    world.pass_time(MS)
    assert in_the_way(world) == "lapsed"


@pytest.mark.parametrize(
    "outcome",
    [done_as(), done_as("pending"), MAYBE, NOT_DONE],
    ids=["done", "pending", "maybe", "not done"],
)
def test_claim_of_which_somebody_has_saved_the_end_stands_no_more(
    world: World, outcome: Outcome
) -> None:
    world.accept()
    claim = world.claim(token="mine")
    world.end(claim, outcome)
    assert in_the_way(world) == "overtaken"


def test_claim_of_another_is_nobody_elses(world: World) -> None:
    assert in_the_way(world) == "overtaken"
    world.accept()
    assert in_the_way(world) == "overtaken"
    world.claim(token="mine")
    assert in_the_way(world, token="another") == "overtaken"
    world.lapse()
    world.pass_time(MINUTE)
    world.claim(kind="replay", token="another")
    assert in_the_way(world) == "overtaken"
    assert in_the_way(world, token="another") == ""


Written = Callable[[World], dict[Any, Any]]


@pytest.mark.parametrize(
    ("key", "fields", "told"),
    [
        ("meta", lambda _: {"paused": 1}, "paused"),
        ("meta", lambda _: {"credentials_refused_at": 1}, "parked"),
        ("gate", lambda world: {"blocked_until": to_ms(world.now) + 1}, "blocked"),
        ("gate", lambda world: {"blocked_until": to_ms(world.now)}, ""),
        ("batch:b", lambda _: {"state": "paused"}, "batch"),
        ("batch:b", lambda _: {"state": "canceled"}, "canceled"),
        ("batch:b", lambda world: {"not_before": to_ms(world.now) + 1}, "batch"),
        ("batch:b", lambda world: {"not_before": to_ms(world.now)}, ""),
        ("batch:other", lambda _: {"state": "paused"}, ""),
    ],
)
def test_what_holds_every_claim_back_holds_further_tries_back_too(
    world: World, key: str, fields: Written, told: str
) -> None:
    world.accept(batch="b")
    world.claim(token="mine")
    world.pass_time(10 * SECOND)
    world.redis.hset(f"refunds:{key}", mapping=fields(world))
    assert in_the_way(world) == told


def test_single_refund_is_held_back_by_no_batch(world: World) -> None:
    world.accept()
    world.claim(token="mine", lease=HOUR)
    world.redis.hset("refunds:batch:", "state", "paused")
    assert in_the_way(world) == ""
