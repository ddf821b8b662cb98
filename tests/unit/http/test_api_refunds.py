"""Refunds over the HTTP API: read, waited for, listed, with their moves and the audit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.api_door import PAYMENT, Door
from worker.model.times import to_ms
from worker.store import audit

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_a_record_has_its_version_as_etag_and_is_not_sent_twice(api: Door) -> None:
    api.records.queued("order-1")
    first = await api.get("/v1/refunds/order-1")
    assert (first.status, first.json["stage"]) == (200, "queued")
    for held in ('"1"', 'W/"1"', '"7", "1"'):
        same = await api.get("/v1/refunds/order-1", If_None_Match=held)
        assert (same.status, same.headers["ETag"], same.body) == (304, '"1"', b"")
    api.records.claimed("order-1")
    now = await api.get("/v1/refunds/order-1", If_None_Match='"1"')
    assert (now.status, now.headers["ETag"], now.json["stage"]) == (200, '"2"', "sending")


async def test_a_version_that_a_restored_server_may_have_counted_again_is_sent(api: Door) -> None:
    api.records.queued("order-0")
    moved = to_ms(api.records.queued("order-1").updated_at)
    await api.store.redis.hset("refunds:refund:order-0", "updated_at", str(moved - 2))
    await api.store.redis.hset("refunds:meta", "suspect_since", str(moved - 1))
    kept = await api.get("/v1/refunds/order-0", If_None_Match='"1"')
    again = await api.get("/v1/refunds/order-1", If_None_Match='"1"')
    assert (kept.status, again.status, again.json["stage"]) == (304, 200, "queued")
    # Also one that moved in the same millisecond.
    await api.store.redis.hset("refunds:meta", "suspect_since", str(moved))
    assert (await api.get("/v1/refunds/order-1", If_None_Match='"1"')).status == 200


@pytest.mark.parametrize("name", ["absent", "a%2Fb", "a b", "x" * 201, "%00", "é"])
async def test_an_unknown_refund_is_404(api: Door, name: str) -> None:
    for path in ("", "/history"):
        assert (await api.get(f"/v1/refunds/{name}{path}")).code == "not_found"
    for path in ("cancel", "retry", "recheck", "look"):
        assert (await api.post(f"/v1/refunds/{name}/{path}")).code == "not_found"
    decision = {"decision": "resend", "note": "seen", "version": 1}
    assert (await api.post(f"/v1/refunds/{name}/resolve", decision)).code == "not_found"


async def test_what_cannot_be_an_id_is_not_repeated_in_the_answer(api: Door) -> None:
    got = await api.get("/v1/refunds/a%2Fb")
    assert got.json["detail"] == (
        "No refund with this id was accepted here, or this token does not see it."
    )


async def test_a_member_where_none_is_allowed_is_named_with_that(api: Door) -> None:
    await api.create("order-1")
    for path in ("cancel", "recheck", "look"):
        got = await api.post(f"/v1/refunds/order-1/{path}", {"why": "x"})
        assert got.json["detail"] == "why: is not a field here; allowed are none"


async def test_a_wait_ends_when_the_refund_is_settled(api: Door) -> None:
    await api.create("order-1")
    wait = asyncio.create_task(api.get("/v1/refunds/order-1?wait=20"))
    body = {"refund_id": "order-2", "payment_intent": PAYMENT, "amount": 500}
    both = asyncio.create_task(api.post("/v1/refunds?wait=20", body))
    await api.waiting(2)
    begun = time.monotonic()
    await asyncio.to_thread(api.refunds.cancel, "order-1")
    await asyncio.to_thread(api.refunds.cancel, "order-2")
    got, created = await wait, await both
    assert (got.status, got.json["status"]) == (200, "canceled")
    assert (created.status, created.json["status"]) == (200, "canceled")
    assert time.monotonic() - begun < 3


async def test_a_wait_ends_with_its_time_and_with_the_server(api: Door) -> None:
    await api.create("order-1")
    begun = time.monotonic()
    got = await api.get("/v1/refunds/order-1?wait=0.3")
    assert (got.status, got.json["status"]) == (200, "pending")
    assert 0.25 < time.monotonic() - begun < 5
    wait = asyncio.create_task(api.get("/v1/refunds/order-1?wait=30"))
    await api.waiting(1)
    api.part.end()
    assert (await wait).json["status"] == "pending"
    assert time.monotonic() - begun < 10


async def test_a_wait_whose_client_has_gone_ends(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.part.context.waiters, "_poll_seconds", 0.05)
    await api.create("order-1")
    _, writer = await api.raw(
        f"GET /v1/refunds/order-1?wait=60 HTTP/1.1\r\nHost: door\r\nAuthorization: Bearer"
        f" {api.token}\r\n\r\n".encode()
    )
    await api.waiting(1)
    writer.transport.abort()
    async with asyncio.timeout(10):
        for _ in range(1000):
            if not api.part.context.waiters.count:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/refunds/order-1?wait=61",
        "/v1/refunds/order-1?wait=-1",
        "/v1/refunds/order-1?wait=nan",
        "/v1/refunds/order-1?wait=1&wait=1",
        "/v1/refunds/order-1?wiat=1",
        "/v1/refunds?status=done",
        "/v1/refunds?stage=",
        "/v1/refunds?limit=0",
        "/v1/refunds?limit=501",
        "/v1/refunds?reversed=1",
        "/v1/refunds?payment_intent=pi%201",
        "/v1/refunds?batch=b%201",
        "/v1/refunds/order-1/history?limit=1",
        "/v1/refunds?after=x",
        "/v1/refunds?after=dTEuw6k",
        "/v1/events?after=1",
        "/v1/events?after=18446744073709551615-18446744073709551615",
        "/v1/events?limit=1001",
    ],
)
async def test_a_wrong_parameter_is_named(api: Door, path: str) -> None:
    await api.create("order-1")
    got = await api.get(path)
    assert (got.status, got.code, len(got.json["errors"])) == (422, "invalid_request", 1)


async def listed(api: Door, query: str = "") -> list[list[str]]:
    """Return the ids of every page."""
    pages, after = [], ""
    while True:
        got = (await api.get(f"/v1/refunds?{query}{after}")).json
        pages.append([refund["refund_id"] for refund in got["data"]])
        if got["next"] is None:
            return pages
        after = f"&after={got['next']}"


async def test_a_page_holds_a_hundred_refunds_unless_told_otherwise(api: Door) -> None:
    for number in range(101):
        api.records.queued(f"q-{number}")
    assert [len(page) for page in await listed(api)] == [100, 1]


async def test_pages_show_every_refund_once_and_end(api: Door) -> None:
    for number in range(5):
        api.records.queued(f"q-{number}")
    for number in range(3):
        api.records.succeeded(f"s-{number}", f"re_{number}", payment_intent=f"pi_{number}")
    for size in (1, 2, 3, 8, 100):
        pages = await listed(api, f"limit={size}")
        ids = [refund_id for page in pages for refund_id in page]
        assert ids == ["q-0", "q-1", "q-2", "q-3", "q-4", "s-2", "s-1", "s-0"]
        assert all(len(page) <= size for page in pages)
    assert await listed(api, "status=succeeded&limit=2") == [["s-2", "s-1"], ["s-0"]]
    assert await listed(api, "status=pending&stage=queued&limit=5") == [
        ["q-0", "q-1", "q-2", "q-3", "q-4"]
    ]
    assert await listed(api, "status=pending&stage=settled") == [[]]
    assert await listed(api, "payment_intent=pi_1") == [["s-1"]]
    assert await listed(api, f"payment_intent={PAYMENT}&limit=3") == [
        ["q-0", "q-1", "q-2"],
        ["q-3", "q-4"],
    ]
    assert await listed(api, "reversed=true") == [[]]


async def test_a_batch_is_listed_in_the_order_of_its_rows(api: Door) -> None:
    for number in (3, 1, 2):
        api.records.queued(f"row-{number}", batch_id="b-1")
    api.records.queued("other")
    assert await listed(api, "batch=b-1&limit=2") == [["row-3", "row-1"], ["row-2"]]
    assert await listed(api, "batch=b-2") == [[]]


async def test_history_has_every_move_and_who_made_it(api: Door) -> None:
    await api.create("order-1")
    await api.post("/v1/refunds/order-1/cancel")
    moves = (await api.get("/v1/refunds/order-1/history")).json["data"]
    assert [(move["label"], move.get("by")) for move in moves] == [
        ("accepted", "shop"),
        ("canceled", "shop"),
    ]


async def test_events_are_read_in_order_with_a_position(api: Door) -> None:
    assert (await api.get("/v1/events?after=now")).json == {
        "data": [],
        "next": "0-0",
        "gap": False,
    }
    for number in range(3):
        await api.create(f"order-{number}")
    first = (await api.get("/v1/events?limit=2")).json
    assert [event["refund_id"] for event in first["data"]] == ["order-0", "order-1"]
    rest = (await api.get(f"/v1/events?after={first['next']}")).json
    assert [event["refund_id"] for event in rest["data"]] == ["order-2"]
    assert rest["gap"] is False
    wait = asyncio.create_task(api.get(f"/v1/events?after={rest['next']}&wait=20"))
    await api.waiting(1)
    await api.create("order-3")
    got = (await wait).json
    assert [(event["refund_id"], event["to"]) for event in got["data"]] == [("order-3", "queued")]


async def test_events_say_that_moves_are_missing(api: Door) -> None:
    for number in range(3):
        await api.create(f"order-{number}")
    first = (await api.get("/v1/events?limit=1")).json["next"]
    await api.store.redis.xtrim("refunds:events", maxlen=1, approximate=False)
    got = (await api.get(f"/v1/events?after={first}")).json
    assert (got["gap"], len(got["data"])) == (True, 1)
    assert (await api.get(f"/v1/events?after={got['next']}")).json["gap"] is False


async def test_events_after_a_restored_snapshot_say_that_moves_are_missing(api: Door) -> None:
    await api.create("order-1")
    last = (await api.get("/v1/events")).json["next"]
    later = f"{int(last.partition('-')[0]) + 1}-0"
    got = (await api.get(f"/v1/events?after={later}&wait=20")).json
    assert got == {"data": [], "next": last, "gap": True}


async def test_events_after_a_restored_snapshot_and_new_moves_say_that_moves_are_missing(
    api: Door,
) -> None:
    for number in range(2):
        await api.create(f"order-{number}")
    last = (await api.get("/v1/events")).json["next"]
    # A snapshot from before the last move; what it holds is moved on before anybody asks.
    await api.store.redis.xdel("refunds:events", last)
    await api.create("order-2")
    got = (await api.get(f"/v1/events?after={last}")).json
    assert [event["refund_id"] for event in got["data"]] == ["order-2"]
    assert got["gap"] is True
    assert (await api.get(f"/v1/events?after={got['next']}")).json["gap"] is False


async def test_every_request_is_counted_by_its_operation_and_status(api: Door) -> None:
    await api.create("order-1")
    await api.get("/v1/refunds/order-1")
    await api.get("/v1/refunds/absent")
    await api.get("/v1/refunds/absent", token="")
    await api.get("/elsewhere/order-1")
    assert api.counted == {
        ("POST /v1/refunds", 202): 1,
        ("GET /v1/refunds/{refund_id}", 200): 1,
        ("GET /v1/refunds/{refund_id}", 404): 1,
        ("GET /v1/refunds/{refund_id}", 401): 1,
        ("other", 404): 1,
    }


async def test_an_address_and_a_method_that_do_not_exist(api: Door) -> None:
    assert (await api.get("/v2/refunds")).code == "not_found"
    got = await api.ask("DELETE", "/v1/refunds/order-1")
    assert (got.status, got.code) == (405, "method_not_allowed")
    assert set(got.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert (await api.get("/problems/changed")).json["status"] == 409
    assert (await api.get("/problems/other")).code == "not_found"


async def test_an_unforeseen_error_shows_nothing_of_itself(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: str) -> Callable[[], None]:
        raise ValueError("canary-7f3a")

    monkeypatch.setattr(api.store, "load", fails)
    got = await api.get("/v1/refunds/order-1")
    assert (got.status, got.code) == (500, "internal_error")
    assert b"canary" not in got.body
    assert got.json["request_id"] == got.headers["Request-Id"]


async def test_the_audit_says_that_a_repeat_changed_nothing(api: Door) -> None:
    api.records.queued("order-1")
    api.records.failed("order-2", payment_intent="pi_2")
    for _ in range(2):
        assert (await api.post("/v1/refunds/order-1/cancel")).status == 200
        assert (await api.post("/v1/refunds/order-2/retry", {"unknown": True})).status == 200
    found = [(each.deed.action, each.result) for each in audit.entries(api.refunds.store)]
    assert found[::-1] == [
        ("cancel", "done"),
        ("retry", "done"),
        ("cancel", "unchanged"),
        ("retry", "unchanged"),
    ]


async def test_what_a_caller_does_is_noted_in_the_audit(api: Door) -> None:
    records = api.records
    records.queued("order-1")
    records.failed("order-2", payment_intent="pi_2")
    version = records.in_review("order-3", doubt=False, payment_intent="pi_3").version
    decision = {"decision": "failed", "code": "paid_in_cash", "note": "by post", "version": version}
    await api.post("/v1/pause")
    await api.post("/v1/resume")
    await api.post("/v1/refunds/order-1/cancel")
    await api.post("/v1/refunds/order-2/retry", {"unknown": True})
    await api.post("/v1/refunds/order-3/resolve", decision)
    await api.post("/v1/refunds/order-3/resolve", decision)
    await api.post("/v1/refunds/order-3/recheck")
    found = [*audit.entries(api.refunds.store)]
    assert {(each.deed.by, each.deed.via, each.deed.address) for each in found} == {
        ("shop", "api", "127.0.0.1")
    }
    assert [
        (each.deed.action, each.deed.target, each.result.partition(":")[0])
        for each in reversed(found)
    ] == [
        ("pause", "", "done"),
        ("resume", "", "done"),
        ("cancel", "order-1", "done"),
        ("retry", "order-2", "done"),
        ("resolve as failed", "order-3", "done"),
        ("resolve as failed", "order-3", "refused"),
        ("recheck", "order-3", "done"),
    ]
    assert [each.deed.note for each in reversed(found)] == [*[""] * 4, *["by post"] * 2, ""]
