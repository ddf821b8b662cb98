"""Callbacks from the records to a receiver at a real socket: what arrives, and what follows."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
import structlog
from aiohttp import web
from standardwebhooks import Webhook

from tests.factories import BLIND, HOUR, MAYBE, REFUSED, SECOND, done_as, found
from tests.support.store_world import ID, World, at_stage
from tests.unit.callbacks import test_posting
from worker.batches.opening import close_batch, open_batch
from worker.callbacks.delivery import (
    END_SECONDS,
    MOST_HELD,
    MOST_TAKEN,
    MOST_TAKEN_BUSY,
    PER_MESSAGE,
    ROUNDS,
    SPARE,
    TAKEN_PER_SLOT,
    Sender,
)
from worker.callbacks.endpoints import Endpoint
from worker.callbacks.pace import Pace
from worker.callbacks.signing import secret_bytes
from worker.errors import StoreUnavailable
from worker.model.redaction import remember_key
from worker.model.refund import Stage
from worker.model.times import to_ms
from worker.rules.decisions import retry_failed
from worker.rules.rechecks import changed_by_provider
from worker.store import callbacks, meta
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
CANARY = "canary-ann@example.com"


class Receiver:
    """A shop's endpoint: keeps what arrives, and answers as told, 200 unless told otherwise."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.raw: list[tuple[bytes, dict[str, str]]] = []
        self.answers: list[Callable[[web.Request], Awaitable[web.StreamResponse]] | int] = []
        self.port = 0
        self._arrived = asyncio.Event()

    async def until(self, count: int) -> None:
        """Return once so many requests have arrived."""
        async with asyncio.timeout(20):
            while len(self.bodies) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        # The independent verifier accepts every body, by its own clock.
        Webhook(SECRET).verify(body, dict(request.headers))
        self.raw.append((body, {name.lower(): value for name, value in request.headers.items()}))
        self.bodies.append(json.loads(body))
        self.ids.append(request.headers["webhook-id"])
        self._arrived.set()
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, int):
            return web.Response(status=answer, text=f"said {answer}")
        return await answer(request)

    def endpoint(self, name: str = "shop", **fields: Any) -> Endpoint:
        key = secret_bytes(SECRET)
        assert key is not None
        usual: dict[str, Any] = {"keys": (key,), "timeout_seconds": 5, "allow_private": True}
        url = f"http://127.0.0.1:{self.port}/{name}"
        return Endpoint(name=name, url=url, **(usual | fields))


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", receiver.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()


class Losing(AsyncStore):
    """A store that loses the next ends of tries, as a crash between POST and note does.

    It counts the scripts that share out. `after` is called after each end that was noted.
    """

    lost = 0
    outboxes = 0
    after: Callable[[], object] | None = None

    async def run(self, command: Command[Any]) -> Any:
        self.outboxes += command.script is callbacks.OUTBOX
        if command.script is callbacks.DELIVERED and self.lost:
            self.lost -= 1
            raise StoreUnavailable("it went away")
        reply = await super().run(command)
        if command.script is callbacks.DELIVERED and self.after is not None:
            self.after()
        return reply


class Desk:
    """Records with callbacks switched on, and the sender of one worker."""

    def __init__(self) -> None:
        server = fakeredis.FakeServer()
        self.world = World(fakeredis.FakeRedis(server=server, decode_responses=True))
        self.store = Losing(
            fakeredis.FakeAsyncRedis(server=server, decode_responses=True), durable=False
        )
        self.world.store.run(meta.flag("callbacks", once=True))
        self.sender: Sender

    async def sweep(self) -> dict[str, list[str]]:
        """Hand what is due to the sender, as a message does."""
        self.store.now = self.world.now
        sent: dict[str, list[str]] = {}

        def nudge(name: str, members: Sequence[str]) -> None:
            sent.setdefault(name, []).extend(members)

        await self.sender.sweep(nudge)
        for name, members in sent.items():
            self.sender.accept(name, members)
        return sent

    def note(self, count: int) -> None:
        """Let so many refunds wait to be shared out."""
        self.store.now = self.world.now
        waiting = {f"r{number}": to_ms(self.world.now) for number in range(count)}
        self.world.redis.zadd("refunds:callbacks", waiting)

    async def deliver(self) -> dict[str, list[str]]:
        sent = await self.sweep()
        await self.sender.idle()
        return sent

    def log(self, name: str = "shop") -> list[dict[str, str]]:
        entries: Any = self.world.redis.xrange(f"refunds:callback-log:{name}")
        return [fields for _, fields in entries]


