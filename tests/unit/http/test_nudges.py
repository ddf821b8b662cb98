"""Nudges of a few milliseconds share a message, and a lost one is found by the next sweep."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import kombu.exceptions
import pytest

from worker.broker.names import BULK_IDS
from worker.errors import StoreUnavailable
from worker.http.nudges import Nudges
from worker.model.refund import Lane, Stage
from worker.store.sweeps import Due


def due(refund_id: str, lane: Lane = Lane.SINGLE) -> Due:
    return Due(refund_id=refund_id, lane=lane, stage=Stage.PROCESSING)


class Broker:
    def __init__(self) -> None:
        self.sent: list[tuple[list[str], Lane]] = []
        self.given_back: list[str] = []
        self.error: Exception | None = None
        self.store_error: Exception | None = None

    def publish(self, ids: Sequence[str], lane: Lane) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(([*ids], lane))

    async def lost(self, ids: Sequence[str]) -> None:
        if self.store_error is not None:
            raise self.store_error
        self.given_back += ids


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def nudges(broker: Broker) -> Nudges:
    return Nudges(broker.publish, broker.lost)


async def test_what_comes_together_is_one_message_for_each_lane(
    broker: Broker, nudges: Nudges
) -> None:
    for name in ("a", "b", "a"):
        nudges.add([due(name)])
    nudges.add([due("c", Lane.BULK)])
    nudges.add([])
    await nudges.close()
    assert broker.sent == [(["a", "b"], Lane.SINGLE), (["c"], Lane.BULK)]


async def test_a_message_holds_a_limited_number_of_ids(broker: Broker, nudges: Nudges) -> None:
    nudges.add(due(f"b-{number}", Lane.BULK) for number in range(BULK_IDS + 1))
    nudges.add(due(f"s-{number}") for number in range(21))
    await nudges.close()
    assert sorted(len(ids) for ids, _ in broker.sent) == [1, 1, 20, BULK_IDS]


async def test_messages_are_large_while_many_wait(broker: Broker, nudges: Nudges) -> None:
    nudges.add(due(f"s-{number}") for number in range(4 * BULK_IDS))
    await nudges.close()
    assert [len(ids) for ids, _ in broker.sent] == [BULK_IDS] * 4


@pytest.mark.parametrize(("count", "sizes"), [(199, [20] * 9 + [19]), (200, [BULK_IDS] * 2)])
async def test_messages_are_large_from_200_that_wait(
    broker: Broker, nudges: Nudges, count: int, sizes: list[int]
) -> None:
    nudges.add(due(f"s-{number}") for number in range(count))
    await nudges.close()
    assert [len(ids) for ids, _ in broker.sent] == sizes


async def test_what_comes_a_moment_later_is_in_the_same_message(
    broker: Broker, nudges: Nudges
) -> None:
    nudges.add([due("a")])
    await asyncio.sleep(0)
    nudges.add([due("b")])
    await nudges.close()
    assert broker.sent == [(["a", "b"], Lane.SINGLE)]


async def test_ids_are_gathered_for_five_milliseconds(
    broker: Broker, nudges: Nudges, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[float] = []

    async def sleep(seconds: float) -> None:
        gathered.append(seconds)

    monkeypatch.setattr("worker.http.nudges.asyncio.sleep", sleep)
    nudges.add([due("a")])
    await nudges.close()
    assert (gathered, broker.sent) == ([0.005], [(["a"], Lane.SINGLE)])


async def test_one_that_comes_while_a_message_is_sent_is_sent_after_it(
    broker: Broker, nudges: Nudges
) -> None:
    nudges.add([due("a")])
    loop, plain = asyncio.get_running_loop(), broker.publish

    def publish(ids: Sequence[str], lane: Lane) -> None:
        plain(ids, lane)
        if len(broker.sent) == 1:
            loop.call_soon_threadsafe(nudges.add, [due("a")])

    nudges._publish = publish
    await nudges.close()
    assert broker.sent == [(["a"], Lane.SINGLE)] * 2


async def test_a_lost_message_is_given_back(broker: Broker, nudges: Nudges) -> None:
    broker.error = kombu.exceptions.OperationalError()
    nudges.add([due("a")])
    await nudges.close()
    assert broker.given_back == ["a"]
    broker.error = None
    nudges.add([due("b")])
    await nudges.close()
    assert broker.sent == [(["b"], Lane.SINGLE)]


async def test_if_the_records_are_away_too_the_next_nudges_are_sent(
    broker: Broker, nudges: Nudges
) -> None:
    broker.error, broker.store_error = ConnectionError(), StoreUnavailable("Redis is away")
    nudges.add([due("a")])
    await nudges.close()
    broker.error = None
    nudges.add([due("b")])
    await nudges.close()
    assert broker.sent == [(["b"], Lane.SINGLE)]
