"""What a file over the HTTP API may be, each of its parameters, and the guards that refuse it."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING
from urllib.parse import quote

import jsonschema
import pytest

from tests.support import described_api
from tests.support.api_door import Door

if TYPE_CHECKING:
    from pathlib import Path

from tests.unit.http.file_api import HEAD, PATH, imported, names, rows, send

NDJSON = "application/x-ndjson"


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (gzip.compress(rows(2), mtime=0), {"Content_Encoding": "gzip"}),
        (
            (
                b'{"refund_id":"order-0","payment_intent":"pi_0"}\n'
                b'{"refund_id":"order-1","payment_intent":"pi_1","amount":5}\n'
            ),
            {"Content_Type": NDJSON, "query": "all_remaining=true"},
        ),
    ],
    ids=["gzip", "jsonl"],
)
async def test_other_forms_of_a_file_are_imported(
    api: Door, data: bytes, headers: dict[str, str]
) -> None:
    got = await send(api, data, **headers)
    assert got.status == 202
    assert (await imported(api, got.json["batch_id"]))["accepted"] == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "application/json"}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content_Encoding": "br"}, 415),
        ({"Content_Encoding": "gzip"}, 400),
    ],
)
async def test_a_body_that_is_not_what_its_headers_say_is_refused(
    api: Door, folder: Path, headers: dict[str, str], status: int
) -> None:
    assert (await send(api, rows(1), **headers)).status == status
    assert names(folder) == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("dry_run=yes", "dry_run"),
        ("name=a/b", "name"),
        ("name=..", "name"),
        ("expect_rows=0", "expect_rows"),
        ("expect_total=5", "expect_total"),
        ("max_total=usd", "max_total"),
        ("delay=soon", "delay"),
        ("max_errors=5", "max_errors"),
        ("on_error=skip&max_errors=200%25", "max_errors"),
        ("column=colour%3Dx", "column"),
        ("wait=5", "wait"),
        ("name=a&name=b", "name"),
    ],
)
async def test_a_wrong_parameter_is_named(api: Door, query: str, field: str) -> None:
    got = await send(api, rows(1), query)
    assert (got.status, [each[0] for each in got.fields]) == (422, [field])


VALUES = {
    "name": ["season", "a:b.c_d-1", "a" * 100, "...", ".", "..", "", "a b", "a" * 101],
    "dry_run": ["true", "false", "", "yes"],
    "on_error": ["abort", "skip", "ignore"],
    "max_errors": [
        *("0", "10", "0.5%", "007%", "99.999999%", "100%", "100.0%", "1" * 12),
        *("", "-1", "1.5", "%", "100.1%", "101%", "1e1", "1" * 13),
    ],
    "expect_rows": ["1", "100000000", "0", "100000001", "1.5", ""],
    "expect_total": [
        *("usd=5", "USD=0", "unstated=5", "usd=" + "9" * 18),
        *("usd=", "5", "usd=-5", "us=5", "usd=" + "9" * 19),
    ],
    "max_total": ["usd=5", "5", "unstated=5", "", "usd", "=5"],
    "delay": ["90s", "1h30m", "30d", "", "70", "-5s", "1.5h", "1w", "9" * 5000 + "s"],
    "delimiter": ["comma", "semicolon", "tab", ",", ""],
    "column": [
        *("amount=Sum", "metadata.shop=Shop", "amount= Sum = 1 "),
        *("", "amount", "=Sum", "colour=Sum", "metadata.=Shop"),
    ],
    "attempt": ["1", "99", "0", "100", ""],
    "amount_unit": ["minor", "major", "cents"],
    "decimal": ["point", "comma", "."],
    "ignore_extra": ["true", "false", "1"],
}
"""Values of the parameters, of those with rules of their own."""


@pytest.mark.parametrize("name", VALUES)
async def test_a_parameter_is_refused_exactly_if_the_document_forbids_it(
    api: Door, name: str
) -> None:
    (schema,) = [
        each["schema"]
        for each in described_api.DOCUMENT["paths"][PATH]["post"]["parameters"]
        if each["name"] == name
    ]
    schema = schema.get("items", schema)
    more = {"max_errors": "on_error=skip&"}.get(name, "")
    for value in VALUES[name]:
        whole = schema["type"] == "integer" and value.isdecimal()
        is_valid = jsonschema.Draft202012Validator(schema).is_valid(int(value) if whole else value)
        # An empty file is refused after the parameters.
        got = await send(api, b"", f"{more}{name}={quote(value)}")
        wrong = {field for field, _ in got.fields} if got.code == "invalid_request" else set()
        assert (value, wrong) == (value, set() if is_valid else {name})
    assert (await api.get(PATH)).json["data"] == []


async def test_a_broken_limit_is_said_in_words_of_the_api(api: Door) -> None:
    got = await send(api, b"refund_id,payment_intent,amount\nx-1,pi_1,5\n", "expect_total=usd=5")
    assert got.code == "refused"
    assert "add expect_total unstated=5" in got.json["detail"]
    assert "--" not in got.body.decode()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("attempt=2", "id_from"),
        ("decimal=comma", "amount_unit"),
        ("currency=dollars", "ISO"),
        ("sheet=One", "sheet"),
    ],
)
async def test_what_does_not_fit_the_file_is_said_in_words_of_the_api(
    api: Door, query: str, words: str
) -> None:
    got = await send(api, rows(1), query)
    assert (got.status, got.code) == (422, "invalid_file")
    assert words in got.json["detail"]
    assert "--" not in got.json["detail"]


async def test_a_workbook_of_another_type_is_said_in_words_of_the_api(api: Door) -> None:
    got = await send(api, b"PK\x03\x04")
    assert (got.status, got.code) == (422, "invalid_file")
    assert got.json["detail"].endswith("not csv: correct its Content-Type")


@pytest.mark.parametrize(
    ("data", "query", "reason"),
    [
        (rows(2), "expect_rows=3", "limit"),
        (rows(2), "max_total=usd%3D900", "limit"),
        (b"refund_id,payment_intent\norder-1,pi_1\n", "", "all_remaining"),
        (rows(1) + b"order-7,pi_0,500,usd\n", "", "repeats"),
        (HEAD.encode() + b"taken,pi_0,500,usd\n", "", "conflicting"),
    ],
)
async def test_a_guard_refuses_the_file_and_nothing_is_imported(
    api: Door, data: bytes, query: str, reason: str
) -> None:
    await api.create("taken", payment_intent="pi_other")
    got = await send(api, data, query)
    assert (got.status, got.code) == (409, "refused")
    assert got.json["report"]["refused"] == [reason]
    assert (await api.get(PATH)).json["data"] == []
