"""Files over the HTTP API: checked, imported once, taken up again, and returned with results."""

from __future__ import annotations

import asyncio
import csv
import errno
import gzip
import io
import json
import os
import shutil
import stat
import time
import tracemalloc
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jsonschema
import pytest

from tests.support import described_api
from tests.support.api_door import Door, a_door
from worker.errors import StoreUnavailable
from worker.http import spool, uploads
from worker.http.uploads import Stopped, Uploads
from worker.imports import submit
from worker.store import audit, tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from worker.client import Refunds

PATH = "/v1/batches"
CSV = "text/csv"
NDJSON = "application/x-ndjson"
HEAD = "refund_id,payment_intent,amount,currency\n"


def rows(count: int, prefix: str = "order") -> bytes:
    lines = (f"{prefix}-{number},pi_{number},{500 + number},usd\n" for number in range(count))
    return (HEAD + "".join(lines)).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
async def api(redis_url: str, folder: Path) -> AsyncIterator[Door]:
    async with a_door(redis_url, spool_dir=folder) as door:
        yield door


def killed(_uploads: Uploads, done: int) -> None:
    raise Stopped(done)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


async def until(is_over: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        for _ in range(3000):
            if is_over():
                return
            await asyncio.sleep(0.01)


async def send(api: Door, data: Any, query: str = "", **more: str) -> Any:
    return await api.post(f"{PATH}?{query}", data=data, **{"Content_Type": CSV, **more})


async def imported(api: Door, batch_id: str) -> dict[str, Any]:
    """Return the batch once all of its rows are imported and its file is let go."""
    async with asyncio.timeout(30):
        while True:
            batch: dict[str, Any] = (await api.get(f"{PATH}/{batch_id}")).json
            if batch["imported_at"] is not None and not api.part.uploads.active:
                return batch
            await asyncio.sleep(0.02)


async def test_a_file_is_imported_in_row_order_and_its_copy_is_removed(
    api: Door, folder: Path
) -> None:
    got = await send(api, rows(1200), "name=season&expect_rows=1200")
    assert (got.status, got.headers["Location"]) == (202, f"{PATH}/season")
    assert (got.json["state"], got.json["report"]["new"]) == ("reading", 1200)
    batch = await imported(api, "season")
    assert (batch["accepted"], batch["known"], batch["file"]) == (1200, 0, "season.csv")
    lines = (await api.get(f"{PATH}/season/refunds")).body.splitlines()
    assert [json.loads(line)["refund_id"] for line in lines] == [
        f"order-{number}" for number in range(1200)
    ]
    assert names(folder) == []


async def test_the_audit_names_who_imported_a_file_and_its_batch(api: Door) -> None:
    await send(api, rows(2) + b"order-9,pi_9,wrong,usd\n")
    await send(api, rows(2), "dry_run=true")
    assert [*audit.entries(api.refunds.store)] == []
    await send(api, rows(2), "name=season")
    await imported(api, "season")
    await send(api, rows(2), "name=season")
    (entry,) = audit.entries(api.refunds.store)
    assert entry.deed == audit.Deed(
        by="shop",
        via="api",
        address="127.0.0.1",
        action="import",
        target="season",
        note="season.csv",
    )
    assert entry.result == "done"


async def test_the_same_file_is_known_and_names_its_batch(api: Door) -> None:
    await send(api, rows(3), "name=season")
    await imported(api, "season")
    got = await send(api, rows(3))
    assert (got.status, got.code, got.json["batch_id"]) == (409, "known_file", "season")
    assert "--" not in got.json["detail"]
    again = await send(api, rows(3), "again=true")
    assert (again.status, again.json["batch_id"], again.json["known"]) == (200, None, 3)


async def test_a_dry_run_reports_and_changes_nothing(api: Door, folder: Path) -> None:
    got = await send(api, rows(3) + b"order-9,pi_9,wrong,usd\n", "dry_run=true")
    assert (got.status, got.json["refused"], got.json["new"]) == (200, ["invalid_rows"], 3)
    assert [each["line"] for each in got.json["error_rows"]] == [5]
    assert (await api.get(PATH)).json["data"] == []
    assert names(folder) == []


async def test_invalid_rows_refuse_the_file_and_the_first_hundred_are_shown(api: Door) -> None:
    wrong = "".join(f"bad-{number},pi_{number},x,usd\n" for number in range(150))
    got = await send(api, rows(2) + wrong.encode())
    assert (got.status, got.code) == (422, "invalid_rows")
    report = got.json["report"]
    assert (report["invalid"], report["valid"], len(report["error_rows"])) == (150, 2, 100)
    assert (await api.get(PATH)).json["data"] == []


async def test_skipped_rows_can_be_read_with_their_errors(api: Door, folder: Path) -> None:
    data = rows(2) + b"bad,pi_9,x,usd\n"
    got = await send(api, data, "on_error=skip&max_errors=50%25&name=season")
    assert (got.status, got.json["errors"]) == (202, f"{PATH}/season/errors")
    batch = await imported(api, "season")
    assert (batch["accepted"], batch["invalid"]) == (2, 1)
    failed = await api.get(f"{PATH}/season/errors")
    (row,) = csv.DictReader(io.StringIO(failed.body.decode()))
    assert (row["line"], row["refund_id"], row["column"]) == ("4", "bad", "amount")
    kept = folder / "batch-season"
    assert stat.S_IMODE(kept.lstat().st_mode) == 0o600
    week = time.time() - spool.KEPT_SECONDS - 1
    os.utime(kept, (week, week))
    await api.part.uploads.take_up()
    assert names(folder) == []
    assert (await api.get(f"{PATH}/season/errors")).status == 404


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (gzip.compress(rows(2), mtime=0), {"Content_Encoding": "gzip"}),
        (
            (
                b'{"refund_id":"order-0","payment_intent":"pi_0"}\n'
                b'{"refund_id":"order-1","payment_intent":"pi_1","amount":5}\n'
            ),
            {"Content_Type": NDJSON, "query": "all_remaining=true"},
        ),
    ],
    ids=["gzip", "jsonl"],
)
async def test_other_forms_of_a_file_are_imported(
    api: Door, data: bytes, headers: dict[str, str]
) -> None:
    got = await send(api, data, **headers)
    assert got.status == 202
    assert (await imported(api, got.json["batch_id"]))["accepted"] == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "application/json"}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content_Encoding": "br"}, 415),
        ({"Content_Encoding": "gzip"}, 400),
    ],
)
async def test_a_body_that_is_not_what_its_headers_say_is_refused(
    api: Door, folder: Path, headers: dict[str, str], status: int
) -> None:
    assert (await send(api, rows(1), **headers)).status == status
    assert names(folder) == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("dry_run=yes", "dry_run"),
        ("name=a/b", "name"),
        ("expect_rows=0", "expect_rows"),
        ("expect_total=5", "expect_total"),
        ("max_total=usd", "max_total"),
        ("delay=soon", "delay"),
        ("max_errors=5", "max_errors"),
        ("on_error=skip&max_errors=200%25", "max_errors"),
        ("column=colour%3Dx", "column"),
        ("wait=5", "wait"),
        ("name=a&name=b", "name"),
    ],
)
async def test_a_wrong_parameter_is_named(api: Door, query: str, field: str) -> None:
    got = await send(api, rows(1), query)
    assert (got.status, [each[0] for each in got.fields]) == (422, [field])


