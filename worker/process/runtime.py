"""Runtime of a worker process: event loop in its own thread, shared clients, sweep, heartbeat."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import httpx
import structlog
from celery import Celery

from worker.broker import inbox, nudges, queues, rejected
from worker.broker.backlog import BacklogWatch
from worker.broker.bulk_prefetch import BulkIntake
from worker.broker.kept import RejectedMessage
from worker.broker.nudges import Done
from worker.callbacks import endpoints
from worker.callbacks.delivery import Sender
from worker.callbacks.pace import Pace
from worker.engine import endings
from worker.engine.endings import Ending
from worker.engine.eraser import erase_metadata
from worker.engine.rate_gate import RateGate
from worker.engine.records_guard import REFUSALS
from worker.engine.service import Service
from worker.engine.slots import Slots
from worker.engine.sweeper import sweep
from worker.errors import ProviderMismatch, RefundError, StoreFull, StoreUnavailable
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.process.heartbeat import Heartbeat
from worker.provider.gateway import Gateway
from worker.provider.transport import build_client
from worker.settings import Settings
from worker.store import callbacks, creations, erasure, meta, rechecks, scripts
from worker.store.async_store import AsyncStore
from worker.store.connection import address_of, connect_async
from worker.store.counters import Counters
from worker.store.records import SCHEMA_VERSION

log = structlog.get_logger(__name__)

T = TypeVar("T")

SWEEP_SECONDS: Final = 5.0
BEAT_SECONDS: Final = 5.0
PROBE_SECONDS: Final = 15.0
DISK_SECONDS: Final = 5.0
"""How often the server's settings are checked: what is accepted meanwhile may be lost.

