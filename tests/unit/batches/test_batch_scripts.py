"""What the scripts of a batch answer and write, argument by argument.

The commands above them ask only some of it.
"""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.factories import HOUR, MINUTE, NOW, REFUSED, done_as
from tests.support.store_world import World
from worker.errors import NotStorable
from worker.model.times import to_ms
from worker.store.scripts import Argument, Command, Script

AT = str(to_ms(NOW))
B = "refunds:batch:b"


@pytest.fixture
def world(sync_redis: redis.Redis) -> World:
    """The records on the real server."""
    return World(sync_redis)


def run(world: World, name: str, *arguments: Argument) -> Any:
    """Run a script and return its reply as it comes."""
    shared = ("_standing",) if name == "batch_compare" else ()
    script = Script(name, *shared)
    call: Command[Any] = Command(script=script, arguments=arguments, read=lambda reply: reply)
    return world.store.run(call)


# Comparing


def compared(world: World, *rows: tuple[str, str, Any], most: int = 10) -> list[list[str]]:
    flat = run(world, "batch_compare", most, *(value for row in rows for value in row))
    return [flat[place : place + 5] for place in range(0, len(flat), 5)]


def test_row_is_compared_with_the_record_under_its_id(world: World) -> None:
    world.accept("queued", payment_intent="pi_1")
    world.accept("done", payment_intent="pi_2")
    world.attempt(done_as(payment_intent="pi_2"), "done")
    fingerprint = world.get("queued").fingerprint
    assert compared(
        world, ("queued", "pi_1", 500), ("done", "pi_2", 500), ("new", "pi_3", 500)
    ) == [
        [fingerprint, "pending", "queued", "", ""],
        # Settled: what was asked for stands in the rest of the record.
        ["?", "succeeded", "settled", "", ""],
        ["", "", "", "", ""],
    ]


def test_row_without_a_record_is_told_of_another_that_pays_the_same_back(world: World) -> None:
    world.accept("pending", payment_intent="pi_1", amount=1)
    world.accept("done", payment_intent="pi_1", amount=2)
    world.attempt(done_as(amount=2, payment_intent="pi_1"), "done")
    world.accept("failed", payment_intent="pi_1", amount=3)
    world.attempt(REFUSED, "failed")
    world.accept("rest", payment_intent="pi_2", amount=None)
    rows = [
        ("new", "pi_1", 1),
        ("new", "pi_1", 2),
        ("new", "pi_1", 3),
        ("new", "pi_1", ""),
        ("new", "pi_2", ""),
    ]
    assert [row[3] for row in compared(world, *rows)] == ["pending", "done", "", "", "rest"]


def test_refund_of_all_that_was_left_is_known_by_that_and_not_by_what_it_came_to(
    world: World,
) -> None:
    world.accept("rest", payment_intent="pi_2", amount=None)
    world.attempt(done_as(amount=500, payment_intent="pi_2"), "rest")
    assert [row[3] for row in compared(world, ("new", "pi_2", ""), ("new", "pi_2", 500))] == [
        "rest",
        "",
    ]


def test_payment_with_too_many_fields_is_left_to_be_read_another_way(world: World) -> None:
    world.accept("a", payment_intent="pi_1")
    fields = len(world.hash("payment:pi_1"))
    assert compared(world, ("new", "pi_1", 500), most=fields) == [["", "", "", "a", ""]]
    assert compared(world, ("new", "pi_1", 500), most=fields - 1) == [["", "", "", "?", ""]]
    # The smallest there is: one field.
    world.redis.delete("refunds:payment:pi_1")
    world.redis.hset("refunds:payment:pi_1", "refund:a", "")
    assert compared(world, ("new", "pi_1", 500), most=1) == [["", "", "", "a", ""]]
    assert compared(world, ("new", "pi_none", 500), most=0) == [["", "", "", "", ""]]


# Opening


def opened(
    world: World,
    batch_id: str = "b",
    digest: str = "d",
    *,
    chosen: str = "",
    again: str = "",
    **fields: Any,
) -> Any:
    options, hold = fields.pop("options", "csv"), fields.pop("hold", 0)
    facts = [value for pair in fields.items() for value in pair]
    return run(world, "batch_open", batch_id, digest, chosen, again, options, hold, *facts)


