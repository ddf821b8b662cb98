"""The import on the page: a file is sent, checked, confirmed by typing its sums, imported once."""

from __future__ import annotations

import asyncio
import codecs
import csv
import errno
import gzip
import io
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.page_door import a_page
from worker import batches
from worker.http import spool
from worker.http.page.checks import Check, Checks
from worker.http.spool import Spool
from worker.store import audit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.page_door import PageDoor, Shown

CANARY = "<img src=x onerror=alert(1)>"
HEAD = "refund_id,payment_intent,amount,currency\n"
IMPORT = "/page/import"


def rows(count: int, extra: str = "") -> bytes:
    lines = (f"order-{number},pi_{number},{500 + number},usd\n" for number in range(count))
    return f"{HEAD}{''.join(lines)}{extra}".encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
async def page(redis_url: str, folder: Path) -> AsyncIterator[PageDoor]:
    async with a_page(redis_url, spool_dir=folder) as door:
        await door.sign_in("read", "submit")
        yield door


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def a_form(token: str, content: bytes, name: str, /, **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData({"form_token": token, "amounts": "minor", **fields})
    form.add_field("file", content, filename=name, content_type="text/csv")
    return form


async def send(page: PageDoor, content: bytes, name: str = "season.csv", /, **fields: str) -> Shown:
    """Send a file by the form that is shown."""
    token = (await page.get(IMPORT)).form_tokens[IMPORT]
    return await page.post(IMPORT, a_form(token, content, name, **fields))


async def checked(page: PageDoor, content: bytes, *name: str, **fields: str) -> tuple[str, Shown]:
    """Send a file; return the address of its report, and the report."""
    sent = await send(page, content, *name, **fields)
    assert sent.status == 303, sent.text
    return sent.location, await page.get(sent.location)


async def act(page: PageDoor, report: Shown, address: str, action: str, **fields: str) -> Shown:
    """Send one of the forms that a report shows."""
    token = report.form_tokens[f"{address}/{action}"]
    chosen = {"amounts": "minor"} if action == "check" else {}
    return await page.post(f"{address}/{action}", {"form_token": token, **chosen, **fields})


def version(report: Shown) -> str:
    found = re.search(r'name="version" value="(\w+)"', report.html)
    assert found is not None
    return found[1]


async def confirm(page: PageDoor, address: str, **typed: str) -> Shown:
    report = await page.get(address)
    return await act(page, report, address, "confirm", version=version(report), **typed)


async def imported(page: PageDoor, address: str) -> batches.Batch:
    """Return the batch of an address once all of its rows are imported."""
    batch_id = address.rpartition("/")[2]
    async with asyncio.timeout(30):
        while True:
            batch = await asyncio.to_thread(batches.read_batch, page.refunds.store, batch_id)
            if batch.imported_at is not None and not page.uploads.active:
                return batch
            await asyncio.sleep(0.02)


async def test_a_file_is_imported_once_its_count_and_sum_are_typed(
    page: PageDoor, folder: Path
) -> None:
    address, report = await checked(page, rows(3))
    assert "Nothing is imported yet." in report.text
    assert "3 refunds, 15.03 USD." in report.text
    assert page.refunds.store.get("order-0") is None
    done = await confirm(page, address, count="3", sum_usd="15.03")
    assert done.status == 303
    assert done.location.startswith("/page/batches/b-")
    batch = await imported(page, done.location)
    assert (batch.accepted, batch.file) == (3, "season.csv")
    assert {page.records.get(f"order-{number}").amount for number in range(3)} == {500, 501, 502}
    # Its report leads to the batch, and the customers' data are gone.
    assert (await page.get(address)).location == done.location
    assert [name for name in names(folder) if not name.endswith(".json")] == []


@pytest.mark.parametrize(
    "typed",
    [
        {"count": "3", "sum_usd": "15.02"},
        {"count": "2", "sum_usd": "15.03"},
        {"count": "3"},
        {"count": "three", "sum_usd": "15.03"},
        {"count": "3", "sum_usd": "1503"},
        {},
    ],
)
async def test_other_figures_than_those_of_the_file_import_nothing(
    page: PageDoor, typed: dict[str, str]
) -> None:
    address, _ = await checked(page, rows(3))
    refused = await confirm(page, address, **typed)
    assert (refused.status, page.refunds.store.get("order-0")) == (422, None)
    assert [*audit.entries(page.refunds.store)] == []
    for name in ("count", "sum_usd"):
        value = typed.get(name, "")
        is_wrong = {"count": "3", "sum_usd": "15.03"}[name] != value
        marked = f'name="{name}" value="{value}"{" aria-invalid" if is_wrong else " required"}'
        assert marked in refused.html
    again = {"count": "3", "sum_usd": "15.03", "version": version(refused)}
    assert (await act(page, refused, address, "confirm", **again)).status == 303


async def test_the_audit_names_who_imported_a_file_and_its_batch(page: PageDoor) -> None:
    address, _ = await checked(page, rows(2))
    done = await confirm(page, address, count="2", sum_usd="10.01")
    batch = await imported(page, done.location)
    (entry,) = audit.entries(page.refunds.store)
    assert entry.deed == audit.Deed(
        by="ann",
        via="page",
        address="127.0.0.1",
        action="import",
        target=batch.batch_id,
        note="season.csv",
    )
    assert entry.result == "done"
    shown = await page.get(f"/page/audit?target={batch.batch_id}")
    assert "season.csv" in shown.text
    assert f'href="/page/audit?target={batch.batch_id}"' in (await page.get(done.location)).html


async def test_an_operator_whom_a_proxy_signs_in_imports_and_others_do_not(
    redis_url: str, folder: Path
) -> None:
    settings: dict[str, Any] = {
        "http_user_header": "X-Forwarded-User",
        "http_proxies": "127.0.0.1",
        "http_operators": "ann@example.com",
    }
    ann = {"X_Forwarded_User": "ann@example.com"}
    eve = {"X_Forwarded_User": "eve"}
    async with a_page(redis_url, spool_dir=folder, **settings) as page:
        token = (await page.get(IMPORT, **ann)).form_tokens[IMPORT]
        sent = await page.post(IMPORT, a_form(token, rows(2), "season.csv"), **ann)
        report = await page.get(sent.location, **ann)
        action = f"{sent.location}/confirm"
        typed = {
            "form_token": report.form_tokens[action],
            "version": version(report),
            "count": "2",
            "sum_usd": "10.01",
        }
        for method, path, data in (
            ("GET", IMPORT, None),
            ("POST", IMPORT, a_form(token, rows(2), "x.csv")),
            ("GET", sent.location, None),
            ("POST", action, typed),
        ):
            got = await page.ask(method, path, data, Sec_Fetch_Site="same-origin", **eve)
            assert got.status == 403
        assert f'href="{IMPORT}"' not in (await page.get("/page", **eve)).html
        assert page.refunds.store.get("order-0") is None
        done = await page.post(action, typed, **ann)
        assert (await imported(page, done.location)).accepted == 2
        (entry,) = audit.entries(page.refunds.store)
        assert (entry.deed.by, entry.deed.action) == ("ann@example.com", "import")


async def test_the_sums_of_major_units_are_typed_as_they_are_shown(page: PageDoor) -> None:
    content = f"{HEAD}a-1,pi_1,1200.50,usd\na-2,pi_2,700,jpy\n".encode()
    address, report = await checked(page, content, amounts="point")
    assert "1,200.50 USD, 700 JPY." in report.text
    wrong = await confirm(page, address, count="2", sum_usd="120050", sum_jpy="700")
    assert wrong.status == 422
    done = await confirm(page, address, count="2", sum_usd="1,200.50", sum_jpy="700")
    await imported(page, done.location)
    assert page.records.get("a-1").amount == 120050


async def test_cents_that_were_taken_for_whole_amounts_show_in_the_sum_to_be_typed(
    page: PageDoor,
) -> None:
    address, report = await checked(page, rows(2), amounts="point")
    assert "2 refunds, 1,001.00 USD." in report.text
    assert "used: amounts written as 12.50" in report.text
    assert (await confirm(page, address, count="2", sum_usd="10.01")).status == 422


async def test_a_file_of_german_excel_is_told_which_choice_reads_it(page: PageDoor) -> None:
    german = "refund_id;payment_intent;amount;currency\r\ng-1;pi_1;12,50;eur\r\n"
    content = codecs.BOM_UTF8 + german.encode()
    address, report = await checked(page, content, amounts="point")
    assert "choose “12,50” under “Amounts are written”" in report.text
    saved = (await page.get(f"{address}/errors")).html
    assert "choose “12,50” under “Amounts are written”" in saved
    assert "--" not in report.text + saved
    await act(page, report, address, "check", amounts="comma")
    assert "1 refund, 12.50 EUR." in (await page.get(address)).text


async def test_columns_that_are_not_known_are_named_one_a_line(page: PageDoor) -> None:
    _, report = await checked(page, b"Bestellung,Betrag\nA-1,500\n")
    assert "<li>column &#39;Betrag&#39; is not a known column" in report.html
    assert ">amount=Betrag</textarea>" in report.html
    assert "\\n" not in report.text
    assert "<details open><summary>Check this file" in report.html


async def test_a_file_that_no_option_can_make_readable_asks_for_another_one(
    page: PageDoor,
) -> None:
    _, report = await checked(page, b"\x89PNG\r\n\x1a\n" + bytes(20), "a.csv")
    assert "it is a picture" in report.text
    assert f'<a href="{IMPORT}">Choose another file</a>' in report.html
    assert "<details open>" not in report.html


async def test_leaving_rows_out_is_proposed_only_if_most_can_be_imported(page: PageDoor) -> None:
    bad = "a-7,pi_7,wrong,usd\na-8,pi_8,worse,usd\n"
    for count, is_proposed in ((1, False), (5, True)):
        _, report = await checked(page, rows(count, bad))
        button = '<button class="main">Leave them out' in report.html
        assert ("Leave them out" in report.text, button) == (True, is_proposed)


async def test_rows_of_all_that_is_left_are_confirmed_by_their_number(page: PageDoor) -> None:
    content = b"refund_id,payment_intent,amount\na-1,pi_1,500\na-2,pi_2,\n"
    address, report = await checked(page, content)
    assert "tick “Rows without an amount refund all that is left” if that is meant" in report.text
    assert f"{address}/confirm" not in report.form_tokens
    assert (await act(page, report, address, "check", all_remaining="true")).status == 303
    short = await confirm(page, address, count="2", sum_unstated="500")
    assert (
        short.status,
        "The refunds of all that is left must be the same as in the file." in short.text,
    ) == (422, True)
    done = await confirm(page, address, count="2", open="1", sum_unstated="500")
    await imported(page, done.location)
    assert page.records.get("a-2").amount is None


async def test_every_invalid_row_is_shown_and_can_be_left_out(page: PageDoor) -> None:
    bad = "a-7,pi_7,wrong,usd\na-8,,5,usd\n,pi_9,5,usd\n"
    address, report = await checked(page, rows(2, bad))
    assert "3 of 5 rows are invalid." in report.text
    assert "is missing: it must be the provider's id" in report.text
    assert re.findall(
        r'<th scope="row" data-label="Line" class="number">(\d+)</th>', report.html
    ) == ["4", "5", "6"]
    assert f"{address}/confirm" not in report.form_tokens
    saved = await page.get(f"{address}/errors")
    assert saved.headers["Content-Disposition"] == 'attachment; filename="invalid-rows.csv"'
    assert [row["payment_intent"] for row in csv.DictReader(io.StringIO(saved.html))] == [
        *("pi_7", "", "pi_9")
    ]
    assert (await act(page, report, address, "check", on_error="skip")).location == address
    assert "Invalid rows, which are left out" in (await page.get(address)).text
    done = await confirm(page, address, count="2", sum_usd="10.01")
    batch = await imported(page, done.location)
    assert (batch.accepted, batch.invalid) == (2, 3)
    left_out = await page.get(f"{done.location}/errors")
    assert len(list(csv.DictReader(io.StringIO(left_out.html)))) == 3
    assert f'href="{done.location}/errors"' in (await page.get(done.location)).html


async def test_rows_that_were_left_out_elsewhere_are_not_offered(page: PageDoor) -> None:
    """By the command line, or more than 7 days ago."""
    batches.open_batch(
        page.refunds.store,
        "b-1",
        file="season.csv",
        digest="d",
        rows=2,
        opening=batches.BatchDraft(invalid=1),
    )
    shown = await page.get("/page/batches/b-1")
    assert "/errors" not in shown.html
    assert "1 row was left out, and this server does not keep it." in shown.text
    assert (await page.get("/page/batches/b-1/errors")).status == 404


async def test_a_file_that_cannot_be_read_is_checked_again_with_other_options(
    page: PageDoor,
) -> None:
    content = b"Order,Payment ID,Total\n1001,pi_1,500\n"
    address, report = await checked(page, content)
    assert "This file cannot be read." in report.text
    assert "--" not in report.text
    columns = "payment_intent=Payment ID\r\namount=Total"
    await act(page, report, address, "check", column=columns, id_from="Order")
    report = await page.get(address)
    assert "payment_intent=Payment ID\namount=Total</textarea>" in report.html
    done = await confirm(page, address, count="1", sum_unstated="500")
    assert (await imported(page, done.location)).accepted == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "two words"}, "“Name of the batch” must be 1 to 100"),
        ({"attempt": "0"}, "“Attempt” must be a whole number"),
        ({"amounts": ""}, "“Amounts are written” must be chosen"),
        ({"amounts": "odd"}, "“Amounts are written” must be chosen"),
        ({"on_error": "ignore"}, "“Leave out the invalid rows” must be one of"),
        ({"odd": "1"}, "“odd” is not a parameter here"),
    ],
)
async def test_a_wrong_option_is_named_by_its_label_and_the_file_is_kept(
    page: PageDoor, fields: dict[str, str], said: str
) -> None:
    address, report = await checked(page, rows(2), **fields)
    assert said in report.text
    assert (await act(page, report, address, "check")).status == 303
    assert (await confirm(page, address, count="2", sum_usd="10.01")).status == 303


