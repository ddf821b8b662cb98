from __future__ import annotations

from contextlib import suppress
from http.client import HTTPException

import pytest

from tests.unit.sandbox.asking import asking, post_headers, until


def test_a_key_seen_before_gets_the_first_reply_again_and_moves_nothing() -> None:
    with asking() as provider:
        first = provider.refund(amount="500", key="k")
        again = provider.refund(amount="500", key="k")
        assert (again.status, again.body) == (first.status, first.body)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert len(provider.sandbox.effects()) == 1


def test_a_declined_refund_is_replayed_like_any_other_answer() -> None:
    with asking() as provider:
        first = provider.refund("pi_declined_1", key="k")
        again = provider.refund("pi_declined_1", key="k")
        assert (again.status, again.body) == (402, first.body)
        assert "Idempotent-Replayed" in again.headers


def test_a_request_that_is_not_valid_leaves_its_key_free() -> None:
    with asking() as provider:
        assert provider.refund(amount=500, key="k").status == 400
        assert provider.refund(amount="500", key="k").status == 200


def test_a_key_with_another_body_is_refused_and_moves_nothing() -> None:
    with asking() as provider:
        provider.refund(amount="500", key="k")
        seen = provider.refund(amount="501", key="k")
        assert (seen.status, seen.json["error"]["type"]) == (400, "idempotency_error")
        assert len(provider.sandbox.effects()) == 1


def test_a_key_whose_first_request_is_in_flight_meets_a_conflict() -> None:
    with asking(faults="late_effect:times=1:seconds=60") as provider:
        first = provider.connect()
        first.request(
            "POST", "/v1/refunds", headers=post_headers("k"), body=b'{"payment_intent":"pi_1"}'
        )
        until(lambda: provider.sandbox.faults()["faults"][0]["fired"])
        seen = provider.refund("pi_1", key="k")
        assert (seen.status, seen.json["error"]["type"]) == (409, "idempotency_error")
        assert provider.refund("pi_1", key="other").status == 200
        assert [entry["idempotency_key"] for entry in provider.sandbox.effects()] == ["other"]
        first.close()


def test_a_key_past_its_window_is_a_new_request() -> None:
    with asking(key_window_seconds=0) as provider:
        provider.refund(amount="500", key="k")
        provider.refund(amount="500", key="k")
        assert len(provider.sandbox.effects()) == 2


def test_a_provider_that_ignores_keys_moves_money_each_time() -> None:
    with asking(idempotency="ignore") as provider:
        provider.refund(amount="500", key="k")
        assert "Idempotent-Replayed" not in provider.refund(amount="501", key="k").headers
        assert [entry["idempotency_key"] for entry in provider.sandbox.effects()] == ["k", "k"]


@pytest.mark.parametrize(("fault", "effects"), [("http_500_before", 0), ("http_503_after", 1)])
def test_a_stored_server_error_is_replayed_and_never_executed_again(
    fault: str, effects: int
) -> None:
    with asking(store_5xx=True, faults=f"{fault}:n=1") as provider:
        first = provider.refund(key="k")
        again = provider.refund(key="k")
        assert first.status >= 500
        assert (again.status, again.body) == (first.status, first.body)
        assert len(provider.sandbox.effects()) == effects


@pytest.mark.parametrize(
    "fault", ["http_500_before", "http_500_after", "html_502_after", "cut_after", "timeout_after"]
)
def test_without_stored_errors_the_same_key_finds_the_real_outcome(fault: str) -> None:
    with asking(
        faults=f"{fault}:n=1" + (":seconds=0" if fault == "timeout_after" else "")
    ) as provider:
        with suppress(HTTPException, OSError):
            provider.refund(key="k")
        assert provider.refund(key="k").status == 200
        assert len(provider.sandbox.effects()) == 1


def test_a_proxy_s_error_is_never_stored_under_a_key() -> None:
    with asking(store_5xx=True, faults="html_502_before:n=1") as provider:
        assert provider.refund(key="k").status == 502
        assert provider.refund(key="k").status == 200
