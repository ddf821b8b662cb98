"""Webhooks through real processes: provider, server, broker, worker, and a refund whose reply was
lost.
"""

from __future__ import annotations

import json
import random
import time
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

from tests.support.installation import PATIENCE, Installation, until
from tests.support.serving import serving
from worker.model.refund import Refund, Status
from worker.model.request import RefundRequest
from worker.model.signatures import HEADER, header

SECRET = "whsec_that_only_we_know"

UNLISTED = {"REFUNDS_READBACK": "none", "REFUNDS_MAX_ATTEMPTS": "3"}


def test_a_refund_whose_reply_was_lost_is_found_by_its_webhook_and_paid_once(
    installation: Installation,
) -> None:
    """The provider ignores keys and lists nothing: without the webhook a person would decide."""
    secrets = installation.folder / "secrets"
    secrets.mkdir()
    installation.settings |= UNLISTED | {
        "REFUNDS_SECRETS_DIR": str(secrets),
        "REFUNDS_WEBHOOK_SECRETS": "",
    }
    (secrets / "refunds_webhook_secrets").write_text("whsec_until_it_is_registered\n")
    with serving(installation) as (server, url):
        port = int(url.rpartition(":")[2])
        set_up = installation.cli("webhooks", "setup", f"{url}/webhooks/wooshpay", "--write")
        assert set_up.code == 0, set_up.err
        assert server.stop() == 0
    with serving(installation, port=port):
        installation.sandbox.set_faults("cut_after:n=1")
        installation.start()
        with installation.refunds() as refunds:
            refunds.submit(RefundRequest(refund_id="order-1", payment_intent="pi_1", amount=500))
            refund = refunds.wait("order-1", timeout=PATIENCE)
            history: list[dict[str, Any]] = refunds.history("order-1")
    (effect,) = installation.sandbox.effects()
    assert (refund.status, refund.evidence) == (Status.SUCCEEDED, "lookup"), history
    assert refund.provider_refund_id == effect["refund"]
    assert history[-1]["to"] == "settled"


def test_eighteen_copies_of_three_days_in_any_order_move_nothing_more(
    installation: Installation,
) -> None:
    installation.settings |= {"REFUNDS_WEBHOOK_SECRETS": SECRET}
    with serving(installation) as (_, url):
        installation.start()
        with installation.refunds() as refunds:
            refunds.submit(RefundRequest(refund_id="order-1", payment_intent="pi_1", amount=500))
            before = refunds.wait("order-1", timeout=PATIENCE)
            history = refunds.history("order-1")
            store = refunds.store
            installation.sandbox.forget_requests()
            now = int(time.time() * 1000)
            times = [now - age * 8 * 3_600_000 for age in range(9)]
            signed = [*map(str, times), *(str(time // 1000) for time in times)]
            random.Random(18).shuffle(signed)  # noqa: S311 - an order for a test
            for each in signed:
                body = an_event(before, status="failed", amount=1)
                assert posted(url, body, header(SECRET, each, body)) == 200
            until(lambda: store.redis.zcard(store.key("rechecks")) == 0, "the refund is read again")
            assert refunds.get("order-1") == before
            assert refunds.history("order-1") == history
    assert len(installation.sandbox.effects()) == 1
    # What a body says of status and amount is not believed, and copies read the refund no oftener:
    # at once, once more for one that came during that read, and half a minute later.
    path = f"/v1/refunds/{before.provider_refund_id}"
    read = [each for each in installation.sandbox.requests() if each["path"] == path]
    assert 1 <= len(read) <= 3


def an_event(refund: Refund, **fields: Any) -> bytes:
    shown = {
        "id": refund.provider_refund_id,
        "object": "refund",
        "payment_intent": refund.payment_intent,
        "metadata": {"refund_id": refund.refund_id, "refund_generation": "1"},
        **fields,
    }
    return json.dumps({"type": "charge.refund.updated", "data": {"object": shown}}).encode()


def posted(url: str, body: bytes, signature: str) -> int:
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=30)) as client:
        client.request("POST", "/webhooks/wooshpay", body, {HEADER: signature})
        return client.getresponse().status


def test_a_forged_event_reads_nothing_from_the_provider(installation: Installation) -> None:
    installation.settings |= UNLISTED | {"REFUNDS_WEBHOOK_SECRETS": SECRET}
    with serving(installation) as (server, url):
        installation.sandbox.set_faults("cut_after:n=1")
        installation.sandbox.set_modes(
            webhook=f"{url}/webhooks/wooshpay",
            webhook_secret="whsec_of_somebody_else",
            webhook_tries=1,
        )
        installation.start()
        with installation.refunds() as refunds:
            refunds.submit(RefundRequest(refund_id="order-1", payment_intent="pi_1", amount=500))
            (refund,) = installation.settled(refunds, ["order-1"])
        assert refund.stage == "review"
        until(lambda: "webhook_refused" in server.said, "the event is refused")
    assert len(installation.sandbox.effects()) == 1
    read = [each for each in installation.sandbox.requests() if "/v1/refunds/" in each["path"]]
    assert [each for each in read if "credentials_probe" not in each["path"]] == []
