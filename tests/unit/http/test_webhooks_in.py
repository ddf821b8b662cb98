"""Events over real HTTP: what is answered, what is noted, and that one client cannot stop another.

The records are a fake that counts what it is asked.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import re
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from tests.factories import NOW
from worker.errors import NotDurable, NotStorable, StoreUnavailable
from worker.http import app, webhooks
from worker.http.app import Readiness
from worker.http.webhooks import (
    MAX_BODY,
    MAX_IN_FLIGHT,
    MAX_READING,
    NOTE_SECONDS,
    PATH,
    Webhooks,
)
from worker.model.hints import MOST, Hint
from worker.model.refund import Lane, Stage
from worker.model.signatures import HEADER, header
from worker.model.times import to_ms
from worker.process import logs
from worker.settings import Settings
from worker.store.sweeps import Due

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

SECRET = "whsec_4f1c0a8be7d64c2f9b35"
CANARY = "canary-7f3a-customer"
BODY_SECONDS = 0.5


def an_event(kind: str = "charge.refund.updated", **fields: Any) -> bytes:
    shown = {
        "id": "re_1",
        "object": "refund",
        "payment_intent": "pi_1",
        "metadata": {"refund_id": "order-1", "refund_generation": "1"},
        "description": CANARY,
        **fields,
    }
    return json.dumps({"id": "evt_1", "type": kind, "data": {"object": shown}}).encode()


HINT = Hint(provider_refund_id="re_1", refund_id="order-1", generation=1, payment_intent="pi_1")


def time_of(moment: datetime, unit: str) -> str:
    milliseconds = to_ms(moment)
    return str(milliseconds if unit == "ms" else milliseconds // 1000)


def signed(body: bytes, time: str | None = None, secret: str = SECRET) -> dict[str, str]:
    return {HEADER: header(secret, time or time_of(NOW, "s"), body)}


@dataclass(frozen=True, kw_only=True)
class Answer:
    result: str
    due: tuple[Due, ...] = ()
    left_out: tuple[str, ...] = ()


def due(refund_id: str) -> Due:
    return Due(refund_id=refund_id, lane=Lane.SINGLE, stage=Stage.IN_DOUBT)


@dataclass
class Records:
    """A fake of the records; `answer` is what the next hint gets, or the error it raises."""

    answer: Answer | Exception = field(
        default_factory=lambda: Answer(result="hinted", due=(due("order-1"),))
    )
    hinted: list[Hint] = field(default_factory=list)
    nudged: list[str] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    hold: asyncio.Event | None = None

    async def hint(self, hint: Hint) -> Answer:
        if self.hold is not None:
            await self.hold.wait()
        self.hinted.append(hint)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def nudge(self, dues: Iterable[Due]) -> None:
        self.nudged += [each.refund_id for each in dues]

    def count(self, result: str) -> None:
        self.counted[str(result)] += 1

    def untouched(self) -> bool:
        return not self.hinted and not self.nudged


@dataclass
class Door:
    url: str
    port: int
    records: Records
    client: aiohttp.ClientSession

    async def post(
        self, body: Any, headers: Any = None, **more: Any
    ) -> tuple[int, bytes, dict[str, str]]:
        headers = signed(body) if headers is None else headers
        async with self.client.post(self.url, data=body, headers=headers, **more) as response:
            return response.status, await response.read(), dict(response.headers)

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def a_door(now: Callable[[], datetime] = lambda: NOW, **changes: Any) -> AsyncIterator[Door]:
    records = Records()
    part = Webhooks(
        **{
            "secrets": (SECRET,),
            "max_age": timedelta(hours=96),
            "hint": records.hint,
            "nudge": records.nudge,
            "count": records.count,
            "wall": now,
            "body_seconds": BODY_SECONDS,
            "note_seconds": NOTE_SECONDS,
            **changes,
        }
    )

    async def fine() -> None:
        return None

    built = app.build([part], Readiness(fine))
    async with (
        app.listening(built, host="127.0.0.1", port=0) as port,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client,
    ):
        yield Door(f"http://127.0.0.1:{port}{PATH}", port, records, client)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with a_door() as opened:
        yield opened


async def test_a_signed_event_is_noted_and_its_refund_nudged(door: Door) -> None:
    status, body, _ = await door.post(an_event())
    assert (status, body) == (200, b"{}")
    assert door.records.hinted == [HINT]
    assert door.records.nudged == ["order-1"]
    assert door.records.counted == {"hinted": 1}


@pytest.mark.parametrize("result", ["payment", "unknown"])
async def test_an_event_of_an_unknown_refund_is_accepted_too(door: Door, result: str) -> None:
    door.records.answer = Answer(result=result)
    assert (await door.post(an_event()))[0] == 200
    assert door.records.counted == {result: 1}
    assert door.records.nudged == []


async def test_an_event_about_something_else_is_ignored(door: Door) -> None:
    body = an_event("payment_intent.succeeded", id="pi_1", object="payment_intent")
    assert (await door.post(body))[:2] == (200, b"{}")
    assert door.records.untouched()
    assert door.records.counted == {"ignored": 1}


async def test_an_event_without_an_id_is_unknown_and_asks_the_records_nothing(door: Door) -> None:
    body = an_event(id=None, payment_intent=None, metadata=None)
    assert (await door.post(body))[0] == 200
    assert door.records.untouched()
    assert door.records.counted == {"unknown": 1}


async def test_each_refund_of_a_charge_is_noted_and_the_event_counted_once(door: Door) -> None:
    entries = [{"id": "re_1", "object": "refund"}, {"id": "re_2", "object": "refund"}]
    charge = {"id": "ch_1", "object": "charge", "payment_intent": "pi_1", "refunds": entries}
    body = json.dumps({"type": "charge.refunded", "data": {"object": charge}}).encode()
    assert (await door.post(body))[0] == 200
    assert [hint.provider_refund_id for hint in door.records.hinted] == ["re_1", "re_2"]
    assert door.records.counted == {"hinted": 1}


async def test_refunds_of_a_charge_that_are_too_many_are_named_in_the_log(door: Door) -> None:
    entries = [{"id": f"re_{number}", "object": "refund"} for number in range(MOST + 52)]
    charge = {"id": "ch_1", "object": "charge", "payment_intent": "pi_1", "refunds": entries}
    body = json.dumps({"type": "charge.refunded", "data": {"object": charge}}).encode()
    with capture_logs() as lines:
        assert (await door.post(body))[0] == 200
    assert len(door.records.hinted) == MOST
    (line,) = (each for each in lines if each["event"] == "webhook_list_cut")
    named = [f"re_{number}" for number in range(MOST, MOST + 50)]
    assert (line["payment_intent"], line["count"], line["left_out"]) == ("pi_1", 52, named)


async def test_copies_of_seventy_two_hours_in_any_order_are_all_accepted() -> None:
    now = [NOW]
    async with a_door(lambda: now[0]) as door:
        copies = [
            (unit, NOW + timedelta(hours=72) * step / 8)
            for unit in ("s", "ms")
            for step in range(9)
        ]
        random.Random(7).shuffle(copies)  # noqa: S311 - an order for a test
        for unit, moment in copies:
            now[0] = moment
            body = an_event()
            # A repeat keeps its first time.
            assert (await door.post(body, signed(body, time_of(NOW, unit))))[0] == 200
        assert door.records.counted == {"hinted": 18}
        assert {*door.records.hinted} == {HINT}


@pytest.mark.parametrize(
    "headers",
    [
        signed(an_event(), secret="whsec_of_another_account"),
        signed(an_event() + b" "),
        {HEADER: f"t={time_of(NOW, 's')},v1={'0' * 64}"},
        {HEADER: f"t={time_of(NOW, 's')},v1=\xff"},
    ],
)
async def test_a_forged_event_is_400_with_an_empty_detail_and_touches_nothing(
    door: Door, headers: dict[str, str]
) -> None:
    status, body, _ = await door.post(an_event(), headers)
    assert (status, body) == (400, b"")
    assert door.records.untouched()
    assert door.records.counted == {"forged": 1}


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize("age", [timedelta(hours=97), timedelta(hours=-2)])
async def test_an_old_event_and_one_of_the_future_are_stale(
    door: Door, age: timedelta, unit: str
) -> None:
    body = an_event()
    status, answer, _ = await door.post(body, signed(body, time_of(NOW - age, unit)))
    assert (status, answer) == (400, b"")
    assert door.records.untouched()
    assert door.records.counted == {"stale": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"charge.refund.updated"',
        b"null",
        b"\xff\xfe{\x00}\x00",
        b'{"type":"charge.refund.updated\xff"}',
        "{}".encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 40_000,
        b'{"amount":' + b"9" * 5_000 + b"}",
    ],
    ids=lambda body: f"{body[:12]!r} of {len(body)}",
)
async def test_a_signed_body_that_is_not_an_event_is_malformed(door: Door, body: bytes) -> None:
    status, answer, _ = await door.post(body)
    assert (status, answer) == (400, b"")
    assert door.records.untouched()
    assert door.records.counted == {"malformed": 1}


async def test_no_signature_and_two_signatures_are_malformed(door: Door) -> None:
    body = an_event()
    value = signed(body)[HEADER]
    for headers in ([], [(HEADER, value), (HEADER, value)], [(HEADER, f"v1={'0' * 64}")]):
        assert (await door.post(body, headers))[:2] == (400, b"")
    assert door.records.untouched()
    assert door.records.counted == {"malformed": 3}


async def test_a_body_is_accepted_up_to_its_limit_and_refused_above(door: Door) -> None:
    filler = MAX_BODY - len(an_event(description=""))
    largest = an_event(description="x" * filler)
    assert len(largest) == MAX_BODY
    assert (await door.post(largest))[0] == 200
    status, answer, _ = await door.post(largest + b" ")
    assert (status, answer) == (413, b"")
    assert door.records.counted == {"hinted": 1, "malformed": 1}


async def test_a_large_body_without_a_length_is_413(door: Door) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b"x" * 1024

    status, answer, _ = await door.post(chunks(), signed(b""))
    assert (status, answer) == (413, b"")
    assert door.records.untouched()


async def test_the_signature_covers_the_body_as_it_was_sent(door: Door) -> None:
    packed = gzip.compress(an_event())
    headers = {**signed(packed), "Content-Encoding": "gzip"}
    # Not unpacked: a small packed body could be a huge one.
    assert (await door.post(packed, headers))[0] == 400
    assert door.records.counted == {"malformed": 1}


def head(length: int | None) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: door", f"{HEADER}: {signed(an_event())[HEADER]}"]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    "begun",
    [
        b"POST",
        head(1000),
        head(len(an_event()) + 1) + an_event(),
        head(None) + b"5\r\nab",
        head(None) + b"2\r\nab\r\n",
    ],
    ids=["half a line", "no body", "a byte too few", "half a chunk", "chunks without end"],
)
async def test_a_stalled_client_does_not_stop_another(door: Door, begun: bytes) -> None:
    stalled = [await door.raw(begun) for _ in range(MAX_IN_FLIGHT + 1)]
    assert (await door.post(an_event()))[0] == 200
    assert door.records.hinted == [HINT]
    for _, writer in stalled:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("begun", [head(1000), head(None) + b"2\r\nab\r\n"])
async def test_a_stalled_body_ends_with_408_and_its_connection(door: Door, begun: bytes) -> None:
    reader, writer = await door.raw(begun)
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    writer.close()
    await writer.wait_closed()
    assert door.records.untouched()
    assert door.records.counted == {"malformed": 1}


@pytest.mark.parametrize(
    "sent",
    [
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        head(None) + b"zz\r\nab\r\n",
        f"POST {PATH} HTTP/1.1\r\nContent-Length: {CANARY}\r\n\r\n".encode(),
    ],
)
async def test_what_is_not_http_ends_its_own_connection_only(door: Door, sent: bytes) -> None:
    reader, writer = await door.raw(sent)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert re.match(rb"HTTP/1\.[01] 400 ", answer)
    assert answer.endswith(b"\r\n\r\n"), "an empty detail"
    assert b"aiohttp" not in answer
    assert (await door.post(an_event()))[0] == 200


@pytest.mark.parametrize("begun", [head(1000) + b"{", head(None) + b"5\r\nab"])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_hangs_up_leaves_nothing_behind_and_is_not_counted(
    door: Door, begun: bytes, *, reset: bool
) -> None:
    reader, writer = await door.raw(begun)
    if reset:
        writer.transport.abort()
    else:
        writer.write_eof()
        await reader.read()
        writer.close()
    assert (await door.post(an_event()))[0] == 200
    assert door.records.hinted == [HINT]
    assert door.records.counted == {"hinted": 1}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreUnavailable("Redis cannot be reached"), {"event": "webhook_deferred"}),
        (NotDurable("a write may not be on disk"), {"event": "webhook_deferred"}),
        (NotStorable("a key holds another type"), {"event": "webhook_not_kept", "alarm": True}),
        (
            RuntimeError(CANARY),
            {
                "event": "webhook_failed",
                "error": "RuntimeError",
                "alarm": True,
                "log_level": "error",
            },
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_while_an_event_cannot_be_kept_the_provider_is_asked_to_repeat_it(
    door: Door, error: Exception, told: dict[str, Any]
) -> None:
    door.records.answer = error
    with capture_logs() as lines:
        status, body, headers = await door.post(an_event())
    assert (status, body, headers["Retry-After"]) == (503, b"", "30")
    assert lines == [{"error": str(error), "log_level": "warning", **told}]
    assert door.records.nudged == []
    assert not door.records.counted
    door.records.answer = Answer(result="hinted")
    assert (await door.post(an_event()))[0] == 200


async def test_while_redis_is_frozen_an_event_is_soon_answered_503() -> None:
    async with a_door(note_seconds=0.05) as door:
        door.records.hold = asyncio.Event()
        with capture_logs() as lines:
            status, body, headers = await asyncio.wait_for(door.post(an_event()), 10)
        assert (status, body, headers["Retry-After"]) == (503, b"", "30")
        assert lines == [
            {
                "event": "webhook_deferred",
                "error": "Redis did not note an event within 0.05 seconds",
                "log_level": "warning",
            }
        ]
        assert door.records.untouched()
        assert not door.records.counted
        door.records.hold.set()
        assert (await door.post(an_event()))[0] == 200


async def test_above_sixty_four_in_flight_the_next_is_repeated_later(door: Door) -> None:
    # What has ended counts no more, and not for less either.
    assert (await door.post(an_event()))[0] == 200
    door.records.hold = asyncio.Event()
    held = [asyncio.create_task(door.post(an_event())) for _ in range(MAX_IN_FLIGHT + 6)]
    done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
    status, body, headers = done.pop().result()
    assert (status, body, headers["Retry-After"]) == (503, b"", "30")
    door.records.hold.set()
    answers = Counter(status for status, _, _ in await asyncio.gather(*held))
    assert answers == {200: MAX_IN_FLIGHT, 503: 6}
    assert (await door.post(an_event()))[0] == 200


def test_limits_of_webhooks_are_those_that_are_documented() -> None:
    assert (MAX_BODY, NOTE_SECONDS, MAX_IN_FLIGHT) == (256 * 1024, 5, 64)
    assert MAX_READING * MAX_BODY == 64 * 1024 * 1024


async def test_other_paths_and_methods_are_refused(door: Door) -> None:
    async with door.client.get(door.url) as response:
        assert response.status == 405
    async with door.client.post(f"{door.url}/other") as response:
        assert response.status == 404


async def test_a_refusal_is_logged_once_in_ten_seconds_for_each_reason(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock of a machine may begin at 0.
    now = [0.0]
    monkeypatch.setattr(webhooks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    forged = signed(an_event(), secret="whsec_of_another_account")
    told = []
    for now[0] in (0.0, 9.9, 10.0, 19.9):
        with capture_logs() as lines:
            await door.post(an_event(), forged)
        told.append(lines)
    line = {"event": "webhook_refused", "result": "forged", "status": 400, "log_level": "warning"}
    assert told == [[line], [], [line], []]
    with capture_logs() as lines:
        await door.post(b"x" * (MAX_BODY + 1))
    assert lines == [{**line, "result": "malformed", "status": 413}]


async def test_provider_refund_that_nobody_reads_is_in_the_log(door: Door) -> None:
    door.records.answer = Answer(result="hinted", left_out=("order-1",))
    with capture_logs() as lines:
        assert (await door.post(an_event()))[0] == 200
    (line,) = (each for each in lines if each["event"] == "webhook_left_out")
    assert (line["refund_id"], line["provider_refund_id"]) == ("order-1", "re_1")
    assert (line["log_level"], line["alarm"]) == ("error", True)
    assert "it is not read" in line["error"]


async def test_no_secret_and_no_body_is_in_the_log(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure(Settings(log_level="debug", log_format="json", webhook_secrets=SECRET))  # type: ignore[arg-type]
    monkeypatch.setattr(webhooks, "_QUIET_SECONDS", 0.0)
    value = signed(an_event())[HEADER]
    await door.post(an_event())
    await door.post(an_event(), {HEADER: f"{value}0"})
    await door.post(CANARY.encode())
    await door.post(CANARY.encode() * 20_000)
    door.records.answer = RuntimeError(f"{CANARY} {SECRET}")
    await door.post(an_event())
    for sent in (f"{CANARY} / HTTP/1.1\r\n\r\n", f"POST {PATH} HTTP/1.1\r\n{CANARY}\r\n\r\n"):
        reader, writer = await door.raw(sent.encode())
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
    reader, writer = await door.raw(head(None) + f"{CANARY}\r\n{CANARY}\r\n".encode())
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    written = stream.getvalue()
    assert "webhook_received" in written
    assert "webhook_refused" in written
    assert "webhook_failed" in written
    assert CANARY not in written
    assert SECRET not in written
    assert value.rpartition("=")[2] not in written
