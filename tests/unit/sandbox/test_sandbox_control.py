from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.unit.sandbox.asking import PAYMENT, Asking, asking, post_headers, until
from worker.sandbox.config import SandboxConfig, SandboxConfigError
from worker.sandbox.endpoints import Provider
from worker.sandbox.running import Sandbox, SandboxCallError, running_sandbox


def test_requests_are_remembered_with_what_matters_and_never_with_the_key() -> None:
    with asking() as provider:
        provider.refund(amount="5", key="k-1")
        provider.get(f"/v1/payment_intents/{PAYMENT}?expand=x")
        posted, looked = provider.sandbox.requests()
        assert (posted["method"], posted["path"], posted["status"]) == ("POST", "/v1/refunds", 200)
        assert json.loads(posted["body"]) == {"payment_intent": PAYMENT, "amount": "5"}
        assert (posted["headers"]["idempotency-key"], posted["schema_errors"]) == ("k-1", [])
        assert (looked["path"], looked["body"]) == (f"/v1/payment_intents/{PAYMENT}?expand=x", "")
        assert looked["monotonic"] >= posted["monotonic"]
        text = json.dumps([posted, looked]).lower()
        assert "authorization" not in text
        assert "planted" not in text


def test_a_request_that_breaks_the_schema_is_remembered_with_what_it_breaks() -> None:
    with asking() as provider:
        assert provider.refund(amount=5).status == 400
        (posted,) = provider.sandbox.requests()
        assert posted["schema_errors"] == ["body.amount: is not of type string"]


def test_only_the_last_requests_are_remembered_and_none_if_told_so() -> None:
    with asking(log_requests=2) as provider:
        for number in (1, 2, 3):
            provider.get(f"/v1/charges/ch_{number}")
        assert [entry["seq"] for entry in provider.sandbox.requests()] == [2, 3]
        provider.sandbox.forget_requests()
        assert provider.sandbox.requests() == []
    with asking(log_requests=0) as provider:
        assert provider.refund().status == 200
        assert provider.sandbox.requests() == []
        assert provider.sandbox.faults()["received"] == 1


def test_what_is_above_the_rate_is_turned_away_and_counted() -> None:
    with asking(rate_limit=3) as provider:
        seen = [provider.refund(amount="1") for _ in range(40)]
        passed = [reply for reply in seen if reply.status == 200]
        turned_away = [reply for reply in seen if reply.status == 429]
        assert len(passed) + len(turned_away) == 40
        assert {reply.headers["Retry-After"] for reply in turned_away} == {"1"}
        assert provider.sandbox.faults()["rate_limited"] == len(turned_away)
        assert len(provider.sandbox.effects()) == len(passed)


def test_no_second_holds_more_than_the_rate() -> None:
    times = (0.0, 0.5, 0.9, 1.0, 1.4, 1.5, 1.6)
    provider = Provider(config=SandboxConfig(rate_limit=2), clock=iter(times).__next__)
    assert [when for when in times if provider._is_within_rate()] == [0.0, 0.5, 1.0, 1.5]


def test_modes_change_while_the_sandbox_runs() -> None:
    with asking() as provider:
        provider.sandbox.set_modes(idempotency="ignore", list_refunds=False)
        provider.refund(amount="1", key="k")
        provider.refund(amount="1", key="k")
        assert len(provider.sandbox.effects()) == 2
        assert provider.get("/v1/refunds").status == 404
        assert provider.sandbox.faults()["modes"]["idempotency"] == "ignore"


def test_faults_are_set_as_objects_and_cleared() -> None:
    with asking() as provider:
        asked = [{"kind": "http_500_before", "n": 1, "on": "post"}]
        provider.sandbox.call("POST", "/_sandbox/faults", {"faults": asked})
        assert provider.refund().status == 500
        provider.sandbox.call("DELETE", "/_sandbox/faults")
        assert provider.sandbox.faults()["faults"] == []


