"""Callbacks through real processes: broker, worker, and the receiver of the page as written."""

from __future__ import annotations

import base64
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.installation import Installation, Worker, until
from worker.client import Refunds
from worker.model.request import RefundRequest
from worker.sandbox.ports import free_port
from worker.store import callback_state

PAGE = Path(__file__).parents[2] / "ops" / "docs" / "callbacks.md"


def receiver() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 34
    return str(code)


def a_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@contextmanager
def receiving(installation: Installation, port: int, *known: str) -> Iterator[Worker]:
    """The receiver of the page as a process of its own, with these secrets."""
    log = installation.folder / f"shop-{len(list(installation.folder.glob('shop-*.log')))}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", receiver()],
            env=installation.environment | {"PORT": str(port), "CALLBACK_SECRETS": " ".join(known)},
            stdout=file,
            stderr=file,
        )
    shop = Worker(process, log)
    try:
        until(lambda: _answers(port), "the receiver listens")
        yield shop
    finally:
        shop.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def port(installation: Installation) -> int:
    """The port of the receiver; the installation's workers have its endpoint."""
    port, folder = free_port(), installation.folder
    (folder / "callbacks.toml").write_text(
        f'[[endpoints]]\nname = "shop"\nurl = "http://127.0.0.1:{port}/"\nallow_private = true\n'
    )
    installation.settings |= {
        "REFUNDS_CALLBACKS_FILE": str(folder / "callbacks.toml"),
        "REFUNDS_SECRETS_DIR": str(folder),
    }
    with installation.refunds() as refunds:
        callback_state.turn_on(refunds.store, "ann")
    return port


def test_the_pages_receiver_learns_of_each_refund_through_kills_and_a_rotation(
    installation: Installation, port: int
) -> None:
    """The old secret alone, then both at once, then the new one alone; a worker dies between."""
    old, new = a_secret(), a_secret()
    file = installation.folder / "callback_shop"
    with installation.refunds() as refunds:
        for number, (signing, known) in enumerate((([old], [old]), ([old, new], [new]))):
            file.write_text("\n".join(signing))
            worker = installation.start()
            with receiving(installation, port, *known) as shop:
                ids = [f"order-{number}-{each}" for each in range(5)]
                for refund_id in ids:
                    request = RefundRequest(
                        refund_id=refund_id, payment_intent=f"pi_{refund_id}", amount=500
                    )
                    refunds.submit(request)
                installation.settled(refunds, ids)
                if number == 0:
                    worker.kill()
                    worker = installation.start()
                until(
                    lambda ids=ids, shop=shop: (
                        {f"{each} succeeded" for each in ids}  # type: ignore[misc]
                        <= set(shop.said.splitlines())
                    ),
                    "the shop holds every refund",
                )
            assert worker.stop() == 0
        (state,) = callback_state.read_callbacks(refunds.store).endpoints
        assert (state.waiting, state.dead) == (0, 0)


def waiting(refunds: Refunds) -> int:
    return callback_state.read_callbacks(refunds.store, ["shop"]).endpoints[0].waiting


def test_a_shop_that_never_answers_delays_no_refund(installation: Installation, port: int) -> None:
    """It accepts each connection and says nothing; its requests take 15 seconds each."""
    (installation.folder / "callback_shop").write_text(a_secret())
    with socket.create_server(("127.0.0.1", port)), installation.refunds() as refunds:
        installation.start()
        for part in range(3):
            ids = [f"order-{part}-{each}" for each in range(10)]
            for refund_id in ids:
                request = RefundRequest(
                    refund_id=refund_id, payment_intent=f"pi_{refund_id}", amount=500
                )
                refunds.submit(request)
            found = installation.settled(refunds, ids, seconds=10)
            assert [refund.status for refund in found] == ["succeeded"] * len(ids)
            # From here on its requests are in flight.
            until(lambda most=10 * (part + 1): waiting(refunds) == most, "the shop is due")  # type: ignore[misc]


def test_a_shop_that_is_away_delays_no_refund_and_holds_all_once_it_is_back(
    installation: Installation, port: int
) -> None:
    secret = a_secret()
    (installation.folder / "callback_shop").write_text(secret)
    installation.start()
    with installation.refunds() as refunds:
        ids = [f"order-{each}" for each in range(3)]
        for refund_id in ids:
            refunds.submit(
                RefundRequest(refund_id=refund_id, payment_intent=f"pi_{refund_id}", amount=500)
            )
        assert {refund.status for refund in installation.settled(refunds, ids)} == {"succeeded"}

        def failures() -> int:
            return callback_state.read_callbacks(refunds.store, ["shop"]).endpoints[0].failures

        until(lambda: failures() >= len(ids), "each was tried in vain")
        with receiving(installation, port, secret) as shop:
            until(
                lambda: {f"{each} succeeded" for each in ids} <= set(shop.said.splitlines()),
                "the shop holds every refund",
            )
