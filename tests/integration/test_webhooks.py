"""Webhooks through real processes: provider, server, broker, worker, and a refund whose reply was
lost.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.support.installation import PATIENCE, Installation, until
from tests.support.serving import serving
from worker.model.refund import Status
from worker.model.request import RefundRequest

UNLISTED = {"REFUNDS_READBACK": "none", "REFUNDS_MAX_ATTEMPTS": "3"}


def command(installation: Installation, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env=installation.environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )


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
        command(installation, "webhooks", "setup", f"{url}/webhooks/wooshpay", "--write")
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


@pytest.mark.parametrize("secret", ["whsec_of_somebody_else"])
def test_a_forged_event_reads_nothing_from_the_provider(
    installation: Installation, secret: str
) -> None:
    installation.settings |= UNLISTED | {"REFUNDS_WEBHOOK_SECRETS": "whsec_that_only_we_know"}
    with serving(installation) as (server, url):
        installation.sandbox.set_faults("cut_after:n=1")
        installation.sandbox.set_modes(
            webhook=f"{url}/webhooks/wooshpay", webhook_secret=secret, webhook_tries=1
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