@pytest.mark.parametrize(
    ("path", "body", "rule"),
    [
        ("faults", {"spec": "cut"}, "not a kind of fault"),
        ("faults", {"spec": 5}, "spec: is not a str"),
        ("faults", {"faults": ["cut_after"]}, "faults: is not a JSON object"),
        ("faults", {"spec": "", "faults": []}, "cannot be combined"),
        ("faults", {"fault": "cut_after"}, "fault: is not a known field"),
        (
            "faults",
            {"modes": {"idempotency": "maybe"}},
            "idempotency: must be one of honour, ignore",
        ),
        ("faults", {"modes": {"accounts": "many"}}, "accounts: must be one of one, hidden, shown"),
        ("faults", {"modes": {"latency_ms": True}}, "latency_ms: cannot be True"),
        ("faults", {"modes": {"api_key": "sk_test_x"}}, "api_key: cannot change"),
        ("faults", {"modes": {"speed": 1}}, "speed: is not a setting"),
        ("payment_intents", {}, "id: is missing"),
        ("payment_intents", {"id": "ch_1"}, "id: must be a pi_"),
        ("payment_intents", {"id": "pi_1", "amount": 0}, "amount: must be a whole number above 0"),
        (
            "payment_intents",
            {"id": "pi_1", "currency": "USD"},
            "currency: must be three lower-case letters",
        ),
        ("payment_intents", {"id": "pi_1", "outcome": "lost"}, "outcome: must be one of succeeded"),
        ("payment_intents", {"id": "pi_1", "charges": 0}, "charges: must be a whole number from 1"),
        (
            "payment_intents",
            {"id": "pi_1", "amount": 5, "refunded": 6},
            "refunded: is more than the amount",
        ),
        ("refunds/re_none", {"status": "failed"}, "No such refund"),
    ],
)
def test_a_wrong_control_request_is_refused_by_name(
    path: str, body: dict[str, Any], rule: str
) -> None:
    with asking() as provider, pytest.raises(SandboxCallError, match=rule):
        provider.sandbox.call("POST", f"/_sandbox/{path}", body)


def test_a_refused_change_of_modes_changes_no_faults_either() -> None:
    with asking(faults="http_500_before") as provider:
        with pytest.raises(SandboxCallError):
            provider.sandbox.call(
                "POST", "/_sandbox/faults", {"spec": "", "modes": {"envelope": "round"}}
            )
        assert provider.refund().status == 500


def test_a_payment_with_refunds_is_not_made_anew() -> None:
    with asking() as provider:
        provider.refund("pi_1")
        with pytest.raises(SandboxCallError, match="pi_1 exists"):
            provider.sandbox.create_payment_intent("pi_1")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"idempotency": "maybe"}, "idempotency"),
        ({"latency_ms": -1}, "latency_ms"),
        ({"api_key": ""}, "api_key"),
    ],
)
def test_settings_that_are_wrong_are_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(SandboxConfigError) as refused:
        SandboxConfig(**settings)
    assert refused.value.field == field


def test_a_port_in_use_is_told_to_the_caller() -> None:
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with (
            pytest.raises(OSError, match="address already in use"),
            running_sandbox(port=taken.getsockname()[1]),
        ):
            pass
        assert set(threading.enumerate()) <= before


def test_a_stopped_sandbox_listens_no_more_even_with_a_client_held() -> None:
    before = set(threading.enumerate())
    with running_sandbox(SandboxConfig(faults="timeout_before")) as sandbox:
        held = Asking(sandbox=sandbox).connect()
        held.request("POST", "/v1/refunds", body=b"{}", headers=post_headers())
        # Stopped before that, it may have taken the connection and not know it yet.
        until(lambda: sandbox.faults()["faults"][0]["fired"])
    with pytest.raises(ConnectionRefusedError):
        sandbox.summary()
    held.close()
    assert set(threading.enumerate()) <= before


def test_the_sandbox_runs_as_a_process_and_ends_with_zero_on_sigterm() -> None:
    command = [
        sys.executable,
        "-m",
        "worker.sandbox",
        "--port",
        "0",
        "--faults",
        "http_500_before:n=2",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("sandbox listening on http://127.0.0.1:")
            provider = Asking(sandbox=Sandbox(url=said.split()[-1]))
            assert [provider.refund().status, provider.refund().status] == [200, 500]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_wrong_flags_end_with_a_sentence_and_two() -> None:
    command = [sys.executable, "-m", "worker.sandbox", "--port", "0", "--faults", "cut_after:p=7"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "fault 'p=7': p must be above 0 and at most 1" in ended.stderr
