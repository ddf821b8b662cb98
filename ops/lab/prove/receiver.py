"""`refunds serve --parts webhooks` as a process, to which an installation's sandbox sends events.

It is killed and started again on the same port, as a supervisor would do it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import httpx

from ops.lab.prove.rig import WEBHOOK_CANARY, Rig, Worker
from worker.sandbox.ports import free_port

_TRIES: Final = 100
_RETRY_MS: Final = 300.0
_READY_SECONDS: Final = 2.0
_KEY: Final = "REFUNDS_API_KEY"


@dataclass
class Receiver:
    """The HTTP server that receives the webhooks of one installation."""

    rig: Rig
    port: int
    process: Worker | None = None

    @property
    def url(self) -> str:
        """Return the address of the process, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it is ready; raises `RigError` if it is not."""
        variables = self.rig.environment | {"REFUNDS_WEBHOOK_SECRETS": WEBHOOK_CANARY}
        # It is public, so it never holds the key.
        del variables[_KEY]
        command = [sys.executable, "-m", "worker", "serve", "--parts", "webhooks"]
        command += ["--port", str(self.port)]
        self.process = self.rig.launch_beside(command, variables)
        self.rig.until(self._is_ready, "the server of the webhooks is ready")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.process.kill()
            self.process.process.wait()

    def _is_ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/ready", timeout=_READY_SECONDS, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == HTTPStatus.OK


def received(rig: Rig, mode: str, shape: str) -> Receiver:
    """Start a receiver and let the sandbox send events to it in this mode and shape."""
    receiver = Receiver(rig, free_port())
    receiver.start()
    rig.sandbox.set_modes(
        webhook=f"{receiver.url}/webhooks/wooshpay",
        webhook_secret=WEBHOOK_CANARY,
        webhook_mode=mode,
        webhook_shape=shape,
        webhook_tries=_TRIES,
        webhook_retry_ms=_RETRY_MS,
    )
    return receiver
