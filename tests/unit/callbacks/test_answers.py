"""What follows from what a receiver answers to a callback, and what is logged of it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
import structlog
from aiohttp import web

from tests.factories import HOUR, SECOND
from tests.support.callback_desk import (
    CANARY,
    SECRET,
    receiving,
    settle,
    working,
)
from tests.support.store_world import ID
from worker.model.redaction import remember_key
from worker.model.times import to_ms


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
