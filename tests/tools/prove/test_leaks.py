"""What must not be told is found wherever it was written, and not where it belongs."""

from __future__ import annotations

import base64
import json

import pytest

from ops.lab.prove.leaks import found_in, persons_in
from ops.lab.prove.plan import PERSON

METADATA = json.dumps(PERSON)
BELONGING = (
    ("SET", "refunds:body:a", METADATA),
    ("HSET", "refunds:refund:a", "stage", "queued", "metadata", METADATA),
)


def written(*commands: tuple[str, ...]) -> bytes:
    """An append-only log with these commands."""
    log = b""
    for command in commands:
        log += b"*%d\r\n" % len(command)
        for word in command:
            log += b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode())
    return log


def test_a_customer_may_stand_in_the_metadata_and_in_the_body() -> None:
    assert list(persons_in(b"#TS:1\r\n" + written(("SELECT", "0"), *BELONGING))) == []


@pytest.mark.parametrize(
    "command",
    [
        ("HSET", "refunds:refund:a", "error_message", f"refused: {METADATA}"),
        ("RPUSH", "refunds:history:a", METADATA),
        ("XADD", "refunds:events", "*", "reason", PERSON["email"]),
        ("LPUSH", "refunds", base64.b64encode(METADATA.encode()).decode()),
        ("SET", "refunds:other:a", PERSON["name"]),
    ],
)
def test_a_customer_stands_nowhere_else(command: tuple[str, ...]) -> None:
    (found,) = persons_in(written(*BELONGING, command, ("SELECT", "0")))
    assert command[0] in found


def test_a_log_that_was_cut_is_read_as_far_as_it_goes() -> None:
    log = written(*BELONGING, ("RPUSH", "refunds:history:a", METADATA), ("SET", "x", "y"))
    assert len(list(persons_in(log[:-3]))) == 1
    assert list(persons_in(log[: len(log) // 3])) == []


def test_a_key_is_found_plain_and_in_base64_at_any_place() -> None:
    secret = "sk_test_something_secret"
    for lead in ("", "a", "ab"):
        assert list(found_in("x", base64.b64encode(f"{lead}{secret}:".encode()), [secret]))
    assert list(found_in("x", f"a {secret} b".encode(), [secret]))
    assert not list(found_in("x", b"nothing", [secret]))
