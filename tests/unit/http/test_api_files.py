"""Files over the HTTP API: checked, imported once, taken up again, and returned with results."""

from __future__ import annotations

import asyncio
import csv
import errno
import hashlib
import io
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from tests.support.api_door import Door, a_door
from worker.batches import cancel_batch, open_batch, read_batch
from worker.errors import NotDurable, NotStorable, RefundError, StoreFull, StoreUnavailable
from worker.file_import import submit
from worker.http import spool, uploads
from worker.http.uploads import Stopped, Uploads
from worker.model.request import RefundRequest
from worker.store import audit, tokens

if TYPE_CHECKING:
    from pathlib import Path

    from worker.client import Refunds
from tests.unit.http.file_api import CSV, PATH, imported, names, rows, send, until


def killed(_uploads: Uploads, done: int) -> None:
    raise Stopped(done)


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
    assert got.json["detail"].endswith(
        "nothing was imported: see it with GET /v1/batches/season, or import only new rows with"
        " again=true"
    )
    again = await send(api, rows(3), "again=true")
    assert (again.status, again.json["batch_id"], again.json["known"]) == (200, None, 3)


async def test_a_name_that_cannot_be_the_batchs_is_said_in_words_of_the_api(api: Door) -> None:
    await send(api, rows(3), "name=season")
    await imported(api, "season")
    other = await send(api, rows(4), "name=season")
    assert (other.status, other.code) == (409, "refused")
    assert other.json["detail"].endswith("name this one with another name")
    taken = await send(api, rows(3), "name=season&again=true")
    assert taken.json["detail"].endswith("name this one with another name")


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
    assert got.json["detail"] == "150 of 152 rows are invalid: nothing was imported."
    one = await send(api, rows(1) + b"bad,pi_1,x,usd\n")
    assert one.json["detail"] == "1 of 2 rows is invalid: nothing was imported."
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
    # A restored snapshot did not know the batch, and another server imported another file as it.
    digest = await api.store.redis.hget("refunds:batch:season", "digest")
    await api.store.redis.hset("refunds:batch:season", "digest", "of-another-file")
    assert (await api.get(f"{PATH}/season/errors")).status == 404
    await api.store.redis.hset("refunds:batch:season", "digest", str(digest))
    assert stat.S_IMODE(kept.lstat().st_mode) == 0o600
    week = time.time() - spool.KEPT_SECONDS - 1
    os.utime(kept, (week, week))
    await api.part.uploads.take_up()
    await until(lambda: not api.part.uploads.active)
    assert names(folder) == []
    assert (await api.get(f"{PATH}/season/errors")).status == 404


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


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (StoreUnavailable("away"), 5),
        (NotDurable("no append-only file"), 5),
        # Each try writes every row again that was accepted.
        (StoreFull("nearly full"), 300),
    ],
)
async def test_an_import_goes_on_once_redis_replies_and_keeps_what_is_written_again(
    api: Door, monkeypatch: pytest.MonkeyPatch, error: RefundError, seconds: float
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(api.part.uploads._ended, "wait", waits.append)
    calls: list[str] = []

    def away_at_first(refunds: Refunds, batch_id: str, *more: Any) -> None:
        calls.append(batch_id)
        if len(calls) < 3:
            raise error
        submit(refunds, batch_id, *more)

    monkeypatch.setattr(uploads, "submit", away_at_first)
    await send(api, rows(3), "name=season")
    assert (await imported(api, "season"))["accepted"] == 3
    assert (calls, waits) == (["season"] * 3, [seconds] * 2)


async def test_an_import_that_waited_accepts_no_row_of_a_batch_that_was_canceled_meanwhile(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def full_at_first(refunds: Refunds, batch_id: str, *more: Any) -> None:
        if not waits:
            raise StoreFull("nearly full")
        submit(refunds, batch_id, *more)

    def canceled(seconds: float) -> None:
        waits.append(seconds)
        cancel_batch(api.refunds.store, "season", "kim")

    monkeypatch.setattr(uploads, "submit", full_at_first)
    monkeypatch.setattr(api.part.uploads._ended, "wait", canceled)
    assert (await send(api, rows(3), "name=season")).status == 202
    await until(lambda: not api.part.uploads.active)
    batch = (await api.get(f"{PATH}/season")).json
    assert (batch["state"], batch["accepted"], batch["imported_at"]) == ("canceled", 0, None)
    assert names(folder) == []


async def test_the_file_of_an_import_that_the_records_cannot_hold_is_kept(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered as accepted: once a person has repaired the records, it goes on."""

    def refused(*_: Any) -> None:
        raise NotStorable("a key of the records holds a value of another type")

    with monkeypatch.context() as patch:
        patch.setattr(uploads, "submit", refused)
        assert (await send(api, rows(3), "name=season")).status == 202
        await until(lambda: not api.part.uploads.active)
        os.utime(folder / "batch-season", (0, 0))
        await api.part.uploads.take_up()
        await until(lambda: not api.part.uploads.active)
    assert names(folder) == ["batch-season"]
    await api.part.uploads.take_up()
    assert (await imported(api, "season"))["accepted"] == 3


@pytest.mark.parametrize("other", [[], ["digest", "of-another-file"]])
async def test_the_file_of_a_batch_that_the_records_have_lost_is_kept_for_a_week(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch, other: list[str]
) -> None:
    """It was answered as accepted, and a restored snapshot does not know it."""
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "submitted", killed)
        assert (await send(api, rows(1200), "name=season")).status == 202
        await until(lambda: not api.part.uploads.active)
    await api.store.redis.delete("refunds:batch:season")
    if other:
        await api.store.redis.hset("refunds:batch:season", items=other)
    week = time.time() - spool.KEPT_SECONDS
    for received, left in ((week + 60, ["batch-season"]), (week - 1, [])):
        os.utime(folder / "batch-season", (received, received))
        with capture_logs() as logs:
            await api.part.uploads.take_up()
            await until(lambda: not api.part.uploads.active)
        assert names(folder) == left
        assert [(each["event"], each["batch_id"], each["alarm"]) for each in logs] == [
            ("import_failed", "season", True)
        ]


@pytest.mark.parametrize(("count", "left"), [(1200, 500), (3, 3)])
async def test_the_file_of_a_batch_that_the_records_lose_during_its_import_is_kept(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, left: int
) -> None:
    """A server restored meanwhile has lost earlier rows, and only the file still holds them."""
    store = api.refunds.store

    @contextmanager
    def and_lost(items: Iterable[Any]) -> Iterator[Iterator[Any]]:
        store.redis.delete("refunds:batch:season")
        yield iter(items)

    monkeypatch.setattr("worker.file_import.submitting.ahead", and_lost)
    with capture_logs() as logs:
        assert (await send(api, rows(count), "name=season")).status == 202
        await until(lambda: not api.part.uploads.active)
    assert [(each["event"], each["alarm"]) for each in logs] == [("import_failed", True)]
    assert (names(folder), store.batch_size("season")) == (["batch-season"], left)
    assert read_batch(store, "season").imported_at is None


@pytest.mark.parametrize("invalid", [0, 2])
async def test_an_import_whose_rows_another_version_judged_otherwise_is_left_to_a_person(
    api: Door, folder: Path, monkeypatch: pytest.MonkeyPatch, invalid: int
) -> None:
    """The sender was told which rows are invalid, and may have sent them corrected."""
    data, query = rows(1200) + b"order-x,pi_x,wrong,usd\n", "name=season&on_error=skip"
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "submitted", killed)
        assert (await send(api, data, query)).status == 202
        await until(lambda: not api.part.uploads.active)
    await api.store.redis.hset("refunds:batch:season", "invalid", str(invalid))
    before = (await api.get(f"{PATH}/season")).json["accepted"]
    with capture_logs() as logs:
        await api.part.uploads.take_up()
        await until(lambda: not api.part.uploads.active)
    assert [(each["event"], each["alarm"]) for each in logs] == [("import_failed", True)]
    batch = (await api.get(f"{PATH}/season")).json
    assert (batch["accepted"], batch["imported_at"]) == (before, None)
    assert names(folder) == ["batch-season"]
    assert (await send(api, data, query)).status == 202
    batch = await imported(api, "season")
    assert (batch["accepted"], batch["invalid"]) == (1200, 1)


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


async def test_the_rows_with_errors_of_a_batch_that_is_canceled_meanwhile_are_kept(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel comes while the rows are accepted."""
    store = api.refunds.store
    monkeypatch.setattr(Uploads, "submitted", lambda *_: cancel_batch(store, "season", "kim"))
    wrong = b"order-x,pi_x,wrong,usd"
    await send(api, rows(1200) + wrong, "name=season&on_error=skip&max_errors=1")
    await until(lambda: not api.part.uploads.active)
    batch = (await api.get(f"{PATH}/season")).json
    assert (batch["imported_at"], batch["state"], batch["accepted"]) == (None, "canceled", 500)
    got = await api.get(f"{PATH}/season/errors")
    assert (got.status, wrong in got.body) == (200, True)


@pytest.mark.parametrize("age", [0, spool.KEPT_SECONDS + 1])
async def test_an_interrupted_import_goes_on_at_the_next_start_however_late(
    redis_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, age: float
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
    received = time.time() - age
    os.utime(folder / "batch-season", (received, received))
    async with a_door(redis_url, spool_dir=folder) as door:
        assert (await imported(door, "season"))["accepted"] == 1200
        assert names(folder) == []


@pytest.mark.parametrize(("options", "accepted"), [("", 1199), ("&allow_repeat=true", 1200)])
async def test_an_import_that_is_taken_up_refunds_no_payment_again_that_was_refunded_meanwhile(
    redis_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, options: str, accepted: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "submitted", killed)
        async with a_door(redis_url, spool_dir=folder) as door:
            await send(door, rows(1200), f"name=season{options}")
            await until(lambda: not door.part.uploads.active)
            other = RefundRequest(
                refund_id="by-hand", payment_intent="pi_1199", amount=1699, currency="usd"
            )
            await asyncio.to_thread(door.refunds.submit, other)
            tokens.revoke(door.refunds.store, "shop")
    async with a_door(redis_url, spool_dir=folder) as door:
        batch = await imported(door, "season")
    assert (batch["accepted"], batch["conflicting"]) == (accepted, 1200 - accepted)


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


async def test_a_token_for_some_ids_learns_no_batch_of_others_from_a_file(api: Door) -> None:
    data = rows(2, "shop-a-order")
    open_batch(
        api.refunds.store, "season", file="x.csv", digest=hashlib.sha256(data).hexdigest(), rows=2
    )
    token = api.a_token("a", ids="shop-a-")
    got = await send(api, data, "name=shop-a-1", token=token)
    assert (got.status, got.code) == (409, "refused")
    assert "season" not in got.body.decode()
    # A check of another file would say whether a batch of that name exists.
    for name in ("season", "none"):
        seen = await send(api, rows(3, "shop-a-order"), f"dry_run=true&name={name}", token=token)
        assert (seen.status, seen.fields) == (422, [("name", "name")])
    assert (await send(api, rows(3, "shop-a-order"), "dry_run=true", token=token)).status == 200


async def test_a_token_for_some_ids_reads_no_rows_with_errors_of_others(api: Door) -> None:
    """A batch may be named as its own are, and hold rows of another shop."""
    token = api.a_token("a", ids="shop-a-")
    for name, prefix, status in (("shop-a-1", "shop-a", 200), ("shop-a-2", "shop-b", 404)):
        wrong = f"{prefix}-x,pi_x,wrong,usd\n".encode()
        await send(api, rows(1, prefix) + wrong, f"name={name}&on_error=skip&allow_repeat=true")
        await imported(api, name)
        got = await api.get(f"{PATH}/{name}/errors", token=token)
        assert (got.status, wrong.strip() in got.body) == (status, status == 200)
