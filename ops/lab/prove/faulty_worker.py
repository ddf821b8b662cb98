# ruff: noqa: PLC0415 - nothing that keeps a clock may be imported before the clock is made wrong
# ruff: noqa: SLF001 - a seam lies where the product does not offer one
"""A worker that dies, or stops, at a named point of an attempt, whose clock is wrong, whose waits
are short, or that has a planted bug.

`python -m ops.lab.prove.faulty_worker '{"point": "durable", "after": 3}' celery -A worker.app
worker …`. The seams are put into this process before Celery's own main runs in it; the product
holds none of them, and is real otherwise.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final


@dataclass
class Strike:
    """Ends (or stops) this process at the `after`-th time that its point is reached."""

    after: int
    number: signal.Signals
    seen: int = 0

    def due(self) -> bool:
        """Count one arrival at the point and tell whether it is the one."""
        self.seen += 1
        return self.seen == self.after

    def now(self) -> None:
        """Send this process its signal."""
        os.kill(os.getpid(), self.number)
        # A stop reaches the threads one after the other: this one must not run on before it does.
        time.sleep(0.05)

    def at(self) -> None:
        """Strike if it is due."""
        if self.due():
            self.now()


def received(strike: Strike) -> None:
    """A message was taken from the queue, and nothing was asked of Redis yet."""
    from worker.process.runtime import Runtime

    original = Runtime.begin

    def begin(self: Any, *args: Any) -> None:
        strike.at()
        original(self, *args)

    Runtime.begin = begin  # type: ignore[method-assign]  # a seam


def claimed(strike: Strike) -> None:
    """The claim stands in Redis's memory; whether it is on disk was not asked."""
    from worker.store import scripts
    from worker.store.async_store import AsyncStore

    original = AsyncStore._execute

    async def execute(self: Any, group: Sequence[Any]) -> list[Any]:
        claims = [place for place, call in enumerate(group) if call.script is scripts.CLAIM]
        if claims and strike.seen >= strike.after - 1:
            waits, self.wait_for_disk = self.wait_for_disk, False
            results = await original(self, group)
            self.wait_for_disk = waits
            if any(
                isinstance(results[place], list) and results[place][0] == "claimed"
                for place in claims
            ):
                strike.now()
            return results
        strike.seen += bool(claims)
        return await original(self, group)

    AsyncStore._execute = execute  # type: ignore[method-assign]  # a seam


def durable(strike: Strike) -> None:
    """The claim is confirmed, on disk where the server must be asked for that; nothing was sent."""
    _after_call(strike, "claim", lambda result: bool(result.claimed))


def saved_unacked(strike: Strike) -> None:
    """The outcome is saved; the message is not acknowledged."""
    _after_call(strike, "save", lambda result: result.result == "saved")


def _after_call(strike: Strike, script: str, wanted: Callable[[Any], bool]) -> None:
    from worker.store.async_store import AsyncStore

    original: Any = AsyncStore.run

    async def run(self: Any, call: Any) -> Any:
        result = await original(self, call)
        if call.script.name == script and wanted(result):
            strike.at()
        return result

    AsyncStore.run = run  # type: ignore[method-assign]  # a seam


def before_bytes(strike: Strike) -> None:
    """The connection stands, and not one byte of the POST was written."""
    from aiohttp import ClientRequest

    original: Any = ClientRequest.send

    async def send(self: Any, connection: Any) -> Any:
        if self.method == "POST":
            strike.at()
        return await original(self, connection)

    ClientRequest.send = send  # type: ignore[method-assign,assignment]  # a seam


def sent(strike: Strike) -> None:
    """Every byte of the POST is with the kernel.

    The provider has not executed it yet (it is told to be slow).
    """
    from aiohttp import ClientRequest

    original: Any = ClientRequest.send

    async def send(self: Any, connection: Any) -> Any:
        response = await original(self, connection)
        if self.method == "POST" and strike.due():
            if self._writer is not None:
                await asyncio.wait([self._writer])
            # A transport tells nobody when it is empty.
            while connection.transport.get_write_buffer_size():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0)
            strike.now()
        return response

    ClientRequest.send = send  # type: ignore[method-assign,assignment]  # a seam


def half_read(strike: Strike) -> None:
    """The first piece of the reply's body was read (the provider is told to let it drip)."""
    from worker.provider import transport

    send: Any = transport.hand_on
    original: Any = transport._read

    async def handed_on(client: Any, request: Any) -> Any:
        response = await send(client, request)
        # A transport leaves it to the client above it to say what was answered.
        response.request = request
        return response

    async def read(response: Any, *rest: Any) -> Any:
        if response.request.method == "POST" and strike.due():
            async for _ in response.aiter_raw():
                strike.now()
        return await original(response, *rest)

    seam: Any = transport
    seam.hand_on, seam._read = handed_on, read


def read_unsaved(strike: Strike) -> None:
    """The whole reply was read and understood as done; nothing of it was saved."""
    from worker.model.answers import TryVerdict
    from worker.provider.gateway import Gateway

    original: Any = Gateway.send

    async def send(self: Any, *args: Any, **options: Any) -> Any:
        outcome = await original(self, *args, **options)
        if outcome.verdict is TryVerdict.DONE:
            strike.at()
        return outcome

    Gateway.send = send  # type: ignore[method-assign]  # a seam


