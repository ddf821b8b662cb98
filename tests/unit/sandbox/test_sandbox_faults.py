from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import IncompleteRead, RemoteDisconnected
from urllib.parse import urlsplit

import pytest

from tests.unit.sandbox.asking import PAYMENT, Asking, asking, post_headers, until
from worker.sandbox.faults import (
    KINDS,
    Endpoint,
    FaultBook,
    FaultSpecError,
    fault_from,
    parse_faults,
)
from worker.sandbox.wire import OVERSIZED_BYTES


def send_raw(provider: Asking, body: bytes) -> socket.socket:
    """A connection on which one whole request was sent, and nothing read yet."""
    parts = urlsplit(provider.sandbox.url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=10)
    head = "".join(f"{name}: {value}\r\n" for name, value in post_headers().items())
    connection.sendall(
        f"POST /v1/refunds HTTP/1.1\r\nHost: {parts.netloc}\r\n{head}Content-Length:"
        f" {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def test_every_kind_of_fault_moves_money_exactly_as_its_name_says() -> None:
    with asking() as provider:
        for name, kind in KINDS.items():
            provider.sandbox.set_faults(name + (":seconds=0" if "seconds" in kind.takes else ""))
            before = len(provider.sandbox.effects())
            try:
                provider.refund(amount="5")
            except (RemoteDisconnected, ConnectionResetError, IncompleteRead):
                assert name.partition("_")[0] in {"timeout", "reset", "cut"}
            assert len(provider.sandbox.effects()) - before == (0 if kind.before else 1), name
            assert provider.sandbox.faults()["faults"][0]["fired"] == 1


@pytest.mark.parametrize(("spec", "effects"), [("timeout_before", 0), ("timeout_after", 1)])
def test_a_timeout_holds_the_connection_without_a_byte_until_the_client_leaves(
    spec: str, effects: int
) -> None:
    with asking(faults=spec) as provider:
        with send_raw(provider, b'{"payment_intent":"pi_1"}') as connection:
            until(lambda: provider.sandbox.faults()["faults"][0]["fired"])
            assert len(provider.sandbox.effects()) == effects
            connection.settimeout(0.05)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        provider.sandbox.set_faults("")
        assert provider.refund().status == 200
        assert provider.sandbox.requests()[0]["status"] is None


def test_a_timeout_with_an_end_closes_the_connection_then() -> None:
    with asking(faults="timeout_after:seconds=0.05") as provider:
        started = time.monotonic()
        with pytest.raises(RemoteDisconnected):
            provider.refund()
        assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("spec", ["reset_before", "reset_after"])
def test_a_reset_breaks_the_connection(spec: str) -> None:
    with asking(faults=spec) as provider, pytest.raises(ConnectionResetError):
        provider.refund()


def test_a_cut_reply_announces_more_than_it_carries() -> None:
    with asking(faults="cut_after_effect") as provider:
        with pytest.raises(IncompleteRead) as cut:
            provider.refund()
        assert cut.value.partial.startswith(b'{"id":"re_')
        assert cut.value.expected
        with pytest.raises(json.JSONDecodeError):
            json.loads(cut.value.partial)


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
def test_a_status_fault_answers_in_the_provider_s_envelope(status: int) -> None:
    with asking(faults=f"http_{status}_before") as provider:
        seen = provider.refund()
        assert (seen.status, set(seen.json["error"])) == (status, {"type", "code", "message"})


def test_a_bad_gateway_is_a_page_of_html() -> None:
    with asking(faults="html_502_after") as provider:
        seen = provider.refund()
        assert (seen.status, seen.headers["Content-Type"]) == (502, "text/html; charset=utf-8")
        assert seen.body.startswith(b"<html>")


def test_a_429_can_ask_for_seconds_a_date_nothing_or_nonsense() -> None:
    with asking() as provider:
        told = {}
        for form in ("seconds", "date", "absent", "garbage"):
            provider.sandbox.set_faults(f"http_429:retry_after={form}:seconds=90")
            seen = provider.refund()
            assert (seen.status, seen.code) == (429, "rate_limit")
            told[form] = seen.headers.get("Retry-After")
        assert (told["seconds"], told["absent"]) == ("90", None)
        wait = parsedate_to_datetime(told["date"] or "") - datetime.now(UTC)
        assert 60 < wait.total_seconds() <= 90
        assert not (told["garbage"] or "").isdigit()
        with pytest.raises(ValueError, match="Invalid"):
            parsedate_to_datetime(told["garbage"] or "")


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_can_be_refused_on_a_harmless_get_too(status: int) -> None:
    with asking(faults=f"http_{status}:on=any") as provider:
        assert provider.get(f"/v1/payment_intents/{PAYMENT}").status == status
        assert provider.refund().status == status


def test_a_redirect_points_back_with_method_and_body_kept() -> None:
    with asking(faults="redirect_after") as provider:
        seen = provider.refund()
        assert (seen.status, seen.headers["Location"]) == (307, "/v1/refunds")


def test_an_empty_200_carries_nothing() -> None:
    with asking(faults="empty_200_after") as provider:
        seen = provider.refund()
        assert (seen.status, seen.body) == (200, b"")


def test_an_oversized_reply_is_good_json_over_a_megabyte() -> None:
    with asking(faults="oversized") as provider:
        seen = provider.refund()
        assert len(seen.body) > OVERSIZED_BYTES
        assert seen.json["status"] == "succeeded"


def test_a_slow_reply_drips_but_arrives_whole() -> None:
    with asking(faults="slow_drip:seconds=0.2") as provider:
        started = time.monotonic()
        seen = provider.refund()
        assert time.monotonic() - started >= 0.2
        assert seen.json["status"] == "succeeded"


@pytest.mark.parametrize("field", ["payment_intent", "amount", "currency", "id", "refund_id"])
def test_a_wrong_resource_contradicts_the_ledger_in_one_field(field: str) -> None:
    with asking(faults=f"wrong_resource:field={field}") as provider:
        told = provider.refund(amount="5", metadata={"refund_id": "mine"}).json
        told["refund_id"] = told["metadata"]["refund_id"]
        (entry,) = provider.sandbox.ledger()
        right = {
            name: entry[name] for name in ("payment_intent", "amount", "currency", "refund_id")
        }
        right["id"] = entry["refund"]
        assert [name for name in right if told[name] != right[name]] == [field]


def test_the_wrong_resource_shows_in_a_list_as_well() -> None:
    with asking(faults="wrong_resource:on=list:field=payment_intent") as provider:
        provider.refund(amount="5")
        (item,) = provider.get(f"/v1/refunds?payment_intent={PAYMENT}").json["data"]
        assert item["payment_intent"] != PAYMENT


def test_a_client_that_leaves_at_once_has_its_refund_executed() -> None:
    with asking() as provider:
        send_raw(provider, b'{"payment_intent":"pi_gone"}').close()
        (entry,) = until(provider.sandbox.effects)
        assert entry["payment_intent"] == "pi_gone"


def test_a_stalled_server_executes_after_its_client_has_gone() -> None:
    with asking(faults="late_effect:seconds=0.2") as provider:
        with send_raw(provider, b'{"payment_intent":"pi_gone"}'):
            until(lambda: provider.sandbox.faults()["faults"][0]["fired"])
        assert len(until(provider.sandbox.effects)) == 1


def test_latency_does_not_stop_an_effect_whose_client_has_gone() -> None:
    with asking(latency_ms=150) as provider:
        with send_raw(provider, b'{"payment_intent":"pi_gone"}'):
            until(provider.sandbox.requests)
        assert len(until(provider.sandbox.effects)) == 1


def test_a_request_cut_short_by_its_client_moves_nothing() -> None:
    with asking() as provider:
        parts = urlsplit(provider.sandbox.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            head = "".join(f"{name}: {value}\r\n" for name, value in post_headers().items())
            text = (
                f"POST /v1/refunds HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 99\r\n\r\n"
                '{"payment_intent":'
            )
            connection.sendall(text.encode())
        assert provider.refund("pi_whole").status == 200
        assert [entry["payment_intent"] for entry in provider.sandbox.ledger()] == ["pi_whole"]


def test_a_fault_fires_from_the_nth_request_on_as_often_as_told() -> None:
    with asking(faults="http_500_before:n=2:times=2") as provider:
        assert [provider.refund(amount="1").status for _ in range(5)] == [200, 500, 500, 200, 200]


def test_faults_limited_to_a_kind_or_a_payment_leave_the_rest_alone() -> None:
    with asking(
        faults="http_500_before:on=get:pi=pi_a, http_503_before:on=list, html_502_before:pi=pi_b"
    ) as provider:
        made = provider.refund("pi_a", amount="1").json
        assert provider.get(f"/v1/refunds/{made['id']}").status == 500
        assert provider.get("/v1/payment_intents/pi_a").status == 500
        assert provider.get(f"/v1/charges/{made['charge']}").status == 500
        assert provider.get("/v1/payment_intents/pi_b").status == 200
        assert provider.get("/v1/refunds?payment_intent=pi_a").status == 503
        assert provider.refund("pi_b").status == 502


def test_the_same_seed_throws_the_same_faults() -> None:
    def thrown(seed: int) -> list[bool]:
        book = FaultBook(seed=seed)
        book.replace(parse_faults("reset_after:p=0.3"))
        return [book.draw(Endpoint.CREATE, lambda: None) is not None for _ in range(200)]

    assert thrown(1) == thrown(1)
    assert thrown(1) != thrown(2)
    assert 30 < sum(thrown(1)) < 90


def test_of_two_due_faults_the_first_fires_and_the_other_stays_due() -> None:
    with asking(faults="http_500_before:n=1,http_503_before:n=1") as provider:
        assert [provider.refund().status for _ in range(3)] == [500, 503, 200]


@pytest.mark.parametrize(
    ("spec", "part", "rule"),
    [
        ("cut_afer:p=0.5", "cut_afer", "did you mean cut_after"),
        ("cut_after:p=2", "p=2", "above 0 and at most 1"),
        ("cut_after:p=nan", "p=nan", "above 0 and at most 1"),
        ("cut_after:p=often", "p=often", "p must be a number"),
        ("cut_after:n=0", "n=0", "whole number, 1 or more"),
        ("cut_after:n=1:p=0.5", "n=1", "cannot be combined"),
        ("cut_after:seconds=3", "seconds=3", "does not take seconds"),
        ("cut_after:when=now", "when=now", "unknown parameter"),
        ("cut_after:on=put", "on=put", "on must be one of post"),
        ("cut_after:p", "p", "not parameter=value"),
        ("cut_after:n=1:n=2", "n=2", "given twice"),
        ("http_429:retry_after=never", "retry_after=never", "retry_after must be one of"),
        ("reset_after,,cut_after", "", "remove the extra comma"),
        ("timeout_after:seconds=-1", "seconds=-1", "from 0 to 3600"),
    ],
)
def test_a_spec_that_cannot_be_read_names_its_wrong_part(spec: str, part: str, rule: str) -> None:
    with pytest.raises(FaultSpecError, match=rule) as refused:
        parse_faults(spec)
    assert refused.value.part == part


def test_a_fault_s_own_words_ask_for_the_same_fault() -> None:
    for text in (
        "cut_after:p=0.05:pi=pi_1",
        "http_429:n=3:times=2:on=any:retry_after=date:seconds=2",
        "wrong_resource",
    ):
        (fault,) = parse_faults(text)
        assert fault_from(fault.as_dict()) == fault
