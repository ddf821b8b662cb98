"""Runs a sandbox provider in a thread, for tests and demonstrations.

`with running_sandbox() as sandbox`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from worker.sandbox.config import SandboxConfig
from worker.sandbox.provider import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL_SECONDS: Final = 10
JOIN_SECONDS: Final = 10


class SandboxCallError(RuntimeError):
    """The sandbox refused a control request; `status` is the HTTP status, the text its answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A client for the control endpoints of a running sandbox, in this process or another."""

    url: str

    def ledger(self) -> list[dict[str, Any]]:
        """Return all entries of the ledger, oldest first."""
        entries: list[dict[str, Any]] = self.call("GET", "/_sandbox/ledger")
        return entries

    def effects(self, refund_id: str | None = None) -> list[dict[str, Any]]:
        """Return the entries of refunds that moved or reserved money.

        If `refund_id` is given, only the entries of that caller's id are returned.
        """
        return [
            entry
            for entry in self.ledger()
            if entry["event"] == "effect" and refund_id in {None, entry["refund_id"]}
        ]

    def summary(self) -> dict[str, Any]:
        """Return the counts and totals of the ledger."""
        counted: dict[str, Any] = self.call("GET", "/_sandbox/ledger?summary=1")
        return counted

    def requests(self) -> list[dict[str, Any]]:
        """Return the last requests received below `/v1`, oldest first."""
        received: list[dict[str, Any]] = self.call("GET", "/_sandbox/requests")
        return received

    def forget_requests(self) -> None:
        """Clear the list of requests."""
        self.call("DELETE", "/_sandbox/requests")

    def webhooks(self) -> list[dict[str, Any]]:
        """Return the last deliveries of events, oldest first."""
        sent: list[dict[str, Any]] = self.call("GET", "/_sandbox/webhooks")
        return sent

    def faults(self) -> dict[str, Any]:
        """Return faults, their counts, modes, and the numbers of 429s sent and keys replayed."""
        state: dict[str, Any] = self.call("GET", "/_sandbox/faults")
        return state

    def set_faults(self, spec: str) -> None:
        """Replace all faults by those of the spec; an empty one clears them."""
        self.call("POST", "/_sandbox/faults", {"spec": spec})

    def set_modes(self, **modes: Any) -> None:
        """Change settings of `SandboxConfig` by name while the sandbox runs."""
        self.call("POST", "/_sandbox/faults", {"modes": modes})

    def create_payment_intent(self, payment_intent: str, **facts: Any) -> dict[str, Any]:
        """Create a payment.

        The facts are `amount`, `currency`, `charges`, `outcome`, `failure_reason`, `settle_ms` and
        `refunded`.
        """
        made: dict[str, Any] = self.call(
            "POST", "/_sandbox/payment_intents", {"id": payment_intent, **facts}
        )
        return made

    def advance(self) -> int:
        """Settle every pending refund that would settle by itself, and return how many."""
        settled: int = self.call("POST", "/_sandbox/advance")["settled"]
        return settled

    def move_refund(
        self, provider_refund_id: str, status: str, failure_reason: str | None = None
    ) -> dict[str, Any]:
        """Settle a pending refund, or reverse one: a failed one with `succeeded`, for instance."""
        asked = {"status": status} | (
            {} if failure_reason is None else {"failure_reason": failure_reason}
        )
        moved: dict[str, Any] = self.call(
            "POST", f"/_sandbox/refunds/{quote(provider_refund_id, safe='')}", asked
        )
        return moved

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Make one control request; raises `SandboxCallError` if it is refused."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=CALL_SECONDS
        )
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise SandboxCallError(response.status, text)
        return json.loads(text)


@contextmanager
def running_sandbox(
    config: SandboxConfig | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[Sandbox]:
    """Serve a new provider from a daemon thread with its own loop, on a free port by default."""
    ready: Future[str] = Future()
    handles: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def served() -> None:
        stop = asyncio.Event()
        handles.set_result((asyncio.get_running_loop(), stop))
        await serve(host, port, config or SandboxConfig(), on_ready=ready.set_result, stop=stop)

    def run() -> None:
        try:
            asyncio.run(served())
        except OSError as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name="sandbox", daemon=True)
    thread.start()
    loop, stop = handles.result(CALL_SECONDS)
    try:
        yield Sandbox(url=ready.result(CALL_SECONDS))
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
            thread.join(JOIN_SECONDS)