async def test_a_form_shown_before_the_file_was_checked_again_imports_nothing(
    page: PageDoor,
) -> None:
    address, report = await checked(page, rows(2))
    await act(page, report, address, "check", delay="70m")
    typed = {"count": "2", "sum_usd": "10.01", "version": version(report)}
    late = await act(page, report, address, "confirm", **typed)
    assert (late.status, page.refunds.store.get("order-0")) == (409, None)


async def test_two_clicks_import_once(page: PageDoor) -> None:
    address, _ = await checked(page, rows(50))
    typed = {"count": "50", "sum_usd": f"{sum(range(500, 550)) / 100:.2f}"}
    first, second = await asyncio.gather(*(confirm(page, address, **typed) for _ in range(2)))
    assert first.location == second.location
    batch = await imported(page, first.location)
    assert (batch.accepted, batch.known) == (50, 0)


async def test_a_known_file_names_its_batch(page: PageDoor) -> None:
    address, _ = await checked(page, rows(2))
    done = await confirm(page, address, count="2", sum_usd="10.01")
    await imported(page, done.location)
    _, report = await checked(page, rows(2), "renamed.csv")
    assert "This file was imported as batch" in report.text
    assert f'href="{done.location}"' in report.html
    assert "'refunds " not in report.text
    _, report = await checked(page, rows(2), again="true")
    assert "Nothing is left to import." in report.text


