"""Secrets of the settings, whatever their shape, are in nothing that is kept, logged or said."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import a_reply
from worker.broker import inbox
from worker.broker.kept import RejectedMessage
from worker.engine import endings
from worker.engine.endings import STORE_AWAY
from worker.errors import InvalidRequest, StoreUnavailable
from worker.model import redaction
from worker.model.callers import new_token
from worker.model.redaction import forms_of, holds_key, without_secrets
from worker.model.request import RefundRequest, scrubbed, shown
from worker.model.statements import checked_note
from worker.monitoring.checks import Check, guarded
from worker.process import logs
from worker.provider.transport import proxy_for
from worker.rules import payloads
from worker.settings import Settings
from worker.store.connection import redis_errors, unavailable

KEY = "wp-live-9f8e7d6c5b4a39281706"
KEYS = (KEY, "wp.9f8e7d", "0123456789abcdef0123456789abcdef", "eyJhbGciOi.J9f8e7d6c5.b4a39281_0-6")
PASSWORD = "pa ss/w0rd@9f8e'\"\\é"


def basic(key: str) -> str:
    return base64.b64encode(f"{key}:".encode()).decode()


def planted(text: str, *secrets: str) -> list[str]:
    """The secrets that a text tells: plain, as addresses and JSON write them, or in base64
    somewhere in it.
    """
    words = re.findall(r"[A-Za-z0-9+/]{8,}", text)
    inside = [text, *(repr(base64.b64decode(word[: len(word) // 4 * 4])) for word in words)]
    forms = {
        form
        for secret in secrets
        for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])
    }
    return [form for form in forms if any(form in each for each in inside)]


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> str:
    """A key that the settings were loaded with."""
    Settings.load(api_key=request.param)
    return str(request.param)


@pytest.fixture
def password() -> str:
    """A password with every kind of reserved character, in the address of Redis."""
    Settings.load(redis_url=f"redis://worker:{quote(PASSWORD, safe='')}@127.0.0.1:6379/0")
    return PASSWORD


# The registry


def test_key_of_the_settings_is_hidden_whatever_its_shape(key: str) -> None:
    assert without_secrets(f"Invalid key {key}, or {basic(key)}!") == "Invalid key ***, or ***!"


def test_text_without_a_secret_is_left_as_it_is(key: str) -> None:
    assert without_secrets(f"no key begins with {key[:4]}") == f"no key begins with {key[:4]}"


@given(st.text(max_size=20), st.text(min_size=6, max_size=40), st.text(max_size=20))
def test_secret_is_hidden_in_all_its_forms_and_anywhere_in_base64(
    before: str, secret: str, after: str
) -> None:
    hidden = redaction.Secrets()
    hidden.add(forms_of(secret))
    for form in (
        secret,
        quote(secret, safe="", errors="surrogatepass"),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    ):
        assert form not in hidden.hidden_in(f"{before}{form}") or form in before
    packed = base64.b64encode((before + secret + after).encode("utf-8", "surrogatepass"))
    assert hidden.found_in(packed.decode()) is not None
    packed = base64.urlsafe_b64encode((before + secret + after).encode("utf-8", "surrogatepass"))
    assert hidden.found_in(packed.decode()) is not None


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("redis_url", "redis://:hunter22@127.0.0.1:6379/0"),
        ("redis_url", "redis://user:hunt%65r22@127.0.0.1:6379/0"),
        ("redis_url", "redis://127.0.0.1:6379/0?password=hunter22"),
        ("redis_url", "unix://user:hunter22@/run/redis.sock"),
        ("redis_url", "sentinel://:hunter22@a:1,b:2/0?master=m"),
        ("redis_url", "sentinel://a:1,b:2/0?master=m&sentinel_password=hunter22"),
        ("broker_url", "amqp://user:hunter22@127.0.0.1:5672//"),
        ("broker_url", "amqp://u:another1@a:5672;amqp://u:hunter22@b:5672"),
        ("broker_url", "amqp://u:hunter22@a:5672;amqp://u:another1@b:5672"),
    ],
)
def test_passwords_in_addresses_are_hidden(name: str, address: str) -> None:
    settings: dict[str, Any] = {name: address}
    Settings.load(**settings)
    assert without_secrets("said hunter22") == "said ***"


def test_key_that_looks_like_an_address_is_hidden() -> None:
    Settings.load(api_key="odd://9f8e7d6c")
    assert without_secrets("said odd://9f8e7d6c") == "said ***"


def test_password_of_a_proxy_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:hunter22@proxy:3128")
    assert proxy_for("https://provider.example") is not None
    assert without_secrets("said hunter22") == "said ***"


def test_password_is_hidden_in_every_form(password: str) -> None:
    for form in (
        password,
        quote(password, safe=""),
        quote(password),
        json.dumps(password),
        repr(password),
    ):
        assert planted(without_secrets(f"said {form}"), password) == []


def test_short_password_is_hidden_in_an_address_only() -> None:
    Settings.load(redis_url="redis://:pass@127.0.0.1/0")
    assert without_secrets("redis://:pass@127.0.0.1/0 passed") == "redis://***127.0.0.1/0 passed"


def test_shortest_text_that_can_hold_a_secret_is_looked_at() -> None:
    Settings.load(api_key=KEY)
    assert (without_secrets(KEY[:16]), without_secrets(KEY[:15])) == ("***", KEY[:15])
    Settings.load(redis_url="redis://:hunter@127.0.0.1/0")
    assert without_secrets("hunter") == "***"


def test_secret_that_was_cut_or_masked_is_hidden() -> None:
    Settings.load(api_key=KEY)
    assert without_secrets(f"key {KEY[:20]}… and {KEY[:18]}**** it is") == "key *** and *** it is"


def test_cut_secret_takes_no_more_of_the_text_than_it_has() -> None:
    Settings.load(api_key=KEY)
    assert without_secrets(f"{KEY[:16]}{'x' * 20}") == f"***{'x' * 8}"


def test_only_a_long_key_makes_an_id_unusable() -> None:
    Settings.load(api_key=KEY, redis_url="redis://:refund@127.0.0.1/0")
    assert holds_key(f"re_{KEY}")
    assert not holds_key("re_refund1")
    Settings.load(api_key="refund")
    assert not holds_key("re_refund1")


# What is said of foreign values


def test_secret_at_the_end_of_what_is_shown_is_not_cut_into_two(key: str) -> None:
    for length in range(300):
        assert key[:6] not in scrubbed("x" * length + " " + key)
        assert key[:6] not in shown("x" * length + " " + key)


def test_secret_with_blanks_is_hidden_before_blanks_are_lost() -> None:
    Settings.load(redis_url="redis://:two%20%20words@127.0.0.1/0")
    assert scrubbed("said\ttwo  words ") == "said ***"


def test_secret_that_lost_its_line_end_on_the_way_is_hidden() -> None:
    Settings.load(redis_url="redis://:two%20words@127.0.0.1/0")
    assert scrubbed("said two\nwords") == "said ***"


def test_invalid_request_does_not_repeat_the_key(key: str) -> None:
    wrong: dict[str, Any] = {
        "amount": key,
        "reason": key,
        "metadata": {key + "\0": "x", f"a{key}": f"{key}\0"},
    }
    with pytest.raises(InvalidRequest) as caught:
        RefundRequest(refund_id=f"{key} ", payment_intent=f"{key} ", currency=key, **wrong)
    assert planted(str(caught.value), key) == []


def test_rejected_message_is_kept_without_the_key_wherever_it_is_cut(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []

    def keep(each: RejectedMessage) -> bool:
        kept.append(repr(each))
        return True

    monkeypatch.setattr(inbox, "_keepers", [keep])
    for length in range(3_950, 4_010):
        body = base64.b64encode(json.dumps([[], {"amount": key}]).encode()).decode()
        inbox.rejected("x" * length + key, f"no task is named {key}")
        inbox.rejected(json.dumps({"key": key, "body": body}).encode(), "")
        inbox.rejected({"key": key}, "")
    assert [text for text in kept if key[:6] in text or planted(text, key)] == []


def test_result_of_a_task_does_not_name_the_key(key: str) -> None:
    assert endings.summary({key: STORE_AWAY}) == "***: not known (Redis away)"


def test_persons_note_is_kept_without_the_key(key: str) -> None:
    assert checked_note(f"asked with {key}") == "asked with ***"


# The provider


def test_errors_of_the_provider_are_read_without_the_key(key: str) -> None:
    error = {"error": {"type": key, "code": key, "message": f"Basic {basic(key)} {key} {{"}}
    for body in (
        error,
        error["error"],
        {"error": key},
        {"errors": [{"message": key}]},
        {"message": f"x {key}"},
    ):
        assert planted(repr(a_reply(400, body)), key) == []


def test_metadata_that_is_a_part_of_the_key_does_not_save_the_rest(key: str) -> None:
    payload = payloads.read({"error": {"message": f"no key {key}"}}, hide=[key[2:8]])
    assert payload is not None
    assert payload.error is not None
    assert payload.error.message == "no key ***"


def test_brace_in_a_password_does_not_save_its_beginning() -> None:
    Settings.load(redis_url="redis://:begin%7Bning@127.0.0.1/0")
    payload = payloads.read({"error": {"message": "said begin{ning"}})
    assert payload is not None
    assert payload.error is not None
    assert payload.error.message == "said ***"


def test_reply_that_gives_our_key_for_an_id_or_a_name_is_not_believed() -> None:
    own = "wp_live_9f8e7d6c5b4a39281706"
    Settings.load(api_key=own)
    payload = payloads.read(
        {
            "id": own,
            "object": own,
            "payment_intent": own,
            "latest_charge": own,
            "status": own,
            "currency": own,
            own: 1,
        },
        numbers=True,
    )
    assert planted(repr(payload), own) == []
    assert payload is not None
    assert (payload.id, payload.kind, payload.payment_intent, payload.refund, payload.numbers) == (
        "",
        "",
        "",
        None,
        {},
    )


# Redis


def test_server_that_repeats_the_password_is_not_quoted(password: str) -> None:
    said = (
        f"unknown command `HELLO`, with args beginning with: `3` `AUTH` `{'x' * 30}` `{password}` "
    )
    error = redis.ResponseError(said)
    with pytest.raises(redis.ResponseError) as caught, redis_errors("127.0.0.1:6379"):
        raise error
    assert planted(str(caught.value), password) == []
    for start in ("MISCONF ", "NOPERM ", ""):
        assert (
            planted(
                str(unavailable(redis.ResponseError(start + said), "there")), password, password[:6]
            )
            == []
        )


@pytest.mark.parametrize(
    "kind", [redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError, OSError]
)
def test_cause_of_a_redis_that_is_away_does_not_name_the_password(
    kind: type[Exception], password: str
) -> None:
    with pytest.raises(StoreUnavailable) as caught, redis_errors("127.0.0.1:6379"):
        raise kind(f"redis://worker:{quote(password, safe='')}@127.0.0.1 and {password}")
    assert planted(f"{caught.value} {caught.value.__cause__!r}", password) == []


def test_doctor_does_not_repeat_what_a_server_says_of_the_password(password: str) -> None:
    def refuse(_: int) -> Check:
        raise redis.ResponseError(f"unknown command with {password}")

    (found,) = guarded("redis", "redis-cli", lambda: map(refuse, [0]))
    assert planted(repr(found), password) == []
    assert "unknown command" in found.text


# Logs and crashes


def test_no_line_of_a_log_tells_the_key(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (key, f"said {key}", [key], {"deep": {"x": key}}, ValueError(key), key.encode()):
        cleaned = logs.redact(None, "", {"event": f"said {key}", "value": value})
        assert planted(json.dumps(cleaned), key) == []
    assert capsys.readouterr().err == ""


def test_key_in_the_name_of_a_fact_is_not_logged(key: str) -> None:
    assert planted(json.dumps(logs.redact(None, "", {"value": {key: 1}})), key) == []


def test_crash_is_logged_as_all_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.excepthook", None)
    monkeypatch.setattr(threading, "excepthook", None)
    logs.log_crashes()

    def crash() -> None:
        raise ValueError(KEY)

    thread = threading.Thread(target=crash)
    with caplog.at_level(logging.CRITICAL):
        thread.start()
        thread.join()
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info is not None) == ("crashed", True)


def test_a_token_of_the_http_api_is_hidden_wherever_it_is() -> None:
    token = new_token()
    assert without_secrets(f"sent {token}, refused") == "sent ***, refused"
