"""The producer's door on a real server, with no worker behind it."""

from __future__ import annotations

import base64
import json
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest
import redis
from redis.client import Pipeline

import worker
from worker import (
    IdempotencyConflict,
    NotCancelable,
    NotFound,
    RefundError,
    RefundRequest,
    Refunds,
    StoreUnavailable,
    errors,
)
from worker.errors import SettingsError
from worker.model.refund import Lane
from worker.settings import Settings


@pytest.fixture
def refunds(redis_url: str) -> Iterator[Refunds]:
    with Refunds(settings=Settings.load(redis_url=redis_url, backlog_warning=3)) as door:
        yield door


def request(number: int = 1, amount: int = 500) -> RefundRequest:
    return RefundRequest(
        refund_id=f"order-{number}-1", payment_intent=f"pi_{number}", amount=amount
    )


def test_an_accepted_refund_is_returned_as_it_stands_in_redis(refunds: Refunds) -> None:
    accepted = refunds.submit(request())
    assert accepted == refunds.get("order-1-1")
    assert refunds.store.redis.llen("refunds") == 1


def test_a_client_that_only_reads_makes_no_celery_app(refunds: Refunds) -> None:
    assert refunds.get_many(["order-1-1"]) == [None]
    assert refunds._celery is None


@pytest.mark.parametrize("write", ["submit", "submit_many", "cancel"])
def test_wrong_settings_of_the_broker_are_found_before_anything_is_written(
    refunds: Refunds, redis_url: str, write: str
) -> None:
    settings = Settings.load(redis_url=redis_url, broker_url="sentinel://127.0.0.1:1/0")
    given: Any = {"submit": request(), "submit_many": [request()], "cancel": "order-2-1"}[write]
    known = refunds.submit(request(2))
    with Refunds(settings=settings) as door, pytest.raises(SettingsError, match="master's name"):
        getattr(door, write)(given)
    assert refunds.get_many(["order-1-1", "order-2-1"]) == [None, known]


def test_the_same_request_again_returns_the_record_and_sends_no_message(refunds: Refunds) -> None:
    first = refunds.submit(request())
    assert refunds.submit(request()) == first
    assert refunds.store.redis.llen("refunds") == 1


def test_other_contents_under_the_same_id_are_refused_and_change_nothing(refunds: Refunds) -> None:
    first = refunds.submit(request())
    with pytest.raises(IdempotencyConflict, match="order-1-1"):
        refunds.submit(request(amount=501))
    assert refunds.get("order-1-1") == first


def test_a_canceled_refund_is_never_sent_and_canceling_again_is_harmless(refunds: Refunds) -> None:
    refunds.submit(request())
    canceled = refunds.cancel("order-1-1")
    assert (canceled.status, canceled.stage) == ("canceled", "settled")
    assert refunds.cancel("order-1-1") == canceled
    assert refunds.store.redis.zcard("refunds:due") == 0


@pytest.mark.parametrize("wrong", [None, 5, b"order-1-1", ["order-1-1"]])
def test_an_id_that_is_not_a_text_is_a_type_error_of_one_sentence(
    refunds: Refunds, wrong: Any
) -> None:
    for call in (refunds.get, refunds.cancel, refunds.retry, refunds.wait, refunds.history):
        with pytest.raises(
            TypeError, match=f"a refund id must be a text, not {type(wrong).__name__}$"
        ):
            call(wrong)
    with pytest.raises(TypeError, match="a refund id must be a text"):
        refunds.get_many(["order-1-1", wrong])


def test_one_id_in_place_of_a_list_is_a_type_error(refunds: Refunds) -> None:
    with pytest.raises(
        TypeError, match="must be a list of refund ids, not the one text 'order-1-1'"
    ):
        refunds.get_many("order-1-1")


def test_a_request_that_is_not_a_refund_request_is_a_type_error_and_nothing_is_accepted(
    refunds: Refunds,
) -> None:
    fields: Any = {"refund_id": "order-2-1", "payment_intent": "pi_2"}
    with pytest.raises(TypeError, match="must be a RefundRequest, not dict"):
        refunds.submit(fields)
    with pytest.raises(TypeError, match="must be a RefundRequest, not dict"):
        refunds.submit_many([request(), fields])
    assert refunds.get_many(["order-1-1", "order-2-1"]) == [None, None]


def test_every_error_that_is_raised_on_purpose_can_be_imported_from_the_package() -> None:
    ours = {
        name
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, RefundError)
    }
    assert "NotRetriable" in ours
    assert ours - set(worker.__all__) == set()
    assert all(getattr(worker, name) is getattr(errors, name) for name in ours)


def test_what_may_have_been_sent_cannot_be_canceled(refunds: Refunds) -> None:
    refunds.submit(request())
    refunds.store.redis.hset("refunds:refund:order-1-1", "stage", "sending")
    with pytest.raises(NotCancelable, match="may have reached the provider"):
        refunds.cancel("order-1-1")


def test_an_unknown_id_is_said_to_be_unknown(refunds: Refunds) -> None:
    with pytest.raises(NotFound, match="nobody"):
        refunds.get("nobody")
    assert refunds.get_many(["nobody"]) == [None]


