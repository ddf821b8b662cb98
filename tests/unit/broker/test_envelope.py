"""What of a message Celery gets to see, part by part; anything else is refused with a reason."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.envelope import (
    DEEPEST,
    LONGEST_BODY,
    Unreadable,
    body_with,
    decompressed,
    headers_of,
    parts_of,
    wire_of,
)

TASKS = {"refunds.submit", "refunds.process"}
GOOD = {"task": "refunds.submit", "id": "5f0c0f3e"}
EMPTY = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def why(refused: pytest.ExceptionInfo[Unreadable]) -> str:
    return str(refused.value)


def body(parts: Any = None, **named: Any) -> bytes:
    chosen = {"content_type": "application/json", "content_encoding": "utf-8"} | named
    return body_with(*parts_of(json.dumps([[], {}, {}] if parts is None else parts), **chosen))


def test_headers_are_those_of_the_list_and_no_others() -> None:
    odd = dict.fromkeys(
        ("timelimit", "eta", "expires", "stamps", "stamped_headers", "shadow", "reply_to", "group"),
        "x",
    )
    assert headers_of(
        {**GOOD, **odd, "argsrepr": "a", "kwargsrepr": "b", "ignore_result": False}, TASKS
    ) == {
        "task": "refunds.submit",
        "id": "5f0c0f3e",
        "root_id": "5f0c0f3e",
        "ignore_result": True,
        "argsrepr": "a",
        "kwargsrepr": "b",
    }


def test_what_flower_shows_is_one_line_of_text_without_a_key() -> None:
    built = headers_of(
        {**GOOD, "argsrepr": f"a\n{'x' * 2000}", "kwargsrepr": "sk_test_planted"}, TASKS
    )
    assert built["argsrepr"] == f"a {'x' * 1098}"
    assert built["kwargsrepr"] == "***"
    assert "argsrepr" not in headers_of({**GOOD, "argsrepr": ["x"]}, TASKS)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "headers.task is missing or is not text"),
        ({"task": ["refunds.submit"], "id": "1"}, "headers.task is missing or is not text"),
        ({"task": "celery.chain", "id": "1"}, "there is no task named celery.chain"),
        (
            {"task": "refunds.submit"},
            "headers.id is missing or is not text of 1 to 200 visible ASCII characters",
        ),
        *(
            ({"task": "refunds.submit", "id": value}, "headers.id is missing")
            for value in ("", "a b", "x" * 201, "é", 5)
        ),
    ],
)
def test_headers_without_a_known_task_and_an_id_are_refused(
    headers: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unreadable) as refused:
        headers_of(headers, TASKS)
    assert why(refused).startswith(reason)


def test_an_id_may_have_200_characters() -> None:
    assert headers_of({**GOOD, "id": "x" * 200}, TASKS)["id"] == "x" * 200


def test_a_body_is_written_anew_with_nothing_embedded() -> None:
    embed = {"callbacks": [{"task": "x"}], "delivery_info": {}, "id": "other"}
    assert json.loads(body([["a"], {"b": 1}, embed])) == [["a"], {"b": 1}, EMPTY]


@pytest.mark.parametrize(
    "encoding", [None, "", "utf-8", "UTF-8", "utf8", "us-ascii", "ASCII", "binary"]
)
def test_encodings_that_are_utf8_are_read(encoding: str | None) -> None:
    assert json.loads(body(content_encoding=encoding)) == [[], {}, EMPTY]


@pytest.mark.parametrize("encoding", [5, "gzip", "latin-1", "utf-16", ["utf-8"], {}, False])
def test_any_other_encoding_is_refused_by_its_name(encoding: Any) -> None:
    with pytest.raises(Unreadable) as refused:
        body(content_encoding=encoding)
    assert (
        why(refused)
        == f"content-encoding {encoding!r} is not one of utf-8, us-ascii, binary, nor absent"
    )


@pytest.mark.parametrize("kind", [None, "", "text/plain", 5, ["application/json"]])
def test_any_other_type_is_refused(kind: Any) -> None:
    with pytest.raises(Unreadable, match=r"^content-type is not application/json$"):
        body(content_type=kind)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "the body is missing"),
        (b"\xff", "the body is not JSON"),
        ("{", "the body is not JSON"),
        ("[[], {}, Infinity]", "the body is not JSON"),
        (json.dumps([[], {}, {}]).encode("utf-16"), "the body is not JSON"),
        ("[[], {}]", "the body is not [args, kwargs, embed]"),
        ("{}", "the body is not [args, kwargs, embed]"),
        ("[{}, {}, {}]", "the body is not [[args], {kwargs}, {embed}]"),
        ("[[], [], {}]", "the body is not [[args], {kwargs}, {embed}]"),
        ("[[], {}, []]", "the body is not [[args], {kwargs}, {embed}]"),
        ('[[], {"amount": 1, "amount": 2}, {}]', "an object in the body has the same field twice"),
        ("[" * 100_000, f"the body nests lists and objects more than {DEEPEST} levels deep"),
    ],
)
def test_a_body_that_is_not_a_tasks_is_refused(text: Any, reason: str) -> None:
    with pytest.raises(Unreadable) as refused:
        parts_of(text, "application/json", None)
    assert why(refused) == reason


def test_a_body_may_nest_so_deep_and_no_deeper() -> None:
    def nested(depth: int) -> list[Any]:
        inner: list[Any] = []
        for _ in range(depth - 3):
            inner = [inner]
        return [[inner], {}, {}]

    assert json.loads(body(nested(DEEPEST)))[0] == nested(DEEPEST)[0]
    with pytest.raises(Unreadable, match="more than 20 levels deep"):
        body(nested(DEEPEST + 1))


def test_a_body_may_be_so_long_and_no_longer() -> None:
    text = json.dumps([[], {"x": "x" * (LONGEST_BODY - 19)}, {}])
    assert len(text) == LONGEST_BODY
    assert parts_of(text, "application/json", None)[1]["x"]
    with pytest.raises(Unreadable, match="longer than 1,000,000 bytes"):
        parts_of(f"{text} ", "application/json", None)


@pytest.mark.parametrize("squeeze", [gzip.compress, zlib.compress])
def test_a_compressed_body_may_be_so_long_and_no_longer(squeeze: Any) -> None:
    assert decompressed(squeeze(b"x" * LONGEST_BODY)) == b"x" * LONGEST_BODY
    with pytest.raises(Unreadable, match="longer than 1,000,000 bytes after decompression"):
        decompressed(squeeze(b"x" * (LONGEST_BODY + 1)))


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"[]", "the body is not compressed as gzip or zlib, as its compression header says"),
        ("\ud800", "the body is not compressed as gzip or zlib, as its compression header says"),
        (zlib.compress(b"[]")[:-1], "the compressed body is incomplete"),
        (zlib.compress(b"[]") + b"x", "extra bytes follow the compressed body"),
    ],
)
def test_a_body_that_is_not_what_its_compression_says_is_refused(packed: Any, reason: str) -> None:
    with pytest.raises(Unreadable) as refused:
        decompressed(packed)
    assert why(refused) == reason


def test_an_item_is_unpacked_with_our_tag_and_the_way_back_to_its_queue() -> None:
    item = {
        "body": base64.b64encode(b"[]").decode(),
        "headers": GOOD,
        "content-type": "application/json",
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "theirs",
            "delivery_info": {"exchange": "x", "routing_key": "nowhere"},
            "priority": "high",
        },
        "more": 1,
    }
    assert wire_of(item, "refunds", "ours") == {
        "body": item["body"],
        "content-type": "application/json",
        "content-encoding": None,
        "headers": GOOD,
        "properties": {
            "delivery_tag": "ours",
            "delivery_info": {"exchange": "", "routing_key": "refunds"},
            "body_encoding": "base64",
        },
    }


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ([], "the message is not a JSON object"),
        ({"headers": {}}, "headers or properties are missing, or are not objects"),
        (
            {"headers": [], "properties": {}},
            "headers or properties are missing, or are not objects",
        ),
        (
            {"headers": {}, "properties": {}},
            "the body is not text, or its body_encoding is neither base64 nor absent",
        ),
        (
            {"headers": {}, "properties": {"body_encoding": ["base64"]}, "body": "x"},
            "the body is not text, or its",
        ),
        (
            {"headers": {}, "properties": {"body_encoding": "base64"}, "body": "!"},
            "the body is not base64, as its",
        ),
        (
            {"headers": {}, "properties": {"body_encoding": "base64"}, "body": "é"},
            "the body is not base64, as its",
        ),
    ],
)
def test_an_item_that_kombu_would_stumble_over_is_refused(item: Any, reason: str) -> None:
    with pytest.raises(Unreadable) as refused:
        wire_of(item, "refunds", "tag")
    assert why(refused).startswith(reason)


@given(
    headers=st.dictionaries(
        st.sampled_from([*GOOD, "argsrepr", "kwargsrepr", "eta", "timelimit"]) | st.text(), JSON
    )
)
def test_whatever_headers_are_they_are_rebuilt_or_refused(headers: dict[str, Any]) -> None:
    try:
        built = headers_of({**GOOD, **headers}, TASKS)
    except Unreadable:
        return
    assert set(built) <= {"task", "id", "root_id", "ignore_result", "argsrepr", "kwargsrepr"}
    assert built["task"] in TASKS
    json.dumps(built).encode()


@given(parts=JSON | st.tuples(JSON, JSON, JSON), encoding=JSON)
def test_whatever_a_body_is_it_is_three_parts_or_refused(parts: Any, encoding: Any) -> None:
    try:
        built = json.loads(body(parts, content_encoding=encoding))
    except Unreadable:
        return
    assert (type(built[0]), type(built[1]), built[2]) == (list, dict, EMPTY)


@given(item=JSON | st.fixed_dictionaries({"headers": JSON, "properties": JSON, "body": JSON}))
def test_whatever_an_item_is_kombu_gets_what_it_can_unpack(item: Any) -> None:
    try:
        wire = wire_of(item, "refunds", "tag")
    except Unreadable:
        return
    assert isinstance(wire["headers"], dict)
    assert isinstance(wire["body"], str)
