"""Two `refunds serve` processes, each behind a proxy.

A supervisor starts a server again that has ended, on the same port.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

import httpx

from ops.lab.prove.proxy import HOST, FaultProxy
from ops.lab.prove.rig import Rig, RigError, Worker
from ops.lab.prove.subjects import Product
from worker.model.callers import Scope
from worker.sandbox.ports import free_port
from worker.store import tokens

SERVERS: Final = 2
CALLER: Final = "prove"
"""The name of the clients' token."""
_RESTART_SECONDS: Final = 0.3
_READY_SECONDS: Final = 2.0
_KEY: Final = "REFUNDS_API_KEY"


class Servers:
    """The servers of one installation. Use it in a `with` around the installation's own."""

    def __init__(self, asked: Mapping[str, Any] | None = None) -> None:
        self._asked = dict(asked or {})
        self._next: dict[int, Mapping[str, Any]] = {}
        self._ports = [free_port() for _ in range(SERVERS)]
        self.proxies = [FaultProxy(port) for port in self._ports]
        self._processes: list[Worker | None] = [None] * SERVERS
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble: Exception | None = None
        self.token = ""
        self.ended: list[tuple[int, int]] = []
        """Which server ended, and its exit code."""

    def __enter__(self) -> Self:
        for proxy in self.proxies:
            proxy.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for process in self._processes:
            if process is not None and process.alive:
                process.process.kill()
                process.process.wait()
        for proxy in self.proxies:
            proxy.__exit__(kind, error, trace)

    def start(self, rig: Rig, product: Product) -> None:
        """Start the servers, and wait until each is ready."""
        self.token = tokens.create(
            product.refunds.store,
            CALLER,
            scopes=frozenset({Scope.SUBMIT, Scope.READ}),
            ids_prefix="",
            expires_at=None,
            by=CALLER,
        )
        rig.secrets.append(self.token)
        self._thread = threading.Thread(target=self._supervise, args=(rig,), daemon=True)
        self._thread.start()
        for place in range(SERVERS):
            self.await_ready(rig, place)

    def _supervise(self, rig: Rig) -> None:
        while not self._over.wait(0.05):
            for place, process in enumerate(self._processes):
                if process is not None and process.alive:
                    continue
                if process is not None:
                    self.ended.append((place, process.process.returncode))
                    self._over.wait(_RESTART_SECONDS)
                try:
                    self._processes[place] = self._launch(rig, place)
                except (RigError, OSError) as error:
                    self._trouble = error
                    return

    def _launch(self, rig: Rig, place: int) -> Worker:
        asked = {**self._asked, **self._next.pop(place, {})}
        variables = dict(rig.environment)
        # It is public, so it never holds the key.
        del variables[_KEY]
        module = ["ops.lab.prove.faulty_door", json.dumps(asked)] if asked else ["worker"]
        command = [sys.executable, "-m", *module, "serve", "--parts", "api"]
        return rig.launch_beside([*command, "--port", str(self._ports[place])], variables)

    def await_ready(self, rig: Rig, place: int) -> None:
        """Wait until a server is ready; raises `RigError` if it is not."""
        rig.until(partial(self._is_ready, place), f"server {place} is ready")

    def _is_ready(self, place: int) -> bool:
        if self._trouble is not None:
            raise RigError(f"a server could not be started: {self._trouble}")
        url = f"http://{HOST}:{self._ports[place]}/ready"
        try:
            answer = httpx.get(url, timeout=_READY_SECONDS, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == HTTPStatus.OK

    def signal(self, place: int, number: signal.Signals) -> None:
        """Send a server a signal."""
        process = self._processes[place]
        if process is not None:
            process.signal(number)

    def dies_at(self, place: int, point: str, after: int) -> None:
        """Restart a server, and kill it the `after`-th time that it reaches a point."""
        self._next[place] = {"point": point, "after": after}
        self.signal(place, signal.SIGKILL)