def test_many_are_counted_by_what_became_of_them(refunds: Refunds) -> None:
    refunds.submit(request(1))
    refunds.submit(request(2, amount=9))
    report = refunds.submit_many([request(1), request(2), request(3)])
    assert (report.created, report.existing, report.conflicting) == (1, 1, 1)
    assert report.conflicts == ["order-2-1"]


def ids_in_messages(refunds: Refunds, queue: str) -> list[list[str]]:
    """The ids that each message of a queue names, oldest first."""
    server: Any = refunds.store.redis
    sent = [json.loads(item) for item in reversed(server.lrange(queue, 0, -1))]
    return [json.loads(base64.b64decode(each["body"]))[0][0] for each in sent]


def test_refunds_that_threads_submit_at_once_are_each_accepted_once_and_each_named_by_a_message(
    refunds: Refunds,
) -> None:
    wanted = [request(number) for number in range(60)]
    with ThreadPoolExecutor(12) as pool:
        # Each twice, and at the end one of them with other contents.
        accepted = list(pool.map(refunds.submit, wanted * 2))
        refused = pool.submit(refunds.submit, request(7, amount=501))
        with pytest.raises(IdempotencyConflict, match="order-7-1"):
            refused.result()
    assert accepted[:60] == accepted[60:] == [refunds.get(each.refund_id) for each in wanted]
    messages = ids_in_messages(refunds, "refunds")
    assert sorted(chain.from_iterable(messages)) == sorted(each.refund_id for each in wanted)


def test_each_single_refund_of_a_stream_has_a_message_and_rows_of_a_file_share_them(
    refunds: Refunds,
) -> None:
    refunds.submit_many([request(3), *(request(number) for number in range(45))], lane=Lane.SINGLE)
    singles = ids_in_messages(refunds, "refunds")
    assert singles == [["order-3-1"], *([f"order-{n}-1"] for n in range(45) if n != 3)]
    refunds.submit_many((request(number) for number in range(45, 190)), lane=Lane.BULK)
    assert [len(ids) for ids in ids_in_messages(refunds, "refunds.bulk")] == [100, 45]


def test_with_a_broker_of_its_own_each_new_refund_gets_its_message_there(redis_url: str) -> None:
    other = f"{redis_url.rpartition('/')[0]}/1"
    settings = Settings.load(redis_url=redis_url, broker_url=other)
    with Refunds(settings=settings) as door, redis.Redis.from_url(other) as broker:
        door.submit(request(1))
        door.submit(request(1))
        door.submit_many([request(1), request(2), request(3)], lane=Lane.SINGLE)
        assert broker.llen("refunds") == 3
        assert door.store.redis.llen("refunds") == 0


def test_a_stream_of_rows_is_accepted_in_constant_memory(refunds: Refunds) -> None:
    refunds.submit_many(request(number) for number in range(1_000))
    tracemalloc.start()
    refunds.submit_many(request(number) for number in range(1_000, 3_000))
    small = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    refunds.submit_many(request(number) for number in range(3_000, 13_000))
    large = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert large < 1.5 * small
    # A hundred ids a message.
    assert refunds.store.redis.llen("refunds.bulk") == 130


def test_a_deep_backlog_is_said_and_nothing_is_refused(
    refunds: Refunds, caplog: pytest.LogCaptureFixture
) -> None:
    report = refunds.submit_many(request(number) for number in range(10))
    assert report.created == 10
    assert [record.message for record in caplog.records] == ["backlog_deep"]
    assert refunds.store.backlog(Lane.BULK) == 10


def test_each_lane_is_watched_by_itself(refunds: Refunds, caplog: pytest.LogCaptureFixture) -> None:
    refunds.submit(request(0))
    refunds.submit_many(request(number) for number in range(1, 10))
    refunds.submit_many((request(number) for number in range(10, 20)), lane=Lane.SINGLE)
    told = [(record.message, record.__dict__["lane"]) for record in caplog.records]
    # The single lane was looked at a moment ago, when it held one.
    assert told == [("backlog_deep", "refunds.bulk")]


@pytest.mark.parametrize("several", [False, True])
def test_a_redis_that_goes_away_once_a_refund_is_accepted_does_not_make_its_submit_fail(
    refunds: Refunds, monkeypatch: pytest.MonkeyPatch, *, several: bool
) -> None:
    def away(_: Lane) -> int:
        raise StoreUnavailable("redis is away")

    monkeypatch.setattr(refunds.store, "backlog", away)
    if several:
        assert refunds.submit_many([request()]).created == 1
    else:
        refunds.submit(request())
    assert refunds.get("order-1-1").stage == "queued"