async def test_an_import_that_was_cut_off_after_its_last_row_is_ended_by_the_same_file(
    page: PageDoor,
) -> None:
    address, _ = await checked(page, rows(2))
    begun = (await confirm(page, address, count="2", sum_usd="10.01")).location
    batch = await imported(page, begun)
    page.refunds.store.redis.hdel(f"refunds:batch:{batch.batch_id}", "imported_at")
    again, report = await checked(page, rows(2))
    assert "Nothing is left to import." not in report.text
    done = await confirm(page, again, count="2", sum_usd="10.01")
    assert done.location == begun
    assert (await imported(page, begun)).accepted == 2


async def test_a_disk_that_is_full_is_named_and_does_not_hide_an_import_that_has_begun(
    page: PageDoor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = await checked(page, rows(2))

    def full(_checks: Checks, _check: Check) -> Check:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Checks, "write", full)
        refused = await send(page, rows(3))
        assert (refused.status, "too little room" in refused.text) == (503, True)
        done = await confirm(page, address, count="2", sum_usd="10.01")
    assert done.location.startswith("/page/batches/b-")
    assert (await imported(page, done.location)).accepted == 2
    assert [name for name in names(folder) if not name.endswith(".json")] == []


async def test_records_that_changed_since_the_check_refuse_the_import(page: PageDoor) -> None:
    address, _ = await checked(page, rows(2))
    page.records.queued("order-1", amount=9, payment_intent="pi_other")
    refused = await confirm(page, address, count="2", sum_usd="10.01")
    assert (refused.status, page.refunds.store.get("order-0")) == (409, None)
    assert "id of a refund with other contents" in refused.text