VALUES = {
    "name": ["season", "a:b.c_d-1", "a" * 100, "", "a b", "a" * 101],
    "dry_run": ["true", "false", "", "yes"],
    "on_error": ["abort", "skip", "ignore"],
    "max_errors": [
        *("0", "10", "0.5%", "007%", "99.999999%", "100%", "100.0%", "1" * 12),
        *("", "-1", "1.5", "%", "100.1%", "101%", "1e1", "1" * 13),
    ],
    "expect_rows": ["1", "100000000", "0", "100000001", "1.5", ""],
    "expect_total": [
        *("usd=5", "USD=0", "unstated=5", "usd=" + "9" * 18),
        *("usd=", "5", "usd=-5", "us=5", "usd=" + "9" * 19),
    ],
    "max_total": ["usd=5", "5", "unstated=5", "", "usd", "=5"],
    "delay": ["90s", "1h30m", "30d", "", "70", "-5s", "1.5h", "1w", "9" * 5000 + "s"],
    "delimiter": ["comma", "semicolon", "tab", ",", ""],
    "column": [
        *("amount=Sum", "metadata.shop=Shop", "amount= Sum = 1 "),
        *("", "amount", "=Sum", "colour=Sum", "metadata.=Shop"),
    ],
    "attempt": ["1", "99", "0", "100", ""],
    "amount_unit": ["minor", "major", "cents"],
    "decimal": ["point", "comma", "."],
    "ignore_extra": ["true", "false", "1"],
}
"""Values of the parameters, of those with rules of their own."""


