from __future__ import annotations

import hashlib
import hmac
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.sandbox.asking import PAYMENT, Asking, Seen, asking, basic, until
from tests.unit.sandbox.receiving import Received, Receiver, receiving
from worker.model import hints, signatures
from worker.sandbox.config import SandboxConfig, SandboxConfigError
from worker.sandbox.ports import free_port
from worker.sandbox.running import Sandbox, SandboxCallError

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "whsec_of_this_test"
METADATA = {"refund_id": "order-1", "refund_generation": "1"}


@contextmanager
def sending(mode: str, *statuses: int, **settings: Any) -> Iterator[tuple[Asking, Receiver]]:
    with receiving(*statuses) as receiver:
        wanted = {"webhook": receiver.url, "webhook_secret": SECRET, "webhook_mode": mode}
        with asking(**({"settle_ms": None, "webhook_retry_ms": 1} | wanted | settings)) as provider:
            yield provider, receiver


def is_signed(received: Received, secret: str = SECRET) -> bool:
    t, v1 = (part.partition("=")[2] for part in received.signature.split(","))
    digest = hmac.new(secret.encode(), t.encode() + b"." + received.body, hashlib.sha256)
    return received.signature == f"t={t},v1={v1}" and v1 == digest.hexdigest()


def delivered(provider: Asking, count: int = 1) -> list[dict[str, Any]]:
    """The deliveries, once that many are over."""
    return until(
        lambda: (
            found
            if len(found := provider.sandbox.webhooks()) >= count
            and all(one["state"] != "waiting" for one in found)
            else []
        )
    )


def test_an_event_is_sent_when_a_refund_is_made_and_when_its_status_changes() -> None:
    with sending("in_order") as (provider, receiver):
        made = provider.refund("pi_pending_succeeded_1", metadata=METADATA).json
        provider.sandbox.advance()
        first, second = receiver.wait_for(2)
        assert [first.shown, second.shown["status"]] == [made, "succeeded"]
        assert (made["metadata"], made["payment_intent"]) == (METADATA, "pi_pending_succeeded_1")
        shape = {"object": "event", "type": "charge.refund.updated"}
        assert {name: first.event[name] for name in shape} == shape
        assert abs(first.event["created"] - time.time()) < 60
        assert first.event["id"] != second.event["id"]
        assert is_signed(first)
        assert is_signed(second)
        assert not is_signed(first, "whsec_of_another")


def test_a_pending_refund_settles_and_sends_its_event_without_a_request() -> None:
    with sending("in_order", settle_ms=1) as (provider, receiver):
        provider.refund("pi_pending_succeeded_1")
        assert [one.shown["status"] for one in receiver.wait_for(2)] == ["pending", "succeeded"]


def test_a_refused_refund_sends_no_event_and_a_failed_one_sends_one() -> None:
    with sending("in_order") as (provider, receiver):
        assert provider.refund("pi_declined_1").status == 402
        provider.refund("pi_failed_1")
        provider.refund("pi_other")
        statuses = [one.shown["status"] for one in receiver.wait_for(2)]
        assert statuses == ["failed", "succeeded"]


def test_events_arrive_in_the_order_of_the_refunds() -> None:
    with sending("in_order") as (provider, receiver):
        made = [provider.refund(amount="1").json["id"] for _ in range(20)]
        assert [one.shown["id"] for one in receiver.wait_for(20)] == made


def test_shuffled_events_all_arrive_in_another_order() -> None:
    with sending("shuffled", seed=3) as (provider, receiver):
        made = [provider.refund(amount="1").json["id"] for _ in range(20)]
        arrived = [one.shown["id"] for one in receiver.wait_for(20)]
        assert sorted(arrived) == sorted(made)
        assert arrived != made


def test_an_early_event_arrives_before_the_reply_leaves() -> None:
    with sending("early", latency_ms=1) as (provider, receiver):
        for number in range(1, 4):
            provider.refund(amount="1")
            assert len(receiver.received) == number


def test_an_early_event_arrives_although_the_reply_is_cut() -> None:
    with sending("early", faults="cut_after:n=1") as (provider, receiver):
        with pytest.raises(Exception, match="IncompleteRead"):
            provider.refund(amount="1", metadata=METADATA)
        assert [one.shown["metadata"] for one in receiver.received] == [METADATA]