POINTS: Final[dict[str, Callable[[Strike], None]]] = {
    "received": received,
    "claimed": claimed,
    "durable": durable,
    "before bytes": before_bytes,
    "sent": sent,
    "half read": half_read,
    "read unsaved": read_unsaved,
    "saved unacked": saved_unacked,
}


def new_key_per_try() -> None:
    """Plant: each try takes a key of its own, so that the provider cannot know it again."""
    from dataclasses import replace

    from worker.provider.gateway import Gateway

    original: Any = Gateway._try

    async def attempt(self: Any, refund: Any, *args: Any) -> Any:
        return await original(self, replace(refund, idempotency_key=os.urandom(8).hex()), *args)

    Gateway._try = attempt  # type: ignore[method-assign]  # a seam


def lapsed_is_unsent() -> None:
    """Plant: a worker that went away under its lease is taken to have gone before it sent."""
    from worker.model.refund import Stage, Status
    from worker.model.steps import Step
    from worker.rules import attempts

    def after_lapse(refund: Any, *_: Any) -> Any:
        changes = {"lapses": refund.lapses + 1}
        delay = dt.timedelta(0)
        return Step(
            to=Stage.WAITING,
            status=Status.PENDING,
            label="lease_lapsed",
            changes=changes,
            delay=delay,
        )

    attempts.after_lapse = after_lapse


def refused_key_fails() -> None:
    """Plant: a 401 is taken for an answer to this refund."""
    from dataclasses import replace

    from worker.model.answers import TryVerdict
    from worker.provider import gateway

    original = gateway.classify

    def classify(answer: Any, refund: Any) -> Any:
        outcome = original(answer, refund)
        if outcome.code != "credentials_refused":
            return outcome
        return replace(outcome, verdict=TryVerdict.REFUSED, credentials=False)

    gateway.classify = classify


def named_refund_unread() -> None:
    """Plant: what a webhook named is never read from the provider."""
    from worker.engine.candidates import CandidateReader

    async def read(_self: Any, *_: Any) -> list[Any]:
        return []

    CandidateReader.read = read  # type: ignore[method-assign]  # a seam


def marked_before_the_reply() -> None:
    """Plant: a callback is marked delivered as soon as a worker takes it."""
    from worker.store import callbacks
    from worker.store.async_store import AsyncStore

    original: Any = AsyncStore.run

    async def run(self: Any, call: Any) -> Any:
        taken = await original(self, call)
        if call.script is callbacks.CALLBACK and taken.stored is not None:
            name, member, token = map(str, call.arguments[:3])
            version = taken.stored.get("version", "")
            await original(
                self,
                callbacks.ended(name, member, token=token, result="delivered", version=version),
            )
        return taken

    AsyncStore.run = run  # type: ignore[method-assign]  # a seam


BUGS: Final[dict[str, Callable[[], None]]] = {
    plant.__name__: plant
    for plant in (
        new_key_per_try,
        lapsed_is_unsent,
        refused_key_fails,
        named_refund_unread,
        marked_before_the_reply,
    )
}


def shorten_callback_waits(scale: float, most_seconds: float | None) -> None:
    """Shorten the waits of callbacks to a share; no wait after a failed try exceeds the most."""
    from worker.callbacks import delivery, retries
    from worker.store import callbacks

    second = dt.timedelta(seconds=1)
    seams: Any = (callbacks, retries, delivery)
    stored, tried, sent = seams
    most = dt.timedelta.max if most_seconds is None else most_seconds * second
    tried.WAITS = tuple(min(wait * scale, most) for wait in retries.WAITS)
    stored.FIRST_PROBE, stored.MOST_PROBE = (
        callbacks.FIRST_PROBE * scale,
        callbacks.MOST_PROBE * scale,
    )
    # These outlast what a busy machine needs between two steps.
    stored.HOLD = max(callbacks.HOLD * scale, min(callbacks.HOLD, 2 * second))
    sent.SPARE = max(delivery.SPARE * scale, min(delivery.SPARE, 3 * second))


def skew(seconds: float) -> None:
    """Put every wall clock that Python code can ask wrong by so much; the monotonic ones stay."""
    true_time, true_ns = time.time, time.time_ns
    genuine = dt.datetime
    shift = dt.timedelta(seconds=seconds)

    class _Any(type):
        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, genuine)

    class Shifted(genuine, metaclass=_Any):  # type: ignore[misc,valid-type]  # made at run time
        """The wrong clock's `datetime`: only what it calls now differs."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return genuine.now(tz) + shift

        @classmethod
        def utcnow(cls) -> Any:
            return genuine.fromtimestamp(true_time(), dt.UTC).replace(tzinfo=None) + shift

    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)
    dt.datetime = Shifted  # type: ignore[misc]  # the shim


def main() -> None:
    """Put the seams in, then be Celery."""
    asked = json.loads(sys.argv[1])
    if "skew" in asked:
        # Before anything else is imported: many a module keeps the clock's function.
        skew(asked["skew"])
    if "point" in asked:
        number = signal.SIGSTOP if asked.get("stop") else signal.SIGKILL
        POINTS[asked["point"]](Strike(asked.get("after", 1), number))
    if "bug" in asked:
        BUGS[asked["bug"]]()
    if "callback_waits" in asked:
        shorten_callback_waits(*asked["callback_waits"])
    sys.argv = sys.argv[2:]
    from celery.__main__ import main as celery

    celery()


if __name__ == "__main__":
    main()
