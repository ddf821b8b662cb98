"""The signatures of callbacks, held against the independent verifier of Standard Webhooks."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from worker.callbacks.signing import headers, message_id, secret_bytes

OLD, NEW, OTHER = (
    "whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3)
)


def keys(*secrets: str) -> list[bytes]:
    found = [secret_bytes(secret) for secret in secrets]
    return [key for key in found if key is not None]


@given(st.binary(max_size=300), st.text("abc:_-.", min_size=1, max_size=40))
def test_every_body_is_accepted_by_the_independent_verifier(body: bytes, member: str) -> None:
    text = b'{"a": "' + base64.b64encode(body) + b'"}'
    identity = message_id("refunds:", member, "3")
    signed = dict(headers(keys(OLD), identity, int(time.time()), text))
    assert Webhook(OLD).verify(text, signed) is not None
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(text, signed)
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(text + b" ", signed)


def test_during_a_rotation_the_old_and_the_new_secret_are_both_accepted() -> None:
    signed = dict(headers(keys(OLD, NEW), "msg_1", int(time.time()), b"{}"))
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(b"{}", signed) == {}


def test_id_is_the_same_for_a_version_differs_for_another_and_holds_no_dot() -> None:
    ids = [message_id("refunds:", "order.1", version) for version in ("1", "1", "2")]
    assert ids[0] == ids[1] != ids[2]
    assert message_id("eu:", "order.1", "1") != ids[0]
    assert ids[0].startswith("msg_")
    assert len(ids[0]) == 30
    assert "." not in ids[0]


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_!!",
        base64.b64encode(b"x" * 32).decode(),
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsec_" + base64.b64encode(b"x" * 32).decode() + "\n",
    ],
)
def test_secret_of_another_form_is_none(secret: str) -> None:
    assert secret_bytes(secret) is None


@pytest.mark.parametrize("length", [24, 64])
def test_secret_of_24_to_64_bytes_is_a_key(length: int) -> None:
    assert keys("whsec_" + base64.b64encode(b"x" * length).decode()) == [b"x" * length]