def test_an_early_event_delays_the_reply_by_two_seconds_at_most() -> None:
    with sending("early") as (provider, receiver):
        receiver.is_open.clear()
        start = time.monotonic()
        assert provider.refund().status == 200
        assert 1.9 < time.monotonic() - start < 4


def test_twice_sends_the_same_event_two_times() -> None:
    with sending("twice") as (provider, receiver):
        provider.refund()
        first, second = receiver.wait_for(2)
        assert (first.body, first.t) == (second.body, second.t)
        assert [one["tries"] for one in delivered(provider, 2)] == [1, 1]


def test_never_sends_nothing_until_the_mode_changes() -> None:
    with sending("never") as (provider, receiver):
        provider.refund(amount="1")
        provider.sandbox.set_modes(webhook_mode="in_order")
        made = provider.refund(amount="1").json
        assert [one.shown["id"] for one in receiver.wait_for(1)] == [made["id"]]
        assert len(delivered(provider)) == 1


@pytest.mark.parametrize(
    ("mode", "in_ms", "digits"),
    [("s", False, 10), ("ms", False, 13), ("s", True, 10), ("in_order", True, 13)],
)
def test_the_signed_time_is_in_the_unit_of_the_mode(mode: str, digits: int, *, in_ms: bool) -> None:
    with sending(mode, created_in_ms=in_ms) as (provider, receiver):
        provider.refund()
        (received,) = receiver.wait_for(1)
        assert len(received.t) == digits
        assert abs(int(received.t) / (1000 if digits == 13 else 1) - time.time()) < 60
        assert is_signed(received)


@pytest.mark.parametrize("status", [302, 400, 503])
def test_a_retry_repeats_the_body_with_the_first_time(status: int) -> None:
    with sending("ms", status, status, webhook_retry_ms=20) as (provider, receiver):
        provider.refund()
        received = receiver.wait_for(3)
        assert len({(one.body, one.signature) for one in received}) == 1
        (delivery,) = delivered(provider)
        assert (delivery["t"], delivery["tries"]) == (received[0].t, 3)
        assert (delivery["status"], delivery["state"]) == (200, "delivered")
        assert delivery["event"] == received[0].event["id"]
        gaps = [after.monotonic - before.monotonic for before, after in pairwise(received)]
        assert min(gaps) > 0.015


def test_a_delivery_is_given_up_after_its_last_try() -> None:
    with sending("in_order", 500, 500, 500, webhook_tries=3) as (provider, receiver):
        provider.refund()
        (delivery,) = delivered(provider)
        shown = (delivery["tries"], delivery["status"], delivery["state"])
        assert shown == (3, 500, "given_up")
        assert len(receiver.received) == 3


def test_an_event_that_fails_does_not_hold_back_the_next() -> None:
    with sending("in_order", 500, webhook_retry_ms=60_000) as (provider, receiver):
        provider.refund(amount="1")
        made = provider.refund(amount="1").json
        assert receiver.wait_for(2)[1].shown["id"] == made["id"]


