"""Whatever JSON allows in any part of a message, on both brokers.

The worker lives, good refunds go on, none is lost.

Each message becomes a record or an entry of `refunds:rejected`, and only one of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from itertools import count
from typing import Any

import amqp.exceptions
import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.strategies import json_values
from tests.support.installation import Installation, until
from tests.support.sending import ABSENT, EMBED, AmqpPost, Post, RedisPost, Sent, present
from worker.model.refund import Lane
from worker.model.request import RefundRequest, is_refund_id

EXAMPLES = 40
MOST_AT_ONCE = 8

HEADERS = (
    *(
        "lang",
        "argsrepr",
        "kwargsrepr",
        "timelimit",
        "eta",
        "expires",
        "shadow",
        "retries",
        "root_id",
    ),
    *("parent_id", "group", "group_index", "stamped_headers", "stamps", "ignore_result", "origin"),
    *("replaced_task_nesting", "delivery_info", "callbacks", "priority", "meth"),
)
OF_AMQP = ("correlation_id", "reply_to", "message_id", "type", "app_id")
PROPERTIES = (
    *OF_AMQP,
    "delivery_tag",
    "delivery_info",
    "body_encoding",
    "priority",
    "delivery_mode",
)
FIELDS = ("refund_id", "payment_intent", "amount", "currency", "reason", "metadata")
OUTER = ("body", "content-type", "content-encoding", "headers", "properties")

values = json_values | st.sampled_from(
    [
        *(
            10**400,
            -1,
            0.5,
            1e300,
            float("nan"),
            float("inf"),
            "\ud800",
            "\0",
            "x" * 5_000,
            "gzip",
            "refunds.submit",
        ),
        *({"__type__": "uuid", "__value__": "x"}, [[[[]]]], {"": {"": None}}, ABSENT),
    ]
)
# RabbitMQ reads some headers itself.
names = st.text(max_size=10).filter(
    lambda name: name.upper() not in {"CC", "BCC"} and not name.startswith("x-")
)
raw = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [
            b"[" * 5_000,
            b'{"a":' * 5_000,
            b"[[], {}, {}]x",
            b'[[],{"refund_id":1,"refund_id":2},{}]',
            b"1e999",
        ]
    ),
)
changes = st.one_of(
    # Many at once: each of these is to be without effect, whatever it holds.
    st.tuples(st.just(("headers",)), st.dictionaries(st.sampled_from(HEADERS), values, min_size=3)),
    st.tuples(st.just(("headers",)), st.dictionaries(st.sampled_from(HEADERS), values, min_size=3)),
    st.tuples(
        st.tuples(st.just("headers"), st.sampled_from(["task", "id", "compression"]) | names),
        values,
    ),
    st.tuples(st.tuples(st.just("properties"), st.sampled_from(PROPERTIES) | names), values),
    st.tuples(st.tuples(st.just("body"), st.just(1), st.sampled_from(FIELDS) | names), values),
    st.tuples(st.tuples(st.just("body"), st.just(2), st.sampled_from([*EMBED]) | names), values),
    st.tuples(st.tuples(st.just("body"), st.sampled_from([0, 1, 2])), values),
    st.tuples(st.tuples(st.sampled_from(["content_type", "content_encoding", "body"])), values),
    st.tuples(st.tuples(st.just("raw_body")), raw),
    st.tuples(st.tuples(st.just("outer"), st.sampled_from(OUTER) | names), values),
    st.tuples(st.tuples(st.just("item")), raw),
)
messages = st.lists(
    st.tuples(st.sampled_from([*Lane]), st.lists(changes, min_size=1, max_size=2)),
    max_size=MOST_AT_ONCE,
)


def odd_one(refund_id: str, changed: list[tuple[tuple[str | int, ...], Any]]) -> dict[str, Any]:
    """The parts of a good message, some of them changed.

    `outer` and `item` are of a Redis list alone.
    """
    good = Sent(refund_id=refund_id)
    parts: dict[str, Any] = {
        "headers": {},
        "properties": {},
        "outer": {},
        "item": None,
        "raw_body": None,
    }
    parts |= {"content_type": good.content_type, "content_encoding": good.content_encoding}
    parts["body"] = json.loads(good.body_bytes)
    for path, value in changed:
        # Whatever else becomes of it, it does not become the message of another refund.
        if path[-1] != "refund_id" or not is_refund_id(value):
            put(parts, path, value)
    if parts["body"] is None and parts["raw_body"] is None:
        parts["raw_body"] = b"null"
    return parts


def has_place(where: Any, step: Any) -> bool:
    """Whether there may be a part of this name or number."""
    if isinstance(step, str):
        return isinstance(where, dict)
    return isinstance(where, list) and step < len(where)


def put(parts: Any, path: tuple[Any, ...], value: Any) -> None:
    """Change one part, if there is still a place for it."""
    *way, last = path
    where = parts
    for step in way:
        if not has_place(where, step):
            return
        where = where.get(step) if isinstance(where, dict) else where[step]
    if not has_place(where, last):
        return
    if value is ABSENT and way[:1] not in (["headers"], ["properties"], ["outer"]):
        value = None
    where[last] = value


def sent(post: Post, queue: str, refund_id: str, parts: dict[str, Any]) -> bool:
    """Send it; return whether that could be done."""
    own = ("body", "raw_body", "headers", "properties", "content_type", "content_encoding")
    message = Sent(refund_id=refund_id, **{name: parts[name] for name in own})
    if isinstance(post, RedisPost):
        outer = present({**json.loads(message.for_redis()), **parts["outer"]})
        post.client.lpush(queue, parts["item"] or json.dumps(outer))
        return True
    message.properties = {
        name: parts["properties"][name] for name in OF_AMQP if name in parts["properties"]
    }
    try:
        post.send(queue, message)
    except (TypeError, ValueError, OverflowError, struct.error, amqp.exceptions.AMQPError):
        # Python's client cannot write it down, or RabbitMQ refuses to take it and ends the
        # connection.
        post.reopen()
        return False
    return True


@pytest.fixture(params=["redis", "rabbitmq"])
def post(request: pytest.FixtureRequest, installation: Installation) -> Iterator[Post]:
    """The way into the queues of a broker; the installation's worker reads from it."""
    made: Post
    if request.param == "redis":
        made = RedisPost(installation.redis_url)
    else:
        installation.settings["REFUNDS_BROKER_URL"] = request.getfixturevalue("rabbitmq_url")
        made = AmqpPost(installation.settings["REFUNDS_BROKER_URL"])
    yield made
    made.close()


