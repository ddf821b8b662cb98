"""Where a secret was seen that may not be there.

In a log, or in anything that was ever written to Redis.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ops.lab.prove.plan import PERSON
from ops.lab.prove.rig import CANARY, WEBHOOK_CANARY, Rig

POISON_CANARY: Final = "sk_test_planted_in_a_poisoned_message"
_RECORD: Final = b"refunds:refund:"
_BODY: Final = b"refunds:body:"
_WRITES_FIELDS: Final = frozenset({b"HSET", b"HMSET", b"HSETNX"})


def leaks(rig: Rig) -> Iterator[str]:
    """Yield each place where the secret key, or what a refund says of its customer, stands and
    should not.
    """
    secrets = [CANARY, WEBHOOK_CANARY, POISON_CANARY, *rig.secrets]
    for log in (*rig.folder.glob("worker-*.log"), *rig.folder.glob("beside-*.log")):
        yield from found_in(log.name, log.read_bytes(), secrets)
        if rig.subject.is_ours:
            yield from found_in(log.name, log.read_bytes(), PERSON.values())
    folder = Path(_asked(rig, "config_get", "dir")["dir"])
    for file in folder.glob("appendonlydir/*"):
        content = file.read_bytes()
        yield from found_in(file.name, content, [CANARY, WEBHOOK_CANARY, *rig.secrets])
        # The control sends the whole request as its message, which is what it is told to do.
        if rig.subject.is_ours and file.name.endswith(".incr.aof"):
            yield from persons_in(content)
    for entry in _asked(rig, "lrange", "refunds:rejected", 0, -1):
        yield from found_in("refunds:rejected", entry.encode(), [POISON_CANARY])


def _asked(rig: Rig, method: str, *arguments: Any) -> Any:
    return rig.asking(lambda: getattr(rig.redis, method)(*arguments))


def found_in(place: str, content: bytes, secrets: Sequence[str] | Any) -> Iterator[str]:
    """Yield which of the secrets a text holds, plain or in base64."""
    for secret in secrets:
        if any(needle.encode() in content for needle in [secret, *_encodings(secret)]):
            yield f"{place} holds {secret[:12]}…"


def _encodings(secret: str) -> list[str]:
    """Return the inner parts of a secret's base64 forms, at each of the three places where it may
    begin.
    """
    forms = []
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + secret.encode()).decode().rstrip("=")
        forms.append(encoded[4:-4] if lead else encoded[:-4])
    return forms


def persons_in(log: bytes) -> Iterator[str]:
    """Yield what an append-only log says was written about a customer, but for metadata and stored
    bodies.
    """
    needles = [form.encode() for word in PERSON.values() for form in (word, *_encodings(word))]
    told = set()
    for command in _commands(log):
        words = _but_where_it_belongs(command)
        if any(needle in word for word in words for needle in needles):
            # A record's id would make a place of each.
            place = b" ".join(command[:2]).partition(_RECORD)
            told.add((place[0] + place[1]).decode(errors="replace") + _field(command, needles))
    yield from (f"a customer's data was written: {place}" for place in sorted(told))


def _field(command: Sequence[bytes], needles: Sequence[bytes]) -> str:
    if command[0].upper() not in _WRITES_FIELDS:
        return ""
    pairs = zip(command[2::2], command[3::2], strict=False)
    named = [
        field.decode(errors="replace")
        for field, value in pairs
        if any(needle in value for needle in needles)
    ]
    return f" ({', '.join(name for name in named if name != 'metadata')})"


def _but_where_it_belongs(command: Sequence[bytes]) -> Sequence[bytes]:
    """Return a command's words without the value of a record's metadata and without a stored
    body.
    """
    name, key = command[0].upper(), command[1] if len(command) > 1 else b""
    if name == b"SET" and key.startswith(_BODY):
        return command[3:]
    if name in _WRITES_FIELDS and key.startswith(_RECORD):
        pairs = zip(command[2::2], command[3::2], strict=False)
        return [value for field, value in pairs if field != b"metadata"]
    return command


def _commands(log: bytes) -> Iterator[list[bytes]]:
    """Yield the commands of an append-only log; a last one that was cut is left out."""
    place = 0
    while place < len(log):
        end = log.find(b"\r\n", place)
        if end < 0:
            return
        if log[place : place + 1] != b"*":
            # A line of comment: a timestamp.
            place = end + 2
            continue
        count, place = int(log[place + 1 : end]), end + 2
        words = []
        for _ in range(count):
            end = log.find(b"\r\n", place)
            if end < 0:
                return
            size = int(log[place + 1 : end])
            words.append(log[end + 2 : end + 2 + size])
            place = end + 4 + size
        if place <= len(log) and words:
            yield words
