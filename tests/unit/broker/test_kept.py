"""What is kept of a message that could not be understood.

Opened, short, without secrets, with the refunds it names.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sending import EMBED, Sent
from worker.broker.kept import LONGEST, MOST_NAMED, kept_of, without_secrets

KEY = "sk_test_planted0123456789abcdef"
CUT = json.dumps([[], {"key": KEY, "more": "x" * 90}, {}])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def encoded(text: str, cut: int = 0) -> str:
    whole = base64.b64encode(text.encode()).decode()
    return whole[: len(whole) - cut]


def test_a_message_is_kept_with_its_body_first_and_in_the_clear() -> None:
    sent = Sent(refund_id="r-1", headers={"id": "5f0c"}, properties={"delivery_tag": "t"})
    kept = kept_of(sent.for_redis(), "why")
    assert json.loads(kept.message) == {
        "body": [[], {"refund_id": "r-1", "payment_intent": "pi_r-1", "amount": 100}, EMBED],
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "refunds.submit", "id": "5f0c", "lang": "php", "kwargsrepr": "r-1"},
        "properties": {
            "delivery_tag": "t",
            "delivery_info": {"exchange": "", "routing_key": "refunds"},
            "body_encoding": "base64",
        },
    }
    assert kept.message.startswith('{"body"')
    assert (kept.reason, kept.refund_ids) == ("why", ("r-1",))


def test_each_one_has_an_id_of_its_own() -> None:
    ids = {kept_of(b"x", "why").entry_id for _ in range(100)}
    assert len(ids) == 100
    assert {len(entry_id) for entry_id in ids} == {10}


def test_a_key_in_the_place_of_a_refund_id_is_not_kept_as_one() -> None:
    kept = kept_of(json.dumps({"refund_id": KEY}), "why")
    assert kept.refund_ids == ()
    assert KEY not in kept.message


@pytest.mark.parametrize(
    "raw",
    [
        f"{{no json {KEY}".encode(),
        f"{{no json {encoded(f'[{KEY}]')}".encode(),
        f"{{no json {encoded(CUT, cut=9)}".encode(),
        f"x{encoded(f'the key is {KEY}')}".encode(),
        f"xy {encoded(f'the key is {KEY}').replace('+', '-').replace('/', '_')}".encode(),
        json.dumps(
            {
                "body": encoded(json.dumps([[], {"key": KEY}, {}])),
                "properties": {"body_encoding": "base64"},
            }
        ),
        json.dumps({"body": encoded(json.dumps([[], {"key": KEY}, {}]))}),
        json.dumps({"key": KEY}).replace("planted", "\\u0070lanted"),
        json.dumps({"key": f"Basic {encoded(f'{KEY}:')}"}),
        {"body": json.dumps([[], {"key": KEY}, {}]).encode(), "headers": {"x": KEY}},
        ([KEY], {"key": [KEY]}),
    ],
)
def test_no_key_is_kept_plain_escaped_or_in_base64(raw: Any) -> None:
    kept = kept_of(raw, f"why {KEY}")
    inside = [kept.message, kept.reason]
    for word in kept.message.replace('"', " ").split():
        for start in range(4):
            part = word[start:]
            try:
                inside.append(
                    base64.b64decode(part[: len(part) // 4 * 4], altchars=b"-_").decode(
                        "utf-8", "replace"
                    )
                )
                inside.append(
                    base64.b64decode(part[: len(part) // 4 * 4]).decode("utf-8", "replace")
                )
            except ValueError:
                continue
    assert not [text for text in inside if "planted" in text]


def test_what_hides_no_key_stays_as_it_is() -> None:
    text = (
        f"a {encoded('an order of 500 for a customer')} pi_1787730829493927936"
        " 5f0c0f3e-0000-4000-8000-000000000000"
    )
    assert without_secrets(text) == text


def test_a_message_is_kept_so_long_and_no_longer() -> None:
    assert len(kept_of(b"x y " * 100_000, "why").message) == LONGEST
    assert len(kept_of(b"x", "why " * 1000).reason) == 300


@pytest.mark.parametrize(
    ("raw", "ids"),
    [
        (([], {"refund_id": "r-1", "colour": "red"}), ("r-1",)),
        (([["r-1", "bad id", "r-2"]], {}), ("r-1", "r-2")),
        ((["r-1", "pi_1"], {}), ("r-1",)),
        (([{"refund_id": "r-1"}], {}), ("r-1",)),
        ({"body": b"\xff", "headers": {"kwargsrepr": "r-1"}}, ("r-1",)),
        ({"body": b"\xff", "headers": {"kwargsrepr": "{'refund_id': 'r-1'}"}}, ("r-1",)),
        ({"body": b'[[], {"refund_id": "r-1", "amount": NaN', "headers": {}}, ("r-1",)),
        (b'{"body": "[[], {\\"refund_id\\": \\"r-1\\", ', ("r-1",)),
        (Sent(refund_id="r-1", headers={"kwargsrepr": "?"}).for_redis()[:-150], ("r-1",)),
        (json.dumps({"refund_id": "r-1"}).encode(), ("r-1",)),
        (([], {"refund_id": "bad id"}), ()),
        (([], {"refund_id": 5}), ()),
        (b"nothing at all", ()),
        (5, ()),
        (None, ()),
    ],
)
def test_the_refunds_that_a_message_names_are_found_even_if_it_is_broken(
    raw: Any, ids: tuple[str, ...]
) -> None:
    assert kept_of(raw, "why").refund_ids == ids


def test_a_message_is_found_under_so_many_refunds_and_no_more() -> None:
    assert kept_of(([[f"r-{n}" for n in range(100)]], {}), "why").refund_ids == tuple(
        f"r-{n}" for n in range(MOST_NAMED)
    )


@given(
    raw=JSON
    | st.binary()
    | st.text()
    | st.fixed_dictionaries({"body": JSON | st.binary(), "headers": JSON})
)
def test_whatever_a_message_is_it_can_be_kept(raw: Any) -> None:
    kept = kept_of(raw, "why")
    json.dumps([kept.message, kept.reason, kept.refund_ids], ensure_ascii=False).encode()


def test_a_message_that_nests_without_end_can_be_kept() -> None:
    inner: list[Any] = []
    for _ in range(100_000):
        inner = [inner]
    assert kept_of(b"[" * 100_000, "why").message
    assert kept_of({"body": "x", "headers": inner}, "why").entry_id
