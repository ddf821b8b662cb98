"""Clients that submit refunds over HTTP: they repeat, share keys, break off, and wait.

Each exchange is kept for the judge.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from itertools import islice
from random import Random
from typing import Any, Final, Literal

import httpx

from ops.lab.prove import plan
from ops.lab.prove.proxy import HOST
from ops.lab.prove.rig import PATIENCE, Rig, RigError
from ops.lab.prove.servers import SERVERS, Servers
from ops.lab.prove.subjects import Product
from worker.errors import StoreUnavailable
from worker.model.request import RefundRequest

PATH: Final = "/v1/refunds"
CLIENT_SECONDS: Final = 8.0
"""How long a client waits for an answer, beside what it asks the server to wait."""
WAIT_SECONDS: Final = 4
SAME_KEY: Final = 3
"""Clients that send the same request with the same key at once."""
SHARE_WAITING: Final = 0.2
"""Share of the repeating clients that ask the server to wait for the result."""
SHARE_AT_ONCE: Final = 0.25
"""Share of the refunds that several clients send at once under one key."""
SHARE_WITH_OTHER_CONTENTS: Final = 0.15
"""Share of the accepted refunds that are sent again with other contents."""
_CLIENTS: Final = 12
_AGAIN: Final = frozenset({408, 429, 503})
"""Answers after which a client sends the same request again."""

How = Literal["whole", "half", "unread"]
"""A request is sent whole; or half of its body; or whole, and its answer is not read."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and its answer; `status` is None if no whole answer arrived."""

    refund_id: str
    server: int
    how: How = "whole"
    differs: bool = False
    """Whether its contents differ from those that were accepted under this id."""
    status: int | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Return whether the answer says that the refund is accepted."""
        return self.status in {HTTPStatus.OK, HTTPStatus.ACCEPTED}


@dataclass
class Clients:
    """Sends requests to the servers, and keeps every exchange. Safe from several threads."""

    servers: Servers
    exchanges: list[Exchange] = field(default_factory=list)

    def post(
        self,
        request: RefundRequest,
        server: int,
        *,
        how: How = "whole",
        wait: int = 0,
        differs: bool = False,
    ) -> Exchange:
        """Send a request once, and return what became of it."""
        made = partial(
            Exchange, refund_id=request.refund_id, server=server, how=how, differs=differs
        )
        try:
            status, answer = self._send(request, server, how=how, wait=wait, differs=differs)
            exchange = made(status=status, answer=answer)
        except (OSError, http.client.HTTPException, ValueError):
            # Refused, cut, reset, timed out, or an answer that is not whole.
            exchange = made()
        self.exchanges.append(exchange)
        return exchange

    def _send(
        self, request: RefundRequest, server: int, *, how: How, wait: int, differs: bool
    ) -> tuple[int | None, Mapping[str, Any]]:
        named = len(request.refund_id) % 2 == 0
        body = _body(request, named=named, differs=differs)
        connection = http.client.HTTPConnection(
            HOST, self.servers.proxies[server].port, timeout=CLIENT_SECONDS + wait
        )
        try:
            connection.putrequest("POST", f"{PATH}?wait={wait}" if wait else PATH)
            for name, value in (
                ("Authorization", f"Bearer {self.servers.token}"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Idempotency-Key", request.refund_id),
            ):
                connection.putheader(name, value)
            connection.endheaders(body[: len(body) // 2] if how == "half" else body)
            if how != "whole":
                return None, {}
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def holds(self, refund_id: str) -> bool:
        """Return whether a server says that it knows a refund; ask until one says so or not."""
        end = time.monotonic() + PATIENCE
        headers = {"Authorization": f"Bearer {self.servers.token}"}
        while time.monotonic() < end:
            for proxy in self.servers.proxies:
                url = f"http://{HOST}:{proxy.port}{PATH}/{refund_id}"
                with suppress(httpx.HTTPError):
                    status = httpx.get(
                        url, headers=headers, timeout=CLIENT_SECONDS, trust_env=False
                    ).status_code
                    if status in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
                        return status == HTTPStatus.OK
            # Both servers may be starting again: they are asked until one answers.
            time.sleep(0.2)
        raise RigError(f"no server said whether it knows {refund_id}")

    def submit(self, request: RefundRequest, dice: Random) -> None:
        """Send a request until the answer is that it is accepted, or is not an expected one.

        Raises `StoreUnavailable` if that takes too long.
        """
        wait = WAIT_SECONDS if dice.random() < SHARE_WAITING else 0
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            exchange = self.post(request, dice.randrange(SERVERS), wait=wait)
            if exchange.status is not None and exchange.status not in _AGAIN:
                return
            # Clients repeat after a pause of their own, and not all at the same moment.
            time.sleep(0.1 + 0.2 * dice.random())
        raise StoreUnavailable(f"no server accepted {request.refund_id}")


def _body(request: RefundRequest, *, named: bool, differs: bool) -> bytes:
    fields: dict[str, Any] = {
        "payment_intent": request.payment_intent,
        "metadata": dict(request.metadata),
    }
    if named:
        fields["refund_id"] = request.refund_id
    if differs:
        fields["amount"] = (request.amount or 0) + 1
    elif request.amount is not None:
        fields["amount"] = request.amount
    return json.dumps(fields).encode()


class ByDoor(Product):
    """The product, with every refund submitted over HTTP, some by several clients at once."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def accept(self, requests: Sequence[RefundRequest]) -> None:
        """Submit each request until it is accepted."""
        with ThreadPoolExecutor(_CLIENTS) as pool:
            for done in [pool.submit(self._submit, request) for request in requests]:
                done.result()

    def _submit(self, request: RefundRequest) -> None:
        dice = Random(request.refund_id)  # noqa: S311 - repeatable, not secret
        if dice.random() < SHARE_AT_ONCE:
            each = [Random(f"{request.refund_id}:{one}") for one in range(SAME_KEY)]  # noqa: S311
            with ThreadPoolExecutor(SAME_KEY) as pool:
                for done in [pool.submit(self._clients.submit, request, one) for one in each]:
                    done.result()
        else:
            self._clients.submit(request, dice)
        if dice.random() < SHARE_WITH_OTHER_CONTENTS:
            self._clients.post(request, dice.randrange(SERVERS), differs=True)


