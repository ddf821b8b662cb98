"""Headers, bodies and errors of foreign making: read leniently, and nothing of them raises."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model.answers import NoReply, NotSent
from worker.provider.transport import MAX_RETRY_AFTER, answer_to, parse_json, read_retry_after

DATE = "Sat, 31 Jan 2026 09:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("0", None, 0),
        ("7", None, 7),
        (" 7 ", None, 7),
        ("1.5", None, 1.5),
        ("3600", None, 3600),
        ("3601", None, 3600),
        ("9" * 400, None, 3600),
        ("Sat, 31 Jan 2026 09:00:30 GMT", DATE, 30),
        ("Saturday, 31-Jan-26 09:00:30 GMT", DATE, 30),
        ("Sat, 31 Jan 2026 10:00:30 +0100", DATE, 30),
        ("Sat, 31 Jan 2026 09:00:30 -0000", DATE, 30),
        ("Sat, 31 Jan 2026 08:59:00 GMT", DATE, 0),
        ("Sun, 01 Feb 2026 09:00:00 GMT", DATE, 3600),
        ("Sat, 31 Jan 2026 09:00:30 GMT", "yesterday", 0),
        ("Sat, 31 Jan 2026 09:00:30 GMT", None, 0),
        ("", None, None),
        ("-1", None, None),
        ("+5", None, None),
        ("1e3", None, None),
        ("nan", None, None),
        ("inf", None, None),
        ("٣", None, None),
        ("7, 8", None, None),
        ("soon", None, None),
        ("Sat, 31 Jan 99999999999 09:00:30 GMT", DATE, None),
        ("Sat, 31 Jan 2026 09:00:30 +9999999999", DATE, None),
    ],
)
def test_retry_after_is_read_in_each_of_its_forms(
    value: str, date: str | None, seconds: float | None
) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert read_retry_after(value, date) == expected


def test_a_date_without_the_replys_own_counts_from_now() -> None:
    in_half_an_hour = format_datetime(datetime.now(UTC) + timedelta(minutes=30), usegmt=True)
    wait = read_retry_after(in_half_an_hour, None)
    assert wait is not None
    assert timedelta(minutes=29) < wait <= timedelta(minutes=30)


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
def test_no_retry_after_raises_or_leaves_its_bounds(value: str, date: str | None) -> None:
    wait = read_retry_after(value, date)
    assert wait is None or timedelta(0) <= wait <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "€"}'.encode("utf-16"), {"a": "€"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        (b"{}", {}),
        (b"", None),
        (b"[]", None),
        (b'"text"', None),
        (b"null", None),
        (b"<html>", None),
        (b'{"a": 1} trailing', None),
        (b'{"a": 1, "a": 2}', None),
        (b'{"b": {"a": 1, "a": 1}}', None),
        (b'{"a": "\xff"}', None),
        (b'{"a": "\\ud83d"}', None),
        (b'{"\\uDE00": 1}', None),
        (b'{"a": ' + b"9" * 5000 + b"}", None),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None),
    ],
)
def test_a_body_is_a_json_object_or_nothing(body: bytes, payload: dict[str, object] | None) -> None:
    assert parse_json(body) == payload


def test_numbers_that_are_none_do_not_raise() -> None:
    payload = parse_json(b'{"amount": NaN, "created": -Infinity, "rate": 1e999}')
    assert payload is not None
    assert payload.keys() == {"amount", "created", "rate"}


@given(st.binary(max_size=200))
def test_no_body_raises(body: bytes) -> None:
    payload = parse_json(body)
    assert payload is None or json.dumps(payload, ensure_ascii=False).encode()


def caused(outer: Exception, cause: BaseException) -> Exception:
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (caused(httpx.ConnectTimeout("x"), aiohttp.ConnectionTimeoutError()), NotSent),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ServerDisconnectedError()), NoReply),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ClientOSError(104, "reset")), NoReply),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ClientConnectionError("closed")), NoReply),
        (caused(httpx.ConnectError("x"), aiohttp.ClientConnectionResetError("closing")), NoReply),
        (httpx.ConnectTimeout("no cause"), NoReply),
        (httpx.ConnectError("no cause"), NoReply),
        (httpx.PoolTimeout("no cause"), NoReply),
        (ConnectionRefusedError(111, "somebody's"), NoReply),
        (ValueError("odd"), NoReply),
    ],
    ids=repr,
)
def test_only_a_cause_that_proves_it_was_not_sent_says_so(error: Exception, kind: type) -> None:
    assert isinstance(answer_to(error), kind)


def test_an_error_that_is_not_listed_is_named_by_its_class_alone() -> None:
    assert answer_to(ValueError("sk_test_planted")) == NoReply(reason="unexpected ValueError")
