"""What callbacks cost a file: its rate with and without an endpoint, in turns.

The endpoint is a quick receiver in this process, beside the server and the sandbox.
"""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Iterator
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
        thread = threading.Thread(target=receiver.serve_forever, daemon=True)
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


def _file(plan: Plan, receiver: Receiver | None) -> tuple[Window, int]:
    """Return the window of a file, and how many callbacks arrived until its end."""
    with Rig(plan.cores, plan.modes[0], concurrency=IN_FLIGHT) as rig:
        if receiver is not None:
            _point_at(rig, receiver.url)
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


def _point_at(rig: Rig, url: str) -> None:
    """Write an endpoint for this address, and switch callbacks on."""
    secret = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
    (rig.folder / f"callback_{NAME}").write_text(f"whsec_{secret}\n")
    file = rig.folder / "callbacks.toml"
    file.write_text(f'[[endpoints]]\nname = "{NAME}"\nurl = "{url}"\nallow_private = true\n')
    rig.settings["REFUNDS_CALLBACKS_FILE"] = str(file)
    rig.settings["REFUNDS_SECRETS_DIR"] = str(rig.folder)
    callback_state.turn_on(rig.refunds.store, "bench")