@pytest.mark.parametrize("mode", ["in_order", "shuffled", "early", "twice"])
def test_a_receiver_that_is_away_delays_no_refund(mode: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/hook"
    with asking(
        webhook=url, webhook_secret=SECRET, webhook_mode=mode, webhook_tries=2, webhook_retry_ms=1
    ) as provider:
        start = time.monotonic()
        assert {provider.refund(amount="1").status for _ in range(10)} == {200}
        assert time.monotonic() - start < 2
        found = delivered(provider, 10)
        assert {(one["tries"], one["status"], one["state"]) for one in found} == {
            (2, None, "given_up")
        }
        assert len(provider.sandbox.effects()) == 10


def test_a_receiver_that_never_answers_delays_no_refund() -> None:
    with sending("in_order") as (provider, receiver):
        receiver.is_open.clear()
        start = time.monotonic()
        assert {provider.refund(amount="1").status for _ in range(10)} == {200}
        assert time.monotonic() - start < 2
        assert provider.sandbox.webhooks()[0]["state"] == "waiting"


def test_the_process_ends_while_deliveries_wait() -> None:
    with receiving() as receiver:
        receiver.is_open.clear()
        command = [sys.executable, "-m", "worker", "sandbox", "--port", "0"]
        options = ["--webhook", receiver.url, "--webhook-secret", SECRET, "--webhook-tries", "9"]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            provider = Asking(sandbox=Sandbox(url=url))
            assert {provider.refund(amount="1").status for _ in range(3)} == {200}
            receiver.wait_for(1)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - start < 3


@pytest.mark.parametrize("shape", ["charge", "bare"])
def test_an_event_can_show_a_charge_without_the_refund_s_metadata(shape: str) -> None:
    with sending("in_order", webhook_shape=shape) as (provider, receiver):
        made = provider.refund(metadata=METADATA).json
        (received,) = receiver.wait_for(1)
        assert b"order-1" not in received.body
        assert received.event["type"] == "charge.refund.updated"
        shown = received.shown
        assert (shown["object"], shown["payment_intent"]) == ("charge", PAYMENT)
        if shape == "charge":
            del made["metadata"]
            assert shown["refunds"]["data"] == [made]
        else:
            assert made["id"].encode() not in received.body
        assert provider.get(f"/v1/refunds/{made['id']}").json["metadata"] == METADATA


@pytest.mark.parametrize(
    ("mode", "shape", "named"),
    [
        ("s", "refund", ("refund", "order-1", 1)),
        ("ms", "charge", ("refund", None, None)),
        ("in_order", "bare", (None, None, None)),
    ],
)
def test_the_worker_accepts_the_signature_and_reads_the_ids_of_each_shape(
    mode: str, shape: str, named: tuple[str | None, str | None, int | None]
) -> None:
    with sending(mode, webhook_shape=shape) as (provider, receiver):
        made = provider.refund(metadata=METADATA).json
        (received,) = receiver.wait_for(1)
        verdict = signatures.check(
            [received.signature],
            received.body,
            secrets=[SECRET],
            now=datetime.now(UTC),
            max_age=timedelta(hours=1),
        )
        assert verdict == "valid"
        read = hints.read(received.event)
        assert read is not None
        provider_refund_id = None if named[0] is None else made["id"]
        assert (read.provider_refund_id, read.refund_id, read.generation, read.payment_intent) == (
            provider_refund_id,
            *named[1:],
            PAYMENT,
        )


def register(provider: Asking, key: str = "sk_test_planted", **body: Any) -> Seen:
    headers = {"Authorization": basic(key), "Content-Type": "application/json"}
    raw = json.dumps(body).encode()
    return provider.ask("POST", "/v1/webhook_endpoints", headers=headers, body=raw)


def test_a_registered_endpoint_gets_events_signed_with_the_secret_shown_once() -> None:
    events = ["payment_intent.succeeded", "charge.refund.updated"]
    with receiving() as receiver, asking(log_requests=10) as provider:
        provider.refund(amount="1")
        seen = register(provider, url=receiver.url, enabled_events=events, description="ours")
        made = seen.json
        assert (seen.status, made["object"], made["status"]) == (200, "webhook_endpoint", "enabled")
        assert (made["url"], made["enabled_events"]) == (receiver.url, events)
        assert (made["id"][:3], made["secret"][:6]) == ("we_", "whsec_")
        refund = provider.refund(amount="1").json
        (received,) = receiver.wait_for(1)
        assert received.shown["id"] == refund["id"]
        assert is_signed(received, made["secret"])
        (delivery,) = delivered(provider)
        assert delivery["endpoint"] == made["id"]
        for path in ("webhooks", "requests", "faults"):
            shown = json.dumps(provider.sandbox.call("GET", f"/_sandbox/{path}"))
            assert made["secret"] not in shown


def test_a_url_that_is_registered_twice_gets_each_event_twice() -> None:
    with receiving() as receiver, asking() as provider:
        wanted: dict[str, Any] = {"url": receiver.url, "enabled_events": ["*"]}
        one, two = register(provider, **wanted).json, register(provider, **wanted).json
        provider.refund()
        received = receiver.wait_for(2)
        assert one["id"] != two["id"]
        assert [is_signed(each, one["secret"]) for each in received] == [True, False]


def test_an_endpoint_for_other_events_gets_none_about_refunds() -> None:
    with sending("in_order") as (provider, receiver):
        events = ["payment_intent.succeeded"]
        register(provider, url=receiver.url + "?other", enabled_events=events)
        provider.refund()
        assert [one["endpoint"] for one in delivered(provider)] == ["we_option"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"enabled_events": ["*"]}, "parameter_invalid"),
        ({"url": "ftp://a", "enabled_events": ["*"]}, "parameter_invalid"),
        ({"url": "http://[", "enabled_events": ["*"]}, "parameter_invalid"),
        ({"url": "http://a/hook"}, "parameter_invalid"),
        ({"url": "http://a/hook", "enabled_events": []}, "parameter_invalid"),
        ({"url": "http://a/hook", "enabled_events": [1]}, "parameter_invalid"),
        ({"url": "http://a/hook", "enabled_events": ["*"], "speed": 1}, "parameter_unknown"),
    ],
)
def test_a_wrong_endpoint_is_refused(body: dict[str, Any], code: str) -> None:
    with asking() as provider:
        seen = register(provider, **body)
        assert (seen.status, seen.code) == (400, code)


