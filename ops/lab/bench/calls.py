"""What single functions on a refund's way cost, in microseconds of processor time.

The least of many rounds, so a busy machine matters little. `./ops/dev python -m
ops.lab.bench.calls` prints the table of PROFILE.md.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
import timeit
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import structlog

from worker.model.answers import Reply
from worker.model.refund import Lane
from worker.model.request import RefundRequest, request_body
from worker.process import logs
from worker.provider.gateway import Gateway
from worker.provider.transport import build_client, parse_json
from worker.rules import attempts, payloads
from worker.rules.outcomes import classify
from worker.sandbox.installation import sandbox_process
from worker.settings import Settings
from worker.store import claims, saves
from worker.store.connection import connect_async
from worker.store.records import decode, encode, new_record

CALLS: Final = 300
ROUNDS: Final = 60
AT_ONCE: Final = 32
SENT: Final = 960
SENT_ROUNDS: Final = 9
KEY: Final = "sk_test_of_the_bench"
NOW: Final = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
LEASE: Final = timedelta(seconds=45)
REQUEST: Final = RefundRequest(
    refund_id="order-1001-1", payment_intent="pi_1001", amount=500, metadata={"order": "1001"}
)
REPLY: Final = (
    b'{"id":"re_1001","object":"refund","amount":500,"currency":"usd","payment_intent":"pi_1001",'
    b'"status":"succeeded","reason":null,"failure_reason":null,"created":1787730829,"metadata":'
    b'{"order":"1001","refund_id":"order-1001-1","refund_generation":"1"}}'
)


def single(work: Callable[[], object]) -> float:
    """Return the microseconds of one call."""
    return min(timeit.repeat(work, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def functions(settings: Settings) -> dict[str, Callable[[], object]]:
    """Return what is called, by its name in the table."""
    made = new_record(REQUEST, Lane.BULK, NOW, NOW)
    flat = encode({name: getattr(made, name) for name in made.__dataclass_fields__})
    stored = {name: text for name, text in zip(flat[::2], flat[1::2], strict=True) if text}
    refund, rules = decode(stored), settings.rules
    hide = refund.metadata.values()
    answer = Reply(http_status=200, payload=payloads.read(parse_json(REPLY), hide))
    outcome = classify(answer, refund)
    step = attempts.after_attempt(refund, outcome, rules, NOW, 0.5)
    detail = {"attempt": 1, "seen": outcome.verdict.value, "ms": 51, "http_status": 200}
    claim = claims.claim(refund.refund_id, "send", token="t" * 16, lease=LEASE)
    given = ["claimed", "1787730829493", "45000", request_body(REQUEST, 1).decode(), [], "1-a:7:b"]
    given[4] = [word for pair in stored.items() for word in pair]
    pool: Any = connect_async("redis://127.0.0.1:1/0").connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)
    save = saves.save(refund, step, detail)
    words = ("EVALSHA", save.script.sha, 0, "refunds:", "", 34_560_000_000, *save.arguments)
    log = structlog.get_logger("bench")
    facts = {"stage": "settled", "status": "succeeded", "label": "succeeded", **detail}
    return {
        "a claim's reply": lambda: claim.read(given),
        "`parse_json` and `payloads.read`": lambda: payloads.read(parse_json(REPLY), hide),
        "`classify`": lambda: classify(answer, refund),
        "`after_attempt`": lambda: attempts.after_attempt(refund, outcome, rules, NOW, 0.5),
        "`saves.save`": lambda: saves.save(refund, step, detail),
        "a save as bytes": lambda: connection.pack_command(*words),
        "one log line": lambda: log.info("refund_settled", refund_id=refund.refund_id, **facts),
    }


async def sends(settings: Settings) -> float:
    """Return the microseconds of one `Gateway.send`, of many at once."""
    made, body = new_record(REQUEST, Lane.BULK, NOW, NOW), request_body(REQUEST, 1)
    async with build_client(settings) as client:
        gateway = Gateway(client, settings.rules)

        async def some(count: int) -> None:
            for _ in range(count):
                await gateway.send(made, body, lease_left=LEASE)

        async def round_of(count: int) -> float:
            began = time.process_time()
            await asyncio.gather(*(some(count // AT_ONCE) for _ in range(AT_ONCE)))
            return (time.process_time() - began) / count * 1e6

        await round_of(AT_ONCE)
        return min([await round_of(SENT) for _ in range(SENT_ROUNDS)])


def main() -> None:
    """Print the table."""
    with sandbox_process() as provider:
        settings = Settings.load(
            api_key=KEY, api_url=provider.sandbox.url, idempotency="trust", log_format="json"
        )
        printed, sys.stderr = sys.stderr, io.StringIO()
        logs.configure(settings)
        taken = {name: single(work) for name, work in functions(settings).items()}
        sys.stderr = printed
        taken["`Gateway.send`"] = asyncio.run(sends(settings))
    for name, micros in taken.items():
        click.echo(f"| {name} | {micros:.1f} |")


if __name__ == "__main__":
    main()
