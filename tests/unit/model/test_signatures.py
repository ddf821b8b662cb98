"""A webhook's body counts only with a recent signature of one of the endpoint's secrets."""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import NOW
from worker.model.signatures import (
    MOST_SIGNATURES,
    Signature,
    Verdict,
    check,
    digest,
    header,
    parse,
)
from worker.model.times import to_ms

SECRET = "whsec_4f1c0a8be7d64c2f9b35"
OTHER = "whsec_of_another_endpoint_77"
BODY = b'{"type":"charge.refund.updated"}'
SECONDS = str(to_ms(NOW) // 1000)
MAX_AGE = timedelta(hours=96)
law = settings(deadline=None, max_examples=100)


def judged(
    *headers: str,
    body: bytes = BODY,
    secrets: tuple[str, ...] = (SECRET,),
    max_age: timedelta | None = MAX_AGE,
) -> Verdict:
    return check(headers, body, secrets=secrets, now=NOW, max_age=max_age)


def signed(time: str = SECONDS, secret: str = SECRET) -> str:
    return header(secret, time, BODY)


def test_the_signature_is_the_documented_hmac() -> None:
    wanted = hmac.new(SECRET.encode(), f"{SECONDS}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert digest(SECRET, SECONDS, BODY) == wanted
    assert judged(f"t={SECONDS},v1={wanted}") == "valid"


def test_time_of_twelve_digits_is_in_milliseconds_and_a_shorter_one_in_seconds() -> None:
    times = {
        time: Signature(time=time, signatures=()).time_ms for time in ("1" + "0" * 11, "9" * 11)
    }
    assert times == {"1" + "0" * 11: 10**11, "9" * 11: 99_999_999_999_000}


@pytest.mark.parametrize("time", [SECONDS, SECONDS + "000"], ids=["seconds", "milliseconds"])
def test_a_time_may_be_in_seconds_or_milliseconds(time: str) -> None:
    assert judged(signed(time)) == "valid"


def test_each_of_several_secrets_and_signatures_is_compared() -> None:
    two = f"t={SECONDS},v1={digest(OTHER, SECONDS, BODY)},v1={digest(SECRET, SECONDS, BODY)}"
    assert judged(two) == "valid"
    assert judged(signed(), secrets=(OTHER, SECRET)) == "valid"
    assert judged(signed(), secrets=(OTHER,)) == "forged"


def test_elements_of_other_names_and_a_second_time_are_ignored() -> None:
    ours = digest(SECRET, SECONDS, BODY)
    assert judged(f"v0=x,t={SECONDS}, v1={ours},t=1,flag,=,") == "valid"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "t",
        f"t={SECONDS}",
        f"v1={digest(SECRET, SECONDS, BODY)}",
        f"t=,v1={digest(SECRET, '', BODY)}",
        f"t={'1' * 17},v1=00",
        "t=-1,v1=00",
        "t=1.5,v1=00",
        "t=\u0661,v1=00",
        "t=1e3,v1=00",
        f"T={SECONDS},v1=00",
        f"t={SECONDS}," + ",".join(["v1=00"] * (MOST_SIGNATURES + 1)),
    ],
)
def test_a_header_of_another_form_is_malformed(value: str) -> None:
    assert judged(value) == "malformed"


def test_no_header_and_two_headers_are_malformed() -> None:
    assert judged() == "malformed"
    assert judged(signed(), signed()) == "malformed"


def test_ten_signatures_are_compared() -> None:
    others = ",".join(["v1=00"] * (MOST_SIGNATURES - 1))
    assert judged(f"t={SECONDS},{others},v1={digest(SECRET, SECONDS, BODY)}") == "valid"


@pytest.mark.parametrize("value", ["v1=", "v1=00", "v1=\udcff", "v1=\u20ac", "v1=" + "0" * 64])
def test_a_signature_that_is_not_ours_is_forged(value: str) -> None:
    assert judged(f"t={SECONDS},{value}") == "forged"


def test_without_a_secret_everything_is_forged() -> None:
    assert judged(signed(), secrets=()) == "forged"
    assert judged(signed(secret=""), secrets=("",)) == "forged"


def test_another_body_and_another_time_are_forged() -> None:
    assert judged(signed(), body=BODY + b" ") == "forged"
    assert judged(f"t={int(SECONDS) + 1},v1={digest(SECRET, SECONDS, BODY)}") == "forged"


@pytest.mark.parametrize("unit", [1, 1000])
@pytest.mark.parametrize(
    ("age", "verdict"),
    [
        (timedelta(hours=96), "valid"),
        (timedelta(hours=96, seconds=1), "stale"),
        (timedelta(hours=-1), "valid"),
        (timedelta(hours=-1, seconds=-1), "stale"),
        (timedelta(hours=72), "valid"),
    ],
)
def test_a_signature_counts_for_its_age_and_an_hour_ahead(
    age: timedelta, verdict: Verdict, unit: int
) -> None:
    time = str(to_ms(NOW - age) // 1000 * unit)
    assert judged(signed(time)) == verdict


def test_without_a_maximum_only_the_future_is_stale() -> None:
    assert judged(signed("0"), max_age=None) == "valid"
    assert judged(signed("9" * 16), max_age=None) == "stale"


def test_a_forged_signature_is_forged_whatever_its_age() -> None:
    assert judged(signed("0", OTHER)) == "forged"


@law
@given(st.text(max_size=60) | st.text(alphabet="tv10=,; ", max_size=60), st.binary(max_size=20))
def test_no_text_in_the_header_raises_or_is_believed(value: str, body: bytes) -> None:
    assert judged(value, body=body) in {"malformed", "forged"}


@law
@given(st.binary(max_size=50), st.text(min_size=1, max_size=50), st.integers(0, 10**16 - 1))
def test_what_was_signed_is_never_forged(body: bytes, secret: str, time: int) -> None:
    if any("\ud800" <= character <= "\udfff" for character in secret):
        return
    value = header(secret, str(time), body)
    assert judged(value, body=body, secrets=(secret,)) in {"valid", "stale"}
    assert parse([value]) is not None
