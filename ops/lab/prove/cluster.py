"""A primary with replicas and three Sentinels, as processes on loopback.

Every server and every Sentinel connects from a loopback address of its own. Each server is reached
through a proxy, which can so cut it off from some of the others and not from the rest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
import redis.sentinel

from ops.lab.opened import Opened
from ops.lab.prove.proxy import HOST, FaultProxy
from ops.lab.prove.rig import PATIENCE, RigError
from worker.sandbox.ports import free_port
from worker.sandbox.redis_server import ThrowawayServer, find_server

NAME: Final = "refunds"
"""What the Sentinels call the primary."""
SENTINELS: Final = 3
QUORUM: Final = 2
DOWN_AFTER_MS: Final = 1000
FAILOVER_TIMEOUT_MS: Final = 5000
_PAUSE: Final = 0.05
_TIMEOUT: Final = 2.0
FAKE_CLOCK: Final = (
    "/usr/lib/*/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
)
"""Where the library that shifts a process's clock is installed (Debian: package `faketime`)."""


def fake_clock() -> Path | None:
    """Return the library that shifts a process's clock, None if it is not installed."""
    found = (path for place in FAKE_CLOCK for path in Path("/").glob(place.lstrip("/")))
    return next(found, None)


@dataclass(eq=False)
class Node:
    """One server of the records, the proxy before it, and the address from which it connects."""

    server: ThrowawayServer
    front: FaultProxy
    source: str

    def asked(self, *words: str) -> Any:
        """Ask the server itself, past its proxy."""
        with redis.Redis(
            host=HOST, port=self.server.port, decode_responses=True, socket_timeout=_TIMEOUT
        ) as client:
            return client.execute_command(*words)

    def facts(self) -> dict[str, Any]:
        """Return what the server says of its replication."""
        found: dict[str, Any] = self.asked("INFO", "replication")
        return found