def test_an_endpoint_needs_a_key_and_a_json_object() -> None:
    with asking() as provider:
        wanted = {"url": "http://127.0.0.1:1/", "enabled_events": ["*"]}
        assert register(provider, key="sk_live_x", **wanted).status == 401
        headers = {"Authorization": basic("sk_test_planted")}
        for raw in (b"[]", b"{"):
            seen = provider.ask("POST", "/v1/webhook_endpoints", headers=headers, body=raw)
            assert seen.status == 400


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"webhook": "127.0.0.1:80", "webhook_secret": "x"}, "webhook: must be a URL"),
        ({"webhook": "http://127.0.0.1:80"}, "webhook_secret: must not be empty"),
        ({"webhook_mode": "late"}, "webhook_mode: must be one of in_order, shuffled, early"),
        ({"webhook_shape": "round"}, "webhook_shape: must be one of refund, charge, bare"),
        ({"webhook_tries": 0}, "webhook_tries: must be a whole number from 1 to 100"),
        ({"webhook_tries": 1.5}, "webhook_tries: must be a whole number from 1 to 100"),
        ({"webhook_retry_ms": -1}, "webhook_retry_ms: must be a number, 0 or more"),
        ({"webhook_window_ms": -1}, "webhook_window_ms: must be a number, 0 or more"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(SandboxConfigError, match=rule):
        SandboxConfig(**settings)
    with pytest.raises(SandboxConfigError, match=rule):
        SandboxConfig().with_modes(settings)


def test_the_secret_of_the_webhook_is_never_shown() -> None:
    with asking(webhook="http://127.0.0.1:1/", webhook_secret=SECRET) as provider:
        assert SECRET not in json.dumps(provider.sandbox.faults())
        assert SECRET not in repr(SandboxConfig(webhook_secret=SECRET))
        with pytest.raises(SandboxCallError, match="webhook_secret: must be a text") as refused:
            provider.sandbox.set_modes(webhook_secret=[SECRET])
        assert SECRET not in str(refused.value)


def test_the_webhook_can_be_set_while_the_sandbox_runs() -> None:
    with receiving() as receiver, asking() as provider:
        provider.sandbox.set_modes(webhook=receiver.url, webhook_secret=SECRET)
        provider.refund()
        (received,) = receiver.wait_for(1)
        assert is_signed(received)


def test_a_reversal_in_either_direction_sends_an_event() -> None:
    with sending("in_order") as (provider, receiver):
        made = provider.refund(amount="500").json
        provider.sandbox.move_refund(made["id"], "failed", "lost_or_stolen_card")
        provider.sandbox.move_refund(made["id"], "succeeded")
        shown = [one.shown for one in receiver.wait_for(3)]
        assert [one["status"] for one in shown] == ["succeeded", "failed", "succeeded"]
        reasons = [one.get("failure_reason") for one in shown]
        assert reasons == [None, "lost_or_stolen_card", None]