async def test_a_dropped_file_is_removed_and_is_not_imported(page: PageDoor, folder: Path) -> None:
    address, report = await checked(page, rows(2))
    assert (await act(page, report, address, "drop")).location == IMPORT
    assert names(folder) == []
    typed = {"count": "2", "sum_usd": "10.01", "version": version(report)}
    for action in ("confirm", "check", "drop"):
        assert (await act(page, report, address, action, **typed)).status == 404
    assert (await page.get(address)).status == 404
    assert (await page.get(f"{IMPORT}/{'../' * 2}etc")).status == 404


async def test_a_form_shown_before_a_restart_imports_after_it(redis_url: str, folder: Path) -> None:
    async with a_page(redis_url, spool_dir=folder) as before:
        await before.sign_in("read", "submit")
        address, report = await checked(before, rows(2))
    async with a_page(redis_url, spool_dir=folder) as after:
        after.cookies = before.cookies
        typed = {"count": "2", "sum_usd": "10.01", "version": version(report)}
        done = await act(after, report, address, "confirm", **typed)
        assert (await imported(after, done.location)).accepted == 2


async def test_a_file_that_is_not_confirmed_is_removed_after_eight_hours(
    page: PageDoor, folder: Path
) -> None:
    await checked(page, rows(2))
    await page.uploads.take_up()
    kept = [folder / name for name in names(folder)]
    assert [oct(path.stat().st_mode)[-3:] for path in kept] == ["600", "600"]
    old = time.time() - spool.CHECKED_SECONDS - 1
    for path in kept:
        os.utime(path, (old, old))
    await page.uploads.take_up()
    assert names(folder) == []


