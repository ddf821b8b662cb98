"""Refunds through a real Sentinel and a real server that are both spoken to under TLS, each with
its own password.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import pytest
import redis

from ops.lab.servers import found
from tests.support.installation import Installation, until
from worker import RefundRequest
from worker.errors import StoreUnavailable
from worker.sandbox.ports import free_port
from worker.sandbox.redis_server import VARIABLE, ThrowawayServer

CERTIFICATE = Path(__file__).parents[1] / "support" / "loopback.pem"
PASSWORD, WATCHWORD = "p@ss/word", "w&tch"
FILES = {
    "tls_cert_file": str(CERTIFICATE),
    "tls_key_file": str(CERTIFICATE),
    "tls_ca_cert_file": str(CERTIFICATE),
}


@pytest.fixture(scope="module")
def secured() -> Iterator[tuple[ThrowawayServer, Path, int]]:
    """A server that speaks TLS, its executable and the port: the wheels' do not, Debian's does."""
    for server in found.every():
        port = free_port()
        with mock.patch.dict(os.environ, {VARIABLE: str(server.path)}):
            try:
                running = ThrowawayServer(
                    tls_port=str(port), tls_auth_clients="no", **FILES
                ).start()
            except StoreUnavailable:
                continue
        yield running, server.path, port
        running.stop()
        return
    pytest.skip(
        "no server here speaks TLS: 'apt-get install redis-server' brings one that does (.ci/run"
        " installs it)"
    )


@pytest.fixture
def sentinel(secured: tuple[ThrowawayServer, Path, int], tmp_path: Path) -> Iterator[str]:
    """The address through a Sentinel that speaks TLS alone."""
    server, executable, port = secured
    own = free_port()
    lines = [
        *(f"{name.replace('_', '-')} {value}" for name, value in FILES.items()),
        *(
            "port 0",
            f"tls-port {own}",
            "tls-auth-clients no",
            "tls-replication yes",
            "bind 127.0.0.1",
        ),
        *(f"dir {tmp_path}", f'requirepass "{WATCHWORD}"'),
        f"sentinel monitor refunds 127.0.0.1 {port} 1",
    ]
    config = tmp_path / "sentinel.conf"
    config.write_text("\n".join(lines))
    process = subprocess.Popen(
        [executable, config, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def knows() -> bool:
        with redis.Redis(
            port=own, password=WATCHWORD, ssl=True, ssl_ca_certs=str(CERTIFICATE)
        ) as client:
            try:
                return (
                    client.execute_command("SENTINEL", "get-master-addr-by-name", "refunds")
                    is not None
                )
            except redis.ConnectionError:
                return False

    try:
        until(knows, "the Sentinel knows the server")
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
            client.execute_command(
                "ACL", "SETUSER", "app", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all"
            )
        word = quote(WATCHWORD, safe="")
        options = f"master=refunds&sentinel_password={word}&ssl_ca_certs={CERTIFICATE}"
        yield f"sentinels://app:{quote(PASSWORD, safe='')}@127.0.0.1:{own}/0?{options}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def redis_url(secured: tuple[ThrowawayServer, Path, int]) -> str:
    """The test's own way to the server."""
    return secured[0].url


def test_refunds_go_through_a_sentinel_and_a_server_under_tls(
    installation: Installation, sentinel: str, secured: tuple[ThrowawayServer, Path, int]
) -> None:
    installation.settings["REFUNDS_REDIS_URL"] = sentinel
    worker = installation.start("worker", "worker")
    requests = [
        RefundRequest(refund_id=f"order-{n}-1", payment_intent=f"pi_{n}", amount=500)
        for n in range(3)
    ]
    with (
        installation.refunds() as plain,
        redis.Redis.from_url(secured[0].url, decode_responses=True) as admin,
    ):
        assert plain.settings.redis_url.get_secret_value() == installation.redis_url
        through = type(plain)(redis_url=sentinel)
        for request in requests:
            through.submit(request)
        records = installation.settled(through, [request.refund_id for request in requests])
        ports = {
            client["laddr"].rpartition(":")[2]
            for client in admin.client_list()
            if client["user"] == "app"
        }
        through.close()
    # While there is a Sentinel: without one it would ask for the server for ten seconds.
    assert worker.stop() == 0
    assert [record.status for record in records] == ["succeeded"] * 3
    assert len(installation.sandbox.effects()) == 3
    assert ports == {str(secured[2])}