class Strays:
    """Clients that send each request once, whatever becomes of it.

    They send while faults last. Afterwards some of the requests without an answer are repeated.
    """

    def __init__(self, rig: Rig, clients: Clients, *, threads: int, pause: float) -> None:
        self._rig, self._clients, self._pause = rig, clients, pause
        self._plan = plan.requests(rig.seed + 1, name=f"s{rig.seed}", plain=False)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._unknown: list[tuple[RefundRequest, How]] = []
        self.never_whole: list[str] = []
        """Ids of requests of which no server ever received the whole."""
        self._left: dict[str, RefundRequest] = {}
        self._threads = [
            threading.Thread(target=self._send, args=(number,), daemon=True)
            for number in range(threads)
        ]
        self.sent = 0

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        dice = Random(f"{self._rig.seed}:{number}")  # noqa: S311 - repeatable, not secret
        while not self._over.wait(self._pause * (0.5 + dice.random())):
            with self._lock:
                (request,) = islice(self._plan, 1)
                self.sent += 1
            how: How = dice.choices(("whole", "half", "unread"), (70, 15, 15))[0]  # type: ignore[assignment]  # its words
            exchange = self._clients.post(request, dice.randrange(SERVERS), how=how)
            if exchange.accepted:
                self._rig.accepted[request.refund_id] = request
            else:
                self._unknown.append((request, how))

    def resolve(self) -> None:
        """Find out what became of the requests without an answer, and repeat some of those."""
        self.stop()
        with ThreadPoolExecutor(_CLIENTS) as pool:
            for done in [pool.submit(self._resolve, *one) for one in enumerate(self._unknown)]:
                done.result()

    def _resolve(self, place: int, sent: tuple[RefundRequest, How]) -> None:
        request, how = sent
        if place % 2:
            self._clients.submit(request, Random(place))  # noqa: S311 - repeatable
            self._rig.accepted[request.refund_id] = request
        elif self._clients.holds(request.refund_id):
            self._rig.accepted[request.refund_id] = request
            if how == "half":
                self.never_whole.append(request.refund_id)
        else:
            self._left[request.refund_id] = request

    def late(self) -> Iterator[str]:
        """Yield the refunds that were not known a moment ago, and are now."""
        for refund_id, request in [*self._left.items()]:
            key = f"refunds:refund:{refund_id}"
            if self._rig.asking(lambda key=key: self._rig.redis.exists(key)):  # type: ignore[misc]  # bound in the loop
                del self._left[refund_id]
                self._rig.accepted[refund_id] = request
                yield refund_id