@asynccontextmanager
async def working(*endpoints: Endpoint, pace: Pace | None = None) -> AsyncIterator[Desk]:
    desk = Desk()
    desk.sender = Sender(endpoints, desk.store, worker="w1", pace=pace, chance=lambda: 0.5)
    try:
        yield desk
    finally:
        await desk.sender.close()
        await desk.store.close()
        desk.world.redis.close()


def settle(desk: Desk, refund_id: str = ID, **fields: Any) -> None:
    at_stage(desk.world, Stage.SETTLED, refund_id, payment_intent=f"pi_{refund_id}", **fields)


def fail_at_provider(desk: Desk) -> None:
    refund = desk.world.get()
    shown = found(id=f"re_{ID}", payment_intent=refund.payment_intent, status="failed")
    step = changed_by_provider(refund, shown, "list", desk.world.now)
    assert step is not None
    desk.world.save(desk.world.get(), step)


async def test_settled_refund_arrives_signed_with_the_contracts_fields() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk, metadata={"order": "7"})
        await desk.deliver()
        (body,) = shop.bodies
        refund = desk.world.get()
        assert body["type"] == "refund.succeeded"
        assert body["data"] == refund.as_dict() | {"previous_status": "pending"}
        assert body["timestamp"] == refund.as_dict()["updated_at"]
        raw, headers = shop.raw[0]
        assert headers["content-type"] == "application/json"
        assert "cookie" not in headers
        assert raw.decode() == json.dumps(body, separators=(",", ":"))
        assert headers["webhook-id"].startswith("msg_")
        assert desk.world.keys("callbacks*") == []


@pytest.mark.parametrize("event", ["refund.failed", "refund.in_review", "refund.reversed"])
async def test_event_names_the_state_of_the_refund(event: str) -> None:
    async with receiving() as shop, working(shop.endpoint(metadata=False)) as desk:
        if event == "refund.failed":
            desk.world.accept()
            desk.world.attempt(REFUSED)
        elif event == "refund.in_review":
            desk.world.accept()
            desk.world.attempt(MAYBE, rules=BLIND)
        else:
            settle(desk)
            fail_at_provider(desk)
        await desk.deliver()
        (body,) = shop.bodies
        assert body["type"] == event
        assert "metadata" not in body["data"]
        assert body["data"]["previous_status"] == (
            "succeeded" if event == "refund.reversed" else "pending"
        )


async def test_finished_batch_arrives_with_its_counts() -> None:
    async with (
        receiving() as shop,
        working(shop.endpoint(events=frozenset({"batch.finished"}))) as desk,
    ):
        open_batch(desk.world.store, "b-1", file="season.csv", digest="d1", rows=1)
        desk.world.accept("r1", batch="b-1")
        close_batch(desk.world.store, "b-1", handed_in=1, conflicting=0)
        desk.world.attempt(REFUSED, "r1")
        await desk.deliver()
        (body,) = shop.bodies
        assert body["type"] == "batch.finished"
        assert (body["data"]["batch_id"], body["data"]["version"]) == ("b-1", 1)
        assert body["data"]["statuses"] == {"failed": 1}
        assert desk.world.keys("callbacks*") == []


async def test_event_that_is_not_wanted_is_not_sent_and_is_over() -> None:
    async with (
        receiving() as shop,
        working(shop.endpoint(events=frozenset({"refund.failed"}))) as desk,
    ):
        settle(desk)
        await desk.deliver()
        assert shop.bodies == []
        assert desk.world.keys("callbacks*") == []
        fail_at_provider(desk)
        await desk.deliver()
        assert shop.bodies == []


async def test_record_that_has_expired_is_not_reported_and_is_over() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.world.redis.delete(f"refunds:refund:{ID}")
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
        assert (shop.bodies, logs) == ([], [])
        assert desk.world.keys("callbacks*") == []


