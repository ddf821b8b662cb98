"""A history that would grow without end keeps its first moves and its newest, and counts those
between.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.factories import NOT_DONE, SECOND, VERIFY
from tests.support.store_world import ID, World
from worker.cli import render
from worker.model.refund import Stage
from worker.rules import attempts
from worker.store import saves

FIRST, MOST = 100, 500
KEY = f"refunds:history:{ID}"


@pytest.fixture
def world(sync_redis: redis.Redis) -> World:
    return World(sync_redis)


def put(world: World, entries: list[Any]) -> None:
    """Let the history of an accepted refund have these entries."""
    world.accept()
    world.redis.delete(KEY)
    world.redis.rpush(
        KEY, *(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    )


def move(world: World) -> None:
    """Move the refund once more."""
    assert world.claim().claimed


def numbered(count: int) -> list[Any]:
    """A history of as many moves between waiting and queued, each with its number."""
    first = {"at": 1_000, "to": "queued", "number": 0}
    return [
        first,
        *({"after": 10, "to": "waiting", "label": "x", "number": n} for n in range(1, count)),
    ]


def stored(world: World) -> list[Any]:
    lines: Any = world.redis.lrange(KEY, 0, -1)
    return [json.loads(line) for line in lines]


def test_many_attempts_keep_the_first_moves_and_the_newest(world: World) -> None:
    world.accept()
    patient = replace(VERIFY, max_age=timedelta(days=90))
    every: list[dict[str, Any]] = world.store.history(ID)
    for _ in range(300):
        claim = world.claim()
        assert claim.refund is not None
        every += world.store.history(ID)[-1:]
        step = attempts.after_attempt(claim.refund, NOT_DONE, patient, world.now, 0)
        world.store.run(
            saves.save(claim.refund, step, {"attempt": claim.refund.attempts, "http_status": 429})
        )
        every += world.store.history(ID)[-1:]
        world.pass_time(SECOND)
        next_check = world.get().next_check_at
        assert next_check is not None
        world.pass_time(next_check - world.now)
    kept = world.store.history(ID)
    assert len(every) == 601
    assert len(kept) == MOST
    assert kept[:FIRST] == every[:FIRST]
    gap, *newest = kept[FIRST:]
    assert newest == every[-len(newest) :]
    last = every[-len(newest) - 1]
    assert gap == {
        "version": last["version"],
        "at": last["at"],
        "from": every[FIRST - 1]["to"],
        "to": last["to"],
        "status": "pending",
        "label": "left_out",
        "left_out": 601 - MOST + 1,
    }
    assert kept[-1]["version"] == world.get().version == 601
    assert kept[-1]["attempt"] == world.get().attempts == 300


def test_history_is_whole_until_it_is_too_long(world: World) -> None:
    put(world, numbered(MOST - 1))
    move(world)
    assert [entry["number"] for entry in stored(world)[:-1]] == [*range(MOST - 1)]


def test_first_two_that_are_too_many_become_one(world: World) -> None:
    put(world, numbered(MOST))
    move(world)
    entries = stored(world)
    assert len(entries) == MOST
    assert entries[FIRST] == {"left_out": 2, "claims": 0, "after": 20, "to": "waiting"}
    rest = entries[:FIRST] + entries[FIRST + 1 : -1]
    assert [entry["number"] for entry in rest] == [*range(FIRST), *range(FIRST + 2, MOST)]


def test_what_a_resend_rests_on_outlives_the_move_that_said_it(world: World) -> None:
    entries = numbered(MOST)
    entries[FIRST] = {"after": 10, "to": "sending", "label": "x"}
    entries[FIRST + 1] = {
        "after": 5,
        "status": "failed",
        "label": "x",
        "source": "operator",
        "by": "ann",
    }
    entries[FIRST + 2] = {"after": 5, "to": "sending", "label": "resend"}
    put(world, entries)
    move(world)
    whole = stored(world)[FIRST]
    assert whole == {
        "left_out": 2,
        "claims": 1,
        "after": 15,
        "status": "failed",
        "source": "operator",
        "by": "ann",
    }
    gap, after = world.store.history(ID)[FIRST : FIRST + 2]
    assert (gap["to"], gap["status"], gap["version"]) == ("settled", "failed", FIRST + 2)
    assert (after["label"], after["source"], after["by"], after["attempt"]) == (
        "resend",
        "operator",
        "ann",
        2,
    )


def test_counts_of_what_is_left_out_add_up(world: World) -> None:
    entries = numbered(MOST)
    entries[FIRST] = {"left_out": 7, "claims": 3, "after": 100, "to": "sending"}
    entries[FIRST + 1] = {"after": 5, "to": "sending"}
    put(world, entries)
    move(world)
    assert stored(world)[FIRST] == {"left_out": 8, "claims": 4, "after": 105, "to": "sending"}


@pytest.mark.parametrize("place", [FIRST, FIRST + 1])
@pytest.mark.parametrize(
    "odd", ["no json", "[]", '{"to":"waiting"}', '{"after":"x","to":"waiting"}', "7"]
)
def test_history_that_somebody_else_wrote_stops_no_move(world: World, place: int, odd: str) -> None:
    entries = numbered(MOST)
    entries[place] = odd
    put(world, entries)
    move(world)
    assert world.redis.llen(KEY) == MOST + 1
    assert world.get().stage is Stage.SENDING


def test_empty_entry_that_somebody_else_wrote_is_left_where_it_is(world: World) -> None:
    put(world, [entry if place != 300 else "" for place, entry in enumerate(numbered(MOST))])
    move(world)
    lines: Any = world.redis.lrange(KEY, 0, -1)
    assert (len(lines), lines.index("")) == (MOST, 299)


def test_gap_is_told_to_a_person(world: World) -> None:
    put(world, numbered(MOST))
    move(world)
    table = render.history(world.store.history(ID))
    told = [str(cell) for cell in table.columns[3].cells]
    assert told[FIRST] == "2 moves are not shown here"
