"""Servers and clients for every test.

One real server a session, emptied for each test, and the fake beside it.
"""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import fakeredis
import kombu.connection
import pytest
import redis
import redis.asyncio
import structlog
from hypothesis import settings

from ops.lab.prove.rabbit import RabbitMQ
from tests.support import compose, fake_scripts
from tests.support.memory import folder_in_memory
from tests.support.rabbit import running_rabbitmq
from worker.model import redaction
from worker.model.refund import Lane
from worker.process import logs
from worker.sandbox.redis_server import ThrowawayServer, find_server, running_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    # A shell's background job ignores Ctrl-C, and so would every program that a test starts and
    # interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

LINES_SHOWN = 20
MOST_SCRIPTS = 500
"""A real server keeps so many, about ten times those of the product."""

# One commit, one verdict: the same examples each time. `--hypothesis-profile default` draws others.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

fake_scripts.translate_once()


def pytest_report_header() -> str:
    """Name the server that the tests run on."""
    server = find_server()
    run = subprocess.run(
        [server, "--version"], check=False, capture_output=True, text=True, timeout=30
    )
    return f"server: {run.stdout.strip()} ({server})"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Share the tests out to several processes as `--dist loadscope` does, by scopes of our own."""
    if config.getoption("dist") != "loadscope":
        return None
    from tests.support.sharing import Sharing  # noqa: PLC0415 - only where pytest-xdist is in use

    return Sharing(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say of a failed test what its workers, or the services of its stack, logged last."""
    report = yield
    if report.failed:
        for made in getattr(item, "funcargs", {}).values():
            for log in _logs_of(made):
                lines = log.read_text("utf-8", "replace").splitlines()[-LINES_SHOWN:]
                report.sections.append((log.name, "\n".join(line[:500] for line in lines)))
    return report


def _logs_of(made: object) -> list[Path]:
    """Return the logs of the processes that a fixture has started."""
    stack = getattr(made, "stack", made)
    if isinstance(stack, compose.Stack):
        return sorted(stack.folder.glob("*.log"))
    workers = getattr(made, "workers", None)
    # A mock has every attribute.
    return [worker.log for worker in workers] if isinstance(workers, list) else []


def pytest_collection_finish() -> None:
    """Look for garbage among what tests make, and not in all that was loaded before the first.

    It took every seventh second of the processor.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let this process and those that it starts trust one authority of the usual hundred.

    To read all takes 30 ms of processor for each client, and 60 ms in each process that loads
    aiohttp.
    """
    end = "-----END CERTIFICATE-----\n"
    first, _, _ = Path(certifi.where()).read_text("utf-8").partition(end)
    file = tmp_path_factory.mktemp("trusted") / "authority.pem"
    file.write_text(first + end, "utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(autouse=True)
def secrets_of_one_test_only() -> Iterator[None]:
    """Forget a test's secrets with it: a password of one would be hidden in what the next one
    says.
    """
    kinds = (redaction.CONFIGURED, redaction.LONG)
    known = [dict(kind.forms) for kind in kinds]
    yield
    for kind, forms in zip(kinds, known, strict=True):
        kind.forms = forms
        # Has the pattern made of these before the next test adds as many others.
        kind.found_in("")


@pytest.fixture(autouse=True)
def logging_of_one_test_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back how a test sets up logging, so that the next one hears every line.

    No logger keeps how it writes: a logger of a module outlives the test that used it first.
    """
    configure = structlog.configure

    def configure_uncached(**settings: Any) -> None:
        configure(**settings | {"cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", configure_uncached)
    root, before = logging.getLogger(), structlog.get_config()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("", *logs._CHATTY)}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()
    structlog.configure(**before)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[ThrowawayServer]:
    """The session's real server, each write on disk before its reply.

    A test that kills one starts its own.
    """
    with folder_in_memory() as folder, running_server(dir=str(folder)) as server:
        yield server


def has_waitaof(url: str) -> bool:
    """Whether a server can be waited for: Redis from 7.2 on, and Valkey."""
    with redis.Redis.from_url(url) as client:
        try:
            client.execute_command("WAITAOF", 0, 0, 0)
        except redis.ResponseError as error:
            if "unknown command" not in str(error):
                raise
            return False
    return True


@pytest.fixture(scope="session")
def waitaof(redis_server: ThrowawayServer) -> None:
    """A server that can be waited for.

    What another one is good for is tested beside each test that asks for this.
    """
    if not has_waitaof(redis_server.url):
        with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
            version = client.info("server")["redis_version"]
        pytest.skip(f"Redis {version} has no WAITAOF: 'everysec' is refused there, which is tested")


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ]:
    """The session's RabbitMQ; a test that stops one starts its own."""
    with running_rabbitmq() as broker:
        yield broker


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitMQ) -> str:
    """The session's RabbitMQ, with nothing in the task queues."""
    with kombu.connection.Connection(rabbitmq_server.url) as connection:
        for lane in Lane:
            connection.default_channel.queue_delete(lane.value)
    return rabbitmq_server.url


@pytest.fixture
def redis_url(redis_server: ThrowawayServer) -> str:
    """The session's server, emptied of data.

    Scripts stay, since to translate them took a third of a test: one that needs a server without
    them flushes them itself, and each fake begins without any.
    """
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        if client.info("memory")["number_of_cached_scripts"] > MOST_SCRIPTS:
            client.script_flush()
    return redis_server.url


@pytest.fixture
def sync_redis(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the emptied real server; replies are text."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def async_redis(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """An asyncio client of the emptied real server; replies are text."""
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def fake_redis() -> Iterator[redis.Redis]:
    """A client of a fresh fake that runs Lua; replies are text."""
    with fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True) as client:
        yield client


@pytest.fixture
async def async_fake_redis() -> AsyncIterator[redis.asyncio.Redis]:
    """An asyncio client of a fresh fake that runs Lua; replies are text."""
    async with fakeredis.FakeAsyncRedis(
        server=fakeredis.FakeServer(), decode_responses=True
    ) as client:
        yield client


@pytest.fixture(params=["fake_redis", "sync_redis"], ids=["fake", "real"])
def any_redis(request: pytest.FixtureRequest) -> redis.Redis:
    """The same test on the fake and on the real server."""
    client: redis.Redis = request.getfixturevalue(request.param)
    return client


@pytest.fixture(params=["async_fake_redis", "async_redis"], ids=["fake", "real"])
def async_any_redis(request: pytest.FixtureRequest) -> redis.asyncio.Redis:
    """The same test on the fake and on the real server, under asyncio."""
    client: redis.asyncio.Redis = request.getfixturevalue(request.param)
    return client