async def test_refund_and_batch_under_way_again_are_reported_only_once_they_end() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        open_batch(desk.world.store, "b-1", file="season.csv", digest="d1", rows=1)
        desk.world.accept(batch="b-1")
        close_batch(desk.world.store, "b-1", handed_in=1, conflicting=0)
        desk.world.attempt(done_as("failed", id="re_1"))
        again = retry_failed(desk.world.get())
        assert again is not None
        desk.world.save(desk.world.get(), again)
        assert sorted((await desk.deliver())["shop"]) == ["batch/b-1", ID]
        assert shop.bodies == []
        assert desk.world.keys("callbacks*") == []
        desk.world.attempt(done_as("succeeded", id="re_2"))
        await desk.deliver()
        assert sorted(body["type"] for body in shop.bodies) == [
            "batch.finished",
            "refund.succeeded",
        ]


async def test_crash_between_the_post_and_its_note_sends_again_with_the_same_id() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.store.lost = 1
        await desk.deliver()
        assert await desk.deliver() == {}
        desk.world.pass_time(5 * SECOND + SPARE)
        await desk.deliver()
        assert len(shop.ids) == 2
        assert shop.ids[0] == shop.ids[1]
        assert shop.raw[0][0] == shop.raw[1][0]
        assert desk.world.keys("callbacks*") == []


async def test_later_version_has_another_id_and_a_higher_version() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        await desk.deliver()
        fail_at_provider(desk)
        await desk.deliver()
        assert shop.ids[0] != shop.ids[1]
        versions = [body["data"]["version"] for body in shop.bodies]
        assert versions == sorted(set(versions))


async def test_try_is_held_until_its_answer_may_no_longer_come() -> None:
    async with receiving() as shop, working(shop.endpoint(timeout_seconds=7)) as desk:
        settle(desk)
        desk.store.lost = 1
        await desk.deliver()
        assert desk.world.score("callbacks:shop", ID) == desk.world.now + 7 * SECOND + SPARE


@pytest.mark.parametrize(("late", "sent"), [(timedelta(0), 1), (timedelta(milliseconds=1), 0)])
async def test_request_begins_in_its_lease_only_if_its_answer_comes_in_it_too(
    monkeypatch: pytest.MonkeyPatch, late: timedelta, sent: int
) -> None:
    moments = iter((0.0, (SPARE + late).total_seconds()))
    clock = SimpleNamespace(monotonic=lambda: next(moments), time=time.time)
    monkeypatch.setattr("worker.callbacks.delivery.time", clock)
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        await desk.deliver()
        assert len(shop.bodies) == sent
        assert (desk.world.score("callbacks:shop", ID) is None) is bool(sent)


async def test_try_of_another_worker_is_left_alone() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.world.store.run(callbacks.outbox([callbacks.Wanted(name="shop", ids="", most=1)]))
        # The only one that is sent to an endpoint that keeps failing.
        desk.world.redis.hset(
            "refunds:callback-endpoint:shop",
            mapping={"failures": callbacks.OPEN_FROM, "probe": ID, "probe_at": 1},
        )
        taken = callbacks.take("shop", ID, token="other", lease=HOUR)
        assert desk.world.store.run(taken).result == "taken"
        before = desk.world.hash("callback-endpoint:shop")
        desk.store.now = desk.world.now
        desk.sender.accept("shop", [ID])
        await desk.sender.idle()
        assert shop.bodies == []
        assert desk.world.hash("callback-endpoint:shop") == before


async def test_refund_whose_record_has_expired_is_over() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.world.redis.delete(f"refunds:refund:{ID}")
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
        assert (shop.bodies, logs) == ([], [])
        assert desk.world.keys("callbacks*") == []


async def test_endpoint_without_work_hides_no_other_that_is_at_work() -> None:
    async with receiving() as shop:
        idle_one = shop.endpoint("idle", ids="other-")
        async with working(shop.endpoint(), idle_one) as desk:
            settle(desk)
            await desk.deliver()
            assert len(shop.bodies) == 1
            assert desk.world.keys("callbacks:shop") == []


async def test_slow_shop_delays_no_other() -> None:
    freed = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await freed.wait()
        return web.Response()

    async with receiving() as stuck, receiving() as quick:
        stuck.answers = [slow] * 30
        stuck_at, quick_at = stuck.endpoint("stuck", in_flight=2), quick.endpoint("quick")
        async with working(stuck_at, quick_at) as desk:
            for number in range(30):
                settle(desk, f"r{number}")
            await desk.sweep()
            await quick.until(30)
            await stuck.until(2)
            # Two slots, and no more than two requests.
            assert len(stuck.bodies) == 2
            freed.set()
            await desk.sender.idle()
            assert len(stuck.bodies) == 30


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 500, 503])
async def test_any_answer_but_success_is_a_failure_and_no_redirect_is_followed(status: int) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "/elsewhere"}, text="no")

    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [answer]
        settle(desk)
        await desk.deliver()
        assert len(shop.bodies) == 1
        (entry,) = desk.log()
        assert (entry["status"], entry["result"], entry["reply"]) == (str(status), "failed", "no")
        desk.world.pass_time(5 * SECOND)
        await desk.deliver()
        assert len(shop.bodies) == 2
        assert desk.world.keys("callbacks:*") == []


