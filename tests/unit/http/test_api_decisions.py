"""What a caller decides over the HTTP API: cancel, retry, resolve, recheck, pause."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import HOUR
from tests.support.api_door import Door
from worker.errors import NotDurable
from worker.model.refund import Lane, Stage, Status
from worker.model.steps import Step
from worker.store import audit, flags, saves, sweeps


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
        assert f"at version {refund.version}, not {shown}," in got.json["detail"]
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
