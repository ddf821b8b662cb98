"""The broker's address: read as the client of the records reads it, or refused in a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
from amqp.exceptions import AccessRefused
from kombu.exceptions import OperationalError

from worker.broker import queues
from worker.errors import SettingsError
from worker.settings import Settings


@pytest.mark.parametrize(
    ("url", "database"), [("redis:///2", "2"), ("redis://?db=3", "3"), ("redis://", "/")]
)
def test_an_address_without_a_host_is_that_of_this_machine(url: str, database: str) -> None:
    app = queues.make_celery(Settings.load(redis_url=url))
    with app.connection_for_write() as connection:
        assert (connection.transport_cls, connection.hostname, connection.virtual_host) == (
            "redis",
            "127.0.0.1",
            database,
        )


@pytest.mark.parametrize(
    "option", ["channel_max=4711", "cafile=/4711", "userid=4711", "heartbeat=4711s", "port=4711"]
)
def test_an_option_that_rabbitmqs_client_cannot_read_is_named_without_its_value(
    option: str,
) -> None:
    url = f"amqp://user:hunter2@rabbit:5672/shop?{option}"
    name = option.partition("=")[0]
    with pytest.raises(SettingsError, match=f"REFUNDS_BROKER_URL.*{name}") as caught:
        queues.make_celery(Settings.load(broker_url=url))
    assert "4711" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_option_that_rabbitmqs_client_knows_is_used() -> None:
    app = queues.make_celery(Settings.load(broker_url="amqp://rabbit/shop?heartbeat=30"))
    with app.connection_for_write() as connection:
        assert (connection.virtual_host, connection.heartbeat) == ("shop", 30)


@pytest.mark.parametrize("url", ["sentinel://sentinel:26379/0", "amqp://rabbit/shop?tries=3"])
def test_a_worker_with_a_wrong_address_ends_for_good_and_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REFUNDS_API_KEY", "sk_test_x")
    monkeypatch.setenv("REFUNDS_BROKER_URL", url)
    started = [sys.executable, "-m", "worker.process.celery_worker", "--queues", "refunds"]
    ended = subprocess.run(started, capture_output=True, text=True, timeout=60, check=False)
    (said,) = ended.stderr.splitlines()
    assert (ended.returncode, said.startswith("refunds: ")) == (2, True)


@pytest.mark.parametrize(
    ("cause", "wrong"),
    [
        (AccessRefused("ACCESS_REFUSED - Login was refused"), "refuses the credentials"),
        (ConnectionRefusedError(111), "cannot be reached (OperationalError)"),
    ],
)
def test_a_broker_that_refuses_the_password_is_not_one_that_is_away(
    cause: Exception, wrong: str
) -> None:
    error = OperationalError("x")
    error.__cause__ = cause
    said, remedy = queues.trouble(error)
    assert (said, "REFUNDS_BROKER_URL" in remedy) == (wrong, True)