async def test_receiver_may_ask_for_more_time() -> None:
    async def later(_request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "120"})

    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [later]
        settle(desk)
        await desk.deliver()
        assert desk.world.score("callbacks:shop", ID) == desk.world.now + 120 * SECOND


async def test_answer_410_pauses_the_endpoint_with_an_alarm_and_keeps_everything() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [410]
        settle(desk)
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
        assert [(entry["event"], entry["alarm"]) for entry in logs if "alarm" in entry] == [
            ("callbacks_refused", True)
        ]
        desk.world.pass_time(HOUR)
        assert await desk.deliver() == {}
        assert desk.world.score("callbacks:shop", ID) is not None


async def test_log_holds_what_became_of_each_try(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((100.0, 101.5, 200.0, 200.25))
    clock = SimpleNamespace(monotonic=lambda: next(moments))
    monkeypatch.setattr("worker.callbacks.posting.time", clock)
    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [500, 200]
        settle(desk)
        began = desk.world.now
        for _ in range(2):
            await desk.deliver()
            desk.world.pass_time(5 * SECOND)
        usual = {
            "member": ID,
            "event": "refund.succeeded",
            "version": str(desk.world.get().version),
            "webhook_id": shop.ids[0],
            "error": "",
            "worker": "w1",
        }
        failed = {"at": str(to_ms(began)), "try": "1", "result": "failed", "status": "500"}
        failed |= {"ms": "1500", "reply": "said 500"}
        done = {"at": str(to_ms(began + 5 * SECOND)), "try": "2", "result": "delivered"}
        done |= {"status": "200", "ms": "250", "reply": "said 200"}
        assert desk.log() == [usual | failed, usual | done]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (200, {"event": "callback_delivered", "log_level": "debug", "status": 200}),
        (500, {"event": "callback_failed", "log_level": "warning", "status": 500}),
        (410, {"event": "callbacks_refused", "log_level": "error", "status": 410, "alarm": True}),
        (
            None,
            {
                "event": "callback_failed",
                "log_level": "warning",
                "error": "the connection ended before an answer",
            },
        ),
    ],
)
async def test_worker_logs_what_became_of_a_try(
    answer: int | None, told: dict[str, object]
) -> None:
    async def abort(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        raise asyncio.CancelledError

    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [abort if answer is None else answer]
        settle(desk)
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
    usual = {"endpoint": "shop", "member": ID, "status": None, "error": None}
    assert logs == [usual | told]


@pytest.mark.parametrize("how", ["reset", "hang", "half", "garbage"])
async def test_connection_that_fails_is_a_failure_and_is_repeated(how: str) -> None:
    async def odd(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        if how == "hang":
            await asyncio.sleep(60)
        elif how == "half":
            transport.write(b"HTTP/1.1 20")
        elif how == "garbage":
            transport.write(b"\x00\xff no http \r\n\r\n")
        transport.abort() if how == "reset" else transport.close()
        raise asyncio.CancelledError

    async with receiving() as shop, working(shop.endpoint(timeout_seconds=1)) as desk:
        shop.answers = [odd]
        settle(desk)
        await desk.deliver()
        (entry,) = desk.log()
        assert (entry["result"], entry["status"]) == ("failed", "")
        assert entry["error"]
        desk.world.pass_time(5 * SECOND)
        await desk.deliver()
        assert len(shop.bodies) == 2


async def test_endless_reply_is_read_up_to_a_kibibyte_and_counts_by_its_status() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [endless]
        settle(desk)
        await desk.deliver()
        (entry,) = desk.log()
        assert (entry["result"], len(entry["reply"])) == ("delivered", 1024)


async def test_no_secret_and_no_body_is_in_the_logs() -> None:
    remember_key(SECRET)

    async def telltale(_request: web.Request) -> web.Response:
        return web.Response(status=500, text=f"your secret is {SECRET}")

    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [telltale]
        settle(desk, metadata={"mail": CANARY})
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
            desk.world.pass_time(5 * SECOND)
            await desk.deliver()
        assert {entry["event"] for entry in logs} == {"callback_failed", "callback_delivered"}
        told = json.dumps(logs) + json.dumps(desk.log())
        assert SECRET.removeprefix("whsec_") not in told
        assert CANARY not in told
        assert shop.bodies[-1]["data"]["metadata"] == {"mail": CANARY}


async def test_last_failure_is_a_dead_letter_with_an_alarm() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        shop.answers = [500] * 20
        settle(desk)
        alarms = []
        with structlog.testing.capture_logs() as logs:
            for _ in range(12):
                await desk.deliver()
                desk.world.pass_time(30 * HOUR)
        alarms = [entry["event"] for entry in logs if entry.get("alarm")]
        assert alarms == ["callback_dead"]
        assert len(shop.bodies) == 12
        assert len(set(shop.ids)) == 1
        assert desk.world.score("callback-dead:shop", ID) is not None
        assert await desk.deliver() == {}


async def test_more_than_fits_in_waits_in_the_records() -> None:
    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        members = [f"r{number}" for number in range(MOST_HELD + 5)]
        assert desk.sender.accept("shop", members) == MOST_HELD
        assert desk.sender.accept("nobody", members) == 0
        assert shop.bodies == []


async def test_member_that_is_held_is_not_accepted_again() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        assert desk.sender.accept("shop", [ID, ID]) == 1
        assert desk.sender.accept("shop", [ID]) == 0


async def test_full_slots_begin_no_more() -> None:
    async with receiving() as shop, working(shop.endpoint(in_flight=2)) as desk:
        desk.sender.accept("shop", ["r1", "r2"])
        begun = asyncio.all_tasks()
        assert desk.sender.accept("shop", ["r3"]) == 1
        assert asyncio.all_tasks() == begun


async def test_slot_is_free_from_the_moment_its_last_try_ends() -> None:
    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        for refund_id in ("r1", "r2"):
            settle(desk, refund_id)

        def accept_next() -> None:
            desk.store.after = None
            # The try before it ends first, but the loop has not yet told anybody.
            asyncio.get_running_loop().call_soon(desk.sender.accept, "shop", ["r2"])

        desk.store.after = accept_next
        desk.store.now = desk.world.now
        wanted = [callbacks.Wanted(name="shop", ids="", most=2)]
        assert len(desk.world.store.run(callbacks.outbox(wanted)).due["shop"]) == 2
        desk.sender.accept("shop", ["r1"])
        await shop.until(2)


async def test_worker_takes_no_more_than_it_begins_soon() -> None:
    freed = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await freed.wait()
        return web.Response()

    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        shop.answers = [slow] * (2 * TAKEN_PER_SLOT)
        for number in range(TAKEN_PER_SLOT + 3):
            settle(desk, f"r{number}")
        assert len((await desk.sweep())["shop"]) == TAKEN_PER_SLOT
        await shop.until(1)
        # One is in flight, so there is room for one.
        assert len((await desk.sweep())["shop"]) == 1
        assert await desk.sweep() == {}
        freed.set()
        await desk.sender.idle()
        await desk.deliver()
        assert len(shop.bodies) == TAKEN_PER_SLOT + 3


async def test_sweep_shares_out_all_that_waits_and_takes_what_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callbacks, "SHARED_OUT", 5)
    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        monkeypatch.setattr("worker.callbacks.delivery.TAKEN_PER_SLOT", 4)
        desk.note(11)
        assert await desk.sender.sweep(lambda *_: None) == 4
        # Two full shares and the rest, each in a script of its own.
        assert desk.store.outboxes == 3
        assert desk.world.keys("callbacks") == []
        is_due = desk.world.redis.zcount("refunds:callbacks:shop", 0, to_ms(desk.world.now))
        assert is_due == 11 - 4
        assert await desk.sender.sweep(lambda *_: None) == 4
        assert desk.store.outboxes == 4


async def test_worker_that_refunds_keep_busy_takes_few_callbacks() -> None:
    clock = [100.0]
    # Refunds are in flight, and the whole processor is in use.
    pace = Pace(lambda: True, used=lambda: clock[0], clock=lambda: clock[0])
    async with receiving() as shop, working(shop.endpoint(), pace=pace) as desk:
        desk.note(MOST_TAKEN_BUSY + 5)
        clock[0] += 1
        assert await desk.sender.sweep(lambda *_: None) == MOST_TAKEN_BUSY


async def test_each_callback_waits_for_its_turn() -> None:
    events: list[str] = []

    class Turns(Pace):
        async def turn(self) -> None:
            await asyncio.sleep(0)
            events.append("turn")

    async with receiving() as shop, working(shop.endpoint(in_flight=1), pace=Turns()) as desk:

        async def note(_request: web.Request) -> web.Response:
            events.append("arrived")
            return web.Response()

        shop.answers = [note, note]
        for refund_id in ("r1", "r2"):
            settle(desk, refund_id)
        await desk.deliver()
        assert events == ["turn", "arrived"] * 2


async def test_turn_that_comes_when_nothing_waits_any_more_ends_in_peace() -> None:
    class Turns(Pace):
        async def turn(self) -> None:
            await asyncio.sleep(0)

    async with receiving() as shop, working(shop.endpoint(in_flight=3), pace=Turns()) as desk:
        settle(desk)
        before = asyncio.all_tasks()
        await desk.sweep()
        begun = asyncio.all_tasks() - before
        await desk.sender.idle()
        assert len(shop.bodies) == 1
        slots = [task for task in begun if task.done()]
        assert [task.exception() for task in slots] == [None] * 3


async def test_end_lets_requests_in_flight_end_and_begins_no_more() -> None:
    arrived, freed = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        arrived.set()
        await freed.wait()
        return web.Response()

    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        shop.answers = [slow]
        for refund_id in ("r1", "r2"):
            settle(desk, refund_id)
        await desk.sweep()
        await arrived.wait()
        closing = asyncio.create_task(desk.sender.close())
        await asyncio.sleep(0)
        freed.set()
        await closing
        assert len(shop.bodies) == 1
        assert desk.sender.accept("shop", ["r2"]) == 0
        assert desk.sender.accept("shop", ["r3"]) == 0
        assert desk.world.score("callbacks:shop", "r1") is None
        assert desk.world.score("callbacks:shop", "r2") is not None


async def test_end_drops_a_request_that_is_late_and_it_is_due_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.callbacks.delivery.END_SECONDS", 0)
    freed = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await freed.wait()
        return web.Response()

    async with receiving() as shop, working(shop.endpoint(timeout_seconds=30)) as desk:
        shop.answers = [slow]
        settle(desk)
        await desk.sweep()
        await shop.until(1)
        async with asyncio.timeout(20):
            await desk.sender.close()
        freed.set()
        assert desk.log() == []
        assert desk.world.score("callbacks:shop", ID) == desk.world.now + 30 * SECOND + SPARE


async def test_end_leaves_nothing_that_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.callbacks.delivery.END_SECONDS", 0)
    waits = asyncio.Event()

    class Never(Pace):
        async def turn(self) -> None:
            waits.set()
            await asyncio.Event().wait()

    async with receiving() as shop, working(shop.endpoint(), pace=Never()) as desk:
        desk.sender.accept("shop", [ID])
        await waits.wait()
        await desk.sender.close()
        # There is nothing to wait for: it returns without a turn of the loop.
        with pytest.raises(StopIteration):
            desk.sender.idle().send(None)


async def test_end_closes_the_connections() -> None:
    async with test_posting.receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        await desk.deliver()
        assert shop.connections == 1
        async with asyncio.timeout(test_posting.SOON):
            await desk.sender.close()
            await shop.ended.acquire()


async def test_record_that_cannot_be_read_alarms_and_stays_due() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.world.redis.hset(f"refunds:refund:{ID}", "stage", "nonsense")
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
        assert [entry["event"] for entry in logs] == ["callback_not_readable"]
        assert shop.bodies == []
        assert desk.world.score("callbacks:shop", ID) is not None


def test_limits_of_a_sender_are_those_that_are_documented() -> None:
    assert (TAKEN_PER_SLOT, MOST_TAKEN, MOST_TAKEN_BUSY, MOST_HELD) == (60, 500, 20, 10_000)
    assert (SPARE, PER_MESSAGE, ROUNDS, END_SECONDS) == (15 * SECOND, 50, 20, 5)
