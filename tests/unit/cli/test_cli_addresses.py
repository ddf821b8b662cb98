"""An address at which there is something, but no Redis as it was asked for.

One sentence that says what to change.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.support.cli_runner import Cli
from worker.sandbox.redis_server import ThrowawayServer, running_server

CERTIFICATE = Path(__file__).parents[2] / "support" / "loopback.pem"


@contextmanager
def answering(reply: bytes, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port at which every connection is answered with these bytes and closed."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with (
                    connection if tls is None else tls.wrap_socket(connection, server_side=True)
                ) as peer:
                    peer.recv(4096)
                    peer.sendall(reply)
            except OSError:
                pass  # a client that did not like what it saw

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.join(10)


@pytest.fixture
def web() -> Iterator[int]:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        yield port


@pytest.mark.parametrize(
    "command", [("list",), ("status", "order-1"), ("batch", "list"), ("doctor",)]
)
def test_a_database_that_the_server_does_not_have_is_a_wrong_setting(
    cli: Cli, command: tuple[str, ...]
) -> None:
    ran = cli(
        *command, REFUNDS_REDIS_URL=cli.environment["REFUNDS_REDIS_URL"].removesuffix("0") + "99"
    )
    assert ran.code == 2
    assert "does not have the database in REFUNDS_REDIS_URL" in ran.out + ran.err


def test_a_server_that_does_not_speak_redis_is_away_and_named(cli: Cli, web: int) -> None:
    for command in ("list", "doctor"):
        ran = cli(
            command,
            REFUNDS_REDIS_URL=f"redis://127.0.0.1:{web}/0",
            REFUNDS_API_KEY="sk_test_planted",
        )
        assert ran.code == 5
        assert (
            f"the server at 127.0.0.1:{web} does not speak the Redis protocol" in ran.out + ran.err
        )


def test_a_server_that_refuses_a_tls_greeting_did_not_speak_tls(cli: Cli, web: int) -> None:
    ran = cli("list", REFUNDS_REDIS_URL=f"rediss://127.0.0.1:{web}/0")
    assert (ran.code, f"the server at 127.0.0.1:{web} does not speak TLS" in ran.err) == (5, True)


def test_a_redis_without_tls_that_lets_the_greeting_wait_did_not_speak_tls(
    cli: Cli, redis_server: ThrowawayServer
) -> None:
    url = f"rediss://127.0.0.1:{redis_server.port}/0?socket_connect_timeout=0.1&socket_timeout=0.1"
    ran = cli("list", REFUNDS_REDIS_URL=url)
    assert (ran.code, "does not speak TLS, which rediss:// requires" in ran.err) == (5, True)


def test_a_certificate_that_is_not_trusted_is_no_server_that_is_away(cli: Cli) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    with answering(b"", tls) as port:
        ran = cli("list", REFUNDS_REDIS_URL=f"rediss://127.0.0.1:{port}/0")
    assert (ran.code, "shows a certificate that is not trusted here" in ran.err) == (5, True)


def test_a_redis_that_is_no_sentinel_is_a_wrong_setting(
    cli: Cli, redis_server: ThrowawayServer
) -> None:
    ran = cli(
        "list", REFUNDS_REDIS_URL=f"sentinel://127.0.0.1:{redis_server.port}/0?master=refunds"
    )
    assert (ran.code, "is not a Sentinel: name the Sentinels" in ran.err) == (2, True)


def test_sentinels_that_do_not_answer_are_named_as_sentinels(cli: Cli) -> None:
    ran = cli("list", REFUNDS_REDIS_URL="sentinel://127.0.0.1:1/0?master=refunds")
    assert (ran.code, ran.err.startswith("error: the Sentinels at 127.0.0.1:1 do not answer")) == (
        5,
        True,
    )


# The last three are objects of the client, which no text can be.
@pytest.mark.parametrize("name", ["pasword", "retry", "event_dispatcher", "socket_type"])
def test_an_option_that_no_text_can_set_is_a_wrong_setting_and_its_value_is_not_shown(
    cli: Cli, name: str
) -> None:
    ran = cli("list", REFUNDS_REDIS_URL=f"redis://127.0.0.1:1/0?{name}=hunter2")
    assert (ran.code, ran.err) == (
        2,
        f"error: REFUNDS_REDIS_URL has an unknown option, '{name}': remove it\n",
    )


def test_options_of_the_records_address_do_not_keep_a_message_from_the_broker(cli: Cli) -> None:
    url = cli.environment["REFUNDS_REDIS_URL"] + "?db=3&socket_timeout=9"
    ran = cli("submit", "order-1", "--payment-intent", "pi_1", REFUNDS_REDIS_URL=url)
    assert (ran.code, ran.err) == (0, "accepted: follow it with 'refunds status order-1'\n")


def test_wrong_password_is_named_as_such_for_the_records_and_the_queues(cli: Cli) -> None:
    with running_server() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "another-one")
        url = server.url.replace("redis://", "redis://:hunter2@")
        ran = cli("doctor", "--json", REFUNDS_REDIS_URL=url)
    found = {check["name"]: check for check in ran.object["checks"]}
    for name in ("redis", "queues"):
        assert "refuses the credentials" in found[name]["text"]
    assert found["redis"]["fix"] == "export REFUNDS_REDIS_URL=redis://USER:PASSWORD@HOST:PORT/0"
    assert found["queues"]["fix"].startswith("set the user and the password in REFUNDS_BROKER_URL")
    assert "hunter2" not in ran.out + ran.err
