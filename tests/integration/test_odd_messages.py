"""One odd message: it is kept or read, the worker that met it lives, and what comes after it is
done.
"""

from __future__ import annotations

import bz2
import gzip
import json
import time
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import redis

from tests.support.installation import Installation, Worker, until
from tests.support.sending import ABSENT, EMBED, AmqpPost, Post, RedisPost, Sent
from worker import MessageRejected, Refunds
from worker.model.refund import Lane
from worker.sandbox.redis_server import running_server

HOUR_AHEAD = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 3600))
GOOD = [[], {"refund_id": "x", "payment_intent": "pi_x"}, EMBED]

HARMLESS: dict[str, dict[str, Any]] = {
    "a time limit that is text": {"headers": {"timelimit": "abc"}},
    "a time limit of one number": {"headers": {"timelimit": [5]}},
    "a time limit that is an object": {"headers": {"timelimit": {"hard": 1}}},
    "stamps that are a number": {"headers": {"stamped_headers": 5}},
    "stamps without their values": {"headers": {"stamped_headers": ["a"], "stamps": 7}},
    "an ETA in an hour": {"headers": {"eta": HOUR_AHEAD}},
    "an ETA that is not a time": {"headers": {"eta": "soon"}},
    "an ETA that is a list": {"headers": {"eta": [1]}},
    "an expiry that has passed": {"headers": {"expires": "2001-01-01T00:00:00+00:00"}},
    "an expiry that is not a time": {"headers": {"expires": {"at": 1}}},
    "a name that is a list": {"headers": {"shadow": ["refunds.submit"]}},
    "retries that are text": {"headers": {"retries": "many"}},
    "texts that are objects": {
        "headers": {"argsrepr": {}, "kwargsrepr": [1], "origin": 5, "lang": None}
    },
    "a root that is an object": {
        "headers": {"root_id": {}, "parent_id": [], "group": 5, "group_index": "x"}
    },
    "a result that is wanted": {
        "headers": {"ignore_result": False},
        "properties": {"reply_to": "nowhere"},
    },
    "a callback": {
        "embed": {
            "callbacks": [{"task": "refunds.process", "args": [["y"]]}],
            "chain": [{"task": "z"}],
        }
    },
    "a chord that is a number": {
        "embed": {"chord": 5, "errbacks": 7, "task": "refunds.other", "id": 5}
    },
    "metadata that names a type of kombu's": {
        "metadata": {"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}
    },
    "metadata that names a type and fails it": {
        "metadata": {"__type__": "uuid", "__value__": "zz"}
    },
    "no encoding": {"content_encoding": None},
    "an encoding in capitals": {"content_encoding": "UTF-8"},
    "a priority that is text": {"properties": {"priority": "high"}},
    "another correlation": {"properties": {"correlation_id": 5}},
}
BROKEN: dict[str, dict[str, Any]] = {
    "an encoding that is a number": {"content_encoding": 5},
    "an encoding of the wire": {"content_encoding": "gzip"},
    "a type that is a list": {"content_type": ["application/json"]},
    "pickle": {"content_type": "application/x-python-serialize"},
    "a compression that is a list": {"headers": {"compression": ["gzip"]}},
    "a compression that nobody knows": {"headers": {"compression": "rot13"}},
    "a compression that is not in the body": {"headers": {"compression": "gzip"}},
    "a compression that is not read": {
        "headers": {"compression": "bzip2"},
        "raw_body": bz2.compress(b"[]"),
    },
    "a bomb": {"headers": {"compression": "gzip"}, "raw_body": zlib.compress(b" " * 50_000_000)},
    "a body cut short": {
        "headers": {"compression": "gzip"},
        "raw_body": zlib.compress(json.dumps(GOOD).encode())[:-9],
    },
    "a long body": {"raw_body": json.dumps([*GOOD[:2], {"x": "x" * 1_100_000}]).encode()},
    "a task of Celery's own": {"headers": {"task": "celery.chord_unlock"}},
    "a task that is a list": {"headers": {"task": ["refunds.submit"]}},
    "an id that is a number": {"headers": {"id": 5}},
    "an id of no characters": {"headers": {"id": ""}},
    "a body that is an object": {
        "body": {"args": [], "kwargs": {}, "task": "refunds.submit", "id": "1"}
    },
    "args that are an object": {"body": [{}, {}, {}]},
    "kwargs that are a list": {"body": [[], [], {}]},
    "an embed that is text": {"body": [[], {}, "x"]},
    "four parts": {"body": [[], {}, {}, {}]},
    "deep metadata": {"body": [[], {"metadata": json.loads("[" * 50 + "]" * 50)}, EMBED]},
    "a body without end": {"raw_body": b"[" * 200_000},
    "an amount that is not a number": {
        "raw_body": b'[[], {"refund_id": "x", "payment_intent": "pi_x", "amount": NaN}, {}]'
    },
    "two amounts": {
        "raw_body": (
            b'[[], {"refund_id": "x", "payment_intent": "pi_x", "amount": 5, "amount": 500}, {}]'
        )
    },
    "no text at all": {"raw_body": b"\xff\xfe[[], {}, {}]"},
    "positional fields": {"body": [["x", "pi_x"], {}, EMBED]},
}


def sent(number: int, changes: dict[str, Any]) -> Sent:
    """The message of a case, for a refund of its own."""
    changes = dict(changes)
    made = Sent(refund_id=f"odd-{number}")
    args, fields, embed = made.parts
    if "embed" in changes:
        changes["body"] = [args, fields, changes.pop("embed")]
    if "metadata" in changes:
        changes["body"] = [args, {**fields, "metadata": changes.pop("metadata")}, embed]
    return Sent(refund_id=made.refund_id, **changes)


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


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as made:
        yield made


def kept(client: redis.Redis) -> list[dict[str, Any]]:
    entries: Any = client.lrange("refunds:rejected", 0, -1)
    return [json.loads(entry) for entry in entries]


def names_of(client: redis.Redis) -> Any:
    return client.zrange("refunds:workers", 0, -1)


def assert_it_lives(
    worker: Worker, post: Post, client: redis.Redis, refunds: Refunds, before: Any
) -> None:
    """A good refund is done by the same process as before."""
    post.send("refunds", Sent(refund_id="good"))
    until(lambda: refunds.store.get("good") is not None, "the good refund is accepted", 20)
    assert refunds.wait("good", timeout=20).status == "succeeded"
    assert worker.process.poll() is None
    assert names_of(client) == before


def test_what_a_message_says_beside_its_request_does_not_count(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    worker = installation.start("worker", "worker")
    before = names_of(client)
    ids = []
    with installation.refunds() as refunds:
        for number, (lane, changes) in enumerate(product(Lane, HARMLESS.values())):
            odd = sent(number, changes)
            post.send(lane.value, odd)
            ids.append(odd.refund_id)
        until(lambda: all(refunds.get_many(ids)) or bool(kept(client)), "all are accepted", 20)
        records = installation.settled(refunds, ids, 20)
        assert kept(client) == []
        assert [record.status for record in records] == ["succeeded"] * len(ids)
        assert_it_lives(worker, post, client, refunds, before)
    assert len(ids) == len(Lane) * len(HARMLESS)
    assert len(installation.sandbox.effects()) == len(ids) + 1


def test_a_message_that_cannot_be_read_is_kept_and_the_worker_lives(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    worker = installation.start("worker", "worker")
    before = names_of(client)
    with installation.refunds() as refunds:
        for number, (name, changes) in enumerate(BROKEN.items()):
            post.send("refunds", sent(number, changes))
            until(lambda number=number: len(kept(client)) == number + 1, f"{name} is kept", 20)  # type: ignore[misc]  # bound at once
        assert_it_lives(worker, post, client, refunds, before)
    assert len(kept(client)) == len(BROKEN)
    assert len(installation.sandbox.effects()) == 1


UNKEPT: dict[str, dict[str, Any]] = {
    "before its task": {"headers": {"task": "refunds.unheard_of"}},
    "in its decoding": {"headers": {"compression": "rot13"}},
    "in its task": {"body": [["x", "pi_x"], {}, EMBED]},
    "as a nudge": {"headers": {"task": "refunds.process"}, "body": [["x"], {}, EMBED]},
}


def test_a_message_stays_with_its_broker_until_it_is_kept(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    # Nothing can be kept under this key while it holds something else.
    client.set("refunds:rejected", "not a list")
    worker = installation.start("worker", "worker")
    before = names_of(client)
    with installation.refunds() as refunds:
        for number, changes in enumerate(UNKEPT.values()):
            post.send("refunds", sent(number, changes))
        until(lambda: worker.said.count("message_not_kept") > len(UNKEPT), "one is tried again")
        assert_it_lives(worker, post, client, refunds, before)
        client.delete("refunds:rejected")
        until(lambda: len(kept(client)) >= len(UNKEPT), "all are kept")
        worker.stop()
    assert len({entry["message"] for entry in kept(client)}) == len(kept(client)) == len(UNKEPT)


@pytest.mark.parametrize("post", ["rabbitmq"], indirect=True)
def test_a_message_that_cannot_be_read_outlives_that_redis_is_away(
    installation: Installation, post: AmqpPost
) -> None:
    with running_server() as server:
        installation.redis_url = server.url
        worker = installation.start("worker", "worker")
        server.kill()
        for number, changes in enumerate(UNKEPT.values()):
            post.send("refunds", sent(number, changes))
        until(lambda: worker.said.count("message_not_kept") > len(UNKEPT), "one is tried again")
        server.restart()
        with (
            redis.Redis.from_url(server.url, decode_responses=True) as client,
            installation.refunds() as refunds,
        ):
            until(lambda: len(kept(client)) >= len(UNKEPT), "all are kept")
            assert_it_lives(worker, post, client, refunds, names_of(client))
            worker.stop()
            assert len({entry["message"] for entry in kept(client)}) == len(UNKEPT)
    post.close()


SQUEEZES: dict[str, Any] = {"zlib": zlib.compress, "gzip": gzip.compress}


def test_a_compressed_message_is_read(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    installation.start()
    with installation.refunds() as refunds:
        for name, squeeze in SQUEEZES.items():
            odd = Sent(refund_id=name, headers={"compression": "application/x-gzip"})
            odd.raw_body = squeeze(odd.body_bytes)
            post.send("refunds", odd)
        until(lambda: all(refunds.get_many([*SQUEEZES])) or bool(kept(client)), "all are read", 20)
        assert kept(client) == []
        for name in SQUEEZES:
            assert refunds.wait(name, timeout=20).status == "succeeded"


def test_messages_for_later_do_not_stop_the_reading_of_files(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    installation.start("worker", "worker")
    ids = [f"later-{number}" for number in range(20)]
    for refund_id in ids:
        post.send("refunds.bulk", Sent(refund_id=refund_id, headers={"eta": HOUR_AHEAD}))
    post.send("refunds.bulk", Sent(refund_id="row-1"))
    with installation.refunds() as refunds:
        until(lambda: refunds.store.get("row-1") is not None, "the row is accepted", 20)
        records = installation.settled(refunds, [*ids, "row-1"], 20)
    assert {record.status for record in records} == {"succeeded"}
    assert kept(client) == []


UNREADABLE: dict[str, dict[str, Any]] = {
    "a type that is not text": {"content_type": b"\xff"},
    "a correlation that is not text": {"properties": {"correlation_id": b"\xff"}},
}


@pytest.mark.parametrize("post", ["rabbitmq"], indirect=True)
def test_properties_that_amqp_cannot_read_are_taken_for_none(
    installation: Installation, post: AmqpPost, client: redis.Redis
) -> None:
    worker = installation.start("worker", "worker")
    before = names_of(client)
    with installation.refunds() as refunds:
        for number, changes in enumerate(UNREADABLE.values()):
            message = Sent(refund_id=f"odd-{number}", **changes).for_amqp()
            message.properties |= changes.get("properties", {})
            post.channel.basic_publish(message, exchange="", routing_key="refunds")
        until(lambda: len(kept(client)) == len(UNREADABLE), "all are kept", 20)
        assert_it_lives(worker, post, client, refunds, before)


def test_a_message_that_names_a_refund_is_found_under_its_id(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    installation.start("worker", "worker")
    fields = {
        "refund_id": "named-1",
        "payment_intent": "pi_1",
        "amount": 5.5,
        "metadata": {"key": "sk_test_planted"},
    }
    post.send(
        "refunds", Sent(refund_id="x", body=[[], fields, EMBED], headers={"kwargsrepr": ABSENT})
    )
    post.send("refunds", Sent(refund_id="named-2", raw_body=b'[[], {"refund_id": "named-2", '))
    until(lambda: len(kept(client)) == 2, "both are kept", 20)
    with installation.refunds() as refunds:
        for refund_id, why in [("named-1", "amount"), ("named-2", "the body is not JSON")]:
            with pytest.raises(MessageRejected, match=why):
                refunds.get(refund_id)
    assert "planted" not in str(client.lrange("refunds:rejected", 0, -1))


@pytest.mark.parametrize("post", ["redis"], indirect=True)
def test_a_message_that_the_records_cannot_hold_is_kept_and_does_not_come_round(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    worker = installation.start("worker", "worker")
    before = names_of(client)
    client.set("refunds:payment:pi_odd", "not a hash")
    fields = {"refund_id": "odd", "payment_intent": "pi_odd", "amount": 100}
    post.send("refunds", Sent(refund_id="odd", body=[[], fields, EMBED]))
    until(lambda: len(kept(client)) == 1, "it is kept", 20)
    with installation.refunds() as refunds:
        with pytest.raises(MessageRejected, match="the records cannot hold this"):
            refunds.get("odd")
        assert_it_lives(worker, post, client, refunds, before)
    assert "submit_put_back" not in worker.said


@pytest.mark.parametrize("post", ["redis"], indirect=True)
def test_a_message_that_meets_an_unforeseen_error_is_kept(
    installation: Installation, post: Post, client: redis.Redis
) -> None:
    worker = installation.start("worker", "worker")
    before = names_of(client)
    with installation.refunds() as refunds:
        post.send("refunds", Sent(refund_id="odd"))
        until(lambda: refunds.store.get("odd") is not None, "it is accepted", 20)
        refunds.wait("odd", timeout=20)
        client.hset("refunds:refund:odd", "created_at", "soon")
        post.send("refunds", Sent(refund_id="odd"))
        until(lambda: len(kept(client)) == 1, "its repeat is kept", 20)
        assert kept(client)[0]["reason"].startswith("the message cannot be handled (")
        assert_it_lives(worker, post, client, refunds, before)