@pytest.mark.parametrize("name", VALUES)
async def test_a_parameter_is_refused_exactly_if_the_document_forbids_it(
    api: Door, name: str
) -> None:
    (schema,) = [
        each["schema"]
        for each in described_api.DOCUMENT["paths"][PATH]["post"]["parameters"]
        if each["name"] == name
    ]
    schema = schema.get("items", schema)
    more = {"max_errors": "on_error=skip&"}.get(name, "")
    for value in VALUES[name]:
        whole = schema["type"] == "integer" and value.isdecimal()
        is_valid = jsonschema.Draft202012Validator(schema).is_valid(int(value) if whole else value)
        # An empty file is refused after the parameters.
        got = await send(api, b"", f"{more}{name}={quote(value)}")
        wrong = {field for field, _ in got.fields} if got.code == "invalid_request" else set()
        assert (value, wrong) == (value, set() if is_valid else {name})
    assert (await api.get(PATH)).json["data"] == []


async def test_a_broken_limit_is_said_in_words_of_the_api(api: Door) -> None:
    got = await send(api, b"refund_id,payment_intent,amount\nx-1,pi_1,5\n", "expect_total=usd=5")
    assert got.code == "refused"
    assert "add expect_total unstated=5" in got.json["detail"]
    assert "--" not in got.body.decode()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("attempt=2", "id_from"),
        ("decimal=comma", "amount_unit"),
        ("currency=dollars", "ISO"),
        ("sheet=One", "sheet"),
    ],
)
async def test_what_does_not_fit_the_file_is_said_in_words_of_the_api(
    api: Door, query: str, words: str
) -> None:
    got = await send(api, rows(1), query)
    assert (got.status, got.code) == (422, "invalid_file")
    assert words in got.json["detail"]
    assert "--" not in got.json["detail"]


@pytest.mark.parametrize(
    ("data", "query", "reason"),
    [
        (rows(2), "expect_rows=3", "limit"),
        (rows(2), "max_total=usd%3D900", "limit"),
        (b"refund_id,payment_intent\norder-1,pi_1\n", "", "all_remaining"),
        (rows(1) + b"order-7,pi_0,500,usd\n", "", "repeats"),
        (HEAD.encode() + b"taken,pi_0,500,usd\n", "", "conflicting"),
    ],
)
async def test_a_guard_refuses_the_file_and_nothing_is_imported(
    api: Door, data: bytes, query: str, reason: str
) -> None:
    await api.create("taken", payment_intent="pi_other")
    got = await send(api, data, query)
    assert (got.status, got.code) == (409, "refused")
    assert got.json["report"]["refused"] == [reason]
    assert (await api.get(PATH)).json["data"] == []