def test_batch_begins_with_what_is_known_of_its_file(world: World) -> None:
    assert opened(world) == ["opened", AT, "b"]
    assert not world.keys("batch*")
    assert opened(world, file="f.csv") == ["opened", AT, "b"]
    assert world.hash("batch:b") == {
        "digest": "d",
        "options": "csv",
        "created_at": AT,
        "state": "running",
        "file": "f.csv",
    }
    assert world.score("batches", "b") == NOW
    assert world.hash("digests") == {"d": "b"}


@pytest.mark.parametrize("count", [1, 3, 1992])
def test_batch_with_half_a_field_or_too_many_does_not_begin(world: World, count: int) -> None:
    with pytest.raises(NotStorable, match="the fields of a batch are not pairs, or are too many"):
        run(world, "batch_open", "b", "d", "", "", "csv", 0, *["x"] * count)
    assert not world.keys("batch*")


def test_batch_may_have_995_fields(world: World) -> None:
    facts = {f"f{number}": "x" for number in range(995)}
    assert opened(world, **facts) == ["opened", AT, "b"]
    assert len(world.hash("batch:b")) == 995 + 4


def test_batch_that_could_not_be_listed_does_not_begin(world: World) -> None:
    world.redis.set("refunds:batches", "text")
    with pytest.raises(NotStorable, match="a value of another type"):
        opened(world, file="f.csv")
    assert world.keys("batch*") == ["refunds:batches"]


@pytest.mark.parametrize(("name", "least"), [("batch_open", 9), ("batch_close", 6)])
def test_call_for_a_batch_with_too_few_arguments_is_refused(
    world: World, name: str, least: int
) -> None:
    with pytest.raises(NotStorable, match=f"too few arguments: {least - 1} of {least}$"):
        run(world, name, *["1"] * (least - 4))


@pytest.mark.parametrize(
    ("hold", "kept"), [(0, None), (1, str(to_ms(NOW) + 1)), (60_000, str(to_ms(NOW + MINUTE)))]
)
def test_batch_may_begin_later(world: World, hold: int, kept: str | None) -> None:
    opened(world, file="f.csv", hold=hold)
    assert world.hash("batch:b").get("not_before") == kept


def test_batch_of_the_same_file_that_is_not_whole_is_gone_on_with(world: World) -> None:
    opened(world, file="f.csv")
    assert opened(world, file="f.csv") == ["known", AT, "b"]
    assert opened(world, "c", file="f.csv") == ["known", AT, "b"]
    assert opened(world, "c", chosen="1", file="f.csv") == ["named", AT, "b", ""]
    assert opened(world, "b", chosen="1", file="f.csv") == ["known", AT, "b"]


def test_batch_of_another_file_is_in_the_way_of_its_own_name(world: World) -> None:
    opened(world, file="f.csv")
    assert opened(world, digest="e", file="g.csv") == ["other", AT, "b", "f.csv"]
    world.redis.hdel(B, "file")
    assert opened(world, digest="e", file="g.csv") == ["other", AT, "b", ""]


def test_batch_is_known_by_its_own_record_before_the_list_of_files(world: World) -> None:
    opened(world, file="f.csv")
    world.redis.hset("refunds:digests", "d", "gone")
    assert opened(world, file="f.csv") == ["known", AT, "b"]
    world.redis.hdel("refunds:digests", "d")
    world.redis.hdel(B, "file")
    assert opened(world, file="f.csv") == ["known", AT, "b"]


def test_file_that_was_read_otherwise_is_told_how(world: World) -> None:
    opened(world, file="f.csv", options="comma")
    assert opened(world, file="f.csv", options="semicolon") == ["options", AT, "b", "comma"]
    world.redis.hdel(B, "options")
    assert opened(world, file="f.csv", options="") == ["known", AT, "b"]
    assert opened(world, file="f.csv", options="x") == ["options", AT, "b", ""]


@pytest.mark.parametrize(
    ("field", "value", "reason", "fact"),
    [("imported_at", "9", "imported", "9"), ("state", "canceled", "canceled", "")],
)
def test_file_that_is_over_begins_anew_only_where_that_is_asked_for(
    world: World, field: str, value: str, reason: str, fact: str
) -> None:
    opened(world, file="f.csv")
    world.redis.hset(B, field, value)
    assert opened(world, "c", file="f.csv") == [reason, AT, "b", fact]
    assert opened(world, "b", again="1", file="f.csv") == ["taken", AT, "b", ""]
    assert opened(world, "c", again="1", file="f.csv") == ["opened", AT, "c"]
    assert world.hash("digests") == {"d": "c"}
    world.redis.hdel("refunds:batch:c", "file")
    world.redis.hset("refunds:batch:c", field, value)
    assert opened(world, "c", again="1", file="f.csv") == ["taken", AT, "c", ""]


