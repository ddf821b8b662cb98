"""What a worker makes of a broker that is away, or of records that may be forgotten.

One sentence, no traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
import structlog
from amqp.exceptions import ChannelError, ConnectionForced

from tests.factories import a_request
from worker.broker.queues import make_celery
from worker.engine.endings import PUT_BACK
from worker.engine.records_guard import RecordsGuard
from worker.errors import NotDurable, NotStorable, SettingsError, StoreUnavailable, TooFewReplicas
from worker.model.refund import Lane
from worker.process.runtime import Runtime
from worker.settings import Settings


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    settings = Settings.load(broker_url="redis://:hunter2@127.0.0.1:1/0")
    made = Runtime(settings, make_celery(settings))
    yield made
    made._loop.close()


def test_a_queue_that_cannot_be_measured_or_nudged_names_the_broker_and_no_secret(
    runtime: Runtime,
) -> None:
    for ask in (
        lambda: runtime._depth(Lane.SINGLE),
        lambda: runtime._nudge(["order-1"], Lane.SINGLE),
    ):
        with pytest.raises(
            StoreUnavailable, match=r"^the broker at 127\.0\.0\.1:1 cannot be reached"
        ) as caught:
            ask()
        assert "hunter2" not in str(caught.value)


def test_a_rabbit_that_closes_the_connection_while_a_queue_is_measured_is_a_broker_that_is_away(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = MagicMock()
    connection.__enter__.return_value = connection
    channel = connection.default_channel
    channel.queue_declare.side_effect = ConnectionForced("broker forced connection closure")
    channel.connection.client.channel_errors = (ChannelError,)
    monkeypatch.setattr(runtime.celery, "connection_for_read", lambda: connection)
    with pytest.raises(StoreUnavailable, match=r"cannot be reached \(ConnectionForced\)"):
        runtime._depth(Lane.SINGLE)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("whatever it is")])
def test_refund_that_was_accepted_is_not_rejected_since_its_queue_cannot_be_measured(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(runtime, "_create", lambda *_: "created")
    monkeypatch.setattr(runtime, "run", lambda made: made)
    monkeypatch.setattr(runtime, "process", lambda ids, _: dict.fromkeys(ids, PUT_BACK))
    monkeypatch.setattr(runtime, "_backlog_of", Mock(side_effect=error))
    assert runtime.submit(a_request("order-1"), Lane.SINGLE) is PUT_BACK


def test_refund_that_was_accepted_is_not_rejected_since_its_handling_failed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_create", lambda *_: "exists")
    monkeypatch.setattr(runtime, "run", lambda made: made)
    monkeypatch.setattr(runtime, "process", Mock(side_effect=NotStorable("a key is damaged")))
    with structlog.testing.capture_logs() as lines:
        ending = runtime.submit(a_request("order-1"), Lane.SINGLE)
    assert str(ending) == "handling failed (NotStorable)"
    assert [(line["event"], line["alarm"]) for line in lines] == [("refund_handling_failed", True)]


def guarded(runtime: Runtime) -> RecordsGuard:
    """A runtime with a guard, and with no store behind it: whoever uses one fails."""
    nothing: Any = None
    guard = RecordsGuard(nothing, on_loss=lambda: None)
    service: Any = SimpleNamespace(
        guard=guard, stopping=False, breaker=SimpleNamespace(resting=False)
    )
    runtime.service = service
    return guard


@pytest.mark.parametrize(
    "error", [NotDurable("no file"), SettingsError("no file"), TooFewReplicas(1, 0, "here:1")]
)
async def test_background_work_that_the_server_refuses_is_one_alarm_and_no_traceback(
    runtime: Runtime, error: Exception
) -> None:
    guard = guarded(runtime)
    third = asyncio.Barrier(2)
    calls = []

    async def refused() -> None:
        calls.append(1)
        if len(calls) == 3:
            await third.wait()
        raise error

    with structlog.testing.capture_logs() as lines:
        repeated = asyncio.create_task(runtime._repeat(refused, 0))
        await asyncio.wait_for(third.wait(), 10)
        repeated.cancel()
    assert guard.fault == str(error)
    assert [(line["event"], line["alarm"]) for line in lines] == [("durability_lost", True)]


async def test_background_work_that_swallows_its_cancellation_ends_with_the_worker(
    runtime: Runtime,
) -> None:
    """As redis-py does while it connects."""
    guarded(runtime)
    begun = asyncio.Event()

    async def swallows() -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    repeated = asyncio.create_task(runtime._repeat(swallows, 60))
    await begun.wait()
    runtime._closing = True
    repeated.cancel()
    await asyncio.wait_for(repeated, 10)


async def test_nothing_is_accepted_or_swept_on_a_server_that_may_forget(runtime: Runtime) -> None:
    guarded(runtime).refused(NotDurable("no file"))
    with pytest.raises(NotDurable, match="no file"):
        await runtime._create(a_request(), Lane.SINGLE)
    await runtime._sweep()


async def test_a_server_that_takes_no_counters_does_not_make_a_worker_look_as_if_it_hung(
    tmp_path: Path,
) -> None:
    file = tmp_path / "heartbeat"
    settings = Settings.load(heartbeat_file=file)
    runtime = Runtime(settings, make_celery(settings))
    guarded(runtime)
    store: Any = SimpleNamespace(beat=AsyncMock())
    runtime.store = store

    async def refused() -> None:
        raise StoreUnavailable("used memory > 'maxmemory'")

    runtime._tell = refused  # type: ignore[method-assign] # as a full server refuses a write
    with pytest.raises(StoreUnavailable, match="used memory"):
        await runtime._beat()
    assert file.exists()
    store.beat.assert_awaited_once_with(runtime.name)
    runtime._loop.close()


@pytest.mark.parametrize(("days", "ages"), [(None, []), (30, [timedelta(days=30)])])
async def test_metadata_are_erased_only_if_their_age_is_set(
    monkeypatch: pytest.MonkeyPatch, days: float | None, ages: list[timedelta]
) -> None:
    settings = Settings.load(metadata_days=days)
    runtime = Runtime(settings, make_celery(settings))
    guarded(runtime)
    nothing: Any = None
    runtime.store = nothing
    asked = []

    async def erase(_: object, age: timedelta) -> None:
        asked.append(age)

    monkeypatch.setattr("worker.process.runtime.erase_metadata", erase)
    await runtime._erase()
    assert asked == ages
    runtime.service.guard.refused(NotDurable("no file"))
    await runtime._erase()
    assert asked == ages
    runtime._loop.close()