async def test_the_results_of_a_file_are_returned_for_the_same_bytes_only(api: Door) -> None:
    await send(api, rows(3), "name=season")
    await imported(api, "season")
    got = await api.post(f"{PATH}/season/result", data=rows(3), Content_Type=CSV)
    found = list(csv.DictReader(io.StringIO(got.body.decode())))
    assert [(row["refund_id"], row["status"]) for row in found] == [
        (f"order-{number}", "pending") for number in range(3)
    ]
    other = await api.post(f"{PATH}/season/result", data=rows(4), Content_Type=CSV)
    assert (other.status, other.code) == (422, "invalid_file")
    unknown = await api.post(f"{PATH}/none/result", data=rows(3), Content_Type=CSV)
    assert unknown.status == 404


async def test_a_third_file_is_refused_while_two_are_read(api: Door) -> None:
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(30)

    reading = [asyncio.create_task(api.part.uploads.read(wait)) for _ in range(2)]
    await asyncio.sleep(0)
    got = await send(api, rows(1))
    assert (got.status, got.code, got.headers["Retry-After"]) == (503, "busy", "30")
    go.set()
    await asyncio.gather(*reading)
    assert (await send(api, rows(1))).status == 202


async def test_one_file_sent_twice_at_once_is_one_batch(api: Door, folder: Path) -> None:
    sent = await asyncio.gather(*(send(api, rows(1200), "name=season") for _ in range(2)))
    assert {got.status for got in sent} <= {202, 409}
    assert {got.json["batch_id"] for got in sent} == {"season"}
    batch = await imported(api, "season")
    ids = list(api.refunds.store.ids_in_batch("season"))
    assert (batch["accepted"], sorted(ids)) == (1200, sorted(f"order-{n}" for n in range(1200)))
    assert names(folder) == []


