"""Refunds over the HTTP API: created once, read, listed, and decided about."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.factories import HOUR
from tests.support.api_door import PAYMENT, Door
from worker.errors import NotDurable
from worker.model.refund import Lane, Stage, Status
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.store import audit, flags, saves, sweeps

if TYPE_CHECKING:
    from collections.abc import Callable

CREATE = "/v1/refunds"


def moves_of(api: Door, refund_id: str) -> list[str]:
    return [move["label"] for move in api.refunds.history(refund_id)]


async def test_a_refund_is_accepted_once_and_its_repeat_changes_nothing(api: Door) -> None:
    first = await api.create("order-1", metadata={"order": "1001"}, reason="duplicate")
    assert (first.status, first.headers["Location"]) == (202, "/v1/refunds/order-1")
    assert (first.headers["ETag"], first.headers["Retry-After"]) == ('"1"', "1")
    assert api.nudged == ["order-1"]
    again = await api.create("order-1", metadata={"order": "1001"}, reason="duplicate")
    assert (again.status, again.json) == (202, first.json)
    assert api.refunds.get("order-1").as_dict() == first.json
    assert moves_of(api, "order-1") == ["accepted"]
    assert api.nudged == ["order-1"]


async def test_other_contents_under_the_same_id_are_refused_and_change_nothing(api: Door) -> None:
    await api.create("order-1")
    before = api.refunds.get("order-1")
    got = await api.create("order-1", amount=501)
    assert (got.status, got.code) == (422, "idempotency_conflict")
    assert got.json["detail"].endswith("or see the existing one with GET /v1/refunds/order-1")
    assert api.refunds.get("order-1") == before


async def test_a_settled_refund_is_returned_with_200(api: Door) -> None:
    api.records.succeeded("order-1")
    got = await api.create("order-1")
    assert (got.status, got.json["status"]) == (200, "succeeded")
    assert "Retry-After" not in got.headers


async def test_an_id_that_is_null_is_refused_beside_a_key_too(api: Door) -> None:
    body = {"payment_intent": PAYMENT, "refund_id": None}
    got = await api.post(CREATE, body, Idempotency_Key="order-1")
    assert (got.status, got.fields) == (422, [("refund_id", "refund_id")])


@pytest.mark.parametrize("key", ["order-1", '"order-1"', ' "order-1" '])
async def test_the_idempotency_key_becomes_the_id(api: Door, key: str) -> None:
    got = await api.post(CREATE, {"payment_intent": PAYMENT}, Idempotency_Key=key)
    assert (got.status, got.json["refund_id"], got.json["amount"]) == (202, "order-1", None)
    same = {"refund_id": "order-1", "payment_intent": PAYMENT}
    assert (await api.post(CREATE, same, Idempotency_Key=key)).status == 202
    assert moves_of(api, "order-1") == ["accepted"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({}, {}),
        ({"refund_id": "order-1"}, {"Idempotency_Key": "order-2"}),
        ({"refund_id": 5}, {"Idempotency_Key": "5"}),
        ({}, {"Idempotency_Key": "order 1"}),
        ({}, {"Idempotency_Key": ""}),
        ({}, {"Idempotency_Key": '"'}),
        ({}, {"Idempotency_Key": ".."}),
        ({}, {"Idempotency_Key": "x" * 201}),
    ],
)
async def test_without_one_usable_id_the_request_is_400(
    api: Door, body: dict[str, Any], headers: dict[str, str]
) -> None:
    got = await api.post(CREATE, {"payment_intent": PAYMENT, **body}, **headers)
    assert (got.status, got.code) == (400, "bad_request")
    assert api.nudged == []


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"amount": 5.0}, [("amount", "amount")]),
        ({"amount": True}, [("amount", "amount")]),
        ({"amount": "5"}, [("amount", "amount")]),
        ({"amount": 0}, [("amount", "amount")]),
        ({"amount": None}, [("amount", "amount")]),
        ({"amount": 10**13}, [("amount", "amount")]),
        ({"currency": "dollar"}, [("currency", "currency")]),
        ({"reason": ["duplicate"]}, [("reason", "reason")]),
        ({"metadata": []}, [("metadata", "metadata_type")]),
        ({"metadata": {"order": 5}}, [("metadata.order", "metadata_value")]),
        ({"metadata": {"refund_id": "x"}}, [("metadata", "metadata_reserved")]),
        ({"payment_intent": "pi 1"}, [("payment_intent", "payment_intent")]),
        ({"refund_id": "order 1"}, [("refund_id", "refund_id")]),
        ({"refund_id": 7}, [("refund_id", "refund_id")]),
        ({"refund_id": "."}, [("refund_id", "refund_id")]),
        ({"ammount": 5, "amount": -1}, [("ammount", "unknown_field"), ("amount", "amount")]),
    ],
)
async def test_every_wrong_field_is_named(
    api: Door, fields: dict[str, Any], wrong: list[tuple[str, str]]
) -> None:
    got = await api.create("order-1", **fields)
    assert (got.status, got.code, got.fields) == (422, "invalid_request", wrong)
    assert api.nudged == []


@pytest.mark.parametrize(
    ("data", "status", "wrong"),
    [
        ('{"refund_id":"o"}', 422, [("payment_intent", "payment_intent")]),
        ('{"refund_id":"o","payment_intent":"pi","amount":NaN}', 422, [("amount", "amount")]),
        ('{"refund_id":"o","refund_id":"p"}', 422, [("refund_id", "given_twice")]),
        (
            '{"refund_id":"o","payment_intent":"pi","metadata":{"a":"1","a":"2"}}',
            422,
            [("a", "given_twice")],
        ),
        ("[]", 422, [("body", "type")]),
        ("null", 422, [("body", "type")]),
        ("", 400, None),
        ("{", 400, None),
        ("[" * 60_000, 400, None),
        ('{"amount":' + "9" * 5000 + "}", 400, None),
        (b'{"refund_id":"\xff"}', 400, None),
        ("{}".encode("utf-16"), 400, None),
        ("\ufeff{}".encode(), 400, None),
    ],
)
async def test_a_body_that_is_not_plain_json_is_refused(
    api: Door, data: Any, status: int, wrong: list[tuple[str, str]] | None
) -> None:
    got = await api.post(CREATE, data=data)
    assert got.status == status
    assert wrong is None or got.fields == wrong
    assert api.nudged == []


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "The body is not JSON: it is wrong at character 1."),
        (b'{"amount": 5,}', "The body is not JSON: it is wrong at character 14."),
        (b'{"a":"\xff"}', "The body is not UTF-8: it is wrong at byte 7."),
        (b"[" * 60_000, "The body has a number of too many digits, or is nested too deeply."),
    ],
)
async def test_a_body_that_cannot_be_read_says_where(api: Door, data: bytes, detail: str) -> None:
    assert (await api.post(CREATE, data=data)).json["detail"] == detail


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "multipart/form-data; boundary=x"},
        {"Content_Type": "application/json; charset=latin-1"},
        {"Content_Encoding": "gzip"},
    ],
)
async def test_only_plain_json_is_read(api: Door, headers: dict[str, str]) -> None:
    got = await api.post(CREATE, data=b'{"refund_id":"o","payment_intent":"pi"}', **headers)
    assert (got.status, got.code) == (415, "unsupported_media_type")


async def test_a_body_is_read_up_to_64_kib(api: Door) -> None:
    body = json.dumps({"refund_id": "order-1", "payment_intent": PAYMENT})
    assert (await api.post(CREATE, data=body + " " * (65536 - len(body)))).status == 202
    got = await api.post(CREATE, data=body + " " * (65537 - len(body)))
    assert (got.status, got.code) == (413, "too_large")


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


@pytest.mark.parametrize("query", ["wait=61", "wiat=1"])
async def test_nothing_is_accepted_with_a_wrong_parameter(api: Door, query: str) -> None:
    body = {"refund_id": "order-1", "payment_intent": PAYMENT}
    got = await api.post(f"{CREATE}?{query}", body)
    assert (got.status, got.code, len(got.json["errors"])) == (422, "invalid_request", 1)
    assert (await api.get("/v1/refunds/order-1")).code == "not_found"


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


async def test_a_refund_is_canceled_once_and_not_after_it_was_sent(api: Door) -> None:
    await api.create("order-1")
    for _ in range(2):
        got = await api.post("/v1/refunds/order-1/cancel", {})
        assert (got.status, got.json["status"], got.json["version"]) == (200, "canceled", 2)
    api.records.sending("order-2")
    got = await api.post("/v1/refunds/order-2/cancel")
    assert (got.status, got.code) == (409, "not_cancelable")
    assert api.refunds.get("order-2").stage == "sending"


async def test_a_failed_refund_is_sent_again_once(api: Door) -> None:
    api.records.failed("order-1")
    got = await api.post("/v1/refunds/order-1/retry")
    assert (got.status, got.code) == (409, "not_retriable")
    assert got.json["detail"].endswith('then POST /v1/refunds/order-1/retry with {"unknown": true}')
    for _ in range(2):
        got = await api.post("/v1/refunds/order-1/retry", {"unknown": True})
        assert (got.status, got.json["generation"], got.json["stage"]) == (200, 2, "queued")
    assert (await api.get("/v1/refunds/order-1/history")).json["data"][-1]["by"] == "shop"
    got = await api.post("/v1/refunds/order-1/retry", {"unknown": "yes"})
    assert got.fields == [("unknown", "true_or_false")]


async def test_a_repeated_retry_that_names_its_version_starts_one_generation(api: Door) -> None:
    failed = api.records.failed("order-1")
    again, path = {"unknown": True, "version": failed.version}, "/v1/refunds/order-1/retry"
    for _ in range(2):
        got = await api.post(path, again)
        assert (got.status, got.json["generation"], got.json["stage"]) == (200, 2, "queued")
    # The answer was lost, and meanwhile the retry failed.
    api.records.failed_again("order-1")
    got = await api.post(path, again)
    assert (got.status, got.code) == (409, "changed")
    assert api.refunds.get("order-1").generation == 2
    got = await api.post(path, {"unknown": True, "version": "3"})
    assert got.fields == [("version", "version")]


async def test_a_review_is_resolved_on_the_version_that_was_read(api: Door) -> None:
    refund = api.records.in_review("order-1")
    path = "/v1/refunds/order-1/resolve"
    decision = {"decision": "succeeded", "provider_refund_id": "re_9", "note": "seen there"}
    got = await api.post(path, {**decision, "version": refund.version - 1})
    assert (got.status, got.code) == (409, "changed")
    assert api.refunds.get("order-1") == refund
    got = await api.post(path, {**decision, "version": refund.version})
    assert (got.status, got.json["stage"]) == (200, "processing")
    last = (await api.get("/v1/refunds/order-1/history")).json["data"][-1]
    assert (last["by"], last["note"]) == ("shop", "seen there")
    got = await api.post(path, {**decision, "version": refund.version + 1})
    assert (got.status, got.code) == (409, "not_in_review")


async def test_a_version_may_be_written_as_a_decimal_and_be_as_high_as_any(api: Door) -> None:
    refund = api.records.in_review("order-1")
    path = "/v1/refunds/order-1/resolve"
    decision = {"decision": "resend", "note": "not there"}
    for version, shown in ((refund.version + 1.0, refund.version + 1), (2**53, 2**53)):
        got = await api.post(path, {**decision, "version": version})
        assert (got.status, got.code) == (409, "changed")
        assert f"since version {shown}," in got.json["detail"]
    assert (await api.post(path, {**decision, "version": 2**53 + 1})).status == 422
    got = await api.post(path, {**decision, "version": float(refund.version)})
    assert (got.status, got.json["version"]) == (200, refund.version + 1)


async def test_a_review_is_not_resolved_without_a_body(api: Door) -> None:
    api.records.in_review("order-1")
    assert (await api.post("/v1/refunds/order-1/resolve", data=b"")).code == "bad_request"


@pytest.mark.parametrize(
    ("decision", "given", "other", "value"),
    [
        ("succeeded", "provider_refund_id", "code", "gone"),
        ("failed", "code", "provider_refund_id", "re_9"),
    ],
)
async def test_every_rule_that_a_decision_breaks_is_named(
    api: Door, decision: str, given: str, other: str, value: str
) -> None:
    opposite = "failed" if decision == "succeeded" else "succeeded"
    errors = {
        given: f"must be a text if the decision is {decision}",
        other: f"may only be given if the decision is {opposite}",
        "note": "must be a text that says how you know",
        "version": "must be the whole number version of the record that you read",
    }
    for body in ({}, {given: 5}):
        got = await api.post(
            "/v1/refunds/order-1/resolve", {"decision": decision, other: value, **body}
        )
        assert {each["field"]: each["rule"] for each in got.json["errors"]} == errors


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"decision": "done"}, "decision"),
        ({"provider_refund_id": None}, "provider_refund_id"),
        ({"provider_refund_id": "re/9"}, "provider_refund_id"),
        ({"code": "gone"}, "code"),
        ({"note": None}, "note"),
        ({"note": " "}, "note"),
        ({"version": "3"}, "version"),
        ({"version": True}, "version"),
        ({"version": 0}, "version"),
        ({"version": 1.5}, "version"),
        ({"version": 10**4000}, "version"),
        ({"unverified": 1}, "unverified"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_a_wrong_decision_is_refused_with_its_field(
    api: Door, change: dict[str, Any], wrong: str
) -> None:
    refund = api.records.in_review("order-1")
    decision = {"decision": "succeeded", "provider_refund_id": "re_9", "note": "seen"}
    got = await api.post(
        "/v1/refunds/order-1/resolve", {**decision, "version": refund.version, **change}
    )
    assert got.status == 422
    assert wrong in {name for name, _ in got.fields}
    assert api.refunds.get("order-1") == refund


async def test_a_recheck_makes_a_settled_refund_due_to_be_read_and_changes_no_record(
    api: Door,
) -> None:
    refund = api.records.succeeded("order-1")
    for name in ("recheck", "look"):
        got = await api.post(f"/v1/refunds/order-1/{name}")
        assert (got.status, got.json) == (200, refund.as_dict())
    assert api.nudged == ["order-1"]
    assert api.refunds.store.run(sweeps.sweep(10, dry=frozenset(Lane)))[0].stage is None


async def test_a_recheck_brings_the_next_read_of_a_refund_in_doubt_forward(api: Door) -> None:
    refund = api.records.sending("order-1")
    doubt = Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="no_reply", delay=HOUR)
    api.refunds.store.run(saves.save(refund, doubt))
    assert (await api.post("/v1/refunds/order-1/recheck")).status == 200
    assert api.nudged == ["order-1"]


async def test_pause_and_resume_are_by_the_token_and_say_what_changed(api: Door) -> None:
    got = (await api.post("/v1/pause")).json
    assert (got["changed"], got["paused_by"]) == (True, "shop")
    again = (await api.post("/v1/pause", {})).json
    assert again == {**got, "changed": False}
    assert (await api.post("/v1/resume")).json["changed"] is True
    assert (await api.post("/v1/resume")).json["changed"] is False


async def test_a_pause_that_could_be_forgotten_is_answered_as_one_that_holds(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise NotDurable("the disk did not confirm it")

    monkeypatch.setattr(api.refunds.store, "confirm", lost)
    got = await api.post("/v1/pause")
    assert flags.read(api.refunds.store).paused_by == "shop"
    assert (got.status, got.code) == (503, "unavailable")
    assert got.json["detail"].startswith("Everything is paused now")
    assert next(audit.entries(api.refunds.store)).result.startswith("unknown: everything is")


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