async def test_the_results_come_for_the_same_file_only(page: PageDoor, folder: Path) -> None:
    packed = gzip.compress(rows(2), mtime=0)
    address, _ = await checked(page, packed, "season.csv.gz")
    done = await confirm(page, address, count="2", sum_usd="10.01")
    await imported(page, done.location)
    await page.sign_in("read", name="bob")
    action = f"{done.location}/result"
    token = (await page.get(done.location)).form_tokens[action]
    other = await page.post(action, a_form(token, rows(2), "other.csv"))
    assert (other.status, "choose season.csv.gz, just as it was imported" in other.text) == (
        409,
        True,
    )
    assert 'href="/page/batches"' in other.html
    result = await page.post(action, a_form(token, packed, "any.csv.gz"))
    assert "attachment" in result.headers["Content-Disposition"]
    assert result.headers["X-Content-Type-Options"] == "nosniff"
    found = [(row["refund_id"], row["status"]) for row in csv.DictReader(io.StringIO(result.html))]
    assert found == [("order-0", "pending"), ("order-1", "pending")]
    assert [name for name in names(folder) if not name.endswith(".json")] == []


async def test_a_person_without_the_scope_submit_imports_nothing(
    page: PageDoor, folder: Path
) -> None:
    token = (await page.get(IMPORT)).form_tokens[IMPORT]
    address, _ = await checked(page, rows(2))
    before = names(folder)
    await page.sign_in("read", "operate", name="bob")
    for path in (IMPORT, address, f"{address}/errors"):
        assert (await page.get(path)).status == 403
    assert f'href="{IMPORT}"' not in (await page.get("/page")).html
    assert (await page.post(IMPORT, a_form(token, rows(2), "x.csv"))).status == 403
    for action in ("check", "confirm", "drop"):
        assert (await page.post(f"{address}/{action}", {"form_token": token})).status == 403
    assert (names(folder), page.refunds.store.get("order-0")) == (before, None)


@pytest.mark.parametrize(
    ("headers", "token"),
    [({"Sec_Fetch_Site": "cross-site"}, None), ({}, "0" * 64), ({}, "é"), ({}, "")],
)
async def test_a_file_of_another_site_or_session_is_not_read(
    page: PageDoor, folder: Path, headers: dict[str, str], token: str | None
) -> None:
    own = (await page.get(IMPORT)).form_tokens[IMPORT]
    form = a_form(own if token is None else token, rows(2), "x.csv")
    assert (await page.post(IMPORT, form, **headers)).status == 403
    assert names(folder) == []