def test_any_message_is_accepted_or_kept_and_good_refunds_go_on(
    installation: Installation, post: Post
) -> None:
    worker = installation.start("worker", "worker")
    numbers = count(1)
    good: list[str] = []
    odd: dict[str, dict[str, Any]] = {}
    with (
        redis.Redis.from_url(installation.redis_url, decode_responses=True) as client,
        installation.refunds() as refunds,
    ):

        def kept() -> int:
            return int(str(client.llen("refunds:rejected")))

        def accepted(ids: list[str]) -> list[str]:
            return [refund_id for refund_id in ids if client.exists(f"refunds:refund:{refund_id}")]

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(messages)
        def each(drawn: list[Any]) -> None:
            before, these, harmless = kept(), [], set()
            for lane, changed in drawn:
                refund_id = f"odd-{next(numbers)}"
                parts = odd_one(refund_id, changed)
                if sent(post, lane.value, refund_id, parts):
                    odd[refund_id] = parts
                    these.append(refund_id)
                    if all(path == ("headers",) for path, _ in changed):
                        harmless.add(refund_id)
            good.append(f"good-{next(numbers)}")
            post.send("refunds", Sent(refund_id=good[-1]))
            until(lambda: bool(accepted(good[-1:])), "the good refund is accepted", 20)
            until(
                lambda: len(accepted(these)) + kept() - before >= len(these),
                f"{drawn} is accepted or kept",
                20,
            )
            assert len(accepted(these)) + kept() - before == len(these)
            assert harmless <= set(accepted(these))
            assert worker.process.poll() is None

        each()
        records = installation.settled(refunds, good, 30)
        assert [record.status for record in records] == ["succeeded"] * len(good)
        taken = accepted([*odd])
        assert kept() == len(odd) - len(taken)
        assert worker.said.count('"event": "supervisor"') == 0
        for refund_id in taken:
            assert RefundRequest(**odd[refund_id]["body"][1]).refund_id == refund_id
        for queue in Lane:
            assert isinstance(post, AmqpPost) or client.llen(queue.value) == 0
    moved = [effect["refund_id"] for effect in installation.sandbox.effects()]
    assert len(moved) == len(set(moved))
    assert set(good) <= set(moved) <= {*good, *taken}