# Its state


def changed(world: World, to: str, sources: str = "running,paused", by: str = "") -> Any:
    return run(world, "batch_state", "b", to, f",{sources},", by)


def test_state_is_changed_from_the_states_that_are_named(world: World) -> None:
    assert changed(world, "paused") == ["missing", ""]
    world.redis.hset(B, "state", "running")
    assert changed(world, "running") == ["same", "running"]
    assert changed(world, "canceled", "paused") == ["refused", "running"]
    assert changed(world, "paused", by="ana") == ["set", "running"]
    batch = world.hash("batch:b")
    assert batch == {"state": "paused", "paused_at": AT, "paused_by": "ana"}
    assert changed(world, "running") == ["set", "paused"]
    assert world.hash("batch:b") == {"state": "running"}
    assert changed(world, "canceled") == ["set", "running"]
    assert world.hash("batch:b") == {"state": "canceled", "canceled_at": AT}


def test_batch_without_a_state_is_running_and_a_pause_that_ends_takes_all_of_itself_along(
    world: World,
) -> None:
    world.redis.hset(B, "file", "f.csv")
    assert changed(world, "running") == ["same", "running"]
    for name in ("paused_at", "paused_by", "paused_reason", "streak_code", "streak"):
        world.redis.hset(B, name, "1")
    world.redis.hset(B, "state", "paused")
    assert changed(world, "running") == ["set", "paused"]
    assert world.hash("batch:b") == {"file": "f.csv", "state": "running"}


def test_state_that_stands_already_is_written_again_for_whoever_waits_for_the_disk(
    world: World,
) -> None:
    world.redis.hset(B, "state", "paused")
    with world.redis.pipeline() as watching:
        watching.watch(B)
        assert changed(world, "paused") == ["same", "paused"]
        watching.multi()
        with pytest.raises(redis.WatchError):
            watching.execute()


# Its end


def test_file_that_is_whole_is_noted_once_with_what_it_did_not_create(world: World) -> None:
    assert run(world, "batch_close", "b", 3, 1) == 0
    assert not world.keys("batch*")
    world.redis.hset(B, "state", "running")
    world.accept("r", batch="b")
    assert run(world, "batch_close", "b", 3, 1) == 1
    closed = world.hash("batch:b")
    assert (closed["imported_at"], closed["known"], closed["conflicting"]) == (AT, "2", "1")
    world.pass_time(HOUR)
    run(world, "batch_close", "b", 9, 9)
    assert world.hash("batch:b") == closed
    world.redis.hset("refunds:batch:c", "state", "running")
    world.redis.rpush("refunds:batch-refunds:c", "x", "y")
    assert run(world, "batch_close", "c", 1, 0) == 2
    assert world.hash("batch:c")["known"] == "0"


# A look at it


def test_look_counts_what_has_settled_lately_of_either_kind(world: World) -> None:
    world.redis.hset(B, "state", "running")
    for name, outcome, batch in (
        ("a", done_as(id="re_a", payment_intent="pi_a"), "b"),
        ("c", done_as(id="re_c", payment_intent="pi_c"), "other"),
        ("d", REFUSED, "b"),
        ("e", done_as(id="re_e", payment_intent="pi_e"), "b"),
    ):
        world.accept(name, batch=batch, payment_intent=f"pi_{name}")
        world.attempt(outcome, name)
    world.pass_time(MINUTE / 2)
    now, record, settled = run(world, "batch_show", "b", 60_000, 100)
    assert (now, settled) == (str(to_ms(NOW + MINUTE / 2)), "3.000")
    assert dict(zip(record[::2], record[1::2], strict=True)) == world.hash("batch:b")
    # Of the latest one alone it is asked whose it is: all or none of what has succeeded is ours.
    assert run(world, "batch_show", "b", 60_000, 1)[2] in {"1.000", "4.000"}
    world.pass_time(2 * MINUTE)
    assert run(world, "batch_show", "b", 60_000, 100)[2] == "0.000"
    assert run(world, "batch_show", "none", 60_000, 100)[1] == []
