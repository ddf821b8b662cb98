"""What accepting, loading, claiming and saving hand their scripts, argument by argument, and how
they read each reply.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, NOW, SECOND, a_refund, a_request
from tests.unit.store.handing import AT, MS, RECORD, REFUND, handed, written
from worker.model.refund import Baseline, Lane, Stage, Status
from worker.model.request import idempotency_key, request_body
from worker.model.steps import Step
from worker.store import (
    claims,
    creations,
    reads,
    saves,
    scripts,
)
from worker.store.claims import Claim
from worker.store.creations import Created
from worker.store.reads import Loaded
from worker.store.saves import Saved


@pytest.mark.parametrize(("batch", "named"), [(None, ""), ("b", "b")])
def test_accepting_hands_over_grace_lane_batch_and_the_row(batch: str | None, named: str) -> None:
    call = creations.create(a_request(), Lane.BULK, batch)
    assert handed(call)[:6] == written(600_000, "refunds.bulk", named, "", "", 0)
    assert handed(creations.create(a_request(), Lane.SINGLE, by="shop"))[3] == repr("shop")
    assert call.script is scripts.CREATE
    several = creations.create_several([a_request("a"), a_request("b")], Lane.BULK, batch)
    rows = (len(several.arguments) - 6) // 2
    assert len(call.arguments) == 6 + rows
    queued = creations.create_several(
        [a_request("a"), a_request("b")], Lane.SINGLE, queue="refunds", messages=["one", "two"]
    )
    assert handed(queued)[4] == repr("refunds")
    assert handed(queued)[5::rows] == written(0, "one", "two")
    assert several.script is scripts.CREATE


def test_reply_to_accepting_is_read_row_by_row() -> None:
    reply = [AT, "created", RECORD, "conflict"]
    assert creations.create_several([a_request()] * 3, Lane.SINGLE).read(reply) == [
        Created(result="created", now=NOW),
        Created(result="exists", now=NOW, refund=REFUND),
        Created(result="conflict", now=NOW),
    ]
    assert creations.create(a_request(), Lane.SINGLE).read([AT, "created"]) == Created(
        result="created", now=NOW
    )


def test_reply_to_loading_is_read_with_the_servers_time_and_the_payments_counter() -> None:
    call = reads.load("a")
    assert handed(call) == written("a")
    assert call.read([AT, 7, RECORD, ""]) == Loaded(now=NOW, seq="7", refund=REFUND)
    assert call.read([AT, "0", [], ""]) == Loaded(now=NOW, seq="0", refund=None)
    assert call.read([AT, "0", RECORD, "5"]) == Loaded(now=NOW, seq="0", refund=REFUND, recheck="5")


def test_claim_hands_over_everything_that_it_rests_on() -> None:
    plain = claims.claim("a", "send", token="t", lease=45 * SECOND)
    assert handed(plain) == written("a", "send", "t", 45_000, "", "", 0, 30_000, 15_000)
    full = claims.claim(
        "a",
        "resend",
        token="t",
        lease=SECOND,
        replay_window=2 * SECOND,
        version=0,
        seq="9",
        baseline=Baseline(refunded=1, currency="usd", remaining=2),
        currency_checked=True,
        payment_shown=True,
    )
    assert handed(full)[:9] == written("a", "resend", "t", 1_000, "0", "9", 2_000, 30_000, 15_000)
    assert full.arguments[9] == "baseline"
    assert json.loads(str(full.arguments[10])) == {
        "refunded": 1,
        "currency": "usd",
        "remaining": 2,
        "shown_by": None,
    }
    assert full.arguments[11:] == ["currency_checked", "1", "payment_shown", "1"]
    assert (
        handed(claims.claim("a", "replay", token="t", lease=SECOND, replay_window=-SECOND))[6]
        == "0"
    )
    assert full.script is scripts.CLAIM


@pytest.mark.parametrize("body", ["body", b"body"])
def test_reply_to_a_claim_is_read_with_body_lease_and_record(body: Any) -> None:
    call = claims.claim("a", "send", token="t", lease=SECOND)
    claimed = call.read(["claimed", AT, 1_500, body, RECORD, "0-a:1:b"])
    assert claimed == Claim(
        result="claimed",
        now=NOW,
        refund=REFUND,
        token="t",
        body=b"body",
        lease_left=1500 * MS,
        position="0-a:1:b",
    )
    assert claimed.claimed
    refused = call.read(["stage", AT, RECORD, "5"])
    assert refused == Claim(
        result="stage", now=NOW, refund=REFUND, body=b"", lease_left=timedelta(0), recheck="5"
    )
    assert not refused.claimed
    missing = call.read(["missing", AT, [], ""])
    assert (missing, refused.token) == (Claim(result="missing", now=NOW), "")


def test_claim_grows_shorter_by_the_time_that_was_spent_asking() -> None:
    claim = Claim(result="claimed", now=NOW, lease_left=HOUR)
    assert claims.shorter(claim, SECOND) == Claim(
        result="claimed", now=NOW + SECOND, lease_left=HOUR - SECOND
    )


def test_standing_claim_is_asked_for_by_id_and_token() -> None:
    call = claims.stands("a", "t")
    assert handed(call) == written("a", "t")
    assert (call.read(""), call.read("overtaken")) == ("", "overtaken")


def test_save_hands_over_the_step_and_what_it_was_decided_on() -> None:
    refund = a_refund(Stage.SENDING, version=7, generation=3, resends=2)
    step = Step(
        to=Stage.SETTLED,
        status=Status.FAILED,
        label='a "label"',
        changes={"amount": 0, "lapses": 0, "error_code": "x", "seen": None},
        proof=True,
    )
    call = saves.save(refund, step, {"seen": "done", "ms": 3})
    assert call.script is scripts.SAVE
    arguments = handed(call)
    assert arguments[:10] == written(
        "order-1001-1",
        "7",
        "2",
        "3",
        "settled",
        "failed",
        0,
        "",
        '"a \\"label\\""',
        ',"seen":"done","ms":3',
    )
    sources = str(call.arguments[10]).strip(",").split(",")
    assert str(call.arguments[10]) == f",{','.join(sources)},"
    assert set(sources) == {
        "queued",
        "sending",
        "waiting",
        "in_doubt",
        "processing",
        "review",
        "settled",
    }
    assert arguments[11:] == written("", "sending", "lapses seen", "amount", "0", "error_code", "x")


@pytest.mark.parametrize(
    ("delay", "milliseconds"),
    [(None, 0), (timedelta(0), 0), (1500 * MS, 1_500), (-SECOND, 0), (0.4 * MS, 0)],
)
def test_save_hands_over_when_the_refund_is_looked_at_next(
    delay: timedelta | None, milliseconds: int
) -> None:
    step = Step(to=Stage.WAITING, status=Status.PENDING, label="x", delay=delay, quiet=True)
    arguments = handed(saves.save(a_refund(Stage.WAITING), step))
    assert arguments[2] == repr("")
    assert arguments[6:8] == written(milliseconds, "1")
    assert arguments[9] == repr("")


def test_retry_brings_a_new_body_and_key_and_waits_for_its_nudge() -> None:
    refund = a_refund(Stage.SETTLED, generation=1)
    step = Step(to=Stage.QUEUED, status=Status.PENDING, label="retried", changes={"generation": 2})
    call = saves.save(refund, step)
    assert call.arguments[6] == 600_000
    assert call.arguments[11] == request_body(refund.as_request(), 2)
    assert call.arguments[13] == ""
    changes = dict(zip(call.arguments[14::2], call.arguments[15::2], strict=True))
    assert changes == {
        "generation": "2",
        "idempotency_key": idempotency_key(refund.refund_id, 2),
        "fingerprint": refund.fingerprint,
        "most_fields": 200,
    }
    soon = Step(
        to=Stage.QUEUED, status=Status.PENDING, label="x", changes={"generation": 2}, delay=SECOND
    )
    assert saves.save(refund, soon).arguments[6] == 1_000


def test_quiet_step_of_a_queued_refund_is_no_retry() -> None:
    step = Step(to=Stage.QUEUED, status=Status.PENDING, label="x", changes={"looks": 1}, quiet=True)
    call = saves.save(a_refund(Stage.QUEUED), step)
    assert call.arguments[6] == 0
    assert list(call.arguments[11:]) == ["", "queued", "", "looks", "1"]


def test_reply_to_a_save_is_read_with_who_was_woken_or_is_in_the_way() -> None:
    call = saves.save(a_refund(), Step(to=Stage.WAITING, status=Status.PENDING, label="x"))
    assert call.read(["saved", AT, "b"]) == Saved(result="saved", now=NOW, woken="b", other=None)
    rows = call.read(["saved", AT, "b", "c", "d"])
    assert (rows.rows, rows.due_now) == (("c", "d"), ("b", "c", "d"))
    assert call.read(["saved", AT, ""]) == Saved(result="saved", now=NOW, woken=None, other=None)
    assert call.read(["owned", AT, "b"]) == Saved(result="owned", now=NOW, woken=None, other="b")
    assert call.read(["stale", AT, ""]) == Saved(result="stale", now=NOW, woken=None, other=None)
