"""The worker's Redis channel on a real server.

Several messages a trip, none lost, none taken beyond the bound.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu.asynchronous import Hub, set_event_loop
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer

from tests.integration.test_processes import message
from tests.support.installation import calls
from worker.broker import inbox
from worker.broker.kept import RejectedMessage
from worker.model.refund import Lane


class Reader:
    """A channel read by an event loop in this process, as Celery reads it."""

    def __init__(self, url: str, *, prefetch: int = 100, **options: Any) -> None:
        self.hub = Hub()
        self.got: list[Any] = []
        self.connection: Any = Connection(
            url, transport="worker.broker.kombu_transport:Transport", transport_options=options
        )
        self._open(prefetch)

    def _open(self, prefetch: int) -> None:
        self.connection.connect()
        self.connection.transport.register_with_event_loop(self.connection.connection, self.hub)
        self.channel = self.connection.default_channel
        self.channel.basic_qos(0, prefetch, False)
        queues = [Queue(lane.value) for lane in Lane]
        self.consumer = Consumer(self.channel, queues, on_message=self.got.append, accept=["json"])
        self.consumer.consume()

    def turn_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, f"{len(self.got)} messages came"
            self.hub.run_once()

    def ids(self) -> list[str]:
        return [each.payload[0][0][0] for each in self.got]

    def close(self) -> None:
        self.connection.close()
        self.hub.close()
        set_event_loop(None)


@pytest.fixture
def kept() -> Iterator[list[str]]:
    """Reasons of what was kept in this process."""
    reasons: list[str] = []

    def keep(message: RejectedMessage) -> bool:
        reasons.append(message.reason)
        return True

    inbox.keep_with(keep)
    yield reasons
    inbox.keep_with(lambda _: False)


@pytest.fixture
def reading(redis_url: str) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(**options: Any) -> Reader:
        made.append(Reader(redis_url, **options))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def nudge(refund_id: str) -> bytes:
    return message("refunds.process", [[refund_id]], {})


def test_waiting_messages_come_in_their_order_several_in_one_trip(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(60)))
    before = {name: calls(server, name) for name in ("brpop", "eval", "evalsha")}
    reader = reading()
    reader.turn_until(lambda: len(reader.got) == 60)
    assert reader.ids() == [f"r-{number}" for number in range(60)]
    # One of them notes the first message, which the blocking read took.
    assert sum(calls(server, name) - made for name, made in before.items()) <= 6
    assert server.hlen("unacked") == server.zcard("unacked_index") == 60


def test_what_is_held_never_exceeds_the_prefetch_count(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(40)))
    server.lpush("refunds.bulk", *(nudge(f"f-{number}") for number in range(40)))
    reader = reading(prefetch=7)
    most = 0
    for done in range(80):
        reader.turn_until(lambda done=done: len(reader.got) > done)  # type: ignore[misc]  # bound at once
        most = max(most, int(server.hlen("unacked")), len(reader.got) - done)
        reader.got[done].ack()
    assert most == 7
    assert Counter(reader.ids()) == {f"{name}-{number}": 1 for name in "rf" for number in range(40)}


def test_messages_of_files_come_one_a_trip_and_both_lanes_have_their_turn(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(300)))
    server.lpush("refunds.bulk", *(nudge(f"f-{number}") for number in range(300)))
    reader = reading(prefetch=200)
    reader.turn_until(lambda: len(reader.got) == 200)
    lanes = Counter(refund_id[0] for refund_id in reader.ids())
    assert 4 <= lanes["f"] <= 12, "one of each trip's up to 33 messages is a file's"
    for done in range(200):
        reader.got[done].ack()
        reader.turn_until(lambda done=done: len(reader.got) > 200 + done)  # type: ignore[misc]  # bound at once
    assert Counter(refund_id[0] for refund_id in reader.ids()[200:])["f"] > 5


def test_with_room_for_one_message_the_lanes_take_turns(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(20)))
    server.lpush("refunds.bulk", *(nudge(f"f-{number}") for number in range(20)))
    reader = reading(prefetch=1)
    for done in range(20):
        reader.turn_until(lambda done=done: len(reader.got) > done)  # type: ignore[misc]  # bound at once
        reader.got[done].ack()
    assert Counter(refund_id[0] for refund_id in reader.ids()[:20]) == {"r": 10, "f": 10}


def test_acknowledgements_leave_with_the_next_trip_while_the_loop_turns(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(30)))
    reader = reading(polling_interval=0.05)
    reader.turn_until(lambda: len(reader.got) == 30)
    before = calls(server, "multi")
    for each in reader.got:
        each.ack()
    reader.turn_until(lambda: not server.exists("unacked", "unacked_index"))
    assert calls(server, "multi") == before


def test_acknowledgements_leave_even_when_no_queue_is_read(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", nudge("r-1"))
    reader = reading(polling_interval=0.05)
    reader.turn_until(lambda: len(reader.got) == 1)
    reader.consumer.cancel()
    reader.got[0].ack()
    reader.turn_until(lambda: not server.exists("unacked", "unacked_index"))


def test_a_closing_channel_tells_what_is_done_and_gives_the_rest_back(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(50)))
    reader = reading(prefetch=40)
    reader.turn_until(lambda: len(reader.got) == 40)
    for each in reader.got[:15]:
        each.ack()
    reader.connection.close()
    assert not server.exists("unacked", "unacked_index")
    left: Any = server.lrange("refunds", 0, -1)
    assert len(left) == 35
    second = reading()
    second.turn_until(lambda: len(second.got) == 35)
    assert sorted(second.ids()) == sorted(f"r-{number}" for number in range(15, 50))


def test_a_channel_whose_server_is_gone_ends_without_a_word_and_its_messages_stay_noted(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(4)))
    reader = reading()
    reader.turn_until(lambda: len(reader.got) == 4)
    reader.got[0].ack()
    # What kombu leaves of a connection that it gave up while the server was away.
    channel: Any = reader.channel
    channel._disconnect_pools()
    channel.connection.client = None
    channel.qos.restore_unacked_once()
    reader.got[1].ack()
    assert server.hlen("unacked") == 4


def test_messages_fetched_for_a_queue_that_is_no_longer_read_go_back(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("refunds", *(nudge(f"r-{number}") for number in range(3)))
    reader = reading(prefetch=5)
    reader.turn_until(lambda: len(reader.got) == 3)
    # The next script is under way when the queue is given up.
    server.lpush("refunds", *(nudge(f"late-{number}") for number in range(2)))
    channel: Any = reader.channel
    channel._more = True
    if not channel._in_poll:
        channel._brpop_start()
    reader.consumer.cancel_by_queue("refunds")
    reader.turn_until(lambda: not channel._in_poll)
    reader.connection.close()
    second = reading()
    second.turn_until(lambda: len(second.got) == 5)
    assert sorted(second.ids()) == ["late-0", "late-1", "r-0", "r-1", "r-2"]


def test_a_nudge_that_was_waited_for_is_handed_on_before_it_is_noted(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    reader = reading()
    noted: list[int] = []

    def take(message: Any) -> None:
        reader.got.append(message)
        noted.append(int(server.hlen("unacked")))

    reader.consumer.on_message = take
    # The first one ends a blocking read, which does not note it.
    reader.turn_until(lambda: reader.channel._in_poll)
    server.lpush("refunds", nudge("r-0"))
    reader.turn_until(lambda: len(reader.got) == 1)
    assert (noted, server.hlen("unacked"), server.zcard("unacked_index")) == ([0], 1, 1)
    # A message that is all there is of a refund is noted first.
    reader.turn_until(lambda: bool(reader.channel._in_poll) and not reader.channel._more)
    server.lpush("refunds", message("refunds.submit", [], {"refund_id": "r-1"}))
    reader.turn_until(lambda: len(reader.got) == 2)
    assert noted == [0, 2]


@pytest.mark.parametrize(("end", "left"), [("ack", 0), ("reject", 0), ("requeue", 1)])
def test_a_nudge_that_ends_before_it_is_noted_leaves_nothing_noted(
    server: redis.Redis, reading: Callable[..., Reader], end: str, left: int
) -> None:
    reader = reading(polling_interval=0.05)

    def take(message: Any) -> None:
        reader.got.append(message)
        if len(reader.got) == 1:
            getattr(message, end)()

    reader.consumer.on_message = take
    reader.turn_until(lambda: reader.channel._in_poll)
    server.lpush("refunds", nudge("r-0"))
    reader.turn_until(lambda: len(reader.got) == 1 + left)
    for each in reader.got[1:]:
        each.ack()
    reader.turn_until(lambda: not server.exists("unacked", "unacked_index", "refunds"))


def test_a_nudge_that_no_one_reads_any_more_goes_back_before_it_is_noted(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    reader = reading()
    reader.turn_until(lambda: reader.channel._in_poll)
    server.lpush("refunds", nudge("r-0"))
    reader.consumer.cancel_by_queue("refunds")
    reader.turn_until(lambda: server.exists("refunds") == 1 and not server.exists("unacked"))
    assert reader.got == []


def test_a_server_that_forgot_the_script_is_told_it_again(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    reader = reading(prefetch=10)
    for group in range(3):
        server.lpush("refunds", *(nudge(f"r-{group}-{number}") for number in range(10)))
        reader.turn_until(lambda group=group: len(reader.got) == 10 * (group + 1))  # type: ignore[misc]  # bound at once
        server.script_flush()
        for each in reader.got[-10:]:
            each.ack()
    reader.turn_until(lambda: not server.exists("unacked", "unacked_index"))


def test_a_prefix_holds_for_every_key_of_the_script(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    server.lpush("shop:refunds", *(nudge(f"r-{number}") for number in range(10)))
    server.lpush("refunds", nudge("elsewhere"))
    reader = reading(global_keyprefix="shop:")
    reader.turn_until(lambda: len(reader.got) == 10)
    assert sorted(server.keys("*unacked*")) == ["shop:unacked", "shop:unacked_index"]
    assert server.llen("refunds") == 1


POISON = {
    "no JSON": b"{not json",
    "a number no JSON has": nudge("x").replace(b'"delivery_mode": 2', b'"delivery_mode": 0x2'),
    "no UTF-8": nudge("x").replace(b'"php"', b'"\xff"'),
    "nested too deeply": b"[" * 100_000,
    "properties that are a list": (
        nudge("x").replace(b'"properties": {', b'"properties": [], "more": {')
    ),
    "no base64": nudge("x").replace(b'"body": "', b'"body": "!!'),
    "a list": b"[1]",
    "headers that are a list": nudge("x").replace(b'"headers": {', b'"headers": [], "more": {'),
}


def test_poison_in_the_midst_of_a_group_is_kept_and_the_group_goes_on(
    server: redis.Redis, reading: Callable[..., Reader], kept: list[str]
) -> None:
    items = [
        item for name, poison in POISON.items() for item in (nudge(name.replace(" ", "-")), poison)
    ]
    server.lpush("refunds", nudge("first"), *items, nudge("last"))
    reader = reading(polling_interval=0.05)
    reader.turn_until(lambda: len(reader.got) == len(POISON) + 2)
    assert reader.ids() == ["first", *(name.replace(" ", "-") for name in POISON), "last"]
    assert len(kept) == len(POISON)
    # Poison that the script took for a message is off the server's list again.
    reader.turn_until(lambda: server.hlen("unacked") == len(POISON) + 2)


def test_messages_with_one_delivery_tag_are_held_each_for_itself(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    sent = [json.loads(nudge(f"r-{number}")) for number in range(3)]
    for each in sent:
        each["properties"]["delivery_tag"] = "1"
    server.lpush("refunds", *map(json.dumps, sent))
    reader = reading(polling_interval=0.05)
    reader.turn_until(lambda: len(reader.got) == 3)
    reader.got[0].ack()
    reader.turn_until(lambda: server.hlen("unacked") == 2)
    assert server.zcard("unacked_index") == 2


def test_a_message_goes_back_to_the_queue_it_lay_in_whatever_its_sender_wrote(
    server: redis.Redis, reading: Callable[..., Reader]
) -> None:
    for way in (
        {"exchange": "", "routing_key": "nowhere"},
        {"exchange": "none", "routing_key": "refunds"},
        None,
    ):
        sent = json.loads(nudge("r-1"))
        sent["properties"]["delivery_info"] = way
        server.lpush("refunds", json.dumps(sent))
    reader = reading(polling_interval=0.05)
    reader.turn_until(lambda: len(reader.got) == 3)
    reader.connection.close()
    assert server.llen("refunds") == 3
    assert not server.exists("unacked", "unacked_index", "nowhere")


def test_a_message_that_cannot_be_kept_stays_noted_and_comes_again(
    server: redis.Redis, reading: Callable[..., Reader], kept: list[str]
) -> None:
    inbox.keep_with(lambda _: False)
    server.lpush("refunds", nudge("good"), nudge("x").replace(b'"body": "', b'"body": "!!'))
    reader = reading(polling_interval=0.05)
    # So that the second comes by the script, which notes it.
    reader.channel._more = True
    reader.turn_until(lambda: len(reader.got) == 1)
    reader.got[0].ack()
    reader.turn_until(lambda: server.hlen("unacked") == 1)
    assert kept == []
    assert server.llen("refunds") == 0


@pytest.mark.parametrize(
    "broadcast", [b"{}", b"[1]", b"{no json", b'{"properties": 5}', b"[" * 100_000, b"\xff", b"5"]
)
def test_an_odd_broadcast_is_dropped(
    server: redis.Redis, reading: Callable[..., Reader], broadcast: bytes
) -> None:
    reader = reading(polling_interval=0.05)
    exchange = Exchange("shouts", type="fanout")
    Consumer(
        reader.channel, [Queue("ears", exchange)], on_message=reader.got.append, accept=["json"]
    ).consume()
    reader.turn_until(lambda: bool(server.pubsub_numpat()))
    server.publish("/0.shouts", broadcast)
    server.lpush("refunds", nudge("after"))
    reader.turn_until(lambda: len(reader.got) == 1)
    assert reader.ids() == ["after"]


def test_what_a_dead_worker_held_comes_back_past_an_entry_that_cannot_be_read(
    server: redis.Redis, reading: Callable[..., Reader], kept: list[str]
) -> None:
    good = json.dumps([json.loads(nudge("lost")), "", "refunds"])
    tags: Any = {"a": good.replace("lost", "x")[:40], "b": good, "c": "[1]"}
    server.hset("unacked", mapping=tags)
    server.zadd("unacked_index", dict.fromkeys(tags, 1))
    reader = reading(visibility_timeout=5, unacked_restore_throttle=1)
    reader.turn_until(lambda: len(reader.got) == 1)
    assert reader.got[0].payload[0] == [["lost"]]
    assert kept == ["an unacknowledged message cannot be read"] * 2


def test_what_a_dead_worker_held_and_cannot_be_kept_stays_noted(
    server: redis.Redis, reading: Callable[..., Reader], kept: list[str]
) -> None:
    inbox.keep_with(lambda _: False)
    good = json.dumps([json.loads(nudge("lost")), "", "refunds"])
    server.hset("unacked", mapping={"a": good[:40], "b": good})
    server.zadd("unacked_index", {"a": 1, "b": 1})
    reader = reading(visibility_timeout=5, unacked_restore_throttle=1)
    reader.turn_until(lambda: len(reader.got) == 1)
    assert (server.hget("unacked", "a"), server.zscore("unacked_index", "a")) == (good[:40], 1)
    assert kept == []
