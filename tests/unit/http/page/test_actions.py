"""What a person can do on the page: each action once, by a form of this session only."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from worker.batches import close_batch, open_batch, read_batch
from worker.errors import NotDurable, NotFound
from worker.model.refund import Stage, Status
from worker.store import audit, flags, tokens

if TYPE_CHECKING:
    import redis

    from tests.support.page_door import PageDoor, Shown

HOW = {"note": "the provider's support says so"}


@pytest.fixture
async def actor(page: PageDoor) -> PageDoor:
    await page.sign_in("read", "operate", name="ann")
    return page


async def send(page: PageDoor, view: str, action: str, **fields: str) -> Shown:
    """Send the form of a view, as it is shown there."""
    form = (await page.get(view)).form_tokens[action]
    return await page.post(action, {"form_token": form, **fields})


async def decide(page: PageDoor, refund_id: str, decision: str, **fields: str) -> Shown:
    view = f"/page/refunds/{refund_id}"
    version = str(page.records.get(refund_id).version)
    values = {"decision": decision, "version": version, **HOW, **fields}
    return await send(page, view, f"{view}/resolve", **values)


@pytest.mark.parametrize(("action", "fields"), [("pause", {}), ("cancel", {"typed": "b-1"})])
async def test_a_batch_of_which_only_a_refund_in_review_is_left_can_still_be_stopped(
    actor: PageDoor, action: str, fields: dict[str, str]
) -> None:
    store = actor.records.store
    open_batch(store, "b-1", file="season.csv", digest="d1", rows=1)
    actor.records.in_review("order-1", batch_id="b-1")
    close_batch(store, "b-1", handed_in=1, conflicting=0)
    shown = await send(actor, "/page/batches/b-1", f"/page/batches/b-1/{action}", **fields)
    assert (shown.status, read_batch(store, "b-1").state) == (
        303,
        {"pause": "paused", "cancel": "canceled"}[action],
    )


async def test_a_refund_that_was_never_in_doubt_is_settled_as_failed(actor: PageDoor) -> None:
    actor.records.in_review("order-1", doubt=False)
    shown = await decide(actor, "order-1", "failed", code="paid_in_cash")
    assert (shown.status, shown.location) == (303, "/page/refunds/order-1")
    refund = actor.records.get("order-1")
    assert (refund.status, refund.error_code) == (Status.FAILED, "paid_in_cash")
    last = actor.refunds.history("order-1")[-1]
    assert (last["by"], last["note"]) == ("ann", HOW["note"])


@pytest.mark.parametrize(
    ("decision", "fields", "says"),
    [
        ("succeeded", {"provider_refund_id": "re_7"}, None),
        ("failed", {"code": "paid_in_cash"}, "failed"),
        ("resend", {}, "absent"),
    ],
)
async def test_a_decision_on_a_doubt_is_verified_by_a_worker(
    actor: PageDoor, decision: str, fields: dict[str, str], says: str | None
) -> None:
    actor.records.in_review("order-1")
    assert (await decide(actor, "order-1", decision, **fields)).status == 303
    refund = actor.records.get("order-1")
    assert refund.stage is not Stage.REVIEW
    assert not refund.settled
    assert says in {None, refund.operator_says}


@pytest.mark.parametrize(
    "fields",
    [
        {"decision": "odd"},
        {"decision": "succeeded"},
        {"decision": "failed"},
        {"decision": "resend", "note": ""},
        {"decision": "resend", "version": "x"},
    ],
)
async def test_a_form_that_is_not_complete_changes_nothing(
    actor: PageDoor, fields: dict[str, str]
) -> None:
    before = actor.records.in_review("order-1")
    assert (await decide(actor, "order-1", **fields)).status == 422
    assert actor.records.get("order-1") == before


async def test_the_reason_of_a_failure_is_written_in_words(actor: PageDoor) -> None:
    actor.records.in_review("order-1", doubt=False)
    assert (await decide(actor, "order-1", "failed", code="Paid in cash!")).status == 303
    assert actor.records.get("order-1").error_code == "paid_in_cash"


async def test_after_a_decision_the_page_says_what_follows_from_it(actor: PageDoor) -> None:
    actor.records.in_review("order-1")
    await decide(actor, "order-1", "failed", code="voucher")
    text = (await actor.get("/page/refunds/order-1")).text
    assert "ann decided that it failed, so nothing is sent: a worker first looks" in text
    assert "sends it again" not in text


async def test_two_people_who_decide_at_once_decide_once(actor: PageDoor) -> None:
    actor.records.in_review("order-1", doubt=False)
    version = str(actor.records.get("order-1").version)
    first = await decide(actor, "order-1", "failed", code="paid_in_cash")
    action = "/page/refunds/order-1/resolve"
    moves = len(actor.refunds.history("order-1"))
    # The form that the other person was shown before is not shown any more.
    secret = actor.cookies["refunds-local"]
    data = {
        "form_token": form_token(secret, action),
        "decision": "resend",
        "version": version,
        **HOW,
    }
    second = await actor.post(action, data)
    assert (first.status, second.status) == (303, 409)
    assert "has changed since version" in second.text
    assert "Since you opened the form" in second.text
    assert 'data-view="/page/refunds/order-1"' in second.html
    assert len(actor.refunds.history("order-1")) == moves


def form_token(secret: str, path: str) -> str:
    """The token of a form, as the session of this secret computes it."""
    from worker.http.page.sessions import Session  # noqa: PLC0415 - of this test only
    from worker.model.callers import Caller  # noqa: PLC0415 - likewise

    return Session(caller=Caller(name="x", scopes=frozenset()), secret=secret).form_token(path)


async def test_a_refund_is_canceled_once(actor: PageDoor) -> None:
    actor.records.queued("order-1")
    shown = await send(actor, "/page/refunds/order-1", "/page/refunds/order-1/cancel")
    assert shown.status == 303
    assert actor.records.get("order-1").status is Status.CANCELED
    assert actor.refunds.history("order-1")[-1]["by"] == "ann"
    assert (
        "/page/refunds/order-1/cancel" not in (await actor.get("/page/refunds/order-1")).form_tokens
    )


async def test_a_refund_that_was_sent_is_not_canceled(actor: PageDoor) -> None:
    before = actor.records.sending("order-1")
    action = "/page/refunds/order-1/cancel"
    token = form_token(actor.cookies["refunds-local"], action)
    shown = await actor.post(action, {"form_token": token})
    assert (shown.status, actor.records.get("order-1")) == (409, before)
    assert "cannot be canceled; follow it here" in shown.text


async def test_no_cancel_is_offered_if_only_a_person_says_that_it_did_not_happen(
    actor: PageDoor, sync_redis: redis.Redis
) -> None:
    actor.records.queued("order-1")
    fields: dict[Any, Any] = {"doubted": "1", "evidence": "operator"}
    sync_redis.hset("refunds:refund:order-1", mapping=fields)
    shown = await actor.get("/page/refunds/order-1")
    assert "/page/refunds/order-1/cancel" not in shown.form_tokens


async def test_a_failed_refund_is_sent_again(actor: PageDoor) -> None:
    actor.records.failed("order-1")
    view, action = "/page/refunds/order-1", "/page/refunds/order-1/retry"
    version = str(actor.records.get("order-1").version)
    assert (await send(actor, view, action, version=version)).status == 409
    assert (await send(actor, view, action, version="x", unknown="yes")).status == 422
    assert (await send(actor, view, action, version=version, unknown="yes")).status == 303
    refund = actor.records.get("order-1")
    assert (refund.stage, refund.generation) == (Stage.QUEUED, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"retriable": "no"},
        {"retry_may_be_lost": "1"},
        {"set_aside_ids": "re_8"},
        {"contradicted_by": "re_8"},
        # A person had settled it as one of another amount.
        {"amount": "7", "fingerprint": "0" * 64},
    ],
)
async def test_a_retry_is_offered_only_if_it_is_not_refused(
    actor: PageDoor, sync_redis: redis.Redis, fields: dict[Any, Any]
) -> None:
    version = str(actor.records.failed("order-1").version)
    view, action = "/page/refunds/order-1", "/page/refunds/order-1/retry"
    token = (await actor.get(view)).form_tokens[action]
    sync_redis.hset("refunds:refund:order-1", mapping=fields)
    assert action not in (await actor.get(view)).form_tokens
    form = {"form_token": token, "version": version, "unknown": "yes"}
    assert (await actor.post(action, form)).status == 409


async def test_a_form_that_was_shown_before_a_retry_sends_its_failure_not_again(
    actor: PageDoor,
) -> None:
    shown = actor.records.failed("order-1")
    view, action = "/page/refunds/order-1", "/page/refunds/order-1/retry"
    fields = {"version": str(shown.version), "unknown": "yes"}
    assert (await send(actor, view, action, **fields)).status == 303
    actor.records.failed_again("order-1")
    again = await send(actor, view, action, **fields)
    assert again.status == 409
    assert "has changed since version" in again.text
    assert actor.records.get("order-1").generation == 2


async def test_a_refund_is_read_at_the_provider_now(actor: PageDoor) -> None:
    actor.records.succeeded("order-1")
    view = "/page/refunds/order-1"
    assert (await send(actor, view, f"{view}/recheck")).status == 303
    assert actor.nudged == ["order-1"]


async def test_a_read_at_the_provider_is_offered_only_if_there_is_something_to_read(
    actor: PageDoor,
) -> None:
    records = actor.records
    records.in_review("review")
    records.failed("failed", payment_intent="pi_2")
    records.sending("sending", payment_intent="pi_3")
    records.succeeded("succeeded", payment_intent="pi_4")
    offered = set()
    for name in ("review", "failed", "sending", "succeeded"):
        view = f"/page/refunds/{name}"
        if f"{view}/recheck" in (await actor.get(view)).form_tokens:
            offered.add(name)
    assert offered == {"succeeded"}


async def test_everything_is_paused_and_resumed(actor: PageDoor) -> None:
    assert (await send(actor, "/page", "/page/pause")).status == 303
    assert flags.read(actor.refunds.store).paused_by == "ann"
    assert (await send(actor, "/page", "/page/resume")).status == 303
    assert flags.read(actor.refunds.store).paused_at is None


async def test_the_stop_button_says_that_it_holds_on_a_server_that_could_forget(
    actor: PageDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = (await actor.get("/page")).form_tokens["/page/pause"]

    def lost() -> None:
        raise NotDurable("the disk did not confirm it")

    with monkeypatch.context() as patch:
        patch.setattr(actor.refunds.store, "confirm", lost)
        shown = await actor.post("/page/pause", {"form_token": form})
    assert flags.read(actor.refunds.store).paused_by == "ann"
    assert (shown.status, "Everything is paused now" in shown.text) == (503, True)


async def test_a_batch_is_paused_resumed_and_canceled_by_typing_its_id(
    actor: PageDoor, sync_redis: redis.Redis
) -> None:
    fields: dict[Any, Any] = {"rows": 2, "state": "running", "imported_at": 1787730829000}
    sync_redis.hset("refunds:batch:b-1", mapping=fields)
    for number in range(2):
        actor.records.queued(f"row-{number}", batch_id="b-1", payment_intent=f"pi_{number}")
    view = "/page/batches/b-1"
    assert (await send(actor, view, f"{view}/pause")).status == 303
    assert sync_redis.hget("refunds:batch:b-1", "state") == "paused"
    assert (await send(actor, view, f"{view}/resume")).status == 303
    assert (await send(actor, view, f"{view}/cancel", typed="b-2")).status == 422
    assert sync_redis.hget("refunds:batch:b-1", "state") == "running"
    assert (await send(actor, view, f"{view}/cancel", typed="b-1")).status == 303
    statuses = {actor.records.get(f"row-{number}").status for number in range(2)}
    assert statuses == {Status.CANCELED}


async def test_dead_letters_are_sent_again(actor: PageDoor, sync_redis: redis.Redis) -> None:
    actor.records.succeeded("order-1")
    now = actor.refunds.store.time().timestamp() * 1000
    sync_redis.zadd("refunds:callback-endpoints", {"shop": now})
    sync_redis.zadd("refunds:callback-dead:shop", {"order-1": now})
    assert "order-1" in (await actor.get("/page/callbacks")).text
    shown = await send(actor, "/page/callbacks", "/page/callbacks/shop/replay")
    assert shown.status == 303
    assert sync_redis.zcard("refunds:callback-dead:shop") == 0
    assert sync_redis.zrange("refunds:callbacks:shop", 0, -1) == ["order-1"]
    # Once more, from a view that is out of date.
    token = form_token(actor.cookies["refunds-local"], "/page/callbacks/shop/replay")
    await actor.post("/page/callbacks/shop/replay", {"form_token": token})
    assert [each.result for each in audit.entries(actor.refunds.store)] == ["unchanged", "done: 1"]


async def test_a_person_who_may_only_read_sees_no_button_and_changes_nothing(
    page: PageDoor,
) -> None:
    await page.sign_in("read", "submit")
    before = page.records.in_review("order-1")
    for view in ("/page", "/page/refunds/order-1"):
        assert set((await page.get(view)).form_tokens) == {"/page/sign-out"}
    for action in ("/page/pause", "/page/refunds/order-1/resolve"):
        token = form_token(page.cookies["refunds-local"], action)
        data = {"form_token": token, "decision": "resend", "version": str(before.version), **HOW}
        assert (await page.post(action, data)).status == 403
    assert page.records.get("order-1") == before
    assert flags.read(page.refunds.store).paused_at is None


@pytest.mark.parametrize(
    ("headers", "form"),
    [({"Sec_Fetch_Site": "cross-site"}, None), ({}, "0" * 64), ({}, ""), ({}, "é")],
)
async def test_a_form_of_another_site_or_session_changes_nothing(
    actor: PageDoor, headers: dict[str, str], form: str | None
) -> None:
    token = form_token(actor.cookies["refunds-local"], "/page/pause") if form is None else form
    shown = await actor.post("/page/pause", {"form_token": token}, **headers)
    assert (shown.status, flags.read(actor.refunds.store).paused_at) == (403, None)


async def test_the_token_of_one_form_is_not_accepted_for_another(actor: PageDoor) -> None:
    token = form_token(actor.cookies["refunds-local"], "/page/resume")
    shown = await actor.post("/page/pause", {"form_token": token})
    assert (shown.status, flags.read(actor.refunds.store).paused_at) == (403, None)


async def test_after_the_end_of_a_session_its_forms_change_nothing(actor: PageDoor) -> None:
    form = (await actor.get("/page")).form_tokens["/page/pause"]
    tokens.revoke(actor.refunds.store, "ann")
    shown = await actor.post("/page/pause", {"form_token": form})
    assert (shown.status, "nothing was changed" in shown.text) == (401, True)
    assert flags.read(actor.refunds.store).paused_at is None


async def test_each_action_is_noted_with_who_did_it_and_from_where(actor: PageDoor) -> None:
    actor.records.queued("order-1")
    actor.records.in_review("order-2", payment_intent="pi_2")
    await send(actor, "/page", "/page/pause")
    await send(actor, "/page", "/page/resume")
    await send(actor, "/page/refunds/order-1", "/page/refunds/order-1/cancel")
    await decide(actor, "order-2", "resend")
    found = [*audit.entries(actor.refunds.store)]
    assert [(each.deed.action, each.deed.target) for each in reversed(found)] == [
        ("pause", ""),
        ("resume", ""),
        ("cancel", "order-1"),
        ("resolve as resend", "order-2"),
    ]
    assert {(each.deed.by, each.deed.via, each.deed.address, each.result) for each in found} == {
        ("ann", "page", "127.0.0.1", "done")
    }
    assert found[0].deed.note == HOW["note"]
    shown = (await actor.get("/page/audit")).html
    assert shown.count('<a href="/page/refunds/order-') == 2
    pauses = (await actor.get("/page/audit?action=pause&by=ann")).html
    assert (pauses.count(">pause</td>"), pauses.count('<td data-label="Action">')) == (1, 1)
    assert (await actor.get("/page/audit?action=odd")).status == 422


async def test_the_audit_is_shown_in_pages_and_for_one_target(actor: PageDoor) -> None:
    for number in range(52):
        deed = audit.Deed(
            by="bob", via="api", address="10.0.0.7", action="cancel", target=f"<b>{number}"
        )
        audit.carry_out(actor.refunds.store, deed, lambda: None)
    first = await actor.get("/page/audit")
    assert "<b>51" in first.text
    assert "<b>1 " not in first.text
    link = re.search(r'href="(/page/audit\?before=[^"]+)"', first.html)
    assert link is not None
    second = await actor.get(unescape(link[1]))
    assert ("<b>1 " in second.text, "<b>51" in second.text) == (True, False)
    one = await actor.get("/page/audit?by=bob&target=%3Cb%3E7")
    assert one.html.count(">cancel</td>") == 1
    assert (await actor.get("/page/audit?before=x")).status == 422


async def test_the_audit_says_why_something_was_refused_in_the_words_of_the_page(
    actor: PageDoor,
) -> None:
    deed = audit.Deed(by="bob", via="api", address="10.0.0.7", action="cancel", target="order-1")
    with pytest.raises(NotFound):
        audit.carry_out(actor.refunds.store, deed, lambda: actor.refunds.cancel("order-1"))
    shown = await actor.get("/page/audit")
    assert "refused: no refund order-1 was accepted here: check the id" in shown.text
    assert "REFUNDS_" not in shown.text


async def test_a_form_that_is_refused_comes_back_with_what_was_typed(actor: PageDoor) -> None:
    actor.records.in_review("order-1")
    note = 'it is <b>"mine"</b>'
    shown = await decide(actor, "order-1", "failed", code="7 days", note=note, unverified="yes")
    assert (shown.status, actor.records.get("order-1").stage) == (422, Stage.REVIEW)
    assert "The reason of the failure must be a few words such as" in shown.text
    assert re.search(r'value="failed" required checked', shown.html)
    assert re.search(r'name="code" value="7 days" aria-invalid="true"', shown.html)
    assert re.search(r'name="unverified" value="yes" checked', shown.html)
    assert (note in shown.html, note in unescape(shown.html)) == (False, True)
    again = shown.form_tokens["/page/refunds/order-1/resolve"]
    version = str(actor.records.get("order-1").version)
    fields = {"decision": "failed", "code": "paid_in_cash", "version": version, "note": note}
    action = "/page/refunds/order-1/resolve"
    assert (await actor.post(action, {"form_token": again, **fields})).status == 303


async def test_a_conflict_lists_what_happened_since_the_form_was_shown(actor: PageDoor) -> None:
    version = actor.records.in_review("order-1", doubt=False).version
    form = (await actor.get("/page/refunds/order-1")).form_tokens["/page/refunds/order-1/resolve"]
    actor.refunds.resolve("order-1", "resend", note="bob was faster", by="bob")
    fields = {"form_token": form, "decision": "resend", "version": str(version), **HOW}
    shown = await actor.post("/page/refunds/order-1/resolve", fields)
    assert shown.status == 409
    since = shown.html.partition("Since you opened the form")[2].partition("</ul>")[0]
    assert (since.count("<li>"), "bob was faster" in since) == (1, True)
    assert f"You wrote: {HOW['note']}" in shown.text


async def test_a_cancellation_that_came_too_late_shows_that_the_refund_was_sent(
    actor: PageDoor,
) -> None:
    actor.records.queued("order-1")
    view, action = "/page/refunds/order-1", "/page/refunds/order-1/cancel"
    seen = await actor.get(view)
    assert 'name="version" value="1"' in seen.html
    actor.records.claimed("order-1")
    shown = await actor.post(action, {"form_token": seen.form_tokens[action], "version": "1"})
    assert (shown.status, "Since you opened the form" in shown.text) == (409, True)


async def test_a_batch_that_was_not_canceled_is_shown_with_the_reason(
    actor: PageDoor, sync_redis: redis.Redis
) -> None:
    fields: dict[Any, Any] = {"rows": 2, "state": "running", "imported_at": 1787730829000}
    sync_redis.hset("refunds:batch:b-1", mapping=fields)
    actor.records.queued("row-1", batch_id="b-1")
    shown = await send(actor, "/page/batches/b-1", "/page/batches/b-1/cancel", typed="b-2")
    assert shown.status == 422
    assert "must be b-1" in shown.text
    assert 'data-view="/page/batches/b-1"' in shown.html
    assert "/page/batches/b-1/cancel" in shown.form_tokens


async def test_actions_that_are_not_possible_any_more_are_renewed_away(actor: PageDoor) -> None:
    actor.records.queued("order-1")
    view, action = "/page/refunds/order-1", "/page/refunds/order-1/cancel"
    assert action in (await actor.get(view)).form_tokens
    actor.records.claimed("order-1")
    shown = await actor.get(view)
    assert (action in shown.form_tokens, 'id="actions" data-live' in shown.html) == (False, True)


async def test_a_note_of_several_lines_is_kept_on_one(actor: PageDoor) -> None:
    actor.records.in_review("order-1", doubt=False)
    note = "seen in\r\nthe dashboard"
    assert (await decide(actor, "order-1", "resend", note=note)).status == 303
    assert actor.refunds.history("order-1")[-1]["note"] == "seen in the dashboard"