async def test_a_file_is_on_disk_before_its_batch_is_opened(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fsync", failing)
    got = await send(api, rows(3), "name=season")
    assert (got.status, got.code) == (503, "no_space")
    assert (await api.get(PATH)).json["data"] == []
    assert names(folder) == []


async def test_an_import_goes_on_once_redis_replies_again(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "AGAIN_SECONDS", 0.01)
    calls: list[str] = []

    def away_at_first(refunds: Refunds, batch_id: str, *more: Any) -> None:
        calls.append(batch_id)
        if len(calls) < 3:
            raise StoreUnavailable("away")
        submit(refunds, batch_id, *more)

    monkeypatch.setattr(uploads, "submit", away_at_first)
    await send(api, rows(3), "name=season")
    assert (await imported(api, "season"))["accepted"] == 3
    assert calls == ["season"] * 3


async def test_a_batch_that_was_canceled_meanwhile_is_not_taken_up(
    redis_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "submitted", killed)
        async with a_door(redis_url, spool_dir=folder) as door:
            await send(door, rows(1200), "name=season")
            await until(lambda: not door.part.uploads.active)
            assert (await door.post(f"{PATH}/season/cancel")).status == 200
            tokens.revoke(door.refunds.store, "shop")
    async with a_door(redis_url, spool_dir=folder) as door:
        await until(lambda: not names(folder))
        assert (await door.get(f"{PATH}/season")).json["imported_at"] is None


async def test_an_interrupted_import_goes_on_at_the_next_start(
    redis_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        async with a_door(redis_url, spool_dir=folder) as door:
            patch.setattr(Uploads, "submitted", killed)
            assert (await send(door, rows(1200), "name=season")).status == 202
            await until(lambda: not door.part.uploads.active)
            batch = (await door.get(f"{PATH}/season")).json
            assert batch["imported_at"] is None
            tokens.revoke(door.refunds.store, "shop")
    assert names(folder) == ["batch-season"]
    async with a_door(redis_url, spool_dir=folder) as door:
        assert (await imported(door, "season"))["accepted"] == 1200
        assert names(folder) == []


async def test_the_same_upload_continues_what_was_interrupted_elsewhere(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "submitted", killed)
        async with a_door(redis_url, spool_dir=tmp_path / "one") as door:
            assert (await send(door, rows(1200), "name=season")).status == 202
            await until(lambda: not door.part.uploads.active)
            tokens.revoke(door.refunds.store, "shop")
    async with a_door(redis_url, spool_dir=tmp_path / "two") as door:
        got = await send(door, rows(1200))
        assert (got.status, got.json["batch_id"]) == (202, "season")
        batch = await imported(door, "season")
        assert (batch["accepted"], batch["known"]) == (1200, 0)


async def test_a_token_for_some_ids_imports_only_those_in_a_batch_of_its_own(api: Door) -> None:
    token = api.a_token("a", ids="shop-a-")
    data = rows(2, "shop-a-order")
    assert (await send(api, data, token=token)).fields == [("name", "name")]
    other = await send(api, rows(2, "shop-b-order"), "name=shop-a-1", token=token)
    assert (other.status, other.fields) == (422, [("refund_id", "refund_id")])
    got = await send(api, data, "name=shop-a-1", token=token)
    assert got.status == 202
    await imported(api, "shop-a-1")
    seen = await api.post(f"{PATH}/shop-a-1/result", data=data, token=token, Content_Type=CSV)
    assert seen.body.count(b"pending") == 2


async def test_a_scope_to_read_does_not_import(api: Door) -> None:
    assert (await send(api, rows(1), token=api.a_token("reader", "read"))).status == 403


async def test_a_large_file_is_streamed_to_disk_and_not_held(api: Door) -> None:
    block = b"x,y\n" * 64 * 1024
    size = 96 * len(block)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(96):
            yield block

    tracemalloc.start()
    try:
        got = await send(api, body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (got.status, got.code) == (422, "invalid_file")
    assert size > 20_000_000
    assert peak < 8_000_000


async def test_a_file_that_is_too_large_or_has_no_room_leaves_nothing(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.part.uploads.spool, "_limit", 100)

    async def body() -> AsyncIterator[bytes]:
        yield rows(10)

    for data in (rows(10), body()):
        got = await send(api, data)
        assert (got.status, got.code) == (413, "too_large")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert (await send(api, rows(1))).code == "no_space"
    assert names(folder) == []


def head(api: Door, *lines: str) -> bytes:
    own = (f"POST {PATH} HTTP/1.1", "Host: x", f"Authorization: Bearer {api.token}")
    return "\r\n".join((*own, f"Content-Type: {CSV}", *lines, "", "")).encode()


async def test_a_body_that_ends_early_leaves_nothing(api: Door, folder: Path) -> None:
    _, writer = await api.raw(head(api, "Content-Length: 1000") + rows(1))
    writer.close()
    await writer.wait_closed()
    await until(lambda: folder.exists() and not names(folder))
    assert (await api.get(PATH)).json["data"] == []


async def test_a_client_that_sends_nothing_more_is_cut_off_and_others_are_served(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "IDLE_SECONDS", 0.5)
    reader, writer = await api.raw(head(api, "Content-Length: 1000") + rows(1))
    await until(lambda: bool(names(folder)))
    assert (await send(api, rows(3), "name=other")).status == 202
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert (await imported(api, "other"))["accepted"] == 3
    assert names(folder) == []


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Content-Length: 10", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        (["Content-Length: 10", "Content-Length: 11"], b"refund_id,p"),
        (["Content-Length: -1"], b""),
        (["Transfer-Encoding: chunked"], b"zz\r\nrefund_id\r\n0\r\n\r\n"),
        (["Transfer-Encoding: chunked"], b"5\r\nrefund_id,payment_intent\r\n0\r\n\r\n"),
    ],
)
async def test_a_wrong_length_ends_its_own_connection_only(
    api: Door, folder: Path, lines: list[str], body: bytes
) -> None:
    reader, writer = await api.raw(head(api, *lines) + body)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] == b"400"
    await until(lambda: not names(folder))
    assert (await api.get(PATH)).json["data"] == []
