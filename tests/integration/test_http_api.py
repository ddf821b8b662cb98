"""The HTTP API through real processes: accepted, paid once, and not lost with the server's or the
records' process.
"""

from __future__ import annotations

import http.client
import signal
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.support.installation import Installation, calls, until
from tests.support.serving import a_token, ask, serving
from worker.sandbox.redis_server import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.sandbox.redis_server import ThrowawayServer

PAYMENT = "pi_1787730829493927936"


def a_body(refund_id: str = "order-1") -> dict[str, Any]:
    return {"refund_id": refund_id, "payment_intent": PAYMENT, "amount": 500}


def test_a_refund_is_created_paid_once_and_waited_for(installation: Installation) -> None:
    installation.start()
    token = a_token(installation)
    with serving(installation) as (server, url):
        status, refund = ask(url, token, "POST", "/v1/refunds?wait=30", a_body())
        assert (status, refund["status"]) == (200, "succeeded")
        assert ask(url, token, "POST", "/v1/refunds", a_body()) == (200, refund)
        assert ask(url, token, "GET", "/v1/refunds/order-1")[1] == refund
        assert server.stop() == 0
    assert len(installation.sandbox.effects("order-1")) == 1


def test_at_the_end_a_wait_is_answered_as_it_is(installation: Installation) -> None:
    token = a_token(installation)
    answers: list[Any] = []
    with serving(installation) as (server, url):
        waiting = threading.Thread(
            target=lambda: answers.append(ask(url, token, "POST", "/v1/refunds?wait=25", a_body()))
        )
        waiting.start()
        with installation.refunds() as refunds:
            until(lambda: refunds.get_many(["order-1"]) != [None], "it is accepted")
        server.process.send_signal(signal.SIGTERM)
        waiting.join(20)
        assert server.process.wait(20) == 0
    ((status, refund),) = answers
    assert (status, refund["status"]) == (202, "pending")


@pytest.fixture
def lazy_server() -> Iterator[ThrowawayServer]:
    """A server that flushes once a second, so that an answer waits for the disk."""
    with running_server(appendfsync="everysec") as server:
        yield server


@pytest.mark.usefixtures("waitaof")
def test_a_server_killed_between_record_and_answer_leaves_one_record_for_the_repeat(
    lazy_server: ThrowawayServer, installation: Installation
) -> None:
    installation.redis_url = lazy_server.url
    token = a_token(installation)
    with redis.Redis.from_url(lazy_server.url, decode_responses=True) as client:
        errors: list[Exception] = []
        with serving(installation) as (server, url):

            def post() -> None:
                try:
                    ask(url, token, "POST", "/v1/refunds", a_body())
                except (OSError, http.client.HTTPException) as error:
                    errors.append(error)

            # A server that never flushes holds the answer back for as long as the test needs.
            client.config_set("appendfsync", "no")
            posting = threading.Thread(target=post)
            posting.start()
            until(lambda: bool(client.exists("refunds:refund:order-1")), "the record exists")
            server.kill()
            posting.join(20)
        client.config_set("appendfsync", "everysec")
        assert len(errors) == 1, "it was killed before the answer"
        with serving(installation) as (_, url):
            status, refund = ask(url, token, "POST", "/v1/refunds", a_body())
            assert (status, refund["version"]) == (202, 1)
            _, history = ask(url, token, "GET", "/v1/refunds/order-1/history")
            assert [move["label"] for move in history["data"]] == ["accepted"]
            installation.start()
            _, refund = ask(url, token, "GET", "/v1/refunds/order-1?wait=30")
            assert refund["status"] == "succeeded"
    assert len(installation.sandbox.effects("order-1")) == 1


@pytest.mark.usefixtures("waitaof")
def test_what_was_answered_with_202_is_there_after_the_records_server_was_killed(
    lazy_server: ThrowawayServer, installation: Installation
) -> None:
    installation.redis_url = lazy_server.url
    token = a_token(installation)
    accepted = []
    with serving(installation) as (_, url), redis.Redis.from_url(lazy_server.url) as client:
        waited = calls(client, "waitaof")
        assert ask(url, token, "POST", "/v1/refunds", a_body("order-first"))[0] == 202
        assert calls(client, "waitaof") == waited + 1
        for number in range(5):
            status, refund = ask(url, token, "POST", "/v1/refunds", a_body(f"order-{number}"))
            assert status == 202
            accepted.append(refund)
            lazy_server.kill()
            status, problem = ask(url, token, "POST", "/v1/refunds", a_body(f"away-{number}"))
            assert (status, problem["code"]) == (503, "unavailable")
            lazy_server.restart()
            until(lambda: ask(url, token, "GET", "/ready")[0] == 200, "it is ready again")
            for each in accepted:
                path = f"/v1/refunds/{each['refund_id']}"
                assert ask(url, token, "GET", path) == (200, each)


def test_a_server_killed_amid_an_import_goes_on_with_it_at_the_next_start(
    installation: Installation, tmp_path: Path
) -> None:
    installation.settings["REFUNDS_SPOOL_DIR"] = str(tmp_path / "spool")
    token, count = a_token(installation), 20_000
    rows = "".join(f"order-{number},pi_{number},500\n" for number in range(count))
    with installation.refunds() as refunds:

        def imported() -> int:
            return sum(1 for _ in refunds.store.ids_in_batch("season"))

        with serving(installation, "--parts", "api") as (server, url):
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as client:
                headers = {"Authorization": f"Bearer {token}", "Content-Type": "text/csv"}
                file = f"refund_id,payment_intent,amount\n{rows}"
                client.request("POST", "/v1/batches?name=season", file, headers)
                assert client.getresponse().status == 202
            until(lambda: imported() > 0, "the first rows are accepted")
            server.kill()
        assert imported() < count, "it was killed before the last row"
        with serving(installation, "--parts", "api") as (_, url):

            def batch() -> dict[str, Any]:
                return ask(url, token, "GET", "/v1/batches/season")[1]

            until(lambda: batch()["imported_at"] is not None, "all rows are accepted")
            assert batch()["accepted"] + batch()["known"] == count
            until(lambda: not any((tmp_path / "spool").iterdir()), "the file is removed")
        assert len(set(refunds.store.ids_in_batch("season"))) == imported() == count