@dataclass(eq=False)
class Cluster(Opened):
    """The servers and the Sentinels; use it in a `with`."""

    fsync: str
    replicas: int
    clock_off: float = 0.0
    """Seconds by which the clocks of the replicas are wrong."""
    nodes: list[Node] = field(default_factory=list)
    frozen: Node | None = None

    def __post_init__(self) -> None:
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []

    def _enter_parts(self, stack: ExitStack) -> None:
        stack.callback(self.end)
        self._folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="refunds-sentinels-"))
        )
        for place in range(1 + self.replicas):
            self._add(place, stack)
        self._await(self.is_whole, "every replica holds what the primary has")
        for place in range(SENTINELS):
            self._watch(place)
        self._await(self._is_watched, "the Sentinels know each other and the replicas")

    def end(self) -> None:
        """End every process at once, by its id."""
        for process in self._sentinels:
            process.kill()
            process.wait(PATIENCE)
        self.thaw()
        for node in self.nodes:
            node.server.kill()

    def _add(self, place: int, stack: ExitStack) -> None:
        front = stack.enter_context(FaultProxy(target_port=0))
        source = f"127.0.1.{place + 1}"
        server = ThrowawayServer(
            appendfsync=self.fsync,
            bind_source_addr=source,
            replica_announce_ip=HOST,
            replica_announce_port=str(front.port),
            repl_diskless_sync_delay="0",
        )
        if place:
            server.directives["replicaof"] = f"{HOST} {self.nodes[0].front.port}"
            server.variables |= self._wrong_clock()
        stack.callback(server.stop)
        server.start()
        front.target_port = server.port
        self.nodes.append(Node(server, front, source))

    def _wrong_clock(self) -> dict[str, str]:
        if not self.clock_off:
            return {}
        if (library := fake_clock()) is None:
            raise RigError("libfaketime is not installed: 'apt-get install faketime' brings it")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME": f"{self.clock_off:+g}s",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def _watch(self, place: int) -> None:
        port, primary = free_port(), self.nodes[0]
        lines = [
            f"port {port}",
            f"bind {HOST}",
            f"bind-source-addr 127.0.2.{place + 1}",
            f"sentinel monitor {NAME} {HOST} {primary.front.port} {QUORUM}",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} {FAILOVER_TIMEOUT_MS}",
            f"sentinel announce-ip {HOST}",
            f"sentinel announce-port {port}",
        ]
        folder = self._folder / str(place)
        folder.mkdir()
        (folder / "sentinel.conf").write_text("\n".join([*lines, ""]), encoding="utf-8")
        with (folder / "sentinel.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own executable, literal arguments
                [find_server(), "sentinel.conf", "--sentinel"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._sentinels.append(process)
        self._ports.append(port)

    # What it is at

    @property
    def url(self) -> str:
        """The address of the records, through the Sentinels."""
        hosts = ",".join(f"{HOST}:{port}" for port in self._ports)
        return f"sentinel://{hosts}/0?master={NAME}"

    def client(self) -> redis.Redis:
        """Return a client of whatever server is the primary."""
        sentinels = redis.sentinel.Sentinel(
            [(HOST, port) for port in self._ports], sentinel_kwargs={"socket_timeout": _TIMEOUT}
        )
        found: redis.Redis = sentinels.master_for(NAME, decode_responses=True, socket_timeout=5)
        return found

    def primary(self) -> Node:
        """Return the server that the Sentinels name as the primary, most of them agreeing."""
        named = [self._named_by(port) for port in self._ports]
        for node in self.nodes:
            if named.count(node.front.port) >= QUORUM:
                return node
        raise RigError(f"the Sentinels name different primaries: {named}")

    def _named_by(self, port: int) -> int | None:
        with (
            suppress(redis.RedisError),
            redis.Redis(
                host=HOST, port=port, decode_responses=True, socket_timeout=_TIMEOUT
            ) as client,
        ):
            return int(client.sentinel_get_master_addr_by_name(NAME)[1])
        return None

    def _is_watched(self) -> bool:
        for port in self._ports:
            with redis.Redis(
                host=HOST, port=port, decode_responses=True, socket_timeout=_TIMEOUT
            ) as client:
                known: Any = client.sentinel_master(NAME)
            if (known["num-slaves"], known["num-other-sentinels"]) != (
                self.replicas,
                SENTINELS - 1,
            ):
                return False
        return True

    def is_whole(self) -> bool:
        """Return whether every other server follows the primary, with all that it has."""
        primary = self.primary() if self._ports else self.nodes[0]
        facts = primary.facts()
        if facts["role"] != "master" or facts["connected_slaves"] != self.replicas:
            return False
        others = [node for node in self.nodes if node is not primary]
        return all(
            (found := node.facts())["role"] == "slave"
            and found["master_port"] == primary.front.port
            and found["master_link_status"] == "up"
            for node in others
        )

    # What is done to it

    def others(self, node: Node) -> list[str]:
        """Return the addresses from which the other servers connect."""
        return [other.source for other in self.nodes if other is not node]

    def sentinels(self) -> list[str]:
        """Return the addresses from which the Sentinels connect."""
        return [f"127.0.2.{place + 1}" for place in range(SENTINELS)]

    def freeze(self, node: Node) -> None:
        """Stop a server in its tracks; the kernel still accepts connections for it."""
        os.kill(node.server.pid, signal.SIGSTOP)
        self.frozen = node

    def thaw(self) -> None:
        """Let a stopped server go on where it was."""
        if self.frozen is not None:
            with suppress(ProcessLookupError):
                os.kill(self.frozen.server.pid, signal.SIGCONT)
            self.frozen = None

    def await_promotion(self, before: Node) -> Node:
        """Wait until the Sentinels name another primary, and return it once it serves."""

        def is_done() -> bool:
            after = self.primary()
            return after is not before and after.facts()["role"] == "master"

        self._await(is_done, "a replica is promoted")
        return self.primary()

    def revive(self, node: Node) -> None:
        """Start a server that was killed, as a replica of the present primary."""
        node.server.directives["replicaof"] = f"{HOST} {self.primary().front.port}"
        node.server.restart()

    def await_whole(self) -> None:
        """Wait until the old primary follows the new one."""
        self._await(self.is_whole, "every server follows the new primary")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(redis.RedisError, OSError, RigError):
                if condition():
                    return
            # No server reports a change by itself: they are asked until they say it.
            time.sleep(_PAUSE)
        raise RigError(f"waited {PATIENCE:g} s in vain until {what}")
