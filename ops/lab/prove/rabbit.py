"""A real RabbitMQ where one is installed, on free loopback ports, ended by the ids with which it
was started.

`RABBITMQ_SERVER` names the server's own start script where it is not in its usual place.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.lab.prove.rig import PATIENCE, RigError
from worker.sandbox.ports import free_port

# Debian's command of the same name on PATH is a wrapper for its service's own user.
SCRIPTS: Final = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
    "/opt/rabbitmq/sbin/rabbitmq-server",
)
MISSING: Final = (
    "no rabbitmq-server is installed here: 'apt-get install rabbitmq-server', or name it in"
    " RABBITMQ_SERVER"
)
_GREETING: Final = b"AMQP\x00\x00\x09\x01"
_POLL: Final = 0.02


def script() -> Path | None:
    """Return the server's start script, None if it is not installed."""
    named = os.environ.get("RABBITMQ_SERVER")
    for place in [named] if named else SCRIPTS:
        if place and Path(place).is_file() and shutil.which("epmd"):
            return Path(place)
    return None


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connected:
            # A socket that asks for a free port may be given that very port, and meet itself.
            return bool(connected.getsockname() != connected.getpeername())
    except OSError:
        return False


def _speaks_amqp(port: int) -> bool:
    """Tell whether a broker answers: a port that listens may be another process's for a moment."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connected:
            connected.settimeout(5)
            connected.sendall(_GREETING)
            answer = connected.recv(1)
            return bool(answer) and bool(connected.getsockname() != connected.getpeername())
    except OSError:
        return False


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise RigError(f"waited {PATIENCE:.0f} s in vain until {what}")
        # Another process's port says nothing until it is asked.
        time.sleep(_POLL)


@dataclass
class RabbitMQ:
    """One broker on free loopback ports; `stop` and `start` keep its data."""

    server: Path
    folder: Path
    port: int
    environment: dict[str, str]
    running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The broker's address."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start it and wait until it answers; raises `RigError` with its log if it ends."""
        with (self.folder / "log").open("ab") as log:
            self.running = subprocess.Popen(  # noqa: S603 - Debian's own script
                [self.server],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        running = self.running
        _until(lambda: running.poll() is not None or _speaks_amqp(self.port), "RabbitMQ answers")
        if running.poll() is not None:
            raise RigError((self.folder / "log").read_text())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it in its tracks: the kernel goes on taking connections and bytes, and nothing
        answers.
        """
        if self.running is None:
            raise RigError("RabbitMQ is not running")
        begun = self.running.pid
        (machine,) = Path(f"/proc/{begun}/task/{begun}/children").read_text().split()
        os.kill(int(machine), signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(int(machine), signal.SIGCONT)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let it take no messages, as it does by itself when its disk is nearly full."""
        self._demand_free_disk("1000000GB")
        try:
            yield
        finally:
            self._demand_free_disk("1MB")

    def _demand_free_disk(self, least: str) -> None:
        subprocess.run(  # noqa: S603 - RabbitMQ's own command
            [self.server.with_name("rabbitmqctl"), "set_disk_free_limit", least],
            env=self.environment,
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )

    def stop(self) -> None:
        """End it in good order."""
        if self.running is not None:
            self.running.terminate()
            self.running.wait(PATIENCE)


@contextmanager
def running_rabbitmq(folder: Path) -> Iterator[RabbitMQ]:
    """A broker with nothing in it, and the port mapper that Erlang would otherwise leave running
    behind it.
    """
    server = script()
    if server is None:
        raise RigError(MISSING)
    folder.mkdir()
    port, mapper = free_port(), free_port()
    ours = {
        "HOME": folder,
        "ERL_EPMD_PORT": mapper,
        "RABBITMQ_NODENAME": "refunds-test@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": port,
        "RABBITMQ_DIST_PORT": free_port(),
        "RABBITMQ_LOGS": "-",
        # Erlang's schedulers would turn in circles while there is nothing to do.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        **{
            f"RABBITMQ_{name}": folder / name.lower()
            for name in (
                "MNESIA_BASE",
                "LOG_BASE",
                "PID_FILE",
                "ENABLED_PLUGINS_FILE",
                "CONFIG_FILE",
                "CONF_ENV_FILE",
            )
        },
        "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "advanced.config",
        "RABBITMQ_GENERATED_CONFIG_DIR": folder / "generated",
        "RABBITMQ_SCHEMA_DIR": folder / "schema",
    }
    environment = dict(os.environ) | {name: str(value) for name, value in ours.items()}
    names = subprocess.Popen(  # noqa: S603 - literal arguments
        ["epmd", "-port", str(mapper), "-address", "127.0.0.1"],  # noqa: S607 - Erlang's own
        env=environment,
    )
    made = RabbitMQ(server, folder, port, environment)
    try:
        _until(lambda: _listens(mapper), "Erlang's port mapper listens")
        made.start()
        yield made
    finally:
        made.stop()
        names.terminate()
        names.wait(10)