It costs two commands.
"""
ERASE_SECONDS: Final = 30.0
CALLBACK_SECONDS: Final = 1.0
TASK_SECONDS: Final = 30.0
"""Maximum time that a message may hold ids that it has not begun."""
AGAIN_SECONDS: Final = 1.0
"""Pause before a message that could not be accepted goes to the end of its queue."""
SUPERVISOR_VARIABLE: Final = "REFUNDS_SUPERVISOR_PID"
THREADS_BESIDE_CALLS: Final = 8
"""Threads beyond the calls in flight: bulk messages and the next messages wait in them."""


class Runtime:
    """Shared state of a worker process.

    Call `start` before the first task and `stop` after the last.
    """

    def __init__(self, settings: Settings, celery: Celery) -> None:
        self.settings = settings
        self.celery = celery
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.intake = BulkIntake(
            celery, settings.concurrency, rate=settings.rate_limit, seconds=TASK_SECONDS
        )
        self._counters = Counters()
        self._backlog = BacklogWatch(settings.backlog_warning)
        self._heartbeat = Heartbeat(settings.heartbeat_file)
        self.store: AsyncStore
        self.service: Service
        self._client: httpx.AsyncClient
        self._endpoints: Sequence[endpoints.Endpoint] = ()
        self._sender: Sender
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="refunds-loop", daemon=True
        )
        self._background: list[asyncio.Task[None]] = []
        self._begun: deque[tuple[Sequence[str], Lane, Done]] = deque()
        self._is_called = False
        """Whether the loop will soon take up the messages in `_begun`."""
        self._in_hand: set[asyncio.Task[None]] = set()
        self._closing = False

    def start(self) -> None:
        """Create the clients, check the guards and start the sweep.

        Raises `SettingsError`, a `GuardRefused` (live money, durability, another provider or
        account), `StoreUnavailable`, `ProviderUnavailable`.
        """
        self.settings.require_provider()
        self._endpoints = endpoints.load(self.settings)
        self._thread.start()
        try:
            self.run(self._open())
        except RefundError:
            self._end_loop()
            raise
        inbox.keep_with(self._keep_rejected)
        nudges.handle_with(self)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        settings = self.settings
        url = settings.redis_url.get_secret_value()
        self.store = AsyncStore(
            connect_async(url),
            prefix=settings.prefix,
            retention=timedelta(days=settings.retention_days),
            durable=settings.durability == "disk",
            replicas=settings.replicas,
            address=address_of(url),
        )
        try:
            await self.store.require_durable()
            await self.store.load_scripts(
                (*scripts.EVERY, *rechecks.EVERY, erasure.ERASE, rejected.SCRIPT)
            )
            if self._endpoints:
                await self.store.load_scripts(callbacks.EVERY)
            await self._pin()
        except BaseException:
            await self.store.redis.aclose()
            raise
        self._client = build_client(settings)
        self.service = Service(
            self.store,
            Gateway(self._client, settings.rules, observer=self._counters.call),
            rules=settings.rules,
            slots=Slots(settings.concurrency, settings.bulk_share),
            gate=RateGate(self.store, rate=settings.rate_limit, bulk_share=settings.bulk_share),
            on_attempt=self._counters.attempt,
            on_recheck=self._counters.recheck,
            wall=lambda: datetime.now(UTC),
        )
        try:
            await self.service.account.confirm(settings.require_provider())
            # Last: by this file a machine that replaces its workers sees that the new one works.
            self._heartbeat.begin()
        except BaseException:
            await self._client.aclose()
            await self.store.redis.aclose()
            raise
        held = self.service.slots.held
        self._sender = Sender(
            self._endpoints,
            self.store,
            worker=self.name,
            pace=Pace(lambda: any(held.values())),
            chance=random.random,
        )
        for pause, work in (
            *([(CALLBACK_SECONDS, self._send_callbacks)] if self._endpoints else ()),
            (SWEEP_SECONDS, self._sweep),
            (BEAT_SECONDS, self._beat),
            (PROBE_SECONDS, self._probe),
            (DISK_SECONDS, self._check_records),
            (ERASE_SECONDS, self._erase),
        ):
            self._background.append(asyncio.create_task(self._repeat(work, pause)))

    async def _pin(self) -> None:
        host, mode, schema = await self.store.run(
            meta.pin(self.settings.provider_host, self.settings.mode)
        )
        if (host, mode) != (self.settings.provider_host, self.settings.mode):
            raise ProviderMismatch(
                f"these records belong to {host} in {mode} mode, and this worker is configured for"
                f" {self.settings.provider_host} in {self.settings.mode} mode: use another"
                " REFUNDS_PREFIX or database"
            )
        if schema != SCHEMA_VERSION:
            raise ProviderMismatch(
                f"these records have schema {schema} and this worker supports {SCHEMA_VERSION}: "
                "run the version that wrote them"
            )

    async def _repeat(self, work: Callable[[], Awaitable[object]], pause: float) -> None:
        # A cancellation alone is not enough: redis-py may swallow one, above all while it connects.
        while not self._closing:
            try:
                await work()
            except REFUSALS as error:
                self.service.guard.refused(error)
            except StoreUnavailable as error:
                log.warning("background_deferred", work=work.__name__, error=str(error))
            except Exception:
                # The outermost loop: a sweep that ends silently is worse than any error.
                log.exception("background_failed", work=work.__name__)
            if not self._closing:
                await asyncio.sleep(pause)

    async def _check_records(self) -> None:
        await self.service.guard.check()
        await self.service.positions.check()

    async def _sweep(self) -> None:
        if (
            not self.service.stopping
            and not self.service.breaker.resting
            and not self.service.guard.refuses()
        ):
            watch = self.settings.watch_rungs
            if watch:
                rate = self.settings.watch_rate
                most = max(1, round(rate * SWEEP_SECONDS))
                await self.store.run(rechecks.watch(watch, rate=rate, most=most))
            await sweep(self.store, nudge=self._nudge, depth=self._depth)

    async def _erase(self) -> None:
        """Erase metadata that are old enough, if `REFUNDS_METADATA_DAYS` is set."""
        days = self.settings.metadata_days
        if days is not None and not self.service.stopping and not self.service.guard.refuses():
            await erase_metadata(self.store, timedelta(days=days))

    async def _send_callbacks(self) -> None:
        if not self.service.stopping and not self.service.guard.refuses():
            await self._sender.sweep(self._nudge_callbacks)

    def _nudge_callbacks(self, endpoint: str, members: Sequence[str]) -> None:
        with self._broker_errors():
            queues.call_back(self.celery, endpoint, members)

    def call_back(self, endpoint: str, members: Sequence[str]) -> int:
        """Begin callbacks, from a task's thread, without waiting for them; return how many.

        Those that do not fit in are due again in the records.
        """

        async def begin() -> int:
            return self._sender.accept(endpoint, members)

        return self.run(begin())

    def _nudge(self, refund_ids: Sequence[str], lane: Lane) -> None:
        with self._broker_errors():
            queues.nudge(self.celery, refund_ids, lane)

    def _depth(self, lane: Lane) -> int:
        with self._broker_errors():
            return queues.queue_depth(self.celery, lane)

    @contextmanager
    def _broker_errors(self) -> Iterator[None]:
        """Turn publish errors into `StoreUnavailable`, one sentence.

        Celery logs its own and retries by itself.
        """
        try:
            yield
        except queues.PUBLISH_ERRORS as error:
            where = address_of(self.settings.broker)
            wrong, remedy = queues.trouble(error)
            raise StoreUnavailable(f"the broker at {where} {wrong}: {remedy}") from error

    async def _beat(self) -> None:
        supervisor = os.environ.get(SUPERVISOR_VARIABLE)
        if supervisor and os.getppid() != int(supervisor) and not self.service.stopping:
            log.warning("supervisor_gone")
            os.kill(os.getpid(), signal.SIGTERM)
        self.intake.resume()
        await self.store.beat(self.name)
        # After the beat in Redis: the file is fresh only while the loop turns and the records can
        # be reached. Before the counters, which a full server does not take.
        self._heartbeat.beat()
        await self._tell()

    async def _tell(self) -> None:
        """Add this worker's counters to those in Redis."""
        self._counters.gate_waited(self.service.gate.waited_seconds)
        await self._counters.flush(
            self.store, worker=self.name, provider_away=self.service.breaker.is_open
        )

    async def _probe(self) -> None:
        await self.service.trouble.probe_credentials()
        await self.service.account.probe()

    def _keep_rejected(self, kept: RejectedMessage) -> bool:
        named = {"refund_id": kept.refund_ids[0]} if kept.refund_ids else {}
        log.error(
            "message_rejected", entry_id=kept.entry_id, reason=kept.reason, alarm=True, **named
        )
        try:
            self.run(self.store.run(rejected.keep(kept)))
        except Exception as error:  # noqa: BLE001 - whatever is in the way, the message must stay where it was
            reason = str(error) if isinstance(error, RefundError) else type(error).__name__
            log.error("message_not_kept", entry_id=kept.entry_id, error=reason)  # noqa: TRY400 - one sentence, no traceback
            return False
        return True

    def process(self, refund_ids: Sequence[str], lane: Lane) -> Mapping[str, Ending]:
        """Handle the refunds of one message, from a task's thread; return the ending of each."""
        if self.service.guard.refuses():
            # Every message is given back now; without a pause the queue would be emptied at full
            # speed.
            self.pause()
        ended = self.run(self.service.process(refund_ids, lane, seconds=TASK_SECONDS))
        return dict(zip(refund_ids, ended, strict=True))

    def begin(self, refund_ids: Sequence[str], lane: Lane, done: Done) -> None:
        """Begin to handle the refunds of one message, from Celery's thread, without waiting.

        The loop calls `done` with a summary of their endings, or with an error.
        """
        self._begun.append((refund_ids, lane, done))
        if not self._is_called:
            # One call for all messages that Celery reads at once: it interrupts the loop.
            self._is_called = True
            self._loop.call_soon_threadsafe(self._take_up)

    def _take_up(self) -> None:
        # First, so that a message which is added meanwhile is not forgotten.
        self._is_called = False
        while self._begun:
            task = self._loop.create_task(self._handle(*self._begun.popleft()))
            self._in_hand.add(task)
            task.add_done_callback(self._in_hand.discard)

    async def _handle(self, refund_ids: Sequence[str], lane: Lane, done: Done) -> None:
        try:
            if self.service.guard.refuses() and not self.service.stopping:
                # As in `process`.
                await asyncio.sleep(AGAIN_SECONDS)
            ended = await self.service.process(refund_ids, lane, seconds=TASK_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is concerns this message only
            done(error)
        else:
            done(endings.summary(dict(zip(refund_ids, ended, strict=True))))

    def received(self, consumer: Any, request: Any) -> None:
        """Note a message that Celery has read."""
        self.intake.received(consumer, request)

    def finished(self, message_id: str) -> None:
        """Note a message that is over, whatever became of it."""
        self.intake.finished(message_id)

    def submit(self, request: RefundRequest, lane: Lane) -> Ending:
        """Accept a refund and handle it, from a task's thread.

        Return its ending, or `endings.CONFLICT`.
        """
        created = self.run(self._create(request, lane))
        if created == "conflict":
            return endings.CONFLICT
        try:
            ending = self.process([request.refund_id], lane)[request.refund_id]
        except Exception as error:
            # It is accepted, so its message must not be rejected. A sweep finds it.
            log.exception("refund_handling_failed", refund_id=request.refund_id, alarm=True)
            ending = endings.broken(error)
        if created == "created":
            # After the handling, so that the refund is not delayed by the check.
            self._backlog.look(lane, lambda: self._backlog_of(lane))
        return ending

    def send_again(self, request: RefundRequest, fields: Mapping[str, Any], lane: Lane) -> bool:
        """Send a message that could not be accepted to the end of its queue.

        Return whether it went there.

        It pauses first, and the pause blocks the thread: a server may be full for hours.
        """
        if self.service.stopping:
            return False
        self.pause()
        try:
            queues.submit_again(self.celery, request.refund_id, fields, lane)
        except queues.PUBLISH_ERRORS:
            return False
        return True

    def pause(self) -> None:
        """Block a task's thread before its message is requeued, unless the worker is stopping."""
        if not self.service.stopping:
            time.sleep(AGAIN_SECONDS)

    def _backlog_of(self, lane: Lane) -> int:
        """Return the number of waiting refunds.

        By records or by messages, whichever number is higher.
        """
        return max(self.run(self.store.backlog(lane)), self._depth(lane))

    async def _create(self, request: RefundRequest, lane: Lane) -> str:
        until = self._loop.time() + TASK_SECONDS
        while True:
            self.service.guard.require()
            try:
                return (await self.store.run(creations.create(request, lane))).result
            except REFUSALS as error:
                self.service.guard.refused(error)
                raise
            except StoreFull:
                # The condition may last for hours, and threads are needed to finish accepted
                # refunds.
                raise
            except StoreUnavailable:
                if self._loop.time() >= until or self.service.stopping:
                    raise
                await asyncio.sleep(0.5)

    def stop_claiming(self) -> None:
        """Start no more refunds; those in flight continue. Safe to call from a signal handler."""
        service = getattr(self, "service", None)
        if service is not None:
            self._loop.call_soon_threadsafe(service.stop)

    def stop(self) -> None:
        """Finish the background work, close the clients and end the loop."""
        if self._thread.is_alive():
            self.run(self._close())
            self._end_loop()

    async def _close(self) -> None:
        self.service.stop()
        self._closing = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        while self._in_hand:
            await asyncio.wait(self._in_hand)
        await asyncio.gather(self.service.drain(), self._sender.close())
        try:
            await self._tell()
            await self.store.leave(self.name)
        except StoreUnavailable as error:
            log.warning("worker_left_unnoticed", error=str(error))
        await self._client.aclose()
        await self.store.close()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
