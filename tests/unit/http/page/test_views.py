"""The views of the page: what they show, and that everything shown is text."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import page_canaries
from tests.support.cli_runner import PAYMENT
from tests.support.page_door import a_page
from worker.batches import close_batch, open_batch
from worker.broker import rejected
from worker.broker.kept import kept_of
from worker.errors import NotDurable, SettingsError, TooFewReplicas
from worker.monitoring.snapshot import snapshot
from worker.rules import proofs
from worker.store import claims, flags, saves

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from tests.support.page_door import PageDoor

HOUR_MS = 3_600_000
FOR_A_SHELL = re.compile(r"--[a-z]|'refunds |REFUNDS_")
CANARY = "<script>alert(1)</script>'\"&\x1b[31m\u202e"


async def test_the_overview_says_what_stops_refunds_and_what_needs_a_person(
    reader: PageDoor,
) -> None:
    reader.records.queued("order-1")
    reader.records.in_review("order-2")
    flags.pause(reader.refunds.store, "ann")
    text = (await reader.get("/page")).text
    assert "Everything has been paused since" in text
    assert "by ann: nothing is sent until it is resumed." in text
    assert "No worker runs, and 1 refund waits." in text
    assert "1 refund needs review: a person decides." in text


async def test_the_overview_says_that_the_server_has_forgotten_claims(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    now = reader.refunds.store.time()
    sync_redis.zadd("refunds:workers", {"w-1": now.timestamp() * 1000})
    reader.refunds.store.run(claims.position("0-lost:7:mark"))
    text = (await reader.get("/page")).text
    assert "Stopped. The records lack what was sent last" in text
    assert "All is well" not in text


@pytest.mark.parametrize("flag", ["credentials_refused_at", "account_lost_at", "behind_since"])
async def test_a_refund_is_not_said_to_be_sent_while_something_stops_all(
    reader: PageDoor, sync_redis: redis.Redis, flag: str
) -> None:
    reader.records.queued("order-1")
    sync_redis.hset("refunds:meta", flag, "1000")
    text = (await reader.get("/page/refunds/order-1")).text
    assert "It waits: nothing is sent now, and the overview says why." in text
    assert "next check" not in text


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (89, None),
        (90, "no new refund is accepted, and those already accepted are finished"),
        (99, "no new refund is accepted, and those already accepted are finished"),
        (100, "no new refund is accepted, and nothing is sent"),
    ],
)
async def test_the_overview_says_that_the_server_is_full(
    reader: PageDoor, monkeypatch: pytest.MonkeyPatch, used: int, said: str | None
) -> None:
    seen = snapshot(reader.refunds.store)
    full = replace(seen, info={"maxmemory": 100, "used_memory": used})
    monkeypatch.setattr("worker.http.page.overview.snapshot", lambda _: full)
    text = (await reader.get("/page")).text
    assert (said or "No worker runs") in text
    assert ("too little memory" in text) is (said is not None)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (NotDurable("it has no append-only file"), 1),
        (TooFewReplicas(1, 0, "localhost"), 1),
        (SettingsError("this user may not read it"), 0),
    ],
)
async def test_the_overview_says_that_the_server_may_forget(
    reader: PageDoor, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(reader.refunds.store, "require_durable", fail)
    text = (await reader.get("/page")).text
    assert text.count("The records may lose what they acknowledge") == times


async def test_the_overview_is_fine_if_nothing_needs_a_person(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    sync_redis.zadd("refunds:workers", {"w-1": reader.refunds.store.time().timestamp() * 1000})
    reader.records.succeeded("order-1")
    reader.records.queued("order-2", payment_intent="pi_2")
    text = (await reader.get("/page")).text
    assert "All is well. No action is needed. 1 refund is on the way." in text
    assert "1 worker process runs" in text


async def test_the_overview_names_a_file_that_was_imported_in_part(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    store = reader.refunds.store
    sync_redis.zadd("refunds:workers", {"w-1": store.time().timestamp() * 1000})
    open_batch(store, "b-1", file="<june>.csv", digest="d", rows=9)
    assert "All is well." in (await reader.get("/page")).text
    sync_redis.hincrby("refunds:batch:b-1", "created_at", -HOUR_MS)
    got = await reader.get("/page")
    assert "All is well." not in got.text
    assert (
        "<june>.csv was imported only in part: 0 of its 9 rows were accepted, and none for 2"
        " minutes. Import the same file here again, or with the same options on the command line"
        " by refunds import '<june>.csv': no refund is made twice." in got.text
    )
    assert "/page/batches/b-1" in got.html
    close_batch(store, "b-1", handed_in=9, conflicting=0)
    assert "All is well." in (await reader.get("/page")).text


async def test_the_overview_counts_what_settled_in_the_latest_minutes(reader: PageDoor) -> None:
    for number in range(3):
        reader.records.succeeded(f"good-{number}", f"re_{number}", payment_intent=f"pi_{number}")
    reader.records.failed("bad-1", payment_intent="pi_bad")
    html = (await reader.get("/page")).html
    # A minute may end between two refunds.
    assert 1 <= html.count('<rect class="succeeded"') <= 2
    assert 1 <= html.count('<rect class="failed"') <= 2


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=failed", {"bad-1"}),
        ("stage=review", {"stuck-1"}),
        ("payment_intent=pi_other", {"other-1"}),
        ("status=pending", {"stuck-1", "other-1"}),
        ("status=failed&stage=review", set()),
    ],
)
async def test_refunds_are_listed_by_what_they_are(
    reader: PageDoor, query: str, expected: set[str]
) -> None:
    reader.records.failed("bad-1", payment_intent="pi_bad")
    reader.records.in_review("stuck-1")
    reader.records.queued("other-1", payment_intent="pi_other")
    html = (await reader.get(f"/page/refunds?{query}")).html
    names = {"bad-1", "stuck-1", "other-1"}
    assert {name for name in names if f'href="/page/refunds/{name}"' in html} == expected


async def test_a_long_list_continues_on_the_next_page(reader: PageDoor) -> None:
    for number in range(60):
        reader.records.queued(f"order-{number:02}", payment_intent=f"pi_{number}")
    first = await reader.get("/page/refunds?status=pending")
    address = first.html.split('">Next page')[0].rsplit('href="', 1)[1].replace("&amp;", "&")
    second = await reader.get(address)
    shown = [first.html.count('scope="row"'), second.html.count('scope="row"')]
    assert shown == [50, 10]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("order-1", "/page/refunds/order-1"),
        ("  order-1 ", "/page/refunds/order-1"),
        (PAYMENT, f"/page/refunds?payment_intent={PAYMENT}"),
        ("re_7", "/page/refunds/order-7"),
    ],
)
async def test_an_exact_id_leads_to_what_has_it(reader: PageDoor, text: str, target: str) -> None:
    reader.records.queued("order-1")
    reader.records.succeeded("order-7", "re_7", payment_intent="pi_7")
    shown = await reader.get(f"/page/refunds?q={text}&status=&stage=")
    while "q=" in shown.headers.get("Location", ""):
        shown = await reader.get(shown.location)
    assert (shown.status, shown.location) == (303, target)


async def test_an_id_that_nothing_has_is_said_to_be_unknown(reader: PageDoor) -> None:
    reader.records.queued("order-1")
    text = (await reader.get("/page/refunds?q=orders")).text
    assert "No refund, batch or payment here has exactly the id “orders”" in text
    assert "search for the id of the payment" in text


async def test_a_refund_in_review_shows_its_evidence_and_what_can_be_decided(
    reader: PageDoor,
) -> None:
    refund = reader.records.in_review("order-1")
    text = (await reader.get("/page/refunds/order-1")).text
    assert "Nothing, until a person decides" in text
    assert "it cannot be told" in text
    assert refund.idempotency_key is not None
    assert refund.idempotency_key in text
    assert "It happened: the provider shows its refund" in text
    assert "does it show a refund of 500 minor units" in text
    assert "--" not in text
    queue = (await reader.get("/page/review")).text
    assert "order-1" in queue
    assert "1 in all" in queue


async def test_amounts_are_shown_as_people_write_them(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    reader.records.queued("order-1", amount=123450, currency="usd")
    reader.records.in_review("order-2", amount=1040, payment_intent="pi_2")
    reader.records.queued("order-3", amount=700, payment_intent="pi_3")
    # What a worker reads before it sends.
    sync_redis.hset(
        "refunds:refund:order-2",
        "baseline",
        json.dumps({"refunded": 0, "remaining": 100000, "currency": "usd"}),
    )
    listed = (await reader.get("/page/refunds")).text
    assert all(each in listed for each in ("1,234.50 USD", "10.40 USD", "700 minor units"))
    assert "10.40 USD" in (await reader.get("/page/review")).text
    one = (await reader.get("/page/refunds/order-2")).text
    assert "does it show a refund of 10.40 USD" in one
    assert "0.00 USD refunded, 1,000.00 USD left" in one


async def test_no_part_of_a_refund_in_review_is_for_a_shell(reader: PageDoor) -> None:
    refund = reader.records.sending("order-1")
    reason = "which proves nothing under REFUNDS_TOTALS=hint"
    alarm = f"the decision could not be verified ({reason}): decide again with --unverified if so"
    step = proofs.to_review({"error_code": "no_reply"}, "inconclusive", alarm)
    detail = {"look": "inconclusive", "reason": reason, "alarm": alarm}
    assert reader.refunds.store.run(saves.save(refund, step, detail)).result == "saved"
    for view in ("/page/refunds/order-1", "/page/review"):
        text = (await reader.get(view)).text
        assert "tick “My word counts if the provider shows nothing either way”" in text
        assert re.search("--[a-z]|REFUNDS_", text) is None


async def test_a_settled_refund_offers_no_decision(reader: PageDoor) -> None:
    reader.records.succeeded("order-1")
    text = (await reader.get("/page/refunds/order-1")).text
    assert "the money moved" in text
    assert "What can be decided" not in text


async def test_a_form_of_a_decision_is_renewed_only_until_it_is_there(reader: PageDoor) -> None:
    reader.records.queued("order-1")
    reader.records.in_review("order-2", payment_intent="pi_2")
    html = [(await reader.get(f"/page/refunds/order-{number}")).html for number in (1, 2)]
    assert ['id="decisions" data-live' in each for each in html] == [True, False]
    assert ["What can be decided" in each for each in html] == [False, True]


@pytest.mark.parametrize("path", ["/page/refunds/no-such", "/page/batches/no-such", "/page/no"])
async def test_what_does_not_exist_is_answered_with_404(reader: PageDoor, path: str) -> None:
    shown = await reader.get(path)
    assert (shown.status, shown.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert FOR_A_SHELL.search(shown.text) is None


async def test_a_refund_whose_message_was_rejected_is_explained_without_a_command(
    reader: PageDoor,
) -> None:
    kept = kept_of(([], {"refund_id": "order-1"}), "payment_intent: is missing")
    reader.refunds.store.run(rejected.keep(kept))
    shown = await reader.get("/page/refunds/order-1")
    assert shown.status == 404
    assert "fix the sender and send the refund again with the same id" in shown.text
    assert FOR_A_SHELL.search(shown.text) is None


@pytest.mark.parametrize(
    "path", ["/page/refunds?status=odd", "/page/refunds?after=odd", "/page?x=1"]
)
async def test_a_wrong_parameter_is_answered_with_422(reader: PageDoor, path: str) -> None:
    assert (await reader.get(path)).status == 422


@pytest.mark.parametrize("view", page_canaries.VIEWS)
async def test_what_others_wrote_is_shown_as_text(reader: PageDoor, view: str) -> None:
    page_canaries.plant(reader, CANARY)
    shown = await reader.get(view)
    assert shown.status == 200
    assert "<script>" not in shown.html
    assert "\x1b" not in shown.html
    assert "\u202e" not in shown.html
    assert "&lt;script&gt;" in shown.html


async def test_metadata_are_shown_with_their_refund_only(reader: PageDoor) -> None:
    reader.records.in_review("order-1", metadata={"customer": "ann-example"})
    assert "ann-example" in (await reader.get("/page/refunds/order-1")).html
    for path in ("/page", "/page/refunds", "/page/review"):
        assert "ann-example" not in (await reader.get(path)).html


@pytest.mark.parametrize("path", ["/page", "/page/sign-in", "/page/no", "/page/static/page.css"])
async def test_every_answer_has_the_headers_that_protect_it(reader: PageDoor, path: str) -> None:
    headers = (await reader.get(path)).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


async def test_no_page_has_an_inline_style_or_script(reader: PageDoor) -> None:
    reader.records.in_review("order-1")
    for path in ("/page", "/page/refunds", "/page/refunds/order-1", "/page/callbacks"):
        html = (await reader.get(path)).html
        assert " style=" not in html
        assert "<style" not in html
        assert re.search(r"<[^>]*\son\w+\s*=", html) is None


async def test_if_redis_is_away_the_page_says_so(
    reader: PageDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr("worker.http.page.overview.read_overview", away)
    shown = await reader.get("/page")
    assert (shown.status, "secret" in shown.html) == (500, False)


async def test_the_root_leads_to_the_page(page: PageDoor) -> None:
    assert (await page.get("/")).location == "/page"


async def test_an_owner_whose_record_has_expired_is_not_found(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    reader.records.succeeded("order-7", "re_7", payment_intent="pi_7")
    sync_redis.delete("refunds:refund:order-7")
    assert "exactly the id “re_7”" in (await reader.get("/page/refunds?q=re_7")).text


async def test_the_overview_sums_up_money_that_is_not_settled(reader: PageDoor) -> None:
    assert "Money not settled yet None." in (await reader.get("/page")).text
    reader.records.queued("order-1", amount=123450, currency="usd")
    reader.records.in_review("order-2", amount=500, payment_intent="pi_2")
    reader.records.succeeded("order-3", payment_intent="pi_3", amount=900)
    text = (await reader.get("/page")).text
    assert "USD 1,234.50 USD 0.00 USD" in text
    assert "not known yet 0 minor units 500 minor units" in text
    assert "9.00" not in text


async def test_the_overview_names_the_workers_and_whom_the_provider_does_not_answer(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    now = int(reader.refunds.store.time().timestamp() * 1000)
    sync_redis.zadd("refunds:workers", {"w-1": now, "w-2": now, "w-0": now - 60_000})
    sync_redis.zadd("refunds:outages", {"w-2": now})
    sync_redis.hset("refunds:gate", mapping={"pace": "0.5", "paced_at": str(now + 60_000)})
    text = (await reader.get("/page")).text
    assert re.search("w-1 [0-9: Z-]+ answers w-2 [0-9: Z-]+ does not answer", text)
    assert "w-0" not in text
    assert "at 50 % of the rate limit" in text


async def test_a_refund_shows_which_endpoints_do_not_know_it(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    reader.records.succeeded("order-1")
    view = "/page/refunds/order-1"
    assert "No callback waits to be sent for this refund." in (await reader.get(view)).text
    now = reader.refunds.store.time().timestamp() * 1000
    sync_redis.zadd("refunds:callback-endpoints", {"crm": now, "shop": now, "till": now})
    sync_redis.zadd("refunds:callbacks", {"order-1": now})
    sync_redis.zadd("refunds:callback-since:shop", {"order-1": now})
    sync_redis.hset("refunds:callback-tries:shop", "order-1", "2 1787730829000 ")
    sync_redis.zadd("refunds:callback-dead:till", {"order-1": now})
    text = (await reader.get(view)).text
    assert "It will be handed to the endpoints in a moment." in text
    assert re.search("shop: waiting since [0-9: Z-]+, after 2 failed tries.", text)
    assert "till: given up on" in text
    assert "crm" not in text


async def test_the_overview_names_endpoints_that_callbacks_do_not_reach(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    sync_redis.zadd("refunds:callback-endpoints", {"books": 1, "shop": 1, "till": 1})
    for name, failures in (("books", 10), ("shop", 9)):
        sync_redis.hset(f"refunds:callback-endpoint:{name}", "failures", failures)
        sync_redis.zadd(f"refunds:callbacks:{name}", {"order-1": 1, "order-2": 1})
    sync_redis.zadd("refunds:callback-dead:till", {"order-1": 1})
    text = (await reader.get("/page")).text
    assert "Callbacks do not reach books: 2 wait, and 0 were given up." in text
    assert "Callbacks do not reach till: 0 wait, and 1 was given up." in text
    assert "reach shop" not in text


async def test_what_is_given_up_leads_to_its_refund_or_its_batch(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    sync_redis.zadd("refunds:callback-endpoints", {"shop": 1})
    sync_redis.zadd("refunds:callback-dead:shop", {"order:1": 1, "batch/b-1": 2})
    links = re.findall(
        r'<th scope="row"><a href="([^"]+)"', (await reader.get("/page/callbacks")).html
    )
    assert links == ["/page/refunds/order%3A1", "/page/batches/b-1"]


async def test_callbacks_that_are_off_are_not_said_to_stop_what_waits(reader: PageDoor) -> None:
    off = "Callbacks are off: nothing more is noted for the endpoints. What waits is still sent."
    assert off in (await reader.get("/page/callbacks")).text


async def test_callbacks_show_where_they_are_sent_if_this_server_knows_it(
    redis_url: str, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    file, secret = tmp_path / "callbacks.toml", tmp_path / "callback_shop"
    file.write_text('[[endpoints]]\nname = "shop"\nurl = "https://shop.example.com/r?key=k7"\n')
    secret.write_text(f"whsec_{base64.b64encode(bytes(32)).decode()}\n")
    changes: dict[str, Any] = {"callbacks_file": file, "secrets_dir": tmp_path}
    async with a_page(redis_url, **changes) as page:
        await page.sign_in("read")
        sync_redis.zadd("refunds:callback-endpoints", {"shop": 1, "till": 1})
        shown = await page.get("/page/callbacks")
        assert "shop https://shop.example.com/r?…" in shown.text
        assert "till not known to this server" in shown.text
        assert "k7" not in shown.html
        secret.unlink()
        assert "shop not known to this server" in (await page.get("/page/callbacks")).text


async def test_review_is_in_order_of_how_long_refunds_have_waited(
    reader: PageDoor, sync_redis: redis.Redis
) -> None:
    for number in range(3):
        reader.records.in_review(f"order-{number}", payment_intent=f"pi_{number}")
    sync_redis.hset("refunds:refund:order-2", "updated_at", "1")
    sync_redis.zadd("refunds:index:review", {"order-2": 2**45})
    text = (await reader.get("/page/review")).text
    assert [text.index(f"order-{number}") for number in (2, 0, 1)] == sorted(
        text.index(f"order-{number}") for number in range(3)
    )