def parts(token: str, *more: str, end: str = "--B--\r\n") -> bytes:
    first = f'--B\r\nContent-Disposition: form-data; name="form_token"\r\n\r\n{token}\r\n'
    return (first + "".join(f"--B\r\n{each}\r\n" for each in more) + end).encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n' + rows(1).decode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (parts, 400),
        (lambda token: parts(token, FILE, FILE), 400),
        (lambda token: parts(token, FILE, end=""), 400),
        (lambda token: parts(token, FILE, end="--C--\r\n"), 400),
        (lambda token: parts(token, "X: y\r\n\r\nvalue"), 400),
        (lambda token: parts(token, *(["X: y"] * 100)), 400),
        (lambda _: b"--B\r\n" + FILE.encode() + b"\r\n--B--\r\n", 400),
        (lambda _: b"no boundary\r\n" * 1000, 400),
        (lambda _: b"--B\r\nContent-Type: multipart/mixed; boundary=C\r\n\r\n--C--\r\n", 400),
        (lambda _: b"", 400),
        (lambda token: parts(token, FILE.replace("a.csv", "")), 422),
        (
            lambda token: parts(
                token, f'Content-Disposition: form-data; name="name"\r\n\r\n{"x" * 70_000}', FILE
            ),
            413,
        ),
    ],
)
async def test_a_form_that_is_broken_is_refused_and_leaves_no_file(
    page: PageDoor, folder: Path, body: Callable[[str], bytes], status: int
) -> None:
    token = (await page.get(IMPORT)).form_tokens[IMPORT]
    kind = {"Content_Type": "multipart/form-data; boundary=B"}
    assert (await page.post(IMPORT, body(token), **kind)).status == status
    assert names(folder) == []


async def test_an_ordinary_form_is_not_taken_for_a_file(page: PageDoor) -> None:
    token = (await page.get(IMPORT)).form_tokens[IMPORT]
    assert (await page.post(IMPORT, {"form_token": token})).status == 415
    none = {"Content_Type": "multipart/form-data"}
    assert (await page.post(IMPORT, b"x", **none)).status == 400


async def test_a_file_that_is_too_large_is_not_kept(
    page: PageDoor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page.uploads.spool, "_limit", 1000)
    assert (await send(page, rows(100))).status == 413

    async def chunks() -> AsyncIterator[bytes]:
        token = (await page.get(IMPORT)).form_tokens[IMPORT]
        yield parts(token, FILE + "x" * 2000)

    # Its length is not announced.
    kind = {"Content_Type": "multipart/form-data; boundary=B"}
    assert (await page.post(IMPORT, chunks(), **kind)).status == 413
    assert names(folder) == []


async def test_a_client_that_goes_away_leaves_no_file(page: PageDoor, folder: Path) -> None:
    token = (await page.get(IMPORT)).form_tokens[IMPORT]
    body = parts(token, FILE + "x" * 500_000, end="")
    head = (
        f"POST {IMPORT} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nSec-Fetch-Site: same-origin\r\n"
        f"Cookie: refunds-local={page.cookies['refunds-local']}\r\n"
        f"Content-Type: multipart/form-data; boundary=B\r\n"
        f"Content-Length: {len(body) + 100}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", page.port)
    writer.write(head.encode() + body)
    await writer.drain()
    async with asyncio.timeout(10):
        while not names(folder):  # noqa: ASYNC110 - only the server's own folder shows it
            await asyncio.sleep(0.01)
        writer.close()
        while names(folder):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def test_what_a_file_holds_and_its_name_are_shown_as_text(page: PageDoor) -> None:
    bad = f'"{CANARY}",pi_7,"{CANARY}",usd\n'
    address, report = await checked(page, rows(1, bad), f"../{CANARY}\u202e.csv", name=CANARY)
    assert "<img" not in report.html
    await act(page, report, address, "check", column=CANARY, sheet=CANARY)
    assert "<img" not in (await page.get(address)).html
    await act(page, report, address, "check", on_error="skip")
    report = await page.get(address)
    assert "<img" not in report.html
    assert "\u202e" not in report.html
    done = await confirm(page, address, count="1", sum_usd="5.00")
    await imported(page, done.location)
    assert "<img" not in (await page.get(done.location)).html


def test_what_is_known_of_a_file_survives_in_its_own_file(tmp_path: Path) -> None:
    checks = Checks(Spool(tmp_path))
    check = Check(
        check_id="0" * 32, file="é.csv", by="ann", fields={"amounts": "comma", "column": "a=b\nc=d"}
    )
    written = checks.write(check)
    assert checks.read("0" * 32) == written
    assert checks.write(written).version != written.version
    assert sorted(each.name for each in tmp_path.iterdir()) == [f"checked-{'0' * 32}.json"]
    assert written.options().getall("column") == ["a=b", "c=d"]
    assert (written.options()["amount_unit"], written.options()["decimal"]) == ("major", "comma")
    assert json.loads((tmp_path / f"checked-{'0' * 32}.json").read_text())["by"] == "ann"
