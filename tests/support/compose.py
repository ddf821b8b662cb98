"""`docker-compose.yml` read as it stands, and its services run as processes.

Same commands, other hosts and paths.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from worker.sandbox.installation import environment
from worker.sandbox.ports import free_port
from worker.sandbox.redis_server import find_server

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_INSIDE: Mapping[str, int] = {
    "redis": 6379,
    "redis-2": 6379,
    "sentinel-1": 26379,
    "sentinel-2": 26379,
    "sentinel-3": 26379,
    "metrics": 9464,
    "sandbox": 4010,
    "webhooks": 8080,
    "api": 8081,
    "flower": 5555,
    "prometheus": 9090,
    "alertmanager": 9093,
}
"""Where each service listens in its container."""


class StackError(RuntimeError):
    """A service did not come up, or ended by itself; the text says which and shows its log."""


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until a condition of another process holds.

    `StackError` says what was waited for in vain.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise StackError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.02)


def port_for(wished: int) -> int:
    """Return the port wished for if it is free, else any free one; 0 wishes for none."""
    if not wished:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wished))
        except OSError:
            return free_port()
        return wished


def variables_of(file: Path) -> dict[str, str]:
    """The variables of an env file."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def composed(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole file, merged and with its variables put in."""

    def put_in(found: re.Match[str]) -> str:
        return (variables or {}).get(found[1], found[2] or "")

    text = (ROOT / "docker-compose.yml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(put_in, text))
    return loaded


@dataclass
class Service:
    """One service as a process, and what it logged."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        """Return all it logged."""
        return self.log.read_text()

    def stop(self) -> int:
        """SIGTERM, as the engine would, and wait for its end; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@dataclass
class Stack:
    """The services of the file on loopback, in a folder of their own.

    On the containers' ports only if told so.
    """

    folder: Path
    variables: Mapping[str, str]
    tools: Mapping[str, Path] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    running: dict[str, Service] = field(default_factory=dict)
    usual_ports: bool = False
    sentinels: tuple[str, ...] = ()
    """The services that are asked for the server of the records, if there are any."""

    def __post_init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = composed(self.variables)["services"]
        # Where several listen on the same port of their containers, only the first gets it.
        firsts = {port: name for name, port in reversed([*_INSIDE.items()])}
        wished = {name: port for port, name in firsts.items()} if self.usual_ports else {}
        self.ports = {name: port_for(wished.get(name, 0)) for name in self.services}
        for name in ("secrets", "flower", "tsdb", "alerts", "etc", "programs"):
            (self.folder / name).mkdir()
        (self.folder / "programs" / "redis-server").symlink_to(find_server())
        sentinels = ",".join(f"127.0.0.1:{self.ports[name]}" for name in self.sentinels)
        subprocess.run(
            [ROOT / "ops" / "redis" / "make-users", self.folder / "secrets"],
            env=os.environ
            | {
                "REDIS_ADDRESS": f"127.0.0.1:{self.ports['redis']}",
                "REDIS_SENTINELS": sentinels,
            },
            check=True,
        )

    def url(self, service: str) -> str:
        """Return where a service with pages listens."""
        return f"http://127.0.0.1:{self.ports[service]}"

    @property
    def redis_url(self) -> str:
        """Return where the records are, as the user who may do everything: for tests and drills."""
        return self.redis_url_of("operator")

    def redis_url_of(self, user: str) -> str:
        """Return where the records are, as one of the users of ops/redis/users.acl."""
        return (self.folder / "secrets" / f"{user}_redis_url").read_text().strip()

    def secrets_of(self, name: str) -> Path:
        """Return the folder that a service sees as /run/secrets, with its own files under their
        names there.
        """
        folder = self.folder / f"secrets-{name}"
        folder.mkdir(exist_ok=True)
        for secret in self.services[name].get("secrets", []):
            source, target = (
                (secret, secret)
                if isinstance(secret, str)
                else (secret["source"], secret["target"])
            )
            file = self.folder / "secrets" / source
            # Once: the service reads it while its healthcheck is asked already.
            if file.exists() and not (folder / target).exists():
                (folder / target).write_text(file.read_text())
        return folder

    def here(self, text: str) -> str:
        """A text of the file with hosts and paths of this machine."""
        for name, port in _INSIDE.items():
            for host in (name, "127.0.0.1", "0.0.0.0"):  # noqa: S104 - replaced by loopback here
                text = text.replace(f"{host}:{port}", f"127.0.0.1:{self.ports[name]}")
            if text == str(port):
                return str(self.ports[name])
        paths = {
            "/run/secrets": "secrets",
            "/tmp/heartbeat": "heartbeat",  # noqa: S108 - the container's own
            "/var/lib/flower": "flower",
            "/var/lib/refunds-api": "spool",
            "/etc/prometheus": "etc",
            "/etc/alertmanager": "etc",
        }
        for path, ours in paths.items():
            text = text.replace(path, str(self.folder / ours))
        text = text.replace(
            "/opt/refunds/flowerconfig.py", str(ROOT / "ops" / "docker" / "flowerconfig.py")
        )
        for path, ours in {
            "=/prometheus": "tsdb",
            "=/alertmanager": "alerts",
        }.items():
            if text.endswith(path):
                text = (
                    text.removesuffix(path)
                    + ("=" if path[0] == "=" else "")
                    + str(self.folder / ours)
                )
        return "127.0.0.1" if text == "0.0.0.0" else text  # noqa: S104 - see above

    def command(self, name: str) -> list[str]:
        """Return the container's command with this machine's programs, ports and paths."""
        programs = {
            "refunds": [sys.executable, "-m", "worker"],
            "python": [sys.executable],
            "celery": [sys.executable, "-m", "celery"],
        }
        first, *rest = self.services[name]["command"]
        if first.startswith("/etc/refunds/"):
            return self._server(name, ROOT / "ops" / "redis" / Path(first).name, rest)
        if first in programs:
            return [*programs[first], *map(self.here, rest)]
        # The image's own entrypoint; inside a container it listens on every address.
        address = f"--web.listen-address=127.0.0.1:{self.ports[name]}"
        return [str(self.tools[name]), *map(self.here, [first, *rest]), address]

    def _server(self, name: str, program: Path, options: list[str]) -> list[str]:
        """Return the command of a Redis server or Sentinel, with a port and folder of its own."""
        (self.folder / f"data-{name}").mkdir(exist_ok=True)
        here = [self.data_of(name) if each == "/data" else self.here(each) for each in options]
        return [str(program), *here, "--bind", "127.0.0.1", "--port", str(self.ports[name])]

    def data_of(self, name: str) -> str:
        """Return the folder that a service sees as /data."""
        return str(self.folder / f"data-{name}")

    def environment(self, name: str) -> dict[str, str]:
        """Return the service's variables: the file's, and none of the caller's own settings."""
        given = self.services[name].get("environment", {})
        # One without a value is the caller's, of whom nothing is taken.
        there = {key: self.here(str(value)) for key, value in given.items() if value is not None}
        if "REDIS_DATA" in there:
            there["REDIS_DATA"] = self.data_of(name)
            there["REDIS_SECRETS"] = str(self.secrets_of(name))
            programs = self.folder / "programs"
            there["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
        if "REFUNDS_SECRETS_DIR" in there:
            there["REFUNDS_SECRETS_DIR"] = str(self.secrets_of(name))
        return environment(there | self.extra, without=("REFUNDS_", "FLOWER_"))

    def start(self, name: str) -> Service:
        """Start a service as a process."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command(name), env=self.environment(name), cwd=ROOT, stdout=file, stderr=file
            )
        self.running[name] = Service(process, log)
        return self.running[name]

    def is_healthy(self, name: str, **environment: str) -> bool:
        """Tell what the service's own healthcheck says."""
        kind, first, *rest = self.services[name]["healthcheck"]["test"]
        if (kind, first) != ("CMD", "python"):
            raise StackError(f"the healthcheck of {name} is no Python: it cannot be run here")
        check = [sys.executable, *map(self.here, rest)]
        environment = self.environment(name) | environment
        run = subprocess.run(check, env=environment, check=False, capture_output=True, timeout=30)
        return run.returncode == 0

    def await_healthy(self, *names: str) -> None:
        """Wait until the healthchecks of running services pass.

        Fail with the log of one that ended.
        """
        for name in names:
            service = self.running[name]

            def settled(name: str = name, service: Service = service) -> bool:
                return service.process.poll() is not None or self.is_healthy(name)

            until(settled, f"{name} is healthy")
            if service.process.poll() is not None:
                raise StackError(f"{name} ended with {service.process.returncode}: {service.said}")

    def stop(self) -> dict[str, int]:
        """End all in the reverse order of their start; return the exit codes."""
        return {name: service.stop() for name, service in reversed(self.running.items())}