@pytest.mark.parametrize(("lane", "count"), [(Lane.SINGLE, 3), (Lane.BULK, 450)])
def test_a_broker_that_hangs_holds_those_who_submit_together_for_one_message_only(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, lane: Lane, count: int
) -> None:
    tried: list[int] = []

    def hang(_app: object, refund_ids: Sequence[str], _lane: Lane) -> None:
        tried.append(len(refund_ids))
        raise TimeoutError

    monkeypatch.setattr("worker.broker.queues.nudge", hang)
    with Refunds(redis_url=redis_url, broker_url="amqp://127.0.0.1:1") as door:
        assert door.submit_many(map(request, range(count)), lane=lane).created == count
        assert len(tried) == 1
        now = door.store.time()
        # A sweep finds all of them at once.
        found = door.get_many([request(number).refund_id for number in range(count)])
        assert all(each and each.next_check_at and each.next_check_at <= now for each in found)


def test_a_redis_that_is_away_is_one_sentence_without_the_password() -> None:
    door = Refunds(settings=Settings.load(redis_url="redis://:s3cret@127.0.0.1:1/0"))
    with door, pytest.raises(StoreUnavailable) as raised:
        door.submit(request())
    assert "127.0.0.1:1" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_records_and_requests_can_be_handed_to_another_process(refunds: Refunds) -> None:
    accepted = refunds.submit(request())
    assert pickle.loads(pickle.dumps(accepted)) == accepted
    assert pickle.loads(pickle.dumps(request())) == request()


def test_a_wait_that_ends_before_the_refund_returns_it_as_it_stands(refunds: Refunds) -> None:
    refunds.submit(request())
    assert refunds.wait("order-1-1", timeout=0).status == "pending"


def test_a_closed_door_says_so(redis_url: str) -> None:
    door = Refunds(settings=Settings.load(redis_url=redis_url))
    door.submit(request())
    door.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        door.submit(request())


def test_two_installations_on_one_server_do_not_share_messages(
    refunds: Refunds, redis_url: str
) -> None:
    with Refunds(settings=Settings.load(redis_url=redis_url, prefix="staging:")) as other:
        other.submit(request())
    assert refunds.get_many(["order-1-1"]) == [None]
    with redis.Redis.from_url(redis_url) as client:
        assert (client.llen("refunds"), client.llen("staging:refunds")) == (0, 1)


def test_an_interrupt_between_two_replies_does_not_hand_one_to_the_next_command(
    refunds: Refunds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C, or a time limit that a signal enforces: it may come between any two steps."""
    for number in (1, 2, 3):
        refunds.submit(request(number))
    read: Any = Pipeline.parse_response

    def interrupted(*given: Any, **named: Any) -> Any:
        read(*given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "parse_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refunds.get_many(["order-1-1", "order-2-1"])
    assert refunds.get("order-3-1").refund_id == "order-3-1"


def test_an_interrupt_before_a_reply_does_not_hand_it_to_the_next_command(
    refunds: Refunds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply comes only after the next command was sent."""
    refunds.submit(request(1))
    client: Any = refunds.store.redis
    client.ping()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def ask(sender: Any) -> None:
        sender.blpop(["refunds:nothing"], 0.2)
        sender.execute()

    for sender in (client, client.pipeline(transaction=False)):
        with monkeypatch.context() as patch:
            patch.setattr(type(sender), "parse_response", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ask(sender)
        assert refunds.get("order-1-1").refund_id == "order-1-1"


def test_an_interrupt_after_a_failed_check_of_the_connection_is_noticed_too(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed check opens another connection just before the command is sent.

    The count of unread replies begins again there.
    """
    settings = Settings.load(redis_url=f"{redis_url}?retry_on_timeout=true")
    checked: list[int] = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with Refunds(settings=settings) as refunds:
        refunds.submit(request(1))
        client: Any = refunds.store.redis
        (connection,) = client.connection_pool._available_connections
        check = connection._send_ping

        def failing_once() -> None:
            checked.append(1)
            if len(checked) == 1:
                raise redis.TimeoutError
            check()

        monkeypatch.setattr(connection, "_send_ping", failing_once)
        connection.next_health_check = 0
        client.ping()
        assert len(checked) == 2
        with monkeypatch.context() as patch:
            patch.setattr(type(client), "parse_response", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.blpop(["refunds:nothing"], 0.2)
        assert refunds.get("order-1-1").refund_id == "order-1-1"


def test_connection_is_kept_after_commands_whose_replies_were_read(refunds: Refunds) -> None:
    client: Any = refunds.store.redis
    number = client.client_id()
    refunds.submit(request(1))
    refunds.get_many(["order-1-1", "order-2-1"])
    with pytest.raises(redis.ResponseError):
        client.execute_command("HGET", "refunds:refund:order-1-1")
    with pytest.raises(redis.ResponseError):
        client.pipeline(transaction=False).lpush("refunds:refund:order-1-1", "x").get("x").execute()
    with client.pipeline() as together:
        together.get("x").get("y").execute()
    assert client.client_id() == number


def test_more_threads_than_a_hundred_read_at_once(refunds: Refunds, redis_url: str) -> None:
    count = 120
    refunds.submit(request())
    with redis.Redis.from_url(redis_url) as admin, ThreadPoolExecutor(count) as pool:
        admin.client_pause(500)
        found = list(pool.map(refunds.get, ["order-1-1"] * count))
    assert {refund.refund_id for refund in found} == {"order-1-1"}
