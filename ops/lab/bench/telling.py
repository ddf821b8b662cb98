"""What callbacks cost a file, and what a dead endpoint costs another one; each in turns.

The endpoint is a quick receiver in this process, beside the server and the sandbox.
"""

from __future__ import annotations

import base64
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import IN_FLIGHT, Rig, Window
from ops.lab.bench.table import Row, at_least, spread
from worker.model.refund import Lane
from worker.store import callback_state

LEAST_RATE: Final = 0.95
NAME: Final = "shop"
DEAD: Final = "dead"
_FROM: Final = 0.10
_TO: Final = 0.95


class Receiver(ThreadingHTTPServer):
    """Answers each callback at once, and counts them."""

    daemon_threads = True
    received = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        """The address of the endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        # A thread for each connection: a lost count would only be too low.
        self.server.received += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver until the end of the block."""
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


def callbacks(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield the rate and the cost of a file with callbacks, beside those without."""
    ons, offs, received = [], [], []
    for round_ in range(plan.rounds):
        for is_on in (False, True) if round_ % 2 == 0 else (True, False):
            if is_on:
                with receiving() as receiver:
                    window, count = _file(plan, receiver)
                ons.append(window)
                received.append(float(count))
            else:
                offs.append(_file(plan, None)[0])
    rates = [on.rate / off.rate for on, off in zip(ons, offs, strict=True)]
    costs = [on.cpu_ms / off.cpu_ms for on, off in zip(ons, offs, strict=True)]
    yield Row(
        figure="callbacks: refunds a second of a file",
        setting=(
            f"{plan.file_rows:,} rows, {plan.modes[0].shown}, {IN_FLIGHT} in flight;"
            f" {spread(received)} callbacks meanwhile"
        ),
        measured=spread([on.rate for on in ons]),
        floor=spread([off.rate for off in offs]) + " without an endpoint",
        ratio=spread(rates),
        to_reach=f"at least {LEAST_RATE}",
        reached=at_least(rates, LEAST_RATE),
    )
    yield Row(
        figure="callbacks: CPU a refund of a file",
        setting="the same",
        measured=spread([on.cpu_ms for on in ons], "ms"),
        floor=spread([off.cpu_ms for off in offs], "ms") + " without an endpoint",
        ratio=spread(costs),
    )
    yield _beside_a_dead_one(plan)


def _beside_a_dead_one(plan: Plan) -> Row:
    """Return how fast an endpoint gets its callbacks beside one that never answers, and alone."""
    beside, alone = [], []
    for round_ in range(plan.rounds):
        for has_dead in (False, True) if round_ % 2 == 0 else (True, False):
            (beside if has_dead else alone).append(_drained(plan, has_dead=has_dead))
    rates = [with_dead / without for with_dead, without in zip(beside, alone, strict=True)]
    return Row(
        figure="callbacks: a second to one endpoint beside a dead one",
        setting=f"{plan.single:,} refunds; the dead one takes requests and never answers",
        measured=spread(beside),
        floor=spread(alone) + " alone",
        ratio=spread(rates),
        to_reach=f"at least {LEAST_RATE}",
        reached=at_least(rates, LEAST_RATE),
    )


def _drained(plan: Plan, *, has_dead: bool) -> float:
    """Return how many callbacks a second a good endpoint gets, from the first tenth on."""
    count = plan.single
    with (
        receiving() as receiver,
        socket.create_server(("127.0.0.1", 0)) as dead,
        Rig(plan.cores, plan.modes[0], concurrency=IN_FLIGHT) as rig,
    ):
        # The system accepts connections to the dead one, and no one ever reads from them.
        hosts = {NAME: receiver.url}
        if has_dead:
            hosts[DEAD] = f"http://127.0.0.1:{dead.getsockname()[1]}/"
        _point_at(rig, hosts)
        rig.fill(count, Lane.BULK)
        rig.start_worker()
        rig.until(lambda: receiver.received >= count * _FROM, "the first callbacks have arrived")
        first, began = receiver.received, time.monotonic()
        rig.until(lambda: receiver.received >= count * _TO, "the callbacks have arrived")
        rate = (receiver.received - first) / (time.monotonic() - began)
        rig.stop()
        rig.count(count)
        return rate


def _file(plan: Plan, receiver: Receiver | None) -> tuple[Window, int]:
    """Return the window of a file, and how many callbacks arrived until its end."""
    with Rig(plan.cores, plan.modes[0], concurrency=IN_FLIGHT) as rig:
        if receiver is not None:
            _point_at(rig, {NAME: receiver.url})
        rig.fill(plan.file_rows, Lane.BULK)
        rig.rest()
        rig.start_worker()
        window = rig.window(
            max(int(plan.file_rows * _FROM), rig.settled()), int(plan.file_rows * _TO)
        )
        meanwhile = 0 if receiver is None else receiver.received
        rig.until(lambda: rig.settled() >= plan.file_rows, "all are settled")
        if receiver is not None:
            # Without this the figure would show an endpoint that was never reached.
            rig.until(lambda: receiver.received > 0, "a callback has arrived")
        rig.stop()
        rig.count(plan.file_rows)
        return window, meanwhile


def _point_at(rig: Rig, hosts: Mapping[str, str]) -> None:
    """Write an endpoint for each name and address, and switch callbacks on."""
    endpoints = []
    for name, url in hosts.items():
        secret = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
        (rig.folder / f"callback_{name}").write_text(f"whsec_{secret}\n")
        endpoints.append(f'[[endpoints]]\nname = "{name}"\nurl = "{url}"\nallow_private = true\n')
    file = rig.folder / "callbacks.toml"
    file.write_text("\n".join(endpoints))
    rig.settings["REFUNDS_CALLBACKS_FILE"] = str(file)
    rig.settings["REFUNDS_SECRETS_DIR"] = str(rig.folder)
    callback_state.turn_on(rig.refunds.store, "bench")
