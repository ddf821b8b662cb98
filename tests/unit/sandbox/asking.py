"""A client that shows a reply as it came, broken or whole; no library in between repairs
anything.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tests.support.described import broken_by_reply
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import running_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.sandbox.running import Sandbox

T = TypeVar("T")

PAYMENT = "pi_1787730829493927936"
DEADLINE_SECONDS = 10


def basic(key: str, password: str = "") -> str:
    return "Basic " + base64.b64encode(f"{key}:{password}".encode()).decode()


def post_headers(key: str | None = None) -> dict[str, str]:
    headers = {
        "Authorization": basic("sk_test_planted"),
        "Accept": "application/json",
        "Content-Type": "application/json",
    }
    return headers | ({} if key is None else {"Idempotency-Key": key})


@dataclass(frozen=True, kw_only=True)
class Seen:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json["error"]["code"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    sandbox: Sandbox

    def ask(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Seen:
        """One request on a connection of its own.

        Raises what `http.client` raises on a broken reply.
        """
        connection = self.connect()
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            response = connection.getresponse()
            seen = Seen(status=response.status, headers=response.headers, body=response.read())
        finally:
            connection.close()
        if seen.status == HTTPStatus.OK and path.startswith("/v1/refunds") and seen.body:
            assert broken_by_reply(seen.json) == []
        return seen

    def connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.sandbox.url)
        return http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=DEADLINE_SECONDS
        )

    def get(self, path: str) -> Seen:
        return self.ask("GET", path, headers={"Authorization": basic("sk_test_planted")})

    def refund(self, payment: str = PAYMENT, *, key: str | None = None, **fields: Any) -> Seen:
        body = json.dumps({"payment_intent": payment, **fields}).encode()
        return self.ask("POST", "/v1/refunds", headers=post_headers(key), body=body)


@contextmanager
def asking(**settings: Any) -> Iterator[Asking]:
    with running_sandbox(SandboxConfig(**settings)) as sandbox:
        yield Asking(sandbox=sandbox)


def until(look: Callable[[], T]) -> T:
    """The first look that finds something.

    Sockets offer no event for what another side does unasked.
    """
    give_up = time.monotonic() + DEADLINE_SECONDS
    while not (found := look()):
        assert time.monotonic() < give_up, "nothing was found in time"
        time.sleep(0.005)
    return found
