"""`refunds serve` as a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.support.installation import Worker, until
from worker.model.callers import Scope
from worker.store import tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.installation import Installation

SECONDS = 30


@contextmanager
def serving(
    installation: Installation, *arguments: str, port: int = 0
) -> Iterator[tuple[Worker, str]]:
    """The server as a process, and its address."""
    log = installation.folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "serve", "--port", str(port), *arguments],
            env=installation.environment,
            stdout=file,
            stderr=file,
        )
    server = Worker(process, log)
    try:
        until(lambda: "listening at" in server.said or process.poll() is not None, "it listens")
        found = re.search(r"listening at (\S+)", server.said)
        assert found is not None, server.said
        yield server, found.group(1)
    finally:
        server.kill()


def a_token(installation: Installation, name: str = "shop") -> str:
    """Create a token that may do everything."""
    with installation.refunds() as refunds:
        return tokens.create(
            refunds.store,
            name,
            scopes=frozenset(Scope),
            ids_prefix="",
            expires_at=None,
            by="the test",
        )


def ask(
    url: str, token: str, method: str, path: str, body: Any = None
) -> tuple[int, dict[str, Any]]:
    """Send a request; return the status and the object of its answer."""
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=SECONDS)) as client:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        client.request(method, path, None if body is None else json.dumps(body), headers)
        response = client.getresponse()
        return response.status, json.loads(response.read())
