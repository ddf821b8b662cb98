"""Batches over the HTTP API: listed, read, streamed, and decided about."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from worker import batches

if TYPE_CHECKING:
    from tests.support.api_door import Door

PATH = "/v1/batches"


def a_batch(api: Door, batch_id: str, *, rows: int = 0, prefix: str | None = None) -> None:
    """Import a file of so many refunds under the id of the batch and a number."""
    store = api.refunds.store
    # All rows have one payment and amount.
    opening = batches.BatchDraft(allow_repeat=True)
    digest = f"of {batch_id}"
    batches.open_batch(store, batch_id, file="a.csv", digest=digest, rows=rows, opening=opening)
    for number in range(rows):
        api.records.queued(f"{prefix or batch_id}-{number}", batch_id=batch_id)
    batches.close_batch(store, batch_id, handed_in=rows, conflicting=0)


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


async def test_batches_are_listed_newest_first_and_page_by_page(api: Door) -> None:
    for number in range(5):
        a_batch(api, f"b-{number}")
    listed: list[str] = []
    after = ""
    while True:
        page = (await api.get(f"{PATH}?limit=2{after}")).json
        listed += [each["batch_id"] for each in page["data"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert sorted(listed) == [f"b-{number}" for number in range(5)]
    assert len(listed) == 5
    assert (await api.get(f"{PATH}?after=b-gone")).status == 404


async def test_a_batch_shows_its_counts_and_its_refunds_in_row_order(api: Door) -> None:
    a_batch(api, "b-1", rows=1203)
    got = (await api.get(f"{PATH}/b-1")).json
    assert (got["rows"], got["accepted"], got["moving"], got["eta"]) == (1203, 1203, 1203, None)
    streamed = await api.get(f"{PATH}/b-1/refunds")
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    assert streamed.headers["Cache-Control"] == "no-store"
    ids = [each["refund_id"] for each in lines(streamed.body)]
    assert ids == [f"b-1-{number}" for number in range(1203)]


async def test_only_the_head_of_a_stream_is_answered_to_who_asks_for_that(api: Door) -> None:
    a_batch(api, "b-1", rows=3)
    line = "HTTP/1.1\r\nHost: door\r\n"
    ask = f"HEAD {PATH}/b-1/refunds {line}Authorization: Bearer {api.token}\r\n\r\n"
    reader, writer = await api.raw(f"{ask}GET /health {line}Connection: close\r\n\r\n".encode())
    first, _, second = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 200 ")
    assert second.endswith(b'{"status": "ok"}')


@pytest.mark.parametrize("path", ["", "/refunds"])
async def test_an_unknown_batch_is_not_found(api: Door, path: str) -> None:
    got = await api.get(f"{PATH}/b-1{path}")
    assert (got.status, got.json["detail"]) == (
        404,
        "no batch 'b-1' exists here: see GET /v1/batches",
    )
    for name in ("cancel", "pause", "resume", "retry"):
        assert (await api.post(f"{PATH}/b-1/{name}")).status == 404


async def test_a_batch_is_paused_and_resumed_once_by_the_name_of_the_token(api: Door) -> None:
    a_batch(api, "b-1", rows=1)
    changes = [(await api.post(f"{PATH}/b-1/pause")).json["changed"] for _ in range(2)]
    assert changes == [True, False]
    seen = (await api.get(f"{PATH}/b-1")).json
    assert (seen["state"], seen["paused_by"]) == ("paused", "shop")
    changes = [(await api.post(f"{PATH}/b-1/resume")).json["changed"] for _ in range(2)]
    assert changes == [True, False]


async def test_a_cancel_settles_what_was_not_sent_and_nothing_else(api: Door) -> None:
    a_batch(api, "b-1", rows=3)
    api.records.claimed("b-1-1")
    got = (await api.post(f"{PATH}/b-1/cancel")).json
    assert (got["changed"], got["canceled"], got["sent"]["sending"]) == (True, 2, 1)
    assert (await api.post(f"{PATH}/b-1/cancel")).json["changed"] is False
    moves = api.refunds.history("b-1-0")
    assert (moves[-1]["label"], moves[-1]["by"]) == ("canceled", "shop")
    assert (await api.post(f"{PATH}/b-1/pause")).status == 409


async def test_a_cancel_that_only_ends_the_import_has_changed_something(api: Door) -> None:
    batches.open_batch(api.refunds.store, "b-1", file="season.csv", digest="of b-1", rows=3)
    answers = [(await api.post(f"{PATH}/b-1/cancel")).json for _ in range(2)]
    assert [each["changed"] for each in answers] == [True, False]
    assert [each["canceled_now"] for each in answers] == [0, 0]
    assert (await api.get(f"{PATH}/b-1")).json["state"] == "canceled"


async def test_failed_refunds_of_a_batch_are_sent_again_and_nudged(api: Door) -> None:
    a_batch(api, "b-1", rows=2)
    api.records.failed("b-1-1")
    got = (await api.post(f"{PATH}/b-1/retry", {"unknown": True})).json
    assert got["retried"] + sum(got["left"].values()) == 1
    assert api.nudged == ["b-1-1"] * got["retried"]
    assert (await api.post(f"{PATH}/b-1/retry", {"unknown": 1})).status == 422


async def test_a_token_for_some_ids_sees_and_changes_only_its_batches(api: Door) -> None:
    a_batch(api, "shop-a-1", rows=2)
    a_batch(api, "shop-b-1", rows=2)
    a_batch(api, "shop-a-mixed", rows=2, prefix="shop-b")
    token = api.a_token("a", ids="shop-a-")
    listed = (await api.get(PATH, token=token)).json["data"]
    assert {each["batch_id"] for each in listed} == {"shop-a-1", "shop-a-mixed"}
    assert (await api.get(f"{PATH}/shop-b-1", token=token)).status == 404
    for other in ("shop-b-1", "shop-b-2"):
        assert (await api.get(f"{PATH}?after={other}", token=token)).status == 404
    assert (await api.post(f"{PATH}/shop-b-1/cancel", token=token)).status == 404
    assert (await api.post(f"{PATH}/shop-a-mixed/cancel", token=token)).status == 404
    assert lines((await api.get(f"{PATH}/shop-a-mixed/refunds", token=token)).body) == []
    assert (await api.post(f"{PATH}/shop-a-1/cancel", token=token)).json["canceled"] == 2


async def test_only_a_scope_that_allows_it_reaches_a_batch(api: Door) -> None:
    a_batch(api, "b-1")
    reader, submitter = api.a_token("reader", "read"), api.a_token("submitter", "submit")
    assert (await api.get(PATH, token=submitter)).status == 403
    assert (await api.get(f"{PATH}/b-1", token=reader)).status == 200
    for name in ("cancel", "pause", "resume", "retry"):
        assert (await api.post(f"{PATH}/b-1/{name}", token=reader)).status == 403
        assert (await api.post(f"{PATH}/b-1/{name}", token=submitter)).status == 403
